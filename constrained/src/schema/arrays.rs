//! Arrays: what all schemas together say about each item, and counts of items that satisfy something.

use super::dialect::Dialect;
use super::facts::{Counted, Fact, Facts, Goal, Target};
use super::keywords::{ALL, type_of};
use super::{CompileError, Compiler, Json, JsonId, NodeId};
use crate::array::{Counter, Uniqueness, Variant};
use crate::error::within;
use crate::ir::Array;

/// What one schema or fact says about items.
struct Layer {
    prefix: Vec<Option<Goal>>,
    rest: Option<Goal>,
    /// Of `unevaluatedItems`: items with one of these counts are none of its business.
    unless: u32,
}

#[derive(Default)]
struct Shape {
    layers: Vec<Layer>,
    counted: Vec<Counted>,
    min: u32,
    max: Option<u32>,
    /// The schema with `uniqueItems`.
    unique: Option<JsonId>,
}

/// Different things counted in one array.
const MAX_COUNTED: usize = 4;
/// Values that items are distinct ones of.
const MAX_DISTINCT: usize = 32;
/// First items that have a constraint of their own.
const MAX_PREFIX: usize = 4_096;

impl Shape {
    fn n_prefix(&self) -> usize {
        let prefixes = self.layers.iter().map(|layer| layer.prefix.len());
        let froms = self.counted.iter().map(|counted| counted.from as usize);
        prefixes.chain(froms).max().unwrap_or(0)
    }

    /// What holds of item `at`, when it is counted by `counts`.
    fn goals(&self, at: usize, counts: u32) -> Vec<Goal> {
        let layers = self.layers.iter().filter(|layer| layer.unless & counts == 0);
        let mut goals: Vec<Goal> = layers
            .filter_map(|layer| match layer.prefix.get(at) {
                Some(goal) => *goal,
                None => layer.rest,
            })
            .collect();
        for (i, counted) in self.counted.iter().enumerate() {
            if counts >> i & 1 == 1 {
                goals.push(counted.goal);
            } else if counted.max.is_some() && at >= counted.from as usize {
                goals.push(counted.goal.negated());
            }
        }
        goals
    }

    /// The sets of counts that item `at` can have.
    fn sets(&self, at: usize) -> impl Iterator<Item = u32> {
        (0..1u32 << self.counted.len()).filter(move |set| {
            let can = |(i, counted): (usize, &Counted)| {
                set >> i & 1 == 0 || at >= counted.from as usize && counted.max != Some(0)
            };
            self.counted.iter().enumerate().all(can)
        })
    }
}

impl Compiler<'_> {
    pub(super) fn lower_array(&mut self, facts: &Facts) -> Result<NodeId, CompileError> {
        let shape = self.array_shape(facts)?;
        let n_prefix = shape.n_prefix();
        if n_prefix > MAX_PREFIX || shape.counted.len() > MAX_COUNTED {
            let (name, limit) = if n_prefix > MAX_PREFIX {
                ("max_nodes", MAX_PREFIX)
            } else {
                ("max_branches", MAX_COUNTED)
            };
            return Err(CompileError::Limit {
                name,
                limit: limit as u64,
                place: format!("the items of {}", self.document.pointer(facts.first())),
            });
        }
        let n_items = (n_prefix as u64 + 1) << shape.counted.len();
        self.spend(n_items * (shape.layers.len() as u64 + 1))?;
        let unique = shape.unique.filter(|_| shape.max.is_none_or(|max| max > 1));
        if unique.is_some()
            && let Some(distinct) = self.distinct(&shape)?
        {
            return Ok(self.ir.array(Array::of_distinct(distinct, shape.min, shape.max)));
        }
        let prefix = (0..n_prefix).map(|at| self.variants(&shape, at)).collect();
        let rest = self.variants(&shape, n_prefix);
        let counters = shape.counted.iter().map(|counted| Counter {
            min: counted.min,
            max: counted.max,
        });
        let array = Array::counted(prefix, rest, (shape.min, shape.max), counters.collect());
        let array = array.map_err(|limit| CompileError::Limit {
            name: "max_nodes",
            limit,
            place: format!("counted items of {}", self.document.pointer(facts.first())),
        })?;
        self.spend(array.work())?;
        let array = match unique {
            Some(id) if !self.are_items_disjoint(&shape)? => {
                let pointer = within(self.source.place, self.document.pointer(id));
                array.with_unique_items(Uniqueness {
                    pointer,
                    enforcement: self.enforcement,
                })
            }
            _ => array,
        };
        Ok(self.ir.array(array))
    }

    fn variants(&mut self, shape: &Shape, at: usize) -> Vec<Variant> {
        let sets: Vec<u32> = shape.sets(at).collect();
        let mut variants = Vec::new();
        for counts in sets {
            let item = self.rule(shape.goals(at, counts));
            if item != 0 {
                variants.push(Variant { item, counts });
            }
        }
        variants
    }

    fn array_shape(&mut self, facts: &Facts) -> Result<Shape, CompileError> {
        let (min, max) = self.range(facts, "minItems", "maxItems")?;
        let mut shape = Shape {
            min,
            max,
            ..Shape::default()
        };
        for fact in &facts.list {
            match fact {
                Fact::MinItems(n) => shape.min = shape.min.max(*n),
                Fact::MaxItems(n) => shape.max = shape.max.into_iter().chain([*n]).min(),
                Fact::ItemAt(at, goal) => {
                    shape.min = shape.min.max(at + 1);
                    let mut prefix = vec![None; *at as usize];
                    prefix.push(Some(*goal));
                    shape.layers.push(Layer {
                        prefix,
                        rest: None,
                        unless: 0,
                    });
                }
                Fact::Counted(counted) => self.count_items(facts, *counted, &mut shape),
                _ => {}
            }
        }
        for target in &facts.plain {
            self.plain_items(*target, &mut shape)?;
        }
        for target in &facts.plain {
            if let Some(value) = self.unevaluated(facts, *target, "unevaluatedItems") {
                let goal = Goal::Holds(self.within(*target, value));
                self.unevaluated_items(facts, *target, goal, &mut shape)?;
            }
        }
        for value in &facts.equal {
            if let Json::Array(items) = &self.document[*value] {
                let n = items.len() as u32;
                shape.min = shape.min.max(n);
                shape.max = shape.max.into_iter().chain([n]).min();
                shape.layers.push(Layer {
                    prefix: items.iter().map(|item| Some(Goal::Equals(*item))).collect(),
                    rest: None,
                    unless: 0,
                });
            }
        }
        Ok(shape)
    }

    /// Without bounds a count matters only to `unevaluatedItems`.
    fn count_items(&self, facts: &Facts, counted: Counted, shape: &mut Shape) {
        let observes = |(above, below): &(Target, Target)| {
            Some(*below) == counted.owner && self.has(above.id, "unevaluatedItems")
        };
        if counted.min > 0 || counted.max.is_some() || facts.evaluated.iter().any(observes) {
            shape.counted.push(counted);
        }
    }

    fn plain_items(&mut self, target: Target, shape: &mut Shape) -> Result<(), CompileError> {
        let items = self.items(target.id)?;
        if self.is_unique(target.id)? {
            shape.unique = Some(target.id);
        }
        if items.prefix.is_empty() && items.rest.is_none() {
            return Ok(());
        }
        let goal = |compiler: &mut Self, id: &JsonId| Some(Goal::Holds(compiler.within(target, *id)));
        let prefix = items.prefix.iter().map(|id| goal(self, id)).collect();
        shape.layers.push(Layer {
            prefix,
            rest: items.rest.and_then(|id| goal(self, &id)),
            unless: 0,
        });
        Ok(())
    }

    /// `goal` for the items that no schema below `owner` speaks of.
    fn unevaluated_items(
        &mut self,
        facts: &Facts,
        owner: Target,
        goal: Goal,
        shape: &mut Shape,
    ) -> Result<(), CompileError> {
        let (mut n_evaluated, mut unless) = (0, 0);
        for below in facts.below(owner) {
            if !facts.plain.contains(&below) {
                continue;
            }
            let items = self.items(below.id)?;
            if items.rest.is_some() || below != owner && self.has(below.id, "unevaluatedItems") {
                return Ok(());
            }
            n_evaluated = n_evaluated.max(items.prefix.len());
            for (i, counted) in shape.counted.iter().enumerate() {
                // Up to 2019-09 `contains` evaluates nothing.
                if counted.owner == Some(below) && self.dialect(below.id) == Dialect::Draft2020 {
                    unless |= 1 << i;
                }
            }
        }
        shape.layers.push(Layer {
            prefix: vec![None; n_evaluated],
            rest: Some(goal),
            unless,
        });
        Ok(())
    }

    /// The values that the items are distinct ones of, when they are few and all items are alike.
    fn distinct(&mut self, shape: &Shape) -> Result<Option<Vec<NodeId>>, CompileError> {
        if shape.n_prefix() > 0 || !shape.counted.is_empty() {
            return Ok(None);
        }
        let mut found: Vec<(JsonId, Vec<NodeId>)> = Vec::new();
        for facts in self.alternatives(&shape.goals(0, 0), ALL)? {
            let Some(values) = self.values_of(&facts)? else {
                return Ok(None);
            };
            let merged = self.merge(&facts)?;
            for value in values {
                self.spend(found.len() as u64 + 8)?;
                let node = self.lower_values(&[value], &facts, &merged)?;
                if node == 0 {
                    continue;
                }
                match found
                    .iter_mut()
                    .find(|(known, _)| self.document.is_equal(*known, value))
                {
                    Some((_, nodes)) => nodes.push(node),
                    None => found.push((value, vec![node])),
                }
                if found.len() > MAX_DISTINCT {
                    return Ok(None);
                }
            }
        }
        let nodes = found.into_iter().map(|(_, nodes)| self.ir.alt(nodes));
        let nodes: Vec<NodeId> = nodes.collect();
        Ok((!nodes.is_empty()).then_some(nodes))
    }

    /// Whether no two items can be the same: one place each, of different types or different values.
    fn are_items_disjoint(&mut self, shape: &Shape) -> Result<bool, CompileError> {
        const MAX_PLACES: usize = 32;
        let n_prefix = shape.n_prefix();
        if n_prefix > MAX_PLACES || !shape.counted.is_empty() {
            return Ok(false);
        }
        let is_closed = self.rule(shape.goals(n_prefix, 0)) == 0;
        let n_most = shape.max.map_or(usize::MAX, |max| max as usize);
        if !is_closed && n_most > n_prefix {
            return Ok(false);
        }
        let mut places: Vec<(u8, Option<Vec<JsonId>>)> = Vec::new();
        for at in 0..n_prefix.min(n_most) {
            let (mut types, mut values) = (0, Some(Vec::new()));
            for facts in self.alternatives(&shape.goals(at, 0), ALL)? {
                types |= facts.types;
                match (self.values_of(&facts)?, &mut values) {
                    (Some(listed), Some(all)) => all.extend(listed),
                    _ => values = None,
                }
            }
            places.push((types, values));
        }
        for (i, (types, values)) in places.iter().enumerate() {
            for (other_types, others) in &places[i + 1..] {
                let (Some(values), Some(others)) = (values, others) else {
                    if types & other_types == 0 {
                        continue;
                    }
                    return Ok(false);
                };
                self.spend(values.len() as u64 * others.len() as u64)?;
                let document = self.document;
                let is_shared = |a: &JsonId| {
                    let is_same = |b: &JsonId| {
                        type_of(&document[*a]) == type_of(&document[*b]) && document.is_equal(*a, *b)
                    };
                    others.iter().any(is_same)
                };
                if values.iter().any(is_shared) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
