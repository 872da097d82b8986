//! The one form that schemas, regular expressions and grammars are translated to.
//!
//! A grammar is a graph of nodes. Leaves are byte automata, constant bytes and JSON strings; objects and
//! arrays stay one node each, so that 300 optional properties cost 300 entries and not 2^300 paths. Rules are
//! names for nodes and the only way to form a cycle.
//!
//! Invariants after [`Ir::finish`]: no rule reaches itself without consuming a byte; what `needs` says never
//! to matches nothing and is never entered.

use std::convert::Infallible;
use std::sync::Arc;

pub(crate) use crate::array::Array;
use crate::beginnings::Ranks;
use crate::cache::Cache;
use crate::dfa::Built;
use crate::dfa::{Classes, Dfa};
use crate::error::CompileError;
use crate::free_text::FreeText;
use crate::hash::Map;
use crate::limits::Limits;
use crate::mark::Mark;
use crate::nesting::{NEVER, NeedsWithin};
pub(crate) use crate::object::{Choice, Key, Object};
use crate::pattern::{Bounds, Pattern, Syntax};
use crate::plenty::Plenty;
use crate::schema::{Relaxed, Whitespace};
use crate::text::TextSpec;
use crate::tokens::TokenSet;
use crate::vocabulary::Vocabulary;

pub(crate) type NodeId = u32;
pub(crate) type RuleId = u32;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    Never,
    Empty,
    Dfa(u32),
    /// A JSON string with its quotes.
    Text(u32),
    Seq(Box<[NodeId]>),
    Alt(Box<[NodeId]>),
    Repeat {
        body: NodeId,
        min: u32,
        max: Option<u32>,
    },
    Rule(RuleId),
    /// A part that says something of the tokens within it.
    Marked {
        body: NodeId,
        mark: u32,
    },
    Object(u32),
    Array(u32),
    /// One token, by its number.
    Token(u32),
    Free(u32),
}

/// What may stand around JSON's punctuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Runs of whitespace, each of which ends.
    Flexible,
    /// Nothing.
    Compact,
    /// One space behind commas and colons.
    Spaced,
}

/// Punctuation with the whitespace that may surround it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Punctuation {
    pub(crate) open_object: NodeId,
    pub(crate) close_object: NodeId,
    pub(crate) close_empty_object: NodeId,
    pub(crate) open_array: NodeId,
    pub(crate) close_array: NodeId,
    pub(crate) close_empty_array: NodeId,
    pub(crate) comma: NodeId,
    pub(crate) colon: NodeId,
}

impl Punctuation {
    /// All that an object needs.
    pub(crate) fn of_objects(&self) -> [NodeId; 5] {
        [
            self.open_object,
            self.close_object,
            self.close_empty_object,
            self.comma,
            self.colon,
        ]
    }

    /// All that an array needs.
    pub(crate) fn of_arrays(&self) -> [NodeId; 4] {
        [
            self.open_array,
            self.close_array,
            self.close_empty_array,
            self.comma,
        ]
    }
}

#[derive(Debug)]
pub(crate) struct Ir {
    pub(crate) nodes: Vec<Node>,
    node_ids: Map<Node, NodeId>,
    pub(crate) rules: Vec<NodeId>,
    pub(crate) dfas: Vec<Arc<Dfa>>,
    dfa_ids: Map<Arc<Dfa>, u32>,
    pub(crate) texts: Vec<Arc<TextSpec>>,
    /// By their place in memory.
    text_ids: Map<usize, u32>,
    pub(crate) objects: Vec<Object>,
    pub(crate) arrays: Vec<Array>,
    pub(crate) token_sets: Vec<TokenSet>,
    pub(crate) token_set_ids: Map<TokenSet, u32>,
    pub(crate) free_texts: Vec<FreeText>,
    pub(crate) marks: Vec<Mark>,
    /// Whether any mark limits tokens.
    pub(crate) has_limits: bool,
    /// Whether any token may be taken by its number.
    pub(crate) has_tokens: bool,
    pub(crate) punctuation: Punctuation,
    /// What is left out of the schemas.
    pub(crate) relaxed: Vec<Relaxed>,
    pub(crate) root: NodeId,
    /// By node, the least depth that completes it.
    pub(crate) needs: Vec<u32>,
    pub(crate) needs_within: NeedsWithin,
    pub(crate) ranks: Ranks,
    /// By node, whether the empty text is one of its texts.
    pub(crate) may_be_empty: Vec<bool>,
    /// By node, of a sequence the part from which on all may be empty.
    pub(crate) empty_from: Vec<u32>,
    /// How many values there are, where some must be distinct.
    pub(crate) plenty: Option<Plenty>,
    /// Whether anything is repeated a number of times that matters.
    pub(crate) has_counts: bool,
    /// Rules of a grammar's text and their bodies.
    pub(crate) rule_names: Vec<(String, NodeId)>,
    pub(crate) classes: Classes,
    is_spelled: [bool; 256],
    cache: Arc<Cache>,
    /// Any string at all.
    pub(crate) any_text: Arc<TextSpec>,
    max_nodes: usize,
    max_readings: usize,
    bounds: Bounds,
}

impl Ir {
    /// An empty grammar whose output is spelled with the bytes of `vocabulary`; `whitespace` may stand around
    /// punctuation.
    pub(crate) fn new(vocabulary: &Vocabulary, limits: &Limits, whitespace: Whitespace) -> Self {
        let none = Punctuation {
            open_object: 0,
            close_object: 0,
            close_empty_object: 0,
            open_array: 0,
            close_array: 0,
            close_empty_array: 0,
            comma: 0,
            colon: 0,
        };
        let mut ir = Self {
            nodes: vec![Node::Never],
            node_ids: Map::default(),
            rules: Vec::new(),
            dfas: Vec::new(),
            dfa_ids: Map::default(),
            texts: Vec::new(),
            text_ids: Map::default(),
            objects: Vec::new(),
            arrays: Vec::new(),
            token_sets: Vec::new(),
            token_set_ids: Map::default(),
            free_texts: Vec::new(),
            marks: Vec::new(),
            has_limits: false,
            has_tokens: false,
            punctuation: none,
            relaxed: Vec::new(),
            root: 0,
            needs: Vec::new(),
            needs_within: NeedsWithin::default(),
            ranks: Ranks::default(),
            may_be_empty: Vec::new(),
            empty_from: Vec::new(),
            plenty: None,
            has_counts: false,
            rule_names: Vec::new(),
            classes: Classes::by(|_| ()),
            is_spelled: *vocabulary.is_spelled(),
            cache: vocabulary.cache().clone(),
            any_text: vocabulary.any_text().clone(),
            max_nodes: limits.max_nodes,
            max_readings: limits.max_readings,
            bounds: Bounds::new(limits),
        };
        let layout = match whitespace {
            Whitespace::Any => Layout::Flexible,
            Whitespace::None => Layout::Compact,
        };
        ir.lay_out(layout, limits.max_indent);
        ir
    }

    /// Sets what stands around JSON's punctuation; lines begin with up to `max_indent` characters.
    pub(crate) fn lay_out(&mut self, layout: Layout, max_indent: usize) {
        let run = (layout == Layout::Flexible).then_some(max_indent);
        self.punctuation = Punctuation {
            open_object: self.mark(None, b'{', run),
            close_object: self.mark(run, b'}', None),
            close_empty_object: self.mark(None, b'}', None),
            open_array: self.mark(None, b'[', run),
            close_array: self.mark(run, b']', None),
            close_empty_array: self.mark(None, b']', None),
            comma: self.mark(run, b',', run),
            colon: self.mark(run, b':', run),
        };
        if layout == Layout::Spaced {
            self.punctuation.comma = self.literal(", ");
            self.punctuation.colon = self.literal(": ");
        }
    }

    /// `byte` between two runs of whitespace.
    fn mark(&mut self, before: Option<usize>, byte: u8, after: Option<usize>) -> NodeId {
        let recipe = format!("punctuation {before:?} {byte} {after:?}");
        let cache = self.cache.clone();
        let made = cache.automaton(recipe, || {
            let dfa = punctuation(before, byte, after).trimmed(&self.is_spelled);
            Ok::<_, Infallible>(Built { dfa, n_work: 0 })
        });
        let Ok((dfa, _)) = made;
        self.shared_dfa(dfa)
    }

    pub(crate) fn node(&mut self, node: Node) -> NodeId {
        if node == Node::Never {
            return 0;
        }
        let fresh = self.nodes.len() as u32;
        let id = *self.node_ids.entry(node.clone()).or_insert(fresh);
        if id == fresh {
            self.nodes.push(node);
        }
        id
    }

    /// A leaf for `dfa`, less what cannot be spelled.
    pub(crate) fn dfa(&mut self, dfa: Dfa) -> NodeId {
        let dfa = Arc::new(dfa.spelled(&self.is_spelled));
        self.shared_dfa(dfa)
    }

    /// A leaf for `dfa`, which can be spelled.
    pub(crate) fn shared_dfa(&mut self, dfa: Arc<Dfa>) -> NodeId {
        let fresh = self.dfas.len() as u32;
        let id = *self.dfa_ids.entry(dfa.clone()).or_insert(fresh);
        if id == fresh {
            self.dfas.push(dfa);
        }
        self.node(Node::Dfa(id))
    }

    /// An automaton whose states are referred to by number and must stay as they are.
    pub(crate) fn push_dfa(&mut self, dfa: Dfa) -> u32 {
        self.dfas.push(Arc::new(dfa));
        self.dfas.len() as u32 - 1
    }

    pub(crate) fn literal(&mut self, text: &str) -> NodeId {
        if text.is_empty() {
            return self.node(Node::Empty);
        }
        self.dfa(Dfa::of_strings([text.as_bytes()]))
    }

    /// The texts that `pattern` is found in, and the work that they take to find. Patterns of one `recipe`
    /// are equal.
    pub(crate) fn search(&self, pattern: &Pattern, recipe: &str) -> Result<(Arc<Dfa>, u64), CompileError> {
        let bounds = self.bounds;
        let recipe = format!("search {bounds:?} {recipe}");
        self.cache.automaton(recipe, || pattern.search(bounds))
    }

    /// The same for the texts that `source`, in Rust's syntax, matches from end to end.
    pub(crate) fn pattern(&self, source: &str) -> Result<(Arc<Dfa>, u64), CompileError> {
        let bounds = self.bounds;
        self.cache.automaton(format!("match {bounds:?} {source}"), || {
            Pattern::parse(source, Syntax::Rust)?.automaton(bounds)
        })
    }

    /// The automaton that `make` makes, always the same one, which is called `name`; and a work in
    /// proportion.
    pub(crate) fn made(&self, name: &str, make: impl FnOnce() -> Dfa) -> (Arc<Dfa>, u64) {
        let made = self.cache.automaton(name.to_owned(), || {
            let dfa = make();
            let n_work = 8 * (dfa.n_states() * dfa.classes().len()) as u64;
            Ok::<_, Infallible>(Built { dfa, n_work })
        });
        let Ok(made) = made;
        made
    }

    /// JSON strings whose content `content` accepts and that have `min ..= max` characters.
    pub(crate) fn text_of(&mut self, content: Arc<Dfa>, min: u32, max: Option<u32>) -> NodeId {
        let text = self.cache.spec(content, min, max, &self.is_spelled);
        self.text(text)
    }

    pub(crate) fn text(&mut self, text: Arc<TextSpec>) -> NodeId {
        let fresh = self.texts.len() as u32;
        let id = *self.text_ids.entry(Arc::as_ptr(&text) as usize).or_insert(fresh);
        if id == fresh {
            self.texts.push(text);
        }
        self.node(Node::Text(id))
    }

    pub(crate) fn seq(&mut self, parts: Vec<NodeId>) -> NodeId {
        match parts.as_slice() {
            [] => self.node(Node::Empty),
            [one] => *one,
            _ => self.node(Node::Seq(parts.into())),
        }
    }

    pub(crate) fn alt(&mut self, mut parts: Vec<NodeId>) -> NodeId {
        let mut seen = std::collections::BTreeSet::new();
        parts.retain(|part| *part != 0 && seen.insert(*part));
        match parts.as_slice() {
            [] => 0,
            [one] => *one,
            _ => self.node(Node::Alt(parts.into())),
        }
    }

    pub(crate) fn repeat(&mut self, body: NodeId, min: u32, max: Option<u32>) -> NodeId {
        match (min, max) {
            (_, Some(0)) => self.node(Node::Empty),
            (1, Some(1)) => body,
            _ => self.node(Node::Repeat { body, min, max }),
        }
    }

    pub(crate) fn object(&mut self, object: Object) -> NodeId {
        self.objects.push(object);
        self.node(Node::Object(self.objects.len() as u32 - 1))
    }

    pub(crate) fn array(&mut self, array: Array) -> NodeId {
        self.arrays.push(array);
        self.node(Node::Array(self.arrays.len() as u32 - 1))
    }

    /// A name whose meaning is set later.
    pub(crate) fn new_rule(&mut self) -> RuleId {
        self.rules.push(0);
        self.rules.len() as u32 - 1
    }

    pub(crate) fn define(&mut self, rule: RuleId, node: NodeId) {
        self.rules[rule as usize] = node;
    }

    pub(crate) fn rule(&mut self, rule: RuleId) -> NodeId {
        self.node(Node::Rule(rule))
    }

    /// What the vocabulary's grammars share.
    pub(crate) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub(crate) fn is_spelled(&self) -> &[bool; 256] {
        &self.is_spelled
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// About how much memory it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        let of_node = |node: &Node| match node {
            Node::Seq(parts) | Node::Alt(parts) => 2 * (size_of::<Node>() + parts.len() * 4),
            _ => 2 * size_of::<Node>(),
        };
        self.nodes.iter().map(of_node).sum::<usize>()
            + self.dfas.iter().map(|dfa| dfa.n_bytes()).sum::<usize>()
            + self.texts.iter().map(|text| text.n_bytes()).sum::<usize>()
            + self.objects.iter().map(Object::n_bytes).sum::<usize>()
            + self.arrays.iter().map(Array::n_bytes).sum::<usize>()
            + self.token_sets.iter().map(|set| 2 * set.n_bytes()).sum::<usize>()
            + self.free_texts.iter().map(FreeText::n_bytes).sum::<usize>()
            + self.marks.len() * size_of::<Mark>()
            + self.relaxed.iter().map(Relaxed::n_bytes).sum::<usize>()
            + self.plenty.as_ref().map_or(0, Plenty::n_bytes)
            + self.rules.len() * 4
    }

    /// The fewest bodies of the repetition `node`.
    pub(crate) fn min_of_repeat(&self, node: NodeId) -> u32 {
        let Node::Repeat { min, .. } = self.nodes[node as usize] else {
            unreachable!("only a repetition has frames that count");
        };
        min
    }

    /// Refuses a grammar that has outgrown its limit.
    pub(crate) fn check_size(&self, place: &str) -> Result<(), CompileError> {
        self.check_nodes(self.nodes.len(), place)
    }

    /// The same for one that leaves less than a quarter of what it may have.
    pub(crate) fn check_room(&self, place: &str) -> Result<(), CompileError> {
        self.check_nodes(self.nodes.len() + self.max_nodes / 4, place)
    }

    fn check_nodes(&self, n_nodes: usize, place: &str) -> Result<(), CompileError> {
        if n_nodes <= self.max_nodes {
            return Ok(());
        }
        Err(CompileError::Limit {
            name: "max_nodes",
            limit: self.max_nodes as u64,
            place: place.to_owned(),
        })
    }

    /// Completes the grammar that begins at `root`.
    pub(crate) fn finish(mut self, root: NodeId) -> Result<Self, CompileError> {
        self.check_size("the whole grammar")?;
        self.root = root;
        self.prepare_distinct();
        self.needs = self.least_depths(Vec::new());
        let is_productive = |node: NodeId| self.needs[node as usize] != NEVER;
        for object in &mut self.objects {
            object.finish(is_productive);
        }
        for array in &mut self.arrays {
            array.finish(is_productive);
        }
        if !is_productive(root) {
            return Err(CompileError::Empty {
                why: "the constraints contradict each other, or need bytes that no token spells".to_owned(),
            });
        }
        self.needs_within = NeedsWithin::new(&self);
        self.ranks = self.check_beginnings(self.max_readings)?;
        self.count_distinct()?;
        // Where texts are kept, no two bytes do the same.
        self.classes = match self.plenty {
            None => self.all_classes(),
            Some(_) => Classes::by(|byte| byte),
        };
        self.has_tokens |= !self.token_sets.is_empty();
        let counts =
            |node: &Node| matches!(node, Node::Repeat { min, max, .. } if (*min).max(max.unwrap_or(0)) > 1);
        self.has_counts = self.nodes.iter().any(counts);
        Ok(self)
    }

    /// Whether a text matches `node`, whose rules are all defined.
    pub(crate) fn is_satisfiable(&mut self, node: NodeId) -> bool {
        let known = std::mem::take(&mut self.needs);
        self.needs = self.least_depths(known);
        self.needs[node as usize] != NEVER
    }

    fn all_classes(&self) -> Classes {
        let mut classes = Classes::by(|_| ());
        for dfa in &self.dfas {
            classes = classes.refine(dfa.classes());
        }
        for text in &self.texts {
            classes = classes.refine(text.classes());
        }
        let mut is_alone = [false; 256];
        for object in &self.objects {
            object.trie.mark_bytes(&mut is_alone);
        }
        classes.refine(&Classes::by(|byte| is_alone[usize::from(byte)].then_some(byte)))
    }
}

/// Where a run of whitespace is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Run {
    /// So many spaces.
    Spaces(usize),
    /// So many spaces and tabs after a newline.
    Indent(usize),
}

/// Spaces of a run before its newline.
const MAX_SPACES: usize = 2;

impl Run {
    /// After one more byte; lines begin with up to `max_indent` characters.
    fn after(self, byte: u8, max_indent: usize) -> Option<Self> {
        match (self, byte) {
            (Self::Spaces(n), b' ') if n < MAX_SPACES => Some(Self::Spaces(n + 1)),
            (Self::Spaces(_), b'\n') => Some(Self::Indent(0)),
            (Self::Indent(n), b' ' | b'\t') if n < max_indent => Some(Self::Indent(n + 1)),
            _ => None,
        }
    }
}

/// `byte` between two runs of whitespace, each with the longest beginning of its line, where there may be
/// one.
fn punctuation(before: Option<usize>, byte: u8, after: Option<usize>) -> Dfa {
    let classes = Classes::by(|other| match other {
        b' ' | b'\t' | b'\n' => other,
        _ => u8::from(other == byte),
    });
    let step = |(is_after, run): &(bool, Run), next: u8| {
        if next == byte {
            return (!is_after).then_some((true, Run::Spaces(0)));
        }
        let max_indent = if *is_after { after } else { before };
        Some((*is_after, run.after(next, max_indent?)?))
    };
    let start = (false, Run::Spaces(0));
    Dfa::explore_unreduced(classes, start, step, |state| state.0, usize::MAX).expect("no limit is set")
}
