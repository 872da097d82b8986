//! What the lanes of a warp do together: barriers, shuffles, votes, matrix fragments and products.

use crate::access::MAX_VECTOR;
use crate::arithmetic::Lanes;
use crate::integer::reduce;
use crate::isa::{Addr, Op, ShflMode, Space, Src, VoteMode};
use crate::machine::{Machine, Named, Next, Result};
use crate::tensor::mma;
use crate::warp::lanes_of;

/// Bytes of a row of an 8 x 8 matrix of 16-bit elements.
const MATRIX_ROW: usize = 16;

impl Machine<'_> {
    pub(crate) fn collective(&mut self, w: usize, op: &Op, mask: u32) -> Result<Next> {
        // Those that name no members want the whole warp.
        let members = match *op {
            Op::WarpBarrier { members }
            | Op::Shfl { members, .. }
            | Op::Vote { members, .. }
            | Op::Elect { members, .. }
            | Op::Redux { members, .. } => self.members(w, members, mask)?,
            Op::ActiveMask { .. } => 0,
            _ => u32::MAX,
        };
        if !self.meets(w, members, mask) {
            return Ok(Next::Wait);
        }
        match *op {
            Op::WarpBarrier { .. } => {}
            Op::Barrier { id, n_threads, waits } => return self.arrive(w, mask, (id, n_threads), waits),
            Op::Shfl { .. } => self.shuffle(w, op, mask)?,
            Op::Vote { mode, d, p, .. } => {
                let (voters, warp) = (members & mask, &mut self.warps[w]);
                let yes = warp.pred(p) & voters;
                let answer = match mode {
                    VoteMode::Ballot => {
                        warp.set(d, mask, &[u64::from(yes); 32]);
                        return Ok(Next::Step);
                    }
                    VoteMode::All => yes == voters,
                    VoteMode::Any => yes != 0,
                    VoteMode::Uni => yes == 0 || yes == voters,
                };
                warp.set_pred(d, mask, if answer { u32::MAX } else { 0 });
            }
            Op::ActiveMask { d } => self.warps[w].set(d, mask, &[u64::from(mask); 32]),
            Op::Elect { p, .. } => self.warps[w].set_pred(p, mask, 1 << mask.trailing_zeros()),
            Op::Redux { f, ty, d, a, .. } => {
                let a = self.src(w, a, mask)?;
                let mut sum = a[mask.trailing_zeros() as usize];
                for lane in lanes_of(mask).skip(1) {
                    sum = reduce(f, ty, sum, a[lane], 0)?;
                }
                self.warps[w].set(d, mask, &[sum; 32]);
            }
            Op::Ldmatrix {
                transposed,
                ref d,
                addr,
            } => {
                let rows = self.matrix_rows(w, mask, addr, d.len())?;
                for (rows, &d) in rows.chunks_exact(8).zip(d) {
                    self.warps[w].set(d, mask, &fragment(rows, transposed));
                }
            }
            Op::Stmatrix {
                transposed,
                ref s,
                addr,
            } => self.store_matrices(w, mask, (s, transposed), addr)?,
            Op::Mma {
                k,
                ab,
                ref d,
                ref a,
                ref b,
                ref c,
            } => {
                let operands = [
                    self.srcs(w, a, mask)?,
                    self.srcs(w, b, mask)?,
                    self.srcs(w, c, mask)?,
                ];
                let out = mma(k, ab, &operands[0], &operands[1], &operands[2])?;
                for (d, out) in d.iter().zip(&out) {
                    self.warps[w].set(*d, mask, out);
                }
                self.statistics.matrix += 1;
            }
            _ => unreachable!("{op:?} is no collective"),
        }
        Ok(Next::Step)
    }

    /// Whether all lanes of `members` that still live are here; otherwise these wait.
    pub(crate) fn meets(&self, w: usize, members: u32, mask: u32) -> bool {
        let needed = members & self.warps[w].alive;
        mask & needed == needed
    }

    /// The members that the lanes name, all the same, and themselves among them.
    fn members(&self, w: usize, members: Src, mask: u32) -> Result<u32> {
        let values = self.src(w, members, mask)?;
        let first = values[mask.trailing_zeros() as usize] as u32;
        if lanes_of(mask).any(|lane| values[lane] as u32 != first || first >> lane & 1 == 0) {
            return Err("lanes of a collective name other members, or not themselves".into());
        }
        Ok(first)
    }

    fn arrive(&mut self, w: usize, mask: u32, (id, n): (Src, Option<Src>), waits: bool) -> Result<Next> {
        let first = mask.trailing_zeros() as usize;
        let id = self.src(w, id, mask)?[first] as usize;
        let n_threads = n
            .map(|n| self.src(w, n, mask))
            .transpose()?
            .map(|n| n[first] as usize);
        let named = self
            .named
            .get_mut(id)
            .ok_or_else(|| format!("barrier {id}, there are 16"))?;
        if named.warps >> w & 1 == 1 {
            return Err(format!("the warp arrives at barrier {id} twice").into());
        }
        named.warps |= 1 << w;
        named.n_threads += if n_threads.is_some() {
            32
        } else {
            mask.count_ones() as usize
        };
        if waits {
            self.warps[w].stopped = Some(id);
        }
        self.release(id, n_threads);
        Ok(Next::Yield)
    }

    /// Opens a barrier if enough threads are there: `n_threads`, or all that live.
    pub(crate) fn release(&mut self, id: usize, n_threads: Option<usize>) {
        let named = self.named[id];
        let alive = || {
            self.warps
                .iter()
                .map(|warp| warp.alive.count_ones() as usize)
                .sum()
        };
        if named.warps == 0 || named.n_threads < n_threads.unwrap_or_else(alive) {
            return;
        }
        self.shared.join(named.warps);
        self.n_idle_polls = 0;
        self.named[id] = Named::default();
        for warp in &mut self.warps {
            if warp.stopped == Some(id) {
                warp.stopped = None;
            }
        }
    }

    fn shuffle(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        let Op::Shfl {
            mode, d, p, a, b, c, ..
        } = *op
        else {
            unreachable!("{op:?} is no shuffle");
        };
        let (a, b, c) = (
            self.src(w, a, mask)?,
            self.src(w, b, mask)?,
            self.src(w, c, mask)?,
        );
        let (mut in_range, mut out) = (0, [0; 32]);
        for lane in lanes_of(mask) {
            let (clamp, segment) = ((c[lane] & 31) as usize, (c[lane] >> 8 & 31) as usize);
            let by = (b[lane] & 31) as usize;
            let highest = lane & segment | clamp & !segment;
            let from = match mode {
                // Its clamp is the lowest lane.
                ShflMode::Up => lane.checked_sub(by).filter(|&from| from >= highest),
                ShflMode::Down => Some(lane + by).filter(|&from| from <= highest),
                ShflMode::Bfly => Some(lane ^ by).filter(|&from| from <= highest),
                ShflMode::Idx => Some(lane & segment | by & !segment).filter(|&from| from <= highest),
            };
            in_range |= u32::from(from.is_some()) << lane;
            let from = from.unwrap_or(lane);
            if mask >> from & 1 == 0 {
                return Err(
                    format!("lane {lane} reads lane {from}, which takes no part in the shuffle").into(),
                );
            }
            out[lane] = a[from];
        }
        self.warps[w].set(d, mask, &out);
        if let Some(p) = p {
            self.warps[w].set_pred(p, mask, in_range);
        }
        Ok(())
    }

    /// The rows of the `n` matrices of `ldmatrix`: lanes 8i and up give the addresses of matrix i.
    fn matrix_rows(&mut self, w: usize, mask: u32, addr: Addr, n: usize) -> Result<Vec<[u8; MAX_VECTOR]>> {
        let addresses = self.addresses(w, addr, mask)?;
        let used = if n == 4 { u32::MAX } else { (1 << (n * 8)) - 1 };
        self.count_shared(&addresses, used, MATRIX_ROW);
        let row = |lane| self.read((w, lane), Space::Shared, addresses[lane], MATRIX_ROW);
        (0..n * 8).map(row).collect()
    }

    fn store_matrices(
        &mut self,
        w: usize,
        mask: u32,
        (s, transposed): (&[Src], bool),
        addr: Addr,
    ) -> Result<()> {
        let addresses = self.addresses(w, addr, mask)?;
        for (matrix, s) in self.srcs(w, s, mask)?.iter().enumerate() {
            for row in 0..8 {
                let mut data = [0; MATRIX_ROW];
                for (column, out) in data.chunks_exact_mut(2).enumerate() {
                    let (x, y) = if transposed { (column, row) } else { (row, column) };
                    let value = (s[x * 4 + y / 2] >> (y % 2 * 16)) as u16;
                    out.copy_from_slice(&value.to_le_bytes());
                }
                let lane = matrix * 8 + row;
                self.write((w, lane), Space::Shared, addresses[lane], &data)?;
            }
        }
        Ok(())
    }
}

/// What each lane gets of an 8 x 8 matrix: elements 2 (lane % 4) and the next of row lane / 4, or of that
/// column.
fn fragment(rows: &[[u8; MAX_VECTOR]], transposed: bool) -> Lanes {
    let element = |row: usize, column: usize| {
        u64::from(u16::from_le_bytes([
            rows[row][column * 2],
            rows[row][column * 2 + 1],
        ]))
    };
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        if transposed {
            element(column, row) | element(column + 1, row) << 16
        } else {
            element(row, column) | element(row, column + 1) << 16
        }
    })
}
