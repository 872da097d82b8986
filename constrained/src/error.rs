//! Why a grammar is refused, and why a running one ends.

/// Why a grammar was not compiled. A request with such a grammar is a bad request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The schema's text is not JSON.
    #[error("schema is not JSON at byte {offset}: {what}")]
    Json {
        /// Where reading stopped.
        offset: usize,
        /// What was wrong there.
        what: &'static str,
    },
    /// The schema asks for something that would not be enforced.
    #[error("{pointer}: `{keyword}` is not supported: {why}")]
    Unsupported {
        /// JSON pointer of the schema that holds the keyword, as a URI fragment (`#/properties/a`).
        pointer: String,
        /// The keyword.
        keyword: String,
        /// What about it.
        why: String,
    },
    /// The schema is malformed.
    #[error("{pointer}: `{keyword}` is malformed: {why}")]
    Malformed {
        /// JSON pointer of the schema that holds the keyword.
        pointer: String,
        /// The keyword.
        keyword: String,
        /// What is wrong.
        why: String,
    },
    /// A regular expression cannot be used.
    #[error("regular expression `{pattern}`: {why}")]
    Regex {
        /// Its source, shortened.
        pattern: String,
        /// What is wrong.
        why: String,
    },
    /// A grammar's text cannot be used.
    #[error("grammar at line {line}, column {column}: {why}")]
    Syntax {
        /// One-based.
        line: usize,
        /// One-based, in characters.
        column: usize,
        /// What is wrong.
        why: String,
    },
    /// The markers of a free text exclude each other.
    #[error("markers of a free text: {why}")]
    Markers {
        /// Which, and how.
        why: String,
    },
    /// No text satisfies the grammar, or none that this vocabulary can spell.
    #[error("no output can satisfy the grammar: {why}")]
    Empty {
        /// What is known about the reason.
        why: String,
    },
    /// A limit was hit.
    #[error("limit `{name}` of {limit} exceeded at {place}")]
    Limit {
        /// The field of [`crate::Limits`].
        name: &'static str,
        /// Its value.
        limit: u64,
        /// Where: a JSON pointer, a rule, a pattern.
        place: String,
    },
}

impl CompileError {
    /// The same error of a schema that stands at `place` in something larger.
    pub(crate) fn within(mut self, place: &str) -> Self {
        if let Self::Unsupported { pointer, .. } | Self::Malformed { pointer, .. } = &mut self {
            *pointer = within(place, std::mem::take(pointer));
        }
        if let Self::Limit { place: inner, .. } = &mut self {
            *inner = format!("{place}: {inner}");
        }
        self
    }
}

/// The JSON pointer `pointer` of a schema that stands at `place` in something larger.
pub(crate) fn within(place: &str, pointer: String) -> String {
    match pointer.strip_prefix('#') {
        Some(rest) => format!("{place}{rest}"),
        None => pointer,
    }
}

/// Why a matcher does not do what it was asked; it has not moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatchError {
    /// The token is not allowed here.
    #[error("token {token} is not allowed by the grammar")]
    Refused {
        /// The token.
        token: u32,
    },
    /// More tokens were to be taken back than were ever taken.
    #[error("cannot take back {n} tokens of {n_taken}")]
    Rollback {
        /// Asked for.
        n: usize,
        /// Possible.
        n_taken: usize,
    },
}

/// Why a vocabulary cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyError {
    /// There are no tokens, or more than 2^24.
    #[error("a vocabulary of {n} tokens; 1 to 16,777,216 are possible")]
    Size {
        /// How many.
        n: usize,
    },
    /// A token that ends the text is not in the vocabulary.
    #[error("end-of-text token {token} is outside the vocabulary of {n} tokens")]
    Eos {
        /// The token.
        token: u32,
        /// The vocabulary's size.
        n: usize,
    },
    /// A special token that has a name is not in the vocabulary or has text.
    #[error("special token {token} is outside the vocabulary of {n} tokens, or has text")]
    Special {
        /// The token.
        token: u32,
        /// The vocabulary's size.
        n: usize,
    },
    /// A token is longer than 65,535 bytes.
    #[error("token {token} has {n} bytes")]
    TokenLength {
        /// The token.
        token: u32,
        /// Its length.
        n: usize,
    },
}

/// `text` cut to a length that fits an error message.
pub(crate) fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    match text.char_indices().nth(MAX_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
