//! `POST /v1/embeddings`: the request and the answer, OpenAI's, with fields of vLLM and Cohere.

use arbora_runtime::model::encoder::TooLong;
use serde::Serialize;
use serde_json::Value;

use super::completion::tokens;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use crate::encoders::{Encoding, Input};

/// Most texts of a request: OpenAI's number.
pub const MAX_INPUTS: usize = 2048;

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorFormat {
    /// As lists of numbers.
    Float,
    /// As the bytes of little-endian f32, in base64.
    Base64,
}

/// Texts to become vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingsRequest {
    /// The model as the client named it.
    pub model: Option<String>,
    /// At least one.
    pub inputs: Vec<Input>,
    /// How vectors are written.
    pub format: VectorFormat,
    /// The first so many elements, scaled to length 1.
    pub dimensions: Option<usize>,
    /// What the texts are, by the name of a prompt: which field says it, and what.
    pub prompt_name: Option<(&'static str, String)>,
    /// How long texts become tokens.
    pub encoding: Encoding,
}

impl EmbeddingsRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let model = f.optional("model")?;
        let inputs = inputs(&mut f)?;
        let format = match f.optional::<String>("encoding_format")?.as_deref() {
            None | Some("float") => VectorFormat::Float,
            Some("base64") => VectorFormat::Base64,
            Some(other) => {
                let shown: String = other.chars().take(40).collect();
                let message = format!("'encoding_format' must be 'float' or 'base64', got '{shown}'.");
                return Err(ApiError::invalid("encoding_format", message));
            }
        };
        let dimensions = at_least_one(&mut f, "dimensions")?;
        let name = |f: &mut Fields, field: &'static str| {
            Ok::<_, ApiError>(f.optional::<String>(field)?.map(|name| (field, name)))
        };
        let prompt_name = name(&mut f, "prompt_name")?.or(name(&mut f, "input_type")?);
        let encoding = encoding(&mut f, TooLong::Refuse)?;
        // Who asks changes nothing.
        f.optional::<String>("user")?;
        f.finish();
        Ok(EmbeddingsRequest {
            model,
            inputs,
            format,
            dimensions,
            prompt_name,
            encoding,
        })
    }
}

/// Reads `truncate_prompt_tokens`: a number of tokens, or -1 for as many as the model takes. Without it
/// `long` says what becomes of texts that are too long.
pub(super) fn encoding(f: &mut Fields, long: TooLong) -> Result<Encoding, ApiError> {
    let cut = |limit| Encoding {
        limit,
        long: TooLong::Truncate,
    };
    match f.optional::<i32>("truncate_prompt_tokens")? {
        None => Ok(Encoding {
            limit: usize::MAX,
            long,
        }),
        Some(-1) => Ok(cut(usize::MAX)),
        Some(n @ 1..) => Ok(cut(usize::try_from(n).unwrap_or(usize::MAX))),
        Some(other) => {
            let message = format!("'truncate_prompt_tokens' must be -1 or at least 1, got {other}.");
            Err(ApiError::invalid("truncate_prompt_tokens", message))
        }
    }
}

fn inputs(f: &mut Fields) -> Result<Vec<Input>, ApiError> {
    let list = match f.raw("input") {
        None => return Err(ApiError::invalid("input", "Missing required parameter: 'input'.")),
        Some(Value::String(text)) => return Ok(vec![Input::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type("input", "a string or an array", &other)),
    };
    if list.is_empty() {
        return Err(ApiError::invalid("input", "'input' must have an element."));
    }
    if list[0].is_number() {
        return Ok(vec![ids("input", list)?]);
    }
    check_count("input", list.len())?;
    let one = |(i, value)| match value {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(list) => ids(&format!("input[{i}]"), list),
        other => Err(wrong_type(
            &format!("input[{i}]"),
            "a string or an array of token ids",
            &other,
        )),
    };
    list.into_iter().enumerate().map(one).collect()
}

/// The tokens in a list, at least one.
fn ids(path: &str, list: Vec<Value>) -> Result<Input, ApiError> {
    if list.is_empty() {
        let message = format!("'{path}' must hold at least one token id.");
        return Err(ApiError::invalid(path, message));
    }
    Ok(Input::Tokens(tokens(path, list)?))
}

/// A number that is not 0, where there is one.
pub(super) fn at_least_one(f: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    match f.optional::<u32>(name)? {
        Some(0) => Err(ApiError::invalid(
            name,
            format!("'{name}' must be at least 1, got 0."),
        )),
        found => Ok(found.map(|n| n as usize)),
    }
}

pub(super) fn check_count(param: &str, n: usize) -> Result<(), ApiError> {
    match n {
        0..=MAX_INPUTS => Ok(()),
        _ => {
            let message = format!("'{param}' has {n} elements, at most {MAX_INPUTS} are allowed.");
            Err(ApiError::invalid(param, message))
        }
    }
}

/// What a request took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TextUsage {
    /// Tokens of all texts.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

impl TextUsage {
    /// Of so many tokens.
    pub fn of(n_tokens: usize) -> TextUsage {
        TextUsage {
            prompt_tokens: n_tokens,
            total_tokens: n_tokens,
        }
    }
}

/// A vector as it is written.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Bytes in base64.
    Base64(String),
}

impl Vector {
    /// Writes `vector` in this format.
    pub fn new(vector: Vec<f32>, format: VectorFormat) -> Vector {
        match format {
            VectorFormat::Float => Vector::Float(vector),
            VectorFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(base64(&bytes))
            }
        }
    }
}

/// One vector of an answer.
#[derive(Clone, Debug, Serialize)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// Which text it is of.
    pub index: usize,
    /// It.
    pub embedding: Vector,
}

/// The answer to [`EmbeddingsRequest`].
#[derive(Clone, Debug, Serialize)]
pub struct EmbeddingsResponse {
    /// `list`.
    pub object: &'static str,
    /// One for each text, in their order.
    pub data: Vec<Embedding>,
    /// The model's own name.
    pub model: String,
    /// What it took.
    pub usage: TextUsage,
}

/// Base64 with padding (RFC 4648, 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = bits >> (18 - 6 * i) & 63;
            text.push(if i <= three.len() {
                ALPHABET[digit as usize] as char
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &Value) -> Result<EmbeddingsRequest, ApiError> {
        EmbeddingsRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
    }

    #[test]
    fn inputs_are_texts_or_tokens_one_or_several() {
        let inputs = |input: Value| parse(&json!({"input": input})).expect("good").inputs;
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(inputs(json!("a")), [text("a")]);
        assert_eq!(inputs(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(inputs(json!([1, 2])), [Input::Tokens(vec![1, 2])]);
        assert_eq!(
            inputs(json!([[1, 2], [3]])),
            [Input::Tokens(vec![1, 2]), Input::Tokens(vec![3])]
        );
    }

    #[test]
    fn what_is_wrong_is_refused_by_field_value_and_limit() {
        let cases = [
            (json!({}), "Missing required parameter: 'input'"),
            (
                json!({"input": 7}),
                "'input': expected a string or an array, got 7",
            ),
            (json!({"input": []}), "'input' must have an element"),
            (
                json!({"input": vec!["a"; 2049]}),
                "'input' has 2049 elements, at most 2048 are allowed",
            ),
            (
                json!({"input": ["a", 1]}),
                "'input[1]': expected a string or an array of token ids, got 1",
            ),
            (
                json!({"input": "a", "encoding_format": "int8"}),
                "must be 'float' or 'base64', got 'int8'",
            ),
            (json!({"input": "a", "dimensions": -3}), "'dimensions'"),
            (
                json!({"input": "a", "truncate_prompt_tokens": 0}),
                "must be -1 or at least 1, got 0",
            ),
            (
                json!({"input": "a", "user": 3}),
                "'user': expected a string, got 3",
            ),
        ];
        for (body, expected) in cases {
            let error = parse(&body).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
    }
}
