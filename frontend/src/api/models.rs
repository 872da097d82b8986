//! `GET /v1/models` and `GET /v1/models/{id}`, as OpenAI's clients know them, and as Anthropic's do, which
//! send the header `anthropic-version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::App;
use crate::calendar::rfc3339;
use crate::served::Served;
use crate::wire::anthropic;
use crate::wire::anthropic::response::{ModelInfo, ModelPage};
use crate::wire::error::ApiError;
use crate::wire::response::{ModelCard, ModelList};

fn card(app: &App, served: &Served) -> ModelCard {
    ModelCard {
        id: served.name.clone(),
        object: "model",
        created: app.started,
        owned_by: "arbora",
        max_model_len: served.engine.context(),
    }
}

fn info(app: &App, served: &Served) -> ModelInfo {
    ModelInfo {
        kind: "model",
        id: served.name.clone(),
        display_name: served.name.clone(),
        created_at: rfc3339(app.started),
        lifecycle: "active",
        max_input_tokens: served.engine.context(),
        max_tokens: served.engine.context(),
    }
}

/// What is served.
pub async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let models = app.models.iter();
    if !anthropic::is_spoken(&headers) {
        let data = models.map(|served| card(&app, served)).collect();
        return Json(ModelList { object: "list", data }).into_response();
    }
    let data: Vec<ModelInfo> = models.map(|served| info(&app, served)).collect();
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
    let served = app.models.find(Some(&id))?;
    Ok(match anthropic::is_spoken(&headers) {
        true => Json(info(&app, served)).into_response(),
        false => Json(card(&app, served)).into_response(),
    })
}
