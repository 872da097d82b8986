//! A subset of Lark's grammar language.
//!
//! Supported: rules (lower case) and terminals (upper case) with `:`, `|`, `(…)`, `[…]`, `?`, `*`, `+`, `~n`,
//! `~n..m`; `"text"`, `"text"i` (ASCII), `"a".."z"`, `/regular expression/` with the flags `i`, `m`, `s`,
//! `u`, `x`; `%import common.NAME`, also with `->` and as a list; `%ignore`; comments from `//` or `#`. An
//! output begins with the rule `start`. The rule marks `?` and `!` and aliases `-> name` shape Lark's tree, not
//! its language, and are passed over. As in llguidance and XGrammar, `<[7]>` and `<text>` are one token.
//!
//! There is no lexer: a text is accepted when some way of reading it fits, as with Lark's Earley parser and
//! its complete dynamic lexer. What `%ignore` names may stand after every lexeme of a rule, never within a
//! terminal and not before the first one.
//!
//! Refused by name: priorities, templates, `%declare`, `%override`, `%extend`, `%json`, `%lark` and every
//! other directive, imports from elsewhere than `common`; of regular expressions back-references, the flag
//! `l`, and look-around and anchors that depend on what stands around the expression.

use super::quoting::{Escapes, quoted};
use super::source::limit;
use super::{Expr, ExprId, Name, Tree, expand, library};
use crate::error::{CompileError, shorten};
use crate::tokens::TokenSet;

/// An open bracket, or the definition itself.
struct Open {
    at: usize,
    bracket: char,
    done: Vec<ExprId>,
    parts: Vec<ExprId>,
    is_repeated: bool,
}

struct Parser<'t, 'a> {
    tree: &'t mut Tree<'a>,
    open: Vec<Open>,
    /// What is ignored between lexemes: a rule that is empty unless `%ignore` says otherwise.
    skip: Name,
    ignored: Vec<ExprId>,
    in_terminal: bool,
    terminals: Vec<Name>,
}

/// Reads all of the text into `tree`.
pub(crate) fn parse(tree: &mut Tree<'_>) -> Result<(), CompileError> {
    let skip = tree.new_rule("%ignore", 0)?;
    let mut parser = Parser {
        tree,
        open: Vec::new(),
        skip,
        ignored: Vec::new(),
        in_terminal: false,
        terminals: Vec::new(),
    };
    parser.skip_space(true);
    while let Some(c) = parser.tree.source.peek() {
        if c == '%' {
            parser.directive()?;
        } else {
            parser.definition()?;
        }
        parser.end_of_line()?;
    }
    let ignored = std::mem::take(&mut parser.ignored);
    parser.check_terminals()?;
    let body = if ignored.is_empty() {
        tree.add(Expr::Empty)?
    } else {
        let body = tree.alt(ignored)?;
        tree.add(Expr::Repeat {
            body,
            min: 0,
            max: None,
        })?
    };
    tree.define(skip, 0, body)
}

fn is_terminal(name: &str) -> bool {
    name.trim_start_matches('_')
        .starts_with(|c: char| c.is_ascii_uppercase())
}

impl Parser<'_, '_> {
    fn error(&self, at: usize, why: impl Into<String>) -> CompileError {
        self.tree.source.error(at, why.into())
    }

    fn here(&self) -> usize {
        self.tree.source.at
    }

    fn skip_space(&mut self, also_newlines: bool) {
        let source = &mut self.tree.source;
        loop {
            source.take_while(|c| c == ' ' || c == '\t' || also_newlines && (c == '\n' || c == '\r'));
            if source.peek() != Some('#') && !source.rest().starts_with("//") {
                return;
            }
            source.take_while(|c| c != '\n');
        }
    }

    fn end_of_line(&mut self) -> Result<(), CompileError> {
        self.skip_space(false);
        match self.tree.source.peek() {
            None | Some('\n' | '\r') => {
                self.skip_space(true);
                Ok(())
            }
            Some(c) => Err(self.error(self.here(), format!("`{c}` is unexpected"))),
        }
    }

    fn word(&mut self) -> Result<String, CompileError> {
        let at = self.here();
        let word = self
            .tree
            .source
            .take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if word.is_empty() || word.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            return Err(self.error(at, "a name is missing"));
        }
        Ok(word.to_owned())
    }

    fn expect(&mut self, text: &str) -> Result<(), CompileError> {
        self.skip_space(false);
        if self.tree.source.eat(text) {
            return Ok(());
        }
        Err(self.error(self.here(), format!("`{text}` is missing")))
    }

    fn directive(&mut self) -> Result<(), CompileError> {
        let at = self.here();
        self.tree.source.next();
        let word = self.word()?;
        self.skip_space(false);
        match word.as_str() {
            "ignore" => {
                self.in_terminal = true;
                let ignored = self.alternatives()?;
                self.ignored.push(ignored);
                Ok(())
            }
            "import" => self.import(at),
            _ => Err(self.error(at, format!("`%{}` is not supported", shorten(&word)))),
        }
    }

    fn import(&mut self, at: usize) -> Result<(), CompileError> {
        if !self.tree.source.eat("common") {
            return Err(self.error(at, "`%import` is supported from `common` only"));
        }
        if self.tree.source.eat(".") {
            let at = self.here();
            let name = self.word()?;
            self.skip_space(false);
            let mut alias = name.clone();
            if self.tree.source.eat("->") {
                self.skip_space(false);
                alias = self.word()?;
            }
            return self.import_one(&name, &alias, at);
        }
        self.expect("(")?;
        loop {
            self.skip_space(true);
            let at = self.here();
            let name = self.word()?;
            self.import_one(&name, &name, at)?;
            self.skip_space(true);
            if self.tree.source.eat(")") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    fn import_one(&mut self, name: &str, alias: &str, at: usize) -> Result<(), CompileError> {
        let Some(pattern) = library::common(name) else {
            return Err(self.error(at, format!("`common.{}` is not supported", shorten(name))));
        };
        if !is_terminal(alias) {
            return Err(self.error(at, format!("`{}` is no name for a terminal", shorten(alias))));
        }
        let leaf = expand::regex(pattern, self.tree.bounds()).expect("the library's expressions are valid");
        let body = self.tree.regex(leaf)?;
        let name = self.tree.name(alias, at)?;
        self.tree.define(name, at, body)
    }

    fn definition(&mut self) -> Result<(), CompileError> {
        let at = self.here();
        self.tree.source.take_while(|c| c == '?' || c == '!');
        let name = self.word()?;
        self.in_terminal = is_terminal(&name);
        match self.tree.source.peek() {
            Some('.') => {
                let why = format!("the priority of `{}` is not supported", shorten(&name));
                return Err(self.error(self.here(), why));
            }
            Some('{') => {
                let why = format!("`{}` is a template, which is not supported", shorten(&name));
                return Err(self.error(self.here(), why));
            }
            Some('[') => {
                let why = format!("attributes of `{}` are not supported", shorten(&name));
                return Err(self.error(self.here(), why));
            }
            _ => {}
        }
        self.expect(":")?;
        let name = self.tree.name(&name, at)?;
        if self.in_terminal {
            self.terminals.push(name);
        }
        let body = self.alternatives()?;
        self.tree.define(name, at, body)
    }

    /// Whether the definition goes on behind the end of this line.
    fn goes_on(&mut self) -> bool {
        let at = self.here();
        self.skip_space(true);
        let goes_on = self.tree.source.peek() == Some('|');
        if !goes_on {
            self.tree.source.at = at;
        }
        goes_on
    }

    /// Up to the end of the definition.
    fn alternatives(&mut self) -> Result<ExprId, CompileError> {
        self.open.clear();
        self.begin('\n')?;
        loop {
            self.skip_space(self.open.len() > 1);
            let at = self.here();
            let Some(c) = self.tree.source.peek() else { break };
            match c {
                '\n' | '\r' => {
                    if !self.goes_on() {
                        break;
                    }
                }
                '|' => {
                    self.tree.source.next();
                    self.end_alternative()?;
                }
                '(' | '[' => {
                    self.tree.source.next();
                    self.begin(c)?;
                }
                ')' | ']' => self.close(at, c)?,
                '?' | '*' | '+' | '~' => self.repetition(at, c)?,
                '-' if self.tree.source.eat("->") => {
                    self.skip_space(false);
                    self.word()?;
                }
                _ => {
                    let part = self.element(at, c)?;
                    self.push(part);
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
            parts: Vec::new(),
            is_repeated: true,
        });
        Ok(())
    }

    fn push(&mut self, part: ExprId) {
        let open = self.open.last_mut().expect("the definition is open");
        open.parts.push(part);
        open.is_repeated = false;
    }

    fn end_alternative(&mut self) -> Result<(), CompileError> {
        let open = self.open.last_mut().expect("the definition is open");
        open.is_repeated = true;
        let parts = std::mem::take(&mut open.parts);
        let done = self.tree.seq(parts)?;
        self.open
            .last_mut()
            .expect("the definition is open")
            .done
            .push(done);
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
        self.push(part);
        Ok(())
    }

    fn repetition(&mut self, at: usize, c: char) -> Result<(), CompileError> {
        let open = self.open.last().expect("the definition is open");
        if open.parts.is_empty() || open.is_repeated {
            return Err(self.error(at, "there is nothing to repeat before this"));
        }
        self.tree.source.next();
        let (min, max) = match c {
            '?' => (0, Some(1)),
            '*' => (0, None),
            '+' => (1, None),
            _ => {
                self.skip_space(false);
                let min = self.tree.source.number()?;
                let mut max = min;
                if self.tree.source.eat("..") {
                    max = self.tree.source.number()?;
                }
                if max < min {
                    return Err(self.error(at, "a repetition's maximum is below its minimum"));
                }
                (min, Some(max))
            }
        };
        let body = self.open.last_mut().and_then(|open| open.parts.pop());
        let body = body.expect("there is a part to repeat");
        let part = self.tree.add(Expr::Repeat { body, min, max })?;
        self.push(part);
        self.open.last_mut().expect("the definition is open").is_repeated = true;
        Ok(())
    }

    fn element(&mut self, at: usize, c: char) -> Result<ExprId, CompileError> {
        let part = match c {
            '"' => self.text(at)?,
            '/' => self.regex(at)?,
            '<' if !self.in_terminal => {
                let token = self.tree.token(at)?;
                self.tree.add(Expr::Tokens(TokenSet::only(&[token])))?
            }
            '%' => {
                self.tree.source.next();
                let word = self.word()?;
                return Err(self.error(at, format!("`%{}` is not supported", shorten(&word))));
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let word = self.word()?;
                if self.tree.source.peek() == Some('{') {
                    let why = format!("`{}` is a template, which is not supported", shorten(&word));
                    return Err(self.error(at, why));
                }
                if self.in_terminal && !is_terminal(&word) {
                    let why = format!("a terminal cannot use the rule `{}`", shorten(&word));
                    return Err(self.error(at, why));
                }
                let name = self.tree.name(&word, at)?;
                let part = self.tree.add(Expr::Rule(name))?;
                if !is_terminal(&word) {
                    return Ok(part);
                }
                part
            }
            c => return Err(self.error(at, format!("`{c}` is unexpected"))),
        };
        if self.in_terminal {
            return Ok(part);
        }
        let skip = self.tree.add(Expr::Rule(self.skip))?;
        self.tree.seq(vec![part, skip])
    }

    /// `"text"`, `"text"i` or `"a".."z"`.
    fn text(&mut self, at: usize) -> Result<ExprId, CompileError> {
        self.tree.source.next();
        let text = quoted(&mut self.tree.source, Escapes::Lark, false)?;
        if self.tree.source.eat("i") {
            let hir = expand::any_case(&text).map_err(|why| self.error(at, why))?;
            return self.tree.add(Expr::Leaf(hir));
        }
        if !self.tree.source.eat("..") {
            return self.tree.literal(&text);
        }
        self.expect("\"")?;
        let last = quoted(&mut self.tree.source, Escapes::Lark, false)?;
        let one = |text: &str| {
            let mut chars = text.chars();
            chars.next().filter(|_| chars.next().is_none())
        };
        match (one(&text), one(&last)) {
            (Some(first), Some(last)) if first <= last => self.tree.class(vec![(first, last)], false),
            _ => Err(self.error(at, "a range needs two characters in their order")),
        }
    }

    /// `/…/` with flags.
    fn regex(&mut self, at: usize) -> Result<ExprId, CompileError> {
        self.tree.source.next();
        let rest = self.tree.source.rest();
        let mut is_escaped = false;
        let end = rest.find(|c| {
            let was_escaped = is_escaped;
            is_escaped = c == '\\' && !was_escaped;
            c == '\n' || c == '/' && !was_escaped
        });
        let end = end.filter(|end| rest[*end..].starts_with('/'));
        let end = end.ok_or_else(|| self.error(at, "a regular expression does not end on its line"))?;
        let pattern = &rest[..end];
        self.tree.source.at += end + 1;
        let flags = self.tree.source.take_while(|c| c.is_ascii_alphabetic());
        let leaf = expand::python_regex(pattern, flags, self.tree.bounds());
        let leaf = leaf.map_err(|why| self.error(at, why))?;
        self.tree.regex(leaf)
    }

    /// Refuses terminals that use themselves.
    fn check_terminals(&self) -> Result<(), CompileError> {
        // 1: on the path from where the search began, 2: done.
        let mut marks = vec![0u8; self.tree.rules.len()];
        for terminal in &self.terminals {
            let mut path = vec![(*terminal, false)];
            while let Some((name, is_done)) = path.pop() {
                if is_done {
                    marks[name as usize] = 2;
                    continue;
                }
                match marks[name as usize] {
                    2 => continue,
                    1 => {
                        let on_path = path.iter().filter(|(_, is_done)| *is_done).map(|(name, _)| *name);
                        let cycle = on_path.skip_while(|on_path| *on_path != name).chain([name]);
                        let names: Vec<String> = cycle
                            .map(|name| shorten(&self.tree.rules[name as usize].name))
                            .collect();
                        let at = self.tree.rules[name as usize].at;
                        return Err(self.error(at, format!("a terminal uses itself: {}", names.join(" → "))));
                    }
                    _ => marks[name as usize] = 1,
                }
                path.push((name, true));
                let Some(body) = self.tree.rules[name as usize].body else {
                    continue;
                };
                let mut todo = vec![body];
                while let Some(id) = todo.pop() {
                    let expr = &self.tree.exprs[id as usize];
                    todo.extend_from_slice(expr.children());
                    if let Expr::Rule(name) = expr {
                        path.push((*name, false));
                    }
                }
            }
        }
        Ok(())
    }
}
