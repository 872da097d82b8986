//! Grammar compilation for requests: on the worker pool, once per grammar, results cached.
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
    CompileError, Constraint as GrammarText, Grammar, GrammarCache, Limits, Matcher, Relaxed, Tool,
    ToolChoice, ToolSpec, Vocabulary,
};
use arbora_runtime::fair_limit::FairLimit;
use arbora_runtime::grammar::{GrammarState, Tokenize};
use arbora_runtime::tokenizer::{SpecialTokens, TokenKind, Tokenizer};

use crate::flights::{FlightError, Flights};
use crate::thinking::{self, Thinking};
use crate::tools::CallStyle;
use crate::wire::constraint::{Constraint, Source, ToolCalls, WhichTool};
use crate::wire::error::ApiError;
use crate::workers::Workers;

/// Bytes of all grammars that are kept.
const MAX_KEPT_BYTES: usize = 256 << 20;

/// Bytes of masks and transitions one grammar may keep.
const MAX_CACHE_BYTES: usize = 16 << 20;

/// Compilations at a time; the model has the other cores.
const N_COMPILING: usize = 1;

/// Compilations that may wait for their turn, shared by the API keys.
const MAX_WAITING: usize = 256;

/// When to come back if too many wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A grammar for an output that has not begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// What the output may look like.
    pub state: GrammarState,
    /// What was asked for and is not enforced.
    pub relaxed: Arc<[Relaxed]>,
}

type Compiled = Result<Grammar, CompileError>;

/// The grammars of one model.
pub struct Grammars {
    kept: Arc<GrammarCache>,
    tokenize: Tokenize,
    limits: Limits,
    /// What is being compiled, or waits for it.
    flights: Flights<Arc<Source>, Compiled>,
}

impl Grammars {
    /// No grammar yet, for a model of `n_vocab` tokens that `tokenizer` names and `stop_tokens` end, asked by
    /// `n_tenants`, compiled by `workers`.
    ///
    /// # Panics
    /// Where the tokens are no vocabulary.
    pub fn new(
        (tokenizer, n_vocab, stop_tokens): (Arc<Tokenizer>, usize, &[u32]),
        n_tenants: usize,
        workers: Workers,
    ) -> Self {
        let is_text = |id: u32| {
            let is_named = (id as usize) < tokenizer.n_vocab();
            is_named && matches!(tokenizer.kind(id), TokenKind::Normal | TokenKind::UserDefined)
        };
        let text = |id: u32| is_text(id).then(|| tokenizer.token_bytes(id).to_vec());
        let tokens = (0..n_vocab as u32).map(|id| text(id).filter(|bytes| !bytes.is_empty()));
        let is_control = |id: &u32| tokenizer.kind(*id) == TokenKind::Control;
        let controls = (0..tokenizer.n_vocab().min(n_vocab) as u32).filter(is_control);
        let named = controls.map(|id| {
            let name = String::from_utf8_lossy(tokenizer.token_bytes(id));
            (id, name.into_owned())
        });
        let vocabulary = Vocabulary::new(tokens, stop_tokens)
            .and_then(|vocabulary| vocabulary.with_special(named))
            .expect("a tokenizer's tokens are a vocabulary");
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
            flights: Flights::new(
                N_COMPILING,
                FairLimit::new("grammars", MAX_WAITING, n_tenants),
                workers,
            ),
        }
    }

    /// An output for `tenant` that must look like `constraint` and has not begun.
    pub async fn begin(&self, constraint: &Constraint, tenant: usize) -> Result<Begun, ApiError> {
        let grammar = self.compiled(constraint, tenant).await?;
        Ok(Begun {
            state: GrammarState::new(&grammar, Arc::clone(&self.tokenize)),
            relaxed: grammar.relaxed().into(),
        })
    }

    /// Refuses `format` beside `calls` if it is none, or if one of its outputs could be taken for a call.
    pub async fn check_beside(
        &self,
        format: &Constraint,
        calls: &CallStyle,
        tenant: usize,
    ) -> Result<(), ApiError> {
        let start = self.compiled(format, tenant).await?.matcher();
        match calls.heads().find(|(_, head)| self.may_go_on(&start, head)) {
            None => Ok(()),
            Some((tool, head)) => {
                let param = &format.param;
                let message = format!(
                    "'{param}' allows an output that begins with {head:?}, which is how this model calls the \
                     tool '{tool}'; nobody could tell them apart."
                );
                Err(ApiError::invalid(param, message))
            }
        }
    }

    /// Whether an output that looks like `constraint` may begin with `text`.
    pub async fn may_begin(
        &self,
        constraint: &Constraint,
        text: &str,
        tenant: usize,
    ) -> Result<bool, ApiError> {
        // No JSON begins so, which spares most requests a compilation.
        if matches!(constraint.source, Source::JsonSchema { .. }) && text.starts_with('<') {
            return Ok(false);
        }
        let start = self.compiled(constraint, tenant).await?.matcher();
        Ok(self.may_go_on(&start, text))
    }

    /// Bytes decide, so that any spelling of the text in tokens is as good.
    fn may_go_on(&self, start: &Matcher, text: &str) -> bool {
        let mut matcher = start.clone();
        let tokens = (self.tokenize)(text.as_bytes());
        tokens.iter().all(|token| matcher.advance(*token).is_ok())
    }

    async fn compiled(&self, constraint: &Constraint, tenant: usize) -> Result<Grammar, ApiError> {
        if let Some(grammar) = with_text(&constraint.source, |text| self.kept.find(text, &self.limits)) {
            return Ok(grammar);
        }
        let key = Arc::new(constraint.source.clone());
        let (kept, limits, source) = (Arc::clone(&self.kept), self.limits.clone(), Arc::clone(&key));
        let compile = move || {
            let compiled = with_text(&source, |text| kept.compile(text, &limits));
            compiled.iter().for_each(log_relaxed);
            compiled
        };
        match self.flights.join(&key, tenant, compile).await {
            Ok(Ok(grammar)) => Ok(grammar),
            Ok(Err(error)) => {
                let param = &constraint.param;
                Err(ApiError::invalid(
                    param,
                    format!("Invalid value for '{param}': {error}."),
                ))
            }
            Err(FlightError::Full(no_room)) => Err(ApiError::QueueFull {
                no_room,
                retry_after: RETRY_AFTER,
            }),
            Err(FlightError::Work(error)) => Err(error.into()),
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

/// Logs what a grammar leaves out, once for all who ask for it.
fn log_relaxed(grammar: &Grammar) {
    for Relaxed {
        pointer,
        keyword,
        why,
    } in grammar.relaxed()
    {
        tracing::info!(pointer, keyword, why, "a part of a tool's schema is not enforced");
    }
}

/// Calls `use_it` with what the grammar engine calls `source`.
fn with_text<T>(source: &Source, use_it: impl FnOnce(&GrammarText<'_>) -> T) -> T {
    let (mut use_it, mut used) = (Some(use_it), None);
    lend(source, &mut |text| {
        let use_it = use_it.take().expect("a text is lent once");
        used = Some(use_it(text));
    });
    used.expect("a text is lent")
}

/// Calls `take` once, with what the grammar engine calls `source`.
fn lend(source: &Source, take: &mut dyn FnMut(&GrammarText<'_>)) {
    let choices: Vec<&str>;
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
        Source::Lark { text, whitespace } => GrammarText::Lark {
            text,
            options: Source::schema_options(*whitespace),
        },
        Source::StructuralTag { text, whitespace } => GrammarText::StructuralTag {
            text,
            options: Source::schema_options(*whitespace),
        },
        Source::Tools(calls) => return lend_calls(calls, take),
        Source::CallsOr(calls, otherwise) => {
            return lend_calls(calls, &mut |calls| {
                lend(otherwise, &mut |otherwise| {
                    take(&GrammarText::Either(&[*calls, *otherwise]));
                });
            });
        }
        Source::AfterThinking(thinking, then) => {
            return lend(then, &mut |then| match thinking {
                Thinking::None => take(then),
                Thinking::Optional => take(&GrammarText::MaybeAfter {
                    opening: thinking::OPEN,
                    marker: thinking::CLOSE,
                    then,
                }),
                Thinking::Open => take(&GrammarText::After {
                    marker: thinking::CLOSE,
                    then,
                }),
            });
        }
    };
    take(&text);
}

fn lend_calls(calls: &ToolCalls, take: &mut dyn FnMut(&GrammarText<'_>)) {
    let tools = calls.functions.iter().map(|function| Tool {
        name: &function.name,
        parameters: &function.parameters,
        enforcement: function.enforcement,
    });
    let tools: Vec<Tool<'_>> = tools.collect();
    take(&GrammarText::Tools(ToolSpec {
        tools: &tools,
        format: calls.format,
        choice: match &calls.which {
            WhichTool::Auto => ToolChoice::Auto,
            WhichTool::Any => ToolChoice::Required,
            WhichTool::Named(name) => ToolChoice::Named(name),
        },
        parallel: calls.parallel,
        options: Source::schema_options(calls.whitespace),
    }));
}

#[cfg(test)]
mod tests {
    use axum::http::{StatusCode, header};
    use axum::response::IntoResponse;

    use super::*;

    fn workers() -> Workers {
        Workers::start("work", 1, 1).expect("a thread")
    }

    fn grammars() -> Grammars {
        Grammars::new((Arc::new(Tokenizer::of_bytes(257)), 257, &[256]), 1, workers())
    }

    fn regex(text: &str) -> Constraint {
        Constraint {
            param: "regex".to_owned(),
            source: Source::Regex(text.to_owned()),
        }
    }

    #[tokio::test]
    async fn a_full_queue_is_a_429_that_says_when_to_come_back_and_spares_what_is_kept() {
        let mut grammars = grammars();
        grammars.begin(&regex("a"), 0).await.expect("there is room");
        grammars.flights = Flights::new(1, FairLimit::new("grammars", 0, 1), workers());
        let error = grammars.begin(&regex("b"), 0).await.expect_err("there is none");
        let response = error.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        grammars.begin(&regex("a"), 0).await.expect("it is kept");
        grammars.flights = Flights::new(1, FairLimit::new("grammars", 1, 1), workers());
        grammars.begin(&regex("b"), 0).await.expect("there is room again");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_who_ask_at_once_share_one_grammar() {
        let grammars = Arc::new(grammars());
        let asked: Vec<_> = (0..40)
            .map(|idx| {
                let grammars = Arc::clone(&grammars);
                let constraint = regex(&format!("[ab]*a[ab]{{8}}{}", idx % 2));
                tokio::spawn(async move { grammars.begin(&constraint, 0).await.map(drop) })
            })
            .collect();
        for task in asked {
            assert_eq!(task.await.expect("no panic"), Ok(()));
        }
        assert_eq!(grammars.kept.n_grammars(), 2);
        assert!(grammars.flights.is_empty());
    }

    #[tokio::test]
    async fn a_grammar_beyond_its_limits_is_its_clients_fault_alone() {
        let mut grammars = grammars();
        grammars.limits.max_source_bytes = 10;
        for _ in 0..2 {
            let error = grammars
                .begin(&regex("aaaaaaaaaaa"), 0)
                .await
                .expect_err("too long");
            let ApiError::Invalid { param, message } = error else {
                panic!("{error:?}");
            };
            assert_eq!(param.as_deref(), Some("regex"));
            assert!(message.contains("`max_source_bytes` of 10"), "{message}");
        }
        grammars.begin(&regex("aaa"), 0).await.expect("short enough");
        assert!(grammars.flights.is_empty());
    }
}
