//! Hyperbolic tangent as plain arithmetic: the same bits wherever it is compiled, because nothing in it
//! is fused or reordered.
//!
//! `tanh(x) = x P(x^2) / Q(x^2)`, a rational minimax approximation (source: Eigen's `ptanh`) with an absolute
//! error below 4e-7, flat beyond [`TANH_FLAT`].

/// From here on the result is the same, 1 within the error.
pub(crate) const TANH_FLAT: f32 = 7.905_311;

/// P, highest power first.
pub(crate) const TANH_NUMERATOR: [f32; 7] = [
    -2.760_768_4e-16,
    2.000_188e-13,
    -8.604_672e-11,
    5.122_297_3e-8,
    1.485_722_35e-5,
    6.372_619_5e-4,
    4.893_524_6e-3,
];

/// Q, highest power first.
pub(crate) const TANH_DENOMINATOR: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_7e-3, 4.893_525e-3];

/// `tanh(x)`. NaN stays NaN.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let x = if x < -TANH_FLAT { -TANH_FLAT } else { x };
    let x = if x > TANH_FLAT { TANH_FLAT } else { x };
    let square = x * x;
    let mut numerator = TANH_NUMERATOR[0];
    for coefficient in &TANH_NUMERATOR[1..] {
        numerator = numerator * square + coefficient;
    }
    let mut denominator = TANH_DENOMINATOR[0];
    for coefficient in &TANH_DENOMINATOR[1..] {
        denominator = denominator * square + coefficient;
    }
    x * numerator / denominator
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_close_to_the_exact_value() {
        let mut worst = 0f64;
        for step in -100_000..=100_000 {
            let x = step as f32 * 1.3e-4;
            worst = worst.max((f64::from(tanh(x)) - f64::from(x).tanh()).abs());
        }
        assert!(worst < 4e-7, "largest absolute error {worst:.2e}");
    }

    #[test]
    fn tanh_of_special_values_is_sane() {
        assert_eq!((tanh(0.0), tanh(-0.0)), (0.0, 0.0));
        assert!(tanh(f32::NAN).is_nan());
        assert!((tanh(f32::INFINITY) - 1.0).abs() < 4e-7 && (tanh(f32::NEG_INFINITY) + 1.0).abs() < 4e-7);
        assert_eq!(tanh(1e30), tanh(8.0));
    }
}
