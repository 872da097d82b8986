//! One byte further: what each reading of the output does, and what may follow where one ends.
//!
//! A reading is a leaf, a place in it, and the stacks of what is still to come; readings that stand at one
//! place are one.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::array::Array;
use crate::dfa::DEAD;
use crate::hash::SmallSet;
use crate::ir::{Ir, Node, NodeId};
use crate::stacks::{BOTTOM, Edge, Frame, StackId, Stacks};
use crate::text::{Moved, Place};

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
    /// A declared key, one of `first ..= last`; `n` members precede it.
    Key {
        object: u32,
        node: u32,
        first: u32,
        last: u32,
        n: u32,
    },
}

impl Stacks {
    /// The readings with which a grammar begins.
    pub(crate) fn start(&mut self, ir: &Ir) -> Arc<[Reading]> {
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
        let mut closure = Closure::new(self, ir);
        closure.pop(stack);
        let readings = closure.finish();
        self.continuations[stack as usize] = Some(readings.clone());
        readings
    }

    /// `readings` with those of one leaf as one, in order.
    pub(crate) fn merge(&mut self, ir: &Ir, readings: &mut Vec<Reading>) {
        readings.sort_unstable();
        readings.dedup();
        if readings.is_sorted_by(|a, b| a.leaf < b.leaf) {
            return;
        }
        let merged = readings.chunk_by(|a, b| a.leaf == b.leaf).map(|alike| {
            let stack = match alike {
                [one] => one.stack,
                [one, other] => self.union(ir, one.stack, other.stack),
                _ => {
                    let edges = alike.iter().flat_map(|reading| self.edges(reading.stack));
                    let edges = edges.copied().collect();
                    self.joined(ir, edges)
                }
            };
            let leaf = alike[0].leaf;
            Reading { leaf, stack }
        });
        *readings = merged.collect();
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

/// Memory of one closure after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Nodes to be entered, by rank, and above which stacks: what begins with a node has a smaller rank, so
    /// that a node is entered once for all that begin with it.
    todo: BTreeMap<u32, StackId>,
    entered: SmallSet<(NodeId, StackId)>,
    complete: Vec<StackId>,
    popped: SmallSet<Edge>,
    found: Vec<Reading>,
}

/// Follows what needs no byte.
struct Closure<'a> {
    stacks: &'a mut Stacks,
    ir: &'a Ir,
    own: Scratch,
}

impl<'a> Closure<'a> {
    fn new(stacks: &'a mut Stacks, ir: &'a Ir) -> Self {
        let mut own = std::mem::take(&mut stacks.scratch);
        own.entered.clear();
        own.popped.clear();
        own.found.clear();
        Self { stacks, ir, own }
    }

    fn finish(mut self) -> Arc<[Reading]> {
        loop {
            while let Some(stack) = self.own.complete.pop() {
                for at in 0..self.stacks.edges(stack).len() {
                    let edge = self.stacks.edges(stack)[at];
                    if self.own.popped.insert(edge) {
                        self.resume(edge);
                    }
                }
            }
            let Some((rank, stack)) = self.own.todo.pop_first() else {
                break;
            };
            let node = self.ir.ranks.node_at(rank);
            if self.own.entered.insert((node, stack)) {
                self.expand(node, stack);
            }
        }
        self.stacks.merge(self.ir, &mut self.own.found);
        let found = self.own.found[..].into();
        self.stacks.scratch = self.own;
        found
    }

    /// What is on `stack` goes on.
    fn pop(&mut self, stack: StackId) {
        self.own.complete.push(stack);
    }

    /// Enters `node` above those of `stack` that are not too deep for it.
    fn enter(&mut self, node: NodeId, stack: StackId) {
        let Some(stack) = self.stacks.with_room(stack, self.ir.needs[node as usize]) else {
            return;
        };
        match self.ir.nodes[node as usize] {
            Node::Seq(_) | Node::Alt(_) | Node::Repeat { .. } | Node::Rule(_) | Node::Marked { .. } => {
                let rank = self.ir.ranks.of(node);
                let waiting = self.own.todo.entry(rank).or_insert(stack);
                *waiting = self.stacks.union(self.ir, *waiting, stack);
            }
            _ => self.expand(node, stack),
        }
    }

    fn enter_above(&mut self, node: NodeId, frame: Frame, stack: StackId) {
        let stack = self.stacks.push(frame, stack);
        self.enter(node, stack);
    }

    fn found(&mut self, leaf: Leaf, stack: StackId) {
        self.own.found.push(Reading { leaf, stack });
    }

    fn expand(&mut self, node: NodeId, stack: StackId) {
        let ir = self.ir;
        match &ir.nodes[node as usize] {
            Node::Never => {}
            Node::Empty => self.pop(stack),
            Node::Dfa(dfa) => {
                let automaton = &ir.dfas[*dfa as usize];
                let state = automaton.start();
                if automaton.is_accepting(state) {
                    self.pop(stack);
                }
                if automaton.has_edges(state) {
                    self.found(Leaf::Dfa { dfa: *dfa, state }, stack);
                }
            }
            Node::Text(text) => {
                let place = ir.texts[*text as usize].start();
                self.found(Leaf::Text { text: *text, place }, stack);
            }
            Node::Token(set) => self.found(Leaf::Token { set: *set }, stack),
            Node::Free(free) => {
                let shape = &ir.free_texts[*free as usize];
                if shape.is_nullable() {
                    self.pop(stack);
                }
                let state = ir.dfas[shape.dfa as usize].start();
                self.found(Leaf::Free { free: *free, state }, stack);
            }
            Node::Seq(parts) => self.enter_above(parts[0], Frame::Seq { seq: node, at: 1 }, stack),
            Node::Alt(parts) => parts.iter().for_each(|part| self.enter(*part, stack)),
            Node::Repeat { .. } => self.repeat(node, 0, stack),
            Node::Rule(rule) => self.enter(ir.rules[*rule as usize], stack),
            Node::Marked { body, mark } => self.enter_above(*body, ir.marked_frame(*mark), stack),
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

    /// What is above `edge` is complete.
    fn resume(&mut self, edge: Edge) {
        let Edge { frame, below } = edge;
        let ir = self.ir;
        match frame {
            Frame::End => self.found(Leaf::Done, BOTTOM),
            Frame::Then(node) => self.enter(node, below),
            Frame::Seq { seq, at } => {
                let Node::Seq(parts) = &ir.nodes[seq as usize] else {
                    unreachable!("the frame was made by a sequence");
                };
                match parts.get(at as usize + 1) {
                    Some(_) => self.enter_above(parts[at as usize], Frame::Seq { seq, at: at + 1 }, below),
                    None => self.enter(parts[at as usize], below),
                }
            }
            Frame::Repeat { node, n } => self.repeat(node, n, below),
            Frame::Marked { .. } => self.pop(below),
            Frame::FirstKey { object } => {
                self.keys(object, 0, 0, below);
                if ir.objects[object as usize].can_close(0, 0) {
                    self.enter(ir.punctuation.close_empty_object, below);
                }
            }
            Frame::Key { object, at, n } => self.keys(object, at, n, below),
            Frame::Member { object, at, n } => self.after_member(object, at, n, below),
            Frame::FirstItem { array } => {
                self.items(array, 0, 0, below);
                if ir.arrays[array as usize].can_close(0, 0) {
                    self.enter(ir.punctuation.close_empty_array, below);
                }
            }
            Frame::Item { array, n, used } => self.items(array, n, used, below),
            Frame::AfterItem { array, n, used } => self.after_item(array, n, used, below),
        }
    }

    fn repeat(&mut self, node: NodeId, n: u32, stack: StackId) {
        let Node::Repeat { body, min, max } = self.ir.nodes[node as usize] else {
            unreachable!("the frame was made by a repetition");
        };
        if n >= min {
            self.pop(stack);
        }
        if max.is_none_or(|max| n < max) {
            // Without a maximum only the way to the minimum matters.
            let n = if max.is_none() { (n + 1).min(min) } else { n + 1 };
            self.enter_above(body, Frame::Repeat { node, n }, stack);
        }
    }

    fn after_member(&mut self, object: u32, at: u32, n: u32, stack: StackId) {
        let (ir, shape) = (self.ir, &self.ir.objects[object as usize]);
        if shape.can_close(at, n) {
            self.enter(ir.punctuation.close_object, stack);
        }
        for (stack, room) in self.stacks.by_room(stack, ir.needs_within.object(object)) {
            let has_next = match room {
                u32::MAX => shape.has_next(at, n),
                _ => shape.has_next_that(at, n, |value| ir.needs[value as usize] < room),
            };
            if has_next {
                self.enter_above(ir.punctuation.comma, Frame::Key { object, at, n }, stack);
            }
        }
    }

    fn keys(&mut self, object: u32, at: u32, n: u32, stack: StackId) {
        let (ir, shape) = (self.ir, &self.ir.objects[object as usize]);
        for (stack, room) in self.stacks.by_room(stack, ir.needs_within.object(object)) {
            let fits = |value| ir.needs[value as usize] < room;
            let mut key = |(first, last)| {
                let leaf = Leaf::Key {
                    object,
                    node: 0,
                    first,
                    last,
                    n,
                };
                self.own.found.push(Reading { leaf, stack });
            };
            if room == u32::MAX {
                shape.next_keys(at, n).into_iter().for_each(&mut key);
            } else {
                let keys = shape.next_keys_that(at, n, fits);
                keys.into_iter().for_each(|only| key((only, only)));
            }
            self.unnamed(object, at, n, stack, room);
        }
    }

    /// The members that have no declared key.
    fn unnamed(&mut self, object: u32, at: u32, n: u32, stack: StackId, room: u32) {
        let (ir, shape) = (self.ir, &self.ir.objects[object as usize]);
        let fits = |value| ir.needs[value as usize] < room;
        let mut members: Vec<(u32, NodeId, NodeId)> = Vec::new();
        let n_keys = shape.keys.len() as u32;
        if shape.allows_extra(at, n) {
            let extras = shape.extras.iter();
            members.extend(extras.map(|(text, value)| (n_keys + 1, *text, *value)));
        }
        if shape.allows_last(at, n) {
            let last = shape.closing.iter().flatten();
            members.extend(last.map(|(text, value)| (n_keys + 2, *text, *value)));
        }
        let n = shape.counted(n + 1);
        for (at, text, value) in members.into_iter().filter(|(_, _, value)| fits(*value)) {
            let above = self.stacks.push(Frame::Member { object, at, n }, stack);
            let above = self.stacks.push(Frame::Then(value), above);
            self.enter_above(text, Frame::Then(ir.punctuation.colon), above);
        }
    }

    fn after_item(&mut self, array: u32, n: u32, used: u32, stack: StackId) {
        let (ir, shape) = (self.ir, &self.ir.arrays[array as usize]);
        if shape.can_close(n, used) {
            self.enter(ir.punctuation.close_array, stack);
        }
        for (stack, room) in self.stacks.by_room(stack, ir.needs_within.array(array)) {
            let is_open = match self.shallow_array(array, room) {
                None => shape.items(n, used).next().is_some(),
                Some(shape) => shape.items(n, used).next().is_some(),
            };
            if is_open {
                self.enter_above(ir.punctuation.comma, Frame::Item { array, n, used }, stack);
            }
        }
    }

    fn items(&mut self, array: u32, n: u32, used: u32, stack: StackId) {
        let (ir, shape) = (self.ir, &self.ir.arrays[array as usize]);
        for (stack, room) in self.stacks.by_room(stack, ir.needs_within.array(array)) {
            let shallow = self.shallow_array(array, room);
            for (item, n, used) in shallow.as_deref().unwrap_or(shape).items(n, used) {
                self.enter_above(item, Frame::AfterItem { array, n, used }, stack);
            }
        }
    }

    /// The array of items that need less than `room`; `None` when all do.
    fn shallow_array(&mut self, array: u32, room: u32) -> Option<Arc<Array>> {
        if room == u32::MAX {
            return None;
        }
        let ir = self.ir;
        let shallow = self
            .stacks
            .shallow_arrays
            .entry((array, room))
            .or_insert_with(|| {
                let shape = &ir.arrays[array as usize];
                Arc::new(shape.narrowed(|item| ir.needs[item as usize] < room))
            });
        Some(shallow.clone())
    }
}
