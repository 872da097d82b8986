//! The rows of the family table.

use arbora_kernels::{Activation, NormKind, QkNormSpan, RopeStyle, RouterScore};

use super::key;
use super::mixture::{self, DenseLayers, Mixture, Shared};
use super::row::{AttentionScale, EmbeddingScale, Family, Flag, LayerRopes, LogitScale, Parallel, SoftCaps};
use super::windows::Windows;
use crate::model::config::{MlpKind, NormPlacement};
use crate::model::names::{ExpertLayout, HUGGING_FACE_LAYERS, Part};

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
    mlp: MlpKind::Gated,
    mlp_bias: false,
    head_bias: false,
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
    layers: HUGGING_FACE_LAYERS,
    fused_qkv: false,
    qkv_by_group: false,
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
        parallel: Some(Parallel {
            key: "use_parallel_residual",
            default: false,
            norms: NormPlacement::Parallel,
        }),
        ..LLAMA
    },
    Family {
        // Its GGUF files do not say that it has a window.
        architecture: None,
        class: "Starcoder2ForCausalLM",
        model_type: "starcoder2",
        qkv_bias: Flag::Always,
        attention_out_bias: Flag::Always,
        mlp: MlpKind::Plain,
        mlp_bias: true,
        norm: NormKind::Layer,
        norm_bias: true,
        activation: Activation::GeluTanh,
        windows: Windows::All { default: None },
        renamed: &[(Part::Up, "mlp.c_fc"), (Part::Down, "mlp.c_proj")],
        ..LLAMA
    },
    Family {
        architecture: None,
        class: "PhiForCausalLM",
        model_type: "phi",
        partial_rotary: Some(0.5),
        qkv_bias: Flag::Always,
        attention_out_bias: Flag::Always,
        mlp: MlpKind::Plain,
        mlp_bias: true,
        head_bias: true,
        norm: NormKind::Layer,
        norm_bias: true,
        norms: NormPlacement::Parallel,
        activation: Activation::GeluTanh,
        renamed: &[
            (Part::AttentionOut, "self_attn.dense"),
            (Part::Up, "mlp.fc1"),
            (Part::Down, "mlp.fc2"),
            (Part::FinalNorm, "model.final_layernorm"),
        ],
        // Its files name code of the time before the class was in the reference implementation.
        passed_over: &["auto_map"],
        ..LLAMA
    },
    Family {
        architecture: None,
        class: "GPTNeoXForCausalLM",
        model_type: "gpt_neox",
        partial_rotary: Some(0.25),
        qkv_bias: Flag::Always,
        attention_out_bias: Flag::Always,
        mlp: MlpKind::Plain,
        mlp_bias: true,
        norm: NormKind::Layer,
        norm_bias: true,
        parallel: Some(Parallel {
            key: "use_parallel_residual",
            default: true,
            norms: NormPlacement::ParallelApart,
        }),
        activation: Activation::Gelu,
        renamed: &[
            (Part::Embedding, "gpt_neox.embed_in"),
            (Part::FinalNorm, "gpt_neox.final_layer_norm"),
            (Part::Head, "embed_out"),
            (Part::Qkv, "attention.query_key_value"),
            (Part::AttentionOut, "attention.dense"),
            (Part::Up, "mlp.dense_h_to_4h"),
            (Part::Down, "mlp.dense_4h_to_h"),
        ],
        layers: "gpt_neox.layers",
        fused_qkv: true,
        qkv_by_group: true,
        passed_over: &["attention_bias"],
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
