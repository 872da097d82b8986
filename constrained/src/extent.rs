//! How large sets of stacks are, and how they are kept from growing without end.
//!
//! Each byte adds a few sets at most, but what is below them stays for as long as any reading may come back to
//! it: of a grammar whose rules may begin and end nearly anywhere that is nearly all that was ever entered. So
//! a state between two tokens whose stacks have more than [`MAX_EDGES`] edges, or of which more than
//! [`MAX_PASSED`] may be complete at once, gives most of its stacks up.
//!
//! What is kept are stacks of the state, of each reading at least one, so nothing leads to a dead end and
//! nothing is allowed that the grammar does not allow; an output that only the others can read is no longer.
//! Which ones are kept depends on the tokens of the output alone, never on the numbers that sets have.
//!
//! It is done between tokens only: within one, what a mask found must not be lost.

use std::hash::{Hash, Hasher};

use crate::hash::{SmallSet, WordHasher};
use crate::ir::Ir;
use crate::memory::ListId;
use crate::stacks::{BOTTOM, Edge, Frame, StackId, Stacks};
use crate::step::Reading;
use crate::tables::{StateId, Tables};

/// Edges of all stacks of a state.
const MAX_EDGES: usize = 40_000;
/// Those of them that the next byte may have to look at.
const MAX_PASSED: usize = 2_048;
/// Frames on top of the stacks of one reading, where most stacks are given up.
const MAX_TOPS: usize = 8;

impl Stacks {
    /// How much longer it takes than above few stacks to find what may come once everything above `set` is
    /// complete: what may be empty is complete too, maybe all the way down.
    pub(crate) fn cost(&mut self, ir: &Ir, set: StackId) -> usize {
        const EDGES_OF_UNIT: usize = 32;
        if let Some(known) = self.costs.get(&set) {
            return *known as usize;
        }
        let n_edges = self.n_edges(vec![set], usize::MAX, |edge| ir.may_pass(edge.frame));
        let cost = 1 + n_edges / EDGES_OF_UNIT;
        self.costs.insert(set, cost as u32);
        cost
    }

    /// How many edges there are from `sets` on, below those that `is_passed`; counted until there are more
    /// than `max`.
    fn n_edges(&self, sets: Vec<StackId>, max: usize, is_passed: impl Fn(&Edge) -> bool) -> usize {
        let (mut n_edges, mut met, mut todo) = (0, SmallSet::default(), sets);
        while let Some(set) = todo.pop() {
            if n_edges > max {
                break;
            }
            if met.insert(set) {
                let edges = self.edges(set);
                n_edges += edges.len();
                let passed = edges.iter().filter(|edge| is_passed(edge));
                todo.extend(passed.map(|edge| edge.below));
            }
        }
        n_edges
    }

    /// Whether the stacks of `readings` have too many edges.
    fn is_too_large(&self, ir: &Ir, readings: &[Reading]) -> bool {
        let at_most = readings.iter().map(|reading| self.most_edges(reading.stack));
        if at_most.fold(0, u32::saturating_add) as usize <= MAX_PASSED {
            return false;
        }
        let sets: Vec<StackId> = readings.iter().map(|reading| reading.stack).collect();
        self.n_edges(sets.clone(), MAX_PASSED, |edge| ir.may_pass(edge.frame)) > MAX_PASSED
            || self.n_edges(sets, MAX_EDGES, |_| true) > MAX_EDGES
    }

    /// A few stacks of `set`: below what keeps a text the shallowest one with each of the frames on top, of
    /// which the first [`MAX_TOPS`] are kept.
    fn few_of(&mut self, ir: &Ir, set: StackId) -> StackId {
        let (mut set, mut above) = (set, Vec::new());
        while self.keeps_text(set) {
            let Edge { frame, below } = self.top(set);
            above.push(frame);
            set = below;
        }
        let mut tops: Vec<Frame> = self.in_order(&[set]).into_iter().map(|edge| edge.frame).collect();
        let mut met = SmallSet::default();
        tops.retain(|frame| met.insert(*frame));
        tops.truncate(MAX_TOPS);
        let few: Vec<Edge> = tops
            .into_iter()
            .map(|frame| self.shallowest(set, frame))
            .collect();
        let few = self.joined(ir, few);
        above
            .into_iter()
            .rev()
            .fold(few, |below, frame| self.push(frame, below))
    }

    /// The shallowest stack of `set` with `top` on it; of several the one whose frames come first in order.
    fn shallowest(&mut self, set: StackId, top: Frame) -> Edge {
        let (mut frames, mut sets) = (vec![top], self.below_first(&[set], Some(top)).1);
        while sets != [BOTTOM] {
            let (frame, below) = self.below_first(&sets, None);
            frames.push(frame);
            sets = below;
        }
        let frames = frames.into_iter().skip(1).filter(|frame| *frame != Frame::End);
        let frames: Vec<Frame> = frames.collect();
        let below = frames
            .into_iter()
            .rev()
            .fold(BOTTOM, |below, frame| self.push(frame, below));
        Edge { frame: top, below }
    }

    /// Of the edges of `sets`, or those with the frame `top`, the first frame in order, and what is below it.
    fn below_first(&self, sets: &[StackId], top: Option<Frame>) -> (Frame, Vec<StackId>) {
        let mut edges = self.in_order(sets);
        edges.retain(|edge| top.is_none_or(|top| edge.frame == top));
        let first = edges.first().expect("a set has an edge");
        let (frame, depth) = (first.frame, self.least_depth(first));
        let alike = edges
            .iter()
            .filter(|edge| edge.frame == frame && self.least_depth(edge) == depth);
        let mut below: Vec<StackId> = alike.map(|edge| edge.below).collect();
        below.sort_unstable();
        below.dedup();
        (frame, below)
    }

    /// The edges of `sets`, the shallowest first and then by their frames.
    fn in_order(&self, sets: &[StackId]) -> Vec<Edge> {
        let mut edges: Vec<Edge> = sets.iter().flat_map(|set| self.edges(*set)).copied().collect();
        edges.sort_by_cached_key(|edge| (self.least_depth(edge), self.rank(edge.frame)));
        edges
    }

    /// An order of frames that does not depend on the numbers of what was written.
    fn rank(&self, frame: Frame) -> (u64, Frame) {
        let values = |list: ListId, hasher: &mut WordHasher| self.records.memory.values(list).hash(hasher);
        let mut hasher = WordHasher::default();
        match frame {
            Frame::Key { members }
            | Frame::Name { members, .. }
            | Frame::Value { members, .. }
            | Frame::Member { members } => {
                let mut members = self.records.members(members).clone();
                values(std::mem::take(&mut members.names), &mut hasher);
                members.hash(&mut hasher);
            }
            Frame::Item { items } | Frame::AfterItem { items, .. } => {
                let mut items = self.records.items(items);
                values(std::mem::take(&mut items.values), &mut hasher);
                items.hash(&mut hasher);
            }
            _ => {}
        }
        (hasher.finish(), frame)
    }
}

impl Tables {
    /// `state`, in which a token ended, or a state with a few of its stacks.
    pub(crate) fn within_bounds(&mut self, ir: &Ir, state: StateId) -> StateId {
        let readings = self.readings(state);
        if !self.stacks.is_too_large(ir, &readings) {
            return state;
        }
        let few = readings.iter().map(|reading| Reading {
            stack: self.stacks.few_of(ir, reading.stack),
            ..*reading
        });
        let few = few.collect();
        self.state_of(ir, few)
    }
}

impl Ir {
    /// Whether what is still to come of `frame` may be nothing.
    fn may_pass(&self, frame: Frame) -> bool {
        match frame {
            Frame::Then(node) => self.may_be_empty[node as usize],
            Frame::Seq { seq, at } => at >= self.empty_from[seq as usize],
            Frame::Repeat { node, n } => n >= self.min_of_repeat(node),
            Frame::Marked { .. } => true,
            _ => false,
        }
    }
}
