//! Expressions' automata made deterministic, with every step counted.
//!
//! A state is the set of automaton states that a text leads to, those that need no character followed
//! already. An assertion stays in the set until the next character, or the end, decides it; the state then
//! also holds what matters of the character before.

use super::letters::{Letter, Letters};
use super::look::Neighbour;
use super::nfa::{Nfa, State};
use crate::hash::Map;
use crate::rows::{DEAD, Rows};

/// What was too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    States,
    Work,
}

/// What making an automaton may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) max_states: usize,
    pub(super) max_work: u64,
    pub(super) n_work: u64,
}

impl Budget {
    pub(super) fn spend(&mut self, n_work: usize) -> Result<(), Excess> {
        self.n_work += n_work as u64;
        if self.n_work > self.max_work {
            return Err(Excess::Work);
        }
        Ok(())
    }

    pub(super) fn check_states(&self, n_states: usize) -> Result<(), Excess> {
        if n_states > self.max_states {
            return Err(Excess::States);
        }
        Ok(())
    }
}

struct Determinizer<'a> {
    nfa: &'a Nfa,
    letters: &'a Letters,
    ids: Map<(Box<[u32]>, Neighbour), u32>,
    sets: Vec<(Box<[u32]>, Neighbour)>,
    /// Where sets of states before their closure lead: many letters have the same.
    known: Map<(Vec<u32>, Neighbour), u32>,
    /// By automaton state, the closure that it was last met in.
    met: Vec<u32>,
    n_closures: u32,
    budget: &'a mut Budget,
}

/// The texts that `nfa` matches from end to end: rows with a column for each letter.
pub(super) fn determinize(nfa: &Nfa, letters: &Letters, budget: &mut Budget) -> Result<Rows, Excess> {
    let mut own = Determinizer {
        nfa,
        letters,
        ids: Map::default(),
        sets: Vec::new(),
        known: Map::default(),
        met: vec![0; nfa.states.len()],
        n_closures: 0,
        budget,
    };
    own.budget.spend(nfa.states.len())?;
    let start = own.closure(&[nfa.start], Neighbour::Outside, None)?;
    let mut rows = Rows::dead(letters.n_letters());
    rows.start = own.state(start, Neighbour::Outside)?;
    let mut buckets = vec![Vec::new(); letters.n_letters()];
    let mut at = 0;
    while at < own.sets.len() {
        rows.accepts.push(own.is_accepting(at)?);
        own.step(at, &mut buckets, &mut rows.table)?;
        at += 1;
        own.budget.check_states(own.sets.len())?;
    }
    Ok(rows)
}

impl Determinizer<'_> {
    /// The number of the state of `set` after `before`, counted from 1.
    fn state(&mut self, set: Vec<u32>, before: Neighbour) -> Result<u32, Excess> {
        if set.is_empty() {
            return Ok(DEAD);
        }
        let has_looks = set.iter().any(|id| self.is_look(*id));
        let key = (set.into(), if has_looks { before } else { Neighbour::Other });
        if let Some(known) = self.ids.get(&key) {
            return Ok(*known);
        }
        self.budget.spend(1 + key.0.len())?;
        self.sets.push(key.clone());
        let id = self.sets.len() as u32;
        self.ids.insert(key, id);
        Ok(id)
    }

    fn is_look(&self, id: u32) -> bool {
        matches!(self.nfa.states[id as usize], State::Look { .. })
    }

    /// The states of `from` and those reached without a character that take one, match or assert something,
    /// ascending. Between `before` and `after` assertions are decided; without `after` they stay.
    fn closure(
        &mut self,
        from: &[u32],
        before: Neighbour,
        after: Option<Neighbour>,
    ) -> Result<Vec<u32>, Excess> {
        self.n_closures += 1;
        let (mut todo, mut found) = (from.to_vec(), Vec::new());
        let mut n_met = 0;
        while let Some(id) = todo.pop() {
            n_met += 1;
            if std::mem::replace(&mut self.met[id as usize], self.n_closures) == self.n_closures {
                continue;
            }
            match &self.nfa.states[id as usize] {
                State::Class { .. } | State::Match => found.push(id),
                State::Look { look, next } => match after {
                    None => found.push(id),
                    Some(after) if look.holds(before, after) => todo.push(*next),
                    Some(_) => {}
                },
                State::Split(nexts) => todo.extend_from_slice(nexts),
                State::Around { .. } => unreachable!("look-around is made deterministic elsewhere"),
            }
        }
        self.budget.spend(3 * n_met)?;
        found.sort_unstable();
        self.nfa.drop_superfluous(&mut found);
        Ok(found)
    }

    fn is_accepting(&mut self, at: usize) -> Result<bool, Excess> {
        let (mut set, before) = self.sets[at].clone();
        if set.iter().any(|id| self.is_look(*id)) {
            set = self.closure(&set, before, Some(Neighbour::Outside))?.into();
        }
        // State 0 is the match.
        Ok(set.first() == Some(&0))
    }

    /// Adds the row of state `at` to `table`; `buckets` are empty before and after.
    fn step(&mut self, at: usize, buckets: &mut [Vec<u32>], table: &mut Vec<u32>) -> Result<(), Excess> {
        let (set, before) = self.sets[at].clone();
        self.budget.spend(buckets.len() / 4)?;
        if !set.iter().any(|id| self.is_look(*id)) {
            self.spread(&set, None, buckets)?;
        } else {
            for after in self.letters.neighbours() {
                let decided = self.closure(&set, before, Some(after))?;
                self.spread(&decided, Some(after), buckets)?;
            }
        }
        // Neighbouring letters often lead to the same.
        let mut last = (Vec::new(), Neighbour::Other, DEAD);
        for (letter, bucket) in (0..).zip(buckets) {
            if bucket.is_empty() {
                table.push(DEAD);
                continue;
            }
            bucket.sort_unstable();
            bucket.dedup();
            let seen = self.letters.seen(letter);
            if last.0 != *bucket || last.1 != seen {
                let key = (std::mem::take(bucket), seen);
                let next = match self.known.get(&key) {
                    Some(known) => *known,
                    None => {
                        let set = self.closure(&key.0, seen, None)?;
                        let next = self.state(set, seen)?;
                        self.known.insert(key.clone(), next);
                        next
                    }
                };
                last = (key.0, seen, next);
            }
            table.push(last.2);
            bucket.clear();
        }
        Ok(())
    }

    /// Puts where the states of `set` lead into the buckets of the letters of which `only` is seen, or of
    /// all.
    fn spread(
        &mut self,
        set: &[u32],
        only: Option<Neighbour>,
        buckets: &mut [Vec<u32>],
    ) -> Result<(), Excess> {
        let letters = self.letters;
        for id in set {
            let State::Class { class, next } = self.nfa.states[*id as usize] else {
                continue;
            };
            let of_class: &[Letter] = letters.of(class);
            self.budget.spend(1 + of_class.len())?;
            for letter in of_class {
                if only.is_none_or(|only| only == letters.seen(*letter)) {
                    buckets[usize::from(*letter)].push(next);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use regex_automata::meta::Regex;

    use crate::dfa::Built;
    use crate::error::CompileError;
    use crate::limits::Limits;
    use crate::pattern::{Bounds, Pattern, Syntax};

    const PATTERNS: [&str; 18] = [
        "(?:a|b)*a(?:a|b){3}",
        "(?:a?){5}b?",
        "a{0,3}(?:ab|ba)*",
        "^a*$",
        "(?:^a|b)*",
        "(?-u:\\b)a+(?-u:\\b)b?",
        "(?:a(?-u:\\B)|b )*",
        "(?m)(?:^a$\\n?)*",
        "(?mR)(?:^[ab]*$[\\r\\n]*)*",
        "(?:[^a\\n]|é)*",
        "[\\p{L}&&[^b]]+ ?",
        ".*a.{2}",
        "(?s:.)*\\n",
        "",
        "a*?b+?",
        "(?i)aB*",
        "$^",
        "(?:(?-u:\\b{start})a|(?-u:\\b{end-half}) )*",
    ];

    fn compile(pattern: &str, limits: &Limits) -> Result<Built, CompileError> {
        Pattern::parse(pattern, Syntax::Rust)?.automaton(Bounds::new(limits))
    }

    #[test]
    fn automata_accept_what_the_expressions_match() {
        let characters = ["a", "b", " ", "\n", "\r", "é", "B", "😀"];
        let mut random = 7u32;
        let mut below = |n: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) as usize % n
        };
        for pattern in PATTERNS {
            let dfa = compile(pattern, &Limits::default()).expect(pattern).dfa;
            let oracle = Regex::new(&format!("\\A(?:{pattern})\\z")).expect(pattern);
            let mut n_matches = 0;
            for _ in 0..4_000 {
                let n_kinds = 1 + below(characters.len());
                let text: String = (0..below(8)).map(|_| characters[below(n_kinds)]).collect();
                let is_match = oracle.is_match(&text);
                assert_eq!(dfa.matches(text.as_bytes()), is_match, "{pattern} on {text:?}");
                n_matches += usize::from(is_match);
            }
            assert!(n_matches > 10, "{pattern} matched {n_matches} texts");
        }
    }

    #[test]
    fn states_and_work_are_bounded() {
        let limits = Limits {
            max_automaton_states: 1_000,
            max_compile_work: 400_000,
            ..Limits::default()
        };
        for (pattern, limit) in [
            ("(?:a|b)*a(?:a|b){12}", "max_automaton_states"),
            ("(?:a{0,300}b{0,300}){0,3}", "max_compile_work"),
        ] {
            let error = compile(pattern, &limits).expect_err(pattern);
            assert!(error.to_string().contains(limit), "{error}");
        }
    }
}
