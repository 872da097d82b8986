//! Cache-hit explanations: why a request found in the cache what it found, for the latest requests.
//!
//! ```text
//! prompt     | shared pages | copied | computed ........................ |
//!            0                       ^ position: the tree goes on differently, or not at all, or
//!                                      ^ up to here it once went on: the prefix was evicted or flushed
//! ```
//!
//! A prefix that left is remembered by a hash of all its tokens and the time: 16 bytes instead of the prefix.
//! Two prefixes with one hash would give a wrong explanation and nothing worse. Hashes are made page by page
//! when pages enter the tree, so giving one up stays O(1).

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use arbora_radix::{Departure, Namespace, PageId, RadixTree};

use crate::request::RequestId;

/// Requests whose explanation is kept; the oldest goes first.
pub const RECENT_REQUESTS: usize = 512;
/// Prefixes that left and are remembered; the oldest goes first.
pub const REMEMBERED_PREFIXES: usize = 16_384;
/// Tokens quoted on each side of the place where a prompt leaves the tree.
pub const QUOTED_TOKENS: usize = 12;

/// Why a prompt found what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// When it was looked up.
    pub at: Instant,
    /// The part of the cache that was looked at.
    pub namespace: Namespace,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens in pages that are shared as they are.
    pub n_shared: usize,
    /// Tokens copied out of a page that agrees in part.
    pub n_copied: usize,
    /// Tokens the tree has in common with the prompt. More than shared and copied ones only where a page
    /// could not be copied for want of room.
    pub position: usize,
    /// The last prompt tokens before `position`.
    pub before: Vec<u32>,
    /// The first prompt tokens from `position` on.
    pub after: Vec<u32>,
    /// What the tree holds in their place, in the branch that agrees most.
    pub instead: Vec<u32>,
    /// The tree's node that the shared pages end in.
    pub node: Option<u32>,
    /// The node whose page was copied.
    pub donor: Option<u32>,
    /// Why no more was found.
    pub cause: Cause,
}

/// Why no more of a prompt was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing more can be: the last token is always computed.
    Whole,
    /// Nothing may be: the request wants its prompt's log-probabilities.
    Logprobs,
    /// More was there, but no page to copy it to.
    NoRoom,
    /// More was cached before.
    Left {
        /// Tokens of the prompt up to which it was.
        n_tokens: usize,
        /// When it left.
        at: Instant,
        /// What made it leave.
        how: Leaving,
    },
    /// The tree holds other tokens there.
    Diverged,
    /// The tree holds nothing after that.
    Ends,
    /// Nothing of this namespace is cached.
    Empty,
}

/// What makes a prefix leave the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Its pages were needed.
    Evicted,
    /// The operator emptied the cache.
    Flushed,
}

/// A hash of a prefix, its namespace included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PrefixHash(u64);

impl PrefixHash {
    /// The empty prefix.
    pub(crate) fn new(namespace: &Namespace) -> Self {
        let mut hash = PrefixHash(0).then(namespace.model).then(namespace.adapter);
        for part in namespace.salt.chunks_exact(4) {
            hash = hash.then(u32::from_le_bytes(part.try_into().expect("four bytes")));
        }
        hash
    }

    /// The prefix with one more token: a step that can be undone, so different prefixes rarely meet.
    fn then(self, token: u32) -> Self {
        let mixed = (self.0 ^ u64::from(token).wrapping_add(0x9e37_79b9_7f4a_7c15)).rotate_left(23);
        let mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        PrefixHash(mixed ^ (mixed >> 31))
    }

    /// The prefix with more tokens.
    pub(crate) fn and(self, tokens: &[u32]) -> Self {
        tokens.iter().fold(self, |hash, &token| hash.then(token))
    }
}

/// When a prefix left, and how many left before it.
#[derive(Clone, Copy, Debug)]
struct Left {
    at: Instant,
    how: Leaving,
    number: u64,
}

/// What an admission gave of what was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    /// Tokens it was allowed to give.
    pub(crate) max_cached: usize,
    /// Tokens it gave: fewer than found where there was no room for a copy.
    pub(crate) n_cached: usize,
}

/// What is remembered of requests and of prefixes that left. Takes its memory when it is made.
#[derive(Debug)]
pub(crate) struct History {
    /// The engine's clock, as of this step.
    now: Instant,
    recent: VecDeque<(RequestId, Explanation)>,
    left: HashMap<PrefixHash, Left>,
    /// Oldest first; an entry counts only while `left` has its number.
    order: VecDeque<(PrefixHash, u64)>,
    n_left: u64,
    /// Of every page in the tree: the prefix up to its last token.
    of_page: Vec<PrefixHash>,
}

impl History {
    pub(crate) fn new(n_pages: usize, now: Instant) -> Self {
        History {
            now,
            recent: VecDeque::with_capacity(RECENT_REQUESTS),
            left: HashMap::with_capacity(REMEMBERED_PREFIXES + 1),
            order: VecDeque::with_capacity(REMEMBERED_PREFIXES + 1),
            n_left: 0,
            of_page: vec![PrefixHash::default(); n_pages],
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn set_time(&mut self, now: Instant) {
        self.now = now;
    }

    /// `page` holds `tokens`, which follow those of `before`, or of nothing but `root`.
    pub(crate) fn page_filled(
        &mut self,
        page: PageId,
        tokens: &[u32],
        before: Option<PageId>,
        root: PrefixHash,
    ) {
        let before = before.map_or(root, |before| self.of_page[before.index()]);
        self.of_page[page.index()] = before.and(tokens);
    }

    /// Pages left the tree.
    pub(crate) fn pages_left(&mut self, pages: &[PageId], how: Leaving) {
        for page in pages {
            self.n_left += 1;
            let (hash, number) = (self.of_page[page.index()], self.n_left);
            let at = self.now;
            self.left.insert(hash, Left { at, how, number });
            self.order.push_back((hash, number));
            if self.order.len() > REMEMBERED_PREFIXES {
                let (oldest, number) = self.order.pop_front().expect("it is not empty");
                if self.left.get(&oldest).is_some_and(|left| left.number == number) {
                    self.left.remove(&oldest);
                }
            }
        }
    }

    /// What is found of `tokens` now, or what a request was given of it.
    pub(crate) fn explain(
        &self,
        tree: &RadixTree,
        namespace: &Namespace,
        tokens: &[u32],
        given: Option<Given>,
    ) -> Explanation {
        let max_tokens = given.map_or(tokens.len() - 1, |given| given.max_cached);
        let departure = tree.departure(namespace, tokens, max_tokens, QUOTED_TOKENS);
        let n_shared = departure.found.n_tokens;
        let position = n_shared + departure.found.n_donor_tokens;
        let n_cached = given.map_or(position, |given| given.n_cached);
        let cause = match n_cached {
            n if n < position => Cause::NoRoom,
            n if n == tokens.len() - 1 => Cause::Whole,
            n if n == max_tokens => Cause::Logprobs,
            _ => self.cause(&departure, namespace, tokens, position),
        };
        let (before, after) = tokens.split_at(position);
        Explanation {
            at: self.now,
            namespace: *namespace,
            n_prompt: tokens.len(),
            n_shared,
            n_copied: n_cached - n_shared,
            position,
            before: before[before.len().saturating_sub(QUOTED_TOKENS)..].to_vec(),
            after: after[..after.len().min(QUOTED_TOKENS)].to_vec(),
            instead: departure.instead,
            node: departure.node,
            donor: departure.donor,
            cause,
        }
    }

    /// Why the tree holds nothing that agrees beyond `position`.
    fn cause(&self, departure: &Departure, namespace: &Namespace, tokens: &[u32], position: usize) -> Cause {
        let mut hash = PrefixHash::new(namespace).and(&tokens[..position]);
        let mut deepest = None;
        for (idx, &token) in tokens.iter().enumerate().skip(position) {
            hash = hash.then(token);
            deepest = self.left.get(&hash).map(|left| (idx + 1, left)).or(deepest);
        }
        match deepest {
            Some((n_tokens, left)) => Cause::Left {
                n_tokens,
                at: left.at,
                how: left.how,
            },
            None if departure.instead.is_empty() && position == 0 => Cause::Empty,
            None if departure.instead.is_empty() => Cause::Ends,
            None => Cause::Diverged,
        }
    }

    /// Keeps the explanation of a request that was admitted.
    pub(crate) fn keep(&mut self, id: RequestId, explanation: Explanation) {
        if self.recent.len() == RECENT_REQUESTS {
            self.recent.pop_front();
        }
        self.recent.push_back((id, explanation));
    }

    /// The explanation of a request, if it is still there.
    pub(crate) fn of(&self, id: RequestId) -> Option<&Explanation> {
        let mut newest_first = self.recent.iter().rev();
        newest_first
            .find(|(other, _)| *other == id)
            .map(|(_, explanation)| explanation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_bounded_and_keeps_the_newest() {
        let now = Instant::now();
        let mut history = History::new(1, now);
        let namespace = Namespace::default();
        let root = PrefixHash::new(&namespace);
        let tree = RadixTree::new(2, arbora_radix::EvictionPolicy::Lru);
        for token in 0..=REMEMBERED_PREFIXES as u32 {
            history.page_filled(PageId(0), &[token, token], None, root);
            history.pages_left(&[PageId(0)], Leaving::Evicted);
        }
        assert_eq!(
            (history.left.len(), history.order.len()),
            (REMEMBERED_PREFIXES, REMEMBERED_PREFIXES)
        );
        let cause = |token| {
            history
                .explain(&tree, &namespace, &[token, token, 7, 7], None)
                .cause
        };
        assert_eq!(cause(0), Cause::Empty, "the oldest is forgotten");
        let how = Leaving::Evicted;
        assert_eq!(
            cause(1),
            Cause::Left {
                n_tokens: 2,
                at: now,
                how
            }
        );

        let explanation = history.explain(&tree, &namespace, &[1, 2], None);
        for id in 0..=RECENT_REQUESTS as u64 {
            history.keep(RequestId(id), explanation.clone());
        }
        assert_eq!(history.recent.len(), RECENT_REQUESTS);
        assert!(history.of(RequestId(0)).is_none() && history.of(RequestId(1)).is_some());
    }

    #[test]
    fn a_prefix_that_left_twice_outlives_its_first_entry() {
        let start = Instant::now();
        let mut history = History::new(2, start);
        let root = PrefixHash::new(&Namespace::default());
        history.page_filled(PageId(0), &[5, 5], None, root);
        history.pages_left(&[PageId(0)], Leaving::Evicted);
        let later = start + std::time::Duration::from_secs(9);
        history.set_time(later);
        history.pages_left(&[PageId(0)], Leaving::Flushed);
        for token in 0..REMEMBERED_PREFIXES as u32 - 1 {
            history.page_filled(PageId(1), &[9, token], None, root);
            history.pages_left(&[PageId(1)], Leaving::Evicted);
        }
        let left = history.left[&root.and(&[5, 5])];
        assert_eq!((left.at, left.how), (later, Leaving::Flushed));
        assert!(history.left.len() <= REMEMBERED_PREFIXES);
    }

    #[test]
    fn a_prefix_is_hashed_with_its_namespace_and_the_same_in_any_pieces() {
        let other = Namespace {
            salt: [1; 16],
            ..Namespace::default()
        };
        let root = PrefixHash::new(&Namespace::default());
        assert_ne!(root, PrefixHash::new(&other));
        assert_eq!(root.and(&[1, 2, 3]), root.and(&[1]).and(&[2, 3]));
        assert_ne!(root.and(&[1, 2]), root.and(&[2, 1]));
        assert_ne!(root.and(&[0]), root.and(&[0, 0]));
    }
}
