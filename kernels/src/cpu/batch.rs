//! The index arrays of one step in memory of their own, with the plans of its attention.

use super::AttentionPlan;
use crate::{BatchShape, StepRows};

/// A step's rows, as the ops read them.
pub struct CpuBatch {
    shape: BatchShape,
    pub(crate) ids: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) slots: Vec<u32>,
    pub(crate) logit_rows: Vec<u32>,
    /// For each window of the layers.
    attention: Vec<(Option<usize>, AttentionPlan)>,
}

impl CpuBatch {
    /// An empty one for layers with these windows.
    pub(crate) fn new(shape: BatchShape, windows: &[Option<usize>]) -> CpuBatch {
        let mut windows = windows.to_vec();
        windows.sort_unstable();
        windows.dedup();
        let attention = windows
            .into_iter()
            .map(|window| (window, AttentionPlan::new(&shape, window)));
        CpuBatch {
            shape,
            ids: Vec::with_capacity(shape.max_rows),
            positions: Vec::with_capacity(shape.max_rows),
            slots: Vec::with_capacity(shape.max_rows),
            logit_rows: Vec::with_capacity(shape.max_logit_rows),
            attention: attention.collect(),
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
        for (_, plan) in &mut self.attention {
            plan.build(rows, n_threads);
        }
    }

    /// The plan of layers with this window.
    ///
    /// # Panics
    /// When the batch was not made for it.
    pub(crate) fn attention(&self, window: Option<usize>) -> &AttentionPlan {
        let plan = self.attention.iter().find(|(of, _)| *of == window);
        let (_, plan) = plan.unwrap_or_else(|| panic!("the batch was not made for a window of {window:?}"));
        plan
    }
}
