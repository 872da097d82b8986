//! The radix tree: longest-prefix match, locks, eviction.
//!
//! Invariants, all verified by [`RadixTree::check`]:
//!
//! * `n_locked_pages + n_evictable_pages = n_cached_pages`;
//! * a node's locks are at least the sum of its children's: a lock covers the whole path to the root;
//! * a node on an eviction list has no lock, so neither has any descendant;
//! * a path lock ends at the end of a node and covers whole pages only; a donor lock covers exactly the donor
//!   page, which has a node of its own.
//!
//! When a node is split its identity stays with the lower half: receipts, which name the deepest node they
//! cover, stay right, and the upper half inherits the count.

use crate::evict::{EvictionOrder, EvictionPolicy};
use crate::node::{Node, NodeId, PageRun, Store};
use crate::{Counters, Namespace, PageId};
use std::collections::HashMap;

/// Receipt for the lock on a path of the tree: its pages stay where they are until the receipt is given back
/// to the tree it came from, by value. Dropping it instead would leave the pages locked for ever and panics.
#[derive(Debug)]
#[must_use = "a lock is given back with release_lock or finish"]
pub struct PrefixLock {
    /// The deepest node covered; `None` once the receipt is given back.
    node: Option<NodeId>,
    n_tokens: usize,
    priority: i16,
}

impl PrefixLock {
    pub(crate) fn new(node: NodeId, n_tokens: usize, priority: i16) -> Self {
        Self {
            node: Some(node),
            n_tokens,
            priority,
        }
    }

    /// Tokens from the start of the sequence that the lock covers.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// The deepest node covered.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// Gives the receipt up without a tree to give it back to. Only right when the tree itself is thrown
    /// away, as after a panic.
    pub fn abandon(mut self) {
        self.node = None;
    }

    /// The deepest node, the tokens covered, the priority.
    pub(crate) fn redeem(mut self) -> (NodeId, usize, i16) {
        let node = self.node.take().expect("only giving a receipt back empties it");
        (node, self.n_tokens, self.priority)
    }
}

impl Drop for PrefixLock {
    fn drop(&mut self) {
        let is_settled = self.node.is_none() || std::thread::panicking();
        assert!(
            is_settled,
            "a prefix lock over {} tokens was never given back",
            self.n_tokens
        );
    }
}

/// A cached page of which a first part is what the prompt goes on with; to be copied, not shared.
#[derive(Debug)]
pub struct Donor {
    /// The page to copy from.
    pub page: PageId,
    /// Tokens of it that agree; at least 1 and at most a page.
    pub n_tokens: usize,
    /// Keeps the page until the copy is made.
    pub lock: PrefixLock,
}

/// The longest cached prefix of a prompt, locked.
#[derive(Debug)]
pub struct Matched {
    /// Covers `pages`.
    pub lock: PrefixLock,
    /// Pages to share, from the first token of the prompt on; all full.
    pub pages: Vec<PageId>,
    /// Where the tokens after `pages` can be copied from, if any agree.
    pub donor: Option<Donor>,
}

/// How much of a prompt is cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatchLen {
    /// Tokens in whole pages.
    pub n_tokens: usize,
    /// Tokens after those that a donor page would give.
    pub n_donor_tokens: usize,
}

/// A radix tree of token prefixes; see the crate's documentation.
#[derive(Debug)]
pub struct RadixTree {
    pub(crate) store: Store,
    pub(crate) order: EvictionOrder,
    pub(crate) roots: HashMap<Namespace, NodeId>,
    /// The inverse of `roots`.
    pub(crate) root_names: HashMap<NodeId, Namespace>,
    pub(crate) n_cached: usize,
    pub(crate) n_evictable: usize,
    pub(crate) counters: Counters,
    pub(crate) generation: u64,
}

impl RadixTree {
    /// An empty tree over pages of `page_size` tokens, at least 1.
    pub fn new(page_size: usize, policy: EvictionPolicy) -> Self {
        Self {
            store: Store::new(page_size),
            order: EvictionOrder::new(policy),
            roots: HashMap::new(),
            root_names: HashMap::new(),
            n_cached: 0,
            n_evictable: 0,
            counters: Counters::default(),
            generation: 0,
        }
    }

    /// Takes now the memory that a pool of `n_pages` pages can need, page runs and empty namespaces apart.
    pub fn reserve(&mut self, n_pages: usize) {
        self.store.reserve(n_pages);
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.store.page_size
    }

    /// What the tree gives up first.
    pub fn policy(&self) -> EvictionPolicy {
        self.order.policy
    }

    /// Pages in the tree.
    pub fn n_cached_pages(&self) -> usize {
        self.n_cached
    }

    /// Pages that [`evict`](Self::evict) could give back now.
    pub fn n_evictable_pages(&self) -> usize {
        self.n_evictable
    }

    /// Pages that some lock covers.
    pub fn n_locked_pages(&self) -> usize {
        self.n_cached - self.n_evictable
    }

    /// Nodes of the tree, the root of every namespace included.
    pub fn n_nodes(&self) -> usize {
        self.store.n_nodes()
    }

    /// Bytes held for nodes and their page runs; the table of tokens (4 bytes a token) is not counted.
    /// O(nodes).
    pub fn n_bytes(&self) -> usize {
        self.store.n_bytes()
    }

    /// Totals since the tree was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Grows whenever pages enter or leave the tree: while it stands still, so does every match length.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Every page in the tree, in no particular order.
    pub fn pages(&self) -> impl Iterator<Item = PageId> + '_ {
        self.store
            .nodes()
            .iter()
            .flat_map(|node| node.pages.as_slice())
            .copied()
    }

    /// What [`match_prefix`](Self::match_prefix) would find now. Changes nothing and counts as no use.
    pub fn match_len(&self, namespace: &Namespace, tokens: &[u32], max_tokens: usize) -> MatchLen {
        let Some(root) = self.roots.get(namespace) else {
            return MatchLen::default();
        };
        let walk = self
            .store
            .walk(*root, &tokens[..tokens.len().min(max_tokens)], |_| {});
        MatchLen {
            n_tokens: walk.n_tokens,
            n_donor_tokens: walk.donor.map_or(0, |(_, n_tokens)| n_tokens),
        }
    }

    /// Finds and locks the longest cached prefix of `tokens`, at most `max_tokens` long, and the donor of the
    /// tokens that follow it. `priority` is the request's, for [`EvictionPolicy::Priority`]; beyond 16 bits
    /// it counts as the nearest of those. At least one token must be left
    /// to compute, so the caller passes a `max_tokens` below the prompt's length.
    pub fn match_prefix(
        &mut self,
        namespace: &Namespace,
        tokens: &[u32],
        max_tokens: usize,
        priority: i32,
    ) -> Matched {
        let tokens = &tokens[..tokens.len().min(max_tokens)];
        self.counters.lookups += 1;
        self.counters.lookup_tokens += tokens.len() as u64;

        let priority = priority.clamp(i16::MIN.into(), i16::MAX.into()) as i16;
        let root = self.root_of(namespace);
        let mut pages = Vec::new();
        let walk = self.store.walk(root, tokens, |run| {
            pages.extend_from_slice(run);
        });
        let node = self.split_off_upper(walk.node, walk.n_pages);
        self.lock(node, None);
        self.count_hits(node, None, priority);
        self.counters.hit_tokens_page += walk.n_tokens as u64;

        let donor = walk.donor.map(|(donor, n_tokens)| {
            // If the walk ended inside a node, the split has made the donor the first page of the lower half.
            let donor = self.split_off_upper(donor, 1);
            self.lock(donor, None);
            self.count_hits(donor, Some(node), priority);
            self.counters.hit_tokens_donor += n_tokens as u64;
            let lock = PrefixLock::new(donor, walk.n_tokens + n_tokens, priority);
            Donor {
                page: self.store[donor].pages.as_slice()[0],
                n_tokens,
                lock,
            }
        });
        Matched {
            lock: PrefixLock::new(node, walk.n_tokens, priority),
            pages,
            donor,
        }
    }

    /// Takes a lock back. Its path becomes the most recently used.
    pub fn release_lock(&mut self, lock: PrefixLock) {
        let (node, _, _) = lock.redeem();
        self.unlock(node);
    }

    /// Gives up to `n_pages` unlocked pages back, the policy's least valued first and leaves before what
    /// leads to them; appends them to `freed` and returns their number. Fewer means that all others are
    /// locked.
    pub fn evict(&mut self, n_pages: usize, freed: &mut Vec<PageId>) -> usize {
        let mut n_freed = 0;
        while n_freed < n_pages {
            let Some(id) = self.order.oldest() else { break };
            let n_taken = self.store[id].pages.len().min(n_pages - n_freed);
            self.count_evicted(id, n_taken);
            self.drop_last_pages(id, n_taken, freed);
            n_freed += n_taken;
        }
        n_freed
    }

    /// Evicts everything that is not locked; returns the number of pages appended to `freed`.
    pub fn clear(&mut self, freed: &mut Vec<PageId>) -> usize {
        self.evict(usize::MAX, freed)
    }

    fn count_evicted(&mut self, id: NodeId, n_pages: usize) {
        let counters = &mut self.counters;
        // Both sides are the low 32 bits of one count, so the difference is right across a wrap.
        let age = u64::from((counters.lookups as u32).wrapping_sub(self.store[id].touched));
        counters.evicted_pages += n_pages as u64;
        counters.evicted_age_sum += age * n_pages as u64;
        counters.evicted_age_max = counters.evicted_age_max.max(age);
    }

    /// Takes the last pages off an unlocked leaf, and the leaf itself off the tree when none is left.
    pub(crate) fn drop_last_pages(&mut self, id: NodeId, n_pages: usize, dropped: &mut Vec<PageId>) {
        let node = &self.store[id];
        assert!(
            node.n_locks == 0 && node.children.is_none(),
            "pages are taken from unlocked leaves only: {node:?}"
        );
        let (rank, n_kept) = (node.rank, node.pages.len() - n_pages);
        dropped.extend(node.pages.as_slice()[n_kept..].iter().rev());
        self.n_cached -= n_pages;
        self.n_evictable -= n_pages;
        self.generation += 1;
        if n_kept > 0 {
            self.order.pages_dropped(rank, n_pages);
            let page_size = self.store.page_size as u16;
            self.store[id].pages.truncate(n_kept);
            self.store[id].n_last = page_size;
            return;
        }
        let parent = node.parent.expect("a root has no pages to drop");
        self.order.unlink(&mut self.store, id);
        self.store.detach(id);
        self.store.remove(id);
        self.remove_root_if_unused(parent);
    }

    fn root_of(&mut self, namespace: &Namespace) -> NodeId {
        *self.roots.entry(*namespace).or_insert_with(|| {
            let root = self.store.insert(Node::root());
            self.root_names.insert(root, *namespace);
            root
        })
    }

    /// Keeps the number of roots bounded by cached pages and locks, whatever namespaces requests invent.
    fn remove_root_if_unused(&mut self, id: NodeId) {
        let node = &self.store[id];
        if node.is_root() && node.n_locks == 0 && node.children.is_none() {
            let namespace = self.root_names.remove(&id).expect("every root has a namespace");
            self.roots.remove(&namespace);
            self.store.remove(id);
        }
    }

    /// A node that ends after the first `n_pages` pages of `id`: `id` itself when it has no more, else a new
    /// one that takes them over.
    pub(crate) fn split_off_upper(&mut self, id: NodeId, n_pages: usize) -> NodeId {
        let store = &mut self.store;
        if n_pages == store[id].pages.len() {
            return id;
        }
        let (upper_pages, lower_pages) = store[id].pages.as_slice().split_at(n_pages);
        let (upper_pages, lower_pages) = (PageRun::new(upper_pages), PageRun::new(lower_pages));
        let upper = store.insert(Node {
            n_locks: store[id].n_locks,
            rank: store[id].rank,
            touched: store[id].touched,
            n_last: store.page_size as u16,
            pages: upper_pages,
            ..Node::root()
        });
        store.replace(id, upper);
        store[id].pages = lower_pages;
        store.attach(upper, id);
        if store[id].n_locks == 0 {
            self.order.link_split(store, upper, id);
        }
        upper
    }

    /// Adds one lock to every node from `id` up to but without `stop`, or the root included when there is no
    /// `stop`.
    pub(crate) fn lock(&mut self, id: NodeId, stop: Option<NodeId>) {
        let mut next = Some(id);
        while let Some(id) = next.filter(|_| next != stop) {
            let node = &mut self.store[id];
            node.n_locks += 1;
            next = node.parent;
            if node.n_locks == 1 && !node.is_root() {
                self.n_evictable -= node.pages.len();
                self.order.unlink(&mut self.store, id);
            }
        }
    }

    /// Takes one lock from `id` and all its ancestors. What is unlocked by it becomes the newest, parents
    /// newer than their children.
    pub(crate) fn unlock(&mut self, id: NodeId) {
        let mut next = Some(id);
        while let Some(id) = next {
            let node = &mut self.store[id];
            node.n_locks = node.n_locks.checked_sub(1).expect("every lock was taken before");
            next = node.parent;
            if node.n_locks > 0 {
                continue;
            }
            if node.is_root() {
                self.remove_root_if_unused(id);
            } else {
                node.touched = self.counters.lookups as u32;
                self.n_evictable += node.pages.len();
                self.order.push(&mut self.store, id);
            }
        }
    }

    /// One more use of every node from `id` up to but without `stop`. All must be locked: ranks change off
    /// the lists.
    pub(crate) fn count_hits(&mut self, id: NodeId, stop: Option<NodeId>, priority: i16) {
        if self.order.policy == EvictionPolicy::Lru {
            return;
        }
        let up = |id: &NodeId| self.store[*id].parent.filter(|parent| Some(*parent) != stop);
        let path: Vec<NodeId> = std::iter::successors(Some(id).filter(|id| Some(*id) != stop), up).collect();
        for id in path.into_iter().rev() {
            let Some(parent) = self.store[id].parent else {
                continue;
            };
            // A request can use a node twice, as donor and again when it computed the same page: never above
            // the parent.
            let rank = self.order.policy.rank_after_hit(self.store[id].rank, priority);
            self.store[id].rank = rank.min(self.store[parent].rank);
        }
    }
}
