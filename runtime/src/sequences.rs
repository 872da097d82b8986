//! Values under indices that they keep until they are taken out (slab).

/// Index of a sequence in [`Slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceSlot(usize);

/// Values, each in a slot.
pub(crate) struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    pub(crate) fn insert(&mut self, value: T) -> SequenceSlot {
        let idx = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[idx] = Some(value);
        SequenceSlot(idx)
    }

    pub(crate) fn remove(&mut self, slot: SequenceSlot) -> T {
        let value = self.slots[slot.0].take().expect("the slot is taken");
        self.free.push(slot.0);
        value
    }

    pub(crate) fn find(&self, slot: SequenceSlot) -> Option<&T> {
        self.slots[slot.0].as_ref()
    }

    pub(crate) fn find_mut(&mut self, slot: SequenceSlot) -> Option<&mut T> {
        self.slots[slot.0].as_mut()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SequenceSlot, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(idx, slot)| slot.as_ref().map(|sequence| (SequenceSlot(idx), sequence)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().flatten()
    }
}

impl<T> std::ops::Index<SequenceSlot> for Slots<T> {
    type Output = T;

    fn index(&self, slot: SequenceSlot) -> &T {
        self.slots[slot.0].as_ref().expect("the slot is taken")
    }
}

impl<T> std::ops::IndexMut<SequenceSlot> for Slots<T> {
    fn index_mut(&mut self, slot: SequenceSlot) -> &mut T {
        self.slots[slot.0].as_mut().expect("the slot is taken")
    }
}
