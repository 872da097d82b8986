//! What TGI's API answers with, and its errors: `{error, error_type}`.

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

use crate::wire::error::ApiError;

/// A whole answer.
#[derive(Debug, Serialize)]
pub struct Generation {
    /// The text.
    pub generated_text: String,
    /// What there is to tell of it, where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// Part of [`Generation`].
#[derive(Debug, Serialize)]
pub struct Details {
    /// Why it ended.
    pub finish_reason: &'static str,
    /// Tokens, the one that ended it included.
    pub generated_tokens: usize,
    /// What tokens were drawn with.
    pub seed: Option<u64>,
    /// Of the prompt, where asked for.
    pub prefill: Vec<PrefillToken>,
    /// One by one.
    pub tokens: Vec<Token>,
    /// The likeliest in the place of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
    /// The outputs that were less likely.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub best_of_sequences: Vec<Sequence>,
}

/// An output that is not the answer.
#[derive(Debug, Serialize)]
pub struct Sequence {
    /// The text.
    pub generated_text: String,
    /// Why it ended.
    pub finish_reason: &'static str,
    /// Tokens, the one that ended it included.
    pub generated_tokens: usize,
    /// What tokens were drawn with.
    pub seed: Option<u64>,
    /// Of the prompt: told once, in the details.
    pub prefill: Vec<PrefillToken>,
    /// One by one.
    pub tokens: Vec<Token>,
    /// The likeliest in the place of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
}

/// A token of a prompt.
#[derive(Debug, Serialize)]
pub struct PrefillToken {
    /// It.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Natural logarithm of its probability; `null` for the first one.
    pub logprob: Option<f32>,
}

/// A token of an output.
#[derive(Clone, Debug, Serialize)]
pub struct Token {
    /// It.
    pub id: u32,
    /// Its text; in a stream what it adds to the text.
    pub text: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Whether it is no text.
    pub special: bool,
}

/// One event of a stream.
#[derive(Debug, Serialize)]
pub struct StreamEvent {
    /// Tokens so far.
    pub index: usize,
    /// The one that came.
    pub token: Token,
    /// The likeliest in its place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Token>,
    /// All of the text, in the last event.
    pub generated_text: Option<String>,
    /// In the last event.
    pub details: Option<StreamDetails>,
}

/// Part of [`StreamEvent`].
#[derive(Debug, Serialize)]
pub struct StreamDetails {
    /// Why it ended.
    pub finish_reason: &'static str,
    /// Tokens, the one that ended it included.
    pub generated_tokens: usize,
    /// What tokens were drawn with.
    pub seed: Option<u64>,
    /// Tokens of the prompt.
    pub input_length: usize,
}

/// Status and body of an error.
pub(crate) fn error(error: &ApiError) -> (StatusCode, Value) {
    let (status, kind) = match error.status() {
        StatusCode::BAD_REQUEST => (StatusCode::UNPROCESSABLE_ENTITY, "validation"),
        status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => (status, "overloaded"),
        status if status.is_server_error() => (status, "generation"),
        status => (status, "validation"),
    };
    (status, json!({"error": error.to_string(), "error_type": kind}))
}
