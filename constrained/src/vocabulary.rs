//! The tokens of a model as bytes, and what can be said about them before any grammar is known.
//!
//! Most tokens of a language model are plain text that may stand inside a JSON string. These are kept as
//! ready-made sets, by their number of characters, so that a mask inside a string is a copy and a short walk
//! over the rest.

use std::sync::Arc;

use crate::cache::Cache;
use crate::dfa::ByteSet;
use crate::error::VocabularyError;
use crate::free_text::Split;
use crate::hash::Map;
use crate::pieces::string_ends;
use crate::text::{TextSpec, any_content};
use crate::trie::Trie;

/// A model's tokens. Built once per model and shared by all its grammars.
#[derive(Debug)]
pub struct Vocabulary {
    /// Empty for special tokens.
    bytes: Vec<Box<[u8]>>,
    eos: Vec<u32>,
    /// What the special tokens are called.
    names: Map<String, u32>,
    /// Tokens with text, and those of them that are whole characters.
    with_text: Vec<u64>,
    whole_text: Vec<u64>,
    trie: Trie,
    /// By token: its place in the tree's list; [`NOWHERE`] without text.
    places: Vec<u32>,
    /// Bytes of the longest token.
    max_bytes: u32,
    /// Bytes that are a token by themselves: text of these bytes can be produced from anywhere.
    is_spelled: [bool; 256],
    strings: StringTokens,
    /// The constraint of a string that has none; most grammars need it.
    any_text: Arc<TextSpec>,
    /// Where it ends in the tree of tokens that are not plain.
    string_ends: Box<[u32]>,
    cache: Arc<Cache>,
}

const NOWHERE: u32 = u32::MAX;
const DEFAULT_CACHE_BYTES: usize = 64 << 20;

/// Tokens sorted by what they do inside a JSON string.
#[derive(Debug)]
pub(crate) struct StringTokens {
    /// `[n]`: plain tokens of at most n characters. Plain are whole characters, none of them quote, backslash
    /// or control.
    up_to: Vec<Vec<u64>>,
    /// Plain tokens of more than [`MAX_SET_CHARS`] characters, by their number.
    long: Vec<(u32, u32)>,
    /// All plain tokens.
    pub(crate) plain: Trie,
    /// The tokens that are not plain.
    pub(crate) other: Trie,
    /// Characters of the longest token, whatever it is; of the longest plain one; and the most that one of
    /// the others can have within a string.
    pub(crate) max_chars: u32,
    pub(crate) max_plain_chars: u32,
    pub(crate) max_other_chars: u32,
}

/// Sets of plain tokens are kept up to this many characters.
const MAX_SET_CHARS: usize = 24;

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
        let (mut all, mut whole) = (vec![0u64; n.div_ceil(64)], vec![0u64; n.div_ceil(64)]);
        for (text, token) in &with_text {
            all[*token as usize / 64] |= 1 << (token % 64);
            whole[*token as usize / 64] |= u64::from(std::str::from_utf8(text).is_ok()) << (token % 64);
        }
        let strings = StringTokens::new(&with_text, n.div_ceil(64));
        let cache = Arc::new(Cache::new(DEFAULT_CACHE_BYTES));
        let max_bytes = with_text.iter().map(|(text, _)| text.len() as u32).max();
        let max_bytes = max_bytes.unwrap_or(0);
        let trie = Trie::new(with_text);
        let mut places = vec![NOWHERE; n];
        for (place, token) in (0..).zip(trie.tokens()) {
            places[*token as usize] = place;
        }
        let mut eos = eos.to_vec();
        eos.sort_unstable();
        eos.dedup();
        let any_text = Arc::new(TextSpec::new(&any_content(), 0, None, &is_spelled));
        Ok(Self {
            bytes,
            eos,
            names: Map::default(),
            with_text: all,
            whole_text: whole,
            trie,
            places,
            max_bytes,
            is_spelled,
            string_ends: string_ends(&any_text, &strings.other),
            strings,
            any_text,
            cache,
        })
    }

    /// The same with names for special tokens, by which a grammar may ask for them: `<|tool|>`.
    ///
    /// # Errors
    /// When a token is not in the vocabulary or has text.
    pub fn with_special(
        mut self,
        names: impl IntoIterator<Item = (u32, String)>,
    ) -> Result<Self, VocabularyError> {
        let n = self.bytes.len();
        for (token, name) in names {
            if self.bytes.get(token as usize).is_none_or(|text| !text.is_empty()) {
                return Err(VocabularyError::Special { token, n });
            }
            self.names.insert(name, token);
        }
        Ok(self)
    }

    /// The special token that is called `name`, or the one whose text it is.
    pub(crate) fn token_named(&self, name: &str) -> Option<u32> {
        let with_text = || {
            self.trie
                .tokens_at(self.trie.find(name.as_bytes())?)
                .first()
                .copied()
        };
        self.names.get(name).copied().or_else(with_text)
    }

    /// The special token that is called `name`, unless it ends the text.
    pub(crate) fn special_named(&self, name: &str) -> Option<u32> {
        let token = self.names.get(name).copied();
        token.filter(|token| self.eos.binary_search(token).is_err())
    }

    /// Tokens that have text.
    pub(crate) fn with_text(&self) -> &[u64] {
        &self.with_text
    }

    /// Tokens whose text is whole characters.
    pub(crate) fn whole_text(&self) -> &[u64] {
        &self.whole_text
    }

    /// The same vocabulary, keeping at most about `n_bytes` of what its grammars share, 64 MiB unless said.
    #[must_use]
    pub fn with_cache_bytes(self, n_bytes: usize) -> Self {
        Self {
            cache: Arc::new(Cache::new(n_bytes)),
            ..self
        }
    }

    /// Bytes that it holds by now for its grammars to share, besides the tokens.
    pub fn n_cache_bytes(&self) -> usize {
        self.cache.n_bytes()
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

    /// Words of 64 bits that hold a bit per token.
    pub(crate) fn n_words(&self) -> usize {
        self.bytes.len().div_ceil(64)
    }

    /// Its tokens by whether they have one of the bytes `first`.
    pub(crate) fn split(&self, first: ByteSet) -> Arc<Split> {
        self.cache.split(first, || Split::new(self, &first))
    }

    pub(crate) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub(crate) fn trie(&self) -> &Trie {
        &self.trie
    }

    /// Where `token` is in the list of [`Self::trie`].
    pub(crate) fn place(&self, token: u32) -> Option<u32> {
        let place = self.places.get(token as usize).copied();
        place.filter(|place| *place != NOWHERE)
    }

    pub(crate) fn max_bytes(&self) -> u32 {
        self.max_bytes
    }

    pub(crate) fn is_spelled(&self) -> &[bool; 256] {
        &self.is_spelled
    }

    pub(crate) fn any_text(&self) -> &Arc<TextSpec> {
        &self.any_text
    }

    /// The nodes of the tree of tokens that are not plain at which a string of any content ends.
    pub(crate) fn string_ends(&self) -> &[u32] {
        &self.string_ends
    }

    pub(crate) fn strings(&self) -> &StringTokens {
        &self.strings
    }
}

impl StringTokens {
    fn new(tokens: &[(&[u8], u32)], n_words: usize) -> Self {
        let mut up_to = vec![vec![0u64; n_words]; MAX_SET_CHARS + 1];
        let (mut plain, mut other, mut long) = (Vec::new(), Vec::new(), Vec::new());
        let (mut max_plain_chars, mut max_other_chars) = (1, 1);
        for (text, token) in tokens {
            let Some(n_chars) = plain_chars(text) else {
                // An upper bound: each byte may begin a character, and no control character is within a
                // string.
                let n_within = text.iter().take_while(|byte| **byte >= b' ').count();
                max_other_chars = max_other_chars.max(n_within as u32);
                other.push((*text, *token));
                continue;
            };
            max_plain_chars = max_plain_chars.max(n_chars as u32);
            plain.push((*text, *token));
            match up_to.get_mut(n_chars) {
                Some(set) => set[*token as usize / 64] |= 1 << (token % 64),
                None => long.push((n_chars as u32, *token)),
            }
        }
        for n in 1..up_to.len() {
            let (before, here) = up_to.split_at_mut(n);
            for (word, shorter) in here[0].iter_mut().zip(&before[n - 1]) {
                *word |= shorter;
            }
        }
        Self {
            up_to,
            long,
            plain: Trie::new(plain),
            other: Trie::new(other),
            max_chars: max_plain_chars.max(max_other_chars),
            max_plain_chars,
            max_other_chars,
        }
    }

    /// The plain tokens of at most `n_chars` characters, as bits.
    pub(crate) fn up_to(&self, n_chars: u32) -> Vec<u64> {
        let n_set = (n_chars as usize).min(MAX_SET_CHARS);
        let mut words = self.up_to[n_set].clone();
        for (_, token) in self.long.iter().filter(|(n, _)| *n <= n_chars) {
            words[*token as usize / 64] |= 1 << (token % 64);
        }
        words
    }

    /// Adds those of `tokens` that are plain and have more than `n_least` and at most `n_most` characters.
    pub(crate) fn add_between(&self, n_least: u32, n_most: u32, tokens: &[u64], words: &mut [u64]) {
        if n_least >= n_most {
            return;
        }
        let set = |n_chars: u32| &self.up_to[(n_chars as usize).min(MAX_SET_CHARS)];
        let bounds = set(n_least).iter().zip(set(n_most));
        for ((word, token), (shorter, longer)) in words.iter_mut().zip(tokens).zip(bounds) {
            *word |= token & longer & !shorter;
        }
        for (n_chars, token) in &self.long {
            let (word, bit) = (*token as usize / 64, 1 << (token % 64));
            if n_least < *n_chars && *n_chars <= n_most && tokens[word] & bit != 0 {
                words[word] |= bit;
            }
        }
    }

    /// Calls `visit` with those of `tokens` that are plain and have `n_chars` characters.
    pub(crate) fn for_each_of(&self, n_chars: u32, tokens: &[u64], mut visit: impl FnMut(u32)) {
        let mut of_length = vec![0; tokens.len()];
        self.add_between(n_chars - 1, n_chars, tokens, &mut of_length);
        for (first, word) in (0..).step_by(64).zip(of_length) {
            let mut rest = word;
            while rest != 0 {
                visit(first + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
    }

    /// The plain tokens in `ranges` of the plain tree, which are disjoint, as bits.
    pub(crate) fn words_of(&self, ranges: &mut [(u32, u32)], n_words: usize) -> Vec<u64> {
        let tokens = self.plain.tokens();
        let n_within: usize = ranges.iter().map(|(begin, end)| (end - begin) as usize).sum();
        if n_within < tokens.len() / 2 {
            let mut words = vec![0; n_words];
            for (begin, end) in ranges {
                for token in &tokens[*begin as usize..*end as usize] {
                    words[*token as usize / 64] |= 1 << (token % 64);
                }
            }
            return words;
        }
        // Most are: taking the rest away is less work.
        let mut words = self.up_to(u32::MAX);
        ranges.sort_unstable();
        let mut at = 0;
        for (begin, end) in ranges.iter().copied().chain([(tokens.len() as u32, 0)]) {
            for token in &tokens[at..begin as usize] {
                words[*token as usize / 64] &= !(1 << (token % 64));
            }
            at = end as usize;
        }
        words
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
        let strings = vocabulary.strings();
        let members = |words: &[u64]| (0..5).filter(|token| has(words, *token)).collect::<Vec<_>>();
        assert_eq!(members(&strings.up_to(0)), [0u32; 0]);
        assert_eq!(members(&strings.up_to(1)), [0]);
        assert_eq!(members(&strings.up_to(u32::MAX)), [0, 1]);
        assert_eq!(strings.other.nodes().len(), 4);
        // In the order of their bytes: abc, then é.
        for (mut ranges, tokens) in [
            (vec![], vec![]),
            (vec![(1, 2)], vec![0]),
            (vec![(0, 1)], vec![1]),
            (vec![(1, 2), (0, 1)], vec![0, 1]),
        ] {
            assert_eq!(members(&strings.words_of(&mut ranges, 1)), tokens);
        }
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
