//! `POST /generate`, in SGLang's words; a body with `inputs` is TGI's ([`super::tgi`]).

mod answer;

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use self::answer::{GenerateAnswer, Output, PromptTold, Told};
use super::completions::prepare;
use super::{App, Job, PreparedPrompt, Traced, cache, tgi};
use crate::body::RequestBody;
use crate::grammars::Begun;
use crate::intake::Admitted;
use crate::pipeline::{self, KEEP_ALIVE};
use crate::random::random_id;
use crate::served::Served;
use crate::wire::completion::{Echo, Prompt};
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;
use crate::wire::generate::GeneratePrompt;
use crate::wire::options::Options;
use crate::wire::tgi::request::GenerateBody;

/// What an event of a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamForm {
    /// All that came so far.
    #[default]
    Cumulative,
    /// What came since the event before.
    Incremental,
}

/// Continues texts.
pub async fn generate(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (body, admitted) = body.parse(&app, GenerateBody::parse).await?;
    let request = match body {
        GenerateBody::SgLang(request) => request,
        GenerateBody::Tgi(request) => {
            return Ok(tgi::answer(&app, (request, admitted), (&headers, exchange)).await);
        }
    };
    // The API has no name for one.
    let served = &app.models.find(None).await?;
    let (deadlines, owner) = (Deadlines::read(&headers)?, app.owner(&headers));
    let mut prompts = Vec::with_capacity(request.prompts.len());
    for mut asked in request.prompts {
        asked.options.deadlines = deadlines;
        prompts.push(ReadPrompt::new((&app, served), &admitted, asked, owner).await?);
    }
    let field = prompts.first().map_or("text", |prompt| prompt.field);
    let generated = app.generate(served, prompts.iter().map(ReadPrompt::job).collect(), owner);
    drop(admitted);
    let (mut generation, requests) = generated.map_err(|error| error.of_prompt_in(field))?;
    for (prompt, request) in prompts.iter().zip(requests) {
        cache::note((&app, served), &prompt.told.id, &headers, vec![request]);
    }
    if let (Some(Extension(exchange)), Some(first)) = (exchange, prompts.first()) {
        let sampling = first.options.sampling.with_defaults(&served.sampling)?;
        generation.trace(exchange.generation(&first.told.id, &first.options, (&served.name, sampling)));
    }
    let outputs = prompts
        .iter()
        .enumerate()
        .flat_map(|(idx, prompt)| prompt.outputs(idx))
        .collect();
    let told = Told {
        tokenizer: Arc::clone(served.encoder.tokenizer()),
        is_list: request.is_list,
        form: app.generate_form,
        arrived,
        prompts: prompts.into_iter().map(|prompt| prompt.told).collect(),
    };
    let answer = GenerateAnswer::new(outputs, told);
    match request.stream {
        true => Ok(pipeline::stream(generation, answer, KEEP_ALIVE)),
        false => pipeline::whole(generation, answer).await,
    }
}

/// A prompt that is ready to be continued.
struct ReadPrompt {
    /// Where the client wrote it.
    field: &'static str,
    prompt: PreparedPrompt,
    options: Options,
    grammar: Option<Begun>,
    told: PromptTold,
}

impl ReadPrompt {
    async fn new(
        (app, served): (&App, &Served),
        admitted: &Admitted,
        asked: GeneratePrompt,
        owner: Option<usize>,
    ) -> Result<Self, ApiError> {
        let GeneratePrompt {
            prompt,
            id,
            logprobs,
            options,
        } = asked;
        let field = match prompt {
            Prompt::Text { .. } => "text",
            Prompt::Tokens(_) => "input_ids",
        };
        let prompt = prepare((app, served), admitted, prompt, Echo::Output).await;
        let prompt = prompt.map_err(|error| error.of_prompt_in(field))?;
        let n_tokens = prompt.tokens.len();
        if let Some(from) = logprobs.from.filter(|from| *from > n_tokens) {
            let message = format!("'logprob_start_len' is {from}, the prompt has {n_tokens} tokens.");
            return Err(ApiError::invalid("logprob_start_len", message));
        }
        let told = PromptTold {
            id: id.unwrap_or_else(random_id),
            stops: options.stop.strings.clone(),
            logprobs: options.logprobs.output.map(|_| logprobs),
            wanted: options.logprobs.clone(),
        };
        Ok(ReadPrompt {
            field,
            grammar: served.grammar(&options, App::tenant(owner)).await?,
            prompt,
            options,
            told,
        })
    }

    fn job(&self) -> Job<'_> {
        Job {
            prompt: &self.prompt,
            options: &self.options,
            grammar: self.grammar.as_ref(),
            thoughts: None,
        }
    }

    /// Its outputs, none of which has begun; it is number `prompt_idx`.
    fn outputs(&self, prompt_idx: usize) -> impl Iterator<Item = Output> {
        let output = Output::new(prompt_idx, &self.prompt.tokens);
        std::iter::repeat_n(output, self.options.n)
    }
}
