//! Random inputs for the tests of this crate.

use arbora_kernels::quant::{Format, bf16_from_f32, f16_from_f32};

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

/// `n_out` rows in `format`, values of about 1/sqrt(n_in).
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
            Format::Q8_0 => bytes.extend(half(block_scale / 64.0)),
            Format::Q4_0 => bytes.extend(half(block_scale / 4.0)),
            Format::Q4_1 => {
                bytes.extend(half(block_scale / 4.0));
                bytes.extend(half(-block_scale / 4.0 * (6.5 + 2.0 * random.unit())));
            }
        }
        let n_quants = match format {
            Format::Q8_0 => 32,
            Format::Q4_0 | Format::Q4_1 => 16,
            _ => 0,
        };
        bytes.extend((0..n_quants).map(|_| random.bits() as u8));
    }
    bytes
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
