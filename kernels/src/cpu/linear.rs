//! Linear layers (matrix products): tiles of weights by rows of activations, shared out to the threads.
//!
//! ```text
//! for chunk of panels (its activations stay in L2)
//!     for tile claimed by this thread          (streams from memory once per chunk, then L1)
//!         for panel of the chunk
//!             16 columns x up to 16 rows over the whole depth, in registers
//! ```
//!
//! Threads split the columns; nothing is ever split along the depth. The bits of a row therefore depend on
//! that row and the weights only (C1).

use std::ops::Range;

use super::activations::{PANEL_ROWS, QuantizedRows};
use super::layout::{PackedMatrix, TILE_COLUMNS};
use super::simd::linear::{LinearKernels, Prefetch, TileCall};
use super::tensor::CpuTensor;
use super::threads::{SharedSlice, ThreadPool};
use crate::quant::{BLOCK, Format};
use crate::{BackendError, MatrixSource};

/// Bytes of activations to keep in L2 while the weights stream by.
const CHUNK_BYTES: usize = 384 << 10;

/// Multiply-adds below which a second thread costs more than it gives.
pub(crate) const SMALL_WORK: usize = 64 << 10;

/// Multiply-adds of a claim at most, about 50 µs: what is left to wait for at the end of a product, and what
/// a thread that loses its core holds up.
const CLAIM_WORK: usize = 4 << 20;

/// With one panel: how far ahead of the block in use to fetch weights.
const PREFETCH_DISTANCE: usize = 8192;

struct Part {
    weights: PackedMatrix,
    first_tile: usize,
    first_out: usize,
}

/// Weight matrices stacked along their outputs, with their bias.
pub struct CpuLinear {
    parts: Vec<Part>,
    bias: Option<Vec<f32>>,
    /// Which activation each input is multiplied with, where that is not the one at its place.
    order: Option<Vec<u32>>,
    n_in: usize,
    n_out: usize,
    n_tiles: usize,
}

impl CpuLinear {
    /// Repacks `parts`.
    pub(crate) fn new(
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        assert!(!parts.is_empty(), "a linear layer has a part");
        let mut linear = CpuLinear {
            parts: Vec::with_capacity(parts.len()),
            bias: None,
            order: None,
            n_in: parts[0].n_in,
            n_out: 0,
            n_tiles: 0,
        };
        for source in parts {
            let bad = |reason| BackendError::BadMatrix {
                format: source.format,
                n_out: source.n_out,
                n_in: source.n_in,
                reason,
            };
            if source.n_in != linear.n_in {
                return Err(bad("it is stacked on one with other inputs"));
            }
            let weights = PackedMatrix::new(source, pool)?;
            let (first_tile, first_out) = (linear.n_tiles, linear.n_out);
            linear.n_tiles += weights.n_tiles();
            linear.n_out += weights.n_out();
            linear.parts.push(Part {
                weights,
                first_tile,
                first_out,
            });
        }
        if let Some(bias) = bias {
            if bias.len() != linear.n_out {
                return Err(BackendError::BadMatrix {
                    format: parts[0].format,
                    n_out: linear.n_out,
                    n_in: linear.n_in,
                    reason: "its bias has another length than its outputs",
                });
            }
            linear.bias = Some(bias.to_vec());
        }
        Ok(linear)
    }

    /// The same layer for activations in another order: input `i` is multiplied with activation `order[i]`.
    pub(crate) fn in_order(mut self, order: &[u32]) -> Result<Self, BackendError> {
        let bad = |reason| BackendError::BadMatrix {
            format: self.parts[0].weights.format(),
            n_out: self.n_out,
            n_in: self.n_in,
            reason,
        };
        if !self.parts.iter().all(|part| part.weights.format().is_quantized()) {
            return Err(bad("only inputs of quantized weights may stand in another order"));
        }
        if !is_permutation(order, self.n_in) {
            return Err(bad("the order of its inputs is no permutation"));
        }
        self.order = Some(order.to_vec());
        Ok(self)
    }

    /// Whether its activations stand in another order than its inputs.
    pub(crate) fn has_order(&self) -> bool {
        self.order.is_some()
    }

    /// Inputs.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Outputs of all parts.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Tiles of all parts.
    pub(crate) fn n_tiles(&self) -> usize {
        self.n_tiles
    }

    /// The format of its first part.
    pub(crate) fn format(&self) -> Format {
        self.parts[0].weights.format()
    }

    pub(crate) fn has_quantized_part(&self) -> bool {
        self.parts.iter().any(|part| part.weights.format().is_quantized())
    }

    pub(crate) fn has_plain_part(&self) -> bool {
        self.parts
            .iter()
            .any(|part| !part.weights.format().is_quantized())
    }

    fn part_of(&self, at: usize, first: impl Fn(&Part) -> usize) -> &Part {
        let n_before = self.parts.partition_point(|part| first(part) <= at);
        &self.parts[n_before - 1]
    }

    /// `out[r] = x[r] W^T + bias`.
    pub(crate) fn multiply(
        &self,
        pool: &mut ThreadPool,
        kernels: &LinearKernels,
        quantized: &mut QuantizedRows,
        x: &CpuTensor,
        out: &mut CpuTensor,
    ) {
        assert_eq!(x.width(), self.n_in, "width of the input of a linear layer");
        let n_rows = x.n_rows();
        let output = SharedSlice::new(out.output(n_rows, self.n_out));
        if n_rows == 0 {
            return;
        }
        let mut element_bytes = 4;
        if self.has_quantized_part() {
            quantized.quantize(pool, kernels, (x, self.order.as_deref()));
            element_bytes = 1;
        }
        let product = Product {
            linear: self,
            kernels,
            quantized,
            x: x.values(),
            rows: 0..n_rows,
            output,
        };
        let n_panels = n_rows.div_ceil(PANEL_ROWS);
        let chunk = chunk_panels(self.n_in, element_bytes);
        let small = n_rows * self.n_in * self.n_out <= SMALL_WORK;
        let grain = if small {
            self.n_tiles
        } else {
            let most = most_tiles(n_rows.min(chunk * PANEL_ROWS), self.n_in);
            (self.n_tiles / (8 * pool.n_threads())).min(most).max(1)
        };
        for first in (0..n_panels).step_by(chunk) {
            let panels = first..n_panels.min(first + chunk);
            pool.run(self.n_tiles, grain, |_, tiles| {
                product.tiles(tiles, panels.clone());
            });
        }
    }

    /// `out[i] = W[ids[i]]`, dequantized.
    pub(crate) fn embed(&self, pool: &mut ThreadPool, ids: &[u32], out: &mut CpuTensor) {
        assert!(self.order.is_none(), "an embedding's inputs stand in their order");
        let n_in = self.n_in;
        let output = SharedSlice::new(out.output(ids.len(), n_in));
        pool.run(ids.len(), 4, |_, rows| {
            for row in rows {
                let id = ids[row] as usize;
                assert!(id < self.n_out, "id {id} of {}", self.n_out);
                let part = self.part_of(id, |part| part.first_out);
                // SAFETY: each row is claimed once, and rows do not overlap.
                let target = unsafe { output.range(row * n_in..(row + 1) * n_in) };
                part.weights.dequantize(id - part.first_out, target);
            }
        });
    }
}

/// Whether `order` has each of `0..n` once.
pub(crate) fn is_permutation(order: &[u32], n: usize) -> bool {
    let mut seen = vec![false; n];
    let is_new = |&at: &u32| {
        let place = seen.get_mut(at as usize);
        place.is_some_and(|seen| !std::mem::replace(seen, true))
    };
    order.len() == n && order.iter().all(is_new)
}

/// Panels of inputs that stay in L2 while the weights stream by.
pub(crate) fn chunk_panels(n_in: usize, element_bytes: usize) -> usize {
    (CHUNK_BYTES / (PANEL_ROWS * n_in * element_bytes)).max(1)
}

/// Tiles of a claim at most.
pub(crate) fn most_tiles(n_rows: usize, n_in: usize) -> usize {
    CLAIM_WORK / (n_rows * n_in * TILE_COLUMNS)
}

/// One product of a layer with rows of a tensor.
pub(crate) struct Product<'a> {
    pub(crate) linear: &'a CpuLinear,
    pub(crate) kernels: &'a LinearKernels,
    /// All rows of the tensor, quantized, where a part of the layer is; a panel begins with the first of
    /// `rows`, and with each sixteenth after it.
    pub(crate) quantized: &'a QuantizedRows,
    /// All rows of the tensor.
    pub(crate) x: &'a [f32],
    /// Those that are multiplied, at least one.
    pub(crate) rows: Range<usize>,
    /// All rows of the output.
    pub(crate) output: SharedSlice<'a, f32>,
}

impl Product<'_> {
    /// Tiles of the layer times panels of the rows. Nobody else computes the same at the same time.
    pub(crate) fn tiles(&self, tiles: Range<usize>, panels: Range<usize>) {
        for tile in tiles {
            let part = self.linear.part_of(tile, |part| part.first_tile);
            for panel in panels.clone() {
                self.tile(part, tile - part.first_tile, panel, &panels);
            }
        }
    }

    fn tile(&self, part: &Part, tile: usize, panel: usize, panels: &Range<usize>) {
        let weights = &part.weights;
        let first_row = self.rows.start + panel * PANEL_ROWS;
        let n_rows = PANEL_ROWS.min(self.rows.end - first_row);
        let stride = self.linear.n_out;
        let column = part.first_out + tile * TILE_COLUMNS;
        let n_columns = TILE_COLUMNS.min(weights.n_out() - tile * TILE_COLUMNS);
        let start = first_row * stride + column;
        debug_assert!(start + (n_rows - 1) * stride + n_columns <= self.output.len());
        let input = if weights.format().is_quantized() {
            self.quantized.panel(first_row..first_row + n_rows).as_ptr()
        } else {
            let n_in = self.linear.n_in;
            self.x[first_row * n_in..(first_row + n_rows) * n_in]
                .as_ptr()
                .cast()
        };
        let call = TileCall {
            n_rows,
            tile: weights.tile(tile).as_ptr(),
            input,
            depth: weights.depth(),
            output: self.output.as_mut_ptr().wrapping_add(start),
            stride,
            prefetch: prefetch(weights, tile, self.rows.len(), panel - panels.start, panels.len()),
        };
        if n_columns == TILE_COLUMNS {
            // SAFETY: the kernels are of an instruction set this machine has; the tile is one of `weights`
            // with its depth; the input has n_rows rows (a panel of the quantized rows, or f32 rows of
            // n_in = depth); the output is 16 columns of each row that belong to this tile, claimed once.
            unsafe { self.kernels.tile(weights.format())(&call) };
        } else {
            self.ragged_tile(weights.format(), call, start..start + n_columns);
        }
        let Some(bias) = &self.linear.bias else {
            return;
        };
        for row in 0..n_rows {
            let at = start + row * stride;
            // SAFETY: these columns of this row belong to this tile and panel, which only this call writes.
            let values = unsafe { self.output.range(at..at + n_columns) };
            for (value, bias) in values.iter_mut().zip(&bias[column..]) {
                *value += bias;
            }
        }
    }

    /// A tile with fewer than 16 columns, `first_row` of which go to that range of the output. The kernel
    /// would write over the neighbour, so it writes to a copy.
    #[cold]
    fn ragged_tile(&self, format: Format, mut call: TileCall, first_row: Range<usize>) {
        let stride = call.stride;
        let mut whole = [0f32; PANEL_ROWS * TILE_COLUMNS];
        call.output = whole.as_mut_ptr();
        call.stride = TILE_COLUMNS;
        // SAFETY: as in `tile`, except that the output is the copy, which has 16 columns for each row.
        unsafe { self.kernels.tile(format)(&call) };
        for (row, values) in whole.chunks_exact(TILE_COLUMNS).take(call.n_rows).enumerate() {
            let target = first_row.start + row * stride..first_row.end + row * stride;
            let n_columns = target.len();
            // SAFETY: these columns of this row belong to this tile and panel, which only this call writes.
            unsafe { self.output.range(target) }.copy_from_slice(&values[..n_columns]);
        }
    }
}

/// Rows from which software prefetch pays; below, the hardware's does better alone.
///
/// PERF: `arbora-bench kernels`, Zen 4: at one row any software prefetch costs 5 to 25 %; 1536 x 576 in Q4_1
/// at 8 rows rises from 36 to 62 % of the int8 peak with it.
fn prefetches(format: Format, n_rows: usize) -> bool {
    match format.coding() {
        Some(coding) if coding.bits < 8 => n_rows >= 2,
        Some(_) => n_rows >= 6,
        None => false,
    }
}

/// The share of the weights' traffic that panel `index` of `count` asks for while it runs: some blocks ahead
/// where it is the only one, else its slice of the next tile.
fn prefetch(weights: &PackedMatrix, tile: usize, n_rows: usize, index: usize, count: usize) -> Prefetch {
    let tile = weights.tile(tile).as_ptr();
    let (tile_bytes, depth) = (weights.tile_bytes(), weights.n_in() / BLOCK);
    if !prefetches(weights.format(), n_rows) {
        return Prefetch {
            start: tile,
            bytes_per_block: 0,
        };
    }
    if count == 1 {
        return Prefetch {
            start: tile.wrapping_add(PREFETCH_DISTANCE),
            bytes_per_block: tile_bytes / depth,
        };
    }
    let slice = tile_bytes.div_ceil(count);
    Prefetch {
        start: tile.wrapping_add(tile_bytes + index * slice),
        bytes_per_block: slice.div_ceil(depth),
    }
}
