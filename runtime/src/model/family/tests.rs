//! What files say and what becomes of it.

use arbora_kernels::{Activation, QkNormSpan, RopeStyle};

use super::*;
use crate::model::config::RopeScaling;
use crate::model::metadata::Value;
use crate::model::testing::GgufWriter;

fn tiny_llama() -> Gguf {
    let bytes = GgufWriter::tiny_llama().bytes();
    Gguf::read(&bytes[..], bytes.len() as u64).expect("a good file")
}

fn with(key: &str, value: Value) -> Result<DecoderConfig, LoadError> {
    let mut gguf = tiny_llama();
    gguf.metadata = std::mem::take(&mut gguf.metadata).with(key, value);
    DecoderConfig::from_gguf(&gguf)
}

#[test]
fn a_llama_is_described_as_its_keys_say() {
    let config = DecoderConfig::from_gguf(&tiny_llama()).expect("a good file");
    let heads = HeadLayout {
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
    };
    assert_eq!((config.layers.len(), config.width, config.ffn_width), (2, 32, 64));
    assert_eq!((config.heads, config.n_vocab, config.context), (heads, 100, 128));
    assert_eq!((config.ropes[0].dim, config.ropes[0].base), (8, 10_000.0));
    assert_eq!(config.ropes[0].style, RopeStyle::Interleaved);
    assert!(config.tied_head && !config.biases.qkv && config.qk_norm.is_none());
    let config = with("llama.rope.dimension_count", Value::Unsigned(4)).expect("part of a head");
    assert_eq!(config.ropes[0].dim, 4);
}

#[test]
fn numbers_out_of_range_are_refused_with_key_value_and_limit() {
    let cases = [
        (
            "llama.block_count",
            0,
            "`llama.block_count` = 0: must be 1 to 1024",
        ),
        ("llama.block_count", 1025, "= 1025: must be 1 to 1024"),
        ("llama.embedding_length", u64::MAX, "must be 1 to 65536"),
        ("llama.embedding_length", 30, "a multiple of 4 heads"),
        ("llama.attention.head_count", 0, "must be 1 to 1024"),
        (
            "llama.attention.head_count_kv",
            3,
            "= 3: must be a divisor of 4 heads",
        ),
        (
            "llama.attention.key_length",
            7,
            "`llama.attention.key_length` = 7: must be even",
        ),
        (
            "llama.attention.value_length",
            16,
            "= 16: must be the key length, 8",
        ),
        ("llama.feed_forward_length", 0, "must be 1 to"),
        ("llama.context_length", 0, "must be 1 to"),
        ("llama.rope.dimension_count", 3, "= 3: must be even"),
        ("llama.rope.dimension_count", 10, "= 10: must be 1 to 8"),
        ("llama.rope.freq_base", 1, "above 1"),
        (
            "llama.vocab_size",
            99,
            "= 99: must be the 100 rows of the embedding",
        ),
        ("llama.expert_count", 8, "`llama.expert_used_count` is missing"),
    ];
    for (key, value, expected) in cases {
        let error = with(key, Value::Unsigned(value)).expect_err(key).to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    for eps in [0.0, -1.0, 1.0, f64::NAN] {
        with("llama.attention.layer_norm_rms_epsilon", Value::Float(eps)).expect_err("no epsilon");
    }
    for base in [f64::NAN, f64::INFINITY, 0.0, -5.0] {
        with("llama.rope.freq_base", Value::Float(base)).expect_err("no base");
    }
}

#[test]
fn what_the_decoder_does_not_do_is_refused_by_name() {
    let error = |result: Result<DecoderConfig, LoadError>| result.expect_err("refused").to_string();
    let scaling = with("llama.rope.scaling.type", Value::Text("longrope".to_owned()));
    assert_eq!(
        error(scaling),
        "`llama.rope.scaling.type` = longrope is not supported"
    );
    let scale = with("llama.attention.scale", Value::Float(0.1));
    assert_eq!(error(scale), "`llama.attention.scale` is not supported");
    let other = with("general.architecture", Value::Text("mamba".to_owned()));
    assert_eq!(
        error(other),
        "architecture `mamba` is not supported (supported: llama, qwen2, qwen3, qwen2moe, qwen3moe, \
         olmoe, gpt-oss, gemma, gemma2, gemma3, granite, granitemoe, olmo2, smollm3, phi3)"
    );
    let wrong = with("llama.block_count", Value::Text("two".to_owned()));
    assert!(error(wrong).contains("should be an unsigned integer, found a string"));
    with("llama.expert_count", Value::Unsigned(0)).expect("no experts");
    with("llama.rope.scaling.type", Value::Text("none".to_owned())).expect("no scaling");
}
fn json_with(changes: &str) -> Result<DecoderConfig, LoadError> {
    let mut config: Map<String, Json> = serde_json::from_str(
        r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
            "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0, "rope_scaling": null,
            "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1, "use_cache": true,
            "rope_interleaved": false, "is_llama_config": true, "unheard_of": {"a": [1, {}]}}"#,
    )
    .expect("JSON");
    let changes: Map<String, Json> = serde_json::from_str(changes).expect("JSON");
    config.extend(changes);
    DecoderConfig::from_json(&config, true)
}

#[test]
fn config_json_describes_what_gguf_does_with_halves_rotated() {
    let mut expected = DecoderConfig::from_gguf(&tiny_llama()).expect("a good file");
    expected.ropes[0].style = RopeStyle::Halves;
    expected.tied_head = false;
    expected.tensors = TensorNames::plain(Naming::HuggingFace);
    assert_eq!(json_with("{}").expect("a good config"), expected);
    let tied = json_with(r#"{"tie_word_embeddings": true, "head_dim": 16}"#).expect("good");
    assert!(tied.tied_head && tied.heads.head_dim == 16 && tied.ropes[0].dim == 16);
    let qwen = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 64}"#;
    let qwen = json_with(qwen).expect("good");
    assert!(qwen.biases.qkv && qwen.qk_norm.is_none() && qwen.window.is_none());
    let no_class = json_with(r#"{"architectures": null, "model_type": "qwen3"}"#).expect("good");
    assert!(no_class.qk_norm == Some(QkNormSpan::EachHead) && !no_class.biases.qkv);
}

#[test]
fn rope_scaling_is_read_in_its_old_and_new_places() {
    let scaling = |changes: &str| json_with(changes).expect("good").ropes.remove(0);
    let old = scaling(r#"{"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4}}"#);
    assert_eq!(
        (old.base, old.scaling),
        (500.0, RopeScaling::Linear { factor: 4.0 })
    );
    let new = r#"{"rope_theta": null, "rope_parameters": {"rope_theta": 7000.0, "rope_type": "llama3",
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}}"#;
    let new = scaling(new);
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 8192.0,
    };
    assert_eq!((new.base, new.scaling), (7000.0, expected));
    let gguf = with("llama.rope.scaling.factor", Value::Float(2.0))
        .expect("good")
        .ropes
        .remove(0)
        .scaling;
    assert_eq!(gguf, RopeScaling::Linear { factor: 2.0 });
    let gguf = with("llama.rope.scale_linear", Value::Float(3.0))
        .expect("good")
        .ropes
        .remove(0)
        .scaling;
    assert_eq!(gguf, RopeScaling::Linear { factor: 3.0 });
}

#[test]
fn yarn_in_gguf_is_read_with_its_factor() {
    let mut gguf = tiny_llama();
    let metadata = std::mem::take(&mut gguf.metadata);
    gguf.metadata = metadata
        .with("llama.rope.scaling.type", Value::Text("yarn".to_owned()))
        .with("llama.rope.scaling.factor", Value::Float(4.0))
        .with("llama.rope.scaling.original_context_length", Value::Unsigned(32));
    let rope = DecoderConfig::from_gguf(&gguf).expect("good").ropes.remove(0);
    let expected = RopeScaling::Yarn {
        factor: 4.0,
        fast_turns: 32.0,
        slow_turns: 1.0,
        original_context: 32.0,
        whole_pairs: true,
    };
    assert_eq!(rope.scaling, expected);
    assert!((rope.attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    let missing = with("llama.rope.scaling.type", Value::Text("yarn".to_owned()));
    let error = missing.expect_err("no factor").to_string();
    assert_eq!(error, "`llama.rope.scaling.factor` is missing");
}

#[test]
fn a_llama_with_experts_is_a_mixtral_and_layers_may_be_without_them() {
    let mut gguf = tiny_llama();
    let metadata = std::mem::take(&mut gguf.metadata);
    gguf.metadata = metadata
        .with("llama.expert_count", Value::Unsigned(8))
        .with("llama.expert_used_count", Value::Unsigned(2));
    let config = DecoderConfig::from_gguf(&gguf).expect("good");
    let experts = config.experts.expect("a mixture");
    assert_eq!((experts.n_experts, experts.n_used, experts.width), (8, 2, 64));
    assert!(experts.is_normalized && config.layers.iter().all(|layer| layer.mlp == MlpKind::Experts));
    for (key, value, said) in [
        (
            "llama.expert_gating_func",
            Value::Unsigned(2),
            "`llama.expert_gating_func` = 2",
        ),
        (
            "llama.expert_weights_scale",
            Value::Float(2.5),
            "`llama.expert_weights_scale` = 2.5",
        ),
        (
            "llama.expert_group_count",
            Value::Unsigned(4),
            "`llama.expert_group_count` = 4",
        ),
    ] {
        let metadata = std::mem::take(&mut gguf.metadata);
        let mut other = tiny_llama();
        other.metadata = metadata.clone().with(key, value);
        gguf.metadata = metadata;
        let error = DecoderConfig::from_gguf(&other).expect_err(key).to_string();
        assert_eq!(error, format!("{said} is not supported"));
    }
    let qwen = |changes: &str| {
        let of = format!(
            r#"{{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 8,
            "num_experts_per_tok": 2, "moe_intermediate_size": 24{changes}}}"#
        );
        let config = json_with(&of).expect("good");
        let kinds: Vec<bool> = config
            .layers
            .iter()
            .map(|layer| layer.mlp == MlpKind::Experts)
            .collect();
        (kinds, config.experts.expect("a mixture").is_normalized)
    };
    assert_eq!(qwen(""), (vec![true, true], false));
    assert_eq!(
        qwen(r#", "decoder_sparse_step": 2, "norm_topk_prob": true"#),
        (vec![false, true], true)
    );
    assert_eq!(qwen(r#", "mlp_only_layers": [0]"#).0, [false, true]);
}

#[test]
fn a_window_below_the_context_limits_it() {
    let config = with("llama.attention.sliding_window", Value::Unsigned(64)).expect("good");
    assert_eq!((config.context, config.window), (64, Some(64)));
    for same in [0, 128, 4096] {
        let config = with("llama.attention.sliding_window", Value::Unsigned(same)).expect("good");
        assert_eq!((config.context, config.window), (128, None));
    }
    assert_eq!(json_with(r#"{"sliding_window": 64}"#).expect("good").context, 64);
}

#[test]
fn layers_have_the_window_of_their_family_or_of_the_list_of_layers() {
    let windows = |class: &str, changes: &str| {
        let of = format!(r#"{{"architectures": ["{class}ForCausalLM"], "model_type": null{changes}}}"#);
        let config = json_with(&of).expect("good");
        assert_eq!((config.context, config.window), (128, None), "{of}");
        config.windows()
    };
    let window = r#", "sliding_window": 64"#;
    assert_eq!(windows("Mistral", window), [Some(64); 2]);
    assert_eq!(windows("Mistral", r#", "sliding_window": null"#), [None; 2]);
    assert_eq!(windows("Mistral", r#", "sliding_window": 128"#), [None; 2]);
    assert_eq!(windows("Qwen2", window), [None; 2], "it needs a flag");
    let flag = r#", "sliding_window": 64, "use_sliding_window": true"#;
    assert_eq!(
        windows("Qwen2", flag),
        [None; 2],
        "28 layers have none by default"
    );
    let upper = |n: usize| windows("Qwen3", &format!(r#"{flag}, "max_window_layers": {n}"#));
    assert_eq!([upper(0), upper(1)], [[Some(64); 2], [None, Some(64)]]);
    let types = format!(r#"{flag}, "layer_types": ["sliding_attention", "full_attention"]"#);
    assert_eq!(windows("Qwen2", &types), [Some(64), None]);
    let long = |class: &str, changes: &str| {
        let of = format!(
            r#"{{"architectures": ["{class}ForCausalLM"], "model_type": null,
            "max_position_embeddings": 8192{changes}}}"#
        );
        json_with(&of).expect("good").windows()
    };
    assert_eq!(long("Mistral", ""), [Some(4096); 2], "the default of the class");
    assert_eq!(long("Mistral", r#", "sliding_window": null"#), [None; 2]);
    assert_eq!(long("Qwen2", ""), [None; 2]);
    let flag = r#", "use_sliding_window": true, "max_window_layers": 1"#;
    assert_eq!(long("Qwen2", flag), [None, Some(4096)]);
    let error = json_with(r#"{"layer_types": ["full_attention"]}"#).expect_err("two layers");
    assert!(error.to_string().contains("a list of 2 layers"), "{error}");
}

/// Settings, and what is said of them.
const REFUSED: [(&str, &str); 26] = [
    (
        r#"{"quantization_config": {"quant_method": "mxfp4"}}"#,
        "`quantization_config.quant_method` = mxfp4 is not supported",
    ),
    (
        r#"{"hidden_act": "relu2"}"#,
        "`hidden_act` = relu2 is not supported",
    ),
    (
        r#"{"attention_bias": true}"#,
        "`attention_bias` = true is not supported",
    ),
    (r#"{"mlp_bias": true}"#, "`mlp_bias` = true"),
    (
        r#"{"partial_rotary_factor": 0.5}"#,
        "`partial_rotary_factor` = 0.5",
    ),
    (r#"{"auto_map": {"AutoModel": "x.Y"}}"#, "`auto_map`"),
    (r#"{"num_local_experts": 8}"#, "`num_local_experts` = 8"),
    (
        r#"{"rope_scaling": {"rope_type": "ntk", "factor": 4}}"#,
        "`rope_scaling.rope_type` = ntk",
    ),
    (
        r#"{"rope_scaling": {"type": "dynamic", "factor": 4}}"#,
        "`rope_scaling.type` = dynamic",
    ),
    (
        r#"{"rope_scaling": {"type": "linear"}}"#,
        "`rope_scaling.factor` is missing",
    ),
    (
        r#"{"rope_scaling": {"type": "linear", "factor": 0}}"#,
        "= 0: must be above 0",
    ),
    (
        r#"{"layer_types": ["full_attention", "linear_attention"]}"#,
        "`layer_types` = linear_attention",
    ),
    (
        r#"{"architectures": ["MambaForCausalLM"]}"#,
        "`MambaForCausalLM` is not supported",
    ),
    (
        r#"{"architectures": ["LlamaForCausalLM", "X"]}"#,
        "must be one name",
    ),
    (
        r#"{"model_type": "qwen2"}"#,
        "`model_type` = qwen2: must be llama",
    ),
    (r#"{"vocab_size": 0}"#, "`vocab_size` = 0: must be 1 to"),
    (r#"{"vocab_size": null}"#, "`vocab_size` is missing"),
    (
        r#"{"hidden_size": "32"}"#,
        "should be an unsigned integer, found a string",
    ),
    (r#"{"hidden_size": -32}"#, "`hidden_size` should be"),
    (r#"{"num_hidden_layers": 1e3}"#, "`num_hidden_layers` should be"),
    (
        r#"{"rms_norm_eps": 2}"#,
        "`rms_norm_eps` = 2: must be between 0 and 1",
    ),
    (r#"{"rope_theta": 0.5}"#, "`rope_theta` = 0.5: must be above 1"),
    (
        r#"{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
            "num_experts_per_tok": 5}"#,
        "`num_experts_per_tok` = 5: must be at most the 4 experts",
    ),
    (
        r#"{"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe"}"#,
        "`num_experts` is missing",
    ),
    (
        r#"{"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "n_group": 8}"#,
        "`n_group` = 8 is not supported",
    ),
    (
        r#"{"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 4,
            "num_experts_per_tok": 2, "swiglu_limit": 5.5}"#,
        "`swiglu_limit` = 5.5 is not supported",
    ),
];

#[test]
fn what_config_json_asks_for_and_is_not_done_is_refused_by_name() {
    for (changes, expected) in REFUSED {
        let error = json_with(changes).expect_err(changes).to_string();
        assert!(
            error.contains(expected),
            "{changes}: {error:?} does not say {expected:?}"
        );
    }
}

fn of_class(class: &str, changes: &str) -> Result<DecoderConfig, LoadError> {
    let of = format!(r#"{{"architectures": ["{class}ForCausalLM"], "model_type": null{changes}}}"#);
    json_with(&of)
}

#[test]
fn a_gemma_3_of_the_older_style_is_described_like_a_new_one() {
    let layers = r#", "num_hidden_layers": 7, "query_pre_attn_scalar": 16, "sliding_window": 64"#;
    let old = r#", "rope_theta": 500000.0, "rope_local_base_freq": 7000.0, "sliding_window_pattern": 3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}"#;
    let new = r#", "rope_theta": null, "layer_types": ["sliding_attention", "sliding_attention",
        "full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": {"rope_theta": 500000.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 7000.0, "rope_type": "default"}}"#;
    let [old, new] = [old, new].map(|style| of_class("Gemma3", &format!("{layers}{style}")).expect("good"));
    assert_eq!(old, new);
    let [full, windowed] = &old.ropes[..] else {
        panic!("two rotations, found {:?}", old.ropes)
    };
    assert_eq!((full.base, windowed.base), (500_000.0, 7000.0));
    assert_eq!(full.scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(windowed.scaling, RopeScaling::None);
    let ropes: Vec<Option<usize>> = old.layers.iter().map(|layer| layer.rope).collect();
    assert_eq!(ropes, [1, 1, 0, 1, 1, 0, 1].map(Some));
    assert_eq!(old.layers[0].attention.scale, 0.25);
    let plain = format!(r#"{layers}, "rope_theta": null"#);
    let by_default = of_class("Gemma3", &plain).expect("good");
    let bases: Vec<f64> = by_default.ropes.iter().map(|rope| rope.base).collect();
    assert_eq!(bases, [1e6, 1e4]);
    assert_eq!(by_default.windows()[5], None, "the sixth layer has no window");
}

#[test]
fn the_embedding_of_a_gemma_is_scaled_by_a_root_rounded_as_its_weights_are() {
    let scale = |dtype: &str| {
        let changes = format!(r#", "hidden_size": 1152, "head_dim": 16, "torch_dtype": {dtype}"#);
        of_class("Gemma", &changes).expect("good").scales.embedding
    };
    assert_eq!(scale(r#""bfloat16""#), 34.0);
    assert_eq!(scale(r#""float32""#), 1152f32.sqrt());
    assert_eq!(scale("null"), 1152f32.sqrt());
}

#[test]
fn activations_are_read_by_the_name_the_class_reads() {
    let activation =
        |class: &str, changes: &str| of_class(class, changes).expect("good").layers[0].activation;
    assert_eq!(activation("Llama", r#", "hidden_act": "gelu""#), Activation::Gelu);
    // The first Gemma means the approximation, the second has a key of its own.
    assert_eq!(
        activation("Gemma", r#", "hidden_act": "gelu""#),
        Activation::GeluTanh
    );
    let gemma2 = r#", "hidden_act": "silu", "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0"#;
    assert_eq!(activation("Gemma2", gemma2), Activation::GeluTanh);
    let error = of_class("Gemma2", r#", "hidden_activation": "relu""#).expect_err("no such activation");
    assert!(
        error
            .to_string()
            .contains("`hidden_activation` = relu is not supported"),
        "{error}"
    );
}

#[test]
fn layers_without_rotation_are_those_of_the_list_or_the_interval() {
    let rotated = |changes: &str| {
        let config = of_class("SmolLM3", &format!(r#", "num_hidden_layers": 4{changes}"#)).expect("good");
        config
            .layers
            .iter()
            .map(|layer| layer.rope.is_some())
            .collect::<Vec<_>>()
    };
    assert_eq!(rotated(""), [true, true, true, false]);
    assert_eq!(
        rotated(r#", "no_rope_layer_interval": 2"#),
        [true, false, true, false]
    );
    assert_eq!(
        rotated(r#", "no_rope_layers": [0, 1, 1, 1]"#),
        [false, true, true, true]
    );
}

#[test]
fn names_of_code_beside_a_phi_3_change_nothing() {
    let with_code = r#", "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}"#;
    let [plain, with_code] = ["", with_code].map(|changes| of_class("Phi3", changes).expect("good"));
    assert_eq!(plain, with_code);
}

#[test]
fn what_a_family_needs_and_its_config_does_not_say_is_told_by_name() {
    let longrope = r#", "rope_scaling": {"type": "longrope", "short_factor": [1, 2, 3, 4],
        "long_factor": [1.0, 2.5, 3.0]}, "original_max_position_embeddings": 64"#;
    let yarn = r#", "rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7}"#;
    for (class, changes, expected) in [
        ("Gemma2", "", "`query_pre_attn_scalar` is missing"),
        (
            "Gemma2",
            r#", "query_pre_attn_scalar": 16"#,
            "`attn_logit_softcapping` is missing",
        ),
        (
            "Gemma3",
            r#", "query_pre_attn_scalar": -1"#,
            "= -1: must be above 0",
        ),
        (
            "Gemma3",
            r#", "query_pre_attn_scalar": 16, "use_bidirectional_attention": true"#,
            "`use_bidirectional_attention` = true is not supported",
        ),
        ("Granite", "", "`attention_multiplier` is missing"),
        (
            "Llama",
            r#", "logits_scaling": 8.0"#,
            "`logits_scaling` = 8.0 is not supported",
        ),
        (
            "Cohere",
            r#", "layer_norm_eps": 1e-5"#,
            "`logit_scale` is missing",
        ),
        ("Cohere", "", "`layer_norm_eps` is missing"),
        (
            "SmolLM3",
            r#", "use_sliding_window": true"#,
            "`use_sliding_window` = true is not supported",
        ),
        ("SmolLM3", r#", "no_rope_layers": [1]"#, "a list of 2 layers"),
        (
            "Phi3",
            longrope,
            "`rope_scaling.long_factor` = 3: must be a list of 4 factors",
        ),
        (
            "Glm4",
            r#", "partial_rotary_factor": 0.1"#,
            "= 0.1: must be above 0, at most 1, and an even part",
        ),
        ("Qwen3", yarn, "`rope_scaling.mscale` = 0.7 is not supported"),
        (
            "StableLm",
            r#", "layer_norm_eps": 1e-5, "qk_layernorm": true"#,
            "`qk_layernorm` = true is not supported",
        ),
    ] {
        let error = of_class(class, changes).expect_err(changes).to_string();
        assert!(
            error.contains(expected),
            "{class}: {error:?} does not say {expected:?}"
        );
    }
}

#[test]
fn the_largest_gemmas_in_gguf_scale_by_their_width() {
    let scale = |n_layers: u64| {
        let mut gguf = tiny_llama();
        let keys = std::mem::take(&mut gguf.metadata)
            .with("general.architecture", Value::Text("gemma2".to_owned()))
            .with("gemma2.block_count", Value::Unsigned(n_layers))
            .with("gemma2.context_length", Value::Unsigned(128))
            .with("gemma2.embedding_length", Value::Unsigned(64))
            .with("gemma2.feed_forward_length", Value::Unsigned(64))
            .with("gemma2.attention.head_count", Value::Unsigned(4))
            .with("gemma2.attention.key_length", Value::Unsigned(4))
            .with("gemma2.attention.layer_norm_rms_epsilon", Value::Float(1e-5))
            .with("gemma2.attn_logit_softcapping", Value::Float(50.0))
            .with("gemma2.final_logit_softcapping", Value::Float(30.0));
        gguf.metadata = keys;
        let config = DecoderConfig::from_gguf(&gguf).expect("a good file");
        assert_eq!(config.norm.offset, 0.0, "the converter added it");
        assert_eq!(config.layers[0].attention.soft_cap, Some(50.0));
        config.layers[0].attention.scale
    };
    assert_eq!((scale(26), scale(46)), (0.5, 0.25));
}
