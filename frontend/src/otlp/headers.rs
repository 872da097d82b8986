//! Headers that a collector wants to see, such as a key, spelled as for other exporters of OpenTelemetry.

use percent_encoding::percent_decode_str;
use ureq::http::{HeaderName, HeaderValue};

/// Names and values.
pub type Headers = Vec<(HeaderName, HeaderValue)>;

/// A pair that is none. It may hold a secret, so it is told by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {place} of OTEL_EXPORTER_OTLP_HEADERS must be NAME=VALUE, with commas between them")]
pub struct BadHeader {
    /// From 1.
    pub place: usize,
}

/// Reads `name=value,name=value`, values percent-encoded.
///
/// # Errors
/// Where a pair has no `=`, or is not a header of HTTP.
pub fn read_headers(text: &str) -> Result<Headers, BadHeader> {
    let pairs = text.split(',').map(str::trim).enumerate();
    let pairs = pairs.filter(|(_, pair)| !pair.is_empty());
    let header = |(idx, pair): (usize, &str)| {
        let bad = BadHeader { place: idx + 1 };
        let (name, value) = pair.split_once('=').ok_or(bad)?;
        let value: Vec<u8> = percent_decode_str(value.trim()).collect();
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| bad)?;
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| bad)?;
        value.set_sensitive(true);
        Ok((name, value))
    };
    pairs.map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_and_never_shown() {
        let headers = read_headers(" x-key = a%20b%2C=c , authorization=Bearer%20k,,").expect("two headers");
        let read: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII")))
            .collect();
        assert_eq!(read, [("x-key", "a b,=c"), ("authorization", "Bearer k")]);
        assert!(!format!("{headers:?}").contains("Bearer"));
        assert_eq!(read_headers(""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_header_is_refused_by_its_place() {
        for (text, place) in [("secret", 1), ("a=1,b c=2", 2), ("a=1,,b=%0a", 3), ("=1", 1)] {
            let error = read_headers(text).expect_err(text);
            assert_eq!(error, BadHeader { place }, "{text}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
