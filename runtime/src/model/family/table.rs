//! The rows of the family table.

use arbora_kernels::{Activation, NormKind, QkNormSpan, RopeStyle};

use super::windows::Windows;
use super::{Key, key};
use crate::model::config::NormPlacement;
use crate::model::names::Part;

/// What distinguishes one architecture from another.
pub(super) struct Family {
    /// `general.architecture` in GGUF, and the first part of its keys; absent where converters write the
    /// family under another one's name, and where its GGUF files are not read.
    pub(super) architecture: Option<&'static str>,
    /// The only name in `architectures`, and `model_type`, of `config.json`.
    pub(super) class: &'static str,
    pub(super) model_type: &'static str,
    /// Pairing of rotated elements as the GGUF converter leaves it (for llama it permutes q and k), and in
    /// checkpoints beside a `config.json`.
    pub(super) gguf_rope_style: RopeStyle,
    pub(super) json_rope_style: RopeStyle,
    /// Part of each head that is rotated where a `config.json` does not say; absent where none may say so.
    pub(super) partial_rotary: Option<f64>,
    /// Which layers are rotated how.
    pub(super) layer_ropes: LayerRopes,
    /// Biases on q, k and v.
    pub(super) qkv_bias: Flag,
    /// RMSNorm on queries and keys.
    pub(super) qk_norm: Option<QkNormSpan>,
    /// Which layers have the window of a `config.json`.
    pub(super) windows: Windows,
    /// All other norms.
    pub(super) norm: NormKind,
    pub(super) norm_bias: bool,
    /// What checkpoints beside a `config.json` store norm weights less; the GGUF converter adds it.
    pub(super) norm_offset: f32,
    pub(super) norms: NormPlacement,
    /// Key of `config.json` that makes the halves of a block parallel.
    pub(super) parallel: Option<&'static str>,
    /// Activation of the MLP where the file does not say, and the key of `config.json` that says it.
    pub(super) activation: Activation,
    pub(super) activation_key: &'static str,
    /// What `gelu` stands for there. Files of the first Gemma say it and mean the approximation.
    pub(super) gelu: Activation,
    /// Factor of products of queries and keys.
    pub(super) attention_scale: AttentionScale,
    pub(super) soft_caps: SoftCaps,
    pub(super) embedding_scale: EmbeddingScale,
    /// Factor of what a half of a block adds, where there is one.
    pub(super) residual_scale: Option<Key>,
    pub(super) logit_scale: LogitScale,
    /// Names of tensors that checkpoints beside a `config.json` have for other parts.
    pub(super) renamed: &'static [(Part, &'static str)],
    /// Whether q, k and v are one matrix, gate and up another.
    pub(super) fused_qkv: bool,
    pub(super) fused_gate_up: bool,
    /// Keys of `config.json` that are refused of this family besides those of all.
    pub(super) refused: &'static [&'static str],
    /// Keys of `config.json` that are refused of others and change nothing here.
    pub(super) passed_over: &'static [&'static str],
}

/// Something a family has always, or where its `config.json` says so.
#[derive(Clone, Copy)]
pub(super) enum Flag {
    Never,
    Always,
    /// Of `config.json`; false where the key is absent.
    Key(&'static str),
}

/// Which layers are rotated how.
#[derive(Clone, Copy)]
pub(super) enum LayerRopes {
    /// All alike.
    One,
    /// Not those where `no_rope_layers` has a 0; without that list not the last of each
    /// `no_rope_layer_interval`, which is this where it is absent.
    AllBut { every: usize },
    /// Only those with a sliding window.
    Windowed,
    /// Those with a sliding window by a base of their own, the others with the scaling.
    Two { windowed_base: f64, full_base: f64 },
}

/// Factor of products of queries and keys.
#[derive(Clone, Copy)]
pub(super) enum AttentionScale {
    /// `1 / sqrt(head_dim)`.
    HeadDim,
    /// The value of the key.
    Factor(Key),
    /// `1 / sqrt(value of the key)` in `config.json`. GGUF files have no key: `1 / sqrt(head_dim)`, or
    /// `1 / sqrt(width / n_heads)` in the model of this many layers.
    InverseRoot {
        json: &'static str,
        by_width_if_layers: usize,
    },
}

/// Soft caps of attention scores and logits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SoftCaps {
    Never,
    /// Where the file has them.
    Optional,
    /// The file must have them.
    Required,
}

/// Factor of the rows of the embedding.
#[derive(Clone, Copy)]
pub(super) enum EmbeddingScale {
    None,
    /// `sqrt(width)`, rounded as the checkpoint's weights are.
    RootOfWidth,
    /// The value of the key, 1 where it is absent.
    Factor(Key),
}

/// Factor of logits.
#[derive(Clone, Copy)]
pub(super) enum LogitScale {
    None,
    /// The value of the key, which must be there.
    Factor(Key),
    /// One divided by the value of the key, 1 where it is absent.
    Divisor(Key),
}

impl Family {
    /// Keys that are refused of families that do not know them.
    pub(super) fn reads(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        if let AttentionScale::Factor(key) = self.attention_scale {
            keys.push(key);
        }
        if let AttentionScale::InverseRoot { json, .. } = self.attention_scale {
            keys.push(key("", json));
        }
        if self.soft_caps != SoftCaps::Never {
            keys.extend([ATTENTION_CAP, LOGIT_CAP]);
        }
        if let EmbeddingScale::Factor(key) = self.embedding_scale {
            keys.push(key);
        }
        keys.extend(self.residual_scale);
        keys.extend(self.passed_over.iter().map(|json| key("", json)));
        if let LogitScale::Factor(key) | LogitScale::Divisor(key) = self.logit_scale {
            keys.push(key);
        }
        keys.extend(self.parallel.map(|json| key("", json)));
        if let Flag::Key(json) = self.qkv_bias {
            keys.push(key("", json));
        }
        if let LayerRopes::AllBut { .. } = self.layer_ropes {
            keys.extend([key("", "no_rope_layers"), key("", "no_rope_layer_interval")]);
        }
        keys
    }
}

pub(super) const ATTENTION_CAP: Key = key("attn_logit_softcapping", "attn_logit_softcapping");
pub(super) const LOGIT_CAP: Key = key("final_logit_softcapping", "final_logit_softcapping");

const LLAMA: Family = Family {
    architecture: Some("llama"),
    class: "LlamaForCausalLM",
    model_type: "llama",
    gguf_rope_style: RopeStyle::Interleaved,
    json_rope_style: RopeStyle::Halves,
    partial_rotary: None,
    layer_ropes: LayerRopes::One,
    qkv_bias: Flag::Never,
    qk_norm: None,
    windows: Windows::Unknown,
    norm: NormKind::Rms,
    norm_bias: false,
    norm_offset: 0.0,
    norms: NormPlacement::Before,
    parallel: None,
    activation: Activation::Silu,
    activation_key: "hidden_act",
    gelu: Activation::Gelu,
    attention_scale: AttentionScale::HeadDim,
    soft_caps: SoftCaps::Never,
    embedding_scale: EmbeddingScale::None,
    residual_scale: None,
    logit_scale: LogitScale::None,
    renamed: &[],
    fused_qkv: false,
    fused_gate_up: false,
    refused: &[],
    passed_over: &[],
};

const GEMMA: Family = Family {
    architecture: Some("gemma"),
    class: "GemmaForCausalLM",
    model_type: "gemma",
    gguf_rope_style: RopeStyle::Halves,
    norm_offset: 1.0,
    activation: Activation::GeluTanh,
    gelu: Activation::GeluTanh,
    embedding_scale: EmbeddingScale::RootOfWidth,
    ..LLAMA
};

const GEMMA_2: Family = Family {
    architecture: Some("gemma2"),
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    windows: Windows::Every {
        default: 4096,
        full_every: 2,
    },
    norms: NormPlacement::Around,
    activation_key: "hidden_activation",
    gelu: Activation::Gelu,
    attention_scale: AttentionScale::InverseRoot {
        json: "query_pre_attn_scalar",
        by_width_if_layers: 46,
    },
    soft_caps: SoftCaps::Required,
    renamed: &[(Part::FfnNorm, "pre_feedforward_layernorm")],
    ..GEMMA
};

const COMMAND_R: Family = Family {
    architecture: None,
    class: "CohereForCausalLM",
    model_type: "cohere",
    json_rope_style: RopeStyle::Interleaved,
    norm: NormKind::Layer,
    norms: NormPlacement::Parallel,
    logit_scale: LogitScale::Factor(key("logit_scale", "logit_scale")),
    ..LLAMA
};

const GLM: Family = Family {
    architecture: None,
    class: "GlmForCausalLM",
    model_type: "glm",
    json_rope_style: RopeStyle::Interleaved,
    partial_rotary: Some(0.5),
    qkv_bias: Flag::Key("attention_bias"),
    fused_gate_up: true,
    ..LLAMA
};

pub(super) const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        architecture: None,
        class: "MistralForCausalLM",
        model_type: "mistral",
        windows: Windows::All { default: Some(4096) },
        ..LLAMA
    },
    Family {
        architecture: Some("qwen2"),
        class: "Qwen2ForCausalLM",
        model_type: "qwen2",
        gguf_rope_style: RopeStyle::Halves,
        qkv_bias: Flag::Always,
        windows: Windows::Upper,
        ..LLAMA
    },
    Family {
        architecture: Some("qwen3"),
        class: "Qwen3ForCausalLM",
        model_type: "qwen3",
        gguf_rope_style: RopeStyle::Halves,
        qk_norm: Some(QkNormSpan::EachHead),
        windows: Windows::Upper,
        ..LLAMA
    },
    GEMMA,
    GEMMA_2,
    Family {
        architecture: Some("gemma3"),
        class: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        windows: Windows::Every {
            default: 4096,
            full_every: 6,
        },
        layer_ropes: LayerRopes::Two {
            windowed_base: 10_000.0,
            full_base: 1_000_000.0,
        },
        qk_norm: Some(QkNormSpan::EachHead),
        attention_scale: AttentionScale::InverseRoot {
            json: "query_pre_attn_scalar",
            by_width_if_layers: 62,
        },
        soft_caps: SoftCaps::Optional,
        ..GEMMA_2
    },
    Family {
        architecture: Some("granite"),
        class: "GraniteForCausalLM",
        model_type: "granite",
        attention_scale: AttentionScale::Factor(key("attention.scale", "attention_multiplier")),
        embedding_scale: EmbeddingScale::Factor(key("embedding_scale", "embedding_multiplier")),
        residual_scale: Some(key("residual_scale", "residual_multiplier")),
        logit_scale: LogitScale::Divisor(key("logit_scale", "logits_scaling")),
        ..LLAMA
    },
    Family {
        architecture: Some("olmo2"),
        class: "Olmo2ForCausalLM",
        model_type: "olmo2",
        gguf_rope_style: RopeStyle::Halves,
        qk_norm: Some(QkNormSpan::AllHeads),
        norms: NormPlacement::After,
        ..LLAMA
    },
    Family {
        architecture: Some("smollm3"),
        class: "SmolLM3ForCausalLM",
        model_type: "smollm3",
        layer_ropes: LayerRopes::AllBut { every: 4 },
        refused: &["use_sliding_window"],
        windows: Windows::Upper,
        ..LLAMA
    },
    Family {
        architecture: Some("phi3"),
        class: "Phi3ForCausalLM",
        model_type: "phi3",
        gguf_rope_style: RopeStyle::Halves,
        partial_rotary: Some(1.0),
        // Its files name code of the time before the class was in the reference implementation.
        passed_over: &["auto_map"],
        windows: Windows::All { default: None },
        fused_qkv: true,
        fused_gate_up: true,
        ..LLAMA
    },
    GLM,
    Family {
        class: "Glm4ForCausalLM",
        model_type: "glm4",
        norms: NormPlacement::Around,
        renamed: &[
            (Part::AttentionPostNorm, "post_self_attn_layernorm"),
            (Part::FfnPostNorm, "post_mlp_layernorm"),
        ],
        ..GLM
    },
    Family {
        architecture: None,
        class: "StableLmForCausalLM",
        model_type: "stablelm",
        partial_rotary: Some(0.25),
        qkv_bias: Flag::Key("use_qkv_bias"),
        norm: NormKind::Layer,
        norm_bias: true,
        parallel: Some("use_parallel_residual"),
        ..LLAMA
    },
    COMMAND_R,
    Family {
        class: "Cohere2ForCausalLM",
        model_type: "cohere2",
        windows: Windows::Every {
            default: 4096,
            full_every: 4,
        },
        layer_ropes: LayerRopes::Windowed,
        ..COMMAND_R
    },
];
