//! What may come once a part is complete or begun: everything that needs no byte is followed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use crate::array::Array;
use crate::beginnings::Firsts;
use crate::hash::SmallSet;
use crate::ir::{Ir, Node, NodeId};
use crate::memory::{EMPTY, NONE, TextId};
use crate::object::{AMPLE, Allowed};
use crate::records::{Items, MembersId};
use crate::stacks::{BOTTOM, Edge, Frame, StackId, Stacks};
use crate::step::{Leaf, Reading};

/// Memory of one closure after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Nodes to be entered, by rank, and above which stacks: what begins with a node has a smaller rank, so
    /// that a node is entered once for all that begin with it. What may be empty is passed over when it is
    /// entered, so that all that is complete is known before any node is expanded.
    todo: BTreeMap<u32, Above>,
    entered: SmallSet<(NodeId, StackId)>,
    complete: Vec<StackId>,
    popped: SmallSet<Edge>,
    found: Vec<Reading>,
}

/// Sets of stacks, mostly one.
#[derive(Debug)]
struct Above {
    first: StackId,
    others: Vec<StackId>,
}

/// Follows what needs no byte.
pub(crate) struct Closure<'a> {
    stacks: &'a mut Stacks,
    ir: &'a Ir,
    own: Scratch,
    /// The byte that comes next, where nothing else is asked for.
    next: Option<(&'a Firsts, u8)>,
    /// Whether it is only asked if there is anything, and whether there is.
    is_only_asked: bool,
    is_any: bool,
}

impl<'a> Closure<'a> {
    /// The readings with which `node` begins, alone.
    pub(crate) fn entering(stacks: &'a mut Stacks, ir: &'a Ir, node: NodeId) -> Arc<[Reading]> {
        let mut closure = Self::new(stacks, ir);
        closure.enter(node, BOTTOM);
        closure.finish()
    }

    /// The readings once everything above `stack` is complete.
    pub(crate) fn above(stacks: &'a mut Stacks, ir: &'a Ir, stack: StackId) -> Arc<[Reading]> {
        let mut closure = Self::new(stacks, ir);
        closure.pop(stack);
        closure.finish()
    }

    /// Of the readings once everything above `stack` is complete, at least those that can take `byte`.
    pub(crate) fn above_with(
        stacks: &'a mut Stacks,
        ir: &'a Ir,
        stack: StackId,
        next: (&'a Firsts, u8),
    ) -> Arc<[Reading]> {
        let mut closure = Self::new(stacks, ir);
        closure.next = Some(next);
        closure.pop(stack);
        closure.finish()
    }

    /// Whether there is any reading once everything above `stack` is complete, where nothing keeps a text: a
    /// node that there is room for can be completed, so that it begins with one or is followed by one.
    pub(crate) fn is_any_above(stacks: &'a mut Stacks, ir: &'a Ir, stack: StackId) -> bool {
        let mut closure = Self::new(stacks, ir);
        closure.is_only_asked = true;
        closure.pop(stack);
        while !closure.is_any && closure.go_on() {}
        let is_any = closure.is_any;
        closure.own.complete.clear();
        closure.own.todo.clear();
        closure.stacks.scratch = closure.own;
        is_any
    }

    fn new(stacks: &'a mut Stacks, ir: &'a Ir) -> Self {
        let mut own = std::mem::take(&mut stacks.scratch);
        own.entered.clear();
        own.popped.clear();
        own.found.clear();
        Self {
            stacks,
            ir,
            own,
            next: None,
            is_only_asked: false,
            is_any: false,
        }
    }

    /// Follows one stack that is complete or one node to be entered; whether there was any.
    fn go_on(&mut self) -> bool {
        if let Some(stack) = self.own.complete.pop() {
            for at in 0..self.stacks.edges(stack).len() {
                let edge = self.stacks.edges(stack)[at];
                if self.own.popped.insert(edge) {
                    self.resume(edge);
                }
            }
            return true;
        }
        let Some((rank, above)) = self.own.todo.pop_first() else {
            return false;
        };
        let node = self.ir.ranks.node_at(rank);
        let stack = self.union(above);
        if self.own.entered.insert((node, stack)) {
            self.expand(node, stack);
        }
        true
    }

    /// All stacks of the sets.
    fn union(&mut self, Above { first, mut others }: Above) -> StackId {
        if others.is_empty() {
            return first;
        }
        others.push(first);
        self.stacks.union_of(self.ir, others)
    }

    fn finish(mut self) -> Arc<[Reading]> {
        while self.go_on() {}
        self.stacks.merge(self.ir, &mut self.own.found);
        let found = self.own.found[..].into();
        self.stacks.scratch = self.own;
        found
    }

    /// What is on `stack` goes on.
    fn pop(&mut self, stack: StackId) {
        self.own.complete.push(stack);
    }

    /// Enters `node` above `stack`, or passes it over where it may be empty.
    fn enter(&mut self, node: NodeId, stack: StackId) {
        if self.ir.may_be_empty[node as usize] {
            self.pop(stack);
        }
        self.enter_text(node, stack);
    }

    /// Enters `node`, whose text is not empty, above `stack` if there is room for it.
    fn enter_text(&mut self, node: NodeId, stack: StackId) {
        if let Some((firsts, byte)) = self.next
            && !firsts.takes(node, byte)
        {
            return;
        }
        if !self.stacks.has_room(stack, self.ir.needs[node as usize]) {
            return;
        }
        if self.is_only_asked {
            self.is_any = true;
            return;
        }
        match self.ir.nodes[node as usize] {
            // It must not be joined with others.
            _ if self.stacks.keeps_text(stack) => {
                if self.own.entered.insert((node, stack)) {
                    self.expand(node, stack);
                }
            }
            Node::Seq(_) | Node::Alt(_) | Node::Repeat { .. } | Node::Rule(_) | Node::Marked { .. } => {
                let rank = self.ir.ranks.of(node);
                match self.own.todo.entry(rank) {
                    Entry::Occupied(waiting) => waiting.into_mut().others.push(stack),
                    Entry::Vacant(none) => {
                        let others = Vec::new();
                        none.insert(Above { first: stack, others });
                    }
                }
            }
            _ => self.expand(node, stack),
        }
    }

    fn enter_above(&mut self, node: NodeId, frame: Frame, stack: StackId) {
        let stack = self.stacks.push(frame, stack);
        self.enter(node, stack);
    }

    fn enter_text_above(&mut self, node: NodeId, frame: Frame, stack: StackId) {
        let stack = self.stacks.push(frame, stack);
        self.enter_text(node, stack);
    }

    /// Enters the parts of the sequence `seq` from `at` on, as far as those before may be empty; whether all
    /// of them may, which is told once.
    fn enter_parts(&mut self, seq: NodeId, at: u32, stack: StackId) -> bool {
        let ir = self.ir;
        let Node::Seq(parts) = &ir.nodes[seq as usize] else {
            unreachable!("only a sequence has parts");
        };
        for (next, part) in (at + 1..).zip(&parts[at as usize..]) {
            let may_be_empty = ir.may_be_empty[*part as usize];
            if next as usize == parts.len() {
                self.enter_text(*part, stack);
                return may_be_empty;
            }
            let frame = Frame::Seq { seq, at: next };
            self.enter_text_above(*part, frame, stack);
            let rest = Edge { frame, below: stack };
            if !may_be_empty || !self.own.popped.insert(rest) {
                return false;
            }
        }
        unreachable!("no frame is made for what follows the last part");
    }

    fn found(&mut self, leaf: Leaf, stack: StackId) {
        self.is_any = true;
        self.own.found.push(Reading { leaf, stack });
    }

    /// Begins the texts of `node` that are not empty.
    fn expand(&mut self, node: NodeId, stack: StackId) {
        let ir = self.ir;
        match &ir.nodes[node as usize] {
            Node::Never | Node::Empty => {}
            Node::Dfa(dfa) => {
                let automaton = &ir.dfas[*dfa as usize];
                let state = automaton.start();
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
                let state = ir.dfas[shape.dfa as usize].start();
                self.found(Leaf::Free { free: *free, state }, stack);
            }
            Node::Seq(_) => {
                self.enter_parts(node, 0, stack);
            }
            Node::Alt(parts) => parts.iter().for_each(|part| self.enter_text(*part, stack)),
            Node::Repeat { .. } => self.repeat(node, 0, stack),
            Node::Rule(rule) => self.enter_text(ir.rules[*rule as usize], stack),
            Node::Marked { body, mark } => self.enter_text_above(*body, ir.marked_frame(*mark), stack),
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
                if self.enter_parts(seq, at, below) {
                    self.pop(below);
                }
            }
            Frame::Repeat { node, n } => {
                if n >= ir.min_of_repeat(node) {
                    self.pop(below);
                }
                self.repeat(node, n, below);
            }
            Frame::Marked { .. } => self.pop(below),
            Frame::FirstKey { object } => {
                let members = ir.objects[object as usize].start(object);
                let members = self.stacks.records.members_id(ir, members);
                self.keys(members, below);
                if self.stacks.records.standing(members).can_close {
                    self.enter(ir.punctuation.close_empty_object, below);
                }
            }
            Frame::Key { members } => self.keys(members, below),
            Frame::Name { members, extra, text } => self.name(members, extra, text, below),
            Frame::Value { members, key } => self.value(members, key, below),
            Frame::Member { members } => self.after_member(members, below),
            Frame::FirstItem { array } => {
                self.items(Items::none(array), below);
                if ir.arrays[array as usize].can_close(0, 0) {
                    self.enter(ir.punctuation.close_empty_array, below);
                }
            }
            Frame::Item { items } => self.items(self.stacks.records.items(items), below),
            Frame::AfterItem { items, text } => {
                let items = self.stacks.records.items(items);
                if let Some(items) = self.stacks.complete(items, text) {
                    self.after_item(items, below);
                }
            }
        }
    }

    /// One more body after `n`, which is not empty.
    fn repeat(&mut self, node: NodeId, n: u32, stack: StackId) {
        let Node::Repeat { body, min, max } = self.ir.nodes[node as usize] else {
            unreachable!("only a repetition has bodies");
        };
        if max.is_none_or(|max| n < max) {
            // Without a maximum only the way to the minimum matters.
            let n = if max.is_none() { (n + 1).min(min) } else { n + 1 };
            self.enter_text_above(body, Frame::Repeat { node, n }, stack);
        }
    }

    /// What was written of an object above `stack`, seen with the values that are within reach there.
    fn seen(&mut self, members: MembersId, stack: StackId) -> Option<MembersId> {
        let object = self.stacks.records.members(members).object;
        let room = self.stacks.room(stack, self.ir.needs_within.object(object))?;
        Some(self.stacks.records.with_room(self.ir, members, room))
    }

    fn after_member(&mut self, members: MembersId, stack: StackId) {
        let ir = self.ir;
        if self.stacks.records.standing(members).can_close {
            self.enter(ir.punctuation.close_object, stack);
        }
        if let Some(seen) = self.seen(members, stack) {
            let standing = self.stacks.records.standing(seen);
            if standing.keys != Allowed::Nothing || !standing.extras.is_empty() {
                self.enter_above(ir.punctuation.comma, Frame::Key { members }, stack);
            }
        }
    }

    fn keys(&mut self, members: MembersId, stack: StackId) {
        let ir = self.ir;
        if let Some(seen) = self.seen(members, stack) {
            let object = self.stacks.records.members(seen).object;
            let standing = self.stacks.records.standing(seen).clone();
            if standing.keys != Allowed::Nothing {
                let leaf = Leaf::Key {
                    object,
                    node: 0,
                    members: seen,
                };
                self.found(leaf, stack);
            }
            let shape = &ir.objects[object as usize];
            for extra in standing.extras.iter().copied() {
                let names = shape.extras[extra as usize].names;
                if shape.has_distinct_names {
                    let text = EMPTY;
                    self.enter_above(names, Frame::Name { members, extra, text }, stack);
                } else {
                    let key = shape.n_keys() + extra;
                    let stack = self.stacks.push(Frame::Value { members, key }, stack);
                    self.enter_above(names, Frame::Then(ir.punctuation.colon), stack);
                }
            }
        }
    }

    /// The name of an extra member is complete.
    fn name(&mut self, members: MembersId, extra: u32, text: TextId, stack: StackId) {
        let mut known = self.stacks.records.members(members).clone();
        let Some(names) = self.stacks.records.memory.with_text(known.names, text) else {
            return;
        };
        known.names = names;
        let key = self.ir.objects[known.object as usize].n_keys() + extra;
        let members = self.stacks.records.members_id(self.ir, known);
        self.enter_above(self.ir.punctuation.colon, Frame::Value { members, key }, stack);
    }

    /// The name of a member and its colon are complete.
    fn value(&mut self, members: MembersId, key: u32, stack: StackId) {
        let ir = self.ir;
        if let Some(seen) = self.seen(members, stack) {
            let before = self.stacks.records.members(seen).clone();
            let shape = self.stacks.records.shape(ir, &before);
            for choice in shape.choices(key) {
                if let Some(after) = shape.after(&before, key, *choice) {
                    let after = after.with_room(AMPLE);
                    let members = self.stacks.records.members_id(ir, after);
                    self.enter_above(choice.value, Frame::Member { members }, stack);
                }
            }
        }
    }

    fn after_item(&mut self, items: Items, stack: StackId) {
        let (ir, array) = (self.ir, items.array);
        if ir.arrays[array as usize].can_close(items.n, items.used) {
            self.enter(ir.punctuation.close_array, stack);
        }
        if let Some(room) = self.stacks.room(stack, ir.needs_within.array(array)) {
            let shallow = self.shallow_array(array, room);
            let shape = shallow.as_deref().unwrap_or(&ir.arrays[array as usize]);
            if self.stacks.can_go_on(ir, shape, items) {
                let items = self.stacks.records.items_id(items);
                self.enter_above(ir.punctuation.comma, Frame::Item { items }, stack);
            }
        }
    }

    fn items(&mut self, items: Items, stack: StackId) {
        let (ir, shape) = (self.ir, &self.ir.arrays[items.array as usize]);
        let text = if shape.is_unique() { EMPTY } else { NONE };
        if let Some(room) = self.stacks.room(stack, ir.needs_within.array(items.array)) {
            let shallow = self.shallow_array(items.array, room);
            for (item, n, used) in shallow.as_deref().unwrap_or(shape).items(items.n, items.used) {
                let items = self.stacks.records.items_id(Items { n, used, ..items });
                self.enter_above(item, Frame::AfterItem { items, text }, stack);
            }
        }
    }

    /// The array of items that need less than `room`; `None` when all do.
    fn shallow_array(&mut self, array: u32, room: u32) -> Option<Arc<Array>> {
        if room == AMPLE {
            return None;
        }
        let ir = self.ir;
        let arrays = &mut self.stacks.shallow_arrays;
        let shallow = arrays.entry((array, room)).or_insert_with(|| {
            let shape = &ir.arrays[array as usize];
            Arc::new(shape.narrowed(|item| ir.needs[item as usize] < room))
        });
        Some(shallow.clone())
    }
}
