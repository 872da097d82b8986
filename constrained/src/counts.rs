//! Counted repetitions: which counts are as good as others, so that an output that could be read with many
//! counts has few readings.

use crate::hash::Map;
use crate::ir::{Ir, Node};
use crate::step::{BOTTOM, Entry, Frame, Leaf, Reading, StackId, Stacks};

impl Stacks {
    /// A stack that goes on like `stack` for as long as no more than `n_bytes` bytes follow: counts that are
    /// further from their bounds are as good as others that are. Only the frames on top are looked at.
    pub(crate) fn alike(&mut self, ir: &Ir, stack: StackId, n_bytes: u32) -> StackId {
        const MAX_FRAMES: usize = 3;
        let mut top: [Option<Frame>; MAX_FRAMES] = [None; MAX_FRAMES];
        // Frames down to the last one that changes, and what is below that.
        let (mut n_changed, mut rest) = (0, stack);
        let mut below = stack;
        for (idx, place) in top.iter_mut().enumerate() {
            if below == BOTTOM {
                break;
            }
            let entry = self.entries[below as usize];
            let frame = match entry.frame {
                Frame::Repeat { node, n } => Frame::Repeat {
                    node,
                    n: alike_count(&ir.nodes[node as usize], n, n_bytes),
                },
                frame => frame,
            };
            if frame != entry.frame {
                (n_changed, rest) = (idx + 1, entry.below);
            }
            *place = Some(frame);
            below = entry.below;
        }
        let changed = top[..n_changed].iter().rev().flatten();
        changed.fold(rest, |stack, frame| self.push(*frame, stack))
    }

    /// Where a repetition that may end is on top of `stack`: the stack of all that differ in the count alone,
    /// and the count. A smaller one can do whatever a larger one can.
    pub(crate) fn free_count(&mut self, ir: &Ir, stack: StackId) -> Option<(StackId, u32)> {
        let Entry { frame, below, .. } = self.entries[stack as usize];
        let Frame::Repeat { node, n } = frame else {
            return None;
        };
        let Node::Repeat { min, .. } = ir.nodes[node as usize] else {
            unreachable!("the frame was made by a repetition");
        };
        (n >= min).then(|| (self.push(Frame::Repeat { node, n: min }, below), n))
    }

    /// Drops readings that can do no more than another one; they are sorted.
    pub(crate) fn drop_repeated(&mut self, ir: &Ir, readings: &mut Vec<Reading>) {
        if readings.windows(2).all(|pair| pair[0].leaf != pair[1].leaf) {
            return;
        }
        let mut least: Map<(Leaf, StackId), u32> = Map::default();
        for Reading { leaf, stack } in readings.iter() {
            if let Some((shape, n)) = self.free_count(ir, *stack) {
                least
                    .entry((*leaf, shape))
                    .and_modify(|least| *least = n.min(*least))
                    .or_insert(n);
            }
        }
        readings.retain(|Reading { leaf, stack }| {
            let counted = self.free_count(ir, *stack);
            counted.is_none_or(|(shape, n)| least[&(*leaf, shape)] == n)
        });
    }
}

/// The smallest count of the repetition `node` with which it does the same as with `n` while `n_bytes` bytes
/// follow. Each repetition takes a byte; what might not is never repeated so often.
fn alike_count(node: &Node, n: u32, n_bytes: u32) -> u32 {
    let Node::Repeat { min, max, .. } = *node else {
        unreachable!("the frame was made by a repetition");
    };
    let reached = n.saturating_add(n_bytes);
    if max.is_some_and(|max| reached >= max) {
        n
    } else if n >= min {
        min
    } else if reached < min {
        0
    } else {
        n
    }
}
