//! Attributes of rules, `name[…]: …`, and what they make of a body.
//!
//! * `lazy`: the text ends where the body matches for the first time.
//! * `suffix=X`, `stop=X`: the body and then X, up to the first place where both match. X is part of the
//!   output, because nothing that was sent can be taken back; but where the grammar goes on with a text that
//!   begins with what X matched, as in `a "."` with `a[stop="."]`, that text is meant and stands once.
//! * `stop=""`: the text ends where the model likes, as without it.
//! * `capture`, `stop_capture`: names for what a client reads out of the text; they do not change it.
//! * `max_tokens=N`: the rule ends, wherever it is, once N tokens have begun within it.
//! * `temperature=T`: what its tokens are sampled with; `Matcher::temperature` tells.
//!
//! The body of a rule with any of them but the captures consists of terminals, and so does X; for the last
//! two it may also be one `%json` or `%lark`.

use super::super::quoting::{Escapes, quoted};
use super::super::regular::Operation;
use super::super::{Expr, ExprId, Name, Tree};
use super::Parser;
use super::stops::Stopped;
use crate::error::{CompileError, shorten};
use crate::mark::Mark;

/// What stands between the brackets behind a rule's name.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    stop: Option<Stop>,
    is_lazy: bool,
    stop_capture_at: Option<usize>,
    mark: Mark,
}

#[derive(Debug)]
struct Stop {
    text: ExprId,
    /// Of `stop`, not of `suffix`.
    may_be_shared: bool,
}

impl Parser<'_, '_> {
    /// `[…]`, where it comes next.
    pub(super) fn attributes(&mut self) -> Result<Option<Attributes>, CompileError> {
        if !self.eat("[") {
            return Ok(None);
        }
        let mut attributes = Attributes::default();
        let mut seen: Vec<String> = Vec::new();
        loop {
            self.skip_space(true);
            if self.eat("]") {
                break;
            }
            let at = self.here();
            let name = self.word()?;
            if seen.contains(&name) {
                return Err(self.error(at, format!("the attribute `{}` is given twice", shorten(&name))));
            }
            self.attribute(&mut attributes, &name, at)?;
            seen.push(name);
            self.skip_space(true);
            if !self.eat(",") {
                self.expect("]")?;
                break;
            }
        }
        if let (Some(at), None) = (attributes.stop_capture_at, &attributes.stop) {
            return Err(self.error(at, "`stop_capture` needs `stop` or `suffix`"));
        }
        Ok(Some(attributes))
    }

    fn attribute(&mut self, found: &mut Attributes, name: &str, at: usize) -> Result<(), CompileError> {
        match name {
            "capture" => {
                self.skip_space(true);
                if self.eat("=") {
                    self.quoted_name()?;
                }
                return Ok(());
            }
            "lazy" => {
                found.is_lazy = true;
                return Ok(());
            }
            "stop" | "suffix" | "stop_capture" | "max_tokens" | "temperature" => {}
            _ => {
                let why = format!("the attribute `{}` is not supported", shorten(name));
                return Err(self.error(at, why));
            }
        }
        self.skip_space(true);
        self.expect("=")?;
        self.skip_space(true);
        match name {
            "stop_capture" => {
                found.stop_capture_at = Some(at);
                return self.quoted_name();
            }
            "max_tokens" => {
                found.mark.max_tokens = Some(self.tree.source.number()?);
                return Ok(());
            }
            "temperature" => {
                found.mark.temperature = Some(self.temperature()?);
                return Ok(());
            }
            _ => {}
        }
        if found.stop.is_some() {
            return Err(self.error(at, "`stop` and `suffix` cannot stand together"));
        }
        let begin = self.here();
        let c = self.peek();
        let c =
            c.ok_or_else(|| self.error(begin, "a text, a regular expression or a terminal is missing"))?;
        self.in_terminal = true;
        found.stop = Some(Stop {
            text: self.element(begin, c)?,
            may_be_shared: name == "stop",
        });
        Ok(())
    }

    fn quoted_name(&mut self) -> Result<(), CompileError> {
        self.skip_space(true);
        self.expect("\"")?;
        quoted(&mut self.tree.source, Escapes::Lark, false)?;
        Ok(())
    }

    fn temperature(&mut self) -> Result<f32, CompileError> {
        const MAX: f32 = 100.0;
        let at = self.here();
        let number = self
            .tree
            .source
            .take_while(|c| c.is_ascii_digit() || "+-.eE".contains(c));
        match number.parse::<f32>() {
            Ok(temperature) if (0.0..=MAX).contains(&temperature) => Ok(temperature),
            _ => Err(self.error(at, format!("a temperature is a number from 0 to {MAX}"))),
        }
    }

    /// The body of `rule`, which comes next, with `attributes`.
    pub(super) fn attributed(&mut self, rule: Name, attributes: &Attributes) -> Result<ExprId, CompileError> {
        let Attributes { mark, stop, .. } = attributes;
        let is_marked = *mark != Mark::default();
        let is_searched = attributes.is_lazy || stop.is_some();
        if !is_marked && !is_searched {
            return self.alternatives();
        }
        self.skip_space(false);
        let rest = self.tree.source.rest();
        let is_nested = !is_searched && (rest.starts_with("%json") || rest.starts_with("%lark"));
        let body = if is_nested {
            self.nested_body()?
        } else {
            self.in_terminal = true;
            let body = self.alternatives()?;
            self.in_terminal = false;
            self.up_to_stop(rule, attributes, body)?
        };
        let body = marked(self.tree, body, *mark)?;
        self.with_skip(body)
    }

    /// One `%json` or `%lark`, without what may be ignored behind it.
    fn nested_body(&mut self) -> Result<ExprId, CompileError> {
        let at = self.here();
        let body = self.alternatives()?;
        if let Expr::Seq(parts) = &self.tree.exprs[body as usize]
            && let [part, _] = parts[..]
            && matches!(self.tree.exprs[part as usize], Expr::Json(_) | Expr::Rule(_))
        {
            return Ok(part);
        }
        let why = "`max_tokens` and `temperature` need a body of terminals, or of one `%json` or `%lark`";
        Err(self.error(at, why))
    }

    /// `body` up to where it ends for the first time, with what it is searched for.
    fn up_to_stop(
        &mut self,
        rule: Name,
        attributes: &Attributes,
        mut body: ExprId,
    ) -> Result<ExprId, CompileError> {
        let is_text = |stop: &&Stop| !matches!(self.tree.exprs[stop.text as usize], Expr::Empty);
        let stop = attributes.stop.as_ref().filter(is_text);
        if let Some(stop) = stop {
            body = self.tree.seq(vec![body, stop.text])?;
        }
        if attributes.is_lazy || stop.is_some() {
            body = self.tree.add(Expr::Regular(Operation::Shortest, vec![body]))?;
        }
        if let Some(stop) = stop.filter(|stop| stop.may_be_shared) {
            let stop = self.tree.add(Expr::Regular(Operation::All, vec![stop.text]))?;
            self.shared.stopped.push(Stopped {
                rule,
                text: body,
                stop,
                mark: attributes.mark,
                skip: self.skip,
            });
        }
        Ok(body)
    }
}

/// `body` with what is said of its tokens.
pub(super) fn marked(tree: &mut Tree<'_>, body: ExprId, mark: Mark) -> Result<ExprId, CompileError> {
    match mark {
        Mark {
            max_tokens: Some(0), ..
        } => tree.add(Expr::Empty),
        mark if mark == Mark::default() => Ok(body),
        mark => tree.add(Expr::Marked { body, mark }),
    }
}
