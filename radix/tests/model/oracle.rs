//! What a prefix cache is, without a tree: one entry per cached page, one path per lock.

use super::Shape;
use arbora_radix::{Counters, EvictionPolicy, PageId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A namespace and all tokens from the start of a sequence on.
pub(crate) type Path = (u32, Vec<u32>);

#[derive(Clone, Debug)]
struct Entry {
    page: PageId,
    rank: i32,
    /// When the entry was last unlocked, in unlockings and in lookups.
    unlocked: u64,
    touched: u64,
}

/// What an insertion must hand out.
pub(crate) struct Inserted {
    pub(crate) table: Vec<PageId>,
    pub(crate) released: Vec<PageId>,
}

/// Entries by the path to the end of their page.
pub(crate) struct Model {
    shape: Shape,
    entries: BTreeMap<Path, Entry>,
    locks: Vec<(Path, i32)>,
    n_unlockings: u64,
    pub(crate) counters: Counters,
}

impl Model {
    pub(crate) fn new(shape: Shape) -> Self {
        let counters = Counters::default();
        Self {
            shape,
            entries: BTreeMap::new(),
            locks: Vec::new(),
            n_unlockings: 0,
            counters,
        }
    }

    pub(crate) fn pages(&self) -> BTreeSet<PageId> {
        self.entries.values().map(|entry| entry.page).collect()
    }

    pub(crate) fn n_evictable(&self) -> usize {
        self.entries.keys().filter(|path| !self.is_locked(path)).count()
    }

    /// Whether a lock's path passes through the page at the end of `path`; it passes by a partly filled one.
    fn is_locked(&self, path: &Path) -> bool {
        let is_whole = path.1.len().is_multiple_of(self.shape.page_size);
        let covers = |(namespace, tokens): &Path| {
            *namespace == path.0 && (*tokens == path.1 || is_whole && tokens.starts_with(&path.1))
        };
        self.locks.iter().any(|(locked, _)| covers(locked))
    }

    /// Pages of the longest cached prefix, and the most tokens that any next page shares after it.
    pub(crate) fn find(&self, namespace: u32, tokens: &[u32]) -> (Vec<PageId>, usize) {
        let pages: Vec<_> = (1..=tokens.len() / self.shape.page_size)
            .map_while(|n| {
                self.entries
                    .get(&(namespace, tokens[..n * self.shape.page_size].to_vec()))
            })
            .map(|entry| entry.page)
            .collect();
        let (above, rest) = tokens.split_at(pages.len() * self.shape.page_size);
        let shared = |path: &Path| {
            path.1[above.len()..]
                .iter()
                .zip(rest)
                .take_while(|(a, b)| a == b)
                .count()
        };
        let n_donor_tokens = self.below(namespace, above).map(shared).max().unwrap_or(0);
        (pages, n_donor_tokens)
    }

    /// Whether some entry begins with `tokens`.
    pub(crate) fn holds(&self, namespace: u32, tokens: &[u32]) -> bool {
        let mut paths = self.entries.keys();
        paths.any(|path| path.0 == namespace && path.1.starts_with(tokens))
    }

    /// Entries whose page comes directly after the tokens `above`.
    fn below<'a>(&'a self, namespace: u32, above: &'a [u32]) -> impl Iterator<Item = &'a Path> {
        let is_next = move |path: &&Path| {
            let n_more = path.1.len().wrapping_sub(above.len());
            path.0 == namespace && (1..=self.shape.page_size).contains(&n_more) && path.1.starts_with(above)
        };
        self.entries.keys().filter(is_next)
    }

    /// Where the donor `page` is, which must begin with the last of `tokens`.
    pub(crate) fn donor_path(&self, namespace: u32, tokens: &[u32], page: PageId) -> Path {
        let (path, _) = self
            .entries
            .iter()
            .find(|(_, entry)| entry.page == page)
            .expect("a donor is cached");
        assert!(
            path.0 == namespace && path.1.starts_with(tokens),
            "the donor agrees with the prompt"
        );
        path.clone()
    }

    /// Locks a path; the part of it beyond `n_before` tokens is used once more.
    pub(crate) fn lock(&mut self, path: Path, n_before: usize, priority: i32) {
        for n_tokens in self.page_ends(n_before, path.1.len()) {
            self.hit(&(path.0, path.1[..n_tokens].to_vec()), priority);
        }
        self.locks.push((path, priority));
    }

    fn page_ends(&self, from: usize, to: usize) -> Vec<usize> {
        let page_size = self.shape.page_size;
        (from / page_size..to.div_ceil(page_size))
            .map(|page| to.min((page + 1) * page_size))
            .collect()
    }

    fn parent_rank(&self, path: &Path) -> i32 {
        let n_above = (path.1.len() - 1) / self.shape.page_size * self.shape.page_size;
        self.entries
            .get(&(path.0, path.1[..n_above].to_vec()))
            .map_or(i32::MAX, |parent| parent.rank)
    }

    fn hit(&mut self, path: &Path, priority: i32) {
        let parent_rank = self.parent_rank(path);
        let entry = self.entries.get_mut(path).expect("what is used again is cached");
        entry.rank = match self.shape.policy {
            EvictionPolicy::Lru | EvictionPolicy::Slru => 0,
            EvictionPolicy::Lfu => parent_rank.min(entry.rank + 1),
            EvictionPolicy::Priority => entry.rank.max(priority),
        };
    }

    /// Forgets a lock without unlocking, to move it.
    pub(crate) fn take_lock(&mut self, path: &Path, priority: i32) {
        let is_it = |lock: &(Path, i32)| lock.0 == *path && lock.1 == priority;
        let lock = self.locks.iter().position(is_it).expect("the path is locked");
        self.locks.swap_remove(lock);
    }

    pub(crate) fn unlock(&mut self, path: &Path, priority: i32) {
        self.take_lock(path, priority);
        self.n_unlockings += 1;
        for n_tokens in self.page_ends(0, path.1.len()) {
            let path = (path.0, path.1[..n_tokens].to_vec());
            if !self.is_locked(&path) {
                let entry = self.entries.get_mut(&path).expect("what was locked is cached");
                entry.unlocked = self.n_unlockings;
                entry.touched = self.counters.lookups;
            }
        }
    }

    /// Unlocks what was inserted last.
    pub(crate) fn unlock_last(&mut self) {
        let (path, priority) = self.locks.last().expect("an insertion leaves a lock").clone();
        self.unlock(&path, priority);
    }

    /// Inserts the pages of `path` after the first `n_locked` tokens and locks it, or what of it was
    /// inserted.
    pub(crate) fn insert(
        &mut self,
        path: &Path,
        n_locked: usize,
        table: &[PageId],
        priority: i32,
    ) -> Inserted {
        let page_size = self.shape.page_size;
        let mut inserted = Inserted {
            table: table[..n_locked / page_size].to_vec(),
            released: Vec::new(),
        };
        let mut n_inside = n_locked;
        for n_tokens in self.page_ends(n_locked, path.1.len()) {
            let end = (path.0, path.1[..n_tokens].to_vec());
            let ours = table[inserted.table.len()];
            if let Some(entry) = self.entries.get(&end).filter(|_| n_tokens % page_size == 0) {
                inserted.table.push(entry.page);
                inserted.released.push(ours);
                self.counters.duplicate_pages += 1;
                self.hit(&end, priority);
            } else if self.is_held(&end) {
                inserted.released.push(ours);
                self.counters.duplicate_pages += 1;
                continue;
            } else {
                self.supersede(&end, &mut inserted.released);
                inserted.table.push(ours);
                self.add(end, ours, priority);
            }
            n_inside = n_tokens;
        }
        self.locks.push(((path.0, path.1[..n_inside].to_vec()), priority));
        inserted
    }

    /// Whether the partly filled page that ends `path` has nothing that a cached one lacks.
    fn is_held(&self, path: &Path) -> bool {
        let above = &path.1[..path.1.len() / self.shape.page_size * self.shape.page_size];
        above.len() < path.1.len() && self.below(path.0, above).any(|held| held.1.starts_with(&path.1))
    }

    /// While the entry just before the new one holds a first part of its page and is not locked, it goes.
    fn supersede(&mut self, path: &Path, released: &mut Vec<PageId>) {
        let above = &path.1[..(path.1.len() - 1) / self.shape.page_size * self.shape.page_size];
        while let Some(before) = self
            .below(path.0, above)
            .filter(|beside| *beside < path)
            .max()
            .cloned()
        {
            if !path.1.starts_with(&before.1) || self.is_locked(&before) {
                break;
            }
            released.push(self.entries.remove(&before).expect("found just now").page);
            self.counters.superseded_pages += 1;
        }
    }

    fn add(&mut self, path: Path, page: PageId, priority: i32) {
        let rank = match self.shape.policy {
            EvictionPolicy::Lru | EvictionPolicy::Slru => 0,
            EvictionPolicy::Lfu => 1,
            EvictionPolicy::Priority => priority,
        };
        self.entries.insert(
            path,
            Entry {
                page,
                rank,
                unlocked: 0,
                touched: 0,
            },
        );
        self.counters.inserted_pages += 1;
    }

    /// Takes evicted pages out: each must be the one the policy values least of those not locked.
    pub(crate) fn evict(&mut self, freed: &[PageId]) {
        for page in freed {
            let order = |(path, entry): &(&Path, &Entry)| (entry.rank, entry.unlocked, Reverse(path.1.len()));
            let unlocked = || self.entries.iter().filter(|(path, _)| !self.is_locked(path));
            let (path, entry) = match self.shape.policy {
                // Which protected nodes fall back depends on where nodes were split: any unlocked leaf is
                // right here.
                EvictionPolicy::Slru => unlocked().find(|(_, entry)| entry.page == *page),
                _ => unlocked().min_by_key(order),
            }
            .expect("an evicted page is cached and not locked");
            assert_eq!(
                entry.page, *page,
                "the next page to give up is the end of {path:?}"
            );
            let is_leaf = |other: &Path| other == path || other.0 != path.0 || !other.1.starts_with(&path.1);
            let n_end = path.1.len().is_multiple_of(self.shape.page_size);
            assert!(
                !n_end || self.entries.keys().all(is_leaf),
                "what leads to other pages is evicted after them"
            );
            let (path, age) = (path.clone(), self.counters.lookups - entry.touched);
            self.entries.remove(&path);
            self.counters.evicted_pages += 1;
            self.counters.evicted_age_sum += age;
            self.counters.evicted_age_max = self.counters.evicted_age_max.max(age);
        }
    }
}
