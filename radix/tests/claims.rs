//! What the tree promises, one claim per test.

use arbora_radix::{
    Counters, EvictionPolicy, Matched, Namespace, PageAllocator, PageId, PrefixLock, RadixTree,
};

const SHARED: Namespace = Namespace {
    model: 0,
    adapter: 0,
    salt: [0; 16],
};

/// A tree with its pages, and the checks that belong to every step.
struct Cache {
    tree: RadixTree,
    pages: PageAllocator,
    /// Pages in the page tables of sequences, not shared ones.
    n_owned: usize,
}

impl Cache {
    fn new(page_size: usize, policy: EvictionPolicy) -> Self {
        Self {
            tree: RadixTree::new(page_size, policy),
            pages: PageAllocator::new(64),
            n_owned: 0,
        }
    }

    fn check(&self) {
        self.tree.check();
        assert_eq!(
            self.pages.n_free() + self.tree.n_cached_pages() + self.n_owned,
            self.pages.n_total()
        );
        assert!(self.tree.pages().all(|page| !self.pages.is_free(page)));
    }

    fn allocate(&mut self, n_pages: usize) -> Vec<PageId> {
        self.n_owned += n_pages;
        (0..n_pages)
            .map(|_| {
                self.pages
                    .allocate()
                    .expect("the pool is large enough for the test")
            })
            .collect()
    }

    fn matched(&mut self, tokens: &[u32]) -> Matched {
        let matched = self.tree.match_prefix(&SHARED, tokens, tokens.len(), 0);
        self.check();
        matched
    }

    fn release(&mut self, matched: Matched) {
        self.tree.release_lock(matched.lock);
        if let Some(donor) = matched.donor {
            self.tree.release_lock(donor.lock);
        }
        self.check();
    }

    /// Locks what is cached of `tokens` and completes the page table, without a donor.
    fn begin(&mut self, tokens: &[u32], priority: i32) -> (PrefixLock, Vec<PageId>) {
        let matched = self.tree.match_prefix(&SHARED, tokens, tokens.len(), priority);
        matched
            .donor
            .into_iter()
            .for_each(|donor| self.tree.release_lock(donor.lock));
        let mut table = matched.pages;
        let n_missing = tokens.len().div_ceil(self.tree.page_size()) - table.len();
        table.extend(self.allocate(n_missing));
        self.check();
        (matched.lock, table)
    }

    fn checkpoint(&mut self, lock: PrefixLock, tokens: &[u32], table: &mut [PageId]) -> PrefixLock {
        let (n_before, mut duplicates) = (self.tree.n_cached_pages(), Vec::new());
        let lock = self.tree.checkpoint(lock, tokens, table, &mut duplicates);
        self.n_owned = self.n_owned + n_before - self.tree.n_cached_pages() - duplicates.len();
        duplicates.into_iter().for_each(|page| self.pages.release(page));
        self.check();
        lock
    }

    fn finish(&mut self, lock: PrefixLock, tokens: &[u32], n_prompt: usize, table: &[PageId]) {
        let (n_before, mut duplicates) = (self.tree.n_cached_pages(), Vec::new());
        self.tree.finish(lock, tokens, n_prompt, table, &mut duplicates);
        self.n_owned = self.n_owned + n_before - self.tree.n_cached_pages() - duplicates.len();
        duplicates.into_iter().for_each(|page| self.pages.release(page));
        self.check();
    }

    fn insert(&mut self, tokens: &[u32]) -> Vec<PageId> {
        self.insert_at(tokens, 0)
    }

    fn insert_at(&mut self, tokens: &[u32], priority: i32) -> Vec<PageId> {
        let (lock, table) = self.begin(tokens, priority);
        self.finish(lock, tokens, tokens.len(), &table);
        table
    }

    fn evict(&mut self, n_pages: usize) -> Vec<PageId> {
        let mut freed = Vec::new();
        assert_eq!(self.tree.evict(n_pages, &mut freed), freed.len());
        freed.iter().for_each(|page| self.pages.release(*page));
        self.check();
        freed
    }

    fn cached(&self, tokens: &[u32]) -> (usize, usize) {
        let found = self.tree.match_len(&SHARED, tokens, tokens.len());
        (found.n_tokens, found.n_donor_tokens)
    }
}

#[test]
fn whole_pages_are_shared_and_the_page_where_a_prompt_diverges_is_a_donor() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    let table = cache.insert(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let matched = cache.matched(&[1, 2, 3, 4, 5, 6, 0, 0]);
    assert_eq!(matched.pages, table[..1]);
    assert_eq!(matched.lock.n_tokens(), 4);
    let donor = matched.donor.as_ref().expect("5 6 agree");
    assert_eq!((donor.page, donor.n_tokens), (table[1], 2));
    cache.release(matched);

    let matched = cache.matched(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(matched.pages, table[..2]);
    let donor = matched.donor.as_ref().expect("9 agrees");
    assert_eq!((donor.page, donor.n_tokens), (table[2], 1));
    cache.release(matched);
}

#[test]
fn a_match_never_exceeds_its_limit() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    cache.insert(&[1, 2, 3, 4, 5, 6, 7, 8]);
    for max_tokens in 0..9 {
        let found = cache
            .tree
            .match_len(&SHARED, &[1, 2, 3, 4, 5, 6, 7, 8], max_tokens);
        assert_eq!(found.n_tokens + found.n_donor_tokens, max_tokens);
        assert_eq!(found.n_tokens % 4, 0);
    }
}

#[test]
fn the_donor_is_the_sibling_that_shares_most_tokens() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    cache.insert(&[1, 1, 1, 1]);
    let best = cache.insert(&[1, 2, 3, 1]);
    cache.insert(&[1, 2, 9, 1]);
    cache.insert(&[1, 3]);
    let matched = cache.matched(&[1, 2, 3, 7]);
    let donor = matched.donor.as_ref().expect("1 2 3 agree");
    assert_eq!((donor.page, donor.n_tokens), (best[0], 3));
    cache.release(matched);
}

#[test]
fn a_different_namespace_never_matches() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    cache.insert(&[1, 2, 3, 4]);
    let others = [
        Namespace { model: 1, ..SHARED },
        Namespace { adapter: 1, ..SHARED },
        Namespace {
            salt: [1; 16],
            ..SHARED
        },
    ];
    for namespace in others {
        assert_eq!(
            cache.tree.match_len(&namespace, &[1, 2, 3, 4], 4),
            Default::default()
        );
        let matched = cache.tree.match_prefix(&namespace, &[1, 2, 3, 4], 4, 0);
        assert!(matched.pages.is_empty() && matched.donor.is_none());
        cache.release(matched);
    }
    assert_eq!(cache.tree.n_nodes(), 2, "unused namespaces leave nothing behind");
}

#[test]
fn evicting_a_locked_prefix_is_refused() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    let table = cache.insert(&[1, 2, 3, 4, 5, 6]);
    let matched = cache.matched(&[1, 2, 3, 4]);
    assert_eq!(
        (cache.tree.n_locked_pages(), cache.tree.n_evictable_pages()),
        (2, 1)
    );
    assert_eq!(cache.evict(9), [table[2]]);
    assert_eq!(cache.evict(9), []);
    cache.release(matched);
    assert_eq!(cache.evict(9), [table[1], table[0]]);
    assert_eq!(cache.tree.n_nodes(), 0);
}

#[test]
fn evicting_a_locked_donor_is_refused_but_what_follows_it_goes() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    let table = cache.insert(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let Matched { lock, donor, .. } = cache.matched(&[1, 2, 3, 4, 5, 0]);
    cache.tree.release_lock(lock);
    assert_eq!(cache.evict(9), [table[2]]);
    cache.tree.release_lock(donor.expect("5 agrees").lock);
    assert_eq!(cache.evict(9), [table[1], table[0]]);
}

#[test]
fn splitting_a_locked_node_keeps_both_halves_locked() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    cache.insert(&[1, 2, 3, 4, 5, 6]);
    let whole = cache.matched(&[1, 2, 3, 4, 5, 6]);
    let half = cache.matched(&[1, 2, 9, 9]);
    assert_eq!(cache.tree.n_locked_pages(), 3);
    cache.release(half);
    assert_eq!(cache.tree.n_locked_pages(), 3);
    assert_eq!(cache.evict(9), []);
    cache.release(whole);
    assert_eq!(cache.tree.n_locked_pages(), 0);
}

#[test]
fn a_long_prompt_is_shared_chunk_by_chunk_and_stays_one_node() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    let tokens: Vec<u32> = (0..12).collect();
    let (mut lock, mut table) = cache.begin(&tokens, 0);
    for n_computed in [3, 4, 7, 12] {
        lock = cache.checkpoint(lock, &tokens[..n_computed], &mut table);
        assert_eq!(cache.cached(&tokens), (n_computed / 2 * 2, 0));
        assert_eq!(lock.n_tokens(), n_computed / 2 * 2);
    }
    assert_eq!(cache.tree.n_nodes(), 2, "a root and one node");
    cache.finish(lock, &tokens, 12, &table);
}

#[test]
fn pages_computed_twice_are_shared_by_rewriting_the_later_table() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    let (first_lock, mut first) = cache.begin(&[1, 2, 3, 4], 0);
    let (second_lock, mut second) = cache.begin(&[1, 2, 3, 4, 5, 6], 0);
    let first_lock = cache.checkpoint(first_lock, &[1, 2, 3, 4], &mut first);
    let ours = second[2];
    let second_lock = cache.checkpoint(second_lock, &[1, 2, 3, 4, 5, 6], &mut second);
    assert_eq!(second, [first[0], first[1], ours]);
    cache.finish(first_lock, &[1, 2, 3, 4], 4, &first);
    assert_eq!(cache.evict(9), [], "the second still holds them");
    cache.finish(second_lock, &[1, 2, 3, 4, 5, 6], 6, &second);
    assert_eq!(cache.tree.counters().duplicate_pages, 2);
}

#[test]
fn a_checkpoint_that_finds_a_longer_version_locks_only_its_own_part() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    let (lock, mut table) = cache.begin(&[1, 2, 3, 4], 0);
    let longer = cache.insert(&[1, 2, 3, 4, 5, 6, 7]);
    let lock = cache.checkpoint(lock, &[1, 2, 3, 4], &mut table);
    assert_eq!(table, longer[..2]);
    assert_eq!(cache.tree.n_locked_pages(), 2);
    assert_eq!(cache.evict(9), [longer[3], longer[2]]);
    cache.finish(lock, &[1, 2, 3, 4], 4, &table);
}

#[test]
fn a_partly_filled_page_is_superseded_by_one_that_goes_on() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    cache.insert(&[1, 2, 3, 4, 5]);
    cache.insert(&[1, 2, 3, 4, 5, 6]);
    assert_eq!(cache.tree.n_cached_pages(), 2);
    cache.insert(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(cache.tree.n_cached_pages(), 3);
    assert_eq!(cache.tree.counters().superseded_pages, 2);
    assert_eq!(cache.cached(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), (8, 1));
    cache.insert(&[1, 2, 3, 4, 5, 6]);
    assert_eq!(cache.tree.n_cached_pages(), 3, "a shorter one is a duplicate");
}

#[test]
fn a_partly_filled_page_that_is_a_locked_donor_is_not_superseded() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    let short = cache.insert(&[1, 2]);
    let Matched { lock, donor, .. } = cache.matched(&[1, 2, 3]);
    cache.tree.release_lock(lock);
    let donor = donor.expect("1 2 agree");
    assert_eq!(donor.page, short[0]);
    let long = cache.insert(&[1, 2, 3, 4]);
    assert_eq!(cache.tree.n_cached_pages(), 2);
    cache.tree.release_lock(donor.lock);
    let matched = cache.matched(&[1, 2, 3, 4]);
    assert_eq!(matched.pages, long);
    cache.release(matched);
    assert_eq!(cache.evict(1), short);
}

#[test]
fn a_chats_next_turn_loses_nothing() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    let mut chat: Vec<u32> = Vec::new();
    for turn in 0..6 {
        let n_cached = chat.len();
        chat.extend((0..5).map(|i| 100 * turn + i));
        assert_eq!(cache.cached(&chat).0 + cache.cached(&chat).1, n_cached);
        let n_prompt = chat.len();
        let (lock, table) = cache.begin(&[chat.clone(), vec![7; 2]].concat(), 0);
        chat.extend([7; 2]);
        cache.finish(lock, &chat, n_prompt, &table);
    }
}

#[test]
fn outputs_are_evicted_before_prompts() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    let (lock, table) = cache.begin(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 0);
    cache.finish(lock, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 4, &table);
    assert_eq!(cache.tree.n_nodes(), 3, "root, prompt, output");
    assert_eq!(cache.evict(3), [table[4], table[3], table[2]]);
    assert_eq!(cache.cached(&[1, 2, 3, 4]), (4, 0));
}

#[test]
fn unused_pages_at_the_end_of_a_table_are_handed_back() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    let (lock, mut table) = cache.begin(&[1, 2, 3, 4, 5], 0);
    table.extend(cache.allocate(3));
    cache.finish(lock, &[1, 2, 3, 4, 5], 5, &table);
    assert_eq!((cache.n_owned, cache.tree.n_cached_pages()), (0, 2));
}

#[test]
fn lru_gives_up_what_was_used_longest_ago() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    let [a, b, c] = [[1, 1], [2, 2], [3, 3]].map(|tokens| cache.insert(&tokens)[0]);
    let used = cache.matched(&[1, 1]);
    cache.release(used);
    assert_eq!(cache.evict(3), [b, c, a]);
}

#[test]
fn lfu_gives_up_what_was_used_least_often() {
    let mut cache = Cache::new(2, EvictionPolicy::Lfu);
    let [a, b, c] = [[1, 1], [2, 2], [3, 3]].map(|tokens| cache.insert(&tokens)[0]);
    for tokens in [[1, 1], [1, 1], [2, 2]] {
        let used = cache.matched(&tokens);
        cache.release(used);
    }
    assert_eq!(cache.evict(3), [c, b, a]);
}

#[test]
fn slru_keeps_what_was_used_twice_through_a_scan_and_bounds_it() {
    let mut cache = Cache::new(2, EvictionPolicy::Slru);
    let kept = cache.insert(&[1, 1])[0];
    for scanned in 10..20 {
        cache.insert(&[scanned, scanned]);
        if scanned == 15 {
            let used = cache.matched(&[1, 1]);
            cache.release(used);
        }
    }
    assert_eq!(cache.evict(10).iter().position(|page| *page == kept), None);
    assert_eq!(cache.evict(1), [kept]);

    let tokens: Vec<_> = (10..20).map(|token| [token, token]).collect();
    let pages: Vec<_> = tokens.iter().map(|tokens| cache.insert(tokens)[0]).collect();
    for tokens in &tokens {
        let used = cache.matched(tokens);
        cache.release(used);
    }
    // All ten were used again; eight may be protected, so the first two used again go first.
    assert_eq!(cache.evict(2), pages[..2]);
}

#[test]
fn priority_gives_up_the_least_important_first() {
    let mut cache = Cache::new(2, EvictionPolicy::Priority);
    let high = cache.insert_at(&[1, 1, 2, 2], 5);
    let low = cache.insert_at(&[3, 3], -1);
    let middle = cache.insert_at(&[4, 4], 0);
    let raised = cache.insert_at(&[5, 5], -7);
    let matched = cache.tree.match_prefix(&SHARED, &[5, 5], 2, 6);
    cache.release(matched);
    assert_eq!(cache.evict(9), [low[0], middle[0], high[1], high[0], raised[0]]);
}

#[test]
fn counters_are_exact() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    cache.insert(&[1, 2, 3, 4, 5]);
    cache.insert(&[1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(cache.evict(1).len(), 1);
    let expected = Counters {
        lookups: 2,
        lookup_tokens: 12,
        hit_tokens_page: 4,
        hit_tokens_donor: 1,
        inserted_pages: 5,
        duplicate_pages: 0,
        superseded_pages: 1,
        evicted_pages: 1,
        evicted_age_sum: 0,
        evicted_age_max: 0,
    };
    assert_eq!(*cache.tree.counters(), expected);
    cache.insert(&[9, 9]);
    cache.insert(&[8, 8]);
    assert_eq!(cache.evict(3).len(), 3);
    assert_eq!(
        (
            cache.tree.counters().evicted_age_sum,
            cache.tree.counters().evicted_age_max
        ),
        (6, 2)
    );
}

#[test]
fn the_generation_moves_exactly_when_pages_come_or_go() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    let mut last = cache.tree.generation();
    let mut has_moved = |cache: &Cache| std::mem::replace(&mut last, cache.tree.generation()) != last;
    cache.insert(&[1, 2, 3, 4]);
    assert!(has_moved(&cache));
    let matched = cache.matched(&[1, 2, 9]);
    cache.release(matched);
    assert!(!has_moved(&cache));
    cache.insert(&[1, 2, 3, 4]);
    assert!(!has_moved(&cache));
    cache.evict(1);
    assert!(has_moved(&cache));
    cache.evict(0);
    assert!(!has_moved(&cache));
}

#[test]
fn clearing_leaves_locked_pages_only() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    cache.insert(&[1, 2, 3, 4]);
    cache.insert(&[5, 6]);
    let matched = cache.matched(&[1, 2]);
    let mut freed = Vec::new();
    assert_eq!(cache.tree.clear(&mut freed), 2);
    freed.into_iter().for_each(|page| cache.pages.release(page));
    assert_eq!(
        (cache.tree.n_cached_pages(), cache.tree.n_evictable_pages()),
        (1, 0)
    );
    cache.release(matched);
}

#[test]
#[should_panic(expected = "never given back")]
fn dropping_a_lock_panics() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    drop(cache.tree.match_prefix(&SHARED, &[1], 1, 0));
}

#[test]
fn a_lock_can_be_abandoned_with_its_tree() {
    let mut cache = Cache::new(2, EvictionPolicy::Lru);
    cache.tree.match_prefix(&SHARED, &[1], 1, 0).lock.abandon();
}

#[test]
fn a_path_of_a_hundred_thousand_nodes_needs_no_stack() {
    let n_pages = 100_000;
    let mut tree = RadixTree::new(1, EvictionPolicy::Lru);
    let tokens: Vec<u32> = (0..n_pages).collect();
    let pages: Vec<_> = (0..n_pages).map(PageId).collect();
    let (lock, mut released) = (tree.match_prefix(&SHARED, &tokens, 0, 0).lock, Vec::new());
    tree.finish(lock, &tokens, n_pages as usize, &pages, &mut released);
    // Each match cuts one more page off the top: a chain as deep as it can be.
    for n_tokens in (1..n_pages as usize).rev().step_by(997).chain(1..2000) {
        let lock = tree.match_prefix(&SHARED, &tokens, n_tokens, 0).lock;
        tree.release_lock(lock);
    }
    tree.check();
    assert_eq!(tree.clear(&mut released), n_pages as usize);
    assert_eq!(tree.n_nodes(), 0);
}

#[test]
fn a_text_goes_on_as_the_tree_has_it_up_to_where_it_branches() {
    let mut cache = Cache::new(4, EvictionPolicy::Lru);
    let whole: Vec<u32> = (1..=18).collect();
    cache.insert(&whole);
    let next = |cache: &Cache, tokens: &[u32], n| cache.tree.continuation(&SHARED, tokens, n);
    for n in 0..18 {
        assert_eq!(
            next(&cache, &whole[..n], 5),
            whole[n..whole.len().min(n + 5)],
            "after {n}"
        );
    }
    assert_eq!(next(&cache, &whole, 5), []);
    assert_eq!(next(&cache, &[1, 2, 3, 9], 5), [], "not all of it is there");
    assert_eq!(next(&cache, &[1, 2, 3, 4, 9], 5), []);
    let other = Namespace { model: 1, ..SHARED };
    assert_eq!(cache.tree.continuation(&other, &whole[..4], 5), []);
    // A second branch after two pages: within a branch the text goes on, before it nobody knows how.
    cache.insert(&[1, 2, 3, 4, 5, 6, 7, 8, 70, 71, 72, 73, 74]);
    assert_eq!(next(&cache, &whole[..6], 9), [7, 8]);
    assert_eq!(next(&cache, &[1, 2, 3, 4, 5, 6, 7, 8, 70], 9), [71, 72, 73, 74]);
    assert_eq!(next(&cache, &whole[..9], 2), [10, 11]);
}
