//! Model files, their description and the forward pass.

pub mod config;
pub mod decoder;
pub mod directory;
mod dummy;
pub mod encoder;
mod family;
mod file;
pub mod gguf;
pub mod metadata;
pub mod mlp;
pub mod names;
pub mod packed;
pub mod quantize;
mod rope;
pub mod safetensors;
pub mod templates;
pub mod tensors;
#[cfg(test)]
mod testing;
mod weights;
mod write;

pub use file::{LoadError, LoadFormat, ModelFile, path_name};
pub use write::{QUANTIZED_FILE, remove_partial};
