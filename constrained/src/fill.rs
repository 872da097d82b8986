//! Masks of states that were not visited before.
//!
//! A mask is the union of its readings' masks. Of each reading the leaf alone decides most tokens, and what
//! it decides is kept by the vocabulary for all grammars with an equal leaf ([`crate::cache`]). Only tokens
//! that go on after the leaf depend on the stack: they are followed from leaf to leaf, and no state is built
//! for them.
//!
//! Why this is the same as stepping the whole set of readings byte by byte: steps distribute over readings,
//! and readings that meet at a node of the tree are joined there. Where a leaf can be left nearly everywhere,
//! or very many leaves are entered, the set itself is stepped, over those tokens that are not allowed
//! already: each node of the tree is met once, and sets that were met before are known.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use crate::cache::{Fragment, Known, Piece, TextFragment, Union};
use crate::dfa::{ByteSet, union_of};
use crate::free_text::FreeMachine;
use crate::ir::Ir;
use crate::mask::TokenMask;
use crate::memory::UNSEEN;
use crate::pieces::{AnyText, StringLeaf, ways};
use crate::stacks::StackId;
use crate::step::{Leaf, MAX_KEEPING, Reading};
use crate::sweep::{Buffers, DfaMachine, Found, Machine, Step, TextMachine, sweep, sweep_keys, sweep_new};
use crate::tables::{NOTHING, StateId, Tables};
use crate::text::Place;
use crate::trie::Trie;
use crate::vocabulary::Vocabulary;

/// What a mask is asked of.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) ir: &'a Ir,
    pub(crate) vocabulary: &'a Vocabulary,
}

/// Following tokens from leaf to leaf would take longer than to step the set of readings.
pub(crate) struct StepTheSet;

/// Where leaves end within a tree of tokens. The smallest comes first, so that all that go on from a node are
/// known when it is looked at.
pub(crate) type Onward = BinaryHeap<Reverse<Point>>;

/// A place in a tree of tokens to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    /// From 1; 0 is the root.
    pub(crate) node: u32,
    /// Whether tokens that go on here must be looked at again, one by one.
    pub(crate) is_unsure: bool,
    pub(crate) stack: StackId,
}

/// Leaves above shallow stacks that one mask enters: beyond them, sets are likely to have been met before.
pub(crate) const MAX_ENTERED: usize = 4_096;

impl Point {
    /// All tokens of a tree.
    pub(crate) fn root(stack: StackId) -> Self {
        Self {
            node: 0,
            is_unsure: false,
            stack,
        }
    }
}

/// A mask in the making; empty between masks, kept for its memory.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    pub(crate) parts: Vec<Known>,
    pub(crate) extras: Vec<u32>,
    /// Tokens that may come, or not.
    pub(crate) unsure: Vec<u32>,
    sweeps: Sweeps,
    onward: Onward,
    /// Trees of what follows leaves, each with the stacks that go on there.
    pub(crate) apart: Vec<(Arc<Trie>, StackId)>,
    pub(crate) n_entered: usize,
    /// Whether any of them was entered above a stack that keeps a text.
    pub(crate) met_texts: bool,
    union: Union,
}

#[derive(Debug, Default)]
struct Sweeps {
    found: Found,
    dfa: Buffers<u32>,
    text: Buffers<Place>,
    keys: Vec<(u32, Option<usize>)>,
}

impl Tables {
    /// The mask of `state`, from its readings.
    pub(crate) fn first_mask(&mut self, asked: Asked<'_>, state: StateId) -> Arc<TokenMask> {
        let mut filling = std::mem::take(&mut self.filling);
        filling.begin();
        if self.fill(asked, state, &mut filling).is_err() {
            match asked.ir.plenty {
                None => self.fill_by_walk(asked, state, &mut filling),
                Some(_) => self.fill_by_steps(asked, state, &mut filling),
            }
        }
        self.add_tokens(asked, state, &mut filling);
        if self.is_accepting(state) {
            filling.extras.extend(asked.vocabulary.eos());
        }
        let mask = filling.finish(asked.vocabulary);
        self.filling = filling;
        mask
    }

    fn fill(&mut self, asked: Asked<'_>, state: StateId, filling: &mut Filling) -> Result<(), StepTheSet> {
        let mut onward = std::mem::take(&mut filling.onward);
        let readings = self.readings(state);
        filling.n_entered = readings.len();
        for reading in readings.iter() {
            if self.stacks.keeps_text(reading.stack) {
                self.fill_distinct(asked, reading, filling)?;
            } else {
                self.fill_reading(asked, reading, filling, &mut onward)?;
            }
        }
        self.follow_all(asked, &mut onward, filling)?;
        filling.onward = onward;
        self.settle_unsure(asked, state, filling);
        Ok(())
    }

    /// Adds what the leaf of `reading` allows, and where tokens go on after it to `onward`.
    pub(crate) fn fill_reading(
        &mut self,
        asked: Asked<'_>,
        reading: &Reading,
        filling: &mut Filling,
        onward: &mut Onward,
    ) -> Result<(), StepTheSet> {
        let (ir, trie) = (asked.ir, asked.vocabulary.trie());
        match reading.leaf {
            Leaf::Done | Leaf::Token { .. } => return Ok(()),
            Leaf::Key { .. } => {
                self.sweep_leaf(asked, reading, (trie, None), &mut filling.sweeps);
                self.take_found(ir, (reading, false), trie, filling, onward);
                return Ok(());
            }
            Leaf::Dfa { .. } | Leaf::Text { .. } | Leaf::Free { .. } => {}
        }
        let piece = self.piece(asked, reading, filling);
        filling.add_part(&piece.inside);
        for way in &piece.ways {
            let stack = self.stacks.after(ir, reading, way.way);
            if way.is_dense && self.stacks.has_leaf(ir, stack) {
                return Err(StepTheSet);
            }
            if !way.here.is_empty() && self.stacks.can_follow(ir, stack) {
                filling.extras.extend(&way.here);
            }
            let point = |node| Point {
                node,
                is_unsure: false,
                stack,
            };
            onward.extend(way.nodes.iter().map(|node| Reverse(point(node + 1))));
            if let Some(suffixes) = &way.suffixes {
                let may_join = |(known, other): &&mut (Arc<Trie>, StackId)| {
                    Arc::ptr_eq(known, suffixes) && self.stacks.may_join(*other, stack)
                };
                match filling.apart.iter_mut().find(may_join) {
                    Some((_, known)) => *known = self.stacks.union(ir, *known, stack),
                    None => filling.apart.push((suffixes.clone(), stack)),
                }
            }
        }
        Ok(())
    }

    /// Follows tokens of `trie` from leaf to leaf.
    pub(crate) fn follow(
        &mut self,
        asked: Asked<'_>,
        trie: &Trie,
        onward: &mut Onward,
        filling: &mut Filling,
    ) -> Result<(), StepTheSet> {
        while let Some(Reverse(mut point)) = onward.pop() {
            while let Some(Reverse(next)) = onward.peek().copied() {
                let is_alike = (next.node, next.is_unsure) == (point.node, point.is_unsure);
                if !is_alike || !self.stacks.may_join(point.stack, next.stack) {
                    break;
                }
                point.stack = self.stacks.union(asked.ir, point.stack, next.stack);
                onward.pop();
            }
            let cost = match asked.ir.plenty {
                None => self.stacks.cost(asked.ir, point.stack),
                Some(_) => 1,
            };
            if filling.n_entered + cost > MAX_ENTERED {
                return Err(StepTheSet);
            }
            let readings = self.stacks.continuation(asked.ir, point.stack);
            filling.n_entered += readings.len() * cost;
            let keeps_text = |reading: &Reading| self.stacks.keeps_text(reading.stack);
            // Of more that keep a text, a state has not all.
            let does_keep = asked.ir.plenty.is_some() && readings.iter().any(keeps_text);
            filling.met_texts |= does_keep;
            let is_many = does_keep && filling.n_entered > MAX_KEEPING;
            if filling.n_entered > MAX_ENTERED || is_many {
                return Err(StepTheSet);
            }
            let node = (point.node as usize).checked_sub(1);
            for reading in readings.iter() {
                let is_unsure = point.is_unsure || self.stacks.is_unsure(asked.ir, point.stack, reading);
                self.sweep_leaf(asked, reading, (trie, node), &mut filling.sweeps);
                self.take_found(asked.ir, (reading, is_unsure), trie, filling, onward);
            }
        }
        Ok(())
    }

    /// Allows what was found of the leaf of `reading` in `trie`, or is not sure of it, and notes where it
    /// ends.
    fn take_found(
        &mut self,
        ir: &Ir,
        (reading, is_unsure): (&Reading, bool),
        trie: &Trie,
        filling: &mut Filling,
        onward: &mut Onward,
    ) {
        let Filling {
            sweeps,
            extras,
            unsure,
            ..
        } = filling;
        let found = &mut sweeps.found;
        let tokens = if is_unsure { &mut *unsure } else { &mut *extras };
        for (begin, end) in found.ranges.drain(..) {
            tokens.extend(&trie.tokens()[begin as usize..end as usize]);
        }
        for exit in found.exits.drain(..) {
            let stack = self.stacks.after(ir, reading, exit.way);
            let stack = self.stacks.within_token(stack);
            let node = exit.node as usize;
            if exit.is_end && self.stacks.can_follow(ir, stack) {
                let may_be = ir.plenty.is_some();
                let is_unsure = is_unsure || may_be && self.stacks.is_unsure_after(ir, stack);
                let tokens = if is_unsure { &mut *unsure } else { &mut *extras };
                tokens.extend(trie.tokens_at(node));
            }
            if !trie.is_leaf(node) {
                onward.push(Reverse(Point {
                    node: exit.node + 1,
                    is_unsure,
                    stack,
                }));
            }
        }
    }

    /// Runs the leaf of `reading` over the tokens of a tree that are longer than a node of it.
    fn sweep_leaf(
        &mut self,
        asked: Asked<'_>,
        reading: &Reading,
        from: (&Trie, Option<usize>),
        sweeps: &mut Sweeps,
    ) {
        let ir = asked.ir;
        let found = &mut sweeps.found;
        match reading.leaf {
            Leaf::Done | Leaf::Token { .. } => {}
            Leaf::Free { free, state } => {
                let may_leave = self.may_leave(ir, reading);
                let fragment = self.dfa_fragment(asked, ir.free_texts[free as usize].dfa);
                let mut machine = FreeMachine::new(ir, free, &fragment.sets, may_leave);
                sweep(&mut machine, (state, true), from, &mut Buffers::default(), found);
            }
            Leaf::Dfa { dfa, state } => {
                let fragment = self.dfa_fragment(asked, dfa);
                let mut machine = DfaMachine {
                    dfa: &ir.dfas[dfa as usize],
                    fragment,
                };
                sweep(&mut machine, state, from, &mut sweeps.dfa, found);
            }
            Leaf::Text { text, place } => {
                let mut machine = TextMachine {
                    text: &ir.texts[text as usize],
                    sets: &self.text_fragment(asked, text).content.sets,
                };
                sweep(&mut machine, place, from, &mut sweeps.text, found);
            }
            Leaf::Key {
                object,
                node,
                members,
            } => {
                let keys = &ir.objects[object as usize].trie;
                let allowed = &self.stacks.records.standing(members).keys;
                sweep_keys(keys, (node, allowed), from, &mut sweeps.keys, found);
            }
        }
    }

    /// Whether bytes may follow a free text at any border.
    fn may_leave(&mut self, ir: &Ir, reading: &Reading) -> bool {
        let Leaf::Free { free, .. } = reading.leaf else {
            return false;
        };
        ir.free_texts[free as usize].is_nullable() && self.stacks.has_leaf(ir, reading.stack)
    }

    fn dfa_fragment(&mut self, asked: Asked<'_>, dfa: u32) -> &Fragment {
        let slot = &mut self.dfa_fragments[dfa as usize];
        slot.get_or_insert_with(|| asked.vocabulary.cache().dfa(&asked.ir.dfas[dfa as usize]))
    }

    fn text_fragment(&mut self, asked: Asked<'_>, text: u32) -> &Arc<TextFragment> {
        let slot = &mut self.text_fragments[text as usize];
        slot.get_or_insert_with(|| asked.vocabulary.cache().text(&asked.ir.texts[text as usize]))
    }

    /// What is known about the leaf of `reading`, now if not before. Of a JSON string only the tokens that
    /// are not plain; the plain ones become a part.
    pub(crate) fn piece(&mut self, asked: Asked<'_>, reading: &Reading, filling: &mut Filling) -> Arc<Piece> {
        let cache = asked.vocabulary.cache();
        match reading.leaf {
            Leaf::Dfa { dfa, state } => {
                let key = self.dfa_fragment(asked, dfa).at(state);
                cache.piece(key, || self.new_piece(asked, reading))
            }
            Leaf::Text { text, place } => {
                let own = self.text_fragment(asked, text).clone();
                let own = StringLeaf {
                    spec: &asked.ir.texts[text as usize],
                    fragment: &own,
                    place,
                };
                // What any text can follow is the same for all plain tokens, and mostly for the others too.
                if !own.is_open() {
                    filling.add_part(&own.plain_piece(asked.vocabulary).inside);
                    return own.other_piece(asked.vocabulary);
                }
                let any = self.any_text(asked.vocabulary);
                filling.add_part(&any.plain);
                own.open_piece(any, asked.vocabulary)
            }
            _ => self.own_piece(asked, reading),
        }
    }

    fn any_text(&mut self, vocabulary: &Vocabulary) -> &AnyText {
        self.any_text.get_or_insert_with(|| AnyText::new(vocabulary))
    }

    /// The same for a free text, which grammars rarely share.
    fn own_piece(&mut self, asked: Asked<'_>, reading: &Reading) -> Arc<Piece> {
        let key = (reading.leaf, self.may_leave(asked.ir, reading));
        if let Some(known) = self.own_pieces.get(&key) {
            return known.clone();
        }
        let piece = Arc::new(self.new_piece(asked, reading));
        self.n_mask_bytes += piece.n_bytes();
        self.own_pieces.insert(key, piece.clone());
        piece
    }

    fn new_piece(&mut self, asked: Asked<'_>, reading: &Reading) -> Piece {
        let vocabulary = asked.vocabulary;
        match reading.leaf {
            Leaf::Free { free, state } => {
                let may_leave = self.may_leave(asked.ir, reading);
                let fragment = self.dfa_fragment(asked, asked.ir.free_texts[free as usize].dfa);
                let mut machine = FreeMachine::new(asked.ir, free, &fragment.sets, may_leave);
                machine.piece(vocabulary, state)
            }
            _ => {
                let (mut sweeps, trie) = (Sweeps::default(), vocabulary.trie());
                self.sweep_leaf(asked, reading, (trie, None), &mut sweeps);
                Piece {
                    inside: sweeps.found.inside(trie, vocabulary),
                    ways: ways(vocabulary, trie, &sweeps.found, false),
                }
            }
        }
    }

    /// Completes the mask of `state` by stepping all its readings together.
    fn fill_by_steps(&mut self, asked: Asked<'_>, state: StateId, filling: &mut Filling) {
        let mut found = Found::default();
        let mut machine = SetMachine {
            tables: self,
            asked,
            known: filling.known_places(asked.vocabulary),
        };
        let trie = asked.vocabulary.trie();
        sweep_new(&mut machine, state, trie, &mut found);
        for (begin, end) in found.ranges {
            filling
                .extras
                .extend(&trie.tokens()[begin as usize..end as usize]);
        }
    }

    /// Whether a token that begins with `bytes` and is longer may come, read from `state` after `bytes`.
    pub(crate) fn can_span(&mut self, asked: Asked<'_>, bytes: &[u8], state: StateId) -> bool {
        let trie = asked.vocabulary.trie();
        let Some(node) = trie.find(bytes) else {
            return false;
        };
        let (mut filling, mut onward) = (Filling::default(), Onward::new());
        for reading in self.readings(state).iter() {
            let stack = self.stacks.with_texts(reading.stack, |_, _| UNSEEN);
            let reading = &Reading { stack, ..*reading };
            self.sweep_leaf(asked, reading, (trie, Some(node)), &mut filling.sweeps);
            self.take_found(asked.ir, (reading, false), trie, &mut filling, &mut onward);
            if filling.has_some() {
                return true;
            }
        }
        // Where it cannot be told, a draft is cut too short rather than too long.
        self.follow(asked, trie, &mut onward, &mut filling).is_err() || filling.has_some()
    }
}

/// The readings of a state together.
struct SetMachine<'a, 'b> {
    tables: &'a mut Tables,
    asked: Asked<'b>,
    /// By place in the tree: the tokens that are allowed already.
    known: Vec<u64>,
}

impl Machine for SetMachine<'_, '_> {
    type Place = StateId;

    fn bytes(&mut self, place: StateId) -> ByteSet {
        self.tables.bytes(self.asked, place)
    }

    fn knows_all(&self, trie: &Trie, node: usize) -> bool {
        has_all(&self.known, trie.range_below(node))
    }

    fn step(&mut self, place: StateId, byte: u8) -> Step<StateId> {
        let next = self.tables.step(self.asked.ir, place, byte);
        Step {
            inside: (next != NOTHING).then_some(next),
            exit: None,
        }
    }
}

impl Tables {
    /// The bytes that may lead anywhere from `state`, and maybe more.
    pub(crate) fn bytes(&mut self, asked: Asked<'_>, state: StateId) -> ByteSet {
        let readings = self.readings(state);
        readings.iter().fold([0; 4], |all, reading| {
            let own = match reading.leaf {
                Leaf::Done | Leaf::Token { .. } => [0; 4],
                Leaf::Free { free, state } => {
                    let dfa = asked.ir.free_texts[free as usize].dfa;
                    let sets = self.dfa_fragment(asked, dfa);
                    asked.ir.dfas[dfa as usize].bytes(state, &sets.sets)
                }
                Leaf::Dfa { dfa, state } => {
                    let sets = self.dfa_fragment(asked, dfa);
                    asked.ir.dfas[dfa as usize].bytes(state, &sets.sets)
                }
                Leaf::Text { text, place } => {
                    let sets = &self.text_fragment(asked, text).content.sets;
                    asked.ir.texts[text as usize].bytes(place, sets)
                }
                Leaf::Key { object, node, .. } => asked.ir.objects[object as usize].trie.bytes(node),
            };
            union_of(all, own)
        })
    }
}

impl Filling {
    pub(crate) fn begin(&mut self) {
        self.parts.clear();
        self.extras.clear();
        self.unsure.clear();
        self.sweeps.found.clear();
        self.onward.clear();
        self.apart.clear();
        self.n_entered = 0;
    }

    fn has_some(&self) -> bool {
        !self.extras.is_empty() || !self.unsure.is_empty()
    }

    pub(crate) fn add_part(&mut self, part: &Known) {
        if self.parts.iter().all(|known| known.id != part.id) {
            self.parts.push(part.clone());
        }
    }

    /// What is allowed so far, by place in the vocabulary's tree.
    pub(crate) fn known_places(&self, vocabulary: &Vocabulary) -> Vec<u64> {
        let mut allowed = vec![0; vocabulary.n_words()];
        self.parts.iter().for_each(|part| part.mask.add_to(&mut allowed));
        for token in &self.extras {
            allowed[*token as usize / 64] |= 1 << (token % 64);
        }
        let mut places = vec![u64::MAX; vocabulary.trie().tokens().len().div_ceil(64)];
        for (first, word) in (0..).step_by(64).zip(allowed) {
            let mut rest = !word;
            while rest != 0 {
                if let Some(place) = vocabulary.place(first + rest.trailing_zeros()) {
                    places[place as usize / 64] &= !(1 << (place % 64));
                }
                rest &= rest - 1;
            }
        }
        places
    }

    /// The union of parts and extras.
    fn finish(&mut self, vocabulary: &Vocabulary) -> Arc<TokenMask> {
        /// Of so many a list costs more than the union.
        const MAX_LISTED: usize = 512;
        let n_vocab = vocabulary.n_vocab();
        let Self {
            parts, extras, union, ..
        } = self;
        parts.retain(|part| !part.mask.is_empty());
        extras.sort_unstable();
        extras.dedup();
        extras.retain(|token| !parts.iter().any(|part| part.mask.allows(*token)));
        if let ([part], []) = (&parts[..], &extras[..]) {
            return part.mask.clone();
        }
        if parts.iter().all(|part| part.mask.ids().is_some()) {
            let of_parts = parts.iter().filter_map(|part| part.mask.ids());
            extras.extend(of_parts.flatten());
            extras.sort_unstable();
            extras.dedup();
            parts.clear();
            if extras.len() <= TokenMask::MAX_IDS {
                return Arc::new(TokenMask::from_sorted_ids(extras.clone(), n_vocab));
            }
        }
        if extras.len() > MAX_LISTED {
            return Arc::new(self.united(vocabulary));
        }
        parts.sort_unstable_by_key(|part| part.id);
        union.parts.clear();
        union.parts.extend(parts.iter().map(|part| part.id));
        union.extras.clone_from(extras);
        if let Some(mask) = vocabulary.cache().union(union) {
            return mask;
        }
        let mask = Arc::new(self.united(vocabulary));
        vocabulary.cache().keep_union(&self.union, &mask);
        mask
    }

    fn united(&self, vocabulary: &Vocabulary) -> TokenMask {
        let mut words = match self.parts.iter().find_map(|part| part.mask.words()) {
            Some(words) => words.to_vec(),
            None => vec![0; vocabulary.n_words()],
        };
        self.parts.iter().for_each(|part| part.mask.add_to(&mut words));
        for token in &self.extras {
            words[*token as usize / 64] |= 1 << (token % 64);
        }
        TokenMask::from_words(words, vocabulary.n_vocab())
    }
}

/// Whether all bits of `range` are set in `words`.
pub(crate) fn has_all(words: &[u64], range: Range<usize>) -> bool {
    let Range { start, end } = range;
    let (first, last) = (start / 64, end / 64);
    let from = u64::MAX << (start % 64);
    let before = !(u64::MAX << (end % 64));
    if first == last {
        return !words.get(first).copied().unwrap_or(0) & from & before == 0;
    }
    !words[first] & from == 0
        && words[first + 1..last].iter().all(|word| *word == u64::MAX)
        && (before == 0 || !words[last] & before == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_bits_has_all_when_each_is_set() {
        let words = [u64::MAX, u64::MAX << 3, u64::MAX, u64::MAX >> 5];
        let is_set = |bit: usize| words[bit / 64] >> (bit % 64) & 1 == 1;
        for begin in 0..256 {
            for end in begin..=256 {
                let expected = (begin..end).all(is_set);
                assert_eq!(has_all(&words, begin..end), expected, "{begin}..{end}");
            }
        }
    }
}
