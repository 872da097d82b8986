//! States taken from one grammar's tables to other tables of the same grammar: numbers that only the old
//! tables understand are written out and found again.

use crate::hash::Map;
use crate::ir::Ir;
use crate::memory::{EMPTY, Memory, TextId, Value};
use crate::object::Members;
use crate::records::{Items, ItemsId, MembersId, Records};
use crate::stacks::{Frame, PortableSets};
use crate::step::{Leaf, Reading};
use crate::tables::{StateId, Tables};

/// States that any tables can take in: readings whose stacks are places among the sets, and what these refer
/// to.
#[derive(Debug, Default)]
pub(crate) struct Portable {
    sets: PortableSets,
    states: Vec<Vec<Reading>>,
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
    pub(crate) fn export(&self, states: &[StateId]) -> Portable {
        let readings: Vec<_> = states.iter().map(|state| self.readings(*state)).collect();
        let all = readings.iter().flat_map(|readings| readings.iter());
        let (sets, places) = self.stacks.export(all.clone().map(|reading| reading.stack));
        let placed = |reading: &Reading| Reading {
            leaf: reading.leaf,
            stack: places[&reading.stack],
        };
        let states = readings
            .iter()
            .map(|readings| readings.iter().map(placed).collect());
        let mut portable = Portable {
            sets,
            states: states.collect(),
            ..Portable::default()
        };
        let records = &self.stacks.records;
        for frame in self.stacks.frames(&places) {
            portable.add_frame(records, frame);
        }
        for reading in all {
            if let Leaf::Key { members, .. } = reading.leaf {
                portable.add_members(records, members);
            }
        }
        portable
    }

    pub(crate) fn import(&mut self, ir: &Ir, portable: &Portable) -> Vec<StateId> {
        let records = &mut self.stacks.records;
        let list = |memory: &mut Memory, values: &[Value]| {
            let values = values.iter();
            values.fold(0, |list, value| memory.with(list, value.clone()))
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
            let push = |text, byte: &u8| records.memory.push(text, *byte);
            texts.insert(*id, bytes.iter().fold(EMPTY, push));
        }
        let here = |mut frame: Frame| {
            if let Some(id) = frame.members() {
                *id = members[id];
            }
            if let Some(id) = frame.items() {
                *id = items[id];
            }
            match frame.text() {
                Some(text) => frame.with_text(texts[&text]),
                None => frame,
            }
        };
        let stacks = self.stacks.import(&portable.sets, here);
        let here = |reading: &Reading| {
            let mut leaf = reading.leaf;
            if let Leaf::Key { members: id, .. } = &mut leaf {
                *id = members[id];
            }
            let stack = stacks[reading.stack as usize];
            Reading { leaf, stack }
        };
        let states = portable.states.iter();
        let states = states.map(|readings| {
            let mut readings: Vec<Reading> = readings.iter().map(here).collect();
            readings.sort_unstable();
            self.intern(&readings)
        });
        states.collect()
    }
}
