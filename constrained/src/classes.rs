//! Bytes by whether an automaton tells them apart.

use std::hash::Hash;

use crate::dfa::ByteSet;
use crate::hash::Map;

/// Which bytes an automaton never tells apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Classes {
    of: [u8; 256],
    /// One byte of each class.
    members: Vec<u8>,
}

impl Classes {
    /// The coarsest classes within which `key` is constant.
    pub(crate) fn by<K: Eq + Hash>(key: impl Fn(u8) -> K) -> Self {
        let mut seen: Map<K, u8> = Map::default();
        let (mut of, mut members) = ([0; 256], Vec::new());
        for byte in 0..=255u8 {
            let next = members.len();
            let class = *seen.entry(key(byte)).or_insert_with(|| {
                members.push(byte);
                u8::try_from(next).expect("256 bytes make at most 256 classes")
            });
            of[usize::from(byte)] = class;
        }
        Self { of, members }
    }

    /// A class for each number that bytes have.
    pub(crate) fn of_numbers(numbers: &[u8; 256]) -> Self {
        let (mut ids, mut members) = ([None; 256], Vec::new());
        let bytes = (0..=255u8).zip(numbers);
        let mut of = [0; 256];
        for (byte, number) in bytes {
            of[usize::from(byte)] = *ids[usize::from(*number)].get_or_insert_with(|| {
                members.push(byte);
                (members.len() - 1) as u8
            });
        }
        Self { of, members }
    }

    /// A class for each byte that `is_alone`, and one for the others.
    pub(crate) fn alone(is_alone: &[bool; 256]) -> Self {
        let (mut of, mut members, mut others) = ([0; 256], Vec::new(), None);
        for byte in 0..=255u8 {
            let is_alone = is_alone[usize::from(byte)];
            let class = match others {
                Some(others) if !is_alone => others,
                _ => {
                    members.push(byte);
                    (members.len() - 1) as u8
                }
            };
            if !is_alone {
                others = Some(class);
            }
            of[usize::from(byte)] = class;
        }
        Self { of, members }
    }

    /// Fewer classes: each becomes a part of the one that `first` has for it, which is no later one.
    pub(crate) fn merged(&self, first: &[usize]) -> Self {
        let (mut ids, mut members) = (vec![0; self.len()], Vec::new());
        for (class, first) in first.iter().enumerate() {
            ids[class] = ids[*first];
            if *first == class {
                ids[class] = members.len() as u8;
                members.push(self.members[class]);
            }
        }
        Self {
            of: self.of.map(|class| ids[usize::from(class)]),
            members,
        }
    }

    /// The classes of both.
    pub(crate) fn refine(&self, other: &Self) -> Self {
        let mut ids = vec![None; self.len() * other.len()];
        let (mut of, mut members) = ([0; 256], Vec::new());
        for byte in 0..=255u8 {
            let id = &mut ids[self.of(byte) * other.len() + other.of(byte)];
            of[usize::from(byte)] = *id.get_or_insert_with(|| {
                members.push(byte);
                u8::try_from(members.len() - 1).expect("256 bytes make at most 256 classes")
            });
        }
        Self { of, members }
    }

    #[inline]
    pub(crate) fn of(&self, byte: u8) -> usize {
        usize::from(self.of[usize::from(byte)])
    }

    /// The bytes of each class.
    pub(crate) fn sets(&self) -> Box<[ByteSet]> {
        let mut sets = vec![[0; 4]; self.len()];
        for byte in 0..=255u8 {
            sets[self.of(byte)][usize::from(byte) / 64] |= 1 << (byte % 64);
        }
        sets.into()
    }

    /// One byte of each class, by class.
    pub(crate) fn members(&self) -> &[u8] {
        &self.members
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// By class, whether any of its bytes is usable.
    pub(crate) fn usable(&self, bytes: &[bool; 256]) -> Vec<bool> {
        let mut usable = vec![false; self.len()];
        for byte in 0..=255u8 {
            usable[self.of(byte)] |= bytes[usize::from(byte)];
        }
        usable
    }
}
