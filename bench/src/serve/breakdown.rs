//! Figures that look at requests one by one: goodput, the cache by turns, answers in the form asked for; the
//! head of `serve` defines each.

use super::arguments::{Figure, Goal};
use super::datasets;
use super::load::{Outcome, Run};
use super::metrics::{Summary, tpot, ttft};
use super::wire::{Answer, Usage};
use super::workload::Ask;

#[derive(Debug, Default, PartialEq)]
pub(super) struct Breakdown {
    /// Requests that keep to every goal; `None` where there is no goal.
    pub(super) n_good: Option<usize>,
    /// All requests, failed ones too.
    pub(super) n_requests: usize,
    /// Objects as asked for, and completed requests that asked for one.
    pub(super) valid_objects: Option<(usize, usize)>,
    /// Completed requests with any cached token; `None` where no answer told.
    pub(super) n_hits: Option<usize>,
    /// Cached prompt tokens / prompt tokens of the first turns, the second turns, ...; `None` where no answer
    /// told, empty where no request follows another.
    pub(super) hit_rate_by_turn: Vec<Option<f64>>,
    pub(super) later_ttft: Option<Summary>,
}

impl Breakdown {
    /// `asks` are those of `run`, in the same order.
    pub(super) fn of(run: &Run, asks: &[Ask], goals: &[Goal]) -> Self {
        assert_eq!(run.outcomes.len(), asks.len(), "one outcome for each request");
        let answers = || {
            let whole = run.outcomes.iter().zip(asks);
            whole.filter_map(|(outcome, ask)| Some((outcome.turn, outcome.answer.as_ref().ok()?, ask)))
        };
        let objects: Vec<bool> = answers()
            .filter_map(|(_, answer, ask)| datasets::is_wanted_object(ask, &answer.text()))
            .collect();
        let n_valid = objects.iter().filter(|is_valid| **is_valid).count();
        let cached: Vec<u64> = answers()
            .filter_map(|(_, answer, _)| answer.usage.cached_tokens)
            .collect();
        let n_hits = cached.iter().filter(|n| **n > 0).count();
        let is_good = |outcome: &&Outcome| {
            let answer = outcome.answer.as_ref();
            answer.is_ok_and(|answer| goals.iter().all(|goal| keeps_to(answer, *goal)))
        };
        let last_turn = run
            .outcomes
            .iter()
            .map(|outcome| outcome.turn)
            .max()
            .unwrap_or_default();
        let of_turn = |turn| {
            let usages = answers()
                .filter(|(of, ..)| *of == turn)
                .map(|(_, answer, _)| answer.usage);
            hit_rate(usages)
        };
        let later = answers().filter(|(turn, ..)| *turn > 0);
        Self {
            n_good: (!goals.is_empty()).then(|| run.outcomes.iter().filter(is_good).count()),
            n_requests: asks.len(),
            valid_objects: (!objects.is_empty()).then_some((n_valid, objects.len())),
            n_hits: (!cached.is_empty()).then_some(n_hits),
            hit_rate_by_turn: match last_turn {
                0 => Vec::new(),
                _ => (0..=last_turn).map(of_turn).collect(),
            },
            later_ttft: Summary::of(later.filter_map(|(_, answer, _)| ttft(answer)).collect()),
        }
    }

    pub(super) fn good_share(&self) -> Option<f64> {
        Some(self.n_good? as f64 / self.n_requests as f64)
    }
}

/// An output of one token has no time per further token, and keeps to any; one without text has no first.
fn keeps_to(answer: &Answer, goal: Goal) -> bool {
    let seconds = match goal.of {
        Figure::Ttft => ttft(answer),
        Figure::Tpot => Some(tpot(answer).unwrap_or_default()),
        Figure::Latency => Some(answer.latency.as_secs_f64()),
    };
    seconds.is_some_and(|seconds| 1e3 * seconds <= goal.limit_ms)
}

fn hit_rate(usages: impl Iterator<Item = Usage>) -> Option<f64> {
    let told = usages.filter_map(|usage| Some((usage.cached_tokens?, usage.prompt_tokens)));
    let (n_cached, n_prompt) = told.fold((0, 0), |(a, b), (cached, prompt)| (a + cached, b + prompt));
    (n_prompt > 0).then(|| n_cached as f64 / n_prompt as f64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::wire::Piece;
    use super::*;
    use crate::http::BenchError;

    /// First piece and end, milliseconds; tokens of the output; cached ones of 10 of the prompt.
    fn answer(first_ms: u64, latency_ms: u64, n_output: u64, cached: Option<u64>) -> Answer {
        let piece = Piece {
            at: Duration::from_millis(first_ms),
            text: "word".to_owned(),
            n_so_far: None,
        };
        Answer {
            latency: Duration::from_millis(latency_ms),
            pieces: vec![piece],
            usage: Usage {
                prompt_tokens: 10,
                completion_tokens: n_output,
                cached_tokens: cached,
                accepted_tokens: None,
            },
        }
    }

    fn run(answers: Vec<(usize, Option<Answer>)>) -> (Run, Vec<Ask>) {
        let asks = vec![Ask::default(); answers.len()];
        let outcome = |(turn, answer): (usize, Option<Answer>)| Outcome {
            turn,
            sent: Duration::ZERO,
            answer: answer.ok_or(BenchError::Check("refused".to_owned())),
        };
        let run = Run {
            duration: Duration::from_secs(2),
            outcomes: answers.into_iter().map(outcome).collect(),
        };
        (run, asks)
    }

    fn goal(of: Figure, limit_ms: f64) -> Goal {
        Goal { of, limit_ms }
    }

    #[test]
    fn a_good_answer_keeps_to_every_goal() {
        let (run, asks) = run(vec![
            (0, Some(answer(100, 500, 5, None))),
            (0, Some(answer(300, 500, 5, None))),
            (0, Some(answer(100, 100, 1, None))),
            (0, None),
        ]);
        let good = |goals: &[Goal]| Breakdown::of(&run, &asks, goals).n_good;
        assert_eq!(good(&[]), None);
        assert_eq!(good(&[goal(Figure::Ttft, 200.0)]), Some(2));
        // 100 ms a token, 50 ms a token, a single token.
        assert_eq!(good(&[goal(Figure::Tpot, 60.0)]), Some(2));
        assert_eq!(good(&[goal(Figure::Latency, 500.0)]), Some(3));
        let both = [goal(Figure::Ttft, 200.0), goal(Figure::Tpot, 60.0)];
        assert_eq!(good(&both), Some(1));
        assert_eq!(Breakdown::of(&run, &asks, &both).good_share(), Some(0.25));
    }

    #[test]
    fn the_cache_is_told_of_by_turns() {
        let (run, asks) = run(vec![
            (0, Some(answer(100, 500, 5, Some(0)))),
            (1, Some(answer(40, 500, 5, Some(9)))),
            (0, Some(answer(100, 500, 5, Some(4)))),
            (1, None),
        ]);
        let breakdown = Breakdown::of(&run, &asks, &[]);
        assert_eq!(breakdown.hit_rate_by_turn, [Some(0.2), Some(0.9)]);
        assert_eq!(breakdown.n_hits, Some(2));
        assert!((breakdown.later_ttft.expect("one value").mean - 40.0).abs() < 1e-9);
        assert_eq!(breakdown.valid_objects, None);
    }

    #[test]
    fn single_requests_of_a_silent_server_have_no_turns_and_no_hits() {
        let (run, asks) = run(vec![(0, Some(answer(100, 500, 5, None)))]);
        let breakdown = Breakdown::of(&run, &asks, &[]);
        assert_eq!((breakdown.n_hits, breakdown.hit_rate_by_turn), (None, Vec::new()));
        assert_eq!(breakdown.later_ttft, None);
    }
}
