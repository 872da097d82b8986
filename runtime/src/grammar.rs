//! Constrained decoding: the masks of a running output, and drafts of the text that its grammar forces.
//!
//! ```text
//! rows of a step:   last token | draft 0 | draft 1 | ...
//! masks:                 0          1         2            one per row, for the token that follows it
//! ```
//!
//! Text that the grammar forces is proposed as a draft, spelled as the tokenizer would spell it, and the
//! model verifies it like any other draft: every token is still sampled from its masked distribution, so
//! the draft saves forward passes and changes nothing else (contract C7).

use std::fmt;
use std::sync::Arc;

use arbora_constrained::{Grammar, MatchError, Matcher, TokenMask};
use arbora_kernels::Allowed;

/// From text to tokens, as the model's tokenizer does it. The text is any bytes of an output.
pub type Tokenize = Arc<dyn Fn(&[u8]) -> Vec<u32> + Send + Sync>;

/// Committed tokens that forced text is tokenised together with, so that a token may not span the seam.
const N_RECENT: usize = 4;

/// A grammar and how far the output has come in it. A clone is an output of its own.
#[derive(Clone)]
pub struct GrammarState {
    matcher: Matcher,
    tokenize: Tokenize,
    /// Of the rows of this step.
    masks: Vec<Arc<TokenMask>>,
    /// Of the same rows, where the grammar asks for them.
    temperatures: Vec<Option<f32>>,
    n_vocab: usize,
    n_eos: usize,
}

impl GrammarState {
    /// An output of `grammar` that has not begun.
    pub fn new(grammar: &Grammar, tokenize: Tokenize) -> Self {
        let vocabulary = grammar.vocabulary();
        GrammarState {
            matcher: grammar.matcher(),
            tokenize,
            masks: Vec::new(),
            temperatures: Vec::new(),
            n_vocab: vocabulary.n_vocab() as usize,
            n_eos: vocabulary.eos().len(),
        }
    }

    /// Tokens of the vocabulary it was made for.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Prepares the masks of the next row and of a row for each token of `draft`, all of which may follow.
    pub(crate) fn fill_masks(&mut self, draft: &[u32]) {
        self.masks.clear();
        self.temperatures.clear();
        self.prepare_row();
        for &token in draft {
            self.matcher
                .advance(token)
                .expect("a draft has only what may follow");
            self.prepare_row();
        }
        self.matcher
            .rollback(draft.len())
            .expect("what was just taken can be taken back");
    }

    fn prepare_row(&mut self) {
        self.masks.push(self.matcher.mask());
        self.temperatures.push(self.matcher.temperature());
    }

    /// The temperature that the grammar asks for in row `row` of this step, if it asks for one.
    pub(crate) fn temperature(&self, row: usize) -> Option<f32> {
        self.temperatures.get(row).copied().flatten()
    }

    /// What row `row` of this step may become.
    pub(crate) fn allowed(&self, row: usize) -> Allowed<'_> {
        let mask = &self.masks[row];
        match (mask.ids(), mask.words()) {
            (Some(ids), _) => Allowed::Ids(ids),
            (None, Some(words)) => Allowed::Bits(words),
            (None, None) => unreachable!("a mask is a list or bits"),
        }
    }

    /// Follows the output.
    pub(crate) fn advance(&mut self, token: u32) -> Result<(), MatchError> {
        self.matcher.advance(token)
    }

    /// Whether nothing but the end of the text may come.
    pub(crate) fn is_complete(&mut self) -> bool {
        self.matcher.is_accepting() && self.matcher.mask().n_allowed() <= self.n_eos
    }

    /// How many of the first tokens of `draft` may follow the output.
    pub(crate) fn n_allowed(&mut self, draft: &[u32]) -> usize {
        let allowed = |token: &&u32| self.matcher.advance(**token).is_ok();
        let n_allowed = draft.iter().take_while(allowed).count();
        self.matcher
            .rollback(n_allowed)
            .expect("what was just taken can be taken back");
        n_allowed
    }

    /// Tokens that probably come next: forced text, after `output`.
    pub(crate) fn draft(&mut self, output: &[u32]) -> Vec<u32> {
        let recent = &output[output.len().saturating_sub(N_RECENT)..];
        let mut draft = self.matcher.forced(recent, |text| (self.tokenize)(text));
        if draft.is_empty() && !recent.is_empty() {
            // An output that is not spelled as the tokenizer would is likely to go on from where it stands.
            draft = self.matcher.forced(&[], |text| (self.tokenize)(text));
        }
        draft
    }
}

impl fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarState")
            .field("n_tokens", &self.matcher.n_tokens())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use arbora_constrained::{Limits, SchemaOptions, Vocabulary};

    use super::*;

    /// An output of a grammar in Lark, where every byte is a token.
    fn state(text: &str) -> GrammarState {
        let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None]);
        let vocabulary = Arc::new(Vocabulary::new(tokens, &[256]).expect("257 tokens"));
        let (options, limits) = (SchemaOptions::default(), Limits::default());
        let grammar = Grammar::compile_lark(&vocabulary, text, &options, &limits).expect("it is valid");
        let bytes = |text: &[u8]| text.iter().map(|byte| u32::from(*byte)).collect();
        GrammarState::new(&grammar, Arc::new(bytes))
    }

    #[test]
    fn nothing_is_drafted_where_a_limit_of_tokens_may_end_a_part() {
        let mut state = state("start: \"qr\" x \"yz\"\nx[max_tokens=2]: \"abcd\"");
        let draft = state.draft(&[]);
        assert_eq!(draft, b"qr".map(u32::from));
        state.fill_masks(&draft);
        for token in draft.into_iter().chain(b"ab".map(u32::from)) {
            assert!(state.n_allowed(&[token]) == 1);
            state.advance(token).expect("it may come");
            if token == u32::from(b'a') {
                assert!(state.draft(&[]).is_empty());
            }
        }
        assert_eq!(state.draft(&[]), b"yz".map(u32::from));
    }

    #[test]
    fn each_row_of_a_draft_has_the_temperature_of_its_place_in_the_grammar() {
        let mut state = state("start: \"a\" x\nx[temperature=0.5]: /b+/");
        assert_eq!(state.temperature(0), None, "nothing is prepared");
        let draft = b"ab".map(u32::from);
        state.fill_masks(&draft);
        assert_eq!(
            [0, 1, 2].map(|row| state.temperature(row)),
            [None, Some(0.5), Some(0.5)]
        );
    }
}
