//! A model as a folder of files, the way the hub keeps it: what each of them says, before any weight is read.
//!
//! ```text
//! config.json              the decoder                        required
//! model.safetensors        weights (or shards and an index)   required unless weights are made up
//! tokenizer.json           vocabulary, merges, splitting      \ one of them required, the first one read,
//! tokenizer.model          a SentencePiece model              / unless weights are made up
//! tokenizer_config.json    names of BOS and EOS, template     optional
//! chat_template.jinja      the template; see `templates.rs`   optional
//! generation_config.json   end tokens, sampling defaults      optional
//! quantize_config.json     GPTQ's settings in older folders   optional
//! ```

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::metadata::{KeyError, Metadata, Strings, Value};
use super::packed::GPTQ_FILE;
use super::templates::{self, NamedTemplate};
use crate::tokenizer::SENTENCEPIECE_FILE;

/// Most bytes of a JSON file of settings.
pub(super) const MAX_SETTINGS_BYTES: u64 = 4 << 20;
/// Most bytes of `tokenizer.json`: the largest vocabularies take 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// The decoder's description.
pub const CONFIG_FILE: &str = "config.json";
/// Its key of how the weights are quantized.
const QUANTIZATION: &str = "quantization_config";
/// The tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// All other files that are read where they are there.
pub const OPTIONAL_FILES: [&str; 11] = [
    "tokenizer_config.json",
    "generation_config.json",
    GPTQ_FILE,
    templates::FILE,
    templates::LEGACY_FILE,
    // How an encoder makes vectors of its rows.
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
];

/// Why a folder is not a usable model.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file could not be read.
    #[error("reading {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is no JSON object.
    #[error("{}: {source}", path.display())]
    BadJson {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A key is missing or wrong.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Which and why.
        source: KeyError,
    },
}

/// Sampling parameters a model recommends; absent where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Temperature; 0 where the model asks for no sampling.
    pub temperature: Option<f32>,
    /// Nucleus size.
    pub top_p: Option<f32>,
    /// Number of likeliest tokens; 0 for all.
    pub top_k: Option<u32>,
    /// Least probability relative to the likeliest token.
    pub min_p: Option<f32>,
    /// Penalty of tokens that were used before; 1 for none.
    pub repetition_penalty: Option<f32>,
}

/// The settings in a folder.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    config: Map<String, Json>,
    generation: Metadata,
    tokenizer: Map<String, Json>,
}

impl Directory {
    /// Reads the settings in `path`.
    pub fn open(path: &Path) -> Result<Directory, DirectoryError> {
        let optional = |name| Ok(read_object(&path.join(name))?.unwrap_or_default());
        let config_path = path.join(CONFIG_FILE);
        let mut config = read_object(&config_path)?.ok_or_else(|| DirectoryError::Io {
            path: config_path,
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        if !config.contains_key(QUANTIZATION)
            && let Some(mut settings) = read_object(&path.join(GPTQ_FILE))?
        {
            settings.entry("quant_method").or_insert_with(|| "gptq".into());
            config.insert(QUANTIZATION.to_owned(), Json::Object(settings));
        }
        Ok(Directory {
            path: path.to_owned(),
            config,
            generation: flatten(&optional("generation_config.json")?),
            tokenizer: optional("tokenizer_config.json")?,
        })
    }

    /// `config.json`.
    pub fn config(&self) -> &Map<String, Json> {
        &self.config
    }

    /// The bytes of `tokenizer.json`, where there is one.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>, DirectoryError> {
        read_optional(&self.path.join(TOKENIZER_FILE), MAX_TOKENIZER_BYTES)
    }

    /// The bytes of `tokenizer.model`, where there is one.
    pub fn sentencepiece(&self) -> Result<Option<Vec<u8>>, DirectoryError> {
        read_optional(&self.path.join(SENTENCEPIECE_FILE), MAX_TOKENIZER_BYTES)
    }

    /// Tokens beside those of `tokenizer.model`, by their ids.
    pub fn added_tokens(&self) -> Option<&Map<String, Json>> {
        self.tokenizer.get("added_tokens_decoder")?.as_object()
    }

    /// The name of a special token such as `bos_token`, where the settings have it.
    pub fn special_token(&self, key: &str) -> Option<&str> {
        match self.tokenizer.get(key)? {
            Json::String(name) => Some(name),
            Json::Object(token) => token.get("content")?.as_str(),
            _ => None,
        }
    }

    /// Most tokens of a text by the tokenizer's settings; absent where they say a number that means none.
    pub fn model_max_length(&self) -> Option<usize> {
        let length = self.tokenizer.get("model_max_length")?.as_u64()?;
        usize::try_from(length).ok()
    }

    /// Whether prompts start with BOS, where the settings say so.
    pub fn add_bos(&self) -> Option<bool> {
        self.tokenizer.get("add_bos_token")?.as_bool()
    }

    /// Tokens that end an answer by `generation_config.json`, or by `config.json` where that names none.
    pub fn eos_token_ids(&self) -> Result<Vec<u32>, DirectoryError> {
        let ids = token_ids(&self.generation).map_err(|source| self.key_error(source, "generation_"))?;
        if !ids.is_empty() {
            return Ok(ids);
        }
        token_ids(&flatten(&self.config)).map_err(|source| self.key_error(source, ""))
    }

    /// The chat templates.
    pub fn chat_templates(&self) -> Result<Vec<NamedTemplate>, DirectoryError> {
        templates::from_folder(&self.path, &self.tokenizer)
    }

    /// What `generation_config.json` recommends. A value no sampler accepts is an error.
    pub fn sampling_defaults(&self) -> Result<SamplingDefaults, DirectoryError> {
        let bounded = |key: &str, range: std::ops::RangeInclusive<f64>| {
            let found = self.generation.float(key)?;
            match found {
                Some(value) if !range.contains(&value) => Err(KeyError::OutOfRange {
                    key: key.to_owned(),
                    value: value.to_string(),
                    limit: format!("{} to {}", range.start(), range.end()),
                }),
                _ => Ok(found.map(|value| value as f32)),
            }
        };
        let read = || {
            let is_greedy = self.generation.flag("do_sample")? == Some(false);
            Ok(SamplingDefaults {
                temperature: match is_greedy {
                    true => Some(0.0),
                    false => bounded("temperature", 0.0..=100.0)?,
                },
                top_p: bounded("top_p", 0.0..=1.0)?,
                top_k: bounded("top_k", 0.0..=1e9)?.map(|k| k as u32),
                min_p: bounded("min_p", 0.0..=1.0)?,
                repetition_penalty: bounded("repetition_penalty", 1e-3..=1e3)?,
            })
        };
        read().map_err(|source| self.key_error(source, "generation_"))
    }

    fn key_error(&self, source: KeyError, file_prefix: &str) -> DirectoryError {
        let path = self.path.join(format!("{file_prefix}{CONFIG_FILE}"));
        DirectoryError::Key { path, source }
    }
}

/// `eos_token_id`: a number or a list of them.
fn token_ids(metadata: &Metadata) -> Result<Vec<u32>, KeyError> {
    let key = "eos_token_id";
    let found = match metadata.integers(key) {
        Ok(list) => list.unwrap_or_default().to_vec(),
        Err(_) => metadata.unsigned(key)?.map(|id| id as i64).into_iter().collect(),
    };
    let id = |id: i64| {
        u32::try_from(id).map_err(|_| KeyError::OutOfRange {
            key: key.to_owned(),
            value: id.to_string(),
            limit: "a token id".to_owned(),
        })
    };
    found.into_iter().map(id).collect()
}

/// A file's bytes, an error where there are more than `limit`.
pub(super) fn read_bounded(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let message = format!("the file has more than {limit} bytes");
        return Err(std::io::Error::other(message));
    }
    Ok(bytes)
}

pub(super) fn read_optional(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, DirectoryError> {
    match read_bounded(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            let path = path.to_owned();
            Err(DirectoryError::Io { path, source })
        }
    }
}

pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Json>>, DirectoryError> {
    let Some(bytes) = read_optional(path, MAX_SETTINGS_BYTES)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&bytes).map_err(|source| DirectoryError::BadJson {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(parsed))
}

/// The keys of a JSON object as metadata, those of objects within it as `outer.inner`. A null is absent.
pub(super) fn flatten(object: &Map<String, Json>) -> Metadata {
    let mut metadata = Metadata::default();
    let mut open = vec![(String::new(), object)];
    while let Some((prefix, object)) = open.pop() {
        for (key, json) in object {
            let key = format!("{prefix}{key}");
            match json {
                Json::Null => {}
                Json::Object(inner) => open.push((format!("{key}."), inner)),
                other => {
                    // A key with a dot in it may collide with a nested one; the first stays.
                    metadata.insert(key, value(other));
                }
            }
        }
    }
    metadata
}

fn value(json: &Json) -> Value {
    match json {
        Json::Bool(flag) => Value::Bool(*flag),
        Json::String(text) => Value::Text(text.clone()),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(unsigned), _) => Value::Unsigned(unsigned),
            (None, Some(signed)) => Value::Signed(signed),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::Array(items) => array(items).unwrap_or_else(|| Value::Text(json.to_string())),
        // Whatever else there is has no type of its own and reads as its text, which no key expects.
        Json::Null | Json::Object(_) => Value::Text(json.to_string()),
    }
}

fn array(items: &[Json]) -> Option<Value> {
    let integers: Option<Vec<i64>> = items.iter().map(Json::as_i64).collect();
    let texts: Option<Vec<&str>> = items.iter().map(Json::as_str).collect();
    let numbers = || items.iter().map(Json::as_f64).collect::<Option<Vec<f64>>>();
    match (integers, texts) {
        (Some(integers), _) => Some(Value::Integers(integers)),
        (None, Some(texts)) => Some(Value::Strings(texts.into_iter().collect::<Strings>())),
        (None, None) => numbers().map(Value::Floats),
    }
}
