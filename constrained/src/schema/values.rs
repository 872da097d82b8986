//! `enum` and `const`: the listed values themselves.

use std::borrow::Cow;
use std::sync::Arc;

use super::facts::Facts;
use super::keywords::{ARRAY, OBJECT, type_of};
use super::lower::Merged;
use super::relax::Blame;
use super::strings::accepts;
use super::{CompileError, Compiler, Dfa, Json, JsonId, NodeId};
use crate::dfa::Built;
use crate::ir::{Array, Choice, Key, Object};
use crate::keys::KeyTrie;
use crate::number::{MAX_DIGITS, NumberError, NumberSpec, automaton};

/// Keywords that speak of items.
const OF_ARRAYS: [&str; 8] = [
    "additionalItems",
    "contains",
    "items",
    "maxItems",
    "minItems",
    "prefixItems",
    "unevaluatedItems",
    "uniqueItems",
];
/// Keywords that speak of properties.
const OF_OBJECTS: [&str; 8] = [
    "additionalProperties",
    "maxProperties",
    "minProperties",
    "patternProperties",
    "properties",
    "propertyNames",
    "required",
    "unevaluatedProperties",
];

pub(super) const BOUNDS: [&str; 4] = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"];

impl<'a> Compiler<'a> {
    /// The listed values that satisfy the other facts as well.
    pub(super) fn lower_values(
        &mut self,
        values: &[JsonId],
        facts: &Facts,
        merged: &Merged,
    ) -> Result<NodeId, CompileError> {
        let (mut nodes, mut texts, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        let mut n_compound = 0;
        let document = self.document;
        for value in values {
            self.spend(8)?;
            if facts.types & type_of(&document[*value]) == 0 {
                continue;
            }
            match &document[*value] {
                Json::String(text) => {
                    let n_chars = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
                    let fits =
                        n_chars >= merged.min_length && merged.max_length.is_none_or(|max| n_chars <= max);
                    if fits
                        && merged.contents.iter().all(|content| accepts(content, text))
                        && !merged.no_contents.iter().any(|content| accepts(content, text))
                    {
                        texts.push(text.as_bytes());
                    }
                }
                Json::Number(number) => {
                    let text = self.number_text(*value)?;
                    let is_in = merged.number.admits(number);
                    if is_in.or_else(|error| self.without_divisors(error, facts))? {
                        numbers.push(text);
                    }
                }
                Json::Null | Json::Bool(_) => nodes.push(self.value_node(*value)?),
                Json::Array(_) | Json::Object(_) => {
                    n_compound += 1;
                    if n_compound > self.limits.max_readings {
                        self.blame = Some(Blame::Keyword(self.holder(facts, "enum"), "enum"));
                        return Err(CompileError::Limit {
                            name: "max_readings",
                            limit: self.limits.max_readings as u64,
                            place: format!("the listed values of {}", document.pointer(facts.first())),
                        });
                    }
                    nodes.push(self.lower_compound(*value, facts)?);
                }
            }
        }
        if !numbers.is_empty() {
            self.spend(numbers.len() as u64 * 200)?;
            let listed = Dfa::of_strings(numbers.iter().map(|text| text.as_bytes()));
            nodes.push(self.ir.dfa(listed));
        }
        if !texts.is_empty() {
            let n_bytes: usize = texts.iter().map(|text| text.len()).sum();
            self.spend(n_bytes as u64 * 30)?;
            let content = Dfa::of_strings(texts);
            self.spend((content.n_states() * content.classes().len()) as u64 * 16)?;
            nodes.push(self.texts_node(content));
        }
        Ok(self.ir.alt(nodes))
    }

    /// The array or object `value`, if the facts allow it.
    fn lower_compound(&mut self, value: JsonId, facts: &Facts) -> Result<NodeId, CompileError> {
        let (own_type, keywords) = match self.document[value] {
            Json::Array(_) => (ARRAY, OF_ARRAYS),
            _ => (OBJECT, OF_OBJECTS),
        };
        let has_fact = facts.list.iter().any(|fact| fact.type_bit() == own_type);
        let is_asked = |id: JsonId| keywords.iter().any(|keyword| self.has(id, keyword));
        if !has_fact && !facts.plain.iter().any(|target| is_asked(target.id)) {
            return self.value_node(value);
        }
        let mut facts = facts.clone();
        facts.equal = vec![value];
        self.spend(facts.size() as u64)?;
        if own_type == ARRAY {
            self.lower_array(&facts)
        } else {
            self.lower_object(&facts)
        }
    }

    fn texts_node(&mut self, content: Dfa) -> NodeId {
        self.ir.text_of(Arc::new(content), 0, None)
    }

    /// Exactly `value`. Recursion is as deep as the document, which `max_source_depth` bounds.
    pub(super) fn value_node(&mut self, value: JsonId) -> Result<NodeId, CompileError> {
        let document = self.document;
        Ok(match &document[value] {
            Json::Null => self.ir.literal("null"),
            Json::Bool(true) => self.ir.literal("true"),
            Json::Bool(false) => self.ir.literal("false"),
            Json::String(text) => self.texts_node(Dfa::of_strings([text.as_bytes()])),
            Json::Number(_) => {
                let text = self.number_text(value)?;
                self.ir.literal(&text)
            }
            Json::Array(items) => {
                let prefix = items
                    .iter()
                    .map(|item| self.value_node(*item))
                    .collect::<Result<Vec<_>, _>>()?;
                let n = prefix.len() as u32;
                self.ir.array(Array::new(prefix, None, n, Some(n)))
            }
            Json::Object(members) => {
                let mut keys = Vec::new();
                for (name, value) in members {
                    let value = self.value_node(*value)?;
                    keys.push(Key {
                        name: name.clone(),
                        choices: vec![Choice { value, meets: 0 }],
                        is_required: true,
                        absence_meets: 0,
                    });
                }
                self.ir.object(Object {
                    keys,
                    trie: KeyTrie::new(std::iter::empty()),
                    extras: Vec::new(),
                    conditions: Vec::new(),
                    min: 0,
                    max: None,
                    order: self.order,
                    has_gaps: false,
                    has_distinct_names: false,
                })
            }
        })
    }

    /// How a listed number is written: an integer as one, all others as the schema writes them.
    fn number_text(&self, value: JsonId) -> Result<Cow<'a, str>, CompileError> {
        match &self.document[value] {
            Json::Number(number) if number.n_whole() > MAX_DIGITS => {
                let (id, keyword) = self.listing(value);
                let why = format!("a number has more than {MAX_DIGITS} digits before the point");
                Err(self.unsupported(id, keyword, &why))
            }
            Json::Number(number) if number.is_integer() => Ok(Cow::Owned(number.text())),
            _ => Ok(Cow::Borrowed(self.document.text_of(value, self.source.text))),
        }
    }

    /// The schema that lists the value, or what it is a part of, and the keyword.
    pub(super) fn listing(&self, mut value: JsonId) -> (JsonId, &'static str) {
        while value != 0 {
            let parent = self.document.parent(value);
            if self.document.member(parent, "const") == Some(value) {
                return (parent, "const");
            }
            if self.document.member(parent, "enum") == Some(value) {
                return (parent, "enum");
            }
            value = parent;
        }
        (0, "enum")
    }

    /// A schema of `facts` that has `keyword`.
    pub(super) fn holder(&self, facts: &Facts, keyword: &str) -> JsonId {
        let holder = facts.plain.iter().find(|target| self.has(target.id, keyword));
        holder.map_or(facts.first(), |target| target.id)
    }

    pub(super) fn number_error(&self, error: NumberError, facts: &Facts) -> CompileError {
        match error {
            NumberError::TooManyStates => self.automaton_limit("the numbers", facts.first()),
            NumberError::Divisor => {
                let why = "a divisor is not positive, or it or the least common multiple has over 37 digits";
                self.unsupported(self.holder(facts, "multipleOf"), "multipleOf", why)
            }
            NumberError::Bound => {
                let is_there = |keyword: &&str| facts.plain.iter().any(|target| self.has(target.id, keyword));
                let keyword = BOUNDS.into_iter().find(is_there).unwrap_or("minimum");
                let why = format!("a bound has more than {MAX_DIGITS} digits");
                self.unsupported(self.holder(facts, keyword), keyword, &why)
            }
        }
    }

    /// Numbers as `spec` has them, which is made of `facts`.
    pub(super) fn number_node(&mut self, spec: &NumberSpec, facts: &Facts) -> Result<NodeId, CompileError> {
        self.spend(500 * (1 + spec.excluded.len() as u64).pow(2))?;
        let max = self.ir.bounds().max_states;
        let cache = self.ir.cache().clone();
        let (dfa, n_work) = cache.automaton(format!("number {max} {spec:?}"), || {
            let dfa = automaton(spec, max).map_err(|error| self.number_error(error, facts))?;
            let dfa = dfa.trimmed(self.ir.is_spelled());
            let n_work = 16 * (dfa.n_states() * dfa.classes().len()) as u64;
            Ok(Built { dfa, n_work })
        })?;
        self.spend(n_work)?;
        Ok(self.ir.shared_dfa(dfa))
    }
}
