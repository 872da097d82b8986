//! States of a running grammar, built when first reached and kept: sets of readings, where each byte leads,
//! and which tokens may come next.
//!
//! Invariants: state 0 has no readings and leads to itself; equal sets have equal numbers; no two readings of
//! a set have one leaf, unless they keep a text. Most states are left by one byte only, so that no row of all
//! bytes is kept for them.

use std::sync::Arc;

use crate::cache::{Fragment, Piece, TextFragment};
use crate::fill::{Asked, Filling};
use crate::hash::Map;
use crate::ir::Ir;
use crate::limits::Limits;
use crate::mask::TokenMask;
use crate::pieces::AnyText;
use crate::stacks::Stacks;
use crate::step::{Leaf, Reading};
use crate::suffixes::Followed;
use crate::vocabulary::Vocabulary;
use crate::walk::Walks;

pub(crate) type StateId = u32;
pub(crate) const NOTHING: StateId = 0;
const UNKNOWN: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) readings: Arc<[Reading]>,
    mask: Option<Arc<TokenMask>>,
    /// The class of the byte that left it first, and where that leads or `UNKNOWN`.
    first: (u8, StateId),
}

/// What a grammar's matchers have found out together.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) stacks: Stacks,
    pub(crate) states: Vec<State>,
    ids: Map<Arc<[Reading]>, StateId>,
    /// By state and class of bytes, all but the first step from each.
    steps: Map<(StateId, u8), StateId>,
    pub(crate) n_mask_bytes: usize,
    scratch: Vec<Reading>,
    /// By automaton and by string, what other grammars know too; filled when first needed.
    pub(crate) dfa_fragments: Box<[Option<Arc<Fragment>>]>,
    pub(crate) text_fragments: Box<[Option<Arc<TextFragment>>]>,
    pub(crate) any_text: Option<AnyText>,
    /// Several keys that may come, and free texts by whether more may follow; mostly no other grammar has the
    /// same.
    pub(crate) own_pieces: Map<(Leaf, bool), Arc<Piece>>,
    pub(crate) filling: Filling,
    pub(crate) followed: Followed,
    pub(crate) walks: Walks,
}

impl Tables {
    pub(crate) fn new(ir: &Ir, limits: &Limits) -> Self {
        let mut tables = Self {
            stacks: Stacks::new(limits.max_output_depth),
            states: Vec::new(),
            ids: Map::default(),
            steps: Map::default(),
            n_mask_bytes: 0,
            scratch: Vec::new(),
            dfa_fragments: vec![None; ir.dfas.len()].into(),
            text_fragments: vec![None; ir.texts.len()].into(),
            any_text: None,
            own_pieces: Map::default(),
            filling: Filling::default(),
            followed: Followed::default(),
            walks: Walks::default(),
        };
        tables.intern(&[]);
        tables
    }

    /// The state in which every output begins.
    pub(crate) fn start(&mut self, ir: &Ir) -> StateId {
        let readings = self.stacks.begin(ir, ir.root);
        let state = self.intern(&readings);
        self.between_tokens(ir, state)
    }

    pub(crate) fn readings(&self, state: StateId) -> Arc<[Reading]> {
        self.states[state as usize].readings.clone()
    }

    /// The state of `readings`.
    pub(crate) fn state_of(&mut self, ir: &Ir, mut readings: Vec<Reading>) -> StateId {
        self.stacks.merge(ir, &mut readings);
        self.intern(&readings)
    }

    /// The state of `readings`, which are merged.
    pub(crate) fn intern(&mut self, readings: &[Reading]) -> StateId {
        if let Some(id) = self.ids.get(readings) {
            return *id;
        }
        let id = self.states.len() as StateId;
        let readings: Arc<[Reading]> = readings.into();
        self.ids.insert(readings.clone(), id);
        self.states.push(State {
            readings,
            mask: None,
            first: (0, UNKNOWN),
        });
        id
    }

    /// Whether new tables should be begun.
    pub(crate) fn is_full(&self, limits: &Limits) -> bool {
        self.states.len() > limits.max_lazy_states || self.n_bytes() > limits.max_cache_bytes
    }

    /// About how much memory they hold, masks that other grammars share included.
    pub(crate) fn n_bytes(&self) -> usize {
        /// A state with two readings, its entry in the table of states included.
        const STATE_BYTES: usize = 168;
        /// A step and its share of the table.
        const STEP_BYTES: usize = 24;
        let n_fragments = self.dfa_fragments.len() + self.text_fragments.len();
        self.steps.len() * STEP_BYTES
            + self.n_mask_bytes
            + self.states.len() * STATE_BYTES
            + self.stacks.n_bytes()
            + self.walks.n_bytes()
            + self.followed.n_bytes()
            + n_fragments * 8
    }

    /// Whether the output may end here.
    pub(crate) fn is_accepting(&self, state: StateId) -> bool {
        let first = self.states[state as usize].readings.first();
        first.is_some_and(|reading| reading.leaf == Leaf::Done)
    }

    pub(crate) fn step(&mut self, ir: &Ir, state: StateId, byte: u8) -> StateId {
        if state == NOTHING {
            return NOTHING;
        }
        // There are 256 classes at most.
        let class = ir.classes.of(byte) as u8;
        let (first, next) = self.states[state as usize].first;
        if next == UNKNOWN {
            let next = self.new_step(ir, state, byte);
            self.states[state as usize].first = (class, next);
            return next;
        }
        if first == class {
            return next;
        }
        if let Some(next) = self.steps.get(&(state, class)) {
            return *next;
        }
        let next = self.new_step(ir, state, byte);
        self.steps.insert((state, class), next);
        next
    }

    fn new_step(&mut self, ir: &Ir, state: StateId, byte: u8) -> StateId {
        let readings = self.states[state as usize].readings.clone();
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        // What was complete is united before anything is entered above it, as masks do.
        let mut complete = Vec::new();
        for reading in readings.iter() {
            if self.stacks.keeps_text(reading.stack) {
                self.stacks.step(ir, reading, byte, &mut out);
            } else {
                let moved = self.stacks.move_leaf(ir, reading, byte);
                out.extend(moved.inside);
                complete.extend(moved.complete);
            }
        }
        if !complete.is_empty() {
            let complete = self.stacks.union_of(ir, complete);
            self.stacks.resume(ir, complete, &mut out);
        }
        self.stacks.merge(ir, &mut out);
        let next = self.intern(&out);
        self.scratch = out;
        next
    }

    /// The state after all of `bytes`; `NOTHING` when they cannot come.
    pub(crate) fn run(&mut self, ir: &Ir, state: StateId, bytes: &[u8]) -> StateId {
        let step = |state, byte: &u8| self.step(ir, state, *byte);
        bytes.iter().fold(state, step)
    }

    /// The only byte that may come, when the output may not end and there is only one.
    pub(crate) fn only_byte(&mut self, asked: Asked<'_>, state: StateId) -> Option<u8> {
        if self.is_accepting(state) || self.offers_tokens(asked.ir, state) || self.may_be_cut(asked.ir, state)
        {
            return None;
        }
        let mut only = None;
        for (bits, first) in self.bytes(asked, state).into_iter().zip([0u8, 64, 128, 192]) {
            let mut rest = bits;
            while rest != 0 {
                let byte = first + rest.trailing_zeros() as u8;
                rest &= rest - 1;
                if self.step(asked.ir, state, byte) != NOTHING && only.replace(byte).is_some() {
                    return None;
                }
            }
        }
        only
    }

    /// The tokens that may come in `state`, and the tokens that end the text where it may end.
    pub(crate) fn mask(&mut self, asked: Asked<'_>, state: StateId) -> Arc<TokenMask> {
        if let Some(mask) = &self.states[state as usize].mask {
            return mask.clone();
        }
        let alike = self.alike(asked.ir, asked.vocabulary, state);
        let mask = match self.states[alike as usize].mask.clone() {
            Some(mask) => mask,
            None => self.first_mask(asked, alike),
        };
        self.n_mask_bytes += mask.n_bytes();
        self.states[state as usize].mask = Some(mask.clone());
        self.states[alike as usize].mask = Some(mask.clone());
        mask
    }

    /// A state with the same mask, the same one for many: lengths and counts whose bounds no token reaches.
    fn alike(&mut self, ir: &Ir, vocabulary: &Vocabulary, state: StateId) -> StateId {
        let max_chars = vocabulary.strings().max_chars;
        let mut changed: Option<Vec<Reading>> = None;
        for idx in 0..self.states[state as usize].readings.len() {
            let old = self.states[state as usize].readings[idx];
            let mut new = old;
            if let Leaf::Text { text, place } = &mut new.leaf {
                *place = ir.texts[*text as usize].alike(*place, max_chars);
            }
            new.stack = self.alike_limits(ir, old.stack);
            new.stack = self.stacks.alike(ir, new.stack, vocabulary.max_bytes());
            if new != old {
                let readings = &self.states[state as usize].readings;
                changed.get_or_insert_with(|| readings.to_vec())[idx] = new;
            }
        }
        // Most states have no count at all.
        match changed {
            None => state,
            Some(alike) => self.state_of(ir, alike),
        }
    }
}
