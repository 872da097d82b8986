//! How fast the queue drains: what a client that is refused is told to wait for.

use std::time::{Duration, Instant};

use crate::handle::Shared;

/// How often the rate is measured.
const WINDOW: Duration = Duration::from_secs(1);

/// Averages the rate at which prompt tokens leave a queue that is not empty.
#[derive(Debug, Default)]
pub(crate) struct DrainMeter {
    window: Option<Instant>,
    /// Prompt tokens that left the queue in this window.
    n_tokens: usize,
}

impl DrainMeter {
    /// A prompt of `n_tokens` left the queue.
    pub(crate) fn add(&mut self, n_tokens: usize) {
        self.n_tokens += n_tokens;
    }

    /// Ends the window if it is over by `now`.
    pub(crate) fn measure(&mut self, shared: &Shared, now: Instant) {
        let Some(start) = self.window else {
            self.window = Some(now);
            return;
        };
        let elapsed = now - start;
        if elapsed < WINDOW {
            return;
        }
        if shared.n_waiting() > 0 && self.n_tokens > 0 {
            let rate = self.n_tokens as f64 / elapsed.as_secs_f64();
            shared.average_drain_rate(rate as u64);
        }
        self.n_tokens = 0;
        self.window = Some(now);
    }
}
