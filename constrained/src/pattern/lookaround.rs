//! Expressions with look-around made deterministic.
//!
//! A state says what a text must go on with: one of several *ways*, each a place in the expression and
//! *duties* that came from look-ahead on the way there. A duty is what the rest must match, or must not, which
//! is again a list of ways, so that look-ahead may stand within look-ahead. Such lists are kept once and have
//! numbers. What look-behind may have matched so far is followed beside it, in a list of ways for each, from
//! every place of the text on.
//!
//! ```text
//! ^(?!ab)[a-z]+$   after `a`: at `[a-z]+`, and the rest is not `b…`
//! (?<!a)b$         after `a`: at the beginning of the search; look-behind: has matched `a`
//! ```

use std::rc::Rc;

use regex_automata::nfa::thompson::{NFA, State};
use regex_automata::util::look::{Look, LookMatcher, LookSet};

use super::{Bounds, Direction, Pattern, nfa, tail};
use crate::determinize::{BEGIN, Built, EDGE_WORK, Excess, over, seen};
use crate::dfa::{Classes, DEAD, Dfa};
use crate::error::CompileError;
use crate::hash::Map;

/// A list of ways: [`NEVER`], [`ALWAYS`] or another one.
pub(super) type Ways = u32;
/// No way at all.
const NEVER: Ways = 0;
/// Whatever follows.
const ALWAYS: Ways = 1;

/// The place of a way that has matched: only its duties are left.
const MATCHED: u32 = u32::MAX;

/// Ways that the rest must match, or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Duty {
    ways: Ways,
    is_negated: bool,
}

/// Duties that are all to be met, ascending.
type Duties = Rc<[Duty]>;

/// One of several: none is never met, an empty list of duties always.
type Choice = Vec<Duties>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Way {
    /// State of an automaton, counted through all of them.
    place: u32,
    duties: Duties,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    /// An anchor or a border between words, as its number.
    Assertion(u32),
    /// An expression, by its number among all.
    Around(u32),
}

/// Where a place leads without a byte when the tests hold: to a state that takes a byte, or to the match.
#[derive(Clone, Debug)]
struct Step {
    to: u32,
    tests: Rc<[Test]>,
}

/// One expression of the pattern: itself, or the content of look-around.
struct Part {
    nfa: NFA,
    /// The number of its first state.
    begin: u32,
    role: Role,
    is_tail: Vec<bool>,
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
    /// What assertions see of the byte before.
    before: u32,
}

/// Where a text may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    AtEnd,
    /// Whatever follows, and none of it may matter.
    Anywhere,
}

pub(super) struct Machine {
    /// What stands within another part comes before it; the whole is the last one.
    parts: Vec<Part>,
    /// By number of a group less one: the part that tests there.
    tested: Vec<Option<u32>>,
    /// By state, its part.
    owner: Vec<u32>,
    looks: LookSet,
    steps: Map<u32, Rc<[Step]>>,
    lists: Vec<Rc<[Way]>>,
    numbers: Map<Rc<[Way]>, Ways>,
    here: Here,
    n_work: u64,
    max_work: u64,
}

/// What is known at one place of the text, before one byte or the end.
#[derive(Default)]
struct Here {
    context: Option<Context>,
    byte: Option<u8>,
    moved: Map<Ways, Ways>,
    choices: Map<Test, Rc<Choice>>,
    followed: Map<u32, (Ways, Rc<Choice>)>,
}

/// The smallest automaton of the texts that `pattern` matches from end to end.
pub(super) fn compile(pattern: &Pattern, bounds: Bounds) -> Result<Built, CompileError> {
    let mut machine = Machine::new(pattern, bounds)?;
    let start = Whole {
        ways: machine.start(machine.whole()),
        context: machine.begin(),
    };
    let built = machine.determinize(start, Ending::AtEnd, bounds.max_states);
    let built = built.map_err(|what| bounds.exceeded(what, &pattern.name))?;
    Ok(built.expect("nothing follows the end"))
}

impl Machine {
    pub(super) fn new(pattern: &Pattern, bounds: Bounds) -> Result<Self, CompileError> {
        let mut machine = Self {
            parts: Vec::new(),
            tested: vec![None; pattern.arounds.len()],
            owner: Vec::new(),
            looks: LookSet::empty(),
            steps: Map::default(),
            lists: Vec::new(),
            numbers: Map::default(),
            here: Here::default(),
            n_work: 0,
            max_work: bounds.max_work(),
        };
        assert_eq!(machine.number(Vec::new()), NEVER);
        let always = Way {
            place: MATCHED,
            duties: Rc::default(),
        };
        assert_eq!(machine.number(vec![always]), ALWAYS);
        let is_used = pattern.used();
        for (n, around) in pattern.arounds.iter().enumerate().filter(|(n, _)| is_used[*n]) {
            let is_negated = around.is_negated;
            let role = match around.direction {
                Direction::Ahead => Role::Ahead { is_negated },
                Direction::Behind => Role::Behind { is_negated },
            };
            machine.tested[n] = Some(machine.parts.len() as u32);
            let nfa = nfa(&around.body, &pattern.name, bounds)?;
            machine.add(nfa, role, None);
        }
        let index = pattern.arounds.len() as u32 + 1;
        let marked = tail::marked(&pattern.hir, index);
        let nfa = nfa(marked.as_ref().unwrap_or(&pattern.hir), &pattern.name, bounds)?;
        machine.add(nfa, Role::Whole, marked.map(|_| index));
        Ok(machine)
    }

    fn add(&mut self, nfa: NFA, role: Role, tail: Option<u32>) {
        let part = self.parts.len() as u32;
        let begin = self.owner.len() as u32;
        self.owner.extend(nfa.states().iter().map(|_| part));
        self.n_work += nfa.states().len() as u64;
        self.looks = self.looks.union(nfa.look_set_any());
        self.parts.push(Part {
            is_tail: tail::states(&nfa, tail),
            nfa,
            begin,
            role,
        });
    }

    /// The part that is not look-around.
    pub(super) fn whole(&self) -> u32 {
        self.parts.len() as u32 - 1
    }

    /// Before the first byte.
    pub(super) fn begin(&self) -> Context {
        Context {
            behind: self.parts.iter().map(|_| NEVER).collect(),
            before: BEGIN,
        }
    }

    /// Which bytes no part tells apart.
    pub(super) fn classes(&self) -> Classes {
        let classes = self.parts.iter().map(|part| part.nfa.byte_classes());
        let classes = classes.map(|classes| Classes::by(|byte| classes.get(byte)));
        classes
            .reduce(|all, more| all.refine(&more))
            .expect("the whole is a part")
    }

    /// The smallest automaton of what may follow `start`; `None` where what follows its texts matters.
    pub(super) fn determinize(
        &mut self,
        start: Whole,
        ending: Ending,
        max_states: usize,
    ) -> Result<Option<Built>, Excess> {
        let classes = self.classes();
        let mut ids: Map<Whole, u32> = [(start.clone(), 1)].into_iter().collect();
        let mut states = vec![start];
        let (mut table, mut accepts) = (vec![DEAD; classes.len()], vec![false]);
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
            accepts.push(is_accepting);
            for byte in classes.members() {
                let next = self.next(&state, *byte)?;
                table.push(next.map_or(DEAD, |next| {
                    *ids.entry(next).or_insert_with_key(|next| {
                        states.push(next.clone());
                        states.len() as u32
                    })
                }));
            }
            if states.len() > max_states {
                return Err(Excess::States);
            }
        }
        let n_work = self.n_work + EDGE_WORK * table.iter().filter(|to| **to != DEAD).count() as u64;
        let dfa = Dfa::reduced(classes, table, accepts, 1);
        Ok(Some(Built { dfa, n_work }))
    }

    pub(super) fn spend(&mut self, n_work: usize) -> Result<(), Excess> {
        self.n_work += n_work as u64;
        if self.n_work > self.max_work {
            return Err(Excess::Work);
        }
        Ok(())
    }

    fn arrive(&mut self, context: &Context, byte: Option<u8>) {
        self.here = Here {
            context: Some(context.clone()),
            byte,
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

    /// Whether the text may end before `byte`; `None` where that depends on what follows it.
    pub(super) fn is_accepting_before(&mut self, state: &Whole, byte: u8) -> Result<Option<bool>, Excess> {
        self.arrive(&state.context, Some(byte));
        let list = self.lists[state.ways as usize].clone();
        let (_, matched) = self.advance(&list)?;
        let is_free = matched.iter().any(|duties| duties.is_empty());
        Ok((is_free || matched.is_empty()).then_some(is_free))
    }

    fn next(&mut self, state: &Whole, byte: u8) -> Result<Option<Whole>, Excess> {
        self.arrive(&state.context, Some(byte));
        let list = self.lists[state.ways as usize].clone();
        let (ways, _) = self.advance(&list)?;
        let ways = self.number(ways);
        if ways == NEVER {
            return Ok(None);
        }
        let context = self.next_context(byte)?;
        Ok(Some(Whole { ways, context }))
    }

    /// After `byte` at `context`.
    pub(super) fn after(&mut self, context: &Context, byte: u8) -> Result<Context, Excess> {
        self.arrive(context, Some(byte));
        self.next_context(byte)
    }

    fn next_context(&mut self, byte: u8) -> Result<Context, Excess> {
        let mut behind = Vec::with_capacity(self.parts.len());
        for part in 0..self.parts.len() as u32 {
            behind.push(match self.parts[part as usize].role {
                Role::Behind { .. } => self.follow(part)?.0,
                _ => NEVER,
            });
        }
        Ok(Context {
            behind: behind.into(),
            before: seen(self.looks, byte),
        })
    }

    /// The one way that begins `part`.
    pub(super) fn start(&mut self, part: u32) -> Ways {
        let start = self.start_of(part);
        self.number(vec![start])
    }

    fn start_of(&self, part: u32) -> Way {
        let Part { nfa, begin, .. } = &self.parts[part as usize];
        Way {
            place: begin + nfa.start_anchored().as_u32(),
            duties: Rc::default(),
        }
    }

    /// Where `ways` lead over the byte that is next, and the duties of those that match before it.
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

    /// What the text after the next byte must be for that from here on to be one of `ways`.
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
        let next = self.number(next);
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

    /// What must be of the text after the next byte for `test` to hold here.
    fn choice(&mut self, test: Test) -> Result<Rc<Choice>, Excess> {
        if let Some(known) = self.here.choices.get(&test) {
            return Ok(known.clone());
        }
        let choice = match test {
            Test::Assertion(look) => {
                let look = Look::from_repr(look).expect("it was one");
                Rc::new(if self.holds(look) {
                    vec![Rc::default()]
                } else {
                    Choice::new()
                })
            }
            Test::Around(part) => match self.parts[part as usize].role {
                Role::Ahead { is_negated } => {
                    let start = self.start(part);
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

    /// Look-behind from here on over the next byte, and the duties with which it matches here.
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
        let followed = (self.number(next), Rc::new(matched));
        self.here.followed.insert(part, followed.clone());
        Ok(followed)
    }

    fn holds(&self, look: Look) -> bool {
        let before = u8::try_from(self.context().before).ok();
        let text: Vec<u8> = before.into_iter().chain(self.here.byte).collect();
        LookMatcher::new().matches(look, &text, before.iter().len())
    }

    fn state(&self, place: u32) -> (&Part, &State) {
        let part = &self.parts[self.owner[place as usize] as usize];
        (part, &part.nfa.states()[(place - part.begin) as usize])
    }

    fn is_match(&self, place: u32) -> bool {
        matches!(self.state(place).1, State::Match { .. })
    }

    /// Where `place` leads over the next byte.
    fn over(&self, place: u32) -> Option<u32> {
        let byte = self.here.byte?;
        let (part, state) = self.state(place);
        Some(part.begin + over(state, byte)?)
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
            let test = match state {
                State::Look { look, .. } => Some(Test::Assertion(look.as_repr())),
                State::Capture {
                    group_index, slot, ..
                } if slot.as_usize() % 2 == 0 => {
                    let place = group_index.as_usize().checked_sub(1);
                    let part = place.and_then(|place| self.tested.get(place).copied().flatten());
                    part.map(Test::Around)
                }
                _ => None,
            };
            let after: Rc<[Test]> = match test {
                Some(test) if !tests.contains(&test) => {
                    let mut more = tests.to_vec();
                    more.push(test);
                    more.sort_unstable();
                    more.into()
                }
                _ => tests.clone(),
            };
            let mut follow = |next: u32| todo.push((begin + next, after.clone()));
            match state {
                State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) | State::Match { .. } => {
                    found.push(Step { to, tests });
                }
                State::Look { next, .. } | State::Capture { next, .. } => follow(next.as_u32()),
                State::Union { alternates } => alternates.iter().for_each(|next| follow(next.as_u32())),
                State::BinaryUnion { alt1, alt2 } => {
                    [alt1, alt2].into_iter().for_each(|next| follow(next.as_u32()))
                }
                State::Fail => {}
            }
        }
        let found: Rc<[Step]> = found.into();
        self.steps.insert(place, found.clone());
        Ok(found)
    }

    /// The number of `ways`, less those that can do no more than others.
    fn number(&mut self, mut ways: Vec<Way>) -> Ways {
        ways.sort_unstable();
        ways.dedup();
        let is_strong = |way: &Way| {
            way.place == MATCHED || {
                let part = &self.parts[self.owner[way.place as usize] as usize];
                part.is_tail[(way.place - part.begin) as usize]
            }
        };
        let strong: Vec<Duties> = ways
            .iter()
            .filter(|way| is_strong(way))
            .map(|way| way.duties.clone())
            .collect();
        if !strong.is_empty() {
            ways.retain(|way| is_strong(way) || !strong.iter().any(|duties| is_within(duties, &way.duties)));
        }
        let all = ways.clone();
        ways.retain(|way| {
            let begin = all.partition_point(|other| other.place < way.place);
            let same = all[begin..].iter().take_while(|other| other.place == way.place);
            let mut others = same.filter(|other| other.duties != way.duties);
            !others.any(|other| is_within(&other.duties, &way.duties))
        });
        let ways: Rc<[Way]> = ways.into();
        if let Some(known) = self.numbers.get(&ways) {
            return *known;
        }
        let number = self.lists.len() as Ways;
        self.lists.push(ways.clone());
        self.numbers.insert(ways, number);
        number
    }
}

/// Whether all of `few`, which is sorted, is in `many`, too.
fn is_within<T: Ord>(few: &[T], many: &[T]) -> bool {
    let mut many = many.iter();
    few.iter().all(|one| many.any(|other| other == one))
}

/// `duties` in order; `None` where one is the opposite of another.
fn united(mut duties: Vec<Duty>) -> Option<Duties> {
    duties.sort_unstable();
    duties.dedup();
    let is_contradiction = duties.windows(2).any(|pair| pair[0].ways == pair[1].ways);
    (!is_contradiction).then(|| duties.into())
}

/// The choices that are not implied by others.
fn least(mut choice: Choice) -> Choice {
    choice.sort_unstable_by_key(|duties| duties.len());
    let mut kept = Choice::new();
    for duties in choice {
        if !kept.iter().any(|kept| is_within(kept, &duties)) {
            kept.push(duties);
        }
    }
    kept
}

fn all_of(a: &Choice, b: &Choice) -> Choice {
    let pairs = a
        .iter()
        .flat_map(|a| b.iter().map(move |b| [&a[..], &b[..]].concat()));
    least(pairs.filter_map(united).collect())
}

/// What holds where nothing of `choice` does: of each the opposite of a duty.
fn none_of(choice: &Choice) -> Choice {
    let opposite = |duty: &Duty| -> Duties {
        let is_negated = !duty.is_negated;
        [Duty { is_negated, ..*duty }].into()
    };
    let opposites = choice
        .iter()
        .map(|duties| duties.iter().map(opposite).collect::<Choice>());
    opposites.fold(vec![Rc::default()], |all, one| all_of(&all, &one))
}
