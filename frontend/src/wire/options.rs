//! The fields chat and text completions share: sampling, lengths, stops, streaming, cache.

use std::hash::{BuildHasher, RandomState};

use arbora_runtime::request::{SamplingParams, StopConditions};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::constraint::Constraint;
use super::error::ApiError;
use super::fields::{Fields, FromJson, wrong_type};

/// Most completions of one prompt.
pub const MAX_CHOICES: usize = 8;
/// Most stop strings.
pub const MAX_STOPS: usize = 4;
/// Most bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most stop token ids.
pub const MAX_STOP_TOKENS: usize = 64;

/// What a request asks for besides its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The model as the client named it; absent where it leaves the choice to the server.
    pub model: Option<String>,
    /// Most output tokens; absent for as many as fit.
    pub max_tokens: Option<usize>,
    /// Completions per prompt, at least 1.
    pub n: usize,
    /// How tokens are drawn; the seed is drawn here where the client sent none.
    pub sampling: SamplingParams,
    /// What ends the output early.
    pub stop: StopConditions,
    /// What the output must look like; absent for free text.
    pub constraint: Option<Constraint>,
    /// One JSON answer or a stream of chunks.
    pub delivery: Delivery,
    /// Keeps this request's cache entries apart from those of other salts; all zero is shared by all.
    pub salt: [u8; 16],
    /// Larger is sooner.
    pub priority: i32,
}

/// How the answer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// All at once.
    Whole,
    /// Server-sent events.
    Stream {
        /// One more chunk at the end that counts tokens.
        include_usage: bool,
    },
}

impl Options {
    /// Reads the shared fields; `defaults` are the model's own, for what the client leaves open.
    pub fn read(f: &mut Fields, defaults: &SamplingParams) -> Result<Self, ApiError> {
        refuse_unenforced(f)?;
        let options = Options {
            model: f.optional("model")?,
            max_tokens: max_tokens(f)?,
            n: in_range(f, "n", 1, MAX_CHOICES)?.unwrap_or(1),
            sampling: sampling(f, defaults)?,
            stop: stop(f)?,
            constraint: Constraint::read(f)?,
            delivery: delivery(f)?,
            salt: salt(f)?,
            priority: f.optional("priority")?.unwrap_or(0),
        };
        // Known, without effect on the output: hints and labels. Their types are checked all the same.
        for name in ["user", "prompt_cache_key", "safety_identifier", "service_tier"] {
            f.optional::<String>(name)?;
        }
        Ok(options)
    }
}

fn refuse_unenforced(f: &mut Fields) -> Result<(), ApiError> {
    const CONSTRAINTS: [&str; 4] = [
        "bad_words",
        "allowed_token_ids",
        "logits_processors",
        "chat_template",
    ];
    for name in CONSTRAINTS {
        f.refuse_unless(name, |_| false)?;
    }
    f.refuse_unless("logit_bias", |v| {
        v.as_object().is_some_and(serde_json::Map::is_empty)
    })?;
    let equals = |neutral: f64| move |v: &Value| v.as_f64() == Some(neutral);
    f.refuse_unless("presence_penalty", equals(0.0))?;
    f.refuse_unless("frequency_penalty", equals(0.0))?;
    f.refuse_unless("repetition_penalty", equals(1.0))?;
    f.refuse_unless("min_tokens", equals(0.0))?;
    f.refuse_unless("top_logprobs", equals(0.0))?;
    f.refuse_unless("prompt_logprobs", |_| false)?;
    f.refuse_unless("logprobs", |v| v == &Value::Bool(false))?;
    f.refuse_unless("use_beam_search", |v| v == &Value::Bool(false))?;
    f.refuse_unless("include_stop_str_in_output", |v| v == &Value::Bool(false))?;
    f.refuse_unless("return_tokens_as_token_ids", |v| v == &Value::Bool(false))
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

fn max_tokens(f: &mut Fields) -> Result<Option<usize>, ApiError> {
    // The engine knows the context and refuses what exceeds it; this bound only keeps sums from overflowing.
    let limit = u32::MAX as usize;
    let old = in_range(f, "max_tokens", 1, limit)?;
    let new = in_range(f, "max_completion_tokens", 1, limit)?;
    Ok(new.or(old))
}

fn sampling(f: &mut Fields, defaults: &SamplingParams) -> Result<SamplingParams, ApiError> {
    // -1 is how vLLM's clients say "all".
    let top_k = match in_range(f, "top_k", -1, i32::MAX)? {
        None | Some(-1) => defaults.top_k,
        Some(k) => k as u32,
    };
    let sampling = SamplingParams {
        temperature: f.optional("temperature")?.unwrap_or(defaults.temperature),
        top_k,
        top_p: f.optional("top_p")?.unwrap_or(defaults.top_p),
        min_p: f.optional("min_p")?.unwrap_or(defaults.min_p),
        seed: f
            .optional::<i64>("seed")?
            .map_or_else(random_seed, |seed| seed as u64),
    };
    sampling
        .validate()
        .map_err(|bad| ApiError::invalid(bad.param, format!("{bad}.")))?;
    Ok(sampling)
}

/// A seed nobody chose: the standard library's per-process random keys, stepped at every call, are enough.
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0)
}

fn stop(f: &mut Fields) -> Result<StopConditions, ApiError> {
    let elements = match f.raw("stop") {
        None => Vec::new(),
        Some(Value::Array(elements)) => elements,
        Some(single @ Value::String(_)) => vec![single],
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if elements.len() > MAX_STOPS {
        let message = format!(
            "'stop' has {} strings, at most {MAX_STOPS} are allowed.",
            elements.len()
        );
        return Err(ApiError::invalid("stop", message));
    }
    let mut strings = Vec::with_capacity(elements.len());
    for (i, element) in elements.into_iter().enumerate() {
        match element {
            Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => strings.push(text),
            other => {
                let expected = format!("a string of 1 to {MAX_STOP_BYTES} bytes");
                return Err(wrong_type(&format!("stop[{i}]"), &expected, &other));
            }
        }
    }
    let mut token_ids = Vec::new();
    for (path, value) in f.list("stop_token_ids", MAX_STOP_TOKENS)?.unwrap_or_default() {
        let wrong = wrong_type(&path, u32::EXPECTED, &value);
        token_ids.push(u32::from_json(value).ok_or(wrong)?);
    }
    let ignore_eos = f.optional("ignore_eos")?.unwrap_or(false);
    Ok(StopConditions {
        token_ids,
        strings,
        ignore_eos,
    })
}

fn delivery(f: &mut Fields) -> Result<Delivery, ApiError> {
    let stream = f.optional::<bool>("stream")?.unwrap_or(false);
    let Some(mut options) = f.object("stream_options")? else {
        return Ok(if stream {
            Delivery::Stream { include_usage: false }
        } else {
            Delivery::Whole
        });
    };
    let include_usage = options.optional("include_usage")?.unwrap_or(false);
    options.finish();
    if !stream {
        let message = "'stream_options' is only allowed when 'stream' is true.";
        return Err(ApiError::invalid("stream_options", message));
    }
    Ok(Delivery::Stream { include_usage })
}

/// The server derives what the tree sees, so that no client can write a namespace that is not its own.
fn salt(f: &mut Fields) -> Result<[u8; 16], ApiError> {
    let Some(text) = f.optional::<String>("cache_salt")? else {
        return Ok([0; 16]);
    };
    let mut hash = Sha256::new();
    hash.update(b"arbora cache_salt\0");
    hash.update(text.as_bytes());
    let digest = hash.finalize();
    Ok(digest[..16].try_into().expect("SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Options, ApiError> {
        let mut fields = Fields::parse(json.as_bytes())?;
        Options::read(&mut fields, &SamplingParams::default())
    }

    #[test]
    fn what_is_omitted_gets_openais_defaults() {
        let o = read("{}").expect("valid");
        assert_eq!((o.n, o.max_tokens, o.delivery), (1, None, Delivery::Whole));
        let expected = SamplingParams {
            seed: o.sampling.seed,
            ..SamplingParams::default()
        };
        assert_eq!(o.sampling, expected);
        assert_eq!((o.sampling.temperature, o.sampling.top_p), (1.0, 1.0));
        assert_eq!(o.salt, [0; 16]);
        assert_ne!(
            read("{}").expect("valid").sampling.seed,
            o.sampling.seed,
            "two seeds drawn"
        );
    }

    #[test]
    fn what_is_given_is_taken() {
        let json = r#"{"max_tokens": 9, "max_completion_tokens": 7, "n": 2, "temperature": 0, "top_p": 0.5,
            "top_k": 4, "min_p": 0.1, "seed": -1, "stop": ["a", "b"], "stop_token_ids": [1, 2], "stream": true,
            "stream_options": {"include_usage": true}, "ignore_eos": true, "cache_salt": "x", "priority": -3,
            "logprobs": false, "presence_penalty": 0, "response_format": {"type": "text"}, "logit_bias": {},
            "some_router_field": {"a": 1}}"#;
        let o = read(json).expect("valid");
        assert_eq!((o.max_tokens, o.n, o.priority), (Some(7), 2, -3));
        assert_eq!(o.sampling.seed, u64::MAX);
        assert_eq!((o.sampling.top_k, o.sampling.min_p), (4, 0.1));
        assert_eq!(o.stop.strings, ["a", "b"]);
        assert_eq!(
            (o.stop.token_ids.as_slice(), o.stop.ignore_eos),
            ([1, 2].as_slice(), true)
        );
        assert_eq!(o.delivery, Delivery::Stream { include_usage: true });
        assert_ne!(o.salt, [0; 16]);
        assert_eq!(read(r#"{"stop": "x"}"#).expect("valid").stop.strings, ["x"]);
    }

    #[test]
    fn every_bad_value_names_its_field() {
        let long_stop = format!(r#"{{"stop": "{}"}}"#, "x".repeat(MAX_STOP_BYTES + 1));
        let cases = [
            (r#"{"model": 5}"#, "model"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"temperature": -0.1}"#, "temperature"),
            (r#"{"temperature": 101}"#, "temperature"),
            (r#"{"temperature": 1e300}"#, "temperature"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"top_p": 1.1}"#, "top_p"),
            (r#"{"min_p": 1}"#, "min_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"max_tokens": 0}"#, "max_tokens"),
            (r#"{"max_tokens": 1.5}"#, "max_tokens"),
            (r#"{"max_completion_tokens": -1}"#, "max_completion_tokens"),
            (r#"{"max_completion_tokens": 1e18}"#, "max_completion_tokens"),
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 9}"#, "n"),
            (r#"{"seed": "x"}"#, "seed"),
            (r#"{"seed": 0.5}"#, "seed"),
            (r#"{"stop": 5}"#, "stop"),
            (r#"{"stop": ["1", "2", "3", "4", "5"]}"#, "stop"),
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
            (r#"{"user": 1}"#, "user"),
            (r#"{"ignore_eos": 1}"#, "ignore_eos"),
        ];
        for (json, expected) in cases {
            match read(json).expect_err(json) {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_constraint_that_is_not_enforced_is_refused_by_name() {
        let cases = [
            r#"{"bad_words": ["x"]}"#,
            r#"{"logit_bias": {"5": 1}}"#,
            r#"{"logprobs": true}"#,
            r#"{"logprobs": 0}"#,
            r#"{"top_logprobs": 2}"#,
            r#"{"presence_penalty": 0.1}"#,
            r#"{"frequency_penalty": -0.1}"#,
            r#"{"repetition_penalty": 1.1}"#,
            r#"{"min_tokens": 1}"#,
            r#"{"chat_template": "x"}"#,
        ];
        for json in cases {
            let name = json[2..].split('"').next().expect("a name");
            match read(json).expect_err(json) {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, name, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
