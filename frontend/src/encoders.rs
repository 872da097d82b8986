//! Embedding models and rerankers that are served: from texts to vectors and scores.

use std::sync::Arc;
use std::time::Duration;

use arbora_runtime::embedding::{EmbedError, EmbeddingHandle};
use arbora_runtime::model::encoder::{EncodedText, Purpose, TextError, TextTokenizer, TooLong, normalize};

use crate::api::App;
use crate::intake::Admitted;
use crate::wire::error::ApiError;

/// What a client that is refused should wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Names that clients give to the two kinds of texts that are compared, whatever a model calls them.
const KINDS: [&[&str]; 2] = [
    &["query", "search_query"],
    &["document", "passage", "search_document"],
];

/// Everything that belongs to one model.
#[derive(Debug)]
pub struct ServedEncoder {
    /// Its name for clients.
    pub name: String,
    /// Other names that clients may use for it.
    pub aliases: Vec<String>,
    /// The way to its engine.
    pub engine: EmbeddingHandle,
    /// From texts to its tokens.
    pub tokenizer: Arc<TextTokenizer>,
    /// What its answers are.
    pub purpose: Purpose,
    /// Elements of an answer.
    pub width: usize,
    /// Texts that are put before others, by name.
    pub prompts: Vec<(String, String)>,
    /// The one of them that is where none is named.
    pub default_prompt: Option<String>,
}

/// A text to be encoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A text.
    Text(String),
    /// Two texts, of which the first is compared with the second.
    Pair(Arc<str>, String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

/// How texts become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Most tokens of a text besides the model's limit.
    pub limit: usize,
    /// What becomes of longer ones.
    pub long: TooLong,
}

/// The answers to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    /// One for each text.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub n_tokens: usize,
}

impl ServedEncoder {
    /// The error that a request for text gets.
    pub(crate) fn no_text(&self) -> ApiError {
        let (what, route) = match self.purpose {
            Purpose::Embed => ("makes embeddings", "/v1/embeddings"),
            Purpose::Rerank => ("is a reranker", "/v1/rerank"),
        };
        let message = format!(
            "The model '{}' {what} and generates no text: ask POST {route}.",
            self.name
        );
        ApiError::invalid("model", message)
    }

    /// # Errors
    /// Where the model is no embedding model.
    pub(crate) fn expect_embeddings(&self) -> Result<(), ApiError> {
        match self.purpose {
            Purpose::Embed => Ok(()),
            Purpose::Rerank => {
                let message = format!(
                    "The model '{}' is a reranker and makes no embeddings: ask POST /v1/rerank.",
                    self.name
                );
                Err(ApiError::invalid("model", message))
            }
        }
    }

    /// The text before others that a client means by `name`, found in the field `param`.
    ///
    /// # Errors
    /// Where the model knows no such name, and it is not one of the usual kinds of a model without any.
    pub(crate) fn prompt(&self, param: &str, name: Option<&str>) -> Result<Option<&str>, ApiError> {
        let named = |name: &str| {
            let found = self.prompts.iter().find(|(known, _)| known == name);
            found.map(|(_, text)| text.as_str())
        };
        let Some(name) = name else {
            return Ok(self.default_prompt.as_deref().and_then(named));
        };
        if let Some(text) = named(name) {
            return Ok(Some(text));
        }
        let kind = KINDS.iter().find(|names| names.contains(&name));
        match kind {
            Some(_) if self.prompts.is_empty() => Ok(None),
            Some(names) if names.iter().any(|name| named(name).is_some()) => {
                Ok(names.iter().find_map(|name| named(name)))
            }
            _ => {
                let known: Vec<_> = self.prompts.iter().map(|(name, _)| format!("'{name}'")).collect();
                let known = match known.as_slice() {
                    [] => "'query' and 'document'".to_owned(),
                    known => known.join(", "),
                };
                let shown: String = name.chars().take(40).collect();
                let message = format!("'{param}' is '{shown}', this model knows {known}.");
                Err(ApiError::invalid(param, message))
            }
        }
    }

    /// The answers to `inputs`, found in the field `param`. Who stops waiting takes them out of the queue.
    ///
    /// # Errors
    /// Where a text is too long, the queue full, or the engine fails.
    pub(crate) async fn encode(
        &self,
        (app, admitted, tenant): (&App, Admitted, usize),
        (param, inputs): (&'static str, Vec<Input>),
        encoding: Encoding,
    ) -> Result<Vectors, ApiError> {
        let (tokenizer, is_one) = (Arc::clone(&self.tokenizer), inputs.len() == 1);
        let param_of = move |text_idx: usize| match is_one {
            true => param.to_owned(),
            false => format!("{param}[{text_idx}]"),
        };
        let encode = move || {
            let encoded = inputs.into_iter().enumerate().map(|(text_idx, input)| {
                tokens(&tokenizer, input, encoding).map_err(|error| text_error(param_of(text_idx), &error))
            });
            encoded.collect::<Result<Vec<EncodedText>, ApiError>>()
        };
        let texts = app.intake.run(&admitted, encode).await??;
        let (n_texts, n_tokens) = (texts.len(), texts.iter().map(|text| text.ids.len()).sum());
        let submitted = self.engine.submit(texts, tenant);
        let mut answers = submitted.map_err(|error| self.refused(param_of, error))?;
        drop(admitted);
        let mut vectors = vec![Vec::new(); n_texts];
        for _ in 0..n_texts {
            let Some(answer) = answers.recv().await else {
                return Err(match self.engine.is_accepting() {
                    true => ApiError::Failed,
                    false => ApiError::ShuttingDown,
                });
            };
            if !answer.vector.iter().all(|x| x.is_finite()) {
                return Err(ApiError::Failed);
            }
            vectors[answer.text_idx] = answer.vector;
        }
        Ok(Vectors { vectors, n_tokens })
    }

    /// How alike the texts of pairs are: the scores of a reranker, or the cosines of an embedding model's
    /// vectors.
    ///
    /// # Errors
    /// As for [`ServedEncoder::encode`].
    pub(crate) async fn compare(
        &self,
        context: (&App, Admitted, usize),
        (param, pairs): (&'static str, Vec<(Arc<str>, String)>),
        encoding: Encoding,
    ) -> Result<(Vec<f32>, usize), ApiError> {
        if self.purpose == Purpose::Rerank {
            let inputs = pairs
                .into_iter()
                .map(|(first, second)| Input::Pair(first, second));
            let Vectors { vectors, n_tokens } =
                self.encode(context, (param, inputs.collect()), encoding).await?;
            return Ok((vectors.into_iter().map(|vector| vector[0]).collect(), n_tokens));
        }
        let prefix = |kind: usize| {
            let names = KINDS[kind].iter();
            let found = names.filter_map(|name| self.prompts.iter().find(|(known, _)| known == name));
            found.map(|(_, text)| text.as_str()).next().unwrap_or_default()
        };
        let with_prefix = |kind: usize, text: &str| Input::Text(format!("{}{text}", prefix(kind)));
        // Each first text once.
        let mut firsts: Vec<Arc<str>> = Vec::new();
        let first_idxs: Vec<usize> = pairs
            .iter()
            .map(|(first, _)| match firsts.last() {
                Some(last) if Arc::ptr_eq(last, first) => firsts.len() - 1,
                _ => {
                    firsts.push(Arc::clone(first));
                    firsts.len() - 1
                }
            })
            .collect();
        let inputs = firsts.iter().map(|first| with_prefix(0, first));
        let inputs = inputs.chain(pairs.iter().map(|(_, second)| with_prefix(1, second)));
        let Vectors {
            mut vectors,
            n_tokens,
        } = self.encode(context, (param, inputs.collect()), encoding).await?;
        vectors.iter_mut().for_each(|vector| normalize(vector));
        let (firsts, seconds) = vectors.split_at(firsts.len());
        let cosines = first_idxs.iter().zip(seconds).map(|(first_idx, second)| {
            let products = firsts[*first_idx].iter().zip(second).map(|(a, b)| a * b);
            products.sum()
        });
        Ok((cosines.collect(), n_tokens))
    }

    #[expect(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
    fn refused(&self, param_of: impl Fn(usize) -> String, error: EmbedError) -> ApiError {
        let invalid = |text_idx, message: String| ApiError::invalid(param_of(text_idx), message);
        match error {
            EmbedError::QueueFull(no_room) => ApiError::QueueFull {
                no_room,
                retry_after: RETRY_AFTER,
            },
            EmbedError::ShuttingDown => ApiError::ShuttingDown,
            EmbedError::TooManyTokens {
                text_idx,
                n_tokens,
                limit,
            } => too_long(param_of(text_idx), n_tokens, limit),
            EmbedError::Empty { text_idx } => {
                let param = param_of(text_idx);
                invalid(text_idx, format!("'{param}' has no tokens."))
            }
            EmbedError::TokenOutOfRange {
                text_idx,
                token,
                n_vocab,
            } => {
                let param = param_of(text_idx);
                invalid(
                    text_idx,
                    format!("'{param}' has token {token}, the vocabulary has {n_vocab} tokens."),
                )
            }
            EmbedError::LongerThanQueue { .. } => invalid(0, format!("In the whole {error}.")),
        }
    }
}

fn tokens(tokenizer: &TextTokenizer, input: Input, encoding: Encoding) -> Result<EncodedText, TextError> {
    let Encoding { limit, long } = encoding;
    match input {
        Input::Text(text) => tokenizer.encode(&text, limit, long),
        Input::Pair(first, second) => tokenizer.encode_pair((&first, &second), limit, long),
        Input::Tokens(mut ids) => {
            let limit = limit.min(tokenizer.max_tokens());
            if ids.len() > limit && long == TooLong::Refuse {
                let n_tokens = ids.len();
                return Err(TextError::TooManyTokens { n_tokens, limit });
            }
            ids.truncate(limit);
            Ok(EncodedText::of_ids(ids))
        }
    }
}

fn text_error(param: String, error: &TextError) -> ApiError {
    match error {
        TextError::TooManyTokens { n_tokens, limit } => too_long(param, *n_tokens, *limit),
        TextError::TooLong { .. } | TextError::Empty => {
            let message = format!("'{param}': {error}.");
            ApiError::invalid(param, message)
        }
        TextError::Failed { .. } => {
            tracing::error!(%error, "a text could not be encoded");
            ApiError::Failed
        }
    }
}

/// In words by which clients know this error.
fn too_long(param: String, n_tokens: usize, limit: usize) -> ApiError {
    let message = format!(
        "This model's maximum context length is {limit} tokens, however '{param}' has {n_tokens} tokens. Shorten \
         it, or ask for its end to be cut off with 'truncate_prompt_tokens': -1."
    );
    ApiError::ContextExceeded { param, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_about_a_long_text_names_the_field_the_value_and_the_limit() {
        let error = too_long("input[3]".to_owned(), 300, 256).to_string();
        assert!(
            error.contains("256 tokens, however 'input[3]' has 300 tokens"),
            "{error}"
        );
    }
}
