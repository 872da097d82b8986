//! One request in the words of four APIs, and what came back when.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::arguments::{Arguments, Backend, Dataset};
use super::workload::Ask;
use crate::completion::Events;
use crate::http::{self, BenchError, Target};

/// A route and its shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Completions,
    Chat,
    /// SGLang's own: each event tells the text and the token counts so far.
    Generate,
    /// A vector instead of a text.
    Embeddings,
}

/// A question of a chat and what the server answered.
#[derive(Clone, Debug)]
pub(super) struct Said<'a> {
    pub(super) prompt: &'a str,
    pub(super) answer: String,
}

/// What all requests of a load have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client<'a> {
    pub(super) target: Target<'a>,
    pub(super) api: Api,
    pub(super) model: &'a str,
    pub(super) options: &'a Arguments,
}

/// A piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Since the request was sent.
    pub(super) at: Duration,
    pub(super) text: String,
    /// Output tokens up to here; `None` where only the last event tells.
    pub(super) n_so_far: Option<u64>,
}

/// What the server counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    /// `None` where the server does not tell.
    pub(super) cached_tokens: Option<u64>,
    /// Drafted output tokens that were accepted; `None` where the server does not tell or drafted none.
    pub(super) accepted_tokens: Option<u64>,
}

/// An answer that came whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// From sending to the last event.
    pub(super) latency: Duration,
    /// Those with text; one, at the end, of an answer that was not streamed; none of a vector.
    pub(super) pieces: Vec<Piece>,
    pub(super) usage: Usage,
}

impl Answer {
    pub(super) fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }
}

impl Api {
    pub(super) fn of(backend: Backend, dataset: Dataset) -> Self {
        match backend {
            _ if dataset == Dataset::Embeddings => Self::Embeddings,
            Backend::Sglang => Self::Generate,
            Backend::Arbora
            | Backend::LlamaServer
            | Backend::Lmdeploy
            | Backend::SglangOai
            | Backend::Vllm => Self::Completions,
            Backend::ArboraChat
            | Backend::LlamaServerChat
            | Backend::LmdeployChat
            | Backend::SglangOaiChat
            | Backend::VllmChat => Self::Chat,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
            Self::Generate => "/generate",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The text of an answer or of one of its events.
    fn text(self, event: &Value) -> &str {
        let choice = &event["choices"][0];
        let message = match choice["delta"].is_object() {
            true => &choice["delta"],
            false => &choice["message"],
        };
        let texts = match self {
            Self::Completions => [&choice["text"], &Value::Null],
            Self::Chat => [&message["content"], &message["reasoning_content"]],
            Self::Generate => [&event["text"], &Value::Null],
            Self::Embeddings => return "",
        };
        let mut texts = texts.into_iter().filter_map(Value::as_str);
        texts.find(|text| !text.is_empty()).unwrap_or_default()
    }

    fn usage(self, event: &Value) -> Option<Usage> {
        let usage = match self {
            Self::Completions | Self::Chat | Self::Embeddings => &event["usage"],
            Self::Generate => &event["meta_info"],
        };
        let cached = match self {
            Self::Completions | Self::Chat | Self::Embeddings => {
                &usage["prompt_tokens_details"]["cached_tokens"]
            }
            Self::Generate => &usage["cached_tokens"],
        };
        let accepted = &usage["completion_tokens_details"]["accepted_prediction_tokens"];
        // llama-server's own names.
        let timings = &event["timings"];
        Some(Usage {
            prompt_tokens: usage["prompt_tokens"].as_u64()?,
            completion_tokens: match self {
                Self::Embeddings => 0,
                _ => usage["completion_tokens"].as_u64()?,
            },
            cached_tokens: cached.as_u64().or(timings["cache_n"].as_u64()),
            accepted_tokens: accepted.as_u64().or(timings["draft_n_accepted"].as_u64()),
        })
    }
}

impl Client<'_> {
    /// Sends `ask`, after all that was `said` in its chat, and reads all of its answer.
    pub(super) fn complete(&self, said: &[Said<'_>], ask: &Ask) -> Result<Answer, BenchError> {
        let body = self.body(said, ask).to_string();
        let path = self.api.path();
        let mut reading = Reading::new(self.api);
        let response = http::send(self.target, path, Some(&body))?;
        if !self.streams() || response.head.status != 200 {
            let (_, text) = response.text(path)?;
            return reading.whole(&text);
        }
        let mut failed = None;
        response.read(|data| match reading.push(data) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        match failed {
            Some(error) => Err(error),
            None => reading.finish(),
        }
    }

    fn streams(&self) -> bool {
        !self.options.disable_stream && self.api != Api::Embeddings
    }

    fn body(&self, said: &[Said<'_>], ask: &Ask) -> Value {
        let (n, model) = (ask.output_len, self.model);
        let stream = self.streams();
        let ignore_eos = !self.options.disable_ignore_eos;
        let mut body = match self.api {
            Api::Embeddings => json!({ "model": model, "input": ask.prompt }),
            Api::Completions => json!({ "model": model, "prompt": text(said, ask), "max_tokens": n }),
            Api::Chat => json!({ "model": model, "messages": messages(said, ask), "max_tokens": n }),
            Api::Generate => json!({
                "text": text(said, ask),
                "sampling_params": { "temperature": 0.0, "max_new_tokens": n, "ignore_eos": ignore_eos },
            }),
        };
        if matches!(self.api, Api::Completions | Api::Chat) {
            body["temperature"] = json!(0.0);
            body["ignore_eos"] = json!(ignore_eos);
            if stream {
                body["stream_options"] = json!({ "include_usage": true });
            }
        }
        if self.api != Api::Embeddings {
            body["stream"] = json!(stream);
        }
        let fields: &Map<String, Value> = &self.options.extra_request_body.0;
        for (name, value) in ask.fields.iter().chain(fields) {
            body[name.as_str()] = value.clone();
        }
        body
    }
}

/// A chat as one text.
fn text(said: &[Said<'_>], ask: &Ask) -> String {
    let turn = |said: &Said<'_>| format!("{}{}\n\n", said.prompt, said.answer);
    said.iter().map(turn).collect::<String>() + &ask.prompt
}

fn messages(said: &[Said<'_>], ask: &Ask) -> Value {
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let turns = said
        .iter()
        .flat_map(|said| [message("user", said.prompt), message("assistant", &said.answer)]);
    turns.chain([message("user", &ask.prompt)]).collect()
}

/// An answer on its way.
struct Reading {
    api: Api,
    sent: Instant,
    events: Events,
    pieces: Vec<Piece>,
    /// Bytes of text that the events of `/generate` repeat.
    n_known: usize,
    usage: Option<Usage>,
    /// When the last event came.
    latency: Duration,
    is_done: bool,
}

impl Reading {
    /// Time runs from here.
    fn new(api: Api) -> Self {
        Self {
            api,
            sent: Instant::now(),
            events: Events::default(),
            pieces: Vec::new(),
            n_known: 0,
            usage: None,
            latency: Duration::ZERO,
            is_done: false,
        }
    }

    fn push(&mut self, data: &[u8]) -> Result<(), BenchError> {
        let at = self.sent.elapsed();
        for payload in self.events.push(data) {
            self.latency = at;
            if payload == "[DONE]" {
                self.is_done = true;
            } else {
                self.event(&payload, at)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, payload: &str, at: Duration) -> Result<(), BenchError> {
        let event: Value = serde_json::from_str(payload).map_err(|_| BenchError::Answer {
            field: "valid JSON",
            body: payload.to_owned(),
        })?;
        if event["error"] != Value::Null || event["object"] == "error" {
            return Err(BenchError::Check(format!(
                "the stream reports an error: {payload}"
            )));
        }
        let vector = &event["data"][0]["embedding"];
        if self.api == Api::Embeddings && vector.as_array().is_none_or(Vec::is_empty) {
            return Err(BenchError::Answer {
                field: "data[0].embedding",
                body: payload.to_owned(),
            });
        }
        let usage = self.api.usage(&event);
        self.usage = usage.or(self.usage);
        let text = self.api.text(&event);
        let text = match self.api {
            // Where the text so far is repeated, only what is new counts.
            Api::Generate => text.get(self.n_known..).unwrap_or_default(),
            Api::Completions | Api::Chat | Api::Embeddings => text,
        };
        if !text.is_empty() {
            self.n_known += text.len();
            self.pieces.push(Piece {
                at,
                text: text.to_owned(),
                n_so_far: usage.map(|usage| usage.completion_tokens),
            });
        }
        Ok(())
    }

    fn whole(mut self, body: &str) -> Result<Answer, BenchError> {
        self.latency = self.sent.elapsed();
        self.is_done = true;
        self.event(body, self.latency)?;
        self.finish()
    }

    fn finish(self) -> Result<Answer, BenchError> {
        if !self.is_done {
            let n = self.pieces.len();
            let message = format!("the stream ended after {n} pieces of text, before [DONE]");
            return Err(BenchError::Check(message));
        }
        let texts = self.pieces.iter().map(|piece| piece.text.as_str());
        let usage = self.usage.ok_or_else(|| BenchError::Answer {
            field: "usage",
            body: texts.collect(),
        })?;
        Ok(Answer {
            latency: self.latency,
            pieces: self.pieces,
            usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_the_name_each_server_gives_them() {
        let event = json!({
            "choices": [],
            "usage": { "prompt_tokens": 9, "completion_tokens": 7 },
            "timings": { "cache_n": 5, "prompt_n": 4, "draft_n": 6, "draft_n_accepted": 3 },
        });
        let expected = Usage {
            prompt_tokens: 9,
            completion_tokens: 7,
            cached_tokens: Some(5),
            accepted_tokens: Some(3),
        };
        assert_eq!(Api::Chat.usage(&event), Some(expected));
        assert_eq!(Api::Generate.usage(&event), None);
        let silent = json!({ "usage": { "prompt_tokens": 9, "completion_tokens": 7 } });
        let usage = Api::Completions.usage(&silent).expect("both counts are there");
        assert_eq!((usage.cached_tokens, usage.accepted_tokens), (None, None));
        assert_eq!(Api::Completions.usage(&json!({ "usage": null })), None);
    }

    #[test]
    fn thoughts_are_text_too() {
        let thought = json!({ "choices": [{ "delta": { "content": null, "reasoning_content": "hm" } }] });
        assert_eq!(Api::Chat.text(&thought), "hm");
        let role = json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] });
        assert_eq!(Api::Chat.text(&role), "");
    }
}
