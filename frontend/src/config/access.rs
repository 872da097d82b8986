//! Who may ask, and with which keys.

use std::net::SocketAddr;

use super::{ConfigError, Options, bad_value};
use crate::hosts::{Addresses, AllowedHosts, Host};
use crate::origins::AllowedOrigins;

/// Refuses keys that are empty, and isolation without keys.
pub(super) fn check_keys(options: &Options) -> Result<(), ConfigError> {
    for (option, keys) in [
        ("api-key", options.api_key.as_slice()),
        ("admin-key", options.admin_key.as_slice()),
        ("metrics-key", options.metrics_key.as_slice()),
    ] {
        if let Some(empty) = keys.iter().find(|key| key.trim().is_empty()) {
            return Err(bad_value(option, "a key that is not empty", empty));
        }
    }
    if options.isolate_keys == Some(true) && options.api_key.is_empty() {
        return Err(ConfigError::NothingToIsolate);
    }
    Ok(())
}

/// The hosts by which a server at `address` may be asked.
pub(super) fn hosts(given: &[String], address: SocketAddr) -> Result<AllowedHosts, ConfigError> {
    let host = |text: &String| {
        let expected = "NAME, NAME:PORT or *";
        Host::parse(text).ok_or_else(|| bad_value("allowed-host", expected, text))
    };
    let listed = given.iter().filter(|text| *text != "*");
    let hosts = listed.map(host).collect::<Result<Vec<_>, _>>()?;
    Ok(match hosts.len() < given.len() {
        true => AllowedHosts::All,
        false => AllowedHosts::Listed {
            addresses: match address.ip().to_canonical().is_loopback() {
                true => Addresses::Loopback,
                false => Addresses::All,
            },
            hosts,
        },
    })
}

/// The origins whose pages may ask.
pub(super) fn origins(given: &[String]) -> Result<AllowedOrigins, ConfigError> {
    let listed = given.iter().filter(|origin| *origin != "*");
    let origin = |text: &String| {
        let expected = "an origin such as http://localhost:3000, null or *";
        AllowedOrigins::parse(text).ok_or_else(|| bad_value("allow-origin", expected, text))
    };
    let origins = listed.map(origin).collect::<Result<Vec<_>, _>>()?;
    Ok(match origins.len() < given.len() {
        true => AllowedOrigins::All,
        false => AllowedOrigins::Listed(origins),
    })
}
