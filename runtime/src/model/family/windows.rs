//! Which layers have a sliding window, and how long it is.

use serde_json::{Map, Value as Json};

use super::{Key, Keys, MAX_CONTEXT, key, out_of_range};
use crate::model::file::LoadError;
use crate::model::metadata::{KeyError, Metadata};

const WINDOW: Key = key("attention.sliding_window", "sliding_window");

/// Layers that have a family's sliding window, where `layer_types` does not say which.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// Not known: the context is limited to the window, within which it changes nothing.
    Unknown,
    /// All.
    All,
    /// Those from `max_window_layers` on, and only if `use_sliding_window` says so.
    Upper,
}

/// `max_window_layers` where the file has none, as in the reference implementation.
const MAX_WINDOW_LAYERS: usize = 28;

/// Window of a model of [`Windows::All`] or [`Windows::Upper`] whose file has no key for it, as in the
/// reference implementation.
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
    match family {
        Windows::All | Windows::Upper if !json.contains_key(WINDOW.json) => Ok(Some(DEFAULT_WINDOW)),
        _ => window(keys),
    }
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
            Windows::All => 0,
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
