//! Text Generation Inference's API: `POST /`, `/generate` (shared with SGLang's), `/generate_stream`,
//! `/info`, `/tokenize` (shared with vLLM's) and `/chat_tokenize`.

mod answer;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use self::answer::{TgiAnswer, Told};
use super::conversation::{self, OutputRoom};
use super::{App, Traced, completions};
use crate::body::RequestBody;
use crate::intake::Admitted;
use crate::prompt::PromptEncoder;
use crate::random::random_id;
use crate::served::Served;
use crate::wire::chat::ChatRequest;
use crate::wire::completion::{Bos, Echo};
use crate::wire::deadlines::Deadlines;
use crate::wire::error::{self, ApiError};
use crate::wire::options::{MAX_CHOICES, MAX_STOPS};
use crate::wire::tgi::request::{TgiRequest, TgiTokenize};
use crate::wire::tgi::response;

/// How a route answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// An object or a stream, as the request says; the prompt is not repeated.
    Plain,
    /// A list where it is no stream; the prompt is repeated unless the request says otherwise.
    List,
}

/// `POST /`.
pub async fn root(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let request = body.parse(&app, TgiRequest::parse).await?;
    respond(&app, request, (&headers, exchange), Form::List).await
}

/// `POST /generate_stream`.
pub async fn stream(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (request, admitted) = body.parse(&app, TgiRequest::parse_stream).await?;
    respond(&app, (request, admitted), (&headers, exchange), Form::Plain).await
}

/// Answers in TGI's words, errors too.
pub(super) async fn answer(
    app: &App,
    (request, admitted): (Result<Box<TgiRequest>, ApiError>, Admitted),
    asked: (&HeaderMap, Traced),
) -> Response {
    let answered = match request {
        Ok(request) => respond(app, (*request, admitted), asked, Form::Plain).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|refused| error::retold(refused.into_response(), response::error))
}

async fn respond(
    app: &App,
    (request, admitted): (TgiRequest, Admitted),
    (headers, exchange): (&HeaderMap, Traced),
    form: Form,
) -> Result<Response, ApiError> {
    let served = &app.models.find(request.options.model.as_deref()).await?;
    let prompt = request.prompt();
    let TgiRequest {
        text,
        truncate,
        returns_prompt,
        wants_details,
        seed,
        mut options,
    } = request;
    options.deadlines = Deadlines::read(headers)?;
    let in_inputs = |error: ApiError| error.of_prompt_in("inputs");
    let prepared = completions::prepare((app, served), &admitted, prompt, Echo::Output).await;
    let mut prompt = prepared.map_err(in_inputs)?;
    if let Some(n) = truncate {
        prompt.tokens.drain(..prompt.tokens.len().saturating_sub(n));
    }
    let (n_outputs, stops) = (options.n, options.stop.strings.clone());
    let (n_top, wants_prompt) = (
        options.logprobs.output.unwrap_or(0),
        options.logprobs.prompt.is_some(),
    );
    let asked = (prompt, options, OutputRoom::AsAsked);
    let begun = conversation::begin_text((app, served), asked, app.owner(headers), admitted).await;
    let mut running = begun.map_err(in_inputs)?;
    running.note((app, served), &random_id(), (headers, exchange))?;
    let told = Told {
        tokenizer: Arc::clone(served.encoder.tokenizer()),
        opening: match returns_prompt.unwrap_or(form == Form::List) {
            true => text,
            false => String::new(),
        },
        prompt: std::mem::take(&mut running.prompt),
        stops,
        seed,
        wants_details,
        wants_prompt,
        n_top,
        is_list: form == Form::List,
    };
    running.answer(TgiAnswer::new(told, n_outputs)).await
}

/// `GET /info`: what is served, and its limits.
pub async fn info(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let served = app.models.find(None).await?;
    let context = served.engine.context();
    Ok(Json(json!({
        "model_id": served.name,
        "model_sha": null,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": served.engine.max_running(),
        "max_best_of": MAX_CHOICES,
        "max_stop_sequences": MAX_STOPS,
        // A prompt leaves room for a token.
        "max_input_tokens": context.saturating_sub(1),
        "max_total_tokens": context,
        "max_client_batch_size": 1,
        "router": "arbora",
        "version": env!("CARGO_PKG_VERSION"),
        "sha": null,
        "docker_label": null,
    })))
}

/// The tokens of a text, each with its text and where it begins and ends, in characters.
pub(super) async fn tokenize(
    app: &App,
    admitted: &Admitted,
    TgiTokenize { model, text }: TgiTokenize,
) -> Result<Value, ApiError> {
    let served = &app.models.find(model.as_deref()).await?;
    let encode = move |encoder: &PromptEncoder| {
        let tokens = encoder.text(&text, Bos::AsTrained, usize::MAX)?;
        Ok((tokens, text))
    };
    let (tokens, text) = app.encode(served, admitted, encode).await?;
    Ok(placed(served, &tokens, &text))
}

fn placed(served: &Served, tokens: &[u32], text: &str) -> Value {
    let tokenizer = served.encoder.tokenizer();
    // Byte offsets count characters by their first bytes. A token that prompts begin with has no place, and
    // neither has a blank that some tokenizers put in front.
    let bytes_of = |id: u32| tokenizer.token_bytes(id);
    let is_added = |id: u32| tokenizer.is_special(id) && !text.as_bytes().starts_with(bytes_of(id));
    let n_added = tokens.iter().take_while(|id| is_added(**id)).count();
    let spelled: usize = tokens[n_added..].iter().map(|id| bytes_of(*id).len()).sum();
    let mut ahead = spelled.saturating_sub(text.len());
    let begins = |byte: &&u8| !(0x80..0xC0).contains(*byte);
    let mut at = 0;
    let one = |(i, id): (usize, &u32)| {
        let start = at;
        let mut bytes = bytes_of(*id);
        if i >= n_added {
            let skipped = ahead.min(bytes.len());
            ahead -= skipped;
            bytes = &bytes[skipped..];
            at += bytes.iter().filter(begins).count();
        }
        let shown = String::from_utf8_lossy(bytes_of(*id)).into_owned();
        json!({"id": id, "text": shown, "start": start, "stop": at})
    };
    tokens.iter().enumerate().map(one).collect()
}

/// `POST /chat_tokenize`: the tokens of a chat's prompt, and its text.
pub async fn chat_tokenize(State(app): State<Arc<App>>, body: RequestBody) -> Result<Json<Value>, ApiError> {
    let (request, admitted) = body.parse(&app, ChatRequest::parse).await?;
    let served = &app.models.find(request.options.model.as_deref()).await?;
    let prompt = conversation::prompt((&app, served), &admitted, request.conversation).await?;
    let tokenizer = served.encoder.tokenizer();
    let bytes = prompt
        .tokens
        .iter()
        .flat_map(|&id| tokenizer.token_bytes(id))
        .copied();
    let text = String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned();
    Ok(Json(
        json!({"tokenize_response": placed(served, &prompt.tokens, &text), "templated_text": text}),
    ))
}
