//! The HTTP side of `arbora chat`. Reading an answer blocks, so each has a thread of its own, which ends with
//! the answer or with the first word after nobody listens any more.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::ChatError;
use crate::config::ChatOptions;
use crate::tls::system_tls;
use crate::workers::spawn_thread;

/// Pieces of an answer that wait for the terminal.
const MAX_PIECES: usize = 256;
/// Most bytes of one line of a stream, and of an answer that is no stream.
const MAX_BYTES: u64 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server speaks up every few seconds; one that is silent for this long is gone.
const SILENCE: Duration = Duration::from_secs(120);

/// One server and one of its models.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    url: String,
    key: Option<String>,
    model: String,
}

/// What comes of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    Text(String),
    /// Once, at the end.
    Usage(Counts),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) prompt: u64,
    /// At most `prompt`.
    pub(super) cached: u64,
    pub(super) output: u64,
}

impl Client {
    /// Finds the server, and the model where none was named.
    pub(super) async fn connect(options: &ChatOptions) -> Result<Client, ChatError> {
        let url = options
            .url
            .trim_end_matches('/')
            .trim_end_matches("/v1")
            .to_owned();
        let is_secure = url.starts_with("https://");
        if !is_secure && !url.starts_with("http://") {
            return Err(ChatError::BadUrl {
                url: options.url.clone(),
            });
        }
        let mut agent = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("arbora/", env!("CARGO_PKG_VERSION")))
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(SILENCE));
        if is_secure {
            agent = agent.tls_config(system_tls());
        }
        let mut client = Client {
            agent: agent.build().new_agent(),
            url,
            // The server takes several from the same variable; any of them will do.
            key: options
                .api_key
                .as_deref()
                .and_then(|keys| keys.split(',').next())
                .map(str::to_owned),
            model: options.model.clone().unwrap_or_default(),
        };
        // Also where a model was named: whether anybody answers is better known before a message is typed.
        let (told, asked) = oneshot::channel();
        spawn_thread("ask", move || {
            let found = client.first_model();
            // Whoever does not wait any more wants to know nothing.
            drop(told.send((client, found)));
        })?;
        let (mut connected, found) = asked.await.map_err(|_| ChatError::Broken {
            reason: "asking for the models panicked".to_owned(),
        })?;
        let found = found?;
        if options.model.is_none() {
            connected.model = found;
        }
        Ok(connected)
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    fn first_model(&mut self) -> Result<String, ChatError> {
        let request = self.agent.get(format!("{}/v1/models", self.url));
        let request = match self.authorization() {
            Some(value) => request.header("authorization", value),
            None => request,
        };
        let body = self.body_of(request.call())?;
        let list: Value = serde_json::from_str(&body).unwrap_or_default();
        let model = list["data"][0]["id"].as_str();
        model.map(str::to_owned).ok_or_else(|| ChatError::Broken {
            reason: format!("{} lists no model", self.url),
        })
    }

    /// Sends a chat; what is heard of the answer arrives on the channel, which closes at its end.
    pub(super) fn ask(&self, body: &Value) -> Result<mpsc::Receiver<Result<Heard, ChatError>>, ChatError> {
        let (heard, receiver) = mpsc::channel(MAX_PIECES);
        let client = Client {
            agent: self.agent.clone(),
            url: self.url.clone(),
            key: self.key.clone(),
            model: String::new(),
        };
        let body = body.to_string();
        // Not a task of the runtime: that would wait for it at the end.
        spawn_thread("listen", move || {
            if let Err(error) = client.listen(&body, &heard) {
                drop(heard.blocking_send(Err(error)));
            }
        })?;
        Ok(receiver)
    }

    fn listen(&self, body: &str, heard: &mpsc::Sender<Result<Heard, ChatError>>) -> Result<(), ChatError> {
        let request = self.agent.post(format!("{}/v1/chat/completions", self.url));
        let request = request.header("content-type", "application/json");
        let request = match self.authorization() {
            Some(value) => request.header("authorization", value),
            None => request,
        };
        let mut answer = self.accepted(request.send(body))?;
        let limited = answer.body_mut().with_config().limit(u64::MAX);
        let mut lines = BufReader::new(limited.reader());
        let mut line = String::new();
        loop {
            line.clear();
            let n_read = std::io::Read::take(&mut lines, MAX_BYTES).read_line(&mut line);
            let n_read = n_read.map_err(|error| ChatError::Broken {
                reason: error.to_string(),
            })?;
            if n_read == 0 {
                let reason = "the server closed the connection".to_owned();
                return Err(ChatError::Broken { reason });
            }
            // Comments between events keep the connection alive.
            let Some(data) = line.strip_prefix("data: ") else {
                if heard.is_closed() {
                    return Ok(());
                }
                continue;
            };
            if data.trim_end() == "[DONE]" {
                return Ok(());
            }
            for event in events(data)? {
                if heard.blocking_send(Ok(event)).is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn authorization(&self) -> Option<String> {
        self.key.as_ref().map(|key| format!("Bearer {key}"))
    }

    fn body_of(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<String, ChatError> {
        let mut answer = self.accepted(answer)?;
        let limited = answer.body_mut().with_config().limit(MAX_BYTES);
        limited.read_to_string().map_err(|error| ChatError::Broken {
            reason: error.to_string(),
        })
    }

    /// An answer that is no error.
    fn accepted(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, ChatError> {
        let mut answer = answer.map_err(|error| ChatError::NoServer {
            url: self.url.clone(),
            reason: error.to_string(),
        })?;
        match answer.status().as_u16() {
            200 => Ok(answer),
            401 => Err(ChatError::Unauthorized {
                url: self.url.clone(),
            }),
            status => {
                let limited = answer.body_mut().with_config().limit(MAX_BYTES);
                let body = limited.read_to_string().unwrap_or_default();
                Err(ChatError::Refused {
                    status,
                    message: message_of(&body),
                })
            }
        }
    }
}

/// The server's words in an error's body, or the beginning of whatever else it is.
fn message_of(body: &str) -> String {
    let error: Value = serde_json::from_str(body).unwrap_or_default();
    match error["error"]["message"].as_str() {
        Some(message) => message.to_owned(),
        None => body.chars().take(200).collect(),
    }
}

/// What one event of a stream says.
fn events(data: &str) -> Result<Vec<Heard>, ChatError> {
    let broken = |reason: String| ChatError::Broken { reason };
    let chunk: Value = serde_json::from_str(data).map_err(|error| broken(error.to_string()))?;
    if let Some(error) = chunk.get("error") {
        let message = error["message"].as_str().unwrap_or("an error without a message");
        return Err(broken(message.to_owned()));
    }
    let text = chunk["choices"][0]["delta"]["content"].as_str();
    let text = text.filter(|text| !text.is_empty());
    let mut heard: Vec<Heard> = text
        .map(|text| Heard::Text(text.to_owned()))
        .into_iter()
        .collect();
    let usage = &chunk["usage"];
    if let (Some(prompt), Some(output)) = (
        usage["prompt_tokens"].as_u64(),
        usage["completion_tokens"].as_u64(),
    ) {
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        heard.push(Heard::Usage(Counts {
            prompt,
            cached: cached.unwrap_or(0).min(prompt),
            output,
        }));
    }
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_text_usage_or_an_error() {
        let text = events(r#"{"choices": [{"delta": {"content": "a\nb"}}], "usage": null}"#);
        assert_eq!(text.expect("fine"), [Heard::Text("a\nb".to_owned())]);
        let opening = events(r#"{"choices": [{"delta": {"role": "assistant", "content": ""}}]}"#);
        assert_eq!(opening.expect("fine"), []);
        let usage = r#"{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 4}}}"#;
        let counts = Counts {
            prompt: 5,
            cached: 4,
            output: 2,
        };
        assert_eq!(events(usage).expect("fine"), [Heard::Usage(counts)]);
        let error = events(r#"{"error": {"message": "no more"}}"#).expect_err("an error");
        assert!(error.to_string().contains("no more"));
        assert!(events("{").is_err());
        assert_eq!(message_of("<html>"), "<html>");
    }
}
