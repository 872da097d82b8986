//! Options whose value is one of some names.

use arbora_kernels::cpu::{Isa, Pinning};
use arbora_runtime::EvictionPolicy;

use super::{ConfigError, Drafts};

pub(super) const DRAFTS: [(&str, Drafts); 4] = [
    ("auto", Drafts::Auto),
    ("off", Drafts::Off),
    ("ngram", Drafts::Ngram),
    ("radix", Drafts::Radix),
];

pub(super) const PINNINGS: [(&str, Pinning); 3] = [
    ("auto", Pinning::Auto),
    ("cores", Pinning::Cores),
    ("none", Pinning::Free),
];

pub(super) const EVICTION_POLICIES: [(&str, EvictionPolicy); 4] = [
    ("lru", EvictionPolicy::Lru),
    ("lfu", EvictionPolicy::Lfu),
    ("slru", EvictionPolicy::Slru),
    ("priority", EvictionPolicy::Priority),
];

/// The choice with the given name, where one was given.
pub(super) fn choice<T: Copy>(
    option: &'static str,
    choices: &[(&'static str, T)],
    given: Option<String>,
) -> Result<Option<T>, ConfigError> {
    let Some(given) = given else { return Ok(None) };
    let found = choices
        .iter()
        .find(|(name, _)| *name == given)
        .map(|(_, value)| *value);
    let names = || {
        choices
            .iter()
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    found
        .map(Some)
        .ok_or_else(|| bad_value(option, format!("one of {}", names()), given))
}

/// The instruction sets of this machine by their names.
pub(super) fn isa_names() -> Vec<(&'static str, Isa)> {
    Isa::available()
        .into_iter()
        .map(|isa| (isa.name(), isa))
        .collect()
}

#[expect(clippy::needless_pass_by_value, reason = "an error takes what it names")]
pub(super) fn bad_value(
    option: &'static str,
    expected: impl Into<String>,
    value: impl ToString,
) -> ConfigError {
    ConfigError::BadValue {
        option,
        expected: expected.into(),
        value: value.to_string(),
    }
}
