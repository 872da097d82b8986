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
    sharing: CacheSharing,
}

/// Whether requests with different keys read each other's part of the prefix cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheSharing {
    /// One cache for all.
    #[default]
    AcrossKeys,
    /// What one key sent is neither found nor timed by another.
    WithinKey,
}

impl ApiKeys {
    /// Digests of `keys`; one that is given twice counts once.
    pub fn new(keys: &[String], sharing: CacheSharing) -> Self {
        let mut digests: Vec<[u8; 32]> = Vec::with_capacity(keys.len());
        for key in keys {
            let digest = Sha256::digest(key).into();
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        ApiKeys { digests, sharing }
    }

    /// How the cache is shared.
    pub fn sharing(&self) -> CacheSharing {
        self.sharing
    }

    /// The salt of the cache for the request of `owner` that asks for `salt` itself. The key goes in as its
    /// digest, after a word that no other hash of it begins with.
    pub fn salt(&self, owner: Option<usize>, salt: [u8; 16]) -> [u8; 16] {
        match (self.sharing, owner) {
            (CacheSharing::AcrossKeys, _) | (_, None) => salt,
            (CacheSharing::WithinKey, Some(place)) => {
                let mut hash = Sha256::new();
                hash.update(b"arbora isolated key\0");
                hash.update(self.digests[place]);
                hash.update(salt);
                let digest = hash.finalize();
                digest[..16].try_into().expect("SHA-256 has 32 bytes")
            }
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
        let keys = ApiKeys::new(
            &["first".to_owned(), "second".to_owned()],
            CacheSharing::AcrossKeys,
        );
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

    #[test]
    fn salts_tell_keys_and_the_wishes_of_one_key_apart_where_keys_are_isolated() {
        let keys = ["first", "second", "first"].map(str::to_owned);
        let shared = ApiKeys::new(&keys, CacheSharing::AcrossKeys);
        assert_eq!(shared.len(), 2, "a key given twice is one");
        assert_eq!(shared.salt(Some(0), [7; 16]), shared.salt(Some(1), [7; 16]));
        let isolated = ApiKeys::new(&keys, CacheSharing::WithinKey);
        let salts = [(0, 0), (0, 7), (1, 0), (1, 7)].map(|(key, byte)| isolated.salt(Some(key), [byte; 16]));
        for (i, salt) in salts.iter().enumerate() {
            assert!(!salts[..i].contains(salt) && *salt != [0; 16]);
        }
        let again = ApiKeys::new(&keys[1..2], CacheSharing::WithinKey);
        assert_eq!(
            again.salt(Some(0), [0; 16]),
            salts[2],
            "the place of a key does not matter"
        );
    }
}
