//! What the operator decided: file, then environment, then flags, the later over the earlier. Decided once,
//! before anything starts. The only module that reads the environment.

mod access;
mod choice;
mod commands;
mod conventions;
mod device;
mod error;
mod memory;
mod models;
mod size;
mod spelling;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use arbora_kernels::cpu::{Isa, Pinning};
use arbora_runtime::EvictionPolicy;
use arbora_runtime::config::SchedulePolicy;
use arbora_runtime::model::LoadFormat;
use axum::http::Uri;
use serde::Deserialize;

use self::choice::{DRAFTS, EVICTION_POLICIES, PINNINGS, bad_value, choice, isa_names};
pub use self::commands::{ChatOptions, EncoderOptions, HubOption, ModelOptions, QuantizeOptions};
use self::conventions::rust_log;
pub use self::conventions::{cache_directory, hub_settings, otel_headers, otel_service_name, wants_no_color};
pub use self::device::{CudaFolders, DeviceChoice};
pub use self::error::ConfigError;
pub use self::models::{ModelConfig, ModelTable};
pub use self::size::ByteSize;
use crate::api::generate::StreamForm;
use crate::auth::CacheSharing;
use crate::checked::Integrity;
use crate::hosts::AllowedHosts;
use crate::hub::HubKind;
use crate::intake::IntakeLimits;
use crate::kept::KeptLimits;
use crate::origins::AllowedOrigins;

/// Every option, each perhaps not given. Flags, environment and file all fill this one struct, so they cannot
/// disagree about what there is.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Options {
    /// GGUF file, folder with safetensors, smollm2:135m, minilm:l6-v2 (embeddings), or a name of the hub
    /// (OWNER/NAME), fetched once; may be repeated [default: smollm2:135m]
    #[arg(long, env = "ARBORA_MODEL", help_heading = "Model")]
    #[serde(deserialize_with = "models::one_or_many")]
    pub model: Vec<String>,
    /// Several models, each with options of its own: tables of the file.
    #[arg(skip)]
    pub models: Vec<ModelTable>,
    /// Where OWNER/NAME comes from: huggingface or modelscope [default: huggingface]
    #[arg(long, env = "ARBORA_HUB", help_heading = "Model")]
    pub hub: Option<String>,
    /// auto reads the model's weights; dummy makes them up from its config.json, for benchmarks
    /// [default: auto]
    #[arg(long, env = "ARBORA_LOAD_FORMAT", help_heading = "Model")]
    pub load_format: Option<String>,
    /// Quantize weights in floating point while they are loaded: q8_0, q4_0 or q4_k [default: as they are]
    #[arg(long, env = "ARBORA_QUANTIZE", help_heading = "Model")]
    pub quantize: Option<String>,
    /// Hash a cached model again at the start, also where its file looks as it did when it was hashed last
    #[arg(
        long,
        env = "ARBORA_VERIFY",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Model"
    )]
    pub verify: Option<bool>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, env = "ARBORA_HOST", help_heading = "Server")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8000]
    #[arg(long, env = "ARBORA_PORT", help_heading = "Server")]
    pub port: Option<u16>,
    /// Key that clients must send as a bearer token; may be repeated
    #[arg(
        long = "api-key",
        env = "ARBORA_API_KEY",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Access"
    )]
    pub api_key: Vec<String>,
    /// Key for what concerns all clients: metrics, load, cache tree and flush [default: any API key; none
    /// with --isolate-keys]
    #[arg(
        long,
        env = "ARBORA_ADMIN_KEY",
        hide_env_values = true,
        help_heading = "Access"
    )]
    pub admin_key: Option<String>,
    /// Key for /metrics besides that [default: none]
    #[arg(
        long,
        env = "ARBORA_METRICS_KEY",
        hide_env_values = true,
        help_heading = "Access"
    )]
    pub metrics_key: Option<String>,
    /// With several API keys: what one key sent is neither found nor timed by another [default: off]
    #[arg(
        long,
        env = "ARBORA_ISOLATE_KEYS",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Access"
    )]
    pub isolate_keys: Option<bool>,
    /// Listen beyond this machine without any API key
    #[arg(
        long,
        env = "ARBORA_ALLOW_UNAUTHENTICATED",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Access"
    )]
    pub allow_unauthenticated: Option<bool>,
    /// Host by which clients may ask besides localhost, NAME or NAME:PORT, * for any; may be repeated
    #[arg(
        long,
        env = "ARBORA_ALLOWED_HOST",
        value_delimiter = ',',
        value_name = "HOST",
        help_heading = "Access"
    )]
    pub allowed_host: Vec<String>,
    /// Origin whose pages may ask in a browser (CORS), such as http://localhost:3000, * for any; may be
    /// repeated
    #[arg(
        long,
        env = "ARBORA_ALLOW_ORIGIN",
        value_delimiter = ',',
        value_name = "ORIGIN",
        help_heading = "Access"
    )]
    pub allow_origin: Vec<String>,
    /// Name clients use for the model [default: the alias or the file's name]
    #[arg(long, env = "ARBORA_SERVED_MODEL_NAME", help_heading = "Model")]
    pub served_model_name: Option<String>,
    /// Most tokens of prompt and output together; of an encoder, of a text [default: the model's]
    #[arg(long, env = "ARBORA_CONTEXT", help_heading = "Model")]
    pub context: Option<usize>,
    /// Memory for keys and values, such as 2GiB [default: 8 contexts, at most a quarter of the free memory]
    #[arg(
        long,
        env = "ARBORA_KV_MEMORY",
        conflicts_with = "kv_pages",
        help_heading = "Memory and cache"
    )]
    pub kv_memory: Option<ByteSize>,
    /// The same in pages
    #[arg(long, env = "ARBORA_KV_PAGES", help_heading = "Memory and cache")]
    pub kv_pages: Option<usize>,
    /// Tokens per page: 16, 32 or 64 [default: 16]
    #[arg(long, env = "ARBORA_PAGE_SIZE", help_heading = "Memory and cache")]
    pub page_size: Option<usize>,
    /// Most tokens computed in one step [default: 256; 512 of an encoder]
    #[arg(long, env = "ARBORA_MAX_BATCH_TOKENS", help_heading = "Scheduling")]
    pub max_batch_tokens: Option<usize>,
    /// Most requests computed at a time [default: 32]
    #[arg(long, env = "ARBORA_MAX_RUNNING", help_heading = "Scheduling")]
    pub max_running: Option<usize>,
    /// Most requests waiting; more get a 429 [default: 1024]
    #[arg(long, env = "ARBORA_MAX_WAITING", help_heading = "Scheduling")]
    pub max_waiting: Option<usize>,
    /// Most prompt tokens waiting; more get a 429 [default: 1048576]
    #[arg(long, env = "ARBORA_MAX_WAITING_TOKENS", help_heading = "Scheduling")]
    pub max_waiting_tokens: Option<usize>,
    /// Seconds; what would wait longer for its turn, by the rate of late, gets a 429; 0 for no limit
    /// [default: 60]
    #[arg(long, env = "ARBORA_MAX_QUEUE_WAIT", help_heading = "Scheduling")]
    pub max_queue_wait: Option<u64>,
    /// Who is next: prefix (longest cached prefix, with aging), fcfs or priority [default: prefix]
    #[arg(long, env = "ARBORA_SCHEDULE_POLICY", help_heading = "Scheduling")]
    pub schedule_policy: Option<String>,
    /// Which cached prefixes go first: lru, lfu, slru or priority [default: lru]
    #[arg(long, env = "ARBORA_EVICTION_POLICY", help_heading = "Memory and cache")]
    pub eviction_policy: Option<String>,
    /// Several tokens per step where the next ones are probably known: auto or off [default: auto]
    #[arg(long, env = "ARBORA_DRAFT", help_heading = "Scheduling")]
    pub draft: Option<String>,
    /// Threads that compute [default: the cores this process may use]
    #[arg(long, env = "ARBORA_THREADS", help_heading = "Compute")]
    pub threads: Option<usize>,
    /// Cores of these threads: auto (they make way for each other beside busy processes), cores (one core
    /// each) or none (as the system likes) [default: auto]
    #[arg(long, env = "ARBORA_PINNING", help_heading = "Compute")]
    pub pinning: Option<String>,
    /// Instruction set: avx512, avx2 or scalar [default: the best there is]
    #[arg(long, env = "ARBORA_ISA", help_heading = "Compute")]
    pub isa: Option<String>,
    /// What computes: cpu, cuda (NVIDIA, from compute capability 8.0 on) or auto (cuda where it works)
    /// [default: cpu]
    #[arg(long, env = "ARBORA_DEVICE", help_heading = "Compute")]
    pub device: Option<String>,
    /// Folder with CUDA's run-time compiler, libnvrtc [default: where the toolkit is installed]
    #[arg(long, env = "ARBORA_CUDA_LIBRARIES", help_heading = "Compute")]
    pub cuda_libraries: Option<PathBuf>,
    /// Seconds that running requests get when the server is told to stop [default: 30]
    #[arg(long, env = "ARBORA_DRAIN_TIMEOUT", help_heading = "Server")]
    pub drain_timeout: Option<u64>,
    /// Most connections at a time [default: 4096, or what the limit of open files leaves]
    #[arg(long, env = "ARBORA_MAX_CONNECTIONS", help_heading = "Server")]
    pub max_connections: Option<usize>,
    /// Largest request body [default: 8MiB]
    #[arg(long, env = "ARBORA_BODY_LIMIT", help_heading = "Server")]
    pub body_limit: Option<ByteSize>,
    /// Memory for the bodies of all requests that do not run or wait yet; beyond, 429
    /// [default: 128MiB, or 9 times --body-limit where that is more]
    #[arg(long, env = "ARBORA_BODY_MEMORY", help_heading = "Server")]
    pub body_memory: Option<ByteSize>,
    /// Memory for responses that clients may ask for again (/v1/responses); 0 keeps none [default: 64MiB]
    #[arg(long, env = "ARBORA_RESPONSES_MEMORY", help_heading = "Server")]
    pub responses_memory: Option<ByteSize>,
    /// Seconds after which such a response is forgotten [default: 86400]
    #[arg(long, env = "ARBORA_RESPONSES_TTL", help_heading = "Server")]
    pub responses_ttl: Option<u32>,
    /// Events of /generate hold what came since the one before, not all that came so far [default: off]
    #[arg(
        long,
        env = "ARBORA_INCREMENTAL_STREAMING_OUTPUT",
        num_args = 0..=1,
        default_missing_value = "true",
        help_heading = "Server"
    )]
    pub incremental_streaming_output: Option<bool>,
    /// Also tell metrics by the names of another server: none or vllm [default: none]
    #[arg(long, env = "ARBORA_METRICS_COMPAT", help_heading = "Server")]
    pub metrics_compat: Option<String>,
    /// Where traces are POSTed by OTLP over HTTP, such as http://localhost:4318/v1/traces [default: nowhere]
    #[arg(long, env = "ARBORA_OTLP_TRACES_ENDPOINT", help_heading = "Server")]
    pub otlp_traces_endpoint: Option<String>,
    /// TOML file with these options by their long names
    #[arg(long, env = "ARBORA_CONFIG", help_heading = "Configuration")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, or a filter like arbora=debug [default: RUST_LOG or info]
    #[arg(long, env = "ARBORA_LOG", help_heading = "Configuration")]
    pub log: Option<String>,
}

/// Every option, decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What is served, at least one.
    pub models: Vec<ModelConfig>,
    /// What a model is like that an operator adds.
    pub model_defaults: ModelConfig,
    /// Which hub models come from.
    pub hub: HubKind,
    /// Where their weights come from.
    pub load_format: LoadFormat,
    /// When a cached model is hashed.
    pub integrity: Integrity,
    /// Where to listen.
    pub address: SocketAddr,
    /// Keys of which clients must send one; empty asks for none.
    pub api_keys: Vec<String>,
    /// Whether keys read each other's part of the prefix cache.
    pub cache_sharing: CacheSharing,
    /// Key for what concerns all clients.
    pub admin_key: Option<String>,
    /// Key for the metrics.
    pub metrics_key: Option<String>,
    /// By which names the server may be asked.
    pub hosts: AllowedHosts,
    /// Whose pages may ask.
    pub origins: AllowedOrigins,
    /// Tokens per page.
    pub page_size: usize,
    /// Limit of one step; the engine's default where absent.
    pub max_batch_tokens: Option<usize>,
    /// Limit of running requests; the engine's default where absent.
    pub max_running: Option<usize>,
    /// Limit of waiting requests; the engine's default where absent.
    pub max_waiting: Option<usize>,
    /// Limit of waiting prompt tokens; the engine's default where absent.
    pub max_waiting_tokens: Option<usize>,
    /// Seconds a request may be expected to wait; 0 for any time, the engine's default where absent.
    pub max_queue_wait: Option<u64>,
    /// Who is next.
    pub schedule_policy: SchedulePolicy,
    /// What is evicted first.
    pub eviction_policy: EvictionPolicy,
    /// Whether tokens are proposed ahead.
    pub drafts: Drafts,
    /// Threads that compute.
    pub n_threads: usize,
    /// Which cores they run on.
    pub pinning: Pinning,
    /// Instruction set; the best there is where absent.
    pub isa: Option<Isa>,
    /// Where CUDA's compiler and the compiled kernels are.
    pub cuda: CudaFolders,
    /// What running requests get at shutdown.
    pub drain_timeout: Duration,
    /// Most connections at a time; what is usual where absent.
    pub max_connections: Option<usize>,
    /// What bodies of requests may take.
    pub intake: IntakeLimits,
    /// What responses that are kept may take.
    pub responses: KeptLimits,
    /// What events of `/generate` hold.
    pub generate_form: StreamForm,
    /// Additional metric naming scheme.
    pub metrics_compat: MetricsCompat,
    /// Where traces are POSTed; absent where nothing is traced.
    pub otlp_traces_endpoint: Option<String>,
    /// Log filter.
    pub log: String,
}

impl Config {
    /// The names of each model, the one that clients see first.
    pub fn model_names(&self) -> impl Iterator<Item = Vec<String>> {
        self.models
            .iter()
            .map(|model| model.names().map(str::to_owned).collect())
    }
}

/// Additional metric naming scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsCompat {
    /// Nobody's.
    #[default]
    None,
    /// vLLM's.
    Vllm,
}

impl MetricsCompat {
    const NAMES: [(&'static str, MetricsCompat); 2] =
        [("none", MetricsCompat::None), ("vllm", MetricsCompat::Vllm)];
}

/// Whether several tokens of a sequence are computed in one step. It never changes what comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafts {
    /// Text that a grammar forces, and whatever else pays.
    Auto,
    /// One token per step.
    Off,
    /// Text that a grammar forces, and what followed the same words earlier in the text.
    Ngram,
    /// Text that a grammar forces, and what followed the same text in an earlier request.
    Radix,
}

/// How large the KV pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// Room for this many of the longest sequences, but at most a quarter of the free memory.
    Contexts(usize),
    /// As many pages as fit.
    Bytes(usize),
    /// As many pages.
    Pages(usize),
}

impl Options {
    /// Completes flags and environment (which clap has merged) with the file they name, checks and decides.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        match self.config.clone() {
            None => self.decide(),
            Some(path) => {
                let file = Options::from_file(&path)?;
                self.over(file).decide()
            }
        }
    }

    fn from_file(path: &Path) -> Result<Options, ConfigError> {
        let path = path.to_owned();
        match std::fs::read_to_string(&path) {
            Err(source) => Err(ConfigError::Unreadable { path, source }),
            Ok(text) => toml::from_str(&text).map_err(|source| ConfigError::BadFile {
                path,
                source: Box::new(source),
                hint: spelling::hint(&text),
            }),
        }
    }

    /// These options, and `under` where they say nothing.
    fn over(self, under: Options) -> Options {
        // A size in pages replaces one in bytes and the other way round.
        let (kv_memory, kv_pages) = match (self.kv_memory, self.kv_pages) {
            (None, None) => (under.kv_memory, under.kv_pages),
            given => given,
        };
        let (model, models) = models::merge(&self, &under);
        Options {
            model,
            models,
            hub: self.hub.or(under.hub),
            load_format: self.load_format.or(under.load_format),
            quantize: self.quantize.or(under.quantize),
            verify: self.verify.or(under.verify),
            host: self.host.or(under.host),
            port: self.port.or(under.port),
            api_key: given(self.api_key, under.api_key),
            admin_key: self.admin_key.or(under.admin_key),
            metrics_key: self.metrics_key.or(under.metrics_key),
            isolate_keys: self.isolate_keys.or(under.isolate_keys),
            allow_unauthenticated: self.allow_unauthenticated.or(under.allow_unauthenticated),
            allowed_host: given(self.allowed_host, under.allowed_host),
            allow_origin: given(self.allow_origin, under.allow_origin),
            served_model_name: self.served_model_name.or(under.served_model_name),
            context: self.context.or(under.context),
            kv_memory,
            kv_pages,
            page_size: self.page_size.or(under.page_size),
            max_batch_tokens: self.max_batch_tokens.or(under.max_batch_tokens),
            max_running: self.max_running.or(under.max_running),
            max_waiting: self.max_waiting.or(under.max_waiting),
            max_waiting_tokens: self.max_waiting_tokens.or(under.max_waiting_tokens),
            max_queue_wait: self.max_queue_wait.or(under.max_queue_wait),
            schedule_policy: self.schedule_policy.or(under.schedule_policy),
            eviction_policy: self.eviction_policy.or(under.eviction_policy),
            draft: self.draft.or(under.draft),
            threads: self.threads.or(under.threads),
            pinning: self.pinning.or(under.pinning),
            isa: self.isa.or(under.isa),
            device: self.device.or(under.device),
            cuda_libraries: self.cuda_libraries.or(under.cuda_libraries),
            drain_timeout: self.drain_timeout.or(under.drain_timeout),
            max_connections: self.max_connections.or(under.max_connections),
            body_limit: self.body_limit.or(under.body_limit),
            body_memory: self.body_memory.or(under.body_memory),
            responses_memory: self.responses_memory.or(under.responses_memory),
            responses_ttl: self.responses_ttl.or(under.responses_ttl),
            incremental_streaming_output: self
                .incremental_streaming_output
                .or(under.incremental_streaming_output),
            metrics_compat: self.metrics_compat.or(under.metrics_compat),
            otlp_traces_endpoint: self.otlp_traces_endpoint.or(under.otlp_traces_endpoint),
            config: None,
            log: self.log.or(under.log),
        }
    }

    fn decide(self) -> Result<Config, ConfigError> {
        let page_size = self.page_size.unwrap_or(16);
        if ![16, 32, 64].contains(&page_size) {
            return Err(bad_value("page-size", "16, 32 or 64", page_size));
        }
        let n_threads = self.threads.unwrap_or_else(usable_cores);
        if !(1..=1024).contains(&n_threads) {
            return Err(bad_value("threads", "in [1, 1024]", n_threads));
        }
        access::check_keys(&self)?;
        if let Some(n) = self.max_connections.filter(|n| !(1..=1 << 20).contains(n)) {
            return Err(bad_value("max-connections", "in [1, 1048576]", n));
        }
        let address = self.address()?;
        Ok(Config {
            address,
            hosts: access::hosts(&self.allowed_host, address)?,
            origins: access::origins(&self.allow_origin)?,
            models: models::decide(&self)?,
            model_defaults: models::defaults(&self)?,
            hub: choice("hub", &HubKind::NAMES, self.hub)?.unwrap_or_default(),
            load_format: choice("load-format", &LoadFormat::NAMES, self.load_format)?.unwrap_or_default(),
            integrity: match self.verify {
                Some(true) => Integrity::Always,
                Some(false) | None => Integrity::WhenChanged,
            },
            api_keys: self.api_key,
            cache_sharing: match self.isolate_keys {
                Some(true) => CacheSharing::WithinKey,
                Some(false) | None => CacheSharing::AcrossKeys,
            },
            admin_key: self.admin_key,
            metrics_key: self.metrics_key,
            page_size,
            max_batch_tokens: self.max_batch_tokens,
            max_running: self.max_running,
            max_waiting: self.max_waiting,
            max_waiting_tokens: self.max_waiting_tokens,
            max_queue_wait: self.max_queue_wait,
            schedule_policy: choice("schedule-policy", &SchedulePolicy::NAMES, self.schedule_policy)?
                .unwrap_or_default(),
            eviction_policy: choice("eviction-policy", &EVICTION_POLICIES, self.eviction_policy)?
                .unwrap_or_default(),
            drafts: choice("draft", &DRAFTS, self.draft)?.unwrap_or(Drafts::Auto),
            n_threads,
            pinning: choice("pinning", &PINNINGS, self.pinning)?.unwrap_or_default(),
            isa: choice("isa", &isa_names(), self.isa)?,
            cuda: CudaFolders::new(self.cuda_libraries),
            drain_timeout: Duration::from_secs(self.drain_timeout.unwrap_or(30)),
            max_connections: self.max_connections,
            intake: memory::intake(self.body_limit, self.body_memory)?,
            responses: memory::responses(self.responses_memory, self.responses_ttl),
            generate_form: match self.incremental_streaming_output {
                Some(true) => StreamForm::Incremental,
                Some(false) | None => StreamForm::Cumulative,
            },
            metrics_compat: choice("metrics-compat", &MetricsCompat::NAMES, self.metrics_compat)?
                .unwrap_or_default(),
            otlp_traces_endpoint: self.otlp_traces_endpoint.map(http_url).transpose()?,
            log: self.log.or_else(rust_log).unwrap_or_else(|| "info".to_owned()),
        })
    }

    fn address(&self) -> Result<SocketAddr, ConfigError> {
        let host = self.host.as_deref().unwrap_or("127.0.0.1").to_owned();
        let resolved = (host.as_str(), self.port.unwrap_or(8000)).to_socket_addrs();
        let found = resolved.and_then(|mut addresses| {
            let none = || std::io::Error::other("it resolves to nothing");
            addresses.next().ok_or_else(none)
        });
        match found {
            Err(source) => Err(ConfigError::BadHost { host, source }),
            Ok(address) => {
                let is_private = address.ip().is_loopback() || !self.api_key.is_empty();
                if is_private || self.allow_unauthenticated == Some(true) {
                    Ok(address)
                } else {
                    Err(ConfigError::Unprotected { host })
                }
            }
        }
    }
}

/// The list, or `under` where it is empty.
fn given<T>(list: Vec<T>, under: Vec<T>) -> Vec<T> {
    if list.is_empty() { under } else { list }
}

/// `--otlp-traces-endpoint`, if requests can be sent there.
fn http_url(url: String) -> Result<String, ConfigError> {
    let is_http = url.parse::<Uri>().is_ok_and(|uri| {
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        has_host && ["http", "https"].contains(&uri.scheme_str().unwrap_or_default())
    });
    match is_http {
        true => Ok(url),
        false => Err(bad_value(
            "otlp-traces-endpoint",
            "an http:// or https:// URL",
            url,
        )),
    }
}

/// Cores this process may use: the standard library looks at the affinity mask and at cgroup quotas.
fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one module that reads the environment"
)]
fn environment(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::{Addresses, Host};

    fn file(text: &str) -> Result<Options, ConfigError> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("arbora.toml");
        std::fs::write(&path, text).expect("writable");
        Options::from_file(&path)
    }

    #[test]
    fn a_server_that_was_told_nothing_is_private() {
        let config = Options::default().resolve().expect("valid");
        assert_eq!(config.models[0].model, "smollm2:135m");
        assert_eq!(config.address.to_string(), "127.0.0.1:8000");
        assert_eq!((config.page_size, config.models[0].kv), (16, KvSize::Contexts(8)));
        assert!(config.n_threads >= 1);
    }

    #[test]
    fn flags_go_over_the_file() {
        let under = file("port = 1\nmodel = 'a.gguf'\nkv-pages = 5\napi-key = ['k']\nbody-limit = '1KiB'")
            .expect("valid");
        let flags = Options {
            port: Some(2),
            kv_memory: Some(ByteSize(1 << 20)),
            ..Options::default()
        };
        let config = flags.over(under).decide().expect("valid");
        assert_eq!(
            (config.address.port(), config.models[0].model.as_str()),
            (2, "a.gguf")
        );
        assert_eq!(config.models[0].kv, KvSize::Bytes(1 << 20));
        assert_eq!(
            (config.api_keys.as_slice(), config.intake.body),
            (["k".to_owned()].as_slice(), 1024)
        );
    }

    #[test]
    fn unknown_keys_and_wrong_types_in_the_file_are_refused_by_name() {
        let unknown = file("modle = 'x'").expect_err("unknown key").to_string();
        assert!(
            unknown.contains("modle") && unknown.contains("served-model-name"),
            "{unknown}"
        );
        assert!(
            unknown.contains("line 1") && unknown.ends_with("did you mean 'model' for 'modle'?"),
            "{unknown}"
        );
        let far = file("colour = 'x'").expect_err("unknown key").to_string();
        assert!(far.contains("colour") && !far.contains("did you mean"), "{far}");
        let wrong = file("port = 'x'").expect_err("wrong type").to_string();
        assert!(wrong.contains("port"), "{wrong}");
        assert!(file("body-limit = '1 parsec'").is_err());
    }

    #[test]
    fn bad_values_name_option_and_choices() {
        let refused = |change: &dyn Fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.resolve().expect_err("invalid").to_string()
        };
        let policy = refused(&|o| o.schedule_policy = Some("best".to_owned()));
        assert!(
            policy.contains("--schedule-policy") && policy.contains("prefix, fcfs"),
            "{policy}"
        );
        assert!(refused(&|o| o.eviction_policy = Some("x".to_owned())).contains("lru"));
        assert!(refused(&|o| o.isa = Some("mmx".to_owned())).contains("scalar"));
        assert!(refused(&|o| o.device = Some("tpu".to_owned())).contains("cpu, cuda, auto"));
        assert!(refused(&|o| o.pinning = Some("all".to_owned())).contains("auto, cores, none"));
        assert!(refused(&|o| o.page_size = Some(17)).contains("16, 32 or 64"));
        assert!(refused(&|o| o.threads = Some(0)).contains("--threads"));
        assert!(refused(&|o| o.host = Some("no such host".to_owned())).contains("--host"));
        assert!(refused(&|o| o.api_key = vec![String::new()]).contains("--api-key"));
        for host in ["", "http://a", "a/b", "*.a", "a b"] {
            let error = refused(&|o| o.allowed_host = vec!["good".to_owned(), host.to_owned()]);
            assert_eq!(
                error,
                format!("--allowed-host must be NAME, NAME:PORT or *, got '{host}'")
            );
        }
        for origin in ["", "a:80", "http://a/b", "http://*"] {
            let error = refused(&|o| o.allow_origin = vec!["null".to_owned(), origin.to_owned()]);
            let expected = "--allow-origin must be an origin such as http://localhost:3000, null or *";
            assert_eq!(error, format!("{expected}, got '{origin}'"));
        }
        for url in [
            "",
            "collector:4318",
            "grpc://collector:4317",
            "http://",
            "/v1/traces",
            "https:///v1/traces",
        ] {
            let endpoint = refused(&|o| o.otlp_traces_endpoint = Some(url.to_owned()));
            let expected = format!("--otlp-traces-endpoint must be an http:// or https:// URL, got '{url}'");
            assert_eq!(endpoint, expected);
        }
        let both = |o: &mut Options| (o.kv_memory, o.kv_pages) = (Some(ByteSize(1)), Some(1));
        assert!(refused(&both).contains("exclude each other"));
    }

    #[test]
    fn who_may_ask_follows_from_the_address_and_what_is_listed() {
        let decided = |change: &dyn Fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.resolve().expect("valid")
        };
        let list = |items: &[&str]| -> Vec<String> { items.iter().map(|&item| item.to_owned()).collect() };
        let listed = |addresses, items: &[&str]| AllowedHosts::Listed {
            addresses,
            hosts: items
                .iter()
                .map(|item| Host::parse(item).expect("a host"))
                .collect(),
        };
        let alone = decided(&|_| {});
        assert_eq!(alone.hosts, listed(Addresses::Loopback, &[]));
        assert_eq!(alone.origins, AllowedOrigins::Listed(Vec::new()));
        let open = decided(&|o| {
            o.host = Some("0.0.0.0".to_owned());
            o.allow_unauthenticated = Some(true);
            o.allowed_host = list(&["gpu-box", "10.0.0.7:80"]);
        });
        assert_eq!(open.hosts, listed(Addresses::All, &["gpu-box", "10.0.0.7:80"]));
        assert_eq!(
            decided(&|o| o.allowed_host = list(&["a", "*"])).hosts,
            AllowedHosts::All
        );
        let pages = decided(&|o| o.allow_origin = list(&["http://Localhost:3000/", "null"])).origins;
        let spelled = ["http://localhost:3000", "null"].map(|origin| origin.parse().expect("a header"));
        assert_eq!(pages, AllowedOrigins::Listed(spelled.to_vec()));
        assert_eq!(
            decided(&|o| o.allow_origin = list(&["null", "*"])).origins,
            AllowedOrigins::All
        );
        let file = file("allowed-host = ['a']\nallow-origin = ['http://a']").expect("valid");
        let flags = Options {
            allowed_host: list(&["b"]),
            ..Options::default()
        };
        let both = flags.over(file).decide().expect("valid");
        assert_eq!(both.hosts, listed(Addresses::Loopback, &["b"]));
        assert_ne!(both.origins, AllowedOrigins::Listed(Vec::new()));
    }

    #[test]
    fn the_endpoint_of_traces_is_taken_as_it_is() {
        assert_eq!(
            Options::default().resolve().expect("valid").otlp_traces_endpoint,
            None
        );
        for url in [
            "http://127.0.0.1:4318/v1/traces",
            "https://collector",
            "http://[::1]:4318/a?b=c",
        ] {
            let options = file(&format!("otlp-traces-endpoint = '{url}'")).expect("valid");
            let config = Options::default().over(options).decide().expect("valid");
            assert_eq!(config.otlp_traces_endpoint.as_deref(), Some(url));
        }
    }

    #[test]
    fn listening_to_the_world_takes_a_key_or_a_word() {
        let open = Options {
            host: Some("0.0.0.0".to_owned()),
            ..Options::default()
        };
        let error = open.clone().resolve().expect_err("unprotected");
        assert!(matches!(error, ConfigError::Unprotected { .. }), "{error}");
        let with_key = Options {
            api_key: vec!["secret".to_owned()],
            ..open.clone()
        };
        with_key.resolve().expect("protected");
        let on_purpose = Options {
            allow_unauthenticated: Some(true),
            ..open
        };
        on_purpose.resolve().expect("on purpose");
    }
}
