//! SGLang's worker routes for routers and load balancers. One rank, since one engine serves.

use std::sync::Arc;

use arbora_runtime::engine::EngineHandle;
use arbora_runtime::metrics::Counter;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::{App, unix_seconds};
use crate::calendar::civil_date;
use crate::registry::Model;
use crate::wire::error::ApiError;

/// `GET /model_info`: what is served.
pub async fn model_info(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let model = app.models.first().await?;
    Ok(Json(json!({
        "model_path": model.name(),
        "tokenizer_path": model.name(),
        "is_generation": matches!(model, Model::Generator(_)),
        "preferred_sampling_params": null,
        "max_model_len": model.context(),
    })))
}

/// `GET /server_info`: limits and the load.
pub async fn server_info(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = &app.models.find(None).await?;
    let engine = &served.engine;
    Ok(Json(json!({
        "model_path": served.name,
        "served_model_name": served.name,
        "version": env!("CARGO_PKG_VERSION"),
        "tp_size": 1,
        "dp_size": 1,
        "page_size": engine.page_size(),
        "context_length": engine.context(),
        "max_total_num_tokens": tokens(engine, engine.metrics().gauges().pages_total),
        "max_running_requests": engine.max_running(),
        "status": if engine.is_accepting() { "ready" } else { "draining" },
        "internal_states": [internal_state(engine)],
    })))
}

/// The load, and once there was a draft the tokens that a step with one gave on average: SGLang's clients
/// read how much drafts saved from it, and do without it where nothing is drafted.
fn internal_state(engine: &EngineHandle) -> Value {
    let mut state = load(engine);
    let metrics = engine.metrics();
    let sum = |by_source: &[Counter]| by_source.iter().map(Counter::value).sum::<u64>();
    let (n_drafts, n_accepted) = (sum(&metrics.drafts), sum(&metrics.accepted_tokens));
    if n_drafts > 0 {
        // Each verification gives one token besides those it accepts.
        let mean = (n_accepted + n_drafts) as f64 / n_drafts as f64;
        state["avg_spec_accept_length"] = mean.into();
    }
    state
}

/// `GET /get_load`.
pub async fn get_load(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let engine = &app.models.find(None).await?.engine;
    let now = engine.metrics().gauges();
    Ok(Json(json!([{
        "dp_rank": 0,
        "num_reqs": now.running + now.waiting,
        "num_waiting_reqs": now.waiting,
        "num_tokens": tokens(engine, now.pages_in_use()) + now.waiting_tokens,
    }])))
}

/// `GET /v1/loads`, which gateways also call `/loads`.
pub async fn loads(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let engine = &app.models.find(None).await?.engine;
    Ok(Json(json!({
        "timestamp": iso_8601(unix_seconds()),
        "version": env!("CARGO_PKG_VERSION"),
        "dp_rank_count": 1,
        "loads": [load(engine)],
    })))
}

/// `GET /load`, in vLLM's words.
pub async fn server_load(State(app): State<Arc<App>>) -> Json<Value> {
    let n_in_flight: usize = app.models.loaded().iter().map(Model::n_in_flight).sum();
    Json(json!({"server_load": n_in_flight}))
}

fn load(engine: &EngineHandle) -> Value {
    let metrics = engine.metrics();
    let now = metrics.gauges();
    let (used, total) = (
        tokens(engine, now.pages_in_use()),
        tokens(engine, now.pages_total),
    );
    let share = |part: u64, whole: u64| {
        if whole == 0 {
            0.0
        } else {
            part as f64 / whole as f64
        }
    };
    json!({
        "dp_rank": 0,
        "num_running_reqs": now.running,
        "num_waiting_reqs": now.waiting,
        "num_total_reqs": now.running + now.waiting,
        "num_used_tokens": used,
        "max_total_num_tokens": total,
        "token_usage": share(used, total),
        "cache_hit_rate": share(metrics.cached_tokens.value(), metrics.prompt_tokens.value()),
        "max_running_requests": engine.max_running(),
    })
}

/// The date and time `seconds` after 1970 began, as Python writes it.
fn iso_8601(seconds: u64) -> String {
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00")
}

/// What `n_pages` pages hold.
fn tokens(engine: &EngineHandle, n_pages: u64) -> u64 {
    n_pages * engine.page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_iso_8601_has_them() {
        assert_eq!(iso_8601(0), "1970-01-01T00:00:00+00:00");
        assert_eq!(iso_8601(951_827_696), "2000-02-29T12:34:56+00:00");
        assert_eq!(iso_8601(1_796_027_220), "2026-11-30T08:27:00+00:00");
    }
}
