//! Radix tree of token prefixes over shared KV pages.
//!
//! A page holds the keys and values of `page_size` consecutive tokens. The tree remembers, per [`Namespace`],
//! which token prefixes have computed pages; requests that share a prefix share those pages. The crate sees
//! tokens and page numbers only: no tensor, no I/O, no thread, no clock.
//!
//! * [`PageAllocator`] hands out page numbers.
//! * [`RadixTree::match_prefix`] finds and locks the longest cached prefix: whole pages that are shared as
//!   they are, and possibly a [`Donor`] page whose first tokens agree and that the caller copies.
//! * [`RadixTree::checkpoint`] puts a running sequence's whole pages into the tree, [`RadixTree::finish`] the
//!   rest.
//! * [`RadixTree::view`] and [`RadixTree::departure`] look without using.
//! * [`RadixTree::evict`] gives back the pages that the [`EvictionPolicy`] values least.
//!
//! Page conservation is the caller's to keep: every page is free in the allocator, in the tree, or owned by
//! one sequence. Whatever the tree does not take or no longer wants is handed out through `duplicates` or
//! `freed`, to be released.
//!
//! ```
//! use arbora_radix::{EvictionPolicy, Namespace, PageAllocator, RadixTree};
//!
//! let (mut pages, mut tree) = (PageAllocator::new(8), RadixTree::new(2, EvictionPolicy::Lru));
//! let (namespace, mut released) = (Namespace::default(), Vec::new());
//!
//! let matched = tree.match_prefix(&namespace, &[1, 2, 3, 4, 5], 4, 0);
//! assert!(matched.pages.is_empty());
//! let table: Vec<_> = (0..3).map(|_| pages.allocate().expect("8 pages are free")).collect();
//! tree.finish(matched.lock, &[1, 2, 3, 4, 5], 5, &table, &mut released);
//!
//! let matched = tree.match_prefix(&namespace, &[1, 2, 3, 9], 3, 0);
//! assert_eq!(matched.pages, [table[0]]);
//! let donor = matched.donor.expect("token 3 is the first of the second page");
//! assert_eq!((donor.page, donor.n_tokens), (table[1], 1));
//! tree.release_lock(donor.lock);
//! tree.release_lock(matched.lock);
//!
//! assert_eq!(tree.evict(3, &mut released), 3);
//! released.drain(..).for_each(|page| pages.release(page));
//! assert_eq!(pages.n_free(), 8);
//! ```
//!
//! Costs: a match compares each token once and searches one balanced tree of siblings per node passed; locks
//! and releases touch each node of the path once; an eviction costs O(1) per page, and one search among the
//! siblings when a node is used up. A node takes 64 bytes and covers at least one page; a node of several
//! pages adds 4 bytes for each.

mod check;
mod continuation;
mod counters;
mod evict;
mod insert;
mod namespace;
mod node;
mod page;
mod siblings;
mod tree;
mod view;

pub use counters::Counters;
pub use evict::EvictionPolicy;
pub use namespace::Namespace;
pub use page::{PageAllocator, PageId};
pub use tree::{Donor, MatchLen, Matched, PrefixLock, RadixTree};
pub use view::{Departure, NodeView, TreeView, ViewLimits};
