//! The invariants of the tree, verified from scratch.

use crate::RadixTree;
use crate::node::NodeId;
use std::collections::HashMap;

/// What a walk over the whole tree adds up.
#[derive(Default)]
struct Totals {
    n_nodes: usize,
    n_pages: usize,
    n_unlocked_pages: usize,
    n_unlocked_nodes: usize,
}

impl RadixTree {
    /// Verifies every invariant in O(pages · log siblings). For tests and debug builds.
    ///
    /// # Panics
    /// When one is broken.
    pub fn check(&self) {
        let places = self.check_lists();
        let mut totals = Totals::default();
        for (namespace, root) in &self.roots {
            assert_eq!(
                self.root_names.get(root),
                Some(namespace),
                "roots and their names disagree"
            );
            assert!(
                self.store[*root].is_root(),
                "the root of {namespace:?} has a parent"
            );
            assert!(
                self.store[*root].n_locks > 0 || self.store[*root].children.is_some(),
                "the root of {namespace:?} is unused"
            );
            self.check_below(*root, &places, &mut totals);
        }
        assert_eq!(self.roots.len(), self.root_names.len());
        assert_eq!(
            totals.n_nodes,
            self.store.n_nodes(),
            "nodes reached and nodes in use"
        );
        assert_eq!(
            totals.n_unlocked_nodes,
            places.len(),
            "unlocked nodes and listed nodes"
        );
        assert_eq!(totals.n_pages, self.n_cached, "cached pages");
        assert_eq!(totals.n_unlocked_pages, self.n_evictable, "evictable pages");
        let counters = self.counters();
        assert_eq!(
            counters.inserted_pages,
            self.n_cached as u64 + counters.evicted_pages + counters.superseded_pages,
            "pages that came and pages that went"
        );
        let mut pages: Vec<_> = self.pages().collect();
        assert_eq!(pages.len(), self.n_cached, "unused nodes have no pages");
        pages.sort_unstable();
        assert!(pages.is_sorted_by(|a, b| a < b), "a page is in the tree twice");
    }

    /// Where every listed node stands: its rank and its distance from the newest of that rank.
    fn check_lists(&self) -> HashMap<NodeId, (i16, usize)> {
        let mut places = HashMap::new();
        for (rank, n_pages, nodes) in self.order.lists(&self.store) {
            let (mut n_counted, mut newer) = (0, None);
            for (place, id) in nodes.enumerate() {
                assert_eq!(
                    self.store[id].newer, newer,
                    "list {rank} is linked in both directions"
                );
                assert_eq!(self.store[id].rank, rank, "a node is on the list of its rank");
                assert!(
                    places.insert(id, (rank, place)).is_none(),
                    "a node is listed twice"
                );
                n_counted += self.store[id].pages.len();
                newer = Some(id);
            }
            assert_eq!(n_counted, n_pages, "pages of list {rank}");
        }
        places
    }

    fn check_below(&self, root: NodeId, places: &HashMap<NodeId, (i16, usize)>, totals: &mut Totals) {
        let mut pending = vec![root];
        while let Some(id) = pending.pop() {
            let node = &self.store[id];
            totals.n_nodes += 1;
            totals.n_pages += node.pages.len();
            if !node.is_root() {
                self.check_node(id, places);
                if node.n_locks == 0 {
                    totals.n_unlocked_nodes += 1;
                    totals.n_unlocked_pages += node.pages.len();
                }
            }
            let children = self.store.children_in_order(id);
            let n_child_locks: u32 = children.iter().map(|child| self.store[*child].n_locks).sum();
            assert!(
                node.n_locks >= n_child_locks,
                "{n_child_locks} locks below {node:?}"
            );
            for pair in children.windows(2) {
                let (a, b) = (
                    self.store.page_tokens(pair[0], 0),
                    self.store.page_tokens(pair[1], 0),
                );
                assert!(a < b, "siblings out of order: {a:?}, {b:?}");
            }
            for child in &children {
                assert_eq!(self.store[*child].parent, Some(id), "a child knows its parent");
            }
            pending.extend(children);
        }
    }

    fn check_node(&self, id: NodeId, places: &HashMap<NodeId, (i16, usize)>) {
        let node = &self.store[id];
        assert!(node.pages.len() > 0 && node.n_last > 0, "an empty node: {node:?}");
        let is_partly_filled = self.store.is_partly_filled(id);
        assert!(
            node.n_last as usize <= self.page_size(),
            "more tokens than a page holds: {node:?}"
        );
        assert!(
            !is_partly_filled || node.children.is_none(),
            "children below a partly filled page: {node:?}"
        );
        assert!(
            !is_partly_filled || node.n_locks == 0 || node.pages.len() == 1,
            "a path lock covers a partly filled page: {node:?}"
        );
        for beside in [node.left, node.right].into_iter().flatten() {
            assert!(
                self.store.weight(beside) < self.store.weight(id),
                "siblings are a heap by weight"
            );
        }
        assert_eq!(
            places.contains_key(&id),
            node.n_locks == 0,
            "exactly the unlocked nodes are listed: {node:?}"
        );
        let parent = node.parent.expect("a node that is no root has a parent");
        assert!(
            node.rank <= self.store[parent].rank,
            "a node ranks above its parent: {node:?}"
        );
        if let (Some((rank, place)), Some((parent_rank, parent_place))) =
            (places.get(&id), places.get(&parent))
        {
            assert!(
                rank < parent_rank || place > parent_place,
                "a parent is older than its child: {node:?}"
            );
        }
    }
}
