//! Accepts connections, and stops in good order.
//!
//! ```text
//! running   ── told to stop ──►  draining: no new completions (503), those under way go on, everything else
//!    │                               │     is still answered
//!    └── engine over ──►  closing ◄──┘ engine over: all ended, or the drain time is up
//!                            connections finish what they send, then the listener is gone
//! ```

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arbora_runtime::engine::EngineExit;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::App;
use crate::route::router;

/// Connections at a time; more wait in the system's backlog.
const MAX_CONNECTIONS: usize = 4096;
/// A connection must say what it wants within this time, the first time and after every answer.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes a request's head may take.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// What connections get to send their last bytes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Accepting fails when the process has no file handle left; a moment later it may have.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server about to run.
#[derive(Debug)]
pub struct Server {
    /// Bound and listening.
    pub listener: TcpListener,
    /// What the handlers share.
    pub app: Arc<App>,
    /// What running requests get once the server is told to stop.
    pub drain_timeout: Duration,
}

impl Server {
    /// Serves until the engine is over: by itself, or because `stop` came and it drained.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        engine_over: impl Future<Output = EngineExit>,
    ) -> EngineExit {
        let (close, closing) = watch::channel(());
        let connections = tokio::spawn(accept(self.listener, router(Arc::clone(&self.app)), closing));
        let mut engine_over = std::pin::pin!(engine_over);
        let exit = tokio::select! {
            exit = &mut engine_over => exit,
            () = stop => {
                let n_in_flight = self.app.engine.n_in_flight();
                let seconds = self.drain_timeout.as_secs();
                tracing::info!(n_in_flight, seconds, "stopping: finishing what is under way");
                self.app.engine.drain(self.drain_timeout);
                engine_over.await
            }
        };
        drop(close);
        let abort = connections.abort_handle();
        if tokio::time::timeout(CLOSE_TIMEOUT, connections).await.is_err() {
            tracing::warn!("some clients did not read their answers");
            abort.abort();
        }
        exit
    }
}

/// Accepts until `closing`'s sender is gone, then waits for the connections there are.
async fn accept(listener: TcpListener, router: Router, mut closing: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), closing.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = closing.changed() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, router: Router, mut closing: watch::Receiver<()>) {
    // Every event of a stream is a write of its own and must not wait for the next one.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = closing.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
