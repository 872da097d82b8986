//! `POST /v1/chat/completions/render` and `POST /v1/completions/render`: the answer, vLLM's with the prompt's
//! text besides. What the output must look like is not told.

use std::collections::BTreeMap;

use arbora_runtime::request::SamplingParams;
use serde::Serialize;

use super::options::{Delivery, Options};

/// A prompt that was not run.
#[derive(Clone, Debug, Serialize)]
pub struct Rendered {
    /// An id of its own.
    pub request_id: String,
    /// The text of the tokens, control tokens spelled out.
    pub prompt: String,
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// How the output would be drawn.
    pub sampling_params: RenderedSampling,
    /// The model.
    pub model: String,
    /// Whether the answer would come in pieces.
    pub stream: bool,
    /// How, or `null`.
    pub stream_options: Option<RenderedStream>,
    /// Larger is sooner.
    pub priority: i32,
}

/// What a stream would have.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RenderedStream {
    /// One more chunk at the end that counts tokens.
    pub include_usage: bool,
    /// Counts in every chunk.
    pub continuous_usage_stats: bool,
}

impl RenderedStream {
    /// Absent where the answer would come in one piece.
    pub fn of(delivery: Delivery) -> Option<Self> {
        match delivery {
            Delivery::Whole => None,
            Delivery::Stream(usage) => Some(RenderedStream {
                include_usage: usage.at_end,
                continuous_usage_stats: usage.in_chunks,
            }),
        }
    }
}

/// The options of a request by vLLM's names, with every default filled in.
#[derive(Clone, Debug, Serialize)]
pub struct RenderedSampling {
    n: usize,
    temperature: f32,
    top_p: f32,
    top_k: u32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// Drawn where the request has none.
    seed: i64,
    max_tokens: usize,
    min_tokens: usize,
    stop: Vec<String>,
    stop_token_ids: Vec<u32>,
    ignore_eos: bool,
    logit_bias: BTreeMap<u32, f32>,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
}

impl RenderedSampling {
    /// Of `options` with the model's defaults in `sampling`, for an output of at most `max_tokens`.
    pub fn new(options: &Options, sampling: &SamplingParams, max_tokens: usize) -> Self {
        let stop = &options.stop;
        RenderedSampling {
            n: options.n,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seed: sampling.seed.cast_signed(),
            max_tokens,
            min_tokens: stop.min_tokens,
            stop: stop.strings.clone(),
            stop_token_ids: stop.token_ids.clone(),
            ignore_eos: stop.ignore_eos,
            logit_bias: options.logit_bias.iter().copied().collect(),
            logprobs: options.logprobs.output,
            prompt_logprobs: options.logprobs.prompt,
        }
    }
}
