//! The states that an output went through, shared between forks.
//!
//! Full blocks are shared and never change; only the last states are an output's own. So a fork copies at most
//! a block, and taking back tokens drops blocks.

use std::sync::Arc;

use crate::tables::StateId;

const BLOCK_LEN: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct History {
    before: Option<Arc<Block>>,
    /// 1 to `BLOCK_LEN` states.
    own: Vec<StateId>,
    n_before: usize,
}

#[derive(Debug)]
struct Block {
    states: [StateId; BLOCK_LEN],
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
    pub(crate) fn new(start: StateId) -> Self {
        Self {
            before: None,
            own: vec![start],
            n_before: 0,
        }
    }

    /// States, the start included.
    pub(crate) fn len(&self) -> usize {
        self.n_before + self.own.len()
    }

    pub(crate) fn last(&self) -> StateId {
        *self.own.last().expect("the start is never taken back")
    }

    pub(crate) fn push(&mut self, state: StateId) {
        if let Ok(states) = <[StateId; BLOCK_LEN]>::try_from(&self.own[..]) {
            let before = self.before.take();
            self.before = Some(Arc::new(Block { states, before }));
            self.n_before += BLOCK_LEN;
            self.own.clear();
        }
        self.own.push(state);
    }

    /// Takes back the last `n` states; one must be left.
    pub(crate) fn truncate_by(&mut self, mut n: usize) {
        assert!(n < self.len(), "{n} of {} states", self.len());
        while n >= self.own.len() {
            n -= self.own.len();
            let block = self.before.take().expect("so many are left");
            self.own.clear();
            self.own.extend(block.states);
            self.before.clone_from(&block.before);
            self.n_before -= BLOCK_LEN;
        }
        self.own.truncate(self.own.len() - n);
    }

    /// All states, the start first.
    pub(crate) fn states(&self) -> Vec<StateId> {
        let mut blocks = Vec::new();
        let mut at = &self.before;
        while let Some(block) = at {
            blocks.push(block);
            at = &block.before;
        }
        let shared = blocks.iter().rev().flat_map(|block| block.states);
        shared.chain(self.own.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_whatever_is_shared() {
        let (mut history, mut list) = (History::new(7), vec![7]);
        let mut forks = Vec::new();
        let mut random = 1u32;
        for n in 0..4_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if random >> 24 < 30 {
                let back = (random >> 8) as usize % list.len().min(200);
                history.truncate_by(back);
                list.truncate(list.len() - back);
            } else {
                history.push(n);
                list.push(n);
            }
            assert_eq!(
                (history.len(), history.last()),
                (list.len(), list[list.len() - 1])
            );
            if n % 97 == 0 {
                forks.push((history.clone(), list.clone()));
            }
        }
        for (fork, list) in forks {
            assert_eq!(fork.states(), list);
        }
    }

    #[test]
    fn a_very_long_one_is_dropped_without_recursion() {
        let mut history = History::new(0);
        (0..10_000_000).for_each(|n| history.push(n));
        assert_eq!(history.len(), 10_000_001);
    }
}
