//! Counters, gauges and histograms. The engine thread fills them once per step, anybody reads them at any
//! time. Gauges are read together as of one moment; a counter or histogram may lag a step behind another, and
//! each on its own is exact.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::atomic::AtomicCell;

use crate::gauges::Gauges;
use crate::request::FinishReason;

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// What a histogram counts.
pub trait Scale {
    /// Upper bounds of all buckets but the last, which is open.
    const BOUNDS: [u64; N_BOUNDS];
}

/// Buckets of every histogram but the open one.
pub const N_BOUNDS: usize = 16;

/// Times, in microseconds.
#[derive(Debug, Default)]
pub struct Micros;

impl Scale for Micros {
    const BOUNDS: [u64; N_BOUNDS] = [
        1_000,
        2_500,
        5_000,
        10_000,
        25_000,
        50_000,
        100_000,
        250_000,
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        30_000_000,
        60_000_000,
        300_000_000,
    ];
}

/// Lengths in tokens.
#[derive(Debug, Default)]
pub struct Tokens;

impl Scale for Tokens {
    const BOUNDS: [u64; N_BOUNDS] = [
        1, 4, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072,
    ];
}

/// Values sorted into fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram<S> {
    buckets: [AtomicU64; N_BOUNDS + 1],
    sum: AtomicU64,
    scale: PhantomData<S>,
}

impl<S: Scale> Histogram<S> {
    /// Entries per bucket; entry `i` is at most `S::BOUNDS[i]` and more than the bound before.
    pub fn buckets(&self) -> [u64; N_BOUNDS + 1] {
        std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed))
    }

    /// Sum of all entries.
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }

    fn add(&self, value: u64, n: u64) {
        let bucket = S::BOUNDS.partition_point(|&bound| bound < value);
        self.buckets[bucket].fetch_add(n, Ordering::Relaxed);
        self.sum.fetch_add(value.saturating_mul(n), Ordering::Relaxed);
    }
}

impl Histogram<Micros> {
    pub(crate) fn record(&self, time: Duration) {
        self.record_each(time, 1);
    }

    /// Adds `n` entries that took `time` each.
    pub(crate) fn record_each(&self, time: Duration, n: usize) {
        self.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), n as u64);
    }
}

impl Histogram<Tokens> {
    pub(crate) fn record(&self, n_tokens: usize) {
        self.add(n_tokens as u64, 1);
    }
}

/// What one engine has done and holds.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests accepted by `submit`.
    pub requests_accepted: Counter,
    /// Requests refused because the queue was full or too long.
    pub requests_refused: Counter,
    /// Requests ended, by reason: see [`Metrics::FINISH_REASONS`].
    pub requests_finished: [Counter; Metrics::FINISH_REASONS.len()],
    /// Prompt tokens of admitted requests, counted once per request.
    pub prompt_tokens: Counter,
    /// Of those, taken from the cache: whole pages and copied parts.
    pub cached_tokens: Counter,
    /// Of those, taken from a copied page.
    pub copied_tokens: Counter,
    /// Rows computed for prompts and for output recomputed after a preemption.
    pub prefill_tokens: Counter,
    /// Tokens sent to clients.
    pub generated_tokens: Counter,
    /// Drafts that were computed along and verified, by [`Metrics::DRAFT_SOURCES`]: one for each sequence and
    /// step. Each gave the tokens of it that were accepted, and one more.
    pub drafts: [Counter; Metrics::DRAFT_SOURCES.len()],
    /// Their tokens, by the same.
    pub drafted_tokens: [Counter; Metrics::DRAFT_SOURCES.len()],
    /// Of those, the ones that became output.
    pub accepted_tokens: [Counter; Metrics::DRAFT_SOURCES.len()],
    /// Sequences sent back to waiting because pages ran out or another tenant was below its share.
    pub preemptions: Counter,
    /// Cached pages given up for new ones.
    pub evicted_pages: Counter,
    /// Forward passes.
    pub steps: Counter,
    /// Steps that panicked.
    pub panics: Counter,
    /// Read and written as a whole.
    gauges: AtomicCell<Gauges>,
    /// Time of one step.
    pub step_time: Histogram<Micros>,
    /// Arrival to first step.
    pub queue_time: Histogram<Micros>,
    /// Arrival to first token.
    pub time_to_first_token: Histogram<Micros>,
    /// From one token of an output to the next; those of one step share its time.
    pub inter_token_time: Histogram<Micros>,
    /// Arrival to ending, for all but aborted requests.
    pub request_time: Histogram<Micros>,
    /// Prompts of admitted requests.
    pub prompt_lengths: Histogram<Tokens>,
    /// Outputs of requests that ended, for all but aborted ones.
    pub output_lengths: Histogram<Tokens>,
}

impl Metrics {
    /// Labels of [`Metrics::requests_finished`], in its order.
    pub const FINISH_REASONS: [&'static str; 6] =
        ["stop", "length", "deadline", "queue_deadline", "abort", "error"];

    /// Labels of [`Metrics::drafts`], [`Metrics::drafted_tokens`] and [`Metrics::accepted_tokens`], in their
    /// order.
    pub const DRAFT_SOURCES: [&'static str; 3] = ["grammar", "radix", "ngram"];

    /// What the engine held at the end of its latest step.
    pub fn gauges(&self) -> Gauges {
        self.gauges.load()
    }

    /// For the engine alone.
    pub(crate) fn publish(&self, gauges: Gauges) {
        self.gauges.store(gauges);
    }

    /// A request ended, `time` after its arrival, with an output of `n_output` tokens.
    pub(crate) fn count_finished(&self, reason: &FinishReason, (time, n_output): (Duration, usize)) {
        if *reason != FinishReason::Aborted {
            self.request_time.record(time);
            self.output_lengths.record(n_output);
        }
        let idx = match reason {
            FinishReason::StopToken(_) | FinishReason::StopString(_) | FinishReason::Complete => 0,
            FinishReason::Length => 1,
            FinishReason::Deadline => 2,
            FinishReason::QueueDeadline => 3,
            FinishReason::Aborted => 4,
            FinishReason::Error(_) => 5,
        };
        self.requests_finished[idx].add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn gauges_are_of_one_moment_whatever_is_written_meanwhile() {
        let moment = |n| Gauges {
            waiting: n,
            waiting_tokens: n,
            running: n,
            pages_total: 3 * n,
            pages_free: n,
            pages_cached: n,
            pages_evictable: n,
            pages_owned: n,
        };
        let (metrics, is_over) = (Metrics::default(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut moments = 1..;
                while !is_over.load(Ordering::Relaxed) {
                    metrics.publish(moment(moments.next().expect("there are enough")));
                }
            });
            let mut n_seen = 0;
            let mut latest = 0;
            while n_seen < 3000 {
                let found = metrics.gauges();
                assert_eq!(found, moment(found.waiting));
                assert!(found.waiting >= latest, "never an older one");
                n_seen += usize::from(found.waiting > latest);
                latest = found.waiting;
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_time_lands_in_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::<Micros>::default();
        for us in [0, 1_000, 1_001, 300_000_000, 300_000_001] {
            histogram.record(Duration::from_micros(us));
        }
        let buckets = histogram.buckets();
        assert_eq!(buckets[0], 2, "0 and 1,000 us");
        assert_eq!(buckets[1], 1, "1,001 us");
        assert_eq!((buckets[15], buckets[16]), (1, 1), "the last bound and beyond");
        assert_eq!(histogram.sum(), 600_002_002);
        histogram.record_each(Duration::from_micros(10), 3);
        assert_eq!((histogram.buckets()[0], histogram.sum()), (5, 600_002_032));
    }
}
