//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::App;
use crate::wire::error::ApiError;
use crate::wire::response::{ModelCard, ModelList};

fn card(app: &App) -> ModelCard {
    ModelCard {
        id: app.model.clone(),
        object: "model",
        created: app.started,
        owned_by: "arbora",
        max_model_len: app.engine.context(),
    }
}

/// What is served.
pub async fn list(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: vec![card(&app)],
    })
}

/// One model by name; names may hold slashes.
pub async fn one(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ModelCard>, ApiError> {
    app.check_model(Some(&id))?;
    Ok(Json(card(&app)))
}
