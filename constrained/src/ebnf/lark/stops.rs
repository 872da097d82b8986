//! Stop texts that the grammar goes on with.
//!
//! llguidance takes the text that `stop` matched away from the output. A server cannot, so it stands there.
//! Where the grammar goes on with the same text, as in `a ">"` with `a[stop=">"]`, it must not stand twice:
//! there the rule's text is taken without it.

use std::sync::Arc;

use super::super::regular::{self, Operation};
use super::super::{Expr, ExprId, Name, Tree};
use super::attributes::marked;
use crate::dfa::Dfa;
use crate::error::CompileError;
use crate::mark::Mark;

/// A rule with `stop`.
pub(super) struct Stopped {
    pub(super) rule: Name,
    /// Its text, the stop included.
    pub(super) text: ExprId,
    /// An operation, so that it becomes an automaton.
    pub(super) stop: ExprId,
    pub(super) mark: Mark,
    /// What may be ignored behind it.
    pub(super) skip: Name,
}

/// Takes stop texts out of the rules that are followed by them.
pub(super) fn place(tree: &mut Tree<'_>, stopped: &[Stopped]) -> Result<(), CompileError> {
    if stopped.is_empty() {
        return Ok(());
    }
    regular::resolve(tree)?;
    for id in 0..tree.exprs.len() {
        let Expr::Seq(parts) = &tree.exprs[id] else {
            continue;
        };
        let mut parts = parts.clone();
        for at in 0..parts.len() {
            let Expr::Rule(name) = tree.exprs[parts[at] as usize] else {
                continue;
            };
            let Some(stopped) = stopped.iter().find(|stopped| stopped.rule == name) else {
                continue;
            };
            if let Some(shared) = shared_stop(tree, stopped, &parts[at + 1..]) {
                parts[at] = without(tree, stopped, &shared)?;
            }
        }
        tree.exprs[id] = Expr::Seq(parts);
    }
    Ok(())
}

/// The text of the stop that the parts `after` it begin with.
fn shared_stop(tree: &Tree<'_>, stopped: &Stopped, after: &[ExprId]) -> Option<Box<[u8]>> {
    const MAX_DEPTH: usize = 32;
    let Expr::Automaton(stop) = &tree.exprs[stopped.stop as usize] else {
        unreachable!("operations were resolved");
    };
    let mut leading = Vec::new();
    let _ = after
        .iter()
        .all(|part| lead(tree, *part, &mut leading, MAX_DEPTH));
    let ends = (1..=leading.len()).find(|end| is_match(stop, &leading[..*end]));
    ends.map(|end| leading[..end].into())
}

fn is_match(dfa: &Arc<Dfa>, text: &[u8]) -> bool {
    let end = text
        .iter()
        .fold(dfa.start(), |state, byte| dfa.step(state, *byte));
    dfa.is_accepting(end)
}

/// Adds the text that `id` must begin with; whether that is all of it. Recursion is as deep as `max_depth`.
fn lead(tree: &Tree<'_>, id: ExprId, leading: &mut Vec<u8>, max_depth: usize) -> bool {
    if max_depth == 0 {
        return false;
    }
    match &tree.exprs[id as usize] {
        Expr::Empty => true,
        Expr::Leaf(hir) => match hir.kind() {
            regex_syntax::hir::HirKind::Literal(literal) => {
                leading.extend_from_slice(&literal.0);
                true
            }
            _ => false,
        },
        Expr::Rule(name) => lead(tree, tree.body(*name), leading, max_depth - 1),
        Expr::Seq(parts) => parts.iter().all(|part| lead(tree, *part, leading, max_depth - 1)),
        _ => false,
    }
}

/// The rule's text without `shared` at its end, or with another stop.
fn without(tree: &mut Tree<'_>, stopped: &Stopped, shared: &[u8]) -> Result<ExprId, CompileError> {
    let operations = [
        Operation::Before(shared.into()),
        Operation::NotBefore(shared.into()),
    ];
    let mut ways = Vec::new();
    for operation in operations {
        let text = tree.add(Expr::Regular(operation, vec![stopped.text]))?;
        let text = marked(tree, text, stopped.mark)?;
        let skip = tree.add(Expr::Rule(stopped.skip))?;
        ways.push(tree.seq(vec![text, skip])?);
    }
    tree.alt(ways)
}
