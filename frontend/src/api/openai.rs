//! What the answers of OpenAI's chat completions and text completions have in common: head, chunks, usage.
//!
//! ```text
//! {id, object, created, model, choices, usage}      a whole answer, or a chunk of a stream
//! {..., choices: [], usage}                         the last chunk, if usage is asked for
//! [DONE]
//! ```

use std::sync::Arc;

use arbora_runtime::request::RequestId;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;

use super::{App, Traced, cache, unix_seconds};
use crate::logprobs::LogprobWriter;
use crate::pipeline::{self, Dialect, Events, KEEP_ALIVE};
use crate::random::random_id;
use crate::served::Served;
use crate::stream::{Explain, Generation};
use crate::wire::error::ApiError;
use crate::wire::options::{Delivery, Options, StreamUsage};
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

/// What is answered.
pub(super) struct Asked<'a> {
    pub(super) options: &'a Options,
    pub(super) headers: &'a HeaderMap,
    /// The first of each prompt.
    pub(super) requests: Vec<RequestId>,
    pub(super) exchange: Traced,
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
    fn new(served: &Served, names: Names, asked: &Asked<'_>, n_choices: usize) -> Self {
        let (object, usage) = match asked.options.delivery {
            Delivery::Whole => (names.whole, StreamUsage::default()),
            Delivery::Stream(usage) => (names.chunk, usage),
        };
        let wants_more = asked
            .headers
            .get("x-arbora-usage")
            .is_some_and(|value| value == "1");
        let tokenizer = Arc::clone(served.encoder.tokenizer());
        Envelope {
            head: Head {
                id: format!("{}-{}", names.prefix, random_id()),
                object,
                created: unix_seconds(),
                model: served.name.clone(),
            },
            explain: if wants_more { Explain::Yes } else { Explain::No },
            usage,
            logprobs: LogprobWriter::new(tokenizer, asked.options.logprobs.clone(), n_choices),
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

/// Answers what was `asked` with the dialect that `dialect` makes of the common part.
pub(super) async fn answer<D: Dialect>(
    (app, served): (&App, &Served),
    mut generation: Generation,
    (names, asked): (Names, Asked<'_>),
    dialect: impl FnOnce(Envelope) -> D,
) -> Result<Response, ApiError> {
    let envelope = Envelope::new(served, names, &asked, generation.n_choices());
    let id = &envelope.head.id;
    cache::note((app, served), id, asked.headers, asked.requests);
    if let Some(Extension(exchange)) = asked.exchange {
        let sampling = asked.options.sampling.with_defaults(&served.sampling)?;
        generation.trace(exchange.generation(id, asked.options, (&served.name, sampling)));
    }
    let dialect = dialect(envelope);
    match asked.options.delivery {
        Delivery::Whole => pipeline::whole(generation, dialect).await,
        Delivery::Stream(_) => Ok(pipeline::stream(generation, dialect, KEEP_ALIVE)),
    }
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
