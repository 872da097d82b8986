//! JSON Schema to the grammar form.
//!
//! A set of goals that must all be met becomes one rule; sets are remembered, so recursion ends. A goal is a
//! schema that holds or fails. Within a set the goals are taken apart into facts (`alternatives.rs`, and
//! `negation.rs` for schemas that fail); what can be met in several ways multiplies into alternatives, and
//! the facts of one alternative are merged per JSON type (`lower.rs`, `arrays.rs`, `objects.rs`).
//!
//! Everything is exact or stricter, never looser: what cannot be enforced is refused by place and keyword,
//! or, when that is asked for, left out by them (`relax.rs`). Keywords that the specification does not know
//! are annotations and assert nothing.

mod alternatives;
mod arrays;
mod choices;
mod closed;
mod dialect;
mod disjoint;
mod facts;
mod format;
mod judge;
mod keywords;
mod lists;
mod lower;
mod names;
mod negation;
mod objects;
mod regex_format;
mod relax;
mod resources;
mod strings;
mod uri;
mod values;
mod view;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use self::alternatives::Branch;
use self::dialect::Dialect;
use self::facts::{ClauseId, Fact, Goal, NameId, ScopeId, Target};
use self::keywords::{ALL, OBJECT};
use self::relax::{Blame, LeftOut};
pub use self::relax::{Enforcement, Relaxed};
use self::resources::{RECURSIVE, Resources};
use crate::dfa::Dfa;
use crate::error::CompileError;
use crate::hash::Map;
use crate::ir::{Ir, NodeId, RuleId};
use crate::json::{Document, Json, JsonId};
use crate::limits::Limits;

/// Which whitespace the output may have around JSON's punctuation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Whitespace {
    /// Any that models write: between two tokens of JSON up to two spaces, then at most one newline with up
    /// to `max_indent` spaces and tabs after it. Each run ends, as do numbers.
    #[default]
    Any,
    /// None: compact JSON.
    None,
}

/// The rules by which a schema without `$schema` is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Draft {
    /// 2020-12.
    #[default]
    Draft2020,
    /// Draft 7 and before: `$ref` hides its siblings, `items` may be a list.
    Draft7,
}

/// What `format` means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FormatPolicy {
    /// A known format is enforced or refused; unknown ones are annotations.
    #[default]
    Enforce,
    /// All formats are annotations, as the specification has it by default.
    Annotate,
}

/// In which order the members of an object are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PropertyOrder {
    /// As the schema has them, members without a declared name last.
    #[default]
    Schema,
    /// Any: every spelling of an object. Less text is forced.
    Any,
}

/// Which members an object may have besides those that its schema names, where the schema does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AdditionalProperties {
    /// Any, as the specification has it.
    #[default]
    Open,
    /// None, wherever members are named at all.
    Closed,
}

/// How a schema is read and its values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SchemaOptions {
    /// Whitespace in the output.
    pub whitespace: Whitespace,
    /// Rules where the schema names none.
    pub draft: Draft,
    /// Meaning of `format`.
    pub formats: FormatPolicy,
    /// Order of the members of objects.
    pub order: PropertyOrder,
    /// Members that the schema does not name.
    pub additional_properties: AdditionalProperties,
    /// What happens to what cannot be enforced. Tools say it themselves, each for its own schema.
    pub enforcement: Enforcement,
}

/// The text of a schema, and what is known of it from where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) text: &'a str,
    /// A JSON pointer that those of errors begin with.
    pub(crate) place: &'a str,
    pub(crate) values: Values,
}

/// The values that a schema is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    All,
    Objects,
}

struct Compiler<'a> {
    ir: &'a mut Ir,
    document: &'a Document,
    source: Source<'a>,
    resources: Resources,
    formats: FormatPolicy,
    order: PropertyOrder,
    /// Lists of facts of which one holds at least.
    clauses: Vec<Vec<Fact>>,
    clause_ids: Map<Vec<Fact>, ClauseId>,
    ways_to_fail: Map<Target, Rc<[Branch]>>,
    additional_properties: AdditionalProperties,
    enforcement: Enforcement,
    limits: &'a Limits,
    rules: Map<Vec<Goal>, RuleId>,
    queue: Vec<Task>,
    left_out: LeftOut,
    /// What the error that is on its way came of, where that is known.
    blame: Option<Blame>,
    /// Property names that facts speak of.
    names: Vec<String>,
    name_ids: BTreeMap<String, NameId>,
    /// Resources with dynamic anchors, in the order in which they were entered.
    scopes: Vec<Vec<JsonId>>,
    /// Automata of patterns, by source.
    patterns: BTreeMap<String, Arc<Dfa>>,
    /// Nodes for all names but these.
    other_name_nodes: BTreeMap<Vec<NameId>, NodeId>,
    /// What is known of pairs of branches.
    disjoint_pairs: Map<(JsonId, JsonId), bool>,
    /// Of a schema's own keywords and another schema.
    apart: Map<(JsonId, JsonId), bool>,
    /// Of pairs of schemas, whether whatever satisfies the first one satisfies the second.
    implied: Map<(Target, Target), bool>,
    /// Of values and schemas.
    judged: Map<(JsonId, JsonId), Option<bool>>,
    /// Strings of one pattern or format, by its place in memory, which `patterns` keeps, and the lengths.
    text_nodes: BTreeMap<(usize, u32, Option<u32>), NodeId>,
    number: Option<NodeId>,
    work: u64,
}

/// A rule to be defined: values of `types` that meet all of `goals`.
struct Task {
    goals: Vec<Goal>,
    types: u8,
    rule: RuleId,
}

/// Lowers the schema `source`; the result is the node that every output matches. What is left out of the
/// schema is added to the grammar's list.
pub(crate) fn compile(
    ir: &mut Ir,
    source: Source<'_>,
    options: &SchemaOptions,
    limits: &Limits,
) -> Result<NodeId, CompileError> {
    let parsed = if source.text.len() <= limits.max_source_bytes {
        Document::parse(source.text, limits.max_source_depth)
    } else {
        Err(CompileError::Limit {
            name: "max_source_bytes",
            limit: limits.max_source_bytes as u64,
            place: "the schema".to_owned(),
        })
    };
    if let Ok(document) = &parsed {
        check_form(document).map_err(|error| error.within(source.place))?;
    }
    let found = parsed.and_then(|document| lower(ir, &document, source, options, limits));
    let is_json = !matches!(found, Err(CompileError::Json { .. }));
    match found {
        Ok((node, left_out)) => {
            let left_out = left_out.into_iter().map(|part| part.within(source.place));
            ir.relaxed.extend(left_out);
            Ok(node)
        }
        Err(error) if is_json && options.enforcement == Enforcement::Relaxed => {
            ir.relaxed.push(Relaxed::whole(source.place, &error));
            let anything = Source { text: "{}", ..source };
            let document = Document::parse(anything.text, 1)?;
            let (node, _) = lower(ir, &document, anything, options, limits)?;
            Ok(node)
        }
        Err(error) => Err(error.within(source.place)),
    }
}

fn check_form(document: &Document) -> Result<(), CompileError> {
    match &document[0] {
        Json::Object(_) | Json::Bool(_) => Ok(()),
        _ => Err(CompileError::Malformed {
            pointer: "#".to_owned(),
            keyword: "schema".to_owned(),
            why: "it is neither an object nor a boolean".to_owned(),
        }),
    }
}

/// The node for the schema `document`, and what is left out of it.
fn lower(
    ir: &mut Ir,
    document: &Document,
    source: Source<'_>,
    options: &SchemaOptions,
    limits: &Limits,
) -> Result<(NodeId, Vec<Relaxed>), CompileError> {
    let usual = match options.draft {
        Draft::Draft7 => Dialect::Draft7,
        Draft::Draft2020 => Dialect::Draft2020,
    };
    let mut compiler = Compiler {
        ir,
        document,
        source,
        resources: Resources::new(document, usual),
        formats: options.formats,
        order: options.order,
        clauses: Vec::new(),
        clause_ids: Map::default(),
        ways_to_fail: Map::default(),
        additional_properties: options.additional_properties,
        enforcement: options.enforcement,
        limits,
        rules: Map::default(),
        queue: Vec::new(),
        left_out: LeftOut::default(),
        blame: None,
        names: Vec::new(),
        name_ids: BTreeMap::new(),
        scopes: vec![Vec::new()],
        patterns: BTreeMap::new(),
        other_name_nodes: BTreeMap::new(),
        disjoint_pairs: Map::default(),
        apart: Map::default(),
        implied: Map::default(),
        judged: Map::default(),
        text_nodes: BTreeMap::new(),
        number: None,
        work: 0,
    };
    if let Err(error) = compiler.spend(document.n_nodes() as u64) {
        compiler.leave_out(error, &[])?;
    }
    let root = compiler.root(source.values)?;
    while let Some(task) = compiler.queue.pop() {
        compiler.define(&task)?;
    }
    let left_out = compiler.left_out.into_list();
    if options.enforcement == Enforcement::Relaxed && !ir.is_satisfiable(root) {
        return Err(CompileError::Empty {
            why: "the schema contradicts itself, or needs bytes that no token spells".to_owned(),
        });
    }
    Ok((root, left_out))
}

impl Compiler<'_> {
    fn unsupported(&self, at: JsonId, keyword: &str, why: &str) -> CompileError {
        CompileError::Unsupported {
            pointer: self.document.pointer(at),
            keyword: keyword.to_owned(),
            why: why.to_owned(),
        }
    }

    fn malformed(&self, at: JsonId, keyword: &str, why: &str) -> CompileError {
        CompileError::Malformed {
            pointer: self.document.pointer(at),
            keyword: keyword.to_owned(),
            why: why.to_owned(),
        }
    }

    fn automaton_limit(&self, what: &str, at: JsonId) -> CompileError {
        CompileError::Limit {
            name: "max_automaton_states",
            limit: self.limits.max_automaton_states as u64,
            place: format!("{what} of {}", self.document.pointer(at)),
        }
    }

    fn spend(&mut self, work: u64) -> Result<(), CompileError> {
        self.work = self.work.saturating_add(work);
        if self.work <= self.limits.max_compile_work || self.left_out.has_rest() {
            return Ok(());
        }
        Err(CompileError::Limit {
            name: "max_compile_work",
            limit: self.limits.max_compile_work,
            place: "the schema".to_owned(),
        })
    }

    /// The node for values that meet all of `goals`.
    fn rule(&mut self, mut goals: Vec<Goal>) -> NodeId {
        goals.retain(|goal| !self.is_met_by_all(*goal));
        goals.sort_unstable();
        goals.dedup();
        let is_hopeless =
            |goal: &Goal| self.is_met_by_all(goal.negated()) || goals.binary_search(&goal.negated()).is_ok();
        if goals.iter().any(is_hopeless) {
            return 0;
        }
        let known = self.rules.get(&goals).copied();
        let rule = known.unwrap_or_else(|| {
            let rule = self.ir.new_rule();
            self.rules.insert(goals.clone(), rule);
            self.queue.push(Task {
                goals,
                types: ALL,
                rule,
            });
            rule
        });
        self.ir.rule(rule)
    }

    fn is_met_by_all(&self, goal: Goal) -> bool {
        match goal {
            Goal::Holds(target) => self.document[target.id] == Json::Bool(true),
            Goal::Fails(target) => self.document[target.id] == Json::Bool(false),
            Goal::Equals(_) | Goal::Differs(_) => false,
        }
    }

    /// The node for the values that the whole schema is about.
    fn root(&mut self, values: Values) -> Result<NodeId, CompileError> {
        let outside = Target { id: 0, scope: 0 };
        let goals = vec![Goal::Holds(self.within(outside, 0))];
        if values == Values::Objects && self.possible_types(0) & OBJECT == 0 {
            let error = self.malformed(0, "type", "only objects may stand here");
            self.leave_out(error, &goals)?;
        }
        if values == Values::All || self.possible_types(0) == OBJECT {
            return Ok(self.rule(goals));
        }
        let rule = self.ir.new_rule();
        self.queue.push(Task {
            goals,
            types: OBJECT,
            rule,
        });
        Ok(self.ir.rule(rule))
    }

    fn define(&mut self, task: &Task) -> Result<(), CompileError> {
        let node = loop {
            if self.left_out.has_rest() && !task.goals.is_empty() {
                self.note_goals(&task.goals);
                break if task.types == ALL {
                    self.rule(Vec::new())
                } else {
                    self.lower(&[], task.types)?
                };
            }
            match self.lower(&task.goals, task.types) {
                Ok(node) => break node,
                Err(error) => self.leave_out(error, &task.goals)?,
            }
        };
        self.ir.define(task.rule, node);
        self.check_size()
    }

    fn lower(&mut self, goals: &[Goal], types: u8) -> Result<NodeId, CompileError> {
        let mut nodes = Vec::new();
        self.spend(500)?;
        let ways = self.alternatives(goals, types)?;
        for facts in self.without_unnamed(ways)? {
            self.spend(facts.size() as u64 * 8)?;
            nodes.push(self.lower_facts(&facts)?);
        }
        Ok(self.ir.alt(nodes))
    }

    fn name_id(&mut self, name: &str) -> NameId {
        if let Some(id) = self.name_ids.get(name) {
            return *id;
        }
        let id = self.names.len() as NameId;
        self.names.push(name.to_owned());
        self.name_ids.insert(name.to_owned(), id);
        id
    }

    fn name(&self, id: NameId) -> String {
        self.names[id as usize].clone()
    }

    /// The schema `id` as reached from `from`.
    fn within(&mut self, from: Target, id: JsonId) -> Target {
        if !self.resources.has_dynamic_anchors() {
            return Target { id, scope: 0 };
        }
        let root = self.resources.root_of(self.document, id);
        let scope = &self.scopes[from.scope as usize];
        if scope.contains(&root) || !self.resources.offers_dynamically(root) {
            return Target { id, ..from };
        }
        let mut entered = scope.clone();
        entered.push(root);
        let known = self.scopes.iter().position(|scope| *scope == entered);
        let scope = known.unwrap_or_else(|| {
            self.scopes.push(entered);
            self.scopes.len() - 1
        });
        Target {
            id,
            scope: scope as ScopeId,
        }
    }

    /// The schemas that `at` refers to and that hold along with it.
    fn references(&mut self, at: Target) -> Result<Vec<Target>, CompileError> {
        let mut found = Vec::new();
        for keyword in ["$ref", "$dynamicRef", "$recursiveRef"] {
            let Some(reference) = self.text(at.id, keyword)? else {
                continue;
            };
            if keyword == "$recursiveRef" && reference != "#" {
                return Err(self.malformed(at.id, keyword, "it is not `#`"));
            }
            let target = self.resources.resolve(self.document, at.id, reference);
            let mut id = target.map_err(|why| self.unsupported(at.id, keyword, &why))?;
            if keyword != "$ref" {
                let name = reference.split_once('#').map_or("", |(_, fragment)| fragment);
                let name = if keyword == "$recursiveRef" {
                    RECURSIVE
                } else {
                    name
                };
                id = self.dynamically(at, name, id);
            }
            found.push(self.within(at, id));
        }
        Ok(found)
    }

    /// What the dynamic reference at `at` means when it would mean `id` as a plain one: the outermost schema
    /// of the same dynamic anchor.
    fn dynamically(&self, at: Target, name: &str, id: JsonId) -> JsonId {
        let root = self.resources.root_of(self.document, id);
        if self.resources.dynamic_anchor(root, name) != Some(id) {
            return id;
        }
        let scope = &self.scopes[at.scope as usize];
        let outermost = scope
            .iter()
            .find_map(|root| self.resources.dynamic_anchor(*root, name));
        outermost.unwrap_or(id)
    }
}
