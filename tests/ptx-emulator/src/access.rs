//! Loads, stores and atomics: where a lane's bytes are, whether it may touch them, and what that costs.

use crate::arithmetic::Lanes;
use crate::execute::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::integer::{reduce, sign_extended};
use crate::isa::{Addr, Op, Reg, Space, Src, Ty};
use crate::machine::{FaultKind, Machine, Result, Trouble};
use crate::warp::lanes_of;

/// Bytes that memory moves at once.
const SECTOR: u64 = 32;
const N_BANKS: usize = 32;
/// Most bytes that a lane loads or stores at once.
pub(crate) const MAX_VECTOR: usize = 32;

/// The space of a generic address and the address in it.
fn resolved(space: Space, address: u64) -> (Space, u64) {
    if space != Space::Generic {
        return (space, address);
    }
    let windows = [
        (Space::Shared, SHARED_WINDOW),
        (Space::Local, LOCAL_WINDOW),
        (Space::Param, PARAM_WINDOW),
    ];
    let found = windows.into_iter().find(|(_, window)| address & window != 0);
    found.map_or((Space::Global, address), |(space, window)| {
        (space, address & !window)
    })
}

/// The bytes as a number.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

fn misaligned(space: Space, address: u64, bytes: usize) -> Trouble {
    let message = format!("misaligned access of {bytes} bytes at {address:#x} of {space:?} memory");
    Trouble {
        kind: FaultKind::Misaligned,
        message,
    }
}

impl Machine<'_> {
    pub(crate) fn access(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        match *op {
            Op::Load {
                space,
                ty,
                ref d,
                addr,
            } => self.load(w, mask, (space, ty), d, addr),
            Op::Store {
                space,
                ty,
                ref s,
                addr,
            } => self.store(w, mask, (space, ty), s, addr),
            Op::Atomic { .. } => self.atomic(w, op, mask),
            _ => unreachable!("{op:?} does not access memory"),
        }
    }

    /// What a lane reads; only the first `bytes` bytes mean something.
    pub(crate) fn read(
        &mut self,
        (w, lane): (usize, usize),
        space: Space,
        address: u64,
        bytes: usize,
    ) -> Result<[u8; MAX_VECTOR]> {
        let (space, at) = resolved(space, address);
        if !at.is_multiple_of(bytes as u64) {
            return Err(misaligned(space, at, bytes));
        }
        let mut out = [0; MAX_VECTOR];
        let source = match space {
            Space::Shared => {
                self.check_shared(at, bytes)?;
                self.shared.read(w, at as usize, bytes)?;
                &self.shared.bytes[at as usize..][..bytes]
            }
            Space::Local => {
                let range = self.local_range(lane, at, bytes)?;
                &self.warps[w].local[range]
            }
            Space::Param => {
                let params = self.launch.params.get(at as usize..at as usize + bytes);
                params.ok_or_else(|| format!("parameter bytes {at} to {}", at + bytes as u64))?
            }
            Space::Global | Space::Generic => self.memory.slice(at, bytes)?,
        };
        out[..bytes].copy_from_slice(source);
        Ok(out)
    }

    /// A lane writes `data`.
    pub(crate) fn write(
        &mut self,
        (w, lane): (usize, usize),
        space: Space,
        address: u64,
        data: &[u8],
    ) -> Result<()> {
        let (space, at) = resolved(space, address);
        let bytes = data.len();
        if !at.is_multiple_of(bytes as u64) {
            return Err(misaligned(space, at, bytes));
        }
        let target = match space {
            Space::Shared => {
                self.check_shared(at, bytes)?;
                self.shared.write(w, at as usize, bytes)?;
                &mut self.shared.bytes[at as usize..][..bytes]
            }
            Space::Local => {
                let range = self.local_range(lane, at, bytes)?;
                &mut self.warps[w].local[range]
            }
            Space::Param => return Err("a parameter is written".into()),
            Space::Global | Space::Generic => self.memory.slice_mut(at, bytes)?,
        };
        target.copy_from_slice(data);
        Ok(())
    }

    pub(crate) fn check_shared(&self, at: u64, bytes: usize) -> Result<()> {
        if self.shared.fits(at, bytes) {
            return Ok(());
        }
        let message = format!(
            "access of {bytes} bytes at shared byte {at} of {}",
            self.shared.bytes.len()
        );
        Err(Trouble {
            kind: FaultKind::Address,
            message,
        })
    }

    fn local_range(&self, lane: usize, at: u64, bytes: usize) -> Result<std::ops::Range<usize>> {
        let size = self.launch.kernel.local_bytes;
        if at.saturating_add(bytes as u64) > size as u64 {
            let message = format!("access of {bytes} bytes at local byte {at} of {size}");
            return Err(Trouble {
                kind: FaultKind::Address,
                message,
            });
        }
        let start = lane * size + at as usize;
        Ok(start..start + bytes)
    }

    fn load(
        &mut self,
        w: usize,
        mask: u32,
        (space, ty): (Space, Ty),
        d: &[Option<Reg>],
        addr: Addr,
    ) -> Result<()> {
        let addresses = self.addresses(w, addr, mask)?;
        let (each, bytes) = (ty.bytes(), ty.bytes() * d.len());
        self.count(space, &addresses, mask, (bytes, false));
        let mut out = vec![[0u64; 32]; d.len()];
        for lane in lanes_of(mask) {
            let data = self.read((w, lane), space, addresses[lane], bytes)?;
            for (part, out) in data[..bytes].chunks_exact(each).zip(&mut out) {
                let value = number(part);
                out[lane] = if ty.is_signed() {
                    sign_extended(value, each as u32 * 8)
                } else {
                    value
                };
            }
        }
        for (d, out) in d.iter().zip(&out) {
            if let Some(d) = *d {
                self.warps[w].set(d, mask, out);
            }
        }
        Ok(())
    }

    fn store(&mut self, w: usize, mask: u32, (space, ty): (Space, Ty), s: &[Src], addr: Addr) -> Result<()> {
        let addresses = self.addresses(w, addr, mask)?;
        let (each, bytes) = (ty.bytes(), ty.bytes() * s.len());
        self.count(space, &addresses, mask, (bytes, true));
        let values = self.srcs(w, s, mask)?;
        for lane in lanes_of(mask) {
            let mut data = [0; MAX_VECTOR];
            for (part, values) in data.chunks_exact_mut(each).zip(&values) {
                part.copy_from_slice(&values[lane].to_le_bytes()[..each]);
            }
            self.write((w, lane), space, addresses[lane], &data[..bytes])?;
        }
        Ok(())
    }

    fn atomic(&mut self, w: usize, op: &Op, mask: u32) -> Result<()> {
        let Op::Atomic {
            space,
            f,
            ty,
            d,
            addr,
            a,
            b,
        } = *op
        else {
            unreachable!("{op:?} is no atomic");
        };
        let (addresses, a) = (self.addresses(w, addr, mask)?, self.src(w, a, mask)?);
        let b = b.map_or(Ok([0; 32]), |b| self.src(w, b, mask))?;
        let bytes = ty.bytes();
        let mut out = [0; 32];
        for lane in lanes_of(mask) {
            let (space, at) = resolved(space, addresses[lane]);
            if !at.is_multiple_of(bytes as u64) {
                return Err(misaligned(space, at, bytes));
            }
            let target = match space {
                Space::Shared => {
                    self.check_shared(at, bytes)?;
                    // Atomics order themselves; only what surrounds them is checked.
                    &mut self.shared.bytes[at as usize..][..bytes]
                }
                Space::Global => self.memory.slice_mut(at, bytes)?,
                other => return Err(format!("an atomic in {other:?} memory").into()),
            };
            out[lane] = number(target);
            let value = reduce(f, ty, out[lane], a[lane], b[lane])?;
            target.copy_from_slice(&value.to_le_bytes()[..bytes]);
        }
        if let Some(d) = d {
            self.warps[w].set(d, mask, &out);
        }
        Ok(())
    }

    /// Counts an access of all lanes of `mask`.
    fn count(&mut self, space: Space, addresses: &Lanes, mask: u32, (bytes, writes): (usize, bool)) {
        let (space, first) = resolved(space, addresses[mask.trailing_zeros() as usize]);
        match space {
            Space::Shared => {
                let window = addresses[mask.trailing_zeros() as usize] - first;
                self.count_shared(
                    &addresses.map(|address| address.wrapping_sub(window)),
                    mask,
                    bytes,
                );
            }
            Space::Global => self.count_global(addresses, mask, bytes, writes),
            _ => {}
        }
    }

    pub(crate) fn count_global(&mut self, addresses: &Lanes, mask: u32, bytes: usize, writes: bool) {
        let mut sectors = Vec::with_capacity(64);
        for lane in lanes_of(mask) {
            let last = addresses[lane].wrapping_add(bytes as u64 - 1);
            sectors.extend(addresses[lane] / SECTOR..=last / SECTOR);
        }
        sectors.sort_unstable();
        sectors.dedup();
        let n = sectors.len() as u64;
        if writes {
            self.statistics.global_stores += 1;
            self.statistics.global_store_sectors += n;
        } else {
            self.statistics.global_loads += 1;
            self.statistics.global_load_sectors += n;
        }
    }

    /// Cycles of an access: 16 bytes a lane go 8 lanes at a time, 8 bytes 16, the others all at once. Lanes
    /// that read the same word do not conflict.
    pub(crate) fn count_shared(&mut self, addresses: &Lanes, mask: u32, bytes: usize) {
        let at_once = (128 / bytes.max(4)).clamp(1, 32);
        for start in (0..32).step_by(at_once) {
            let lanes = (start..start + at_once).filter(|lane| mask >> lane & 1 == 1);
            let words =
                lanes.flat_map(|lane| addresses[lane] / 4..(addresses[lane] + bytes as u64).div_ceil(4));
            let mut words: Vec<u64> = words.collect();
            words.sort_unstable();
            words.dedup();
            let mut banks = [0u64; N_BANKS];
            for word in words {
                banks[word as usize % N_BANKS] += 1;
            }
            let cycles = banks.into_iter().max().unwrap_or(0);
            self.statistics.shared_cycles += cycles;
            self.statistics.shared_ideal += u64::from(cycles > 0);
        }
    }
}
