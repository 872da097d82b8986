//! What a process starts with: a device, and on it the engine of a model that generates text or of an
//! encoder.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use arbora_kernels::cpu::CpuBackend;
use arbora_kernels::cpu::cores::Cores;
use arbora_kernels::cuda::{CudaBackend, CudaConfig, DEFAULT_MAX_GRAPHS, DeviceFailure};
use arbora_runtime::engine::EngineExit;
use arbora_runtime::model::ModelFile;
use arbora_runtime::model::encoder::EncoderFile;

use crate::config::{Config, DeviceChoice, ModelConfig};
use crate::lifecycle::Means;
use crate::load::{self, StartError, Started, StartedEncoder};
use crate::quantize;
use crate::registry::Model;
use crate::workers::NoThread;

/// What ends a command. Its message is for an operator.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A model whose engine runs.
pub struct Ready {
    /// The model.
    pub model: Model,
    /// The thread of its engine.
    pub thread: JoinHandle<EngineExit>,
    /// Of a device that can be lost.
    pub failure: Option<DeviceFailure>,
}

impl From<Started> for Ready {
    fn from(Started { served, thread }: Started) -> Self {
        Ready {
            model: Model::Generator(Arc::new(served)),
            thread,
            failure: None,
        }
    }
}

impl From<StartedEncoder> for Ready {
    fn from(StartedEncoder { served, thread }: StartedEncoder) -> Self {
        Ready {
            model: Model::Encoder(Arc::new(served)),
            thread,
            failure: None,
        }
    }
}

/// The threads of the CPU, which all models share.
///
/// # Errors
/// Where they cannot be had.
pub fn cores(config: &Config) -> Result<Cores, Failure> {
    let cores = Cores::new(config.n_threads, config.pinning);
    cores.map_err(|source| {
        let name = "arbora-cpu".to_owned();
        NoThread { name, source }.into()
    })
}

/// Loads the model at `path` on the device that `config` asks for. The one place that knows which there are.
///
/// # Errors
/// When the model cannot be loaded, or not on that device.
pub fn start_model(
    path: &Path,
    (config, model): (&Config, &ModelConfig),
    means: &Means,
    cores: &Cores,
) -> Result<Ready, Failure> {
    let on_cpu = || cpu_backend(config, cores, model.weight);
    if EncoderFile::is_at(path) {
        if model.quantize.is_some() {
            return Err(StartError::QuantizedEncoder.into());
        }
        if model.device == DeviceChoice::Cuda {
            return Err(StartError::EncoderDevice.into());
        }
        let file = EncoderFile::open(path).map_err(StartError::from)?;
        return Ok(load::start_encoder(on_cpu()?, file, (config, model))?.into());
    }
    let file = ModelFile::open_as(path, config.load_format).map_err(StartError::from)?;
    let file = match model.quantize {
        None => file,
        Some(format) => {
            quantize::quantized(file, format, config.n_threads, &means.log).map_err(StartError::from)?
        }
    };
    if let Some(backend) = cuda_backend(config, model.device)? {
        let failure = Some(backend.failure());
        match load::start(backend, &file, (config, model), &means.workers) {
            Ok(started) => {
                return Ok(Ready {
                    failure,
                    ..Ready::from(started)
                });
            }
            Err(error) if model.device == DeviceChoice::Auto => {
                tracing::info!("device cpu: the CUDA device cannot serve this model: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(load::start(on_cpu()?, &file, (config, model), &means.workers)?.into())
}

fn cpu_backend(config: &Config, cores: &Cores, weight: u32) -> Result<CpuBackend, Failure> {
    let backend = CpuBackend::on(cores, config.isa, weight)?;
    tracing::info!(
        threads = config.n_threads,
        isa = backend.isa().name(),
        "device cpu"
    );
    Ok(backend)
}

/// The CUDA device, where `choice` wants one and it works. Nothing of CUDA is looked for unless it is asked
/// for.
fn cuda_backend(config: &Config, choice: DeviceChoice) -> Result<Option<CudaBackend>, Failure> {
    if choice == DeviceChoice::Cpu {
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
        Err(error) if choice == DeviceChoice::Auto => {
            tracing::info!("device cpu: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
