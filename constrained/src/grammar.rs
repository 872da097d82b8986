//! Compiled grammars.

use std::sync::{Arc, Mutex, PoisonError};

use crate::constraint::Constraint;
use crate::error::CompileError;
use crate::fill::Asked;
use crate::ir::Ir;
use crate::limits::Limits;
use crate::matcher::{Matcher, lock};
use crate::schema::{Relaxed, SchemaOptions, Whitespace};
use crate::tables::Tables;
use crate::tools::ToolSpec;
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
    n_ir_bytes: usize,
}

impl Parts {
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked {
            ir: &self.ir,
            vocabulary: &self.vocabulary,
        }
    }
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
        let options = *options;
        Self::compile(vocabulary, &Constraint::JsonSchema { schema, options }, limits)
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
        Self::compile(vocabulary, &Constraint::Regex(regex), limits)
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
        Self::compile(vocabulary, &Constraint::Choice(choices), limits)
    }

    /// Texts of the GBNF grammar `text` (the format of llama.cpp), which begins with its rule `root`.
    ///
    /// # Errors
    /// When the grammar is malformed (the error names line and column), uses what is not supported, derives
    /// nothing, or exceeds a limit.
    pub fn compile_gbnf(
        vocabulary: &Arc<Vocabulary>,
        text: &str,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        Self::compile(vocabulary, &Constraint::Gbnf(text), limits)
    }

    /// Texts of the grammar `text` in XGrammar's EBNF, which begins with the rule `root`.
    ///
    /// # Errors
    /// As [`Grammar::compile_gbnf`].
    pub fn compile_ebnf(
        vocabulary: &Arc<Vocabulary>,
        text: &str,
        root: &str,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        Self::compile(vocabulary, &Constraint::Ebnf { text, root }, limits)
    }

    /// Texts of the Lark grammar `text`, which begins with its rule `start`; schemas in it are read by
    /// `options`.
    ///
    /// # Errors
    /// As [`Grammar::compile_gbnf`].
    pub fn compile_lark(
        vocabulary: &Arc<Vocabulary>,
        text: &str,
        options: &SchemaOptions,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        let options = *options;
        Self::compile(vocabulary, &Constraint::Lark { text, options }, limits)
    }

    /// Texts of the structural tag `text`.
    ///
    /// # Errors
    /// When it is malformed, has a type or member that is not supported (the error names the JSON pointer),
    /// admits nothing, or exceeds a limit.
    pub fn compile_structural_tag(
        vocabulary: &Arc<Vocabulary>,
        text: &str,
        options: &SchemaOptions,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        let options = *options;
        Self::compile(vocabulary, &Constraint::StructuralTag { text, options }, limits)
    }

    /// Outputs that call tools as `spec` says.
    ///
    /// # Errors
    /// When there are no tools, two have one name, the chosen one does not exist, or a schema is refused; the
    /// error names the tool's number.
    pub fn compile_tools(
        vocabulary: &Arc<Vocabulary>,
        spec: &ToolSpec<'_>,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        Self::compile(vocabulary, &Constraint::Tools(*spec), limits)
    }

    /// Texts that satisfy `constraint`.
    ///
    /// # Errors
    /// As the method of the constraint's kind.
    pub fn compile(
        vocabulary: &Arc<Vocabulary>,
        constraint: &Constraint<'_>,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        let whitespace = constraint.whitespace().unwrap_or(Whitespace::None);
        let mut ir = Ir::new(vocabulary, limits, whitespace);
        let root = constraint.lower(&mut ir, vocabulary, limits)?;
        Self::new(ir, root, vocabulary, limits)
    }

    fn new(
        ir: Ir,
        root: crate::ir::NodeId,
        vocabulary: &Arc<Vocabulary>,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        let ir = ir.finish(root)?;
        let depth = ir.needs[root as usize];
        if depth > limits.max_output_depth {
            return Err(CompileError::Limit {
                name: "max_output_depth",
                limit: u64::from(limits.max_output_depth),
                place: format!("the grammar's shallowest output, which is {depth} deep"),
            });
        }
        let tables = Mutex::new(Arc::new(Mutex::new(Tables::new(&ir, limits))));
        Ok(Self(Arc::new(Parts {
            n_ir_bytes: ir.n_bytes(),
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

    /// About how many bytes of memory it holds: the compiled form, and the states, transitions and masks that
    /// its outputs have reached so far. Never much beyond the compiled form and `max_cache_bytes`.
    pub fn n_bytes(&self) -> usize {
        let tables = self.current().clone();
        let n_bytes = lock(&tables).n_bytes();
        self.0.n_ir_bytes + n_bytes
    }

    /// What its schemas ask for and is not enforced. Empty unless something may be left out
    /// ([`crate::Enforcement::Relaxed`]).
    pub fn relaxed(&self) -> &[Relaxed] {
        &self.0.ir.relaxed
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
