//! `enum` and `const`: the listed values themselves.

use super::lower::Merged;
use super::{Array, CompileError, Compiler, Dfa, Json, JsonId, KeyTrie, NodeId, Object};
use crate::ir::Key;
use crate::number::{Bound, Decimal, NumberSpec, automaton};

impl Compiler<'_> {
    /// The values that `enum` or `const` of one schema allows; `None` where it has neither.
    pub(super) fn listed_values(&self, id: JsonId) -> Option<Vec<JsonId>> {
        let constant = self.document.member(id, "const");
        let listed = self
            .document
            .member(id, "enum")
            .map(|list| match &self.document[list] {
                Json::Array(items) => items.clone(),
                _ => Vec::new(),
            });
        match (constant, listed) {
            (Some(constant), Some(mut listed)) => {
                listed.retain(|value| self.document.is_equal(*value, constant));
                Some(listed)
            }
            (Some(constant), None) => Some(vec![constant]),
            (None, listed) => listed,
        }
    }

    /// The listed values that satisfy the other keywords in `merged` as well.
    pub(super) fn lower_values(
        &mut self,
        values: &[JsonId],
        merged: &Merged,
    ) -> Result<NodeId, CompileError> {
        let (mut nodes, mut texts) = (Vec::new(), Vec::new());
        for value in values {
            self.spend(8)?;
            if merged.types & super::lower::type_of(&self.document[*value]) == 0 {
                continue;
            }
            match &self.document[*value] {
                Json::String(text) => {
                    let n_chars = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
                    let fits =
                        n_chars >= merged.min_length && merged.max_length.is_none_or(|max| n_chars <= max);
                    if fits && merged.contents.iter().all(|content| accepts(content, text)) {
                        texts.push(text.as_bytes());
                    }
                }
                Json::Number(number) => {
                    let within = NumberSpec {
                        min: tighter(&merged.number.min, number, true),
                        max: tighter(&merged.number.max, number, false),
                        ..merged.number.clone()
                    };
                    if within.min.is_some() && within.max.is_some() {
                        nodes.push(self.number_node(&within, merged.first)?);
                    }
                }
                Json::Null | Json::Bool(_) => nodes.push(self.value_node(*value)?),
                Json::Array(_) | Json::Object(_) => {
                    if merged.has_compound {
                        let why = "listed arrays and objects beside other keywords on them";
                        return Err(self.unsupported(merged.first, "enum", why));
                    }
                    nodes.push(self.value_node(*value)?);
                }
            }
        }
        if !texts.is_empty() {
            nodes.push(self.texts_node(&Dfa::of_strings(texts)));
        }
        Ok(self.ir.alt(nodes))
    }

    fn texts_node(&mut self, content: &Dfa) -> NodeId {
        self.ir.text_of(content, 0, None)
    }

    /// Exactly `value`. Recursion is as deep as the document, which `max_source_depth` bounds.
    pub(super) fn value_node(&mut self, value: JsonId) -> Result<NodeId, CompileError> {
        let document = self.document;
        Ok(match &document[value] {
            Json::Null => self.ir.literal("null"),
            Json::Bool(true) => self.ir.literal("true"),
            Json::Bool(false) => self.ir.literal("false"),
            Json::String(text) => self.texts_node(&Dfa::of_strings([text.as_bytes()])),
            Json::Number(number) => {
                let exactly = NumberSpec {
                    min: tighter(&None, number, true),
                    max: tighter(&None, number, false),
                    is_integer: number.is_integer(),
                    multiples: Vec::new(),
                };
                self.number_node(&exactly, value)?
            }
            Json::Array(items) => {
                let prefix = items
                    .iter()
                    .map(|item| self.value_node(*item))
                    .collect::<Result<Vec<_>, _>>()?;
                let n = prefix.len() as u32;
                self.ir.array(Array {
                    prefix,
                    rest: None,
                    min: n,
                    max: Some(n),
                    distinct: Vec::new(),
                })
            }
            Json::Object(members) => {
                let mut keys = Vec::new();
                for (name, value) in members {
                    keys.push(Key {
                        name: name.clone(),
                        value: self.value_node(*value)?,
                        is_required: true,
                    });
                }
                self.ir.object(Object {
                    keys,
                    trie: KeyTrie::new(std::iter::empty()),
                    extras: Vec::new(),
                    min: 0,
                    max: None,
                })
            }
        })
    }

    /// Numbers as `spec` has them; `at` is where it stands.
    pub(super) fn number_node(&mut self, spec: &NumberSpec, at: JsonId) -> Result<NodeId, CompileError> {
        self.spend(500)?;
        let max = self.ir.max_automaton_states();
        let cache = self.ir.cache().clone();
        let dfa = cache.automaton(format!("number {max} {spec:?}"), || {
            let dfa = automaton(spec, max).map_err(|error| match error {
                Some(_) => CompileError::Limit {
                    name: "max_automaton_states",
                    limit: max as u64,
                    place: format!("the numbers of {}", self.document.pointer(at)),
                },
                None => self.unsupported(
                    at,
                    "multipleOf",
                    "the divisor has too many digits or is not positive",
                ),
            });
            Ok(dfa?.trimmed(self.ir.is_spelled()))
        })?;
        Ok(self.ir.shared_dfa(dfa))
    }
}

fn accepts(content: &Dfa, text: &str) -> bool {
    let end = text
        .bytes()
        .fold(content.start(), |state, byte| content.step(state, byte));
    content.is_accepting(end)
}

/// `value` as a bound, unless `bound` keeps it out.
fn tighter(bound: &Option<Bound>, value: &Decimal, is_lower: bool) -> Option<Bound> {
    let is_out = bound.as_ref().is_some_and(|bound| {
        let beyond = if is_lower {
            *value < bound.value
        } else {
            *value > bound.value
        };
        beyond || bound.is_exclusive && *value == bound.value
    });
    (!is_out).then(|| Bound {
        value: value.clone(),
        is_exclusive: false,
    })
}
