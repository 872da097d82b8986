//! Schema objects that all hold, merged per JSON type.

use std::sync::Arc;

use super::format::{Format, format};
use super::{
    Array, CompileError, Compiler, Conjunction, Dfa, Draft, FormatPolicy, Json, JsonId, KeyTrie, NodeId,
    Object,
};
use crate::dfa::Product;
use crate::ir::Key;
use crate::number::{Bound, Decimal, NumberSpec};
use crate::text::any_content;

const NULL: u8 = 1;
const BOOLEAN: u8 = 2;
const NUMBER: u8 = 4;
const STRING: u8 = 8;
const ARRAY: u8 = 16;
pub(super) const OBJECT: u8 = 32;
const ALL: u8 = 63;

pub(super) fn type_of(value: &Json) -> u8 {
    match value {
        Json::Null => NULL,
        Json::Bool(_) => BOOLEAN,
        Json::Number(_) => NUMBER,
        Json::String(_) => STRING,
        Json::Array(_) => ARRAY,
        Json::Object(_) => OBJECT,
    }
}

/// What several schema objects say together; arrays and objects are merged when they are built.
pub(super) struct Merged {
    /// One of the schemas, for errors.
    pub(super) first: JsonId,
    pub(super) types: u8,
    pub(super) number: NumberSpec,
    pub(super) min_length: u32,
    pub(super) max_length: Option<u32>,
    pub(super) contents: Vec<Arc<Dfa>>,
    /// Whether a keyword speaks of items or properties.
    pub(super) has_compound: bool,
}

const COMPOUND: [&str; 10] = [
    "items",
    "prefixItems",
    "additionalItems",
    "minItems",
    "maxItems",
    "properties",
    "required",
    "additionalProperties",
    "minProperties",
    "maxProperties",
];

impl Compiler<'_> {
    /// The types that a schema's own `type`, `const` and `enum` leave possible.
    pub(super) fn possible_types(&self, id: JsonId) -> u8 {
        let named = self.types(id).map_or(ALL, |(types, _)| types);
        let listed = self.listed_values(id);
        let listed = listed.map_or(ALL, |values| {
            values.iter().fold(0, |all, v| all | type_of(&self.document[*v]))
        });
        named & listed
    }

    /// The types of `type`, and whether its numbers are integers.
    fn types(&self, id: JsonId) -> Result<(u8, bool), CompileError> {
        let names = match self.document.member(id, "type") {
            None => return Ok((ALL, false)),
            Some(names) => match &self.document[names] {
                Json::Array(items) => items.clone(),
                _ => vec![names],
            },
        };
        let (mut types, mut has_integer, mut has_number) = (0, false, false);
        for name in names {
            let Json::String(name) = &self.document[name] else {
                return Err(self.malformed(id, "type", "a type is not a string"));
            };
            types |= match name.as_str() {
                "null" => NULL,
                "boolean" => BOOLEAN,
                "string" => STRING,
                "array" => ARRAY,
                "object" => OBJECT,
                "number" | "integer" => {
                    has_integer |= name == "integer";
                    has_number |= name == "number";
                    NUMBER
                }
                _ => return Err(self.malformed(id, "type", "an unknown type")),
            };
        }
        Ok((types, has_integer && !has_number))
    }

    fn decimal(&self, id: JsonId, keyword: &str) -> Result<Option<Decimal>, CompileError> {
        match self
            .document
            .member(id, keyword)
            .map(|value| &self.document[value])
        {
            None => Ok(None),
            Some(Json::Number(number)) => Ok(Some(number.clone())),
            Some(_) => Err(self.malformed(id, keyword, "it is not a number")),
        }
    }

    fn count(&self, id: JsonId, keyword: &str) -> Result<Option<u32>, CompileError> {
        let Some(number) = self.decimal(id, keyword)? else {
            return Ok(None);
        };
        let count = number.to_u32().filter(|count| *count < 1 << 30);
        count
            .map(Some)
            .ok_or_else(|| self.malformed(id, keyword, "it is not a count below 2^30"))
    }

    /// The largest of the minima and the smallest of the maxima.
    fn range(&self, plain: &[JsonId], min: &str, max: &str) -> Result<(u32, Option<u32>), CompileError> {
        let (mut lower, mut upper) = (0, None);
        for id in plain {
            lower = lower.max(self.count(*id, min)?.unwrap_or(0));
            upper = upper.into_iter().chain(self.count(*id, max)?).min();
        }
        Ok((lower, upper))
    }

    fn merge(&mut self, plain: &[JsonId]) -> Result<Merged, CompileError> {
        let (min_length, max_length) = self.range(plain, "minLength", "maxLength")?;
        let mut merged = Merged {
            first: plain[0],
            types: ALL,
            number: NumberSpec::default(),
            min_length,
            max_length,
            contents: Vec::new(),
            has_compound: false,
        };
        for id in plain {
            let (types, is_integer) = self.types(*id)?;
            merged.types &= types;
            merged.number.is_integer |= is_integer;
            self.merge_numbers(*id, &mut merged.number)?;
            let has = |keyword: &&str| self.document.member(*id, keyword).is_some();
            merged.has_compound |= COMPOUND.iter().any(has);
            if merged.types & STRING != 0 {
                merged.contents.extend(self.contents(*id)?);
            }
        }
        Ok(merged)
    }

    fn merge_numbers(&self, id: JsonId, spec: &mut NumberSpec) -> Result<(), CompileError> {
        for (keyword, is_lower, is_exclusive) in [
            ("minimum", true, false),
            ("exclusiveMinimum", true, true),
            ("maximum", false, false),
            ("exclusiveMaximum", false, true),
        ] {
            let Some(value) = self.decimal(id, keyword)? else {
                continue;
            };
            let slot = if is_lower { &mut spec.min } else { &mut spec.max };
            let is_tighter = slot.as_ref().is_none_or(|bound| {
                let beyond = if is_lower {
                    value > bound.value
                } else {
                    value < bound.value
                };
                beyond || is_exclusive && value == bound.value
            });
            if is_tighter {
                *slot = Some(Bound { value, is_exclusive });
            }
        }
        spec.multiples.extend(self.decimal(id, "multipleOf")?);
        Ok(())
    }

    fn contents(&mut self, id: JsonId) -> Result<Vec<Arc<Dfa>>, CompileError> {
        let document = self.document;
        let mut contents = Vec::new();
        if let Some(value) = document.member(id, "pattern") {
            let Json::String(source) = &document[value] else {
                return Err(self.malformed(id, "pattern", "it is not a string"));
            };
            self.spend(2_000)?;
            let dfa = self.ir.search(source);
            contents.push(dfa.map_err(|error| self.unsupported(id, "pattern", &error.to_string()))?);
        }
        let Some(value) = document.member(id, "format") else {
            return Ok(contents);
        };
        let Json::String(name) = &document[value] else {
            return Err(self.malformed(id, "format", "it is not a string"));
        };
        if self.options.formats == FormatPolicy::Enforce {
            match format(name) {
                Format::Pattern(source) => contents.push(self.ir.pattern(source)?),
                Format::Refused => {
                    return Err(self.unsupported(id, "format", "this format would not be enforced"));
                }
                Format::Unknown => {}
            }
        }
        Ok(contents)
    }

    pub(super) fn lower_plain(&mut self, plain: &Conjunction) -> Result<NodeId, CompileError> {
        let first = plain.first().copied().unwrap_or(0);
        if plain.is_empty() {
            let merged = Merged {
                first,
                types: ALL,
                number: NumberSpec::default(),
                min_length: 0,
                max_length: None,
                contents: Vec::new(),
                has_compound: false,
            };
            return self.lower_types(plain, &merged);
        }
        let merged = self.merge(plain)?;
        let lists: Vec<Vec<JsonId>> = plain.iter().filter_map(|id| self.listed_values(*id)).collect();
        let Some((values, others)) = lists.split_first() else {
            return self.lower_types(plain, &merged);
        };
        let in_all = |value: &&JsonId| {
            let is_in = |list: &Vec<JsonId>| list.iter().any(|other| self.document.is_equal(**value, *other));
            others.iter().all(is_in)
        };
        let values: Vec<JsonId> = values.iter().filter(in_all).copied().collect();
        self.lower_values(&values, &merged)
    }

    fn lower_types(&mut self, plain: &[JsonId], merged: &Merged) -> Result<NodeId, CompileError> {
        let mut nodes = Vec::new();
        if merged.types & NULL != 0 {
            nodes.push(self.ir.literal("null"));
        }
        if merged.types & BOOLEAN != 0 {
            nodes.push(self.ir.dfa(Dfa::of_strings([&b"true"[..], b"false"])));
        }
        if merged.types & NUMBER != 0 {
            let is_any = merged.number == NumberSpec::default();
            let node = match self.number.filter(|_| is_any) {
                Some(node) => node,
                None => self.number_node(&merged.number, merged.first)?,
            };
            if is_any {
                self.number = Some(node);
            }
            nodes.push(node);
        }
        if merged.types & STRING != 0 {
            nodes.push(self.lower_string(merged)?);
        }
        if merged.types & ARRAY != 0 {
            nodes.push(self.lower_array(plain)?);
        }
        if merged.types & OBJECT != 0 {
            nodes.push(self.lower_object(plain)?);
        }
        Ok(self.ir.alt(nodes))
    }

    fn lower_string(&mut self, merged: &Merged) -> Result<NodeId, CompileError> {
        if merged.contents.is_empty() && merged.min_length == 0 && merged.max_length.is_none() {
            return Ok(self.ir.text(self.ir.any_text.clone()));
        }
        let max = self.ir.max_automaton_states();
        let mut content = (*any_content()).clone();
        for (i, other) in merged.contents.iter().enumerate() {
            self.spend(other.n_states() as u64 * 16)?;
            let both = if i == 0 {
                Ok((**other).clone())
            } else {
                content.product(other, Product::Both, max)
            };
            content = both.map_err(|_| CompileError::Limit {
                name: "max_automaton_states",
                limit: max as u64,
                place: format!("the strings of {}", self.document.pointer(merged.first)),
            })?;
        }
        let length = u64::from(merged.max_length.unwrap_or(0).max(merged.min_length));
        if !merged.contents.is_empty() {
            // Pattern and length are tabulated against each other, at worst every length.
            self.spend(length.saturating_mul(content.n_states() as u64))?;
        }
        Ok(self.ir.text_of(&content, merged.min_length, merged.max_length))
    }

    fn lower_array(&mut self, plain: &[JsonId]) -> Result<NodeId, CompileError> {
        let (min, max) = self.range(plain, "minItems", "maxItems")?;
        let document = self.document;
        let mut layers: Vec<(Vec<JsonId>, Option<JsonId>)> = Vec::new();
        for id in plain {
            let items = document.member(*id, "items");
            let listed = items.and_then(|items| match &document[items] {
                Json::Array(list) => Some(list.clone()),
                _ => None,
            });
            layers.push(match (listed, self.options.draft) {
                (Some(list), Draft::Draft7) => (list, document.member(*id, "additionalItems")),
                (Some(_), _) => {
                    return Err(self.malformed(*id, "items", "a list of schemas is `prefixItems`"));
                }
                (None, Draft::Draft7) => (Vec::new(), items),
                (None, _) => (self.list(*id, "prefixItems")?, items),
            });
        }
        let n_prefix = layers.iter().map(|(prefix, _)| prefix.len()).max().unwrap_or(0);
        let at = |(prefix, rest): &(Vec<JsonId>, Option<JsonId>), i: usize| prefix.get(i).copied().or(*rest);
        let conjunction =
            |i: usize| -> Conjunction { layers.iter().filter_map(|layer| at(layer, i)).collect() };
        let unique = |id: &&JsonId| {
            let value = document.member(**id, "uniqueItems").map(|value| &document[value]);
            value.is_some_and(|value| *value != Json::Bool(false))
        };
        let distinct = match plain.iter().find(unique) {
            Some(id) if max.is_none_or(|max| max > 1) => self.distinct(*id, n_prefix, &conjunction(0))?,
            _ => Vec::new(),
        };
        let prefix = (0..n_prefix).map(|i| self.rule(conjunction(i))).collect();
        let rest = Some(self.rule(conjunction(usize::MAX)));
        Ok(self.ir.array(Array {
            prefix,
            rest,
            min,
            max,
            distinct,
        }))
    }

    /// The values that the items of an array with `uniqueItems` (at `id`) are distinct ones of: they must be
    /// listed by one schema that says nothing else, or repetitions could not be kept out.
    fn distinct(
        &mut self,
        id: JsonId,
        n_prefix: usize,
        items: &[JsonId],
    ) -> Result<Vec<NodeId>, CompileError> {
        const MAX_DISTINCT: usize = 32;
        const HARMLESS: [&str; 5] = ["enum", "const", "type", "title", "description"];
        let refused =
            "only items of one `enum` with up to 32 values and nothing beside it can be kept distinct";
        let [item] = *items else {
            return Err(self.unsupported(id, "uniqueItems", refused));
        };
        let item = self.followed(item);
        let Json::Object(members) = &self.document[item] else {
            return Err(self.unsupported(id, "uniqueItems", refused));
        };
        let is_plain = members.iter().all(|(name, _)| HARMLESS.contains(&name.as_str()));
        let Some(values) = self.listed_values(item).filter(|_| is_plain && n_prefix == 0) else {
            return Err(self.unsupported(id, "uniqueItems", refused));
        };
        let (types, is_integer) = self.types(item)?;
        let mut kept: Vec<JsonId> = Vec::new();
        for value in values {
            let json = &self.document[value];
            let is_fraction = matches!(json, Json::Number(number) if is_integer && !number.is_integer());
            let is_known = kept.iter().any(|known| self.document.is_equal(*known, value));
            if types & type_of(json) != 0 && !is_fraction && !is_known {
                kept.push(value);
            }
        }
        if kept.is_empty() || kept.len() > MAX_DISTINCT {
            return Err(self.unsupported(id, "uniqueItems", refused));
        }
        kept.into_iter().map(|value| self.value_node(value)).collect()
    }

    fn lower_object(&mut self, plain: &[JsonId]) -> Result<NodeId, CompileError> {
        let (min, max) = self.range(plain, "minProperties", "maxProperties")?;
        let document = self.document;
        let mut names: Vec<&str> = Vec::new();
        let mut note = |name| {
            if !names.contains(&name) {
                names.push(name);
            }
        };
        for id in plain {
            match document
                .member(*id, "properties")
                .map(|properties| &document[properties])
            {
                None => {}
                Some(Json::Object(members)) => members.iter().for_each(|(name, _)| note(name)),
                Some(_) => return Err(self.malformed(*id, "properties", "it is not an object")),
            }
        }
        for id in plain {
            let listed = document
                .member(*id, "required")
                .map(|required| &document[required]);
            let n_listed = match listed {
                None => 0,
                Some(Json::Array(items)) => items.len(),
                Some(_) => return Err(self.malformed(*id, "required", "it is not a list")),
            };
            if n_listed != self.required_names(*id).len() {
                return Err(self.malformed(*id, "required", "a name is not a string"));
            }
        }
        let required: Vec<&str> = plain.iter().flat_map(|id| self.required_names(*id)).collect();
        required.iter().for_each(|name| note(name));
        self.spend(names.len() as u64 * (4 + plain.len() as u64))?;
        let extra = |id: &JsonId| document.member(*id, "additionalProperties");
        let mut keys = Vec::new();
        for name in &names {
            let value = |id: &JsonId| {
                let own = document
                    .member(*id, "properties")
                    .and_then(|all| document.member(all, name));
                own.or_else(|| extra(id))
            };
            keys.push(Key {
                name: (*name).to_owned(),
                value: self.rule(plain.iter().filter_map(value).collect()),
                is_required: required.contains(name),
            });
        }
        let extras: Conjunction = plain.iter().filter_map(extra).collect();
        let is_closed = extras.iter().any(|id| document[*id] == Json::Bool(false));
        if min as usize > keys.len() + usize::from(!is_closed) {
            let why = "properties without a declared name may repeat, so only one of them can be counted";
            return Err(self.unsupported(plain.first().copied().unwrap_or(0), "minProperties", why));
        }
        let extras = if is_closed {
            Vec::new()
        } else {
            vec![self.extra_member(&names, extras)?]
        };
        Ok(self.ir.object(Object {
            keys,
            trie: KeyTrie::new(std::iter::empty()),
            extras,
            min,
            max,
        }))
    }

    /// Any name but `names`, and its value.
    fn extra_member(
        &mut self,
        names: &[&str],
        values: Conjunction,
    ) -> Result<(NodeId, NodeId), CompileError> {
        if names.is_empty() {
            return Ok((self.ir.text(self.ir.any_text.clone()), self.rule(values)));
        }
        let declared = Dfa::of_strings(names.iter().map(|name| name.as_bytes()));
        let max = self.ir.max_automaton_states();
        self.spend(declared.n_states() as u64 * 64)?;
        let content = any_content().product(&declared, Product::FirstOnly, max);
        let content = content.map_err(|_| CompileError::Limit {
            name: "max_automaton_states",
            limit: max as u64,
            place: "the names of an object's properties".to_owned(),
        })?;
        Ok((self.ir.text_of(&content, 0, None), self.rule(values)))
    }
}
