//! What a request changes in the model's logits: penalties on tokens it has seen, its own bias, and no end
//! before `min_tokens`.
//!
//! ```text
//! l > 0 ? l / repetition : l * repetition       tokens of prompt and output
//! l - presence - frequency * count              tokens of the output
//! l + bias                                      tokens the request names
//! minus infinity                                tokens that end the output, before min_tokens
//! ```
//!
//! Counts follow the output, not the steps, so neither drafts nor preemption can be seen in them.

use std::collections::BTreeMap;

use arbora_kernels::Adjustment;

use crate::request::{Request, SamplingParams};

/// How often a token was seen.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// In prompt or output.
    is_penalized: bool,
    n_output: u32,
    bias: f32,
}

/// The adjustments of one sequence, as far as its output goes.
#[derive(Debug)]
pub(crate) struct Adjustments {
    sampling: SamplingParams,
    seen: BTreeMap<u32, Seen>,
    /// Tokens that end the output, ascending.
    stops: Vec<u32>,
    min_tokens: usize,
    n_output: usize,
    /// Of the rows of this step.
    rows: Vec<Vec<Adjustment>>,
}

impl Adjustments {
    /// Those of `request`, whose prompt is `prompt`; `None` where it changes nothing. `stops` end its output.
    pub(crate) fn new(request: &Request, prompt: &[u32], mut stops: Vec<u32>) -> Option<Self> {
        let sampling = request.sampling;
        let repeats = sampling.repetition_penalty != 1.0;
        let follows = repeats || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        if !follows && request.logit_bias.is_empty() && request.stop.min_tokens == 0 {
            return None;
        }
        stops.sort_unstable();
        stops.dedup();
        let mut seen: BTreeMap<u32, Seen> = BTreeMap::new();
        for &(token, bias) in &request.logit_bias {
            seen.entry(token).or_default().bias += bias;
        }
        if repeats {
            for &token in prompt {
                seen.entry(token).or_default().is_penalized = true;
            }
        }
        Some(Adjustments {
            sampling,
            seen,
            stops,
            min_tokens: request.stop.min_tokens,
            n_output: 0,
            rows: Vec::new(),
        })
    }

    /// Follows the output.
    pub(crate) fn push(&mut self, token: u32) {
        self.n_output += 1;
        let seen = self.seen.entry(token).or_default();
        seen.is_penalized = true;
        seen.n_output += 1;
    }

    /// Prepares the next row and a row after each token of `draft`.
    pub(crate) fn fill(&mut self, draft: &[u32]) {
        self.rows.resize_with(draft.len() + 1, Vec::new);
        for n_drafted in 0..=draft.len() {
            let mut row = std::mem::take(&mut self.rows[n_drafted]);
            self.fill_row(&draft[..n_drafted], &mut row);
            self.rows[n_drafted] = row;
        }
    }

    /// How the logits of row `idx` of this step change.
    pub(crate) fn row(&self, idx: usize) -> &[Adjustment] {
        &self.rows[idx]
    }

    fn fill_row(&self, draft: &[u32], row: &mut Vec<Adjustment>) {
        row.clear();
        row.extend(
            self.seen
                .iter()
                .filter_map(|(&token, seen)| self.adjustment(token, *seen)),
        );
        for (idx, &token) in draft.iter().enumerate() {
            let mut seen = self.seen.get(&token).copied().unwrap_or_default();
            seen.is_penalized = true;
            seen.n_output += draft[..=idx].iter().filter(|other| **other == token).count() as u32;
            put(row, token, self.adjustment(token, seen));
        }
        if self.n_output + draft.len() < self.min_tokens {
            for &token in &self.stops {
                let out = Adjustment {
                    token,
                    divisor: 1.0,
                    shift: f32::NEG_INFINITY,
                };
                put(row, token, Some(out));
            }
        }
    }

    fn adjustment(&self, token: u32, seen: Seen) -> Option<Adjustment> {
        let divisor = if seen.is_penalized {
            self.sampling.repetition_penalty
        } else {
            1.0
        };
        let mut shift = seen.bias;
        if seen.n_output > 0 {
            shift -= self.sampling.presence_penalty + self.sampling.frequency_penalty * seen.n_output as f32;
        }
        let changes = divisor != 1.0 || shift != 0.0;
        changes.then_some(Adjustment {
            token,
            divisor,
            shift,
        })
    }
}

/// Puts the adjustment of `token` in its place, over the one there was.
fn put(row: &mut Vec<Adjustment>, token: u32, adjustment: Option<Adjustment>) {
    match (row.binary_search_by_key(&token, |other| other.token), adjustment) {
        (Ok(idx), Some(adjustment)) => row[idx] = adjustment,
        (Ok(idx), None) => drop(row.remove(idx)),
        (Err(idx), Some(adjustment)) => row.insert(idx, adjustment),
        (Err(_), None) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::mpsc;

    use super::*;
    use crate::request::RequestId;

    fn request(sampling: SamplingParams, logit_bias: Vec<(u32, f32)>, min_tokens: usize) -> Request {
        let mut request = Request::new(RequestId(0), Vec::new(), 8, Instant::now(), mpsc::channel(1).0);
        request.sampling = sampling;
        request.stop.min_tokens = min_tokens;
        request.logit_bias = logit_bias;
        request
    }

    fn row(adjustments: &Adjustments, idx: usize) -> Vec<(u32, f32, f32)> {
        let row = adjustments.row(idx).iter();
        row.map(|a| (a.token, a.divisor, a.shift)).collect()
    }

    #[test]
    fn a_request_that_changes_nothing_costs_nothing() {
        let plain = request(SamplingParams::default(), Vec::new(), 0);
        assert!(Adjustments::new(&plain, &[1, 2], vec![3]).is_none());
    }

    #[test]
    fn repetition_looks_at_prompt_and_output_the_others_at_the_output_only() {
        let sampling = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..SamplingParams::default()
        };
        let asked = request(sampling, vec![(9, 1.0)], 0);
        let mut adjustments = Adjustments::new(&asked, &[4], vec![3]).expect("it changes logits");
        adjustments.push(7);
        adjustments.fill(&[7, 4]);
        assert_eq!(
            row(&adjustments, 0),
            [(4, 2.0, 0.0), (7, 2.0, -0.75), (9, 1.0, 1.0)]
        );
        assert_eq!(
            row(&adjustments, 1),
            [(4, 2.0, 0.0), (7, 2.0, -1.0), (9, 1.0, 1.0)]
        );
        assert_eq!(
            row(&adjustments, 2),
            [(4, 2.0, -0.75), (7, 2.0, -1.0), (9, 1.0, 1.0)]
        );
    }

    #[test]
    fn penalties_that_cancel_out_leave_no_trace_in_drafted_rows() {
        let sampling = SamplingParams {
            presence_penalty: 0.5,
            frequency_penalty: -0.25,
            ..SamplingParams::default()
        };
        let asked = request(sampling, Vec::new(), 0);
        let mut adjustments = Adjustments::new(&asked, &[], Vec::new()).expect("it changes logits");
        adjustments.push(7);
        adjustments.fill(&[7]);
        assert_eq!(row(&adjustments, 0), [(7, 1.0, -0.25)]);
        assert_eq!(row(&adjustments, 1), []);
    }

    #[test]
    fn stop_tokens_are_out_until_there_are_enough_tokens() {
        let asked = request(SamplingParams::default(), vec![(3, 5.0)], 2);
        let mut adjustments = Adjustments::new(&asked, &[], vec![6, 3, 6]).expect("it changes logits");
        adjustments.push(1);
        adjustments.fill(&[1]);
        let out = f32::NEG_INFINITY;
        assert_eq!(row(&adjustments, 0), [(3, 1.0, out), (6, 1.0, out)]);
        assert_eq!(row(&adjustments, 1), [(3, 1.0, 5.0)]);
    }
}
