//! How far a request came, for an owner that leaves before its ending. The ending says the same and more, but
//! who has closed the event channel does not hear it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Times of one request, in microseconds from its arrival; the engine writes each once, anybody reads.
#[derive(Debug, Default)]
pub struct Progress {
    queue_us: AtomicU64,
    ttft_us: AtomicU64,
}

impl Progress {
    /// Time to the first step it was part of; 0 before that.
    pub fn queue_us(&self) -> u64 {
        self.queue_us.load(Ordering::Relaxed)
    }

    /// Time to its first token; 0 before that.
    pub fn ttft_us(&self) -> u64 {
        self.ttft_us.load(Ordering::Relaxed)
    }

    pub(crate) fn note_start(&self, queue_us: u64) {
        self.queue_us.store(queue_us.max(1), Ordering::Relaxed);
    }

    pub(crate) fn note_first_token(&self, ttft_us: u64) {
        self.ttft_us.store(ttft_us.max(1), Ordering::Relaxed);
    }
}
