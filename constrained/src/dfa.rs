//! Byte automata: complete, minimal, small.
//!
//! Invariants: state 0 is dead and the only dead one, that is from every other state an accepting state can
//! be reached; `table.len() == n_states × n_classes`; every entry is a state.

use std::borrow::Cow;
use std::hash::Hash;

use crate::all_but::AllBut;
pub(crate) use crate::classes::Classes;
use crate::hash::Map;
pub(crate) use crate::rows::DEAD;
use crate::rows::Rows;

/// A set of bytes, byte 0 in the lowest bit of the first word.
pub(crate) type ByteSet = [u64; 4];

pub(crate) fn bytes_of(bytes: impl IntoIterator<Item = u8>) -> ByteSet {
    let mut set = [0; 4];
    for byte in bytes {
        set[usize::from(byte) / 64] |= 1 << (byte % 64);
    }
    set
}

pub(crate) fn union_of(a: ByteSet, b: ByteSet) -> ByteSet {
    std::array::from_fn(|word| a[word] | b[word])
}

/// More states than the caller allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyStates;

/// An automaton over bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dfa {
    classes: Classes,
    steps: Steps,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Steps {
    Table {
        /// A column for each class.
        rows: Rows,
        /// By state, whether anything can follow.
        goes_on: Vec<bool>,
    },
    AllBut(AllBut),
}

/// An automaton and the work of making it; a unit is about the cost of an edge.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) dfa: Dfa,
    pub(crate) n_work: u64,
}

impl std::hash::Hash for Dfa {
    /// Samples the table: comparing two of one hash is cheaper than hashing all of each.
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        const N_SAMPLED: usize = 24;
        hasher.write_usize(self.classes.len());
        self.classes
            .members()
            .iter()
            .for_each(|byte| hasher.write_u8(*byte));
        match &self.steps {
            Steps::AllBut(all_but) => all_but.hash(hasher),
            Steps::Table { rows, .. } => {
                let n_skipped = rows.table.len().div_ceil(N_SAMPLED).max(1);
                hasher.write_usize(rows.table.len());
                for entry in rows.table.iter().rev().step_by(n_skipped) {
                    hasher.write_u32(*entry);
                }
            }
        }
    }
}

/// What may follow some beginning of a string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Suffix {
    is_accepting: bool,
    edges: Vec<(u8, u32)>,
}

/// All of them, one state for each; nothing is the dead state.
struct Suffixes(Map<Suffix, u32>);

impl Suffixes {
    fn new() -> Self {
        Self([(Suffix::default(), DEAD)].into_iter().collect())
    }

    fn number(&mut self, suffix: Suffix) -> u32 {
        let fresh = self.0.len() as u32;
        *self.0.entry(suffix).or_insert(fresh)
    }

    /// By number.
    fn list(self) -> Vec<Suffix> {
        let mut list = vec![Suffix::default(); self.0.len()];
        for (suffix, id) in self.0 {
            list[id as usize] = suffix;
        }
        list
    }

    /// Numbers the states of `path`, which spells `text`, beyond the first `depth` bytes.
    fn close(&mut self, path: &mut Vec<Suffix>, text: &[u8], depth: usize) {
        while path.len() > depth + 1 {
            let done = path.pop().expect("it is longer than one");
            let id = self.number(done);
            let parent = path.len() - 1;
            path[parent].edges.push((text[parent], id));
        }
    }
}

/// A product's rule for what it accepts, by what its two parts accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    Both,
    Either,
    FirstOnly,
}

impl Dfa {
    /// The automaton with the given states, of which 0 is dead and 1 the start; `step` gives a state's
    /// successor. It must be minimal and every state but 0 must lead to acceptance.
    pub(crate) fn of_states(classes: Classes, accepts: Vec<bool>, step: impl Fn(u32, u8) -> u32) -> Self {
        let states = 0..accepts.len() as u32;
        let members = classes.members();
        let row = |state: u32| members.iter().map(move |byte| (state, *byte));
        let table = states.flat_map(row).map(|(state, byte)| step(state, byte));
        let table = table.collect();
        Self::of_parts(classes, table, accepts, 1)
    }

    fn of_parts(classes: Classes, table: Vec<u32>, accepts: Vec<bool>, start: u32) -> Self {
        let n_columns = classes.len();
        Self::of_rows(
            classes,
            Rows {
                n_columns,
                table,
                accepts,
                start,
            },
        )
    }

    fn of_rows(classes: Classes, rows: Rows) -> Self {
        let each = rows.table.chunks_exact(rows.n_columns);
        let goes_on = each.map(|row| row.iter().any(|next| *next != DEAD)).collect();
        let steps = Steps::Table { rows, goes_on };
        Self { classes, steps }
    }

    /// All texts but `listed`, which are UTF-8. It is not always the smallest.
    pub(crate) fn all_but(listed: Vec<&[u8]>) -> Self {
        let all_but = AllBut::new(listed);
        Self {
            classes: all_but.classes(),
            steps: Steps::AllBut(all_but),
        }
    }

    /// That it is all texts but some, where that shows.
    pub(crate) fn as_all_but(&self) -> Option<&AllBut> {
        match &self.steps {
            Steps::AllBut(all_but) => Some(all_but),
            Steps::Table { .. } => None,
        }
    }

    fn rows(&self) -> Cow<'_, Rows> {
        match &self.steps {
            Steps::Table { rows, .. } => Cow::Borrowed(rows),
            Steps::AllBut(all_but) => Cow::Owned(all_but.rows(&self.classes)),
        }
    }

    /// The smallest automaton of `rows`, in which only state 0 is dead.
    pub(crate) fn of_trimmed(classes: Classes, rows: Rows) -> Self {
        Self::of_rows(classes, rows).minimal()
    }

    /// The automaton of `rows`, in which no two states are alike and only state 0 is dead.
    pub(crate) fn of_minimal(classes: Classes, rows: &Rows) -> Self {
        Self::of_distinct(classes, rows.renumbered(Some))
    }

    /// The same for `rows` whose states are numbered in the order in which they are met. States that are
    /// alike stay apart, and bytes that are do not.
    pub(crate) fn of_distinct(classes: Classes, rows: Rows) -> Self {
        let merged = rows.equal_columns();
        let kept: Vec<usize> = (0..rows.n_columns)
            .filter(|column| merged[*column] == *column)
            .collect();
        if kept.len() == rows.n_columns {
            return Self::of_rows(classes, rows);
        }
        let each = rows.table.chunks_exact(rows.n_columns);
        let table = each
            .flat_map(|row| kept.iter().map(|class| row[*class]))
            .collect();
        Self::of_parts(classes.merged(&merged), table, rows.accepts, rows.start)
    }

    /// The automaton whose states are the values that `step` reaches from `start`, at most `max_states`.
    /// `step` must treat the bytes of one class alike.
    pub(crate) fn explore<S: Clone + Eq + Hash>(
        classes: Classes,
        start: S,
        step: impl Fn(&S, u8) -> Option<S>,
        accept: impl Fn(&S) -> bool,
        max_states: usize,
    ) -> Result<Self, TooManyStates> {
        let raw = Self::explore_unreduced(classes, start, step, accept, max_states)?;
        Ok(raw.trimmed(&[true; 256]).minimal())
    }

    /// The same for a `step` that neither reaches dead ends nor tells equal states apart.
    pub(crate) fn explore_unreduced<S: Clone + Eq + Hash>(
        classes: Classes,
        start: S,
        step: impl Fn(&S, u8) -> Option<S>,
        accept: impl Fn(&S) -> bool,
        max_states: usize,
    ) -> Result<Self, TooManyStates> {
        let mut ids: Map<S, u32> = Map::default();
        let mut states = vec![start.clone()];
        ids.insert(start, 1);
        let mut accepts = vec![false];
        let mut table = vec![DEAD; classes.len()];
        let mut at = 0;
        while let Some(state) = states.get(at).cloned() {
            at += 1;
            accepts.push(accept(&state));
            for byte in classes.members() {
                let next = step(&state, *byte).map_or(DEAD, |next| {
                    *ids.entry(next).or_insert_with_key(|key| {
                        states.push(key.clone());
                        u32::try_from(states.len()).expect("bounded by max_states")
                    })
                });
                table.push(next);
            }
            if states.len() > max_states {
                return Err(TooManyStates);
            }
        }
        let raw = Self::of_parts(classes, table, accepts, 1);
        Ok(raw)
    }

    /// Accepts exactly the given strings.
    pub(crate) fn of_strings<'a>(strings: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut strings: Vec<&[u8]> = strings.into_iter().collect();
        if let [string] = strings[..] {
            return Self::of_string(string);
        }
        strings.sort_unstable();
        let mut states = Suffixes::new();
        // Along the string before, the states that may get further edges.
        let mut path = vec![Suffix::default()];
        let mut previous: &[u8] = &[];
        for string in strings {
            let n_shared = previous.iter().zip(string).take_while(|(a, b)| a == b).count();
            states.close(&mut path, previous, n_shared);
            path.resize_with(string.len() + 1, Suffix::default);
            path[string.len()].is_accepting = true;
            previous = string;
        }
        states.close(&mut path, previous, 0);
        let start = states.number(path.pop().expect("the start stays"));
        let states = states.list();
        let edges = || {
            (0..)
                .zip(&states)
                .flat_map(|(from, state)| state.edges.iter().map(move |e| (from, e)))
        };
        let mut is_used = [false; 256];
        edges().for_each(|(_, (byte, _))| is_used[usize::from(*byte)] = true);
        let classes = Classes::alone(&is_used);
        let mut table = vec![DEAD; classes.len() * states.len()];
        for (from, (byte, to)) in edges() {
            table[from * classes.len() + classes.of(*byte)] = *to;
        }
        let rows = Rows {
            n_columns: classes.len(),
            table,
            accepts: states.iter().map(|state| state.is_accepting).collect(),
            start,
        };
        Self::of_minimal(classes, &rows)
    }

    /// Accepts `string` alone.
    fn of_string(string: &[u8]) -> Self {
        let mut is_used = [false; 256];
        string.iter().for_each(|byte| is_used[usize::from(*byte)] = true);
        let classes = Classes::alone(&is_used);
        let n_states = string.len() + 2;
        let mut table = vec![DEAD; classes.len() * n_states];
        for (state, byte) in (1..).zip(string) {
            table[state * classes.len() + classes.of(*byte)] = state as u32 + 1;
        }
        let accepts = (0..n_states).map(|state| state + 1 == n_states).collect();
        Self::of_parts(classes, table, accepts, 1)
    }

    /// Runs both at once.
    pub(crate) fn product(&self, other: &Self, rule: Product, max: usize) -> Result<Self, TooManyStates> {
        let is_accepting = |(a, b): &(u32, u32)| {
            let (a, b) = (self.is_accepting(*a), other.is_accepting(*b));
            match rule {
                Product::Both => a && b,
                Product::Either => a || b,
                Product::FirstOnly => a && !b,
            }
        };
        let step = |(a, b): &(u32, u32), byte| {
            let (a, b) = (self.step(*a, byte), other.step(*b, byte));
            let alive = match rule {
                Product::Both => a != DEAD && b != DEAD,
                Product::Either => a != DEAD || b != DEAD,
                Product::FirstOnly => a != DEAD,
            };
            alive.then_some((a, b))
        };
        let classes = self.classes.refine(&other.classes);
        let bounds = (self.n_states(), other.n_states());
        let raw = Self::explore_pairs(
            classes,
            (self.start(), other.start()),
            bounds,
            step,
            is_accepting,
            max,
        )?;
        let trimmed = raw.rows().trimmed(|_| true);
        // Where each text soon leaves one of the two behind, states of the product are hardly ever alike.
        if trimmed.n_states() <= self.n_states() + other.n_states() {
            return Ok(Self::of_distinct(raw.classes, trimmed));
        }
        Ok(Self::of_trimmed(raw.classes, trimmed))
    }

    /// As [`Self::explore_unreduced`], of pairs of numbers below two `bounds`.
    pub(crate) fn explore_pairs(
        classes: Classes,
        start: (u32, u32),
        (n_first, n_second): (usize, usize),
        step: impl Fn(&(u32, u32), u8) -> Option<(u32, u32)>,
        accept: impl Fn(&(u32, u32)) -> bool,
        max_states: usize,
    ) -> Result<Self, TooManyStates> {
        /// Of so many pairs the states are listed, so that none must be looked up by its hash.
        const MAX_LISTED: usize = 1 << 15;
        if n_first * n_second > MAX_LISTED {
            return Self::explore_unreduced(classes, start, step, accept, max_states);
        }
        let place = |(a, b): (u32, u32)| a as usize * n_second + b as usize;
        let mut ids = vec![DEAD; n_first * n_second];
        let (mut states, mut table) = (vec![start], vec![DEAD; classes.len()]);
        ids[place(start)] = 1;
        let mut at = 0;
        while let Some(state) = states.get(at).copied() {
            at += 1;
            for byte in classes.members() {
                let Some(next) = step(&state, *byte) else {
                    table.push(DEAD);
                    continue;
                };
                let id = &mut ids[place(next)];
                if *id == DEAD {
                    states.push(next);
                    *id = states.len() as u32;
                }
                table.push(*id);
            }
            if states.len() > max_states {
                return Err(TooManyStates);
            }
        }
        let accepts = [false].into_iter().chain(states.iter().map(accept)).collect();
        Ok(Self::of_parts(classes, table, accepts, 1))
    }

    /// What a trimmed automaton is over `usable` bytes alone: the same where there are no edges over others.
    pub(crate) fn spelled(self, usable: &[bool; 256]) -> Self {
        if self.is_spelled(usable) {
            self
        } else {
            self.trimmed(usable)
        }
    }

    /// Whether a trimmed automaton has edges over `usable` bytes alone.
    pub(crate) fn is_spelled(&self, usable: &[bool; 256]) -> bool {
        let is_usable = self.classes.usable(usable);
        if is_usable.iter().all(|is_usable| *is_usable) {
            return true;
        }
        let is_used = |class: usize| match &self.steps {
            Steps::Table { rows, .. } => {
                let mut column = rows.table.iter().skip(class).step_by(rows.n_columns);
                column.any(|next| *next != DEAD)
            }
            Steps::AllBut(_) => AllBut::may_take(self.classes.members()[class]),
        };
        !(0..self.classes.len()).any(|class| !is_usable[class] && is_used(class))
    }

    /// Without the states from which no accepting state can be reached over `usable` bytes alone. Edges over
    /// other bytes stay where they lead to a state that is left.
    pub(crate) fn trimmed(self, usable: &[bool; 256]) -> Self {
        let usable = self.classes.usable(usable);
        let rows = self.rows().trimmed(|class| usable[class as usize]);
        Self::of_rows(self.classes, rows)
    }

    /// The smallest automaton of the same language. Needs a trimmed one.
    fn minimal(self) -> Self {
        let rows = self.rows().minimal();
        Self::of_distinct(self.classes, rows)
    }

    /// The same language without the empty text.
    pub(crate) fn without_empty(&self) -> Self {
        let empty = Self::of_strings([&b""[..]]);
        let dfa = self.product(&empty, Product::FirstOnly, usize::MAX);
        dfa.expect("no limit is set")
    }

    pub(crate) fn classes(&self) -> &Classes {
        &self.classes
    }

    /// States, the dead one included.
    pub(crate) fn n_states(&self) -> usize {
        match &self.steps {
            Steps::Table { rows, .. } => rows.n_states(),
            Steps::AllBut(all_but) => all_but.n_states(),
        }
    }

    /// `DEAD` when nothing is accepted.
    pub(crate) fn start(&self) -> u32 {
        match &self.steps {
            Steps::Table { rows, .. } => rows.start,
            Steps::AllBut(_) => 1,
        }
    }

    #[inline]
    pub(crate) fn step(&self, state: u32, byte: u8) -> u32 {
        match &self.steps {
            Steps::Table { rows, .. } => rows.table[state as usize * rows.n_columns + self.classes.of(byte)],
            Steps::AllBut(all_but) => all_but.step(state, byte),
        }
    }

    #[inline]
    pub(crate) fn is_accepting(&self, state: u32) -> bool {
        match &self.steps {
            Steps::Table { rows, .. } => rows.accepts[state as usize],
            Steps::AllBut(all_but) => all_but.is_accepting(state),
        }
    }

    /// The bytes that lead anywhere from `state`; `sets` are those of [`Classes::sets`].
    pub(crate) fn bytes(&self, state: u32, sets: &[ByteSet]) -> ByteSet {
        let next: Cow<'_, [u32]> = match &self.steps {
            Steps::Table { rows, .. } => rows.row(state).into(),
            Steps::AllBut(all_but) => {
                let members = self.classes.members().iter();
                members.map(|byte| all_but.step(state, *byte)).collect()
            }
        };
        let alive = next.iter().zip(sets).filter(|(next, _)| **next != DEAD);
        alive.fold([0; 4], |all, (_, set)| union_of(all, *set))
    }

    /// The states that one byte or more lead to from `state`, the dead one apart.
    pub(crate) fn reached_from(&self, state: u32) -> Vec<u32> {
        let (mut is_known, mut reached) = (vec![false; self.n_states()], Vec::new());
        is_known[DEAD as usize] = true;
        let (rows, mut todo) = (self.rows(), vec![state]);
        while let Some(state) = todo.pop() {
            for next in rows.row(state) {
                if !std::mem::replace(&mut is_known[*next as usize], true) {
                    reached.push(*next);
                    todo.push(*next);
                }
            }
        }
        reached
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        let n_steps = match &self.steps {
            Steps::Table { rows, .. } => rows.table.len() * 4 + 2 * rows.n_states(),
            Steps::AllBut(all_but) => all_but.n_bytes(),
        };
        size_of::<Self>() + n_steps + self.classes.len()
    }

    /// Whether anything can follow.
    pub(crate) fn has_edges(&self, state: u32) -> bool {
        match &self.steps {
            Steps::Table { goes_on, .. } => goes_on[state as usize],
            Steps::AllBut(_) => state != DEAD,
        }
    }

    #[cfg(test)]
    pub(crate) fn matches(&self, bytes: &[u8]) -> bool {
        let end = bytes
            .iter()
            .fold(self.start(), |state, byte| self.step(state, *byte));
        self.is_accepting(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Dfa {
        Dfa::of_strings(list.iter().map(|word| word.as_bytes()))
    }

    #[test]
    fn a_set_of_strings_accepts_its_members_only() {
        let dfa = words(&["red", "green", "reed", ""]);
        for word in ["red", "green", "reed", ""] {
            assert!(dfa.matches(word.as_bytes()), "{word}");
        }
        for word in ["re", "gree", "redd", "x"] {
            assert!(!dfa.matches(word.as_bytes()), "{word}");
        }
    }

    #[test]
    fn suffixes_are_shared_after_minimising() {
        // dead, start, after the first letter, i-n-g-end.
        assert_eq!(words(&["aing", "bing", "cing"]).n_states(), 6);
    }

    #[test]
    fn products_are_the_set_operations() {
        let (a, b) = (words(&["a", "ab"]), words(&["ab", "c"]));
        let run = |rule, word: &str| a.product(&b, rule, 99).expect("small").matches(word.as_bytes());
        let accepted = |rule| ["a", "ab", "c", ""].map(|word| run(rule, word));
        assert_eq!(accepted(Product::Both), [false, true, false, false]);
        assert_eq!(accepted(Product::Either), [true, true, true, false]);
        assert_eq!(accepted(Product::FirstOnly), [true, false, false, false]);
        assert_eq!(a.product(&b, Product::Both, 1), Err(TooManyStates));
    }

    #[test]
    fn what_needs_an_unusable_byte_is_dead() {
        let mut usable = [true; 256];
        usable[usize::from(b'x')] = false;
        let dfa = words(&["ax", "by"]).trimmed(&usable);
        assert!(dfa.matches(b"by") && !dfa.matches(b"ax"));
        assert_eq!(words(&["x"]).trimmed(&usable).start(), DEAD);
    }
}
