//! Nondeterministic automata of expressions, over letters.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Repetition};

use super::letters::{Letter, Letters, characters};
use super::look::Look;

#[derive(Clone, Debug)]
pub(super) enum State {
    Match,
    /// Takes a character of a class and goes on.
    Class {
        class: u32,
        next: u32,
    },
    Split(Box<[u32]>),
    Look {
        look: Look,
        next: u32,
    },
    /// Look-around, by its number.
    Around {
        around: u32,
        next: u32,
    },
}

/// An expression's automaton; state 0 is the only match.
#[derive(Debug)]
pub(super) struct Nfa {
    pub(super) states: Vec<State>,
    pub(super) start: u32,
    /// States below this one are of the *tail*. Where an expression ends with any number of characters of a
    /// class that has all of its characters, `[a-z]*` say or the rest of a searched text, a text that may
    /// have reached that end cannot go on in a way that the end does not allow, too. All other states are
    /// then superfluous.
    pub(super) n_tail: u32,
    /// By state, as far as there are copies.
    copied: Vec<Copied>,
}

/// A state's place in one of several copies of what may be repeated so often, or less.
///
/// Of two states of one series the one of lower rank is superfluous: more repetitions are left to the other
/// one. Series 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) series: u32,
    /// Copies that may still follow.
    pub(super) rank: u32,
}

/// More states than are allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooManyStates;

struct Builder<'a> {
    letters: &'a Letters,
    states: Vec<State>,
    /// As far as there are copies.
    copied: Vec<Copied>,
    n_series: u32,
}

impl Nfa {
    /// The automaton of `hir`, which is over `letters`.
    pub(super) fn new(hir: &Hir, letters: &Letters) -> Result<Self, TooManyStates> {
        let mut builder = Builder {
            letters,
            states: vec![State::Match],
            copied: Vec::new(),
            n_series: 0,
        };
        let (start, n_tail) = match tail(hir) {
            None => (builder.add(hir, 0)?, 0),
            Some((before, tail, anchors)) => {
                let end = builder.sequence(anchors, 0)?;
                let HirKind::Repetition(Repetition { min, sub, .. }) = tail.kind() else {
                    unreachable!("the tail is a repetition");
                };
                let begin = builder.repeated(sub, 0, None, end)?;
                let n_tail = builder.states.len() as u32;
                let begin = builder.repeated(sub, *min, Some(*min), begin)?;
                (builder.sequence(before, begin)?, n_tail)
            }
        };
        Ok(Self {
            states: builder.states,
            start,
            n_tail,
            copied: builder.copied,
        })
    }

    pub(super) fn copied(&self, state: u32) -> Copied {
        self.copied.get(state as usize).copied().unwrap_or_default()
    }

    /// Drops states that are superfluous beside others; `states` are ascending, and stay so.
    pub(super) fn drop_superfluous(&self, states: &mut Vec<u32>) {
        if states.iter().any(|state| *state < self.n_tail) {
            states.retain(|state| *state < self.n_tail);
        }
        if self.copied.is_empty() {
            return;
        }
        let mut most: Vec<Copied> = states.iter().map(|state| self.copied(*state)).collect();
        most.retain(|copied| copied.series != 0);
        most.sort_unstable_by_key(|copied| (copied.series, std::cmp::Reverse(copied.rank)));
        most.dedup_by_key(|copied| copied.series);
        states.retain(|state| {
            let copied = self.copied(*state);
            let place = most.binary_search_by_key(&copied.series, |most| most.series);
            place.is_ok_and(|place| most[place].rank == copied.rank) || copied.series == 0
        });
    }

    /// Where `state` leads over `letter`.
    pub(super) fn over(&self, state: u32, letter: Letter, letters: &Letters) -> Option<u32> {
        match self.states[state as usize] {
            State::Class { class, next } => letters.of(class).binary_search(&letter).is_ok().then_some(next),
            _ => None,
        }
    }
}

impl Builder<'_> {
    /// A state from which `state` can be left out of account: it is the next one's number.
    fn push(&mut self, state: State) -> Result<u32, TooManyStates> {
        const MAX_STATES: usize = 1 << 16;
        if self.states.len() >= MAX_STATES {
            return Err(TooManyStates);
        }
        self.states.push(state);
        Ok(self.states.len() as u32 - 1)
    }

    /// The state that begins `hir` and goes on at `next`. Recursion is as deep as the parser's limit.
    fn add(&mut self, hir: &Hir, next: u32) -> Result<u32, TooManyStates> {
        match hir.kind() {
            HirKind::Empty => Ok(next),
            HirKind::Literal(literal) => {
                let text = std::str::from_utf8(&literal.0).expect("expressions are of characters");
                text.chars().rev().try_fold(next, |next, c| {
                    let class = self.letters.character(c);
                    self.push(State::Class { class, next })
                })
            }
            HirKind::Class(class) => {
                let class = self.letters.class(class);
                self.push(State::Class { class, next })
            }
            HirKind::Look(look) => {
                let look = Look::of(*look);
                self.push(State::Look { look, next })
            }
            HirKind::Capture(around) => {
                let around = around.index - 1;
                self.push(State::Around { around, next })
            }
            HirKind::Repetition(repetition) => {
                self.repeated(&repetition.sub, repetition.min, repetition.max, next)
            }
            HirKind::Concat(parts) => self.sequence(parts, next),
            HirKind::Alternation(parts) => {
                let begins = parts.iter().map(|part| self.add(part, next));
                let begins = begins.collect::<Result<_, _>>()?;
                self.push(State::Split(begins))
            }
        }
    }

    fn sequence(&mut self, parts: &[Hir], next: u32) -> Result<u32, TooManyStates> {
        parts
            .iter()
            .rev()
            .try_fold(next, |next, part| self.add(part, next))
    }

    fn repeated(&mut self, body: &Hir, min: u32, max: Option<u32>, next: u32) -> Result<u32, TooManyStates> {
        let mut begin = next;
        match max {
            None => {
                let split = self.push(State::Split(Box::default()))?;
                let body = self.add(body, split)?;
                self.states[split as usize] = State::Split([body, next].into());
                begin = split;
            }
            Some(max) => {
                let series = self.n_series + 1;
                for rank in 0..max - min {
                    let first = self.states.len();
                    let body = self.add(body, begin)?;
                    begin = self.push(State::Split([body, next].into()))?;
                    self.mark_copy(first, series, rank);
                }
            }
        }
        for _ in 0..min {
            begin = self.add(body, begin)?;
        }
        Ok(begin)
    }
}

impl Builder<'_> {
    /// Says that the states from `first` on are a copy of which `rank` may follow.
    fn mark_copy(&mut self, first: usize, series: u32, rank: u32) {
        self.copied.resize(first, Copied::default());
        let of_state = |series: u32| Copied { series, rank };
        let all = series..series + (self.states.len() - first) as u32;
        self.n_series = self.n_series.max(all.end);
        self.copied.extend(all.map(of_state));
    }
}

/// `hir` up to its tail, the tail, and anchors behind it.
fn tail(hir: &Hir) -> Option<(&[Hir], &Hir, &[Hir])> {
    let HirKind::Concat(parts) = hir.kind() else {
        return None;
    };
    let is_anchor = |part: &&Hir| matches!(part.kind(), HirKind::Look(regex_syntax::hir::Look::End));
    let n_anchors = parts.iter().rev().take_while(is_anchor).count();
    let (parts, anchors) = parts.split_at(parts.len() - n_anchors);
    let (last, parts) = parts.split_last()?;
    let HirKind::Repetition(Repetition { max: None, sub, .. }) = last.kind() else {
        return None;
    };
    let HirKind::Class(Class::Unicode(class)) = sub.kind() else {
        return None;
    };
    let is_whole = parts.iter().all(|part| has_only(part, class));
    is_whole.then_some((parts, last, anchors))
}

/// Whether all characters of `hir` are of `class`. Recursion is as deep as the parser's limit.
fn has_only(hir: &Hir, class: &ClassUnicode) -> bool {
    match hir.kind() {
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).expect("expressions are of characters");
            text.chars()
                .all(|c| is_within(&ClassUnicode::new([ClassUnicodeRange::new(c, c)]), class))
        }
        HirKind::Class(other) => is_within(&characters(other), class),
        kind => kind.subs().iter().all(|part| has_only(part, class)),
    }
}

/// Both are sorted, with gaps between their ranges.
fn is_within(inner: &ClassUnicode, outer: &ClassUnicode) -> bool {
    let mut outer = outer.ranges().iter().peekable();
    inner.ranges().iter().all(|range| {
        while outer.next_if(|outer| outer.end() < range.start()).is_some() {}
        let around = outer.peek();
        around.is_some_and(|around| around.start() <= range.start() && range.end() <= around.end())
    })
}
