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
    let ChatRequest {
        messages,
        tools,
        add_generation_prompt,
        template_values,
        mut options,
    } = request;
    // A model that was not taught to call tools is told how.
    let taught = app.encoder.call_format();
    let call_format = tools.as_ref().map(|_| taught.unwrap_or(CallFormat::Hermes));
    let listed = tools.as_ref().map_or_else(Vec::new, |tools| tools.listed.clone());
    if let (Some(tools), Some(format)) = (&tools, call_format) {
        options.constraint = Some(tools.constraint(format));
    }
    let tokens = app
        .encode(body.0.len(), move |encoder| {
            let (messages, listed) = match taught {
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
        .await?;
    let prompt = PreparedPrompt::new(tokens, None);
    let grammar = app.grammar(&options).await?;
    let mut generation = app.generate(vec![prompt], &options, grammar.as_ref())?;
    if let Some(format) = call_format {
        generation.read_calls(format);
    }
    let asked = Asked {
        format: Format::Chat,
        options: &options,
        headers: &headers,
    };
    app.answer(generation, asked).await
}
