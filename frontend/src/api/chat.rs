//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::{App, Asked, PreparedPrompt};
use crate::reply::Format;
use crate::route::RequestBody;
use crate::template::Chat;
use crate::wire::chat::ChatRequest;
use crate::wire::error::ApiError;

/// Continues a chat.
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let request = ChatRequest::parse(&body.0)?;
    app.check_model(request.options.model.as_deref())?;
    let ChatRequest {
        messages,
        add_generation_prompt,
        template_values,
        options,
    } = request;
    let tokens = app
        .encode(body.0.len(), move |encoder| {
            encoder.chat(&Chat {
                messages: &messages,
                add_generation_prompt,
                values: &template_values,
            })
        })
        .await?;
    let prompt = PreparedPrompt {
        tokens,
        opening: String::new(),
    };
    let grammar = app.grammar(&options).await?;
    let generation = app.generate(vec![prompt], &options, grammar.as_ref())?;
    let asked = Asked {
        format: Format::Chat,
        options: &options,
        headers: &headers,
    };
    app.answer(generation, asked).await
}
