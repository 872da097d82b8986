//! Objects of a grammar: which members may come, and whether the object can still be completed.
//!
//! Members come in the schema's order, those without a declared name last, or in any order. Beyond its
//! required members and their number an object may have conditions, each of which a member must meet (by its
//! value, by its absence or by its name), or the number of members. What an output has written of an object
//! is a [`Members`]. Invariant: [`Object::can_finish`] holds of every one that an output reaches.

use std::collections::hash_map::Entry;

use crate::hash::Map;
use crate::ir::NodeId;
use crate::keys::KeyTrie;
use crate::memory::{ListId, MAX_DISTINCT};
use crate::schema::PropertyOrder;

/// One thing that a member's value may be, and the conditions that it meets, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) value: NodeId,
    pub(crate) meets: u32,
}

/// One declared property.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) choices: Vec<Choice>,
    pub(crate) is_required: bool,
    /// The conditions that its absence meets.
    pub(crate) absence_meets: u32,
}

/// Members that are not declared, by what they are called.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    /// A text, disjoint from the declared names and those of the others.
    pub(crate) names: NodeId,
    pub(crate) choices: Vec<Choice>,
    /// Names that there are, or `u32::MAX` for so many or more.
    pub(crate) n_names: u32,
}

/// Something that a member must meet, unless the number of members does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) at_least: Option<u32>,
    pub(crate) at_most: Option<u32>,
}

/// What an object may consist of.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) keys: Vec<Key>,
    pub(crate) trie: KeyTrie,
    pub(crate) extras: Vec<Extra>,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) min: u32,
    pub(crate) max: Option<u32>,
    pub(crate) order: PropertyOrder,
    /// Whether there are keys or extra members without a value.
    pub(crate) has_gaps: bool,
    /// Whether no undeclared name may be written twice, so that members can be counted.
    pub(crate) has_distinct_names: bool,
}

/// What an output has written of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Members {
    pub(crate) object: u32,
    /// In the schema's order: declared keys before this one are past; there is one more for extra members.
    at: u32,
    /// In any order: the declared keys that were written, a bit each.
    written: Box<[u64]>,
    /// Members, no more than can matter.
    n: u32,
    /// Members without a declared name, where no name is written twice.
    n_extras: u32,
    /// Conditions that are met, by absence only where a key is past.
    met: u32,
    /// Names that were written and are not declared, where they must be distinct.
    pub(crate) names: ListId,
    /// Values that need as much depth or more are out of reach, [`AMPLE`] where none is.
    pub(crate) room: u32,
}

/// The room of an object all of whose values are within reach.
pub(crate) const AMPLE: u32 = u32::MAX;

/// What declared keys can still contribute to an object.
struct Ahead {
    /// The conditions that can be met, a bit each, and by how many members.
    ways: Vec<(u32, u32)>,
    /// Keys that meet nothing and only count.
    n_required: u32,
    n_optional: u32,
    n_steps: u64,
}

/// Of ways with as many members those that meet most: each that is dropped meets no more than one that stays.
fn most(mut ways: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ways.sort_unstable_by_key(|(met, n)| (*n, std::cmp::Reverse(met.count_ones()), *met));
    let (mut kept, mut begin): (Vec<(u32, u32)>, usize) = (Vec::new(), 0);
    for (met, n) in ways {
        if kept.last().is_some_and(|(_, last)| *last != n) {
            begin = kept.len();
        }
        if kept[begin..].iter().all(|(other, _)| other & met != met) {
            kept.push((met, n));
        }
    }
    kept
}

impl Members {
    /// The same, seen from where so much depth is left.
    pub(crate) fn with_room(self, room: u32) -> Self {
        Self { room, ..self }
    }
}

/// Declared keys that may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// All from the first to the last.
    Range(u32, u32),
    /// A bit each.
    Set(Box<[u64]>),
    Nothing,
}

/// What may come after some members.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) keys: Allowed,
    /// Numbers of the extra members that may come.
    pub(crate) extras: Box<[u32]>,
    pub(crate) can_close: bool,
}

impl Allowed {
    pub(crate) fn has(&self, key: u32) -> bool {
        match self {
            Self::Nothing => false,
            Self::Range(first, last) => (*first..=*last).contains(&key),
            Self::Set(words) => has_bit(words, key),
        }
    }

    /// Whether one of `keys` is among them.
    pub(crate) fn has_any(&self, keys: &[u32]) -> bool {
        match self {
            Self::Nothing => false,
            Self::Range(first, last) => keys.iter().any(|key| (*first..=*last).contains(key)),
            Self::Set(words) => keys.iter().any(|key| has_bit(words, *key)),
        }
    }
}

fn has_bit(words: &[u64], bit: u32) -> bool {
    words
        .get(bit as usize / 64)
        .is_some_and(|word| word >> (bit % 64) & 1 == 1)
}

impl Object {
    /// Drops what matches nothing and completes the tables.
    pub(crate) fn finish(&mut self, is_productive: impl Fn(NodeId) -> bool) {
        let retain = |choices: &mut Vec<Choice>| choices.retain(|choice| is_productive(choice.value));
        for key in &mut self.keys {
            retain(&mut key.choices);
        }
        for extra in &mut self.extras {
            retain(&mut extra.choices);
        }
        self.extras
            .retain(|extra| is_productive(extra.names) && !extra.choices.is_empty());
        // A key that cannot be written stays where its absence meets something.
        self.keys
            .retain(|key| !key.choices.is_empty() || key.absence_meets != 0);
        self.has_gaps = self.keys.iter().any(|key| key.choices.is_empty());
        self.trie = KeyTrie::new(self.keys.iter().map(|key| key.name.as_str()));
    }

    /// The same object of those values that `fits` says yes to. Keys and extra members keep their numbers.
    pub(crate) fn narrowed(&self, fits: impl Fn(NodeId) -> bool) -> Self {
        let mut narrow = self.clone();
        let retain = |choices: &mut Vec<Choice>| choices.retain(|choice| fits(choice.value));
        narrow.keys.iter_mut().for_each(|key| retain(&mut key.choices));
        narrow
            .extras
            .iter_mut()
            .for_each(|extra| retain(&mut extra.choices));
        narrow.has_gaps = true;
        narrow
    }

    /// What the values of members may be, some more than once.
    pub(crate) fn values(&self) -> impl Iterator<Item = NodeId> {
        let choices = self.keys.iter().map(|key| &key.choices);
        let choices = choices.chain(self.extras.iter().map(|extra| &extra.choices));
        choices.flatten().map(|choice| choice.value)
    }

    /// Whether some object of productive members is complete.
    pub(crate) fn produces(&self, is_productive: impl Fn(NodeId) -> bool) -> bool {
        let is_any = |choices: &[Choice]| choices.iter().any(|choice| is_productive(choice.value));
        let is_lacking = |key: &Key| key.is_required && !is_any(&key.choices);
        if self.keys.iter().any(is_lacking) {
            return false;
        }
        if !self.conditions.is_empty() {
            let mut shape = self.clone();
            shape.finish(is_productive);
            return shape.can_finish(&shape.start(0));
        }
        let n_required = self.keys.iter().filter(|key| key.is_required).count() as u32;
        let n_possible = self.keys.iter().filter(|key| is_any(&key.choices)).count() as u32;
        let possible = self
            .extras
            .iter()
            .filter(|extra| is_productive(extra.names) && is_any(&extra.choices));
        let n_extras = possible.map(|extra| self.n_names(extra)).max().unwrap_or(0);
        self.max.is_none_or(|max| n_required <= max && self.min <= max)
            && n_possible.saturating_add(n_extras) >= self.min
    }

    pub(crate) fn n_keys(&self) -> u32 {
        self.keys.len() as u32
    }

    /// What the value of the member `key` may be; extra ones are numbered after the declared keys.
    pub(crate) fn choices(&self, key: u32) -> &[Choice] {
        let key = key as usize;
        match self.keys.get(key) {
            Some(key) => &key.choices,
            None => &self.extras[key - self.keys.len()].choices,
        }
    }

    /// The conditions, a bit each.
    fn all(&self) -> u32 {
        (1 << self.conditions.len()) - 1
    }

    /// An open brace.
    pub(crate) fn start(&self, object: u32) -> Members {
        let n_words = match self.order {
            PropertyOrder::Schema => 0,
            PropertyOrder::Any => self.keys.len().div_ceil(64),
        };
        Members {
            object,
            at: 0,
            written: vec![0; n_words].into(),
            n: 0,
            n_extras: 0,
            met: 0,
            names: 0,
            room: AMPLE,
        }
    }

    /// Whether the declared key `key` may still be written, as far as the order goes.
    fn is_ahead(&self, members: &Members, key: u32) -> bool {
        match self.order {
            PropertyOrder::Schema => key >= members.at,
            PropertyOrder::Any => !has_bit(&members.written, key),
        }
    }

    fn ahead<'a>(&'a self, members: &'a Members) -> impl Iterator<Item = (u32, &'a Key)> {
        let first = members.at.min(self.n_keys());
        let keys = (first..).zip(&self.keys[first as usize..]);
        keys.filter(|(at, _)| self.is_ahead(members, *at))
    }

    /// `n` members, or as many as can matter.
    fn counted(&self, n: u32) -> u32 {
        if self.max.is_some() {
            return n;
        }
        let bounds = self
            .conditions
            .iter()
            .flat_map(|condition| [condition.at_least, condition.at_most.map(|most| most + 1)]);
        n.min(bounds.flatten().fold(self.min, u32::max))
    }

    /// How often a name of `extra` may be written.
    fn n_names(&self, extra: &Extra) -> u32 {
        if self.has_distinct_names {
            extra.n_names.min(MAX_DISTINCT)
        } else {
            u32::MAX
        }
    }

    /// How often one surely may still be, whichever were.
    fn n_names_left(&self, extra: &Extra, members: &Members) -> u32 {
        match self.n_names(extra) {
            u32::MAX => u32::MAX,
            n_names => n_names.saturating_sub(members.n_extras),
        }
    }

    /// What was written once the member `key` is complete; extra ones are numbered after the declared keys.
    /// `None` when the object could not be completed any more.
    pub(crate) fn after(&self, members: &Members, key: u32, choice: Choice) -> Option<Members> {
        let n_keys = self.n_keys();
        let mut next = members.clone();
        next.n = self.counted(members.n + 1);
        next.met |= choice.meets;
        if key >= n_keys {
            let extra = &self.extras[(key - n_keys) as usize];
            if self.n_names_left(extra, members) == 0 {
                return None;
            }
            next.n_extras += u32::from(self.has_distinct_names);
        }
        match self.order {
            PropertyOrder::Any if key < n_keys => next.written[key as usize / 64] |= 1 << (key % 64),
            PropertyOrder::Any => {}
            PropertyOrder::Schema => {
                let (past, at) = (key.min(n_keys), key.min(n_keys) + 1);
                for skipped in &self.keys[members.at.min(past) as usize..past as usize] {
                    if skipped.is_required {
                        return None;
                    }
                    next.met |= skipped.absence_meets;
                }
                next.at = at;
            }
        }
        self.can_finish(&next).then_some(next)
    }

    /// Whether the object may end.
    fn can_close(&self, members: &Members) -> bool {
        let mut met = members.met;
        for (_, key) in self.ahead(members) {
            if key.is_required {
                return false;
            }
            met |= key.absence_meets;
        }
        let n = members.n;
        let is_met = |(bit, condition): (usize, &Condition)| met >> bit & 1 == 1 || condition.holds(n);
        n >= self.min && self.max.is_none_or(|max| n <= max) && self.conditions.iter().enumerate().all(is_met)
    }

    /// Whether further members can complete the object.
    pub(crate) fn can_finish(&self, members: &Members) -> bool {
        if !self.conditions.is_empty() {
            return self.can_meet_all(members);
        }
        let (mut n_required, mut n_ahead) = (0, 0u32);
        for (_, key) in self.ahead(members) {
            if key.is_required && key.choices.is_empty() {
                return false;
            }
            n_required += u32::from(key.is_required);
            n_ahead += u32::from(!key.choices.is_empty());
        }
        let n_most = (members.n + n_ahead).saturating_add(self.n_extras_left(members));
        self.max
            .is_none_or(|max| members.n + n_required <= max && self.min <= max)
            && n_most >= self.min
    }

    /// Extra members that can surely still be written.
    fn n_extras_left(&self, members: &Members) -> u32 {
        let open = self.extras.iter().filter(|extra| !extra.choices.is_empty());
        let left = open.map(|extra| self.n_names_left(extra, members));
        left.max().unwrap_or(0)
    }

    /// As [`Self::can_finish`], where there are conditions: tries what the keys ahead can meet.
    fn can_meet_all(&self, members: &Members) -> bool {
        let Some(ahead) = self.look_ahead(members) else {
            return false;
        };
        let n_extras = self.n_extras_left(members);
        ahead.ways.into_iter().any(|(met, n)| {
            let n_least = n + ahead.n_required;
            let n_most = (n_least + ahead.n_optional).saturating_add(n_extras);
            self.can_end(met, n_least, n_most, members)
        })
    }

    /// What the keys ahead can meet; `None` when one of them must come and cannot.
    fn look_ahead(&self, members: &Members) -> Option<Ahead> {
        let one = u32::from(self.is_counted());
        let mut ahead = Ahead {
            ways: vec![(members.met, members.n)],
            n_required: 0,
            n_optional: 0,
            n_steps: 0,
        };
        for (_, key) in self.ahead(members) {
            if key.choices.is_empty() && key.absence_meets == 0 {
                if key.is_required {
                    return None;
                }
                continue;
            }
            let is_plain = |choice: &Choice| choice.meets == 0;
            if key.absence_meets == 0 && key.choices.iter().all(is_plain) {
                ahead.n_required += u32::from(key.is_required);
                ahead.n_optional += u32::from(!key.is_required);
                continue;
            }
            let absent = (!key.is_required).then_some((key.absence_meets, 0));
            let present = key.choices.iter().map(|choice| (choice.meets, one));
            let options: Vec<(u32, u32)> = absent.into_iter().chain(present).collect();
            let longer = ahead
                .ways
                .iter()
                .flat_map(|(met, n)| options.iter().map(move |(more, one)| (met | more, n + one)));
            ahead.ways = most(longer.collect());
            ahead.n_steps += (ahead.ways.len() * options.len()) as u64;
        }
        Some(ahead)
    }

    /// Whether the number of members matters.
    fn is_counted(&self) -> bool {
        let counts = |condition: &Condition| *condition != Condition::default();
        self.min > 0 || self.max.is_some() || self.conditions.iter().any(counts)
    }

    /// About how many steps it takes to find out what may come after some members.
    pub(crate) fn work(&self) -> u64 {
        if self.conditions.is_empty() {
            return 0;
        }
        let counts = |condition: &&Condition| **condition != Condition::default();
        let n_counting = self.conditions.iter().filter(counts).count();
        let met = self.extras.iter().flat_map(|extra| &extra.choices);
        let met = met.fold(0, |met, choice| met | choice.meets);
        let ahead = self.look_ahead(&self.start(0));
        let (n_ways, n_steps) = ahead.map_or((0, 0), |ahead| (ahead.ways.len() as u64, ahead.n_steps));
        let n_ends = n_ways << (n_counting as u32 + met.count_ones());
        self.values().count() as u64 * (n_steps + n_ends)
    }

    /// Whether `n_least ..= n_most` members can meet all conditions but `met`, of which extra ones may meet
    /// some.
    fn can_end(&self, met: u32, n_least: u32, n_most: u32, members: &Members) -> bool {
        let open = self.all() & !met;
        let may_count = |bit: usize| {
            let condition = self.conditions[bit];
            condition.at_least.is_some() || condition.at_most.is_some()
        };
        let counting: Vec<usize> = (0..self.conditions.len())
            .filter(|bit| open >> bit & 1 == 1 && may_count(*bit))
            .collect();
        // Which of the open ones the number of members meets.
        (0..1u32 << counting.len()).any(|set| {
            let by_count = counting.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1);
            let by_count: Vec<usize> = by_count.map(|(_, bit)| *bit).collect();
            let rest = by_count.iter().fold(open, |rest, bit| rest & !(1 << bit));
            let Some(n_needed) = self.n_extras_for(rest, members) else {
                return false;
            };
            let (least, most) = (n_least + n_needed, self.max.unwrap_or(u32::MAX).min(n_most));
            let chosen = by_count.iter().map(|bit| self.conditions[*bit]);
            self.n_between(least.max(self.min), most, &chosen.collect::<Vec<_>>())
        })
    }

    /// Whether a number of `least ..= most` members satisfies all of `conditions`.
    fn n_between(&self, least: u32, most: u32, conditions: &[Condition]) -> bool {
        // What holds of a number between two bounds holds of the bounds or right beside them.
        let beside = conditions
            .iter()
            .flat_map(|condition| [condition.at_least, condition.at_most])
            .flatten();
        let tried = beside.chain([least, most]);
        least <= most
            && tried
                .filter(|n| (least..=most).contains(n))
                .any(|n| conditions.iter().all(|condition| condition.holds(n)))
    }

    /// The fewest extra members that meet the conditions `open`; `None` when none do.
    fn n_extras_for(&self, open: u32, members: &Members) -> Option<u32> {
        let mut reached: Map<u32, u32> = [(0, 0)].into_iter().collect();
        let mut queue = vec![0];
        for n in 1.. {
            if reached.contains_key(&open) {
                break;
            }
            let mut next = Vec::new();
            for met in queue {
                for extra in &self.extras {
                    if self.n_names_left(extra, members) < n {
                        continue;
                    }
                    for choice in &extra.choices {
                        let met = met | choice.meets & open;
                        if let Entry::Vacant(unseen) = reached.entry(met) {
                            unseen.insert(n);
                            next.push(met);
                        }
                    }
                }
            }
            if next.is_empty() {
                break;
            }
            queue = next;
        }
        reached.get(&open).copied()
    }

    /// What may come after `members`.
    pub(crate) fn standing(&self, members: &Members) -> Standing {
        let extras = (0..).zip(&self.extras).filter(|(at, extra)| {
            let mut choices = extra.choices.iter();
            choices.any(|choice| self.after(members, self.n_keys() + at, *choice).is_some())
        });
        Standing {
            extras: extras.map(|(at, _)| at).collect(),
            keys: self.allowed_keys(members),
            can_close: self.can_close(members),
        }
    }

    fn allowed_keys(&self, members: &Members) -> Allowed {
        let required = self.ahead(members).find(|(_, key)| key.is_required);
        let required = required.map(|(at, _)| at);
        if self.conditions.is_empty() && self.order == PropertyOrder::Schema && !self.has_gaps {
            return self.range(members, required);
        }
        let mut words = vec![0; self.keys.len().div_ceil(64)];
        for (at, key) in self.ahead(members) {
            let may_come = |choice: &Choice| self.after(members, at, *choice).is_some();
            let is_free =
                self.conditions.is_empty() && self.max.is_none() && !self.has_gaps && !key.choices.is_empty();
            if is_free || key.choices.iter().any(may_come) {
                words[at as usize / 64] |= 1 << (at % 64);
            }
            if self.order == PropertyOrder::Schema && required == Some(at) {
                break;
            }
        }
        if words.iter().all(|word| *word == 0) {
            return Allowed::Nothing;
        }
        Allowed::Set(words.into())
    }

    /// In the schema's order and without conditions: no required key is skipped, and both bounds on the
    /// number of members can still be met.
    fn range(&self, members: &Members, required: Option<u32>) -> Allowed {
        let (n, n_keys) = (members.n, self.n_keys());
        let n_required = self.ahead(members).filter(|(_, key)| key.is_required).count() as u32;
        let mut first = members.at;
        if let Some(max) = self.max {
            let only_required = n + 1 + n_required > max;
            if n + n_required.max(1) > max || only_required && required.is_none() {
                return Allowed::Nothing;
            }
            if only_required {
                first = required.unwrap_or(first);
            }
        }
        // Key k leaves n + 1 + (n_keys - k - 1) declared members possible, and the extra ones.
        let n_most = (n + n_keys).saturating_add(self.n_extras_left(members));
        let last = n_most.saturating_sub(self.min).min(required.unwrap_or(n_keys));
        match last.min(n_keys.saturating_sub(1)) {
            last if n_keys > 0 && first <= last && n_most >= self.min => Allowed::Range(first, last),
            _ => Allowed::Nothing,
        }
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        let of_choices = |choices: &Vec<Choice>| choices.len() * size_of::<Choice>();
        let of_key = |key: &Key| key.name.len() + of_choices(&key.choices) + size_of::<Key>();
        let of_extra = |extra: &Extra| of_choices(&extra.choices) + size_of::<Extra>();
        size_of::<Self>()
            + self.keys.iter().map(of_key).sum::<usize>()
            + self.extras.iter().map(of_extra).sum::<usize>()
            + self.trie.n_bytes()
            + self.conditions.len() * size_of::<Condition>()
    }
}

impl Condition {
    /// Whether `n` members meet it.
    fn holds(self, n: u32) -> bool {
        self.at_least.is_some_and(|least| n >= least) || self.at_most.is_some_and(|most| n <= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u32);

    impl Random {
        fn below(&mut self, n: u32) -> u32 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 16) % n
        }

        fn bound(&mut self) -> Option<u32> {
            (self.below(3) == 0).then(|| self.below(5))
        }
    }

    fn object(random: &mut Random, order: PropertyOrder) -> Object {
        let n_conditions = random.below(3);
        let all = 1 << n_conditions;
        let choices = |random: &mut Random| -> Vec<Choice> {
            let choice = |random: &mut Random| Choice {
                value: 1,
                meets: random.below(all) & random.below(all),
            };
            (0..1 + random.below(2)).map(|_| choice(random)).collect()
        };
        let keys = (0..random.below(3)).map(|at| Key {
            name: at.to_string(),
            choices: choices(random),
            is_required: random.below(4) == 0,
            absence_meets: random.below(all) & random.below(all),
        });
        let keys: Vec<Key> = keys.collect();
        let extras: Vec<Extra> = (0..random.below(2))
            .map(|_| Extra {
                names: 1,
                choices: choices(random),
                n_names: u32::MAX,
            })
            .collect();
        let conditions = (0..n_conditions).map(|_| Condition {
            at_least: random.bound(),
            at_most: random.bound(),
        });
        let mut object = Object {
            trie: KeyTrie::new(std::iter::empty()),
            conditions: conditions.collect(),
            min: random.below(4),
            max: random.bound(),
            order,
            has_gaps: false,
            has_distinct_names: !extras.is_empty(),
            keys,
            extras,
        };
        object.finish(|_| true);
        object
    }

    /// Members written so far, the number of the choice with each.
    type Written = Vec<(u32, usize)>;

    fn is_complete(object: &Object, written: &Written) -> bool {
        let n = written.len() as u32;
        let is_written = |key: u32| written.iter().any(|(other, _)| *other == key);
        let lacks = (0..).zip(&object.keys).filter(|(at, _)| !is_written(*at));
        let met = written
            .iter()
            .map(|(key, choice)| object.choices(*key)[*choice].meets);
        let met = met.chain(lacks.clone().map(|(_, key)| key.absence_meets));
        let met = met.fold(0, |all, one| all | one);
        let holds = |(bit, condition): (usize, &Condition)| met >> bit & 1 == 1 || condition.holds(n);
        lacks.into_iter().all(|(_, key)| !key.is_required)
            && n >= object.min
            && object.max.is_none_or(|max| n <= max)
            && object.conditions.iter().enumerate().all(holds)
    }

    fn longer(object: &Object, written: &Written) -> Vec<Written> {
        let n_keys = object.n_keys();
        let last = written.last().map(|(key, _)| *key);
        let may_come = |key: &u32| {
            let is_new = *key >= n_keys || written.iter().all(|(other, _)| other != key);
            is_new && (object.order == PropertyOrder::Any || last.is_none_or(|last| last <= *key))
        };
        let keys = (0..n_keys + object.extras.len() as u32).filter(may_come);
        let choices = keys.flat_map(|key| (0..object.choices(key).len()).map(move |choice| (key, choice)));
        choices.map(|next| [&written[..], &[next]].concat()).collect()
    }

    #[test]
    fn what_may_come_is_what_trying_finds() {
        const MAX_MEMBERS: usize = 6;
        for seed in 0..250 {
            let mut random = Random(seed);
            let order = [PropertyOrder::Schema, PropertyOrder::Any][seed as usize % 2];
            let object = object(&mut random, order);
            // All that can be written, and whether it can be completed with at most so many members.
            let mut by_length: Vec<Vec<Written>> = vec![vec![Vec::new()]];
            for n in 0..MAX_MEMBERS {
                let next = by_length[n].iter().flat_map(|written| longer(&object, written));
                let next = next.collect();
                by_length.push(next);
            }
            let mut can: std::collections::HashSet<Written> = Default::default();
            for written in by_length.iter().flatten().rev() {
                if is_complete(&object, written)
                    || longer(&object, written).iter().any(|more| can.contains(more))
                {
                    can.insert(written.clone());
                }
            }
            let start = object.start(0);
            assert_eq!(
                object.can_finish(&start),
                can.contains(&Vec::new()),
                "seed {seed}"
            );
            let mut open = vec![(Vec::new(), start)];
            while let Some((written, members)) = open.pop() {
                if !can.contains(&written) || written.len() > 2 {
                    continue;
                }
                let standing = object.standing(&members);
                assert_eq!(
                    standing.can_close,
                    is_complete(&object, &written),
                    "seed {seed}: {written:?}"
                );
                let mut may_come = std::collections::HashSet::new();
                for more in longer(&object, &written) {
                    let (key, choice) = more[more.len() - 1];
                    let after = object.after(&members, key, object.choices(key)[choice]);
                    assert_eq!(
                        after.is_some(),
                        can.contains(&more),
                        "seed {seed}: {more:?} of {object:?}"
                    );
                    if let Some(after) = after {
                        may_come.insert(key);
                        open.push((more, after));
                    }
                }
                for key in 0..object.n_keys() {
                    assert_eq!(
                        standing.keys.has(key),
                        may_come.contains(&key),
                        "seed {seed}: {written:?}"
                    );
                }
                let extras = standing.extras.iter().map(|extra| object.n_keys() + extra);
                let expected = may_come.into_iter().filter(|key| *key >= object.n_keys());
                assert!(extras.eq(expected.collect::<std::collections::BTreeSet<_>>()));
            }
        }
    }
}
