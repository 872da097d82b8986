//! Masks where something must differ from what was written before.
//!
//! First the part that is being written is taken to differ: then all is as anywhere else. Afterwards the
//! tokens are taken away with which it would not: only those that go on like an earlier part can be, and they
//! are followed byte by byte. Tokens that begin and complete a further such part are looked at one by one.

use crate::dfa::{ByteSet, union_of};
use crate::fill::{Asked, Filling, Onward, StepTheSet};
use crate::ir::Ir;
use crate::mask::TokenMask;
use crate::memory::{EMPTY, ListId, NEW, TextId, UNSEEN};
use crate::stacks::{Edge, Frame, StackId, Stacks};
use crate::step::Reading;
use crate::sweep::{Found, Machine, Step, sweep_new};
use crate::tables::{NOTHING, StateId, Tables};

impl Stacks {
    /// `stack` after bytes of a token that its texts do not have.
    pub(crate) fn within_token(&mut self, stack: StackId) -> StackId {
        self.with_texts(stack, |_, text| if text == EMPTY { UNSEEN } else { text })
    }

    /// Parts of `stack` that were begun within a token.
    fn n_unseen(&self, mut stack: StackId) -> usize {
        let mut n = 0;
        while self.keeps_text(stack) {
            let Edge { frame, below } = self.top(stack);
            n += usize::from(frame.text() == Some(UNSEEN));
            stack = below;
        }
        n
    }

    /// Whether all that comes after `stack` depends on what a part is that the same token begins.
    pub(crate) fn is_unsure_after(&mut self, ir: &Ir, stack: StackId) -> bool {
        let readings = self.continuation(ir, stack);
        let mut readings = readings.iter();
        readings.all(|reading| self.is_unsure(ir, stack, reading))
    }

    /// Whether `reading`, which goes on after `stack`, depends on what a part is that the same token begins.
    pub(crate) fn is_unsure(&mut self, ir: &Ir, stack: StackId, reading: &Reading) -> bool {
        if !self.keeps_text(stack) && !self.keeps_text(reading.stack) {
            return false;
        }
        let begins = |stacks: &Self, frame: Frame| {
            matches!(frame.text(), Some(EMPTY | UNSEEN)) && stacks.kept(frame).is_some()
        };
        let (mut at, mut n_above) = (reading.stack, 0);
        let mut is_limited = false;
        while self.keeps_text(at) && !is_limited {
            let Edge { frame, below } = self.top(at);
            if begins(self, frame) {
                let (list, _) = self.kept(frame).expect("it keeps a text");
                let n = self.records.memory.n_values(list);
                is_limited = n > 0 && !self.has_plenty(ir, reading, n_above, n);
            }
            n_above += 1;
            at = below;
        }
        is_limited || self.n_unseen(stack) > self.n_unseen(reading.stack)
    }
}

impl Tables {
    /// Adds the tokens that may come next in `reading`, which keeps a text.
    pub(crate) fn fill_distinct(
        &mut self,
        asked: Asked<'_>,
        reading: &Reading,
        filling: &mut Filling,
    ) -> Result<(), StepTheSet> {
        let (mut own, mut onward) = (Filling::default(), Onward::new());
        own.n_entered = filling.n_entered;
        let taken = Reading {
            stack: self.taken_to_differ(asked, reading.stack),
            ..*reading
        };
        self.fill_reading(asked, &taken, &mut own, &mut onward)?;
        self.follow_all(asked, &mut onward, &mut own)?;
        let state = self.state_of(asked.ir, vec![*reading]);
        let kept = self.kept(state);
        self.settle_unsure(asked, state, &mut own);
        let memory = &mut self.stacks.records.memory;
        let has_rivals = |(list, text): &(ListId, TextId)| !memory.rivals(*list, *text).is_empty();
        if kept.iter().any(has_rivals) {
            let denied = self.denied(asked, state);
            own.take_away(asked, &denied);
        }
        filling.n_entered = own.n_entered;
        filling.extras.append(&mut own.extras);
        own.parts.iter().for_each(|part| filling.add_part(part));
        Ok(())
    }

    /// Looks at the tokens in doubt one by one, from `state` on.
    pub(crate) fn settle_unsure(&mut self, asked: Asked<'_>, state: StateId, filling: &mut Filling) {
        for token in filling.unsure.drain(..) {
            if self.run(asked.ir, state, asked.vocabulary.token_bytes(token)) != NOTHING {
                filling.extras.push(token);
            }
        }
    }

    /// `stack` with texts of which only that they are new is known.
    fn taken_to_differ(&mut self, asked: Asked<'_>, stack: StackId) -> StackId {
        let mut at = stack;
        let mut texts = Vec::new();
        while self.stacks.keeps_text(at) {
            let Edge { frame, below } = self.stacks.top(at);
            if frame.text().is_some() {
                texts.push(self.text_taken(asked, frame));
            }
            at = below;
        }
        // The lowest one comes first.
        self.stacks
            .with_texts(stack, |_, _| texts.pop().expect("one for each"))
    }

    /// [`NEW`], unless completing the part of `frame` may leave no value for a further one.
    fn text_taken(&self, asked: Asked<'_>, frame: Frame) -> u32 {
        let Frame::AfterItem { items, .. } = frame else {
            return NEW;
        };
        let items = self.stacks.records.items(items);
        let n = self.stacks.records.memory.n_values(items.values) + asked.vocabulary.max_bytes();
        let plenty = asked
            .ir
            .plenty
            .as_ref()
            .expect("it is there where texts are kept");
        let mut nodes = asked.ir.arrays[items.array as usize].items(items.n, items.used);
        if nodes.all(|(node, ..)| plenty.n_values(node) > n) {
            NEW
        } else {
            UNSEEN
        }
    }

    /// The values that must not be written again and the texts so far, of all that `state` is in the middle
    /// of.
    fn kept(&self, state: StateId) -> Vec<(ListId, TextId)> {
        let mut kept = Vec::new();
        for reading in self.readings(state).iter() {
            let mut at = reading.stack;
            while self.stacks.keeps_text(at) {
                let Edge { frame, below } = self.stacks.top(at);
                kept.extend(self.stacks.kept(frame).filter(|(list, _)| *list != 0));
                at = below;
            }
        }
        kept
    }

    /// The tokens, as bits, with which something in `state` would come to equal what it must differ from, and
    /// others that cannot come either.
    fn denied(&mut self, asked: Asked<'_>, state: StateId) -> Vec<u64> {
        let (trie, mut found) = (asked.vocabulary.trie(), Found::default());
        let mut machine = RivalMachine { tables: self, asked };
        sweep_new(&mut machine, state, trie, &mut found);
        let mut denied = vec![0; asked.vocabulary.n_words()];
        for exit in found.exits {
            for token in &trie.tokens()[trie.range_below(exit.node as usize)] {
                denied[*token as usize / 64] |= 1 << (token % 64);
            }
        }
        denied
    }
}

impl Filling {
    /// Drops the tokens whose bits are set in `denied`.
    fn take_away(&mut self, asked: Asked<'_>, denied: &[u64]) {
        self.extras
            .retain(|token| denied[*token as usize / 64] >> (token % 64) & 1 == 0);
        let mut words = vec![0; asked.vocabulary.n_words()];
        self.parts.iter().for_each(|part| part.mask.add_to(&mut words));
        let mut is_less = false;
        for (word, denied) in words.iter_mut().zip(denied) {
            is_less |= *word & denied != 0;
            *word &= !denied;
        }
        if !is_less {
            return;
        }
        let mask = TokenMask::from_words(words, asked.vocabulary.n_vocab());
        self.parts.clear();
        self.parts.push(asked.vocabulary.cache().mask(mask));
    }
}

/// Follows what goes on like an earlier part; where nothing can come is the way out.
struct RivalMachine<'a, 'b> {
    tables: &'a mut Tables,
    asked: Asked<'b>,
}

impl Machine for RivalMachine<'_, '_> {
    type Place = StateId;

    fn bytes(&mut self, place: StateId) -> ByteSet {
        let kept = self.tables.kept(place);
        let memory = &mut self.tables.stacks.records.memory;
        let bytes = kept.iter().map(|(list, text)| memory.rival_bytes(*list, *text));
        // Nothing is kept after a number that was complete and could not go on: there all that comes is new.
        bytes.reduce(union_of).unwrap_or([u64::MAX; 4])
    }

    fn step(&mut self, place: StateId, byte: u8) -> Step<StateId> {
        // What is dropped for a rival has one, with this byte too.
        let kept = self.tables.kept(place);
        let memory = &mut self.tables.stacks.records.memory;
        let may_matter = kept.iter().any(|(list, text)| {
            let text = memory.push(*text, byte);
            !memory.rivals(*list, text).is_empty()
        });
        if !may_matter {
            return Step::NONE;
        }
        let next = self.tables.step(self.asked.ir, place, byte);
        Step {
            inside: (next != NOTHING).then_some(next),
            exit: (next == NOTHING).then_some(0),
        }
    }
}
