//! What ends later than it is issued: `cp.async`, `mbarrier`, tensor copies (TMA) and `wgmma`.
//!
//! Everything happens as late as it may: copies of `cp.async` and products when they are waited for, tensor
//! copies while somebody polls a barrier, in random order.

use crate::access::MAX_VECTOR;
use crate::arithmetic::Lanes;
use crate::float::{bits_of, f32_from_bf16, f32_of};
use crate::isa::{Op, Reg, Src, Ty};
use crate::machine::{FaultKind, MAX_IDLE_POLLS, Machine, Next, Result, Trouble};
use crate::tensor::operand_at;
use crate::tma::{TENSOR_MAP_BYTES, TensorMap};
use crate::warp::lanes_of;

/// Rows and depth of the part of a `wgmma` that one warp computes.
const TILE: usize = 16;

/// A copy of `cp.async` that has started: the bytes beyond `src_bytes` become zero.
pub(crate) struct Copy {
    dst: usize,
    src: u64,
    src_bytes: usize,
    bytes: usize,
}

/// A tensor copy that has started.
pub(crate) struct Tensor {
    map: TensorMap,
    dst: usize,
    at: Vec<i64>,
    barrier: usize,
}

/// A matrix product that was issued: its registers are written when it is waited for.
pub(crate) struct Product {
    d: Vec<Reg>,
    n: usize,
    a: Left,
    b: u64,
    accumulate: bool,
    negate: (bool, bool),
    transposed: (bool, bool),
}

/// The left operand of a product.
enum Left {
    Descriptor(u64),
    Registers(Vec<Lanes>),
}

/// A shared address without the upper half that a 64-bit register may carry.
fn shared_at(address: u64) -> usize {
    (address & 0xffff_ffff) as usize
}

impl Machine<'_> {
    pub(crate) fn asynchronous(&mut self, w: usize, op: &Op, mask: u32, all: u32) -> Result<Next> {
        match *op {
            Op::ProxyFence => self.shared.fence(w),
            Op::CpAsync { .. } => self.begin_copies(w, op, mask)?,
            Op::CpCommit => {
                let open = std::mem::take(&mut self.warps[w].open);
                self.warps[w].groups.push_back(open);
            }
            Op::CpWait(n_left) => {
                if all != mask || !self.meets(w, u32::MAX, mask) {
                    return Ok(Next::Wait);
                }
                self.end_copies(w, n_left)?;
            }
            Op::MbarrierInit { .. } | Op::MbarrierArrive { .. } => self.barrier_object(w, op, mask)?,
            Op::MbarrierWait { .. } => return self.poll(w, op, mask),
            Op::Tma { .. } => self.begin_tensor_copies(w, op, mask)?,
            Op::Wgmma { .. } => {
                if !self.meets(w, u32::MAX, mask) {
                    return Ok(Next::Wait);
                }
                self.begin_product(w, op, mask)?;
            }
            Op::WgmmaCommit => {
                let products = std::mem::take(&mut self.warps[w].products);
                self.warps[w].product_groups.push_back(products);
            }
            Op::WgmmaWait(n_left) => {
                while self.warps[w].product_groups.len() > n_left {
                    let products = self.warps[w].product_groups.pop_front();
                    for product in products.into_iter().flatten() {
                        self.multiply(w, &product)?;
                    }
                }
            }
            _ => unreachable!("{op:?} is not asynchronous"),
        }
        Ok(Next::Step)
    }

    fn begin_copies(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        let Op::CpAsync {
            bytes,
            dst,
            src,
            src_bytes,
        } = *op
        else {
            unreachable!("{op:?} is no copy");
        };
        let (to, from) = (self.addresses(w, dst, mask)?, self.addresses(w, src, mask)?);
        let n = src_bytes.map_or(Ok([bytes as u64; 32]), |n| self.src(w, n, mask))?;
        self.count_global(&from, mask, bytes, false);
        self.count_shared(&to, mask, bytes);
        for lane in lanes_of(mask) {
            let (dst, src_bytes) = (shared_at(to[lane]), (n[lane] as usize).min(bytes));
            self.check_shared(dst as u64, bytes)?;
            if !dst.is_multiple_of(bytes) || src_bytes > 0 && !from[lane].is_multiple_of(bytes as u64) {
                let message = format!(
                    "misaligned cp.async of {bytes} bytes from {:#x} to {dst}",
                    from[lane]
                );
                return Err(Trouble {
                    kind: FaultKind::Misaligned,
                    message,
                });
            }
            if src_bytes > 0 {
                self.memory.slice(from[lane], src_bytes)?;
            }
            self.shared.begin_copy(w, dst, bytes)?;
            self.warps[w].open.push(Copy {
                dst,
                src: from[lane],
                src_bytes,
                bytes,
            });
        }
        Ok(())
    }

    /// Ends all groups but the `n_left` newest; `None` ends everything, committed or not.
    fn end_copies(&mut self, w: usize, n_left: Option<usize>) -> Result<()> {
        let warp = &mut self.warps[w];
        if n_left.is_none() {
            let open = std::mem::take(&mut warp.open);
            warp.groups.push_back(open);
        }
        let n_done = warp.groups.len().saturating_sub(n_left.unwrap_or(0));
        let done: Vec<Copy> = warp.groups.drain(..n_done).flatten().collect();
        for Copy {
            dst,
            src,
            src_bytes,
            bytes,
        } in done
        {
            let mut data = [0; MAX_VECTOR];
            if src_bytes > 0 {
                data[..src_bytes].copy_from_slice(self.memory.slice(src, src_bytes)?);
            }
            self.shared.bytes[dst..][..bytes].copy_from_slice(&data[..bytes]);
            self.shared.end_copy(w, dst, bytes);
        }
        Ok(())
    }

    fn barrier_object(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        match *op {
            Op::MbarrierInit { addr, count } => {
                let (at, count) = (self.addresses(w, addr, mask)?, self.src(w, count, mask)?);
                for lane in lanes_of(mask) {
                    self.check_shared(at[lane], 8)?;
                    if !at[lane].is_multiple_of(8) {
                        return Err(format!("mbarrier at shared byte {}", at[lane]).into());
                    }
                    self.shared.write(w, at[lane] as usize, 8)?;
                    self.shared.init_barrier(at[lane] as usize, count[lane] as u32);
                }
            }
            Op::MbarrierArrive {
                addr,
                state,
                expect,
                count,
            } => {
                let at = self.addresses(w, addr, mask)?;
                let expect = expect.map_or(Ok([0; 32]), |n| self.src(w, n, mask))?;
                let count = count.map_or(Ok([1; 32]), |n| self.src(w, n, mask))?;
                for lane in lanes_of(mask) {
                    self.shared
                        .arrive(w, shared_at(at[lane]), count[lane] as u32, expect[lane] as i64)?;
                }
                if let Some(d) = state {
                    self.warps[w].set(d, mask, &[0; 32]);
                }
                self.n_idle_polls = 0;
            }
            _ => unreachable!("{op:?} is not of an mbarrier"),
        }
        Ok(())
    }

    fn poll(&mut self, w: usize, op: &Op, mask: u32) -> Result<Next> {
        let Op::MbarrierWait { addr, p, parity } = *op else {
            unreachable!("{op:?} polls nothing");
        };
        let (at, parity) = (self.addresses(w, addr, mask)?, self.src(w, parity, mask)?);
        // The copy engine delivers when it likes; here, while somebody waits.
        if !self.in_flight.is_empty() {
            let pick = self.next_random() as usize % self.in_flight.len();
            let tensor = self.in_flight.swap_remove(pick);
            self.deliver(&tensor)?;
            self.n_idle_polls = 0;
        }
        let mut ready = 0;
        for lane in lanes_of(mask) {
            let is_over = self.shared.test(w, shared_at(at[lane]), parity[lane] as u32)?;
            ready |= u32::from(is_over) << lane;
        }
        self.warps[w].set_pred(p, mask, ready);
        if ready & mask == mask {
            return Ok(Next::Step);
        }
        self.n_idle_polls += 1;
        if self.n_idle_polls > MAX_IDLE_POLLS {
            return Err("deadlock: nobody completes the phase of this mbarrier".into());
        }
        Ok(Next::Yield)
    }

    fn begin_tensor_copies(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        let Op::Tma {
            n_dims,
            dst,
            map,
            ref at,
            barrier,
        } = *op
        else {
            unreachable!("{op:?} is no tensor copy");
        };
        let (dst, barrier) = (self.addresses(w, dst, mask)?, self.addresses(w, barrier, mask)?);
        let (map, coordinates) = (self.addresses(w, map, mask)?, self.srcs(w, at, mask)?);
        for lane in lanes_of(mask) {
            let map = self.tensor_map(map[lane])?;
            if map.dims.len() != n_dims {
                return Err(format!("{n_dims} coordinates for {} dimensions", map.dims.len()).into());
            }
            let (dst, n, alignment) = (shared_at(dst[lane]), map.box_bytes(), map.alignment());
            self.check_shared(dst as u64, n)?;
            if !dst.is_multiple_of(alignment) {
                return Err(format!("tensor copy to shared byte {dst}, no multiple of {alignment}").into());
            }
            self.shared.begin_copy(w, dst, n)?;
            let at = coordinates.iter().map(|c| i64::from(c[lane] as i32)).collect();
            self.in_flight.push(Tensor {
                map,
                dst,
                at,
                barrier: shared_at(barrier[lane]),
            });
        }
        Ok(())
    }

    /// The map at a generic address, which may lie in the parameters.
    fn tensor_map(&self, address: u64) -> Result<TensorMap> {
        if !address.is_multiple_of(64) {
            return Err(format!("tensor map at {address:#x}, no multiple of 64").into());
        }
        let at = (address & !crate::execute::PARAM_WINDOW) as usize;
        let bytes = match address == at as u64 {
            true => self.memory.slice(address, TENSOR_MAP_BYTES)?,
            false => self
                .launch
                .params
                .get(at..at + TENSOR_MAP_BYTES)
                .ok_or("tensor map in the parameters")?,
        };
        Ok(TensorMap::from_bytes(bytes)?)
    }

    fn deliver(&mut self, tensor: &Tensor) -> Result<()> {
        let element = usize::from(tensor.map.element);
        let mut copies = Vec::new();
        tensor
            .map
            .elements(tensor.dst, &tensor.at, |to, from| copies.push((to, from)));
        for (to, from) in copies {
            let target = &mut self.shared.bytes[to..][..element];
            match from {
                None => target.fill(0),
                Some(from) => target.copy_from_slice(self.memory.slice(from, element)?),
            }
        }
        let engine = self.warps.len();
        self.shared.end_copy(engine, tensor.dst, tensor.map.box_bytes());
        Ok(self
            .shared
            .delivered(tensor.barrier, tensor.map.box_bytes() as i64)?)
    }

    fn begin_product(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        let Op::Wgmma {
            n,
            ab,
            ref d,
            ref a,
            b,
            accumulate,
            negate,
            transposed,
        } = *op
        else {
            unreachable!("{op:?} is no product");
        };
        if ab != Ty::Bf16 {
            return Err(format!("wgmma of {ab:?} is not supported").into());
        }
        let operands = self.srcs(w, a, mask)?;
        let a = match operands[..] {
            [descriptor] => Left::Descriptor(descriptor[0]),
            _ => Left::Registers(operands),
        };
        let b = self.src(w, b, mask)?[0];
        let accumulate = self.warps[w].pred(accumulate) & 1 == 1;
        self.warps[w].products.push(Product {
            d: d.clone(),
            n,
            a,
            b,
            accumulate,
            negate,
            transposed,
        });
        self.statistics.matrix += 1;
        Ok(())
    }

    /// The 16 rows of a `wgmma` that belong to this warp.
    fn multiply(&mut self, w: usize, product: &Product) -> Result<()> {
        let left = self.left_rows(w, product)?;
        let mut right = vec![[0f32; TILE]; product.n];
        for (n, row) in right.iter_mut().enumerate() {
            for (k, value) in row.iter_mut().enumerate() {
                *value = self.operand(w, operand_at(product.b, n, k, product.transposed.1)?)?;
            }
        }
        let sign = if product.negate.0 == product.negate.1 {
            1.0
        } else {
            -1.0
        };
        for (r, &d) in product.d.iter().enumerate() {
            let before = match product.accumulate {
                true => self.src(w, Src::Reg(d), u32::MAX)?,
                false => [0; 32],
            };
            let out = std::array::from_fn(|lane| {
                let row = lane / 4 + 8 * (r / 2 % 2);
                let column = r / 4 * 8 + 2 * (lane % 4) + (r & 1);
                let products = left[row].iter().zip(&right[column]).map(|(a, b)| a * b);
                bits_of(f32_of(before[lane]) + sign * products.sum::<f32>())
            });
            self.warps[w].set(d, u32::MAX, &out);
        }
        Ok(())
    }

    fn left_rows(&mut self, w: usize, product: &Product) -> Result<[[f32; TILE]; TILE]> {
        let mut left = [[0f32; TILE]; TILE];
        match &product.a {
            Left::Descriptor(descriptor) => {
                for (row, values) in left.iter_mut().enumerate() {
                    for (k, value) in values.iter_mut().enumerate() {
                        let row = w % 4 * TILE + row;
                        *value = self.operand(w, operand_at(*descriptor, row, k, product.transposed.0)?)?;
                    }
                }
            }
            Left::Registers(registers) => {
                for (r, register) in registers.iter().enumerate() {
                    for (lane, bits) in register.iter().enumerate() {
                        let (row, k) = (lane / 4 + 8 * (r & 1), (r / 2 * 4 + lane % 4) * 2);
                        left[row][k] = f32_from_bf16(*bits as u16);
                        left[row][k + 1] = f32_from_bf16((*bits >> 16) as u16);
                    }
                }
            }
        }
        Ok(left)
    }

    /// One bf16 element that the tensor cores read.
    fn operand(&mut self, w: usize, at: usize) -> Result<f32> {
        self.check_shared(at as u64, 2)?;
        self.shared.read_by_engine(w, at, 2)?;
        let bytes = [self.shared.bytes[at], self.shared.bytes[at + 1]];
        Ok(f32_from_bf16(u16::from_le_bytes(bytes)))
    }
}
