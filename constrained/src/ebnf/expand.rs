//! Regular expressions within a grammar: leaves that know nothing of what stands around them.

use regex_syntax::hir::Hir;

use crate::error::shorten;
use crate::pattern::{Bounds, Leaf, Pattern, Syntax};

/// `pattern`, in Rust's syntax. Anchors at its ends are those of the text that it matches.
pub(crate) fn regex(pattern: &str, bounds: Bounds) -> Result<Leaf, String> {
    let pattern = Pattern::parse(pattern, Syntax::Rust);
    let leaf = pattern.and_then(|pattern| pattern.without_outer_anchors().leaf(bounds));
    leaf.map_err(|error| error.to_string())
}

/// `pattern` with `flags`, in the syntax of Python's `re`. Anchors at its ends are those of the text that it
/// matches.
pub(crate) fn python_regex(pattern: &str, flags: &str, bounds: Bounds) -> Result<Leaf, String> {
    let pattern = Pattern::parse_with_flags(pattern, Syntax::Python, flags);
    let leaf = pattern.and_then(|pattern| pattern.without_outer_anchors().leaf(bounds));
    leaf.map_err(|error| error.to_string())
}

/// `text` with every ASCII letter in both cases.
pub(crate) fn any_case(text: &str) -> Result<Hir, String> {
    if !text.is_ascii() {
        let text = shorten(text);
        return Err(format!("`{text}` is to be read in any case and is not ASCII"));
    }
    let letters = text.chars().map(|c| {
        let cases = [c.to_ascii_lowercase(), c.to_ascii_uppercase()];
        let ranges = cases.map(|c| regex_syntax::hir::ClassUnicodeRange::new(c, c));
        Hir::class(regex_syntax::hir::Class::Unicode(
            regex_syntax::hir::ClassUnicode::new(ranges),
        ))
    });
    Ok(Hir::concat(letters.collect()))
}
