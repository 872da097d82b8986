//! Parts of a schema that cannot be enforced, left out so that the grammar allows more and never less.
//!
//! A keyword that is left out asserts nothing where its schema must hold. Where its schema must fail, any
//! value of the types that the keyword speaks of may fail by it (`negation.rs`). Both are supersets, and so
//! is whatever is made of them, under `not`, `if` and `oneOf` too.
//!
//! Invariant: what is left out is in the list of [`Relaxed`], each place and keyword once.

use std::collections::BTreeSet;

use super::alternatives::ForkKind;
use super::facts::{Fact, Facts, Goal, Target};
use super::keywords::{ALL, ARRAY, NUMBER, OBJECT, STRING};
use super::lower::Merged;
use super::values::BOUNDS;
use super::{CompileError, Compiler, NodeId};
use crate::error::within;
use crate::hash::Map;
use crate::json::{Json, JsonId};
use crate::number::{NumberError, NumberSpec};

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
            why: reason(error),
        }
    }

    /// The same part of a schema that stands at `place` in something larger.
    pub(super) fn within(mut self, place: &str) -> Self {
        self.pointer = within(place, self.pointer);
        self
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        size_of::<Self>() + self.pointer.len() + self.keyword.len() + self.why.len()
    }
}

/// What an error came of.
pub(super) enum Blame {
    /// The choice that made too many alternatives.
    Choice(ForkKind),
    Keyword(JsonId, &'static str),
    /// What the schemas say of arrays or of objects.
    Containers(Vec<Target>, u8),
}

/// What is left out of one schema.
#[derive(Default)]
pub(super) struct LeftOut {
    list: Vec<Relaxed>,
    noted: BTreeSet<(JsonId, String)>,
    keywords: Map<JsonId, BTreeSet<String>>,
    /// Schemas of which nothing is enforced, and values that need not be met or missed.
    schemas: BTreeSet<JsonId>,
    /// Schemas that may hold, and values that may be met, where they must not.
    unnegated: BTreeSet<JsonId>,
    /// Why nothing is enforced of what is not lowered yet.
    rest: Option<String>,
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
const PLAIN: [(&str, u8); 24] = [
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
    ("$schema", 0),
    ("disallow", ALL),
];

/// Keywords that say which members or items are evaluated, and speak of one type.
const EVALUATING: [(&str, u8); 13] = [
    ("additionalItems", ARRAY),
    ("contains", ARRAY),
    ("items", ARRAY),
    ("maxContains", ARRAY),
    ("minContains", ARRAY),
    ("prefixItems", ARRAY),
    ("unevaluatedItems", ARRAY),
    ("additionalProperties", OBJECT),
    ("dependencies", OBJECT),
    ("dependentSchemas", OBJECT),
    ("patternProperties", OBJECT),
    ("properties", OBJECT),
    ("unevaluatedProperties", OBJECT),
];

impl LeftOut {
    pub(super) fn has_keyword(&self, id: JsonId, keyword: &str) -> bool {
        let is_in = |keywords: &BTreeSet<String>| keywords.contains(keyword);
        !self.keywords.is_empty() && self.keywords.get(&id).is_some_and(is_in)
    }

    pub(super) fn into_list(self) -> Vec<Relaxed> {
        self.list
    }

    /// Whether nothing more is enforced.
    pub(super) fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// Whether the schema may hold, or the value be met, where it must not.
    pub(super) fn may_hold(&self, id: JsonId) -> bool {
        self.unnegated.contains(&id) || self.has_schema(id)
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
        let mut keywords = self.keywords.get(&id).into_iter().flatten();
        keywords.any(|keyword| !is_plain(keyword))
    }
}

fn types_of(keyword: &str) -> u8 {
    let mut known = PLAIN.iter().chain(&EVALUATING);
    let own = known.find(|(known, _)| *known == keyword);
    own.map_or(ALL, |(_, types)| *types)
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
            let why = "what is evaluated is not known, since a part of the schema is not enforced";
            self.note(at.id, keyword, why);
            return None;
        }
        Some(value)
    }

    /// The types that a choice of the schema `id` leaves possible though it is left out.
    pub(super) fn types_left(&self, id: JsonId) -> u8 {
        let mut types = ALL;
        for keyword in ["anyOf", "oneOf"] {
            if self.left_out.has_keyword(id, keyword)
                && let Some(list) = self.document.member(id, keyword)
                && let Json::Array(parts) = &self.document[list]
            {
                let of_part = |part: &JsonId| {
                    let parts = self.parts(*part);
                    parts
                        .into_iter()
                        .fold(ALL, |types, id| types & self.possible_types(id))
                };
                types &= parts.iter().fold(0, |types, part| types | of_part(part));
            }
        }
        types
    }

    /// Notes that the keyword is not enforced everywhere.
    fn note(&mut self, id: JsonId, keyword: &str, why: &str) {
        if self.left_out.noted.insert((id, keyword.to_owned())) {
            self.left_out.list.push(Relaxed {
                pointer: self.document.pointer(id),
                keyword: keyword.to_owned(),
                why: why.to_owned(),
            });
        }
    }

    /// Notes that nothing of `goals` is enforced.
    pub(super) fn note_goals(&mut self, goals: &[Goal]) {
        let why = self.left_out.rest.clone().unwrap_or_default();
        for goal in goals {
            self.note(goal.place(), WHOLE, &why);
        }
    }

    /// Notes that a part of the keyword is not enforced.
    ///
    /// # Errors
    /// With `error` where everything is to be.
    pub(super) fn excuse(
        &mut self,
        error: CompileError,
        id: JsonId,
        keyword: &str,
    ) -> Result<(), CompileError> {
        if self.enforcement == Enforcement::Whole || is_about_work(&error) {
            return Err(error);
        }
        self.note(id, keyword, &reason(&error));
        Ok(())
    }

    /// The same for a way to fail that cannot be expressed, so that any value of its types may fail.
    pub(super) fn excuse_way(&mut self, error: CompileError) -> Result<(), CompileError> {
        match &error {
            CompileError::Unsupported { pointer, keyword, .. } => {
                let id = self.document.at(pointer).expect("it is the place of a schema");
                let keyword = keyword.clone();
                self.excuse(error, id, &keyword)
            }
            _ => Err(error),
        }
    }

    /// Numbers of `facts` as far as there is an automaton for them: without divisors and excluded values,
    /// which need the largest, or without bounds too.
    pub(super) fn without_bounds(
        &mut self,
        error: &CompileError,
        facts: &Facts,
        merged: &Merged,
    ) -> Result<NodeId, CompileError> {
        self.excuse_scalars(error, facts, &["multipleOf"])?;
        let mut spec = NumberSpec {
            multiples: Vec::new(),
            nonmultiples: Vec::new(),
            excluded: Vec::new(),
            ..merged.number.clone()
        };
        if let Ok(node) = self.number_node(&spec, facts) {
            return Ok(node);
        }
        self.excuse_scalars(error, facts, &BOUNDS)?;
        (spec.min, spec.max) = (None, None);
        self.number_node(&spec, facts)
    }

    /// Whether a listed number is let in whose divisors cannot be used.
    pub(super) fn without_divisors(
        &mut self,
        error: NumberError,
        facts: &Facts,
    ) -> Result<bool, CompileError> {
        let error = self.number_error(error, facts);
        self.excuse_scalars(&error, facts, &["multipleOf"])?;
        Ok(true)
    }

    /// Strings of `facts` without patterns and formats.
    pub(super) fn without_contents(
        &mut self,
        error: &CompileError,
        facts: &Facts,
        merged: &Merged,
    ) -> Result<NodeId, CompileError> {
        self.excuse_scalars(error, facts, &["pattern", "format"])?;
        let lengths = Merged {
            min_length: merged.min_length,
            max_length: merged.max_length,
            ..Merged::default()
        };
        self.lower_string(&Facts::of_types(STRING), &lengths)
    }

    /// Notes that these keywords, and what must not be, are not enforced of scalars.
    fn excuse_scalars(
        &mut self,
        error: &CompileError,
        facts: &Facts,
        keywords: &[&'static str],
    ) -> Result<(), CompileError> {
        if self.enforcement == Enforcement::Whole || is_about_work(error) {
            return Err(error.clone());
        }
        let mut found = Vec::new();
        for target in &facts.plain {
            let own = keywords.iter().filter(|keyword| self.has(target.id, keyword));
            found.extend(own.map(|keyword| (target.id, *keyword)));
        }
        for fact in &facts.list {
            found.extend(match *fact {
                Fact::Broken(id, what) => Some((id, what.keyword())),
                _ => None,
            });
        }
        found.extend(facts.different.iter().map(|value| self.listing(*value)));
        for (id, keyword) in found {
            self.note(id, keyword, &reason(error));
        }
        Ok(())
    }

    /// Says what the error that is on its way came of, unless that is known more closely.
    pub(super) fn blame_facts(&mut self, facts: &Facts, types: u8) {
        if self.blame.is_none() && self.enforcement == Enforcement::Relaxed {
            self.blame = Some(Blame::Containers(facts.plain.clone(), types));
        }
    }

    /// Leaves out what `error`, met while lowering `goals`, is about.
    ///
    /// # Errors
    /// With `error` where nothing is to be left out, or everything is already.
    pub(super) fn leave_out(&mut self, error: CompileError, goals: &[Goal]) -> Result<(), CompileError> {
        let blame = self.blame.take();
        self.ways_to_fail.clear();
        if self.enforcement == Enforcement::Whole {
            return Err(error);
        }
        let why = reason(&error);
        if is_about_work(&error) {
            self.left_out.rest = Some(why);
            return Ok(());
        }
        let is_new = match (&error, blame) {
            (
                CompileError::Unsupported { pointer, keyword, .. }
                | CompileError::Malformed { pointer, keyword, .. },
                _,
            ) => self.document.at(pointer).is_some_and(|id| {
                self.leave_out_keyword(id, keyword, &why) || self.leave_out_schema(id, &why)
            }),
            (_, Some(Blame::Choice(kind))) => self.leave_out_choice(kind, &why),
            (_, Some(Blame::Keyword(id, keyword))) => {
                self.leave_out_keyword(id, keyword, &why) || self.leave_out_schema(id, &why)
            }
            (_, Some(Blame::Containers(targets, types))) => self.leave_out_containers(&targets, types, &why),
            (_, None) => false,
        };
        if is_new {
            return Ok(());
        }
        let mut is_new = false;
        for goal in goals {
            is_new |= self.leave_out_schema(goal.place(), &why);
        }
        if is_new { Ok(()) } else { Err(error) }
    }

    /// Leaves out all that is not lowered yet when the grammar is nearly as large as it may be.
    pub(super) fn check_size(&mut self) -> Result<(), CompileError> {
        if self.enforcement == Enforcement::Relaxed
            && let Err(error) = self.ir.check_room("the schema")
            && !self.left_out.has_rest()
        {
            self.left_out.rest = Some(reason(&error));
        }
        self.ir.check_size("the schema")
    }

    /// False when the schema has no such keyword, or it is left out already.
    fn leave_out_keyword(&mut self, id: JsonId, keyword: &str, why: &str) -> bool {
        if self.member(id, keyword).is_none() {
            return false;
        }
        // Where a reference hides its neighbours, they must not come forth without it.
        if keyword == "$ref" && self.does_ref_hide(id) {
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

    /// False when the schema or value is left out already, or there is nothing to leave out.
    fn leave_out_schema(&mut self, id: JsonId, why: &str) -> bool {
        if matches!(self.document[id], Json::Bool(_)) || !self.left_out.schemas.insert(id) {
            return false;
        }
        self.note(id, WHOLE, why);
        true
    }

    fn leave_out_choice(&mut self, kind: ForkKind, why: &str) -> bool {
        match kind {
            ForkKind::AnyOf { at, .. } => self.leave_out_keyword(at.id, "anyOf", why),
            ForkKind::OneOf(at) => self.leave_out_keyword(at.id, "oneOf", why),
            ForkKind::If(at) => self.leave_out_keyword(at.id, "if", why),
            ForkKind::Depends(at, keyword, _) => self.leave_out_keyword(at.id, keyword, why),
            ForkKind::Fails(Target { id, .. }) | ForkKind::Differs(id) => {
                let (at, keyword) = self.applicator(id);
                self.note(at, keyword, why);
                self.left_out.unnegated.insert(id)
            }
        }
    }

    /// The schema and the keyword that `id` stands in.
    fn applicator(&self, id: JsonId) -> (JsonId, &'static str) {
        const KEYWORDS: [&str; 9] = [
            "not", "if", "then", "else", "oneOf", "anyOf", "allOf", "enum", "const",
        ];
        let parent = self.document.parent(id);
        for (at, value) in [(parent, id), (self.document.parent(parent), parent)] {
            let is_it = |keyword: &&str| self.document.member(at, keyword) == Some(value);
            if let Some(keyword) = KEYWORDS.into_iter().find(is_it) {
                return (at, keyword);
            }
        }
        (id, WHOLE)
    }

    /// Leaves out what makes arrays or objects costly, or else all that is said of them.
    fn leave_out_containers(&mut self, targets: &[Target], types: u8, why: &str) -> bool {
        let costly = [
            "contains",
            "patternProperties",
            "prefixItems",
            "propertyNames",
            "uniqueItems",
        ];
        let all = PLAIN.iter().chain(&EVALUATING).map(|(keyword, _)| *keyword);
        for keywords in [costly.to_vec(), all.collect()] {
            let mut is_new = false;
            for keyword in keywords.into_iter().filter(|keyword| types_of(keyword) == types) {
                for target in targets {
                    is_new |= self.leave_out_keyword(target.id, keyword, why);
                }
            }
            if is_new {
                return true;
            }
        }
        false
    }
}

fn is_about_work(error: &CompileError) -> bool {
    matches!(
        error,
        CompileError::Limit {
            name: "max_compile_work",
            ..
        }
    )
}

/// What an error says besides its place.
fn reason(error: &CompileError) -> String {
    match error {
        CompileError::Unsupported { why, .. } | CompileError::Malformed { why, .. } => why.clone(),
        error => error.to_string(),
    }
}
