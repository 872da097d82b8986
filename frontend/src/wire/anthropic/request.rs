//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: the requests, read into a chat like any other.
//!
//! Where the last message is an assistant's with text, the output continues it.

use arbora_constrained::ParallelCalls;
use serde_json::{Map, Value};

use super::transcript::Transcript;
use crate::thinking::Thoughts;
use crate::wire::chat::{ChatRequest, Conversation, MAX_MESSAGES, PromptEnding};
use crate::wire::constraint::{Constraint, WhichTool};
use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, wrong_type};
use crate::wire::message::{Message, Role};
use crate::wire::options::{self, Delivery, OneOutput, Options, SamplingAsked, in_range};
use crate::wire::tools::{self, Choice, MAX_TOOLS, StrictRules, Tools};
use crate::wire::unsupported::{self, ANTHROPIC_TOOL, MESSAGES, OUTPUT_CONFIG};

/// Messages to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct MessagesRequest {
    /// The chat that they are.
    pub chat: ChatRequest,
    /// Whether anything is marked for the cache.
    pub has_marks: bool,
}

/// Messages whose tokens are counted.
#[derive(Clone, Debug, PartialEq)]
pub struct CountRequest {
    /// The model as the client named it.
    pub model: Option<String>,
    /// What the prompt is made of.
    pub conversation: Conversation,
}

/// What the prompt and the output of a request are made of.
struct Asked {
    conversation: Conversation,
    tools: Option<Tools>,
    thoughts: Thoughts,
    thinking_budget: Option<usize>,
    constraint: Option<Constraint>,
    has_marks: bool,
}

impl MessagesRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// Names the field that is missing, malformed or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let Some(max_tokens) = in_range(&mut f, "max_tokens", 1, u32::MAX as usize)? else {
            let message = "Missing required parameter: 'max_tokens'.";
            return Err(ApiError::invalid("max_tokens", message));
        };
        let asked = Asked::read(&mut f)?;
        let stops = f.raw("stop_sequences");
        let stops = match stops {
            None => Vec::new(),
            Some(Value::Array(elements)) => options::stop_strings("stop_sequences", elements)?,
            Some(other) => return Err(wrong_type("stop_sequences", "an array of strings", &other)),
        };
        let output = OneOutput {
            max_tokens: Some(max_tokens),
            stops,
            constraint: asked.constraint,
            sampling: SamplingAsked::read(&mut f)?,
            delivery: Delivery::read(&mut f)?,
        };
        let options = Options::of_one(&mut f, output)?;
        if let Some(mut metadata) = f.object("metadata")? {
            metadata.optional::<String>("user_id")?;
            metadata.finish();
        }
        // Known, without effect on the output.
        for name in ["service_tier", "speed", "inference_geo"] {
            f.optional::<String>(name)?;
        }
        f.finish();
        Ok(MessagesRequest {
            chat: ChatRequest {
                conversation: asked.conversation,
                tools: asked.tools,
                thoughts: asked.thoughts,
                thinking_budget: asked.thinking_budget,
                options,
            },
            has_marks: asked.has_marks,
        })
    }
}

impl CountRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// As for [`MessagesRequest::parse`].
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let asked = Asked::read(&mut f)?;
        let model = f.optional("model")?;
        f.finish();
        Ok(CountRequest {
            model,
            conversation: asked.conversation,
        })
    }
}

impl Asked {
    fn read(f: &mut Fields) -> Result<Self, ApiError> {
        unsupported::refuse(f, &[&MESSAGES])?;
        edits(f)?;
        let mut transcript = Transcript::default();
        transcript.mark(f)?;
        let mut tools = read_tools(f, &mut transcript)?;
        transcript.system(f)?;
        let messages = f.list("messages", MAX_MESSAGES)?.unwrap_or_default();
        if messages.is_empty() {
            let message = "'messages' must hold at least one message.";
            return Err(ApiError::invalid("messages", message));
        }
        for (path, value) in messages {
            transcript.message(Fields::nested(value, path)?)?;
        }
        let mut template_values = Map::new();
        let (thoughts, thinking_budget) = thinking(f, &mut template_values)?;
        let constraint = output_config(f, &mut template_values)?;
        let ending = match transcript.messages.last() {
            Some(last) if is_continued(last) => PromptEnding::LastMessage,
            _ => PromptEnding::Answer,
        };
        Ok(Asked {
            conversation: Conversation {
                messages: transcript.messages,
                tools: tools
                    .as_mut()
                    .map_or_else(Vec::new, |tools| std::mem::take(&mut tools.listed)),
                ending,
                template_values,
                before: Vec::new(),
            },
            tools,
            thoughts,
            thinking_budget,
            constraint,
            has_marks: transcript.has_marks,
        })
    }
}

/// Whether an output goes on where this last message ends.
fn is_continued(last: &Message) -> bool {
    let has_text = last
        .content
        .as_deref()
        .is_some_and(|text| !text.trim().is_empty());
    last.role == Role::Assistant && has_text && !last.extra.contains_key("tool_calls")
}

/// `context_management`: what would take out more of the messages than templates do with old thoughts.
fn edits(f: &mut Fields) -> Result<(), ApiError> {
    let Some(mut management) = f.object("context_management")? else {
        return Ok(());
    };
    for (path, value) in management.list("edits", 16)?.unwrap_or_default() {
        let mut edit = Fields::nested(value, path)?;
        let kind = edit.required::<String>("type")?;
        if !kind.starts_with("clear_thinking") {
            let expected = "an edit that clears thoughts";
            return Err(wrong_type(&edit.path_of("type"), expected, &Value::String(kind)));
        }
        edit.finish();
    }
    management.finish();
    Ok(())
}

/// Where thoughts go, and how many tokens they may have. Without `thinking` a model answers at once, as far
/// as its template can tell it so.
fn thinking(
    f: &mut Fields,
    template_values: &mut Map<String, Value>,
) -> Result<(Thoughts, Option<usize>), ApiError> {
    let (mut thoughts, mut budget) = (Thoughts::LeftOut, None);
    let mut thinks = false;
    if let Some(mut thinking) = f.object("thinking")? {
        let kind = thinking.required::<String>("type")?;
        thinks = match kind.as_str() {
            "enabled" => {
                let tokens = in_range(&mut thinking, "budget_tokens", 1, i32::MAX as usize)?;
                let path = thinking.path_of("budget_tokens");
                let missing = || ApiError::invalid(&path, format!("Missing required parameter: '{path}'."));
                budget = Some(tokens.ok_or_else(missing)?);
                true
            }
            "adaptive" => true,
            "disabled" => false,
            _ => {
                let expected = "one of enabled, adaptive, disabled";
                return Err(wrong_type(
                    &thinking.path_of("type"),
                    expected,
                    &Value::String(kind),
                ));
            }
        };
        let display = thinking.optional::<String>("display")?;
        thoughts = match display.as_deref() {
            Some("omitted") => Thoughts::LeftOut,
            None | Some("summarized") if thinks => Thoughts::Apart,
            None | Some("summarized") => Thoughts::LeftOut,
            Some(other) => {
                let path = thinking.path_of("display");
                let expected = "\"summarized\" or \"omitted\"";
                return Err(wrong_type(&path, expected, &Value::from(other)));
            }
        };
        thinking.finish();
    }
    // The two names by which templates ask.
    for name in ["enable_thinking", "thinking"] {
        template_values.insert(name.to_owned(), thinks.into());
    }
    Ok((thoughts, budget))
}

/// `output_config`, and `output_format`, which its `format` was called before.
fn output_config(
    f: &mut Fields,
    template_values: &mut Map<String, Value>,
) -> Result<Option<Constraint>, ApiError> {
    let older = f.object("output_format")?.map(format).transpose()?;
    let Some(mut config) = f.object("output_config")? else {
        return Ok(older);
    };
    unsupported::refuse(&mut config, &[&OUTPUT_CONFIG])?;
    if let Some(effort) = config.optional::<String>("effort")? {
        template_values.insert("reasoning_effort".to_owned(), effort.into());
    }
    let newer = config.object("format")?.map(format).transpose()?;
    config.finish();
    match (older, newer) {
        (Some(older), Some(newer)) if older.source != newer.source => {
            let message = format!(
                "'{}' and '{}' constrain the output differently; only one constraint is possible.",
                older.param, newer.param
            );
            Err(ApiError::invalid(newer.param, message))
        }
        (older, newer) => Ok(newer.or(older)),
    }
}

/// `{type: json_schema, schema}`.
fn format(mut format: Fields) -> Result<Constraint, ApiError> {
    let kind = format.required::<String>("type")?;
    if kind != "json_schema" {
        let path = format.path_of("type");
        return Err(wrong_type(&path, "\"json_schema\"", &Value::String(kind)));
    }
    let constraint = Constraint::of_schema(&mut format, "schema")?;
    format.finish_strictly()?;
    Ok(constraint)
}

fn read_tools(f: &mut Fields, transcript: &mut Transcript) -> Result<Option<Tools>, ApiError> {
    let mut described = Vec::new();
    for (path, value) in f.list("tools", MAX_TOOLS)?.unwrap_or_default() {
        let mut tool = Fields::nested(value, path.clone())?;
        if let Some(kind) = tool.optional::<String>("type")?.filter(|kind| kind != "custom") {
            // Tools that Anthropic's own servers or models know.
            return Err(wrong_type(
                &tool.path_of("type"),
                "\"custom\"",
                &Value::String(kind),
            ));
        }
        transcript.mark(&mut tool)?;
        unsupported::refuse(&mut tool, &[&ANTHROPIC_TOOL])?;
        described.push(tools::flat(
            (path, tool),
            "input_schema",
            StrictRules::Enforceable,
        )?);
    }
    let mut choice = Choice {
        path: "tool_choice".to_owned(),
        which: Some(WhichTool::Auto),
        allowed: None,
        parallel: ParallelCalls::Allowed,
    };
    if let Some(mut chosen) = f.object("tool_choice")? {
        let kind = chosen.required::<String>("type")?;
        choice.which = match kind.as_str() {
            "auto" => Some(WhichTool::Auto),
            "any" => Some(WhichTool::Any),
            "none" => None,
            "tool" => Some(WhichTool::Named(chosen.required("name")?)),
            _ => {
                let expected = "one of auto, any, tool, none";
                return Err(wrong_type(
                    &chosen.path_of("type"),
                    expected,
                    &Value::String(kind),
                ));
            }
        };
        if chosen.optional("disable_parallel_tool_use")? == Some(true) {
            choice.parallel = ParallelCalls::AtMostOne;
        }
        chosen.finish();
    }
    Tools::new(described, choice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(more: &Value) -> Result<MessagesRequest, ApiError> {
        let mut body = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        MessagesRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn thoughts_are_asked_for_and_bounded() {
        let read = |thinking: Value| read(&json!({"thinking": thinking})).expect("valid").chat;
        let chat = read(json!({"type": "enabled", "budget_tokens": 1024}));
        assert_eq!(
            (chat.thoughts, chat.thinking_budget),
            (Thoughts::Apart, Some(1024))
        );
        assert_eq!(chat.conversation.template_values["enable_thinking"], true);
        let chat = read(json!({"type": "adaptive", "display": "omitted"}));
        assert_eq!((chat.thoughts, chat.thinking_budget), (Thoughts::LeftOut, None));
        for off in [json!({"type": "disabled"}), Value::Null] {
            let chat = read(off);
            assert_eq!(chat.thoughts, Thoughts::LeftOut);
            assert_eq!(chat.conversation.template_values["thinking"], false);
        }
    }

    #[test]
    fn a_tool_is_shown_to_templates_as_any_other_chats() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let tool = json!({"name": "f", "description": "x", "input_schema": schema});
        let more = json!({"tools": [tool], "tool_choice": {"type": "tool", "name": "f",
            "disable_parallel_tool_use": true}});
        let chat = read(&more).expect("valid").chat;
        let function = json!({"name": "f", "description": "x", "parameters": schema});
        let shown = json!({"type": "function", "function": function});
        assert_eq!(chat.conversation.tools, std::slice::from_ref(&shown));
        let openai = json!({"messages": [{"role": "user", "content": "x"}], "tools": [shown],
            "tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": false});
        let openai = ChatRequest::parse(openai.to_string().as_bytes()).expect("valid");
        assert_eq!(chat.conversation.tools, openai.conversation.tools);
        assert_eq!(chat.tools, openai.tools);
    }

    #[test]
    fn an_assistants_last_words_are_continued() {
        let ending = |last: Value| {
            let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": last}]);
            let chat = read(&json!({"messages": messages})).expect("valid").chat;
            chat.conversation.ending
        };
        assert_eq!(ending(json!("The answer is (")), PromptEnding::LastMessage);
        assert_eq!(ending(json!(" ")), PromptEnding::Answer);
        let call = json!({"type": "tool_use", "id": "1", "name": "f", "input": {}});
        let text = json!({"type": "text", "text": "a"});
        assert_eq!(ending(json!([text, call])), PromptEnding::Answer);
    }

    #[test]
    fn what_is_malformed_or_not_supported_names_its_field() {
        let tool = |more: Value| {
            let mut tool = json!({"name": "f", "input_schema": {"type": "object"}});
            for (name, value) in more.as_object().expect("an object") {
                tool[name] = value.clone();
            }
            json!({"tools": [tool]})
        };
        for (more, expected) in [
            (json!({"max_tokens": null}), "max_tokens"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"messages": []}), "messages"),
            (json!({"system": 5}), "system"),
            (json!({"stop_sequences": "x"}), "stop_sequences"),
            (json!({"stop_sequences": [""]}), "stop_sequences[0]"),
            (json!({"stop": ["x"]}), "stop"),
            (json!({"thinking": {"type": "enabled"}}), "thinking.budget_tokens"),
            (json!({"thinking": {"type": "between_tools"}}), "thinking.type"),
            (
                json!({"thinking": {"type": "adaptive", "display": "x"}}),
                "thinking.display",
            ),
            (json!({"mcp_servers": [{"url": "x"}]}), "mcp_servers"),
            (json!({"container": "x"}), "container"),
            (
                json!({"output_config": {"format": {"type": "text"}}}),
                "output_config.format.type",
            ),
            (
                json!({"output_config": {"task_budget": {"type": "tokens"}}}),
                "output_config.task_budget",
            ),
            (
                json!({"output_format": {"type": "json_schema"}}),
                "output_format.schema",
            ),
            (
                json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}),
                "context_management.edits[0].type",
            ),
            (tool(json!({"type": "bash_20250124"})), "tools[0].type"),
            (tool(json!({"input_schema": 5})), "tools[0].input_schema"),
            (tool(json!({"defer_loading": true})), "tools[0].defer_loading"),
            (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
            (json!({"tool_choice": {"type": "required"}}), "tool_choice.type"),
            (json!({"temperature": -1}), "temperature"),
        ] {
            match read(&more).expect_err("refused") {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{more}"),
                other => panic!("{more}: {other:?}"),
            }
        }
        let clears_thoughts =
            json!({"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}});
        assert!(read(&clears_thoughts).is_ok());
    }
}
