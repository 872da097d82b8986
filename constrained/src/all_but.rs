//! All texts but some: the names of an object that are not declared.
//!
//! ```text
//!  all but ab, é      1 ─a→ 2 ─b→ 3    1 ─C3→ 4 ─A9→ 5       states of the tree, 3 and 5 do not accept
//!                     6 … 13: what remains of a character    off the tree; 6, a border, accepts
//! ```
//!
//! The listed texts are a tree of bytes, and whatever leaves it is any text. So a state has few edges of its
//! own, no table is made, and every text can go on to become another one: there are no dead ends.

use crate::dfa::{ByteSet, Classes, bytes_of};
use crate::rows::{DEAD, Rows};
use crate::text::{step_utf8, utf8_classes};

/// Numbers for what remains of a character.
const N_RESTS: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AllBut {
    /// The states of the tree, which count from 1.
    nodes: Vec<Node>,
    /// Bytes and where they lead, ascending within each state.
    edges: Vec<(u8, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Node {
    /// Its edges begin here, and end where those of the next one begin.
    begin: u32,
    /// What remains of a character.
    rest: u8,
    is_listed: bool,
}

impl AllBut {
    /// All texts but `listed`, which are UTF-8.
    pub(crate) fn new(mut listed: Vec<&[u8]>) -> Self {
        listed.sort_unstable();
        listed.dedup();
        let (mut nodes, mut edges) = (Vec::new(), Vec::new());
        // Texts that are alike so far, and how far that is.
        let mut groups = vec![(&listed[..], 0, 0)];
        while let Some((texts, depth, rest)) = groups.get(nodes.len()).copied() {
            let is_listed = texts.first().is_some_and(|text| text.len() == depth);
            nodes.push(Node {
                begin: edges.len() as u32,
                rest,
                is_listed,
            });
            for group in texts[usize::from(is_listed)..].chunk_by(|a, b| a[depth] == b[depth]) {
                let byte = group[0][depth];
                let rest = step_utf8(rest, byte).expect("texts are UTF-8");
                groups.push((group, depth + 1, rest));
                edges.push((byte, groups.len() as u32));
            }
        }
        Self { nodes, edges }
    }

    pub(crate) fn n_states(&self) -> usize {
        1 + self.nodes.len() + N_RESTS
    }

    fn edges(&self, node: usize) -> &[(u8, u32)] {
        let end = self
            .nodes
            .get(node + 1)
            .map_or(self.edges.len(), |next| next.begin as usize);
        &self.edges[self.nodes[node].begin as usize..end]
    }

    pub(crate) fn step(&self, state: u32, byte: u8) -> u32 {
        if state == DEAD {
            return DEAD;
        }
        let place = state as usize - 1;
        if place < self.nodes.len() {
            let edges = self.edges(place);
            if let Ok(at) = edges.binary_search_by_key(&byte, |(edge, _)| *edge) {
                return edges[at].1;
            }
        }
        step_utf8(self.rest(state), byte).map_or(DEAD, |rest| self.off(rest))
    }

    /// What remains of a character in `state`, which is not the dead one.
    fn rest(&self, state: u32) -> u8 {
        let place = state as usize - 1;
        let node = self.nodes.get(place).map(|node| node.rest);
        node.unwrap_or_else(|| (place - self.nodes.len()) as u8)
    }

    /// The state off the tree in which so much remains of a character.
    fn off(&self, rest: u8) -> u32 {
        1 + self.nodes.len() as u32 + u32::from(rest)
    }

    pub(crate) fn is_accepting(&self, state: u32) -> bool {
        let is_listed = |node: &Node| node.is_listed;
        state != DEAD && self.is_border(state) && !self.nodes.get(state as usize - 1).is_some_and(is_listed)
    }

    /// Whether `state` is between characters.
    pub(crate) fn is_border(&self, state: u32) -> bool {
        state != DEAD && self.rest(state) == 0
    }

    /// Whether any text may follow `state` and end anywhere, but for what remains of a character.
    pub(crate) fn is_off(&self, state: u32) -> bool {
        state as usize > self.nodes.len()
    }

    /// Whether any text has `byte`, which then may come in some state.
    pub(crate) fn may_take(byte: u8) -> bool {
        (0..N_RESTS as u8).any(|rest| step_utf8(rest, byte).is_some())
    }

    /// The bytes that go on along a listed text.
    pub(crate) fn listed_bytes(&self, state: u32) -> ByteSet {
        match self.is_off(state) || state == DEAD {
            true => [0; 4],
            false => bytes_of(self.edges(state as usize - 1).iter().map(|(byte, _)| *byte)),
        }
    }

    /// Bytes that no state tells apart.
    pub(crate) fn classes(&self) -> Classes {
        let mut is_used = [false; 256];
        self.edges
            .iter()
            .for_each(|(byte, _)| is_used[usize::from(*byte)] = true);
        utf8_classes().refine(&Classes::alone(&is_used))
    }

    /// The same as a table.
    pub(crate) fn rows(&self, classes: &Classes) -> Rows {
        let states = 0..self.n_states() as u32;
        let row = |state: u32| classes.members().iter().map(move |byte| self.step(state, *byte));
        Rows {
            n_columns: classes.len(),
            table: states.clone().flat_map(row).collect(),
            accepts: states.map(|state| self.is_accepting(state)).collect(),
            start: 1,
        }
    }

    /// Bytes of memory besides its own.
    pub(crate) fn n_bytes(&self) -> usize {
        self.nodes.len() * size_of::<Node>() + self.edges.len() * size_of::<(u8, u32)>()
    }
}

#[cfg(test)]
mod tests {
    use crate::dfa::{Dfa, Product};
    use crate::text::any_content;

    #[test]
    fn it_accepts_what_a_product_of_tables_does() {
        for listed in [
            &[][..],
            &[""],
            &["a"],
            &["ab", "abc", "b", "ab"],
            &["é", "è", "aé", "\u{1f600}", "\u{1f601}b", "a"],
        ] {
            let listed = || listed.iter().map(|text| text.as_bytes());
            let own = Dfa::all_but(listed().collect());
            let whole = any_content();
            let table = whole.product(&Dfa::of_strings(listed()), Product::FirstOnly, usize::MAX);
            let table = table.expect("no limit is set");
            let is_within = |a: &Dfa, b: &Dfa| {
                let rest = a.product(b, Product::FirstOnly, usize::MAX);
                rest.expect("no limit is set") == Dfa::of_strings([])
            };
            assert!(is_within(&own, &table) && is_within(&table, &own));
            // Trimming makes a table of it.
            assert_eq!(own.clone().trimmed(&[true; 256]).n_states(), own.n_states());
        }
    }
}
