//! Assertions on what stands directly before and after a place: anchors and borders between words of ASCII.

use regex_syntax::hir;

/// What an assertion sees of a character beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Neighbour {
    /// None: the text begins or ends.
    Outside,
    LineFeed,
    CarriageReturn,
    /// A letter, a digit or `_`.
    Word,
    Other,
}

impl Neighbour {
    pub(super) fn of(c: char) -> Self {
        match c {
            '\n' => Self::LineFeed,
            '\r' => Self::CarriageReturn,
            c if c.is_ascii_alphanumeric() || c == '_' => Self::Word,
            _ => Self::Other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Look {
    Start,
    End,
    LineStart,
    LineEnd,
    /// Lines that end in `\r`, `\n` or both.
    CrlfStart,
    CrlfEnd,
    WordBorder,
    NoWordBorder,
    WordStart,
    WordEnd,
    /// No part of a word stands before, or after.
    WordStartHalf,
    WordEndHalf,
}

impl Look {
    pub(super) fn of(look: hir::Look) -> Self {
        match look {
            hir::Look::Start => Self::Start,
            hir::Look::End => Self::End,
            hir::Look::StartLF => Self::LineStart,
            hir::Look::EndLF => Self::LineEnd,
            hir::Look::StartCRLF => Self::CrlfStart,
            hir::Look::EndCRLF => Self::CrlfEnd,
            hir::Look::WordAscii => Self::WordBorder,
            hir::Look::WordAsciiNegate => Self::NoWordBorder,
            hir::Look::WordStartAscii => Self::WordStart,
            hir::Look::WordEndAscii => Self::WordEnd,
            hir::Look::WordStartHalfAscii => Self::WordStartHalf,
            hir::Look::WordEndHalfAscii => Self::WordEndHalf,
            _ => unreachable!("Unicode's borders between words are look-around"),
        }
    }

    pub(super) fn holds(self, before: Neighbour, after: Neighbour) -> bool {
        use Neighbour::{CarriageReturn, LineFeed, Outside, Word};
        match self {
            Self::Start => before == Outside,
            Self::End => after == Outside,
            Self::LineStart => matches!(before, Outside | LineFeed),
            Self::LineEnd => matches!(after, Outside | LineFeed),
            Self::CrlfStart => match before {
                CarriageReturn => after != LineFeed,
                _ => matches!(before, Outside | LineFeed),
            },
            Self::CrlfEnd => match after {
                LineFeed => before != CarriageReturn,
                _ => matches!(after, Outside | CarriageReturn),
            },
            Self::WordBorder => (before == Word) != (after == Word),
            Self::NoWordBorder => (before == Word) == (after == Word),
            Self::WordStart => before != Word && after == Word,
            Self::WordEnd => before == Word && after != Word,
            Self::WordStartHalf => before != Word,
            Self::WordEndHalf => after != Word,
        }
    }
}
