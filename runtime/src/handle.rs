//! The engine's handle for other threads: submit, drain, metrics.
//!
//! A handle never waits for the engine. What it shares with it are counters and flags; requests travel
//! through one bounded inbox that cannot overflow, because a submit first reserves a place among the waiting:
//!
//! ```text
//! submit:   reserve (n_waiting + 1)  ->  accepting?  ->  inbox      no: the place is given back
//! shutdown: accepting = false        ->  end every request until n_waiting == 0
//! ```
//!
//! So whoever reserved before the engine stopped is heard, and an accepted request is never lost (C5). The
//! place travels with the request and is given back where it is dropped: when the request starts or ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, TrySendError};
use tokio::sync::mpsc;

use crate::fair_limit::{FairLimit, NoRoom, Taken};
use crate::inspect::{InspectError, Inspected, Inspection};
use crate::metrics::Metrics;
use crate::request::{Request, RequestId, SubmitError};

/// What travels to the engine thread.
#[derive(Debug)]
pub(crate) enum Message {
    Submit(Box<Request>, Place),
    /// Look at the cache. At most one is on its way.
    Inspect(Box<Question>),
    /// Look at the flags. At most one is on its way.
    Wake,
}

/// A question about the cache, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) inspection: Inspection,
    pub(crate) reply: mpsc::Sender<Inspected>,
}

/// Limits a request is checked against before it is accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestLimits {
    pub(crate) n_vocab: usize,
    pub(crate) context: usize,
    pub(crate) n_pages: usize,
    pub(crate) page_size: usize,
    pub(crate) max_running: usize,
    pub(crate) max_waiting: usize,
    pub(crate) n_tenants: usize,
    pub(crate) max_waiting_tokens: usize,
    pub(crate) max_queue_wait: Option<Duration>,
}

/// Counters and flags between handles and engine.
#[derive(Debug)]
pub(crate) struct Shared {
    limits: RequestLimits,
    metrics: Arc<Metrics>,
    next_id: AtomicU64,
    epoch: Instant,
    /// Requests that are accepted and not ended.
    n_in_flight: AtomicUsize,
    /// Requests in the inbox and in the waiting queue that never ran, and their prompt tokens.
    n_waiting: AtomicUsize,
    n_waiting_tokens: AtomicUsize,
    /// Limits on both.
    waiting: FairLimit,
    waiting_tokens: FairLimit,
    /// Prompt tokens leaving the waiting queue in 1,000 seconds; 0 while unknown.
    drain_rate: AtomicU64,
    accepting: AtomicBool,
    /// Milliseconds a drain may take; `u64::MAX` while nobody asked for one.
    drain_ms: AtomicU64,
    /// Flushes asked for so far.
    n_flushes: AtomicU64,
    /// A wake-up is on its way.
    is_waking: AtomicBool,
    /// A question is on its way.
    is_asked: AtomicBool,
    /// End of the latest step, microseconds after `epoch`.
    stepped_us: AtomicU64,
}

const NOT_DRAINING: u64 = u64::MAX;

impl Shared {
    pub(crate) fn new(limits: RequestLimits) -> Self {
        Shared {
            limits,
            metrics: Arc::default(),
            next_id: AtomicU64::new(0),
            epoch: Instant::now(),
            n_in_flight: AtomicUsize::new(0),
            n_waiting: AtomicUsize::new(0),
            n_waiting_tokens: AtomicUsize::new(0),
            waiting: FairLimit::new("requests", limits.max_waiting, limits.n_tenants),
            waiting_tokens: FairLimit::new("prompt tokens", limits.max_waiting_tokens, limits.n_tenants),
            drain_rate: AtomicU64::new(0),
            accepting: AtomicBool::new(true),
            drain_ms: AtomicU64::new(NOT_DRAINING),
            n_flushes: AtomicU64::new(0),
            is_waking: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            stepped_us: AtomicU64::new(0),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Places reserved by accepted requests that neither ran nor ended.
    pub(crate) fn n_waiting(&self) -> usize {
        self.n_waiting.load(Ordering::SeqCst)
    }

    pub(crate) fn waiting_tokens(&self) -> usize {
        self.n_waiting_tokens.load(Ordering::SeqCst)
    }

    /// A request ended.
    pub(crate) fn leave(&self) {
        self.n_in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn stop_accepting(&self) {
        self.accepting.store(false, Ordering::SeqCst);
    }

    /// How long the drain asked for may take, if one was.
    pub(crate) fn drain_limit(&self) -> Option<Duration> {
        let ms = self.drain_ms.load(Ordering::SeqCst);
        (ms != NOT_DRAINING).then(|| Duration::from_millis(ms))
    }

    pub(crate) fn n_flushes(&self) -> u64 {
        self.n_flushes.load(Ordering::SeqCst)
    }

    /// The wake-up arrived. The flags it is about are read after this.
    pub(crate) fn woken(&self) {
        self.is_waking.store(false, Ordering::SeqCst);
    }

    /// The question was answered, or nobody waits for its answer.
    pub(crate) fn close_question(&self) {
        self.is_asked.store(false, Ordering::SeqCst);
    }

    /// Prompt tokens leave the waiting queue at this rate.
    pub(crate) fn set_drain_rate(&self, tokens_per_second: f64) {
        let rate = (tokens_per_second * 1000.0) as u64;
        self.drain_rate.store(rate.max(1), Ordering::Relaxed);
    }

    /// Time until `n_tokens` prompt tokens have left the waiting queue; absent while nothing is known.
    fn time_to_drain(&self, n_tokens: usize) -> Option<Duration> {
        let rate = self.drain_rate.load(Ordering::Relaxed);
        let ms = (n_tokens as u64).saturating_mul(1_000_000).checked_div(rate)?;
        Some(Duration::from_millis(ms))
    }

    /// Time that a request of `tenant` will wait, if tenants take turns: before the last of its tokens each
    /// other one has as many served, as far as it has them. Absent while nothing is known.
    fn expected_wait(&self, tenant: usize) -> Option<Duration> {
        let own = self.waiting_tokens.held(tenant);
        let all = 0..self.limits.n_tenants;
        let ahead = all.map(|other| self.waiting_tokens.held(other).min(own)).sum();
        self.time_to_drain(ahead)
    }

    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    pub(crate) fn stepped(&self, now: Instant) {
        let us = now.saturating_duration_since(self.epoch).as_micros();
        self.stepped_us
            .store(u64::try_from(us).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// A request's place among the waiting. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    tenant: usize,
    n_tokens: usize,
    request: Taken,
    tokens: Taken,
}

impl Place {
    /// One for a prompt of `n_tokens` tokens. Counts as waiting from when it is complete: the engine never
    /// sees one that is refused.
    fn reserve(shared: &Arc<Shared>, tenant: usize, n_tokens: usize) -> Result<Self, NoRoom> {
        let request = shared.waiting.take(tenant, 1)?;
        let tokens = match shared.waiting_tokens.take(tenant, n_tokens) {
            Ok(tokens) => tokens,
            Err(no_room) => {
                shared.waiting.give_back(tenant, request);
                return Err(no_room);
            }
        };
        shared.n_waiting_tokens.fetch_add(n_tokens, Ordering::SeqCst);
        shared.n_waiting.fetch_add(1, Ordering::SeqCst);
        Ok(Place {
            shared: Arc::clone(shared),
            tenant,
            n_tokens,
            request,
            tokens,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (shared, tenant) = (&self.shared, self.tenant);
        let (request, tokens) = (
            std::mem::take(&mut self.request),
            std::mem::take(&mut self.tokens),
        );
        shared.waiting_tokens.give_back(tenant, tokens);
        shared.waiting.give_back(tenant, request);
        // Requests last: when none waits any more, no token does.
        shared.n_waiting_tokens.fetch_sub(self.n_tokens, Ordering::SeqCst);
        shared.n_waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A way to the engine. Cheap to clone; the engine drains when the last one is gone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    inbox: Sender<Message>,
}

impl EngineHandle {
    pub(crate) fn new(shared: Arc<Shared>, inbox: Sender<Message>) -> Self {
        EngineHandle { shared, inbox }
    }

    /// An id no request of this engine had before.
    pub fn next_id(&self) -> RequestId {
        RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands `request` to the engine, or says why not. Never waits.
    ///
    /// # Panics
    /// Where the event channel has less room than [`Request::event_capacity`] asks for, the grammar was made
    /// for another vocabulary, or there is no such tenant.
    pub fn submit(&self, request: Request) -> Result<(), SubmitError> {
        assert!(
            request.events.max_capacity() >= Request::event_capacity(request.max_tokens),
            "event channel of {} slots for {} output tokens",
            request.events.max_capacity(),
            request.max_tokens
        );
        let n_tenants = self.shared.limits.n_tenants;
        assert!((request.tenant as usize) < n_tenants, "tenant {}", request.tenant);
        if let Some(grammar) = &request.grammar {
            let n_vocab = self.shared.limits.n_vocab;
            assert_eq!(grammar.n_vocab(), n_vocab, "vocabulary of the grammar");
        }
        self.check(&request)?;
        self.check_wait(request.tenant as usize)?;
        let place = Place::reserve(&self.shared, request.tenant as usize, request.prompt.len());
        let place = place.map_err(|no_room| self.queue_full(no_room))?;
        if !self.shared.accepting.load(Ordering::SeqCst) {
            return Err(SubmitError::ShuttingDown);
        }
        self.shared.n_in_flight.fetch_add(1, Ordering::SeqCst);
        match self.inbox.try_send(Message::Submit(Box::new(request), place)) {
            Ok(()) => {
                self.shared.metrics.requests_accepted.add(1);
                Ok(())
            }
            Err(TrySendError::Full(_)) => panic!("the inbox has a slot for every reservation"),
            Err(TrySendError::Disconnected(_)) => {
                self.shared.leave();
                Err(SubmitError::ShuttingDown)
            }
        }
    }

    /// Whether the engine would take `request`, were nobody else waiting.
    pub fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let limits = &self.shared.limits;
        let prompt_tokens = request.prompt.len();
        let max_tokens = request.max_tokens;
        if prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        request.sampling.validate()?;
        let out_of_range = |&token: &u32| token as usize >= limits.n_vocab;
        if let Some(&token) = request.stop.token_ids.iter().find(|id| out_of_range(id)) {
            let n_vocab = limits.n_vocab;
            return Err(SubmitError::StopTokenOutOfRange { token, n_vocab });
        }
        if let Some(&token) = request.logprobs.listed.iter().find(|id| out_of_range(id)) {
            let n_vocab = limits.n_vocab;
            return Err(SubmitError::ListedOutOfRange { token, n_vocab });
        }
        for &(token, bias) in &request.logit_bias {
            if out_of_range(&token) {
                let n_vocab = limits.n_vocab;
                return Err(SubmitError::BiasOutOfRange { token, n_vocab });
            }
            if !bias.is_finite() {
                return Err(SubmitError::BadBias { token, bias });
            }
        }
        if prompt_tokens.saturating_add(max_tokens) > limits.context {
            return Err(SubmitError::ContextExceeded {
                prompt_tokens,
                max_tokens,
                context: limits.context,
            });
        }
        // The last output token is never fed back, so it needs no slot.
        let needed = (prompt_tokens + max_tokens.max(1) - 1).div_ceil(limits.page_size);
        if needed > limits.n_pages {
            return Err(SubmitError::NeverFits {
                prompt_tokens,
                max_tokens,
                needed,
                total: limits.n_pages,
                page_size: limits.page_size,
            });
        }
        let longest = self.shared.waiting_tokens.most_of_one();
        if prompt_tokens > longest {
            return Err(SubmitError::LongerThanQueue {
                prompt_tokens,
                limit: longest,
            });
        }
        match request.prompt.iter().position(out_of_range) {
            Some(position) => Err(SubmitError::TokenOutOfRange {
                token: request.prompt[position],
                position,
                n_vocab: limits.n_vocab,
            }),
            None => Ok(()),
        }
    }

    /// Refuses new requests from now on. The engine finishes those it has, ends what is left after `limit`
    /// with [`crate::request::RequestError::ShuttingDown`], and then its thread returns.
    pub fn drain(&self, limit: Duration) {
        self.shared.stop_accepting();
        let ms = u64::try_from(limit.as_millis()).unwrap_or(NOT_DRAINING);
        self.shared
            .drain_ms
            .store(ms.min(NOT_DRAINING - 1), Ordering::SeqCst);
        self.wake();
    }

    /// Empties the prefix cache, but for what running sequences use.
    pub fn flush_cache(&self) {
        self.shared.n_flushes.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    /// Asks the engine to look at its cache before its next step; the answer goes to `reply`, which has room
    /// for it. Where the engine ends first, `reply` is closed without one. Never waits.
    pub fn inspect(
        &self,
        inspection: Inspection,
        reply: mpsc::Sender<Inspected>,
    ) -> Result<(), InspectError> {
        inspection.validate(self.shared.limits.context)?;
        if self.shared.is_asked.swap(true, Ordering::SeqCst) {
            return Err(InspectError::Busy);
        }
        let question = Question { inspection, reply };
        match self.inbox.try_send(Message::Inspect(Box::new(question))) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => panic!("the inbox has a slot for one question"),
            Err(TrySendError::Disconnected(_)) => Err(InspectError::Over),
        }
    }

    /// What the engine has done and holds.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// Whether requests are still accepted.
    pub fn is_accepting(&self) -> bool {
        self.shared.accepting.load(Ordering::SeqCst)
    }

    /// Accepted requests that have not ended.
    pub fn n_in_flight(&self) -> usize {
        self.shared.n_in_flight.load(Ordering::SeqCst)
    }

    /// Time since the latest step ended, while there is work to step for.
    pub fn stalled_for(&self, now: Instant) -> Option<Duration> {
        if self.n_in_flight() == 0 {
            return None;
        }
        let stepped = Duration::from_micros(self.shared.stepped_us.load(Ordering::Relaxed));
        Some(
            now.saturating_duration_since(self.shared.epoch)
                .saturating_sub(stepped),
        )
    }

    /// Size of the vocabulary: every prompt token is below it.
    pub fn n_vocab(&self) -> usize {
        self.shared.limits.n_vocab
    }

    /// Most tokens of prompt and output together.
    pub fn context(&self) -> usize {
        self.shared.limits.context
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.shared.limits.page_size
    }

    /// Most requests computed at a time.
    pub fn max_running(&self) -> usize {
        self.shared.limits.max_running
    }

    // A wake-up that is on its way serves for this one too: the engine reads the flags after it.
    fn wake(&self) {
        if !self.shared.is_waking.swap(true, Ordering::SeqCst) {
            drop(self.inbox.try_send(Message::Wake));
        }
    }

    /// Refuses what would wait longer than anybody does.
    fn check_wait(&self, tenant: usize) -> Result<(), SubmitError> {
        let limit = self.shared.limits.max_queue_wait;
        match (limit, self.shared.expected_wait(tenant)) {
            (Some(limit), Some(expected)) if expected > limit => {
                self.shared.metrics.requests_refused.add(1);
                Err(SubmitError::WaitTooLong {
                    expected,
                    limit,
                    retry_after: retry_after(Some(expected - limit)),
                })
            }
            _ => Ok(()),
        }
    }

    fn queue_full(&self, no_room: NoRoom) -> SubmitError {
        self.shared.metrics.requests_refused.add(1);
        // By then a retry finds room, while waiting for all of them would leave the engine idle.
        let half = self.shared.waiting_tokens() / 2;
        SubmitError::QueueFull {
            no_room,
            retry_after: retry_after(self.shared.time_to_drain(half)),
        }
    }
}

/// What a client is told that is refused for about `time`, or for a time that is not known.
fn retry_after(time: Option<Duration>) -> Duration {
    let seconds = time.map_or(1, |time| time.as_secs());
    Duration::from_secs(seconds.clamp(1, 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_between_a_second_and_a_minute() {
        let of = |ms| retry_after(Some(Duration::from_millis(ms)));
        assert_eq!(of(10_900), Duration::from_secs(10));
        assert_eq!(of(20), Duration::from_secs(1));
        assert_eq!(of(u64::MAX), Duration::from_secs(60));
        assert_eq!(retry_after(None), Duration::from_secs(1));
    }

    fn shared(n_tenants: usize) -> Arc<Shared> {
        Arc::new(Shared::new(RequestLimits {
            n_vocab: 48,
            context: 64,
            n_pages: 64,
            page_size: 4,
            max_running: 4,
            max_waiting: 64,
            n_tenants,
            max_waiting_tokens: 10_000,
            max_queue_wait: None,
        }))
    }

    #[test]
    fn a_request_waits_for_its_own_tenant_and_as_long_for_each_other_one() {
        let shared = shared(3);
        let mut places = Vec::new();
        for (tenant, n_tokens) in [(0, 1000), (0, 1000), (1, 300)] {
            places.push(Place::reserve(&shared, tenant, n_tokens).expect("there is room"));
        }
        assert_eq!(shared.expected_wait(0), None, "nothing is known");
        shared.set_drain_rate(100.0);
        let waits = [0, 1, 2].map(|tenant| shared.expected_wait(tenant).map(|wait| wait.as_secs()));
        assert_eq!(waits, [Some(23), Some(6), Some(0)]);
    }
}
