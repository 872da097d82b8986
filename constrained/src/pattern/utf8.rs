//! From automata over letters to automata over the bytes of UTF-8.
//!
//! One tree of bytes tells which letter a character is. Each state gets the tree with its own successors for
//! letters, and parts of trees that do the same are one: so the automaton over bytes is the smallest where
//! the one over letters is.

use regex_syntax::utf8::{Utf8Range, Utf8Sequences};

use super::determinize::{Budget, Excess};
use super::letters::{Letter, Letters};
use crate::dfa::{Classes, Dfa};
use crate::hash::Map;
use crate::rows::{DEAD, Rows};

/// Where bytes from the first to the last lead.
type Edge<T> = (u8, u8, T);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Target {
    Letter(Letter),
    Node(u32),
}

/// A tree whose equal parts are one; nodes come after those below them.
#[derive(Default)]
struct Tree {
    nodes: Vec<Box<[Edge<Target>]>>,
    ids: Map<Box<[Edge<Target>]>, u32>,
}

/// Bytes of one range of characters, and its letter.
type Sequence = (Vec<Utf8Range>, Letter);

impl Tree {
    /// Of all characters of some class.
    fn new(letters: &Letters) -> Self {
        let mut sequences: Vec<Sequence> = Vec::new();
        for ((first, last), letter) in letters.ranges().iter().filter(|(_, letter)| *letter != 0) {
            let ends = char::from_u32(*first).zip(char::from_u32(*last));
            let (first, last) = ends.expect("letters are characters");
            let all = Utf8Sequences::new(first, last);
            sequences.extend(all.map(|sequence| (sequence.as_slice().to_vec(), *letter)));
        }
        let mut tree = Self::default();
        tree.node(&sequences, 0);
        tree
    }

    /// The node of `sequences`, which are alike up to the byte `depth`; at most four bytes deep.
    fn node(&mut self, sequences: &[Sequence], depth: usize) -> u32 {
        let mut edges = Vec::new();
        for group in sequences.chunk_by(|a, b| a.0[depth] == b.0[depth]) {
            let (bytes, letter) = &group[0];
            let Utf8Range { start, end } = bytes[depth];
            let target = if bytes.len() == depth + 1 {
                Target::Letter(*letter)
            } else {
                Target::Node(self.node(group, depth + 1))
            };
            add_edge(&mut edges, (start, end, target));
        }
        let edges: Box<[_]> = edges.into();
        let fresh = self.nodes.len() as u32;
        let id = *self.ids.entry(edges.clone()).or_insert(fresh);
        if id == fresh {
            self.nodes.push(edges);
        }
        id
    }

    /// Bytes that no node tells apart.
    fn classes(&self) -> Classes {
        let mut begins = [false; 257];
        for (first, last, _) in self.nodes.iter().flat_map(|edges| edges.iter()) {
            begins[usize::from(*first)] = true;
            begins[usize::from(*last) + 1] = true;
        }
        let mut numbers = [0; 256];
        for byte in 1..256 {
            numbers[byte] = numbers[byte - 1] + u8::from(begins[byte]);
        }
        Classes::of_numbers(&numbers)
    }
}

/// Adds an edge behind the last one, or as a part of it.
fn add_edge<T: Copy + PartialEq>(edges: &mut Vec<Edge<T>>, (first, last, target): Edge<T>) {
    match edges.last_mut() {
        Some(before) if before.2 == target && before.1 + 1 == first => before.1 = last,
        _ => edges.push((first, last, target)),
    }
}

/// The smallest automaton over bytes that accepts what `rows` accepts, the smallest one over `letters`.
pub(super) fn automaton(letters: &Letters, rows: &Rows, budget: &mut Budget) -> Result<Dfa, Excess> {
    let tree = Tree::new(letters);
    let n_edges: usize = tree.nodes.iter().map(|edges| edges.len()).sum();
    // States within characters, by where they lead, numbered behind those between.
    let mut ids: Map<Vec<Edge<u32>>, u32> = Map::default();
    let n_between = rows.n_states();
    let mut roots: Vec<Vec<Edge<u32>>> = vec![Vec::new()];
    let mut at_node = vec![DEAD; tree.nodes.len()];
    for state in 1..n_between as u32 {
        budget.spend(n_edges)?;
        let row = rows.row(state);
        for (node, edges) in tree.nodes.iter().enumerate() {
            let mut leads = Vec::new();
            for (first, last, target) in edges {
                let to = match target {
                    Target::Letter(letter) => row[usize::from(*letter)],
                    Target::Node(node) => at_node[*node as usize],
                };
                if to != DEAD {
                    add_edge(&mut leads, (*first, *last, to));
                }
            }
            // The root comes last.
            if node + 1 == tree.nodes.len() {
                roots.push(leads);
            } else if leads.is_empty() {
                at_node[node] = DEAD;
            } else {
                let fresh = (n_between + ids.len()) as u32;
                at_node[node] = *ids.entry(leads).or_insert(fresh);
            }
        }
        budget.check_states(n_between + ids.len())?;
    }
    let classes = tree.classes();
    let mut states: Vec<Vec<Edge<u32>>> = roots;
    states.resize_with(n_between + ids.len(), Vec::new);
    for (edges, id) in ids {
        states[id as usize] = edges;
    }
    budget.spend(states.len() * classes.len() / 4)?;
    let mut table = vec![DEAD; states.len() * classes.len()];
    for (row, edges) in table.chunks_exact_mut(classes.len()).zip(&states) {
        for (first, last, to) in edges {
            row[classes.of(*first)..=classes.of(*last)].fill(*to);
        }
    }
    let mut accepts = rows.accepts.clone();
    accepts.resize(states.len(), false);
    let rows = Rows {
        n_columns: classes.len(),
        table,
        accepts,
        start: rows.start,
    };
    Ok(Dfa::of_minimal(classes, &rows))
}
