//! What an encoder is, as `config.json` says it: sizes, names of tensors, what it is for.

use arbora_kernels::{Activation, HeadLayout, RopeStyle};
use serde_json::{Map, Value as Json};

use super::super::LoadError;
use super::super::config::{RopeConfig, RopeScaling};
use super::super::directory::flatten;
use super::super::metadata::{KeyError, Metadata, required};

/// Largest context that is served.
const MAX_POSITIONS: usize = 1 << 17;

/// Names of tensors, `{}` for the number of a layer; without a text there is no such tensor.
#[derive(Debug)]
pub(super) struct Names {
    /// Before the names of the encoder in checkpoints with a head; checkpoints without one leave it out.
    pub(super) prefix: &'static str,
    pub(super) words: &'static str,
    pub(super) positions: &'static str,
    pub(super) types: &'static str,
    pub(super) embedding_norm: &'static str,
    /// Query, key and value; one name where they are one matrix.
    pub(super) qkv: &'static [&'static str],
    pub(super) attention_out: &'static str,
    pub(super) attention_norm: &'static str,
    /// The gate where there is one, then up.
    pub(super) up: &'static [&'static str],
    pub(super) down: &'static str,
    pub(super) ffn_norm: &'static str,
    /// Of classifiers: a dense layer with an activation, then the scores.
    pub(super) classifier: [&'static str; 2],
}

/// One row of the table of families.
#[derive(Debug)]
pub(super) struct Family {
    /// `model_type` of `config.json`.
    model_type: &'static str,
    pub(super) names: &'static Names,
    /// Of the first token, where positions are learned: the padding's number and one.
    position_offset: usize,
    is_rotary: bool,
    /// Whether the matrices of layers have biases.
    pub(super) has_biases: bool,
    /// Between the classifier's layers.
    pub(super) classifier_activation: ClassifierActivation,
}

/// What is between the layers of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClassifierActivation {
    Tanh,
    Relu,
}

const BERT_NAMES: Names = Names {
    prefix: "bert.",
    words: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    qkv: &[
        "encoder.layer.{}.attention.self.query",
        "encoder.layer.{}.attention.self.key",
        "encoder.layer.{}.attention.self.value",
    ],
    attention_out: "encoder.layer.{}.attention.output.dense",
    attention_norm: "encoder.layer.{}.attention.output.LayerNorm",
    up: &["encoder.layer.{}.intermediate.dense"],
    down: "encoder.layer.{}.output.dense",
    ffn_norm: "encoder.layer.{}.output.LayerNorm",
    classifier: ["bert.pooler.dense", "classifier"],
};

const ROBERTA_NAMES: Names = Names {
    prefix: "roberta.",
    classifier: ["classifier.dense", "classifier.out_proj"],
    ..BERT_NAMES
};

const BERT: Family = Family {
    model_type: "bert",
    names: &BERT_NAMES,
    position_offset: 0,
    is_rotary: false,
    has_biases: true,
    classifier_activation: ClassifierActivation::Tanh,
};

const ROBERTA: Family = Family {
    model_type: "roberta",
    names: &ROBERTA_NAMES,
    position_offset: 2,
    ..BERT
};

/// Every family.
static FAMILIES: [Family; 6] = [
    BERT,
    ROBERTA,
    Family {
        model_type: "xlm-roberta",
        ..ROBERTA
    },
    Family {
        model_type: "camembert",
        ..ROBERTA
    },
    Family {
        model_type: "distilbert",
        names: &Names {
            prefix: "distilbert.",
            words: "embeddings.word_embeddings",
            positions: "embeddings.position_embeddings",
            types: "",
            embedding_norm: "embeddings.LayerNorm",
            qkv: &[
                "transformer.layer.{}.attention.q_lin",
                "transformer.layer.{}.attention.k_lin",
                "transformer.layer.{}.attention.v_lin",
            ],
            attention_out: "transformer.layer.{}.attention.out_lin",
            attention_norm: "transformer.layer.{}.sa_layer_norm",
            up: &["transformer.layer.{}.ffn.lin1"],
            down: "transformer.layer.{}.ffn.lin2",
            ffn_norm: "transformer.layer.{}.output_layer_norm",
            classifier: ["pre_classifier", "classifier"],
        },
        classifier_activation: ClassifierActivation::Relu,
        ..BERT
    },
    Family {
        model_type: "nomic_bert",
        names: &Names {
            prefix: "",
            words: "embeddings.word_embeddings",
            positions: "",
            types: "embeddings.token_type_embeddings",
            embedding_norm: "emb_ln",
            qkv: &["encoder.layers.{}.attn.Wqkv"],
            attention_out: "encoder.layers.{}.attn.out_proj",
            attention_norm: "encoder.layers.{}.norm1",
            up: &["encoder.layers.{}.mlp.fc12", "encoder.layers.{}.mlp.fc11"],
            down: "encoder.layers.{}.mlp.fc2",
            ffn_norm: "encoder.layers.{}.norm2",
            classifier: ["", ""],
        },
        is_rotary: true,
        has_biases: false,
        ..BERT
    },
];

/// What a checkpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its rows become the vector of a text.
    Embed,
    /// Its first row becomes the score of a pair of texts.
    Rerank,
}

/// How a token's place in its text is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A learned vector for each place; the first token has this one.
    Learned {
        /// Rows of the table before that of the first token.
        offset: usize,
    },
    /// Queries and keys are rotated.
    Rotary(RopeConfig),
}

/// An encoder as plain data: post-norm layers of bidirectional attention and an MLP.
#[derive(Clone, Debug)]
pub struct EncoderConfig {
    pub(super) family: &'static Family,
    /// What it is for.
    pub purpose: Purpose,
    /// Elements of a row.
    pub width: usize,
    /// Layers.
    pub n_layers: usize,
    /// Heads of a layer.
    pub heads: HeadLayout,
    /// Elements of the MLP's inner row.
    pub ffn_width: usize,
    /// Rows of the word embedding.
    pub n_vocab: usize,
    /// Most tokens of a text.
    pub n_positions: usize,
    /// How places are told.
    pub positions: Positions,
    /// Kinds of tokens, 0 where they have none: of a pair the second text is of kind 1.
    pub n_types: usize,
    /// Keeps the roots of norms above 0.
    pub norm_eps: f32,
    /// Of the MLP.
    pub activation: Activation,
}

/// Alternative names of a size in `config.json`.
const WIDTH: &[&str] = &["hidden_size", "dim", "n_embd"];
const LAYERS: &[&str] = &["num_hidden_layers", "n_layers", "n_layer"];
const HEADS: &[&str] = &["num_attention_heads", "n_heads", "n_head"];
const FFN_WIDTH: &[&str] = &["intermediate_size", "hidden_dim", "n_inner"];
const POSITIONS: &[&str] = &["max_position_embeddings", "n_positions"];
const ACTIVATION: &[&str] = &["hidden_act", "activation", "activation_function"];
const NORM_EPS: &[&str] = &["layer_norm_eps", "layer_norm_epsilon"];
const ROPE_BASE: &[&str] = &["rope_theta", "rotary_emb_base", "rope_parameters.rope_theta"];

impl EncoderConfig {
    /// Whether `config.json` describes an encoder that is in the table.
    pub fn describes(config: &Map<String, Json>) -> bool {
        family_of(config).is_some()
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// Where something is missing, out of range or not computed here.
    pub fn from_json(config: &Map<String, Json>) -> Result<EncoderConfig, LoadError> {
        let Some(family) = family_of(config) else {
            return Err(LoadError::UnknownArchitecture {
                found: model_type(config).unwrap_or_default().to_owned(),
                known: FAMILIES.iter().map(|family| family.model_type).collect(),
            });
        };
        let keys = flatten(config);
        refuse(&keys)?;
        let width = size(&keys, WIDTH)?;
        let n_heads = size(&keys, HEADS)?;
        if !width.is_multiple_of(n_heads) || !(width / n_heads).is_multiple_of(8) {
            let limit = format!("a divisor of {width} that leaves a multiple of 8");
            return Err(out_of_range(HEADS[0], n_heads, limit));
        }
        let head_dim = width / n_heads;
        let mut n_rows = size(&keys, POSITIONS)?;
        if family.is_rotary && keys.contains("rotary_scaling_factor") {
            // Longer texts would be rotated by other frequencies.
            n_rows = n_rows.min(keys.unsigned("max_trained_positions")?.unwrap_or(2048) as usize);
        }
        if n_rows <= family.position_offset || n_rows > MAX_POSITIONS {
            let limit = format!("{} to {MAX_POSITIONS}", family.position_offset + 1);
            return Err(out_of_range(POSITIONS[0], n_rows, limit));
        }
        let n_types = match family.names.types {
            "" => 0,
            _ => keys.unsigned("type_vocab_size")?.unwrap_or(2) as usize,
        };
        Ok(EncoderConfig {
            family,
            purpose: purpose(config)?,
            width,
            n_layers: size(&keys, LAYERS)?,
            heads: HeadLayout {
                n_heads,
                n_kv_heads: n_heads,
                head_dim,
            },
            ffn_width: size(&keys, FFN_WIDTH)?,
            n_vocab: size(&keys, &["vocab_size"])?,
            n_positions: n_rows - family.position_offset,
            positions: match family.is_rotary {
                false => Positions::Learned {
                    offset: family.position_offset,
                },
                true => Positions::Rotary(rope(&keys, head_dim)?),
            },
            n_types,
            norm_eps: first(NORM_EPS, |key| keys.float(key))?.unwrap_or(1e-12) as f32,
            activation: activation(&keys)?,
        })
    }

    /// Its `model_type`.
    pub fn model_type(&self) -> &'static str {
        self.family.model_type
    }

    /// Whether the MLP has a gate.
    pub fn is_gated(&self) -> bool {
        self.family.names.up.len() == 2
    }

    /// Weights of it.
    pub fn n_params(&self) -> u64 {
        let Self { width, ffn_width, .. } = *self;
        let layer = 4 * width * width + (self.family.names.up.len() + 1) * width * ffn_width;
        ((self.n_vocab + self.n_positions) * width + self.n_layers * layer) as u64
    }

    /// Bytes of its weights in memory: f32 embeddings, two bytes for each weight of a layer.
    pub fn weight_bytes(&self) -> u64 {
        let embeddings = ((self.n_vocab + self.n_positions) * self.width) as u64;
        4 * embeddings + 2 * (self.n_params() - embeddings)
    }
}

fn model_type(config: &Map<String, Json>) -> Option<&str> {
    config.get("model_type")?.as_str()
}

/// The family, of a checkpoint that is not a decoder or another half of something.
fn family_of(config: &Map<String, Json>) -> Option<&'static Family> {
    let model_type = model_type(config)?;
    FAMILIES.iter().find(|family| family.model_type == model_type)
}

/// What the only architecture in `config.json` is for.
fn purpose(config: &Map<String, Json>) -> Result<Purpose, LoadError> {
    let names = config.get("architectures").and_then(Json::as_array);
    let name = match names.map(Vec::as_slice) {
        None | Some([]) => return Ok(Purpose::Embed),
        Some([Json::String(name)]) => name,
        Some(_) => return Err(unsupported("architectures", config.get("architectures"))),
    };
    if name.ends_with("Model") || name.ends_with("ForMaskedLM") || name.ends_with("ForPreTraining") {
        return Ok(Purpose::Embed);
    }
    if !name.ends_with("ForSequenceClassification") || name.starts_with("Nomic") {
        return Err(unsupported("architectures", config.get("architectures")));
    }
    let by_name = config.get("id2label").and_then(Json::as_object).map(Map::len);
    let n_labels = config
        .get("num_labels")
        .and_then(Json::as_u64)
        .map(|n| n as usize);
    match by_name.or(n_labels).unwrap_or(2) {
        1 => Ok(Purpose::Rerank),
        n => Err(out_of_range(
            "num_labels",
            n,
            "1, the score of a reranker".to_owned(),
        )),
    }
}

/// Refuses what changes the result and is not computed here.
fn refuse(keys: &Metadata) -> Result<(), LoadError> {
    let expected = [
        ("position_embedding_type", "absolute"),
        ("is_decoder", "false"),
        ("prenorm", "false"),
        ("rotary_emb_interleaved", "false"),
        ("use_rms_norm", "false"),
        ("qkv_proj_bias", "false"),
        ("mlp_fc1_bias", "false"),
        ("mlp_fc2_bias", "false"),
        ("rope_parameters.rope_type", "default"),
    ];
    for (key, accepted) in expected {
        let found = match keys.flag(key) {
            Ok(flag) => flag.map(|flag| flag.to_string()),
            Err(_) => keys.text(key)?.map(str::to_owned),
        };
        if let Some(found) = found
            && found != accepted
        {
            return Err(LoadError::UnsupportedFeature {
                key: key.to_owned(),
                value: Some(found),
            });
        }
    }
    for (key, accepted) in [("rotary_emb_fraction", 1.0), ("moe_every_n_layers", 0.0)] {
        if let Some(found) = keys.float(key)?.filter(|found| *found != accepted) {
            return Err(LoadError::UnsupportedFeature {
                key: key.to_owned(),
                value: Some(found.to_string()),
            });
        }
    }
    Ok(())
}

fn activation(keys: &Metadata) -> Result<Activation, LoadError> {
    match first(ACTIVATION, |key| keys.text(key))?.unwrap_or("gelu") {
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "silu" | "swiglu" => Ok(Activation::Silu),
        other => Err(LoadError::UnsupportedFeature {
            key: ACTIVATION[0].to_owned(),
            value: Some(other.to_owned()),
        }),
    }
}

fn rope(keys: &Metadata, head_dim: usize) -> Result<RopeConfig, LoadError> {
    let base = first(ROPE_BASE, |key| keys.float(key))?.unwrap_or(1000.0);
    if !base.is_finite() || base < 1.0 {
        return Err(KeyError::OutOfRange {
            key: ROPE_BASE[0].to_owned(),
            value: base.to_string(),
            limit: "at least 1".to_owned(),
        }
        .into());
    }
    Ok(RopeConfig {
        style: RopeStyle::Halves,
        dim: head_dim,
        base,
        scaling: RopeScaling::None,
        attention_factor: 1.0,
    })
}

/// The value of the first of `names` that is there.
fn first<'k, T>(
    names: &[&'static str],
    read: impl Fn(&'k str) -> Result<Option<T>, KeyError>,
) -> Result<Option<T>, KeyError> {
    for name in names {
        if let Some(found) = read(name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A size of at least 1 that no real model exceeds.
fn size(keys: &Metadata, names: &[&'static str]) -> Result<usize, LoadError> {
    const MOST: u64 = 1 << 22;
    let found = required(names[0], first(names, |key| keys.unsigned(key)))?;
    match found {
        1..=MOST => Ok(found as usize),
        _ => Err(out_of_range(names[0], found as usize, format!("1 to {MOST}"))),
    }
}

fn out_of_range(key: &str, value: usize, limit: String) -> LoadError {
    KeyError::OutOfRange {
        key: key.to_owned(),
        value: value.to_string(),
        limit,
    }
    .into()
}

fn unsupported(key: &str, value: Option<&Json>) -> LoadError {
    LoadError::UnsupportedFeature {
        key: key.to_owned(),
        value: value.map(Json::to_string),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::bert_config;
    use super::*;

    fn read(config: &Json) -> Result<EncoderConfig, LoadError> {
        EncoderConfig::from_json(config.as_object().expect("an object"))
    }

    #[test]
    fn a_bert_is_read_by_its_keys() {
        let config = read(&bert_config()).expect("good");
        assert_eq!((config.width, config.n_layers, config.ffn_width), (16, 2, 24));
        assert_eq!((config.heads.n_heads, config.heads.head_dim), (2, 8));
        assert_eq!((config.n_positions, config.n_types), (12, 2));
        assert_eq!(config.purpose, Purpose::Embed);
        assert_eq!(config.positions, Positions::Learned { offset: 0 });
        assert!(!config.is_gated());
    }

    #[test]
    fn positions_of_roberta_begin_after_the_paddings() {
        let mut json = bert_config();
        json["model_type"] = json!("roberta");
        json["architectures"] = json!(["RobertaModel"]);
        let config = read(&json).expect("good");
        assert_eq!(
            (config.n_positions, config.positions),
            (10, Positions::Learned { offset: 2 })
        );
    }

    #[test]
    fn a_classifier_of_one_label_is_a_reranker_and_others_are_refused() {
        let mut json = bert_config();
        json["architectures"] = json!(["BertForSequenceClassification"]);
        let error = read(&json).expect_err("two labels").to_string();
        assert_eq!(error, "`num_labels` = 2: must be 1, the score of a reranker");
        json["id2label"] = json!({"0": "LABEL_0"});
        assert_eq!(read(&json).expect("good").purpose, Purpose::Rerank);
        json["architectures"] = json!(["BertForTokenClassification"]);
        let error = read(&json).expect_err("another head").to_string();
        assert!(
            error.contains("`architectures` = [\"BertForTokenClassification\"]"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_computed_is_refused_by_key_and_value() {
        let cases = [
            (
                "position_embedding_type",
                json!("relative_key"),
                "`position_embedding_type` = relative_key",
            ),
            ("is_decoder", json!(true), "`is_decoder` = true is not supported"),
            (
                "hidden_act",
                json!("relu6"),
                "`hidden_act` = relu6 is not supported",
            ),
            (
                "num_attention_heads",
                json!(3),
                "`num_attention_heads` = 3: must be a divisor of 16",
            ),
            ("num_attention_heads", json!(4), "leaves a multiple of 8"),
            ("hidden_size", json!(0), "`hidden_size` = 0: must be 1 to"),
            (
                "max_position_embeddings",
                json!(1 << 20),
                "`max_position_embeddings` = 1048576: must be 1 to",
            ),
            (
                "model_type",
                json!("gpt9"),
                "architecture `gpt9` is not supported (supported: bert, roberta",
            ),
        ];
        for (key, value, expected) in cases {
            let mut json = bert_config();
            json[key] = value;
            let error = read(&json).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
    }
}
