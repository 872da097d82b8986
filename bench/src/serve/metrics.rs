//! Figures of a run; the head of `serve` defines each.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::load::Run;
use super::wire::{Answer, Usage};
use super::workload::Prompts;

/// What a list of values looks like, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    pub(super) mean: f64,
    pub(super) median: f64,
    pub(super) std: f64,
    pub(super) p90: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Summary {
    pub(super) const NAMES: [&'static str; 7] = ["mean", "median", "std", "p90", "p95", "p99", "max"];

    /// In the order of `NAMES`.
    pub(super) fn values(self) -> [f64; 7] {
        [
            self.mean,
            self.median,
            self.std,
            self.p90,
            self.p95,
            self.p99,
            self.max,
        ]
    }

    /// `None` of no values at all.
    pub(super) fn of(mut seconds: Vec<f64>) -> Option<Self> {
        if seconds.is_empty() {
            return None;
        }
        seconds.sort_by(f64::total_cmp);
        let n = seconds.len() as f64;
        let mean = seconds.iter().sum::<f64>() / n;
        let variance = seconds.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        let at = |share| 1e3 * percentile(&seconds, share);
        Some(Self {
            mean: 1e3 * mean,
            median: at(0.5),
            std: 1e3 * variance.sqrt(),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: at(1.0),
        })
    }
}

/// Of sorted values, the one below which `share` of them lie, interpolated between neighbours.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    below + (above - below) * place.fract()
}

/// How the tokens of the pieces of text were known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    /// Of answers whose pieces were taken as one token each although there were fewer than tokens.
    pub(super) n_unsplit: usize,
    pub(super) n_unsplit_tokens: u64,
}

#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) duration: f64,
    pub(super) completed: usize,
    /// How often each error came.
    pub(super) errors: BTreeMap<String, usize>,
    pub(super) total_input_tokens: u64,
    pub(super) total_output_tokens: u64,
    /// `None` where no answer told.
    pub(super) total_cached_tokens: Option<u64>,
    pub(super) cache_hit_rate: Option<f64>,
    pub(super) accept_length: Option<f64>,
    pub(super) concurrency: f64,
    pub(super) max_output_tokens_per_s: f64,
    pub(super) max_concurrent_requests: usize,
    pub(super) latency: Option<Summary>,
    pub(super) ttft: Option<Summary>,
    pub(super) tpot: Option<Summary>,
    pub(super) itl: Option<Summary>,
    /// Those of each completed request, seconds.
    pub(super) itls: Vec<Vec<f64>>,
    pub(super) pieces: Pieces,
    /// Completed requests whose output had no text, so that they have no TTFT.
    pub(super) n_without_text: usize,
}

impl Metrics {
    /// `server_info` is what the server says of itself after the run.
    pub(super) fn of(run: &Run, prompts: &Prompts, server_info: Option<&Value>) -> Self {
        let duration = run.duration.as_secs_f64();
        let mut errors = BTreeMap::new();
        let mut answers: Vec<(Duration, &Answer)> = Vec::new();
        for outcome in &run.outcomes {
            match &outcome.answer {
                Ok(answer) => answers.push((outcome.sent, answer)),
                Err(error) => *errors.entry(error.to_string()).or_default() += 1,
            }
        }
        let all = || answers.iter().map(|(_, answer)| *answer);
        let usages: Vec<Usage> = all().map(|answer| answer.usage).collect();
        let latencies: Vec<f64> = all().map(|answer| answer.latency.as_secs_f64()).collect();
        let mut pieces = Pieces::default();
        let itls: Vec<Vec<f64>> = all().map(|answer| itls(answer, prompts, &mut pieces)).collect();
        let (max_output_tokens_per_s, max_concurrent_requests) = fullest_second(&answers, &itls);
        let cached: Vec<(u64, u64)> = usages
            .iter()
            .filter_map(|usage| Some((usage.cached_tokens?, usage.prompt_tokens)))
            .collect();
        let total_cached: u64 = cached.iter().map(|(cached, _)| cached).sum();
        let total_asked: u64 = cached.iter().map(|(_, prompt)| prompt).sum();
        Self {
            duration,
            completed: answers.len(),
            errors,
            total_input_tokens: usages.iter().map(|usage| usage.prompt_tokens).sum(),
            total_output_tokens: usages.iter().map(|usage| usage.completion_tokens).sum(),
            total_cached_tokens: (!cached.is_empty()).then_some(total_cached),
            cache_hit_rate: (total_asked > 0).then(|| total_cached as f64 / total_asked as f64),
            accept_length: server_accept_length(server_info).or_else(|| accept_length(&usages)),
            // An empty sum of floats is -0.
            concurrency: (0.0 + latencies.iter().sum::<f64>()) / duration,
            max_output_tokens_per_s,
            max_concurrent_requests,
            latency: Summary::of(latencies),
            ttft: Summary::of(all().filter_map(ttft).collect()),
            tpot: Summary::of(all().filter_map(tpot).collect()),
            itl: Summary::of(itls.iter().flatten().copied().collect()),
            itls,
            pieces,
            n_without_text: all().filter(|answer| is_without_text(answer)).count(),
        }
    }

    pub(super) fn failed(&self) -> usize {
        self.errors.values().sum()
    }

    pub(super) fn first_error(&self) -> Option<&str> {
        self.errors.keys().next().map(String::as_str)
    }

    /// So much per second.
    pub(super) fn rate(&self, n: u64) -> f64 {
        n as f64 / self.duration
    }
}

/// A vector is no text that is missing.
fn is_without_text(answer: &Answer) -> bool {
    answer.pieces.is_empty() && answer.usage.completion_tokens > 0
}

pub(super) fn ttft(answer: &Answer) -> Option<f64> {
    answer.pieces.first().map(|piece| piece.at.as_secs_f64())
}

/// None of an answer that came in one piece with its end: its time per token cannot be told from its first.
pub(super) fn tpot(answer: &Answer) -> Option<f64> {
    let n_more = answer.usage.completion_tokens.saturating_sub(1);
    let took = answer.latency.as_secs_f64() - ttft(answer)?;
    (n_more > 0 && took > 0.0).then(|| took / n_more as f64)
}

/// One value for each token after those of the first piece.
fn itls(answer: &Answer, prompts: &Prompts, seen: &mut Pieces) -> Vec<f64> {
    let Some(first) = answer.pieces.first() else {
        return Vec::new();
    };
    let n_pieces = answer.pieces.len();
    let one_each = n_pieces as u64 >= answer.usage.completion_tokens;
    let told = answer.pieces.iter().all(|piece| piece.n_so_far.is_some());
    let (mut last, mut n_last) = (first.at, first.n_so_far.unwrap_or_default());
    let mut values = Vec::new();
    let mut is_unsplit = false;
    for piece in &answer.pieces[1..] {
        let n_tokens = match piece.n_so_far.filter(|_| told) {
            Some(n_so_far) => n_so_far.saturating_sub(n_last),
            None if one_each => 1,
            None => prompts.n_tokens(&piece.text).map_or_else(
                || {
                    is_unsplit = true;
                    1
                },
                |n| n.max(1) as u64,
            ),
        };
        if n_tokens == 0 {
            continue;
        }
        let gap = (piece.at - last).as_secs_f64() / n_tokens as f64;
        values.extend((0..n_tokens).map(|_| gap));
        (last, n_last) = (piece.at, piece.n_so_far.unwrap_or_default());
    }
    if is_unsplit {
        seen.n_unsplit += n_pieces;
        seen.n_unsplit_tokens += answer.usage.completion_tokens;
    }
    values
}

/// Every step yields one token besides the accepted drafts.
fn accept_length(usages: &[Usage]) -> Option<f64> {
    let told = || usages.iter().filter(|usage| usage.accepted_tokens.is_some());
    let n_tokens: u64 = usages.iter().map(|usage| usage.completion_tokens).sum();
    let n_accepted: u64 = told().filter_map(|usage| usage.accepted_tokens).sum();
    let n_steps = n_tokens.checked_sub(n_accepted).filter(|n| *n > 0)?;
    told().next()?;
    Some(n_tokens as f64 / n_steps as f64)
}

fn server_accept_length(server_info: Option<&Value>) -> Option<f64> {
    server_info?["internal_states"][0]["avg_spec_accept_length"].as_f64()
}

/// Of the whole seconds since the first request: most tokens in one, most requests open during one.
fn fullest_second(answers: &[(Duration, &Answer)], itls: &[Vec<f64>]) -> (f64, usize) {
    let Some(start) = answers.iter().map(|(sent, _)| *sent).min() else {
        return (0.0, 0);
    };
    let mut seconds: BTreeMap<u64, (u32, usize)> = BTreeMap::new();
    for ((sent, answer), itls) in answers.iter().zip(itls) {
        let begin = *sent - start;
        // Without text there is no first token, and no gap after it.
        let first = ttft(answer).map(|ttft| begin.as_secs_f64() + ttft);
        let times = first.into_iter().flat_map(|first| {
            let later = itls.iter().scan(first, |time, itl| {
                *time += itl;
                Some(*time)
            });
            std::iter::once(first).chain(later)
        });
        for time in times {
            seconds.entry(time as u64).or_default().0 += 1;
        }
        for second in begin.as_secs()..=(begin + answer.latency).as_secs() {
            seconds.entry(second).or_default().1 += 1;
        }
    }
    let most_tokens = seconds.values().map(|(n, _)| *n).max().unwrap_or_default();
    let most_requests = seconds.values().map(|(_, n)| *n).max().unwrap_or_default();
    (f64::from(most_tokens), most_requests)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::load::Outcome;
    use super::super::wire::Piece;
    use super::*;
    use crate::http::BenchError;

    fn words() -> Prompts {
        Prompts::load(None).expect("nothing is read")
    }

    fn piece(at_ms: u64, n_so_far: Option<u64>) -> Piece {
        Piece {
            at: Duration::from_millis(at_ms),
            text: "word".to_owned(),
            n_so_far,
        }
    }

    fn answer(at_ms: &[u64], latency_ms: u64, usage: Usage) -> Answer {
        Answer {
            latency: Duration::from_millis(latency_ms),
            pieces: at_ms.iter().map(|at| piece(*at, None)).collect(),
            usage,
        }
    }

    fn usage(prompt_tokens: u64, completion_tokens: u64) -> Usage {
        Usage {
            prompt_tokens,
            completion_tokens,
            ..Usage::default()
        }
    }

    fn close(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 1e-9
    }

    /// ```text
    /// ms  0     100   200   300   400 ... 1000  1100  1200  2000
    /// A   sent  .     x     x     x end at 410
    /// B         sent                      x     x end at 1200
    /// C   sent, refused
    /// ```
    fn run() -> Run {
        let a = Usage {
            cached_tokens: Some(4),
            ..usage(10, 3)
        };
        let b = usage(20, 2);
        let outcome = |sent_ms, answer| Outcome {
            turn: 0,
            sent: Duration::from_millis(sent_ms),
            answer,
        };
        Run {
            duration: Duration::from_secs(2),
            outcomes: vec![
                outcome(0, Ok(answer(&[200, 300, 400], 410, a))),
                outcome(100, Ok(answer(&[900, 1000], 1100, b))),
                outcome(0, Err(BenchError::Check("refused".to_owned()))),
            ],
        }
    }

    #[test]
    fn a_timeline_by_hand_has_the_figures_of_the_definitions() {
        let metrics = Metrics::of(&run(), &words(), None);
        assert_eq!((metrics.completed, metrics.failed()), (2, 1));
        assert_eq!(metrics.errors["refused"], 1);
        assert_eq!((metrics.total_input_tokens, metrics.total_output_tokens), (30, 5));
        assert!(close(metrics.rate(metrics.total_output_tokens), 2.5));
        let ttft = metrics.ttft.expect("two values");
        assert!(close(ttft.mean, 550.0) && close(ttft.median, 550.0) && close(ttft.max, 900.0));
        assert!(close(ttft.std, 350.0) && close(ttft.p90, 830.0));
        let latency = metrics.latency.expect("two values");
        assert!(close(latency.mean, 755.0));
        // (410 - 200) / 2 and (1100 - 900) / 1.
        let tpot = metrics.tpot.expect("two values");
        assert!(close(tpot.mean, 152.5) && close(tpot.max, 200.0));
        let itl = metrics.itl.expect("three values");
        assert!(close(itl.mean, 100.0) && close(itl.std, 0.0));
        assert!(close(metrics.concurrency, (0.41 + 1.1) / 2.0));
        assert_eq!(metrics.total_cached_tokens, Some(4));
        assert!(close(metrics.cache_hit_rate.expect("A told"), 0.4));
        assert_eq!(metrics.accept_length, None);
        // Tokens at 0.2, 0.3, 0.4 | 1.0, 1.1; both requests are open in the first second.
        assert!(close(metrics.max_output_tokens_per_s, 3.0));
        assert_eq!(metrics.max_concurrent_requests, 2);
        assert_eq!((metrics.pieces, metrics.n_without_text), (Pieces::default(), 0));
    }

    #[test]
    fn a_gap_is_shared_by_the_tokens_of_its_piece() {
        let mut streamed = answer(&[], 700, usage(1, 6));
        streamed.pieces = vec![
            piece(100, Some(2)),
            piece(400, Some(5)),
            // No new token: the next gap begins where the last token came.
            piece(450, Some(5)),
            piece(600, Some(6)),
        ];
        let mut seen = Pieces::default();
        let values = itls(&streamed, &words(), &mut seen);
        let expected = [0.1, 0.1, 0.1, 0.2];
        assert_eq!(values.len(), expected.len());
        assert!(
            values
                .iter()
                .zip(expected)
                .all(|(value, expected)| close(*value, expected))
        );
        assert_eq!(seen, Pieces::default());
    }

    #[test]
    fn pieces_of_unknown_length_are_told_of() {
        let mut seen = Pieces::default();
        let values = itls(&answer(&[10, 20], 30, usage(1, 7)), &words(), &mut seen);
        assert_eq!(values.len(), 1);
        assert_eq!((seen.n_unsplit, seen.n_unsplit_tokens), (2, 7));
    }

    #[test]
    fn an_answer_in_one_piece_has_no_time_per_token() {
        let run = Run {
            duration: Duration::from_secs(1),
            outcomes: vec![Outcome {
                turn: 0,
                sent: Duration::ZERO,
                answer: Ok(answer(&[500], 500, usage(3, 9))),
            }],
        };
        let metrics = Metrics::of(&run, &words(), None);
        assert!(close(metrics.ttft.expect("one value").mean, 500.0));
        assert_eq!((metrics.tpot, metrics.itl), (None, None));
    }

    #[test]
    fn nothing_completed_has_no_latencies() {
        let mut run = run();
        run.outcomes.drain(..2);
        let metrics = Metrics::of(&run, &words(), None);
        assert_eq!((metrics.completed, metrics.first_error()), (0, Some("refused")));
        assert_eq!(
            (metrics.latency, metrics.ttft, metrics.cache_hit_rate),
            (None, None, None)
        );
    }

    #[test]
    fn accepted_drafts_lengthen_a_step() {
        let drafted = Usage {
            accepted_tokens: Some(6),
            ..usage(1, 12)
        };
        assert!(close(accept_length(&[drafted, usage(1, 4)]).expect("told"), 1.6));
        assert_eq!(accept_length(&[usage(1, 4)]), None);
        let info = json!({ "internal_states": [{ "avg_spec_accept_length": 2.5 }] });
        assert_eq!(server_accept_length(Some(&info)), Some(2.5));
        assert_eq!(
            server_accept_length(Some(&json!({ "internal_states": [{}] }))),
            None
        );
    }

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert!(close(percentile(&sorted, 0.5), 2.5));
        assert!(close(percentile(&sorted, 0.9), 3.7));
        assert!(close(percentile(&sorted, 1.0), 4.0));
        assert!(close(percentile(&[7.0], 0.99), 7.0));
    }
}
