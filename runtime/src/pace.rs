//! How long a step may take: the time budget for chunked prefill, for masks, and for rows of several tenants.
//!
//! ```text
//! c(n)    time of a step that decodes n rows               measured, see RowCost
//! limit = STRETCH * c(max(n, USUAL_ROWS))                  while anybody decodes; none otherwise
//!
//! a step:  | c(n) | masks, as far as their credit goes | chunks of prompts, up to the limit |
//! ```
//!
//! So an output that is being written goes on at its pace, whatever prompts and grammars arrive beside it.
//! Which rows a step has changes no output (C1, C2), so these budgets may look at the clock. Where it stands
//! still, as in a test, nothing is known and nothing is limited.

use std::time::Duration;

use crate::draft::RowCost;

/// What a step may take, in steps that only decode.
const STRETCH: f64 = 3.0;

/// Decode steps of up to this many rows are as good as one another: an output beside so many is not slow.
const USUAL_ROWS: usize = 8;

/// Fewest rows of the first prompt in a step that has time for any. What follows it in the same step gets
/// what is left of the time: with a least chunk each, a crowd of prompts would take as often as long.
pub(crate) const MIN_CHUNK: usize = 8;

/// What a step with rows of several tenants may take, in steps of the one with the fewest; or as often as
/// there are tenants, if that is more.
const FAIR_STRETCH: f64 = 2.5;

/// A batch has lost its point where fewer rows give less than this share of the tokens in a second.
const KEPT: f64 = 0.95;

/// What prompts of tenants with many sequences get at least, of what a fair step may take.
const LEAST_PROMPTS: f64 = 0.25;

/// The most that masks can owe, seconds: how long a sequence with one very expensive mask is held back.
const MAX_DEBT: f64 = 1.0;

/// What the steps of an engine take, and what was spent.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    rows: RowCost,
    chunks: ChunkCost,
    /// Seconds that masks may still take; negative while they owe.
    mask_credit: f64,
    /// Seconds that prompts of tenants with more than the fewest sequences may still take; negative while
    /// they owe.
    prompt_credit: f64,
}

/// What one step computed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Rows that decode, drafts included.
    pub(crate) n_decode: usize,
    pub(crate) chunks: Chunks,
}

/// Rows of prompts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chunks {
    rows: f64,
    /// Pairs of a row and a token it looks at.
    pairs: f64,
}

impl Chunks {
    /// Adds `n_rows` rows from `position` on.
    pub(crate) fn add(&mut self, position: usize, n_rows: usize) {
        let n = n_rows as f64;
        self.rows += n;
        self.pairs += n * (position as f64 + n / 2.0);
    }
}

impl Pace {
    /// Takes in what a step took besides its masks.
    pub(crate) fn record(&mut self, load: Load, time: Duration) {
        if load.chunks.rows == 0.0 {
            self.rows.record(load.n_decode, time);
        } else {
            let decode = self.rows.seconds(load.n_decode).unwrap_or(0.0);
            self.chunks
                .record(load.chunks, (time.as_secs_f64() - decode).max(0.0));
        }
    }

    /// What a row more costs, for drafts.
    pub(crate) fn rows(&self) -> &RowCost {
        &self.rows
    }

    /// Seconds that a step which decodes `n_decode` rows has for everything else; absent where there is no
    /// limit.
    pub(crate) fn spare(&self, n_decode: usize) -> Option<f64> {
        if n_decode == 0 {
            return None;
        }
        let limit = STRETCH * self.rows.seconds(n_decode.max(USUAL_ROWS))?;
        Some(limit - self.rows.seconds(n_decode)?)
    }

    /// Rows of a prompt from `position` on that take at most `seconds`; `n_least` at least, where there is
    /// any time.
    pub(crate) fn rows_within(&self, position: usize, seconds: f64, n_least: usize) -> usize {
        if seconds <= 0.0 {
            return 0;
        }
        let (row, pair) = self.chunk_costs();
        // row * n + pair * n * (position + n / 2) = seconds
        let linear = row + pair * position as f64;
        let root = (linear * linear + 2.0 * pair * seconds).sqrt();
        ((2.0 * seconds / (linear + root)) as usize).max(n_least)
    }

    /// Seconds that `n_rows` rows of a prompt from `position` on take.
    pub(crate) fn chunk_seconds(&self, position: usize, n_rows: usize) -> f64 {
        let (row, pair) = self.chunk_costs();
        let mut chunks = Chunks::default();
        chunks.add(position, n_rows);
        row * chunks.rows + pair * chunks.pairs
    }

    fn chunk_costs(&self) -> (f64, f64) {
        let guess = || {
            let (one, two) = (self.rows.seconds(1), self.rows.seconds(2));
            (two.unwrap_or(0.0) - one.unwrap_or(0.0), 0.0)
        };
        self.chunks.fit().unwrap_or_else(guess)
    }

    /// What a step with rows of `n_tenants` may take, the one with the fewest running having `n_fewest`;
    /// absent while nothing is known.
    fn fair_seconds(&self, n_tenants: usize, n_fewest: usize) -> Option<f64> {
        let fewest = self.rows.seconds(n_fewest)?;
        Some(fewest * FAIR_STRETCH.max(n_tenants as f64))
    }

    /// Most rows of a step in which `n_tenants` decode `n_wanted` rows, the one with the fewest `n_fewest`.
    /// Never so few that a batch loses its point.
    pub(crate) fn fair_rows(&self, n_tenants: usize, n_fewest: usize, n_wanted: usize) -> usize {
        let Some(limit) = self.fair_seconds(n_tenants, n_fewest) else {
            return n_wanted;
        };
        let seconds = |n: usize| self.rows.seconds(n).unwrap_or(0.0);
        let worth = |n: usize| n as f64 * seconds(n_wanted) >= KEPT * n_wanted as f64 * seconds(n);
        // Beyond the usual rows a batch has its point already.
        let least = (1..USUAL_ROWS).find(|&n| worth(n)).unwrap_or(USUAL_ROWS);
        let least = least.max(n_tenants * n_fewest);
        let fits = |&n: &usize| seconds(n) <= limit;
        (least..=n_wanted)
            .take_while(fits)
            .last()
            .unwrap_or(least)
            .min(n_wanted)
    }

    /// A step begins that decodes `n_decode` rows, of `n_tenants` tenants that run, the one with the fewest
    /// sequences having `n_fewest`: the prompts of the others get their part of the time. Returns how long
    /// they may take; absent while nothing is known.
    pub(crate) fn refill_prompts(
        &mut self,
        n_tenants: usize,
        n_fewest: usize,
        n_decode: usize,
    ) -> Option<f64> {
        let fair = self.fair_seconds(n_tenants, n_fewest)?;
        let part = (fair - self.rows.seconds(n_decode)?).max(fair * LEAST_PROMPTS);
        self.prompt_credit = (self.prompt_credit + part).min(fair);
        Some(self.prompt_credit)
    }

    /// Such prompts take `seconds` in this step.
    pub(crate) fn charge_prompts(&mut self, seconds: f64) {
        self.prompt_credit -= seconds;
    }

    /// A step begins that decodes about `n_decode` rows: masks get their part of the time. Absent where they
    /// are not limited.
    pub(crate) fn refill_masks(&mut self, n_decode: usize) -> Option<MaskBudget> {
        let part = self.spare(n_decode)? / 2.0;
        self.mask_credit = (self.mask_credit + part).min(part);
        Some(MaskBudget {
            light: part / n_decode as f64,
            left: self.mask_credit,
        })
    }

    /// Masks took `time` in the latest step.
    pub(crate) fn charge_masks(&mut self, time: Duration) {
        self.mask_credit = (self.mask_credit - time.as_secs_f64()).max(-MAX_DEBT);
    }
}

/// What the masks of one step may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaskBudget {
    light: f64,
    left: f64,
}

impl MaskBudget {
    /// Whether a mask that takes about `time` is no burden, even if every row of the step has one.
    pub(crate) fn is_light(&self, time: Duration) -> bool {
        time.as_secs_f64() <= self.light
    }

    /// Takes `time` unless that is no burden; false where nothing is left. A mask of which nothing is known
    /// takes all.
    pub(crate) fn take(&mut self, time: Option<Duration>) -> bool {
        if time.is_some_and(|time| self.is_light(time)) {
            return true;
        }
        let is_left = self.left > 0.0;
        if is_left {
            self.left = time.map_or(0.0, |time| self.left - time.as_secs_f64());
        }
        is_left
    }
}

/// What rows of prompts take: a plane through rows, pairs and time, recent steps first.
#[derive(Clone, Copy, Debug, Default)]
struct ChunkCost {
    n: usize,
    rows_rows: f64,
    rows_pairs: f64,
    pairs_pairs: f64,
    rows_time: f64,
    pairs_time: f64,
}

impl ChunkCost {
    /// What a step weighs less with each one after it.
    const DECAY: f64 = 0.97;

    /// A step that took longer than this many times what was expected says more about the machine.
    const MOST_SURPRISE: f64 = 3.0;

    /// Steps after which there is something to expect.
    const N_KNOWN: usize = 8;

    fn record(&mut self, Chunks { rows, pairs }: Chunks, seconds: f64) {
        let expected = self.fit().map(|(row, pair)| row * rows + pair * pairs);
        let seconds = match expected {
            Some(expected) if self.n >= Self::N_KNOWN => seconds.min(expected * Self::MOST_SURPRISE),
            _ => seconds,
        };
        self.n += 1;
        for (sum, new) in [
            (&mut self.rows_rows, rows * rows),
            (&mut self.rows_pairs, rows * pairs),
            (&mut self.pairs_pairs, pairs * pairs),
            (&mut self.rows_time, rows * seconds),
            (&mut self.pairs_time, pairs * seconds),
        ] {
            *sum = *sum * Self::DECAY + new;
        }
    }

    /// Seconds for a row and for a pair; absent while nothing is known.
    fn fit(&self) -> Option<(f64, f64)> {
        if self.rows_time <= 0.0 {
            return None;
        }
        let row_alone = self.rows_time / self.rows_rows;
        let pair_alone = self.pairs_time / self.pairs_pairs;
        let spread = self.rows_rows * self.pairs_pairs - self.rows_pairs * self.rows_pairs;
        // Chunks that all lie about as deep say the same with one cost as with two.
        if spread <= 1e-3 * self.rows_rows * self.pairs_pairs {
            return Some((row_alone, 0.0));
        }
        let row = (self.rows_time * self.pairs_pairs - self.pairs_time * self.rows_pairs) / spread;
        let pair = (self.pairs_time * self.rows_rows - self.rows_time * self.rows_pairs) / spread;
        match (row > 0.0, pair > 0.0) {
            (true, true) => Some((row, pair)),
            (_, false) => Some((row_alone, 0.0)),
            (false, true) => Some((0.0, pair_alone)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(n: usize) -> Duration {
        Duration::from_micros(n as u64)
    }

    /// Decode steps of 1,000 us and 100 us a row.
    fn pace() -> Pace {
        let mut pace = Pace::default();
        for n_decode in [1, 2, 4, 8, 16] {
            pace.record(
                Load {
                    n_decode,
                    ..Load::default()
                },
                micros(1000 + 100 * n_decode),
            );
        }
        pace
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() <= 0.02 * b.abs(), "{a} {b}");
    }

    #[test]
    fn a_step_has_time_beside_its_decode_rows_and_none_is_limited_without_any() {
        assert_eq!(Pace::default().spare(1), None, "nothing is known");
        let pace = pace();
        assert_eq!(pace.spare(0), None, "nobody decodes");
        near(pace.spare(1).expect("it is known"), STRETCH * 1.8e-3 - 1.1e-3);
        near(pace.spare(32).expect("it is known"), (STRETCH - 1.0) * 4.2e-3);
    }

    #[test]
    fn chunks_shrink_as_the_text_before_them_grows() {
        let mut pace = pace();
        // 10 us a row and 5 ns a pair.
        for position in (0..4096).step_by(256) {
            let mut load = Load::default();
            load.chunks.add(position, 256);
            let pairs = 256 * (position + 128);
            pace.record(load, micros(1000 + 2560 + pairs * 5 / 1000));
        }
        near(pace.chunk_seconds(1000, 100), 1e-3 + 100.0 * 1050.0 * 5e-9);
        let rows = |position| pace.rows_within(position, 3e-3, MIN_CHUNK);
        near(pace.chunk_seconds(0, rows(0)), 3e-3);
        near(pace.chunk_seconds(4000, rows(4000)), 3e-3);
        assert!(rows(0) > 2 * rows(4000));
        assert_eq!(pace.rows_within(4000, 1e-9, MIN_CHUNK), MIN_CHUNK);
        assert_eq!(pace.rows_within(4000, 1e-9, 0), 0);
        assert_eq!(pace.rows_within(0, 0.0, MIN_CHUNK), 0);
    }

    #[test]
    fn one_slow_step_does_not_decide() {
        let mut pace = pace();
        let mut load = Load::default();
        load.chunks.add(0, 64);
        for _ in 0..100 {
            pace.record(load, micros(1000 + 640));
        }
        near(pace.chunk_seconds(0, 64), 640e-6);
        pace.record(load, Duration::from_secs(10));
        assert!(pace.chunk_seconds(0, 64) < 700e-6);
    }

    #[test]
    fn rows_of_several_tenants_leave_the_one_with_few_its_pace() {
        let pace = pace();
        // One row takes 1.1 ms; 2.5 times that are 17 rows.
        assert_eq!(pace.fair_rows(2, 1, 32), 17);
        assert_eq!(pace.fair_rows(2, 1, 12), 12);
        assert_eq!(pace.fair_rows(2, 16, 32), 32, "equal tenants");
        assert_eq!(Pace::default().fair_rows(2, 1, 32), 32, "nothing is known");
        let mut steep = Pace::default();
        for n_decode in [1, 2, 4, 8] {
            let load = Load {
                n_decode,
                ..Load::default()
            };
            steep.record(load, micros(1000 * n_decode));
        }
        assert_eq!(steep.fair_rows(2, 1, 32), 2, "more rows at once get no more done");
    }

    #[test]
    fn prompts_of_tenants_with_many_sequences_get_a_part_of_the_time() {
        assert_eq!(Pace::default().refill_prompts(2, 1, 1), None, "nothing is known");
        let mut pace = pace();
        // One row takes 1.1 ms, a fair step 2.75; four rows leave 1.35.
        near(pace.refill_prompts(2, 1, 4).expect("it is known"), 1.35e-3);
        near(pace.refill_prompts(2, 1, 4).expect("it is known"), 2.7e-3);
        near(pace.refill_prompts(2, 1, 4).expect("it is known"), 2.75e-3);
        pace.charge_prompts(5e-3);
        assert!(
            pace.refill_prompts(2, 1, 4).expect("it is known") < 0.0,
            "it owes"
        );
        assert!(pace.refill_prompts(2, 1, 32).expect("it is known") < 0.0);
        near(
            pace.refill_prompts(2, 1, 32).expect("it is known"),
            -2.25e-3 + 1.35e-3 + 2.0 * 2.75e-3 / 4.0,
        );
    }

    #[test]
    fn expensive_masks_are_spread_over_steps_and_cheap_ones_are_not() {
        let mut pace = pace();
        let mut n_taken = 0;
        for _ in 0..1000 {
            let mut budget = pace.refill_masks(4).expect("it is known");
            assert!(budget.is_light(micros(10)) && !budget.is_light(micros(5000)));
            assert!(budget.take(Some(micros(10))));
            if budget.take(Some(micros(5000))) {
                n_taken += 1;
                pace.charge_masks(micros(5000));
            }
        }
        // Of each step, half of what it may take beside its rows.
        let part = (STRETCH * 1.8e-3 - 1.4e-3) / 2.0;
        near(f64::from(n_taken), 1000.0 * part / 5e-3);
        pace.charge_masks(Duration::from_secs(60));
        let n_steps = (0..).take_while(|_| !pace.refill_masks(4).is_some_and(|mut b| b.take(None)));
        near(n_steps.count() as f64, MAX_DEBT / part);
    }
}
