//! Why options cannot be used.

use std::path::PathBuf;

/// An option nobody can use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no valid TOML or has an unknown key or a wrong type.
    #[error("{}: {source}{hint}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
        /// What an unknown key was probably meant to be; empty where nothing is near.
        hint: String,
    },
    /// A value that is not one of the choices.
    #[error("--{option} must be {expected}, got '{value}'")]
    BadValue {
        /// The option's long name.
        option: &'static str,
        /// What it must be.
        expected: String,
        /// What was given.
        value: String,
    },
    /// The host has no address.
    #[error("--host '{host}' is no address of this machine: {source}")]
    BadHost {
        /// As given.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// Open to everybody by accident.
    #[error(
        "--host {host} lets other machines in: set --api-key KEY (or ARBORA_API_KEY), or say \
         --allow-unauthenticated if that is meant"
    )]
    Unprotected {
        /// As given.
        host: String,
    },
    /// Keys that are not there are to be kept apart.
    #[error(
        "--isolate-keys keeps API keys apart and there is none: set --api-key KEY for each client (or \
         ARBORA_API_KEY), or leave --isolate-keys out"
    )]
    NothingToIsolate,
    /// Two ways to say how large the KV pool is.
    #[error("--kv-memory and --kv-pages exclude each other")]
    KvTwice,
    /// Two ways to say which models there are.
    #[error("'model' and '[[models]]' in one file exclude each other")]
    ModelsTwice,
    /// One name for several models.
    #[error(
        "--served-model-name is the name of one model, and there are {n_models} models: name each in [[models]]"
    )]
    OneNameForSeveral {
        /// How many there are.
        n_models: usize,
    },
    /// Two models want the same name.
    #[error("two models are called '{name}': give one of them another name in [[models]]")]
    SameName {
        /// The name, or alias.
        name: String,
    },
}
