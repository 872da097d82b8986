//! The model's chat templates (Jinja), rendered the way Hugging Face's library renders them.
//!
//! ```text
//! load     source ─► lexer ─► dialect ─► minijinja compiles it        one or two: default, tool_use
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
use arbora_runtime::model::templates::{DEFAULT, NamedTemplate, TOOL_USE};
use minijinja::{Environment, Error, Value};

use self::values::NullContent;
use crate::thinking::{self, Thinking};
use crate::wire::chat::PromptEnding;
use crate::wire::message::Message;

/// Most bytes of a rendered prompt.
const MAX_OUTPUT: usize = 64 << 20;

/// The compiled chat templates of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    default: Traits,
    /// Those of the template for chats with tools; absent where one template is for all chats.
    tool_use: Option<Traits>,
    knows_thinking: bool,
    bos: String,
    eos: String,
}

/// What the source of a template tells about it.
#[derive(Clone, Copy, Debug)]
struct Traits {
    call_format: Option<CallFormat>,
    null_content: NullContent,
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// One of the model's templates does not compile.
    #[error("the model's chat template '{name}' cannot be used: line {line}: {reason}")]
    Invalid {
        /// The template's name.
        name: String,
        /// Where, from 1.
        line: usize,
        /// What, in the template's words.
        reason: String,
    },
    /// There are several templates, but none for chats without tools.
    #[error("the model has several chat templates ({}), but none named '{DEFAULT}'", names.join(", "))]
    NoDefault {
        /// Their names.
        names: Vec<String>,
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
    /// Compiles one template for all chats.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let only = NamedTemplate {
            name: DEFAULT.to_owned(),
            source: source.to_owned(),
        };
        ChatTemplate::of_model(&[only], tokens)
    }

    /// Compiles those of a model's `templates`, at least one, that chats are rendered with: the default one
    /// and the one for chats with tools. An only one is the default, whatever its name.
    pub fn of_model(templates: &[NamedTemplate], tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let named = |name: &str| templates.iter().find(|template| template.name == name);
        let default = match (named(DEFAULT), templates) {
            (Some(default), _) | (None, [default]) => default,
            _ => {
                let names = templates.iter().map(|template| template.name.clone()).collect();
                return Err(TemplateError::NoDefault { names });
            }
        };
        let tool_use = named(TOOL_USE).filter(|_| templates.len() > 1);
        let mut environment = environment::environment();
        let traits = add(&mut environment, DEFAULT, default)?;
        let of_tool_use = tool_use.map(|template| add(&mut environment, TOOL_USE, template));
        let used = [Some(default), tool_use].into_iter().flatten();
        let has = |word: &str| used.clone().any(|template| template.source.contains(word));
        Ok(ChatTemplate {
            environment,
            source: default.source.clone(),
            default: traits,
            tool_use: of_tool_use.transpose()?,
            knows_thinking: has(thinking::CLOSE) || has(thinking::OPEN),
            bos: tokens.bos,
            eos: tokens.eos,
        })
    }

    /// What the one for chats without tools was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How the model was taught to call tools; `None` where its template knows of no tools or writes calls
    /// in a way the server does not read.
    pub fn call_format(&self) -> Option<CallFormat> {
        self.tool_use.unwrap_or(self.default).call_format
    }

    /// Whether tools are the template's to print: it is made for them, or writes calls that the server reads.
    pub fn prints_tools(&self) -> bool {
        self.tool_use.is_some() || self.default.call_format.is_some()
    }

    /// Whether it speaks of thoughts.
    pub fn knows_thinking(&self) -> bool {
        self.knows_thinking
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
        let (name, traits) = match self.tool_use {
            Some(traits) if !chat.tools.is_empty() => (TOOL_USE, traits),
            _ => (DEFAULT, self.default),
        };
        let template = self
            .environment
            .get_template(name)
            .expect("added at construction");
        let values = self.values(chat, traits.null_content);
        let mut output = Bounded::default();
        match template.render_captured_to(values, &mut output) {
            Ok(_) => Ok(String::from_utf8(output.0).expect("templates write UTF-8")),
            Err(error) => Err(classify(error)),
        }
    }

    /// The names every template may count on, as in Hugging Face's library, and the request's own.
    fn values(&self, chat: &Chat<'_>, null_content: NullContent) -> Value {
        let tools = match chat.tools {
            [] => Value::from(()),
            tools => tools.iter().map(values::from_json).collect(),
        };
        let messages = chat.messages.iter();
        let common = [
            (
                "messages",
                messages
                    .map(|message| values::from_message(message, null_content))
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

/// Compiles `template` under the name `used_as`.
fn add(
    environment: &mut Environment<'static>,
    used_as: &'static str,
    template: &NamedTemplate,
) -> Result<Traits, TemplateError> {
    let invalid = |line, reason| TemplateError::Invalid {
        name: template.name.clone(),
        line,
        reason,
    };
    let source = template.source.as_str();
    let translated = dialect::translate(source).map_err(|error| invalid(error.line, error.message))?;
    environment
        .add_template_owned(used_as, translated.source)
        .map_err(|error| {
            let kind = error.kind().to_string();
            let reason = error.detail().map_or(kind, str::to_owned);
            invalid(error.line().unwrap_or(1), reason)
        })?;
    Ok(Traits {
        call_format: call_format(source),
        null_content: translated.null_content,
    })
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
