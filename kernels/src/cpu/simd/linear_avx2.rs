//! AVX2, FMA and F16C. Half a tile (8 columns) times up to 4 rows at a time: 16 registers hold no more.
//!
//! `vpmaddubsw` multiplies unsigned bytes by signed ones and adds pairs as int16. Integers of the weights are
//! unsigned in that, and what an offset adds is taken off the whole dot. Products of a lane are added as
//! int16 as long as they fit, up to the whole sub-block for 4 bits (8 * 2 * 15 * 127 = 30480 < 32768); a
//! `vpmaddwd` with ones, or with the scales of 16 weights, makes int32 of them.
//!
//! Integers of 8 bits and values of a table are signed: their magnitudes times sign(activation, value)
//! (2 * 128 * 127 = 32512 < 32768).

use std::arch::x86_64::*;

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

fn kernel(format: Format) -> TileKernel {
    of_format!(format, quantized)
}

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

    /// The address of row `first + row`'s number in one of the record's four arrays.
    ///
    /// # Safety
    /// * The row is one of the record's, `array < 4`.
    #[inline(always)]
    unsafe fn number(&self, array: usize, row: usize) -> *const u8 {
        // SAFETY: four arrays of n_rows numbers follow the int8.
        unsafe {
            self.record
                .add(self.n_rows * BLOCK + 4 * (array * self.n_rows + self.first + row))
        }
    }
}

/// Whether kernels take the values of a format for signed bytes.
#[inline(always)]
const fn is_signed(layout: &TileLayout) -> bool {
    layout.coding.bits == 8 || matches!(layout.coding.values, Values::Table(_))
}

/// Chunks of a sub-block whose products fit an int16 together.
#[inline(always)]
const fn run(layout: &TileLayout) -> usize {
    let largest = match layout.coding.values {
        Values::Offset(_) if layout.coding.bits == 8 => 128,
        Values::Offset(_) => (1 << layout.coding.bits) - 1,
        Values::Table(table) => {
            let (mut largest, mut i) = (0, 0);
            while i < table.len() {
                let magnitude = table[i].unsigned_abs() as usize;
                largest = if magnitude > largest { magnitude } else { largest };
                i += 1;
            }
            largest
        }
    };
    // Four have scales of their own in some formats.
    let mut run = if matches!(layout.coding.scales, Scales::Per16) {
        4
    } else {
        8
    };
    while run * 2 * largest * 127 > i16::MAX as usize {
        run /= 2;
    }
    assert!(run > 0);
    run
}

/// Bits of word `j` of 8 columns in a plane, moved to bit `to` of each byte.
///
/// # Safety
/// * `plane` is that of a sub-block, from these columns on; the machine has AVX2.
#[inline(always)]
unsafe fn plane_bits(plane: *const u8, (bits, to): (usize, usize), j: usize) -> __m256i {
    let (chunk, from) = chunk_and_shift(bits, j);
    // SAFETY: a plane has `bits` chunks of 64 bytes.
    unsafe {
        let packed = _mm256_loadu_si256(plane.add(64 * chunk).cast());
        if bits == 8 {
            return packed;
        }
        // Bits that cross into another byte are masked.
        let moved = if from >= to {
            _mm256_srl_epi16(packed, _mm_cvtsi32_si128((from - to) as i32))
        } else {
            _mm256_sll_epi16(packed, _mm_cvtsi32_si128((to - from) as i32))
        };
        _mm256_and_si256(moved, _mm256_set1_epi8((((1 << bits) - 1) << to) as i8))
    }
}

/// Word `j` of 8 columns: bytes as [`is_signed`] says.
///
/// # Safety
/// * `sub` is a sub-block of a tile of the format, from `32 * half` on; the machine has AVX2.
#[inline(always)]
unsafe fn quants<const FORMAT: usize>(sub: *const u8, j: usize) -> __m256i {
    let layout = Tile::<FORMAT>::LAYOUT;
    let (low_bits, high_bits) = (layout.low_bits(), layout.high_bits());
    // SAFETY: the planes lie in the sub-block.
    unsafe {
        let mut quants = plane_bits(sub, (low_bits, 0), j);
        if high_bits > 0 {
            let high = plane_bits(sub.add(layout.high_plane()), (high_bits, low_bits), j);
            quants = _mm256_or_si256(quants, high);
        }
        match layout.coding.values {
            Values::Offset(_) if layout.coding.bits == 8 => _mm256_xor_si256(quants, _mm256_set1_epi8(-128)),
            Values::Offset(_) => quants,
            Values::Table(table) => {
                let table = _mm_loadu_si128(table.as_ptr().cast());
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), quants)
            }
        }
    }
}

/// Numbers of 8 columns of a sub-block.
struct Scaling {
    /// What the pairs of products of the first and last 16 inputs are multiplied with, as pairs of int16.
    factors: [__m256i; 2],
    /// What the activations' sums of 16 are multiplied with for the values' offset, as pairs of int16.
    offsets: __m256i,
    /// The same for the minima of 16.
    mins_of_16: __m256i,
    scale: __m256,
    min: __m256,
}

/// # Safety
/// * `sub` is a sub-block of a tile of the format; `scale` and `min` are its block's, of half `half`; the
///   machine has AVX2.
#[inline(always)]
unsafe fn scaling<const FORMAT: usize>(
    sub: *const u8,
    half: usize,
    (scale, min): (__m256, __m256),
) -> Scaling {
    let layout = Tile::<FORMAT>::LAYOUT;
    // SAFETY: 8 columns have 8 or 16 bytes of scales and 8 of minima in the sub-block.
    unsafe {
        let mut scaling = Scaling {
            factors: [_mm256_set1_epi16(1); 2],
            offsets: _mm256_setzero_si256(),
            mins_of_16: _mm256_setzero_si256(),
            scale,
            min,
        };
        match layout.coding.scales {
            Scales::None => {}
            Scales::Per32 => {
                let scales = _mm_loadl_epi64(sub.add(layout.sub_scales() + 8 * half).cast());
                let scales = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(scales));
                scaling.scale = _mm256_mul_ps(scale, scales);
            }
            Scales::Per16 => {
                let bytes = _mm_loadu_si128(sub.add(layout.sub_scales() + 16 * half).cast());
                let pairs = if layout.coding.mins == Mins::Per16 {
                    let both = _mm256_cvtepu8_epi16(bytes);
                    scaling.mins_of_16 = _mm256_srli_epi16::<4>(both);
                    _mm256_and_si256(both, _mm256_set1_epi16(15))
                } else {
                    _mm256_cvtepi8_epi16(bytes)
                };
                scaling.factors = [
                    _mm256_blend_epi16::<0xaa>(pairs, _mm256_slli_epi32::<16>(pairs)),
                    _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(pairs), pairs),
                ];
                if let Values::Offset(offset) = layout.coding.values {
                    scaling.offsets = _mm256_mullo_epi16(pairs, _mm256_set1_epi16(-i16::from(offset)));
                }
            }
        }
        if layout.coding.mins == Mins::Per32 {
            let mins = _mm_loadl_epi64(sub.add(layout.sub_mins() + 8 * half).cast());
            scaling.min = _mm256_mul_ps(min, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(mins)));
        }
        scaling
    }
}

/// Integer dots of 8 columns of a sub-block with R rows, times the scales of 16 where there are some.
///
/// # Safety
/// * `sub` is a sub-block of a tile of the format, from `32 * half` on, `rows` has R rows; the machine has
///   AVX2.
#[inline(always)]
unsafe fn dots<const FORMAT: usize, const R: usize>(
    sub: *const u8,
    scaling: &Scaling,
    rows: RecordRows,
) -> [__m256i; R] {
    let layout = Tile::<FORMAT>::LAYOUT;
    let (is_signed, run) = const { (is_signed(&Tile::<FORMAT>::LAYOUT), run(&Tile::<FORMAT>::LAYOUT)) };
    // SAFETY: the caller's obligations are the callees'; the rows are the record's.
    unsafe {
        // Sums as int32, and those of the chunks since as int16.
        let mut sums = [(_mm256_setzero_si256(), _mm256_setzero_si256()); R];
        for j in 0..8 {
            let quants = quants::<FORMAT>(sub, j);
            let magnitude = if is_signed {
                _mm256_abs_epi8(quants)
            } else {
                quants
            };
            for (row, (dot, pairs)) in sums.iter_mut().enumerate() {
                let four = rows.four(row, 4 * j);
                let four = if is_signed {
                    _mm256_sign_epi8(four, quants)
                } else {
                    four
                };
                *pairs = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(magnitude, four));
                if (j + 1) % run == 0 {
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(*pairs, scaling.factors[j / 4]));
                    *pairs = _mm256_setzero_si256();
                }
            }
        }
        let mut dots = sums.map(|(dot, _)| dot);
        let Values::Offset(offset @ 1..) = layout.coding.values else {
            return dots;
        };
        if is_signed {
            return dots;
        }
        for (row, dot) in dots.iter_mut().enumerate() {
            let taken_off = if layout.coding.scales == Scales::Per16 {
                let sums = rows.number(3, row).cast::<i32>().read_unaligned();
                _mm256_madd_epi16(_mm256_set1_epi32(sums), scaling.offsets)
            } else {
                // Number 2 is -128 * sum.
                let offset_128 = rows.number(2, row).cast::<i32>().read_unaligned();
                _mm256_set1_epi32(offset_128 >> (7 - offset.ilog2()))
            };
            *dot = _mm256_add_epi32(*dot, taken_off);
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
unsafe fn half_tile<const FORMAT: usize, const R: usize>(call: &TileCall, half: usize, first: usize) {
    let layout = Tile::<FORMAT>::LAYOUT;
    // SAFETY: the tile has `depth` blocks, the panel as many records of n_rows rows as they have sub-blocks,
    // each row 16 writable outputs.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); R];
        let mut block = call.tile;
        let mut rows = RecordRows {
            record: call.input,
            n_rows: call.n_rows,
            first,
        };
        for _ in 0..call.depth {
            let scale = block.add(layout.scales() + 16 * half);
            let scale = match layout.coding.has_bf16_scale {
                true => Ymm::load_bf16(scale).0,
                false => load_f16(scale),
            };
            let scale = _mm256_mul_ps(scale, _mm256_set1_ps(layout.coding.scale_factor));
            let min = match layout.coding.mins {
                Mins::None => _mm256_setzero_ps(),
                _ => load_f16(block.add(layout.mins() + 16 * half)),
            };
            for sub in 0..layout.n_subs {
                let sub = block.add(sub * layout.sub_bytes());
                add_sub_block::<FORMAT, R>(sub, half, (scale, min), rows, &mut sums);
                rows.record = rows.record.add(call.n_rows * ROW_RECORD_BYTES);
            }
            block = block.add(layout.block_bytes());
        }
        for (row, sum) in sums.into_iter().enumerate() {
            _mm256_storeu_ps(call.output.add((first + row) * call.stride + 8 * half), sum);
        }
    }
}

/// 32 inputs of 8 columns times R rows, in the order that [`super::linear`] states.
///
/// # Safety
/// * `sub` is a sub-block of a tile of the format; the numbers are its block's, of half `half`; `rows` has R
///   rows; the machine has AVX2 and FMA.
#[inline(always)]
unsafe fn add_sub_block<const FORMAT: usize, const R: usize>(
    sub: *const u8,
    half: usize,
    of_block: (__m256, __m256),
    rows: RecordRows,
    sums: &mut [__m256; R],
) {
    // SAFETY: the caller's obligations are the callees'.
    unsafe {
        let scaling = scaling::<FORMAT>(sub, half, of_block);
        let dots = dots::<FORMAT, R>(sub.add(32 * half), &scaling, rows);
        for (row, dot) in dots.into_iter().enumerate() {
            let sum = &mut sums[row];
            let row_scale = _mm256_set1_ps(rows.number(0, row).cast::<f32>().read_unaligned());
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), scaling.scale);
            *sum = _mm256_fmadd_ps(scaled, row_scale, *sum);
            match Tile::<FORMAT>::LAYOUT.coding.mins {
                Mins::None => {}
                Mins::OfBlock | Mins::Per32 => {
                    let scaled_sum = rows.number(1, row).cast::<f32>().read_unaligned();
                    *sum = _mm256_fmadd_ps(scaling.min, _mm256_set1_ps(scaled_sum), *sum);
                }
                Mins::Per16 => {
                    let row_sums = _mm256_set1_epi32(rows.number(3, row).cast::<i32>().read_unaligned());
                    let mins = _mm256_cvtepi32_ps(_mm256_madd_epi16(row_sums, scaling.mins_of_16));
                    *sum = _mm256_fmadd_ps(_mm256_mul_ps(mins, scaling.min), row_scale, *sum);
                }
            }
        }
    }
}

/// # Safety
/// As for [`super::linear::TileKernel`].
unsafe fn quantized<const FORMAT: usize>(call: &TileCall) {
    for half in 0..2 {
        for first in (0..call.n_rows).step_by(4) {
            // SAFETY: the caller's obligations are the callees'; at most n_rows - first rows are meant.
            unsafe {
                match call.n_rows - first {
                    1 => half_tile::<FORMAT, 1>(call, half, first),
                    2 => half_tile::<FORMAT, 2>(call, half, first),
                    3 => half_tile::<FORMAT, 3>(call, half, first),
                    _ => half_tile::<FORMAT, 4>(call, half, first),
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
            // Each half of the vector has the four partial sums of 16 int8.
            let pairs = _mm256_add_epi32(partial, _mm256_shuffle_epi32(partial, 0b01_00_11_10));
            let sums = _mm256_add_epi32(pairs, _mm256_shuffle_epi32(pairs, 0b10_11_00_01));
            let first = _mm_cvtsi128_si32(_mm256_castsi256_si128(sums));
            let last = _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1));
            target.store_numbers(record, scale, [first, last]);
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
