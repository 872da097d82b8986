//! Runs a chat: prompt, grammar, thoughts and calls, the same for every API that has chats.
//!
//! ```text
//! ChatRequest ─► chat template ─► tokens ─► what the output must look like ─► engine ─► Generation
//! ```

use std::sync::Arc;

use arbora_constrained::CallFormat;
use arbora_runtime::request::RequestId;
use arbora_runtime::thought_limit::{ThoughtLimit, ThoughtMarks};
use axum::Extension;
use axum::http::HeaderMap;
use axum::response::Response;

use super::{App, Job, PreparedPrompt, Traced, cache};
use crate::intake::Admitted;
use crate::pipeline::{self, Dialect, KEEP_ALIVE};
use crate::prompt::ChatPrompt;
use crate::served::Served;
use crate::stream::Generation;
use crate::template::Chat;
use crate::thinking::{self, Answer, Thinking, Thoughts};
use crate::tools::{Besides, CallStyle, written_out};
use crate::wire::chat::{ChatRequest, Conversation, THINKING_BUDGET};
use crate::wire::completion::Bos;
use crate::wire::error::ApiError;
use crate::wire::options::{Delivery, Options};
use crate::wire::tools::Tools;

/// What becomes of a `max_tokens` for which the context has no room behind the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputRoom {
    /// It is refused.
    AsAsked,
    /// It is lowered to what there is room for.
    UpToContext,
}

impl OutputRoom {
    fn bound(self, (served, prompt): (&Served, &PreparedPrompt), options: &mut Options) {
        if self == OutputRoom::UpToContext {
            let n_left = served.engine.context().saturating_sub(prompt.tokens.len()).max(1);
            options.max_tokens = options.max_tokens.map(|asked| asked.min(n_left));
        }
    }
}

/// Completions on their way.
pub(super) struct Running {
    pub(super) generation: Generation,
    /// The first of each prompt.
    pub(super) requests: Vec<RequestId>,
    /// Tokens of the prompt; of the last one, where there are several.
    pub(super) prompt: Vec<u32>,
    /// What was asked for, with the limits that hold.
    pub(super) options: Options,
}

/// Submits the completions of a chat.
///
/// # Errors
/// Where it cannot be rendered, does not fit, or asks for an output that cannot be enforced.
pub(super) async fn begin(
    (app, served): (&App, &Served),
    (request, room): (ChatRequest, OutputRoom),
    owner: Option<usize>,
    admitted: Admitted,
) -> Result<Running, ApiError> {
    let ChatRequest {
        conversation,
        tools,
        thoughts,
        thinking_budget,
        mut options,
    } = request;
    let tenant = App::tenant(owner);
    let prompt = prompt((app, served), &admitted, conversation).await?;
    let (prompt, mut thinking) = (PreparedPrompt::new(prompt.tokens, None), prompt.thinking);
    room.bound((served, &prompt), &mut options);
    if let (Thinking::Optional, Some(constraint)) = (thinking, &options.constraint)
        && served
            .grammars
            .may_begin(constraint, thinking::OPEN, tenant)
            .await?
    {
        // Thoughts could not be told from an answer that looks like them.
        thinking = Thinking::None;
    }
    let answer = match (&tools, &options.constraint) {
        (None, None) => Answer::Free,
        (Some(tools), None) if tools.are_optional() => Answer::Free,
        _ => Answer::Exact,
    };
    let calls = match &tools {
        Some(tools) => Some(ask_for_calls(served, tools, &mut options, tenant).await?),
        None => None,
    };
    options.constraint = options.constraint.map(|constraint| constraint.after(thinking));
    let grammar = served.grammar(&options, tenant).await?;
    let thought_limit = match thinking_budget {
        Some(budget) => thought_limit(served, thinking, budget)?,
        None => None,
    };
    let job = Job {
        prompt: &prompt,
        options: &options,
        grammar: grammar.as_ref(),
        thoughts: thought_limit.as_ref(),
    };
    let generated = app.generate(served, vec![job], owner);
    drop(admitted);
    let (mut generation, requests) = generated.map_err(|error| error.of_prompt_in("messages"))?;
    if thoughts != Thoughts::InText {
        generation.read_thinking(thinking, answer, thoughts);
    }
    if let Some(style) = &calls {
        generation.read_calls(style);
    }
    Ok(Running {
        generation,
        requests,
        prompt: prompt.tokens,
        options,
    })
}

/// Submits the completions of one text.
///
/// # Errors
/// Where it does not fit, or asks for an output that cannot be enforced.
pub(super) async fn begin_text(
    (app, served): (&App, &Served),
    (prompt, mut options, room): (PreparedPrompt, Options, OutputRoom),
    owner: Option<usize>,
    admitted: Admitted,
) -> Result<Running, ApiError> {
    let grammar = served.grammar(&options, App::tenant(owner)).await?;
    room.bound((served, &prompt), &mut options);
    let job = Job {
        prompt: &prompt,
        options: &options,
        grammar: grammar.as_ref(),
        thoughts: None,
    };
    let (generation, requests) = app.generate(served, vec![job], owner)?;
    drop(admitted);
    Ok(Running {
        generation,
        requests,
        prompt: prompt.tokens,
        options,
    })
}

impl Running {
    /// Remembers the completions under `id`, the one that their client learns, and traces them.
    pub(super) fn note(
        &mut self,
        (app, served): (&App, &Served),
        id: &str,
        (headers, exchange): (&HeaderMap, Traced),
    ) -> Result<(), ApiError> {
        cache::note((app, served), id, headers, std::mem::take(&mut self.requests));
        if let Some(Extension(exchange)) = exchange {
            let sampling = self.options.sampling.with_defaults(&served.sampling)?;
            let span = exchange.generation(id, &self.options, (&served.name, sampling));
            self.generation.trace(span);
        }
        Ok(())
    }

    /// Answers with them in the words of `dialect`.
    pub(super) async fn answer(self, dialect: impl Dialect) -> Result<Response, ApiError> {
        match self.options.delivery {
            Delivery::Whole => pipeline::whole(self.generation, dialect).await,
            Delivery::Stream(_) => Ok(pipeline::stream(self.generation, dialect, KEEP_ALIVE)),
        }
    }
}

/// The limit of `budget` tokens for thoughts that a prompt leaves to the model as `thinking` says.
fn thought_limit(
    served: &Served,
    thinking: Thinking,
    budget: usize,
) -> Result<Option<ThoughtLimit>, ApiError> {
    if !served.encoder.knows_thinking() {
        let message = format!("'{THINKING_BUDGET}' is not supported: this model does not think.");
        return Err(ApiError::invalid(THINKING_BUDGET, message));
    }
    let opening = match thinking {
        Thinking::None => return Ok(None),
        Thinking::Optional => Some(thinking::OPEN.to_owned()),
        Thinking::Open => None,
    };
    let closing_tokens = served
        .encoder
        .text(thinking::CLOSE, Bos::Without, usize::MAX)
        .map_err(|error| served.prompt_error(error))?;
    let marks = ThoughtMarks {
        opening,
        closing: thinking::CLOSE.to_owned(),
        closing_tokens: closing_tokens.into(),
        token_bytes: Arc::clone(&served.token_bytes),
    };
    Ok(Some(ThoughtLimit::new(budget, Arc::new(marks))))
}

/// The prompt of a conversation.
pub(super) async fn prompt(
    (app, served): (&App, &Served),
    admitted: &Admitted,
    conversation: Conversation,
) -> Result<ChatPrompt, ApiError> {
    let Conversation {
        messages,
        tools,
        ending,
        template_values,
        before,
    } = conversation;
    let limit = served.prompt_limit();
    let prompt = app.encode(served, admitted, move |encoder| {
        // A model that was not taught to call tools is told how.
        let (messages, tools) = match encoder.prints_tools() {
            true => (messages, tools),
            false => (written_out(messages, &tools), Vec::new()),
        };
        let chat = Chat {
            messages: &messages,
            tools: &tools,
            ending,
            values: &template_values,
        };
        encoder.chat(&chat, limit)
    });
    let mut prompt = prompt.await.map_err(|error| error.of_prompt_in("messages"))?;
    if !before.is_empty() {
        let first = served.encoder.tokenizer().bos();
        let begins = usize::from(first.is_some() && first == prompt.tokens.first().copied());
        prompt.tokens.splice(..begins, before);
    }
    Ok(prompt)
}

/// Makes the calls of `tools` what the output must look like, besides what it must look like already; returns
/// how calls are found in it.
async fn ask_for_calls(
    served: &Served,
    tools: &Tools,
    options: &mut Options,
    tenant: usize,
) -> Result<CallStyle, ApiError> {
    let format = served.encoder.call_format().unwrap_or(CallFormat::Hermes);
    let otherwise = options.constraint.take();
    let besides = match otherwise {
        _ if !tools.are_optional() => Besides::Nothing,
        Some(_) => Besides::Format,
        None => Besides::Text,
    };
    let style = CallStyle::new(format, besides, tools.names());
    match &otherwise {
        Some(form) if tools.are_optional() => served.grammars.check_beside(form, &style, tenant).await?,
        // No output will be without a call, but what could not be enforced is refused all the same.
        Some(form) => drop(served.grammars.begin(form, tenant).await?),
        None => {}
    }
    options.constraint =
        Some(tools.constraint(format, options.whitespace, otherwise.map(|form| form.source)));
    Ok(style)
}
