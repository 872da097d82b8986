//! Putting computed pages into the tree.
//!
//! A sequence inserts below the lock it holds, so nothing above can have moved. On its way down it may find
//! that others inserted the same tokens meanwhile: those pages are shared and its own handed back. What it
//! adds is locked from the first moment by the same lock.

use crate::node::{Node, NodeId, PageRun};
use crate::{PageId, PrefixLock, RadixTree};

/// Where an insertion has come to.
struct Insertion {
    /// The deepest locked node.
    node: NodeId,
    priority: i16,
}

impl RadixTree {
    /// Puts the whole pages of a running sequence into the tree, so that others can share them at once, and
    /// moves the lock to the deepest of them.
    ///
    /// `tokens` are all tokens whose keys and values are computed and accepted, `pages` the sequence's page
    /// table, at least one page for each `page_size` of them, beginning with the pages that `lock` covers.
    /// Where the tree holds a page with the same tokens already, `pages` is rewritten to that one and ours
    /// goes to `duplicates`, to be released by the caller; so do partly filled pages that ours supersede.
    pub fn checkpoint(
        &mut self,
        lock: PrefixLock,
        tokens: &[u32],
        pages: &mut [PageId],
        duplicates: &mut Vec<PageId>,
    ) -> PrefixLock {
        let n_whole = tokens.len() / self.page_size();
        let n_locked = lock.n_tokens() / self.page_size();
        let (node, _, priority) = lock.redeem();
        let mut at = Insertion { node, priority };
        let shared = self.insert_whole(
            &mut at,
            n_locked,
            &tokens[..n_whole * self.page_size()],
            pages,
            duplicates,
        );
        pages[n_locked..][..shared.len()].copy_from_slice(&shared);
        PrefixLock::new(at.node, n_whole * self.page_size(), priority)
    }

    /// Puts everything a sequence computed into the tree, a partly filled last page included, and takes the
    /// lock back. The path is split after the last whole page of the `n_prompt` prompt tokens, so that the
    /// output can be evicted by itself.
    ///
    /// The whole page table is given up: pages the tree did not take go to `duplicates`, unused ones at its
    /// end included.
    pub fn finish(
        &mut self,
        lock: PrefixLock,
        tokens: &[u32],
        n_prompt: usize,
        pages: &[PageId],
        duplicates: &mut Vec<PageId>,
    ) {
        let page_size = self.page_size();
        assert!(
            tokens.len() <= pages.len() * page_size,
            "every computed token has its place in the page table"
        );
        let n_locked = lock.n_tokens() / page_size;
        let (node, _, priority) = lock.redeem();
        let mut at = Insertion { node, priority };
        let (whole, rest) = tokens.split_at(tokens.len() - tokens.len() % page_size);
        self.insert_whole(&mut at, n_locked, whole, pages, duplicates);

        let n_whole = whole.len() / page_size;
        let mut n_pages = n_whole;
        let mut n_used = n_whole;
        if !rest.is_empty() {
            n_used += 1;
            if self.insert_partial(&mut at, rest, pages[n_whole], duplicates) {
                n_pages += 1;
            }
        }
        duplicates.extend_from_slice(&pages[n_used..]);
        if n_prompt < tokens.len() {
            self.split_path(at.node, n_pages, n_prompt / page_size);
        }
        self.unlock(at.node);
    }

    /// Inserts whole pages from the `n_locked`-th on; returns the pages that the tree held already.
    fn insert_whole(
        &mut self,
        at: &mut Insertion,
        n_locked: usize,
        tokens: &[u32],
        pages: &[PageId],
        duplicates: &mut Vec<PageId>,
    ) -> Vec<PageId> {
        let page_size = self.page_size();
        let n_whole = tokens.len() / page_size;
        debug_assert!(
            !self.store.is_partly_filled(at.node),
            "the lock is a path's, not a donor's"
        );
        assert!(
            n_locked <= n_whole,
            "a sequence keeps the {n_locked} pages its lock covers, not {n_whole}"
        );
        assert!(
            n_whole <= pages.len(),
            "{n_whole} whole pages do not fit a page table of {}",
            pages.len()
        );
        debug_assert_eq!(
            self.store[at.node].pages.as_slice().last(),
            n_locked.checked_sub(1).map(|last| &pages[last]),
            "the page table begins with the pages the lock covers"
        );

        let mut shared = Vec::new();
        let walk = self.store.walk(at.node, &tokens[n_locked * page_size..], |run| {
            shared.extend_from_slice(run);
        });
        let n_known = n_locked + shared.len();
        let ours = &pages[n_locked..n_known];
        assert!(
            shared.iter().zip(ours).all(|(shared, ours)| shared != ours),
            "a page has one owner"
        );
        duplicates.extend_from_slice(ours);
        self.counters.duplicate_pages += shared.len() as u64;

        self.descend(at, walk.node, walk.n_pages);
        self.add(
            at,
            &tokens[n_known * page_size..],
            &pages[n_known..n_whole],
            duplicates,
        );
        shared
    }

    /// Moves the lock down to the end of the first `n_pages` pages of `node`.
    fn descend(&mut self, at: &mut Insertion, node: NodeId, n_pages: usize) {
        let node = self.split_off_upper(node, n_pages);
        self.lock(node, Some(at.node));
        self.count_hits(node, Some(at.node), at.priority);
        at.node = node;
    }

    /// Adds pages that no child of `at.node` begins with. `tokens` may end inside the last one.
    fn add(&mut self, at: &mut Insertion, tokens: &[u32], pages: &[PageId], duplicates: &mut Vec<PageId>) {
        let page_size = self.page_size();
        let Some(first) = tokens.chunks(page_size).next() else {
            return;
        };
        self.supersede(at.node, first, duplicates);
        for (page, tokens) in pages.iter().zip(tokens.chunks(page_size)) {
            self.store.write_tokens(*page, tokens);
        }
        let n_last = (tokens.len() - (pages.len() - 1) * page_size) as u16;
        let rank = self
            .order
            .policy
            .initial_rank(at.priority)
            .min(self.store[at.node].rank);
        if self.can_grow(at.node, rank) {
            self.store[at.node].pages.extend(pages);
            self.store[at.node].n_last = n_last;
        } else {
            let pages = PageRun::new(pages);
            let leaf = self.store.insert(Node {
                n_locks: 1,
                rank,
                n_last,
                pages,
                ..Node::root()
            });
            self.store.attach(at.node, leaf);
            at.node = leaf;
        }
        self.n_cached += pages.len();
        self.counters.inserted_pages += pages.len() as u64;
        self.generation += 1;
    }

    /// Whether pages of this rank can join the node instead of becoming its child: nobody else's lock may
    /// come to cover them. Keeps a prompt that is checkpointed chunk by chunk in one node.
    fn can_grow(&self, id: NodeId, rank: i16) -> bool {
        let node = &self.store[id];
        let is_ours = !node.is_root() && node.n_locks == 1;
        is_ours && node.children.is_none() && node.rank == rank && !self.store.is_partly_filled(id)
    }

    /// Drops partly filled children of `parent` that hold only a first part of `tokens`, the first page of
    /// what is about to be added. One that is locked as a donor stays until it is evicted.
    fn supersede(&mut self, parent: NodeId, tokens: &[u32], duplicates: &mut Vec<PageId>) {
        while let Some((child, n_equal)) = self.store.find(parent, tokens).before {
            let is_first_part =
                self.store[child].n_last as usize == n_equal && self.store[child].pages.len() == 1;
            if !is_first_part || self.store[child].n_locks > 0 {
                break;
            }
            self.counters.superseded_pages += 1;
            self.drop_last_pages(child, 1, duplicates);
        }
    }

    /// Adds the partly filled last page of a sequence, unless a page begins with the same tokens. Tells
    /// whether it did.
    fn insert_partial(
        &mut self,
        at: &mut Insertion,
        tokens: &[u32],
        page: PageId,
        duplicates: &mut Vec<PageId>,
    ) -> bool {
        let closest = self.store.find(at.node, tokens).closest;
        if closest.is_some_and(|(_, n_equal)| n_equal == tokens.len()) {
            duplicates.push(page);
            self.counters.duplicate_pages += 1;
            return false;
        }
        self.add(at, tokens, &[page], duplicates);
        true
    }

    /// Splits the node that covers the page boundary `n_pages` of the path to `deepest`, which is `n_path`
    /// pages long.
    fn split_path(&mut self, deepest: NodeId, n_path: usize, n_pages: usize) {
        let (mut id, mut n_above) = (deepest, n_path - self.store[deepest].pages.len());
        while n_above > n_pages {
            id = self.store[id].parent.expect("the path is as long as its nodes");
            n_above -= self.store[id].pages.len();
        }
        if n_above < n_pages && n_pages < n_above + self.store[id].pages.len() {
            self.split_off_upper(id, n_pages - n_above);
        }
    }
}
