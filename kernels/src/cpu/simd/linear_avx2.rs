//! AVX2, FMA and F16C. Half a tile (8 columns) times up to 4 rows at a time: 16 registers hold no more.
//!
//! Q4: a nibble times an int8 is at most 15 * 127, so `vpmaddubsw` pairs can be added as int16 over the whole
//! block (8 * 2 * 15 * 127 = 30480 < 32768); one `vpmaddwd` with ones ends it.
//! Q8_0: u8 x s8 pairs would saturate, so it is |w| times sign(a, w), widened at each step
//! (2 * 128 * 127 = 32512 < 32768).

use std::arch::x86_64::*;

use super::linear::{LinearKernels, TileCall};
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

/// Some rows of a record.
#[derive(Clone, Copy)]
struct RecordRows {
    /// Start of the record.
    record: *const u8,
    /// Rows of the record.
    n_rows: usize,
    /// The first row meant.
    first: usize,
}

impl RecordRows {
    /// Four int8 of row `first + row`, in every lane.
    ///
    /// # Safety
    /// * The row is one of the record's, `at <= 28`; the machine has AVX2.
    #[inline(always)]
    unsafe fn four(&self, row: usize, at: usize) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe {
            let four = self.record.add((self.first + row) * BLOCK + at);
            _mm256_set1_epi32(four.cast::<i32>().read_unaligned())
        }
    }

    /// The address of row `first + row`'s number in one of the record's three arrays.
    ///
    /// # Safety
    /// * The row is one of the record's, `array < 3`.
    #[inline(always)]
    unsafe fn number(&self, array: usize, row: usize) -> *const u8 {
        // SAFETY: three arrays of n_rows numbers follow the int8.
        unsafe {
            self.record
                .add(self.n_rows * BLOCK + 4 * (array * self.n_rows + self.first + row))
        }
    }
}

trait TileFormat {
    const BLOCK_BYTES: usize;
    const SCALES: usize;
    const MINS: Option<usize>;
    /// Integer dots of 8 columns from `32 * half` on with R rows.
    ///
    /// # Safety
    /// * `block` is a block of a tile of this format, `half < 2`, `rows` has R rows; the machine has AVX2.
    unsafe fn dots<const R: usize>(block: *const u8, half: usize, rows: RecordRows) -> [__m256i; R];
}

struct Q4_0;
struct Q4_1;
struct Q8_0;

impl TileFormat for Q4_0 {
    const BLOCK_BYTES: usize = Q4_0_BLOCK_BYTES;
    const SCALES: usize = Q4_SCALES;
    const MINS: Option<usize> = None;

    #[inline(always)]
    unsafe fn dots<const R: usize>(block: *const u8, half: usize, rows: RecordRows) -> [__m256i; R] {
        // SAFETY: the caller's obligations are the callees'. Number 2 is -128 * sum, a 16th of it -8 * sum.
        unsafe {
            let mut dots = nibble_dots::<R>(block, half, rows);
            for (row, dot) in dots.iter_mut().enumerate() {
                let offset = rows.number(2, row).cast::<i32>().read_unaligned() >> 4;
                *dot = _mm256_add_epi32(*dot, _mm256_set1_epi32(offset));
            }
            dots
        }
    }
}

impl TileFormat for Q4_1 {
    const BLOCK_BYTES: usize = Q4_1_BLOCK_BYTES;
    const SCALES: usize = Q4_SCALES;
    const MINS: Option<usize> = Some(Q4_1_MINS);

    #[inline(always)]
    unsafe fn dots<const R: usize>(block: *const u8, half: usize, rows: RecordRows) -> [__m256i; R] {
        // SAFETY: the caller's obligations are the callee's.
        unsafe { nibble_dots::<R>(block, half, rows) }
    }
}

impl TileFormat for Q8_0 {
    const BLOCK_BYTES: usize = Q8_0_BLOCK_BYTES;
    const SCALES: usize = Q8_0_SCALES;
    const MINS: Option<usize> = None;

    #[inline(always)]
    unsafe fn dots<const R: usize>(block: *const u8, half: usize, rows: RecordRows) -> [__m256i; R] {
        // SAFETY: eight chunks of 64 bytes lie in the block; the rows are the record's.
        unsafe {
            let bias = _mm256_set1_epi8(-128);
            let ones = _mm256_set1_epi16(1);
            let mut dots = [_mm256_setzero_si256(); R];
            for chunk in 0..8 {
                let biased = _mm256_loadu_si256(block.add(64 * chunk + 32 * half).cast());
                let weight = _mm256_xor_si256(biased, bias);
                let magnitude = _mm256_abs_epi8(weight);
                for (row, dot) in dots.iter_mut().enumerate() {
                    let signed = _mm256_sign_epi8(rows.four(row, 4 * chunk), weight);
                    let pairs = _mm256_maddubs_epi16(magnitude, signed);
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
                }
            }
            dots
        }
    }
}

/// Dots of unsigned nibbles.
///
/// # Safety
/// * As for [`TileFormat::dots`], a block of nibbles.
#[inline(always)]
unsafe fn nibble_dots<const R: usize>(block: *const u8, half: usize, rows: RecordRows) -> [__m256i; R] {
    // SAFETY: four chunks of 64 bytes lie in the block; the rows are the record's.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let mut pairs = [_mm256_setzero_si256(); R];
        for chunk in 0..4 {
            let packed = _mm256_loadu_si256(block.add(64 * chunk + 32 * half).cast());
            let low = _mm256_and_si256(packed, mask);
            let high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
            for (row, pairs) in pairs.iter_mut().enumerate() {
                *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(low, rows.four(row, 4 * chunk)));
                *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(high, rows.four(row, 16 + 4 * chunk)));
            }
        }
        let ones = _mm256_set1_epi16(1);
        let mut dots = [_mm256_setzero_si256(); R];
        for (dot, pairs) in dots.iter_mut().zip(pairs) {
            *dot = _mm256_madd_epi16(pairs, ones);
        }
        dots
    }
}

/// # Safety
/// * `at` is readable for 16 bytes; the machine has F16C.
#[inline(always)]
unsafe fn load_f16(at: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// Columns `8 * half .. + 8` of the tile times rows `first .. first + R`.
///
/// # Safety
/// As for [`super::linear::TileKernel`]; `half < 2`, `first + R <= n_rows`.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_tile<F: TileFormat, const R: usize>(call: &TileCall, half: usize, first: usize) {
    // SAFETY: the tile has `depth` blocks, the panel as many records of n_rows rows, each row 16 writable
    // outputs.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); R];
        let mut block = call.tile;
        let mut rows = RecordRows {
            record: call.input,
            n_rows: call.n_rows,
            first,
        };
        for _ in 0..call.depth {
            let dots = F::dots::<R>(block, half, rows);
            let scale = load_f16(block.add(F::SCALES + 16 * half));
            for (row, sum) in sums.iter_mut().enumerate() {
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[row]), scale);
                let row_scale = rows.number(0, row).cast::<f32>().read_unaligned();
                *sum = _mm256_fmadd_ps(scaled, _mm256_set1_ps(row_scale), *sum);
            }
            if let Some(mins) = F::MINS {
                let min = load_f16(block.add(mins + 16 * half));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let scaled_sum = rows.number(1, row).cast::<f32>().read_unaligned();
                    *sum = _mm256_fmadd_ps(min, _mm256_set1_ps(scaled_sum), *sum);
                }
            }
            block = block.add(F::BLOCK_BYTES);
            rows.record = rows.record.add(call.n_rows * ROW_RECORD_BYTES);
        }
        for (row, sum) in sums.into_iter().enumerate() {
            _mm256_storeu_ps(call.output.add((first + row) * call.stride + 8 * half), sum);
        }
    }
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn quantized<F: TileFormat>(call: &TileCall) {
    for half in 0..2 {
        for first in (0..call.n_rows).step_by(4) {
            // SAFETY: the caller's obligations are the callees'; at most n_rows - first rows are meant.
            unsafe {
                match call.n_rows - first {
                    1 => half_tile::<F, 1>(call, half, first),
                    2 => half_tile::<F, 2>(call, half, first),
                    3 => half_tile::<F, 3>(call, half, first),
                    _ => half_tile::<F, 4>(call, half, first),
                }
            }
        }
    }
}

/// # Safety
/// As for [`super::linear::QuantizeKernel`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantize_row(source: &[f32], target: &QuantizeRow) {
    for (block, values) in source.chunks_exact(BLOCK).enumerate() {
        let record = target.record(block);
        // SAFETY: a block is four vectors of 8 values; the record of this block is writable.
        unsafe {
            let magnitude = _mm256_set1_epi32(0x7fff_ffff);
            let mut largest = _mm256_setzero_si256();
            let mut vectors = [_mm256_setzero_ps(); 4];
            for (i, vector) in vectors.iter_mut().enumerate() {
                *vector = _mm256_loadu_ps(values.as_ptr().add(8 * i));
                let bits = _mm256_castps_si256(*vector);
                largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, magnitude));
            }
            let halves = _mm_max_epi32(
                _mm256_castsi256_si128(largest),
                _mm256_extracti128_si256(largest, 1),
            );
            let quarters = _mm_max_epi32(halves, _mm_shuffle_epi32(halves, 0b01_00_11_10));
            let one = _mm_max_epi32(quarters, _mm_shuffle_epi32(quarters, 0b10_11_00_01));
            let (scale, inverse) = block_scale(f32::from_bits(_mm_cvtsi128_si32(one) as u32));
            // Saturation would make -128 of a NaN product (the block is not finite); the mask makes it 0.
            let finite = _mm256_set1_epi32(if scale.is_nan() { 0 } else { -1 });
            let factor = _mm256_set1_ps(inverse);
            let quant = |vector| _mm256_and_si256(finite, _mm256_cvtps_epi32(_mm256_mul_ps(vector, factor)));
            let low = _mm256_packs_epi32(quant(vectors[0]), quant(vectors[1]));
            let high = _mm256_packs_epi32(quant(vectors[2]), quant(vectors[3]));
            // The packs interleave 128-bit halves; the permutation puts the groups of four in order.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
            _mm256_storeu_si256(record.add(target.row * BLOCK).cast(), bytes);
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
            let partial = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
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
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $name(call: &TileCall) {
            // SAFETY: the caller's obligations are the callee's.
            unsafe { linear_float::tile::<Ymm, $element>(call) }
        }
    };
}
float_kernel!(float_f32, F32);
float_kernel!(float_f16, F16);
float_kernel!(float_bf16, Bf16);

/// 8 lanes.
#[derive(Clone, Copy)]
struct Ymm(__m256);

impl Lanes for Ymm {
    const N: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the machine has AVX2.
        unsafe { Ymm(_mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the machine has AVX2.
        unsafe { Ymm(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load_f32(at: *const u8) -> Self {
        // SAFETY: readable for 8 elements by the trait's obligation.
        unsafe { Ymm(_mm256_loadu_ps(at.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u8) -> Self {
        // SAFETY: readable for 8 elements by the trait's obligation.
        unsafe { Ymm(load_f16(at)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(at: *const u8) -> Self {
        // SAFETY: readable for 8 elements by the trait's obligation.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            Ymm(_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)))
        }
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, sum: Self) -> Self {
        // SAFETY: the machine has FMA.
        unsafe { Ymm(_mm256_fmadd_ps(self.0, factor.0, sum.0)) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: writable for 8 elements by the trait's obligation.
        unsafe { _mm256_storeu_ps(at, self.0) }
    }
}
