//! Signal handling: which signals end the process, and what the others do.
//!
//! ```text
//! INT, TERM      end: a server drains, everything else stops at once and takes its download along
//! HUP, QUIT      end everything but a server; that ignores the one with a line and answers the other by
//!                telling the log what runs
//! USR1, USR2     nothing to a server, the default elsewhere
//! ```
//!
//! A signal whose listener is gone is lost, so whoever listens does so from the start to the end.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arbora_runtime::engine::EngineHandle;
use arbora_runtime::inspect::{InFlightRequest, Inspected, Inspection, MAX_REQUESTS};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::encoders::ServedEncoder;
use crate::registry::{Model, Models};

/// How long an engine may take to tell what runs; it answers between two steps.
const PATIENCE: Duration = Duration::from_secs(5);

/// The signals that ask for an end.
#[derive(Debug)]
pub struct Stop(Vec<Signal>);

impl Stop {
    /// Those that end a server.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn of_server() -> io::Result<Stop> {
        Stop::of(&[SignalKind::interrupt(), SignalKind::terminate()])
    }

    /// Those that end everything else.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn of_command() -> io::Result<Stop> {
        Stop::of(&[
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ])
    }

    fn of(kinds: &[SignalKind]) -> io::Result<Stop> {
        kinds
            .iter()
            .map(|&kind| signal(kind))
            .collect::<Result<_, _>>()
            .map(Stop)
    }

    /// Waits for the next one.
    pub async fn told(&mut self) {
        poll_fn(|context| {
            match self
                .0
                .iter_mut()
                .any(|signal| signal.poll_recv(context).is_ready())
            {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

/// From now on HUP, USR1 and USR2 do nothing, and QUIT tells the log what the engines of `models` do.
///
/// # Errors
/// Where the system refuses.
pub fn outlive(models: Arc<Models>) -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut users = [
        signal(SignalKind::user_defined1())?,
        signal(SignalKind::user_defined2())?,
    ];
    drop(tokio::spawn(async move {
        loop {
            let [user1, user2] = &mut users;
            tokio::select! {
                _ = hangup.recv() => {
                    tracing::warn!("SIGHUP is ignored: nothing is read anew; SIGTERM stops the server");
                }
                _ = quit.recv() => tell(&models),
                _ = user1.recv() => tracing::debug!("SIGUSR1 is ignored"),
                _ = user2.recv() => tracing::debug!("SIGUSR2 is ignored"),
            }
        }
    }));
    Ok(())
}

/// Tells the log what runs: first what can be read without asking, as the engine may be stuck, then each
/// request.
fn tell(models: &Models) {
    for slot in models.slots() {
        match slot.model() {
            Some(Model::Generator(served)) => tell_generator(&served.name, &served.engine),
            Some(Model::Encoder(served)) => tell_encoder(&served),
            None => tracing::warn!(
                model = slot.name(),
                "SIGQUIT: the model is {}",
                slot.state().word()
            ),
        }
    }
}

fn tell_generator(model: &str, engine: &EngineHandle) {
    let now = engine.metrics().gauges();
    let stalled = engine.stalled_for(Instant::now());
    tracing::warn!(
        model,
        in_flight = engine.n_in_flight(),
        running = now.running,
        waiting = now.waiting,
        waiting_tokens = now.waiting_tokens,
        pages_owned = now.pages_owned,
        pages_cached = now.pages_cached,
        pages_free = now.pages_free,
        since_last_step_ms = stalled.map_or(0, |time| time.as_millis() as u64),
        "SIGQUIT: what runs"
    );
    drop(tokio::spawn(tell_requests(engine.clone())));
}

/// Asks the engine for its requests and tells the log those that were accepted first.
async fn tell_requests(engine: EngineHandle) {
    let (reply, mut answers) = mpsc::channel(1);
    let question = Inspection::InFlight {
        max_requests: MAX_REQUESTS,
    };
    if let Err(error) = engine.inspect(question, reply) {
        tracing::warn!("SIGQUIT: the requests cannot be listed: {error}");
        return;
    }
    match tokio::time::timeout(PATIENCE, answers.recv()).await {
        Ok(Some(Inspected::InFlight(requests))) => requests.iter().for_each(tell_request),
        Ok(_) => tracing::warn!("SIGQUIT: the engine has ended"),
        Err(_) => tracing::warn!(
            "SIGQUIT: the engine did not answer within {} s",
            PATIENCE.as_secs()
        ),
    }
}

fn tell_request(request: &InFlightRequest) {
    tracing::warn!(
        id = request.id.0,
        stage = request.stage,
        prompt_tokens = request.n_prompt,
        computed_tokens = request.n_computed,
        output_tokens = request.n_output,
        max_tokens = request.max_tokens,
        "SIGQUIT: request"
    );
}

fn tell_encoder(served: &ServedEncoder) {
    let engine = &served.engine;
    let stalled = engine.stalled_for(Instant::now());
    tracing::warn!(
        model = served.name,
        in_flight = engine.n_in_flight(),
        tokens = engine.n_tokens_in_flight(),
        since_last_batch_ms = stalled.map_or(0, |time| time.as_millis() as u64),
        "SIGQUIT: what runs"
    );
}
