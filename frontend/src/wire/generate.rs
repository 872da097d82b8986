//! `POST /generate`: SGLang's own request and answer.

use std::collections::BTreeMap;

use arbora_runtime::request::LogprobsWanted;
use serde::Serialize;
use serde_json::{Map, Value};

use super::completion::{Bos, Prompt, check_choices, check_prompts, tokens};
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::options::{MAX_LOGPROBS, Options, OutputLength, in_range};
use super::unsupported::{self, ANYWHERE, BESIDE_SAMPLING_PARAMS, GENERATE};

/// Most output tokens where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 128;

/// SGLang's names of sampling parameters that are called differently here.
pub(crate) const RENAMED: [(&str, &str); 3] = [
    ("max_new_tokens", "max_tokens"),
    ("min_new_tokens", "min_tokens"),
    ("sampling_seed", "seed"),
];

/// Most tokens whose log-probabilities are listed by request.
const MAX_LISTED: usize = 1024;

/// Parameters that SGLang has beside `sampling_params` and other APIs among theirs.
const BESIDE: [&str; 3] = ["priority", "cache_salt", "extra_key"];

/// Texts to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// At least one; all have the same number of outputs.
    pub prompts: Vec<GeneratePrompt>,
    /// Whether the answer is a list: of several prompts, or of several outputs.
    pub is_list: bool,
    /// One answer, or events.
    pub stream: bool,
}

/// One text and how it is continued.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratePrompt {
    /// The text.
    pub prompt: Prompt,
    /// The client's name for it, if it has one.
    pub id: Option<String>,
    /// What is told of log-probabilities.
    pub logprobs: LogprobShape,
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
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        GenerateRequest::read(Fields::parse(body)?)
    }

    pub(super) fn read(mut f: Fields) -> Result<Self, ApiError> {
        let (prompts, is_list) = prompts(&mut f)?;
        unsupported::refuse(&mut f, &[&ANYWHERE, &GENERATE, &BESIDE_SAMPLING_PARAMS])?;
        let stream = f.optional("stream")?.unwrap_or(false);
        let with_text = f.optional("return_text_in_logprobs")?.unwrap_or(false);
        let mut lists = Lists::read(&mut f, prompts.len())?;
        f.finish();
        let prompts = prompts.into_iter().enumerate();
        let prompts = prompts.map(|(at, prompt)| lists.prompt(at, (prompt, with_text)));
        let prompts = prompts.collect::<Result<Vec<GeneratePrompt>, ApiError>>()?;
        let n = prompts.first().map_or(1, |first| first.options.n);
        if prompts.iter().any(|prompt| prompt.options.n != n) {
            let message = "'sampling_params.n' must be the same for all prompts.";
            return Err(ApiError::invalid("sampling_params.n", message));
        }
        check_choices(prompts.len(), n).map_err(|error| in_their_words(error, "sampling_params"))?;
        Ok(GenerateRequest {
            is_list: is_list || n > 1,
            prompts,
            stream,
        })
    }
}

/// Parameters of which each prompt may have its own, in a list as long as that of the prompts.
struct Lists {
    n_prompts: usize,
    sampling_params: Option<Value>,
    beside: [Option<Value>; BESIDE.len()],
    rid: Option<Value>,
    return_logprob: Option<Value>,
    top_logprobs_num: Option<Value>,
    logprob_start_len: Option<Value>,
    token_ids_logprob: Option<Value>,
}

impl Lists {
    fn read(f: &mut Fields, n_prompts: usize) -> Result<Self, ApiError> {
        let lists = Lists {
            n_prompts,
            sampling_params: f.raw("sampling_params"),
            beside: BESIDE.map(|name| f.raw(name)),
            rid: f.raw("rid"),
            return_logprob: f.raw("return_logprob"),
            top_logprobs_num: f.raw("top_logprobs_num"),
            logprob_start_len: f.raw("logprob_start_len"),
            token_ids_logprob: f.raw("token_ids_logprob"),
        };
        lists.check()?;
        Ok(lists)
    }

    /// Refuses lists of another length than that of the prompts.
    fn check(&self) -> Result<(), ApiError> {
        let listed = [
            ("sampling_params", &self.sampling_params),
            ("rid", &self.rid),
            ("return_logprob", &self.return_logprob),
            ("top_logprobs_num", &self.top_logprobs_num),
            ("logprob_start_len", &self.logprob_start_len),
        ];
        let beside = BESIDE.into_iter().zip(&self.beside);
        for (name, value) in listed.into_iter().chain(beside) {
            if let Some(Value::Array(list)) = value
                && list.len() != self.n_prompts
            {
                let (n, n_prompts) = (list.len(), self.n_prompts);
                let message = format!("'{name}' has {n} elements, there are {n_prompts} prompts.");
                return Err(ApiError::invalid(name, message));
            }
        }
        Ok(())
    }

    /// Prompt `at` with its parameters.
    fn prompt(&mut self, at: usize, (prompt, with_text): (Prompt, bool)) -> Result<GeneratePrompt, ApiError> {
        let mut f = Fields::nested(Value::Object(Map::new()), String::new())?;
        for (name, value) in [
            ("rid", &self.rid),
            ("return_logprob", &self.return_logprob),
            ("top_logprobs_num", &self.top_logprobs_num),
            ("logprob_start_len", &self.logprob_start_len),
        ] {
            f.put(name, own(value.as_ref(), at).1);
        }
        let id = f.optional::<String>("rid")?;
        let is_one_of_several = self.n_prompts > 1 && !matches!(self.rid, Some(Value::Array(_)));
        let id = id.map(|id| {
            if is_one_of_several {
                format!("{id}_{at}")
            } else {
                id
            }
        });
        let wants_logprobs = f.optional::<bool>("return_logprob")?.unwrap_or(false);
        let n_top = in_range(&mut f, "top_logprobs_num", 0, MAX_LOGPROBS)?.unwrap_or(0);
        let from = in_range(&mut f, "logprob_start_len", -1, i32::MAX)?;
        let listed = self.listed(at)?;
        let mut options = self.options(at)?;
        // A request that writes nothing can only want those of its prompt.
        let from = from.or((options.max_tokens == Some(0)).then_some(0));
        let from = from.and_then(|from| usize::try_from(from).ok());
        if wants_logprobs {
            options.logprobs = LogprobsWanted {
                output: Some(n_top),
                prompt: from.map(|_| n_top),
                listed: listed.into(),
            };
        }
        Ok(GeneratePrompt {
            prompt,
            id,
            logprobs: LogprobShape { from, with_text },
            options,
        })
    }

    /// Tokens of which prompt `at` wants log-probabilities: of its own list, or of the one for all.
    fn listed(&self, at: usize) -> Result<Vec<u32>, ApiError> {
        let name = "token_ids_logprob";
        let (path, value) = match &self.token_ids_logprob {
            None => return Ok(Vec::new()),
            Some(Value::Array(lists)) if lists.iter().any(|list| list.is_array() || list.is_null()) => {
                if lists.len() != self.n_prompts {
                    let (n, n_prompts) = (lists.len(), self.n_prompts);
                    let message = format!("'{name}' has {n} lists, there are {n_prompts} prompts.");
                    return Err(ApiError::invalid(name, message));
                }
                (format!("{name}[{at}]"), &lists[at])
            }
            Some(other) => (name.to_owned(), other),
        };
        let list = match value {
            Value::Null => return Ok(Vec::new()),
            Value::Array(list) if list.len() <= MAX_LISTED => list.clone(),
            Value::Array(list) => {
                let n = list.len();
                let message = format!("'{path}' has {n} tokens, at most {MAX_LISTED} are allowed.");
                return Err(ApiError::invalid(path, message));
            }
            other => return Err(wrong_type(&path, "an array of token ids", other)),
        };
        tokens(&path, list)
    }

    /// The sampling parameters of prompt `at`.
    fn options(&self, at: usize) -> Result<Options, ApiError> {
        let (place, params) = own(self.sampling_params.as_ref(), at);
        let path = format!("sampling_params{place}");
        let mut params = match params {
            None => Map::new(),
            Some(Value::Object(params)) => params,
            Some(other) => return Err(wrong_type(&path, "an object", &other)),
        };
        for (theirs, ours) in RENAMED {
            if let Some(value) = params.remove(theirs) {
                params.insert(ours.to_owned(), value);
            }
        }
        for (name, value) in BESIDE.into_iter().zip(&self.beside) {
            if let Some(value) = own(value.as_ref(), at).1 {
                params.insert(name.to_owned(), value);
            }
        }
        let read = |params: Map<String, Value>| {
            let mut f = Fields::nested(Value::Object(params), String::new())?;
            f.optional::<bool>("spaces_between_special_tokens")?;
            let length = OutputLength {
                fewest: 0,
                default: Some(DEFAULT_MAX_TOKENS),
            };
            let options = Options::read(&mut f, length)?;
            f.finish();
            Ok(options)
        };
        read(params).map_err(|error| in_their_words(error, &path))
    }
}

/// The value of prompt `at`, and its place in the list where there is one.
fn own(value: Option<&Value>, at: usize) -> (String, Option<Value>) {
    match value {
        Some(Value::Array(list)) => {
            let own = list.get(at).filter(|value| !value.is_null());
            (format!("[{at}]"), own.cloned())
        }
        other => (String::new(), other.cloned()),
    }
}

/// Errors name the parameter as the client spelled it, in the object at `path`.
fn in_their_words(error: ApiError, path: &str) -> ApiError {
    let ApiError::Invalid {
        param: Some(param),
        message,
    } = error
    else {
        return error;
    };
    if BESIDE.contains(&param.as_str()) {
        return ApiError::invalid(param, message);
    }
    let renamed = RENAMED.iter().find(|(_, ours)| *ours == param);
    let name = renamed.map_or(param.as_str(), |(theirs, _)| theirs);
    let path = format!("{path}.{name}");
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
    /// Several at each token's place; `null` for the first of a prompt.
    Several(Vec<Option<Vec<LogprobTuple>>>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<GenerateRequest, ApiError> {
        GenerateRequest::parse(json.as_bytes())
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
        assert!(request.stream && request.is_list);
        let [only] = &request.prompts[..] else {
            panic!("{request:?}");
        };
        assert_eq!(only.prompt, Prompt::Text { text, bos });
        assert_eq!(only.id.as_deref(), Some("x"));
        let options = only.options.clone();
        assert_eq!((options.max_tokens, options.n), (Some(5), 2));
        assert_eq!((options.sampling.seed(), options.stop.min_tokens), (9, 2));
        assert_eq!(options.logprobs.output, Some(2));
        assert_eq!(options.logprobs.prompt, Some(2));
        assert_eq!(options.constraint.expect("a regex").param, "regex");
        let plain = parse(r#"{"input_ids": [1, 2]}"#).expect("valid");
        assert_eq!(plain.prompts[0].prompt, Prompt::Tokens(vec![1, 2]));
        assert_eq!(
            (plain.prompts[0].options.max_tokens, plain.is_list),
            (Some(DEFAULT_MAX_TOKENS), false)
        );
        let list = parse(r#"{"text": ["a"]}"#).expect("valid");
        assert!(list.is_list && list.prompts.len() == 1);
        let ids = parse(r#"{"input_ids": [[1], [2, 3]]}"#).expect("valid");
        assert_eq!(ids.prompts.len(), 2);
    }

    #[test]
    fn each_prompt_has_its_own_of_every_parameter() {
        let request = parse(
            r#"{"text": ["a", "b"], "rid": ["x", "y"], "return_logprob": [true, false], "priority": [1, 2],
                "top_logprobs_num": [3, 0], "logprob_start_len": [2, -1], "token_ids_logprob": [[7, 8], null],
                "cache_salt": ["s", null],
                "sampling_params": [{"max_new_tokens": 5, "regex": "a+"}, {"max_new_tokens": 6}]}"#,
        )
        .expect("valid");
        let [a, b] = &request.prompts[..] else {
            panic!("{request:?}");
        };
        assert_eq!((a.id.as_deref(), b.id.as_deref()), (Some("x"), Some("y")));
        assert_eq!((a.options.max_tokens, b.options.max_tokens), (Some(5), Some(6)));
        assert_eq!((a.options.priority, b.options.priority), (1, 2));
        assert!(a.options.constraint.is_some() && b.options.constraint.is_none());
        assert_ne!(a.options.salt, b.options.salt);
        assert_eq!(b.options.salt, [0; 16]);
        assert_eq!((a.logprobs.from, b.logprobs.from), (Some(2), None));
        let wanted = LogprobsWanted {
            output: Some(3),
            prompt: Some(3),
            listed: [7, 8].into(),
        };
        assert_eq!(a.options.logprobs, wanted);
        assert_eq!(b.options.logprobs, LogprobsWanted::default());
        let shared = r#"{"text": ["a", "b"], "rid": "x", "return_logprob": true, "token_ids_logprob": [7]}"#;
        let shared = parse(shared).expect("valid");
        let ids: Vec<_> = shared.prompts.iter().map(|one| one.id.as_deref()).collect();
        assert_eq!(ids, [Some("x_0"), Some("x_1")]);
        assert!(
            shared
                .prompts
                .iter()
                .all(|one| *one.options.logprobs.listed == [7])
        );
    }

    #[test]
    fn a_request_that_writes_nothing_gets_the_log_probabilities_of_its_whole_prompt() {
        let from = |json: &str| parse(json).expect("valid").prompts[0].logprobs.from;
        let scored = r#"{"text": "a", "return_logprob": true, "sampling_params": {"max_new_tokens": 0}}"#;
        assert_eq!(from(scored), Some(0));
        assert_eq!(from(&scored.replace("0}", "1}")), None);
        assert_eq!(
            from(&scored.replace("true,", r#"true, "logprob_start_len": -1,"#)),
            None
        );
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
                r#"{"text": ["a", "b"], "sampling_params": [{}, {"temperature": -1}]}"#,
                "sampling_params[1].temperature",
            ),
            (
                r#"{"text": ["a", "b"], "sampling_params": [{}]}"#,
                "sampling_params",
            ),
            (
                r#"{"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}"#,
                "sampling_params.n",
            ),
            (r#"{"text": "a", "temperature": 0.5}"#, "temperature"),
            (r#"{"text": "a", "priority": "x"}"#, "priority"),
            (
                r#"{"text": "a", "custom_logit_processor": "x"}"#,
                "custom_logit_processor",
            ),
            (
                r#"{"text": "a", "sampling_params": {"stop_regex": "x"}}"#,
                "sampling_params.stop_regex",
            ),
            (r#"{"text": "a", "top_logprobs_num": 21}"#, "top_logprobs_num"),
            (
                r#"{"text": "a", "token_ids_logprob": [-1]}"#,
                "token_ids_logprob[0]",
            ),
            (
                r#"{"text": ["a", "b"], "token_ids_logprob": [[1]]}"#,
                "token_ids_logprob",
            ),
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
