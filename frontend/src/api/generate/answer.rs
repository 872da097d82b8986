//! The objects of SGLang's `/generate`.
//!
//! ```text
//! whole     {text, output_ids, meta_info}, or a list of them
//! streamed  the same with all that came so far, once per step, then [DONE]; with
//!           --incremental-streaming-output, with what came since the event before
//! ```
//!
//! What is repeated once per step grows with the square of the output. So an event of more than
//! 16 KiB is followed by the next one when the output is longer by a sixteenth: all of them
//! together have at most 17 times the bytes of the last one, besides those that are short.

use std::sync::Arc;
use std::time::Instant;

use arbora_runtime::request::{FinishReason, LogprobsWanted, RowLogprobs, TokenLogprob};
use arbora_runtime::tokenizer::Tokenizer;
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::StreamForm;
use crate::logprobs::finite;
use crate::pipeline::{Dialect, Events};
use crate::stream::{Generation, Piece};
use crate::wire::error::ApiError;
use crate::wire::generate::{FinishedBy, Generated, LogprobList, LogprobShape, LogprobTuple, MetaInfo};

/// Events up to this many bytes are sent at every step.
const SHORT_EVENT: usize = 16 << 10;
/// By which part of itself an output is longer when the event after a long one is sent.
const GROWTH: usize = 16;

/// What is the same for all outputs of an answer.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) is_list: bool,
    pub(super) form: StreamForm,
    pub(super) arrived: Instant,
    pub(super) prompts: Vec<PromptTold>,
}

/// What is the same for all outputs of a prompt.
#[derive(Debug)]
pub(super) struct PromptTold {
    pub(super) id: String,
    pub(super) stops: Vec<String>,
    /// How log-probabilities are listed, if they are.
    pub(super) logprobs: Option<LogprobShape>,
    pub(super) wanted: LogprobsWanted,
}

/// One output as far as it came, or what came of it since the last event.
#[derive(Clone, Debug, Default)]
pub(super) struct Output {
    /// Its place among the prompts.
    prompt_idx: usize,
    prompt_tokens: usize,
    first_token: Option<u32>,
    prompt: Vec<RowLogprobs>,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<RowLogprobs>,
    /// All tokens that came.
    n_tokens: usize,
    /// How many had come at the last event, and its length in bytes.
    n_told: usize,
    event_bytes: usize,
}

impl Output {
    /// One of prompt number `prompt_idx` that has not begun.
    pub(super) fn new(prompt_idx: usize, prompt: &[u32]) -> Self {
        Output {
            prompt_idx,
            prompt_tokens: prompt.len(),
            first_token: prompt.first().copied(),
            ..Output::default()
        }
    }

    fn add(&mut self, piece: Piece) {
        self.prompt.extend(piece.prompt.unwrap_or_default());
        self.text.push_str(&piece.text);
        self.n_tokens += piece.tokens.len();
        self.tokens.extend(piece.tokens);
        self.logprobs.extend(piece.logprobs);
    }

    /// Whether it is time for an event, though the output is not over.
    fn is_due(&self, form: StreamForm) -> bool {
        let is_short = self.event_bytes <= SHORT_EVENT;
        form == StreamForm::Incremental || is_short || self.n_tokens >= self.n_told + self.n_told / GROWTH
    }

    /// Notes an event of `n_bytes`.
    fn note_event(&mut self, form: StreamForm, n_bytes: usize) {
        (self.n_told, self.event_bytes) = (self.n_tokens, n_bytes);
        if form == StreamForm::Incremental {
            self.text.clear();
            self.tokens.clear();
            self.logprobs.clear();
            self.prompt.clear();
        }
    }
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct GenerateAnswer {
    outputs: Vec<Output>,
    told: Told,
}

impl Dialect for GenerateAnswer {
    fn collect(&mut self, piece: Piece, _: &Generation) -> Result<(), ApiError> {
        self.outputs[piece.choice].add(piece);
        Ok(())
    }

    fn whole(&mut self, generation: &mut Generation) -> Result<Response, ApiError> {
        let outputs = (0..self.outputs.len()).map(|idx| self.output(idx, generation));
        let mut outputs = outputs.collect::<Result<Vec<Generated>, ApiError>>()?;
        match outputs.pop() {
            Some(only) if !self.told.is_list => Ok(Json(only).into_response()),
            last => {
                outputs.extend(last);
                Ok(Json(outputs).into_response())
            }
        }
    }

    fn open(&mut self, _: &mut Generation, _: &mut Events) {}

    fn piece(
        &mut self,
        piece: Piece,
        generation: &mut Generation,
        events: &mut Events,
    ) -> Result<(), ApiError> {
        let (idx, form) = (piece.choice, self.told.form);
        self.outputs[idx].add(piece);
        if generation.finished(idx).is_none() && !self.outputs[idx].is_due(form) {
            return Ok(());
        }
        let mut output = self.output(idx, generation)?;
        output.index = self.told.is_list.then_some(idx);
        let n_before = events.len();
        events.send(None, &output);
        self.outputs[idx].note_event(form, events.len() - n_before);
        Ok(())
    }

    fn close(&mut self, _: &Generation, events: &mut Events) {
        events.done();
    }
}

impl GenerateAnswer {
    pub(super) fn new(outputs: Vec<Output>, told: Told) -> Self {
        GenerateAnswer { outputs, told }
    }

    /// Output `idx` as far as it came.
    fn output(&self, idx: usize, generation: &Generation) -> Result<Generated, ApiError> {
        let output = &self.outputs[idx];
        let prompt = &self.told.prompts[output.prompt_idx];
        let finished = generation.finished(idx);
        let finish_reason = match finished {
            Some(finished) => Some(prompt.finished_by(&finished.reason, output.n_tokens)?),
            None => None,
        };
        let mut meta_info = MetaInfo {
            id: prompt.id.clone(),
            finish_reason,
            prompt_tokens: output.prompt_tokens,
            completion_tokens: finished.map_or(output.n_tokens, |f| f.usage.completion_tokens),
            cached_tokens: finished.map(|finished| finished.usage.cached_tokens),
            e2e_latency: finished.map(|_| self.told.arrived.elapsed().as_secs_f64()),
            ..MetaInfo::default()
        };
        if let Some(shape) = prompt.logprobs {
            let lists = Lister {
                tokenizer: &self.told.tokenizer,
                shape,
                wanted: &prompt.wanted,
            };
            lists.list(output, &mut meta_info);
        }
        Ok(Generated {
            index: None,
            text: output.text.clone(),
            output_ids: output.tokens.clone(),
            meta_info,
        })
    }
}

impl PromptTold {
    fn finished_by(&self, reason: &FinishReason, length: usize) -> Result<FinishedBy, ApiError> {
        let stop = |matched| Ok(FinishedBy::Stop { matched });
        match reason {
            FinishReason::StopToken(id) => stop(Some(Value::from(*id))),
            FinishReason::StopString(idx) => stop(Some(Value::from(self.stops[*idx].as_str()))),
            FinishReason::Complete => stop(None),
            FinishReason::Length | FinishReason::Deadline => Ok(FinishedBy::Length { length }),
            failed => Err(ApiError::of_ending(failed)),
        }
    }
}

/// Lists the log-probabilities of outputs.
struct Lister<'a> {
    tokenizer: &'a Tokenizer,
    shape: LogprobShape,
    wanted: &'a LogprobsWanted,
}

impl Lister<'_> {
    fn list(&self, output: &Output, meta: &mut MetaInfo) {
        let told = output.logprobs.iter().map(|row| self.token(&row.token)).collect();
        meta.logprobs
            .insert("output_token_logprobs", LogprobList::Tokens(told));
        let rows = output.logprobs.iter().map(Some);
        self.list_beside(rows, ["output_top_logprobs", "output_token_ids_logprobs"], meta);
        // Of the first token the model says nothing, but which it is.
        let first = output.first_token.map(|token| self.tuple(None, token));
        let others = output.prompt.iter().map(|row| self.token(&row.token));
        let from = self.shape.from.unwrap_or(usize::MAX);
        let told = first.into_iter().chain(others).skip(from).collect();
        meta.logprobs
            .insert("input_token_logprobs", LogprobList::Tokens(told));
        let rows = std::iter::once(None)
            .chain(output.prompt.iter().map(Some))
            .skip(from);
        self.list_beside(rows, ["input_top_logprobs", "input_token_ids_logprobs"], meta);
    }

    /// Lists the likeliest beside each token and those that were asked for, each where it is wanted.
    fn list_beside<'r>(
        &self,
        rows: impl Iterator<Item = Option<&'r RowLogprobs>> + Clone,
        [top, listed]: [&'static str; 2],
        meta: &mut MetaInfo,
    ) {
        let n_top = self.wanted.output.unwrap_or(0);
        if n_top > 0 {
            let of = |row: &RowLogprobs| {
                row.top
                    .iter()
                    .take(n_top)
                    .map(|token| self.token(token))
                    .collect()
            };
            let several = rows.clone().map(|row| row.map(of)).collect();
            meta.logprobs.insert(top, LogprobList::Several(several));
        }
        if !self.wanted.listed.is_empty() {
            let of = |row: &RowLogprobs| {
                let pairs = self.wanted.listed.iter().zip(&row.listed);
                pairs
                    .map(|(token, logprob)| self.tuple(Some(*logprob), *token))
                    .collect()
            };
            let several = rows.map(|row| row.map(of)).collect();
            meta.logprobs.insert(listed, LogprobList::Several(several));
        }
    }

    fn token(&self, token: &TokenLogprob) -> LogprobTuple {
        self.tuple(Some(token.logprob), token.token)
    }

    fn tuple(&self, logprob: Option<f32>, token: u32) -> LogprobTuple {
        let text = || String::from_utf8_lossy(self.tokenizer.token_bytes(token)).into_owned();
        (logprob.map(finite), token, self.shape.with_text.then(text))
    }
}
