//! From the folder of an encoder to a running embedding engine.

use std::sync::Arc;
use std::thread::JoinHandle;

use arbora_kernels::encoder::EncoderBackend;
use arbora_runtime::embedding::{self, EmbeddingConfig};
use arbora_runtime::engine::EngineExit;
use arbora_runtime::model::encoder::EncoderFile;

use super::{StartError, check_memory};
use crate::config::{Config, ModelConfig};
use crate::encoders::ServedEncoder;
use crate::workers::NoThread;

/// An encoder that can be asked.
#[derive(Debug)]
pub struct StartedEncoder {
    /// All of it.
    pub served: ServedEncoder,
    /// Ends with its engine.
    pub thread: JoinHandle<EngineExit>,
}

/// Reads weights and tokenizer of `file` and starts the engine.
///
/// # Errors
/// Where something in the folder is not what it should be, or there is no memory.
pub fn start_encoder<B: EncoderBackend>(
    mut backend: B,
    mut file: EncoderFile,
    (config, model): (&Config, &ModelConfig),
) -> Result<StartedEncoder, StartError> {
    if let Some(context) = model.context {
        file.set_max_tokens(context)?;
    }
    check_memory(file.config().weight_bytes(), 0)?;
    let tokenizer = Arc::new(file.tokenizer()?);
    let max_rows = config.max_batch_tokens.unwrap_or(EmbeddingConfig::MAX_ROWS);
    let encoder = file.load(&mut backend, max_rows)?;
    let defaults = EmbeddingConfig::default();
    let n_tenants = config.api_keys.len().max(1);
    let limits = EmbeddingConfig {
        max_waiting: config.max_waiting.unwrap_or(defaults.max_waiting).max(n_tenants),
        max_waiting_tokens: config.max_waiting_tokens.unwrap_or(defaults.max_waiting_tokens),
        n_tenants,
    };
    let spawned = embedding::spawn(backend, encoder, file.head().clone(), limits);
    let (engine, thread) = spawned.map_err(|source| NoThread {
        name: "engine".to_owned(),
        source,
    })?;
    let (prompts, default_prompt) = file.prompts();
    let served = ServedEncoder {
        name: model.name.clone(),
        aliases: model.aliases.clone(),
        engine,
        tokenizer,
        purpose: file.config().purpose,
        width: file.head().n_out(file.config().width),
        prompts: prompts.to_vec(),
        default_prompt: default_prompt.map(str::to_owned),
    };
    tracing::info!(
        model = served.name,
        parameters = file.n_params(),
        stored = file.format(),
        context = served.engine.max_tokens(),
        purpose = ?served.purpose,
        dimensions = served.width,
        "encoder loaded"
    );
    Ok(StartedEncoder { served, thread })
}
