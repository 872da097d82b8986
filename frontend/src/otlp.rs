//! OpenTelemetry traces: finished exchanges go to a collector, by OTLP over HTTP with JSON, from a thread of
//! their own.
//!
//! ```text
//! exchange ends ─► queue ─► thread "otlp": a batch, encoded ─► POST, tried again ─► collector
//!                    └─ full: dropped                └─ refused or out of tries: dropped
//! told to stop: what is in the queue goes out, a try per batch, within FLUSH_LIMIT
//! ```
//!
//! Invariants: whoever ends an exchange never waits for the collector; the queue holds at most
//! `max_queued_spans` and a batch at most `max_batch_spans`; every span is counted once, as exported or as
//! dropped.

pub mod exchange;

mod context;
mod encode;
mod headers;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::HeaderMap;

use self::encode::{Resource, Span, write_request};
use self::exchange::Finished;
pub use self::headers::{BadHeader, Headers, read_headers};
use crate::metrics::TraceMetrics;
use crate::random::random_u64;
use crate::tls::system_tls;
use crate::workers::{NoThread, spawn_thread};

/// What the collector gets at the end for what is still in the queue.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// The log hears of dropped spans this often at most.
const WARN_INTERVAL: Duration = Duration::from_secs(60);
/// A collector that wants to be left alone for longer is asked again after this time all the same.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Most bytes of an answer that are read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// Where spans go and whose they are.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportSettings {
    /// URL to which batches are POSTed.
    pub endpoint: String,
    /// Headers of every POST besides its own.
    pub headers: Headers,
    /// `service.name`.
    pub service_name: String,
    /// Name of the model that is served.
    pub model: String,
    /// How much and how long.
    pub limits: ExportLimits,
}

/// How much is kept and how long is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExportLimits {
    /// Spans in the queue; more are dropped.
    pub max_queued_spans: usize,
    /// Spans of one POST.
    pub max_batch_spans: usize,
    /// A batch that is not full leaves this long after its first exchange.
    pub delay: Duration,
    /// What a POST may take.
    pub timeout: Duration,
    /// Tries of a batch, at least 1.
    pub n_tries: u32,
    /// Between the first two tries; each further pause is twice as long.
    pub pause: Duration,
}

impl Default for ExportLimits {
    fn default() -> Self {
        ExportLimits {
            max_queued_spans: 2048,
            max_batch_spans: 512,
            delay: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            n_tries: 5,
            pause: Duration::from_secs(1),
        }
    }
}

/// Where exchanges are traced. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Traces(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// The queue has something new for the thread to look at.
    changed: Condvar,
    limits: ExportLimits,
    metrics: TraceMetrics,
}

#[derive(Debug, Default)]
struct Queue {
    finished: VecDeque<Finished>,
    /// Of all in `finished`.
    n_spans: usize,
    /// When the thread must be over; absent while nobody told it to stop.
    deadline: Option<Instant>,
}

impl Traces {
    /// What was exported and what was dropped.
    pub fn metrics(&self) -> &TraceMetrics {
        &self.0.metrics
    }

    /// Hands an exchange to the thread, or drops it where there is no room.
    fn push(&self, finished: Finished) {
        let n_new = finished.n_spans();
        let limits = &self.0.limits;
        let mut queue = self.0.queue();
        let n_spans = queue.n_spans + n_new;
        if queue.deadline.is_some() || n_spans > limits.max_queued_spans {
            drop(queue);
            self.0.metrics.drop_spans(n_new as u64);
            return;
        }
        let is_first = queue.finished.is_empty();
        let fills_a_batch = n_spans >= limits.max_batch_spans;
        queue.n_spans = n_spans;
        queue.finished.push_back(finished);
        drop(queue);
        if is_first || fills_a_batch {
            self.0.changed.notify_one();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for exchanges and takes a batch of them; none when told to stop and the queue is empty.
    fn next_batch(&self) -> Vec<Finished> {
        let queue = self.queue();
        let is_idle = |queue: &mut Queue| queue.finished.is_empty() && queue.deadline.is_none();
        let queue = self
            .changed
            .wait_while(queue, is_idle)
            .unwrap_or_else(PoisonError::into_inner);
        let max_spans = self.limits.max_batch_spans;
        let may_grow = |queue: &mut Queue| queue.n_spans < max_spans && queue.deadline.is_none();
        let waited = self
            .changed
            .wait_timeout_while(queue, self.limits.delay, may_grow);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut n_taken) = (Vec::new(), 0);
        while let Some(finished) = queue.finished.pop_front() {
            let n_spans = finished.n_spans();
            // One that is larger than a batch goes alone.
            if !batch.is_empty() && n_taken + n_spans > max_spans {
                queue.finished.push_front(finished);
                break;
            }
            n_taken += n_spans;
            batch.push(finished);
        }
        queue.n_spans -= n_taken;
        batch
    }

    /// Waits for `pause`, or until told to stop.
    fn pause(&self, pause: Duration) {
        let goes_on = |queue: &mut Queue| queue.deadline.is_none();
        let waited = self.changed.wait_timeout_while(self.queue(), pause, goes_on);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn deadline(&self) -> Option<Instant> {
        self.queue().deadline
    }
}

/// The thread that exports.
#[derive(Debug)]
pub struct Exporter {
    traces: Traces,
    /// Closed when the thread is over.
    over: Receiver<()>,
}

impl Exporter {
    /// Starts the thread. Nothing is sent before an exchange was traced.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(settings: ExportSettings) -> Result<Exporter, NoThread> {
        let traces = Traces(Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            limits: settings.limits,
            metrics: TraceMetrics::default(),
        }));
        let (running, over) = sync_channel(1);
        let thread = Thread::new(&traces, settings, running);
        spawn_thread("otlp", move || thread.run())?;
        Ok(Exporter { traces, over })
    }

    /// For whoever traces exchanges.
    pub fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// Exports what is in the queue and ends the thread, in at most 2 seconds. What is traced from now on is
    /// dropped.
    pub fn stop(self) {
        self.end_within(FLUSH_LIMIT);
        if self.over.recv_timeout(FLUSH_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("the trace collector did not take the last spans in time");
        }
    }

    fn end_within(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        self.traces.0.queue().deadline.get_or_insert(deadline);
        self.traces.0.changed.notify_one();
    }
}

impl Drop for Exporter {
    /// Ends the thread without waiting for it.
    fn drop(&mut self) {
        self.end_within(Duration::ZERO);
    }
}

fn agent(settings: &ExportSettings) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("arbora/", env!("CARGO_PKG_VERSION")));
    let config = match settings.endpoint.starts_with("https:") {
        true => config.tls_config(system_tls()),
        false => config,
    };
    config.build().new_agent()
}

/// How a POST went.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// The collector took the batch, but for `n_rejected` spans.
    Taken { n_rejected: u64, message: String },
    /// Trying again may help, after a time if the collector named one.
    Passing { reason: String, wait: Option<Duration> },
    /// Trying again is of no use.
    Refused { reason: String },
}

struct Thread {
    shared: Arc<Shared>,
    settings: ExportSettings,
    agent: Agent,
    resource: Resource,
    /// Kept for its memory.
    body: Vec<u8>,
    /// Dropped spans that the log knows of.
    n_warned: u64,
    warned: Option<Instant>,
    /// Why spans were dropped last, unless because the queue was full.
    failure: Option<String>,
    /// Dropped with the thread.
    _running: SyncSender<()>,
}

impl Thread {
    fn new(traces: &Traces, settings: ExportSettings, running: SyncSender<()>) -> Self {
        Thread {
            shared: Arc::clone(&traces.0),
            agent: agent(&settings),
            resource: Resource::new(&settings.service_name),
            settings,
            body: Vec::new(),
            n_warned: 0,
            warned: None,
            failure: None,
            _running: running,
        }
    }

    fn run(mut self) {
        loop {
            let batch = self.shared.next_batch();
            if batch.is_empty() {
                break;
            }
            let model = &self.settings.model;
            let spans: Vec<Span<'_>> = batch.iter().flat_map(|finished| finished.spans(model)).collect();
            let n_spans = spans.len() as u64;
            self.body.clear();
            write_request(&self.resource, &spans, &mut self.body);
            drop(spans);
            self.export(n_spans);
            self.warn(WARN_INTERVAL);
        }
        self.warn(Duration::ZERO);
    }

    /// Sends `body`, as often as it takes and makes sense.
    fn export(&mut self, n_spans: u64) {
        let limits = self.settings.limits;
        let mut pause = limits.pause;
        let mut n_tries_left = limits.n_tries;
        let failure = loop {
            let deadline = self.shared.deadline();
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let timeout = left.map_or(limits.timeout, |left| left.min(limits.timeout));
            if timeout.is_zero() {
                break "the server stops".to_owned();
            }
            n_tries_left -= 1;
            // The client starts a thread to resolve a name with, and panics where there is none. It holds
            // nothing of ours, and makes a new connection where one is half used.
            let posted = catch_unwind(AssertUnwindSafe(|| self.post(timeout)));
            let outcome = posted.unwrap_or_else(|_| Outcome::Passing {
                reason: "the HTTP client panicked".to_owned(),
                wait: None,
            });
            match outcome {
                Outcome::Taken { n_rejected, message } => {
                    let n_rejected = n_rejected.min(n_spans);
                    self.shared.metrics.export_spans(n_spans - n_rejected);
                    self.lose(n_rejected, message);
                    return;
                }
                Outcome::Refused { reason } => break reason,
                // Without a pause between them, more tries would say the same.
                Outcome::Passing { reason, .. } if n_tries_left == 0 || deadline.is_some() => break reason,
                Outcome::Passing { wait, .. } => {
                    self.shared.pause(wait.unwrap_or_else(|| jittered(pause)));
                    pause *= 2;
                }
            }
        };
        self.lose(n_spans, failure);
    }

    fn lose(&mut self, n_spans: u64, reason: String) {
        if n_spans > 0 {
            self.shared.metrics.drop_spans(n_spans);
            self.failure = Some(reason);
        }
    }

    fn post(&self, timeout: Duration) -> Outcome {
        let request = self.agent.post(&self.settings.endpoint);
        let mut request = request.header("content-type", "application/json");
        for (name, value) in &self.settings.headers {
            request = request.header(name, value);
        }
        let request = request.config().timeout_global(Some(timeout)).build();
        let passing = |error: ureq::Error| Outcome::Passing {
            reason: error.to_string(),
            wait: None,
        };
        let mut answer = match request.send(&self.body[..]) {
            Ok(answer) => answer,
            Err(error) => return passing(error),
        };
        let status = answer.status().as_u16();
        let reason = || format!("the collector answered {status}");
        match status {
            200..=299 => {
                let body = answer
                    .body_mut()
                    .with_config()
                    .limit(MAX_ANSWER_BYTES)
                    .read_to_vec();
                // The batch is taken, whatever becomes of the rest of the answer.
                encode::read_partial_success(&body.unwrap_or_default())
            }
            429 | 502 | 503 | 504 => Outcome::Passing {
                reason: reason(),
                wait: retry_after(answer.headers()),
            },
            _ => Outcome::Refused { reason: reason() },
        }
    }

    /// Tells the log of spans that were dropped, unless it was told less than `interval` ago.
    fn warn(&mut self, interval: Duration) {
        let n_dropped = self.shared.metrics.n_dropped();
        let is_due = self.warned.is_none_or(|warned| warned.elapsed() >= interval);
        if n_dropped == self.n_warned || !is_due {
            return;
        }
        let n_spans = n_dropped - self.n_warned;
        let reason = self.failure.take();
        let reason = reason.as_deref().unwrap_or("the queue was full");
        tracing::warn!(n_spans, reason, "spans of traces were dropped");
        self.n_warned = n_dropped;
        self.warned = Some(Instant::now());
    }
}

/// Between half of `pause` and all of it: servers that lost the same collector do not come back as one.
fn jittered(pause: Duration) -> Duration {
    let half = pause / 2;
    half + half.mul_f64(random_u64() as f64 / u64::MAX as f64)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(max_queued_spans: usize, max_batch_spans: usize) -> Traces {
        Traces(Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            limits: ExportLimits {
                max_queued_spans,
                max_batch_spans,
                delay: Duration::ZERO,
                ..ExportLimits::default()
            },
            metrics: TraceMetrics::default(),
        }))
    }

    fn sizes(batch: &[Finished]) -> Vec<usize> {
        batch.iter().map(Finished::n_spans).collect()
    }

    #[test]
    fn batches_hold_whole_exchanges_up_to_their_limit_in_order() {
        let traces = traces(100, 10);
        for n_spans in [4, 4, 4, 7, 3, 25, 1] {
            traces.push(Finished::counted(n_spans));
        }
        let batches: Vec<_> = (0..5).map(|_| sizes(&traces.0.next_batch())).collect();
        assert_eq!(batches, [vec![4, 4], vec![4], vec![7, 3], vec![25], vec![1]]);
        assert_eq!(traces.0.queue().n_spans, 0);
    }

    #[test]
    fn what_finds_no_room_is_dropped_whole_and_counted() {
        let traces = traces(10, 5);
        for n_spans in [4, 4, 4, 2, 1] {
            traces.push(Finished::counted(n_spans));
        }
        assert_eq!(traces.metrics().n_dropped(), 5);
        assert_eq!(sizes(&traces.0.next_batch()), [4]);
        traces.push(Finished::counted(4));
        assert_eq!(traces.metrics().n_dropped(), 5, "there is room again");
    }

    #[test]
    fn after_the_end_nothing_is_taken_and_the_rest_is_given_out() {
        let traces = traces(10, 5);
        traces.push(Finished::counted(3));
        traces.0.queue().deadline = Some(Instant::now());
        traces.push(Finished::counted(2));
        assert_eq!(traces.metrics().n_dropped(), 2);
        assert_eq!(sizes(&traces.0.next_batch()), [3]);
        assert!(traces.0.next_batch().is_empty());
    }

    #[test]
    fn the_log_hears_of_dropped_spans_once_in_an_interval() {
        let traces = traces(10, 5);
        let settings = ExportSettings {
            headers: Vec::new(),
            endpoint: "http://localhost".to_owned(),
            service_name: String::new(),
            model: String::new(),
            limits: traces.0.limits,
        };
        let mut thread = Thread::new(&traces, settings, sync_channel(1).0);
        thread.warn(WARN_INTERVAL);
        assert!(thread.warned.is_none(), "nothing was dropped");
        thread.lose(2, "a reason".to_owned());
        thread.warn(WARN_INTERVAL);
        assert_eq!(thread.n_warned, 2);
        assert!(thread.failure.is_none(), "it was told");
        thread.lose(3, "another reason".to_owned());
        thread.warn(WARN_INTERVAL);
        assert_eq!(thread.n_warned, 2, "not so soon");
        thread.warn(Duration::ZERO);
        assert_eq!((thread.n_warned, traces.metrics().n_dropped()), (5, 5));
    }

    #[test]
    fn pauses_are_between_half_and_all_of_what_they_are_meant_to_be() {
        let pause = Duration::from_secs(8);
        let pauses: Vec<_> = (0..100).map(|_| jittered(pause)).collect();
        assert!(pauses.iter().all(|one| (pause / 2..=pause).contains(one)));
        assert!(pauses.iter().any(|one| one != &pauses[0]));
    }

    #[test]
    fn a_collector_says_in_seconds_when_to_come_back_and_is_not_believed_for_ever() {
        let wait = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", value.parse().expect("a value"));
            retry_after(&headers)
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("86400"), Some(MAX_RETRY_AFTER));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
