//! `arbora generate`: one answer on the terminal.

use std::io::{self, IsTerminal, Read, Write};

use arbora_runtime::request::{
    FinishClass, FinishReason, Request, SamplingParams, StopConditions, SubmitError,
};
use tokio::sync::mpsc;

use crate::cli::GenerateOptions;
use crate::prompt::PromptError;
use crate::random::random_u64;
use crate::served::Served;
use crate::stream::{Choice, Generation, Submission};
use crate::template::Chat;
use crate::wire::chat::PromptEnding;
use crate::wire::completion::Bos;
use crate::wire::message::{Message, Role};

/// Why there was no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Neither argument nor standard input held a prompt.
    #[error("no prompt: pass one as an argument or on standard input")]
    NoPrompt,
    /// The prompt has no tokens.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The engine does not take it.
    #[error(transparent)]
    Refused(#[from] SubmitError),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The engine gave up.
    #[error("generation failed: {0:?}")]
    Failed(FinishReason),
}

/// Prints the answer to `out` as it comes.
pub async fn generate(
    options: &GenerateOptions,
    served: &Served,
    out: &mut impl Write,
) -> Result<(), GenerateError> {
    let prompt = tokens(options, served)?;
    let room = served.engine.context().saturating_sub(prompt.len()).max(1);
    let max_tokens = options.max_tokens.unwrap_or(room);
    if prompt.len().saturating_add(max_tokens) > served.engine.context() {
        return Err(GenerateError::Refused(SubmitError::ContextExceeded {
            prompt_tokens: prompt.len(),
            max_tokens,
            context: served.engine.context(),
        }));
    }
    let (sender, events) = mpsc::channel(Request::event_capacity(max_tokens));
    let id = served.engine.next_id();
    let submission = Submission::new(1, prompt.len());
    served.engine.submit(Request {
        sampling: SamplingParams {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            seed: options.seed.unwrap_or_else(random_u64),
            ..SamplingParams::default()
        },
        stop: StopConditions {
            strings: options.stop.clone(),
            ..StopConditions::default()
        },
        ..Request::new(id, prompt, max_tokens, submission.arrived, sender)
    })?;
    let mut generation = Generation::new(vec![Choice::new(events)], submission);
    while let Some(piece) = generation.next().await {
        out.write_all(piece.text.as_bytes())?;
        out.flush()?;
        if let Some(reason) = piece.finish
            && reason.class() == FinishClass::Failed
        {
            return Err(GenerateError::Failed(reason));
        }
    }
    writeln!(out)?;
    Ok(())
}

fn tokens(options: &GenerateOptions, served: &Served) -> Result<Vec<u32>, GenerateError> {
    let text = match &options.prompt {
        Some(text) => text.clone(),
        None if io::stdin().is_terminal() => return Err(GenerateError::NoPrompt),
        None => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    if text.is_empty() {
        return Err(GenerateError::NoPrompt);
    }
    if options.raw {
        return Ok(served
            .encoder
            .text(&text, Bos::AsTrained, served.engine.context())?);
    }
    let message = |role, text| Message {
        role,
        content: Some(text),
        extra: serde_json::Map::new(),
    };
    let system = options.system.clone().map(|text| message(Role::System, text));
    let messages: Vec<_> = system.into_iter().chain([message(Role::User, text)]).collect();
    let chat = Chat {
        messages: &messages,
        tools: &[],
        ending: PromptEnding::Answer,
        values: &serde_json::Map::new(),
    };
    let prompt = served.encoder.chat(&chat, served.engine.context())?;
    Ok(prompt.tokens)
}
