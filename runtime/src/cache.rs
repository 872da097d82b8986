//! The prefix cache over KV pages: admission, growth, eviction, and which sequence holds which page.
//!
//! ```text
//! free + cached (in the tree) + owned (in one page table, beyond its shared part) = total        (C4)
//!
//! page table of a sequence:
//!     | shared: in the tree, locked | owned: whole pages not yet in the tree, partly filled, empty |
//!     0                             n_shared                                                pages.len()
//! ```
//!
//! Admission locks the matched path and the donor first, then counts what can still be evicted, then
//! allocates; so what it is about to use is never what it evicts.

use std::time::Instant;

use arbora_radix::{Namespace, PageAllocator, PageId, PrefixLock, RadixTree, ViewLimits};

use crate::config::EngineConfig;
use crate::explain::{Explanation, Given, History, Leaving, PrefixHash};
use crate::inspect::{CacheView, SHOWN_TOKENS};
use crate::request::RequestId;

/// The pages of a running sequence, oldest tokens first.
#[derive(Debug)]
pub(crate) struct PageTable {
    pages: Vec<PageId>,
    n_shared: usize,
    lock: PrefixLock,
    /// The empty prefix of its namespace.
    root: PrefixHash,
}

impl PageTable {
    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// The pages only this sequence holds.
    fn owned(&self) -> &[PageId] {
        &self.pages[self.n_shared..]
    }

    /// Forgets the lock: for a tree that is thrown away.
    pub(crate) fn abandon(self) {
        self.lock.abandon();
    }
}

/// The beginning of a page that is copied instead of computed. The donor stays locked until the copy is made.
#[derive(Debug)]
pub(crate) struct PageCopy {
    pub(crate) from: PageId,
    pub(crate) to: PageId,
    n_tokens: usize,
    lock: PrefixLock,
}

impl PageCopy {
    /// Forgets the lock: for a tree that is thrown away.
    pub(crate) fn abandon(self) {
        self.lock.abandon();
    }
}

/// Pages for a whole sequence, part of them already computed.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) table: PageTable,
    /// Tokens that need not be computed, copied ones included.
    pub(crate) n_cached: usize,
    /// Tokens in the page to copy.
    pub(crate) n_copied: usize,
    pub(crate) copy: Option<PageCopy>,
}

/// What an admission asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdmissionWish<'a> {
    pub(crate) namespace: &'a Namespace,
    /// Whose explanation is kept; absent where it was admitted before.
    pub(crate) first_of: Option<RequestId>,
    /// Everything to hold; at least the last one is computed.
    pub(crate) tokens: &'a [u32],
    /// Tokens from here on are computed, whatever the tree holds.
    pub(crate) max_cached: usize,
    pub(crate) priority: i32,
    /// Pages that must stay available afterwards.
    pub(crate) n_spare: usize,
}

/// Tree and pages together.
pub(crate) struct PrefixCache {
    tree: RadixTree,
    allocator: PageAllocator,
    config: EngineConfig,
    /// Pages released since they were last poisoned. Kept in debug builds only.
    freed: Vec<PageId>,
    scratch: Vec<PageId>,
    n_evicted: usize,
    history: History,
}

impl PrefixCache {
    pub(crate) fn new(config: &EngineConfig, now: Instant) -> Self {
        Self::with_history(config, History::new(config.n_pages, now))
    }

    fn with_history(config: &EngineConfig, history: History) -> Self {
        let mut tree = RadixTree::new(config.page_size, config.eviction_policy);
        tree.reserve(config.n_pages);
        PrefixCache {
            tree,
            allocator: PageAllocator::new(config.n_pages),
            config: config.clone(),
            freed: Vec::with_capacity(config.n_pages),
            scratch: Vec::with_capacity(config.n_pages),
            n_evicted: 0,
            history,
        }
    }

    /// The time of what happens from now on.
    pub(crate) fn set_time(&mut self, now: Instant) {
        self.history.set_time(now);
    }

    /// Throws tree and page tables away: all pages are free. Locks on the old tree must be abandoned.
    pub(crate) fn reset(&mut self) {
        let empty = History::new(0, self.history.now());
        let history = std::mem::replace(&mut self.history, empty);
        *self = PrefixCache::with_history(&self.config, history);
        if cfg!(debug_assertions) {
            self.freed.extend((0..self.config.n_pages as u32).map(PageId));
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.tree.generation()
    }

    /// Tokens of `tokens` an admission would find now.
    pub(crate) fn peek(&self, namespace: &Namespace, tokens: &[u32]) -> usize {
        let found = self.tree.match_len(namespace, tokens, tokens.len() - 1);
        found.n_tokens + found.n_donor_tokens
    }

    /// Up to `n_wanted` tokens with which the tree goes on after all of `tokens`.
    pub(crate) fn continuation(&self, namespace: &Namespace, tokens: &[u32], n_wanted: usize) -> Vec<u32> {
        self.tree.continuation(namespace, tokens, n_wanted)
    }

    /// Pages for all of the wish's tokens, or `None` where fewer than that and its spare ones can be had.
    pub(crate) fn admit(&mut self, wish: &AdmissionWish<'_>) -> Option<Admission> {
        let max_cached = wish.max_cached.min(wish.tokens.len() - 1);
        let matched = self
            .tree
            .match_prefix(wish.namespace, wish.tokens, max_cached, wish.priority);
        let (lock, mut pages, mut donor) = (matched.lock, matched.pages, matched.donor);
        let n_shared = pages.len();
        let n_new = wish.tokens.len().div_ceil(self.config.page_size) - n_shared;
        if self.n_available() < n_new + wish.n_spare {
            // The donor may be what holds the pages we lack; computing its tokens is better than waiting.
            if let Some(donor) = donor.take() {
                self.tree.release_lock(donor.lock);
            }
        }
        if self.n_available() < n_new + wish.n_spare {
            self.tree.release_lock(lock);
            return None;
        }
        let n_cached = n_shared * self.config.page_size + donor.as_ref().map_or(0, |donor| donor.n_tokens);
        if let Some(id) = wish.first_of {
            // Before anything is evicted for it.
            let given = Given { max_cached, n_cached };
            let (tree, history) = (&self.tree, &mut self.history);
            let explanation = history.explain(tree, wish.namespace, wish.tokens, Some(given));
            history.keep(id, explanation);
        }
        self.evict_to(n_new);
        self.allocate(n_new, &mut pages);
        let copy = donor.map(|donor| PageCopy {
            from: donor.page,
            to: pages[n_shared],
            n_tokens: donor.n_tokens,
            lock: donor.lock,
        });
        let n_copied = copy.as_ref().map_or(0, |copy| copy.n_tokens);
        let table = PageTable {
            pages,
            n_shared,
            lock,
            root: PrefixHash::new(wish.namespace),
        };
        Some(Admission {
            table,
            n_cached,
            n_copied,
            copy,
        })
    }

    /// The copy is made (or ordered before anything that writes to the donor).
    pub(crate) fn release_donor(&mut self, copy: PageCopy) {
        self.tree.release_lock(copy.lock);
    }

    /// Makes room for `n_tokens` tokens in `table`; false where no page can be had.
    pub(crate) fn grow(&mut self, table: &mut PageTable, n_tokens: usize) -> bool {
        let n_new = n_tokens
            .div_ceil(self.config.page_size)
            .saturating_sub(table.pages.len());
        if self.n_available() < n_new {
            return false;
        }
        self.evict_to(n_new);
        self.allocate(n_new, &mut table.pages);
        true
    }

    /// How many of `n_wanted` more tokens find room after `n_tokens`, in pages that `table` holds or that are
    /// free; nothing is evicted for them.
    pub(crate) fn grow_for_free(&mut self, table: &mut PageTable, n_tokens: usize, n_wanted: usize) -> usize {
        let n_pages = (n_tokens + n_wanted).div_ceil(self.config.page_size);
        let n_new = n_pages
            .saturating_sub(table.pages.len())
            .min(self.allocator.n_free());
        self.allocate(n_new, &mut table.pages);
        self.room_after(table, n_tokens).min(n_wanted)
    }

    /// Tokens that still fit the pages of `table` after `n_tokens`.
    pub(crate) fn room_after(&self, table: &PageTable, n_tokens: usize) -> usize {
        (table.pages.len() * self.config.page_size).saturating_sub(n_tokens)
    }

    /// Shares the whole pages of `computed` through the tree. Pages the tree already has are used from there.
    pub(crate) fn checkpoint(&mut self, table: PageTable, computed: &[u32]) -> PageTable {
        self.note_filled(&table, computed);
        let PageTable {
            mut pages,
            lock,
            root,
            ..
        } = table;
        let mut duplicates = std::mem::take(&mut self.scratch);
        let lock = self.tree.checkpoint(lock, computed, &mut pages, &mut duplicates);
        self.release(&mut duplicates);
        self.scratch = duplicates;
        let n_shared = computed.len() / self.config.page_size;
        PageTable {
            pages,
            n_shared,
            lock,
            root,
        }
    }

    /// Leaves everything `computed` to the tree, the last, partly filled page included, and gives the rest
    /// back.
    pub(crate) fn finish(&mut self, table: PageTable, computed: &[u32], n_prompt: usize) {
        self.note_filled(&table, computed);
        let PageTable { pages, lock, .. } = table;
        let mut released = std::mem::take(&mut self.scratch);
        let n_prompt = n_prompt.min(computed.len());
        self.tree.finish(lock, computed, n_prompt, &pages, &mut released);
        self.release(&mut released);
        self.scratch = released;
    }

    /// Empties the tree but for what is locked.
    pub(crate) fn flush(&mut self) {
        let mut released = std::mem::take(&mut self.scratch);
        self.tree.clear(&mut released);
        self.history.pages_left(&released, Leaving::Flushed);
        self.release(&mut released);
        self.scratch = released;
    }

    /// Tells the history which prefixes the pages end that `table` is about to share.
    fn note_filled(&mut self, table: &PageTable, computed: &[u32]) {
        let filled = table.pages.iter().zip(computed.chunks(self.config.page_size));
        let mut before = table.n_shared.checked_sub(1).map(|last| table.pages[last]);
        for (&page, tokens) in filled.skip(table.n_shared) {
            self.history.page_filled(page, tokens, before, table.root);
            before = Some(page);
        }
    }

    /// What a prompt would find now.
    pub(crate) fn explain(&self, namespace: &Namespace, tokens: &[u32]) -> Explanation {
        self.history.explain(&self.tree, namespace, tokens, None)
    }

    /// Why a request found what it found, if that is still known.
    pub(crate) fn explanation_of(&self, id: RequestId) -> Option<&Explanation> {
        self.history.of(id)
    }

    /// A picture of at most `max_nodes` nodes. `tables` are those of all running sequences.
    pub(crate) fn view<'a>(
        &self,
        tables: impl Iterator<Item = &'a PageTable>,
        max_nodes: usize,
    ) -> CacheView {
        let limits = ViewLimits {
            n_nodes: max_nodes,
            n_tokens: SHOWN_TOKENS,
        };
        let tree = self.tree.view(tables.map(|table| &table.lock), limits);
        CacheView {
            n_nodes_left_out: tree.n_nodes - tree.nodes.len(),
            n_pages_left_out: tree.n_pages - tree.n_pages_shown(),
            nodes: tree.nodes,
            page_size: self.config.page_size,
            n_total: self.n_total(),
            n_free: self.n_free(),
            n_cached: self.n_cached(),
            n_evictable: self.n_evictable(),
        }
    }

    /// Pages that can be had now.
    pub(crate) fn n_available(&self) -> usize {
        self.allocator.n_free() + self.tree.n_evictable_pages()
    }

    pub(crate) fn n_free(&self) -> usize {
        self.allocator.n_free()
    }

    pub(crate) fn n_cached(&self) -> usize {
        self.tree.n_cached_pages()
    }

    pub(crate) fn n_evictable(&self) -> usize {
        self.tree.n_evictable_pages()
    }

    pub(crate) fn n_total(&self) -> usize {
        self.allocator.n_total()
    }

    /// Pages evicted since the last call.
    pub(crate) fn take_n_evicted(&mut self) -> usize {
        std::mem::take(&mut self.n_evicted)
    }

    /// Pages released since the last call, in debug builds.
    pub(crate) fn take_freed(&mut self) -> Vec<PageId> {
        std::mem::take(&mut self.freed)
    }

    /// Contract C4, page by page.
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a PageTable>) {
        self.tree.check();
        let mut holders = vec![0_u32; self.n_total()];
        let mut in_tree = vec![false; self.n_total()];
        for page in self.tree.pages() {
            holders[page.0 as usize] += 1;
            in_tree[page.0 as usize] = true;
        }
        for table in tables {
            for page in table.owned() {
                holders[page.0 as usize] += 1;
            }
            for page in &table.pages[..table.n_shared] {
                assert!(in_tree[page.0 as usize], "shared {page:?} is not in the tree");
            }
        }
        for (idx, &n_holders) in holders.iter().enumerate() {
            let page = PageId(idx as u32);
            let n_free = u32::from(self.allocator.is_free(page));
            assert_eq!(
                n_holders + n_free,
                1,
                "{page:?} is held {n_holders} times and free {n_free} times"
            );
        }
    }

    fn evict_to(&mut self, n_pages: usize) {
        let n_short = n_pages.saturating_sub(self.allocator.n_free());
        if n_short == 0 {
            return;
        }
        let mut evicted = std::mem::take(&mut self.scratch);
        let n_evicted = self.tree.evict(n_short, &mut evicted);
        assert_eq!(n_evicted, n_short, "evictable pages can be evicted");
        self.n_evicted += n_evicted;
        self.history.pages_left(&evicted, Leaving::Evicted);
        self.release(&mut evicted);
        self.scratch = evicted;
    }

    fn allocate(&mut self, n_pages: usize, pages: &mut Vec<PageId>) {
        for _ in 0..n_pages {
            pages.push(self.allocator.allocate().expect("room was made"));
        }
    }

    fn release(&mut self, pages: &mut Vec<PageId>) {
        for page in pages.drain(..) {
            self.allocator.release(page);
            if cfg!(debug_assertions) {
                self.freed.push(page);
            }
        }
    }
}
