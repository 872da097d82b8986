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

use arbora_kernels::{AttentionLayer, Backend, BackendError, RopeStore};

use super::config::DecoderConfig;

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
    pub rope: B::Rope,
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
            config.layers.len(),
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

    /// Logits of the latest pass, a row for each that was wanted.
    pub fn logits(&self) -> &B::Tensor {
        &self.space.logits
    }

    /// Runs `batch`, writing its keys and values to `kv`.
    pub fn forward(&mut self, backend: &mut B, kv: &mut B::Kv, batch: &B::Batch) {
        backend.recorded(batch, &mut |backend| {
            let forward = Forward {
                config: &self.config,
                weights: &self.weights,
                batch,
            };
            forward.run(backend, kv, &mut self.space);
        });
    }
}

/// What the ops of one forward pass read.
struct Forward<'a, B: Backend> {
    config: &'a DecoderConfig,
    weights: &'a DecoderWeights<B>,
    batch: &'a B::Batch,
}

impl<B: Backend> Forward<'_, B> {
    fn run(&self, backend: &mut B, kv: &mut B::Kv, s: &mut Workspace<B>) {
        let (weights, batch, eps) = (self.weights, self.batch, self.config.norm_eps);
        backend.embed(&weights.embedding, batch, &mut s.x);
        for (layer, w) in weights.layers.iter().enumerate() {
            if layer == 0 {
                backend.rms_norm(&s.x, &w.attention_norm, eps, &mut s.h);
            } else {
                backend.add_rms_norm(&mut s.x, &s.delta, &w.attention_norm, eps, &mut s.h);
            }
            backend.matmul(&w.qkv, &s.h, &mut s.qkv);
            let store = RopeStore {
                heads: self.config.heads,
                layer,
                qk_norm: w.qk_norm.as_ref().map(|(q, k)| (q, k, eps)),
            };
            backend.rope_store(&mut s.qkv, &weights.rope, &store, batch, kv);
            let attention = AttentionLayer {
                layer,
                spec: &self.config.layers[layer].attention,
            };
            backend.attention(&s.qkv, kv, attention, batch, &mut s.attended);
            backend.matmul(&w.attention_out, &s.attended, &mut s.delta);
            backend.all_reduce(&mut s.delta);
            backend.add_rms_norm(&mut s.x, &s.delta, &w.ffn_norm, eps, &mut s.h);
            backend.matmul(&w.gate_up, &s.h, &mut s.gate_up);
            backend.silu_mul(&s.gate_up, &mut s.activated);
            backend.matmul(&w.down, &s.activated, &mut s.delta);
            backend.all_reduce(&mut s.delta);
        }
        backend.gather(&s.x, batch, &mut s.head_x);
        backend.gather(&s.delta, batch, &mut s.head_delta);
        backend.add_rms_norm(
            &mut s.head_x,
            &s.head_delta,
            &weights.final_norm,
            eps,
            &mut s.head_h,
        );
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        backend.matmul(head, &s.head_h, &mut s.logits);
    }
}
