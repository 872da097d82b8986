//! States taken from one grammar's tables to other tables of the same grammar: numbers that only the old
//! tables understand are written out and found again.

use crate::hash::Map;
use crate::ir::Ir;
use crate::memory::{EMPTY, Memory, TextId, Value};
use crate::object::Members;
use crate::records::{Items, ItemsId, MembersId, Records};
use crate::step::{Frame, Leaf, Reading};
use crate::tables::{StateId, Tables};

/// A state that any tables can take in: readings with their stacks written out, and what these refer to.
#[derive(Default)]
pub(crate) struct Portable {
    readings: Vec<(Leaf, Vec<Frame>)>,
    members: Vec<(MembersId, Members, Vec<Value>)>,
    items: Vec<(ItemsId, Items, Vec<Value>)>,
    texts: Vec<(TextId, Vec<u8>)>,
}

impl Frame {
    fn members(&mut self) -> Option<&mut MembersId> {
        match self {
            Self::Key { members }
            | Self::Name { members, .. }
            | Self::Value { members, .. }
            | Self::Member { members } => Some(members),
            _ => None,
        }
    }

    fn items(&mut self) -> Option<&mut ItemsId> {
        match self {
            Self::Item { items } | Self::AfterItem { items, .. } => Some(items),
            _ => None,
        }
    }
}

impl Portable {
    fn add_members(&mut self, records: &Records, id: MembersId) {
        if self.members.iter().all(|(known, ..)| *known != id) {
            let members = records.members(id).clone();
            let names = records.memory.values(members.names);
            self.members.push((id, members, names));
        }
    }

    fn add_frame(&mut self, records: &Records, mut frame: Frame) {
        if let Some(members) = frame.members() {
            self.add_members(records, *members);
        }
        if let Some(items) = frame.items().copied()
            && self.items.iter().all(|(known, ..)| *known != items)
        {
            let written = records.items(items);
            let values = records.memory.values(written.values);
            self.items.push((items, written, values));
        }
        if let Some(text) = frame.text() {
            self.texts.push((text, records.memory.bytes(text)));
        }
    }
}

impl Tables {
    pub(crate) fn export(&self, state: StateId) -> Portable {
        let mut portable = Portable::default();
        let records = &self.stacks.records;
        for reading in self.readings(state).iter() {
            let frames = self.stacks.frames(reading.stack);
            frames
                .iter()
                .for_each(|frame| portable.add_frame(records, *frame));
            if let Leaf::Key { members, .. } = reading.leaf {
                portable.add_members(records, members);
            }
            portable.readings.push((reading.leaf, frames));
        }
        portable
    }

    pub(crate) fn import(&mut self, ir: &Ir, portable: &Portable) -> StateId {
        let records = &mut self.stacks.records;
        let list = |memory: &mut Memory, values: &[Value]| {
            values
                .iter()
                .fold(0, |list, value| memory.with(list, value.clone()))
        };
        let mut members: Map<MembersId, MembersId> = Map::default();
        for (id, written, names) in &portable.members {
            let names = list(&mut records.memory, names);
            let mut written = written.clone();
            written.names = names;
            members.insert(*id, records.members_id(ir, written));
        }
        let mut items: Map<ItemsId, ItemsId> = Map::default();
        for (id, written, values) in &portable.items {
            let values = list(&mut records.memory, values);
            items.insert(*id, records.items_id(Items { values, ..*written }));
        }
        let mut texts: Map<TextId, TextId> = Map::default();
        for (id, bytes) in &portable.texts {
            let text = bytes
                .iter()
                .fold(EMPTY, |text, byte| records.memory.push(text, *byte));
            texts.insert(*id, text);
        }
        let mut readings = Vec::new();
        for (leaf, frames) in &portable.readings {
            let mut frames = frames.clone();
            for frame in &mut frames {
                if let Some(id) = frame.members() {
                    *id = members[id];
                }
                if let Some(id) = frame.items() {
                    *id = items[id];
                }
                if let Some(text) = frame.text() {
                    *frame = frame.with_text(texts[&text]);
                }
            }
            let leaf = match *leaf {
                Leaf::Key {
                    object,
                    node,
                    members: id,
                } => Leaf::Key {
                    object,
                    node,
                    members: members[&id],
                },
                leaf => leaf,
            };
            let stack = self.stacks.of_frames(&frames);
            readings.push(Reading { leaf, stack });
        }
        self.intern_sorted(ir, readings)
    }
}
