//! Kernels of dense layers: a tile of 16 outputs times a few rows, pairs of 16-bit integers at a time.
//!
//! The algorithm is written once over [`Sums`], the 16 sums of a row, and compiled for each instruction set.
//! All give the same bits: the sums are integers, and what follows is plain arithmetic in a fixed order.

use super::dense::{TILE, quantize};
use crate::Activation;
use crate::cpu::Isa;
use crate::cpu::activation::activate;
use crate::encoder::DENSE_CHUNK;

/// A tile times up to [`DenseKernels::MAX_ROWS`] rows.
pub(super) struct DenseCall<'a> {
    /// `[pair][16][2]`.
    pub(super) tile: &'a [i16],
    /// `[row][pair][2]`.
    pub(super) inputs: &'a [i16],
    /// Of each row.
    pub(super) input_scales: &'a [f32],
    /// Of each of the 16 outputs.
    pub(super) scales: &'a [f32],
    pub(super) biases: &'a [f32],
    pub(super) activation: Option<Activation>,
}

type Results = [[f32; TILE]; DenseKernels::MAX_ROWS];

/// The functions of one instruction set. All are unsafe to call: the machine has it.
#[derive(Clone, Copy)]
pub(super) struct DenseKernels {
    /// Rows of a call at most.
    pub(super) n_rows: usize,
    pub(super) multiply: unsafe fn(&DenseCall<'_>, &mut Results),
    pub(super) quantize: unsafe fn(&[f32], &mut [i16]) -> f32,
}

impl DenseKernels {
    /// Rows of a call of the largest instruction set. More than four on AVX2, whose sums would still fit its
    /// registers, take a tenth longer each: the compiler keeps some in memory.
    pub(super) const MAX_ROWS: usize = 12;

    pub(super) fn of(isa: Isa) -> DenseKernels {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => DenseKernels {
                n_rows: 12,
                multiply: x86::multiply_avx512,
                quantize: x86::quantize_avx2,
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => DenseKernels {
                n_rows: 4,
                multiply: x86::multiply_avx2,
                quantize: x86::quantize_avx2,
            },
            _ => DenseKernels {
                n_rows: 4,
                multiply: multiply_scalar,
                quantize: quantize_scalar,
            },
        }
    }
}

/// 16 sums of 32-bit integers, one for each output of a tile.
///
/// # Safety
/// * Every method needs a machine that has the instruction set.
trait Sums: Copy {
    /// A pair of weights for each output.
    type Weights: Copy;
    unsafe fn zero() -> Self;
    unsafe fn load(weights: &[i16; 2 * TILE]) -> Self::Weights;
    /// `self[o] += weights[o][0] * x[0] + weights[o][1] * x[1]`; `x` has the bytes of both.
    unsafe fn multiply_add(self, weights: Self::Weights, x: i32) -> Self;
    unsafe fn to_array(self) -> [i32; TILE];
}

/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn multiply<S: Sums>(call: &DenseCall<'_>, results: &mut Results) {
    // SAFETY: the caller's obligation.
    unsafe {
        match call.input_scales.len() {
            12 => rows::<S, 12>(call, results),
            11 => rows::<S, 11>(call, results),
            10 => rows::<S, 10>(call, results),
            9 => rows::<S, 9>(call, results),
            8 => rows::<S, 8>(call, results),
            7 => rows::<S, 7>(call, results),
            6 => rows::<S, 6>(call, results),
            5 => rows::<S, 5>(call, results),
            _ => few_rows::<S>(call, results),
        }
    }
}

/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn few_rows<S: Sums>(call: &DenseCall<'_>, results: &mut Results) {
    // SAFETY: the caller's obligation.
    unsafe {
        match call.input_scales.len() {
            4 => rows::<S, 4>(call, results),
            3 => rows::<S, 3>(call, results),
            2 => rows::<S, 2>(call, results),
            1 => rows::<S, 1>(call, results),
            n => unreachable!("a call of {n} rows"),
        }
    }
}

/// # Safety
/// The machine has the instruction set of `S`.
#[inline(always)]
unsafe fn rows<S: Sums, const ROWS: usize>(call: &DenseCall<'_>, results: &mut Results) {
    let n_pairs = call.inputs.len() / (2 * ROWS);
    let (tile, _) = call.tile.as_chunks::<{ 2 * TILE }>();
    assert_eq!(tile.len(), n_pairs, "pairs of a tile and of its rows");
    let inputs = call.inputs.as_ptr().cast::<i32>();
    let mut totals = [[0f32; TILE]; ROWS];
    for start in (0..n_pairs).step_by(DENSE_CHUNK / 2) {
        let tile = &tile[start..n_pairs.min(start + DENSE_CHUNK / 2)];
        let inputs = inputs.wrapping_add(start);
        // SAFETY: the caller's obligation.
        let mut sums = [unsafe { S::zero() }; ROWS];
        for (pair, weights) in tile.iter().enumerate() {
            // SAFETY: the caller's obligation.
            let weights = unsafe { S::load(weights) };
            for (row, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's obligation; start + pair < n_pairs, and there are ROWS * n_pairs.
                *sum = unsafe {
                    let x = inputs.add(row * n_pairs + pair).read_unaligned();
                    sum.multiply_add(weights, x)
                };
            }
        }
        for (totals, sums) in totals.iter_mut().zip(sums) {
            // SAFETY: the caller's obligation.
            let sums = unsafe { sums.to_array() };
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total += sum as f32;
            }
        }
    }
    for (row, (totals, out)) in totals.iter().zip(results.iter_mut()).enumerate() {
        for output in 0..TILE {
            let scale = call.input_scales[row] * call.scales[output];
            out[output] = totals[output] * scale + call.biases[output];
        }
        if let Some(activation) = call.activation {
            activate(out, activation);
        }
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
struct ScalarSums([i32; TILE]);

impl Sums for ScalarSums {
    type Weights = [i16; 2 * TILE];
    #[inline(always)]
    unsafe fn zero() -> Self {
        ScalarSums([0; TILE])
    }
    #[inline(always)]
    unsafe fn load(weights: &[i16; 2 * TILE]) -> Self::Weights {
        *weights
    }
    #[inline(always)]
    unsafe fn multiply_add(mut self, weights: Self::Weights, x: i32) -> Self {
        let [a, b, c, d] = x.to_ne_bytes();
        let x = [i16::from_ne_bytes([a, b]), i16::from_ne_bytes([c, d])];
        let (weights, _) = weights.as_chunks::<2>();
        for (sum, weights) in self.0.iter_mut().zip(weights) {
            *sum += i32::from(weights[0]) * i32::from(x[0]) + i32::from(weights[1]) * i32::from(x[1]);
        }
        self
    }
    #[inline(always)]
    unsafe fn to_array(self) -> [i32; TILE] {
        self.0
    }
}

/// # Safety
/// None: every machine runs it.
unsafe fn multiply_scalar(call: &DenseCall<'_>, results: &mut Results) {
    // SAFETY: plain Rust runs everywhere.
    unsafe { few_rows::<ScalarSums>(call, results) };
}

/// # Safety
/// None: every machine runs it.
unsafe fn quantize_scalar(x: &[f32], out: &mut [i16]) -> f32 {
    quantize(x, out)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{DenseCall, Results, Sums, few_rows, multiply, quantize};
    use crate::cpu::encoder::dense::TILE;

    /// Two vectors of eight.
    #[derive(Clone, Copy)]
    struct Avx2Sums([__m256i; 2]);

    impl Sums for Avx2Sums {
        type Weights = [__m256i; 2];
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the machine has AVX2.
            Avx2Sums(unsafe { [_mm256_setzero_si256(); 2] })
        }
        #[inline(always)]
        unsafe fn load(weights: &[i16; 2 * TILE]) -> Self::Weights {
            let at = weights.as_ptr().cast::<__m256i>();
            // SAFETY: the machine has AVX2, and 32 integers are two vectors.
            unsafe { [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))] }
        }
        #[inline(always)]
        unsafe fn multiply_add(self, weights: Self::Weights, x: i32) -> Self {
            // SAFETY: the machine has AVX2.
            unsafe {
                let x = _mm256_set1_epi32(x);
                Avx2Sums([
                    _mm256_add_epi32(self.0[0], _mm256_madd_epi16(weights[0], x)),
                    _mm256_add_epi32(self.0[1], _mm256_madd_epi16(weights[1], x)),
                ])
            }
        }
        #[inline(always)]
        unsafe fn to_array(self) -> [i32; TILE] {
            let mut array = [0; TILE];
            let at = array.as_mut_ptr().cast::<__m256i>();
            // SAFETY: the machine has AVX2, and 16 integers are two vectors.
            unsafe {
                _mm256_storeu_si256(at, self.0[0]);
                _mm256_storeu_si256(at.add(1), self.0[1]);
            }
            array
        }
    }

    /// One vector of sixteen.
    #[derive(Clone, Copy)]
    struct Avx512Sums(__m512i);

    impl Sums for Avx512Sums {
        type Weights = __m512i;
        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the machine has AVX-512.
            Avx512Sums(unsafe { _mm512_setzero_si512() })
        }
        #[inline(always)]
        unsafe fn load(weights: &[i16; 2 * TILE]) -> Self::Weights {
            // SAFETY: the machine has AVX-512, and 32 integers are a vector.
            unsafe { _mm512_loadu_si512(weights.as_ptr().cast()) }
        }
        #[inline(always)]
        unsafe fn multiply_add(self, weights: Self::Weights, x: i32) -> Self {
            // SAFETY: the machine has AVX-512 with VNNI.
            unsafe {
                let x = _mm512_set1_epi32(x);
                Avx512Sums(_mm512_dpwssd_epi32(self.0, weights, x))
            }
        }
        #[inline(always)]
        unsafe fn to_array(self) -> [i32; TILE] {
            let mut array = [0; TILE];
            // SAFETY: the machine has AVX-512, and 16 integers are a vector.
            unsafe { _mm512_storeu_si512(array.as_mut_ptr().cast(), self.0) };
            array
        }
    }

    /// # Safety
    /// The machine has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn multiply_avx2(call: &DenseCall<'_>, results: &mut Results) {
        // SAFETY: this function's own obligation.
        unsafe { few_rows::<Avx2Sums>(call, results) };
    }

    /// # Safety
    /// The machine has AVX-512 F, BW and VNNI.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn multiply_avx512(call: &DenseCall<'_>, results: &mut Results) {
        // SAFETY: this function's own obligation.
        unsafe { multiply::<Avx512Sums>(call, results) };
    }

    /// # Safety
    /// The machine has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn quantize_avx2(x: &[f32], out: &mut [i16]) -> f32 {
        quantize(x, out)
    }
}
