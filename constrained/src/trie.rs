//! Tokens as a prefix tree in one array, parents before children and subtrees in one piece.
//!
//! ```text
//!  tokens a, ab, b     nodes   byte depth skip first_token        skip: the next node outside the subtree
//!                        0      a     0    2      0               first_token: index into `tokens`; the
//!                        1      b     1    2      1               subtree of node i is the range
//!                        2      b     0    3      2               first_token(i) .. first_token(skip(i))
//! ```
//!
//! A node with many children also lists them by byte, so that a walk which can use few bytes looks at few
//! children.

use crate::alphabet::{Alphabets, alphabets_of};
use crate::dfa::{ByteSet, bytes_of};
use crate::text::step_utf8;

/// One node: the byte on the edge from its parent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrieNode {
    pub(crate) skip: u32,
    first_token: u32,
    /// Number of its [`Wide`] entry; `NARROW` without one.
    wide: u32,
    /// The alphabets of all that longer tokens have after it; none where it ends within a character.
    pub(crate) below: Alphabets,
    pub(crate) depth: u16,
    pub(crate) byte: u8,
    /// Bytes of the longest of these, if they are less than 255.
    pub(crate) height: u8,
}

/// Stands for no [`Wide`] entry, and for no parent.
const NARROW: u32 = u32::MAX;
/// Nodes with more children than this list them by byte.
const MAX_NARROW: usize = 8;

#[derive(Clone, Debug)]
struct Wide {
    bytes: ByteSet,
    /// Node numbers in the order of their bytes.
    children: Box<[u32]>,
}

#[derive(Clone, Debug)]
pub(crate) struct Trie {
    nodes: Vec<TrieNode>,
    tokens: Vec<u32>,
    /// The first one is the root's.
    wide: Vec<Wide>,
}

impl Trie {
    /// The tree of `tokens`, each with its bytes; none may be empty.
    pub(crate) fn new(mut tokens: Vec<(&[u8], u32)>) -> Self {
        tokens.sort_unstable();
        let mut trie = Self {
            nodes: Vec::new(),
            tokens: Vec::with_capacity(tokens.len()),
            wide: Vec::new(),
        };
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
                    wide: NARROW,
                    below: Alphabets::MAX,
                    depth: u16::try_from(depth).expect("tokens are shorter than 65,536 bytes"),
                    byte: *byte,
                    height: 0,
                });
            }
            trie.tokens.push(token);
            previous = bytes;
        }
        trie.close(&mut path, 0);
        trie.list_children();
        trie.note_alphabets();
        trie
    }

    fn note_alphabets(&mut self) {
        // By node: its parent, and what remains of a character; nothing can make up for what is no UTF-8.
        let mut places: Vec<(u32, Option<u8>)> = Vec::with_capacity(self.nodes.len());
        let mut path: Vec<u32> = Vec::new();
        for (at, node) in (0..).zip(&self.nodes) {
            path.truncate(usize::from(node.depth));
            let parent = path.last().copied();
            let before = parent.map_or(Some(0), |parent| places[parent as usize].1);
            let rest = before.and_then(|rest| step_utf8(rest, node.byte));
            places.push((parent.unwrap_or(NARROW), rest));
            path.push(at);
        }
        // Children come after their parents.
        for (at, (parent, rest)) in places.into_iter().enumerate().rev() {
            let node = &mut self.nodes[at];
            let own = node.below & alphabets_of(node.byte);
            let height = node.height.saturating_add(1);
            if rest != Some(0) {
                node.below = 0;
            }
            if let Some(parent) = self.nodes.get_mut(parent as usize) {
                parent.below &= if rest.is_some() { own } else { 0 };
                parent.height = parent.height.max(height);
            }
        }
    }

    fn close(&mut self, path: &mut Vec<u32>, depth: usize) {
        for node in path.drain(depth..) {
            self.nodes[node as usize].skip = self.nodes.len() as u32;
        }
    }

    fn list_children(&mut self) {
        let mut children = Vec::new();
        for parent in std::iter::once(None).chain((0..self.nodes.len()).map(Some)) {
            children.clear();
            children.extend(self.narrow_children(parent).map(|child| child as u32));
            if children.len() <= MAX_NARROW && parent.is_some() {
                continue;
            }
            let mut bytes = [0; 4];
            for child in &children {
                let byte = self.nodes[*child as usize].byte;
                bytes[usize::from(byte) / 64] |= 1 << (byte % 64);
            }
            if let Some(parent) = parent {
                self.nodes[parent].wide = self.wide.len() as u32;
            }
            self.wide.push(Wide {
                bytes,
                children: children.as_slice().into(),
            });
        }
    }

    /// All nodes, parents before children.
    pub(crate) fn nodes(&self) -> &[TrieNode] {
        &self.nodes
    }

    pub(crate) fn is_leaf(&self, node: usize) -> bool {
        self.nodes[node].skip as usize == node + 1
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        let n_listed: usize = self.wide.iter().map(|wide| wide.children.len()).sum();
        self.nodes.len() * size_of::<TrieNode>()
            + (self.tokens.len() + n_listed) * 4
            + self.wide.len() * size_of::<Wide>()
    }

    fn first_token(&self, node: usize) -> usize {
        self.nodes
            .get(node)
            .map_or(self.tokens.len(), |node| node.first_token as usize)
    }

    /// Every token, in the order of their bytes.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The tokens that end at `node`.
    pub(crate) fn tokens_at(&self, node: usize) -> &[u32] {
        &self.tokens[self.own_range(node)]
    }

    /// Where in [`Self::tokens`] the tokens that end at `node` are.
    pub(crate) fn own_range(&self, node: usize) -> std::ops::Range<usize> {
        self.first_token(node)..self.first_token(node + 1)
    }

    /// Where in [`Self::tokens`] the tokens that begin with `node` are.
    pub(crate) fn range_below(&self, node: usize) -> std::ops::Range<usize> {
        self.first_token(node)..self.first_token(self.nodes[node].skip as usize)
    }

    fn narrow_children(&self, parent: Option<usize>) -> impl Iterator<Item = usize> {
        let (mut at, end) = match parent {
            None => (0, self.nodes.len()),
            Some(parent) => (parent + 1, self.nodes[parent].skip as usize),
        };
        std::iter::from_fn(move || {
            let child = (at < end).then_some(at)?;
            at = self.nodes[child].skip as usize;
            Some(child)
        })
    }

    /// Whether `node` (`None`: the root) has so many children that knowing the bytes asked for pays.
    pub(crate) fn is_wide(&self, node: Option<usize>) -> bool {
        node.is_none_or(|node| self.nodes[node].wide != NARROW)
    }

    /// Calls `visit` with the children of `parent` (`None`: of the root) over one of `bytes`, and where the
    /// parent is not wide with the others too.
    #[inline]
    pub(crate) fn for_each_child(&self, parent: Option<usize>, bytes: ByteSet, mut visit: impl FnMut(usize)) {
        let wide = parent.map_or(0, |parent| self.nodes[parent].wide);
        if wide == NARROW {
            self.narrow_children(parent).for_each(visit);
            return;
        }
        let wide = &self.wide[wide as usize];
        let mut n_before = 0;
        for (own, asked) in wide.bytes.iter().zip(bytes) {
            let mut both = own & asked;
            while both != 0 {
                let below = (both & both.wrapping_neg()) - 1;
                let rank = n_before + (own & below).count_ones();
                visit(wide.children[rank as usize] as usize);
                both &= both - 1;
            }
            n_before += own.count_ones();
        }
    }

    /// The child of `parent` (`None`: of the root) over `byte`.
    pub(crate) fn child(&self, parent: Option<usize>, byte: u8) -> Option<usize> {
        let mut found = None;
        self.for_each_child(parent, bytes_of([byte]), |child| {
            if self.nodes[child].byte == byte {
                found = Some(child);
            }
        });
        found
    }

    /// The node that spells `bytes`.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<usize> {
        let mut at = None;
        for byte in bytes {
            at = Some(self.child(at, *byte)?);
        }
        at
    }

    /// Calls `visit` with the tokens that begin with `node` and are longer, and what they have after it.
    pub(crate) fn for_each_below<'a>(
        &self,
        node: usize,
        token_bytes: impl Fn(u32) -> &'a [u8],
        mut visit: impl FnMut(&'a [u8], u32),
    ) {
        let n_before = usize::from(self.nodes[node].depth) + 1;
        let begin = self.first_token(node + 1);
        for token in &self.tokens[begin..self.range_below(node).end] {
            visit(&token_bytes(*token)[n_before..], *token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_are_ranges_and_equal_tokens_share_a_node() {
        let trie = Trie::new(vec![(b"ab", 1), (b"b", 2), (b"a", 0), (b"ab", 7)]);
        let skips: Vec<_> = trie.nodes.iter().map(|node| node.skip).collect();
        assert_eq!(skips, [2, 2, 3]);
        assert_eq!(trie.tokens_at(0), [0]);
        assert_eq!(trie.tokens_at(1), [1, 7]);
        assert_eq!(trie.tokens_at(2), [2]);
        assert_eq!(trie.range_below(0), 0..3);
        assert_eq!((trie.find(b"ab"), trie.find(b"ba")), (Some(1), None));
        assert!(trie.is_leaf(1) && !trie.is_leaf(0));
    }

    #[test]
    fn nodes_know_the_alphabets_of_what_is_below() {
        let tokens: [&[u8]; 7] = [
            b"ab",
            b"ab1",
            b"aC",
            "é".as_bytes(),
            "éb".as_bytes(),
            b"b\x80",
            b"\xc3",
        ];
        let trie = Trie::new(tokens.into_iter().zip(0..).collect());
        let below = |text: &[u8]| trie.nodes[trie.find(text).expect("it begins a token")].below;
        let all = |text: &[u8]| {
            text.iter()
                .fold(Alphabets::MAX, |all, byte| all & alphabets_of(*byte))
        };
        assert_eq!(below(b"a"), all(b"b1C"));
        assert_eq!(below(b"ab"), all(b"1"));
        assert_eq!(below("é".as_bytes()), all(b"b"));
        assert_eq!(below(b"aC"), Alphabets::MAX);
        // No text goes on within a character, and none has what is no character.
        assert_eq!((below(b"\xc3"), below(b"b")), (0, 0));
    }

    #[test]
    fn wide_nodes_find_the_same_children() {
        let texts: Vec<Vec<u8>> = (0..=255u8).step_by(3).map(|byte| vec![b'x', byte]).collect();
        let trie = Trie::new(texts.iter().map(|text| &text[..]).zip(0..).collect());
        let x = trie.child(None, b'x').expect("all begin with it");
        for (text, token) in texts.iter().zip(0..) {
            let node = trie.find(text).expect("it is a token");
            assert_eq!(trie.tokens_at(node), [token]);
        }
        assert_eq!(trie.child(Some(x), 1), None);
        let mut below = Vec::new();
        trie.for_each_below(
            x,
            |token| &texts[token as usize],
            |rest, token| below.push((rest, token)),
        );
        assert_eq!(below.len(), texts.len());
        assert!(below.iter().all(|(rest, token)| rest == &[*token as u8 * 3]));
    }
}
