//! Objects: what all schemas together say about each declared property and about all others.
//!
//! A condition (a list of facts of which one must hold at least) becomes a bit: each value that a property
//! may have, its absence, and each kind of names tell which conditions they meet. So conditions on different
//! properties add up and do not multiply.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::facts::{Fact, Facts, Goal, NameId, Target};
use super::names::{NameClass, Patterns};
use super::strings::accepts;
use super::{CompileError, Compiler, Dfa, Json, JsonId, NodeId};
use crate::dfa::{DEAD, Product};
use crate::ir::{Choice, Key, Object};
use crate::keys::KeyTrie;
use crate::memory::MAX_DISTINCT;
use crate::object::{Condition, Extra};
use crate::text::any_content;

/// What one schema says about members.
struct Layer {
    target: Target,
    /// The schema of each pattern of [`Patterns`] that it mentions.
    patterns: Vec<(usize, JsonId)>,
    additional: Option<JsonId>,
    unevaluated: Option<JsonId>,
}

/// What all schemas say about members.
struct Shape<'f> {
    facts: &'f Facts,
    layers: Vec<Layer>,
    patterns: Patterns,
    /// `propertyNames`.
    allowed: Option<Dfa>,
    /// In the order in which they are written.
    declared: Vec<NameId>,
    required: BTreeSet<NameId>,
    min: u32,
    max: Option<u32>,
    conditions: Vec<Condition>,
    met: Met,
}

/// What meets conditions, each a bit.
#[derive(Default)]
struct Met {
    by_absence: BTreeMap<NameId, u32>,
    by_presence: BTreeMap<NameId, u32>,
    /// By a value that satisfies the goal.
    by_value: BTreeMap<NameId, Vec<(Goal, u32)>>,
    /// By any member with one of these names whose value satisfies the goal.
    by_name: Vec<(Dfa, Option<Goal>, u32)>,
}

/// Which members without a name of their own in a schema an object may have, beside those that patterns
/// match.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unnamed {
    None,
    /// Those that its conditions mention.
    Mentioned,
    All,
}

/// Goals that meet conditions, a bit each; without a goal every value does.
type ByValue = Vec<(Option<Goal>, u32)>;

impl Met {
    fn add_value(&mut self, name: NameId, goal: Goal, bit: u32) {
        let known = self.by_value.entry(name).or_default();
        match known.iter_mut().find(|(other, _)| *other == goal) {
            Some((_, bits)) => *bits |= bit,
            None => known.push((goal, bit)),
        }
    }
}

/// Conditions of one object.
pub(super) const MAX_CONDITIONS: usize = 12;
/// Steps to find out what may come after some members of an object; an output takes them for each member.
const MAX_WORK: u64 = 1 << 17;

impl Compiler<'_> {
    pub(super) fn lower_object(&mut self, facts: &Facts) -> Result<NodeId, CompileError> {
        let mut shape = self.shape(facts)?;
        if self.is_closed(facts) {
            for unnamed in [Unnamed::None, Unnamed::Mentioned] {
                let object = self.object(&mut shape, unnamed)?;
                if object.can_finish(&object.start(0)) {
                    return Ok(self.ir.object(object));
                }
            }
        }
        let object = self.object(&mut shape, Unnamed::All)?;
        Ok(self.ir.object(object))
    }

    fn object(&mut self, shape: &mut Shape<'_>, unnamed: Unnamed) -> Result<Object, CompileError> {
        let facts = shape.facts;
        let kept_out = match unnamed {
            Unnamed::None => self.mentioned_only(shape)?,
            Unnamed::Mentioned | Unnamed::All => BTreeSet::new(),
        };
        let mut keys = Vec::new();
        for name in &shape.declared {
            let absent = shape.met.by_absence.get(name).copied();
            let choices = match kept_out.contains(name) {
                true => Vec::new(),
                false => self.declared_choices(shape, *name)?,
            };
            keys.push(Key {
                name: self.name(*name),
                choices,
                is_required: shape.required.contains(name),
                absence_meets: absent.unwrap_or(0),
            });
        }
        let mut extras = Vec::new();
        let has_others = unnamed == Unnamed::All || !shape.patterns.automata.is_empty();
        if facts.equal.is_empty() && has_others {
            for (class, by_name) in self.classes(shape, unnamed)? {
                let goals = self.goals_of(shape, None, &class.is_matched);
                let choices = self.choices(goals, 0, &by_name, facts.first())?;
                if !choices.is_empty() {
                    extras.push(Extra {
                        names: self.class_node(shape, class),
                        choices,
                        n_names: u32::MAX,
                    });
                }
            }
        }
        let counts = |condition: &Condition| *condition != Condition::default();
        let is_counted = shape.min > 1 || shape.conditions.iter().any(counts);
        let meets = |extra: &Extra| extra.choices.iter().any(|choice| choice.meets != 0);
        let has_distinct_names = !extras.is_empty() && (is_counted || extras.iter().any(meets));
        if has_distinct_names && shape.min > MAX_DISTINCT {
            let why = format!("more than {MAX_DISTINCT} names that are not declared cannot be told apart");
            let id = self.holder(facts, "minProperties");
            self.excuse(self.unsupported(id, "minProperties", &why), id, "minProperties")?;
            shape.min = 1;
        }
        let object = Object {
            keys,
            trie: KeyTrie::new(std::iter::empty()),
            extras,
            conditions: shape.conditions.clone(),
            min: shape.min,
            max: shape.max,
            order: self.order,
            has_gaps: false,
            has_distinct_names,
        };
        let work = object.work();
        self.spend(work)?;
        if work > MAX_WORK {
            return Err(CompileError::Limit {
                name: "max_branches",
                limit: MAX_WORK,
                place: format!("the conditions on {}", self.document.pointer(facts.first())),
            });
        }
        Ok(object)
    }

    /// Names that only choices mention, and no schema names.
    fn mentioned_only(&mut self, shape: &Shape<'_>) -> Result<BTreeSet<NameId>, CompileError> {
        let mut kept_out = BTreeSet::new();
        for name in self.mentioned(shape.facts) {
            if !shape.required.contains(&name) && !self.is_named(shape.facts, name)? {
                kept_out.insert(name);
            }
        }
        Ok(kept_out)
    }

    /// The names that `facts` mention, in the schema's order, and those that must be there.
    fn declared(&mut self, facts: &Facts) -> Result<(Vec<NameId>, BTreeSet<NameId>), CompileError> {
        let (mut names, mut seen, mut required) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        let mut note = |name: NameId| {
            if seen.insert(name) {
                names.push(name);
            }
        };
        for target in &facts.plain {
            for (name, _) in self.members(target.id, "properties")? {
                note(self.name_id(name));
            }
        }
        for value in &facts.equal {
            if let Json::Object(members) = &self.document[*value] {
                for (name, _) in members {
                    let name = self.name_id(name);
                    required.insert(name);
                    note(name);
                }
            }
        }
        for target in &facts.plain {
            for name in self.required(target.id)? {
                let name = self.name_id(name);
                required.insert(name);
                note(name);
            }
        }
        self.mentioned(facts).into_iter().for_each(note);
        required.extend(facts.list.iter().filter_map(|fact| match fact {
            Fact::Member(name, _) => Some(*name),
            _ => None,
        }));
        Ok((names, required))
    }

    /// The names in what was chosen of schemas that hold or must not.
    fn mentioned(&self, facts: &Facts) -> Vec<NameId> {
        let mut names = Vec::new();
        for fact in &facts.list {
            match fact {
                Fact::AnyOf(clause) => {
                    names.extend(self.clauses[*clause as usize].iter().filter_map(Fact::name));
                }
                fact => names.extend(fact.name()),
            }
        }
        names
    }

    /// The conditions of `facts`, and what meets them.
    fn conditions(&mut self, facts: &Facts) -> Result<(Vec<Condition>, Met), CompileError> {
        let (mut conditions, mut met) = (Vec::new(), Met::default());
        for fact in &facts.list {
            let clause = match fact {
                Fact::AnyOf(clause) => self.clauses[*clause as usize].clone(),
                Fact::Witness(_) => vec![*fact],
                _ => continue,
            };
            if conditions.len() == MAX_CONDITIONS {
                return Err(CompileError::Limit {
                    name: "max_branches",
                    limit: MAX_CONDITIONS as u64,
                    place: format!("the properties of {}", self.document.pointer(facts.first())),
                });
            }
            let bit = 1 << conditions.len();
            let mut condition = Condition::default();
            for fact in clause {
                self.spend(4)?;
                match fact {
                    Fact::Lacks(name) => *met.by_absence.entry(name).or_default() |= bit,
                    Fact::Member(name, None) => *met.by_presence.entry(name).or_default() |= bit,
                    Fact::Member(name, Some(goal)) => met.add_value(name, goal, bit),
                    Fact::Value(name, goal) => {
                        *met.by_absence.entry(name).or_default() |= bit;
                        met.add_value(name, goal, bit);
                    }
                    Fact::Witness(witness) => {
                        let (names, goal) = self.witness_names(witness)?;
                        met.by_name.push((names, goal, bit));
                    }
                    Fact::MinProperties(n) => {
                        condition.at_least = condition.at_least.into_iter().chain([n]).min();
                    }
                    Fact::MaxProperties(n) => condition.at_most = condition.at_most.max(Some(n)),
                    _ => unreachable!("a condition is about an object"),
                }
            }
            conditions.push(condition);
        }
        Ok((conditions, met))
    }

    fn shape<'f>(&mut self, facts: &'f Facts) -> Result<Shape<'f>, CompileError> {
        let (mut min, mut max) = self.range(facts, "minProperties", "maxProperties")?;
        for fact in &facts.list {
            match fact {
                Fact::MinProperties(n) => min = min.max(*n),
                Fact::MaxProperties(n) => max = max.into_iter().chain([*n]).min(),
                _ => {}
            }
        }
        let (declared, required) = self.declared(facts)?;
        self.spend(2_000 + facts.plain.len() as u64 * 100)?;
        self.spend(declared.len() as u64 * (4 + facts.plain.len() as u64))?;
        let mut patterns = Patterns::default();
        let mut layers = Vec::new();
        for target in &facts.plain {
            let mut own = Vec::new();
            for (source, value) in self.members(target.id, "patternProperties")? {
                own.push((self.pattern_number(source, target.id, &mut patterns)?, *value));
            }
            layers.push(Layer {
                target: *target,
                patterns: own,
                additional: self.member(target.id, "additionalProperties"),
                unevaluated: self.unevaluated(facts, *target, "unevaluatedProperties"),
            });
        }
        self.spend(declared.len() as u64 * patterns.automata.len() as u64)?;
        let (conditions, met) = self.conditions(facts)?;
        Ok(Shape {
            conditions,
            met,
            facts,
            layers,
            patterns,
            allowed: self.allowed_names(facts)?,
            declared,
            required,
            min,
            max,
        })
    }

    /// The classes of names that are not declared, each with the goals on its values that meet conditions.
    /// Where the node of a class is known, the names themselves are left out.
    fn classes(
        &mut self,
        shape: &Shape<'_>,
        unnamed: Unnamed,
    ) -> Result<Vec<(NameClass, ByValue)>, CompileError> {
        let is_simple = shape.patterns.automata.is_empty();
        if is_simple {
            // Spares the automaton of all names but the declared ones where none of them is allowed.
            let goals = self.goals_of(shape, None, &[]);
            if self.rule(goals) == 0 {
                return Ok(Vec::new());
            }
        }
        let at = shape.facts.first();
        let is_known = self.other_name_nodes.contains_key(&shape.declared);
        if is_known && is_simple && shape.allowed.is_none() && shape.met.by_name.is_empty() {
            let class = NameClass {
                names: None,
                is_matched: Vec::new(),
            };
            return Ok(vec![(class, Vec::new())]);
        }
        let names = self.undeclared(&shape.declared, shape.allowed.as_ref(), at)?;
        let mut parted = match is_simple {
            true => {
                let is_matched = Vec::new();
                vec![(NameClass { names, is_matched }, Vec::new())]
            }
            false => self.matched_classes(shape, names, unnamed)?,
        };
        for (names, goal, bit) in &shape.met.by_name {
            parted = self.part(parted, names, (*goal, *bit), at)?;
        }
        Ok(parted)
    }

    /// The classes of `names` by the patterns that match them, those apart that have no value.
    fn matched_classes(
        &mut self,
        shape: &Shape<'_>,
        names: Option<Dfa>,
        unnamed: Unnamed,
    ) -> Result<Vec<(NameClass, ByValue)>, CompileError> {
        let mut parting = self.parted(names, &shape.patterns, shape.facts.first())?;
        let mut classes = Vec::new();
        for answer in 0..parting.answers().len() {
            let is_matched = parting.answers()[answer].clone();
            if unnamed != Unnamed::All && !is_matched.contains(&true) {
                continue;
            }
            let goals = self.goals_of(shape, None, &is_matched);
            if goals.iter().any(|goal| self.is_met_by_all(goal.negated())) {
                continue;
            }
            let names = Some(parting.part(answer));
            self.spend(1_000 + parting.n_states() as u64 * 100)?;
            classes.push((NameClass { names, is_matched }, Vec::new()));
        }
        Ok(classes)
    }

    /// `classes` parted by whether `names` has them; where it has, `meets` is added.
    fn part(
        &mut self,
        classes: Vec<(NameClass, ByValue)>,
        names: &Dfa,
        meets: (Option<Goal>, u32),
        at: JsonId,
    ) -> Result<Vec<(NameClass, ByValue)>, CompileError> {
        let mut parted = Vec::new();
        for (class, by_value) in classes {
            let all = class.names.unwrap_or_else(|| (*any_content()).clone());
            for rule in [Product::Both, Product::FirstOnly] {
                let names = self.product(&all, names, rule, "the property names", at)?;
                if names.start() == DEAD {
                    continue;
                }
                let mut by_value = by_value.clone();
                by_value.extend((rule == Product::Both).then_some(meets));
                let class = NameClass {
                    names: Some(names),
                    is_matched: class.is_matched.clone(),
                };
                parted.push((class, by_value));
            }
        }
        Ok(parted)
    }

    /// What the value of a member may be that satisfies `goals`: parted by which of `by_value` it satisfies
    /// too. `always` are conditions that each meets.
    fn choices(
        &mut self,
        goals: Vec<Goal>,
        always: u32,
        by_value: &[(Option<Goal>, u32)],
        at: JsonId,
    ) -> Result<Vec<Choice>, CompileError> {
        let mut cells = vec![(goals, always)];
        for (goal, bits) in by_value {
            let Some(goal) = goal else {
                cells.iter_mut().for_each(|(_, meets)| *meets |= bits);
                continue;
            };
            let mut parted = Vec::new();
            for (goals, meets) in cells {
                self.spend(2 + goals.len() as u64)?;
                if !self.is_any_excluded(&goals, *goal)? {
                    parted.push(([&goals[..], &[*goal]].concat(), meets | bits));
                }
                // What fails is negated, so to negate it again is always possible.
                let is_negated = matches!(goal, Goal::Fails(_) | Goal::Differs(_));
                let rest = is_negated.then(|| goal.negated());
                if let Some(rest) = rest
                    && self.is_any_excluded(&goals, rest)?
                {
                    continue;
                }
                parted.push((goals.into_iter().chain(rest).collect(), meets));
            }
            cells = parted;
            if cells.len() > self.limits.max_branches {
                return Err(CompileError::Limit {
                    name: "max_branches",
                    limit: self.limits.max_branches as u64,
                    place: format!("the properties of {}", self.document.pointer(at)),
                });
            }
        }
        let mut choices = Vec::new();
        for (goals, meets) in cells {
            let value = self.rule(goals);
            if value != 0 {
                choices.push(Choice { value, meets });
            }
        }
        Ok(choices)
    }

    /// The names of `class`; where they are all but the declared ones, they are remembered.
    fn class_node(&mut self, shape: &Shape<'_>, class: NameClass) -> NodeId {
        let is_parted = !shape.patterns.automata.is_empty() || !shape.met.by_name.is_empty();
        if shape.allowed.is_some() || is_parted {
            return self.names_node(class.names);
        }
        if let Some(known) = self.other_name_nodes.get(&shape.declared) {
            return *known;
        }
        let node = self.names_node(class.names);
        self.other_name_nodes.insert(shape.declared.clone(), node);
        node
    }

    fn names_node(&mut self, names: Option<Dfa>) -> NodeId {
        match names {
            None => self.ir.text(self.ir.any_text.clone()),
            Some(names) => self.ir.text_of(Arc::new(names), 0, None),
        }
    }

    /// What the value of a declared property may be.
    fn declared_choices(&mut self, shape: &Shape<'_>, name: NameId) -> Result<Vec<Choice>, CompileError> {
        if shape.facts.list.contains(&Fact::Lacks(name)) {
            return Ok(Vec::new());
        }
        let text = self.name(name);
        if shape.allowed.as_ref().is_some_and(|names| !accepts(names, &text)) {
            return Ok(Vec::new());
        }
        let mut goals = self.goals_of(shape, Some(&text), &shape.patterns.matches(&text));
        for fact in &shape.facts.list {
            match fact {
                Fact::Member(known, Some(goal)) | Fact::Value(known, goal) if *known == name => {
                    goals.push(*goal);
                }
                _ => {}
            }
        }
        for value in &shape.facts.equal {
            match self.document.member(*value, &text) {
                Some(value) => goals.push(Goal::Equals(value)),
                None => return Ok(Vec::new()),
            }
        }
        let always = shape.met.by_presence.get(&name).copied().unwrap_or(0);
        let by_value = shape.met.by_value.get(&name).into_iter().flatten();
        let mut by_value: ByValue = by_value.map(|(goal, bits)| (Some(*goal), *bits)).collect();
        for (names, goal, bits) in &shape.met.by_name {
            if accepts(names, &text) {
                by_value.push((*goal, *bits));
            }
        }
        self.choices(goals, always, &by_value, shape.facts.first())
    }

    /// What the schemas ask of the value of a member called `name`, `None` for no declared one, that the
    /// given patterns match.
    fn goals_of(&mut self, shape: &Shape<'_>, name: Option<&str>, is_matched: &[bool]) -> Vec<Goal> {
        let mut goals = Vec::new();
        for layer in &shape.layers {
            let own = name.and_then(|name| self.value_of_property(layer.target.id, name));
            let matched = layer.patterns.iter().filter(|(pattern, _)| is_matched[*pattern]);
            let mut values: Vec<JsonId> = own.into_iter().chain(matched.map(|(_, value)| *value)).collect();
            if values.is_empty() {
                values.extend(layer.additional);
            }
            if let Some(value) = layer.unevaluated
                && !self.is_evaluated(shape, layer.target, name, is_matched)
            {
                values.push(value);
            }
            for value in values {
                goals.push(Goal::Holds(self.within(layer.target, value)));
            }
        }
        goals
    }

    /// Whether a schema below `owner` speaks of the member, so that `unevaluatedProperties` does not.
    fn is_evaluated(
        &self,
        shape: &Shape<'_>,
        owner: Target,
        name: Option<&str>,
        is_matched: &[bool],
    ) -> bool {
        shape.facts.below(owner).any(|below| {
            let Some(layer) = shape.layers.iter().find(|layer| layer.target == below) else {
                return false;
            };
            layer.additional.is_some()
                || below != owner && layer.unevaluated.is_some()
                || layer.patterns.iter().any(|(pattern, _)| is_matched[*pattern])
                || name.is_some_and(|name| self.value_of_property(below.id, name).is_some())
        })
    }
}
