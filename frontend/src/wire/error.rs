//! Every error the API can answer with. HTTP status, type and code are decided here and nowhere else.

use std::time::Duration;

use arbora_runtime::fair_limit::NoRoom;
use arbora_runtime::request::{FinishReason, RequestError, SubmitError};
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::workers::WorkError;

/// An error as clients see it. Texts come from this closed set: nothing internal leaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// A field is wrong, or the request as a whole where `param` is absent.
    #[error("{message}")]
    Invalid {
        /// The field, as a path like `messages[0].content`.
        param: Option<String>,
        /// What is wrong with it.
        message: String,
    },
    /// Prompt and output do not fit.
    #[error("{message}")]
    ContextExceeded {
        /// The field that holds the prompt.
        param: String,
        /// The numbers, in words by which clients know this error.
        message: String,
    },
    /// No or a wrong API key.
    #[error("Incorrect or missing API key: send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'.")]
    Unauthorized,
    /// A client's key where an operator's is asked for.
    #[error(
        "This concerns all clients of the server, and needs the key that it was started with as '--admin-key'."
    )]
    AdminOnly,
    /// A host name that is not the server's: a page may have bound it to this machine.
    #[error(
        "This server does not answer to the host '{host}'. Start it with '--allowed-host {host}' if that is its \
         name, or with an API key."
    )]
    HostNotAllowed {
        /// As the request has it, shortened.
        host: String,
    },
    /// A page of another origin wants the server to act.
    #[error("{}", foreign_page(origin.as_deref()))]
    OriginNotAllowed {
        /// The page's origin, shortened; absent where the browser does not tell it.
        origin: Option<String>,
    },
    /// A model that is not served here.
    #[error("The model '{model}' does not exist.")]
    ModelNotFound {
        /// What was asked for.
        model: String,
    },
    /// A model that is not there, and could not be loaded.
    #[error("The model '{model}' could not be loaded; the log of the server says why.")]
    ModelNotLoaded {
        /// Its name.
        model: String,
    },
    /// An operator's order about a model that was not obeyed.
    #[error("The model '{model}' {what}: {reason}.")]
    ModelUnchanged {
        /// Its name.
        model: String,
        /// What was not done.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// No such request, or another key's.
    #[error("No request of yours with this id is among the latest {n_kept}.")]
    RequestNotFound {
        /// Requests that are remembered.
        n_kept: usize,
    },
    /// A response or an item of one that is not there, or another key's.
    #[error("No {what} of yours with the id '{id}' is kept here.")]
    NotKept {
        /// The field or parameter that names it.
        param: String,
        /// What it would be.
        what: &'static str,
        /// As the client wrote it, shortened.
        id: String,
    },
    /// No such route.
    #[error("There is nothing at this URL.")]
    NotFound,
    /// A route that clients of other servers know.
    #[error("{what}")]
    NotOffered {
        /// What is missing, and what there is instead.
        what: &'static str,
    },
    /// The route exists, for other methods.
    #[error("This URL does not take this method.")]
    MethodNotAllowed,
    /// The body is not declared to be JSON.
    #[error(
        "The body must be JSON. Send the header 'Content-Type: application/json', {}.",
        got(found)
    )]
    UnsupportedMediaType {
        /// The content type, shortened; empty where there is none.
        found: String,
    },
    /// The body is compressed in a way that the server does not read.
    #[error("The content coding must be one of gzip, zstd and identity, {}.", got(found))]
    UnsupportedCoding {
        /// The content coding, shortened.
        found: String,
    },
    /// The body exceeds the limit.
    #[error("The request body is larger than {limit} bytes.")]
    BodyTooLarge {
        /// Most bytes of a body.
        limit: usize,
    },
    /// The body has more values than there is memory for.
    #[error(
        "The request body holds {n_values} JSON values, at most {limit} are possible in one of its length."
    )]
    TooManyValues {
        /// Counted in the body, at most one too many for each list and object.
        n_values: usize,
        /// Most values.
        limit: usize,
    },
    /// The body did not arrive in time.
    #[error("The request body did not arrive within {seconds} seconds.")]
    BodyTimeout {
        /// How long the server waits.
        seconds: u64,
    },
    /// The waiting queue is full.
    #[error("The server is busy: {no_room}.")]
    QueueFull {
        /// Of what there is too much, and whose.
        no_room: NoRoom,
        /// When to try again.
        retry_after: Duration,
    },
    /// The waiting queue is too long.
    #[error(
        "The server is busy: the request would wait about {expected_s} seconds, the limit is {limit_s} seconds."
    )]
    WaitTooLong {
        /// Seconds that it would wait.
        expected_s: u64,
        /// Seconds that a request may wait.
        limit_s: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// More work waits for a thread than may.
    #[error("The server is busy: {0}.")]
    NoWorker(WorkError),
    /// The request waited longer than allowed.
    #[error("The server is busy: the request waited too long.")]
    QueueTimeout,
    /// All places for connections are taken, and this one is for health checks.
    #[error("The server is busy: all {limit} connections that it takes at a time are in use.")]
    TooManyConnections {
        /// Most connections at a time.
        limit: usize,
    },
    /// The server drains.
    #[error("The server is shutting down.")]
    ShuttingDown,
    /// The engine failed while serving the request.
    #[error("The server failed while serving this request.")]
    Failed,
}

impl ApiError {
    /// A 400 about the field at `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError::Invalid {
            param: Some(param.into()),
            message: message.into(),
        }
    }

    /// HTTP status, OpenAI error type and code.
    fn kind(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const REQUEST: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            ApiError::Invalid { .. } => (StatusCode::BAD_REQUEST, REQUEST, None),
            ApiError::ContextExceeded { .. } => {
                (StatusCode::BAD_REQUEST, REQUEST, Some("context_length_exceeded"))
            }
            ApiError::Unauthorized => (StatusCode::UNAUTHORIZED, REQUEST, Some("invalid_api_key")),
            ApiError::AdminOnly => (StatusCode::FORBIDDEN, REQUEST, Some("admin_key_required")),
            ApiError::HostNotAllowed { .. } => (StatusCode::FORBIDDEN, REQUEST, Some("host_not_allowed")),
            ApiError::OriginNotAllowed { .. } => (StatusCode::FORBIDDEN, REQUEST, Some("origin_not_allowed")),
            ApiError::ModelNotFound { .. } => (StatusCode::NOT_FOUND, REQUEST, Some("model_not_found")),
            ApiError::ModelNotLoaded { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("model_not_loaded"))
            }
            ApiError::ModelUnchanged { .. } => (StatusCode::CONFLICT, REQUEST, Some("model_unchanged")),
            ApiError::RequestNotFound { .. } => (StatusCode::NOT_FOUND, REQUEST, Some("request_not_found")),
            ApiError::NotKept { param, .. } if param == "previous_response_id" => (
                StatusCode::NOT_FOUND,
                REQUEST,
                Some("previous_response_not_found"),
            ),
            ApiError::NotKept { .. } => (StatusCode::NOT_FOUND, REQUEST, Some("not_kept")),
            ApiError::NotFound => (StatusCode::NOT_FOUND, REQUEST, Some("unknown_url")),
            ApiError::NotOffered { .. } => (StatusCode::NOT_FOUND, REQUEST, Some("not_supported")),
            ApiError::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                REQUEST,
                Some("method_not_supported"),
            ),
            ApiError::UnsupportedMediaType { .. } => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                REQUEST,
                Some("unsupported_media_type"),
            ),
            ApiError::UnsupportedCoding { .. } => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                REQUEST,
                Some("unsupported_content_encoding"),
            ),
            ApiError::BodyTooLarge { .. } | ApiError::TooManyValues { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, Some("request_too_large"))
            }
            ApiError::BodyTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, REQUEST, Some("request_timeout")),
            ApiError::QueueFull { .. } | ApiError::WaitTooLong { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("rate_limit_exceeded"),
            ),
            ApiError::NoWorker(_) => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("overloaded")),
            ApiError::QueueTimeout => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("queue_timeout")),
            ApiError::TooManyConnections { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Some("too_many_connections"),
            ),
            ApiError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("shutting_down")),
            ApiError::Failed => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error")),
        }
    }

    /// HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// Its code where it is the server's fault.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let (status, _, code) = self.kind();
        code.filter(|_| status.is_server_error())
    }

    /// The JSON body; all four keys are always there.
    pub fn body(&self) -> Value {
        let (_, kind, code) = self.kind();
        let param = match self {
            ApiError::Invalid { param, .. } => param.as_deref(),
            ApiError::ContextExceeded { param, .. } | ApiError::NotKept { param, .. } => Some(param.as_str()),
            ApiError::ModelNotFound { .. }
            | ApiError::ModelNotLoaded { .. }
            | ApiError::ModelUnchanged { .. } => Some("model"),
            ApiError::RequestNotFound { .. } => Some("id"),
            _ => None,
        };
        json!({"error": {"message": self.to_string(), "type": kind, "param": param, "code": code}})
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::QueueFull { retry_after, .. } | ApiError::WaitTooLong { retry_after, .. } => {
                Some(*retry_after)
            }
            ApiError::NoWorker(_) => Some(Duration::from_secs(1)),
            ApiError::ModelNotLoaded { .. } => Some(Duration::from_secs(10)),
            ApiError::QueueTimeout | ApiError::TooManyConnections { .. } | ApiError::ShuttingDown => {
                Some(Duration::from_secs(5))
            }
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.kind().0, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            // Whole seconds, rounded up: a client that waits less comes back too early.
            let seconds = wait.as_millis().div_ceil(1000).max(1) as u64;
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        let told = match self {
            ApiError::Unauthorized => Some((header::WWW_AUTHENTICATE, "Bearer")),
            ApiError::UnsupportedMediaType { .. } => Some((header::ACCEPT, "application/json")),
            ApiError::UnsupportedCoding { .. } => Some((header::ACCEPT_ENCODING, "gzip, zstd")),
            _ => None,
        };
        if let Some((name, value)) = told {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if matches!(
            self,
            ApiError::BodyTooLarge { .. }
                | ApiError::BodyTimeout { .. }
                | ApiError::TooManyConnections { .. }
                | ApiError::ShuttingDown
        ) {
            // What is left of the body would be read as the next request.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // For whoever tells it in other words.
        response.extensions_mut().insert(self);
        response
    }
}

/// The same answer; where it is an error, with the status and the body that `tell` gives it.
pub(crate) fn retold(
    mut response: Response,
    tell: impl FnOnce(&ApiError) -> (StatusCode, Value),
) -> Response {
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let (status, body) = tell(&error);
        *response.status_mut() = status;
        *response.body_mut() = Body::from(body.to_string());
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// An error that is a text alone, as Ollama's and KServe's clients know it: `{error}`.
pub(crate) fn plain(error: &ApiError) -> (StatusCode, Value) {
    (error.status(), json!({"error": error.to_string()}))
}

/// The field that holds the prompt where nothing else is said.
pub(crate) const PROMPT: &str = "prompt";

impl ApiError {
    /// The same error of a request whose prompt is in the field `name`.
    #[must_use]
    pub(crate) fn of_prompt_in(self, name: &str) -> Self {
        match self {
            ApiError::ContextExceeded { message, .. } => ApiError::ContextExceeded {
                param: name.to_owned(),
                message,
            },
            ApiError::Invalid {
                param: Some(param),
                message,
            } if param == PROMPT => ApiError::invalid(name, message),
            other => other,
        }
    }

    /// The prompt alone has more tokens than the `context`; after `n_counted` nobody counted on.
    pub(crate) fn longer_than_context(context: usize, n_counted: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, you requested more than \
             {n_counted} tokens in the prompt. Please shorten the prompt."
        );
        ApiError::ContextExceeded {
            param: PROMPT.to_owned(),
            message,
        }
    }

    /// `limit` tokens are possible, `prompt` and `output` were asked for. The beginning is OpenAI's, by which
    /// clients tell this error from others.
    fn context_exceeded(limit: usize, (prompt, output): (usize, usize), why: &str) -> Self {
        let asked = prompt.saturating_add(output);
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, you requested {asked} tokens \
             ({prompt} in the prompt, {output} for the output).{why} Please shorten the prompt or ask for \
             fewer tokens."
        );
        ApiError::ContextExceeded {
            param: PROMPT.to_owned(),
            message,
        }
    }
}

/// What a header held instead of what it must hold.
fn got(found: &str) -> String {
    match found {
        "" => "got none".to_owned(),
        found => format!("got '{found}'"),
    }
}

fn foreign_page(origin: Option<&str>) -> String {
    match origin {
        Some(origin) => format!(
            "Pages of '{origin}' may not do this. Start the server with '--allow-origin {origin}' if they should."
        ),
        None => {
            "Pages of other origins may not do this. Start the server with '--allow-origin ORIGIN' for those \
                 that should."
                .to_owned()
        }
    }
}

impl From<WorkError> for ApiError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Busy { .. } => ApiError::NoWorker(error),
            WorkError::Failed => ApiError::Failed,
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { no_room, retry_after } => ApiError::QueueFull { no_room, retry_after },
            SubmitError::WaitTooLong {
                expected,
                limit,
                retry_after,
            } => ApiError::WaitTooLong {
                expected_s: expected.as_secs(),
                limit_s: limit.as_secs(),
                retry_after,
            },
            SubmitError::EmptyPrompt | SubmitError::TokenOutOfRange { .. } => {
                ApiError::invalid(PROMPT, message)
            }
            SubmitError::ContextExceeded {
                prompt_tokens,
                max_tokens,
                context,
            } => ApiError::context_exceeded(context, (prompt_tokens, max_tokens), ""),
            SubmitError::NeverFits {
                prompt_tokens,
                max_tokens,
                total,
                page_size,
                ..
            } => {
                let why = format!(" The server's KV cache has {total} pages of {page_size} tokens.");
                ApiError::context_exceeded(total * page_size, (prompt_tokens, max_tokens), &why)
            }
            SubmitError::LongerThanQueue { prompt_tokens, limit } => {
                let why = " That is what one client's requests may have waiting (max_waiting_tokens).";
                ApiError::context_exceeded(limit, (prompt_tokens, 0), why)
            }
            SubmitError::BadParam(bad) => ApiError::invalid(bad.param, message),
            SubmitError::BadBias { .. } | SubmitError::BiasOutOfRange { .. } => {
                ApiError::invalid("logit_bias", message)
            }
            SubmitError::StopTokenOutOfRange { .. } => ApiError::invalid("stop_token_ids", message),
            SubmitError::ListedOutOfRange { .. } => ApiError::invalid("token_ids_logprob", message),
            SubmitError::ShuttingDown => ApiError::ShuttingDown,
        }
    }
}

impl ApiError {
    /// What a client is told of an ending without an answer.
    pub(crate) fn of_ending(reason: &FinishReason) -> Self {
        match reason {
            FinishReason::QueueDeadline => ApiError::QueueTimeout,
            FinishReason::Error(error) => ApiError::from(error.clone()),
            // The engine aborts only what nobody listens to, and other endings are answers.
            _ => ApiError::Failed,
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::TooLarge { .. } => ApiError::ContextExceeded {
                param: PROMPT.to_owned(),
                message: format!("The prompt is too long: {error}."),
            },
            RequestError::NotFinite { .. }
            | RequestError::Grammar(_)
            | RequestError::EngineFailed
            | RequestError::DeviceLost => ApiError::Failed,
            RequestError::ShuttingDown => ApiError::ShuttingDown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_ROOM: NoRoom = NoRoom {
        what: "requests",
        n_wanted: 1,
        n_held: None,
        n_taken: 3,
        limit: 3,
    };

    #[test]
    fn all_four_keys_are_always_there() {
        let errors = [
            ApiError::invalid("temperature", "too hot"),
            ApiError::Invalid {
                param: None,
                message: "not JSON".to_owned(),
            },
            ApiError::Unauthorized,
            ApiError::ModelNotFound {
                model: "x".to_owned(),
            },
            ApiError::QueueFull {
                no_room: NO_ROOM,
                retry_after: Duration::from_millis(1500),
            },
            WorkError::Busy { max_queued: 7 }.into(),
            ApiError::ShuttingDown,
            ApiError::Failed,
        ];
        for error in errors {
            let body = error.body();
            let keys: Vec<_> = body["error"]
                .as_object()
                .expect("an object")
                .keys()
                .cloned()
                .collect();
            for key in ["message", "type", "param", "code"] {
                assert!(keys.iter().any(|k| k == key), "{key} is missing in {body}");
            }
            assert_eq!(keys.len(), 4, "{body}");
        }
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up() {
        let busy = ApiError::QueueFull {
            no_room: NO_ROOM,
            retry_after: Duration::from_millis(1001),
        };
        let response = busy.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let response = ApiError::from(WorkError::Busy { max_queued: 7 }).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }
}
