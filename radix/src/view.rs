//! Inspection of the radix tree: a bounded list of its nodes, and where a prompt leaves it.
//!
//! A picture takes the nodes in the order in which they would be given up last: locked paths, then the
//! eviction lists from their newest ends. A parent comes before its children in that order, so a picture cut
//! off at any number of nodes is a tree, and it costs what it shows, however many nodes there are.

use crate::node::NodeId;
use crate::{MatchLen, Namespace, PrefixLock, RadixTree};
use std::collections::HashMap;

/// Siblings counted per node shown, on average: bounds a picture's cost below wide nodes.
const CHILDREN_COUNTED: usize = 16;

/// Part of a tree, parents before their children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeView {
    /// The nodes shown.
    pub nodes: Vec<NodeView>,
    /// All nodes of the tree, the root of every namespace included.
    pub n_nodes: usize,
    /// All pages of the tree.
    pub n_pages: usize,
}

impl TreeView {
    /// Pages of the nodes shown.
    pub fn n_pages_shown(&self) -> usize {
        self.nodes.iter().map(|node| node.n_pages).sum()
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its name, until the node is gone; another node may have it later.
    pub id: u32,
    /// The node it hangs below; absent for the root of a namespace, which has no pages.
    pub parent: Option<u32>,
    /// The part of the cache it is in.
    pub namespace: Namespace,
    /// Tokens of the path above it.
    pub depth: usize,
    /// Tokens it covers.
    pub n_tokens: usize,
    /// Pages it covers.
    pub n_pages: usize,
    /// Locks on it or below it.
    pub n_locks: usize,
    /// Lookups of the tree since the last lock was given back; 0 while one is held.
    pub age: u64,
    /// Its eviction list: what that means is the policy's affair. 0 for a root.
    pub rank: i16,
    /// Nodes right below it; absent where there were too many to count.
    pub n_children: Option<usize>,
    /// Its first tokens.
    pub first: Vec<u32>,
    /// Its last tokens, as far as `first` does not hold them.
    pub last: Vec<u32>,
}

/// What bounds a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewLimits {
    /// Most nodes.
    pub n_nodes: usize,
    /// Most tokens at either end of a node.
    pub n_tokens: usize,
}

/// Where a prompt leaves the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Departure {
    /// Tokens found before.
    pub found: MatchLen,
    /// The deepest node of which a page agrees, or the root; absent where the namespace holds nothing.
    pub node: Option<u32>,
    /// The node with the page whose first tokens agree.
    pub donor: Option<u32>,
    /// What the closest branch holds from there on; one of the closest where several are.
    pub instead: Vec<u32>,
}

impl RadixTree {
    /// A picture of the tree. `locks` are the locks on whole paths that are held; nodes that only others lock
    /// are left out unless a path leads through them.
    pub fn view<'a>(&self, locks: impl Iterator<Item = &'a PrefixLock>, limits: ViewLimits) -> TreeView {
        let mut order: Vec<NodeId> = Vec::with_capacity(limits.n_nodes.min(self.n_nodes()));
        let mut places: HashMap<NodeId, usize> = HashMap::new();
        let unlocked = self.order.lists(&self.store).rev();
        let unlocked = unlocked.flat_map(|(_, _, nodes)| nodes);
        for id in locks.filter_map(PrefixLock::node).chain(unlocked) {
            if order.len() == limits.n_nodes {
                break;
            }
            let up = |id: &NodeId| self.store[*id].parent.filter(|id| !places.contains_key(id));
            let path = std::iter::successors(Some(id).filter(|id| !places.contains_key(id)), up);
            let path: Vec<NodeId> = path.collect();
            for &id in path.iter().rev().take(limits.n_nodes - order.len()) {
                places.insert(id, order.len());
                order.push(id);
            }
        }
        let mut n_counts_left = order.len() * CHILDREN_COUNTED;
        let mut nodes: Vec<NodeView> = Vec::with_capacity(order.len());
        for &id in &order {
            let above = self.store[id].parent.map(|parent| &nodes[places[&parent]]);
            let mut node = self.view_node(id, above, limits.n_tokens);
            node.n_children = self.count_children(id, &mut n_counts_left);
            nodes.push(node);
        }
        TreeView {
            nodes,
            n_nodes: self.n_nodes(),
            n_pages: self.n_cached_pages(),
        }
    }

    fn view_node(&self, id: NodeId, above: Option<&NodeView>, n_shown: usize) -> NodeView {
        let node = &self.store[id];
        let n_tokens = self.store.n_tokens(id);
        let age = u64::from((self.counters.lookups as u32).wrapping_sub(node.touched));
        let n_first = n_shown.min(n_tokens);
        let last = n_tokens.saturating_sub(n_shown).max(n_first);
        NodeView {
            id: id.number(),
            parent: above.map(|above| above.id),
            namespace: match above {
                Some(above) => above.namespace,
                None => *self.root_names.get(&id).expect("every root has a namespace"),
            },
            depth: above.map_or(0, |above| above.depth + above.n_tokens),
            n_tokens,
            n_pages: node.pages.len(),
            n_locks: node.n_locks as usize,
            age: if node.n_locks > 0 || node.is_root() {
                0
            } else {
                age
            },
            rank: if node.is_root() { 0 } else { node.rank },
            n_children: None,
            first: self.store.tokens_in(id, 0..n_first),
            last: self.store.tokens_in(id, last..n_tokens),
        }
    }

    /// Children of `id`, as long as `n_left` lasts.
    fn count_children(&self, id: NodeId, n_left: &mut usize) -> Option<usize> {
        let mut pending: Vec<NodeId> = self.store[id].children.into_iter().collect();
        let mut n_children = 0;
        while let Some(id) = pending.pop() {
            *n_left = n_left.checked_sub(1)?;
            n_children += 1;
            pending.extend([self.store[id].left, self.store[id].right].into_iter().flatten());
        }
        Some(n_children)
    }

    /// Where `tokens` leave the tree, looked up without being a use: as far as
    /// [`match_prefix`](Self::match_prefix) would find them now, and up to `n_instead` tokens of what the
    /// tree holds in their place.
    pub fn departure(
        &self,
        namespace: &Namespace,
        tokens: &[u32],
        max_tokens: usize,
        n_instead: usize,
    ) -> Departure {
        let Some(root) = self.roots.get(namespace) else {
            return Departure::default();
        };
        let walk = self
            .store
            .walk(*root, &tokens[..tokens.len().min(max_tokens)], |_| {});
        let n_inside = walk.n_pages * self.page_size();
        let is_inside = walk.n_pages < self.store[walk.node].pages.len();
        let n_donor_tokens = walk.donor.map_or(0, |(_, n_tokens)| n_tokens);
        let branch = match (is_inside, walk.donor) {
            (true, _) => Some((walk.node, n_inside + n_donor_tokens)),
            (false, Some((donor, n_tokens))) => Some((donor, n_tokens)),
            (false, None) => self.store[walk.node].children.map(|child| (child, 0)),
        };
        let instead = branch.map_or_else(Vec::new, |(id, start)| {
            let end = self.store.n_tokens(id).min(start + n_instead);
            self.store.tokens_in(id, start..end)
        });
        Departure {
            found: MatchLen {
                n_tokens: walk.n_tokens,
                n_donor_tokens,
            },
            node: Some(walk.node.number()),
            donor: walk.donor.map(|(donor, _)| donor.number()),
            instead,
        }
    }
}
