//! Regular expressions' automata made deterministic, with every step counted.
//!
//! A state is the set of automaton states that a text leads to, those that need no byte followed already. An
//! assertion (an anchor, a word boundary) stays in the set until the next byte, or the end, decides it; the
//! state then also holds what matters of the byte before.

use std::sync::Arc;

use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::look::LookSet;
use regex_automata::util::primitives::StateID;

use crate::dfa::{Classes, DEAD, Dfa};
use crate::hash::Map;

/// What was too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    States,
    Work,
}

/// An automaton and the work of making it; a unit is about the cost of an edge.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) dfa: Dfa,
    pub(crate) n_work: u64,
}

/// Stands for a byte that assertions see nothing in.
const OTHER: u8 = b' ';
/// Before the first byte.
pub(crate) const BEGIN: u32 = 256;
/// Of sorting an edge into blocks.
pub(crate) const EDGE_WORK: u64 = 32;

struct Determinizer<'a> {
    nfa: &'a NFA,
    /// By automaton state, whether it makes all others superfluous that do not.
    is_tail: &'a [bool],
    classes: Classes,
    /// One byte of each class.
    members: Arc<[u8]>,
    looks: LookSet,
    /// By set, with what came before as its last entry.
    ids: Map<Box<[u32]>, u32>,
    sets: Vec<Box<[u32]>>,
    /// Where sets of states before their closure lead: many bytes have the same.
    known: Map<(Vec<u32>, u32), u32>,
    /// By automaton state, the closure that it was last met in.
    met: Vec<u32>,
    n_closures: u32,
    n_work: u64,
}

/// The smallest automaton of the texts that `nfa` matches from end to end. What can follow where a text leads
/// to a state of which `is_tail` is true, can follow it by way of such states alone.
pub(crate) fn determinize(
    nfa: &NFA,
    is_tail: &[bool],
    max_states: usize,
    max_work: u64,
) -> Result<Built, Excess> {
    let classes = Classes::by(|byte| nfa.byte_classes().get(byte));
    let n_classes = classes.len();
    let mut own = Determinizer {
        nfa,
        is_tail,
        members: classes.members().into(),
        classes,
        looks: nfa.look_set_any(),
        ids: Map::default(),
        sets: Vec::new(),
        known: Map::default(),
        met: vec![0; nfa.states().len()],
        n_closures: 0,
        n_work: nfa.states().len() as u64,
    };
    let start = own.closure(&[nfa.start_anchored().as_u32()], BEGIN, None);
    let start = own.state(start, BEGIN);
    let (mut table, mut accepts) = (vec![DEAD; n_classes], vec![false]);
    let mut buckets = vec![Vec::new(); n_classes];
    let mut at = 0;
    while at < own.sets.len() {
        accepts.push(own.is_accepting(at));
        own.step(at, &mut buckets, &mut table);
        at += 1;
        if own.sets.len() > max_states {
            return Err(Excess::States);
        }
        if own.n_work > max_work {
            return Err(Excess::Work);
        }
    }
    let n_edges = table.iter().filter(|to| **to != DEAD).count() as u64;
    let dfa = Dfa::reduced(own.classes, table, accepts, start);
    let n_work = own.n_work + EDGE_WORK * n_edges;
    Ok(Built { dfa, n_work })
}

impl Determinizer<'_> {
    /// The number of the state of `set` after `before`, counted from 1.
    fn state(&mut self, set: Vec<u32>, before: u32) -> u32 {
        if set.is_empty() {
            return DEAD;
        }
        let nfa = self.nfa;
        let is_look = |id: &u32| matches!(nfa.states()[*id as usize], State::Look { .. });
        let has_looks = !self.looks.is_empty() && set.iter().any(is_look);
        let mut key = set;
        key.push(if has_looks { before } else { u32::from(OTHER) });
        let key: Box<[u32]> = key.into();
        if let Some(known) = self.ids.get(&key) {
            return *known;
        }
        let id = self.sets.len() as u32 + 1;
        self.n_work += key.len() as u64;
        self.sets.push(key.clone());
        self.ids.insert(key, id);
        id
    }

    /// The states of `from` and those reached without a byte that take a byte, match or assert something,
    /// ascending. Between `before` and `after` assertions are decided; without `after` they stay.
    fn closure(&mut self, from: &[u32], before: u32, after: Option<&[u8]>) -> Vec<u32> {
        self.n_closures += 1;
        let (mut todo, mut found) = (from.to_vec(), Vec::new());
        while let Some(id) = todo.pop() {
            self.n_work += 3;
            if std::mem::replace(&mut self.met[id as usize], self.n_closures) == self.n_closures {
                continue;
            }
            let mut follow = |next: &StateID| todo.push(next.as_u32());
            match &self.nfa.states()[id as usize] {
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Match { .. } => {
                    found.push(id);
                }
                State::Look { look, next } => match after {
                    None => found.push(id),
                    Some(after) => {
                        let text: Vec<u8> = u8::try_from(before)
                            .into_iter()
                            .chain(after.iter().copied())
                            .collect();
                        let at = text.len() - after.len();
                        if self.nfa.look_matcher().matches(*look, &text, at) {
                            follow(next);
                        }
                    }
                },
                State::Union { alternates } => alternates.iter().for_each(follow),
                State::BinaryUnion { alt1, alt2 } => [alt1, alt2].into_iter().for_each(follow),
                State::Capture { next, .. } => follow(next),
                State::Fail => {}
            }
        }
        if found.iter().any(|id| self.is_tail[*id as usize]) {
            found.retain(|id| self.is_tail[*id as usize]);
        }
        found.sort_unstable();
        found
    }

    fn split(&self, at: usize) -> (Box<[u32]>, u32) {
        let mut set = self.sets[at].to_vec();
        let before = set.pop().expect("what came before is the last entry");
        (set.into(), before)
    }

    fn is_accepting(&mut self, at: usize) -> bool {
        let (mut set, before) = self.split(at);
        if !self.looks.is_empty() {
            set = self.closure(&set, before, Some(&[])).into();
        }
        set.iter()
            .any(|id| matches!(self.nfa.states()[*id as usize], State::Match { .. }))
    }

    /// Adds the row of state `at` to `table`; `buckets` are empty before and after.
    fn step(&mut self, at: usize, buckets: &mut [Vec<u32>], table: &mut Vec<u32>) {
        let (set, before) = self.split(at);
        self.n_work += buckets.len() as u64 / 4;
        let is_decided = |id: &u32| !matches!(self.nfa.states()[*id as usize], State::Look { .. });
        if self.looks.is_empty() || set.iter().all(is_decided) {
            set.iter().for_each(|id| self.spread(*id, buckets));
        } else {
            for (bucket, byte) in buckets.iter_mut().zip(self.members.clone().iter()) {
                let decided = self.closure(&set, before, Some(&[*byte]));
                self.n_work += decided.len() as u64;
                bucket.extend(decided.into_iter().filter_map(|id| self.over(id, *byte)));
            }
        }
        // Neighbouring bytes mostly lead to the same.
        let mut last = (Vec::new(), u32::from(OTHER), DEAD);
        for (bucket, byte) in buckets.iter_mut().zip(self.members.clone().iter()) {
            bucket.sort_unstable();
            bucket.dedup();
            let seen = seen(self.looks, *byte);
            if bucket.is_empty() {
                table.push(DEAD);
                continue;
            }
            if last.0 != *bucket || last.1 != seen {
                let key = (std::mem::take(bucket), seen);
                let next = match self.known.get(&key) {
                    Some(known) => *known,
                    None => {
                        let set = self.closure(&key.0, seen, None);
                        let next = self.state(set, seen);
                        self.known.insert(key.clone(), next);
                        next
                    }
                };
                last = (key.0, seen, next);
            }
            table.push(last.2);
            bucket.clear();
        }
    }

    /// Where automaton state `id` leads over `byte`.
    fn over(&self, id: u32, byte: u8) -> Option<u32> {
        over(&self.nfa.states()[id as usize], byte)
    }

    /// Puts where automaton state `id` leads into the classes' buckets.
    fn spread(&mut self, id: u32, buckets: &mut [Vec<u32>]) {
        let nfa = self.nfa;
        let one;
        let ranges = match &nfa.states()[id as usize] {
            State::ByteRange { trans } => {
                one = [*trans];
                &one[..]
            }
            State::Sparse(sparse) => &sparse.transitions[..],
            State::Dense(_) => {
                for (bucket, byte) in buckets.iter_mut().zip(self.members.iter()) {
                    bucket.extend(self.over(id, *byte));
                }
                self.n_work += buckets.len() as u64;
                return;
            }
            _ => return,
        };
        for range in ranges {
            // Classes of an automaton are numbered in the order of their bytes.
            let classes = self.classes.of(range.start)..=self.classes.of(range.end);
            self.n_work += 1 + classes.clone().count() as u64;
            buckets[classes]
                .iter_mut()
                .for_each(|bucket| bucket.push(range.next.as_u32()));
        }
    }
}

/// What of `byte` one of `looks` after it can see.
pub(crate) fn seen(looks: LookSet, byte: u8) -> u32 {
    let is_word = byte.is_ascii_alphanumeric() || byte == b'_';
    u32::from(match byte {
        b'\r' | b'\n' if looks.contains_anchor_line() => byte,
        _ if is_word && looks.contains_word() => b'a',
        _ => OTHER,
    })
}

/// Where `state` leads over `byte`.
pub(crate) fn over(state: &State, byte: u8) -> Option<u32> {
    let next = match state {
        State::ByteRange { trans } => trans.matches_byte(byte).then_some(trans.next),
        State::Sparse(sparse) => sparse.matches_byte(byte),
        State::Dense(dense) => dense.matches_byte(byte),
        _ => None,
    };
    next.map(|next| next.as_u32())
}

#[cfg(test)]
mod tests {
    use regex_automata::meta::Regex;

    use super::Built;
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
