//! Values of the document judged by schemas of the document, as far as that is cheap.

use super::keywords::type_of;
use super::strings::accepts;
use super::{Compiler, Json, JsonId};
use crate::decimal::Decimal;

/// Schemas within schemas that are looked at.
const MAX_DEPTH: usize = 8;
/// Keywords that are not judged.
const UNJUDGED: [&str; 14] = [
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "disallow",
    "extends",
    "multipleOf",
    "patternProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Both, where `None` is unknown.
fn and(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

impl Compiler<'_> {
    /// Whether `value` satisfies `schema`; `None` when that is not known.
    pub(super) fn judge(&mut self, value: JsonId, schema: JsonId) -> Option<bool> {
        if let Some(known) = self.judged.get(&(value, schema)) {
            return *known;
        }
        let found = self.judge_within(value, schema, MAX_DEPTH);
        self.judged.insert((value, schema), found);
        found
    }

    /// The same by the keywords of the schema itself, without what it refers to or combines.
    pub(super) fn judge_by_own(&mut self, value: JsonId, schema: JsonId) -> Option<bool> {
        match self.document[schema] {
            Json::Bool(holds) => Some(holds),
            Json::Object(_) => self.judge_own(value, schema, MAX_DEPTH),
            _ => None,
        }
    }

    fn judge_within(&mut self, value: JsonId, id: JsonId, depth: usize) -> Option<bool> {
        match self.document[id] {
            Json::Bool(holds) => return Some(holds),
            Json::Object(_) if depth > 0 => {}
            _ => return None,
        }
        let depth = depth - 1;
        let mut found = Some(true);
        if let Some(reference) = self.text(id, "$ref").ok()? {
            let target = self.resources.resolve(self.document, id, reference).ok()?;
            found = self.judge_within(value, target, depth);
            if self.does_ref_hide(id) {
                return found;
            }
        }
        found = and(found, self.judge_own(value, id, depth));
        if found == Some(false) {
            return found;
        }
        if UNJUDGED.iter().any(|keyword| self.has(id, keyword)) {
            found = None;
        }
        and(found, self.judge_combined(value, id, depth))
    }

    fn judge_own(&mut self, value: JsonId, id: JsonId, depth: usize) -> Option<bool> {
        self.spend(8).ok()?;
        if self.judge_type(value, id) == Some(false) {
            return Some(false);
        }
        match &self.document[value] {
            Json::Null | Json::Bool(_) => Some(true),
            Json::Number(number) => self.judge_number(number, id),
            Json::String(text) => self.judge_string(text, id),
            Json::Array(items) => self.judge_array(items, id, depth),
            Json::Object(members) => self.judge_object(members, id, depth),
        }
    }

    fn judge_type(&self, value: JsonId, id: JsonId) -> Option<bool> {
        let (types, is_integer) = self.types(id).ok()?;
        let is_fraction = matches!(&self.document[value], Json::Number(number) if !number.is_integer());
        let is_listed = self
            .listed_values(id)
            .is_none_or(|values| values.iter().any(|listed| self.document.is_equal(*listed, value)));
        Some(types & type_of(&self.document[value]) != 0 && !(is_integer && is_fraction) && is_listed)
    }

    fn judge_combined(&mut self, value: JsonId, id: JsonId, depth: usize) -> Option<bool> {
        let mut found = Some(true);
        for part in self.list(id, "allOf").ok()? {
            found = and(found, self.judge_within(value, *part, depth));
        }
        for keyword in ["anyOf", "oneOf"] {
            let parts = self.list(id, keyword).ok()?;
            if parts.is_empty() || found == Some(false) {
                continue;
            }
            let judged: Vec<Option<bool>> = parts
                .iter()
                .map(|part| self.judge_within(value, *part, depth))
                .collect();
            let n_true = judged.iter().filter(|judged| **judged == Some(true)).count();
            let is_known = judged.iter().all(Option::is_some);
            found = and(
                found,
                match n_true {
                    0 if is_known => Some(false),
                    0 => None,
                    1 if keyword == "oneOf" && !is_known => None,
                    1 => Some(true),
                    _ => Some(keyword == "anyOf"),
                },
            );
        }
        let part = |compiler: &mut Self, keyword| match compiler.document.member(id, keyword) {
            Some(part) => compiler.judge_within(value, part, depth),
            None => Some(true),
        };
        if self.has(id, "not") {
            found = and(found, part(self, "not").map(|holds| !holds));
        }
        if self.has(id, "if") && found != Some(false) {
            let branch = match part(self, "if") {
                Some(true) => part(self, "then"),
                Some(false) => part(self, "else"),
                None => None,
            };
            found = and(found, branch);
        }
        found
    }

    fn judge_number(&self, number: &Decimal, id: JsonId) -> Option<bool> {
        let [lower, upper] = self.bounds(id).ok()?;
        let is_above =
            lower.is_none_or(|bound| *number > bound.value || !bound.is_exclusive && *number == bound.value);
        let is_below =
            upper.is_none_or(|bound| *number < bound.value || !bound.is_exclusive && *number == bound.value);
        Some(is_above && is_below)
    }

    fn judge_string(&mut self, text: &str, id: JsonId) -> Option<bool> {
        let n_chars = text.chars().count();
        let is_long = self
            .count(id, "minLength")
            .ok()?
            .is_none_or(|min| n_chars >= min as usize);
        let is_short = self
            .count(id, "maxLength")
            .ok()?
            .is_none_or(|max| n_chars <= max as usize);
        let mut found = Some(is_long && is_short);
        if let Some(source) = self.text(id, "pattern").ok()? {
            let dfa = self.search(source, id, "pattern").ok();
            found = and(found, dfa.map(|dfa| accepts(&dfa, text)));
        }
        if self.has(id, "format") && self.asserts_formats(id) {
            let dfa = self.format_of(id).ok()?;
            // A format that is not exact accepts a part of its texts.
            let is_text = dfa.map_or(Some(true), |dfa| accepts(&dfa, text).then_some(true));
            found = and(found, is_text);
        }
        found
    }

    fn judge_array(&mut self, items: &[JsonId], id: JsonId, depth: usize) -> Option<bool> {
        let is_long = self
            .count(id, "minItems")
            .ok()?
            .is_none_or(|min| items.len() >= min as usize);
        let is_short = self
            .count(id, "maxItems")
            .ok()?
            .is_none_or(|max| items.len() <= max as usize);
        let mut found = Some(is_long && is_short);
        let schemas = self.items(id).ok()?;
        for (at, item) in items.iter().enumerate() {
            if let Some(schema) = schemas.prefix.get(at).copied().or(schemas.rest) {
                found = and(found, self.judge_within(*item, schema, depth));
            }
        }
        found
    }

    fn judge_object(&mut self, members: &[(String, JsonId)], id: JsonId, depth: usize) -> Option<bool> {
        let n = members.len();
        let is_large = self
            .count(id, "minProperties")
            .ok()?
            .is_none_or(|min| n >= min as usize);
        let is_small = self
            .count(id, "maxProperties")
            .ok()?
            .is_none_or(|max| n <= max as usize);
        let required = self.required(id).ok()?;
        let is_there = |name: &&str| members.iter().any(|(own, _)| own == name);
        let mut found = Some(is_large && is_small && required.iter().all(is_there));
        let additional = self.document.member(id, "additionalProperties");
        for (name, member) in members {
            if let Some(schema) = self.value_of_property(id, name).or(additional) {
                found = and(found, self.judge_within(*member, schema, depth));
            }
        }
        found
    }
}
