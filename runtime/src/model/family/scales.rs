//! The constant factors of a family and its activation.

use arbora_kernels::quant::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16};
use arbora_kernels::{Activation, HeadLayout};

use super::row::{ATTENTION_CAP, AttentionScale, EmbeddingScale, Family, LOGIT_CAP, LogitScale, SoftCaps};
use super::{Key, Keys, Names, out_of_range, unsupported};
use crate::model::config::Scales;
use crate::model::file::LoadError;
use crate::model::metadata::{KeyError, required};

/// Factor of products of queries and keys.
pub(super) fn attention_scale(
    keys: &Keys<'_>,
    family: &Family,
    (width, heads, n_layers): (usize, HeadLayout, usize),
) -> Result<f64, KeyError> {
    let root = |of: f64| 1.0 / of.sqrt();
    Ok(match (family.attention_scale, keys.names) {
        (AttentionScale::HeadDim, _) => root(heads.head_dim as f64),
        (AttentionScale::Factor(key), _) => keys.required_factor(key)?,
        (AttentionScale::InverseRoot { json, .. }, Names::ConfigJson) => {
            root(keys.required_factor(super::key("", json))?)
        }
        (
            AttentionScale::InverseRoot {
                by_width_if_layers, ..
            },
            Names::Gguf { .. },
        ) => match n_layers == by_width_if_layers {
            true => root(width as f64 / heads.n_heads as f64),
            false => root(heads.head_dim as f64),
        },
    })
}

/// Soft cap of attention scores.
pub(super) fn attention_cap(keys: &Keys<'_>, family: &Family) -> Result<Option<f32>, KeyError> {
    cap(keys, family, ATTENTION_CAP)
}

fn cap(keys: &Keys<'_>, family: &Family, key: Key) -> Result<Option<f32>, KeyError> {
    let found = match family.soft_caps {
        SoftCaps::Never => None,
        SoftCaps::Optional => keys.factor(key)?,
        SoftCaps::Required => Some(keys.required_factor(key)?),
    };
    Ok(found.map(|cap| cap as f32))
}

/// All other factors.
pub(super) fn scales(keys: &Keys<'_>, family: &Family, width: usize) -> Result<Scales, KeyError> {
    let or_1 = |key| Ok(keys.factor(key)?.unwrap_or(1.0));
    let logits = match family.logit_scale {
        LogitScale::None => 1.0,
        LogitScale::Factor(key) => keys.required_factor(key)?,
        LogitScale::Divisor(key) => 1.0 / or_1(key)?,
    };
    Ok(Scales {
        embedding: match family.embedding_scale {
            EmbeddingScale::None => 1.0,
            EmbeddingScale::Factor(key) => or_1(key)? as f32,
            EmbeddingScale::RootOfWidth => as_weights_are(keys, (width as f64).sqrt() as f32)?,
        },
        residual: family.residual_scale.map_or(Ok(1.0), or_1)? as f32,
        logits: logits as f32,
        logit_soft_cap: cap(keys, family, LOGIT_CAP)?,
    })
}

/// The number in the format that `config.json` says the weights have. GGUF files do not say what they were
/// made from.
fn as_weights_are(keys: &Keys<'_>, value: f32) -> Result<f32, KeyError> {
    let Names::ConfigJson = keys.names else {
        return Ok(value);
    };
    let dtype = match keys.metadata.text("dtype")? {
        None => keys.metadata.text("torch_dtype")?,
        dtype => dtype,
    };
    Ok(match dtype {
        Some("bfloat16") => f32_from_bf16(bf16_from_f32(value)),
        Some("float16") => f32_from_f16(f16_from_f32(value)),
        _ => value,
    })
}

/// Activation of the MLP.
pub(super) fn activation(keys: &Keys<'_>, family: &Family) -> Result<Activation, LoadError> {
    let Names::ConfigJson = keys.names else {
        return Ok(family.activation);
    };
    if family.activation == Activation::ClampedSwish {
        // `hidden_act` is not what its experts have.
        for (key, expected) in [
            ("swiglu_alpha", Activation::CLAMPED_SWISH_FACTOR),
            ("swiglu_limit", Activation::CLAMPED_SWISH_LIMIT),
        ] {
            match keys.metadata.float(key)? {
                Some(value) if value as f32 != expected => return Err(unsupported(key, &value.to_string())),
                _ => {}
            }
        }
        return Ok(family.activation);
    }
    match keys.metadata.text(family.activation_key)? {
        None => Ok(family.activation),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(family.gelu),
        Some(other) => Err(unsupported(family.activation_key, other)),
    }
}

impl Keys<'_> {
    /// A factor or cap: a number above 0.
    pub(super) fn factor(&self, key: Key) -> Result<Option<f64>, KeyError> {
        let key = self.full(key);
        match self.metadata.float(&key)? {
            Some(value) if !(value > 0.0 && value <= 1e6) => {
                Err(out_of_range(&key, &value, "above 0 and at most 1e6".to_owned()))
            }
            value => Ok(value),
        }
    }

    pub(super) fn required_factor(&self, key: Key) -> Result<f64, KeyError> {
        required(&self.full(key), self.factor(key))
    }
}
