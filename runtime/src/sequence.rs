//! A sequence: the state of one request in the engine, its tokens, pages, draft and ending.
//!
//! ```text
//! tokens:  prompt ............ | output ........ last
//!          ^0                  ^n_prompt
//! computed: 0 .. n_computed                            keys and values exist
//!
//! n_computed <= tokens.len() - 1 between steps: the last sampled token was never fed back
//! table is Some  <=>  stage is Prefill or Decode
//! draft:    what probably follows `last`; its keys and values exist only within the step that verifies it
//! ```
//!
//! Prefill and decode differ only in how much is left to compute: rows `n_computed..tokens.len()` are due,
//! and the last of them gives the next token. A preempted sequence starts over with its output as part of
//! what is to be computed, so it goes on with the same text.

mod drafts;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbora_kernels::{Adjustment, Allowed, LogprobRow, Scored};
use arbora_radix::Namespace;
use tokio::sync::mpsc::error::TrySendError;

use crate::adjustments::Adjustments;
use crate::cache::PageTable;
use crate::draft::Drafting;
use crate::handle::Place;
use crate::metrics::Metrics;
use crate::plan::PlannedRows;
use crate::queue::Rank;
use crate::request::{
    Event, FinishReason, Finished, NewTokens, Request, RequestError, RequestId, RowLogprobs, Usage,
};
use crate::sequences::{SequenceSlot, Slots};
use crate::stop::TextStream;
use crate::token_bytes::TokenBytes;

/// Where a sequence stands. An ended one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Holds nothing.
    Waiting,
    /// Holds pages; more than one token may be left to compute.
    Prefill,
    /// Holds pages; one token is left to compute.
    Decode,
}

/// The owner of a request no longer listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// A waiting sequence lets another compute their common prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Following {
    pub(crate) leader: SequenceSlot,
    pub(crate) leader_id: RequestId,
    /// Tokens the leader must have computed.
    pub(crate) n_tokens: usize,
}

/// What the step in flight will have done to a sequence, as far as that is certain.
#[derive(Clone, Copy, Debug)]
struct Ahead {
    n_computed: usize,
    n_scored: usize,
    /// Whether a token is sampled. Drafts may make it more.
    gives_token: bool,
}

pub(crate) struct Sequence {
    request: Request,
    /// Prompt and output.
    pub(crate) tokens: Vec<u32>,
    pub(crate) n_prompt: usize,
    pub(crate) n_computed: usize,
    pub(crate) stage: Stage,
    pub(crate) table: Option<PageTable>,
    /// Absent where no step in flight has rows of it.
    ahead: Option<Ahead>,
    pub(crate) following: Option<Following>,
    /// How often it has followed: bounded, so that a chain of leaders cannot hold it back for ever.
    pub(crate) n_follows: usize,
    /// Tokens the tree held for it at `matched_generation`.
    pub(crate) n_matched: usize,
    pub(crate) matched_generation: Option<u64>,
    /// Its place among the waiting while it is in the queue.
    pub(crate) rank: Option<Rank>,
    /// How many were accepted before it.
    pub(crate) number: u64,
    /// The step that computed rows of it latest.
    pub(crate) latest_step: u64,
    /// The step in which it was admitted latest.
    pub(crate) admitted_step: u64,
    /// What its grammar takes in a step, from the latest ones; absent before the first.
    pub(crate) mask_time: Option<Duration>,
    /// Its place among the waiting that `submit` bounds; none once it has started.
    pub(crate) place: Option<Place>,
    usage: Usage,
    /// When its newest tokens came.
    latest_token: Option<Instant>,
    /// Tokens proposed to come next, each allowed by the grammar if there is one.
    pub(crate) draft: Vec<u32>,
    drafting: Drafting,
    adjustments: Option<Adjustments>,
    /// Log-probabilities of the prompt so far, where they are wanted and not yet sent.
    scores: Option<Vec<RowLogprobs>>,
    text: TextStream,
    span: tracing::Span,
    ended: bool,
}

impl Sequence {
    /// `model_stops` end an output unless the request says otherwise, and `spelling` is that of its text.
    pub(crate) fn new(
        mut request: Request,
        number: u64,
        model_stops: &[u32],
        spelling: &Arc<TokenBytes>,
    ) -> Self {
        let mut tokens = std::mem::take(&mut request.prompt);
        let n_prompt = tokens.len();
        tokens.reserve_exact(request.max_tokens);
        let draft = request
            .grammar
            .as_mut()
            .map_or_else(Vec::new, |grammar| grammar.draft(&[]));
        let stop = &request.stop;
        let spelling = request.spelling.as_ref().unwrap_or(spelling);
        let text = TextStream::new(Arc::clone(spelling), &stop.strings, stop.min_tokens);
        let mut ending = stop.token_ids.clone();
        if heeds_eos(&request) {
            ending.extend_from_slice(model_stops);
        }
        Sequence {
            adjustments: Adjustments::new(&request, &tokens, ending),
            scores: request.logprobs.prompt.map(|_| Vec::new()),
            text,
            n_prompt,
            n_computed: 0,
            stage: Stage::Waiting,
            table: None,
            ahead: None,
            following: None,
            n_follows: 0,
            n_matched: 0,
            matched_generation: None,
            rank: None,
            number,
            latest_step: 0,
            admitted_step: 0,
            mask_time: None,
            place: None,
            usage: Usage {
                prompt_tokens: n_prompt,
                ..Usage::default()
            },
            latest_token: None,
            span: tracing::info_span!("request", id = request.id.0),
            ended: false,
            drafting: Drafting::new(),
            draft,
            tokens,
            request,
        }
    }

    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.request.namespace
    }

    pub(crate) fn n_output(&self) -> usize {
        self.tokens.len() - self.n_prompt
    }

    /// Output tokens it may still produce.
    pub(crate) fn n_output_left(&self) -> usize {
        self.request.max_tokens - self.n_output()
    }

    /// Notes that a step with `rows` of it was launched.
    pub(crate) fn note_launch(&mut self, rows: &PlannedRows) {
        self.ahead = Some(Ahead {
            n_computed: rows.first_position + rows.n_rows - rows.n_draft,
            n_scored: rows.n_scored,
            gives_token: rows.n_sampled() > 0,
        });
    }

    /// Notes that its step is no longer in flight.
    pub(crate) fn note_landing(&mut self) {
        self.ahead = None;
    }

    fn gives_token(&self) -> bool {
        self.ahead.is_some_and(|ahead| ahead.gives_token)
    }

    /// Tokens it will have for the next step.
    pub(crate) fn next_len(&self) -> usize {
        self.tokens.len() + usize::from(self.gives_token())
    }

    /// Of these the ones whose keys and values will exist.
    pub(crate) fn next_computed(&self) -> usize {
        self.ahead.map_or(self.n_computed, |ahead| ahead.n_computed)
    }

    /// Whether rows of its prompt, or of what it lost by preemption, are due in the next step.
    pub(crate) fn will_prefill(&self) -> bool {
        self.stage == Stage::Prefill && !self.gives_token()
    }

    /// Whether its next token is due in the next step, as far as is known: the step in flight may end it.
    pub(crate) fn will_decode(&self) -> bool {
        match self.stage {
            Stage::Waiting => false,
            Stage::Prefill | Stage::Decode if self.gives_token() => self.n_output_left() > 1,
            Stage::Prefill => false,
            Stage::Decode => true,
        }
    }

    /// Rows due in the next step.
    pub(crate) fn n_uncomputed(&self) -> usize {
        self.next_len() - self.next_computed()
    }

    pub(crate) fn computed(&self) -> &[u32] {
        &self.tokens[..self.n_computed]
    }

    /// Tokens of which cached keys and values are as good as computed ones: those whose rows nobody wants.
    pub(crate) fn max_cached(&self) -> usize {
        let n_ahead = self.ahead.map_or(0, |ahead| ahead.n_scored);
        let scores = self.scores.as_ref();
        scores.map_or(usize::MAX, |scores| scores.len() + n_ahead)
    }

    /// Of the next `n_rows` rows, those whose log-probabilities are wanted.
    pub(crate) fn rows_to_score(&self, n_rows: usize) -> Range<usize> {
        let n_computed = self.next_computed();
        let first = self.max_cached().max(n_computed);
        let end = (n_computed + n_rows).min(self.n_prompt - 1);
        if first < end {
            first - n_computed..end - n_computed
        } else {
            0..0
        }
    }

    /// Takes the log-probabilities of the next tokens of the prompt in.
    pub(crate) fn score(&mut self, rows: Vec<Option<RowLogprobs>>) -> Result<(), RequestError> {
        let Some(scores) = &mut self.scores else {
            assert!(rows.is_empty(), "nobody wants the prompt's log-probabilities");
            return Ok(());
        };
        for row in rows {
            let position = scores.len();
            scores.push(row.ok_or(RequestError::NotFinite { position })?);
        }
        Ok(())
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// What ends it from outside, if anything does.
    pub(crate) fn ending_due(&self, now: Instant) -> Option<FinishReason> {
        if self.request.events.is_closed() {
            return Some(FinishReason::Aborted);
        }
        let waited = now.saturating_duration_since(self.request.arrived);
        let passed = |limit: Option<Duration>| limit.is_some_and(|limit| waited >= limit);
        if passed(self.request.total_timeout) {
            return Some(FinishReason::Deadline);
        }
        let never_ran = self.stage == Stage::Waiting && self.usage.n_preemptions == 0;
        (never_ran && passed(self.request.queue_timeout)).then_some(FinishReason::QueueDeadline)
    }

    /// Becomes a running sequence with `n_cached` tokens computed. True where it is its first time.
    pub(crate) fn admit(&mut self, table: PageTable, n_cached: usize, n_copied: usize) -> bool {
        assert!(self.table.is_none(), "a waiting sequence holds no pages");
        assert!(n_cached < self.tokens.len(), "one token is always computed");
        self.table = Some(table);
        self.stage = Stage::Prefill;
        self.n_computed = n_cached;
        let is_first = self.usage.n_preemptions == 0;
        if is_first {
            self.usage.cached_tokens = n_cached;
            self.usage.copied_tokens = n_copied;
        }
        is_first
    }

    /// Gives its pages up; what it computed is nobody's until the caller has put `table` into the tree.
    pub(crate) fn preempt(&mut self) -> PageTable {
        self.stage = Stage::Waiting;
        self.matched_generation = None;
        self.usage.n_preemptions += 1;
        self.table.take().expect("a running sequence holds pages")
    }

    /// Its grammar took `time` to fill the masks of a step. A state that took long is seldom alone, so this
    /// is forgotten slowly.
    pub(crate) fn note_mask_time(&mut self, time: Duration) {
        self.mask_time = Some(time.max(self.mask_time.unwrap_or_default() / 2));
    }

    /// Notes the start of its first step and returns the time it waited.
    pub(crate) fn start(&mut self, now: Instant) -> Duration {
        let waited = now.saturating_duration_since(self.request.arrived);
        self.usage.queue_us = whole_micros(waited);
        if let Some(progress) = &self.request.progress {
            progress.note_start(self.usage.queue_us);
        }
        waited
    }

    /// Appends a sampled token and tells what it ends.
    fn push(&mut self, token: u32, model_stops: &[u32]) -> Option<FinishReason> {
        self.tokens.push(token);
        self.usage.completion_tokens += 1;
        if let Some(adjustments) = &mut self.adjustments {
            adjustments.push(token);
        }
        if let Some(thoughts) = &mut self.request.thoughts {
            thoughts.advance(token);
        }
        let stop = &self.request.stop;
        let is_model_stop = heeds_eos(&self.request) && model_stops.contains(&token);
        if is_model_stop || stop.token_ids.contains(&token) {
            return Some(FinishReason::StopToken(token));
        }
        let mut is_complete = false;
        if let Some(grammar) = &mut self.request.grammar {
            if let Err(error) = grammar.advance(token) {
                return Some(FinishReason::Error(error.into()));
            }
            is_complete = grammar.is_complete();
        }
        self.text.push(token);
        if let Some(idx) = self.text.stopped() {
            return Some(FinishReason::StopString(idx));
        }
        if is_complete {
            return Some(FinishReason::Complete);
        }
        (self.n_output_left() == 0).then_some(FinishReason::Length)
    }

    /// Prepares masks and adjustments of this step's rows, drafts included.
    pub(crate) fn prepare_rows(&mut self, n_draft: usize) {
        let draft = &self.draft[..n_draft];
        if let Some(adjustments) = &mut self.adjustments {
            adjustments.fill(draft);
        }
        if let Some(thoughts) = &mut self.request.thoughts {
            thoughts.fill(draft);
        }
        if let Some(grammar) = &mut self.request.grammar {
            grammar.fill_masks(draft);
        }
    }

    /// The temperature of row `idx` of those that were prepared.
    pub(crate) fn temperature(&self, idx: usize) -> f32 {
        let grammar = self.request.grammar.as_ref();
        let asked = grammar.and_then(|grammar| grammar.temperature(idx));
        asked.unwrap_or(self.request.sampling.temperature)
    }

    /// What may come in row `idx` of those that were prepared, and how its logits change.
    pub(crate) fn restrictions(&self, idx: usize) -> (Allowed<'_>, &[Adjustment]) {
        let thoughts = self.request.thoughts.as_ref();
        if let Some(forced) = thoughts.and_then(|thoughts| thoughts.forced(idx)) {
            // Nothing can make the only token there is less likely.
            return (forced, &[]);
        }
        let allowed = match &self.request.grammar {
            Some(grammar) => grammar.allowed(idx),
            None => Allowed::All,
        };
        let adjustments = self.adjustments.as_ref();
        (
            allowed,
            adjustments.map_or(&[], |adjustments| adjustments.row(idx)),
        )
    }

    /// The log-probabilities wanted of a step whose logits begin at row `first_row` for this sequence: of
    /// `n_scored` prompt tokens, then of the `n_sampled` that are drawn.
    pub(crate) fn logprob_rows(
        &self,
        first_row: usize,
        (n_scored, n_sampled): (usize, usize),
        out: &mut Vec<LogprobRow>,
    ) {
        let wanted = &self.request.logprobs;
        if let Some(n_top) = wanted.prompt {
            let first = self.max_cached().min(self.n_prompt - 1) + 1;
            let tokens = self.tokens[first..].iter().take(n_scored).enumerate();
            out.extend(tokens.map(|(idx, &token)| LogprobRow {
                row: first_row + idx,
                token: Scored::Token(token),
                n_top,
                listed: Arc::clone(&wanted.listed),
            }));
        }
        if let Some(n_top) = wanted.output {
            out.extend((0..n_sampled).map(|idx| LogprobRow {
                row: first_row + n_scored + idx,
                token: Scored::Drawn,
                n_top,
                listed: Arc::clone(&wanted.listed),
            }));
        }
    }

    /// Notes when its newest `n` tokens came. Those of its first step came together: they say nothing about
    /// the time between tokens.
    pub(crate) fn note_tokens(&mut self, now: Instant, n: usize, metrics: &Metrics) {
        if n == 0 {
            return;
        }
        match self.latest_token.replace(now) {
            None => {
                let time = now.saturating_duration_since(self.request.arrived);
                self.usage.ttft_us = whole_micros(time);
                if let Some(progress) = &self.request.progress {
                    progress.note_first_token(self.usage.ttft_us);
                }
                metrics.time_to_first_token.record(time);
            }
            Some(before) => {
                let time = now.saturating_duration_since(before) / n as u32;
                metrics.inter_token_time.record_each(time, n);
            }
        }
    }

    /// Sends the log-probabilities of the prompt, if they are wanted and were not sent before.
    pub(crate) fn send_scores(&mut self) -> Result<(), Gone> {
        match self.scores.take() {
            Some(scores) => self.send(Event::Prompt(scores)),
            None => Ok(()),
        }
    }

    /// Sends the newest `n` tokens, which end as `ends` says, with their log-probabilities if those are
    /// wanted.
    pub(crate) fn send_tokens(
        &mut self,
        n: usize,
        ends: Option<&FinishReason>,
        mut logprobs: Vec<RowLogprobs>,
    ) -> Result<(), Gone> {
        if n == 0 {
            return Ok(());
        }
        logprobs.truncate(n);
        let tokens = NewTokens {
            ids: self.tokens[self.tokens.len() - n..].to_vec(),
            ends_with_stop: matches!(ends, Some(FinishReason::StopToken(_))),
            text: self.text.take(),
            logprobs,
        };
        self.send(Event::Tokens(tokens))
    }

    fn send(&mut self, event: Event) -> Result<(), Gone> {
        match self.request.events.try_send(event) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(Gone),
            Err(TrySendError::Full(_)) => panic!("the event channel holds the whole output"),
        }
    }

    /// Notes how long it took from its arrival.
    pub(crate) fn note_total(&mut self, time: Duration) {
        self.usage.total_us = whole_micros(time);
    }

    /// Sends the one ending. The flag goes first: whatever happens later, there is no second.
    pub(crate) fn end(&mut self, reason: FinishReason) {
        assert!(!self.ended, "one ending per request");
        self.ended = true;
        let usage = self.usage;
        tracing::info!(
            parent: &self.span,
            prompt = usage.prompt_tokens,
            cached = usage.cached_tokens,
            output = usage.completion_tokens,
            preemptions = usage.n_preemptions,
            queue_ms = usage.queue_us / 1000,
            ttft_ms = usage.ttft_us / 1000,
            ?reason,
            "request ended"
        );
        let text = self.text.finish();
        let finished = Finished { reason, text, usage };
        // Fails only where the owner is gone, which is no loss.
        drop(self.request.events.try_send(Event::Finished(finished)));
    }
}

/// The end of a text that must follow a grammar is not a matter of choice.
fn heeds_eos(request: &Request) -> bool {
    !request.stop.ignore_eos || request.grammar.is_some()
}

impl Drop for Sequence {
    fn drop(&mut self) {
        if !self.ended {
            self.end(FinishReason::Error(RequestError::EngineFailed));
        }
    }
}

/// All sequences of the engine. They stay where they are from acceptance to ending, so that a panic in the
/// middle of a step loses none.
pub(crate) type Sequences = Slots<Sequence>;

fn whole_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
