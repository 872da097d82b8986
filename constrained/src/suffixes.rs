//! What tokens do after a leaf that they complete, kept for the next mask.
//!
//! While a string or a name is written, each place of it has a mask of its own, but what tokens have after
//! the closing quote, and what is still to come there, are the same. So that is followed once for each tree
//! of what is left of tokens and each set of stacks.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::cache::Known;
use crate::fill::{Asked, Filling, MAX_ENTERED, Onward, Point, StepTheSet};
use crate::hash::Map;
use crate::mask::TokenMask;
use crate::stacks::StackId;
use crate::tables::Tables;
use crate::trie::Trie;

/// All that was followed so far, by tree and stacks. A tree is known by its place in memory, where it stays
/// as long as this does.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    known: Map<(usize, StackId), Ending>,
    trees: Map<usize, Arc<Trie>>,
    n_bytes: usize,
}

/// The tokens that go on.
#[derive(Debug)]
struct Ending {
    tokens: Known,
    /// Leaves that were entered for them.
    n_entered: usize,
}

impl Followed {
    /// About how much memory it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    fn keep(&mut self, suffixes: &Arc<Trie>, stack: StackId, ending: Ending) {
        const ENTRY_BYTES: usize = 64;
        let place = Arc::as_ptr(suffixes) as usize;
        if self.trees.insert(place, suffixes.clone()).is_none() {
            self.n_bytes += suffixes.n_bytes() + ENTRY_BYTES;
        }
        self.n_bytes += ending.tokens.mask.n_bytes() + ENTRY_BYTES;
        self.known.insert((place, stack), ending);
    }
}

impl Tables {
    /// Follows what goes on after leaves, in the vocabulary's tree and in those of what is left of tokens.
    pub(crate) fn follow_all(
        &mut self,
        asked: Asked<'_>,
        onward: &mut Onward,
        filling: &mut Filling,
    ) -> Result<(), StepTheSet> {
        self.follow(asked, asked.vocabulary.trie(), onward, filling)?;
        while let Some((suffixes, stack)) = filling.apart.pop() {
            let place = Arc::as_ptr(&suffixes) as usize;
            if let Some(ending) = self.followed.known.get(&(place, stack)) {
                filling.n_entered += ending.n_entered;
                filling.add_part(&ending.tokens);
                if filling.n_entered > MAX_ENTERED {
                    return Err(StepTheSet);
                }
                continue;
            }
            let (n_extras, n_unsure) = (filling.extras.len(), filling.unsure.len());
            let n_entered = filling.n_entered;
            filling.met_texts = self.stacks.keeps_text(stack);
            onward.push(Reverse(Point::root(stack)));
            self.follow(asked, &suffixes, onward, filling)?;
            // What keeps a text is followed within limits, and some of it is looked at again.
            if !filling.met_texts && filling.unsure.len() == n_unsure {
                let tokens = filling.extras.split_off(n_extras);
                let ending = Ending {
                    tokens: asked.known(tokens),
                    n_entered: filling.n_entered - n_entered,
                };
                filling.add_part(&ending.tokens);
                self.followed.keep(&suffixes, stack, ending);
            }
        }
        Ok(())
    }
}

impl Asked<'_> {
    /// The mask of `tokens`, in any order.
    fn known(&self, mut tokens: Vec<u32>) -> Known {
        tokens.sort_unstable();
        tokens.dedup();
        let n_vocab = self.vocabulary.n_vocab();
        if tokens.len() <= TokenMask::MAX_IDS {
            let mask = TokenMask::from_sorted_ids(tokens, n_vocab);
            return self.vocabulary.cache().mask(mask);
        }
        let mut words = vec![0; self.vocabulary.n_words()];
        for token in tokens {
            words[token as usize / 64] |= 1 << (token % 64);
        }
        self.vocabulary
            .cache()
            .mask(TokenMask::from_words(words, n_vocab))
    }
}
