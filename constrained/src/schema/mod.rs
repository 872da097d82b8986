//! JSON Schema to the grammar form.
//!
//! A set of schema objects that must all hold becomes one rule; sets are remembered, so recursion ends.
//! Within a set references and `allOf` are collected, `anyOf` and `oneOf` multiply into alternatives, and
//! what is left is merged per JSON type. Keywords that assert something and are not handled are refused by
//! name. Keywords that the specification does not know are annotations and assert nothing.

mod format;
mod lower;
mod values;

use crate::dfa::Dfa;
use crate::error::CompileError;
use crate::hash::Map;
use crate::ir::{Array, Ir, NodeId, Object, RuleId};
use crate::json::{Document, Json, JsonId};
use crate::keys::KeyTrie;
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

/// Schema objects that must all hold, ascending.
type Conjunction = Vec<JsonId>;

struct Compiler<'a> {
    ir: &'a mut Ir,
    document: &'a Document,
    options: SchemaOptions,
    limits: &'a Limits,
    rules: Map<Conjunction, RuleId>,
    queue: Vec<(Conjunction, RuleId)>,
    number: Option<NodeId>,
    work: u64,
}

/// Keywords that assert something and are not handled.
const UNSUPPORTED: [&str; 13] = [
    "not",
    "if",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "patternProperties",
    "propertyNames",
    "contains",
    "unevaluatedProperties",
    "unevaluatedItems",
    "$dynamicRef",
    "$recursiveRef",
    "extends",
];

/// Lowers the schema `text`; the result is the node that every output matches.
pub(crate) fn compile(
    ir: &mut Ir,
    text: &str,
    options: &SchemaOptions,
    limits: &Limits,
) -> Result<NodeId, CompileError> {
    let document = Document::parse(text, limits.max_source_depth)?;
    let mut options = *options;
    if let Some(Json::String(named)) = document.member(0, "$schema").map(|id| &document[id]) {
        options.draft = named_draft(named).ok_or_else(|| CompileError::Unsupported {
            pointer: "#".to_owned(),
            keyword: "$schema".to_owned(),
            why: "an unknown dialect may give keywords another meaning".to_owned(),
        })?;
    }
    let mut compiler = Compiler {
        ir,
        document: &document,
        options,
        limits,
        rules: Map::default(),
        queue: Vec::new(),
        number: None,
        work: 0,
    };
    let root = compiler.rule(vec![0]);
    while let Some((conjunction, rule)) = compiler.queue.pop() {
        let node = compiler.lower(&conjunction)?;
        compiler.ir.define(rule, node);
        compiler.ir.check_size("the schema")?;
    }
    Ok(root)
}

/// The rules that `$schema` names; `None` for a dialect that is not the standard's own.
fn named_draft(uri: &str) -> Option<Draft> {
    let path = uri.trim_end_matches('#').split_once("://json-schema.org/")?.1;
    match path {
        "draft-04/schema" | "draft-06/schema" | "draft-07/schema" => Some(Draft::Draft7),
        "draft/2019-09/schema" | "draft/2020-12/schema" => Some(Draft::Draft2020),
        _ => None,
    }
}

/// Alternatives being collected: schemas to look at, each with those it was reached through, and schemas
/// seen.
#[derive(Clone, Default)]
struct Partial {
    todo: Vec<(JsonId, Vec<JsonId>)>,
    plain: Conjunction,
}

impl<'a> Compiler<'a> {
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

    /// The node for values that satisfy all of `conjunction`.
    fn rule(&mut self, mut conjunction: Conjunction) -> NodeId {
        conjunction.sort_unstable();
        conjunction.dedup();
        let known = self.rules.get(&conjunction).copied();
        let rule = known.unwrap_or_else(|| {
            let rule = self.ir.new_rule();
            self.rules.insert(conjunction.clone(), rule);
            self.queue.push((conjunction, rule));
            rule
        });
        self.ir.rule(rule)
    }

    fn lower(&mut self, conjunction: &[JsonId]) -> Result<NodeId, CompileError> {
        let mut nodes = Vec::new();
        for plain in self.alternatives(conjunction)? {
            self.spend(1 + plain.len() as u64 * 8)?;
            nodes.push(self.lower_plain(&plain)?);
        }
        Ok(self.ir.alt(nodes))
    }

    fn spend(&mut self, work: u64) -> Result<(), CompileError> {
        self.work += work;
        if self.work <= self.limits.max_compile_work {
            return Ok(());
        }
        Err(CompileError::Limit {
            name: "max_compile_work",
            limit: self.limits.max_compile_work,
            place: "the schema".to_owned(),
        })
    }

    /// The ways in which `conjunction` can hold, each a list of schema objects whose own keywords all hold.
    fn alternatives(&mut self, conjunction: &[JsonId]) -> Result<Vec<Conjunction>, CompileError> {
        let first = Partial {
            todo: conjunction.iter().map(|id| (*id, Vec::new())).collect(),
            plain: Vec::new(),
        };
        let (mut open, mut done) = (vec![first], Vec::new());
        while let Some(mut partial) = open.pop() {
            if open.len() + done.len() > self.limits.max_branches {
                return Err(CompileError::Limit {
                    name: "max_branches",
                    limit: self.limits.max_branches as u64,
                    place: self.document.pointer(conjunction[0]),
                });
            }
            let Some((id, path)) = partial.todo.pop() else {
                partial.plain.sort_unstable();
                done.push(partial.plain);
                continue;
            };
            self.spend(1 + path.len() as u64)?;
            match &self.document[id] {
                Json::Bool(true) => open.push(partial),
                Json::Bool(false) => {}
                Json::Object(_) => self.expand(id, path, partial, &mut open)?,
                _ => return Err(self.malformed(id, "schema", "it is neither an object nor a boolean")),
            }
        }
        done.reverse();
        Ok(done)
    }

    fn expand(
        &self,
        id: JsonId,
        mut path: Vec<JsonId>,
        mut partial: Partial,
        open: &mut Vec<Partial>,
    ) -> Result<(), CompileError> {
        if path.contains(&id) {
            return Err(self.unsupported(id, "$ref", "it reaches itself without a property or item between"));
        }
        if path.len() > self.limits.max_source_depth {
            return Err(CompileError::Limit {
                name: "max_source_depth",
                limit: self.limits.max_source_depth as u64,
                place: self.document.pointer(id),
            });
        }
        path.push(id);
        if let Some(reference) = self.document.member(id, "$ref") {
            partial.todo.push((self.resolve(id, reference)?, path.clone()));
            if self.options.draft == Draft::Draft7 {
                open.push(partial);
                return Ok(());
            }
        }
        self.check_keywords(id)?;
        if !partial.plain.contains(&id) {
            partial.plain.push(id);
        }
        for part in self.list(id, "allOf")? {
            partial.todo.push((part, path.clone()));
        }
        let mut forks = vec![partial];
        for keyword in ["anyOf", "oneOf"] {
            let branches = self.list(id, keyword)?;
            if branches.is_empty() {
                continue;
            }
            if keyword == "oneOf" {
                self.check_disjoint(id, &branches)?;
            }
            if forks.len() * branches.len() > self.limits.max_branches {
                return Err(CompileError::Limit {
                    name: "max_branches",
                    limit: self.limits.max_branches as u64,
                    place: self.document.pointer(id),
                });
            }
            let fork = |partial: &Partial, branch: &JsonId| {
                let mut partial = partial.clone();
                partial.todo.push((*branch, path.clone()));
                partial
            };
            forks = forks
                .iter()
                .flat_map(|partial| branches.iter().map(move |b| fork(partial, b)))
                .collect();
        }
        open.extend(forks.into_iter().rev());
        Ok(())
    }

    fn check_keywords(&self, id: JsonId) -> Result<(), CompileError> {
        let has = |name: &str| self.document.member(id, name).is_some();
        if let Some(keyword) = UNSUPPORTED.iter().find(|keyword| has(keyword)) {
            return Err(self.unsupported(id, keyword, "it would not be enforced"));
        }
        if id != 0 && has("$id") {
            return Err(self.unsupported(id, "$id", "references would change their base here"));
        }
        Ok(())
    }

    /// The schemas listed by `keyword`; none when it is absent.
    fn list(&self, id: JsonId, keyword: &str) -> Result<Vec<JsonId>, CompileError> {
        match self.document.member(id, keyword).map(|list| &self.document[list]) {
            None => Ok(Vec::new()),
            Some(Json::Array(items)) if !items.is_empty() => Ok(items.clone()),
            Some(_) => Err(self.malformed(id, keyword, "it is not a list with something in it")),
        }
    }

    /// The schema that `$ref` names.
    fn resolve(&self, at: JsonId, reference: JsonId) -> Result<JsonId, CompileError> {
        let Json::String(text) = &self.document[reference] else {
            return Err(self.malformed(at, "$ref", "it is not a string"));
        };
        let mut path = match text.strip_prefix('#') {
            Some("") => return Ok(0),
            Some(path) if path.starts_with('/') && !path.contains('%') => path[1..].split('/'),
            _ => return Err(self.unsupported(at, "$ref", "only `#` and `#/…` can be followed")),
        };
        let found = path.try_fold(0, |at, part| {
            let name = part.replace("~1", "/").replace("~0", "~");
            if at != 0 && self.document.member(at, "$id").is_some() {
                return None;
            }
            match &self.document[at] {
                Json::Array(items) => items.get(name.parse::<usize>().ok()?).copied(),
                _ => self.document.member(at, &name),
            }
        });
        found.ok_or_else(|| self.malformed(at, "$ref", "it leads nowhere"))
    }

    /// `oneOf` is `anyOf` where no value can satisfy two branches.
    fn check_disjoint(&self, id: JsonId, branches: &[JsonId]) -> Result<(), CompileError> {
        for (i, a) in branches.iter().enumerate() {
            for b in &branches[i + 1..] {
                if !self.are_disjoint(*a, *b) {
                    return Err(self.unsupported(id, "oneOf", "two branches may hold at once"));
                }
            }
        }
        Ok(())
    }

    fn are_disjoint(&self, a: JsonId, b: JsonId) -> bool {
        let (a, b) = (self.followed(a), self.followed(b));
        let shared = self.possible_types(a) & self.possible_types(b);
        if shared == 0 || self.have_no_value_in_common(a, b) {
            return true;
        }
        if shared != lower::OBJECT {
            return false;
        }
        let (of_a, of_b) = (self.required_names(a), self.required_names(b));
        of_a.iter().filter(|name| of_b.contains(name)).any(|name| {
            let value = |id| {
                self.document
                    .member(self.document.member(id, "properties")?, name)
            };
            let (Some(x), Some(y)) = (value(a), value(b)) else {
                return false;
            };
            let (x, y) = (self.followed(x), self.followed(y));
            self.possible_types(x) & self.possible_types(y) == 0 || self.have_no_value_in_common(x, y)
        })
    }

    /// Behind plain references.
    fn followed(&self, mut id: JsonId) -> JsonId {
        for _ in 0..16 {
            let reference = self.document.member(id, "$ref");
            match reference.and_then(|reference| self.resolve(id, reference).ok()) {
                Some(target) => id = target,
                None => break,
            }
        }
        id
    }

    fn have_no_value_in_common(&self, a: JsonId, b: JsonId) -> bool {
        let (Some(a), Some(b)) = (self.listed_values(a), self.listed_values(b)) else {
            return false;
        };
        !a.iter().any(|x| b.iter().any(|y| self.document.is_equal(*x, *y)))
    }

    /// Names that a schema's own `required` lists.
    fn required_names(&self, id: JsonId) -> Vec<&'a str> {
        let required = self.document.member(id, "required");
        let Some(Json::Array(items)) = required.map(|id| &self.document[id]) else {
            return Vec::new();
        };
        let name = |id: &JsonId| match &self.document[*id] {
            Json::String(name) => Some(name.as_str()),
            _ => None,
        };
        items.iter().filter_map(name).collect()
    }
}
