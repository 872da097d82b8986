//! The objects of OpenAI's chat completions.
//!
//! ```text
//! whole     {message: {role, content, reasoning_content, tool_calls}, logprobs, finish_reason}
//! streamed  {delta: {role, content: ""}}               per choice
//!           {delta: {content | reasoning_content | tool_calls}}   one per engine step and kind
//!           {delta: {}, finish_reason}                 per choice
//! ```

use arbora_runtime::request::RowLogprobs;
use axum::response::Response;

use super::super::openai::Envelope;
use crate::logprobs::LogprobWriter;
use crate::pipeline::{Dialect, Events};
use crate::random::random_id;
use crate::stream::{Generation, Piece};
use crate::tools::CallPiece;
use crate::wire::error::ApiError;
use crate::wire::response::{AssistantMessage, ChatChoice, ChatDelta, Delta, ToolCall, finish_reason};

/// An answer in the making.
#[derive(Debug)]
pub(super) struct ChatAnswer {
    envelope: Envelope,
    choices: Vec<Collected>,
}

/// One completion of a whole answer.
#[derive(Clone, Debug, Default)]
struct Collected {
    reasoning: String,
    text: String,
    calls: Vec<ToolCall>,
    prompt: Option<Vec<RowLogprobs>>,
    logprobs: Vec<RowLogprobs>,
    finish_reason: &'static str,
}

impl Collected {
    fn into_choice(self, index: usize, writer: &LogprobWriter) -> ChatChoice {
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
}

impl ChatAnswer {
    pub(super) fn new(envelope: Envelope, n_choices: usize) -> Self {
        ChatAnswer {
            envelope,
            choices: vec![Collected::default(); n_choices],
        }
    }
}

impl Dialect for ChatAnswer {
    fn collect(&mut self, piece: Piece, generation: &Generation) -> Result<(), ApiError> {
        let choice = &mut self.choices[piece.choice];
        choice.reasoning.push_str(&piece.reasoning);
        choice.text.push_str(&piece.text);
        choice.logprobs.extend(piece.logprobs);
        if piece.prompt.is_some() {
            choice.prompt = piece.prompt;
        }
        for part in piece.calls {
            add_call(&mut choice.calls, part);
        }
        if let Some(reason) = &piece.finish {
            choice.finish_reason = finish_reason(reason, generation.has_called(piece.choice))?;
        }
        Ok(())
    }

    fn whole(&mut self, generation: &mut Generation) -> Result<Response, ApiError> {
        let writer = &self.envelope.logprobs;
        let collected = std::mem::take(&mut self.choices);
        // All choices have the same prompt.
        let prompt = collected.iter().find_map(|choice| choice.prompt.as_deref());
        let prompt_logprobs = prompt.map(|rows| writer.prompt(rows));
        let choices = collected.into_iter().enumerate();
        let choices = choices.map(|(index, choice)| choice.into_choice(index, writer));
        Ok(self
            .envelope
            .whole(choices.collect(), prompt_logprobs, generation))
    }

    fn open(&mut self, generation: &mut Generation, events: &mut Events) {
        // An answer that turns out to be a call has no text, not even an empty one.
        let content = (!generation.may_call()).then(String::new);
        for index in 0..generation.n_choices() {
            let delta = Delta {
                role: Some("assistant"),
                content: Some(content.clone()),
                ..Delta::default()
            };
            self.envelope.chunk(chunk(index, delta), generation, events);
        }
    }

    fn piece(
        &mut self,
        piece: Piece,
        generation: &mut Generation,
        events: &mut Events,
    ) -> Result<(), ApiError> {
        let index = piece.choice;
        let has_called = generation.has_called(index);
        let reason = piece.finish.as_ref();
        let reason = reason
            .map(|reason| finish_reason(reason, has_called))
            .transpose()?;
        let mut logprobs = None;
        if !piece.logprobs.is_empty() {
            logprobs = self.envelope.logprobs.chat(&piece.logprobs);
        }
        for delta in deltas(piece, logprobs.is_some(), generation.may_call()) {
            let told = ChatDelta {
                logprobs: logprobs.take(),
                ..chunk(index, delta)
            };
            self.envelope.chunk(told, generation, events);
        }
        if reason.is_some() {
            let last = ChatDelta {
                finish_reason: reason,
                ..chunk(index, Delta::default())
            };
            self.envelope.chunk(last, generation, events);
        }
        Ok(())
    }

    fn close(&mut self, generation: &Generation, events: &mut Events) {
        self.envelope.close(generation, events);
    }
}

/// What `piece` adds to a message: thoughts, then text, then calls. Text may be held back longer than what
/// is told of its tokens.
fn deltas(piece: Piece, has_logprobs: bool, may_call: bool) -> Vec<Delta> {
    let mut deltas = Vec::new();
    if !piece.reasoning.is_empty() {
        deltas.push(Delta {
            reasoning_content: Some(piece.reasoning),
            ..Delta::default()
        });
    }
    let has_more = !deltas.is_empty() || !piece.calls.is_empty();
    if !piece.text.is_empty() || (has_logprobs && !has_more) {
        let is_told = !piece.text.is_empty() || !may_call;
        deltas.push(Delta {
            content: is_told.then_some(Some(piece.text)),
            ..Delta::default()
        });
    }
    deltas.extend(piece.calls.into_iter().map(|part| Delta {
        tool_calls: vec![call_delta(part)],
        ..Delta::default()
    }));
    deltas
}

fn chunk(index: usize, delta: Delta) -> ChatDelta {
    ChatDelta {
        index,
        delta,
        logprobs: None,
        finish_reason: None,
    }
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

#[cfg(test)]
mod tests {
    use arbora_runtime::request::FinishReason;

    use super::super::super::openai::testing::envelope;
    use super::*;
    use crate::pipeline::{self, KEEP_ALIVE};
    use crate::stream::testing::{body, finished, generation, tokens};
    use crate::wire::options::StreamUsage;

    #[tokio::test]
    async fn a_stream_is_openais_byte_for_byte() {
        let script = vec![
            tokens(1, "Hi"),
            tokens(1, ""),
            tokens(2, "€!\n\""),
            finished(FinishReason::Length),
        ];
        let (generation, _senders) = generation(vec![script], 1);
        let usage = StreamUsage {
            in_chunks: false,
            at_end: true,
        };
        let answer = ChatAnswer::new(envelope(usage, 1), 1);
        let head = r#"data: {"id":"id","object":"o","created":7,"model":"m","choices":["#;
        let expected = [
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{"content":"€!\n\""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}"#,
            r#"],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}"#,
        ];
        let expected: String = expected.iter().map(|rest| format!("{head}{rest}\n\n")).collect();
        let response = pipeline::stream(generation, answer, KEEP_ALIVE);
        assert_eq!(body(response).await, expected + "data: [DONE]\n\n");
    }

    #[tokio::test]
    async fn every_chunk_counts_tokens_where_that_is_asked_for() {
        let script = vec![tokens(1, "Hi"), tokens(2, " you"), finished(FinishReason::Length)];
        let (generation, _senders) = generation(vec![script], 1);
        let usage = StreamUsage {
            in_chunks: true,
            at_end: false,
        };
        let answer = ChatAnswer::new(envelope(usage, 1), 1);
        let body = body(pipeline::stream(generation, answer, KEEP_ALIVE)).await;
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
    async fn a_whole_answer_says_what_the_stream_says() {
        let script = || vec![tokens(2, "Hi!\n\""), finished(FinishReason::StopToken(0))];
        let (generation, _senders) = generation(vec![script(), script()], 2);
        let answer = ChatAnswer::new(envelope(StreamUsage::default(), 2), 2);
        let body = body(pipeline::whole(generation, answer).await.expect("no failure")).await;
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
    }
}
