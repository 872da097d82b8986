//! What the ops of encoders mean, in plain loops over f64. Weights and activations of dense layers are not
//! rounded here: how far a fast backend may be from this is what rounding them to 12 and 13 bits costs.

use super::{ReferenceBackend, ReferenceLinear, activated, rotate};
use crate::cpu::CpuTensor;
use crate::encoder::{EmbeddingRows, EncoderBackend, TextAttention, TextLimits};
use crate::{Activation, Backend, BackendError, HeadLayout, MatrixSource, RopeTable};

impl EncoderBackend for ReferenceBackend {
    type Dense = ReferenceLinear;

    fn table(&mut self, values: &[f32], width: usize) -> Result<CpuTensor, BackendError> {
        let n_rows = values.len() / width;
        assert_eq!(n_rows * width, values.len(), "numbers in rows of {width}");
        let mut table = CpuTensor::new(n_rows, width)?;
        table.output(n_rows, width).copy_from_slice(values);
        Ok(table)
    }

    fn dense(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
    ) -> Result<ReferenceLinear, BackendError> {
        self.linear(parts, bias)
    }

    fn reserve_texts(&mut self, _limits: TextLimits) -> Result<(), BackendError> {
        Ok(())
    }

    fn embed_sum(&mut self, tables: &[EmbeddingRows<'_, CpuTensor>], out: &mut CpuTensor) {
        let (n_rows, width) = (tables[0].ids.len(), out.width());
        for (row, out) in out.output(n_rows, width).chunks_exact_mut(width).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let parts = tables
                    .iter()
                    .map(|t| f64::from(t.table.row(t.ids[row] as usize)[i]));
                *out = parts.sum::<f64>() as f32;
            }
        }
    }

    fn dense_matmul(
        &mut self,
        w: &ReferenceLinear,
        x: &CpuTensor,
        activation: Option<Activation>,
        out: &mut CpuTensor,
    ) {
        self.matmul(w, x, out);
        if let Some(activation) = activation {
            for out in out.values_mut() {
                *out = activated(f64::from(*out), activation) as f32;
            }
        }
    }

    fn rotate_texts(&mut self, qkv: &mut CpuTensor, heads: HeadLayout, rope: &RopeTable, positions: &[u32]) {
        let width = heads.qkv_width();
        for (row, &position) in qkv.values_mut().chunks_exact_mut(width).zip(positions) {
            let heads_of_row = row.chunks_exact_mut(heads.head_dim);
            for head in heads_of_row.take(heads.n_heads + heads.n_kv_heads) {
                rotate(head, rope, position as usize);
            }
        }
    }

    fn attend_texts(&mut self, qkv: &CpuTensor, texts: &TextAttention<'_>, out: &mut CpuTensor) {
        let TextAttention { heads, ends, scale } = *texts;
        let HeadLayout {
            n_heads,
            n_kv_heads,
            head_dim,
        } = heads;
        let width = n_heads * head_dim;
        let out = out.output(qkv.n_rows(), width);
        let part = |row: usize, slot: usize| &qkv.row(row)[slot * head_dim..][..head_dim];
        let mut start = 0;
        for &end in ends {
            for (row, head) in (start..end).flat_map(|row| (0..n_heads).map(move |head| (row, head))) {
                let group = head / (n_heads / n_kv_heads);
                let score = |token: usize| {
                    let key = part(token, n_heads + group);
                    let products = part(row, head).iter().zip(key);
                    f64::from(scale) * products.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                };
                let scores: Vec<f64> = (start..end).map(score).collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                for element in 0..head_dim {
                    let value = |token| f64::from(part(token, n_heads + n_kv_heads + group)[element]);
                    let parts = weights.iter().zip(start..end).map(|(w, token)| w * value(token));
                    out[row * width + head * head_dim + element] = (parts.sum::<f64>() / total) as f32;
                }
            }
            start = end;
        }
    }
}
