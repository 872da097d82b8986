//! What holds for expressions by what holds for their parts: deriving something, deriving the empty text.

use super::{Expr, ExprId, Name, Tree};
use crate::dfa::DEAD;
use crate::error::{CompileError, shorten};

/// The least set of expressions closed under the rules of a derivation, given what holds for leaves. Each
/// expression is looked at once per part that comes to hold.
fn closure(tree: &Tree<'_>, holds: impl Fn(&Expr) -> bool) -> Vec<bool> {
    let n = tree.exprs.len();
    let mut parents: Vec<Vec<ExprId>> = vec![Vec::new(); n];
    let mut users: Vec<Vec<ExprId>> = vec![Vec::new(); tree.rules.len()];
    let mut bodies: Vec<Vec<Name>> = vec![Vec::new(); n];
    let mut missing = vec![1usize; n];
    let mut queue = Vec::new();
    for (id, expr) in (0..).zip(&tree.exprs) {
        for child in expr.children() {
            parents[*child as usize].push(id);
        }
        match expr {
            Expr::Rule(name) => users[*name as usize].push(id),
            Expr::Seq(parts) => missing[id as usize] = parts.len(),
            Expr::Repeat { min: 0, .. } | Expr::Empty => queue.push(id),
            Expr::Leaf(_) | Expr::NonEmptyLeaf(_) | Expr::Automaton(_) | Expr::Tokens(_) | Expr::Json(_)
                if holds(expr) =>
            {
                queue.push(id);
            }
            _ => {}
        }
    }
    for (name, rule) in (0..).zip(&tree.rules) {
        if let Some(body) = rule.body {
            bodies[body as usize].push(name);
        }
    }
    let mut known = vec![false; n];
    while let Some(id) = queue.pop() {
        if std::mem::replace(&mut known[id as usize], true) {
            continue;
        }
        for parent in &parents[id as usize] {
            let n_missing = &mut missing[*parent as usize];
            *n_missing = n_missing.saturating_sub(1);
            if *n_missing == 0 {
                queue.push(*parent);
            }
        }
        for name in &bodies[id as usize] {
            queue.extend_from_slice(&users[*name as usize]);
        }
    }
    known
}

/// Whether each expression derives the empty text.
pub(crate) fn nullable(tree: &Tree<'_>) -> Vec<bool> {
    closure(tree, |expr| match expr {
        Expr::Leaf(hir) => hir.properties().minimum_len() == Some(0),
        Expr::Automaton(dfa) => dfa.is_accepting(dfa.start()),
        _ => false,
    })
}

/// The rules that `root` reaches, itself first.
pub(crate) fn reachable(tree: &Tree<'_>, root: Name) -> Vec<Name> {
    let mut seen_rules = vec![false; tree.rules.len()];
    let mut seen = vec![false; tree.exprs.len()];
    let mut found = vec![root];
    seen_rules[root as usize] = true;
    let mut at = 0;
    while let Some(rule) = found.get(at).copied() {
        at += 1;
        let mut todo = vec![tree.body(rule)];
        while let Some(id) = todo.pop() {
            if std::mem::replace(&mut seen[id as usize], true) {
                continue;
            }
            let expr = &tree.exprs[id as usize];
            todo.extend_from_slice(expr.children());
            if let Expr::Rule(name) = expr
                && !std::mem::replace(&mut seen_rules[*name as usize], true)
            {
                found.push(*name);
            }
        }
    }
    found
}

/// Refuses a rule that derives nothing.
pub(crate) fn check_productive(tree: &Tree<'_>, root: Name) -> Result<(), CompileError> {
    let productive = closure(tree, |expr| match expr {
        Expr::Leaf(hir) | Expr::NonEmptyLeaf(hir) => hir.properties().minimum_len().is_some(),
        Expr::Automaton(dfa) => dfa.start() != DEAD,
        Expr::Tokens(set) => !set.is_empty(tree.vocabulary),
        _ => true,
    });
    let dead = reachable(tree, root).into_iter();
    match dead.min_by_key(|name| (productive[tree.body(*name) as usize], *name)) {
        Some(name) if !productive[tree.body(name) as usize] => {
            let rule = &tree.rules[name as usize];
            let why = format!(
                "`{}` derives no text: every way through it goes on forever or contradicts itself",
                shorten(&rule.name)
            );
            Err(tree.source.error(rule.at, why))
        }
        _ => Ok(()),
    }
}
