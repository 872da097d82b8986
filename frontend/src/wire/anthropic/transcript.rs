//! The system prompt and the messages of Anthropic's API as messages of a chat.
//!
//! ```text
//! system      text, or text blocks                      a system message in front
//! user        text, tool_result                         messages of the user and of tools, in this order
//! assistant   text, tool_use, thinking                  one message: its text, its calls, its thoughts
//!             redacted_thinking                         nothing: only its author could read it
//! ```
//!
//! Marks for the cache (`cache_control`) are taken and change nothing: the tree keeps every prompt.
//!
//! Claude Code begins its system prompt with a line of its own that differs from request to request
//! (`x-anthropic-billing-header: …`). It is left out: with it no two requests would begin alike.

use serde_json::{Map, Value, json};

use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, wrong_type};
use crate::wire::message::{MAX_PARTS, Message, Role};

/// What the line that is left out begins with.
const BILLING: &str = "x-anthropic-billing-header:";

/// A conversation as far as it has been read.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    pub(super) messages: Vec<Message>,
    /// Whether anything was marked for the cache.
    pub(super) has_marks: bool,
}

/// What a message says.
enum Content {
    Text(String),
    /// With their paths.
    Blocks(Vec<(String, Value)>),
}

impl Transcript {
    /// Takes in the system prompt.
    pub(super) fn system(&mut self, f: &mut Fields) -> Result<(), ApiError> {
        let text = match content(f, "system")? {
            None => return Ok(()),
            Some(Content::Text(text)) => without_billing(&text).to_owned(),
            Some(Content::Blocks(blocks)) => {
                let texts = self.texts(blocks, "\"text\"")?;
                let kept = texts.iter().map(|text| without_billing(text));
                let kept: Vec<&str> = kept.filter(|text| !text.is_empty()).collect();
                kept.join("\n")
            }
        };
        if !text.is_empty() {
            self.say(Role::System, text);
        }
        Ok(())
    }

    /// Takes in a message.
    pub(super) fn message(&mut self, mut f: Fields) -> Result<(), ApiError> {
        let name = f.required::<String>("role")?;
        let role = match name.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" => Role::System,
            _ => {
                let expected = "one of user, assistant, system";
                return Err(wrong_type(&f.path_of("role"), expected, &Value::String(name)));
            }
        };
        let path = f.path_of("content");
        let Some(content) = content(&mut f, "content")? else {
            return Err(ApiError::invalid(
                &path,
                format!("Missing required parameter: '{path}'."),
            ));
        };
        f.finish();
        match (content, role) {
            (Content::Text(text), _) => self.say(role, text),
            (Content::Blocks(blocks), Role::Assistant) => self.assistant(blocks)?,
            (Content::Blocks(blocks), Role::User) => self.user(blocks)?,
            (Content::Blocks(blocks), _) => {
                let texts = self.texts(blocks, "\"text\"")?;
                self.say(role, texts.join("\n"));
            }
        }
        Ok(())
    }

    /// Notes whether `f` is marked for the cache.
    pub(super) fn mark(&mut self, f: &mut Fields) -> Result<(), ApiError> {
        let Some(mut mark) = f.object("cache_control")? else {
            return Ok(());
        };
        for (name, known) in [("type", &["ephemeral"][..]), ("ttl", &["5m", "1h"])] {
            let value = match name {
                "type" => Some(mark.required::<String>(name)?),
                _ => mark.optional::<String>(name)?,
            };
            if let Some(value) = value.filter(|value| !known.contains(&value.as_str())) {
                let expected = format!("one of {}", known.join(", "));
                return Err(wrong_type(&mark.path_of(name), &expected, &Value::String(value)));
            }
        }
        mark.finish();
        self.has_marks = true;
        Ok(())
    }

    fn say(&mut self, role: Role, text: String) {
        self.messages.push(Message {
            role,
            content: Some(text),
            extra: Map::new(),
        });
    }

    fn user(&mut self, blocks: Vec<(String, Value)>) -> Result<(), ApiError> {
        let mut texts: Vec<String> = Vec::new();
        let n_before = self.messages.len();
        for (path, value) in blocks {
            let mut block = Fields::nested(value, path)?;
            match kind_of(&mut block)?.as_str() {
                "text" => texts.push(self.text(&mut block)?),
                "tool_result" => {
                    if !texts.is_empty() {
                        self.say(Role::User, std::mem::take(&mut texts).join("\n"));
                    }
                    let result = self.tool_result(&mut block)?;
                    self.messages.push(result);
                }
                other => return Err(refused(&block, "\"text\" or \"tool_result\"", other)),
            }
            block.finish();
        }
        if !texts.is_empty() || self.messages.len() == n_before {
            self.say(Role::User, texts.join("\n"));
        }
        Ok(())
    }

    fn assistant(&mut self, blocks: Vec<(String, Value)>) -> Result<(), ApiError> {
        let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for (path, value) in blocks {
            let mut block = Fields::nested(value, path)?;
            match kind_of(&mut block)?.as_str() {
                "text" => texts.push(self.text(&mut block)?),
                "thinking" => {
                    thoughts.push(block.required::<String>("thinking")?);
                    block.optional::<String>("signature")?;
                }
                "redacted_thinking" => drop(block.optional::<String>("data")?),
                "tool_use" => {
                    self.mark(&mut block)?;
                    calls.push(call(&mut block)?);
                }
                other => {
                    let expected = "\"text\", \"tool_use\", \"thinking\" or \"redacted_thinking\"";
                    return Err(refused(&block, expected, other));
                }
            }
            block.finish();
        }
        let mut extra = Map::new();
        let is_silent = texts.is_empty() && !calls.is_empty();
        if !thoughts.is_empty() {
            extra.insert("reasoning_content".to_owned(), thoughts.join("\n").into());
        }
        if !calls.is_empty() {
            extra.insert("tool_calls".to_owned(), Value::Array(calls));
        }
        self.messages.push(Message {
            role: Role::Assistant,
            content: (!is_silent).then(|| texts.join("\n")),
            extra,
        });
        Ok(())
    }

    /// `{tool_use_id, content, is_error}`.
    fn tool_result(&mut self, block: &mut Fields) -> Result<Message, ApiError> {
        let id = block.required::<String>("tool_use_id")?;
        self.mark(block)?;
        let text = match content(block, "content")? {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Blocks(blocks)) => self.texts(blocks, "\"text\"")?.join("\n"),
        };
        let has_failed = block.optional::<bool>("is_error")?.unwrap_or(false);
        let mut extra = Map::new();
        extra.insert("tool_call_id".to_owned(), id.into());
        Ok(Message {
            role: Role::Tool,
            // Templates have no other place for it.
            content: Some(if has_failed {
                format!("Error: {text}")
            } else {
                text
            }),
            extra,
        })
    }

    /// The texts of blocks that are nothing else.
    fn texts(&mut self, blocks: Vec<(String, Value)>, expected: &str) -> Result<Vec<String>, ApiError> {
        let mut texts = Vec::with_capacity(blocks.len());
        for (path, value) in blocks {
            let mut block = Fields::nested(value, path)?;
            match kind_of(&mut block)?.as_str() {
                "text" => texts.push(self.text(&mut block)?),
                other => return Err(refused(&block, expected, other)),
            }
            block.finish();
        }
        Ok(texts)
    }

    fn text(&mut self, block: &mut Fields) -> Result<String, ApiError> {
        self.mark(block)?;
        block.required("text")
    }
}

/// An earlier call as templates want it.
fn call(block: &mut Fields) -> Result<Value, ApiError> {
    let (id, name) = (block.required::<String>("id")?, block.required::<String>("name")?);
    let path = block.path_of("input");
    let input = match block.raw("input") {
        None => json!({}),
        Some(object @ Value::Object(_)) => object,
        Some(other) => return Err(wrong_type(&path, "an object", &other)),
    };
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}}))
}

fn kind_of(block: &mut Fields) -> Result<String, ApiError> {
    block.required("type")
}

fn refused(block: &Fields, expected: &str, kind: &str) -> ApiError {
    wrong_type(&block.path_of("type"), expected, &Value::from(kind))
}

fn content(f: &mut Fields, name: &str) -> Result<Option<Content>, ApiError> {
    let path = f.path_of(name);
    match f.raw(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(Content::Text(text))),
        Some(list @ Value::Array(_)) => {
            f.put(name, Some(list));
            let blocks = f.list(name, MAX_PARTS)?.unwrap_or_default();
            Ok(Some(Content::Blocks(blocks)))
        }
        Some(other) => Err(wrong_type(&path, "a string or an array of blocks", &other)),
    }
}

/// The rest of a system prompt behind the line that is left out.
fn without_billing(text: &str) -> &str {
    match text.starts_with(BILLING) {
        true => text.split_once('\n').map_or("", |(_, rest)| rest),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(system: &Value, messages: &Value) -> Result<Transcript, ApiError> {
        let mut f = Fields::nested(json!({"system": system, "messages": messages}), String::new())?;
        let mut transcript = Transcript::default();
        transcript.system(&mut f)?;
        for (path, value) in f.list("messages", 10)?.unwrap_or_default() {
            transcript.message(Fields::nested(value, path)?)?;
        }
        Ok(transcript)
    }

    fn shown(transcript: &Transcript) -> Vec<(&'static str, Option<&str>)> {
        let messages = transcript.messages.iter();
        let shown = messages.map(|message| (message.role.as_str(), message.content.as_deref()));
        shown.collect()
    }

    #[test]
    fn results_and_texts_of_a_user_keep_their_order() {
        let blocks = json!([
            {"type": "text", "text": "a"},
            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "42"}]},
            {"type": "tool_result", "tool_use_id": "2", "content": "none", "is_error": true},
            {"type": "text", "text": "b"},
            {"type": "text", "text": "c", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
        ]);
        let messages = json!([{"role": "user", "content": blocks}]);
        let transcript = read(&Value::Null, &messages).expect("valid");
        let expected = [
            ("user", Some("a")),
            ("tool", Some("42")),
            ("tool", Some("Error: none")),
            ("user", Some("b\nc")),
        ];
        assert_eq!(shown(&transcript), expected);
        assert_eq!(transcript.messages[2].extra["tool_call_id"], "2");
        assert!(transcript.has_marks);
    }

    #[test]
    fn an_assistants_blocks_become_one_message() {
        let blocks = json!([
            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}
        ]);
        let messages = json!([{"role": "assistant", "content": blocks}]);
        let transcript = read(&json!("Be kind."), &messages).expect("valid");
        assert_eq!(
            shown(&transcript),
            [("system", Some("Be kind.")), ("assistant", None)]
        );
        let extra = &transcript.messages[1].extra;
        assert_eq!(extra["reasoning_content"], "Hm.");
        let called = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}});
        assert_eq!(extra["tool_calls"], json!([called]));
        assert!(!transcript.has_marks);
    }

    #[test]
    fn the_line_that_differs_from_request_to_request_is_left_out() {
        let line = "x-anthropic-billing-header: cc_version=2.1.0; cch=1f3a;";
        let text = |text: &str| json!({"type": "text", "text": text});
        for system in [
            json!([text(line), text("Be kind.")]),
            json!([text(&format!("{line}\nBe kind."))]),
            json!(format!("{line}\nBe kind.")),
        ] {
            let transcript = read(&system, &json!([])).expect("valid");
            assert_eq!(shown(&transcript), [("system", Some("Be kind."))], "{system}");
        }
        let alone = read(&json!(line), &json!([])).expect("valid");
        assert_eq!(shown(&alone), []);
    }

    #[test]
    fn what_cannot_be_shown_to_a_model_is_refused_by_name() {
        let image = json!({"type": "image", "source": {"type": "base64", "data": "x"}});
        let result = |block: &Value| json!({"type": "tool_result", "tool_use_id": "1", "content": [block]});
        for (role, block, expected) in [
            ("user", image.clone(), "messages[0].content[0].type"),
            ("user", json!({"type": "document"}), "messages[0].content[0].type"),
            ("user", result(&image), "messages[0].content[0].content[0].type"),
            ("user", json!({"type": "text"}), "messages[0].content[0].text"),
            (
                "user",
                json!({"type": "tool_result"}),
                "messages[0].content[0].tool_use_id",
            ),
            ("user", json!({"type": "tool_use"}), "messages[0].content[0].type"),
            (
                "assistant",
                json!({"type": "server_tool_use"}),
                "messages[0].content[0].type",
            ),
            (
                "assistant",
                json!({"type": "tool_use", "id": "1"}),
                "messages[0].content[0].name",
            ),
            (
                "user",
                json!({"type": "text", "text": "a", "cache_control": {"type": "lasting"}}),
                "messages[0].content[0].cache_control.type",
            ),
            ("tool", json!({}), "messages[0].role"),
        ] {
            let messages = json!([{"role": role, "content": [block]}]);
            match read(&Value::Null, &messages).expect_err("refused") {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected),
                other => panic!("{messages}: {other:?}"),
            }
        }
    }
}
