//! The HTTP routes, and the checks before all of them.
//!
//! ```text
//! request id, span, count, log, shape of errors  ->  one host  ->  CORS  ->  panic becomes a 500
//!     ->  place  ->  length  ->  host  ->  key  ->  handler
//!               ->  the page, which holds no data
//! ```

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use futures_util::FutureExt;

use crate::absent;
use crate::api::{
    App, admin, cache, chat, completions, embeddings, generate, messages, models, ollama, render, rerank,
    responses, tgi, tokens, worker,
};
use crate::auth::{self, require_key, require_metrics_key, require_operator};
use crate::hosts::{require_host, require_named_host};
use crate::openapi;
use crate::otlp::exchange::TracedRoute;
use crate::page;
use crate::places::require_seat;
use crate::random::random_id;
use crate::wire::anthropic;
use crate::wire::error::{self, ApiError};
use crate::wire::tgi::response::error as tgi_error;

/// Longer ids of clients are replaced.
const MAX_REQUEST_ID: usize = 128;
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// What a client asks for itself, and what it may know of the server.
    Client,
    /// What concerns all clients: it tells of the load they cause together, or changes what they share.
    Operator,
    /// Who collects metrics.
    Metrics,
}

/// All that routes differ in.
struct Route {
    /// As axum spells it: `{*name}` stands for the rest of the path.
    path: &'static str,
    handlers: fn() -> MethodRouter<Arc<App>>,
    access: Access,
    /// `gen_ai.operation.name` of its traces, where it generates.
    operation: Option<&'static str>,
    /// In whose shape its errors are.
    errors: ErrorShape,
}

/// Whose clients an error is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorShape {
    OpenAi,
    Anthropic,
    /// A text alone: Ollama's and KServe's.
    Plain,
    /// A text and a kind: TGI's.
    Tgi,
}

impl Route {
    const fn new(path: &'static str, handlers: fn() -> MethodRouter<Arc<App>>) -> Self {
        Route {
            path,
            handlers,
            access: Access::Client,
            operation: None,
            errors: ErrorShape::OpenAi,
        }
    }

    const fn generates(mut self, operation: &'static str) -> Self {
        self.operation = Some(operation);
        self
    }

    const fn of_anthropic(mut self) -> Self {
        self.errors = ErrorShape::Anthropic;
        self
    }

    const fn with_plain_errors(mut self) -> Self {
        self.errors = ErrorShape::Plain;
        self
    }

    const fn of_tgi(mut self) -> Self {
        self.errors = ErrorShape::Tgi;
        self
    }

    const fn only(mut self, access: Access) -> Self {
        self.access = access;
        self
    }
}

/// Every route of the server, but for the page's: that at `/` is a POST, and the page a GET.
const ROUTES: &[Route] = &[
    Route::new("/v1/chat/completions", || post(chat::chat_completions)).generates("chat"),
    Route::new("/v1/chat/completions/render", || post(render::chat_completions)),
    Route::new("/v1/completions", || post(completions::completions)).generates("text_completion"),
    Route::new("/v1/completions/render", || post(render::completions)),
    Route::new("/v1/messages", || post(messages::messages))
        .generates("chat")
        .of_anthropic(),
    Route::new("/v1/messages/count_tokens", || post(messages::count_tokens)).of_anthropic(),
    Route::new("/v1/responses", || post(responses::create)).generates("chat"),
    Route::new("/v1/responses/input_tokens", || post(responses::input_tokens)),
    Route::new("/v1/responses/{id}", || {
        get(responses::retrieve).delete(responses::delete)
    }),
    Route::new("/v1/responses/{id}/cancel", || post(responses::cancel)),
    Route::new("/v1/responses/{id}/input_items", || get(responses::input_items)),
    Route::new("/api/chat", || post(ollama::chat))
        .generates("chat")
        .with_plain_errors(),
    Route::new("/api/generate", || post(ollama::generate))
        .generates("text_completion")
        .with_plain_errors(),
    Route::new("/api/embed", || post(ollama::embed)).with_plain_errors(),
    Route::new("/api/embeddings", || post(ollama::older_embeddings)).with_plain_errors(),
    Route::new("/api/tags", || get(ollama::tags)).with_plain_errors(),
    Route::new("/api/ps", || get(ollama::ps)).with_plain_errors(),
    Route::new("/api/show", || post(ollama::show)).with_plain_errors(),
    Route::new("/api/pull", || post(ollama::pull)).with_plain_errors(),
    Route::new("/api/version", || get(ollama::version)).with_plain_errors(),
    Route::new("/v1/embeddings", || post(embeddings::embeddings)),
    Route::new("/v1/rerank", || post(rerank::rerank)),
    Route::new("/v2/rerank", || post(rerank::rerank)),
    Route::new("/rerank", || post(rerank::rerank)),
    Route::new("/v1/score", || post(rerank::score)),
    Route::new("/score", || post(rerank::score)),
    Route::new("/v1/models", || get(models::list)),
    Route::new("/v1/models/{*id}", || get(models::one)),
    Route::new("/models/load", || post(models::load)).only(Access::Operator),
    Route::new("/models/unload", || post(models::unload)).only(Access::Operator),
    Route::new("/tokenize", || post(tokens::tokenize)),
    Route::new("/detokenize", || post(tokens::detokenize)),
    Route::new("/tokenizer_info", || get(tokens::tokenizer_info)),
    Route::new("/generate", || post(generate::generate)).generates("text_completion"),
    Route::new("/", || post(tgi::root))
        .generates("text_completion")
        .of_tgi(),
    Route::new("/generate_stream", || post(tgi::stream))
        .generates("text_completion")
        .of_tgi(),
    Route::new("/info", || get(tgi::info)).of_tgi(),
    Route::new("/chat_tokenize", || post(tgi::chat_tokenize)).of_tgi(),
    Route::new("/model_info", || get(worker::model_info)),
    Route::new("/get_model_info", || get(worker::model_info)),
    Route::new("/health", || get(admin::health)),
    Route::new("/health_generate", || get(admin::health_generate)),
    Route::new("/ready", || get(admin::ready)),
    Route::new("/version", || get(admin::version)),
    Route::new("/cache/explain", || {
        get(cache::explain).post(cache::explain_prompt)
    }),
    Route::new("/openapi.json", || get(openapi::document)),
    Route::new("/server_info", || get(worker::server_info)).only(Access::Operator),
    Route::new("/get_server_info", || get(worker::server_info)).only(Access::Operator),
    Route::new("/get_load", || get(worker::get_load)).only(Access::Operator),
    Route::new("/v1/loads", || get(worker::loads)).only(Access::Operator),
    Route::new("/loads", || get(worker::loads)).only(Access::Operator),
    Route::new("/load", || get(worker::server_load)).only(Access::Operator),
    Route::new("/flush_cache", || {
        get(admin::flush_cache).post(admin::flush_cache)
    })
    .only(Access::Operator),
    Route::new("/cache/tree", || get(cache::tree)).only(Access::Operator),
    Route::new("/metrics", || get(admin::prometheus)).only(Access::Metrics),
];

/// All routes of the server.
pub fn router(app: Arc<App>) -> Router {
    let no_method = async || ApiError::MethodNotAllowed;
    let of = |is_wanted: &dyn Fn(&Route) -> bool| {
        let all = ROUTES.iter().filter(|route| is_wanted(route));
        all.fold(Router::new(), |router, route| {
            router.route(route.path, (route.handlers)())
        })
    };
    let routes = |access| of(&|route| route.access == access && route.path != page::PATH);
    let beside_page = of(&|route| route.path == page::PATH);
    let beside_page = beside_page.layer(from_fn_with_state(Arc::clone(&app), require_key));
    let operators = routes(Access::Operator).method_not_allowed_fallback(no_method);
    let metrics = routes(Access::Metrics).method_not_allowed_fallback(no_method);
    let router = routes(Access::Client)
        .fallback(async |uri: Uri| absent::error(uri.path()))
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(&app), require_key))
        .merge(operators.layer(from_fn_with_state(Arc::clone(&app), require_operator)))
        .merge(metrics.layer(from_fn_with_state(Arc::clone(&app), require_metrics_key)))
        .merge(
            page::routes()
                .merge(beside_page)
                .method_not_allowed_fallback(no_method),
        )
        .layer(from_fn_with_state(Arc::clone(&app), require_host))
        .layer(from_fn_with_state(Arc::clone(&app), require_length))
        .layer(from_fn(require_seat))
        .layer(from_fn(contain));
    let router = match app.origins.layer() {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn(require_named_host))
        .layer(from_fn_with_state(Arc::clone(&app), observe))
        .with_state(app)
}

/// The paths of all routes, as OpenAPI spells them.
pub fn paths() -> Vec<String> {
    let routes = ROUTES.iter();
    routes.map(|route| route.path.replace("{*", "{")).collect()
}

/// The place in the table of the route that `path` is for. Routes without parameters stand before those that
/// would take the same path.
fn place_of(path: &str) -> Option<usize> {
    ROUTES.iter().position(|route| is_for(route.path, path))
}

/// Whether `path` is what `pattern` stands for, in which `{name}` is a part and `{*name}` all that is left.
fn is_for(pattern: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    for expected in pattern.split('/') {
        match parts.next() {
            Some(part) if expected.starts_with("{*") => return !part.is_empty(),
            Some(part) if expected.starts_with('{') && !part.is_empty() => {}
            Some(part) if part == expected => {}
            _ => return false,
        }
    }
    parts.next().is_none()
}

/// The traced route that a request is for: one that generates.
fn traced(route: Option<usize>, request: &Request) -> Option<TracedRoute> {
    let route = &ROUTES[route?];
    let operation = route.operation.filter(|_| request.method() == Method::POST)?;
    Some(TracedRoute {
        path: route.path,
        operation,
    })
}

/// Keeps a panic to its exchange: it costs its client a 500 and nobody else anything.
async fn contain(request: Request, next: Next) -> Response {
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    handled.unwrap_or_else(|_| ApiError::Failed.into_response())
}

/// Refuses a body by the length that its head declares, before any of it is read or asked for
/// (`Expect: 100-continue`). What has no length is counted as it comes ([`crate::body`]).
async fn require_length(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    // hyper has read the header, too, and refused what is no number or several.
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    match declared {
        Some(length) if length > app.intake.body_limit() as u64 => {
            let limit = app.intake.body_limit();
            ApiError::BodyTooLarge { limit }.into_response()
        }
        _ => next.run(request).await,
    }
}

/// In whose shape the errors of a request's answer are: its route's, and Anthropic's where a client of theirs
/// asks for anything.
fn error_shape(route: Option<usize>, request: &Request) -> ErrorShape {
    let path = request.uri().path();
    match route.map(|place| ROUTES[place].errors) {
        Some(ErrorShape::OpenAi) | None if anthropic::is_spoken(request.headers()) => ErrorShape::Anthropic,
        Some(shape) => shape,
        None if path.starts_with("/api/") => ErrorShape::Plain,
        None => ErrorShape::OpenAi,
    }
}

/// Names, counts, logs and traces an exchange.
async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let is_fit = |id: &&HeaderValue| id.len() <= MAX_REQUEST_ID && id.to_str().is_ok() && !id.is_empty();
    let id = match request.headers().get(&REQUEST_ID).filter(is_fit) {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&random_id()).expect("hexadecimal digits"),
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // What is no POST there is for the page.
    let route = place_of(&path).filter(|_| path != page::PATH || method == Method::POST);
    let span = app.traces.as_ref().zip(traced(route, &request));
    let span = span.and_then(|(traces, route)| traces.begin(route, &request, &id));
    if let Some(span) = &span {
        request.extensions_mut().insert(span.exchange());
    }
    request.headers_mut().insert(REQUEST_ID, id.clone());
    auth::accept_plain_key(request.headers_mut());
    let shape = error_shape(route, &request);
    let mut response = next.run(request).await;
    response = match shape {
        ErrorShape::OpenAi => response,
        ErrorShape::Anthropic => anthropic::error::retold(response, &id),
        ErrorShape::Plain => error::retold(response, error::plain),
        ErrorShape::Tgi => error::retold(response, tgi_error),
    };
    let status = response.status().as_u16();
    app.http.count(route, status);
    tracing::debug!(%method, path, status, id = id.to_str().unwrap_or_default(), "answered");
    response.headers_mut().insert(REQUEST_ID, id);
    match span {
        Some(span) => span.follow(response),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_for_the_route_that_axum_takes() {
        let of = |path| place_of(path).map(|place| ROUTES[place].path);
        for (path, expected) in [
            ("/v1/models", Some("/v1/models")),
            ("/v1/models/a", Some("/v1/models/{*id}")),
            ("/v1/models/a/b", Some("/v1/models/{*id}")),
            ("/v1/models/", None),
            ("/v1/responses/input_tokens", Some("/v1/responses/input_tokens")),
            ("/v1/responses/resp_1", Some("/v1/responses/{id}")),
            ("/v1/responses/resp_1/cancel", Some("/v1/responses/{id}/cancel")),
            ("/v1/responses/resp_1/none", None),
            ("/", Some("/")),
            ("/page.js", None),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
    }
}
