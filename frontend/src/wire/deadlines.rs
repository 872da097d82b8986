//! How long a client is willing to wait, from headers, since no API has a field for it.
//!
//! ```text
//! x-arbora-timeout-ms         whole request; what was made by then stands, with finish_reason "length"
//! x-arbora-queue-timeout-ms   until its first step; a 503 after that
//! ```

use std::time::Duration;

use axum::http::HeaderMap;

use super::error::ApiError;

/// Longest wait that can be asked for: a day.
pub const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// What a client set itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadlines {
    /// From arrival to the first step.
    pub queue: Option<Duration>,
    /// From arrival to the end.
    pub total: Option<Duration>,
}

impl Deadlines {
    /// Reads the headers.
    pub fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        Ok(Deadlines {
            queue: milliseconds(headers, "x-arbora-queue-timeout-ms")?,
            total: milliseconds(headers, "x-arbora-timeout-ms")?,
        })
    }
}

fn milliseconds(headers: &HeaderMap, name: &str) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let given = value.to_str().unwrap_or_default();
    match given.parse::<u64>() {
        Ok(ms) if (1..=MAX_TIMEOUT_MS).contains(&ms) => Ok(Some(Duration::from_millis(ms))),
        _ => {
            let shown: String = given.chars().take(40).collect();
            let message = format!("The header '{name}' must be in [1, {MAX_TIMEOUT_MS}], got '{shown}'.");
            Err(ApiError::invalid(name, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn whole_milliseconds_within_a_day_are_taken() {
        let mut headers = HeaderMap::new();
        assert_eq!(Deadlines::read(&headers), Ok(Deadlines::default()));
        headers.insert("x-arbora-timeout-ms", HeaderValue::from_static("1500"));
        let read = Deadlines::read(&headers).expect("valid");
        assert_eq!(
            (read.total, read.queue),
            (Some(Duration::from_millis(1500)), None)
        );
        for bad in ["0", "-1", "1.5", "86400001", "soon", ""] {
            headers.insert("x-arbora-queue-timeout-ms", HeaderValue::from_static(bad));
            let error = Deadlines::read(&headers).expect_err(bad).to_string();
            assert!(
                error.contains("x-arbora-queue-timeout-ms") && error.contains(bad),
                "{error}"
            );
        }
    }
}
