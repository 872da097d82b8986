//! `exp` as plain arithmetic: the same bits wherever it is compiled, because nothing in it is fused or
//! reordered.
//!
//! `exp(x) = 2^n * exp(r)` with `n = round(x / ln 2)` and `|r| <= ln 2 / 2`. A Taylor polynomial of degree 6
//! keeps the relative error below 3e-7, and `exp(0)` is exactly 1.

/// Below this the result is flat (about 1.2e-38), above [`LARGEST`] it is flat too (about 2.4e38).
const SMALLEST: f32 = -87.3;
const LARGEST: f32 = 88.3;

/// 1.5 * 2^23: adding it rounds to an integer, which is then found in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// ln 2 in two parts; the first has few bits, so that its product with `n` is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `exp(x)`, flat outside -87.3 to 88.3. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < SMALLEST { SMALLEST } else { x };
    let x = if x > LARGEST { LARGEST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut sum = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_add(127) << 23;
    sum * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_exact_value() {
        let mut worst = 0f64;
        for step in -870_000..=880_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 3e-7, "largest relative error {worst:.2e}");
    }

    #[test]
    fn exp_of_special_values_is_sane() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::INFINITY) > 2e38 && exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }
}
