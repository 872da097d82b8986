//! Expressions within a larger text of which nothing may matter to them: terminals of a grammar.

use super::determinize::{Budget, Excess};
use super::letters::Letters;
use super::lookaround::{Context, Ending, Machine, Whole};
use super::{Bounds, Pattern, built};
use crate::dfa::Built;
use crate::error::CompileError;
use crate::rows::Rows;

/// The smallest automaton of the texts that `pattern` matches from end to end, whatever stands around them;
/// an error where that is not known of one of them.
pub(super) fn compile(pattern: &Pattern, bounds: Bounds) -> Result<Built, CompileError> {
    let found = alone(pattern, bounds.budget());
    let found = found.map_err(|what| bounds.exceeded(what, &pattern.name))?;
    found.ok_or_else(|| CompileError::Regex {
        pattern: pattern.name.clone(),
        why: "look-around, an anchor or a word boundary looks at what stands around it".to_owned(),
    })
}

fn alone(pattern: &Pattern, mut budget: Budget) -> Result<Option<Built>, Excess> {
    let letters = Letters::new(pattern.expressions(), &mut budget)?;
    let mut machine = Machine::new(pattern, &letters, &mut budget)?;
    let mut found: Option<Rows> = None;
    for context in machine.contexts()? {
        let start = Whole {
            ways: machine.start(machine.whole())?,
            context,
        };
        let Some(rows) = machine.determinize(start, Ending::Anywhere)? else {
            return Ok(None);
        };
        let rows = rows.trimmed(|_| true).minimal();
        if found.as_ref().is_some_and(|found| *found != rows) {
            return Ok(None);
        }
        found = Some(rows);
    }
    let rows = found.expect("nothing at all may stand before");
    built(&letters, &rows, budget).map(Some)
}

impl Machine<'_> {
    /// What may stand before, as far as it can matter.
    fn contexts(&mut self) -> Result<Vec<Context>, Excess> {
        let mut found = vec![self.begin()];
        let mut at = 0;
        while let Some(context) = found.get(at).cloned() {
            at += 1;
            for letter in self.letters.of_characters() {
                let next = self.after(&context, letter)?;
                self.spend(found.len())?;
                if !found.contains(&next) {
                    found.push(next);
                }
            }
        }
        Ok(found)
    }

    /// Whether the text may end at `state`; `None` where it may before some texts and not before others.
    pub(super) fn is_accepting_anywhere(&mut self, state: &Whole) -> Result<Option<bool>, Excess> {
        let mut is_accepting = Some(self.is_accepting(state)?);
        for letter in self.letters.of_characters() {
            if self.is_accepting_before(state, letter)? != is_accepting {
                is_accepting = None;
            }
        }
        Ok(is_accepting)
    }
}
