//! Grammars that speak of tokens by number: special tokens as brackets around text, "any token but these".
//!
//! A token set is a leaf that no byte moves: one token of the set completes it. A token with text may be read
//! both ways at once, by its number and by its bytes.

use crate::error::CompileError;
use crate::ir::{Ir, Node, NodeId};
use crate::limits::Limits;
use crate::step::{Leaf, Reading};
use crate::tables::{NOTHING, StateId, TOO_MANY, Tables};
use crate::vocabulary::Vocabulary;

/// Tokens by number, ascending. End-of-text tokens are in none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TokenSet {
    Only(Box<[u32]>),
    /// All tokens that have text, except these. Special tokens are allowed where they are named only.
    AllBut(Box<[u32]>),
}

impl TokenSet {
    pub(crate) fn only(ids: &[u32]) -> Self {
        Self::Only(sorted(ids))
    }

    pub(crate) fn all_but(ids: &[u32]) -> Self {
        Self::AllBut(sorted(ids))
    }

    fn contains(&self, vocabulary: &Vocabulary, token: u32) -> bool {
        match self {
            Self::Only(ids) => ids.binary_search(&token).is_ok(),
            Self::AllBut(ids) => {
                !vocabulary.token_bytes(token).is_empty() && ids.binary_search(&token).is_err()
            }
        }
    }

    pub(crate) fn is_empty(&self, vocabulary: &Vocabulary) -> bool {
        match self {
            Self::Only(ids) => ids.is_empty(),
            Self::AllBut(_) => !(0..vocabulary.n_vocab()).any(|token| self.contains(vocabulary, token)),
        }
    }

    fn add_to(&self, vocabulary: &Vocabulary, words: &mut [u64]) {
        match self {
            Self::Only(ids) => ids.iter().for_each(|token| add(words, *token)),
            Self::AllBut(ids) => {
                let mut ids = ids.iter().peekable();
                for (at, word) in words.iter_mut().enumerate() {
                    let mut with_text = vocabulary.with_text()[at];
                    while let Some(token) = ids.next_if(|token| **token as usize / 64 == at) {
                        with_text &= !(1 << (token % 64));
                    }
                    *word |= with_text;
                }
            }
        }
    }
}

fn sorted(ids: &[u32]) -> Box<[u32]> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids.into()
}

fn add(words: &mut [u64], token: u32) {
    words[token as usize / 64] |= 1 << (token % 64);
}

/// The token that a grammar calls by number.
pub(crate) fn by_number(vocabulary: &Vocabulary, token: u32) -> Result<u32, String> {
    if token >= vocabulary.n_vocab() {
        let n = vocabulary.n_vocab();
        return Err(format!("token {token} is outside the vocabulary of {n} tokens"));
    }
    if vocabulary.eos().binary_search(&token).is_ok() {
        return Err(format!(
            "token {token} ends the text; it comes where the grammar ends and nowhere else"
        ));
    }
    Ok(token)
}

/// The token that a grammar calls by its text.
pub(crate) fn by_name(vocabulary: &Vocabulary, name: &str) -> Result<u32, String> {
    let token = vocabulary.token_named(name);
    let token = token.ok_or_else(|| format!("`{name}` is not one token of the vocabulary"))?;
    by_number(vocabulary, token)
}

impl Ir {
    /// A leaf for one token of `set`.
    pub(crate) fn token(&mut self, set: TokenSet) -> NodeId {
        let fresh = self.token_sets.len() as u32;
        let id = *self.token_set_ids.entry(set.clone()).or_insert(fresh);
        if id == fresh {
            self.token_sets.push(set);
        }
        self.node(Node::Token(id))
    }

    /// `text` as bytes, or as the one special token that is called so.
    pub(crate) fn marker(&mut self, vocabulary: &Vocabulary, text: &str) -> Result<NodeId, CompileError> {
        let spelled = self.literal(text);
        let Some(token) = vocabulary.special_named(text) else {
            return Ok(spelled);
        };
        let token = self.token(TokenSet::only(&[token]));
        Ok(self.alt(vec![spelled, token]))
    }
}

impl Tables {
    /// The state after `token`; `NOTHING` when it cannot come.
    pub(crate) fn advance(
        &mut self,
        ir: &Ir,
        limits: &Limits,
        vocabulary: &Vocabulary,
        state: StateId,
        token: u32,
    ) -> StateId {
        let bytes = vocabulary.token_bytes(token);
        let by_bytes = if bytes.is_empty() {
            NOTHING
        } else {
            self.run(ir, limits, state, bytes)
        };
        if !ir.has_tokens || by_bytes == TOO_MANY {
            return by_bytes;
        }
        let mut out = Vec::new();
        for reading in self.readings(state).iter() {
            self.take(ir, vocabulary, reading, token, &mut out);
        }
        if out.is_empty() {
            return by_bytes;
        }
        out.extend_from_slice(&self.readings(by_bytes));
        self.state_of(ir, limits, out)
    }

    /// Adds to `out` what `reading` becomes after `token`, taken by its number.
    fn take(
        &mut self,
        ir: &Ir,
        vocabulary: &Vocabulary,
        reading: &Reading,
        token: u32,
        out: &mut Vec<Reading>,
    ) {
        match reading.leaf {
            Leaf::Token { set } if ir.token_sets[set as usize].contains(vocabulary, token) => {
                self.stacks().resume(ir, reading.stack, out);
            }
            Leaf::Free { free, state } => {
                let then = ir.free_texts[free as usize].after_token(state, token);
                if let Some(node) = then {
                    self.stacks().follow(ir, node, reading.stack, out);
                }
            }
            _ => {}
        }
    }

    /// Adds the tokens that `state` allows by number.
    pub(crate) fn add_tokens(&mut self, ir: &Ir, vocabulary: &Vocabulary, state: StateId, words: &mut [u64]) {
        if !ir.has_tokens {
            return;
        }
        for reading in self.readings(state).iter() {
            match reading.leaf {
                Leaf::Token { set } => {
                    let mut out = Vec::new();
                    self.stacks().resume(ir, reading.stack, &mut out);
                    if !out.is_empty() {
                        ir.token_sets[set as usize].add_to(vocabulary, words);
                    }
                }
                Leaf::Free { free, state } => {
                    for (token, node) in ir.free_texts[free as usize].tokens_at(state) {
                        let mut out = Vec::new();
                        self.stacks().follow(ir, *node, reading.stack, &mut out);
                        if !out.is_empty() {
                            add(words, *token);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether a token may be taken by its number, so that no byte is forced.
    pub(crate) fn offers_tokens(&self, ir: &Ir, state: StateId) -> bool {
        ir.has_tokens
            && self.readings(state).iter().any(|reading| match reading.leaf {
                Leaf::Token { .. } => true,
                Leaf::Free { free, state } => !ir.free_texts[free as usize].tokens_at(state).is_empty(),
                _ => false,
            })
    }
}
