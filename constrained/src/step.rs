//! One byte further: what each reading of the output does, and what may follow where one ends.
//!
//! A reading is a leaf, a place in it, and the stack of what is still to come. Stacks are shared lists, kept
//! once each; equal stacks have equal numbers, so readings compare as plain integers.

use std::sync::Arc;

use crate::closure::Closure;
use crate::dfa::DEAD;
use crate::hash::Map;
use crate::ir::{Ir, NodeId};
use crate::limits::Limits;
use crate::memory::{NONE, TextId};
use crate::records::{ItemsId, MembersId, Records};
use crate::text::{Moved, Place};

pub(crate) type StackId = u32;
pub(crate) const BOTTOM: StackId = 0;

/// What to do when the part above is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Frame {
    /// The sequence's part `at` and those after it.
    Seq {
        seq: NodeId,
        at: u32,
    },
    /// `n` bodies are complete.
    Repeat {
        node: NodeId,
        n: u32,
    },
    Then(NodeId),
    /// The object's brace is open and nothing else was written.
    FirstKey {
        object: u32,
    },
    /// A comma was written.
    Key {
        members: MembersId,
    },
    /// The name of an extra member, which differs from earlier ones and of which `text` was written.
    Name {
        members: MembersId,
        extra: u32,
        text: TextId,
    },
    /// A name and its colon were written; extra members are numbered after the declared keys.
    Value {
        members: MembersId,
        key: u32,
    },
    /// A member is complete.
    Member {
        members: MembersId,
    },
    FirstItem {
        array: u32,
    },
    /// A comma was written.
    Item {
        items: ItemsId,
    },
    /// An item is complete; where items are distinct, `text` was written of it and the values are those
    /// before it.
    AfterItem {
        items: ItemsId,
        text: TextId,
    },
}

impl Frame {
    /// What was written of the part above, where that is kept.
    pub(crate) fn text(self) -> Option<TextId> {
        match self {
            Self::Name { text, .. } | Self::AfterItem { text, .. } => Some(text).filter(|text| *text != NONE),
            _ => None,
        }
    }

    /// The frame with another text, where it keeps one.
    pub(crate) fn with_text(self, text: TextId) -> Self {
        match self {
            Self::Name { members, extra, .. } => Self::Name { members, extra, text },
            Self::AfterItem { items, .. } => Self::AfterItem { items, text },
            other => other,
        }
    }
}

/// One way to read the output so far.
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

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) frame: Frame,
    pub(crate) below: StackId,
    pub(crate) depth: u32,
    /// Whether this frame or one below keeps a text.
    pub(crate) keeps_text: bool,
}

/// All stacks seen so far. Number 0 is the empty one.
#[derive(Debug)]
pub(crate) struct Stacks {
    pub(crate) entries: Vec<Entry>,
    pub(crate) records: Records,
    ids: Map<(Frame, StackId), StackId>,
    pub(crate) max_depth: u32,
    /// Parts that may be entered or left between two bytes.
    pub(crate) max_tasks: usize,
    /// Whether readings were dropped because there were too many ways to go on.
    pub(crate) is_too_many: bool,
    /// Whether a reading was dropped for its depth since this was last cleared.
    pub(crate) is_too_deep: bool,
    continuations: Vec<Option<Arc<[Reading]>>>,
}

impl Stacks {
    pub(crate) fn new(limits: &Limits) -> Self {
        let bottom = Entry {
            frame: Frame::Then(0),
            below: BOTTOM,
            depth: 0,
            keeps_text: false,
        };
        Self {
            entries: vec![bottom],
            records: Records::new(),
            ids: Map::default(),
            max_depth: limits.max_output_depth,
            max_tasks: limits.max_readings.saturating_mul(8),
            is_too_many: false,
            is_too_deep: false,
            continuations: vec![None],
        }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.entries.len() * 96 + self.records.n_bytes()
    }

    pub(crate) fn push(&mut self, frame: Frame, below: StackId) -> StackId {
        let fresh = self.entries.len() as u32;
        let id = *self.ids.entry((frame, below)).or_insert(fresh);
        if id == fresh {
            let Entry {
                depth, keeps_text, ..
            } = self.entries[below as usize];
            self.entries.push(Entry {
                frame,
                below,
                depth: depth + 1,
                keeps_text: keeps_text || frame.text().is_some(),
            });
            self.continuations.push(None);
        }
        id
    }

    /// The frames of `stack`, the top first.
    pub(crate) fn frames(&self, mut stack: StackId) -> Vec<Frame> {
        let mut frames = Vec::new();
        while stack != BOTTOM {
            let entry = self.entries[stack as usize];
            frames.push(entry.frame);
            stack = entry.below;
        }
        frames
    }

    /// The stack of `frames`, the top first.
    pub(crate) fn of_frames(&mut self, frames: &[Frame]) -> StackId {
        frames
            .iter()
            .rev()
            .fold(BOTTOM, |stack, frame| self.push(*frame, stack))
    }

    /// The readings with which `node` begins, alone.
    pub(crate) fn begin(&mut self, ir: &Ir, node: NodeId) -> Vec<Reading> {
        Closure::entering(self, ir, node)
    }

    /// Adds to `out` what `reading` becomes after `byte`.
    pub(crate) fn step(&mut self, ir: &Ir, reading: &Reading, byte: u8, out: &mut Vec<Reading>) {
        if self.entries[reading.stack as usize].keeps_text {
            return self.step_keeping(ir, reading, byte, out);
        }
        let next = self.step_leaf(ir, reading, byte, out);
        out.extend(next);
    }

    /// Takes `byte`, which every text that is kept in the stack already has: adds to `out` what may come where
    /// the leaf may be complete, and returns how the leaf goes on.
    pub(crate) fn step_leaf(
        &mut self,
        ir: &Ir,
        reading: &Reading,
        byte: u8,
        out: &mut Vec<Reading>,
    ) -> Option<Reading> {
        let stack = reading.stack;
        let leaf = match reading.leaf {
            Leaf::Done | Leaf::Token { .. } => return None,
            Leaf::Dfa { dfa, state } => {
                let automaton = &ir.dfas[dfa as usize];
                let state = automaton.step(state, byte);
                if state == DEAD {
                    return None;
                }
                if automaton.is_accepting(state) {
                    self.resume(ir, stack, out);
                }
                if !automaton.has_edges(state) {
                    return None;
                }
                Leaf::Dfa { dfa, state }
            }
            Leaf::Text { text, place } => match ir.texts[text as usize].step(place, byte) {
                Moved::Dead => return None,
                Moved::To(place) => Leaf::Text { text, place },
                Moved::End => {
                    self.resume(ir, stack, out);
                    return None;
                }
            },
            Leaf::Free { free, state } => {
                let shape = &ir.free_texts[free as usize];
                let state = ir.dfas[shape.dfa as usize].step(state, byte);
                if state == DEAD {
                    return None;
                }
                if shape.after(state).is_some() {
                    let marked = self.after(ir, reading, state);
                    self.resume(ir, marked, out);
                    return None;
                }
                if shape.may_end(state) {
                    self.resume(ir, stack, out);
                }
                Leaf::Free { free, state }
            }
            Leaf::Key {
                object,
                node,
                members,
            } => {
                let trie = &ir.objects[object as usize].trie;
                let node = trie.step(node, byte, &self.records.standing(members).keys)?;
                if let Some(key) = trie.key_at(node) {
                    let colon = self.after(ir, reading, key);
                    self.resume(ir, colon, out);
                    return None;
                }
                Leaf::Key {
                    object,
                    node,
                    members,
                }
            }
        };
        Some(Reading { leaf, stack })
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
        let was_too_deep = std::mem::replace(&mut self.is_too_deep, false);
        let was_too_many = std::mem::replace(&mut self.is_too_many, false);
        let mut readings = Closure::above(self, ir, stack);
        readings.retain(|reading| self.is_alive(ir, reading));
        let readings: Arc<[Reading]> = readings.into();
        // What was cut at a limit must be cut, and noted, again.
        if !self.is_too_deep && !self.is_too_many {
            self.continuations[stack as usize] = Some(readings.clone());
        }
        self.is_too_deep |= was_too_deep;
        self.is_too_many |= was_too_many;
        readings
    }

    /// Whether a byte may come once everything above `stack` is complete.
    pub(crate) fn has_leaf(&mut self, ir: &Ir, stack: StackId) -> bool {
        let readings = self.continuation(ir, stack);
        let takes_bytes = |leaf| !matches!(leaf, Leaf::Done | Leaf::Token { .. });
        readings.iter().any(|reading| takes_bytes(reading.leaf))
    }

    /// Whether anything may, or the output may end there.
    pub(crate) fn can_follow(&mut self, ir: &Ir, stack: StackId) -> bool {
        !self.continuation(ir, stack).is_empty()
    }
}
