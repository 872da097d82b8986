//! Grammars of requests: compiled once, beside everything else, and kept for the next request.
//!
//! ```text
//! request ─► cache ── there ────────────────────────────────► a state of its own
//!              └──── new ─► a place among those that wait ─► compiled on a blocking thread ─► kept
//! ```
//!
//! Requests that ask for the same grammar wait for one compilation. A client that leaves gives its place up;
//! a compilation that has begun is bounded by [`Limits::max_compile_work`]. What does not compile is
//! remembered too, so that asking again costs nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arbora_constrained::{
    CompileError, Constraint as GrammarText, Grammar, Limits, Tool, ToolChoice, ToolSpec, Vocabulary,
    Whitespace,
};
use arbora_runtime::grammar::{GrammarState, Tokenize};
use arbora_runtime::tokenizer::{SpecialTokens, TokenKind, Tokenizer};
use dashmap::DashMap;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use crate::wire::constraint::{Constraint, Source, WhichTool};
use crate::wire::error::ApiError;

/// Grammars kept. Each holds at most `max_cache_bytes` of tables.
const MAX_KEPT: usize = 128;

/// Bytes of masks and transitions one grammar may keep.
const MAX_CACHE_BYTES: usize = 8 << 20;

/// Compilations at a time; the model has the other cores.
const N_COMPILING: usize = 1;

/// Requests that may wait for a compilation.
const MAX_WAITING: usize = 256;

/// When to come back if too many wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// SHA-256 of kind, options and text.
type Key = [u8; 32];

type Compiled = Result<Grammar, CompileError>;

#[derive(Debug)]
struct Kept {
    compiled: Arc<OnceCell<Compiled>>,
    /// When it was last asked for, in askings.
    used: AtomicU64,
}

/// The grammars of one model.
pub struct Grammars {
    vocabulary: Arc<Vocabulary>,
    tokenize: Tokenize,
    limits: Limits,
    kept: DashMap<Key, Kept>,
    n_asked: AtomicU64,
    compiling: Semaphore,
    n_waiting: AtomicUsize,
}

impl Grammars {
    /// No grammar yet, for a model of `n_vocab` tokens that `tokenizer` names and `stop_tokens` end.
    pub fn new(tokenizer: Arc<Tokenizer>, n_vocab: usize, stop_tokens: &[u32]) -> Self {
        let is_text = |id: u32| {
            let is_named = (id as usize) < tokenizer.n_vocab();
            is_named && matches!(tokenizer.kind(id), TokenKind::Normal | TokenKind::UserDefined)
        };
        let text = |id: u32| is_text(id).then(|| tokenizer.token_bytes(id).to_vec());
        let tokens = (0..n_vocab as u32).map(|id| text(id).filter(|bytes| !bytes.is_empty()));
        let vocabulary = Vocabulary::new(tokens, stop_tokens).expect("a tokenizer's tokens are a vocabulary");
        let tokenize = move |text: &[u8]| {
            // A draft that cannot be made is no draft; the output does not depend on it.
            let text = std::str::from_utf8(text).unwrap_or_default();
            tokenizer.encode(text, SpecialTokens::AsText).unwrap_or_default()
        };
        Grammars {
            vocabulary: Arc::new(vocabulary),
            tokenize: Arc::new(tokenize),
            limits: Limits {
                max_cache_bytes: MAX_CACHE_BYTES,
                ..Limits::default()
            },
            kept: DashMap::new(),
            n_asked: AtomicU64::new(0),
            compiling: Semaphore::new(N_COMPILING),
            n_waiting: AtomicUsize::new(0),
        }
    }

    /// An output that must look like `constraint` and has not begun.
    pub async fn begin(&self, constraint: &Constraint) -> Result<GrammarState, ApiError> {
        let compiled = self.find(key(&constraint.source));
        let compiled = compiled
            .get_or_try_init(|| self.compile(constraint.source.clone()))
            .await?;
        match compiled {
            Ok(grammar) => Ok(GrammarState::new(grammar, Arc::clone(&self.tokenize))),
            Err(error) => {
                let message = format!("Invalid value for '{}': {error}.", constraint.param);
                Err(ApiError::invalid(&constraint.param, message))
            }
        }
    }

    fn find(&self, key: Key) -> Arc<OnceCell<Compiled>> {
        let now = self.n_asked.fetch_add(1, Ordering::Relaxed);
        if let Some(kept) = self.kept.get(&key) {
            kept.used.store(now, Ordering::Relaxed);
            return Arc::clone(&kept.compiled);
        }
        while self.kept.len() >= MAX_KEPT {
            let age = |kept: &Kept| kept.used.load(Ordering::Relaxed);
            let oldest = self.kept.iter().min_by_key(|entry| age(entry.value()));
            let Some(oldest) = oldest.map(|entry| *entry.key()) else {
                break;
            };
            self.kept.remove(&oldest);
        }
        let kept = self.kept.entry(key).or_insert_with(|| Kept {
            compiled: Arc::new(OnceCell::new()),
            used: AtomicU64::new(now),
        });
        Arc::clone(&kept.compiled)
    }

    async fn compile(&self, source: Source) -> Result<Compiled, ApiError> {
        let waiting = Waiting::begin(&self.n_waiting)?;
        let turn = self
            .compiling
            .acquire()
            .await
            .expect("the semaphore is never closed");
        drop(waiting);
        let (vocabulary, limits) = (Arc::clone(&self.vocabulary), self.limits.clone());
        let task = tokio::task::spawn_blocking(move || compile(&vocabulary, &source, &limits));
        let compiled = task.await;
        drop(turn);
        compiled.map_err(|panic| {
            tracing::error!(%panic, "compiling a grammar failed");
            ApiError::Failed
        })
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars")
            .field("n_kept", &self.kept.len())
            .finish_non_exhaustive()
    }
}

/// A place among the requests that wait for a compilation, given back when dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(n_waiting: &'a AtomicUsize) -> Result<Self, ApiError> {
        let n = n_waiting.fetch_add(1, Ordering::Relaxed);
        let place = Waiting(n_waiting);
        if n >= MAX_WAITING {
            return Err(ApiError::QueueFull {
                n_waiting: n,
                retry_after: RETRY_AFTER,
            });
        }
        Ok(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn compile(vocabulary: &Arc<Vocabulary>, source: &Source, limits: &Limits) -> Compiled {
    let choices: Vec<&str>;
    let tools: Vec<Tool<'_>>;
    let text = match source {
        Source::JsonSchema { text, whitespace } => GrammarText::JsonSchema {
            schema: text,
            options: Source::schema_options(*whitespace),
        },
        Source::Regex(text) => GrammarText::Regex(text),
        Source::Choice(texts) => {
            choices = texts.iter().map(String::as_str).collect();
            GrammarText::Choice(&choices)
        }
        Source::Gbnf(text) => GrammarText::Gbnf(text),
        Source::Ebnf(text) => GrammarText::Ebnf { text, root: "root" },
        Source::Lark(text) => GrammarText::Lark(text),
        Source::StructuralTag(text) => GrammarText::StructuralTag {
            text,
            options: Source::schema_options(Whitespace::Any),
        },
        Source::Tools(calls) => {
            tools = calls
                .functions
                .iter()
                .map(|(name, parameters)| Tool { name, parameters })
                .collect();
            GrammarText::Tools(ToolSpec {
                tools: &tools,
                format: calls.format,
                choice: match &calls.which {
                    WhichTool::Auto => ToolChoice::Auto,
                    WhichTool::Any => ToolChoice::Required,
                    WhichTool::Named(name) => ToolChoice::Named(name),
                },
                parallel: calls.parallel,
                options: Source::schema_options(Whitespace::Any),
            })
        }
    };
    Grammar::compile(vocabulary, &text, limits)
}

/// The kind goes in first, so that no text of one kind is taken for another; lengths keep lists apart.
fn key(source: &Source) -> Key {
    let (kind, texts): (String, Vec<&str>) = match source {
        Source::JsonSchema { text, whitespace } => (format!("schema {whitespace:?}"), vec![text]),
        Source::Regex(text) => ("regex".to_owned(), vec![text]),
        Source::Choice(texts) => ("choice".to_owned(), texts.iter().map(String::as_str).collect()),
        Source::Gbnf(text) => ("gbnf".to_owned(), vec![text]),
        Source::Ebnf(text) => ("ebnf".to_owned(), vec![text]),
        Source::Lark(text) => ("lark".to_owned(), vec![text]),
        Source::StructuralTag(text) => ("tag".to_owned(), vec![text]),
        Source::Tools(calls) => {
            let kind = format!("tools {:?} {:?} {:?}", calls.format, calls.which, calls.parallel);
            let texts = calls
                .functions
                .iter()
                .flat_map(|(name, schema)| [name.as_str(), schema]);
            (kind, texts.collect())
        }
    };
    let mut hash = Sha256::new();
    for text in [kind.as_str()].into_iter().chain(texts) {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_constraints_share_a_grammar() {
        let choice = |texts: &[&str]| Source::Choice(texts.iter().map(|&t| t.to_owned()).collect());
        let schema = |whitespace| Source::JsonSchema {
            text: "a".to_owned(),
            whitespace,
        };
        use arbora_constrained::Whitespace;
        let different = [
            Source::Regex("a".to_owned()),
            Source::Gbnf("a".to_owned()),
            Source::Ebnf("a".to_owned()),
            Source::Lark("a".to_owned()),
            Source::StructuralTag("a".to_owned()),
            choice(&["a"]),
            choice(&["a", "b"]),
            choice(&["ab"]),
            schema(Whitespace::Any),
            schema(Whitespace::None),
        ];
        for (i, a) in different.iter().enumerate() {
            for (j, b) in different.iter().enumerate() {
                assert_eq!(key(a) == key(b), i == j, "{a:?} {b:?}");
            }
        }
    }
}
