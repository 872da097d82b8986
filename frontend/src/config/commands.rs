//! Options of the commands besides `arbora serve`.

use super::{ByteSize, Options};

/// The options that `arbora generate` shares with the server.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct ModelOptions {
    /// GGUF file, folder with safetensors, smollm2:135m, or a name of the hub (OWNER/NAME), fetched
    /// once [default: smollm2:135m]
    #[arg(long, env = "ARBORA_MODEL")]
    pub model: Option<String>,
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
            model: options.model,
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
