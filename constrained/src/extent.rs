//! How large sets of stacks are, and how they are kept from growing without end.
//!
//! Each byte adds a few sets at most, but what is below them stays for as long as any reading may come back
//! to it: of a grammar whose rules may begin and end anywhere that is nearly all that was ever entered.
//! So a state between two tokens is looked at again when the next byte may have to look at more than
//! [`FEW_PASSED`] edges, or there are more than [`MAX_EDGES`]. First the same stacks are written anew with
//! each frame once in a set, which takes far fewer edges where many ways to read the output have come to the
//! same. Where that would itself take too long, or still leaves more than [`MAX_PASSED`] edges to look at,
//! most stacks are given up.
//!
//! What is kept are stacks of the state, of each reading at least one, so nothing leads to a dead end and
//! nothing is allowed that the grammar does not allow; an output that only the others can read is no longer.
//! Which ones are kept depends on the tokens of the output alone, never on the numbers that sets have.
//!
//! It is done between tokens only: within one, what a mask found must not be lost.

use std::hash::{Hash, Hasher};

use crate::hash::{Map, SmallSet, WordHasher};
use crate::ir::Ir;
use crate::memory::ListId;
use crate::stacks::{BOTTOM, Edge, Frame, StackId, Stacks};
use crate::step::Reading;
use crate::tables::{StateId, Tables};

/// Edges of all stacks of a state.
const MAX_EDGES: usize = 40_000;
/// Those of them that the next byte may have to look at.
const MAX_PASSED: usize = 1_024;
const FEW_PASSED: usize = 128;
/// Edges that are put together to write the stacks of a state anew, and of a state that may stay as it is.
const MAX_UNITED: usize = 16_384;
const FEW_UNITED: usize = 2_048;
/// Frames on top of the stacks of one reading, where most stacks are given up.
const MAX_TOPS: usize = 8;

impl Stacks {
    /// How much longer it takes than above few stacks to find what may come once everything above `set` is
    /// complete: what may be empty is complete too, maybe all the way down.
    pub(crate) fn cost(&mut self, ir: &Ir, set: StackId) -> usize {
        const EDGES_OF_UNIT: usize = 8;
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

    /// Whether the stacks of `readings` have more than [`MAX_EDGES`] edges, or more than `max_passed` that
    /// the next byte may have to look at.
    fn is_large(&self, ir: &Ir, readings: &[Reading], max_passed: usize) -> bool {
        let at_most = readings.iter().map(|reading| self.most_edges(reading.stack));
        if at_most.fold(0, u32::saturating_add) as usize <= max_passed {
            return false;
        }
        let sets: Vec<StackId> = readings.iter().map(|reading| reading.stack).collect();
        self.n_edges(sets.clone(), max_passed, |edge| ir.may_pass(edge.frame)) > max_passed
            || self.n_edges(sets, MAX_EDGES, |_| true) > MAX_EDGES
    }

    /// The frames of `set` that are above a text and that text's, and what is below them.
    fn below_texts(&self, set: StackId) -> (Vec<Frame>, StackId) {
        let (mut set, mut above) = (set, Vec::new());
        while self.keeps_text(set) {
            let Edge { frame, below } = self.top(set);
            above.push(frame);
            set = below;
        }
        (above, set)
    }

    /// The same stacks as those of each of `sets`, each frame once in a set; `None` where that would take
    /// more than `max_edges` edges.
    fn united(&mut self, ir: &Ir, sets: &[StackId], max_edges: usize) -> Option<Vec<StackId>> {
        let mut known: Map<Vec<StackId>, StackId> = Map::default();
        known.insert(vec![BOTTOM], BOTTOM);
        let mut met = Map::default();
        let mut todo: Vec<Vec<StackId>> = sets.iter().map(|set| vec![*set]).collect();
        let mut n_edges = 0;
        while let Some(together) = todo.last().cloned() {
            if known.contains_key(&together) {
                todo.pop();
                continue;
            }
            let mut edges: Vec<Edge> = together
                .iter()
                .flat_map(|set| self.edges(*set))
                .copied()
                .collect();
            if met.insert(together.clone(), ()).is_none() {
                n_edges += edges.len();
                if n_edges > max_edges {
                    return None;
                }
            }
            edges.sort_unstable();
            edges.dedup();
            let mut united = Vec::new();
            let n_before = todo.len();
            for alike in edges.chunk_by(|a, b| a.frame == b.frame) {
                let below: Vec<StackId> = alike.iter().map(|edge| edge.below).collect();
                match known.get(&below) {
                    Some(known) => united.push(Edge {
                        frame: alike[0].frame,
                        below: *known,
                    }),
                    None => todo.push(below),
                }
            }
            if todo.len() == n_before {
                let united = self.joined(ir, united);
                known.insert(together, united);
            }
        }
        Some(sets.iter().map(|set| known[&vec![*set]]).collect())
    }

    /// A few stacks of `set`, in which nothing keeps a text: the shallowest one with each of the frames on
    /// top, of which the first [`MAX_TOPS`] are kept.
    fn few_of(&mut self, ir: &Ir, set: StackId) -> StackId {
        let mut tops: Vec<Frame> = self.in_order(&[set]).into_iter().map(|edge| edge.frame).collect();
        let mut met = SmallSet::default();
        tops.retain(|frame| met.insert(*frame));
        tops.truncate(MAX_TOPS);
        let few: Vec<Edge> = tops
            .into_iter()
            .map(|frame| self.shallowest(set, frame))
            .collect();
        self.joined(ir, few)
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
    /// `state`, in which a token ended; a state with the same stacks in fewer sets, or with a few of them,
    /// where there are too many.
    pub(crate) fn within_bounds(&mut self, ir: &Ir, state: StateId) -> StateId {
        let readings = self.readings(state);
        let stacks = &mut self.stacks;
        if !stacks.is_large(ir, &readings, FEW_PASSED) {
            return state;
        }
        let is_too_large = stacks.is_large(ir, &readings, MAX_PASSED);
        let parts: Vec<_> = readings
            .iter()
            .map(|reading| stacks.below_texts(reading.stack))
            .collect();
        let whole: Vec<StackId> = parts.iter().map(|(_, below)| *below).collect();
        let with = |stacks: &mut Stacks, sets: &[StackId]| -> Vec<Reading> {
            let parts = readings.iter().zip(&parts).zip(sets);
            let changed = parts.map(|((reading, (above, _)), set)| {
                let push = |below, frame: &Frame| stacks.push(*frame, below);
                let stack = above.iter().rev().fold(*set, push);
                Reading { stack, ..*reading }
            });
            changed.collect()
        };
        let max_united = if is_too_large { MAX_UNITED } else { FEW_UNITED };
        let united = stacks.united(ir, &whole, max_united);
        if united.is_none() && !is_too_large {
            return state;
        }
        let mut changed = with(stacks, united.as_ref().unwrap_or(&whole));
        if stacks.is_large(ir, &changed, MAX_PASSED) {
            let few = united.unwrap_or(whole).into_iter();
            let few: Vec<StackId> = few.map(|set| stacks.few_of(ir, set)).collect();
            changed = with(stacks, &few);
        }
        self.state_of(ir, changed)
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
