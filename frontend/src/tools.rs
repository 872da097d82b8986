//! Tool calls between the API's objects and the model's text.
//!
//! ```text
//! in:   tools, earlier calls, results ── the chat template prints them; where it does not know tools, they
//!                                        become text of the messages, in the Hermes format
//! out:  text <tool_call>{"name": N, "arguments": A}</tool_call> ── CallParser ──► content, N, pieces of A
//! ```
//!
//! The grammar of a request with tools fixes every byte around the arguments, so the parser has nothing to
//! guess.

use arbora_constrained::CallFormat;
use serde_json::{Map, Value};

use crate::wire::chat::{Message, Role};

const OPEN: &str = "<tool_call>";

/// Something about a call in one piece of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallPiece {
    /// Another call begins.
    Begin {
        /// Calls before it in this output.
        index: usize,
        /// The tool's name.
        name: String,
    },
    /// More of the arguments' JSON.
    Arguments {
        /// Which call.
        index: usize,
        /// The new part.
        text: String,
    },
}

/// Where the parser stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing has come yet.
    Start,
    /// In text that a call may interrupt.
    Text,
    /// In text up to the end.
    Plain,
    /// Before the name.
    Open,
    /// At the name's first quote.
    Name,
    /// Between name and arguments.
    Member,
    /// In the arguments.
    Arguments { depth: usize, quote: Quote },
    /// After the arguments.
    Close,
    /// After a call.
    Between,
}

/// Whether a JSON scanner is inside a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quote {
    Outside,
    Inside,
    Escaped,
}

/// Takes an output apart while it comes. What it says does not depend on how the text is cut into pieces.
#[derive(Clone, Debug)]
pub struct CallParser {
    format: CallFormat,
    place: Place,
    /// Not understood yet.
    held: String,
    n_calls: usize,
}

impl CallParser {
    /// A parser of an output that has not begun.
    pub fn new(format: CallFormat) -> Self {
        CallParser {
            format,
            place: Place::Start,
            held: String::new(),
            n_calls: 0,
        }
    }

    /// Calls so far.
    pub fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Takes more of the output; returns new content and new parts of calls.
    pub fn push(&mut self, text: &str) -> (String, Vec<CallPiece>) {
        self.held.push_str(text);
        let (mut content, mut pieces) = (String::new(), Vec::new());
        while self.advance(&mut content, &mut pieces) {}
        (content, pieces)
    }

    /// The output is over: returns content that was held back.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Start | Place::Text | Place::Plain => held,
            // A call that was cut off: its beginning is no content.
            _ => String::new(),
        }
    }

    /// Whether it got anywhere.
    fn advance(&mut self, content: &mut String, pieces: &mut Vec<CallPiece>) -> bool {
        match (self.place, self.format) {
            (Place::Start, CallFormat::Hermes) => self.go(Place::Text),
            (Place::Start, CallFormat::Llama3Json) => match self.held.bytes().next() {
                None => false,
                Some(b'{') => self.go(Place::Open),
                Some(_) => self.go(Place::Plain),
            },
            (Place::Text, _) => self.text(content),
            (Place::Plain, _) => {
                content.push_str(&std::mem::take(&mut self.held));
                false
            }
            (Place::Open, CallFormat::Hermes) => self.expect("\n{\"name\": ", Place::Name),
            (Place::Open, CallFormat::Llama3Json) => self.expect("{\"name\": ", Place::Name),
            (Place::Name, _) => self.name(pieces),
            (Place::Member, CallFormat::Hermes) => self.expect(", \"arguments\": ", ARGUMENTS),
            (Place::Member, CallFormat::Llama3Json) => self.expect(", \"parameters\": ", ARGUMENTS),
            (Place::Arguments { depth, quote }, _) => self.arguments((depth, quote), pieces),
            (Place::Close, CallFormat::Hermes) => self.expect("}\n</tool_call>", Place::Between),
            (Place::Close, CallFormat::Llama3Json) => self.expect("}", Place::Between),
            (Place::Between, CallFormat::Hermes) => {
                let kept = self.held.trim_start().len();
                self.held.drain(..self.held.len() - kept);
                !self.held.is_empty() && self.go(Place::Text)
            }
            (Place::Between, CallFormat::Llama3Json) => self.expect("; ", Place::Open),
        }
    }

    fn go(&mut self, place: Place) -> bool {
        self.place = place;
        true
    }

    /// Passes `literal`. Text that is something else was not made by the grammar: it is shown as it is.
    fn expect(&mut self, literal: &str, next: Place) -> bool {
        if self.held.starts_with(literal) {
            self.held.drain(..literal.len());
            return self.go(next);
        }
        !literal.starts_with(&self.held) && self.go(Place::Plain)
    }

    /// Releases text up to a call, or up to what may begin one.
    fn text(&mut self, content: &mut String) -> bool {
        if let Some(at) = self.held.find(OPEN) {
            content.push_str(&self.held[..at]);
            self.held.drain(..at + OPEN.len());
            return self.go(Place::Open);
        }
        let n_open = (1..OPEN.len()).rev().find(|n| self.held.ends_with(&OPEN[..*n]));
        let n_certain = self.held.len() - n_open.unwrap_or(0);
        content.extend(self.held.drain(..n_certain));
        false
    }

    fn name(&mut self, pieces: &mut Vec<CallPiece>) -> bool {
        // The quotes belong to the string; names hold no escapes that would need another.
        let Some(end) = self
            .held
            .get(1..)
            .and_then(|rest| rest.find('"'))
            .map(|at| at + 2)
        else {
            return false;
        };
        let Ok(name) = serde_json::from_str(&self.held[..end]) else {
            return self.go(Place::Plain);
        };
        self.held.drain(..end);
        pieces.push(CallPiece::Begin {
            index: self.n_calls,
            name,
        });
        self.n_calls += 1;
        self.go(Place::Member)
    }

    fn arguments(&mut self, (mut depth, mut quote): (usize, Quote), pieces: &mut Vec<CallPiece>) -> bool {
        let mut end = None;
        for (at, byte) in self.held.bytes().enumerate() {
            (depth, quote) = match (quote, byte) {
                (Quote::Escaped, _) => (depth, Quote::Inside),
                (Quote::Inside, b'\\') => (depth, Quote::Escaped),
                (Quote::Inside, b'"') => (depth, Quote::Outside),
                (Quote::Outside, b'"') => (depth, Quote::Inside),
                (Quote::Outside, b'{' | b'[') => (depth + 1, quote),
                (Quote::Outside, b'}' | b']') => (depth.saturating_sub(1), quote),
                _ => (depth, quote),
            };
            if depth == 0 {
                end = Some(at + 1);
                break;
            }
        }
        let text: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        if !text.is_empty() {
            pieces.push(CallPiece::Arguments {
                index: self.n_calls - 1,
                text,
            });
        }
        self.place = match end {
            Some(_) => Place::Close,
            None => Place::Arguments { depth, quote },
        };
        end.is_some()
    }
}

const ARGUMENTS: Place = Place::Arguments {
    depth: 0,
    quote: Quote::Outside,
};

/// The messages of a chat with `tools` for a template that does not know tools: they are described in the
/// system message, earlier calls and results are written out.
pub fn written_out(messages: &[Message], tools: &[Value]) -> Vec<Message> {
    let mut written: Vec<Message> = messages.iter().map(written_message).collect();
    if tools.is_empty() {
        return written;
    }
    let mut text = "You can call functions. Each line describes one:\n".to_owned();
    for tool in tools {
        text.push_str(&tool.to_string());
        text.push('\n');
    }
    text.push_str(
        "To call a function, write\n<tool_call>\n{\"name\": FUNCTION, \"arguments\": {...}}\n</tool_call>",
    );
    match written.first_mut() {
        Some(first) if first.role == Role::System => {
            let before = first.content.take().unwrap_or_default();
            first.content = Some(format!("{before}\n\n{text}"));
        }
        _ => written.insert(
            0,
            Message {
                role: Role::System,
                content: Some(text),
                extra: Map::new(),
            },
        ),
    }
    written
}

fn written_message(message: &Message) -> Message {
    let content = message.content.clone().unwrap_or_default();
    if message.role == Role::Tool {
        return Message {
            role: Role::User,
            content: Some(format!("<tool_response>\n{content}\n</tool_response>")),
            extra: Map::new(),
        };
    }
    let calls = message.extra.get("tool_calls").and_then(Value::as_array);
    let Some(calls) = calls else {
        return message.clone();
    };
    let mut text = content;
    for call in calls {
        let function = call.get("function").unwrap_or(call);
        let (name, arguments) = (function.get("name"), function.get("arguments"));
        let call = serde_json::json!({"name": name, "arguments": arguments});
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("{OPEN}\n{call}\n</tool_call>"));
    }
    Message {
        role: message.role,
        content: Some(text),
        extra: Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content and calls of `text`, pushed in pieces of `n` characters.
    fn parsed(format: CallFormat, text: &str, n: usize) -> (String, Vec<(String, String)>) {
        let mut parser = CallParser::new(format);
        let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
        let characters: Vec<char> = text.chars().collect();
        for piece in characters.chunks(n) {
            let (more, pieces) = parser.push(&piece.iter().collect::<String>());
            content.push_str(&more);
            for piece in pieces {
                match piece {
                    CallPiece::Begin { index, name } => {
                        assert_eq!(index, calls.len());
                        calls.push((name, String::new()));
                    }
                    CallPiece::Arguments { index, text } => calls[index].1.push_str(&text),
                }
            }
        }
        content.push_str(&parser.finish());
        assert_eq!(parser.n_calls(), calls.len());
        (content, calls)
    }

    #[test]
    fn an_output_is_taken_apart_however_it_is_cut() {
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
        let tricky = r#"{"a": "}\"{", "b": [{"c": "\\"}]}"#;
        let hermes = format!(
            "Let me < see.<tool_call>\n{{\"name\": \"f\", \"arguments\": {tricky}}}\n</tool_call>\n\
             <tool_call>\n{{\"name\": \"g.h\", \"arguments\": {{}}}}\n</tool_call>"
        );
        let llama = format!(
            "{{\"name\": \"f\", \"parameters\": {tricky}}}; {{\"name\": \"g\", \"parameters\": {{}}}}"
        );
        for n in 1..40 {
            let (content, calls) = parsed(CallFormat::Hermes, &hermes, n);
            assert_eq!(content, "Let me < see.");
            assert_eq!(calls, [call("f", tricky), call("g.h", "{}")]);
            let (content, calls) = parsed(CallFormat::Llama3Json, &llama, n);
            assert_eq!(content, "");
            assert_eq!(calls, [call("f", tricky), call("g", "{}")]);
            let text = "no call <tool_cal, only é text {";
            for format in [CallFormat::Hermes, CallFormat::Llama3Json] {
                assert_eq!(parsed(format, text, n), (text.to_owned(), Vec::new()));
            }
            let (content, calls) = parsed(CallFormat::Hermes, &hermes[..60], n);
            assert_eq!((content.as_str(), calls.len()), ("Let me < see.", 1), "cut off");
        }
    }

    #[test]
    fn a_template_without_tools_gets_them_as_text() {
        let message = |role, content: &str| Message {
            role,
            content: Some(content.to_owned()),
            extra: Map::new(),
        };
        let mut called = message(Role::Assistant, "");
        let calls = serde_json::json!([{"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}]);
        called.extra.insert("tool_calls".to_owned(), calls);
        let messages = [message(Role::User, "hi"), called, message(Role::Tool, "42")];
        let tools = [serde_json::json!({"type": "function", "function": {"name": "f"}})];
        let written = written_out(&messages, &tools);
        let roles: Vec<_> = written.iter().map(|m| m.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User]);
        let text = |idx: usize| written[idx].content.as_deref().unwrap_or_default();
        assert!(
            text(0).contains(r#"{"type":"function","function":{"name":"f"}}"#),
            "{}",
            text(0)
        );
        assert_eq!(
            text(2),
            "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":1}}\n</tool_call>"
        );
        assert_eq!(text(3), "<tool_response>\n42\n</tool_response>");
        let merged = written_out(&[message(Role::System, "Be kind.")], &tools);
        assert_eq!(merged.len(), 1);
        assert!(
            merged[0]
                .content
                .as_deref()
                .unwrap_or_default()
                .starts_with("Be kind.\n\nYou can")
        );
    }
}
