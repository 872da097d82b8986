//! A warp: the registers, predicates and program counters of 32 lanes.

use std::collections::VecDeque;

use crate::arithmetic::Lanes;
use crate::asynchronous::{Copy, Product};
use crate::isa::{Kernel, PredSrc, Reg};

/// The state of a warp.
#[derive(Default)]
pub(crate) struct Warp {
    regs: Vec<Lanes>,
    /// Lanes in which each register was written.
    known: Vec<u32>,
    preds: Vec<u32>,
    /// Index of each lane's next instruction.
    pub(crate) pc: [u32; 32],
    /// Lanes that have not ended.
    pub(crate) alive: u32,
    /// Lanes that wait in a collective for others of the warp.
    pub(crate) waiting: u32,
    /// The named barrier the warp is stopped at.
    pub(crate) stopped: Option<usize>,
    /// Local memory of all lanes, one after the other.
    pub(crate) local: Vec<u8>,
    /// Asynchronous copies that belong to no group yet.
    pub(crate) open: Vec<Copy>,
    /// Committed groups of copies, oldest first.
    pub(crate) groups: VecDeque<Vec<Copy>>,
    /// Asynchronous products that belong to no group yet.
    pub(crate) products: Vec<Product>,
    /// Committed groups of products, oldest first.
    pub(crate) product_groups: VecDeque<Vec<Product>>,
}

/// The lanes of a mask, in ascending order.
pub(crate) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

impl Warp {
    /// A warp at the start of `kernel`, with its `n_lanes` lowest lanes alive.
    pub(crate) fn new(kernel: &Kernel, n_lanes: usize) -> Warp {
        Warp {
            regs: vec![[0; 32]; kernel.n_registers],
            known: vec![0; kernel.n_registers],
            preds: vec![0; kernel.n_predicates],
            alive: if n_lanes == 32 {
                u32::MAX
            } else {
                (1 << n_lanes) - 1
            },
            local: vec![0xff; kernel.local_bytes * 32],
            ..Warp::default()
        }
    }

    /// The register, written in all lanes of `mask`.
    pub(crate) fn reg(&self, reg: Reg, mask: u32) -> Result<Lanes, String> {
        match mask & !self.known[reg as usize] {
            0 => Ok(self.regs[reg as usize]),
            unknown => Err(format!(
                "a register is read before it is written (lanes {unknown:08x})"
            )),
        }
    }

    /// Writes the lanes of `mask`.
    pub(crate) fn set(&mut self, d: Reg, mask: u32, values: &Lanes) {
        self.known[d as usize] |= mask;
        let target = &mut self.regs[d as usize];
        if mask == u32::MAX {
            *target = *values;
            return;
        }
        for lane in lanes_of(mask) {
            target[lane] = values[lane];
        }
    }

    /// The lanes in which a predicate holds.
    pub(crate) fn pred(&self, p: PredSrc) -> u32 {
        match p {
            PredSrc::Reg(reg, false) => self.preds[reg as usize],
            PredSrc::Reg(reg, true) => !self.preds[reg as usize],
            PredSrc::Const(true) => u32::MAX,
            PredSrc::Const(false) => 0,
        }
    }

    /// Writes the lanes of `mask`.
    pub(crate) fn set_pred(&mut self, d: Reg, mask: u32, value: u32) {
        let target = &mut self.preds[d as usize];
        *target = *target & !mask | value & mask;
    }

    /// Sends the lanes of `mask` to an instruction.
    pub(crate) fn set_pc(&mut self, mask: u32, pc: u32) {
        for lane in lanes_of(mask) {
            self.pc[lane] = pc;
        }
    }
}
