//! What a decoder is, as plain data. One description for every family; which fields a family sets is a row of
//! the family table.

use arbora_kernels::{AttentionSpec, HeadLayout, RopeStyle};

/// A decoder-only transformer with pre-norm blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The blocks in order.
    pub layers: Vec<LayerConfig>,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads, key/value heads and their size.
    pub heads: HeadLayout,
    /// Width of the gated MLP.
    pub ffn_width: usize,
    /// Tokens in the vocabulary (rows of the embedding).
    pub n_vocab: usize,
    /// Longest sequence the forward pass is right for: what the model was made for, or its window.
    pub context: usize,
    /// A sliding window, shorter than what the model was made for, of which the file does not say in which
    /// layers it is. Sequences no longer than that do not need it.
    pub window: Option<usize>,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// RMSNorm on each query and key head.
    pub qk_norm: bool,
    /// The output head is the embedding.
    pub tied_head: bool,
}

/// What distinguishes one block from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    /// How queries look at keys.
    pub attention: AttentionSpec,
}

impl DecoderConfig {
    /// The sliding window of each layer.
    pub fn windows(&self) -> Vec<Option<usize>> {
        self.layers.iter().map(|layer| layer.attention.window).collect()
    }

    /// Weights of the whole model.
    pub fn n_params(&self) -> u64 {
        let HeadLayout {
            n_heads, head_dim, ..
        } = self.heads;
        let (width, qkv) = (self.width as u64, self.heads.qkv_width() as u64);
        let attended = (n_heads * head_dim) as u64;
        let norms = 2 * width + if self.qk_norm { 2 * head_dim as u64 } else { 0 };
        let bias = if self.qkv_bias { qkv } else { 0 };
        let layer = width * (qkv + attended) + 3 * width * self.ffn_width as u64 + norms + bias;
        let tables = if self.tied_head { 1 } else { 2 };
        tables * self.n_vocab as u64 * width + width + self.layers.len() as u64 * layer
    }
}

/// Rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Pairing of elements.
    pub style: RopeStyle,
    /// Rotated elements per head.
    pub dim: usize,
    /// Base of the frequencies.
    pub base: f64,
    /// How the frequencies were stretched for long contexts.
    pub scaling: RopeScaling,
}

/// What a family does to the frequencies `base^(-2i / dim)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All are divided by `factor`: positions are interpolated.
    Linear {
        /// Above 0.
        factor: f64,
    },
    /// Llama 3: wavelengths `2 pi / frequency` above `original_context / low_frequency_factor` are stretched
    /// by `factor`, those below `original_context / high_frequency_factor` not at all, those between by what
    /// lies between.
    Llama3 {
        /// Above 0.
        factor: f64,
        /// Above 0.
        low_frequency_factor: f64,
        /// Above the low one.
        high_frequency_factor: f64,
        /// Context before the stretch, in tokens.
        original_context: f64,
    },
}
