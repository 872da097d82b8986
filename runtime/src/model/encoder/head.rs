//! From the rows of a text to its vector or score: pooling, dense layers, normalization.
//!
//! What is done stands in a checkpoint of sentence-transformers:
//!
//! ```text
//! modules.json               which steps, in order
//! 1_Pooling/config.json      mean of the rows, first row, last row, largest of each element
//! 2_Dense/config.json        inputs, outputs, activation; weights in model.safetensors beside it
//! sentence_bert_config.json  max_seq_length, do_lower_case
//! ```
//!
//! Without `modules.json` the vector is the mean of the rows, as sentence-transformers has it. Everything
//! here is computed in f32 in a fixed order, from the rows of one text (C1).

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::super::LoadError;
use super::super::directory::{DirectoryError, flatten, read_object};
use super::super::metadata::{KeyError, required};
use super::super::safetensors::Safetensors;
use super::config::ClassifierActivation;
use super::weights::TensorSource;

/// Partial sums of a product.
const LANES: usize = 16;

/// How the rows of a text become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// Their sum over the root of their number.
    MeanRoot,
    /// The first one.
    First,
    /// The last one.
    Last,
    /// The largest of each element.
    Largest,
}

/// Weights `[n_out][n_in]` and bias of a layer computed on the host.
#[derive(Clone, Debug)]
pub(super) struct Dot {
    pub(super) weights: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// What follows a dense layer of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StepActivation {
    Identity,
    Tanh,
    Relu,
    Sigmoid,
}

impl From<ClassifierActivation> for StepActivation {
    fn from(activation: ClassifierActivation) -> Self {
        match activation {
            ClassifierActivation::Tanh => StepActivation::Tanh,
            ClassifierActivation::Relu => StepActivation::Relu,
        }
    }
}

/// A dense layer of a head.
#[derive(Clone, Debug)]
pub struct DenseStep {
    pub(super) layer: Dot,
    pub(super) activation: StepActivation,
}

/// What becomes of the rows of a text.
#[derive(Clone, Debug)]
pub struct Head {
    /// Of the rows.
    pub pooling: Pooling,
    /// What follows.
    pub dense: Vec<DenseStep>,
    /// Whether vectors have length 1.
    pub normalizes: bool,
}

/// What `modules.json` and the files it names say besides the head.
#[derive(Clone, Debug, Default)]
pub(super) struct SentenceSettings {
    pub(super) max_tokens: Option<usize>,
    pub(super) lowercases: bool,
    /// Texts to be put before others, by their name.
    pub(super) prompts: Vec<(String, String)>,
    pub(super) default_prompt: Option<String>,
}

impl Head {
    /// The vector of a text of at least one row.
    pub fn apply(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let mut vector = pool(self.pooling, rows, width);
        for step in &self.dense {
            vector = step.apply(&vector);
        }
        if self.normalizes {
            normalize(&mut vector);
        }
        vector
    }

    /// Elements of a vector, where rows have `width`.
    pub fn n_out(&self, width: usize) -> usize {
        self.dense.last().map_or(width, |step| step.layer.bias.len())
    }
}

impl DenseStep {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.layer.weights.chunks_exact(x.len());
        let sums = rows.zip(&self.layer.bias).map(|(row, bias)| dot(row, x) + bias);
        sums.map(|sum| match self.activation {
            StepActivation::Identity => sum,
            StepActivation::Tanh => sum.tanh(),
            StepActivation::Relu => sum.max(0.0),
            StepActivation::Sigmoid => 1.0 / (1.0 + (-sum).exp()),
        })
        .collect()
    }
}

/// Scales a vector to length 1; one of zeros stays.
pub fn normalize(vector: &mut [f32]) {
    let length = dot(vector, vector).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

/// `sum_i a[i] * b[i]`, in partial sums.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

fn pool(pooling: Pooling, rows: &[f32], width: usize) -> Vec<f32> {
    let n_rows = rows.len() / width;
    assert!(n_rows > 0, "a text has a token");
    let mut pooled = rows[..width].to_vec();
    let others = rows[width..].chunks_exact(width);
    match pooling {
        Pooling::First => {}
        Pooling::Last => pooled.copy_from_slice(&rows[(n_rows - 1) * width..]),
        Pooling::Largest => {
            for row in others {
                pooled.iter_mut().zip(row).for_each(|(a, b)| *a = a.max(*b));
            }
        }
        Pooling::Mean | Pooling::MeanRoot => {
            for row in others {
                pooled.iter_mut().zip(row).for_each(|(a, b)| *a += b);
            }
            let divisor = match pooling {
                Pooling::Mean => n_rows as f32,
                _ => (n_rows as f32).sqrt(),
            };
            pooled.iter_mut().for_each(|x| *x /= divisor);
        }
    }
    pooled
}

/// Reads the head of the checkpoint in `folder`, whose rows have `width` elements.
pub(super) fn read(folder: &Path, width: usize) -> Result<(Head, SentenceSettings), LoadError> {
    let mut head = Head {
        pooling: Pooling::Mean,
        dense: Vec::new(),
        normalizes: false,
    };
    for (step, (kind, path)) in modules(folder)?.into_iter().enumerate() {
        let folder = folder.join(&path);
        match (step, kind.as_str()) {
            (0, "Transformer") => {}
            (1, "Pooling") => head.pooling = pooling(&folder)?,
            (2.., "Dense") if !head.normalizes => {
                head.dense.push(dense(&folder, head.n_out(width))?);
            }
            (2.., "Normalize") => head.normalizes = true,
            _ => return Err(unsupported("modules.json", &format!("{kind} as step {step}"))),
        }
    }
    Ok((head, settings(folder)?))
}

/// Class and folder of each step; none where there is no `modules.json`.
fn modules(folder: &Path) -> Result<Vec<(String, String)>, LoadError> {
    const MAX_BYTES: u64 = 1 << 20;
    let path = folder.join("modules.json");
    let Some(bytes) = super::super::directory::read_optional(&path, MAX_BYTES)? else {
        return Ok(Vec::new());
    };
    let list: Vec<Map<String, Json>> =
        serde_json::from_slice(&bytes).map_err(|source| DirectoryError::BadJson { path, source })?;
    let module = |module: Map<String, Json>| {
        let text = |key| module.get(key).and_then(Json::as_str).unwrap_or_default();
        let kind = text("type").rsplit('.').next().unwrap_or_default().to_owned();
        let place = text("path").to_owned();
        // A stranger's file: it names folders beside it and nothing else.
        if place.contains(['/', '\\', '\0']) || place.starts_with('.') {
            return Err(unsupported("modules.json", &format!("path {place}")));
        }
        Ok((kind, place))
    };
    list.into_iter().map(module).collect()
}

fn pooling(folder: &Path) -> Result<Pooling, LoadError> {
    const MODES: [(&str, &str, Pooling); 5] = [
        ("pooling_mode_cls_token", "cls", Pooling::First),
        ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
        ("pooling_mode_max_tokens", "max", Pooling::Largest),
        (
            "pooling_mode_mean_sqrt_len_tokens",
            "mean_sqrt_len_tokens",
            Pooling::MeanRoot,
        ),
        ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
    ];
    let config = read_object(&folder.join("config.json"))?.unwrap_or_default();
    if let Some(Json::String(name)) = config.get("pooling_mode") {
        let mode = MODES.iter().find(|(_, mode, _)| mode == name);
        let mode = mode.map(|(_, _, pooling)| *pooling);
        return mode.ok_or_else(|| unsupported("pooling_mode", name));
    }
    let is_on = |key: &str| config.get(key) == Some(&Json::Bool(true));
    if config.get("include_prompt") == Some(&Json::Bool(false)) {
        return Err(unsupported("include_prompt", "false"));
    }
    let unknown = config.keys().find(|key| {
        key.starts_with("pooling_mode_") && is_on(key) && !MODES.iter().any(|(name, ..)| name == key)
    });
    let on: Vec<_> = MODES.iter().filter(|(name, ..)| is_on(name)).collect();
    match (unknown, on.as_slice()) {
        (Some(key), _) => Err(unsupported(key, "true")),
        (None, []) => Ok(Pooling::Mean),
        (None, [(_, _, pooling)]) => Ok(*pooling),
        (None, [_, (second, ..), ..]) => Err(unsupported(second, "true beside another mode")),
    }
}

fn dense(folder: &Path, n_in: usize) -> Result<DenseStep, LoadError> {
    let config = flatten(&read_object(&folder.join("config.json"))?.unwrap_or_default());
    let found = required("in_features", config.unsigned("in_features"))?;
    if found != n_in as u64 {
        return Err(out_of_range(
            "in_features",
            found,
            format!("{n_in}, the step before gives as many"),
        ));
    }
    let n_out = required("out_features", config.unsigned("out_features"))?;
    if !(1..=1 << 20).contains(&n_out) {
        return Err(out_of_range("out_features", n_out, "1 to 1048576".to_owned()));
    }
    let activation = match config
        .text("activation_function")?
        .unwrap_or("Tanh")
        .rsplit('.')
        .next()
    {
        Some("Tanh") => StepActivation::Tanh,
        Some("Identity") => StepActivation::Identity,
        Some("ReLU") => StepActivation::Relu,
        other => return Err(unsupported("activation_function", other.unwrap_or_default())),
    };
    let Safetensors { files, tensors } = Safetensors::open(folder)?;
    let source = TensorSource {
        files: &files,
        tensors: &tensors,
    };
    let mut layer = Dot {
        weights: source.numbers("linear.weight", &[n_in, n_out as usize])?,
        bias: vec![0.0; n_out as usize],
    };
    if config.flag("bias")?.unwrap_or(true) {
        layer.bias = source.numbers("linear.bias", &[n_out as usize])?;
    }
    Ok(DenseStep { layer, activation })
}

/// What a reranker's score goes through: the key of old and of new checkpoints, a sigmoid without one.
pub(super) fn score_activation(config: &Map<String, Json>) -> Result<StepActivation, LoadError> {
    let nested = config
        .get("sentence_transformers")
        .and_then(|settings| settings.get("activation_fn"));
    let found = nested
        .or(config.get("sbert_ce_default_activation_function"))
        .and_then(Json::as_str);
    match found.map(|name| name.rsplit('.').next().unwrap_or_default()) {
        None | Some("Sigmoid") => Ok(StepActivation::Sigmoid),
        Some("Identity") => Ok(StepActivation::Identity),
        Some(other) => Err(unsupported("activation_fn", other)),
    }
}

fn settings(folder: &Path) -> Result<SentenceSettings, LoadError> {
    let sentence = flatten(&read_object(&folder.join("sentence_bert_config.json"))?.unwrap_or_default());
    let config = read_object(&folder.join("config_sentence_transformers.json"))?.unwrap_or_default();
    let prompts = config.get("prompts").and_then(Json::as_object);
    let prompts = prompts.into_iter().flatten();
    let text = |(name, text): (&String, &Json)| Some((name.clone(), text.as_str()?.to_owned()));
    Ok(SentenceSettings {
        max_tokens: sentence.unsigned("max_seq_length")?.map(|n| n as usize),
        lowercases: sentence.flag("do_lower_case")?.unwrap_or(false),
        prompts: prompts.filter_map(text).collect(),
        default_prompt: config
            .get("default_prompt_name")
            .and_then(Json::as_str)
            .map(str::to_owned),
    })
}

fn unsupported(key: &str, value: &str) -> LoadError {
    LoadError::UnsupportedFeature {
        key: key.to_owned(),
        value: Some(value.to_owned()),
    }
}

fn out_of_range(key: &str, value: u64, limit: String) -> LoadError {
    KeyError::OutOfRange {
        key: key.to_owned(),
        value: value.to_string(),
        limit,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    const ROWS: [f32; 6] = [1.0, -2.0, 3.0, 4.0, 5.0, 0.5];

    #[test]
    fn every_pooling_is_what_its_name_says() {
        let pooled = |pooling| pool(pooling, &ROWS, 2);
        assert_eq!(pooled(Pooling::First), [1.0, -2.0]);
        assert_eq!(pooled(Pooling::Last), [5.0, 0.5]);
        assert_eq!(pooled(Pooling::Largest), [5.0, 4.0]);
        assert_eq!(pooled(Pooling::Mean), [3.0, 2.5 / 3.0]);
        let root = 3f32.sqrt();
        assert_eq!(pooled(Pooling::MeanRoot), [9.0 / root, 2.5 / root]);
    }

    #[test]
    fn normalized_vectors_have_length_one_and_zeros_stay() {
        let mut vector: Vec<f32> = (1..40).map(|i| i as f32).collect();
        normalize(&mut vector);
        assert!((dot(&vector, &vector) - 1.0).abs() < 1e-6);
        let mut zeros = [0.0; 3];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }

    fn folder(files: &[(&str, Json)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for (name, json) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
            fs::write(path, json.to_string()).expect("writable");
        }
        folder
    }

    fn steps(kinds: &[&str]) -> Json {
        let steps = kinds.iter().enumerate().map(|(i, kind)| {
            let path = if i == 0 {
                String::new()
            } else {
                format!("{i}_{kind}")
            };
            json!({"idx": i, "name": i.to_string(), "path": path,
                "type": format!("sentence_transformers.models.{kind}")})
        });
        steps.collect()
    }

    #[test]
    fn a_checkpoint_of_sentence_transformers_says_how_its_vectors_are_made() {
        let files = [
            ("modules.json", steps(&["Transformer", "Pooling", "Normalize"])),
            (
                "1_Pooling/config.json",
                json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}),
            ),
            (
                "sentence_bert_config.json",
                json!({"max_seq_length": 128, "do_lower_case": true}),
            ),
            (
                "config_sentence_transformers.json",
                json!({"prompts": {"query": "query: ", "none": null}, "default_prompt_name": "query"}),
            ),
        ];
        let folder = folder(&files);
        let (head, settings) = read(folder.path(), 16).expect("good");
        assert_eq!(
            (head.pooling, head.normalizes, head.n_out(16)),
            (Pooling::First, true, 16)
        );
        assert_eq!((settings.max_tokens, settings.lowercases), (Some(128), true));
        assert_eq!(settings.prompts, [("query".to_owned(), "query: ".to_owned())]);
        assert_eq!(settings.default_prompt.as_deref(), Some("query"));
    }

    #[test]
    fn without_modules_the_vector_is_the_mean_of_the_rows() {
        let folder = folder(&[]);
        let (head, settings) = read(folder.path(), 16).expect("good");
        assert_eq!((head.pooling, head.normalizes), (Pooling::Mean, false));
        assert_eq!(settings.max_tokens, None);
    }

    #[test]
    fn steps_that_are_not_computed_are_refused_by_name() {
        let refused = |files: &[(&str, Json)], expected: &str| {
            let folder = folder(files);
            let error = read(folder.path(), 16).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        };
        let modules = |kinds: &[&str]| ("modules.json", steps(kinds));
        refused(&[modules(&["Transformer", "LSTM"])], "LSTM as step 1");
        refused(
            &[modules(&["WordEmbeddings", "Pooling"])],
            "WordEmbeddings as step 0",
        );
        let both = json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true});
        let pooled = modules(&["Transformer", "Pooling"]);
        refused(
            &[pooled.clone(), ("1_Pooling/config.json", both)],
            "true beside another mode",
        );
        let weighted = json!({"pooling_mode_weightedmean_tokens": true});
        refused(
            &[pooled, ("1_Pooling/config.json", weighted)],
            "`pooling_mode_weightedmean_tokens` = true",
        );
        let out = json!([{"idx": 0, "path": "../other", "type": "a.Transformer"}]);
        refused(&[("modules.json", out)], "path ../other");
        let dense = [
            modules(&["Transformer", "Pooling", "Dense"]),
            (
                "2_Dense/config.json",
                json!({"in_features": 8, "out_features": 4}),
            ),
        ];
        refused(&dense, "`in_features` = 8: must be 16");
    }
}
