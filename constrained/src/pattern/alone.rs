//! Expressions within a larger text of which nothing may matter to them: terminals of a grammar.

use super::lookaround::{Context, Ending, Machine, Whole};
use super::{Bounds, Pattern};
use crate::determinize::{Built, Excess};
use crate::dfa::{Classes, Dfa};
use crate::error::CompileError;
use crate::text::{step_utf8, utf8_classes};

/// The smallest automaton of the texts that `pattern` matches from end to end, whatever stands around them; an
/// error where that is not known of one of them.
pub(super) fn compile(pattern: &Pattern, bounds: Bounds) -> Result<Built, CompileError> {
    let mut machine = Machine::new(pattern, bounds)?;
    let built = machine.alone(bounds.max_states);
    let built = built.map_err(|what| bounds.exceeded(what, &pattern.name))?;
    built.ok_or_else(|| CompileError::Regex {
        pattern: pattern.name.clone(),
        why: "look-around, an anchor or a word boundary looks at what stands around it".to_owned(),
    })
}

impl Machine {
    /// `None` where what stands around it matters.
    fn alone(&mut self, max_states: usize) -> Result<Option<Built>, Excess> {
        let mut dfa: Option<Dfa> = None;
        let mut n_work = 0;
        for context in self.contexts()? {
            let start = Whole {
                ways: self.start(self.whole()),
                context,
            };
            let Some(built) = self.determinize(start, Ending::Anywhere, max_states)? else {
                return Ok(None);
            };
            if dfa.is_some_and(|known| known != built.dfa) {
                return Ok(None);
            }
            n_work = built.n_work;
            dfa = Some(built.dfa);
        }
        Ok(dfa.map(|dfa| Built { dfa, n_work }))
    }

    /// What may stand before, as far as it can matter.
    fn contexts(&mut self) -> Result<Vec<Context>, Excess> {
        let classes = self.first_bytes();
        let mut found = vec![(0u8, self.begin())];
        let mut at = 0;
        while let Some((rest, context)) = found.get(at).cloned() {
            at += 1;
            for byte in classes.members() {
                let Some(rest) = step_utf8(rest, *byte) else {
                    continue;
                };
                let next = (rest, self.after(&context, *byte)?);
                self.spend(found.len())?;
                if !found.contains(&next) {
                    found.push(next);
                }
            }
        }
        let whole = found.into_iter().filter(|(rest, _)| *rest == 0);
        Ok(whole.map(|(_, context)| context).collect())
    }

    /// Whether the text may end at `state`; `None` where it may before some texts and not before others.
    pub(super) fn is_accepting_anywhere(&mut self, state: &Whole) -> Result<Option<bool>, Excess> {
        let mut is_accepting = Some(self.is_accepting(state)?);
        for byte in self.first_bytes().members() {
            if step_utf8(0, *byte).is_some() && self.is_accepting_before(state, *byte)? != is_accepting {
                is_accepting = None;
            }
        }
        Ok(is_accepting)
    }

    /// Bytes that neither the expression nor UTF-8 tells apart.
    fn first_bytes(&self) -> Classes {
        self.classes().refine(&utf8_classes())
    }
}
