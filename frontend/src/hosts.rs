//! Which host names the server answers to: the `Host` header, checked against DNS rebinding.
//!
//! The owner of `pages.example` can let that name resolve to 127.0.0.1. A browser then takes this server for
//! the page's own, and the page may read every answer; only the `Host` header still tells. Without an API key
//! the server therefore answers to these hosts alone, whatever the port:
//!
//! ```text
//! listens on              names                          addresses
//! a loopback address      localhost, --allowed-host      127.0.0.0/8, [::1], --allowed-host
//! any other address       localhost, --allowed-host      all
//! ```
//!
//! A server that others may reach has addresses that it does not know of (containers, forwarded ports), and
//! an address is no name that could be bound anew: a page that was loaded from it came from this very place.
//! With a key every host is fine, since no page knows the key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::App;
use crate::wire::error::ApiError;

/// Longer hosts are cut in errors.
const MAX_SHOWN: usize = 100;

/// The hosts a request may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedHosts {
    /// Every one.
    All,
    /// `localhost`, some addresses, and those listed.
    Listed {
        /// Which addresses.
        addresses: Addresses,
        /// What the operator listed.
        hosts: Vec<Host>,
    },
}

/// Addresses that count as this server's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Those that lead from this machine to itself.
    Loopback,
    /// Every one.
    All,
}

/// A name or an address, and a port where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: Name,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// In small letters, without the dot at its end.
    Domain(String),
    Address(IpAddr),
}

impl Host {
    /// Reads `name`, `name:port`, `192.0.2.1:port`, `[2001:db8::1]:port`; absent where it is none of these.
    pub fn parse(text: &str) -> Option<Host> {
        let authority: Authority = text.parse().ok()?;
        let host = authority.host();
        // Also what stands before an `@`, and a port that is none.
        let port = match text.strip_prefix(host)? {
            "" | ":" => None,
            _ => Some(authority.port_u16()?),
        };
        let name = match host.strip_prefix('[') {
            Some(rest) => Name::Address(IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?).to_canonical()),
            None => {
                let domain = host.strip_suffix('.').unwrap_or(host);
                let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                if domain.is_empty() || !domain.bytes().all(is_fit) {
                    return None;
                }
                match domain.parse() {
                    Ok(address) => Name::Address(IpAddr::V4(address)),
                    Err(_) => Name::Domain(domain.to_ascii_lowercase()),
                }
            }
        };
        Some(Host { name, port })
    }

    /// The same place, where a host without a port means `default_port`.
    pub(crate) fn is_same(&self, other: &Host, default_port: u16) -> bool {
        let port = |host: &Host| host.port.unwrap_or(default_port);
        self.name == other.name && port(self) == port(other)
    }
}

impl AllowedHosts {
    fn allow(&self, host: &Host) -> bool {
        match self {
            AllowedHosts::All => true,
            AllowedHosts::Listed { addresses, hosts } => {
                let is_own = match &host.name {
                    Name::Domain(name) => name == "localhost",
                    Name::Address(address) => *addresses == Addresses::All || address.is_loopback(),
                };
                let is_listed = |listed: &Host| {
                    listed.name == host.name && (listed.port.is_none() || listed.port == host.port)
                };
                is_own || hosts.iter().any(is_listed)
            }
        }
    }
}

/// The host that a request is for; an error where it does not say so clearly (RFC 9112, 3.2). Absent only in
/// HTTP/1.0, which knows no hosts and which no browser speaks.
fn named(request: &Request) -> Result<Option<(Host, String)>, ApiError> {
    let mut headers = request.headers().get_all(header::HOST).iter();
    let header = match (headers.next(), headers.next()) {
        (Some(only), None) => Some(String::from_utf8_lossy(only.as_bytes())),
        (None, _) if request.version() < Version::HTTP_11 => None,
        (None, _) => return Err(bad_request("The request has no 'Host' header.")),
        (Some(_), Some(_)) => return Err(bad_request("The request has more than one 'Host' header.")),
    };
    let target = request.uri().authority().map(|target| target.as_str().into());
    let mut named: Option<(Host, String)> = None;
    for text in [header, target].into_iter().flatten() {
        let shown: String = text.chars().take(MAX_SHOWN).collect();
        let host = Host::parse(&text).ok_or_else(|| bad_request(format!("'{shown}' is no host.")))?;
        if let Some((other, told)) = named
            && !host.is_same(&other, 80)
        {
            let message = format!("The request is for '{shown}', its 'Host' header says '{told}'.");
            return Err(bad_request(message));
        }
        named = Some((host, shown));
    }
    Ok(named)
}

fn bad_request(message: impl Into<String>) -> ApiError {
    ApiError::Invalid {
        param: None,
        message: message.into(),
    }
}

/// Stands before everything that answers, preflights of browsers included: a request names its host.
pub async fn require_named_host(request: Request, next: Next) -> Response {
    match named(&request) {
        Err(error) => error.into_response(),
        Ok(_) => next.run(request).await,
    }
}

/// Stands before every route.
pub async fn require_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match named(&request) {
        Err(error) => error.into_response(),
        Ok(Some((host, shown))) if app.api_keys.is_empty() && !app.hosts.allow(&host) => {
            ApiError::HostNotAllowed { host: shown }.into_response()
        }
        Ok(_) => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(addresses: Addresses, hosts: &[&str]) -> AllowedHosts {
        let hosts = hosts.iter().map(|host| Host::parse(host).expect("a host"));
        AllowedHosts::Listed {
            addresses,
            hosts: hosts.collect(),
        }
    }

    fn allow(rule: &AllowedHosts, text: &str) -> bool {
        rule.allow(&Host::parse(text).unwrap_or_else(|| panic!("{text} is no host")))
    }

    #[test]
    fn a_server_on_loopback_answers_to_loopback_alone() {
        let rule = listed(Addresses::Loopback, &[]);
        for own in [
            "localhost",
            "LocalHost:8000",
            "localhost.:1",
            "localhost:",
            "127.0.0.1:8000",
            "127.255.0.9",
            "127.0.0.1.",
            "[::1]:8000",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(allow(&rule, own), "{own}");
        }
        for foreign in [
            "pages.example:8000",
            "localhost.pages.example",
            "127.0.0.1.pages.example",
            "localhostx",
            "xlocalhost",
            "localhost..",
            "0.0.0.0:8000",
            "192.168.0.7",
            "2130706433",
            "127.1",
            "[2001:db8::1]",
            "[::ffff:192.0.2.1]",
        ] {
            assert!(!allow(&rule, foreign), "{foreign}");
        }
    }

    #[test]
    fn a_server_that_others_reach_answers_to_addresses_and_to_names_that_are_listed() {
        let rule = listed(
            Addresses::All,
            &["gpu-box", "models.example:8443", "[2001:db8::7]:80"],
        );
        for own in [
            "localhost",
            "192.168.0.7:8000",
            "0.0.0.0",
            "[2001:db8::1]",
            "GPU-box.:8000",
            "models.example:8443",
        ] {
            assert!(allow(&rule, own), "{own}");
        }
        for foreign in [
            "models.example",
            "models.example:80",
            "other.gpu-box",
            "gpu-box.example",
        ] {
            assert!(!allow(&rule, foreign), "{foreign}");
        }
        assert!(allow(
            &listed(Addresses::Loopback, &["[2001:db8::7]:80"]),
            "[2001:DB8:0::7]:80"
        ));
        assert!(allow(&AllowedHosts::All, "pages.example"));
    }

    #[test]
    fn what_is_no_host_is_not_read_as_one() {
        for text in [
            "",
            ":80",
            ".",
            "a b",
            "a@localhost",
            "localhost@a",
            "a/b",
            "http://a",
            "a:b",
            "a:70000",
            "a:-1",
            "a,b",
            "*",
            "*.example",
            "[::1",
            "::1",
            "[a]",
            "[127.0.0.1]",
            "ä",
        ] {
            assert_eq!(Host::parse(text), None, "{text:?}");
        }
    }
}
