//! States of a running grammar, built when first reached and kept: sets of readings, where each byte leads,
//! and which tokens may come next.
//!
//! Invariants: states 0 and 1 have no readings and lead to themselves; otherwise equal sets have equal
//! numbers; a row entry is `UNKNOWN` or a state.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use crate::error::MatchError;
use crate::hash::{Map, WordHasher};
use crate::ir::Ir;
use crate::limits::Limits;
use crate::mask::TokenMask;
use crate::step::{Frame, Leaf, Reading, Stacks};
use crate::trie::Trie;
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
    stacks: Stacks,
    states: Vec<State>,
    ids: Map<Arc<[Reading]>, StateId>,
    /// `n_classes` entries a state.
    rows: Vec<u32>,
    masks: HashSet<Arc<TokenMask>, BuildHasherDefault<WordHasher>>,
    n_mask_bytes: usize,
    scratch: Vec<Reading>,
    /// By depth in the trie, the state on the current path of a walk.
    path: Vec<StateId>,
}

/// A state that any tables can take in: readings with their stacks written out.
pub(crate) type Portable = Vec<(Leaf, Vec<Frame>)>;

impl Tables {
    pub(crate) fn new(ir: &Ir, limits: &Limits) -> Self {
        let mut tables = Self {
            stacks: Stacks::new(limits),
            states: Vec::new(),
            ids: Map::default(),
            rows: Vec::new(),
            masks: HashSet::default(),
            n_mask_bytes: 0,
            scratch: Vec::new(),
            path: Vec::new(),
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
        let readings = self.stacks.start(ir);
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

    pub(crate) fn stacks(&mut self) -> &mut Stacks {
        &mut self.stacks
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
        let n_bytes =
            self.rows.len() * 4 + self.n_mask_bytes + self.states.len() * 160 + self.stacks.n_bytes();
        self.states.len() > limits.max_lazy_states || n_bytes > limits.max_cache_bytes
    }

    pub(crate) fn export(&self, state: StateId) -> Portable {
        let readings = self.states[state as usize].readings.iter();
        readings
            .map(|reading| (reading.leaf, self.stacks.frames(reading.stack)))
            .collect()
    }

    pub(crate) fn import(&mut self, ir: &Ir, state: &Portable) -> StateId {
        let mut readings: Vec<Reading> = state
            .iter()
            .map(|(leaf, frames)| Reading {
                leaf: *leaf,
                stack: self.stacks.of_frames(frames),
            })
            .collect();
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
        let readings = self.states[state as usize].readings.clone();
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
    pub(crate) fn only_byte(&mut self, ir: &Ir, limits: &Limits, state: StateId) -> Option<u8> {
        if self.is_accepting(state) || self.offers_tokens(ir, state) {
            return None;
        }
        let mut only = None;
        for class in 0..ir.classes.len() {
            let byte = ir.classes.members()[class];
            if self.step(ir, limits, state, byte) == NOTHING {
                continue;
            }
            let n_bytes = (0..=255).filter(|byte| ir.classes.of(*byte) == class).count();
            if only.is_some() || n_bytes > 1 {
                return None;
            }
            only = Some(byte);
        }
        only
    }

    /// The tokens that may come in `state`, and the tokens that end the text where it may end.
    pub(crate) fn mask(
        &mut self,
        ir: &Ir,
        limits: &Limits,
        vocabulary: &Vocabulary,
        state: StateId,
    ) -> Result<Arc<TokenMask>, MatchError> {
        if let Some(mask) = &self.states[state as usize].mask {
            return Ok(mask.clone());
        }
        let alike = self.alike(ir, vocabulary, state);
        let mask = match self.states[alike as usize].mask.clone() {
            Some(mask) => mask,
            None => self.first_mask(ir, limits, vocabulary, alike)?,
        };
        self.states[state as usize].mask = Some(mask.clone());
        self.states[alike as usize].mask = Some(mask.clone());
        Ok(mask)
    }

    /// A state with the same mask, the same one for many: lengths that no token can reach the end of.
    fn alike(&mut self, ir: &Ir, vocabulary: &Vocabulary, state: StateId) -> StateId {
        let readings = self.states[state as usize].readings.clone();
        let [
            Reading {
                leaf: Leaf::Text { text, place },
                stack,
            },
        ] = *readings
        else {
            return state;
        };
        let place = ir.texts[text as usize].alike(place, vocabulary.strings().max_chars);
        let leaf = Leaf::Text { text, place };
        self.intern(&[Reading { leaf, stack }], ir.classes.len())
    }

    fn first_mask(
        &mut self,
        ir: &Ir,
        limits: &Limits,
        vocabulary: &Vocabulary,
        state: StateId,
    ) -> Result<Arc<TokenMask>, MatchError> {
        self.stacks.is_too_deep = false;
        self.stacks.is_too_many = false;
        let mut words = match self.free_text_words(ir, limits, vocabulary, state)? {
            Some(words) => words,
            None => {
                let (known, rest) = self.known_part(ir, vocabulary, state);
                let none = || vec![0; (vocabulary.n_vocab() as usize).div_ceil(64)];
                let mut words = known.unwrap_or_else(none);
                let all = 0..rest.nodes().len();
                self.walk(ir, limits, (rest, all), state, &mut words)?;
                words
            }
        };
        self.add_tokens(ir, vocabulary, state, &mut words);
        if self.is_accepting(state) {
            for token in vocabulary.eos() {
                words[*token as usize / 64] |= 1 << (token % 64);
            }
        }
        let mask = TokenMask::from_words(&words, vocabulary.n_vocab());
        // Compiling removed what leads nowhere, so only a limit can have kept everything out, now or when the
        // transition was first taken.
        if mask.n_allowed() == 0 || self.stacks.is_too_many {
            let (name, limit) = self.exceeded(limits);
            return Err(MatchError::Limit { name, limit });
        }
        let mask = Arc::new(mask);
        if let Some(known) = self.masks.get(&mask) {
            return Ok(known.clone());
        }
        self.n_mask_bytes += mask.n_bytes();
        self.masks.insert(mask.clone());
        Ok(mask)
    }

    /// Tokens whose answer is known without a walk, and the tokens to walk. Plain text inside a string is
    /// allowed as long as the string has room for it.
    fn known_part<'v>(
        &self,
        ir: &Ir,
        vocabulary: &'v Vocabulary,
        state: StateId,
    ) -> (Option<Vec<u64>>, &'v Trie) {
        let strings = vocabulary.strings();
        let readings = &self.states[state as usize].readings;
        for reading in readings.iter() {
            let Leaf::Text { text, place } = reading.leaf else {
                continue;
            };
            let text = &ir.texts[text as usize];
            if !text.is_open(place) {
                continue;
            }
            let n_left = text.n_chars_left(place).unwrap_or(u32::MAX);
            // Other readings could allow what is too long for this one.
            if n_left >= strings.max_plain_chars() || readings.len() == 1 {
                let n_chars = n_left.min(strings.max_plain_chars());
                let known = strings.plain_up_to[n_chars as usize].clone();
                return (Some(known), &strings.not_plain);
            }
        }
        (None, vocabulary.trie())
    }

    /// Adds the tokens of a subtree, or of all of the tree, that may come.
    pub(crate) fn walk(
        &mut self,
        ir: &Ir,
        limits: &Limits,
        (trie, nodes): (&Trie, std::ops::Range<usize>),
        state: StateId,
        words: &mut [u64],
    ) -> Result<(), MatchError> {
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        path.resize(trie.max_depth() + 1, NOTHING);
        path[0] = state;
        let (mut at, mut n_steps) = (nodes.start, 0);
        let nodes = &trie.nodes()[..nodes.end];
        while let Some(node) = nodes.get(at) {
            n_steps += 1;
            let depth = usize::from(node.depth);
            let next = self.step(ir, limits, path[depth], node.byte);
            if next == NOTHING {
                at = node.skip as usize;
                continue;
            }
            if next == TOO_MANY {
                self.stacks.is_too_many = true;
                break;
            }
            path[depth + 1] = next;
            for token in trie.tokens_at(at) {
                words[*token as usize / 64] |= 1 << (token % 64);
            }
            at += 1;
        }
        self.path = path;
        if n_steps > limits.max_mask_work {
            return Err(MatchError::Limit {
                name: "max_mask_work",
                limit: limits.max_mask_work as u64,
            });
        }
        Ok(())
    }

    /// Whether a token that begins with `bytes` and is longer may come, read from `state` after `bytes`.
    pub(crate) fn can_span(
        &mut self,
        ir: &Ir,
        limits: &Limits,
        trie: &Trie,
        bytes: &[u8],
        state: StateId,
    ) -> bool {
        let Some(root) = trie.find(bytes) else {
            return false;
        };
        let (mut at, end) = (root + 1, trie.nodes()[root].skip as usize);
        let mut path = vec![state; trie.max_depth() + 1];
        while at < end {
            let node = trie.nodes()[at];
            let depth = usize::from(node.depth);
            let next = self.step(ir, limits, path[depth], node.byte);
            if next == NOTHING {
                at = node.skip as usize;
                continue;
            }
            if !trie.tokens_at(at).is_empty() {
                return true;
            }
            path[depth + 1] = next;
            at += 1;
        }
        false
    }
}
