//! The way to an embedding engine from other threads: submit, drain, metrics. Never waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, TrySendError};
use tokio::sync::mpsc;

use super::queue::Job;
use super::{Answer, EmbeddingConfig};
use crate::fair_limit::{FairLimit, NoRoom, Taken};
use crate::metrics::{Counter, Histogram, Micros};
use crate::model::encoder::EncodedText;

/// What travels to the engine's thread.
#[derive(Debug)]
pub(super) enum Message {
    Submit(Box<Job>),
    /// Look at the flags.
    Wake,
}

/// Messages in the inbox besides those that have a place.
pub(super) const N_EXTRA_SLOTS: usize = 1;

const NOT_DRAINING: u64 = u64::MAX;

/// What an embedding engine has done.
#[derive(Debug, Default)]
pub struct EmbeddingMetrics {
    /// Requests accepted.
    pub requests: Counter,
    /// Requests refused because the queue was full.
    pub refused: Counter,
    /// Texts encoded.
    pub texts: Counter,
    /// Tokens of them.
    pub tokens: Counter,
    /// Time of each batch.
    pub batch_time: Histogram<Micros>,
}

/// Counters and flags between handles and engine.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: EmbeddingConfig,
    pub(super) max_tokens: usize,
    n_vocab: usize,
    pub(super) metrics: Arc<EmbeddingMetrics>,
    requests: FairLimit,
    tokens: FairLimit,
    accepting: AtomicBool,
    drain_ms: AtomicU64,
    is_waking: AtomicBool,
    n_in_flight: AtomicUsize,
    epoch: Instant,
    /// End of the latest batch, or when the engine last had nothing to do, microseconds after `epoch`.
    moved_us: AtomicU64,
}

impl Shared {
    pub(super) fn new(config: EmbeddingConfig, max_tokens: usize, n_vocab: usize) -> Shared {
        Shared {
            config,
            max_tokens,
            n_vocab,
            metrics: Arc::default(),
            requests: FairLimit::new("requests", config.max_waiting, config.n_tenants),
            tokens: FairLimit::new("tokens", config.max_waiting_tokens, config.n_tenants),
            accepting: AtomicBool::new(true),
            drain_ms: AtomicU64::new(NOT_DRAINING),
            is_waking: AtomicBool::new(false),
            n_in_flight: AtomicUsize::new(0),
            epoch: Instant::now(),
            moved_us: AtomicU64::new(0),
        }
    }

    /// How long the drain asked for may take, if one was.
    pub(super) fn drain_limit(&self) -> Option<Duration> {
        let ms = self.drain_ms.load(Ordering::SeqCst);
        (ms != NOT_DRAINING).then(|| Duration::from_millis(ms))
    }

    /// The wake-up arrived. The flags it is about are read after this.
    pub(super) fn woken(&self) {
        self.is_waking.store(false, Ordering::SeqCst);
    }

    pub(super) fn stop_accepting(&self) {
        self.accepting.store(false, Ordering::SeqCst);
    }

    pub(super) fn n_in_flight(&self) -> usize {
        self.n_in_flight.load(Ordering::SeqCst)
    }

    pub(super) fn moved(&self, now: Instant) {
        let us = now.saturating_duration_since(self.epoch).as_micros();
        self.moved_us
            .store(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// A request's place in the queue. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    tenant: usize,
    request: Taken,
    tokens: Taken,
}

impl Place {
    fn reserve(shared: &Arc<Shared>, tenant: usize, n_tokens: usize) -> Result<Place, NoRoom> {
        let request = shared.requests.take(tenant, 1)?;
        let tokens = match shared.tokens.take(tenant, n_tokens) {
            Ok(tokens) => tokens,
            Err(no_room) => {
                shared.requests.give_back(tenant, request);
                return Err(no_room);
            }
        };
        if shared.n_in_flight.fetch_add(1, Ordering::SeqCst) == 0 {
            // Until now it had nothing to do.
            shared.moved(Instant::now());
        }
        Ok(Place {
            shared: Arc::clone(shared),
            tenant,
            request,
            tokens,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared
            .tokens
            .give_back(self.tenant, std::mem::take(&mut self.tokens));
        shared
            .requests
            .give_back(self.tenant, std::mem::take(&mut self.request));
        shared.n_in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Why texts are not encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// A text without a token, or a request without a text.
    #[error("text {text_idx} has no tokens")]
    Empty {
        /// Which text.
        text_idx: usize,
    },
    /// A text is longer than the model takes.
    #[error("text {text_idx} has {n_tokens} tokens, the model takes at most {limit}")]
    TooManyTokens {
        /// Which text.
        text_idx: usize,
        /// Its tokens.
        n_tokens: usize,
        /// Most tokens.
        limit: usize,
    },
    /// A token is not in the vocabulary.
    #[error("token {token} of text {text_idx} is not in the vocabulary of {n_vocab} tokens")]
    TokenOutOfRange {
        /// Which text.
        text_idx: usize,
        /// The token.
        token: u32,
        /// Tokens there are.
        n_vocab: usize,
    },
    /// The request would not even fit the queue if it were empty.
    #[error("the request has {n_tokens} tokens, a request has at most {limit}")]
    LongerThanQueue {
        /// Of all texts.
        n_tokens: usize,
        /// Most tokens.
        limit: usize,
    },
    /// Too much waits.
    #[error("{0}")]
    QueueFull(NoRoom),
    /// The engine drains, or is over.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// A way to the engine. Cheap to clone; the engine ends when the last one is gone.
#[derive(Clone, Debug)]
pub struct EmbeddingHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Sender<Message>,
}

impl EmbeddingHandle {
    /// Hands `texts` to the engine, or says why not. The answers come in any order, one for each text; where
    /// the channel closes before, the engine failed or ended. Dropping the channel drops what still waits.
    ///
    /// # Panics
    /// Where there is no such tenant.
    pub fn submit(
        &self,
        texts: Vec<EncodedText>,
        tenant: usize,
    ) -> Result<mpsc::Receiver<Answer>, EmbedError> {
        let shared = &self.shared;
        assert!(tenant < shared.config.n_tenants, "tenant {tenant}");
        self.check(&texts)?;
        let n_tokens = texts.iter().map(|text| text.ids.len()).sum();
        let limit = shared.tokens.most_of_one();
        if n_tokens > limit {
            return Err(EmbedError::LongerThanQueue { n_tokens, limit });
        }
        let place = Place::reserve(shared, tenant, n_tokens).map_err(|no_room| {
            shared.metrics.refused.add(1);
            EmbedError::QueueFull(no_room)
        })?;
        if !self.is_accepting() {
            return Err(EmbedError::ShuttingDown);
        }
        let (reply, answers) = mpsc::channel(texts.len());
        let job = Job {
            tenant,
            texts: VecDeque::from(texts),
            n_taken: 0,
            reply,
            place: Arc::new(place),
        };
        match self.inbox.try_send(Message::Submit(Box::new(job))) {
            Ok(()) => {
                shared.metrics.requests.add(1);
                Ok(answers)
            }
            Err(TrySendError::Full(_)) => panic!("the inbox has a slot for every place"),
            Err(TrySendError::Disconnected(_)) => Err(EmbedError::ShuttingDown),
        }
    }

    fn check(&self, texts: &[EncodedText]) -> Result<(), EmbedError> {
        let (limit, n_vocab) = (self.shared.max_tokens, self.shared.n_vocab);
        if texts.is_empty() {
            return Err(EmbedError::Empty { text_idx: 0 });
        }
        for (text_idx, EncodedText { ids, .. }) in texts.iter().enumerate() {
            let n_tokens = ids.len();
            if n_tokens == 0 {
                return Err(EmbedError::Empty { text_idx });
            }
            if n_tokens > limit {
                return Err(EmbedError::TooManyTokens {
                    text_idx,
                    n_tokens,
                    limit,
                });
            }
            if let Some(&token) = ids.iter().find(|token| **token as usize >= n_vocab) {
                return Err(EmbedError::TokenOutOfRange {
                    text_idx,
                    token,
                    n_vocab,
                });
            }
        }
        Ok(())
    }

    /// Refuses new requests from now on. The engine finishes those it has, forgets what is left after
    /// `limit`, and then its thread returns.
    pub fn drain(&self, limit: Duration) {
        let shared = &self.shared;
        shared.stop_accepting();
        let ms = u64::try_from(limit.as_millis()).unwrap_or(NOT_DRAINING);
        shared.drain_ms.store(ms.min(NOT_DRAINING - 1), Ordering::SeqCst);
        if !shared.is_waking.swap(true, Ordering::SeqCst) {
            // An engine that is over needs no wake-up.
            drop(self.inbox.try_send(Message::Wake));
        }
    }

    /// What the engine has done.
    pub fn metrics(&self) -> Arc<EmbeddingMetrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// Whether requests are still accepted.
    pub fn is_accepting(&self) -> bool {
        self.shared.accepting.load(Ordering::SeqCst)
    }

    /// Accepted requests that have not ended.
    pub fn n_in_flight(&self) -> usize {
        self.shared.n_in_flight()
    }

    /// Tokens of them.
    pub fn n_tokens_in_flight(&self) -> usize {
        self.shared.tokens.n_taken()
    }

    /// Most tokens of a text.
    pub fn max_tokens(&self) -> usize {
        self.shared.max_tokens
    }

    /// Time since the engine moved, where it has work.
    pub fn stalled_for(&self, now: Instant) -> Option<Duration> {
        if self.n_in_flight() == 0 {
            return None;
        }
        let moved = Duration::from_micros(self.shared.moved_us.load(Ordering::Relaxed));
        Some(now.saturating_duration_since(self.shared.epoch + moved))
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A place of a queue of its own.
    pub(in crate::embedding) fn place() -> Arc<Place> {
        let shared = Arc::new(Shared::new(EmbeddingConfig::default(), 8, 8));
        Arc::new(Place::reserve(&shared, 0, 1).expect("there is room"))
    }
}
