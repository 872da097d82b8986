//! Decodes one PTX instruction: its dotted name and its operands.
//!
//! Families are tried one after the other; a name that none of them knows is refused with its text.

use crate::isa::{
    Alu, Cmp, Conversion, FloatMode, Logic, Op, PredSrc, Reduce, Round, ShflMode, Space, Src, Ty, VoteMode,
};
use crate::parse::{Body, Result, immediate};

/// A name that was split at its dots, the operands, and what they mean in this kernel.
struct Text<'a> {
    body: &'a Body,
    parts: &'a [&'a str],
    args: &'a [&'a str],
}

/// The instruction that `parts` and `args` spell.
pub(crate) fn decode(body: &Body, parts: &[&str], args: &[&str]) -> Result<Op> {
    let text = Text { body, parts, args };
    let families = [
        Text::arithmetic,
        Text::registers,
        Text::memory,
        Text::warp,
        Text::asynchronous,
    ];
    for family in families {
        if let Some(op) = family(&text)? {
            return Ok(op);
        }
    }
    Err(format!("instruction {} is not supported", parts.join(".")))
}

impl Text<'_> {
    /// The part at `idx`, empty where there is none.
    fn part(&self, idx: usize) -> &str {
        self.parts.get(idx).copied().unwrap_or_default()
    }

    fn has(&self, flag: &str) -> bool {
        self.parts.contains(&flag)
    }

    /// Whether a part is `name` or `name::something`.
    fn has_scoped(&self, name: &str) -> bool {
        let is_it = |part: &&str| part.split("::").next() == Some(name);
        self.parts.iter().any(is_it)
    }

    fn arg(&self, idx: usize) -> Result<&str> {
        let arg = self.args.get(idx).copied();
        arg.ok_or_else(|| format!("operand {} of {}", idx + 1, self.parts.join(".")))
    }

    fn src(&self, idx: usize) -> Result<Src> {
        self.body.src(self.arg(idx)?)
    }

    /// The operand, if there are so many.
    fn optional(&self, idx: usize) -> Result<Option<Src>> {
        self.args.get(idx).map(|text| self.body.src(text)).transpose()
    }

    /// An operand that must be a number.
    fn number(&self, idx: usize) -> Result<usize> {
        let text = self.arg(idx)?;
        immediate(text)
            .map(|n| n as usize)
            .ok_or_else(|| format!("number {text}"))
    }

    /// Types in the name, in their order.
    fn types(&self) -> Vec<Ty> {
        self.parts.iter().filter_map(|part| Ty::parse(part)).collect()
    }

    /// The last type in the name.
    fn ty(&self) -> Result<Ty> {
        self.types()
            .last()
            .copied()
            .ok_or_else(|| format!("type of {}", self.parts.join(".")))
    }

    fn space(&self) -> Space {
        let spaces = [
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("local", Space::Local),
            ("param", Space::Param),
        ];
        let found = spaces.into_iter().find(|(name, _)| self.has_scoped(name));
        found.map_or(Space::Generic, |(_, space)| space)
    }

    /// Everything that computes a register from registers, lane by lane.
    fn arithmetic(&self) -> Result<Option<Op>> {
        let ty = self.types().last().copied();
        let (Some(f), false) = (self.alu(ty), ty == Some(Ty::Pred)) else {
            return Ok(None);
        };
        self.alu_op(f).map(Some)
    }

    fn alu_op(&self, f: Alu) -> Result<Op> {
        let mut s = [Src::Imm(0); 4];
        for (slot, text) in s.iter_mut().zip(self.args.get(1..).unwrap_or_default()) {
            *slot = self.body.src(text)?;
        }
        let round = self.round();
        let mode = FloatMode {
            ftz: self.has("ftz"),
            sat: self.has("sat"),
            nan: self.has("NaN"),
            round,
        };
        Ok(Op::Alu {
            f,
            ty: self.ty()?,
            mode,
            d: self.body.reg(self.arg(0)?)?,
            s,
        })
    }

    fn alu(&self, ty: Option<Ty>) -> Option<Alu> {
        let is_integer = !ty.is_some_and(|ty| ty.is_float() || matches!(ty, Ty::F16x2 | Ty::Bf16x2));
        if matches!(self.parts[0], "mul" | "mad") && is_integer {
            return Some(match (self.parts[0], self.has("wide"), self.has("hi")) {
                ("mul", true, _) => Alu::MulWide,
                ("mul", _, true) => Alu::MulHi,
                ("mul", ..) => Alu::Mul,
                (_, true, _) => Alu::MadWide,
                (_, _, true) => Alu::MadHi,
                _ => Alu::Mad,
            });
        }
        match self.parts[0] {
            "shf" if self.has("l") => Some(Alu::ShfLeft(self.has("wrap"))),
            "shf" => Some(Alu::ShfRight(self.has("wrap"))),
            "prmt" if self.parts.len() == 2 => Some(Alu::Prmt),
            "dp4a" => Some(Alu::Dp4a(
                self.parts.get(1) == Some(&"s32"),
                self.parts.get(2) == Some(&"s32"),
            )),
            name => Alu::named(name),
        }
    }

    /// Moves, conversions, predicates and control.
    fn registers(&self) -> Result<Option<Op>> {
        let logic = |f| -> Result<Op> {
            let b = self
                .args
                .get(2)
                .map_or(Ok(PredSrc::Const(false)), |text| self.body.pred_src(text));
            Ok(Op::PredLogic {
                f,
                d: self.body.pred(self.arg(0)?)?,
                a: self.body.pred_src(self.arg(1)?)?,
                b: b?,
            })
        };
        Ok(Some(match self.parts[0] {
            "mov" if self.ty()? == Ty::Pred => logic(Logic::Mov)?,
            "and" => logic(Logic::And)?,
            "or" => logic(Logic::Or)?,
            "xor" => logic(Logic::Xor)?,
            "not" => logic(Logic::Not)?,
            "mov" if self.arg(0)?.starts_with('{') => {
                let d = self.body.sinks(self.arg(0)?)?;
                Op::Unpack {
                    bits: (self.ty()?.bytes() * 8 / d.len()) as u32,
                    d,
                    a: self.src(1)?,
                }
            }
            "mov" if self.arg(1)?.starts_with('{') => {
                let parts = self.body.srcs(self.arg(1)?)?;
                let bits = (self.ty()?.bytes() * 8 / parts.len()) as u32;
                Op::Pack {
                    bits,
                    d: self.body.reg(self.arg(0)?)?,
                    parts,
                }
            }
            "mov" => self.alu_op(Alu::Mov)?,
            "cvta" => {
                let (space, d, a) = (self.space(), self.body.reg(self.arg(0)?)?, self.src(1)?);
                if self.has("to") {
                    Op::FromGeneric { space, d, a }
                } else {
                    Op::ToGeneric { space, d, a }
                }
            }
            "cvt" => self.conversion()?,
            "setp" => self.comparison()?,
            "selp" => Op::Selp {
                d: self.body.reg(self.arg(0)?)?,
                a: self.src(1)?,
                b: self.src(2)?,
                p: self.body.pred_src(self.arg(3)?)?,
            },
            "ret" | "exit" => Op::Exit,
            "trap" => Op::Trap,
            "fence" if self.has("proxy") => Op::ProxyFence,
            // Hints, and orders that the interleaving of whole instructions keeps anyway.
            "fence" | "membar" | "griddepcontrol" | "setmaxnreg" | "nanosleep" | "prefetch" | "prefetchu"
            | "discard" => Op::Nop,
            _ => return Ok(None),
        }))
    }

    fn round(&self) -> Round {
        let rounds = [
            ("rn", Round::Nearest),
            ("rna", Round::Nearest),
            ("rz", Round::ToZero),
            ("rm", Round::Down),
            ("rp", Round::Up),
            ("rni", Round::IntNearest),
            ("rzi", Round::IntZero),
            ("rmi", Round::IntDown),
            ("rpi", Round::IntUp),
        ];
        let round = rounds.into_iter().find(|(name, _)| self.has(name));
        round.map_or(Round::None, |(_, round)| round)
    }

    fn conversion(&self) -> Result<Op> {
        let [to, from] = self.types()[..] else {
            return Err("types of cvt".into());
        };
        let kind = Conversion {
            to,
            from,
            round: self.round(),
            sat: self.has("sat") || self.has("satfinite"),
            relu: self.has("relu"),
            ftz: self.has("ftz"),
        };
        Ok(Op::Cvt {
            kind,
            d: self.body.reg(self.arg(0)?)?,
            a: self.src(1)?,
            b: self.optional(2)?,
        })
    }

    fn comparison(&self) -> Result<Op> {
        let cmp = match self.part(1) {
            "eq" => Cmp::Eq,
            "ne" => Cmp::Ne,
            "lt" | "lo" => Cmp::Lt,
            "le" | "ls" => Cmp::Le,
            "gt" | "hi" => Cmp::Gt,
            "ge" | "hs" => Cmp::Ge,
            "equ" => Cmp::Equ,
            "neu" => Cmp::Neu,
            "ltu" => Cmp::Ltu,
            "leu" => Cmp::Leu,
            "gtu" => Cmp::Gtu,
            "geu" => Cmp::Geu,
            "num" => Cmp::Num,
            "nan" => Cmp::Nan,
            other => return Err(format!("comparison {other}")),
        };
        let target = |text: &str| {
            if text == "_" {
                Ok(None)
            } else {
                self.body.pred(text).map(Some)
            }
        };
        let (d, d_not) = pair(self.arg(0)?);
        let combinations = [("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)];
        let logic = combinations.into_iter().find(|(name, _)| self.has(name));
        let combine = match logic {
            Some((_, logic)) => Some((logic, self.body.pred_src(self.arg(3)?)?)),
            None => None,
        };
        Ok(Op::Setp {
            cmp,
            ty: self.ty()?,
            d: target(d)?,
            d_not: d_not.map(target).transpose()?.flatten(),
            a: self.src(1)?,
            b: self.src(2)?,
            combine,
        })
    }

    /// Loads, stores and atomics.
    fn memory(&self) -> Result<Option<Op>> {
        let (space, body) = (self.space(), self.body);
        if matches!(self.parts[0], "ld" | "ldu" | "st" | "atom" | "red") && self.ty()? == Ty::B128 {
            return Ok(None);
        }
        Ok(Some(match self.parts[0] {
            "ld" | "ldu" => Op::Load {
                space,
                ty: self.ty()?,
                d: body.sinks(self.arg(0)?)?,
                addr: body.addr(self.arg(1)?)?,
            },
            "st" => Op::Store {
                space,
                ty: self.ty()?,
                s: body.srcs(self.arg(1)?)?,
                addr: body.addr(self.arg(0)?)?,
            },
            "atom" | "red" => {
                let first = usize::from(self.parts[0] == "atom");
                let d = if first == 1 {
                    body.sink(self.arg(0)?)?
                } else {
                    None
                };
                Op::Atomic {
                    space,
                    f: self.reduction().ok_or("operation of the atomic")?,
                    ty: self.ty()?,
                    d,
                    addr: body.addr(self.arg(first)?)?,
                    a: self.src(first + 1)?,
                    b: self.optional(first + 2)?,
                }
            }
            _ => return Ok(None),
        }))
    }

    fn reduction(&self) -> Option<Reduce> {
        let names = [
            ("add", Reduce::Add),
            ("min", Reduce::Min),
            ("max", Reduce::Max),
            ("and", Reduce::And),
            ("or", Reduce::Or),
            ("xor", Reduce::Xor),
            ("exch", Reduce::Exch),
            ("cas", Reduce::Cas),
            ("inc", Reduce::Inc),
            ("dec", Reduce::Dec),
        ];
        names.into_iter().find(|(name, _)| self.has(name)).map(|(_, f)| f)
    }

    /// What the lanes of a warp, or the warps of a block, do together.
    fn warp(&self) -> Result<Option<Op>> {
        let body = self.body;
        Ok(Some(match self.parts[0] {
            "bar" if self.has("warp") => Op::WarpBarrier {
                members: self.src(0)?,
            },
            "bar" | "barrier" if !self.has("cluster") => Op::Barrier {
                id: self.src(0)?,
                n_threads: self.optional(1)?,
                waits: self.has("sync"),
            },
            "shfl" => self.shuffle()?,
            "vote" => {
                let names = [
                    ("all", VoteMode::All),
                    ("any", VoteMode::Any),
                    ("uni", VoteMode::Uni),
                ];
                let mode = names.into_iter().find(|(name, _)| self.has(name));
                let mode = mode.map_or(VoteMode::Ballot, |(_, mode)| mode);
                let d = self.arg(0)?;
                let d = if mode == VoteMode::Ballot {
                    body.reg(d)?
                } else {
                    body.pred(d)?
                };
                Op::Vote {
                    mode,
                    d,
                    p: body.pred_src(self.arg(1)?)?,
                    members: self.src(2)?,
                }
            }
            "activemask" => Op::ActiveMask {
                d: body.reg(self.arg(0)?)?,
            },
            "elect" => {
                let (d, p) = pair(self.arg(0)?);
                Op::Elect {
                    p: body.pred(p.unwrap_or(d))?,
                    members: self.src(1)?,
                }
            }
            "redux" => Op::Redux {
                f: self.reduction().ok_or("operation of redux")?,
                ty: self.ty()?,
                d: body.reg(self.arg(0)?)?,
                a: self.src(1)?,
                members: self.src(2)?,
            },
            "ldmatrix" => {
                let (d, addr) = (body.regs(self.arg(0)?)?, body.addr(self.arg(1)?)?);
                Op::Ldmatrix {
                    transposed: self.has("trans"),
                    d,
                    addr,
                }
            }
            "stmatrix" => {
                let (s, addr) = (body.srcs(self.arg(1)?)?, body.addr(self.arg(0)?)?);
                Op::Stmatrix {
                    transposed: self.has("trans"),
                    s,
                    addr,
                }
            }
            "mma" => {
                let shape = self.parts.iter().find_map(|part| part.strip_prefix("m16n8k"));
                Op::Mma {
                    k: shape.and_then(|k| k.parse().ok()).ok_or("shape of mma")?,
                    ab: *self.types().get(1).ok_or("types of mma")?,
                    d: body.regs(self.arg(0)?)?,
                    a: body.srcs(self.arg(1)?)?,
                    b: body.srcs(self.arg(2)?)?,
                    c: body.srcs(self.arg(3)?)?,
                }
            }
            _ => return Ok(None),
        }))
    }

    fn shuffle(&self) -> Result<Op> {
        let names = [
            ("idx", ShflMode::Idx),
            ("up", ShflMode::Up),
            ("down", ShflMode::Down),
        ];
        let mode = names.into_iter().find(|(name, _)| self.has(name));
        let (d, p) = pair(self.arg(0)?);
        Ok(Op::Shfl {
            mode: mode.map_or(ShflMode::Bfly, |(_, mode)| mode),
            d: self.body.reg(d)?,
            p: p.map(|p| self.body.pred(p)).transpose()?,
            a: self.src(1)?,
            b: self.src(2)?,
            c: self.src(3)?,
            members: self.src(4)?,
        })
    }

    /// Copies and products that end later than they are issued.
    fn asynchronous(&self) -> Result<Option<Op>> {
        let body = self.body;
        Ok(Some(match self.parts[0] {
            "cp" if self.has("commit_group") => Op::CpCommit,
            "cp" if self.has("wait_group") => Op::CpWait(Some(self.number(0)?)),
            "cp" if self.has("wait_all") => Op::CpWait(None),
            "cp" if self.has("bulk") && self.has("tensor") => self.tensor_copy()?,
            "cp" if self.has("async") && !self.has("bulk") && !self.has_scoped("mbarrier") => Op::CpAsync {
                bytes: self.number(2)?,
                dst: body.addr(self.arg(0)?)?,
                src: body.addr(self.arg(1)?)?,
                src_bytes: self.optional(3)?,
            },
            "mbarrier" => self.mbarrier()?,
            "wgmma" if self.has("fence") => Op::WgmmaFence,
            "wgmma" if self.has("commit_group") => Op::WgmmaCommit,
            "wgmma" if self.has("wait_group") => Op::WgmmaWait(self.number(0)?),
            "wgmma" => self.wgmma()?,
            _ => return Ok(None),
        }))
    }

    fn tensor_copy(&self) -> Result<Op> {
        if self.space() != Space::Global || !self.has_scoped("mbarrier") {
            return Err("only tensor loads with an mbarrier are supported".into());
        }
        let n_dims = self
            .parts
            .iter()
            .find_map(|part| part.strip_suffix('d')?.parse().ok());
        let inner = self.arg(1)?.trim_start_matches('[').trim_end_matches(']');
        let (map, at) = inner.split_once(',').ok_or("coordinates")?;
        Ok(Op::Tma {
            n_dims: n_dims.ok_or("dimensions")?,
            dst: self.body.addr(self.arg(0)?)?,
            map: self.body.addr(&format!("[{}]", map.trim()))?,
            at: self.body.srcs(at.trim())?,
            barrier: self.body.addr(self.arg(2)?)?,
        })
    }

    fn mbarrier(&self) -> Result<Op> {
        let body = self.body;
        Ok(match self.part(1) {
            "init" => Op::MbarrierInit {
                addr: body.addr(self.arg(0)?)?,
                count: self.src(1)?,
            },
            "inval" => Op::Nop,
            "arrive" => {
                let first = usize::from(!self.arg(0)?.starts_with('['));
                let state = if first == 1 {
                    body.sink(self.arg(0)?)?
                } else {
                    None
                };
                let last = self.optional(first + 1)?;
                let (expect, count) = if self.has("expect_tx") {
                    (last, None)
                } else {
                    (None, last)
                };
                Op::MbarrierArrive {
                    addr: body.addr(self.arg(first)?)?,
                    state,
                    expect,
                    count,
                }
            }
            "try_wait" | "test_wait" if self.has("parity") => Op::MbarrierWait {
                addr: body.addr(self.arg(1)?)?,
                p: body.pred(self.arg(0)?)?,
                parity: self.src(2)?,
            },
            other => return Err(format!("mbarrier.{other} is not supported")),
        })
    }

    fn wgmma(&self) -> Result<Op> {
        let shape = self
            .parts
            .iter()
            .find_map(|part| part.strip_prefix("m64n")?.split_once('k'));
        let (n, _) = shape.ok_or("shape of wgmma")?;
        let flag = |at: usize| self.args.get(at).and_then(|text| immediate(text)).unwrap_or(0);
        let a = self.arg(1)?;
        // With A in registers only B has a major to choose.
        let transposed = if a.starts_with('{') {
            (false, flag(6) == 1)
        } else {
            (flag(6) == 1, flag(7) == 1)
        };
        Ok(Op::Wgmma {
            n: n.parse().map_err(|_| "shape of wgmma")?,
            ab: *self.types().get(1).ok_or("types of wgmma")?,
            d: self.body.regs(self.arg(0)?)?,
            a: self.body.srcs(a)?,
            b: self.src(2)?,
            accumulate: match self.args.get(3) {
                Some(text) => self.body.pred_src(text)?,
                None => PredSrc::Const(true),
            },
            negate: (flag(4) as u32 == u32::MAX, flag(5) as u32 == u32::MAX),
            transposed,
        })
    }
}

/// `a|b`, or `a` alone.
fn pair(text: &str) -> (&str, Option<&str>) {
    match text.split_once('|') {
        Some((a, b)) => (a.trim(), Some(b.trim())),
        None => (text, None),
    }
}
