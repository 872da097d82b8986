//! Pieces: what is found out about one leaf at one place, for all grammars with an equal leaf.

use std::sync::Arc;

use crate::cache::{Known, Piece, TextFragment, Way};
use crate::mask::TokenMask;
use crate::open::Open;
use crate::sweep::{ContentMachine, Exit, Found, TextMachine, sweep_new};
use crate::text::{PLAIN, Place, TextSpec};
use crate::trie::Trie;
use crate::vocabulary::Vocabulary;

impl Found {
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.exits.clear();
        self.is_dense = false;
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
        let of_range = |(begin, end): &(u32, u32)| &trie.tokens()[*begin as usize..*end as usize];
        let n_inside: usize = self.ranges.iter().map(|range| of_range(range).len()).sum();
        if n_inside > TokenMask::MAX_IDS {
            return self.inside_too(trie, vec![0; vocabulary.n_words()], vocabulary);
        }
        let mut ids: Vec<u32> = self.ranges.iter().flat_map(of_range).copied().collect();
        ids.sort_unstable();
        let mask = TokenMask::from_sorted_ids(ids, vocabulary.n_vocab());
        vocabulary.cache().mask(mask)
    }

    /// The mask of `words` and the tokens found inside.
    pub(crate) fn inside_too(&self, trie: &Trie, mut words: Vec<u64>, vocabulary: &Vocabulary) -> Known {
        self.add_to(trie, &mut words);
        let mask = TokenMask::from_words(words, vocabulary.n_vocab());
        vocabulary.cache().mask(mask)
    }
}

/// A place in a JSON string, with what grammars have in common of it.
#[derive(Clone, Copy)]
pub(crate) struct StringLeaf<'a> {
    pub(crate) spec: &'a TextSpec,
    pub(crate) fragment: &'a TextFragment,
    pub(crate) place: Place,
}

/// The tokens within a string of any content.
#[derive(Debug)]
pub(crate) struct AnyText {
    pub(crate) plain: Known,
    /// Those that are not plain.
    pub(crate) other: Arc<Piece>,
    /// The same for a string that must not end right here.
    pub(crate) unended: Arc<Piece>,
}

impl AnyText {
    pub(crate) fn new(vocabulary: &Vocabulary) -> Self {
        let spec = vocabulary.any_text();
        let mode = PLAIN;
        let fragment = vocabulary.cache().text(spec);
        let leaf = StringLeaf {
            spec,
            fragment: &fragment,
            place: Place { mode, ..spec.start() },
        };
        let other = leaf.other_piece(vocabulary);
        let unended = || {
            let quote = vocabulary.strings().other.child(None, b'"');
            other.unless(&quote.map_or(Vec::new(), |quote| vec![quote as u32]), vocabulary)
        };
        Self {
            plain: leaf.plain_piece(vocabulary).inside.clone(),
            unended: vocabulary.cache().piece(fragment.unended(), unended),
            other,
        }
    }
}

impl Piece {
    /// That of a string of any content, unless it ends at the nodes `denied` of the tree of those tokens that
    /// are not plain.
    fn unless(&self, denied: &[u32], vocabulary: &Vocabulary) -> Self {
        let ends = vocabulary.string_ends().iter();
        let ends = ends.filter(|node| !denied.contains(node));
        let exits = ends.map(|node| Exit {
            way: 0,
            node: *node,
            is_end: true,
        });
        let found = Found {
            exits: exits.collect(),
            ..Found::default()
        };
        Self {
            inside: self.inside.clone(),
            ways: ways(vocabulary, &vocabulary.strings().other, &found, true),
        }
    }
}

/// The nodes of the tree `other` at which a string of any content, `spec`, ends.
pub(crate) fn string_ends(spec: &TextSpec, other: &Trie) -> Box<[u32]> {
    let mut machine = TextMachine {
        text: spec,
        sets: &spec.content().classes().sets(),
    };
    let (mode, mut found) = (PLAIN, Found::default());
    let place = Place { mode, ..spec.start() };
    sweep_new(&mut machine, place, other, &mut found);
    found.exits.iter().map(|exit| exit.node).collect()
}

impl<'a> StringLeaf<'a> {
    /// Whether any text can follow within the string.
    pub(crate) fn is_open(self) -> bool {
        let Self { spec, place, .. } = self;
        let has_bounds = spec.bounds() != (0, None) || !spec.lengths().are_free();
        place.mode == PLAIN && !has_bounds && self.open().has(place.state)
    }

    /// What the tokens that are not plain do where any text can follow.
    pub(crate) fn open_piece(self, any: &AnyText, vocabulary: &Vocabulary) -> Arc<Piece> {
        let strings = vocabulary.strings();
        let sets = &self.fragment.content.sets;
        let mut denied = self
            .open()
            .denied_ends(self.spec, sets, self.place, &strings.other);
        match denied[..] {
            [] => any.other.clone(),
            [node] if strings.other.nodes()[node as usize].depth == 0 => any.unended.clone(),
            _ => {
                denied.sort_unstable();
                let essence = self.spec.essence(self.place, strings.max_other_chars);
                let make = || any.other.unless(&denied, vocabulary);
                vocabulary.cache().piece(self.fragment.at(essence), make)
            }
        }
    }

    fn open(self) -> &'a Open {
        self.fragment.content.open(self.spec.content())
    }

    /// The plain tokens that may follow, found now if not before.
    pub(crate) fn plain_piece(self, vocabulary: &Vocabulary) -> Arc<Piece> {
        let Self {
            spec,
            fragment,
            place,
        } = self;
        let essence = spec.essence(place, vocabulary.strings().max_plain_chars);
        vocabulary.cache().piece(fragment.at_plain(essence), || {
            let content = (place.mode == PLAIN).then(|| {
                let key = fragment.content.as_content(place.state);
                vocabulary.cache().piece(key, || {
                    let machine = ContentMachine {
                        text: spec,
                        fragment: &fragment.content,
                    };
                    content_piece(machine, place.state, vocabulary)
                })
            });
            let content = content.as_ref().map(|content| &*content.inside.mask);
            plain_piece(&mut self.machine(), place, content, vocabulary)
        })
    }

    /// The same for those that are not plain.
    pub(crate) fn other_piece(self, vocabulary: &Vocabulary) -> Arc<Piece> {
        let strings = vocabulary.strings();
        let essence = self.spec.essence(self.place, strings.max_other_chars);
        vocabulary.cache().piece(self.fragment.at(essence), || {
            let mut found = Found::default();
            sweep_new(&mut self.machine(), self.place, &strings.other, &mut found);
            Piece {
                inside: found.inside(&strings.other, vocabulary),
                ways: ways(vocabulary, &strings.other, &found, true),
            }
        })
    }

    fn machine(self) -> TextMachine<'a> {
        TextMachine {
            text: self.spec,
            sets: &self.fragment.content.sets,
        }
    }
}

/// Of a JSON string's content: the plain tokens that may follow in a state, lengths apart.
fn content_piece(mut machine: ContentMachine<'_>, state: u32, vocabulary: &Vocabulary) -> Piece {
    let strings = vocabulary.strings();
    let words = if machine.fragment.open(machine.text.content()).has(state) {
        strings.up_to(u32::MAX)
    } else {
        let mut found = Found::default();
        sweep_new(&mut machine, state, &strings.plain, &mut found);
        strings.words_of(&mut found.ranges, vocabulary.n_words())
    };
    Piece::inside(words, vocabulary)
}

/// Of a JSON string: the plain tokens that may follow at `place`. `content` are those of its content's state,
/// where the place is neither before the string nor within an escape.
fn plain_piece(
    machine: &mut TextMachine<'_>,
    place: Place,
    content: Option<&TokenMask>,
    vocabulary: &Vocabulary,
) -> Piece {
    let (strings, n_words) = (vocabulary.strings(), vocabulary.n_words());
    let Some(content) = content else {
        let mut found = Found::default();
        sweep_new(machine, place, &strings.plain, &mut found);
        return Piece::inside(strings.words_of(&mut found.ranges, n_words), vocabulary);
    };
    let mut words = vec![0; n_words];
    content.add_to(&mut words);
    let text = machine.text;
    let n_left = text.n_chars_left(place).unwrap_or(u32::MAX);
    if n_left == u32::MAX && text.lengths().are_free() {
        return Piece::inside(words, vocabulary);
    }
    let reached = text.content().reached_from(place.state);
    // Longer tokens need more: of each length all, none, or those that lead to a state that can be completed.
    let (mut kept, mut n_kept) = (vec![0; n_words], 0);
    for n_chars in 1..=n_left.min(strings.max_plain_chars) {
        let alive = text.lengths().alive(place.n_chars + n_chars);
        let Some(alive) = alive.filter(|alive| !reached.iter().all(|state| alive[*state as usize])) else {
            continue;
        };
        // All shorter ones since the last such length.
        strings.add_between(n_kept, n_chars - 1, &words, &mut kept);
        n_kept = n_chars;
        if !reached.iter().any(|state| alive[*state as usize]) {
            continue;
        }
        strings.for_each_of(n_chars, &words, |token| {
            let bytes = vocabulary.token_bytes(token).iter();
            let end = bytes.fold(place.state, |state, byte| text.content().step(state, *byte));
            if alive[end as usize] {
                kept[token as usize / 64] |= 1 << (token % 64);
            }
        });
    }
    strings.add_between(n_kept, n_left, &words, &mut kept);
    Piece::inside(kept, vocabulary)
}

impl Piece {
    /// The leaf that no token leaves.
    fn inside(words: Vec<u64>, vocabulary: &Vocabulary) -> Self {
        let mask = TokenMask::from_words(words, vocabulary.n_vocab());
        Self {
            inside: vocabulary.cache().mask(mask),
            ways: Box::default(),
        }
    }
}

/// Sorts where `found` says that a leaf ends by the way. Small subtrees are joined to one tree of what
/// follows the leaf; `is_foreign` subtrees, of another tree than the vocabulary's, all are.
pub(crate) fn ways(vocabulary: &Vocabulary, trie: &Trie, found: &Found, is_foreign: bool) -> Box<[Way]> {
    /// Trees with more tokens are left in place, and as few trees as this.
    const MAX_JOINED: usize = 64;
    const MIN_JOINED: usize = 5;
    let mut exits = found.exits.clone();
    exits.sort_unstable_by_key(|exit| (exit.way, exit.node));
    let of_way = |exits: &[Exit]| {
        let is_dense = found.is_dense && exits.iter().any(|exit| !exit.is_end);
        let longer = exits.iter().map(|exit| exit.node);
        let longer = longer.filter(|node| !is_dense && !trie.is_leaf(*node as usize));
        let mut nodes: Vec<u32> = longer.collect();
        let is_few = nodes.len() < MIN_JOINED;
        let is_joined = |node: &u32| match is_foreign {
            true => true,
            false => !is_few && trie.range_below(*node as usize).len() <= MAX_JOINED,
        };
        let joined: Vec<u32> = nodes.extract_if(.., |node| is_joined(node)).collect();
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
