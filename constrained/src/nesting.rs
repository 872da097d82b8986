//! How deep an output nests where it nests as little as it can.
//!
//! An output may be no deeper than a limit, and nothing may be begun that could not be completed within it.
//! So of each node the least depth is known that completes it; a node is entered only where that is left.

use crate::dfa::DEAD;
use crate::ir::{Ir, Node, NodeId};

/// The need of what cannot be completed at all.
pub(crate) const NEVER: u32 = u32::MAX;

/// Of objects and arrays: the depth in which none of their members or items is out of reach.
#[derive(Debug, Default)]
pub(crate) struct NeedsWithin {
    objects: Box<[u32]>,
    arrays: Box<[u32]>,
}

impl NeedsWithin {
    pub(crate) fn object(&self, object: u32) -> u32 {
        self.objects[object as usize]
    }

    pub(crate) fn array(&self, array: u32) -> u32 {
        self.arrays[array as usize]
    }

    /// Of the containers of `ir`, whose members and items that cannot be completed are gone.
    pub(crate) fn new(ir: &Ir) -> Self {
        let deepest = |values: &mut dyn Iterator<Item = NodeId>| {
            let needs = values.map(|value| ir.needs[value as usize]);
            1 + needs.max().unwrap_or(0)
        };
        let objects = ir.objects.iter().map(|object| deepest(&mut object.values()));
        let arrays = ir.arrays.iter().map(|array| deepest(&mut array.all_items()));
        Self {
            objects: objects.collect(),
            arrays: arrays.collect(),
        }
    }
}

impl Ir {
    /// By node, how many frames the shallowest output of it has on top of each other; [`NEVER`] without one.
    /// Of the first nodes it is `known`.
    pub(crate) fn least_depths(&self, known: Vec<u32>) -> Vec<u32> {
        let (n_known, mut needs) = (known.len(), known);
        needs.resize(self.nodes.len(), NEVER);
        loop {
            let mut changed = false;
            // Parts mostly precede their wholes in the array: few rounds find all.
            for (id, node) in self.nodes.iter().enumerate().skip(n_known) {
                if needs[id] == 0 {
                    continue;
                }
                let need = self.least_depth(node, &needs);
                changed |= need != needs[id];
                needs[id] = need;
            }
            if !changed {
                return needs;
            }
        }
    }

    fn least_depth(&self, node: &Node, needs: &[u32]) -> u32 {
        let of = |id: &NodeId| needs[*id as usize];
        let when = |is_possible: bool| if is_possible { 0 } else { NEVER };
        match node {
            Node::Never => NEVER,
            Node::Empty | Node::Token(_) => 0,
            Node::Dfa(dfa) => when(self.dfas[*dfa as usize].start() != DEAD),
            Node::Text(text) => when(self.texts[*text as usize].is_satisfiable()),
            Node::Seq(parts) => {
                let (last, first) = parts.split_last().expect("a sequence has parts");
                let first = first.iter().map(|part| of(part).saturating_add(1));
                first.max().unwrap_or(0).max(of(last))
            }
            Node::Alt(parts) => parts.iter().map(of).min().unwrap_or(NEVER),
            Node::Repeat { min: 0, .. } => 0,
            Node::Repeat { body, .. } => of(body).saturating_add(1),
            Node::Rule(rule) => of(&self.rules[*rule as usize]),
            Node::Marked { body, .. } => of(body),
            Node::Object(_) if !self.punctuation.of_objects().iter().all(|mark| of(mark) == 0) => NEVER,
            Node::Object(object) => {
                let object = &self.objects[*object as usize];
                least_bound(object.values().map(|value| of(&value)), |bound| {
                    object.produces(|id| of(&id) <= bound)
                })
            }
            Node::Array(_) if !self.punctuation.of_arrays().iter().all(|mark| of(mark) == 0) => NEVER,
            Node::Array(array) => {
                let array = &self.arrays[*array as usize];
                least_bound(array.all_items().map(|item| of(&item)), |bound| {
                    array.produces(|item| of(&item) <= bound)
                })
            }
            Node::Free(free) => {
                let free = &self.free_texts[*free as usize];
                if free.is_nullable() {
                    return 0;
                }
                free.nodes_after().map(|node| of(&node)).min().unwrap_or(NEVER)
            }
        }
    }
}

/// One more than the least of zero and `needs` with which `is_enough`.
fn least_bound(needs: impl Iterator<Item = u32>, is_enough: impl Fn(u32) -> bool) -> u32 {
    if is_enough(0) {
        return 1;
    }
    let mut bounds: Vec<u32> = needs.filter(|need| (1..NEVER).contains(need)).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let bound = bounds.into_iter().find(|bound| is_enough(*bound));
    bound.map_or(NEVER, |bound| bound + 1)
}
