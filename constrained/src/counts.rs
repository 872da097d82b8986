//! Counted repetitions: which counts are as good as others, so that states that differ in them alone have one
//! mask.

use crate::ir::{Ir, Node};
use crate::stacks::{Edge, Frame, StackId, Stacks};

impl Stacks {
    /// Stacks that go on like `set` for as long as no more than `n_bytes` bytes follow: counts that are
    /// further from their bounds are as good as others that are. Only the frames on top are looked at.
    pub(crate) fn alike(&mut self, ir: &Ir, set: StackId, n_bytes: u32) -> StackId {
        const MAX_FRAMES: u32 = 3;
        if !ir.has_counts {
            return set;
        }
        self.alike_on_top(ir, set, n_bytes, MAX_FRAMES)
    }

    /// Recursion is as deep as `n_frames`.
    fn alike_on_top(&mut self, ir: &Ir, set: StackId, n_bytes: u32, n_frames: u32) -> StackId {
        if n_frames == 0 {
            return set;
        }
        if let Some(known) = self.alike.get(&(set, n_frames)) {
            return *known;
        }
        let edges: Vec<Edge> = self.edges(set).to_vec();
        let changed = edges.iter().map(|edge| {
            let frame = match edge.frame {
                Frame::End => return *edge,
                Frame::Repeat { node, n } => Frame::Repeat {
                    node,
                    n: alike_count(&ir.nodes[node as usize], n, n_bytes),
                },
                frame => frame,
            };
            let below = self.alike_on_top(ir, edge.below, n_bytes, n_frames - 1);
            Edge { frame, below }
        });
        let changed: Vec<Edge> = changed.collect();
        let alike = if changed == edges {
            set
        } else {
            self.joined(ir, changed)
        };
        self.alike.insert((set, n_frames), alike);
        alike
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
