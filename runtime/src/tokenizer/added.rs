//! Tokens that are looked for in the text before it is cut.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

/// Finds, at each place, the longest of the tokens that start there.
pub(super) struct AddedTokens {
    /// Absent where there are no tokens.
    matcher: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl AddedTokens {
    /// Looks for these tokens; one without a text is never found.
    pub(super) fn new(tokens: impl Iterator<Item = (u32, String)>) -> Self {
        let (ids, texts): (Vec<u32>, Vec<String>) = tokens.filter(|(_, text)| !text.is_empty()).unzip();
        let matcher = (!ids.is_empty()).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(texts)
                .expect("the names of a vocabulary that was read are far below the automaton's limits")
        });
        AddedTokens { matcher, ids }
    }

    pub(super) fn find_in(&self, text: &str) -> impl Iterator<Item = (Range<usize>, u32)> {
        let found = self
            .matcher
            .iter()
            .flat_map(move |matcher| matcher.find_iter(text));
        found.map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
    }
}
