//! Patterns that count the characters of a whole text, as simpler ones and a number of characters.

use regex_syntax::hir::{Capture, Hir, HirKind, Look, Repetition};

use super::{Around, Direction, Pattern};

/// A pattern as a simpler one and a number of characters.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) content: Pattern,
    pub(crate) min: u32,
    pub(crate) max: Option<u32>,
}

type Bounds = (u32, u32);

/// Fewer repetitions cost little as states.
const MIN_COUNT: u32 = 16;

/// `pattern`, when it says how many characters a whole text has.
///
/// `^ab[a-z]{0,50}$` is `^ab[a-z]*$` of 2 to 52 characters: one part is repeated, by more than a few, and
/// nothing but that number makes texts longer. `^(?=.{1,64}$)a*b*$` is `^(?=.*$)a*b*$` of 1 to 64.
pub(super) fn counted(pattern: &Pattern) -> Option<Counted> {
    let HirKind::Concat(parts) = pattern.hir.kind() else {
        return None;
    };
    let is = |part: &Hir, look| *part.kind() == HirKind::Look(look);
    if !is(&parts[0], Look::Start) {
        return None;
    }
    let mut content = pattern.clone();
    let (mut parts, mut bounds) = (parts.clone(), Vec::new());
    // Tests before the first character see the whole text.
    for part in parts.iter_mut().take_while(|part| n_chars(part) == Some(0)) {
        bounds.extend(free_ahead(part, &mut content.arounds));
    }
    if parts.last().is_some_and(|last| is(last, Look::End))
        && let Some((free, of_parts)) = free_parts(&parts)
    {
        parts = free;
        bounds.push(of_parts);
    }
    let (min, max) = bounds.into_iter().reduce(|a, b| (a.0.max(b.0), a.1.min(b.1)))?;
    content.hir = Hir::concat(parts);
    Some(Counted {
        content,
        min,
        max: Some(max),
    })
}

/// Where `part` is a test like `(?=.{1,64}$)`: makes it `(?=.*$)`, and returns the bounds that it had.
fn free_ahead(part: &mut Hir, arounds: &mut Vec<Around>) -> Option<Bounds> {
    let HirKind::Capture(test) = part.kind() else {
        return None;
    };
    let around = &arounds[test.index as usize - 1];
    let is_positive = around.direction == Direction::Ahead && !around.is_negated;
    let HirKind::Concat(parts) = around.body.kind() else {
        return None;
    };
    let [body, end] = &parts[..] else {
        return None;
    };
    let ends = *end.kind() == HirKind::Look(Look::End);
    let (free, bounds) = free_repetition(body).filter(|_| is_positive && ends)?;
    let body = Hir::concat(vec![free, end.clone()]);
    // The test itself may stand elsewhere, too.
    let free = Around {
        body,
        ..around.clone()
    };
    arounds.push(free);
    *part = Hir::capture(Capture {
        index: arounds.len() as u32,
        ..test.clone()
    });
    Some(bounds)
}

/// A repetition of texts of one length with a free number of them, and the bounds on its characters.
fn free_repetition(part: &Hir) -> Option<(Hir, Bounds)> {
    let HirKind::Repetition(repetition) = part.kind() else {
        return None;
    };
    let max = repetition.max.filter(|max| *max >= MIN_COUNT)?;
    let n_each = n_chars(&repetition.sub).filter(|n| *n > 0)?;
    let bounds = (repetition.min.checked_mul(n_each)?, max.checked_mul(n_each)?);
    let free = Hir::repetition(Repetition {
        min: 0,
        max: None,
        ..repetition.clone()
    });
    Some((free, bounds))
}

/// `parts` with the one repetition of more than a few made free, and the bounds on all characters that they
/// had; all other parts have one length each.
fn free_parts(parts: &[Hir]) -> Option<(Vec<Hir>, Bounds)> {
    let (mut n_fixed, mut counted, mut free) = (0u32, None, Vec::new());
    for part in parts {
        // A fixed number of repetitions is a length, and counted nevertheless.
        if let Some((repetition, bounds)) = free_repetition(part) {
            if counted.replace(bounds).is_some() {
                return None;
            }
            free.push(repetition);
        } else {
            n_fixed = n_fixed.checked_add(n_chars(part)?)?;
            free.push(part.clone());
        }
    }
    let (min, max) = counted?;
    Some((free, (min.checked_add(n_fixed)?, max.checked_add(n_fixed)?)))
}

/// The number of characters that every text of `hir` has; `None` when they differ, or it is unknown.
/// Recursion is as deep as the parser's limit.
pub(super) fn n_chars(hir: &Hir) -> Option<u32> {
    match hir.kind() {
        // A test is a group without content.
        HirKind::Empty | HirKind::Look(_) => Some(0),
        HirKind::Literal(literal) => {
            u32::try_from(std::str::from_utf8(&literal.0).ok()?.chars().count()).ok()
        }
        HirKind::Class(_) => Some(1),
        HirKind::Repetition(repetition) => {
            let is_fixed = repetition.max == Some(repetition.min);
            n_chars(&repetition.sub)?.checked_mul(is_fixed.then_some(repetition.min)?)
        }
        HirKind::Capture(capture) => n_chars(&capture.sub),
        HirKind::Concat(parts) => parts
            .iter()
            .try_fold(0u32, |sum, part| sum.checked_add(n_chars(part)?)),
        HirKind::Alternation(parts) => {
            let mut lengths = parts.iter().map(n_chars);
            let first = lengths.next()??;
            lengths.all(|length| length == Some(first)).then_some(first)
        }
    }
}
