//! Instructions that compute a register from registers, lane by lane: floating point here, integers beside.
//!
//! Approximations (`ex2.approx`, `rsqrt.approx`, ...) give the nearest float; the hardware's differ by a few
//! units in the last place.

use crate::float::{bf16_from_f32, bits_of, f16_from_f32, f32_from_bf16, f32_from_f16, f32_of};
use crate::integer::{integer, low, sign_extended};
use crate::isa::{Alu, Cmp, FloatMode, Round, Ty};

/// The value of a register in each lane.
pub(crate) type Lanes = [u64; 32];

impl Alu {
    /// The operation of an instruction of this name that says all by it.
    pub(crate) fn named(name: &str) -> Option<Alu> {
        let names = [
            ("mul", Alu::Mul),
            ("add", Alu::Add),
            ("sub", Alu::Sub),
            ("fma", Alu::Fma),
            ("mad", Alu::Fma),
            ("div", Alu::Div),
            ("rem", Alu::Rem),
            ("abs", Alu::Abs),
            ("neg", Alu::Neg),
            ("min", Alu::Min),
            ("max", Alu::Max),
            ("and", Alu::And),
            ("or", Alu::Or),
            ("xor", Alu::Xor),
            ("not", Alu::Not),
            ("shl", Alu::Shl),
            ("shr", Alu::Shr),
            ("bfe", Alu::Bfe),
            ("bfi", Alu::Bfi),
            ("brev", Alu::Brev),
            ("popc", Alu::Popc),
            ("clz", Alu::Clz),
            ("bfind", Alu::Bfind),
            ("lop3", Alu::Lop3),
            ("rcp", Alu::Rcp),
            ("sqrt", Alu::Sqrt),
            ("rsqrt", Alu::Rsqrt),
            ("sin", Alu::Sin),
            ("cos", Alu::Cos),
            ("lg2", Alu::Lg2),
            ("ex2", Alu::Ex2),
            ("tanh", Alu::Tanh),
            ("copysign", Alu::Copysign),
        ];
        names
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|(_, f)| f)
    }
}

/// How many operands an instruction reads.
pub(crate) fn n_sources(f: Alu) -> usize {
    match f {
        Alu::Mov
        | Alu::Abs
        | Alu::Neg
        | Alu::Not
        | Alu::Brev
        | Alu::Popc
        | Alu::Clz
        | Alu::Bfind
        | Alu::Rcp
        | Alu::Sqrt
        | Alu::Rsqrt
        | Alu::Sin
        | Alu::Cos
        | Alu::Lg2
        | Alu::Ex2
        | Alu::Tanh => 1,
        Alu::Mad
        | Alu::MadHi
        | Alu::MadWide
        | Alu::Fma
        | Alu::ShfLeft(_)
        | Alu::ShfRight(_)
        | Alu::Bfe
        | Alu::Prmt
        | Alu::Dp4a(..) => 3,
        Alu::Bfi | Alu::Lop3 => 4,
        _ => 2,
    }
}

/// Applies `f` to the first three operands of each lane.
pub(crate) fn lanes(s: &[Lanes; 4], f: impl Fn(u64, u64, u64) -> u64) -> Lanes {
    std::array::from_fn(|lane| f(s[0][lane], s[1][lane], s[2][lane]))
}

/// What an instruction computes.
pub(crate) fn compute(f: Alu, ty: Ty, mode: FloatMode, s: &[Lanes; 4]) -> Result<Lanes, String> {
    match ty {
        _ if f == Alu::Mov => integer(f, ty, s),
        Ty::F32 => single(f, mode, s),
        Ty::F64 => double(f, s),
        Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => half(f, ty, mode, s),
        _ => integer(f, ty, s),
    }
}

fn single(f: Alu, mode: FloatMode, s: &[Lanes; 4]) -> Result<Lanes, String> {
    let flush = |x: f32| {
        if mode.ftz && x.is_subnormal() {
            0f32.copysign(x)
        } else {
            x
        }
    };
    let saturate = |x: f32| match mode.sat {
        true if x > 0.0 => x.min(1.0),
        true => 0.0,
        false => x,
    };
    let is_nan = |a: f32, b: f32| mode.nan && (a.is_nan() || b.is_nan());
    let each = |of: &dyn Fn(f32, f32, f32) -> f32| {
        lanes(s, |a, b, c| {
            let value = of(flush(f32_of(a)), flush(f32_of(b)), flush(f32_of(c)));
            bits_of(saturate(flush(value)))
        })
    };
    let is_nearest = matches!(mode.round, Round::None | Round::Nearest);
    let directed = |a: f32, b: f32, c: f32| directed(f64::from(a).mul_add(b.into(), c.into()), mode.round);
    Ok(match f {
        Alu::Add if is_nearest => each(&|a, b, _| a + b),
        Alu::Sub if is_nearest => each(&|a, b, _| a - b),
        Alu::Mul if is_nearest => each(&|a, b, _| a * b),
        Alu::Fma if is_nearest => each(&|a, b, c| a.mul_add(b, c)),
        Alu::Add => each(&|a, b, _| directed(a, 1.0, b)),
        Alu::Sub => each(&|a, b, _| directed(a, 1.0, -b)),
        Alu::Mul => each(&|a, b, _| directed(a, b, 0.0)),
        Alu::Fma => each(&directed),
        Alu::Div => each(&|a, b, _| a / b),
        Alu::Abs => each(&|a, _, _| a.abs()),
        Alu::Neg => each(&|a, _, _| -a),
        Alu::Min => each(&|a, b, _| if is_nan(a, b) { f32::NAN } else { a.min(b) }),
        Alu::Max => each(&|a, b, _| if is_nan(a, b) { f32::NAN } else { a.max(b) }),
        Alu::Rcp => each(&|a, _, _| 1.0 / a),
        Alu::Sqrt => each(&|a, _, _| a.sqrt()),
        Alu::Rsqrt => each(&|a, _, _| (1.0 / f64::from(a).sqrt()) as f32),
        Alu::Sin => each(&|a, _, _| a.sin()),
        Alu::Cos => each(&|a, _, _| a.cos()),
        Alu::Lg2 => each(&|a, _, _| a.log2()),
        Alu::Ex2 => each(&|a, _, _| a.exp2()),
        Alu::Tanh => each(&|a, _, _| a.tanh()),
        Alu::Copysign => each(&|a, b, _| b.copysign(a)),
        // The bits, not the number.
        _ => return integer(f, Ty::B32, s),
    })
}

/// Rounds up, down or to zero; the f64 itself was rounded to the nearest.
fn directed(exact: f64, round: Round) -> f32 {
    let nearest = exact as f32;
    let (is_above, is_below) = (f64::from(nearest) > exact, f64::from(nearest) < exact);
    match round {
        Round::Down if is_above => nearest.next_down(),
        Round::Up if is_below => nearest.next_up(),
        Round::ToZero if is_above && nearest > 0.0 => nearest.next_down(),
        Round::ToZero if is_below && nearest < 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

fn double(f: Alu, s: &[Lanes; 4]) -> Result<Lanes, String> {
    let each = |of: &dyn Fn(f64, f64, f64) -> f64| {
        lanes(s, |a, b, c| {
            of(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c)).to_bits()
        })
    };
    Ok(match f {
        Alu::Add => each(&|a, b, _| a + b),
        Alu::Sub => each(&|a, b, _| a - b),
        Alu::Mul => each(&|a, b, _| a * b),
        Alu::Fma => each(&|a, b, c| a.mul_add(b, c)),
        Alu::Div => each(&|a, b, _| a / b),
        Alu::Neg => each(&|a, _, _| -a),
        Alu::Abs => each(&|a, _, _| a.abs()),
        Alu::Max => each(&|a, b, _| a.max(b)),
        Alu::Min => each(&|a, b, _| a.min(b)),
        Alu::Sqrt => each(&|a, _, _| a.sqrt()),
        Alu::Rsqrt => each(&|a, _, _| 1.0 / a.sqrt()),
        Alu::Rcp => each(&|a, _, _| 1.0 / a),
        _ => return Err(format!("{f:?} of f64 is not supported")),
    })
}

/// f16 and bf16, one or two in a register: computed in f32 and rounded, which is exact for one operation.
fn half(f: Alu, ty: Ty, mode: FloatMode, s: &[Lanes; 4]) -> Result<Lanes, String> {
    let is_bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
    let widen = |x: u64| {
        if is_bf16 {
            f32_from_bf16(x as u16)
        } else {
            f32_from_f16(x as u16)
        }
    };
    let narrow = |x: f32| {
        u64::from(if is_bf16 {
            bf16_from_f32(x)
        } else {
            f16_from_f32(x)
        })
    };
    let is_nan = |a: f32, b: f32| mode.nan && (a.is_nan() || b.is_nan());
    let one = |a: f32, b: f32, c: f32| -> Result<f32, String> {
        Ok(match f {
            Alu::Add => a + b,
            Alu::Sub => a - b,
            Alu::Mul => a * b,
            // The product of two of these fits f32, the sum may be rounded twice.
            Alu::Fma => a * b + c,
            Alu::Min => {
                if is_nan(a, b) {
                    f32::NAN
                } else {
                    a.min(b)
                }
            }
            Alu::Max => {
                if is_nan(a, b) {
                    f32::NAN
                } else {
                    a.max(b)
                }
            }
            Alu::Neg => -a,
            Alu::Abs => a.abs(),
            Alu::Ex2 => a.exp2(),
            Alu::Tanh => a.tanh(),
            _ => return Err(format!("{f:?} of {ty:?} is not supported")),
        })
    };
    let n_halves = if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
        2
    } else {
        1
    };
    let mut out = [0; 32];
    for (lane, out) in out.iter_mut().enumerate() {
        for shift in (0..n_halves).map(|half| half * 16) {
            let [a, b, c] = [0, 1, 2].map(|at| widen(s[at][lane] >> shift & 0xffff));
            *out |= narrow(one(a, b, c)?) << shift;
        }
    }
    Ok(out)
}

/// The lanes in which `a` compares to `b` as `cmp` says.
pub(crate) fn compare(cmp: Cmp, ty: Ty, a: &Lanes, b: &Lanes) -> u32 {
    let bits = ty.bytes() as u32 * 8;
    let widen = |x: u64| match ty {
        Ty::F64 => f64::from_bits(x),
        Ty::F16 => f64::from(f32_from_f16(x as u16)),
        Ty::Bf16 => f64::from(f32_from_bf16(x as u16)),
        _ => f64::from(f32_of(x)),
    };
    let mut out = 0;
    for lane in 0..32 {
        let (a, b) = (a[lane], b[lane]);
        let order = if ty.is_float() {
            widen(a).partial_cmp(&widen(b))
        } else if ty.is_signed() {
            Some((sign_extended(a, bits) as i64).cmp(&(sign_extended(b, bits) as i64)))
        } else {
            Some((a & low(bits)).cmp(&(b & low(bits))))
        };
        let holds = match cmp {
            Cmp::Eq => order.is_some_and(|o| o.is_eq()),
            Cmp::Ne => order.is_some_and(|o| o.is_ne()),
            Cmp::Lt => order.is_some_and(|o| o.is_lt()),
            Cmp::Le => order.is_some_and(|o| o.is_le()),
            Cmp::Gt => order.is_some_and(|o| o.is_gt()),
            Cmp::Ge => order.is_some_and(|o| o.is_ge()),
            Cmp::Equ => order.is_none_or(|o| o.is_eq()),
            Cmp::Neu => order.is_none_or(|o| o.is_ne()),
            Cmp::Ltu => order.is_none_or(|o| o.is_lt()),
            Cmp::Leu => order.is_none_or(|o| o.is_le()),
            Cmp::Gtu => order.is_none_or(|o| o.is_gt()),
            Cmp::Geu => order.is_none_or(|o| o.is_ge()),
            Cmp::Num => order.is_some(),
            Cmp::Nan => order.is_none(),
        };
        out |= u32::from(holds) << lane;
    }
    out
}
