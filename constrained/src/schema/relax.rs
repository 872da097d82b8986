//! Parts of a schema that cannot be enforced, left out so that the grammar allows more and never less.
//!
//! A keyword that is left out asserts nothing where its schema must hold. Where its schema must fail, any value
//! of the types that the keyword speaks of may fail by it (`negation.rs`). Both are supersets, and so is
//! whatever is made of them, under `not`, `if` and `oneOf` too.
//!
//! Invariant: what is left out is in the list of [`Relaxed`], each place and keyword once.

use std::collections::BTreeSet;

use super::facts::{Facts, Goal, Target};
use super::keywords::{ALL, ARRAY, NUMBER, OBJECT, STRING};
use super::{CompileError, Compiler};
use crate::hash::Map;
use crate::json::{Json, JsonId};

/// What happens to the parts of a schema that cannot be enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// The schema is refused.
    #[default]
    Whole,
    /// They are left out, and [`crate::Grammar::relaxed`] names them: what the grammar allows is a superset.
    Relaxed,
}

/// A part of a schema that the grammar does not enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relaxed {
    /// JSON pointer of the schema that holds the keyword, as a URI fragment (`#/properties/a`).
    pub pointer: String,
    /// The keyword; `schema` where nothing of the schema is enforced.
    pub keyword: String,
    /// Why it is not enforced.
    pub why: String,
}

/// Stands for all keywords of a schema.
const WHOLE: &str = "schema";

impl Relaxed {
    /// The schema at `place` as a whole.
    pub(crate) fn whole(place: &str, error: &CompileError) -> Self {
        Self {
            pointer: place.to_owned(),
            keyword: WHOLE.to_owned(),
            why: error.to_string(),
        }
    }

    /// The same part of a schema that stands at `place` in something larger.
    pub(super) fn within(mut self, place: &str) -> Self {
        if let Some(rest) = self.pointer.strip_prefix('#') {
            self.pointer = format!("{place}{rest}");
        }
        self
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        size_of::<Self>() + self.pointer.len() + self.keyword.len() + self.why.len()
    }
}

/// What is left out of one schema.
#[derive(Default)]
pub(super) struct LeftOut {
    pub(super) list: Vec<Relaxed>,
    keywords: Map<JsonId, BTreeSet<String>>,
    /// Schemas of which nothing is enforced.
    schemas: BTreeSet<JsonId>,
}

/// Keywords whose meaning depends on their neighbours: what is left out with the first one.
const DEPENDENT: [(&str, &[&str]); 8] = [
    ("properties", &["additionalProperties"]),
    ("patternProperties", &["additionalProperties"]),
    ("prefixItems", &["items", "additionalItems"]),
    ("items", &["additionalItems"]),
    ("contains", &["minContains", "maxContains"]),
    ("minContains", &["contains", "maxContains"]),
    ("maxContains", &["contains", "minContains"]),
    ("if", &["then", "else"]),
];

/// Keywords that never say which members or items are evaluated, and the types that they speak of.
const PLAIN: [(&str, u8); 26] = [
    ("const", ALL),
    ("enum", ALL),
    ("not", ALL),
    ("type", ALL),
    ("exclusiveMaximum", NUMBER),
    ("exclusiveMinimum", NUMBER),
    ("maximum", NUMBER),
    ("minimum", NUMBER),
    ("multipleOf", NUMBER),
    ("divisibleBy", NUMBER),
    ("format", STRING),
    ("maxLength", STRING),
    ("minLength", STRING),
    ("pattern", STRING),
    ("maxItems", ARRAY),
    ("minItems", ARRAY),
    ("uniqueItems", ARRAY),
    ("maxProperties", OBJECT),
    ("minProperties", OBJECT),
    ("propertyNames", OBJECT),
    ("required", OBJECT),
    ("dependentRequired", OBJECT),
    ("unevaluatedItems", ARRAY),
    ("unevaluatedProperties", OBJECT),
    ("$schema", 0),
    ("disallow", ALL),
];

/// Keywords that say which members or items are evaluated, and speak of one type.
const EVALUATING: [(&str, u8); 11] = [
    ("additionalItems", ARRAY),
    ("contains", ARRAY),
    ("items", ARRAY),
    ("maxContains", ARRAY),
    ("minContains", ARRAY),
    ("prefixItems", ARRAY),
    ("additionalProperties", OBJECT),
    ("dependencies", OBJECT),
    ("dependentSchemas", OBJECT),
    ("patternProperties", OBJECT),
    ("properties", OBJECT),
];

impl LeftOut {
    pub(super) fn has_keyword(&self, id: JsonId, keyword: &str) -> bool {
        let keywords = self.keywords.get(&id).filter(|_| !self.keywords.is_empty());
        keywords.is_some_and(|keywords| keywords.contains(keyword))
    }

    /// Whether nothing of the schema `id` is enforced.
    pub(super) fn has_schema(&self, id: JsonId) -> bool {
        self.schemas.contains(&id)
    }

    /// The types of values that may miss the schema `id` by a keyword that is left out.
    pub(super) fn types(&self, id: JsonId) -> u8 {
        let keywords = self.keywords.get(&id).into_iter().flatten();
        keywords.fold(0, |types, keyword| types | types_of(keyword))
    }

    /// Whether something is left out of the schema `id` that could say which members or items are evaluated.
    pub(super) fn hides_evaluation(&self, id: JsonId) -> bool {
        let is_plain = |keyword: &String| PLAIN.iter().any(|(plain, _)| plain == keyword);
        self.has_schema(id)
            || self
                .keywords
                .get(&id)
                .into_iter()
                .flatten()
                .any(|keyword| !is_plain(keyword))
    }
}

fn types_of(keyword: &str) -> u8 {
    let known = PLAIN
        .iter()
        .chain(&EVALUATING)
        .find(|(known, _)| *known == keyword);
    known.map_or(ALL, |(_, types)| *types)
}

impl Compiler<'_> {
    /// The value of the keyword of the schema `id`, unless it is left out.
    pub(super) fn member(&self, id: JsonId, keyword: &str) -> Option<JsonId> {
        let value = self.document.member(id, keyword)?;
        (!self.left_out.has_keyword(id, keyword)).then_some(value)
    }

    /// The value of an `unevaluated` keyword, where it is known what is evaluated.
    pub(super) fn unevaluated(&mut self, facts: &Facts, at: Target, keyword: &str) -> Option<JsonId> {
        let value = self.member(at.id, keyword)?;
        if facts.is_partial && self.document[value] != Json::Bool(true) {
            self.note(
                at.id,
                keyword,
                "what is evaluated is not known, since a part of the schema is left out",
            );
            return None;
        }
        Some(value)
    }

    /// Notes that the keyword is not enforced everywhere.
    pub(super) fn note(&mut self, id: JsonId, keyword: &str, why: &str) {
        let pointer = self.document.pointer(id);
        let is_same = |known: &Relaxed| known.pointer == pointer && known.keyword == keyword;
        if !self.left_out.list.iter().any(is_same) {
            self.left_out.list.push(Relaxed {
                pointer,
                keyword: keyword.to_owned(),
                why: why.to_owned(),
            });
        }
    }

    /// Leaves out a way to fail that cannot be expressed, so that any value of its types may fail.
    pub(super) fn excuse(&mut self, error: CompileError) -> Result<(), CompileError> {
        match &error {
            CompileError::Unsupported {
                pointer,
                keyword,
                why,
            } if self.enforcement == Enforcement::Relaxed => {
                let id = self.document.at(pointer).expect("it is a schema's place");
                self.note(id, keyword, why);
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Leaves out what `error`, met while lowering `goals`, is about.
    ///
    /// # Errors
    /// With `error` where nothing is to be left out, or everything is already.
    pub(super) fn leave_out(&mut self, error: CompileError, goals: &[Goal]) -> Result<(), CompileError> {
        if self.enforcement == Enforcement::Whole {
            return Err(error);
        }
        if let CompileError::Unsupported {
            pointer,
            keyword,
            why,
        }
        | CompileError::Malformed {
            pointer,
            keyword,
            why,
        } = &error
            && let Some(id) = self.document.at(pointer)
            && (self.leave_out_keyword(id, keyword, why) || self.leave_out_schema(id, why))
        {
            return Ok(());
        }
        let why = error.to_string();
        let ids = goals.iter().filter_map(|goal| match goal {
            Goal::Holds(target) | Goal::Fails(target) => Some(target.id),
            Goal::Equals(_) | Goal::Differs(_) => None,
        });
        let ids: Vec<JsonId> = ids.collect();
        let is_new = ids
            .into_iter()
            .fold(false, |is_new, id| self.leave_out_schema(id, &why) || is_new);
        if is_new { Ok(()) } else { Err(error) }
    }

    /// False when the schema has no such keyword, or it is left out already.
    fn leave_out_keyword(&mut self, id: JsonId, keyword: &str, why: &str) -> bool {
        if self.member(id, keyword).is_none() {
            return false;
        }
        // Where a reference hides its neighbours, they must not come forth without it.
        if keyword == "$ref" && self.does_ref_hide() {
            return self.leave_out_schema(id, why);
        }
        self.note(id, keyword, why);
        let hidden = self.left_out.keywords.entry(id).or_default();
        hidden.insert(keyword.to_owned());
        let dependent = DEPENDENT.iter().filter(|(first, _)| *first == keyword);
        for other in dependent.flat_map(|(_, others)| *others) {
            self.leave_out_keyword(id, other, &format!("`{keyword}` beside it is not enforced"));
        }
        true
    }

    /// False when the schema is left out already, or is none.
    fn leave_out_schema(&mut self, id: JsonId, why: &str) -> bool {
        if matches!(self.document[id], Json::Bool(_)) || !self.left_out.schemas.insert(id) {
            return false;
        }
        self.note(id, WHOLE, why);
        true
    }
}
