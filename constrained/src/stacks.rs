//! What is still to come, as sets of stacks.
//!
//! Readings of an output that stand at the same place of the same leaf differ only in what is still to come.
//! They are kept as one reading with a set of stacks: a node of a graph (a graph-structured stack, as in
//! generalised LL parsing), whose edges are the frames that may be on top, each with the set of what may be
//! below it. So an output that can be read in exponentially many ways has no more readings than the grammar
//! has places, and sets that many stacks share are kept once. As in an Earley chart there is one set for all
//! that a part of the grammar was entered above after one byte, so that each byte adds no more sets than the
//! grammar has parts.
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
use crate::hash::{Map, SmallSet};
use crate::ir::{Ir, NodeId};
use crate::memory::{NONE, TextId};
use crate::object::AMPLE;
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
    /// The depth of its shallowest stack.
    least: u32,
    /// Its edges and those below it, counted once for each way to them.
    most_edges: u32,
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
    pub(crate) max_depth: u32,
    /// By set: what may come once everything above is complete.
    pub(crate) continuations: Vec<Option<Arc<[Reading]>>>,
    /// By array and depth that is left: the same array of items that are no deeper.
    pub(crate) shallow_arrays: Map<(u32, u32), Arc<Array>>,
    pub(crate) records: Records,
    pub(crate) alike: Map<(StackId, u32), StackId>,
    /// By set, what its completion costs.
    pub(crate) costs: Map<StackId, u32>,
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
            most_edges: 1,
            keeps_text: false,
            is_marked: false,
        };
        Self {
            edges: vec![end],
            sets: vec![bottom],
            single: [(end, BOTTOM)].into_iter().collect(),
            several: Map::default(),
            unions: Map::default(),
            max_depth,
            continuations: vec![None],
            shallow_arrays: Map::default(),
            records: Records::new(),
            alike: Map::default(),
            costs: Map::default(),
            scratch: Scratch::default(),
        }
    }

    pub(crate) fn n_bytes(&self) -> usize {
        /// A set's entries here and in the table that finds it.
        const SET_BYTES: usize = 80;
        let n_pairs = self.unions.len() + self.alike.len() + self.costs.len();
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
        self.edges(set)
            .iter()
            .map(|edge| (edge.frame, self.least_depth(edge)))
    }

    /// The depth of the shallowest stack with `edge` on top.
    pub(crate) fn least_depth(&self, edge: &Edge) -> u32 {
        self.sets[edge.below as usize].least + edge.frame.depth()
    }

    /// Edges that `set` reaches, or more.
    pub(crate) fn most_edges(&self, set: StackId) -> u32 {
        self.sets[set as usize].most_edges
    }

    /// Whether a frame of the stacks of `set`, of which there is one then, keeps a text.
    pub(crate) fn keeps_text(&self, set: StackId) -> bool {
        self.sets[set as usize].keeps_text
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
        let mut below: Vec<StackId> = edges.iter().map(|edge| edge.below).collect();
        below.sort_unstable();
        below.dedup();
        let n_below = below.iter().map(|set| self.most_edges(*set));
        let set = Set {
            begin: self.edges.len() as u32,
            end: (self.edges.len() + edges.len()) as u32,
            least: edges
                .iter()
                .map(|edge| self.least_depth(edge))
                .min()
                .expect("a set has an edge"),
            most_edges: n_below.fold(edges.len() as u32, u32::saturating_add),
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
        if a == b {
            return a;
        }
        let pair = (a.min(b), a.max(b));
        if let Some(known) = self.unions.get(&pair) {
            return *known;
        }
        let union = self.joined(ir, [self.edges(a), self.edges(b)].concat());
        self.unions.insert(pair, union);
        union
    }

    /// The stacks of all `sets`, of which there is one.
    pub(crate) fn union_of(&mut self, ir: &Ir, mut sets: Vec<StackId>) -> StackId {
        sets.sort_unstable();
        sets.dedup();
        match sets[..] {
            [one] => one,
            [one, other] => self.union(ir, one, other),
            _ => {
                let edges = sets.iter().flat_map(|set| self.edges(*set)).copied().collect();
                self.joined(ir, edges)
            }
        }
    }

    /// The stacks of `edges`, in any order.
    ///
    /// Equal frames stay side by side, each above its own set: what may be below them was put together once,
    /// when it was entered, and united once more there would be a set for each of the many ways to choose
    /// from what was entered so far.
    pub(crate) fn joined(&mut self, ir: &Ir, mut edges: Vec<Edge>) -> StackId {
        edges.sort_unstable();
        edges.dedup();
        drop_larger_counts(ir, &mut edges);
        self.of_edges(&edges)
    }

    /// How much deeper the shallowest stack of `set` may become, [`AMPLE`] where that is `n` or more; `None`
    /// where it is too deep already.
    ///
    /// A set has the room of its shallowest stack: that one can always be completed, and to tell the others
    /// apart would take a set for each depth.
    pub(crate) fn room(&self, set: StackId, n: u32) -> Option<u32> {
        let room = self.max_depth.checked_sub(self.sets[set as usize].least)?;
        Some(if room >= n { AMPLE } else { room })
    }

    /// Whether `n` more fit above the shallowest stack of `set`.
    pub(crate) fn has_room(&self, set: StackId, n: u32) -> bool {
        self.room(set, n) == Some(AMPLE)
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

/// Of `edges`, which are sorted, drops those of a repetition that may end where one of fewer bodies has the
/// same below: it can do with a smaller count whatever it can with a larger one.
fn drop_larger_counts(ir: &Ir, edges: &mut Vec<Edge>) {
    let free = |edge: &Edge| match edge.frame {
        Frame::Repeat { node, n } if n >= ir.min_of_repeat(node) => Some(node),
        _ => None,
    };
    let is_alone = |pair: &[Edge]| free(&pair[0]).is_none() || free(&pair[0]) != free(&pair[1]);
    if edges.windows(2).all(is_alone) {
        return;
    }
    // Of one repetition the smaller counts come first.
    let mut counted = SmallSet::default();
    edges.retain(|edge| free(edge).is_none_or(|node| counted.insert((node, edge.below))));
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
    fn a_set_has_the_room_of_its_shallowest_stack() {
        let ir = grammar();
        for (seed, max_depth) in (0..10).flat_map(|seed| [(seed, 3), (seed, 6), (seed, 12)]) {
            let mut stacks = Stacks::new(max_depth);
            for (set, list) in random_sets(&ir, &mut stacks, seed) {
                let least = list.iter().map(|stack| depth(stack)).min();
                let expected = max_depth.checked_sub(least.expect("no set is empty"));
                for n in 0..5 {
                    let found = stacks.room(set, n);
                    let exact = found.filter(|room| *room != AMPLE);
                    let what = format!("seed {seed}, room for {n} of {max_depth}");
                    assert_eq!(stacks.has_room(set, n), expected >= Some(n), "{what}");
                    assert_eq!(found.is_some(), expected.is_some(), "{what}");
                    assert!(exact.is_none() || exact == expected && exact < Some(n), "{what}");
                }
            }
        }
    }
}
