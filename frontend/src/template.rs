//! The model's chat template (Jinja), rendered the way Hugging Face's library renders it.
//!
//! ```text
//! load     source ─► lexer ─► dialect ─► minijinja compiles it
//! render   messages, tools ─► values ─► environment ─► prompt
//!                                         ├ filters, json             Jinja2's, json.dumps
//!                                         ├ strings, containers       methods of str, list and dict
//!                                         └ percent, strftime
//! ```
//!
//! A template comes from the operator's model file, never from a client. It runs with bounded fuel and
//! output; everything it is given is plain data.

mod arguments;
mod containers;
mod dialect;
mod environment;
mod filters;
mod json;
mod lexer;
mod number;
mod percent;
mod strftime;
mod strings;
mod values;

use std::io::{self, Write};

use arbora_constrained::CallFormat;
use minijinja::{Environment, Error, Value};

use self::values::NullContent;
use crate::thinking::{self, Thinking};
use crate::wire::chat::{Message, PromptEnding};

/// Most bytes of a rendered prompt.
const MAX_OUTPUT: usize = 64 << 20;

const NAME: &str = "default";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    call_format: Option<CallFormat>,
    null_content: NullContent,
    knows_thinking: bool,
    bos: String,
    eos: String,
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model's template does not compile.
    #[error("the model's chat template cannot be used: line {line}: {reason}")]
    Invalid {
        /// Where, from 1.
        line: usize,
        /// What, in the template's words.
        reason: String,
    },
    /// The template itself refused the messages, in its own words.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template cannot digest the messages.
    #[error("the model's chat template cannot render these messages")]
    Failed(#[source] Error),
}

/// Texts of the tokens a template may print.
#[derive(Clone, Debug, Default)]
pub struct TemplateTokens {
    /// Beginning of sequence; empty where the model has none.
    pub bos: String,
    /// End of sequence; empty where the model has none.
    pub eos: String,
}

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let invalid = |line, reason| TemplateError::Invalid { line, reason };
        let translated = dialect::translate(source).map_err(|error| invalid(error.line, error.message))?;
        let mut environment = environment::environment();
        environment
            .add_template_owned(NAME, translated.source)
            .map_err(|error| {
                let kind = error.kind().to_string();
                let reason = error.detail().map_or(kind, str::to_owned);
                invalid(error.line().unwrap_or(1), reason)
            })?;
        Ok(ChatTemplate {
            environment,
            call_format: call_format(source),
            null_content: translated.null_content,
            knows_thinking: source.contains(thinking::CLOSE) || source.contains(thinking::OPEN),
            bos: tokens.bos,
            eos: tokens.eos,
        })
    }

    /// How the model was taught to call tools; `None` where the template knows of no tools or writes calls
    /// in a way the server does not read.
    pub fn call_format(&self) -> Option<CallFormat> {
        self.call_format
    }

    /// What `rendered`, a prompt of this template, says about thinking.
    pub fn thinking(&self, rendered: &str) -> Thinking {
        match self.knows_thinking {
            true => Thinking::at_end_of(rendered),
            false => Thinking::None,
        }
    }

    /// The prompt for a chat.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, TemplateError> {
        let template = self
            .environment
            .get_template(NAME)
            .expect("added at construction");
        let values = self.values(chat);
        let mut output = Bounded::default();
        match template.render_captured_to(values, &mut output) {
            Ok(_) => Ok(String::from_utf8(output.0).expect("templates write UTF-8")),
            Err(error) => Err(classify(error)),
        }
    }

    /// The names every template may count on, as in Hugging Face's library, and the request's own.
    fn values(&self, chat: &Chat<'_>) -> Value {
        let tools = match chat.tools {
            [] => Value::from(()),
            tools => tools.iter().map(values::from_json).collect(),
        };
        let messages = chat.messages.iter();
        let common = [
            (
                "messages",
                messages
                    .map(|message| values::from_message(message, self.null_content))
                    .collect(),
            ),
            (
                "add_generation_prompt",
                (chat.ending == PromptEnding::Answer).into(),
            ),
            ("bos_token", self.bos.as_str().into()),
            ("eos_token", self.eos.as_str().into()),
            ("tools", tools),
            ("documents", ().into()),
        ];
        let common = common.map(|(name, value)| (Value::from(name), value));
        Value::from_pairs(common.into_iter().chain(values::pairs(chat.values)))
    }
}

/// What a template is rendered with.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'a> {
    /// At least one.
    pub messages: &'a [Message],
    /// What may be called, as the client wrote it.
    pub tools: &'a [serde_json::Value],
    /// Where the answer begins.
    pub ending: PromptEnding,
    /// Further values by name.
    pub values: &'a serde_json::Map<String, serde_json::Value>,
}

/// Told from words that no template of another format has.
fn call_format(source: &str) -> Option<CallFormat> {
    let has = |word| source.contains(word);
    if !has("tools") {
        return None;
    }
    if has("<tool_call>") {
        return Some(CallFormat::Hermes);
    }
    let is_llama = has("<|start_header_id|>") && has("\"parameters\"");
    is_llama.then_some(CallFormat::Llama3Json)
}

fn classify(error: Error) -> TemplateError {
    match error
        .detail()
        .and_then(|detail| detail.strip_prefix(environment::REFUSAL))
    {
        Some(message) => TemplateError::Refused(message.chars().take(500).collect()),
        None => TemplateError::Failed(error),
    }
}

#[derive(Default)]
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("the rendered prompt is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
