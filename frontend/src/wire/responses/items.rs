//! The items of a response: what was said, thought, called and answered, one after the other; and what they
//! are as messages of a chat.
//!
//! ```text
//! message               user, system, developer     a message
//! reasoning             }
//! message   assistant   } that follow each other    one message of the assistant
//! function_call         }
//! function_call_output                              a message of a tool
//! ```

use serde_json::{Map, Value, json};

use crate::random::random_id;
use crate::wire::error::ApiError;
use crate::wire::fields::{Fields, wrong_type};
use crate::wire::message::{self, MAX_PARTS, Message, Role};

/// Items as messages of a chat.
#[derive(Debug, Default)]
pub(super) struct Thread {
    messages: Vec<Message>,
    /// Of the assistant's message that is to come.
    thoughts: Vec<String>,
}

impl Thread {
    /// Begins with what the operator says.
    pub(super) fn new(instructions: Option<String>) -> Self {
        let mut thread = Thread::default();
        if let Some(text) = instructions.filter(|text| !text.is_empty()) {
            thread.say(Role::System, Some(text));
        }
        thread
    }

    /// Takes in the item found at `path`.
    ///
    /// # Errors
    /// Names the field that is missing, malformed or of a kind that no model here knows.
    pub(super) fn item(&mut self, path: String, item: Value) -> Result<(), ApiError> {
        let mut f = Fields::nested(item, path)?;
        let kind = kind_of(&mut f)?;
        // Made up by servers, and without a meaning for models.
        for name in ["id", "status"] {
            f.optional::<String>(name)?;
        }
        match kind.as_str() {
            "message" => self.message(&mut f)?,
            "reasoning" => self.reasoning(&mut f)?,
            "function_call" => self.call(&mut f)?,
            "function_call_output" => self.output(&mut f)?,
            _ => {
                let expected =
                    "one of message, reasoning, function_call, function_call_output, item_reference";
                return Err(wrong_type(&f.path_of("type"), expected, &Value::String(kind)));
            }
        }
        f.finish();
        Ok(())
    }

    /// All messages.
    pub(super) fn finish(mut self) -> Vec<Message> {
        self.end_thoughts();
        self.messages
    }

    fn message(&mut self, f: &mut Fields) -> Result<(), ApiError> {
        let name = f.required::<String>("role")?;
        let role = match name.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "system" | "developer" => Role::System,
            _ => {
                let expected = "one of user, assistant, system, developer";
                return Err(wrong_type(&f.path_of("role"), expected, &Value::String(name)));
            }
        };
        let text = text(f, "content")?;
        if role != Role::Assistant {
            self.end_thoughts();
        }
        self.say(role, Some(text));
        Ok(())
    }

    fn reasoning(&mut self, f: &mut Fields) -> Result<(), ApiError> {
        self.end_thoughts();
        let mut texts = Vec::new();
        for (name, kind) in [("content", "reasoning_text"), ("summary", "summary_text")] {
            let mut found = Vec::new();
            for (path, part) in f.list(name, MAX_PARTS)?.unwrap_or_default() {
                let mut part = Fields::nested(part, path)?;
                let given = part.required::<String>("type")?;
                if given != kind {
                    let expected = format!("\"{kind}\"");
                    return Err(wrong_type(
                        &part.path_of("type"),
                        &expected,
                        &Value::String(given),
                    ));
                }
                found.push(part.required::<String>("text")?);
                part.finish();
            }
            // A summary is for those who do not have the thoughts.
            if texts.is_empty() {
                texts = found;
            }
        }
        self.thoughts = texts;
        Ok(())
    }

    fn call(&mut self, f: &mut Fields) -> Result<(), ApiError> {
        let (id, name) = (f.required::<String>("call_id")?, f.required::<String>("name")?);
        f.optional::<String>("namespace")?;
        let path = f.path_of("arguments");
        let arguments = message::arguments(f.raw("arguments"), &path)?;
        let function = json!({"name": name, "arguments": arguments});
        let call = json!({"id": id, "type": "function", "function": function});
        let is_new = !self.thoughts.is_empty()
            || self
                .messages
                .last()
                .is_none_or(|last| last.role != Role::Assistant);
        if is_new {
            self.say(Role::Assistant, None);
        }
        let last = self.messages.last_mut().expect("there is an assistant's message");
        let calls = last.extra.entry("tool_calls").or_insert_with(|| json!([]));
        calls.as_array_mut().expect("made as a list").push(call);
        Ok(())
    }

    fn output(&mut self, f: &mut Fields) -> Result<(), ApiError> {
        self.end_thoughts();
        let id = f.required::<String>("call_id")?;
        let text = text(f, "output")?;
        self.say(Role::Tool, Some(text));
        let last = self.messages.last_mut().expect("it was just said");
        last.extra.insert("tool_call_id".to_owned(), id.into());
        Ok(())
    }

    /// Thoughts that led to nothing are an answer without words.
    fn end_thoughts(&mut self) {
        if !self.thoughts.is_empty() {
            self.say(Role::Assistant, Some(String::new()));
        }
    }

    fn say(&mut self, role: Role, content: Option<String>) {
        let mut extra = Map::new();
        if !self.thoughts.is_empty() && role == Role::Assistant {
            let thoughts = std::mem::take(&mut self.thoughts).join("\n");
            extra.insert("reasoning_content".to_owned(), thoughts.into());
        }
        self.messages.push(Message { role, content, extra });
    }
}

/// Messages may leave out what they are.
fn kind_of(f: &mut Fields) -> Result<String, ApiError> {
    let kind = f.optional::<String>("type")?;
    Ok(kind.unwrap_or_else(|| "message".to_owned()))
}

/// A text, or those of a list of parts.
fn text(f: &mut Fields, name: &str) -> Result<String, ApiError> {
    let path = f.path_of(name);
    let parts = match f.raw(name) {
        None => {
            let message = format!("Missing required parameter: '{path}'.");
            return Err(ApiError::invalid(path, message));
        }
        Some(Value::String(text)) => return Ok(text),
        Some(list @ Value::Array(_)) => {
            f.put(name, Some(list));
            f.list(name, MAX_PARTS)?.unwrap_or_default()
        }
        Some(other) => return Err(wrong_type(&path, "a string or an array of text parts", &other)),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (path, part) in parts {
        let mut part = Fields::nested(part, path)?;
        let kind = part.required::<String>("type")?;
        texts.push(match kind.as_str() {
            "input_text" | "output_text" | "text" => part.required::<String>("text")?,
            "refusal" => part.required::<String>("refusal")?,
            _ => {
                let expected = "one of input_text, output_text, text, refusal";
                return Err(wrong_type(&part.path_of("type"), expected, &Value::String(kind)));
            }
        });
        part.finish();
    }
    Ok(texts.join("\n"))
}

/// A client's item as it is kept and listed: with an id, a type, and parts instead of a mere text.
pub(super) fn normalized(mut item: Value) -> Value {
    let Some(members) = item.as_object_mut() else {
        return item;
    };
    let kind = members
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("message")
        .to_owned();
    if kind == "message"
        && let Some(Value::String(text)) = members.get("content")
    {
        let part = match members.get("role").is_some_and(|role| role == "assistant") {
            true => json!({"type": "output_text", "text": text, "annotations": []}),
            false => json!({"type": "input_text", "text": text}),
        };
        members.insert("content".to_owned(), json!([part]));
    }
    let prefix = match kind.as_str() {
        "message" => "msg",
        "reasoning" => "rs",
        "function_call" => "fc",
        _ => "fco",
    };
    if members.get("id").is_none_or(Value::is_null) {
        members.insert("id".to_owned(), format!("{prefix}_{}", random_id()).into());
    }
    members.insert("type".to_owned(), kind.into());
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(items: &Value) -> Result<Vec<Message>, ApiError> {
        let mut thread = Thread::new(Some("Be kind.".to_owned()));
        for (i, item) in items.as_array().expect("a list").iter().enumerate() {
            thread.item(format!("input[{i}]"), item.clone())?;
        }
        Ok(thread.finish())
    }

    #[test]
    fn what_an_assistant_does_in_a_row_is_one_message() {
        let items = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "In short."}],
                "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "c", "annotations": []}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"x\": 1}"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "42"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Well."}]}
        ]);
        let messages = read(&items).expect("valid");
        let shown: Vec<_> = messages
            .iter()
            .map(|message| (message.role.as_str(), message.content.as_deref()))
            .collect();
        let expected = [
            ("system", Some("Be kind.")),
            ("user", Some("a\nb")),
            ("assistant", Some("c")),
            ("tool", Some("42")),
            ("assistant", Some("")),
        ];
        assert_eq!(shown, expected);
        assert_eq!(messages[2].extra["reasoning_content"], "Hm.");
        let calls = messages[2].extra["tool_calls"].as_array().expect("calls");
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0]["function"], json!({"name": "f", "arguments": {"x": 1}}));
        assert_eq!(messages[3].extra["tool_call_id"], "1");
        assert_eq!(messages[4].extra["reasoning_content"], "Well.");
    }

    #[test]
    fn a_call_without_words_is_a_message_of_its_own() {
        let items = json!([
            {"role": "user", "content": "a"},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
        ]);
        let messages = read(&items).expect("valid");
        assert_eq!((messages[2].role, &messages[2].content), (Role::Assistant, &None));
    }

    #[test]
    fn what_no_model_here_knows_is_refused_by_name() {
        for (item, expected) in [
            (json!({"type": "computer_call"}), "input[0].type"),
            (json!({"role": "robot", "content": "x"}), "input[0].role"),
            (json!({"role": "user"}), "input[0].content"),
            (
                json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}),
                "input[0].content[0].type",
            ),
            (json!({"type": "function_call", "name": "f"}), "input[0].call_id"),
            (
                json!({"type": "function_call_output", "call_id": "1", "output": [{"type": "input_file"}]}),
                "input[0].output[0].type",
            ),
            (
                json!({"type": "reasoning", "summary": [{"type": "text", "text": "x"}]}),
                "input[0].summary[0].type",
            ),
        ] {
            match read(&json!([item])).expect_err("refused") {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{item}"),
                other => panic!("{item}: {other:?}"),
            }
        }
    }

    #[test]
    fn kept_items_have_an_id_a_type_and_parts() {
        let item = normalized(json!({"role": "user", "content": "x"}));
        assert_eq!(item["type"], "message");
        assert_eq!(item["content"], json!([{"type": "input_text", "text": "x"}]));
        assert!(item["id"].as_str().is_some_and(|id| id.starts_with("msg_")));
        let named = json!({"type": "function_call_output", "id": "mine", "call_id": "1", "output": "x"});
        assert_eq!(normalized(named.clone()), named);
    }
}
