//! Pages of other origins in a browser: which of them may ask and read the answers (CORS), and that no other
//! page makes the server act.
//!
//! A page may send some requests anywhere without asking first: a GET, and a POST whose content type is not
//! JSON ([`crate::body`]). It cannot read what comes back, but what the request does is done. So routes that
//! act without reading JSON take an [`OwnPage`].

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, AllowPrivateNetwork, CorsLayer};

use crate::api::App;
use crate::hosts::Host;
use crate::route::REQUEST_ID;
use crate::wire::error::ApiError;

/// How long a browser may keep the answer to a preflight; none keeps it longer than two hours.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// How the page that made a request relates to its target. Chromium sends it since 2019, Safari since 2023.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Longer origins are cut in errors.
const MAX_SHOWN: usize = 100;

/// The origins whose pages may use the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// Every one.
    All,
    /// Those listed, as browsers spell them.
    Listed(Vec<HeaderValue>),
}

impl AllowedOrigins {
    /// The origin that an operator wrote, as browsers spell it: `http://host[:port]` in small letters and
    /// without the scheme's own port, or `null`. Absent where it is none.
    pub fn parse(text: &str) -> Option<HeaderValue> {
        if text == "null" {
            return Some(HeaderValue::from_static("null"));
        }
        let text = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
        let (scheme, host) = text.split_once("://")?;
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if scheme.is_empty() || !scheme.bytes().all(is_fit) {
            return None;
        }
        Host::parse(host)?;
        let host = match scheme {
            "http" | "https" => host
                .strip_suffix(&format!(":{}", default_port(scheme)))
                .unwrap_or(host),
            _ => host,
        };
        HeaderValue::from_str(&format!("{scheme}://{host}")).ok()
    }

    /// What answers preflights and adds the headers of CORS to every answer; absent where no other origin
    /// is allowed.
    pub fn layer(&self) -> Option<CorsLayer> {
        let origins = match self {
            AllowedOrigins::All => AllowOrigin::any(),
            AllowedOrigins::Listed(origins) if origins.is_empty() => return None,
            AllowedOrigins::Listed(origins) => AllowOrigin::list(origins.iter().cloned()),
        };
        let allowed = self.clone();
        let is_allowed = move |origin: &HeaderValue, _: &Parts| allowed.allow(origin);
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // Clients add headers of their own, such as `x-stainless-*`.
            .allow_headers(AllowHeaders::mirror_request())
            .allow_private_network(AllowPrivateNetwork::predicate(is_allowed))
            .expose_headers([REQUEST_ID, header::RETRY_AFTER, header::WWW_AUTHENTICATE])
            .max_age(MAX_AGE);
        Some(layer)
    }

    fn allow(&self, origin: &HeaderValue) -> bool {
        match self {
            AllowedOrigins::All => true,
            AllowedOrigins::Listed(origins) => origins.contains(origin),
        }
    }

    /// Refuses what a page of another origin sent. Without `Origin`, which not every request of a page has,
    /// `Sec-Fetch-Site` tells; programs send neither.
    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let (is_fine, origin) = match (headers.get(header::ORIGIN), headers.get(FETCH_SITE)) {
            (Some(origin), _) => (self.allow(origin) || is_own(origin, headers), Some(origin)),
            (None, Some(site)) => {
                let is_fine = *self == AllowedOrigins::All || site == "same-origin" || site == "none";
                (is_fine, None)
            }
            (None, None) => (true, None),
        };
        if is_fine {
            return Ok(());
        }
        let text = |origin: &HeaderValue| String::from_utf8_lossy(origin.as_bytes()).into_owned();
        let origin = origin.map(|origin| text(origin).chars().take(MAX_SHOWN).collect());
        Err(ApiError::OriginNotAllowed { origin })
    }
}

fn default_port(scheme: &str) -> u16 {
    match scheme {
        "https" => 443,
        _ => 80,
    }
}

/// Whether the page came from where the request goes.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let own = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let (Some(own), Some((scheme, host))) = (own, origin) else {
        return false;
    };
    match (Host::parse(own), Host::parse(host)) {
        (Some(own), Some(host)) => own.is_same(&host, default_port(scheme)),
        _ => false,
    }
}

/// Proof that no page of a foreign origin made the request. With an API key there is nothing to check: no
/// page can send one without a preflight.
#[derive(Clone, Copy, Debug)]
pub struct OwnPage;

impl FromRequestParts<Arc<App>> for OwnPage {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        if app.api_keys.is_empty() {
            app.origins.check(&parts.headers)?;
        }
        Ok(OwnPage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_spelled_as_browsers_spell_them() {
        for (written, spelled) in [
            ("http://localhost:3000", "http://localhost:3000"),
            ("HTTP://App.Example/", "http://app.example"),
            ("http://app.example:80", "http://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("https://app.example:80", "https://app.example:80"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("app://obsidian.md", "app://obsidian.md"),
            ("app://a:80", "app://a:80"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
            ("null", "null"),
        ] {
            let found = AllowedOrigins::parse(written).unwrap_or_else(|| panic!("{written}"));
            assert_eq!(found, spelled, "{written}");
        }
        for none in [
            "",
            "localhost:3000",
            "http://",
            "://a",
            "http://a/b",
            "http://a?b",
            "http://a@b",
            "http://*.example",
            "http://a b",
            "NULL",
        ] {
            assert_eq!(AllowedOrigins::parse(none), None, "{none:?}");
        }
    }

    #[test]
    fn only_programs_and_pages_of_this_server_or_of_allowed_origins_make_it_act() {
        let allowed = AllowedOrigins::parse("http://localhost:3000").expect("an origin");
        let rules = [
            AllowedOrigins::Listed(Vec::new()),
            AllowedOrigins::Listed(vec![allowed]),
            AllowedOrigins::All,
        ];
        // What each of the rules says.
        for (name, value, expected) in [
            ("accept", "*/*", [true, true, true]),
            ("origin", "http://localhost:8000", [true, true, true]),
            ("origin", "http://LOCALHOST:8000", [true, true, true]),
            ("origin", "http://localhost:3000", [false, true, true]),
            ("origin", "http://localhost", [false, false, true]),
            ("origin", "http://pages.example", [false, false, true]),
            ("origin", "null", [false, false, true]),
            ("origin", "", [false, false, true]),
            ("sec-fetch-site", "cross-site", [false, false, true]),
            ("sec-fetch-site", "same-site", [false, false, true]),
            ("sec-fetch-site", "same-origin", [true, true, true]),
            ("sec-fetch-site", "none", [true, true, true]),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("localhost:8000"));
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            let found = rules.each_ref().map(|rule| rule.check(&headers).is_ok());
            assert_eq!(found, expected, "{name}: {value}");
        }
    }

    #[test]
    fn a_page_of_the_schemes_own_port_is_the_servers_own() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("models.example"));
        for (origin, expected) in [
            ("http://models.example", true),
            ("https://models.example", true),
            ("https://models.example:80", false),
            ("http://models.example:8000", false),
        ] {
            assert_eq!(
                is_own(&HeaderValue::from_static(origin), &headers),
                expected,
                "{origin}"
            );
        }
    }
}
