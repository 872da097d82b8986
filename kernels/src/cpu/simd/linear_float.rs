//! Linear layers with F32, F16 and Bf16 weights: one algorithm, generic over the lanes of an instruction set.
//!
//! A lane is an output column; each adds `fma(weight, x, sum)` over the inputs ascending, so that lanes of
//! any number give the same bits.

use super::linear::TileCall;
use crate::cpu::layout::TILE_COLUMNS;
use crate::quant::{f32_from_bf16, f32_from_f16};

/// A vector of f32 whose number of lanes divides 16.
///
/// # Safety
/// * Every method needs a machine that has the instruction set; pointers are valid for `N` elements.
pub(crate) trait Lanes: Copy {
    const N: usize;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_f32(at: *const u8) -> Self;
    unsafe fn load_f16(at: *const u8) -> Self;
    unsafe fn load_bf16(at: *const u8) -> Self;
    /// `self * factor + sum`, one rounding.
    unsafe fn fma(self, factor: Self, sum: Self) -> Self;
    unsafe fn store(self, at: *mut f32);
}

/// How weights become f32.
pub(crate) trait Element {
    const BYTES: usize;
    /// # Safety
    /// As for [`Lanes`].
    unsafe fn load<V: Lanes>(at: *const u8) -> V;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> V {
        // SAFETY: the caller's obligations are the callee's.
        unsafe { V::load_f32(at) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> V {
        // SAFETY: the caller's obligations are the callee's.
        unsafe { V::load_f16(at) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> V {
        // SAFETY: the caller's obligations are the callee's.
        unsafe { V::load_bf16(at) }
    }
}

/// One tile times 1..=16 rows, eight rows at a time (their sums stay in registers), then fewer.
///
/// # Safety
/// As for [`super::linear::TileKernel`].
#[inline(always)]
pub(crate) unsafe fn tile<V: Lanes, E: Element>(call: &TileCall) {
    let mut first = 0;
    while first < call.n_rows {
        // SAFETY: the rows first..first + R are rows of the call.
        first += unsafe {
            match call.n_rows - first {
                8.. => rows::<V, E, 8>(call, first),
                4.. => rows::<V, E, 4>(call, first),
                2.. => rows::<V, E, 2>(call, first),
                _ => rows::<V, E, 1>(call, first),
            }
        };
    }
}

/// # Safety
/// As for [`super::linear::TileKernel`]; `first + R <= n_rows`.
#[inline(always)]
unsafe fn rows<V: Lanes, E: Element, const R: usize>(call: &TileCall, first: usize) -> usize {
    let x = call.input.cast::<f32>().wrapping_add(first * call.depth);
    for lane in (0..TILE_COLUMNS).step_by(V::N) {
        // SAFETY: lane + N <= 16 columns of a tile of `depth` steps; R rows of `depth` inputs from `first`;
        // 16 writable outputs a row.
        unsafe {
            let mut sums = [V::zero(); R];
            let mut weights = call.tile.add(lane * E::BYTES);
            for input in 0..call.depth {
                let weight = E::load::<V>(weights);
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = weight.fma(V::splat(*x.add(row * call.depth + input)), *sum);
                }
                weights = weights.wrapping_add(TILE_COLUMNS * E::BYTES);
            }
            for (row, sum) in sums.into_iter().enumerate() {
                sum.store(call.output.add((first + row) * call.stride + lane));
            }
        }
    }
    R
}

/// Four lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct ScalarLanes([f32; 4]);

impl ScalarLanes {
    /// # Safety
    /// * `at` is readable for four elements of `T`.
    #[inline(always)]
    unsafe fn load<T: Copy>(at: *const u8, value: impl Fn(T) -> f32) -> Self {
        // SAFETY: readable by the caller's promise, whatever its alignment.
        let elements = unsafe { at.cast::<[T; 4]>().read_unaligned() };
        ScalarLanes(elements.map(value))
    }
}

impl Lanes for ScalarLanes {
    const N: usize = 4;
    unsafe fn zero() -> Self {
        ScalarLanes([0.0; 4])
    }
    unsafe fn splat(value: f32) -> Self {
        ScalarLanes([value; 4])
    }
    unsafe fn load_f32(at: *const u8) -> Self {
        // SAFETY: readable for four f32 by the trait's obligation.
        unsafe { Self::load(at, |value: f32| value) }
    }
    unsafe fn load_f16(at: *const u8) -> Self {
        // SAFETY: readable for four f16 by the trait's obligation.
        unsafe { Self::load(at, f32_from_f16) }
    }
    unsafe fn load_bf16(at: *const u8) -> Self {
        // SAFETY: readable for four bf16 by the trait's obligation.
        unsafe { Self::load(at, f32_from_bf16) }
    }
    unsafe fn fma(self, factor: Self, sum: Self) -> Self {
        ScalarLanes(std::array::from_fn(|lane| {
            self.0[lane].mul_add(factor.0[lane], sum.0[lane])
        }))
    }
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: writable for four f32 by the trait's obligation.
        unsafe { at.cast::<[f32; 4]>().write(self.0) }
    }
}
