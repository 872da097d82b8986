//! Expressions with look-around made deterministic.
//!
//! A state says what a text must go on with: one of several *ways*, each a place in the expression and
//! *duties* that came from look-ahead on the way there. A duty is what the rest must match, or must not,
//! which is again a list of ways, so that look-ahead may stand within look-ahead. Such lists are kept once
//! and have numbers. What look-behind may have matched so far is followed beside it, in a list of ways for
//! each, from every place of the text on.
//!
//! ```text
//! ^(?!ab)[a-z]+$   after `a`: at `[a-z]+`, and the rest is not `b…`
//! (?<!a)b$         after `a`: at the beginning of the search; look-behind: has matched `a`
//! ```

use std::rc::Rc;

use super::determinize::{Budget, Excess};
use super::duties::{Choice, Duties, Duty, Ways, all_of, is_within, least, none_of, united};
use super::letters::{Letter, Letters};
use super::look::{Look, Neighbour};
use super::nfa::{Nfa, State};
use super::{Direction, Pattern};
use crate::hash::{Map, SmallSet};
use crate::rows::{DEAD, Rows};

/// No way at all.
const NEVER: Ways = 0;
/// Whatever follows.
const ALWAYS: Ways = 1;

/// The place of a way that has matched: only its duties are left.
const MATCHED: u32 = u32::MAX;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Way {
    /// State of an automaton, counted through all of them.
    place: u32,
    duties: Duties,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    Look(Look),
    /// An expression, by its number among all.
    Around(u32),
}

/// Where a place leads without a character when the tests hold: to a state that takes one, or to the match.
#[derive(Clone, Debug)]
struct Step {
    to: u32,
    tests: Rc<[Test]>,
}

/// One expression of the pattern: itself, or the content of look-around.
struct Part {
    nfa: Nfa,
    /// The number of its first state, which is its match.
    begin: u32,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Whole,
    Ahead { is_negated: bool },
    Behind { is_negated: bool },
}

/// A state of the automaton that is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Whole {
    pub(super) ways: Ways,
    pub(super) context: Context,
}

/// What matters of the text so far to all that comes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Context {
    /// By part: how far look-behind has come.
    behind: Rc<[Ways]>,
    /// What assertions see of the character before.
    before: Neighbour,
}

/// Where a text may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    AtEnd,
    /// Whatever follows, and none of it may matter.
    Anywhere,
}

pub(super) struct Machine<'a> {
    pub(super) letters: &'a Letters,
    budget: &'a mut Budget,
    /// What stands within another part comes before it; the whole is the last one.
    parts: Vec<Part>,
    /// By number of look-around in the pattern: its part.
    part_of: Vec<Option<u32>>,
    /// By state, its part.
    owner: Vec<u32>,
    steps: Map<u32, Rc<[Step]>>,
    lists: Vec<Rc<[Way]>>,
    numbers: Map<Rc<[Way]>, Ways>,
    here: Here,
}

/// What is known at one place of the text, before one letter or the end.
#[derive(Default)]
struct Here {
    context: Option<Context>,
    letter: Option<Letter>,
    moved: Map<Ways, Ways>,
    choices: Map<Test, Rc<Choice>>,
    followed: Map<u32, (Ways, Rc<Choice>)>,
}

/// The texts that `pattern` matches from end to end: rows with a column for each of `letters`.
pub(super) fn determinize(pattern: &Pattern, letters: &Letters, budget: &mut Budget) -> Result<Rows, Excess> {
    let mut machine = Machine::new(pattern, letters, budget)?;
    let start = Whole {
        ways: machine.start(machine.whole())?,
        context: machine.begin(),
    };
    let rows = machine.determinize(start, Ending::AtEnd)?;
    Ok(rows.expect("nothing follows the end"))
}

impl<'a> Machine<'a> {
    pub(super) fn new(
        pattern: &Pattern,
        letters: &'a Letters,
        budget: &'a mut Budget,
    ) -> Result<Self, Excess> {
        let mut machine = Self {
            letters,
            budget,
            parts: Vec::new(),
            part_of: vec![None; pattern.arounds.len()],
            owner: Vec::new(),
            steps: Map::default(),
            lists: Vec::new(),
            numbers: Map::default(),
            here: Here::default(),
        };
        assert_eq!(machine.number(Vec::new()), Ok(NEVER));
        let always = Way {
            place: MATCHED,
            duties: Rc::default(),
        };
        assert_eq!(machine.number(vec![always]), Ok(ALWAYS));
        for (n, around) in pattern.used_arounds() {
            let is_negated = around.is_negated;
            let role = match around.direction {
                Direction::Ahead => Role::Ahead { is_negated },
                Direction::Behind => Role::Behind { is_negated },
            };
            machine.part_of[n] = Some(machine.parts.len() as u32);
            machine.add(Nfa::new(&around.body, letters)?, role)?;
        }
        machine.add(Nfa::new(&pattern.hir, letters)?, Role::Whole)?;
        Ok(machine)
    }

    fn add(&mut self, nfa: Nfa, role: Role) -> Result<(), Excess> {
        let part = self.parts.len() as u32;
        let begin = self.owner.len() as u32;
        self.budget.spend(nfa.states.len())?;
        self.owner.extend(nfa.states.iter().map(|_| part));
        self.parts.push(Part { nfa, begin, role });
        Ok(())
    }

    /// The part that is not look-around.
    pub(super) fn whole(&self) -> u32 {
        self.parts.len() as u32 - 1
    }

    /// Before the first character.
    pub(super) fn begin(&self) -> Context {
        Context {
            behind: self.parts.iter().map(|_| NEVER).collect(),
            before: Neighbour::Outside,
        }
    }

    /// What may follow `start`, by letter; `None` where what follows its texts matters.
    pub(super) fn determinize(&mut self, start: Whole, ending: Ending) -> Result<Option<Rows>, Excess> {
        let mut ids: Map<Whole, u32> = [(start.clone(), 1)].into_iter().collect();
        let mut states = vec![start];
        let mut rows = Rows::dead(self.letters.n_letters());
        rows.start = 1;
        let mut at = 0;
        while let Some(state) = states.get(at).cloned() {
            at += 1;
            let is_accepting = match ending {
                Ending::AtEnd => Some(self.is_accepting(&state)?),
                Ending::Anywhere => self.is_accepting_anywhere(&state)?,
            };
            let Some(is_accepting) = is_accepting else {
                return Ok(None);
            };
            rows.accepts.push(is_accepting);
            let (group_of, firsts) = self.groups(&state)?;
            let mut targets = Vec::with_capacity(firsts.len());
            for letter in firsts {
                let next = self.next(&state, letter)?;
                targets.push(next.map_or(DEAD, |next| {
                    *ids.entry(next).or_insert_with_key(|next| {
                        states.push(next.clone());
                        states.len() as u32
                    })
                }));
            }
            rows.table.extend(group_of.iter().map(|group| targets[*group]));
            self.budget.check_states(states.len())?;
        }
        Ok(Some(rows))
    }

    /// Letters that all lead to the same from `state`: the group of each, and the first one of each group.
    fn groups(&mut self, state: &Whole) -> Result<(Vec<usize>, Vec<Letter>), Excess> {
        let letters = self.letters;
        let all = 0..letters.n_letters() as Letter;
        let mut mark_of: Vec<usize> = all.map(|letter| letters.seen(letter) as usize).collect();
        let mut fresh = mark_of.iter().max().map_or(0, |max| max + 1);
        for class in self.classes(state)? {
            self.spend(1 + letters.of(class).len())?;
            // Letters of the class get a mark for each that they had.
            let mut marks: Map<usize, usize> = Map::default();
            for letter in letters.of(class) {
                let mark = &mut mark_of[usize::from(*letter)];
                *mark = *marks.entry(*mark).or_insert_with(|| {
                    fresh += 1;
                    fresh - 1
                });
            }
        }
        let mut numbers: Map<usize, usize> = Map::default();
        let mut firsts = Vec::new();
        for (letter, mark) in (0..).zip(&mut mark_of) {
            *mark = *numbers.entry(*mark).or_insert_with(|| {
                firsts.push(letter);
                firsts.len() - 1
            });
        }
        Ok((mark_of, firsts))
    }

    /// The classes of characters by which it may matter what comes at `state`.
    fn classes(&mut self, state: &Whole) -> Result<Vec<u32>, Excess> {
        let mut todo = vec![state.ways];
        todo.extend(state.context.behind.iter());
        for part in 0..self.whole() {
            if matches!(self.parts[part as usize].role, Role::Behind { .. }) {
                todo.push(self.start(part)?);
            }
        }
        let mut met = SmallSet::default();
        let mut classes = Vec::new();
        while let Some(ways) = todo.pop() {
            if !met.insert(ways) {
                continue;
            }
            let list = self.lists[ways as usize].clone();
            self.spend(list.len())?;
            for way in list.iter() {
                todo.extend(way.duties.iter().map(|duty| duty.ways));
                if way.place == MATCHED {
                    continue;
                }
                for step in self.steps(way.place)?.iter() {
                    let (part, state) = self.state(step.to);
                    if let State::Class { class, .. } = part.nfa.states[state as usize] {
                        classes.push(class);
                    }
                    for test in step.tests.iter() {
                        if let Test::Around(part) = test {
                            todo.push(self.start(*part)?);
                        }
                    }
                }
            }
        }
        classes.sort_unstable();
        classes.dedup();
        Ok(classes)
    }

    pub(super) fn spend(&mut self, n_work: usize) -> Result<(), Excess> {
        self.budget.spend(n_work)
    }

    fn arrive(&mut self, context: &Context, letter: Option<Letter>) {
        self.here = Here {
            context: Some(context.clone()),
            letter,
            ..Here::default()
        };
    }

    fn context(&self) -> &Context {
        self.here.context.as_ref().expect("the machine is somewhere")
    }

    pub(super) fn is_accepting(&mut self, state: &Whole) -> Result<bool, Excess> {
        self.arrive(&state.context, None);
        Ok(self.moved(state.ways)? == ALWAYS)
    }

    /// Whether the text may end before `letter`; `None` where that depends on what follows it.
    pub(super) fn is_accepting_before(
        &mut self,
        state: &Whole,
        letter: Letter,
    ) -> Result<Option<bool>, Excess> {
        self.arrive(&state.context, Some(letter));
        let list = self.lists[state.ways as usize].clone();
        let (_, matched) = self.advance(&list)?;
        let is_free = matched.iter().any(|duties| duties.is_empty());
        Ok((is_free || matched.is_empty()).then_some(is_free))
    }

    fn next(&mut self, state: &Whole, letter: Letter) -> Result<Option<Whole>, Excess> {
        self.arrive(&state.context, Some(letter));
        let list = self.lists[state.ways as usize].clone();
        let (ways, _) = self.advance(&list)?;
        let ways = self.number(ways)?;
        if ways == NEVER {
            return Ok(None);
        }
        let context = self.next_context(letter)?;
        Ok(Some(Whole { ways, context }))
    }

    /// After `letter` at `context`.
    pub(super) fn after(&mut self, context: &Context, letter: Letter) -> Result<Context, Excess> {
        self.arrive(context, Some(letter));
        self.next_context(letter)
    }

    fn next_context(&mut self, letter: Letter) -> Result<Context, Excess> {
        let mut behind = Vec::with_capacity(self.parts.len());
        for part in 0..self.parts.len() as u32 {
            behind.push(match self.parts[part as usize].role {
                Role::Behind { .. } => self.follow(part)?.0,
                _ => NEVER,
            });
        }
        Ok(Context {
            behind: behind.into(),
            before: self.letters.seen(letter),
        })
    }

    /// The one way that begins `part`.
    pub(super) fn start(&mut self, part: u32) -> Result<Ways, Excess> {
        let start = self.start_of(part);
        self.number(vec![start])
    }

    fn start_of(&self, part: u32) -> Way {
        let Part { nfa, begin, .. } = &self.parts[part as usize];
        Way {
            place: begin + nfa.start,
            duties: Rc::default(),
        }
    }

    /// Where `ways` lead over the letter that is next, and the duties of those that match before it.
    fn advance(&mut self, ways: &[Way]) -> Result<(Vec<Way>, Choice), Excess> {
        /// Of making a way and of finding it among others.
        const WAY_WORK: usize = 8;
        let (mut moved, mut matched) = (Vec::new(), Choice::new());
        for way in ways {
            let Some(duties) = self.moved_duties(&way.duties)? else {
                continue;
            };
            if way.place == MATCHED {
                matched.push(duties);
                continue;
            }
            for Step { to, tests } in self.steps(way.place)?.iter() {
                let next = self.over(*to);
                if next.is_none() && !self.is_match(*to) {
                    self.spend(1)?;
                    continue;
                }
                let mut choice = vec![duties.clone()];
                for test in tests.iter() {
                    let other = self.choice(*test)?;
                    choice = all_of(&choice, &other);
                    self.spend(choice.len() * other.len())?;
                }
                self.spend(WAY_WORK + choice.iter().map(|duties| WAY_WORK + duties.len()).sum::<usize>())?;
                match next {
                    Some(place) => moved.extend(choice.into_iter().map(|duties| Way { place, duties })),
                    None => matched.extend(choice),
                }
            }
        }
        Ok((moved, least(matched)))
    }

    /// What the text after the next letter must be for that from here on to be one of `ways`.
    fn moved(&mut self, ways: Ways) -> Result<Ways, Excess> {
        if ways == NEVER || ways == ALWAYS {
            return Ok(ways);
        }
        if let Some(known) = self.here.moved.get(&ways) {
            return Ok(*known);
        }
        let list = self.lists[ways as usize].clone();
        let (mut next, matched) = self.advance(&list)?;
        next.extend(matched.into_iter().map(|duties| Way {
            place: MATCHED,
            duties,
        }));
        let next = self.number(next)?;
        self.here.moved.insert(ways, next);
        Ok(next)
    }

    /// The same for duties; `None` where they cannot be met.
    fn moved_duties(&mut self, duties: &Duties) -> Result<Option<Duties>, Excess> {
        let mut moved = Vec::with_capacity(duties.len());
        for Duty { ways, is_negated } in duties.iter() {
            match (self.moved(*ways)?, is_negated) {
                (ALWAYS, false) | (NEVER, true) => {}
                (ALWAYS, true) | (NEVER, false) => return Ok(None),
                (ways, is_negated) => moved.push(Duty {
                    ways,
                    is_negated: *is_negated,
                }),
            }
        }
        Ok(united(moved))
    }

    /// What must be of the text after the next letter for `test` to hold here.
    fn choice(&mut self, test: Test) -> Result<Rc<Choice>, Excess> {
        if let Some(known) = self.here.choices.get(&test) {
            return Ok(known.clone());
        }
        let choice = match test {
            Test::Look(look) => {
                let after = self
                    .here
                    .letter
                    .map_or(Neighbour::Outside, |letter| self.letters.seen(letter));
                let holds = look.holds(self.context().before, after);
                Rc::new(holds.then(Rc::default).into_iter().collect())
            }
            Test::Around(part) => match self.parts[part as usize].role {
                Role::Ahead { is_negated } => {
                    let start = self.start(part)?;
                    let duty = Duty {
                        ways: start,
                        is_negated,
                    };
                    let duties = self.moved_duties(&[duty].into())?;
                    Rc::new(duties.into_iter().collect())
                }
                Role::Behind { is_negated } => {
                    let (_, matched) = self.follow(part)?;
                    if is_negated {
                        Rc::new(none_of(&matched))
                    } else {
                        matched
                    }
                }
                Role::Whole => unreachable!("the whole is no test"),
            },
        };
        self.here.choices.insert(test, choice.clone());
        Ok(choice)
    }

    /// Look-behind from here on over the next letter, and the duties with which it matches here.
    fn follow(&mut self, part: u32) -> Result<(Ways, Rc<Choice>), Excess> {
        if let Some(known) = self.here.followed.get(&part) {
            return Ok(known.clone());
        }
        let so_far = self.context().behind[part as usize];
        let start = self.start_of(part);
        let list: Vec<Way> = self.lists[so_far as usize]
            .iter()
            .cloned()
            .chain([start])
            .collect();
        let (next, matched) = self.advance(&list)?;
        let followed = (self.number(next)?, Rc::new(matched));
        self.here.followed.insert(part, followed.clone());
        Ok(followed)
    }

    /// The part that `place` is of, and its number there.
    fn state(&self, place: u32) -> (&Part, u32) {
        let part = &self.parts[self.owner[place as usize] as usize];
        (part, place - part.begin)
    }

    fn is_match(&self, place: u32) -> bool {
        // State 0 is the match.
        self.state(place).1 == 0
    }

    /// Where `place` leads over the next letter.
    fn over(&self, place: u32) -> Option<u32> {
        let (part, state) = self.state(place);
        let next = part.nfa.over(state, self.here.letter?, self.letters);
        Some(part.begin + next?)
    }

    /// The steps from `place`.
    fn steps(&mut self, place: u32) -> Result<Rc<[Step]>, Excess> {
        if let Some(known) = self.steps.get(&place) {
            return Ok(known.clone());
        }
        let mut found: Vec<Step> = Vec::new();
        // By state, the tests of every way to it.
        let mut met: Map<u32, Vec<Rc<[Test]>>> = Map::default();
        let mut todo: Vec<(u32, Rc<[Test]>)> = vec![(place, Rc::default())];
        while let Some((to, tests)) = todo.pop() {
            let known = met.entry(to).or_default();
            let n_known = known.len();
            if known.iter().any(|known| is_within(known, &tests)) {
                continue;
            }
            known.push(tests.clone());
            self.spend(2 + n_known)?;
            let (part, state) = self.state(to);
            let begin = part.begin;
            match &part.nfa.states[state as usize] {
                State::Class { .. } | State::Match => found.push(Step { to, tests }),
                State::Split(nexts) => todo.extend(nexts.iter().map(|next| (begin + next, tests.clone()))),
                State::Look { look, next } => todo.push((begin + next, with(&tests, Test::Look(*look)))),
                State::Around { around, next } => {
                    let part = self.part_of[*around as usize].expect("it is used");
                    todo.push((begin + next, with(&tests, Test::Around(part))));
                }
            }
        }
        let found: Rc<[Step]> = found.into();
        self.steps.insert(place, found.clone());
        Ok(found)
    }

    /// The number of `ways`, less those that are superfluous beside others.
    fn number(&mut self, mut ways: Vec<Way>) -> Result<Ways, Excess> {
        ways.sort_unstable();
        ways.dedup();
        if ways.len() > 1 {
            self.spend(ways.len() * ways.len() / 4)?;
            let is_needed = |way: &&Way| !ways.iter().any(|other| self.is_stronger(other, way));
            ways = ways.iter().filter(is_needed).cloned().collect();
        }
        let ways: Rc<[Way]> = ways.into();
        if let Some(known) = self.numbers.get(&ways) {
            return Ok(*known);
        }
        let number = self.lists.len() as Ways;
        self.lists.push(ways.clone());
        self.numbers.insert(ways, number);
        Ok(number)
    }

    /// Whether whatever can follow by the way `less` can follow by `more`, which is another one.
    fn is_stronger(&self, more: &Way, less: &Way) -> bool {
        if !is_within(&more.duties, &less.duties) {
            return false;
        }
        if more.place == less.place {
            return more.duties != less.duties;
        }
        if more.place == MATCHED || less.place == MATCHED {
            return more.place == MATCHED;
        }
        let (more, less) = (self.state(more.place), self.state(less.place));
        let (nfa, n_tail) = (&more.0.nfa, more.0.nfa.n_tail);
        let (more, less) = (more.1, less.1);
        let (more_copied, less_copied) = (nfa.copied(more), nfa.copied(less));
        more < n_tail && less >= n_tail
            || more_copied.series != 0
                && more_copied.series == less_copied.series
                && more_copied.rank > less_copied.rank
    }
}

/// `tests` and `test`, in order.
fn with(tests: &Rc<[Test]>, test: Test) -> Rc<[Test]> {
    match tests.binary_search(&test) {
        Ok(_) => tests.clone(),
        Err(place) => [&tests[..place], &[test], &tests[place..]].concat().into(),
    }
}
