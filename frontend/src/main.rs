//! The `arbora` binary: parses the command line, chooses the device, decides the exit code.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arbora::api::{App, unix_seconds};
use arbora::auth::ApiKeys;
use arbora::chat::{Console, End, Style};
use arbora::cli::{Cli, Command, GenerateOptions};
use arbora::config::{ChatOptions, Config, KvSize, Options};
use arbora::load::{StartError, Started};
use arbora::models::ModelsError;
use arbora::otlp::{ExportLimits, ExportSettings, Exporter, read_headers};
use arbora::places::Patience;
use arbora::server::Server;
use arbora::{chat, config, files, generate, inspect, load, models};
use arbora_kernels::cpu::{CpuBackend, CpuConfig, Pinning};
use arbora_runtime::engine::EngineExit;
use arbora_runtime::model::{LoadFormat, ModelFile};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_SOFTWARE` of sysexits.h: the engine failed too often to go on.
const EXIT_ENGINE_FAILED: u8 = 70;
/// What a shell reports for a process ended by the interrupt key.
const EXIT_INTERRUPTED: u8 = 130;
/// HTTP and streaming are little work; the cores are for the model.
const HTTP_THREADS: usize = 2;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .enable_all()
        .build();
    let outcome = match (runtime, cli.command) {
        (Err(error), _) => Err(Failure::from(error)),
        (Ok(runtime), Command::Serve(options)) => runtime.block_on(serve(*options)),
        (Ok(runtime), Command::Generate(options)) => runtime.block_on(answer(&options)),
        (Ok(runtime), Command::Chat(options)) => runtime.block_on(converse(&options)),
        (Ok(runtime), Command::Pull(option)) => runtime.block_on(pull(&option.model)),
        (Ok(runtime), Command::Inspect(option)) => runtime.block_on(describe(&option.model)),
        (Ok(_), Command::Models) => list(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            if matches!(error.downcast_ref(), Some(ModelsError::Interrupted)) {
                return ExitCode::from(EXIT_INTERRUPTED);
            }
            eprintln!("arbora: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options) -> Result<ExitCode, Failure> {
    let config = options.resolve()?;
    start_log(&config)?;
    // Bound before the model is loaded: a port that is taken should not cost a minute to find out.
    let listener = TcpListener::bind(config.address)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", config.address))?;
    let path = fetch(&config.model, config.load_format).await?;
    let started = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || start(&path, &config)).await??
    };
    let address = listener.local_addr()?;
    let exporter = start_traces(&config, &started.name)?;
    let app = Arc::new(App {
        engine: started.engine,
        encoder: started.encoder,
        grammars: started.grammars,
        sampling: started.sampling,
        token_bytes: started.token_bytes,
        named_bytes: started.named_bytes,
        stop_tokens: started.stop_tokens,
        model: started.name,
        started: unix_seconds(),
        api_keys: ApiKeys::new(&config.api_keys, config.cache_sharing),
        hosts: config.hosts.clone(),
        origins: config.origins.clone(),
        body_limit: config.body_limit,
        http: arbora::metrics::HttpMetrics::default(),
        metrics_compat: config.metrics_compat,
        traces: exporter.as_ref().map(Exporter::traces),
        cache: arbora::api::cache::CacheBook::default(),
    });
    let room = files::room(config.max_connections)?;
    tracing::info!(
        model = app.model,
        api_keys = config.api_keys.len(),
        "serving at http://{address}/v1"
    );
    let server = Server {
        listener,
        app,
        drain_timeout: config.drain_timeout,
        room,
        patience: Patience::default(),
    };
    let exit = server.run(told_to_stop()?, over(started.thread)).await;
    if let Some(exporter) = exporter {
        tokio::task::spawn_blocking(move || exporter.stop()).await?;
    }
    Ok(match exit {
        EngineExit::Drained => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        EngineExit::Failed => {
            tracing::error!("the engine failed too often; giving up");
            ExitCode::from(EXIT_ENGINE_FAILED)
        }
    })
}

async fn answer(options: &GenerateOptions) -> Result<ExitCode, Failure> {
    let mut config = Options::from(options.model.clone()).resolve()?;
    start_log(&config)?;
    if options.model.kv_memory.is_none() {
        config.kv = KvSize::Contexts(1);
    }
    let path = fetch(&config.model, config.load_format).await?;
    let started = tokio::task::spawn_blocking(move || start(&path, &config)).await??;
    generate::generate(options, &started, &mut std::io::stdout()).await?;
    Ok(ExitCode::SUCCESS)
}

async fn converse(options: &ChatOptions) -> Result<ExitCode, Failure> {
    let style = match (std::io::stdin().is_terminal(), std::io::stdout().is_terminal()) {
        (true, true) if config::wants_no_color() => Style::Plain,
        (true, true) => Style::Dimmed,
        _ => Style::Piped,
    };
    let (typed, input) = mpsc::channel(1);
    let (interrupt, interrupts) = mpsc::channel(1);
    // Not a task of the runtime: that would wait for the next line at the end.
    drop(std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                break;
            }
        }
    }));
    let mut signals = signal(SignalKind::interrupt())?;
    drop(tokio::spawn(async move {
        while signals.recv().await.is_some() {
            // One that nobody took yet is as good as two.
            interrupt.try_send(()).ok();
        }
    }));
    let mut console = Console {
        input,
        interrupts,
        output: std::io::stdout(),
        style,
    };
    match chat::chat(options, &mut console).await? {
        End::Done => Ok(ExitCode::SUCCESS),
        End::Interrupted => Ok(ExitCode::from(EXIT_INTERRUPTED)),
    }
}

async fn pull(model: &str) -> Result<ExitCode, Failure> {
    let path = fetch(model, LoadFormat::Auto).await?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(ExitCode::SUCCESS)
}

async fn describe(model: &str) -> Result<ExitCode, Failure> {
    // Of a model on a hub, all but the weights is enough.
    let path = fetch(model, LoadFormat::Dummy).await?;
    inspect::write_description(&models::served_name(model), &path, &mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<ExitCode, Failure> {
    inspect::write_cached_models(&mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// Finds the model, fetching it if need be; an interrupt stops that and leaves nothing half-made behind.
async fn fetch(model: &str, format: LoadFormat) -> Result<PathBuf, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (model, flag) = (model.to_owned(), Arc::clone(&interrupted));
    let mut fetched = tokio::task::spawn_blocking(move || models::resolve_unless(&model, format, &flag));
    tokio::select! {
        done = &mut fetched => Ok(done??),
        () = first_signal()? => {
            interrupted.store(true, Ordering::Relaxed);
            Ok(fetched.await??)
        }
    }
}

/// The one place that knows which devices there are.
fn start(path: &std::path::Path, config: &Config) -> Result<Started, Failure> {
    let file = ModelFile::open_as(path, config.load_format).map_err(StartError::from)?;
    let backend = CpuBackend::new(CpuConfig {
        n_threads: config.n_threads,
        isa: config.isa,
        pinning: Pinning::Free,
    })?;
    tracing::info!(
        threads = config.n_threads,
        isa = backend.isa().name(),
        "device cpu"
    );
    Ok(load::start(backend, &file, config)?)
}

/// Starts the thread that exports traces, if they are asked for.
fn start_traces(config: &Config, model: &str) -> Result<Option<Exporter>, Failure> {
    let Some(endpoint) = config.otlp_traces_endpoint.clone() else {
        return Ok(None);
    };
    let service_name = config::otel_service_name();
    tracing::info!(service_name, "exporting traces to {endpoint}");
    let settings = ExportSettings {
        endpoint,
        headers: read_headers(&config::otel_headers())?,
        service_name,
        model: model.to_owned(),
        limits: ExportLimits::default(),
    };
    Ok(Some(Exporter::start(settings)?))
}

fn start_log(config: &Config) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::builder()
        .parse(&config.log)
        .map_err(|error| format!("--log '{}': {error}", config.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

fn first_signal() -> Result<impl Future<Output = ()>, std::io::Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// The first signal asks for a good end; the second one gets any end. The second is listened for only after
/// the first: every listener that is there hears every signal.
fn told_to_stop() -> Result<impl Future<Output = ()>, std::io::Error> {
    let first = first_signal()?;
    Ok(async move {
        first.await;
        match first_signal() {
            Ok(second) => drop(tokio::spawn(async move {
                second.await;
                exit_now();
            })),
            Err(error) => tracing::warn!(%error, "a second signal will not be heard"),
        }
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the operator does not want to wait for destructors"
)]
fn exit_now() {
    std::process::exit(i32::from(EXIT_INTERRUPTED));
}

/// Ends when the engine's thread does.
async fn over(thread: std::thread::JoinHandle<EngineExit>) -> EngineExit {
    // A thread that panicked outside its steps is as failed as one that says so.
    let joined = tokio::task::spawn_blocking(move || thread.join().unwrap_or(EngineExit::Failed));
    joined.await.unwrap_or(EngineExit::Failed)
}
