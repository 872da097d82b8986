//! What may come once a part is complete or begun: everything that needs no byte is followed.

use crate::hash::SmallSet;
use crate::ir::{Ir, Node, NodeId};
use crate::memory::{EMPTY, NONE, TextId};
use crate::object::Allowed;
use crate::records::{Items, MembersId};
use crate::step::{BOTTOM, Entry, Frame, Leaf, Reading, StackId, Stacks};

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Task {
    Enter(NodeId, StackId),
    Pop(StackId),
}

/// Follows what needs no byte.
pub(crate) struct Closure<'a> {
    stacks: &'a mut Stacks,
    ir: &'a Ir,
    todo: Vec<Task>,
    seen: SmallSet<Task>,
    found: Vec<Reading>,
}

impl<'a> Closure<'a> {
    /// The readings with which `node` begins, alone.
    pub(crate) fn entering(stacks: &'a mut Stacks, ir: &'a Ir, node: NodeId) -> Vec<Reading> {
        let mut closure = Self::new(stacks, ir);
        closure.enter(node, BOTTOM);
        closure.finish()
    }

    /// The readings once everything above `stack` is complete.
    pub(crate) fn above(stacks: &'a mut Stacks, ir: &'a Ir, stack: StackId) -> Vec<Reading> {
        let mut closure = Self::new(stacks, ir);
        closure.todo.push(Task::Pop(stack));
        closure.finish()
    }

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
                let members = self.ir.objects[object as usize].start(object);
                let members = self.stacks.records.members_id(self.ir, members);
                self.keys(object, members, below);
                if self.stacks.records.standing(members).can_close {
                    self.enter(marks.close_empty_object, below);
                }
            }
            Frame::Key { members } => {
                let object = self.stacks.records.members(members).object;
                self.keys(object, members, below);
            }
            Frame::Name { members, extra, text } => self.name(members, extra, text, below),
            Frame::Value { members, key } => self.value(members, key, below),
            Frame::Member { members } => {
                let standing = self.stacks.records.standing(members).clone();
                if standing.can_close {
                    self.enter(marks.close_object, below);
                }
                if standing.keys != Allowed::Nothing || !standing.extras.is_empty() {
                    self.enter_above(marks.comma, Frame::Key { members }, below);
                }
            }
            Frame::FirstItem { array } => {
                let items = Items {
                    array,
                    n: 0,
                    used: 0,
                    values: 0,
                };
                self.item(items, below);
                if self.ir.arrays[array as usize].can_close(0, 0) {
                    self.enter(marks.close_empty_array, below);
                }
            }
            Frame::Item { items } => self.item(self.stacks.records.items(items), below),
            Frame::AfterItem { items, text } => {
                let items = self.stacks.records.items(items);
                let Some(items) = self.stacks.complete(items, text) else {
                    return;
                };
                let shape = &self.ir.arrays[items.array as usize];
                if shape.can_close(items.n, items.used) {
                    self.enter(marks.close_array, below);
                }
                if self.stacks.can_go_on(self.ir, items) {
                    let items = self.stacks.records.items_id(items);
                    self.enter_above(marks.comma, Frame::Item { items }, below);
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

    fn keys(&mut self, object: u32, members: MembersId, stack: StackId) {
        let standing = self.stacks.records.standing(members).clone();
        if standing.keys != Allowed::Nothing {
            let leaf = Leaf::Key {
                object,
                node: 0,
                members,
            };
            self.found.push(Reading { leaf, stack });
        }
        let shape = &self.ir.objects[object as usize];
        for extra in &standing.extras {
            let names = shape.extras[*extra as usize].names;
            if shape.has_distinct_names {
                let name = Frame::Name {
                    members,
                    extra: *extra,
                    text: EMPTY,
                };
                self.enter_above(names, name, stack);
                continue;
            }
            let key = shape.n_keys() + extra;
            if let Some(stack) = self.push(Frame::Value { members, key }, stack) {
                self.enter_above(names, Frame::Then(self.ir.punctuation.colon), stack);
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
        if let Some(stack) = self.push(Frame::Value { members, key }, stack) {
            self.enter(self.ir.punctuation.colon, stack);
        }
    }

    fn value(&mut self, members: MembersId, key: u32, stack: StackId) {
        let before = self.stacks.records.members(members).clone();
        let shape = &self.ir.objects[before.object as usize];
        for choice in shape.choices(key) {
            if let Some(after) = shape.after(&before, key, *choice) {
                let members = self.stacks.records.members_id(self.ir, after);
                self.enter_above(choice.value, Frame::Member { members }, stack);
            }
        }
    }

    fn item(&mut self, items: Items, stack: StackId) {
        let shape = &self.ir.arrays[items.array as usize];
        let text = if shape.is_unique() { EMPTY } else { NONE };
        for (item, n, used) in shape.items(items.n, items.used) {
            let items = self.stacks.records.items_id(Items { n, used, ..items });
            self.enter_above(item, Frame::AfterItem { items, text }, stack);
        }
    }
}
