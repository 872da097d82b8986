//! What Ollama's API answers with.

use arbora_runtime::request::Usage;
use serde::Serialize;
use serde_json::Value;

use crate::wire::response::ChatTokenLogprobs;

/// A whole answer, or a line of a streamed one.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// The model.
    pub model: &'a str,
    /// When this was written.
    pub created_at: String,
    /// What is new.
    #[serde(flatten)]
    pub said: Said,
    /// Log-probabilities of the new tokens, where they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<ChatTokenLogprobs>>,
    /// Whether this is the end.
    pub done: bool,
    /// Why, in the last line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    /// Tokens of prompt and output, with which a text goes on; in the last line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<Vec<u32>>,
    /// Counts and times, in the last line.
    #[serde(flatten)]
    pub figures: Option<Figures>,
}

/// What the model says, in the shape of either route.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Said {
    /// Of `/api/chat`.
    Chat {
        /// A message or a part of one.
        message: AssistantMessage,
    },
    /// Of `/api/generate`.
    Text {
        /// Text.
        response: String,
        /// Thoughts.
        #[serde(skip_serializing_if = "String::is_empty")]
        thinking: String,
    },
}

/// Part of [`Said`].
#[derive(Debug, Serialize)]
pub struct AssistantMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// Text.
    pub content: String,
    /// Thoughts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// Whole calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Call>,
}

/// A call of a tool.
#[derive(Debug, Serialize)]
pub struct Call {
    /// Made up by the server, so that the result can name its call.
    pub id: String,
    /// What is called.
    pub function: Called,
}

/// Part of [`Call`].
#[derive(Debug, Serialize)]
pub struct Called {
    /// Calls before it in this output.
    pub index: usize,
    /// The tool's name.
    pub name: String,
    /// An object.
    pub arguments: Value,
}

/// Counts, and times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// From the arrival of the request to its end.
    pub total_duration: u64,
    /// How long it waited for its model to be loaded.
    pub load_duration: u64,
    /// Tokens of the prompt, those found in the cache among them.
    pub prompt_eval_count: usize,
    /// From its first step to its first token.
    pub prompt_eval_duration: u64,
    /// Tokens of the output.
    pub eval_count: usize,
    /// From its first token to its end.
    pub eval_duration: u64,
}

impl Figures {
    /// Those of an output that took `total` and `load` nanoseconds.
    pub fn new((total, load): (u64, u64), usage: &Usage) -> Self {
        // An output without a token ended where it would have had its first.
        let first_us = match usage.ttft_us {
            0 => usage.total_us,
            us => us,
        };
        Figures {
            total_duration: total,
            load_duration: load,
            prompt_eval_count: usage.prompt_tokens,
            prompt_eval_duration: first_us.saturating_sub(usage.queue_us) * 1000,
            eval_count: usage.completion_tokens,
            eval_duration: usage.total_us.saturating_sub(first_us) * 1000,
        }
    }
}

/// Vectors of `/api/embed`.
#[derive(Debug, Serialize)]
pub struct Embedded {
    /// The model.
    pub model: String,
    /// One for each text.
    pub embeddings: Vec<Vec<f32>>,
    /// From the arrival of the request to its end, in nanoseconds.
    pub total_duration: u64,
    /// How long it waited for its model to be loaded, in nanoseconds.
    pub load_duration: u64,
    /// Tokens of all texts.
    pub prompt_eval_count: usize,
}

/// The vector of `/api/embeddings`.
#[derive(Debug, Serialize)]
pub struct OlderEmbedded {
    /// It.
    pub embedding: Vec<f32>,
}
