//! `POST /v1/chat/completions`.

mod answer;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use self::answer::ChatAnswer;
use super::conversation::{self, OutputRoom};
use super::openai::{self, Names};
use super::{App, Traced};
use crate::body::RequestBody;
use crate::wire::chat::ChatRequest;
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;

/// What its objects are called.
const NAMES: Names = Names {
    prefix: "chatcmpl",
    whole: "chat.completion",
    chunk: "chat.completion.chunk",
};

/// Continues a chat.
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (mut request, admitted) = body.parse(&app, ChatRequest::parse).await?;
    request.options.deadlines = Deadlines::read(&headers)?;
    let served = &app.models.find(request.options.model.as_deref()).await?;
    let owner = app.owner(&headers);
    let chat = (request, OutputRoom::AsAsked);
    let running = conversation::begin((&app, served), chat, owner, admitted).await?;
    let n_choices = running.generation.n_choices();
    let dialect = |envelope| ChatAnswer::new(envelope, n_choices);
    openai::answer((&app, served), running, (NAMES, &headers, exchange), dialect).await
}
