//! The Arbora server: command line, HTTP, wire types, chat templates and model download.
//!
//! ```text
//! server ─► connection ─► route ─► origins, hosts, auth ─► api ─► body ─► wire (parse) ─► prompt
//!  places                                                   │               EngineHandle::submit ◄──┘
//!                                                           └◄─ pipeline ◄─ stream ◄─ events
//! ```

mod absent;
pub mod api;
pub mod auth;
mod blocks;
pub mod body;
pub(crate) mod calendar;
pub mod chat;
pub mod checked;
pub mod cli;
pub mod config;
mod connection;
pub mod embed;
pub mod encoders;
pub mod files;
pub mod flights;
pub mod generate;
pub mod grammars;
pub mod hosts;
pub mod hub;
pub mod inspect;
pub mod intake;
pub mod kept;
pub mod lifecycle;
pub mod load;
pub mod log;
pub mod logprobs;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod openapi;
pub mod origins;
pub mod otlp;
pub mod page;
mod pipeline;
pub mod places;
mod progress;
pub mod prompt;
pub mod quantize;
mod random;
pub mod registry;
pub mod route;
pub mod served;
pub mod server;
pub mod signals;
pub mod start;
pub mod stream;
pub mod template;
pub mod thinking;
mod tls;
pub mod tools;
pub mod wire;
pub mod workers;
