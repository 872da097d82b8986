//! `arbora embed`: texts to vectors on the terminal, as lines of JSON.

use std::io::{self, BufRead, IsTerminal, Write};

use arbora_runtime::embedding::EmbedError;
use arbora_runtime::model::encoder::{TextError, TooLong, normalize};
use serde_json::json;

use crate::cli::EmbedOptions;
use crate::encoders::ServedEncoder;
use crate::wire::error::ApiError;

/// Texts that are encoded at a time.
const CHUNK: usize = 256;

/// Why there are no vectors, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum EmbedCommandError {
    /// Neither arguments nor standard input held a text.
    #[error("no text: pass texts as arguments, or one a line on standard input")]
    NoText,
    /// The model or an option is not fit for it.
    #[error("{0}")]
    Invalid(#[from] ApiError),
    /// A text is not.
    #[error("text {text_idx}: {source}")]
    Text {
        /// Which one.
        text_idx: usize,
        /// What is wrong with it.
        source: TextError,
    },
    /// More elements than the model has.
    #[error("--dimensions {n}: this model has 1 to {width}")]
    Dimensions {
        /// Asked for.
        n: usize,
        /// What there is.
        width: usize,
    },
    /// The engine does not take it.
    #[error(transparent)]
    Refused(#[from] EmbedError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The engine gave up.
    #[error("encoding failed")]
    Failed,
}

impl EmbedCommandError {
    /// Whether the model or what was asked of it is at fault: to try the same again does not help.
    pub fn is_refusal(&self) -> bool {
        match self {
            EmbedCommandError::NoText
            | EmbedCommandError::Invalid(_)
            | EmbedCommandError::Text { .. }
            | EmbedCommandError::Dimensions { .. } => true,
            EmbedCommandError::Refused(_) | EmbedCommandError::Io(_) | EmbedCommandError::Failed => false,
        }
    }
}

/// Writes a line of JSON for each text to `out`, in their order.
pub async fn embed(
    options: &EmbedOptions,
    served: &ServedEncoder,
    out: &mut impl Write,
) -> Result<(), EmbedCommandError> {
    served.expect_embeddings()?;
    let prompt = served.prompt("--prompt-name", options.prompt_name.as_deref())?;
    let prompt = prompt.unwrap_or_default();
    let width = served.width;
    if let Some(n) = options.dimensions.filter(|n| !(1..=width).contains(n)) {
        return Err(EmbedCommandError::Dimensions { n, width });
    }
    let long = match options.truncate {
        true => TooLong::Truncate,
        false => TooLong::Refuse,
    };
    let mut texts: Box<dyn Iterator<Item = io::Result<String>>> = match options.texts.as_slice() {
        [] if io::stdin().is_terminal() => return Err(EmbedCommandError::NoText),
        [] => Box::new(io::stdin().lock().lines()),
        texts => Box::new(texts.iter().cloned().map(Ok)),
    };
    let mut n_before = 0;
    loop {
        let chunk: Vec<String> = texts.by_ref().take(CHUNK).collect::<io::Result<_>>()?;
        if chunk.is_empty() {
            break;
        }
        let encoded = chunk.iter().enumerate().map(|(i, text)| {
            let encoded = served
                .tokenizer
                .encode(&format!("{prompt}{text}"), usize::MAX, long);
            encoded.map_err(|source| EmbedCommandError::Text {
                text_idx: n_before + i,
                source,
            })
        });
        let mut answers = served.engine.submit(encoded.collect::<Result<_, _>>()?, 0)?;
        let mut vectors = vec![Vec::new(); chunk.len()];
        for _ in 0..chunk.len() {
            let answer = answers.recv().await.ok_or(EmbedCommandError::Failed)?;
            vectors[answer.text_idx] = answer.vector;
        }
        for (i, mut vector) in vectors.into_iter().enumerate() {
            if let Some(n) = options.dimensions {
                vector.truncate(n);
                normalize(&mut vector);
            }
            writeln!(out, "{}", json!({"index": n_before + i, "embedding": vector}))?;
        }
        n_before += chunk.len();
    }
    match n_before {
        0 => Err(EmbedCommandError::NoText),
        _ => Ok(()),
    }
}
