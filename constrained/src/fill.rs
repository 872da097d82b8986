//! Masks of states that were not visited before.
//!
//! A mask is the union of its readings' masks. Of each reading the leaf alone decides most tokens, and what
//! it decides is kept by the vocabulary for all grammars with an equal leaf ([`crate::cache`]). Only tokens
//! that go on after the leaf depend on the stack: they are followed from leaf to leaf, and no state is built
//! for them.
//!
//! Why this is the same as stepping the whole set of readings byte by byte: steps distribute over readings,
//! and a set never has more readings at once than leaves were entered. Where those are more than
//! `max_readings`, or a leaf can be left nearly everywhere, the set itself is stepped.

use std::sync::Arc;

use crate::cache::{Fragment, Known, Piece, PieceKey, Union};
use crate::error::MatchError;
use crate::free_text::FreeMachine;
use crate::hash::{Map, SmallSet};
use crate::ir::Ir;
use crate::limits::Limits;
use crate::mask::TokenMask;
use crate::memory::UNSEEN;
use crate::pieces::{only_rest, text_piece, ways};
use crate::step::{Leaf, Reading, StackId};
use crate::sweep::{
    DfaMachine, Found, KeyMachine, LiteralMachine, Machine, Step, TextMachine, TooMuchWork, sweep,
};
use crate::tables::{NOTHING, StateId, TOO_MANY, Tables};
use crate::trie::Trie;
use crate::vocabulary::Vocabulary;

/// What a mask is asked of.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) ir: &'a Ir,
    pub(crate) limits: &'a Limits,
    pub(crate) vocabulary: &'a Vocabulary,
}

impl Asked<'_> {
    /// Steps for one mask: once over the vocabulary is always allowed.
    pub(crate) fn max_work(&self) -> usize {
        self.limits.max_mask_work + self.vocabulary.trie().n_nodes()
    }
}

#[derive(Debug)]
pub(crate) enum Stop {
    TooMuchWork,
    /// More leaves were entered than readings may be alive, or would have to be.
    StepTheSet,
}

impl From<TooMuchWork> for Stop {
    fn from(_: TooMuchWork) -> Self {
        Self::TooMuchWork
    }
}

/// A point to go on from: what is longer than `node` follows the leaf that ended there.
#[derive(Clone, Copy)]
pub(crate) struct Onward {
    /// `None` is the root.
    pub(crate) node: Option<u32>,
    pub(crate) is_end: bool,
    pub(crate) stack: StackId,
    /// Whether what follows must be looked at again, byte by byte.
    pub(crate) is_unsure: bool,
}

impl Onward {
    fn root(stack: StackId) -> Self {
        Self {
            node: None,
            is_end: false,
            stack,
            is_unsure: false,
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
    pub(crate) found: Found,
    pub(crate) n_entered: usize,
}

/// The work of one closure in steps of a sweep.
const CLOSURE_WORK: usize = 16;

impl Tables {
    /// The mask of `state`, from its readings.
    pub(crate) fn first_mask(
        &mut self,
        asked: Asked<'_>,
        state: StateId,
    ) -> Result<Arc<TokenMask>, MatchError> {
        (self.stacks.is_too_deep, self.stacks.is_too_many) = (false, false);
        let mut filling = std::mem::take(&mut self.filling);
        filling.begin(asked);
        let filled = match self.fill(asked, state, &mut filling) {
            Err(Stop::StepTheSet) => {
                self.stacks.is_too_many = false;
                filling.begin(asked);
                self.fill_by_steps(asked, state, &mut filling).map_err(Stop::from)
            }
            filled => filled,
        };
        let mask = filled.map(|()| {
            self.add_tokens(asked, state, &mut filling);
            if self.is_accepting(state) {
                filling.extras.extend(asked.vocabulary.eos());
            }
            filling.finish(asked.vocabulary)
        });
        self.filling = filling;
        let limit = |(name, limit)| MatchError::Limit { name, limit };
        let mask = mask.map_err(|_| limit(("max_mask_work", asked.limits.max_mask_work as u64)))?;
        // Compiling removed what leads nowhere, so only a limit can have kept everything out, now or when the
        // transition was first taken.
        if mask.n_allowed() == 0 || self.stacks.is_too_many {
            return Err(limit(self.exceeded(asked.limits)));
        }
        Ok(mask)
    }

    fn fill(&mut self, asked: Asked<'_>, state: StateId, filling: &mut Filling) -> Result<(), Stop> {
        let readings = self.readings(state);
        filling.enter(readings.len(), asked.limits)?;
        let mut onward = Vec::new();
        let has_text = |leaf| !matches!(leaf, Leaf::Done | Leaf::Token { .. });
        for reading in readings.iter().filter(|reading| has_text(reading.leaf)) {
            if self.stacks.entries[reading.stack as usize].keeps_text {
                self.fill_distinct(asked, reading, filling)?;
            } else {
                self.fill_reading(asked, reading, filling, &mut onward)?;
            }
        }
        self.follow(asked, asked.vocabulary.trie(), onward, filling)?;
        self.settle_unsure(asked, state, filling)
    }

    /// Adds what `reading`'s leaf allows, and the points from which tokens go on after it to `onward`.
    pub(crate) fn fill_reading(
        &mut self,
        asked: Asked<'_>,
        reading: &Reading,
        filling: &mut Filling,
        onward: &mut Vec<Onward>,
    ) -> Result<(), Stop> {
        let piece = self.piece(asked, reading, filling)?;
        for way in &piece.ways {
            let stack = self.after_piece(asked.ir, reading, way.way);
            let node = |node: &u32| Onward {
                node: Some(*node),
                ..Onward::root(stack)
            };
            onward.extend(way.nodes.iter().map(node));
            if way.is_dense && self.stacks.has_leaf(asked.ir, stack) {
                return Err(Stop::StepTheSet);
            }
            if way.here.is_empty() && way.suffixes.is_none() {
                continue;
            }
            if !way.here.is_empty() && self.stacks.can_follow(asked.ir, stack) {
                filling.extras.extend(&way.here);
            }
            if let Some(suffixes) = &way.suffixes {
                self.follow(asked, suffixes, vec![Onward::root(stack)], filling)?;
            }
        }
        if filling.parts.iter().all(|part| part.id != piece.inside.id) {
            filling.parts.push(piece.inside.clone());
        }
        Ok(())
    }

    /// Follows tokens of `trie` from leaf to leaf.
    pub(crate) fn follow(
        &mut self,
        asked: Asked<'_>,
        trie: &Trie,
        mut onward: Vec<Onward>,
        filling: &mut Filling,
    ) -> Result<(), Stop> {
        let mut seen = SmallSet::new();
        let mut least: Map<(Option<u32>, StackId), u32> = Map::default();
        while let Some(point) = onward.pop() {
            let Onward { node, stack, .. } = point;
            if !seen.insert((node, stack, point.is_unsure)) {
                continue;
            }
            // Whoever has repeated less can do all that the others can.
            if let Some((shape, n)) = self.stacks.free_count(asked.ir, stack) {
                let known = least.entry((node, shape)).or_insert(u32::MAX);
                if *known <= n {
                    continue;
                }
                *known = n;
            }
            filling.found.n_left = filling.found.n_left.saturating_sub(CLOSURE_WORK);
            let readings = self.stacks.continuation(asked.ir, stack);
            filling.enter(readings.len(), asked.limits)?;
            let node = node.map(|node| node as usize);
            if point.is_end && !readings.is_empty() {
                let mut doubts = readings.iter();
                let is_unsure =
                    point.is_unsure || doubts.all(|reading| self.stacks.is_unsure(asked.ir, stack, reading));
                let node = node.expect("a leaf takes a byte");
                filling.tokens(is_unsure).extend(trie.tokens_at(node));
            }
            for reading in readings.iter() {
                let is_unsure = point.is_unsure || self.stacks.is_unsure(asked.ir, stack, reading);
                self.sweep_leaf(asked, reading, trie, node, &mut filling.found)?;
                let mut ranges = std::mem::take(&mut filling.found.ranges);
                for (begin, end) in ranges.drain(..) {
                    let tokens = &trie.tokens()[begin as usize..end as usize];
                    filling.tokens(is_unsure).extend(tokens);
                }
                filling.found.ranges = ranges;
                for exit in filling.found.exits.drain(..) {
                    let stack = self.stacks.after(asked.ir, reading, exit.way);
                    onward.push(Onward {
                        node: Some(exit.node),
                        is_end: exit.is_end,
                        stack: self.stacks.within_token(stack),
                        is_unsure,
                    });
                }
            }
        }
        Ok(())
    }

    /// Runs the leaf of `reading` over the tokens of `trie` below `from`.
    fn sweep_leaf(
        &mut self,
        asked: Asked<'_>,
        reading: &Reading,
        trie: &Trie,
        from: Option<usize>,
        found: &mut Found,
    ) -> Result<(), TooMuchWork> {
        let ir = asked.ir;
        match reading.leaf {
            Leaf::Done | Leaf::Token { .. } => Ok(()),
            Leaf::Free { free, state } => {
                let may_leave = self.may_leave(ir, reading);
                let fragment = self.dfa_fragment(asked, ir.free_texts[free as usize].dfa);
                let mut machine = FreeMachine::new(ir, free, &fragment.sets, may_leave);
                sweep(&mut machine, (state, true), trie, from, found)
            }
            Leaf::Dfa { dfa, state } => {
                let fragment = self.dfa_fragment(asked, dfa);
                let mut machine = DfaMachine {
                    dfa: &ir.dfas[dfa as usize],
                    sets: &fragment.sets,
                };
                sweep(&mut machine, state, trie, from, found)
            }
            Leaf::Text { text, place } => {
                let fragment = self.text_fragment(asked, text);
                let mut machine = TextMachine {
                    text: &ir.texts[text as usize],
                    sets: &fragment.sets,
                    plain_chars: None,
                };
                sweep(&mut machine, place, trie, from, found)
            }
            Leaf::Key {
                object,
                node,
                members,
            } => {
                let mut machine = KeyMachine {
                    trie: &ir.objects[object as usize].trie,
                    allowed: &self.stacks.records.standing(members).keys,
                };
                sweep(&mut machine, node, trie, from, found)
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

    fn text_fragment(&mut self, asked: Asked<'_>, text: u32) -> &Fragment {
        let slot = &mut self.text_fragments[text as usize];
        slot.get_or_insert_with(|| asked.vocabulary.cache().text(&asked.ir.texts[text as usize]))
    }

    /// What is known about the leaf of `reading`, now if not before.
    fn piece(
        &mut self,
        asked: Asked<'_>,
        reading: &Reading,
        filling: &mut Filling,
    ) -> Result<Arc<Piece>, Stop> {
        let vocabulary = asked.vocabulary;
        let key = match reading.leaf {
            Leaf::Done | Leaf::Token { .. } => unreachable!("no byte moves it"),
            Leaf::Free { .. } => None,
            Leaf::Dfa { dfa, state } => Some(self.dfa_fragment(asked, dfa).at([state, 0, 0, 0])),
            Leaf::Text { text, place } => {
                let max_chars = vocabulary.strings().max_chars;
                let essence = asked.ir.texts[text as usize].essence(place, max_chars);
                Some(self.text_fragment(asked, text).at(essence))
            }
            Leaf::Key { .. } => only_rest(asked.ir, &self.stacks.records, reading.leaf)
                .map(|(_, rest)| PieceKey::Literal(rest.into())),
        };
        let own_key = (reading.leaf, self.may_leave(asked.ir, reading));
        let known = match &key {
            Some(key) => vocabulary.cache().piece(key),
            None => self.own_pieces.get(&own_key).cloned(),
        };
        let piece = match known {
            Some(piece) => piece,
            None => {
                let piece = self.new_piece(asked, reading, &key)?;
                match key {
                    Some(key) => vocabulary.cache().keep_piece(key, piece),
                    None => {
                        let piece = Arc::new(piece);
                        self.n_mask_bytes += piece.n_bytes();
                        self.own_pieces.insert(own_key, piece.clone());
                        piece
                    }
                }
            }
        };
        filling.found.n_left = filling.found.n_left.saturating_sub(piece.n_steps);
        if filling.found.n_left == 0 {
            return Err(Stop::TooMuchWork);
        }
        Ok(piece)
    }

    fn new_piece(
        &mut self,
        asked: Asked<'_>,
        reading: &Reading,
        key: &Option<PieceKey>,
    ) -> Result<Piece, Stop> {
        if let Leaf::Free { free, state } = reading.leaf {
            let may_leave = self.may_leave(asked.ir, reading);
            let fragment = self.dfa_fragment(asked, asked.ir.free_texts[free as usize].dfa);
            let mut machine = FreeMachine::new(asked.ir, free, &fragment.sets, may_leave);
            return Ok(machine.piece(asked, state)?);
        }
        if let Leaf::Text { text, place } = reading.leaf {
            let fragment = self.text_fragment(asked, text);
            let mut machine = TextMachine {
                text: &asked.ir.texts[text as usize],
                sets: &fragment.sets,
                plain_chars: None,
            };
            return Ok(text_piece(&mut machine, place, asked)?);
        }
        let mut found = Found::with_work(asked.max_work());
        let trie = asked.vocabulary.trie();
        if let Some(PieceKey::Literal(rest)) = key {
            sweep(&mut LiteralMachine { rest }, 0, trie, None, &mut found)?;
        } else {
            self.sweep_leaf(asked, reading, trie, None, &mut found)?;
        }
        let mut words = vec![0; asked.vocabulary.n_words()];
        let inside = found.inside(trie, &mut words, asked.vocabulary);
        Ok(Piece {
            inside,
            ways: ways(asked.vocabulary, trie, &found.exits, false),
            n_steps: asked.max_work() - found.n_left,
        })
    }

    /// As [`crate::step::Stacks::after`], where `way` is one of a piece.
    fn after_piece(&mut self, ir: &Ir, reading: &Reading, way: u32) -> StackId {
        let way = only_rest(ir, &self.stacks.records, reading.leaf).map_or(way, |(key, _)| key);
        self.stacks.after(ir, reading, way)
    }

    /// The mask of `state` by stepping all its readings together.
    fn fill_by_steps(
        &mut self,
        asked: Asked<'_>,
        state: StateId,
        filling: &mut Filling,
    ) -> Result<(), TooMuchWork> {
        let trie = asked.vocabulary.trie();
        let max_state_work = self.n_state_work + asked.max_work();
        let mut machine = SetMachine {
            tables: self,
            asked,
            max_state_work,
            is_over: false,
            is_too_many: false,
        };
        let swept = sweep(&mut machine, state, trie, None, &mut filling.found);
        let (is_over, is_too_many) = (machine.is_over, machine.is_too_many);
        self.stacks.is_too_many = is_too_many;
        swept?;
        if is_over {
            return Err(TooMuchWork);
        }
        let mut words = vec![0; asked.vocabulary.n_words()];
        let inside = filling.found.inside(trie, &mut words, asked.vocabulary);
        filling.parts.push(inside);
        filling.found.ranges.clear();
        Ok(())
    }

    /// Whether a token that begins with `bytes` and is longer may come, read from `state` after `bytes`.
    pub(crate) fn can_span(&mut self, asked: Asked<'_>, bytes: &[u8], state: StateId) -> bool {
        let trie = asked.vocabulary.trie();
        self.stacks.is_too_many = state == TOO_MANY;
        let Some(node) = trie.find(bytes) else {
            return false;
        };
        let readings = self.readings(state);
        let mut filling = Filling::default();
        filling.begin(asked);
        let mut onward = Vec::new();
        for reading in readings.iter() {
            let found = &mut filling.found;
            let swept = self.sweep_leaf(asked, reading, trie, Some(node), found);
            if swept.is_err() || !found.ranges.is_empty() {
                return true;
            }
            for exit in found.exits.drain(..) {
                let stack = self.stacks.after(asked.ir, reading, exit.way);
                onward.push(Onward {
                    node: Some(exit.node),
                    is_end: exit.is_end,
                    ..Onward::root(self.stacks.with_texts(stack, |_, _| UNSEEN))
                });
            }
        }
        // Where it cannot be told, a draft is cut too short rather than too long.
        self.follow(asked, trie, onward, &mut filling).is_err()
            || !filling.extras.is_empty()
            || !filling.unsure.is_empty()
            || self.stacks.is_too_many
    }
}

/// The readings of a state together.
struct SetMachine<'a, 'b> {
    tables: &'a mut Tables,
    asked: Asked<'b>,
    /// What the tables' count may become.
    max_state_work: usize,
    is_over: bool,
    /// Whether a state was met of which nobody can say how it goes on.
    is_too_many: bool,
}

impl Machine for SetMachine<'_, '_> {
    type Place = StateId;

    fn bytes(&mut self, place: StateId) -> crate::dfa::ByteSet {
        self.tables.bytes(self.asked, place)
    }

    fn step(&mut self, place: StateId, byte: u8) -> Step<StateId> {
        self.is_over |= self.tables.n_state_work > self.max_state_work;
        let next = match self.is_over {
            true => NOTHING,
            false => self.tables.step(self.asked.ir, self.asked.limits, place, byte),
        };
        self.is_too_many |= next == TOO_MANY;
        Step {
            inside: (next != NOTHING && next != TOO_MANY).then_some(next),
            exit: None,
        }
    }
}

impl Tables {
    /// The bytes that may lead anywhere from `state`, and maybe more.
    pub(crate) fn bytes(&mut self, asked: Asked<'_>, state: StateId) -> crate::dfa::ByteSet {
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
                    let sets = self.text_fragment(asked, text);
                    asked.ir.texts[text as usize].bytes(place, &sets.sets)
                }
                Leaf::Key { object, node, .. } => asked.ir.objects[object as usize].trie.bytes(node),
            };
            crate::dfa::union_of(all, own)
        })
    }
}

impl Filling {
    fn begin(&mut self, asked: Asked<'_>) {
        self.parts.clear();
        self.extras.clear();
        self.unsure.clear();
        self.found.ranges.clear();
        self.found.exits.clear();
        self.found.n_left = asked.max_work();
        self.n_entered = 0;
    }

    fn tokens(&mut self, is_unsure: bool) -> &mut Vec<u32> {
        if is_unsure {
            &mut self.unsure
        } else {
            &mut self.extras
        }
    }

    fn enter(&mut self, n: usize, limits: &Limits) -> Result<(), Stop> {
        self.n_entered += n;
        if self.n_entered > limits.max_readings {
            return Err(Stop::StepTheSet);
        }
        if self.found.n_left == 0 {
            return Err(Stop::TooMuchWork);
        }
        Ok(())
    }

    /// The union of parts and extras.
    fn finish(&mut self, vocabulary: &Vocabulary) -> Arc<TokenMask> {
        /// More tokens cost less as bits than as a list.
        const MAX_EXTRAS: usize = 2_048;
        let Self { parts, extras, .. } = self;
        if extras.len() > MAX_EXTRAS {
            let mut words = vec![0; vocabulary.n_words()];
            for token in extras.drain(..) {
                words[token as usize / 64] |= 1 << (token % 64);
            }
            let mask = TokenMask::from_words(&words, vocabulary.n_vocab());
            parts.push(vocabulary.cache().mask(mask));
        }
        parts.retain(|part| part.mask.n_allowed() > 0);
        extras.retain(|token| !parts.iter().any(|part| part.mask.allows(*token)));
        if let ([part], []) = (&parts[..], &extras[..]) {
            return part.mask.clone();
        }
        extras.sort_unstable();
        extras.dedup();
        let n_vocab = vocabulary.n_vocab();
        let n_most = extras.len() + parts.iter().map(|part| part.mask.n_allowed()).sum::<usize>();
        if n_most <= TokenMask::MAX_IDS {
            let of_parts = parts
                .iter()
                .flat_map(|part| part.mask.ids().expect("so few are listed"));
            extras.extend(of_parts);
            extras.sort_unstable();
            extras.dedup();
            let mask = TokenMask::from_sorted_ids(extras.clone(), n_vocab);
            return vocabulary.cache().mask(mask).mask;
        }
        parts.sort_unstable_by_key(|part| part.id);
        let union = Union {
            parts: parts.iter().map(|part| part.id).collect(),
            extras: extras.clone(),
        };
        if let Some(mask) = vocabulary.cache().union(&union) {
            return mask;
        }
        let mut words = vec![0; vocabulary.n_words()];
        parts.iter().for_each(|part| part.mask.add_to(&mut words));
        for token in extras {
            words[*token as usize / 64] |= 1 << (*token % 64);
        }
        let mask = TokenMask::from_words(&words, n_vocab);
        vocabulary.cache().keep_union(union, mask)
    }
}
