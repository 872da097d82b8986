//! The `arbora` binary: parses the command line, runs the command, decides the exit code.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use arbora::api::{App, unix_seconds};
use arbora::auth::{ApiKeys, OperatorKeys};
use arbora::chat::{Console, End, Style};
use arbora::checked::Integrity;
use arbora::cli::{Cli, Command, EmbedOptions, GenerateOptions, ModelOption, PullOptions};
use arbora::config::{ChatOptions, Config, ConfigError, KvSize, Options, QuantizeOptions};
use arbora::embed::EmbedCommandError;
use arbora::hub::HubKind;
use arbora::inspect::InspectError;
use arbora::intake::Intake;
use arbora::kept::KeptResponses;
use arbora::lifecycle::{self, Ended, Lifecycle, MAX_ORDERS, Means};
use arbora::load::StartError;
use arbora::log::{LogStyle, LogWriter};
use arbora::models::{Fetching, ModelsError};
use arbora::otlp::{ExportLimits, ExportSettings, Exporter, read_headers};
use arbora::places::Patience;
use arbora::registry::{Model, Models};
use arbora::server::Server;
use arbora::signals::{self, Stop};
use arbora::start::{self, Failure, start_model};
use arbora::workers::{NoThread, Workers, spawn_thread};
use arbora::{chat, config, embed, files, generate, inspect, models, quantize};
use arbora_runtime::engine::EngineExit;
use arbora_runtime::model::{LoadError, LoadFormat, remove_partial};
use clap::Parser;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_SOFTWARE` of sysexits.h: the engine failed too often to go on.
const EXIT_ENGINE_FAILED: u8 = 70;
/// The model or an option is not what it should be; to try the same again does not help.
const EXIT_REFUSED: u8 = 2;
/// What a shell reports for a process ended by the interrupt key.
const EXIT_INTERRUPTED: u8 = 130;
/// HTTP and streaming are little work; the cores are for the model.
const HTTP_THREADS: usize = 2;
const HTTP_THREAD_NAME: &str = "http";
/// Threads for what would hold up the HTTP threads: one compiles a grammar, two read bodies.
const WORKER_THREADS: usize = 3;
/// Jobs that may wait for them; more are refused.
const MAX_QUEUED_JOBS: usize = 256;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// What a thread that was started gets to begin.
const THREAD_PATIENCE: Duration = Duration::from_secs(10);
/// What standard error gets at the end to take the last lines.
const LOG_PATIENCE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = match LogWriter::to_stderr() {
        Ok(log) => log,
        Err(error) => {
            // The last word of a process that serves nobody; where it cannot be said, it is not.
            drop(writeln!(std::io::stderr(), "arbora: {error}"));
            return ExitCode::FAILURE;
        }
    };
    log.take_panics();
    let code = run(cli.command, &log).unwrap_or_else(|error| {
        if matches!(error.downcast_ref(), Some(ModelsError::Interrupted)) {
            return ExitCode::from(EXIT_INTERRUPTED);
        }
        log.push(format!("arbora: {error}\n"));
        match is_refusal(&*error) {
            true => ExitCode::from(EXIT_REFUSED),
            false => ExitCode::FAILURE,
        }
    });
    log.flush(LOG_PATIENCE);
    code
}

/// Whether an error is the model's or an option's, and not the network's or the machine's.
fn is_refusal(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let of_start = |error: &StartError| !matches!(error, StartError::Thread(_));
    let of_models = |error: &ModelsError| {
        matches!(
            error,
            ModelsError::NoSuchFile { .. } | ModelsError::UnknownAlias { .. }
        )
    };
    error.is::<ConfigError>()
        || error.is::<LoadError>()
        || error.is::<InspectError>()
        || error.downcast_ref().is_some_and(of_start)
        || error.downcast_ref().is_some_and(of_models)
        || error.downcast_ref().is_some_and(EmbedCommandError::is_refusal)
        || error.is::<WrongKind>()
}

fn run(command: Command, log: &LogWriter) -> Result<ExitCode, Failure> {
    let runtime = http_runtime()?;
    let outcome = match command {
        Command::Serve(options) => runtime.block_on(serve(*options, log)),
        Command::Generate(options) => runtime.block_on(answer(&options, log)),
        Command::Embed(options) => runtime.block_on(embed_texts(&options, log)),
        Command::Chat(options) => runtime.block_on(converse(&options)),
        Command::Pull(options) => runtime.block_on(pull(&options, log)),
        Command::Quantize(options) => runtime.block_on(write_quantized(options, log)),
        Command::Inspect(option) => runtime.block_on(describe(&option, log)),
        Command::Models => list(),
    };
    // Whatever still runs has nobody to run for.
    runtime.shutdown_background();
    outcome
}

/// The runtime with all threads it will ever have. It panics or waits for ever where one is refused, so
/// whether there are as many is tried first.
fn http_runtime() -> Result<Runtime, Failure> {
    try_threads(HTTP_THREADS)?;
    let (begin, begun) = sync_channel(HTTP_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .thread_name(HTTP_THREAD_NAME)
        .on_thread_start(move || {
            begin.try_send(()).ok();
        })
        .enable_all()
        .build()?;
    for _ in 0..HTTP_THREADS {
        if begun.recv_timeout(THREAD_PATIENCE).is_err() {
            runtime.shutdown_background();
            return Err(no_http_thread(std::io::ErrorKind::WouldBlock.into()).into());
        }
    }
    Ok(runtime)
}

/// Whether `n` more threads can be had at once.
fn try_threads(n: usize) -> Result<(), NoThread> {
    let (end, ended) = sync_channel::<()>(0);
    let ended = Arc::new(std::sync::Mutex::new(ended));
    let mut threads = Vec::new();
    let mut refused = Ok(());
    for _ in 0..n {
        let ended = Arc::clone(&ended);
        // The first waits for the end, the others for the first.
        let wait = move || drop(ended.lock().map(|ended| ended.recv()));
        match std::thread::Builder::new().spawn(wait) {
            Ok(thread) => threads.push(thread),
            Err(source) => refused = Err(no_http_thread(source)),
        }
    }
    drop(end);
    for thread in threads {
        drop(thread.join());
    }
    refused
}

fn no_http_thread(source: std::io::Error) -> NoThread {
    NoThread {
        name: HTTP_THREAD_NAME.to_owned(),
        source,
    }
}

async fn serve(options: Options, log: &LogWriter) -> Result<ExitCode, Failure> {
    let config = options.resolve()?;
    start_log(&config, log)?;
    let mut stop = Stop::of_server()?;
    let (orders, received) = sync_channel(MAX_ORDERS);
    let models = Arc::new(Models::unloaded(config.model_names(), orders)?);
    signals::outlive(Arc::clone(&models))?;
    // Bound before the model is loaded: a port that is taken should not cost a minute to find out. Nobody is
    // let in before there is a model.
    let socket = bind(config.address)?;
    let workers = Workers::start("work", WORKER_THREADS, MAX_QUEUED_JOBS)?;
    let means = Means {
        workers: workers.clone(),
        log: log.clone(),
    };
    let (ended, ends) = mpsc::channel(MAX_ORDERS);
    let config = Arc::new(config);
    let lifecycle = Lifecycle::new(Arc::clone(&config), means, Arc::clone(&models), ended)?;
    let lifecycle = load_first(lifecycle, &config, log, &mut stop).await?;
    let listener = listen(socket, config.address)?;
    let exporter = start_traces(&config, &config.models[0].name)?;
    let (pool, interrupted) = (lifecycle.pool_metrics(), lifecycle.interrupted());
    let over = lifecycle::over(Arc::clone(&models), lifecycle.n_engines(), ends);
    spawn_thread("models", move || lifecycle.run(&received))?;
    let app = Arc::new(App {
        models,
        started: unix_seconds(),
        api_keys: ApiKeys::new(
            &config.api_keys,
            config.cache_sharing,
            OperatorKeys::new(config.admin_key.as_deref(), config.metrics_key.as_deref()),
        ),
        hosts: config.hosts.clone(),
        origins: config.origins.clone(),
        intake: Intake::new(config.intake, config.api_keys.len().max(1), workers),
        responses: KeptResponses::new(config.responses),
        http: arbora::metrics::HttpMetrics::new(arbora::route::paths()),
        generate_form: config.generate_form,
        metrics_compat: config.metrics_compat,
        traces: exporter.as_ref().map(Exporter::traces),
        cache: arbora::api::cache::CacheBook::default(),
        log: log.metrics(),
        pool,
    });
    let room = files::room(config.max_connections)?;
    tracing::info!(
        model = config.models[0].name,
        models = config.models.len(),
        api_keys = config.api_keys.len(),
        "serving at http://{}/v1",
        listener.local_addr()?
    );
    let server = Server {
        listener,
        app,
        drain_timeout: config.drain_timeout,
        room,
        patience: Patience::default(),
    };
    let stop = async {
        told_to_stop(stop).await;
        interrupted.store(true, Ordering::Relaxed);
    };
    let ended = server.run(stop, over).await;
    if let Some(exporter) = exporter {
        // Nobody is served any more, so nobody waits for this.
        exporter.stop();
    }
    Ok(farewell(&ended))
}

/// Fetches and loads the models that are to be there from the start; a signal ends that.
async fn load_first(
    mut lifecycle: Lifecycle,
    config: &Config,
    log: &LogWriter,
    stop: &mut Stop,
) -> Result<Lifecycle, Failure> {
    let how = (config.load_format, config.integrity, config.hub);
    for model in config.models.iter().filter(|model| !model.on_demand) {
        let path = fetch(&model.model, how, log, stop).await?;
        let model = model.clone();
        let loaded = aside("load", move || {
            lifecycle.load_first(&model, &path)?;
            Ok::<_, Failure>(lifecycle)
        })?;
        lifecycle = or_stop(loaded, stop).await??;
    }
    Ok(lifecycle)
}

/// What comes of `loaded`; a signal ends the wait at once, as nothing needs to be put in order.
async fn or_stop<T>(loaded: impl Future<Output = Result<T, Failure>>, stop: &mut Stop) -> Result<T, Failure> {
    tokio::select! {
        loaded = loaded => loaded,
        () = stop.told() => Err(ModelsError::Interrupted.into()),
    }
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> Failure {
    format!("cannot listen on {address}: {error}").into()
}

/// A socket that has the address and does not listen yet.
fn bind(address: SocketAddr) -> Result<TcpSocket, Failure> {
    let bound = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    bound().map_err(|error| cannot_listen(address, &error))
}

fn listen(socket: TcpSocket, address: SocketAddr) -> Result<TcpListener, Failure> {
    socket
        .listen(BACKLOG)
        .map_err(|error| cannot_listen(address, &error))
}

/// The last word, and the exit code.
fn farewell(ended: &Ended) -> ExitCode {
    match ended.exit {
        EngineExit::Drained => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        EngineExit::Failed => {
            tracing::error!("the engine failed too often; giving up");
            ExitCode::from(EXIT_ENGINE_FAILED)
        }
        EngineExit::DeviceLost => {
            let reason = ended.reason.as_deref().unwrap_or_default();
            tracing::error!(reason, "the device that computes was lost; giving up");
            ExitCode::from(EXIT_ENGINE_FAILED)
        }
    }
}

/// A model that is not for the command.
#[derive(Debug, thiserror::Error)]
#[error("model '{model}' {does}: it is for {commands}")]
struct WrongKind {
    model: String,
    does: &'static str,
    commands: &'static str,
}

async fn answer(options: &GenerateOptions, log: &LogWriter) -> Result<ExitCode, Failure> {
    let mut config = Options::from(options.model.clone()).resolve()?;
    start_log(&config, log)?;
    if options.model.kv_memory.is_none() {
        config.models[0].kv = KvSize::Contexts(1);
    }
    let mut stop = Stop::of_command()?;
    let started = start_one(config, log, &mut stop).await?;
    // From here on this thread may wait for standard input and output, whoever is at their other ends.
    drop(tokio::spawn(async move {
        stop.told().await;
        exit_now();
    }));
    match started {
        Model::Generator(served) => {
            generate::generate(options, &served, &mut std::io::stdout()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Model::Encoder(served) => Err(WrongKind {
            model: served.name.clone(),
            does: "generates no text",
            commands: "'arbora embed' and 'arbora serve'",
        }
        .into()),
    }
}

async fn embed_texts(options: &EmbedOptions, log: &LogWriter) -> Result<ExitCode, Failure> {
    let config = Options::from(options.model.clone()).resolve()?;
    start_log(&config, log)?;
    let mut stop = Stop::of_command()?;
    let started = start_one(config, log, &mut stop).await?;
    drop(tokio::spawn(async move {
        stop.told().await;
        exit_now();
    }));
    let Model::Encoder(served) = started else {
        return Err(WrongKind {
            model: started.name().to_owned(),
            does: "makes no embeddings",
            commands: "'arbora generate' and 'arbora serve'",
        }
        .into());
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    embed::embed(options, &served, &mut out).await?;
    out.flush()?;
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
    spawn_thread("input", move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                break;
            }
        }
    })?;
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

async fn pull(options: &PullOptions, log: &LogWriter) -> Result<ExitCode, Failure> {
    let how = (
        LoadFormat::Auto,
        options.integrity(),
        options.hub.hub.unwrap_or_default(),
    );
    let path = fetch(&options.model, how, log, &mut Stop::of_command()?).await?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(ExitCode::SUCCESS)
}

async fn write_quantized(options: QuantizeOptions, log: &LogWriter) -> Result<ExitCode, Failure> {
    let how = options.how()?;
    let wanted = (
        LoadFormat::Auto,
        Integrity::WhenChanged,
        options.hub.hub.unwrap_or_default(),
    );
    let mut stop = Stop::of_command()?;
    let path = fetch(&options.model, wanted, log, &mut stop).await?;
    let (log, out) = (log.clone(), options.out.clone());
    let written = aside("quantize", move || {
        quantize::quantize(&path, &options.out, how, &log)
    })?;
    tokio::select! {
        written = written => written??,
        () = stop.told() => {
            remove_partial(&out);
            return Err(ModelsError::Interrupted.into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn describe(option: &ModelOption, log: &LogWriter) -> Result<ExitCode, Failure> {
    let model = &option.model;
    // Of a model on a hub, all but the weights is enough.
    let hub = option.hub.hub.unwrap_or_default();
    let how = (LoadFormat::Dummy, Integrity::WhenChanged, hub);
    let path = fetch(model, how, log, &mut Stop::of_command()?).await?;
    inspect::write_description(&models::served_name(model), &path, &mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<ExitCode, Failure> {
    inspect::write_cached_models(&mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

/// Finds the model, fetching it if need be; a signal stops that and leaves nothing half-made behind.
async fn fetch(
    model: &str,
    (format, integrity, hub): (LoadFormat, Integrity, HubKind),
    log: &LogWriter,
    stop: &mut Stop,
) -> Result<PathBuf, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let fetching = Fetching {
        hub,
        format,
        integrity,
        log: log.clone(),
        interrupted: Arc::clone(&interrupted),
    };
    let model = model.to_owned();
    let fetched = aside("fetch", move || models::resolve_as(&model, &fetching))?;
    let mut fetched = std::pin::pin!(fetched);
    tokio::select! {
        done = &mut fetched => Ok(done??),
        () = stop.told() => {
            interrupted.store(true, Ordering::Relaxed);
            Ok(fetched.await??)
        }
    }
}

/// Fetches and loads the one model of a command; a signal ends that.
async fn start_one(config: Config, log: &LogWriter, stop: &mut Stop) -> Result<Model, Failure> {
    let how = (config.load_format, config.integrity, config.hub);
    let path = fetch(&config.models[0].model, how, log, stop).await?;
    let means = Means {
        workers: Workers::start("work", 1, 1)?,
        log: log.clone(),
    };
    let started = aside("load", move || {
        let cores = start::cores(&config)?;
        start_model(&path, (&config, &config.models[0]), &means, &cores)
    })?;
    Ok(or_stop(started, stop).await??.model)
}

/// What `job` returns, run on a thread of its own that is started now.
fn aside<T: Send + 'static>(
    name: &'static str,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<impl Future<Output = Result<T, Failure>>, NoThread> {
    let (done, result) = oneshot::channel();
    // Whoever does not wait any more wants no result.
    spawn_thread(name, move || drop(done.send(job())))?;
    Ok(async move {
        result
            .await
            .map_err(|_| format!("thread '{name}' panicked").into())
    })
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

fn start_log(config: &Config, log: &LogWriter) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::builder()
        .parse(&config.log)
        .map_err(|error| format!("--log '{}': {error}", config.log))?;
    let style = match std::io::stderr().is_terminal() {
        true => LogStyle::Colored,
        false => LogStyle::Plain,
    };
    Ok(log.take_events(filter, style)?)
}

/// The first signal asks for a good end; the second one gets any end.
async fn told_to_stop(mut stop: Stop) {
    stop.told().await;
    drop(tokio::spawn(async move {
        stop.told().await;
        exit_now();
    }));
}

#[expect(
    clippy::disallowed_methods,
    reason = "the operator does not want to wait for destructors"
)]
fn exit_now() {
    std::process::exit(i32::from(EXIT_INTERRUPTED));
}
