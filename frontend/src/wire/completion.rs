//! `POST /v1/completions`: the request.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, FromJson, wrong_type};
use super::options::{MAX_CHOICES, MAX_LOGPROBS, Options, OutputLength, in_range};
use super::unsupported::{self, OTHER_NAMES, TEXT};

/// Most output tokens where a request does not say: OpenAI's number.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most prompts in one request.
pub const MAX_PROMPTS: usize = 32;

/// Texts to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// What comes before the output in the answer.
    pub echo: Echo,
    /// Everything else.
    pub options: Options,
}

/// What a completion continues.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text; control tokens spelled out in it count as such.
    Text {
        /// The text.
        text: String,
        /// Whether it begins as prompts of this model do.
        bos: Bos,
    },
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// What comes before the tokens of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bos {
    /// The token prompts of this model begin with, if there is one.
    AsTrained,
    /// Nothing.
    Without,
}

impl Prompt {
    /// The prompt that the list of ids at `path` is.
    pub(super) fn of_tokens(path: &str, list: Vec<Value>) -> Result<Self, ApiError> {
        if list.is_empty() {
            return Err(ApiError::invalid(
                path,
                format!("'{path}' must hold at least one token id."),
            ));
        }
        Ok(Prompt::Tokens(tokens(path, list)?))
    }
}

/// Whether the answer repeats the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Output only.
    Output,
    /// Prompt and output.
    PromptAndOutput,
}

impl CompletionRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        unsupported::refuse(&mut f, &[&TEXT, &OTHER_NAMES])?;
        let bos = bos(&mut f)?;
        let prompts = prompts(&mut f, bos)?;
        let echo = match f.optional("echo")? {
            Some(true) => Echo::PromptAndOutput,
            _ => Echo::Output,
        };
        let output_logprobs = in_range(&mut f, "logprobs", 0, MAX_LOGPROBS)?;
        let length = OutputLength {
            fewest: 0,
            default: Some(DEFAULT_MAX_TOKENS),
        };
        let mut options = Options::read(&mut f, length)?;
        options.logprobs.output = output_logprobs;
        if echo == Echo::PromptAndOutput && output_logprobs.is_some() {
            if options.logprobs.prompt.is_some() {
                let message = "'prompt_logprobs' is not available with 'echo' and 'logprobs'.";
                return Err(ApiError::invalid("prompt_logprobs", message));
            }
            // What is repeated is told about like what is new.
            options.logprobs.prompt = output_logprobs;
        }
        check_choices(prompts.len(), options.n)?;
        f.finish();
        Ok(CompletionRequest {
            prompts,
            echo,
            options,
        })
    }
}

/// Whether texts begin as prompts of this model do.
pub(super) fn bos(f: &mut Fields) -> Result<Bos, ApiError> {
    Ok(match f.optional("add_special_tokens")? {
        Some(false) => Bos::Without,
        _ => Bos::AsTrained,
    })
}

fn prompts(f: &mut Fields, bos: Bos) -> Result<Vec<Prompt>, ApiError> {
    let list = match f.raw("prompt") {
        None => {
            return Err(ApiError::invalid(
                "prompt",
                "Missing required parameter: 'prompt'.",
            ));
        }
        Some(Value::String(text)) => return Ok(vec![Prompt::Text { text, bos }]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type("prompt", "a string or an array", &other)),
    };
    if list.first().is_some_and(Value::is_number) {
        return Ok(vec![Prompt::of_tokens("prompt", list)?]);
    }
    check_prompts("prompt", list.len())?;
    let one = |(i, value)| match value {
        Value::String(text) => Ok(Prompt::Text { text, bos }),
        Value::Array(ids) => Prompt::of_tokens(&format!("prompt[{i}]"), ids),
        other => Err(wrong_type(
            &format!("prompt[{i}]"),
            "a string or an array of token ids",
            &other,
        )),
    };
    list.into_iter().enumerate().map(one).collect()
}

/// Refuses no prompts and too many.
pub(super) fn check_prompts(path: &str, n: usize) -> Result<(), ApiError> {
    if n == 0 || n > MAX_PROMPTS {
        let message = format!("'{path}' has {n} prompts, must have 1 to {MAX_PROMPTS}.");
        return Err(ApiError::invalid(path, message));
    }
    Ok(())
}

/// Refuses more outputs than one request may have.
pub(super) fn check_choices(n_prompts: usize, n: usize) -> Result<(), ApiError> {
    let (n_choices, most) = (n_prompts * n, MAX_PROMPTS.max(MAX_CHOICES));
    if n_choices > most {
        let message = format!("prompts times n is {n_choices}, at most {most} are allowed.");
        return Err(ApiError::invalid("n", message));
    }
    Ok(())
}

/// A list of token ids.
pub(super) fn tokens(path: &str, list: Vec<Value>) -> Result<Vec<u32>, ApiError> {
    let one = |(i, value)| {
        let wrong = wrong_type(&format!("{path}[{i}]"), "a token id", &value);
        u32::from_json(value).ok_or(wrong)
    };
    list.into_iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_prompt_is_read() {
        let text = |t: &str| Prompt::Text {
            text: t.to_owned(),
            bos: Bos::AsTrained,
        };
        let cases = [
            (r#""a""#, vec![text("a")]),
            (r#"["a", "b"]"#, vec![text("a"), text("b")]),
            ("[1, 2]", vec![Prompt::Tokens(vec![1, 2])]),
            (
                "[[1], [2, 3]]",
                vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
            ),
        ];
        for (json, expected) in cases {
            let request = CompletionRequest::parse(format!("{{\"prompt\": {json}}}").as_bytes());
            assert_eq!(request.expect(json).prompts, expected);
        }
    }

    #[test]
    fn malformed_completions_name_the_field() {
        let cases = [
            ("{}", "prompt"),
            (r#"{"prompt": []}"#, "prompt"),
            (r#"{"prompt": [[]]}"#, "prompt[0]"),
            (r#"{"prompt": {}}"#, "prompt"),
            (r#"{"prompt": 5}"#, "prompt"),
            (r#"{"prompt": [1, "a"]}"#, "prompt[1]"),
            (r#"{"prompt": [1, -1]}"#, "prompt[1]"),
            (r#"{"prompt": [1, 1.5]}"#, "prompt[1]"),
            (r#"{"prompt": ["a", 1]}"#, "prompt[1]"),
            (r#"{"prompt": [[1], [4294967296]]}"#, "prompt[1][0]"),
            (r#"{"prompt": "x", "suffix": "y"}"#, "suffix"),
            (r#"{"prompt": "x", "best_of": 2}"#, "best_of"),
            (r#"{"prompt": "x", "echo": "y"}"#, "echo"),
            (r#"{"prompt": "x", "logprobs": true}"#, "logprobs"),
            (r#"{"prompt": "x", "logprobs": 21}"#, "logprobs"),
            (
                r#"{"prompt": "x", "logprobs": 1, "echo": true, "prompt_logprobs": 1}"#,
                "prompt_logprobs",
            ),
            (r#"{"prompt": ["1", "2", "3", "4", "5"], "n": 8}"#, "n"),
        ];
        for (json, expected) in cases {
            match CompletionRequest::parse(json.as_bytes()).expect_err(json) {
                ApiError::Invalid {
                    param: Some(param), ..
                } => assert_eq!(param, expected, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }
}
