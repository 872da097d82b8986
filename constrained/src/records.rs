//! What an output has written of its open objects and arrays, each kind of progress with a number of its own.

use std::sync::Arc;

use crate::hash::Map;
use crate::ir::Ir;
use crate::memory::{ListId, Memory};
use crate::object::{Members, Standing};

pub(crate) type MembersId = u32;
pub(crate) type ItemsId = u32;

/// What an output has written of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Items {
    pub(crate) array: u32,
    /// Items, no more than can matter.
    pub(crate) n: u32,
    /// What [`crate::array::Array`] counts.
    pub(crate) used: u32,
    /// The items, where they must be distinct.
    pub(crate) values: ListId,
}

/// All objects' and arrays' progress so far.
#[derive(Debug)]
pub(crate) struct Records {
    members: Vec<(Members, Arc<Standing>)>,
    member_ids: Map<Members, MembersId>,
    items: Vec<Items>,
    item_ids: Map<Items, ItemsId>,
    pub(crate) memory: Memory,
}

impl Records {
    pub(crate) fn new() -> Self {
        Self {
            members: Vec::new(),
            member_ids: Map::default(),
            items: Vec::new(),
            item_ids: Map::default(),
            memory: Memory::new(),
        }
    }

    /// About how much memory they hold.
    pub(crate) fn n_bytes(&self) -> usize {
        self.members.len() * 320 + self.items.len() * 48 + self.memory.n_bytes()
    }

    pub(crate) fn members_id(&mut self, ir: &Ir, members: Members) -> MembersId {
        if let Some(id) = self.member_ids.get(&members) {
            return *id;
        }
        let id = self.members.len() as MembersId;
        let standing = ir.objects[members.object as usize].standing(&members);
        self.member_ids.insert(members.clone(), id);
        self.members.push((members, Arc::new(standing)));
        id
    }

    pub(crate) fn members(&self, id: MembersId) -> &Members {
        &self.members[id as usize].0
    }

    /// What may come after `id`.
    pub(crate) fn standing(&self, id: MembersId) -> &Arc<Standing> {
        &self.members[id as usize].1
    }

    pub(crate) fn items_id(&mut self, items: Items) -> ItemsId {
        let fresh = self.items.len() as ItemsId;
        let id = *self.item_ids.entry(items).or_insert(fresh);
        if id == fresh {
            self.items.push(items);
        }
        id
    }

    pub(crate) fn items(&self, id: ItemsId) -> Items {
        self.items[id as usize]
    }
}
