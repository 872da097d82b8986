//! The definition of the linear kernels in plain Rust, and what serves where no instruction set does.

use super::linear::{LinearKernels, TileCall, TileKernel};
use super::linear_float::{self, Bf16, F16, F32, ScalarLanes};
use crate::cpu::activations::{PANEL_ROWS, QuantizeRow, ROW_RECORD_BYTES, block_scale};
use crate::cpu::layout::{TILE_COLUMNS, Tile, of_format};
use crate::quant::{BLOCK, Format, Mins, Scales};

pub(crate) static KERNELS: LinearKernels = LinearKernels {
    quantize_row,
    f32: linear_float::tile::<ScalarLanes, F32>,
    f16: linear_float::tile::<ScalarLanes, F16>,
    bf16: linear_float::tile::<ScalarLanes, Bf16>,
    quantized: kernel,
};

/// # Safety
/// As for [`super::linear::QuantizeKernel`].
unsafe fn quantize_row(source: &[f32], target: &QuantizeRow) {
    for (block, values) in source.chunks_exact(BLOCK).enumerate() {
        // Magnitudes compare as integers do, and so a NaN is the largest of all.
        let largest = values.iter().map(|value| value.to_bits() & 0x7fff_ffff).max();
        let (scale, inverse) = block_scale(f32::from_bits(largest.expect("a block has 32 values")));
        let mut sums = [0; 2];
        let record = target.record(block);
        for (i, value) in values.iter().enumerate() {
            // The product is NaN where the block is not finite; `as` makes that 0.
            let quant = (value * inverse).round_ties_even() as i32;
            sums[i / 16] += quant;
            // SAFETY: the record of this block is writable, and this is row `row` of its int8.
            unsafe { record.add(target.row * BLOCK + i).cast::<i8>().write(quant as i8) }
        }
        // SAFETY: the record is that of a block of the panel.
        unsafe { target.store_numbers(record, scale, sums) }
    }
}

/// 32 weights of one column as integers, and what makes weights of them.
struct Column {
    values: [i32; BLOCK],
    scales: [i32; 2],
    mins: [i32; 2],
    scale: f32,
    min: f32,
}

fn kernel(format: Format) -> TileKernel {
    of_format!(format, quantized)
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn quantized<const FORMAT: usize>(call: &TileCall) {
    let layout = Tile::<FORMAT>::LAYOUT;
    let record_bytes = call.n_rows * ROW_RECORD_BYTES;
    let mut sums = [[0f32; PANEL_ROWS]; TILE_COLUMNS];
    for block_idx in 0..call.depth {
        // SAFETY: the tile has `depth` blocks, the panel a record for each sub-block.
        let (block, records) = unsafe {
            let block_bytes = layout.block_bytes();
            let records = call.input.add(block_idx * layout.n_subs * record_bytes);
            (
                std::slice::from_raw_parts(call.tile.add(block_idx * block_bytes), block_bytes),
                std::slice::from_raw_parts(records, layout.n_subs * record_bytes),
            )
        };
        let subs = block[..layout.scales()].chunks_exact(layout.sub_bytes());
        for (sub, record) in subs.zip(records.chunks_exact(record_bytes)) {
            for (lane, sums) in sums.iter_mut().enumerate() {
                let (scales, mins) = layout.scales_and_mins(sub, lane);
                let column = Column {
                    values: layout.quants(sub, lane).map(|quant| layout.value(quant)),
                    scales: scales.map(i32::from),
                    mins: mins.map(i32::from),
                    scale: layout.scale(block, lane),
                    min: if layout.has_min() {
                        layout.min(block, lane)
                    } else {
                        0.0
                    },
                };
                add_column::<FORMAT>(&column, record, &mut sums[..call.n_rows]);
            }
        }
    }
    for (column, sums) in sums.iter().enumerate() {
        for (row, sum) in sums[..call.n_rows].iter().enumerate() {
            // SAFETY: 16 elements at each row's start are writable.
            unsafe { call.output.add(row * call.stride + column).write(*sum) };
        }
    }
}

/// 32 weights of a column times each row's activations.
#[inline(always)]
fn add_column<const FORMAT: usize>(column: &Column, record: &[u8], sums: &mut [f32]) {
    let layout = Tile::<FORMAT>::LAYOUT;
    let n_rows = sums.len();
    let (quants, numbers) = record.split_at(n_rows * BLOCK);
    let number = |i: usize| -> [u8; 4] { numbers[4 * i..][..4].try_into().expect("four bytes") };
    for (row, sum) in sums.iter_mut().enumerate() {
        let row_quants = &quants[row * BLOCK..][..BLOCK];
        let dot = |half: usize| -> i32 {
            let products = row_quants[16 * half..][..16]
                .iter()
                .zip(&column.values[16 * half..][..16]);
            products.map(|(&a, &w)| i32::from(a as i8) * w).sum()
        };
        let scaled = match layout.coding.scales {
            Scales::None | Scales::Per32 => {
                (dot(0) + dot(1)) as f32 * (column.scale * column.scales[0] as f32)
            }
            Scales::Per16 => (column.scales[0] * dot(0) + column.scales[1] * dot(1)) as f32 * column.scale,
        };
        let row_scale = f32::from_ne_bytes(number(row));
        *sum = scaled.mul_add(row_scale, *sum);
        match layout.coding.mins {
            Mins::None => {}
            Mins::OfBlock | Mins::Per32 => {
                let min = column.min * column.mins[0] as f32;
                *sum = min.mul_add(f32::from_ne_bytes(number(n_rows + row)), *sum);
            }
            Mins::Per16 => {
                let [a, b, c, d] = number(3 * n_rows + row);
                let row_sums = [[a, b], [c, d]].map(|sum| i32::from(i16::from_le_bytes(sum)));
                let mins = column.mins[0] * row_sums[0] + column.mins[1] * row_sums[1];
                *sum = (mins as f32 * column.min).mul_add(row_scale, *sum);
            }
        }
    }
}
