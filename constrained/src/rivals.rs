//! Strings compared with the beginning of one that is being written, a byte at a time and without escapes.

use crate::memory::Value;

impl Value {
    /// Byte number `n` of the value, a string, as it is written without escapes, or the quote that ends it.
    pub(crate) fn byte_at(&self, n: u32) -> u8 {
        match self {
            Self::Scalar(text) => text.get(n as usize).copied().unwrap_or(b'"'),
            Self::Array(_) | Self::Object(_) => unreachable!("it is a rival of a string"),
        }
    }

    /// Whether a text of `n` bytes of which `last` is the last one may become it, when the text without that
    /// byte may: a string that has no escape so far.
    pub(crate) fn goes_on(&self, n: u32, last: u8) -> bool {
        match self {
            Self::Scalar(text) if last == b'"' => n as usize == text.len() + 1,
            Self::Scalar(text) => text.get(n as usize - 1) == Some(&last),
            Self::Array(_) | Self::Object(_) => unreachable!("it is a rival of a string"),
        }
    }
}
