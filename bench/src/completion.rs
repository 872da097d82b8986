//! One streamed completion, timed as a client sees it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{self, BenchError};

/// What to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) model: String,
    pub(crate) prompt: String,
    pub(crate) max_tokens: usize,
}

/// What came back, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// From sending the request to the first text.
    pub(crate) ttft: Duration,
}

/// Server-sent events out of pieces that may end anywhere. An event is one `data:` line, as every server of
/// these APIs sends it, ended by either kind of line end.
#[derive(Debug, Default)]
pub(crate) struct Events {
    tail: Vec<u8>,
}

impl Events {
    /// The `data:` payloads completed by `data`.
    pub(crate) fn push(&mut self, data: &[u8]) -> Vec<String> {
        self.tail.extend_from_slice(data);
        let n_complete = self
            .tail
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |i| i + 1);
        let complete: Vec<u8> = self.tail.drain(..n_complete).collect();
        let complete = String::from_utf8_lossy(&complete);
        let payloads = complete.lines().filter_map(|line| line.strip_prefix("data:"));
        payloads.map(|payload| payload.trim().to_owned()).collect()
    }
}

/// Streams a greedy completion of exactly `max_tokens` tokens.
pub(crate) fn stream(authority: &str, ask: &Ask) -> Result<Measured, BenchError> {
    let body = json!({
        "model": ask.model, "prompt": ask.prompt, "max_tokens": ask.max_tokens, "temperature": 0,
        "ignore_eos": true, "stream": true, "stream_options": { "include_usage": true },
    });
    let start = Instant::now();
    let mut events = Events::default();
    let (mut ttft, mut usage, mut raw) = (None, None, Vec::new());
    let head = http::request(authority, "/v1/completions", Some(&body.to_string()), |data| {
        raw.extend_from_slice(data);
        for payload in events.push(data) {
            let Ok(chunk) = serde_json::from_str::<Value>(&payload) else {
                continue;
            };
            let text = chunk["choices"][0]["text"].as_str().unwrap_or_default();
            if !text.is_empty() && ttft.is_none() {
                ttft = Some(start.elapsed());
            }
            if chunk["usage"].is_object() {
                usage = Some(chunk["usage"].clone());
            }
        }
        ControlFlow::Continue(())
    })?;
    let raw = String::from_utf8_lossy(&raw).into_owned();
    if head.status != 200 {
        return Err(BenchError::Status {
            path: "/v1/completions".to_owned(),
            status: head.status,
            body: raw,
        });
    }
    let usage = usage.ok_or_else(|| BenchError::Answer {
        field: "usage",
        body: raw.clone(),
    })?;
    let count = |value: &Value, field| {
        value.as_u64().ok_or_else(|| BenchError::Answer {
            field,
            body: usage.to_string(),
        })
    };
    Ok(Measured {
        prompt_tokens: count(&usage["prompt_tokens"], "prompt_tokens")?,
        cached_tokens: count(&usage["prompt_tokens_details"]["cached_tokens"], "cached_tokens")?,
        completion_tokens: count(&usage["completion_tokens"], "completion_tokens")?,
        ttft: ttft.ok_or(BenchError::Answer {
            field: "text",
            body: raw,
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let text = ": keep-alive\n\ndata: {\"a\":\"é\"}\n\ndata: [DONE]\r\n\r\n".as_bytes();
        for cut in 0..=text.len() {
            let mut events = Events::default();
            let mut payloads = events.push(&text[..cut]);
            payloads.extend(events.push(&text[cut..]));
            assert_eq!(payloads, ["{\"a\":\"é\"}", "[DONE]"], "cut at {cut}");
        }
    }
}
