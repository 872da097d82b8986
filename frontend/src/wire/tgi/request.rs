//! TGI's requests: `{inputs, parameters}`. Without `do_sample` and anything that shapes the drawing, the
//! likeliest token is taken.

use serde_json::{Map, Value};

use crate::wire::completion::{Bos, Prompt};
use crate::wire::constraint::Constraint;
use crate::wire::error::ApiError;
use crate::wire::fields::Fields;
use crate::wire::generate::GenerateRequest;
use crate::wire::options::{
    self, Delivery, MAX_CHOICES, MAX_LOGPROBS, OneOutput, Options, SamplingAsked, in_range,
};
use crate::wire::unsupported::{self, TGI, TGI_PARAMETERS, TGI_TOKENIZE};

/// Most output tokens where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 100;

/// A text to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct TgiRequest {
    /// The text.
    pub text: String,
    /// Of its tokens only so many, the last ones.
    pub truncate: Option<usize>,
    /// Whether the answer begins with the text, where the request says.
    pub returns_prompt: Option<bool>,
    /// Whether the answer tells of its tokens.
    pub wants_details: bool,
    /// The seed, where tokens are drawn.
    pub seed: Option<u64>,
    /// Everything else; `n` outputs are made, of which the likeliest is the answer.
    pub options: Options,
}

/// Which of two servers' requests a body of `/generate` is.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerateBody {
    /// SGLang's.
    SgLang(GenerateRequest),
    /// TGI's, or why it is none.
    Tgi(Result<Box<TgiRequest>, ApiError>),
}

impl GenerateBody {
    /// Reads a request body: TGI's has `inputs`.
    ///
    /// # Errors
    /// Where it is no JSON object, has the texts of both, or is malformed as SGLang's.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let f = Fields::parse(body)?;
        if !f.has("inputs") {
            return GenerateRequest::read(f).map(GenerateBody::SgLang);
        }
        Ok(GenerateBody::Tgi(TgiRequest::read(f).map(Box::new)))
    }
}

impl TgiRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// Names the field that is missing, malformed or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        TgiRequest::read(Fields::parse(body)?)
    }

    /// Reads a request body whose answer is a stream, whatever it says.
    ///
    /// # Errors
    /// As for [`TgiRequest::parse`].
    pub fn parse_stream(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        f.optional::<bool>("stream")?;
        f.put("stream", Some(true.into()));
        TgiRequest::read(f)
    }

    fn read(mut f: Fields) -> Result<Self, ApiError> {
        let text = f.required::<String>("inputs")?;
        unsupported::refuse(&mut f, &[&TGI])?;
        let mut p = match f.object("parameters")? {
            Some(parameters) => parameters,
            None => Fields::nested(Value::Object(Map::new()), "parameters".to_owned())?,
        };
        unsupported::refuse(&mut p, &[&TGI_PARAMETERS])?;
        let delivery = Delivery::read(&mut f)?;
        let is_stream = delivery != Delivery::Whole;
        let is_drawn = p.optional::<bool>("do_sample")?.unwrap_or(false) || shapes_drawing(&p);
        let mut sampling = SamplingAsked::read(&mut p)?;
        if !is_drawn {
            sampling = sampling.greedy();
        }
        let best_of = in_range(&mut p, "best_of", 1, MAX_CHOICES)?.unwrap_or(1);
        if best_of > 1 && (is_stream || !is_drawn) {
            let why = if is_stream {
                "'stream' is true"
            } else {
                "nothing is drawn: set 'do_sample'"
            };
            let message = format!("'parameters.best_of' is {best_of}, it must be 1 where {why}.");
            return Err(ApiError::invalid("parameters.best_of", message));
        }
        let wants_details = p.optional("details")?.unwrap_or(false);
        let wants_prompt = p.optional("decoder_input_details")?.unwrap_or(false);
        if wants_prompt && is_stream {
            let message = "'parameters.decoder_input_details' is not available when 'stream' is true.";
            return Err(ApiError::invalid("parameters.decoder_input_details", message));
        }
        let n_top = in_range(&mut p, "top_n_tokens", 0, MAX_LOGPROBS)?.unwrap_or(0);
        let stops = p.list("stop", options::MAX_STOPS)?.unwrap_or_default();
        let stops = stops.into_iter().map(|(_, value)| value).collect();
        let output = OneOutput {
            max_tokens: in_range(&mut p, "max_new_tokens", 1, u32::MAX as usize)?
                .or(Some(DEFAULT_MAX_TOKENS)),
            stops: options::stop_strings(&p.path_of("stop"), stops)?,
            constraint: Constraint::of_format(&mut p, "grammar")?,
            sampling,
            delivery,
        };
        let mut options = Options::of_one(&mut f, output)?;
        options.n = best_of;
        options.logprobs.output = (wants_details || is_stream || best_of > 1).then_some(n_top);
        options.logprobs.prompt = (wants_details && wants_prompt).then_some(0);
        let request = TgiRequest {
            text,
            truncate: in_range(&mut p, "truncate", 1, u32::MAX as usize)?,
            returns_prompt: p.optional("return_full_text")?,
            wants_details,
            seed: is_drawn.then(|| options.sampling.seed()),
            options,
        };
        p.finish();
        f.finish();
        Ok(request)
    }

    /// Takes the text out as a prompt.
    pub fn prompt(&self) -> Prompt {
        Prompt::Text {
            text: self.text.clone(),
            bos: Bos::AsTrained,
        }
    }
}

/// Whether any parameter only makes sense where tokens are drawn.
fn shapes_drawing(p: &Fields) -> bool {
    let is_set = |name: &&str| p.has(name);
    let is_hot = p
        .peek("temperature")
        .and_then(Value::as_f64)
        .is_some_and(|t| t != 1.0);
    is_hot || ["top_k", "top_p", "min_p"].iter().any(is_set)
}

/// A text whose tokens are asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TgiTokenize {
    /// The model as the client named it.
    pub model: Option<String>,
    /// The text.
    pub text: String,
}

impl TgiTokenize {
    /// Reads a request body, `{inputs}`.
    pub(in crate::wire) fn read(mut f: Fields) -> Result<Self, ApiError> {
        unsupported::refuse(&mut f, &[&TGI_TOKENIZE])?;
        let (text, model) = (f.required("inputs")?, f.optional("model")?);
        f.finish();
        Ok(TgiTokenize { model, text })
    }

    /// The same of a body.
    ///
    /// # Errors
    /// Where there is no text.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        TgiTokenize::read(Fields::parse(body)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &str, more: &str) -> Result<TgiRequest, ApiError> {
        TgiRequest::parse(format!(r#"{{"inputs": "x", "parameters": {parameters}{more}}}"#).as_bytes())
    }

    #[test]
    fn the_likeliest_token_is_taken_unless_drawing_is_asked_for() {
        for (parameters, is_drawn) in [
            ("null", false),
            ("{}", false),
            (r#"{"seed": 1}"#, false),
            (r#"{"temperature": 1.0}"#, false),
            (r#"{"do_sample": true}"#, true),
            (r#"{"temperature": 0.5}"#, true),
            (r#"{"top_k": 5}"#, true),
            (r#"{"top_p": 0.5}"#, true),
        ] {
            let request = parse(parameters, "").expect("valid");
            let sampling = request
                .options
                .sampling
                .with_defaults(&Default::default())
                .expect("in range");
            assert_eq!(request.seed.is_some(), is_drawn, "{parameters}");
            assert_eq!(sampling.temperature > 0.0, is_drawn, "{parameters}");
            assert_eq!(request.options.max_tokens, Some(100));
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (parameters, more, expected) in [
            (r#"{"watermark": true}"#, "", "parameters.watermark"),
            (r#"{"adapter_id": "x"}"#, "", "parameters.adapter_id"),
            (r#"{"typical_p": 0.5}"#, "", "parameters.typical_p"),
            (r#"{"max_new_tokens": 0}"#, "", "parameters.max_new_tokens"),
            (r#"{"best_of": 2}"#, "", "parameters.best_of"),
            (
                r#"{"best_of": 2, "do_sample": true}"#,
                r#", "stream": true"#,
                "parameters.best_of",
            ),
            (
                r#"{"decoder_input_details": true}"#,
                r#", "stream": true"#,
                "parameters.decoder_input_details",
            ),
            (
                r#"{"grammar": {"type": "x", "value": 1}}"#,
                "",
                "parameters.grammar.type",
            ),
            (r#"{"stop": [""]}"#, "", "parameters.stop[0]"),
            (
                r#"{"repetition_penalty": 11}"#,
                "",
                "parameters.repetition_penalty",
            ),
            ("{}", r#", "text": "x""#, "text"),
            ("{}", r#", "input_ids": [1]"#, "input_ids"),
        ] {
            match parse(parameters, more).expect_err(parameters) {
                ApiError::Invalid {
                    param: Some(param),
                    message,
                } => {
                    assert_eq!(param, expected, "{message}");
                    assert!(message.contains(&format!("'{expected}'")), "{message}");
                }
                other => panic!("{parameters}: {other:?}"),
            }
        }
    }
}
