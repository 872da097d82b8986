//! `POST /v1/chat/completions`: the request.

use arbora_runtime::request::SamplingParams;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::options::{MAX_LOGPROBS, Options, in_range};
use super::tools::Tools;
use crate::thinking::Thoughts;

/// Most messages in one request.
pub const MAX_MESSAGES: usize = 2048;
/// Most parts of one message's content.
pub const MAX_PARTS: usize = 256;

/// A chat to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// What the prompt is made of.
    pub conversation: Conversation,
    /// What the model may call; absent where nothing may be called.
    pub tools: Option<Tools>,
    /// Where the thoughts of a model that thinks go.
    pub thoughts: Thoughts,
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

/// One message of a chat.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; absent only in an assistant's message that called tools.
    pub content: Option<String>,
    /// Fields that some templates look at and the server does not: `name`, `tool_calls`, `tool_call_id`,
    /// `reasoning_content`.
    pub extra: Map<String, Value>,
}

/// Who speaks. A closed set, because templates print it between control tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The operator; OpenAI's newer `developer` is the same to a template.
    System,
    /// The human.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call; also the older `function`.
    Tool,
}

impl Role {
    /// The word templates expect.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            "tool" | "function" => Some(Role::Tool),
            _ => None,
        }
    }
}

impl ChatRequest {
    /// Reads a request body; `sampling` is what it leaves open.
    pub fn parse(body: &[u8], sampling: &SamplingParams) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let mut tools = Tools::read(&mut f)?;
        f.refuse_unless("echo", |v| v == &Value::Bool(false))?;
        f.refuse_unless("audio", |_| false)?;
        f.refuse_unless("web_search_options", |_| false)?;
        f.refuse_unless("documents", |v| v.as_array().is_some_and(Vec::is_empty))?;
        // What a chat begins with is its template's matter.
        f.refuse_unless("add_special_tokens", |v| v == &Value::Bool(false))?;
        let only_text = |v: &Value| v.as_array().is_some_and(|list| list.iter().all(|m| m == "text"));
        f.refuse_unless("modalities", only_text)?;
        let output_logprobs = output_logprobs(&mut f)?;
        let mut request = ChatRequest {
            conversation: Conversation::read(&mut f, tools.as_mut())?,
            tools,
            thoughts: thoughts(&mut f)?,
            options: Options::read(&mut f, sampling, 1)?,
        };
        f.finish();
        request.options.logprobs.output = output_logprobs;
        Ok(request)
    }
}

impl Conversation {
    /// Reads the messages and how they are to be shown to the model; takes what was listed out of `tools`.
    pub fn read(f: &mut Fields, tools: Option<&mut Tools>) -> Result<Self, ApiError> {
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
fn output_logprobs(f: &mut Fields) -> Result<Option<usize>, ApiError> {
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
        .map(|(path, value)| message(Fields::nested(value, path)?))
        .collect()
}

fn message(mut f: Fields) -> Result<Message, ApiError> {
    let name = f.required::<String>("role")?;
    let Some(role) = Role::parse(&name) else {
        let expected = "one of system, developer, user, assistant, tool";
        return Err(wrong_type(&f.path_of("role"), expected, &Value::String(name)));
    };
    let content = content(&mut f)?;
    let mut extra = Map::new();
    for name in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(text) = f.optional::<String>(name)? {
            extra.insert(name.to_owned(), text.into());
        }
    }
    if let Some(calls) = f.list("tool_calls", MAX_PARTS)? {
        let calls = calls.into_iter().map(|(path, call)| tool_call(&path, call));
        let calls = calls.collect::<Result<_, _>>()?;
        extra.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    let may_be_silent = role == Role::Assistant && extra.contains_key("tool_calls");
    if content.is_none() && !may_be_silent {
        let path = f.path_of("content");
        let message = format!("Missing required parameter: '{path}'.");
        return Err(ApiError::invalid(path, message));
    }
    f.finish();
    Ok(Message { role, content, extra })
}

/// An earlier call as templates want it: clients send its arguments as a string that holds JSON.
fn tool_call(path: &str, mut call: Value) -> Result<Value, ApiError> {
    let Value::Object(members) = &mut call else {
        return Err(wrong_type(path, "an object", &call));
    };
    let function = match members.get_mut("function") {
        None | Some(Value::Null) => return Ok(call),
        Some(Value::Object(function)) => function,
        Some(other) => return Err(wrong_type(&format!("{path}.function"), "an object", other)),
    };
    let Some(arguments) = function.get_mut("arguments") else {
        return Ok(call);
    };
    let read = match &*arguments {
        Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object),
        Value::Object(_) | Value::Null => return Ok(call),
        _ => None,
    };
    let wrong = || {
        let expected = "a JSON object, or a string that holds one";
        wrong_type(&format!("{path}.function.arguments"), expected, arguments)
    };
    *arguments = read.ok_or_else(wrong)?;
    Ok(call)
}

fn content(f: &mut Fields) -> Result<Option<String>, ApiError> {
    let path = f.path_of("content");
    let parts = match f.raw("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong_type(&path, "a string or an array of text parts", &other)),
    };
    if parts.len() > MAX_PARTS {
        let message = format!(
            "'{path}' has {} parts, at most {MAX_PARTS} are allowed.",
            parts.len()
        );
        return Err(ApiError::invalid(path, message));
    }
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let mut part = Fields::nested(part, format!("{path}[{i}]"))?;
        let kind = part.required::<String>("type")?;
        if kind != "text" {
            return Err(wrong_type(
                &part.path_of("type"),
                "\"text\"",
                &Value::String(kind),
            ));
        }
        texts.push(part.required::<String>("text")?);
        part.finish();
    }
    Ok(Some(texts.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_of_strings_and_text_parts_is_read() {
        let body = br#"{"model": "m", "messages": [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "42", "tool_call_id": "1"}],
            "tools": [], "tool_choice": "none", "chat_template_kwargs": {"enable_thinking": false}}"#;
        let request = ChatRequest::parse(body, &SamplingParams::default()).expect("valid");
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
                r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]}"#
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
            (with(r#""functions": [{}]"#), "functions"),
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
            (with(r#""documents": [{}]"#), "documents"),
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
            match ChatRequest::parse(json.as_bytes(), &SamplingParams::default()).expect_err(&json) {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
