//! `POST /generate`, in SGLang's words.
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

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use arbora_runtime::request::{FinishReason, LogprobsWanted, RowLogprobs, TokenLogprob};
use arbora_runtime::tokenizer::Tokenizer;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use serde_json::Value;

use super::completions::prepare;
use super::{App, Job, KEEP_ALIVE, PreparedPrompt, Traced, cache};
use crate::body::RequestBody;
use crate::grammars::Begun;
use crate::intake::Admitted;
use crate::logprobs::finite;
use crate::random::random_id;
use crate::reply::{event, event_stream};
use crate::stream::{Generation, Piece};
use crate::wire::completion::{Echo, Prompt};
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;
use crate::wire::generate::{
    FinishedBy, GeneratePrompt, GenerateRequest, Generated, LogprobList, LogprobShape, LogprobTuple, MetaInfo,
};
use crate::wire::options::Options;

/// Events up to this many bytes are sent at every step.
const SHORT_EVENT: usize = 16 << 10;
/// By which part of itself an output is longer when the event after a long one is sent.
const GROWTH: usize = 16;

/// What an event of a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamForm {
    /// All that came so far.
    #[default]
    Cumulative,
    /// What came since the event before.
    Incremental,
}

/// Continues texts.
pub async fn generate(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let sampling = app.sampling;
    let parse = move |bytes: &[u8]| GenerateRequest::parse(bytes, &sampling);
    let (request, admitted) = body.parse(&app, parse).await?;
    let (deadlines, owner) = (Deadlines::read(&headers)?, app.owner(&headers));
    let mut prompts = Vec::with_capacity(request.prompts.len());
    for mut asked in request.prompts {
        asked.options.deadlines = deadlines;
        prompts.push(ReadPrompt::new(&app, &admitted, asked, owner).await?);
    }
    let field = prompts.first().map_or("text", |prompt| prompt.field);
    let generated = app.generate(prompts.iter().map(ReadPrompt::job).collect(), owner);
    drop(admitted);
    let (mut generation, requests) = generated.map_err(|error| error.of_prompt_in(field))?;
    for (prompt, request) in prompts.iter().zip(requests) {
        cache::note(&app, &prompt.told.id, &headers, vec![request]);
    }
    if let (Some(Extension(exchange)), Some(first)) = (exchange, prompts.first()) {
        generation.trace(exchange.generation(&first.told.id, &first.options));
    }
    let outputs = prompts
        .iter()
        .enumerate()
        .flat_map(|(idx, prompt)| prompt.outputs(idx));
    let answer = GenerateAnswer {
        generation,
        outputs: outputs.collect(),
        told: Told {
            tokenizer: Arc::clone(app.encoder.tokenizer()),
            is_list: request.is_list,
            form: app.generate_form,
            arrived,
            prompts: prompts.into_iter().map(|prompt| prompt.told).collect(),
        },
    };
    match request.stream {
        true => Ok(answer.stream()),
        false => answer.whole().await,
    }
}

/// A prompt that is ready to be continued.
struct ReadPrompt {
    /// Where the client wrote it.
    field: &'static str,
    prompt: PreparedPrompt,
    options: Options,
    grammar: Option<Begun>,
    told: PromptTold,
}

impl ReadPrompt {
    async fn new(
        app: &App,
        admitted: &Admitted,
        asked: GeneratePrompt,
        owner: Option<usize>,
    ) -> Result<Self, ApiError> {
        let GeneratePrompt {
            prompt,
            id,
            logprobs,
            options,
        } = asked;
        let field = match prompt {
            Prompt::Text { .. } => "text",
            Prompt::Tokens(_) => "input_ids",
        };
        let prompt = prepare(app, admitted, prompt, Echo::Output).await;
        let prompt = prompt.map_err(|error| error.of_prompt_in(field))?;
        let n_tokens = prompt.tokens.len();
        if let Some(from) = logprobs.from.filter(|from| *from > n_tokens) {
            let message = format!("'logprob_start_len' is {from}, the prompt has {n_tokens} tokens.");
            return Err(ApiError::invalid("logprob_start_len", message));
        }
        let told = PromptTold {
            id: id.unwrap_or_else(random_id),
            stops: options.stop.strings.clone(),
            logprobs: options.logprobs.output.map(|_| logprobs),
            wanted: options.logprobs.clone(),
        };
        Ok(ReadPrompt {
            field,
            grammar: app.grammar(&options, owner).await?,
            prompt,
            options,
            told,
        })
    }

    fn job(&self) -> Job<'_> {
        Job {
            prompt: &self.prompt,
            options: &self.options,
            grammar: self.grammar.as_ref(),
            thoughts: None,
        }
    }

    /// Its outputs, none of which has begun; it is number `prompt_idx`.
    fn outputs(&self, prompt_idx: usize) -> impl Iterator<Item = Output> {
        let output = Output {
            prompt_idx,
            prompt_tokens: self.prompt.tokens.len(),
            first_token: self.prompt.tokens.first().copied(),
            ..Output::default()
        };
        std::iter::repeat_n(output, self.options.n)
    }
}

/// What is the same for all outputs of an answer.
#[derive(Debug)]
struct Told {
    tokenizer: Arc<Tokenizer>,
    is_list: bool,
    form: StreamForm,
    arrived: Instant,
    prompts: Vec<PromptTold>,
}

/// What is the same for all outputs of a prompt.
#[derive(Debug)]
struct PromptTold {
    id: String,
    stops: Vec<String>,
    /// How log-probabilities are listed, if they are.
    logprobs: Option<LogprobShape>,
    wanted: LogprobsWanted,
}

/// One output as far as it came, or what came of it since the last event.
#[derive(Clone, Debug, Default)]
struct Output {
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
        let form = self.told.form;
        loop {
            let piece = match tokio::time::timeout(KEEP_ALIVE, self.generation.next()).await {
                Err(_) => return (Bytes::from_static(b": keep-alive\n\n"), Some(self)),
                Ok(None) => return (Bytes::from_static(b"data: [DONE]\n\n"), None),
                Ok(Some(piece)) => piece,
            };
            let idx = piece.choice;
            self.outputs[idx].add(piece);
            if self.generation.finished(idx).is_none() && !self.outputs[idx].is_due(form) {
                continue;
            }
            let mut out = Vec::new();
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
            self.outputs[idx].note_event(form, out.len());
            return (out.into(), Some(self));
        }
    }

    /// Output `idx` as far as it came.
    fn output(&self, idx: usize) -> Result<Generated, ApiError> {
        let output = &self.outputs[idx];
        let prompt = &self.told.prompts[output.prompt_idx];
        let finished = self.generation.finished(idx);
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
