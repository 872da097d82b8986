//! The table of model families: how an architecture's own words become a [`DecoderConfig`].
//!
//! A family that fits the decoder is a row here and a golden test. GGUF metadata and `config.json` say the
//! same things under different names, so each thing is read once, by a [`Key`] with both names. Whatever a
//! file asks for that the decoder does not do is refused by name: a model that answers nonsense because a key
//! was ignored is worse than one that does not start. Keys that neither the families nor the lists of refused
//! keys know are passed over, as the reference implementations of these classes pass over them.

mod mixture;
mod rope;
mod row;
mod scales;
mod table;
mod windows;

use arbora_kernels::{AttentionSpec, HeadLayout, NormKind};
use serde_json::{Map, Value as Json};

use super::config::{Biases, DecoderConfig, LayerConfig, MlpKind, NormConfig};
use super::directory::flatten;
use super::file::LoadError;
use super::gguf::Gguf;
use super::metadata::{KeyError, Metadata, required};
use super::names::{ExpertLayout, Naming, TensorNames};
use row::{Family, Flag, Parallel};
use table::FAMILIES;
use windows::{gguf_windows, json_window, window, windows};

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
    "is_encoder_decoder",
    "use_bidirectional_attention",
    "add_cross_attention",
    "attention_bias",
    "use_qkv_bias",
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
const LAYER_NORM_EPS: [Key; 2] = [
    key("attention.layer_norm_epsilon", "layer_norm_eps"),
    key("attention.layer_norm_epsilon", "norm_epsilon"),
];
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

    fn flag(&self, flag: Flag) -> Result<bool, KeyError> {
        Ok(match flag {
            Flag::Never => false,
            Flag::Always => true,
            Flag::Key(key) => self.metadata.flag(key)? == Some(true),
        })
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
    n_vocab: usize,
    n_layers: usize,
    /// Of each layer; absent where it is not known which layers have `window`.
    windows: Option<Vec<Option<usize>>>,
    window: Option<usize>,
    tied_head: bool,
}

impl DecoderConfig {
    /// The decoder a GGUF file describes. Every number is checked against a limit; a file that asks for
    /// something the decoder does not do is refused by the name of the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<DecoderConfig, LoadError> {
        let name = "general.architecture";
        let architecture = required(name, gguf.metadata.text(name))?;
        let family = family_of_gguf(&gguf.metadata, architecture)?;
        let keys = Keys {
            metadata: &gguf.metadata,
            names: Names::Gguf { architecture },
        };
        refuse_in_gguf(&gguf.metadata, family, architecture)?;
        let (n_layers, window) = (keys.required_count(LAYERS, MAX_LAYERS)?, window(&keys)?);
        let particulars = Particulars {
            n_vocab: gguf_n_vocab(gguf, architecture)?,
            n_layers,
            windows: gguf_windows(&gguf.metadata, family.windows, (n_layers, window))?,
            window,
            tied_head: gguf.tensor("output.weight").is_none(),
        };
        describe(family, &keys, &particulars)
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
        refuse_in_json(json, family)?;
        let window = json_window(&keys, family.windows, json)?;
        let n_layers = keys.required_count(LAYERS, MAX_LAYERS)?;
        let particulars = Particulars {
            n_vocab: required("vocab_size", count(metadata, "vocab_size", MAX_VOCAB))?,
            n_layers,
            windows: windows(metadata, family.windows, (n_layers, window))?,
            window,
            tied_head: metadata.flag("tie_word_embeddings")?.unwrap_or(!has_head),
        };
        describe(family, &keys, &particulars)
    }
}

/// Converters write some families under another one's name, with experts or without.
fn family_of_gguf(metadata: &Metadata, architecture: &str) -> Result<&'static Family, LoadError> {
    let n_experts = metadata.unsigned(&format!("{architecture}.expert_count"))?;
    let has_experts = n_experts.is_some_and(|n| n > 0);
    let known = |family: &&Family| family.architecture == Some(architecture);
    let fits = |family: &&Family| family.mixture.is_some() == has_experts;
    let mut named = FAMILIES.iter().filter(known);
    let family = named.clone().find(fits).or_else(|| named.next());
    family.ok_or_else(|| {
        let known = FAMILIES.iter().filter_map(|family| family.architecture);
        let mut known: Vec<&str> = known.collect();
        known.dedup();
        unknown_architecture(architecture, known)
    })
}

fn describe(family: &Family, keys: &Keys<'_>, particulars: &Particulars) -> Result<DecoderConfig, LoadError> {
    let width = keys.required_count(WIDTH, MAX_WIDTH)?;
    let heads = head_layout(keys, width)?;
    let trained_context = keys.required_count(CONTEXT, MAX_CONTEXT)?;
    let window = match particulars.windows {
        Some(_) => None,
        None => particulars.window.filter(|window| *window < trained_context),
    };
    let experts = mixture::experts(keys, family)?;
    let layers = layers(family, keys, particulars, (width, heads, trained_context))?;
    Ok(DecoderConfig {
        ffn_width: mixture::ffn_width(keys, &layers, experts.as_ref())?,
        layers,
        width,
        heads,
        experts,
        n_vocab: particulars.n_vocab,
        context: window.unwrap_or(trained_context),
        window,
        norm: norm(family, keys)?,
        ropes: rope::ropes(keys, family, heads.head_dim)?,
        biases: Biases {
            qkv: keys.flag(family.qkv_bias)?,
            attention_out: keys.flag(family.attention_out_bias)?,
            mlp: family.mlp_bias,
            head: family.head_bias,
        },
        has_sinks: family.has_sinks,
        qk_norm: match keys.flag(family.qk_norm_if)? {
            true => family.qk_norm,
            false => None,
        },
        scales: scales::scales(keys, family, width)?,
        tied_head: particulars.tied_head,
        tensors: TensorNames {
            naming: match keys.names {
                Names::Gguf { .. } => Naming::Gguf,
                Names::ConfigJson => Naming::HuggingFace,
            },
            renamed: match keys.names {
                Names::Gguf { .. } => family.renamed_in_gguf,
                Names::ConfigJson => family.renamed,
            },
            layers: family.layers,
            fused_qkv: family.fused_qkv,
            qkv_by_group: family.qkv_by_group,
            fused_gate_up: family.fused_gate_up,
            experts: family.expert_layout,
            has_draft_layers: family.has_draft_layers,
        },
    })
}

fn layers(
    family: &Family,
    keys: &Keys<'_>,
    particulars: &Particulars,
    (width, heads, trained_context): (usize, HeadLayout, usize),
) -> Result<Vec<LayerConfig>, LoadError> {
    let n_layers = particulars.n_layers;
    let windows = match &particulars.windows {
        Some(windows) => windows.clone(),
        None => vec![None; n_layers],
    };
    let windowed: Vec<bool> = windows.iter().map(Option::is_some).collect();
    let ropes = rope::layer_ropes(keys, family, &windowed)?;
    let norms = match family.parallel {
        Some(Parallel { key, default, norms }) if keys.metadata.flag(key)?.unwrap_or(default) => norms,
        _ => family.norms,
    };
    let activation = scales::activation(keys, family)?;
    let attention = AttentionSpec {
        scale: scales::attention_scale(keys, family, (width, heads, n_layers))?,
        soft_cap: scales::attention_cap(keys, family)?,
        window: None,
    };
    let kinds = mixture::kinds(keys, family, n_layers)?;
    let layer = |((window, rope), mlp): ((Option<usize>, Option<usize>), MlpKind)| LayerConfig {
        attention: AttentionSpec {
            // One that is not shorter than any sequence changes nothing.
            window: window.filter(|window| *window < trained_context),
            ..attention
        },
        rope,
        mlp,
        activation,
        norms,
    };
    Ok(windows.into_iter().zip(ropes).zip(kinds).map(layer).collect())
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

fn refuse_in_gguf(metadata: &Metadata, family: &Family, architecture: &str) -> Result<(), LoadError> {
    let read = family.reads();
    for key in REFUSED_IN_GGUF {
        if read.iter().any(|read| read.gguf == *key) {
            continue;
        }
        let key = format!("{architecture}.{key}");
        // A count of 0 says that the feature is absent; converters write it.
        if metadata.contains(&key) && metadata.unsigned(&key) != Ok(Some(0)) {
            return Err(LoadError::UnsupportedFeature { key, value: None });
        }
    }
    Ok(())
}

fn refuse_in_json(json: &Map<String, Json>, family: &Family) -> Result<(), LoadError> {
    let read = family.reads();
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
    for &key in REFUSED_IN_JSON.iter().chain(family.refused) {
        match json.get(key) {
            Some(_) if read.iter().any(|read| read.json == key) => {}
            Some(value) if !asks_for_nothing(value) => return refused(key, short(value)),
            _ => {}
        }
    }
    // Blocks of experts are tensors of their own, which only this layout has.
    let quantization = json.get("quantization_config");
    let method = quantization.and_then(|settings| settings.get("quant_method"));
    if family.expert_layout != ExpertLayout::Interleaved && method.is_some_and(|method| method == "mxfp4") {
        return refused("quantization_config.quant_method", Some("mxfp4".to_owned()));
    }
    match json.get("partial_rotary_factor") {
        Some(factor) if family.partial_rotary.is_none() && factor.as_f64().is_some_and(|x| x != 1.0) => {
            refused("partial_rotary_factor", short(factor))
        }
        _ => Ok(()),
    }
}

fn unsupported(key: &str, value: &str) -> LoadError {
    LoadError::UnsupportedFeature {
        key: key.to_owned(),
        value: Some(value.to_owned()),
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

fn norm(family: &Family, keys: &Keys<'_>) -> Result<NormConfig, KeyError> {
    let names = match family.norm {
        NormKind::Rms => &[NORM_EPS][..],
        NormKind::Layer => &LAYER_NORM_EPS,
    };
    let named = names.iter().map(|key| keys.full(*key));
    let key = named.clone().find(|key| keys.metadata.contains(key));
    let key = key.unwrap_or_else(|| keys.full(names[0]));
    let eps = required(&key, keys.metadata.float(&key))?;
    if !(eps > 0.0 && eps < 1.0) {
        return Err(out_of_range(&key, &eps, "between 0 and 1".to_owned()));
    }
    Ok(NormConfig {
        kind: family.norm,
        eps: eps as f32,
        has_bias: family.norm_bias,
        offset: match keys.names {
            Names::Gguf { .. } => 0.0,
            Names::ConfigJson => family.norm_offset,
        },
    })
}

fn out_of_range(key: &str, value: &dyn std::fmt::Display, limit: String) -> KeyError {
    KeyError::OutOfRange {
        key: key.to_owned(),
        value: value.to_string(),
        limit,
    }
}

#[cfg(test)]
mod tests;
