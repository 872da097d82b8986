//! Objects: what all schemas together say about each declared property and about all others.
//!
//! Members without a declared name could be written twice, and then the last one counts. So where one of
//! them must be there, it is the object's last member.

use std::collections::BTreeSet;

use super::facts::{Fact, Facts, Goal, NameId, Target, Witness};
use super::names::{NameClass, Patterns};
use super::strings::accepts;
use super::{CompileError, Compiler, Dfa, Json, JsonId, NodeId};
use crate::dfa::{DEAD, Product};
use crate::ir::{Key, Object};
use crate::keys::KeyTrie;

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
}

/// The name and value of the member that must come last.
type Closing = (Dfa, Option<Goal>);

impl Compiler<'_> {
    pub(super) fn lower_object(&mut self, facts: &Facts) -> Result<NodeId, CompileError> {
        let is_witness = |fact: &&Fact| matches!(fact, Fact::Witness(_));
        let witnesses: Vec<Fact> = facts.list.iter().filter(is_witness).copied().collect();
        if witnesses.is_empty() {
            return self.object(facts, None);
        }
        let mut base = facts.clone();
        base.list.retain(|fact| !is_witness(&fact));
        let (declared, _) = self.declared(&base)?;
        let mut ways: Vec<(Facts, Option<Closing>)> = vec![(base, None)];
        for witness in witnesses {
            let Fact::Witness(witness) = witness else {
                unreachable!("only witnesses were kept");
            };
            ways = self.with_witness(witness, &declared, ways)?;
        }
        let mut nodes = Vec::new();
        for (facts, closing) in ways {
            self.spend(facts.size() as u64 * 8)?;
            nodes.push(self.object(&facts, closing.as_ref())?);
        }
        Ok(self.ir.alt(nodes))
    }

    /// Each of `ways` with `witness` as one of the declared properties, or as the last member.
    fn with_witness(
        &mut self,
        witness: Witness,
        declared: &[NameId],
        ways: Vec<(Facts, Option<Closing>)>,
    ) -> Result<Vec<(Facts, Option<Closing>)>, CompileError> {
        let (names, goal) = self.witness_names(witness)?;
        let is_possible = |name: &&NameId| accepts(&names, &self.names[**name as usize]);
        let possible: Vec<NameId> = declared.iter().filter(is_possible).copied().collect();
        let (id, keyword) = match witness {
            Witness::Pattern { at, .. } => (at.id, "patternProperties"),
            Witness::Additional { at } => (at.id, "additionalProperties"),
            Witness::Name { at } => (at.id, "propertyNames"),
            Witness::Other { value } => self.listing(value),
        };
        if ways.len() * (possible.len() + 1) > self.limits.max_branches {
            let error = CompileError::Limit {
                name: "max_branches",
                limit: self.limits.max_branches as u64,
                place: format!("the properties of {}", self.document.pointer(ways[0].0.first())),
            };
            self.excuse(error, id, keyword)?;
            return Ok(ways);
        }
        let mut longer = Vec::new();
        for (facts, closing) in ways {
            for name in &possible {
                self.spend(facts.size() as u64)?;
                longer.push((facts.with(Fact::Member(*name, goal)), closing.clone()));
            }
            if closing.is_some() {
                let why = "two properties without declared names would have to be there";
                self.excuse(self.unsupported(id, keyword, why), id, keyword)?;
                longer.push((facts, closing));
                continue;
            }
            // A closed object has a member without a declared name only where nothing else is possible.
            if possible.is_empty() || !self.is_closed(&facts) {
                longer.push((facts, Some((names.clone(), goal))));
            }
        }
        Ok(longer)
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
        for fact in &facts.list {
            match fact {
                Fact::Lacks(name) => note(*name),
                Fact::Member(name, _) => {
                    required.insert(*name);
                    note(*name);
                }
                _ => {}
            }
        }
        Ok((names, required))
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
        Ok(Shape {
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

    fn object(&mut self, facts: &Facts, closing: Option<&Closing>) -> Result<NodeId, CompileError> {
        let shape = self.shape(facts)?;
        let mut keys = Vec::new();
        for name in &shape.declared {
            keys.push(Key {
                name: self.name(*name),
                value: self.declared_value(&shape, *name)?,
                is_required: shape.required.contains(name),
            });
        }
        let n_declared = keys.iter().filter(|key| key.value != 0).count();
        let is_closed = self.is_closed(facts) && shape.min as usize <= n_declared;
        let (mut extras, mut last) = (Vec::new(), Vec::new());
        let has_others = !is_closed || closing.is_some() || !shape.patterns.automata.is_empty();
        if facts.equal.is_empty() && has_others {
            for class in self.classes(&shape, closing.is_some())? {
                let goals = self.goals_of(&shape, None, &class.is_matched);
                let value = self.rule(goals.clone());
                if value == 0 {
                    continue;
                }
                if let Some((names, goal)) = closing {
                    last.extend(self.closing_member(&class, names, *goal, goals, facts.first())?);
                }
                if !is_closed || class.is_matched.contains(&true) {
                    extras.push((self.class_node(&shape, &class), value));
                }
            }
        }
        let mut min = shape.min;
        if min as usize > n_declared + 1 && !extras.is_empty() {
            let why = "properties without a declared name may repeat, so only one of them can be counted";
            let id = self.holder(facts, "minProperties");
            self.excuse(self.unsupported(id, "minProperties", why), id, "minProperties")?;
            min = n_declared as u32 + 1;
        }
        Ok(self.ir.object(Object {
            keys,
            trie: KeyTrie::new(std::iter::empty()),
            extras,
            closing: closing.map(|_| last),
            min,
            max: shape.max,
        }))
    }

    /// The classes of names that are not declared. Where their node is known and `needs_names` is false, the
    /// names themselves are left out.
    fn classes(&mut self, shape: &Shape<'_>, needs_names: bool) -> Result<Vec<NameClass>, CompileError> {
        if shape.patterns.automata.is_empty() {
            // Spares the automaton of all names but the declared ones where none of them is allowed.
            let goals = self.goals_of(shape, None, &[]);
            if self.rule(goals) == 0 {
                return Ok(Vec::new());
            }
        }
        let at = shape.facts.first();
        let is_known = self.other_name_nodes.contains_key(&shape.declared);
        if is_known && !needs_names && shape.allowed.is_none() && shape.patterns.automata.is_empty() {
            return Ok(vec![NameClass {
                names: None,
                is_matched: Vec::new(),
            }]);
        }
        self.name_classes(&shape.declared, shape.allowed.as_ref(), &shape.patterns, at)
    }

    /// The names of `class`; where they are all but the declared ones, they are remembered.
    fn class_node(&mut self, shape: &Shape<'_>, class: &NameClass) -> NodeId {
        if shape.allowed.is_some() || !shape.patterns.automata.is_empty() {
            return self.names_node(class.names.as_ref());
        }
        if let Some(known) = self.other_name_nodes.get(&shape.declared) {
            return *known;
        }
        let node = self.names_node(class.names.as_ref());
        self.other_name_nodes.insert(shape.declared.clone(), node);
        node
    }

    fn names_node(&mut self, names: Option<&Dfa>) -> NodeId {
        let Some(names) = names else {
            return self.ir.text(self.ir.any_text.clone());
        };
        self.ir.text_of(names, 0, None)
    }

    /// The members of `class` that are called as `names` has it and satisfy `goal` as well.
    fn closing_member(
        &mut self,
        class: &NameClass,
        names: &Dfa,
        goal: Option<Goal>,
        mut goals: Vec<Goal>,
        at: JsonId,
    ) -> Result<Option<(NodeId, NodeId)>, CompileError> {
        goals.extend(goal);
        let value = self.rule(goals);
        let names = match &class.names {
            None => names.clone(),
            Some(own) => self.product(own, names, Product::Both, "the property names", at)?,
        };
        if value == 0 || names.start() == DEAD {
            return Ok(None);
        }
        Ok(Some((self.names_node(Some(&names)), value)))
    }

    /// The values of a declared property.
    fn declared_value(&mut self, shape: &Shape<'_>, name: NameId) -> Result<NodeId, CompileError> {
        if shape.facts.list.contains(&Fact::Lacks(name)) {
            return Ok(0);
        }
        let text = self.name(name);
        if shape.allowed.as_ref().is_some_and(|names| !accepts(names, &text)) {
            return Ok(0);
        }
        let mut goals = self.goals_of(shape, Some(&text), &shape.patterns.matches(&text));
        for fact in &shape.facts.list {
            if let Fact::Member(known, Some(goal)) = fact
                && *known == name
            {
                goals.push(*goal);
            }
        }
        for value in &shape.facts.equal {
            match self.document.member(*value, &text) {
                Some(value) => goals.push(Goal::Equals(value)),
                None => return Ok(0),
            }
        }
        Ok(self.rule(goals))
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
