//! Which schema a reference means: base URIs, anchors and pointers within one document.
//!
//! Identifiers count only where a schema stands: an `$id` in an `enum` or in an unknown keyword is none.
//! What the document does not hold cannot be referred to; nothing is ever fetched.

use std::collections::{BTreeMap, BTreeSet};

use super::dialect::Dialect;
use super::uri::{percent_decoded, resolve};
use crate::json::{Document, Json, JsonId};

/// Keywords with a schema.
const ONE: [&str; 13] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "extends",
];
/// Keywords with a list of schemas.
const LIST: [&str; 6] = ["allOf", "anyOf", "extends", "items", "oneOf", "prefixItems"];
/// Keywords with schemas by name.
const MAP: [&str; 6] = [
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
];

/// The named places of one document.
pub(super) struct Resources {
    /// Schemas with a base URI of their own, the whole document among them.
    roots: BTreeMap<JsonId, String>,
    by_uri: BTreeMap<String, JsonId>,
    /// By resource and name.
    anchors: BTreeMap<(JsonId, String), JsonId>,
    /// Dialects of the resources that name another one than the whole document.
    dialects: BTreeMap<JsonId, Dialect>,
    dialect: Dialect,
    /// The anchors among these that `$dynamicRef` may find in an outer resource.
    dynamic: BTreeMap<(JsonId, String), JsonId>,
}

/// Stands for `$recursiveAnchor` among the names of dynamic anchors, which never have this character.
pub(super) const RECURSIVE: &str = "#";

impl Resources {
    /// The names in `document`, which is read by `usual` rules where it names none.
    pub(super) fn new(document: &Document, usual: Dialect) -> Self {
        let mut resources = Self {
            dialects: BTreeMap::new(),
            dialect: named_dialect(document, 0, usual).unwrap_or(usual),
            roots: BTreeMap::new(),
            by_uri: BTreeMap::new(),
            anchors: BTreeMap::new(),
            dynamic: BTreeMap::new(),
        };
        resources.roots.insert(0, String::new());
        let mut todo = vec![(0, 0)];
        while let Some((id, root)) = todo.pop() {
            let root = resources.note(document, usual, id, root);
            todo.extend(subschemas(document, id).map(|id| (id, root)));
        }
        for (id, uri) in &resources.roots {
            resources.by_uri.entry(uri.clone()).or_insert(*id);
        }
        resources
    }

    /// Takes up the names that the schema `id` gives itself; returns the resource it belongs to.
    fn note(&mut self, document: &Document, usual: Dialect, id: JsonId, mut root: JsonId) -> JsonId {
        let text = |keyword: &str| match document.member(id, keyword).map(|value| &document[value]) {
            Some(Json::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let outer = self.dialects.get(&root).copied().unwrap_or(self.dialect);
        let dialect = named_dialect(document, id, usual).unwrap_or(outer);
        let is_hidden = dialect.does_ref_hide() && document.member(id, "$ref").is_some();
        if let Some(text) = text(dialect.identifier()).filter(|_| !is_hidden) {
            match text.strip_prefix('#') {
                Some(name) if !name.is_empty() => {
                    self.anchors.insert((root, name.to_owned()), id);
                }
                _ => {
                    let (uri, name) = resolve(&self.roots[&root], text);
                    self.roots.insert(id, uri);
                    root = id;
                    // Only a resource of its own has a dialect of its own.
                    if dialect != self.dialect {
                        self.dialects.insert(id, dialect);
                    }
                    if !name.is_empty() {
                        self.anchors.insert((root, name.to_owned()), id);
                    }
                }
            }
        }
        for keyword in ["$anchor", "$dynamicAnchor"] {
            if let Some(name) = text(keyword) {
                self.anchors.insert((root, name.to_owned()), id);
                if keyword == "$dynamicAnchor" {
                    self.dynamic.insert((root, name.to_owned()), id);
                }
            }
        }
        let is_recursive = document.member(id, "$recursiveAnchor");
        if id == root && is_recursive.is_some_and(|value| document[value] == Json::Bool(true)) {
            self.dynamic.insert((root, RECURSIVE.to_owned()), id);
        }
        root
    }

    /// The resource that `id` belongs to.
    pub(super) fn root_of(&self, document: &Document, mut id: JsonId) -> JsonId {
        while !self.roots.contains_key(&id) {
            id = document.parent(id);
        }
        id
    }

    /// The rules that the schema `id` is read by.
    pub(super) fn dialect(&self, document: &Document, id: JsonId) -> Dialect {
        // Nearly every document has one.
        if self.dialects.is_empty() {
            return self.dialect;
        }
        let root = self.root_of(document, id);
        self.dialects.get(&root).copied().unwrap_or(self.dialect)
    }

    pub(super) fn has_dynamic_anchors(&self) -> bool {
        !self.dynamic.is_empty()
    }

    /// The schema that the resource `root` offers dynamically under `name`.
    pub(super) fn dynamic_anchor(&self, root: JsonId, name: &str) -> Option<JsonId> {
        self.dynamic.get(&(root, name.to_owned())).copied()
    }

    pub(super) fn offers_dynamically(&self, root: JsonId) -> bool {
        self.dynamic
            .range((root, String::new())..)
            .next()
            .is_some_and(|((of, _), _)| *of == root)
    }

    /// The schema that `reference`, written in the schema `at`, means.
    pub(super) fn resolve(&self, document: &Document, at: JsonId, reference: &str) -> Result<JsonId, String> {
        let here = self.root_of(document, at);
        let (uri, fragment) = resolve(&self.roots[&here], reference);
        let root = if uri == self.roots[&here] {
            here
        } else {
            let known = self.by_uri.get(&uri).copied();
            known.ok_or_else(|| format!("`{uri}` is not in this document, and nothing is fetched"))?
        };
        let leads_nowhere = || format!("`{reference}` leads nowhere");
        let fragment = percent_decoded(fragment).ok_or_else(leads_nowhere)?;
        if fragment.is_empty() {
            return Ok(root);
        }
        let Some(path) = fragment.strip_prefix('/') else {
            let anchor = self.anchors.get(&(root, fragment));
            return anchor.copied().ok_or_else(leads_nowhere);
        };
        let found = path.split('/').try_fold(root, |at, part| {
            let name = part.replace("~1", "/").replace("~0", "~");
            match &document[at] {
                Json::Array(items) => items.get(name.parse::<usize>().ok()?).copied(),
                _ => document.member(at, &name),
            }
        });
        found.ok_or_else(leads_nowhere)
    }
}

/// The dialect that the schema `id` names.
fn named_dialect(document: &Document, id: JsonId, usual: Dialect) -> Option<Dialect> {
    match document.member(id, "$schema").map(|value| &document[value]) {
        Some(Json::String(uri)) => Some(Dialect::named(uri, usual)),
        _ => None,
    }
}

/// The schemas right within the schema `id`.
fn subschemas(document: &Document, id: JsonId) -> impl Iterator<Item = JsonId> {
    let value = |keyword: &&str| document.member(id, keyword);
    let one = ONE.iter().filter_map(value);
    let lists = LIST
        .iter()
        .filter_map(value)
        .flat_map(|list| match &document[list] {
            Json::Array(items) => items.clone(),
            _ => Vec::new(),
        });
    let maps = MAP.iter().filter_map(value).flat_map(|map| match &document[map] {
        Json::Object(members) => members.iter().map(|(_, value)| *value).collect(),
        _ => Vec::new(),
    });
    let all: BTreeSet<JsonId> = one.chain(lists).chain(maps).collect();
    all.into_iter()
        .filter(|id| matches!(document[*id], Json::Object(_)))
}
