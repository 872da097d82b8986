//! Options of the commands besides `arbora serve`.

use std::path::PathBuf;

use arbora_kernels::quant::Format;
use arbora_runtime::model::quantize::Quantization;

use super::{ByteSize, ConfigError, Options, bad_value, choice, usable_cores};
use crate::hub::HubKind;
use crate::models::EMBEDDING_MODEL;

/// Which hub a model comes from.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct HubOption {
    /// Where OWNER/NAME comes from: huggingface or modelscope [default: huggingface]
    #[arg(long, env = "ARBORA_HUB")]
    pub hub: Option<HubKind>,
}

/// The options that `arbora generate` shares with the server.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct ModelOptions {
    /// GGUF file, folder with safetensors, smollm2:135m, or a name of the hub (OWNER/NAME), fetched
    /// once [default: smollm2:135m]
    #[arg(long, env = "ARBORA_MODEL")]
    pub model: Option<String>,
    /// Where OWNER/NAME comes from: huggingface or modelscope [default: huggingface]
    #[arg(long, env = "ARBORA_HUB")]
    pub hub: Option<String>,
    /// Quantize weights in floating point while they are loaded: q8_0, q4_0 or q4_k [default: as they are]
    #[arg(long, env = "ARBORA_QUANTIZE")]
    pub quantize: Option<String>,
    /// Most tokens of prompt and answer together [default: the model's]
    #[arg(long, env = "ARBORA_CONTEXT")]
    pub context: Option<usize>,
    /// Memory for keys and values, such as 2GiB [default: one context]
    #[arg(long, env = "ARBORA_KV_MEMORY")]
    pub kv_memory: Option<ByteSize>,
    /// Threads that compute [default: the cores this process may use]
    #[arg(long, env = "ARBORA_THREADS")]
    pub threads: Option<usize>,
    /// Instruction set: avx512, avx2 or scalar [default: the best there is]
    #[arg(long, env = "ARBORA_ISA")]
    pub isa: Option<String>,
    /// What computes: cpu, cuda or auto [default: cpu]
    #[arg(long, env = "ARBORA_DEVICE")]
    pub device: Option<String>,
    /// Folder with CUDA's run-time compiler, libnvrtc [default: where the toolkit is installed]
    #[arg(long, env = "ARBORA_CUDA_LIBRARIES")]
    pub cuda_libraries: Option<std::path::PathBuf>,
    /// What to log [default: warn]
    #[arg(long, env = "ARBORA_LOG")]
    pub log: Option<String>,
}

/// The options that `arbora embed` shares with the server.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct EncoderOptions {
    /// Folder of an embedding model, minilm:l6-v2, or a name of the hub (OWNER/NAME), fetched once
    /// [default: minilm:l6-v2]
    #[arg(long, env = "ARBORA_MODEL")]
    pub model: Option<String>,
    /// Where OWNER/NAME comes from: huggingface or modelscope [default: huggingface]
    #[arg(long, env = "ARBORA_HUB")]
    pub hub: Option<String>,
    /// Most tokens of a text [default: the model's]
    #[arg(long, env = "ARBORA_CONTEXT")]
    pub context: Option<usize>,
    /// Threads that compute [default: the cores this process may use]
    #[arg(long, env = "ARBORA_THREADS")]
    pub threads: Option<usize>,
    /// Instruction set: avx512, avx2 or scalar [default: the best there is]
    #[arg(long, env = "ARBORA_ISA")]
    pub isa: Option<String>,
    /// What to log [default: warn]
    #[arg(long, env = "ARBORA_LOG")]
    pub log: Option<String>,
}

impl From<EncoderOptions> for Options {
    fn from(options: EncoderOptions) -> Self {
        Options {
            model: vec![options.model.unwrap_or_else(|| EMBEDDING_MODEL.to_owned())],
            hub: options.hub,
            context: options.context,
            threads: options.threads,
            isa: options.isa,
            log: Some(options.log.unwrap_or_else(|| "warn".to_owned())),
            ..Options::default()
        }
    }
}

/// Options of `arbora quantize`.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub struct QuantizeOptions {
    /// GGUF file or folder with weights in floating point, or a name of the hub
    pub model: String,
    /// The file to write; of a folder, the folder to make
    pub out: PathBuf,
    /// What matrices become: q8_0, q4_0 or q4_k
    #[arg(long = "type", default_value = "q8_0", value_name = "TYPE")]
    pub format: String,
    /// Where it comes from.
    #[command(flatten)]
    pub hub: HubOption,
    /// Threads that compute [default: the cores this process may use]
    #[arg(long, env = "ARBORA_THREADS")]
    pub threads: Option<usize>,
}

impl QuantizeOptions {
    /// What matrices become, and by how many threads.
    ///
    /// # Errors
    /// When the type is none of those there are.
    pub fn how(&self) -> Result<(Format, usize), ConfigError> {
        let format = choice("type", &Quantization::NAMES, Some(self.format.clone()))?;
        let n_threads = self.threads.unwrap_or_else(usable_cores);
        if !(1..=1024).contains(&n_threads) {
            return Err(bad_value("threads", "in [1, 1024]", n_threads));
        }
        Ok((format.expect("one was given"), n_threads))
    }
}

/// Options of `arbora chat`.
#[derive(Clone, Debug, PartialEq, clap::Args)]
pub struct ChatOptions {
    /// Where the server is
    #[arg(long, env = "ARBORA_URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Which of the server's models [default: its first]
    #[arg(long)]
    pub model: Option<String>,
    /// Key to send as a bearer token
    #[arg(long, env = "ARBORA_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// A system message before the conversation
    #[arg(long)]
    pub system: Option<String>,
    /// Most tokens of an answer [default: what fits]
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// 0 always takes the likeliest token [default: the model's]
    #[arg(long)]
    pub temperature: Option<f32>,
}

impl From<ModelOptions> for Options {
    fn from(options: ModelOptions) -> Self {
        Options {
            model: options.model.into_iter().collect(),
            hub: options.hub,
            quantize: options.quantize,
            context: options.context,
            kv_memory: options.kv_memory,
            threads: options.threads,
            isa: options.isa,
            device: options.device,
            cuda_libraries: options.cuda_libraries,
            log: Some(options.log.unwrap_or_else(|| "warn".to_owned())),
            ..Options::default()
        }
    }
}
