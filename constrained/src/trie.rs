//! Tokens as a prefix tree in one array, in the order in which a walk visits them.
//!
//! ```text
//!  tokens a, ab, b     nodes   byte depth skip first_token        skip: the next node outside the subtree
//!                        0      a     0    2      0               first_token: index into `tokens`; the
//!                        1      b     1    2      1               subtree of node i is the range
//!                        2      b     0    3      2               first_token(i) .. first_token(skip(i))
//! ```

/// One node: the byte on the edge from its parent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrieNode {
    pub(crate) skip: u32,
    first_token: u32,
    pub(crate) depth: u16,
    pub(crate) byte: u8,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Trie {
    nodes: Vec<TrieNode>,
    tokens: Vec<u32>,
    max_depth: usize,
}

impl Trie {
    /// The tree of `tokens`, each with its bytes; none may be empty.
    pub(crate) fn new(mut tokens: Vec<(&[u8], u32)>) -> Self {
        tokens.sort_unstable();
        let mut trie = Self::default();
        let mut path: Vec<u32> = Vec::new();
        let mut previous: &[u8] = &[];
        for (bytes, token) in tokens {
            assert!(!bytes.is_empty(), "token {token} has no bytes");
            let n_shared = previous.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            trie.close(&mut path, n_shared);
            for (depth, byte) in bytes.iter().enumerate().skip(n_shared) {
                path.push(trie.nodes.len() as u32);
                trie.nodes.push(TrieNode {
                    skip: 0,
                    first_token: trie.tokens.len() as u32,
                    depth: u16::try_from(depth).expect("tokens are shorter than 65,536 bytes"),
                    byte: *byte,
                });
            }
            trie.tokens.push(token);
            trie.max_depth = trie.max_depth.max(bytes.len());
            previous = bytes;
        }
        trie.close(&mut path, 0);
        trie
    }

    fn close(&mut self, path: &mut Vec<u32>, depth: usize) {
        for node in path.drain(depth..) {
            self.nodes[node as usize].skip = self.nodes.len() as u32;
        }
    }

    pub(crate) fn nodes(&self) -> &[TrieNode] {
        &self.nodes
    }

    /// The longest token's bytes.
    pub(crate) fn max_depth(&self) -> usize {
        self.max_depth
    }

    fn first_token(&self, node: usize) -> usize {
        self.nodes
            .get(node)
            .map_or(self.tokens.len(), |node| node.first_token as usize)
    }

    /// The tokens that end at `node`.
    pub(crate) fn tokens_at(&self, node: usize) -> &[u32] {
        &self.tokens[self.first_token(node)..self.first_token(node + 1)]
    }

    /// The tokens of the nodes from `start` up to `end`.
    pub(crate) fn tokens_between(&self, start: usize, end: usize) -> &[u32] {
        &self.tokens[self.first_token(start)..self.first_token(end)]
    }

    /// The child of `parent` (`None`: of the root) over `byte`.
    pub(crate) fn child(&self, parent: Option<usize>, byte: u8) -> Option<usize> {
        let (mut at, end) = match parent {
            None => (0, self.nodes.len()),
            Some(parent) => (parent + 1, self.nodes[parent].skip as usize),
        };
        while at < end {
            if self.nodes[at].byte == byte {
                return Some(at);
            }
            at = self.nodes[at].skip as usize;
        }
        None
    }

    /// The node that spells `bytes`.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<usize> {
        let mut at = None;
        for byte in bytes {
            at = Some(self.child(at, *byte)?);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_are_ranges_and_equal_tokens_share_a_node() {
        let trie = Trie::new(vec![(b"ab", 1), (b"b", 2), (b"a", 0), (b"ab", 7)]);
        let skips: Vec<_> = trie.nodes().iter().map(|node| node.skip).collect();
        assert_eq!(skips, [2, 2, 3]);
        assert_eq!(trie.tokens_at(0), [0]);
        assert_eq!(trie.tokens_at(1), [1, 7]);
        assert_eq!(trie.tokens_at(2), [2]);
        assert_eq!((trie.find(b"ab"), trie.find(b"ba")), (Some(1), None));
        assert_eq!(trie.max_depth(), 2);
    }
}
