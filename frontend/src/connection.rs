//! One HTTP/1.1 connection: notices that its client left, and that its client does not read.
//!
//! hyper reads from a socket only while it has use for the bytes. The end of a client that sent anything
//! after its request (a line break, a pipelined request) would therefore be seen after the answer. Here the
//! socket's own readiness tells it, whatever is still unread:
//!
//! ```text
//! the client closes     while its body is incomplete     hyper reads to the end, the handler gets an error
//!                       while its answer is computed     the handler's future is dropped: so is the request
//!                       while its answer is streamed     the answer's body is dropped: so is the request
//!                       between two requests             the connection ends
//! the client reads nothing for `Patience::write`         the connection ends, and what it asked for
//! ```
//!
//! TCP does not tell a client that closed only its sending half from one that is gone. Such a client gets the
//! answers that need no waiting, and what it would have to wait for is dropped.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Sleep;
use tower::ServiceExt;

use crate::places::{Activity, OnReserved, Patience, Seat};

/// Bytes a request's head may take.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// How long a refused body is read on and dropped, so that its client finds the answer and not a reset
/// (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The client closed its side while it would have had to wait.
#[derive(Debug, thiserror::Error)]
#[error("the client left before its answer")]
struct ClientLeft;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By its client, after an answer, or because of what it sent.
    Closed,
    /// Before an answer was complete.
    ClientLeft,
    /// Its client read nothing for too long.
    WriteTimeout,
}

/// What a connection is served with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) router: Router,
    pub(crate) seat: Seat,
    /// Places that there are, for those who get none.
    pub(crate) n_places: usize,
    pub(crate) patience: Patience,
    pub(crate) activity: Arc<Activity>,
    /// Its sender is dropped when the server closes.
    pub(crate) closing: watch::Receiver<()>,
}

/// Serves a connection to its end.
pub(crate) async fn serve(stream: TcpStream, settings: Settings) -> End {
    // Every event of a stream is a write of its own and must not wait for the next one.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let client = Arc::new(Client {
        stream,
        activity: settings.activity,
        is_body_read: AtomicBool::new(false),
        is_body_owed: AtomicBool::new(false),
        is_unreachable: AtomicBool::new(false),
    });
    let mut closing = settings.closing;
    let ended = {
        let socket = Socket {
            client: Arc::clone(&client),
            write_timeout: settings.patience.write,
            stall: None,
        };
        let reserved = match settings.seat {
            Seat::Open => None,
            Seat::Reserved => Some(OnReserved {
                n_places: settings.n_places,
            }),
        };
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(match reserved {
                None => settings.patience.header,
                Some(_) => settings.patience.reserved_header,
            })
            .keep_alive(reserved.is_none())
            .max_buf_size(MAX_HEAD_BYTES)
            // Whether a client left is found out here.
            .half_close(true);
        let (client, router) = (Arc::clone(&client), settings.router);
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(reserved) = reserved {
                request.extensions_mut().insert(reserved);
            }
            exchange(Arc::clone(&client), router.clone(), request)
        });
        let mut connection = pin!(http.serve_connection(TokioIo::new(socket), service));
        tokio::select! {
            ended = connection.as_mut() => ended,
            _ = closing.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let (end, is_listening) = judge(ended, &client);
    if is_listening {
        linger(&client, &mut closing).await;
    }
    end
}

/// How a connection ended, and whether its client may still be sending and has to see the answer.
fn judge(ended: hyper::Result<()>, client: &Client) -> (End, bool) {
    let Err(error) = ended else {
        return (End::Closed, client.is_body_owed.load(Ordering::Relaxed));
    };
    tracing::debug!(%error, "connection ended");
    if has_cause(&error, is_timeout) {
        return (End::WriteTimeout, false);
    }
    let is_unreachable = client.is_unreachable.load(Ordering::Relaxed);
    if is_unreachable || has_cause(&error, |cause| cause.is::<ClientLeft>()) {
        return (End::ClientLeft, false);
    }
    // hyper has said what is wrong with a head.
    (End::Closed, error.is_parse())
}

fn has_cause(error: &hyper::Error, is_it: impl Fn(&(dyn std::error::Error + 'static)) -> bool) -> bool {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |cause| cause.source()).any(is_it)
}

fn is_timeout(cause: &(dyn std::error::Error + 'static)) -> bool {
    let error = cause.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// Answers a request, unless its client leaves before.
async fn exchange(
    client: Arc<Client>,
    router: Router,
    request: Request<Incoming>,
) -> Result<Response<Answer>, ClientLeft> {
    let is_complete = request.body().is_end_stream();
    client.is_body_read.store(is_complete, Ordering::Relaxed);
    client.is_body_owed.store(!is_complete, Ordering::Relaxed);
    let request = request.map(|body| {
        Body::new(Asked {
            body,
            client: Arc::clone(&client),
        })
    });
    let mut answered = pin!(router.oneshot(request));
    let mut left = pin!(client.left());
    let answered = poll_fn(|context| {
        if let Poll::Ready(answered) = answered.as_mut().poll(context) {
            return Poll::Ready(Some(answered));
        }
        // As long as the body is read, its end tells the handler.
        match client.is_body_read.load(Ordering::Relaxed) {
            true => left.as_mut().poll(context).map(|()| None),
            false => Poll::Pending,
        }
    });
    let Some(answered) = answered.await else {
        return Err(ClientLeft);
    };
    let answer = answered.unwrap_or_else(|never: Infallible| match never {});
    Ok(answer.map(|body| Answer {
        body,
        left: None,
        client: Arc::clone(&client),
    }))
}

/// Reads and drops what the client still sends, until it has seen that nobody listens.
async fn linger(client: &Client, closing: &mut watch::Receiver<()>) {
    let drained = async {
        let mut dropped = vec![0; 16 << 10];
        loop {
            if client.stream.readable().await.is_err() {
                return;
            }
            match client.stream.try_read(&mut dropped) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {}
            }
        }
    };
    tokio::select! {
        () = drained => {}
        () = tokio::time::sleep(LINGER) => {}
        _ = closing.changed() => {}
    }
}

/// The other side of a connection, as its parts know it.
#[derive(Debug)]
struct Client {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// Nobody reads the body of the latest request any more.
    is_body_read: AtomicBool,
    /// Some of that body was not read.
    is_body_owed: AtomicBool,
    /// Something could not be sent.
    is_unreachable: AtomicBool,
}

impl Client {
    /// Ends when the client has closed its side, or at least its sending half.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    async fn left(&self) {
        // Besides the end, this interest stands for urgent data, which sockets here are not asked about. The
        // end stays ready: none is missed, and one without data before it needs no reading.
        if let Err(error) = self.stream.ready(Interest::PRIORITY).await {
            tracing::debug!(%error, "a socket that cannot be watched");
        }
    }

    /// Ends when the client has closed its side, or at least its sending half.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    async fn left(&self) {
        /// There is no interest in the end alone, and what is unread keeps a socket readable.
        const LOOK: Duration = Duration::from_millis(100);
        while let Ok(ready) = self.stream.ready(Interest::READABLE).await
            && !ready.is_read_closed()
        {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The socket as hyper sees it.
#[derive(Debug)]
struct Socket {
    client: Arc<Client>,
    write_timeout: Duration,
    /// Runs while a write makes no progress.
    stall: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    fn poll_progress(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.client.stream.poll_write_ready(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return self.poll_stall(context),
            }
            match write(&self.client.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.stall = None;
                    self.client.activity.has_read();
                    self.client.is_unreachable.store(done.is_err(), Ordering::Relaxed);
                    return Poll::Ready(done);
                }
            }
        }
    }

    fn poll_stall(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.client.activity.wait_for_reading();
        let timeout = self.write_timeout;
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(context));
        let message = format!("the client read nothing for {} ms", timeout.as_millis());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let client = &self.client;
        loop {
            match client.stream.poll_read_ready(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    client.activity.wait_for_sending();
                    return Poll::Pending;
                }
            }
            match client.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    client.activity.has_sent();
                    return Poll::Ready(done.map(drop));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_progress(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_progress(context, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // From here on the connection is only in the way; its client may know before its task has ended.
        self.client.activity.wait_for_sending();
        let shut = rustix::net::shutdown(&self.client.stream, rustix::net::Shutdown::Write);
        Poll::Ready(shut.map_err(io::Error::from))
    }
}

/// A request's body, which tells what became of it.
#[derive(Debug)]
struct Asked {
    body: Incoming,
    client: Arc<Client>,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.client.is_body_read.store(true, Ordering::Relaxed);
            self.client.is_body_owed.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.client.is_body_read.store(true, Ordering::Relaxed);
    }
}

/// An answer's body, which ends with an error when its client leaves.
struct Answer {
    body: Body,
    /// Made when there is something to wait for.
    left: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    client: Arc<Client>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let client = Arc::clone(&self.client);
        let left = self
            .left
            .get_or_insert_with(|| Box::pin(async move { client.left().await }));
        ready!(left.as_mut().poll(context));
        Poll::Ready(Some(Err(ClientLeft.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
