//! Which layers have a sliding window, and how long it is.

use serde_json::{Map, Value as Json};

use super::{Key, Keys, MAX_CONTEXT, MAX_LAYERS, count, key, out_of_range};
use crate::model::file::LoadError;
use crate::model::metadata::{KeyError, Metadata};

const WINDOW: Key = key("attention.sliding_window", "sliding_window");

/// Layers that have a family's sliding window, where `layer_types` does not say which.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// Not known: the context is limited to the window, within which it changes nothing.
    Unknown,
    /// All. `default` is what a file has that has no key for it, as in the reference implementation.
    All { default: Option<usize> },
    /// Those from `max_window_layers` on, and only if `use_sliding_window` says so.
    Upper,
    /// All but the last of each `full_every`.
    Every { default: usize, full_every: usize },
}

/// `max_window_layers` where the file has none, as in the reference implementation.
const MAX_WINDOW_LAYERS: usize = 28;

/// Window of a model of [`Windows::Upper`] whose file has no key for it, as in the reference implementation.
const DEFAULT_WINDOW: usize = 4096;

/// The window of a `config.json`, absent where it has none or does not use it.
pub(super) fn json_window(
    keys: &Keys<'_>,
    family: Windows,
    json: &Map<String, Json>,
) -> Result<Option<usize>, KeyError> {
    if family == Windows::Upper && keys.metadata.flag("use_sliding_window")? != Some(true) {
        return Ok(None);
    }
    let default = match family {
        Windows::Unknown => None,
        Windows::All { default } => default,
        Windows::Upper => Some(DEFAULT_WINDOW),
        Windows::Every { default, .. } => Some(default),
    };
    match default {
        Some(default) if !json.contains_key(WINDOW.json) => Ok(Some(default)),
        _ => window(keys),
    }
}

/// The window of each layer of a GGUF file; absent where it is not known which layers have it.
pub(super) fn gguf_windows(
    metadata: &Metadata,
    family: Windows,
    (n_layers, window): (usize, Option<usize>),
) -> Result<Option<Vec<Option<usize>>>, KeyError> {
    match family {
        Windows::Every { full_every, .. } => all_but(metadata, full_every, (n_layers, window)).map(Some),
        _ => Ok(None),
    }
}

fn all_but(
    metadata: &Metadata,
    full_every: usize,
    (n_layers, window): (usize, Option<usize>),
) -> Result<Vec<Option<usize>>, KeyError> {
    // Only `config.json` has a key for it.
    let every = count(metadata, "sliding_window_pattern", MAX_LAYERS)?.unwrap_or(full_every);
    let of = |n: usize| window.filter(|_| !n.is_multiple_of(every));
    Ok((1..=n_layers).map(of).collect())
}

/// The window of each layer of a `config.json`; absent where it is not known which layers have it.
pub(super) fn windows(
    metadata: &Metadata,
    family: Windows,
    (n_layers, window): (usize, Option<usize>),
) -> Result<Option<Vec<Option<usize>>>, LoadError> {
    let key = "layer_types";
    let Some(types) = metadata.strings(key)? else {
        let first = match family {
            Windows::Unknown => return Ok(None),
            Windows::Every { full_every, .. } => {
                return Ok(Some(all_but(metadata, full_every, (n_layers, window))?));
            }
            Windows::All { .. } => 0,
            Windows::Upper => metadata
                .unsigned("max_window_layers")?
                .map_or(MAX_WINDOW_LAYERS, |n| n as usize),
        };
        let of = |layer| window.filter(|_| layer >= first);
        return Ok(Some((0..n_layers).map(of).collect()));
    };
    if types.len() != n_layers {
        return Err(out_of_range(key, &types.len(), format!("a list of {n_layers} layers")).into());
    }
    let of = |name: &str| match name {
        "full_attention" => Ok(None),
        "sliding_attention" => Ok(window),
        other => Err(LoadError::UnsupportedFeature {
            key: key.to_owned(),
            value: Some(other.to_owned()),
        }),
    };
    types.iter().map(of).collect::<Result<Vec<_>, _>>().map(Some)
}

/// The length of a sliding window.
pub(super) fn window(keys: &Keys<'_>) -> Result<Option<usize>, KeyError> {
    // A window of 0 says that there is none.
    match keys.metadata.unsigned(&keys.full(WINDOW))? {
        Some(0) => Ok(None),
        _ => keys.count(WINDOW, MAX_CONTEXT),
    }
}
