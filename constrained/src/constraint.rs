//! What an output may be asked to satisfy. The kind is always said, never guessed from the text.

use crate::dfa::Dfa;
use crate::ebnf::{self, Dialect};
use crate::error::CompileError;
use crate::free_text::{Ending, FreeSpec};
use crate::ir::{Ir, NodeId};
use crate::limits::Limits;
use crate::pattern::{Pattern, Syntax};
use crate::schema::{self, SchemaOptions, Source, Values, Whitespace};
use crate::tags::{self, Context};
use crate::tools::ToolSpec;
use crate::vocabulary::Vocabulary;

/// A constraint by its kind.
#[derive(Clone, Copy, Debug)]
pub enum Constraint<'a> {
    /// JSON that satisfies a JSON Schema.
    JsonSchema {
        /// The schema's text.
        schema: &'a str,
        /// How it is read and written.
        options: SchemaOptions,
    },
    /// What a regular expression matches from end to end: in Rust's syntax, with look-around and what else
    /// Python's has.
    Regex(&'a str),
    /// Exactly the given texts.
    Choice(&'a [&'a str]),
    /// A grammar in GBNF, the format of llama.cpp.
    Gbnf(&'a str),
    /// A grammar in XGrammar's EBNF.
    Ebnf {
        /// Its text.
        text: &'a str,
        /// The rule it begins with; XGrammar's default is `root`.
        root: &'a str,
    },
    /// A grammar in Lark, as llguidance takes it.
    Lark {
        /// Its text.
        text: &'a str,
        /// How the schemas in it are read and written.
        options: SchemaOptions,
    },
    /// A structural tag: free text and constrained parts.
    StructuralTag {
        /// Its JSON text.
        text: &'a str,
        /// How the schemas in it are read and written.
        options: SchemaOptions,
    },
    /// Calls of tools.
    Tools(ToolSpec<'a>),
    /// Free text up to a marker, such as the end of a model's thinking, and then another constraint.
    After {
        /// The marker: a text, or the special token that is called so.
        marker: &'a str,
        /// What follows it.
        then: &'a Constraint<'a>,
    },
    /// Another constraint, and before it, if the model likes, free text between two marks, such as its
    /// thinking.
    MaybeAfter {
        /// What opens the free text: a text, or the special token that is called so.
        opening: &'a str,
        /// What closes it, likewise.
        marker: &'a str,
        /// What follows.
        then: &'a Constraint<'a>,
    },
    /// What one of several constraints accepts. JSON has whitespace where all that write JSON allow it.
    Either(&'a [Constraint<'a>]),
}

impl Constraint<'_> {
    /// Bytes of source text.
    fn n_bytes(&self) -> usize {
        match self {
            Self::Regex(text)
            | Self::Gbnf(text)
            | Self::Ebnf { text, .. }
            | Self::Lark { text, .. }
            | Self::StructuralTag { text, .. } => text.len(),
            Self::Tools(spec) => spec.n_bytes(),
            Self::After { marker, .. } => marker.len(),
            Self::MaybeAfter { opening, marker, .. } => opening.len() + marker.len(),
            // Each counts for itself, and a schema where it is read.
            Self::Either(_) | Self::JsonSchema { .. } => 0,
            Self::Choice(choices) => choices.iter().map(|choice| choice.len()).sum(),
        }
    }

    /// Whitespace around JSON's punctuation; `None` where no JSON is written.
    pub(crate) fn whitespace(&self) -> Option<Whitespace> {
        match self {
            Self::JsonSchema { options, .. }
            | Self::StructuralTag { options, .. }
            | Self::Lark { options, .. } => Some(options.whitespace),
            Self::Tools(spec) => Some(spec.options.whitespace),
            Self::After { then, .. } | Self::MaybeAfter { then, .. } => then.whitespace(),
            Self::Either(parts) => {
                let found = parts.iter().filter_map(Self::whitespace);
                found.reduce(|a, b| if a == Whitespace::None { a } else { b })
            }
            _ => None,
        }
    }

    pub(crate) fn lower(
        &self,
        ir: &mut Ir,
        vocabulary: &Vocabulary,
        limits: &Limits,
    ) -> Result<NodeId, CompileError> {
        if self.n_bytes() > limits.max_source_bytes {
            return Err(CompileError::Limit {
                name: "max_source_bytes",
                limit: limits.max_source_bytes as u64,
                place: "the source text".to_owned(),
            });
        }
        match self {
            Self::JsonSchema { schema, options } => {
                let source = Source {
                    text: schema,
                    place: "#",
                    values: Values::All,
                };
                schema::compile(ir, source, options, limits)
            }
            Self::Regex(regex) => lower_regex(ir, regex),
            Self::Choice(choices) => {
                Ok(ir.dfa(Dfa::of_strings(choices.iter().map(|choice| choice.as_bytes()))))
            }
            Self::Gbnf(text) => ebnf::compile(ir, vocabulary, (text, Dialect::Gbnf), "root", limits),
            Self::Ebnf { text, root } => ebnf::compile(ir, vocabulary, (text, Dialect::Ebnf), root, limits),
            Self::Lark { text, options } => ebnf::compile_lark(ir, vocabulary, (text, options), limits),
            Self::StructuralTag { text, options } => {
                let context = Context {
                    vocabulary,
                    options,
                    limits,
                };
                tags::compile(ir, text, context)
            }
            Self::Tools(spec) => {
                let context = Context {
                    vocabulary,
                    options: &spec.options,
                    limits,
                };
                spec.lower(ir, context)
            }
            Self::After { marker, then } => {
                let then = then.lower(ir, vocabulary, limits)?;
                free_text_before(ir, vocabulary, marker, then)
            }
            Self::MaybeAfter {
                opening,
                marker,
                then,
            } => {
                let then = then.lower(ir, vocabulary, limits)?;
                let opening = ir.marker(vocabulary, opening)?;
                let rest = free_text_before(ir, vocabulary, marker, then)?;
                let both = ir.seq(vec![opening, rest]);
                Ok(ir.alt(vec![both, then]))
            }
            Self::Either(parts) => {
                let parts = parts.iter().map(|part| part.lower(ir, vocabulary, limits));
                let parts = parts.collect::<Result<_, _>>()?;
                Ok(ir.alt(parts))
            }
        }
    }
}

/// Free text up to `marker`, and `then`.
fn free_text_before(
    ir: &mut Ir,
    vocabulary: &Vocabulary,
    marker: &str,
    then: NodeId,
) -> Result<NodeId, CompileError> {
    let token = vocabulary.special_named(marker);
    let spec = FreeSpec {
        markers: vec![(marker.to_owned(), then)],
        tokens: token.map(|token| (token, then)).into_iter().collect(),
        excludes: Vec::new(),
        ending: Ending::AtMarker,
    };
    ir.free_text(vocabulary, spec)
}

pub(crate) fn lower_regex(ir: &mut Ir, regex: &str) -> Result<NodeId, CompileError> {
    let pattern = Pattern::parse(regex, Syntax::Rust)?;
    pattern.without_outer_anchors().node(ir)
}
