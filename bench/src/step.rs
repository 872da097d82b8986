//! Batches for kernel benches: index arrays of a step whose rows are given by their slots.

use arbora_kernels::cpu::{CpuBackend, CpuBatch};
use arbora_kernels::{Backend, BackendError, BatchShape, HeadLayout, KvShape, SequenceRows, StepRows};

/// A batch of `sequences` with these page tables; row `r` is token 0 at position `positions[r]` and goes to
/// slot `slots[r]`.
pub(crate) fn batch(
    backend: &mut CpuBackend,
    (heads, kv): (HeadLayout, KvShape),
    (positions, slots): (&[u32], &[u32]),
    (sequences, page_tables): (&[SequenceRows], &[u32]),
) -> Result<CpuBatch, BackendError> {
    let shape = BatchShape {
        heads,
        kv,
        max_rows: positions.len(),
        max_logit_rows: 0,
        max_sequences: sequences.len(),
        max_pages: page_tables.len(),
    };
    let mut batch = backend.batch(shape, &[None])?;
    let rows = StepRows {
        ids: &vec![0; positions.len()],
        positions,
        slots,
        logit_rows: &[],
        sequences,
        page_tables,
    };
    backend.upload_batch(&rows, &mut batch);
    Ok(batch)
}

/// The same of one sequence whose pages do not matter.
pub(crate) fn batch_of_rows(
    backend: &mut CpuBackend,
    (heads, kv): (HeadLayout, KvShape),
    (positions, slots): (&[u32], &[u32]),
) -> Result<CpuBatch, BackendError> {
    let n_rows = positions.len();
    let sequence = SequenceRows {
        first_row: 0,
        n_rows,
        first_position: 0,
        first_page: 0,
        n_pages: n_rows.div_ceil(kv.page_size),
    };
    let page_table = vec![0; sequence.n_pages];
    batch(
        backend,
        (heads, kv),
        (positions, slots),
        (&[sequence], &page_table),
    )
}
