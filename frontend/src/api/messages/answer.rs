//! The objects of Anthropic's messages.
//!
//! ```text
//! whole     {content: [{type: thinking} | {type: text} | {type: tool_use}], stop_reason, usage}
//! streamed  message_start
//!           content_block_start, content_block_delta…, content_block_stop     per block
//!           message_delta {stop_reason, usage}, message_stop
//! ```

use arbora_runtime::request::{FinishClass, FinishReason};
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::blocks::{self, Blocks, Change};
use crate::pipeline::{Dialect, Events};
use crate::random::random_id;
use crate::stream::{Explain, Generation, Piece};
use crate::wire::anthropic::error;
use crate::wire::anthropic::response::{Block, BlockDelta, MessageBody, MessageUsage, SIGNATURE, input};
use crate::wire::error::ApiError;

/// What an answer says besides the model's words.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) id: String,
    pub(super) model: String,
    /// Texts that may end the output.
    pub(super) stops: Vec<String>,
    /// Whether the request marks anything for the cache.
    pub(super) has_marks: bool,
    /// Whether the output may have less tokens than asked for, since the context has no room for more.
    pub(super) is_cut_to_context: bool,
    pub(super) explain: Explain,
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct MessageAnswer {
    told: Told,
    order: Blocks,
    /// All of a whole answer, with their contents as text; of a streamed one the open one, without content.
    blocks: Vec<(Block, String)>,
    /// Blocks that began.
    n_blocks: usize,
    ending: Option<Ending>,
}

/// Why an output ended, and the text that ended it.
type Ending = (&'static str, Option<String>);

impl MessageAnswer {
    pub(super) fn new(told: Told) -> Self {
        MessageAnswer {
            told,
            order: Blocks::default(),
            blocks: Vec::new(),
            n_blocks: 0,
            ending: None,
        }
    }

    fn ending(&self, reason: &FinishReason, has_called: bool) -> Result<Ending, ApiError> {
        match (reason.class(), reason) {
            (FinishClass::Failed, _) => Err(ApiError::of_ending(reason)),
            (FinishClass::Length, FinishReason::Length) if self.told.is_cut_to_context => {
                Ok(("model_context_window_exceeded", None))
            }
            (FinishClass::Length, _) => Ok(("max_tokens", None)),
            (FinishClass::Stop, FinishReason::StopString(idx)) => {
                Ok(("stop_sequence", self.told.stops.get(*idx).cloned()))
            }
            (FinishClass::Stop, _) if has_called => Ok(("tool_use", None)),
            (FinishClass::Stop, _) => Ok(("end_turn", None)),
        }
    }

    fn body(&self, content: Vec<Block>, ending: Option<Ending>, usage: MessageUsage) -> MessageBody<'_> {
        let (stop_reason, stop_sequence) = ending.unzip();
        MessageBody {
            id: &self.told.id,
            kind: "message",
            role: "assistant",
            model: &self.told.model,
            content,
            stop_reason,
            stop_sequence: stop_sequence.flatten(),
            usage,
        }
    }

    fn usage(&self, generation: &Generation) -> MessageUsage {
        MessageUsage::new(generation.usage(self.told.explain), self.told.has_marks)
    }

    /// Writes the beginning of a block.
    fn begin_block(&mut self, block: Block, events: &mut Events) {
        self.end_block(events);
        let index = self.n_blocks;
        let event = json!({"type": "content_block_start", "index": index, "content_block": block});
        events.send(Some("content_block_start"), &event);
        self.blocks.push((block, String::new()));
        self.n_blocks += 1;
    }

    /// Writes the end of the block that is open, if one is.
    fn end_block(&mut self, events: &mut Events) {
        let Some((block, _)) = self.blocks.pop() else {
            return;
        };
        if matches!(block, Block::Thinking { .. }) {
            let signature = BlockDelta::SignatureDelta { signature: SIGNATURE };
            self.delta(&signature, events);
        }
        let event = json!({"type": "content_block_stop", "index": self.n_blocks - 1});
        events.send(Some("content_block_stop"), &event);
    }

    fn delta(&self, delta: &BlockDelta, events: &mut Events) {
        let event = json!({"type": "content_block_delta", "index": self.n_blocks - 1, "delta": delta});
        events.send(Some("content_block_delta"), &event);
    }
}

/// A block that begins.
fn begun(block: blocks::Block) -> Block {
    match block {
        blocks::Block::Thoughts => Block::Thinking {
            thinking: String::new(),
            signature: "",
        },
        blocks::Block::Text => Block::Text { text: String::new() },
        blocks::Block::Call(name) => Block::ToolUse {
            id: format!("toolu_{}", &random_id()[..24]),
            name,
            input: json!({}),
        },
    }
}

/// More of `block`.
fn more(block: &Block, text: String) -> BlockDelta {
    match block {
        Block::Thinking { .. } => BlockDelta::ThinkingDelta { thinking: text },
        Block::Text { .. } => BlockDelta::TextDelta { text },
        Block::ToolUse { .. } => BlockDelta::InputJsonDelta { partial_json: text },
    }
}

impl Dialect for MessageAnswer {
    fn collect(&mut self, piece: Piece, generation: &Generation) -> Result<(), ApiError> {
        if let Some(reason) = &piece.finish {
            self.ending = Some(self.ending(reason, generation.has_called(piece.choice))?);
        }
        for change in self.order.take(piece) {
            match change {
                Change::Begin(block) => self.blocks.push((begun(block), String::new())),
                Change::More(more) => {
                    let (_, text) = self.blocks.last_mut().expect("a block begins before it goes on");
                    text.push_str(&more);
                }
            }
        }
        Ok(())
    }

    fn whole(&mut self, generation: &mut Generation) -> Result<Response, ApiError> {
        let blocks = std::mem::take(&mut self.blocks).into_iter();
        let blocks = blocks.map(|(block, text)| match block {
            Block::Thinking { .. } => Block::Thinking {
                thinking: text,
                signature: SIGNATURE,
            },
            Block::Text { .. } => Block::Text { text },
            Block::ToolUse { id, name, .. } => Block::ToolUse {
                id,
                name,
                input: input(&text),
            },
        });
        let blocks = blocks.collect();
        let ending = self.ending.take();
        Ok(Json(self.body(blocks, ending, self.usage(generation))).into_response())
    }

    fn open(&mut self, generation: &mut Generation, events: &mut Events) {
        // What was found in the cache is known at the end, when all counts are told again.
        let usage = MessageUsage::new(generation.usage_now(), false);
        let message = self.body(Vec::new(), None, usage);
        events.send(
            Some("message_start"),
            &json!({"type": "message_start", "message": message}),
        );
    }

    fn piece(
        &mut self,
        piece: Piece,
        generation: &mut Generation,
        events: &mut Events,
    ) -> Result<(), ApiError> {
        let ending = piece.finish.as_ref();
        let ending = ending.map(|reason| self.ending(reason, generation.has_called(piece.choice)));
        let ending = ending.transpose()?;
        for change in self.order.take(piece) {
            match change {
                Change::Begin(block) => self.begin_block(begun(block), events),
                Change::More(text) => {
                    let (block, _) = self.blocks.last().expect("a block begins before it goes on");
                    self.delta(&more(block, text), events);
                }
            }
        }
        self.ending = ending.or(self.ending.take());
        Ok(())
    }

    fn close(&mut self, generation: &Generation, events: &mut Events) {
        self.end_block(events);
        let (stop_reason, stop_sequence) = self.ending.take().unzip();
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence.flatten()});
        let event = json!({"type": "message_delta", "delta": delta, "usage": self.usage(generation)});
        events.send(Some("message_delta"), &event);
        events.send(Some("message_stop"), &json!({"type": "message_stop"}));
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        events.send(Some("error"), &error::body(error));
    }

    fn keep_alive(&mut self, events: &mut Events) {
        events.send(Some("ping"), &json!({"type": "ping"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{self, KEEP_ALIVE};
    use crate::stream::testing::{body, finished, generation, tokens};

    fn answer() -> MessageAnswer {
        MessageAnswer::new(Told {
            id: "msg_1".to_owned(),
            model: "m".to_owned(),
            stops: vec!["a".to_owned(), "b".to_owned()],
            has_marks: false,
            is_cut_to_context: false,
            explain: Explain::No,
        })
    }

    #[tokio::test]
    async fn a_stream_is_anthropics_byte_for_byte() {
        let script = vec![
            tokens(1, "Hi"),
            tokens(1, ""),
            tokens(2, "€\n\""),
            finished(FinishReason::StopString(1)),
        ];
        let (generation, _senders) = generation(vec![script], 1);
        let response = pipeline::stream(generation, answer(), KEEP_ALIVE);
        let expected = [
            (
                "message_start",
                r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}"#,
            ),
            (
                "content_block_start",
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            ),
            (
                "content_block_delta",
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}"#,
            ),
            (
                "content_block_delta",
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"€\n\""}}"#,
            ),
            ("content_block_stop", r#"{"type":"content_block_stop","index":0}"#),
            (
                "message_delta",
                r#"{"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"b"},"usage":{"input_tokens":1,"cache_creation_input_tokens":0,"cache_read_input_tokens":4,"output_tokens":2}}"#,
            ),
            ("message_stop", r#"{"type":"message_stop"}"#),
        ];
        let expected = expected.map(|(name, data)| format!("event: {name}\ndata: {data}\n\n"));
        assert_eq!(body(response).await, expected.concat());
    }

    #[tokio::test]
    async fn a_whole_answer_says_why_it_ended() {
        for (reason, expected) in [
            (
                FinishReason::StopToken(0),
                r#""stop_reason":"end_turn","stop_sequence":null"#,
            ),
            (
                FinishReason::StopString(0),
                r#""stop_reason":"stop_sequence","stop_sequence":"a""#,
            ),
            (
                FinishReason::Length,
                r#""stop_reason":"max_tokens","stop_sequence":null"#,
            ),
        ] {
            let (generation, _senders) = generation(vec![vec![tokens(1, "Hi"), finished(reason)]], 1);
            let body = body(pipeline::whole(generation, answer()).await.expect("an answer")).await;
            assert!(
                body.contains(r#""content":[{"type":"text","text":"Hi"}]"#),
                "{body}"
            );
            assert!(body.contains(expected), "{body}");
        }
    }

    #[tokio::test]
    async fn a_failure_half_way_is_an_event_of_its_own() {
        let failure = finished(FinishReason::QueueDeadline);
        let (generation, _senders) = generation(vec![vec![tokens(1, "Hi"), failure]], 1);
        let body = body(pipeline::stream(generation, answer(), KEEP_ALIVE)).await;
        let last = body.split_terminator("\n\n").last().expect("events");
        let start = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",";
        assert!(last.starts_with(start), "{body}");
    }

    #[test]
    fn arguments_that_were_cut_off_are_wrapped() {
        assert_eq!(input("{\"a\": 1}"), json!({"a": 1}));
        assert_eq!(input("{\"a\": "), json!({"INVALID_JSON": "{\"a\": "}));
    }
}
