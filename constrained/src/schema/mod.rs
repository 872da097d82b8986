//! JSON Schema to the grammar form.
//!
//! A set of goals that must all be met becomes one rule; sets are remembered, so recursion ends. A goal is a
//! schema that holds or fails. Within a set the goals are taken apart into facts (`alternatives.rs`, and
//! `negation.rs` for schemas that fail); what can be met in several ways multiplies into alternatives, and
//! the facts of one alternative are merged per JSON type (`lower.rs`, `arrays.rs`, `objects.rs`).
//!
//! Everything is exact or stricter, never looser: what cannot be enforced is refused by place and keyword.
//! Keywords that the specification does not know are annotations and assert nothing.

mod alternatives;
mod arrays;
mod disjoint;
mod facts;
mod format;
mod keywords;
mod lower;
mod names;
mod negation;
mod objects;
mod regex_format;
mod resources;
mod strings;
mod uri;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::facts::{Goal, NameId, ScopeId, Target};
use self::keywords::ALL;
use self::resources::{RECURSIVE, Resources};
use crate::dfa::Dfa;
use crate::error::{CompileError, shorten};
use crate::hash::Map;
use crate::ir::{Ir, NodeId, RuleId};
use crate::json::{Document, Json, JsonId};
use crate::limits::Limits;

/// Which whitespace the output may have around JSON's punctuation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Whitespace {
    /// Any, up to `max_whitespace` characters in a run.
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

/// How a schema is read and its values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SchemaOptions {
    /// Whitespace in the output.
    pub whitespace: Whitespace,
    /// Rules where the schema names none.
    pub draft: Draft,
    /// Meaning of `format`.
    pub formats: FormatPolicy,
}

/// The rules that a schema is read by, in the order of their years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dialect {
    Draft4,
    Draft6,
    Draft7,
    Draft2019,
    Draft2020,
}

struct Compiler<'a> {
    ir: &'a mut Ir,
    document: &'a Document,
    resources: Resources,
    dialect: Dialect,
    formats: FormatPolicy,
    limits: &'a Limits,
    rules: Map<Vec<Goal>, RuleId>,
    queue: Vec<(Vec<Goal>, RuleId)>,
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
    /// Strings of one pattern or format, by its place in memory, which `patterns` keeps, and the lengths.
    text_nodes: BTreeMap<(usize, u32, Option<u32>), NodeId>,
    number: Option<NodeId>,
    work: u64,
}

/// Lowers the schema `text`; the result is the node that every output matches.
pub(crate) fn compile(
    ir: &mut Ir,
    text: &str,
    options: &SchemaOptions,
    limits: &Limits,
) -> Result<NodeId, CompileError> {
    let document = Document::parse(text, limits.max_source_depth)?;
    let mut dialect = match options.draft {
        Draft::Draft7 => Dialect::Draft7,
        Draft::Draft2020 => Dialect::Draft2020,
    };
    if let Some(Json::String(named)) = document.member(0, "$schema").map(|id| &document[id]) {
        let unknown = || CompileError::Unsupported {
            pointer: "#".to_owned(),
            keyword: "$schema".to_owned(),
            why: format!(
                "the dialect `{}` is unknown and may give keywords another meaning",
                shorten(named)
            ),
        };
        dialect = named_dialect(named).ok_or_else(unknown)?;
    }
    let mut compiler = Compiler {
        ir,
        document: &document,
        resources: Resources::new(&document, dialect),
        dialect,
        formats: options.formats,
        limits,
        rules: Map::default(),
        queue: Vec::new(),
        names: Vec::new(),
        name_ids: BTreeMap::new(),
        scopes: vec![Vec::new()],
        patterns: BTreeMap::new(),
        other_name_nodes: BTreeMap::new(),
        disjoint_pairs: Map::default(),
        text_nodes: BTreeMap::new(),
        number: None,
        work: 0,
    };
    compiler.spend(document.n_nodes() as u64)?;
    let outside = Target { id: 0, scope: 0 };
    let whole = compiler.within(outside, 0);
    let root = compiler.rule(vec![Goal::Holds(whole)]);
    while let Some((goals, rule)) = compiler.queue.pop() {
        let node = compiler.lower(&goals)?;
        compiler.ir.define(rule, node);
        compiler.ir.check_size("the schema")?;
    }
    Ok(root)
}

/// The rules that `$schema` names; `None` for a dialect that is not the standard's own.
fn named_dialect(uri: &str) -> Option<Dialect> {
    let path = uri.trim_end_matches('#').split_once("://json-schema.org/")?.1;
    match path {
        "draft-04/schema" => Some(Dialect::Draft4),
        "draft-06/schema" => Some(Dialect::Draft6),
        "draft-07/schema" => Some(Dialect::Draft7),
        "draft/2019-09/schema" => Some(Dialect::Draft2019),
        "draft/2020-12/schema" => Some(Dialect::Draft2020),
        _ => None,
    }
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
        if self.work <= self.limits.max_compile_work {
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
            self.queue.push((goals, rule));
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

    fn lower(&mut self, goals: &[Goal]) -> Result<NodeId, CompileError> {
        let mut nodes = Vec::new();
        self.spend(500)?;
        for facts in self.alternatives(goals, ALL)? {
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
