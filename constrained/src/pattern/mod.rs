//! Regular expressions: from text, in several syntaxes, to byte automata.
//!
//! Look-around is regular: a text that an expression with look-around matches is one that several expressions
//! match, or do not, at the same places. What looks back at what a group matched is not, and is refused.

mod alone;
mod atomic;
mod class;
mod counted;
mod determinize;
mod duties;
mod escape;
mod letters;
mod look;
mod lookaround;
mod nfa;
mod nodes;
mod parse;
mod utf8;

use regex_syntax::hir::{Dot, Hir, HirKind, Look, Repetition};

pub(crate) use counted::Counted;
pub(crate) use nodes::nodes_of;
pub(crate) use parse::Syntax;

use crate::dfa::Built;
use crate::error::{CompileError, shorten};
use crate::limits::Limits;
use crate::rows::{DEAD, Rows};
use determinize::{Budget, Excess, determinize};
use letters::Letters;
use nfa::{Nfa, TooManyStates};

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
    Automaton(Box<Built>),
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

    fn budget(&self) -> Budget {
        Budget {
            max_states: self.max_states,
            max_work: self.max_work(),
            n_work: 0,
        }
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
        let mut budget = bounds.budget();
        let mut compiled = || {
            let letters = Letters::new(self.expressions(), &mut budget)?;
            let rows = if self.arounds.is_empty() {
                determinize(&Nfa::new(&self.hir, &letters)?, &letters, &mut budget)?
            } else {
                lookaround::determinize(self, &letters, &mut budget)?
            };
            built(&letters, &rows, budget)
        };
        compiled().map_err(|what| bounds.exceeded(what, &self.name))
    }

    /// The texts that it matches from end to end, whatever stands around them; an error where that matters.
    pub(crate) fn leaf(self, bounds: Bounds) -> Result<Leaf, CompileError> {
        if self.arounds.is_empty() && self.hir.properties().look_set().is_empty() {
            return Ok(Leaf::Plain(self.hir));
        }
        alone::compile(&self, bounds).map(|built| Leaf::Automaton(Box::new(built)))
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

    /// The look-around that the expression, or look-around that is used, has; with its place in `arounds`.
    fn used_arounds(&self) -> impl Iterator<Item = (usize, &Around)> {
        let mut is_used = vec![false; self.arounds.len()];
        let mut todo = vec![&self.hir];
        while let Some(hir) = todo.pop() {
            if let HirKind::Capture(around) = hir.kind() {
                let n = around.index as usize - 1;
                if !std::mem::replace(&mut is_used[n], true) {
                    todo.push(&self.arounds[n].body);
                }
            }
            todo.extend(hir.kind().subs());
        }
        let numbered = self.arounds.iter().enumerate();
        numbered.filter(move |(n, _)| is_used[*n])
    }

    /// The whole expression and what its look-around has.
    fn expressions(&self) -> impl Iterator<Item = &Hir> {
        let bodies = self.used_arounds().map(|(_, around)| &around.body);
        [&self.hir].into_iter().chain(bodies)
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

/// The texts that `hir`, which is written as `name` and has no look-around, matches from their first to their
/// last byte.
pub(crate) fn compile_hir(hir: &Hir, name: &str, bounds: Bounds) -> Result<Built, CompileError> {
    let pattern = Pattern {
        name: name.to_owned(),
        hir: hir.clone(),
        arounds: Vec::new(),
    };
    pattern.automaton(bounds)
}

/// The smallest automaton over bytes of that over `letters` which has `rows`.
fn built(letters: &Letters, rows: &Rows, mut budget: Budget) -> Result<Built, Excess> {
    /// Of sorting an edge into blocks.
    const EDGE_WORK: usize = 32;
    let n_edges = rows.table.iter().filter(|to| **to != DEAD).count();
    budget.spend(EDGE_WORK * n_edges)?;
    let rows = rows.trimmed(|_| true).minimal();
    let dfa = utf8::automaton(letters, &rows, &mut budget)?;
    let n_work = budget.n_work;
    Ok(Built { dfa, n_work })
}

impl From<TooManyStates> for Excess {
    fn from(_: TooManyStates) -> Self {
        Self::States
    }
}

#[cfg(test)]
mod tests;
