//! Which rows of the running sequences a step computes: decode rows, then chunks of prompts (continuous
//! batching with chunked prefill), each divided fairly among tenants.
//!
//! ```text
//! decode rows   all of them, unless       their masks take too long: expensive ones wait a step
//!                                         one tenant has many rows and another few: fewer of the many
//! prompt rows   in order of admission within a tenant, in equal parts among tenants; as many as
//!               max_batch_tokens and, while anybody decodes, the time of the step leave; those of
//!               tenants with more than the fewest sequences get a part of the time
//! ```
//!
//! Decode rows that are left out go first in the next step. Every step computes a row of some sequence, so
//! the whole always ends.

use crate::pace::{MaskBudget, Pace};
use crate::plan::{Plan, PlannedRows};
use crate::sequence::{Sequence, Sequences};
use crate::sequences::SequenceSlot;
use crate::shares::{divide, has_room};

/// What a step, or a tenant's part of it, can still take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) n_rows: usize,
    /// Rows for a prompt's log-probabilities.
    pub(crate) n_scored: usize,
    /// Time for rows of prompts; absent where they are not limited.
    pub(crate) seconds: Option<f64>,
    /// Fewest rows of the next prompt, where there is any time.
    pub(crate) least_chunk: usize,
}

impl Budget {
    /// One of `n` equal parts, the remainder included.
    fn part(self, n: usize) -> Budget {
        Budget {
            n_rows: self.n_rows.div_ceil(n),
            n_scored: self.n_scored.div_ceil(n),
            seconds: self.seconds.map(|seconds| seconds / n as f64),
            ..self
        }
    }

    /// What is left of `self` when `left` is left of its part `part`.
    fn less(self, part: Budget, left: Budget) -> Budget {
        let seconds = |budget: Budget| budget.seconds.unwrap_or(0.0);
        Budget {
            n_rows: self.n_rows - (part.n_rows - left.n_rows),
            n_scored: self.n_scored - (part.n_scored - left.n_scored),
            seconds: self.seconds.map(|all| all - (seconds(part) - seconds(left))),
            least_chunk: left.least_chunk,
        }
    }

    /// Rows that `sequence` gets next.
    fn rows_of(self, sequence: &Sequence, pace: &Pace) -> usize {
        let mut n_rows = sequence.n_uncomputed().min(self.n_rows);
        if let (true, Some(seconds)) = (sequence.will_prefill(), self.seconds) {
            n_rows = n_rows.min(pace.rows_within(sequence.next_computed(), seconds, self.least_chunk));
        }
        let scored = sequence.rows_to_score(n_rows);
        match scored.len() > self.n_scored {
            true => scored.start + self.n_scored,
            false => n_rows,
        }
    }

    /// Plans `n_rows` rows of `sequence`.
    fn plan(
        &mut self,
        plan: &mut Plan,
        (slot, sequence): (SequenceSlot, &Sequence),
        n_rows: usize,
        pace: &Pace,
    ) {
        if n_rows == 0 {
            return;
        }
        let n_sampled = usize::from(n_rows == sequence.n_uncomputed());
        let n_scored = sequence.rows_to_score(n_rows).len();
        self.n_rows -= n_rows;
        self.n_scored -= n_scored;
        if let (true, Some(seconds)) = (sequence.will_prefill(), &mut self.seconds) {
            *seconds -= pace.chunk_seconds(sequence.next_computed(), n_rows);
            self.least_chunk = 0;
        }
        plan.rows.push(PlannedRows {
            slot,
            first_position: sequence.next_computed(),
            n_rows,
            n_draft: 0,
            // Rows to score end where the chunk ends, or before the row that is sampled from.
            logit_rows: n_rows - n_sampled - n_scored..n_rows,
            n_scored,
        });
    }
}

/// The prompts that are being computed: what a sequence that waits has to share a step with.
#[derive(Debug, Default)]
pub(crate) struct PromptLoad {
    /// Tenants and the rows they are due in the next step.
    due: Vec<(u32, usize)>,
}

impl PromptLoad {
    /// That of the `running` sequences.
    pub(crate) fn new(sequences: &Sequences, running: &[SequenceSlot], budget: Budget, pace: &Pace) -> Self {
        let mut load = PromptLoad::default();
        for &slot in running {
            if sequences[slot].will_prefill() {
                load.add(&sequences[slot], budget, pace);
            }
        }
        load
    }

    /// One more is computed.
    pub(crate) fn add(&mut self, sequence: &Sequence, budget: Budget, pace: &Pace) {
        let n_rows = budget.rows_of(sequence, pace);
        self.due.push((sequence.request().tenant, n_rows));
    }

    /// Whether one more of `tenant` would get a row in a step of `n_rows`.
    pub(crate) fn has_room(&self, tenant: u32, n_rows: usize) -> bool {
        let mut own = 0;
        let mut others: Vec<(u32, usize)> = Vec::new();
        for &(of, n) in &self.due {
            match others.iter_mut().find(|(tenant, _)| *tenant == of) {
                _ if of == tenant => own += n,
                Some((_, sum)) => *sum += n,
                None => others.push((of, n)),
            }
        }
        has_room(n_rows, own, others.into_iter().map(|(_, n)| n))
    }
}

/// Plans a row for each sequence that decodes, but for those that have to wait a step. Returns what masks may
/// still take where they are limited.
pub(crate) fn plan_decode(
    plan: &mut Plan,
    (sequences, running): (&Sequences, &[SequenceSlot]),
    (budget, pace): (&mut Budget, &mut Pace),
) -> Option<MaskBudget> {
    let due: Vec<SequenceSlot> = running
        .iter()
        .copied()
        .filter(|slot| sequences[*slot].will_decode() && !plan.without_page.contains(slot))
        .collect();
    let (mut chosen, n_decode) = (due.clone(), due.len());
    // Who has waited longest comes first; the sort is stable.
    chosen.sort_by_key(|&slot| sequences[slot].latest_step);
    limit_rows_of_tenants(&mut chosen, (sequences, running), pace);
    let mut masks = pace.refill_masks(n_decode);
    if let Some(masks) = &mut masks {
        let time = |slot: &SequenceSlot| sequences[*slot].mask_time.unwrap_or_default();
        // Where all have expensive masks, no other output is held up by them.
        if chosen.iter().any(|slot| masks.is_light(time(slot))) {
            chosen.retain(|slot| masks.take(Some(time(slot))));
        }
    }
    for slot in due {
        if chosen.len() == n_decode || chosen.contains(&slot) {
            budget.plan(plan, (slot, &sequences[slot]), budget.n_rows.min(1), pace);
        }
    }
    masks
}

/// Running sequences of each tenant.
fn counts(sequences: &Sequences, slots: &[SequenceSlot]) -> Vec<(u32, usize)> {
    let mut counts: Vec<(u32, usize)> = Vec::new();
    for &slot in slots {
        let tenant = sequences[slot].request().tenant;
        match counts.iter_mut().find(|(of, _)| *of == tenant) {
            Some((_, n)) => *n += 1,
            None => counts.push((tenant, 1)),
        }
    }
    counts
}

/// What the tenant with the fewest sequences has; absent where there is one tenant.
fn n_fewest(counts: &[(u32, usize)]) -> Option<usize> {
    let fewest = counts.iter().map(|(_, n)| *n).min();
    fewest.filter(|_| counts.len() > 1)
}

/// Keeps as many of the `chosen` as do not slow the tenant with the fewest running sequences down too much.
fn limit_rows_of_tenants(
    chosen: &mut Vec<SequenceSlot>,
    (sequences, running): (&Sequences, &[SequenceSlot]),
    pace: &Pace,
) {
    let all = counts(sequences, running);
    let Some(n_fewest) = n_fewest(&all) else {
        return;
    };
    let n_rows = pace.fair_rows(all.len(), n_fewest, chosen.len());
    if n_rows >= chosen.len() {
        return;
    }
    let wanted = counts(sequences, chosen);
    let n_wanted: Vec<usize> = wanted.iter().map(|(_, n)| *n).collect();
    let mut given = divide(n_rows, &n_wanted);
    chosen.retain(|&slot| {
        let tenant = sequences[slot].request().tenant;
        let idx = wanted.iter().position(|(of, _)| *of == tenant);
        let left = &mut given[idx.expect("it was counted")];
        let is_given = *left > 0;
        *left -= usize::from(is_given);
        is_given
    });
}

/// The time that prompts of tenants with more than the fewest sequences may take.
struct CrowdedPrompts {
    n_fewest: usize,
    seconds: f64,
    running: Vec<(u32, usize)>,
}

impl CrowdedPrompts {
    /// None where they are not limited.
    fn new(
        plan: &Plan,
        (sequences, running): (&Sequences, &[SequenceSlot]),
        pace: &mut Pace,
    ) -> Option<Self> {
        let running = counts(sequences, running);
        let n_fewest = n_fewest(&running)?;
        let seconds = pace.refill_prompts(running.len(), n_fewest, plan.rows.len())?;
        Some(CrowdedPrompts {
            n_fewest,
            seconds,
            running,
        })
    }

    fn limits(&self, tenant: u32) -> bool {
        let n_running = self.running.iter().find(|(of, _)| *of == tenant);
        n_running.is_some_and(|(_, n)| *n > self.n_fewest)
    }
}

/// Plans chunks of the prompts that are being computed. The last row of one whose first mask has to wait is
/// left for another step.
pub(crate) fn plan_prompts(
    plan: &mut Plan,
    (sequences, running): (&Sequences, &[SequenceSlot]),
    (budget, pace): (&mut Budget, &mut Pace),
    mut masks: Option<MaskBudget>,
) {
    let mut crowded = CrowdedPrompts::new(plan, (sequences, running), pace);
    let mut tenants: Vec<(usize, u32)> = Vec::new();
    let prompts = || {
        let is_prompt = |slot: &&SequenceSlot| sequences[**slot].will_prefill();
        running.iter().filter(is_prompt)
    };
    for &slot in prompts() {
        let (tenant, n_due) = (sequences[slot].request().tenant, sequences[slot].n_uncomputed());
        match tenants.iter_mut().find(|(_, of)| *of == tenant) {
            Some((n, _)) => *n += n_due,
            None => tenants.push((n_due, tenant)),
        }
    }
    // What who wants least leaves of its part is the others'.
    tenants.sort_unstable();
    for (n_before, &(_, tenant)) in tenants.iter().enumerate() {
        let mut part = budget.part(tenants.len() - n_before);
        let crowded = crowded.as_mut().filter(|crowded| crowded.limits(tenant));
        if let (Some(crowded), Some(seconds)) = (&crowded, &mut part.seconds) {
            *seconds = seconds.min(crowded.seconds);
        }
        let mut left = part;
        for &slot in prompts().filter(|slot| sequences[**slot].request().tenant == tenant) {
            let sequence = &sequences[slot];
            let mut n_rows = left.rows_of(sequence, pace);
            if let (Some(masks), true) = (&mut masks, sequence.request().grammar.is_some()) {
                let gives_token = n_rows > 0 && n_rows == sequence.n_uncomputed();
                n_rows -= usize::from(gives_token && !masks.take(sequence.mask_time));
            }
            left.plan(plan, (slot, sequence), n_rows, pace);
        }
        if let (Some(crowded), Some(all), Some(left)) = (crowded, part.seconds, left.seconds) {
            crowded.seconds -= all - left;
            pace.charge_prompts(all - left);
        }
        *budget = budget.less(part, left);
    }
}
