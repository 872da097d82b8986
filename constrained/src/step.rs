//! One byte further: what each reading of the output does, and what may follow where one ends.
//!
//! A reading is a leaf, a place in it, and the stack of what is still to come. Stacks are shared lists, kept
//! once each; equal stacks have equal numbers, so readings compare as plain integers.

use std::sync::Arc;

use crate::dfa::DEAD;
use crate::hash::{Map, SmallSet};
use crate::ir::{Ir, Node, NodeId};
use crate::limits::Limits;
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
    /// A comma was written; keys from `at` on may follow.
    Key {
        object: u32,
        at: u32,
        n: u32,
    },
    /// A member is complete.
    Member {
        object: u32,
        at: u32,
        n: u32,
    },
    FirstItem {
        array: u32,
    },
    Item {
        array: u32,
        n: u32,
        used: u32,
    },
    /// An item is complete; `used` are the distinct values written so far.
    AfterItem {
        array: u32,
        n: u32,
        used: u32,
    },
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
    /// A declared key, one of `first ..= last`; `n` members precede it.
    Key {
        object: u32,
        node: u32,
        first: u32,
        last: u32,
        n: u32,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) frame: Frame,
    pub(crate) below: StackId,
    depth: u32,
}

/// All stacks seen so far. Number 0 is the empty one.
#[derive(Debug)]
pub(crate) struct Stacks {
    pub(crate) entries: Vec<Entry>,
    ids: Map<(Frame, StackId), StackId>,
    max_depth: u32,
    /// Parts that may be entered or left between two bytes.
    max_tasks: usize,
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
        };
        Self {
            entries: vec![bottom],
            ids: Map::default(),
            max_depth: limits.max_output_depth,
            max_tasks: limits.max_readings.saturating_mul(8),
            is_too_many: false,
            is_too_deep: false,
            continuations: vec![None],
        }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        self.entries.len() * 96
    }

    pub(crate) fn push(&mut self, frame: Frame, below: StackId) -> StackId {
        let fresh = self.entries.len() as u32;
        let id = *self.ids.entry((frame, below)).or_insert(fresh);
        if id == fresh {
            let depth = self.entries[below as usize].depth + 1;
            self.entries.push(Entry { frame, below, depth });
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

    /// The readings with which a grammar begins.
    pub(crate) fn start(&mut self, ir: &Ir) -> Vec<Reading> {
        let mut closure = Closure::new(self, ir);
        closure.enter(ir.root, BOTTOM);
        closure.finish()
    }

    /// Adds to `out` what `reading` becomes after `byte`.
    pub(crate) fn step(&mut self, ir: &Ir, reading: &Reading, byte: u8, out: &mut Vec<Reading>) {
        let stack = reading.stack;
        let leaf = match reading.leaf {
            Leaf::Done | Leaf::Token { .. } => return,
            Leaf::Dfa { dfa, state } => {
                let automaton = &ir.dfas[dfa as usize];
                let state = automaton.step(state, byte);
                if state == DEAD {
                    return;
                }
                if automaton.is_accepting(state) {
                    self.resume(ir, stack, out);
                }
                if !automaton.has_edges(state) {
                    return;
                }
                Leaf::Dfa { dfa, state }
            }
            Leaf::Text { text, place } => match ir.texts[text as usize].step(place, byte) {
                Moved::Dead => return,
                Moved::To(place) => Leaf::Text { text, place },
                Moved::End => return self.resume(ir, stack, out),
            },
            Leaf::Free { free, state } => {
                let shape = &ir.free_texts[free as usize];
                let state = ir.dfas[shape.dfa as usize].step(state, byte);
                if state == DEAD {
                    return;
                }
                if shape.after(state).is_some() {
                    let marked = self.after(ir, reading, state);
                    return self.resume(ir, marked, out);
                }
                if shape.may_end(state) {
                    self.resume(ir, stack, out);
                }
                Leaf::Free { free, state }
            }
            Leaf::Key {
                object,
                node,
                first,
                last,
                n,
            } => {
                let shape = &ir.objects[object as usize];
                let Some(node) = shape.trie.step(node, byte, first, last) else {
                    return;
                };
                if let Some(key) = shape.trie.key_at(node) {
                    let colon = self.after(ir, reading, key);
                    return self.resume(ir, colon, out);
                }
                Leaf::Key {
                    object,
                    node,
                    first,
                    last,
                    n,
                }
            }
        };
        out.push(Reading { leaf, stack });
    }

    /// The stack that begins with `node`, above `stack`.
    pub(crate) fn then(&mut self, node: NodeId, stack: StackId) -> StackId {
        self.push(Frame::Then(node), stack)
    }

    /// The stack that is on once the leaf of `reading` is complete; of several keys it was number `way`, of a
    /// free text's states it is that of the marker.
    pub(crate) fn after(&mut self, ir: &Ir, reading: &Reading, way: u32) -> StackId {
        let (object, n) = match reading.leaf {
            Leaf::Key { object, n, .. } => (object, n),
            Leaf::Free { free, .. } => {
                return match ir.free_texts[free as usize].after(way) {
                    Some(node) => self.push(Frame::Then(node), reading.stack),
                    None => reading.stack,
                };
            }
            _ => return reading.stack,
        };
        let shape = &ir.objects[object as usize];
        let member = Frame::Member {
            object,
            at: way + 1,
            n: shape.counted(n + 1),
        };
        let member = self.push(member, reading.stack);
        let value = self.push(Frame::Then(shape.keys[way as usize].value), member);
        self.push(Frame::Then(ir.punctuation.colon), value)
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
        let mut closure = Closure::new(self, ir);
        closure.todo.push(Task::Pop(stack));
        let readings: Arc<[Reading]> = closure.finish().into();
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

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Task {
    Enter(NodeId, StackId),
    Pop(StackId),
}

/// Follows what needs no byte.
struct Closure<'a> {
    stacks: &'a mut Stacks,
    ir: &'a Ir,
    todo: Vec<Task>,
    seen: SmallSet<Task>,
    found: Vec<Reading>,
}

impl<'a> Closure<'a> {
    fn new(stacks: &'a mut Stacks, ir: &'a Ir) -> Self {
        Self {
            stacks,
            ir,
            todo: Vec::new(),
            seen: SmallSet::new(),
            found: Vec::new(),
        }
    }

    fn finish(mut self) -> Vec<Reading> {
        let mut n_tasks = 0;
        while let Some(task) = self.todo.pop() {
            if !self.seen.insert(task) {
                continue;
            }
            n_tasks += 1;
            if n_tasks > self.stacks.max_tasks {
                self.stacks.is_too_many = true;
                return Vec::new();
            }
            match task {
                Task::Enter(node, stack) => self.expand(node, stack),
                Task::Pop(BOTTOM) => self.found.push(Reading {
                    leaf: Leaf::Done,
                    stack: BOTTOM,
                }),
                Task::Pop(stack) => self.pop(stack),
            }
        }
        self.found.sort_unstable();
        self.found.dedup();
        self.found
    }

    fn enter(&mut self, node: NodeId, stack: StackId) {
        if self.ir.is_productive[node as usize] {
            self.todo.push(Task::Enter(node, stack));
        }
    }

    fn push(&mut self, frame: Frame, stack: StackId) -> Option<StackId> {
        if self.stacks.entries[stack as usize].depth >= self.stacks.max_depth {
            self.stacks.is_too_deep = true;
            return None;
        }
        Some(self.stacks.push(frame, stack))
    }

    fn enter_above(&mut self, node: NodeId, frame: Frame, stack: StackId) {
        if let Some(stack) = self.push(frame, stack) {
            self.enter(node, stack);
        }
    }

    fn expand(&mut self, node: NodeId, stack: StackId) {
        let ir = self.ir;
        match &ir.nodes[node as usize] {
            Node::Never => {}
            Node::Empty => self.todo.push(Task::Pop(stack)),
            Node::Dfa(dfa) => {
                let automaton = &ir.dfas[*dfa as usize];
                let state = automaton.start();
                if automaton.is_accepting(state) {
                    self.todo.push(Task::Pop(stack));
                }
                if automaton.has_edges(state) {
                    let leaf = Leaf::Dfa { dfa: *dfa, state };
                    self.found.push(Reading { leaf, stack });
                }
            }
            Node::Text(text) => {
                let place = ir.texts[*text as usize].start();
                let leaf = Leaf::Text { text: *text, place };
                self.found.push(Reading { leaf, stack });
            }
            Node::Token(set) => {
                let leaf = Leaf::Token { set: *set };
                self.found.push(Reading { leaf, stack });
            }
            Node::Free(free) => {
                let shape = &ir.free_texts[*free as usize];
                if shape.is_nullable() {
                    self.todo.push(Task::Pop(stack));
                }
                let state = ir.dfas[shape.dfa as usize].start();
                let leaf = Leaf::Free { free: *free, state };
                self.found.push(Reading { leaf, stack });
            }
            Node::Seq(parts) => self.enter_above(parts[0], Frame::Seq { seq: node, at: 1 }, stack),
            Node::Alt(parts) => parts.iter().for_each(|part| self.enter(*part, stack)),
            Node::Repeat { .. } => self.repeat(node, 0, stack),
            Node::Rule(rule) => self.enter(ir.rules[*rule as usize], stack),
            Node::Object(object) => {
                let first = Frame::FirstKey { object: *object };
                self.enter_above(ir.punctuation.open_object, first, stack);
            }
            Node::Array(array) => {
                let first = Frame::FirstItem { array: *array };
                self.enter_above(ir.punctuation.open_array, first, stack);
            }
        }
    }

    fn pop(&mut self, stack: StackId) {
        let Entry { frame, below, .. } = self.stacks.entries[stack as usize];
        let marks = self.ir.punctuation;
        match frame {
            Frame::Then(node) => self.enter(node, below),
            Frame::Seq { seq, at } => {
                let Node::Seq(parts) = &self.ir.nodes[seq as usize] else {
                    unreachable!("the frame was made by a sequence");
                };
                match parts.get(at as usize + 1) {
                    Some(_) => self.enter_above(parts[at as usize], Frame::Seq { seq, at: at + 1 }, below),
                    None => self.enter(parts[at as usize], below),
                }
            }
            Frame::Repeat { node, n } => self.repeat(node, n, below),
            Frame::FirstKey { object } => {
                self.keys(object, 0, 0, below);
                if self.ir.objects[object as usize].can_close(0, 0) {
                    self.enter(marks.close_empty_object, below);
                }
            }
            Frame::Key { object, at, n } => self.keys(object, at, n, below),
            Frame::Member { object, at, n } => {
                let shape = &self.ir.objects[object as usize];
                if shape.can_close(at, n) {
                    self.enter(marks.close_object, below);
                }
                if shape.next_keys(at, n).is_some() || shape.allows_extra(at, n) || shape.allows_last(at, n) {
                    self.enter_above(marks.comma, Frame::Key { object, at, n }, below);
                }
            }
            Frame::FirstItem { array } => {
                self.item(array, 0, 0, below);
                if self.ir.arrays[array as usize].can_close(0, 0) {
                    self.enter(marks.close_empty_array, below);
                }
            }
            Frame::Item { array, n, used } => self.item(array, n, used, below),
            Frame::AfterItem { array, n, used } => {
                let shape = &self.ir.arrays[array as usize];
                if shape.can_close(n, used) {
                    self.enter(marks.close_array, below);
                }
                if shape.items(n, used).next().is_some() {
                    self.enter_above(marks.comma, Frame::Item { array, n, used }, below);
                }
            }
        }
    }

    fn repeat(&mut self, node: NodeId, n: u32, stack: StackId) {
        let Node::Repeat { body, min, max } = self.ir.nodes[node as usize] else {
            unreachable!("the frame was made by a repetition");
        };
        if n >= min {
            self.todo.push(Task::Pop(stack));
        }
        if max.is_none_or(|max| n < max) {
            // Without a maximum only the way to the minimum matters.
            let n = if max.is_none() { (n + 1).min(min) } else { n + 1 };
            self.enter_above(body, Frame::Repeat { node, n }, stack);
        }
    }

    fn keys(&mut self, object: u32, at: u32, n: u32, stack: StackId) {
        let shape = &self.ir.objects[object as usize];
        if let Some((first, last)) = shape.next_keys(at, n) {
            let leaf = Leaf::Key {
                object,
                node: 0,
                first,
                last,
                n,
            };
            self.found.push(Reading { leaf, stack });
        }
        let mut members: Vec<(u32, NodeId, NodeId)> = Vec::new();
        let n_keys = shape.keys.len() as u32;
        if shape.allows_extra(at, n) {
            members.extend(
                shape
                    .extras
                    .iter()
                    .map(|(text, value)| (n_keys + 1, *text, *value)),
            );
        }
        if shape.allows_last(at, n) {
            let last = shape.closing.iter().flatten();
            members.extend(last.map(|(text, value)| (n_keys + 2, *text, *value)));
        }
        let n = shape.counted(n + 1);
        for (at, text, value) in members {
            let above = self.push(Frame::Member { object, at, n }, stack);
            let above = above.and_then(|stack| self.push(Frame::Then(value), stack));
            if let Some(above) = above {
                self.enter_above(text, Frame::Then(self.ir.punctuation.colon), above);
            }
        }
    }

    fn item(&mut self, array: u32, n: u32, used: u32, stack: StackId) {
        let ir = self.ir;
        for (item, n, used) in ir.arrays[array as usize].items(n, used) {
            self.enter_above(item, Frame::AfterItem { array, n, used }, stack);
        }
    }
}
