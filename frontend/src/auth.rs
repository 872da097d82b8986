//! API keys: who may generate, and who may see and do what concerns all clients.
//!
//! ```text
//! route            let in
//! clients'         any API key
//! operators'       the admin key; without one any API key, but none where keys are isolated from each other
//! /metrics         the metrics key, and who may use the operators' routes
//! ```
//!
//! Without API keys everybody is let in, but an admin key or a metrics key is asked for where there is one.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
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
    digests: Vec<KeyDigest>,
    sharing: CacheSharing,
    operators: OperatorKeys,
}

/// SHA-256 of a key.
type KeyDigest = [u8; 32];

/// Keys for what concerns all clients. They let nobody generate.
#[derive(Clone, Debug, Default)]
pub struct OperatorKeys {
    admin: Option<KeyDigest>,
    metrics: Option<KeyDigest>,
}

impl OperatorKeys {
    /// Digests of the keys that there are.
    pub fn new(admin: Option<&str>, metrics: Option<&str>) -> Self {
        let digest = |key: &str| KeyDigest::from(Sha256::digest(key));
        OperatorKeys {
            admin: admin.map(digest),
            metrics: metrics.map(digest),
        }
    }
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
    pub fn new(keys: &[String], sharing: CacheSharing, operators: OperatorKeys) -> Self {
        let mut digests: Vec<KeyDigest> = Vec::with_capacity(keys.len());
        for key in keys {
            let digest = Sha256::digest(key).into();
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        ApiKeys {
            digests,
            sharing,
            operators,
        }
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

    /// Whether its sender may use the operators' routes.
    ///
    /// # Errors
    /// Without a right key, and with one that is right for clients only.
    pub fn admit_operator(&self, authorization: Option<&[u8]>) -> Result<(), ApiError> {
        let has_no_admin = self.operators.admin.is_none();
        let is_trusted = self.len() < 2 || self.sharing == CacheSharing::AcrossKeys;
        let is_client_enough = has_no_admin && is_trusted && self.admit(authorization);
        if is_client_enough || holds(authorization, self.operators.admin.as_ref()) {
            Ok(())
        } else if self.which(authorization).is_some() {
            Err(ApiError::AdminOnly)
        } else {
            Err(ApiError::Unauthorized)
        }
    }

    /// Whether its sender may read the metrics.
    ///
    /// # Errors
    /// As for [`ApiKeys::admit_operator`].
    pub fn admit_metrics(&self, authorization: Option<&[u8]>) -> Result<(), ApiError> {
        let metrics = self.operators.metrics.as_ref();
        if holds(authorization, metrics) {
            return Ok(());
        }
        // With a key of their own, they are not for whoever has none.
        match (metrics, self.is_empty() && self.operators.admin.is_none()) {
            (Some(_), true) => Err(ApiError::Unauthorized),
            _ => self.admit_operator(authorization),
        }
    }

    /// The place of the key that the value of an `Authorization` header holds.
    pub fn which(&self, authorization: Option<&[u8]>) -> Option<usize> {
        let given = given_key(authorization)?;
        let keys = self.digests.iter().enumerate();
        keys.fold(None, |found, (place, key)| {
            if are_equal(key, &given) {
                Some(place)
            } else {
                found
            }
        })
    }
}

/// Takes a key that comes as Anthropic's clients send it (`x-api-key`) for a bearer token, where there is no
/// other.
pub(crate) fn accept_plain_key(headers: &mut HeaderMap) {
    if headers.contains_key(header::AUTHORIZATION) {
        return;
    }
    let Some(key) = headers.get("x-api-key") else {
        return;
    };
    let bearer = [b"Bearer ", key.as_bytes()].concat();
    if let Ok(bearer) = HeaderValue::from_bytes(&bearer) {
        headers.insert(header::AUTHORIZATION, bearer);
    }
}

/// The digest of the key in the value of an `Authorization` header.
fn given_key(authorization: Option<&[u8]>) -> Option<KeyDigest> {
    let scheme = |value: &[u8]| value.len() > 7 && value[..7].eq_ignore_ascii_case(b"bearer ");
    let value = authorization.filter(|value| scheme(value))?;
    Some(Sha256::digest(value[7..].trim_ascii()).into())
}

fn are_equal(one: &KeyDigest, other: &KeyDigest) -> bool {
    one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// Whether there is a key and the header holds it.
fn holds(authorization: Option<&[u8]>, key: Option<&KeyDigest>) -> bool {
    key.zip(given_key(authorization))
        .is_some_and(|(key, given)| are_equal(key, &given))
}

fn authorization(request: &Request) -> Option<&[u8]> {
    request
        .headers()
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes)
}

/// Stands before the routes of clients.
pub async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.api_keys.admit(authorization(&request)) {
        next.run(request).await
    } else {
        ApiError::Unauthorized.into_response()
    }
}

/// Stands before the routes of operators.
pub async fn require_operator(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match app.api_keys.admit_operator(authorization(&request)) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Stands before the metrics.
pub async fn require_metrics_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match app.api_keys.admit_metrics(authorization(&request)) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(keys: &[String], sharing: CacheSharing) -> ApiKeys {
        ApiKeys::new(keys, sharing, OperatorKeys::default())
    }

    #[test]
    fn what_concerns_all_clients_is_for_whom_they_trust() {
        use CacheSharing::{AcrossKeys, WithinKey};
        let (none, one, two) = (&[][..], &["a"][..], &["a", "b"][..]);
        // Keys, sharing, admin key, metrics key; then what each header gets at operators' routes and at
        // metrics: + let in, - key wrong or missing, x key right and not enough.
        for (keys, sharing, admin, metrics, expected) in [
            (none, AcrossKeys, None, None, "nothing ++, a ++"),
            (none, AcrossKeys, Some("op"), None, "nothing --, a --, op ++"),
            (none, AcrossKeys, None, Some("m"), "nothing +-, a +-, m ++"),
            (one, AcrossKeys, None, None, "nothing --, a ++, b --"),
            (one, WithinKey, None, None, "a ++"),
            (one, AcrossKeys, Some("op"), None, "nothing --, a xx, op ++"),
            (two, AcrossKeys, None, None, "a ++, b ++, c --"),
            (two, WithinKey, None, None, "nothing --, a xx, b xx, c --"),
            (two, WithinKey, None, Some("m"), "a xx, m -+, c --"),
            (
                two,
                WithinKey,
                Some("op"),
                Some("m"),
                "a xx, op ++, m -+, nothing --",
            ),
        ] {
            let texts: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            let keys = ApiKeys::new(&texts, sharing, OperatorKeys::new(admin, metrics));
            for case in expected.split(", ") {
                let (key, marks) = case.split_once(' ').expect("a key and marks");
                let header = (key != "nothing").then(|| format!("Bearer {key}"));
                let header = header.as_ref().map(String::as_bytes);
                let mark = |admitted: Result<(), ApiError>| match admitted {
                    Ok(()) => '+',
                    Err(ApiError::AdminOnly) => 'x',
                    Err(_) => '-',
                };
                let found = [
                    mark(keys.admit_operator(header)),
                    mark(keys.admit_metrics(header)),
                ];
                assert_eq!(
                    String::from_iter(found),
                    marks,
                    "{texts:?} {sharing:?} {admin:?} {metrics:?}: {key}"
                );
            }
        }
        let keys = ApiKeys::new(&[], AcrossKeys, OperatorKeys::new(Some("op"), None));
        assert!(keys.admit(None), "an admin key alone keeps no client out");
    }

    #[test]
    fn only_a_whole_key_as_a_bearer_token_lets_in() {
        let keys = ApiKeys::new(
            &["first".to_owned(), "second".to_owned()],
            CacheSharing::AcrossKeys,
            OperatorKeys::default(),
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
    fn a_plain_key_is_a_bearer_token_where_there_is_no_other() {
        let given = |headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter();
            let mut headers: HeaderMap = headers
                .map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)))
                .collect();
            accept_plain_key(&mut headers);
            headers.remove(header::AUTHORIZATION)
        };
        assert_eq!(given(&[]), None);
        assert_eq!(given(&[("x-api-key", "k")]).expect("a key"), "Bearer k");
        let both = [("x-api-key", "k"), ("authorization", "Bearer other")];
        assert_eq!(given(&both).expect("a key"), "Bearer other");
    }

    #[test]
    fn salts_tell_keys_and_the_wishes_of_one_key_apart_where_keys_are_isolated() {
        let keys = ["first", "second", "first"].map(str::to_owned);
        let shared = of(&keys, CacheSharing::AcrossKeys);
        assert_eq!(shared.len(), 2, "a key given twice is one");
        assert_eq!(shared.salt(Some(0), [7; 16]), shared.salt(Some(1), [7; 16]));
        let isolated = of(&keys, CacheSharing::WithinKey);
        let salts = [(0, 0), (0, 7), (1, 0), (1, 7)].map(|(key, byte)| isolated.salt(Some(key), [byte; 16]));
        for (i, salt) in salts.iter().enumerate() {
            assert!(!salts[..i].contains(salt) && *salt != [0; 16]);
        }
        let again = of(&keys[1..2], CacheSharing::WithinKey);
        assert_eq!(
            again.salt(Some(0), [0; 16]),
            salts[2],
            "the place of a key does not matter"
        );
    }
}
