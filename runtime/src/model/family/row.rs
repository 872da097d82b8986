//! What a row of the family table says.

use arbora_kernels::{Activation, NormKind, QkNormSpan, RopeStyle};

use super::mixture::{self, Mixture};
use super::windows::Windows;
use super::{Key, key};
use crate::model::config::{MlpKind, NormPlacement};
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
    /// Whether a key of `config.json` makes the halves of a block parallel.
    pub(super) parallel: Option<Parallel>,
    /// What the MLP of a layer without experts is.
    pub(super) mlp: MlpKind,
    /// Biases of the MLP and of the output head.
    pub(super) mlp_bias: bool,
    pub(super) head_bias: bool,
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
    /// What the blocks of these checkpoints are called.
    pub(super) layers: &'static str,
    /// Whether q, k and v are one matrix, and whether by key/value head; gate and up another.
    pub(super) fused_qkv: bool,
    pub(super) qkv_by_group: bool,
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

/// A key of `config.json` that makes the halves of a block parallel.
#[derive(Clone, Copy)]
pub(super) struct Parallel {
    pub(super) key: &'static str,
    /// Where the file does not say.
    pub(super) default: bool,
    pub(super) norms: NormPlacement,
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
        keys.extend(self.parallel.map(|parallel| key("", parallel.key)));
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
