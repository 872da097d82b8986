//! Text to tokens and back: byte-level BPE rebuilt from GGUF metadata.
//!
//! ```text
//! text ─ added tokens cut out ─ normal form C ─ pieces (split) ─ byte alphabet ─ merges ─ ids
//! ```
//!
//! The merges are those of Hugging Face's `tokenizers`; cutting text into pieces is done here, in `split`.
//!
//! Kinds of tokens, as GGUF numbers them: *control* tokens (`<|im_end|>`) steer the model and exist for
//! templates only; *user-defined* tokens are ordinary text that is never cut. Text encoded
//! [`SpecialTokens::AsText`] can yield user-defined tokens but no control token, whatever it spells: control
//! tokens are not in the vocabulary the merges work on.

mod bytes;
mod split;

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{Model, NormalizedString};

use crate::model::metadata::{KeyError, Metadata, Strings, required};
use crate::token_bytes::TokenBytes;
use bytes::ByteAlphabet;
use split::{PreTokenizer, Splitter};

const MODEL_KEY: &str = "tokenizer.ggml.model";
const PRE_KEY: &str = "tokenizer.ggml.pre";
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";
const MERGES_KEY: &str = "tokenizer.ggml.merges";
const ADD_BOS_KEY: &str = "tokenizer.ggml.add_bos_token";
const BOS_KEY: &str = "tokenizer.ggml.bos_token_id";
const EOS_KEY: &str = "tokenizer.ggml.eos_token_id";

/// Metadata keys of tokens that end an answer: end of sequence, of turn, of message.
const STOP_KEYS: [&str; 3] = [
    EOS_KEY,
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];

/// Control tokens that end an answer by their name. Files converted from a base model's configuration often
/// name only one of several in the metadata; llama.cpp keeps such a list for the same reason.
const STOP_NAMES: [&str; 10] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
    "[EOT]",
];

/// What to do with text that spells a control token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It becomes the token: for templates and prompts written by the operator or as raw completions.
    Parse,
    /// It is text like any other: for what a user wrote inside a message.
    AsText,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Made by merges.
    Normal,
    /// Steers the model; no text.
    Control,
    /// Text that is never cut.
    UserDefined,
    /// A filler of the vocabulary, never made from text.
    Unused,
}

/// Why a tokenizer could not be built from a file.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A key is missing or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A tokenizer that is no byte-level BPE.
    #[error("tokenizer model `{found}` is not supported (`gpt2`, byte-level BPE, is)")]
    UnsupportedModel {
        /// The name in the file.
        found: String,
    },
    /// Unknown rules for cutting text; guessing would give wrong tokens without a sign of it.
    #[error("pre-tokenizer `{found}` is not known (known: {})", known.join(", "))]
    UnknownPreTokenizer {
        /// The name in the file.
        found: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// An entry of the vocabulary or the merges that makes no sense.
    #[error("{what} {idx} `{text}`: {reason}")]
    BadEntry {
        /// Token or merge.
        what: &'static str,
        /// Its index.
        idx: usize,
        /// What it says.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The merges were refused.
    #[error("building the merges: {0}")]
    Merges(#[source] tokenizers::Error),
}

/// Why a text could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("encoding a piece of {n_bytes} bytes: {source}")]
pub struct EncodeError {
    /// Length of the piece.
    pub n_bytes: usize,
    /// What the merges reported.
    #[source]
    pub source: tokenizers::Error,
}

/// A model's vocabulary and how text becomes tokens of it.
pub struct Tokenizer {
    bpe: BPE,
    alphabet: ByteAlphabet,
    splitter: Splitter,
    normalize: bool,
    kinds: Vec<TokenKind>,
    token_bytes: TokenBytes,
    /// Control and user-defined tokens, found in text when parsing.
    all_added: AddedTokens,
    /// User-defined tokens only, found in any text.
    user_defined: AddedTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    stop_token_ids: Vec<u32>,
}

impl Tokenizer {
    /// Rebuilds the tokenizer a GGUF file describes.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
        let model = required(MODEL_KEY, metadata.text(MODEL_KEY))?;
        if model != "gpt2" {
            let found = model.to_owned();
            return Err(TokenizerError::UnsupportedModel { found });
        }
        let pre = required(PRE_KEY, metadata.text(PRE_KEY))?;
        let row = PreTokenizer::named(pre).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
            found: pre.to_owned(),
            known: split::names(),
        })?;
        let tokens = required(TOKENS_KEY, metadata.strings(TOKENS_KEY))?;
        let kinds = token_kinds(metadata, tokens.len())?;
        let merges = required(MERGES_KEY, metadata.strings(MERGES_KEY))?;
        let alphabet = ByteAlphabet::new();
        let bpe = build_bpe(tokens, &kinds, merges, row.ignore_merges)?;
        Ok(Tokenizer {
            all_added: AddedTokens::new(tokens, &kinds, &[TokenKind::Control, TokenKind::UserDefined]),
            user_defined: AddedTokens::new(tokens, &kinds, &[TokenKind::UserDefined]),
            bos: token_id(metadata, BOS_KEY, tokens.len())?,
            eos: token_id(metadata, EOS_KEY, tokens.len())?,
            add_bos: metadata.flag(ADD_BOS_KEY)?.unwrap_or(row.add_bos),
            stop_token_ids: stop_token_ids(metadata, tokens, &kinds)?,
            splitter: Splitter::new(row),
            normalize: row.normalize,
            token_bytes: token_bytes(tokens, &kinds, &alphabet),
            bpe,
            alphabet,
            kinds,
        })
    }

    /// The tokens of `text`. Adds no BOS. A byte the vocabulary has no token for (SmolLM2 lacks some control
    /// characters) leaves no trace, as in Hugging Face and llama.cpp.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, EncodeError> {
        let added = match special {
            SpecialTokens::Parse => &self.all_added,
            SpecialTokens::AsText => &self.user_defined,
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut start = 0;
        for (range, token) in added.find_in(text) {
            self.encode_plain(&text[start..range.start], &mut ids)?;
            ids.push(token);
            start = range.end;
        }
        self.encode_plain(&text[start..], &mut ids)?;
        Ok(ids)
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        let text = if self.normalize {
            normal_form_c(text)
        } else {
            Cow::Borrowed(text)
        };
        let mut spelled = String::new();
        let mut outcome = Ok(());
        self.splitter.split(&text, &mut |piece| {
            if outcome.is_err() {
                return;
            }
            self.alphabet.spell(piece, &mut spelled);
            match self.bpe.tokenize(&spelled) {
                Ok(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                Err(source) => {
                    let n_bytes = piece.len();
                    outcome = Err(EncodeError { n_bytes, source });
                }
            }
        });
        outcome
    }

    /// The bytes a token stands for; of a control token, its name; none outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.token_bytes.of(token)
    }

    /// What each token adds to an answer's text: control tokens nothing.
    pub fn text_bytes(&self) -> TokenBytes {
        TokenBytes::new((0..self.n_vocab() as u32).map(|token| match self.kind(token) {
            TokenKind::Control => &[],
            _ => self.token_bytes(token),
        }))
    }

    /// The text of `tokens`, control tokens by their names, impossible bytes as U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut bytes = Vec::new();
        tokens
            .iter()
            .for_each(|&token| bytes.extend_from_slice(self.token_bytes(token)));
        match String::from_utf8_lossy(&bytes) {
            Cow::Borrowed(_) => String::from_utf8(bytes).expect("just found valid"),
            Cow::Owned(text) => text,
        }
    }

    /// Number of tokens; ids are below it.
    pub fn n_vocab(&self) -> usize {
        self.kinds.len()
    }

    /// What a token is for. Panics on an id outside the vocabulary.
    pub fn kind(&self, token: u32) -> TokenKind {
        self.kinds[token as usize]
    }

    /// Whether it is a control token.
    pub fn is_special(&self, token: u32) -> bool {
        self.kind(token) == TokenKind::Control
    }

    /// The token that starts a sequence, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a sequence, where the file names one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether the model expects BOS before a prompt.
    pub fn add_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// Every token that ends an answer, ascending: those the metadata names as end of sequence, turn or
    /// message, and control tokens with a well-known name.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.stop_token_ids
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Tokenizer");
        debug.field("n_vocab", &self.n_vocab()).finish_non_exhaustive()
    }
}

/// Tokens that are looked for in the text before it is cut: the longest of those that start first.
struct AddedTokens {
    matcher: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl AddedTokens {
    fn new(tokens: &Strings, kinds: &[TokenKind], wanted: &[TokenKind]) -> Self {
        let added = |(idx, text): &(usize, &str)| wanted.contains(&kinds[*idx]) && !text.is_empty();
        let (ids, texts): (Vec<u32>, Vec<&str>) = tokens
            .iter()
            .enumerate()
            .filter(added)
            .map(|(idx, text)| (idx as u32, text))
            .unzip();
        let matcher = (!ids.is_empty()).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(texts)
                .expect("the names of a vocabulary that was read are far below the automaton's limits")
        });
        AddedTokens { matcher, ids }
    }

    fn find_in(&self, text: &str) -> impl Iterator<Item = (std::ops::Range<usize>, u32)> {
        let found = self
            .matcher
            .iter()
            .flat_map(move |matcher| matcher.find_iter(text));
        found.map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
    }
}

fn normal_form_c(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let mut normalized = NormalizedString::from(text);
    normalized.nfc();
    Cow::Owned(normalized.get().to_owned())
}

fn token_kinds(metadata: &Metadata, n_tokens: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    let numbers = required(TYPES_KEY, metadata.integers(TYPES_KEY))?;
    if numbers.len() != n_tokens || u32::try_from(n_tokens).is_err() {
        return Err(TokenizerError::Key(KeyError::OutOfRange {
            key: TYPES_KEY.to_owned(),
            value: format!("an array of {}", numbers.len()),
            limit: format!("as long as the vocabulary of {n_tokens}"),
        }));
    }
    let kind = |(idx, number): (usize, &i64)| match number {
        // A byte token in a byte-level vocabulary is a token like any other.
        1 | 6 => Ok(TokenKind::Normal),
        // The unknown token is a control token here: byte-level text never needs it.
        2 | 3 => Ok(TokenKind::Control),
        4 => Ok(TokenKind::UserDefined),
        5 => Ok(TokenKind::Unused),
        other => Err(TokenizerError::BadEntry {
            what: "token type",
            idx,
            text: other.to_string(),
            reason: "must be 1 to 6",
        }),
    };
    numbers.iter().enumerate().map(kind).collect()
}

fn build_bpe(
    tokens: &Strings,
    kinds: &[TokenKind],
    merges: &Strings,
    ignore_merges: bool,
) -> Result<BPE, TokenizerError> {
    let mut vocabulary = Vocab::with_capacity(tokens.len());
    for (idx, text) in tokens.iter().enumerate() {
        if matches!(kinds[idx], TokenKind::Control | TokenKind::Unused) {
            continue;
        }
        if vocabulary.insert(text.to_owned(), idx as u32).is_some() {
            return Err(bad_entry("token", idx, text, "appears twice"));
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (idx, merge) in merges.iter().enumerate() {
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(bad_entry("merge", idx, merge, "is no pair"));
        };
        pairs.push((left.to_owned(), right.to_owned()));
    }
    BPE::builder()
        .vocab_and_merges(vocabulary, pairs)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(TokenizerError::Merges)
}

fn token_bytes(tokens: &Strings, kinds: &[TokenKind], alphabet: &ByteAlphabet) -> TokenBytes {
    let mut bytes = Vec::new();
    let mut ranges = Vec::with_capacity(tokens.len());
    for (text, kind) in tokens.iter().zip(kinds) {
        let start = bytes.len();
        match kind {
            TokenKind::Normal => alphabet.read(text, &mut bytes),
            _ => bytes.extend_from_slice(text.as_bytes()),
        }
        ranges.push(start..bytes.len());
    }
    TokenBytes::new(ranges.into_iter().map(|range| &bytes[range]))
}

fn bad_entry(what: &'static str, idx: usize, text: &str, reason: &'static str) -> TokenizerError {
    let text = text.to_owned();
    TokenizerError::BadEntry {
        what,
        idx,
        text,
        reason,
    }
}

fn token_id(metadata: &Metadata, key: &str, n_tokens: usize) -> Result<Option<u32>, KeyError> {
    match metadata.unsigned(key)? {
        Some(id) if id >= n_tokens as u64 => Err(KeyError::OutOfRange {
            key: key.to_owned(),
            value: id.to_string(),
            limit: format!("below the vocabulary of {n_tokens}"),
        }),
        id => Ok(id.map(|id| id as u32)),
    }
}

fn stop_token_ids(
    metadata: &Metadata,
    tokens: &Strings,
    kinds: &[TokenKind],
) -> Result<Vec<u32>, TokenizerError> {
    let mut ids = Vec::new();
    for key in STOP_KEYS {
        ids.extend(token_id(metadata, key, tokens.len())?);
    }
    for (idx, text) in tokens.iter().enumerate() {
        if kinds[idx] == TokenKind::Control && STOP_NAMES.contains(&text) {
            ids.push(idx as u32);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
