//! AVX-512 VNNI: one tile of 16 columns times R rows, over the whole depth.
//!
//! ```text
//! registers for R = 16 (32 in all)
//!   quants[8]        one unpacked block, 32 inputs x 16 columns, used by all R rows
//!   sums[16]         f32 results, one vector of 16 columns for each row
//!   dots[4]          int32 dots of the 4 rows being worked on (hides the vpdpbusd latency)
//!   scale, min       of the block's 16 columns
//!
//! activations come as embedded 32-bit broadcasts from L1: vpdpbusd zmm, zmm, [mem]{1to16}
//! ```
//!
//! Unit tests run this file on simulated instructions too (`simulated.rs`), which have no target feature.

use super::arch::*;

use super::linear::{LinearKernels, TileCall, TileKernel};
use super::linear_float::{self, Bf16, F16, F32, Lanes};
use crate::cpu::activations::{QuantizeRow, ROW_RECORD_BYTES, block_scale};
use crate::cpu::layout::{Tile, TileLayout, chunk_and_shift, of_format};
use crate::quant::{BLOCK, Format, Mins, Scales, Values};

pub(crate) static KERNELS: LinearKernels = LinearKernels {
    quantize_row,
    f32: float_f32,
    f16: float_f16,
    bf16: float_bf16,
    quantized: kernel,
};

/// The formats of which code is made for each number of rows and of lines to prefetch; the others take rows
/// in passes and count lines in a loop, for a fraction of the code.
fn kernel(format: Format) -> TileKernel {
    match format {
        Format::Q8_0 => unrolled::<{ Format::Q8_0 as usize }>,
        Format::Q4_0 => unrolled::<{ Format::Q4_0 as usize }>,
        Format::Q4_1 => unrolled::<{ Format::Q4_1 as usize }>,
        _ => of_format!(format, quantized),
    }
}

/// Rows whose integer dots advance together.
const GROUP: usize = 4;

/// 32 inputs of 16 columns, as unsigned bytes; vector j holds inputs 4 j .. 4 j + 4.
struct WeightBlock {
    quants: [__m512i; 8],
    scale: __m512,
    min: __m512,
    /// Of the first and the last 16 inputs, where these have scales of their own.
    scales_of_16: [__m512; 2],
    /// Minima of 16 inputs as pairs of int16.
    mins_of_16: __m512i,
}

/// What was added to the integer weights to make them unsigned: 0 or a power of two.
#[inline(always)]
const fn offset(layout: &TileLayout) -> u8 {
    match layout.coding.values {
        Values::Offset(offset) => offset,
        Values::Table(_) => 128,
    }
}

/// Bits of word `j` of 16 columns in a plane, moved to bit `to` of each byte.
///
/// # Safety
/// * `plane` is that of a sub-block; the machine has AVX-512.
#[inline(always)]
unsafe fn plane_bits(plane: *const u8, (bits, to): (usize, usize), j: usize) -> __m512i {
    let (chunk, from) = chunk_and_shift(bits, j);
    // SAFETY: a plane has `bits` chunks of 64 bytes.
    unsafe {
        let packed = _mm512_loadu_si512(plane.add(64 * chunk).cast());
        if bits == 8 {
            return packed;
        }
        // Bits that cross into another byte are masked.
        let moved = if from >= to {
            _mm512_srl_epi16(packed, _mm_cvtsi32_si128((from - to) as i32))
        } else {
            _mm512_sll_epi16(packed, _mm_cvtsi32_si128((to - from) as i32))
        };
        _mm512_and_si512(moved, _mm512_set1_epi8((((1 << bits) - 1) << to) as i8))
    }
}

/// # Safety
/// * `sub` is a sub-block of a tile of the format; the machine has AVX-512.
#[inline(always)]
unsafe fn load_quants<const FORMAT: usize>(sub: *const u8) -> [__m512i; 8] {
    let layout = Tile::<FORMAT>::LAYOUT;
    let (low_bits, high_bits) = (layout.low_bits(), layout.high_bits());
    // SAFETY: the planes lie in the sub-block.
    unsafe {
        let mut quants = [_mm512_setzero_si512(); 8];
        for (j, quants) in quants.iter_mut().enumerate() {
            *quants = plane_bits(sub, (low_bits, 0), j);
            if high_bits > 0 {
                let high = plane_bits(sub.add(layout.high_plane()), (high_bits, low_bits), j);
                *quants = _mm512_or_si512(*quants, high);
            }
            if let Values::Table(table) = layout.coding.values {
                let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
                let biased = _mm512_xor_si512(table, _mm512_set1_epi8(-128));
                *quants = _mm512_shuffle_epi8(biased, *quants);
            }
        }
        quants
    }
}

/// # Safety
/// * `sub` is a sub-block of a tile of the format, `scale` and `min` are its block's; the machine has
///   AVX-512.
#[inline(always)]
unsafe fn load<const FORMAT: usize>(sub: *const u8, (scale, min): (__m512, __m512)) -> WeightBlock {
    let layout = Tile::<FORMAT>::LAYOUT;
    // SAFETY: 16 columns have 16 or 32 bytes of scales and 16 of minima in the sub-block.
    unsafe {
        let mut weights = WeightBlock {
            quants: load_quants::<FORMAT>(sub),
            scale,
            min,
            scales_of_16: [_mm512_setzero_ps(); 2],
            mins_of_16: _mm512_setzero_si512(),
        };
        match layout.coding.scales {
            Scales::None => {}
            Scales::Per32 => {
                let scales = _mm_loadu_si128(sub.add(layout.sub_scales()).cast());
                let scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scales));
                weights.scale = _mm512_mul_ps(scale, scales);
            }
            Scales::Per16 => {
                let bytes = _mm256_loadu_si256(sub.add(layout.sub_scales()).cast());
                let pairs = if layout.coding.mins == Mins::Per16 {
                    let both = _mm512_cvtepu8_epi16(bytes);
                    weights.mins_of_16 = _mm512_srli_epi16::<4>(both);
                    _mm512_and_si512(both, _mm512_set1_epi16(15))
                } else {
                    _mm512_cvtepi8_epi16(bytes)
                };
                weights.scales_of_16 = [
                    _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(pairs))),
                    _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(pairs)),
                ];
            }
        }
        if layout.coding.mins == Mins::Per32 {
            let mins = _mm_loadu_si128(sub.add(layout.sub_mins()).cast());
            weights.min = _mm512_mul_ps(min, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(mins)));
        }
        weights
    }
}

/// # Safety
/// * `at` is readable for 32 bytes; the machine has AVX-512.
#[inline(always)]
unsafe fn load_f16(at: *const u8) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// Rows START .. of R rows of a panel, which may have others: the record of 32 inputs.
#[derive(Clone, Copy)]
struct GroupRows<const R: usize, const START: usize> {
    record: *const u8,
    /// Rows of the panel.
    n_rows: usize,
    /// The first of the R rows.
    first: usize,
}

impl<const R: usize, const START: usize> GroupRows<R, START> {
    /// Rows of the group, at most [`GROUP`].
    const COUNT: usize = if START >= R {
        0
    } else if R - START < GROUP {
        R - START
    } else {
        GROUP
    };

    /// Four int8 of row `START + row`, in every lane.
    ///
    /// # Safety
    /// * `row < COUNT`, `step < 8`; the machine has AVX-512.
    #[inline(always)]
    unsafe fn four(self, row: usize, step: usize) -> __m512i {
        // SAFETY: the record begins with n_rows x 32 int8.
        unsafe {
            let four = self.record.add((self.first + START + row) * BLOCK + 4 * step);
            _mm512_set1_epi32(four.cast::<i32>().read_unaligned())
        }
    }

    /// The address of row `START + row`'s number in one of the record's arrays.
    ///
    /// # Safety
    /// * `row < COUNT`, `array < 4`.
    #[inline(always)]
    unsafe fn number(self, array: usize, row: usize) -> *const u8 {
        // SAFETY: four arrays of n_rows numbers follow the int8.
        unsafe {
            self.record
                .add(self.n_rows * BLOCK + 4 * (array * self.n_rows + self.first + START + row))
        }
    }
}

/// Integer dots of a group of rows, times the scales of 16 where there are some; exact.
///
/// # Safety
/// * `rows` are R rows of a record, `START < R`; the machine has AVX-512 VNNI.
#[inline(always)]
unsafe fn scaled_dots<const FORMAT: usize, const R: usize, const START: usize>(
    weights: &WeightBlock,
    rows: GroupRows<R, START>,
) -> [__m512; GROUP] {
    let layout = Tile::<FORMAT>::LAYOUT;
    let offset = const { offset(&Tile::<FORMAT>::LAYOUT) };
    let count = GroupRows::<R, START>::COUNT;
    // SAFETY: the rows asked for are below `count`.
    unsafe {
        let mut scaled = [_mm512_setzero_ps(); GROUP];
        if layout.coding.scales != Scales::Per16 {
            let mut dots = [_mm512_setzero_si512(); GROUP];
            if offset > 0 {
                for (row, dot) in dots[..count].iter_mut().enumerate() {
                    // Number 2 is -128 * sum.
                    let offset_128 = rows.number(2, row).cast::<i32>().read_unaligned();
                    *dot = _mm512_set1_epi32(offset_128 >> (7 - offset.ilog2()));
                }
            }
            for step in 0..8 {
                for (row, dot) in dots[..count].iter_mut().enumerate() {
                    *dot = _mm512_dpbusd_epi32(*dot, weights.quants[step], rows.four(row, step));
                }
            }
            for (row, scaled) in scaled[..count].iter_mut().enumerate() {
                *scaled = _mm512_cvtepi32_ps(dots[row]);
            }
            return scaled;
        }
        for half in 0..2 {
            let mut dots = [_mm512_setzero_si512(); GROUP];
            if offset > 0 {
                // The activations' sums of 16 are pairs of int16; this picks one of them.
                let factor = u32::from(-i16::from(offset) as u16) << (16 * half);
                for (row, dot) in dots[..count].iter_mut().enumerate() {
                    let sums = _mm512_set1_epi32(rows.number(3, row).cast::<i32>().read_unaligned());
                    *dot = _mm512_madd_epi16(sums, _mm512_set1_epi32(factor as i32));
                }
            }
            for step in 4 * half..4 * half + 4 {
                for (row, dot) in dots[..count].iter_mut().enumerate() {
                    *dot = _mm512_dpbusd_epi32(*dot, weights.quants[step], rows.four(row, step));
                }
            }
            for (row, scaled) in scaled[..count].iter_mut().enumerate() {
                *scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[row]), weights.scales_of_16[half], *scaled);
            }
        }
        scaled
    }
}

/// Rows START .. START + 4 of R rows, for one sub-block.
///
/// # Safety
/// * `rows` are R rows of a record; the machine has AVX-512 VNNI.
#[inline(always)]
unsafe fn add_group<const FORMAT: usize, const R: usize, const START: usize>(
    weights: &WeightBlock,
    GroupRows {
        record,
        n_rows,
        first,
    }: GroupRows<R, 0>,
    sums: &mut [__m512; R],
) {
    if START >= R {
        return;
    }
    let rows = GroupRows::<R, START> {
        record,
        n_rows,
        first,
    };
    // SAFETY: rows START..START + count are rows of the record.
    unsafe {
        let dots = scaled_dots::<FORMAT, R, START>(weights, rows);
        for (row, dot) in dots[..GroupRows::<R, START>::COUNT].iter().enumerate() {
            let scaled = _mm512_mul_ps(*dot, weights.scale);
            let scale = _mm512_set1_ps(rows.number(0, row).cast::<f32>().read_unaligned());
            let mut sum = _mm512_fmadd_ps(scaled, scale, sums[START + row]);
            match Tile::<FORMAT>::LAYOUT.coding.mins {
                Mins::None => {}
                Mins::OfBlock | Mins::Per32 => {
                    let scaled_sum = rows.number(1, row).cast::<f32>().read_unaligned();
                    sum = _mm512_fmadd_ps(weights.min, _mm512_set1_ps(scaled_sum), sum);
                }
                Mins::Per16 => {
                    let row_sums = _mm512_set1_epi32(rows.number(3, row).cast::<i32>().read_unaligned());
                    let mins = _mm512_cvtepi32_ps(_mm512_madd_epi16(row_sums, weights.mins_of_16));
                    sum = _mm512_fmadd_ps(_mm512_mul_ps(mins, weights.min), scale, sum);
                }
            }
            sums[START + row] = sum;
        }
    }
}

/// As many lines as the call says are prefetched for each 32 inputs.
const COUNTED: usize = usize::MAX;

/// Rows `first .. first + R`. `LINES` cache lines, or those [`COUNTED`], are prefetched for each 32 inputs,
/// into L2: the hardware brings L2 to L1 well, and L1 is full of activations.
///
/// # Safety
/// As for [`super::linear::TileKernel`]; `first + R <= n_rows`, and where lines are not counted, R is all
/// rows.
#[inline(never)]
#[cfg_attr(
    not(test),
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
)]
unsafe fn tile_times_rows<const FORMAT: usize, const R: usize, const LINES: usize>(
    call: &TileCall,
    first: usize,
) {
    let layout = Tile::<FORMAT>::LAYOUT;
    // Constants where all rows are meant, so that displacements are.
    let (n_lines, n_rows, first) = match LINES {
        COUNTED => (call.prefetch.bytes_per_block.div_ceil(64), call.n_rows, first),
        n => (n, R, 0),
    };
    // SAFETY: the tile has `depth` blocks, the panel as many records of n_rows rows as they have sub-blocks,
    // each row 16 writable outputs. Prefetches may name any address.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); R];
        let mut block = call.tile;
        let output = call.output.wrapping_add(first * call.stride);
        let mut rows = GroupRows::<R, 0> {
            record: call.input,
            n_rows,
            first,
        };
        let mut fetch = call.prefetch.start;
        if n_lines > 0 {
            for row in 0..R {
                _mm_prefetch::<_MM_HINT_ET0>(output.add(row * call.stride).cast());
            }
        }
        for _ in 0..call.depth {
            let scale = match layout.coding.has_bf16_scale {
                true => Zmm::load_bf16(block.add(layout.scales())).0,
                false => load_f16(block.add(layout.scales())),
            };
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(layout.coding.scale_factor));
            let min = match layout.coding.mins {
                Mins::None => _mm512_setzero_ps(),
                _ => load_f16(block.add(layout.mins())),
            };
            for sub in 0..layout.n_subs {
                for line in 0..n_lines {
                    _mm_prefetch::<_MM_HINT_T1>(fetch.wrapping_add(64 * line).cast());
                }
                fetch = fetch.wrapping_add(call.prefetch.bytes_per_block);
                let weights = load::<FORMAT>(block.add(sub * layout.sub_bytes()), (scale, min));
                add_group::<FORMAT, R, 0>(&weights, rows, &mut sums);
                add_group::<FORMAT, R, 4>(&weights, rows, &mut sums);
                add_group::<FORMAT, R, 8>(&weights, rows, &mut sums);
                add_group::<FORMAT, R, 12>(&weights, rows, &mut sums);
                rows.record = rows.record.add(n_rows * ROW_RECORD_BYTES);
            }
            block = block.add(layout.block_bytes());
        }
        for (row, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(output.add(row * call.stride), sum);
        }
    }
}

/// A kernel for some rows of a panel, from the second argument on.
type RowsKernel = unsafe fn(&TileCall, usize);

/// The kernel for each number of rows, from 1 on.
const fn by_rows<const FORMAT: usize, const LINES: usize>() -> [RowsKernel; 16] {
    [
        tile_times_rows::<FORMAT, 1, LINES>,
        tile_times_rows::<FORMAT, 2, LINES>,
        tile_times_rows::<FORMAT, 3, LINES>,
        tile_times_rows::<FORMAT, 4, LINES>,
        tile_times_rows::<FORMAT, 5, LINES>,
        tile_times_rows::<FORMAT, 6, LINES>,
        tile_times_rows::<FORMAT, 7, LINES>,
        tile_times_rows::<FORMAT, 8, LINES>,
        tile_times_rows::<FORMAT, 9, LINES>,
        tile_times_rows::<FORMAT, 10, LINES>,
        tile_times_rows::<FORMAT, 11, LINES>,
        tile_times_rows::<FORMAT, 12, LINES>,
        tile_times_rows::<FORMAT, 13, LINES>,
        tile_times_rows::<FORMAT, 14, LINES>,
        tile_times_rows::<FORMAT, 15, LINES>,
        tile_times_rows::<FORMAT, 16, LINES>,
    ]
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn unrolled<const FORMAT: usize>(call: &TileCall) {
    let kernels = match call.prefetch.bytes_per_block.div_ceil(64) {
        0 => const { &by_rows::<FORMAT, 0>() },
        1 => const { &by_rows::<FORMAT, 1>() },
        2..=3 => const { &by_rows::<FORMAT, 3>() },
        4..=5 => const { &by_rows::<FORMAT, 5>() },
        _ => const { &by_rows::<FORMAT, 9>() },
    };
    // SAFETY: the caller's obligations are the callee's, which is the one for this number of rows.
    unsafe { kernels[call.n_rows - 1](call, 0) }
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn quantized<const FORMAT: usize>(call: &TileCall) {
    let mut first = 0;
    while first < call.n_rows {
        let (n, kernel): (usize, RowsKernel) = match call.n_rows - first {
            16.. => (16, tile_times_rows::<FORMAT, 16, COUNTED>),
            8.. => (8, tile_times_rows::<FORMAT, 8, COUNTED>),
            4.. => (4, tile_times_rows::<FORMAT, 4, COUNTED>),
            3 => (3, tile_times_rows::<FORMAT, 3, COUNTED>),
            2 => (2, tile_times_rows::<FORMAT, 2, COUNTED>),
            _ => (1, tile_times_rows::<FORMAT, 1, COUNTED>),
        };
        // SAFETY: the caller's obligations are the callee's; the rows meant are rows of the panel.
        unsafe { kernel(call, first) };
        first += n;
    }
}

/// # Safety
/// As for [`super::linear::QuantizeKernel`].
#[cfg_attr(
    not(test),
    target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
)]
unsafe fn quantize_row(source: &[f32], target: &QuantizeRow) {
    for (block, values) in source.chunks_exact(BLOCK).enumerate() {
        let record = target.record(block);
        // SAFETY: a block is two vectors of 16 values; the record of this block is writable.
        unsafe {
            let low = _mm512_loadu_ps(values.as_ptr());
            let high = _mm512_loadu_ps(values.as_ptr().add(16));
            let magnitude = _mm512_set1_epi32(0x7fff_ffff);
            let larger = _mm512_max_epi32(
                _mm512_and_si512(_mm512_castps_si512(low), magnitude),
                _mm512_and_si512(_mm512_castps_si512(high), magnitude),
            );
            let largest = f32::from_bits(_mm512_reduce_max_epi32(larger) as u32);
            let (scale, inverse) = block_scale(largest);
            let factor = _mm512_set1_ps(inverse);
            // A product that is NaN (the block is not finite) converts to i32::MIN, whose low byte is 0.
            let low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, factor)));
            let high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, factor)));
            let bytes = _mm256_set_m128i(high, low);
            _mm256_storeu_si256(record.add(target.row * BLOCK).cast(), bytes);
            let partial = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
            // Each half of the vector has the four partial sums of 16 int8.
            let pairs = _mm256_add_epi32(partial, _mm256_shuffle_epi32::<0b01_00_11_10>(partial));
            let sums = _mm256_add_epi32(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
            let first = _mm_cvtsi128_si32(_mm256_castsi256_si128(sums));
            let last = _mm_cvtsi128_si32(_mm256_extracti128_si256::<1>(sums));
            target.store_numbers(record, scale, [first, last]);
        }
    }
}

macro_rules! float_kernel {
    ($name:ident, $element:ty) => {
        /// # Safety
        /// As for [`super::linear::TileKernel`].
        #[cfg_attr(
            not(test),
            target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
        )]
        unsafe fn $name(call: &TileCall) {
            // SAFETY: the caller's obligations are the callee's.
            unsafe { linear_float::tile::<Zmm, $element>(call) }
        }
    };
}
float_kernel!(float_f32, F32);
float_kernel!(float_f16, F16);
float_kernel!(float_bf16, Bf16);

/// 16 lanes.
#[derive(Clone, Copy)]
struct Zmm(__m512);

impl Lanes for Zmm {
    const N: usize = 16;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the machine has AVX-512.
        unsafe { Zmm(_mm512_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the machine has AVX-512.
        unsafe { Zmm(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load_f32(at: *const u8) -> Self {
        // SAFETY: readable for 16 elements by the trait's obligation.
        unsafe { Zmm(_mm512_loadu_ps(at.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u8) -> Self {
        // SAFETY: readable for 16 elements by the trait's obligation.
        unsafe { Zmm(load_f16(at)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(at: *const u8) -> Self {
        // SAFETY: readable for 16 elements by the trait's obligation.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            Zmm(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
        }
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, sum: Self) -> Self {
        // SAFETY: the machine has AVX-512.
        unsafe { Zmm(_mm512_fmadd_ps(self.0, factor.0, sum.0)) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: writable for 16 elements by the trait's obligation.
        unsafe { _mm512_storeu_ps(at, self.0) }
    }
}
