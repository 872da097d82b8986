//! The forward batch: index arrays of one step, rows of several sequences one after the other.

use std::ops::Range;

use arbora_kernels::{SequenceRows, StepRows};
use arbora_radix::PageId;

/// One forward pass: rows of several sequences, prefill chunks and decode rows side by side. Built once per
/// step, then immutable.
///
/// ```text
/// row:        0        1        2        3        4
/// ids         prompt chunk of A ........ | B's    | C's last token
/// positions   p        p+1      p+2      | ...
/// slots       page * page_size + offset, where the row's keys and values go
/// logit_rows  rows whose logits are wanted, ascending; logits row i belongs to logit_rows[i]
/// ```
#[derive(Clone, Debug, Default)]
pub struct ForwardBatch {
    /// Token of each row.
    pub ids: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// KV slot of each row.
    pub slots: Vec<u32>,
    /// Rows of each sequence, in row order, without gaps.
    pub sequences: Vec<SequenceRows>,
    /// Page tables of all sequences, one after the other.
    pub page_tables: Vec<u32>,
    /// Rows whose logits are wanted.
    pub logit_rows: Vec<u32>,
}

/// What one sequence adds to a batch.
#[derive(Clone, Debug)]
pub struct BatchEntry<'a> {
    /// Tokens to feed.
    pub ids: &'a [u32],
    /// Proposed tokens that follow; the last rows.
    pub draft: &'a [u32],
    /// Position of the first of them.
    pub first_position: usize,
    /// The sequence's pages: at least enough for the last position.
    pub pages: &'a [PageId],
    /// The rows whose logits are wanted, counted from the entry's first.
    pub logit_rows: Range<usize>,
}

impl ForwardBatch {
    /// Adds the rows of one sequence: those of its tokens, then those of its draft.
    pub fn push(&mut self, entry: &BatchEntry<'_>, page_size: usize) {
        let first_row = self.n_rows();
        let n_rows = entry.ids.len() + entry.draft.len();
        let end = entry.first_position + n_rows;
        let n_pages = end.div_ceil(page_size);
        assert!(!entry.ids.is_empty(), "an entry has rows");
        assert!(entry.logit_rows.end <= n_rows, "logits of rows it has");
        self.sequences.push(SequenceRows {
            first_row,
            n_rows,
            first_position: entry.first_position,
            first_page: self.page_tables.len(),
            n_pages,
        });
        let pages = &entry.pages[..n_pages];
        self.page_tables.extend(pages.iter().map(|page| page.0));
        self.ids.extend_from_slice(entry.ids);
        self.ids.extend_from_slice(entry.draft);
        for position in entry.first_position..end {
            let slot = pages[position / page_size].0 as usize * page_size + position % page_size;
            self.positions.push(position as u32);
            self.slots.push(slot as u32);
        }
        let logit_rows = entry.logit_rows.clone();
        self.logit_rows
            .extend(logit_rows.map(|row| (first_row + row) as u32));
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.ids.len()
    }

    /// What a device is given of it.
    pub fn step_rows(&self) -> StepRows<'_> {
        StepRows {
            ids: &self.ids,
            positions: &self.positions,
            slots: &self.slots,
            logit_rows: &self.logit_rows,
            sequences: &self.sequences,
            page_tables: &self.page_tables,
        }
    }

    /// Empties it, keeping the memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.sequences.clear();
        self.page_tables.clear();
        self.logit_rows.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_the_slots_of_their_own_pages() {
        let mut batch = ForwardBatch::default();
        let prefill = BatchEntry {
            ids: &[10, 11],
            draft: &[12],
            first_position: 3,
            pages: &[PageId(7), PageId(2), PageId(5)],
            logit_rows: 1..3,
        };
        let decode = BatchEntry {
            ids: &[20],
            draft: &[],
            first_position: 4,
            pages: &[PageId(7), PageId(9)],
            logit_rows: 0..1,
        };
        batch.push(&prefill, 4);
        batch.push(&decode, 4);
        assert_eq!(batch.ids, [10, 11, 12, 20]);
        assert_eq!(batch.positions, [3, 4, 5, 4]);
        assert_eq!(batch.slots, [7 * 4 + 3, 2 * 4, 2 * 4 + 1, 9 * 4]);
        assert_eq!(batch.page_tables, [7, 2, 7, 9], "only pages up to the last row");
        assert_eq!(batch.logit_rows, [1, 2, 3]);
        assert_eq!(
            (batch.sequences[1].first_row, batch.sequences[1].first_page),
            (3, 2)
        );
    }
}
