//! `POST /v1/messages` and `POST /v1/messages/count_tokens`, in Anthropic's words.

mod answer;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use self::answer::{MessageAnswer, Told};
use super::conversation::{self, OutputRoom};
use super::{App, Traced};
use crate::body::RequestBody;
use crate::random::random_id;
use crate::stream::Explain;
use crate::wire::anthropic::request::{CountRequest, MessagesRequest};
use crate::wire::anthropic::response::TokenCount;
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;

/// Answers the last message.
pub async fn messages(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (request, admitted) = body.parse(&app, MessagesRequest::parse).await?;
    let MessagesRequest { mut chat, has_marks } = request;
    chat.options.deadlines = Deadlines::read(&headers)?;
    let served = &app.models.find(chat.options.model.as_deref()).await?;
    if !served.encoder.knows_thinking() {
        // A model without thoughts keeps to every limit of them, and clients ask any model for some.
        chat.thinking_budget = None;
    }
    let (asked, stops) = (chat.options.max_tokens, chat.options.stop.strings.clone());
    let owner = app.owner(&headers);
    let chat = (chat, OutputRoom::UpToContext);
    let mut running = conversation::begin((&app, served), chat, owner, admitted).await?;
    let id = format!("msg_{}", &random_id()[..24]);
    running.note((&app, served), &id, (&headers, exchange))?;
    let told = Told {
        id,
        model: served.name.clone(),
        stops,
        has_marks,
        is_cut_to_context: running.options.max_tokens < asked,
        explain: Explain::of(&headers),
    };
    running.answer(MessageAnswer::new(told)).await
}

/// Counts the tokens of a prompt.
pub async fn count_tokens(
    State(app): State<Arc<App>>,
    body: RequestBody,
) -> Result<Json<TokenCount>, ApiError> {
    let (request, admitted) = body.parse(&app, CountRequest::parse).await?;
    let served = &app.models.find(request.model.as_deref()).await?;
    let prompt = conversation::prompt((&app, served), &admitted, request.conversation).await?;
    Ok(Json(TokenCount {
        input_tokens: prompt.tokens.len(),
    }))
}
