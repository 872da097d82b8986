//! SiLU of the gate times the up projection.
//!
//! Plain arithmetic in a fixed order: the same bits on every ISA. The AVX2 variant is the same code compiled
//! for wider registers.

use super::exponential::exp;

#[inline(always)]
fn body(x: &[f32], out: &mut [f32]) {
    let (gate, up) = x.split_at(out.len());
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// `out[i] = silu(x[i]) * x[n + i]`, `silu(a) = a / (1 + exp(-a))`, of one row of `2n` elements.
pub(crate) fn silu_mul_scalar(x: &[f32], out: &mut [f32]) {
    body(x, out);
}

/// [`silu_mul_scalar`] compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn silu_mul_avx2(x: &[f32], out: &mut [f32]) {
    body(x, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_is_close_to_the_exact_value() {
        let gate: Vec<f32> = (-3000..3000).map(|i| i as f32 * 0.01).collect();
        let up = vec![1.5; gate.len()];
        let mut out = vec![f32::NAN; gate.len()];
        silu_mul_scalar(&[gate.clone(), up].concat(), &mut out);
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
        silu_mul_scalar(&[gate, [1.0; 5]].concat(), &mut out);
        assert!(out[0].is_nan());
        assert_eq!(out[1..3], [f32::INFINITY, 1e30]);
        assert!(out[3].abs() < 1e-7, "{}", out[3]);
        assert_eq!(out[4], 0.0);
    }
}
