//! Rotary embeddings as files describe them.

use super::row::{Family, LayerRopes};
use super::{CONTEXT, Keys, MAX_CONTEXT, Names, ROPE_BASE, ROPE_DIM, key, out_of_range, unsupported};
use crate::model::config::{RopeConfig, RopeScaling};
use crate::model::file::LoadError;
use crate::model::metadata::{KeyError, Metadata, required};

const DEFAULT_BASE: f64 = 10_000.0;

/// The rotations of a model, those of layers without a window first.
pub(super) fn ropes(keys: &Keys<'_>, family: &Family, head_dim: usize) -> Result<Vec<RopeConfig>, LoadError> {
    let (base, windowed_base) = match family.layer_ropes {
        LayerRopes::Two {
            windowed_base,
            full_base,
        } => (full_base, Some(windowed_base)),
        _ => (DEFAULT_BASE, None),
    };
    let full = match keys.names {
        Names::Gguf { .. } => gguf_rope(keys, family, (head_dim, base))?,
        Names::ConfigJson => json_rope(keys, family, (head_dim, base))?,
    };
    let windowed = windowed_base.map(|base| {
        Ok::<_, LoadError>(RopeConfig {
            base: windowed_rope_base(keys, base)?,
            scaling: RopeScaling::None,
            ..full.clone()
        })
    });
    Ok([full.clone()].into_iter().chain(windowed.transpose()?).collect())
}

/// Index of the rotation of each layer; `windowed` says which have a sliding window.
pub(super) fn layer_ropes(
    keys: &Keys<'_>,
    family: &Family,
    windowed: &[bool],
) -> Result<Vec<Option<usize>>, KeyError> {
    let n_layers = windowed.len();
    Ok(match family.layer_ropes {
        LayerRopes::One => vec![Some(0); n_layers],
        LayerRopes::Windowed => windowed.iter().map(|windowed| windowed.then_some(0)).collect(),
        LayerRopes::Two { .. } => windowed
            .iter()
            .map(|windowed| Some(usize::from(*windowed)))
            .collect(),
        LayerRopes::AllBut { every } => {
            // Only `config.json` has keys for it.
            let metadata = keys.metadata;
            if let Some(list) = metadata.integers("no_rope_layers")? {
                if list.len() != n_layers {
                    let limit = format!("a list of {n_layers} layers");
                    return Err(out_of_range("no_rope_layers", &list.len(), limit));
                }
                return Ok(list.iter().map(|rotated| (*rotated != 0).then_some(0)).collect());
            }
            let every = super::count(metadata, "no_rope_layer_interval", super::MAX_LAYERS)?.unwrap_or(every);
            (1..=n_layers)
                .map(|n| (!n.is_multiple_of(every)).then_some(0))
                .collect()
        }
    })
}

/// Rotation by GGUF's keys. Llama 3's factors are a tensor there.
fn gguf_rope(
    keys: &Keys<'_>,
    family: &Family,
    (head_dim, default_base): (usize, f64),
) -> Result<RopeConfig, LoadError> {
    let dim = keys.count(ROPE_DIM, head_dim)?.unwrap_or(head_dim);
    if !dim.is_multiple_of(2) {
        return Err(out_of_range(&keys.full(ROPE_DIM), &dim, "even".to_owned()).into());
    }
    let scaling_type = keys.full(key("rope.scaling.type", ""));
    let factor = |name| gguf_number(keys, name);
    let mut attention_factor = 1.0;
    let scaling = match keys.metadata.text(&scaling_type)? {
        Some("none") => RopeScaling::None,
        None | Some("linear") => match factor("rope.scaling.factor")?.or(factor("rope.scale_linear")?) {
            None => RopeScaling::None,
            Some(factor) => RopeScaling::Linear { factor },
        },
        Some("yarn") => {
            let (yarn, factor) = gguf_yarn(keys, family)?;
            attention_factor = factor;
            yarn
        }
        Some(other) => return Err(unsupported(&scaling_type, other)),
    };
    Ok(RopeConfig {
        style: family.gguf_rope_style,
        dim,
        base: rope_base(keys.metadata, &[&keys.full(ROPE_BASE)], default_base)?,
        scaling,
        attention_factor,
    })
}

/// A number above 0. Converters write 0 for "not scaled".
fn gguf_number(keys: &Keys<'_>, name: &'static str) -> Result<Option<f64>, KeyError> {
    let key = keys.full(key(name, ""));
    match keys.metadata.float(&key)? {
        None | Some(0.0) => Ok(None),
        Some(number) => positive(&key, number).map(Some),
    }
}

/// YaRN by GGUF's keys, and the factor of cosines and sines.
fn gguf_yarn(keys: &Keys<'_>, family: &Family) -> Result<(RopeScaling, f64), LoadError> {
    for (name, neutral) in [
        ("rope.scaling.yarn_log_multiplier", 0.0),
        ("rope.scaling.yarn_ext_factor", 1.0),
    ] {
        let key = keys.full(key(name, ""));
        match keys.metadata.float(&key)? {
            Some(value) if value != neutral => return Err(unsupported(&key, &value.to_string())),
            _ => {}
        }
    }
    let number = |name| gguf_number(keys, name);
    let name = "rope.scaling.factor";
    let factor = required(&keys.full(key(name, "")), number(name))?;
    let original_context = match number("rope.scaling.original_context_length")? {
        Some(original) => original,
        None => keys.required_count(CONTEXT, MAX_CONTEXT)? as f64,
    };
    let fast = "rope.scaling.yarn_beta_fast";
    let scaling = RopeScaling::Yarn {
        factor,
        fast_turns: number(fast)?.unwrap_or(FAST_TURNS),
        slow_turns: number("rope.scaling.yarn_beta_slow")?.unwrap_or(SLOW_TURNS),
        original_context,
        whole_pairs: family.gguf_yarn_whole_pairs,
    };
    check_turns(&scaling, &keys.full(key(fast, "")))?;
    let of_file = match number("rope.scaling.yarn_attn_factor")? {
        None => number("rope.scaling.attn_factor")?,
        found => found,
    };
    Ok((scaling, yarn_factor(factor) * of_file.unwrap_or(1.0)))
}

/// YaRN's borders where files do not say.
const FAST_TURNS: f64 = 32.0;
const SLOW_TURNS: f64 = 1.0;

/// Pairs that are left alone turn more often than those that are stretched.
fn check_turns(scaling: &RopeScaling, fast_key: &str) -> Result<(), KeyError> {
    match scaling {
        RopeScaling::Yarn {
            fast_turns,
            slow_turns,
            ..
        } if fast_turns <= slow_turns => {
            let limit = format!("above the slow one, {slow_turns}");
            Err(out_of_range(fast_key, fast_turns, limit))
        }
        _ => Ok(()),
    }
}

/// YaRN's factor of cosines and sines where a file does not say.
fn yarn_factor(factor: f64) -> f64 {
    if factor > 1.0 {
        0.1 * factor.ln() + 1.0
    } else {
        1.0
    }
}

/// Rotation by `config.json`: `rope_theta` and `rope_scaling`, or all in `rope_parameters`, which has an
/// object for each kind of layer where they differ.
fn json_rope(
    keys: &Keys<'_>,
    family: &Family,
    (head_dim, default_base): (usize, f64),
) -> Result<RopeConfig, LoadError> {
    let metadata = keys.metadata;
    let bases = [
        "rope_parameters.full_attention.rope_theta",
        "rope_parameters.rope_theta",
        "rope_theta",
        // GPT-NeoX before it had `rope_theta`.
        "rotary_emb_base",
    ];
    let types = [
        "rope_scaling",
        "rope_parameters.full_attention",
        "rope_parameters",
    ]
    .into_iter()
    .flat_map(|outer| ["rope_type", "type"].map(|name| (outer, format!("{outer}.{name}"))));
    let dim = match family.partial_rotary {
        None => head_dim,
        Some(default) => rotated_elements(metadata, (head_dim, default))?,
    };
    let mut rope = RopeConfig {
        style: family.json_rope_style,
        dim,
        base: rope_base(metadata, &bases, default_base)?,
        scaling: RopeScaling::None,
        attention_factor: 1.0,
    };
    let mut types = types;
    if let Some((outer, type_key)) = types.find(|(_, key)| metadata.contains(key)) {
        let context = keys.required_count(CONTEXT, MAX_CONTEXT)? as f64;
        let scaled = Scaled {
            metadata,
            outer,
            context,
        };
        (rope.scaling, rope.attention_factor) = scaled.read(&type_key, dim)?;
    }
    Ok(rope)
}

/// Base of the layers with a window, where it is another one.
fn windowed_rope_base(keys: &Keys<'_>, default: f64) -> Result<f64, LoadError> {
    let outer = "rope_parameters.sliding_attention";
    for name in ["rope_type", "type"] {
        let key = format!("{outer}.{name}");
        match keys.metadata.text(&key)? {
            None | Some("default") => {}
            Some(other) => return Err(unsupported(&key, other)),
        }
    }
    let bases = [
        "rope_parameters.sliding_attention.rope_theta",
        "rope_local_base_freq",
    ];
    Ok(rope_base(keys.metadata, &bases, default)?)
}

/// Elements of a head that are rotated.
fn rotated_elements(metadata: &Metadata, (head_dim, default): (usize, f64)) -> Result<usize, KeyError> {
    let keys = [
        "partial_rotary_factor",
        "rope_parameters.partial_rotary_factor",
        "rotary_pct",
    ];
    let key = keys
        .into_iter()
        .find(|key| metadata.contains(key))
        .unwrap_or(keys[0]);
    let factor = metadata.float(key)?.unwrap_or(default);
    let dim = (head_dim as f64 * factor) as usize;
    if factor > 0.0 && factor <= 1.0 && dim > 0 && dim.is_multiple_of(2) {
        Ok(dim)
    } else {
        let limit = format!("above 0, at most 1, and an even part of {head_dim} elements");
        Err(out_of_range(key, &factor, limit))
    }
}

/// An object that says how frequencies are scaled.
struct Scaled<'a> {
    metadata: &'a Metadata,
    outer: &'a str,
    /// Longest sequence the model was made for.
    context: f64,
}

impl Scaled<'_> {
    /// The scaling, and the factor of cosines and sines.
    fn read(&self, type_key: &str, dim: usize) -> Result<(RopeScaling, f64), LoadError> {
        let scaling = match required(type_key, self.metadata.text(type_key))? {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: self.number("factor")?,
            },
            "llama3" => self.llama3()?,
            "yarn" => return self.yarn(),
            "longrope" | "su" => return self.longrope(dim),
            other => return Err(unsupported(type_key, other)),
        };
        Ok((scaling, 1.0))
    }

    fn llama3(&self) -> Result<RopeScaling, LoadError> {
        let (low, high) = (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        if high <= low {
            let key = format!("{}.high_freq_factor", self.outer);
            return Err(out_of_range(&key, &high, format!("above the low one, {low}")).into());
        }
        Ok(RopeScaling::Llama3 {
            factor: self.number("factor")?,
            low_frequency_factor: low,
            high_frequency_factor: high,
            original_context: self.number("original_max_position_embeddings")?,
        })
    }

    fn yarn(&self) -> Result<(RopeScaling, f64), LoadError> {
        let factor = self.number("factor")?;
        for name in ["mscale", "mscale_all_dim"] {
            let key = format!("{}.{name}", self.outer);
            if let Some(value) = self.metadata.float(&key)? {
                return Err(unsupported(&key, &value.to_string()));
            }
        }
        let scaling = RopeScaling::Yarn {
            factor,
            fast_turns: self.optional("beta_fast")?.unwrap_or(FAST_TURNS),
            slow_turns: self.optional("beta_slow")?.unwrap_or(SLOW_TURNS),
            original_context: self.original_context()?,
            whole_pairs: self.metadata.flag(&format!("{}.truncate", self.outer))? != Some(false),
        };
        check_turns(&scaling, &format!("{}.beta_fast", self.outer))?;
        let of_file = self.optional("attention_factor")?;
        Ok((scaling, of_file.unwrap_or_else(|| yarn_factor(factor))))
    }

    fn longrope(&self, dim: usize) -> Result<(RopeScaling, f64), LoadError> {
        let original_context = self.original_context()?;
        let scaling = RopeScaling::LongRope {
            short: self.list("short_factor", dim / 2)?,
            long: self.list("long_factor", dim / 2)?,
            original_context,
        };
        let factor = self
            .optional("factor")?
            .unwrap_or(self.context / original_context);
        let default = match factor > 1.0 && original_context > 1.0 {
            true => (1.0 + factor.ln() / original_context.ln()).sqrt(),
            false => 1.0,
        };
        Ok((scaling, self.optional("attention_factor")?.unwrap_or(default)))
    }

    /// Context before the stretch: beside the object, in it, or the model's own.
    fn original_context(&self) -> Result<f64, KeyError> {
        let name = "original_max_position_embeddings";
        match self.metadata.float(name)? {
            Some(value) => positive(name, value),
            None => Ok(self.optional(name)?.unwrap_or(self.context)),
        }
    }

    fn number(&self, name: &str) -> Result<f64, KeyError> {
        required(&format!("{}.{name}", self.outer), self.optional(name))
    }

    fn optional(&self, name: &str) -> Result<Option<f64>, KeyError> {
        let key = format!("{}.{name}", self.outer);
        let value = self.metadata.float(&key)?;
        value.map(|value| positive(&key, value)).transpose()
    }

    fn list(&self, name: &str, len: usize) -> Result<Vec<f64>, KeyError> {
        let key = format!("{}.{name}", self.outer);
        // A list of whole numbers has a type of its own.
        let whole = self.metadata.integers(&key).unwrap_or(None);
        let list = match whole {
            Some(list) => list.iter().map(|&value| value as f64).collect(),
            None => required(&key, self.metadata.floats(&key))?.to_vec(),
        };
        if list.len() != len {
            return Err(out_of_range(
                &key,
                &list.len(),
                format!("a list of {len} factors"),
            ));
        }
        list.into_iter().map(|value| positive(&key, value)).collect()
    }
}

fn positive(key: &str, value: f64) -> Result<f64, KeyError> {
    if value > 0.0 && value <= 1e9 {
        Ok(value)
    } else {
        Err(out_of_range(key, &value, "above 0 and at most 1e9".to_owned()))
    }
}

/// The first of the keys that is there.
fn rope_base(metadata: &Metadata, keys: &[&str], default: f64) -> Result<f64, KeyError> {
    let Some(key) = keys.iter().find(|key| metadata.contains(key)) else {
        return Ok(default);
    };
    let base = required(key, metadata.float(key))?;
    if base > 1.0 && base <= 1e12 {
        Ok(base)
    } else {
        Err(out_of_range(key, &base, "above 1 and at most 1e12".to_owned()))
    }
}
