//! Rules that begin with themselves, rewritten so that none does.
//!
//! Let the rules of one cycle be A, B, … and sort the ways through each by what they begin with: `A = A a | B
//! b | c`, where `c` begins with no rule of the cycle. A text of A is then some `c` of some rule of the cycle
//! and a walk of `a`, `b`, … that ends at A. The walk is a rule per pair of where it is and where it ends,
//! each of which begins with its step and ends with the next walk:
//!
//! ```text
//! expr = expr "+" term | term        expr = term walk        walk = "" | "+" term walk
//! ```
//!
//! Steps and beginnings are taken without their empty texts, which become shortcuts of the walk; so hidden
//! left recursion, behind parts that may be empty, needs no rule of its own. Repetitions of what may be empty
//! are rewritten in the same way, to count the texts that are not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sets::{nullable, reachable};
use super::{Expr, ExprId, Name, Tree};
use crate::dfa::DEAD;
use crate::error::{CompileError, shorten};

const MAX_PASSES: usize = 8;

/// Rewrites all left recursion that `root` reaches.
pub(crate) fn rewrite(tree: &mut Tree<'_>, root: Name) -> Result<(), CompileError> {
    let mut nonempty = BTreeMap::new();
    count_texts(tree, root, &mut nonempty)?;
    // Rules that others begin with come first. A rule that was split off before its own turn is overwritten
    // then, so that one pass does nearly always.
    for _ in 0..MAX_PASSES {
        let found = cycles(tree, root);
        if found.is_empty() {
            return Ok(());
        }
        for cycle in found.iter().rev() {
            Splitter::new(tree, cycle, &mut nonempty)?.rewrite(cycle)?;
        }
    }
    match cycles(tree, root).first() {
        None => Ok(()),
        Some(cycle) => {
            let names = cycle.iter().map(|rule| shorten(&tree.rules[*rule as usize].name));
            let names: Vec<String> = names.take(8).collect();
            let why = format!("rules begin with each other: {}", names.join(", "));
            Err(tree.source.error(tree.rules[cycle[0] as usize].at, why))
        }
    }
}

/// Counted repetitions of what may be empty count texts that are not.
fn count_texts(
    tree: &mut Tree<'_>,
    root: Name,
    nonempty: &mut BTreeMap<Name, Name>,
) -> Result<(), CompileError> {
    let may_be_empty = nullable(tree);
    let mut seen = vec![false; tree.exprs.len()];
    let mut counted = Vec::new();
    for rule in reachable(tree, root) {
        let mut todo = vec![tree.body(rule)];
        while let Some(id) = todo.pop() {
            if std::mem::replace(&mut seen[id as usize], true) {
                continue;
            }
            let expr = &tree.exprs[id as usize];
            todo.extend_from_slice(expr.children());
            match expr {
                Expr::Repeat { body, min, max }
                    if may_be_empty[*body as usize] && (*min > 0 || max.is_some_and(|max| max > 1)) =>
                {
                    counted.push((id, *body, *max));
                }
                _ => {}
            }
        }
    }
    if counted.is_empty() {
        return Ok(());
    }
    let mut splitter = Splitter::new(tree, &[], nonempty)?;
    for (id, body, max) in counted {
        let expr = match splitter.split(body)?.nonempty {
            Some(body) => Expr::Repeat { body, min: 0, max },
            None => Expr::Empty,
        };
        splitter.tree.exprs[id as usize] = expr;
    }
    splitter.define_pending()
}

/// The cycles of rules that begin with each other, each the whole of what hangs together.
fn cycles(tree: &Tree<'_>, root: Name) -> Vec<Vec<Name>> {
    let may_be_empty = nullable(tree);
    let n = tree.rules.len();
    let mut edges: Vec<Vec<Name>> = vec![Vec::new(); n];
    let mut reverse: Vec<Vec<Name>> = vec![Vec::new(); n];
    let rules = reachable(tree, root);
    for rule in &rules {
        for first in first_rules(tree, tree.body(*rule), &may_be_empty) {
            edges[*rule as usize].push(first);
            reverse[first as usize].push(*rule);
        }
    }
    let mut order = Vec::new();
    let mut seen = vec![false; n];
    for rule in &rules {
        finish_order(&edges, *rule, &mut seen, &mut order);
    }
    let mut found = Vec::new();
    let mut seen = vec![false; n];
    for rule in order.into_iter().rev() {
        let mut part = Vec::new();
        finish_order(&reverse, rule, &mut seen, &mut part);
        let is_cycle = part.len() > 1 || edges[rule as usize].contains(&rule);
        if is_cycle && !part.is_empty() {
            part.sort_unstable();
            found.push(part);
        }
    }
    found
}

/// Adds what is new from `start` on, in the order in which its visits end.
fn finish_order(edges: &[Vec<Name>], start: Name, seen: &mut [bool], order: &mut Vec<Name>) {
    let mut path = vec![(start, false)];
    while let Some((rule, is_done)) = path.pop() {
        if is_done {
            order.push(rule);
        } else if !std::mem::replace(&mut seen[rule as usize], true) {
            path.push((rule, true));
            path.extend(edges[rule as usize].iter().map(|next| (*next, false)));
        }
    }
}

/// The rules that `id` may begin with.
fn first_rules(tree: &Tree<'_>, id: ExprId, may_be_empty: &[bool]) -> Vec<Name> {
    let mut seen = std::collections::BTreeSet::new();
    let mut found = std::collections::BTreeSet::new();
    let mut todo = vec![id];
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        match &tree.exprs[id as usize] {
            Expr::Rule(name) => {
                found.insert(*name);
            }
            Expr::Seq(parts) => {
                let n_empty = parts
                    .iter()
                    .take_while(|part| may_be_empty[**part as usize])
                    .count();
                todo.extend(parts.iter().take(n_empty + 1));
            }
            expr => todo.extend_from_slice(expr.children()),
        }
    }
    found.into_iter().collect()
}

/// An expression without its empty text, whole and by what it begins with.
#[derive(Clone, Debug, Default)]
struct Split {
    nonempty: Option<ExprId>,
    /// A rule of the cycle, itself without its empty text, and what follows it.
    lefts: Vec<(Name, ExprId)>,
    /// The ways that begin otherwise.
    other: Option<ExprId>,
}

/// One step of a walk.
struct Step {
    to: Name,
    text: Option<ExprId>,
}

struct Splitter<'t, 'a> {
    tree: &'t mut Tree<'a>,
    in_cycle: Vec<bool>,
    may_be_empty: Vec<bool>,
    splits: Vec<Option<Split>>,
    empty: ExprId,
    /// Rules without their empty text.
    nonempty: &'t mut BTreeMap<Name, Name>,
    pending: Vec<(Name, Name)>,
}

impl<'t, 'a> Splitter<'t, 'a> {
    fn new(
        tree: &'t mut Tree<'a>,
        cycle: &[Name],
        nonempty: &'t mut BTreeMap<Name, Name>,
    ) -> Result<Self, CompileError> {
        let empty = tree.add(Expr::Empty)?;
        let mut in_cycle = vec![false; tree.rules.len()];
        for rule in cycle {
            in_cycle[*rule as usize] = true;
        }
        Ok(Self {
            may_be_empty: nullable(tree),
            tree,
            in_cycle,
            splits: Vec::new(),
            empty,
            nonempty,
            pending: Vec::new(),
        })
    }

    fn is_member(&self, rule: Name) -> bool {
        self.in_cycle.get(rule as usize).copied().unwrap_or(false)
    }

    fn add(&mut self, expr: Expr) -> Result<ExprId, CompileError> {
        let is = |id: &ExprId| self.may_be_empty[*id as usize];
        let is_nullable = match &expr {
            Expr::Empty => true,
            Expr::Seq(parts) => parts.iter().all(is),
            Expr::Alt(parts) => parts.iter().any(is),
            Expr::Repeat { body, min, .. } => *min == 0 || is(body),
            Expr::Marked { body, .. } => is(body),
            // New references are to rules without their empty text, or to walks, which stand in no split.
            Expr::Leaf(_)
            | Expr::NonEmptyLeaf(_)
            | Expr::Automaton(_)
            | Expr::Tokens(_)
            | Expr::Json(_)
            | Expr::Rule(_) => false,
            Expr::Regular(..) => unreachable!("operations are resolved"),
        };
        let id = self.tree.add(expr)?;
        self.may_be_empty.push(is_nullable);
        Ok(id)
    }

    fn pair(&mut self, first: ExprId, then: ExprId) -> Result<ExprId, CompileError> {
        let is_empty = |id: ExprId| matches!(self.tree.exprs[id as usize], Expr::Empty);
        if is_empty(first) {
            return Ok(then);
        }
        if is_empty(then) {
            return Ok(first);
        }
        self.add(Expr::Seq(vec![first, then]))
    }

    fn any(&mut self, parts: &[ExprId]) -> Result<Option<ExprId>, CompileError> {
        match parts {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            _ => self.add(Expr::Alt(parts.to_vec())).map(Some),
        }
    }

    /// The rule for the texts of `rule` that are not empty.
    fn nonempty_rule(&mut self, rule: Name) -> Result<Name, CompileError> {
        if let Some(known) = self.nonempty.get(&rule) {
            return Ok(*known);
        }
        // A rule that was made here and has no body yet never derives the empty text.
        match self.tree.rules[rule as usize].body {
            Some(body) if self.may_be_empty[body as usize] => {}
            _ => return Ok(rule),
        }
        let Tree { rules, .. } = &*self.tree;
        let (name, at) = (rules[rule as usize].name.clone(), rules[rule as usize].at);
        let fresh = self.tree.new_rule(&name, at)?;
        self.nonempty.insert(rule, fresh);
        if !self.is_member(rule) {
            self.pending.push((rule, fresh));
        }
        Ok(fresh)
    }

    fn define_pending(&mut self) -> Result<(), CompileError> {
        while let Some((rule, fresh)) = self.pending.pop() {
            let body = self.split(self.tree.body(rule))?.nonempty;
            let body = match body {
                Some(body) => body,
                None => self.add(Expr::Alt(Vec::new()))?,
            };
            self.tree.rules[fresh as usize].body = Some(body);
        }
        Ok(())
    }

    fn split(&mut self, root: ExprId) -> Result<Split, CompileError> {
        let mut path = vec![(root, false)];
        while let Some((id, is_done)) = path.pop() {
            self.splits.resize(self.tree.exprs.len(), None);
            if self.splits[id as usize].is_some() {
                continue;
            }
            if is_done {
                let split = self.split_whole(id)?;
                self.splits[id as usize] = Some(split);
            } else {
                path.push((id, true));
                let children = self.tree.exprs[id as usize].children();
                path.extend(children.iter().map(|child| (*child, false)));
            }
        }
        Ok(self.known(root))
    }

    fn known(&self, id: ExprId) -> Split {
        self.splits[id as usize].clone().expect("parts are split first")
    }

    /// Splits an expression whose parts are split.
    fn split_whole(&mut self, id: ExprId) -> Result<Split, CompileError> {
        let plain = |nonempty: Option<ExprId>| Split {
            nonempty,
            lefts: Vec::new(),
            other: nonempty,
        };
        Ok(match self.tree.exprs[id as usize].clone() {
            Expr::Empty => Split::default(),
            Expr::Leaf(hir) => match hir.properties() {
                has if has.maximum_len() == Some(0) => Split::default(),
                has if has.minimum_len() == Some(0) => plain(Some(self.add(Expr::NonEmptyLeaf(hir))?)),
                _ => plain(Some(id)),
            },
            Expr::Automaton(dfa) if dfa.is_accepting(dfa.start()) => {
                let dfa = dfa.without_empty();
                if dfa.start() == DEAD {
                    return Ok(Split::default());
                }
                plain(Some(self.add(Expr::Automaton(Arc::new(dfa)))?))
            }
            Expr::NonEmptyLeaf(_) | Expr::Automaton(_) | Expr::Tokens(_) | Expr::Json(_) => plain(Some(id)),
            Expr::Regular(..) => unreachable!("operations are resolved"),
            Expr::Rule(rule) => {
                let nonempty = self.nonempty_rule(rule)?;
                let nonempty = self.add(Expr::Rule(nonempty))?;
                if self.is_member(rule) {
                    Split {
                        nonempty: Some(nonempty),
                        lefts: vec![(rule, self.empty)],
                        other: None,
                    }
                } else {
                    plain(Some(nonempty))
                }
            }
            Expr::Marked { body, .. } if !self.may_be_empty[body as usize] => plain(Some(id)),
            Expr::Marked { body, mark } => match self.known(body).nonempty {
                Some(body) => plain(Some(self.add(Expr::Marked { body, mark })?)),
                None => Split::default(),
            },
            Expr::Alt(parts) => {
                let ways = parts.iter().map(|part| (*part, self.empty)).collect();
                self.join(ways)?
            }
            Expr::Seq(parts) => self.split_seq(&parts)?,
            Expr::Repeat { max: Some(0), .. } => Split::default(),
            Expr::Repeat { body, min, max } => {
                let is_nullable = self.may_be_empty[body as usize];
                let Some(once) = self.known(body).nonempty else {
                    return Ok(Split::default());
                };
                let (again, min) = if is_nullable {
                    (once, 0)
                } else {
                    (body, min.saturating_sub(1))
                };
                let max = max.map(|max| max - 1);
                let after = match max {
                    Some(0) => self.empty,
                    _ => self.add(Expr::Repeat {
                        body: again,
                        min,
                        max,
                    })?,
                };
                self.join(vec![(body, after)])?
            }
        })
    }

    fn split_seq(&mut self, parts: &[ExprId]) -> Result<Split, CompileError> {
        let n_empty = parts
            .iter()
            .take_while(|part| self.may_be_empty[**part as usize])
            .count();
        let last = (n_empty + 1).min(parts.len());
        let mut after = match &parts[last..] {
            [] => self.empty,
            [one] => *one,
            rest => self.add(Expr::Seq(rest.to_vec()))?,
        };
        let mut ways = Vec::new();
        for part in parts[..last].iter().rev() {
            ways.push((*part, after));
            after = self.pair(*part, after)?;
        }
        self.join(ways)
    }

    /// The ways of all `ways`: a part, without its empty text, and what follows it.
    fn join(&mut self, ways: Vec<(ExprId, ExprId)>) -> Result<Split, CompileError> {
        let (mut nonempty, mut lefts, mut other) = (Vec::new(), Vec::new(), Vec::new());
        for (part, after) in ways {
            let split = self.known(part);
            if let Some(part) = split.nonempty {
                nonempty.push(self.pair(part, after)?);
            }
            if let Some(part) = split.other {
                other.push(self.pair(part, after)?);
            }
            for (rule, rest) in split.lefts {
                lefts.push((rule, self.pair(rest, after)?));
            }
        }
        Ok(Split {
            nonempty: self.any(&nonempty)?,
            lefts,
            other: self.any(&other)?,
        })
    }

    fn rewrite(&mut self, cycle: &[Name]) -> Result<(), CompileError> {
        let mut steps: BTreeMap<Name, Vec<Step>> = BTreeMap::new();
        let mut begins = Vec::new();
        for to in cycle {
            let split = self.split(self.tree.body(*to))?;
            begins.push((*to, split.other));
            for (from, rest) in split.lefts {
                let from = steps.entry(from).or_default();
                if self.may_be_empty[rest as usize] {
                    from.push(Step { to: *to, text: None });
                }
                if let Some(text) = self.split(rest)?.nonempty {
                    from.push(Step {
                        to: *to,
                        text: Some(text),
                    });
                }
            }
        }
        self.define_pending()?;
        for target in cycle {
            self.rewrite_rule(*target, &begins, &steps)?;
        }
        Ok(())
    }

    fn rewrite_rule(
        &mut self,
        target: Name,
        begins: &[(Name, Option<ExprId>)],
        steps: &BTreeMap<Name, Vec<Step>>,
    ) -> Result<(), CompileError> {
        let useful = leads_to(target, steps);
        let body = self.tree.body(target);
        let is_nullable = self.may_be_empty[body as usize];
        let nonempty = self.nonempty_rule(target)?;
        let mut walks: BTreeMap<Name, Name> = BTreeMap::new();
        let mut todo = Vec::new();
        let mut ways = Vec::new();
        for (from, begin) in begins.iter().filter(|(from, _)| useful.contains(from)) {
            if let Some(begin) = begin {
                let walk = self.walk(*from, target, &mut walks, &mut todo)?;
                ways.push(self.pair(*begin, walk)?);
            }
        }
        while let Some(from) = todo.pop() {
            let mut ways = Vec::new();
            for at in shortcuts(from, steps) {
                if at == target {
                    ways.push(self.empty);
                }
                for step in steps.get(&at).into_iter().flatten() {
                    if let Some(text) = step.text
                        && useful.contains(&step.to)
                    {
                        let walk = self.walk(step.to, target, &mut walks, &mut todo)?;
                        ways.push(self.pair(text, walk)?);
                    }
                }
            }
            let body = self.any(&ways)?.expect("it leads to the target");
            self.tree.rules[walks[&from] as usize].body = Some(body);
        }
        let ways = self.add(Expr::Alt(ways))?;
        self.tree.rules[nonempty as usize].body = Some(ways);
        if is_nullable {
            let nonempty = self.add(Expr::Rule(nonempty))?;
            let body = self.add(Expr::Alt(vec![self.empty, nonempty]))?;
            self.tree.rules[target as usize].body = Some(body);
        }
        Ok(())
    }

    /// A reference to the walk between two rules.
    fn walk(
        &mut self,
        from: Name,
        to: Name,
        walks: &mut BTreeMap<Name, Name>,
        todo: &mut Vec<Name>,
    ) -> Result<ExprId, CompileError> {
        let walk = match walks.get(&from) {
            Some(walk) => *walk,
            None => {
                let rule = &self.tree.rules[to as usize];
                let (name, at) = (rule.name.clone(), rule.at);
                let walk = self.tree.new_rule(&name, at)?;
                walks.insert(from, walk);
                todo.push(from);
                walk
            }
        };
        self.add(Expr::Rule(walk))
    }
}

/// The rules from which a walk can end at `target`.
fn leads_to(target: Name, steps: &BTreeMap<Name, Vec<Step>>) -> std::collections::BTreeSet<Name> {
    let mut into: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
    for (from, steps) in steps {
        for step in steps {
            into.entry(step.to).or_default().push(*from);
        }
    }
    let mut found = std::collections::BTreeSet::from([target]);
    let mut todo = vec![target];
    while let Some(rule) = todo.pop() {
        for from in into.get(&rule).into_iter().flatten() {
            if found.insert(*from) {
                todo.push(*from);
            }
        }
    }
    found
}

/// The rules that are reached from `from` without a text.
fn shortcuts(from: Name, steps: &BTreeMap<Name, Vec<Step>>) -> Vec<Name> {
    let mut found = vec![from];
    let mut at = 0;
    while let Some(rule) = found.get(at).copied() {
        at += 1;
        for step in steps.get(&rule).into_iter().flatten() {
            if step.text.is_none() && !found.contains(&step.to) {
                found.push(step.to);
            }
        }
    }
    found
}
