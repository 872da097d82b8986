//! `POST /generate`, in SGLang's words.
//!
//! ```text
//! whole     {text, output_ids, meta_info}, or a list of them
//! streamed  the same with all that came so far, once per step, then [DONE]
//! ```

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use arbora_runtime::request::{FinishReason, RowLogprobs, TokenLogprob};
use arbora_runtime::tokenizer::Tokenizer;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::Value;

use super::completions::prepare;
use super::{App, KEEP_ALIVE, Traced, cache};
use crate::body::RequestBody;
use crate::logprobs::finite;
use crate::random::random_id;
use crate::reply::{event, event_stream};
use crate::stream::{Generation, Piece};
use crate::wire::completion::Echo;
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;
use crate::wire::generate::{
    FinishedBy, GenerateRequest, Generated, LogprobList, LogprobShape, LogprobTuple, MetaInfo,
};

/// Continues texts.
pub async fn generate(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let mut request = GenerateRequest::parse(&body.0, &app.sampling)?;
    request.options.deadlines = Deadlines::read(&headers)?;
    let mut prepared = Vec::with_capacity(request.prompts.len());
    for prompt in request.prompts {
        prepared.push(prepare(&app, prompt, Echo::Output).await?);
    }
    let options = &request.options;
    let id = request.id.unwrap_or_else(random_id);
    let begin = |prompt: &super::PreparedPrompt| Output {
        prompt_tokens: prompt.tokens.len(),
        first_token: prompt.tokens.first().copied(),
        ..Output::default()
    };
    let outputs = prepared
        .iter()
        .flat_map(|prompt| (0..options.n).map(move |_| begin(prompt)));
    let outputs: Vec<Output> = outputs.collect();
    let owner = app.owner(&headers);
    let grammar = app.grammar(options, owner).await?;
    let (mut generation, requests) = app.generate(prepared, options, (owner, grammar.as_ref()))?;
    cache::note(&app, &id, &headers, requests);
    if let Some(Extension(exchange)) = exchange {
        generation.trace(exchange.generation(&id, options));
    }
    let told = Told {
        tokenizer: Arc::clone(app.encoder.tokenizer()),
        stops: options.stop.strings.clone(),
        logprobs: options.logprobs.output.map(|n_top| (request.logprobs, n_top)),
        is_list: request.is_list,
        arrived,
        id,
    };
    let answer = GenerateAnswer {
        generation,
        outputs,
        told,
    };
    match request.stream {
        true => Ok(answer.stream()),
        false => answer.whole().await,
    }
}

/// What is the same for all outputs of an answer.
#[derive(Debug)]
struct Told {
    tokenizer: Arc<Tokenizer>,
    stops: Vec<String>,
    /// How log-probabilities are listed, and how many beside each token.
    logprobs: Option<(LogprobShape, usize)>,
    is_list: bool,
    arrived: Instant,
    id: String,
}

/// One output as far as it came.
#[derive(Debug, Default)]
struct Output {
    prompt_tokens: usize,
    first_token: Option<u32>,
    prompt: Vec<RowLogprobs>,
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<RowLogprobs>,
}

impl Output {
    fn add(&mut self, piece: Piece) {
        self.prompt.extend(piece.prompt.unwrap_or_default());
        self.text.push_str(&piece.text);
        self.tokens.extend(piece.tokens);
        self.logprobs.extend(piece.logprobs);
    }
}

#[derive(Debug)]
struct GenerateAnswer {
    generation: Generation,
    outputs: Vec<Output>,
    told: Told,
}

impl GenerateAnswer {
    async fn whole(mut self) -> Result<Response, ApiError> {
        while let Some(piece) = self.generation.next().await {
            self.outputs[piece.choice].add(piece);
        }
        let outputs = (0..self.outputs.len()).map(|idx| self.output(idx));
        let mut outputs = outputs.collect::<Result<Vec<Generated>, ApiError>>()?;
        match outputs.pop() {
            Some(only) if !self.told.is_list => Ok(Json(only).into_response()),
            last => {
                outputs.extend(last);
                Ok(Json(outputs).into_response())
            }
        }
    }

    fn stream(self) -> Response {
        let chunks = futures_util::stream::unfold(Some(self), |answer| async move {
            let (chunk, answer) = answer?.next().await;
            Some((Ok::<_, Infallible>(chunk), answer))
        });
        event_stream(Body::from_stream(chunks))
    }

    /// The next bytes to send, and what goes on after them.
    async fn next(mut self) -> (Bytes, Option<Self>) {
        let mut out = Vec::new();
        match tokio::time::timeout(KEEP_ALIVE, self.generation.next()).await {
            Err(_) => out.extend_from_slice(b": keep-alive\n\n"),
            Ok(None) => {
                out.extend_from_slice(b"data: [DONE]\n\n");
                return (out.into(), None);
            }
            Ok(Some(piece)) => {
                let idx = piece.choice;
                self.outputs[idx].add(piece);
                match self.output(idx) {
                    Ok(mut output) => {
                        output.index = self.told.is_list.then_some(idx);
                        event(&output, &mut out);
                    }
                    Err(error) => {
                        event(&error.body(), &mut out);
                        return (out.into(), None);
                    }
                }
            }
        }
        (out.into(), Some(self))
    }

    /// Output `idx` as far as it came.
    fn output(&self, idx: usize) -> Result<Generated, ApiError> {
        let output = &self.outputs[idx];
        let finished = self.generation.finished(idx);
        let finish_reason = match finished {
            Some(finished) => Some(self.told.finished_by(&finished.reason, output.tokens.len())?),
            None => None,
        };
        let mut meta_info = MetaInfo {
            id: self.told.id.clone(),
            finish_reason,
            prompt_tokens: output.prompt_tokens,
            completion_tokens: finished.map_or(output.tokens.len(), |f| f.usage.completion_tokens),
            cached_tokens: finished.map(|finished| finished.usage.cached_tokens),
            e2e_latency: finished.map(|_| self.told.arrived.elapsed().as_secs_f64()),
            ..MetaInfo::default()
        };
        if let Some((shape, n_top)) = self.told.logprobs {
            self.told.list_logprobs(output, (shape, n_top), &mut meta_info);
        }
        Ok(Generated {
            index: None,
            text: output.text.clone(),
            output_ids: output.tokens.clone(),
            meta_info,
        })
    }
}

impl Told {
    fn finished_by(&self, reason: &FinishReason, length: usize) -> Result<FinishedBy, ApiError> {
        let stop = |matched| Ok(FinishedBy::Stop { matched });
        match reason {
            FinishReason::StopToken(id) => stop(Some(Value::from(*id))),
            FinishReason::StopString(idx) => stop(Some(Value::from(self.stops[*idx].as_str()))),
            FinishReason::Complete => stop(None),
            FinishReason::Length | FinishReason::Deadline => Ok(FinishedBy::Length { length }),
            FinishReason::QueueDeadline => Err(ApiError::QueueTimeout),
            FinishReason::Error(error) => Err(ApiError::from(error.clone())),
            // The engine aborts only what nobody listens to.
            FinishReason::Aborted => Err(ApiError::Failed),
        }
    }

    fn list_logprobs(&self, output: &Output, (shape, n_top): (LogprobShape, usize), meta: &mut MetaInfo) {
        let tuple = |token: &TokenLogprob| self.tuple((Some(token.logprob), token.token), shape);
        let top = |row: &RowLogprobs| Some(row.top.iter().take(n_top).map(tuple).collect());
        let rows = output.logprobs.iter();
        let tokens = rows.clone().map(|row| tuple(&row.token)).collect();
        meta.logprobs
            .insert("output_token_logprobs", LogprobList::Tokens(tokens));
        if n_top > 0 {
            let listed = LogprobList::Top(rows.map(top).collect());
            meta.logprobs.insert("output_top_logprobs", listed);
        }
        let (Some(from), Some(first)) = (shape.from, output.first_token) else {
            return;
        };
        // Of the first token the model says nothing.
        let first = self.tuple((None, first), shape);
        let tokens = std::iter::once(first).chain(output.prompt.iter().map(|row| tuple(&row.token)));
        let tokens = LogprobList::Tokens(tokens.skip(from).collect());
        meta.logprobs.insert("input_token_logprobs", tokens);
        if n_top > 0 {
            let listed = std::iter::once(None).chain(output.prompt.iter().map(top));
            let listed = LogprobList::Top(listed.skip(from).collect());
            meta.logprobs.insert("input_top_logprobs", listed);
        }
    }

    fn tuple(&self, (logprob, token): (Option<f32>, u32), shape: LogprobShape) -> LogprobTuple {
        let text = || String::from_utf8_lossy(self.tokenizer.token_bytes(token)).into_owned();
        (logprob.map(finite), token, shape.with_text.then(text))
    }
}
