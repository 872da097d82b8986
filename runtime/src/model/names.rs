//! Names of tensors: which tensor of a checkpoint plays which part in the decoder.

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// Norm before the head.
    FinalNorm,
    /// Output head.
    Head,
    /// Norm before attention.
    AttentionNorm,
    /// Norm of what attention adds.
    AttentionPostNorm,
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// The three in one, one after the other.
    Qkv,
    /// Norm of queries.
    QueryNorm,
    /// Norm of keys.
    KeyNorm,
    /// Attention output projection.
    AttentionOut,
    /// Norm before the MLP.
    FfnNorm,
    /// Norm of what the MLP adds.
    FfnPostNorm,
    /// Gate projection.
    Gate,
    /// Up projection.
    Up,
    /// The two in one, the gate first.
    GateUp,
    /// Down projection.
    Down,
}

/// Who named the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// llama.cpp's converter.
    Gguf,
    /// Checkpoints beside a `config.json`.
    HuggingFace,
}

/// What the tensors of a checkpoint are called and which are stored as one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorNames {
    /// Who named them.
    pub naming: Naming,
    /// Names (without `weight`) of a family whose `config.json` goes with other ones.
    pub renamed: &'static [(Part, &'static str)],
    /// Whether q, k and v are one matrix.
    pub fused_qkv: bool,
    /// Whether gate and up are one matrix.
    pub fused_gate_up: bool,
}

/// The output head's name beside a `config.json`.
pub(super) const HUGGING_FACE_HEAD: &str = "lm_head.weight";

impl TensorNames {
    /// Llama's tensors.
    pub const fn plain(naming: Naming) -> TensorNames {
        TensorNames {
            naming,
            renamed: &[],
            fused_qkv: false,
            fused_gate_up: false,
        }
    }

    /// The weight of a tensor outside the blocks.
    pub(super) fn outer(&self, part: Part) -> String {
        format!("{}.weight", self.stem(part))
    }

    /// The bias beside it.
    pub(super) fn outer_bias(&self, part: Part) -> String {
        format!("{}.bias", self.stem(part))
    }

    /// The weight of a tensor of a block.
    pub(super) fn inner(&self, layer: usize, part: Part) -> String {
        self.in_layer(layer, part, "weight")
    }

    /// The bias beside it.
    pub(super) fn inner_bias(&self, layer: usize, part: Part) -> String {
        self.in_layer(layer, part, "bias")
    }

    fn in_layer(&self, layer: usize, part: Part, kind: &str) -> String {
        let layers = match self.naming {
            Naming::Gguf => "blk",
            Naming::HuggingFace => "model.layers",
        };
        format!("{layers}.{layer}.{}.{kind}", self.stem(part))
    }

    fn stem(&self, part: Part) -> &'static str {
        let (gguf, hugging_face) = match part {
            Part::Embedding => ("token_embd", "model.embed_tokens"),
            Part::FinalNorm => ("output_norm", "model.norm"),
            Part::Head => ("output", "lm_head"),
            Part::AttentionNorm => ("attn_norm", "input_layernorm"),
            Part::AttentionPostNorm => ("post_attention_norm", "post_attention_layernorm"),
            Part::Query => ("attn_q", "self_attn.q_proj"),
            Part::Key => ("attn_k", "self_attn.k_proj"),
            Part::Value => ("attn_v", "self_attn.v_proj"),
            Part::Qkv => ("attn_qkv", "self_attn.qkv_proj"),
            Part::QueryNorm => ("attn_q_norm", "self_attn.q_norm"),
            Part::KeyNorm => ("attn_k_norm", "self_attn.k_norm"),
            Part::AttentionOut => ("attn_output", "self_attn.o_proj"),
            Part::FfnNorm => ("ffn_norm", "post_attention_layernorm"),
            Part::FfnPostNorm => ("post_ffw_norm", "post_feedforward_layernorm"),
            Part::Gate => ("ffn_gate", "mlp.gate_proj"),
            Part::Up => ("ffn_up", "mlp.up_proj"),
            // The converter has no name of its own for it.
            Part::GateUp => ("ffn_up", "mlp.gate_up_proj"),
            Part::Down => ("ffn_down", "mlp.down_proj"),
        };
        match self.naming {
            Naming::Gguf => gguf,
            Naming::HuggingFace => {
                let renamed = self.renamed.iter().find(|(renamed, _)| *renamed == part);
                renamed.map_or(hugging_face, |(_, name)| name)
            }
        }
    }
}
