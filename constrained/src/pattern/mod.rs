//! Regular expressions: from text, in several syntaxes, to byte automata.
//!
//! Look-around is regular: a text that an expression with look-around matches is one that several expressions
//! match, or do not, at the same places. What looks back at what a group matched is not, and is refused.

mod alone;
mod atomic;
mod class;
mod counted;
mod escape;
mod lookaround;
mod nodes;
mod parse;
mod tail;

use regex_automata::nfa::thompson::{self, NFA, WhichCaptures};
use regex_syntax::hir::{Dot, Hir, HirKind, Look, Repetition};

pub(crate) use counted::Counted;
pub(crate) use nodes::nodes_of;
pub(crate) use parse::Syntax;

use crate::determinize::{Built, Excess, determinize};
use crate::error::{CompileError, shorten};
use crate::limits::Limits;

/// A regular expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// The source text, shortened.
    name: String,
    /// Look-around stands in it as groups without content. Their numbers count `arounds` from 1; there are
    /// no other groups.
    hir: Hir,
    /// What stands within another one comes before it.
    arounds: Vec<Around>,
}

/// Look-around: holds where a text that `body` matches begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Around {
    direction: Direction,
    is_negated: bool,
    body: Hir,
}

/// An expression within a grammar.
#[derive(Clone, Debug)]
pub(crate) enum Leaf {
    /// Without anything that looks around.
    Plain(Hir),
    Automaton(Built),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ahead,
    Behind,
}

/// What one automaton may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) max_states: usize,
    max_compile_work: u64,
}

impl Bounds {
    /// Bytes of an expression's automaton before it is made deterministic.
    const MAX_NFA_BYTES: usize = 2 << 20;

    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            max_states: limits.max_automaton_states,
            max_compile_work: limits.max_compile_work,
        }
    }

    pub(crate) fn with_states(self, max_states: usize) -> Self {
        Self { max_states, ..self }
    }

    /// What making one automaton may cost.
    pub(crate) fn max_work(&self) -> u64 {
        self.max_compile_work / 4
    }

    fn exceeded(&self, what: Excess, name: &str) -> CompileError {
        let (limit_name, limit) = match what {
            Excess::States => ("max_automaton_states", self.max_states as u64),
            Excess::Work => ("max_compile_work", self.max_compile_work),
        };
        CompileError::Limit {
            name: limit_name,
            limit,
            place: format!("the regular expression `{name}`"),
        }
    }
}

impl Pattern {
    /// `source` as it is written in `syntax`.
    pub(crate) fn parse(source: &str, syntax: Syntax) -> Result<Self, CompileError> {
        Self::parse_with_flags(source, syntax, "")
    }

    /// The same with `flags`, letters such as stand in `(?i)`.
    pub(crate) fn parse_with_flags(source: &str, syntax: Syntax, flags: &str) -> Result<Self, CompileError> {
        let name = shorten(source);
        match parse::parse(source, syntax, flags) {
            Ok((hir, arounds)) => Ok(Self { name, hir, arounds }),
            Err(why) => Err(CompileError::Regex { pattern: name, why }),
        }
    }

    /// All that decides what it matches, as text.
    pub(crate) fn recipe(&self) -> String {
        match self.arounds.as_slice() {
            [] => self.hir.to_string(),
            arounds => format!("{:?} {arounds:?}", self.hir),
        }
    }

    /// It as a simpler one and a number of characters, when it counts those of a whole text.
    pub(crate) fn counted(&self) -> Option<Counted> {
        counted::counted(self)
    }

    /// The texts that it matches from their first to their last byte.
    pub(crate) fn automaton(&self, bounds: Bounds) -> Result<Built, CompileError> {
        if self.arounds.is_empty() {
            return compile_hir(&self.hir, &self.name, bounds);
        }
        lookaround::compile(self, bounds)
    }

    /// The texts that it matches from end to end, whatever stands around them; an error where that matters.
    pub(crate) fn leaf(self, bounds: Bounds) -> Result<Leaf, CompileError> {
        if self.arounds.is_empty() && self.hir.properties().look_set().is_empty() {
            return Ok(Leaf::Plain(self.hir));
        }
        alone::compile(&self, bounds).map(Leaf::Automaton)
    }

    /// The texts in which it is found.
    pub(crate) fn search(&self, bounds: Bounds) -> Result<Built, CompileError> {
        let properties = self.hir.properties();
        let any = || {
            Hir::repetition(Repetition {
                min: 0,
                max: None,
                greedy: true,
                sub: Box::new(Hir::dot(Dot::AnyChar)),
            })
        };
        // An anchor makes that end of the search superfluous, and the automaton smaller.
        let is_anchored = [
            properties.look_set_prefix().contains(Look::Start),
            properties.look_set_suffix().contains(Look::End),
        ];
        let [before, after] = is_anchored.map(|is| if is { Hir::empty() } else { any() });
        let whole = Self {
            hir: Hir::concat(vec![before, self.hir.clone(), after]),
            ..self.clone()
        };
        whole.automaton(bounds)
    }

    /// By look-around, whether the expression or look-around that is used has it.
    fn used(&self) -> Vec<bool> {
        let mut is_used = vec![false; self.arounds.len()];
        let mut todo = vec![&self.hir];
        while let Some(hir) = todo.pop() {
            if let HirKind::Capture(test) = hir.kind() {
                let n = test.index as usize - 1;
                if !std::mem::replace(&mut is_used[n], true) {
                    todo.push(&self.arounds[n].body);
                }
            }
            todo.extend(hir.kind().subs());
        }
        is_used
    }

    /// It without the anchors that say nothing where it is matched from end to end.
    pub(crate) fn without_outer_anchors(mut self) -> Self {
        self.hir = without_outer_anchors(&self.hir);
        self
    }
}

/// Recursion is as deep as the parser's limit.
fn without_outer_anchors(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Alternation(parts) => Hir::alternation(parts.iter().map(without_outer_anchors).collect()),
        HirKind::Concat(parts) => {
            let mut parts = &parts[..];
            while let [first, rest @ ..] = parts
                && *first.kind() == HirKind::Look(Look::Start)
            {
                parts = rest;
            }
            while let [rest @ .., last] = parts
                && *last.kind() == HirKind::Look(Look::End)
            {
                parts = rest;
            }
            Hir::concat(parts.to_vec())
        }
        HirKind::Look(Look::Start | Look::End) => Hir::empty(),
        _ => hir.clone(),
    }
}

/// The texts that `hir`, which is written as `name`, matches from their first to their last byte.
pub(crate) fn compile_hir(hir: &Hir, name: &str, bounds: Bounds) -> Result<Built, CompileError> {
    let marked = tail::marked(hir, 1);
    let nfa = nfa(marked.as_ref().unwrap_or(hir), name, bounds)?;
    let tail = tail::states(&nfa, marked.is_some().then_some(1));
    let built = determinize(&nfa, &tail, bounds.max_states, bounds.max_work());
    built.map_err(|what| bounds.exceeded(what, name))
}

/// The automaton of `hir` before it is made deterministic.
fn nfa(hir: &Hir, name: &str, bounds: Bounds) -> Result<NFA, CompileError> {
    let config = thompson::Config::new()
        .which_captures(WhichCaptures::All)
        .nfa_size_limit(Some(Bounds::MAX_NFA_BYTES));
    let nfa = thompson::Compiler::new().configure(config).build_from_hir(hir);
    // Nothing but its size keeps an expression that was parsed from being built.
    nfa.map_err(|_| bounds.exceeded(Excess::States, name))
}

#[cfg(test)]
mod tests;
