//! What a decoder is, as plain data. One description for every family; which fields a family sets is a row of
//! the family table.

use arbora_kernels::{HeadLayout, RopeStyle};

/// A decoder-only transformer with pre-norm blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads, key/value heads and their size.
    pub heads: HeadLayout,
    /// Width of the gated MLP.
    pub ffn_width: usize,
    /// Tokens in the vocabulary (rows of the embedding).
    pub n_vocab: usize,
    /// Longest sequence the model was made for.
    pub context: usize,
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

/// Rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Pairing of elements.
    pub style: RopeStyle,
    /// Rotated elements per head.
    pub dim: usize,
    /// Base of the frequencies.
    pub base: f64,
}
