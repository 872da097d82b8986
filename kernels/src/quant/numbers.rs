//! Half precision and bf16, to and from f32.

/// The exact value of a half-precision number.
pub fn f32_from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 31;
    let fraction = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        // A multiple of 2^-24; both factors and the product are exact.
        0 => (fraction as f32 * 2f32.powi(-24)).to_bits(),
        // Infinity, or a NaN made quiet as the hardware conversions do.
        31 => 0x7f80_0000 | fraction << 13 | if fraction == 0 { 0 } else { 0x40_0000 },
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest half-precision number, ties to even; beyond its range infinity.
pub fn f16_from_f32(value: f32) -> u16 {
    let sign = ((value.to_bits() >> 16) & 0x8000) as u16;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    match magnitude {
        // Below 2^-14: a multiple of 2^-24. Scaling by a power of two is exact, so this rounds once.
        0..0x3880_0000 => sign | (value.abs() * 2f32.powi(24)).round_ties_even() as u16,
        0x3880_0000..0x4780_0000 => {
            let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
            sign | ((rounded - 0x3800_0000) >> 13) as u16
        }
        0x4780_0000..=0x7f80_0000 => sign | 0x7c00,
        _ => sign | 0x7e00,
    }
}

/// The exact value of a bf16 number.
pub fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bf16 number, ties to even; a NaN stays one.
#[inline]
pub fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_to_f32_and_back() {
        for bits in 0..=u16::MAX {
            let value = f32_from_f16(bits);
            if value.is_nan() {
                assert!(f32_from_f16(f16_from_f32(value)).is_nan());
            } else {
                assert_eq!(f16_from_f32(value), bits, "{value}");
            }
            let value = f32_from_bf16(bits);
            if value.is_nan() {
                assert!(f32_from_bf16(bf16_from_f32(value)).is_nan());
            } else {
                assert_eq!(bf16_from_f32(value), bits, "{value}");
            }
        }
    }

    #[test]
    fn halves_have_the_values_the_standard_gives_them() {
        let cases = [
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(f32_from_f16(bits), value);
        }
    }

    #[test]
    fn conversions_round_to_nearest_even() {
        assert_eq!(f16_from_f32(1.0 + 2f32.powi(-11)), 0x3c00);
        assert_eq!(f16_from_f32(1.0 + 3.0 * 2f32.powi(-11)), 0x3c02);
        assert_eq!(f16_from_f32(65519.0), 0x7bff);
        assert_eq!(f16_from_f32(65520.0), 0x7c00);
        assert_eq!(f16_from_f32(1e30), 0x7c00);
        assert_eq!(f16_from_f32(2f32.powi(-25)), 0);
        assert_eq!(f16_from_f32(1.5 * 2f32.powi(-24)), 2);
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f81_8000)), 0x3f82);
    }
}
