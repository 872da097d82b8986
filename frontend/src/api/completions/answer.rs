//! The objects of OpenAI's text completions.
//!
//! ```text
//! whole     {text, logprobs, finish_reason}, the text with its prompt in front where it is to be repeated
//! streamed  {text: prompt}                  per choice, where the prompt is to be repeated
//!           {text, finish_reason}           one per engine step
//! ```

use arbora_runtime::request::RowLogprobs;
use axum::response::Response;

use super::super::openai::Envelope;
use crate::logprobs::LogprobWriter;
use crate::pipeline::{Dialect, Events};
use crate::stream::{Generation, Opening, Piece};
use crate::wire::error::ApiError;
use crate::wire::response::{TextChoice, TextLogprobs, finish_reason};

/// An answer in the making.
#[derive(Debug)]
pub(super) struct TextAnswer {
    envelope: Envelope,
    choices: Vec<Collected>,
}

/// One completion of a whole answer.
#[derive(Clone, Debug, Default)]
struct Collected {
    text: String,
    prompt: Option<Vec<RowLogprobs>>,
    /// Of the output, then of the stop token that ended it.
    logprobs: Vec<RowLogprobs>,
    finish_reason: Option<&'static str>,
}

impl Collected {
    fn into_choice(self, (index, opening): (usize, Opening), writer: &mut LogprobWriter) -> TextChoice {
        let first = opening.first_token;
        let prompt = self.prompt.unwrap_or_default();
        let repeated = if first.is_some() { prompt.as_slice() } else { &[] };
        let rows = [repeated, &self.logprobs].concat();
        let prompt_logprobs = (first.is_none() && writer.awaits_prompt()).then(|| writer.prompt(&prompt));
        TextChoice {
            text: opening.text + &self.text,
            index,
            logprobs: writer.text(index, first, &rows),
            finish_reason: self.finish_reason,
            prompt_logprobs,
        }
    }
}

impl TextAnswer {
    pub(super) fn new(envelope: Envelope, n_choices: usize) -> Self {
        TextAnswer {
            envelope,
            choices: vec![Collected::default(); n_choices],
        }
    }

    /// Writes what the text begins with, with what is known of its tokens.
    fn repeat_prompt(
        &mut self,
        (index, rows): (usize, &[RowLogprobs]),
        generation: &mut Generation,
        events: &mut Events,
    ) {
        let opening = generation.take_opening(index);
        if opening.first_token.is_some() {
            let logprobs = self.envelope.logprobs.text(index, opening.first_token, rows);
            self.envelope
                .chunk(chunk(index, opening.text, logprobs), generation, events);
        }
    }
}

impl Dialect for TextAnswer {
    fn collect(&mut self, piece: Piece, _: &Generation) -> Result<(), ApiError> {
        let choice = &mut self.choices[piece.choice];
        choice.text.push_str(&piece.text);
        choice.logprobs.extend(piece.logprobs);
        choice.logprobs.extend(piece.stop_logprobs);
        if piece.prompt.is_some() {
            choice.prompt = piece.prompt;
        }
        if let Some(reason) = &piece.finish {
            choice.finish_reason = Some(finish_reason(reason, false)?);
        }
        Ok(())
    }

    fn whole(&mut self, generation: &mut Generation) -> Result<Response, ApiError> {
        let collected = std::mem::take(&mut self.choices).into_iter().enumerate();
        let choices = collected.map(|(index, choice)| {
            let opening = generation.take_opening(index);
            choice.into_choice((index, opening), &mut self.envelope.logprobs)
        });
        let choices = choices.collect();
        Ok(self.envelope.whole(choices, None, generation))
    }

    fn open(&mut self, generation: &mut Generation, events: &mut Events) {
        if self.envelope.logprobs.awaits_prompt() {
            return;
        }
        for index in 0..generation.n_choices() {
            self.repeat_prompt((index, &[]), generation, events);
        }
    }

    fn piece(
        &mut self,
        piece: Piece,
        generation: &mut Generation,
        events: &mut Events,
    ) -> Result<(), ApiError> {
        let index = piece.choice;
        let reason = piece.finish.as_ref();
        let reason = reason.map(|reason| finish_reason(reason, false)).transpose()?;
        if let Some(rows) = &piece.prompt {
            self.repeat_prompt((index, rows), generation, events);
        }
        let rows = [piece.logprobs, piece.stop_logprobs].concat();
        if piece.text.is_empty() && rows.is_empty() && reason.is_none() {
            return Ok(());
        }
        let mut logprobs = None;
        if !rows.is_empty() {
            logprobs = self.envelope.logprobs.text(index, None, &rows);
        }
        let told = TextChoice {
            finish_reason: reason,
            ..chunk(index, piece.text, logprobs)
        };
        self.envelope.chunk(told, generation, events);
        Ok(())
    }

    fn close(&mut self, generation: &Generation, events: &mut Events) {
        self.envelope.close(generation, events);
    }
}

fn chunk(index: usize, text: String, logprobs: Option<TextLogprobs>) -> TextChoice {
    TextChoice {
        text,
        index,
        logprobs,
        finish_reason: None,
        prompt_logprobs: None,
    }
}

#[cfg(test)]
mod tests {
    use arbora_runtime::request::FinishReason;

    use super::super::super::openai::testing::envelope;
    use super::*;
    use crate::pipeline::{self, KEEP_ALIVE};
    use crate::stream::testing::{body, finished, generation, tokens};
    use crate::wire::options::StreamUsage;

    #[tokio::test]
    async fn a_stream_has_no_opening_unless_it_echoes_and_no_usage_unless_asked() {
        for (opening, n_events) in [("", 2), ("Once", 3)] {
            let script = vec![tokens(1, "Hi"), finished(FinishReason::StopToken(9))];
            let (mut generation, _senders) = generation(vec![script], 1);
            generation.open_with(
                0,
                Opening {
                    text: opening.to_owned(),
                    first_token: (!opening.is_empty()).then_some(0),
                },
            );
            let answer = TextAnswer::new(envelope(StreamUsage::default(), 1), 1);
            let body = body(pipeline::stream(generation, answer, KEEP_ALIVE)).await;
            let events: Vec<_> = body.split_terminator("\n\n").collect();
            assert_eq!(events.len(), n_events + 1, "{body}");
            assert!(!body.contains("usage"), "{body}");
            let last = r#"data: {"id":"id","object":"o","created":7,"model":"m","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]}"#;
            assert_eq!(events[n_events - 1], last);
        }
    }
}
