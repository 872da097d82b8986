//! Definitions of rules and terminals: alternatives, brackets, repetitions.

use super::super::regular::Operation;
use super::super::source::limit;
use super::super::{Expr, ExprId};
use super::{Parser, is_terminal};
use crate::error::{CompileError, shorten};

/// An open bracket, or the definition itself.
pub(super) struct Open {
    at: usize,
    bracket: char,
    /// Alternatives, parts of an intersection, parts of a sequence.
    done: Vec<ExprId>,
    conjuncts: Vec<ExprId>,
    parts: Vec<ExprId>,
    /// The last part cannot be repeated once more.
    is_repeated: bool,
    /// A `~` that stands before the next part.
    complement: Option<Complement>,
}

#[derive(Clone, Copy)]
struct Complement {
    at: usize,
    /// Whether it stands in a terminal.
    in_terminal: bool,
}

impl Parser<'_, '_> {
    pub(super) fn definition(&mut self) -> Result<(), CompileError> {
        let at = self.here();
        self.tree.source.take_while(|c| c == '?' || c == '!');
        let name = self.word()?;
        let is_terminal = is_terminal(&name);
        let refused = match self.peek() {
            Some('.') => Some("has a priority, which is not supported"),
            Some('{') => Some("is a template, which is not supported"),
            Some('[') if is_terminal => Some("is a terminal; only rules have attributes"),
            Some(':') if self.tree.source.rest().starts_with("::") => {
                Some("is parametric, which is not supported")
            }
            _ => None,
        };
        if let Some(why) = refused {
            return Err(self.error(self.here(), format!("`{}` {why}", shorten(&name))));
        }
        let attributes = self.attributes()?;
        self.expect(":")?;
        let rule = self.tree.name(&name, at)?;
        if is_terminal {
            self.shared.terminals.push(rule);
        }
        self.in_terminal = is_terminal;
        let body = match attributes {
            None => self.alternatives()?,
            Some(attributes) => self.attributed(rule, &attributes)?,
        };
        self.tree.define(rule, at, body)
    }

    /// Whether the definition goes on behind the end of this line.
    fn goes_on(&mut self) -> bool {
        let at = self.here();
        self.skip_space(true);
        let goes_on = self.peek() == Some('|');
        if !goes_on {
            self.tree.source.at = at;
        }
        goes_on
    }

    /// Up to the end of the definition.
    pub(super) fn alternatives(&mut self) -> Result<ExprId, CompileError> {
        self.open.clear();
        self.begin('\n')?;
        loop {
            self.skip_space(self.open.len() > 1);
            let at = self.here();
            let Some(c) = self.peek() else { break };
            match c {
                '\n' | '\r' => {
                    if !self.goes_on() {
                        break;
                    }
                }
                '}' if self.is_end(c) && self.open.len() == 1 => break,
                '|' => {
                    self.tree.source.next();
                    self.end_alternative()?;
                }
                '&' if self.in_terminal => {
                    self.tree.source.next();
                    self.end_conjunct()?;
                }
                '&' => {
                    let why = "`&` needs terminals: give both sides a name in upper case";
                    return Err(self.error(at, why));
                }
                '(' | '[' => {
                    self.tree.source.next();
                    self.begin(c)?;
                }
                ')' | ']' => self.close(at, c)?,
                '~' if !self.is_count_next() => self.begin_complement(at)?,
                '?' | '*' | '+' | '~' | '{' => self.repetition(at, c)?,
                '-' if self.eat("->") => {
                    self.skip_space(false);
                    self.word()?;
                }
                _ => {
                    let part = self.element(at, c)?;
                    self.push(part)?;
                }
            }
        }
        if let [_, .., open] = self.open.as_slice() {
            let why = format!("`{}` is never closed", open.bracket);
            return Err(self.error(open.at, why));
        }
        self.end_alternative()?;
        let whole = self.open.pop().expect("the definition is open");
        self.tree.alt(whole.done)
    }

    fn begin(&mut self, bracket: char) -> Result<(), CompileError> {
        let at = self.here();
        let max = self.tree.limits.max_source_depth;
        if self.open.len() > max {
            return Err(limit("max_source_depth", max, self.tree.source.place(at)));
        }
        self.open.push(Open {
            at: at.saturating_sub(1),
            bracket,
            done: Vec::new(),
            conjuncts: Vec::new(),
            parts: Vec::new(),
            is_repeated: true,
            complement: None,
        });
        Ok(())
    }

    fn innermost(&mut self) -> &mut Open {
        self.open.last_mut().expect("the definition is open")
    }

    fn push(&mut self, mut part: ExprId) -> Result<(), CompileError> {
        if let Some(Complement { in_terminal, .. }) = self.innermost().complement.take() {
            part = self.tree.add(Expr::Regular(Operation::Not, vec![part]))?;
            self.in_terminal = in_terminal;
            if !in_terminal {
                part = self.with_skip(part)?;
            }
        }
        let open = self.innermost();
        open.parts.push(part);
        open.is_repeated = false;
        Ok(())
    }

    /// Takes `~`; what follows is read as a terminal.
    fn begin_complement(&mut self, at: usize) -> Result<(), CompileError> {
        self.tree.source.next();
        let in_terminal = std::mem::replace(&mut self.in_terminal, true);
        let complement = Complement { at, in_terminal };
        match self.innermost().complement.replace(complement) {
            None => Ok(()),
            Some(_) => Err(self.error(at, "`~` stands twice")),
        }
    }

    fn end_conjunct(&mut self) -> Result<(), CompileError> {
        let open = self.innermost();
        open.is_repeated = true;
        let parts = std::mem::take(&mut open.parts);
        if let Some(Complement { at, .. }) = open.complement {
            return Err(self.error(at, "there is nothing behind `~`"));
        }
        let done = self.tree.seq(parts)?;
        self.innermost().conjuncts.push(done);
        Ok(())
    }

    fn end_alternative(&mut self) -> Result<(), CompileError> {
        self.end_conjunct()?;
        let conjuncts = std::mem::take(&mut self.innermost().conjuncts);
        let done = match conjuncts.as_slice() {
            [one] => *one,
            _ => self.tree.add(Expr::Regular(Operation::All, conjuncts))?,
        };
        self.innermost().done.push(done);
        Ok(())
    }

    fn close(&mut self, at: usize, c: char) -> Result<(), CompileError> {
        let bracket = if c == ')' { '(' } else { '[' };
        if self.open.last().is_none_or(|open| open.bracket != bracket) {
            return Err(self.error(at, format!("`{c}` without `{bracket}`")));
        }
        self.tree.source.next();
        self.end_alternative()?;
        let group = self.open.pop().expect("a bracket is open");
        let mut part = self.tree.alt(group.done)?;
        if bracket == '[' {
            part = self.tree.add(Expr::Repeat {
                body: part,
                min: 0,
                max: Some(1),
            })?;
        }
        self.push(part)
    }

    /// Whether the `~` that comes next repeats, not negates.
    fn is_count_next(&self) -> bool {
        let behind = self.tree.source.rest()[1..].trim_start_matches([' ', '\t']);
        behind.starts_with(|c: char| c.is_ascii_digit())
    }

    fn repetition(&mut self, at: usize, c: char) -> Result<(), CompileError> {
        let open = self.innermost();
        if open.parts.is_empty() || open.is_repeated || open.complement.is_some() {
            return Err(self.error(at, "there is nothing to repeat before this"));
        }
        self.tree.source.next();
        let (min, max) = match c {
            '?' => (0, Some(1)),
            '*' => (0, None),
            '+' => (1, None),
            '{' => self.braced_counts()?,
            _ => {
                self.skip_space(false);
                let min = self.tree.source.number()?;
                let behind = self.here();
                self.skip_space(false);
                let max = if self.eat("..") {
                    self.skip_space(false);
                    self.tree.source.number()?
                } else {
                    self.tree.source.at = behind;
                    min
                };
                (min, Some(max))
            }
        };
        if max.is_some_and(|max| max < min) {
            return Err(self.error(at, "a repetition's maximum is below its minimum"));
        }
        let body = self.innermost().parts.pop().expect("there is a part to repeat");
        let part = self.tree.add(Expr::Repeat { body, min, max })?;
        let open = self.innermost();
        open.parts.push(part);
        open.is_repeated = true;
        Ok(())
    }

    /// `m}`, `m,}`, `,n}` or `m,n}`.
    fn braced_counts(&mut self) -> Result<(u32, Option<u32>), CompileError> {
        self.skip_space(true);
        let min = match self.peek() {
            Some(',') => 0,
            _ => self.tree.source.number()?,
        };
        self.skip_space(true);
        let mut max = Some(min);
        if self.eat(",") {
            self.skip_space(true);
            max = match self.peek() {
                Some('}') => None,
                _ => Some(self.tree.source.number()?),
            };
            self.skip_space(true);
        }
        self.expect("}")?;
        Ok((min, max))
    }
}
