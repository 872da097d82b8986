//! What is still to come, as sets of stacks.
//!
//! Readings of an output that stand at the same place of the same leaf differ only in what is still to come.
//! They are kept as one reading with a set of stacks: a node of a graph (a graph-structured stack, as in
//! generalised LR parsing), whose edges are the frames that may be on top, each with the set of what may be
//! below it. So an output that can be read in exponentially many ways has no more readings than the grammar
//! has places, and sets that many stacks share are kept once.
//!
//! ```text
//!  stacks  a·c  a·d  b·c      set 3:  a → set 1,  b → set 2      set 1:  c → 0,  d → 0      set 2:  c → 0
//! ```
//!
//! Invariants: a set is never empty; its edges are sorted and differ; below an edge is a set with a smaller
//! number, so that no set reaches itself; equal lists of edges have equal numbers. Set 0 holds the empty
//! stack alone, whose only edge is [`Frame::End`]; below that edge there is nothing. A stack with a frame
//! that keeps a text is never joined with another: down to that frame each set has one edge.

use std::sync::Arc;

use crate::array::Array;
use crate::closure::Scratch;
use crate::hash::Map;
use crate::ir::{Ir, NodeId};
use crate::memory::{NONE, TextId};
use crate::records::{ItemsId, MembersId, Records};
use crate::step::Reading;

/// The number of a set of stacks.
pub(crate) type StackId = u32;
pub(crate) const BOTTOM: StackId = 0;

/// What to do when the part above is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Frame {
    /// Nothing: the grammar is complete.
    End,
    /// The sequence's part `at` and those after it.
    Seq {
        seq: NodeId,
        at: u32,
    },
    /// `n` bodies are complete.
    Repeat {
        node: NodeId,
        n: u32,
    },
    Then(NodeId),
    /// The part is complete, of which `mark` says something. So many tokens may yet begin in it.
    Marked {
        mark: u32,
        n_left: u32,
    },
    /// The object's brace is open and nothing else was written.
    FirstKey {
        object: u32,
    },
    /// A comma was written.
    Key {
        members: MembersId,
    },
    /// The name of an extra member, which differs from earlier ones and of which `text` was written.
    Name {
        members: MembersId,
        extra: u32,
        text: TextId,
    },
    /// A name and its colon were written; extra members are numbered after the declared keys.
    Value {
        members: MembersId,
        key: u32,
    },
    /// A member is complete.
    Member {
        members: MembersId,
    },
    FirstItem {
        array: u32,
    },
    /// A comma was written.
    Item {
        items: ItemsId,
    },
    /// An item is complete; where items are distinct, `text` was written of it and the values are those
    /// before it.
    AfterItem {
        items: ItemsId,
        text: TextId,
    },
}

impl Frame {
    /// How much deeper the output is within it: a container or a part of a rule counts once, however many
    /// frames say what comes of it.
    fn depth(self) -> u32 {
        u32::from(!matches!(self, Self::End | Self::Then(_) | Self::Marked { .. }))
    }

    /// What was written of the part above, where that is kept.
    pub(crate) fn text(self) -> Option<TextId> {
        match self {
            Self::Name { text, .. } | Self::AfterItem { text, .. } => Some(text).filter(|text| *text != NONE),
            _ => None,
        }
    }

    /// The frame with another text, where it keeps one.
    pub(crate) fn with_text(self, text: TextId) -> Self {
        match self {
            Self::Name { members, extra, .. } => Self::Name { members, extra, text },
            Self::AfterItem { items, .. } => Self::AfterItem { items, text },
            other => other,
        }
    }
}

/// A frame that may be on top, and the set of what may be below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub(crate) frame: Frame,
    pub(crate) below: StackId,
}

#[derive(Clone, Copy, Debug)]
struct Set {
    /// Where its edges begin and end.
    begin: u32,
    end: u32,
    /// Depths of its shallowest and its deepest stack.
    least: u32,
    most: u32,
    /// Whether a frame of its stacks keeps a text.
    keeps_text: bool,
    /// Whether any of its stacks is within a marked part.
    is_marked: bool,
}

/// Sets of one grammar, from one table to be taken into another.
#[derive(Debug, Default)]
pub(crate) struct PortableSets(Vec<Box<[Edge]>>);

/// All sets met so far.
#[derive(Debug)]
pub(crate) struct Stacks {
    edges: Vec<Edge>,
    sets: Vec<Set>,
    /// Sets of one edge, and of several.
    single: Map<Edge, StackId>,
    several: Map<Box<[Edge]>, StackId>,
    unions: Map<(StackId, StackId), StackId>,
    /// Stacks of a set that are not deeper than a bound.
    shallow: Map<(StackId, u32), StackId>,
    pub(crate) max_depth: u32,
    /// By set: what may come once everything above is complete.
    pub(crate) continuations: Vec<Option<Arc<[Reading]>>>,
    /// By array and depth that is left: the same array of items that are no deeper.
    pub(crate) shallow_arrays: Map<(u32, u32), Arc<Array>>,
    pub(crate) records: Records,
    pub(crate) alike: Map<(StackId, u32), StackId>,
    pub(crate) scratch: Scratch,
}

impl Stacks {
    pub(crate) fn new(max_depth: u32) -> Self {
        let end = Edge {
            frame: Frame::End,
            below: BOTTOM,
        };
        let bottom = Set {
            begin: 0,
            end: 1,
            least: 0,
            most: 0,
            keeps_text: false,
            is_marked: false,
        };
        Self {
            edges: vec![end],
            sets: vec![bottom],
            single: [(end, BOTTOM)].into_iter().collect(),
            several: Map::default(),
            unions: Map::default(),
            shallow: Map::default(),
            max_depth,
            continuations: vec![None],
            shallow_arrays: Map::default(),
            records: Records::new(),
            alike: Map::default(),
            scratch: Scratch::default(),
        }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        /// A set's entries here and in the table that finds it.
        const SET_BYTES: usize = 80;
        let n_pairs = self.unions.len() + self.shallow.len() + self.alike.len();
        self.sets.len() * SET_BYTES
            + self.edges.len() * 2 * size_of::<Edge>()
            + n_pairs * 24
            + self.records.n_bytes()
    }

    pub(crate) fn edges(&self, set: StackId) -> &[Edge] {
        let Set { begin, end, .. } = self.sets[set as usize];
        &self.edges[begin as usize..end as usize]
    }

    /// The frames on top of the stacks of `set`, each with the depth of the shallowest stack that has it.
    pub(crate) fn tops(&self, set: StackId) -> impl Iterator<Item = (Frame, u32)> {
        let least = |edge: &Edge| self.sets[edge.below as usize].least + edge.frame.depth();
        self.edges(set).iter().map(move |edge| (edge.frame, least(edge)))
    }

    /// Whether a frame of the stacks of `set`, of which there is one then, keeps a text.
    pub(crate) fn keeps_text(&self, set: StackId) -> bool {
        self.sets[set as usize].keeps_text
    }

    /// The depth of the deepest stack of `set`.
    pub(crate) fn depth(&self, set: StackId) -> u32 {
        self.sets[set as usize].most
    }

    /// How much longer it takes than above shallow stacks to find what may come once everything above `set`
    /// is complete: parts that may be empty are complete one after the other, all the way down.
    pub(crate) fn cost(&self, set: StackId) -> usize {
        const DEPTH_OF_UNIT: u32 = 32;
        1 + (self.depth(set) / DEPTH_OF_UNIT) as usize
    }

    /// Whether the stacks of both may become one set.
    pub(crate) fn may_join(&self, a: StackId, b: StackId) -> bool {
        a == b || !self.keeps_text(a) && !self.keeps_text(b)
    }

    /// The top of the only stack of `set`.
    pub(crate) fn top(&self, set: StackId) -> Edge {
        let [edge] = self.edges(set) else {
            unreachable!("a stack that keeps a text is alone down to there");
        };
        *edge
    }

    /// Whether any stack of `set` is within a part that says something of its tokens.
    pub(crate) fn is_marked(&self, set: StackId) -> bool {
        self.sets[set as usize].is_marked
    }

    /// `below` with `frame` on top of each of its stacks.
    pub(crate) fn push(&mut self, frame: Frame, below: StackId) -> StackId {
        let edge = Edge { frame, below };
        let fresh = self.sets.len() as StackId;
        let id = *self.single.entry(edge).or_insert(fresh);
        if id == fresh {
            self.add(&[edge]);
        }
        id
    }

    /// The set of `edges`, which are sorted and differ.
    pub(crate) fn of_edges(&mut self, edges: &[Edge]) -> StackId {
        debug_assert!(edges.is_sorted_by(|a, b| a < b) && !edges.is_empty());
        if let [edge] = edges {
            return self.push(edge.frame, edge.below);
        }
        if let Some(known) = self.several.get(edges) {
            return *known;
        }
        let fresh = self.sets.len() as StackId;
        self.several.insert(edges.into(), fresh);
        self.add(edges);
        fresh
    }

    fn add(&mut self, edges: &[Edge]) {
        let depths = |of: fn(&Set) -> u32| {
            let sets = &self.sets;
            edges
                .iter()
                .map(move |edge| of(&sets[edge.below as usize]) + edge.frame.depth())
        };
        let set = Set {
            begin: self.edges.len() as u32,
            end: (self.edges.len() + edges.len()) as u32,
            least: depths(|set| set.least).min().expect("a set has an edge"),
            most: depths(|set| set.most).max().expect("a set has an edge"),
            keeps_text: edges
                .iter()
                .any(|edge| edge.frame.text().is_some() || self.keeps_text(edge.below)),
            is_marked: edges.iter().any(|edge| {
                matches!(edge.frame, Frame::Marked { .. }) || self.sets[edge.below as usize].is_marked
            }),
        };
        debug_assert!(edges.len() == 1 || !set.keeps_text);
        self.edges.extend_from_slice(edges);
        self.sets.push(set);
        self.continuations.push(None);
    }

    /// The stacks of both sets.
    pub(crate) fn union(&mut self, ir: &Ir, a: StackId, b: StackId) -> StackId {
        /// Sets that one union may merge; below that many, equal frames are kept side by side.
        const MAX_MERGED: usize = 1_000;
        if a == b {
            return a;
        }
        if let Some(known) = self.unions.get(&ordered(a, b)) {
            return *known;
        }
        let (mut todo, mut n_merged) = (vec![ordered(a, b)], 0);
        while let Some((a, b)) = todo.last().copied() {
            if self.unions.contains_key(&(a, b)) {
                todo.pop();
                continue;
            }
            let edges = [self.edges(a), self.edges(b)].concat();
            match self.merged(ir, edges, n_merged < MAX_MERGED) {
                Err(missing) => todo.push(missing),
                Ok(edges) => {
                    let union = self.of_edges(&edges);
                    self.unions.insert((a, b), union);
                    n_merged += 1;
                }
            }
        }
        self.unions[&ordered(a, b)]
    }

    /// The stacks of `edges`, in any order.
    pub(crate) fn joined(&mut self, ir: &Ir, mut edges: Vec<Edge>) -> StackId {
        edges.sort_unstable();
        edges.dedup();
        let mut joined: Vec<Edge> = Vec::with_capacity(edges.len());
        for edge in edges {
            match joined.last_mut() {
                Some(last) if last.frame == edge.frame => {
                    last.below = self.union(ir, last.below, edge.below);
                }
                _ => joined.push(edge),
            }
        }
        drop_larger_counts(ir, &mut joined);
        self.of_edges(&joined)
    }

    /// `edges` as those of a set. Equal frames become one, unless `may_merge` is not given; the error is a
    /// union that must be known before. A repetition that may end can do with a smaller count whatever it can
    /// with a larger one.
    fn merged(
        &self,
        ir: &Ir,
        mut edges: Vec<Edge>,
        may_merge: bool,
    ) -> Result<Vec<Edge>, (StackId, StackId)> {
        edges.sort_unstable();
        edges.dedup();
        let mut merged: Vec<Edge> = Vec::with_capacity(edges.len());
        for edge in edges {
            match merged.last_mut() {
                Some(last) if last.frame == edge.frame && may_merge => {
                    let pair = ordered(last.below, edge.below);
                    last.below = match self.unions.get(&pair) {
                        _ if pair.0 == pair.1 => pair.0,
                        Some(known) => *known,
                        None => return Err(pair),
                    };
                }
                _ => merged.push(edge),
            }
        }
        merged.sort_unstable();
        drop_larger_counts(ir, &mut merged);
        Ok(merged)
    }

    /// The stacks of `set` that leave room for `n` more; `None` when none does.
    pub(crate) fn with_room(&mut self, set: StackId, n: u32) -> Option<StackId> {
        let Set { least, most, .. } = self.sets[set as usize];
        let bound = self.max_depth.checked_sub(n)?;
        if most <= bound {
            return Some(set);
        }
        (least <= bound).then(|| self.up_to(set, bound))
    }

    /// `set` in parts by how much deeper each may become: as far as that is no less than `n` they stay
    /// together, with `u32::MAX`. A part may hold stacks of another part that have more room.
    pub(crate) fn by_room(&mut self, set: StackId, n: u32) -> Vec<(StackId, u32)> {
        let Set { least, most, .. } = self.sets[set as usize];
        if most.saturating_add(n) <= self.max_depth {
            return vec![(set, u32::MAX)];
        }
        let ample = self.with_room(set, n).map(|part| (part, u32::MAX));
        let first = least.max((self.max_depth + 1).saturating_sub(n));
        let depths = first..=most.min(self.max_depth);
        let tight = depths.map(|depth| (self.up_to(set, depth), self.max_depth - depth));
        let tight: Vec<_> = tight.collect();
        ample.into_iter().chain(tight).collect()
    }

    /// The stacks of `set` no deeper than `bound`; there are some.
    fn up_to(&mut self, set: StackId, bound: u32) -> StackId {
        let mut todo = vec![(set, bound)];
        while let Some((set, bound)) = todo.last().copied() {
            if self.shallow.contains_key(&(set, bound)) {
                todo.pop();
                continue;
            }
            match self.edges_up_to(set, bound) {
                Err(missing) => todo.push(missing),
                Ok(edges) => {
                    let part = self.of_edges(&edges);
                    self.shallow.insert((set, bound), part);
                }
            }
        }
        self.shallow[&(set, bound)]
    }

    /// The error is a part that must be known before.
    fn edges_up_to(&self, set: StackId, bound: u32) -> Result<Vec<Edge>, (StackId, u32)> {
        let mut kept = Vec::new();
        for edge in self.edges(set) {
            let Some(bound) = bound.checked_sub(edge.frame.depth()) else {
                continue;
            };
            let below = self.sets[edge.below as usize];
            if below.most <= bound {
                kept.push(*edge);
            } else if below.least <= bound {
                let below = self.shallow.get(&(edge.below, bound));
                let below = *below.ok_or((edge.below, bound))?;
                kept.push(Edge { below, ..*edge });
            }
        }
        kept.sort_unstable();
        kept.dedup();
        Ok(kept)
    }

    /// The sets that `roots` reach, and the roots among them by place.
    pub(crate) fn export(&self, roots: impl Iterator<Item = StackId>) -> (PortableSets, Map<StackId, u32>) {
        let mut reached: Vec<StackId> = vec![BOTTOM];
        let mut places: Map<StackId, u32> = [(BOTTOM, 0)].into_iter().collect();
        let mut todo: Vec<StackId> = roots.collect();
        while let Some(set) = todo.pop() {
            if places.insert(set, 0).is_none() {
                reached.push(set);
                todo.extend(self.edges(set).iter().map(|edge| edge.below));
            }
        }
        // Sets follow those below them.
        reached.sort_unstable();
        for (place, set) in (0..).zip(&reached) {
            places.insert(*set, place);
        }
        let placed = |edge: &Edge| Edge {
            frame: edge.frame,
            below: places[&edge.below],
        };
        let sets = reached.iter();
        let sets = sets.map(|set| self.edges(*set).iter().map(placed).collect());
        (PortableSets(sets.collect()), places)
    }

    /// The frames of the sets that `places` has.
    pub(crate) fn frames<'a>(&'a self, places: &'a Map<StackId, u32>) -> impl Iterator<Item = Frame> + 'a {
        let edges = places.keys().flat_map(|set| self.edges(*set));
        edges.map(|edge| edge.frame)
    }

    /// The numbers here of `sets`, by place; `here` is a frame with this table's numbers.
    pub(crate) fn import(&mut self, sets: &PortableSets, here: impl Fn(Frame) -> Frame) -> Vec<StackId> {
        let mut ids: Vec<StackId> = vec![BOTTOM];
        for edges in sets.0.iter().skip(1) {
            let edges = edges.iter().map(|edge| Edge {
                frame: here(edge.frame),
                below: ids[edge.below as usize],
            });
            let mut edges: Vec<Edge> = edges.collect();
            edges.sort_unstable();
            ids.push(self.of_edges(&edges));
        }
        ids
    }
}

fn ordered(a: StackId, b: StackId) -> (StackId, StackId) {
    (a.min(b), a.max(b))
}

/// Of `edges`, which are sorted, drops those of a repetition that may end where one of fewer bodies has the
/// same below.
fn drop_larger_counts(ir: &Ir, edges: &mut Vec<Edge>) {
    let free = |edge: &Edge| match edge.frame {
        Frame::Repeat { node, n } if n >= ir.min_of_repeat(node) => Some(node),
        _ => None,
    };
    let is_alone = |pair: &[Edge]| free(&pair[0]).is_none() || free(&pair[0]) != free(&pair[1]);
    if edges.windows(2).all(is_alone) {
        return;
    }
    // Counts of one repetition lie together, the smaller first.
    let mut kept: Vec<Edge> = Vec::with_capacity(edges.len());
    let (mut node, mut begin) = (None, 0);
    for edge in edges.iter() {
        if free(edge) != node {
            (node, begin) = (free(edge), kept.len());
        }
        let is_more = node.is_some() && kept[begin..].iter().any(|less| less.below == edge.below);
        if !is_more {
            kept.push(*edge);
        }
    }
    *edges = kept;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::limits::Limits;
    use crate::schema::Whitespace;
    use crate::vocabulary::Vocabulary;

    type List = BTreeSet<Vec<Frame>>;

    /// All stacks of `set`, the top first.
    fn listed(stacks: &Stacks, set: StackId) -> List {
        let of_edge = |edge: &Edge| -> Vec<Vec<Frame>> {
            if edge.frame == Frame::End {
                return vec![Vec::new()];
            }
            let below = listed(stacks, edge.below).into_iter();
            below.map(|below| [&[edge.frame], &below[..]].concat()).collect()
        };
        stacks.edges(set).iter().flat_map(of_edge).collect()
    }

    fn depth(stack: &[Frame]) -> u32 {
        stack.iter().map(|frame| frame.depth()).sum()
    }

    /// Random sets, each beside the list of its stacks.
    fn random_sets(ir: &Ir, stacks: &mut Stacks, seed: u32) -> Vec<(StackId, List)> {
        let mut random = seed;
        let mut below = |n: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) as usize % n
        };
        let mut sets = vec![(BOTTOM, listed(stacks, BOTTOM))];
        for _ in 0..60 {
            let (a, of_a) = sets[below(sets.len())].clone();
            let (b, of_b) = sets[below(sets.len())].clone();
            if below(2) == 0 && of_a.len() + of_b.len() < 300 {
                let union = stacks.union(ir, a, b);
                sets.push((union, of_a.union(&of_b).cloned().collect()));
                continue;
            }
            let frames = [
                Frame::Then(below(2) as u32),
                Frame::Seq { seq: 0, at: 1 },
                Frame::FirstItem { array: 0 },
            ];
            let frame = frames[below(frames.len())];
            let pushed = of_a.iter().map(|stack| [&[frame], &stack[..]].concat());
            sets.push((stacks.push(frame, a), pushed.collect()));
        }
        sets
    }

    fn grammar() -> Ir {
        let vocabulary = Vocabulary::new([Some(b"a".to_vec())], &[]).expect("one token");
        Ir::new(&vocabulary, &Limits::default(), Whitespace::None)
    }

    #[test]
    fn sets_hold_the_stacks_that_were_put_into_them() {
        let ir = grammar();
        for seed in 0..40 {
            let mut stacks = Stacks::new(99);
            let sets = random_sets(&ir, &mut stacks, seed);
            for (set, list) in &sets {
                assert_eq!(listed(&stacks, *set), *list, "seed {seed}");
            }
            let (portable, places) = stacks.export(sets.iter().map(|(set, _)| *set));
            let mut others = Stacks::new(99);
            let ids = others.import(&portable, |frame| frame);
            for (set, list) in &sets {
                assert_eq!(listed(&others, ids[places[set] as usize]), *list, "seed {seed}");
            }
        }
    }

    #[test]
    fn parts_by_room_are_the_stacks_that_have_it() {
        let ir = grammar();
        for (seed, max_depth) in (0..10).flat_map(|seed| [(seed, 3), (seed, 6), (seed, 12)]) {
            let mut stacks = Stacks::new(max_depth);
            for (set, list) in random_sets(&ir, &mut stacks, seed) {
                let room = |stack: &Vec<Frame>| max_depth.checked_sub(depth(stack));
                for n in 0..5 {
                    let fits = |stack: &&Vec<Frame>| room(stack).is_some_and(|room| room >= n);
                    let fitting: List = list.iter().filter(fits).cloned().collect();
                    let found = stacks.with_room(set, n);
                    let found = found.map(|part| listed(&stacks, part)).unwrap_or_default();
                    assert_eq!(found, fitting, "seed {seed}, room for {n} of {max_depth}");
                    let mut covered = List::new();
                    for (part, told) in stacks.by_room(set, n) {
                        for stack in listed(&stacks, part) {
                            let room = room(&stack).expect("too deep ones are left out");
                            assert!(room >= told || told == u32::MAX && room >= n, "seed {seed}");
                            // Each is in the part that tells all the room it has.
                            if room == told || told == u32::MAX {
                                covered.insert(stack);
                            }
                        }
                    }
                    let with_any: List = list
                        .iter()
                        .filter(|stack| room(stack).is_some())
                        .cloned()
                        .collect();
                    assert_eq!(covered, with_any, "seed {seed}, in parts by {n} of {max_depth}");
                }
            }
        }
    }
}
