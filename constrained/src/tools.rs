//! Tool calls in the formats that models were trained on.
//!
//! | format | a call | several |
//! |---|---|---|
//! | [`CallFormat::Hermes`] (Qwen and others) | `<tool_call>` newline `{"name": …, "arguments": …}` newline `</tool_call>` | one after another |
//! | [`CallFormat::Llama3Json`] | `{"name": …, "parameters": …}` | separated by `; ` |
//!
//! The space after the colons and the comma is the one that models write; within the arguments the schema
//! options decide. Where `<tool_call>` is a special token of the vocabulary it is taken as one or spelled.
//! Arguments satisfy the tool's schema and are an object, whatever the schema says.

use crate::constraint::lower_regex;
use crate::error::CompileError;
use crate::free_text::{Ending, FreeSpec};
use crate::ir::{Ir, Node, NodeId};
use crate::keys::{Spelling, quoted};
use crate::schema::{self, Enforcement, SchemaOptions, Source, Values};
use crate::tags::Context;

/// A tool that may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool<'a> {
    /// Its name.
    pub name: &'a str,
    /// The JSON Schema of its arguments.
    pub parameters: &'a str,
    /// What happens to the parts of that schema that cannot be enforced.
    pub enforcement: Enforcement,
}

/// How a call is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallFormat {
    /// In `<tool_call>` and `</tool_call>`.
    Hermes,
    /// A JSON object that is the whole of the output.
    Llama3Json,
}

/// Whether a tool is called, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolChoice<'a> {
    /// Text, or calls. In [`CallFormat::Hermes`] both; in [`CallFormat::Llama3Json`] what begins with a brace
    /// is a call.
    Auto,
    /// At least one call, and no text.
    Required,
    /// One call of this tool, and no text.
    Named(&'a str),
}

/// How many calls one output may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParallelCalls {
    /// Any number.
    Allowed,
    /// One at most; nothing follows it.
    AtMostOne,
}

/// Tools, and how they may be called.
#[derive(Clone, Copy, Debug)]
pub struct ToolSpec<'a> {
    /// The tools.
    pub tools: &'a [Tool<'a>],
    /// How a call is written.
    pub format: CallFormat,
    /// Whether and which.
    pub choice: ToolChoice<'a>,
    /// How many.
    pub parallel: ParallelCalls,
    /// How the schemas are read and the arguments written.
    pub options: SchemaOptions,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

impl ToolSpec<'_> {
    /// Bytes of source text, less that of relaxed tools, each of which is looked at on its own.
    pub(crate) fn n_bytes(&self) -> usize {
        let of_tool = |tool: &Tool<'_>| match tool.enforcement {
            Enforcement::Whole => tool.name.len() + tool.parameters.len(),
            Enforcement::Relaxed => tool.name.len(),
        };
        self.tools.iter().map(of_tool).sum()
    }

    pub(crate) fn lower(&self, ir: &mut Ir, context: Context<'_>) -> Result<NodeId, CompileError> {
        self.check()?;
        let mut calls = Vec::new();
        for (at, tool) in self.tools.iter().enumerate() {
            if !matches!(self.choice, ToolChoice::Named(name) if name != tool.name) {
                calls.push(self.object(ir, (at, tool), context)?);
            }
        }
        let call = ir.alt(calls);
        match self.format {
            CallFormat::Hermes => self.hermes(ir, call, context),
            CallFormat::Llama3Json => self.llama(ir, call, context),
        }
    }

    fn check(&self) -> Result<(), CompileError> {
        let malformed = |pointer: &str, keyword: &str, why: String| {
            Err(CompileError::Malformed {
                pointer: pointer.to_owned(),
                keyword: keyword.to_owned(),
                why,
            })
        };
        if self.tools.is_empty() {
            return malformed("#", "tools", "there are none".to_owned());
        }
        for (at, tool) in self.tools.iter().enumerate() {
            if self.tools[..at].iter().any(|before| before.name == tool.name) {
                let why = format!("two tools are called `{}`", tool.name);
                return malformed(&format!("#/tools/{at}"), "name", why);
            }
        }
        match self.choice {
            ToolChoice::Named(name) if self.tools.iter().all(|tool| tool.name != name) => {
                malformed("#", "tool_choice", format!("there is no tool `{name}`"))
            }
            _ => Ok(()),
        }
    }

    /// The JSON object of a call.
    fn object(
        &self,
        ir: &mut Ir,
        (at, tool): (usize, &Tool<'_>),
        context: Context<'_>,
    ) -> Result<NodeId, CompileError> {
        let place = format!("#/tools/{at}/parameters");
        let source = Source {
            text: tool.parameters,
            place: &place,
            values: Values::Objects,
        };
        let options = SchemaOptions {
            enforcement: tool.enforcement,
            ..*context.options
        };
        let arguments = schema::compile(ir, source, &options, context.limits)?;
        let member = match self.format {
            CallFormat::Hermes => "arguments",
            CallFormat::Llama3Json => "parameters",
        };
        let name = quoted(tool.name, Spelling::Raw);
        let before = ir.literal(&format!("{{\"name\": {name}, \"{member}\": "));
        let after = ir.literal("}");
        Ok(ir.seq(vec![before, arguments, after]))
    }

    fn hermes(&self, ir: &mut Ir, object: NodeId, context: Context<'_>) -> Result<NodeId, CompileError> {
        let newline = ir.literal("\n");
        let close = ir.marker(context.vocabulary, CLOSE)?;
        let inside = [newline, object, newline, close];
        if self.choice != ToolChoice::Auto {
            let mut call = vec![ir.marker(context.vocabulary, OPEN)?];
            call.extend(inside);
            let call = ir.seq(call);
            return Ok(self.several(ir, call, newline));
        }
        let rule = ir.new_rule();
        let mut inside = inside.to_vec();
        if self.parallel == ParallelCalls::Allowed {
            inside.push(ir.rule(rule));
        }
        let inside = ir.seq(inside);
        let token = context.vocabulary.special_named(OPEN);
        let spec = FreeSpec {
            markers: vec![(OPEN.to_owned(), inside)],
            tokens: token.map(|token| (token, inside)).into_iter().collect(),
            excludes: Vec::new(),
            ending: Ending::Anywhere,
        };
        let free = ir.free_text(context.vocabulary, spec)?;
        ir.define(rule, free);
        Ok(free)
    }

    fn llama(&self, ir: &mut Ir, object: NodeId, context: Context<'_>) -> Result<NodeId, CompileError> {
        let separator = ir.literal("; ");
        let calls = self.several(ir, object, separator);
        if self.choice != ToolChoice::Auto {
            return Ok(calls);
        }
        let first = lower_regex(ir, "[^{]")?;
        let spec = FreeSpec {
            markers: Vec::new(),
            tokens: Vec::new(),
            excludes: Vec::new(),
            ending: Ending::Anywhere,
        };
        let rest = ir.free_text(context.vocabulary, spec)?;
        let text = ir.seq(vec![first, rest]);
        let empty = ir.node(Node::Empty);
        Ok(ir.alt(vec![empty, text, calls]))
    }

    fn several(&self, ir: &mut Ir, call: NodeId, separator: NodeId) -> NodeId {
        if self.parallel == ParallelCalls::AtMostOne || matches!(self.choice, ToolChoice::Named(_)) {
            return call;
        }
        let more = ir.seq(vec![separator, call]);
        let more = ir.repeat(more, 0, None);
        ir.seq(vec![call, more])
    }
}
