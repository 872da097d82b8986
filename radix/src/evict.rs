//! Eviction policies: the order in which cached pages are given up.
//!
//! All unlocked nodes sit on intrusive lists, one per rank; what a rank means is the policy's affair.
//! Invariants:
//!
//! * `rank(child) ≤ rank(parent)`;
//! * of the same rank, a parent is newer than its children: an unlocked path is pushed leaf first.
//!
//! So the oldest node of the lowest rank is always a leaf, and giving up a page is O(1).

use crate::node::{NodeId, Store};
use std::collections::BTreeMap;

/// Which cached pages are worth least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvictionPolicy {
    /// Least recently used. One list.
    #[default]
    Lru,
    /// Least often used, the least recently used of those first. A list per number of uses.
    Lfu,
    /// Segmented: what was used once goes before what was used again, so a scan cannot flush the cache. Two
    /// lists; the protected one holds at most four fifths of the evictable pages, beyond that its oldest are
    /// used once again.
    Slru,
    /// Lowest request priority first, the least recently used of those first. A list per priority.
    Priority,
}

impl EvictionPolicy {
    /// Rank of a node that a request of this priority adds.
    pub(crate) fn initial_rank(self, priority: i16) -> i16 {
        match self {
            Self::Lru | Self::Slru => 0,
            Self::Lfu => 1,
            Self::Priority => priority,
        }
    }

    /// Rank of a node that a request of this priority uses again.
    pub(crate) fn rank_after_hit(self, rank: i16, priority: i16) -> i16 {
        match self {
            Self::Lru => rank,
            Self::Lfu => rank.saturating_add(1),
            Self::Slru => PROTECTED,
            Self::Priority => rank.max(priority),
        }
    }
}

const PROTECTED: i16 = 1;

#[derive(Clone, Copy, Debug)]
struct List {
    newest: NodeId,
    oldest: NodeId,
    n_pages: usize,
}

/// The lists of unlocked nodes.
#[derive(Debug)]
pub(crate) struct EvictionOrder {
    pub(crate) policy: EvictionPolicy,
    /// By rank; no list is empty.
    lists: BTreeMap<i16, List>,
}

impl EvictionOrder {
    pub(crate) fn new(policy: EvictionPolicy) -> Self {
        Self {
            policy,
            lists: BTreeMap::new(),
        }
    }

    /// The node to take pages from; a leaf.
    pub(crate) fn oldest(&self) -> Option<NodeId> {
        self.lists.first_key_value().map(|(_, list)| list.oldest)
    }

    /// Puts a node that was just unlocked on the list of its rank, as the newest.
    pub(crate) fn push(&mut self, store: &mut Store, id: NodeId) {
        self.link_newest(store, id);
        if self.policy == EvictionPolicy::Slru {
            self.shrink_protected(store);
        }
    }

    /// Takes a node off its list.
    pub(crate) fn unlink(&mut self, store: &mut Store, id: NodeId) {
        let (newer, older) = (store[id].newer.take(), store[id].older.take());
        let (rank, n_pages) = (store[id].rank, store[id].pages.len());
        let list = self
            .lists
            .get_mut(&rank)
            .expect("an unlocked node is on the list of its rank");
        list.n_pages -= n_pages;
        match (newer, older) {
            (None, None) => {
                self.lists.remove(&rank);
            }
            (Some(newer), None) => {
                list.oldest = newer;
                store[newer].older = None;
            }
            (None, Some(older)) => {
                list.newest = older;
                store[older].newer = None;
            }
            (Some(newer), Some(older)) => {
                store[newer].older = Some(older);
                store[older].newer = Some(newer);
            }
        }
    }

    /// Puts `upper`, split off the listed node `lower`, on the list just before it: as old, but a parent.
    pub(crate) fn link_split(&mut self, store: &mut Store, upper: NodeId, lower: NodeId) {
        let newer = store[lower].newer.replace(upper);
        store[upper].newer = newer;
        store[upper].older = Some(lower);
        match newer {
            Some(newer) => store[newer].older = Some(upper),
            None => {
                let list = self
                    .lists
                    .get_mut(&store[lower].rank)
                    .expect("the lower half is on a list");
                list.newest = upper;
            }
        }
    }

    /// A listed node lost pages.
    pub(crate) fn pages_dropped(&mut self, rank: i16, n_pages: usize) {
        self.lists
            .get_mut(&rank)
            .expect("the node is on the list of its rank")
            .n_pages -= n_pages;
    }

    /// Every list as its rank, its pages and its nodes from the newest to the oldest.
    pub(crate) fn lists<'a>(
        &'a self,
        store: &'a Store,
    ) -> impl DoubleEndedIterator<Item = (i16, usize, impl Iterator<Item = NodeId> + 'a)> + 'a {
        self.lists.iter().map(move |(rank, list)| {
            let nodes = std::iter::successors(Some(list.newest), move |id| {
                assert!(
                    store[*id].older.is_some() || *id == list.oldest,
                    "the list ends before its oldest node"
                );
                store[*id].older
            });
            (*rank, list.n_pages, nodes)
        })
    }

    fn link_newest(&mut self, store: &mut Store, id: NodeId) {
        let (rank, n_pages) = (store[id].rank, store[id].pages.len());
        match self.lists.get_mut(&rank) {
            Some(list) => {
                store[list.newest].newer = Some(id);
                store[id].older = Some(list.newest);
                list.newest = id;
                list.n_pages += n_pages;
            }
            None => {
                self.lists.insert(
                    rank,
                    List {
                        newest: id,
                        oldest: id,
                        n_pages,
                    },
                );
            }
        }
    }

    /// Moves the oldest protected nodes back among those used once until at most four fifths are protected.
    /// Such a node has no protected child, and becomes newer than its children: both invariants stay.
    fn shrink_protected(&mut self, store: &mut Store) {
        loop {
            let n_once = self.lists.get(&(PROTECTED - 1)).map_or(0, |list| list.n_pages);
            let Some(protected) = self
                .lists
                .get(&PROTECTED)
                .filter(|list| list.n_pages > 4 * n_once)
            else {
                return;
            };
            let id = protected.oldest;
            self.unlink(store, id);
            store[id].rank = PROTECTED - 1;
            self.link_newest(store, id);
        }
    }
}
