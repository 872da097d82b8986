//! What an output may be asked to satisfy. The kind is always said, never guessed from the text.

use crate::dfa::Dfa;
use crate::ebnf::{self, Dialect};
use crate::error::CompileError;
use crate::ir::{Ir, NodeId};
use crate::limits::Limits;
use crate::pattern;
use crate::schema::{self, SchemaOptions, Whitespace};
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
    /// What a regular expression, in Rust's syntax, matches from end to end.
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
    /// A grammar in a subset of Lark.
    Lark(&'a str),
}

impl Constraint<'_> {
    /// Bytes of source text.
    fn n_bytes(&self) -> usize {
        match self {
            Self::JsonSchema { schema: text, .. }
            | Self::Regex(text)
            | Self::Gbnf(text)
            | Self::Ebnf { text, .. }
            | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len()).sum(),
        }
    }

    /// Whitespace around JSON's punctuation.
    pub(crate) fn max_whitespace(&self, limits: &Limits) -> usize {
        match self {
            Self::JsonSchema { options, .. } => max_whitespace(options, limits),
            _ => 0,
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
            Self::JsonSchema { schema, options } => schema::compile(ir, schema, options, limits),
            Self::Regex(regex) => lower_regex(ir, regex, limits),
            Self::Choice(choices) => {
                Ok(ir.dfa(Dfa::of_strings(choices.iter().map(|choice| choice.as_bytes()))))
            }
            Self::Gbnf(text) => ebnf::compile(ir, vocabulary, (text, Dialect::Gbnf), "root", limits),
            Self::Ebnf { text, root } => ebnf::compile(ir, vocabulary, (text, Dialect::Ebnf), root, limits),
            Self::Lark(text) => ebnf::compile_lark(ir, vocabulary, text, limits),
        }
    }
}

fn max_whitespace(options: &SchemaOptions, limits: &Limits) -> usize {
    match options.whitespace {
        Whitespace::Any => limits.max_whitespace,
        Whitespace::None => 0,
    }
}

pub(crate) fn lower_regex(ir: &mut Ir, regex: &str, limits: &Limits) -> Result<NodeId, CompileError> {
    match pattern::compile(regex, limits.max_automaton_states) {
        Ok(dfa) => Ok(ir.dfa(dfa)),
        Err(CompileError::Limit { .. }) => pattern::nodes(ir, regex),
        Err(error) => Err(error),
    }
}
