//! Pieces: what is found out about one leaf at one place, for all grammars with an equal leaf.

use std::sync::Arc;

use crate::cache::{Known, Piece, Way};
use crate::hash::SmallSet;
use crate::mask::TokenMask;
use crate::sweep::{Exit, Found, TextMachine, sweep};
use crate::text::Place;
use crate::trie::Trie;
use crate::vocabulary::Vocabulary;

impl Found {
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.exits.clear();
    }

    /// Adds the tokens found inside to `words`.
    pub(crate) fn add_to(&self, trie: &Trie, words: &mut [u64]) {
        for (begin, end) in &self.ranges {
            for token in &trie.tokens()[*begin as usize..*end as usize] {
                words[*token as usize / 64] |= 1 << (token % 64);
            }
        }
    }

    /// The mask of the tokens found inside.
    pub(crate) fn inside(&self, trie: &Trie, vocabulary: &Vocabulary) -> Known {
        self.inside_too(trie, vec![0; vocabulary.n_words()], vocabulary)
    }

    /// The mask of `words` and the tokens found inside.
    pub(crate) fn inside_too(&self, trie: &Trie, mut words: Vec<u64>, vocabulary: &Vocabulary) -> Known {
        self.add_to(trie, &mut words);
        let mask = TokenMask::from_words(&words, vocabulary.n_vocab());
        vocabulary.cache().mask(mask)
    }
}

/// Plain text and the rest are looked at apart: of plain text most is decided without a look.
pub(crate) fn text_piece(machine: &mut TextMachine<'_>, place: Place, vocabulary: &Vocabulary) -> Piece {
    let strings = vocabulary.strings();
    let n_left = machine.text.n_chars_left(place).unwrap_or(u32::MAX);
    let words = if machine.text.is_open(place) {
        strings.up_to(n_left)
    } else {
        let mut plain = Found::default();
        machine.plain_chars = Some(strings.max_chars);
        sweep(machine, place, &strings.plain, None, &mut plain);
        machine.plain_chars = None;
        strings.words_of(&mut plain.ranges, vocabulary.n_words())
    };
    let mut other = Found::default();
    sweep(machine, place, &strings.other, None, &mut other);
    Piece {
        inside: other.inside_too(&strings.other, words, vocabulary),
        ways: ways(vocabulary, &strings.other, &other.exits, true),
    }
}

/// Sorts `exits` by their way. Small subtrees are joined to one tree of what follows the leaf; `is_foreign`
/// subtrees, of another tree than the vocabulary's, all are.
pub(crate) fn ways(vocabulary: &Vocabulary, trie: &Trie, exits: &[Exit], is_foreign: bool) -> Box<[Way]> {
    /// Trees with more tokens are left in place.
    const MAX_JOINED: usize = 64;
    const MAX_EXITS: usize = 4_096;
    let is_dense = exits.len() > MAX_EXITS;
    // Of a leaf that may end anywhere only its ways are wanted, and what ends with it.
    let mut seen = SmallSet::new();
    let is_wanted = |exit: &&Exit| !is_dense || exit.is_end || seen.insert(exit.way);
    let mut exits: Vec<Exit> = exits.iter().filter(is_wanted).copied().collect();
    exits.sort_unstable_by_key(|exit| (exit.way, exit.node));
    let of_way = |exits: &[Exit]| {
        let is_joined = |node: &u32| is_foreign || trie.range_below(*node as usize).len() <= MAX_JOINED;
        let longer = exits.iter().map(|exit| exit.node);
        let longer = longer.filter(|node| !is_dense && !trie.is_leaf(*node as usize));
        let (joined, nodes): (Vec<u32>, Vec<u32>) = longer.partition(is_joined);
        let mut suffixes = Vec::new();
        for node in &joined {
            let token_bytes = |token| vocabulary.token_bytes(token);
            trie.for_each_below(*node as usize, token_bytes, |rest, token| {
                suffixes.push((rest, token));
            });
        }
        let ends = exits.iter().filter(|exit| exit.is_end);
        Way {
            way: exits[0].way,
            here: ends
                .flat_map(|exit| trie.tokens_at(exit.node as usize))
                .copied()
                .collect(),
            nodes: nodes.into(),
            suffixes: (!suffixes.is_empty()).then(|| Arc::new(Trie::new(suffixes))),
            is_dense,
        }
    };
    exits.chunk_by(|a, b| a.way == b.way).map(of_way).collect()
}
