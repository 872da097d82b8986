//! [`EncoderBackend`] on the CPU.

mod attention;
mod dense;
mod pairs;

pub use dense::CpuDense;

use attention::TextSpace;
use dense::DenseInputs;
use pairs::DenseKernels;

use super::{CpuBackend, CpuTensor, Isa, SharedSlice};
use crate::encoder::{EmbeddingRows, EncoderBackend, TextAttention, TextLimits};
use crate::{Activation, BackendError, HeadLayout, MatrixSource, RopeTable};

/// What the ops of encoders need besides their arguments.
pub(super) struct EncoderSpace {
    kernels: DenseKernels,
    inputs: DenseInputs,
    attention: TextSpace,
}

impl EncoderSpace {
    pub(super) fn new(isa: Isa, n_threads: usize) -> EncoderSpace {
        EncoderSpace {
            kernels: DenseKernels::of(isa),
            inputs: DenseInputs::new(),
            attention: TextSpace::new(n_threads),
        }
    }
}

impl EncoderBackend for CpuBackend {
    type Dense = CpuDense;

    fn table(&mut self, values: &[f32], width: usize) -> Result<CpuTensor, BackendError> {
        assert!(
            values.len().is_multiple_of(width),
            "{} numbers in rows of {width}",
            values.len()
        );
        let n_rows = values.len() / width;
        let mut table = CpuTensor::new(n_rows, width)?;
        table.output(n_rows, width).copy_from_slice(values);
        Ok(table)
    }

    fn dense(&mut self, parts: &[MatrixSource<'_>], bias: Option<&[f32]>) -> Result<CpuDense, BackendError> {
        CpuDense::new(parts, bias, &mut self.claim.pool())
    }

    fn reserve_texts(&mut self, limits: TextLimits) -> Result<(), BackendError> {
        let TextLimits {
            max_rows,
            max_text_rows,
            max_inputs,
            head_dim,
        } = limits;
        self.encoder
            .inputs
            .reserve(max_rows, max_inputs.next_multiple_of(2))?;
        self.encoder.attention.reserve(max_text_rows, head_dim)
    }

    fn embed_sum(&mut self, tables: &[EmbeddingRows<'_, CpuTensor>], out: &mut CpuTensor) {
        let (n_rows, width) = (tables[0].ids.len(), out.width());
        let output = SharedSlice::new(out.output(n_rows, width));
        let grain = (16 * 1024 / width).max(1);
        self.claim.pool().run(n_rows, grain, |_, rows| {
            for row in rows {
                // SAFETY: each row is claimed once, and rows do not overlap.
                let target = unsafe { output.range(row * width..(row + 1) * width) };
                target.copy_from_slice(tables[0].table.row(tables[0].ids[row] as usize));
                for rows in &tables[1..] {
                    let added = rows.table.row(rows.ids[row] as usize);
                    target
                        .iter_mut()
                        .zip(added)
                        .for_each(|(sum, added)| *sum += added);
                }
            }
        });
    }

    fn dense_matmul(
        &mut self,
        w: &CpuDense,
        x: &CpuTensor,
        activation: Option<Activation>,
        out: &mut CpuTensor,
    ) {
        let space = &mut self.encoder;
        w.multiply(
            &mut self.claim.pool(),
            &space.kernels,
            &mut space.inputs,
            (x, activation),
            out,
        );
    }

    fn rotate_texts(&mut self, qkv: &mut CpuTensor, heads: HeadLayout, rope: &RopeTable, positions: &[u32]) {
        self.row_kernels
            .rotate_rows(&mut self.claim.pool(), qkv, (heads, rope), positions);
    }

    fn attend_texts(&mut self, qkv: &CpuTensor, texts: &TextAttention<'_>, out: &mut CpuTensor) {
        let kernel = attention::kernel(self.isa);
        self.encoder
            .attention
            .attend(&mut self.claim.pool(), kernel, (qkv, texts), out);
    }
}
