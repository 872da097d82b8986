//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use arbora_runtime::model::encoder::normalize;

use super::App;
use crate::body::RequestBody;
use crate::encoders::{Input, Vectors};
use crate::wire::embeddings::{Embedding, EmbeddingsRequest, EmbeddingsResponse, TextUsage, Vector};
use crate::wire::error::ApiError;

/// Numbers of an answer that are written by a connection's thread; more are written by a worker.
const MAX_NUMBERS_HERE: usize = 32 << 10;

/// Turns texts into vectors.
pub async fn embeddings(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (request, admitted) = body.parse(&app, EmbeddingsRequest::parse).await?;
    let served = &app.models.find_encoder(request.model.as_deref()).await?;
    served.expect_embeddings()?;
    let EmbeddingsRequest {
        mut inputs,
        format,
        dimensions,
        prompt_name,
        encoding,
        ..
    } = request;
    if let Some(n) = dimensions.filter(|n| !(1..=served.width).contains(n)) {
        let message = format!("'dimensions' is {n}, this model has 1 to {}.", served.width);
        return Err(ApiError::invalid("dimensions", message));
    }
    let (param, name) = match &prompt_name {
        Some((param, name)) => (*param, Some(name.as_str())),
        None => ("prompt_name", None),
    };
    if let Some(prompt) = served.prompt(param, name)? {
        for input in &mut inputs {
            if let Input::Text(text) = input {
                text.insert_str(0, prompt);
            }
        }
    }
    let tenant = App::tenant(app.owner(&headers));
    let context = (&*app, admitted, tenant);
    let Vectors { vectors, n_tokens } = served.encode(context, ("input", inputs), encoding).await?;
    let model = served.name.clone();
    let n_numbers = vectors.len() * served.width;
    let write = move || {
        let embeddings = vectors.into_iter().enumerate().map(|(index, mut vector)| {
            if let Some(n) = dimensions {
                vector.truncate(n);
                normalize(&mut vector);
            }
            Embedding {
                object: "embedding",
                index,
                embedding: Vector::new(vector, format),
            }
        });
        let answer = EmbeddingsResponse {
            object: "list",
            data: embeddings.collect(),
            model,
            usage: TextUsage::of(n_tokens),
        };
        serde_json::to_vec(&answer).expect("finite numbers and texts")
    };
    let bytes = match n_numbers {
        0..=MAX_NUMBERS_HERE => write(),
        _ => app.intake.run_aside(tenant, write).await?,
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
