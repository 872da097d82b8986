//! The models that are served, and which of them a request means.

use std::collections::HashMap;
use std::sync::Arc;

use arbora_runtime::engine::EngineHandle;
use arbora_runtime::request::{SamplingParams, SubmitError};
use arbora_runtime::token_bytes::TokenBytes;
use arbora_runtime::tokenizer::EncodeError;

use crate::encoders::ServedEncoder;
use crate::grammars::{Begun, Grammars};
use crate::prompt::{PromptEncoder, PromptError};
use crate::template::TemplateError;
use crate::wire::error::{ApiError, PROMPT};
use crate::wire::options::Options;

/// Longer names of models that are not served are cut in errors.
const MAX_SHOWN: usize = 100;

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

/// Two models want the same name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two models are called '{name}'")]
pub struct SameName {
    /// The name, or alias.
    pub name: String,
}

/// What a name stands for.
#[derive(Clone, Debug)]
enum Named {
    Generator(Arc<Served>),
    Encoder(Arc<ServedEncoder>),
}

/// All models of a server, at least one: those that generate text, and those that turn texts into vectors or
/// scores.
#[derive(Debug)]
pub struct Models {
    generators: Vec<Arc<Served>>,
    encoders: Vec<Arc<ServedEncoder>>,
    by_name: HashMap<String, Named>,
}

impl Models {
    /// `first` is meant where a request names none.
    ///
    /// # Errors
    /// Where a name or alias stands for two of them.
    pub fn new(first: Served, others: Vec<Served>) -> Result<Self, SameName> {
        Models::of(std::iter::once(first).chain(others).collect(), Vec::new())
    }

    /// Models of both kinds, of which there is one. The first of a kind is meant where a request names none.
    ///
    /// # Errors
    /// Where a name or alias stands for two of them.
    pub fn of(generators: Vec<Served>, encoders: Vec<ServedEncoder>) -> Result<Self, SameName> {
        let generators: Vec<_> = generators.into_iter().map(Arc::new).collect();
        let encoders: Vec<_> = encoders.into_iter().map(Arc::new).collect();
        assert!(
            !(generators.is_empty() && encoders.is_empty()),
            "a server has a model"
        );
        let all_generators = generators.iter().map(|served| {
            let names = std::iter::once(&served.name).chain(&served.aliases);
            (names.cloned().collect(), Named::Generator(Arc::clone(served)))
        });
        let all_encoders = encoders
            .iter()
            .map(|served| (vec![served.name.clone()], Named::Encoder(Arc::clone(served))));
        let mut by_name = HashMap::new();
        let all: Vec<(Vec<String>, Named)> = all_generators.chain(all_encoders).collect();
        for (names, model) in all {
            for name in names {
                if by_name.insert(name.clone(), model.clone()).is_some() {
                    return Err(SameName { name });
                }
            }
        }
        Ok(Models {
            generators,
            encoders,
            by_name,
        })
    }

    /// The model that a request for text means which names `asked`.
    ///
    /// # Errors
    /// Where no model is called so, or it generates no text.
    pub fn find(&self, asked: Option<&str>) -> Result<&Arc<Served>, ApiError> {
        let Some(name) = asked else {
            return self.first();
        };
        match self.by_name.get(name) {
            Some(Named::Generator(served)) => Ok(served),
            Some(Named::Encoder(served)) => Err(served.no_text()),
            None => Err(unknown(name)),
        }
    }

    /// The model that a request for vectors or scores means which names `asked`.
    ///
    /// # Errors
    /// Where no model is called so, or it gives neither.
    pub fn find_encoder(&self, asked: Option<&str>) -> Result<&Arc<ServedEncoder>, ApiError> {
        let no_vectors = |name: &str| {
            let message = format!("The model '{name}' generates text and makes no embeddings or scores.");
            ApiError::invalid("model", message)
        };
        match (asked, asked.and_then(|name| self.by_name.get(name))) {
            (_, Some(Named::Encoder(served))) => Ok(served),
            (_, Some(Named::Generator(served))) => Err(no_vectors(&served.name)),
            (Some(name), None) => Err(unknown(name)),
            (None, None) => match (self.encoders.first(), self.generators.first()) {
                (Some(served), _) => Ok(served),
                (None, generator) => Err(no_vectors(&generator.expect("a server has a model").name)),
            },
        }
    }

    /// The model that generates text where none is named.
    ///
    /// # Errors
    /// Where none does.
    pub fn first(&self) -> Result<&Arc<Served>, ApiError> {
        match (self.generators.first(), self.encoders.first()) {
            (Some(served), _) => Ok(served),
            (None, encoder) => Err(encoder.expect("a server has a model").no_text()),
        }
    }

    /// Those that generate text, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.generators.iter()
    }

    /// Those that turn texts into vectors or scores.
    pub fn encoders(&self) -> impl Iterator<Item = &Arc<ServedEncoder>> {
        self.encoders.iter()
    }
}

fn unknown(name: &str) -> ApiError {
    ApiError::ModelNotFound {
        model: name.chars().take(MAX_SHOWN).collect(),
    }
}
