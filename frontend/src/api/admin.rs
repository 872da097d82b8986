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
    let is_stuck = |served: &Arc<Served>| served.engine.stalled_for(now).is_some_and(|time| time > STUCK);
    let is_stuck_encoder =
        |served: &Arc<ServedEncoder>| served.engine.stalled_for(now).is_some_and(|time| time > STUCK);
    let any = app.models.iter().any(is_stuck) || app.models.encoders().any(is_stuck_encoder);
    let (status, word) = match any {
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
        let all = app.models.iter().map(|served| gives_tokens(served));
        let encoders = app.models.encoders().map(|served| gives_vectors(served));
        let all = async {
            let (generators, encoders) = tokio::join!(join_all(all), join_all(encoders));
            generators.into_iter().chain(encoders).all(|gives| gives)
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
    let generators = app.models.iter().all(|served| served.engine.is_accepting());
    generators && app.models.encoders().all(|served| served.engine.is_accepting())
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
    let metrics = app
        .models
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
    let encoders = app
        .models
        .encoders()
        .map(|served| (served.name.as_str(), &served.engine));
    let mut text = metrics::prometheus(&engines, server);
    text.push_str(&metrics::embedding::prometheus(encoders));
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
    for served in app.models.iter() {
        served.engine.flush_cache();
    }
    Json(json!({"status": "flushing"}))
}
