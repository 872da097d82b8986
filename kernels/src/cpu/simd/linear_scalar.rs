//! The definition of the linear kernels in plain Rust, and what serves where no instruction set does.

use super::linear::{LinearKernels, TileCall};
use super::linear_float::{self, Bf16, F16, F32, ScalarLanes};
use crate::cpu::activations::{PANEL_ROWS, QuantizeRow, ROW_RECORD_BYTES, block_scale};
use crate::cpu::layout::{
    Q4_0_BLOCK_BYTES, Q4_1_BLOCK_BYTES, Q4_1_MINS, Q4_SCALES, Q8_0_BLOCK_BYTES, Q8_0_SCALES, TILE_COLUMNS,
};
use crate::quant::{BLOCK, f32_from_f16};

pub(crate) static KERNELS: LinearKernels = LinearKernels {
    quantize_row,
    f32: linear_float::tile::<ScalarLanes, F32>,
    f16: linear_float::tile::<ScalarLanes, F16>,
    bf16: linear_float::tile::<ScalarLanes, Bf16>,
    q8_0,
    q4_0,
    q4_1,
};

/// # Safety
/// As for [`super::linear::QuantizeKernel`].
unsafe fn quantize_row(source: &[f32], target: &QuantizeRow) {
    for (block, values) in source.chunks_exact(BLOCK).enumerate() {
        // Magnitudes compare as integers do, and so a NaN is the largest of all.
        let largest = values.iter().map(|value| value.to_bits() & 0x7fff_ffff).max();
        let (scale, inverse) = block_scale(f32::from_bits(largest.expect("a block has 32 values")));
        let mut sum = 0;
        let record = target.record(block);
        for (i, value) in values.iter().enumerate() {
            // The product is NaN where the block is not finite; `as` makes that 0.
            let quant = (value * inverse).round_ties_even() as i32;
            sum += quant;
            // SAFETY: the record of this block is writable, and this is row `row` of its int8.
            unsafe { record.add(target.row * BLOCK + i).cast::<i8>().write(quant as i8) }
        }
        // SAFETY: the record is that of a block of the panel.
        unsafe { target.store_numbers(record, scale, sum) }
    }
}

/// 32 weights of one column as integers, its scale and its min.
struct Column {
    quants: [i32; BLOCK],
    scale: f32,
    min: Option<f32>,
}

fn half(block: &[u8], at: usize, column: usize) -> f32 {
    let at = at + 2 * column;
    f32_from_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

fn nibbles(block: &[u8], column: usize, offset: i32) -> [i32; BLOCK] {
    std::array::from_fn(|i| {
        let pair = block[64 * (i % 16 / 4) + 4 * column + i % 4];
        i32::from(if i < 16 { pair & 15 } else { pair >> 4 }) - offset
    })
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn q8_0(call: &TileCall) {
    // SAFETY: the caller's obligations are this function's.
    unsafe {
        tile_times_rows::<Q8_0_BLOCK_BYTES>(call, |block, column| Column {
            quants: std::array::from_fn(|i| i32::from(block[64 * (i / 4) + 4 * column + i % 4]) - 128),
            scale: half(block, Q8_0_SCALES, column),
            min: None,
        });
    }
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn q4_0(call: &TileCall) {
    // SAFETY: the caller's obligations are this function's.
    unsafe {
        tile_times_rows::<Q4_0_BLOCK_BYTES>(call, |block, column| Column {
            quants: nibbles(block, column, 8),
            scale: half(block, Q4_SCALES, column),
            min: None,
        });
    }
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn q4_1(call: &TileCall) {
    // SAFETY: the caller's obligations are this function's.
    unsafe {
        tile_times_rows::<Q4_1_BLOCK_BYTES>(call, |block, column| Column {
            quants: nibbles(block, column, 0),
            scale: half(block, Q4_SCALES, column),
            min: Some(half(block, Q4_1_MINS, column)),
        });
    }
}

/// # Safety
/// As for [`super::linear::TileKernel`]; a block of the tile has `BYTES` bytes.
unsafe fn tile_times_rows<const BYTES: usize>(call: &TileCall, column_of: impl Fn(&[u8], usize) -> Column) {
    let n_rows = call.n_rows;
    let mut sums = [[0f32; PANEL_ROWS]; TILE_COLUMNS];
    for block in 0..call.depth {
        // SAFETY: the tile has `depth` blocks of BYTES bytes, the panel `depth` records.
        let (weights, record) = unsafe {
            let record_bytes = n_rows * ROW_RECORD_BYTES;
            (
                std::slice::from_raw_parts(call.tile.add(block * BYTES), BYTES),
                std::slice::from_raw_parts(call.input.add(block * record_bytes), record_bytes),
            )
        };
        let (quants, numbers) = record.split_at(n_rows * BLOCK);
        let number = |i: usize| f32::from_ne_bytes(numbers[4 * i..][..4].try_into().expect("four bytes"));
        for (column, sums) in sums.iter_mut().enumerate() {
            let weight = column_of(weights, column);
            for (row, sum) in sums[..n_rows].iter_mut().enumerate() {
                let row_quants = &quants[row * BLOCK..][..BLOCK];
                let products = row_quants
                    .iter()
                    .zip(&weight.quants)
                    .map(|(&a, &w)| i32::from(a as i8) * w);
                let scaled = products.sum::<i32>() as f32 * weight.scale;
                *sum = scaled.mul_add(number(row), *sum);
                if let Some(min) = weight.min {
                    *sum = min.mul_add(number(n_rows + row), *sum);
                }
            }
        }
    }
    for (column, sums) in sums.iter().enumerate() {
        for (row, sum) in sums[..n_rows].iter().enumerate() {
            // SAFETY: 16 elements at each row's start are writable.
            unsafe { call.output.add(row * call.stride + column).write(*sum) };
        }
    }
}
