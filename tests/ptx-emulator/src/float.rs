//! Conversions between f32 and the small floating-point formats: f16, bf16, e4m3.

pub(crate) fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

pub(crate) fn bits_of(value: f32) -> u64 {
    u64::from(value.to_bits())
}

pub(crate) fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Nearest, ties to even; every NaN becomes the canonical one, as the hardware does.
pub(crate) fn bf16_from_f32(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

pub(crate) fn f32_from_f16(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (
        u32::from(bits >> 15) << 31,
        bits >> 10 & 31,
        u32::from(bits & 0x3ff),
    );
    let magnitude = match exponent {
        0 => return f32::from_bits(sign | (fraction as f32 * 2f32.powi(-24)).to_bits()),
        31 => 0x7f80_0000 | fraction << 13,
        _ => (u32::from(exponent) + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// Nearest, ties to even.
pub(crate) fn f16_from_f32(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = value.abs();
    if value.is_nan() {
        return 0x7fff;
    }
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    if magnitude < 2f32.powi(-14) {
        return sign | (magnitude * 2f32.powi(24)).round_ties_even() as u16;
    }
    let bits = magnitude.to_bits() - (112 << 23);
    sign | ((bits + 0xfff + (bits >> 13 & 1)) >> 13) as u16
}

/// e4m3 (no infinities): nearest even, saturating at 448.
pub(crate) fn e4m3_from_f32(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24 & 0x80) as u8;
    let magnitude = value.abs();
    if value.is_nan() {
        return 0x7f;
    }
    if magnitude >= 448.0 {
        return sign | 0x7e;
    }
    if magnitude < 2f32.powi(-6) {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits() - (120 << 23);
    sign | ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) as u8
}

pub(crate) fn f32_from_e4m3(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 512.0,
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 != 0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_formats_survive_a_round_trip() {
        for bits in 0..=u16::MAX {
            if !f32_from_f16(bits).is_nan() {
                assert_eq!(f16_from_f32(f32_from_f16(bits)), bits);
            }
            if !f32_from_bf16(bits).is_nan() {
                assert_eq!(bf16_from_f32(f32_from_bf16(bits)), bits);
            }
        }
        for bits in 0..=u8::MAX {
            if !f32_from_e4m3(bits).is_nan() {
                assert_eq!(e4m3_from_f32(f32_from_e4m3(bits)), bits);
            }
        }
    }
}
