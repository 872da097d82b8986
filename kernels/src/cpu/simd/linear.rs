//! Kernels of the linear layers, one table of function pointers per instruction set.
//!
//! A kernel multiplies one tile of 16 output columns with up to 16 rows over the whole depth. Per output of a
//! quantized layer, 32 inputs at a time ascending, in this order and never another (C1, and the same bits on
//! every instruction set):
//!
//! ```text
//! t   = f32(sum of scales[i / 16] * value[i] * activation[i])     exact: below 2^24
//! u   = t * scale                                                 one rounding
//! sum = fma(u, activation_scale, sum)                             one rounding
//!
//! with a min of 32 weights:
//! sum = fma(min * mins, activation_scale * activation_sum, sum)   min * mins is exact
//! with minima of 16:
//! m   = f32(mins[0] * activation_sum[0] + mins[1] * activation_sum[1]) * min
//! sum = fma(m, activation_scale, sum)
//! ```
//!
//! (`scale * scales` is exact too, so it may be multiplied first where there is one scale for all 32.)
//!
//! Of a plain one, inputs ascending: `sum = fma(weight, x, sum)`.
//!
//! The helpers are `inline(always)` without a target feature and the kernels have the features, so that one
//! binary holds every instruction set and chooses while it runs.

use super::linear_scalar;
#[cfg(target_arch = "x86_64")]
use super::{linear_avx2, linear_avx512};
use crate::cpu::activations::QuantizeRow;
use crate::cpu::isa::Isa;
use crate::quant::Format;

/// One tile times the rows of one panel.
pub(crate) struct TileCall {
    /// Rows, 1..=16.
    pub(crate) n_rows: usize,
    /// A tile in the layout of the kernel's format, `depth` steps deep.
    pub(crate) tile: *const u8,
    /// Quantized formats: a panel of `n_rows` rows and the inputs of `depth` blocks. Plain formats: f32 rows
    /// of `depth` elements, one after the other.
    pub(crate) input: *const u8,
    /// Blocks, or inputs of the plain formats.
    pub(crate) depth: usize,
    /// Where 16 results of each row go.
    pub(crate) output: *mut f32,
    /// Elements from one row of the output to the next.
    pub(crate) stride: usize,
    /// What to fetch meanwhile.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only x86 kernels prefetch")
    )]
    pub(crate) prefetch: Prefetch,
}

/// What a kernel asks the caches for while it runs: `bytes_per_block` more for each 32 inputs.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "only x86 kernels prefetch")
)]
pub(crate) struct Prefetch {
    pub(crate) start: *const u8,
    pub(crate) bytes_per_block: usize,
}

/// Obligations of the caller:
///
/// * the machine has the kernel's instruction set,
/// * tile and input are readable as [`TileCall`] says,
/// * output is writable: 16 elements at each multiple of the stride below `n_rows`, by nobody else meanwhile.
pub(crate) type TileKernel = unsafe fn(&TileCall);

/// Obligations of the caller:
///
/// * the machine has the kernel's instruction set,
/// * the source is a whole number of blocks, and the panel is writable for as many records; the part of
///   the row in each is written by nobody else meanwhile.
pub(crate) type QuantizeKernel = unsafe fn(&[f32], &QuantizeRow);

/// The linear layers' kernels of one instruction set.
pub(crate) struct LinearKernels {
    pub(crate) quantize_row: QuantizeKernel,
    pub(crate) f32: TileKernel,
    pub(crate) f16: TileKernel,
    pub(crate) bf16: TileKernel,
    /// The kernel of a quantized format.
    pub(crate) quantized: fn(Format) -> TileKernel,
}

impl LinearKernels {
    /// Those of `isa`, which the machine has.
    pub(crate) fn of(isa: Isa) -> &'static LinearKernels {
        assert!(isa.is_available(), "this machine has no {}", isa.name());
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &linear_avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &linear_avx2::KERNELS,
            _ => &linear_scalar::KERNELS,
        }
    }

    /// The kernel for weights in `format`.
    pub(crate) fn tile(&self, format: Format) -> TileKernel {
        match format {
            Format::F32 => self.f32,
            Format::F16 => self.f16,
            Format::Bf16 => self.bf16,
            _ => (self.quantized)(format),
        }
    }
}
