//! Atomic groups and possessive repetitions, which keep the first way in which they match.
//!
//! What follows must do with that way, so they match less than their content. Where every part has one length
//! the first way can be told by look-ahead: `a*+` is `a*(?!a)`, and `(?>a|ab)` is `a|(?!a)ab`.

use regex_syntax::hir::{Hir, HirKind, Repetition};

use super::Direction;
use super::counted::n_chars;
use super::parse::Parser;

impl Parser<'_> {
    /// `whole`, which is written at `at`, matched in its first way.
    pub(super) fn atomic(&mut self, at: usize, whole: &Hir) -> Result<Hir, String> {
        if n_chars(whole).is_some() {
            return Ok(whole.clone());
        }
        match whole.kind() {
            HirKind::Repetition(repetition) if n_chars(&repetition.sub).is_some() => {
                Ok(self.atomic_repetition(repetition))
            }
            HirKind::Alternation(parts) => {
                let (mut before, mut ways) = (Vec::new(), Vec::new());
                for part in parts {
                    let first = self.atomic(at, part)?;
                    let way = [before.clone(), vec![first]].concat();
                    ways.push(Hir::concat(way));
                    before.push(self.around(Direction::Ahead, true, part.clone()));
                }
                Ok(Hir::alternation(ways))
            }
            HirKind::Concat(parts) => {
                let n_fixed = parts.iter().take_while(|part| n_chars(part).is_some()).count();
                // All that follows the first part of more than one length must be of one way, too.
                let [fixed, rest] = [&parts[..n_fixed], &parts[n_fixed..]];
                let [last] = rest else {
                    return Err(self.error(at, Self::UNKNOWN));
                };
                let last = self.atomic(at, last)?;
                Ok(Hir::concat([fixed, &[last]].concat()))
            }
            _ => Err(self.error(at, Self::UNKNOWN)),
        }
    }

    const UNKNOWN: &'static str = "an atomic group or possessive repetition whose parts have several lengths";

    /// As often as can be, or as seldom as must be, if it is lazy.
    fn atomic_repetition(&mut self, repetition: &Repetition) -> Hir {
        let Repetition {
            min, max, ref sub, ..
        } = *repetition;
        let times = |min: u32, max: Option<u32>| {
            Hir::repetition(Repetition {
                min,
                max,
                ..repetition.clone()
            })
        };
        if !repetition.greedy {
            return times(min, Some(min));
        }
        let no_more = self.around(Direction::Ahead, true, (**sub).clone());
        let stops = |max| Hir::concat(vec![times(min, max), no_more.clone()]);
        match max {
            None => stops(None),
            Some(max) if max == min => times(min, Some(max)),
            Some(max) => Hir::alternation(vec![times(max, Some(max)), stops(Some(max - 1))]),
        }
    }
}
