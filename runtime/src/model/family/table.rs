//! The rows of the family table.

use arbora_kernels::{Activation, NormKind, QkNormSpan, RopeStyle, RouterScore};

use super::mixture::{self, DenseLayers, Mixture, Shared};
use super::windows::Windows;
use super::{Key, key};
use crate::model::config::NormPlacement;
use crate::model::names::{ExpertLayout, Part};

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
    /// Whether the borders of YaRN in GGUF files, which do not say, are rounded to whole pairs.
    pub(super) gguf_yarn_whole_pairs: bool,
    /// Which layers are rotated how.
    pub(super) layer_ropes: LayerRopes,
    /// Biases on q, k and v, and on attention's output.
    pub(super) qkv_bias: Flag,
    pub(super) attention_out_bias: Flag,
    /// Whether each query head has an attention sink.
    pub(super) has_sinks: bool,
    /// The mixture of experts of its layers.
    pub(super) mixture: Option<Mixture>,
    /// RMSNorm on queries and keys, and where it is.
    pub(super) qk_norm: Option<QkNormSpan>,
    pub(super) qk_norm_if: Flag,
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
    /// And those that its GGUF files have.
    pub(super) renamed_in_gguf: &'static [(Part, &'static str)],
    /// Whether q, k and v are one matrix, gate and up another.
    pub(super) fused_qkv: bool,
    pub(super) fused_gate_up: bool,
    pub(super) expert_layout: ExpertLayout,
    /// Whether checkpoints have layers after the last that only draft tokens.
    pub(super) has_draft_layers: bool,
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
        for flag in [self.qkv_bias, self.attention_out_bias, self.qk_norm_if] {
            if let Flag::Key(json) = flag {
                keys.push(key("", json));
            }
        }
        if self.mixture.is_some() {
            keys.extend(mixture::N_EXPERTS);
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
    gguf_yarn_whole_pairs: true,
    layer_ropes: LayerRopes::One,
    qkv_bias: Flag::Never,
    attention_out_bias: Flag::Never,
    has_sinks: false,
    mixture: None,
    qk_norm: None,
    qk_norm_if: Flag::Always,
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
    renamed_in_gguf: &[],
    fused_qkv: false,
    fused_gate_up: false,
    expert_layout: ExpertLayout::RowPerOutput,
    has_draft_layers: false,
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

const GRANITE: Family = Family {
    architecture: Some("granite"),
    class: "GraniteForCausalLM",
    model_type: "granite",
    attention_scale: AttentionScale::Factor(key("attention.scale", "attention_multiplier")),
    embedding_scale: EmbeddingScale::Factor(key("embedding_scale", "embedding_multiplier")),
    residual_scale: Some(key("residual_scale", "residual_multiplier")),
    logit_scale: LogitScale::Divisor(key("logit_scale", "logits_scaling")),
    ..LLAMA
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
    // Converters write it as a llama with experts.
    Family {
        class: "MixtralForCausalLM",
        model_type: "mixtral",
        windows: Windows::All { default: None },
        mixture: Some(Mixture {
            // GGUF files with experts of this family have no other width.
            width: key("feed_forward_length", "intermediate_size"),
            is_normalized: Flag::Always,
            ..mixture::SOFTMAX
        }),
        renamed: &[
            (Part::Router, "block_sparse_moe.gate"),
            (Part::ExpertGate, "block_sparse_moe.experts.*.w1"),
            (Part::ExpertUp, "block_sparse_moe.experts.*.w3"),
            (Part::ExpertDown, "block_sparse_moe.experts.*.w2"),
        ],
        ..LLAMA
    },
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
    Family {
        architecture: Some("qwen2moe"),
        class: "Qwen2MoeForCausalLM",
        model_type: "qwen2_moe",
        gguf_rope_style: RopeStyle::Halves,
        qkv_bias: Flag::Always,
        mixture: Some(Mixture {
            is_normalized: Flag::Key("norm_topk_prob"),
            shared: Shared::Gated {
                width: key(
                    "expert_shared_feed_forward_length",
                    "shared_expert_intermediate_size",
                ),
            },
            dense: DenseLayers::ByStep,
            ..mixture::SOFTMAX
        }),
        refused: &["use_sliding_window"],
        windows: Windows::Upper,
        ..LLAMA
    },
    Family {
        architecture: Some("qwen3moe"),
        class: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        gguf_rope_style: RopeStyle::Halves,
        qk_norm: Some(QkNormSpan::EachHead),
        mixture: Some(Mixture {
            is_normalized: Flag::Key("norm_topk_prob"),
            is_normalized_in_gguf: true,
            dense: DenseLayers::ByStep,
            ..mixture::SOFTMAX
        }),
        refused: &["use_sliding_window"],
        windows: Windows::Upper,
        ..LLAMA
    },
    Family {
        architecture: Some("olmoe"),
        class: "OlmoeForCausalLM",
        model_type: "olmoe",
        gguf_rope_style: RopeStyle::Halves,
        qk_norm: Some(QkNormSpan::AllHeads),
        mixture: Some(Mixture {
            width: key("feed_forward_length", "intermediate_size"),
            is_normalized: Flag::Key("norm_topk_prob"),
            ..mixture::SOFTMAX
        }),
        ..LLAMA
    },
    Family {
        architecture: Some("gpt-oss"),
        class: "GptOssForCausalLM",
        model_type: "gpt_oss",
        gguf_rope_style: RopeStyle::Halves,
        gguf_yarn_whole_pairs: false,
        qkv_bias: Flag::Always,
        attention_out_bias: Flag::Always,
        has_sinks: true,
        mixture: Some(Mixture {
            width: key("expert_feed_forward_length", "intermediate_size"),
            is_normalized: Flag::Always,
            has_bias: true,
            ..mixture::SOFTMAX
        }),
        windows: Windows::Every {
            default: 128,
            full_every: 2,
        },
        activation: Activation::ClampedSwish,
        renamed: &[(Part::Router, "mlp.router")],
        renamed_in_gguf: &[(Part::FfnNorm, "post_attention_norm")],
        expert_layout: ExpertLayout::Interleaved,
        passed_over: &["attention_bias"],
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
    GRANITE,
    Family {
        architecture: Some("granitemoe"),
        class: "GraniteMoeForCausalLM",
        model_type: "granitemoe",
        mixture: Some(Mixture {
            width: key("feed_forward_length", "intermediate_size"),
            is_normalized: Flag::Always,
            ..mixture::SOFTMAX
        }),
        renamed: &[
            (Part::Router, "block_sparse_moe.router.layer"),
            (Part::StackedGateUp, "block_sparse_moe.input_linear"),
            (Part::StackedDown, "block_sparse_moe.output_linear"),
        ],
        ..GRANITE
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
        class: "Glm4MoeForCausalLM",
        model_type: "glm4_moe",
        partial_rotary: Some(0.5),
        qkv_bias: Flag::Key("attention_bias"),
        qk_norm: Some(QkNormSpan::EachHead),
        qk_norm_if: Flag::Key("use_qk_norm"),
        mixture: Some(Mixture {
            score: RouterScore::Sigmoid,
            has_choice_bias: true,
            is_normalized: Flag::Key("norm_topk_prob"),
            scale: Some(key("expert_weights_scale", "routed_scaling_factor")),
            shared: Shared::Experts {
                count: key("expert_shared_count", "n_shared_experts"),
            },
            dense: DenseLayers::First(key("leading_dense_block_count", "first_k_dense_replace")),
            ..mixture::SOFTMAX
        }),
        renamed: &[
            (Part::SharedGate, "mlp.shared_experts.gate_proj"),
            (Part::SharedUp, "mlp.shared_experts.up_proj"),
            (Part::SharedDown, "mlp.shared_experts.down_proj"),
        ],
        has_draft_layers: true,
        ..LLAMA
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
