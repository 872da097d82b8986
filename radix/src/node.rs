//! The nodes: an arena with a free list, and the tokens of every page.
//!
//! ```text
//!  root (no page, one per namespace)
//!   └── node: pages [7, 3, 9]      tokens of page p: tokens[p * page_size ..][.. page_size]
//!        ├── node: pages [4]
//!        └── node: pages [1, 8]    the last page of a leaf may be partly filled: n_last < page_size
//! ```
//!
//! Tokens lie in one table with a row per page number, so splitting and truncating a node moves page numbers
//! only.

use crate::PageId;
use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

/// The place of a node in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(NonZeroU32);

impl NodeId {
    fn from_index(index: usize) -> Self {
        let number = u32::try_from(index + 1).expect("a node covers a page, and page numbers have 32 bits");
        Self(NonZeroU32::new(number).expect("index + 1 is at least 1"))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// The node's name for those who look at the tree from outside.
    pub(crate) fn number(self) -> u32 {
        self.0.get()
    }
}

/// The pages of a node in order. Most leaves of a wide tree have one page: that one costs no allocation.
#[derive(Debug)]
pub(crate) enum PageRun {
    One(PageId),
    Many(Vec<PageId>),
}

impl PageRun {
    pub(crate) const EMPTY: Self = Self::Many(Vec::new());

    pub(crate) fn new(pages: &[PageId]) -> Self {
        match pages {
            [page] => Self::One(*page),
            _ => Self::Many(pages.to_vec()),
        }
    }

    pub(crate) fn as_slice(&self) -> &[PageId] {
        match self {
            Self::One(page) => std::slice::from_ref(page),
            Self::Many(pages) => pages,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(crate) fn extend(&mut self, pages: &[PageId]) {
        match self {
            Self::One(first) => {
                let mut all = Vec::with_capacity(1 + pages.len());
                all.push(*first);
                all.extend_from_slice(pages);
                *self = Self::Many(all);
            }
            Self::Many(all) => all.extend_from_slice(pages),
        }
    }

    /// Keeps the first `n_pages`. Memory follows within a factor of four, at amortised O(1) per page dropped.
    pub(crate) fn truncate(&mut self, n_pages: usize) {
        debug_assert!(n_pages <= self.len());
        match (n_pages, &mut *self) {
            (0, _) => *self = Self::EMPTY,
            (_, Self::One(_)) => {}
            (1, Self::Many(all)) => *self = Self::One(all[0]),
            (_, Self::Many(all)) => {
                all.truncate(n_pages);
                if all.capacity() / 4 > n_pages {
                    all.shrink_to(2 * n_pages);
                }
            }
        }
    }

    /// Bytes on the heap, besides the node itself.
    pub(crate) fn n_heap_bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Many(pages) => pages.capacity() * size_of::<PageId>(),
        }
    }
}

/// A run of pages that every path through it uses whole.
#[derive(Debug)]
pub(crate) struct Node {
    /// `None` for the root of a namespace.
    pub(crate) parent: Option<NodeId>,
    /// Top of the search tree of this node's children, see `siblings`.
    pub(crate) children: Option<NodeId>,
    /// Siblings that are ordered before this one, in the search tree it is part of.
    pub(crate) left: Option<NodeId>,
    /// Siblings that are ordered after this one.
    pub(crate) right: Option<NodeId>,
    /// The sibling this one hangs below in that search tree; `None` for the top.
    pub(crate) above: Option<NodeId>,
    /// Neighbour on the eviction list that is evicted later.
    pub(crate) newer: Option<NodeId>,
    /// Neighbour on the eviction list that is evicted earlier; links the free list when the node is unused.
    pub(crate) older: Option<NodeId>,
    /// Lock receipts for this node or a descendant.
    pub(crate) n_locks: u32,
    /// Which eviction list the node belongs on; never more than the parent's.
    pub(crate) rank: i16,
    /// Low 32 bits of the lookup count when the node was last unlocked.
    pub(crate) touched: u32,
    /// Tokens in the last page; less than a page only in a leaf. 0 for a root.
    pub(crate) n_last: u16,
    pub(crate) pages: PageRun,
}

const _: () = assert!(size_of::<Node>() == 64, "the documented cost of a node");

impl Node {
    /// The root of a namespace.
    pub(crate) fn root() -> Self {
        Self {
            parent: None,
            children: None,
            left: None,
            right: None,
            above: None,
            newer: None,
            older: None,
            n_locks: 0,
            rank: i16::MAX,
            touched: 0,
            n_last: 0,
            pages: PageRun::EMPTY,
        }
    }

    pub(crate) fn is_root(&self) -> bool {
        self.parent.is_none()
    }
}

/// Pages whose tokens are fetched at the same time.
const READ_AHEAD: usize = 16;

/// Arena of nodes and the table of tokens.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) page_size: usize,
    nodes: Vec<Node>,
    first_free: Option<NodeId>,
    n_nodes: usize,
    tokens: Vec<u32>,
}

/// How far a sequence of tokens leads down the tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// The deepest node of which at least one page agrees; the node the walk began at if there is none.
    pub(crate) node: NodeId,
    /// Pages of `node` that agree.
    pub(crate) n_pages: usize,
    /// Tokens passed since the start, whole pages.
    pub(crate) n_tokens: usize,
    /// The page that agrees with most of the tokens that follow, and with how many, if with any. It is the
    /// first page after the walk's end in `node` if the walk ended before the last page of `node`, else the
    /// first of this child.
    pub(crate) donor: Option<(NodeId, usize)>,
}

impl Store {
    pub(crate) fn new(page_size: usize) -> Self {
        assert!(page_size > 0, "a page holds at least one token");
        u16::try_from(page_size).expect("a page holds fewer than 65536 tokens");
        Self {
            page_size,
            nodes: Vec::new(),
            first_free: None,
            n_nodes: 0,
            tokens: Vec::new(),
        }
    }

    pub(crate) fn reserve(&mut self, n_pages: usize) {
        self.nodes.reserve_exact(n_pages.saturating_sub(self.nodes.len()));
        self.tokens
            .resize(self.tokens.len().max(n_pages * self.page_size), 0);
    }

    /// Nodes in use, roots included.
    pub(crate) fn n_nodes(&self) -> usize {
        self.n_nodes
    }

    /// Every node, unused ones included: those have no pages.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn insert(&mut self, node: Node) -> NodeId {
        self.n_nodes += 1;
        match self.first_free {
            Some(id) => {
                self.first_free = self[id].older;
                self[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                NodeId::from_index(self.nodes.len() - 1)
            }
        }
    }

    pub(crate) fn remove(&mut self, id: NodeId) {
        self.n_nodes -= 1;
        let older = self.first_free.replace(id);
        self[id] = Node {
            older,
            ..Node::root()
        };
    }

    /// Room for one page's tokens, written with the `tokens` it holds.
    pub(crate) fn write_tokens(&mut self, page: PageId, tokens: &[u32]) {
        debug_assert!(tokens.len() <= self.page_size);
        let start = page.index() * self.page_size;
        if self.tokens.len() < start + self.page_size {
            self.tokens.resize(start + self.page_size, 0);
        }
        self.tokens[start..start + tokens.len()].copy_from_slice(tokens);
    }

    /// Tokens of the `page_idx`-th page of a node.
    pub(crate) fn page_tokens(&self, id: NodeId, page_idx: usize) -> &[u32] {
        let node = &self[id];
        let pages = node.pages.as_slice();
        let n_tokens = if page_idx + 1 == pages.len() {
            node.n_last as usize
        } else {
            self.page_size
        };
        &self.tokens[pages[page_idx].index() * self.page_size..][..n_tokens]
    }

    /// Tokens a node covers.
    pub(crate) fn n_tokens(&self, id: NodeId) -> usize {
        let n_whole = self[id].pages.len().saturating_sub(1);
        n_whole * self.page_size + self[id].n_last as usize
    }

    /// Some of the tokens a node covers.
    pub(crate) fn tokens_in(&self, id: NodeId, range: std::ops::Range<usize>) -> Vec<u32> {
        let token = |idx: usize| self.page_tokens(id, idx / self.page_size)[idx % self.page_size];
        range.map(token).collect()
    }

    /// Whether the last page of the node has room left.
    pub(crate) fn is_partly_filled(&self, id: NodeId) -> bool {
        (self[id].n_last as usize) < self.page_size && !self[id].is_root()
    }

    /// Follows `tokens` down from the end of `start`; `visit` sees the pages that agree, in order.
    pub(crate) fn walk(&self, start: NodeId, tokens: &[u32], mut visit: impl FnMut(&[PageId])) -> Walk {
        let mut walk = Walk {
            node: start,
            n_pages: self[start].pages.len(),
            n_tokens: 0,
            donor: None,
        };
        while walk.n_tokens < tokens.len() {
            let rest = &tokens[walk.n_tokens..];
            let first = &rest[..rest.len().min(self.page_size)];
            let found = self.find(walk.node, first);
            let Some(child) = found.equal.filter(|_| first.len() == self.page_size) else {
                walk.donor = found.closest;
                break;
            };
            let pages = self[child].pages.as_slice();
            walk.node = child;
            walk.n_pages = self.n_equal_pages(child, rest);
            walk.n_tokens += walk.n_pages * self.page_size;
            visit(&pages[..walk.n_pages]);
            if walk.n_pages < pages.len() {
                let n_equal = common_prefix(self.page_tokens(child, walk.n_pages), &tokens[walk.n_tokens..]);
                walk.donor = (n_equal > 0).then_some((child, n_equal));
                break;
            }
        }
        walk
    }

    /// Whole pages at the start of the node that hold the tokens at the start of `tokens`.
    fn n_equal_pages(&self, id: NodeId, tokens: &[u32]) -> usize {
        let pages = self[id].pages.as_slice();
        let n_whole = pages.len() - usize::from(self.is_partly_filled(id));
        let (page_size, mut n_equal) = (self.page_size, 0);
        for (pages, tokens) in pages[..n_whole]
            .chunks(READ_AHEAD)
            .zip(tokens.chunks(READ_AHEAD * page_size))
        {
            let rows = || {
                pages
                    .iter()
                    .map(|page| &self.tokens[page.index() * page_size..][..page_size])
            };
            let parts = || tokens.chunks_exact(page_size);
            // Pages are scattered. Both ends of each are read first and without a branch, so that the reads
            // overlap.
            let is_near = |(row, part): (&[u32], &[u32])| {
                (row[0] == part[0]) & (row[page_size - 1] == part[page_size - 1])
            };
            let is_promising = rows().zip(parts()).fold(true, |all, pair| all & is_near(pair));
            let n_here = rows().zip(parts()).take_while(|(row, part)| row == part).count();
            n_equal += n_here;
            if n_here < READ_AHEAD || !is_promising {
                break;
            }
        }
        n_equal
    }

    /// Bytes of nodes and page runs in use; tokens and reserved nodes are not counted.
    pub(crate) fn n_bytes(&self) -> usize {
        let heap: usize = self.nodes.iter().map(|node| node.pages.n_heap_bytes()).sum();
        self.n_nodes * size_of::<Node>() + heap
    }
}

impl Index<NodeId> for Store {
    type Output = Node;

    fn index(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }
}

impl IndexMut<NodeId> for Store {
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }
}

/// Equal tokens at the start of both.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
