//! Compiled grammars.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::CompileError;
use crate::ir::Ir;
use crate::limits::Limits;
use crate::matcher::{Matcher, lock};
use crate::pattern;
use crate::schema::{self, SchemaOptions};
use crate::tables::Tables;
use crate::vocabulary::Vocabulary;

/// A compiled grammar for one vocabulary. Cloning it shares everything.
#[derive(Clone, Debug)]
pub struct Grammar(pub(crate) Arc<Parts>);

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) ir: Ir,
    pub(crate) limits: Limits,
    pub(crate) vocabulary: Arc<Vocabulary>,
    /// The tables that new matchers join; replaced when full.
    tables: Mutex<Arc<Mutex<Tables>>>,
}

impl Grammar {
    /// JSON texts that satisfy the JSON Schema `schema`.
    ///
    /// # Errors
    /// When the schema is malformed, asks for something that would not be enforced (the error names the place
    /// and the keyword), admits nothing, or exceeds a limit.
    pub fn compile_json_schema(
        vocabulary: &Arc<Vocabulary>,
        schema: &str,
        options: &SchemaOptions,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        check_source(schema, limits)?;
        let max_whitespace = if options.whitespace == crate::Whitespace::Any {
            limits.max_whitespace
        } else {
            0
        };
        let mut ir = Ir::new(vocabulary, limits, max_whitespace);
        let root = schema::compile(&mut ir, vocabulary, schema, options, limits)?;
        Self::new(ir, root, vocabulary, limits)
    }

    /// Texts that the regular expression `regex` (Rust's syntax) matches from end to end.
    ///
    /// # Errors
    /// When the expression is malformed, not regular, matches nothing, or exceeds a limit.
    pub fn compile_regex(
        vocabulary: &Arc<Vocabulary>,
        regex: &str,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        check_source(regex, limits)?;
        let mut ir = Ir::new(vocabulary, limits, 0);
        let root = match pattern::compile(regex, limits.max_automaton_states) {
            Ok(dfa) => ir.dfa(dfa),
            Err(CompileError::Limit { .. }) => pattern::nodes(&mut ir, regex)?,
            Err(error) => return Err(error),
        };
        Self::new(ir, root, vocabulary, limits)
    }

    /// Exactly the given texts.
    ///
    /// # Errors
    /// When there are none that the vocabulary can spell, or a limit is exceeded.
    pub fn compile_choice(
        vocabulary: &Arc<Vocabulary>,
        choices: &[&str],
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        let n_bytes: usize = choices.iter().map(|choice| choice.len()).sum();
        if n_bytes > limits.max_source_bytes {
            return Err(source_limit(limits));
        }
        let mut ir = Ir::new(vocabulary, limits, 0);
        let choices = choices.iter().map(|choice| choice.as_bytes());
        let root = ir.dfa(crate::dfa::Dfa::of_strings(choices));
        Self::new(ir, root, vocabulary, limits)
    }

    fn new(
        ir: Ir,
        root: crate::ir::NodeId,
        vocabulary: &Arc<Vocabulary>,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        let ir = ir.finish(root)?;
        let tables = Mutex::new(Arc::new(Mutex::new(Tables::new(&ir, limits))));
        Ok(Self(Arc::new(Parts {
            ir,
            limits: limits.clone(),
            vocabulary: vocabulary.clone(),
            tables,
        })))
    }

    /// A matcher at the beginning of the output.
    pub fn matcher(&self) -> Matcher {
        let tables = self.current().clone();
        let is_full = lock(&tables).is_full(&self.0.limits);
        let tables = if is_full {
            self.fresh_tables(&tables)
        } else {
            tables
        };
        Matcher::new(self.clone(), tables)
    }

    /// The vocabulary it was compiled for.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.0.vocabulary
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Arc<Mutex<Tables>>> {
        self.0.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tables to go on with instead of `full`: the ones that another matcher began, or new ones.
    pub(crate) fn fresh_tables(&self, full: &Arc<Mutex<Tables>>) -> Arc<Mutex<Tables>> {
        let mut current = self.current();
        if Arc::ptr_eq(&current, full) || lock(&current).is_full(&self.0.limits) {
            *current = Arc::new(Mutex::new(Tables::new(&self.0.ir, &self.0.limits)));
        }
        current.clone()
    }
}

fn check_source(source: &str, limits: &Limits) -> Result<(), CompileError> {
    if source.len() > limits.max_source_bytes {
        return Err(source_limit(limits));
    }
    Ok(())
}

fn source_limit(limits: &Limits) -> CompileError {
    CompileError::Limit {
        name: "max_source_bytes",
        limit: limits.max_source_bytes as u64,
        place: "the source text".to_owned(),
    }
}
