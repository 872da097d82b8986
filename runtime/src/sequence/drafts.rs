//! Speculative decoding: draft tokens of a sequence, from their proposal to their verification.

use super::Sequence;
use crate::draft::DraftSource;
use crate::request::{FinishReason, RequestError};

impl Sequence {
    /// Takes what was sampled after its last token and after each token of its draft, as far as the draft is
    /// what was sampled. Returns the number of new tokens and what they end.
    pub(crate) fn verify(
        &mut self,
        sampled: &[Option<u32>],
        model_stops: &[u32],
    ) -> (usize, Option<FinishReason>) {
        if self.n_output_left() == 0 {
            // Only the prompt was asked for.
            return (0, Some(FinishReason::Length));
        }
        let (n_drafted, n_before) = (sampled.len() - 1, self.usage.accepted_tokens);
        self.usage.drafted_tokens += n_drafted;
        let verified = self.push_as_drafted(sampled, model_stops);
        self.drafting
            .learn(n_drafted, self.usage.accepted_tokens - n_before);
        if verified.1.is_none() {
            self.redraft();
        }
        verified
    }

    fn push_as_drafted(
        &mut self,
        sampled: &[Option<u32>],
        model_stops: &[u32],
    ) -> (usize, Option<FinishReason>) {
        for (n, token) in sampled.iter().enumerate() {
            let Some(token) = *token else {
                let position = self.n_computed;
                return (n, Some(FinishReason::Error(RequestError::NotFinite { position })));
            };
            let ends = self.push(token, model_stops);
            if ends.is_some() {
                return (n + 1, ends);
            }
            let is_drafted = n + 1 < sampled.len() && self.draft[n] == token;
            if !is_drafted {
                return (n + 1, None);
            }
            // The row of the draft's token was this token's row: its keys and values exist.
            self.n_computed += 1;
            self.usage.accepted_tokens += 1;
        }
        unreachable!("the last row has no draft to agree with")
    }

    fn redraft(&mut self) {
        self.draft.clear();
        self.drafting.source = DraftSource::Grammar;
        if let Some(grammar) = &mut self.request.grammar {
            self.draft = grammar.draft(&self.tokens[self.n_prompt..]);
        }
    }

    /// Where the present draft comes from.
    pub(crate) fn draft_source(&self) -> DraftSource {
        self.drafting.source
    }

    /// How many tokens it wants from the drafter of `source` where a row more costs `row_cost` tokens.
    pub(crate) fn draft_length(&mut self, source: DraftSource, row_cost: f64) -> usize {
        if !self.draft.is_empty() || self.n_output_left() <= 1 {
            return 0;
        }
        let n_output = self.n_output();
        let track = self.drafting.track(source);
        track.map_or(0, |track| track.length(n_output, row_cost))
    }

    /// Takes what the drafter of `source` proposes, as far as the grammar allows it.
    pub(crate) fn take_draft(&mut self, source: DraftSource, draft: Vec<u32>) {
        let n_output = self.n_output();
        if draft.is_empty() {
            if source == DraftSource::Radix
                && let Some(track) = self.drafting.track(source)
            {
                // The tree does not hold this text; it will hardly hold what follows it.
                track.rest(n_output);
            }
            return;
        }
        self.drafting.source = source;
        self.draft = draft;
        if let Some(grammar) = &mut self.request.grammar {
            let n_allowed = grammar.n_allowed(&self.draft);
            self.draft.truncate(n_allowed);
        }
    }
}
