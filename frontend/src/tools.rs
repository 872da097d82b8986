//! Tool calls between the API's objects and the model's text.
//!
//! ```text
//! in:   tools, earlier calls, results ── the chat template prints them; where it does not know tools, they
//!                                        become text of the messages, in the Hermes format
//! out:  text <tool_call>{"name": N, "arguments": A}</tool_call> ── CallParser ──► content, N, pieces of A
//! ```
//!
//! The grammar of a request with tools fixes every byte up to the arguments, so the parser has nothing to
//! guess: what begins with one of these texts is a call, all else is content.

use std::sync::Arc;

use arbora_constrained::CallFormat;
use serde_json::{Map, Value};

use crate::wire::message::{Message, Role};

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

/// What else than calls an output may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Besides {
    /// Free text: in [`CallFormat::Hermes`] anywhere between calls, in [`CallFormat::Llama3Json`] instead of
    /// them, and then it begins with no brace.
    Text,
    /// Something that has a form of its own, instead of calls.
    Format,
    /// Nothing: a call is required.
    Nothing,
}

/// How calls look in an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallStyle {
    format: CallFormat,
    besides: Besides,
    /// For each tool: its name, and a call up to the arguments.
    heads: Arc<[(String, String)]>,
}

impl CallStyle {
    /// Calls of tools with these names.
    pub fn new<'a>(format: CallFormat, besides: Besides, names: impl Iterator<Item = &'a str>) -> Self {
        let head = |name: &str| {
            let quoted = Value::from(name);
            match format {
                CallFormat::Hermes => format!("{OPEN}\n{{\"name\": {quoted}, \"arguments\": "),
                CallFormat::Llama3Json => format!("{{\"name\": {quoted}, \"parameters\": "),
            }
        };
        let heads = names.map(|name| (name.to_owned(), head(name)));
        CallStyle {
            format,
            besides,
            heads: heads.collect(),
        }
    }

    /// The tools, and how a call of each begins.
    pub fn heads(&self) -> impl Iterator<Item = (&str, &str)> {
        let heads = self.heads.iter();
        heads.map(|(name, head)| (name.as_str(), head.as_str()))
    }

    /// What a text is the beginning of.
    fn look(&self, text: &str) -> Look {
        let mut look = Look::Text;
        for (tool, (_, head)) in self.heads.iter().enumerate() {
            if text.starts_with(head) {
                return Look::Call { tool };
            }
            if head.starts_with(text) {
                look = Look::Undecided;
            }
        }
        look
    }
}

/// What a text begins with.
enum Look {
    Call {
        tool: usize,
    },
    /// A part of a call's beginning, perhaps nothing yet.
    Undecided,
    Text,
}

/// Where the parser stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At a call or at text up to the end.
    Start,
    /// In text that a call may interrupt.
    Text,
    /// In text up to the end.
    Plain,
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
    style: CallStyle,
    place: Place,
    /// Not understood yet.
    held: String,
    n_calls: usize,
}

impl CallParser {
    /// A parser of an output that has not begun.
    pub fn new(style: CallStyle) -> Self {
        CallParser {
            place: match (style.format, style.besides) {
                (CallFormat::Hermes, Besides::Text) => Place::Text,
                _ => Place::Start,
            },
            style,
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
        let is_call = match (self.style.format, self.style.besides) {
            (_, Besides::Nothing) => true,
            (CallFormat::Hermes, _) => held.starts_with(OPEN),
            (CallFormat::Llama3Json, Besides::Text) => held.starts_with('{'),
            (CallFormat::Llama3Json, Besides::Format) => false,
        };
        match self.place {
            Place::Start | Place::Text | Place::Plain if !is_call => held,
            // A call that was cut off: its beginning is no content.
            _ => String::new(),
        }
    }

    /// Whether it got anywhere.
    fn advance(&mut self, content: &mut String, pieces: &mut Vec<CallPiece>) -> bool {
        match (self.place, self.style.format) {
            (Place::Start, _) => match self.style.look(&self.held) {
                Look::Call { tool } => self.begin(tool, pieces),
                Look::Undecided => false,
                Look::Text => self.go(Place::Plain),
            },
            (Place::Text, _) => self.text(content, pieces),
            (Place::Plain, _) => {
                content.push_str(&std::mem::take(&mut self.held));
                false
            }
            (Place::Arguments { depth, quote }, _) => self.arguments((depth, quote), pieces),
            (Place::Close, CallFormat::Hermes) => self.expect("}\n</tool_call>", Place::Between),
            (Place::Close, CallFormat::Llama3Json) => self.expect("}", Place::Between),
            (Place::Between, CallFormat::Hermes) => {
                let kept = self.held.trim_start().len();
                self.held.drain(..self.held.len() - kept);
                !self.held.is_empty() && self.go(Place::Text)
            }
            (Place::Between, CallFormat::Llama3Json) => self.expect("; ", Place::Start),
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
    fn text(&mut self, content: &mut String, pieces: &mut Vec<CallPiece>) -> bool {
        let mut n_certain = self.held.len();
        let mut tool = None;
        for (at, _) in self.held.match_indices('<') {
            match self.style.look(&self.held[at..]) {
                Look::Text => continue,
                Look::Call { tool: found } => tool = Some(found),
                Look::Undecided => {}
            }
            n_certain = at;
            break;
        }
        content.extend(self.held.drain(..n_certain));
        tool.is_some_and(|tool| self.begin(tool, pieces))
    }

    /// Passes a call's beginning.
    fn begin(&mut self, tool: usize, pieces: &mut Vec<CallPiece>) -> bool {
        let (name, head) = &self.style.heads[tool];
        pieces.push(CallPiece::Begin {
            index: self.n_calls,
            name: name.clone(),
        });
        self.held.drain(..head.len());
        self.n_calls += 1;
        self.go(ARGUMENTS)
    }

    fn arguments(&mut self, (mut depth, mut quote): (usize, Quote), pieces: &mut Vec<CallPiece>) -> bool {
        // Held until something is in it: arguments that end here would be neither none nor a part of some.
        let is_start = depth == 0 && quote == Quote::Outside;
        if is_start && matches!(self.held.trim(), "" | "{") {
            return false;
        }
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
pub fn written_out(messages: Vec<Message>, tools: &[Value]) -> Vec<Message> {
    let mut written: Vec<Message> = messages.into_iter().map(written_message).collect();
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

fn written_message(message: Message) -> Message {
    if message.role == Role::Tool {
        let content = message.content.unwrap_or_default();
        return Message {
            role: Role::User,
            content: Some(format!("<tool_response>\n{content}\n</tool_response>")),
            extra: Map::new(),
        };
    }
    let calls = message.extra.get("tool_calls").and_then(Value::as_array);
    let Some(calls) = calls else {
        return message;
    };
    let mut text = message.content.unwrap_or_default();
    for call in calls {
        let function = call.get("function").unwrap_or(call);
        let (name, arguments) = (function.get("name"), function.get("arguments"));
        let name = name.unwrap_or(&Value::Null);
        // A call that was cut off: what there is of its arguments is no JSON.
        let arguments = match arguments {
            Some(Value::String(cut_off)) => cut_off.clone(),
            other => other.unwrap_or(&Value::Null).to_string(),
        };
        if !text.is_empty() {
            text.push('\n');
        }
        let call = format!("{{\"name\":{name},\"arguments\":{arguments}}}");
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
    fn parsed(
        (format, besides): (CallFormat, Besides),
        text: &str,
        n: usize,
    ) -> (String, Vec<(String, String)>) {
        let style = CallStyle::new(format, besides, ["f", "ff", "g.h", "g"].into_iter());
        let mut parser = CallParser::new(style);
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
        let (hermes_style, llama_style) = (CallFormat::Hermes, CallFormat::Llama3Json);
        for n in 1..40 {
            let (content, calls) = parsed((hermes_style, Besides::Text), &hermes, n);
            assert_eq!(content, "Let me < see.");
            assert_eq!(calls, [call("f", tricky), call("g.h", "{}")]);
            for besides in [Besides::Text, Besides::Format] {
                let (content, calls) = parsed((hermes_style, besides), &hermes["Let me < see.".len()..], n);
                assert_eq!(content, "");
                assert_eq!(calls, [call("f", tricky), call("g.h", "{}")]);
                let (content, calls) = parsed((llama_style, besides), &llama, n);
                assert_eq!(content, "");
                assert_eq!(calls, [call("f", tricky), call("g", "{}")]);
                let text = "no call <tool_cal, <tool_call>\n{\"name\": \"h\"}, only é text {";
                for format in [hermes_style, llama_style] {
                    assert_eq!(parsed((format, besides), text, n), (text.to_owned(), Vec::new()));
                }
            }
            let (content, calls) = parsed((hermes_style, Besides::Text), &hermes[..60], n);
            assert_eq!((content.as_str(), calls.len()), ("Let me < see.", 1), "cut off");
            let (content, calls) = parsed((hermes_style, Besides::Text), &hermes[..30], n);
            assert_eq!(
                (content.as_str(), calls.len()),
                ("Let me < see.", 0),
                "cut off before"
            );
        }
    }

    #[test]
    fn a_format_that_resembles_a_call_is_content() {
        let cases = [
            (CallFormat::Llama3Json, r#"{"name": "f", "parameter": 1}"#),
            (CallFormat::Llama3Json, r#"{"name": "Ann", "parameters": {}}"#),
            (CallFormat::Llama3Json, r#"{"name":"f", "parameters": {}}"#),
            (CallFormat::Llama3Json, r#"{"name": "f", "para"#),
            (
                CallFormat::Hermes,
                "[\"<tool_call>\\n\", \"<tool_call>\n{\\\"name\\\": \\\"f\\\", \"]",
            ),
            (
                CallFormat::Hermes,
                "a <tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>",
            ),
        ];
        for (format, text) in cases {
            for n in 1..text.len() {
                let expected = (text.to_owned(), Vec::new());
                assert_eq!(parsed((format, Besides::Format), text, n), expected);
            }
        }
        let cut = r#"{"name": "f", "para"#;
        let nothing = (String::new(), Vec::new());
        assert_eq!(parsed((CallFormat::Llama3Json, Besides::Text), cut, 3), nothing);
    }

    #[test]
    fn arguments_that_have_only_begun_are_none() {
        for cut in [
            r#"{"name": "f", "arguments": "#,
            r#"{"name": "f", "arguments": {"#,
            r#"{"name": "f", "arguments": { "#,
        ] {
            let text = format!("<tool_call>\n{cut}");
            for n in 1..text.len() {
                let (content, calls) = parsed((CallFormat::Hermes, Besides::Nothing), &text, n);
                assert_eq!(
                    (content.as_str(), &calls[..]),
                    ("", &[("f".to_owned(), String::new())][..])
                );
            }
        }
        for n in 1..9 {
            let style = (CallFormat::Hermes, Besides::Nothing);
            assert_eq!(parsed(style, "<tool_c", n), (String::new(), Vec::new()));
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
        let written = written_out(messages.to_vec(), &tools);
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
        let merged = written_out(vec![message(Role::System, "Be kind.")], &tools);
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
