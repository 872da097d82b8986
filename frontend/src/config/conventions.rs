//! Variables of the environment that are not Arbora's: what they mean is a convention that others keep too.

use std::path::PathBuf;

use super::environment;
use crate::hub::{HubKind, HubSettings};

/// Where models come from unless `HF_ENDPOINT` says otherwise.
const DEFAULT_HUB: &str = "https://huggingface.co";
/// Where ModelScope's models come from unless `MODELSCOPE_DOMAIN` says otherwise.
const DEFAULT_MODELSCOPE: &str = "www.modelscope.cn";

/// Where fetched models are kept: `$XDG_CACHE_HOME`, else `$HOME/.cache`. Absent where neither is an absolute
/// path.
pub fn cache_directory() -> Option<PathBuf> {
    let absolute = |name| environment(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}

/// The hub by `HF_ENDPOINT`, `HF_TOKEN` (or the token file that the hub's own tool writes), `HF_HOME` and
/// `HF_HUB_OFFLINE`; ModelScope by `MODELSCOPE_DOMAIN`, without a token. Absent where there is no place for a
/// cache.
pub fn hub_settings(kind: HubKind) -> Option<HubSettings> {
    let text = |name| environment(name).and_then(|value| value.into_string().ok());
    let filled = |name| {
        text(name)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    let home = environment("HF_HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from);
    let home = home.or_else(|| Some(cache_directory()?.join("huggingface")))?;
    let token_file = || {
        let token = std::fs::read_to_string(home.join("token")).ok()?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    };
    let is_on = |value: String| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str());
    if kind == HubKind::ModelScope {
        let domain = filled("MODELSCOPE_DOMAIN").unwrap_or_else(|| DEFAULT_MODELSCOPE.to_owned());
        return Some(HubSettings {
            kind,
            endpoint: match domain.contains("://") {
                true => domain,
                false => format!("https://{domain}"),
            },
            token: None,
            offline: filled("HF_HUB_OFFLINE").is_some_and(is_on),
            // Not the folder of ModelScope's own tool, whose layout is another one.
            cache: cache_directory()?.join("arbora").join("modelscope"),
        });
    }
    Some(HubSettings {
        kind,
        endpoint: filled("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_HUB.to_owned()),
        token: filled("HF_TOKEN").or_else(token_file),
        offline: filled("HF_HUB_OFFLINE").is_some_and(is_on),
        cache: home.join("hub"),
    })
}

/// Whether the person at the terminal wants no colours, by the convention of `NO_COLOR`.
pub fn wants_no_color() -> bool {
    environment("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// What traces call this server, by `OTEL_SERVICE_NAME`.
pub fn otel_service_name() -> String {
    let name = environment("OTEL_SERVICE_NAME").and_then(|value| value.into_string().ok());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "arbora".to_owned())
}

/// Headers for the collector of traces, by `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, else by
/// `OTEL_EXPORTER_OTLP_HEADERS`; empty where there is neither.
pub fn otel_headers() -> String {
    let filled = |name| {
        let value = environment(name).and_then(|value| value.into_string().ok());
        value.filter(|value| !value.is_empty())
    };
    filled("OTEL_EXPORTER_OTLP_TRACES_HEADERS")
        .or_else(|| filled("OTEL_EXPORTER_OTLP_HEADERS"))
        .unwrap_or_default()
}

/// The filter that other programs of the kind take too.
pub(super) fn rust_log() -> Option<String> {
    environment("RUST_LOG").and_then(|value| value.into_string().ok())
}
