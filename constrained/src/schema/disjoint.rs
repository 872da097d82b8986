//! Pairs of schemas that no value satisfies at once, as far as it shows without trying.
//!
//! A shortcut only: `oneOf` over branches that are not known to be disjoint negates the others.

use super::keywords::{ALL, OBJECT};
use super::{CompileError, Compiler};
use crate::json::{Json, JsonId};

/// Properties within properties that are looked at.
const MAX_DEPTH: usize = 4;
/// Schemas behind `$ref` and `allOf` that are looked at.
const MAX_PARTS: usize = 16;

impl<'a> Compiler<'a> {
    pub(super) fn are_disjoint(&mut self, a: JsonId, b: JsonId) -> Result<bool, CompileError> {
        let pair = (a.min(b), a.max(b));
        if let Some(known) = self.disjoint_pairs.get(&pair) {
            return Ok(*known);
        }
        let are_disjoint = self.disjoint(a, b, MAX_DEPTH)?;
        self.disjoint_pairs.insert(pair, are_disjoint);
        Ok(are_disjoint)
    }

    fn disjoint(&mut self, a: JsonId, b: JsonId, depth: usize) -> Result<bool, CompileError> {
        let is_false = |id: JsonId| self.document[id] == Json::Bool(false);
        if is_false(a) || is_false(b) {
            return Ok(true);
        }
        let (a, b) = (self.parts(a), self.parts(b));
        self.spend((a.len() + b.len()) as u64 * 100)?;
        let types = |ids: &[JsonId]| ids.iter().fold(ALL, |all, id| all & self.possible_types(*id));
        let shared = types(&a) & types(&b);
        if shared == 0 || self.have_no_value_in_common(&a, &b)? {
            return Ok(true);
        }
        if shared != OBJECT || depth == 0 {
            return Ok(false);
        }
        let mut names: Vec<&'a str> = Vec::new();
        for id in a.iter().chain(&b) {
            names.extend(self.required_names(*id));
        }
        for name in names {
            self.spend((a.len() + b.len()) as u64)?;
            for (own, other) in [(&a, &b), (&b, &a)] {
                let is_required = own.iter().any(|id| self.required_names(*id).contains(&name));
                if is_required && other.iter().any(|id| self.keeps_out(*id, name)) {
                    return Ok(true);
                }
            }
            let values = |ids: &[JsonId]| -> Vec<JsonId> {
                ids.iter()
                    .filter_map(|id| self.value_of_property(*id, name))
                    .collect()
            };
            let (of_a, of_b) = (values(&a), values(&b));
            for (x, y) in of_a.iter().flat_map(|x| of_b.iter().map(move |y| (*x, *y))) {
                if x != y && self.disjoint(x, y, depth - 1)? {
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

    /// Whether the schema `id` itself allows no property `name`.
    fn keeps_out(&self, id: JsonId, name: &str) -> bool {
        let is_closed = self.value(id, "additionalProperties") == Some(&Json::Bool(false));
        match self.value_of_property(id, name) {
            Some(value) => self.document[value] == Json::Bool(false),
            None => is_closed && !self.has(id, "patternProperties"),
        }
    }

    fn have_no_value_in_common(&mut self, a: &[JsonId], b: &[JsonId]) -> Result<bool, CompileError> {
        for x in a {
            let Some(of_x) = self.listed_values(*x) else {
                continue;
            };
            for y in b {
                let Some(of_y) = self.listed_values(*y) else {
                    continue;
                };
                self.spend(of_x.len() as u64 * of_y.len() as u64)?;
                let is_in_y =
                    |value: &JsonId| of_y.iter().any(|other| self.document.is_equal(*value, *other));
                if !of_x.iter().any(is_in_y) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
