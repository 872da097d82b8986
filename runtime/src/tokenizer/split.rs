//! Cutting text into the pieces that BPE merges within, by the name in `tokenizer.ggml.pre`.
//!
//! The published patterns end in `\s+(?!\S)|\s+`: a run of whitespace leaves its last character to what
//! follows it. That look-ahead is the only thing in them that a finite automaton cannot do, and backtracking
//! engines give up on (or take quadratic time for) a megabyte of blanks. So the automaton takes the whole
//! run, and the last character is given back here: the same pieces, in linear time.
//!
//! ```text
//! run of k >= 1 whitespace characters taken by `\s+`, then
//!     end of text:        one piece of k
//!     k >= 2, then \S:    one piece of k - 1; the last character starts the next piece
//!     k == 1, then \S:    one piece of 1
//! ```
//!
//! Sources: the `tokenizer.json` files of the models, `transformers`' table of GGUF names; each row is
//! compared with Hugging Face's `tokenizers` by the golden tests.

use regex_automata::{Anchored, Input, PatternID, meta::Regex};

/// How a family of vocabularies cuts text.
pub(super) struct PreTokenizer {
    /// Names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Cuts `\p{N}` out one by one before the pattern sees the text.
    single_digits: bool,
    /// The pattern without its whitespace tail.
    pattern: &'static str,
    /// Text is brought to Unicode normal form C first.
    pub(super) normalize: bool,
    /// A piece that is a token is taken whole, whatever the merges make of it.
    pub(super) ignore_merges: bool,
    /// Whether a prompt starts with BOS where the file does not say.
    pub(super) add_bos: bool,
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+";

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["gpt-2"],
        single_digits: false,
        pattern: GPT_2,
        normalize: false,
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r"],
        single_digits: true,
        pattern: GPT_2,
        normalize: false,
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        single_digits: false,
        pattern: concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        ),
        normalize: false,
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        single_digits: false,
        pattern: concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        ),
        normalize: true,
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        single_digits: false,
        pattern: concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
        ),
        normalize: false,
        ignore_merges: true,
        add_bos: true,
    },
];

impl PreTokenizer {
    /// The row for a name in `tokenizer.ggml.pre`.
    pub(super) fn named(name: &str) -> Option<&'static PreTokenizer> {
        PRE_TOKENIZERS.iter().find(|row| row.names.contains(&name))
    }
}

/// Every name that is known.
pub(super) fn names() -> Vec<&'static str> {
    PRE_TOKENIZERS.iter().flat_map(|row| row.names).copied().collect()
}

/// A compiled [`PreTokenizer`].
pub(super) struct Splitter {
    single_digits: bool,
    regex: Regex,
}

const WHITESPACE: PatternID = PatternID::new_unchecked(1);

impl Splitter {
    pub(super) fn new(row: &PreTokenizer) -> Self {
        let regex = Regex::new_many(&[row.pattern, r"\s+"]).expect("the table's patterns compile");
        Splitter {
            single_digits: row.single_digits,
            regex,
        }
    }

    /// Calls `piece` with each piece of `text` in order; together they are `text`.
    pub(super) fn split<'t>(&self, text: &'t str, piece: &mut impl FnMut(&'t str)) {
        if !self.single_digits {
            return self.split_by_pattern(text, piece);
        }
        let mut rest = text;
        while let Some((start, digit)) = rest.char_indices().find(|(_, c)| c.is_numeric()) {
            let end = start + digit.len_utf8();
            self.split_by_pattern(&rest[..start], piece);
            piece(&rest[start..end]);
            rest = &rest[end..];
        }
        self.split_by_pattern(rest, piece);
    }

    fn split_by_pattern<'t>(&self, text: &'t str, piece: &mut impl FnMut(&'t str)) {
        let mut start = 0;
        while start < text.len() {
            let input = Input::new(text).range(start..).anchored(Anchored::Yes);
            let found = self
                .regex
                .find(input)
                .expect("some alternative takes any character");
            let mut end = found.end();
            if found.pattern() == WHITESPACE && end < text.len() {
                let (last, _) = text[start..end].char_indices().next_back().expect("not empty");
                if last > 0 {
                    end = start + last;
                }
            }
            piece(&text[start..end]);
            start = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let splitter = Splitter::new(PreTokenizer::named(name).expect("a known name"));
        let mut pieces = Vec::new();
        splitter.split(text, &mut |piece| pieces.push(piece));
        pieces
    }

    #[test]
    fn a_run_of_blanks_leaves_its_last_to_the_next_word() {
        assert_eq!(pieces("gpt-2", "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(pieces("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(pieces("llama-bpe", "a\n\n  b"), ["a", "\n\n", " ", " b"]);
    }

    #[test]
    fn digits_are_cut_as_the_row_says() {
        assert_eq!(pieces("gpt-2", "x 1234"), ["x", " 1234"]);
        assert_eq!(pieces("smollm", "x  1234"), ["x", "  ", "1", "2", "3", "4"]);
        assert_eq!(pieces("llama-bpe", "x 1234"), ["x", " ", "123", "4"]);
        assert_eq!(pieces("qwen2", "x 12"), ["x", " ", "1", "2"]);
    }

    #[test]
    fn every_character_belongs_to_some_piece_in_every_row() {
        for name in names() {
            let splitter = Splitter::new(PreTokenizer::named(name).expect("a known name"));
            let mut buffer = [0; 4];
            for character in '\0'..=char::MAX {
                let mut n_bytes = 0;
                splitter.split(character.encode_utf8(&mut buffer), &mut |piece| {
                    n_bytes += piece.len();
                });
                assert_eq!(n_bytes, character.len_utf8(), "{name}: {character:?}");
            }
        }
    }
}
