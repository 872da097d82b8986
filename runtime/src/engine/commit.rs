//! The end of a step: its tokens are taken in, verified and sent; requests that are over end.

use std::time::Instant;

use arbora_kernels::Backend;

use super::Engine;
use crate::plan::Plan;
use crate::request::{FinishClass, FinishReason};
use crate::sequence::{Gone, Stage};
use crate::sequences::SequenceSlot;
use crate::step::StepAnswers;

impl<B: Backend> Engine<B> {
    /// Waits for the step in flight, if there is one, and takes its results in.
    pub(super) fn land(&mut self, clock: &dyn Fn() -> Instant) {
        let Some(mut flight) = self.flight.take() else {
            return;
        };
        let waits = clock();
        self.runner.collect(flight.step, &mut self.answers);
        flight.device_time += clock() - waits;
        if !self.runner.is_lost() {
            self.commit(&mut flight.plan, clock);
            self.scheduler.note_time(&flight.plan, flight.device_time);
            self.spare_plan = flight.plan;
        }
    }

    /// Takes the step's results in: tokens, endings, shared prefixes.
    fn commit(&mut self, plan: &mut Plan, clock: &dyn Fn() -> Instant) {
        let now = clock();
        self.now = now;
        self.shared.metrics().steps.add(1);
        let mut answers = StepAnswers::new(&mut self.answers);
        for rows in &plan.rows {
            let sequence = &mut self.scheduler.sequences[rows.slot];
            sequence.note_landing();
            sequence.n_computed = rows.first_position + rows.n_rows - rows.n_draft;
            if sequence.stage == Stage::Prefill {
                let table = sequence.table.take().expect("a planned sequence holds pages");
                sequence.table = Some(self.cache.checkpoint(table, sequence.computed()));
            }
            let its_own = answers.next(rows, sequence);
            if let Err(error) = sequence.score(its_own.scores) {
                self.ending.push((rows.slot, FinishReason::Error(error)));
                continue;
            }
            if its_own.sampled.is_empty() {
                continue;
            }
            sequence.stage = Stage::Decode;
            let stops = &self.config.model_stop_tokens;
            let (source, before) = (sequence.draft_source(), sequence.usage());
            let started = sequence.request().grammar.is_some().then(clock);
            let (n_new, mut ends) = sequence.verify(its_own.sampled, stops);
            if let Some(started) = started {
                let time = clock().saturating_duration_since(started);
                sequence.mask_time = Some(sequence.mask_time.unwrap_or_default() + time);
                plan.mask_time += time;
            }
            let metrics = self.shared.metrics();
            let usage = sequence.usage();
            metrics.generated_tokens.add(n_new);
            let n_drafted = usage.drafted_tokens - before.drafted_tokens;
            metrics.drafts[source.idx()].add(usize::from(n_drafted > 0));
            metrics.drafted_tokens[source.idx()].add(n_drafted);
            metrics.accepted_tokens[source.idx()].add(usage.accepted_tokens - before.accepted_tokens);
            sequence.note_tokens(now, n_new, metrics);
            let sent = sequence.send_scores();
            let send = |()| sequence.send_tokens(n_new, ends.as_ref(), its_own.logprobs);
            if sent.and_then(send) == Err(Gone) {
                ends = Some(FinishReason::Aborted);
            }
            self.ending.extend(ends.map(|reason| (rows.slot, reason)));
            let tenant = sequence.request().tenant;
            self.scheduler.charge_output(tenant, n_new);
        }
        drop(answers);
        self.end_all();
    }

    pub(super) fn end_all(&mut self) {
        while let Some((slot, reason)) = self.ending.pop() {
            self.end(slot, reason);
        }
    }

    /// The one way out for a sequence: what it computed stays in the tree, its pages are free or cached.
    pub(super) fn end(&mut self, slot: SequenceSlot, reason: FinishReason) {
        let mut sequence = self.scheduler.remove(slot);
        if reason.class() != FinishClass::Failed {
            self.scheduler.learn(&sequence);
        }
        let time = self.now.saturating_duration_since(sequence.request().arrived);
        let metrics = self.shared.metrics();
        metrics.count_finished(&reason, (time, sequence.n_output()));
        sequence.note_total(time);
        // The ending goes out before anything that could fail.
        sequence.end(reason);
        self.shared.leave();
        sequence.place = None;
        if let Some(table) = sequence.table.take() {
            self.cache.finish(table, sequence.computed(), sequence.n_prompt);
        }
    }
}
