//! The fields chat and text completions share: sampling, lengths, stops, streaming, cache.

use arbora_constrained::Whitespace;
use arbora_runtime::request::{LogprobsWanted, SamplingParams, StopConditions};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::constraint::{self, Constraint};
use super::deadlines::Deadlines;
use super::error::ApiError;
use super::fields::{Fields, FromJson, wrong_type};
use super::unsupported::{self, ANYWHERE, PENALTIES, SAMPLING};
use crate::random::random_u64;

/// Most completions of one prompt.
pub const MAX_CHOICES: usize = 8;
/// Most stop strings. OpenAI takes 4; evaluation harnesses and SGLang's front-end language send more.
pub const MAX_STOPS: usize = 64;
/// Most bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most stop token ids.
pub const MAX_STOP_TOKENS: usize = 64;
/// Most tokens with a bias.
pub const MAX_BIASES: usize = 1024;
/// Most tokens listed beside one with their log-probabilities.
pub const MAX_LOGPROBS: usize = 20;

/// What a request asks for besides its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The model as the client named it; absent where it leaves the choice to the server.
    pub model: Option<String>,
    /// Most output tokens; absent for as many as fit.
    pub max_tokens: Option<usize>,
    /// Completions per prompt, at least 1.
    pub n: usize,
    /// How tokens are drawn, as far as the client says.
    pub sampling: SamplingAsked,
    /// What ends the output early.
    pub stop: StopConditions,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// What is told about how likely tokens were. `output` is spelled differently by each API and read there.
    pub logprobs: LogprobsWanted,
    /// What the output must look like; absent for free text.
    pub constraint: Option<Constraint>,
    /// Whitespace in whatever JSON the output must be, calls of tools included.
    pub whitespace: Whitespace,
    /// What the text says of control tokens.
    pub control_tokens: ControlTokens,
    /// One JSON answer or a stream of chunks.
    pub delivery: Delivery,
    /// Keeps this request's cache entries apart from those of other salts; all zero is shared by all.
    pub salt: [u8; 16],
    /// Larger is sooner.
    pub priority: i32,
    /// How long the client waits; read from headers by whoever has them.
    pub deadlines: Deadlines,
}

/// How tokens are drawn, as far as a client says; the rest is the model's own.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingAsked {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    /// Drawn where the client sent none.
    seed: u64,
    /// Why penalties are refused, should there be any.
    no_penalties: Option<ApiError>,
}

impl SamplingAsked {
    pub(super) fn read(f: &mut Fields) -> Result<Self, ApiError> {
        SamplingAsked::read_named(f, "repetition_penalty")
    }

    /// The same of an API that calls the repetition penalty `repetition`.
    pub(super) fn read_named(f: &mut Fields, repetition: &str) -> Result<Self, ApiError> {
        let asked = SamplingAsked {
            temperature: f.optional("temperature")?,
            // -1 is how vLLM's clients say "all".
            top_k: match in_range(f, "top_k", -1, i32::MAX)? {
                None | Some(-1) => None,
                Some(k) => Some(k as u32),
            },
            top_p: f.optional("top_p")?,
            min_p: f.optional("min_p")?,
            repetition_penalty: f.optional(repetition)?,
            presence_penalty: f.optional("presence_penalty")?,
            frequency_penalty: f.optional("frequency_penalty")?,
            seed: f
                .optional::<i64>("seed")?
                .map_or_else(random_u64, |seed| seed as u64),
            no_penalties: unsupported::refuse(f, &[&PENALTIES]).err(),
        };
        // What is out of range is so for every model.
        let plain = asked.over(&SamplingParams::default());
        plain.validate().map_err(|bad| {
            let name = match bad.param {
                "repetition_penalty" => repetition,
                other => other,
            };
            let path = f.path_of(name);
            let message = format!("'{path}' must be {}, got {}.", bad.expected, bad.value);
            ApiError::invalid(path, message)
        })?;
        asked.check_penalties(&plain)?;
        Ok(asked)
    }

    /// The same with the likeliest token always.
    pub(super) fn greedy(self) -> Self {
        SamplingAsked {
            temperature: Some(0.0),
            ..self
        }
    }

    /// Same seed, same request: same tokens.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The same with `defaults`, a model's own, for what the client leaves open.
    ///
    /// # Errors
    /// Where something asked for is out of range, or does not go with the model's penalties.
    pub fn with_defaults(&self, defaults: &SamplingParams) -> Result<SamplingParams, ApiError> {
        let sampling = self.over(defaults);
        sampling
            .validate()
            .map_err(|bad| ApiError::invalid(bad.param, format!("{bad}.")))?;
        self.check_penalties(&sampling)?;
        Ok(sampling)
    }

    fn over(&self, defaults: &SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            seed: self.seed,
        }
    }

    fn check_penalties(&self, sampling: &SamplingParams) -> Result<(), ApiError> {
        let penalties = (
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.repetition_penalty,
        );
        match &self.no_penalties {
            Some(error) if penalties != (0.0, 0.0, 1.0) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

/// How the answer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// All at once.
    Whole,
    /// Server-sent events.
    Stream(StreamUsage),
}

/// Where a stream counts tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamUsage {
    /// In every chunk.
    pub in_chunks: bool,
    /// In one more chunk at the end.
    pub at_end: bool,
}

/// What becomes of control tokens in the text of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlTokens {
    /// They are left out.
    LeftOut,
    /// They are spelled by their names.
    Spelled,
}

/// What an API says of the length of an output.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutputLength {
    /// The smallest `max_tokens`: 0 where a request may only score its prompt.
    pub fewest: usize,
    /// `max_tokens` where a request does not say; absent for what fits the context.
    pub default: Option<usize>,
}

impl Options {
    /// Reads the shared fields.
    pub fn read(f: &mut Fields, length: OutputLength) -> Result<Self, ApiError> {
        unsupported::refuse(f, &[&ANYWHERE, &SAMPLING])?;
        let max_tokens = max_tokens(f, length)?;
        let whitespace = constraint::whitespace(f)?;
        let n = in_range(f, "n", 1, MAX_CHOICES)?.unwrap_or(1);
        if f.optional::<usize>("best_of")?
            .is_some_and(|best_of| best_of != n)
        {
            let path = f.path_of("best_of");
            let message = format!("'{path}' is only supported where it equals 'n'.");
            return Err(ApiError::invalid(path, message));
        }
        let options = Options {
            model: f.optional("model")?,
            max_tokens,
            n,
            sampling: SamplingAsked::read(f)?,
            stop: stop(f, max_tokens)?,
            logit_bias: logit_bias(f)?,
            logprobs: LogprobsWanted {
                prompt: in_range(f, "prompt_logprobs", 0, MAX_LOGPROBS)?,
                ..LogprobsWanted::default()
            },
            constraint: Constraint::read(f, whitespace)?,
            whitespace,
            control_tokens: match f.optional("skip_special_tokens")? {
                Some(false) => ControlTokens::Spelled,
                _ => ControlTokens::LeftOut,
            },
            delivery: delivery(f)?,
            salt: salt(f)?,
            priority: f.optional("priority")?.unwrap_or(0),
            deadlines: Deadlines::default(),
        };
        // Known, without effect on the output: hints and labels. Their types are checked all the same.
        for name in ["user", "prompt_cache_key", "safety_identifier", "service_tier"] {
            f.optional::<String>(name)?;
        }
        if options.logprobs.prompt.is_some() && options.delivery != Delivery::Whole {
            let message = "'prompt_logprobs' is not available when 'stream' is true.";
            return Err(ApiError::invalid("prompt_logprobs", message));
        }
        Ok(options)
    }
}

/// What an API asks for that has one completion per prompt and fields of its own.
pub(super) struct OneOutput {
    /// Most output tokens; absent for as many as fit.
    pub(super) max_tokens: Option<usize>,
    /// Texts that end it.
    pub(super) stops: Vec<String>,
    /// What it must look like.
    pub(super) constraint: Option<Constraint>,
    /// How its tokens are drawn.
    pub(super) sampling: SamplingAsked,
    /// How the answer travels.
    pub(super) delivery: Delivery,
}

impl Options {
    /// Those of an API with fields of its own, which `output` holds, and some that all have.
    pub(super) fn of_one(f: &mut Fields, output: OneOutput) -> Result<Self, ApiError> {
        Ok(Options {
            model: f.optional("model")?,
            max_tokens: output.max_tokens,
            n: 1,
            sampling: output.sampling,
            stop: StopConditions {
                strings: output.stops,
                ..StopConditions::default()
            },
            logit_bias: Vec::new(),
            logprobs: LogprobsWanted::default(),
            constraint: output.constraint,
            whitespace: Whitespace::Any,
            control_tokens: ControlTokens::LeftOut,
            delivery: output.delivery,
            salt: salt(f)?,
            priority: f.optional("priority")?.unwrap_or(0),
            deadlines: Deadlines::default(),
        })
    }
}

impl Delivery {
    /// What the field `stream` says.
    pub(super) fn read(f: &mut Fields) -> Result<Self, ApiError> {
        Ok(match f.optional("stream")? {
            Some(true) => Delivery::Stream(StreamUsage::default()),
            _ => Delivery::Whole,
        })
    }
}

/// An integer field that must lie in `low..=high`.
pub fn in_range<T>(f: &mut Fields, name: &str, low: T, high: T) -> Result<Option<T>, ApiError>
where
    T: FromJson + PartialOrd + std::fmt::Display + Copy,
{
    match f.optional::<T>(name)? {
        Some(value) if value < low || value > high => {
            let path = f.path_of(name);
            let message = format!("'{path}' must be in [{low}, {high}], got {value}.");
            Err(ApiError::invalid(path, message))
        }
        value => Ok(value),
    }
}

fn max_tokens(f: &mut Fields, length: OutputLength) -> Result<Option<usize>, ApiError> {
    // The engine knows the context and refuses what exceeds it; this bound only keeps sums from overflowing.
    let limit = u32::MAX as usize;
    let old = in_range(f, "max_tokens", length.fewest, limit)?;
    let new = in_range(f, "max_completion_tokens", 1, limit)?;
    Ok(new.or(old).or(length.default))
}

/// `{"token id": bias}`, as OpenAI has it.
fn logit_bias(f: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let path = f.path_of("logit_bias");
    let given = match f.raw("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(given)) => given,
        Some(other) => return Err(wrong_type(&path, "an object", &other)),
    };
    if given.len() > MAX_BIASES {
        let message = format!(
            "'{path}' has {} tokens, at most {MAX_BIASES} are allowed.",
            given.len()
        );
        return Err(ApiError::invalid(path, message));
    }
    let bias = |(token, bias): (String, Value)| {
        let id = token.parse::<u32>().map_err(|_| {
            let shown: String = token.chars().take(40).collect();
            ApiError::invalid(
                &path,
                format!("'{path}' has the key '{shown}', which is not a token id."),
            )
        })?;
        let wrong = || wrong_type(&format!("{path}.{id}"), "a number in [-100, 100]", &bias);
        let value = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        Ok((id, value.ok_or_else(wrong)? as f32))
    };
    given.into_iter().map(bias).collect()
}

fn stop(f: &mut Fields, max_tokens: Option<usize>) -> Result<StopConditions, ApiError> {
    let elements = match f.raw("stop") {
        None => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(Value::Array(elements)) => elements,
        Some(single @ Value::String(_)) => vec![single],
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    let strings = stop_strings("stop", elements)?;
    let mut token_ids = Vec::new();
    for (path, value) in f.list("stop_token_ids", MAX_STOP_TOKENS)?.unwrap_or_default() {
        let wrong = wrong_type(&path, u32::EXPECTED, &value);
        token_ids.push(u32::from_json(value).ok_or(wrong)?);
    }
    let ignore_eos = f.optional("ignore_eos")?.unwrap_or(false);
    let min_tokens = in_range(f, "min_tokens", 0, u32::MAX as usize)?.unwrap_or(0);
    if let Some(most) = max_tokens.filter(|most| min_tokens > *most) {
        let path = f.path_of("min_tokens");
        let message = format!("'{path}' must be at most the {most} output tokens allowed, got {min_tokens}.");
        return Err(ApiError::invalid(path, message));
    }
    Ok(StopConditions {
        token_ids,
        strings,
        ignore_eos,
        min_tokens,
    })
}

/// The texts in a list at `path`, each of which ends an output.
pub(super) fn stop_strings(path: &str, elements: Vec<Value>) -> Result<Vec<String>, ApiError> {
    if elements.len() > MAX_STOPS {
        let n = elements.len();
        let message = format!("'{path}' has {n} strings, at most {MAX_STOPS} are allowed.");
        return Err(ApiError::invalid(path, message));
    }
    let mut strings = Vec::with_capacity(elements.len());
    for (i, element) in elements.into_iter().enumerate() {
        match element {
            Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => strings.push(text),
            other => {
                let expected = format!("a string of 1 to {MAX_STOP_BYTES} bytes");
                return Err(wrong_type(&format!("{path}[{i}]"), &expected, &other));
            }
        }
    }
    Ok(strings)
}

fn delivery(f: &mut Fields) -> Result<Delivery, ApiError> {
    let is_stream = f.optional::<bool>("stream")?.unwrap_or(false);
    let mut usage = StreamUsage::default();
    if let Some(mut options) = f.object("stream_options")? {
        usage.at_end = options.optional("include_usage")?.unwrap_or(false);
        usage.in_chunks = options.optional("continuous_usage_stats")?.unwrap_or(false);
        options.finish();
        if !is_stream && usage != StreamUsage::default() {
            let message = "'stream_options' is only allowed when 'stream' is true.";
            return Err(ApiError::invalid("stream_options", message));
        }
    }
    Ok(if is_stream {
        Delivery::Stream(usage)
    } else {
        Delivery::Whole
    })
}

/// The server derives what the tree sees, so that no client can write a namespace that is not its own.
fn salt(f: &mut Fields) -> Result<[u8; 16], ApiError> {
    let mut salt = [0; 16];
    // SGLang has two such keys; a request with both shares its entries with those that have the same two.
    for name in ["cache_salt", "extra_key"] {
        let text = f.optional::<String>(name)?.filter(|text| !text.is_empty());
        if let Some(text) = text {
            let mut hash = Sha256::new();
            hash.update(format!("arbora {name}\0"));
            hash.update(salt);
            hash.update(text.as_bytes());
            let digest = hash.finalize();
            salt = digest[..16].try_into().expect("SHA-256 has 32 bytes");
        }
    }
    Ok(salt)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How tokens are drawn where the model has no wishes.
    fn drawn(options: &Options) -> SamplingParams {
        let defaults = SamplingParams::default();
        options.sampling.with_defaults(&defaults).expect("in range")
    }

    fn read(json: &str) -> Result<Options, ApiError> {
        let mut fields = Fields::parse(json.as_bytes())?;
        Options::read(&mut fields, OutputLength::default())
    }

    #[test]
    fn what_is_omitted_gets_openais_defaults() {
        let o = read("{}").expect("valid");
        assert_eq!((o.n, o.max_tokens, o.delivery), (1, None, Delivery::Whole));
        let expected = SamplingParams {
            seed: o.sampling.seed(),
            ..SamplingParams::default()
        };
        assert_eq!(drawn(&o), expected);
        assert_eq!((drawn(&o).temperature, drawn(&o).top_p), (1.0, 1.0));
        assert_eq!(o.salt, [0; 16]);
        assert_ne!(
            read("{}").expect("valid").sampling.seed(),
            o.sampling.seed(),
            "two seeds drawn"
        );
    }

    #[test]
    fn what_is_given_is_taken() {
        let json = r#"{"max_tokens": 9, "max_completion_tokens": 7, "n": 2, "temperature": 0, "top_p": 0.5,
            "top_k": 4, "min_p": 0.1, "seed": -1, "stop": ["a", "b"], "stop_token_ids": [1, 2], "stream": true,
            "stream_options": {"include_usage": true}, "ignore_eos": true, "cache_salt": "x", "priority": -3,
            "presence_penalty": 0.5, "frequency_penalty": -1, "repetition_penalty": 1.25, "min_tokens": 3,
            "response_format": {"type": "text"}, "logit_bias": {"7": -100, "3": 0.5},
            "some_router_field": {"a": 1}}"#;
        let o = read(json).expect("valid");
        assert_eq!((o.max_tokens, o.n, o.priority), (Some(7), 2, -3));
        assert_eq!(o.sampling.seed(), u64::MAX);
        assert_eq!((drawn(&o).top_k, drawn(&o).min_p), (4, 0.1));
        let s = drawn(&o);
        let penalties = (s.presence_penalty, s.frequency_penalty, s.repetition_penalty);
        assert_eq!(penalties, (0.5, -1.0, 1.25));
        let mut bias = o.logit_bias;
        bias.sort_by_key(|(token, _)| *token);
        assert_eq!(bias, [(3, 0.5), (7, -100.0)]);
        assert_eq!(o.stop.min_tokens, 3);
        assert_eq!(o.stop.strings, ["a", "b"]);
        assert_eq!(
            (o.stop.token_ids.as_slice(), o.stop.ignore_eos),
            ([1, 2].as_slice(), true)
        );
        assert_eq!(
            o.delivery,
            Delivery::Stream(StreamUsage {
                in_chunks: false,
                at_end: true
            })
        );
        assert_ne!(o.salt, [0; 16]);
        assert_eq!(read(r#"{"stop": "x"}"#).expect("valid").stop.strings, ["x"]);
        let nothing = r#"{"stop": "", "bad_words": [], "logits_processors": [], "stop_regex": [], "typical_p": 1,
            "repeat_last_n": 64, "best_of": 1, "stream_options": {"include_usage": false}}"#;
        assert_eq!(read(nothing).expect("valid").stop.strings, [""; 0]);
        let stops = format!(r#"{{"stop": {:?}}}"#, vec!["x"; MAX_STOPS]);
        assert_eq!(read(&stops).expect("valid").stop.strings.len(), MAX_STOPS);
        assert_ne!(
            read(r#"{"cache_salt": "x", "extra_key": "y"}"#)
                .expect("valid")
                .salt,
            read(r#"{"cache_salt": "x"}"#).expect("valid").salt
        );
    }

    #[test]
    fn every_bad_value_names_its_field() {
        let many_stops = format!(r#"{{"stop": {:?}}}"#, vec!["x"; MAX_STOPS + 1]);
        let long_stop = format!(r#"{{"stop": "{}"}}"#, "x".repeat(MAX_STOP_BYTES + 1));
        let cases = [
            (r#"{"model": 5}"#, "model"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"temperature": -0.1}"#, "temperature"),
            (r#"{"temperature": 101}"#, "temperature"),
            (r#"{"temperature": 1e300}"#, "temperature"),
            (r#"{"top_p": -0.1}"#, "top_p"),
            (r#"{"top_p": 1.1}"#, "top_p"),
            (r#"{"min_p": 1.1}"#, "min_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"max_tokens": -1}"#, "max_tokens"),
            (r#"{"min_tokens": -1}"#, "min_tokens"),
            (r#"{"min_tokens": 5, "max_tokens": 4}"#, "min_tokens"),
            (r#"{"presence_penalty": 2.1}"#, "presence_penalty"),
            (r#"{"frequency_penalty": -2.1}"#, "frequency_penalty"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"repetition_penalty": 11}"#, "repetition_penalty"),
            (r#"{"logit_bias": 5}"#, "logit_bias"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"5": 101}}"#, "logit_bias.5"),
            (r#"{"logit_bias": {"5": "a"}}"#, "logit_bias.5"),
            (r#"{"prompt_logprobs": 21}"#, "prompt_logprobs"),
            (r#"{"prompt_logprobs": 1, "stream": true}"#, "prompt_logprobs"),
            (r#"{"max_tokens": 1.5}"#, "max_tokens"),
            (r#"{"max_completion_tokens": -1}"#, "max_completion_tokens"),
            (r#"{"max_completion_tokens": 1e18}"#, "max_completion_tokens"),
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 9}"#, "n"),
            (r#"{"seed": "x"}"#, "seed"),
            (r#"{"seed": 0.5}"#, "seed"),
            (r#"{"stop": 5}"#, "stop"),
            (many_stops.as_str(), "stop"),
            (r#"{"stop": ["a", ""]}"#, "stop[1]"),
            (r#"{"stop": ["a", null]}"#, "stop[1]"),
            (long_stop.as_str(), "stop[0]"),
            (r#"{"stop_token_ids": [1, -1]}"#, "stop_token_ids[1]"),
            (r#"{"stop_token_ids": 1}"#, "stop_token_ids"),
            (r#"{"stream": "yes"}"#, "stream"),
            (r#"{"stream_options": {"include_usage": true}}"#, "stream_options"),
            (r#"{"stream": true, "stream_options": 1}"#, "stream_options"),
            (
                r#"{"stream": true, "stream_options": {"include_usage": 1}}"#,
                "stream_options.include_usage",
            ),
            (r#"{"cache_salt": 1}"#, "cache_salt"),
            (r#"{"priority": 1e12}"#, "priority"),
            (r#"{"best_of": 2}"#, "best_of"),
            (r#"{"allowed_token_ids": [1]}"#, "allowed_token_ids"),
            (r#"{"typical_p": 0.5}"#, "typical_p"),
            (r#"{"repeat_last_n": 64, "presence_penalty": 1}"#, "repeat_last_n"),
            (r#"{"user": 1}"#, "user"),
            (r#"{"ignore_eos": 1}"#, "ignore_eos"),
        ];
        for (json, expected) in cases {
            match read(json).expect_err(json) {
                ApiError::Invalid {
                    param: Some(param),
                    message,
                } => {
                    assert_eq!(param, expected, "{json}");
                    assert!(message.contains(&format!("'{expected}'")), "{json}: {message}");
                }
                other => panic!("{json}: {other:?}"),
            }
        }
        let hot = read(r#"{"temperature": 101}"#).expect_err("out of range");
        assert_eq!(hot.to_string(), "'temperature' must be in [0, 100], got 101.");
        let negative = read(r#"{"top_p": -0.1}"#).expect_err("out of range");
        assert_eq!(negative.to_string(), "'top_p' must be in [0, 1], got -0.1.");
    }

    #[test]
    fn the_ends_of_ranges_are_in_them() {
        let least =
            r#"{"temperature": 0, "top_p": 0, "min_p": 0, "presence_penalty": -2, "frequency_penalty": -2}"#;
        let most = r#"{"temperature": 100, "top_p": 1, "min_p": 1, "presence_penalty": 2, "frequency_penalty": 2,
            "repetition_penalty": 10}"#;
        assert_eq!(drawn(&read(least).expect("valid")).top_p, 0.0);
        assert_eq!(drawn(&read(most).expect("valid")).top_p, 1.0);
    }
}
