//! Draft tokens: what followed this exact prefix in earlier requests.

use crate::node::NodeId;
use crate::{Namespace, RadixTree};

impl RadixTree {
    /// Up to `n_wanted` tokens that follow `tokens` in the tree, or none where it does not hold all of them.
    /// Where several continuations branch off, they end. Changes nothing and counts as no use.
    pub fn continuation(&self, namespace: &Namespace, tokens: &[u32], n_wanted: usize) -> Vec<u32> {
        let Some(&root) = self.roots.get(namespace) else {
            return Vec::new();
        };
        let walk = self.store.walk(root, tokens, |_| {});
        let (mut node, mut page_idx, n_skipped) = match walk.donor {
            // The walk ended inside a node: the donor is its next page.
            Some((donor, n_equal)) if donor == walk.node => (donor, walk.n_pages, n_equal),
            Some((donor, n_equal)) => (donor, 0, n_equal),
            None => (walk.node, walk.n_pages, 0),
        };
        let mut found = Vec::new();
        if walk.n_tokens + n_skipped < tokens.len() {
            return found;
        }
        let mut n_skipped = n_skipped;
        while found.len() < n_wanted {
            if page_idx == self.store[node].pages.len() {
                let Some(child) = self.only_child(node) else {
                    break;
                };
                (node, page_idx) = (child, 0);
            }
            let page = &self.store.page_tokens(node, page_idx)[n_skipped..];
            found.extend(page.iter().take(n_wanted - found.len()));
            (page_idx, n_skipped) = (page_idx + 1, 0);
        }
        found
    }

    fn only_child(&self, node: NodeId) -> Option<NodeId> {
        let child = self.store[node].children?;
        let has_siblings = self.store[child].left.is_some() || self.store[child].right.is_some();
        (!has_siblings).then_some(child)
    }
}
