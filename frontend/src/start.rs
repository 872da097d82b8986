//! What a process starts with: a device, and on it the engine of a model that generates text or of an encoder.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use arbora_kernels::BackendError;
use arbora_kernels::cpu::{CpuBackend, CpuConfig, PoolMetrics};
use arbora_kernels::cuda::{CudaBackend, CudaConfig, DEFAULT_MAX_GRAPHS, DeviceFailure};
use arbora_runtime::engine::EngineExit;
use arbora_runtime::model::ModelFile;
use arbora_runtime::model::encoder::EncoderFile;

use crate::config::{Config, DeviceChoice};
use crate::load::{self, StartError, Started, StartedEncoder};
use crate::log::LogWriter;
use crate::quantize;
use crate::served::Models;
use crate::signals::Running;
use crate::workers::{NoThread, Workers};

/// What ends a command. Its message is for an operator.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A model whose engine runs.
pub enum Loaded {
    /// One that generates text.
    Generator(Started),
    /// One that turns texts into vectors or scores.
    Encoder(StartedEncoder),
}

/// What a server needs of it.
pub struct Parts {
    /// It alone.
    pub models: Models,
    /// Its name.
    pub name: String,
    /// Its engine.
    pub running: Running,
    /// The thread of its engine.
    pub thread: JoinHandle<EngineExit>,
}

impl Loaded {
    /// Takes it apart.
    ///
    /// # Errors
    /// When its name cannot be served.
    pub fn into_parts(self) -> Result<Parts, Failure> {
        match self {
            Loaded::Generator(Started { served, thread }) => Ok(Parts {
                name: served.name.clone(),
                running: Running::Generator(served.engine.clone()),
                models: Models::of(vec![served], Vec::new())?,
                thread,
            }),
            Loaded::Encoder(StartedEncoder { served, thread }) => Ok(Parts {
                name: served.name.clone(),
                running: Running::Encoder(served.engine.clone()),
                models: Models::of(Vec::new(), vec![served])?,
                thread,
            }),
        }
    }
}

/// A model that is ready, and what is known of its device.
pub struct Ready {
    /// The model.
    pub loaded: Loaded,
    /// What the threads of the CPU did.
    pub pool: Arc<PoolMetrics>,
    /// Of a device that can be lost.
    pub failure: Option<DeviceFailure>,
}

impl Ready {
    fn on_cpu(loaded: Loaded, pool: Arc<PoolMetrics>) -> Self {
        Ready {
            loaded,
            pool,
            failure: None,
        }
    }
}

/// Loads the model at `path` on the device that `config` asks for. The one place that knows which there are.
///
/// # Errors
/// When the model cannot be loaded, or not on that device.
pub fn start_model(
    path: &Path,
    config: &Config,
    (workers, log): (&Workers, &LogWriter),
) -> Result<Ready, Failure> {
    if EncoderFile::is_at(path) {
        if config.quantize.is_some() {
            return Err(StartError::QuantizedEncoder.into());
        }
        if config.device == DeviceChoice::Cuda {
            return Err(StartError::EncoderDevice.into());
        }
        let file = EncoderFile::open(path).map_err(StartError::from)?;
        let (backend, pool) = cpu_backend(config)?;
        let started = load::start_encoder(backend, file, config)?;
        return Ok(Ready::on_cpu(Loaded::Encoder(started), pool));
    }
    let file = ModelFile::open_as(path, config.load_format).map_err(StartError::from)?;
    let file = match config.quantize {
        None => file,
        Some(format) => quantize::quantized(file, format, config.n_threads, log).map_err(StartError::from)?,
    };
    if let Some(backend) = cuda_backend(config)? {
        let failure = Some(backend.failure());
        match load::start(backend, &file, config, workers) {
            // The threads of the CPU compute nothing; their figures stay at zero.
            Ok(started) => {
                return Ok(Ready {
                    loaded: Loaded::Generator(started),
                    pool: Arc::default(),
                    failure,
                });
            }
            Err(error) if config.device == DeviceChoice::Auto => {
                tracing::info!("device cpu: the CUDA device cannot serve this model: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (backend, pool) = cpu_backend(config)?;
    let started = load::start(backend, &file, config, workers)?;
    Ok(Ready::on_cpu(Loaded::Generator(started), pool))
}

/// The CPU, and what became of its threads.
fn cpu_backend(config: &Config) -> Result<(CpuBackend, Arc<PoolMetrics>), Failure> {
    let backend = CpuBackend::new(CpuConfig {
        n_threads: config.n_threads,
        isa: config.isa,
        pinning: config.pinning,
    })
    .map_err(|error| match error {
        BackendError::Threads { source, .. } => Failure::from(NoThread {
            name: "arbora-cpu".to_owned(),
            source,
        }),
        other => other.into(),
    })?;
    tracing::info!(
        threads = config.n_threads,
        isa = backend.isa().name(),
        "device cpu"
    );
    let pool = backend.pool_metrics();
    Ok((backend, pool))
}

/// The CUDA device, where the configuration wants one and it works. Nothing of CUDA is looked for unless it
/// is asked for.
fn cuda_backend(config: &Config) -> Result<Option<CudaBackend>, Failure> {
    if config.device == DeviceChoice::Cpu {
        return Ok(None);
    }
    let opened = CudaBackend::new(&CudaConfig {
        ordinal: 0,
        library_folders: config.cuda.libraries.clone(),
        cache_folder: config.cuda.cache.clone(),
        max_graphs: DEFAULT_MAX_GRAPHS,
    });
    match opened {
        Ok(backend) => {
            tracing::info!(name = backend.device_name(), "device cuda");
            Ok(Some(backend))
        }
        Err(error) if config.device == DeviceChoice::Auto => {
            tracing::info!("device cpu: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
