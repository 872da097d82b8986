//! Structural tags: JSON that says which parts of an output are free and which are constrained.
//!
//! Both shapes that servers accept as `response_format` are read: the older one, `{"type": "structural_tag",
//! "structures": [{"begin", "schema", "end"}], "triggers": […]}`, and XGrammar's `{"type":
//! "structural_tag", "format": …}` with formats of these types:
//!
//! * `const_string` (`value`), `json_schema` (`json_schema`; `style` only `json`), `regex` (`pattern`),
//!   `grammar` (`grammar`: EBNF that begins with `root`), `any_text` (`excludes`)
//! * `sequence`, `or` (`elements`), `optional`, `plus`, `star` (`content`), `repeat` (`min`, `max`, -1 for
//!   none, `content`)
//! * `tag` (`begin`, `content`, `end`: a text, several, or a `token` format), `triggered_tags` (`triggers`,
//!   `tags`, `at_least_one`, `stop_after_first`, `excludes`), `tags_with_separator` (`tags`, `separator`,
//!   `at_least_one`, `stop_after_first`), `dispatch` (`rules`, `loop`, `excludes`)
//! * `token`, `exclude_token`, `any_tokens`, `token_triggered_tags`, `token_dispatch`
//!
//! A text that begins or ends a tag may be the special token that is called so. Free text is UTF-8 without
//! other special tokens. It ends at the first end of the tag around it, when it is the
//! last part of the tag's content. A trigger or an end that could never come, because another one is part of
//! it, is refused. Unknown types and members are refused by JSON pointer, and so are limits counted in tokens
//! or characters.

mod read;

use std::rc::Rc;

use crate::constraint::lower_regex;
use crate::ebnf::{self, Dialect};
use crate::error::CompileError;
use crate::free_text::{Ending, FreeSpec};
use crate::hash::Map;
use crate::ir::{Ir, Node, NodeId};
use crate::json::{Document, Json, JsonId};
use crate::limits::Limits;
use crate::schema::{self, SchemaOptions, Source, Values};
use crate::tokens::TokenSet;
use crate::vocabulary::Vocabulary;

/// What a structural tag is compiled with.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    pub(crate) options: &'a SchemaOptions,
    pub(crate) limits: &'a Limits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Mark {
    Text(String),
    Token(u32),
}

/// The ends of the tag around a format; none at the top.
type Ends = Rc<[Mark]>;

struct Tag {
    begin: Mark,
    content: JsonId,
    ends: Ends,
}

struct Tags<'a> {
    ir: &'a mut Ir,
    context: Context<'a>,
    text: &'a str,
    document: &'a Document,
    /// Formats that are lowered, each with its ends.
    nodes: Map<JsonId, NodeId>,
}

/// The node for the structural tag `text`.
pub(crate) fn compile(ir: &mut Ir, text: &str, context: Context<'_>) -> Result<NodeId, CompileError> {
    let document = Document::parse(text, context.limits.max_source_depth)?;
    let mut tags = Tags {
        ir,
        context,
        text,
        document: &document,
        nodes: Map::default(),
    };
    if tags.string(0, "type")? != "structural_tag" {
        return Err(tags.malformed(0, "type", "it is not `structural_tag`"));
    }
    match document.member(0, "format") {
        Some(format) => {
            tags.check_members(0, &["type", "format"])?;
            tags.run(format)
        }
        None => {
            tags.check_members(0, &["type", "structures", "triggers"])?;
            tags.legacy()
        }
    }
}

impl Tags<'_> {
    /// Lowers all formats below `root`, inner ones first.
    fn run(&mut self, root: JsonId) -> Result<NodeId, CompileError> {
        let mut planned: Vec<(JsonId, Ends)> = vec![(root, Rc::new([]))];
        let mut at = 0;
        while let Some((id, ends)) = planned.get(at).cloned() {
            at += 1;
            planned.extend(self.inner(id, &ends)?);
        }
        for (id, ends) in planned.into_iter().rev() {
            let node = self.format(id, &ends)?;
            self.ir.check_size("the structural tag")?;
            self.nodes.insert(id, node);
        }
        Ok(self.nodes[&root])
    }

    /// The formats within a format, and the ends that each has to see to.
    fn inner(&self, id: JsonId, ends: &Ends) -> Result<Vec<(JsonId, Ends)>, CompileError> {
        let none: Ends = Rc::new([]);
        Ok(match self.string(id, "type")? {
            "sequence" => {
                let elements = self.list(id, "elements")?;
                let last = elements.len().saturating_sub(1);
                let ends = |at| if at == last { ends.clone() } else { none.clone() };
                elements
                    .iter()
                    .enumerate()
                    .map(|(at, part)| (*part, ends(at)))
                    .collect()
            }
            "or" => self
                .list(id, "elements")?
                .iter()
                .map(|part| (*part, ends.clone()))
                .collect(),
            "optional" | "plus" | "star" | "repeat" => vec![(self.required(id, "content")?, none)],
            "tag" => {
                let tag = self.tag(id)?;
                vec![(tag.content, tag.ends)]
            }
            "triggered_tags" | "tags_with_separator" | "token_triggered_tags" => self
                .tags(id)?
                .into_iter()
                .map(|tag| (tag.content, tag.ends))
                .collect(),
            "dispatch" | "token_dispatch" => self
                .rules(id)?
                .into_iter()
                .map(|(_, format)| (format, none.clone()))
                .collect(),
            _ => Vec::new(),
        })
    }

    fn format(&mut self, id: JsonId, ends: &Ends) -> Result<NodeId, CompileError> {
        let kind = self.string(id, "type")?.to_owned();
        match kind.as_str() {
            "any_text" => return self.any_text(id, ends),
            "triggered_tags" => return self.triggered_tags(id, ends),
            "dispatch" => return self.dispatch(id, ends),
            "sequence" => {
                self.check_members(id, &["type", "elements"])?;
                let parts = self.list(id, "elements")?;
                if !parts.is_empty() {
                    let parts = parts.iter().map(|part| self.nodes[part]).collect();
                    return Ok(self.ir.seq(parts));
                }
            }
            "or" => {
                self.check_members(id, &["type", "elements"])?;
                let parts: Vec<_> = self
                    .list(id, "elements")?
                    .iter()
                    .map(|part| self.nodes[part])
                    .collect();
                if parts.is_empty() {
                    return Err(self.malformed(id, "elements", "there are none"));
                }
                return Ok(self.ir.alt(parts));
            }
            _ => {}
        }
        let node = match kind.as_str() {
            "sequence" => self.ir.node(Node::Empty),
            "const_string" => {
                self.check_members(id, &["type", "value"])?;
                let value = self.string(id, "value")?.to_owned();
                self.ir.literal(&value)
            }
            "json_schema" => self.json_schema(id)?,
            "regex" => {
                self.check_members(id, &["type", "pattern"])?;
                let pattern = self.string(id, "pattern")?.to_owned();
                lower_regex(self.ir, &pattern)
                    .map_err(|error| self.malformed(id, "pattern", error.to_string()))?
            }
            "grammar" => {
                self.check_members(id, &["type", "grammar"])?;
                let text = self.string(id, "grammar")?.to_owned();
                let Context {
                    vocabulary, limits, ..
                } = self.context;
                ebnf::compile(self.ir, vocabulary, (&text, Dialect::Ebnf), "root", limits)
                    .map_err(|error| self.malformed(id, "grammar", error.to_string()))?
            }
            "optional" | "plus" | "star" | "repeat" => self.repeat(id, &kind)?,
            "tag" => {
                let tag = self.tag(id)?;
                let begin = self.begin(&tag.begin)?;
                self.ir.seq(vec![begin, self.nodes[&tag.content]])
            }
            "tags_with_separator" => self.tags_with_separator(id)?,
            "token" | "exclude_token" | "any_tokens" => self.token_format(id, &kind)?,
            "token_triggered_tags" | "token_dispatch" => self.token_dispatch(id, &kind)?,
            _ => return Err(self.unsupported(id, "type", &format!("`{kind}` is no format known here"))),
        };
        let end = self.end(ends)?;
        Ok(self.join(node, end))
    }

    fn begin(&mut self, mark: &Mark) -> Result<NodeId, CompileError> {
        match mark {
            Mark::Text(text) => self.ir.marker(self.context.vocabulary, text),
            Mark::Token(token) => Ok(self.ir.token(TokenSet::only(&[*token]))),
        }
    }

    /// Any of `ends`; nothing where there are none.
    fn end(&mut self, ends: &Ends) -> Result<NodeId, CompileError> {
        if ends.is_empty() {
            return Ok(self.ir.node(Node::Empty));
        }
        let ends = ends.iter().map(|mark| self.begin(mark));
        let ends = ends.collect::<Result<_, _>>()?;
        Ok(self.ir.alt(ends))
    }

    fn join(&mut self, first: NodeId, then: NodeId) -> NodeId {
        let empty = self.ir.node(Node::Empty);
        let parts = [first, then].into_iter().filter(|part| *part != empty).collect();
        self.ir.seq(parts)
    }

    fn json_schema(&mut self, id: JsonId) -> Result<NodeId, CompileError> {
        self.check_members(id, &["type", "json_schema", "style", "any_order"])?;
        if self.member(id, "style").is_some() && self.string(id, "style")? != "json" {
            return Err(self.unsupported(id, "style", "only `json` is"));
        }
        if self.is_set(id, "any_order", false)? {
            return Err(self.unsupported(id, "any_order", "members come in the schema's order"));
        }
        self.schema(self.required(id, "json_schema")?)
    }

    fn schema(&mut self, schema: JsonId) -> Result<NodeId, CompileError> {
        let text = match &self.document[schema] {
            Json::String(text) => text,
            _ => self.document.text_of(schema, self.text),
        };
        let source = Source {
            text,
            place: &self.document.pointer(schema),
            values: Values::All,
        };
        let Context { options, limits, .. } = self.context;
        schema::compile(self.ir, source, options, limits)
    }

    fn repeat(&mut self, id: JsonId, kind: &str) -> Result<NodeId, CompileError> {
        let (min, max) = match kind {
            "optional" => (0, Some(1)),
            "plus" => (1, None),
            "star" => (0, None),
            _ => {
                let number = |name| -> Result<i64, CompileError> {
                    let text = self.document.text_of(self.required(id, name)?, self.text);
                    let number = text.parse().ok();
                    let number = number.filter(|n| (-1..=i64::from(i32::MAX)).contains(n));
                    number.ok_or_else(|| self.malformed(id, name, "it is no number of repetitions"))
                };
                let (min, max) = (number("min")?, number("max")?);
                if min < 0 || max != -1 && max < min {
                    return Err(self.malformed(id, "max", "it is below the minimum, or that below zero"));
                }
                (min as u32, u32::try_from(max).ok())
            }
        };
        let known: &[&str] = if kind == "repeat" {
            &["type", "content", "min", "max"]
        } else {
            &["type", "content"]
        };
        self.check_members(id, known)?;
        let content = self.nodes[&self.required(id, "content")?];
        Ok(self.ir.repeat(content, min, max))
    }

    /// Free text that goes on with `markers` and ends with `ends`.
    fn free(
        &mut self,
        id: JsonId,
        markers: Vec<(String, NodeId)>,
        ends: &Ends,
    ) -> Result<NodeId, CompileError> {
        let empty = self.ir.node(Node::Empty);
        let vocabulary = self.context.vocabulary;
        let named = |(text, node): &(String, NodeId)| Some((vocabulary.special_named(text)?, *node));
        let mut spec = FreeSpec {
            tokens: markers.iter().filter_map(named).collect(),
            markers,
            excludes: self.strings(id, "excludes")?,
            ending: Ending::AtMarker,
        };
        if ends.is_empty() {
            spec.ending = Ending::Anywhere;
        }
        for end in ends.iter() {
            match end {
                Mark::Text(text) if text.is_empty() => spec.ending = Ending::Anywhere,
                Mark::Text(text) => {
                    spec.tokens.extend(named(&(text.clone(), empty)));
                    spec.markers.push((text.clone(), empty));
                }
                Mark::Token(token) => spec.tokens.push((*token, empty)),
            }
        }
        spec.tokens.sort_unstable();
        spec.tokens.dedup();
        // The tag's own end is excluded by ending the text.
        spec.excludes
            .retain(|text| !ends.contains(&Mark::Text(text.clone())));
        self.ir.free_text(vocabulary, spec).map_err(|error| match error {
            CompileError::Markers { why } => self.malformed(id, "type", why),
            error => error,
        })
    }

    fn any_text(&mut self, id: JsonId, ends: &Ends) -> Result<NodeId, CompileError> {
        self.check_members(id, &["type", "excludes", "max_tokens", "max_chars"])?;
        for name in ["max_tokens", "max_chars"] {
            if self.member(id, name).is_some() {
                return Err(self.unsupported(id, name, "free text is not counted"));
            }
        }
        self.free(id, Vec::new(), ends)
    }

    fn triggered_tags(&mut self, id: JsonId, ends: &Ends) -> Result<NodeId, CompileError> {
        let known = [
            "type",
            "triggers",
            "tags",
            "at_least_one",
            "stop_after_first",
            "excludes",
        ];
        self.check_members(id, &known)?;
        let mut tags = Vec::new();
        for tag in self.tags(id)? {
            let Mark::Text(begin) = tag.begin else {
                return Err(self.malformed(id, "tags", "a tag begins with a token"));
            };
            tags.push((begin, self.nodes[&tag.content]));
        }
        let at_least_one = self.is_set(id, "at_least_one", false)?;
        let stop_after_first = self.is_set(id, "stop_after_first", false)?;
        self.triggered(id, tags, (at_least_one, stop_after_first), ends)
    }

    /// Free text and `tags`, each its beginning and what follows, its end included.
    fn triggered(
        &mut self,
        id: JsonId,
        tags: Vec<(String, NodeId)>,
        (at_least_one, stop_after_first): (bool, bool),
        ends: &Ends,
    ) -> Result<NodeId, CompileError> {
        let triggers = self.strings(id, "triggers")?;
        if triggers.is_empty() {
            return Err(self.malformed(id, "triggers", "there are none"));
        }
        let rule = self.ir.new_rule();
        let go_on = if stop_after_first {
            self.end(ends)?
        } else {
            self.ir.rule(rule)
        };
        let mut by_trigger: Vec<Vec<NodeId>> = vec![Vec::new(); triggers.len()];
        let mut whole = Vec::new();
        for (begin, content) in tags {
            let mut fits = (0..triggers.len()).filter(|at| begin.starts_with(&triggers[*at]));
            let (Some(trigger), None) = (fits.next(), fits.next()) else {
                let why = format!("not exactly one trigger begins `{begin}`");
                return Err(self.malformed(id, "tags", why));
            };
            let rest = self.ir.literal(&begin[triggers[trigger].len()..]);
            let rest = self.join(rest, content);
            by_trigger[trigger].push(self.join(rest, go_on));
            let begin = self.begin(&Mark::Text(begin))?;
            whole.push(self.join(begin, content));
        }
        if at_least_one && stop_after_first {
            let tags = self.ir.alt(whole);
            return Ok(self.join(tags, go_on));
        }
        let mut markers = Vec::new();
        for (trigger, ways) in triggers.into_iter().zip(by_trigger) {
            if ways.is_empty() {
                let why = format!("no tag begins with `{trigger}`");
                return Err(self.malformed(id, "triggers", why));
            }
            markers.push((trigger, self.ir.alt(ways)));
        }
        let free = self.free(id, markers, ends)?;
        self.ir.define(rule, free);
        if !at_least_one {
            return Ok(free);
        }
        let tags = self.ir.alt(whole);
        Ok(self.join(tags, go_on))
    }

    fn dispatch(&mut self, id: JsonId, ends: &Ends) -> Result<NodeId, CompileError> {
        self.check_members(id, &["type", "rules", "loop", "excludes"])?;
        let rule = self.ir.new_rule();
        let go_on = if self.is_set(id, "loop", true)? {
            self.ir.rule(rule)
        } else {
            self.end(ends)?
        };
        let mut markers = Vec::new();
        for (pattern, format) in self.rules(id)? {
            let Json::String(pattern) = &self.document[pattern] else {
                return Err(self.malformed(id, "rules", "a pattern is not a string"));
            };
            let pattern = pattern.clone();
            markers.push((pattern, self.join(self.nodes[&format], go_on)));
        }
        let free = self.free(id, markers, ends)?;
        self.ir.define(rule, free);
        Ok(free)
    }

    fn tags_with_separator(&mut self, id: JsonId) -> Result<NodeId, CompileError> {
        let known = ["type", "tags", "separator", "at_least_one", "stop_after_first"];
        self.check_members(id, &known)?;
        let separator = self.string(id, "separator")?.to_owned();
        let mut tags = Vec::new();
        for tag in self.tags(id)? {
            let begin = self.begin(&tag.begin)?;
            tags.push(self.join(begin, self.nodes[&tag.content]));
        }
        let mut node = self.ir.alt(tags);
        if !self.is_set(id, "stop_after_first", false)? {
            let separator = self.ir.literal(&separator);
            let more = self.join(separator, node);
            let more = self.ir.repeat(more, 0, None);
            node = self.join(node, more);
        }
        let min = u32::from(self.is_set(id, "at_least_one", false)?);
        Ok(self.ir.repeat(node, min, Some(1)))
    }

    fn token_format(&mut self, id: JsonId, kind: &str) -> Result<NodeId, CompileError> {
        if kind == "token" {
            self.check_members(id, &["type", "token"])?;
            let token = self.token(id, self.required(id, "token")?)?;
            return Ok(self.ir.token(TokenSet::only(&[token])));
        }
        self.check_members(id, &["type", "exclude_tokens", "max_tokens"])?;
        if self.member(id, "max_tokens").is_some() {
            return Err(self.unsupported(id, "max_tokens", "free text is not counted"));
        }
        let set = TokenSet::all_but(&self.tokens(id, "exclude_tokens")?);
        let one = self.ir.token(set);
        Ok(match kind {
            "any_tokens" => self.ir.repeat(one, 0, None),
            _ => one,
        })
    }

    /// `token_triggered_tags` and `token_dispatch`.
    fn token_dispatch(&mut self, id: JsonId, kind: &str) -> Result<NodeId, CompileError> {
        let mut ways: Vec<(u32, NodeId)> = Vec::new();
        let (at_least_one, is_once);
        if kind == "token_dispatch" {
            self.check_members(id, &["type", "rules", "loop", "exclude_tokens"])?;
            for (pattern, format) in self.rules(id)? {
                ways.push((self.token(id, pattern)?, self.nodes[&format]));
            }
            (at_least_one, is_once) = (false, !self.is_set(id, "loop", true)?);
        } else {
            let known = [
                "type",
                "trigger_tokens",
                "tags",
                "exclude_tokens",
                "at_least_one",
                "stop_after_first",
            ];
            self.check_members(id, &known)?;
            let triggers = self.tokens(id, "trigger_tokens")?;
            for tag in self.tags(id)? {
                match tag.begin {
                    Mark::Token(token) if triggers.contains(&token) => {
                        ways.push((token, self.nodes[&tag.content]));
                    }
                    _ => return Err(self.malformed(id, "tags", "a tag begins with none of the triggers")),
                }
            }
            at_least_one = self.is_set(id, "at_least_one", false)?;
            is_once = self.is_set(id, "stop_after_first", false)?;
        }
        let mut others = self.tokens(id, "exclude_tokens")?;
        others.extend(ways.iter().map(|(token, _)| *token));
        let mut calls = Vec::new();
        for (token, node) in ways {
            let token = self.ir.token(TokenSet::only(&[token]));
            calls.push(self.join(token, node));
        }
        let call = self.ir.alt(calls);
        let text = self.ir.token(TokenSet::all_but(&others));
        let any = self.ir.alt(vec![text, call]);
        let free = self.ir.repeat(any, 0, None);
        Ok(match (at_least_one, is_once) {
            (true, true) => call,
            (true, false) => self.join(call, free),
            (false, false) => free,
            (false, true) => {
                let text = self.ir.repeat(text, 0, None);
                let call = self.ir.repeat(call, 0, Some(1));
                self.join(text, call)
            }
        })
    }

    /// The older shape.
    fn legacy(&mut self) -> Result<NodeId, CompileError> {
        let structures = self.list(0, "structures")?.to_vec();
        if structures.is_empty() {
            return Err(self.malformed(0, "structures", "there are none; `format` is missing too"));
        }
        let mut tags = Vec::new();
        for id in structures {
            self.check_members(id, &["begin", "schema", "end"])?;
            let (begin, end) = (
                self.string(id, "begin")?.to_owned(),
                self.string(id, "end")?.to_owned(),
            );
            let schema = self.schema(self.required(id, "schema")?)?;
            let end = self.begin(&Mark::Text(end))?;
            tags.push((begin, self.join(schema, end)));
        }
        let none: Ends = Rc::new([]);
        self.triggered(0, tags, (false, false), &none)
    }
}
