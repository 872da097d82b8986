//! Integer and bit instructions, lane by lane, and the operations of atomics.

use crate::arithmetic::{Lanes, lanes};
use crate::float::{bits_of, f32_of};
use crate::isa::{Alu, Reduce, Ty};

/// The `bits` low bits.
pub(crate) fn low(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// The `bits` low bits of `value` as a signed number.
pub(crate) fn sign_extended(value: u64, bits: u32) -> u64 {
    ((value << (64 - bits)) as i64 >> (64 - bits)) as u64
}

/// What an integer instruction computes of operands of `ty`.
pub(crate) fn integer(f: Alu, ty: Ty, s: &[Lanes; 4]) -> Result<Lanes, String> {
    let bits = ty.bytes() as u32 * 8;
    let keep = low(bits);
    let signed = ty.is_signed();
    let wide = |x: u64| if signed { sign_extended(x, bits) } else { x & keep };
    let high = |a: u64, b: u64| {
        let product = match signed {
            true => (i128::from(wide(a) as i64) * i128::from(wide(b) as i64)) as u128,
            false => u128::from(wide(a)) * u128::from(wide(b)),
        };
        (product >> bits) as u64
    };
    let ordered = |a: u64, b: u64| {
        if signed {
            (wide(a) as i64) < wide(b) as i64
        } else {
            wide(a) < wide(b)
        }
    };
    Ok(match f {
        Alu::Mov => lanes(s, |a, _, _| a & keep),
        Alu::Add => lanes(s, |a, b, _| a.wrapping_add(b) & keep),
        Alu::Sub => lanes(s, |a, b, _| a.wrapping_sub(b) & keep),
        Alu::Mul => lanes(s, |a, b, _| a.wrapping_mul(b) & keep),
        Alu::Mad => lanes(s, |a, b, c| a.wrapping_mul(b).wrapping_add(c) & keep),
        Alu::MulWide => lanes(s, |a, b, _| wide(a).wrapping_mul(wide(b)) & low(bits * 2)),
        Alu::MadWide => lanes(s, |a, b, c| {
            wide(a).wrapping_mul(wide(b)).wrapping_add(c) & low(bits * 2)
        }),
        Alu::MulHi => lanes(s, |a, b, _| high(a, b) & keep),
        Alu::MadHi => lanes(s, |a, b, c| high(a, b).wrapping_add(c) & keep),
        // What a division by zero gives is not defined.
        Alu::Div => lanes(s, |a, b, _| match (wide(a), wide(b)) {
            (_, 0) => keep,
            (a, b) if signed => (a as i64).wrapping_div(b as i64) as u64 & keep,
            (a, b) => a / b,
        }),
        Alu::Rem => lanes(s, |a, b, _| match (wide(a), wide(b)) {
            (a, 0) => a & keep,
            (a, b) if signed => (a as i64).wrapping_rem(b as i64) as u64 & keep,
            (a, b) => a % b,
        }),
        Alu::Abs => lanes(s, |a, _, _| (wide(a) as i64).unsigned_abs() & keep),
        Alu::Neg => lanes(s, |a, _, _| a.wrapping_neg() & keep),
        Alu::Min => lanes(s, |a, b, _| if ordered(b, a) { b & keep } else { a & keep }),
        Alu::Max => lanes(s, |a, b, _| if ordered(a, b) { b & keep } else { a & keep }),
        Alu::And => lanes(s, |a, b, _| a & b & keep),
        Alu::Or => lanes(s, |a, b, _| (a | b) & keep),
        Alu::Xor => lanes(s, |a, b, _| (a ^ b) & keep),
        Alu::Not => lanes(s, |a, _, _| !a & keep),
        Alu::Shl => lanes(s, |a, b, _| {
            if b as u32 >= bits {
                0
            } else {
                a << (b as u32) & keep
            }
        }),
        Alu::Shr => lanes(s, |a, b, _| match (b as u32).min(bits) {
            by if signed => ((wide(a) as i64) >> by.min(63)) as u64 & keep,
            by if by >= bits => 0,
            by => wide(a) >> by,
        }),
        _ => return bit_field(f, ty, s),
    })
}

/// Instructions that move single bits and bytes.
fn bit_field(f: Alu, ty: Ty, s: &[Lanes; 4]) -> Result<Lanes, String> {
    let bits = ty.bytes() as u32 * 8;
    let keep = low(bits);
    Ok(match f {
        Alu::ShfLeft(wraps) => lanes(s, |a, b, c| (pair(a, b) << shift(c, wraps)) >> 32),
        Alu::ShfRight(wraps) => lanes(s, |a, b, c| pair(a, b) >> shift(c, wraps) & 0xffff_ffff),
        Alu::Bfe => lanes(s, |a, b, c| {
            let (position, length) = (b as u32 & 0xff, c as u32 & 0xff);
            if length == 0 || position >= bits {
                return 0;
            }
            let value = if ty.is_signed() {
                sign_extended(a, bits)
            } else {
                a & keep
            };
            let field = (value & keep) >> position & low(length);
            match ty.is_signed() {
                true => sign_extended(field, length.min(bits - position)) & keep,
                false => field,
            }
        }),
        Alu::Bfi => std::array::from_fn(|lane| {
            let (position, length) = (s[2][lane] as u32 & 0xff, s[3][lane] as u32 & 0xff);
            let field = if position >= bits {
                0
            } else {
                low(length) << position & keep
            };
            s[1][lane] & !field | s[0][lane].checked_shl(position).unwrap_or(0) & field
        }),
        Alu::Brev => lanes(s, |a, _, _| a.reverse_bits() >> (64 - bits)),
        Alu::Popc => lanes(s, |a, _, _| u64::from((a & keep).count_ones())),
        Alu::Clz => lanes(s, |a, _, _| u64::from((a & keep).leading_zeros() - (64 - bits))),
        Alu::Bfind => lanes(s, |a, _, _| match a & keep {
            0 => 0xffff_ffff,
            a => u64::from(63 - a.leading_zeros()),
        }),
        Alu::Prmt => lanes(s, permuted),
        Alu::Lop3 => std::array::from_fn(|lane| {
            let table = s[3][lane];
            let pick = |x: u64, is_set: bool| if is_set { x } else { !x };
            let term = |at: u64| {
                pick(s[0][lane], at & 4 != 0) & pick(s[1][lane], at & 2 != 0) & pick(s[2][lane], at & 1 != 0)
            };
            (0..8)
                .filter(|at| table >> at & 1 == 1)
                .fold(0, |out, at| out | term(at))
                & keep
        }),
        Alu::Dp4a(a_signed, b_signed) => lanes(s, |a, b, c| {
            let part = |x: u64, at: u32, signed: bool| match (x >> (at * 8)) as u8 {
                byte if signed => i64::from(byte as i8),
                byte => i64::from(byte),
            };
            let sum: i64 = (0..4)
                .map(|at| part(a, at, a_signed) * part(b, at, b_signed))
                .sum();
            c.wrapping_add(sum as u64) & 0xffff_ffff
        }),
        _ => return Err(format!("{f:?} of {ty:?} is not supported")),
    })
}

/// Two 32-bit registers as one.
fn pair(low_half: u64, high_half: u64) -> u64 {
    (high_half & 0xffff_ffff) << 32 | low_half & 0xffff_ffff
}

fn shift(by: u64, wraps: bool) -> u32 {
    if wraps {
        by as u32 & 31
    } else {
        (by as u32).min(32)
    }
}

/// `prmt`: each nibble of `select` names a byte of the pair; its top bit asks for that byte's sign instead.
fn permuted(a: u64, b: u64, select: u64) -> u64 {
    let bytes = pair(a, b).to_le_bytes();
    (0..4).fold(0, |out, at| {
        let nibble = select >> (at * 4) & 15;
        let byte = bytes[nibble as usize & 7];
        let byte = match nibble & 8 {
            0 => byte,
            _ => ((byte as i8) >> 7) as u8,
        };
        out | u64::from(byte) << (at * 8)
    })
}

/// What memory holds after an atomic, or a lane's part in `redux`.
pub(crate) fn reduce(f: Reduce, ty: Ty, old: u64, a: u64, b: u64) -> Result<u64, String> {
    let bits = ty.bytes() as u32 * 8;
    let order = |x: u64| match ty.is_signed() {
        true => i128::from(sign_extended(x, bits) as i64),
        false => i128::from(x & low(bits)),
    };
    Ok(match (f, ty) {
        (Reduce::Add, Ty::F32) => bits_of(f32_of(old) + f32_of(a)),
        (Reduce::Max, Ty::F32) => bits_of(f32_of(old).max(f32_of(a))),
        (Reduce::Min, Ty::F32) => bits_of(f32_of(old).min(f32_of(a))),
        (Reduce::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        (Reduce::Exch, _) => a,
        (Reduce::Cas, _) if order(old) == order(a) => b,
        (Reduce::Cas, _) => old,
        (_, ty) if ty.is_float() || matches!(ty, Ty::F16x2 | Ty::Bf16x2) => {
            return Err(format!("atomic {f:?} of {ty:?} is not supported"));
        }
        (Reduce::Add, _) => old.wrapping_add(a) & low(bits),
        (Reduce::Min, _) => {
            if order(a) < order(old) {
                a
            } else {
                old
            }
        }
        (Reduce::Max, _) => {
            if order(a) > order(old) {
                a
            } else {
                old
            }
        }
        (Reduce::And, _) => old & a,
        (Reduce::Or, _) => old | a,
        (Reduce::Xor, _) => old ^ a,
        (Reduce::Inc, _) => {
            if order(old) >= order(a) {
                0
            } else {
                old + 1
            }
        }
        (Reduce::Dec, _) => {
            if order(old) == 0 || order(old) > order(a) {
                a
            } else {
                old - 1
            }
        }
    })
}
