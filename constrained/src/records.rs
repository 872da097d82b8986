//! What an output has written of its open objects and arrays, each kind of progress with a number of its own.

use std::sync::Arc;

use crate::hash::Map;
use crate::ir::Ir;
use crate::memory::{ListId, Memory};
use crate::object::{AMPLE, Members, Object, Standing};

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

impl Items {
    /// Those of an open bracket.
    pub(crate) fn none(array: u32) -> Self {
        Self {
            array,
            n: 0,
            used: 0,
            values: 0,
        }
    }
}

/// An object, or the same one with fewer values.
pub(crate) enum Shape<'a> {
    Whole(&'a Object),
    Narrow(Arc<Object>),
}

impl std::ops::Deref for Shape<'_> {
    type Target = Object;

    fn deref(&self) -> &Object {
        match self {
            Self::Whole(object) => object,
            Self::Narrow(object) => object,
        }
    }
}

/// All objects' and arrays' progress so far.
#[derive(Debug)]
pub(crate) struct Records {
    members: Vec<(Members, Arc<Standing>)>,
    member_ids: Map<Members, MembersId>,
    /// Objects of values that need less than a room, by number and room.
    narrow: Map<(u32, u32), Arc<Object>>,
    items: Vec<Items>,
    item_ids: Map<Items, ItemsId>,
    pub(crate) memory: Memory,
}

impl Records {
    pub(crate) fn new() -> Self {
        Self {
            members: Vec::new(),
            member_ids: Map::default(),
            narrow: Map::default(),
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
        let standing = self.shape(ir, &members).standing(&members);
        self.member_ids.insert(members.clone(), id);
        self.members.push((members, Arc::new(standing)));
        id
    }

    /// What was written as `id` has it, of an object in which so much depth is left.
    pub(crate) fn with_room(&mut self, ir: &Ir, id: MembersId, room: u32) -> MembersId {
        let members = self.members(id);
        if members.room == room {
            return id;
        }
        let members = members.clone().with_room(room);
        self.members_id(ir, members)
    }

    /// The object of `members` with the values that are within reach.
    pub(crate) fn shape<'a>(&mut self, ir: &'a Ir, members: &Members) -> Shape<'a> {
        let object = &ir.objects[members.object as usize];
        if members.room == AMPLE {
            return Shape::Whole(object);
        }
        let narrow = self.narrow.entry((members.object, members.room));
        let narrow = narrow
            .or_insert_with(|| Arc::new(object.narrowed(|value| ir.needs[value as usize] < members.room)));
        Shape::Narrow(narrow.clone())
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
