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

fn normal_form_c(text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    normalized.nfc();
    normalized.get().to_owned()
}
