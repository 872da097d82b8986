//! Answers to completions: one JSON object, or server-sent events.
//!
//! ```text
//! chat:   {delta: {role, content: ""}} per choice
//! both:   pieces of text, one event per engine step;  ": keep-alive" when nothing came for a while
//!         {finish_reason} per choice
//!         {choices: [], usage}         if asked for
//!         [DONE]
//! failed: {"error": …}                 and nothing after it
//! ```

use std::convert::Infallible;
use std::time::Duration;

use arbora_runtime::request::{FinishClass, FinishReason, RowLogprobs};
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use crate::logprobs::LogprobWriter;
use crate::random::random_id;
use crate::stream::{Explain, Generation, Opening, Piece};
use crate::tools::CallPiece;
use crate::wire::error::ApiError;
use crate::wire::options::StreamUsage;
use crate::wire::response::{
    Answer, AssistantMessage, ChatChoice, ChatDelta, Delta, Head, TextChoice, TextLogprobs, ToolCall,
    UsageField,
};

/// Which API's objects an answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Chat completions.
    Chat,
    /// Text completions.
    Text,
}

/// An answer in the making.
#[derive(Debug)]
pub struct Reply {
    /// Id, kind, time, model.
    pub head: Head,
    /// Chat or text.
    pub format: Format,
    /// Whether usage explains itself.
    pub explain: Explain,
    /// Tells how likely tokens were.
    pub logprobs: LogprobWriter,
    /// Where it comes from.
    pub generation: Generation,
}

/// One completion of a whole answer.
#[derive(Debug, Default)]
struct Collected {
    opening: Opening,
    reasoning: String,
    text: String,
    calls: Vec<ToolCall>,
    prompt: Option<Vec<RowLogprobs>>,
    logprobs: Vec<RowLogprobs>,
    stop_logprobs: Vec<RowLogprobs>,
    finish_reason: &'static str,
}

impl Collected {
    fn add(&mut self, piece: Piece, has_called: bool) -> Result<(), ApiError> {
        self.reasoning.push_str(&piece.reasoning);
        self.text.push_str(&piece.text);
        self.logprobs.extend(piece.logprobs);
        self.stop_logprobs.extend(piece.stop_logprobs);
        if piece.prompt.is_some() {
            self.prompt = piece.prompt;
        }
        for part in piece.calls {
            add_call(&mut self.calls, part);
        }
        if let Some(reason) = &piece.finish {
            self.finish_reason = finish_reason(reason, has_called)?;
        }
        Ok(())
    }

    fn chat(self, index: usize, writer: &LogprobWriter) -> ChatChoice {
        let says_more = !self.calls.is_empty() || !self.reasoning.is_empty();
        let is_silent = self.text.is_empty() && says_more;
        let message = AssistantMessage {
            role: "assistant",
            content: (!is_silent).then_some(self.text),
            reasoning_content: Some(self.reasoning).filter(|text| !text.is_empty()),
            refusal: None,
            tool_calls: self.calls,
        };
        ChatChoice {
            index,
            message,
            logprobs: writer.chat(&self.logprobs),
            finish_reason: self.finish_reason,
        }
    }

    fn text(self, index: usize, writer: &mut LogprobWriter) -> TextChoice {
        let first = self.opening.first_token;
        let prompt = self.prompt.unwrap_or_default();
        let repeated = if first.is_some() { prompt.as_slice() } else { &[] };
        let rows = [repeated, &self.logprobs, &self.stop_logprobs].concat();
        let prompt_logprobs = (first.is_none() && writer.awaits_prompt()).then(|| writer.prompt(&prompt));
        TextChoice {
            text: self.opening.text + &self.text,
            index,
            logprobs: writer.text(index, first, &rows),
            finish_reason: Some(self.finish_reason),
            prompt_logprobs,
        }
    }
}

/// The word for an ending, or the error it was.
pub(crate) fn finish_reason(reason: &FinishReason, has_called: bool) -> Result<&'static str, ApiError> {
    match reason.class() {
        FinishClass::Stop if has_called => Ok("tool_calls"),
        FinishClass::Stop => Ok("stop"),
        FinishClass::Length => Ok("length"),
        FinishClass::Failed => Err(ApiError::of_ending(reason)),
    }
}

impl Reply {
    /// Waits for everything and answers at once.
    pub async fn whole(mut self) -> Result<Response, ApiError> {
        let n_choices = self.generation.n_choices();
        let begin = |idx| Collected {
            opening: self.generation.take_opening(idx),
            ..Collected::default()
        };
        let mut choices: Vec<_> = (0..n_choices).map(begin).collect();
        while let Some(piece) = self.generation.next().await {
            let has_called = self.generation.has_called(piece.choice);
            choices[piece.choice].add(piece, has_called)?;
        }
        let usage = UsageField::Given(self.generation.usage(self.explain));
        let head = &self.head;
        let writer = &mut self.logprobs;
        let choices = choices.into_iter().enumerate();
        Ok(match self.format {
            Format::Chat => {
                let mut prompt_logprobs = None;
                let choices = choices.map(|(index, choice)| {
                    // All choices have the same prompt.
                    prompt_logprobs = choice.prompt.as_deref().map(|rows| writer.prompt(rows));
                    choice.chat(index, writer)
                });
                let choices = choices.collect();
                let answer = Answer {
                    head,
                    choices,
                    prompt_logprobs,
                    usage,
                };
                Json(answer).into_response()
            }
            Format::Text => {
                let choices = choices
                    .map(|(index, choice)| choice.text(index, writer))
                    .collect();
                let answer = Answer {
                    head,
                    choices,
                    prompt_logprobs: None,
                    usage,
                };
                Json(answer).into_response()
            }
        })
    }

    /// Answers with server-sent events, one per engine event, and a comment whenever nothing came for
    /// `keep_alive`; `usage` says where tokens are counted.
    pub fn stream(self, usage: StreamUsage, keep_alive: Duration) -> Response {
        let events = EventStream {
            reply: self,
            usage,
            keep_alive,
            phase: Phase::Opening,
        };
        let chunks = futures_util::stream::unfold(events, |mut events| async move {
            let chunk = events.next().await?;
            Some((Ok::<_, Infallible>(chunk), events))
        });
        event_stream(Body::from_stream(chunks))
    }
}

/// A response of server-sent events.
pub(crate) fn event_stream(body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    let event_stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, event_stream);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that collect an answer before they pass it on would undo the streaming.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Puts a part of a call to the calls of a whole answer.
fn add_call(calls: &mut Vec<ToolCall>, part: CallPiece) {
    match part {
        CallPiece::Begin { name, .. } => calls.push(ToolCall::begin(None, call_id(), name)),
        CallPiece::Arguments { index, text } => calls[index].function.arguments.push_str(&text),
    }
}

fn call_delta(part: CallPiece) -> ToolCall {
    match part {
        CallPiece::Begin { index, name } => ToolCall::begin(Some(index), call_id(), name),
        CallPiece::Arguments { index, text } => ToolCall::more(index, text),
    }
}

fn call_id() -> String {
    format!("call_{}", &random_id()[..24])
}

fn chat_delta(index: usize, delta: Delta, finish_reason: Option<&'static str>) -> ChatDelta {
    ChatDelta {
        index,
        delta,
        logprobs: None,
        finish_reason,
    }
}

fn text_piece(index: usize, text: String, logprobs: Option<TextLogprobs>) -> TextChoice {
    TextChoice {
        text,
        index,
        logprobs,
        finish_reason: None,
        prompt_logprobs: None,
    }
}

#[derive(Debug)]
enum Phase {
    Opening,
    Running,
    Over,
}

/// The body of a streamed answer.
#[derive(Debug)]
struct EventStream {
    reply: Reply,
    usage: StreamUsage,
    keep_alive: Duration,
    phase: Phase,
}

impl EventStream {
    /// The next bytes to send, at least one whole event or comment.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        if matches!(self.phase, Phase::Opening) {
            self.phase = Phase::Running;
            self.open(&mut out);
        }
        while out.is_empty() && matches!(self.phase, Phase::Running) {
            match tokio::time::timeout(self.keep_alive, self.reply.generation.next()).await {
                Err(_) => out.extend_from_slice(b": keep-alive\n\n"),
                Ok(Some(piece)) => self.piece(piece, &mut out),
                Ok(None) => self.close(&mut out),
            }
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        // An answer that turns out to be a call has no text, not even an empty one.
        let content = (!self.reply.generation.may_call()).then(String::new);
        for index in 0..self.reply.generation.n_choices() {
            match self.reply.format {
                Format::Chat => {
                    let delta = Delta {
                        role: Some("assistant"),
                        content: Some(content.clone()),
                        ..Delta::default()
                    };
                    self.event(chat_delta(index, delta, None), out);
                }
                Format::Text if self.reply.logprobs.awaits_prompt() => {}
                Format::Text => self.repeat_prompt(index, &[], out),
            }
        }
    }

    /// What the text begins with, with what is known of its tokens.
    fn repeat_prompt(&mut self, index: usize, rows: &[RowLogprobs], out: &mut Vec<u8>) {
        let opening = self.reply.generation.take_opening(index);
        if opening.first_token.is_some() {
            let logprobs = self.reply.logprobs.text(index, opening.first_token, rows);
            self.event(text_piece(index, opening.text, logprobs), out);
        }
    }

    fn piece(&mut self, piece: Piece, out: &mut Vec<u8>) {
        let has_called = self.reply.generation.has_called(piece.choice);
        let reason = piece.finish.as_ref();
        let reason = match reason.map(|reason| finish_reason(reason, has_called)).transpose() {
            Ok(reason) => reason,
            Err(error) => {
                event(&error.body(), out);
                self.phase = Phase::Over;
                return;
            }
        };
        match self.reply.format {
            Format::Chat => self.chat_piece(piece, reason, out),
            Format::Text => self.text_piece(piece, reason, out),
        }
    }

    fn chat_piece(&mut self, piece: Piece, reason: Option<&'static str>, out: &mut Vec<u8>) {
        let index = piece.choice;
        let mut logprobs = None;
        if !piece.logprobs.is_empty() {
            logprobs = self.reply.logprobs.chat(&piece.logprobs);
        }
        let mut deltas = Vec::new();
        if !piece.reasoning.is_empty() {
            deltas.push(Delta {
                reasoning_content: Some(piece.reasoning),
                ..Delta::default()
            });
        }
        // Text may be held back longer than what is told of its tokens.
        let has_more = !deltas.is_empty() || !piece.calls.is_empty();
        if !piece.text.is_empty() || (logprobs.is_some() && !has_more) {
            let is_told = !piece.text.is_empty() || !self.reply.generation.may_call();
            deltas.push(Delta {
                content: is_told.then_some(Some(piece.text)),
                ..Delta::default()
            });
        }
        deltas.extend(piece.calls.into_iter().map(|part| Delta {
            tool_calls: vec![call_delta(part)],
            ..Delta::default()
        }));
        for delta in deltas {
            let told = ChatDelta {
                logprobs: logprobs.take(),
                ..chat_delta(index, delta, None)
            };
            self.event(told, out);
        }
        if reason.is_some() {
            self.event(chat_delta(index, Delta::default(), reason), out);
        }
    }

    fn text_piece(&mut self, piece: Piece, reason: Option<&'static str>, out: &mut Vec<u8>) {
        let index = piece.choice;
        if let Some(rows) = &piece.prompt {
            self.repeat_prompt(index, rows, out);
        }
        let rows = [piece.logprobs, piece.stop_logprobs].concat();
        if piece.text.is_empty() && rows.is_empty() && reason.is_none() {
            return;
        }
        let mut logprobs = None;
        if !rows.is_empty() {
            logprobs = self.reply.logprobs.text(index, None, &rows);
        }
        let told = TextChoice {
            finish_reason: reason,
            ..text_piece(index, piece.text, logprobs)
        };
        self.event(told, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.usage.at_end {
            let usage = self.reply.generation.usage(self.reply.explain);
            let head = &self.reply.head;
            let (choices, usage) = (Vec::<()>::new(), UsageField::Given(usage));
            let answer = Answer {
                head,
                choices,
                prompt_logprobs: None,
                usage,
            };
            event(&answer, out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        self.phase = Phase::Over;
    }

    fn event<C: Serialize>(&self, choice: C, out: &mut Vec<u8>) {
        let head = &self.reply.head;
        let usage = match self.usage {
            StreamUsage { in_chunks: true, .. } => UsageField::Given(self.reply.generation.usage_now()),
            StreamUsage { at_end: true, .. } => UsageField::Null,
            _ => UsageField::Missing,
        };
        let choices = vec![choice];
        let answer = Answer {
            head,
            choices,
            prompt_logprobs: None,
            usage,
        };
        event(&answer, out);
    }
}

/// One server-sent event. JSON holds no raw line breaks, so one `data` line is enough.
pub(crate) fn event(data: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, data).expect("plain structs serialize and a vector takes any bytes");
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arbora_runtime::request::{Event, Finished, LogprobsWanted, NewTokens, RequestError, Usage};
    use arbora_runtime::tokenizer::Tokenizer;
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;
    use crate::stream::{Choice, Submission};

    const KEEP_ALIVE: Duration = Duration::from_secs(15);
    const AT_END: StreamUsage = StreamUsage {
        in_chunks: false,
        at_end: true,
    };

    fn reply(format: Format, opening: &str, n: usize) -> (Reply, Vec<mpsc::Sender<Event>>) {
        let (senders, choices) = (0..n)
            .map(|_| {
                let (sender, events) = mpsc::channel(16);
                let choice = Choice {
                    opening: Opening {
                        text: opening.to_owned(),
                        first_token: (!opening.is_empty()).then_some(0),
                    },
                    ..Choice::new(events)
                };
                (sender, choice)
            })
            .unzip();
        let head = Head {
            id: "id".to_owned(),
            object: "o",
            created: 7,
            model: "m".to_owned(),
        };
        let generation = Generation::new(choices, Submission::new(n, 0));
        let reply = Reply {
            head,
            format,
            explain: Explain::No,
            logprobs: LogprobWriter::new(Arc::new(Tokenizer::of_bytes(256)), LogprobsWanted::default(), n),
            generation,
        };
        (reply, senders)
    }

    fn finished(reason: FinishReason) -> Event {
        let usage = Usage {
            prompt_tokens: 5,
            cached_tokens: 4,
            completion_tokens: 2,
            ..Usage::default()
        };
        Event::Finished(Finished {
            reason,
            text: String::new(),
            usage,
        })
    }

    /// `n` tokens, with the text that became certain.
    fn tokens(n: usize, text: &str) -> Event {
        Event::Tokens(NewTokens {
            ids: vec![0; n],
            text: text.to_owned(),
            ..NewTokens::default()
        })
    }

    async fn body(response: Response) -> String {
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("no errors in it")
            .to_bytes();
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    }

    #[tokio::test]
    async fn a_chat_stream_is_openais_byte_for_byte() {
        let (reply, senders) = reply(Format::Chat, "", 1);
        for event in [tokens(1, "Hi"), tokens(1, ""), tokens(2, "€!\n\"")] {
            senders[0].try_send(event).expect("there is room");
        }
        senders[0]
            .try_send(finished(FinishReason::Length))
            .expect("there is room");
        let response = reply.stream(AT_END, KEEP_ALIVE);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/event-stream; charset=utf-8"
        );
        let head = r#"data: {"id":"id","object":"o","created":7,"model":"m","choices":["#;
        let expected = [
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{"content":"€!\n\""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}"#,
            r#"],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}"#,
        ];
        let expected: String = expected.iter().map(|rest| format!("{head}{rest}\n\n")).collect();
        assert_eq!(body(response).await, expected + "data: [DONE]\n\n");
    }

    #[tokio::test]
    async fn every_chunk_counts_tokens_where_that_is_asked_for() {
        let (reply, senders) = reply(Format::Chat, "", 1);
        for event in [tokens(1, "Hi"), tokens(2, " you")] {
            senders[0].try_send(event).expect("there is room");
        }
        senders[0]
            .try_send(finished(FinishReason::Length))
            .expect("there is room");
        let usage = StreamUsage {
            in_chunks: true,
            at_end: false,
        };
        let body = body(reply.stream(usage, KEEP_ALIVE)).await;
        let events: Vec<&str> = body.split_terminator("\n\n").collect();
        let (done, chunks) = events.split_last().expect("events");
        assert_eq!(*done, "data: [DONE]");
        let counted = chunks.iter().map(|chunk| {
            let (_, usage) = chunk.split_once(r#""completion_tokens":"#).expect("a count");
            usage.split(',').next().expect("a number")
        });
        assert_eq!(counted.collect::<Vec<_>>(), ["0", "1", "3", "3"]);
    }

    #[tokio::test]
    async fn a_text_stream_has_no_opening_unless_it_echoes_and_no_usage_unless_asked() {
        for (opening, n_events) in [("", 2), ("Once", 3)] {
            let (reply, senders) = reply(Format::Text, opening, 1);
            senders[0].try_send(tokens(1, "Hi")).expect("there is room");
            senders[0]
                .try_send(finished(FinishReason::StopToken(9)))
                .expect("there is room");
            let body = body(reply.stream(StreamUsage::default(), KEEP_ALIVE)).await;
            let events: Vec<_> = body.split_terminator("\n\n").collect();
            assert_eq!(events.len(), n_events + 1, "{body}");
            assert!(!body.contains("usage"), "{body}");
            let last = r#"data: {"id":"id","object":"o","created":7,"model":"m","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]}"#;
            assert_eq!(events[n_events - 1], last);
        }
    }

    #[tokio::test]
    async fn a_failure_half_way_is_the_last_thing_said() {
        let (reply, senders) = reply(Format::Chat, "", 2);
        senders[0]
            .try_send(finished(FinishReason::Error(RequestError::EngineFailed)))
            .expect("room");
        let body = body(reply.stream(AT_END, KEEP_ALIVE)).await;
        let last = body.split_terminator("\n\n").last().expect("there is one");
        assert!(
            last.starts_with(r#"data: {"error":{"#) && last.contains("internal_error"),
            "{body}"
        );
        assert!(senders[1].is_closed(), "the other choice is aborted");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_clients_hear_comments() {
        let (reply, senders) = reply(Format::Text, "", 1);
        let started = tokio::time::Instant::now();
        let stream = reply.stream(StreamUsage::default(), KEEP_ALIVE);
        let mut body = stream.into_body();
        for n in 1..=2 {
            let frame = body.frame().await.expect("a frame").expect("no error");
            assert_eq!(frame.into_data().expect("data"), ": keep-alive\n\n");
            assert_eq!(started.elapsed().as_secs(), n * KEEP_ALIVE.as_secs());
        }
        drop(body);
        assert!(senders[0].is_closed());
    }

    #[tokio::test]
    async fn a_whole_answer_says_what_the_stream_says() {
        let (reply, senders) = reply(Format::Chat, "", 2);
        for sender in &senders {
            sender.try_send(tokens(2, "Hi!\n\"")).expect("there is room");
            sender
                .try_send(finished(FinishReason::StopToken(0)))
                .expect("there is room");
        }
        let body = body(reply.whole().await.expect("no failure")).await;
        let choice = |i| {
            format!(
                r#"{{"index":{i},"message":{{"role":"assistant","content":"Hi!\n\"","refusal":null}},"logprobs":null,"finish_reason":"stop"}}"#
            )
        };
        let (a, b) = (choice(0), choice(1));
        assert_eq!(
            body,
            format!(
                r#"{{"id":"id","object":"o","created":7,"model":"m","choices":[{a},{b}],"usage":{{"prompt_tokens":5,"completion_tokens":4,"total_tokens":9,"prompt_tokens_details":{{"cached_tokens":4}}}}}}"#
            )
        );
        let (failed, senders) = super::tests::reply(Format::Chat, "", 1);
        senders[0]
            .try_send(finished(FinishReason::Error(RequestError::ShuttingDown)))
            .expect("room");
        assert_eq!(failed.whole().await.err(), Some(ApiError::ShuttingDown));
    }
}
