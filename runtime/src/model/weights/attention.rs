//! Weights of queries, keys and values.

use arbora_kernels::{Backend, HeadLayout, QkNormSpan};

use super::{Matrix, SPLIT_QKV, Stacked, WeightSource};
use crate::model::decoder::QkNormWeights;
use crate::model::file::LoadError;
use crate::model::names::Part;

impl WeightSource<'_> {
    /// Queries, keys and values, whose rows may be stored by key/value head.
    pub(super) fn qkv<B: Backend>(
        &self,
        backend: &mut B,
        parts: &[Matrix],
        bias: Option<Vec<f32>>,
        buffer: &mut Vec<u8>,
    ) -> Result<B::Linear, LoadError> {
        let config = self.config;
        let heads = config.heads;
        let [fused] = parts else {
            return self.linear(backend, parts, config.width, bias.as_deref(), buffer);
        };
        if !config.tensors.qkv_by_group {
            return self.linear(backend, parts, config.width, bias.as_deref(), buffer);
        }
        let mut stored = Vec::new();
        let format = self.matrix(fused, config.width, &mut stored)?;
        let row_bytes = stored.len() / fused.n_out;
        let mut stacked = Stacked::new(config.width, buffer);
        for row in 0..fused.n_out {
            let place = place_by_group(heads, row) * row_bytes;
            stacked
                .buffer
                .extend_from_slice(&stored[place..place + row_bytes]);
        }
        stacked.push(format, fused.n_out, 0);
        let bias = bias.map(|bias| -> Vec<f32> {
            (0..fused.n_out)
                .map(|row| bias[place_by_group(heads, row)])
                .collect()
        });
        let order = self.order(parts)?;
        stacked.repack(backend, (bias.as_deref(), order.as_deref()), &fused.name)
    }

    pub(super) fn qk_norm<B: Backend>(
        &self,
        backend: &mut B,
        layer: usize,
    ) -> Result<Option<QkNormWeights<B>>, LoadError> {
        let Some(span) = self.config.qk_norm else {
            return Ok(None);
        };
        let heads = self.config.heads;
        let mut weight = |part, n_heads| {
            let width = match span {
                QkNormSpan::EachHead => heads.head_dim,
                QkNormSpan::AllHeads => n_heads * heads.head_dim,
            };
            self.norm_weight(backend, &self.config.tensors.inner(layer, part), width)
        };
        Ok(Some(QkNormWeights {
            span,
            query: weight(Part::QueryNorm, heads.n_heads)?,
            key: weight(Part::KeyNorm, heads.n_kv_heads)?,
        }))
    }

    pub(super) fn qkv_bias(&self, layer: usize, widths: [usize; 3]) -> Result<Option<Vec<f32>>, LoadError> {
        if !self.config.biases.qkv {
            return Ok(None);
        }
        let name = |part| self.config.tensors.inner_bias(layer, part);
        if self.config.tensors.fused_qkv {
            return self.vector(&name(Part::Qkv), widths.iter().sum(), 0.0).map(Some);
        }
        let mut bias = Vec::new();
        for (part, width) in SPLIT_QKV.into_iter().zip(widths) {
            bias.extend(self.vector(&name(part), width, 0.0)?);
        }
        Ok(Some(bias))
    }
}

/// Where a row of queries, keys, then values is in a matrix that has them by key/value head.
fn place_by_group(heads: HeadLayout, row: usize) -> usize {
    let group = heads.n_heads / heads.n_kv_heads;
    let (head, element) = (row / heads.head_dim, row % heads.head_dim);
    let stored_head = match head.checked_sub(heads.n_heads) {
        None => head / group * (group + 2) + head % group,
        Some(other) => {
            let (value, kv_head) = (other / heads.n_kv_heads, other % heads.n_kv_heads);
            kv_head * (group + 2) + group + value
        }
    };
    stored_head * heads.head_dim + element
}
