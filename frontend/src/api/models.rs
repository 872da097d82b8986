//! `GET /v1/models` and `GET /v1/models/{id}`, as OpenAI's clients know them, and as Anthropic's do, which
//! send the header `anthropic-version`; loading and unloading of models as llama.cpp's server has it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::App;
use crate::body::RequestBody;
use crate::calendar::rfc3339;
use crate::lifecycle::{Done, Order};
use crate::registry::Slot;
use crate::wire::anthropic;
use crate::wire::anthropic::response::{ModelInfo, ModelPage};
use crate::wire::error::ApiError;
use crate::wire::models::ModelOrder;
use crate::wire::response::{ModelCard, ModelList, ModelStatus};

/// Longest text that tells where a model comes from.
const MAX_SOURCE: usize = 4096;

fn card(app: &App, slot: &Slot) -> ModelCard {
    ModelCard {
        id: slot.name().to_owned(),
        object: "model",
        created: app.started,
        owned_by: "arbora",
        max_model_len: slot.model().map(|model| model.context()),
        status: ModelStatus {
            value: slot.state().word(),
        },
    }
}

/// A model in Anthropic's words.
fn info(app: &App, slot: &Slot) -> ModelInfo {
    let context = slot.model().map(|model| model.context());
    ModelInfo {
        kind: "model",
        id: slot.name().to_owned(),
        display_name: slot.name().to_owned(),
        created_at: rfc3339(app.started),
        lifecycle: "active",
        max_input_tokens: context,
        max_tokens: context,
    }
}

/// What the server has, loaded or not.
pub async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let slots = app.models.slots();
    if !anthropic::is_spoken(&headers) {
        let data = slots.iter().map(|slot| card(&app, slot)).collect();
        return Json(ModelList { object: "list", data }).into_response();
    }
    let data: Vec<ModelInfo> = slots.iter().map(|slot| info(&app, slot)).collect();
    let id = |model: Option<&ModelInfo>| model.map(|model| model.id.clone());
    let page = ModelPage {
        has_more: false,
        first_id: id(data.first()),
        last_id: id(data.last()),
        data,
    };
    Json(page).into_response()
}

/// One model by name; names may hold slashes.
pub async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let slot = app.models.known(&id)?;
    Ok(match anthropic::is_spoken(&headers) {
        true => Json(info(&app, &slot)).into_response(),
        false => Json(card(&app, &slot)).into_response(),
    })
}

/// `POST /models/load`: loads a model, answers once it is there. With `source`, another model takes the
/// place of the one called so, or is added; the one that was there goes on until then.
pub async fn load(State(app): State<Arc<App>>, body: RequestBody) -> Result<Json<Value>, ApiError> {
    let (order, _admitted) = body.parse(&app, ModelOrder::parse_load).await?;
    let slot = match (app.models.known(&order.model), &order.source) {
        (Err(_), Some(_)) if app.models.orders().is_some() => app
            .models
            .add(vec![order.model.clone()])
            .map_err(|error| ApiError::invalid("model", format!("{error}.")))?,
        (known, _) => known?,
    };
    if let Some(source) = order.source.as_ref().filter(|source| source.len() > MAX_SOURCE) {
        let message = format!(
            "'source' has {} bytes, at most {MAX_SOURCE} are allowed.",
            source.len()
        );
        return Err(ApiError::invalid("source", message));
    }
    let (slot_of_order, source) = (Arc::clone(&slot), order.source);
    obey(&app, &slot, "was not loaded", |done| Order::Place {
        slot: slot_of_order,
        source,
        done,
    })
    .await?;
    Ok(told(&slot))
}

/// `POST /models/unload`: unloads a model, answers once it is gone. Requests under way are finished.
pub async fn unload(State(app): State<Arc<App>>, body: RequestBody) -> Result<Json<Value>, ApiError> {
    let (order, _admitted) = body.parse(&app, ModelOrder::parse_unload).await?;
    let slot = app.models.known(&order.model)?;
    let slot_of_order = Arc::clone(&slot);
    obey(&app, &slot, "was not unloaded", |done| Order::Unload {
        slot: slot_of_order,
        done,
    })
    .await?;
    Ok(told(&slot))
}

fn told(slot: &Slot) -> Json<Value> {
    Json(json!({"success": true, "model": slot.name(), "status": {"value": slot.state().word()}}))
}

/// Gives an order and waits until it is obeyed.
async fn obey(
    app: &App,
    slot: &Slot,
    what: &'static str,
    order: impl FnOnce(Done) -> Order,
) -> Result<(), ApiError> {
    let unchanged = |reason: &str| ApiError::ModelUnchanged {
        model: slot.name().to_owned(),
        what,
        reason: reason.to_owned(),
    };
    let (done, outcome) = oneshot::channel();
    let Some(orders) = app.models.orders() else {
        return Err(unchanged("this server has its models for good"));
    };
    match orders.try_send(order(done)) {
        Ok(()) => {}
        Err(_) => return Err(unchanged("too many models are being loaded")),
    }
    match outcome.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => Err(unchanged(&reason)),
        Err(_) => Err(ApiError::ShuttingDown),
    }
}
