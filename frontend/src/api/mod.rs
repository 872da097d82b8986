//! HTTP handlers: parse the request, submit it to the engine, answer.

pub mod admin;
pub mod cache;
pub mod chat;
pub mod completions;
pub mod generate;
pub mod models;
mod openai;
pub mod render;
pub mod tokens;
pub mod worker;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arbora_constrained::Relaxed;
use arbora_kernels::cpu::PoolMetrics;
use arbora_runtime::engine::EngineHandle;
use arbora_runtime::request::{Namespace, Request, RequestId, SamplingParams};
use arbora_runtime::thought_limit::ThoughtLimit;
use arbora_runtime::token_bytes::TokenBytes;
use arbora_runtime::tokenizer::EncodeError;
use axum::Extension;
use axum::http::{HeaderMap, HeaderValue, header};
use tokio::sync::mpsc;

use crate::auth::ApiKeys;
use crate::config::MetricsCompat;
use crate::grammars::{Begun, Grammars};
use crate::hosts::AllowedHosts;
use crate::intake::{Admitted, Intake};
use crate::log::LogMetrics;
use crate::metrics::HttpMetrics;
use crate::origins::AllowedOrigins;
use crate::otlp::Traces;
use crate::otlp::exchange::Exchange;
use crate::prompt::{PromptEncoder, PromptError};
use crate::stream::{Choice, Generation, Opening, Submission};
use crate::template::TemplateError;
use crate::wire::error::{ApiError, PROMPT};
use crate::wire::options::{ControlTokens, Options};

/// What handlers share.
#[derive(Debug)]
pub struct App {
    /// The way to the engine.
    pub engine: EngineHandle,
    /// From messages and texts to tokens.
    pub encoder: Arc<PromptEncoder>,
    /// What outputs may be asked to look like.
    pub grammars: Grammars,
    /// From tokens to text.
    pub token_bytes: Arc<TokenBytes>,
    /// The same with the names of control tokens, for outputs whose grammar asks for them by name.
    pub named_bytes: Arc<TokenBytes>,
    /// How tokens are drawn where a request does not say: the model's own wishes.
    pub sampling: SamplingParams,
    /// Name clients use for the model.
    pub model: String,
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
    /// Refuses models that are not served; no name means the one there is.
    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(name) if name != self.model => Err(ApiError::ModelNotFound {
                model: name.chars().take(100).collect(),
            }),
            _ => Ok(()),
        }
    }

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
        admitted: &Admitted,
        encode: impl FnOnce(&PromptEncoder) -> Result<T, PromptError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let encoder = Arc::clone(&self.encoder);
        let encoded = self.intake.run(admitted, move || encode(&encoder)).await?;
        encoded.map_err(|error| self.prompt_error(error))
    }

    /// Tokens of a prompt after which nobody counts on: it is refused, and by how much it is too long matters
    /// to clients that cut a little off and try again.
    fn prompt_limit(&self) -> usize {
        self.engine.context().saturating_mul(4)
    }

    #[expect(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
    fn prompt_error(&self, error: PromptError) -> ApiError {
        match &error {
            PromptError::Encode(EncodeError::TooManyTokens { limit }) => {
                ApiError::longer_than_context(self.engine.context(), *limit)
            }
            PromptError::Encode(EncodeError::PieceTooLong { .. }) => {
                ApiError::invalid(PROMPT, format!("{error}."))
            }
            PromptError::Encode(source @ EncodeError::Merges { .. }) => {
                tracing::error!(%source, "a prompt could not be encoded");
                ApiError::Failed
            }
            PromptError::Template(TemplateError::Failed(source)) => {
                tracing::warn!(%source, "the chat template failed");
                ApiError::invalid("messages", format!("{error}."))
            }
            _ => ApiError::invalid("messages", format!("{error}.")),
        }
    }

    /// The beginning of what the output must look like. Waits for its compilation, and lets nobody else wait.
    async fn grammar(&self, options: &Options, owner: Option<usize>) -> Result<Option<Begun>, ApiError> {
        match &options.constraint {
            Some(constraint) => Ok(Some(self.grammars.begin(constraint, App::tenant(owner)).await?)),
            None => Ok(None),
        }
    }

    /// Submits the completions of every prompt, `options.n` each, which is the same for all; also returns the
    /// first request of each. If one is refused, those before it are aborted: their channels close with the
    /// error.
    fn generate(
        &self,
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
                let (id, choice) = self.submit(job, choice_idx, (owner, submission.arrived))?;
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
        job: Job<'_>,
        choice_idx: usize,
        (owner, arrived): (Option<usize>, Instant),
    ) -> Result<(RequestId, Choice), ApiError> {
        let (prompt, options) = (job.prompt, job.options);
        let room = self.engine.context().saturating_sub(prompt.tokens.len()).max(1);
        let max_tokens = options.max_tokens.unwrap_or(room);
        if max_tokens > self.engine.context() {
            return Err(self.context_exceeded(prompt.tokens.len(), max_tokens));
        }
        let (sender, events) = mpsc::channel(Request::event_capacity(max_tokens));
        let id = self.engine.next_id();
        let progress = self.traces.as_ref().map(|_| Arc::default());
        // A grammar names the control tokens that it wants to see.
        let spells_controls = job.grammar.is_some() || options.control_tokens == ControlTokens::Spelled;
        let request = Request {
            namespace: self.namespace(owner, options.salt),
            tenant: App::tenant(owner) as u32,
            sampling: options.sampling,
            choice_idx: choice_idx as u32,
            stop: options.stop.clone(),
            spelling: spells_controls.then(|| Arc::clone(&self.named_bytes)),
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
        self.engine.submit(request)?;
        let choice = Choice {
            opening: prompt.opening.clone(),
            progress,
            ..Choice::new(events)
        };
        Ok((id, choice))
    }

    /// Refused here and not by the engine, because an event channel that large could not be made.
    fn context_exceeded(&self, prompt_tokens: usize, max_tokens: usize) -> ApiError {
        let context = self.engine.context();
        ApiError::from(arbora_runtime::request::SubmitError::ContextExceeded {
            prompt_tokens,
            max_tokens,
            context,
        })
    }
}

/// The exchange that a handler answers in, where it is traced.
type Traced = Option<Extension<Exchange>>;
