//! What operators and probes ask for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use crate::config::MetricsCompat;
use crate::metrics;
use crate::otlp::Traces;
use crate::wire::error::ApiError;

/// An engine that has work and has not finished a step for this long is taken for stuck. A step computes at
/// most a batch of tokens, which takes well under a second on the slowest machine that makes sense.
const STUCK: Duration = Duration::from_secs(60);

/// `GET /health`: 200 while the engine moves, or has nothing to do.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    let stalled = app.engine.stalled_for(Instant::now());
    let (status, word) = match stalled {
        Some(time) if time > STUCK => (StatusCode::SERVICE_UNAVAILABLE, "stuck"),
        _ => (StatusCode::OK, "ok"),
    };
    (status, Json(json!({"status": word}))).into_response()
}

/// `GET /ready`: 200 while requests are accepted.
pub async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if app.engine.is_accepting() {
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
    let engine = app.engine.metrics();
    let traces = app.traces.as_ref().map(Traces::metrics);
    let mut text = metrics::prometheus(&engine, &app.http, traces);
    if app.metrics_compat == MetricsCompat::Vllm {
        text.push_str(&metrics::vllm::prometheus(&engine, &app.model));
    }
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
        .into_response()
}

/// `POST /flush_cache`: forgets every prefix that no running request uses.
pub async fn flush_cache(State(app): State<Arc<App>>) -> Json<Value> {
    app.engine.flush_cache();
    Json(json!({"status": "flushing"}))
}
