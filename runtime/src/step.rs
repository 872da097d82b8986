//! Sampling of a step: which rows of logits are drawn from, and which sequence each answer belongs to.
//!
//! ```text
//! planned rows:   A: chunk of a scored prompt | B: decode and draft | C: chunk of a prompt | ...
//! logit rows:     A's n_scored                | B's 1 + n_draft     | (none)               | ...
//! ```
//!
//! Answers come in the order of the plan: one sampled token for each logit row, and log-probabilities for
//! those that are wanted.

use std::time::Instant;
use std::vec::Drain;

use arbora_kernels::{Answers, LogprobRow, RowLogprobs, SampleRow};

use crate::plan::{Plan, PlannedRows};
use crate::sampler::sample_row;
use crate::sequence::{Sequence, Sequences};

/// Prepares what every sequence that gives a token may become, and notes what its grammar took.
pub(crate) fn prepare_rows(plan: &mut Plan, sequences: &mut Sequences, clock: &dyn Fn() -> Instant) {
    for rows in plan.rows.iter().filter(|rows| rows.n_sampled() > 0) {
        let sequence = &mut sequences[rows.slot];
        if sequence.request().grammar.is_some() {
            let started = clock();
            sequence.prepare_rows(rows.n_draft);
            let time = clock().saturating_duration_since(started);
            sequence.note_mask_time(time);
            plan.mask_time += time;
        } else {
            sequence.prepare_rows(rows.n_draft);
        }
    }
}

/// How each logit row of the step becomes a token. Rows of sequences that end are sampled like any other.
pub(crate) fn sample_rows<'a>(plan: &Plan, sequences: &'a Sequences) -> Vec<SampleRow<'a>> {
    let mut sample_rows = Vec::with_capacity(plan.n_logit_rows());
    for rows in &plan.rows {
        let sequence = &sequences[rows.slot];
        let request = sequence.request();
        // What is sampled where only the prompt's log-probabilities are wanted is dropped.
        sample_rows.extend((0..rows.n_scored).map(|_| SampleRow::GREEDY));
        for (idx, row) in rows.logit_rows.clone().skip(rows.n_scored).enumerate() {
            let key = (request.choice_idx, rows.first_position + row + 1);
            let row = sample_row(&request.sampling, key, sequence.restrictions(idx));
            sample_rows.push(SampleRow {
                temperature: sequence.temperature(idx),
                ..row
            });
        }
    }
    sample_rows
}

/// The log-probabilities that the step's sequences want, in the order of its rows.
pub(crate) fn logprob_rows(plan: &Plan, sequences: &Sequences, out: &mut Vec<LogprobRow>) {
    out.clear();
    let mut first_row = 0;
    for rows in &plan.rows {
        sequences[rows.slot].logprob_rows(first_row, (rows.n_scored, rows.n_sampled()), out);
        first_row += rows.logit_rows.len();
    }
}

/// Hands the answers out.
pub(crate) struct StepAnswers<'a> {
    sampled: &'a [Option<u32>],
    logprobs: Drain<'a, Option<RowLogprobs>>,
}

/// The answers of one sequence.
pub(crate) struct SequenceAnswers<'a> {
    /// Log-probabilities of the next tokens of its prompt.
    pub(crate) scores: Vec<Option<RowLogprobs>>,
    /// The token after its last one, then those after each of its draft.
    pub(crate) sampled: &'a [Option<u32>],
    /// Log-probabilities of these tokens, if wanted.
    pub(crate) logprobs: Vec<RowLogprobs>,
}

impl<'a> StepAnswers<'a> {
    /// All answers of a step.
    pub(crate) fn new(answers: &'a mut Answers) -> Self {
        StepAnswers {
            sampled: &answers.tokens,
            logprobs: answers.logprobs.drain(..),
        }
    }

    /// Those of the next planned rows, which are of `sequence`.
    pub(crate) fn next(&mut self, rows: &PlannedRows, sequence: &Sequence) -> SequenceAnswers<'a> {
        let (its_own, others) = self.sampled.split_at(rows.logit_rows.len());
        self.sampled = others;
        let sampled = &its_own[rows.n_scored..];
        let wanted = &sequence.request().logprobs;
        let n_logprobs = wanted.output.map_or(0, |_| sampled.len());
        SequenceAnswers {
            scores: self.logprobs.by_ref().take(rows.n_scored).collect(),
            sampled,
            logprobs: self.logprobs.by_ref().take(n_logprobs).flatten().collect(),
        }
    }
}
