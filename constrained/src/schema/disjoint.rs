//! What shows without trying: that no value satisfies two schemas at once, and that whatever satisfies one
//! satisfies the other.
//!
//! A shortcut only: what is not seen here is negated and combined, which is exact and costs more.

use super::facts::{Goal, Target};
use super::keywords::{ALL, ARRAY, NUMBER, OBJECT, STRING, type_of};
use super::{CompileError, Compiler};
use crate::json::{Json, JsonId};

/// Schemas within schemas that are looked at.
const MAX_DEPTH: usize = 4;
/// Schemas behind `$ref` and `allOf` that are looked at.
const MAX_PARTS: usize = 16;
/// Alternatives of one schema that are looked at.
const MAX_ALTERNATIVES: usize = 16;
/// Values of one list that are looked at.
const MAX_VALUES: usize = 256;

/// Keywords that assert something; `type` is not among them.
pub(super) const ASSERTIONS: [&str; 40] = [
    "$dynamicRef",
    "$recursiveRef",
    "$ref",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "disallow",
    "divisibleBy",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "extends",
    "format",
    "if",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Schemas that are compared with others.
struct Pair<'s> {
    a: &'s [JsonId],
    b: &'s [JsonId],
    of_a: Extent,
}

/// How much of a schema counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    /// Not what it combines (`anyOf`, `oneOf`, `not`, `if`).
    OwnKeywords,
}

impl<'s> Pair<'s> {
    fn whole(a: &'s [JsonId], b: &'s [JsonId]) -> Self {
        Self {
            a,
            b,
            of_a: Extent::Whole,
        }
    }
}

impl<'a> Compiler<'a> {
    /// Whether a value may satisfy all of `goals`, as far as pairs of them show.
    pub(super) fn is_possible(&mut self, goals: &[Goal]) -> Result<bool, CompileError> {
        for (at, goal) in goals.iter().enumerate() {
            if self.is_any_excluded(&goals[..at], *goal)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether no value satisfies `goal` and a certain one of `goals`, as far as it shows.
    pub(super) fn is_any_excluded(&mut self, goals: &[Goal], goal: Goal) -> Result<bool, CompileError> {
        for other in goals {
            self.spend(4)?;
            if self.exclude_each_other(*other, goal)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether no value satisfies both goals, as far as it shows.
    pub(super) fn exclude_each_other(&mut self, a: Goal, b: Goal) -> Result<bool, CompileError> {
        Ok(match (a, b) {
            (Goal::Holds(a), Goal::Holds(b)) => a != b && self.are_disjoint(a.id, b.id)?,
            (Goal::Holds(held), Goal::Fails(failing)) | (Goal::Fails(failing), Goal::Holds(held)) => {
                self.implies(held, failing)?
            }
            (Goal::Equals(value), Goal::Holds(at)) | (Goal::Holds(at), Goal::Equals(value)) => {
                self.judge(value, at.id) == Some(false)
            }
            (Goal::Equals(value), Goal::Fails(at)) | (Goal::Fails(at), Goal::Equals(value)) => {
                self.judge(value, at.id) == Some(true)
            }
            (Goal::Equals(a), Goal::Equals(b)) => !self.document.is_equal(a, b),
            (Goal::Equals(a), Goal::Differs(b)) | (Goal::Differs(b), Goal::Equals(a)) => {
                self.document.is_equal(a, b)
            }
            (Goal::Holds(at), Goal::Differs(value)) | (Goal::Differs(value), Goal::Holds(at)) => {
                let listed = self.listed_values(at.id).unwrap_or_default();
                !listed.is_empty() && listed.iter().all(|other| self.document.is_equal(*other, value))
            }
            (Goal::Fails(_) | Goal::Differs(_), Goal::Fails(_) | Goal::Differs(_)) => false,
        })
    }

    /// Whether what satisfies `a` satisfies `b`, as far as it shows.
    pub(super) fn follows(&mut self, a: Goal, b: Goal) -> Result<bool, CompileError> {
        Ok(a == b || self.exclude_each_other(a, b.negated())?)
    }

    /// Whether whatever satisfies `a` satisfies `b`, as far as it shows.
    fn implies(&mut self, a: Target, b: Target) -> Result<bool, CompileError> {
        if a == b || self.is_met_by_all(Goal::Holds(b)) {
            return Ok(true);
        }
        if a.scope != b.scope || self.document[b.id] == Json::Bool(false) {
            return Ok(false);
        }
        self.spend(8)?;
        if let Some(known) = self.implied.get(&(a, b)) {
            return Ok(*known);
        }
        let found = self.implies_by_keywords(a, b)?;
        self.implied.insert((a, b), found);
        Ok(found)
    }

    fn implies_by_keywords(&mut self, a: Target, b: Target) -> Result<bool, CompileError> {
        let is_same_base = || {
            let root = |id| self.resources.root_of(self.document, id);
            root(a.id) == root(b.id)
        };
        if self.document.is_equal(a.id, b.id) && is_same_base() {
            return Ok(true);
        }
        let parts = self.parts(a.id);
        if let Some(listed) = parts.iter().find_map(|part| self.listed_values(*part)) {
            self.spend(listed.len() as u64)?;
            if listed.len() > MAX_VALUES {
                return Ok(false);
            }
            return Ok(listed.iter().all(|value| self.judge(*value, b.id) == Some(true)));
        }
        if ASSERTIONS.iter().any(|keyword| self.has(b.id, keyword)) {
            return Ok(false);
        }
        let own = parts
            .iter()
            .fold(ALL, |types, part| types & self.possible_types(*part));
        let is_integer = |id: JsonId| self.types(id).is_ok_and(|(_, is_integer)| is_integer);
        let has_fractions = own & NUMBER != 0 && !parts.iter().any(|part| is_integer(*part));
        Ok(own & !self.possible_types(b.id) == 0 && !(is_integer(b.id) && has_fractions))
    }

    pub(super) fn are_disjoint(&mut self, a: JsonId, b: JsonId) -> Result<bool, CompileError> {
        let pair = (a.min(b), a.max(b));
        if let Some(known) = self.disjoint_pairs.get(&pair) {
            return Ok(*known);
        }
        let (own, others) = (self.parts(a), self.parts(b));
        let are_disjoint = self.disjoint(&Pair::whole(&own, &others), MAX_DEPTH)?;
        self.disjoint_pairs.insert(pair, are_disjoint);
        Ok(are_disjoint)
    }

    /// Whether no value that has what the keywords of `plain` itself say satisfies `goal`, as far as it
    /// shows. What `plain` combines does not count: that is yet to be enforced, and this may be used to
    /// enforce less.
    pub(super) fn keeps_out_goal(&mut self, plain: Target, goal: Goal) -> Result<bool, CompileError> {
        let target = match goal {
            Goal::Holds(target) => target,
            Goal::Fails(target) => return Ok(target == plain),
            Goal::Equals(value) => return Ok(self.judge_by_own(value, plain.id) == Some(false)),
            Goal::Differs(_) => return self.exclude_each_other(Goal::Holds(plain), goal),
        };
        let pair = (plain.id, target.id);
        if let Some(known) = self.apart.get(&pair) {
            return Ok(*known);
        }
        let others = self.parts(target.id);
        let pair_of = Pair {
            a: &[plain.id],
            b: &others,
            of_a: Extent::OwnKeywords,
        };
        let are_apart = self.disjoint(&pair_of, MAX_DEPTH)?;
        self.apart.insert(pair, are_apart);
        Ok(are_apart)
    }

    /// Whether no value satisfies all of the schemas of `pair`.
    fn disjoint(&mut self, pair: &Pair<'_>, depth: usize) -> Result<bool, CompileError> {
        let Pair { a, b, .. } = *pair;
        if a.iter()
            .chain(b)
            .any(|id| self.document[*id] == Json::Bool(false))
        {
            return Ok(true);
        }
        self.spend((a.len() + b.len()) as u64 * 60)?;
        let types = |ids: &[JsonId]| ids.iter().fold(ALL, |all, id| all & self.possible_types(*id));
        let shared = types(a) & types(b);
        if shared == 0 || self.have_no_listed_value(pair, shared)? {
            return Ok(true);
        }
        if depth == 0 {
            return Ok(false);
        }
        let all = [a, b].concat();
        for of_type in [NUMBER, STRING, ARRAY, OBJECT] {
            let is_apart = match shared & of_type {
                0 => true,
                NUMBER => self.are_numbers_apart(&all)?,
                STRING => self.is_range_empty(&all, "minLength", "maxLength")?,
                ARRAY => self.are_arrays_apart(a, b, depth)?,
                _ => self.are_objects_apart(a, b, depth)?,
            };
            if !is_apart {
                return self.are_alternatives_apart(pair, depth);
            }
        }
        // Of `null` and booleans only lists tell.
        Ok(shared & (NUMBER | STRING | ARRAY | OBJECT) == shared)
    }

    /// Whether the values that one of the schemas lists all miss another one.
    fn have_no_listed_value(&mut self, pair: &Pair<'_>, types: u8) -> Result<bool, CompileError> {
        let all = || pair.a.iter().chain(pair.b);
        let Some((by, values)) = all().find_map(|id| Some((*id, self.listed_values(*id)?))) else {
            return Ok(false);
        };
        if values.len() > MAX_VALUES {
            return Ok(false);
        }
        self.spend(values.len() as u64 * all().count() as u64)?;
        for value in values {
            let mut may_be = type_of(&self.document[value]) & types != 0;
            for id in all().filter(|id| **id != by) {
                let is_bare = pair.of_a == Extent::OwnKeywords && pair.a.contains(id);
                may_be = may_be
                    && Some(false)
                        != if is_bare {
                            self.judge_by_own(value, *id)
                        } else {
                            self.judge(value, *id)
                        };
            }
            if may_be {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn are_numbers_apart(&mut self, all: &[JsonId]) -> Result<bool, CompileError> {
        let mut bounds = Vec::new();
        for id in all {
            bounds.push(self.bounds(*id)?);
        }
        let lower = bounds.iter().filter_map(|[lower, _]| lower.as_ref());
        Ok(lower.into_iter().any(|lower| {
            let mut upper = bounds.iter().filter_map(|[_, upper]| upper.as_ref());
            upper.any(|upper| {
                let is_open = lower.is_exclusive || upper.is_exclusive;
                lower.value > upper.value || lower.value == upper.value && is_open
            })
        }))
    }

    fn is_range_empty(&self, all: &[JsonId], min: &str, max: &str) -> Result<bool, CompileError> {
        let (mut least, mut most) = (0, u32::MAX);
        for id in all {
            least = least.max(self.count(*id, min)?.unwrap_or(0));
            most = most.min(self.count(*id, max)?.unwrap_or(u32::MAX));
        }
        Ok(least > most)
    }

    fn are_arrays_apart(&mut self, a: &[JsonId], b: &[JsonId], depth: usize) -> Result<bool, CompileError> {
        let all = [a, b].concat();
        if self.is_range_empty(&all, "minItems", "maxItems")? {
            return Ok(true);
        }
        let mut has_items = false;
        for id in &all {
            has_items |= self.count(*id, "minItems")?.unwrap_or(0) > 0;
        }
        if !has_items {
            return Ok(false);
        }
        let first = |compiler: &Self, ids: &[JsonId]| -> Result<Vec<JsonId>, CompileError> {
            let mut found = Vec::new();
            for id in ids {
                let items = compiler.items(*id)?;
                let first = items.prefix.first().copied().or(items.rest);
                found.extend(first.into_iter().flat_map(|first| compiler.parts(first)));
            }
            Ok(found)
        };
        let (of_a, of_b) = (first(self, a)?, first(self, b)?);
        Ok(!of_a.is_empty() && !of_b.is_empty() && self.disjoint(&Pair::whole(&of_a, &of_b), depth - 1)?)
    }

    fn are_objects_apart(&mut self, a: &[JsonId], b: &[JsonId], depth: usize) -> Result<bool, CompileError> {
        let all = [a, b].concat();
        let mut names: Vec<&'a str> = Vec::new();
        for id in &all {
            names.extend(self.required_names(*id));
        }
        names.sort_unstable();
        names.dedup();
        for id in &all {
            let most = self.count(*id, "maxProperties")?;
            if most.is_some_and(|most| names.len() > most as usize) {
                return Ok(true);
            }
        }
        for name in names {
            self.spend(all.len() as u64)?;
            if all.iter().any(|id| self.keeps_out(*id, name)) {
                return Ok(true);
            }
            let values = |compiler: &Self, ids: &[JsonId]| -> Vec<JsonId> {
                let own = ids.iter().filter_map(|id| compiler.value_of_member(*id, name));
                own.flat_map(|id| compiler.parts(id)).collect()
            };
            let (of_a, of_b) = (values(self, a), values(self, b));
            if !of_a.is_empty() && !of_b.is_empty() && self.disjoint(&Pair::whole(&of_a, &of_b), depth - 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether all alternatives of one of the schemas are apart from the others.
    fn are_alternatives_apart(&mut self, pair: &Pair<'_>, depth: usize) -> Result<bool, CompileError> {
        let Pair { a, b, of_a } = *pair;
        let ids_of_a = if of_a == Extent::Whole { a } else { &[] };
        let first = ids_of_a.iter().map(|id| (id, b, Extent::Whole));
        let second = b.iter().map(|id| (id, a, of_a));
        for (id, others, of_others) in first.chain(second) {
            for keyword in ["anyOf", "oneOf"] {
                let parts = self.list(*id, keyword)?;
                if parts.is_empty() || parts.len() > MAX_ALTERNATIVES {
                    continue;
                }
                let mut are_all = true;
                for part in parts {
                    let chosen = self.parts(*part);
                    let pair = Pair {
                        a: others,
                        b: &chosen,
                        of_a: of_others,
                    };
                    are_all = are_all && self.disjoint(&pair, depth - 1)?;
                }
                if are_all {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The schemas that hold whenever `id` does, itself included.
    pub(super) fn parts(&self, id: JsonId) -> Vec<JsonId> {
        let mut parts = vec![id];
        let mut at = 0;
        while let Some(id) = parts.get(at).copied() {
            let reference = self.value(id, "$ref").and_then(|value| match value {
                Json::String(text) => self.resources.resolve(self.document, id, text).ok(),
                _ => None,
            });
            let is_hidden = reference.is_some() && self.does_ref_hide(id);
            let all = self.all_of(id).ok().filter(|_| !is_hidden);
            for part in reference.into_iter().chain(all.into_iter().flatten()) {
                if parts.len() < MAX_PARTS && !parts.contains(&part) {
                    parts.push(part);
                }
            }
            if is_hidden {
                parts.swap_remove(at);
            } else {
                at += 1;
            }
        }
        parts
    }

    fn required_names(&self, id: JsonId) -> Vec<&'a str> {
        self.required(id).unwrap_or_default()
    }

    /// What the schema `id` itself says of the value of a member called `name`, where it is one schema.
    pub(super) fn value_of_member(&self, id: JsonId, name: &str) -> Option<JsonId> {
        let own = self.value_of_property(id, name);
        own.or_else(|| {
            let additional = self.document.member(id, "additionalProperties");
            additional.filter(|_| !self.has(id, "patternProperties"))
        })
    }

    /// Whether the schema `id` itself allows no property `name`.
    pub(super) fn keeps_out(&self, id: JsonId, name: &str) -> bool {
        let value = self.value_of_member(id, name);
        value.is_some_and(|value| self.document[value] == Json::Bool(false))
    }
}
