//! Which tokens stay within one leaf, and where tokens leave it: one leaf's machine run over a prefix tree.
//!
//! This knows nothing of stacks, so that what it finds holds for every grammar with an equal leaf.

use crate::alphabet::Alphabets;
use crate::cache::Fragment;
use crate::dfa::{ByteSet, DEAD, Dfa};
use crate::keys::KeyTrie;
use crate::object::Allowed;
use crate::text::{Moved, Place, TextSpec};
use crate::trie::Trie;

/// What one byte does to a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<P> {
    /// Where the leaf goes on.
    pub(crate) inside: Option<P>,
    /// That it may be complete; the number tells in which way.
    pub(crate) exit: Option<u32>,
}

impl<P> Step<P> {
    pub(crate) const NONE: Self = Self {
        inside: None,
        exit: None,
    };
}

/// A leaf that can be run byte by byte.
pub(crate) trait Machine {
    type Place: Copy;
    /// The bytes that may lead anywhere from `place`, and maybe more.
    fn bytes(&mut self, place: Self::Place) -> ByteSet;
    fn step(&mut self, place: Self::Place, byte: u8) -> Step<Self::Place>;
    /// Whether it matters where the leaf may be complete.
    const ENDS: bool = true;
    /// Alphabets of which every text of up to `n_chars` characters may follow `place` without leaving the
    /// leaf; maybe not all of them.
    fn safe(&self, _place: Self::Place, _n_chars: u8) -> Alphabets {
        0
    }
    /// Whether nothing needs to be found out about the tokens that begin with `node`.
    fn knows_all(&self, _trie: &Trie, _node: usize) -> bool {
        false
    }
}

/// A way out: a node at whose end the leaf may be complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) way: u32,
    pub(crate) node: u32,
    /// Whether the tokens that end at the node count only when something can follow the leaf.
    pub(crate) is_end: bool,
}

/// What a sweep has found; several add to the same.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Ranges of the tree's tokens that end inside.
    pub(crate) ranges: Vec<(u32, u32)>,
    pub(crate) exits: Vec<Exit>,
    /// The leaf may be complete nearly everywhere: where it may go on as well, that is not listed.
    pub(crate) is_dense: bool,
}

/// Memory that sweeps use one after the other; its contents mean nothing.
#[derive(Debug)]
pub(crate) struct Buffers<P> {
    /// Wide nodes to go on from.
    open: Vec<(usize, P)>,
    /// By depth in the current piece of the tree.
    places: Vec<P>,
}

impl<P> Default for Buffers<P> {
    fn default() -> Self {
        Self {
            open: Vec::new(),
            places: Vec::new(),
        }
    }
}

/// Runs `machine` from `place` over all tokens of `trie`.
pub(crate) fn sweep_new<M: Machine>(machine: &mut M, place: M::Place, trie: &Trie, found: &mut Found) {
    sweep(machine, place, (trie, None), &mut Buffers::default(), found);
}

/// Runs `machine` from `place` over the tokens of a tree that are longer than a node of it.
///
/// PERF: nodes lie in the order of a walk, so that subtrees without wide nodes are one pass over an array;
/// 100,438 nodes took 2.2 ms with a stack of nodes.
pub(crate) fn sweep<M: Machine>(
    machine: &mut M,
    place: M::Place,
    (trie, from): (&Trie, Option<usize>),
    buffers: &mut Buffers<M::Place>,
    found: &mut Found,
) {
    buffers.open.clear();
    let mut walk = Walk {
        machine,
        trie,
        found,
        buffers,
    };
    walk.below(from, place);
    while let Some((node, place)) = walk.buffers.open.pop() {
        walk.below(Some(node), place);
    }
}

struct Walk<'a, M: Machine> {
    machine: &'a mut M,
    trie: &'a Trie,
    found: &'a mut Found,
    buffers: &'a mut Buffers<M::Place>,
}

impl<M: Machine> Walk<'_, M> {
    /// Goes through the children of `node`.
    fn below(&mut self, node: Option<usize>, place: M::Place) {
        let trie = self.trie;
        if trie.is_wide(node) {
            let bytes = self.machine.bytes(place);
            trie.for_each_child(node, bytes, |child| {
                self.run(child, trie.nodes()[child].skip as usize, place);
            });
        } else {
            let node = node.expect("the root is wide");
            self.run(node + 1, trie.nodes()[node].skip as usize, place);
        }
    }

    /// Goes through the subtrees of the siblings from `at` up to `end`.
    fn run(&mut self, mut at: usize, end: usize, place: M::Place) {
        let nodes = self.trie.nodes();
        let Some(first) = nodes[..end].get(at) else {
            return;
        };
        let Buffers { open, places } = &mut *self.buffers;
        places.clear();
        places.push(place);
        while at < end {
            let node = nodes[at];
            let skip = node.skip as usize;
            if self.machine.knows_all(self.trie, at) {
                at = skip;
                continue;
            }
            let level = usize::from(node.depth - first.depth);
            let step = self.machine.step(places[level], node.byte);
            let is_leaf = skip == at + 1;
            if let Some(way) = step.exit {
                let is_end = step.inside.is_none();
                if is_end || !is_leaf {
                    let node = at as u32;
                    self.found.add_exit(Exit { way, node, is_end });
                }
            }
            let Some(next) = step.inside else {
                at = skip;
                continue;
            };
            // Where tokens end within a character nothing is known of alphabets.
            let may_skip = (!M::ENDS || self.found.is_dense) && node.below != 0;
            if may_skip && node.below & self.machine.safe(next, node.height) != 0 {
                self.found.add(self.trie.range_below(at));
                at = skip;
                continue;
            }
            self.found.add(self.trie.own_range(at));
            if !is_leaf {
                if self.trie.is_wide(Some(at)) {
                    open.push((at, next));
                    at = skip;
                    continue;
                }
                places.truncate(level + 1);
                places.push(next);
            }
            at += 1;
        }
    }
}

impl Found {
    fn add_exit(&mut self, exit: Exit) {
        const MAX_EXITS: usize = 4_096;
        if self.exits.len() < MAX_EXITS || exit.is_end {
            self.exits.push(exit);
        } else {
            self.is_dense = true;
        }
    }

    fn add(&mut self, range: std::ops::Range<usize>) {
        let (begin, end) = (range.start as u32, range.end as u32);
        match self.ranges.last_mut() {
            Some(last) if last.1 == begin => last.1 = end,
            _ if begin < end => self.ranges.push((begin, end)),
            _ => {}
        }
    }
}

/// A byte automaton from one of its states.
pub(crate) struct DfaMachine<'a> {
    pub(crate) dfa: &'a Dfa,
    pub(crate) fragment: &'a Fragment,
}

impl Machine for DfaMachine<'_> {
    type Place = u32;

    fn bytes(&mut self, place: u32) -> ByteSet {
        self.dfa.bytes(place, &self.fragment.sets)
    }

    fn safe(&self, place: u32, n_chars: u8) -> Alphabets {
        self.fragment.safe(self.dfa, place, n_chars)
    }

    fn step(&mut self, place: u32, byte: u8) -> Step<u32> {
        let state = self.dfa.step(place, byte);
        if state == DEAD {
            return Step::NONE;
        }
        // Every state but the dead one accepts or goes on.
        let is_accepting = self.dfa.is_accepting(state);
        Step {
            inside: (!is_accepting || self.dfa.has_edges(state)).then_some(state),
            exit: is_accepting.then_some(0),
        }
    }
}

/// The content of a JSON string, for tokens that are plain text.
pub(crate) struct ContentMachine<'a> {
    pub(crate) text: &'a TextSpec,
    /// Of its content.
    pub(crate) fragment: &'a Fragment,
}

impl Machine for ContentMachine<'_> {
    type Place = u32;
    const ENDS: bool = false;

    fn bytes(&mut self, place: u32) -> ByteSet {
        self.text.content().bytes(place, &self.fragment.sets)
    }

    fn step(&mut self, place: u32, byte: u8) -> Step<u32> {
        let state = self.text.content().step(place, byte);
        Step {
            inside: (state != DEAD).then_some(state),
            exit: None,
        }
    }

    fn safe(&self, place: u32, n_chars: u8) -> Alphabets {
        self.fragment.safe(self.text.content(), place, n_chars)
    }
}

/// A JSON string.
pub(crate) struct TextMachine<'a> {
    pub(crate) text: &'a TextSpec,
    /// Of its content's classes.
    pub(crate) sets: &'a [ByteSet],
}

impl Machine for TextMachine<'_> {
    type Place = Place;

    fn bytes(&mut self, place: Place) -> ByteSet {
        self.text.bytes(place, self.sets)
    }

    fn step(&mut self, place: Place, byte: u8) -> Step<Place> {
        match self.text.step(place, byte) {
            Moved::Dead => Step::NONE,
            Moved::To(place) => Step {
                inside: Some(place),
                exit: None,
            },
            Moved::End => Step {
                inside: None,
                exit: Some(0),
            },
        }
    }
}

/// The same for those declared keys that are `allowed`, from `place` in their tree; the way out is the key.
/// Few tokens go along with a key: its tree is followed, not that of the tokens.
pub(crate) fn sweep_keys(
    keys: &KeyTrie,
    (place, allowed): (u32, &Allowed),
    (trie, from): (&Trie, Option<usize>),
    open: &mut Vec<(u32, Option<usize>)>,
    found: &mut Found,
) {
    open.clear();
    open.push((place, from));
    while let Some((place, node)) = open.pop() {
        keys.for_each_child(place, allowed, |byte, place| {
            let Some(child) = trie.child(node, byte) else {
                return;
            };
            match keys.key_at(place) {
                Some(key) => found.exits.push(Exit {
                    way: key,
                    node: child as u32,
                    is_end: true,
                }),
                None => {
                    found.add(trie.own_range(child));
                    open.push((place, Some(child)));
                }
            }
        });
    }
}
