//! The model against Hugging Face: token ids, logits of tiny models, log-probabilities of the default model.
//! The references are made by the scripts in `tests/golden`.

mod decoder;
mod families;
mod quants;
mod tokens;

use std::path::{Path, PathBuf};

use arbora_runtime::model::ModelFile;

/// A file in `tests/golden`.
fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A golden of the type its test wants.
fn golden<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = golden_path(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The default model, fetched where the cache does not have it.
fn default_model() -> ModelFile {
    let path = arbora::models::resolve("smollm2:135m").expect("the default model can be had");
    ModelFile::open(&path).expect("the default model is good")
}
