//! The device side of the engine: weights, keys and values, and the step in flight.
//!
//! ```text
//! launch   index arrays to the device, the forward pass is queued
//!            the host fills masks meanwhile
//! sample   the draw is queued, with the log-probabilities of what is drawn
//!            the host plans the next step meanwhile
//! collect  tokens and log-probabilities come back
//! ```
//!
//! One step is in flight at a time. Copies of pages that are asked for meanwhile are queued behind it, so the
//! host may hand out a page again before the device has read it for the last time. A device that computes at
//! once, as the CPU does, is done when `sample` returns.

use arbora_kernels::{Answers, Backend, BackendError, BatchShape, KvShape, LogprobRow, SampleRow};
use arbora_radix::PageId;

use crate::batch::ForwardBatch;
use crate::model::decoder::Decoder;

/// What bounds the steps of a runner besides its decoder's limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepBounds {
    /// Most sequences in a step.
    pub(crate) max_sequences: usize,
    /// Most pages of all their tables together.
    pub(crate) max_pages: usize,
}

/// A step that was launched and not yet collected.
#[derive(Debug)]
#[must_use = "a step in flight is collected or abandoned"]
pub(crate) struct InFlight(());

/// The one owner of a device's things.
pub(crate) struct Runner<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    kv: B::Kv,
    batch: B::Batch,
    pending: B::Pending,
}

impl<B: Backend> Runner<B> {
    /// Allocates the pool and everything else a step needs; nothing grows afterwards (contract C6).
    pub(crate) fn new(
        mut backend: B,
        decoder: Decoder<B>,
        kv: KvShape,
        bounds: StepBounds,
    ) -> Result<Self, BackendError> {
        let limits = decoder.limits();
        let shape = BatchShape {
            heads: decoder.config().heads,
            kv,
            max_rows: limits.max_rows,
            max_logit_rows: limits.max_logit_rows,
            max_sequences: bounds.max_sequences,
            max_pages: bounds.max_pages,
        };
        let batch = backend.batch(shape, &decoder.config().windows())?;
        Ok(Runner {
            batch,
            pending: backend.pending(limits.max_logit_rows)?,
            kv: backend.kv(kv)?,
            decoder,
            backend,
        })
    }

    /// Waits until this engine's next step may be computed, where several engines share the device.
    pub(crate) fn begin_step(&mut self) {
        self.backend.begin_step();
    }

    /// Lets other engines compute until the next step begins.
    pub(crate) fn rest(&mut self) {
        self.backend.rest();
    }

    /// Starts the forward pass of `batch`.
    pub(crate) fn launch(&mut self, batch: &ForwardBatch) -> InFlight {
        self.backend.upload_batch(&batch.step_rows(), &mut self.batch);
        self.decoder.forward(&mut self.backend, &mut self.kv, &self.batch);
        InFlight(())
    }

    /// Asks for a token of each row of logits of the step, and for the log-probabilities that are `wanted`.
    pub(crate) fn sample(&mut self, _step: &mut InFlight, rows: &[SampleRow<'_>], wanted: &[LogprobRow]) {
        self.backend
            .sample(self.decoder.logits(), rows, wanted, &mut self.pending);
    }

    /// Whether the step's answers are there.
    pub(crate) fn is_done(&mut self, _step: &InFlight) -> bool {
        self.backend.is_done(&self.pending)
    }

    /// Waits for the step's answers.
    pub(crate) fn collect(&mut self, _step: InFlight, answers: &mut Answers) {
        self.backend.collect(&mut self.pending, answers);
    }

    /// Whether the device is gone for good.
    pub(crate) fn is_lost(&self) -> bool {
        self.backend.is_lost()
    }

    pub(crate) fn copy_page(&mut self, from: PageId, to: PageId) {
        self.backend.copy_page(&mut self.kv, from.0, to.0);
    }

    /// Makes any later read of `page` show up in the output.
    pub(crate) fn poison_page(&mut self, page: PageId) {
        self.backend.poison_page(&mut self.kv, page.0);
    }
}
