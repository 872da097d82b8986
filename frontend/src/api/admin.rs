//! Health checks, metrics and other routes for operators.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arbora_runtime::embedding::EmbedError;
use arbora_runtime::model::encoder::EncodedText;
use arbora_runtime::request::{Event, Namespace, Request, SamplingParams, SubmitError};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::App;
use crate::body::NoBody;
use crate::config::MetricsCompat;
use crate::encoders::ServedEncoder;
use crate::metrics::{self, ServerMetrics};
use crate::origins::OwnPage;
use crate::otlp::Traces;
use crate::registry::Model;
use crate::served::Served;
use crate::wire::error::ApiError;

/// An engine that has work and has not finished a step for this long is taken for stuck. A step computes at
/// most a batch of tokens, which takes well under a second on the slowest machine that makes sense.
const STUCK: Duration = Duration::from_secs(60);

/// How long `/health_generate` waits for a token.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between looks at an engine that works for others.
const LOOK: Duration = Duration::from_millis(10);

/// `GET /health`: 200 while every engine moves, or has nothing to do.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    let now = Instant::now();
    let is_stuck = |model: &Model| model.stalled_for(now).is_some_and(|time| time > STUCK);
    let (status, word) = match app.models.loaded().iter().any(is_stuck) {
        true => (StatusCode::SERVICE_UNAVAILABLE, "stuck"),
        false => (StatusCode::OK, "ok"),
    };
    (status, Json(json!({"status": word}))).into_response()
}

/// `GET /health_generate`: 200 where every engine gives a token within 20 seconds. A step for others proves
/// that it does; so only an engine without work is given some, and no client waits for it.
pub async fn health_generate(_: OwnPage, State(app): State<Arc<App>>) -> Response {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    let (status, word) = if !is_accepting(&app) {
        (unavailable, "draining")
    } else {
        let models = app.models.loaded();
        let all = async {
            join_all(models.iter().map(gives))
                .await
                .into_iter()
                .all(|gives| gives)
        };
        match tokio::time::timeout(PATIENCE, all).await {
            Ok(true) => (StatusCode::OK, "ok"),
            Ok(false) => (unavailable, "failing"),
            Err(_) => (unavailable, "stuck"),
        }
    };
    (status, Json(json!({"status": word}))).into_response()
}

fn is_accepting(app: &App) -> bool {
    !*app.models.closing().borrow() && app.models.loaded().iter().all(Model::is_accepting)
}

/// Whether the engine of a model does what it is for.
async fn gives(model: &Model) -> bool {
    match model {
        Model::Generator(served) => gives_tokens(served).await,
        Model::Encoder(served) => gives_vectors(served).await,
    }
}

async fn gives_tokens(served: &Served) -> bool {
    let engine = &served.engine;
    let metrics = engine.metrics();
    let n_steps = metrics.steps.value();
    loop {
        if metrics.steps.value() > n_steps {
            return true;
        }
        if engine.n_in_flight() == 0 {
            match ask_for_a_token(served) {
                Ok(mut events) => {
                    // Its end without a token before it is a failure.
                    return matches!(events.recv().await, Some(Event::Tokens(_)));
                }
                // Others came in between, and the engine works for them.
                Err(SubmitError::QueueFull { .. } | SubmitError::WaitTooLong { .. }) => {}
                Err(_) => return false,
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the engine encodes a text of one token, which takes no longer than a batch.
async fn gives_vectors(served: &ServedEncoder) -> bool {
    match served.engine.submit(vec![EncodedText::of_ids(vec![0])], 0) {
        Ok(mut answers) => answers.recv().await.is_some(),
        // It works for others, who would see it fail.
        Err(EmbedError::QueueFull(_)) => true,
        Err(_) => false,
    }
}

/// The shortest request there is, in a part of the cache that no client's request reads.
fn ask_for_a_token(served: &Served) -> Result<mpsc::Receiver<Event>, SubmitError> {
    let first = served.encoder.tokenizer().bos().unwrap_or(0);
    let (sender, events) = mpsc::channel(Request::event_capacity(1));
    served.engine.submit(Request {
        namespace: Namespace {
            salt: *b"health_generate\0",
            ..Namespace::default()
        },
        sampling: SamplingParams::GREEDY,
        ..Request::new(served.engine.next_id(), vec![first], 1, Instant::now(), sender)
    })?;
    Ok(events)
}

/// `GET /ready`: 200 while requests are accepted.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if is_accepting(&app) {
        Ok(Json(json!({"status": "ready"})))
    } else {
        Err(ApiError::ShuttingDown)
    }
}

/// `GET /version`.
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// `GET /metrics`: Prometheus text.
pub async fn prometheus(State(app): State<Arc<App>>) -> Response {
    let generators = app.models.generators();
    let metrics = generators
        .iter()
        .map(|served| (served.name.as_str(), served.engine.metrics()));
    let engines: Vec<_> = metrics.collect();
    let server = ServerMetrics {
        http: &app.http,
        log: &app.log,
        pool: &app.pool,
        body_bytes: app.intake.n_received(),
        traces: app.traces.as_ref().map(Traces::metrics),
    };
    let encoders = app.models.encoders();
    let encoders = encoders
        .iter()
        .map(|served| (served.name.as_str(), &served.engine));
    let mut text = metrics::prometheus(&engines, server);
    text.push_str(&metrics::embedding::prometheus(encoders));
    text.push_str(&metrics::models::prometheus(&app.models.slots()));
    if app.metrics_compat == MetricsCompat::Vllm {
        text.push_str(&metrics::vllm::prometheus(&engines));
    }
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

/// `GET /flush_cache`, `POST /flush_cache`: forgets every prefix that no running request uses.
pub async fn flush_cache(_: OwnPage, State(app): State<Arc<App>>, _: NoBody) -> Json<Value> {
    for served in app.models.generators() {
        served.engine.flush_cache();
    }
    Json(json!({"status": "flushing"}))
}
