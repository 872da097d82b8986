//! Executes one instruction for the lanes of a warp for which it is active.

use crate::arithmetic::{Lanes, compare, compute, n_sources};
use crate::convert::convert;
use crate::integer::low;
use crate::isa::{Addr, Logic, Op, Space, Special, Src};
use crate::machine::{Machine, Next, Result};

/// Generic addresses of shared, local and parameter memory; addresses of global memory are below.
pub(crate) const SHARED_WINDOW: u64 = 1 << 62;
pub(crate) const LOCAL_WINDOW: u64 = 1 << 61;
pub(crate) const PARAM_WINDOW: u64 = 1 << 60;
/// Streaming multiprocessors that kernels are told of.
const N_SMS: u32 = 4;

impl Machine<'_> {
    /// Runs `op` for the lanes of `mask`, of which there is one at least; `all` are those at this address,
    /// whether their guard holds or not.
    pub(crate) fn execute(&mut self, w: usize, op: &Op, mask: u32, all: u32) -> Result<Next> {
        match op {
            Op::Nop | Op::WgmmaFence => {}
            Op::Exit => return Ok(Next::Exit),
            Op::Trap => return Err("trap".into()),
            Op::Branch(target) => return Ok(Next::Jump(*target as u32, mask)),
            Op::Alu { .. } | Op::Cvt { .. } | Op::Pack { .. } | Op::Unpack { .. } => {
                self.compute(w, op, mask)?;
            }
            Op::Setp { .. } | Op::PredLogic { .. } | Op::Selp { .. } => self.decide(w, op, mask)?,
            Op::ToGeneric { .. } | Op::FromGeneric { .. } => self.convert_address(w, op, mask)?,
            Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } => self.access(w, op, mask)?,
            Op::Barrier { .. }
            | Op::WarpBarrier { .. }
            | Op::Shfl { .. }
            | Op::Vote { .. }
            | Op::ActiveMask { .. }
            | Op::Elect { .. }
            | Op::Redux { .. }
            | Op::Ldmatrix { .. }
            | Op::Stmatrix { .. }
            | Op::Mma { .. } => return self.collective(w, op, mask),
            _ => return self.asynchronous(w, op, mask, all),
        }
        Ok(Next::Step)
    }

    /// An operand in each lane; it must be known in those of `mask`.
    pub(crate) fn src(&self, w: usize, source: Src, mask: u32) -> Result<Lanes> {
        Ok(match source {
            Src::Reg(reg) => self.warps[w].reg(reg, mask)?,
            Src::Imm(value) => [value; 32],
            Src::Param(at) => [u64::from(at); 32],
            Src::Global(idx) => {
                let address = self.launch.globals.get(idx as usize);
                [*address.ok_or("the launch does not say where the module's variables are")?; 32]
            }
            Src::DynamicShared => [self.launch.kernel.dynamic_shared_at as u64; 32],
            Src::Special(special) => std::array::from_fn(|lane| self.special(w, special, lane as u32)),
        })
    }

    pub(crate) fn srcs(&self, w: usize, sources: &[Src], mask: u32) -> Result<Vec<Lanes>> {
        sources.iter().map(|&source| self.src(w, source, mask)).collect()
    }

    pub(crate) fn addresses(&self, w: usize, addr: Addr, mask: u32) -> Result<Lanes> {
        Ok(self
            .src(w, addr.base, mask)?
            .map(|base| base.wrapping_add_signed(addr.offset)))
    }

    fn special(&self, w: usize, special: Special, lane: u32) -> u64 {
        let (grid, block) = (self.launch.grid, self.launch.block);
        let thread = w as u32 * 32 + lane;
        u64::from(match special {
            Special::TidX => thread % block[0],
            Special::TidY => thread / block[0] % block[1],
            Special::TidZ => thread / block[0] / block[1],
            Special::NtidX => block[0],
            Special::NtidY => block[1],
            Special::NtidZ => block[2],
            Special::CtaidX => self.block[0],
            Special::CtaidY => self.block[1],
            Special::CtaidZ => self.block[2],
            Special::NctaidX => grid[0],
            Special::NctaidY => grid[1],
            Special::NctaidZ => grid[2],
            Special::LaneId => lane,
            Special::WarpId => w as u32,
            Special::LanemaskLt => (1 << lane) - 1,
            Special::LanemaskLe => u32::MAX >> (31 - lane),
            Special::LanemaskGt => !(u32::MAX >> (31 - lane)),
            Special::LanemaskGe => !((1 << lane) - 1),
            Special::LanemaskEq => 1 << lane,
            Special::Clock => return self.statistics.instructions,
            Special::SmId => self.block[0] % N_SMS,
            Special::NsmId => N_SMS,
            Special::DynamicSharedSize => self.launch.dynamic_shared as u32,
            Special::Zero => 0,
            Special::One => 1,
        })
    }

    fn compute(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        match *op {
            Op::Alu { f, ty, mode, d, s } => {
                let mut operands = [[0; 32]; 4];
                for (operand, source) in operands.iter_mut().zip(s).take(n_sources(f)) {
                    *operand = self.src(w, source, mask)?;
                }
                let out = compute(f, ty, mode, &operands)?;
                self.warps[w].set(d, mask, &out);
            }
            Op::Cvt { ref kind, d, a, b } => {
                let a = self.src(w, a, mask)?;
                let b = b.map(|b| self.src(w, b, mask)).transpose()?;
                let mut out = [0; 32];
                for (lane, out) in out.iter_mut().enumerate() {
                    *out = convert(kind, a[lane], b.map(|b| b[lane]))?;
                }
                self.warps[w].set(d, mask, &out);
            }
            Op::Pack { bits, d, ref parts } => {
                let mut out = [0; 32];
                for (at, part) in self.srcs(w, parts, mask)?.iter().enumerate() {
                    for (out, part) in out.iter_mut().zip(part) {
                        *out |= (part & low(bits)) << (at as u32 * bits);
                    }
                }
                self.warps[w].set(d, mask, &out);
            }
            Op::Unpack { bits, ref d, a } => {
                let a = self.src(w, a, mask)?;
                for (at, d) in d.iter().enumerate() {
                    if let Some(d) = *d {
                        self.warps[w].set(d, mask, &a.map(|a| a >> (at as u32 * bits) & low(bits)));
                    }
                }
            }
            _ => unreachable!("{op:?} computes no register"),
        }
        Ok(())
    }

    fn decide(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        match *op {
            Op::Setp {
                cmp,
                ty,
                d,
                d_not,
                a,
                b,
                combine,
            } => {
                let holds = compare(cmp, ty, &self.src(w, a, mask)?, &self.src(w, b, mask)?);
                let warp = &mut self.warps[w];
                let combined = |value: u32, p: u32| match combine {
                    None => value,
                    Some((Logic::And, _)) => value & p,
                    Some((Logic::Or, _)) => value | p,
                    Some(_) => value ^ p,
                };
                let p = combine.map_or(0, |(_, p)| warp.pred(p));
                for (d, value) in [(d, holds), (d_not, !holds)] {
                    if let Some(d) = d {
                        warp.set_pred(d, mask, combined(value, p));
                    }
                }
            }
            Op::PredLogic { f, d, a, b } => {
                let warp = &mut self.warps[w];
                let (a, b) = (warp.pred(a), warp.pred(b));
                let value = match f {
                    Logic::And => a & b,
                    Logic::Or => a | b,
                    Logic::Xor => a ^ b,
                    Logic::Not => !a,
                    Logic::Mov => a,
                };
                warp.set_pred(d, mask, value);
            }
            Op::Selp { d, a, b, p } => {
                let p = self.warps[w].pred(p);
                let (a, b) = (self.src(w, a, mask & p)?, self.src(w, b, mask & !p)?);
                let out = std::array::from_fn(|lane| if p >> lane & 1 == 1 { a[lane] } else { b[lane] });
                self.warps[w].set(d, mask, &out);
            }
            _ => unreachable!("{op:?} decides nothing"),
        }
        Ok(())
    }

    fn convert_address(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        let window = |space| match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Param => PARAM_WINDOW,
            Space::Generic | Space::Global => 0,
        };
        match *op {
            Op::ToGeneric { space, d, a } => {
                let a = self.src(w, a, mask)?;
                self.warps[w].set(d, mask, &a.map(|a| a | window(space)));
            }
            Op::FromGeneric { space, d, a } => {
                let (a, window) = (self.src(w, a, mask)?, window(space));
                if crate::warp::lanes_of(mask).any(|lane| a[lane] & window != window) {
                    return Err(
                        format!("an address outside of {space:?} memory is taken for one inside").into(),
                    );
                }
                self.warps[w].set(d, mask, &a.map(|a| a & !window));
            }
            _ => unreachable!("{op:?} converts no address"),
        }
        Ok(())
    }
}
