//! What happens to text before it is cut: normal form C, and blanks that become marks.

use std::borrow::Cow;

use tokenizers::NormalizedString;

/// How SentencePiece writes a blank.
pub(super) const SPACE_MARK: &str = "\u{2581}";

/// One step of normalization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Unicode normal form C.
    FormC,
    /// Puts a text before every segment that is not empty.
    Prepend(String),
    /// Replaces every occurrence of a text, which is not empty, by another.
    Replace(String, String),
}

/// When a mark is put before text that does not start with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    Always,
    /// Only where the whole text starts.
    First,
    Never,
}

/// Steps, applied to each segment between added tokens, and the marking of blanks that follows.
#[derive(Clone, Debug, Default)]
pub(super) struct Normalizer {
    pub(super) steps: Vec<Step>,
    /// Where present, blanks become marks once the added tokens among the normalized text are cut out.
    pub(super) marks: Option<Lead>,
}

impl Normalizer {
    /// The steps' result.
    pub(super) fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for step in &self.steps {
            match step {
                Step::FormC if text.is_ascii() => {}
                Step::FormC => text = Cow::Owned(normal_form_c(&text)),
                Step::Prepend(lead) if !text.is_empty() => text = Cow::Owned(format!("{lead}{text}")),
                Step::Prepend(_) => {}
                Step::Replace(from, to) if text.contains(from.as_str()) => {
                    text = Cow::Owned(text.replace(from.as_str(), to));
                }
                Step::Replace(..) => {}
            }
        }
        text
    }

    /// Blanks as marks, where the tokenizer has them.
    pub(super) fn mark_blanks<'t>(&self, text: &'t str, is_first: bool) -> Cow<'t, str> {
        let Some(lead) = self.marks else {
            return Cow::Borrowed(text);
        };
        let marked = text.replace(' ', SPACE_MARK);
        let wanted = match lead {
            Lead::Always => true,
            Lead::First => is_first,
            Lead::Never => false,
        };
        if wanted && !marked.starts_with(SPACE_MARK) {
            return Cow::Owned(format!("{SPACE_MARK}{marked}"));
        }
        Cow::Owned(marked)
    }
}

/// Text is normalized in parts of about this many bytes: the library needs 40 bytes of memory for each.
const PART_BYTES: usize = 64 << 10;

fn normal_form_c(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(part_end(rest));
        let mut normalized = NormalizedString::from(part);
        normalized.nfc();
        out.push_str(normalized.get());
        rest = after;
    }
    out
}

/// The first place from [`PART_BYTES`] on at which what comes before and what comes after do not change each
/// other: before an ASCII character, a Chinese one or a whole Korean syllable, none of which is the second
/// half of a composition.
fn part_end(text: &str) -> usize {
    let is_free = |c: char| matches!(c, '\0'..='\x7f' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}');
    let found = text
        .char_indices()
        .find(|(at, c)| *at >= PART_BYTES && is_free(*c));
    found.map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> String {
        let mut normalized = NormalizedString::from(text);
        normalized.nfc();
        normalized.get().to_owned()
    }

    #[test]
    fn text_that_is_normalized_in_parts_is_normalized_as_a_whole() {
        // Combining marks, jamo of syllables with and without a final, marks that change places.
        let syllables = [
            "e\u{301}",
            "a",
            "\u{1100}\u{1161}",
            "\u{ac00}\u{11a8}",
            "\u{1100}\u{1161}\u{11a8}",
            "\u{5341}",
            "q\u{307}\u{323}",
            "\u{304b}\u{3099}",
            " ",
        ];
        let mut text = String::new();
        let mut state = 7_u64;
        while text.len() < 5 * PART_BYTES {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(syllables[(state >> 33) as usize % syllables.len()]);
        }
        assert_eq!(normal_form_c(&text), whole(&text));
        assert!(part_end(&text) < text.len());
    }
}
