//! Strings: patterns, formats and lengths as automata over the content.

use std::sync::Arc;

use super::facts::{Facts, Goal};
use super::format::{Format, format};
use super::keywords::STRING;
use super::lower::Merged;
use super::{CompileError, Compiler, Dfa, Json, JsonId, NodeId, regex_format};
use crate::dfa::Product;
use crate::pattern::{Counted, Pattern, Syntax};
use crate::text::{any_content, step_utf8};

impl Compiler<'_> {
    pub(super) fn pattern_of(&mut self, id: JsonId) -> Result<Option<Arc<Dfa>>, CompileError> {
        match self.text(id, "pattern")? {
            None => Ok(None),
            Some(source) => self.search(source, id, "pattern").map(Some),
        }
    }

    /// The texts in which `source` is found.
    pub(super) fn search(
        &mut self,
        source: &str,
        id: JsonId,
        keyword: &str,
    ) -> Result<Arc<Dfa>, CompileError> {
        if let Some(known) = self.patterns.get(source) {
            return Ok(known.clone());
        }
        let pattern = self.pattern(source, id, keyword)?;
        self.search_of(&pattern, source, id, keyword)
    }

    /// The pattern that stands as `keyword` in the schema `id`.
    fn pattern(&self, source: &str, id: JsonId, keyword: &str) -> Result<Pattern, CompileError> {
        let pattern = Pattern::parse(source, Syntax::Ecma);
        pattern.map_err(|error| self.unsupported(id, keyword, &error.to_string()))
    }

    /// The texts in which `pattern` is found, which `key` stands for.
    fn search_of(
        &mut self,
        pattern: &Pattern,
        key: &str,
        id: JsonId,
        keyword: &str,
    ) -> Result<Arc<Dfa>, CompileError> {
        if let Some(known) = self.patterns.get(key) {
            return Ok(known.clone());
        }
        let found = self.ir.search(pattern, key);
        let found = found.map_err(|error| self.unsupported(id, keyword, &error.to_string()))?;
        self.keep_pattern(key.to_owned(), found)
    }

    /// The texts of the schema's `format`; `None` when it has none or it is an annotation.
    pub(super) fn format_of(&mut self, id: JsonId) -> Result<Option<Arc<Dfa>>, CompileError> {
        let Some(name) = self.text(id, "format")? else {
            return Ok(None);
        };
        if !self.asserts_formats(id) {
            return Ok(None);
        }
        // No pattern begins so.
        let key = format!("(?format){name}");
        if let Some(known) = self.patterns.get(&key) {
            return Ok(Some(known.clone()));
        }
        let found = match format(name) {
            Format::Pattern { source, .. } => self.ir.pattern(source)?,
            Format::Regex => self.ir.made("the format regex", regex_format::automaton),
            Format::Unknown => return Ok(None),
        };
        self.keep_pattern(key, found).map(Some)
    }

    /// Remembers an automaton and accounts for its work.
    fn keep_pattern(&mut self, key: String, found: (Arc<Dfa>, u64)) -> Result<Arc<Dfa>, CompileError> {
        /// Of parsing an expression and of keeping what came of it.
        const PARSE_WORK: u64 = 40_000;
        let (dfa, n_work) = found;
        self.spend(PARSE_WORK + n_work)?;
        self.patterns.insert(key, dfa.clone());
        Ok(dfa)
    }

    /// Adds what the schema's `pattern` says.
    pub(super) fn merge_pattern(&mut self, id: JsonId, merged: &mut Merged) -> Result<(), CompileError> {
        let Some(source) = self.text(id, "pattern")? else {
            return Ok(());
        };
        let pattern = self.pattern(source, id, "pattern")?;
        let Some(Counted { content, min, max }) = pattern.counted() else {
            let found = self.search_of(&pattern, source, id, "pattern")?;
            merged.contents.push(found);
            return Ok(());
        };
        // No pattern begins so.
        let key = format!("(?content){}", content.recipe());
        let content = self.search_of(&content, &key, id, "pattern")?;
        merged.contents.push(content);
        merged.min_length = merged.min_length.max(min);
        merged.max_length = merged.max_length.into_iter().chain(max).min();
        Ok(())
    }

    /// Whether the format is enforced; an error when what is enforced is not exactly the format.
    pub(super) fn exact_format(&self, id: JsonId, name: &str) -> Result<bool, CompileError> {
        match format(name) {
            Format::Unknown => Ok(false),
            Format::Pattern { is_exact: true, .. } => Ok(true),
            Format::Pattern { .. } | Format::Regex => {
                let why = format!("the format `{name}` cannot be negated: not every text of it is known");
                Err(self.unsupported(id, "format", &why))
            }
        }
    }

    /// The contents that the facts allow, lengths apart; `None` for all.
    fn content(&mut self, facts: &Facts, merged: &Merged) -> Result<Option<Arc<Dfa>>, CompileError> {
        let document = self.document;
        let excluded = facts
            .different
            .iter()
            .filter_map(|value| match &document[*value] {
                Json::String(text) => Some(text.as_bytes()),
                _ => None,
            });
        let excluded: Vec<&[u8]> = excluded.collect();
        let excluded = (!excluded.is_empty()).then(|| Arc::new(Dfa::of_strings(excluded)));
        let wanted = merged.contents.iter().map(|dfa| (dfa.clone(), Product::Both));
        let unwanted = merged.no_contents.iter().cloned().chain(excluded);
        let unwanted = unwanted.map(|dfa| (dfa, Product::FirstOnly));
        let mut content: Option<Arc<Dfa>> = None;
        for (other, rule) in wanted.chain(unwanted) {
            let before = match content {
                None if rule == Product::Both => {
                    content = Some(other);
                    continue;
                }
                None => any_content(),
                Some(content) => content,
            };
            let both = self.product(&before, &other, rule, "the strings", facts.first())?;
            content = Some(Arc::new(both));
        }
        Ok(content)
    }

    pub(super) fn product(
        &mut self,
        a: &Dfa,
        b: &Dfa,
        rule: Product,
        what: &str,
        at: JsonId,
    ) -> Result<Dfa, CompileError> {
        let max = self.ir.bounds().max_states;
        let product = a.product(b, rule, max);
        let product = product.map_err(|_| self.automaton_limit(what, at))?;
        self.spend(1_000 + (a.n_states() + b.n_states() + product.n_states()) as u64 * 100)?;
        Ok(product)
    }

    pub(super) fn lower_string(&mut self, facts: &Facts, merged: &Merged) -> Result<NodeId, CompileError> {
        let (min, max) = (merged.min_length, merged.max_length);
        let is_single = merged.no_contents.is_empty() && facts.different.is_empty();
        let key = match merged.contents.as_slice() {
            [only] if is_single => Some((Arc::as_ptr(only) as usize, min, max)),
            _ => None,
        };
        if let Some(known) = key.and_then(|key| self.text_nodes.get(&key)) {
            return Ok(*known);
        }
        let content = self.content(facts, merged)?;
        if content.is_none() && min == 0 && max.is_none() {
            return Ok(self.ir.text(self.ir.any_text.clone()));
        }
        if let Some(content) = &content {
            /// Of finding out from which states any text can follow.
            const EDGE_WORK: u64 = 32;
            self.spend(EDGE_WORK * (content.n_states() * content.classes().len()) as u64)?;
            // Pattern and length are tabulated against each other, at worst every length.
            let length = u64::from(max.unwrap_or(0).max(min));
            self.spend(length.saturating_mul(content.n_states() as u64))?;
        }
        let node = self.ir.text_of(content.unwrap_or_else(any_content), min, max);
        if let Some(key) = key {
            self.text_nodes.insert(key, node);
        }
        Ok(node)
    }

    /// The strings that meet all of `goals`; `at` is where they stand.
    pub(super) fn strings(&mut self, goals: &[Goal], at: JsonId) -> Result<Dfa, CompileError> {
        let mut all = Dfa::of_strings([]);
        for facts in self.alternatives(goals, STRING)? {
            if facts.is_free() {
                return Ok((*any_content()).clone());
            }
            let merged = self.merge(&facts)?;
            let content = self.content(&facts, &merged)?;
            let mut content = content.unwrap_or_else(any_content);
            if merged.min_length > 0 || merged.max_length.is_some() {
                let lengths = self.lengths(merged.min_length, merged.max_length, at)?;
                content = Arc::new(self.product(&content, &lengths, Product::Both, "the names", at)?);
            }
            if let Some(values) = self.values_of(&facts)? {
                let document = self.document;
                let texts = values.iter().filter_map(|value| match &document[*value] {
                    Json::String(text) => Some(text.as_bytes()),
                    _ => None,
                });
                let listed = Dfa::of_strings(texts);
                content = Arc::new(self.product(&listed, &content, Product::Both, "the names", at)?);
            }
            all = self.product(&all, &content, Product::Either, "the names", at)?;
        }
        Ok(all)
    }

    /// Texts of `min ..= max` characters.
    fn lengths(&mut self, min: u32, max: Option<u32>, at: JsonId) -> Result<Dfa, CompileError> {
        let classes = any_content().classes().clone();
        let last = max.unwrap_or(min);
        let step = |(state, n): &(u8, u32), byte: u8| {
            let begins = u32::from(*state == 0);
            let n = if max.is_none() {
                (n + begins).min(min)
            } else {
                n + begins
            };
            (n <= last).then_some((step_utf8(*state, byte)?, n))
        };
        let accept = |(state, n): &(u8, u32)| *state == 0 && *n >= min;
        let limit = self.ir.bounds().max_states;
        let dfa = Dfa::explore(classes, (0, 0), step, accept, limit);
        let dfa = dfa.map_err(|_| self.automaton_limit("the lengths of names", at))?;
        self.spend(dfa.n_states() as u64 * 64)?;
        Ok(dfa)
    }
}

pub(super) fn accepts(content: &Dfa, text: &str) -> bool {
    let end = text
        .bytes()
        .fold(content.start(), |state, byte| content.step(state, byte));
    content.is_accepting(end)
}
