//! One output on its way through a grammar.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::MatchError;
use crate::grammar::Grammar;
use crate::history::History;
use crate::mask::TokenMask;
use crate::tables::{NOTHING, StateId, Tables};

/// Where one output stands in its grammar. Cloning it forks the output: whatever its length, that copies at
/// most 128 numbers and shares the rest.
///
/// The tables are shared by the matchers of one grammar and guarded by one lock, taken once per call. An
/// engine thread owns all its matchers, so that the lock is free whenever it asks.
#[derive(Clone, Debug)]
pub struct Matcher {
    grammar: Grammar,
    tables: Arc<Mutex<Tables>>,
    /// Taken so far, less the end of text.
    tokens: History,
    /// The state after all of them and the states before, back to the beginning or not so far.
    states: History,
    is_ended: bool,
}

impl Matcher {
    pub(crate) fn new(grammar: Grammar, tables: Arc<Mutex<Tables>>) -> Self {
        let mut states = History::default();
        states.push(lock(&tables).start(&grammar.0.ir));
        Self {
            grammar,
            tables,
            tokens: History::default(),
            states,
            is_ended: false,
        }
    }

    fn state(&self) -> StateId {
        self.states
            .last()
            .expect("the state of the output is always known")
    }

    /// Tokens taken so far, the end of text included.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len() + usize::from(self.is_ended)
    }

    /// Whether the output may end here.
    pub fn is_accepting(&self) -> bool {
        self.is_ended || lock(&self.tables).is_accepting(self.state())
    }

    /// The tokens that may come next; the tokens that end the text are among them exactly when the output may
    /// end here. Nothing may come after the end.
    pub fn mask(&mut self) -> Arc<TokenMask> {
        let parts = &self.grammar.0;
        if self.is_ended {
            let none = TokenMask::from_sorted_ids(Vec::new(), parts.vocabulary.n_vocab());
            return Arc::new(none);
        }
        let mut tables = lock(&self.tables);
        if !tables.is_full(&parts.limits) {
            return tables.mask(parts.asked(), self.state());
        }
        drop(tables);
        self.renew();
        let parts = &self.grammar.0;
        lock(&self.tables).mask(parts.asked(), self.state())
    }

    /// The temperature with which the grammar wants the next token sampled, where it wants one: the highest,
    /// where several parts that ask for one may go on. Only grammars in Lark do.
    pub fn temperature(&self) -> Option<f32> {
        let parts = &self.grammar.0;
        if parts.ir.marks.is_empty() {
            return None;
        }
        lock(&self.tables).temperature(&parts.ir, self.state())
    }

    /// Takes `token`.
    ///
    /// # Errors
    /// When the grammar does not allow it here; then nothing has changed.
    pub fn advance(&mut self, token: u32) -> Result<(), MatchError> {
        let refused = MatchError::Refused { token };
        if self.is_ended {
            return Err(refused);
        }
        let parts = &self.grammar.0;
        if parts.vocabulary.eos().contains(&token) {
            self.is_ended = self.is_accepting();
            return if self.is_ended { Ok(()) } else { Err(refused) };
        }
        let mut tables = lock(&self.tables);
        let next = tables.advance(parts.asked(), self.state(), token);
        drop(tables);
        if next == NOTHING {
            return Err(refused);
        }
        self.states.push(next);
        self.tokens.push(token);
        Ok(())
    }

    /// Takes back the last `n` tokens.
    ///
    /// # Errors
    /// When fewer were taken.
    pub fn rollback(&mut self, n: usize) -> Result<(), MatchError> {
        let n_taken = self.n_tokens();
        if n > n_taken {
            return Err(MatchError::Rollback { n, n_taken });
        }
        let n = if n > 0 && std::mem::take(&mut self.is_ended) {
            n - 1
        } else {
            n
        };
        self.tokens.truncate_by(n);
        if n < self.states.len() {
            self.states.truncate_by(n);
        } else {
            self.replay();
        }
        Ok(())
    }

    /// Finds the states again that were let go.
    fn replay(&mut self) {
        let parts = &self.grammar.0;
        let mut tables = lock(&self.tables);
        let mut state = tables.start(&parts.ir);
        self.states = History::default();
        self.states.push(state);
        for token in self.tokens.entries() {
            state = tables.advance(parts.asked(), state, token);
            assert!(state != NOTHING, "token {token} was taken before");
            self.states.push(state);
        }
    }

    /// The bytes that must come next, whatever the model wants; empty where there is a choice or the output
    /// may end. At most `max_forced_bytes`.
    pub fn forced_bytes(&mut self) -> Vec<u8> {
        self.forced_run().0
    }

    fn forced_run(&mut self) -> (Vec<u8>, StateId) {
        let (mut bytes, mut state) = (Vec::new(), self.state());
        if self.is_ended {
            return (bytes, state);
        }
        self.renew();
        state = self.state();
        let parts = &self.grammar.0;
        let mut tables = lock(&self.tables);
        while bytes.len() < parts.limits.max_forced_bytes {
            let Some(byte) = tables.only_byte(parts.asked(), state) else {
                break;
            };
            state = tables.step(&parts.ir, state, byte);
            bytes.push(byte);
        }
        (bytes, state)
    }

    /// Tokens to propose as a draft: the canonical tokenisation of the forced bytes, as far as no other
    /// continuation could tokenise them differently. `recent` are the last committed tokens, fewer or more;
    /// `tokenise` turns text into tokens.
    ///
    /// A draft only: the model verifies it, so that it never changes what is sampled.
    pub fn forced(&mut self, recent: &[u32], tokenise: impl FnOnce(&[u8]) -> Vec<u32>) -> Vec<u32> {
        let (forced, end) = self.forced_run();
        if forced.is_empty() {
            return Vec::new();
        }
        let parts = &self.grammar.0;
        let vocabulary = &parts.vocabulary;
        let mut text: Vec<u8> = recent
            .iter()
            .flat_map(|token| vocabulary.token_bytes(*token))
            .copied()
            .collect();
        text.extend_from_slice(&forced);
        let tokens = tokenise(&text);
        let Some(draft) = tokens.strip_prefix(recent) else {
            return Vec::new();
        };
        let spelled: Vec<u8> = draft
            .iter()
            .flat_map(|token| vocabulary.token_bytes(*token))
            .copied()
            .collect();
        if spelled != forced {
            return Vec::new();
        }
        let mut tables = lock(&self.tables);
        let (mut n_kept, mut begin) = (draft.len(), forced.len());
        while n_kept > 0 {
            begin -= vocabulary.token_bytes(draft[n_kept - 1]).len();
            let tail = &forced[begin..];
            if !tables.can_span(parts.asked(), tail, end) {
                break;
            }
            n_kept -= 1;
        }
        draft[..n_kept].to_vec()
    }

    /// Moves to fresh tables when the current ones have reached their limit. Of the states only the last ones
    /// come along: all of them could fill the fresh tables at once.
    fn renew(&mut self) {
        /// More than the drafts that are taken back.
        const MAX_KEPT: usize = 64;
        let parts = &self.grammar.0;
        let exported = {
            let tables = lock(&self.tables);
            if !tables.is_full(&parts.limits) {
                return;
            }
            let states = self.states.entries();
            let kept = &states[states.len().saturating_sub(MAX_KEPT)..];
            tables.export(kept)
        };
        let fresh = self.grammar.fresh_tables(&self.tables);
        let mut tables = lock(&fresh);
        self.states = History::default();
        for state in tables.import(&parts.ir, &exported) {
            self.states.push(state);
        }
        drop(tables);
        self.tables = fresh;
    }
}

/// The tables stay consistent when a holder panics: entries are added whole and never changed.
pub(crate) fn lock(tables: &Mutex<Tables>) -> MutexGuard<'_, Tables> {
    tables.lock().unwrap_or_else(PoisonError::into_inner)
}
