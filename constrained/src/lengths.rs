//! Which content states can still be completed after so many characters.
//!
//! Going down from the longest allowed text, a state is alive when it accepts (and the text is long enough)
//! or a byte leads to one that is alive. The rows soon repeat, and only the ones before that are kept.

use crate::dfa::{DEAD, Dfa};

/// Alive states by the number of characters.
#[derive(Debug)]
pub(crate) enum Lengths {
    /// Lengths and content do not interfere.
    Free,
    Rows {
        min: u32,
        max: Option<u32>,
        /// `[i]`: at `max - i` characters, but at least `min`. The last row holds for all further ones.
        upper: Vec<Vec<bool>>,
        /// `[i]`: at `min - 1 - i` characters; likewise.
        lower: Vec<Vec<bool>>,
    },
}

impl Lengths {
    pub(crate) fn new(content: &Dfa, min: u32, max: Option<u32>) -> Self {
        if min == 0 && max.is_none() || crate::text::is_any_content(content) {
            return Self::Free;
        }
        let edges = Edges::new(content);
        let n = content.n_states();
        let accepting = |is_long: bool| -> Vec<bool> {
            (0..n as u32)
                .map(|state| is_long && content.is_accepting(state))
                .collect()
        };
        let mut upper = Vec::new();
        match max {
            None => upper.push((0..n).map(|state| state != DEAD as usize).collect()),
            Some(max) => {
                upper.push(edges.alive(accepting(max >= min), &vec![false; n]));
                edges.extend(&mut upper, &accepting(true), max.saturating_sub(min));
            }
        }
        let mut lower = Vec::new();
        if min > 0 {
            let top = upper.last().expect("it has a first row");
            lower.push(edges.alive(vec![false; n], top));
            edges.extend(&mut lower, &vec![false; n], min - 1);
        }
        Self::Rows {
            min,
            max,
            upper,
            lower,
        }
    }

    /// `needed` characters and room for `left` more or, where so many more mean the same to all texts of up
    /// to `n_chars` characters, as few as do.
    pub(crate) fn clamped(&self, needed: u32, left: u32, n_chars: u32) -> (u32, u32) {
        let (n_lower, n_upper) = match self {
            Self::Free => (0, 0),
            Self::Rows { upper, lower, .. } => (lower.len() as u32, upper.len() as u32),
        };
        let bound = n_chars.saturating_add(1);
        (
            needed.min(bound.saturating_add(n_lower)),
            left.min(bound.saturating_add(n_upper)),
        )
    }

    pub(crate) fn are_free(&self) -> bool {
        matches!(self, Self::Free)
    }

    /// Bytes of memory besides its own.
    pub(crate) fn n_bytes(&self) -> usize {
        match self {
            Self::Free => 0,
            Self::Rows { upper, lower, .. } => upper.iter().chain(lower).map(Vec::len).sum(),
        }
    }

    pub(crate) fn allow(&self, state: u32, n_chars: u32) -> bool {
        self.alive(n_chars).is_none_or(|alive| alive[state as usize])
    }

    /// The states that can be completed after `n_chars` characters; `None` when all can.
    pub(crate) fn alive(&self, n_chars: u32) -> Option<&[bool]> {
        let Self::Rows {
            min,
            max,
            upper,
            lower,
        } = self
        else {
            return None;
        };
        let (rows, below) = if n_chars >= *min {
            (upper, max.map_or(0, |max| max - n_chars))
        } else {
            (lower, min - 1 - n_chars)
        };
        Some(&rows[rows.len().min(below as usize + 1) - 1])
    }
}

/// By state: where bytes within a character and first bytes lead.
struct Edges {
    within: Vec<Vec<u32>>,
    first: Vec<Vec<u32>>,
}

impl Edges {
    fn new(content: &Dfa) -> Self {
        let of = |is_first: bool| -> Vec<Vec<u32>> {
            let bytes = (0..=255u8).filter(|byte| (byte & 0xC0 != 0x80) == is_first);
            let bytes: Vec<u8> = bytes.collect();
            (0..content.n_states() as u32)
                .map(|state| {
                    let mut next: Vec<u32> = bytes.iter().map(|byte| content.step(state, *byte)).collect();
                    next.sort_unstable();
                    next.dedup();
                    next.retain(|state| *state != DEAD);
                    next
                })
                .collect()
        };
        Self {
            within: of(false),
            first: of(true),
        }
    }

    /// The states alive at one length, given those that accept there and those alive one character later.
    fn alive(&self, accepting: Vec<bool>, later: &[bool]) -> Vec<bool> {
        let mut alive = accepting;
        for (state, next) in self.first.iter().enumerate() {
            alive[state] |= next.iter().any(|next| later[*next as usize]);
        }
        // A character has at most three bytes after its first.
        for _ in 0..3 {
            let known = alive.clone();
            for (state, next) in self.within.iter().enumerate() {
                alive[state] |= next.iter().any(|next| known[*next as usize]);
            }
        }
        alive
    }

    /// Up to `n` further rows, fewer when they repeat.
    fn extend(&self, rows: &mut Vec<Vec<bool>>, accepting: &[bool], n: u32) {
        for _ in 0..n {
            let last = rows.last().expect("rows begin with one");
            let next = self.alive(accepting.to_vec(), last);
            if next == *last {
                return;
            }
            rows.push(next);
        }
    }
}
