//! The declared keys of one object as a prefix tree over their JSON spelling, quotes included.
//!
//! What may come next is a set of key numbers, and every node knows the numbers below it.

use std::fmt::Write;

use crate::dfa::{ByteSet, bytes_of};
use crate::object::Allowed;

#[derive(Clone, Debug, Default)]
struct KeyNode {
    children: Vec<(u8, u32)>,
    /// Numbers of the keys below and at this node, ascending.
    keys: Vec<u32>,
    key: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct KeyTrie {
    nodes: Vec<KeyNode>,
}

impl KeyTrie {
    pub(crate) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let mut trie = Self {
            nodes: vec![KeyNode::default()],
        };
        for (key, name) in names.enumerate() {
            trie.insert(&quoted(name, Spelling::Raw), key as u32);
            if !name.is_ascii() {
                trie.insert(&quoted(name, Spelling::Ascii), key as u32);
            }
        }
        trie
    }

    fn insert(&mut self, spelling: &str, key: u32) {
        let mut at = 0;
        self.nodes[0].note(key);
        for byte in spelling.bytes() {
            let found = self.nodes[at].children.iter().find(|(edge, _)| *edge == byte);
            at = match found {
                Some((_, child)) => *child as usize,
                None => {
                    self.nodes.push(KeyNode::default());
                    let child = self.nodes.len() - 1;
                    self.nodes[at].children.push((byte, child as u32));
                    child
                }
            };
            self.nodes[at].note(key);
        }
        self.nodes[at].key = Some(key);
    }

    /// The node after `byte`, when a key that is `allowed` lies below it.
    pub(crate) fn step(&self, node: u32, byte: u8, allowed: &Allowed) -> Option<u32> {
        let children = &self.nodes[node as usize].children;
        let (_, child) = children.iter().find(|(edge, _)| *edge == byte)?;
        let keys = &self.nodes[*child as usize].keys;
        allowed.has_any(keys).then_some(*child)
    }

    /// The bytes on the edges below `node`.
    pub(crate) fn bytes(&self, node: u32) -> ByteSet {
        bytes_of(self.nodes[node as usize].children.iter().map(|(byte, _)| *byte))
    }

    /// Numbers of the keys below `node` and at it, ascending.
    pub(crate) fn keys(&self, node: u32) -> &[u32] {
        &self.nodes[node as usize].keys
    }

    /// Calls `visit` with the bytes after `node` and the nodes they lead to, as far as a key that is
    /// `allowed` lies below.
    pub(crate) fn for_each_child(&self, node: u32, allowed: &Allowed, mut visit: impl FnMut(u8, u32)) {
        for (byte, child) in &self.nodes[node as usize].children {
            if allowed.has_any(&self.nodes[*child as usize].keys) {
                visit(*byte, *child);
            }
        }
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        let of_node = |node: &KeyNode| node.children.len() * 8 + node.keys.len() * 4 + size_of::<KeyNode>();
        self.nodes.iter().map(of_node).sum()
    }

    /// The key that ends at `node`, its closing quote included.
    pub(crate) fn key_at(&self, node: u32) -> Option<u32> {
        self.nodes[node as usize].key
    }

    pub(crate) fn mark_bytes(&self, is_used: &mut [bool; 256]) {
        for node in &self.nodes {
            for (byte, _) in &node.children {
                is_used[usize::from(*byte)] = true;
            }
        }
    }
}

impl KeyNode {
    fn note(&mut self, key: u32) {
        if self.keys.last() != Some(&key) {
            self.keys.push(key);
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
