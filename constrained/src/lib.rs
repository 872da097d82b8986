//! Grammar-constrained decoding: JSON Schema, regular expressions and choices as token masks and forced text.
mod dfa;
mod error;
mod grammar;
mod hash;
mod ir;
mod json;
mod keys;
mod lengths;
mod limits;
mod mask;
mod matcher;
mod number;
mod pattern;
mod schema;
mod step;
mod tables;
mod text;
mod trie;
mod vocabulary;

pub use error::{CompileError, MatchError, VocabularyError};
pub use grammar::Grammar;
pub use limits::Limits;
pub use mask::TokenMask;
pub use matcher::Matcher;
pub use schema::{Draft, FormatPolicy, SchemaOptions, Whitespace};
pub use vocabulary::Vocabulary;
