//! From a model file to a running engine.

mod encoder;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arbora_kernels::{Backend, KvShape};
use arbora_runtime::draft::Drafters;
use arbora_runtime::engine::{self, EngineConfig, EngineError, EngineExit, EngineHandle};
use arbora_runtime::model::decoder::Decoder;
use arbora_runtime::model::directory::SamplingDefaults;
use arbora_runtime::model::{LoadError, ModelFile};
use arbora_runtime::request::SamplingParams;
use arbora_runtime::tokenizer::Tokenizer;

pub use self::encoder::{StartedEncoder, start_encoder};
use crate::config::{Config, Drafts, KvSize, ModelConfig};
use crate::grammars::Grammars;
use crate::memory;
use crate::prompt::PromptEncoder;
use crate::served::Served;
use crate::template::{ChatTemplate, TemplateError, TemplateTokens};
use crate::thinking;
use crate::workers::{NoThread, Workers};

/// Of the memory that is free, the pool takes at most this part unless told otherwise.
const POOL_SHARE: usize = 4;

/// A model that can be asked.
#[derive(Debug)]
pub struct Started {
    /// All of it.
    pub served: Served,
    /// Ends with its engine.
    pub thread: JoinHandle<EngineExit>,
}

/// Why a model did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file is not what it should be.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Its chat template is not.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The limits are not.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// There is no thread for it.
    #[error(transparent)]
    Thread(#[from] NoThread),
    /// Weights and pool are more than there is.
    #[error(
        "the model's weights take {weight_bytes} bytes and the KV pool {pool_bytes}, but this process may have \
         {available} more (free memory, and the limits of the memory group and of ulimit): make the pool \
         smaller (--kv-memory, --kv-pages) or raise the limit"
    )]
    TooLittleMemory {
        /// Of the weights.
        weight_bytes: usize,
        /// Of keys and values.
        pool_bytes: usize,
        /// What there is.
        available: usize,
    },
    /// Encoders have a format of their own in memory.
    #[error("--quantize is for models that generate text: an encoder's weights have 12 bits in any case")]
    QuantizedEncoder,
    /// No other device has kernels for them.
    #[error("--device cuda is for models that generate text: encoders run on the CPU")]
    EncoderDevice,
    /// Not even the shortest conversation would fit.
    #[error("a KV pool of {bytes} bytes holds no page: one takes {page_bytes} bytes")]
    PoolTooSmall {
        /// Given or found.
        bytes: usize,
        /// Bytes of a page over all layers.
        page_bytes: usize,
    },
}

/// Reads weights and tokenizer of `file`, allocates the KV pool and starts the engine.
///
/// What grammars there will be is compiled by `workers`.
pub fn start<B: Backend>(
    mut backend: B,
    file: &ModelFile,
    (config, model): (&Config, &ModelConfig),
    workers: &Workers,
) -> Result<Started, StartError> {
    let context = model.context.unwrap_or(file.config().context);
    let n_pages = kv_pages(file, (config.page_size, model.kv), context)?;
    check_memory(
        file.weight_bytes(),
        n_pages.saturating_mul(page_bytes(file, config.page_size)),
    )?;
    let mut limits = engine_config(config, n_pages, context);
    let parts = load_parts(&mut backend, file, context, (&limits, workers))?;
    let ((tokenizer, grammars), decoder) = parts;
    let sampling = sampling(&file.sampling_defaults()?);
    let template = match file.chat_templates()? {
        none if none.is_empty() => None,
        templates => Some(ChatTemplate::of_model(&templates, template_tokens(&tokenizer))?),
    };
    let template_given = template.is_some();
    let token_bytes = Arc::new(tokenizer.text_bytes(&thinking::MARKS));
    limits.model_stop_tokens = tokenizer.stop_token_ids().to_vec();
    let (n_pages, page_size) = (limits.n_pages, limits.page_size);
    let spawned = engine::spawn(backend, decoder, Arc::clone(&token_bytes), limits);
    let (engine, thread) = spawned.map_err(|error| match error {
        EngineError::Thread(source) => StartError::from(NoThread {
            name: "engine".to_owned(),
            source,
        }),
        other => StartError::from(other),
    })?;
    log_loaded(file, &engine, (n_pages, page_size), (context, template_given));
    let served = Served {
        name: model.name.clone(),
        aliases: model.aliases.clone(),
        engine,
        named_bytes: Arc::new(tokenizer.named_bytes()),
        encoder: Arc::new(PromptEncoder::new(tokenizer, template)),
        grammars,
        token_bytes,
        sampling,
    };
    Ok(Started { served, thread })
}

/// Tokenizer and grammars, and the decoder.
type Parts<B> = ((Arc<Tokenizer>, Grammars), Decoder<B>);

/// The tokenizer's tables and the weights are both made from the file; neither needs the other.
fn load_parts<B: Backend>(
    backend: &mut B,
    file: &ModelFile,
    context: usize,
    (limits, workers): (&EngineConfig, &Workers),
) -> Result<Parts<B>, StartError> {
    let (tokenizer, decoder) = std::thread::scope(|scope| {
        let make = || {
            let tokenizer = Arc::new(file.tokenizer()?);
            let (n_vocab, stop_tokens) = (file.config().n_vocab, tokenizer.stop_token_ids());
            let vocabulary = (Arc::clone(&tokenizer), n_vocab, stop_tokens);
            let grammars = Grammars::new(vocabulary, limits.n_tenants, workers.clone());
            Ok::<_, LoadError>((tokenizer, grammars))
        };
        let name = "tokenizer".to_owned();
        let tokenizer = match std::thread::Builder::new()
            .name(name.clone())
            .spawn_scoped(scope, make)
        {
            Ok(tokenizer) => tokenizer,
            Err(source) => return Err(NoThread { name, source }),
        };
        let decoder = file.load_decoder(backend, context, limits.forward_limits());
        let tokenizer = tokenizer.join().expect("building a tokenizer does not panic");
        Ok((tokenizer, decoder))
    })?;
    Ok((tokenizer?, decoder?))
}

fn log_loaded(
    file: &ModelFile,
    engine: &EngineHandle,
    (n_pages, page_size): (usize, usize),
    (context, has_template): (usize, bool),
) {
    tracing::info!(
        model = file.name(),
        parameters = file.n_params(),
        quantization = file.quantization(),
        context = engine.context(),
        chat_template = has_template,
        "model loaded"
    );
    if let Some(window) = file.config().window {
        tracing::warn!(
            window,
            "the model has a sliding window, and its file does not say in which layers; its context is limited to \
             that"
        );
    }
    tracing::info!(
        pages = n_pages,
        tokens = n_pages * page_size,
        mebibytes = (n_pages * page_bytes(file, page_size)) >> 20,
        "KV pool"
    );
    if engine.context() < context {
        tracing::warn!(
            asked = context,
            given = engine.context(),
            "the KV pool limits the context"
        );
    }
}

fn engine_config(config: &Config, n_pages: usize, context: usize) -> EngineConfig {
    let defaults = EngineConfig::new(n_pages, context);
    EngineConfig {
        page_size: config.page_size,
        max_batch_tokens: config.max_batch_tokens.unwrap_or(defaults.max_batch_tokens),
        max_running: config.max_running.unwrap_or(defaults.max_running),
        max_draft_rows: match config.drafts {
            Drafts::Off => 0,
            Drafts::Auto | Drafts::Ngram | Drafts::Radix => defaults.max_draft_rows,
        },
        drafters: Drafters {
            ngram: matches!(config.drafts, Drafts::Auto | Drafts::Ngram),
            radix: matches!(config.drafts, Drafts::Auto | Drafts::Radix),
        },
        max_waiting: config.max_waiting.unwrap_or(defaults.max_waiting),
        max_waiting_tokens: config.max_waiting_tokens.unwrap_or(defaults.max_waiting_tokens),
        max_queue_wait: match config.max_queue_wait {
            Some(0) => None,
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => defaults.max_queue_wait,
        },
        schedule_policy: config.schedule_policy,
        n_tenants: config.api_keys.len().max(1),
        eviction_policy: config.eviction_policy,
        ..defaults
    }
}

/// Bytes of a page of `page_size` tokens over all layers.
pub fn page_bytes(file: &ModelFile, page_size: usize) -> usize {
    let model = file.config();
    let shape = KvShape {
        n_layers: model.layers.len(),
        n_kv_heads: model.heads.n_kv_heads,
        head_dim: model.heads.head_dim,
        page_size,
        n_pages: 1,
    };
    shape.page_bytes()
}

fn kv_pages(file: &ModelFile, (page_size, kv): (usize, KvSize), context: usize) -> Result<usize, StartError> {
    let page_bytes = page_bytes(file, page_size);
    let bytes = match kv {
        KvSize::Pages(pages) => return Ok(pages),
        KvSize::Bytes(bytes) => bytes,
        KvSize::Contexts(n) => {
            let wanted = context
                .div_ceil(page_size)
                .saturating_mul(n)
                .saturating_mul(page_bytes);
            let free = memory::available_bytes().unwrap_or(usize::MAX);
            wanted.min(free / POOL_SHARE)
        }
    };
    match bytes / page_bytes {
        0 => Err(StartError::PoolTooSmall { bytes, page_bytes }),
        pages => Ok(pages),
    }
}

/// Refuses what would only be found out by the kernel, which kills without a word.
fn check_memory(weight_bytes: u64, pool_bytes: usize) -> Result<(), StartError> {
    let weight_bytes = usize::try_from(weight_bytes).unwrap_or(usize::MAX);
    match memory::available_bytes() {
        Some(available) if weight_bytes.saturating_add(pool_bytes) > available => {
            Err(StartError::TooLittleMemory {
                weight_bytes,
                pool_bytes,
                available,
            })
        }
        _ => Ok(()),
    }
}

fn template_tokens(tokenizer: &Tokenizer) -> TemplateTokens {
    let name = |id: Option<u32>| {
        let bytes = id.map(|id| tokenizer.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    TemplateTokens {
        bos: name(tokenizer.bos()),
        eos: name(tokenizer.eos()),
    }
}

/// The model's wishes over the usual defaults. Where one is out of range, the log says so and none is used.
fn sampling(wished: &SamplingDefaults) -> SamplingParams {
    let usual = SamplingParams::default();
    let sampling = SamplingParams {
        temperature: wished.temperature.unwrap_or(usual.temperature),
        top_k: wished.top_k.unwrap_or(usual.top_k),
        top_p: wished.top_p.unwrap_or(usual.top_p),
        min_p: wished.min_p.unwrap_or(usual.min_p),
        repetition_penalty: wished.repetition_penalty.unwrap_or(usual.repetition_penalty),
        ..usual
    };
    match sampling.validate() {
        Ok(()) => sampling,
        Err(error) => {
            tracing::warn!(%error, "the model's sampling defaults are not used");
            usual
        }
    }
}
