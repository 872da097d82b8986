//! API keys.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::api::App;
use crate::wire::error::ApiError;

/// The keys that let a client in; none lets everybody in.
///
/// Keys are kept and compared as SHA-256 digests, all of them at every attempt, so the time an attempt takes
/// tells nothing about how much of which key was right.
#[derive(Clone, Debug, Default)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// Digests of `keys`.
    pub fn new(keys: &[String]) -> Self {
        ApiKeys {
            digests: keys.iter().map(|key| Sha256::digest(key).into()).collect(),
        }
    }

    /// Whether the value of an `Authorization` header lets its sender in.
    pub fn admit(&self, authorization: Option<&[u8]>) -> bool {
        if self.digests.is_empty() {
            return true;
        }
        let scheme = |value: &[u8]| value.len() > 7 && value[..7].eq_ignore_ascii_case(b"bearer ");
        let Some(value) = authorization.filter(|value| scheme(value)) else {
            return false;
        };
        let given: [u8; 32] = Sha256::digest(value[7..].trim_ascii()).into();
        let differs = |key: &[u8; 32]| key.iter().zip(&given).fold(0, |sum, (a, b)| sum | (a ^ b));
        self.digests
            .iter()
            .fold(false, |found, key| found | (differs(key) == 0))
    }
}

/// Stands before every route.
pub async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION);
    if app.api_keys.admit(authorization.map(|value| value.as_bytes())) {
        next.run(request).await
    } else {
        ApiError::Unauthorized.into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_key_as_a_bearer_token_lets_in() {
        let keys = ApiKeys::new(&["first".to_owned(), "second".to_owned()]);
        for good in ["Bearer first", "Bearer second", "bearer second", "Bearer  first "] {
            assert!(keys.admit(Some(good.as_bytes())), "{good}");
        }
        for bad in [
            "",
            "first",
            "Basic first",
            "Bearer",
            "Bearer ",
            "Bearer firs",
            "Bearer firstsecond",
        ] {
            assert!(!keys.admit(Some(bad.as_bytes())), "{bad}");
        }
        assert!(!keys.admit(None));
        assert!(ApiKeys::default().admit(None));
    }
}
