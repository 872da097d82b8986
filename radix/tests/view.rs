//! What a picture of the tree shows and where a prompt leaves it, next to plain comparisons.

use std::collections::HashMap;

use arbora_radix::{
    EvictionPolicy, MatchLen, Matched, Namespace, PageAllocator, PageId, PrefixLock, RadixTree, ViewLimits,
};

const PAGE_SIZE: usize = 4;
const ALL: ViewLimits = ViewLimits {
    n_nodes: usize::MAX,
    n_tokens: 3,
};

/// A tree, its pages, the sequences it remembers and the locks that are held.
struct Forest {
    tree: RadixTree,
    pages: PageAllocator,
    remembered: Vec<(Namespace, Vec<u32>)>,
    held: Vec<Matched>,
    random: u64,
}

impl Forest {
    fn new(policy: EvictionPolicy, seed: u64) -> Self {
        Forest {
            tree: RadixTree::new(PAGE_SIZE, policy),
            pages: PageAllocator::new(4000),
            remembered: Vec::new(),
            held: Vec::new(),
            random: seed,
        }
    }

    /// The next number of an xorshift generator, below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % n
    }

    fn namespace(&mut self) -> Namespace {
        Namespace {
            salt: [self.below(2) as u8; 16],
            ..Namespace::default()
        }
    }

    /// The beginning of a remembered sequence and some tokens of a small alphabet.
    fn tokens(&mut self) -> Vec<u32> {
        let n_remembered = self.remembered.len() as u64;
        let mut tokens = match n_remembered {
            0 => Vec::new(),
            n => {
                let earlier = self.below(n) as usize;
                self.remembered[earlier].1.clone()
            }
        };
        let n_kept = self.below(tokens.len() as u64 + 1);
        tokens.truncate(n_kept as usize);
        for _ in 0..=self.below(30) {
            let token = self.below(3) as u32;
            tokens.push(token);
        }
        tokens
    }

    fn insert(&mut self, namespace: Namespace, tokens: &[u32]) {
        let matched = self.tree.match_prefix(&namespace, tokens, tokens.len(), 0);
        if let Some(donor) = matched.donor {
            self.tree.release_lock(donor.lock);
        }
        let mut table: Vec<PageId> = matched.pages;
        while table.len() * PAGE_SIZE < tokens.len() {
            table.push(self.pages.allocate().expect("the pool is large enough"));
        }
        let mut released = Vec::new();
        self.tree
            .finish(matched.lock, tokens, tokens.len(), &table, &mut released);
        released.into_iter().for_each(|page| self.pages.release(page));
        self.remembered.push((namespace, tokens.to_vec()));
    }

    fn hold(&mut self, namespace: Namespace, tokens: &[u32]) {
        let mut matched = self.tree.match_prefix(&namespace, tokens, tokens.len(), 0);
        if let Some(donor) = matched.donor.take() {
            self.tree.release_lock(donor.lock);
        }
        self.held.push(matched);
    }

    fn evict(&mut self, n_pages: usize) {
        let mut freed = Vec::new();
        self.tree.evict(n_pages, &mut freed);
        freed.into_iter().for_each(|page| self.pages.release(page));
    }

    fn locks(&self) -> impl Iterator<Item = &PrefixLock> {
        self.held.iter().map(|matched| &matched.lock)
    }

    fn release_all(mut self) {
        for matched in self.held.drain(..) {
            self.tree.release_lock(matched.lock);
        }
    }

    /// The longest beginning of `tokens` that some remembered sequence of the namespace has.
    fn longest_common(&self, namespace: &Namespace, tokens: &[u32]) -> usize {
        let common =
            |(_, other): &(Namespace, Vec<u32>)| other.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let same = self.remembered.iter().filter(|(of, _)| of == namespace);
        same.map(common).max().unwrap_or(0)
    }
}

const POLICIES: [EvictionPolicy; 4] = [
    EvictionPolicy::Lru,
    EvictionPolicy::Lfu,
    EvictionPolicy::Slru,
    EvictionPolicy::Priority,
];

#[test]
fn a_picture_of_everything_has_every_page_once_and_every_prefix() {
    for (policy, seed) in POLICIES.into_iter().zip(1..) {
        let mut forest = Forest::new(policy, seed);
        for round in 0..300 {
            let (namespace, tokens) = (forest.namespace(), forest.tokens());
            match forest.below(6) {
                0 => forest.hold(namespace, &tokens),
                1 => {
                    let n_pages = forest.below(40) as usize;
                    forest.evict(n_pages);
                }
                _ => forest.insert(namespace, &tokens),
            }
            let view = forest.tree.view(forest.locks(), ALL);
            assert_eq!(view.nodes.len(), view.n_nodes, "{policy:?}, round {round}");
            assert_eq!(view.n_pages_shown(), forest.tree.n_cached_pages());
            assert_eq!(view.n_pages, forest.tree.n_cached_pages());
            let locked = view.nodes.iter().filter(|node| node.n_locks > 0);
            let n_locked: usize = locked.map(|node| node.n_pages).sum();
            assert_eq!(n_locked, forest.tree.n_locked_pages());
            let mut seen = HashMap::new();
            for node in &view.nodes {
                let (depth, n_children) = match node.parent {
                    None => (0, &mut 0),
                    Some(parent) => {
                        let (end, n_children) = seen.get_mut(&parent).expect("parents come first");
                        (*end, n_children)
                    }
                };
                *n_children += 1;
                assert_eq!(node.depth, depth);
                let before = seen.insert(node.id, (depth + node.n_tokens, 0));
                assert_eq!(before, None, "a node is shown twice");
            }
            let counted = |node: &arbora_radix::NodeView| node.n_children == Some(seen[&node.id].1);
            assert!(view.nodes.iter().all(counted), "round {round}");
        }
        forest.release_all();
    }
}

#[test]
fn a_picture_shows_the_ends_of_what_a_node_holds() {
    let mut forest = Forest::new(EvictionPolicy::Lru, 1);
    forest.insert(Namespace::default(), &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    forest.insert(Namespace::default(), &[1, 2, 3, 4, 5, 6, 7, 8, 20]);
    let view = forest.tree.view(forest.locks(), ALL);
    let shown: Vec<_> = view
        .nodes
        .iter()
        .map(|node| {
            (
                node.depth,
                node.n_tokens,
                node.n_pages,
                &node.first[..],
                &node.last[..],
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            (0, 0, 0, &[][..], &[][..]),
            (0, 8, 2, &[1, 2, 3][..], &[6, 7, 8][..]),
            (8, 1, 1, &[20][..], &[][..]),
            (8, 2, 1, &[9, 10][..], &[][..]),
        ],
        "the root, the shared part, then the newest leaf"
    );
    assert_eq!(view.nodes[2].age, 0);
    assert_eq!(view.nodes[3].age, 1, "one lookup since");
    assert_eq!(view.nodes[1].n_children, Some(2));
}

#[test]
fn a_bounded_picture_is_a_tree_of_what_is_evicted_last() {
    let mut forest = Forest::new(EvictionPolicy::Lru, 7);
    for _ in 0..200 {
        let (namespace, tokens) = (forest.namespace(), forest.tokens());
        forest.insert(namespace, &tokens);
    }
    let tokens = forest.remembered[3].1.clone();
    let namespace = forest.remembered[3].0;
    forest.hold(namespace, &tokens);
    let all = forest.tree.view(forest.locks(), ALL).nodes;
    for n_nodes in 0..all.len() {
        let limits = ViewLimits { n_nodes, ..ALL };
        let view = forest.tree.view(forest.locks(), limits);
        assert_eq!(view.n_nodes, all.len());
        let ids = |nodes: &[arbora_radix::NodeView]| nodes.iter().map(|node| node.id).collect::<Vec<_>>();
        assert_eq!(
            ids(&view.nodes),
            ids(&all[..n_nodes]),
            "the beginning of the whole"
        );
    }
    // What is shown last is what goes first.
    let last = all.last().expect("there are nodes").clone();
    forest.evict(last.n_pages);
    let view = forest.tree.view(forest.locks(), ALL);
    assert!(view.nodes.iter().all(|node| node.id != last.id));
    forest.release_all();
}

#[test]
fn children_beyond_the_budget_are_not_counted() {
    let mut forest = Forest::new(EvictionPolicy::Lru, 1);
    for token in 0..500 {
        forest.insert(Namespace::default(), &[token; 5]);
    }
    let limits = ViewLimits { n_nodes: 2, ..ALL };
    let view = forest.tree.view(forest.locks(), limits);
    assert_eq!(
        view.nodes[0].n_children, None,
        "500 are too many for a picture of 2"
    );
    assert_eq!(
        forest.tree.view(forest.locks(), ALL).nodes[0].n_children,
        Some(500)
    );
}

#[test]
fn a_prompt_leaves_the_tree_where_a_plain_comparison_says() {
    for seed in 1..=20 {
        let mut forest = Forest::new(EvictionPolicy::Lru, seed);
        for round in 0..60 {
            let (namespace, tokens) = (forest.namespace(), forest.tokens());
            let most = tokens.len() - 1;
            let departure = forest.tree.departure(&namespace, &tokens, most, 3);
            let MatchLen {
                n_tokens,
                n_donor_tokens,
            } = departure.found;
            let position = n_tokens + n_donor_tokens;
            let expected = forest.longest_common(&namespace, &tokens).min(most);
            assert_eq!(position, expected, "seed {seed}, round {round}: {tokens:?}");
            assert_eq!(departure.found, forest.tree.match_len(&namespace, &tokens, most));
            assert_eq!(departure.donor.is_some(), n_donor_tokens > 0);
            // What is there instead goes on from what is common, in some remembered sequence.
            if !departure.instead.is_empty() {
                let mut other = tokens[..position].to_vec();
                other.extend(&departure.instead);
                assert_eq!(forest.longest_common(&namespace, &other), other.len());
            }
            if position < most && !departure.instead.is_empty() {
                assert_ne!(departure.instead[0], tokens[position], "it diverges there");
            }
            forest.insert(namespace, &tokens);
        }
    }
}

#[test]
fn looking_at_a_tree_is_no_use_of_it() {
    let mut forest = Forest::new(EvictionPolicy::Lfu, 3);
    for _ in 0..50 {
        let (namespace, tokens) = (forest.namespace(), forest.tokens());
        forest.insert(namespace, &tokens);
    }
    let (counters, generation) = (*forest.tree.counters(), forest.tree.generation());
    let before = forest.tree.view(forest.locks(), ALL);
    let (namespace, tokens) = forest.remembered[10].clone();
    forest.tree.departure(&namespace, &tokens, tokens.len(), 5);
    assert_eq!(forest.tree.view(forest.locks(), ALL), before);
    assert_eq!(
        (*forest.tree.counters(), forest.tree.generation()),
        (counters, generation)
    );
}
