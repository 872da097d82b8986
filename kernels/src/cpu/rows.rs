//! Ops that treat every row of a batch by itself, spread over the pool.
//!
//! A row is computed by one thread in one fixed order, so neither the batch nor the threads are visible in
//! it. The variants of a table differ in speed only: all give the same bits.

use super::activation::sigmoid;
use super::logprob::logprobs_row;
use super::norm::{self, RowNorm};
use super::rope::{HeadNorms, PageWriter, RowRotation};
use super::sample::{SampleKernels, SampleSpace, sample_row};
use super::{CpuBatch, CpuKv, CpuRoutes, CpuTensor, Isa, SharedSlice, ThreadPool, activation, experts, rope};
use crate::{
    Activation, Answers, Elementwise, HeadLayout, LogprobRow, Norm, QkNormSpan, RopeStore, RopeTable,
    SampleRow, SharedExpert,
};

/// Elements that are worth a claim: a few microseconds of work.
const CLAIM_ELEMENTS: usize = 16 * 1024;

/// Residual, what is added, the norm, output.
type AddNorm = unsafe fn(&mut [f32], &[f32], &RowNorm<'_>, &mut [f32]);

/// The functions for one row. All are unsafe to call: the machine has the ISA they were chosen for.
#[derive(Clone, Copy)]
pub(crate) struct RowKernels {
    norm: unsafe fn(&[f32], &RowNorm<'_>, &mut [f32]),
    add_norm: AddNorm,
    add: unsafe fn(&mut [f32], &[f32]),
    gated: unsafe fn(&[f32], Activation, &mut [f32]),
    elementwise: unsafe fn(&mut [f32], Elementwise),
    add_scaled: unsafe fn(&mut [f32], &[f32], f32),
    rotate: unsafe fn(&mut [f32], u32, &RowRotation<'_>),
    sample: SampleKernels,
}

impl RowKernels {
    /// Those of an ISA.
    pub(crate) fn of(isa: Isa) -> RowKernels {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => RowKernels {
                norm: norm::norm_avx2,
                add_norm: norm::add_norm_avx2,
                add: norm::add_avx2,
                gated: activation::gated_avx2,
                elementwise: activation::elementwise_avx2,
                add_scaled: experts::add_scaled_avx2,
                rotate: rope::rotate_avx2,
                sample: SampleKernels::avx2(),
            },
            _ => RowKernels {
                norm: norm::norm_scalar,
                add_norm: norm::add_norm_scalar,
                add: norm::add_scalar,
                gated: activation::gated_scalar,
                elementwise: activation::elementwise_scalar,
                add_scaled: experts::add_scaled_scalar,
                rotate: rope::rotate_scalar,
                sample: SampleKernels::scalar(),
            },
        }
    }
}

fn row_norm<'a>(norm: &Norm<'a, CpuTensor>, width: usize) -> RowNorm<'a> {
    RowNorm {
        kind: norm.kind,
        weight: norm.weight.vector(width),
        bias: norm.bias.map(|bias| bias.vector(width)),
        eps: norm.eps,
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
    /// `out[r] = norm(x[r])`.
    pub(crate) fn norm(
        &self,
        pool: &mut ThreadPool,
        x: &CpuTensor,
        norm: &Norm<'_, CpuTensor>,
        out: &mut CpuTensor,
    ) {
        let width = x.width();
        let norm = row_norm(norm, width);
        let out = SharedSlice::new(out.output(x.n_rows(), width));
        pool.run(x.n_rows(), rows_per_claim(width), |_, rows| {
            for row in rows {
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe {
                    let out = out.range(elements(&(row..row + 1), width));
                    (self.norm)(x.row(row), &norm, out);
                }
            }
        });
    }

    /// `residual[r] += delta[r]`, then `out[r] = norm(residual[r])`.
    pub(crate) fn add_norm(
        &self,
        pool: &mut ThreadPool,
        residual: &mut CpuTensor,
        delta: &CpuTensor,
        norm: &Norm<'_, CpuTensor>,
        out: &mut CpuTensor,
    ) {
        let (n_rows, width) = (residual.n_rows(), residual.width());
        assert_eq!((delta.n_rows(), delta.width()), (n_rows, width), "what is added");
        let norm = row_norm(norm, width);
        let out = SharedSlice::new(out.output(n_rows, width));
        let residual = SharedSlice::new(residual.values_mut());
        pool.run(n_rows, rows_per_claim(width), |_, rows| {
            for row in rows {
                let range = elements(&(row..row + 1), width);
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe {
                    let (residual, out) = (residual.range(range.clone()), out.range(range));
                    (self.add_norm)(residual, delta.row(row), &norm, out);
                }
            }
        });
    }

    /// `residual[r] += delta[r]`.
    pub(crate) fn add(&self, pool: &mut ThreadPool, residual: &mut CpuTensor, delta: &CpuTensor) {
        let (n_rows, width) = (residual.n_rows(), residual.width());
        assert_eq!((delta.n_rows(), delta.width()), (n_rows, width), "what is added");
        let residual = SharedSlice::new(residual.values_mut());
        pool.run(n_rows, rows_per_claim(width), |_, rows| {
            for row in rows {
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe { (self.add)(residual.range(elements(&(row..row + 1), width)), delta.row(row)) };
            }
        });
    }

    /// `x[r][i] = function(x[r][i])`.
    pub(crate) fn elementwise(&self, pool: &mut ThreadPool, x: &mut CpuTensor, function: Elementwise) {
        let (n_rows, width) = (x.n_rows(), x.width());
        let x = SharedSlice::new(x.values_mut());
        pool.run(n_rows, rows_per_claim(width), |_, rows| {
            // SAFETY: every row is claimed once; the machine has the table's ISA.
            unsafe { (self.elementwise)(x.range(elements(&rows, width)), function) };
        });
    }

    /// `out[r] = activation(gate of x[r]) * up of x[r]`.
    pub(crate) fn gated(
        &self,
        pool: &mut ThreadPool,
        x: &CpuTensor,
        activation: Activation,
        out: &mut CpuTensor,
    ) {
        let width = x.width() / 2;
        assert_eq!(x.width(), 2 * width, "a gate and an up of one width");
        let out = SharedSlice::new(out.output(x.n_rows(), width));
        pool.run(x.n_rows(), rows_per_claim(2 * width), |_, rows| {
            for row in rows {
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe {
                    let out = out.range(elements(&(row..row + 1), width));
                    (self.gated)(x.row(row), activation, out);
                }
            }
        });
    }

    /// `out[r] = sum_i weight[r][i] * x[slot of r and i]`, in the order of the routes, and the shared
    /// expert's output times its weight.
    pub(crate) fn combine(
        &self,
        pool: &mut ThreadPool,
        (x, routes): (&CpuTensor, &CpuRoutes),
        shared: Option<SharedExpert<'_, CpuTensor>>,
        out: &mut CpuTensor,
    ) {
        let (n_rows, width) = (routes.n_rows(), x.width());
        assert_eq!(x.n_rows(), routes.n_slots(), "outputs of experts");
        if let Some(SharedExpert { out, gate }) = &shared {
            assert_eq!((out.n_rows(), out.width()), (n_rows, width), "a shared expert");
            let gates = gate.map_or((n_rows, 1), |gate| (gate.n_rows(), gate.width()));
            assert_eq!(gates, (n_rows, 1), "gates of a shared expert");
        }
        let out = SharedSlice::new(out.output(n_rows, width));
        let n_terms = routes.n_used() + usize::from(shared.is_some());
        pool.run(n_rows, rows_per_claim(n_terms * width), |_, rows| {
            for row in rows {
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe {
                    let out = out.range(elements(&(row..row + 1), width));
                    out.fill(0.0);
                    for (slot, weight) in routes.of_row(row) {
                        (self.add_scaled)(out, x.row(slot), weight);
                    }
                    if let Some(shared) = &shared {
                        let weight = shared.gate.map_or(1.0, |gate| sigmoid(gate.row(row)[0]));
                        (self.add_scaled)(out, shared.out.row(row), weight);
                    }
                }
            }
        });
    }

    /// Rotates queries and keys in place.
    pub(crate) fn rotate_rows(
        &self,
        pool: &mut ThreadPool,
        qkv: &mut CpuTensor,
        (heads, rope): (HeadLayout, &RopeTable),
        positions: &[u32],
    ) {
        let (n_rows, width) = (qkv.n_rows(), qkv.width());
        assert_eq!(width, heads.qkv_width(), "width of {heads:?}");
        assert_eq!(positions.len(), n_rows, "rows");
        let rotation = RowRotation {
            heads,
            rope: Some(rope),
            qk_norm: None,
        };
        let qkv = SharedSlice::new(qkv.values_mut());
        pool.run(n_rows, rows_per_claim(width), |_, rows| {
            for row in rows {
                // SAFETY: every row is claimed once; the machine has the table's ISA.
                unsafe {
                    let values = qkv.range(elements(&(row..row + 1), width));
                    (self.rotate)(values, positions[row], &rotation);
                }
            }
        });
    }

    /// Rotates queries and keys in place and writes keys and values to their slots.
    pub(crate) fn rope_store(
        &self,
        pool: &mut ThreadPool,
        qkv: &mut CpuTensor,
        (rope, store): (Option<&RopeTable>, &RopeStore<'_, CpuTensor>),
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
        let rope_dim = rope.map_or(0, |rope| rope.rope_dim);
        assert!(
            rope_dim.is_multiple_of(2) && rope_dim <= heads.head_dim,
            "{rope_dim} rotated elements of {}",
            heads.head_dim
        );
        let rotation = RowRotation {
            heads,
            rope,
            qk_norm: store.qk_norm.as_ref().map(|norm| {
                let (query_heads, key_heads) = match norm.span {
                    QkNormSpan::EachHead => (1, 1),
                    QkNormSpan::AllHeads => (heads.n_heads, heads.n_kv_heads),
                };
                HeadNorms {
                    span: norm.span,
                    query: norm.query.vector(query_heads * heads.head_dim),
                    key: norm.key.vector(key_heads * heads.head_dim),
                    eps: norm.eps,
                }
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
