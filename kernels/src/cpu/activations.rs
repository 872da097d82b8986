//! Activations quantized to int8, one scale per row and block of 32.
//!
//! ```text
//! rows are grouped in panels of 16 (the last panel has the R rows that remain); a panel is
//!
//!   block 0 | block 1 | ... | block n_in/32-1         one record of 48 R bytes each:
//!
//!   record: R x 32 int8 | R x f32 scale | R x f32 scale * sum | R x i32 -128 * sum | R x 2 x i16 sum of 16
//!                                         (min of 32 weights)   (offset of 128;      (offset and min of 16
//!                                                                a 16th that of 8)    weights)
//! ```
//!
//! A kernel walks a panel with one pointer and constant displacements. `sum` is that of the block's int8, its
//! first and its last 16 in the last array.
//!
//! A block whose largest magnitude is below [`TINY`] counts as zero; one with an infinity or a NaN gets the
//! scale NaN and zeros, so that its row's results are NaN, and only its row's.

use super::simd::linear::LinearKernels;
use super::tensor::CpuTensor;
use super::threads::{SharedSlice, ThreadPool};
use crate::BackendError;
use crate::host::Buffer;
use crate::quant::BLOCK;

/// Most rows of a panel.
pub(crate) const PANEL_ROWS: usize = 16;

/// Bytes of one row's part of a record.
pub(crate) const ROW_RECORD_BYTES: usize = BLOCK + 16;

/// 2^-100. Below it, 127 / largest could overflow.
pub(crate) const TINY: f32 = 7.888_609e-31;

/// Elements that are worth handing to another thread: about 4 µs of work.
const GRAIN_ELEMENTS: usize = 16 << 10;

/// Scale of a block, and the factor that turns its values into int8.
#[inline(always)]
pub(crate) fn block_scale(largest: f32) -> (f32, f32) {
    if largest < TINY {
        (0.0, 0.0)
    } else if largest < f32::INFINITY {
        (largest / 127.0, 127.0 / largest)
    } else {
        (f32::NAN, 0.0)
    }
}

/// Room for the quantized rows of one op, reused by the next.
pub(crate) struct QuantizedRows {
    n_in: usize,
    n_rows: usize,
    bytes: Buffer<u8>,
    /// Widths and capacities of the backend's tensors, depths of its quantized layers: what the room is for.
    tensors: Vec<(usize, usize)>,
    depths: Vec<usize>,
}

impl QuantizedRows {
    pub(crate) fn new() -> Result<Self, BackendError> {
        Ok(QuantizedRows {
            n_in: 0,
            n_rows: 0,
            bytes: Buffer::zeroed(0, "quantized activations")?,
            tensors: Vec::new(),
            depths: Vec::new(),
        })
    }

    /// Makes room for inputs that live in a tensor of `capacity` rows of `width`.
    pub(crate) fn expect_tensor(&mut self, capacity: usize, width: usize) -> Result<(), BackendError> {
        match self.tensors.iter_mut().find(|tensor| tensor.0 == width) {
            Some(tensor) => tensor.1 = tensor.1.max(capacity),
            None => self.tensors.push((width, capacity)),
        }
        self.reserve()
    }

    /// Makes room for the inputs of a quantized layer with `n_in` inputs.
    pub(crate) fn expect_layer(&mut self, n_in: usize) -> Result<(), BackendError> {
        if !self.depths.contains(&n_in) {
            self.depths.push(n_in);
        }
        self.reserve()
    }

    fn reserve(&mut self) -> Result<(), BackendError> {
        let inputs = self
            .tensors
            .iter()
            .filter(|tensor| self.depths.contains(&tensor.0));
        let bytes = inputs
            .map(|&(width, capacity)| capacity * (width / BLOCK) * ROW_RECORD_BYTES)
            .max()
            .unwrap_or(0);
        if bytes > self.bytes.len() {
            self.bytes = Buffer::zeroed(bytes, "quantized activations")?;
        }
        Ok(())
    }

    /// Quantizes the rows of `x`, spread over the pool; where an order is given, value `order[i]` of a row
    /// comes at place `i`.
    pub(crate) fn quantize(
        &mut self,
        pool: &mut ThreadPool,
        kernels: &LinearKernels,
        (x, order): (&CpuTensor, Option<&[u32]>),
    ) {
        self.n_in = x.width();
        self.n_rows = x.n_rows();
        let row_bytes = self.n_in / BLOCK * ROW_RECORD_BYTES;
        let len = self.n_rows * row_bytes;
        assert!(
            len <= self.bytes.len() && self.n_in.is_multiple_of(BLOCK),
            "room for {} rows of {} that this backend made no tensor for",
            self.n_rows,
            self.n_in
        );
        let n_rows = self.n_rows;
        let panels = SharedSlice::new(&mut self.bytes[..len]);
        pool.run(n_rows, (GRAIN_ELEMENTS / self.n_in).max(1), |_, rows| {
            for row in rows {
                let first = row / PANEL_ROWS * PANEL_ROWS;
                let target = QuantizeRow {
                    panel: panels.as_mut_ptr().wrapping_add(first * row_bytes),
                    n_panel_rows: PANEL_ROWS.min(n_rows - first),
                    row: row - first,
                };
                let Some(order) = order else {
                    // SAFETY: the panel lies within `bytes` (first + n_panel_rows <= n_rows), `row` is one of
                    // its rows and is claimed once, x's row has n_in elements, a whole number of blocks, and
                    // the kernels are of an instruction set that this machine has.
                    unsafe { (kernels.quantize_row)(x.row(row), &target) }
                    continue;
                };
                let values = x.row(row);
                for (block, order) in order.chunks_exact(BLOCK).enumerate() {
                    let mut gathered = [0f32; BLOCK];
                    for (value, &at) in gathered.iter_mut().zip(order) {
                        *value = values[at as usize];
                    }
                    let target = QuantizeRow {
                        panel: target.record(block),
                        ..target
                    };
                    // SAFETY: as above, of one block: its record is the first of the panel from there on.
                    unsafe { (kernels.quantize_row)(&gathered, &target) }
                }
            }
        });
    }

    /// The records of one panel.
    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        let row_bytes = self.n_in / BLOCK * ROW_RECORD_BYTES;
        let rows = panel * PANEL_ROWS..self.n_rows.min((panel + 1) * PANEL_ROWS);
        &self.bytes[rows.start * row_bytes..rows.end * row_bytes]
    }
}

/// Where one row's quantized blocks go.
pub(crate) struct QuantizeRow {
    /// Start of its panel.
    pub(crate) panel: *mut u8,
    /// Rows of the panel.
    pub(crate) n_panel_rows: usize,
    /// Index of the row in the panel.
    pub(crate) row: usize,
}

impl QuantizeRow {
    /// The record of `block`.
    #[inline(always)]
    pub(crate) fn record(&self, block: usize) -> *mut u8 {
        self.panel
            .wrapping_add(block * self.n_panel_rows * ROW_RECORD_BYTES)
    }

    /// Stores the numbers of a block whose int8 have these sums, of the first 16 and of the last.
    ///
    /// # Safety
    /// * `record` is [`record`](Self::record) of a block of the panel, valid for writes of its whole length.
    #[inline(always)]
    pub(crate) unsafe fn store_numbers(&self, record: *mut u8, scale: f32, sums: [i32; 2]) {
        let sum = sums[0] + sums[1];
        // At most 16 * 127 either way.
        let halves = (sums[0] as u16 as u32) | (sums[1] as u32) << 16;
        // SAFETY: the four arrays of n_panel_rows numbers lie behind the int8 in the record.
        unsafe {
            let numbers = record.add(self.n_panel_rows * BLOCK);
            let number = |array: usize| numbers.add(4 * (array * self.n_panel_rows + self.row));
            number(0).cast::<f32>().write_unaligned(scale);
            number(1).cast::<f32>().write_unaligned(scale * sum as f32);
            number(2).cast::<i32>().write_unaligned(-128 * sum);
            number(3).cast::<u32>().write_unaligned(halves);
        }
    }
}
