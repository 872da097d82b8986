//! `POST /tokenize` and `POST /detokenize`: requests and answers, vLLM's.

use serde::Serialize;

use super::chat::Conversation;
use super::completion::{Bos, bos, tokens};
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::tgi::request::TgiTokenize;
use super::tools::Tools;

/// What is to become tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    /// A text in which control tokens may be spelled out.
    Plain {
        /// The text.
        text: String,
        /// Whether it begins as prompts of this model do.
        bos: Bos,
    },
    /// A chat, as its completion would read it.
    Chat(Conversation),
}

/// A text to be split.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    /// The model as the client named it.
    pub model: Option<String>,
    /// The text.
    pub text: Text,
    /// Whether the answer spells the tokens.
    pub with_strings: bool,
}

/// Which of two servers' requests a body of `/tokenize` is.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizeBody {
    /// vLLM's.
    Vllm(TokenizeRequest),
    /// TGI's, which has `inputs`.
    Tgi(TgiTokenize),
}

impl TokenizeBody {
    /// Reads a request body.
    ///
    /// # Errors
    /// Where it is malformed, or has the texts of both.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let f = Fields::parse(body)?;
        match f.has("inputs") {
            true => TgiTokenize::read(f).map(TokenizeBody::Tgi),
            false => TokenizeRequest::read(f).map(TokenizeBody::Vllm),
        }
    }
}

impl TokenizeRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        TokenizeRequest::read(Fields::parse(body)?)
    }

    fn read(mut f: Fields) -> Result<Self, ApiError> {
        let model = f.optional("model")?;
        let with_strings = f.optional("return_token_strs")?.unwrap_or(false);
        let text = match f.optional::<String>("prompt")? {
            Some(text) => {
                let bos = bos(&mut f)?;
                Text::Plain { text, bos }
            }
            None => {
                let mut tools = Tools::read(&mut f)?;
                Text::Chat(Conversation::read(&mut f, tools.as_mut())?)
            }
        };
        f.finish();
        Ok(TokenizeRequest {
            model,
            text,
            with_strings,
        })
    }
}

/// Tokens to be joined.
#[derive(Clone, Debug, PartialEq)]
pub struct DetokenizeRequest {
    /// The model as the client named it.
    pub model: Option<String>,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// Reads a request body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut f = Fields::parse(body)?;
        let model = f.optional("model")?;
        let tokens = match f.raw("tokens") {
            Some(serde_json::Value::Array(list)) => tokens("tokens", list)?,
            Some(other) => return Err(wrong_type("tokens", "an array of token ids", &other)),
            None => {
                return Err(ApiError::invalid(
                    "tokens",
                    "Missing required parameter: 'tokens'.",
                ));
            }
        };
        f.finish();
        Ok(DetokenizeRequest { model, tokens })
    }
}

/// The answer to [`TokenizeRequest`].
#[derive(Clone, Debug, Serialize)]
pub struct TokenizeResponse {
    /// Number of tokens.
    pub count: usize,
    /// Most tokens of prompt and output together.
    pub max_model_len: usize,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Their texts, or `null`.
    pub token_strs: Option<Vec<String>>,
}

/// The answer to [`DetokenizeRequest`].
#[derive(Clone, Debug, Serialize)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}
