//! Kernels per instruction set.

#[cfg(target_arch = "x86_64")]
pub(crate) mod attention_avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod attention_avx512;
pub(crate) mod attention_lanes;
pub(crate) mod lanes;
pub(crate) mod linear;
#[cfg(target_arch = "x86_64")]
mod linear_avx2;
#[cfg(target_arch = "x86_64")]
mod linear_avx512;
mod linear_float;
mod linear_scalar;
#[cfg(test)]
mod simulated;

#[cfg(target_arch = "x86_64")]
mod arch {
    pub(crate) use std::arch::x86_64::*;
}
