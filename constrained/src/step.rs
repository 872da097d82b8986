//! One byte further: what each reading of the output does, and what may follow where one ends.
//!
//! A reading is a leaf, a place in it, and the stacks of what is still to come; readings that stand at one
//! place are one.

use std::sync::Arc;

use crate::closure::Closure;
use crate::dfa::DEAD;
use crate::ir::{Ir, NodeId};
use crate::object::AMPLE;
use crate::records::MembersId;
use crate::stacks::{Frame, StackId, Stacks};
use crate::text::{Moved, Place};

/// Readings of one state that keep a text.
pub(crate) const MAX_KEEPING: usize = 64;

/// One way to read the output so far, or several that differ in what is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Reading {
    pub(crate) leaf: Leaf,
    pub(crate) stack: StackId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Leaf {
    /// The grammar is complete.
    Done,
    Dfa {
        dfa: u32,
        state: u32,
    },
    Text {
        text: u32,
        place: Place,
    },
    /// One token of the set; no byte moves it.
    Token {
        set: u32,
    },
    Free {
        free: u32,
        state: u32,
    },
    /// A declared key, one that may follow `members`.
    Key {
        object: u32,
        node: u32,
        members: MembersId,
    },
}

/// What a byte does to a reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MovedLeaf {
    /// How the leaf goes on.
    pub(crate) inside: Option<Reading>,
    /// What is still to come where the leaf may be complete.
    pub(crate) complete: Option<StackId>,
}

impl MovedLeaf {
    const NOWHERE: Self = Self {
        inside: None,
        complete: None,
    };
}

impl Reading {
    /// Whether its automaton may end where it stands.
    pub(crate) fn may_end(&self, ir: &Ir) -> bool {
        match self.leaf {
            Leaf::Dfa { dfa, state } => ir.dfas[dfa as usize].is_accepting(state),
            _ => false,
        }
    }
}

impl Stacks {
    /// The readings with which `node` begins, alone.
    pub(crate) fn begin(&mut self, ir: &Ir, node: NodeId) -> Arc<[Reading]> {
        Closure::entering(self, ir, node)
    }

    /// Adds to `out` what `reading` becomes after `byte`.
    pub(crate) fn step(&mut self, ir: &Ir, reading: &Reading, byte: u8, out: &mut Vec<Reading>) {
        if self.keeps_text(reading.stack) {
            return self.step_keeping(ir, reading, byte, out);
        }
        let next = self.step_leaf(ir, reading, byte, out);
        out.extend(next);
    }

    /// Takes `byte`, which every text that is kept in the stack already has: adds to `out` what may come
    /// where the leaf may be complete, and returns how the leaf goes on.
    pub(crate) fn step_leaf(
        &mut self,
        ir: &Ir,
        reading: &Reading,
        byte: u8,
        out: &mut Vec<Reading>,
    ) -> Option<Reading> {
        let moved = self.move_leaf(ir, reading, byte);
        if let Some(stack) = moved.complete {
            self.resume(ir, stack, out);
        }
        moved.inside
    }

    /// Where `byte` leads within the leaf of `reading`, and behind it.
    pub(crate) fn move_leaf(&mut self, ir: &Ir, reading: &Reading, byte: u8) -> MovedLeaf {
        let stack = reading.stack;
        let complete_at = |stack| MovedLeaf {
            inside: None,
            complete: Some(stack),
        };
        let (leaf, complete) = match reading.leaf {
            Leaf::Done | Leaf::Token { .. } => return MovedLeaf::NOWHERE,
            Leaf::Dfa { dfa, state } => {
                let automaton = &ir.dfas[dfa as usize];
                let state = automaton.step(state, byte);
                if state == DEAD {
                    return MovedLeaf::NOWHERE;
                }
                let complete = automaton.is_accepting(state).then_some(stack);
                if !automaton.has_edges(state) {
                    let inside = None;
                    return MovedLeaf { inside, complete };
                }
                (Leaf::Dfa { dfa, state }, complete)
            }
            Leaf::Text { text, place } => match ir.texts[text as usize].step(place, byte) {
                Moved::Dead => return MovedLeaf::NOWHERE,
                Moved::To(place) => (Leaf::Text { text, place }, None),
                Moved::End => return complete_at(stack),
            },
            Leaf::Free { free, state } => {
                let shape = &ir.free_texts[free as usize];
                let state = ir.dfas[shape.dfa as usize].step(state, byte);
                if state == DEAD {
                    return MovedLeaf::NOWHERE;
                }
                if shape.after(state).is_some() {
                    return complete_at(self.after(ir, reading, state));
                }
                (Leaf::Free { free, state }, shape.may_end(state).then_some(stack))
            }
            Leaf::Key {
                object,
                node,
                members,
            } => {
                let trie = &ir.objects[object as usize].trie;
                let Some(node) = trie.step(node, byte, &self.records.standing(members).keys) else {
                    return MovedLeaf::NOWHERE;
                };
                if let Some(key) = trie.key_at(node) {
                    return complete_at(self.after(ir, reading, key));
                }
                let leaf = Leaf::Key {
                    object,
                    node,
                    members,
                };
                (leaf, None)
            }
        };
        MovedLeaf {
            inside: Some(Reading { leaf, stack }),
            complete,
        }
    }

    /// The stack that begins with `node`, above `stack`.
    pub(crate) fn then(&mut self, node: NodeId, stack: StackId) -> StackId {
        self.push(Frame::Then(node), stack)
    }

    /// The stack that is on once the leaf of `reading` is complete; of several keys it was number `way`, of a
    /// free text's states it is that of the marker.
    pub(crate) fn after(&mut self, ir: &Ir, reading: &Reading, way: u32) -> StackId {
        match reading.leaf {
            Leaf::Key { members, .. } => {
                let members = self.records.with_room(ir, members, AMPLE);
                let value = self.push(Frame::Value { members, key: way }, reading.stack);
                self.push(Frame::Then(ir.punctuation.colon), value)
            }
            Leaf::Free { free, .. } => match ir.free_texts[free as usize].after(way) {
                Some(node) => self.push(Frame::Then(node), reading.stack),
                None => reading.stack,
            },
            _ => reading.stack,
        }
    }

    /// Adds what may come once everything above `stack` is complete.
    pub(crate) fn resume(&mut self, ir: &Ir, stack: StackId, out: &mut Vec<Reading>) {
        match &self.continuations[stack as usize] {
            Some(known) => out.extend_from_slice(known),
            None => out.extend_from_slice(&self.continuation(ir, stack)),
        }
    }

    /// What may come once everything above `stack` is complete.
    pub(crate) fn continuation(&mut self, ir: &Ir, stack: StackId) -> Arc<[Reading]> {
        if let Some(known) = &self.continuations[stack as usize] {
            return known.clone();
        }
        let mut readings = Closure::above(self, ir, stack);
        if readings.iter().any(|reading| self.keeps_text(reading.stack)) {
            let alive = readings
                .iter()
                .copied()
                .filter(|reading| self.is_alive(ir, reading));
            readings = alive.collect();
        }
        self.continuations[stack as usize] = Some(readings.clone());
        readings
    }

    /// `readings` with those of one leaf as one, in order, but for those that keep a text.
    ///
    /// Of very many that do the first ones are kept. Each of them can be completed by itself, so nothing
    /// leads to a dead end; an output that only others can read is not allowed.
    pub(crate) fn merge(&mut self, ir: &Ir, readings: &mut Vec<Reading>) {
        readings.sort_unstable();
        readings.dedup();
        let keeps_text = |reading: &mut Reading| self.keeps_text(reading.stack);
        let mut keeping: Vec<Reading> = readings.extract_if(.., keeps_text).collect();
        if !readings.is_sorted_by(|a, b| a.leaf < b.leaf) {
            let merged = readings.chunk_by(|a, b| a.leaf == b.leaf).map(|alike| {
                let stack = match alike {
                    [one] => one.stack,
                    _ => self.union_of(ir, alike.iter().map(|reading| reading.stack).collect()),
                };
                let leaf = alike[0].leaf;
                Reading { leaf, stack }
            });
            *readings = merged.collect();
        }
        if !keeping.is_empty() {
            keeping.truncate(MAX_KEEPING);
            readings.append(&mut keeping);
            readings.sort_unstable();
        }
    }

    /// Whether a byte may come once everything above `stack` is complete.
    pub(crate) fn has_leaf(&mut self, ir: &Ir, stack: StackId) -> bool {
        let readings = self.continuation(ir, stack);
        let takes_bytes = |leaf| !matches!(leaf, Leaf::Done | Leaf::Token { .. });
        readings.iter().any(|reading| takes_bytes(reading.leaf))
    }

    /// Whether anything may, or the output may end there.
    pub(crate) fn can_follow(&mut self, ir: &Ir, stack: StackId) -> bool {
        match &self.continuations[stack as usize] {
            Some(known) => !known.is_empty(),
            None if ir.plenty.is_none() => Closure::is_any_above(self, ir, stack),
            None => !self.continuation(ir, stack).is_empty(),
        }
    }
}
