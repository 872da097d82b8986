//! Texts and pairs of texts to the tokens of an encoder, by its `tokenizer.json`.
//!
//! The whole pipeline is that of Hugging Face's `tokenizers` (WordPiece, unigram, byte-level BPE, with the
//! special tokens around them), without the padding and truncation that a file may ask for.

use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{Encoding, PostProcessor, Tokenizer};

/// Most bytes of a text: the library takes about a hundred bytes of memory for each.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// Why a text is not encoded.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// It has more tokens than the model takes.
    #[error("the text has {n_tokens} tokens, the model takes at most {limit}")]
    TooManyTokens {
        /// Special ones included.
        n_tokens: usize,
        /// Most tokens.
        limit: usize,
    },
    /// It is too long to be encoded.
    #[error("the text has {n_bytes} bytes, at most {MAX_TEXT_BYTES} are possible")]
    TooLong {
        /// Its length.
        n_bytes: usize,
    },
    /// No token is left of it.
    #[error("the text has no tokens")]
    Empty,
    /// The tokenizer failed.
    #[error("encoding a text of {n_bytes} bytes: {source}")]
    Failed {
        /// Its length.
        n_bytes: usize,
        /// What the library reported.
        #[source]
        source: tokenizers::Error,
    },
}

/// The tokens of a text, special ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedText {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Their kinds: 1 for the second text of a pair, as far as the model knows kinds.
    pub types: Vec<u32>,
}

impl EncodedText {
    /// Tokens as a client gave them.
    pub fn of_ids(ids: Vec<u32>) -> EncodedText {
        let types = vec![0; ids.len()];
        EncodedText { ids, types }
    }
}

/// What becomes of a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLong {
    /// It is refused.
    Refuse,
    /// Its end is cut off.
    Truncate,
}

/// The tokenizer of an encoder.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// Most tokens of a text.
    max_tokens: usize,
    /// Kinds of tokens that the model knows.
    n_types: usize,
    lowercases: bool,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// Where it is none, or has a token that is not in the `n_vocab` rows of the embedding.
    pub(super) fn from_json(json: &[u8], limits: TextLimits) -> Result<TextTokenizer, tokenizers::Error> {
        let mut tokenizer = Tokenizer::from_bytes(json)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None)?;
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= limits.n_vocab {
            let n_vocab = limits.n_vocab;
            return Err(format!("token {largest} is beyond the {n_vocab} rows of the embedding").into());
        }
        Ok(TextTokenizer {
            tokenizer,
            max_tokens: limits.max_tokens,
            n_types: limits.n_types,
            lowercases: limits.lowercases,
        })
    }

    /// Most tokens of a text, or of a pair.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The tokens of a text, at most `limit` and never more than the model takes.
    ///
    /// # Errors
    /// Where it has more and is not to be cut.
    pub fn encode(&self, text: &str, limit: usize, long: TooLong) -> Result<EncodedText, TextError> {
        let encoding = self.plain(text)?;
        let limit = limit.min(self.max_tokens);
        let n_added = self.n_added(false);
        let cut = cut(&[encoding.len()], (limit, n_added), long)?;
        self.finish((encoding, cut[0]), None, text.len())
    }

    /// The tokens of a pair. Where the end is to be cut off, it is that of the second text, or of both where
    /// the first one alone is too long.
    ///
    /// # Errors
    /// Where it has too many tokens and is not to be cut.
    pub fn encode_pair(
        &self,
        (first, second): (&str, &str),
        limit: usize,
        long: TooLong,
    ) -> Result<EncodedText, TextError> {
        let encodings = [self.plain(first)?, self.plain(second)?];
        let limit = limit.min(self.max_tokens);
        let lengths = [encodings[0].len(), encodings[1].len()];
        let cut = cut(&lengths, (limit, self.n_added(true)), long)?;
        let [first_tokens, second_tokens] = encodings;
        let second_tokens = Some((second_tokens, cut[1]));
        self.finish((first_tokens, cut[0]), second_tokens, first.len() + second.len())
    }

    fn plain(&self, text: &str) -> Result<Encoding, TextError> {
        let n_bytes = text.len();
        if n_bytes > MAX_TEXT_BYTES {
            return Err(TextError::TooLong { n_bytes });
        }
        let lower = self.lowercases.then(|| text.to_lowercase());
        let text = lower.as_deref().unwrap_or(text);
        let encoded = self.tokenizer.encode_fast(text, false);
        encoded.map_err(|source| TextError::Failed { n_bytes, source })
    }

    /// Special tokens around a text or a pair.
    fn n_added(&self, is_pair: bool) -> usize {
        let processor = self.tokenizer.get_post_processor();
        processor.map_or(0, |processor| processor.added_tokens(is_pair))
    }

    /// Cuts what is too long and puts the special tokens around.
    fn finish(
        &self,
        (mut first, n_first): (Encoding, usize),
        second: Option<(Encoding, usize)>,
        n_bytes: usize,
    ) -> Result<EncodedText, TextError> {
        first.truncate(n_first, 0, TruncationDirection::Right);
        let second = second.map(|(mut second, n)| {
            second.truncate(n, 0, TruncationDirection::Right);
            second
        });
        let whole = self.tokenizer.post_process(first, second, true);
        let whole = whole.map_err(|source| TextError::Failed { n_bytes, source })?;
        if whole.is_empty() {
            return Err(TextError::Empty);
        }
        let last_type = self.n_types.saturating_sub(1) as u32;
        Ok(EncodedText {
            ids: whole.get_ids().to_vec(),
            types: whole
                .get_type_ids()
                .iter()
                .map(|kind| (*kind).min(last_type))
                .collect(),
        })
    }
}

/// What a tokenizer has to fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextLimits {
    pub(super) max_tokens: usize,
    pub(super) n_vocab: usize,
    pub(super) n_types: usize,
    pub(super) lowercases: bool,
}

/// How many tokens of each text stay, the last text cut first.
fn cut(lengths: &[usize], (limit, n_added): (usize, usize), long: TooLong) -> Result<Vec<usize>, TextError> {
    let n_tokens = lengths.iter().sum::<usize>() + n_added;
    if n_tokens <= limit {
        return Ok(lengths.to_vec());
    }
    if long == TooLong::Refuse || limit < n_added {
        return Err(TextError::TooManyTokens { n_tokens, limit });
    }
    let mut left = limit - n_added;
    let stay = |&length: &usize| {
        let stays = length.min(left);
        left -= stays;
        stays
    };
    Ok(lengths.iter().map(stay).collect())
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::tokenizer_json;
    use super::*;

    fn tokenizer(max_tokens: usize, n_types: usize) -> TextTokenizer {
        let limits = TextLimits {
            max_tokens,
            n_vocab: 32,
            n_types,
            lowercases: false,
        };
        TextTokenizer::from_json(tokenizer_json().to_string().as_bytes(), limits).expect("good")
    }

    #[test]
    fn a_text_gets_its_special_tokens_and_padding_is_ignored() {
        let text = tokenizer(12, 2)
            .encode("Hello worlds", 99, TooLong::Refuse)
            .expect("short");
        assert_eq!(text.ids, [2, 5, 6, 7, 3]);
        assert_eq!(text.types, [0; 5]);
    }

    #[test]
    fn a_pair_has_two_kinds_where_the_model_knows_them() {
        let pair = ("hello", "world world");
        let text = tokenizer(12, 2)
            .encode_pair(pair, 99, TooLong::Refuse)
            .expect("short");
        assert_eq!(text.ids, [2, 5, 3, 6, 6, 3]);
        assert_eq!(text.types, [0, 0, 0, 1, 1, 1]);
        let text = tokenizer(12, 0)
            .encode_pair(pair, 99, TooLong::Refuse)
            .expect("short");
        assert_eq!(text.types, [0; 6]);
    }

    #[test]
    fn what_is_too_long_is_refused_with_the_numbers_or_cut_before_its_last_special_token() {
        let long = "hello world hello world hello world hello world";
        let tokenizer = tokenizer(6, 2);
        let error = tokenizer
            .encode(long, 99, TooLong::Refuse)
            .expect_err("10 tokens");
        assert_eq!(
            error.to_string(),
            "the text has 10 tokens, the model takes at most 6"
        );
        let text = tokenizer.encode(long, 99, TooLong::Truncate).expect("cut");
        assert_eq!(text.ids, [2, 5, 6, 5, 6, 3]);
        let text = tokenizer.encode(long, 3, TooLong::Truncate).expect("cut");
        assert_eq!(text.ids, [2, 5, 3]);
        let error = tokenizer.encode(long, 1, TooLong::Truncate).expect_err("no room");
        assert_eq!(
            error.to_string(),
            "the text has 10 tokens, the model takes at most 1"
        );
    }

    #[test]
    fn of_a_pair_the_second_text_is_cut_first() {
        let tokenizer = tokenizer(7, 2);
        let pair = ("hello hello", "world world world");
        let text = tokenizer.encode_pair(pair, 99, TooLong::Truncate).expect("cut");
        assert_eq!(text.ids, [2, 5, 5, 3, 6, 6, 3]);
        let pair = ("hello hello hello hello hello", "world");
        let text = tokenizer.encode_pair(pair, 99, TooLong::Truncate).expect("cut");
        assert_eq!(text.ids, [2, 5, 5, 5, 5, 3, 3]);
    }

    #[test]
    fn a_text_of_more_than_a_mebibyte_is_refused() {
        let text = "a".repeat(MAX_TEXT_BYTES + 1);
        let error = tokenizer(6, 2)
            .encode(&text, 99, TooLong::Truncate)
            .expect_err("too long");
        assert_eq!(
            error.to_string(),
            "the text has 1048577 bytes, at most 1048576 are possible"
        );
    }

    #[test]
    fn a_vocabulary_beyond_the_embedding_is_refused() {
        let limits = TextLimits {
            max_tokens: 9,
            n_vocab: 7,
            n_types: 2,
            lowercases: false,
        };
        let made = TextTokenizer::from_json(tokenizer_json().to_string().as_bytes(), limits);
        let error = made.expect_err("8 tokens").to_string();
        assert_eq!(error, "token 7 is beyond the 7 rows of the embedding");
    }
}
