//! A model that generates text, and all that belongs to it: engine, tokenizer, template and grammars.

use std::sync::Arc;

use arbora_runtime::engine::EngineHandle;
use arbora_runtime::request::{SamplingParams, SubmitError};
use arbora_runtime::token_bytes::TokenBytes;
use arbora_runtime::tokenizer::EncodeError;

use crate::grammars::{Begun, Grammars};
use crate::prompt::{PromptEncoder, PromptError};
use crate::template::TemplateError;
use crate::wire::error::{ApiError, PROMPT};
use crate::wire::options::Options;

/// Everything that belongs to one model.
#[derive(Debug)]
pub struct Served {
    /// Its name for clients.
    pub name: String,
    /// Other names that clients may use for it.
    pub aliases: Vec<String>,
    /// The way to its engine.
    pub engine: EngineHandle,
    /// From messages and texts to its tokens.
    pub encoder: Arc<PromptEncoder>,
    /// What its outputs may be asked to look like.
    pub grammars: Grammars,
    /// From its tokens to text.
    pub token_bytes: Arc<TokenBytes>,
    /// The same with the names of control tokens, for outputs whose grammar asks for them by name.
    pub named_bytes: Arc<TokenBytes>,
    /// How its tokens are drawn where a request does not say.
    pub sampling: SamplingParams,
}

impl Served {
    /// Tokens of a prompt after which nobody counts on: it is refused, and by how much it is too long matters
    /// to clients that cut a little off and try again.
    pub(crate) fn prompt_limit(&self) -> usize {
        self.engine.context().saturating_mul(4)
    }

    #[expect(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
    pub(crate) fn prompt_error(&self, error: PromptError) -> ApiError {
        match &error {
            PromptError::Encode(EncodeError::TooManyTokens { limit }) => {
                ApiError::longer_than_context(self.engine.context(), *limit)
            }
            PromptError::Encode(EncodeError::PieceTooLong { .. }) => {
                ApiError::invalid(PROMPT, format!("{error}."))
            }
            PromptError::Encode(source @ EncodeError::Merges { .. }) => {
                tracing::error!(%source, "a prompt could not be encoded");
                ApiError::Failed
            }
            PromptError::Template(TemplateError::Failed(source)) => {
                tracing::warn!(%source, "the chat template failed");
                ApiError::invalid("messages", format!("{error}."))
            }
            _ => ApiError::invalid("messages", format!("{error}.")),
        }
    }

    /// The beginning of what an output of `tenant` must look like. Waits for its compilation, and lets nobody
    /// else wait.
    pub(crate) async fn grammar(&self, options: &Options, tenant: usize) -> Result<Option<Begun>, ApiError> {
        match &options.constraint {
            Some(constraint) => Ok(Some(self.grammars.begin(constraint, tenant).await?)),
            None => Ok(None),
        }
    }

    /// Refused here and not by the engine, because an event channel that large could not be made.
    pub(crate) fn context_exceeded(&self, prompt_tokens: usize, max_tokens: usize) -> ApiError {
        let context = self.engine.context();
        ApiError::from(SubmitError::ContextExceeded {
            prompt_tokens,
            max_tokens,
            context,
        })
    }
}
