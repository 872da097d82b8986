//! `POST /v1/completions`.

mod answer;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use self::answer::TextAnswer;
use super::conversation::Running;
use super::openai::{self, Names};
use super::{App, Job, PreparedPrompt, Traced};
use crate::body::RequestBody;
use crate::intake::Admitted;
use crate::prompt::PromptEncoder;
use crate::served::Served;
use crate::wire::completion::{CompletionRequest, Echo, Prompt};
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;

/// What its objects are called.
const NAMES: Names = Names {
    prefix: "cmpl",
    whole: "text_completion",
    chunk: "text_completion",
};

/// Continues texts.
pub async fn completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (request, admitted) = body.parse(&app, CompletionRequest::parse).await?;
    let CompletionRequest {
        prompts,
        echo,
        mut options,
    } = request;
    options.deadlines = Deadlines::read(&headers)?;
    let served = &app.models.find(options.model.as_deref()).await?;
    let owner = app.owner(&headers);
    let grammar = served.grammar(&options, App::tenant(owner)).await?;
    let mut prepared = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        prepared.push(prepare((&app, served), &admitted, prompt, echo).await?);
    }
    let jobs = prepared.iter().map(|prompt| Job {
        prompt,
        options: &options,
        grammar: grammar.as_ref(),
        thoughts: None,
    });
    let (generation, requests) = app.generate(served, jobs.collect(), owner)?;
    drop(admitted);
    let n_choices = generation.n_choices();
    let running = Running {
        generation,
        requests,
        prompt: prepared.pop().map(|prompt| prompt.tokens).unwrap_or_default(),
        options,
    };
    let dialect = |envelope| TextAnswer::new(envelope, n_choices);
    openai::answer((&app, served), running, (NAMES, &headers, exchange), dialect).await
}

/// The tokens of a request that has one prompt.
pub(super) async fn only_prompt(
    model: (&App, &Served),
    admitted: &Admitted,
    request: CompletionRequest,
) -> Result<Vec<u32>, ApiError> {
    let mut prompts = request.prompts;
    match (prompts.pop(), prompts.len()) {
        (Some(prompt), 0) => Ok(prepare(model, admitted, prompt, Echo::Output).await?.tokens),
        (_, n_others) => {
            let message = format!("'prompt' has {} prompts, must have 1.", n_others + 1);
            Err(ApiError::invalid("prompt", message))
        }
    }
}

/// The tokens of one prompt.
pub(super) async fn prepare(
    (app, served): (&App, &Served),
    admitted: &Admitted,
    prompt: Prompt,
    echo: Echo,
) -> Result<PreparedPrompt, ApiError> {
    match prompt {
        Prompt::Text { text, bos } => {
            let repeated = match echo {
                Echo::Output => None,
                Echo::PromptAndOutput => Some(text.clone()),
            };
            let limit = served.prompt_limit();
            let encode = move |encoder: &PromptEncoder| encoder.text(&text, bos, limit);
            Ok(PreparedPrompt::new(
                app.encode(served, admitted, encode).await?,
                repeated,
            ))
        }
        Prompt::Tokens(tokens) => {
            let repeated = match echo {
                Echo::Output => None,
                Echo::PromptAndOutput => {
                    let bytes = tokens.iter().flat_map(|&id| served.token_bytes.of(id)).copied();
                    let bytes: Vec<u8> = bytes.collect();
                    Some(String::from_utf8_lossy(&bytes).into_owned())
                }
            };
            Ok(PreparedPrompt::new(tokens, repeated))
        }
    }
}
