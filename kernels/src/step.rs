//! Inputs and answers of one step of the engine: index arrays, how tokens are drawn, what was drawn.

use std::sync::Arc;

use crate::{HeadLayout, KvShape};

/// What a batch is made for: nothing it holds grows beyond this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// The model's heads.
    pub heads: HeadLayout,
    /// The pool its slots and pages are in.
    pub kv: KvShape,
    /// Most rows.
    pub max_rows: usize,
    /// Most rows whose logits are wanted.
    pub max_logit_rows: usize,
    /// Most sequences.
    pub max_sequences: usize,
    /// Most pages of all their tables together.
    pub max_pages: usize,
}

/// The consecutive query rows of one sequence in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// Index of the sequence's first row in the batch's tensors.
    pub first_row: usize,
    /// Number of rows, at least one.
    pub n_rows: usize,
    /// Position of the first row. Row `i` sees the `first_position + i + 1` oldest tokens: its KV limit.
    pub first_position: usize,
    /// Where the sequence's page table starts in [`StepRows::page_tables`].
    pub first_page: usize,
    /// Pages in its table: `n_pages * page_size >= first_position + n_rows`.
    pub n_pages: usize,
}

/// The index arrays of one step, on the host. Row `r` is token `ids[r]` at position `positions[r]` of its
/// sequence. Sequences whose tables start with the same page ids share that prefix, and a backend may then
/// load it once for all of them.
#[derive(Clone, Copy, Debug)]
pub struct StepRows<'a> {
    /// Token of each row.
    pub ids: &'a [u32],
    /// Position of each row.
    pub positions: &'a [u32],
    /// KV slot of each row: `page * page_size + offset`.
    pub slots: &'a [u32],
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: &'a [u32],
    /// In order of `first_row`, without gaps.
    pub sequences: &'a [SequenceRows],
    /// Page tables of all sequences, one after the other.
    pub page_tables: &'a [u32],
}

impl StepRows<'_> {
    /// Panics with the numbers unless the arrays fit each other and `shape`.
    pub fn check(&self, shape: &BatchShape) {
        let n_rows = self.ids.len();
        assert_eq!((self.positions.len(), self.slots.len()), (n_rows, n_rows), "rows");
        assert!(
            n_rows <= shape.max_rows
                && self.logit_rows.len() <= shape.max_logit_rows
                && self.sequences.len() <= shape.max_sequences
                && self.page_tables.len() <= shape.max_pages,
            "{n_rows} rows, {} with logits, of {} sequences with {} pages in a batch for {shape:?}",
            self.logit_rows.len(),
            self.sequences.len(),
            self.page_tables.len()
        );
        let KvShape {
            page_size, n_pages, ..
        } = shape.kv;
        let mut first_row = 0;
        for sequence in self.sequences {
            assert_eq!(
                sequence.first_row, first_row,
                "rows of sequences follow each other"
            );
            assert!(
                sequence.n_rows > 0
                    && sequence.n_pages * page_size >= sequence.first_position + sequence.n_rows,
                "pages of {sequence:?}"
            );
            let pages = &self.page_tables[sequence.first_page..][..sequence.n_pages];
            assert!(
                pages.iter().all(|page| (*page as usize) < n_pages),
                "a page of {sequence:?} is beyond {n_pages}"
            );
            first_row += sequence.n_rows;
        }
        assert_eq!(first_row, n_rows, "rows of all sequences");
        let n_slots = n_pages * page_size;
        assert!(
            self.slots.iter().all(|slot| (*slot as usize) < n_slots),
            "a slot is beyond {n_slots}"
        );
        assert!(
            self.logit_rows.iter().all(|row| (*row as usize) < n_rows),
            "a row whose logits are wanted is beyond {n_rows}"
        );
    }
}

/// Which tokens a row may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed<'a> {
    /// Every token.
    All,
    /// These, ascending.
    Ids(&'a [u32]),
    /// Those whose bit is set: token `t` is bit `t % 64` of word `t / 64`; at least a bit for every token.
    Bits(&'a [u64]),
}

/// What the logit `l` of a token becomes before a row is drawn from:
/// `(if l > 0 { l / divisor } else { l * divisor }) + shift`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjustment {
    /// Whose logit.
    pub token: u32,
    /// 1 changes nothing; above 1 makes the token less likely.
    pub divisor: f32,
    /// Minus infinity takes the token out.
    pub shift: f32,
}

impl Adjustment {
    /// The adjusted logit, in f32.
    pub fn apply(&self, logit: f32) -> f32 {
        let divided = if logit > 0.0 {
            logit / self.divisor
        } else {
            logit * self.divisor
        };
        divided + self.shift
    }
}

/// A token whose log-probability is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scored {
    /// The one that is drawn from the same row in the same call.
    Drawn,
    /// This one.
    Token(u32),
}

impl Scored {
    /// The token, `drawn` being what was drawn from the row.
    pub fn token(self, drawn: Option<u32>) -> Option<u32> {
        match self {
            Scored::Drawn => drawn,
            Scored::Token(token) => Some(token),
        }
    }
}

/// Asks for the log-probabilities of one row of logits as the model gave them: not restricted, not adjusted,
/// at temperature 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogprobRow {
    /// Index of the row.
    pub row: usize,
    /// The token to look up.
    pub token: Scored,
    /// How many of the likeliest tokens to list besides.
    pub n_top: usize,
    /// Further tokens to look up.
    pub listed: Arc<[u32]>,
}

/// How likely a token was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Which token.
    pub token: u32,
    /// Natural logarithm of its probability; minus infinity where its logit is not finite.
    pub logprob: f32,
    /// 1 for the likeliest: one more than the number of larger logits.
    pub rank: u32,
}

/// What a [`LogprobRow`] asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct RowLogprobs {
    /// The token that was asked for.
    pub token: TokenLogprob,
    /// The likeliest tokens, likeliest first, among equals the smaller id.
    pub top: Vec<TokenLogprob>,
    /// Log-probabilities of the further tokens, in the order in which they were asked for.
    pub listed: Vec<f32>,
}

/// How one row of logits becomes a token. Plain numbers: which request it belongs to is not the backend's
/// business.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleRow<'a> {
    /// The others count as if they had no finite logit: they are out before anything else is looked at.
    pub allowed: Allowed<'a>,
    /// Changed logits, by ascending token, each token once.
    pub adjustments: &'a [Adjustment],
    /// 0 means greedy: the largest logit, the smallest token id among equals.
    pub temperature: f32,
    /// Keep the `top_k` largest logits; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probability reaches `top_p`, at least the likeliest one; 1.0
    /// keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the likeliest; 0.0 drops none.
    pub min_p: f32,
    /// Random bits for this row, keyed by (seed, choice, absolute position) by the caller, so that a draw
    /// does not depend on the batch.
    pub noise: u64,
}

impl SampleRow<'_> {
    /// The likeliest token.
    pub const GREEDY: SampleRow<'static> = SampleRow {
        allowed: Allowed::All,
        adjustments: &[],
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        noise: 0,
    };
}

/// What came of one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// The token of each row of logits, `None` where no allowed token has a finite logit.
    pub tokens: Vec<Option<u32>>,
    /// One for each [`LogprobRow`], `None` where the row has no finite logit or no token was drawn.
    pub logprobs: Vec<Option<RowLogprobs>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: BatchShape = BatchShape {
        heads: HeadLayout {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
        },
        kv: KvShape {
            n_layers: 1,
            n_kv_heads: 1,
            head_dim: 16,
            page_size: 16,
            n_pages: 4,
        },
        max_rows: 3,
        max_logit_rows: 1,
        max_sequences: 1,
        max_pages: 3,
    };

    const SEQUENCE: SequenceRows = SequenceRows {
        first_row: 0,
        n_rows: 2,
        first_position: 31,
        first_page: 0,
        n_pages: 3,
    };

    const ROWS: StepRows<'static> = StepRows {
        ids: &[7, 8],
        positions: &[31, 32],
        slots: &[31, 32],
        logit_rows: &[1],
        sequences: &[SEQUENCE],
        page_tables: &[1, 0, 3],
    };

    #[test]
    fn rows_that_fit_are_taken() {
        ROWS.check(&SHAPE);
    }

    #[test]
    fn arrays_that_do_not_fit_are_refused_with_the_numbers() {
        let short = [SequenceRows {
            n_pages: 2,
            ..SEQUENCE
        }];
        let late = [SequenceRows {
            first_row: 1,
            ..SEQUENCE
        }];
        let cases: [(StepRows<'_>, &str); 7] = [
            (StepRows { slots: &[31], ..ROWS }, "rows"),
            (
                StepRows {
                    sequences: &short,
                    ..ROWS
                },
                "pages of",
            ),
            (
                StepRows {
                    sequences: &late,
                    ..ROWS
                },
                "follow each other",
            ),
            (
                StepRows {
                    page_tables: &[1, 0, 4],
                    ..ROWS
                },
                "is beyond 4",
            ),
            (
                StepRows {
                    slots: &[31, 64],
                    ..ROWS
                },
                "is beyond 64",
            ),
            (
                StepRows {
                    logit_rows: &[2],
                    ..ROWS
                },
                "is beyond 2",
            ),
            (
                StepRows {
                    logit_rows: &[0, 1],
                    ..ROWS
                },
                "2 with logits",
            ),
        ];
        for (rows, expected) in cases {
            let refused = std::panic::catch_unwind(|| rows.check(&SHAPE)).expect_err(expected);
            let said = refused.downcast_ref::<String>().expect("numbers");
            assert!(said.contains(expected), "{said}");
        }
    }
}
