//! `POST /generate`: SGLang's own request and answer.

use std::collections::BTreeMap;

use arbora_runtime::request::SamplingParams;
use serde::Serialize;
use serde_json::{Map, Value};

use super::completion::{Bos, Prompt, check_choices, check_prompts};
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::options::{MAX_LOGPROBS, Options, in_range};

/// Most output tokens where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 128;

/// SGLang's names of sampling parameters that are called differently here.
pub(crate) const RENAMED: [(&str, &str); 3] = [
    ("max_new_tokens", "max_tokens"),
    ("min_new_tokens", "min_tokens"),
    ("sampling_seed", "seed"),
];

/// Texts to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// Whether the answer is a list: of several prompts, or of several outputs.
    pub is_list: bool,
    /// What is told of log-probabilities.
    pub logprobs: LogprobShape,
    /// One answer, or events.
    pub stream: bool,
    /// The client's name for it, if it has one.
    pub id: Option<String>,
    /// Everything else.
    pub options: Options,
}

/// How log-probabilities are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogprobShape {
    /// Prompt tokens from here on; absent for none of them.
    pub from: Option<usize>,
    /// Whether tokens come with their text.
    pub with_text: bool,
}

impl GenerateRequest {
    /// Reads a request body; `sampling` is what it leaves open.
    pub fn parse(body: &[u8], sampling: &SamplingParams) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let (prompts, is_list) = prompts(&mut f)?;
        let params = match f.raw("sampling_params") {
            None => Map::new(),
            Some(Value::Object(params)) => params,
            Some(other) => return Err(wrong_type("sampling_params", "an object", &other)),
        };
        let mut options = options(params, sampling).map_err(in_their_words)?;
        check_choices(prompts.len(), options.n).map_err(in_their_words)?;
        let stream = f.optional("stream")?.unwrap_or(false);
        let id = f.optional("rid")?;
        let wants_logprobs = f.optional::<bool>("return_logprob")?.unwrap_or(false);
        let n_top = in_range(&mut f, "top_logprobs_num", 0, MAX_LOGPROBS)?.unwrap_or(0);
        let from = in_range(&mut f, "logprob_start_len", -1, i32::MAX)?;
        let from = from.and_then(|from| usize::try_from(from).ok());
        let with_text = f.optional("return_text_in_logprobs")?.unwrap_or(false);
        for name in [
            "token_ids_logprob",
            "image_data",
            "audio_data",
            "input_embeds",
            "lora_path",
        ] {
            f.refuse_unless(name, |_| false)?;
        }
        f.refuse_unless("return_hidden_states", |v| v == &Value::Bool(false))?;
        f.finish();
        if wants_logprobs {
            options.logprobs.output = Some(n_top);
            options.logprobs.prompt = from.map(|_| n_top);
        }
        Ok(GenerateRequest {
            is_list: is_list || options.n > 1,
            prompts,
            logprobs: LogprobShape { from, with_text },
            stream,
            id,
            options,
        })
    }
}

fn options(mut params: Map<String, Value>, sampling: &SamplingParams) -> Result<Options, ApiError> {
    for (theirs, ours) in RENAMED {
        if let Some(value) = params.remove(theirs) {
            params.insert(ours.to_owned(), value);
        }
    }
    let mut f = Fields::nested(Value::Object(params), String::new())?;
    f.optional::<bool>("spaces_between_special_tokens")?;
    let mut options = Options::read(&mut f, sampling, 0)?;
    options.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
    f.finish();
    Ok(options)
}

/// Errors name the parameter as the client spelled it.
fn in_their_words(error: ApiError) -> ApiError {
    let ApiError::Invalid {
        param: Some(param),
        message,
    } = error
    else {
        return error;
    };
    let renamed = RENAMED.iter().find(|(_, ours)| *ours == param);
    let name = renamed.map_or(param.as_str(), |(theirs, _)| theirs);
    let path = format!("sampling_params.{name}");
    let message = message.replace(&format!("'{param}'"), &format!("'{path}'"));
    ApiError::invalid(path, message)
}

/// `text` or `input_ids`: one prompt or a list of them.
fn prompts(f: &mut Fields) -> Result<(Vec<Prompt>, bool), ApiError> {
    let (name, value) = match (f.raw("text"), f.raw("input_ids")) {
        (Some(text), None) => ("text", text),
        (None, Some(ids)) => ("input_ids", ids),
        _ => {
            let message = "One of 'text' and 'input_ids' must be given.";
            return Err(ApiError::invalid("text", message));
        }
    };
    let is_text = name == "text";
    let is_list = match &value {
        Value::Array(list) => is_text || list.first().is_some_and(Value::is_array),
        _ => false,
    };
    let list = match value {
        Value::Array(list) if is_list => list,
        one => vec![one],
    };
    check_prompts(name, list.len())?;
    let one = |(i, value): (usize, Value)| {
        let path = if is_list {
            format!("{name}[{i}]")
        } else {
            name.to_owned()
        };
        match value {
            Value::String(text) if is_text => Ok(Prompt::Text {
                text,
                bos: Bos::AsTrained,
            }),
            Value::Array(ids) if !is_text => Prompt::of_tokens(&path, ids),
            other => {
                let expected = if is_text {
                    "a string"
                } else {
                    "an array of token ids"
                };
                Err(wrong_type(&path, expected, &other))
            }
        }
    };
    let prompts = list.into_iter().enumerate().map(one).collect::<Result<_, _>>()?;
    Ok((prompts, is_list))
}

/// One output, or what there is of it so far.
#[derive(Clone, Debug, Serialize)]
pub struct Generated {
    /// Which one, in streams of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// All of its text.
    pub text: String,
    /// All of its tokens.
    pub output_ids: Vec<u32>,
    /// About it.
    pub meta_info: MetaInfo,
}

/// Part of [`Generated`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct MetaInfo {
    /// Its name.
    pub id: String,
    /// Why it ended; `null` while it has not.
    pub finish_reason: Option<FinishedBy>,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens of the output.
    pub completion_tokens: usize,
    /// Prompt tokens that were in the cache; known at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<usize>,
    /// Seconds from arrival to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub e2e_latency: Option<f64>,
    /// Log-probabilities by name of the list, where asked for.
    #[serde(flatten)]
    pub logprobs: BTreeMap<&'static str, LogprobList>,
}

/// Why an output ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FinishedBy {
    /// It is as long as was asked for.
    Length {
        /// Its length.
        length: usize,
    },
    /// It came to an end.
    Stop {
        /// The stop token's id or the stop string; absent where a grammar was complete.
        #[serde(skip_serializing_if = "Option::is_none")]
        matched: Option<Value>,
    },
}

/// Log-probability, token id, text if asked for.
pub type LogprobTuple = (Option<f32>, u32, Option<String>);

/// A list of log-probabilities.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum LogprobList {
    /// One for each token.
    Tokens(Vec<LogprobTuple>),
    /// The likeliest at each token's place; `null` for the first of a prompt.
    Top(Vec<Option<Vec<LogprobTuple>>>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<GenerateRequest, ApiError> {
        GenerateRequest::parse(json.as_bytes(), &SamplingParams::default())
    }

    #[test]
    fn prompts_and_parameters_are_read_in_sglangs_words() {
        let request = parse(
            r#"{"text": "a", "stream": true, "rid": "x", "return_logprob": true, "logprob_start_len": 0,
                "top_logprobs_num": 2, "sampling_params": {"max_new_tokens": 5, "temperature": 0, "stop": "b",
                "min_new_tokens": 2, "sampling_seed": 9, "regex": "a+", "n": 2}}"#,
        )
        .expect("valid");
        let (text, bos) = ("a".to_owned(), Bos::AsTrained);
        assert_eq!(request.prompts, [Prompt::Text { text, bos }]);
        assert!(request.stream && request.is_list);
        let options = request.options;
        assert_eq!((options.max_tokens, options.n), (Some(5), 2));
        assert_eq!((options.sampling.seed, options.stop.min_tokens), (9, 2));
        assert_eq!(options.logprobs.output, Some(2));
        assert_eq!(options.logprobs.prompt, Some(2));
        assert_eq!(options.constraint.expect("a regex").param, "regex");
        let plain = parse(r#"{"input_ids": [1, 2]}"#).expect("valid");
        assert_eq!(plain.prompts, [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(
            (plain.options.max_tokens, plain.is_list),
            (Some(DEFAULT_MAX_TOKENS), false)
        );
        let list = parse(r#"{"text": ["a"]}"#).expect("valid");
        assert!(list.is_list && list.prompts.len() == 1);
        let ids = parse(r#"{"input_ids": [[1], [2, 3]]}"#).expect("valid");
        assert_eq!(ids.prompts.len(), 2);
    }

    #[test]
    fn what_is_malformed_is_named_as_it_was_spelled() {
        let cases = [
            ("{}", "text"),
            (r#"{"text": "a", "input_ids": [1]}"#, "text"),
            (r#"{"text": 5}"#, "text"),
            (r#"{"text": []}"#, "text"),
            (r#"{"text": ["a", 1]}"#, "text[1]"),
            (r#"{"input_ids": []}"#, "input_ids"),
            (r#"{"input_ids": [-1]}"#, "input_ids[0]"),
            (r#"{"input_ids": [[1], ["a"]]}"#, "input_ids[1][0]"),
            (
                r#"{"text": ["1", "2", "3", "4", "5"], "sampling_params": {"n": 8}}"#,
                "sampling_params.n",
            ),
            (r#"{"text": "a", "sampling_params": 1}"#, "sampling_params"),
            (
                r#"{"text": "a", "sampling_params": {"max_new_tokens": -1}}"#,
                "sampling_params.max_new_tokens",
            ),
            (
                r#"{"text": "a", "sampling_params": {"temperature": -1}}"#,
                "sampling_params.temperature",
            ),
            (
                r#"{"text": "a", "sampling_params": {"skip_special_tokens": false}}"#,
                "sampling_params.skip_special_tokens",
            ),
            (r#"{"text": "a", "top_logprobs_num": 21}"#, "top_logprobs_num"),
            (r#"{"text": "a", "token_ids_logprob": [1]}"#, "token_ids_logprob"),
        ];
        for (json, expected) in cases {
            match parse(json).expect_err(json) {
                ApiError::Invalid {
                    param: Some(param),
                    message,
                } => assert_eq!(param, expected, "{json}: {message}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
