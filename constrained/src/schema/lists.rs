//! Alternatives that only list strings: all of them together are one list, however many there are.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::alternatives::Branch;
use super::facts::{Goal, Target};
use super::keywords::STRING;
use super::{CompileError, Compiler};
use crate::json::{Json, JsonId};

/// Alternatives of one schema.
pub(super) struct Parted {
    /// Those that only list strings.
    pub(super) lists: Vec<Target>,
    pub(super) others: Vec<Target>,
}

impl Compiler<'_> {
    /// `targets` parted, when several only list strings.
    pub(super) fn part_lists(&self, targets: Vec<Target>) -> Parted {
        let (lists, others): (Vec<Target>, Vec<Target>) =
            targets.iter().partition(|target| self.is_list(target.id));
        if lists.len() > 1 {
            return Parted { lists, others };
        }
        Parted {
            lists: Vec::new(),
            others: targets,
        }
    }

    /// Whether the schema says nothing but which strings it allows.
    fn is_list(&self, id: JsonId) -> bool {
        let asserts = |keyword: &str| keyword != "enum" && keyword != "const" && self.has(id, keyword);
        let Some(values) = self.listed_values(id) else {
            return false;
        };
        let is_text = |value: &JsonId| matches!(self.document[*value], Json::String(_));
        values.iter().all(is_text)
            && self.possible_types(id) == STRING
            && !super::disjoint::ASSERTIONS.iter().any(|keyword| asserts(keyword))
    }

    /// The strings that one of `lists` has.
    pub(super) fn any_listed(&mut self, lists: &[Target]) -> Result<Branch, CompileError> {
        let counts = self.count_listed(lists)?;
        Ok(Branch::of_values(
            counts.into_values().map(|(value, _)| value).collect(),
        ))
    }

    /// The strings that exactly one of `lists` has and none of `others`.
    pub(super) fn once_listed(
        &mut self,
        lists: &[Target],
        others: &[Target],
    ) -> Result<Branch, CompileError> {
        let counts = self.count_listed(lists)?;
        let once = counts.into_values().filter(|(_, n)| *n == 1);
        let mut values: Vec<JsonId> = once.map(|(value, _)| value).collect();
        let mut goals = Vec::new();
        for other in others {
            if self.possible_types(other.id) & STRING == 0 {
                continue;
            }
            let judged: Vec<Option<bool>> = values.iter().map(|value| self.judge(*value, other.id)).collect();
            if judged.contains(&None) {
                goals.push(Goal::Fails(*other));
            }
            let mut judged = judged.into_iter();
            values.retain(|_| judged.next() != Some(Some(true)));
        }
        let mut branch = Branch::of_values(values.into());
        branch.goals = goals;
        Ok(branch)
    }

    /// The strings that several of `lists` have.
    pub(super) fn listed_twice(&mut self, lists: &[Target]) -> Result<Option<Branch>, CompileError> {
        let counts = self.count_listed(lists)?;
        let twice = counts.into_values().filter(|(_, n)| *n > 1);
        let twice: Rc<[JsonId]> = twice.map(|(value, _)| value).collect();
        Ok((!twice.is_empty()).then(|| Branch::of_values(twice)))
    }

    /// The strings of `lists`, each with the number of lists that have it.
    fn count_listed(&mut self, lists: &[Target]) -> Result<BTreeMap<&'_ str, (JsonId, usize)>, CompileError> {
        let mut counts: BTreeMap<&str, (JsonId, usize)> = BTreeMap::new();
        let document = self.document;
        let mut n_values = 0;
        for target in lists {
            let mut values = self.listed_values(target.id).unwrap_or_default();
            // A value counts once for each list.
            values.sort_unstable_by_key(|value| match &document[*value] {
                Json::String(text) => text.as_str(),
                _ => "",
            });
            values.dedup_by(|a, b| document.is_equal(*a, *b));
            n_values += values.len();
            for value in values {
                if let Json::String(text) = &document[value] {
                    counts.entry(text).or_insert((value, 0)).1 += 1;
                }
            }
        }
        self.spend(n_values as u64 * 8)?;
        Ok(counts)
    }
}

impl Branch {
    /// One of `values`, which are strings.
    fn of_values(values: Rc<[JsonId]>) -> Self {
        Self {
            values: Some(values),
            ..Self::of_types(STRING)
        }
    }
}
