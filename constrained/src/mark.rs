//! Parts of a grammar that say something of the tokens within them: how many there may be, and how they are
//! sampled.
//!
//! A part with a limit of N tokens is complete, wherever it is, once N tokens have begun within it. The frame
//! of an open part holds how many more may begin, and one more from when it is entered until the token ends
//! that was read then; so a frame at the border of two tokens holds 1 to N. Between two characters' bytes
//! nothing is cut: a limit waits for the end of the character.
//!
//! What a token may be never depends on how many are left, because a limit acts between tokens only. So
//! states that differ in that alone have one mask.

use std::collections::BTreeSet;

use crate::hash::Map;
use crate::ir::{Ir, Node, NodeId};
use crate::stacks::{Edge, Frame, StackId, Stacks};
use crate::step::Reading;
use crate::tables::{NOTHING, StateId, Tables};

/// What a part says of the tokens within it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Mark {
    /// How many may begin within it; at least one.
    pub(crate) max_tokens: Option<u32>,
    /// Which temperature they are sampled with.
    pub(crate) temperature: Option<f32>,
}

impl Ir {
    /// `body`, of which `mark` says something.
    pub(crate) fn marked(&mut self, body: NodeId, mark: Mark) -> NodeId {
        self.has_limits |= mark.max_tokens.is_some();
        self.marks.push(mark);
        let mark = self.marks.len() as u32 - 1;
        self.node(Node::Marked { body, mark })
    }

    /// The frame of a part that was just entered.
    pub(crate) fn marked_frame(&self, mark: u32) -> Frame {
        let n_left = self.marks[mark as usize]
            .max_tokens
            .map_or(0, |max| max.saturating_add(1));
        Frame::Marked { mark, n_left }
    }
}

/// A set of stacks with other numbers of tokens left.
struct Changed {
    /// Without the stacks that are cut; `None` when all are.
    kept: Option<StackId>,
    /// What is below the parts that are cut.
    below_cut: Vec<StackId>,
}

impl Stacks {
    /// `root` with the number of tokens left replaced by `change`, where there is a limit; 0 cuts. `change`
    /// is given the limit and what is left of it.
    fn with_limits(&mut self, ir: &Ir, root: StackId, change: impl Fn(u32, u32) -> u32) -> Changed {
        let mut changed: Map<StackId, Option<StackId>> = Map::default();
        let mut below_cut = Vec::new();
        // Sets follow those below them.
        for set in self.marked_below(root) {
            let mut edges = Vec::new();
            for edge in self.edges(set).to_vec() {
                let below = changed.get(&edge.below).copied().unwrap_or(Some(edge.below));
                let Some(below) = below else {
                    continue;
                };
                let mut frame = edge.frame;
                if let Frame::Marked { mark, n_left } = &mut frame
                    && let Some(max) = ir.marks[*mark as usize].max_tokens
                {
                    *n_left = change(max, *n_left);
                    if *n_left == 0 {
                        below_cut.push(below);
                        continue;
                    }
                }
                edges.push(Edge { frame, below });
            }
            let kept = (!edges.is_empty()).then(|| self.joined(ir, edges));
            changed.insert(set, kept);
        }
        let kept = changed.get(&root).copied().unwrap_or(Some(root));
        Changed { kept, below_cut }
    }

    /// The sets with marked parts that `root` reaches, in order.
    fn marked_below(&self, root: StackId) -> BTreeSet<StackId> {
        let mut found = BTreeSet::new();
        let mut todo = vec![root];
        while let Some(set) = todo.pop() {
            if self.is_marked(set) && found.insert(set) {
                todo.extend(self.edges(set).iter().map(|edge| edge.below));
            }
        }
        found
    }

    /// The highest temperature that the innermost parts which ask for one ask for.
    fn temperature(&self, ir: &Ir, root: StackId) -> Option<f32> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![root];
        let mut found: Option<f32> = None;
        while let Some(set) = todo.pop() {
            if !self.is_marked(set) || !seen.insert(set) {
                continue;
            }
            for edge in self.edges(set) {
                let asked = match edge.frame {
                    Frame::Marked { mark, .. } => ir.marks[mark as usize].temperature,
                    _ => None,
                };
                match asked {
                    Some(asked) => found = Some(found.map_or(asked, |other| other.max(asked))),
                    None => todo.push(edge.below),
                }
            }
        }
        found
    }
}

impl Tables {
    /// The state between two tokens that `state`, in which a token ended or the output begins, is.
    pub(crate) fn between_tokens(&mut self, ir: &Ir, state: StateId) -> StateId {
        let state = self.within_limits(ir, state);
        self.within_bounds(ir, state)
    }

    /// `state`, with one token fewer left in each part that limits them.
    fn within_limits(&mut self, ir: &Ir, state: StateId) -> StateId {
        if state == NOTHING || !ir.has_limits {
            return state;
        }
        let mut readings = Vec::new();
        let mut is_cut = false;
        for reading in self.readings(state).iter() {
            if !self.stacks.is_marked(reading.stack) {
                readings.push(*reading);
                continue;
            }
            let least = u32::from(self.is_within_character(ir, reading));
            let change = |_, n_left: u32| (n_left - 1).max(least);
            let changed = self.stacks.with_limits(ir, reading.stack, change);
            if let Some(stack) = changed.kept {
                readings.push(Reading { stack, ..*reading });
            }
            for below in changed.below_cut {
                is_cut = true;
                self.stacks.resume(ir, below, &mut readings);
            }
        }
        if is_cut {
            // What was entered just now.
            for reading in &mut readings {
                let change = |max: u32, n_left: u32| n_left.min(max);
                let changed = self.stacks.with_limits(ir, reading.stack, change);
                reading.stack = changed.kept.expect("nothing is cut");
            }
        }
        self.state_of(ir, readings)
    }

    fn is_within_character(&mut self, ir: &Ir, reading: &Reading) -> bool {
        let mut next = Vec::new();
        (0x80..=0xBF).any(|byte| {
            self.stacks.step(ir, reading, byte, &mut next);
            !next.is_empty()
        })
    }

    /// Stacks with the same mask, the same ones for many numbers of tokens left.
    pub(crate) fn alike_limits(&mut self, ir: &Ir, stack: StackId) -> StackId {
        if !ir.has_limits || !self.stacks.is_marked(stack) {
            return stack;
        }
        let alike = self.stacks.with_limits(ir, stack, |_, _| 1);
        alike.kept.expect("nothing is cut")
    }

    /// Whether a part may end between two tokens, so that no byte is forced.
    pub(crate) fn may_be_cut(&self, ir: &Ir, state: StateId) -> bool {
        let is_marked = |reading: &Reading| self.stacks.is_marked(reading.stack);
        ir.has_limits && self.readings(state).iter().any(is_marked)
    }

    /// The temperature that the grammar asks for in `state`: the highest, where readings differ.
    pub(crate) fn temperature(&self, ir: &Ir, state: StateId) -> Option<f32> {
        let readings = self.readings(state);
        let asked = readings
            .iter()
            .filter_map(|reading| self.stacks.temperature(ir, reading.stack));
        asked.reduce(f32::max)
    }
}
