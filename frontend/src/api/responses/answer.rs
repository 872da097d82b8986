//! The objects of OpenAI's responses.
//!
//! ```text
//! whole     {status, output: [reasoning | message | function_call], usage}
//! streamed  response.created, response.in_progress
//!           response.output_item.added                                       per item
//!             response.content_part.added, response.output_text.delta…,
//!             response.output_text.done, response.content_part.done            (thoughts: reasoning_text)
//!             or response.function_call_arguments.delta…, .done                a call
//!           response.output_item.done
//!           response.completed | response.incomplete | response.failed
//! ```

use std::sync::Arc;
use std::time::Instant;

use arbora_runtime::request::FinishClass;
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::super::{App, unix_seconds};
use crate::blocks::{Block, Blocks, Change};
use crate::kept::{Stage, Turn};
use crate::pipeline::{Dialect, Events};
use crate::stream::{Explain, Generation, Piece};
use crate::wire::error::ApiError;
use crate::wire::responses::request::Told;
use crate::wire::responses::response::{OutputItem, OutputKind, usage};

/// What is said of a response before its model has said anything.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) created_at: u64,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) told: Told,
    pub(super) explain: Explain,
}

/// Where a response is kept.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) app: Arc<App>,
    pub(super) owner: Option<usize>,
    /// What was said before.
    pub(super) past: Vec<Arc<Turn>>,
    /// What the client says.
    pub(super) input: Vec<Value>,
    /// What is known when the response is over: all of it, or the end of one that nobody waits for.
    pub(super) at_end: Stage,
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct ResponseAnswer {
    head: Head,
    keeper: Keeper,
    order: Blocks,
    items: Vec<OutputItem>,
    n_reasoning: usize,
    /// Events so far.
    n_events: usize,
    class: Option<FinishClass>,
}

impl ResponseAnswer {
    pub(super) fn new(head: Head, keeper: Keeper) -> Self {
        ResponseAnswer {
            head,
            keeper,
            order: Blocks::default(),
            items: Vec::new(),
            n_reasoning: 0,
            n_events: 0,
            class: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.head.id
    }

    /// The response in a `status`, with members that only it has.
    pub(super) fn body(&self, status: &str, more: &Value) -> Value {
        let head = &self.head;
        let mut body = json!({"id": head.id, "object": "response", "created_at": head.created_at, "status": status,
            "completed_at": null, "error": null, "incomplete_details": null, "model": head.model, "output": []});
        let members = body.as_object_mut().expect("made as an object");
        members.extend(head.told.repeated.clone());
        let drawn = json!({"max_tool_calls": null, "temperature": head.temperature, "top_p": head.top_p,
            "top_logprobs": 0, "truncation": "disabled", "usage": null});
        for object in [&drawn, more] {
            let object: &Map<String, Value> = object.as_object().expect("made as an object");
            members.extend(object.clone());
        }
        body
    }

    /// Keeps the response as it stands, unless the client does not want that.
    pub(super) fn keep(&self, body: &Value, stage: Stage) {
        if !self.head.told.is_kept {
            return;
        }
        let keeper = &self.keeper;
        let output = body["output"].as_array().map_or(&[][..], Vec::as_slice);
        keeper.app.responses.keep(
            (keeper.owner, &self.head.id),
            body,
            (&keeper.past, &keeper.input, output),
            (Instant::now(), stage),
        );
    }

    /// The response of an output that is over, which is kept from then on.
    pub(super) fn finish(&mut self, generation: &Generation) -> Value {
        if self.items.is_empty() {
            let silence = self.begun(Block::Text);
            self.items.push(silence);
        }
        let is_cut = self.class == Some(FinishClass::Length);
        let status = if is_cut { "incomplete" } else { "completed" };
        let n_whole = self.items.len() - usize::from(is_cut && !self.items.is_empty());
        let items = self.items.iter().enumerate();
        let output = items.map(|(i, item)| item.shown(if i < n_whole { "completed" } else { "incomplete" }));
        let output: Vec<Value> = output.collect();
        let usage = usage(&generation.usage(self.head.explain), self.n_reasoning);
        let mut more = json!({"output": output, "usage": usage});
        match is_cut {
            true => more["incomplete_details"] = json!({"reason": "max_output_tokens"}),
            false => more["completed_at"] = unix_seconds().into(),
        }
        let body = self.body(status, &more);
        self.keep(&body, self.keeper.at_end);
        body
    }

    /// The response of an output that failed, which is kept from then on.
    pub(super) fn fail(&self, error: &ApiError) -> Value {
        let told = &error.body()["error"];
        let code = match &told["code"] {
            Value::Null => "server_error".into(),
            code => code.clone(),
        };
        let error = json!({"code": code, "message": told["message"]});
        let body = self.body("failed", &json!({"error": error}));
        self.keep(&body, self.keeper.at_end);
        body
    }

    /// Writes an event with a number.
    fn send(&mut self, kind: &'static str, mut event: Value, events: &mut Events) {
        event["type"] = kind.into();
        event["sequence_number"] = self.n_events.into();
        self.n_events += 1;
        events.send(Some(kind), &event);
    }

    /// What events about the last item's one part have.
    fn place(&self) -> Value {
        let item = self.items.last().expect("an item begins before it goes on");
        let mut place = json!({"item_id": item.id, "output_index": self.items.len() - 1});
        if !matches!(item.kind, OutputKind::Call { .. }) {
            place["content_index"] = 0.into();
        }
        place
    }

    fn begin_item(&mut self, item: OutputItem, events: &mut Events) {
        let part = item.part();
        let added = json!({"output_index": self.items.len(), "item": item.shown("in_progress")});
        self.items.push(item);
        self.send("response.output_item.added", added, events);
        if !part.is_null() {
            let mut event = self.place();
            event["part"] = part;
            self.send("response.content_part.added", event, events);
        }
    }

    fn go_on(&mut self, text: &str, events: &mut Events) {
        let mut event = self.place();
        event["delta"] = text.into();
        let item = self.items.last_mut().expect("an item begins before it goes on");
        item.text.push_str(text);
        let kind = match item.kind {
            OutputKind::Reasoning => "response.reasoning_text.delta",
            OutputKind::Message => {
                event["logprobs"] = json!([]);
                "response.output_text.delta"
            }
            OutputKind::Call { .. } => "response.function_call_arguments.delta",
        };
        self.send(kind, event, events);
    }

    /// Writes the end of the last item, if there is one.
    fn end_item(&mut self, status: &str, events: &mut Events) {
        let Some(item) = self.items.last().cloned() else {
            return;
        };
        let (mut done, mut part) = (self.place(), self.place());
        let kind = match &item.kind {
            OutputKind::Reasoning => "response.reasoning_text.done",
            OutputKind::Message => {
                done["logprobs"] = json!([]);
                "response.output_text.done"
            }
            OutputKind::Call { name, .. } => {
                done["name"] = name.as_str().into();
                "response.function_call_arguments.done"
            }
        };
        let is_call = matches!(item.kind, OutputKind::Call { .. });
        done[if is_call { "arguments" } else { "text" }] = item.text.as_str().into();
        self.send(kind, done, events);
        if !is_call {
            part["part"] = item.part();
            self.send("response.content_part.done", part, events);
        }
        let event = json!({"output_index": self.items.len() - 1, "item": item.shown(status)});
        self.send("response.output_item.done", event, events);
    }

    /// Takes in how an output ended.
    fn note_ending(&mut self, piece: &Piece) -> Result<(), ApiError> {
        if !piece.reasoning.is_empty() {
            self.n_reasoning += piece.tokens.len();
        }
        if let Some(reason) = &piece.finish {
            let class = reason.class();
            if class == FinishClass::Failed {
                return Err(ApiError::of_ending(reason));
            }
            self.class = Some(class);
        }
        Ok(())
    }

    fn begun(&self, block: Block) -> OutputItem {
        OutputItem::begin(block, |name| self.head.told.namespaces.get(name).cloned())
    }
}

impl Dialect for ResponseAnswer {
    fn collect(&mut self, piece: Piece, _: &Generation) -> Result<(), ApiError> {
        self.note_ending(&piece)?;
        for change in self.order.take(piece) {
            match change {
                Change::Begin(block) => {
                    let item = self.begun(block);
                    self.items.push(item);
                }
                Change::More(more) => {
                    let item = self.items.last_mut().expect("an item begins before it goes on");
                    item.text.push_str(&more);
                }
            }
        }
        Ok(())
    }

    fn whole(&mut self, generation: &mut Generation) -> Result<Response, ApiError> {
        Ok(Json(self.finish(generation)).into_response())
    }

    fn open(&mut self, _: &mut Generation, events: &mut Events) {
        let response = self.body("in_progress", &json!({}));
        for kind in ["response.created", "response.in_progress"] {
            self.send(kind, json!({"response": response}), events);
        }
    }

    fn piece(&mut self, piece: Piece, _: &mut Generation, events: &mut Events) -> Result<(), ApiError> {
        self.note_ending(&piece)?;
        for change in self.order.take(piece) {
            match change {
                Change::Begin(block) => {
                    self.end_item("completed", events);
                    let item = self.begun(block);
                    self.begin_item(item, events);
                }
                Change::More(text) => self.go_on(&text, events),
            }
        }
        Ok(())
    }

    fn close(&mut self, generation: &Generation, events: &mut Events) {
        let (status, kind) = match self.class {
            Some(FinishClass::Length) => ("incomplete", "response.incomplete"),
            _ => ("completed", "response.completed"),
        };
        if self.items.is_empty() {
            // A model that said nothing has answered all the same.
            let silence = self.begun(Block::Text);
            self.begin_item(silence, events);
        }
        self.end_item(status, events);
        let response = self.finish(generation);
        self.send(kind, json!({"response": response}), events);
    }

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        let response = self.fail(error);
        self.send("response.failed", json!({"response": response}), events);
    }
}
