//! Tokens that are certainly allowed in a very ambiguous state, found without its stacks.
//!
//! Of a stack only the top is looked at: what comes next is entered above it, and again above that, and
//! nothing below is ever completed. That is an automaton with few states, whatever was written: of a grammar
//! of palindromes all that may come is one more letter, any number of times. Its tokens are found once for
//! each state and need not be walked. It allows less than the grammar and never more, as long as the output
//! has room for what it opens.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cache::Known;
use crate::dfa::{ByteSet, DEAD};
use crate::fill::Asked;
use crate::hash::Map;
use crate::ir::{Ir, Node, NodeId};
use crate::nesting::NEVER;
use crate::stacks::{Frame, Stacks};
use crate::step::{Leaf, Reading};
use crate::sweep::{Found, Machine, Step, sweep_new};

/// Tokens of more bytes are not looked at.
const MAX_BYTES: u32 = 32;

/// What comes when a leaf is complete, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Then {
    Unknown,
    /// The sequence's part `at` and those after it.
    Seq {
        seq: NodeId,
        at: u32,
    },
    /// The body of a repetition without end, once more.
    Again(NodeId),
    Node(NodeId),
}

/// A place in a byte automaton.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Item {
    dfa: u32,
    state: u32,
    then: Then,
}

type SetId = u32;

/// All sets of places met so far.
#[derive(Debug)]
pub(crate) struct Ahead {
    sets: Vec<Arc<[Item]>>,
    ids: Map<Arc<[Item]>, SetId>,
    /// By set and class of bytes; `None` is nowhere.
    steps: Map<(SetId, u8), Option<SetId>>,
    masks: Map<SetId, Known>,
    /// Deeper stacks are left out.
    max_depth: Option<u32>,
}

impl Ahead {
    pub(crate) fn new(ir: &Ir, max_depth: u32) -> Self {
        // Each byte may open as much as can be opened at once; then what is open must be completed.
        let n_frames = ir.most_frames().saturating_mul(MAX_BYTES + 1);
        let needs = ir.needs.iter().filter(|need| **need != NEVER).max();
        let room = n_frames.saturating_add(*needs.unwrap_or(&0));
        Self {
            sets: Vec::new(),
            ids: Map::default(),
            steps: Map::default(),
            masks: Map::default(),
            max_depth: max_depth.checked_sub(room).filter(|_| ir.marks.is_empty()),
        }
    }

    /// About how much memory it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        let n_items: usize = self.sets.iter().map(|set| set.len()).sum();
        let n_mask_bytes: usize = self.masks.values().map(|known| known.mask.n_bytes()).sum();
        n_items * size_of::<Item>() + self.sets.len() * 64 + self.steps.len() * 16 + n_mask_bytes
    }

    fn number(&mut self, items: BTreeSet<Item>) -> SetId {
        let items: Arc<[Item]> = items.into_iter().collect();
        let fresh = self.sets.len() as SetId;
        let id = *self.ids.entry(items.clone()).or_insert(fresh);
        if id == fresh {
            self.sets.push(items);
        }
        id
    }

    /// Tokens that may come in `readings`, not all of them; `None` where nothing is known.
    pub(crate) fn tokens(
        &mut self,
        asked: Asked<'_>,
        stacks: &Stacks,
        readings: &[Reading],
    ) -> Option<Known> {
        let max_depth = self.max_depth?;
        let mut items = BTreeSet::new();
        for reading in readings {
            let Leaf::Dfa { dfa, state } = reading.leaf else {
                continue;
            };
            for (frame, depth) in stacks.tops(reading.stack) {
                if depth <= max_depth {
                    let then = then_of(asked.ir, frame);
                    items.insert(Item { dfa, state, then });
                }
            }
        }
        let set = self.number(items);
        if let Some(known) = self.masks.get(&set) {
            return Some(known.clone());
        }
        let (trie, mut found) = (asked.vocabulary.trie(), Found::default());
        let mut machine = SetMachine {
            ahead: self,
            ir: asked.ir,
        };
        sweep_new(&mut machine, (set, 0), trie, &mut found);
        let known = found.inside(trie, asked.vocabulary);
        self.masks.insert(set, known.clone());
        Some(known)
    }

    fn step(&mut self, ir: &Ir, set: SetId, byte: u8) -> Option<SetId> {
        // There are 256 classes at most.
        let slot = (set, ir.classes.of(byte) as u8);
        if let Some(known) = self.steps.get(&slot) {
            return *known;
        }
        let (mut items, mut goes_on) = (BTreeSet::new(), false);
        for item in self.sets[set as usize].iter() {
            let automaton = &ir.dfas[item.dfa as usize];
            let state = automaton.step(item.state, byte);
            if state == DEAD {
                continue;
            }
            goes_on = true;
            if automaton.has_edges(state) {
                items.insert(Item { state, ..*item });
            }
            if automaton.is_accepting(state) {
                enter(ir, item.then, &mut items);
            }
        }
        let next = goes_on.then(|| self.number(items));
        self.steps.insert(slot, next);
        next
    }
}

fn then_of(ir: &Ir, frame: Frame) -> Then {
    match frame {
        Frame::Seq { seq, at } => Then::Seq { seq, at },
        Frame::Repeat { node, .. } => again(ir, node),
        Frame::Then(node) => Then::Node(node),
        _ => Then::Unknown,
    }
}

fn again(ir: &Ir, node: NodeId) -> Then {
    match ir.nodes[node as usize] {
        Node::Repeat { max: None, .. } => Then::Again(node),
        _ => Then::Unknown,
    }
}

/// Adds the places in which `then` begins.
fn enter(ir: &Ir, then: Then, items: &mut BTreeSet<Item>) {
    let (mut todo, mut entered) = (Vec::new(), BTreeSet::new());
    let resume = |then: Then, todo: &mut Vec<(NodeId, Then)>| match then {
        Then::Unknown => {}
        Then::Node(node) => todo.push((node, Then::Unknown)),
        Then::Again(node) => {
            if let Node::Repeat { body, .. } = ir.nodes[node as usize] {
                todo.push((body, then));
            }
        }
        Then::Seq { seq, at } => {
            if let Node::Seq(parts) = &ir.nodes[seq as usize] {
                let next = at + 1;
                let has_more = (next as usize) < parts.len();
                let then = if has_more {
                    Then::Seq { seq, at: next }
                } else {
                    Then::Unknown
                };
                todo.push((parts[at as usize], then));
            }
        }
    };
    resume(then, &mut todo);
    while let Some((node, then)) = todo.pop() {
        if ir.needs[node as usize] == NEVER || !entered.insert((node, then)) {
            continue;
        }
        match &ir.nodes[node as usize] {
            Node::Empty => resume(then, &mut todo),
            Node::Dfa(dfa) => {
                let automaton = &ir.dfas[*dfa as usize];
                let state = automaton.start();
                if automaton.is_accepting(state) {
                    resume(then, &mut todo);
                }
                items.insert(Item {
                    dfa: *dfa,
                    state,
                    then,
                });
            }
            Node::Seq(parts) => todo.push((parts[0], Then::Seq { seq: node, at: 1 })),
            Node::Alt(parts) => todo.extend(parts.iter().map(|part| (*part, then))),
            Node::Rule(rule) => todo.push((ir.rules[*rule as usize], then)),
            Node::Repeat { body, min, max } => {
                if *min == 0 {
                    resume(then, &mut todo);
                }
                if *max != Some(0) {
                    todo.push((*body, again(ir, node)));
                }
            }
            // Other parts are walked.
            _ => {}
        }
    }
}

struct SetMachine<'a> {
    ahead: &'a mut Ahead,
    ir: &'a Ir,
}

impl Machine for SetMachine<'_> {
    /// A set, and bytes since the beginning.
    type Place = (SetId, u32);

    fn bytes(&mut self, _place: Self::Place) -> ByteSet {
        [u64::MAX; 4]
    }

    fn step(&mut self, (set, n_bytes): Self::Place, byte: u8) -> Step<Self::Place> {
        if n_bytes >= MAX_BYTES {
            return Step::NONE;
        }
        let next = self.ahead.step(self.ir, set, byte);
        Step {
            inside: next.map(|next| (next, n_bytes + 1)),
            exit: None,
        }
    }
}
