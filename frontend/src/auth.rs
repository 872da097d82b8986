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

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether everybody is let in.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whether the value of an `Authorization` header lets its sender in.
    pub fn admit(&self, authorization: Option<&[u8]>) -> bool {
        self.is_empty() || self.which(authorization).is_some()
    }

    /// The place of the key that the value of an `Authorization` header holds.
    pub fn which(&self, authorization: Option<&[u8]>) -> Option<usize> {
        let scheme = |value: &[u8]| value.len() > 7 && value[..7].eq_ignore_ascii_case(b"bearer ");
        let value = authorization.filter(|value| scheme(value))?;
        let given: [u8; 32] = Sha256::digest(value[7..].trim_ascii()).into();
        let differs = |key: &[u8; 32]| key.iter().zip(&given).fold(0, |sum, (a, b)| sum | (a ^ b));
        let keys = self.digests.iter().enumerate();
        keys.fold(
            None,
            |found, (place, key)| if differs(key) == 0 { Some(place) } else { found },
        )
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
        assert_eq!(keys.which(Some(b"Bearer second")), Some(1));
        assert_eq!(ApiKeys::default().which(Some(b"Bearer second")), None);
        assert!(ApiKeys::default().admit(None));
    }
}
