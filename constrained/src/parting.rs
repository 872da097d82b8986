//! The texts of an automaton, parted by which of several others accept them.
//!
//! All of them run at once, whatever they say of a text. A part is that one automaton with those of its
//! accepting states in which the others say the same.

use std::sync::Arc;

use crate::dfa::{Classes, DEAD, Dfa, TooManyStates};
use crate::hash::Map;
use crate::rows::{Incoming, Rows};

pub(crate) struct Parting {
    classes: Classes,
    rows: Rows,
    into: Incoming,
    /// All that the others say of texts; what the first one accepts comes first.
    answers: Vec<Vec<bool>>,
    /// By state, which of them it is; [`NONE`] where no text of the first automaton ends.
    answer_ids: Vec<u32>,
    /// States of the automata by themselves.
    n_apart: usize,
}

const NONE: u32 = u32::MAX;

/// The states in which those of the others are that a text leads anywhere, each behind its number.
type Alive = Vec<(u32, u32)>;

/// All automata at once: a state is one of the first, and where the others are.
struct Explorer<'a> {
    whole: &'a Dfa,
    others: &'a [Arc<Dfa>],
    states: Vec<(u32, Alive)>,
    /// Where one of the others is alive, or none: most texts soon leave all others behind.
    few: Map<(u32, u32, u32), u32>,
    many: Map<(u32, Alive), u32>,
}

impl Explorer<'_> {
    fn number(&mut self, state: &(u32, Alive)) -> u32 {
        let fresh = self.states.len() as u32 + 1;
        let id = match state.1[..] {
            [] => *self.few.entry((state.0, NONE, 0)).or_insert(fresh),
            [(other, at)] => *self.few.entry((state.0, other, at)).or_insert(fresh),
            _ => match self.many.get(state) {
                Some(known) => *known,
                None => {
                    self.many.insert(state.clone(), fresh);
                    fresh
                }
            },
        };
        if id == fresh {
            self.states.push(state.clone());
        }
        id
    }

    fn step(&self, (whole, alive): &(u32, Alive), byte: u8, next: &mut (u32, Alive)) {
        next.0 = self.whole.step(*whole, byte);
        next.1.clear();
        if next.0 == DEAD {
            return;
        }
        for (other, at) in alive {
            let at = self.others[*other as usize].step(*at, byte);
            if at != DEAD {
                next.1.push((*other, at));
            }
        }
    }

    /// What the others say, and by state which of it, the dead state first.
    fn answers(&self) -> (Vec<Vec<bool>>, Vec<u32>) {
        let mut ids: Map<Vec<u32>, u32> = Map::default();
        let mut answer_ids = vec![NONE];
        for (whole, alive) in &self.states {
            if !self.whole.is_accepting(*whole) {
                answer_ids.push(NONE);
                continue;
            }
            let accept = |(other, at): &&(u32, u32)| self.others[*other as usize].is_accepting(*at);
            let accepting = alive.iter().filter(accept).map(|(other, _)| *other);
            let fresh = ids.len() as u32;
            answer_ids.push(*ids.entry(accepting.collect()).or_insert(fresh));
        }
        let mut answers: Vec<(Vec<bool>, u32)> = Vec::new();
        for (accepting, id) in ids {
            let others = 0..self.others.len() as u32;
            answers.push((others.map(|other| accepting.contains(&other)).collect(), id));
        }
        answers.sort_unstable_by(|a, b| b.cmp(a));
        let mut places = vec![0; answers.len()];
        for (place, (_, id)) in (0..).zip(&answers) {
            places[*id as usize] = place;
        }
        let states = answer_ids.iter_mut().filter(|id| **id != NONE);
        states.for_each(|id| *id = places[*id as usize]);
        (
            answers.into_iter().map(|(answer, _)| answer).collect(),
            answer_ids,
        )
    }
}

impl Parting {
    /// The texts of `whole` by which of `others` accept them; `max_states` bounds all of them together.
    pub(crate) fn new(whole: &Dfa, others: &[Arc<Dfa>], max_states: usize) -> Result<Self, TooManyStates> {
        let classes = others.iter().map(|other| other.classes());
        let classes = classes.fold(whole.classes().clone(), |all, classes| all.refine(classes));
        let mut explorer = Explorer {
            whole,
            others,
            states: Vec::new(),
            few: Map::default(),
            many: Map::default(),
        };
        let starts = (0..).zip(others).map(|(other, dfa)| (other, dfa.start()));
        let alive = starts.filter(|(_, at)| *at != DEAD).collect();
        explorer.number(&(whole.start(), alive));
        let mut table = vec![DEAD; classes.len()];
        let (mut next, mut last, mut last_id) = ((DEAD, Vec::new()), (DEAD, Vec::new()), DEAD);
        let mut at = 0;
        while let Some(state) = explorer.states.get(at).cloned() {
            at += 1;
            for byte in classes.members() {
                explorer.step(&state, *byte, &mut next);
                // Neighbouring classes often lead to the same.
                if next != last {
                    last_id = match next.0 {
                        DEAD => DEAD,
                        _ => explorer.number(&next),
                    };
                    std::mem::swap(&mut next, &mut last);
                }
                table.push(last_id);
            }
            if explorer.states.len() > max_states {
                return Err(TooManyStates);
            }
        }
        let (answers, answer_ids) = explorer.answers();
        let rows = Rows {
            n_columns: classes.len(),
            table,
            accepts: vec![false; answer_ids.len()],
            start: 1,
        };
        Ok(Self {
            into: rows.incoming(|_| true),
            classes,
            rows,
            answers,
            answer_ids,
            n_apart: others
                .iter()
                .fold(whole.n_states(), |n, other| n + other.n_states()),
        })
    }

    /// States of all automata together.
    pub(crate) fn n_states(&self) -> usize {
        self.answer_ids.len()
    }

    /// All that the others say of texts; what the first one accepts comes first.
    pub(crate) fn answers(&self) -> &[Vec<bool>] {
        &self.answers
    }

    /// The texts of which the others say the answer number `answer`.
    ///
    /// A text mostly leaves all others behind, or all but one, and then no two states of the part are alike.
    /// Only where that is not so, it is made as small as it can be.
    pub(crate) fn part(&mut self, answer: usize) -> Dfa {
        let accepts = self.answer_ids.iter().map(|id| *id as usize == answer);
        self.rows.accepts = accepts.collect();
        let rows = self.rows.trimmed_by(&self.into);
        if rows.n_states() > self.n_apart {
            return Dfa::of_trimmed(self.classes.clone(), rows);
        }
        Dfa::of_distinct(self.classes.clone(), rows)
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
                    let own = parting.part(found.len());
                    let is_within = |a: &Dfa, b: &Dfa| {
                        let rest = a.product(b, Product::FirstOnly, usize::MAX);
                        rest.expect("no limit is set").start() == DEAD
                    };
                    assert!(
                        is_within(&own, &part) && is_within(&part, &own),
                        "{sources:?} {answer:?}"
                    );
                    found.push(answer);
                }
            }
            assert_eq!(parting.answers(), found, "{sources:?}");
        }
        assert!(Parting::new(&whole, &[automaton("abc")], 3).is_err());
    }
}
