//! Operations on regular languages that no regular expression has: intersection, complement, shortest match.
//!
//! They stand in terminals, which are not recursive. Parts are combined as regular expressions while they are
//! some, and as automata from the first operation on.

use std::cell::Cell;
use std::sync::Arc;

use regex_syntax::hir::{self, Dot, Hir};

use super::lower::hir_size;
use super::{Expr, ExprId, Tree};
use crate::dfa::{Classes, Dfa, Product, TooManyStates};
use crate::error::CompileError;
use crate::pattern;

/// What is made of the texts of parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// The texts that all parts have.
    All,
    /// The texts, in UTF-8, that the only part does not have.
    Not,
    /// The texts of the only part that begin with no shorter one of it.
    Shortest,
    /// What stands before this text, in those texts of the only part that end with it.
    Before(Box<[u8]>),
    /// The texts of the only part that do not end with this text.
    NotBefore(Box<[u8]>),
}

/// The texts of an expression.
#[derive(Clone, Debug)]
enum Part {
    Expression(Hir),
    Automaton(Arc<Dfa>),
}

/// Expressions above this size become automata.
const MAX_SIZE: usize = 20_000;

/// Puts an automaton in the place of every operation that `tree` holds.
pub(crate) fn resolve(tree: &mut Tree<'_>) -> Result<(), CompileError> {
    let is_operation = |id: &ExprId| matches!(tree.exprs[*id as usize], Expr::Regular(..));
    let operations: Vec<ExprId> = (0..tree.exprs.len() as ExprId).filter(is_operation).collect();
    let mut parts: Vec<Option<Part>> = vec![None; tree.exprs.len()];
    for operation in operations {
        for id in unknown(tree, operation, &parts) {
            let part = part(tree, id, &parts)?;
            if let (Expr::Regular(..), Part::Automaton(dfa)) = (&tree.exprs[id as usize], &part) {
                tree.exprs[id as usize] = Expr::Automaton(dfa.clone());
            }
            parts[id as usize] = Some(part);
        }
    }
    Ok(())
}

/// What `root` consists of and is not known, parts before wholes.
fn unknown(tree: &Tree<'_>, root: ExprId, known: &[Option<Part>]) -> Vec<ExprId> {
    let (mut path, mut order) = (vec![(root, false)], Vec::new());
    let mut seen = std::collections::BTreeSet::new();
    while let Some((id, is_done)) = path.pop() {
        if is_done {
            order.push(id);
        } else if known[id as usize].is_none() && seen.insert(id) {
            path.push((id, true));
            let expr = &tree.exprs[id as usize];
            path.extend(expr.children().iter().map(|child| (*child, false)));
            if let Expr::Rule(name) = expr {
                path.push((tree.body(*name), false));
            }
        }
    }
    order
}

/// `id`, whose parts are known.
fn part(tree: &mut Tree<'_>, id: ExprId, known: &[Option<Part>]) -> Result<Part, CompileError> {
    let of = |id: &ExprId| known[*id as usize].clone().expect("parts come first");
    let expr = tree.exprs[id as usize].clone();
    let parts: Vec<Part> = match &expr {
        Expr::Rule(name) => vec![of(&tree.body(*name))],
        expr => expr.children().iter().map(of).collect(),
    };
    if let Some(joined) = joined(&expr, &parts) {
        return Ok(Part::Expression(joined));
    }
    let mut automata = Vec::with_capacity(parts.len());
    for part in &parts {
        automata.push(automaton(tree, part)?);
    }
    let dfa = match &expr {
        Expr::Rule(_) => return Ok(Part::Automaton(automata.remove(0))),
        Expr::Automaton(dfa) => return Ok(Part::Automaton(dfa.clone())),
        Expr::Seq(_) => combined(tree, &automata, Shape::Sequence)?,
        Expr::Alt(_) => combined(tree, &automata, Shape::Choice)?,
        Expr::Repeat { min, max, .. } => {
            let (min, max) = (*min, *max);
            combined(tree, &automata, Shape::Repetition { min, max })?
        }
        Expr::Regular(operation, _) => operated(tree, operation, &automata)?,
        other => unreachable!("a terminal has no {other:?}"),
    };
    Ok(Part::Automaton(Arc::new(dfa)))
}

/// `expr` as a regular expression, when its parts are some and it is not too large.
fn joined(expr: &Expr, parts: &[Part]) -> Option<Hir> {
    let hirs = parts.iter().map(|part| match part {
        Part::Expression(hir) => Some(hir),
        Part::Automaton(_) => None,
    });
    let hirs: Vec<&Hir> = hirs.collect::<Option<_>>()?;
    let size = hirs.iter().map(|hir| hir_size(hir)).sum::<usize>();
    let copies = || hirs.iter().map(|hir| (*hir).clone());
    let (hir, n_times) = match expr {
        Expr::Empty => (Hir::empty(), 1),
        Expr::Leaf(hir) => (hir.clone(), 1),
        Expr::Rule(_) => (copies().next()?, 1),
        Expr::Seq(_) if size <= MAX_SIZE => (Hir::concat(copies().collect()), 1),
        Expr::Alt(_) if size <= MAX_SIZE => (Hir::alternation(copies().collect()), 1),
        Expr::Repeat { min, max, .. } => {
            let repetition = hir::Repetition {
                min: *min,
                max: *max,
                greedy: true,
                sub: Box::new(copies().next()?),
            };
            (
                Hir::repetition(repetition),
                max.unwrap_or(min.saturating_add(1)) as usize,
            )
        }
        _ => return None,
    };
    let is_leaf = matches!(expr, Expr::Leaf(_));
    (is_leaf || size.saturating_mul(n_times) <= MAX_SIZE).then_some(hir)
}

fn automaton(tree: &mut Tree<'_>, part: &Part) -> Result<Arc<Dfa>, CompileError> {
    match part {
        Part::Automaton(dfa) => Ok(dfa.clone()),
        Part::Expression(hir) => compiled(tree, hir).map(Arc::new),
    }
}

fn compiled(tree: &mut Tree<'_>, hir: &Hir) -> Result<Dfa, CompileError> {
    let built = pattern::compile_hir(hir, &crate::error::shorten(&hir.to_string()), tree.bounds())?;
    tree.spend(built.n_work)?;
    Ok(built.dfa)
}

fn operated(tree: &mut Tree<'_>, operation: &Operation, parts: &[Arc<Dfa>]) -> Result<Dfa, CompileError> {
    let first = &parts[0];
    match operation {
        Operation::All => {
            let mut whole = (**first).clone();
            for part in &parts[1..] {
                whole = product(tree, &whole, part, Product::Both)?;
            }
            Ok(whole)
        }
        Operation::Not => {
            let any = compiled(tree, &any_text())?;
            product(tree, &any, first, Product::FirstOnly)
        }
        Operation::Shortest => {
            let step =
                |state: &u32, byte| (!first.is_accepting(*state)).then(|| alive(first, *state, byte))?;
            explored(tree, first, step, |state| first.is_accepting(*state))
        }
        Operation::Before(text) => {
            let ends = |state: &u32| {
                let end = text.iter().fold(*state, |state, byte| first.step(state, *byte));
                first.is_accepting(end)
            };
            tree.spend((first.n_states() * text.len()) as u64)?;
            explored(tree, first, |state, byte| alive(first, *state, byte), ends)
        }
        Operation::NotBefore(text) => {
            let any = compiled(tree, &any_text())?;
            let end = Arc::new(Dfa::of_strings([&text[..]]));
            let ending = combined(tree, &[Arc::new(any), end], Shape::Sequence)?;
            product(tree, first, &ending, Product::FirstOnly)
        }
    }
}

fn alive(dfa: &Dfa, state: u32, byte: u8) -> Option<u32> {
    Some(dfa.step(state, byte)).filter(|next| *next != crate::dfa::DEAD)
}

fn any_text() -> Hir {
    Hir::repetition(hir::Repetition {
        min: 0,
        max: None,
        greedy: true,
        sub: Box::new(Hir::dot(Dot::AnyChar)),
    })
}

fn explored(
    tree: &mut Tree<'_>,
    dfa: &Dfa,
    step: impl Fn(&u32, u8) -> Option<u32>,
    accept: impl Fn(&u32) -> bool,
) -> Result<Dfa, CompileError> {
    tree.spend((dfa.n_states() * dfa.classes().len()) as u64)?;
    let found = Dfa::explore(dfa.classes().clone(), dfa.start(), step, accept, usize::MAX);
    found.map_err(|TooManyStates| too_many_states(tree))
}

fn product(tree: &mut Tree<'_>, a: &Dfa, b: &Dfa, rule: Product) -> Result<Dfa, CompileError> {
    let product = a.product(b, rule, tree.bounds().max_states);
    let product = product.map_err(|TooManyStates| too_many_states(tree))?;
    tree.spend((product.n_states() * product.classes().len()) as u64)?;
    Ok(product)
}

/// How automata are put together.
#[derive(Clone, Copy)]
enum Shape {
    Sequence,
    Choice,
    /// Of the only part.
    Repetition {
        min: u32,
        max: Option<u32>,
    },
}

/// Where a text may stand in a combination: in which part, or after how many bodies; and in what state of it.
type Place = (u32, u32);

struct Combination<'a> {
    parts: &'a [Arc<Dfa>],
    shape: Shape,
}

impl Combination<'_> {
    fn part(&self, at: u32) -> &Dfa {
        match self.shape {
            Shape::Repetition { .. } => &self.parts[0],
            _ => &self.parts[at as usize],
        }
    }

    /// What begins once the part or body `at` is complete.
    fn next(&self, at: u32) -> Option<u32> {
        match self.shape {
            Shape::Sequence => Some(at + 1).filter(|next| (*next as usize) < self.parts.len()),
            Shape::Choice => None,
            // Without a maximum, bodies beyond the minimum are not counted.
            Shape::Repetition { min, max: None } => Some((at + 1).min(min)),
            Shape::Repetition { max: Some(max), .. } => Some(at + 1).filter(|next| *next < max),
        }
    }

    /// Whether the whole is complete once the part or body `at` is.
    fn may_end_after(&self, at: u32) -> bool {
        match self.shape {
            Shape::Sequence => at as usize + 1 == self.parts.len(),
            Shape::Choice => true,
            Shape::Repetition { min, .. } => at + 1 >= min,
        }
    }

    /// `places` and those that need no further byte, in order.
    fn closed(&self, mut places: Vec<Place>) -> Option<Vec<Place>> {
        let mut done = std::collections::BTreeSet::new();
        while let Some((at, state)) = places.pop() {
            if !done.insert((at, state)) || !self.part(at).is_accepting(state) {
                continue;
            }
            if let Some(next) = self.next(at) {
                places.push((next, self.part(next).start()));
            }
        }
        (!done.is_empty()).then(|| done.into_iter().collect())
    }

    fn start(&self) -> Vec<Place> {
        let first = match self.shape {
            Shape::Choice => 0..self.parts.len() as u32,
            Shape::Repetition { max: Some(0), .. } => 0..0,
            _ => 0..1,
        };
        let places = first.map(|at| (at, self.part(at).start()));
        let places = places.filter(|(_, state)| *state != crate::dfa::DEAD).collect();
        self.closed(places).unwrap_or_default()
    }
}

fn combined(tree: &mut Tree<'_>, parts: &[Arc<Dfa>], shape: Shape) -> Result<Dfa, CompileError> {
    let combination = Combination { parts, shape };
    let classes = parts.iter().map(|part| part.classes());
    let classes = classes.fold(Classes::by(|_| ()), |all, of_part| all.refine(of_part));
    let max = tree.bounds().max_work();
    let n_work = Cell::new(0);
    // Whether the whole is empty of itself: no place says so.
    let is_empty = matches!(shape, Shape::Repetition { min: 0, .. });
    let step = |(_, places): &(bool, Vec<Place>), byte| {
        n_work.set(n_work.get() + places.len() as u64 + 1);
        if n_work.get() > max {
            return None;
        }
        let next = places
            .iter()
            .filter_map(|(at, state)| Some((*at, alive(combination.part(*at), *state, byte)?)));
        Some((false, combination.closed(next.collect())?))
    };
    let accept = |(is_empty, places): &(bool, Vec<Place>)| {
        let ends = |(at, state): &Place| {
            combination.part(*at).is_accepting(*state) && combination.may_end_after(*at)
        };
        *is_empty || places.iter().any(ends)
    };
    let start = (is_empty, combination.start());
    let dfa = Dfa::explore(classes, start, step, accept, tree.bounds().max_states);
    tree.spend(n_work.get())?;
    if n_work.get() > max {
        return Err(tree.too_much_work());
    }
    dfa.map_err(|TooManyStates| too_many_states(tree))
}

/// The texts that runs of `chunks` spell, none of them too.
pub(super) fn substring(tree: &mut Tree<'_>, chunks: &[&str]) -> Result<Dfa, CompileError> {
    let mut used = [false; 256];
    for byte in chunks.iter().flat_map(|chunk| chunk.bytes()) {
        used[usize::from(byte)] = true;
    }
    let classes = Classes::by(|byte| used[usize::from(byte)].then_some(byte));
    let max = tree.bounds().max_work();
    let n_work = Cell::new(0);
    // A place is a chunk and how much of it was written.
    let step = |places: &Vec<Place>, byte: u8| {
        n_work.set(n_work.get() + places.len() as u64 + 1);
        if n_work.get() > max {
            return None;
        }
        let next = places.iter().filter_map(|(at, n)| {
            let chunk = chunks.get(*at as usize)?.as_bytes();
            let is_next = chunk[*n as usize] == byte;
            let is_whole = *n as usize + 1 == chunk.len();
            is_next.then_some(if is_whole { (at + 1, 0) } else { (*at, n + 1) })
        });
        let next: Vec<Place> = next.collect();
        (!next.is_empty()).then_some(next)
    };
    let accept = |places: &Vec<Place>| places.iter().any(|(_, n)| *n == 0);
    let start = (0..=chunks.len() as u32).map(|at| (at, 0)).collect();
    let dfa = Dfa::explore(classes, start, step, accept, tree.bounds().max_states);
    tree.spend(n_work.get())?;
    if n_work.get() > max {
        return Err(tree.too_much_work());
    }
    dfa.map_err(|TooManyStates| too_many_states(tree))
}

fn too_many_states(tree: &Tree<'_>) -> CompileError {
    CompileError::Limit {
        name: "max_automaton_states",
        limit: tree.bounds().max_states as u64,
        place: "a terminal of the grammar".to_owned(),
    }
}
