//! Parts of an output that must differ from earlier ones: items of an array (`uniqueItems`) and names of an
//! object, while they are written.
//!
//! The frame below such a part keeps what was written of it, so that a reading carries it and forks, rollback
//! and masks need no special care. A part that would equal an earlier one cannot be completed. A reading
//! that could only become such a part is dropped, so that nothing leads to a dead end: as long as anything
//! yet to come has more values than were written before ([`crate::plenty`]), or nothing written before can
//! still be met, that needs no look; otherwise a completion is searched for.
//!
//! The search goes through completions in one order whatever was written, and finds what it found a byte
//! before; so what it gives up on was never offered.

use crate::array::Array;
use crate::ir::Ir;
use crate::memory::{EMPTY, ListId, MAX_DISTINCT, NONE, TextId};
use crate::plenty::Plenty;
use crate::records::{Items, MembersId};
use crate::stacks::{BOTTOM, Edge, Frame, StackId, Stacks};
use crate::step::{Leaf, Reading};

/// Steps of one search for a completion.
const MAX_SEARCH_STEPS: usize = 4_096;

impl Stacks {
    /// As [`Stacks::step`], where a text is kept in the stack of `reading`.
    pub(crate) fn step_keeping(&mut self, ir: &Ir, reading: &Reading, byte: u8, out: &mut Vec<Reading>) {
        let stack = self.with_texts(reading.stack, |stacks, text| {
            stacks.records.memory.push(text, byte)
        });
        let reading = Reading { stack, ..*reading };
        let next = self.step_leaf(ir, &reading, byte, out);
        out.extend(next.filter(|next| self.is_alive(ir, next)));
    }

    /// `stack` with other texts.
    pub(crate) fn with_texts(
        &mut self,
        stack: StackId,
        mut change: impl FnMut(&mut Self, TextId) -> TextId,
    ) -> StackId {
        let mut frames = Vec::new();
        let mut at = stack;
        while self.keeps_text(at) {
            let Edge { frame, below } = self.top(at);
            frames.push(frame);
            at = below;
        }
        for frame in frames.into_iter().rev() {
            let frame = match frame.text() {
                Some(text) => frame.with_text(change(self, text)),
                None => frame,
            };
            at = self.push(frame, at);
        }
        at
    }

    /// The text that `frame` keeps, and the values that it must differ from.
    pub(crate) fn kept(&self, frame: Frame) -> Option<(ListId, TextId)> {
        let text = frame.text()?;
        Some(match frame {
            Frame::Name { members, .. } => (self.records.members(members).names, text),
            Frame::AfterItem { items, .. } => (self.records.items(items).values, text),
            _ => unreachable!("other frames keep no text"),
        })
    }

    /// `items` with the value of the last one, of which `text` was written; `None` when there is such an item
    /// already.
    pub(crate) fn complete(&mut self, mut items: Items, text: TextId) -> Option<Items> {
        if text != NONE {
            items.values = self.records.memory.with_text(items.values, text)?;
        }
        Some(items)
    }

    /// Whether a further item may come after `items` of the array `shape`.
    pub(crate) fn can_go_on(&mut self, ir: &Ir, shape: &Array, items: Items) -> bool {
        let mut nodes = shape.items(items.n, items.used).map(|(node, ..)| node);
        let Some(plenty) = ir.plenty.as_ref().filter(|_| shape.is_unique()) else {
            return nodes.next().is_some();
        };
        let n_values = self.records.memory.n_values(items.values);
        if n_values >= MAX_DISTINCT {
            return false;
        }
        nodes.any(|node| {
            plenty.n_values(node) > n_values || {
                let begun = self.begin(ir, node);
                self.finds_new(ir, &begun, EMPTY, items.values)
            }
        })
    }

    /// Whether what `reading` is in the middle of can still differ from what it must differ from.
    pub(crate) fn is_alive(&mut self, ir: &Ir, reading: &Reading) -> bool {
        let mut at = reading.stack;
        let mut n_above = 0;
        while self.keeps_text(at) {
            let Edge { frame, below } = self.top(at);
            if let Some((list, text)) = self.kept(frame)
                && list != 0
                && !self.has_plenty(ir, reading, n_above, self.records.memory.n_values(list))
                && !self.records.memory.rivals(list, text).is_empty()
            {
                let alone = self.alone(reading, n_above);
                let mut begun = vec![alone];
                // Behind punctuation nothing but whitespace goes on in the leaf; what matters follows it.
                if n_above > 0 && alone.may_end(ir) {
                    begun.extend_from_slice(&self.continuation(ir, alone.stack));
                }
                if !self.finds_new(ir, &begun, text, list) {
                    return false;
                }
            }
            n_above += 1;
            at = below;
        }
        true
    }

    /// `reading` with the top `n_frames` frames of its stack only.
    fn alone(&mut self, reading: &Reading, n_frames: usize) -> Reading {
        let (mut frames, mut at) = (Vec::new(), reading.stack);
        for _ in 0..n_frames {
            let Edge { frame, below } = self.top(at);
            frames.push(frame);
            at = below;
        }
        let stack = frames
            .into_iter()
            .rev()
            .fold(BOTTOM, |stack, frame| self.push(frame, stack));
        Reading { stack, ..*reading }
    }

    /// Whether what is to come of `reading`, the top `n_frames` frames of its stack included, has more than
    /// `n` values; not every time that it has.
    pub(crate) fn has_plenty(&mut self, ir: &Ir, reading: &Reading, n_frames: usize, n: u32) -> bool {
        let plenty = ir.plenty.as_ref().expect("it is there where texts are kept");
        let of_leaf = match reading.leaf {
            Leaf::Text { text, place } => plenty.has_text(ir, text, place, n),
            Leaf::Key {
                object,
                node,
                members,
            } => {
                let standing = self.records.standing(members);
                let mut keys = ir.objects[object as usize].trie.keys(node).iter();
                keys.any(|key| standing.keys.has(*key) && self.has_choice(ir, plenty, (members, *key), n))
            }
            _ => false,
        };
        let mut at = reading.stack;
        of_leaf
            || (0..n_frames).any(|_| {
                let Edge { frame, below } = self.top(at);
                at = below;
                self.has_plenty_after(ir, plenty, frame, n)
            })
    }

    fn has_plenty_after(&self, ir: &Ir, plenty: &Plenty, frame: Frame, n: u32) -> bool {
        match frame {
            Frame::End | Frame::Marked { .. } => false,
            Frame::Then(node) => plenty.n_values(node) > n,
            Frame::Seq { .. } | Frame::Repeat { .. } => false,
            Frame::FirstKey { object } => plenty.n_objects(object) > n,
            Frame::Value { members, key } => self.has_choice(ir, plenty, (members, key), n),
            Frame::Key { members } | Frame::Member { members } => {
                self.has_plenty_of_members(ir, plenty, members, n)
            }
            Frame::Name { members, extra, .. } => {
                let object = self.records.members(members).object;
                let key = ir.objects[object as usize].n_keys() + extra;
                self.has_choice(ir, plenty, (members, key), n)
            }
            Frame::FirstItem { array } => plenty.has_items(ir, Items::none(array), n),
            Frame::Item { items } | Frame::AfterItem { items, .. } => {
                plenty.has_items(ir, self.records.items(items), n)
            }
        }
    }

    /// Whether the value of a member has more than `n` values after which the object can be completed.
    fn has_choice(&self, ir: &Ir, plenty: &Plenty, (members, key): (MembersId, u32), n: u32) -> bool {
        let members = self.records.members(members);
        let shape = &ir.objects[members.object as usize];
        let mut choices = shape.choices(key).iter();
        choices
            .any(|choice| plenty.n_values(choice.value) > n && shape.after(members, key, *choice).is_some())
    }

    /// Whether members that may follow, or their names, have more than `n` values.
    fn has_plenty_of_members(&self, ir: &Ir, plenty: &Plenty, members: MembersId, n: u32) -> bool {
        let standing = self.records.standing(members);
        let shape = &ir.objects[self.records.members(members).object as usize];
        let mut extras = standing.extras.iter();
        let mut keys = 0..shape.n_keys();
        extras.any(|extra| {
            // Of the names some may be taken.
            let n_names = plenty.n_values(shape.extras[*extra as usize].names);
            let key = shape.n_keys() + extra;
            n_names > n + MAX_DISTINCT || self.has_choice(ir, plenty, (members, key), n)
        }) || keys.any(|key| standing.keys.has(key) && self.has_choice(ir, plenty, (members, key), n))
    }

    /// Whether one of `begun` can go on to complete a value that `list` lacks; `text` was written of it.
    fn finds_new(&mut self, ir: &Ir, begun: &[Reading], text: TextId, list: ListId) -> bool {
        struct Node {
            reading: Reading,
            n_bytes: usize,
            byte: Option<u8>,
            /// In the order of [`ORDER`].
            next: usize,
        }
        let mut written = self.records.memory.bytes(text);
        let node = |reading, n_bytes, byte| Node {
            reading,
            n_bytes,
            byte,
            next: 0,
        };
        let mut open: Vec<Node> = begun
            .iter()
            .map(|reading| node(*reading, written.len(), None))
            .collect();
        let (mut n_steps, mut after) = (0, Vec::new());
        while let Some(top) = open.last_mut() {
            let Some(byte) = ORDER.get(top.next).copied() else {
                open.pop();
                continue;
            };
            if top.next == 0 {
                written.truncate(top.n_bytes - usize::from(top.byte.is_some()));
                written.extend(top.byte);
            }
            top.next += 1;
            // Whitespace between JSON's punctuation adds nothing.
            let is_idle = b" \t\r\n".contains(&byte) && !matches!(top.reading.leaf, Leaf::Text { .. });
            if is_idle {
                continue;
            }
            let (reading, n_bytes) = (top.reading, top.n_bytes);
            self.step(ir, &reading, byte, &mut after);
            if after.is_empty() {
                continue;
            }
            n_steps += 1;
            if n_steps > MAX_SEARCH_STEPS {
                return false;
            }
            written.truncate(n_bytes);
            written.push(byte);
            if after.iter().any(|next| next.leaf == Leaf::Done) && self.records.memory.lacks(list, &written) {
                return true;
            }
            let unfinished = after.drain(..).filter(|next| next.leaf != Leaf::Done);
            open.extend(unfinished.map(|next| node(next, n_bytes + 1, Some(byte))));
        }
        false
    }
}

/// All bytes: first those that end something, last those that begin an escape.
const ORDER: [u8; 256] = {
    let mut order = [0; 256];
    let first = *b"\"}],:{[123456789";
    let mut n = 0;
    while n < first.len() {
        order[n] = first[n];
        n += 1;
    }
    let mut byte = 0;
    while byte < 256 {
        let mut is_listed = byte == b'\\' as usize;
        let mut at = 0;
        while at < first.len() {
            is_listed |= first[at] as usize == byte;
            at += 1;
        }
        if !is_listed {
            order[n] = byte as u8;
            n += 1;
        }
        byte += 1;
    }
    order[n] = b'\\';
    order
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_a_search_has_every_byte_once() {
        let mut bytes = ORDER;
        bytes.sort_unstable();
        assert!((0..=255u8).eq(bytes));
    }
}
