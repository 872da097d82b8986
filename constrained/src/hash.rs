//! Hashing for tables that only this process fills: a multiply and a rotation per word.
//!
//! The keys are automaton states, which a stranger's schema shapes but does not choose bit by bit, and every
//! table is bounded; the standard SipHash is several times slower here.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A set that is searched one by one while it is small: most are, and a table costs more to build.
#[derive(Debug)]
pub(crate) struct SmallSet<T> {
    listed: Vec<T>,
    table: HashSet<T, BuildHasherDefault<WordHasher>>,
}

impl<T> Default for SmallSet<T> {
    fn default() -> Self {
        Self {
            listed: Vec::new(),
            table: HashSet::default(),
        }
    }
}

impl<T: Copy + Eq + Hash> SmallSet<T> {
    pub(crate) fn clear(&mut self) {
        self.listed.clear();
        self.table.clear();
    }

    /// Whether `item` is new to the set.
    pub(crate) fn insert(&mut self, item: T) -> bool {
        const MAX_LISTED: usize = 24;
        if self.listed.len() < MAX_LISTED {
            let is_new = !self.listed.contains(&item);
            if is_new {
                self.listed.push(item);
            }
            return is_new;
        }
        if self.table.is_empty() {
            self.table.extend(&self.listed);
        }
        self.table.insert(item)
    }
}

pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<WordHasher>>;

#[derive(Clone, Copy, Default)]
pub(crate) struct WordHasher(u64);

const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        // The table takes its bucket from the low bits and its tag from the high ones.
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(u64::from_le_bytes(chunk.try_into().expect("chunks of eight")));
        }
        for byte in chunks.remainder() {
            self.write_u64(u64::from(*byte) | 1 << 8);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(23) ^ n).wrapping_mul(FACTOR);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}
