//! How fast the queue drains: what a request will wait, and what a client that is refused is told to wait.

use std::time::{Duration, Instant};

use crate::handle::Shared;

/// What is measured counts less with its age: after this time about a third.
const HORIZON: Duration = Duration::from_secs(30);

/// Nothing is said about a queue that was watched for less. The places of an idle engine fill in no time,
/// which says nothing about what comes after.
const LEAST_WATCHED: Duration = Duration::from_secs(5);

/// Averages the rate at which prompt tokens leave a queue that is not empty.
#[derive(Debug, Default)]
pub(crate) struct DrainMeter {
    latest: Option<Instant>,
    /// Whether anybody waited at `latest`.
    had_queue: bool,
    /// Prompt tokens that left the queue since.
    n_new: usize,
    /// Prompt tokens, and seconds with a queue, both counting less with their age.
    n_tokens: f64,
    seconds: f64,
}

impl DrainMeter {
    /// A prompt of `n_tokens` left the queue.
    pub(crate) fn add(&mut self, n_tokens: usize) {
        self.n_new += n_tokens;
    }

    /// Takes in what happened up to `now`.
    pub(crate) fn measure(&mut self, shared: &Shared, now: Instant) {
        let latest = self.latest.replace(now).unwrap_or(now);
        let n_new = std::mem::take(&mut self.n_new);
        if self.had_queue {
            let elapsed = now.saturating_duration_since(latest).as_secs_f64();
            let weight = (-elapsed / HORIZON.as_secs_f64()).exp();
            self.n_tokens = self.n_tokens * weight + n_new as f64;
            self.seconds = self.seconds * weight + elapsed;
        }
        self.had_queue = shared.n_waiting() > 0;
        if self.seconds >= LEAST_WATCHED.as_secs_f64() && self.n_tokens > 0.0 {
            shared.set_drain_rate(self.n_tokens / self.seconds);
        }
    }
}
