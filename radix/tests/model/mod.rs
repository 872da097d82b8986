//! The tree next to something stupidly simple, driven by operations.
//!
//! [`Model`] keeps one entry per cached page under all the tokens from the start of the sequence to the
//! page's end, and a list of locks; everything else it works out by looking at all of them. [`World`] applies
//! an operation to both and compares whatever can be seen. The property tests, the seeded tests and the fuzz
//! target share this module.

mod oracle;

use arbora_radix::{
    Counters, EvictionPolicy, Matched, Namespace, PageAllocator, PageId, PrefixLock, RadixTree,
};
use oracle::{Model, Path};
use std::collections::BTreeSet;

/// Shape of a world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) page_size: usize,
    pub(crate) policy: EvictionPolicy,
    pub(crate) n_pages: usize,
}

impl Shape {
    /// The shape that the next bytes stand for.
    pub(crate) fn decode(bytes: &mut impl Iterator<Item = u8>) -> Option<Self> {
        let policies = [
            EvictionPolicy::Lru,
            EvictionPolicy::Lfu,
            EvictionPolicy::Slru,
            EvictionPolicy::Priority,
        ];
        let mut next = || bytes.next().map(usize::from);
        Some(Self {
            page_size: [1, 2, 3, 4, 5, 8, 16][next()? % 7],
            policy: policies[next()? % policies.len()],
            n_pages: 4 + next()? % 100,
        })
    }
}

/// Tokens as a first part of an earlier sequence and some new ones: long shared prefixes whatever the page
/// size.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    pub(crate) earlier: u8,
    pub(crate) n_kept: u8,
    pub(crate) tail: Vec<u8>,
}

/// What can be done to a tree. Sequences are named by any number, modulo how many run.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Peek {
        namespace: u8,
        tokens: Tokens,
        n_unwanted: u8,
    },
    Begin {
        namespace: u8,
        tokens: Tokens,
        n_unwanted: u8,
        priority: i8,
    },
    ReleaseDonor {
        sequence: u8,
    },
    Compute {
        sequence: u8,
        n_tokens: u8,
    },
    Extend {
        sequence: u8,
        token: u8,
    },
    Checkpoint {
        sequence: u8,
    },
    Finish {
        sequence: u8,
    },
    Abort {
        sequence: u8,
    },
    Evict {
        n_pages: u8,
    },
    Clear,
}

impl Op {
    /// The operation that the next bytes stand for; `None` when they are used up.
    pub(crate) fn decode(bytes: &mut impl Iterator<Item = u8>) -> Option<Self> {
        let kind = bytes.next()?;
        let mut next = || bytes.next().unwrap_or(0);
        Some(match kind % 16 {
            0 => Self::Peek {
                namespace: next(),
                n_unwanted: next(),
                tokens: Tokens::decode(&mut next),
            },
            1..=5 => Self::Begin {
                namespace: next(),
                n_unwanted: next(),
                priority: next() as i8,
                tokens: Tokens::decode(&mut next),
            },
            6 => Self::ReleaseDonor { sequence: next() },
            7 | 8 => Self::Compute {
                sequence: next(),
                n_tokens: next(),
            },
            9 => Self::Extend {
                sequence: next(),
                token: next(),
            },
            10 | 11 => Self::Checkpoint { sequence: next() },
            12 | 13 => Self::Finish { sequence: next() },
            14 if next() % 4 == 0 => Self::Clear,
            14 => Self::Abort { sequence: next() },
            _ => Self::Evict { n_pages: next() },
        })
    }
}

impl Tokens {
    fn decode(next: &mut impl FnMut() -> u8) -> Self {
        let (earlier, n_kept, n_tail) = (next(), next(), next() % 24);
        Self {
            earlier,
            n_kept,
            tail: (0..n_tail).map(|_| next()).collect(),
        }
    }
}

/// A sequence as an engine would keep it.
struct Sequence {
    namespace: u32,
    tokens: Vec<u32>,
    n_prompt: usize,
    n_computed: usize,
    table: Vec<PageId>,
    lock: PrefixLock,
    donor: Option<(PrefixLock, Path)>,
    priority: i32,
}

/// A tree and its model, and the sequences that use them.
pub(crate) struct World {
    shape: Shape,
    tree: RadixTree,
    pages: PageAllocator,
    model: Model,
    sequences: Vec<Sequence>,
    history: Vec<Vec<u32>>,
}

fn namespace(number: u32) -> Namespace {
    // Neighbours differ in one field only.
    let mut salt = [0; 16];
    salt[15] = u8::from(number == 2);
    Namespace {
        model: 0,
        adapter: u32::from(number == 1),
        salt,
    }
}

impl World {
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            shape,
            tree: RadixTree::new(shape.page_size, shape.policy),
            pages: PageAllocator::new(shape.n_pages),
            model: Model::new(shape),
            sequences: Vec::new(),
            history: vec![Vec::new()],
        }
    }

    /// Applies one operation and compares everything there is to see.
    pub(crate) fn apply(&mut self, op: &Op) {
        let before = (self.tree.generation(), self.model.pages());
        match op {
            Op::Peek {
                namespace,
                tokens,
                n_unwanted,
            } => {
                let tokens = self.tokens(tokens);
                self.peek(u32::from(*namespace) % 3, &tokens, *n_unwanted);
            }
            Op::Begin {
                namespace,
                tokens,
                n_unwanted,
                priority,
            } => {
                let tokens = self.tokens(tokens);
                self.begin(
                    u32::from(*namespace) % 3,
                    tokens,
                    *n_unwanted,
                    i32::from(*priority) % 3,
                );
            }
            Op::Evict { n_pages } => self.evict(usize::from(*n_pages) % (self.shape.n_pages / 2)),
            Op::Clear => self.clear(),
            Op::ReleaseDonor { sequence }
            | Op::Compute { sequence, .. }
            | Op::Extend { sequence, .. }
            | Op::Checkpoint { sequence }
            | Op::Finish { sequence }
            | Op::Abort { sequence } => {
                if !self.sequences.is_empty() {
                    let sequence = usize::from(*sequence) % self.sequences.len();
                    self.apply_to_sequence(op, sequence);
                }
            }
        }
        self.compare();
        let has_changed = self.model.pages() != before.1;
        assert!(
            !has_changed || self.tree.generation() != before.0,
            "pages came or went in the same generation"
        );
    }

    fn apply_to_sequence(&mut self, op: &Op, sequence: usize) {
        match op {
            Op::ReleaseDonor { .. } => self.release_donor(sequence),
            Op::Compute { n_tokens, .. } => {
                let sequence = &mut self.sequences[sequence];
                let n_computed = sequence.n_computed + usize::from(*n_tokens) % 24;
                sequence.n_computed = n_computed.min(sequence.tokens.len());
            }
            Op::Extend { token, .. } => self.extend(sequence, u32::from(*token) % 2),
            Op::Checkpoint { .. } => self.checkpoint(sequence),
            Op::Finish { .. } => self.finish(sequence),
            Op::Abort { .. } => self.abort(sequence),
            Op::Peek { .. } | Op::Begin { .. } | Op::Evict { .. } | Op::Clear => {
                unreachable!("{op:?} is about no sequence")
            }
        }
    }

    /// Ends all sequences, empties the tree and finds every page free again.
    pub(crate) fn close(mut self) {
        while !self.sequences.is_empty() {
            self.release_donor(0);
            self.finish(0);
            self.compare();
        }
        self.clear();
        self.compare();
        assert_eq!(self.pages.n_free(), self.shape.n_pages, "every page comes back");
        assert_eq!(self.tree.n_nodes(), 0, "nothing is left of an empty tree");
    }

    fn tokens(&self, tokens: &Tokens) -> Vec<u32> {
        let earlier = &self.history[usize::from(tokens.earlier) % self.history.len()];
        let n_kept = usize::from(tokens.n_kept) % (earlier.len() + 1);
        let tail = tokens.tail.iter().map(|token| u32::from(*token) % 2);
        let n_most = 6 * self.shape.page_size;
        earlier[..n_kept]
            .iter()
            .copied()
            .chain(tail)
            .take(n_most)
            .collect()
    }

    fn peek(&self, number: u32, tokens: &[u32], n_unwanted: u8) {
        let max_tokens = tokens.len().saturating_sub(usize::from(n_unwanted) % 4);
        let found = self.tree.match_len(&namespace(number), tokens, max_tokens);
        let (pages, n_donor_tokens) = self.model.find(number, &tokens[..max_tokens]);
        assert_eq!(
            found.n_tokens,
            pages.len() * self.shape.page_size,
            "tokens in whole pages"
        );
        assert_eq!(found.n_donor_tokens, n_donor_tokens, "tokens of the best donor");
        let next = self.tree.continuation(&namespace(number), tokens, 6);
        let whole = [tokens, &next].concat();
        assert!(
            next.is_empty() || self.model.holds(number, &whole),
            "{tokens:?} goes on with {next:?}"
        );
    }

    fn begin(&mut self, number: u32, tokens: Vec<u32>, n_unwanted: u8, priority: i32) {
        let max_tokens = tokens.len().saturating_sub(1 + usize::from(n_unwanted) % 4);
        self.peek(number, &tokens, n_unwanted);
        let (pages, n_donor_tokens) = self.model.find(number, &tokens[..max_tokens]);
        let Matched {
            lock,
            pages: mut table,
            donor,
        } = self
            .tree
            .match_prefix(&namespace(number), &tokens, max_tokens, priority);
        assert_eq!(table, pages, "pages that match");
        assert_eq!(
            donor.as_ref().map_or(0, |donor| donor.n_tokens),
            n_donor_tokens,
            "tokens of the best donor"
        );
        let n_matched = table.len() * self.shape.page_size;
        self.model.counters.lookups += 1;
        self.model.counters.lookup_tokens += max_tokens as u64;
        self.model.counters.hit_tokens_page += n_matched as u64;
        self.model.counters.hit_tokens_donor += n_donor_tokens as u64;
        self.model
            .lock((number, tokens[..n_matched].to_vec()), 0, priority);
        let donor = donor.map(|donor| {
            let path = self
                .model
                .donor_path(number, &tokens[..n_matched + donor.n_tokens], donor.page);
            self.model.lock(path.clone(), n_matched, priority);
            (donor.lock, path)
        });
        self.compare();

        let n_missing = tokens.len().div_ceil(self.shape.page_size) - table.len();
        self.evict(n_missing.saturating_sub(self.pages.n_free()));
        let n_computed = n_matched;
        let n_prompt = tokens.len();
        if n_missing <= self.pages.n_free() {
            table.extend((0..n_missing).map(|_| self.pages.allocate().expect("enough are free")));
            self.history.push(tokens.clone());
            let namespace = number;
            self.sequences.push(Sequence {
                namespace,
                tokens,
                n_prompt,
                n_computed,
                table,
                lock,
                donor,
                priority,
            });
        } else {
            self.tree.release_lock(lock);
            self.model
                .unlock(&(number, tokens[..n_matched].to_vec()), priority);
            if let Some((lock, path)) = donor {
                self.tree.release_lock(lock);
                self.model.unlock(&path, priority);
            }
        }
    }

    fn release_donor(&mut self, sequence: usize) {
        let priority = self.sequences[sequence].priority;
        if let Some((lock, path)) = self.sequences[sequence].donor.take() {
            self.tree.release_lock(lock);
            self.model.unlock(&path, priority);
        }
    }

    /// One more token, as decoding does, if a page can be had for it.
    fn extend(&mut self, sequence: usize, token: u32) {
        let n_tokens = self.sequences[sequence].tokens.len();
        if n_tokens == self.sequences[sequence].table.len() * self.shape.page_size {
            if self.pages.n_free() == 0 {
                self.evict(1);
            }
            let Some(page) = self.pages.allocate() else { return };
            self.sequences[sequence].table.push(page);
        }
        self.sequences[sequence].tokens.push(token);
        self.sequences[sequence].n_computed = n_tokens;
    }

    fn checkpoint(&mut self, sequence: usize) {
        let mut sequence = self.sequences.swap_remove(sequence);
        let tokens = &sequence.tokens[..sequence.n_computed];
        let n_whole = tokens.len() / self.shape.page_size * self.shape.page_size;
        let priority = sequence.priority;
        self.model.take_lock(&sequence.path(), priority);
        let n_locked = sequence.lock.n_tokens();
        let whole = (sequence.namespace, tokens[..n_whole].to_vec());
        let expected = self.model.insert(&whole, n_locked, &sequence.table, priority);

        let mut duplicates = Vec::new();
        sequence.lock = self
            .tree
            .checkpoint(sequence.lock, tokens, &mut sequence.table, &mut duplicates);
        assert_eq!(sequence.lock.n_tokens(), n_whole);
        assert_eq!(
            sequence.table[..n_whole / self.shape.page_size],
            expected.table,
            "the rewritten page table"
        );
        self.release_all(duplicates, &expected.released);
        self.sequences.push(sequence);
    }

    fn finish(&mut self, sequence: usize) {
        self.release_donor(sequence);
        let sequence = self.sequences.swap_remove(sequence);
        let tokens = &sequence.tokens[..sequence.n_computed];
        let priority = sequence.priority;
        self.model.take_lock(&sequence.path(), priority);
        let everything = (sequence.namespace, tokens.to_vec());
        let mut expected = self
            .model
            .insert(&everything, sequence.lock.n_tokens(), &sequence.table, priority)
            .released;
        expected.extend(&sequence.table[tokens.len().div_ceil(self.shape.page_size)..]);
        self.model.unlock_last();

        let mut duplicates = Vec::new();
        let n_prompt = sequence.n_prompt;
        self.tree
            .finish(sequence.lock, tokens, n_prompt, &sequence.table, &mut duplicates);
        self.release_all(duplicates, &expected);
    }

    /// Nothing is inserted; what the sequence alone has is freed.
    fn abort(&mut self, sequence: usize) {
        self.release_donor(sequence);
        let sequence = self.sequences.swap_remove(sequence);
        self.model.unlock(&sequence.path(), sequence.priority);
        let n_shared = sequence.lock.n_tokens() / self.shape.page_size;
        sequence.table[n_shared..]
            .iter()
            .for_each(|page| self.pages.release(*page));
        self.tree.release_lock(sequence.lock);
    }

    fn release_all(&mut self, given: Vec<PageId>, expected: &[PageId]) {
        let sorted = |pages: &[PageId]| {
            let mut pages = pages.to_vec();
            pages.sort_unstable();
            pages
        };
        assert_eq!(sorted(&given), sorted(expected), "pages handed back");
        given.into_iter().for_each(|page| self.pages.release(page));
    }

    fn evict(&mut self, n_pages: usize) {
        let mut freed = Vec::new();
        let n_freed = self.tree.evict(n_pages, &mut freed);
        assert_eq!(
            n_freed,
            n_pages.min(self.model.n_evictable()),
            "as many as wanted, or all there are"
        );
        assert_eq!(n_freed, freed.len());
        self.model.evict(&freed);
        freed.into_iter().for_each(|page| self.pages.release(page));
    }

    fn clear(&mut self) {
        let mut freed = Vec::new();
        assert_eq!(self.tree.clear(&mut freed), self.model.n_evictable());
        self.model.evict(&freed);
        freed.into_iter().for_each(|page| self.pages.release(page));
    }

    fn compare(&self) {
        self.tree.check();
        let cached: BTreeSet<_> = self.tree.pages().collect();
        assert_eq!(cached, self.model.pages(), "cached pages");
        assert_eq!(self.tree.n_cached_pages(), cached.len());
        assert_eq!(
            self.tree.n_evictable_pages(),
            self.model.n_evictable(),
            "evictable pages"
        );
        assert_eq!(
            self.tree.n_locked_pages(),
            cached.len() - self.model.n_evictable(),
            "locked pages"
        );
        let counters = Counters {
            ..*self.tree.counters()
        };
        assert_eq!(counters, self.model.counters, "counters");

        let owned = |sequence: &Sequence| {
            let n_shared = sequence.lock.n_tokens() / self.shape.page_size;
            sequence.table[n_shared..].to_vec()
        };
        let owned: Vec<_> = self.sequences.iter().flat_map(owned).collect();
        let mut places: Vec<_> = cached.iter().chain(&owned).copied().collect();
        places.extend(
            (0..self.shape.n_pages as u32)
                .map(PageId)
                .filter(|page| self.pages.is_free(*page)),
        );
        places.sort_unstable();
        let all: Vec<_> = (0..self.shape.n_pages as u32).map(PageId).collect();
        assert_eq!(
            places, all,
            "every page is free, cached or owned, and in one place only"
        );
    }
}

impl Sequence {
    fn path(&self) -> Path {
        (self.namespace, self.tokens[..self.lock.n_tokens()].to_vec())
    }
}

/// Locks are abandoned when a comparison has failed: the first panic is the one to see.
impl Drop for World {
    fn drop(&mut self) {
        for sequence in self.sequences.drain(..) {
            sequence.lock.abandon();
            sequence.donor.into_iter().for_each(|(lock, _)| lock.abandon());
        }
    }
}
