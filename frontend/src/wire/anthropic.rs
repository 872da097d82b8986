//! The JSON of Anthropic's Messages API: requests, objects of answers, and errors in its shape.

pub mod error;
pub mod request;
pub mod response;
mod transcript;

use axum::http::HeaderMap;

/// Whether a client speaks it: all of Anthropic's send the version that they know.
pub(crate) fn is_spoken(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}
