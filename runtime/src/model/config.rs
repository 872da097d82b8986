//! What a decoder is, as plain data. One description for every family; which fields a family sets is a row of
//! the family table.

use arbora_kernels::{Activation, AttentionSpec, HeadLayout, NormKind, QkNormSpan, RopeStyle, RouterScore};

use super::names::TensorNames;

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The blocks in order.
    pub layers: Vec<LayerConfig>,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads, key/value heads and their size.
    pub heads: HeadLayout,
    /// Width of the MLPs that every row goes through.
    pub ffn_width: usize,
    /// The mixture of experts of layers that have one.
    pub experts: Option<ExpertsConfig>,
    /// Tokens in the vocabulary (rows of the embedding).
    pub n_vocab: usize,
    /// Longest sequence the forward pass is right for: what the model was made for, or its window.
    pub context: usize,
    /// A sliding window, shorter than what the model was made for, of which the file does not say in which
    /// layers it is. Sequences no longer than that do not need it.
    pub window: Option<usize>,
    /// Every norm but those of queries and keys.
    pub norm: NormConfig,
    /// Rotary embeddings that the layers choose from.
    pub ropes: Vec<RopeConfig>,
    /// Which projections have biases.
    pub biases: Biases,
    /// Whether each query head has an attention sink.
    pub has_sinks: bool,
    /// RMSNorm on queries and keys.
    pub qk_norm: Option<QkNormSpan>,
    /// Constant factors.
    pub scales: Scales,
    /// The output head is the embedding.
    pub tied_head: bool,
    /// What the tensors are called and which are stored as one.
    pub tensors: TensorNames,
}

/// What distinguishes one block from another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    /// How queries look at keys.
    pub attention: AttentionSpec,
    /// Index of its rotary embedding in [`DecoderConfig::ropes`]; absent where positions are not told (NoPE).
    pub rope: Option<usize>,
    /// What its MLP is.
    pub mlp: MlpKind,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Where the norms are.
    pub norms: NormPlacement,
}

/// What the second half of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// `down(activation(gate x) * up x)`.
    Gated,
    /// `down(activation(up x))`.
    Plain,
    /// A mixture of experts, each of them gated.
    Experts,
}

/// Which projections have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// Attention's output.
    pub attention_out: bool,
    /// The MLPs that every row goes through.
    pub mlp: bool,
    /// The output head.
    pub head: bool,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// Experts to choose from.
    pub n_experts: usize,
    /// Experts that each row chooses.
    pub n_used: usize,
    /// Width of an expert.
    pub width: usize,
    /// What the router's logits become.
    pub score: RouterScore,
    /// Whether a bias for each expert is added to the scores for the choice.
    pub has_choice_bias: bool,
    /// Whether the scores of a row's experts are divided by their sum.
    pub is_normalized: bool,
    /// Factor of the experts' weights.
    pub scale: f32,
    /// Biases of the router and of the experts' projections.
    pub has_bias: bool,
    /// Width of the expert of all rows, where there is one.
    pub shared_width: Option<usize>,
    /// Whether a logit weighs its output.
    pub has_shared_gate: bool,
}

/// Where the norms of a block are, and with them what its halves (attention, MLP) read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x += half(norm(x))` (Llama).
    Before,
    /// `x += norm(half(x))` (OLMo 2).
    After,
    /// `x += norm(half(norm(x)))` (Gemma 2).
    Around,
    /// `x += attention(norm(x)) + mlp(norm(x))`, with one norm (Command-R).
    Parallel,
    /// The same with a norm for each half (GPT-NeoX).
    ParallelApart,
}

impl NormPlacement {
    /// Norms of one block.
    pub fn n_norms(self) -> usize {
        match self {
            NormPlacement::Parallel => 1,
            NormPlacement::Before | NormPlacement::After | NormPlacement::ParallelApart => 2,
            NormPlacement::Around => 4,
        }
    }
}

/// The kind of the norms of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// RMSNorm or LayerNorm.
    pub kind: NormKind,
    /// Keeps the root above 0.
    pub eps: f32,
    /// Whether each has a bias.
    pub has_bias: bool,
    /// What is added to each stored weight, those of queries and keys included: Gemma stores weights less 1.
    pub offset: f32,
}

/// Constant factors of a model, 1 where it has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// Of the rows of the embedding.
    pub embedding: f32,
    /// Of what a half of a block adds to the residual stream.
    pub residual: f32,
    /// Of the logits.
    pub logits: f32,
    /// Soft cap of the logits after that: `cap * tanh(logit / cap)`.
    pub logit_soft_cap: Option<f32>,
}

impl Scales {
    /// No factor and no cap.
    pub const NONE: Scales = Scales {
        embedding: 1.0,
        residual: 1.0,
        logits: 1.0,
        logit_soft_cap: None,
    };
}

impl DecoderConfig {
    /// The sliding window of each layer.
    pub fn windows(&self) -> Vec<Option<usize>> {
        self.layers.iter().map(|layer| layer.attention.window).collect()
    }

    /// Weights of the whole model.
    pub fn n_params(&self) -> u64 {
        let HeadLayout {
            n_heads,
            n_kv_heads,
            head_dim,
        } = self.heads;
        let (width, qkv) = (self.width as u64, self.heads.qkv_width() as u64);
        let attended = (n_heads * head_dim) as u64;
        let norm = if self.norm.has_bias { 2 * width } else { width };
        let qk_norm = match self.qk_norm {
            None => 0,
            Some(QkNormSpan::EachHead) => 2 * head_dim,
            Some(QkNormSpan::AllHeads) => (n_heads + n_kv_heads) * head_dim,
        };
        let biases = [(self.biases.qkv, qkv), (self.biases.attention_out, width)];
        let bias: u64 = biases.iter().map(|&(has, n)| if has { n } else { 0 }).sum();
        let sinks = if self.has_sinks { n_heads as u64 } else { 0 };
        let ffn_width = self.ffn_width as u64;
        let mlp = |kind| {
            let n_up = match (kind, &self.experts) {
                (MlpKind::Experts, Some(experts)) => return experts.n_params(width),
                (MlpKind::Plain, _) => 1,
                _ => 2,
            };
            let bias = if self.biases.mlp {
                n_up * ffn_width + width
            } else {
                0
            };
            (n_up + 1) * width * ffn_width + bias
        };
        let attention = width * (qkv + attended) + qk_norm as u64 + bias + sinks;
        let layer = |layer: &LayerConfig| attention + mlp(layer.mlp) + norm * layer.norms.n_norms() as u64;
        let tables = if self.tied_head { 1 } else { 2 };
        let head_bias = if self.biases.head { self.n_vocab as u64 } else { 0 };
        tables * self.n_vocab as u64 * width + head_bias + norm + self.layers.iter().map(layer).sum::<u64>()
    }
}

impl ExpertsConfig {
    /// Weights of one layer's mixture in a model of this width.
    fn n_params(&self, width: u64) -> u64 {
        let (n, own) = (self.n_experts as u64, self.width as u64);
        let biases = if self.has_bias {
            n * (2 * own + width + 1)
        } else {
            0
        };
        let choice = if self.has_choice_bias { n } else { 0 };
        let gate = if self.has_shared_gate { width } else { 0 };
        let shared = self.shared_width.map_or(0, |shared| 3 * width * shared as u64);
        n * (3 * width * own + width) + biases + choice + gate + shared
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
    /// Factor of cosines and sines.
    pub attention_factor: f64,
}

/// What a family does to the frequencies `base^(-2i / dim)`.
#[derive(Clone, Debug, PartialEq)]
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
    /// YaRN: pairs that turn more than `fast_turns` times within `original_context` are left alone, those
    /// that turn less than `slow_turns` times are stretched by `factor`, and those between by what lies
    /// between, in the number of the pair.
    Yarn {
        /// Above 0.
        factor: f64,
        /// Above the slow ones.
        fast_turns: f64,
        /// Above 0.
        slow_turns: f64,
        /// Context before the stretch, in tokens.
        original_context: f64,
        /// Whether the borders are rounded to whole pairs.
        whole_pairs: bool,
    },
    /// LongRoPE: each pair is divided by a factor of its own. Which list it is depends on the longest
    /// sequence that is served, so that the keys of a prefix do not depend on what follows it.
    LongRope {
        /// For sequences up to `original_context`.
        short: Vec<f64>,
        /// For longer ones.
        long: Vec<f64>,
        /// Context before the stretch, in tokens.
        original_context: f64,
    },
}
