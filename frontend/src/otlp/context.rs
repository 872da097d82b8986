//! Ids of traces and spans, and the `traceparent` header of W3C Trace Context (level 1, section 3.2).
//!
//! ```text
//! 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//! version    trace id                 parent span id    flags; the lowest bit says sampled
//! ```

use std::fmt;

use axum::http::HeaderMap;
use serde::{Serialize, Serializer};

use crate::random::random_u64;

const TRACEPARENT: &str = "traceparent";
/// Bytes of a header of version 00; those of later versions may go on after a dash.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;

/// Not all zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Id<const N: usize>([u8; N]);

pub(super) type TraceId = Id<16>;
pub(super) type SpanId = Id<8>;

impl<const N: usize> Id<N> {
    pub(super) fn random() -> Self {
        let mut bytes = [0; N];
        while bytes == [0; N] {
            for part in bytes.chunks_mut(8) {
                part.copy_from_slice(&random_u64().to_ne_bytes()[..part.len()]);
            }
        }
        Id(bytes)
    }

    /// An id in lower-case hexadecimal digits.
    fn parse(digits: &[u8]) -> Option<Self> {
        let (pairs, []) = digits.as_chunks() else {
            return None;
        };
        let mut bytes = [0; N];
        if pairs.len() != N {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = hex_byte(*pair)?;
        }
        (bytes != [0; N]).then_some(Id(bytes))
    }
}

impl<const N: usize> fmt::Display for Id<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Id<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Id<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The caller's span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceParent {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    /// Whether the caller records its own.
    pub(super) is_sampled: bool,
}

impl TraceParent {
    /// The caller's span, unless the header is missing, malformed or there twice: then a new trace begins.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(only), None) => Self::parse(only.as_bytes()),
            _ => None,
        }
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let version = hex_byte([known[0], known[1]])?;
        let is_whole = match version {
            0x00 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        if !is_whole || [2, 35, 52].iter().any(|&place| known[place] != b'-') {
            return None;
        }
        let flags = hex_byte([known[53], known[54]])?;
        Some(TraceParent {
            trace_id: Id::parse(&known[3..35])?,
            span_id: Id::parse(&known[36..52])?,
            is_sampled: flags & SAMPLED != 0,
        })
    }
}

fn hex_byte(digits: [u8; 2]) -> Option<u8> {
    let digit = |byte| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    Some(digit(digits[0])? << 4 | digit(digits[1])?)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const TRACE: &str = "12345678901234567890123456789012";
    const SPAN: &str = "1234567890123456";

    fn read(values: &[&str]) -> Option<TraceParent> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                TRACEPARENT,
                HeaderValue::from_str(value).expect("a header's value"),
            );
        }
        TraceParent::read(&headers)
    }

    #[test]
    fn a_valid_header_is_read_with_its_flag() {
        for (flags, is_sampled) in [("00", false), ("01", true), ("02", false), ("ff", true)] {
            let parent = read(&[&format!("00-{TRACE}-{SPAN}-{flags}")]).expect("valid");
            assert_eq!(parent.trace_id.to_string(), TRACE);
            assert_eq!(parent.span_id.to_string(), SPAN);
            assert_eq!(parent.is_sampled, is_sampled, "{flags}");
        }
        let letters = read(&["00-abcdef0123456789abcdef0123456789-00000000000000ff-01"]).expect("valid");
        assert_eq!(letters.trace_id.to_string(), "abcdef0123456789abcdef0123456789");
        assert_eq!(letters.span_id.to_string(), "00000000000000ff");
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        for good in ["", "-", "-what-the-future-will-be-like"] {
            let parent = read(&[&format!("cc-{TRACE}-{SPAN}-01{good}")]);
            assert_eq!(parent.map(|parent| parent.is_sampled), Some(true), "{good}");
        }
        assert_eq!(read(&[&format!("cc-{TRACE}-{SPAN}-01.what-the-future")]), None);
    }

    /// The malformed headers of W3C's own validation of implementations.
    #[test]
    fn malformed_headers_are_no_parent() {
        let bad = [
            format!("00-{TRACE}-{SPAN}-01."),
            format!("00-{TRACE}-{SPAN}-01-what-the-future-will-be-like"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!(".0-{TRACE}-{SPAN}-01"),
            format!("0.-{TRACE}-{SPAN}-01"),
            format!("000-{TRACE}-{SPAN}-01"),
            format!("0000-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-.{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{}.-{SPAN}-01", &TRACE[1..]),
            format!("00-{TRACE}3-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-.{}-01", &SPAN[1..]),
            format!("00-{TRACE}-{}.-01", &SPAN[1..]),
            format!("00-{TRACE}-{SPAN}7-01"),
            format!("00-{TRACE}-{}-01", &SPAN[1..]),
            format!("00-{TRACE}-{SPAN}-.0"),
            format!("00-{TRACE}-{SPAN}-0."),
            format!("00-{TRACE}-{SPAN}-001"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{}-{SPAN}-01", TRACE.replace('1', "A")),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}_{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}_01"),
            String::new(),
            "00".to_owned(),
        ];
        for value in &bad {
            assert_eq!(read(&[value]), None, "{value}");
        }
    }

    #[test]
    fn two_headers_are_none() {
        let (one, other) = (format!("00-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{SPAN}-00"));
        assert_eq!(read(&[&one, &other]), None);
        assert_eq!(read(&[&one, &one]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn random_ids_differ_and_have_their_length() {
        let ids: Vec<String> = (0..100).map(|_| TraceId::random().to_string()).collect();
        for (i, id) in ids.iter().enumerate() {
            assert!(id.len() == 32 && !ids[..i].contains(id));
        }
        assert_eq!(SpanId::random().to_string().len(), 16);
    }
}
