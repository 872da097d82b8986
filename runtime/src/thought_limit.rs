//! Thinking budget: bounds the reasoning of a model that thinks before it answers.
//!
//! ```text
//! prompt … <think>   t1 t2 … tN   </think>   answer
//!                    max_tokens   forced: the only tokens that may come
//! ```
//!
//! What is forced depends on the tokens of the output alone, so a preempted, drafted or resumed output is the
//! same as any other. A model that closes its thoughts earlier notices nothing.

use std::sync::Arc;

use arbora_kernels::Allowed;

use crate::token_bytes::TokenBytes;

/// How thoughts look in an output.
#[derive(Clone, Debug)]
pub struct ThoughtMarks {
    /// What an output begins with that holds thoughts, blanks aside; absent where the prompt has begun them.
    pub opening: Option<String>,
    /// What ends them, not empty.
    pub closing: String,
    /// The tokens that spell the closing mark, at least one.
    pub closing_tokens: Arc<[u32]>,
    /// What each token adds to the text.
    pub token_bytes: Arc<TokenBytes>,
}

/// The limit of one output's thoughts, and how far the output has come. A clone is an output of its own.
#[derive(Clone, Debug)]
pub struct ThoughtLimit {
    max_tokens: usize,
    marks: Arc<ThoughtMarks>,
    place: Place,
    /// Where each row of this step stands.
    rows: Vec<Place>,
}

/// A place in an output.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Before the opening mark, after these bytes.
    Before(Vec<u8>),
    /// In the thoughts, after this many of their tokens; the last bytes may begin the closing mark.
    Inside { n_tokens: usize, tail: Vec<u8> },
    /// In the closing mark that is forced, before this one of its tokens.
    Closing { at: usize },
    /// In the answer.
    Over,
}

impl ThoughtLimit {
    /// At most `max_tokens` tokens of thoughts in an output that has not begun.
    ///
    /// # Panics
    /// Where the closing mark is empty or has no tokens.
    pub fn new(max_tokens: usize, marks: Arc<ThoughtMarks>) -> Self {
        assert!(!marks.closing.is_empty() && !marks.closing_tokens.is_empty());
        let place = match marks.opening {
            Some(_) => Place::Before(Vec::new()),
            None => inside(0),
        };
        ThoughtLimit {
            max_tokens,
            marks,
            place,
            rows: Vec::new(),
        }
    }

    /// Most tokens of thoughts.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How thoughts look.
    pub fn marks(&self) -> &ThoughtMarks {
        &self.marks
    }

    /// Follows the output.
    pub(crate) fn advance(&mut self, token: u32) {
        self.place = self.after(&self.place, token);
    }

    /// Prepares the next row and a row for each token of `draft`.
    pub(crate) fn fill(&mut self, draft: &[u32]) {
        self.rows.clear();
        self.rows.push(self.place.clone());
        for (idx, &token) in draft.iter().enumerate() {
            self.rows.push(self.after(&self.rows[idx], token));
        }
    }

    /// What row `row` of this step must become, if it has no choice.
    pub(crate) fn forced(&self, row: usize) -> Option<Allowed<'_>> {
        let at = match self.rows.get(row)? {
            Place::Inside { n_tokens, .. } if *n_tokens >= self.max_tokens => 0,
            Place::Closing { at } => *at,
            _ => return None,
        };
        Some(Allowed::Ids(&self.marks.closing_tokens[at..=at]))
    }

    fn after(&self, place: &Place, token: u32) -> Place {
        let bytes = self.marks.token_bytes.of(token);
        match place {
            Place::Over => Place::Over,
            Place::Before(seen) => self.before([seen, bytes].concat()),
            Place::Inside { n_tokens, .. } if *n_tokens >= self.max_tokens => self.closing(1),
            Place::Inside { n_tokens, tail } => self.inside(n_tokens + 1, &[tail, bytes].concat()),
            Place::Closing { at } => self.closing(at + 1),
        }
    }

    /// After the output `seen`, of which nothing is known yet.
    fn before(&self, seen: Vec<u8>) -> Place {
        let opening = self.marks.opening.as_deref().unwrap_or_default().as_bytes();
        let begun = seen.trim_ascii_start();
        match begun.strip_prefix(opening) {
            Some(rest) => self.inside(0, rest),
            None if opening.starts_with(begun) => Place::Before(seen),
            None => Place::Over,
        }
    }

    /// After `n_tokens` tokens of thoughts that end with `tail`.
    fn inside(&self, n_tokens: usize, tail: &[u8]) -> Place {
        let closing = self.marks.closing.as_bytes();
        if tail.windows(closing.len()).any(|window| window == closing) {
            return Place::Over;
        }
        let n_kept = tail.len().min(closing.len() - 1);
        Place::Inside {
            n_tokens,
            tail: tail[tail.len() - n_kept..].to_vec(),
        }
    }

    /// After `n_forced` tokens of the closing mark.
    fn closing(&self, n_forced: usize) -> Place {
        if n_forced < self.marks.closing_tokens.len() {
            Place::Closing { at: n_forced }
        } else {
            Place::Over
        }
    }
}

fn inside(n_tokens: usize) -> Place {
    Place::Inside {
        n_tokens,
        tail: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens `<`, `/`, `>`, `a`, ` `, `<>`, `</>`; thoughts go from `<>` to `</>`.
    const TOKENS: [&[u8]; 7] = [b"<", b"/", b">", b"a", b" ", b"<>", b"</>"];

    fn limit(max_tokens: usize, opening: Option<&str>) -> ThoughtLimit {
        let marks = ThoughtMarks {
            opening: opening.map(str::to_owned),
            closing: "</>".to_owned(),
            closing_tokens: [0, 1, 2].into(),
            token_bytes: Arc::new(TokenBytes::new(TOKENS)),
        };
        ThoughtLimit::new(max_tokens, Arc::new(marks))
    }

    /// What each row after `output` must become; 9 where it is free.
    fn forced(mut limit: ThoughtLimit, output: &[u32]) -> Vec<u32> {
        limit.fill(output);
        let of = |row| match limit.forced(row) {
            Some(Allowed::Ids(&[token])) => token,
            None => 9,
            other => panic!("{other:?}"),
        };
        let rows: Vec<u32> = (0..=output.len()).map(of).collect();
        // Token by token it is the same.
        for (idx, expected) in rows.iter().enumerate() {
            limit.fill(&[]);
            assert_eq!(limit.forced(0).is_some(), *expected != 9, "row {idx}");
            output
                .get(idx)
                .into_iter()
                .for_each(|token| limit.advance(*token));
        }
        rows
    }

    #[test]
    fn thoughts_are_closed_after_their_last_token() {
        assert_eq!(forced(limit(2, None), &[3, 3, 0, 1, 2, 3]), [9, 9, 0, 1, 2, 9, 9]);
        assert_eq!(forced(limit(0, None), &[0, 1, 2, 3]), [0, 1, 2, 9, 9]);
        // Half a mark is no mark: it is written whole.
        assert_eq!(forced(limit(2, None), &[0, 1, 0, 1, 2, 3]), [9, 9, 0, 1, 2, 9, 9]);
    }

    #[test]
    fn a_model_that_closes_them_itself_is_free() {
        for closing in [&[0, 1, 2][..], &[6]] {
            let output = [&[3], closing, &[3, 3, 3, 3]].concat();
            assert_eq!(
                forced(limit(4, None), &output),
                vec![9; output.len() + 1],
                "{closing:?}"
            );
        }
    }

    #[test]
    fn an_output_that_may_do_without_thoughts_is_free_unless_it_opens_them() {
        let optional = || limit(1, Some("<>"));
        assert_eq!(forced(optional(), &[3, 3, 3, 3]), [9; 5]);
        assert_eq!(forced(optional(), &[4, 5, 3, 0, 1, 2]), [9, 9, 9, 0, 1, 2, 9]);
        assert_eq!(forced(optional(), &[0, 2, 3, 0, 1, 2]), [9, 9, 9, 0, 1, 2, 9]);
        assert_eq!(forced(optional(), &[0, 3, 3, 3]), [9; 5]);
        // Thoughts opened and closed at once.
        assert_eq!(forced(optional(), &[5, 6, 3, 3]), [9; 5]);
    }
}
