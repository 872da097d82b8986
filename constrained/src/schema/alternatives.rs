//! Goals taken apart: references and `allOf` are followed, and what can hold in several ways multiplies out.
//!
//! Everything without a choice is taken first, so that a choice is made knowing it and what contradicts it
//! is dropped at once (`choices.rs`). The number of alternatives is bounded by `max_branches`.

use std::rc::Rc;

use super::choices::Choice;
use super::facts::{Counted, Fact, Facts, Goal, Target};
use super::keywords::{ALL, OBJECT, type_of};
use super::relax::Blame;
use super::{CompileError, Compiler};
use crate::json::{Json, JsonId};

/// Where a goal was reached from: a place in [`Paths`].
pub(super) type PathId = u32;
const START: PathId = 0;

/// Chains of goals that are about the same value.
struct Paths(Vec<(PathId, Goal)>);

impl Paths {
    /// The goals above `path`, the nearest first, itself included.
    fn above(&self, mut path: PathId) -> impl Iterator<Item = Goal> {
        std::iter::from_fn(move || {
            let (parent, goal) = *self.0.get((path as usize).checked_sub(1)?)?;
            path = parent;
            Some(goal)
        })
    }

    fn push(&mut self, parent: PathId, goal: Goal) -> PathId {
        self.0.push((parent, goal));
        self.0.len() as PathId
    }
}

/// A choice yet to be made.
#[derive(Clone, Copy)]
pub(super) struct Fork {
    pub(super) kind: ForkKind,
    pub(super) path: PathId,
}

#[derive(Clone, Copy)]
pub(super) enum ForkKind {
    Fails(Target),
    Differs(JsonId),
    AnyOf {
        at: Target,
        is_seen: bool,
    },
    OneOf(Target),
    If(Target),
    /// Member `n` of the keyword: what a property's presence asks for.
    Depends(Target, &'static str, usize),
}

/// One way to settle a choice.
#[derive(Clone)]
pub(super) struct Branch {
    pub(super) types: u8,
    pub(super) facts: Vec<Fact>,
    pub(super) goals: Vec<Goal>,
    /// Values of which it is one.
    pub(super) values: Option<Rc<[JsonId]>>,
    /// Whether it is only there because something is left out: whether it holds is not known.
    pub(super) is_excuse: bool,
    /// Why this way cannot be expressed; an error unless it is impossible anyway.
    pub(super) refused: Option<CompileError>,
}

impl Branch {
    pub(super) fn of_types(types: u8) -> Self {
        Self {
            types,
            facts: Vec::new(),
            goals: Vec::new(),
            values: None,
            is_excuse: false,
            refused: None,
        }
    }

    /// Values of `types`, any of which may fail by what is left out.
    pub(super) fn excuse(types: u8) -> Self {
        Self {
            is_excuse: true,
            ..Self::of_types(types)
        }
    }

    pub(super) fn of_goals(goals: Vec<Goal>) -> Self {
        Self {
            goals,
            ..Self::of_types(ALL)
        }
    }

    /// Values of the type that the facts are about.
    pub(super) fn of_facts(facts: Vec<Fact>) -> Self {
        let types = facts.iter().fold(ALL, |types, fact| types & fact.type_bit());
        Self {
            facts,
            ..Self::of_types(types)
        }
    }
}

/// What is known of one alternative, and what is left to be settled.
#[derive(Clone)]
pub(super) struct Partial {
    pub(super) facts: Facts,
    pub(super) todo: Vec<(Goal, PathId)>,
    pub(super) forks: Vec<Fork>,
}

pub(super) const DEPENDENT: [&str; 3] = ["dependentRequired", "dependentSchemas", "dependencies"];

impl Compiler<'_> {
    /// The ways in which all of `goals` hold for values of `types`.
    pub(super) fn alternatives(&mut self, goals: &[Goal], types: u8) -> Result<Vec<Facts>, CompileError> {
        let mut paths = Paths(Vec::new());
        let first = Partial {
            facts: Facts::of_types(types),
            todo: goals.iter().map(|goal| (*goal, START)).collect(),
            forks: Vec::new(),
        };
        let (mut open, mut done) = (vec![first], Vec::new());
        let mut last = None;
        while let Some(mut partial) = open.pop() {
            if open.len() + done.len() > self.limits.max_branches {
                self.blame = last.map(Blame::Choice);
                return Err(self.too_many_branches(goals));
            }
            self.spend(partial.facts.size() as u64)?;
            if let Some((goal, path)) = partial.todo.pop() {
                if self.settle(goal, path, &mut partial, &mut paths)? {
                    open.push(partial);
                }
                continue;
            }
            match self.next_choice(&mut partial)? {
                Choice::Never => {}
                Choice::Taken => open.push(partial),
                Choice::None => {
                    partial.facts.plain.sort_unstable();
                    done.push(partial.facts);
                }
                Choice::Between { kind, path, branches } => {
                    last = kind.or(last);
                    for branch in branches.into_iter().rev() {
                        self.spend(partial.facts.size() as u64)?;
                        let mut next = partial.clone();
                        self.take(branch, path, &mut next)?;
                        open.push(next);
                    }
                }
            }
        }
        done.reverse();
        Ok(done)
    }

    pub(super) fn too_many_branches(&self, goals: &[Goal]) -> CompileError {
        let place = goals.first().map_or(0, |goal| goal.place());
        CompileError::Limit {
            name: "max_branches",
            limit: self.limits.max_branches as u64,
            place: self.document.pointer(place),
        }
    }

    /// Settles a choice of `partial` with `branch`.
    pub(super) fn take(
        &mut self,
        branch: Branch,
        path: PathId,
        partial: &mut Partial,
    ) -> Result<(), CompileError> {
        if let Some(error) = branch.refused {
            self.excuse_way(error)?;
        }
        partial.facts.types &= branch.types;
        partial.facts.listed.extend(branch.values);
        for fact in &branch.facts {
            if !partial.facts.list.contains(fact) {
                partial.facts.list.push(*fact);
            }
        }
        partial.todo.extend(branch.goals.iter().map(|goal| (*goal, path)));
        Ok(())
    }

    pub(super) fn value_of_property(&self, id: JsonId, name: &str) -> Option<JsonId> {
        let properties = self.member(id, "properties")?;
        self.document.member(properties, name)
    }

    /// Takes `goal` into `partial`; false when it cannot hold.
    fn settle(
        &mut self,
        goal: Goal,
        path: PathId,
        partial: &mut Partial,
        paths: &mut Paths,
    ) -> Result<bool, CompileError> {
        let document = self.document;
        let (target, is_wanted) = match goal {
            Goal::Equals(value) if self.left_out.has_schema(value) => return Ok(true),
            Goal::Equals(value) => {
                partial.facts.types &= type_of(&document[value]);
                partial.facts.equal.push(value);
                return Ok(partial.facts.types != 0);
            }
            Goal::Differs(value) if self.left_out.may_hold(value) => return Ok(true),
            Goal::Differs(value) => {
                if matches!(document[value], Json::Array(_) | Json::Object(_)) {
                    let kind = ForkKind::Differs(value);
                    partial.forks.push(Fork { kind, path });
                } else if partial.facts.types & type_of(&document[value]) != 0 {
                    partial.facts.different.push(value);
                }
                return Ok(true);
            }
            Goal::Holds(target) => (target, true),
            Goal::Fails(target) => (target, false),
        };
        if self.left_out.has_schema(target.id) {
            partial.facts.is_partial |= is_wanted;
            return Ok(true);
        }
        if !is_wanted && self.left_out.may_hold(target.id) {
            return Ok(true);
        }
        match &document[target.id] {
            Json::Bool(holds) => return Ok(*holds == is_wanted),
            Json::Object(_) => {}
            _ => {
                let why = "it is neither an object nor a boolean";
                return Err(self.malformed(target.id, "schema", why));
            }
        }
        self.check_path((goal, target), paths.above(path))?;
        let path = paths.push(path, goal);
        if is_wanted {
            self.expand(target, path, partial, paths)
        } else {
            if partial.facts.plain.contains(&target) {
                return Ok(false);
            }
            let kind = ForkKind::Fails(target);
            partial.forks.push(Fork { kind, path });
            Ok(true)
        }
    }

    /// Refuses a goal that is reached from itself or from too many others.
    fn check_path(
        &mut self,
        (goal, target): (Goal, Target),
        above: impl Iterator<Item = Goal>,
    ) -> Result<(), CompileError> {
        let mut above = above.peekable();
        let nearest = above.peek().map_or(target.id, |nearest| nearest.place());
        let mut n_above = 0;
        for above in above {
            n_above += 1;
            if above == goal {
                let why = "it reaches itself without a property or item between";
                return Err(self.unsupported(nearest, "$ref", why));
            }
        }
        if n_above > self.limits.max_source_depth {
            self.blame = Some(Blame::Keyword(nearest, "$ref"));
            return Err(CompileError::Limit {
                name: "max_source_depth",
                limit: self.limits.max_source_depth as u64,
                place: self.document.pointer(target.id),
            });
        }
        self.spend(1 + n_above as u64)
    }

    /// Takes in the schema `target`, which is an object and holds; false when it cannot.
    fn expand(
        &mut self,
        target: Target,
        path: PathId,
        partial: &mut Partial,
        paths: &Paths,
    ) -> Result<bool, CompileError> {
        let id = target.id;
        partial.facts.is_partial |= self.left_out.hides_evaluation(id);
        // Nearest first; what a negation is about is never seen from outside of it.
        let holding = paths.above(path).map_while(|goal| match goal {
            Goal::Holds(above) => Some(above),
            _ => None,
        });
        let observers: Vec<Target> = holding.filter(|above| self.observes(above.id)).collect();
        for observer in &observers {
            if !partial.facts.evaluated.contains(&(*observer, target)) {
                partial.facts.evaluated.push((*observer, target));
            }
        }
        for referred in self.references(target)? {
            partial.todo.push((Goal::Holds(referred), path));
        }
        if self.has(id, "$ref") && self.does_ref_hide(id) {
            return Ok(true);
        }
        let is_seen = !observers.is_empty();
        if partial.facts.plain.contains(&target) {
            if !is_seen {
                return Ok(true);
            }
        } else {
            self.check_keywords(id)?;
            partial.facts.types &= self.possible_types(id) & self.types_left(id);
            partial.facts.plain.push(target);
        }
        for part in self.all_of(id)? {
            partial.todo.push((Goal::Holds(self.within(target, part)), path));
        }
        if self.has(id, "contains") {
            self.note_contains(target, partial)?;
        }
        let mut fork = |kind| partial.forks.push(Fork { kind, path });
        if let Some(not) = self.member(id, "not") {
            partial.todo.push((Goal::Fails(self.within(target, not)), path));
        }
        // Only the branches that hold are seen; without an observer a condition of nothing is none.
        if self.has(id, "if") && (is_seen || self.has(id, "then") || self.has(id, "else")) {
            fork(ForkKind::If(target));
        }
        if !self.list(id, "anyOf")?.is_empty() {
            fork(ForkKind::AnyOf { at: target, is_seen });
        }
        if !self.list(id, "oneOf")?.is_empty() {
            fork(ForkKind::OneOf(target));
        }
        for keyword in DEPENDENT {
            for n in 0..self.members(id, keyword)?.len() {
                fork(ForkKind::Depends(target, keyword, n));
            }
        }
        Ok(partial.facts.types != 0)
    }

    fn observes(&self, id: JsonId) -> bool {
        self.has(id, "unevaluatedProperties") || self.has(id, "unevaluatedItems")
    }

    fn note_contains(&mut self, target: Target, partial: &mut Partial) -> Result<(), CompileError> {
        let (min, max) = self.contains_range(target.id)?;
        let contained = self.member(target.id, "contains");
        let contained = contained.expect("the caller has seen it");
        let counted = Fact::Counted(Counted {
            goal: Goal::Holds(self.within(target, contained)),
            from: 0,
            min,
            max,
            owner: Some(target),
        });
        if !partial.facts.list.contains(&counted) {
            partial.facts.list.push(counted);
        }
        Ok(())
    }

    pub(super) fn check_keywords(&self, id: JsonId) -> Result<(), CompileError> {
        if !matches!(self.value(id, "enum"), None | Some(Json::Array(_))) {
            return Err(self.malformed(id, "enum", "it is not a list"));
        }
        self.disallowed(id)?;
        self.types(id).map(|_| ())
    }

    /// The ways to settle what the presence of a property asks for.
    pub(super) fn dependent(
        &mut self,
        at: Target,
        keyword: &str,
        n: usize,
    ) -> Result<Vec<Branch>, CompileError> {
        let (name, value) = &self.members(at.id, keyword)?[n];
        let name = self.name_id(name);
        // Values of other types fall under the first way, so the second is about objects.
        let without = Branch {
            types: ALL,
            ..Branch::of_facts(vec![Fact::Lacks(name)])
        };
        let mut with = Branch::of_facts(vec![Fact::Member(name, None)]);
        debug_assert_eq!(with.types, OBJECT);
        let list = &self.document[*value];
        match list {
            Json::Array(_) => {
                for needed in self.names(Some(list), at.id, keyword)? {
                    with.facts.push(Fact::Member(self.name_id(needed), None));
                }
            }
            Json::String(needed) if keyword == "dependencies" => {
                with.facts.push(Fact::Member(self.name_id(needed), None));
            }
            _ if keyword == "dependentRequired" => {
                return Err(self.malformed(at.id, keyword, "it is not a list of names"));
            }
            _ => with.goals.push(Goal::Holds(self.within(at, *value))),
        }
        Ok(vec![without, with])
    }
}
