//! What the toy model says, one token after the other, without pages, batches or a cache.

use std::sync::Arc;

use arbora_constrained::{Grammar, Vocabulary};
use arbora_kernels::{Allowed, SampleRow};
use arbora_runtime::request::{FinishReason, Request};
use arbora_runtime::sampler::noise;

use crate::random::mix;
use crate::toy::{FOLD_START, N_LAYERS, N_VOCAB, toy_sample, weight};

/// A sequence evaluated token by token.
struct Evaluation {
    position: u64,
    folds: [u64; N_LAYERS],
}

impl Evaluation {
    fn new() -> Self {
        Evaluation {
            position: 0,
            folds: [FOLD_START; N_LAYERS],
        }
    }

    /// Feeds a token and returns its logits.
    fn feed(&mut self, token: u32) -> u64 {
        let mut x = mix(weight::EMBEDDING, u64::from(token));
        let mut delta = None;
        for fold in &mut self.folds {
            if let Some(delta) = delta {
                x = mix(x, delta);
            }
            let qkv = mix(weight::QKV, mix(x, weight::ATTENTION_NORM));
            *fold = mix(*fold, mix(qkv, self.position));
            x = mix(x, mix(weight::ATTENTION_OUT, mix(*fold, qkv)));
            let gate_up = mix(weight::GATE_UP, mix(x, weight::FFN_NORM));
            delta = Some(mix(weight::DOWN, mix(weight::SILU, gate_up)));
        }
        self.position += 1;
        let x = mix(x, delta.expect("there are layers"));
        mix(weight::HEAD, mix(x, weight::FINAL_NORM))
    }
}

/// How an undisturbed request ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its output.
    pub tokens: Vec<u32>,
    /// Its ending; `None` where the model gives no finite logits.
    pub reason: Option<FinishReason>,
}

/// Tokens that grammars spell with; many more would spell the same texts in so many ways that no draft is
/// ever right.
const N_SPELLING: u32 = 18;

/// The toy model's tokens as grammars see them; `model_stops` end a text.
pub fn vocabulary(model_stops: &[u32]) -> Arc<Vocabulary> {
    let text = |token| (token < N_SPELLING).then(|| token_bytes(token));
    let tokens = (0..N_VOCAB as u32).map(|token| text(token).filter(|bytes| !bytes.is_empty()));
    Arc::new(Vocabulary::new(tokens, model_stops).expect("the stop tokens are tokens"))
}

/// Some way to spell a text in toy tokens, the longest first; text that cannot be spelled is left out.
pub fn spell(text: &[u8]) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let fits = |token: &u32| !token_bytes(*token).is_empty() && rest.starts_with(&token_bytes(*token));
        let longest = (0..N_SPELLING)
            .rev()
            .filter(fits)
            .max_by_key(|token| token_bytes(*token).len());
        tokens.extend(longest);
        rest = &rest[longest.map_or(1, |token| token_bytes(token).len())..];
    }
    tokens
}

/// The output of `request` on the toy model, one that follows `grammar` if there is one.
pub fn expected(
    request: &Request,
    grammar: Option<&Grammar>,
    model_stops: &[u32],
    not_finite_one_in: u64,
) -> Expected {
    let mut matcher = grammar.map(Grammar::matcher);
    let mut evaluation = Evaluation::new();
    let mut logits = 0;
    for &token in &request.prompt {
        logits = evaluation.feed(token);
    }
    let mut tokens = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let position = request.prompt.len() + tokens.len();
        let mask = matcher
            .as_mut()
            .map(|matcher| matcher.mask().expect("a toy grammar is within its limits"));
        let row = SampleRow {
            allowed: mask.as_ref().map_or(Allowed::All, |mask| {
                Allowed::Ids(mask.ids().expect("the vocabulary is small"))
            }),
            temperature: request.sampling.temperature,
            top_k: request.sampling.top_k,
            top_p: request.sampling.top_p,
            min_p: request.sampling.min_p,
            noise: noise(request.sampling.seed, request.choice_idx, position as u64),
        };
        let Some(token) = toy_sample(logits, &row, not_finite_one_in) else {
            return Expected { tokens, reason: None };
        };
        tokens.push(token);
        bytes.extend(token_bytes(token));
        let stop = &request.stop;
        let heeds_eos = !stop.ignore_eos || grammar.is_some();
        let ends = if stop.token_ids.contains(&token) || (heeds_eos && model_stops.contains(&token)) {
            Some(FinishReason::StopToken(token))
        } else if let Some(idx) = first_stop(&stop.strings, &bytes) {
            Some(FinishReason::StopString(idx))
        } else if matcher.as_mut().is_some_and(|matcher| {
            matcher.advance(token).expect("an allowed token");
            let mask = matcher.mask().expect("a toy grammar is within its limits");
            mask.ids()
                .is_some_and(|ids| ids.iter().all(|id| model_stops.contains(id)))
        }) {
            Some(FinishReason::Complete)
        } else {
            (tokens.len() >= request.max_tokens).then_some(FinishReason::Length)
        };
        if ends.is_some() {
            return Expected { tokens, reason: ends };
        }
        logits = evaluation.feed(token);
    }
}

/// What a toy token adds to the text: one or two letters, or half of a two-byte character.
pub fn token_bytes(token: u32) -> Vec<u8> {
    match token % 6 {
        0 => vec![b'a' + (token / 6 % 3) as u8],
        1 => vec![b'a', b'b'],
        2 => vec![b'b', b'c'],
        3 => vec![0xC3],
        4 => vec![0xA9],
        _ => Vec::new(),
    }
}

fn first_stop(stops: &[String], bytes: &[u8]) -> Option<usize> {
    (1..=bytes.len()).find_map(|end| {
        let complete = |&(_, stop): &(usize, &String)| bytes[..end].ends_with(stop.as_bytes());
        let longest = stops
            .iter()
            .enumerate()
            .rev()
            .filter(complete)
            .max_by_key(|(_, s)| s.len());
        longest.map(|(idx, _)| idx)
    })
}
