//! What a caller asks of the engine and what it hears back.
//!
//! A [`Request`] is complete and valid when built: everything a client may leave out has been decided by the
//! caller. Per accepted request the engine sends any number of [`Event::Tokens`] and exactly one
//! [`Event::Finished`], always last (contract C5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use arbora_constrained::MatchError;
pub use arbora_kernels::{RowLogprobs, TokenLogprob};
pub use arbora_radix::Namespace;
use tokio::sync::mpsc;

use crate::fair_limit::NoRoom;
use crate::grammar::GrammarState;
use crate::progress::Progress;
use crate::thought_limit::ThoughtLimit;
use crate::token_bytes::TokenBytes;

/// Identifies a request in events, logs and metrics. Unique for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// How tokens are drawn. Ranges are checked by [`SamplingParams::validate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; at most 100.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Nucleus: in [0, 1]. The likeliest token is always in it, so 0 is greedy.
    pub top_p: f32,
    /// In [0, 1].
    pub min_p: f32,
    /// Divides the positive logits of tokens seen in prompt or output and multiplies the negative ones; in
    /// (0, 10], 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens seen in the output; in [-2, 2].
    pub presence_penalty: f32,
    /// Taken from the logits of tokens seen in the output, once for each time; in [-2, 2].
    pub frequency_penalty: f32,
    /// Same seed, same request: same tokens (contract C3). A caller without a wish draws one.
    pub seed: u64,
}

impl SamplingParams {
    /// The likeliest token, always.
    pub const GREEDY: SamplingParams = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::PLAIN
    };

    /// From the model's distribution as it is.
    const PLAIN: SamplingParams = SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
    };
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams::PLAIN
    }
}

/// A sampling parameter out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("'{param}' must be {expected}, got {value}")]
pub struct BadParam {
    /// Name of the parameter as clients spell it.
    pub param: &'static str,
    /// The range in words.
    pub expected: &'static str,
    /// What was given.
    pub value: f32,
}

impl SamplingParams {
    /// Checks every range; NaN is out of every range.
    pub fn validate(&self) -> Result<(), BadParam> {
        let check = |ok: bool, param, expected, value: f32| {
            if ok {
                Ok(())
            } else {
                Err(BadParam {
                    param,
                    expected,
                    value,
                })
            }
        };
        check(
            (0.0..=100.0).contains(&self.temperature),
            "temperature",
            "in [0, 100]",
            self.temperature,
        )?;
        check(
            (0.0..=1.0).contains(&self.top_p),
            "top_p",
            "in [0, 1]",
            self.top_p,
        )?;
        check(
            (0.0..=1.0).contains(&self.min_p),
            "min_p",
            "in [0, 1]",
            self.min_p,
        )?;
        let repetition = self.repetition_penalty;
        check(
            repetition > 0.0 && repetition <= 10.0,
            "repetition_penalty",
            "in (0, 10]",
            repetition,
        )?;
        for (param, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            check((-2.0..=2.0).contains(&value), param, "in [-2, 2]", value)?;
        }
        Ok(())
    }
}

/// What ends a request besides its length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopConditions {
    /// The request's own stop token ids, besides the model's.
    pub token_ids: Vec<u32>,
    /// Texts that end the output; the output is cut before the first of them.
    pub strings: Vec<String>,
    /// Do not end at the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Before this many output tokens no stop token is drawn and no stop string is looked for.
    pub min_tokens: usize,
}

/// Which log-probabilities a request wants: of the model as it is, before anything restricts or changes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogprobsWanted {
    /// Of each output token, with this many of the likeliest beside it.
    pub output: Option<usize>,
    /// Of each prompt token but the first, with this many of the likeliest beside it. The whole prompt is
    /// then computed, whatever the cache holds.
    pub prompt: Option<usize>,
    /// Of these tokens too, wherever log-probabilities are told.
    pub listed: Arc<[u32]>,
}

/// One completion to compute.
#[derive(Debug)]
pub struct Request {
    /// Chosen by the caller through the handle's counter.
    pub id: RequestId,
    /// At least one token, each below the vocabulary's size.
    pub prompt: Vec<u32>,
    /// Which part of the prefix cache this request may read and fill.
    pub namespace: Namespace,
    /// Whose it is, below [`crate::config::EngineConfig::n_tenants`]: tenants share the engine evenly.
    pub tenant: u32,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Which of the `n` completions of one prompt this is; part of the noise key.
    pub choice_idx: u32,
    /// Most output tokens; prompt + max_tokens fits the context. 0 computes the prompt and ends.
    pub max_tokens: usize,
    /// What ends it early.
    pub stop: StopConditions,
    /// What each token adds to the text, in which stop strings are looked for; the engine's own where absent.
    pub spelling: Option<Arc<TokenBytes>>,
    /// What the output must look like; `None` for free text. Made for this model's vocabulary.
    pub grammar: Option<GrammarState>,
    /// Bounds what a model that thinks thinks before it answers; `None` for as much as it likes.
    pub thoughts: Option<ThoughtLimit>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Log-probabilities to send along.
    pub logprobs: LogprobsWanted,
    /// Larger is sooner; 0 by default. Only the `priority` schedule policy looks at it.
    pub priority: i32,
    /// When it came in; queue time and time to first token count from here.
    pub arrived: Instant,
    /// Give up while still waiting for its first step after this long.
    pub queue_timeout: Option<Duration>,
    /// Give up altogether after this long; what was made so far stands.
    pub total_timeout: Option<Duration>,
    /// Where its times can be read while it runs, if anybody wants to.
    pub progress: Option<Arc<Progress>>,
    /// Where events go. Bounded, with room for everything the request can ever produce
    /// ([`Request::event_capacity`]), so that the engine never waits. A closed channel is the abort.
    pub events: mpsc::Sender<Event>,
}

impl Request {
    /// A completion that asks for nothing in particular: tokens are drawn from the model as it is until a
    /// stop token of the model or `max_tokens` ends it, nothing is kept apart, nobody waits a limited time.
    /// Its times count from `arrived`, which the caller knows: parsing and queueing before this are part of
    /// them.
    pub fn new(
        id: RequestId,
        prompt: Vec<u32>,
        max_tokens: usize,
        arrived: Instant,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Request {
            id,
            prompt,
            namespace: Namespace::default(),
            tenant: 0,
            sampling: SamplingParams::default(),
            choice_idx: 0,
            max_tokens,
            stop: StopConditions::default(),
            spelling: None,
            grammar: None,
            thoughts: None,
            logit_bias: Vec::new(),
            logprobs: LogprobsWanted::default(),
            priority: 0,
            arrived,
            queue_timeout: None,
            total_timeout: None,
            progress: None,
            events,
        }
    }

    /// Slots an event channel needs: one per output token, one for the prompt and one for the ending.
    pub fn event_capacity(max_tokens: usize) -> usize {
        max_tokens + 2
    }
}

/// What the engine tells a request's owner.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens from its second on, once, before any output.
    Prompt(Vec<RowLogprobs>),
    /// What one step added to the output.
    Tokens(NewTokens),
    /// The one ending.
    Finished(Finished),
}

/// Tokens committed by one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewTokens {
    /// In order, the stop token that ends the output included.
    pub ids: Vec<u32>,
    /// Whether the last of them is that stop token, which is not part of the text.
    pub ends_with_stop: bool,
    /// Text that became certain: what may begin a stop string, or is part of a character, is held back.
    pub text: String,
    /// Log-probabilities of each token, or empty where they are not wanted.
    pub logprobs: Vec<RowLogprobs>,
}

/// Why and how a request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// The end of its text, as far as that was held back.
    pub text: String,
    /// What it cost.
    pub usage: Usage,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token (an end-of-sequence token or one of the request's own).
    StopToken(u32),
    /// The stop string with this index in [`StopConditions::strings`].
    StopString(usize),
    /// The grammar of the request allows nothing more.
    Complete,
    /// `max_tokens` reached.
    Length,
    /// The total deadline passed; partial output stands.
    Deadline,
    /// The queue deadline passed before the first step.
    QueueDeadline,
    /// The owner closed its event channel.
    Aborted,
    /// Something failed; the request's output so far stands but is incomplete.
    Error(RequestError),
}

/// What an ending says about the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishClass {
    /// It is whole.
    Stop,
    /// It was cut off by a limit on tokens or time; what came stands.
    Length,
    /// There is none: what came is not to be relied upon.
    Failed,
}

impl FinishReason {
    /// What it says about the output.
    pub fn class(&self) -> FinishClass {
        match self {
            FinishReason::StopToken(_) | FinishReason::StopString(_) | FinishReason::Complete => {
                FinishClass::Stop
            }
            FinishReason::Length | FinishReason::Deadline => FinishClass::Length,
            FinishReason::QueueDeadline | FinishReason::Aborted | FinishReason::Error(_) => {
                FinishClass::Failed
            }
        }
    }
}

/// Failures that end one request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The request needs more KV pages than the whole pool has.
    #[error("the request needs {needed} KV pages, the pool has {total}")]
    TooLarge {
        /// Pages for prompt plus one token.
        needed: usize,
        /// Pages in the pool.
        total: usize,
    },
    /// The model's logits held no finite number, or none of a token that may come.
    #[error("no token that is allowed has a finite logit at position {position}")]
    NotFinite {
        /// Position of the row.
        position: usize,
    },
    /// A token came that the grammar does not allow.
    #[error("the output left its grammar: {0}")]
    Grammar(#[from] MatchError),
    /// The engine panicked in a step this request was part of, or its state was rebuilt.
    #[error("the engine failed while serving this request")]
    EngineFailed,
    /// The device that computes is gone for good.
    #[error("the device that computes was lost")]
    DeviceLost,
    /// The server is shutting down and the drain time is over.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Counts and times of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens whose keys and values came from the cache (whole pages and copied parts of pages), as
    /// found at first admission.
    pub cached_tokens: usize,
    /// Of those, the ones that came from a copied page.
    pub copied_tokens: usize,
    /// Output tokens, stop token included.
    pub completion_tokens: usize,
    /// Tokens that were proposed as drafts and computed along.
    pub drafted_tokens: usize,
    /// Of those, the ones that turned out to be the output: each saved a forward pass.
    pub accepted_tokens: usize,
    /// Times the request was preempted.
    pub n_preemptions: usize,
    /// Time from arrival to the first step it was part of, in microseconds.
    pub queue_us: u64,
    /// Time from arrival to its first token, in microseconds; 0 where there was none.
    pub ttft_us: u64,
    /// Time from arrival to its ending, in microseconds; 0 where the engine failed before it could look.
    pub total_us: u64,
}

/// Why a request was not accepted. Nothing of it remains in the engine, no event is sent.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SubmitError {
    /// The waiting queue is full, or as full of this tenant's requests as it may be.
    #[error("the queue is full: {no_room}")]
    QueueFull {
        /// Of what there is too much.
        no_room: NoRoom,
        /// When to try again, from the measured drain rate.
        retry_after: Duration,
    },
    /// The waiting queue is so long that the request would wait longer than allowed.
    #[error(
        "the queue is too long: the request would wait about {} s, the limit is {} s",
        expected.as_secs(),
        limit.as_secs()
    )]
    WaitTooLong {
        /// What it would wait, from the measured drain rate.
        expected: Duration,
        /// [`crate::config::EngineConfig::max_queue_wait`].
        limit: Duration,
        /// When to try again.
        retry_after: Duration,
    },
    /// An empty prompt.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id outside the vocabulary.
    #[error("token id {token} at prompt position {position} is outside the vocabulary of {n_vocab}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Where it stands.
        position: usize,
        /// Vocabulary size.
        n_vocab: usize,
    },
    /// A prompt that the queue would not take were it empty.
    #[error(
        "the prompt has {prompt_tokens} tokens, more than the {limit} that one client's requests may have \
         waiting (max_waiting_tokens)"
    )]
    LongerThanQueue {
        /// Prompt length.
        prompt_tokens: usize,
        /// The longest there may be.
        limit: usize,
    },
    /// Prompt and output do not fit the context.
    #[error("prompt of {prompt_tokens} tokens + max_tokens {max_tokens} exceed the context of {context}")]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Output tokens asked for.
        max_tokens: usize,
        /// The model's context, or the server's lower limit.
        context: usize,
    },
    /// The request alone needs more pages than the pool has.
    #[error(
        "prompt of {prompt_tokens} tokens + max_tokens {max_tokens} need {needed} KV pages of {page_size} \
         tokens, the pool has {total}"
    )]
    NeverFits {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Output tokens asked for.
        max_tokens: usize,
        /// Pages needed.
        needed: usize,
        /// Pages in the pool.
        total: usize,
        /// Tokens per page.
        page_size: usize,
    },
    /// A sampling parameter out of range.
    #[error(transparent)]
    BadParam(#[from] BadParam),
    /// A bias that is not a finite number.
    #[error("the bias of token {token} must be a finite number, got {bias}")]
    BadBias {
        /// The token.
        token: u32,
        /// Its bias.
        bias: f32,
    },
    /// A biased token outside the vocabulary.
    #[error("biased token id {token} is outside the vocabulary of {n_vocab}")]
    BiasOutOfRange {
        /// The id.
        token: u32,
        /// Vocabulary size.
        n_vocab: usize,
    },
    /// A token to look up the log-probability of that is outside the vocabulary.
    #[error("token id {token} to list log-probabilities of is outside the vocabulary of {n_vocab}")]
    ListedOutOfRange {
        /// The id.
        token: u32,
        /// Vocabulary size.
        n_vocab: usize,
    },
    /// A stop token outside the vocabulary.
    #[error("stop token id {token} is outside the vocabulary of {n_vocab}")]
    StopTokenOutOfRange {
        /// The id.
        token: u32,
        /// Vocabulary size.
        n_vocab: usize,
    },
    /// The engine drains or has stopped.
    #[error("the server is shutting down")]
    ShuttingDown,
}
