//! `POST /v1/rerank` and `POST /v1/score`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;

use super::{App, unix_seconds};
use crate::body::RequestBody;
use crate::random::random_id;
use crate::wire::embeddings::TextUsage;
use crate::wire::error::ApiError;
use crate::wire::rerank::{
    DocumentText, RerankRequest, RerankResponse, RerankResult, Score, ScoreRequest, ScoreResponse,
};

/// Puts documents in the order of their relevance.
pub async fn rerank(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Json<RerankResponse>, ApiError> {
    let (request, admitted) = body.parse(&app, RerankRequest::parse).await?;
    let served = &app.models.find_encoder(request.model.as_deref()).await?;
    let tenant = App::tenant(app.owner(&headers));
    let pair = |document: &String| (Arc::clone(&request.query), document.clone());
    let pairs = request.documents.iter().map(pair).collect();
    let context = (&*app, admitted, tenant);
    let (scores, n_tokens) = served
        .compare(context, ("documents", pairs), request.encoding)
        .await?;
    let mut results: Vec<RerankResult> = scores
        .into_iter()
        .zip(request.documents)
        .enumerate()
        .map(|(index, (relevance_score, text))| RerankResult {
            index,
            relevance_score,
            document: request.with_documents.then_some(DocumentText { text }),
        })
        .collect();
    // Equal ones stay in their order.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(request.top_n.unwrap_or(usize::MAX));
    Ok(Json(RerankResponse {
        id: format!("rerank-{}", random_id()),
        model: served.name.clone(),
        results,
        usage: TextUsage::of(n_tokens),
    }))
}

/// Scores pairs of texts.
pub async fn score(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Json<ScoreResponse>, ApiError> {
    let (request, admitted) = body.parse(&app, ScoreRequest::parse).await?;
    let served = &app.models.find_encoder(request.model.as_deref()).await?;
    let context = (&*app, admitted, App::tenant(app.owner(&headers)));
    let (scores, n_tokens) = served
        .compare(context, ("text_2", request.pairs), request.encoding)
        .await?;
    let scores = scores.into_iter().enumerate().map(|(index, score)| Score {
        index,
        object: "score",
        score,
    });
    Ok(Json(ScoreResponse {
        id: format!("score-{}", random_id()),
        object: "list",
        created: unix_seconds(),
        model: served.name.clone(),
        data: scores.collect(),
        usage: TextUsage::of(n_tokens),
    }))
}
