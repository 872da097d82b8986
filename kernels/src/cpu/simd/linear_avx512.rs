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

use std::arch::x86_64::*;

use super::linear::{LinearKernels, TileCall, TileKernel};
use super::linear_float::{self, Bf16, F16, F32, Lanes};
use crate::cpu::activations::{QuantizeRow, ROW_RECORD_BYTES, block_scale};
use crate::cpu::layout::{
    Q4_0_BLOCK_BYTES, Q4_1_BLOCK_BYTES, Q4_1_MINS, Q4_SCALES, Q8_0_BLOCK_BYTES, Q8_0_SCALES,
};
use crate::quant::BLOCK;

pub(crate) static KERNELS: LinearKernels = LinearKernels {
    quantize_row,
    f32: float_f32,
    f16: float_f16,
    bf16: float_bf16,
    q8_0: quantized::<Q8_0>,
    q4_0: quantized::<Q4_0>,
    q4_1: quantized::<Q4_1>,
};

/// Rows whose integer dots advance together.
const GROUP: usize = 4;

/// 32 inputs of 16 columns, as unsigned bytes; vector j holds inputs 4 j .. 4 j + 4.
struct WeightBlock {
    quants: [__m512i; 8],
    scale: __m512,
    min: __m512,
}

trait TileFormat {
    const HAS_MIN: bool;
    /// What was added to the integer weights to make them unsigned, as a shift of 128: a dot starts from
    /// `-(128 >> shift) * sum(activations)`.
    const OFFSET_SHIFT: Option<u32>;
    const BLOCK_BYTES: usize;
    /// # Safety
    /// * `block` points at a block of a tile of this format; the machine has AVX-512.
    unsafe fn load(block: *const u8) -> WeightBlock;
}

struct Q4_0;
struct Q4_1;
struct Q8_0;

impl TileFormat for Q4_0 {
    const HAS_MIN: bool = false;
    const OFFSET_SHIFT: Option<u32> = Some(4);
    const BLOCK_BYTES: usize = Q4_0_BLOCK_BYTES;

    #[inline(always)]
    unsafe fn load(block: *const u8) -> WeightBlock {
        // SAFETY: the caller's obligations are the callees'; scales lie in the block.
        unsafe {
            WeightBlock {
                quants: load_nibbles(block),
                scale: load_f16(block.add(Q4_SCALES)),
                min: _mm512_setzero_ps(),
            }
        }
    }
}

impl TileFormat for Q4_1 {
    const HAS_MIN: bool = true;
    const OFFSET_SHIFT: Option<u32> = None;
    const BLOCK_BYTES: usize = Q4_1_BLOCK_BYTES;

    #[inline(always)]
    unsafe fn load(block: *const u8) -> WeightBlock {
        // SAFETY: the caller's obligations are the callees'; scales and mins lie in the block.
        unsafe {
            WeightBlock {
                quants: load_nibbles(block),
                scale: load_f16(block.add(Q4_SCALES)),
                min: load_f16(block.add(Q4_1_MINS)),
            }
        }
    }
}

impl TileFormat for Q8_0 {
    const HAS_MIN: bool = false;
    const OFFSET_SHIFT: Option<u32> = Some(0);
    const BLOCK_BYTES: usize = Q8_0_BLOCK_BYTES;

    #[inline(always)]
    unsafe fn load(block: *const u8) -> WeightBlock {
        // SAFETY: eight vectors, then the scales, lie in the block.
        unsafe {
            WeightBlock {
                quants: std::array::from_fn(|chunk| _mm512_loadu_si512(block.add(64 * chunk).cast())),
                scale: load_f16(block.add(Q8_0_SCALES)),
                min: _mm512_setzero_ps(),
            }
        }
    }
}

/// # Safety
/// * `block` is readable for 256 bytes; the machine has AVX-512.
#[inline(always)]
unsafe fn load_nibbles(block: *const u8) -> [__m512i; 8] {
    // SAFETY: four vectors from `block` on.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        let mut quants = [_mm512_setzero_si512(); 8];
        for chunk in 0..4 {
            let packed = _mm512_loadu_si512(block.add(64 * chunk).cast());
            quants[chunk] = _mm512_and_si512(packed, mask);
            quants[chunk + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
        }
        quants
    }
}

/// # Safety
/// * `at` is readable for 32 bytes; the machine has AVX-512.
#[inline(always)]
unsafe fn load_f16(at: *const u8) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// Rows START .. START + 4 of a panel of R rows, for one block.
///
/// # Safety
/// * `record` is a record of R rows; the machine has AVX-512 VNNI.
#[inline(always)]
unsafe fn add_group<F: TileFormat, const R: usize, const START: usize>(
    weights: &WeightBlock,
    record: *const u8,
    sums: &mut [__m512; R],
) {
    if START >= R {
        return;
    }
    let count = if R - START < GROUP { R - START } else { GROUP };
    // SAFETY: rows START..START + count are rows of the record, which holds R x 32 int8 and three arrays of R
    // numbers.
    unsafe {
        let numbers = record.add(R * BLOCK);
        let number = |array: usize, row: usize| numbers.add(4 * (array * R + START + row));
        let mut dots = [_mm512_setzero_si512(); GROUP];
        if let Some(shift) = F::OFFSET_SHIFT {
            for (row, dot) in dots[..count].iter_mut().enumerate() {
                let offset = number(2, row).cast::<i32>().read_unaligned();
                *dot = _mm512_set1_epi32(offset >> shift);
            }
        }
        for step in 0..8 {
            for (row, dot) in dots[..count].iter_mut().enumerate() {
                let four = record
                    .add((START + row) * BLOCK + 4 * step)
                    .cast::<i32>()
                    .read_unaligned();
                *dot = _mm512_dpbusd_epi32(*dot, weights.quants[step], _mm512_set1_epi32(four));
            }
        }
        for (row, dot) in dots[..count].iter().enumerate() {
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(*dot), weights.scale);
            let scale = number(0, row).cast::<f32>().read_unaligned();
            let mut sum = _mm512_fmadd_ps(scaled, _mm512_set1_ps(scale), sums[START + row]);
            if F::HAS_MIN {
                let scaled_sum = number(1, row).cast::<f32>().read_unaligned();
                sum = _mm512_fmadd_ps(weights.min, _mm512_set1_ps(scaled_sum), sum);
            }
            sums[START + row] = sum;
        }
    }
}

/// `LINES` cache lines are prefetched for each block, into L2: the hardware brings L2 to L1 well, and L1 is
/// full of activations.
///
/// # Safety
/// As for [`super::linear::TileKernel`]; `n_rows == R`.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile_times_rows<F: TileFormat, const R: usize, const LINES: usize>(call: &TileCall) {
    // SAFETY: the tile has `depth` blocks, the panel as many records of R rows, each row 16 writable outputs.
    // Prefetches may name any address.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); R];
        let mut block = call.tile;
        let mut record = call.input;
        let mut fetch = call.prefetch.start;
        if LINES > 0 {
            for row in 0..R {
                _mm_prefetch::<_MM_HINT_ET0>(call.output.add(row * call.stride).cast());
            }
        }
        for _ in 0..call.depth {
            for line in 0..LINES {
                _mm_prefetch::<_MM_HINT_T1>(fetch.wrapping_add(64 * line).cast());
            }
            fetch = fetch.wrapping_add(call.prefetch.bytes_per_block);
            let weights = F::load(block);
            add_group::<F, R, 0>(&weights, record, &mut sums);
            add_group::<F, R, 4>(&weights, record, &mut sums);
            add_group::<F, R, 8>(&weights, record, &mut sums);
            add_group::<F, R, 12>(&weights, record, &mut sums);
            block = block.add(F::BLOCK_BYTES);
            record = record.add(R * ROW_RECORD_BYTES);
        }
        for (row, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(call.output.add(row * call.stride), sum);
        }
    }
}

/// The kernel for each number of rows of a panel, from 1 on.
const fn by_rows<F: TileFormat, const LINES: usize>() -> [TileKernel; 16] {
    [
        tile_times_rows::<F, 1, LINES>,
        tile_times_rows::<F, 2, LINES>,
        tile_times_rows::<F, 3, LINES>,
        tile_times_rows::<F, 4, LINES>,
        tile_times_rows::<F, 5, LINES>,
        tile_times_rows::<F, 6, LINES>,
        tile_times_rows::<F, 7, LINES>,
        tile_times_rows::<F, 8, LINES>,
        tile_times_rows::<F, 9, LINES>,
        tile_times_rows::<F, 10, LINES>,
        tile_times_rows::<F, 11, LINES>,
        tile_times_rows::<F, 12, LINES>,
        tile_times_rows::<F, 13, LINES>,
        tile_times_rows::<F, 14, LINES>,
        tile_times_rows::<F, 15, LINES>,
        tile_times_rows::<F, 16, LINES>,
    ]
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn quantized<F: TileFormat>(call: &TileCall) {
    let kernels = match call.prefetch.bytes_per_block.div_ceil(64) {
        0 => const { &by_rows::<F, 0>() },
        1 => const { &by_rows::<F, 1>() },
        2..=3 => const { &by_rows::<F, 3>() },
        4..=5 => const { &by_rows::<F, 5>() },
        _ => const { &by_rows::<F, 9>() },
    };
    // SAFETY: the caller's obligations are the callee's, which is the one for this number of rows.
    unsafe { kernels[call.n_rows - 1](call) }
}

/// # Safety
/// As for [`super::linear::QuantizeKernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
            let halves = _mm_add_epi32(
                _mm256_castsi256_si128(partial),
                _mm256_extracti128_si256(partial, 1),
            );
            let quarters = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0b01_00_11_10));
            let total = _mm_add_epi32(quarters, _mm_shuffle_epi32(quarters, 0b10_11_00_01));
            target.store_numbers(record, scale, _mm_cvtsi128_si32(total));
        }
    }
}

macro_rules! float_kernel {
    ($name:ident, $element:ty) => {
        /// # Safety
        /// As for [`super::linear::TileKernel`].
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
            Zmm(_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)))
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
