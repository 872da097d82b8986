//! `POST /v1/chat/completions/render` and `POST /v1/completions/render`: the prompt that a completion would
//! have, for bodies of the same form. Runs nothing. The answer is one prompt for a chat, a list for texts.

use std::sync::Arc;
use std::time::Instant;

use arbora_runtime::request::Request;
use axum::Json;
use axum::extract::State;
use tokio::sync::mpsc;

use super::completions::prepare;
use super::{App, conversation};
use crate::body::RequestBody;
use crate::random::random_id;
use crate::served::Served;
use crate::wire::chat::ChatRequest;
use crate::wire::completion::{CompletionRequest, Echo};
use crate::wire::error::ApiError;
use crate::wire::options::{Delivery, Options};
use crate::wire::render::{Rendered, RenderedSampling, RenderedStream};

/// The prompt of a chat.
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    body: RequestBody,
) -> Result<Json<Rendered>, ApiError> {
    let (request, admitted) = body.parse(&app, ChatRequest::parse).await?;
    let served = &app.models.find(request.options.model.as_deref()).await?;
    let prompt = conversation::prompt((&app, served), &admitted, request.conversation).await?;
    let rendered = rendered(served, "chatcmpl", prompt.tokens, &request.options);
    Ok(Json(rendered.map_err(|error| error.of_prompt_in("messages"))?))
}

/// The prompts of text completions.
pub async fn completions(
    State(app): State<Arc<App>>,
    body: RequestBody,
) -> Result<Json<Vec<Rendered>>, ApiError> {
    let (request, admitted) = body.parse(&app, CompletionRequest::parse).await?;
    let served = &app.models.find(request.options.model.as_deref()).await?;
    let mut list = Vec::with_capacity(request.prompts.len());
    for prompt in request.prompts {
        let tokens = prepare((&app, served), &admitted, prompt, Echo::Output)
            .await?
            .tokens;
        list.push(rendered(served, "cmpl", tokens, &request.options)?);
    }
    Ok(Json(list))
}

/// What would be asked of the engine; refused as the engine would refuse it.
fn rendered(
    served: &Served,
    prefix: &str,
    tokens: Vec<u32>,
    options: &Options,
) -> Result<Rendered, ApiError> {
    let room = served.engine.context().saturating_sub(tokens.len()).max(1);
    let max_tokens = options.max_tokens.unwrap_or(room);
    let sampling = options.sampling.with_defaults(&served.sampling)?;
    let (nobody, _) = mpsc::channel(1);
    let request = Request {
        sampling,
        stop: options.stop.clone(),
        logit_bias: options.logit_bias.clone(),
        logprobs: options.logprobs.clone(),
        ..Request::new(
            served.engine.next_id(),
            tokens,
            max_tokens,
            Instant::now(),
            nobody,
        )
    };
    served.engine.check(&request)?;
    Ok(Rendered {
        request_id: format!("{prefix}-{}", random_id()),
        prompt: served.encoder.tokenizer().decode(&request.prompt),
        token_ids: request.prompt,
        sampling_params: RenderedSampling::new(options, &sampling, max_tokens),
        model: served.name.clone(),
        stream: options.delivery != Delivery::Whole,
        stream_options: RenderedStream::of(options.delivery),
        priority: options.priority,
    })
}
