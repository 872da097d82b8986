//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use arbora_constrained::CallFormat;

use super::{App, Asked, PreparedPrompt};
use crate::reply::Format;
use crate::route::RequestBody;
use crate::template::Chat;
use crate::tools::written_out;
use crate::wire::chat::ChatRequest;
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;

/// Continues a chat.
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let mut request = ChatRequest::parse(&body.0, &app.sampling)?;
    request.options.deadlines = Deadlines::read(&headers)?;
    app.check_model(request.options.model.as_deref())?;
    let mut options = request.options.clone();
    let call_format = request.tools.as_ref().map(|tools| {
        // A model that was not taught to call tools is told how.
        let format = app.encoder.call_format().unwrap_or(CallFormat::Hermes);
        options.constraint = Some(tools.constraint(format));
        format
    });
    let tokens = prompt(&app, body.0.len(), request).await?;
    let prompt = PreparedPrompt::new(tokens, None);
    let grammar = app.grammar(&options).await?;
    let (mut generation, requests) = app.generate(vec![prompt], &options, grammar.as_ref())?;
    if let Some(format) = call_format {
        generation.read_calls(format);
    }
    let asked = Asked {
        format: Format::Chat,
        options: &options,
        headers: &headers,
        requests,
    };
    app.answer(generation, asked).await
}

/// The tokens of a chat that came in a body of `n_bytes`.
pub(super) async fn prompt(app: &App, n_bytes: usize, request: ChatRequest) -> Result<Vec<u32>, ApiError> {
    let ChatRequest {
        messages,
        tools,
        add_generation_prompt,
        template_values,
        ..
    } = request;
    let listed = tools.map_or_else(Vec::new, |tools| tools.listed);
    app.encode(n_bytes, move |encoder| {
        let (messages, listed) = match encoder.call_format() {
            Some(_) => (messages, listed),
            None => (written_out(&messages, &listed), Vec::new()),
        };
        encoder.chat(&Chat {
            messages: &messages,
            tools: &listed,
            add_generation_prompt,
            values: &template_values,
        })
    })
    .await
}
