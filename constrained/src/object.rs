//! Objects of a grammar: which members may come, and whether the object may be closed.
//!
//! A place in an object is the number of the key from which on keys may come, and how many members were
//! written. Behind the last key, `n_keys + 1` says that an extra member was written, and `n_keys + 2` that
//! the last one was.

use crate::ir::{NodeId, Object};

impl Object {
    /// `n` members, or as many as can matter.
    pub(crate) fn counted(&self, n: u32) -> u32 {
        if self.max.is_some() { n } else { n.min(self.min) }
    }

    fn n_required_from(&self, at: u32) -> u32 {
        let rest = self.keys.iter().skip(at as usize);
        rest.filter(|key| key.is_required).count() as u32
    }

    /// Whether the last member is still to come.
    fn owes_last(&self, at: u32) -> bool {
        self.closing.is_some() && at <= self.keys.len() as u32 + 1
    }

    /// Whether the object may end before key `at` with `n` members. Where extra keys were written the
    /// minimum was checked before: two extra keys may be the same, so only the first one counts.
    pub(crate) fn can_close(&self, at: u32, n: u32) -> bool {
        let has_extra = at > self.keys.len() as u32;
        self.n_required_from(at) == 0 && !self.owes_last(at) && (n >= self.min || has_extra)
    }

    /// Whether an extra member, or the last one, may come.
    fn allows_unnamed(&self, at: u32, n: u32) -> bool {
        let has_extra = at > self.keys.len() as u32;
        self.n_required_from(at) == 0
            && (has_extra || n + 1 >= self.min)
            && self.max.is_none_or(|max| n < max)
    }

    pub(crate) fn allows_extra(&self, at: u32, n: u32) -> bool {
        let is_before_last = at <= self.keys.len() as u32 + 1;
        let has_room = !self.owes_last(at) || self.max.is_none_or(|max| n + 1 < max);
        !self.extras.is_empty() && is_before_last && has_room && self.allows_unnamed(at, n)
    }

    pub(crate) fn allows_last(&self, at: u32, n: u32) -> bool {
        self.owes_last(at) && self.allows_unnamed(at, n)
    }

    /// The numbers of the keys that may come next, when all before `at` are past and `n` were written: no
    /// required one is skipped, and both bounds on the number of members can still be met.
    pub(crate) fn next_keys(&self, at: u32, n: u32) -> Option<(u32, u32)> {
        let n_keys = self.keys.len() as u32;
        let required = (at..n_keys).find(|key| self.keys[*key as usize].is_required);
        let n_required = self.n_required_from(at) + u32::from(self.owes_last(at));
        let mut first = at;
        if let Some(max) = self.max {
            if n + n_required.max(1) > max {
                return None;
            }
            if n + 1 + n_required > max {
                first = required?;
            }
        }
        let n_extra = u32::from(!self.extras.is_empty() || self.closing.is_some());
        // Key k leaves n + 1 + (n_keys - k - 1) + n_extra members possible.
        let last = (n + n_keys + n_extra).checked_sub(self.min)?;
        let last = last.min(required.unwrap_or(n_keys)).min(n_keys.checked_sub(1)?);
        (first <= last).then_some((first, last))
    }
    /// The same key by key, where of all members only those come whose value `fits`.
    pub(crate) fn next_keys_that(&self, at: u32, n: u32, fits: impl Fn(NodeId) -> bool) -> Vec<u32> {
        let Some((first, _)) = self.next_keys(at, n) else {
            return Vec::new();
        };
        let is_open = |members: &[(NodeId, NodeId)]| members.iter().any(|(_, value)| fits(*value));
        let n_extra = u32::from(is_open(&self.extras) || self.closing.is_some());
        let n_keys = self.keys.len() as u32;
        let last = (first..n_keys).find(|key| self.keys[*key as usize].is_required);
        let last = last.unwrap_or(n_keys - 1);
        let fitting = |keys: std::ops::Range<u32>| keys.filter(|key| fits(self.keys[*key as usize].value));
        let keys = fitting(first..last + 1);
        let is_enough = |key: &u32| n + 1 + fitting(*key + 1..n_keys).count() as u32 + n_extra >= self.min;
        keys.filter(is_enough).collect()
    }

    /// Whether another member may come, of those whose value `fits`.
    pub(crate) fn has_next_that(&self, at: u32, n: u32, fits: impl Fn(NodeId) -> bool) -> bool {
        let is_open = |members: &[(NodeId, NodeId)]| members.iter().any(|(_, value)| fits(*value));
        self.allows_extra(at, n) && is_open(&self.extras)
            || self.allows_last(at, n) && self.closing.as_deref().is_some_and(is_open)
            || !self.next_keys_that(at, n, fits).is_empty()
    }

    /// Whether another member may come.
    pub(crate) fn has_next(&self, at: u32, n: u32) -> bool {
        self.next_keys(at, n).is_some() || self.allows_extra(at, n) || self.allows_last(at, n)
    }
}
