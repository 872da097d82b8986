//! States of a running grammar, built when first reached and kept: sets of readings, where each byte leads,
//! and which tokens may come next.
//!
//! Invariants: states 0 and 1 have no readings and lead to themselves; otherwise equal sets have equal
//! numbers; a row entry is `UNKNOWN` or a state.

use std::sync::Arc;

use crate::cache::{Fragment, Piece};
use crate::error::MatchError;
use crate::fill::{Asked, Filling};
use crate::hash::Map;
use crate::ir::Ir;
use crate::limits::Limits;
use crate::mask::TokenMask;
use crate::step::{Leaf, Reading, Stacks};
use crate::vocabulary::Vocabulary;

pub(crate) type StateId = u32;
pub(crate) const NOTHING: StateId = 0;
/// There are too many ways to read the output: it may go on, but nobody can say how.
pub(crate) const TOO_MANY: StateId = 1;
const UNKNOWN: u32 = u32::MAX;

#[derive(Debug)]
struct State {
    readings: Arc<[Reading]>,
    mask: Option<Arc<TokenMask>>,
}

/// What a grammar's matchers have found out together.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) stacks: Stacks,
    states: Vec<State>,
    ids: Map<Arc<[Reading]>, StateId>,
    /// `n_classes` entries a state.
    rows: Vec<u32>,
    pub(crate) n_mask_bytes: usize,
    /// Work on transitions so far, in steps of a sweep.
    pub(crate) n_state_work: usize,
    scratch: Vec<Reading>,
    /// By automaton and by string, what other grammars know too; filled when first needed.
    pub(crate) dfa_fragments: Box<[Option<Arc<Fragment>>]>,
    pub(crate) text_fragments: Box<[Option<Arc<Fragment>>]>,
    /// Several keys that may come, and free texts by whether more may follow; mostly no other grammar has the
    /// same.
    pub(crate) own_pieces: Map<(Leaf, bool), Arc<Piece>>,
    pub(crate) filling: Filling,
}

impl Tables {
    pub(crate) fn new(ir: &Ir, limits: &Limits) -> Self {
        let mut tables = Self {
            stacks: Stacks::new(limits),
            states: Vec::new(),
            ids: Map::default(),
            rows: Vec::new(),
            n_mask_bytes: 0,
            n_state_work: 0,
            scratch: Vec::new(),
            dfa_fragments: vec![None; ir.dfas.len()].into(),
            text_fragments: vec![None; ir.texts.len()].into(),
            own_pieces: Map::default(),
            filling: Filling::default(),
        };
        tables.intern(&[], ir.classes.len());
        tables.states.push(State {
            readings: Arc::new([]),
            mask: None,
        });
        tables.rows.resize(2 * ir.classes.len(), TOO_MANY);
        tables
    }

    /// The state in which every output begins.
    pub(crate) fn start(&mut self, ir: &Ir) -> StateId {
        let readings = self.stacks.begin(ir, ir.root);
        self.intern(&readings, ir.classes.len())
    }

    pub(crate) fn readings(&self, state: StateId) -> Arc<[Reading]> {
        self.states[state as usize].readings.clone()
    }

    /// The limit that was in the way.
    pub(crate) fn exceeded(&self, limits: &Limits) -> (&'static str, u64) {
        if self.stacks.is_too_many {
            ("max_readings", limits.max_readings as u64)
        } else {
            ("max_output_depth", u64::from(limits.max_output_depth))
        }
    }

    /// The state of `readings`.
    pub(crate) fn state_of(&mut self, ir: &Ir, limits: &Limits, mut readings: Vec<Reading>) -> StateId {
        readings.sort_unstable();
        readings.dedup();
        if readings.len() > limits.max_readings {
            return TOO_MANY;
        }
        self.intern(&readings, ir.classes.len())
    }

    fn intern(&mut self, readings: &[Reading], n_classes: usize) -> StateId {
        if let Some(id) = self.ids.get(readings) {
            return *id;
        }
        let id = self.states.len() as StateId;
        let readings: Arc<[Reading]> = readings.into();
        self.ids.insert(readings.clone(), id);
        self.states.push(State { readings, mask: None });
        let unknown = if id == NOTHING { NOTHING } else { UNKNOWN };
        self.rows.resize(self.rows.len() + n_classes, unknown);
        id
    }

    /// Whether new tables should be begun.
    pub(crate) fn is_full(&self, limits: &Limits) -> bool {
        self.states.len() > limits.max_lazy_states || self.n_bytes() > limits.max_cache_bytes
    }

    /// About how much memory they hold, masks that other grammars share included.
    pub(crate) fn n_bytes(&self) -> usize {
        /// A state with two readings, its entry in the table of states included.
        const STATE_BYTES: usize = 160;
        let n_fragments = self.dfa_fragments.len() + self.text_fragments.len();
        self.rows.len() * 4
            + self.n_mask_bytes
            + self.states.len() * STATE_BYTES
            + self.stacks.n_bytes()
            + n_fragments * 8
    }

    /// The state of `readings`, of which there are no more than there were at once.
    pub(crate) fn intern_sorted(&mut self, ir: &Ir, mut readings: Vec<Reading>) -> StateId {
        readings.sort_unstable();
        self.intern(&readings, ir.classes.len())
    }

    /// Whether the output may end here.
    pub(crate) fn is_accepting(&self, state: StateId) -> bool {
        let first = self.states[state as usize].readings.first();
        first.is_some_and(|reading| reading.leaf == Leaf::Done)
    }

    pub(crate) fn step(&mut self, ir: &Ir, limits: &Limits, state: StateId, byte: u8) -> StateId {
        let slot = state as usize * ir.classes.len() + ir.classes.of(byte);
        match self.rows[slot] {
            UNKNOWN => self.first_step(ir, limits, state, byte),
            next => next,
        }
    }

    fn first_step(&mut self, ir: &Ir, limits: &Limits, state: StateId, byte: u8) -> StateId {
        /// Measured against a step of a sweep.
        const READING_WORK: usize = 80;
        let readings = self.states[state as usize].readings.clone();
        self.n_state_work += READING_WORK * (1 + readings.len());
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        self.stacks.is_too_many = false;
        for reading in readings.iter() {
            self.stacks.step(ir, reading, byte, &mut out);
            // Ways that come to the same are counted too: they cost as much.
            if out.len() > limits.max_readings.saturating_mul(16) {
                self.stacks.is_too_many = true;
                break;
            }
        }
        out.sort_unstable();
        out.dedup();
        self.stacks.drop_repeated(ir, &mut out);
        if out.len() > limits.max_readings {
            self.stacks.is_too_many = true;
        }
        let next = if std::mem::take(&mut self.stacks.is_too_many) {
            TOO_MANY
        } else {
            self.intern(&out, ir.classes.len())
        };
        self.scratch = out;
        let slot = state as usize * ir.classes.len() + ir.classes.of(byte);
        self.rows[slot] = next;
        next
    }

    /// The state after all of `bytes`; `NOTHING` when they cannot come.
    pub(crate) fn run(&mut self, ir: &Ir, limits: &Limits, state: StateId, bytes: &[u8]) -> StateId {
        let step = |state, byte: &u8| self.step(ir, limits, state, *byte);
        bytes.iter().fold(state, step)
    }

    /// The only byte that may come, when the output may not end and there is only one.
    pub(crate) fn only_byte(&mut self, asked: Asked<'_>, state: StateId) -> Option<u8> {
        if self.is_accepting(state) || self.offers_tokens(asked.ir, state) {
            return None;
        }
        let mut only = None;
        for (bits, first) in self.bytes(asked, state).into_iter().zip([0u8, 64, 128, 192]) {
            let mut rest = bits;
            while rest != 0 {
                let byte = first + rest.trailing_zeros() as u8;
                rest &= rest - 1;
                if self.step(asked.ir, asked.limits, state, byte) != NOTHING && only.replace(byte).is_some() {
                    return None;
                }
            }
        }
        only
    }

    /// The tokens that may come in `state`, and the tokens that end the text where it may end.
    pub(crate) fn mask(&mut self, asked: Asked<'_>, state: StateId) -> Result<Arc<TokenMask>, MatchError> {
        if let Some(mask) = &self.states[state as usize].mask {
            return Ok(mask.clone());
        }
        let alike = self.alike(asked.ir, asked.vocabulary, state);
        let mask = match self.states[alike as usize].mask.clone() {
            Some(mask) => mask,
            None => self.first_mask(asked, alike)?,
        };
        self.n_mask_bytes += mask.n_bytes();
        self.states[state as usize].mask = Some(mask.clone());
        self.states[alike as usize].mask = Some(mask.clone());
        Ok(mask)
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
            new.stack = self.stacks.alike(ir, old.stack, vocabulary.max_bytes());
            if new != old {
                let readings = &self.states[state as usize].readings;
                changed.get_or_insert_with(|| readings.to_vec())[idx] = new;
            }
        }
        // Most states have no count at all.
        let Some(mut alike) = changed else {
            return state;
        };
        alike.sort_unstable();
        alike.dedup();
        self.stacks.drop_repeated(ir, &mut alike);
        self.intern(&alike, ir.classes.len())
    }
}
