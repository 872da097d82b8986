//! Choices of one alternative: which are settled by what is known already, and which one to make next.
//!
//! What can be settled in one way is taken at once; what every value settles is dropped. Then choices with a
//! schema that must hold are made, the latest first. What is left are schemas that must fail, and of objects
//! these become conditions ([`Fact::AnyOf`]), which add up where alternatives would multiply.

use std::rc::Rc;

use super::alternatives::{Branch, Fork, ForkKind, Partial, PathId};
use super::facts::{ClauseId, Fact, Facts, Goal, Target};
use super::keywords::{ALL, OBJECT, STRING, type_of};
use super::lists::Parted;
use super::objects::MAX_CONDITIONS;
use super::relax::Blame;
use super::view::View;
use super::{CompileError, Compiler};
use crate::json::Json;

/// What to do with an alternative whose goals are all taken apart.
pub(super) enum Choice {
    /// It contradicts itself.
    Never,
    /// Something was settled.
    Taken,
    /// There is nothing left to choose.
    None,
    Between {
        /// Absent where only types are told apart.
        kind: Option<ForkKind>,
        path: PathId,
        branches: Vec<Branch>,
    },
}

/// What is known of a schema.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Holds,
    Fails,
    Open,
}

/// The ways to settle a choice, as far as they are possible.
enum Ways {
    /// Every value settles it.
    Any,
    Some(Vec<Branch>),
}

/// Lists of facts that one schema which must fail becomes.
const MAX_CLAUSES: usize = 16;
/// Facts of one list.
const MAX_CLAUSE: usize = 64;
/// Schemas within schemas that must fail.
const MAX_NESTED: usize = 6;
/// Ways to fail that are told apart.
const MAX_WAYS: usize = 512;

impl Compiler<'_> {
    /// Settles what can be settled in `partial`, or finds the choice to make.
    pub(super) fn next_choice(&mut self, partial: &mut Partial) -> Result<Choice, CompileError> {
        let mut view = View::default();
        let mut open: Vec<(Fork, Vec<Branch>)> = Vec::new();
        let mut forks = std::mem::take(&mut partial.forks);
        while let Some(fork) = forks.pop() {
            let mut ways = match self.ways(fork.kind, &partial.facts, &mut view)? {
                Ways::Any => continue,
                Ways::Some(ways) => ways,
            };
            if ways.len() > 1 {
                open.push((fork, ways));
                continue;
            }
            let Some(way) = ways.pop() else {
                return Ok(Choice::Never);
            };
            forks.extend(open.into_iter().rev().map(|(fork, _)| fork));
            partial.forks = forks;
            self.take(way, fork.path, partial)?;
            return Ok(if partial.facts.types == 0 {
                Choice::Never
            } else {
                Choice::Taken
            });
        }
        let is_positive =
            |(fork, _): &(Fork, Vec<Branch>)| !matches!(fork.kind, ForkKind::Fails(_) | ForkKind::Differs(_));
        let chosen = match open.iter().position(is_positive) {
            Some(chosen) => chosen,
            None if open.is_empty() => return Ok(Choice::None),
            None => {
                let types = partial.facts.types;
                if types & OBJECT != 0 && types != OBJECT {
                    partial.forks = open.into_iter().rev().map(|(fork, _)| fork).collect();
                    let parts = [OBJECT, types & !OBJECT];
                    return Ok(Choice::Between {
                        kind: None,
                        path: 0,
                        branches: parts.map(Branch::of_types).into(),
                    });
                }
                match self.as_conditions(partial, &mut view, &mut open)? {
                    Some(choice) => return Ok(choice),
                    None => fewest(&open),
                }
            }
        };
        let (fork, ways) = open.remove(chosen);
        partial.forks = open.into_iter().rev().map(|(fork, _)| fork).collect();
        Ok(Choice::Between {
            kind: Some(fork.kind),
            path: fork.path,
            branches: ways,
        })
    }

    /// Turns schemas that must fail into conditions; `None` when some are left.
    fn as_conditions(
        &mut self,
        partial: &mut Partial,
        view: &mut View,
        open: &mut Vec<(Fork, Vec<Branch>)>,
    ) -> Result<Option<Choice>, CompileError> {
        if partial.facts.types != OBJECT {
            return Ok(None);
        }
        let is_condition = |fact: &&Fact| matches!(fact, Fact::AnyOf(_) | Fact::Witness(_));
        let mut n_conditions = partial.facts.list.iter().filter(is_condition).count();
        let mut at = 0;
        while at < open.len() {
            let Some(clauses) = self.clauses(&partial.facts, view, &open[at].1, MAX_NESTED)? else {
                at += 1;
                continue;
            };
            if clauses.iter().any(Vec::is_empty) {
                return Ok(Some(Choice::Never));
            }
            if n_conditions + clauses.len() > MAX_CONDITIONS {
                at += 1;
                continue;
            }
            open.remove(at);
            let mut is_settled = false;
            for clause in clauses {
                let fact = match clause[..] {
                    [fact] => fact,
                    _ => Fact::AnyOf(self.clause_id(clause)),
                };
                is_settled |= !matches!(fact, Fact::AnyOf(_));
                if !partial.facts.list.contains(&fact) {
                    n_conditions += usize::from(is_condition(&&fact));
                    partial.facts.list.push(fact);
                }
            }
            if is_settled {
                // What is new may settle more.
                partial.forks = std::mem::take(open)
                    .into_iter()
                    .rev()
                    .map(|(fork, _)| fork)
                    .collect();
                return Ok(Some(Choice::Taken));
            }
        }
        Ok(open.is_empty().then_some(Choice::None))
    }

    fn clause_id(&mut self, clause: Vec<Fact>) -> ClauseId {
        if let Some(known) = self.clause_ids.get(&clause) {
            return *known;
        }
        let id = self.clauses.len() as ClauseId;
        self.clauses.push(clause.clone());
        self.clause_ids.insert(clause, id);
        id
    }

    /// Facts about objects of which one in each list must hold so that one of `ways` does; `None` when that
    /// cannot be said so.
    fn clauses(
        &mut self,
        facts: &Facts,
        view: &mut View,
        ways: &[Branch],
        depth: usize,
    ) -> Result<Option<Vec<Vec<Fact>>>, CompileError> {
        let mut all: Vec<Vec<Fact>> = vec![Vec::new()];
        for way in ways.iter().filter(|way| way.types & OBJECT != 0) {
            if way.refused.is_some() || depth == 0 {
                return Ok(None);
            }
            let mut own = Vec::new();
            for fact in &way.facts {
                if !self.is_fact_implied(facts, view, *fact)? {
                    let is_possible = self.is_fact_possible(facts, view, *fact)?;
                    own.push(if is_possible { vec![*fact] } else { Vec::new() });
                }
            }
            for goal in &way.goals {
                let ways = match goal {
                    Goal::Fails(target) => self.ways_to_fail(*target)?,
                    Goal::Differs(value) if type_of(&self.document[*value]) != OBJECT => continue,
                    Goal::Differs(value) => self.ways_to_differ(*value).into(),
                    Goal::Holds(_) | Goal::Equals(_) => return Ok(None),
                };
                match self.clauses(facts, view, &ways, depth - 1)? {
                    Some(clauses) => own.extend(clauses),
                    None => return Ok(None),
                }
            }
            let longer = all
                .iter()
                .flat_map(|clause| own.iter().map(|more| [&clause[..], more].concat()));
            all = longer.collect();
            self.spend(all.len() as u64)?;
            if all.len() > MAX_CLAUSES || all.iter().any(|clause| clause.len() > MAX_CLAUSE) {
                return Ok(None);
            }
        }
        Ok(Some(
            all.into_iter().filter_map(|clause| simplified(&clause)).collect(),
        ))
    }

    /// The ways to settle the choice `kind` that are possible with `facts`.
    fn ways(&mut self, kind: ForkKind, facts: &Facts, view: &mut View) -> Result<Ways, CompileError> {
        let ways: Rc<[Branch]> = match kind {
            ForkKind::Fails(target) if facts.plain.contains(&target) => Rc::new([]),
            ForkKind::Fails(target) => self.ways_to_fail(target)?,
            ForkKind::Differs(value) => self.ways_to_differ(value).into(),
            ForkKind::Depends(at, keyword, n) => self.dependent(at, keyword, n)?.into(),
            ForkKind::AnyOf { at, is_seen } => return self.any_of(at, is_seen, facts, view),
            ForkKind::OneOf(at) => return self.one_of(at, facts, view),
            ForkKind::If(at) => return self.conditional(at, facts, view).map(Ways::Some),
        };
        let mut possible = Vec::new();
        for way in ways.iter() {
            let types = self.possible_types_of(way, facts, view)?;
            if types == 0 {
                continue;
            }
            if way.types & facts.types == facts.types && self.is_way_implied(way, facts, view)? {
                return Ok(Ways::Any);
            }
            let mut way = way.clone();
            way.types = types;
            possible.push(way);
        }
        Ok(Ways::Some(possible))
    }

    /// The types of values for which `way` is possible.
    fn possible_types_of(
        &mut self,
        way: &Branch,
        facts: &Facts,
        view: &mut View,
    ) -> Result<u8, CompileError> {
        let mut types = way.types & facts.types;
        if types == 0 {
            return Ok(0);
        }
        for goal in &way.goals {
            self.spend(1 + facts.plain.len() as u64)?;
            if !self.is_goal_possible(*goal, facts)? {
                return Ok(0);
            }
        }
        if types & OBJECT != 0 {
            for fact in &way.facts {
                if !self.is_fact_possible(facts, view, *fact)? {
                    types &= !OBJECT;
                    break;
                }
            }
        }
        Ok(types)
    }

    fn is_goal_possible(&mut self, goal: Goal, facts: &Facts) -> Result<bool, CompileError> {
        for target in &facts.plain {
            if self.keeps_out_goal(*target, goal)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether values of all types that are left satisfy `way`, as far as it shows.
    fn is_way_implied(&mut self, way: &Branch, facts: &Facts, view: &mut View) -> Result<bool, CompileError> {
        for goal in &way.goals {
            let is_implied = match goal {
                Goal::Holds(target) => facts.plain.contains(target),
                Goal::Fails(target) => !self.is_goal_possible(Goal::Holds(*target), facts)?,
                Goal::Differs(value) => {
                    facts.types & type_of(&self.document[*value]) == 0
                        || !self.is_goal_possible(Goal::Equals(*value), facts)?
                }
                Goal::Equals(_) => false,
            };
            if !is_implied {
                return Ok(false);
            }
        }
        for fact in &way.facts {
            if !self.is_fact_implied(facts, view, *fact)? {
                return Ok(false);
            }
        }
        Ok(way.refused.is_none() && way.values.is_none() && !way.is_excuse)
    }

    /// Whether the schema `target` holds or fails for sure.
    fn status(&mut self, target: Target, facts: &Facts, view: &mut View) -> Result<Status, CompileError> {
        match &self.document[target.id] {
            Json::Bool(true) => return Ok(Status::Holds),
            Json::Bool(false) => return Ok(Status::Fails),
            _ if facts.plain.contains(&target) => return Ok(Status::Holds),
            _ => {}
        }
        // What cannot be negated is open.
        let Ok(ways) = self.ways_to_fail(target) else {
            return Ok(Status::Open);
        };
        let mut found = Status::Holds;
        for way in ways.iter() {
            if self.possible_types_of(way, facts, view)? == 0 {
                continue;
            }
            found = Status::Open;
            if way.types & facts.types == facts.types && self.is_way_implied(way, facts, view)? {
                return Ok(Status::Fails);
            }
        }
        if found == Status::Open && !self.is_goal_possible(Goal::Holds(target), facts)? {
            found = Status::Fails;
        }
        Ok(found)
    }

    fn any_of(
        &mut self,
        at: Target,
        is_seen: bool,
        facts: &Facts,
        view: &mut View,
    ) -> Result<Ways, CompileError> {
        let parts = self.list(at.id, "anyOf")?;
        let mut targets = Vec::new();
        for part in parts {
            let target = self.within(at, *part);
            match self.status(target, facts, view)? {
                Status::Holds if !is_seen => return Ok(Ways::Any),
                Status::Fails => {}
                _ => targets.push(target),
            }
        }
        if !is_seen {
            let parted = self.part_lists(targets);
            let mut branches = self.holding_branches(parted.others);
            if !parted.lists.is_empty() {
                branches.push(self.any_listed(&parted.lists)?);
            }
            return Ok(Ways::Some(branches));
        }
        // What is evaluated depends on all branches that hold, so every set of them is a way.
        if targets.len() >= 31 || 1 << targets.len() > self.limits.max_branches {
            self.blame = Some(Blame::Choice(ForkKind::AnyOf { at, is_seen }));
            return Err(self.too_many_branches(&[Goal::Holds(at)]));
        }
        let chosen = |set: u32| {
            let is_in = |(i, target): (usize, &Target)| (set >> i & 1 == 1).then_some(Goal::Holds(*target));
            targets.iter().enumerate().filter_map(is_in).collect()
        };
        let sets = 1..1u32 << targets.len();
        Ok(Ways::Some(
            sets.map(|set| Branch::of_goals(chosen(set))).collect(),
        ))
    }

    fn holding_branches(&self, targets: Vec<Target>) -> Vec<Branch> {
        let branch = |target| Branch::of_goals(vec![Goal::Holds(target)]);
        targets.into_iter().map(branch).collect()
    }

    fn one_of(&mut self, at: Target, facts: &Facts, view: &mut View) -> Result<Ways, CompileError> {
        let parts = self.list(at.id, "oneOf")?;
        let mut open = Vec::new();
        let mut holding = Vec::new();
        for part in parts {
            let target = self.within(at, *part);
            match self.status(target, facts, view)? {
                Status::Holds => holding.push(target),
                Status::Fails => {}
                Status::Open => open.push(target),
            }
        }
        let (parted, candidates) = match holding.len() {
            0 => {
                let parted = self.part_lists(open);
                let candidates = parted.others.clone();
                (parted, candidates)
            }
            1 => (
                Parted {
                    lists: Vec::new(),
                    others: open,
                },
                holding,
            ),
            _ => return Ok(Ways::Some(Vec::new())),
        };
        let mut branches = Vec::new();
        for target in candidates {
            let mut goals = vec![Goal::Holds(target)];
            let may_be_text = self.possible_types(target.id) & STRING != 0;
            let lists = parted.lists.iter().filter(|_| may_be_text);
            for other in parted.others.iter().chain(lists) {
                if *other != target && !self.are_disjoint(target.id, other.id)? {
                    goals.push(Goal::Fails(*other));
                }
            }
            branches.push(Branch::of_goals(goals));
        }
        if !parted.lists.is_empty() {
            branches.push(self.once_listed(&parted.lists, &parted.others)?);
        }
        Ok(Ways::Some(branches))
    }

    fn conditional(
        &mut self,
        at: Target,
        facts: &Facts,
        view: &mut View,
    ) -> Result<Vec<Branch>, CompileError> {
        let mut part = |keyword| {
            let id = self.member(at.id, keyword)?;
            Some(self.within(at, id))
        };
        let (condition, then, otherwise) = (part("if"), part("then"), part("else"));
        let condition = condition.expect("the fork was made for it");
        let with = |first: Goal, second: Option<Target>| {
            Branch::of_goals([first].into_iter().chain(second.map(Goal::Holds)).collect())
        };
        let holding = with(Goal::Holds(condition), then);
        let failing = with(Goal::Fails(condition), otherwise);
        Ok(match self.status(condition, facts, view)? {
            Status::Holds => vec![holding],
            Status::Fails => vec![Branch::of_goals(otherwise.into_iter().map(Goal::Holds).collect())],
            Status::Open => vec![holding, failing],
        })
    }

    /// The ways in which the schema `at` fails, those of schemas that it includes among them.
    pub(super) fn ways_to_fail(&mut self, at: Target) -> Result<Rc<[Branch]>, CompileError> {
        if let Some(known) = self.ways_to_fail.get(&at) {
            return Ok(known.clone());
        }
        // What includes itself is found out where the goal is settled.
        self.ways_to_fail
            .insert(at, vec![Branch::of_goals(vec![Goal::Fails(at)])].into());
        let found = self.own_ways_to_fail(at);
        let ways = match found {
            Ok(ways) => self.flattened(ways),
            Err(error) => {
                self.ways_to_fail.remove(&at);
                return Err(error);
            }
        };
        let ways: Rc<[Branch]> = ways.into();
        self.ways_to_fail.insert(at, ways.clone());
        Ok(ways)
    }

    /// `ways`, those that say only that another schema fails replaced by its ways.
    fn flattened(&mut self, ways: Vec<Branch>) -> Vec<Branch> {
        let mut flat = Vec::new();
        for way in ways {
            if let [Goal::Fails(target)] = way.goals[..]
                && way.facts.is_empty()
                && way.types == ALL
                && matches!(self.document[target.id], Json::Object(_))
                && let Ok(inner) = self.ways_to_fail(target)
                && flat.len() + inner.len() <= MAX_WAYS
            {
                flat.extend(inner.iter().cloned());
                continue;
            }
            flat.push(way);
        }
        flat
    }
}

/// The choice with the fewest ways.
fn fewest(open: &[(Fork, Vec<Branch>)]) -> usize {
    let ways = open.iter().enumerate().min_by_key(|(_, (_, ways))| ways.len());
    ways.expect("there is a choice").0
}

/// `clause` in fewer facts; `None` when it holds of every object.
fn simplified(clause: &[Fact]) -> Option<Vec<Fact>> {
    let mut simple: Vec<Fact> = Vec::new();
    for fact in clause {
        let fact = match fact {
            Fact::Lacks(name) if clause.contains(&Fact::Member(*name, None)) => return None,
            // It comes with what its value satisfies.
            Fact::Lacks(name) if clause.iter().any(|other| has_value(other, *name)) => continue,
            Fact::Member(name, Some(goal)) if clause.contains(&Fact::Lacks(*name)) => {
                Fact::Value(*name, *goal)
            }
            other => *other,
        };
        if !simple.contains(&fact) {
            simple.push(fact);
        }
    }
    Some(simple)
}

fn has_value(fact: &Fact, name: u32) -> bool {
    matches!(fact, Fact::Member(other, Some(_)) | Fact::Value(other, _) if *other == name)
}
