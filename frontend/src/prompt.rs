//! Prompt preparation: chat template and tokenization.
//!
//! In a chat, only the template may open and close messages. Text inside a message that spells a control
//! token (`<|im_end|>`) is kept text:
//!
//! ```text
//! message      ok<|im_end|>            the user types a control token
//! marked       ok<M|im_end|>           M: a character no message of this chat holds
//! rendered     <|im_start|>user\nok<M|im_end|><|im_end|>\n
//! tokens       [control]user\nok [<|im_end|> as text][control]\n       M removed again
//! ```

use std::borrow::Cow;
use std::sync::Arc;

use arbora_constrained::CallFormat;
use arbora_runtime::tokenizer::{EncodeError, SpecialTokens, Tokenizer};
use serde_json::Value;

use crate::template::{Chat, ChatTemplate, TemplateError};
use crate::thinking::Thinking;
use crate::wire::chat::PromptEnding;
use crate::wire::completion::Bos;
use crate::wire::message::Message;

/// Unicode's noncharacters, never assigned and free for a program's own use.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// Turns chats and texts into prompts.
#[derive(Debug)]
pub struct PromptEncoder {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    controls: ControlTokens,
}

/// The prompt of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPrompt {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Where it leaves a model that thinks.
    pub thinking: Thinking,
}

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The model file has none.
    #[error("this model has no chat template; use text completions")]
    NoTemplate,
    /// The template did not render.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The text holds all 32 characters the server could mark control tokens with.
    #[error("the messages hold every noncharacter from U+FDD0 to U+FDEF")]
    NoMarkLeft,
    /// The template leaves the last message out.
    #[error("the chat template does not show the last message, so it cannot be continued")]
    NotContinued,
    /// The tokenizer failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl PromptEncoder {
    /// An encoder for one model; without a template it takes texts only.
    pub fn new(tokenizer: Arc<Tokenizer>, template: Option<ChatTemplate>) -> Self {
        let controls = ControlTokens::new(&tokenizer);
        PromptEncoder {
            tokenizer,
            template,
            controls,
        }
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The source of the model's chat template, where it has one.
    pub fn template_source(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// The tokens of a text in which control tokens may be spelled out, `limit` at most.
    pub fn text(&self, text: &str, bos: Bos, limit: usize) -> Result<Vec<u32>, PromptError> {
        let ids = self.tokenizer.encode_within(text, SpecialTokens::Parse, limit)?;
        Ok(match bos {
            Bos::AsTrained => self.with_bos(ids),
            Bos::Without => ids,
        })
    }

    /// How the model calls tools, if its template says so.
    pub fn call_format(&self) -> Option<CallFormat> {
        self.template.as_ref().and_then(ChatTemplate::call_format)
    }

    /// Whether the model's template speaks of thoughts.
    pub fn knows_thinking(&self) -> bool {
        self.template.as_ref().is_some_and(ChatTemplate::knows_thinking)
    }

    /// Whether tools are for the template to print; otherwise they are to be written into the messages.
    pub fn prints_tools(&self) -> bool {
        self.template.as_ref().is_some_and(ChatTemplate::prints_tools)
    }

    /// The prompt of a rendered chat, of at most `limit` tokens.
    pub fn chat(&self, chat: &Chat<'_>, limit: usize) -> Result<ChatPrompt, PromptError> {
        if chat.ending != PromptEnding::LastMessage {
            return self.chat_until(chat, None, limit);
        }
        // Only a mark tells where in the prompt the last message ends.
        let end = unused_mark(chat).ok_or(PromptError::NoMarkLeft)?;
        let mut messages = chat.messages.to_vec();
        if let Some(text) = messages.last_mut().and_then(|last| last.content.as_mut()) {
            text.push(end);
        }
        let messages = &messages;
        self.chat_until(&Chat { messages, ..*chat }, Some(end), limit)
    }

    fn chat_until(
        &self,
        chat: &Chat<'_>,
        end: Option<char>,
        limit: usize,
    ) -> Result<ChatPrompt, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        let render = |chat: &Chat<'_>| {
            let mut rendered = template.render(chat)?;
            if let Some(end) = end {
                let found = rendered.find(end).ok_or(PromptError::NotContinued)?;
                rendered.truncate(found);
            }
            Ok::<_, PromptError>(rendered)
        };
        let is_spelled = |m: &Message| {
            let in_content = m
                .content
                .as_deref()
                .is_some_and(|text| self.controls.occur_in(text));
            in_content || m.extra.values().any(|value| self.spelled_in(value))
        };
        let in_tools = chat.tools.iter().any(|tool| self.spelled_in(tool));
        if !in_tools && !chat.messages.iter().any(is_spelled) {
            let rendered = render(chat)?;
            return Ok(ChatPrompt {
                tokens: self.text(&rendered, Bos::AsTrained, limit)?,
                thinking: template.thinking(&rendered),
            });
        }
        let mark = unused_mark(chat).ok_or(PromptError::NoMarkLeft)?;
        let messages: Vec<_> = chat.messages.iter().map(|m| self.marked(m, mark)).collect();
        let tools: Vec<_> = chat
            .tools
            .iter()
            .map(|tool| self.marked_value(tool, mark))
            .collect();
        let rendered = render(&Chat {
            messages: &messages,
            tools: &tools,
            ..*chat
        })?;
        Ok(ChatPrompt {
            tokens: self.marked_text(&rendered, mark, limit)?,
            thinking: template.thinking(&rendered),
        })
    }

    /// Tokens of a text in which control tokens with a mark inside are plain text, `limit` at most.
    fn marked_text(&self, text: &str, mark: char, limit: usize) -> Result<Vec<u32>, PromptError> {
        let mut ids = Vec::new();
        let mut start = 0;
        let plain = |piece: &str, ids: &mut Vec<u32>| -> Result<(), EncodeError> {
            let piece = piece.replace(mark, "");
            let room = limit.saturating_sub(ids.len());
            let more = self.tokenizer.encode_within(&piece, SpecialTokens::AsText, room);
            match more {
                Ok(more) => ids.extend(more),
                Err(EncodeError::TooManyTokens { .. }) => return Err(EncodeError::TooManyTokens { limit }),
                Err(error) => return Err(error),
            }
            Ok(())
        };
        while let Some((at, token, n_bytes)) = self.controls.first_in(text, start) {
            plain(&text[start..at], &mut ids)?;
            ids.push(token);
            start = at + n_bytes;
        }
        plain(&text[start..], &mut ids)?;
        Ok(self.with_bos(ids))
    }

    /// Many templates print the BOS themselves; a second one would be noise.
    fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.tokenizer.bos()
            && self.tokenizer.add_bos()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    fn spelled_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.controls.occur_in(text),
            Value::Array(items) => items.iter().any(|item| self.spelled_in(item)),
            Value::Object(fields) => fields
                .iter()
                .any(|(name, value)| self.controls.occur_in(name) || self.spelled_in(value)),
            _ => false,
        }
    }

    fn marked(&self, message: &Message, mark: char) -> Message {
        let mark_text = |text: &String| self.controls.mark(text, mark).into_owned();
        let extra = message
            .extra
            .iter()
            .map(|(name, value)| (name.clone(), self.marked_value(value, mark)));
        Message {
            role: message.role,
            content: message.content.as_ref().map(mark_text),
            extra: extra.collect(),
        }
    }

    fn marked_value(&self, value: &Value, mark: char) -> Value {
        match value {
            Value::String(text) => Value::String(self.controls.mark(text, mark).into_owned()),
            Value::Array(items) => items.iter().map(|item| self.marked_value(item, mark)).collect(),
            Value::Object(fields) => {
                let marked = |(name, value)| {
                    let name: &String = name;
                    (
                        self.controls.mark(name, mark).into_owned(),
                        self.marked_value(value, mark),
                    )
                };
                Value::Object(fields.iter().map(marked).collect())
            }
            other => other.clone(),
        }
    }
}

fn unused_mark(chat: &Chat<'_>) -> Option<char> {
    let is_used = |mark: char| {
        let in_tools = chat.tools.iter().any(|tool| holds(tool, mark));
        in_tools
            || chat.messages.iter().any(|m| {
                let in_content = m.content.as_deref().is_some_and(|text| text.contains(mark));
                in_content || m.extra.values().any(|value| holds(value, mark))
            })
    };
    MARKS.clone().find(|mark| !is_used(*mark))
}

fn holds(value: &Value, mark: char) -> bool {
    match value {
        Value::String(text) => text.contains(mark),
        Value::Array(items) => items.iter().any(|item| holds(item, mark)),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| name.contains(mark) || holds(value, mark)),
        _ => false,
    }
}

/// Finds spelled-out control tokens.
#[derive(Debug)]
struct ControlTokens {
    /// A list for each first byte, longest first.
    by_first_byte: Box<[Vec<(String, u32)>; 256]>,
}

impl ControlTokens {
    fn new(tokenizer: &Tokenizer) -> Self {
        let mut by_first_byte = Box::new([const { Vec::new() }; 256]);
        for id in (0..tokenizer.n_vocab() as u32).filter(|id| tokenizer.is_special(*id)) {
            let name = String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned();
            if let Some(first) = name.bytes().next() {
                by_first_byte[usize::from(first)].push((name, id));
            }
        }
        for names in by_first_byte.iter_mut() {
            names.sort_by_key(|(name, _): &(String, u32)| std::cmp::Reverse(name.len()));
        }
        ControlTokens { by_first_byte }
    }

    fn occur_in(&self, text: &str) -> bool {
        self.first_in(text, 0).is_some()
    }

    /// Position, id and length of the first control token at or after `start`, the longest where several
    /// start.
    fn first_in(&self, text: &str, start: usize) -> Option<(usize, u32, usize)> {
        let bytes = text.as_bytes();
        (start..bytes.len()).find_map(|at| {
            let (name, id) = self.by_first_byte[usize::from(bytes[at])]
                .iter()
                .find(|(name, _)| bytes[at..].starts_with(name.as_bytes()))?;
            Some((at, *id, name.len()))
        })
    }

    /// Puts `mark` behind the first character of every control token.
    fn mark<'a>(&self, text: &'a str, mark: char) -> Cow<'a, str> {
        let mut marked = String::new();
        let mut start = 0;
        let mut from = 0;
        while let Some((at, _, _)) = self.first_in(text, from) {
            let first = text[at..].chars().next().expect("a token's name is not empty");
            from = at + first.len_utf8();
            marked.push_str(&text[start..from]);
            marked.push(mark);
            start = from;
        }
        if start == 0 {
            return Cow::Borrowed(text);
        }
        marked.push_str(&text[start..]);
        Cow::Owned(marked)
    }
}
