//! Errors as Anthropic's clients know them.
//!
//! ```text
//! {type: error, error: {type, message}, request_id}
//! ```

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use crate::wire::error::{self, ApiError};

/// Overloaded, which HTTP has no status of its own for.
const OVERLOADED: u16 = 529;
/// Where clients look for the id of an exchange.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// HTTP status and type of an error.
fn kind(error: &ApiError) -> (StatusCode, &'static str) {
    let status = error.status();
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => {
            let overloaded = StatusCode::from_u16(OVERLOADED).expect("three digits");
            return (overloaded, "overloaded_error");
        }
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    (status, kind)
}

/// The JSON body of an error.
pub(crate) fn body(error: &ApiError) -> Value {
    let (_, kind) = kind(error);
    let message = match error {
        // By these words clients tell that they have to say less.
        ApiError::ContextExceeded { message, .. } => format!("prompt is too long: {message}"),
        other => other.to_string(),
    };
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

/// An answer of any handler or check as Anthropic's clients expect it: an error gets its shape, and every
/// answer the header with the exchange's `id`.
pub(crate) fn retold(response: Response, id: &HeaderValue) -> Response {
    let mut response = error::retold(response, |error| {
        let mut body = body(error);
        body["request_id"] = String::from_utf8_lossy(id.as_bytes()).into();
        (kind(error).0, body)
    });
    response.headers_mut().insert(REQUEST_ID, id.clone());
    response
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse;

    use super::*;

    #[test]
    fn every_status_has_its_type_and_other_headers_stay() {
        let id = HeaderValue::from_static("x");
        for (error, status, kind) in [
            (ApiError::invalid("a", "b"), 400, "invalid_request_error"),
            (ApiError::Unauthorized, 401, "authentication_error"),
            (ApiError::AdminOnly, 403, "permission_error"),
            (ApiError::NotFound, 404, "not_found_error"),
            (ApiError::BodyTooLarge { limit: 1 }, 413, "request_too_large"),
            (ApiError::QueueTimeout, 529, "overloaded_error"),
            (ApiError::Failed, 500, "api_error"),
        ] {
            let message = error.to_string();
            assert_eq!(body(&error)["error"]["message"], message);
            let response = retold(error.into_response(), &id);
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()["request-id"], "x");
            assert_eq!(
                response.headers().contains_key(header::RETRY_AFTER),
                status == 529
            );
            assert_eq!(
                response.headers().contains_key(header::WWW_AUTHENTICATE),
                status == 401
            );
            assert_eq!(kind, self::kind_of(status));
        }
    }

    /// What the API's documentation says of a status.
    fn kind_of(status: u16) -> &'static str {
        match status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            500 => "api_error",
            529 => "overloaded_error",
            _ => "invalid_request_error",
        }
    }
}
