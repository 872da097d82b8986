//! Compiled grammars, kept for whoever asks for the same again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::constraint::Constraint;
use crate::error::CompileError;
use crate::grammar::Grammar;
use crate::hash::Map;
use crate::limits::Limits;
use crate::schema::{Enforcement, SchemaOptions};
use crate::tools::{CallFormat, ParallelCalls, ToolChoice};
use crate::vocabulary::Vocabulary;

/// Compiled grammars of one vocabulary by their exact text, options and limits. Bounded in bytes; the ones
/// that were not asked for longest go first. A grammar found here has the states and masks that its outputs
/// reached, so that its first mask costs a look-up.
#[derive(Debug)]
pub struct GrammarCache {
    vocabulary: Arc<Vocabulary>,
    max_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: Map<Key, (Grammar, u64)>,
    n_asked: u64,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Source,
    limits: Limits,
}

/// A [`Constraint`] of its own.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Source {
    Schema(String, SchemaOptions),
    Regex(String),
    Choice(Box<[String]>),
    Gbnf(String),
    Ebnf {
        text: String,
        root: String,
    },
    Lark(String, SchemaOptions),
    StructuralTag(String, SchemaOptions),
    Tools(Tools),
    After {
        marker: String,
        then: Box<Self>,
    },
    MaybeAfter {
        opening: String,
        marker: String,
        then: Box<Self>,
    },
    Either(Box<[Self]>),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Tools {
    /// Names, parameters, and what happens to what cannot be enforced.
    tools: Box<[(String, String, Enforcement)]>,
    format: CallFormat,
    choice: Choice,
    parallel: ParallelCalls,
    options: SchemaOptions,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Choice {
    Auto,
    Required,
    Named(String),
}

impl GrammarCache {
    /// An empty cache for grammars of `vocabulary` that keeps at most about `max_bytes`, and always the
    /// grammar asked for last.
    pub fn new(vocabulary: Arc<Vocabulary>, max_bytes: usize) -> Self {
        Self {
            vocabulary,
            max_bytes,
            kept: Mutex::default(),
        }
    }

    /// The grammar, if it is kept.
    pub fn find(&self, constraint: &Constraint<'_>, limits: &Limits) -> Option<Grammar> {
        let key = Key {
            source: Source::of(constraint),
            limits: limits.clone(),
        };
        self.lock().find(&key)
    }

    /// As [`Grammar::compile`].
    ///
    /// # Errors
    /// As there; failures are not kept.
    pub fn compile(&self, constraint: &Constraint<'_>, limits: &Limits) -> Result<Grammar, CompileError> {
        let key = Key {
            source: Source::of(constraint),
            limits: limits.clone(),
        };
        if let Some(known) = self.lock().find(&key) {
            return Ok(known);
        }
        let grammar = Grammar::compile(&self.vocabulary, constraint, limits)?;
        let mut kept = self.lock();
        kept.n_asked += 1;
        let entry = (grammar.clone(), kept.n_asked);
        kept.entries.insert(key, entry);
        while kept.entries.len() > 1 && kept.n_bytes() > self.max_bytes {
            let oldest = kept.entries.values().map(|(_, asked)| *asked).min();
            kept.entries.retain(|_, (_, asked)| Some(*asked) != oldest);
        }
        Ok(grammar)
    }

    /// As [`Grammar::compile_json_schema`].
    ///
    /// # Errors
    /// As there; failures are not kept.
    pub fn json_schema(
        &self,
        schema: &str,
        options: &SchemaOptions,
        limits: &Limits,
    ) -> Result<Grammar, CompileError> {
        let options = *options;
        self.compile(&Constraint::JsonSchema { schema, options }, limits)
    }

    /// As [`Grammar::compile_regex`].
    ///
    /// # Errors
    /// As there; failures are not kept.
    pub fn regex(&self, regex: &str, limits: &Limits) -> Result<Grammar, CompileError> {
        self.compile(&Constraint::Regex(regex), limits)
    }

    /// As [`Grammar::compile_choice`].
    ///
    /// # Errors
    /// As there; failures are not kept.
    pub fn choice(&self, choices: &[&str], limits: &Limits) -> Result<Grammar, CompileError> {
        self.compile(&Constraint::Choice(choices), limits)
    }

    /// Bytes held by the grammars that are kept.
    pub fn n_bytes(&self) -> usize {
        self.lock().n_bytes()
    }

    /// Grammars that are kept.
    pub fn n_grammars(&self) -> usize {
        self.lock().entries.len()
    }

    /// Entries are added and removed whole, so that a holder's panic leaves nothing broken.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, key: &Key) -> Option<Grammar> {
        let (grammar, asked) = self.entries.get_mut(key)?;
        self.n_asked += 1;
        *asked = self.n_asked;
        Some(grammar.clone())
    }

    /// Grammars grow as they are used, so that it is asked anew each time.
    fn n_bytes(&self) -> usize {
        let of_entry = |(key, (grammar, _)): (&Key, &(Grammar, u64))| key.n_bytes() + grammar.n_bytes();
        self.entries.iter().map(of_entry).sum()
    }
}

impl Key {
    fn n_bytes(&self) -> usize {
        size_of::<Self>() + self.source.n_bytes()
    }
}

impl Source {
    fn of(constraint: &Constraint<'_>) -> Self {
        let owned = |text: &str| text.to_owned();
        match *constraint {
            Constraint::JsonSchema { schema, options } => Self::Schema(owned(schema), options),
            Constraint::Regex(regex) => Self::Regex(owned(regex)),
            Constraint::Choice(choices) => Self::Choice(choices.iter().copied().map(owned).collect()),
            Constraint::Gbnf(text) => Self::Gbnf(owned(text)),
            Constraint::Ebnf { text, root } => Self::Ebnf {
                text: owned(text),
                root: owned(root),
            },
            Constraint::Lark { text, options } => Self::Lark(owned(text), options),
            Constraint::StructuralTag { text, options } => Self::StructuralTag(owned(text), options),
            Constraint::Tools(spec) => Self::Tools(Tools {
                tools: spec
                    .tools
                    .iter()
                    .map(|tool| (owned(tool.name), owned(tool.parameters), tool.enforcement))
                    .collect(),
                format: spec.format,
                choice: match spec.choice {
                    ToolChoice::Auto => Choice::Auto,
                    ToolChoice::Required => Choice::Required,
                    ToolChoice::Named(name) => Choice::Named(owned(name)),
                },
                parallel: spec.parallel,
                options: spec.options,
            }),
            Constraint::After { marker, then } => Self::After {
                marker: owned(marker),
                then: Box::new(Self::of(then)),
            },
            Constraint::MaybeAfter {
                opening,
                marker,
                then,
            } => Self::MaybeAfter {
                opening: owned(opening),
                marker: owned(marker),
                then: Box::new(Self::of(then)),
            },
            Constraint::Either(parts) => Self::Either(parts.iter().map(Self::of).collect()),
        }
    }

    /// Bytes of memory besides its own.
    fn n_bytes(&self) -> usize {
        match self {
            Self::Schema(text, _)
            | Self::Regex(text)
            | Self::Gbnf(text)
            | Self::Lark(text, _)
            | Self::StructuralTag(text, _) => text.len(),
            Self::Ebnf { text, root } => text.len() + root.len(),
            Self::Choice(choices) => choices
                .iter()
                .map(|choice| choice.len() + size_of::<String>())
                .sum(),
            Self::Tools(spec) => {
                let of_tool = |(name, text, _): &(String, String, Enforcement)| {
                    name.len() + text.len() + size_of::<(String, String, Enforcement)>()
                };
                spec.tools.iter().map(of_tool).sum()
            }
            Self::After { marker, then } => marker.len() + size_of::<Self>() + then.n_bytes(),
            Self::MaybeAfter {
                opening,
                marker,
                then,
            } => opening.len() + marker.len() + size_of::<Self>() + then.n_bytes(),
            Self::Either(parts) => parts.iter().map(|part| size_of::<Self>() + part.n_bytes()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(max_bytes: usize) -> GrammarCache {
        let tokens = (0..=255u8).map(|byte| Some(vec![byte]));
        let vocabulary = Vocabulary::new(tokens, &[]).expect("every byte");
        GrammarCache::new(Arc::new(vocabulary), max_bytes)
    }

    #[test]
    fn the_same_text_options_and_limits_give_the_same_grammar() {
        let (cache, limits) = (cache(1 << 20), Limits::default());
        let schema = |options: &SchemaOptions| cache.json_schema("{}", options, &limits).expect("anything");
        let options = SchemaOptions::default();
        let first = schema(&options);
        assert!(Arc::ptr_eq(&first.0, &schema(&options).0));
        let compact = SchemaOptions {
            whitespace: crate::Whitespace::None,
            ..SchemaOptions::default()
        };
        assert!(!Arc::ptr_eq(&first.0, &schema(&compact).0));
        let tight = Limits {
            max_forced_bytes: 5,
            ..Limits::default()
        };
        let other = cache.json_schema("{}", &options, &tight).expect("anything");
        assert!(!Arc::ptr_eq(&first.0, &other.0));
        assert!(cache.regex("(", &limits).is_err());
        assert_eq!(cache.n_grammars(), 3);
    }

    #[test]
    fn every_kind_is_told_apart_by_all_that_it_says() {
        let (cache, limits) = (cache(16 << 20), Limits::default());
        let tool = |name, enforcement| crate::Tool {
            name,
            parameters: "{}",
            enforcement,
        };
        let tools = [tool("f", Enforcement::Whole), tool("g", Enforcement::Whole)];
        let relaxed = [tool("f", Enforcement::Relaxed), tool("g", Enforcement::Whole)];
        let options = SchemaOptions::default();
        let spec = |tools, choice, parallel| {
            Constraint::Tools(crate::ToolSpec {
                tools,
                format: CallFormat::Hermes,
                choice,
                parallel,
                options,
            })
        };
        let text = "root ::= \"a\"\nother ::= \"b\"";
        let regex = Constraint::Regex("a");
        let tag = r#"{"type":"structural_tag","format":{"type":"any_text"}}"#;
        let constraints = [
            regex,
            Constraint::Choice(&["a"]),
            Constraint::Choice(&["a", "b"]),
            Constraint::Choice(&["ab"]),
            Constraint::JsonSchema {
                schema: "{}",
                options,
            },
            Constraint::Gbnf(text),
            Constraint::Ebnf { text, root: "root" },
            Constraint::Ebnf { text, root: "other" },
            Constraint::Lark {
                text: "start: \"a\"",
                options,
            },
            Constraint::StructuralTag { text: tag, options },
            spec(&tools, ToolChoice::Auto, ParallelCalls::Allowed),
            spec(&tools, ToolChoice::Required, ParallelCalls::Allowed),
            spec(&tools, ToolChoice::Named("f"), ParallelCalls::Allowed),
            spec(&tools, ToolChoice::Named("g"), ParallelCalls::Allowed),
            spec(&tools, ToolChoice::Auto, ParallelCalls::AtMostOne),
            spec(&tools[..1], ToolChoice::Auto, ParallelCalls::Allowed),
            spec(&relaxed, ToolChoice::Auto, ParallelCalls::Allowed),
            Constraint::After {
                marker: "<a>",
                then: &regex,
            },
            Constraint::After {
                marker: "<b>",
                then: &regex,
            },
            Constraint::After {
                marker: "<a>",
                then: &Constraint::Gbnf(text),
            },
            Constraint::MaybeAfter {
                opening: "<c>",
                marker: "<a>",
                then: &regex,
            },
            Constraint::MaybeAfter {
                opening: "<c>",
                marker: "<b>",
                then: &regex,
            },
            Constraint::Either(&[regex]),
            Constraint::Either(&[regex, Constraint::Gbnf(text)]),
        ];
        let compile = |constraint| cache.compile(constraint, &limits).expect("it is well formed");
        let first: Vec<Grammar> = constraints.iter().map(compile).collect();
        assert_eq!(cache.n_grammars(), constraints.len());
        for (constraint, grammar) in constraints.iter().zip(&first) {
            assert!(Arc::ptr_eq(&compile(constraint).0, &grammar.0), "{constraint:?}");
        }
        assert_eq!(cache.n_grammars(), constraints.len());
    }

    #[test]
    fn the_bytes_are_bounded_and_what_is_asked_for_stays() {
        let (cache, limits) = (cache(60_000), Limits::default());
        let first = cache.choice(&["a"], &limits).expect("one choice");
        for n in 0..200 {
            cache
                .choice(&[&format!("choice {n}")], &limits)
                .expect("one choice");
            assert!(cache.n_bytes() <= 60_000, "{}", cache.n_bytes());
            let again = cache.choice(&["a"], &limits).expect("one choice");
            assert!(Arc::ptr_eq(&first.0, &again.0));
        }
        assert!((2..200).contains(&cache.n_grammars()), "{}", cache.n_grammars());
    }
}
