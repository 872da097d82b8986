//! The facts of one alternative, merged per JSON type and lowered to nodes.

use std::sync::Arc;

use super::facts::{Broken, Fact, Facts};
use super::keywords::{ARRAY, BOOLEAN, NULL, NUMBER, OBJECT, STRING};
use super::{CompileError, Compiler, Dfa, Json, JsonId, NodeId};
use crate::decimal::Decimal;
use crate::number::{Bound, NumberSpec};

/// What the facts say about numbers and strings.
#[derive(Default)]
pub(super) struct Merged {
    pub(super) number: NumberSpec,
    pub(super) min_length: u32,
    pub(super) max_length: Option<u32>,
    pub(super) contents: Vec<Arc<Dfa>>,
    /// Contents that are kept out.
    pub(super) no_contents: Vec<Arc<Dfa>>,
}

impl Compiler<'_> {
    pub(super) fn lower_facts(&mut self, facts: &Facts) -> Result<NodeId, CompileError> {
        let merged = self.merge(facts)?;
        match self.values_of(facts)? {
            Some(values) => self.lower_values(&values, facts, &merged),
            None => self.lower_types(facts, &merged),
        }
    }

    /// The values that all lists of `facts` have, when there is one.
    pub(super) fn values_of(&mut self, facts: &Facts) -> Result<Option<Vec<JsonId>>, CompileError> {
        let listed = facts
            .plain
            .iter()
            .filter_map(|target| self.listed_values(target.id));
        let lists: Vec<Vec<JsonId>> = listed
            .chain(facts.equal.iter().map(|value| vec![*value]))
            .chain(facts.listed.iter().map(|values| values.to_vec()))
            .collect();
        let Some((values, others)) = lists.split_first() else {
            return Ok(None);
        };
        let n_other: usize = others.iter().map(Vec::len).sum::<usize>() + facts.different.len();
        self.spend(values.len() as u64 * (1 + n_other as u64))?;
        let document = self.document;
        let is_in = |value: JsonId, list: &[JsonId]| list.iter().any(|v| document.is_equal(value, *v));
        let fits =
            |value: &JsonId| others.iter().all(|l| is_in(*value, l)) && !is_in(*value, &facts.different);
        Ok(Some(values.iter().copied().filter(fits).collect()))
    }

    pub(super) fn merge(&mut self, facts: &Facts) -> Result<Merged, CompileError> {
        let mut merged = Merged::default();
        for target in &facts.plain {
            let id = target.id;
            merged.number.is_integer |= self.types(id)?.1;
            let [lower, upper] = self.bounds(id)?;
            tighten(&mut merged.number, lower, upper);
            merged.number.multiples.extend(self.divisor(id)?);
            merged.min_length = merged.min_length.max(self.count(id, "minLength")?.unwrap_or(0));
            let max = self.count(id, "maxLength")?;
            merged.max_length = merged.max_length.into_iter().chain(max).min();
            if facts.types & STRING != 0 {
                self.merge_pattern(id, &mut merged)?;
                merged.contents.extend(self.format_of(id)?);
            }
        }
        for fact in &facts.list {
            if fact.type_bit() & facts.types == 0 {
                continue;
            }
            match *fact {
                Fact::Broken(id, what) => self.merge_broken(id, what, &mut merged)?,
                Fact::MinLength(min) => merged.min_length = merged.min_length.max(min),
                Fact::MaxLength(max) => {
                    merged.max_length = merged.max_length.into_iter().chain([max]).min();
                }
                _ => {}
            }
        }
        for value in &facts.different {
            if let Json::Number(number) = &self.document[*value] {
                merged.number.excluded.push(number.clone());
            }
        }
        Ok(merged)
    }

    fn merge_broken(&mut self, id: JsonId, what: Broken, merged: &mut Merged) -> Result<(), CompileError> {
        let flipped = |bound: Bound| Bound {
            value: bound.value,
            is_exclusive: !bound.is_exclusive,
        };
        match what {
            Broken::Integer => merged.number.nonmultiples.push(Decimal::one()),
            Broken::Lower => {
                let [lower, _] = self.bounds(id)?;
                tighten(&mut merged.number, None, lower.map(flipped));
            }
            Broken::Upper => {
                let [_, upper] = self.bounds(id)?;
                tighten(&mut merged.number, upper.map(flipped), None);
            }
            Broken::MultipleOf => {
                let divisor = self.divisor(id)?;
                merged.number.nonmultiples.extend(divisor);
            }
            Broken::Pattern => merged.no_contents.extend(self.pattern_of(id)?),
            Broken::Format => merged.no_contents.extend(self.format_of(id)?),
        }
        Ok(())
    }

    fn lower_types(&mut self, facts: &Facts, merged: &Merged) -> Result<NodeId, CompileError> {
        let document = self.document;
        let is_out = |value: &Json| facts.different.iter().any(|other| document[*other] == *value);
        let mut nodes = Vec::new();
        if facts.types & NULL != 0 && !is_out(&Json::Null) {
            nodes.push(self.ir.literal("null"));
        }
        if facts.types & BOOLEAN != 0 {
            let words = [(true, &b"true"[..]), (false, b"false")];
            let words = words
                .into_iter()
                .filter(|(value, _)| !is_out(&Json::Bool(*value)));
            let words = Dfa::of_strings(words.map(|(_, word)| word));
            nodes.push(self.ir.dfa(words));
        }
        if facts.types & NUMBER != 0 {
            nodes.push(self.lower_number(facts, merged)?);
        }
        if facts.types & STRING != 0 {
            let node = self.lower_string(facts, merged);
            nodes.push(node.or_else(|error| self.without_contents(&error, facts, merged))?);
        }
        if facts.types & ARRAY != 0 {
            let node = self.lower_array(facts);
            nodes.push(node.inspect_err(|_| self.blame_facts(facts, ARRAY))?);
        }
        if facts.types & OBJECT != 0 {
            let node = self.lower_object(facts);
            nodes.push(node.inspect_err(|_| self.blame_facts(facts, OBJECT))?);
        }
        Ok(self.ir.alt(nodes))
    }

    fn lower_number(&mut self, facts: &Facts, merged: &Merged) -> Result<NodeId, CompileError> {
        let is_any = merged.number == NumberSpec::default();
        if let Some(node) = self.number.filter(|_| is_any) {
            return Ok(node);
        }
        let node = self.number_node(&merged.number, facts);
        let node = node.or_else(|error| self.without_bounds(&error, facts, merged))?;
        if is_any {
            self.number = Some(node);
        }
        Ok(node)
    }

    /// The largest of the minima and the smallest of the maxima that the schemas state.
    pub(super) fn range(
        &self,
        facts: &Facts,
        min: &str,
        max: &str,
    ) -> Result<(u32, Option<u32>), CompileError> {
        let (mut lower, mut upper) = (0, None);
        for target in &facts.plain {
            lower = lower.max(self.count(target.id, min)?.unwrap_or(0));
            upper = upper.into_iter().chain(self.count(target.id, max)?).min();
        }
        Ok((lower, upper))
    }
}

/// Takes the bounds into `spec` where they are tighter.
fn tighten(spec: &mut NumberSpec, lower: Option<Bound>, upper: Option<Bound>) {
    let is_tighter = |slot: &Option<Bound>, new: &Bound, is_beyond: fn(&Decimal, &Decimal) -> bool| {
        slot.as_ref()
            .is_none_or(|old| is_beyond(&new.value, &old.value) || new.is_exclusive && new.value == old.value)
    };
    if let Some(lower) = lower.filter(|new| is_tighter(&spec.min, new, |a, b| a > b)) {
        spec.min = Some(lower);
    }
    if let Some(upper) = upper.filter(|new| is_tighter(&spec.max, new, |a, b| a < b)) {
        spec.max = Some(upper);
    }
}
