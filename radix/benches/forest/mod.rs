//! Trees of a wanted size, for both benches.

use arbora_radix::{EvictionPolicy, Namespace, PageAllocator, PageId, RadixTree};

pub(crate) const PAGE_SIZE: usize = 16;
pub(crate) const SHARED: Namespace = Namespace {
    model: 0,
    adapter: 0,
    salt: [0; 16],
};

/// How prompts relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Groups of a hundred prompts that share four pages: system prompts and questions.
    Groups,
    /// Prompts that share nothing: all leaves are siblings.
    Flat,
    /// Prompts that share 15 of their first 16 tokens: a system prompt that ends inside a page.
    SharedFifteen,
}

impl Shape {
    /// The `leaf`-th prompt of its kind: distinct ones for distinct numbers, in no order.
    pub(crate) fn prompt(self, leaf: u32) -> Vec<u32> {
        let scrambled = leaf.wrapping_mul(0x9e37_79b1);
        let own_page = [scrambled, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        match self {
            Self::Groups => {
                let group = (leaf / 100).wrapping_mul(0x85eb_ca6b);
                (0..64).map(|token| group ^ token).chain(own_page).collect()
            }
            Self::Flat => own_page.to_vec(),
            Self::SharedFifteen => (0..15).chain([scrambled]).collect(),
        }
    }
}

/// A full pool under a tree of `n_leaves` leaves.
pub(crate) struct Forest {
    pub(crate) tree: RadixTree,
    pub(crate) shape: Shape,
    pub(crate) n_leaves: u32,
    pages: PageAllocator,
    n_inserted: u32,
    released: Vec<PageId>,
}

impl Forest {
    pub(crate) fn new(shape: Shape, n_leaves: u32) -> Self {
        let n_pages = n_leaves as usize
            + if shape == Shape::Groups {
                n_leaves as usize / 100 * 4 + 8
            } else {
                2
            };
        let mut tree = RadixTree::new(PAGE_SIZE, EvictionPolicy::Lru);
        tree.reserve(n_pages);
        let pages = PageAllocator::new(n_pages);
        let mut forest = Self {
            tree,
            shape,
            n_leaves,
            pages,
            n_inserted: 0,
            released: Vec::new(),
        };
        for _ in 0..n_leaves {
            forest.insert();
        }
        forest
    }

    /// A request that is new to the tree, from its match to its end.
    pub(crate) fn insert(&mut self) {
        let tokens = self.shape.prompt(self.n_inserted);
        self.n_inserted += 1;
        let matched = self.tree.match_prefix(&SHARED, &tokens, tokens.len() - 1, 0);
        matched
            .donor
            .into_iter()
            .for_each(|donor| self.tree.release_lock(donor.lock));
        let mut table = matched.pages;
        while table.len() < tokens.len().div_ceil(PAGE_SIZE) {
            table.push(self.pages.allocate().expect("the bench evicts what it needs"));
        }
        self.tree
            .finish(matched.lock, &tokens, tokens.len(), &table, &mut self.released);
        self.give_back();
    }

    pub(crate) fn evict(&mut self, n_pages: usize) {
        self.tree.evict(n_pages, &mut self.released);
        self.give_back();
    }

    /// Makes room for one more prompt of this shape.
    pub(crate) fn make_room(&mut self) {
        let n_missing = 5_usize.saturating_sub(self.pages.n_free());
        self.evict(if self.shape == Shape::Groups {
            n_missing
        } else {
            n_missing.min(1)
        });
    }

    /// The tokens of a cached prompt, some request's worth back.
    pub(crate) fn cached_prompt(&self, number: u32) -> Vec<u32> {
        let n_back = 1 + number.wrapping_mul(0x9e37_79b1) % (self.n_leaves / 2);
        self.shape.prompt(self.n_inserted - n_back)
    }

    /// A hit and its release.
    pub(crate) fn hit(&mut self, tokens: &[u32]) -> usize {
        let matched = self.tree.match_prefix(&SHARED, tokens, tokens.len(), 0);
        let n_tokens = matched.lock.n_tokens();
        matched
            .donor
            .into_iter()
            .for_each(|donor| self.tree.release_lock(donor.lock));
        self.tree.release_lock(matched.lock);
        n_tokens
    }

    fn give_back(&mut self) {
        self.released.drain(..).for_each(|page| self.pages.release(page));
    }
}

/// A tree that holds some long prompts, in pages that lie scattered in a pool of a million as after long use.
pub(crate) fn long_prompts(n_prompts: u32, n_tokens: u32) -> (RadixTree, Vec<Vec<u32>>) {
    const POOL: u32 = 1 << 20;
    let mut tree = RadixTree::new(PAGE_SIZE, EvictionPolicy::Lru);
    let n_pages = n_tokens / PAGE_SIZE as u32;
    assert!(n_prompts * n_pages <= POOL, "the pool holds them all");
    let prompts: Vec<Vec<u32>> = (0..n_prompts)
        .map(|prompt| (0..n_tokens).map(|token| token ^ (prompt << 24)).collect())
        .collect();
    for (prompt, tokens) in (0..).zip(&prompts) {
        let numbers = prompt * n_pages..(prompt + 1) * n_pages;
        let pages: Vec<_> = numbers
            .map(|number| PageId(number.wrapping_mul(0x9e37_79b1) % POOL))
            .collect();
        let (lock, mut released) = (tree.match_prefix(&SHARED, tokens, 0, 0).lock, Vec::new());
        tree.finish(lock, tokens, tokens.len(), &pages, &mut released);
        assert!(released.is_empty(), "every prompt is new");
    }
    tree.check();
    (tree, prompts)
}
