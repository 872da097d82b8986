//! The end of an expression that makes all else superfluous.
//!
//! Where an expression ends with any number of characters of a class that has all of its characters, `[a-z]*`
//! say or the rest of a searched text, a text that may have reached that end cannot be continued in a way that
//! the end does not match, too. Everything else the text may be is then forgotten, which keeps automata small.

use regex_automata::nfa::thompson::{NFA, State};
use regex_syntax::hir::{Capture, Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look, Repetition};

/// `hir` with such an end in a group called `index`, if it has one.
pub(super) fn marked(hir: &Hir, index: u32) -> Option<Hir> {
    let HirKind::Concat(parts) = hir.kind() else {
        return None;
    };
    let is_anchor = |part: &&Hir| *part.kind() == HirKind::Look(Look::End);
    let n_anchors = parts.iter().rev().take_while(is_anchor).count();
    let (parts, anchors) = parts.split_at(parts.len() - n_anchors);
    let (last, parts) = parts.split_last()?;
    let HirKind::Repetition(repetition @ Repetition { min, max: None, .. }) = last.kind() else {
        return None;
    };
    let HirKind::Class(Class::Unicode(class)) = repetition.sub.kind() else {
        return None;
    };
    if !parts.iter().all(|part| has_only(part, class)) {
        return None;
    }
    let times = |min: u32, max: Option<u32>| {
        Hir::repetition(Repetition {
            min,
            max,
            ..repetition.clone()
        })
    };
    let tail = Hir::capture(Capture {
        index,
        name: None,
        sub: Box::new(times(0, None)),
    });
    let parts = [parts, &[times(*min, Some(*min)), tail], anchors].concat();
    Some(Hir::concat(parts))
}

/// Whether all characters of `hir` are of `class`. Recursion is as deep as the parser's limit.
fn has_only(hir: &Hir, class: &ClassUnicode) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => true,
        HirKind::Literal(literal) => match std::str::from_utf8(&literal.0) {
            Ok(text) => {
                let each = text.chars().map(|c| ClassUnicodeRange::new(c, c));
                is_within(&ClassUnicode::new(each), class)
            }
            Err(_) => false,
        },
        HirKind::Class(Class::Unicode(other)) => is_within(other, class),
        HirKind::Class(Class::Bytes(_)) => false,
        HirKind::Repetition(repetition) => has_only(&repetition.sub, class),
        HirKind::Capture(capture) => has_only(&capture.sub, class),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().all(|part| has_only(part, class))
        }
    }
}

/// Both are sorted, and the ranges of each have gaps between them.
fn is_within(inner: &ClassUnicode, outer: &ClassUnicode) -> bool {
    let mut outer = outer.ranges().iter();
    let mut around = outer.next();
    inner.ranges().iter().all(|range| {
        while let Some(known) = around
            && known.end() < range.start()
        {
            around = outer.next();
        }
        around.is_some_and(|around| around.start() <= range.start() && range.end() <= around.end())
    })
}

/// By state of `nfa`, whether it is of the group `index`, or comes after it. Without such a group none is.
pub(super) fn states(nfa: &NFA, index: Option<u32>) -> Vec<bool> {
    let mut is_tail = vec![false; nfa.states().len()];
    let begins = |state: &State| match (state, index) {
        (
            State::Capture {
                group_index, slot, ..
            },
            Some(index),
        ) => group_index.as_u32() == index && slot.as_usize() % 2 == 0,
        _ => false,
    };
    let mut todo: Vec<usize> = (0..is_tail.len())
        .filter(|id| begins(&nfa.states()[*id]))
        .collect();
    while let Some(id) = todo.pop() {
        if std::mem::replace(&mut is_tail[id], true) {
            continue;
        }
        match &nfa.states()[id] {
            State::ByteRange { trans } => todo.push(trans.next.as_usize()),
            State::Sparse(sparse) => {
                todo.extend(sparse.transitions.iter().map(|trans| trans.next.as_usize()))
            }
            State::Dense(dense) => todo.extend(dense.transitions.iter().map(|next| next.as_usize())),
            State::Look { next, .. } | State::Capture { next, .. } => todo.push(next.as_usize()),
            State::Union { alternates } => todo.extend(alternates.iter().map(|next| next.as_usize())),
            State::BinaryUnion { alt1, alt2 } => todo.extend([alt1.as_usize(), alt2.as_usize()]),
            State::Fail | State::Match { .. } => {}
        }
    }
    is_tail
}
