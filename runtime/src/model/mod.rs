//! Model files, their description and the forward pass.

pub mod config;
pub mod decoder;
mod family;
mod file;
pub mod gguf;
pub mod metadata;
mod rope;
#[cfg(test)]
mod testing;
mod weights;

pub use file::{LoadError, ModelFile};
