//! Lark's grammar language, as llguidance takes it.
//!
//! * Rules (lower case) and terminals (upper case) with `:`, `|`, `(…)`, `[…]`, `?`, `*`, `+`, `~n`, `~n..m`,
//!   `{m,n}`; `"text"`, `"text"i` (ASCII), `"a".."z"`, `/regular expression/` with the flags `i`, `m`, `s`,
//!   `u`, `x`. An output begins with the rule `start`.
//! * In terminals `&` is intersection, and a leading `~`, in rules too, the complement within valid UTF-8;
//!   `%regex {"substring_chunks": […]}` is any run of the chunks (also `substring_words` and
//!   `substring_chars`).
//! * `<text>` is one special token, `<[7,9-12]>` one of several by number, `<[^7]>` and `<[*]>` any token
//!   with text but those.
//! * `%json {…}` is JSON of a schema, whose `x-guidance` may choose the separators; `%lark {…}` a grammar
//!   with names of its own.
//! * `%import common.NAME`, also with `->` and as a list; `%ignore`; `%llguidance {…}` with
//!   `allow_initial_skip`, `ignore_once`, `no_forcing` (text is never forced, only proposed).
//! * Attributes of rules (`lark/attributes.rs`): `capture`, `lazy`, `stop`, `suffix`, `stop_capture`,
//!   `max_tokens`, `temperature`.
//! * Comments from `//` or `#`. The rule marks `?` and `!`, aliases `-> name` and captures shape what is made
//!   of a text, not which texts there are, and are passed over.
//!
//! There is no lexer: a text is accepted when some way of reading it fits, as with Lark's Earley parser and
//! its complete dynamic lexer. What `%ignore` names may stand after every lexeme of a rule, never within a
//! terminal and not before the first one. Anchors at the ends of a regular expression are those of the text
//! that it matches.
//!
//! Refused by name: priorities, templates, parametric rules (`name::_`, `%if`), `%declare`, `%override`,
//! `%extend`, references `@name` to other grammars, the option `allow_invalid_utf8`, imports from elsewhere
//! than `common`; of regular expressions back-references, the flag `l`, and look-around and anchors that
//! depend on what stands around the expression.

mod attributes;
mod directives;
mod elements;
mod rules;
mod stops;

use super::regular;
use super::{Expr, ExprId, Name, Tree};
use crate::error::{CompileError, shorten};
use crate::schema::SchemaOptions;
use stops::Stopped;

struct Parser<'t, 'a> {
    tree: &'t mut Tree<'a>,
    shared: &'t mut Shared,
    schema_options: &'t SchemaOptions,
    open: Vec<rules::Open>,
    /// What is ignored between lexemes: a rule that is empty unless `%ignore` says otherwise.
    skip: Name,
    ignored: Vec<ExprId>,
    in_terminal: bool,
    options: Options,
    /// How many `%lark` it stands within.
    depth: usize,
}

/// What a grammar and those nested in it have together.
#[derive(Default)]
struct Shared {
    terminals: Vec<Name>,
    stopped: Vec<Stopped>,
}

/// What `%llguidance` asks for.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    allow_initial_skip: bool,
    ignore_once: bool,
}

/// Reads all of the text into `tree`; the rule that an output begins with.
pub(crate) fn parse(tree: &mut Tree<'_>, schema_options: &SchemaOptions) -> Result<Name, CompileError> {
    let mut shared = Shared::default();
    let mut parser = Parser {
        skip: tree.new_rule("%ignore", 0)?,
        tree,
        shared: &mut shared,
        schema_options,
        open: Vec::new(),
        ignored: Vec::new(),
        in_terminal: false,
        options: Options::default(),
        depth: 0,
    };
    parser.statements()?;
    let root = parser.finish(0)?;
    check_terminals(tree, &shared.terminals)?;
    tree.check_defined()?;
    stops::place(tree, &shared.stopped)?;
    regular::resolve(tree)?;
    Ok(root)
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

    fn peek(&self) -> Option<char> {
        self.tree.source.peek()
    }

    fn eat(&mut self, text: &str) -> bool {
        self.tree.source.eat(text)
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

    /// Whether this character ends a nested grammar.
    fn is_end(&self, c: char) -> bool {
        c == '}' && self.depth > 0
    }

    fn statements(&mut self) -> Result<(), CompileError> {
        self.skip_space(true);
        while let Some(c) = self.peek().filter(|c| !self.is_end(*c)) {
            if c == '%' {
                self.directive()?;
            } else {
                self.definition()?;
            }
            self.end_of_line()?;
        }
        Ok(())
    }

    fn end_of_line(&mut self) -> Result<(), CompileError> {
        self.skip_space(false);
        match self.peek() {
            None | Some('\n' | '\r') => {
                self.skip_space(true);
                Ok(())
            }
            Some(c) if self.is_end(c) => Ok(()),
            Some(c) => Err(self.error(self.here(), format!("`{c}` is unexpected"))),
        }
    }

    fn word(&mut self) -> Result<String, CompileError> {
        let at = self.here();
        let source = &mut self.tree.source;
        let mut word = source.take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        // A name in front of an arrow.
        if word.ends_with('-') && source.peek() == Some('>') {
            word = &word[..word.len() - 1];
            source.at -= 1;
        }
        if word.is_empty() || word.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            return Err(self.error(at, "a name is missing"));
        }
        Ok(word.to_owned())
    }

    fn expect(&mut self, text: &str) -> Result<(), CompileError> {
        self.skip_space(false);
        if self.eat(text) {
            return Ok(());
        }
        Err(self.error(self.here(), format!("`{text}` is missing")))
    }

    /// `part` and what may be ignored behind it.
    fn with_skip(&mut self, part: ExprId) -> Result<ExprId, CompileError> {
        let skip = self.tree.add(Expr::Rule(self.skip))?;
        self.tree.seq(vec![part, skip])
    }

    /// Ends the grammar that began at byte `at`; the rule that an output of it begins with.
    fn finish(mut self, at: usize) -> Result<Name, CompileError> {
        let start = self.tree.names.get("start").copied();
        let start = start.ok_or_else(|| self.error(at, "the grammar has no rule `start` to begin with"))?;
        let ignored = std::mem::take(&mut self.ignored);
        let skip = if ignored.is_empty() {
            self.tree.add(Expr::Empty)?
        } else {
            let body = self.tree.alt(ignored)?;
            let max = self.options.ignore_once.then_some(1);
            self.tree.add(Expr::Repeat { body, min: 0, max })?
        };
        self.tree.define(self.skip, at, skip)?;
        if !self.options.allow_initial_skip {
            return Ok(start);
        }
        let parts = [self.skip, start].map(|rule| self.tree.add(Expr::Rule(rule)));
        let [skip, rest] = parts;
        let body = self.tree.seq(vec![skip?, rest?])?;
        let whole = self.tree.new_rule("start", at)?;
        self.tree.define(whole, at, body)?;
        Ok(whole)
    }
}

/// Refuses terminals that use themselves.
fn check_terminals(tree: &Tree<'_>, terminals: &[Name]) -> Result<(), CompileError> {
    // 1: on the path from where the search began, 2: done.
    let mut marks = vec![0u8; tree.rules.len()];
    for terminal in terminals {
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
                        .map(|name| shorten(&tree.rules[name as usize].name))
                        .collect();
                    let at = tree.rules[name as usize].at;
                    let why = format!("a terminal uses itself: {}", names.join(" → "));
                    return Err(tree.source.error(at, why));
                }
                _ => marks[name as usize] = 1,
            }
            path.push((name, true));
            let Some(body) = tree.rules[name as usize].body else {
                continue;
            };
            let mut todo = vec![body];
            while let Some(id) = todo.pop() {
                let expr = &tree.exprs[id as usize];
                todo.extend_from_slice(expr.children());
                if let Expr::Rule(name) = expr {
                    path.push((*name, false));
                }
            }
        }
    }
    Ok(())
}
