//! Ops that treat every row of a batch by itself, spread over the pool.
//!
//! A row is computed by one thread in one fixed order, so neither the batch nor the threads are visible in
//! it. The variants of a table differ in speed only: all give the same bits.

use super::logprob::logprobs_row;
use super::rope::{HeadNorms, PageWriter, RowRotation};
use super::sample::{SampleKernels, SampleSpace, sample_row};
use super::{CpuBatch, CpuKv, CpuTensor, Isa, SharedSlice, ThreadPool, norm, rope, silu};
use crate::{Answers, LogprobRow, RopeStore, RopeTable, SampleRow};

/// Elements that are worth a claim: a few microseconds of work.
const CLAIM_ELEMENTS: usize = 16 * 1024;

/// Residual, what is added, weight, eps, output.
type AddRmsNorm = unsafe fn(&mut [f32], &[f32], &[f32], f32, &mut [f32]);

/// The functions for one row. All are unsafe to call: the machine has the ISA they were chosen for.
#[derive(Clone, Copy)]
pub(crate) struct RowKernels {
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    add_rms_norm: AddRmsNorm,
    silu_mul: unsafe fn(&[f32], &mut [f32]),
    rotate: unsafe fn(&mut [f32], u32, &RowRotation<'_>),
    sample: SampleKernels,
}

impl RowKernels {
    /// Those of an ISA.
    pub(crate) fn of(isa: Isa) -> RowKernels {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => RowKernels {
                rms_norm: norm::rms_norm_avx2,
                add_rms_norm: norm::add_rms_norm_avx2,
                silu_mul: silu::silu_mul_avx2,
                rotate: rope::rotate_avx2,
                sample: SampleKernels::avx2(),
            },
            _ => RowKernels {
                rms_norm: norm::rms_norm_scalar,
                add_rms_norm: norm::add_rms_norm_scalar,
                silu_mul: silu::silu_mul_scalar,
                rotate: rope::rotate_scalar,
                sample: SampleKernels::scalar(),
            },
        }
    }
}

fn rows_per_claim(width: usize) -> usize {
    (CLAIM_ELEMENTS / width.max(1)).max(1)
}

/// Shares out the rows of `values`; claimed rows are `range(rows * width)`.
fn elements(rows: &std::ops::Range<usize>, width: usize) -> std::ops::Range<usize> {
    rows.start * width..rows.end * width
}

impl RowKernels {
    /// `out[r] = rms_norm(x[r])`.
    pub(crate) fn rms_norm(
        &self,
        pool: &mut ThreadPool,
        x: &CpuTensor,
        (weight, eps): (&CpuTensor, f32),
        out: &mut CpuTensor,
    ) {
        let width = x.width();
        let weight = weight.vector(width);
        let out = SharedSlice::new(out.output(x.n_rows(), width));
        pool.run(x.n_rows(), rows_per_claim(width), |_, rows| {
            for row in rows {
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe {
                    let out = out.range(elements(&(row..row + 1), width));
                    (self.rms_norm)(x.row(row), weight, eps, out);
                }
            }
        });
    }

    /// `residual[r] += delta[r]`, then `out[r] = rms_norm(residual[r])`.
    pub(crate) fn add_rms_norm(
        &self,
        pool: &mut ThreadPool,
        residual: &mut CpuTensor,
        delta: &CpuTensor,
        (weight, eps): (&CpuTensor, f32),
        out: &mut CpuTensor,
    ) {
        let (n_rows, width) = (residual.n_rows(), residual.width());
        assert_eq!((delta.n_rows(), delta.width()), (n_rows, width), "what is added");
        let weight = weight.vector(width);
        let out = SharedSlice::new(out.output(n_rows, width));
        let residual = SharedSlice::new(residual.values_mut());
        pool.run(n_rows, rows_per_claim(width), |_, rows| {
            for row in rows {
                let range = elements(&(row..row + 1), width);
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe {
                    let (residual, out) = (residual.range(range.clone()), out.range(range));
                    (self.add_rms_norm)(residual, delta.row(row), weight, eps, out);
                }
            }
        });
    }

    /// `out[r] = silu(gate of x[r]) * up of x[r]`.
    pub(crate) fn silu_mul(&self, pool: &mut ThreadPool, x: &CpuTensor, out: &mut CpuTensor) {
        let width = x.width() / 2;
        assert_eq!(x.width(), 2 * width, "a gate and an up of one width");
        let out = SharedSlice::new(out.output(x.n_rows(), width));
        pool.run(x.n_rows(), rows_per_claim(2 * width), |_, rows| {
            for row in rows {
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe {
                    let out = out.range(elements(&(row..row + 1), width));
                    (self.silu_mul)(x.row(row), out);
                }
            }
        });
    }

    /// Rotates queries and keys in place and writes keys and values to their slots.
    pub(crate) fn rope_store(
        &self,
        pool: &mut ThreadPool,
        qkv: &mut CpuTensor,
        (rope, store): (&RopeTable, &RopeStore<'_, CpuTensor>),
        batch: &CpuBatch,
        kv: &mut CpuKv,
    ) {
        let (n_rows, width) = (qkv.n_rows(), qkv.width());
        let heads = store.heads;
        assert_eq!(width, heads.qkv_width(), "width of {heads:?}");
        assert_eq!(
            (batch.positions.len(), batch.slots.len()),
            (n_rows, n_rows),
            "rows"
        );
        assert!(
            rope.rope_dim.is_multiple_of(2) && rope.rope_dim <= heads.head_dim,
            "{} rotated elements of {}",
            rope.rope_dim,
            heads.head_dim
        );
        let rotation = RowRotation {
            heads,
            rope,
            qk_norm: store.qk_norm.map(|(query, key, eps)| HeadNorms {
                query: query.vector(heads.head_dim),
                key: key.vector(heads.head_dim),
                eps,
            }),
        };
        let pages = PageWriter::new(kv, store.layer, heads);
        let qkv = SharedSlice::new(qkv.values_mut());
        pool.run(n_rows, rows_per_claim(width), |_, rows| {
            for row in rows {
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                let values = unsafe {
                    let values = qkv.range(elements(&(row..row + 1), width));
                    (self.rotate)(values, batch.positions[row], &rotation);
                    values
                };
                pages.store(values, batch.slots[row]);
            }
        });
    }

    /// One token per row, then the log-probabilities that are wanted; `spaces` has one space per thread.
    pub(crate) fn sample(
        &self,
        pool: &mut ThreadPool,
        logits: &CpuTensor,
        (rows, wanted): (&[SampleRow<'_>], &[LogprobRow]),
        (spaces, answers): (&mut [SampleSpace], &mut Answers),
    ) {
        assert_eq!(rows.len(), logits.n_rows(), "rows of logits");
        reserve(spaces, logits.width());
        let Answers { tokens, logprobs } = answers;
        tokens.clear();
        tokens.resize(rows.len(), None);
        in_spaces(pool, (spaces, tokens), |row, space| {
            sample_row(logits.row(row), &rows[row], self.sample, space)
        });
        logprobs.clear();
        logprobs.resize(wanted.len(), None);
        in_spaces(pool, (spaces, logprobs), |idx, space| {
            let asked = &wanted[idx];
            let token = asked.token.token(tokens[asked.row])?;
            logprobs_row(logits.row(asked.row), (asked, token), self.sample, space)
        });
    }
}

fn reserve(spaces: &mut [SampleSpace], n_vocab: usize) {
    spaces.iter_mut().for_each(|space| space.reserve(n_vocab));
}

/// `out[i] = of(i)`, each in the space of the thread that claims it.
fn in_spaces<R: Send>(
    pool: &mut ThreadPool,
    (spaces, out): (&mut [SampleSpace], &mut [R]),
    of: impl Fn(usize, &mut SampleSpace) -> R + Sync,
) {
    assert_eq!(spaces.len(), pool.n_threads(), "a space per thread");
    let n_results = out.len();
    let (spaces, out) = (SharedSlice::new(spaces), SharedSlice::new(out));
    pool.run(n_results, 1, |thread_idx, claimed| {
        // SAFETY: no two calls at the same time have the same thread index.
        let space = &mut unsafe { spaces.range(thread_idx..thread_idx + 1) }[0];
        for idx in claimed {
            // SAFETY: every index is claimed once.
            let result = unsafe { out.range(idx..idx + 1) };
            result[0] = of(idx, space);
        }
    });
}

/// `out[i] = x[rows[i]]`. Copying is over before other threads would have noticed.
pub(crate) fn gather(x: &CpuTensor, rows: &[u32], out: &mut CpuTensor) {
    let width = x.width();
    let out = out.output(rows.len(), width);
    for (out, row) in out.chunks_exact_mut(width).zip(rows) {
        out.copy_from_slice(x.row(*row as usize));
    }
}
