//! The texts of an automaton, parted by which of several others accept them.
//!
//! All of them run at once, whatever they say of a text. A part is that one automaton with those of its
//! accepting states in which the others say the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::dfa::{Classes, DEAD, Dfa, TooManyStates};
use crate::hash::Map;
use crate::rows::{Incoming, Rows};

pub(crate) struct Parting {
    classes: Classes,
    rows: Rows,
    into: Incoming,
    /// By state in which a text may end, which of the others accept it.
    answers: Vec<Option<Vec<bool>>>,
}

impl Parting {
    /// The texts of `whole` by which of `others` accept them; `max_states` bounds all of them together.
    pub(crate) fn new(whole: &Dfa, others: &[Arc<Dfa>], max_states: usize) -> Result<Self, TooManyStates> {
        let all: Vec<&Dfa> = [whole]
            .into_iter()
            .chain(others.iter().map(Arc::as_ref))
            .collect();
        let classes = others.iter().map(|other| other.classes());
        let classes = classes.fold(whole.classes().clone(), |all, classes| all.refine(classes));
        let start: Box<[u32]> = all.iter().map(|dfa| dfa.start()).collect();
        let mut next = start.clone();
        let mut ids: Map<Box<[u32]>, u32> = [(start.clone(), 1)].into_iter().collect();
        let mut states = vec![start];
        let mut table = vec![DEAD; classes.len()];
        let mut answers = vec![None];
        while let Some(state) = states.get(answers.len() - 1).cloned() {
            let accept = || {
                all.iter()
                    .zip(&state)
                    .map(|(dfa, state)| dfa.is_accepting(*state))
            };
            answers.push(whole.is_accepting(state[0]).then(|| accept().skip(1).collect()));
            for byte in classes.members() {
                for ((next, dfa), state) in next.iter_mut().zip(&all).zip(&state) {
                    *next = dfa.step(*state, *byte);
                }
                let known = ids.get(&next).copied();
                table.push(match known {
                    _ if next[0] == DEAD => DEAD,
                    Some(known) => known,
                    None => {
                        states.push(next.clone());
                        ids.insert(next.clone(), states.len() as u32);
                        states.len() as u32
                    }
                });
            }
            if states.len() > max_states {
                return Err(TooManyStates);
            }
        }
        let rows = Rows {
            n_columns: classes.len(),
            table,
            accepts: vec![false; answers.len()],
            start: 1,
        };
        Ok(Self {
            into: rows.incoming(|_| true),
            classes,
            rows,
            answers,
        })
    }

    /// States of all automata together.
    pub(crate) fn n_states(&self) -> usize {
        self.answers.len()
    }

    /// All that the others say of texts; what the first one accepts comes first.
    pub(crate) fn answers(&self) -> Vec<Vec<bool>> {
        let all: BTreeSet<_> = self.answers.iter().flatten().cloned().collect();
        all.into_iter().rev().collect()
    }

    /// The texts of which the others say `answer`.
    pub(crate) fn part(&mut self, answer: &[bool]) -> Dfa {
        let accepts = self.answers.iter().map(|other| other.as_deref() == Some(answer));
        self.rows.accepts = accepts.collect();
        Dfa::of_trimmed(self.classes.clone(), self.rows.trimmed_by(&self.into))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dfa::Product;
    use crate::limits::Limits;
    use crate::pattern::{Bounds, Pattern, Syntax};

    #[test]
    fn parts_are_those_of_one_product_after_the_other() {
        let automaton = |source: &str| {
            let pattern = Pattern::parse(source, Syntax::Ecma).expect(source);
            let built = pattern.search(Bounds::new(&Limits::default())).expect(source);
            Arc::new(built.dfa)
        };
        let whole = automaton("^[a-zé]*$");
        for sources in [
            &["^ab$", "^ac$", "^é"][..],
            &["a", "b", "^(?!.*c)"],
            &["^a", "^a", "z$"],
            &[""],
            &["^[0-9]$"],
        ] {
            let others: Vec<Arc<Dfa>> = sources.iter().map(|source| automaton(source)).collect();
            let mut parting = Parting::new(&whole, &others, usize::MAX).expect("no limit is set");
            let mut found = Vec::new();
            for n in (0..1u32 << others.len()).rev() {
                let bits = (0..others.len()).rev().map(|bit| n >> bit & 1 == 1);
                let answer: Vec<bool> = bits.collect();
                let rules = answer
                    .iter()
                    .map(|is| [Product::FirstOnly, Product::Both][usize::from(*is)]);
                let part = rules.zip(&others).fold((*whole).clone(), |part, (rule, other)| {
                    part.product(other, rule, usize::MAX).expect("no limit is set")
                });
                if part.start() != DEAD {
                    assert_eq!(parting.part(&answer), part, "{sources:?} {answer:?}");
                    found.push(answer);
                }
            }
            assert_eq!(parting.answers(), found, "{sources:?}");
        }
        assert!(Parting::new(&whole, &[automaton("abc")], 3).is_err());
    }
}
