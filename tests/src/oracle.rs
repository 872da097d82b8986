//! What the toy model says, one token after the other, without pages, batches or a cache.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbora_constrained::{Grammar, Vocabulary};
use arbora_kernels::{Adjustment, Allowed, LogprobRow, RowLogprobs, SampleRow, Scored};
use arbora_runtime::request::{FinishReason, Request};
use arbora_runtime::sampler::noise;
use arbora_runtime::thought_limit::ThoughtLimit;

use crate::random::mix;
use crate::toy::{FOLD_START, N_LAYERS, N_VOCAB, toy_choices, toy_combine, toy_logprobs, toy_sample, weight};

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
        for (layer, fold) in self.folds.iter_mut().enumerate() {
            if let Some(delta) = delta {
                x = mix(x, delta);
            }
            let qkv = mix(weight::QKV, mix(x, weight::ATTENTION_NORM));
            *fold = mix(*fold, mix(qkv, self.position));
            x = mix(x, mix(weight::ATTENTION_OUT, mix(*fold, qkv)));
            let h = mix(x, weight::FFN_NORM);
            let mlp = |gate_up, down| mix(down, mix(weight::SILU, mix(gate_up, h)));
            delta = Some(match layer {
                0 => mlp(weight::GATE_UP, weight::DOWN),
                _ => {
                    let expert = |e: usize| mlp(weight::EXPERT_GATE_UP[e], weight::EXPERT_DOWN[e]);
                    toy_combine(toy_choices(mix(weight::ROUTER, h)).map(expert))
                }
            });
        }
        self.position += 1;
        let x = mix(x, delta.expect("there are layers"));
        mix(weight::HEAD, mix(x, weight::FINAL_NORM))
    }
}

/// How an undisturbed request ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// Its output.
    pub tokens: Vec<u32>,
    /// The text of the output.
    pub text: String,
    /// Its ending; `None` where the model gives no finite logits.
    pub reason: Option<FinishReason>,
    /// Log-probabilities of the prompt, if wanted.
    pub scores: Vec<RowLogprobs>,
    /// Log-probabilities of the output, if wanted.
    pub logprobs: Vec<RowLogprobs>,
}

/// What `request` changes in the logits after `prompt` and `output`: counted afresh each time.
fn adjustments(request: &Request, output: &[u32], ending: &[u32]) -> Vec<Adjustment> {
    let sampling = &request.sampling;
    let mut changes: BTreeMap<u32, (f32, f32)> = BTreeMap::new();
    for &(token, bias) in &request.logit_bias {
        changes.entry(token).or_insert((1.0, 0.0)).1 += bias;
    }
    for token in 0..N_VOCAB as u32 {
        let n_output = output.iter().filter(|other| **other == token).count();
        let was_seen = n_output > 0 || request.prompt.contains(&token);
        if was_seen {
            changes.entry(token).or_insert((1.0, 0.0)).0 = sampling.repetition_penalty;
        }
        if n_output > 0 {
            let shift = &mut changes.entry(token).or_insert((1.0, 0.0)).1;
            *shift -= sampling.presence_penalty + sampling.frequency_penalty * n_output as f32;
        }
    }
    if output.len() < request.stop.min_tokens {
        changes.extend(ending.iter().map(|token| (*token, (1.0, f32::NEG_INFINITY))));
    }
    changes.retain(|_, change| *change != (1.0, 0.0));
    let adjustment = |(token, (divisor, shift))| Adjustment {
        token,
        divisor,
        shift,
    };
    changes.into_iter().map(adjustment).collect()
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
    let mut scores = Vec::new();
    for (idx, &token) in request.prompt.iter().enumerate() {
        if let Some(n_top) = request.logprobs.prompt.filter(|_| idx > 0) {
            match toy_logprobs(
                logits,
                (&logprob_row(request, token, n_top), token),
                not_finite_one_in,
            ) {
                Some(score) => scores.push(score),
                None => return Expected::default(),
            }
        }
        logits = evaluation.feed(token);
    }
    if request.max_tokens == 0 {
        return Expected {
            reason: Some(FinishReason::Length),
            scores,
            ..Expected::default()
        };
    }
    let stop = &request.stop;
    let heeds_eos = !stop.ignore_eos || grammar.is_some();
    let heeded = if heeds_eos { model_stops } else { &[] };
    let ending = [stop.token_ids.as_slice(), heeded].concat();
    let mut logprobs = Vec::new();
    let mut tokens = Vec::new();
    // The text in which no stop string is looked for, and what comes after it.
    let (mut exempt, mut bytes) = (Vec::new(), Vec::new());
    loop {
        let position = request.prompt.len() + tokens.len();
        let mask = matcher.as_mut().map(|matcher| matcher.mask());
        let forced = request.thoughts.as_ref().and_then(|limit| forced(limit, &tokens));
        let mut adjustments = adjustments(request, &tokens, &ending);
        if forced.is_some() {
            adjustments.clear();
        }
        let row = SampleRow {
            adjustments: &adjustments,
            allowed: match (&forced, &mask) {
                (Some(token), _) => Allowed::Ids(std::slice::from_ref(token)),
                (None, Some(mask)) => Allowed::Ids(mask.ids().expect("the vocabulary is small")),
                (None, None) => Allowed::All,
            },
            temperature: request.sampling.temperature,
            top_k: request.sampling.top_k,
            top_p: request.sampling.top_p,
            min_p: request.sampling.min_p,
            noise: noise(request.sampling.seed, request.choice_idx, position as u64),
        };
        let expected = |tokens, text: [&[u8]; 2], reason, logprobs| Expected {
            tokens,
            text: String::from_utf8_lossy(&text.concat()).into_owned(),
            reason,
            scores: scores.clone(),
            logprobs,
        };
        let Some(token) = toy_sample(logits, &row, not_finite_one_in) else {
            return expected(tokens, [&exempt, &bytes], None, logprobs);
        };
        if let Some(n_top) = request.logprobs.output {
            let asked = logprob_row(request, token, n_top);
            logprobs.extend(toy_logprobs(logits, (&asked, token), not_finite_one_in));
        }
        tokens.push(token);
        if ending.contains(&token) {
            let reason = Some(FinishReason::StopToken(token));
            return expected(tokens, [&exempt, &bytes], reason, logprobs);
        }
        let text = if tokens.len() > stop.min_tokens {
            &mut bytes
        } else {
            &mut exempt
        };
        text.extend(token_bytes(token));
        let ends = if let Some((idx, end)) = first_stop(&stop.strings, &bytes) {
            bytes.truncate(end - stop.strings[idx].len());
            Some(FinishReason::StopString(idx))
        } else if matcher.as_mut().is_some_and(|matcher| {
            matcher.advance(token).expect("an allowed token");
            let mask = matcher.mask();
            mask.ids()
                .is_some_and(|ids| ids.iter().all(|id| model_stops.contains(id)))
        }) {
            Some(FinishReason::Complete)
        } else {
            (tokens.len() >= request.max_tokens).then_some(FinishReason::Length)
        };
        if ends.is_some() {
            return expected(tokens, [&exempt, &bytes], ends, logprobs);
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

/// The token that must follow `output` where its thoughts are limited, by looking at all of it.
fn forced(limit: &ThoughtLimit, output: &[u32]) -> Option<u32> {
    let marks = limit.marks();
    let text = |tokens: &[u32]| -> Vec<u8> { tokens.iter().flat_map(|token| token_bytes(*token)).collect() };
    let opening = marks.opening.as_deref().unwrap_or_default().as_bytes();
    let opens = |n: &usize| text(&output[..*n]).trim_ascii_start().starts_with(opening);
    let n_before = (0..=output.len()).find(opens)?;
    let n_thoughts = (output.len() - n_before).min(limit.max_tokens());
    let thoughts = text(&output[..n_before + n_thoughts]);
    let thoughts = &thoughts.trim_ascii_start()[opening.len()..];
    let closing = marks.closing.as_bytes();
    if n_thoughts < limit.max_tokens() || thoughts.windows(closing.len()).any(|window| window == closing) {
        return None;
    }
    marks
        .closing_tokens
        .get(output.len() - n_before - n_thoughts)
        .copied()
}

fn logprob_row(request: &Request, token: u32, n_top: usize) -> LogprobRow {
    LogprobRow {
        row: 0,
        token: Scored::Token(token),
        n_top,
        listed: Arc::clone(&request.logprobs.listed),
    }
}

/// Which stop string is complete first, the longest of these, and where it ends.
fn first_stop(stops: &[String], bytes: &[u8]) -> Option<(usize, usize)> {
    (1..=bytes.len()).find_map(|end| {
        let complete = |&(_, stop): &(usize, &String)| bytes[..end].ends_with(stop.as_bytes());
        let longest = stops
            .iter()
            .enumerate()
            .rev()
            .filter(complete)
            .max_by_key(|(_, s)| s.len());
        longest.map(|(idx, _)| (idx, end))
    })
}
