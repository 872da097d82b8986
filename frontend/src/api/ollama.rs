//! Ollama's API: chats, texts, vectors, and what there is of models.
//!
//! Its clients may call a model `name:latest` that is called `name` here.

mod answer;

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use self::answer::{OllamaAnswer, Times, Told};
use super::conversation::{self, OutputRoom, Running};
use super::{App, Traced, completions, embeddings, unix_seconds};
use crate::body::UndeclaredBody;
use crate::calendar::rfc3339;
use crate::encoders::Vectors;
use crate::intake::Admitted;
use crate::logprobs::LogprobWriter;
use crate::random::random_id;
use crate::registry::{Model, Slot};
use crate::served::Served;
use crate::wire::completion::Echo;
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;
use crate::wire::ollama::request::{OllamaEmbed, OllamaModel, OllamaRequest, Task};
use crate::wire::ollama::response::{Embedded, OlderEmbedded};

/// The tag of a name without one.
const DEFAULT_TAG: &str = ":latest";

/// One of the two routes that generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Chat,
    Generate,
}

/// `POST /api/chat`.
pub async fn chat(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    UndeclaredBody(body): UndeclaredBody,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let request = body.parse(&app, OllamaRequest::parse_chat).await?;
    respond((&app, arrived), request, (&headers, exchange), Route::Chat).await
}

/// `POST /api/generate`.
pub async fn generate(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    UndeclaredBody(body): UndeclaredBody,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let request = body.parse(&app, OllamaRequest::parse_generate).await?;
    let answer = respond((&app, arrived), request, (&headers, exchange), Route::Generate).await;
    answer.map_err(|error| error.of_prompt_in("prompt"))
}

async fn respond(
    (app, arrived): (&Arc<App>, Instant),
    (mut request, admitted): (OllamaRequest, Admitted),
    (headers, exchange): (&HeaderMap, Traced),
    route: Route,
) -> Result<Response, ApiError> {
    let asked_for = Instant::now();
    let served = &app.models.find(named(app, request.model.as_deref())).await?;
    let times = Times {
        arrived,
        load: asked_for.elapsed(),
    };
    let context = served.engine.context();
    if let Some(asked) = request.num_ctx.filter(|asked| *asked > context) {
        let message = format!("'options.num_ctx' is {asked}, this model has a context of {context} tokens.");
        return Err(ApiError::invalid("options.num_ctx", message));
    }
    if request.asks_to_think && !served.encoder.knows_thinking() {
        let message = format!("'think' is not supported: '{}' does not think.", served.name);
        return Err(ApiError::invalid("think", message));
    }
    let keeps_context = route == Route::Generate && matches!(request.task, Task::Chat(_));
    let deadlines = Deadlines::read(headers)?;
    match &mut request.task {
        Task::Load => return Ok(loaded(served, route)),
        Task::Chat(chat) => chat.options.deadlines = deadlines,
        Task::Text(_, options) => options.deadlines = deadlines,
    }
    let mut running = begin((app, served), request.task, headers, admitted).await?;
    running.note((app, served), &random_id(), (headers, exchange))?;
    let logprobs = running.options.logprobs.clone();
    let tokenizer = Arc::clone(served.encoder.tokenizer());
    let told = Told {
        model: served.name.clone(),
        is_chat: route == Route::Chat,
        context: keeps_context.then(|| std::mem::take(&mut running.prompt)),
        times,
        logprobs: LogprobWriter::new(tokenizer, logprobs, 1),
    };
    running.answer(OllamaAnswer::new(told)).await
}

async fn begin(
    (app, served): (&App, &Served),
    task: Task,
    headers: &HeaderMap,
    admitted: Admitted,
) -> Result<Running, ApiError> {
    let (owner, room) = (app.owner(headers), OutputRoom::UpToContext);
    match task {
        Task::Chat(chat) => conversation::begin((app, served), (*chat, room), owner, admitted).await,
        Task::Text(prompt, options) => {
            let prompt = completions::prepare((app, served), &admitted, prompt, Echo::Output).await?;
            conversation::begin_text((app, served), (prompt, *options, room), owner, admitted).await
        }
        Task::Load => unreachable!("what has no prompt is not submitted"),
    }
}

/// What is said of a model that was to be loaded.
fn loaded(served: &Served, route: Route) -> Response {
    let mut answer = json!({"model": served.name, "created_at": rfc3339(unix_seconds())});
    match route {
        Route::Chat => answer["message"] = json!({"role": "assistant", "content": ""}),
        Route::Generate => answer["response"] = "".into(),
    }
    answer["done"] = true.into();
    answer["done_reason"] = "load".into();
    Json(answer).into_response()
}

/// The name of the model that a client means.
fn named<'a>(app: &App, asked: Option<&'a str>) -> Option<&'a str> {
    let asked = asked?;
    match asked.strip_suffix(DEFAULT_TAG) {
        Some(bare) if app.models.slot(asked).is_none() && app.models.slot(bare).is_some() => Some(bare),
        _ => Some(asked),
    }
}

/// `POST /api/embed`.
pub async fn embed(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    UndeclaredBody(body): UndeclaredBody,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (request, admitted) = body.parse(&app, OllamaEmbed::parse).await?;
    let found = vectors(&app, request, ("input", &headers, admitted)).await?;
    let (model, load, Vectors { vectors, n_tokens }) = found;
    let n_numbers = vectors.iter().map(Vec::len).sum();
    let write = move || {
        let answer = Embedded {
            model,
            embeddings: vectors,
            total_duration: nanoseconds(arrived.elapsed()),
            load_duration: load,
            prompt_eval_count: n_tokens,
        };
        serde_json::to_vec(&answer).expect("finite numbers and texts")
    };
    embeddings::written((&app, &headers), n_numbers, write).await
}

/// `POST /api/embeddings`.
pub async fn older_embeddings(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    UndeclaredBody(body): UndeclaredBody,
) -> Result<Json<OlderEmbedded>, ApiError> {
    let (request, admitted) = body.parse(&app, OllamaEmbed::parse_older).await?;
    let (_, _, mut found) = vectors(&app, request, ("prompt", &headers, admitted)).await?;
    let embedding = found.vectors.pop().expect("one for each text");
    Ok(Json(OlderEmbedded { embedding }))
}

/// The vectors of the texts in `field`, the model that made them, and for how long it was loaded.
async fn vectors(
    app: &App,
    request: OllamaEmbed,
    (field, headers, admitted): (&'static str, &HeaderMap, Admitted),
) -> Result<(String, u64, Vectors), ApiError> {
    let asked_for = Instant::now();
    let served = &app
        .models
        .find_encoder(named(app, request.model.as_deref()))
        .await?;
    let load = nanoseconds(asked_for.elapsed());
    let asked = embeddings::Asked {
        field,
        inputs: request.inputs,
        dimensions: request.dimensions,
        prompt_name: None,
        encoding: request.encoding,
    };
    let vectors = embeddings::encode((app, served), asked, (headers, admitted)).await?;
    Ok((served.name.clone(), load, vectors))
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `GET /api/tags`: what the server has, loaded or not.
pub async fn tags(State(app): State<Arc<App>>) -> Json<Value> {
    let slots = app.models.slots();
    let models = slots
        .iter()
        .map(|slot| json!({"name": slot.name(), "model": slot.name()}));
    Json(json!({"models": models.collect::<Vec<_>>()}))
}

/// `GET /api/ps`: what is loaded.
pub async fn ps(State(app): State<Arc<App>>) -> Json<Value> {
    let loaded = app.models.loaded();
    let models = loaded
        .iter()
        .map(|model| json!({"name": model.name(), "model": model.name(), "context_length": model.context()}));
    Json(json!({"models": models.collect::<Vec<_>>()}))
}

/// `GET /api/version`: this server's own.
pub async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// The model that a request is about.
async fn about(app: &App, body: UndeclaredBody) -> Result<(OllamaModel, Arc<Slot>), ApiError> {
    let (request, _admitted) = body.0.parse(app, OllamaModel::parse).await?;
    let name = named(app, Some(&request.model)).unwrap_or_default();
    let slot = app.models.known(name)?;
    Ok((request, slot))
}

/// `POST /api/show`: what a model can do. It is loaded for that.
pub async fn show(State(app): State<Arc<App>>, body: UndeclaredBody) -> Result<Json<Value>, ApiError> {
    let (_, slot) = about(&app, body).await?;
    let model = app.models.named(slot.name()).await?;
    let (capabilities, template) = match &model {
        Model::Generator(served) => {
            let mut words = vec!["completion", "tools"];
            words.extend(served.encoder.knows_thinking().then_some("thinking"));
            (words, served.encoder.template_source())
        }
        Model::Encoder(_) => (vec!["embedding"], None),
    };
    Ok(Json(json!({
        "template": template.unwrap_or_default(),
        "model_info": {"arbora.context_length": model.context()},
        "capabilities": capabilities,
    })))
}

/// `POST /api/pull`: of a model that the server has already; others are an operator's matter.
pub async fn pull(State(app): State<Arc<App>>, body: UndeclaredBody) -> Result<Response, ApiError> {
    let (request, _) = about(&app, body).await?;
    let answer = json!({"status": "success"});
    Ok(match request.is_stream {
        false => Json(answer).into_response(),
        true => {
            let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
            (kind, format!("{answer}\n")).into_response()
        }
    })
}
