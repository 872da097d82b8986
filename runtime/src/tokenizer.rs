//! Text to tokens and back: BPE rebuilt from GGUF metadata or from a `tokenizer.json`.
//!
//! ```text
//! text ─ added tokens cut out ─ normalized ─ pieces (split) ─ spelled ─ merges ─ ids
//! ```
//!
//! The merges are those of Hugging Face's `tokenizers`; what comes before them is done here, in time linear
//! in the text. Two ways of spelling: byte-level BPE writes every byte as a printable character,
//! SentencePiece BPE writes blanks as `▁` and falls back to tokens like `<0x0A>`.
//!
//! Kinds of tokens, as GGUF numbers them: *control* tokens (`<|im_end|>`) steer the model and exist for
//! templates only; *user-defined* tokens are ordinary text that is never cut. Text encoded
//! [`SpecialTokens::AsText`] can yield user-defined tokens but no control token, whatever it spells: control
//! tokens are not in the vocabulary the merges work on.

mod added;
mod bytes;
mod gguf;
mod json;
mod normalize;
mod sentencepiece;
mod split;

use std::borrow::Cow;
use std::collections::HashSet;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use crate::model::metadata::{KeyError, Strings};
use crate::token_bytes::TokenBytes;
use added::AddedTokens;
use bytes::ByteAlphabet;
pub use json::JsonSettings;
use normalize::{Normalizer, SPACE_MARK};
pub use sentencepiece::SENTENCEPIECE_FILE;
use split::Splitter;

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
    /// A `tokenizer.json` that is none, or that asks for something that is not done here.
    #[error("{TOKENIZER_JSON}: {0}")]
    Json(#[from] serde_json::Error),
    /// A tokenizer that is no BPE.
    #[error("tokenizer model `{found}` is not supported (byte-level and SentencePiece BPE are)")]
    UnsupportedModel {
        /// The name in the file.
        found: String,
    },
    /// A `tokenizer.model` that is none.
    #[error("{SENTENCEPIECE_FILE} is no SentencePiece model")]
    BadSentencePiece,
    /// A `tokenizer.model` that changes text before it is cut.
    #[error("{SENTENCEPIECE_FILE}: normalizer `{value}` is not supported")]
    UnsupportedNormalizer {
        /// What it does.
        value: String,
    },
    /// Something in a `tokenizer.json` that changes the tokens and is not done here.
    #[error("{TOKENIZER_JSON}: `{what}` = {value} is not supported")]
    Unsupported {
        /// The setting.
        what: &'static str,
        /// What it asks for.
        value: String,
    },
    /// Unknown rules for cutting text; guessing would give wrong tokens without a sign of it.
    #[error("pre-tokenizer `{found}` is not known (known: {})", known.join(", "))]
    UnknownPreTokenizer {
        /// The name in the file.
        found: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// A pattern for cutting text that cannot be run in linear time.
    #[error("{TOKENIZER_JSON}: cannot use the pattern `{pattern}`: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// Why not.
        reason: String,
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

const TOKENIZER_JSON: &str = "tokenizer.json";

/// Longest piece of a client's text that the merges work on, in bytes: they take some 60 bytes of memory for
/// each.
const MAX_PIECE_BYTES: usize = 1 << 20;

/// Why a text could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The merges failed.
    #[error("encoding a piece of {n_bytes} bytes: {source}")]
    Merges {
        /// Length of the piece.
        n_bytes: usize,
        /// What the merges reported.
        #[source]
        source: tokenizers::Error,
    },
    /// The text has more tokens than were wanted.
    #[error("the text has more than {limit} tokens")]
    TooManyTokens {
        /// Most tokens wanted.
        limit: usize,
    },
    /// The tokenizer's rules cut the text nowhere for too long.
    #[error(
        "the text has a piece of {n_bytes} bytes that is not cut into words, at most {limit} are possible"
    )]
    PieceTooLong {
        /// Length of the piece.
        n_bytes: usize,
        /// Longest piece.
        limit: usize,
    },
}

/// How pieces are written for the merges, and tokens read back.
enum Spelling {
    /// Every byte as one printable character.
    ByteLevel(Box<ByteAlphabet>),
    /// As they are; blanks are marks by then.
    SentencePiece,
}

impl Spelling {
    fn spell<'s>(&self, piece: &'s str, buffer: &'s mut String) -> &'s str {
        match self {
            Spelling::SentencePiece => piece,
            Spelling::ByteLevel(alphabet) => {
                alphabet.spell(piece, buffer);
                buffer
            }
        }
    }

    /// Appends the bytes that a normal token stands for.
    fn read(&self, token: &str, out: &mut Vec<u8>) {
        match self {
            Spelling::ByteLevel(alphabet) => alphabet.read(token, out),
            Spelling::SentencePiece => match byte_of(token) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(token.replace(SPACE_MARK, " ").as_bytes()),
            },
        }
    }
}

/// The byte of a fallback token, `<0x0A>`.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).expect("two hexadecimal digits"))
}

/// What a tokenizer is put together from, whatever file it came from.
struct Parts {
    tokens: Strings,
    kinds: Vec<TokenKind>,
    /// Tokens that the merges may make, by their spelling.
    vocabulary: Vocab,
    merges: Merges,
    /// A piece that is a token is taken whole, whatever the merges make of it.
    ignore_merges: bool,
    /// Added tokens that are looked for in the text once it is normalized; the others before.
    found_normalized: HashSet<u32>,
    normalizer: Normalizer,
    splitter: Splitter,
    spelling: Spelling,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    /// Tokens the file says end an answer.
    stop_token_ids: Vec<u32>,
}

/// Added tokens found before and after normalization.
struct AddedSets {
    raw: AddedTokens,
    normalized: AddedTokens,
}

impl AddedSets {
    fn new(parts: &Parts, wanted: &[TokenKind]) -> AddedSets {
        let is_wanted = |(idx, _): &(usize, &str)| wanted.contains(&parts.kinds[*idx]);
        let tokens = parts.tokens.iter().enumerate().filter(is_wanted);
        let tokens = tokens.map(|(idx, text)| (idx as u32, text.to_owned()));
        let (normalized, raw): (Vec<_>, Vec<_>) =
            tokens.partition(|(id, _)| parts.found_normalized.contains(id));
        let normalize = |(id, text): (u32, String)| (id, parts.normalizer.apply(&text).into_owned());
        AddedSets {
            raw: AddedTokens::new(raw.into_iter()),
            normalized: AddedTokens::new(normalized.into_iter().map(normalize)),
        }
    }
}

/// A model's vocabulary and how text becomes tokens of it.
pub struct Tokenizer {
    bpe: BPE,
    spelling: Spelling,
    normalizer: Normalizer,
    splitter: Splitter,
    kinds: Vec<TokenKind>,
    token_bytes: TokenBytes,
    /// Bytes of the longest token, as the merges spell it.
    longest_token: usize,
    /// Control and user-defined tokens, found in text when parsing.
    all_added: AddedSets,
    /// User-defined tokens only, found in any text.
    user_defined: AddedSets,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    stop_token_ids: Vec<u32>,
}

impl Tokenizer {
    /// One token for every byte, as far as `n_vocab` goes, and tokens that no text yields: for models whose
    /// weights are made up.
    pub fn of_bytes(n_vocab: usize) -> Tokenizer {
        let alphabet = ByteAlphabet::new();
        let (mut tokens, mut vocabulary) = (Strings::default(), Vocab::new());
        for id in 0..n_vocab {
            match u8::try_from(id) {
                Ok(byte) => {
                    let text = alphabet.char_of(byte).to_string();
                    tokens.push(&text);
                    vocabulary.insert(text, id as u32);
                }
                Err(_) => tokens.push(&format!(" t{id}")),
            }
        }
        let kind = |id| {
            if id < 256 {
                TokenKind::Normal
            } else {
                TokenKind::Unused
            }
        };
        let parts = Parts {
            tokens,
            kinds: (0..n_vocab).map(kind).collect(),
            vocabulary,
            merges: Vec::new(),
            ignore_merges: false,
            found_normalized: HashSet::new(),
            normalizer: Normalizer::default(),
            splitter: Splitter::default(),
            spelling: Spelling::ByteLevel(Box::new(alphabet)),
            bos: None,
            eos: None,
            pad: None,
            add_bos: false,
            stop_token_ids: Vec::new(),
        };
        Tokenizer::assemble(parts).expect("a vocabulary without merges is consistent")
    }

    fn assemble(parts: Parts) -> Result<Tokenizer, TokenizerError> {
        let all_added = AddedSets::new(&parts, &[TokenKind::Control, TokenKind::UserDefined]);
        let user_defined = AddedSets::new(&parts, &[TokenKind::UserDefined]);
        let Parts { tokens, kinds, .. } = &parts;
        let mut stop_token_ids = parts.stop_token_ids.clone();
        for (idx, text) in tokens.iter().enumerate() {
            if kinds[idx] == TokenKind::Control && STOP_NAMES.contains(&text) {
                stop_token_ids.push(idx as u32);
            }
        }
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        let token_bytes = token_bytes(tokens, kinds, &parts.spelling);
        let longest_token = parts.vocabulary.keys().map(String::len).max().unwrap_or(1);
        let is_sentencepiece = matches!(parts.spelling, Spelling::SentencePiece);
        let bpe = BPE::builder()
            .vocab_and_merges(parts.vocabulary, parts.merges)
            .ignore_merges(parts.ignore_merges)
            .byte_fallback(is_sentencepiece)
            .build()
            .map_err(TokenizerError::Merges)?;
        Ok(Tokenizer {
            bpe,
            all_added,
            user_defined,
            spelling: parts.spelling,
            normalizer: parts.normalizer,
            splitter: parts.splitter,
            kinds: parts.kinds,
            token_bytes,
            longest_token,
            bos: parts.bos,
            eos: parts.eos,
            pad: parts.pad,
            add_bos: parts.add_bos,
            stop_token_ids,
        })
    }

    /// The tokens of `text`. Adds no BOS. A byte the vocabulary has no token for (SmolLM2 lacks some control
    /// characters) leaves no trace, as in Hugging Face and llama.cpp.
    ///
    /// # Errors
    /// Where the merges fail.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, EncodeError> {
        self.encode_bounded(text, special, (usize::MAX, usize::MAX))
    }

    /// The tokens of a client's `text` if there are at most `limit`. Takes time and memory for that many,
    /// however long the text is.
    ///
    /// # Errors
    /// Where there are more tokens, and where a piece that is not cut into words is longer than a mebibyte.
    pub fn encode_within(
        &self,
        text: &str,
        special: SpecialTokens,
        limit: usize,
    ) -> Result<Vec<u32>, EncodeError> {
        self.encode_bounded(text, special, (limit, MAX_PIECE_BYTES))
    }

    fn encode_bounded(
        &self,
        text: &str,
        special: SpecialTokens,
        (limit, longest_piece): (usize, usize),
    ) -> Result<Vec<u32>, EncodeError> {
        let added = match special {
            SpecialTokens::Parse => &self.all_added,
            SpecialTokens::AsText => &self.user_defined,
        };
        let mut encoding = Encoding {
            tokenizer: self,
            ids: Vec::with_capacity(text.len().min(limit) / 3 + 1),
            limit,
            longest_piece,
            buffer: String::new(),
        };
        encoding.text(text, added)?;
        Ok(encoding.ids)
    }

    /// The bytes a token stands for; of a control token, its name; none outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.token_bytes.of(token)
    }

    /// What each token adds to an answer's text: control tokens nothing, unless they are called like one of
    /// `shown`.
    pub fn text_bytes(&self, shown: &[&str]) -> TokenBytes {
        let is_shown = |token| {
            shown
                .iter()
                .any(|name| name.as_bytes() == self.token_bytes(token))
        };
        TokenBytes::new((0..self.n_vocab() as u32).map(|token| match self.kind(token) {
            TokenKind::Control if !is_shown(token) => &[],
            _ => self.token_bytes(token),
        }))
    }

    /// The bytes that each token stands for; of control tokens, their names.
    pub fn named_bytes(&self) -> TokenBytes {
        TokenBytes::new((0..self.n_vocab() as u32).map(|token| self.token_bytes(token)))
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

    /// The token that fills up rows in batches of some programs, where the file names one.
    pub fn pad(&self) -> Option<u32> {
        self.pad
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

/// The tokens of a text as far as it was read.
struct Encoding<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// Most of them.
    limit: usize,
    /// Bytes of the longest piece.
    longest_piece: usize,
    /// For spelling pieces.
    buffer: String,
}

impl Encoding<'_> {
    fn text(&mut self, text: &str, added: &AddedSets) -> Result<(), EncodeError> {
        let mut start = 0;
        for (range, token) in added.raw.find_in(text) {
            self.segment(&text[start..range.start], start == 0, added)?;
            self.push(token)?;
            start = range.end;
        }
        self.segment(&text[start..], start == 0, added)
    }

    /// Text between added tokens; `is_first` where it starts the whole text.
    fn segment(&mut self, segment: &str, is_first: bool, added: &AddedSets) -> Result<(), EncodeError> {
        if segment.is_empty() {
            return Ok(());
        }
        let text = self.tokenizer.normalizer.apply(segment);
        let mut start = 0;
        for (range, token) in added.normalized.find_in(&text) {
            self.plain(&text[start..range.start], is_first && start == 0)?;
            self.push(token)?;
            start = range.end;
        }
        self.plain(&text[start..], is_first && start == 0)
    }

    /// Normalized text without added tokens.
    fn plain(&mut self, text: &str, is_first: bool) -> Result<(), EncodeError> {
        if text.is_empty() {
            return Ok(());
        }
        let text = self.tokenizer.normalizer.mark_blanks(text, is_first);
        self.tokenizer
            .splitter
            .split(&text, &mut |piece| self.piece(piece))
    }

    /// What the merges work on.
    fn piece(&mut self, piece: &str) -> Result<(), EncodeError> {
        let n_bytes = piece.len();
        let fewest = n_bytes / self.tokenizer.longest_token;
        if fewest > self.limit - self.ids.len() {
            return Err(EncodeError::TooManyTokens { limit: self.limit });
        }
        if n_bytes > self.longest_piece {
            let limit = self.longest_piece;
            return Err(EncodeError::PieceTooLong { n_bytes, limit });
        }
        let spelled = self.tokenizer.spelling.spell(piece, &mut self.buffer);
        let merged = self.tokenizer.bpe.tokenize(spelled);
        for token in merged.map_err(|source| EncodeError::Merges { n_bytes, source })? {
            self.push(token.id)?;
        }
        Ok(())
    }

    fn push(&mut self, token: u32) -> Result<(), EncodeError> {
        if self.ids.len() == self.limit {
            return Err(EncodeError::TooManyTokens { limit: self.limit });
        }
        self.ids.push(token);
        Ok(())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Tokenizer");
        debug.field("n_vocab", &self.n_vocab()).finish_non_exhaustive()
    }
}

fn token_bytes(tokens: &Strings, kinds: &[TokenKind], spelling: &Spelling) -> TokenBytes {
    let mut bytes = Vec::new();
    let mut ranges = Vec::with_capacity(tokens.len());
    for (text, kind) in tokens.iter().zip(kinds) {
        let start = bytes.len();
        match kind {
            TokenKind::Normal => spelling.read(text, &mut bytes),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_text_is_read_up_to_a_number_of_tokens_and_a_length_of_pieces() {
        let tokenizer = Tokenizer::of_bytes(257);
        let within = |n_bytes: usize, limit| {
            let ids = tokenizer.encode_within(&"a".repeat(n_bytes), SpecialTokens::AsText, limit);
            ids.map(|ids| ids.len())
        };
        assert_eq!(within(10, 10).expect("no more than that"), 10);
        for n_bytes in [11, MAX_PIECE_BYTES + 1] {
            let more = within(n_bytes, 10).expect_err("one more at least");
            assert!(matches!(more, EncodeError::TooManyTokens { limit: 10 }), "{more}");
        }
        let n_bytes = MAX_PIECE_BYTES + 1;
        let long = within(n_bytes, usize::MAX).expect_err("one piece");
        let limit = MAX_PIECE_BYTES;
        assert!(
            matches!(long, EncodeError::PieceTooLong { n_bytes: n, limit: l } if (n, l) == (n_bytes, limit)),
            "{long}"
        );
    }
}
