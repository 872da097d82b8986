//! What Anthropic's Messages API answers with. Field order and presence are those of its own answers.

use serde::Serialize;
use serde_json::{Value, json};

use crate::wire::response::{ArboraBody, UsageBody};

/// What a thinking block has for a signature: clients keep only blocks that have one. Nothing is verified.
pub const SIGNATURE: &str = "arbora";

/// An answer.
#[derive(Clone, Debug, Serialize)]
pub struct MessageBody<'a> {
    /// `msg_…`.
    pub id: &'a str,
    /// Always `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Always `assistant`.
    pub role: &'static str,
    /// The model's name.
    pub model: &'a str,
    /// What it said; empty at the start of a stream.
    pub content: Vec<Block>,
    /// Why it ended; `null` at the start of a stream.
    pub stop_reason: Option<&'static str>,
    /// The text that ended it, where one did.
    pub stop_sequence: Option<String>,
    /// Token counts.
    pub usage: MessageUsage,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block {
    /// What the model thought.
    Thinking {
        /// The thoughts.
        thinking: String,
        /// [`SIGNATURE`], once they are whole.
        signature: &'static str,
    },
    /// What it said.
    Text {
        /// The text.
        text: String,
    },
    /// A call.
    ToolUse {
        /// `toolu_…`.
        id: String,
        /// The tool's name.
        name: String,
        /// Its arguments, an object.
        input: Value,
    },
}

/// What is new of a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta {
    /// More thoughts.
    ThinkingDelta {
        /// The new part.
        thinking: String,
    },
    /// The end of thoughts.
    SignatureDelta {
        /// [`SIGNATURE`].
        signature: &'static str,
    },
    /// More text.
    TextDelta {
        /// The new part.
        text: String,
    },
    /// More of a call's arguments.
    InputJsonDelta {
        /// The new part of their JSON.
        partial_json: String,
    },
}

/// The arguments of a call that was written as `text`. One that was cut off is no JSON: it is wrapped as
/// Anthropic's documentation asks clients to wrap such texts ("Fine-grained tool streaming").
pub fn input(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(object @ Value::Object(_)) => object,
        _ => json!({"INVALID_JSON": text}),
    }
}

/// Token counts. The prompt has as many as its three counts together.
#[derive(Clone, Debug, Serialize)]
pub struct MessageUsage {
    /// Prompt tokens that were computed, of requests without marks for the cache.
    pub input_tokens: usize,
    /// Prompt tokens that were computed, of requests with marks. All are kept, with marks or without.
    pub cache_creation_input_tokens: usize,
    /// Prompt tokens that were found in the cache.
    pub cache_read_input_tokens: usize,
    /// Tokens of the output.
    pub output_tokens: usize,
    /// What only this server tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arbora: Option<ArboraBody>,
}

impl MessageUsage {
    /// The counts of `usage`, of a request that marks something for the cache or does not.
    pub fn new(usage: UsageBody, has_marks: bool) -> Self {
        let cached = usage
            .prompt_tokens_details
            .map_or(0, |details| details.cached_tokens);
        let computed = usage.prompt_tokens - cached;
        let (input_tokens, cache_creation_input_tokens) = match has_marks {
            true => (0, computed),
            false => (computed, 0),
        };
        MessageUsage {
            input_tokens,
            cache_creation_input_tokens,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
            arbora: usage.arbora,
        }
    }
}

/// `POST /v1/messages/count_tokens`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TokenCount {
    /// Tokens of the prompt.
    pub input_tokens: usize,
}

/// One served model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelInfo {
    /// Always `model`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its name.
    pub id: String,
    /// Its name.
    pub display_name: String,
    /// When the server started, as RFC 3339 has it.
    pub created_at: String,
    /// Always `active`.
    pub lifecycle: &'static str,
    /// Most tokens of a prompt.
    pub max_input_tokens: Option<usize>,
    /// Most tokens of an output.
    pub max_tokens: Option<usize>,
}

/// `GET /v1/models`.
#[derive(Clone, Debug, Serialize)]
pub struct ModelPage {
    /// The models.
    pub data: Vec<ModelInfo>,
    /// Always `false`: all are in one list.
    pub has_more: bool,
    /// The first one's name.
    pub first_id: Option<String>,
    /// The last one's name.
    pub last_id: Option<String>,
}
