//! The engine of Arbora: requests in, events out, one thread that owns all state.
//!
//! No HTTP, no async functions, no JSON of requests. A caller parses its wire format into a
//! [`request::Request`], hands it to an engine handle and reads [`request::Event`]s.

mod adjustments;
pub mod batch;
mod cache;
pub mod config;
pub mod draft;
mod drafting;
mod drain;
pub mod embedding;
pub mod engine;
pub mod explain;
pub mod fair_limit;
pub mod gauges;
pub mod grammar;
pub mod handle;
pub mod inspect;
pub mod metrics;
pub mod model;
mod pace;
mod plan;
pub mod progress;
mod queue;
pub mod request;
mod runner;
pub mod sampler;
mod scheduler;
mod sequence;
mod sequences;
mod shares;
mod step;
mod step_rows;
pub mod stop;
pub mod thought_limit;
pub mod token_bytes;
pub mod tokenizer;

pub use arbora_radix::{EvictionPolicy, NodeView};
