//! The objects of Ollama's chats and texts.
//!
//! ```text
//! whole     {message | response, done: true, done_reason, counts and times}
//! streamed  {message | response, done: false}     a line per engine step with something new
//!           {…, done: true, done_reason, counts and times}
//! ```
//!
//! Calls of tools come whole.

use std::time::{Duration, Instant};

use arbora_runtime::request::{FinishClass, FinishReason};
use axum::Json;
use axum::response::{IntoResponse, Response};

use super::nanoseconds;
use crate::api::unix_seconds;
use crate::calendar::rfc3339;
use crate::logprobs::LogprobWriter;
use crate::pipeline::{Dialect, Events, Framing};
use crate::random::random_id;
use crate::stream::{Generation, Piece};
use crate::tools::CallPiece;
use crate::wire::anthropic::response::input;
use crate::wire::error::{self, ApiError};
use crate::wire::ollama::response::{AssistantMessage, Call, Called, Figures, Line, Said};
use crate::wire::response::ChatTokenLogprobs;

/// What was measured before the output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) arrived: Instant,
    /// Spent on loading the model.
    pub(super) load: Duration,
}

/// What an answer says besides the model's words.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) model: String,
    pub(super) is_chat: bool,
    /// Tokens of the prompt, where the answer lists them and those of the output.
    pub(super) context: Option<Vec<u32>>,
    pub(super) times: Times,
    pub(super) logprobs: LogprobWriter,
}

/// What came and was not told yet.
#[derive(Debug, Default)]
struct New {
    text: String,
    thinking: String,
    calls: Vec<Call>,
    logprobs: Option<Vec<ChatTokenLogprobs>>,
}

impl New {
    fn is_nothing(&self) -> bool {
        let is_silent = self.text.is_empty() && self.thinking.is_empty() && self.calls.is_empty();
        is_silent && self.logprobs.as_ref().is_none_or(Vec::is_empty)
    }
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct OllamaAnswer {
    told: Told,
    new: New,
    /// A call that goes on: its name, and its arguments so far.
    open_call: Option<(String, String)>,
    n_calls: usize,
    done_reason: Option<&'static str>,
}

impl OllamaAnswer {
    pub(super) fn new(told: Told) -> Self {
        OllamaAnswer {
            told,
            new: New::default(),
            open_call: None,
            n_calls: 0,
            done_reason: None,
        }
    }

    fn take(&mut self, piece: Piece) -> Result<(), ApiError> {
        self.new.text.push_str(&piece.text);
        self.new.thinking.push_str(&piece.reasoning);
        if let Some(told) = self.told.logprobs.chat(&piece.logprobs) {
            self.new.logprobs.get_or_insert_default().extend(told.content);
        }
        for call in piece.calls {
            match call {
                CallPiece::Begin { name, .. } => {
                    self.end_call();
                    self.open_call = Some((name, String::new()));
                }
                CallPiece::Arguments { text, .. } => {
                    let (_, arguments) = self.open_call.as_mut().expect("a call begins before it goes on");
                    arguments.push_str(&text);
                }
            }
        }
        if let Some(context) = &mut self.told.context {
            context.extend(&piece.tokens);
        }
        let Some(reason) = piece.finish else {
            return Ok(());
        };
        self.end_call();
        if let (Some(context), FinishReason::StopToken(token)) = (&mut self.told.context, &reason) {
            context.push(*token);
        }
        self.done_reason = Some(match reason.class() {
            FinishClass::Stop => "stop",
            FinishClass::Length => "length",
            FinishClass::Failed => return Err(ApiError::of_ending(&reason)),
        });
        Ok(())
    }

    fn end_call(&mut self) {
        let Some((name, arguments)) = self.open_call.take() else {
            return;
        };
        self.new.calls.push(Call {
            id: format!("call_{}", &random_id()[..24]),
            function: Called {
                index: self.n_calls,
                name,
                arguments: input(&arguments),
            },
        });
        self.n_calls += 1;
    }

    /// What is new; with `figures`, as the end.
    fn line(&mut self, figures: Option<Figures>) -> Line<'_> {
        let new = std::mem::take(&mut self.new);
        let said = match self.told.is_chat {
            true => Said::Chat {
                message: AssistantMessage {
                    role: "assistant",
                    content: new.text,
                    thinking: new.thinking,
                    tool_calls: new.calls,
                },
            },
            false => Said::Text {
                response: new.text,
                thinking: new.thinking,
            },
        };
        let is_done = figures.is_some();
        Line {
            model: &self.told.model,
            created_at: rfc3339(unix_seconds()),
            said,
            logprobs: new.logprobs,
            done: is_done,
            done_reason: self.done_reason.filter(|_| is_done),
            context: self.told.context.take_if(|_| is_done),
            figures,
        }
    }

    fn figures(&self, generation: &Generation) -> Figures {
        let Times { arrived, load } = self.told.times;
        let usage = generation.finished(0).map(|finished| finished.usage);
        let times = (nanoseconds(arrived.elapsed()), nanoseconds(load));
        Figures::new(times, &usage.unwrap_or_default())
    }
}

impl Dialect for OllamaAnswer {
    const FRAMING: Framing = Framing::Lines;

    fn collect(&mut self, piece: Piece, _: &Generation) -> Result<(), ApiError> {
        self.take(piece)
    }

    fn whole(&mut self, generation: &mut Generation) -> Result<Response, ApiError> {
        let figures = self.figures(generation);
        Ok(Json(self.line(Some(figures))).into_response())
    }

    fn open(&mut self, _: &mut Generation, _: &mut Events) {}

    fn piece(&mut self, piece: Piece, _: &mut Generation, events: &mut Events) -> Result<(), ApiError> {
        self.take(piece)?;
        if !self.new.is_nothing() {
            events.send(None, &self.line(None));
        }
        Ok(())
    }

    fn close(&mut self, generation: &Generation, events: &mut Events) {
        let figures = self.figures(generation);
        events.send(None, &self.line(Some(figures)));
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        events.send(None, &error::plain(error).1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arbora_runtime::request::LogprobsWanted;
    use arbora_runtime::tokenizer::Tokenizer;
    use serde_json::{Value, json};

    use super::*;
    use crate::pipeline::{self, KEEP_ALIVE};
    use crate::stream::testing::{body, finished, generation, tokens};

    fn answer(is_chat: bool) -> OllamaAnswer {
        let tokenizer = Arc::new(Tokenizer::of_bytes(256));
        OllamaAnswer::new(Told {
            model: "m".to_owned(),
            is_chat,
            context: (!is_chat).then(|| vec![7]),
            times: Times {
                arrived: Instant::now(),
                load: Duration::from_nanos(3),
            },
            logprobs: LogprobWriter::new(tokenizer, LogprobsWanted::default(), 1),
        })
    }

    #[tokio::test]
    async fn a_stream_is_lines_of_which_the_last_one_counts() {
        let script = vec![
            tokens(1, "Hi"),
            tokens(1, ""),
            finished(FinishReason::StopToken(9)),
        ];
        let (one, _senders) = generation(vec![script], 1);
        let response = pipeline::stream(one, answer(false), KEEP_ALIVE);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        let body = body(response).await;
        let lines = body.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let [first, last]: [Value; 2] = lines.collect::<Vec<_>>().try_into().expect("two lines");
        assert_eq!(
            (&first["response"], &first["done"], first.get("done_reason")),
            (&json!("Hi"), &json!(false), None)
        );
        assert_eq!(
            (&last["response"], &last["done"], &last["done_reason"]),
            (&json!(""), &json!(true), &json!("stop"))
        );
        assert_eq!(last["context"], json!([7, 0, 0, 9]), "prompt, output and its end");
        assert_eq!(
            (
                &last["prompt_eval_count"],
                &last["eval_count"],
                &last["load_duration"]
            ),
            (&json!(5), &json!(2), &json!(3))
        );
        assert!(last["total_duration"].as_u64().is_some_and(|time| time > 0));
    }

    #[tokio::test]
    async fn a_failure_half_way_is_a_line_of_its_own() {
        let (one, _senders) = generation(
            vec![vec![tokens(1, "Hi"), finished(FinishReason::QueueDeadline)]],
            1,
        );
        let body = body(pipeline::stream(one, answer(true), KEEP_ALIVE)).await;
        let last = body.lines().last().expect("lines");
        let expected = ApiError::QueueTimeout.to_string();
        assert_eq!(last, json!({"error": expected}).to_string());
    }
}
