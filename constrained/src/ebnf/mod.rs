//! Grammars written as text: GBNF, XGrammar's EBNF and a subset of Lark.
//!
//! Each dialect has its parser; all give the same small tree, kept in one array. From there on the dialects
//! are one: rules are checked, lists and left recursion are rewritten, and pieces without recursion become
//! automata.
//!
//! Every name that is used must be defined, and every rule that the root reaches must derive something. A
//! rule that the root does not reach costs nothing and changes nothing. What is accepted is decided by the
//! grammar as a whole: a text is accepted when it can be read in any one way, however ambiguous the grammar.

mod expand;
mod gbnf;
mod lark;
mod left;
mod library;
mod lists;
mod lower;
mod quoting;
mod regular;
mod sets;
mod source;
mod syntax;

use std::collections::BTreeMap;
use std::sync::Arc;

use regex_syntax::hir::{self, Hir};

pub(crate) use gbnf::Dialect;
pub use syntax::GrammarSyntax;

use crate::dfa::Dfa;
use crate::error::{CompileError, shorten};
use crate::ir::{Ir, Layout, NodeId};
use crate::limits::Limits;
use crate::mark::Mark;
use crate::pattern::{Bounds, Leaf};
use crate::schema::SchemaOptions;
use crate::tokens::TokenSet;
use crate::vocabulary::Vocabulary;
use regular::Operation;
use source::{Source, limit};

pub(crate) type ExprId = u32;
/// The number of a rule of the text; not [`crate::ir::RuleId`].
pub(crate) type Name = u32;

#[derive(Clone, Debug)]
pub(crate) enum Expr {
    Empty,
    Leaf(Hir),
    /// What the leaf matches, the empty text apart.
    NonEmptyLeaf(Hir),
    /// A leaf that was made while reading.
    Automaton(Arc<Dfa>),
    /// What operations make of the texts of terminals; [`regular::resolve`] leaves none.
    Regular(Operation, Vec<ExprId>),
    Tokens(TokenSet),
    /// JSON that satisfies one of the tree's schemas.
    Json(u32),
    Rule(Name),
    Seq(Vec<ExprId>),
    Alt(Vec<ExprId>),
    Repeat {
        body: ExprId,
        min: u32,
        max: Option<u32>,
    },
    /// A part that says something of the tokens within it; it stands in no left recursion.
    Marked {
        body: ExprId,
        mark: Mark,
    },
}

impl Expr {
    fn children(&self) -> &[ExprId] {
        match self {
            Self::Seq(parts) | Self::Alt(parts) | Self::Regular(_, parts) => parts,
            Self::Repeat { body, .. } | Self::Marked { body, .. } => std::slice::from_ref(body),
            _ => &[],
        }
    }
}

#[derive(Debug)]
struct Rule {
    name: String,
    /// Byte of the text where it is defined, or first used while it is not.
    at: usize,
    body: Option<ExprId>,
}

/// A JSON Schema within a grammar.
#[derive(Debug)]
struct SchemaText<'a> {
    text: &'a str,
    /// What pointers of its errors begin with.
    place: String,
    options: SchemaOptions,
}

/// A grammar's text as a tree.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    source: Source<'a>,
    exprs: Vec<Expr>,
    rules: Vec<Rule>,
    names: BTreeMap<String, Name>,
    schemas: Vec<SchemaText<'a>>,
    /// How JSON is laid out, where the text says so.
    layout: Option<Layout>,
    limits: &'a Limits,
    vocabulary: &'a Vocabulary,
    /// Of the automata that were made while reading.
    work: u64,
}

impl<'a> Tree<'a> {
    fn new(text: &'a str, vocabulary: &'a Vocabulary, limits: &'a Limits) -> Self {
        Self {
            source: Source::new(text),
            exprs: Vec::new(),
            rules: Vec::new(),
            names: BTreeMap::new(),
            schemas: Vec::new(),
            layout: None,
            limits,
            vocabulary,
            work: 0,
        }
    }

    /// What making one automaton may cost.
    fn bounds(&self) -> Bounds {
        Bounds::new(self.limits)
    }

    /// Counts work of making automata.
    fn spend(&mut self, work: u64) -> Result<(), CompileError> {
        self.work += work;
        if self.work <= self.limits.max_compile_work {
            return Ok(());
        }
        Err(self.too_much_work())
    }

    fn too_much_work(&self) -> CompileError {
        CompileError::Limit {
            name: "max_compile_work",
            limit: self.limits.max_compile_work,
            place: "the terminals of the grammar".to_owned(),
        }
    }

    fn add(&mut self, expr: Expr) -> Result<ExprId, CompileError> {
        if self.exprs.len() >= self.limits.max_nodes {
            return Err(limit("max_nodes", self.limits.max_nodes, self.source.here()));
        }
        self.exprs.push(expr);
        Ok(self.exprs.len() as ExprId - 1)
    }

    fn regex(&mut self, leaf: Leaf) -> Result<ExprId, CompileError> {
        match leaf {
            Leaf::Plain(hir) => self.add(Expr::Leaf(hir)),
            Leaf::Automaton(built) => {
                self.work += built.n_work;
                self.add(Expr::Automaton(Arc::new(built.dfa)))
            }
        }
    }

    fn literal(&mut self, text: &str) -> Result<ExprId, CompileError> {
        self.add(if text.is_empty() {
            Expr::Empty
        } else {
            Expr::Leaf(Hir::literal(text.as_bytes()))
        })
    }

    /// One character of `ranges`, or one of all others.
    fn class(&mut self, ranges: Vec<(char, char)>, is_negated: bool) -> Result<ExprId, CompileError> {
        let ranges = ranges.into_iter().map(|(a, b)| hir::ClassUnicodeRange::new(a, b));
        let mut class = hir::ClassUnicode::new(ranges);
        if is_negated {
            class.negate();
        }
        self.add(Expr::Leaf(Hir::class(hir::Class::Unicode(class))))
    }

    fn seq(&mut self, parts: Vec<ExprId>) -> Result<ExprId, CompileError> {
        match parts.as_slice() {
            [] => self.add(Expr::Empty),
            [one] => Ok(*one),
            _ => self.add(Expr::Seq(parts)),
        }
    }

    fn alt(&mut self, parts: Vec<ExprId>) -> Result<ExprId, CompileError> {
        match parts.as_slice() {
            [one] => Ok(*one),
            _ => self.add(Expr::Alt(parts)),
        }
    }

    /// The rule called `name`, used or defined at byte `at`.
    fn name(&mut self, name: &str, at: usize) -> Result<Name, CompileError> {
        if let Some(known) = self.names.get(name) {
            return Ok(*known);
        }
        let fresh = self.new_rule(name, at)?;
        self.names.insert(name.to_owned(), fresh);
        Ok(fresh)
    }

    fn new_rule(&mut self, name: &str, at: usize) -> Result<Name, CompileError> {
        if self.rules.len() >= self.limits.max_rules {
            return Err(limit("max_rules", self.limits.max_rules, self.source.place(at)));
        }
        self.rules.push(Rule {
            name: name.to_owned(),
            at,
            body: None,
        });
        Ok(self.rules.len() as Name - 1)
    }

    fn define(&mut self, name: Name, at: usize, body: ExprId) -> Result<(), CompileError> {
        let rule = &mut self.rules[name as usize];
        if rule.body.is_some() {
            let (line, _) = self.source.line_and_column(rule.at);
            let why = format!("`{}` is defined already, at line {line}", shorten(&rule.name));
            return Err(self.source.error(at, why));
        }
        rule.body = Some(body);
        rule.at = at;
        Ok(())
    }

    fn body(&self, name: Name) -> ExprId {
        self.rules[name as usize]
            .body
            .expect("every rule was found defined")
    }

    /// Refuses names without a definition, wherever they are used.
    fn check_defined(&self) -> Result<(), CompileError> {
        match self.rules.iter().find(|rule| rule.body.is_none()) {
            None => Ok(()),
            Some(rule) => {
                let why = format!("`{}` is used and not defined", shorten(&rule.name));
                Err(self.source.error(rule.at, why))
            }
        }
    }

    /// The rule that a text begins with.
    fn root(&self, name: &str) -> Result<Name, CompileError> {
        self.names.get(name).copied().ok_or_else(|| {
            let why = format!("the grammar has no rule `{}` to begin with", shorten(name));
            self.source.error(0, why)
        })
    }
}

/// The node for the grammar `text` of `dialect` that begins with the rule `root`.
pub(crate) fn compile(
    ir: &mut Ir,
    vocabulary: &Vocabulary,
    (text, dialect): (&str, Dialect),
    root: &str,
    limits: &Limits,
) -> Result<NodeId, CompileError> {
    let mut tree = Tree::new(text, vocabulary, limits);
    gbnf::parse(&mut tree, dialect)?;
    let root = tree.root(root)?;
    tree.check_defined()?;
    finish(ir, tree, root)
}

/// The node for the Lark grammar `text`; `options` are those of schemas in it.
pub(crate) fn compile_lark(
    ir: &mut Ir,
    vocabulary: &Vocabulary,
    (text, options): (&str, &SchemaOptions),
    limits: &Limits,
) -> Result<NodeId, CompileError> {
    let mut tree = Tree::new(text, vocabulary, limits);
    let root = lark::parse(&mut tree, options)?;
    finish(ir, tree, root)
}

fn finish(ir: &mut Ir, mut tree: Tree<'_>, root: Name) -> Result<NodeId, CompileError> {
    if let Some(layout) = tree.layout {
        ir.lay_out(layout, tree.limits.max_indent);
    }
    sets::check_productive(&tree, root)?;
    lists::rewrite(&mut tree, root)?;
    left::rewrite(&mut tree, root)?;
    lower::lower(ir, &tree, root)
}
