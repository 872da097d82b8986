//! Device memory: allocations at virtual addresses that no host pointer shares.
//!
//! ```text
//! | guard | block | guard | block | guard ...      addresses only grow: freed ones never come back
//! ```
//!
//! New memory is all ones, which is NaN in every float format, so that a result made of it shows.

use std::collections::BTreeMap;

/// Where the first block starts: far from what a host pointer or a small number looks like.
const FIRST_ADDRESS: u64 = 0x7e_0000_0000;
/// Blocks are aligned as the real allocator's are, and as far apart.
const ALIGNMENT: u64 = 512;

/// Why an access was refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccessError {
    /// First byte of the access.
    pub address: u64,
    /// Its size in bytes.
    pub bytes: usize,
    /// Bytes by which it passes the end of the allocation where it starts; `None` where it starts in none.
    pub beyond: Option<u64>,
}

impl std::fmt::Display for AccessError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AccessError {
            address,
            bytes,
            beyond,
        } = self;
        write!(f, "access of {bytes} bytes at {address:#x}")?;
        match beyond {
            Some(beyond) => write!(f, " passes the end of its allocation by {beyond} bytes"),
            None => write!(f, ", in no allocation"),
        }
    }
}

impl std::error::Error for AccessError {}

/// The memory of one device.
#[derive(Debug)]
pub struct Memory {
    blocks: BTreeMap<u64, Vec<u8>>,
    next: u64,
    used: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Memory {
            blocks: BTreeMap::new(),
            next: FIRST_ADDRESS,
            used: 0,
        }
    }
}

impl Memory {
    /// A new block; its address is aligned to 512 bytes.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let address = self.next;
        self.next = (address + bytes as u64).next_multiple_of(ALIGNMENT) + ALIGNMENT;
        self.used += bytes;
        self.blocks.insert(address, vec![0xff; bytes]);
        address
    }

    /// Gives a block back; `false` where none starts at `address`.
    pub fn free(&mut self, address: u64) -> bool {
        let block = self.blocks.remove(&address);
        self.used -= block.as_ref().map_or(0, Vec::len);
        block.is_some()
    }

    /// Bytes in all blocks.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Blocks that were not given back.
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Whether `address` lies in a block.
    pub fn contains(&self, address: u64) -> bool {
        self.slice(address, 1).is_ok()
    }

    /// `bytes` bytes from `address` on.
    pub fn slice(&self, address: u64, bytes: usize) -> Result<&[u8], AccessError> {
        let found = self.blocks.range(..=address).next_back();
        let (start, block) = found.map_or((address, &[][..]), |(start, block)| (*start, &block[..]));
        let at = (address - start) as usize;
        let missed = AccessError::of(address, bytes, at, block.len());
        block.get(at..at.saturating_add(bytes)).ok_or(missed)
    }

    /// The same, to be written.
    pub fn slice_mut(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], AccessError> {
        let found = self.blocks.range_mut(..=address).next_back();
        let (start, block) = found.map_or((address, &mut [][..]), |(start, block)| (*start, &mut block[..]));
        let at = (address - start) as usize;
        let missed = AccessError::of(address, bytes, at, block.len());
        block.get_mut(at..at.saturating_add(bytes)).ok_or(missed)
    }
}

impl AccessError {
    /// Of an access that starts `at` bytes into a block of `len`.
    fn of(address: u64, bytes: usize, at: usize, len: usize) -> Self {
        let beyond = (at < len).then(|| (at.saturating_add(bytes)).saturating_sub(len) as u64);
        AccessError {
            address,
            bytes,
            beyond,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_inside_of_one_block_or_refused() {
        let mut memory = Memory::default();
        let (a, b) = (memory.allocate(100), memory.allocate(8));
        assert_eq!(
            (a % 512, b % 512, memory.used(), memory.n_blocks()),
            (0, 0, 108, 2)
        );
        assert!(
            memory
                .slice(a, 100)
                .is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0xff))
        );
        memory
            .slice_mut(b, 8)
            .expect("it is there")
            .copy_from_slice(&[7; 8]);
        assert_eq!(memory.slice(b + 7, 1), Ok(&[7][..]));
        let refused = |address, bytes| memory.slice(address, bytes).expect_err("refused").beyond;
        assert_eq!(refused(a + 96, 8), Some(4));
        assert_eq!(refused(a + 100, 1), None);
        assert_eq!(refused(16, 4), None);
    }

    #[test]
    fn freed_memory_never_comes_back() {
        let mut memory = Memory::default();
        let a = memory.allocate(16);
        assert!(memory.free(a) && !memory.free(a));
        assert_ne!(memory.allocate(16), a);
        assert!(!memory.contains(a));
    }
}
