//! HTTP handlers: parse the request, submit it to the engine, answer.

pub mod admin;
pub mod cache;
pub mod chat;
pub mod completions;
mod conversation;
pub mod embeddings;
pub mod generate;
pub mod messages;
pub mod models;
pub mod ollama;
mod openai;
pub mod render;
pub mod rerank;
pub mod responses;
pub mod tgi;
pub mod tokens;
pub mod worker;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arbora_constrained::Relaxed;
use arbora_kernels::cpu::PoolMetrics;
use arbora_runtime::request::{Namespace, Request, RequestId};
use arbora_runtime::thought_limit::ThoughtLimit;
use axum::Extension;
use axum::http::{HeaderMap, HeaderValue, header};
use tokio::sync::mpsc;

use crate::auth::ApiKeys;
use crate::config::MetricsCompat;
use crate::grammars::Begun;
use crate::hosts::AllowedHosts;
use crate::intake::{Admitted, Intake};
use crate::kept::KeptResponses;
use crate::log::LogMetrics;
use crate::metrics::HttpMetrics;
use crate::origins::AllowedOrigins;
use crate::otlp::Traces;
use crate::otlp::exchange::Exchange;
use crate::prompt::{PromptEncoder, PromptError};
use crate::registry::Models;
use crate::served::Served;
use crate::stream::{Choice, Generation, Opening, Submission};
use crate::wire::error::ApiError;
use crate::wire::options::{ControlTokens, Options};

/// What handlers share.
#[derive(Debug)]
pub struct App {
    /// What is served.
    pub models: Arc<Models>,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    /// Who may ask.
    pub api_keys: ApiKeys,
    /// By which names the server may be asked.
    pub hosts: AllowedHosts,
    /// Whose pages may ask.
    pub origins: AllowedOrigins,
    /// What bodies of requests may take.
    pub intake: Intake,
    /// What was answered.
    pub http: HttpMetrics,
    /// What events of `/generate` hold.
    pub generate_form: generate::StreamForm,
    /// Additional metric naming scheme.
    pub metrics_compat: MetricsCompat,
    /// Where exchanges are traced; absent where they are not.
    pub traces: Option<Traces>,
    /// Which answers there were lately, for those who ask about the cache.
    pub cache: cache::CacheBook,
    /// Responses that clients may ask for again.
    pub responses: KeptResponses,
    /// What became of the lines of the log.
    pub log: Arc<LogMetrics>,
    /// What became of the threads that compute.
    pub pool: Arc<PoolMetrics>,
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// A prompt and what its completions start with.
#[derive(Debug)]
struct PreparedPrompt {
    tokens: Vec<u32>,
    opening: Opening,
}

impl PreparedPrompt {
    /// `repeated` is its text where the answer begins with it.
    fn new(tokens: Vec<u32>, repeated: Option<String>) -> Self {
        let opening = repeated.map_or_else(Opening::default, |text| Opening {
            text,
            first_token: tokens.first().copied(),
        });
        PreparedPrompt { tokens, opening }
    }
}

/// One prompt to be continued.
#[derive(Clone, Copy, Debug)]
struct Job<'a> {
    prompt: &'a PreparedPrompt,
    options: &'a Options,
    /// The beginning of what its outputs must look like.
    grammar: Option<&'a Begun>,
    /// Bounds their thoughts.
    thoughts: Option<&'a ThoughtLimit>,
}

impl App {
    /// Which key a request came with.
    pub(crate) fn owner(&self, headers: &HeaderMap) -> Option<usize> {
        let authorization = headers.get(header::AUTHORIZATION);
        self.api_keys.which(authorization.map(HeaderValue::as_bytes))
    }

    /// Whose share of the engine a request of `owner` takes from: each key's own, where there are several.
    pub(crate) fn tenant(owner: Option<usize>) -> usize {
        owner.unwrap_or(0)
    }

    /// The part of the cache for a request of `owner` that asks for `salt` itself.
    fn namespace(&self, owner: Option<usize>, salt: [u8; 16]) -> Namespace {
        Namespace {
            salt: self.api_keys.salt(owner, salt),
            ..Namespace::default()
        }
    }

    /// Whether the cache holds what several keys sent.
    fn is_shared_by_keys(&self) -> bool {
        self.api_keys.len() > 1
    }

    /// Runs `encode` for a request that takes what was admitted, where and when that may be.
    async fn encode<T: Send + 'static>(
        &self,
        served: &Served,
        admitted: &Admitted,
        encode: impl FnOnce(&PromptEncoder) -> Result<T, PromptError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let encoder = Arc::clone(&served.encoder);
        let encoded = self.intake.run(admitted, move || encode(&encoder)).await?;
        encoded.map_err(|error| served.prompt_error(error))
    }

    /// Submits the completions of every prompt, `options.n` each, which is the same for all; also returns the
    /// first request of each. If one is refused, those before it are aborted: their channels close with the
    /// error.
    fn generate(
        &self,
        served: &Served,
        jobs: Vec<Job<'_>>,
        owner: Option<usize>,
    ) -> Result<(Generation, Vec<RequestId>), ApiError> {
        let n_tokens = jobs.iter().map(|job| job.prompt.tokens.len()).sum();
        let n = jobs.first().map_or(1, |job| job.options.n);
        let submission = Submission::new(n, n_tokens);
        let relaxed = jobs.iter().filter_map(|job| job.grammar);
        let relaxed: Vec<Relaxed> = relaxed.flat_map(|begun| begun.relaxed.to_vec()).collect();
        let mut requests = Vec::with_capacity(jobs.len());
        let mut choices = Vec::with_capacity(jobs.len() * n);
        for job in jobs {
            for choice_idx in 0..n {
                let (id, choice) = self.submit(served, job, choice_idx, (owner, submission.arrived))?;
                if choice_idx == 0 {
                    requests.push(id);
                }
                choices.push(choice);
            }
        }
        let mut generation = Generation::new(choices, submission);
        generation.note_relaxed(relaxed);
        Ok((generation, requests))
    }

    /// Submits completion `choice_idx` of a prompt.
    fn submit(
        &self,
        served: &Served,
        job: Job<'_>,
        choice_idx: usize,
        (owner, arrived): (Option<usize>, Instant),
    ) -> Result<(RequestId, Choice), ApiError> {
        let (prompt, options) = (job.prompt, job.options);
        let room = served.engine.context().saturating_sub(prompt.tokens.len()).max(1);
        let max_tokens = options.max_tokens.unwrap_or(room);
        if max_tokens > served.engine.context() {
            return Err(served.context_exceeded(prompt.tokens.len(), max_tokens));
        }
        let (sender, events) = mpsc::channel(Request::event_capacity(max_tokens));
        let id = served.engine.next_id();
        let progress = self.traces.as_ref().map(|_| Arc::default());
        // A grammar names the control tokens that it wants to see.
        let spells_controls = job.grammar.is_some() || options.control_tokens == ControlTokens::Spelled;
        let request = Request {
            namespace: self.namespace(owner, options.salt),
            tenant: App::tenant(owner) as u32,
            sampling: options.sampling.with_defaults(&served.sampling)?,
            choice_idx: choice_idx as u32,
            stop: options.stop.clone(),
            spelling: spells_controls.then(|| Arc::clone(&served.named_bytes)),
            grammar: job.grammar.map(|begun| begun.state.clone()),
            thoughts: job.thoughts.cloned(),
            logit_bias: options.logit_bias.clone(),
            logprobs: options.logprobs.clone(),
            priority: options.priority,
            queue_timeout: options.deadlines.queue,
            total_timeout: options.deadlines.total,
            progress: progress.clone(),
            ..Request::new(id, prompt.tokens.clone(), max_tokens, arrived, sender)
        };
        served.engine.submit(request)?;
        let choice = Choice {
            opening: prompt.opening.clone(),
            progress,
            ..Choice::new(events)
        };
        Ok((id, choice))
    }
}

/// The exchange that a handler answers in, where it is traced.
type Traced = Option<Extension<Exchange>>;
