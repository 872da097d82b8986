//! From the tree to nodes. Small pieces without recursion become one byte automaton each; a rule becomes a
//! node of its own only where it is reached from within itself.

use std::collections::BTreeMap;

use regex_syntax::hir::{self, Hir};

use super::{Expr, ExprId, Name, SchemaText, Tree};
use crate::dfa::Dfa;
use crate::error::{CompileError, shorten};
use crate::ir::{Ir, Node, NodeId, RuleId};
use crate::pattern::{self, Bounds};
use crate::schema::{self, Source, Values};

/// Pieces above this size, about the states of their automaton, are kept apart.
const MAX_FUSED_SIZE: usize = 192;
const MAX_FUSED_DEPTH: usize = 24;
const MAX_FUSED_STATES: usize = 512;
/// The sizes of all that is fused in one grammar; beyond it pieces stay apart, which costs while running.
const MAX_FUSED_TOTAL: usize = 8_000;

/// How large the automaton of an expression is about to be; `None` for what is kept apart.
#[derive(Clone, Copy, Debug)]
struct Size {
    size: usize,
    depth: usize,
}

struct Lowering<'t, 'a> {
    ir: &'t mut Ir,
    tree: &'t Tree<'a>,
    sizes: Vec<Option<Size>>,
    nodes: Vec<Option<NodeId>>,
    /// By expression: a body that is being lowered.
    is_open: Vec<bool>,
    rules: BTreeMap<Name, RuleId>,
    /// Literals and classes that were built.
    leaves: BTreeMap<Vec<u32>, NodeId>,
    /// Sizes of what was fused so far.
    fused: usize,
    work: u64,
}

pub(crate) fn lower(ir: &mut Ir, tree: &Tree<'_>, root: Name) -> Result<NodeId, CompileError> {
    let mut lowering = Lowering {
        ir,
        sizes: sizes(tree, root),
        tree,
        nodes: vec![None; tree.exprs.len()],
        is_open: vec![false; tree.exprs.len()],
        rules: BTreeMap::new(),
        leaves: BTreeMap::new(),
        fused: 0,
        work: tree.work,
    };
    lowering.run(tree.body(root))
}

/// Visits what `root` reaches, parts before wholes; what is reached again from within itself is passed over.
fn in_order(tree: &Tree<'_>, root: ExprId, mut visit: impl FnMut(ExprId)) {
    let mut seen = vec![false; tree.exprs.len()];
    let mut path = vec![(root, false)];
    while let Some((id, is_done)) = path.pop() {
        if is_done {
            visit(id);
            continue;
        }
        if std::mem::replace(&mut seen[id as usize], true) {
            continue;
        }
        path.push((id, true));
        let expr = &tree.exprs[id as usize];
        path.extend(expr.children().iter().map(|child| (*child, false)));
        if let Expr::Rule(name) = expr {
            path.push((tree.body(*name), false));
        }
    }
}

fn sizes(tree: &Tree<'_>, root: Name) -> Vec<Option<Size>> {
    // What was not visited before its user is a rule within itself, and has no size.
    let mut sizes: Vec<Option<Size>> = vec![None; tree.exprs.len()];
    in_order(tree, tree.body(root), |id| {
        sizes[id as usize] = size(tree, &tree.exprs[id as usize], &sizes);
    });
    sizes
}

fn size(tree: &Tree<'_>, expr: &Expr, sizes: &[Option<Size>]) -> Option<Size> {
    let of = |id: &ExprId| sizes[*id as usize];
    let whole = match expr {
        Expr::Empty => Size { size: 0, depth: 0 },
        Expr::Leaf(hir) => Size {
            size: hir_size(hir),
            depth: 1,
        },
        Expr::NonEmptyLeaf(_)
        | Expr::Automaton(_)
        | Expr::Tokens(_)
        | Expr::Json(_)
        | Expr::Marked { .. } => return None,
        Expr::Regular(..) => unreachable!("operations are resolved"),
        Expr::Rule(name) => of(&tree.body(*name))?,
        Expr::Seq(parts) | Expr::Alt(parts) => {
            let mut whole = Size { size: 1, depth: 0 };
            for part in parts {
                let part = of(part)?;
                whole.size += part.size;
                whole.depth = whole.depth.max(part.depth + 1);
            }
            whole
        }
        Expr::Repeat { body, min, max } => {
            let body = of(body)?;
            let n = max.unwrap_or(min.saturating_add(1)).max(1) as usize;
            Size {
                size: body.size.saturating_mul(n),
                depth: body.depth + 1,
            }
        }
    };
    (whole.size <= MAX_FUSED_SIZE && whole.depth <= MAX_FUSED_DEPTH).then_some(whole)
}

/// The depth of an expression's own nesting is bounded by the parser's limit.
pub(super) fn hir_size(hir: &Hir) -> usize {
    match hir.kind() {
        hir::HirKind::Empty | hir::HirKind::Look(_) => 0,
        hir::HirKind::Literal(literal) => literal.0.len(),
        hir::HirKind::Class(hir::Class::Unicode(class)) => 1 + class.ranges().len(),
        hir::HirKind::Class(hir::Class::Bytes(_)) => 1,
        hir::HirKind::Repetition(repetition) => {
            let n = repetition.max.unwrap_or(repetition.min.saturating_add(1)).max(1);
            hir_size(&repetition.sub).saturating_mul(n as usize)
        }
        hir::HirKind::Capture(capture) => hir_size(&capture.sub),
        hir::HirKind::Concat(parts) | hir::HirKind::Alternation(parts) => parts
            .iter()
            .fold(1, |sum, part| hir_size(part).saturating_add(sum)),
    }
}

/// What identifies a literal or a class.
fn key(hir: &Hir) -> Option<Vec<u32>> {
    match hir.kind() {
        hir::HirKind::Literal(literal) => Some(
            [0].into_iter()
                .chain(literal.0.iter().map(|byte| u32::from(*byte)))
                .collect(),
        ),
        hir::HirKind::Class(hir::Class::Unicode(class)) => {
            let ends = class
                .iter()
                .flat_map(|range| [u32::from(range.start()), u32::from(range.end())]);
            Some([1].into_iter().chain(ends).collect())
        }
        _ => None,
    }
}

impl Lowering<'_, '_> {
    fn run(&mut self, root: ExprId) -> Result<NodeId, CompileError> {
        let mut path = vec![(root, false)];
        while let Some((id, is_done)) = path.pop() {
            if self.nodes[id as usize].is_some() {
                continue;
            }
            let expr = &self.tree.exprs[id as usize];
            if is_done {
                self.is_open[id as usize] = false;
                self.nodes[id as usize] = Some(self.whole(id)?);
                continue;
            }
            if let Some(node) = self.automaton(id)? {
                self.nodes[id as usize] = Some(node);
                continue;
            }
            self.is_open[id as usize] = true;
            path.push((id, true));
            // The last one pushed is lowered first.
            path.extend(expr.children().iter().rev().map(|child| (*child, false)));
            if let Expr::Rule(name) = expr {
                let body = self.tree.body(*name);
                if !self.is_open[body as usize] {
                    path.push((body, false));
                }
            }
        }
        for (name, rule) in &self.rules {
            let body = self.tree.body(*name);
            let node = self.nodes[body as usize].expect("all that is reached was lowered");
            self.ir.define(*rule, node);
        }
        Ok(self.nodes[root as usize].expect("the root was lowered"))
    }

    fn spend(&mut self, work: u64, id: ExprId) -> Result<(), CompileError> {
        self.work += work;
        let max = self.tree.limits.max_compile_work;
        if self.work <= max {
            return Ok(());
        }
        Err(CompileError::Limit {
            name: "max_compile_work",
            limit: max,
            place: format!("expression {id} of the grammar"),
        })
    }

    /// One automaton for all of `id`, when it is small enough or a leaf.
    fn automaton(&mut self, id: ExprId) -> Result<Option<NodeId>, CompileError> {
        let expr = &self.tree.exprs[id as usize];
        let bounds = self.ir.bounds();
        let fused = match expr {
            Expr::Leaf(hir) => {
                let key = key(hir);
                if let Some(known) = key.as_ref().and_then(|key| self.leaves.get(key)) {
                    return Ok(Some(*known));
                }
                let dfa = match hir.kind() {
                    hir::HirKind::Literal(literal) => Ok(Dfa::of_strings([&literal.0[..]])),
                    _ => self.compiled(hir, bounds, id)?,
                };
                return match dfa {
                    Ok(dfa) => {
                        let node = self.leaf(dfa, id)?;
                        self.leaves.extend(key.map(|key| (key, node)));
                        Ok(Some(node))
                    }
                    Err(CompileError::Limit { .. }) => {
                        pattern::nodes_of(self.ir, hir, &hir.to_string()).map(Some)
                    }
                    Err(error) => Err(error),
                };
            }
            Expr::NonEmptyLeaf(hir) => {
                let dfa = self.compiled(hir, bounds, id)??;
                return self.leaf(dfa.without_empty(), id).map(Some);
            }
            Expr::Automaton(dfa) => return self.leaf((**dfa).clone(), id).map(Some),
            // However many: a tree of texts is built in one go.
            Expr::Alt(parts) if parts.iter().all(|part| self.text(*part).is_some()) => {
                let texts = parts.iter().filter_map(|part| self.text(*part));
                return self.leaf(Dfa::of_strings(texts), id).map(Some);
            }
            Expr::Seq(_) | Expr::Alt(_) | Expr::Repeat { .. } => match self.sizes[id as usize] {
                Some(Size { size, .. }) if self.fused + size < MAX_FUSED_TOTAL => {
                    self.fused += size + 1;
                    self.hir(id)
                }
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        let bounds = bounds.with_states(bounds.max_states.min(MAX_FUSED_STATES));
        match self.compiled(&fused, bounds, id)? {
            Ok(dfa) => self.leaf(dfa, id).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The automaton of `hir` within `bounds`, if it has one; the outer error is of all the work together.
    fn compiled(
        &mut self,
        hir: &Hir,
        bounds: Bounds,
        id: ExprId,
    ) -> Result<Result<Dfa, CompileError>, CompileError> {
        match pattern::compile_hir(hir, &hir.to_string(), bounds) {
            Ok(built) => {
                self.spend(built.n_work, id)?;
                Ok(Ok(built.dfa))
            }
            Err(error) => {
                self.spend(bounds.max_work(), id)?;
                Ok(Err(error))
            }
        }
    }

    /// The text of an expression that is one.
    fn text(&self, id: ExprId) -> Option<&[u8]> {
        match &self.tree.exprs[id as usize] {
            Expr::Empty => Some(&[]),
            Expr::Leaf(hir) => match hir.kind() {
                hir::HirKind::Literal(literal) => Some(&literal.0),
                _ => None,
            },
            _ => None,
        }
    }

    fn leaf(&mut self, dfa: Dfa, id: ExprId) -> Result<NodeId, CompileError> {
        self.spend((dfa.n_states() * dfa.classes().len()) as u64, id)?;
        Ok(self.ir.dfa(dfa))
    }

    /// The regular expression of a small piece; recursion is as deep as [`MAX_FUSED_DEPTH`].
    fn hir(&self, id: ExprId) -> Hir {
        match &self.tree.exprs[id as usize] {
            Expr::Empty => Hir::empty(),
            Expr::Leaf(hir) => hir.clone(),
            Expr::Rule(name) => self.hir(self.tree.body(*name)),
            Expr::Seq(parts) => Hir::concat(parts.iter().map(|part| self.hir(*part)).collect()),
            Expr::Alt(parts) => Hir::alternation(parts.iter().map(|part| self.hir(*part)).collect()),
            Expr::Repeat { body, min, max } => Hir::repetition(hir::Repetition {
                min: *min,
                max: *max,
                greedy: true,
                sub: Box::new(self.hir(*body)),
            }),
            Expr::NonEmptyLeaf(_)
            | Expr::Automaton(_)
            | Expr::Regular(..)
            | Expr::Tokens(_)
            | Expr::Json(_)
            | Expr::Marked { .. } => unreachable!("it has no size"),
        }
    }

    fn json(&mut self, schema: u32) -> Result<NodeId, CompileError> {
        let SchemaText { text, place, options } = &self.tree.schemas[schema as usize];
        let source = Source {
            text,
            place,
            values: Values::All,
        };
        schema::compile(self.ir, source, options, self.tree.limits)
    }

    /// The node of an expression whose parts are lowered.
    fn whole(&mut self, id: ExprId) -> Result<NodeId, CompileError> {
        let nodes = &self.nodes;
        let of = |id: &ExprId| nodes[*id as usize].expect("parts are lowered first");
        let node = match &self.tree.exprs[id as usize] {
            Expr::Empty => self.ir.node(Node::Empty),
            Expr::Tokens(set) => self.ir.token(set.clone()),
            Expr::Json(schema) => self.json(*schema)?,
            Expr::Marked { body, mark } => {
                let body = of(body);
                self.ir.marked(body, *mark)
            }
            Expr::Rule(name) => match nodes[self.tree.body(*name) as usize] {
                Some(node) => node,
                None => {
                    let ir = &mut *self.ir;
                    let rule = *self.rules.entry(*name).or_insert_with(|| ir.new_rule());
                    self.ir.rule(rule)
                }
            },
            Expr::Seq(parts) => {
                let empty = self.ir.node(Node::Empty);
                let parts = parts.iter().map(of).filter(|part| *part != empty).collect();
                self.ir.seq(parts)
            }
            Expr::Alt(parts) => self.ir.alt(parts.iter().map(of).collect()),
            Expr::Repeat { body, min, max } => self.ir.repeat(of(body), *min, *max),
            Expr::Leaf(_) | Expr::NonEmptyLeaf(_) | Expr::Automaton(_) | Expr::Regular(..) => {
                unreachable!("leaves are automata")
            }
        };
        let place = || match self.tree.rules.first() {
            Some(rule) => format!("the grammar that begins with `{}`", shorten(&rule.name)),
            None => "the grammar".to_owned(),
        };
        self.ir.check_size(&place())?;
        Ok(node)
    }
}
