//! Grammars that speak of tokens by number: special tokens as brackets around text, "any token but these".
//!
//! A token set is a leaf that no byte moves: one token of the set completes it. A token with text may be read
//! both ways at once, by its number and by its bytes.

use crate::error::CompileError;
use crate::fill::{Asked, Filling};
use crate::ir::{Ir, Node, NodeId};
use crate::mask::TokenMask;
use crate::step::Leaf;
use crate::tables::{NOTHING, StateId, Tables};
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

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        let (Self::Only(ids) | Self::AllBut(ids)) = self;
        size_of::<Self>() + ids.len() * 4
    }

    pub(crate) fn is_empty(&self, vocabulary: &Vocabulary) -> bool {
        match self {
            Self::Only(ids) => ids.is_empty(),
            Self::AllBut(_) => !(0..vocabulary.n_vocab()).any(|token| self.contains(vocabulary, token)),
        }
    }
}

fn sorted(ids: &[u32]) -> Box<[u32]> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids.into()
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
    /// The state between tokens after `token`; `NOTHING` when it cannot come.
    pub(crate) fn advance(&mut self, asked: Asked<'_>, state: StateId, token: u32) -> StateId {
        let next = self.after_token(asked, state, token);
        self.between_tokens(asked.ir, next)
    }

    fn after_token(&mut self, asked: Asked<'_>, state: StateId, token: u32) -> StateId {
        let bytes = asked.vocabulary.token_bytes(token);
        let by_bytes = if bytes.is_empty() {
            NOTHING
        } else {
            self.run(asked.ir, state, bytes)
        };
        if !asked.ir.has_tokens {
            return by_bytes;
        }
        let mut out = Vec::new();
        for reading in self.readings(state).iter() {
            let (ir, stacks) = (asked.ir, &mut self.stacks);
            match reading.leaf {
                Leaf::Token { set } if ir.token_sets[set as usize].contains(asked.vocabulary, token) => {
                    stacks.resume(ir, reading.stack, &mut out);
                }
                Leaf::Free { free, state } => {
                    if let Some(node) = ir.free_texts[free as usize].after_token(state, token) {
                        let stack = stacks.then(node, reading.stack);
                        stacks.resume(ir, stack, &mut out);
                    }
                }
                _ => {}
            }
        }
        if out.is_empty() {
            return by_bytes;
        }
        out.extend_from_slice(&self.readings(by_bytes));
        self.state_of(asked.ir, out)
    }

    /// Adds the tokens that `state` allows by number.
    pub(crate) fn add_tokens(&mut self, asked: Asked<'_>, state: StateId, filling: &mut Filling) {
        let (ir, vocabulary) = (asked.ir, asked.vocabulary);
        if !ir.has_tokens {
            return;
        }
        for reading in self.readings(state).iter() {
            match reading.leaf {
                Leaf::Token { set } if self.stacks.can_follow(ir, reading.stack) => {
                    match &ir.token_sets[set as usize] {
                        TokenSet::Only(ids) => filling.extras.extend(ids),
                        TokenSet::AllBut(ids) => {
                            let mut words = vocabulary.with_text().to_vec();
                            for token in ids {
                                words[*token as usize / 64] &= !(1 << (token % 64));
                            }
                            let mask = TokenMask::from_words(words, vocabulary.n_vocab());
                            filling.parts.push(vocabulary.cache().mask(mask));
                        }
                    }
                }
                Leaf::Free { free, state } => {
                    for (token, node) in ir.free_texts[free as usize].tokens_at(state) {
                        let stack = self.stacks.then(*node, reading.stack);
                        if self.stacks.can_follow(ir, stack) {
                            filling.extras.push(*token);
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
