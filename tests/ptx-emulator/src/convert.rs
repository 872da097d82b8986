//! `cvt`: conversions between integers and floating-point formats.

use crate::float::{
    bf16_from_f32, bits_of, e4m3_from_f32, f16_from_f32, f32_from_bf16, f32_from_e4m3, f32_from_f16, f32_of,
};
use crate::integer::{low, sign_extended};
use crate::isa::{Conversion, Round, Ty};

/// The converted bits of `a`, and of `b` where two values are packed.
pub(crate) fn convert(kind: &Conversion, a: u64, b: Option<u64>) -> Result<u64, String> {
    let Conversion { to, from, .. } = *kind;
    if let Some(b) = b {
        return packed(kind, f32_of(a), f32_of(b));
    }
    if from == Ty::E4m3x2 && to == Ty::F16x2 {
        let half = |byte: u8| u64::from(f16_from_f32(f32_from_e4m3(byte)));
        return Ok(half((a >> 8) as u8) << 16 | half(a as u8));
    }
    if to == Ty::Tf32 {
        return Ok((a + 0x1000) & 0xffff_e000);
    }
    let bits = from.bytes() as u32 * 8;
    let integer = match from.is_signed() {
        true => i128::from(sign_extended(a, bits) as i64),
        false => i128::from(a & low(bits)),
    };
    let value = match from {
        Ty::F32 => Some(f64::from(f32_of(a))),
        Ty::F64 => Some(f64::from_bits(a)),
        Ty::F16 => Some(f64::from(f32_from_f16(a as u16))),
        Ty::Bf16 => Some(f64::from(f32_from_bf16(a as u16))),
        _ => None,
    };
    if to.is_float() {
        return Ok(to_float(kind, value, integer));
    }
    Ok(to_integer(kind, value, integer))
}

/// Two values in one register; the first is the upper half.
fn packed(kind: &Conversion, high: f32, low: f32) -> Result<u64, String> {
    let clip = |x: f32| {
        if kind.relu && (x.is_nan() || x < 0.0) {
            0.0
        } else {
            x
        }
    };
    let (high, low) = (clip(high), clip(low));
    Ok(match kind.to {
        Ty::Bf16x2 => u64::from(bf16_from_f32(high)) << 16 | u64::from(bf16_from_f32(low)),
        Ty::F16x2 => u64::from(f16_from_f32(high)) << 16 | u64::from(f16_from_f32(low)),
        Ty::E4m3x2 => u64::from(e4m3_from_f32(high)) << 8 | u64::from(e4m3_from_f32(low)),
        other => return Err(format!("cvt of two values to {other:?} is not supported")),
    })
}

fn whole(x: f64, round: Round) -> f64 {
    match round {
        Round::IntNearest => x.round_ties_even(),
        Round::IntZero => x.trunc(),
        Round::IntDown => x.floor(),
        Round::IntUp => x.ceil(),
        _ => x,
    }
}

fn to_float(kind: &Conversion, value: Option<f64>, integer: i128) -> u64 {
    let mut x = whole(value.unwrap_or(integer as f64), kind.round);
    if kind.ftz && (x as f32).is_subnormal() {
        x = 0f64.copysign(x);
    }
    if kind.sat {
        x = if x > 0.0 { x.min(1.0) } else { 0.0 };
    }
    if kind.relu && (x.is_nan() || x < 0.0) {
        x = 0.0;
    }
    match kind.to {
        Ty::F64 => x.to_bits(),
        Ty::F32 if value.is_none() => bits_of(integer as f32),
        Ty::F32 => {
            let nearest = x as f32;
            let is_larger = f64::from(nearest.abs()) > x.abs();
            bits_of(if kind.round == Round::ToZero && is_larger {
                f32::from_bits(nearest.to_bits() - 1)
            } else {
                nearest
            })
        }
        Ty::F16 => u64::from(f16_from_f32(x as f32)),
        _ => u64::from(bf16_from_f32(x as f32)),
    }
}

fn to_integer(kind: &Conversion, value: Option<f64>, integer: i128) -> u64 {
    let bits = kind.to.bytes() as u32 * 8;
    let (least, most) = match kind.to.is_signed() {
        true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
        false => (0, (1i128 << bits) - 1),
    };
    let result = match value {
        Some(x) if x.is_nan() => 0,
        Some(x) => {
            let round = if kind.round == Round::None {
                Round::IntZero
            } else {
                kind.round
            };
            (whole(x, round) as i128).clamp(least, most)
        }
        None if kind.sat => integer.clamp(least, most),
        None => integer,
    };
    result as u64 & low(bits)
}
