//! The table of model families: how an architecture's GGUF metadata becomes a [`DecoderConfig`].
//!
//! A family that fits the decoder is a row here and a golden test. Whatever a file asks for that the decoder
//! does not do is refused by name: a model that answers nonsense because a key was ignored is worse than one
//! that does not start.

use arbora_kernels::{HeadLayout, RopeStyle};

use super::config::{DecoderConfig, RopeConfig};
use super::file::LoadError;
use super::gguf::Gguf;
use super::metadata::{KeyError, required};

/// What distinguishes one architecture from another.
struct Family {
    /// `general.architecture`, and the first part of its keys.
    architecture: &'static str,
    /// Pairing of rotated elements as the converter leaves it: for llama it permutes q and k.
    rope_style: RopeStyle,
    /// Biases on q, k and v.
    qkv_bias: bool,
    /// RMSNorm on each query and key head.
    qk_norm: bool,
}

const FAMILIES: &[Family] = &[Family {
    architecture: "llama",
    rope_style: RopeStyle::Interleaved,
    qkv_bias: false,
    qk_norm: false,
}];

/// Keys (after the architecture's name) that would change the arithmetic in ways the decoder has no part for.
const REFUSED_KEYS: &[&str] = &[
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
    "rope.scale_linear",
];

const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 16;
const MAX_HEADS: usize = 1024;
const MAX_HEAD_DIM: usize = 1024;
const MAX_FFN_WIDTH: usize = 1 << 20;
const MAX_CONTEXT: usize = 1 << 24;
const MAX_VOCAB: usize = 1 << 22;

/// Metadata of one architecture, its keys without their prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn count(&self, key: &str, max: usize) -> Result<Option<usize>, KeyError> {
        let key = self.full(key);
        match self.gguf.metadata.unsigned(&key)? {
            Some(value) if !(1..=max as u64).contains(&value) => {
                Err(out_of_range(&key, &value, format!("1 to {max}")))
            }
            value => Ok(value.map(|value| value as usize)),
        }
    }

    fn required_count(&self, key: &str, max: usize) -> Result<usize, KeyError> {
        required(&self.full(key), self.count(key, max))
    }

    fn refuse_unsupported(&self) -> Result<(), LoadError> {
        let metadata = &self.gguf.metadata;
        for key in REFUSED_KEYS {
            let key = self.full(key);
            // A count of 0 says that the feature is absent; converters write it.
            if metadata.contains(&key) && metadata.unsigned(&key) != Ok(Some(0)) {
                return Err(LoadError::UnsupportedFeature { key, value: None });
            }
        }
        let key = self.full("rope.scaling.type");
        match metadata.text(&key)? {
            None | Some("none") => Ok(()),
            Some(value) => {
                let value = Some(value.to_owned());
                Err(LoadError::UnsupportedFeature { key, value })
            }
        }
    }
}

impl DecoderConfig {
    /// The decoder a file describes. Every number is checked against a limit; a file that asks for something
    /// the decoder does not do is refused by the name of the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<DecoderConfig, LoadError> {
        let key = "general.architecture";
        let architecture = required(key, gguf.metadata.text(key))?;
        let Some(family) = FAMILIES.iter().find(|family| family.architecture == architecture) else {
            return Err(LoadError::UnknownArchitecture {
                found: architecture.to_owned(),
                known: FAMILIES.iter().map(|family| family.architecture).collect(),
            });
        };
        let keys = Keys { gguf, architecture };
        keys.refuse_unsupported()?;
        let context = keys.required_count("context_length", MAX_CONTEXT)?;
        refuse_window_below(context, &keys)?;
        let width = keys.required_count("embedding_length", MAX_WIDTH)?;
        let heads = head_layout(&keys, width)?;
        Ok(DecoderConfig {
            n_layers: keys.required_count("block_count", MAX_LAYERS)?,
            width,
            heads,
            ffn_width: keys.required_count("feed_forward_length", MAX_FFN_WIDTH)?,
            n_vocab: n_vocab(&keys)?,
            context,
            norm_eps: norm_eps(&keys)?,
            rope: rope_config(&keys, family, heads.head_dim)?,
            qkv_bias: family.qkv_bias,
            qk_norm: family.qk_norm,
            tied_head: gguf.tensor("output.weight").is_none(),
        })
    }
}

fn refuse_window_below(context: usize, keys: &Keys<'_>) -> Result<(), LoadError> {
    let name = "attention.sliding_window";
    match keys.gguf.metadata.unsigned(&keys.full(name))? {
        Some(window) if window > 0 && window < context as u64 => Err(LoadError::UnsupportedFeature {
            key: keys.full(name),
            value: Some(window.to_string()),
        }),
        _ => Ok(()),
    }
}

fn head_layout(keys: &Keys<'_>, width: usize) -> Result<HeadLayout, KeyError> {
    let n_heads = keys.required_count("attention.head_count", MAX_HEADS)?;
    let n_kv_heads = keys
        .count("attention.head_count_kv", MAX_HEADS)?
        .unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        let key = keys.full("attention.head_count_kv");
        return Err(out_of_range(
            &key,
            &n_kv_heads,
            format!("a divisor of {n_heads} heads"),
        ));
    }
    let length_key = "attention.key_length";
    let head_dim = match keys.count(length_key, MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if width.is_multiple_of(n_heads) && width / n_heads <= MAX_HEAD_DIM => width / n_heads,
        None => {
            let key = keys.full("embedding_length");
            let limit = format!("a multiple of {n_heads} heads, of at most {MAX_HEAD_DIM} each");
            return Err(out_of_range(&key, &width, limit));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(out_of_range(&keys.full(length_key), &head_dim, "even".to_owned()));
    }
    if let Some(value_length) = keys.count("attention.value_length", MAX_HEAD_DIM)?
        && value_length != head_dim
    {
        let key = keys.full("attention.value_length");
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
fn n_vocab(keys: &Keys<'_>) -> Result<usize, LoadError> {
    let name = "token_embd.weight";
    let Some(embedding) = keys.gguf.tensor(name) else {
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
    let metadata = &keys.gguf.metadata;
    let tokens_key = "tokenizer.ggml.tokens";
    let said = [
        (
            keys.full("vocab_size"),
            metadata.unsigned(&keys.full("vocab_size"))?,
        ),
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
    let key = keys.full("attention.layer_norm_rms_epsilon");
    let value = required(&key, keys.gguf.metadata.float(&key))?;
    if value > 0.0 && value < 1.0 {
        Ok(value as f32)
    } else {
        Err(out_of_range(&key, &value, "between 0 and 1".to_owned()))
    }
}

fn rope_config(keys: &Keys<'_>, family: &Family, head_dim: usize) -> Result<RopeConfig, KeyError> {
    let dim = keys.count("rope.dimension_count", head_dim)?.unwrap_or(head_dim);
    if !dim.is_multiple_of(2) {
        return Err(out_of_range(
            &keys.full("rope.dimension_count"),
            &dim,
            "even".to_owned(),
        ));
    }
    let key = keys.full("rope.freq_base");
    let base = keys.gguf.metadata.float(&key)?.unwrap_or(10_000.0);
    if !(base > 1.0 && base <= 1e12) {
        return Err(out_of_range(&key, &base, "above 1 and at most 1e12".to_owned()));
    }
    Ok(RopeConfig {
        style: family.rope_style,
        dim,
        base,
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
        assert_eq!((config.n_layers, config.width, config.ffn_width), (2, 32, 64));
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
            (
                "llama.attention.sliding_window",
                64,
                "`llama.attention.sliding_window` = 64 is not supported",
            ),
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
            "architecture `mamba` is not supported (supported: llama)"
        );
        let wrong = with("llama.block_count", Value::Text("two".to_owned()));
        assert!(error(wrong).contains("should be an unsigned integer, found a string"));
        with("llama.expert_count", Value::Unsigned(0)).expect("no experts");
        with("llama.rope.scaling.type", Value::Text("none".to_owned())).expect("no scaling");
        with("llama.attention.sliding_window", Value::Unsigned(128)).expect("wider than the context");
    }
}
