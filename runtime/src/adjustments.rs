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
