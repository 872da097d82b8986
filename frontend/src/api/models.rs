//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::App;
use crate::encoders::ServedEncoder;
use crate::served::Served;
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

/// What is served.
pub async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: app
            .models
            .iter()
            .map(|served| generator(&app, served))
            .chain(app.models.encoders().map(|served| encoder(&app, served)))
            .collect(),
    })
}

/// One model by name; names may hold slashes.
pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ModelCard>, ApiError> {
    if let Ok(served) = app.models.find_encoder(Some(&id)) {
        return Ok(Json(encoder(&app, served)));
    }
    let served = app.models.find(Some(&id))?;
    Ok(Json(generator(&app, served)))
}
