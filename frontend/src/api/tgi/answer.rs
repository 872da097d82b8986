//! The objects of TGI's API.
//!
//! ```text
//! whole     {generated_text, details}             the likeliest output of all that were asked for
//! streamed  {index, token, generated_text: null}  per token
//!           {…, generated_text, details}          with the last one
//! ```
//!
//! The texts of the tokens of a stream are its text, cut where the engine released it: a token that is half a
//! character, or perhaps the beginning of a stop string, adds nothing, and a later one adds both. A stop
//! string that ended the output is its end.

use std::sync::Arc;

use arbora_runtime::request::{FinishReason, RowLogprobs, TokenLogprob};
use arbora_runtime::tokenizer::Tokenizer;
use axum::Json;
use axum::response::{IntoResponse, Response};

use crate::logprobs::finite;
use crate::pipeline::{Dialect, Events};
use crate::stream::{self, Piece};
use crate::wire::error::ApiError;
use crate::wire::tgi::response::{
    self, Details, Generation, PrefillToken, Sequence, StreamDetails, StreamEvent, Token,
};

/// What an answer says besides the model's words.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) tokenizer: Arc<Tokenizer>,
    /// What the text begins with: the prompt, or nothing.
    pub(super) opening: String,
    /// Tokens of the prompt.
    pub(super) prompt: Vec<u32>,
    pub(super) stops: Vec<String>,
    pub(super) seed: Option<u64>,
    pub(super) wants_details: bool,
    pub(super) wants_prompt: bool,
    /// The likeliest tokens that are told beside each.
    pub(super) n_top: usize,
    /// Whether a whole answer is in a list.
    pub(super) is_list: bool,
}

/// One output as far as it came.
#[derive(Clone, Debug, Default)]
struct Output {
    text: String,
    prompt: Vec<RowLogprobs>,
    rows: Vec<RowLogprobs>,
    /// The token that ended it.
    stop: Option<RowLogprobs>,
    finish: Option<&'static str>,
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct TgiAnswer {
    told: Told,
    outputs: Vec<Output>,
    /// Of a stream the last token, which may be the last one of all.
    pending: Option<(RowLogprobs, String)>,
    n_told: usize,
}

impl TgiAnswer {
    pub(super) fn new(told: Told, n_outputs: usize) -> Self {
        TgiAnswer {
            told,
            outputs: vec![Output::default(); n_outputs],
            pending: None,
            n_told: 0,
        }
    }

    /// Why an output ended, and the text that it ends with.
    fn ending(&self, reason: &FinishReason) -> Result<(&'static str, &str), ApiError> {
        match reason {
            FinishReason::Length | FinishReason::Deadline => Ok(("length", "")),
            FinishReason::StopToken(_) | FinishReason::Complete => Ok(("eos_token", "")),
            FinishReason::StopString(idx) => Ok(("stop_sequence", &self.told.stops[*idx])),
            failed => Err(ApiError::of_ending(failed)),
        }
    }

    fn token(&self, token: &TokenLogprob, text: String) -> Token {
        Token {
            id: token.token,
            text,
            logprob: finite(token.logprob),
            special: self.told.tokenizer.is_special(token.token),
        }
    }

    fn spelled(&self, token: u32) -> String {
        String::from_utf8_lossy(self.told.tokenizer.token_bytes(token)).into_owned()
    }

    fn top(&self, row: &RowLogprobs) -> Vec<Token> {
        let top = row.top.iter().take(self.told.n_top);
        top.map(|token| self.token(token, self.spelled(token.token)))
            .collect()
    }

    fn prefill(&self, output: &Output) -> Vec<PrefillToken> {
        if !self.told.wants_prompt {
            return Vec::new();
        }
        let one = |id, logprob| PrefillToken {
            id,
            text: self.spelled(id),
            logprob,
        };
        let first = self.told.prompt.first().map(|id| one(*id, None));
        let others = output.prompt.iter();
        let others = others.map(|row| one(row.token.token, Some(finite(row.token.logprob))));
        first.into_iter().chain(others).collect()
    }

    /// What there is to tell of output `idx`, which has ended.
    fn sequence(&mut self, idx: usize, generation: &stream::Generation) -> Sequence {
        let output = std::mem::take(&mut self.outputs[idx]);
        let rows = || output.rows.iter().chain(&output.stop);
        let top_tokens = match self.told.n_top {
            0 => Vec::new(),
            _ => rows().map(|row| self.top(row)).collect(),
        };
        Sequence {
            finish_reason: output.finish.unwrap_or("length"),
            generated_tokens: generation.finished(idx).map_or(0, |f| f.usage.completion_tokens),
            seed: self.told.seed,
            prefill: self.prefill(&output),
            tokens: rows()
                .map(|row| self.token(&row.token, self.spelled(row.token.token)))
                .collect(),
            top_tokens,
            generated_text: format!("{}{}", self.told.opening, output.text),
        }
    }

    /// Sends a token that is followed by others.
    fn send(&mut self, (row, text): (RowLogprobs, String), events: &mut Events) {
        let event = self.event(&row, text);
        events.send(None, &event);
    }

    fn event(&mut self, row: &RowLogprobs, text: String) -> StreamEvent {
        self.n_told += 1;
        StreamEvent {
            index: self.n_told,
            token: self.token(&row.token, text),
            top_tokens: self.top(row),
            generated_text: None,
            details: None,
        }
    }

    /// What each of the tokens adds to a text that they were released with.
    fn shares(&self, rows: &[RowLogprobs], text: &str) -> Vec<String> {
        let spelled = rows
            .iter()
            .map(|row| match self.told.tokenizer.is_special(row.token.token) {
                true => String::new(),
                false => self.spelled(row.token.token),
            });
        let mut shares: Vec<String> = spelled.collect();
        if shares.concat() != text {
            shares.iter_mut().for_each(String::clear);
            if let Some(last) = shares.last_mut() {
                text.clone_into(last);
            }
        }
        shares
    }
}

/// The mean of the log-probabilities of an output.
fn likelihood(output: &Output) -> f32 {
    let rows = || output.rows.iter().chain(&output.stop);
    rows().map(|row| row.token.logprob).sum::<f32>() / rows().count().max(1) as f32
}

impl Dialect for TgiAnswer {
    fn collect(&mut self, piece: Piece, _: &stream::Generation) -> Result<(), ApiError> {
        let ending = match &piece.finish {
            Some(reason) => Some(self.ending(reason).map(|(word, end)| (word, end.to_owned()))?),
            None => None,
        };
        let output = &mut self.outputs[piece.choice];
        output.text.push_str(&piece.text);
        output.prompt.extend(piece.prompt.unwrap_or_default());
        output.rows.extend(piece.logprobs);
        output.stop = piece.stop_logprobs.into_iter().next().or(output.stop.take());
        if let Some((word, end)) = ending {
            output.finish = Some(word);
            output.text.push_str(&end);
        }
        Ok(())
    }

    fn whole(&mut self, generation: &mut stream::Generation) -> Result<Response, ApiError> {
        let better = |a: &usize, b: &usize| {
            let likely = |idx: usize| likelihood(&self.outputs[idx]);
            // Of equals the first one.
            likely(*a).total_cmp(&likely(*b)).then(b.cmp(a))
        };
        let best = (0..self.outputs.len())
            .max_by(better)
            .expect("at least one output");
        let others = (0..self.outputs.len())
            .filter(|idx| *idx != best)
            .collect::<Vec<_>>();
        let answer = self.sequence(best, generation);
        let details = self.told.wants_details.then(|| Details {
            finish_reason: answer.finish_reason,
            generated_tokens: answer.generated_tokens,
            seed: answer.seed,
            prefill: answer.prefill,
            tokens: answer.tokens,
            top_tokens: answer.top_tokens,
            best_of_sequences: others
                .into_iter()
                .map(|idx| self.sequence(idx, generation))
                .collect(),
        });
        let answer = Generation {
            generated_text: answer.generated_text,
            details,
        };
        Ok(match self.told.is_list {
            true => Json([answer]).into_response(),
            false => Json(answer).into_response(),
        })
    }

    fn open(&mut self, _: &mut stream::Generation, _: &mut Events) {}

    fn piece(
        &mut self,
        piece: Piece,
        generation: &mut stream::Generation,
        events: &mut Events,
    ) -> Result<(), ApiError> {
        let rows = piece.logprobs.clone();
        let text = piece.text.clone();
        let has_ended = piece.finish.is_some();
        let n_before = self.outputs[0].text.len();
        self.collect(piece, generation)?;
        let shares = self.shares(&rows, &text);
        for new in rows.into_iter().zip(shares) {
            if let Some(earlier) = self.pending.replace(new) {
                self.send(earlier, events);
            }
        }
        if !has_ended {
            return Ok(());
        }
        // What was held back belongs to the last token that is text.
        if let Some((_, pending)) = &mut self.pending {
            pending.push_str(&self.outputs[0].text[n_before..]);
        }
        let last = match self.outputs[0].stop.take() {
            Some(stop) => {
                if let Some(earlier) = self.pending.take() {
                    self.send(earlier, events);
                }
                let text = self.spelled(stop.token.token);
                Some((stop, text))
            }
            None => self.pending.take(),
        };
        // Who got no token ran out of time before the first one.
        let (row, text) = last.ok_or(ApiError::QueueTimeout)?;
        let mut event = self.event(&row, text);
        let usage = generation
            .finished(0)
            .map(|finished| finished.usage)
            .unwrap_or_default();
        event.generated_text = Some(format!("{}{}", self.told.opening, self.outputs[0].text));
        event.details = Some(StreamDetails {
            finish_reason: self.outputs[0].finish.unwrap_or("length"),
            generated_tokens: usage.completion_tokens,
            seed: self.told.seed,
            input_length: self.told.prompt.len(),
        });
        events.send(None, &event);
        Ok(())
    }

    fn close(&mut self, _: &stream::Generation, _: &mut Events) {}

    fn error(&mut self, error: &ApiError, events: &mut Events) {
        events.send(None, &response::error(error).1);
    }
}
