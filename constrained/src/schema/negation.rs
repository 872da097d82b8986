//! The ways in which a schema or a value is missed.
//!
//! A schema fails when one of its keywords does. Each way is exact: where a keyword cannot be negated exactly
//! the way is refused, unless the rest of the schema rules it out.

use super::alternatives::{Branch, DEPENDENT};
use super::dialect::Dialect;
use super::facts::{Broken, Counted, Fact, Goal, Target, Witness};
use super::keywords::{ALL, ARRAY, OBJECT, STRING};
use super::lists::Parted;
use super::{CompileError, Compiler};
use crate::json::{Json, JsonId};

impl Compiler<'_> {
    /// The ways in which the schema `at`, an object, fails.
    pub(super) fn own_ways_to_fail(&mut self, at: Target) -> Result<Vec<Branch>, CompileError> {
        let left_out = self.left_out.types(at.id);
        if left_out == ALL {
            return Ok(vec![Branch::excuse(ALL)]);
        }
        self.check_keywords(at.id)?;
        let mut ways = Vec::new();
        if left_out != 0 {
            ways.push(Branch::excuse(left_out));
        }
        for referred in self.references(at)? {
            ways.push(Branch::of_goals(vec![Goal::Fails(referred)]));
        }
        if self.has(at.id, "$ref") && self.does_ref_hide(at.id) {
            return Ok(ways);
        }
        let hidden = self.has(at.id, "$ref") && self.dialect(at.id) == Dialect::Unknown;
        let beside = hidden.then_some("$ref");
        if let Some(keyword) = beside.or_else(|| self.foreign_keyword(at.id)) {
            let why = "the schema's draft does not know it, and it stands where it is negated";
            return Err(self.unsupported(at.id, keyword, why));
        }
        self.fail_any_type(at, &mut ways)?;
        self.fail_combined(at, &mut ways)?;
        self.fail_scalars(at.id, &mut ways)?;
        self.fail_array(at, &mut ways)?;
        self.fail_object(at, &mut ways)?;
        Ok(ways)
    }

    fn fail_any_type(&mut self, at: Target, ways: &mut Vec<Branch>) -> Result<(), CompileError> {
        let (types, is_integer) = self.types(at.id)?;
        if types != ALL {
            ways.push(Branch::of_types(ALL & !types));
        }
        let disallowed = self.disallowed(at.id)?;
        if disallowed != 0 {
            ways.push(Branch::of_types(disallowed));
        }
        if is_integer {
            ways.push(Branch::of_facts(vec![Fact::Broken(at.id, Broken::Integer)]));
        }
        if let Some(constant) = self.member(at.id, "const") {
            ways.push(Branch::of_goals(vec![Goal::Differs(constant)]));
        }
        match self.value(at.id, "enum") {
            None => {}
            Some(Json::Array(values)) => {
                let differs = values.iter().map(|value| Goal::Differs(*value));
                ways.push(Branch::of_goals(differs.collect()));
            }
            Some(_) => return Err(self.malformed(at.id, "enum", "it is not a list")),
        }
        Ok(())
    }

    fn fail_combined(&mut self, at: Target, ways: &mut Vec<Branch>) -> Result<(), CompileError> {
        for part in self.all_of(at.id)? {
            ways.push(Branch::of_goals(vec![Goal::Fails(self.within(at, part))]));
        }
        let all_fail = |compiler: &mut Self, parts: &[JsonId]| {
            let fails = parts.iter().map(|part| Goal::Fails(compiler.within(at, *part)));
            Branch::of_goals(fails.collect())
        };
        let parts = self.list(at.id, "anyOf")?;
        if !parts.is_empty() {
            ways.push(all_fail(self, parts));
        }
        let parts = self.list(at.id, "oneOf")?;
        if !parts.is_empty() {
            ways.push(all_fail(self, parts));
        }
        let targets = parts.iter().map(|part| self.within(at, *part)).collect();
        let Parted { lists, others } = self.part_lists(targets);
        ways.extend(self.listed_twice(&lists)?);
        for (i, a) in others.iter().enumerate() {
            let may_be_text = self.possible_types(a.id) & STRING != 0;
            let lists = lists.iter().filter(|_| may_be_text);
            for b in others[i + 1..].iter().chain(lists) {
                self.spend(8)?;
                if !self.are_disjoint(a.id, b.id)? {
                    ways.push(Branch::of_goals(vec![Goal::Holds(*a), Goal::Holds(*b)]));
                }
            }
        }
        if let Some(not) = self.member(at.id, "not") {
            ways.push(Branch::of_goals(vec![Goal::Holds(self.within(at, not))]));
        }
        let mut part = |keyword| {
            let id = self.member(at.id, keyword)?;
            Some(self.within(at, id))
        };
        if let Some(condition) = part("if") {
            let when = [
                (Goal::Holds(condition), part("then")),
                (Goal::Fails(condition), part("else")),
            ];
            for (first, second) in when {
                ways.extend(second.map(|second| Branch::of_goals(vec![first, Goal::Fails(second)])));
            }
        }
        Ok(())
    }

    fn fail_scalars(&mut self, id: JsonId, ways: &mut Vec<Branch>) -> Result<(), CompileError> {
        let mut broken = |what| ways.push(Branch::of_facts(vec![Fact::Broken(id, what)]));
        let [lower, upper] = self.bounds(id)?;
        if lower.is_some() {
            broken(Broken::Lower);
        }
        if upper.is_some() {
            broken(Broken::Upper);
        }
        if self.divisor(id)?.is_some() {
            broken(Broken::MultipleOf);
        }
        if self.text(id, "pattern")?.is_some() {
            broken(Broken::Pattern);
        }
        if let Some(name) = self.text(id, "format")?
            && self.asserts_formats(id)
        {
            match self.exact_format(id, name) {
                Ok(false) => {}
                Ok(true) => broken(Broken::Format),
                Err(error) => ways.push(Branch {
                    refused: Some(error),
                    ..Branch::of_types(STRING)
                }),
            }
        }
        if let Some(min) = self.count(id, "minLength")?.and_then(|min| min.checked_sub(1)) {
            ways.push(Branch::of_facts(vec![Fact::MaxLength(min)]));
        }
        if let Some(max) = self.count(id, "maxLength")? {
            ways.push(Branch::of_facts(vec![Fact::MinLength(max + 1)]));
        }
        Ok(())
    }

    fn fail_array(&mut self, at: Target, ways: &mut Vec<Branch>) -> Result<(), CompileError> {
        let id = at.id;
        let items = self.items(id)?;
        for (n, item) in items.prefix.iter().enumerate() {
            let goal = Goal::Fails(self.within(at, *item));
            ways.push(Branch::of_facts(vec![Fact::ItemAt(n as u32, goal)]));
        }
        if let Some(rest) = items.rest {
            ways.push(Branch::of_facts(vec![Fact::Counted(Counted {
                goal: Goal::Fails(self.within(at, rest)),
                from: items.prefix.len() as u32,
                min: 1,
                max: None,
                owner: None,
            })]));
        }
        if let Some(min) = self.count(id, "minItems")?.and_then(|min| min.checked_sub(1)) {
            ways.push(Branch::of_facts(vec![Fact::MaxItems(min)]));
        }
        if let Some(max) = self.count(id, "maxItems")? {
            ways.push(Branch::of_facts(vec![Fact::MinItems(max + 1)]));
        }
        if let Some(contained) = self.member(id, "contains") {
            let (min, max) = self.contains_range(id)?;
            let goal = Goal::Holds(self.within(at, contained));
            let counted = |min, max| {
                Branch::of_facts(vec![Fact::Counted(Counted {
                    goal,
                    from: 0,
                    min,
                    max,
                    owner: None,
                })])
            };
            ways.extend(min.checked_sub(1).map(|few| counted(0, Some(few))));
            ways.extend(max.map(|max| counted(max + 1, None)));
        }
        if self.is_unique(id)? {
            self.refuse(id, "uniqueItems", ARRAY, ways);
        }
        if self.may_fail(id, "unevaluatedItems") {
            self.refuse(id, "unevaluatedItems", ARRAY, ways);
        }
        Ok(())
    }

    fn fail_object(&mut self, at: Target, ways: &mut Vec<Branch>) -> Result<(), CompileError> {
        let id = at.id;
        for (name, value) in self.members(id, "properties")? {
            if self.document[*value] != Json::Bool(true) {
                let goal = Goal::Fails(self.within(at, *value));
                let name = self.name_id(name);
                ways.push(Branch::of_facts(vec![Fact::Member(name, Some(goal))]));
            }
        }
        for name in self.required(id)? {
            ways.push(Branch::of_facts(vec![Fact::Lacks(self.name_id(name))]));
        }
        let mut witness = |witness| ways.push(Branch::of_facts(vec![Fact::Witness(witness)]));
        for (n, (_, value)) in self.members(id, "patternProperties")?.iter().enumerate() {
            if self.document[*value] != Json::Bool(true) {
                witness(Witness::Pattern { at, n: n as u32 });
            }
        }
        if self.may_fail(id, "additionalProperties") {
            witness(Witness::Additional { at });
        }
        if self.may_fail(id, "propertyNames") {
            witness(Witness::Name { at });
        }
        if let Some(min) = self
            .count(id, "minProperties")?
            .and_then(|min| min.checked_sub(1))
        {
            ways.push(Branch::of_facts(vec![Fact::MaxProperties(min)]));
        }
        if let Some(max) = self.count(id, "maxProperties")? {
            ways.push(Branch::of_facts(vec![Fact::MinProperties(max + 1)]));
        }
        if self.may_fail(id, "unevaluatedProperties") {
            self.refuse(id, "unevaluatedProperties", OBJECT, ways);
        }
        for keyword in DEPENDENT {
            self.fail_dependent(at, keyword, ways)?;
        }
        Ok(())
    }

    fn fail_dependent(
        &mut self,
        at: Target,
        keyword: &str,
        ways: &mut Vec<Branch>,
    ) -> Result<(), CompileError> {
        for (name, value) in self.members(at.id, keyword)? {
            let has = Fact::Member(self.name_id(name), None);
            let list = &self.document[*value];
            if let Json::Array(_) = list {
                for needed in self.names(Some(list), at.id, keyword)? {
                    let lacks = Fact::Lacks(self.name_id(needed));
                    ways.push(Branch::of_facts(vec![has, lacks]));
                }
            } else {
                let mut way = Branch::of_facts(vec![has]);
                way.goals.push(Goal::Fails(self.within(at, *value)));
                ways.push(way);
            }
        }
        Ok(())
    }

    fn may_fail(&self, id: JsonId, keyword: &str) -> bool {
        self.value(id, keyword)
            .is_some_and(|value| *value != Json::Bool(true))
    }

    fn refuse(&self, id: JsonId, keyword: &str, types: u8, ways: &mut Vec<Branch>) {
        let why = "it cannot be negated (by `not`, `if`, or `oneOf` with branches that overlap)";
        ways.push(Branch {
            refused: Some(self.unsupported(id, keyword, why)),
            ..Branch::of_types(types)
        });
    }

    /// The ways in which a value is not the array or object `value`.
    pub(super) fn ways_to_differ(&mut self, value: JsonId) -> Vec<Branch> {
        let mut ways = Vec::new();
        let mut way = |fact| ways.push(Branch::of_facts(vec![fact]));
        let own_type = match &self.document[value] {
            Json::Array(items) => {
                let n = items.len() as u32;
                if n > 0 {
                    way(Fact::MaxItems(n - 1));
                }
                way(Fact::MinItems(n + 1));
                for (i, item) in (0..).zip(items) {
                    way(Fact::ItemAt(i, Goal::Differs(*item)));
                }
                ARRAY
            }
            Json::Object(members) => {
                for (name, member) in members {
                    let name = self.name_id(name);
                    way(Fact::Lacks(name));
                    way(Fact::Member(name, Some(Goal::Differs(*member))));
                }
                way(Fact::Witness(Witness::Other { value }));
                OBJECT
            }
            _ => unreachable!("scalars are facts"),
        };
        ways.push(Branch::of_types(ALL & !own_type));
        ways
    }
}
