//! Activations of MLPs, and other functions of single elements.
//!
//! Plain arithmetic in a fixed order: the same bits on every ISA. The AVX2 variants are the same code
//! compiled for wider registers.

use super::exponential::exp;
use super::tanh::tanh;
use crate::{Activation, Elementwise};

/// `out[i] = activation(x[i]) * x[n + i]` of one row of `2n` elements.
pub(crate) fn gated_scalar(x: &[f32], activation: Activation, out: &mut [f32]) {
    gated(x, activation, out);
}

/// [`gated_scalar`] compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn gated_avx2(x: &[f32], activation: Activation, out: &mut [f32]) {
    gated(x, activation, out);
}

/// `x[i] = function(x[i])`.
pub(crate) fn elementwise_scalar(x: &mut [f32], function: Elementwise) {
    elementwise(x, function);
}

/// [`elementwise_scalar`] compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn elementwise_avx2(x: &mut [f32], function: Elementwise) {
    elementwise(x, function);
}

/// `x[i] = activation(x[i])`, compiled with the features of its caller.
#[inline(always)]
pub(crate) fn activate(x: &mut [f32], activation: Activation) {
    match activation {
        Activation::Silu => each(x, silu),
        Activation::Gelu => each(x, gelu),
        Activation::GeluTanh => each(x, gelu_tanh),
        Activation::ClampedSwish => each(x, clamped_swish),
    }
}

#[inline(always)]
fn gated(x: &[f32], activation: Activation, out: &mut [f32]) {
    // One loop each, so that nothing is asked for every element.
    match activation {
        Activation::Silu => gate(x, silu, out),
        Activation::Gelu => gate(x, gelu, out),
        Activation::GeluTanh => gate(x, gelu_tanh, out),
        Activation::ClampedSwish => {
            let (gate, up) = x.split_at(out.len());
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = clamped_swish(*gate) * (up.clamp(-LIMIT, LIMIT) + 1.0);
            }
        }
    }
}

#[inline(always)]
fn gate(x: &[f32], activation: impl Fn(f32) -> f32, out: &mut [f32]) {
    let (gate, up) = x.split_at(out.len());
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = activation(*gate) * up;
    }
}

#[inline(always)]
fn elementwise(x: &mut [f32], function: Elementwise) {
    match function {
        Elementwise::Scale(factor) => each(x, |x| x * factor),
        Elementwise::SoftCap(cap) => each(x, |x| cap * tanh(x / cap)),
        Elementwise::Activate(activation) => activate(x, activation),
    }
}

#[inline(always)]
fn each(x: &mut [f32], function: impl Fn(f32) -> f32) {
    for x in x {
        *x = function(*x);
    }
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

const LIMIT: f32 = Activation::CLAMPED_SWISH_LIMIT;

#[inline(always)]
fn clamped_swish(x: f32) -> f32 {
    // Not `min`, which drops NaN.
    let x = if x > LIMIT { LIMIT } else { x };
    x / (1.0 + exp(-Activation::CLAMPED_SWISH_FACTOR * x))
}

/// `1 + tanh(u)` is `2 / (1 + exp(-2 u))`, which keeps its digits where `u` is far below 0.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
    x / (1.0 + exp(-TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * (x * x * x))))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * erfc(-std::f32::consts::FRAC_1_SQRT_2 * x)
}

/// The complementary error function `1 - erf(x)`, relative error of the formula below 1.2e-7. Source:
/// Numerical Recipes, `erfcc`.
#[inline(always)]
fn erfc(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.5 * size);
    let mut sum = 0.170_872_77;
    for coefficient in [
        -0.822_152_2,
        1.488_515_9,
        -1.135_204,
        0.278_868_08,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        sum = sum * t + coefficient;
    }
    let above = t * exp(sum - size * size);
    if x < 0.0 { 2.0 - above } else { above }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_is_close_to_the_exact_value() {
        let gate: Vec<f32> = (-3000..3000).map(|i| i as f32 * 0.01).collect();
        let up = vec![1.5; gate.len()];
        let mut out = vec![f32::NAN; gate.len()];
        gated_scalar(&[gate.clone(), up].concat(), Activation::Silu, &mut out);
        for (gate, out) in gate.into_iter().zip(out) {
            let exact = f64::from(gate) / (1.0 + (-f64::from(gate)).exp()) * 1.5;
            assert!(
                (f64::from(out) - exact).abs() <= 1e-6 * exact.abs(),
                "silu({gate}) = {out}"
            );
        }
    }

    #[test]
    fn silu_of_special_values_is_sane() {
        let mut out = [0.0; 5];
        let gate = [f32::NAN, f32::INFINITY, 1e30, -1e30, -0.0];
        gated_scalar(&[gate, [1.0; 5]].concat(), Activation::Silu, &mut out);
        assert!(out[0].is_nan());
        assert_eq!(out[1..3], [f32::INFINITY, 1e30]);
        assert!(out[3].abs() < 1e-7, "{}", out[3]);
        assert_eq!(out[4], 0.0);
    }

    #[test]
    fn both_kinds_of_gelu_are_close_to_each_other_and_sane_at_the_ends() {
        for step in -1000..=1000 {
            let x = step as f32 * 0.01;
            let (exact, by_tanh) = (gelu(x), gelu_tanh(x));
            assert!((exact - by_tanh).abs() < 6e-4, "{x}: {exact} and {by_tanh}");
        }
        for gelu in [gelu, gelu_tanh] {
            assert!(gelu(f32::NAN).is_nan());
            assert_eq!(
                (gelu(0.0), gelu(f32::INFINITY), gelu(1e30)),
                (0.0, f32::INFINITY, 1e30)
            );
            assert!(gelu(-9.0).abs() < 1e-5);
        }
    }
}
