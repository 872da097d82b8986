//! The forward pass of encoders.
//!
//! ```text
//! x = norm(word[id] + position[place] + type[kind])
//! for each layer:
//!     a = Wout attention(Wqkv x)              queries and keys rotated where places are told so
//!     h = norm(x + a)
//!     x = norm(h + Wdown activation(Wup h))   gated: activation(Wgate h) * Wup h
//! ```

use arbora_kernels::encoder::{EmbeddingRows, EncoderBackend, TextAttention, TextLimits};
use arbora_kernels::{BackendError, Norm, NormKind, RopeTable};

use super::config::{EncoderConfig, Positions};

/// Weight and bias of a LayerNorm.
pub(super) struct NormWeights<B: EncoderBackend> {
    pub(super) weight: B::Tensor,
    pub(super) bias: B::Tensor,
}

pub(super) struct LayerWeights<B: EncoderBackend> {
    pub(super) qkv: B::Dense,
    pub(super) attention_out: B::Dense,
    pub(super) attention_norm: NormWeights<B>,
    pub(super) up: B::Dense,
    pub(super) down: B::Dense,
    pub(super) ffn_norm: NormWeights<B>,
}

pub(super) struct EncoderWeights<B: EncoderBackend> {
    pub(super) words: B::Tensor,
    /// Absent where places are told by rotation.
    pub(super) positions: Option<B::Tensor>,
    /// Absent where tokens have no kinds.
    pub(super) types: Option<B::Tensor>,
    pub(super) embedding_norm: NormWeights<B>,
    pub(super) layers: Vec<LayerWeights<B>>,
    /// Of rotary encoders.
    pub(super) rope: Option<RopeTable>,
}

/// Sizes the memory of an encoder is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderLimits {
    /// Most rows of a pass, at least `max_text_rows`.
    pub max_rows: usize,
    /// Most rows of a text.
    pub max_text_rows: usize,
}

/// The texts of a pass, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextRows {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Kinds of the tokens.
    pub types: Vec<u32>,
    /// Place of each token in its text, from 0.
    pub places: Vec<u32>,
    /// Where each text ends.
    pub ends: Vec<usize>,
}

impl TextRows {
    /// Adds a text, which has a token.
    pub fn push(&mut self, ids: &[u32], types: &[u32]) {
        debug_assert_eq!(ids.len(), types.len(), "a kind for each token");
        self.ids.extend(ids);
        self.types.extend(types);
        self.places.extend(0..ids.len() as u32);
        self.ends.push(self.ids.len());
    }

    /// Removes all texts.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.types.clear();
        self.places.clear();
        self.ends.clear();
    }

    /// Rows of all texts.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The rows of each text.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| start..end)
    }
}

struct Workspace<B: EncoderBackend> {
    x: B::Tensor,
    h: B::Tensor,
    qkv: B::Tensor,
    attended: B::Tensor,
    delta: B::Tensor,
    /// Gate and up side by side; no rows where there is no gate.
    gate_up: B::Tensor,
    inner: B::Tensor,
    /// Places, moved by the offset of the table.
    places: Vec<u32>,
    /// The last pass's rows on the host.
    hidden: Vec<f32>,
}

/// An encoder ready to run: weights, and the memory of a pass.
pub struct Encoder<B: EncoderBackend> {
    config: EncoderConfig,
    limits: EncoderLimits,
    weights: EncoderWeights<B>,
    space: Workspace<B>,
}

impl<B: EncoderBackend> Encoder<B> {
    pub(super) fn new(
        backend: &mut B,
        config: EncoderConfig,
        weights: EncoderWeights<B>,
        limits: EncoderLimits,
    ) -> Result<Self, BackendError> {
        let rows = limits.max_rows;
        assert!(limits.max_text_rows <= rows, "{limits:?}: a text is a pass");
        let (width, ffn_width) = (config.width, config.ffn_width);
        backend.reserve_texts(TextLimits {
            max_rows: rows,
            max_text_rows: limits.max_text_rows,
            max_inputs: width.max(ffn_width),
            head_dim: config.heads.head_dim,
        })?;
        let gate_rows = if config.is_gated() { rows } else { 0 };
        let space = Workspace {
            x: backend.tensor(rows, width)?,
            h: backend.tensor(rows, width)?,
            qkv: backend.tensor(rows, config.heads.qkv_width())?,
            attended: backend.tensor(rows, width)?,
            delta: backend.tensor(rows, width)?,
            gate_up: backend.tensor(gate_rows, 2 * ffn_width)?,
            inner: backend.tensor(rows, ffn_width)?,
            places: Vec::with_capacity(rows),
            hidden: vec![0.0; rows * width],
        };
        Ok(Encoder {
            config,
            limits,
            weights,
            space,
        })
    }

    /// What it is.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// What a pass may hold.
    pub fn limits(&self) -> EncoderLimits {
        self.limits
    }

    /// The last layer's rows of all texts, `width` elements each.
    ///
    /// # Panics
    /// Where there are more rows than the limits say, a token is not in the vocabulary, or a kind is unknown.
    pub fn forward(&mut self, backend: &mut B, rows: &TextRows) -> &[f32] {
        assert!(
            rows.len() <= self.limits.max_rows,
            "{} rows in a pass",
            rows.len()
        );
        let forward = Forward {
            config: &self.config,
            weights: &self.weights,
            rows,
        };
        forward.run(backend, &mut self.space);
        let hidden = &mut self.space.hidden[..rows.len() * self.config.width];
        backend.download(&self.space.x, hidden);
        hidden
    }
}

/// What the ops of a pass read.
struct Forward<'a, B: EncoderBackend> {
    config: &'a EncoderConfig,
    weights: &'a EncoderWeights<B>,
    rows: &'a TextRows,
}

impl<B: EncoderBackend> Forward<'_, B> {
    fn run(&self, backend: &mut B, s: &mut Workspace<B>) {
        let (config, weights) = (self.config, self.weights);
        let heads = config.heads;
        let texts = TextAttention {
            heads,
            ends: &self.rows.ends,
            scale: (1.0 / (heads.head_dim as f64).sqrt()) as f32,
        };
        self.embed(backend, s);
        for layer in &weights.layers {
            backend.dense_matmul(&layer.qkv, &s.x, None, &mut s.qkv);
            if let Some(rope) = &weights.rope {
                backend.rotate_texts(&mut s.qkv, heads, rope, &self.rows.places);
            }
            backend.attend_texts(&s.qkv, &texts, &mut s.attended);
            backend.dense_matmul(&layer.attention_out, &s.attended, None, &mut s.delta);
            backend.add_norm(&mut s.x, &s.delta, &self.norm(&layer.attention_norm), &mut s.h);
            if config.is_gated() {
                backend.dense_matmul(&layer.up, &s.h, None, &mut s.gate_up);
                backend.gated(&s.gate_up, config.activation, &mut s.inner);
            } else {
                backend.dense_matmul(&layer.up, &s.h, Some(config.activation), &mut s.inner);
            }
            backend.dense_matmul(&layer.down, &s.inner, None, &mut s.delta);
            backend.add_norm(&mut s.h, &s.delta, &self.norm(&layer.ffn_norm), &mut s.x);
        }
    }

    fn embed(&self, backend: &mut B, s: &mut Workspace<B>) {
        let (weights, rows) = (self.weights, self.rows);
        let offset = match &self.config.positions {
            Positions::Learned { offset } => *offset as u32,
            Positions::Rotary(_) => 0,
        };
        s.places.clear();
        s.places.extend(rows.places.iter().map(|place| place + offset));
        let all = [
            Some((&weights.words, &rows.ids)),
            weights.types.as_ref().map(|table| (table, &rows.types)),
            weights.positions.as_ref().map(|table| (table, &s.places)),
        ];
        let all = all.into_iter().flatten();
        let tables: Vec<EmbeddingRows<'_, B::Tensor>> =
            all.map(|(table, ids)| EmbeddingRows { table, ids }).collect();
        backend.embed_sum(&tables, &mut s.h);
        backend.norm(&s.h, &self.norm(&weights.embedding_norm), &mut s.x);
    }

    fn norm<'a>(&self, weights: &'a NormWeights<B>) -> Norm<'a, B::Tensor> {
        Norm {
            kind: NormKind::Layer,
            weight: &weights.weight,
            bias: Some(&weights.bias),
            eps: self.config.norm_eps,
        }
    }
}
