//! The children of a tree node, ordered by the tokens of their first page.
//!
//! Every node keeps its children in a treap: a search tree by tokens that is also a heap by weight, so its
//! expected depth is logarithmic whatever order children come and go in. The links live in the nodes. A
//! weight is a mix of the child's first page number: it needs no room, and it stays when a node is split,
//! because the upper half keeps the first page.
//!
//! In lexicographic order the child that shares most tokens with a key is a neighbour of the key's place, and
//! both neighbours lie on the search path: one descent finds the equal child and the best donor. Links lead
//! upwards too, so that taking a child out needs no search.

use crate::node::{NodeId, Store};
use std::cmp::Ordering;

/// What a search among the children met.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// The child whose first page holds exactly the key.
    pub(crate) equal: Option<NodeId>,
    /// The child that shares most first tokens with the key, and how many: at least 1.
    pub(crate) closest: Option<(NodeId, usize)>,
    /// The last child ordered before the key, and how many tokens it shares.
    pub(crate) before: Option<(NodeId, usize)>,
}

/// A place that holds the top of a search tree.
#[derive(Clone, Copy)]
enum Link {
    Children(NodeId),
    Left(NodeId),
    Right(NodeId),
}

impl Store {
    /// Searches the children of `parent` for the tokens of one page or a part of one.
    pub(crate) fn find(&self, parent: NodeId, key: &[u32]) -> Found {
        let mut found = Found::default();
        let (mut n_before, mut n_after) = (0, 0);
        let mut next = self[parent].children;
        while let Some(id) = next {
            let tokens = self.page_tokens(id, 0);
            // All keys between two neighbours share what both share with the key.
            let n_known = n_before.min(n_after);
            let n_equal = n_known + crate::node::common_prefix(&tokens[n_known..], &key[n_known..]);
            if n_equal > found.closest.map_or(0, |(_, n_tokens)| n_tokens) {
                found.closest = Some((id, n_equal));
            }
            match tokens[n_equal..].first().cmp(&key[n_equal..].first()) {
                Ordering::Equal => {
                    found.equal = Some(id);
                    break;
                }
                Ordering::Less => {
                    (found.before, n_before) = (Some((id, n_equal)), n_equal);
                    next = self[id].right;
                }
                Ordering::Greater => {
                    n_after = n_equal;
                    next = self[id].left;
                }
            }
        }
        found
    }

    /// Makes `id` a child of `parent`, beside siblings that all differ from it in their first page.
    pub(crate) fn attach(&mut self, parent: NodeId, id: NodeId) {
        let weight = self.weight(id);
        let mut link = Link::Children(parent);
        while let Some(top) = self.linked(link).filter(|top| self.weight(*top) > weight) {
            link = if self.is_before(id, top) {
                Link::Left(top)
            } else {
                Link::Right(top)
            };
        }
        // What hung here is cut in two by the tokens of `id` and hung below it.
        let mut rest = self.linked(link);
        self.set_link(link, Some(id));
        let (mut before, mut after) = (Link::Left(id), Link::Right(id));
        while let Some(top) = rest {
            if self.is_before(top, id) {
                self.set_link(before, Some(top));
                (before, rest) = (Link::Right(top), self[top].right);
            } else {
                self.set_link(after, Some(top));
                (after, rest) = (Link::Left(top), self[top].left);
            }
        }
        self.set_link(before, None);
        self.set_link(after, None);
        self[id].parent = Some(parent);
    }

    /// Takes `id` out of the children of its parent.
    pub(crate) fn detach(&mut self, id: NodeId) {
        let mut link = self.link_to(id);
        let (mut before, mut after) = (self[id].left.take(), self[id].right.take());
        while let (Some(left), Some(right)) = (before, after) {
            if self.weight(left) > self.weight(right) {
                self.set_link(link, Some(left));
                (link, before) = (Link::Right(left), self[left].right);
            } else {
                self.set_link(link, Some(right));
                (link, after) = (Link::Left(right), self[right].left);
            }
        }
        self.set_link(link, before.or(after));
    }

    /// Puts `new`, which begins with the same page, into the place of `old` among the children.
    pub(crate) fn replace(&mut self, old: NodeId, new: NodeId) {
        debug_assert_eq!(self.weight(old), self.weight(new));
        let link = self.link_to(old);
        self.set_link(link, Some(new));
        self[new].parent = self[old].parent;
        let (left, right) = (self[old].left.take(), self[old].right.take());
        self.set_link(Link::Left(new), left);
        self.set_link(Link::Right(new), right);
    }

    /// Children of `parent` in the order of their tokens.
    pub(crate) fn children_in_order(&self, parent: NodeId) -> Vec<NodeId> {
        let (mut ordered, mut pending) = (Vec::new(), Vec::new());
        let mut next = self[parent].children;
        loop {
            while let Some(id) = next {
                pending.push(id);
                next = self[id].left;
            }
            let Some(id) = pending.pop() else { return ordered };
            ordered.push(id);
            next = self[id].right;
        }
    }

    /// The heap order of the treap. Distinct for distinct pages, because the mixing can be undone step by
    /// step.
    pub(crate) fn weight(&self, id: NodeId) -> u32 {
        let page = self[id].pages.as_slice()[0].0;
        let mixed = (page ^ (page >> 16)).wrapping_mul(0x7feb_352d);
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x846c_a68b);
        mixed ^ (mixed >> 16)
    }

    fn is_before(&self, a: NodeId, b: NodeId) -> bool {
        self.page_tokens(a, 0) < self.page_tokens(b, 0)
    }

    fn link_to(&self, id: NodeId) -> Link {
        match self[id].above {
            Some(above) if self[above].left == Some(id) => Link::Left(above),
            Some(above) => Link::Right(above),
            None => Link::Children(
                self[id]
                    .parent
                    .expect("only nodes with a parent are among siblings"),
            ),
        }
    }

    fn linked(&self, link: Link) -> Option<NodeId> {
        match link {
            Link::Children(id) => self[id].children,
            Link::Left(id) => self[id].left,
            Link::Right(id) => self[id].right,
        }
    }

    fn set_link(&mut self, link: Link, target: Option<NodeId>) {
        let above = match link {
            Link::Children(id) => {
                self[id].children = target;
                None
            }
            Link::Left(id) => {
                self[id].left = target;
                Some(id)
            }
            Link::Right(id) => {
                self[id].right = target;
                Some(id)
            }
        };
        if let Some(target) = target {
            self[target].above = above;
        }
    }
}
