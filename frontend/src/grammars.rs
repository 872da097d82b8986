//! Grammars of requests: compiled once, beside everything else, and kept for the next request.
//!
//! ```text
//! request ─► cache ── there ────────────────────► a state of its own
//!              └──── new ─► flights.rs ─► compiled ─► kept
//! ```
//!
//! Requests that ask for the same grammar wait for one compilation. One that has begun goes on to its end,
//! bounded by [`Limits::max_compile_work`], and is kept.

use std::sync::Arc;
use std::time::Duration;

use arbora_constrained::{
    CompileError, Constraint as GrammarText, Grammar, GrammarCache, Limits, Tool, ToolChoice, ToolSpec,
    Vocabulary, Whitespace,
};
use arbora_runtime::grammar::{GrammarState, Tokenize};
use arbora_runtime::tokenizer::{SpecialTokens, TokenKind, Tokenizer};

use crate::flights::{FlightError, Flights};
use crate::wire::constraint::{Constraint, Source, WhichTool};
use crate::wire::error::ApiError;

/// Bytes of all grammars that are kept.
const MAX_KEPT_BYTES: usize = 256 << 20;

/// Bytes of masks and transitions one grammar may keep.
const MAX_CACHE_BYTES: usize = 16 << 20;

/// Compilations at a time; the model has the other cores.
const N_COMPILING: usize = 1;

/// Compilations that may wait for their turn.
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
    flights: Flights<Source, Compiled>,
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
            flights: Flights::new(N_COMPILING, MAX_WAITING),
        }
    }

    /// An output that must look like `constraint` and has not begun.
    pub async fn begin(&self, constraint: &Constraint) -> Result<GrammarState, ApiError> {
        let state = |grammar: &Grammar| GrammarState::new(grammar, Arc::clone(&self.tokenize));
        if let Some(grammar) = with_text(&constraint.source, |text| self.kept.find(text, &self.limits)) {
            return Ok(state(&grammar));
        }
        let (kept, limits, source) = (
            Arc::clone(&self.kept),
            self.limits.clone(),
            constraint.source.clone(),
        );
        let compile = move || with_text(&source, |text| kept.compile(text, &limits));
        match self.flights.join(&constraint.source, compile).await {
            Ok(Ok(grammar)) => Ok(state(&grammar)),
            Ok(Err(error)) => {
                let message = format!("Invalid value for '{}': {error}.", constraint.param);
                Err(ApiError::invalid(&constraint.param, message))
            }
            Err(FlightError::Full { n_waiting }) => Err(ApiError::QueueFull {
                n_waiting,
                retry_after: RETRY_AFTER,
            }),
            Err(FlightError::Failed) => Err(ApiError::Failed),
        }
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars")
            .field("n_kept", &self.kept.n_grammars())
            .finish_non_exhaustive()
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
