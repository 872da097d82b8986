//! A list that grows and shrinks at its end and whose clones share what they have in common.
//!
//! Full blocks are shared and never change; only the last entries are a list's own. So a clone copies at most
//! a block, and shrinking drops blocks.

use std::sync::Arc;

const BLOCK_LEN: usize = 64;

#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    before: Option<Arc<Block>>,
    /// At most `BLOCK_LEN` entries, and one at least unless the list is empty.
    own: Vec<u32>,
    n_before: usize,
}

#[derive(Debug)]
struct Block {
    entries: [u32; BLOCK_LEN],
    before: Option<Arc<Block>>,
}

impl Drop for Block {
    /// One by one: a long chain would overflow the stack.
    fn drop(&mut self) {
        let mut next = self.before.take();
        while let Some(mut block) = next.and_then(Arc::into_inner) {
            next = block.before.take();
        }
    }
}

impl History {
    pub(crate) fn len(&self) -> usize {
        self.n_before + self.own.len()
    }

    pub(crate) fn last(&self) -> Option<u32> {
        self.own.last().copied()
    }

    pub(crate) fn push(&mut self, state: u32) {
        if let Ok(entries) = <[u32; BLOCK_LEN]>::try_from(&self.own[..]) {
            let before = self.before.take();
            self.before = Some(Arc::new(Block { entries, before }));
            self.n_before += BLOCK_LEN;
            self.own.clear();
        }
        self.own.push(state);
    }

    /// Takes back the last `n` entries.
    pub(crate) fn truncate_by(&mut self, mut n: usize) {
        assert!(n <= self.len(), "{n} of {} entries", self.len());
        while n >= self.own.len() {
            n -= self.own.len();
            self.own.clear();
            let Some(block) = self.before.take() else {
                return;
            };
            self.own.extend(block.entries);
            self.before.clone_from(&block.before);
            self.n_before -= BLOCK_LEN;
        }
        self.own.truncate(self.own.len() - n);
    }

    /// All entries, the first one first.
    pub(crate) fn entries(&self) -> Vec<u32> {
        let mut blocks = Vec::new();
        let mut at = &self.before;
        while let Some(block) = at {
            blocks.push(block);
            at = &block.before;
        }
        let shared = blocks.iter().rev().flat_map(|block| block.entries);
        shared.chain(self.own.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_whatever_is_shared() {
        let (mut history, mut list) = (History::default(), Vec::new());
        let mut forks = Vec::new();
        let mut random = 1u32;
        for n in 0..4_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if random >> 24 < 30 {
                let back = (random >> 8) as usize % (list.len() + 1).min(200);
                history.truncate_by(back);
                list.truncate(list.len() - back);
            } else {
                history.push(n);
                list.push(n);
            }
            assert_eq!(
                (history.len(), history.last()),
                (list.len(), list.last().copied())
            );
            if n % 97 == 0 {
                forks.push((history.clone(), list.clone()));
            }
        }
        for (fork, list) in forks {
            assert_eq!(fork.entries(), list);
        }
    }

    #[test]
    fn a_very_long_one_is_dropped_without_recursion() {
        let mut history = History::default();
        (0..10_000_000).for_each(|n| history.push(n));
        assert_eq!(history.len(), 10_000_000);
    }
}
