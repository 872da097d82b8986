//! Tokenizers from GGUF metadata.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::{Merges, Vocab};

use super::bytes::ByteAlphabet;
use super::normalize::{Normalizer, SPACE_MARK, Step};
use super::split::{self, PreTokenizer, Splitter};
use super::{Parts, Spelling, TokenKind, Tokenizer, TokenizerError, bad_entry};
use crate::model::metadata::{KeyError, Metadata, Strings, required};

pub(super) const MODEL_KEY: &str = "tokenizer.ggml.model";
const PRE_KEY: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
pub(super) const SCORES_KEY: &str = "tokenizer.ggml.scores";
pub(super) const TYPES_KEY: &str = "tokenizer.ggml.token_type";
const MERGES_KEY: &str = "tokenizer.ggml.merges";
pub(super) const ADD_BOS_KEY: &str = "tokenizer.ggml.add_bos_token";
pub(super) const ADD_BLANK_KEY: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const BOS_KEY: &str = "tokenizer.ggml.bos_token_id";
pub(super) const EOS_KEY: &str = "tokenizer.ggml.eos_token_id";
pub(super) const PAD_KEY: &str = "tokenizer.ggml.padding_token_id";

/// Metadata keys of tokens that end an answer: end of sequence, of turn, of message.
const STOP_KEYS: [&str; 3] = [
    EOS_KEY,
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];

/// Longest token of a SentencePiece vocabulary, in bytes: merges are made from all cuts of a token.
const MAX_TOKEN_BYTES: usize = 512;

/// What byte-level and SentencePiece vocabularies have in different ways.
struct Scheme {
    merges: Merges,
    ignore_merges: bool,
    normalizer: Normalizer,
    splitter: Splitter,
    spelling: Spelling,
    /// Whether a prompt starts with BOS where the file does not say.
    add_bos: bool,
}

impl Tokenizer {
    /// Rebuilds the tokenizer a GGUF file describes.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer, TokenizerError> {
        let model = required(MODEL_KEY, metadata.text(MODEL_KEY))?;
        let tokens = required(TOKENS_KEY, metadata.strings(TOKENS_KEY))?;
        let kinds = token_kinds(metadata, tokens.len())?;
        let vocabulary = vocabulary(tokens, &kinds)?;
        let scheme = match model {
            "gpt2" => byte_level(metadata)?,
            "llama" => sentencepiece(metadata, tokens, &kinds, &vocabulary)?,
            other => {
                let found = other.to_owned();
                return Err(TokenizerError::UnsupportedModel { found });
            }
        };
        let mut stop_token_ids = Vec::new();
        for key in STOP_KEYS {
            stop_token_ids.extend(token_id(metadata, key, tokens.len())?);
        }
        Tokenizer::assemble(Parts {
            vocabulary,
            merges: scheme.merges,
            ignore_merges: scheme.ignore_merges,
            found_normalized: HashSet::new(),
            normalizer: scheme.normalizer,
            splitter: scheme.splitter,
            spelling: scheme.spelling,
            bos: token_id(metadata, BOS_KEY, tokens.len())?,
            eos: token_id(metadata, EOS_KEY, tokens.len())?,
            // It is told to clients and never used: files that name one outside the vocabulary serve well.
            pad: token_id(metadata, PAD_KEY, tokens.len()).unwrap_or_default(),
            add_bos: metadata.flag(ADD_BOS_KEY)?.unwrap_or(scheme.add_bos),
            stop_token_ids,
            tokens: tokens.clone(),
            kinds,
        })
    }
}

fn byte_level(metadata: &Metadata) -> Result<Scheme, TokenizerError> {
    let pre = required(PRE_KEY, metadata.text(PRE_KEY))?;
    let row = PreTokenizer::named(pre).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
        found: pre.to_owned(),
        known: split::names(),
    })?;
    let steps = if row.normalize {
        vec![Step::FormC]
    } else {
        Vec::new()
    };
    let merges = required(MERGES_KEY, metadata.strings(MERGES_KEY))?;
    Ok(Scheme {
        merges: pairs(merges)?,
        ignore_merges: row.ignore_merges,
        normalizer: Normalizer { steps, marks: None },
        splitter: Splitter::of_row(row),
        spelling: Spelling::ByteLevel(Box::new(ByteAlphabet::new())),
        add_bos: row.add_bos,
    })
}

fn sentencepiece(
    metadata: &Metadata,
    tokens: &Strings,
    kinds: &[TokenKind],
    vocabulary: &Vocab,
) -> Result<Scheme, TokenizerError> {
    let scores = required(SCORES_KEY, metadata.floats(SCORES_KEY))?;
    if scores.len() != tokens.len() {
        return Err(TokenizerError::Key(KeyError::OutOfRange {
            key: SCORES_KEY.to_owned(),
            value: format!("an array of {}", scores.len()),
            limit: format!("as long as the vocabulary of {}", tokens.len()),
        }));
    }
    let mut steps = vec![Step::Replace(" ".to_owned(), SPACE_MARK.to_owned())];
    if metadata.flag(ADD_BLANK_KEY)?.unwrap_or(true) {
        steps.insert(0, Step::Prepend(SPACE_MARK.to_owned()));
    }
    Ok(Scheme {
        merges: merges_by_score(tokens, kinds, scores, vocabulary)?,
        ignore_merges: false,
        normalizer: Normalizer { steps, marks: None },
        splitter: Splitter::default(),
        spelling: Spelling::SentencePiece,
        add_bos: true,
    })
}

/// SentencePiece joins the two neighbours whose union has the best score. As ranked merges that is: every cut
/// of every token into two tokens, the best token first.
fn merges_by_score(
    tokens: &Strings,
    kinds: &[TokenKind],
    scores: &[f64],
    vocabulary: &Vocab,
) -> Result<Merges, TokenizerError> {
    let mut ranked: Vec<(f64, usize, usize, usize)> = Vec::new();
    for (idx, text) in tokens.iter().enumerate() {
        if kinds[idx] != TokenKind::Normal || super::byte_of(text).is_some() {
            continue;
        }
        if text.len() > MAX_TOKEN_BYTES {
            return Err(bad_entry("token", idx, text, "is longer than 512 bytes"));
        }
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if let (Some(&left), Some(&right)) = (vocabulary.get(left), vocabulary.get(right)) {
                ranked.push((scores[idx], left as usize, right as usize, idx));
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    let pair = |(_, left, right, _): (f64, usize, usize, usize)| {
        (tokens.at(left).to_owned(), tokens.at(right).to_owned())
    };
    Ok(ranked.into_iter().map(pair).collect())
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
        // A byte token is a token like any other.
        1 | 6 => Ok(TokenKind::Normal),
        // The unknown token is a control token here: text never needs it.
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

fn vocabulary(tokens: &Strings, kinds: &[TokenKind]) -> Result<Vocab, TokenizerError> {
    let mut seen: HashMap<&str, u32> = HashMap::with_capacity(tokens.len());
    for (idx, text) in tokens.iter().enumerate() {
        if matches!(kinds[idx], TokenKind::Control | TokenKind::Unused) {
            continue;
        }
        if seen.insert(text, idx as u32).is_some() {
            return Err(bad_entry("token", idx, text, "appears twice"));
        }
    }
    Ok(seen.into_iter().map(|(text, id)| (text.to_owned(), id)).collect())
}

fn pairs(merges: &Strings) -> Result<Merges, TokenizerError> {
    let pair = |(idx, merge): (usize, &str)| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(bad_entry("merge", idx, merge, "is no pair")),
    };
    merges.iter().enumerate().map(pair).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::metadata::Value;

    #[test]
    fn a_pad_token_is_one_of_the_vocabulary_or_none() {
        let pad = |id: Option<Value>| {
            let text = |text: &str| Value::Text(text.to_owned());
            let metadata = Metadata::default()
                .with(MODEL_KEY, text("gpt2"))
                .with(PRE_KEY, text("smollm"))
                .with(TOKENS_KEY, Value::Strings(["<pad>", "a"].into_iter().collect()))
                .with(TYPES_KEY, Value::Integers(vec![3, 1]))
                .with(MERGES_KEY, Value::Strings(Strings::default()));
            let metadata = match id {
                Some(id) => metadata.with(PAD_KEY, id),
                None => metadata,
            };
            Tokenizer::from_metadata(&metadata).expect("a vocabulary").pad()
        };
        assert_eq!(pad(Some(Value::Unsigned(0))), Some(0));
        assert_eq!(pad(Some(Value::Unsigned(2))), None, "the model does well without");
        assert_eq!(pad(None), None);
    }
}
