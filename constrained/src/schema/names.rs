//! Property names as sets of strings: declared ones, those that a pattern matches, and all others.

use std::sync::Arc;

use super::facts::{Facts, Goal, NameId, Target, Witness};
use super::strings::accepts;
use super::{CompileError, Compiler, Dfa, Json, JsonId};
use crate::dfa::Product;
use crate::parting::Parting;
use crate::text::any_content;

/// The `patternProperties` of all schemas of an object, each pattern once.
#[derive(Default)]
pub(super) struct Patterns {
    sources: Vec<String>,
    pub(super) automata: Vec<Arc<Dfa>>,
}

/// Names that no constraint tells apart.
pub(super) struct NameClass {
    /// `None`: any name at all.
    pub(super) names: Option<Dfa>,
    /// By pattern, whether it matches these names.
    pub(super) is_matched: Vec<bool>,
}

const WHAT: &str = "the property names";

impl Patterns {
    pub(super) fn matches(&self, name: &str) -> Vec<bool> {
        self.automata.iter().map(|dfa| accepts(dfa, name)).collect()
    }
}

impl Compiler<'_> {
    /// The number of `source` among `patterns`.
    pub(super) fn pattern_number(
        &mut self,
        source: &str,
        id: JsonId,
        patterns: &mut Patterns,
    ) -> Result<usize, CompileError> {
        if let Some(known) = patterns.sources.iter().position(|known| known == source) {
            return Ok(known);
        }
        let dfa = self.search(source, id, "patternProperties")?;
        patterns.sources.push(source.to_owned());
        patterns.automata.push(dfa);
        Ok(patterns.automata.len() - 1)
    }

    /// All names but `declared`.
    fn other_names(&mut self, declared: &[NameId]) -> Result<Dfa, CompileError> {
        let n_bytes: usize = declared.iter().map(|name| self.names[*name as usize].len()).sum();
        self.spend(200 + n_bytes as u64 * 8)?;
        let names = declared.iter().map(|name| self.names[*name as usize].as_bytes());
        Ok(Dfa::all_but(names.collect()))
    }

    /// The names that are not `declared` and that `allowed` has; `None` for any name at all.
    pub(super) fn undeclared(
        &mut self,
        declared: &[NameId],
        allowed: Option<&Dfa>,
        at: JsonId,
    ) -> Result<Option<Dfa>, CompileError> {
        let names = match declared {
            [] => None,
            _ => Some(self.other_names(declared)?),
        };
        Ok(match (names, allowed) {
            (names, None) => names,
            (None, Some(allowed)) => Some(allowed.clone()),
            (Some(names), Some(allowed)) => Some(self.product(&names, allowed, Product::Both, WHAT, at)?),
        })
    }

    /// `names` parted by the patterns that match them.
    pub(super) fn parted(
        &mut self,
        names: Option<Dfa>,
        patterns: &Patterns,
        at: JsonId,
    ) -> Result<Parting, CompileError> {
        let names = names.unwrap_or_else(|| (*any_content()).clone());
        let parting = Parting::new(&names, &patterns.automata, self.ir.bounds().max_states);
        let parting = parting.map_err(|_| self.automaton_limit(WHAT, at))?;
        if parting.answers().len() > self.limits.max_branches {
            return Err(CompileError::Limit {
                name: "max_branches",
                limit: self.limits.max_branches as u64,
                place: format!("the `patternProperties` of {}", self.document.pointer(at)),
            });
        }
        self.spend(1_000 + parting.n_states() as u64 * 100)?;
        Ok(parting)
    }

    /// The names that `propertyNames` of the schemas of `facts` allow; `None` for all.
    pub(super) fn allowed_names(&mut self, facts: &Facts) -> Result<Option<Dfa>, CompileError> {
        let mut goals = Vec::new();
        for target in &facts.plain {
            if let Some(names) = self.member(target.id, "propertyNames") {
                goals.push(Goal::Holds(self.within(*target, names)));
            }
        }
        if goals.is_empty() {
            return Ok(None);
        }
        self.strings(&goals, facts.first()).map(Some)
    }

    /// What `witness` may be called, and what holds of its value.
    pub(super) fn witness_names(&mut self, witness: Witness) -> Result<(Dfa, Option<Goal>), CompileError> {
        match witness {
            Witness::Pattern { at, n } => {
                let (source, value) = &self.members(at.id, "patternProperties")?[n as usize];
                let names = self.search(source, at.id, "patternProperties")?;
                let goal = Goal::Fails(self.within(at, *value));
                Ok(((*names).clone(), Some(goal)))
            }
            Witness::Additional { at } => {
                let value = self.member(at.id, "additionalProperties");
                let value = value.expect("the witness was made for it");
                let goal = Goal::Fails(self.within(at, value));
                Ok((self.additional_names(at)?, Some(goal)))
            }
            Witness::Name { at } => {
                let names = self.member(at.id, "propertyNames");
                let names = names.expect("the witness was made for it");
                let goal = Goal::Fails(self.within(at, names));
                Ok((self.strings(&[goal], at.id)?, None))
            }
            Witness::Other { value } => {
                let Json::Object(members) = &self.document[value] else {
                    unreachable!("the witness was made for an object");
                };
                let known: Vec<NameId> = members.iter().map(|(name, _)| self.name_id(name)).collect();
                Ok((self.other_names(&known)?, None))
            }
        }
    }

    /// The names that `additionalProperties` of the schema `at` speaks of.
    fn additional_names(&mut self, at: Target) -> Result<Dfa, CompileError> {
        let own = self.members(at.id, "properties")?;
        let own: Vec<NameId> = own.iter().map(|(name, _)| self.name_id(name)).collect();
        let mut names = self.other_names(&own)?;
        for (source, _) in self.members(at.id, "patternProperties")? {
            let matched = self.search(source, at.id, "patternProperties")?;
            names = self.product(&names, &matched, Product::FirstOnly, WHAT, at.id)?;
        }
        Ok(names)
    }
}
