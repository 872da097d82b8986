//! The messages of a chat, in the shapes in which clients send a conversation back.
//!
//! ```text
//! content     a string, a list of text and refusal parts, or null where an assistant said nothing
//! tool_calls  [{id, type: function, function: {name, arguments}}]; arguments become a JSON object:
//!             "", blanks, null, left out                 {}
//!             a JSON object, or text that holds one      the object
//!             any other text (a call that was cut off)   the text, shown to the model as it is
//! ```

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};

/// Most parts of one message's content, and most calls of one message.
pub const MAX_PARTS: usize = 256;

/// One message of a chat.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; absent only in an assistant's message that called tools.
    pub content: Option<String>,
    /// Fields that some templates look at and the server does not: `name`, `tool_calls`, `tool_call_id`,
    /// `reasoning_content`. The `arguments` of a call are a string where they are not JSON.
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

impl Message {
    /// Reads one message.
    pub(super) fn read(mut f: Fields) -> Result<Self, ApiError> {
        let name = f.required::<String>("role")?;
        let Some(role) = Role::parse(&name) else {
            let expected = "one of system, developer, user, assistant, tool";
            return Err(wrong_type(&f.path_of("role"), expected, &Value::String(name)));
        };
        let mut content = content(&mut f, role)?;
        let mut extra = Map::new();
        for name in ["name", "tool_call_id", "reasoning_content"] {
            if let Some(text) = f.optional::<String>(name)? {
                extra.insert(name.to_owned(), text.into());
            }
        }
        if role == Role::Assistant {
            // vLLM's newer name.
            let thoughts = f.optional::<String>("reasoning")?.filter(|text| !text.is_empty());
            if let Some(thoughts) = thoughts {
                extra
                    .entry("reasoning_content")
                    .or_insert_with(|| thoughts.into());
            }
            let refusal = f.optional::<String>("refusal")?;
            content = content.or(refusal);
            let calls = calls(&mut f)?;
            match (&content, calls.is_empty()) {
                (_, false) => drop(extra.insert("tool_calls".to_owned(), Value::Array(calls))),
                // Templates print what is absent as "None".
                (None, true) => content = Some(String::new()),
                (Some(_), true) => {}
            }
        }
        if content.is_none() && !extra.contains_key("tool_calls") {
            let path = f.path_of("content");
            let message = format!("Missing required parameter: '{path}'.");
            return Err(ApiError::invalid(path, message));
        }
        f.finish();
        Ok(Message { role, content, extra })
    }
}

/// The calls of an assistant's message, the older `function_call` among them.
fn calls(f: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let listed = f.list("tool_calls", MAX_PARTS)?.unwrap_or_default();
    let listed = listed
        .into_iter()
        .map(|(path, call)| tool_call(Fields::nested(call, path)?));
    let mut calls = listed.collect::<Result<Vec<_>, ApiError>>()?;
    if let Some(older) = f.object("function_call")? {
        calls.push(json!({"type": "function", "function": function(older)?}));
    }
    Ok(calls)
}

/// An earlier call as templates want it.
fn tool_call(mut call: Fields) -> Result<Value, ApiError> {
    let kind = call.optional::<String>("type")?;
    if let Some(kind) = kind.filter(|kind| kind != "function") {
        return Err(wrong_type(
            &call.path_of("type"),
            "\"function\"",
            &Value::String(kind),
        ));
    }
    let path = call.path_of("function");
    let Some(called) = call.object("function")? else {
        let message = format!("Missing required parameter: '{path}'.");
        return Err(ApiError::invalid(path, message));
    };
    let called = function(called)?;
    let mut call = call.into_value("function");
    call["function"] = called;
    Ok(call)
}

/// `{name, arguments}`.
fn function(mut called: Fields) -> Result<Value, ApiError> {
    let name = called.required::<String>("name")?;
    let path = called.path_of("arguments");
    let arguments = arguments(called.raw("arguments"), &path)?;
    Ok(json!({"name": name, "arguments": arguments}))
}

/// The arguments of an earlier call: an object, or a text where they are none.
pub(super) fn arguments(given: Option<Value>, path: &str) -> Result<Value, ApiError> {
    let nothing = || Ok(Value::Object(Map::new()));
    let text = match given {
        None => return nothing(),
        Some(object @ Value::Object(_)) => return Ok(object),
        Some(Value::String(text)) => text,
        Some(other) => return Err(wrong_type(path, "a JSON object or a string", &other)),
    };
    match text.trim() {
        "" | "null" => nothing(),
        // Neither a call without arguments nor one that was cut off in them: this server ends none so.
        "{" => {
            let expected =
                "a JSON object, or a string that holds one or the beginning of one with an argument";
            Err(wrong_type(path, expected, &Value::String(text)))
        }
        trimmed => match serde_json::from_str(trimmed) {
            Ok(object @ Value::Object(_)) => Ok(object),
            _ => Ok(Value::String(text)),
        },
    }
}

fn content(f: &mut Fields, role: Role) -> Result<Option<String>, ApiError> {
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
        texts.push(match (kind.as_str(), role) {
            ("text", _) => part.required::<String>("text")?,
            ("refusal", Role::Assistant) => part.required::<String>("refusal")?,
            (_, Role::Assistant) => {
                let expected = "\"text\" or \"refusal\"";
                return Err(wrong_type(&part.path_of("type"), expected, &Value::String(kind)));
            }
            _ => {
                let expected = "\"text\"";
                return Err(wrong_type(&part.path_of("type"), expected, &Value::String(kind)));
            }
        });
        part.finish();
    }
    Ok(Some(texts.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &Value) -> Result<Message, ApiError> {
        Message::read(Fields::nested(message.clone(), "messages[0]".to_owned())?)
    }

    fn called(arguments: Option<Value>) -> Result<Message, ApiError> {
        let mut function = json!({"name": "now"});
        if let Some(arguments) = arguments {
            function["arguments"] = arguments;
        }
        let call = json!({"id": "call_1", "type": "function", "function": function});
        read(&json!({"role": "assistant", "content": null, "tool_calls": [call]}))
    }

    #[test]
    fn arguments_are_an_object_or_the_text_that_was_cut_off() {
        let text = |text: &str| Some(Value::from(text));
        let cases = [
            (None, json!({})),
            (Some(Value::Null), json!({})),
            (text(""), json!({})),
            (text(" \n"), json!({})),
            (text("null"), json!({})),
            (text("{}"), json!({})),
            (text(" {\"a\": 1}\n"), json!({"a": 1})),
            (Some(json!({"a": 1})), json!({"a": 1})),
            (text("{\"city\": \"Par"), json!("{\"city\": \"Par")),
            (text("{\""), json!("{\"")),
            (text("{\"a\": 1}}"), json!("{\"a\": 1}}")),
            (text("[1]"), json!("[1]")),
            (text("see above"), json!("see above")),
        ];
        for (given, expected) in cases {
            let message = called(given.clone()).expect("valid");
            let call = &message.extra["tool_calls"][0];
            assert_eq!(call["function"]["arguments"], expected, "{given:?}");
            assert_eq!(call["function"]["name"], "now");
            assert_eq!(
                (&call["id"], &call["type"]),
                (&json!("call_1"), &json!("function"))
            );
        }
        for given in [json!("{"), json!(5), json!([1]), json!(true)] {
            let error = called(Some(given.clone())).expect_err("malformed");
            let ApiError::Invalid { param, .. } = &error else {
                panic!("{error:?}");
            };
            let path = "messages[0].tool_calls[0].function.arguments";
            assert_eq!(param.as_deref(), Some(path), "{given}");
        }
    }

    #[test]
    fn an_assistant_may_have_said_nothing_refused_or_only_thought() {
        let cases = [
            (json!({"content": null}), Some("")),
            (json!({}), Some("")),
            (json!({"content": []}), Some("")),
            (json!({"content": null, "tool_calls": []}), Some("")),
            (json!({"content": null, "refusal": "No."}), Some("No.")),
            (json!({"content": "Yes.", "refusal": null}), Some("Yes.")),
            (
                json!({"content": [{"type": "refusal", "refusal": "No."}]}),
                Some("No."),
            ),
            (
                json!({"content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]}),
                Some("a\nb"),
            ),
            (json!({"content": null, "reasoning_content": "Hm."}), Some("")),
            (
                json!({"content": null, "function_call": {"name": "f", "arguments": "{}"}}),
                None,
            ),
        ];
        for (mut message, expected) in cases {
            message["role"] = "assistant".into();
            let read = read(&message).expect("valid");
            assert_eq!(read.content.as_deref(), expected, "{message}");
        }
        let older = json!({"role": "assistant", "function_call": {"name": "f", "arguments": ""}});
        let older = read(&older).expect("valid");
        let function = json!({"name": "f", "arguments": {}});
        assert_eq!(older.extra["tool_calls"][0]["function"], function);
        for names in [
            json!({"reasoning": "Hm."}),
            json!({"reasoning": "x", "reasoning_content": "Hm."}),
        ] {
            let mut message = names.clone();
            message["role"] = "assistant".into();
            let read = read(&message).expect("valid");
            assert_eq!(read.extra["reasoning_content"], "Hm.", "{names}");
        }
    }

    #[test]
    fn what_no_template_could_show_is_refused_by_name() {
        let call = |call: Value| json!({"role": "assistant", "tool_calls": [call]});
        let cases = [
            (
                call(json!({"type": "custom", "custom": {"name": "f", "input": "x"}})),
                "messages[0].tool_calls[0].type",
            ),
            (call(json!({"id": "1"})), "messages[0].tool_calls[0].function"),
            (
                call(json!({"function": null})),
                "messages[0].tool_calls[0].function",
            ),
            (
                call(json!({"function": {"arguments": "{}"}})),
                "messages[0].tool_calls[0].function.name",
            ),
            (
                json!({"role": "assistant", "function_call": {"arguments": "{}"}}),
                "messages[0].function_call.name",
            ),
            (json!({"role": "user"}), "messages[0].content"),
            (json!({"role": "tool", "content": null}), "messages[0].content"),
            (
                json!({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}),
                "messages[0].content[0].type",
            ),
        ];
        for (message, expected) in cases {
            match read(&message).expect_err("malformed") {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{message}"),
                other => panic!("{message}: {other:?}"),
            }
        }
    }
}
