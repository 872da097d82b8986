//! Streaming: the engine's events become pieces of text, thoughts and tool calls.
//!
//! A whole answer and a streamed one are made of the same pieces, so they say the same. Dropping a
//! [`Generation`] closes its channels, which is how the engine learns that nobody listens any more.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use arbora_constrained::Relaxed;
use arbora_runtime::progress::Progress;
use arbora_runtime::request::{Event, FinishReason, Finished, RequestError, RowLogprobs, Usage};
use axum::http::HeaderMap;
use tokio::sync::mpsc;

use crate::otlp::exchange::{Ending, GenerationSpan};
use crate::thinking::{Answer, Thinking, ThinkingParser, Thoughts};
use crate::tools::{CallParser, CallPiece, CallStyle};
use crate::wire::response::{
    ArboraBody, CompletionTokensDetails, Explanation, PromptTokensDetails, RelaxedBody, UsageBody,
    finish_reason,
};

/// One completion on its way.
#[derive(Debug)]
pub struct Choice {
    /// What the engine says.
    pub events: mpsc::Receiver<Event>,
    /// Takes the thoughts out of the text, where there may be any.
    pub thinking: Option<ThinkingParser>,
    /// Finds calls of tools in the rest, where there may be any.
    pub calls: Option<CallParser>,
    /// What the text starts with.
    pub opening: Opening,
    /// How far it came, where that is traced.
    pub progress: Option<Arc<Progress>>,
}

/// What comes before an output: the prompt, if it is to be repeated.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// Its text, or nothing.
    pub text: String,
    /// Its first token, if it is repeated.
    pub first_token: Option<u32>,
}

/// What was handed to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Completions per prompt; those of one prompt are neighbours.
    pub n: usize,
    /// From when the engine counts their times.
    pub arrived: Instant,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
}

impl Submission {
    /// `n` completions of each prompt, as of now.
    pub fn new(n: usize, prompt_tokens: usize) -> Self {
        let arrived = Instant::now();
        Submission {
            n,
            arrived,
            prompt_tokens,
        }
    }
}

/// All completions of one HTTP request.
#[derive(Debug)]
pub struct Generation {
    choices: Vec<Choice>,
    finished: Vec<Option<Finished>>,
    /// Tokens that came so far, stop tokens included.
    n_tokens: Vec<usize>,
    submission: Submission,
    /// Where thoughts go that are told from the text.
    thoughts: Thoughts,
    /// What the request asked for and is not enforced.
    relaxed: Vec<RelaxedBody>,
    /// Where to look first, so that a fast choice cannot hide the others.
    next: usize,
    /// Learns how it ends, where that is traced.
    span: Option<GenerationSpan>,
}

/// What one event added to one completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Which completion.
    pub choice: usize,
    /// Log-probabilities of its prompt, if they came.
    pub prompt: Option<Vec<RowLogprobs>>,
    /// Tokens of the output that came, stop tokens left out.
    pub tokens: Vec<u32>,
    /// New thoughts, perhaps none.
    pub reasoning: String,
    /// New text, perhaps none.
    pub text: String,
    /// Log-probabilities of the tokens that came, if wanted. Text may be held back longer than they are.
    pub logprobs: Vec<RowLogprobs>,
    /// Those of the stop token that ended it, if one did.
    pub stop_logprobs: Vec<RowLogprobs>,
    /// New parts of tool calls.
    pub calls: Vec<CallPiece>,
    /// Why it ended, if it did.
    pub finish: Option<FinishReason>,
}

impl Choice {
    /// A completion of which `events` tell, all of it text.
    pub fn new(events: mpsc::Receiver<Event>) -> Self {
        Choice {
            events,
            thinking: None,
            calls: None,
            opening: Opening::default(),
            progress: None,
        }
    }
}

impl Generation {
    /// `choices` are in the order of their index, `n` of each prompt.
    pub fn new(choices: Vec<Choice>, submission: Submission) -> Self {
        let n = submission.n;
        assert!(
            n > 0 && choices.len().is_multiple_of(n),
            "{} choices, {n} per prompt",
            choices.len()
        );
        Generation {
            finished: vec![None; choices.len()],
            n_tokens: vec![0; choices.len()],
            choices,
            submission,
            thoughts: Thoughts::default(),
            relaxed: Vec::new(),
            next: 0,
            span: None,
        }
    }

    /// Tells `span` how it ends.
    pub(crate) fn trace(&mut self, span: GenerationSpan) {
        self.span = Some(span);
    }

    /// Has usage tell what is not enforced.
    pub(crate) fn note_relaxed(&mut self, relaxed: Vec<Relaxed>) {
        let told = relaxed
            .into_iter()
            .map(|Relaxed { pointer, keyword, .. }| RelaxedBody { pointer, keyword });
        self.relaxed = told.collect();
    }

    /// Number of completions.
    pub fn n_choices(&self) -> usize {
        self.choices.len()
    }

    /// Takes the thoughts out of all completions, and leaves them out altogether if so wanted.
    pub fn read_thinking(&mut self, thinking: Thinking, answer: Answer, thoughts: Thoughts) {
        self.thoughts = thoughts;
        for choice in &mut self.choices {
            let is_there = thinking != Thinking::None;
            choice.thinking = is_there.then(|| ThinkingParser::new(thinking, answer));
        }
    }

    /// Looks for calls of tools in all completions.
    pub fn read_calls(&mut self, style: &CallStyle) {
        for choice in &mut self.choices {
            choice.calls = Some(CallParser::new(style.clone()));
        }
    }

    /// Whether completions may call tools.
    pub fn may_call(&self) -> bool {
        self.choices.iter().any(|choice| choice.calls.is_some())
    }

    /// Whether completion `idx` has called a tool.
    pub fn has_called(&self, idx: usize) -> bool {
        let calls = self.choices[idx].calls.as_ref();
        calls.is_some_and(|calls| calls.n_calls() > 0)
    }

    /// What the engine said at the end of completion `idx`.
    pub fn finished(&self, idx: usize) -> Option<&Finished> {
        self.finished[idx].as_ref()
    }

    /// Takes what the text of completion `idx` starts with.
    pub fn take_opening(&mut self, idx: usize) -> Opening {
        std::mem::take(&mut self.choices[idx].opening)
    }

    /// The next piece of any completion; `None` when all have ended. Loses nothing if it is dropped half-way.
    pub async fn next(&mut self) -> Option<Piece> {
        if self.finished.iter().all(Option::is_some) {
            return None;
        }
        let (choice, event) = poll_fn(|context| {
            for i in 0..self.choices.len() {
                let choice = (self.next + i) % self.choices.len();
                if self.finished[choice].is_some() {
                    continue;
                }
                if let Poll::Ready(event) = self.choices[choice].events.poll_recv(context) {
                    return Poll::Ready((choice, event));
                }
            }
            Poll::Pending
        })
        .await;
        self.next = choice + 1;
        Some(self.take(choice, event))
    }

    fn take(&mut self, idx: usize, event: Option<Event>) -> Piece {
        let choice = &mut self.choices[idx];
        let mut text = String::new();
        let (mut prompt, mut tokens) = (None, Vec::new());
        let (mut logprobs, mut stop_logprobs) = (Vec::new(), Vec::new());
        let finish = match event {
            Some(Event::Prompt(rows)) => {
                prompt = Some(rows);
                None
            }
            Some(Event::Tokens(new)) => {
                self.n_tokens[idx] += new.ids.len();
                (tokens, logprobs, text) = (new.ids, new.logprobs, new.text);
                if new.ends_with_stop {
                    tokens.pop();
                    stop_logprobs.extend(logprobs.pop());
                }
                None
            }
            ended => {
                let mut finished = match ended {
                    Some(Event::Finished(finished)) => finished,
                    // An engine that is gone without a word.
                    _ => Finished {
                        reason: FinishReason::Error(RequestError::EngineFailed),
                        text: String::new(),
                        usage: Usage::default(),
                    },
                };
                text = std::mem::take(&mut finished.text);
                let reason = finished.reason.clone();
                self.finished[idx] = Some(finished);
                Some(reason)
            }
        };
        let mut reasoning = String::new();
        if let Some(parser) = &mut choice.thinking {
            let mut thought = parser.push(&text);
            if finish.is_some() {
                let rest = parser.finish();
                thought.reasoning.push_str(&rest.reasoning);
                thought.content.push_str(&rest.content);
            }
            text = thought.content;
            if self.thoughts == Thoughts::Apart {
                reasoning = thought.reasoning;
            }
        }
        let mut calls = Vec::new();
        if let Some(parser) = &mut choice.calls {
            (text, calls) = parser.push(&text);
            if finish.is_some() {
                text.push_str(&parser.finish());
            }
        }
        Piece {
            choice: idx,
            prompt,
            tokens,
            reasoning,
            text,
            logprobs,
            stop_logprobs,
            calls,
            finish,
        }
    }

    /// What is known of a completion that has not ended, of which `n_tokens` came.
    fn usage_so_far(&self, choice: &Choice, n_tokens: usize) -> Usage {
        let progress = choice.progress.as_deref();
        let total_us = self.submission.arrived.elapsed().as_micros();
        Usage {
            completion_tokens: n_tokens,
            queue_us: progress.map_or(0, Progress::queue_us),
            ttft_us: progress.map_or(0, Progress::ttft_us),
            total_us: u64::try_from(total_us).unwrap_or(u64::MAX),
            ..Usage::default()
        }
    }

    /// Counts of what came so far. What was cached is known at the end.
    pub fn usage_now(&self) -> UsageBody {
        let prompt_tokens = self.submission.prompt_tokens;
        let completion_tokens = self.n_tokens.iter().sum();
        UsageBody {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            ..UsageBody::default()
        }
    }

    /// Counts over all completions that have ended.
    pub fn usage(&self, explain: Explain) -> UsageBody {
        let ended = || self.finished.iter().flatten().map(|f| &f.usage);
        let prompts = || {
            self.finished
                .iter()
                .step_by(self.submission.n)
                .flatten()
                .map(|f| &f.usage)
        };
        let prompt_tokens: usize = prompts().map(|u| u.prompt_tokens).sum();
        let cached_tokens: usize = prompts().map(|u| u.cached_tokens).sum();
        let completion_tokens: usize = ended().map(|u| u.completion_tokens).sum();
        let drafted_tokens: usize = ended().map(|u| u.drafted_tokens).sum();
        let accepted_tokens: usize = ended().map(|u| u.accepted_tokens).sum();
        let first = prompts().next().copied().unwrap_or_default();
        let explanation = Explanation {
            cached_tokens,
            copied_tokens: prompts().map(|u| u.copied_tokens).sum(),
            computed_tokens: prompt_tokens - cached_tokens,
            drafted_tokens,
            accepted_tokens,
            preemptions: ended().map(|u| u.n_preemptions).sum(),
            queue_ms: first.queue_us as f64 / 1e3,
            ttft_ms: first.ttft_us as f64 / 1e3,
        };
        UsageBody {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens }),
            completion_tokens_details: (drafted_tokens > 0).then_some(CompletionTokensDetails {
                accepted_prediction_tokens: accepted_tokens,
                rejected_prediction_tokens: drafted_tokens - accepted_tokens,
            }),
            arbora: (explain == Explain::Yes || !self.relaxed.is_empty()).then(|| ArboraBody {
                explanation: (explain == Explain::Yes).then_some(explanation),
                relaxed: self.relaxed.clone(),
            }),
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let Some(span) = self.span.take() else {
            return;
        };
        let is_whole = self.finished.iter().all(Option::is_some);
        let usage = is_whole.then(|| self.usage(Explain::Yes));
        let endings = self.choices.iter().zip(&self.finished).enumerate();
        let endings = endings.map(|(idx, (choice, finished))| match finished {
            Some(finished) => Ending {
                reason: Some(finish_reason(&finished.reason, self.has_called(idx))),
                usage: finished.usage,
            },
            None => Ending {
                reason: None,
                usage: self.usage_so_far(choice, self.n_tokens[idx]),
            },
        });
        let endings = endings.collect();
        span.end(self.submission, endings, usage);
    }
}

/// Whether `usage` carries the `arbora` object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explain {
    /// Only what every client knows.
    No,
    /// The client asked for more.
    Yes,
}

impl Explain {
    /// What the header `x-arbora-usage` of a request says.
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get("x-arbora-usage") {
            Some(value) if value == "1" => Explain::Yes,
            _ => Explain::No,
        }
    }
}

/// Generations without an engine.
#[cfg(test)]
pub(crate) mod testing {
    use arbora_runtime::request::NewTokens;
    use axum::response::Response;
    use http_body_util::BodyExt;

    use super::*;

    /// A generation of `n` choices per prompt over channels that hold these events already, and the engine's
    /// ends of them.
    pub(crate) fn generation(scripts: Vec<Vec<Event>>, n: usize) -> (Generation, Vec<mpsc::Sender<Event>>) {
        let choice = |script: Vec<Event>| {
            let (sender, events) = mpsc::channel(16);
            for event in script {
                sender.try_send(event).expect("there is room");
            }
            (Choice::new(events), sender)
        };
        let (choices, senders) = scripts.into_iter().map(choice).unzip();
        (Generation::new(choices, Submission::new(n, 0)), senders)
    }

    /// `n` tokens, with the text that became certain.
    pub(crate) fn tokens(n: usize, text: &str) -> Event {
        Event::Tokens(NewTokens {
            ids: vec![0; n],
            text: text.to_owned(),
            ..NewTokens::default()
        })
    }

    /// The end of an output of two tokens.
    pub(crate) fn finished(reason: FinishReason) -> Event {
        finished_with(reason, (5, 4), "")
    }

    /// The same after a prompt of so many tokens, so many of them cached, with text that was held back.
    pub(crate) fn finished_with(
        reason: FinishReason,
        (prompt_tokens, cached_tokens): (usize, usize),
        text: &str,
    ) -> Event {
        let usage = Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens: 2,
            ..Usage::default()
        };
        Event::Finished(Finished {
            reason,
            text: text.to_owned(),
            usage,
        })
    }

    impl Generation {
        /// Gives completion `idx` something to start with.
        pub(crate) fn open_with(&mut self, idx: usize, opening: Opening) {
            self.choices[idx].opening = opening;
        }
    }

    /// All of a response's body.
    pub(crate) async fn body(response: Response) -> String {
        let body = response.into_body().collect().await.expect("no errors in it");
        String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use arbora_runtime::request::{NewTokens, TokenLogprob};

    use super::testing::{finished_with, generation};
    use super::*;

    fn tokens(ids: &[u32], text: &str) -> Event {
        Event::Tokens(NewTokens {
            ids: ids.to_vec(),
            text: text.to_owned(),
            ..NewTokens::default()
        })
    }

    async fn pieces(mut generation: Generation) -> (Vec<Piece>, Generation) {
        let mut pieces = Vec::new();
        while let Some(piece) = generation.next().await {
            pieces.push(piece);
        }
        (pieces, generation)
    }

    fn text_of(pieces: &[Piece], choice: usize) -> String {
        pieces
            .iter()
            .filter(|p| p.choice == choice)
            .map(|p| p.text.as_str())
            .collect()
    }

    #[tokio::test]
    async fn the_stop_token_is_no_part_of_the_output_but_counts() {
        let row = |token| RowLogprobs {
            token: TokenLogprob {
                token,
                logprob: -1.0,
                rank: 1,
            },
            top: Vec::new(),
            listed: Vec::new(),
        };
        let script = vec![
            tokens(&[5, 2], "a"),
            Event::Tokens(NewTokens {
                ids: vec![1, 5],
                ends_with_stop: true,
                text: "b".to_owned(),
                logprobs: vec![row(1), row(5)],
            }),
            finished_with(FinishReason::StopToken(5), (3, 1), "held"),
        ];
        let (pieces, generation) = pieces(generation(vec![script], 1).0).await;
        let told: Vec<_> = pieces
            .iter()
            .map(|p| (p.text.as_str(), p.tokens.as_slice()))
            .collect();
        assert_eq!(told, [("a", &[5, 2][..]), ("b", &[1]), ("held", &[])]);
        assert_eq!(
            (&pieces[1].logprobs, &pieces[1].stop_logprobs),
            (&vec![row(1)], &vec![row(5)])
        );
        assert_eq!(pieces[2].finish, Some(FinishReason::StopToken(5)));
        assert_eq!(generation.usage_now().completion_tokens, 4);
    }

    #[tokio::test]
    async fn every_choice_is_heard_and_prompts_are_counted_once() {
        let script = |n| {
            vec![
                tokens(&vec![0; n], &"a".repeat(n)),
                finished_with(FinishReason::Length, (10, 4), ""),
            ]
        };
        let (pieces, generation) = pieces(generation((1..=4).map(script).collect(), 2).0).await;
        for choice in 0..4 {
            assert_eq!(text_of(&pieces, choice).len(), choice + 1);
            assert_eq!(
                pieces
                    .iter()
                    .filter(|p| p.choice == choice && p.finish.is_some())
                    .count(),
                1
            );
        }
        let usage = generation.usage(Explain::Yes);
        assert_eq!(
            (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
            (20, 8, 28)
        );
        assert_eq!(usage.prompt_tokens_details.expect("all ended").cached_tokens, 8);
        let explained = usage.arbora.and_then(|told| told.explanation).expect("asked for");
        assert_eq!(explained.computed_tokens, 12);
        assert!(generation.usage(Explain::No).arbora.is_none());
    }

    #[tokio::test]
    async fn an_engine_that_vanishes_is_an_error() {
        let (abandoned, senders) = generation(vec![vec![tokens(&[0], "a")]], 1);
        drop(senders);
        let (pieces, _) = pieces(abandoned).await;
        let last = pieces.last().expect("there is an end");
        assert_eq!(last.finish, Some(FinishReason::Error(RequestError::EngineFailed)));
    }
}
