//! `GET /v1/models` and `GET /v1/models/{id}`, as OpenAI's clients know them, and as Anthropic's do, which
//! send the header `anthropic-version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::App;
use crate::calendar::rfc3339;
use crate::encoders::ServedEncoder;
use crate::served::Served;
use crate::wire::anthropic;
use crate::wire::anthropic::response::{ModelInfo, ModelPage};
use crate::wire::error::ApiError;
use crate::wire::response::{ModelCard, ModelList};

fn card(app: &App, name: &str, max_model_len: usize) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: app.started,
        owned_by: "arbora",
        max_model_len,
    }
}

/// One that generates text.
fn generator(app: &App, served: &Served) -> ModelCard {
    card(app, &served.name, served.engine.context())
}

/// One that turns texts into vectors or scores.
fn encoder(app: &App, served: &ServedEncoder) -> ModelCard {
    card(app, &served.name, served.engine.max_tokens())
}

/// A model of either kind in Anthropic's words.
fn info(app: &App, name: &str, context: usize) -> ModelInfo {
    ModelInfo {
        kind: "model",
        id: name.to_owned(),
        display_name: name.to_owned(),
        created_at: rfc3339(app.started),
        lifecycle: "active",
        max_input_tokens: context,
        max_tokens: context,
    }
}

/// What is served.
pub async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    if !anthropic::is_spoken(&headers) {
        let generators = app.models.iter().map(|served| generator(&app, served));
        let encoders = app.models.encoders().map(|served| encoder(&app, served));
        let data = generators.chain(encoders).collect();
        return Json(ModelList { object: "list", data }).into_response();
    }
    let generator = |served: &Arc<Served>| info(&app, &served.name, served.engine.context());
    let encoder = |served: &Arc<ServedEncoder>| info(&app, &served.name, served.engine.max_tokens());
    let generators = app.models.iter().map(generator);
    let data: Vec<ModelInfo> = generators.chain(app.models.encoders().map(encoder)).collect();
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
    let card = match app.models.find_encoder(Some(&id)) {
        Ok(served) => encoder(&app, served),
        Err(_) => generator(&app, app.models.find(Some(&id))?),
    };
    Ok(match anthropic::is_spoken(&headers) {
        true => Json(info(&app, &card.id, card.max_model_len)).into_response(),
        false => Json(card).into_response(),
    })
}
