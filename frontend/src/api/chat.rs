//! `POST /v1/chat/completions`.

mod answer;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use arbora_constrained::CallFormat;
use arbora_runtime::thought_limit::{ThoughtLimit, ThoughtMarks};

use self::answer::ChatAnswer;
use super::openai::{self, Asked, Names};
use super::{App, Job, PreparedPrompt, Traced};
use crate::body::RequestBody;
use crate::intake::Admitted;
use crate::prompt::ChatPrompt;
use crate::served::Served;
use crate::template::Chat;
use crate::thinking::{self, Answer, Thinking, Thoughts};
use crate::tools::{Besides, CallStyle, written_out};
use crate::wire::chat::{ChatRequest, Conversation, THINKING_BUDGET};
use crate::wire::completion::Bos;
use crate::wire::deadlines::Deadlines;
use crate::wire::error::ApiError;
use crate::wire::options::Options;
use crate::wire::tools::Tools;

/// What its objects are called.
const NAMES: Names = Names {
    prefix: "chatcmpl",
    whole: "chat.completion",
    chunk: "chat.completion.chunk",
};

/// Continues a chat.
pub async fn chat_completions(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    exchange: Traced,
    body: RequestBody,
) -> Result<Response, ApiError> {
    let (mut request, admitted) = body.parse(&app, ChatRequest::parse).await?;
    request.options.deadlines = Deadlines::read(&headers)?;
    let served = app.models.find(request.options.model.as_deref())?;
    let ChatRequest {
        conversation,
        tools,
        thoughts,
        thinking_budget,
        mut options,
    } = request;
    let owner = app.owner(&headers);
    let tenant = App::tenant(owner);
    let prompt = prompt((&app, served), &admitted, conversation).await?;
    let mut thinking = prompt.thinking;
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
    let prompt = PreparedPrompt::new(prompt.tokens, None);
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
    let asked = Asked {
        options: &options,
        headers: &headers,
        requests,
        exchange,
    };
    let n_choices = generation.n_choices();
    let dialect = |envelope| ChatAnswer::new(envelope, n_choices);
    openai::answer((&app, served), generation, (NAMES, asked), dialect).await
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
    prompt.await.map_err(|error| error.of_prompt_in("messages"))
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
