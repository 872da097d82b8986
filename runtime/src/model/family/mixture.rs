//! Mixtures of experts as files describe them.

use arbora_kernels::RouterScore;

use super::row::{Family, Flag};
use super::{Key, Keys, MAX_FFN_WIDTH, MAX_LAYERS, Names, key, out_of_range, unsupported};
use crate::model::config::{ExpertsConfig, LayerConfig, MlpKind};
use crate::model::file::LoadError;
use crate::model::metadata::{KeyError, required};

const MAX_EXPERTS: usize = 4096;
/// Experts to choose from. Versions of the reference implementation write one family's number under several
/// names.
pub(super) const N_EXPERTS: [Key; 3] = [
    key("expert_count", "num_experts"),
    key("expert_count", "num_local_experts"),
    key("expert_count", "n_routed_experts"),
];
const N_USED: Key = key("expert_used_count", "num_experts_per_tok");

/// How a family describes its mixture.
#[derive(Clone, Copy)]
pub(super) struct Mixture {
    /// Width of an expert.
    pub(super) width: Key,
    /// What the router's logits become.
    pub(super) score: RouterScore,
    pub(super) has_choice_bias: bool,
    /// Whether scores are divided by the sum of those chosen: in `config.json`, and in GGUF files, which have
    /// no key for it where the family decides.
    pub(super) is_normalized: Flag,
    pub(super) is_normalized_in_gguf: bool,
    /// Factor of the weights.
    pub(super) scale: Option<Key>,
    /// Biases of the router and of the experts.
    pub(super) has_bias: bool,
    pub(super) shared: Shared,
    /// Which layers have no experts.
    pub(super) dense: DenseLayers,
}

/// The expert of all rows.
#[derive(Clone, Copy)]
pub(super) enum Shared {
    None,
    /// One of this width, weighed by a logit.
    Gated {
        width: Key,
    },
    /// As wide as so many experts.
    Experts {
        count: Key,
    },
}

/// Layers without experts.
#[derive(Clone, Copy)]
pub(super) enum DenseLayers {
    None,
    /// Those in `mlp_only_layers`, and all but each `decoder_sparse_step`-th. GGUF files have none.
    ByStep,
    /// So many.
    First(Key),
}

/// Softmax over all experts, no layer without them.
pub(super) const SOFTMAX: Mixture = Mixture {
    width: key("expert_feed_forward_length", "moe_intermediate_size"),
    score: RouterScore::Softmax,
    has_choice_bias: false,
    is_normalized: Flag::Never,
    is_normalized_in_gguf: false,
    scale: None,
    has_bias: false,
    shared: Shared::None,
    dense: DenseLayers::None,
};

/// The mixture of a family that has one.
pub(super) fn experts(keys: &Keys<'_>, family: &Family) -> Result<Option<ExpertsConfig>, LoadError> {
    let Some(mixture) = &family.mixture else {
        return Ok(None);
    };
    refuse_groups(keys)?;
    refuse_other_scores(keys, mixture)?;
    let named = N_EXPERTS
        .iter()
        .find(|key| keys.metadata.contains(&keys.full(**key)));
    let n_experts = keys.required_count(*named.unwrap_or(&N_EXPERTS[0]), MAX_EXPERTS)?;
    let n_used = keys.required_count(N_USED, MAX_EXPERTS)?;
    if n_used > n_experts {
        let limit = format!("at most the {n_experts} experts");
        return Err(out_of_range(&keys.full(N_USED), &n_used, limit).into());
    }
    let width = keys.required_count(mixture.width, MAX_FFN_WIDTH)?;
    let shared_width = match mixture.shared {
        Shared::None => None,
        Shared::Gated { width } => Some(keys.required_count(width, MAX_FFN_WIDTH)?),
        Shared::Experts { count } => {
            // 0 says that there is none.
            let name = keys.full(count);
            match keys.metadata.unsigned(&name)? {
                None | Some(0) => None,
                Some(_) => Some(width * keys.required_count(count, MAX_EXPERTS)?),
            }
        }
    };
    Ok(Some(ExpertsConfig {
        n_experts,
        n_used,
        width,
        score: mixture.score,
        has_choice_bias: mixture.has_choice_bias,
        is_normalized: is_normalized(keys, mixture)?,
        scale: match mixture.scale {
            Some(key) => keys.factor(key)?.unwrap_or(1.0) as f32,
            None => 1.0,
        },
        has_bias: mixture.has_bias,
        shared_width,
        has_shared_gate: matches!(mixture.shared, Shared::Gated { .. }),
    }))
}

fn is_normalized(keys: &Keys<'_>, mixture: &Mixture) -> Result<bool, KeyError> {
    match (keys.names, mixture.is_normalized) {
        (Names::Gguf { .. }, Flag::Key(_)) => {
            let said = keys.metadata.flag(&keys.full(key("expert_weights_norm", "")))?;
            Ok(said.unwrap_or(mixture.is_normalized_in_gguf))
        }
        (_, flag) => keys.flag(flag),
    }
}

/// Experts that are chosen by groups of them are not what this decoder does.
fn refuse_groups(keys: &Keys<'_>) -> Result<(), LoadError> {
    let name = keys.full(key("expert_group_count", "n_group"));
    match keys.metadata.unsigned(&name)? {
        None | Some(0 | 1) => Ok(()),
        Some(n) => Err(unsupported(&name, &n.to_string())),
    }
}

/// GGUF files may say what the family decides here: how logits are scored, and a factor of the weights.
fn refuse_other_scores(keys: &Keys<'_>, mixture: &Mixture) -> Result<(), LoadError> {
    let Names::Gguf { .. } = keys.names else {
        return Ok(());
    };
    let is_done = |function: u64| match (function, mixture.score) {
        // 0 says nothing; 3 is a softmax over the chosen ones.
        (0, _) | (1, RouterScore::Softmax) | (2, RouterScore::Sigmoid) => true,
        (3, RouterScore::Softmax) => matches!(mixture.is_normalized, Flag::Always),
        _ => false,
    };
    let name = keys.full(key("expert_gating_func", ""));
    match keys.metadata.unsigned(&name)? {
        Some(function) if !is_done(function) => return Err(unsupported(&name, &function.to_string())),
        _ => {}
    }
    let name = keys.full(key("expert_weights_scale", ""));
    match keys.metadata.float(&name)? {
        Some(scale) if mixture.scale.is_none() && scale != 0.0 && scale != 1.0 => {
            Err(unsupported(&name, &scale.to_string()))
        }
        _ => Ok(()),
    }
}

/// The kind of each layer's MLP.
pub(super) fn kinds(keys: &Keys<'_>, family: &Family, n_layers: usize) -> Result<Vec<MlpKind>, LoadError> {
    let Some(mixture) = &family.mixture else {
        return Ok(vec![family.mlp; n_layers]);
    };
    let kind = |is_dense: bool| {
        if is_dense {
            MlpKind::Gated
        } else {
            MlpKind::Experts
        }
    };
    match (mixture.dense, keys.names) {
        (DenseLayers::None, _) | (DenseLayers::ByStep, Names::Gguf { .. }) => {
            Ok(vec![MlpKind::Experts; n_layers])
        }
        (DenseLayers::First(count), _) => {
            let first = keys.metadata.unsigned(&keys.full(count))?.unwrap_or(0);
            Ok((0..n_layers as u64).map(|layer| kind(layer < first)).collect())
        }
        (DenseLayers::ByStep, Names::ConfigJson) => {
            let step = super::count(keys.metadata, "decoder_sparse_step", MAX_LAYERS)?.unwrap_or(1);
            let dense = keys.metadata.integers("mlp_only_layers")?.unwrap_or_default();
            let is_dense =
                |layer: usize| dense.contains(&(layer as i64)) || !(layer + 1).is_multiple_of(step);
            Ok((0..n_layers).map(|layer| kind(is_dense(layer))).collect())
        }
    }
}

/// Width of the MLPs that every row goes through.
pub(super) fn ffn_width(
    keys: &Keys<'_>,
    layers: &[LayerConfig],
    experts: Option<&ExpertsConfig>,
) -> Result<usize, KeyError> {
    let found = keys.count(super::FFN_WIDTH, MAX_FFN_WIDTH);
    match experts {
        // Nothing is of that width.
        Some(experts) if layers.iter().all(|layer| layer.mlp == MlpKind::Experts) => {
            Ok(found?.unwrap_or(experts.width))
        }
        _ => required(&keys.full(super::FFN_WIDTH), found),
    }
}
