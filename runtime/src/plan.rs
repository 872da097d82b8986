//! What one step computes (continuous batching), and what has to be done before it.

use std::time::Duration;

use crate::cache::PageCopy;
use crate::request::RequestError;
use crate::sequences::SequenceSlot;

/// The rows of one sequence in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedRows {
    pub(crate) slot: SequenceSlot,
    pub(crate) first_position: usize,
    /// Rows of its tokens, then of its draft.
    pub(crate) n_rows: usize,
    /// The last `n_draft` of them belong to the first tokens of its draft.
    pub(crate) n_draft: usize,
    /// The rows whose logits are wanted, counted from the sequence's first row.
    pub(crate) logit_rows: std::ops::Range<usize>,
    /// Of these the first `n_scored` are for the prompt's log-probabilities; from the others a token is
    /// sampled each.
    pub(crate) n_scored: usize,
}

impl PlannedRows {
    /// Tokens that are sampled from them.
    pub(crate) fn n_sampled(&self) -> usize {
        self.logit_rows.len() - self.n_scored
    }
}

/// One step, and what has to be done before it.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<PlannedRows>,
    /// Pages to copy before any row is computed, with whose they become.
    pub(crate) copies: Vec<(SequenceSlot, PageCopy)>,
    /// Sequences whose first step this is.
    pub(crate) started: Vec<SequenceSlot>,
    /// Sequences that cannot go on.
    pub(crate) failed: Vec<(SequenceSlot, RequestError)>,
    pub(crate) n_preempted: usize,
    /// Sequences whose next token has no page, and none can be had while a step is in flight.
    pub(crate) without_page: Vec<SequenceSlot>,
    /// Rows it leaves of a step.
    pub(crate) n_rows_left: usize,
    /// Of its logit rows those for log-probabilities of prompts.
    pub(crate) n_scored: usize,
    /// Whether something has to be preempted, for which no step may be in flight.
    pub(crate) waits_for_landing: bool,
    /// Time that grammars took in this step.
    pub(crate) mask_time: Duration,
}

impl Plan {
    pub(crate) fn clear(&mut self) {
        assert!(self.copies.is_empty(), "the last step's copies were made");
        self.rows.clear();
        self.started.clear();
        self.failed.clear();
        self.n_preempted = 0;
        self.without_page.clear();
        self.waits_for_landing = false;
        self.mask_time = Duration::ZERO;
    }

    /// Tokens that will be sampled.
    pub(crate) fn n_logit_rows(&self) -> usize {
        self.rows.iter().map(|rows| rows.logit_rows.len()).sum()
    }

    /// Forgets what it holds of a cache that is thrown away.
    pub(crate) fn abandon(&mut self) {
        self.copies.drain(..).for_each(|(_, copy)| copy.abandon());
    }
}
