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

use std::ops::Range;

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
    bytes: Buffer<u8>,
    /// Widths and capacities of the backend's tensors, depths of its quantized layers: what the room is for.
    tensors: Vec<(usize, usize)>,
    depths: Vec<usize>,
}

/// Rows that are to be quantized.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) n_rows: usize,
    pub(crate) n_in: usize,
    /// Which value of a row comes at each place, where that is not the one that stands there.
    pub(crate) order: Option<&'a [u32]>,
}

impl QuantizedRows {
    pub(crate) fn new() -> Result<Self, BackendError> {
        Ok(QuantizedRows {
            n_in: 0,
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
        let n_rows = x.n_rows();
        let inputs = Inputs {
            n_rows,
            n_in: x.width(),
            order,
        };
        self.quantize_rows(pool, kernels, inputs, |row| {
            let first = row / PANEL_ROWS * PANEL_ROWS;
            (x.row(row), first..n_rows.min(first + PANEL_ROWS))
        });
    }

    /// Quantizes rows, spread over the pool; `of` gives each row and the rows of its panel.
    pub(crate) fn quantize_rows<'a>(
        &mut self,
        pool: &mut ThreadPool,
        kernels: &LinearKernels,
        Inputs { n_rows, n_in, order }: Inputs<'_>,
        of: impl Fn(usize) -> (&'a [f32], Range<usize>) + Sync,
    ) {
        self.n_in = n_in;
        let row_bytes = n_in / BLOCK * ROW_RECORD_BYTES;
        let len = n_rows * row_bytes;
        assert!(
            len <= self.bytes.len() && n_in.is_multiple_of(BLOCK),
            "room for {n_rows} rows of {n_in} that this backend made no tensor for"
        );
        let panels = SharedSlice::new(&mut self.bytes[..len]);
        pool.run(n_rows, (GRAIN_ELEMENTS / n_in).max(1), |_, rows| {
            for row in rows {
                let (values, panel) = of(row);
                assert!(
                    values.len() == n_in && panel.contains(&row) && panel.end <= n_rows,
                    "row {row} of {n_rows} in a panel of {panel:?}"
                );
                let target = QuantizeRow {
                    panel: panels.as_mut_ptr().wrapping_add(panel.start * row_bytes),
                    n_panel_rows: panel.len(),
                    row: row - panel.start,
                };
                let Some(order) = order else {
                    // SAFETY: the panel lies within `bytes` (its end is at most n_rows), `row` is one of its
                    // rows and is claimed once, the row has n_in elements, a whole number of blocks, and the
                    // kernels are of an instruction set that this machine has.
                    unsafe { (kernels.quantize_row)(values, &target) }
                    continue;
                };
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
    pub(crate) fn panel(&self, rows: Range<usize>) -> &[u8] {
        let row_bytes = self.n_in / BLOCK * ROW_RECORD_BYTES;
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
