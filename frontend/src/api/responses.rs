//! `POST /v1/responses` and what clients do with a response that is kept: `GET` and `DELETE
//! /v1/responses/{id}`, its `/cancel` and `/input_items`; and `POST /v1/responses/input_tokens`.

mod answer;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use self::answer::{Head, Keeper, ResponseAnswer};
use super::cache::parameters;
use super::conversation::{self, OutputRoom, Running};
use super::{App, Traced, unix_seconds};
use crate::body::{NoBody, RequestBody};
use crate::kept::{KeptResponse, KeptResponses, Stage, Turn};
use crate::pipeline::Dialect;
use crate::random::random_id;
use crate::stream::Explain;
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;
use crate::wire::options::Delivery;
use crate::wire::responses::request::{ResponsesJob, ResponsesRequest};
use crate::wire::responses::response::{Deleted, InputTokens, ItemList};

/// Items in a list where the client does not say.
const DEFAULT_ITEMS: usize = 20;
/// Most items in a list.
const MAX_ITEMS: usize = 100;

/// Reads a request of `owner`, and what was said before it.
fn read(
    kept: &KeptResponses,
    owner: Option<usize>,
    body: &[u8],
) -> Result<(ResponsesJob, Vec<Arc<Turn>>), ApiError> {
    let request = ResponsesRequest::parse(body)?;
    let past = match &request.previous {
        None => Vec::new(),
        Some(id) => {
            let previous = kept.find(owner, id, Instant::now());
            let previous = previous.ok_or_else(|| not_kept("previous_response_id", id))?;
            previous.turns.clone()
        }
    };
    let items = past.iter().flat_map(|turn| turn.items()).collect();
    let job = request.complete(items, |id| kept.item(owner, id))?;
    Ok((job, past))
}

fn not_kept(param: &str, id: &str) -> ApiError {
    ApiError::NotKept {
        param: param.to_owned(),
        what: "response",
        id: id.chars().take(100).collect(),
    }
}

/// Makes a response.
pub async fn create(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let owner = app.owner(&headers);
    let shared = Arc::clone(&app);
    let parse = move |body: &[u8]| read(&shared.responses, owner, body);
    let ((job, past), admitted) = body.parse(&app, parse).await?;
    let ResponsesJob {
        mut chat,
        input,
        told,
        ..
    } = job;
    chat.options.deadlines = Deadlines::read(&headers)?;
    if told.is_background && chat.options.delivery != Delivery::Whole {
        let message = "'background' is not available when 'stream' is true.";
        return Err(ApiError::invalid("background", message));
    }
    let served = &app.models.find(chat.options.model.as_deref()).await?;
    let sampling = chat.options.sampling.with_defaults(&served.sampling)?;
    let chat = (chat, OutputRoom::AsAsked);
    let running = conversation::begin((&app, served), chat, owner, admitted).await;
    let mut running = running.map_err(|error| error.of_prompt_in("input"))?;
    let is_background = told.is_background;
    let head = Head {
        id: format!("resp_{}", random_id()),
        model: served.name.clone(),
        created_at: unix_seconds(),
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        told,
        explain: Explain::of(&headers),
    };
    running.note((&app, served), &head.id, (&headers, exchange))?;
    let keeper = Keeper {
        app: Arc::clone(&app),
        owner,
        past,
        input,
        at_end: if is_background { Stage::Ends } else { Stage::Whole },
    };
    let answer = ResponseAnswer::new(head, keeper);
    match is_background {
        true => Ok(Json(in_background((&app, owner), running, answer)).into_response()),
        false => running.answer(answer).await,
    }
}

/// Goes on with a response that nobody waits for; returns it as it is now.
fn in_background((app, owner): (&App, Option<usize>), running: Running, mut answer: ResponseAnswer) -> Value {
    let begun = answer.body("in_progress", &json!({}));
    answer.keep(&begun, Stage::Begins);
    let id = answer.id().to_owned();
    let work = tokio::spawn(async move {
        let mut generation = running.generation;
        while let Some(piece) = generation.next().await {
            if let Err(error) = answer.collect(piece, &generation) {
                answer.fail(&error);
                return;
            }
        }
        answer.finish(&generation);
    });
    app.responses.set_work(owner, &id, work.abort_handle());
    begun
}

/// The number of tokens that a response's prompt would have.
pub async fn input_tokens(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Json<InputTokens>, ApiError> {
    let owner = app.owner(&headers);
    let shared = Arc::clone(&app);
    let parse = move |body: &[u8]| read(&shared.responses, owner, body);
    let ((job, _), admitted) = body.parse(&app, parse).await?;
    let served = &app.models.find(job.chat.options.model.as_deref()).await?;
    let prompt = conversation::prompt((&app, served), &admitted, job.chat.conversation).await;
    let prompt = prompt.map_err(|error| error.of_prompt_in("input"))?;
    Ok(Json(InputTokens {
        input_tokens: prompt.tokens.len(),
        object: "response.input_tokens",
    }))
}

/// What is asked about a response that is kept.
#[derive(Clone, Debug, Deserialize)]
pub struct Retrieval {
    stream: Option<bool>,
}

/// A response that is kept.
pub async fn retrieve(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
    query: Result<Query<Retrieval>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = parameters(query)?;
    if asked.stream == Some(true) {
        let message = "'stream' is not supported for a response that is kept.";
        return Err(ApiError::invalid("stream", message));
    }
    Ok(shown(found((&app, &headers), &id)?.as_ref()))
}

fn found((app, headers): (&App, &HeaderMap), id: &str) -> Result<Arc<KeptResponse>, ApiError> {
    let response = app.responses.find(app.owner(headers), id, Instant::now());
    response.ok_or_else(|| not_kept("id", id))
}

fn shown(response: &KeptResponse) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        response.body.clone(),
    )
        .into_response()
}

/// Forgets a response.
pub async fn delete(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, ApiError> {
    found((&app, &headers), &id)?;
    app.responses.forget(app.owner(&headers), &id);
    Ok(Json(Deleted {
        id,
        object: "response",
        deleted: true,
    }))
}

/// Ends the work on a response that nobody waits for.
pub async fn cancel(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
    _: NoBody,
) -> Result<Response, ApiError> {
    let read = |body: &str| serde_json::from_str::<Value>(body).expect("it was written as JSON");
    let response = found((&app, &headers), &id)?;
    if read(&response.body)["background"] != true {
        let message = "The response was not made in the background, so it cannot be cancelled.";
        return Err(ApiError::invalid("id", message));
    }
    app.responses.stop(app.owner(&headers), &id, |body| {
        let mut body = read(body);
        body["status"] = "cancelled".into();
        body.to_string()
    });
    Ok(shown(found((&app, &headers), &id)?.as_ref()))
}

/// Which items of a response are listed.
#[derive(Clone, Debug, Deserialize)]
pub struct Listing {
    after: Option<String>,
    limit: Option<usize>,
    order: Option<Order>,
}

/// In which order items are listed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

/// What a response answers: the items of those before it, and its client's.
pub async fn input_items(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
    query: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<ItemList>, ApiError> {
    let asked = parameters(query)?;
    let limit = asked.limit.unwrap_or(DEFAULT_ITEMS);
    if !(1..=MAX_ITEMS).contains(&limit) {
        let message = format!("'limit' must be in [1, {MAX_ITEMS}], got {limit}.");
        return Err(ApiError::invalid("limit", message));
    }
    let response = found((&app, &headers), &id)?;
    let (last, before) = response.turns.split_last().expect("a response has a turn");
    let mut items: Vec<Value> = before
        .iter()
        .flat_map(|turn| turn.items())
        .chain(last.input())
        .collect();
    if asked.order != Some(Order::Asc) {
        items.reverse();
    }
    if let Some(after) = &asked.after {
        let place = items.iter().position(|item| item["id"] == **after);
        let place = place.ok_or_else(|| ApiError::NotKept {
            param: "after".to_owned(),
            what: "item",
            id: after.chars().take(100).collect(),
        })?;
        items.drain(..=place);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id_of = |item: Option<&Value>| item.map(|item| item["id"].clone());
    Ok(Json(ItemList {
        object: "list",
        first_id: id_of(items.first()),
        last_id: id_of(items.last()),
        data: items,
        has_more,
    }))
}
