//! One forward pass for every family.
//!
//! ```text
//! x = embed(ids)
//! for each layer:
//!     h     = norm(x += delta)          delta of the layer before; nothing on the first
//!     qkv   = Wqkv h                    -> rotate q, k; store k, v in pages
//!     a     = attention(q, pages)
//!     delta = Wo a
//!     h     = norm(x += delta)
//!     delta = Wdown (silu(Wgate h) * Wup h)
//! logits = Whead norm((x + delta)[logit_rows])
//! ```
//!
//! The residual stream `x` is added to in exactly one place per half-block, fused with the norm that follows.

use arbora_kernels::{Backend, BackendError, RopeStore, RopeTable};

use super::config::DecoderConfig;
use crate::batch::ForwardBatch;

/// Weights of one block, in the backend's layout.
pub struct LayerWeights<B: Backend> {
    /// RMSNorm before attention.
    pub attention_norm: B::Tensor,
    /// Fused query, key and value projections.
    pub qkv: B::Linear,
    /// Per-head norms of queries and keys, where the family has them.
    pub qk_norm: Option<(B::Tensor, B::Tensor)>,
    /// Attention output projection.
    pub attention_out: B::Linear,
    /// RMSNorm before the MLP.
    pub ffn_norm: B::Tensor,
    /// Fused gate and up projections.
    pub gate_up: B::Linear,
    /// Down projection.
    pub down: B::Linear,
}

/// All weights of a decoder.
pub struct DecoderWeights<B: Backend> {
    /// Token embedding; the output head too where `head` is absent.
    pub embedding: B::Linear,
    /// The blocks in order.
    pub layers: Vec<LayerWeights<B>>,
    /// RMSNorm before the head.
    pub final_norm: B::Tensor,
    /// Output head; absent where it is tied to the embedding.
    pub head: Option<B::Linear>,
    /// Rotation of every position up to the served context.
    pub rope: RopeTable,
}

/// Sizes the activations are allocated for.
#[derive(Clone, Copy, Debug)]
pub struct ForwardLimits {
    /// Most rows in one step.
    pub max_rows: usize,
    /// Most rows whose logits are wanted in one step.
    pub max_logit_rows: usize,
}

struct Workspace<B: Backend> {
    x: B::Tensor,
    h: B::Tensor,
    qkv: B::Tensor,
    attended: B::Tensor,
    delta: B::Tensor,
    gate_up: B::Tensor,
    activated: B::Tensor,
    head_x: B::Tensor,
    head_delta: B::Tensor,
    head_h: B::Tensor,
    logits: B::Tensor,
    plan: B::AttentionPlan,
}

/// A model ready to run: weights and the activations of one step.
pub struct Decoder<B: Backend> {
    config: DecoderConfig,
    limits: ForwardLimits,
    weights: DecoderWeights<B>,
    space: Workspace<B>,
}

impl<B: Backend> Decoder<B> {
    /// Allocates every activation a step within `limits` needs; nothing grows afterwards (contract C6).
    pub fn new(
        backend: &mut B,
        config: DecoderConfig,
        weights: DecoderWeights<B>,
        limits: ForwardLimits,
    ) -> Result<Self, BackendError> {
        assert_eq!(
            weights.layers.len(),
            config.n_layers,
            "one set of weights per layer"
        );
        assert_eq!(
            weights.head.is_none(),
            config.tied_head,
            "a head of its own unless tied"
        );
        let (rows, logit_rows) = (limits.max_rows, limits.max_logit_rows);
        let heads_width = config.heads.n_heads * config.heads.head_dim;
        let space = Workspace {
            x: backend.tensor(rows, config.width)?,
            h: backend.tensor(rows, config.width)?,
            qkv: backend.tensor(rows, config.heads.qkv_width())?,
            attended: backend.tensor(rows, heads_width)?,
            delta: backend.tensor(rows, config.width)?,
            gate_up: backend.tensor(rows, 2 * config.ffn_width)?,
            activated: backend.tensor(rows, config.ffn_width)?,
            head_x: backend.tensor(logit_rows, config.width)?,
            head_delta: backend.tensor(logit_rows, config.width)?,
            head_h: backend.tensor(logit_rows, config.width)?,
            logits: backend.tensor(logit_rows, config.n_vocab)?,
            plan: B::AttentionPlan::default(),
        };
        Ok(Decoder {
            config,
            limits,
            weights,
            space,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// What a step may hold.
    pub fn limits(&self) -> ForwardLimits {
        self.limits
    }

    /// Runs `batch`, writing its keys and values to `kv`. Returns logits `[batch.logit_rows.len(), n_vocab]`.
    pub fn forward(&mut self, backend: &mut B, kv: &mut B::Kv, batch: &ForwardBatch) -> &B::Tensor {
        assert!(
            batch.n_rows() <= self.limits.max_rows,
            "{} rows in one step",
            batch.n_rows()
        );
        assert!(
            batch.logit_rows.len() <= self.limits.max_logit_rows,
            "{} logit rows",
            batch.logit_rows.len()
        );
        let heads = self.config.heads;
        let eps = self.config.norm_eps;
        let s = &mut self.space;
        backend.plan_attention(kv, heads, batch.attention_rows(), &mut s.plan);
        backend.embed(&self.weights.embedding, &batch.ids, &mut s.x);
        for (layer, w) in self.weights.layers.iter().enumerate() {
            if layer == 0 {
                backend.rms_norm(&s.x, &w.attention_norm, eps, &mut s.h);
            } else {
                backend.add_rms_norm(&mut s.x, &s.delta, &w.attention_norm, eps, &mut s.h);
            }
            backend.matmul(&w.qkv, &s.h, &mut s.qkv);
            let store = RopeStore {
                heads,
                layer,
                positions: &batch.positions,
                slots: &batch.slots,
                qk_norm: w.qk_norm.as_ref().map(|(q, k)| (q, k, eps)),
            };
            backend.rope_store(&mut s.qkv, &self.weights.rope, &store, kv);
            backend.attention(&s.qkv, kv, layer, &s.plan, &mut s.attended);
            backend.matmul(&w.attention_out, &s.attended, &mut s.delta);
            backend.add_rms_norm(&mut s.x, &s.delta, &w.ffn_norm, eps, &mut s.h);
            backend.matmul(&w.gate_up, &s.h, &mut s.gate_up);
            backend.silu_mul(&s.gate_up, &mut s.activated);
            backend.matmul(&w.down, &s.activated, &mut s.delta);
        }
        backend.gather(&s.x, &batch.logit_rows, &mut s.head_x);
        backend.gather(&s.delta, &batch.logit_rows, &mut s.head_delta);
        let final_norm = &self.weights.final_norm;
        backend.add_rms_norm(&mut s.head_x, &s.head_delta, final_norm, eps, &mut s.head_h);
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        backend.matmul(head, &s.head_h, &mut s.logits);
        &s.logits
    }
}
