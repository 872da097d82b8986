//! The index arrays of one step in memory of their own, with the plan of its attention.

use super::AttentionPlan;
use crate::{BatchShape, StepRows};

/// A step's rows, as the ops read them.
pub struct CpuBatch {
    shape: BatchShape,
    pub(crate) ids: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) slots: Vec<u32>,
    pub(crate) logit_rows: Vec<u32>,
    pub(crate) attention: AttentionPlan,
}

impl CpuBatch {
    /// An empty one.
    pub(crate) fn new(shape: BatchShape) -> CpuBatch {
        CpuBatch {
            shape,
            ids: Vec::with_capacity(shape.max_rows),
            positions: Vec::with_capacity(shape.max_rows),
            slots: Vec::with_capacity(shape.max_rows),
            logit_rows: Vec::with_capacity(shape.max_logit_rows),
            attention: AttentionPlan::new(&shape),
        }
    }

    /// Replaces its rows, whose attention is cut for `n_threads`.
    pub(crate) fn fill(&mut self, rows: &StepRows<'_>, n_threads: usize) {
        rows.check(&self.shape);
        for (own, given) in [
            (&mut self.ids, rows.ids),
            (&mut self.positions, rows.positions),
            (&mut self.slots, rows.slots),
            (&mut self.logit_rows, rows.logit_rows),
        ] {
            own.clear();
            own.extend_from_slice(given);
        }
        self.attention.build(rows, n_threads);
    }
}
