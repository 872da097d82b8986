//! Expressions whose automaton would be too large, as nodes: counted repetitions stay counts, and the states
//! are built as an output reaches them.

use regex_syntax::hir::{Hir, HirKind};

use super::determinize::Excess;
use super::{Bounds, Pattern, compile_hir};
use crate::dfa::Dfa;
use crate::error::CompileError;
use crate::ir::{Ir, Node, NodeId};

/// Whether something is repeated so often that counting costs less than states for each repetition.
/// Recursion is as deep as the parser's limit.
pub(super) fn is_large(hir: &Hir) -> bool {
    /// Repetitions.
    const LARGE: u32 = 256;
    match hir.kind() {
        HirKind::Repetition(repetition) => {
            repetition.max.unwrap_or(0).max(repetition.min) >= LARGE || is_large(&repetition.sub)
        }
        HirKind::Capture(capture) => is_large(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(is_large),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => false,
    }
}

impl Pattern {
    /// The texts that it matches from end to end, as an automaton or, if that would be too large, as nodes.
    pub(crate) fn node(&self, ir: &mut Ir) -> Result<NodeId, CompileError> {
        let nodes = |ir: &mut Ir| nodes_of(ir, &self.hir, &self.name);
        let is_plain = self.arounds.is_empty();
        if is_plain
            && is_large(&self.hir)
            && let Ok(root) = nodes(ir)
        {
            return Ok(root);
        }
        match self.automaton(ir.bounds()) {
            Ok(built) => Ok(ir.dfa(built.dfa)),
            Err(CompileError::Limit { .. }) if is_plain => nodes(ir),
            Err(error) => Err(error),
        }
    }
}

/// The same language as that of `hir`, which is written as `name`, as nodes. Anchors within are refused.
pub(crate) fn nodes_of(ir: &mut Ir, hir: &Hir, name: &str) -> Result<NodeId, CompileError> {
    let n_left = ir.bounds().max_compile_work;
    Nodes { ir, name, n_left }.node(hir)
}

struct Nodes<'a> {
    ir: &'a mut Ir,
    name: &'a str,
    /// Work that is left.
    n_left: u64,
}

impl Nodes<'_> {
    /// Recursion is as deep as the parser's limit.
    fn node(&mut self, hir: &Hir) -> Result<NodeId, CompileError> {
        self.ir.check_size("the regular expression")?;
        if let Some(leaf) = self.leaf(hir)? {
            return Ok(leaf);
        }
        Ok(match hir.kind() {
            HirKind::Empty => self.ir.node(Node::Empty),
            HirKind::Literal(literal) => self.ir.dfa(Dfa::of_strings([&literal.0[..]])),
            HirKind::Class(_) => {
                let bounds = self.ir.bounds();
                let class = compile_hir(hir, self.name, bounds)?;
                self.ir.dfa(class.dfa)
            }
            HirKind::Look(_) => {
                return Err(CompileError::Regex {
                    pattern: self.name.to_owned(),
                    why: "too large for an automaton, and anchors keep it from being anything else"
                        .to_owned(),
                });
            }
            HirKind::Repetition(repetition) => {
                let body = self.node(&repetition.sub)?;
                self.ir.repeat(body, repetition.min, repetition.max)
            }
            HirKind::Capture(capture) => self.node(&capture.sub)?,
            HirKind::Concat(parts) => {
                let parts = parts
                    .iter()
                    .map(|part| self.node(part))
                    .collect::<Result<_, _>>()?;
                self.ir.seq(parts)
            }
            HirKind::Alternation(parts) => {
                let parts = parts
                    .iter()
                    .map(|part| self.node(part))
                    .collect::<Result<_, _>>()?;
                self.ir.alt(parts)
            }
        })
    }

    /// `hir` as one automaton, if that is small: it has one state where nodes have many readings.
    fn leaf(&mut self, hir: &Hir) -> Result<Option<NodeId>, CompileError> {
        const MAX_STATES: usize = 512;
        const MAX_WORK: u64 = 400_000;
        if let HirKind::Alternation(parts) = hir.kind()
            && let Some(texts) = parts.iter().map(literal).collect::<Option<Vec<_>>>()
        {
            return Ok(Some(self.ir.dfa(Dfa::of_strings(texts))));
        }
        if is_large(hir) || !hir.properties().look_set().is_empty() {
            return Ok(None);
        }
        let bounds = Bounds {
            max_states: MAX_STATES,
            max_compile_work: (4 * MAX_WORK).min(self.n_left),
        };
        let built = compile_hir(hir, self.name, bounds);
        let spent = built.as_ref().map_or(MAX_WORK, |built| built.n_work);
        let left = self.n_left.checked_sub(spent);
        let bounds = self.ir.bounds();
        self.n_left = left.ok_or_else(|| bounds.exceeded(Excess::Work, self.name))?;
        Ok(built.ok().map(|built| self.ir.dfa(built.dfa)))
    }
}

fn literal(hir: &Hir) -> Option<&[u8]> {
    match hir.kind() {
        HirKind::Empty => Some(&[]),
        HirKind::Literal(literal) => Some(&literal.0),
        _ => None,
    }
}
