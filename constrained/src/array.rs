//! Arrays of a grammar: which items may come, and whether the array can still be completed.
//!
//! Items may be counted by what they satisfy (`contains`). The counters' values are packed into one number;
//! for each place and value of the counters it is known how many more items can complete the array.
//! Invariant: [`Array::can_finish`] holds of every place that an output reaches.

use crate::ir::NodeId;
use crate::schema::Enforcement;

/// One thing that an item may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) item: NodeId,
    /// The counters that it adds to, one bit each.
    pub(crate) counts: u32,
}

/// Bounds on how many items are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counter {
    pub(crate) min: u32,
    pub(crate) max: Option<u32>,
}

impl Counter {
    /// The largest value that is told apart.
    fn last(self) -> u32 {
        self.max.unwrap_or(self.min)
    }
}

/// An array: the first items one by one, then any number alike.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    prefix: Vec<Vec<Variant>>,
    rest: Vec<Variant>,
    pub(crate) min: u32,
    max: Option<u32>,
    /// When not empty: the items are distinct ones of these, at most 32.
    distinct: Vec<NodeId>,
    /// When items are compared as they are written.
    unique: Option<Box<Uniqueness>>,
    counters: Vec<Counter>,
    /// `[place][counters]`: numbers of further items that satisfy the counters; places are those of the
    /// prefix, then all others. Empty without counters.
    completions: Vec<Vec<Numbers>>,
}

/// The node that matches nothing, in the place of a distinct value that may not come.
const GONE: NodeId = 0;

/// That items are different, where the schema says so.
#[derive(Clone, Debug)]
pub(crate) struct Uniqueness {
    /// JSON pointer of the schema with `uniqueItems`.
    pub(crate) pointer: String,
    /// Whether it may be left out.
    pub(crate) enforcement: Enforcement,
}

/// The largest table of completions, in numbers.
const MAX_COMPLETIONS: u64 = 1 << 20;

impl Array {
    pub(crate) fn new(prefix: Vec<NodeId>, rest: Option<NodeId>, min: u32, max: Option<u32>) -> Self {
        let one = |item: NodeId| Variant { item, counts: 0 };
        Self {
            prefix: prefix.into_iter().map(|item| vec![one(item)]).collect(),
            rest: rest.into_iter().map(one).collect(),
            min,
            max,
            distinct: Vec::new(),
            unique: None,
            counters: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// The same with items that are all different.
    pub(crate) fn with_unique_items(self, unique: Uniqueness) -> Self {
        Self {
            unique: Some(Box::new(unique)),
            ..self
        }
    }

    /// The same with items that may be equal.
    pub(crate) fn drop_uniqueness(&mut self) {
        self.unique = None;
    }

    /// Whether items are compared with earlier ones.
    pub(crate) fn is_unique(&self) -> bool {
        self.unique.is_some()
    }

    pub(crate) fn uniqueness(&self) -> Option<&Uniqueness> {
        self.unique.as_deref()
    }

    /// Whether items are counted by what they satisfy.
    pub(crate) fn is_counted(&self) -> bool {
        !self.counters.is_empty()
    }

    /// Whether the number of items alone makes endlessly many arrays.
    pub(crate) fn is_endless(&self) -> bool {
        self.max.is_none() && !self.rest.is_empty() && self.distinct.is_empty() && self.counters.is_empty()
    }

    /// What item `at` may be, distinct values apart.
    pub(crate) fn variants(&self, at: u32) -> &[Variant] {
        self.prefix.get(at as usize).unwrap_or(&self.rest)
    }

    /// First items that have a constraint of their own.
    pub(crate) fn n_prefix(&self) -> u32 {
        self.prefix.len() as u32
    }

    pub(crate) fn counters(&self) -> &[Counter] {
        &self.counters
    }

    /// What its items may be, some more than once.
    pub(crate) fn all_items(&self) -> impl Iterator<Item = NodeId> {
        let variants = self.prefix.iter().chain([&self.rest]).flatten();
        variants
            .map(|variant| variant.item)
            .chain(self.distinct.iter().copied())
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        let n_variants = self.prefix.iter().map(Vec::len).sum::<usize>() + self.rest.len();
        let numbers = self.completions.iter().flatten();
        let of_numbers = |numbers: &Numbers| size_of::<Numbers>() + numbers.words.len() * 8;
        size_of::<Self>()
            + n_variants * size_of::<Variant>()
            + self.distinct.len() * 4
            + self.counters.len() * size_of::<Counter>()
            + numbers.map(of_numbers).sum::<usize>()
    }

    pub(crate) fn of_distinct(distinct: Vec<NodeId>, min: u32, max: Option<u32>) -> Self {
        Self {
            distinct,
            ..Self::new(Vec::new(), None, min, max)
        }
    }

    /// An array whose items are counted; the error is the limit that its tables exceed.
    pub(crate) fn counted(
        prefix: Vec<Vec<Variant>>,
        rest: Vec<Variant>,
        (min, max): (u32, Option<u32>),
        counters: Vec<Counter>,
    ) -> Result<Self, u64> {
        let array = Self {
            prefix,
            rest,
            counters,
            ..Self::new(Vec::new(), None, min, max)
        };
        if array.work() > MAX_COMPLETIONS {
            return Err(MAX_COMPLETIONS);
        }
        Ok(array)
    }

    /// Size of the table of completions.
    pub(crate) fn work(&self) -> u64 {
        let lasts = self.counters.iter().map(|counter| u64::from(counter.last()));
        let n_values = lasts
            .clone()
            .fold(1, |n: u64, last| n.saturating_mul(last.saturating_add(1)));
        let longest = lasts.fold(1, u64::saturating_add);
        let n_places = self.prefix.len() as u64 + 1;
        n_values.saturating_mul(longest).saturating_mul(n_places)
    }

    /// Drops the items that match nothing and completes the tables.
    pub(crate) fn finish(&mut self, is_productive: impl Fn(NodeId) -> bool) {
        for variants in self.prefix.iter_mut().chain([&mut self.rest]) {
            variants.retain(|variant| is_productive(variant.item));
        }
        self.distinct.retain(|value| is_productive(*value));
        self.completions = self.tabulated(|_| true);
    }

    /// The same array of those items that `fits` says yes to; distinct values keep their numbers.
    pub(crate) fn narrowed(&self, fits: impl Fn(NodeId) -> bool) -> Self {
        let mut narrowed = Self {
            distinct: Vec::new(),
            ..self.clone()
        };
        narrowed.finish(&fits);
        let kept = self
            .distinct
            .iter()
            .map(|value| if fits(*value) { *value } else { GONE });
        narrowed.distinct = kept.collect();
        narrowed
    }

    /// Whether some array of productive items is complete.
    pub(crate) fn produces(&self, is_productive: impl Fn(NodeId) -> bool) -> bool {
        if self.counters.is_empty() {
            return self
                .most_items(&is_productive)
                .is_none_or(|most| most >= self.min);
        }
        let table = self.tabulated(is_productive);
        self.fits(&table[0][0], 0)
    }

    /// The most items that an array without counters can have; `None` without a bound.
    fn most_items(&self, is_productive: impl Fn(NodeId) -> bool) -> Option<u32> {
        let is = |variants: &Vec<Variant>| variants.iter().any(|variant| is_productive(variant.item));
        let bounded = if self.distinct.is_empty() {
            let n_prefix = self.prefix.iter().take_while(|variants| is(variants)).count();
            let is_endless = n_prefix == self.prefix.len() && is(&self.rest);
            (!is_endless).then_some(n_prefix as u32)
        } else {
            Some(
                self.distinct
                    .iter()
                    .filter(|value| is_productive(**value))
                    .count() as u32,
            )
        };
        bounded.into_iter().chain(self.max).min()
    }

    /// Whether `n` items with these counts can be completed.
    pub(crate) fn can_finish(&self, n: u32, used: u32) -> bool {
        if self.completions.is_empty() {
            return self.most_items(|item| item != GONE).is_none_or(|most| n <= most);
        }
        let place = (n as usize).min(self.prefix.len());
        self.fits(&self.completions[place][used as usize], n)
    }

    fn fits(&self, further: &Numbers, n: u32) -> bool {
        let least = self.min.saturating_sub(n);
        let most = match self.max {
            Some(max) if n > max => return false,
            Some(max) => max - n,
            None => u32::MAX,
        };
        least <= most && further.has_between(least, most)
    }

    /// Whether the array may end with `n` items and these counts.
    pub(crate) fn can_close(&self, n: u32, used: u32) -> bool {
        n >= self.min && self.is_satisfied(used)
    }

    fn is_satisfied(&self, mut used: u32) -> bool {
        if !self.distinct.is_empty() {
            return true;
        }
        self.counters.iter().all(|counter| {
            let n_values = counter.last() + 1;
            let value = used % n_values;
            used /= n_values;
            value >= counter.min
        })
    }

    /// The counts after one more of `variant`; `None` when a maximum is exceeded.
    fn add(&self, used: u32, variant: Variant) -> Option<u32> {
        let (mut sum, mut stride) = (used, 1);
        for (i, counter) in self.counters.iter().enumerate() {
            let n_values = counter.last() + 1;
            if variant.counts >> i & 1 == 1 {
                if used / stride % n_values < counter.last() {
                    sum += stride;
                } else if counter.max.is_some() {
                    return None;
                }
            }
            stride *= n_values;
        }
        Some(sum)
    }

    /// What item `n` may be, each with the number of items and the counts after it.
    pub(crate) fn items(&self, n: u32, used: u32) -> impl Iterator<Item = (NodeId, u32, u32)> {
        // Without a maximum, numbers beyond the minimum and the first items are alike.
        let bound = self.min.max(self.prefix.len() as u32).max(1);
        let after = if self.max.is_none() && self.distinct.is_empty() {
            (n + 1).min(bound)
        } else {
            n + 1
        };
        let unused = self
            .distinct
            .iter()
            .enumerate()
            .filter(move |(i, value)| used >> i & 1 == 0 && **value != GONE);
        let unused = unused.map(move |(i, value)| (*value, used | 1 << i));
        let variants = self.variants(n).iter();
        let counted = variants.filter_map(move |variant| Some((variant.item, self.add(used, *variant)?)));
        let can = move |(_, used): &(NodeId, u32)| self.can_finish(n + 1, *used);
        unused
            .chain(counted)
            .filter(can)
            .map(move |(item, used)| (item, after, used))
    }

    fn tabulated(&self, is_productive: impl Fn(NodeId) -> bool) -> Vec<Vec<Numbers>> {
        if self.counters.is_empty() {
            return Vec::new();
        }
        let n_values: u32 = self.counters.iter().map(|counter| counter.last() + 1).product();
        let start = |used| {
            let mut numbers = Numbers::default();
            if self.is_satisfied(used) {
                numbers.insert(0);
            }
            numbers
        };
        let possible = |variants: &'_ [Variant]| -> Vec<Variant> {
            let is = |variant: &&Variant| is_productive(variant.item);
            variants.iter().filter(is).copied().collect()
        };
        // Counts never fall, so larger ones are known first.
        let mut last: Vec<Numbers> = vec![Numbers::default(); n_values as usize];
        let rest = possible(&self.rest);
        for used in (0..n_values).rev() {
            let mut numbers = start(used);
            let mut is_idle = false;
            for next in rest.iter().filter_map(|variant| self.add(used, *variant)) {
                if next == used {
                    is_idle = true;
                } else {
                    numbers.extend_after_one(&last[next as usize]);
                }
            }
            if is_idle {
                numbers.endless_from = numbers.first();
            }
            last[used as usize] = numbers;
        }
        let mut table = vec![last];
        for variants in self.prefix.iter().rev() {
            let later = table.last().expect("it has a last place");
            let variants = possible(variants);
            let place = (0..n_values).map(|used| {
                let mut numbers = start(used);
                for next in variants.iter().filter_map(|variant| self.add(used, *variant)) {
                    numbers.extend_after_one(&later[next as usize]);
                }
                numbers
            });
            let place = place.collect();
            table.push(place);
        }
        table.reverse();
        table
    }
}

/// A set of numbers: some, and all from one on.
#[derive(Clone, Debug, Default)]
struct Numbers {
    words: Vec<u64>,
    endless_from: Option<u32>,
}

impl Numbers {
    fn insert(&mut self, n: u32) {
        let word = n as usize / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (n % 64);
    }

    /// The numbers of `other`, each plus one.
    fn extend_after_one(&mut self, other: &Self) {
        for (i, word) in other.words.iter().enumerate() {
            for n in (0..64).filter(|n| word >> n & 1 == 1) {
                self.insert(i as u32 * 64 + n + 1);
            }
        }
        let endless = other.endless_from.map(|from| from + 1);
        self.endless_from = self.endless_from.into_iter().chain(endless).min();
    }

    fn first(&self) -> Option<u32> {
        let listed = self.words.iter().position(|word| *word != 0);
        let listed = listed.map(|i| i as u32 * 64 + self.words[i].trailing_zeros());
        listed.into_iter().chain(self.endless_from).min()
    }

    fn has_between(&self, least: u32, most: u32) -> bool {
        let is_in = |n: u32| self.words[n as usize / 64] >> (n % 64) & 1 == 1;
        let end = most.min((self.words.len() as u32 * 64).saturating_sub(1));
        let is_listed = !self.words.is_empty() && (least..=end).any(is_in);
        is_listed || self.endless_from.is_some_and(|from| from <= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items 1, 2, 3 count for nothing, the first counter, both.
    fn array(bounds: (u32, Option<u32>), counters: [(u32, Option<u32>); 2], productive: &[NodeId]) -> Array {
        let variants = [(1, 0), (2, 1), (3, 3)].map(|(item, counts)| Variant { item, counts });
        let counters = counters.map(|(min, max)| Counter { min, max });
        let prefix = vec![variants[..2].to_vec()];
        let array = Array::counted(prefix, variants.into(), bounds, counters.into());
        let mut array = array.expect("small");
        array.finish(|item| productive.contains(&item));
        array
    }

    /// Tries all arrays of up to seven items.
    fn can_by_trying(array: &Array, counters: [(u32, Option<u32>); 2], productive: &[NodeId]) -> bool {
        let mut lists: Vec<Vec<NodeId>> = vec![Vec::new()];
        for _ in 0..7 {
            let longer = lists.iter().flat_map(|list| {
                let allowed = productive.iter().filter(|item| !list.is_empty() || **item != 3);
                allowed.map(|item| [&list[..], &[*item]].concat())
            });
            let longer: Vec<_> = longer.collect();
            lists.extend(longer);
            lists.sort();
            lists.dedup();
        }
        lists.iter().any(|list| {
            let n = list.len() as u32;
            let counts = [2, 3].map(|least| list.iter().filter(|item| **item >= least).count() as u32);
            let fits = |(count, (min, max)): (&u32, &(u32, Option<u32>))| {
                count >= min && max.is_none_or(|max| *count <= max)
            };
            n >= array.min && array.max.is_none_or(|max| n <= max) && counts.iter().zip(&counters).all(fits)
        })
    }

    #[test]
    fn what_can_be_completed_is_what_trying_finds() {
        let bounds = [(0, None), (3, Some(3)), (0, Some(2)), (5, Some(6))];
        let counters = [(0, None), (1, None), (2, Some(2)), (0, Some(1)), (3, Some(5))];
        let pairs = counters.iter().flat_map(|a| counters.map(|b| (*a, b)));
        for (bound, (a, b)) in pairs.flat_map(|pair| bounds.map(|bound| (bound, pair))) {
            for productive in [&[1, 2, 3][..], &[1, 2], &[2, 3], &[1], &[]] {
                let array = array(bound, [a, b], productive);
                let expected = can_by_trying(&array, [a, b], productive);
                assert_eq!(
                    array.can_finish(0, 0),
                    expected,
                    "{bound:?} {a:?} {b:?} {productive:?}"
                );
                // Whatever may come next can be completed, too.
                let mut open = vec![(0, 0)];
                for _ in 0..8 {
                    let steps = open
                        .iter()
                        .filter(|(n, used)| array.can_finish(*n, *used))
                        .flat_map(|(n, used)| {
                            let next: Vec<_> = array.items(*n, *used).collect();
                            assert!(!next.is_empty() || array.can_close(*n, *used), "stuck");
                            next
                        });
                    open = steps.map(|(_, n, used)| (n, used)).collect();
                    open.sort_unstable();
                    open.dedup();
                }
            }
        }
    }
}
