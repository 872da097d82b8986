//! The tokens of a model as bytes, and what can be said about them before any grammar is known.
//!
//! Most tokens of a language model are plain text that may stand inside a JSON string. These are kept as
//! ready-made sets, by their number of characters, so that a mask inside a string is a copy and a short walk
//! over the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::dfa::Dfa;
use crate::error::{CompileError, VocabularyError};
use crate::text::{TextSpec, any_content};
use crate::trie::Trie;

/// A model's tokens. Built once per model and shared by all its grammars.
#[derive(Debug)]
pub struct Vocabulary {
    /// Empty for special tokens.
    bytes: Vec<Box<[u8]>>,
    eos: Vec<u32>,
    trie: Trie,
    /// Bytes that are a token by themselves: text of these bytes can be produced from anywhere.
    is_spelled: [bool; 256],
    strings: StringTokens,
    /// The constraint of a string that has none; most grammars need it.
    any_text: Arc<TextSpec>,
    /// Automata that many grammars need, by a name that a program chose: as many as there are formats. They
    /// are made when first asked for.
    shared: Mutex<BTreeMap<&'static str, Arc<Dfa>>>,
}

/// Tokens sorted by what they do inside a JSON string.
#[derive(Debug)]
pub(crate) struct StringTokens {
    /// `[n]`: whole characters, none of them quote, backslash or control, at most n of them.
    pub(crate) plain_up_to: Vec<Vec<u64>>,
    /// The tokens that are in none of these sets.
    pub(crate) not_plain: Trie,
    /// Characters of the longest token, whatever it is.
    pub(crate) max_chars: u32,
}

/// Plain sets are kept up to this many characters; longer tokens are walked one by one.
const MAX_PLAIN_CHARS: usize = 24;

impl Vocabulary {
    /// The vocabulary of `tokens` in the order of their ids. `None` is a special token: it has no text and no
    /// grammar allows it, except that `eos` is allowed where a grammar may end.
    ///
    /// # Errors
    /// When there are no or too many tokens, one is too long, or an `eos` is not among them.
    pub fn new(
        tokens: impl IntoIterator<Item = Option<Vec<u8>>>,
        eos: &[u32],
    ) -> Result<Self, VocabularyError> {
        let mut bytes: Vec<Box<[u8]>> = tokens
            .into_iter()
            .map(|token| token.unwrap_or_default().into())
            .collect();
        let n = bytes.len();
        if n == 0 || n > 1 << 24 {
            return Err(VocabularyError::Size { n });
        }
        for token in eos {
            let slot = bytes.get_mut(*token as usize);
            *slot.ok_or(VocabularyError::Eos { token: *token, n })? = Box::default();
        }
        if let Some((token, text)) = bytes.iter().enumerate().find(|(_, text)| text.len() > 65_535) {
            return Err(VocabularyError::TokenLength {
                token: token as u32,
                n: text.len(),
            });
        }
        let with_text: Vec<(&[u8], u32)> = bytes
            .iter()
            .zip(0..)
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, token)| (&text[..], token))
            .collect();
        let mut is_spelled = [false; 256];
        for (text, _) in &with_text {
            if let [byte] = text {
                is_spelled[usize::from(*byte)] = true;
            }
        }
        let strings = StringTokens::new(&with_text, n.div_ceil(64));
        let trie = Trie::new(with_text);
        let mut eos = eos.to_vec();
        eos.sort_unstable();
        eos.dedup();
        let any_text = Arc::new(TextSpec::new(&any_content(), 0, None, &is_spelled));
        Ok(Self {
            bytes,
            eos,
            trie,
            is_spelled,
            strings,
            any_text,
            shared: Mutex::new(BTreeMap::new()),
        })
    }

    /// How many tokens there are.
    pub fn n_vocab(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// The text of `token`; empty for a special token and for one outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |bytes| bytes)
    }

    /// The tokens that end a text, ascending.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The automaton called `name`, made by `make` for the first grammar that asks for it.
    pub(crate) fn shared(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Result<Dfa, CompileError>,
    ) -> Result<Arc<Dfa>, CompileError> {
        let lock = || self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(name) {
            return Ok(known.clone());
        }
        // Made without the lock: two threads may both make it, and the first one's is kept.
        let made = Arc::new(make()?);
        Ok(lock().entry(name).or_insert(made).clone())
    }

    pub(crate) fn trie(&self) -> &Trie {
        &self.trie
    }

    pub(crate) fn is_spelled(&self) -> &[bool; 256] {
        &self.is_spelled
    }

    pub(crate) fn any_text(&self) -> &Arc<TextSpec> {
        &self.any_text
    }

    pub(crate) fn strings(&self) -> &StringTokens {
        &self.strings
    }
}

impl StringTokens {
    fn new(tokens: &[(&[u8], u32)], n_words: usize) -> Self {
        let mut plain_up_to = vec![vec![0u64; n_words]; MAX_PLAIN_CHARS + 1];
        let mut rest = Vec::new();
        let mut max_chars = 1;
        for (text, token) in tokens {
            // An upper bound where the text is not whole characters: each byte may begin one.
            let n_bytes = text.len();
            let n_chars = plain_chars(text);
            max_chars = max_chars.max(n_chars.unwrap_or(n_bytes) as u32);
            match n_chars.filter(|n| *n <= MAX_PLAIN_CHARS) {
                Some(n) => plain_up_to[n][*token as usize / 64] |= 1 << (token % 64),
                None => rest.push((*text, *token)),
            }
        }
        for n in 1..plain_up_to.len() {
            let (before, here) = plain_up_to.split_at_mut(n);
            for (word, shorter) in here[0].iter_mut().zip(&before[n - 1]) {
                *word |= shorter;
            }
        }
        Self {
            plain_up_to,
            not_plain: Trie::new(rest),
            max_chars,
        }
    }

    /// Characters of the longest plain token that is kept in a set.
    pub(crate) fn max_plain_chars(&self) -> u32 {
        MAX_PLAIN_CHARS as u32
    }
}

/// The characters of `text` when all of them are whole and may stand in a JSON string as they are.
fn plain_chars(text: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(text).ok()?;
    let is_plain = |c: char| c >= ' ' && c != '"' && c != '\\';
    text.chars().all(is_plain).then(|| text.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(words: &[u64], token: u32) -> bool {
        words[token as usize / 64] >> (token % 64) & 1 == 1
    }

    #[test]
    fn plain_tokens_are_counted_in_characters() {
        let texts: [&[u8]; 5] = ["é".as_bytes(), b"abc", b"a\"", b"\xc3", b"\n"];
        let tokens = texts.map(|text| Some(text.to_vec()));
        let vocabulary = Vocabulary::new(tokens, &[]).expect("five tokens");
        let plain = &vocabulary.strings().plain_up_to;
        let up_to = |n: usize| (0..5).filter(|token| has(&plain[n], *token)).collect::<Vec<_>>();
        assert_eq!(up_to(0), [0u32; 0]);
        assert_eq!(up_to(1), [0]);
        assert_eq!(up_to(3), [0, 1]);
        assert_eq!(vocabulary.strings().not_plain.nodes().len(), 4);
        assert!(vocabulary.is_spelled()[0xc3] && !vocabulary.is_spelled()[usize::from(b'a')]);
    }

    #[test]
    fn a_vocabulary_that_cannot_be_is_refused() {
        assert_eq!(
            Vocabulary::new([], &[]).err(),
            Some(VocabularyError::Size { n: 0 })
        );
        let eos_outside = Vocabulary::new([None], &[1]).err();
        assert_eq!(eos_outside, Some(VocabularyError::Eos { token: 1, n: 1 }));
        let long = Vocabulary::new([Some(vec![b'a'; 65_536])], &[]).err();
        assert_eq!(long, Some(VocabularyError::TokenLength { token: 0, n: 65_536 }));
    }
}
