//! The table of model families: how an architecture's own words become a [`DecoderConfig`].
//!
//! A family that fits the decoder is a row here and a golden test. GGUF metadata and `config.json` say the
//! same things under different names, so each thing is read once, by a [`Key`] with both names. Whatever a
//! file asks for that the decoder does not do is refused by name: a model that answers nonsense because a key
//! was ignored is worse than one that does not start. Keys that neither the families nor the lists of refused
//! keys know are passed over, as the reference implementations of these classes pass over them.

mod windows;

use arbora_kernels::{AttentionSpec, HeadLayout, RopeStyle};
use serde_json::{Map, Value as Json};

use super::config::{DecoderConfig, LayerConfig, RopeConfig, RopeScaling};
use super::directory::flatten;
use super::file::LoadError;
use super::gguf::Gguf;
use super::metadata::{KeyError, Metadata, required};
use windows::{Windows, json_window, window, windows};

/// What distinguishes one architecture from another.
struct Family {
    /// `general.architecture` in GGUF, and the first part of its keys; absent where converters write the
    /// family under another one's name.
    architecture: Option<&'static str>,
    /// The only name in `architectures`, and `model_type`, of `config.json`.
    class: &'static str,
    model_type: &'static str,
    /// Pairing of rotated elements as the GGUF converter leaves it: for llama it permutes q and k.
    /// Checkpoints beside a `config.json` have halves.
    gguf_rope_style: RopeStyle,
    /// Biases on q, k and v.
    qkv_bias: bool,
    /// RMSNorm on each query and key head.
    qk_norm: bool,
    /// Which layers have the window of a `config.json`.
    windows: Windows,
}

const LLAMA: Family = Family {
    architecture: Some("llama"),
    class: "LlamaForCausalLM",
    model_type: "llama",
    gguf_rope_style: RopeStyle::Interleaved,
    qkv_bias: false,
    qk_norm: false,
    windows: Windows::Unknown,
};

const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        architecture: None,
        class: "MistralForCausalLM",
        model_type: "mistral",
        windows: Windows::All,
        ..LLAMA
    },
    Family {
        architecture: Some("qwen2"),
        class: "Qwen2ForCausalLM",
        model_type: "qwen2",
        gguf_rope_style: RopeStyle::Halves,
        qkv_bias: true,
        qk_norm: false,
        windows: Windows::Upper,
    },
    Family {
        architecture: Some("qwen3"),
        class: "Qwen3ForCausalLM",
        model_type: "qwen3",
        gguf_rope_style: RopeStyle::Halves,
        qkv_bias: false,
        qk_norm: true,
        windows: Windows::Upper,
    },
];

/// GGUF keys (after the architecture's name) that would change the arithmetic in ways the decoder has no part
/// for.
const REFUSED_IN_GGUF: &[&str] = &[
    "expert_count",
    "attention.scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.causal",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "use_parallel_residual",
];

/// The same of `config.json`, unless the value is null, false, 0 or empty.
const REFUSED_IN_JSON: &[&str] = &[
    "auto_map",
    "quantization_config",
    "compression_config",
    "is_encoder_decoder",
    "add_cross_attention",
    "attention_bias",
    "mlp_bias",
    "qk_layernorm",
    "use_qk_norm",
    "clip_qkv",
    "alibi",
    "parallel_attn",
    "use_parallel_residual",
    "rope_interleaved",
    "no_rope_layers",
    "no_rope_layer_interval",
    "attention_chunk_size",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
];

const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 16;
const MAX_HEADS: usize = 1024;
const MAX_HEAD_DIM: usize = 1024;
const MAX_FFN_WIDTH: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 24;
const MAX_VOCAB: usize = 1 << 22;

/// One thing by its name in GGUF (after the architecture's) and in `config.json`.
#[derive(Clone, Copy)]
struct Key {
    gguf: &'static str,
    json: &'static str,
}

const fn key(gguf: &'static str, json: &'static str) -> Key {
    Key { gguf, json }
}

const LAYERS: Key = key("block_count", "num_hidden_layers");
const WIDTH: Key = key("embedding_length", "hidden_size");
const FFN_WIDTH: Key = key("feed_forward_length", "intermediate_size");
const CONTEXT: Key = key("context_length", "max_position_embeddings");
const HEADS: Key = key("attention.head_count", "num_attention_heads");
const KV_HEADS: Key = key("attention.head_count_kv", "num_key_value_heads");
const HEAD_DIM: Key = key("attention.key_length", "head_dim");
const NORM_EPS: Key = key("attention.layer_norm_rms_epsilon", "rms_norm_eps");
/// Only GGUF has a length of values of its own.
const VALUE_DIM: Key = key("attention.value_length", "head_dim");
const ROPE_DIM: Key = key("rope.dimension_count", "head_dim");
const ROPE_BASE: Key = key("rope.freq_base", "rope_theta");

/// Whose words the keys are in.
#[derive(Clone, Copy)]
enum Names<'a> {
    Gguf { architecture: &'a str },
    ConfigJson,
}

/// What a file says, by [`Key`].
struct Keys<'a> {
    metadata: &'a Metadata,
    names: Names<'a>,
}

impl Keys<'_> {
    fn full(&self, key: Key) -> String {
        match self.names {
            Names::Gguf { architecture } => format!("{architecture}.{}", key.gguf),
            Names::ConfigJson => key.json.to_owned(),
        }
    }

    fn count(&self, key: Key, max: usize) -> Result<Option<usize>, KeyError> {
        count(self.metadata, &self.full(key), max)
    }

    fn required_count(&self, key: Key, max: usize) -> Result<usize, KeyError> {
        required(&self.full(key), self.count(key, max))
    }
}

fn count(metadata: &Metadata, key: &str, max: usize) -> Result<Option<usize>, KeyError> {
    match metadata.unsigned(key)? {
        Some(value) if !(1..=max as u64).contains(&value) => {
            Err(out_of_range(key, &value, format!("1 to {max}")))
        }
        value => Ok(value.map(|value| value as usize)),
    }
}

/// The parts of a description that the two kinds of file have in different shapes.
struct Particulars {
    width: usize,
    heads: HeadLayout,
    n_vocab: usize,
    n_layers: usize,
    /// Of each layer; absent where it is not known which layers have `window`.
    windows: Option<Vec<Option<usize>>>,
    window: Option<usize>,
    rope: RopeConfig,
    tied_head: bool,
}

impl DecoderConfig {
    /// The decoder a GGUF file describes. Every number is checked against a limit; a file that asks for
    /// something the decoder does not do is refused by the name of the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<DecoderConfig, LoadError> {
        let name = "general.architecture";
        let architecture = required(name, gguf.metadata.text(name))?;
        let known = |family: &&Family| family.architecture == Some(architecture);
        let family = FAMILIES.iter().find(known).ok_or_else(|| {
            let known = FAMILIES.iter().filter_map(|family| family.architecture);
            unknown_architecture(architecture, known.collect())
        })?;
        let keys = Keys {
            metadata: &gguf.metadata,
            names: Names::Gguf { architecture },
        };
        refuse_in_gguf(&gguf.metadata, architecture)?;
        let (width, heads) = widths(&keys)?;
        let particulars = Particulars {
            width,
            heads,
            n_vocab: gguf_n_vocab(gguf, architecture)?,
            n_layers: keys.required_count(LAYERS, MAX_LAYERS)?,
            windows: None,
            window: window(&keys)?,
            rope: gguf_rope(&keys, family, heads.head_dim)?,
            tied_head: gguf.tensor("output.weight").is_none(),
        };
        describe(family, &keys, particulars)
    }

    /// The decoder that a `config.json` describes, checked likewise. `has_head` says whether the checkpoint
    /// has an output head; it decides where the file does not say that the head is tied to the embedding.
    pub fn from_json(json: &Map<String, Json>, has_head: bool) -> Result<DecoderConfig, LoadError> {
        let metadata = &flatten(json);
        let keys = Keys {
            metadata,
            names: Names::ConfigJson,
        };
        let family = family_of_json(metadata)?;
        refuse_in_json(json)?;
        let window = json_window(&keys, family.windows, json)?;
        let n_layers = keys.required_count(LAYERS, MAX_LAYERS)?;
        let (width, heads) = widths(&keys)?;
        let particulars = Particulars {
            width,
            heads,
            n_vocab: required("vocab_size", count(metadata, "vocab_size", MAX_VOCAB))?,
            n_layers,
            windows: windows(metadata, family.windows, (n_layers, window))?,
            window,
            rope: json_rope(&keys, heads.head_dim)?,
            tied_head: metadata.flag("tie_word_embeddings")?.unwrap_or(!has_head),
        };
        describe(family, &keys, particulars)
    }
}

fn describe(family: &Family, keys: &Keys<'_>, particulars: Particulars) -> Result<DecoderConfig, LoadError> {
    let trained_context = keys.required_count(CONTEXT, MAX_CONTEXT)?;
    let is_shorter = |window: &usize| *window < trained_context;
    let full = AttentionSpec::full(particulars.heads.head_dim);
    let layer = |window: Option<usize>| LayerConfig {
        attention: AttentionSpec {
            window: window.filter(is_shorter),
            ..full
        },
    };
    let window = match particulars.windows {
        Some(_) => None,
        None => particulars.window.filter(is_shorter),
    };
    let windows = particulars.windows.unwrap_or(vec![None; particulars.n_layers]);
    Ok(DecoderConfig {
        layers: windows.into_iter().map(layer).collect(),
        width: particulars.width,
        heads: particulars.heads,
        ffn_width: keys.required_count(FFN_WIDTH, MAX_FFN_WIDTH)?,
        n_vocab: particulars.n_vocab,
        context: window.unwrap_or(trained_context),
        window,
        norm_eps: norm_eps(keys)?,
        rope: particulars.rope,
        qkv_bias: family.qkv_bias,
        qk_norm: family.qk_norm,
        tied_head: particulars.tied_head,
    })
}

fn unknown_architecture(found: &str, known: Vec<&'static str>) -> LoadError {
    let found = found.to_owned();
    LoadError::UnknownArchitecture { found, known }
}

fn family_of_json(metadata: &Metadata) -> Result<&'static Family, LoadError> {
    let classes = metadata.strings("architectures")?;
    let model_type = metadata.text("model_type")?;
    let found = match classes {
        Some(classes) if classes.len() == 1 => classes.at(0),
        Some(classes) => {
            let value = classes.iter().collect::<Vec<_>>().join(", ");
            return Err(out_of_range("architectures", &value, "one name".to_owned()).into());
        }
        None => required("model_type", Ok(model_type))?,
    };
    let family = FAMILIES
        .iter()
        .find(|family| found == family.class || classes.is_none() && found == family.model_type)
        .ok_or_else(|| unknown_architecture(found, FAMILIES.iter().map(|family| family.class).collect()))?;
    match model_type {
        Some(model_type) if model_type != family.model_type => {
            let limit = format!("{}, as the architecture {} is", family.model_type, family.class);
            Err(out_of_range("model_type", &model_type, limit).into())
        }
        _ => Ok(family),
    }
}

fn refuse_in_gguf(metadata: &Metadata, architecture: &str) -> Result<(), LoadError> {
    for key in REFUSED_IN_GGUF {
        let key = format!("{architecture}.{key}");
        // A count of 0 says that the feature is absent; converters write it.
        if metadata.contains(&key) && metadata.unsigned(&key) != Ok(Some(0)) {
            return Err(LoadError::UnsupportedFeature { key, value: None });
        }
    }
    Ok(())
}

fn refuse_in_json(json: &Map<String, Json>) -> Result<(), LoadError> {
    let asks_for_nothing = |value: &Json| match value {
        Json::Null => true,
        Json::Bool(flag) => !flag,
        Json::Number(number) => number.as_f64() == Some(0.0),
        Json::String(text) => text.is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(object) => object.is_empty(),
    };
    let refused = |key: &str, value: Option<String>| {
        let key = key.to_owned();
        Err(LoadError::UnsupportedFeature { key, value })
    };
    for &key in REFUSED_IN_JSON {
        match json.get(key) {
            Some(value) if !asks_for_nothing(value) => return refused(key, short(value)),
            _ => {}
        }
    }
    match json.get("hidden_act") {
        None | Some(Json::Null) => {}
        Some(Json::String(name)) if ["silu", "swish"].contains(&name.as_str()) => {}
        Some(other) => return refused("hidden_act", short(other)),
    }
    match json.get("partial_rotary_factor") {
        None | Some(Json::Null) => Ok(()),
        Some(factor) if factor.as_f64() == Some(1.0) => Ok(()),
        Some(other) => refused("partial_rotary_factor", short(other)),
    }
}

/// A value for a message, unless it is a whole structure.
fn short(value: &Json) -> Option<String> {
    match value {
        Json::Object(_) | Json::Array(_) => None,
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Width of the residual stream and the heads.
fn widths(keys: &Keys<'_>) -> Result<(usize, HeadLayout), KeyError> {
    let width = keys.required_count(WIDTH, MAX_WIDTH)?;
    Ok((width, head_layout(keys, width)?))
}

fn head_layout(keys: &Keys<'_>, width: usize) -> Result<HeadLayout, KeyError> {
    let n_heads = keys.required_count(HEADS, MAX_HEADS)?;
    let n_kv_heads = keys.count(KV_HEADS, MAX_HEADS)?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        let key = keys.full(KV_HEADS);
        return Err(out_of_range(
            &key,
            &n_kv_heads,
            format!("a divisor of {n_heads} heads"),
        ));
    }
    let head_dim = match keys.count(HEAD_DIM, MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if width.is_multiple_of(n_heads) && width / n_heads <= MAX_HEAD_DIM => width / n_heads,
        None => {
            let key = keys.full(WIDTH);
            let limit = format!("a multiple of {n_heads} heads, of at most {MAX_HEAD_DIM} each");
            return Err(out_of_range(&key, &width, limit));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(out_of_range(&keys.full(HEAD_DIM), &head_dim, "even".to_owned()));
    }
    if let Some(value_length) = keys.count(VALUE_DIM, MAX_HEAD_DIM)?
        && value_length != head_dim
    {
        let key = keys.full(VALUE_DIM);
        return Err(out_of_range(
            &key,
            &value_length,
            format!("the key length, {head_dim}"),
        ));
    }
    Ok(HeadLayout {
        n_heads,
        n_kv_heads,
        head_dim,
    })
}

/// Rows of the embedding; the number of tokens and the optional key must agree with it.
fn gguf_n_vocab(gguf: &Gguf, architecture: &str) -> Result<usize, LoadError> {
    let name = "token_embd.weight";
    let Some(embedding) = gguf.tensor(name) else {
        let name = name.to_owned();
        return Err(LoadError::MissingTensor { name });
    };
    let n_vocab = embedding.dimensions.get(1).copied().unwrap_or(0);
    if !(1..=MAX_VOCAB as u64).contains(&n_vocab) {
        return Err(LoadError::BadShape {
            name: name.to_owned(),
            found: embedding.dimensions.clone(),
            expected: format!("[width, 1 to {MAX_VOCAB} tokens]"),
        });
    }
    let metadata = &gguf.metadata;
    let size_key = format!("{architecture}.vocab_size");
    let tokens_key = "tokenizer.ggml.tokens";
    let said = [
        (size_key.clone(), metadata.unsigned(&size_key)?),
        (
            tokens_key.to_owned(),
            metadata.strings(tokens_key)?.map(|tokens| tokens.len() as u64),
        ),
    ];
    for (key, count) in said {
        if let Some(count) = count
            && count != n_vocab
        {
            let limit = format!("the {n_vocab} rows of the embedding");
            return Err(out_of_range(&key, &count, limit).into());
        }
    }
    Ok(n_vocab as usize)
}

fn norm_eps(keys: &Keys<'_>) -> Result<f32, KeyError> {
    let key = keys.full(NORM_EPS);
    let value = required(&key, keys.metadata.float(&key))?;
    if value > 0.0 && value < 1.0 {
        Ok(value as f32)
    } else {
        Err(out_of_range(&key, &value, "between 0 and 1".to_owned()))
    }
}

/// Rotation by GGUF's keys. Llama 3's factors are a tensor there.
fn gguf_rope(keys: &Keys<'_>, family: &Family, head_dim: usize) -> Result<RopeConfig, LoadError> {
    let dim = keys.count(ROPE_DIM, head_dim)?.unwrap_or(head_dim);
    if !dim.is_multiple_of(2) {
        return Err(out_of_range(&keys.full(ROPE_DIM), &dim, "even".to_owned()).into());
    }
    let scaling_type = keys.full(key("rope.scaling.type", ""));
    let factor = |name| {
        let key = keys.full(key(name, ""));
        match keys.metadata.float(&key)? {
            // Converters write 0 for "not scaled".
            None | Some(0.0) => Ok(None),
            Some(factor) => positive(&key, factor).map(Some),
        }
    };
    let scaling = match keys.metadata.text(&scaling_type)? {
        Some("none") => RopeScaling::None,
        None | Some("linear") => match factor("rope.scaling.factor")?.or(factor("rope.scale_linear")?) {
            None => RopeScaling::None,
            Some(factor) => RopeScaling::Linear { factor },
        },
        Some(other) => return Err(unsupported_scaling(scaling_type, other)),
    };
    Ok(RopeConfig {
        style: family.gguf_rope_style,
        dim,
        base: rope_base(keys.metadata, &keys.full(ROPE_BASE))?,
        scaling,
    })
}

/// Rotation by `config.json`: `rope_theta` and `rope_scaling`, or all in `rope_parameters`.
fn json_rope(keys: &Keys<'_>, head_dim: usize) -> Result<RopeConfig, LoadError> {
    let metadata = keys.metadata;
    let nested = "rope_parameters.rope_theta";
    let base_key = if metadata.contains(nested) {
        nested
    } else {
        "rope_theta"
    };
    let has = |outer: &str| {
        ["rope_type", "type"]
            .map(|name| format!("{outer}.{name}"))
            .into_iter()
    };
    let mut type_keys = has("rope_scaling").chain(has("rope_parameters"));
    let type_key = type_keys.find(|key| metadata.contains(key));
    let scaling = match &type_key {
        None => RopeScaling::None,
        Some(type_key) => {
            let outer = type_key
                .split('.')
                .next()
                .expect("split yields at least one part");
            json_scaling(metadata, outer, type_key)?
        }
    };
    Ok(RopeConfig {
        style: RopeStyle::Halves,
        dim: head_dim,
        base: rope_base(metadata, base_key)?,
        scaling,
    })
}

fn json_scaling(metadata: &Metadata, outer: &str, type_key: &str) -> Result<RopeScaling, LoadError> {
    let number = |name: &str| {
        let key = format!("{outer}.{name}");
        let value = required(&key, metadata.float(&key))?;
        positive(&key, value)
    };
    match required(type_key, metadata.text(type_key))? {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: number("factor")?,
        }),
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                let key = format!("{outer}.high_freq_factor");
                return Err(out_of_range(&key, &high, format!("above the low one, {low}")).into());
            }
            Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context: number("original_max_position_embeddings")?,
            })
        }
        other => Err(unsupported_scaling(type_key.to_owned(), other)),
    }
}

fn unsupported_scaling(key: String, value: &str) -> LoadError {
    let value = Some(value.to_owned());
    LoadError::UnsupportedFeature { key, value }
}

fn positive(key: &str, value: f64) -> Result<f64, KeyError> {
    if value > 0.0 && value <= 1e9 {
        Ok(value)
    } else {
        Err(out_of_range(key, &value, "above 0 and at most 1e9".to_owned()))
    }
}

fn rope_base(metadata: &Metadata, key: &str) -> Result<f64, KeyError> {
    let base = metadata.float(key)?.unwrap_or(10_000.0);
    if base > 1.0 && base <= 1e12 {
        Ok(base)
    } else {
        Err(out_of_range(key, &base, "above 1 and at most 1e12".to_owned()))
    }
}

fn out_of_range(key: &str, value: &dyn std::fmt::Display, limit: String) -> KeyError {
    KeyError::OutOfRange {
        key: key.to_owned(),
        value: value.to_string(),
        limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!((config.rope.dim, config.rope.base), (8, 10_000.0));
        assert_eq!(config.rope.style, RopeStyle::Interleaved);
        assert!(config.tied_head && !config.qkv_bias && !config.qk_norm);
        let config = with("llama.rope.dimension_count", Value::Unsigned(4)).expect("part of a head");
        assert_eq!(config.rope.dim, 4);
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
            ("llama.expert_count", 8, "`llama.expert_count` is not supported"),
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
        let scaling = with("llama.rope.scaling.type", Value::Text("yarn".to_owned()));
        assert_eq!(
            error(scaling),
            "`llama.rope.scaling.type` = yarn is not supported"
        );
        let scale = with("llama.attention.scale", Value::Float(0.1));
        assert_eq!(error(scale), "`llama.attention.scale` is not supported");
        let other = with("general.architecture", Value::Text("mamba".to_owned()));
        assert_eq!(
            error(other),
            "architecture `mamba` is not supported (supported: llama, qwen2, qwen3)"
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
        expected.rope.style = RopeStyle::Halves;
        expected.tied_head = false;
        assert_eq!(json_with("{}").expect("a good config"), expected);
        let tied = json_with(r#"{"tie_word_embeddings": true, "head_dim": 16}"#).expect("good");
        assert!(tied.tied_head && tied.heads.head_dim == 16 && tied.rope.dim == 16);
        let qwen = r#"{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 64}"#;
        let qwen = json_with(qwen).expect("good");
        assert!(qwen.qkv_bias && !qwen.qk_norm && qwen.window.is_none());
        let no_class = json_with(r#"{"architectures": null, "model_type": "qwen3"}"#).expect("good");
        assert!(no_class.qk_norm && !no_class.qkv_bias);
    }

    #[test]
    fn rope_scaling_is_read_in_its_old_and_new_places() {
        let scaling = |changes: &str| json_with(changes).expect("good").rope;
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
            .rope
            .scaling;
        assert_eq!(gguf, RopeScaling::Linear { factor: 2.0 });
        let gguf = with("llama.rope.scale_linear", Value::Float(3.0))
            .expect("good")
            .rope
            .scaling;
        assert_eq!(gguf, RopeScaling::Linear { factor: 3.0 });
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

    #[test]
    fn what_config_json_asks_for_and_is_not_done_is_refused_by_name() {
        let cases = [
            (
                r#"{"quantization_config": {"quant_method": "gptq"}}"#,
                "`quantization_config` is not supported",
            ),
            (
                r#"{"hidden_act": "gelu"}"#,
                "`hidden_act` = gelu is not supported",
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
                r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4}}"#,
                "`rope_scaling.rope_type` = yarn",
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
        ];
        for (changes, expected) in cases {
            let error = json_with(changes).expect_err(changes).to_string();
            assert!(
                error.contains(expected),
                "{changes}: {error:?} does not say {expected:?}"
            );
        }
    }
}
