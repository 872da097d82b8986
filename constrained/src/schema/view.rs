//! What the facts of one alternative say of single properties, and what follows from it for other facts.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::facts::{Fact, Facts, Goal, NameId, Target, Witness};
use super::{CompileError, Compiler};
use crate::json::{Json, JsonId};

/// What is known of one property.
#[derive(Default)]
pub(super) struct Known {
    is_required: bool,
    /// It cannot be there.
    is_lacking: bool,
    /// What its value must satisfy.
    goals: Vec<Goal>,
}

/// What is known of the properties that were asked for, as long as the facts stay the same.
#[derive(Default)]
pub(super) struct View {
    known: BTreeMap<NameId, Rc<Known>>,
    required: Option<Rc<BTreeSet<NameId>>>,
}

/// Goals on one value that are compared with each other.
const MAX_COMPARED: usize = 12;

impl Compiler<'_> {
    fn known(&mut self, facts: &Facts, view: &mut View, name: NameId) -> Result<Rc<Known>, CompileError> {
        if let Some(known) = view.known.get(&name) {
            return Ok(known.clone());
        }
        let text = self.name(name);
        let mut known = Known::default();
        self.spend(facts.plain.len() as u64 * 2)?;
        for target in &facts.plain {
            known.is_required |= self.required(target.id)?.contains(&text.as_str());
            match self.value_of_member(target.id, &text) {
                Some(value) if self.document[value] == Json::Bool(false) => known.is_lacking = true,
                Some(value) if self.document[value] != Json::Bool(true) => {
                    known.goals.push(Goal::Holds(self.within(*target, value)));
                }
                _ => {}
            }
        }
        for value in &facts.equal {
            if !matches!(self.document[*value], Json::Object(_)) {
                continue;
            }
            match self.document.member(*value, &text) {
                Some(value) => {
                    known.is_required = true;
                    known.goals.push(Goal::Equals(value));
                }
                None => known.is_lacking = true,
            }
        }
        for fact in &facts.list {
            match fact {
                Fact::Lacks(other) if *other == name => known.is_lacking = true,
                Fact::Member(other, goal) if *other == name => {
                    known.is_required = true;
                    known.goals.extend(*goal);
                }
                Fact::Value(other, goal) if *other == name => known.goals.push(*goal),
                _ => {}
            }
        }
        known.goals.sort_unstable();
        known.goals.dedup();
        if (2..=MAX_COMPARED).contains(&known.goals.len()) && !self.is_possible(&known.goals)? {
            known.is_lacking = true;
        }
        let known = Rc::new(known);
        view.known.insert(name, known.clone());
        Ok(known)
    }

    /// Whether `fact` may hold of an object with `facts`, as far as it shows.
    pub(super) fn is_fact_possible(
        &mut self,
        facts: &Facts,
        view: &mut View,
        fact: Fact,
    ) -> Result<bool, CompileError> {
        match fact {
            Fact::Lacks(name) => Ok(!self.known(facts, view, name)?.is_required),
            Fact::Member(name, goal) => {
                let known = self.known(facts, view, name)?;
                Ok(!known.is_lacking && !self.is_excluded(&known, goal)?)
            }
            Fact::Value(name, goal) => {
                let known = self.known(facts, view, name)?;
                Ok(!known.is_required || !known.is_lacking && !self.is_excluded(&known, Some(goal))?)
            }
            Fact::MaxProperties(most) => Ok(self.n_required(facts, view)? <= most),
            Fact::MinProperties(least) => {
                let (_, most) = self.range(facts, "minProperties", "maxProperties")?;
                Ok(most.is_none_or(|most| least <= most))
            }
            Fact::Witness(Witness::Additional { at }) => self.may_have_additional(facts, at),
            _ => Ok(true),
        }
    }

    fn is_excluded(&mut self, known: &Known, goal: Option<Goal>) -> Result<bool, CompileError> {
        match goal {
            None => Ok(false),
            Some(goal) => self.is_any_excluded(&known.goals, goal),
        }
    }

    /// Whether `fact` holds of every object with `facts`, as far as it shows.
    pub(super) fn is_fact_implied(
        &mut self,
        facts: &Facts,
        view: &mut View,
        fact: Fact,
    ) -> Result<bool, CompileError> {
        if facts.list.contains(&fact) {
            return Ok(true);
        }
        match fact {
            Fact::Lacks(name) => Ok(self.known(facts, view, name)?.is_lacking),
            Fact::Member(name, goal) => {
                let known = self.known(facts, view, name)?;
                Ok(known.is_required && self.does_follow(&known, goal)?)
            }
            Fact::Value(name, goal) => {
                let known = self.known(facts, view, name)?;
                Ok(known.is_lacking || self.does_follow(&known, Some(goal))?)
            }
            Fact::MinProperties(least) => {
                let (min, _) = self.range(facts, "minProperties", "maxProperties")?;
                Ok(min.max(self.n_required(facts, view)?) >= least)
            }
            Fact::MaxProperties(most) => {
                let (_, max) = self.range(facts, "minProperties", "maxProperties")?;
                Ok(max.is_some_and(|max| max <= most))
            }
            Fact::Witness(Witness::Additional { at }) => self.must_have_additional(facts, view, at),
            _ => Ok(false),
        }
    }

    fn does_follow(&mut self, known: &Known, goal: Option<Goal>) -> Result<bool, CompileError> {
        let Some(goal) = goal else { return Ok(true) };
        for other in &known.goals {
            self.spend(4)?;
            if self.follows(*other, goal)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Properties that must be there.
    fn all_required(&mut self, facts: &Facts, view: &mut View) -> Result<Rc<BTreeSet<NameId>>, CompileError> {
        if let Some(known) = &view.required {
            return Ok(known.clone());
        }
        let mut required = BTreeSet::new();
        for target in &facts.plain {
            for name in self.required(target.id)? {
                required.insert(self.name_id(name));
            }
        }
        for value in &facts.equal {
            if let Json::Object(members) = &self.document[*value] {
                required.extend(members.iter().map(|(name, _)| self.name_id(name)));
            }
        }
        required.extend(facts.list.iter().filter_map(|fact| match fact {
            Fact::Member(name, _) => Some(*name),
            _ => None,
        }));
        self.spend((facts.plain.len() + required.len()) as u64)?;
        let required = Rc::new(required);
        view.required = Some(required.clone());
        Ok(required)
    }

    fn n_required(&mut self, facts: &Facts, view: &mut View) -> Result<u32, CompileError> {
        Ok(self.all_required(facts, view)?.len() as u32)
    }

    /// Whether there may be a property that the schema `at` does not declare: not where another schema
    /// allows only what it declares, and `at` declares all of that.
    fn may_have_additional(&mut self, facts: &Facts, at: Target) -> Result<bool, CompileError> {
        for target in &facts.plain {
            self.spend(2)?;
            let is_closed = self.keeps_out_others(target.id);
            if is_closed {
                let mut declared = self.members(target.id, "properties")?.iter();
                if declared.all(|(name, _)| self.value_of_property(at.id, name).is_some()) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether a property must be there that the schema `at` keeps out.
    fn must_have_additional(
        &mut self,
        facts: &Facts,
        view: &mut View,
        at: Target,
    ) -> Result<bool, CompileError> {
        if !self.keeps_out_others(at.id) {
            return Ok(false);
        }
        let required = self.all_required(facts, view)?;
        self.spend(required.len() as u64)?;
        let is_declared = |name: &NameId| {
            self.value_of_property(at.id, &self.names[*name as usize])
                .is_some()
        };
        Ok(!required.iter().all(is_declared))
    }

    /// Whether the schema allows no properties but those in its `properties`.
    fn keeps_out_others(&self, id: JsonId) -> bool {
        self.value(id, "additionalProperties") == Some(&Json::Bool(false))
            && !self.has(id, "patternProperties")
    }
}
