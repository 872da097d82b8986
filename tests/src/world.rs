//! An engine on the toy model, driven step by step with a clock of its own, and the clients that talk to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arbora_constrained::Grammar;
use arbora_radix::Namespace;
use arbora_runtime::engine::{Engine, EngineConfig, EngineHandle, Turn};
use arbora_runtime::grammar::GrammarState;
use arbora_runtime::request::{
    Event, FinishReason, Finished, LogprobsWanted, Request, RequestId, RowLogprobs, SamplingParams,
    StopConditions, SubmitError,
};
use arbora_runtime::thought_limit::ThoughtLimit;
use arbora_runtime::token_bytes::TokenBytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::oracle::{Expected, expected, spell, token_bytes};
use crate::toy::{Fuse, N_VOCAB, ToyBackend};

/// One step on the world's clock.
pub const TICK: Duration = Duration::from_millis(1);

/// What a client asks for; the rest of a request is filled in.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Most output tokens.
    pub max_tokens: usize,
    /// Its part of the cache.
    pub namespace: Namespace,
    /// Whose it is.
    pub tenant: u32,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// What ends it early.
    pub stop: StopConditions,
    /// What the output must look like.
    pub grammar: Option<Grammar>,
    /// Bounds its thoughts.
    pub thoughts: Option<ThoughtLimit>,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Log-probabilities to send along.
    pub logprobs: LogprobsWanted,
    /// For the `priority` policy.
    pub priority: i32,
    /// Queue deadline.
    pub queue_timeout: Option<Duration>,
    /// Total deadline.
    pub total_timeout: Option<Duration>,
}

impl Ask {
    /// A greedy request that only ends by its length.
    pub fn new(prompt: &[u32], max_tokens: usize) -> Self {
        Ask {
            prompt: prompt.to_vec(),
            max_tokens,
            namespace: Namespace::default(),
            tenant: 0,
            sampling: SamplingParams::GREEDY,
            stop: StopConditions {
                ignore_eos: true,
                ..StopConditions::default()
            },
            grammar: None,
            thoughts: None,
            logit_bias: Vec::new(),
            logprobs: LogprobsWanted::default(),
            priority: 0,
            queue_timeout: None,
            total_timeout: None,
        }
    }
}

/// One accepted request and what came of it.
#[derive(Debug)]
pub struct Client {
    /// The engine's name for it.
    pub id: RequestId,
    /// What the plain evaluation says.
    pub expected: Expected,
    /// The output so far.
    pub tokens: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Log-probabilities of the prompt, once they came.
    pub scores: Option<Vec<RowLogprobs>>,
    /// Log-probabilities of the output so far.
    pub logprobs: Vec<RowLogprobs>,
    /// The ending.
    pub finished: Option<Finished>,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens asked for at most.
    pub max_tokens: usize,
    /// When it was submitted.
    pub submitted: Instant,
    /// Whether the newest tokens ended with a stop token.
    ends_with_stop: bool,
    events: Option<mpsc::Receiver<Event>>,
}

impl Client {
    /// Whether nothing more is to come.
    pub fn is_over(&self) -> bool {
        self.finished.is_some() || self.events.is_none()
    }

    /// Closes the event channel: the abort.
    pub fn hang_up(&mut self) {
        self.events = None;
    }

    /// How it ended.
    ///
    /// # Panics
    /// Where it has not ended.
    pub fn reason(&self) -> &FinishReason {
        &self.finished.as_ref().expect("the request ended").reason
    }

    /// Takes in what the engine sent; nothing may follow an ending.
    fn listen(&mut self) {
        let Some(events) = &mut self.events else { return };
        loop {
            match events.try_recv() {
                Ok(Event::Prompt(scores)) => {
                    assert!(
                        self.finished.is_none() && self.tokens.is_empty(),
                        "the prompt comes first"
                    );
                    assert!(self.scores.replace(scores).is_none(), "and once");
                }
                Ok(Event::Tokens(tokens)) => {
                    assert!(self.finished.is_none(), "tokens after the ending");
                    assert!(!tokens.ids.is_empty(), "an event without tokens");
                    self.tokens.extend(tokens.ids);
                    self.text.push_str(&tokens.text);
                    self.ends_with_stop = tokens.ends_with_stop;
                    self.logprobs.extend(tokens.logprobs);
                }
                Ok(Event::Finished(finished)) => {
                    assert!(self.finished.is_none(), "a second ending");
                    assert_eq!(finished.usage.completion_tokens, self.tokens.len());
                    let is_stop = matches!(finished.reason, FinishReason::StopToken(_));
                    assert_eq!(self.ends_with_stop, is_stop, "request {:?}", self.id);
                    // All that came before the ending is certain.
                    assert!(
                        self.expected.text.starts_with(&self.text),
                        "{:?} of {:?}",
                        self.text,
                        self.expected
                    );
                    self.text.push_str(&finished.text);
                    self.finished = Some(finished);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    assert!(self.finished.is_some(), "the engine let go without an ending");
                    return;
                }
            }
        }
    }

    /// Compares with the plain evaluation: equal where the request ended by itself, a beginning otherwise.
    pub fn verify(&self) {
        let n = self.tokens.len();
        let expected = &self.expected;
        assert!(n <= expected.tokens.len(), "{n} tokens, expected {expected:?}");
        assert_eq!(self.tokens, expected.tokens[..n], "request {:?}", self.id);
        assert_eq!(
            self.logprobs,
            expected.logprobs[..self.logprobs.len()],
            "request {:?}",
            self.id
        );
        assert!(expected.logprobs.is_empty() || self.logprobs.len() == n);
        if n > 0 || self.scores.is_some() {
            let scores = self.scores.as_deref().unwrap_or_default();
            assert_eq!(scores, expected.scores, "request {:?}", self.id);
        }
        let Some(finished) = &self.finished else { return };
        match &finished.reason {
            reason @ (FinishReason::StopToken(_)
            | FinishReason::StopString(_)
            | FinishReason::Complete
            | FinishReason::Length) => {
                assert_eq!(Some(reason), expected.reason.as_ref());
                assert_eq!(n, expected.tokens.len());
                assert_eq!(self.text, expected.text, "request {:?}", self.id);
            }
            FinishReason::Error(arbora_runtime::request::RequestError::NotFinite { .. }) => {
                assert_eq!(None, expected.reason);
                assert_eq!(n, expected.tokens.len());
                assert_eq!(self.text, expected.text, "request {:?}", self.id);
            }
            _ => {}
        }
        let usage = finished.usage;
        assert!(
            usage.cached_tokens < usage.prompt_tokens,
            "one token is always computed"
        );
        assert!(usage.copied_tokens <= usage.cached_tokens);
        assert!(usage.accepted_tokens <= usage.drafted_tokens);
    }
}

/// How the toy model's device is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Device {
    /// The model fails once in so many rows; 0 is never.
    pub not_finite_one_in: u64,
    /// It computes late, at times drawn from this; at once where absent.
    pub late: Option<u64>,
}

/// The engine and its clients.
pub struct World {
    /// The engine under test.
    pub engine: Engine<ToyBackend>,
    /// The way to it.
    pub handle: EngineHandle,
    /// Makes the backend panic.
    pub fuse: Fuse,
    /// Set to lose the device.
    pub loss: Arc<AtomicBool>,
    /// All clients ever accepted.
    pub clients: Vec<Client>,
    /// Time that a computed row takes, besides [`TICK`] for each step.
    pub row_time: Duration,
    n_rows: Arc<AtomicU64>,
    now: Instant,
    config: EngineConfig,
    not_finite_one_in: u64,
}

impl World {
    /// An engine with `config` on a model of any context.
    pub fn new(config: EngineConfig) -> Self {
        World::with_device(config, Device::default())
    }

    /// The same on another device.
    pub fn with_device(config: EngineConfig, device: Device) -> Self {
        let not_finite_one_in = device.not_finite_one_in;
        let (mut backend, fuse) = ToyBackend::new(not_finite_one_in);
        if let Some(seed) = device.late {
            backend = backend.late(seed);
        }
        let loss = backend.loss();
        let n_rows = backend.n_rows();
        let decoder = backend.decoder(config.context, config.forward_limits());
        let table: Vec<Vec<u8>> = (0..N_VOCAB as u32).map(token_bytes).collect();
        let bytes = Arc::new(TokenBytes::new(table.iter().map(Vec::as_slice)));
        let (engine, handle) =
            Engine::new(backend, decoder, bytes, config.clone()).expect("the configuration is valid");
        World {
            engine,
            handle,
            fuse,
            loss,
            clients: Vec::new(),
            row_time: Duration::ZERO,
            n_rows,
            now: Instant::now(),
            config,
            not_finite_one_in,
        }
    }

    /// Rows computed so far.
    pub fn n_rows(&self) -> u64 {
        self.n_rows.load(Ordering::SeqCst)
    }

    /// The world's time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Lets time pass without a step.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// Submits a request; returns its index among the clients.
    pub fn submit(&mut self, ask: &Ask) -> Result<usize, SubmitError> {
        let (id, max_tokens) = (self.handle.next_id(), ask.max_tokens);
        let (sender, events) = mpsc::channel(Request::event_capacity(max_tokens));
        let request = Request {
            namespace: ask.namespace,
            tenant: ask.tenant,
            sampling: ask.sampling,
            stop: ask.stop.clone(),
            grammar: ask
                .grammar
                .as_ref()
                .map(|grammar| GrammarState::new(grammar, Arc::new(spell))),
            thoughts: ask.thoughts.clone(),
            logit_bias: ask.logit_bias.clone(),
            logprobs: ask.logprobs.clone(),
            priority: ask.priority,
            queue_timeout: ask.queue_timeout,
            total_timeout: ask.total_timeout,
            ..Request::new(id, ask.prompt.clone(), max_tokens, self.now, sender)
        };
        let stops = &self.config.model_stop_tokens;
        let expected = expected(&request, ask.grammar.as_ref(), stops, self.not_finite_one_in);
        self.handle.submit(request)?;
        self.clients.push(Client {
            id,
            expected,
            tokens: Vec::new(),
            text: String::new(),
            ends_with_stop: false,
            scores: None,
            logprobs: Vec::new(),
            finished: None,
            n_prompt: ask.prompt.len(),
            max_tokens,
            submitted: self.now,
            events: Some(events),
        });
        Ok(self.clients.len() - 1)
    }

    /// One turn of the engine; all clients listen.
    pub fn turn(&mut self) -> Turn {
        let (now, row_time) = (self.now, self.row_time);
        let n_before = self.n_rows();
        let counter = Arc::clone(&self.n_rows);
        let elapsed = move || {
            let n_rows = counter.load(Ordering::SeqCst) - n_before;
            // A step takes a while, however few rows it has.
            let fixed = if n_rows > 0 { TICK } else { Duration::ZERO };
            if row_time.is_zero() {
                row_time
            } else {
                fixed + row_time * n_rows as u32
            }
        };
        let turn = self.engine.turn(&|| now + elapsed());
        self.now += TICK + row_time * (self.n_rows() - n_before) as u32;
        for client in &mut self.clients {
            client.listen();
        }
        turn
    }

    /// Turns until nothing is left to do, at most `max_turns` times.
    pub fn run(&mut self, max_turns: usize) -> Turn {
        for _ in 0..max_turns {
            let turn = self.turn();
            if turn != Turn::Busy {
                return turn;
            }
        }
        panic!("still busy after {max_turns} turns");
    }

    /// Checks every client's output, and that nothing is left behind where all are over.
    pub fn verify(&self) {
        self.clients.iter().for_each(Client::verify);
        self.engine.check();
    }

    /// Checks that a quiet engine holds nothing but its cache.
    pub fn verify_quiet(&self) {
        self.verify();
        assert!(
            self.clients.iter().all(Client::is_over),
            "everybody heard an ending"
        );
        let metrics = self.handle.metrics();
        let now = metrics.gauges();
        assert_eq!(now.pages_owned, 0, "no page is owned");
        assert_eq!(now.pages_cached, now.pages_evictable, "no page is locked");
        assert_eq!((now.running, now.waiting, now.waiting_tokens), (0, 0, 0));
        assert_eq!(self.handle.n_in_flight(), 0);
        let ended: u64 = metrics
            .requests_finished
            .iter()
            .map(|counter| counter.value())
            .sum();
        assert_eq!(ended, metrics.requests_accepted.value(), "one ending per request");
    }
}
