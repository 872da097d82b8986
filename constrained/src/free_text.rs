//! Free text: any UTF-8, until one of a few markers is complete.
//!
//! An Aho-Corasick automaton over the markers and the excluded texts, run beside a check that the text is
//! UTF-8, is one leaf. A complete marker ends the leaf, and what the marker asks for follows; an excluded
//! text is never completed. Special tokens may be markers too, at any border between characters.
//!
//! Masks are cheap: at the beginning of the automaton a token that is whole text and has no byte with which a
//! marker begins leads back to the beginning, so that these tokens are a ready-made set. Elsewhere only the
//! tokens that begin with a byte that goes on with a marker differ from it.
//!
//! Invariants: no marker contains another or is contained in an excluded text or contains one; a marker's
//! state has no edges.

use std::sync::Arc;

use crate::cache::Piece;
use crate::dfa::{ByteSet, Classes, DEAD, Dfa, bytes_of};
use crate::error::{CompileError, shorten};
use crate::hash::Map;
use crate::ir::{Ir, Node, NodeId};
use crate::pieces::ways;
use crate::sweep::{Found, Machine, Step, sweep_new};
use crate::text::step_utf8;
use crate::trie::Trie;
use crate::vocabulary::Vocabulary;

/// Whether the output, or what encloses the free text, may go on without a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Anywhere,
    AtMarker,
}

/// What is to become a free text.
#[derive(Clone, Debug)]
pub(crate) struct FreeSpec {
    /// Texts and what follows each.
    pub(crate) markers: Vec<(String, NodeId)>,
    /// Special tokens and what follows each.
    pub(crate) tokens: Vec<(u32, NodeId)>,
    pub(crate) excludes: Vec<String>,
    pub(crate) ending: Ending,
}

#[derive(Debug)]
pub(crate) struct FreeText {
    pub(crate) dfa: u32,
    /// By automaton state: what follows the marker that is complete there.
    complete: Map<u32, NodeId>,
    tokens: Vec<(u32, NodeId)>,
    ending: Ending,
    /// By automaton state: whether it stands between characters.
    is_border: Vec<bool>,
    split: Arc<Split>,
}

impl FreeText {
    /// Bytes of memory, without what the vocabulary's grammars share.
    pub(crate) fn n_bytes(&self) -> usize {
        size_of::<Self>() + self.complete.len() * 16 + self.tokens.len() * 8 + self.is_border.len()
    }

    pub(crate) fn after(&self, state: u32) -> Option<NodeId> {
        self.complete.get(&state).copied()
    }

    pub(crate) fn may_end(&self, state: u32) -> bool {
        self.ending == Ending::Anywhere && self.is_border[state as usize]
    }

    /// The tokens that may be taken by number in `state`, and what follows.
    pub(crate) fn tokens_at(&self, state: u32) -> &[(u32, NodeId)] {
        if self.is_border[state as usize] {
            &self.tokens
        } else {
            &[]
        }
    }

    pub(crate) fn after_token(&self, state: u32, token: u32) -> Option<NodeId> {
        let found = self.tokens_at(state).iter().find(|(known, _)| *known == token);
        found.map(|(_, node)| *node)
    }

    /// What follows its markers.
    pub(crate) fn nodes_after(&self) -> impl Iterator<Item = NodeId> {
        let of_tokens = self.tokens.iter().map(|(_, node)| *node);
        self.complete.values().copied().chain(of_tokens)
    }

    pub(crate) fn is_nullable(&self) -> bool {
        self.ending == Ending::Anywhere
    }
}

impl Ir {
    /// A leaf for the text of `spec`.
    pub(crate) fn free_text(
        &mut self,
        vocabulary: &Vocabulary,
        spec: FreeSpec,
    ) -> Result<NodeId, CompileError> {
        check(&spec)?;
        let search = Search::new(&spec);
        let max = self.bounds().max_states;
        if search.nodes.len() * 2 > max {
            return Err(CompileError::Limit {
                name: "max_automaton_states",
                limit: max as u64,
                place: "the markers of a free text".to_owned(),
            });
        }
        let can_leave = spec.ending == Ending::Anywhere || !spec.tokens.is_empty();
        let accept = |(node, rest): &(u32, u8)| {
            *rest == 0 && (can_leave || search.nodes[*node as usize].marker.is_some())
        };
        let step = |state: &(u32, u8), byte| search.step(*state, byte);
        let dfa = Dfa::explore_unreduced(search.classes(), (0, 0), step, accept, usize::MAX);
        let dfa = dfa.expect("no limit is set").trimmed(self.is_spelled());
        if dfa.start() == DEAD {
            return Ok(self.node(Node::Never));
        }
        let mut is_border = vec![false; dfa.n_states()];
        let mut complete = Map::default();
        for (state, (node, rest)) in search.places(&dfa) {
            is_border[state as usize] = rest == 0;
            if let Some(marker) = search.nodes[node as usize].marker {
                complete.insert(state, spec.markers[marker].1);
            }
        }
        let split = vocabulary.split(search.first_bytes());
        self.has_tokens |= !spec.tokens.is_empty();
        let dfa = self.push_dfa(dfa);
        self.free_texts.push(FreeText {
            dfa,
            complete,
            tokens: spec.tokens,
            ending: spec.ending,
            is_border,
            split,
        });
        Ok(self.node(Node::Free(self.free_texts.len() as u32 - 1)))
    }
}

fn check(spec: &FreeSpec) -> Result<(), CompileError> {
    let refuse = |why: String| Err(CompileError::Markers { why });
    let texts = spec.markers.iter().map(|(text, _)| text).chain(&spec.excludes);
    if texts.clone().any(String::is_empty) {
        return refuse("an empty text is a marker or excluded".to_owned());
    }
    for (i, (marker, _)) in spec.markers.iter().enumerate() {
        for (j, text) in texts.clone().enumerate().filter(|(j, _)| *j != i) {
            let (long, short) = if text.contains(marker.as_str()) {
                (text, marker)
            } else if j >= spec.markers.len() && marker.contains(text.as_str()) {
                (marker, text)
            } else {
                continue;
            };
            let (long, short) = (shorten(long), shorten(short));
            return refuse(format!("`{long}` never comes, because `{short}` comes first"));
        }
    }
    let mut tokens: Vec<u32> = spec.tokens.iter().map(|(token, _)| *token).collect();
    tokens.sort_unstable();
    if let Some(pair) = tokens.windows(2).find(|pair| pair[0] == pair[1]) {
        return refuse(format!("token {} is listed twice", pair[0]));
    }
    Ok(())
}

/// One node of the tree of markers.
#[derive(Default)]
struct SearchNode {
    children: Vec<(u8, u32)>,
    /// The longest proper suffix that is a node too.
    suffix: u32,
    marker: Option<usize>,
    is_excluded: bool,
}

struct Search {
    nodes: Vec<SearchNode>,
}

impl Search {
    fn new(spec: &FreeSpec) -> Self {
        let mut search = Self {
            nodes: vec![SearchNode::default()],
        };
        for (marker, (text, _)) in spec.markers.iter().enumerate() {
            let node = search.insert(text);
            search.nodes[node as usize].marker = Some(marker);
        }
        for text in &spec.excludes {
            let node = search.insert(text);
            search.nodes[node as usize].is_excluded = true;
        }
        // In the order of depth, so that a suffix is complete before it is asked for.
        let mut queue = vec![0];
        let mut at = 0;
        while let Some(node) = queue.get(at).copied() {
            at += 1;
            for (byte, child) in search.nodes[node as usize].children.clone() {
                let suffix = if node == 0 {
                    0
                } else {
                    search.next(search.nodes[node as usize].suffix, byte)
                };
                search.nodes[child as usize].suffix = suffix;
                let is_excluded = search.nodes[suffix as usize].is_excluded;
                search.nodes[child as usize].is_excluded |= is_excluded;
                queue.push(child);
            }
        }
        search
    }

    fn insert(&mut self, text: &str) -> u32 {
        text.bytes().fold(0, |node, byte| {
            self.child(node, byte).unwrap_or_else(|| {
                let child = self.nodes.len() as u32;
                self.nodes.push(SearchNode::default());
                self.nodes[node as usize].children.push((byte, child));
                child
            })
        })
    }

    fn child(&self, node: u32, byte: u8) -> Option<u32> {
        let children = &self.nodes[node as usize].children;
        children
            .iter()
            .find(|(edge, _)| *edge == byte)
            .map(|(_, child)| *child)
    }

    fn next(&self, mut node: u32, byte: u8) -> u32 {
        loop {
            match self.child(node, byte) {
                Some(child) => return child,
                None if node == 0 => return 0,
                None => node = self.nodes[node as usize].suffix,
            }
        }
    }

    fn step(&self, (node, rest): (u32, u8), byte: u8) -> Option<(u32, u8)> {
        if self.nodes[node as usize].marker.is_some() {
            return None;
        }
        let rest = step_utf8(rest, byte)?;
        let next = self.next(node, byte);
        (!self.nodes[next as usize].is_excluded).then_some((next, rest))
    }

    fn classes(&self) -> Classes {
        let mut is_alone = [false; 256];
        for node in &self.nodes {
            for (byte, _) in &node.children {
                is_alone[usize::from(*byte)] = true;
            }
        }
        let alone = Classes::by(|byte| is_alone[usize::from(byte)].then_some(byte));
        alone.refine(crate::text::any_content().classes())
    }

    /// What each state of the finished automaton stands for.
    fn places(&self, dfa: &Dfa) -> Vec<(u32, (u32, u8))> {
        let mut found = vec![false; dfa.n_states()];
        let mut places = vec![(dfa.start(), (0, 0))];
        found[dfa.start() as usize] = true;
        let mut at = 0;
        while let Some((state, place)) = places.get(at).copied() {
            at += 1;
            for byte in dfa.classes().members() {
                let next = dfa.step(state, *byte);
                if next != DEAD && !std::mem::replace(&mut found[next as usize], true) {
                    let place = self.step(place, *byte).expect("the automaton has the edge");
                    places.push((next, place));
                }
            }
        }
        places
    }

    fn first_bytes(&self) -> ByteSet {
        bytes_of(self.nodes[0].children.iter().map(|(byte, _)| *byte))
    }
}

/// The tokens of a vocabulary, by whether they can begin a marker.
#[derive(Debug)]
pub(crate) struct Split {
    /// Whole texts without a byte that begins a marker.
    plain: Vec<u64>,
    /// All other tokens.
    rest: Trie,
}

impl Split {
    pub(crate) fn new(vocabulary: &Vocabulary, first: &ByteSet) -> Self {
        let mut plain = vocabulary.whole_text().to_vec();
        let is_first = |byte: &u8| first[usize::from(*byte) / 64] >> (byte % 64) & 1 == 1;
        let mut rest = Vec::new();
        for token in vocabulary.trie().tokens() {
            let text = vocabulary.token_bytes(*token);
            let word = &mut plain[*token as usize / 64];
            if text.iter().any(is_first) {
                *word &= !(1 << (token % 64));
            }
            if *word >> (token % 64) & 1 == 0 {
                rest.push((text, *token));
            }
        }
        Self {
            plain,
            rest: Trie::new(rest),
        }
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        self.plain.len() * 8 + self.rest.n_bytes()
    }
}

/// A free text; its way out is the state of the marker, or 0 without one.
pub(crate) struct FreeMachine<'a> {
    free: &'a FreeText,
    dfa: &'a Dfa,
    /// Of its classes.
    sets: &'a [ByteSet],
    /// Whether bytes may follow where no marker came.
    may_leave: bool,
    /// The bytes to look at where the text goes on.
    first: ByteSet,
}

const ALL_BYTES: ByteSet = [u64::MAX; 4];

impl Machine for FreeMachine<'_> {
    /// The state, and whether it is the one in which the look began.
    type Place = (u32, bool);

    fn bytes(&mut self, (state, is_first): (u32, bool)) -> ByteSet {
        let bytes = self.dfa.bytes(state, self.sets);
        if is_first {
            std::array::from_fn(|word| bytes[word] & self.first[word])
        } else {
            bytes
        }
    }

    fn step(&mut self, (state, _): (u32, bool), byte: u8) -> Step<(u32, bool)> {
        let state = self.dfa.step(state, byte);
        if state == DEAD {
            return Step::NONE;
        }
        if self.free.after(state).is_some() {
            return Step {
                inside: None,
                exit: Some(state),
            };
        }
        Step {
            inside: Some((state, false)),
            exit: (self.may_leave && self.free.may_end(state)).then_some(0),
        }
    }
}

impl<'a> FreeMachine<'a> {
    pub(crate) fn new(ir: &'a Ir, free: u32, sets: &'a [ByteSet], may_leave: bool) -> Self {
        let free = &ir.free_texts[free as usize];
        Self {
            free,
            dfa: &ir.dfas[free.dfa as usize],
            sets,
            may_leave,
            first: ALL_BYTES,
        }
    }

    /// What is known about `state`.
    pub(crate) fn piece(&mut self, vocabulary: &Vocabulary, state: u32) -> Piece {
        let (split, trie) = (&self.free.split, vocabulary.trie());
        let mut own = Found::default();
        if !self.free.is_border[state as usize] {
            sweep_new(self, (state, true), trie, &mut own);
            return Piece {
                inside: own.inside(trie, vocabulary),
                ways: ways(vocabulary, trie, &own, false),
            };
        }
        let mut words = split.plain.clone();
        let start = self.dfa.start();
        let differs = |byte: &u8| self.dfa.step(state, *byte) != self.dfa.step(start, *byte);
        let apart: Vec<u8> = (0..=255).filter(differs).collect();
        for node in apart.iter().filter_map(|byte| trie.child(None, *byte)) {
            for token in &trie.tokens()[trie.range_below(node)] {
                words[*token as usize / 64] &= !(1 << (token % 64));
            }
        }
        self.first = bytes_of(apart);
        sweep_new(self, (state, true), trie, &mut own);
        own.add_to(trie, &mut words);
        self.first = ALL_BYTES;
        let mut other = Found::default();
        sweep_new(self, (state, true), &split.rest, &mut other);
        let of_own = ways(vocabulary, trie, &own, false);
        let of_other = ways(vocabulary, &split.rest, &other, true);
        Piece {
            inside: other.inside_too(&split.rest, words, vocabulary),
            ways: of_own.into_iter().chain(of_other).collect(),
        }
    }
}
