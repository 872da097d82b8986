//! One forward pass for every family.
//!
//! ```text
//! x = scale embed(ids)
//! for each layer:
//!     h     = norm(x += delta)          delta of the layer before; nothing on the first
//!     qkv   = Wqkv h                    -> norm and rotate q, k; store k, v in pages
//!     a     = attention(q, pages)
//!     delta = scale norm(Wo a)
//!     h     = norm(x += delta)          halves side by side: the h before, and the deltas add up
//!     delta = scale norm(mlp(h))        Wdown (activation(Wgate h) * Wup h), or a mixture of experts
//! logits = cap(scale Whead norm((x + delta)[logit_rows]))
//! ```
//!
//! Which norms a layer has is its [`NormPlacement`]: without the one
//! before, `h` is `x`. Factors of 1 and caps that a model does not have are left out. The residual stream
//! `x` is added to in exactly one place per half-block, fused with the norm that follows.

use arbora_kernels::{
    AttentionLayer, Backend, BackendError, Elementwise, Norm, QkNorm, QkNormSpan, RopeStore,
};

use super::config::{DecoderConfig, LayerConfig, NormPlacement};
use super::mlp::{MlpSpace, MlpWeights};

/// Weights of a norm.
pub struct NormWeights<B: Backend> {
    /// Factors.
    pub weight: B::Tensor,
    /// Addends, where the family has them.
    pub bias: Option<B::Tensor>,
}

/// The norms around attention or MLP.
pub struct HalfWeights<B: Backend> {
    /// Norm of what it reads, where the layer has one.
    pub norm: Option<NormWeights<B>>,
    /// Norm of what it adds, where the layer has one.
    pub post_norm: Option<NormWeights<B>>,
}

/// Norms of queries and of keys.
pub struct QkNormWeights<B: Backend> {
    /// What one root goes over.
    pub span: QkNormSpan,
    /// Factors of queries.
    pub query: B::Tensor,
    /// Factors of keys.
    pub key: B::Tensor,
}

/// Weights of one block, in the backend's layout.
pub struct LayerWeights<B: Backend> {
    /// Fused query, key and value projections.
    pub qkv: B::Linear,
    /// Norms of queries and keys, where the family has them.
    pub qk_norm: Option<QkNormWeights<B>>,
    /// Attention sinks, where the model has them.
    pub sinks: Option<B::Tensor>,
    /// Attention's output projection.
    pub attention_out: B::Linear,
    /// Norms around attention.
    pub attention: HalfWeights<B>,
    /// The MLP.
    pub mlp: MlpWeights<B>,
    /// Norms around the MLP.
    pub ffn: HalfWeights<B>,
}

/// All weights of a decoder.
pub struct DecoderWeights<B: Backend> {
    /// Token embedding; the output head too where `head` is absent.
    pub embedding: B::Linear,
    /// The blocks in order.
    pub layers: Vec<LayerWeights<B>>,
    /// Norm before the head.
    pub final_norm: NormWeights<B>,
    /// Output head; absent where it is tied to the embedding.
    pub head: Option<B::Linear>,
    /// Rotations of every position up to the served context, as the configuration has them.
    pub ropes: Vec<B::Rope>,
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
    /// What a half adds before its norm; or the MLP's part beside attention's. No rows where neither is.
    projected: B::Tensor,
    delta: B::Tensor,
    mlp: MlpSpace<B>,
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
        let is_plain = |layer: &LayerConfig| layer.norms == NormPlacement::Before;
        let projected_rows = if config.layers.iter().all(is_plain) {
            0
        } else {
            rows
        };
        let space = Workspace {
            x: backend.tensor(rows, config.width)?,
            h: backend.tensor(rows, config.width)?,
            qkv: backend.tensor(rows, config.heads.qkv_width())?,
            attended: backend.tensor(rows, heads_width)?,
            projected: backend.tensor(projected_rows, config.width)?,
            delta: backend.tensor(rows, config.width)?,
            mlp: MlpSpace::new(backend, &config, rows)?,
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
        let (config, weights, batch) = (self.config, self.weights, self.batch);
        backend.embed(&weights.embedding, batch, &mut s.x);
        scale(backend, &mut s.x, config.scales.embedding);
        for (layer, (of, w)) in config.layers.iter().zip(&weights.layers).enumerate() {
            let delta = (layer > 0).then_some(&s.delta);
            self.enter(backend, (&mut s.x, delta), &w.attention, &mut s.h);
            let input = if w.attention.norm.is_some() { &s.h } else { &s.x };
            backend.matmul(&w.qkv, input, &mut s.qkv);
            let store = self.rope_store(layer, w);
            let rope = of.rope.map(|idx| &weights.ropes[idx]);
            backend.rope_store(&mut s.qkv, rope, &store, batch, kv);
            let attention = AttentionLayer {
                layer,
                spec: &of.attention,
                sinks: w.sinks.as_ref(),
            };
            backend.attention(&s.qkv, kv, attention, batch, &mut s.attended);
            let adds = (&mut s.projected, &mut s.delta);
            self.leave(backend, &w.attention, adds, |backend, out| {
                backend.matmul(&w.attention_out, &s.attended, out);
            });
            let parallel = [NormPlacement::Parallel, NormPlacement::ParallelApart];
            if parallel.contains(&of.norms) {
                // Without a norm of its own the MLP reads what attention did.
                self.enter(backend, (&mut s.x, None), &w.ffn, &mut s.h);
                w.mlp
                    .forward(backend, (config, of), &s.h, (&mut s.mlp, &mut s.projected));
                backend.all_reduce(&mut s.projected);
                scale(backend, &mut s.projected, config.scales.residual);
                backend.add(&mut s.delta, &s.projected);
            } else {
                self.enter(backend, (&mut s.x, Some(&s.delta)), &w.ffn, &mut s.h);
                let input = if w.ffn.norm.is_some() { &s.h } else { &s.x };
                let adds = (&mut s.projected, &mut s.delta);
                self.leave(backend, &w.ffn, adds, |backend, out| {
                    w.mlp.forward(backend, (config, of), input, (&mut s.mlp, out));
                });
            }
        }
        backend.gather(&s.x, batch, &mut s.head_x);
        backend.gather(&s.delta, batch, &mut s.head_delta);
        let norm = self.norm(&weights.final_norm);
        backend.add_norm(&mut s.head_x, &s.head_delta, &norm, &mut s.head_h);
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        backend.matmul(head, &s.head_h, &mut s.logits);
        scale(backend, &mut s.logits, config.scales.logits);
        if let Some(cap) = config.scales.logit_soft_cap {
            backend.elementwise(&mut s.logits, Elementwise::SoftCap(cap));
        }
    }

    /// Adds what the half before gave to the residual stream, and norms it into `h` where this half reads
    /// that.
    fn enter(
        &self,
        backend: &mut B,
        (x, delta): (&mut B::Tensor, Option<&B::Tensor>),
        half: &HalfWeights<B>,
        h: &mut B::Tensor,
    ) {
        let norm = half.norm.as_ref().map(|weights| self.norm(weights));
        match (delta, norm) {
            (Some(delta), Some(norm)) => backend.add_norm(x, delta, &norm, h),
            (Some(delta), None) => backend.add(x, delta),
            (None, Some(norm)) => backend.norm(x, &norm, h),
            (None, None) => {}
        }
    }

    /// What a half adds to the residual stream; `compute` writes it, but for the norm after it.
    fn leave(
        &self,
        backend: &mut B,
        half: &HalfWeights<B>,
        (projected, delta): (&mut B::Tensor, &mut B::Tensor),
        compute: impl FnOnce(&mut B, &mut B::Tensor),
    ) {
        match &half.post_norm {
            None => {
                compute(backend, delta);
                backend.all_reduce(delta);
            }
            Some(norm) => {
                compute(backend, projected);
                backend.all_reduce(projected);
                backend.norm(projected, &self.norm(norm), delta);
            }
        }
        scale(backend, delta, self.config.scales.residual);
    }

    fn rope_store<'a>(&self, layer: usize, w: &'a LayerWeights<B>) -> RopeStore<'a, B::Tensor> {
        RopeStore {
            heads: self.config.heads,
            layer,
            qk_norm: w.qk_norm.as_ref().map(|norm| QkNorm {
                span: norm.span,
                query: &norm.query,
                key: &norm.key,
                eps: self.config.norm.eps,
            }),
        }
    }

    fn norm<'a>(&self, weights: &'a NormWeights<B>) -> Norm<'a, B::Tensor> {
        Norm {
            kind: self.config.norm.kind,
            weight: &weights.weight,
            bias: weights.bias.as_ref(),
            eps: self.config.norm.eps,
        }
    }
}

/// `x *= factor`; a factor of 1 costs nothing.
fn scale<B: Backend>(backend: &mut B, x: &mut B::Tensor, factor: f32) {
    if factor != 1.0 {
        backend.elementwise(x, Elementwise::Scale(factor));
    }
}
