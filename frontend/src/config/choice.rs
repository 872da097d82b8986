//! Options that are one of a few words.

use arbora_kernels::cpu::Isa;

use super::{ConfigError, bad_value};

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
