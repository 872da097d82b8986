//! The HTTP server: accepts connections, drains and stops.
//!
//! ```text
//! running   ── told to stop ──►  draining: no new completions (503), those under way go on, everything else
//!    │                               │     is still answered
//!    └── engine over ──►  closing ◄──┘ engine over: all ended, or the drain time is up
//!                            connections finish what they send, then the listener is gone
//! ```

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use crate::api::App;
use crate::connection::{self, End, Settings};
use crate::metrics::ConnectionMetrics;
use crate::places::{Activity, Patience, Places, Room, Seat};
use crate::registry::Model;
use crate::route::router;

/// What connections get to send their last bytes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Accepting fails when the system has no file handle left; a moment later it may have.
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
    /// How many connections there may be.
    pub room: Room,
    /// How long their clients are waited for.
    pub patience: Patience,
}

impl Server {
    /// Serves until the engine is over: by itself, or because `stop` came and it drained.
    pub async fn run<T>(self, stop: impl Future<Output = ()>, engine_over: impl Future<Output = T>) -> T {
        let (close, closing) = watch::channel(());
        let house = House {
            app: Arc::clone(&self.app),
            router: router(Arc::clone(&self.app)),
            places: Places::new(self.room, self.patience.idle),
            handles: HashMap::new(),
            room: self.room,
            patience: self.patience,
            connections: JoinSet::new(),
            closing,
        };
        let connections = tokio::spawn(house.open(self.listener));
        let mut engine_over = std::pin::pin!(engine_over);
        let exit = tokio::select! {
            exit = &mut engine_over => exit,
            () = stop => {
                let models = self.app.models.loaded();
                let n_in_flight: usize = models.iter().map(Model::n_in_flight).sum();
                let seconds = self.drain_timeout.as_secs();
                tracing::info!(n_in_flight, seconds, "stopping: finishing what is under way");
                drop(models);
                self.app.models.close(self.drain_timeout);
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

/// The connections there are, and the way in.
struct House {
    app: Arc<App>,
    router: Router,
    places: Places<Id>,
    /// Of those with a place.
    handles: HashMap<Id, AbortHandle>,
    room: Room,
    patience: Patience,
    /// Those with a place, and those told to end that have not done so.
    connections: JoinSet<End>,
    closing: watch::Receiver<()>,
}

impl House {
    /// Accepts until `closing`'s sender is gone, then waits for the connections there are.
    async fn open(mut self, listener: TcpListener) {
        let mut closing = self.closing.clone();
        // A place that changes hands is held twice for a moment; few of them are at a time.
        let n_most = self.room.n_open();
        let mut failures = 0;
        loop {
            self.metrics().set_open(self.places.len());
            tokio::select! {
                accepted = listener.accept(), if self.connections.len() < n_most => match accepted {
                    Ok((stream, peer)) => {
                        failures = 0;
                        self.admit(stream, peer);
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        failures += 1;
                        self.make_room(&error, failures);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(joined) = self.connections.join_next_with_id() => self.note_end(joined),
                _ = closing.changed() => break,
            }
        }
        drop(listener);
        while self.connections.join_next().await.is_some() {}
    }

    fn metrics(&self) -> &ConnectionMetrics {
        &self.app.http.connections
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        // Those that ended since the last look need not make room.
        while let Some(joined) = self.connections.try_join_next_with_id() {
            self.note_end(joined);
        }
        let Some(found) = self.places.find(peer.ip(), Instant::now()) else {
            self.metrics().refuse();
            return;
        };
        if let Some(id) = found.instead_of {
            self.close(id);
        }
        if found.seat == Seat::Reserved {
            self.metrics().reserve();
        }
        let activity = Arc::new(Activity::new());
        let settings = Settings {
            router: self.router.clone(),
            seat: found.seat,
            n_places: self.room.places,
            patience: self.patience,
            activity: Arc::clone(&activity),
            closing: self.closing.clone(),
        };
        let handle = self.connections.spawn(connection::serve(stream, settings));
        self.places.take(handle.id(), peer.ip(), found.seat, activity);
        self.handles.insert(handle.id(), handle);
    }

    /// Ends a connection whose place is wanted.
    fn close(&mut self, id: Id) {
        self.places.leave(id);
        if let Some(handle) = self.handles.remove(&id) {
            handle.abort();
            self.metrics().close_idle();
        }
    }

    fn note_end(&mut self, joined: Result<(Id, End), JoinError>) {
        let id = match &joined {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        self.places.leave(id);
        self.handles.remove(&id);
        match joined {
            Ok((_, End::Closed)) => {}
            Ok((_, End::ClientLeft)) => self.metrics().abandon(),
            Ok((_, End::WriteTimeout)) => self.metrics().time_out(),
            Err(error) if error.is_cancelled() => {}
            Err(panic) => tracing::error!(%panic, "a connection failed"),
        }
    }

    /// After accepting failed `n_failures` times on end: a connection that waits for its client gives its
    /// file handle back.
    fn make_room(&mut self, error: &io::Error, n_failures: u64) {
        self.metrics().fail();
        // The first says it all; many would only fill the log.
        if n_failures == 1 {
            tracing::warn!(%error, n_open = self.places.len(), "cannot accept a connection");
        }
        if let Some(id) = self.places.who_waits_longest(Seat::Open) {
            self.close(id);
        }
    }
}

/// Errors of a connection that was gone before it was accepted; the next one may be well.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}
