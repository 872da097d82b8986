//! Speculative decoding: how long a draft of free text pays. Who proposes its tokens is in `drafting.rs`.
//!
//! ```text
//! p^i   probability that a draft is accepted up to its token i; p is the share accepted lately
//! r     what a row more costs, in tokens that its time would have given otherwise; measured, see RowCost
//! k     length of a draft: as long as p^k > r
//! ```
//!
//! A draft changes no output (C7), so neither do these guesses, though they look at the clock.

use std::time::Duration;

/// Which drafters propose tokens of free text. Text that a grammar forces is proposed in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drafters {
    /// From the text itself.
    pub ngram: bool,
    /// From the prefix tree.
    pub radix: bool,
}

/// Who proposed a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DraftSource {
    Grammar,
    Radix,
    Ngram,
}

impl DraftSource {
    /// Every source in the order of [`crate::metrics::Metrics::DRAFT_SOURCES`].
    pub(crate) fn idx(self) -> usize {
        match self {
            DraftSource::Grammar => 0,
            DraftSource::Radix => 1,
            DraftSource::Ngram => 2,
        }
    }
}

/// Most tokens of one draft of free text.
const MAX_DRAFT: usize = 16;

/// Tokens after which a drafter that does not pay, or a text that the tree does not hold, is tried again.
const MIN_REST: usize = 8;

/// The same when it failed again and again.
const MAX_REST: usize = 512;

/// How long a draft is that only finds out whether drafting pays again.
const PROBE: usize = 2;

/// Where a row costs more than this, hardly any draft pays and none is made to find out.
const WORTH_PROBING: f64 = 0.8;

/// How much one token, accepted or refused, counts in the share of accepted ones.
const WEIGHT: f64 = 0.15;

/// How one drafter did for one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Track {
    /// Share of its tokens accepted lately.
    accepted: f64,
    /// Length of the output at which it is tried again.
    rests_until: usize,
    /// How long it rests next; doubles until something is accepted.
    rest: usize,
}

impl Track {
    /// A drafter of which nothing is known, except that about so much is accepted elsewhere.
    pub(crate) fn new(accepted: f64) -> Self {
        Track {
            accepted,
            rests_until: 0,
            rest: MIN_REST,
        }
    }

    /// How many tokens to draft after `n_output` tokens where a row costs `row_cost`; 0 while it rests.
    pub(crate) fn length(&mut self, n_output: usize, row_cost: f64) -> usize {
        if n_output < self.rests_until {
            return 0;
        }
        let (p, r) = (self.accepted.clamp(0.01, 0.99), row_cost.clamp(0.01, 1.0));
        // A little more, so that p^k = r counts.
        let n = (r.ln() / p.ln() + 1e-9) as usize;
        if n > 0 {
            return n.min(MAX_DRAFT);
        }
        self.rest(n_output);
        if r < WORTH_PROBING { PROBE } else { 0 }
    }

    /// Is not tried for a while.
    pub(crate) fn rest(&mut self, n_output: usize) {
        self.rests_until = n_output + self.rest;
        self.rest = (self.rest * 2).min(MAX_REST);
    }

    /// Takes in what came of a draft.
    pub(crate) fn learn(&mut self, n_drafted: usize, n_accepted: usize) {
        let mut count = |was_accepted: f64| self.accepted += (was_accepted - self.accepted) * WEIGHT;
        (0..n_accepted).for_each(|_| count(1.0));
        if n_accepted > 0 {
            self.rest = MIN_REST;
        }
        if n_accepted < n_drafted {
            count(0.0);
        }
    }
}

/// Where the present draft of a sequence comes from, and how its drafters did so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drafting {
    pub(crate) source: DraftSource,
    radix: Track,
    ngram: Track,
}

impl Drafting {
    pub(crate) fn new() -> Self {
        Drafting {
            source: DraftSource::Grammar,
            // Who asks what was asked before mostly gets what was answered before.
            radix: Track::new(0.8),
            ngram: Track::new(0.5),
        }
    }

    /// How the drafter of `source` did; grammars need none.
    pub(crate) fn track(&mut self, source: DraftSource) -> Option<&mut Track> {
        match source {
            DraftSource::Grammar => None,
            DraftSource::Radix => Some(&mut self.radix),
            DraftSource::Ngram => Some(&mut self.ngram),
        }
    }

    /// Takes in what came of the present draft.
    pub(crate) fn learn(&mut self, n_drafted: usize, n_accepted: usize) {
        if let Some(track) = self.track(self.source) {
            track.learn(n_drafted, n_accepted);
        }
    }
}

/// What one more row costs, from the times of decode steps: a line through rows and time, recent steps first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowCost {
    weight: f64,
    rows: f64,
    time: f64,
    rows_rows: f64,
    rows_time: f64,
}

impl RowCost {
    /// What a step weighs less with each one after it.
    const DECAY: f64 = 0.995;

    /// A row's share of a step with one row, as long as nothing is known: that of a small model on a CPU.
    const GUESS: f64 = 0.25;

    /// Takes in a step that only decoded.
    pub(crate) fn record(&mut self, n_rows: usize, time: Duration) {
        let (rows, time) = (n_rows as f64, time.as_secs_f64());
        for (sum, new) in [
            (&mut self.weight, 1.0),
            (&mut self.rows, rows),
            (&mut self.time, time),
            (&mut self.rows_rows, rows * rows),
            (&mut self.rows_time, rows * time),
        ] {
            *sum = *sum * Self::DECAY + new;
        }
    }

    /// Start and slope of the line through the steps; absent without steps of different sizes, and where the
    /// line does not rise.
    fn line(&self) -> Option<(f64, f64)> {
        let spread = self.weight * self.rows_rows - self.rows * self.rows;
        if spread <= 0.05 * self.rows * self.rows {
            return None;
        }
        let slope = (self.weight * self.rows_time - self.rows * self.time) / spread;
        let start = (self.time - slope * self.rows) / self.weight;
        (slope > 0.0).then_some((start.max(0.0), slope))
    }

    /// What a row more costs a step of `n_rows` rows that gives `n_tokens` tokens, in tokens.
    pub(crate) fn of_step(&self, n_rows: usize, n_tokens: usize) -> f64 {
        let (n_rows, n_tokens) = (n_rows as f64, n_tokens as f64);
        match self.line() {
            Some((start, slope)) => (slope * n_tokens / (start + slope * n_rows)).min(1.0),
            None => n_tokens / (n_rows + 1.0 / Self::GUESS - 1.0),
        }
    }

    /// Seconds that a step of `n_rows` rows takes; absent while nothing was measured.
    pub(crate) fn seconds(&self, n_rows: usize) -> Option<f64> {
        if self.time <= 0.0 {
            return None;
        }
        let n_rows = n_rows as f64;
        Some(match self.line() {
            Some((start, slope)) => start + slope * n_rows,
            None => {
                let rows_of = |n: f64| 1.0 + Self::GUESS * (n - 1.0);
                self.time / self.weight * rows_of(n_rows) / rows_of(self.rows / self.weight)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_grow_with_what_is_accepted_and_stop_where_they_do_not_pay() {
        let mut track = Track::new(0.5);
        assert_eq!(track.length(0, 0.25), 2, "0.5^2 = 0.25");
        for _ in 0..20 {
            track.learn(2, 2);
        }
        assert_eq!(track.length(40, 0.25), MAX_DRAFT);
        assert_eq!(track.length(40, 0.9), 10, "in a full batch less is to be had");
        for _ in 0..20 {
            track.learn(8, 0);
        }
        assert_eq!(track.length(60, 0.25), PROBE);
        assert_eq!(track.length(60 + MIN_REST - 1, 0.25), 0, "it rests");
        assert_eq!(track.length(60 + MIN_REST, 0.25), PROBE);
        assert_eq!(track.length(60 + 3 * MIN_REST - 1, 0.25), 0, "longer each time");
        assert_eq!(
            track.length(60 + 3 * MIN_REST, 0.9),
            0,
            "nothing is to be found out"
        );
        track.learn(2, 1);
        assert_eq!(track.length(60 + 7 * MIN_REST, 0.25), PROBE);
        assert_eq!(
            track.length(60 + 8 * MIN_REST, 0.25),
            PROBE,
            "something was accepted"
        );
    }

    #[test]
    fn the_cost_of_a_row_is_the_slope_of_step_times() {
        let mut cost = RowCost::default();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{a} {b}");
        near(cost.of_step(1, 1), 0.25);
        near(cost.of_step(9, 9), 0.75);
        near(cost.of_step(97, 1), 0.01);
        let millis = |n_rows: usize| Duration::from_micros(1000 + 100 * n_rows as u64);
        for n_rows in [1, 1, 1, 4, 8, 1, 2, 30] {
            cost.record(n_rows, millis(n_rows));
        }
        near(cost.of_step(1, 1), 0.1 / 1.1);
        near(cost.of_step(10, 10), 0.5);
        near(cost.of_step(90, 10), 0.1);
        let mut flat = RowCost::default();
        for _ in 0..100 {
            flat.record(4, millis(4));
        }
        near(flat.of_step(1, 1), 0.25);
        let mut stopped = RowCost::default();
        (1..9).for_each(|n_rows| stopped.record(n_rows, Duration::ZERO));
        near(stopped.of_step(1, 1), 0.25);
    }
}
