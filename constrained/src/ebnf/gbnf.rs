//! GBNF, the grammar format of llama.cpp, and the EBNF of XGrammar, which grew out of it.
//!
//! Both: rules `name ::= …`; `"text"` with escapes; classes `[a-z]`, `[^a-z]`; groups `(…)`; `|`; `*`, `+`,
//! `?`, `{m}`, `{m,}`, `{m,n}`; comments from `#` to the end of the line. Characters are Unicode ones and are
//! written as UTF-8; a negated class allows newlines.
//!
//! | | GBNF | EBNF |
//! |---|---|---|
//! | begins with | `root` | the rule the caller names |
//! | names | letters, digits, `-`, `_` | also `.`, no digit first |
//! | a rule ends | at the end of its line, unless within `(…)` or behind `\|` | where the next rule begins |
//! | alternatives | may be empty | `""` or `()` where empty |
//! | any character | `.` | `[^]` |
//! | escapes | `\x41`, `\u`, `\U`, `\n` `\r` `\t` `\\` `\"` `\[` `\]` `\-` | also those of C; `\x` of any length |
//! | several repetitions, `x+?` | yes | no |
//! | tokens | `<[7]>`, `<text>`, `!<[7]>`, `!<text>` | `Token(7, "text")`, `ExcludeToken(…)` |
//! | regular expressions | no | `Regex("…")` |
//!
//! A negated token is any token with text but the named ones; special tokens come where they are named only.
//! Refused by name: look-ahead `(=…)`, the macros `TagDispatch` and `TokenTagDispatch` (a structural tag says
//! the same), rule attributes `name[…] ::=`, shorthand classes such as `\d`.

use super::quoting::{Escapes, character, quoted};
use super::source::limit;
use super::{Expr, ExprId, Name, Tree, expand};
use crate::error::{CompileError, shorten};
use crate::tokens::{self, TokenSet};

/// How a grammar's text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Gbnf,
    Ebnf,
}

/// An open group, or the rule itself.
struct Open {
    at: usize,
    done: Vec<ExprId>,
    parts: Vec<ExprId>,
    /// The last part cannot be repeated once more.
    is_repeated: bool,
}

impl Open {
    fn new(at: usize) -> Self {
        Self {
            at,
            done: Vec::new(),
            parts: Vec::new(),
            is_repeated: true,
        }
    }
}

struct Parser<'t, 'a> {
    tree: &'t mut Tree<'a>,
    dialect: Dialect,
    open: Vec<Open>,
}

/// Reads all of the text into `tree`.
pub(crate) fn parse(tree: &mut Tree<'_>, dialect: Dialect) -> Result<(), CompileError> {
    let mut parser = Parser {
        tree,
        dialect,
        open: Vec::new(),
    };
    parser.skip_space(true);
    while parser.tree.source.peek().is_some() {
        parser.rule()?;
        parser.skip_space(true);
    }
    Ok(())
}

impl Tree<'_> {
    /// `<[7]>` or `<text>`.
    pub(super) fn token(&mut self, at: usize) -> Result<u32, CompileError> {
        let begin = self.source.at;
        if !self.source.eat("<") {
            return Err(self.source.error(begin, "a token in `<…>` is missing".to_owned()));
        }
        let found = if self.source.eat("[") {
            let token = self.source.number()?;
            if !self.source.eat("]>") {
                return Err(self.source.error(self.source.at, "`]>` is missing".to_owned()));
            }
            tokens::by_number(self.vocabulary, token)
        } else {
            self.source.take_while(|c| c != '>' && c != '\n' && c != '\r');
            if !self.source.eat(">") {
                return Err(self.source.error(begin, "`>` is missing".to_owned()));
            }
            let rest = self.source.at - begin;
            self.source.at = begin;
            let name = &self.source.rest()[..rest];
            self.source.at = begin + rest;
            tokens::by_name(self.vocabulary, name)
        };
        found.map_err(|why| self.source.error(at, why))
    }
}

impl Parser<'_, '_> {
    fn error(&self, at: usize, why: impl Into<String>) -> CompileError {
        self.tree.source.error(at, why.into())
    }

    fn skip_space(&mut self, also_newlines: bool) {
        let source = &mut self.tree.source;
        loop {
            source.take_while(|c| c == ' ' || c == '\t' || also_newlines && (c == '\n' || c == '\r'));
            if source.peek() != Some('#') {
                return;
            }
            source.take_while(|c| c != '\n' && c != '\r');
        }
    }

    fn is_name(&self, c: char) -> bool {
        c.is_ascii_alphanumeric() || c == '-' || c == '_' || self.dialect == Dialect::Ebnf && c == '.'
    }

    fn rule(&mut self) -> Result<(), CompileError> {
        let at = self.tree.source.at;
        let name = self.rule_name()?;
        self.skip_space(true);
        let start = self.tree.source.at;
        self.open = vec![Open::new(start)];
        let body = self.alternatives()?;
        self.tree.define(name, at, body)
    }

    fn rule_name(&mut self) -> Result<Name, CompileError> {
        let at = self.tree.source.at;
        let dialect = self.dialect;
        let name = self.tree.source.take_while(|c| {
            c.is_ascii_alphanumeric() || c == '-' || c == '_' || dialect == Dialect::Ebnf && c == '.'
        });
        let starts_badly = dialect == Dialect::Ebnf && name.starts_with(|c: char| c.is_ascii_digit());
        if name.is_empty() || starts_badly {
            return Err(self.error(at, "a rule's name is missing"));
        }
        if dialect == Dialect::Ebnf && self.tree.source.peek() == Some('[') {
            let why = format!("attributes of the rule `{}` are not supported", shorten(name));
            return Err(self.error(self.tree.source.at, why));
        }
        self.skip_space(false);
        if !self.tree.source.eat("::=") {
            let why = format!("`::=` is missing behind `{}`", shorten(name));
            return Err(self.error(self.tree.source.at, why));
        }
        self.tree.name(name, at)
    }

    /// Whether a rule begins here, a name being next.
    fn is_rule_start(&self) -> bool {
        let rest = self.tree.source.rest();
        let name_end = rest.find(|c| !self.is_name(c)).unwrap_or(rest.len());
        let mut rest = &rest[name_end..];
        if let Some(attributes) = rest.strip_prefix('[') {
            rest = attributes.split_once(']').map_or("", |(_, rest)| rest);
        }
        rest.trim_start_matches([' ', '\t']).starts_with("::=")
    }

    /// Up to the end of the rule.
    fn alternatives(&mut self) -> Result<ExprId, CompileError> {
        loop {
            let is_nested = self.open.len() > 1 || self.dialect == Dialect::Ebnf;
            self.skip_space(is_nested);
            let at = self.tree.source.at;
            let Some(c) = self.tree.source.peek() else { break };
            match c {
                '|' => {
                    self.tree.source.next();
                    self.end_alternative(at)?;
                    self.skip_space(true);
                }
                '(' => self.open_group(at)?,
                ')' => self.close_group(at)?,
                '*' | '+' | '?' | '{' => self.repetition(at)?,
                '\n' | '\r' => break,
                c if self.is_name(c) && self.dialect == Dialect::Ebnf && self.is_rule_start() => break,
                _ => {
                    let part = self.element(at, c)?;
                    self.push(part);
                }
            }
        }
        let at = self.tree.source.at;
        if self.open.len() > 1 {
            let group = self.open.pop().expect("more than one is open");
            return Err(self.error(group.at, "`(` is never closed"));
        }
        self.end_alternative(at)?;
        let rule = self.open.pop().expect("the rule is open");
        self.tree.alt(rule.done)
    }

    fn push(&mut self, part: ExprId) {
        let open = self.open.last_mut().expect("the rule is open");
        open.parts.push(part);
        open.is_repeated = false;
    }

    fn end_alternative(&mut self, at: usize) -> Result<(), CompileError> {
        let dialect = self.dialect;
        let open = self.open.last_mut().expect("the rule is open");
        open.is_repeated = true;
        let parts = std::mem::take(&mut open.parts);
        if parts.is_empty() && dialect == Dialect::Ebnf {
            return Err(self.error(at, "an alternative is missing; `\"\"` is the empty one"));
        }
        let done = self.tree.seq(parts)?;
        self.open.last_mut().expect("the rule is open").done.push(done);
        Ok(())
    }

    fn open_group(&mut self, at: usize) -> Result<(), CompileError> {
        let source = &mut self.tree.source;
        source.next();
        if self.dialect == Dialect::Ebnf && source.peek() == Some('=') {
            return Err(self.error(at, "look-ahead `(=…)` is not supported"));
        }
        let max = self.tree.limits.max_source_depth;
        if self.open.len() >= max {
            return Err(limit("max_source_depth", max, self.tree.source.place(at)));
        }
        self.open.push(Open::new(at));
        Ok(())
    }

    fn close_group(&mut self, at: usize) -> Result<(), CompileError> {
        if self.open.len() == 1 {
            return Err(self.error(at, "`)` without `(`"));
        }
        self.tree.source.next();
        let group = self.open.last().expect("more than one is open");
        let is_empty = group.done.is_empty() && group.parts.is_empty();
        if !(is_empty && self.dialect == Dialect::Ebnf) {
            self.end_alternative(at)?;
        }
        let group = self.open.pop().expect("more than one is open");
        let part = if group.done.is_empty() {
            self.tree.add(Expr::Empty)?
        } else {
            self.tree.alt(group.done)?
        };
        self.push(part);
        Ok(())
    }

    fn repetition(&mut self, at: usize) -> Result<(), CompileError> {
        let open = self.open.last().expect("the rule is open");
        if open.parts.is_empty() || open.is_repeated {
            return Err(self.error(at, "there is nothing to repeat before this"));
        }
        let (min, max) = match self.tree.source.next() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            _ => self.counts(at)?,
        };
        let body = self.open.last_mut().and_then(|open| open.parts.pop());
        let body = body.expect("there is a part to repeat");
        let part = self.tree.add(Expr::Repeat { body, min, max })?;
        self.push(part);
        let open = self.open.last_mut().expect("the rule is open");
        open.is_repeated = self.dialect == Dialect::Ebnf;
        Ok(())
    }

    fn counts(&mut self, at: usize) -> Result<(u32, Option<u32>), CompileError> {
        self.skip_space(false);
        let min = self.tree.source.number()?;
        self.skip_space(false);
        let mut max = Some(min);
        if self.tree.source.eat(",") {
            self.skip_space(false);
            max = match self.tree.source.peek() {
                Some('}') => None,
                _ => Some(self.tree.source.number()?),
            };
            self.skip_space(false);
        }
        if !self.tree.source.eat("}") {
            return Err(self.error(self.tree.source.at, "`}` is missing"));
        }
        if max.is_some_and(|max| max < min) {
            return Err(self.error(at, "a repetition's maximum is below its minimum"));
        }
        Ok((min, max))
    }

    fn element(&mut self, at: usize, c: char) -> Result<ExprId, CompileError> {
        let is_gbnf = self.dialect == Dialect::Gbnf;
        match c {
            '"' => {
                self.tree.source.next();
                let escapes = if is_gbnf { Escapes::Gbnf } else { Escapes::Ebnf };
                let text = quoted(&mut self.tree.source, escapes, is_gbnf)?;
                self.tree.literal(&text)
            }
            '[' => self.class(at),
            '.' if is_gbnf => {
                self.tree.source.next();
                self.tree.class(Vec::new(), true)
            }
            '<' if is_gbnf => {
                let token = self.tree.token(at)?;
                self.tree.add(Expr::Tokens(TokenSet::only(&[token])))
            }
            '!' if is_gbnf => {
                self.tree.source.next();
                let token = self.tree.token(at)?;
                self.tree.add(Expr::Tokens(TokenSet::all_but(&[token])))
            }
            c if self.is_name(c) => self.reference(at),
            c => Err(self.error(at, format!("`{c}` is unexpected"))),
        }
    }

    fn reference(&mut self, at: usize) -> Result<ExprId, CompileError> {
        let is_ebnf = self.dialect == Dialect::Ebnf;
        let rest = self.tree.source.rest();
        let end = rest.find(|c| !self.is_name(c)).unwrap_or(rest.len());
        let name = &rest[..end];
        self.tree.source.at += end;
        if is_ebnf && name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(self.error(at, "a number is unexpected"));
        }
        if is_ebnf && self.tree.source.peek() == Some('(') {
            match name {
                "Token" | "ExcludeToken" => return self.token_macro(name),
                "Regex" => return self.regex_macro(),
                "TagDispatch" | "TokenTagDispatch" => {
                    let why = format!("the macro `{name}` is not supported; a structural tag says the same");
                    return Err(self.error(at, why));
                }
                _ => {}
            }
        }
        let name = self.tree.name(name, at)?;
        self.tree.add(Expr::Rule(name))
    }

    fn class(&mut self, at: usize) -> Result<ExprId, CompileError> {
        let is_gbnf = self.dialect == Dialect::Gbnf;
        let escapes = if is_gbnf {
            Escapes::Gbnf
        } else {
            Escapes::EbnfClass
        };
        self.tree.source.next();
        let is_negated = self.tree.source.eat("^");
        let mut ranges = Vec::new();
        loop {
            let here = self.tree.source.at;
            match self.tree.source.peek() {
                Some(']') => break,
                None => return Err(self.error(at, "a class has no end")),
                Some('\n' | '\r') if !is_gbnf => {
                    return Err(self.error(here, "a class does not end on its line"));
                }
                Some(_) => {}
            }
            let first = character(&mut self.tree.source, escapes)?;
            let mut last = first;
            let rest = self.tree.source.rest();
            if rest.starts_with('-') && !rest.starts_with("-]") {
                self.tree.source.next();
                last = character(&mut self.tree.source, escapes)?;
            }
            if last < first {
                return Err(self.error(here, "a range ends before it begins"));
            }
            ranges.push((first, last));
        }
        self.tree.source.next();
        if ranges.is_empty() && (is_gbnf || !is_negated) {
            return Err(self.error(at, "a class without characters"));
        }
        self.tree.class(ranges, is_negated)
    }

    /// `(7, "text", …)` behind `Token` or `ExcludeToken`.
    fn token_macro(&mut self, name: &str) -> Result<ExprId, CompileError> {
        let mut listed = Vec::new();
        self.tree.source.next();
        loop {
            self.skip_space(true);
            let at = self.tree.source.at;
            if self.tree.source.eat(")") {
                break;
            }
            let token = if self.tree.source.eat("\"") {
                let text = quoted(&mut self.tree.source, Escapes::Ebnf, false)?;
                tokens::by_name(self.tree.vocabulary, &text)
            } else {
                tokens::by_number(self.tree.vocabulary, self.tree.source.number()?)
            };
            listed.push(token.map_err(|why| self.error(at, why))?);
            self.skip_space(true);
            if !self.tree.source.eat(",") && self.tree.source.peek() != Some(')') {
                return Err(self.error(self.tree.source.at, "`,` or `)` is missing"));
            }
        }
        self.tree.add(Expr::Tokens(match name {
            "Token" => TokenSet::only(&listed),
            _ => TokenSet::all_but(&listed),
        }))
    }

    /// `("…")` behind `Regex`.
    fn regex_macro(&mut self) -> Result<ExprId, CompileError> {
        self.tree.source.next();
        self.skip_space(true);
        let at = self.tree.source.at;
        if !self.tree.source.eat("\"") {
            return Err(self.error(at, "a quoted regular expression is missing"));
        }
        let pattern = quoted(&mut self.tree.source, Escapes::Ebnf, false)?;
        self.skip_space(true);
        if !self.tree.source.eat(")") {
            return Err(self.error(self.tree.source.at, "`)` is missing"));
        }
        let leaf = expand::regex(&pattern, self.tree.bounds()).map_err(|why| self.error(at, why))?;
        self.tree.regex(leaf)
    }
}
