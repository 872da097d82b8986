//! From generated pieces to an HTTP answer, the same for every API: one body, or server-sent events.
//!
//! ```text
//! engine events -> Generation (crate::stream) -> pieces -> Dialect -> one JSON body
//!                                                                  -> events, and a comment when nothing
//!                                                                     came for a while
//!                                                                  -> lines of JSON
//! ```
//!
//! A [`Dialect`] is what one API's objects look like; it decides nothing else. It lives with the handler of
//! its API in [`crate::api`].

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use crate::stream::{Generation, Piece};
use crate::wire::error::ApiError;

/// Streams that have nothing to say speak up this often, so that nobody on the way gives up on them.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The objects of one API. For a whole answer it collects pieces; for a stream each becomes events.
pub(crate) trait Dialect: Send + 'static {
    /// What a stream is made of.
    const FRAMING: Framing = Framing::ServerSentEvents;

    /// Takes in the next piece of an answer that is sent as one.
    ///
    /// # Errors
    /// Where the piece says that there is no answer.
    fn collect(&mut self, piece: Piece, generation: &Generation) -> Result<(), ApiError>;

    /// The answer of all that was collected.
    ///
    /// # Errors
    /// Where there is none.
    fn whole(&mut self, generation: &mut Generation) -> Result<Response, ApiError>;

    /// Writes what a stream begins with.
    fn open(&mut self, generation: &mut Generation, events: &mut Events);

    /// Writes what a piece adds to a stream.
    ///
    /// # Errors
    /// Where the piece says that there is no answer: the stream ends with [`Dialect::error`].
    fn piece(
        &mut self,
        piece: Piece,
        generation: &mut Generation,
        events: &mut Events,
    ) -> Result<(), ApiError>;

    /// Writes what a stream ends with when all choices are over.
    fn close(&mut self, generation: &Generation, events: &mut Events);

    /// Writes the event of a failure, after which nothing is said.
    fn error(&mut self, error: &ApiError, events: &mut Events) {
        events.send(None, &error.body());
    }

    /// Writes what is sent when nothing came for a while: something that clients skip.
    fn keep_alive(&mut self, events: &mut Events) {
        events.comment("keep-alive");
    }
}

/// How the objects of a stream are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Each is the data of an event.
    ServerSentEvents,
    /// Each is a line (NDJSON).
    Lines,
}

impl Framing {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Framing::ServerSentEvents => "text/event-stream; charset=utf-8",
            Framing::Lines => "application/x-ndjson",
        })
    }
}

/// The objects of a stream on their way out.
#[derive(Debug)]
pub(crate) struct Events {
    bytes: Vec<u8>,
    framing: Framing,
}

impl Events {
    fn new(framing: Framing) -> Self {
        let bytes = Vec::new();
        Events { bytes, framing }
    }

    /// Appends an event, which may have a name. JSON holds no raw line breaks, so one `data` line is enough.
    pub(crate) fn send(&mut self, name: Option<&'static str>, data: &impl Serialize) {
        if let Some(name) = name {
            self.put(&[b"event: ", name.as_bytes(), b"\n"]);
        }
        if self.framing == Framing::ServerSentEvents {
            self.put(&[b"data: "]);
        }
        serde_json::to_writer(&mut self.bytes, data)
            .expect("plain structs serialize and a vector takes any bytes");
        self.put(match self.framing {
            Framing::ServerSentEvents => &[b"\n\n"],
            Framing::Lines => &[b"\n"],
        });
    }

    /// Appends the mark that OpenAI's streams end with.
    pub(crate) fn done(&mut self) {
        self.put(&[b"data: [DONE]\n\n"]);
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a comment, which clients skip. Lines of JSON have none.
    fn comment(&mut self, text: &str) {
        if self.framing == Framing::ServerSentEvents {
            self.put(&[b": ", text.as_bytes(), b"\n\n"]);
        }
    }

    fn put(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
    }
}

/// Waits for everything and answers at once.
///
/// # Errors
/// Where a choice ended without an answer.
pub(crate) async fn whole(
    mut generation: Generation,
    mut dialect: impl Dialect,
) -> Result<Response, ApiError> {
    while let Some(piece) = generation.next().await {
        dialect.collect(piece, &generation)?;
    }
    dialect.whole(&mut generation)
}

/// Answers with events as pieces come, and a comment whenever nothing came for `keep_alive`.
pub(crate) fn stream<D: Dialect>(generation: Generation, dialect: D, keep_alive: Duration) -> Response {
    let stream = EventStream {
        generation,
        dialect,
        keep_alive,
        phase: Phase::Opening,
    };
    let chunks = futures_util::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<_, Infallible>(chunk), stream))
    });
    let mut response = Body::from_stream(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, D::FRAMING.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that collect an answer before they pass it on would undo the streaming.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Running,
    Over,
}

/// The body of a streamed answer.
struct EventStream<D> {
    generation: Generation,
    dialect: D,
    keep_alive: Duration,
    phase: Phase,
}

impl<D: Dialect> EventStream<D> {
    /// The next bytes to send: at least one whole event or comment.
    async fn next(&mut self) -> Option<Bytes> {
        let mut events = Events::new(D::FRAMING);
        if self.phase == Phase::Opening {
            self.phase = Phase::Running;
            self.dialect.open(&mut self.generation, &mut events);
        }
        while events.len() == 0 && self.phase == Phase::Running {
            match tokio::time::timeout(self.keep_alive, self.generation.next()).await {
                Err(_) => self.dialect.keep_alive(&mut events),
                Ok(Some(piece)) => {
                    let told = self.dialect.piece(piece, &mut self.generation, &mut events);
                    if let Err(error) = told {
                        self.dialect.error(&error, &mut events);
                        self.phase = Phase::Over;
                    }
                }
                Ok(None) => {
                    self.dialect.close(&self.generation, &mut events);
                    self.phase = Phase::Over;
                }
            }
        }
        (events.len() > 0).then(|| events.bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use arbora_runtime::request::{FinishReason, RequestError};
    use axum::Json;
    use http_body_util::BodyExt;

    use super::*;
    use crate::stream::testing::{body, finished, generation, tokens};

    /// Says texts as they come, in events with names.
    #[derive(Default)]
    struct Plain(String);

    impl Dialect for Plain {
        fn collect(&mut self, piece: Piece, _: &Generation) -> Result<(), ApiError> {
            self.0.push_str(&piece.text);
            let failed = piece
                .finish
                .filter(|reason| matches!(reason, FinishReason::Error(_)));
            failed.map_or(Ok(()), |reason| Err(ApiError::of_ending(&reason)))
        }

        fn whole(&mut self, _: &mut Generation) -> Result<Response, ApiError> {
            Ok(Json(&self.0).into_response())
        }

        fn open(&mut self, _: &mut Generation, _: &mut Events) {}

        fn piece(
            &mut self,
            piece: Piece,
            generation: &mut Generation,
            events: &mut Events,
        ) -> Result<(), ApiError> {
            let text = piece.text.clone();
            self.collect(piece, generation)?;
            if !text.is_empty() {
                events.send(Some("text"), &text);
            }
            Ok(())
        }

        fn close(&mut self, _: &Generation, events: &mut Events) {
            events.done();
        }
    }

    #[tokio::test]
    async fn a_stream_and_a_whole_answer_say_the_same() {
        let script = || {
            vec![
                tokens(1, "a"),
                tokens(1, ""),
                tokens(1, "b"),
                finished(FinishReason::Length),
            ]
        };
        let (one, _senders) = generation(vec![script()], 1);
        let whole = whole(one, Plain::default()).await.expect("an answer");
        assert_eq!(body(whole).await, "\"ab\"");
        let (one, _senders) = generation(vec![script()], 1);
        let response = stream(one, Plain::default(), KEEP_ALIVE);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/event-stream; charset=utf-8"
        );
        let expected = "event: text\ndata: \"a\"\n\nevent: text\ndata: \"b\"\n\ndata: [DONE]\n\n";
        assert_eq!(body(response).await, expected);
    }

    #[tokio::test]
    async fn a_failure_half_way_is_the_last_thing_said() {
        let failure = finished(FinishReason::Error(RequestError::EngineFailed));
        let (two, senders) = generation(vec![vec![tokens(1, "a"), failure], vec![]], 2);
        let body = body(stream(two, Plain::default(), KEEP_ALIVE)).await;
        let last = body.split_terminator("\n\n").last().expect("there is one");
        assert!(
            last.starts_with(r#"data: {"error":{"#) && last.contains("internal_error"),
            "{body}"
        );
        assert!(senders[1].is_closed(), "the other choice is aborted");
        let failure = finished(FinishReason::Error(RequestError::ShuttingDown));
        let (one, _senders) = generation(vec![vec![failure]], 1);
        let failed = whole(one, Plain::default()).await;
        assert_eq!(failed.err(), Some(ApiError::ShuttingDown));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_clients_hear_comments() {
        let (one, senders) = generation(vec![vec![]], 1);
        let started = tokio::time::Instant::now();
        let mut body = stream(one, Plain::default(), KEEP_ALIVE).into_body();
        for n in 1..=2 {
            let frame = body.frame().await.expect("a frame").expect("no error");
            assert_eq!(frame.into_data().expect("data"), ": keep-alive\n\n");
            assert_eq!(started.elapsed().as_secs(), n * KEEP_ALIVE.as_secs());
        }
        drop(body);
        assert!(senders[0].is_closed());
    }
}
