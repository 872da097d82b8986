//! Compiled grammars, kept for whoever asks for the same again.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::CompileError;
use crate::grammar::Grammar;
use crate::hash::Map;
use crate::limits::Limits;
use crate::schema::SchemaOptions;
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

#[derive(Debug, PartialEq, Eq, Hash)]
enum Source {
    Schema(String, SchemaOptions),
    Regex(String),
    Choice(Vec<String>),
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
        let source = Source::Schema(schema.to_owned(), *options);
        self.find_or(source, limits, || {
            Grammar::compile_json_schema(&self.vocabulary, schema, options, limits)
        })
    }

    /// As [`Grammar::compile_regex`].
    ///
    /// # Errors
    /// As there; failures are not kept.
    pub fn regex(&self, regex: &str, limits: &Limits) -> Result<Grammar, CompileError> {
        let source = Source::Regex(regex.to_owned());
        self.find_or(source, limits, || {
            Grammar::compile_regex(&self.vocabulary, regex, limits)
        })
    }

    /// As [`Grammar::compile_choice`].
    ///
    /// # Errors
    /// As there; failures are not kept.
    pub fn choice(&self, choices: &[&str], limits: &Limits) -> Result<Grammar, CompileError> {
        let source = Source::Choice(choices.iter().map(|choice| (*choice).to_owned()).collect());
        self.find_or(source, limits, || {
            Grammar::compile_choice(&self.vocabulary, choices, limits)
        })
    }

    /// Bytes held by the grammars that are kept.
    pub fn n_bytes(&self) -> usize {
        self.lock().n_bytes()
    }

    /// Grammars that are kept.
    pub fn n_grammars(&self) -> usize {
        self.lock().entries.len()
    }

    fn find_or(
        &self,
        source: Source,
        limits: &Limits,
        compile: impl FnOnce() -> Result<Grammar, CompileError>,
    ) -> Result<Grammar, CompileError> {
        let limits = limits.clone();
        let key = Key { source, limits };
        if let Some(known) = self.lock().find(&key) {
            return Ok(known);
        }
        let grammar = compile()?;
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
        let of_source = match &self.source {
            Source::Schema(text, _) | Source::Regex(text) => text.len(),
            Source::Choice(choices) => choices.iter().map(|choice| choice.len() + 24).sum(),
        };
        size_of::<Self>() + of_source
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
            max_mask_work: 5_000,
            ..Limits::default()
        };
        let other = cache.json_schema("{}", &options, &tight).expect("anything");
        assert!(!Arc::ptr_eq(&first.0, &other.0));
        assert!(cache.regex("(", &limits).is_err());
        assert_eq!(cache.n_grammars(), 3);
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
