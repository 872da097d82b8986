//! RMSNorm and LayerNorm of a row, alone or after adding to the residual stream.
//!
//! Sums run in [`LANES`] partial sums (element `i` belongs to sum `i % LANES`) that are added pairwise at the
//! end: one order, whatever the batch, the thread or the ISA. Nothing is fused.

use crate::NormKind;

/// Partial sums: four 256-bit registers, enough to hide the latency of an addition.
const LANES: usize = 32;

/// A normalization with its weights at hand, one for each element of a row.
#[derive(Clone, Copy)]
pub(crate) struct RowNorm<'a> {
    pub(crate) kind: NormKind,
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
}

/// `out = norm(x)`.
pub(crate) fn norm_scalar(x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
    normalize(x, norm, out);
}

/// `residual[i] += delta[i]`, then `out = norm(residual)`.
pub(crate) fn add_norm_scalar(residual: &mut [f32], delta: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
    add(residual, delta);
    normalize(residual, norm, out);
}

/// `residual[i] += delta[i]`.
pub(crate) fn add_scalar(residual: &mut [f32], delta: &[f32]) {
    add(residual, delta);
}

/// [`norm_scalar`] compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn norm_avx2(x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
    normalize(x, norm, out);
}

/// [`add_norm_scalar`] compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn add_norm_avx2(residual: &mut [f32], delta: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
    add(residual, delta);
    normalize(residual, norm, out);
}

/// [`add_scalar`] compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn add_avx2(residual: &mut [f32], delta: &[f32]) {
    add(residual, delta);
}

#[inline(always)]
fn add(residual: &mut [f32], delta: &[f32]) {
    for (residual, delta) in residual.iter_mut().zip(delta) {
        *residual += delta;
    }
}

#[inline(always)]
fn normalize(x: &[f32], norm: &RowNorm<'_>, out: &mut [f32]) {
    match norm.kind {
        NormKind::Rms => {
            let scale = inverse_rms(x, norm.eps);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(norm.weight) {
                *out = x * scale * weight;
            }
        }
        NormKind::Layer => {
            let mean = sum(x, |x| x) / x.len() as f32;
            for (out, x) in out.iter_mut().zip(x) {
                *out = x - mean;
            }
            let scale = inverse_rms(out, norm.eps);
            for (out, weight) in out.iter_mut().zip(norm.weight) {
                *out = *out * scale * weight;
            }
        }
    }
    if let Some(bias) = norm.bias {
        add(out, bias);
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(crate) fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt()
}

/// `sum_i f(x[i])`.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f(*x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += f(*x);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rms(weight: &[f32], eps: f32) -> RowNorm<'_> {
        RowNorm {
            kind: NormKind::Rms,
            weight,
            bias: None,
            eps,
        }
    }

    #[test]
    fn a_norm_is_close_to_the_exact_value_at_every_width() {
        for width in (1..100).chain([576, 1000]) {
            let x: Vec<f32> = (0..width)
                .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03)
                .collect();
            let weight: Vec<f32> = (0..width).map(|i| 1.0 + (i % 7) as f32).collect();
            let mut out = vec![f32::NAN; width];
            norm_scalar(&x, &rms(&weight, 1e-5), &mut out);
            let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let scale = 1.0 / (squares / width as f64 + 1e-5).sqrt();
            for i in 0..width {
                let exact = f64::from(x[i]) * f64::from(weight[i]) * scale;
                assert!(
                    (f64::from(out[i]) - exact).abs() <= 1e-6 * exact.abs(),
                    "width {width}"
                );
            }
        }
    }

    #[test]
    fn adding_first_is_the_norm_of_the_sum() {
        let mut residual: Vec<f32> = (0..77).map(|i| i as f32 * 0.1 - 3.0).collect();
        let delta: Vec<f32> = (0..77).map(|i| (i % 5) as f32).collect();
        let weight = vec![1.5; 77];
        let sum: Vec<f32> = residual.iter().zip(&delta).map(|(a, b)| a + b).collect();
        let (mut direct, mut fused) = (vec![0.0; 77], vec![0.0; 77]);
        norm_scalar(&sum, &rms(&weight, 1e-6), &mut direct);
        add_norm_scalar(&mut residual, &delta, &rms(&weight, 1e-6), &mut fused);
        assert_eq!(residual, sum);
        assert_eq!(fused, direct);
    }
}
