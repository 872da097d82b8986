//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::App;
use crate::served::Served;
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

/// What is served.
pub async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: app.models.iter().map(|served| card(&app, served)).collect(),
    })
}

/// One model by name; names may hold slashes.
pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ModelCard>, ApiError> {
    let served = app.models.find(Some(&id))?;
    Ok(Json(card(&app, served)))
}
