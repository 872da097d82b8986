//! What the keywords of one schema object say, read and checked.

use super::dialect::Dialect;
use super::{CompileError, Compiler, FormatPolicy};
use crate::decimal::Decimal;
use crate::json::{Json, JsonId};
use crate::number::Bound;

pub(super) const NULL: u8 = 1;
pub(super) const BOOLEAN: u8 = 2;
pub(super) const NUMBER: u8 = 4;
pub(super) const STRING: u8 = 8;
pub(super) const ARRAY: u8 = 16;
pub(super) const OBJECT: u8 = 32;
pub(super) const ALL: u8 = 63;

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

/// The items of an array: the first ones, then all others.
#[derive(Clone, Copy)]
pub(super) struct Items<'a> {
    pub(super) prefix: &'a [JsonId],
    pub(super) rest: Option<JsonId>,
}

impl<'a> Compiler<'a> {
    pub(super) fn value(&self, id: JsonId, keyword: &str) -> Option<&'a Json> {
        self.member(id, keyword).map(|value| &self.document[value])
    }

    pub(super) fn has(&self, id: JsonId, keyword: &str) -> bool {
        self.member(id, keyword).is_some()
    }

    /// The rules that the schema `id` is read by.
    pub(super) fn dialect(&self, id: JsonId) -> Dialect {
        self.resources.dialect(self.document, id)
    }

    /// Whether only other drafts know `keyword`. Such a keyword is enforced, which makes the output stricter;
    /// to negate it would not.
    pub(super) fn is_foreign(&self, id: JsonId, keyword: &str) -> bool {
        self.dialect(id).is_foreign(keyword)
    }

    /// A keyword of the schema `id` that only other drafts know.
    pub(super) fn foreign_keyword(&self, id: JsonId) -> Option<&'static str> {
        Dialect::partly_known().find(|keyword| self.has(id, keyword) && self.is_foreign(id, keyword))
    }

    /// Whether what `$ref` stands beside in the schema `id` is ignored.
    pub(super) fn does_ref_hide(&self, id: JsonId) -> bool {
        self.dialect(id).does_ref_hide()
    }

    /// Whether `format` of the schema `id` is enforced; an unknown dialect might ask for it.
    pub(super) fn asserts_formats(&self, id: JsonId) -> bool {
        self.formats == FormatPolicy::Enforce || self.dialect(id) == Dialect::Unknown
    }

    /// `keyword` of a schema of draft 3, to which alone it means something.
    fn of_draft_3(&self, id: JsonId, keyword: &str) -> Option<JsonId> {
        let value = self.document.member(id, keyword)?;
        (self.dialect(id) == Dialect::Draft3).then_some(value)
    }

    /// The types that a schema's own `type`, `const` and `enum` leave possible.
    pub(super) fn possible_types(&self, id: JsonId) -> u8 {
        let named = self.types(id).map_or(ALL, |(types, _)| types);
        let named = named & !self.disallowed(id).unwrap_or(0);
        let listed = self.listed_values(id);
        let listed = listed.map_or(ALL, |values| {
            values.iter().fold(0, |all, v| all | type_of(&self.document[*v]))
        });
        named & listed
    }

    /// The types of `type`, and whether its numbers are integers.
    pub(super) fn types(&self, id: JsonId) -> Result<(u8, bool), CompileError> {
        let names = match self.member(id, "type") {
            None => return Ok((ALL, false)),
            Some(names) => match &self.document[names] {
                Json::Array(items) => items.clone(),
                _ => vec![names],
            },
        };
        let (mut types, mut has_integer, mut has_number) = (0, false, false);
        for name in names {
            let Json::String(name) = &self.document[name] else {
                if self.dialect(id) == Dialect::Draft3 {
                    return Err(self.unsupported(id, "type", "a schema among the types is not enforced"));
                }
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
                "any" if self.dialect(id) == Dialect::Draft3 => {
                    has_number = true;
                    ALL
                }
                _ => return Err(self.malformed(id, "type", &format!("`{name}` is not a type"))),
            };
        }
        Ok((types, has_integer && !has_number))
    }

    /// The types that `disallow` of draft 3 keeps out.
    pub(super) fn disallowed(&self, id: JsonId) -> Result<u8, CompileError> {
        let Some(list) = self.of_draft_3(id, "disallow") else {
            return Ok(0);
        };
        let names = match &self.document[list] {
            Json::Array(items) => items.clone(),
            _ => vec![list],
        };
        let mut types = 0;
        for name in names {
            types |= match &self.document[name] {
                Json::String(name) if name == "null" => NULL,
                Json::String(name) if name == "boolean" => BOOLEAN,
                Json::String(name) if name == "number" => NUMBER,
                Json::String(name) if name == "string" => STRING,
                Json::String(name) if name == "array" => ARRAY,
                Json::String(name) if name == "object" => OBJECT,
                _ => {
                    return Err(self.unsupported(
                        id,
                        "disallow",
                        "only the names of whole types are enforced",
                    ));
                }
            };
        }
        Ok(types)
    }

    /// The divisor of `multipleOf`, or of `divisibleBy` in draft 3.
    pub(super) fn divisor(&self, id: JsonId) -> Result<Option<Decimal>, CompileError> {
        match self.of_draft_3(id, "divisibleBy") {
            Some(_) => self.decimal(id, "divisibleBy"),
            None => self.decimal(id, "multipleOf"),
        }
    }

    /// The schemas of `allOf`, and of `extends` in draft 3.
    pub(super) fn all_of(&self, id: JsonId) -> Result<Vec<JsonId>, CompileError> {
        let mut parts = self.list(id, "allOf")?.to_vec();
        if let Some(extended) = self.of_draft_3(id, "extends") {
            match &self.document[extended] {
                Json::Array(items) => parts.extend(items),
                _ => parts.push(extended),
            }
        }
        Ok(parts)
    }

    pub(super) fn decimal(&self, id: JsonId, keyword: &str) -> Result<Option<Decimal>, CompileError> {
        match self.value(id, keyword) {
            None => Ok(None),
            Some(Json::Number(number)) => Ok(Some(number.clone())),
            Some(_) => Err(self.malformed(id, keyword, "it is not a number")),
        }
    }

    pub(super) fn count(&self, id: JsonId, keyword: &str) -> Result<Option<u32>, CompileError> {
        let Some(number) = self.decimal(id, keyword)? else {
            return Ok(None);
        };
        const MAX: u32 = 1 << 30;
        match number.to_u32().filter(|count| *count < MAX) {
            // So many are never written.
            None if keyword.starts_with("max") && number.is_integer() && !number.is_negative() => Ok(None),
            None => Err(self.malformed(id, keyword, "it is not a count below 2^30")),
            count => Ok(count),
        }
    }

    /// The tighter of `minimum` and `exclusiveMinimum`, and of their counterparts.
    pub(super) fn bounds(&self, id: JsonId) -> Result<[Option<Bound>; 2], CompileError> {
        let lower = self.bound(id, ["minimum", "exclusiveMinimum"], |a, b| a > b)?;
        let upper = self.bound(id, ["maximum", "exclusiveMaximum"], |a, b| a < b)?;
        Ok([lower, upper])
    }

    fn bound(
        &self,
        id: JsonId,
        [plain, exclusive]: [&str; 2],
        is_tighter: impl Fn(&Decimal, &Decimal) -> bool,
    ) -> Result<Option<Bound>, CompileError> {
        let inclusive = self.decimal(id, plain)?;
        // Up to draft 4 the exclusive keyword is a boolean beside the plain one.
        let (is_exclusive, beyond) = match self.value(id, exclusive) {
            Some(Json::Bool(is_exclusive)) => (*is_exclusive, None),
            _ => (false, self.decimal(id, exclusive)?),
        };
        let inclusive = inclusive.map(|value| Bound { value, is_exclusive });
        let beyond = beyond.map(|value| Bound {
            value,
            is_exclusive: true,
        });
        Ok(match (inclusive, beyond) {
            (Some(a), Some(b)) if is_tighter(&a.value, &b.value) => Some(a),
            (a, b) => b.or(a),
        })
    }

    /// The schemas listed by `keyword`; none when it is absent.
    pub(super) fn list(&self, id: JsonId, keyword: &str) -> Result<&'a [JsonId], CompileError> {
        match self.value(id, keyword) {
            None => Ok(&[]),
            Some(Json::Array(items)) if !items.is_empty() => Ok(items),
            Some(_) => Err(self.malformed(id, keyword, "it is not a list with something in it")),
        }
    }

    /// The members of the object that `keyword` has; none when it is absent.
    pub(super) fn members(&self, id: JsonId, keyword: &str) -> Result<&'a [(String, JsonId)], CompileError> {
        match self.value(id, keyword) {
            None => Ok(&[]),
            Some(Json::Object(members)) => Ok(members),
            Some(_) => Err(self.malformed(id, keyword, "it is not an object")),
        }
    }

    /// The names that the list `list` consists of; `id` and `keyword` say where, for errors.
    pub(super) fn names(
        &self,
        list: Option<&'a Json>,
        id: JsonId,
        keyword: &str,
    ) -> Result<Vec<&'a str>, CompileError> {
        let items = match list {
            None => return Ok(Vec::new()),
            Some(Json::Array(items)) => items,
            Some(_) => return Err(self.malformed(id, keyword, "it is not a list")),
        };
        let name = |item: &JsonId| match &self.document[*item] {
            Json::String(name) => Ok(name.as_str()),
            _ => Err(self.malformed(id, keyword, "a name is not a string")),
        };
        items.iter().map(name).collect()
    }

    /// The properties that must be there: those that `required` lists, in draft 3 those that say so.
    pub(super) fn required(&self, id: JsonId) -> Result<Vec<&'a str>, CompileError> {
        let is_listed = matches!(self.value(id, "required"), Some(Json::Array(_)));
        if is_listed || self.dialect(id) != Dialect::Draft3 {
            return self.names(self.value(id, "required"), id, "required");
        }
        let properties = self.members(id, "properties")?.iter();
        let required =
            properties.filter(|(_, value)| self.value(*value, "required") == Some(&Json::Bool(true)));
        Ok(required.map(|(name, _)| name.as_str()).collect())
    }

    pub(super) fn text(&self, id: JsonId, keyword: &str) -> Result<Option<&'a str>, CompileError> {
        match self.value(id, keyword) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.malformed(id, keyword, "it is not a string")),
        }
    }

    pub(super) fn items(&self, id: JsonId) -> Result<Items<'a>, CompileError> {
        let items = self.member(id, "items");
        let has_prefix = self.has(id, "prefixItems");
        if let Some(Json::Array(list)) = items.map(|items| &self.document[items]) {
            if has_prefix {
                return Err(self.malformed(id, "items", "it is a list beside `prefixItems`"));
            }
            return Ok(Items {
                prefix: list,
                rest: self.member(id, "additionalItems"),
            });
        }
        if has_prefix && items.is_some() && self.is_foreign(id, "prefixItems") {
            let why = "the schema's draft does not know it, and beside `items` it would mean something else";
            return Err(self.unsupported(id, "prefixItems", why));
        }
        Ok(Items {
            prefix: self.list(id, "prefixItems")?,
            rest: items,
        })
    }

    /// How many items `contains` asks for.
    pub(super) fn contains_range(&self, id: JsonId) -> Result<(u32, Option<u32>), CompileError> {
        for keyword in ["minContains", "maxContains"] {
            if self.has(id, keyword) && self.is_foreign(id, keyword) {
                return Err(self.unsupported(id, keyword, "the schema's draft does not know it"));
            }
        }
        let min = self.count(id, "minContains")?.unwrap_or(1);
        Ok((min, self.count(id, "maxContains")?))
    }

    /// Whether `uniqueItems` is on.
    pub(super) fn is_unique(&self, id: JsonId) -> Result<bool, CompileError> {
        match self.value(id, "uniqueItems") {
            None => Ok(false),
            Some(Json::Bool(is_unique)) => Ok(*is_unique),
            Some(_) => Err(self.malformed(id, "uniqueItems", "it is not a boolean")),
        }
    }

    /// The values that `enum` or `const` of one schema allows; `None` where it has neither.
    pub(super) fn listed_values(&self, id: JsonId) -> Option<Vec<JsonId>> {
        let constant = self.member(id, "const");
        let listed = self.value(id, "enum").map(|list| match list {
            Json::Array(items) => items.clone(),
            _ => Vec::new(),
        });
        match (constant, listed) {
            (Some(constant), Some(mut listed)) => {
                listed.retain(|value| self.document.is_equal(*value, constant));
                Some(listed)
            }
            (Some(constant), None) => Some(vec![constant]),
            (None, listed) => listed,
        }
    }
}
