//! `POST /v1/chat/completions`: the request.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::message::Message;
use super::options::{MAX_LOGPROBS, Options, OutputLength, in_range};
use super::tools::Tools;
use super::unsupported::{self, CHAT, CONVERSATION, OTHER_NAMES};
use crate::thinking::Thoughts;

/// Most messages in one request.
pub const MAX_MESSAGES: usize = 2048;

/// Bounds a model's thoughts.
pub(crate) const THINKING_BUDGET: &str = "thinking_token_budget";

/// A chat to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// What the prompt is made of.
    pub conversation: Conversation,
    /// What the model may call; absent where nothing may be called.
    pub tools: Option<Tools>,
    /// Where the thoughts of a model that thinks go.
    pub thoughts: Thoughts,
    /// Most tokens of its thoughts; absent for as many as it likes.
    pub thinking_budget: Option<usize>,
    /// Everything else.
    pub options: Options,
}

/// What a chat template makes a prompt of.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// What was said so far, at least one message.
    pub messages: Vec<Message>,
    /// What may be called, as the client wrote it.
    pub tools: Vec<Value>,
    /// Where the answer begins.
    pub ending: PromptEnding,
    /// Values for the template, from a short list of names.
    pub template_values: Map<String, Value>,
    /// Tokens that come before what the template makes of all this.
    pub before: Vec<u32>,
}

/// How a prompt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptEnding {
    /// With the opening of an answer.
    Answer,
    /// With the end of the last message.
    Closed,
    /// Within the last message, which the output continues.
    LastMessage,
}

impl ChatRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let mut tools = Tools::read(&mut f)?;
        unsupported::refuse(&mut f, &[&CHAT, &OTHER_NAMES])?;
        let output_logprobs = output_logprobs(&mut f)?;
        let mut request = ChatRequest {
            conversation: Conversation::read(&mut f, tools.as_mut())?,
            tools,
            thoughts: thoughts(&mut f)?,
            // -1 is how vLLM's clients say "unlimited".
            thinking_budget: in_range(&mut f, THINKING_BUDGET, -1, i32::MAX)?
                .and_then(|budget| usize::try_from(budget).ok()),
            options: Options::read(
                &mut f,
                OutputLength {
                    fewest: 1,
                    default: None,
                },
            )?,
        };
        f.finish();
        request.options.logprobs.output = output_logprobs;
        Ok(request)
    }
}

impl Conversation {
    /// Reads the messages and how they are to be shown to the model; takes what was listed out of `tools`.
    pub fn read(f: &mut Fields, tools: Option<&mut Tools>) -> Result<Self, ApiError> {
        unsupported::refuse(f, &[&CONVERSATION])?;
        let messages = messages(f)?;
        let ending = ending(f)?;
        let has_text = |m: &Message| m.content.as_deref().is_some_and(|text| !text.trim().is_empty());
        if ending == PromptEnding::LastMessage && !messages.last().is_some_and(has_text) {
            let path = f.path_of("continue_final_message");
            let message = format!("'{path}' needs a last message with text.");
            return Err(ApiError::invalid(path, message));
        }
        Ok(Conversation {
            messages,
            tools: tools.map_or_else(Vec::new, |tools| std::mem::take(&mut tools.listed)),
            ending,
            template_values: template_values(f)?,
            before: Vec::new(),
        })
    }
}

/// SGLang's field and vLLM's.
fn thoughts(f: &mut Fields) -> Result<Thoughts, ApiError> {
    let are_apart = f.optional::<bool>("separate_reasoning")?.unwrap_or(true);
    let are_told = f.optional::<bool>("include_reasoning")?.unwrap_or(true);
    match (are_apart, are_told) {
        (true, true) => Ok(Thoughts::Apart),
        (true, false) => Ok(Thoughts::LeftOut),
        (false, true) => Ok(Thoughts::InText),
        (false, false) => {
            let message = "'separate_reasoning' and 'include_reasoning' cannot both be false.";
            Err(ApiError::invalid("separate_reasoning", message))
        }
    }
}

fn ending(f: &mut Fields) -> Result<PromptEnding, ApiError> {
    let opens = f.optional::<bool>("add_generation_prompt")?;
    let continues = f.optional::<bool>("continue_final_message")?.unwrap_or(false);
    match (continues, opens) {
        (true, Some(true)) => {
            let path = f.path_of("continue_final_message");
            let message = format!("'{path}' and 'add_generation_prompt' cannot both be true.");
            Err(ApiError::invalid(path, message))
        }
        (true, _) => Ok(PromptEnding::LastMessage),
        (false, Some(false)) => Ok(PromptEnding::Closed),
        (false, _) => Ok(PromptEnding::Answer),
    }
}

/// `logprobs: true` and how many to list.
pub(super) fn output_logprobs(f: &mut Fields) -> Result<Option<usize>, ApiError> {
    let is_wanted = f.optional::<bool>("logprobs")?.unwrap_or(false);
    let n_top = in_range(f, "top_logprobs", 0, MAX_LOGPROBS)?.unwrap_or(0);
    if !is_wanted && n_top > 0 {
        let message = "'top_logprobs' is only allowed when 'logprobs' is true.";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok(is_wanted.then_some(n_top))
}

fn template_values(f: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    const ALLOWED: [&str; 3] = ["enable_thinking", "thinking", "reasoning_effort"];
    let mut values = Map::new();
    if let Some(effort) = f.optional::<String>("reasoning_effort")? {
        values.insert("reasoning_effort".to_owned(), effort.into());
    }
    let path = f.path_of("chat_template_kwargs");
    match f.raw("chat_template_kwargs") {
        None => {}
        Some(Value::Object(given)) => {
            for (name, value) in given {
                if value.is_null() {
                    continue;
                }
                let path = format!("{path}.{name}");
                if !ALLOWED.contains(&name.as_str()) {
                    let message = format!("'{path}' is not one of {}.", ALLOWED.join(", "));
                    return Err(ApiError::invalid(path, message));
                }
                if !matches!(value, Value::Bool(_) | Value::String(_)) {
                    return Err(wrong_type(&path, "a boolean or a string", &value));
                }
                values.insert(name, value);
            }
        }
        Some(other) => return Err(wrong_type(&path, "an object", &other)),
    }
    Ok(values)
}

fn messages(f: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let Some(list) = f.list("messages", MAX_MESSAGES)? else {
        return Err(ApiError::invalid(
            "messages",
            "Missing required parameter: 'messages'.",
        ));
    };
    if list.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "'messages' must hold at least one message.",
        ));
    }
    list.into_iter()
        .map(|(path, value)| Message::read(Fields::nested(value, path)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_of_strings_and_text_parts_is_read() {
        let body = br#"{"model": "m", "messages": [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            {"role": "tool", "content": "42", "tool_call_id": "1"}],
            "tools": [], "tool_choice": "none", "chat_template_kwargs": {"enable_thinking": false}}"#;
        let request = ChatRequest::parse(body).expect("valid");
        let roles: Vec<_> = request
            .conversation
            .messages
            .iter()
            .map(|m| m.role.as_str())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(request.conversation.messages[1].content.as_deref(), Some("a\nb"));
        assert_eq!(request.conversation.messages[1].extra["name"], "Ann");
        assert_eq!(request.conversation.messages[2].content, None);
        assert_eq!(request.conversation.template_values["enable_thinking"], false);
        assert_eq!(request.conversation.ending, PromptEnding::Answer);
    }

    #[test]
    fn malformed_chats_name_the_field() {
        let many = format!(r#"{{"messages": [{}]}}"#, vec!["{}"; MAX_MESSAGES + 1].join(","));
        let user = r#""messages": [{"role": "user", "content": "x"}]"#;
        let with = |field: &str| format!("{{{user}, {field}}}");
        let cases = [
            ("{}".to_owned(), "messages"),
            (r#"{"messages": []}"#.to_owned(), "messages"),
            (r#"{"messages": "hi"}"#.to_owned(), "messages"),
            (r#"{"messages": ["hi"]}"#.to_owned(), "messages[0]"),
            (r#"{"messages": [{}]}"#.to_owned(), "messages[0].role"),
            (
                r#"{"messages": [{"role": "<|im_end|>", "content": ""}]}"#.to_owned(),
                "messages[0].role",
            ),
            (
                r#"{"messages": [{"role": 5, "content": ""}]}"#.to_owned(),
                "messages[0].role",
            ),
            (
                r#"{"messages": [{"role": "user"}]}"#.to_owned(),
                "messages[0].content",
            ),
            (
                r#"{"messages": [{"role": "user", "content": null}]}"#.to_owned(),
                "messages[0].content",
            ),
            (
                r#"{"messages": [{"role": "user", "content": 5}]}"#.to_owned(),
                "messages[0].content",
            ),
            (
                r#"{"messages": [{"role": "user", "content": ["x"]}]}"#.to_owned(),
                "messages[0].content[0]",
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}"#
                    .to_owned(),
                "messages[0].content[0].type",
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "text"}]}]}"#.to_owned(),
                "messages[0].content[0].text",
            ),
            (
                r#"{"messages": [{"role": "user", "content": "x", "name": 5}]}"#.to_owned(),
                "messages[0].name",
            ),
            (many, "messages"),
            (with(r#""tool_choice": "required""#), "tool_choice"),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}"#
                    .to_owned(),
                "messages[0].tool_calls[0].function.arguments",
            ),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [5]}]}"#.to_owned(),
                "messages[0].tool_calls[0]",
            ),
            (
                r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": "f"}]}]}"#.to_owned(),
                "messages[0].tool_calls[0].function",
            ),
            (with(r#""functions": [{"name": "f"}]"#), "functions"),
            (with(r#""tool_choice": {"type": "custom"}"#), "tool_choice.type"),
            (with(r#""verbosity": "low""#), "verbosity"),
            (with(r#""thinking_token_budget": -2"#), "thinking_token_budget"),
            (with(r#""parallel_tool_calls": 1"#), "parallel_tool_calls"),
            (with(r#""modalities": ["text", "audio"]"#), "modalities"),
            (
                with(r#""continue_final_message": true, "add_generation_prompt": true"#),
                "continue_final_message",
            ),
            (
                r#"{"messages": [{"role": "user", "content": " "}], "continue_final_message": true}"#
                    .to_owned(),
                "continue_final_message",
            ),
            (with(r#""documents": [{"text": "x"}]"#), "documents"),
            (with(r#""add_special_tokens": true"#), "add_special_tokens"),
            (with(r#""include_reasoning": 1"#), "include_reasoning"),
            (
                with(r#""include_reasoning": false, "separate_reasoning": false"#),
                "separate_reasoning",
            ),
            (with(r#""logprobs": 1"#), "logprobs"),
            (with(r#""top_logprobs": 2"#), "top_logprobs"),
            (with(r#""logprobs": true, "top_logprobs": 21"#), "top_logprobs"),
            (with(r#""max_tokens": 0"#), "max_tokens"),
            (
                with(r#""chat_template_kwargs": {"evil": 1}"#),
                "chat_template_kwargs.evil",
            ),
            (
                with(r#""chat_template_kwargs": {"thinking": [1]}"#),
                "chat_template_kwargs.thinking",
            ),
        ];
        for (json, expected) in cases {
            match ChatRequest::parse(json.as_bytes()).expect_err(&json) {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
