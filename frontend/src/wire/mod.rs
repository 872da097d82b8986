//! The JSON of the API: requests are read field by field and are valid afterwards, responses are plain
//! structs.
//!
//! Three rules: a known field of the wrong type or range is a 400 that names it; a field that would change
//! the output and is not implemented (`unsupported.rs`) is a 400 that names it, unless its value asks for
//! nothing; any other field is ignored (routers add some).

pub mod anthropic;
pub mod chat;
pub mod completion;
pub mod constraint;
pub mod deadlines;
pub mod embeddings;
pub mod error;
pub mod fields;
pub mod generate;
pub mod message;
pub mod models;
pub mod ollama;
pub mod options;
pub mod render;
pub mod rerank;
pub mod response;
pub mod responses;
pub mod strict;
pub mod tgi;
pub mod tokens;
pub mod tools;
pub(crate) mod unsupported;
