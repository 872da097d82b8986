//! What OpenAI's Responses API answers with: responses, their items, lists of items.

use serde::Serialize;
use serde_json::{Value, json};

use crate::blocks::Block;
use crate::random::random_id;
use crate::wire::response::UsageBody;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutputItem {
    /// `rs_…`, `msg_…` or `fc_…`.
    pub(crate) id: String,
    /// What it is.
    pub(crate) kind: OutputKind,
    /// Thoughts, text, or the JSON of arguments, as far as they came.
    pub(crate) text: String,
}

/// What a part of an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// What the model thought.
    Reasoning,
    /// What it said.
    Message,
    /// A call.
    Call {
        /// `call_…`, by which the result names it.
        call_id: String,
        /// The tool's name.
        name: String,
        /// That of the tool, where it has one.
        namespace: Option<String>,
    },
}

impl OutputItem {
    /// An item that begins; `namespace_of` knows the namespaces of tools.
    pub(crate) fn begin(block: Block, namespace_of: impl Fn(&str) -> Option<String>) -> Self {
        let (prefix, kind) = match block {
            Block::Thoughts => ("rs", OutputKind::Reasoning),
            Block::Text => ("msg", OutputKind::Message),
            Block::Call(name) => (
                "fc",
                OutputKind::Call {
                    call_id: format!("call_{}", &random_id()[..24]),
                    namespace: namespace_of(&name),
                    name,
                },
            ),
        };
        OutputItem {
            id: format!("{prefix}_{}", random_id()),
            kind,
            text: String::new(),
        }
    }

    /// The item as it stands.
    pub(crate) fn shown(&self, status: &str) -> Value {
        let (id, parts) = (&self.id, self.parts());
        match &self.kind {
            OutputKind::Reasoning => {
                json!({"id": id, "type": "reasoning", "summary": [], "content": parts, "status": status})
            }
            OutputKind::Message => {
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": parts})
            }
            OutputKind::Call {
                call_id,
                name,
                namespace,
            } => {
                let mut shown = json!({"id": id, "type": "function_call", "status": status, "call_id": call_id,
                    "name": name, "arguments": self.text});
                if let Some(namespace) = namespace {
                    shown["namespace"] = namespace.as_str().into();
                }
                shown
            }
        }
    }

    /// Its one part, as it stands; `null` for a call.
    pub(crate) fn part(&self) -> Value {
        match self.kind {
            OutputKind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            OutputKind::Message => {
                json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
            }
            OutputKind::Call { .. } => Value::Null,
        }
    }

    /// None before its first word.
    fn parts(&self) -> Vec<Value> {
        let has_words = !self.text.is_empty();
        has_words.then(|| self.part()).into_iter().collect()
    }
}

/// Token counts as responses have them. `n_reasoning` tokens of the output were thoughts.
pub(crate) fn usage(usage: &UsageBody, n_reasoning: usize) -> Value {
    let details = usage.prompt_tokens_details;
    let cached = details.map_or(0, |details| details.cached_tokens);
    let mut told = json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": usage.prompt_tokens - cached},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": n_reasoning},
        "total_tokens": usage.total_tokens,
    });
    if let Some(arbora) = &usage.arbora {
        told["arbora"] = serde_json::to_value(arbora).expect("plain structs serialize");
    }
    told
}

/// `POST /v1/responses/input_tokens`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct InputTokens {
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Always `response.input_tokens`.
    pub object: &'static str,
}

/// `GET /v1/responses/{id}/input_items`.
#[derive(Clone, Debug, Serialize)]
pub struct ItemList {
    /// Always `list`.
    pub object: &'static str,
    /// The items.
    pub data: Vec<Value>,
    /// The first one's id.
    pub first_id: Option<Value>,
    /// The last one's id.
    pub last_id: Option<Value>,
    /// Whether there are more behind the last.
    pub has_more: bool,
}

/// `DELETE /v1/responses/{id}`.
#[derive(Clone, Debug, Serialize)]
pub struct Deleted {
    /// What is gone.
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// Always `true`.
    pub deleted: bool,
}
