//! What the API answers with. Field order and presence are those of OpenAI's responses.

use std::collections::BTreeMap;

use arbora_runtime::request::{FinishClass, FinishReason};
use serde::{Serialize, Serializer};

use super::error::ApiError;

/// What every answer and every chunk starts with.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// What kind of object this is.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model as the client named it.
    pub model: String,
}

/// A whole answer or one chunk of a stream.
#[derive(Debug, Serialize)]
pub struct Answer<'a, C> {
    /// Id, kind, time, model.
    #[serde(flatten)]
    pub head: &'a Head,
    /// Completions, or pieces of them.
    pub choices: Vec<C>,
    /// Of a chat's prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Token counts: missing, `null` or given.
    #[serde(skip_serializing_if = "UsageField::is_missing")]
    pub usage: UsageField,
}

/// The three states of `usage` in a stream.
#[derive(Clone, Debug)]
pub enum UsageField {
    /// The client did not ask: no such key.
    Missing,
    /// The client asked and the last chunk will tell.
    Null,
    /// The counts.
    Given(UsageBody),
}

impl UsageField {
    fn is_missing(&self) -> bool {
        matches!(self, UsageField::Missing)
    }
}

impl Serialize for UsageField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            UsageField::Missing | UsageField::Null => serializer.serialize_none(),
            UsageField::Given(usage) => usage.serialize(serializer),
        }
    }
}

/// Token counts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UsageBody {
    /// Tokens of all prompts, each counted once however many completions it got.
    pub prompt_tokens: usize,
    /// Tokens of all outputs, stop tokens included.
    pub completion_tokens: usize,
    /// Their sum.
    pub total_tokens: usize,
    /// How many of the prompt tokens were cheap; missing while the answer goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// How drafts did, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
    /// What only this server tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arbora: Option<ArboraBody>,
}

/// The extension object `arbora` in `usage`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ArboraBody {
    /// What happened inside, for those who asked.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// What was asked for and is not enforced.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relaxed: Vec<RelaxedBody>,
}

/// A part of a schema that is not enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RelaxedBody {
    /// JSON pointer of the schema that holds it, as a URI fragment.
    pub pointer: String,
    /// The keyword.
    pub keyword: String,
}

/// Part of [`UsageBody`].
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PromptTokensDetails {
    /// Prompt tokens whose keys and values were in the cache.
    pub cached_tokens: usize,
}

/// Part of [`UsageBody`].
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct CompletionTokensDetails {
    /// Tokens proposed ahead that became output.
    pub accepted_prediction_tokens: usize,
    /// Tokens proposed ahead that did not. Unlike elsewhere they are not part of `completion_tokens`.
    pub rejected_prediction_tokens: usize,
}

/// What happened inside; times are those of the first completion.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Explanation {
    /// Prompt tokens found in the cache.
    pub cached_tokens: usize,
    /// Of those, copied out of a page that was shared in part.
    pub copied_tokens: usize,
    /// Prompt tokens that were computed.
    pub computed_tokens: usize,
    /// Tokens proposed ahead and computed along.
    pub drafted_tokens: usize,
    /// Of those, the ones that became output: each saved a forward pass.
    pub accepted_tokens: usize,
    /// Times a completion had to give up its pages and resume.
    pub preemptions: usize,
    /// Arrival to first step.
    pub queue_ms: f64,
    /// Arrival to first token.
    pub ttft_ms: f64,
}

/// The word for an ending, or the error it was.
pub(crate) fn finish_reason(reason: &FinishReason, has_called: bool) -> Result<&'static str, ApiError> {
    match reason.class() {
        FinishClass::Stop if has_called => Ok("tool_calls"),
        FinishClass::Stop => Ok("stop"),
        FinishClass::Length => Ok("length"),
        FinishClass::Failed => Err(ApiError::of_ending(reason)),
    }
}

/// One completion of a chat.
#[derive(Debug, Serialize)]
pub struct ChatChoice {
    /// Which of the completions.
    pub index: usize,
    /// The answer.
    pub message: AssistantMessage,
    /// Of the text's tokens; `null` where they were not asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: &'static str,
}

/// How likely the tokens of a message were.
#[derive(Debug, Serialize)]
pub struct ChatLogprobs {
    /// Token by token.
    pub content: Vec<ChatTokenLogprobs>,
    /// Always `null`.
    pub refusal: Option<()>,
}

/// Part of [`ChatLogprobs`].
#[derive(Debug, Serialize)]
pub struct ChatTokenLogprobs {
    /// The token that came.
    #[serde(flatten)]
    pub token: ChatToken,
    /// The likeliest, as many as were asked for.
    pub top_logprobs: Vec<ChatToken>,
}

/// Part of [`ChatTokenLogprobs`].
#[derive(Debug, Serialize)]
pub struct ChatToken {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes, which may be a part of a character only.
    pub bytes: Vec<u8>,
}

/// How likely the tokens of a completion were; all lists are as long.
#[derive(Debug, Default, Serialize)]
pub struct TextLogprobs {
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities; `null` for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest, and the token itself.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}

/// Part of `prompt_logprobs`.
#[derive(Debug, Serialize)]
pub struct PromptTokenLogprob {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 for the likeliest.
    pub rank: u32,
    /// Its text.
    pub decoded_token: String,
}

/// How likely a prompt was, token by token; nothing is said of the first one.
pub type PromptLogprobs = Vec<Option<BTreeMap<u32, PromptTokenLogprob>>>;

/// What the model said.
#[derive(Debug, Serialize)]
pub struct AssistantMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text; `null` where there are only thoughts or calls.
    pub content: Option<String>,
    /// What the model thought before; missing where it thought nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Always `null`.
    pub refusal: Option<()>,
    /// Calls of tools; missing where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool, or a part of one in a stream.
#[derive(Clone, Debug, Serialize)]
pub struct ToolCall {
    /// Which call; in streams only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// Made up by the server, so that the result can name its call; in a call's first part only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in a call's first part only.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// What is called.
    pub function: FunctionCall,
}

/// Part of [`ToolCall`].
#[derive(Clone, Debug, Serialize)]
pub struct FunctionCall {
    /// The tool's name, in a call's first part only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The arguments' JSON as text, or what is new of it.
    pub arguments: String,
}

impl ToolCall {
    /// A call that begins.
    pub fn begin(index: Option<usize>, id: String, name: String) -> Self {
        ToolCall {
            index,
            id: Some(id),
            kind: Some("function"),
            function: FunctionCall {
                name: Some(name),
                arguments: String::new(),
            },
        }
    }

    /// More arguments of a call.
    pub fn more(index: usize, arguments: String) -> Self {
        ToolCall {
            index: Some(index),
            id: None,
            kind: None,
            function: FunctionCall {
                name: None,
                arguments,
            },
        }
    }
}

/// A piece of one completion of a chat.
#[derive(Debug, Serialize)]
pub struct ChatDelta {
    /// Which of the completions.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// Of the new tokens; `null` where they were not asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended, in its last piece.
    pub finish_reason: Option<&'static str>,
}

/// The new part of a chat message.
#[derive(Debug, Default, Serialize)]
pub struct Delta {
    /// In the first piece only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// New text; `null` in the first piece of an answer that may be a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Option<String>>,
    /// New thoughts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// New parts of calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// One text completion, or a piece of it.
#[derive(Debug, Serialize)]
pub struct TextChoice {
    /// The text, or what is new of it.
    pub text: String,
    /// Which of the completions.
    pub index: usize,
    /// Of the text's tokens; `null` where they were not asked for.
    pub logprobs: Option<TextLogprobs>,
    /// Why it ended; `null` in all pieces but the last.
    pub finish_reason: Option<&'static str>,
    /// Of the prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// One served model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelCard {
    /// Its name.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When the server started, in seconds since 1970.
    pub created: u64,
    /// Always `arbora`.
    pub owned_by: &'static str,
    /// Most tokens of prompt and output together; absent where the model is not loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<usize>,
    /// Whether it is loaded.
    pub status: ModelStatus,
}

/// Whether a model is loaded.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ModelStatus {
    /// `loaded`, `loading`, `unloading`, `unloaded` or `failed`.
    pub value: &'static str,
}

/// `GET /v1/models`.
#[derive(Clone, Debug, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelCard>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_missing_null_or_given() {
        let head = Head {
            id: "cmpl-1".to_owned(),
            object: "text_completion",
            created: 1,
            model: "m".to_owned(),
        };
        let choices = || {
            vec![TextChoice {
                text: "a".to_owned(),
                index: 0,
                logprobs: None,
                finish_reason: None,
                prompt_logprobs: None,
            }]
        };
        let shown = |usage| {
            let answer = Answer {
                head: &head,
                choices: choices(),
                prompt_logprobs: None,
                usage,
            };
            serde_json::to_string(&answer).expect("serializable")
        };
        let start = r#"{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"text":"a","index":0,"logprobs":null,"finish_reason":null}]"#;
        assert_eq!(shown(UsageField::Missing), format!("{start}}}"));
        assert_eq!(shown(UsageField::Null), format!("{start},\"usage\":null}}"));
        let ended = UsageBody {
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens: 0 }),
            ..UsageBody::default()
        };
        assert_eq!(
            shown(UsageField::Given(ended)),
            format!(
                "{start},\"usage\":{{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0,\
                 \"prompt_tokens_details\":{{\"cached_tokens\":0}}}}}}"
            )
        );
    }
}
