//! The declared keys of one object as a prefix tree over their JSON spelling, quotes included.
//!
//! What may come next is a set of key numbers, and every node knows the numbers below it.

use std::fmt::Write;

use crate::dfa::{ByteSet, bytes_of};
use crate::object::Allowed;

/// A node: its edges and the keys below it, each in one piece of a list.
#[derive(Clone, Copy, Debug)]
struct KeyNode {
    /// Its edges begin here, and end where those of the next one begin.
    begin: u32,
    /// Where the keys below it and at it begin and end.
    keys: (u32, u32),
    key: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct KeyTrie {
    nodes: Vec<KeyNode>,
    edges: Vec<(u8, u32)>,
    /// Numbers of the keys in the order of their spellings; of those with two spellings twice.
    keys: Vec<u32>,
}

impl KeyTrie {
    pub(crate) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut spelled: Vec<(String, u32)> = Vec::new();
        for (name, key) in names.zip(0..) {
            spelled.push((quoted(name, Spelling::Raw), key));
            if !name.is_ascii() {
                spelled.push((quoted(name, Spelling::Ascii), key));
            }
        }
        spelled.sort_unstable();
        spelled.dedup_by(|a, b| a.0 == b.0);
        let mut trie = Self {
            nodes: Vec::new(),
            edges: Vec::new(),
            keys: spelled.iter().map(|(_, key)| *key).collect(),
        };
        // Spellings that are alike so far, and how far that is.
        let mut groups = vec![(0, spelled.len(), 0)];
        while let Some((begin, end, depth)) = groups.get(trie.nodes.len()).copied() {
            let first = spelled.get(begin).filter(|(spelling, _)| spelling.len() == depth);
            trie.nodes.push(KeyNode {
                begin: trie.edges.len() as u32,
                keys: (begin as u32, end as u32),
                key: first.map(|(_, key)| *key),
            });
            let byte = |(spelling, _): &(String, u32)| spelling.as_bytes()[depth];
            let mut at = begin + usize::from(first.is_some());
            for group in spelled[at..end].chunk_by(|a, b| byte(a) == byte(b)) {
                trie.edges.push((byte(&group[0]), groups.len() as u32));
                groups.push((at, at + group.len(), depth + 1));
                at += group.len();
            }
        }
        trie
    }

    fn edges(&self, node: u32) -> &[(u8, u32)] {
        let node = node as usize;
        let end = self
            .nodes
            .get(node + 1)
            .map_or(self.edges.len(), |next| next.begin as usize);
        &self.edges[self.nodes[node].begin as usize..end]
    }

    /// The node after `byte`, when a key that is `allowed` lies below it.
    pub(crate) fn step(&self, node: u32, byte: u8, allowed: &Allowed) -> Option<u32> {
        let (_, child) = self.edges(node).iter().find(|(edge, _)| *edge == byte)?;
        allowed.has_any(self.keys(*child)).then_some(*child)
    }

    /// The bytes on the edges below `node`.
    pub(crate) fn bytes(&self, node: u32) -> ByteSet {
        bytes_of(self.edges(node).iter().map(|(byte, _)| *byte))
    }

    /// Numbers of the keys below `node` and at it, in any order.
    pub(crate) fn keys(&self, node: u32) -> &[u32] {
        let (begin, end) = self.nodes[node as usize].keys;
        &self.keys[begin as usize..end as usize]
    }

    /// Calls `visit` with the bytes after `node` and the nodes they lead to, as far as a key that is
    /// `allowed` lies below.
    pub(crate) fn for_each_child(&self, node: u32, allowed: &Allowed, mut visit: impl FnMut(u8, u32)) {
        for (byte, child) in self.edges(node) {
            if allowed.has_any(self.keys(*child)) {
                visit(*byte, *child);
            }
        }
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        self.nodes.len() * size_of::<KeyNode>() + self.edges.len() * 8 + self.keys.len() * 4
    }

    /// The key that ends at `node`, its closing quote included.
    pub(crate) fn key_at(&self, node: u32) -> Option<u32> {
        self.nodes[node as usize].key
    }

    pub(crate) fn mark_bytes(&self, is_used: &mut [bool; 256]) {
        for (byte, _) in &self.edges {
            is_used[usize::from(*byte)] = true;
        }
    }
}

/// How characters beyond ASCII are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    Raw,
    /// As `\uXXXX`, in lower case.
    Ascii,
}

/// `text` as a JSON string; nothing is escaped that need not be.
pub(crate) fn quoted(text: &str, spelling: Spelling) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || spelling == Spelling::Ascii && !c.is_ascii() => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("writing to a string never fails");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_are_allowed_are_reachable() {
        let trie = KeyTrie::new(["ab", "ac", "b"].into_iter());
        let walk = |text: &str, allowed: &Allowed| {
            text.bytes()
                .try_fold(0, |node, byte| trie.step(node, byte, allowed))
        };
        for allowed in [
            Allowed::Range(0, 2),
            Allowed::Range(1, 1),
            Allowed::Set([0b110].into()),
            Allowed::Set([0b010].into()),
        ] {
            assert_eq!(
                walk("\"ac\"", &allowed).and_then(|node| trie.key_at(node)),
                Some(1)
            );
        }
        for allowed in [Allowed::Range(2, 2), Allowed::Set([0b100].into())] {
            assert!(walk("\"a", &allowed).is_none() && walk("\"b\"", &allowed).is_some());
        }
        assert!(walk("\"", &Allowed::Nothing).is_none());
    }

    #[test]
    fn strings_are_spelled_as_json() {
        assert_eq!(quoted("a\"\n\u{1}é", Spelling::Raw), "\"a\\\"\\n\\u0001é\"");
        assert_eq!(quoted("é😀", Spelling::Ascii), "\"\\u00e9\\ud83d\\ude00\"");
    }
}
