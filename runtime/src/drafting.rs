//! Speculative decoding: the phase of a step that proposes draft tokens, for all its sequences at once.
//!
//! ```text
//! commit -> plan rows -> propose -> plan drafts (rows and pages) -> forward pass -> verify -> commit
//!
//! grammar  what the grammar forces, from when the last token was verified; all others leave it alone
//! radix    what the prefix tree holds after this very text: somebody asked the same before
//! ngram    what followed the last few tokens the last time they stood in this text
//! ```
//!
//! A draft changes no output (contract C7).

use arbora_radix::Namespace;

use crate::cache::PrefixCache;
use crate::draft::{DraftSource, Drafters};
use crate::plan::Plan;
use crate::sequence::Sequences;

/// What a drafter sees of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SequenceView<'a> {
    /// Prompt and output.
    pub(crate) tokens: &'a [u32],
    pub(crate) namespace: &'a Namespace,
    /// Most tokens of the draft.
    pub(crate) n_wanted: usize,
}

/// Who proposes tokens.
pub(crate) trait Drafter {
    /// Appends to each draft what probably comes next in the sequence of the same index: at most as many
    /// tokens as are wanted.
    fn propose(&mut self, sequences: &[SequenceView<'_>], drafts: &mut [Vec<u32>]);
}

/// Continuations that the prefix tree holds.
struct RadixDrafter<'a>(&'a PrefixCache);

impl Drafter for RadixDrafter<'_> {
    fn propose(&mut self, sequences: &[SequenceView<'_>], drafts: &mut [Vec<u32>]) {
        for (sequence, draft) in sequences.iter().zip(drafts) {
            let SequenceView {
                tokens,
                namespace,
                n_wanted,
            } = *sequence;
            draft.extend(self.0.continuation(namespace, tokens, n_wanted));
        }
    }
}

/// Continuations that the text itself holds.
struct NgramDrafter;

impl Drafter for NgramDrafter {
    fn propose(&mut self, sequences: &[SequenceView<'_>], drafts: &mut [Vec<u32>]) {
        for (sequence, draft) in sequences.iter().zip(drafts) {
            draft.extend_from_slice(ngram(sequence.tokens, sequence.n_wanted));
        }
    }
}

/// Makes drafts for the sequences of `plan` that get a token and have none. A row more costs `row_cost`
/// tokens.
pub(crate) fn propose(
    plan: &Plan,
    sequences: &mut Sequences,
    (drafters, cache): (Drafters, &PrefixCache),
    row_cost: f64,
) {
    if drafters.radix {
        let source = DraftSource::Radix;
        propose_by(&mut RadixDrafter(cache), source, plan, sequences, row_cost);
    }
    if drafters.ngram {
        propose_by(&mut NgramDrafter, DraftSource::Ngram, plan, sequences, row_cost);
    }
}

fn propose_by(
    drafter: &mut impl Drafter,
    source: DraftSource,
    plan: &Plan,
    sequences: &mut Sequences,
    row_cost: f64,
) {
    let mut asked = Vec::new();
    for rows in plan.rows.iter().filter(|rows| rows.n_sampled() > 0) {
        let n_wanted = sequences[rows.slot].draft_length(source, row_cost);
        if n_wanted > 0 {
            asked.push((rows.slot, n_wanted));
        }
    }
    let views = asked.iter().map(|&(slot, n_wanted)| SequenceView {
        tokens: &sequences[slot].tokens,
        namespace: sequences[slot].namespace(),
        n_wanted,
    });
    let views: Vec<SequenceView<'_>> = views.collect();
    let mut drafts = vec![Vec::new(); views.len()];
    drafter.propose(&views, &mut drafts);
    for ((slot, _), draft) in asked.into_iter().zip(drafts) {
        sequences[slot].take_draft(source, draft);
    }
}

/// Shortest run of tokens that must have stood in the text before.
const MIN_MATCH: usize = 3;

/// A run this long is as good as any longer one.
const GOOD_MATCH: usize = 12;

/// Tokens looked at, newest first.
const WINDOW: usize = 32 << 10;

/// What followed the longest earlier run of tokens that `tokens` end with: at most `n_wanted` tokens. Among
/// equals the newest.
fn ngram(tokens: &[u32], n_wanted: usize) -> &[u32] {
    let Some((&last, before)) = tokens.split_last() else {
        return &[];
    };
    let (mut best, mut n_best) = (None, MIN_MATCH - 1);
    let first = before.len().saturating_sub(WINDOW);
    for idx in (first..before.len()).rev() {
        if before[idx] != last {
            continue;
        }
        let ends = before.iter().rev().zip(before[..idx].iter().rev());
        let n_equal = 1 + ends.take(GOOD_MATCH - 1).take_while(|(a, b)| a == b).count();
        if n_equal > n_best {
            (best, n_best) = (Some(idx + 1), n_equal);
            if n_equal == GOOD_MATCH {
                break;
            }
        }
    }
    match best {
        Some(start) => &tokens[start..tokens.len().min(start + n_wanted)],
        None => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_earlier_run_is_continued_and_of_equals_the_newest() {
        let tokens = [9, 1, 2, 3, 4, 5, 8, 1, 2, 3, 6, 7, 0, 2, 3, 9, 1, 2, 3];
        assert_eq!(ngram(&tokens, 2), [4, 5], "9 1 2 3 is longer than 8 1 2 3");
        assert_eq!(ngram(&tokens[1..], 2), [6, 7], "1 2 3 stood twice");
        assert_eq!(
            ngram(&[5, 5, 5, 5, 5], 9),
            [5],
            "a draft ends where the text does"
        );
        for tokens in [&[][..], &[1], &[1, 2, 1, 2], &[1, 2, 3, 4]] {
            assert_eq!(ngram(tokens, 4), [] as [u32; 0], "{tokens:?}");
        }
    }
}
