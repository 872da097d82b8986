//! What the answers of OpenAI's chat completions and text completions have in common: head, chunks, usage.
//!
//! ```text
//! {id, object, created, model, choices, usage}      a whole answer, or a chunk of a stream
//! {..., choices: [], usage}                         the last chunk, if usage is asked for
//! [DONE]
//! ```

use std::sync::Arc;

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::conversation::Running;
use super::{App, Traced, unix_seconds};
use crate::logprobs::LogprobWriter;
use crate::pipeline::{Dialect, Events};
use crate::random::random_id;
use crate::served::Served;
use crate::stream::{Explain, Generation};
use crate::wire::error::ApiError;
use crate::wire::options::{Delivery, StreamUsage};
use crate::wire::response::{Answer, Head, PromptLogprobs, UsageField};

/// What one of the two APIs calls its objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// What ids begin with.
    pub(super) prefix: &'static str,
    /// A whole answer.
    pub(super) whole: &'static str,
    /// A part of a streamed one.
    pub(super) chunk: &'static str,
}

/// The common part of an answer.
#[derive(Debug)]
pub(super) struct Envelope {
    head: Head,
    explain: Explain,
    usage: StreamUsage,
    /// Tells how likely tokens were.
    pub(super) logprobs: LogprobWriter,
}

impl Envelope {
    fn new(served: &Served, (names, headers): (Names, &HeaderMap), running: &Running) -> Self {
        let (object, usage) = match running.options.delivery {
            Delivery::Whole => (names.whole, StreamUsage::default()),
            Delivery::Stream(usage) => (names.chunk, usage),
        };
        let tokenizer = Arc::clone(served.encoder.tokenizer());
        Envelope {
            head: Head {
                id: format!("{}-{}", names.prefix, random_id()),
                object,
                created: unix_seconds(),
                model: served.name.clone(),
            },
            explain: Explain::of(headers),
            usage,
            logprobs: LogprobWriter::new(
                tokenizer,
                running.options.logprobs.clone(),
                running.generation.n_choices(),
            ),
        }
    }

    /// All of `choices`, with what is told of a prompt that they share.
    pub(super) fn whole<C: Serialize>(
        &self,
        choices: Vec<C>,
        prompt_logprobs: Option<PromptLogprobs>,
        generation: &Generation,
    ) -> Response {
        let answer = Answer {
            head: &self.head,
            choices,
            prompt_logprobs,
            usage: UsageField::Given(generation.usage(self.explain)),
        };
        Json(answer).into_response()
    }

    /// Writes a chunk with a part of one choice.
    pub(super) fn chunk<C: Serialize>(&self, choice: C, generation: &Generation, events: &mut Events) {
        let usage = match self.usage {
            StreamUsage { in_chunks: true, .. } => UsageField::Given(generation.usage_now()),
            StreamUsage { at_end: true, .. } => UsageField::Null,
            _ => UsageField::Missing,
        };
        self.send(vec![choice], usage, events);
    }

    /// Writes the end of a stream.
    pub(super) fn close(&self, generation: &Generation, events: &mut Events) {
        if self.usage.at_end {
            let usage = UsageField::Given(generation.usage(self.explain));
            self.send(Vec::<()>::new(), usage, events);
        }
        events.done();
    }

    fn send<C: Serialize>(&self, choices: Vec<C>, usage: UsageField, events: &mut Events) {
        let answer = Answer {
            head: &self.head,
            choices,
            prompt_logprobs: None,
            usage,
        };
        events.send(None, &answer);
    }
}

/// Answers with `running` in the dialect that `dialect` makes of the common part.
pub(super) async fn answer<D: Dialect>(
    (app, served): (&App, &Served),
    mut running: Running,
    (names, headers, exchange): (Names, &HeaderMap, Traced),
    dialect: impl FnOnce(Envelope) -> D,
) -> Result<Response, ApiError> {
    let envelope = Envelope::new(served, (names, headers), &running);
    running.note((app, served), &envelope.head.id, (headers, exchange))?;
    running.answer(dialect(envelope)).await
}

#[cfg(test)]
pub(super) mod testing {
    use arbora_runtime::request::LogprobsWanted;
    use arbora_runtime::tokenizer::Tokenizer;

    use super::*;

    /// The common part of an answer with fixed names, for `n_choices` choices.
    pub(crate) fn envelope(usage: StreamUsage, n_choices: usize) -> Envelope {
        let tokenizer = Arc::new(Tokenizer::of_bytes(256));
        Envelope {
            head: Head {
                id: "id".to_owned(),
                object: "o",
                created: 7,
                model: "m".to_owned(),
            },
            explain: Explain::No,
            usage,
            logprobs: LogprobWriter::new(tokenizer, LogprobsWanted::default(), n_choices),
        }
    }
}
