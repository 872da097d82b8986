//! Grammars of requests: compiled once, beside everything else, and kept for the next request.
//!
//! ```text
//! request ─► cache ── there ────────────────────────────────► a state of its own
//!              └──── new ─► a place among those that wait ─► compiled on a blocking thread ─► kept
//! ```
//!
//! Requests that ask for the same grammar wait for one compilation. A client that leaves gives its place up;
//! a compilation that has begun is bounded by [`Limits::max_compile_work`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arbora_constrained::{
    CompileError, Constraint as GrammarText, Grammar, GrammarCache, Limits, Tool, ToolChoice, ToolSpec,
    Vocabulary, Whitespace,
};
use arbora_runtime::grammar::{GrammarState, Tokenize};
use arbora_runtime::tokenizer::{SpecialTokens, TokenKind, Tokenizer};
use dashmap::DashMap;
use tokio::sync::{OnceCell, Semaphore};

use crate::wire::constraint::{Constraint, Source, WhichTool};
use crate::wire::error::ApiError;

/// Bytes of all grammars that are kept.
const MAX_KEPT_BYTES: usize = 256 << 20;

/// Bytes of masks and transitions one grammar may keep.
const MAX_CACHE_BYTES: usize = 16 << 20;

/// Compilations at a time; the model has the other cores.
const N_COMPILING: usize = 1;

/// Requests that may wait for a compilation.
const MAX_WAITING: usize = 256;

/// When to come back if too many wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

type Compiled = Result<Grammar, CompileError>;

/// The grammars of one model.
pub struct Grammars {
    kept: Arc<GrammarCache>,
    tokenize: Tokenize,
    limits: Limits,
    /// What is being compiled, or waits for it.
    in_flight: DashMap<Source, Arc<OnceCell<Compiled>>>,
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
            kept: Arc::new(GrammarCache::new(Arc::new(vocabulary), MAX_KEPT_BYTES)),
            tokenize: Arc::new(tokenize),
            limits: Limits {
                max_cache_bytes: MAX_CACHE_BYTES,
                ..Limits::default()
            },
            in_flight: DashMap::new(),
            compiling: Semaphore::new(N_COMPILING),
            n_waiting: AtomicUsize::new(0),
        }
    }

    /// An output that must look like `constraint` and has not begun.
    pub async fn begin(&self, constraint: &Constraint) -> Result<GrammarState, ApiError> {
        let state = |grammar: &Grammar| GrammarState::new(grammar, Arc::clone(&self.tokenize));
        if let Some(grammar) = with_text(&constraint.source, |text| self.kept.find(text, &self.limits)) {
            return Ok(state(&grammar));
        }
        let flight = Flight::join(self, &constraint.source);
        let compiled = flight
            .compiled
            .get_or_try_init(|| self.compile(&constraint.source));
        match compiled.await? {
            Ok(grammar) => Ok(state(grammar)),
            Err(error) => {
                let message = format!("Invalid value for '{}': {error}.", constraint.param);
                Err(ApiError::invalid(&constraint.param, message))
            }
        }
    }

    async fn compile(&self, source: &Source) -> Result<Compiled, ApiError> {
        let waiting = Waiting::begin(&self.n_waiting)?;
        let turn = self
            .compiling
            .acquire()
            .await
            .expect("the semaphore is never closed");
        drop(waiting);
        let (kept, limits, source) = (Arc::clone(&self.kept), self.limits.clone(), source.clone());
        let compile = move || with_text(&source, |text| kept.compile(text, &limits));
        let compiled = tokio::task::spawn_blocking(compile).await;
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
            .field("n_kept", &self.kept.n_grammars())
            .finish_non_exhaustive()
    }
}

/// One request's share in a compilation. The last to leave clears the place.
struct Flight<'a> {
    grammars: &'a Grammars,
    source: &'a Source,
    compiled: Arc<OnceCell<Compiled>>,
}

impl<'a> Flight<'a> {
    fn join(grammars: &'a Grammars, source: &'a Source) -> Self {
        let place = grammars.in_flight.entry(source.clone()).or_default();
        Flight {
            grammars,
            source,
            compiled: Arc::clone(&place),
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        // One count is the map's, one is this request's.
        let is_last = |_: &Source, place: &mut Arc<OnceCell<Compiled>>| Arc::strong_count(place) <= 2;
        self.grammars.in_flight.remove_if_mut(self.source, is_last);
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

/// Calls `use_it` with what the grammar engine calls `source`.
fn with_text<T>(source: &Source, use_it: impl FnOnce(&GrammarText<'_>) -> T) -> T {
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
    use_it(&text)
}
