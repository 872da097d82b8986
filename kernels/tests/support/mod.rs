//! Inputs for the tests of this crate: random numbers, and batches.

use arbora_kernels::quant::{Format, bf16_from_f32, f16_from_f32};
use arbora_kernels::{
    Answers, Backend, BatchShape, HeadLayout, KvShape, LogprobRow, Norm, NormKind, SampleRow, SequenceRows,
    StepRows,
};

/// RMSNorm with this weight.
pub(crate) fn rms<T>(weight: &T) -> Norm<'_, T> {
    Norm {
        kind: NormKind::Rms,
        weight,
        bias: None,
        eps: 1e-5,
    }
}

/// xorshift64*. The seed is not zero.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// 48 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
    }

    /// Uniform in 0..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() & 0xff_ffff) as f32 / 16_777_216.0
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// About normal, variance 1.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// `n_out` rows in `format`, values of about 1/sqrt(n_in): integers are random, and the floating-point
/// numbers that turn them into weights are such that they come out so.
pub(crate) fn random_matrix(format: Format, n_out: usize, n_in: usize, random: &mut Random) -> Vec<u8> {
    let n_blocks = n_out * n_in / format.block_len();
    let scale = 1.0 / (n_in as f32).sqrt();
    let mut bytes = Vec::with_capacity(n_blocks * format.block_bytes());
    for _ in 0..n_blocks {
        let half = |value: f32| f16_from_f32(value).to_le_bytes();
        let block_scale = scale * (0.5 + random.unit());
        match format {
            Format::F32 => bytes.extend((random.normal() * scale).to_le_bytes()),
            Format::F16 => bytes.extend(half(random.normal() * scale)),
            Format::Bf16 => bytes.extend(bf16_from_f32(random.normal() * scale).to_le_bytes()),
            _ => {
                let start = bytes.len();
                bytes.extend((0..format.block_bytes()).map(|_| random.bits() as u8));
                let block = &mut bytes[start..];
                let (divisor, min) = sizes(format);
                let min = -block_scale / divisor * (min + 2.0 * random.unit());
                for (&at, number) in format.halves().iter().zip([block_scale / divisor, min]) {
                    block[at..at + 2].copy_from_slice(&half(number));
                }
                match format {
                    Format::U4 | Format::U4x128 => block[2] = random.below(17) as u8,
                    Format::U8 => {
                        let offset = random.below(257) as i16 - 128;
                        block[2..4].copy_from_slice(&offset.to_le_bytes());
                    }
                    _ => {}
                }
                if format == Format::Mxfp4 {
                    // Powers of two from 2^-8 to 2^-5, twice the scale.
                    block[0] = 127 - 8 + random.below(4) as u8;
                }
            }
        }
    }
    bytes
}

/// Of a quantized format: the magnitude of its random integers times their scales, and how many scales a
/// minimum is worth. The minima of super-blocks are subtracted.
fn sizes(format: Format) -> (f32, f32) {
    match format {
        Format::Q4_0 | Format::U4 | Format::U4x128 => (4.0, 0.0),
        Format::Q4_1 => (4.0, 6.5),
        Format::Q5_0 => (8.0, 0.0),
        Format::Q5_1 => (8.0, 14.5),
        Format::Q2K => (8.0, -2.5),
        Format::Q3K => (32.0, 0.0),
        Format::Q4K => (128.0, -8.5),
        Format::Q5K => (256.0, -16.5),
        Format::Q6K => (1024.0, 0.0),
        Format::Iq4Xs => (1024.0, 0.0),
        Format::Iq3Xxs => (256.0, 0.0),
        Format::Mxfp4 | Format::Tq1_0 | Format::Tq2_0 => (1.0, 0.0),
        _ => (64.0, 0.0),
    }
}

/// Rows with a few large values and a block of zeros.
pub(crate) fn random_rows(n_rows: usize, width: usize, random: &mut Random) -> Vec<f32> {
    let mut rows: Vec<f32> = (0..n_rows * width)
        .map(|i| random.normal() * if i % 331 == 7 { 20.0 } else { 1.0 })
        .collect();
    let end = rows.len().min(64);
    rows[end.min(32)..end].fill(0.0);
    rows
}

/// The smallest pool and heads, for ops that look at neither.
pub(crate) const SMALL: (HeadLayout, KvShape) = (
    HeadLayout {
        n_heads: 1,
        n_kv_heads: 1,
        head_dim: 16,
    },
    KvShape {
        n_layers: 1,
        n_kv_heads: 1,
        head_dim: 16,
        page_size: 16,
        n_pages: 1,
    },
);

/// Index arrays of a step.
#[derive(Default)]
pub(crate) struct Rows {
    pub(crate) ids: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) slots: Vec<u32>,
    pub(crate) logit_rows: Vec<u32>,
    pub(crate) sequences: Vec<SequenceRows>,
    pub(crate) page_tables: Vec<u32>,
}

impl Rows {
    /// `n_rows` rows of one sequence, all of it zeros.
    pub(crate) fn zeros(n_rows: usize) -> Rows {
        let sequence = SequenceRows {
            first_row: 0,
            n_rows,
            first_position: 0,
            first_page: 0,
            n_pages: n_rows.div_ceil(16),
        };
        Rows {
            ids: vec![0; n_rows],
            positions: vec![0; n_rows],
            slots: vec![0; n_rows],
            logit_rows: Vec::new(),
            sequences: Vec::from_iter((n_rows > 0).then_some(sequence)),
            page_tables: vec![0; sequence.n_pages],
        }
    }

    /// The same with these tokens.
    pub(crate) fn of_ids(ids: &[u32]) -> Rows {
        Rows {
            ids: ids.to_vec(),
            ..Rows::zeros(ids.len())
        }
    }

    /// In a batch they just fill.
    pub(crate) fn upload<B: Backend>(&self, backend: &mut B, of: (HeadLayout, KvShape)) -> B::Batch {
        self.upload_for(backend, of, None)
    }

    /// The same for layers with this window.
    pub(crate) fn upload_for<B: Backend>(
        &self,
        backend: &mut B,
        (heads, kv): (HeadLayout, KvShape),
        window: Option<usize>,
    ) -> B::Batch {
        let rows = StepRows {
            ids: &self.ids,
            positions: &self.positions,
            slots: &self.slots,
            logit_rows: &self.logit_rows,
            sequences: &self.sequences,
            page_tables: &self.page_tables,
        };
        let shape = BatchShape {
            heads,
            kv,
            max_rows: self.ids.len(),
            max_logit_rows: self.logit_rows.len(),
            max_sequences: self.sequences.len(),
            max_pages: self.page_tables.len(),
        };
        let mut batch = backend.batch(shape, &[window]).expect("a small batch");
        // A batch that was filled before must not be seen in the next one.
        for _ in 0..2 {
            backend.upload_batch(&rows, &mut batch);
        }
        batch
    }
}

/// What a step's sampling answers.
pub(crate) fn answers<B: Backend>(
    backend: &mut B,
    logits: &B::Tensor,
    (rows, wanted): (&[SampleRow<'_>], &[LogprobRow]),
) -> Answers {
    let mut pending = backend.pending(rows.len()).expect("a few answers");
    let mut answers = Answers {
        tokens: vec![None; 3],
        logprobs: vec![None; 3],
    };
    // Answers of a step before must not be seen in the next one.
    for _ in 0..2 {
        backend.sample(logits, rows, wanted, &mut pending);
        backend.collect(&mut pending, &mut answers);
    }
    answers
}
