//! Cutting text into the pieces that BPE merges within: by the name in `tokenizer.ggml.pre`, or stage by
//! stage as a `tokenizer.json` says.
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

use super::TokenizerError;
use super::normalize::SPACE_MARK;

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

/// Stages that cut text further and further; without any, a text is one piece.
#[derive(Default)]
pub(super) struct Splitter {
    pub(super) stages: Vec<Stage>,
}

/// One way of cutting a piece.
pub(super) enum Stage {
    /// Every digit is a piece.
    Digits,
    /// Every run of digits is a piece.
    DigitRuns,
    /// A piece starts at every mark.
    Marks,
    /// Matches are pieces, and so is what lies between them.
    Pattern(Pattern),
}

impl Splitter {
    pub(super) fn of_row(row: &PreTokenizer) -> Self {
        let pattern = Pattern {
            regex: Regex::new_many(&[row.pattern, r"\s+"]).expect("the table's patterns compile"),
            gives_back: true,
        };
        let mut stages = vec![Stage::Pattern(pattern)];
        if row.single_digits {
            stages.insert(0, Stage::Digits);
        }
        Splitter { stages }
    }

    /// Hands the pieces of `text` to `take` in order, up to its first error; together they are `text`.
    pub(super) fn split<'t, E>(
        &self,
        text: &'t str,
        take: &mut dyn FnMut(&'t str) -> Result<(), E>,
    ) -> Result<(), E> {
        split_by(&self.stages, text, take)
    }
}

fn split_by<'t, E>(
    stages: &[Stage],
    text: &'t str,
    take: &mut dyn FnMut(&'t str) -> Result<(), E>,
) -> Result<(), E> {
    match stages.split_first() {
        None => take(text),
        Some((first, finer)) => first.split(text, &mut |piece| split_by(finer, piece, take)),
    }
}

impl Stage {
    /// GPT-2's pattern, which the byte-level pre-tokenizer has built in.
    pub(super) fn gpt_2() -> Stage {
        let row = PreTokenizer::named("gpt-2").expect("the table has it");
        Splitter::of_row(row).stages.pop().expect("a row has a pattern")
    }

    fn split<'t, E>(&self, text: &'t str, take: &mut dyn FnMut(&'t str) -> Result<(), E>) -> Result<(), E> {
        match self {
            Stage::Pattern(pattern) => pattern.split(text, take),
            Stage::Digits | Stage::DigitRuns => self.split_digits(text, take),
            Stage::Marks => {
                let mut start = 0;
                for (at, _) in text.match_indices(SPACE_MARK).filter(|(at, _)| *at > 0) {
                    take(&text[start..at])?;
                    start = at;
                }
                take_some(&text[start..], take)
            }
        }
    }

    fn split_digits<'t, E>(
        &self,
        text: &'t str,
        take: &mut dyn FnMut(&'t str) -> Result<(), E>,
    ) -> Result<(), E> {
        let single = matches!(self, Stage::Digits);
        let mut start = 0;
        let mut after_digit = false;
        for (at, character) in text.char_indices() {
            let is_digit = character.is_numeric();
            if at > 0 && (is_digit != after_digit || is_digit && single) {
                take(&text[start..at])?;
                start = at;
            }
            after_digit = is_digit;
        }
        take_some(&text[start..], take)
    }
}

fn take_some<'t, E>(piece: &'t str, take: &mut dyn FnMut(&'t str) -> Result<(), E>) -> Result<(), E> {
    if piece.is_empty() { Ok(()) } else { take(piece) }
}

/// A regular expression without look-around besides the tail described above.
pub(super) struct Pattern {
    /// Where `gives_back`, the second pattern takes runs of whitespace.
    regex: Regex,
    gives_back: bool,
}

const WHITESPACE: PatternID = PatternID::new_unchecked(1);
/// The look-ahead that is done here, at the end of a pattern.
const TAIL: &str = r"\s+(?!\S)|\s+";
/// Longest pattern from a file, in bytes.
const MAX_PATTERN_BYTES: usize = 4096;

impl Pattern {
    /// Compiles a pattern from a file.
    pub(super) fn new(pattern: &str) -> Result<Pattern, TokenizerError> {
        let bad = |reason: String| TokenizerError::BadPattern {
            pattern: pattern.chars().take(200).collect(),
            reason,
        };
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(bad(format!("it is longer than {MAX_PATTERN_BYTES} bytes")));
        }
        if is_possessive(pattern) {
            return Err(bad("it has a possessive quantifier".to_owned()));
        }
        let (before, gives_back) = match pattern.strip_suffix(TAIL) {
            None => (pattern, false),
            // A first pattern that whitespace cannot match, so that the second one takes it.
            Some("") => (r"[^\s\S]", true),
            Some(before) => match before.strip_suffix('|') {
                Some(before) => (before, true),
                None => (pattern, false),
            },
        };
        let patterns = if gives_back {
            vec![before, r"\s+"]
        } else {
            vec![before]
        };
        let regex = Regex::new_many(&patterns).map_err(|error| {
            let syntax = error.syntax_error().map(ToString::to_string);
            let reason = syntax.unwrap_or_else(|| error.to_string());
            bad(reason.lines().last().unwrap_or_default().to_owned())
        })?;
        Ok(Pattern { regex, gives_back })
    }

    fn split<'t, E>(&self, text: &'t str, take: &mut dyn FnMut(&'t str) -> Result<(), E>) -> Result<(), E> {
        let mut start = 0;
        let mut search = 0;
        while search < text.len() {
            let input = Input::new(text).range(search..);
            let here = self.regex.find(input.clone().anchored(Anchored::Yes));
            let Some(found) = here.or_else(|| self.regex.find(input)) else {
                break;
            };
            if found.is_empty() {
                // An empty match cuts nothing here; go on behind the next character.
                let next = text[found.end()..].chars().next();
                search = found.end() + next.map_or(1, char::len_utf8);
                continue;
            }
            take_some(&text[start..found.start()], take)?;
            let mut end = found.end();
            if self.gives_back && found.pattern() == WHITESPACE && end < text.len() {
                let run = &text[found.start()..end];
                let (last, _) = run.char_indices().next_back().expect("not empty");
                if last > 0 {
                    end = found.start() + last;
                }
            }
            take(&text[found.start()..end])?;
            (start, search) = (end, end);
        }
        take_some(&text[start..], take)
    }
}

/// What other engines take as possessive (`?+`, `{1,3}+`), this one would take as a repetition of a
/// repetition.
fn is_possessive(pattern: &str) -> bool {
    let counts = |(at, _): (usize, &str)| {
        let inside = pattern[..at]
            .rsplit('{')
            .next()
            .expect("split yields at least one part");
        let is_count = !inside.is_empty() && inside.bytes().all(|b| b.is_ascii_digit() || b == b',');
        let before = &pattern[..at - inside.len()];
        is_count && !before.ends_with("x{") && before.ends_with('{')
    };
    ["?+", "*+", "++"]
        .iter()
        .any(|quantifier| pattern.contains(quantifier))
        || pattern.match_indices("}+").any(counts)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A list of what `split` gives away.
    fn collected<'t>(
        split: impl FnOnce(&mut dyn FnMut(&'t str) -> Result<(), Infallible>) -> Result<(), Infallible>,
    ) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        let Ok(()) = split(&mut |piece| {
            pieces.push(piece);
            Ok(())
        });
        pieces
    }

    fn pieces<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let splitter = Splitter::of_row(PreTokenizer::named(name).expect("a known name"));
        collected(|take| splitter.split(text, take))
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
            let splitter = Splitter::of_row(PreTokenizer::named(name).expect("a known name"));
            let mut buffer = [0; 4];
            for character in '\0'..=char::MAX {
                let text = character.encode_utf8(&mut buffer);
                let n_pieces = collected(|take| splitter.split(text, take)).len();
                assert_eq!(n_pieces, 1, "{name}: {character:?}");
            }
        }
    }
    #[test]
    fn possessive_quantifiers_are_told_from_classes() {
        for pattern in ["a?+", "a*+b", "a++", "a{1,3}+", r"\p{N}{2}+"] {
            assert!(is_possessive(pattern), "{pattern}");
        }
        for pattern in [r"\p{L}+", r"[^\p{L}\p{N}]+|a{1,3}b+", r"\x{20}+", "a+?", "}+"] {
            assert!(!is_possessive(pattern), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_from_a_file_leaves_gaps_as_pieces_and_never_stands_still() {
        let pieces = |pattern: &str, text: &'static str| {
            let pattern = Pattern::new(pattern).expect("a good pattern");
            collected(|take| pattern.split(text, take))
        };
        assert_eq!(pieces("[a-c]+", "xxabcyyaz"), ["xx", "abc", "yy", "a", "z"]);
        assert_eq!(pieces("", "ab"), ["ab"]);
        assert_eq!(pieces(r"\b", "ab cd"), ["ab cd"]);
        assert_eq!(pieces("x*", "axxb"), ["a", "xx", "b"]);
        assert_eq!(
            pieces(r"[a-z]+|\s+(?!\S)|\s+", "a   b 1 "),
            ["a", "  ", " ", "b", " ", "1", " "]
        );
        assert_eq!(pieces(r"\s+(?!\S)|\s+", "a   b"), ["a", "  ", " ", "b"]);
    }
}
