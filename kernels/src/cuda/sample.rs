//! Answers of a step: tokens drawn on the device, log-probabilities looked up on the host.
//!
//! Rows of logits whose log-probabilities are asked for are copied to the host with the tokens; of the others
//! only the token comes back.

use super::device::{Argument, Device, Geometry};
use super::error::CudaError;
use super::kernels::Kernels;
use super::memory::{DeviceBytes, Event, Pinned};
use super::tensor::CudaTensor;
use crate::reference::logprobs;
use crate::{Allowed, Answers, LogprobRow, SampleRow};

/// As in `kernels/cu/sample.cu`.
const ROW_BYTES: usize = 48;
const ADJUSTMENT_BYTES: usize = 12;
const NO_TOKEN: u32 = u32::MAX;
const THREADS: usize = 512;

/// Room for the answers of a step.
pub struct CudaPending {
    device: Device,
    max_logit_rows: usize,
    /// How each row is drawn: rows, then 64-bit words, then ids, then adjustments.
    spec: Staged,
    /// Logits without what may not be drawn, f32 `[rows, vocabulary]`.
    adjusted: DeviceBytes,
    tokens: (DeviceBytes, Pinned),
    /// Rows of logits for log-probabilities.
    logits: Pinned,
    width: usize,
    n_rows: usize,
    wanted: Vec<LogprobRow>,
    done: Event,
}

/// Memory of the host that is copied to the device at once.
struct Staged {
    host: Pinned,
    on_device: DeviceBytes,
}

impl Staged {
    fn new(device: &Device, bytes: usize) -> Result<Staged, CudaError> {
        Ok(Staged {
            host: Pinned::new(device, bytes)?,
            on_device: DeviceBytes::new(device, bytes)?,
        })
    }
}

/// Where the parts of the specification start, in bytes.
struct Layout {
    words: usize,
    ids: usize,
    adjustments: usize,
    end: usize,
}

impl Layout {
    fn of(rows: &[SampleRow<'_>]) -> Layout {
        let mut n = [0; 3];
        for row in rows {
            match row.allowed {
                Allowed::All => {}
                Allowed::Bits(words) => n[0] += words.len(),
                Allowed::Ids(ids) => n[1] += ids.len(),
            }
            n[2] += row.adjustments.len();
        }
        let words = rows.len() * ROW_BYTES;
        let ids = words + n[0] * 8;
        let adjustments = ids + n[1] * 4;
        Layout {
            words,
            ids,
            adjustments,
            end: adjustments + n[2] * ADJUSTMENT_BYTES,
        }
    }
}

/// Writes numbers one after the other.
struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..][..bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

/// Lays the specification of all rows out as the kernel reads it.
fn write_rows(bytes: &mut [u8], rows: &[SampleRow<'_>], layout: &Layout) {
    let (mut word, mut id, mut adjustment) = (0, 0, 0);
    for (idx, row) in rows.iter().enumerate() {
        let (kind, first, n) = match row.allowed {
            Allowed::All => (0u32, 0, 0),
            Allowed::Ids(ids) => (1, id, ids.len()),
            Allowed::Bits(words) => (2, word, words.len()),
        };
        let mut out = Writer {
            bytes: &mut *bytes,
            at: idx * ROW_BYTES,
        };
        out.put(&row.noise.to_le_bytes());
        for value in [
            kind,
            first as u32,
            n as u32,
            adjustment as u32,
            row.adjustments.len() as u32,
            row.top_k,
        ] {
            out.put(&value.to_le_bytes());
        }
        for value in [row.temperature, row.top_p, row.min_p, 0.0] {
            out.put(&value.to_le_bytes());
        }
        match row.allowed {
            Allowed::All => {}
            Allowed::Bits(words) => {
                out.at = layout.words + word * 8;
                words.iter().for_each(|word| out.put(&word.to_le_bytes()));
                word += words.len();
            }
            Allowed::Ids(ids) => {
                out.at = layout.ids + id * 4;
                ids.iter().for_each(|id| out.put(&id.to_le_bytes()));
                id += ids.len();
            }
        }
        out.at = layout.adjustments + adjustment * ADJUSTMENT_BYTES;
        for change in row.adjustments {
            out.put(&change.token.to_le_bytes());
            out.put(&change.divisor.to_le_bytes());
            out.put(&change.shift.to_le_bytes());
        }
        adjustment += row.adjustments.len();
    }
}

impl CudaPending {
    /// Room for up to `max_logit_rows` rows.
    pub(crate) fn new(device: &Device, max_logit_rows: usize) -> Result<CudaPending, CudaError> {
        let bytes = 4 * max_logit_rows;
        Ok(CudaPending {
            device: device.clone(),
            max_logit_rows,
            spec: Staged::new(device, ROW_BYTES * max_logit_rows)?,
            adjusted: DeviceBytes::new(device, 0)?,
            tokens: (DeviceBytes::new(device, bytes)?, Pinned::new(device, bytes)?),
            logits: Pinned::new(device, 0)?,
            width: 0,
            n_rows: 0,
            wanted: Vec::new(),
            done: Event::new(device)?,
        })
    }

    /// Makes room that the shape of a batch does not tell: it grows with the largest mask so far. A device
    /// without memory for it is lost.
    fn grow(&mut self, spec: usize, adjusted: usize, logits: usize) -> Result<(), CudaError> {
        if self.spec.host.bytes().len() < spec {
            self.spec = Staged::new(&self.device, spec.next_power_of_two())?;
        }
        if self.adjusted.len() < adjusted {
            self.adjusted = DeviceBytes::new(&self.device, adjusted)?;
        }
        if self.logits.bytes().len() < logits {
            self.logits = Pinned::new(&self.device, logits)?;
        }
        Ok(())
    }

    /// Queues the draw of a token of each row of `logits`.
    pub(crate) fn sample(
        &mut self,
        kernels: &Kernels,
        logits: &CudaTensor,
        rows: &[SampleRow<'_>],
        wanted: &[LogprobRow],
    ) {
        assert_eq!(
            logits.n_rows(),
            rows.len(),
            "a way to draw for each row of logits"
        );
        assert!(
            rows.len() <= self.max_logit_rows,
            "{} rows, room for {}",
            rows.len(),
            self.max_logit_rows
        );
        // What was queued before reads the same memory.
        self.done.wait();
        (self.width, self.n_rows) = (logits.width(), rows.len());
        self.wanted.clear();
        self.wanted.extend_from_slice(wanted);
        let layout = Layout::of(rows);
        let row_bytes = 4 * self.width;
        if let Err(error) = self.grow(
            layout.end,
            self.max_logit_rows * row_bytes,
            wanted.len() * row_bytes,
        ) {
            self.device.lose(&error);
            return;
        }
        write_rows(self.spec.host.bytes_mut(), rows, &layout);
        self.spec.on_device.copy_from(&self.spec.host, layout.end);
        let part = |at: usize| Argument::U64(self.spec.on_device.address() + at as u64);
        let arguments = [
            logits.at(),
            Argument::U64(self.adjusted.address()),
            Argument::U32(self.width as u32),
            part(0),
            part(layout.ids),
            part(layout.words),
            part(layout.adjustments),
            Argument::U64(self.tokens.0.address()),
        ];
        let geometry = Geometry {
            grid: [rows.len(), 1],
            threads: THREADS,
            shared_bytes: 0,
        };
        self.device.launch(kernels.sample, geometry, &arguments);
        self.tokens.0.copy_to(0, &mut self.tokens.1, 0, 4 * rows.len());
        for (idx, asked) in wanted.iter().enumerate() {
            logits.copy_row_to(asked.row, &mut self.logits, idx * row_bytes);
        }
        self.done.record();
    }

    /// Whether the answers are there.
    pub(crate) fn is_done(&self) -> bool {
        self.done.is_passed()
    }

    /// Waits for the answers; of a lost device none is one.
    pub(crate) fn collect(&mut self, answers: &mut Answers) {
        self.done.wait();
        answers.tokens.clear();
        answers.logprobs.clear();
        if self.device.is_lost() {
            answers.tokens.resize(self.n_rows, None);
            answers.logprobs.resize(self.wanted.len(), None);
            return;
        }
        let tokens = words(&self.tokens.1.bytes()[..4 * self.n_rows]);
        answers
            .tokens
            .extend(tokens.map(|token| (token != NO_TOKEN).then_some(token)));
        for (idx, asked) in self.wanted.iter().enumerate() {
            let token = asked.token.token(answers.tokens[asked.row]);
            let row = &self.logits.bytes()[idx * 4 * self.width..][..4 * self.width];
            let row: Vec<f32> = words(row).map(f32::from_bits).collect();
            answers
                .logprobs
                .push(token.and_then(|token| logprobs(&row, asked, token)));
        }
    }
}

/// Little-endian words.
fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("chunks of 4 bytes")))
}
