//! Inspection of the prefix cache, and why a request found there what it found. Behind the API key like
//! everything that tells of requests.
//!
//! `GET /cache/tree?limit=N`, N in [1, 2000], 300 by default: the nodes that would be evicted last, parents
//! before their children.
//!
//! ```text
//! {"nodes": [{"id", "parent": id | null,            a node's name until it is gone; null: a namespace's root
//!             "namespace": "shared" | "salted-…",   the salt itself is never told
//!             "depth", "n_tokens", "n_pages",       tokens above it; what it covers
//!             "n_locks",                            running requests that use it or something below it
//!             "age",                                cache lookups since its last use: 0 is in use or newest
//!             "rank",                               its eviction list: uses with lfu, 1 is protected with slru
//!             "n_children": n | null,               null: too many to count
//!             "text": {"first", "last"} | null}],   null: see below
//!  "left_out": {"nodes", "pages"},                  what N was too small for
//!  "pages": {"total", "free", "cached", "evictable", "owned", "page_size"},
//!  "engine": {"waiting", "running", "requests", "prompt_tokens", "cached_tokens", "generated_tokens",
//!             "evicted_pages", "steps"},            gauges, then totals since the start
//!  "model"}
//! ```
//!
//! `GET /cache/explain?id=ID`, the `id` of an answer or its `x-request-id`; `POST /cache/explain` with the
//! body of a chat or a text completion that is not run:
//!
//! ```text
//! {"id", "request_id", "created",                   with an id only
//!  "prompts": [{"prompt_tokens", "cached_tokens", "copied_tokens", "computed_tokens",
//!               "position",                         first token at which prompt and tree differ
//!               "cause": "whole" | "diverged" | "ends" | "empty" | "evicted" | "flushed" | "no_room" |
//!                        "logprobs",
//!               "message",                          the cause in a sentence
//!               "before", "after", "instead": … | null,   text around the position; what the tree holds there
//!               "namespace", "node": id | null, "donor": id | null,
//!               "left": {"tokens", "seconds_ago"} | null,   up to where it was cached, and when it left
//!               "seconds_ago"} | null]}             null: it did not start yet, or is forgotten
//! ```
//!
//! Without `id`, the latest 20 in short: `{"data": [{"id", "request_id", "created", "prompts": [{…}]}]}`.
//!
//! Who sees what: an explanation is for the key that asked, and for those without keys for whoever knows the
//! id. The tree is one for all keys, and for operators (`auth.rs`): with more than one key, it is shown
//! without text and without telling salts apart, and so is text with a `cache_salt`.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arbora_runtime::NodeView;
use arbora_runtime::explain::{Cause, Explanation, Leaving, RECENT_REQUESTS};
use arbora_runtime::inspect::{CacheView, InspectError, Inspected, Inspection, MAX_NODES};
use arbora_runtime::request::{Namespace, Request, RequestId, SubmitError};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{App, completions, conversation, unix_seconds};
use crate::body::RequestBody;
use crate::route::REQUEST_ID;
use crate::served::Served;
use crate::wire::chat::ChatRequest;
use crate::wire::completion::CompletionRequest;
use crate::wire::error::ApiError;

/// Nodes of a picture where the client does not say.
const DEFAULT_NODES: usize = 300;
/// Answers in the list of the latest.
const LISTED: usize = 20;
/// A picture this young serves the next who asks: any number of viewers costs the engine what one does.
const PICTURE_LIFETIME: Duration = Duration::from_millis(200);
/// A step takes well under this; an engine that does not answer by then is stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between tries, where one who asked went away without the answer.
const RETRY: Duration = Duration::from_millis(5);

/// What the server keeps to answer about its cache.
#[derive(Debug, Default)]
pub struct CacheBook {
    answers: Mutex<VecDeque<Answered>>,
    /// The latest picture. Held while the engine is asked: one question at a time.
    picture: tokio::sync::Mutex<Option<Picture>>,
    /// Makes labels of salts that tell nothing about them.
    label_key: RandomState,
}

/// An answer that was begun.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) id: String,
    /// The `x-request-id` of its exchange.
    pub(super) request_id: Option<String>,
    /// Whose it is.
    pub(super) owner: Option<usize>,
    /// When it was begun, in seconds since 1970.
    pub(super) created: u64,
    /// The model that answers.
    pub(super) model: String,
    /// The first completion of each prompt.
    pub(super) requests: Vec<RequestId>,
}

#[derive(Debug)]
struct Picture {
    taken: Instant,
    model: String,
    limit: usize,
    json: Bytes,
}

impl CacheBook {
    /// Remembers an answer; the oldest is forgotten when the engine forgets its explanation.
    pub(super) fn note(&self, answered: Answered) {
        let mut answers = self.answers();
        if answers.len() == RECENT_REQUESTS {
            answers.pop_front();
        }
        answers.push_back(answered);
    }

    fn find(&self, id: &str, owner: Option<usize>) -> Option<Answered> {
        let is_it = |other: &&Answered| other.id == id || other.request_id.as_deref() == Some(id);
        let answers = self.answers();
        let mut newest_first = answers.iter().rev().filter(|other| other.owner == owner);
        newest_first.find(is_it).cloned()
    }

    fn latest(&self, owner: Option<usize>) -> Vec<Answered> {
        let answers = self.answers();
        let newest_first = answers.iter().rev().filter(|other| other.owner == owner);
        newest_first.take(LISTED).cloned().collect()
    }

    fn answers(&self) -> MutexGuard<'_, VecDeque<Answered>> {
        // A list of answers is whole between any two statements.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name for a part of the cache.
    fn label(&self, namespace: &Namespace) -> String {
        if *namespace == Namespace::default() {
            return "shared".to_owned();
        }
        let name = self.label_key.hash_one(namespace);
        format!("{SALTED}-{:08x}", name >> 32)
    }
}

/// What the parts of the cache are called that are not for everybody.
const SALTED: &str = "salted";

/// Parameters of `GET /cache/tree`.
#[derive(Debug, Deserialize)]
pub struct TreeQuery {
    limit: Option<String>,
    model: Option<String>,
}

/// Parameters of `GET /cache/explain`.
#[derive(Debug, Deserialize)]
pub struct ExplainQuery {
    id: Option<String>,
}

/// `GET /cache/tree`.
pub async fn tree(
    State(app): State<Arc<App>>,
    query: Result<Query<TreeQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let query = parameters(query)?;
    let limit = match query.limit.as_deref() {
        None => DEFAULT_NODES,
        Some(text) => limit(text)?,
    };
    let served = &app.models.find(query.model.as_deref()).await?;
    let mut picture = app.cache.picture.lock().await;
    let is_same = |old: &Picture| old.limit == limit && old.model == served.name;
    let is_fresh = |old: &&Picture| is_same(old) && old.taken.elapsed() < PICTURE_LIFETIME;
    let json = match picture.as_ref().filter(is_fresh) {
        Some(fresh) => fresh.json.clone(),
        None => {
            let Inspected::Tree(view) = ask(served, &Inspection::Tree { max_nodes: limit }).await? else {
                return Err(ApiError::Failed);
            };
            let json = Bytes::from(tree_json((&app, served), &view).to_string());
            *picture = Some(Picture {
                taken: Instant::now(),
                model: served.name.clone(),
                limit,
                json: json.clone(),
            });
            json
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// `GET /cache/explain`.
pub async fn explain(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let owner = app.owner(&headers);
    let Some(id) = parameters(query)?.id else {
        return latest(&app, owner).await;
    };
    let Some(answered) = app.cache.find(&id, owner) else {
        return Err(ApiError::RequestNotFound {
            n_kept: RECENT_REQUESTS,
        });
    };
    Ok(Json(explained(&app, &answered).await?))
}

/// The body of a completion that is not run.
enum ExplainedPrompt {
    Chat(Box<ChatRequest>),
    Text(Box<CompletionRequest>),
}

impl ExplainedPrompt {
    /// A body with messages is a chat's.
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Kind {
            messages: Option<IgnoredAny>,
        }
        let is_chat = serde_json::from_slice::<Kind>(body).is_ok_and(|kind| kind.messages.is_some());
        match is_chat {
            true => ChatRequest::parse(body).map(|chat| ExplainedPrompt::Chat(Box::new(chat))),
            false => CompletionRequest::parse(body).map(|text| ExplainedPrompt::Text(Box::new(text))),
        }
    }
}

/// `POST /cache/explain`.
pub async fn explain_prompt(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: RequestBody,
) -> Result<Json<Value>, ApiError> {
    let (request, admitted) = body.parse(&app, ExplainedPrompt::parse).await?;
    let (is_chat, options) = match &request {
        ExplainedPrompt::Chat(chat) => (true, &chat.options),
        ExplainedPrompt::Text(text) => (false, &text.options),
    };
    let served = &app.models.find(options.model.as_deref()).await?;
    let salt = options.salt;
    let tokens = match request {
        ExplainedPrompt::Chat(chat) => {
            conversation::prompt((&app, served), &admitted, chat.conversation)
                .await?
                .tokens
        }
        ExplainedPrompt::Text(text) => completions::only_prompt((&app, served), &admitted, *text).await?,
    };
    drop(admitted);
    // Refused as the engine would refuse it, were it asked for no output.
    let (nobody, _) = mpsc::channel(1);
    let request = Request::new(served.engine.next_id(), tokens, 0, Instant::now(), nobody);
    let in_field = |error: SubmitError| match is_chat {
        true => ApiError::from(error).of_prompt_in("messages"),
        false => error.into(),
    };
    served.engine.check(&request).map_err(in_field)?;
    let tokens = request.prompt;
    let namespace = app.namespace(app.owner(&headers), salt);
    let _one_at_a_time = app.cache.picture.lock().await;
    match ask(served, &Inspection::Prompt { namespace, tokens }).await? {
        Inspected::Prompt(found) => Ok(Json(
            json!({"prompts": [explanation_json((&app, served), &found)]}),
        )),
        _ => Err(ApiError::Failed),
    }
}

async fn latest(app: &App, owner: Option<usize>) -> Result<Json<Value>, ApiError> {
    let answers = app.cache.latest(owner);
    let mut data = Vec::with_capacity(answers.len());
    for answered in &answers {
        // A question each, because a request of many prompts may fill one.
        data.push(explained(app, answered).await?);
    }
    Ok(Json(json!({"object": "list", "data": data})))
}

/// What `answered` found in the cache.
async fn explained(app: &App, answered: &Answered) -> Result<Value, ApiError> {
    let served = &app.models.find(Some(&answered.model)).await?;
    let _one_at_a_time = app.cache.picture.lock().await;
    let requests = answered.requests.clone();
    let Inspected::Requests(found) = ask(served, &Inspection::Requests(requests)).await? else {
        return Err(ApiError::Failed);
    };
    let told = |found: &Option<Explanation>| {
        let found = found.as_ref();
        found.map_or(Value::Null, |found| explanation_json((app, served), found))
    };
    Ok(json!({
        "id": answered.id,
        "request_id": answered.request_id,
        "created": answered.created,
        "prompts": found.iter().map(told).collect::<Vec<Value>>(),
    }))
}

/// Asks the engine of a model. Whoever calls holds the lock on the picture.
async fn ask(served: &Served, inspection: &Inspection) -> Result<Inspected, ApiError> {
    let asked = async {
        loop {
            let (reply, mut answers) = mpsc::channel(1);
            match served.engine.inspect(inspection.clone(), reply) {
                Ok(()) => return answers.recv().await.ok_or(ApiError::ShuttingDown),
                // Somebody asked and went away: the engine has yet to see it.
                Err(InspectError::Busy) => tokio::time::sleep(RETRY).await,
                Err(InspectError::Over) => return Err(ApiError::ShuttingDown),
                Err(InspectError::OutOfRange { .. }) => return Err(ApiError::Failed),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or(Err(ApiError::QueueTimeout))
}

pub(super) fn parameters<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    query
        .map(|Query(found)| found)
        .map_err(|error| ApiError::Invalid {
            param: None,
            message: format!("The URL's parameters cannot be read: {error}."),
        })
}

fn limit(text: &str) -> Result<usize, ApiError> {
    let within = |limit: &usize| (1..=MAX_NODES).contains(limit);
    text.parse().ok().filter(within).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        ApiError::invalid(
            "limit",
            format!("'limit' must be in [1, {MAX_NODES}], got '{shown}'."),
        )
    })
}

fn tree_json((app, served): (&App, &Served), view: &CacheView) -> Value {
    let metrics = served.engine.metrics();
    let now = metrics.gauges();
    let nodes: Vec<Value> = view
        .nodes
        .iter()
        .map(|node| node_json((app, served), node))
        .collect();
    json!({
        "nodes": nodes,
        "left_out": {"nodes": view.n_nodes_left_out, "pages": view.n_pages_left_out},
        "pages": {
            "total": view.n_total,
            "free": view.n_free,
            "cached": view.n_cached,
            "evictable": view.n_evictable,
            "owned": view.n_total - view.n_free - view.n_cached,
            "page_size": view.page_size,
        },
        "engine": {
            "waiting": now.waiting,
            "running": now.running,
            "requests": metrics.requests_accepted.value(),
            "prompt_tokens": metrics.prompt_tokens.value(),
            "cached_tokens": metrics.cached_tokens.value(),
            "generated_tokens": metrics.generated_tokens.value(),
            "evicted_pages": metrics.evicted_pages.value(),
            "steps": metrics.steps.value(),
        },
        "model": served.name,
    })
}

fn node_json((app, served): (&App, &Served), node: &NodeView) -> Value {
    let tokenizer = served.encoder.tokenizer();
    let is_shared = node.namespace == Namespace::default() && !app.is_shared_by_keys();
    let text = is_shared.then(|| {
        let (first, last) = (tokenizer.decode(&node.first), tokenizer.decode(&node.last));
        json!({"first": first, "last": last})
    });
    let namespace = match app.cache.label(&node.namespace) {
        // Whoever guesses a salt would know it by its label.
        label if label.starts_with(SALTED) && app.is_shared_by_keys() => SALTED.to_owned(),
        label => label,
    };
    json!({
        "id": node.id,
        "parent": node.parent,
        "namespace": namespace,
        "depth": node.depth,
        "n_tokens": node.n_tokens,
        "n_pages": node.n_pages,
        "n_locks": node.n_locks,
        "age": node.age,
        "rank": node.rank,
        "n_children": node.n_children,
        "text": text,
    })
}

fn explanation_json((app, served): (&App, &Served), found: &Explanation) -> Value {
    let tokenizer = served.encoder.tokenizer();
    let cached = found.n_shared + found.n_copied;
    let instead =
        (!found.instead.is_empty() && !app.is_shared_by_keys()).then(|| tokenizer.decode(&found.instead));
    let seconds_ago = |at: Instant| (at.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let left = match found.cause {
        Cause::Left { n_tokens, at, .. } => json!({"tokens": n_tokens, "seconds_ago": seconds_ago(at)}),
        _ => Value::Null,
    };
    json!({
        "prompt_tokens": found.n_prompt,
        "cached_tokens": cached,
        "copied_tokens": found.n_copied,
        "computed_tokens": found.n_prompt - cached,
        "position": found.position,
        "cause": cause_name(&found.cause),
        "message": message(found),
        "before": tokenizer.decode(&found.before),
        "after": tokenizer.decode(&found.after),
        "instead": instead,
        "namespace": app.cache.label(&found.namespace),
        "node": found.node,
        "donor": found.donor,
        "left": left,
        "seconds_ago": seconds_ago(found.at),
    })
}

fn cause_name(cause: &Cause) -> &'static str {
    match cause {
        Cause::Whole => "whole",
        Cause::Logprobs => "logprobs",
        Cause::NoRoom => "no_room",
        Cause::Left {
            how: Leaving::Evicted,
            ..
        } => "evicted",
        Cause::Left {
            how: Leaving::Flushed,
            ..
        } => "flushed",
        Cause::Diverged => "diverged",
        Cause::Ends => "ends",
        Cause::Empty => "empty",
    }
}

fn message(found: &Explanation) -> String {
    let position = found.position;
    match found.cause {
        Cause::Whole => {
            "All that can be was cached: the last token of a prompt is always computed.".to_owned()
        }
        Cause::Logprobs => {
            "The request wants its prompt's log-probabilities, so all of it was computed.".to_owned()
        }
        Cause::NoRoom => format!(
            "The first {position} tokens agree with what is cached, but there was no free page to copy the \
             last {} of them to.",
            position - found.n_shared - found.n_copied
        ),
        Cause::Left { n_tokens, how, .. } => {
            let how = match how {
                Leaving::Evicted => "evicted to make room for others",
                Leaving::Flushed => "dropped when the cache was emptied",
            };
            format!("The first {n_tokens} tokens were cached before; those after {position} were {how}.")
        }
        Cause::Diverged if position == 0 => "What is cached begins differently.".to_owned(),
        Cause::Diverged => {
            format!("The first {position} tokens agree with what is cached, which then goes on differently.")
        }
        Cause::Ends => format!("The first {position} tokens are all that was cached of it."),
        Cause::Empty => "Nothing was cached in this namespace.".to_owned(),
    }
}

/// Remembers an answer that is about to begin.
pub(super) fn note((app, served): (&App, &Served), id: &str, headers: &HeaderMap, requests: Vec<RequestId>) {
    let request_id = headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok());
    app.cache.note(Answered {
        id: id.to_owned(),
        request_id: request_id.map(str::to_owned),
        owner: app.owner(headers),
        created: unix_seconds(),
        model: served.name.clone(),
        requests,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded_and_for_their_owner_alone() {
        let book = CacheBook::default();
        let answered = |n: usize| Answered {
            id: format!("cmpl-{n}"),
            request_id: Some("same".to_owned()),
            owner: Some(n % 2),
            created: 0,
            model: "m".to_owned(),
            requests: vec![RequestId(n as u64)],
        };
        (0..=RECENT_REQUESTS).for_each(|n| book.note(answered(n)));
        assert!(book.find("cmpl-0", Some(0)).is_none(), "the oldest is forgotten");
        assert!(book.find("cmpl-2", Some(0)).is_some());
        assert!(book.find("cmpl-2", Some(1)).is_none(), "another key's");
        let newest = book.find("same", Some(1)).expect("by the id of its exchange");
        assert_eq!(newest.id, format!("cmpl-{}", RECENT_REQUESTS - 1));
        assert_eq!(book.latest(Some(0)).len(), LISTED);
    }

    #[test]
    fn labels_tell_namespaces_apart_and_nothing_else() {
        let book = CacheBook::default();
        let salted = |byte| Namespace {
            salt: [byte; 16],
            ..Namespace::default()
        };
        assert_eq!(book.label(&Namespace::default()), "shared");
        assert_eq!(book.label(&salted(1)), book.label(&salted(1)));
        assert_ne!(book.label(&salted(1)), book.label(&salted(2)));
        assert_ne!(
            book.label(&salted(1)),
            CacheBook::default().label(&salted(1)),
            "another process, another label"
        );
    }

    #[test]
    fn a_limit_is_a_number_in_range() {
        assert_eq!(limit("2000"), Ok(2000));
        for bad in ["0", "2001", "-1", "many", "", "1e3"] {
            let error = limit(bad).expect_err(bad).to_string();
            assert!(error.contains("[1, 2000]") && error.contains(bad), "{error}");
        }
    }
}
