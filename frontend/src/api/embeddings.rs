//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use arbora_runtime::model::encoder::normalize;

use super::App;
use crate::body::RequestBody;
use crate::encoders::{Encoding, Input, ServedEncoder, Vectors};
use crate::intake::Admitted;
use crate::wire::embeddings::{Embedding, EmbeddingsRequest, EmbeddingsResponse, TextUsage, Vector};
use crate::wire::error::ApiError;

/// Numbers of an answer that are written by a connection's thread; more are written by a worker.
const MAX_NUMBERS_HERE: usize = 32 << 10;

/// Texts to become vectors.
pub(super) struct Asked {
    /// The field that they are in.
    pub(super) field: &'static str,
    pub(super) inputs: Vec<Input>,
    /// The first so many elements, scaled to length 1.
    pub(super) dimensions: Option<usize>,
    /// What the texts are, by the name of a prompt: which field says it, and what.
    pub(super) prompt_name: Option<(&'static str, String)>,
    pub(super) encoding: Encoding,
}

/// Turns texts into vectors.
pub async fn embeddings(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (request, admitted) = body.parse(&app, EmbeddingsRequest::parse).await?;
    let served = &app.models.find_encoder(request.model.as_deref()).await?;
    let asked = Asked {
        field: "input",
        inputs: request.inputs,
        dimensions: request.dimensions,
        prompt_name: request.prompt_name,
        encoding: request.encoding,
    };
    let (model, format) = (served.name.clone(), request.format);
    let Vectors { vectors, n_tokens } = encode((&app, served), asked, (&headers, admitted)).await?;
    let n_numbers = vectors.iter().map(Vec::len).sum();
    let write = move || {
        let embeddings = vectors.into_iter().enumerate().map(|(index, vector)| Embedding {
            object: "embedding",
            index,
            embedding: Vector::new(vector, format),
        });
        let answer = EmbeddingsResponse {
            object: "list",
            data: embeddings.collect(),
            model,
            usage: TextUsage::of(n_tokens),
        };
        serde_json::to_vec(&answer).expect("finite numbers and texts")
    };
    written((&app, &headers), n_numbers, write).await
}

/// The vectors that `served` makes of what is asked for.
pub(super) async fn encode(
    (app, served): (&App, &ServedEncoder),
    asked: Asked,
    (headers, admitted): (&HeaderMap, Admitted),
) -> Result<Vectors, ApiError> {
    served.expect_embeddings()?;
    let Asked {
        field,
        mut inputs,
        dimensions,
        prompt_name,
        encoding,
    } = asked;
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
    let context = (app, admitted, App::tenant(app.owner(headers)));
    let mut found = served.encode(context, (field, inputs), encoding).await?;
    if let Some(n) = dimensions {
        for vector in &mut found.vectors {
            vector.truncate(n);
            normalize(vector);
        }
    }
    Ok(found)
}

/// The answer that `write` writes, which holds so many numbers.
pub(super) async fn written(
    (app, headers): (&App, &HeaderMap),
    n_numbers: usize,
    write: impl FnOnce() -> Vec<u8> + Send + 'static,
) -> Result<Response, ApiError> {
    let bytes = match n_numbers {
        0..=MAX_NUMBERS_HERE => write(),
        _ => {
            app.intake
                .run_aside(App::tenant(app.owner(headers)), write)
                .await?
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
