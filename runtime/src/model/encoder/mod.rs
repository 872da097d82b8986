//! Encoders (BERT, RoBERTa, DistilBERT, Nomic): what they are, their weights, and the forward pass that turns
//! texts into vectors or scores.
//!
//! ```text
//! config.json, model.safetensors        config.rs, weights.rs, forward.rs
//! tokenizer.json                        texts.rs      text -> tokens, pairs of texts for rerankers
//! modules.json, 1_Pooling, 2_Dense      head.rs       rows of a text -> its vector, or its score
//! ```

mod config;
mod file;
mod forward;
mod head;
#[cfg(test)]
mod testing;
mod texts;
mod weights;

pub use config::{EncoderConfig, Positions, Purpose};
pub use file::EncoderFile;
pub use forward::{Encoder, EncoderLimits, TextRows};
pub use head::{DenseStep, Head, Pooling, normalize};
pub use texts::{EncodedText, MAX_TEXT_BYTES, TextError, TextTokenizer, TooLong};
