//! Dense layers of encoders: 12-bit weights times 13-bit activations, exact sums of integers.
//!
//! A matrix is cut into tiles of 16 outputs; a tile holds pairs of inputs, as the multiply-add of 16-bit
//! integers wants them:
//!
//! ```text
//! tile:  pair p | col 0: w[2p], w[2p + 1] | col 1: ... | col 15        64 bytes a pair
//! row:   x[0], x[1] | x[2], x[3] | ...                                  4 bytes a pair
//! ```
//!
//! Rows are shared out in blocks that stay in the second-level cache, outputs in groups of tiles. Neither
//! shows in a result (C1): a sum of integers has no order, and the few sums of chunks have a fixed one.

use super::super::CpuTensor;
use super::super::threads::{SharedSlice, ThreadPool};
use super::pairs::{DenseCall, DenseKernels};
use crate::encoder::{DENSE_INPUT_STEPS, DENSE_WEIGHT_STEPS};
use crate::host::Buffer;
use crate::quant::dequantize_row;
use crate::{Activation, BackendError, MatrixSource};

/// Outputs of a tile.
pub(super) const TILE: usize = 16;

/// Rows of a block.
const BLOCK_ROWS: usize = 96;

/// Multiply-adds of a claim at most, some 30 µs.
const CLAIM_WORK: usize = 4 << 20;

/// Adding it rounds to an integer, which is then found in the low bits: 1.5 * 2^23.
const ROUNDER: f32 = 12_582_912.0;

/// Partial maxima of a row.
const LANES: usize = 32;

/// A dense layer.
pub struct CpuDense {
    n_in: usize,
    n_out: usize,
    /// `[tile][pair][16][2]`.
    weights: Buffer<i16>,
    /// One for each output of each tile, 0 beyond the last.
    scales: Vec<f32>,
    biases: Vec<f32>,
}

impl CpuDense {
    pub(super) fn new(
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
        pool: &mut ThreadPool,
    ) -> Result<CpuDense, BackendError> {
        let (n_in, n_out) = (parts[0].n_in, parts.iter().map(|part| part.n_out).sum());
        for part in parts {
            check(part, n_in)?;
        }
        let n_tiles = usize::div_ceil(n_out, TILE);
        let tile_len = n_in.div_ceil(2) * 2 * TILE;
        let mut weights = Buffer::zeroed(n_tiles * tile_len, "weights")?;
        let mut scales = vec![0.0; n_tiles * TILE];
        let mut biases = vec![0.0; n_tiles * TILE];
        if let Some(bias) = bias {
            assert_eq!(bias.len(), n_out, "a bias for each output");
            biases[..n_out].copy_from_slice(bias);
        }
        let tiles = SharedSlice::new(&mut weights);
        let shared_scales = SharedSlice::new(&mut scales);
        pool.run(n_tiles, 1, |_, claimed| {
            let mut row = vec![0.0; n_in];
            for tile in claimed {
                // SAFETY: each tile is claimed once, and tiles do not overlap.
                let target = unsafe { tiles.range(tile * tile_len..(tile + 1) * tile_len) };
                // SAFETY: as above.
                let scales = unsafe { shared_scales.range(tile * TILE..(tile + 1) * TILE) };
                let outputs = tile * TILE..n_out.min((tile + 1) * TILE);
                for (column, (output, scale)) in outputs.zip(scales).enumerate() {
                    read_row(parts, output, &mut row);
                    *scale = pack_column(&row, column, target);
                }
            }
        });
        Ok(CpuDense {
            n_in,
            n_out,
            weights,
            scales,
            biases,
        })
    }

    fn n_pairs(&self) -> usize {
        self.n_in.div_ceil(2)
    }

    /// Numbers of a packed row of activations.
    pub(super) fn input_len(&self) -> usize {
        2 * self.n_pairs()
    }

    /// `out[r] = activation(x[r] W^T + bias)`.
    pub(super) fn multiply(
        &self,
        pool: &mut ThreadPool,
        kernels: &DenseKernels,
        inputs: &mut DenseInputs,
        (x, activation): (&CpuTensor, Option<Activation>),
        out: &mut CpuTensor,
    ) {
        assert_eq!(x.width(), self.n_in, "width of the input of a dense layer");
        let n_rows = x.n_rows();
        let output = SharedSlice::new(out.output(n_rows, self.n_out));
        if n_rows == 0 {
            return;
        }
        inputs.fill(pool, kernels, x);
        let inputs = &*inputs;
        let n_tiles = self.n_out.div_ceil(TILE);
        let n_blocks = n_rows.div_ceil(BLOCK_ROWS);
        let block_rows = n_rows.div_ceil(n_blocks).next_multiple_of(kernels.n_rows);
        let n_blocks = n_rows.div_ceil(block_rows);
        // Each group of tiles times each block of rows is an item.
        let most = CLAIM_WORK / (block_rows * self.n_in * TILE);
        let fair = n_tiles * n_blocks / (4 * pool.n_threads());
        let group = most.min(fair).clamp(1, n_tiles);
        let n_groups = n_tiles.div_ceil(group);
        pool.run(n_groups * n_blocks, 1, |_, items| {
            for item in items {
                let (block, first) = (item / n_groups, item % n_groups * group);
                let rows = block * block_rows..n_rows.min((block + 1) * block_rows);
                for tile in first..n_tiles.min(first + group) {
                    self.tile(kernels, (inputs, activation), (tile, rows.clone()), &output);
                }
            }
        });
    }

    fn tile(
        &self,
        kernels: &DenseKernels,
        (inputs, activation): (&DenseInputs, Option<Activation>),
        (tile, rows): (usize, std::ops::Range<usize>),
        output: &SharedSlice<'_, f32>,
    ) {
        let tile_len = self.input_len() * TILE;
        let n_columns = TILE.min(self.n_out - tile * TILE);
        let mut results = [[0f32; TILE]; DenseKernels::MAX_ROWS];
        for first in rows.clone().step_by(kernels.n_rows) {
            let n_rows = kernels.n_rows.min(rows.end - first);
            let call = DenseCall {
                tile: &self.weights[tile * tile_len..(tile + 1) * tile_len],
                inputs: &inputs.values[first * self.input_len()..(first + n_rows) * self.input_len()],
                input_scales: &inputs.scales[first..first + n_rows],
                scales: &self.scales[tile * TILE..(tile + 1) * TILE],
                biases: &self.biases[tile * TILE..(tile + 1) * TILE],
                activation,
            };
            // SAFETY: the kernels are of an instruction set this machine has.
            unsafe { (kernels.multiply)(&call, &mut results) };
            for (row, result) in results.iter().take(n_rows).enumerate() {
                let start = (first + row) * self.n_out + tile * TILE;
                // SAFETY: these columns of this row belong to this item, which is claimed once.
                let target = unsafe { output.range(start..start + n_columns) };
                target.copy_from_slice(&result[..n_columns]);
            }
        }
    }
}

fn check(part: &MatrixSource<'_>, n_in: usize) -> Result<(), BackendError> {
    let bad = |reason| BackendError::BadMatrix {
        format: part.format,
        n_out: part.n_out,
        n_in: part.n_in,
        reason,
    };
    if part.format.is_quantized() {
        return Err(bad("encoders take F32, F16 and BF16 weights"));
    }
    if part.n_in != n_in {
        return Err(bad("it is stacked on one with other inputs"));
    }
    match part
        .format
        .row_bytes(n_in)
        .and_then(|row| row.checked_mul(part.n_out))
    {
        Some(n_bytes) if n_bytes == part.bytes.len() && n_bytes > 0 => Ok(()),
        _ => Err(bad("its bytes are not those of its shape")),
    }
}

/// The weights of an output of stacked parts.
fn read_row(parts: &[MatrixSource<'_>], mut output: usize, row: &mut [f32]) {
    for part in parts {
        if output < part.n_out {
            let row_bytes = part.bytes.len() / part.n_out;
            let bytes = &part.bytes[output * row_bytes..(output + 1) * row_bytes];
            return dequantize_row(part.format, bytes, row);
        }
        output -= part.n_out;
    }
    unreachable!("an output of one of the parts");
}

/// Writes the weights of a column; returns their scale.
fn pack_column(row: &[f32], column: usize, tile: &mut [i16]) -> f32 {
    let largest = row.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
    let inverse = inverse_scale(DENSE_WEIGHT_STEPS, largest);
    for (input, weight) in row.iter().enumerate() {
        let at = (input / 2 * TILE + column) * 2 + input % 2;
        tile[at] = (weight * inverse).round_ties_even() as i16;
    }
    largest / DENSE_WEIGHT_STEPS as f32
}

/// What turns numbers up to `largest` into integers up to `steps`; 0 where all of them are 0, or so small
/// that there is no such factor.
#[inline(always)]
fn inverse_scale(steps: i32, largest: f32) -> f32 {
    let inverse = steps as f32 / largest;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// Rows of activations as integers, and their scales.
pub(super) struct DenseInputs {
    values: Buffer<i16>,
    scales: Vec<f32>,
}

impl DenseInputs {
    pub(super) fn new() -> DenseInputs {
        DenseInputs {
            values: Buffer::zeroed(0, "activations").expect("nothing takes no memory"),
            scales: Vec::new(),
        }
    }

    /// Makes room for `n_rows` rows of layers with `input_len` packed inputs.
    pub(super) fn reserve(&mut self, n_rows: usize, input_len: usize) -> Result<(), BackendError> {
        if self.values.len() < n_rows * input_len {
            self.values = Buffer::zeroed(n_rows * input_len, "activations")?;
        }
        if self.scales.len() < n_rows {
            self.scales = vec![0.0; n_rows];
        }
        Ok(())
    }

    fn fill(&mut self, pool: &mut ThreadPool, kernels: &DenseKernels, x: &CpuTensor) {
        let (n_rows, width) = (x.n_rows(), x.width());
        let len = width.next_multiple_of(2);
        assert!(
            n_rows <= self.scales.len() && n_rows * len <= self.values.len(),
            "{n_rows} rows of {len} inputs were not expected"
        );
        let values = SharedSlice::new(&mut self.values);
        let scales = SharedSlice::new(&mut self.scales);
        let grain = (16 * 1024 / len).max(1);
        pool.run(n_rows, grain, |_, rows| {
            for row in rows {
                // SAFETY: each row is claimed once, and rows do not overlap.
                let target = unsafe { values.range(row * len..(row + 1) * len) };
                // SAFETY: as above.
                let scale = unsafe { scales.range(row..row + 1) };
                // SAFETY: the kernels are of an instruction set this machine has.
                scale[0] = unsafe { (kernels.quantize)(x.row(row), target) };
            }
        });
    }
}

/// Rounds a row to integers; returns its scale. Plain arithmetic: the same on every instruction set.
#[inline(always)]
pub(super) fn quantize(x: &[f32], out: &mut [i16]) -> f32 {
    let mut largest = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (largest, x) in largest.iter_mut().zip(chunk) {
            let size = x.abs();
            *largest = if size > *largest { size } else { *largest };
        }
    }
    let largest = largest
        .iter()
        .chain(rest)
        .fold(0f32, |largest, x| largest.max(x.abs()));
    let inverse = inverse_scale(DENSE_INPUT_STEPS, largest);
    let (numbers, padding) = out.split_at_mut(x.len());
    for (out, x) in numbers.iter_mut().zip(x) {
        *out = (x * inverse + ROUNDER).to_bits() as i16;
    }
    padding.fill(0);
    largest / DENSE_INPUT_STEPS as f32
}
