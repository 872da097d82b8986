//! What nodes begin with: which may be empty, that none begins with itself, and in which order they are
//! entered.

use crate::dfa::{ByteSet, DEAD, Dfa, bytes_of, union_of};
use crate::error::CompileError;
use crate::ir::{Ir, Node, NodeId};

/// An order of the nodes in which each precedes what it may begin with.
#[derive(Debug, Default)]
pub(crate) struct Ranks {
    /// By node.
    ranks: Box<[u32]>,
    /// By rank.
    nodes: Box<[NodeId]>,
}

impl Ranks {
    pub(crate) fn of(&self, node: NodeId) -> u32 {
        self.ranks[node as usize]
    }

    pub(crate) fn node_at(&self, rank: u32) -> NodeId {
        self.nodes[rank as usize]
    }
}

/// By node, the bytes that its texts may begin with.
#[derive(Debug)]
pub(crate) struct Firsts(Box<[ByteSet]>);

impl Firsts {
    /// Of all nodes of `ir`, which is complete.
    pub(crate) fn new(ir: &Ir) -> Self {
        let mut firsts: Vec<ByteSet> = vec![[0; 4]; ir.nodes.len()];
        // Nodes come before what they may begin with.
        for node in ir.ranks.nodes.iter().rev() {
            let own = ir.own_first_bytes(*node);
            let children = ir.left_children(*node, &ir.may_be_empty).iter();
            let bytes = children.map(|child| firsts[*child as usize]);
            firsts[*node as usize] = bytes.fold(own, union_of);
        }
        Self(firsts.into())
    }

    /// Whether a text of `node` may begin with `byte`.
    pub(crate) fn takes(&self, node: NodeId, byte: u8) -> bool {
        self.0[node as usize][usize::from(byte) / 64] >> (byte % 64) & 1 == 1
    }
}

fn first_bytes(dfa: &Dfa) -> ByteSet {
    bytes_of((0..=255u8).filter(|byte| dfa.step(dfa.start(), *byte) != DEAD))
}

impl Ir {
    /// The bytes with which `node` begins by itself; those that its parts begin with are left out.
    fn own_first_bytes(&self, node: NodeId) -> ByteSet {
        match &self.nodes[node as usize] {
            Node::Dfa(dfa) => first_bytes(&self.dfas[*dfa as usize]),
            Node::Text(_) => bytes_of(*b"\""),
            Node::Object(_) => bytes_of(*b"{"),
            Node::Array(_) => bytes_of(*b"["),
            Node::Free(free) => first_bytes(&self.dfas[self.free_texts[*free as usize].dfa as usize]),
            _ => [0; 4],
        }
    }

    /// The most frames that are pushed at once, before a byte is taken.
    pub(crate) fn most_frames(&self) -> u32 {
        let mut n_frames = vec![0u32; self.nodes.len()];
        // Nodes come before what they may begin with.
        for node in self.ranks.nodes.iter().rev() {
            let pushes = matches!(self.nodes[*node as usize], Node::Seq(_) | Node::Repeat { .. });
            let children = self.left_children(*node, &self.may_be_empty).iter();
            let most = children.map(|child| n_frames[*child as usize]).max();
            n_frames[*node as usize] = u32::from(pushes) + most.unwrap_or(0);
        }
        n_frames.into_iter().max().unwrap_or(0)
    }

    /// Makes sure that an output's next byte is found in finitely many ways, no more than `max_ways` from one
    /// place.
    pub(crate) fn check_beginnings(&mut self, max_ways: usize) -> Result<Ranks, CompileError> {
        let is_empty = self.nullable();
        self.check_repeats(&is_empty)?;
        let ranks = self.ranks(&is_empty)?;
        self.check_ways(&ranks, &is_empty, max_ways)?;
        let empty_from = |node: &Node| match node {
            Node::Seq(parts) => {
                let n_empty = parts
                    .iter()
                    .rev()
                    .take_while(|part| is_empty[**part as usize])
                    .count();
                (parts.len() - n_empty) as u32
            }
            _ => 0,
        };
        self.empty_from = self.nodes.iter().map(empty_from).collect();
        self.may_be_empty = is_empty;
        Ok(ranks)
    }

    /// By node, whether the empty text is one of its texts.
    fn nullable(&self) -> Vec<bool> {
        let mut known = vec![false; self.nodes.len()];
        loop {
            let mut changed = false;
            // Parts mostly precede their wholes in the array: one round does nearly all.
            for (id, node) in self.nodes.iter().enumerate() {
                if !known[id] && self.is_nullable(node, &known) {
                    known[id] = true;
                    changed = true;
                }
            }
            if !changed {
                return known;
            }
        }
    }

    fn is_nullable(&self, node: &Node, known: &[bool]) -> bool {
        let is = |id: &NodeId| known[*id as usize];
        match node {
            Node::Never | Node::Text(_) | Node::Object(_) | Node::Array(_) | Node::Token(_) => false,
            Node::Empty => true,
            Node::Dfa(dfa) => {
                let dfa = &self.dfas[*dfa as usize];
                dfa.is_accepting(dfa.start())
            }
            Node::Free(free) => self.free_texts[*free as usize].is_nullable(),
            Node::Seq(parts) => parts.iter().all(is),
            Node::Alt(parts) => parts.iter().any(is),
            Node::Repeat { body, min, .. } => *min == 0 || is(body),
            Node::Rule(rule) => is(&self.rules[*rule as usize]),
            Node::Marked { body, .. } => is(body),
        }
    }

    /// A counted repetition of something that may be empty would have to count nothing many times over.
    fn check_repeats(&mut self, is_empty: &[bool]) -> Result<(), CompileError> {
        const MAX_EMPTY_REPEATS: u32 = 64;
        for node in &mut self.nodes {
            let Node::Repeat { body, min, max } = node else {
                continue;
            };
            if !is_empty[*body as usize] {
                continue;
            }
            *min = 0;
            if max.is_some_and(|max| max > MAX_EMPTY_REPEATS) {
                return Err(CompileError::Unsupported {
                    pointer: "#".to_owned(),
                    keyword: "repetition".to_owned(),
                    why: format!(
                        "something that may be empty is repeated more than {MAX_EMPTY_REPEATS} times, counted"
                    ),
                });
            }
        }
        Ok(())
    }

    /// What a node may begin with, without a byte in between.
    fn left_children(&self, node: NodeId, is_empty: &[bool]) -> &[NodeId] {
        match &self.nodes[node as usize] {
            Node::Seq(parts) => {
                let n_empty = parts.iter().take_while(|part| is_empty[**part as usize]).count();
                &parts[..parts.len().min(n_empty + 1)]
            }
            Node::Alt(parts) => parts,
            Node::Repeat { body, .. } | Node::Marked { body, .. } => std::slice::from_ref(body),
            Node::Rule(rule) => std::slice::from_ref(&self.rules[*rule as usize]),
            _ => &[],
        }
    }

    fn ranks(&self, is_empty: &[bool]) -> Result<Ranks, CompileError> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let n = self.nodes.len();
        let (mut marks, mut done, mut path) = (vec![Mark::New; n], Vec::with_capacity(n), Vec::new());
        for root in 0..n as NodeId {
            path.push((root, false));
            while let Some((node, is_exit)) = path.pop() {
                let mark = &mut marks[node as usize];
                if is_exit {
                    *mark = Mark::Done;
                    done.push(node);
                    continue;
                }
                match *mark {
                    Mark::Done => continue,
                    Mark::Open => {
                        return Err(CompileError::Unsupported {
                            pointer: "#".to_owned(),
                            keyword: "recursion".to_owned(),
                            why: "something begins with itself".to_owned(),
                        });
                    }
                    Mark::New => *mark = Mark::Open,
                }
                path.push((node, true));
                // A node met again while open is its own ancestor; one merely waiting is not marked yet.
                path.extend(
                    self.left_children(node, is_empty)
                        .iter()
                        .map(|child| (*child, false)),
                );
            }
        }
        done.reverse();
        let mut ranks = vec![0; n];
        for (rank, node) in (0..).zip(&done) {
            ranks[*node as usize] = rank;
        }
        Ok(Ranks {
            ranks: ranks.into(),
            nodes: done.into(),
        })
    }

    /// Ways to begin are counted without a look at which of them are the same.
    fn check_ways(&self, ranks: &Ranks, is_empty: &[bool], max_ways: usize) -> Result<(), CompileError> {
        let mut ways = vec![0usize; self.nodes.len()];
        for node in ranks.nodes.iter().rev() {
            let children = self.left_children(*node, is_empty);
            let of_children = children.iter().map(|child| ways[*child as usize]);
            let sum = of_children.fold(0, usize::saturating_add);
            ways[*node as usize] = if children.is_empty() { 1 } else { sum };
        }
        if ways.iter().all(|n| *n <= max_ways) {
            return Ok(());
        }
        let is_over = |(_, node): &&(String, NodeId)| ways[*node as usize] > max_ways;
        let rule = self.rule_names.iter().find(is_over);
        let rule = rule.map_or("one place of the grammar".to_owned(), |(name, _)| {
            format!("the rule `{name}`")
        });
        Err(CompileError::Limit {
            name: "max_readings",
            limit: max_ways as u64,
            place: format!("{rule}, which may begin in more ways"),
        })
    }
}
