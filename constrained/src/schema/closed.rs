//! Objects that are closed where their schema does not say ([`AdditionalProperties::Closed`]).
//!
//! What holds of an object may come from several schemas: neighbours of `$ref`, `allOf`, a branch of `anyOf`.
//! They close it together, so that each may name members that the others do not: as if the schema around them
//! said `unevaluatedProperties: false`. A schema names a member in `properties`, `patternProperties`,
//! `required`, `dependentRequired`, `dependentSchemas` and `dependencies`; what it says of members where it
//! must fail names none. An object stays open where none of them, conditions (`if`) apart, has `properties`
//! or `patternProperties`, where one says something of the others (`additionalProperties`,
//! `unevaluatedProperties`), and where more members must be there than are named.
//!
//! Invariant: it only takes members away, and never the last way to satisfy the same schemas.

use std::collections::BTreeSet;

use super::alternatives::DEPENDENT;
use super::facts::{Fact, Facts, NameId, Target};
use super::strings::accepts;
use super::{AdditionalProperties, CompileError, Compiler, Json, JsonId};

impl Compiler<'_> {
    /// Whether members that are not named are kept out of objects with these facts.
    pub(super) fn is_closed(&self, facts: &Facts) -> bool {
        let has = |target: &Target, keywords: [&str; 2]| keywords.iter().any(|k| self.has(target.id, k));
        let names = |target: &Target| has(target, ["properties", "patternProperties"]);
        let opens = |target: &Target| has(target, ["additionalProperties", "unevaluatedProperties"]);
        self.additional_properties == AdditionalProperties::Closed
            && !facts.is_partial
            && !facts.plain.iter().any(opens)
            && facts
                .plain
                .iter()
                .any(|target| names(target) && !self.is_condition(target.id))
    }

    /// Whether the schema `id` is a part of the condition of an `if`.
    fn is_condition(&self, mut id: JsonId) -> bool {
        let is_value_of =
            |id: JsonId, keyword: &str| self.document.member(self.document.parent(id), keyword) == Some(id);
        while id != 0 {
            let parent = self.document.parent(id);
            // A property may be called so, too.
            if is_value_of(id, "if") && !is_value_of(parent, "properties") {
                return true;
            }
            id = parent;
        }
        false
    }

    /// `ways` less those that need a member that is not named, where the same schemas hold in another way.
    pub(super) fn without_unnamed(&mut self, mut ways: Vec<Facts>) -> Result<Vec<Facts>, CompileError> {
        if self.additional_properties == AdditionalProperties::Open {
            return Ok(ways);
        }
        let mut needs = Vec::new();
        for facts in &ways {
            needs.push(self.needs_unnamed(facts)?);
        }
        let others = ways.iter().zip(&needs).filter(|(_, needs)| !**needs);
        let others: BTreeSet<_> = others.map(|(facts, _)| facts.plain.clone()).collect();
        let mut needs = needs.into_iter();
        ways.retain(|facts| needs.next() == Some(false) || !others.contains(&facts.plain));
        Ok(ways)
    }

    fn needs_unnamed(&mut self, facts: &Facts) -> Result<bool, CompileError> {
        let needed = facts.list.iter().filter_map(|fact| match fact {
            Fact::Member(name, _) => Some(*name),
            _ => None,
        });
        let needed: Vec<NameId> = needed.collect();
        if needed.is_empty() || !self.is_closed(facts) {
            return Ok(false);
        }
        for name in needed {
            if !self.is_named(facts, name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn is_named(&mut self, facts: &Facts, name: NameId) -> Result<bool, CompileError> {
        let name = self.name(name);
        for target in &facts.plain {
            let id = target.id;
            self.spend(4)?;
            if self.value_of_property(id, &name).is_some() || self.required(id)?.contains(&name.as_str()) {
                return Ok(true);
            }
            for keyword in DEPENDENT {
                for (trigger, value) in self.members(id, keyword)? {
                    let needed = Some(&self.document[*value]).filter(|list| matches!(list, Json::Array(_)));
                    if *trigger == name || self.names(needed, id, keyword)?.contains(&name.as_str()) {
                        return Ok(true);
                    }
                }
            }
            for (source, _) in self.members(id, "patternProperties")? {
                if accepts(&*self.search(source, id, "patternProperties")?, &name) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
