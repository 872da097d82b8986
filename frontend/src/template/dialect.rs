//! Translates a template from Jinja2, as Hugging Face's library runs it, to what minijinja reads.
//!
//! ```text
//! Jinja2                                minijinja
//! {% generation %}                      {% with %}                   both open a scope
//! {% endgeneration %}                   {% endwith %}
//! a * b % c                             _percent(a * b, c)           a remainder, or a string's formatting
//! {{ a, b }}   {% for x in a, b %}      {{ (a, b) }}   {% for x in (a, b) %}
//! +a                                    a
//! "\U0001F642"                          the character itself
//! {% raw %}                             {% raw +%}                   its first line break stays
//! \r\n   \r                             \n
//! [a, b]                                _list([a, b])                where a method changes a list
//! ```
//!
//! Everything else is copied: text, comments, the insides of raw blocks, whitespace control. Except in `\r\n`
//! no line break comes or goes, so an error's line is the line in the original.

use std::ops::Range;

use super::containers::{LIST, LIST_CHANGES};
use super::lexer::{Kind, Piece, Token, pieces};
use super::values::NullContent;

/// The function that stands for the operator `%`.
pub(super) const PERCENT: &str = "_percent";

/// A tag that cannot be translated.
#[derive(Debug)]
pub(super) struct Misplaced {
    /// Counted from 1.
    pub(super) line: usize,
    /// The tag, and what is wrong with it.
    pub(super) message: String,
}

/// A translated template.
#[derive(Debug)]
pub(super) struct Translated {
    /// To be compiled by minijinja.
    pub(super) source: String,
    /// Shown where the template compares some `content` with `none`.
    pub(super) null_content: NullContent,
}

/// Translates the template `source`.
pub(super) fn translate(source: &str) -> Result<Translated, Misplaced> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut translation = Translation {
        source: &source,
        edits: Vec::new(),
        open: Vec::new(),
        null_content: NullContent::LeftOut,
        lists_change: LIST_CHANGES
            .iter()
            .any(|method| source.contains(&format!(".{method}("))),
    };
    for piece in pieces(&source) {
        match piece {
            Piece::Raw { end } => translation.raw(end),
            Piece::Variable { tokens } => {
                translation.tuple(&tokens);
                translation.expression(&tokens);
            }
            Piece::Block { tokens } => translation.block(&tokens)?,
        }
    }
    if let Some((tag, at)) = translation.open.iter().find(|(tag, _)| *tag == GENERATION) {
        return Err(translation.misplaced(*at, format!("{{% {tag} %}} is never closed")));
    }
    Ok(Translated {
        null_content: translation.null_content,
        source: translation.apply(),
    })
}

const GENERATION: &str = "generation";

/// Tags that need an end, besides `set` without a value.
const BLOCKS: [&str; 9] = [
    "if",
    "for",
    "macro",
    "call",
    "filter",
    "with",
    "autoescape",
    "block",
    GENERATION,
];

/// What replaces a part of the source.
struct Edit {
    range: Range<usize>,
    what: Insertion,
    text: String,
}

/// What is inserted, in the order of what stands at one place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Insertion {
    End,
    Tuple,
    Percent,
    List,
    Instead,
}

struct Translation<'a> {
    source: &'a str,
    edits: Vec<Edit>,
    /// Blocks that are open, with their places.
    open: Vec<(&'a str, usize)>,
    /// Whether lists that are written out can be changed.
    lists_change: bool,
    null_content: NullContent,
}

impl<'a> Translation<'a> {
    fn text(&self, token: &Token) -> &'a str {
        &self.source[token.range.clone()]
    }

    fn insert(&mut self, at: usize, what: Insertion, text: &str) {
        let text = text.to_owned();
        self.edits.push(Edit {
            range: at..at,
            what,
            text,
        });
    }

    fn replace(&mut self, range: Range<usize>, text: &str) {
        let (what, text) = (Insertion::Instead, text.to_owned());
        self.edits.push(Edit { range, what, text });
    }

    fn apply(mut self) -> String {
        self.edits.sort_by_key(|edit| (edit.range.start, edit.what));
        let mut output = String::with_capacity(self.source.len() + 256);
        let mut done = 0;
        for Edit { range, text, .. } in self.edits {
            output.push_str(&self.source[done..range.start]);
            output.push_str(&text);
            done = range.end;
        }
        output.push_str(&self.source[done..]);
        output
    }

    fn misplaced(&self, at: usize, message: String) -> Misplaced {
        let line = 1 + self.source[..at].matches('\n').count();
        Misplaced { line, message }
    }

    /// Keeps the line break behind `{% raw %}`, whose `%}` is at `end`.
    fn raw(&mut self, end: usize) {
        if !self.source[..end].ends_with(['-', '+']) {
            self.insert(end, Insertion::Instead, "+");
        }
    }

    fn block(&mut self, tokens: &[Token]) -> Result<(), Misplaced> {
        // A block without a name is for the compiler to complain about.
        let Some((first, rest)) = tokens.split_first().filter(|(first, _)| first.kind == Kind::Name) else {
            return Ok(());
        };
        let tag = self.text(first);
        self.balance(tag, first.range.start, rest)?;
        match tag {
            "generation" | "endgeneration" if !rest.is_empty() => {
                let message = format!("{{% {tag} %}} takes no arguments");
                return Err(self.misplaced(first.range.start, message));
            }
            "generation" => self.replace(first.range.clone(), "with"),
            "endgeneration" => self.replace(first.range.clone(), "endwith"),
            "for" => self.iterated(rest),
            "break" | "continue" => self.leaves_loop(tag, first.range.start)?,
            _ => {}
        }
        self.expression(rest);
        Ok(())
    }

    /// Refuses what leaves a loop from within a block that minijinja would leave open.
    fn leaves_loop(&self, tag: &str, at: usize) -> Result<(), Misplaced> {
        let within = self.open.iter().rev().take_while(|(block, _)| *block != "for");
        let mut kept_open = within.filter(|(block, _)| ["with", "set", "filter", GENERATION].contains(block));
        match kept_open.next() {
            None => Ok(()),
            Some((block, _)) => {
                let message = format!("{{% {tag} %}} inside of {{% {block} %}} is not supported");
                Err(self.misplaced(at, message))
            }
        }
    }

    /// Keeps account of open blocks. Other mistakes than those with `generation` are told by minijinja, in
    /// the template's own words.
    fn balance(&mut self, tag: &'a str, at: usize, rest: &[Token]) -> Result<(), Misplaced> {
        let takes_body = tag == "set" && !rest.iter().any(|token| self.text(token) == "=");
        if takes_body || BLOCKS.contains(&tag) {
            self.open.push((tag, at));
            return Ok(());
        }
        let Some(closed) = tag.strip_prefix("end") else {
            return Ok(());
        };
        let opened = self.open.pop().map_or("", |(tag, _)| tag);
        if opened != closed && [opened, closed].contains(&GENERATION) {
            let message = match opened {
                "" => format!("{{% {tag} %}} closes nothing"),
                opened => format!("{{% {tag} %}} where {{% end{opened} %}} is expected"),
            };
            return Err(self.misplaced(at, message));
        }
        Ok(())
    }

    /// Puts parentheses around items that stand without.
    fn tuple(&mut self, items: &[Token]) {
        let (Some(first), Some(last)) = (items.first(), items.last()) else {
            return;
        };
        let has_comma = outermost(items).any(|token| self.text(token) == ",");
        if has_comma {
            self.insert(first.range.start, Insertion::Tuple, "(");
            self.insert(last.range.end, Insertion::End, ")");
        }
    }

    /// What a loop goes over: between `in` and `if`, `recursive` or the end.
    fn iterated(&mut self, tokens: &[Token]) {
        let Some(start) = tokens.iter().position(|token| self.text(token) == "in") else {
            return;
        };
        let items = &tokens[start + 1..];
        let is_end = |token: &&Token| matches!(self.text(token), "if" | "recursive");
        let end = outermost(items)
            .find(is_end)
            .map_or(self.source.len(), |token| token.range.start);
        let n_items = items.partition_point(|token| token.range.start < end);
        self.tuple(&items[..n_items]);
    }

    /// Whether `content` is compared with `none`: `m.content is not none`, `m['content'] == none`.
    fn asks_for_null_content(&self, tokens: &[Token]) -> bool {
        let names = tokens
            .iter()
            .map(|token| self.text(token).trim_matches(['\'', '"']));
        let words: Vec<&str> = names.filter(|word| !matches!(*word, "]" | ")" | "not")).collect();
        words.windows(3).any(|words| {
            let is_none = matches!(words[2], "none" | "None");
            words[0] == "content" && matches!(words[1], "is" | "==" | "!=") && is_none
        })
    }

    /// Rewrites operators and strings.
    fn expression(&mut self, tokens: &[Token]) {
        if self.asks_for_null_content(tokens) {
            self.null_content = NullContent::Shown;
        }
        let mut terms = Terms::default();
        let mut before = Role::Weak;
        let mut end = 0;
        for token in tokens {
            let (start, text) = (token.range.start, self.text(token));
            let role = before.next(token.kind, text);
            if let Some(ended) = terms.next(role, start) {
                self.close(ended, end);
            }
            match role {
                Role::Group | Role::Call => {
                    let is_in_list = self.lists_change && role == Role::Group && text == "[";
                    if is_in_list {
                        self.insert(start, Insertion::List, &format!("{LIST}("));
                    }
                    terms.open(is_in_list);
                }
                Role::Close if terms.close() => self.insert(token.range.end, Insertion::End, ")"),
                Role::Remainder => {
                    // Without a left side it is an error, for the compiler to tell.
                    let left = terms.last().start.unwrap_or(start);
                    self.insert(left, Insertion::Percent, &format!("{PERCENT}("));
                    self.replace(token.range.clone(), ",");
                }
                Role::Sign if text == "+" => self.replace(token.range.clone(), ""),
                _ if token.kind == Kind::String => self.string(token),
                _ => {}
            }
            before = role;
            end = token.range.end;
        }
        self.close(*terms.last(), end);
    }

    /// Ends the call that stands for `%` behind its second argument.
    fn close(&mut self, ended: Term, end: usize) {
        if ended.is_divisor {
            self.insert(end, Insertion::End, ")");
        }
    }

    /// Replaces the escapes that minijinja does not know.
    fn string(&mut self, token: &Token) {
        let text = self.text(token);
        let mut at = 0;
        while let Some(found) = text[at..].find('\\') {
            let escape = at + found;
            let hex = text
                .get(escape + 2..escape + 10)
                .filter(|_| text[escape + 1..].starts_with('U'));
            let c = hex.and_then(|hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?));
            at = match c {
                Some(c) => {
                    let start = token.range.start + escape;
                    // Those of ASCII could end the string.
                    let written = match u32::from(c) {
                        code @ ..0x80 => format!("\\x{code:02x}"),
                        _ => c.to_string(),
                    };
                    self.replace(start..start + 10, &written);
                    escape + 10
                }
                // The escaped character may be a backslash, or a quote.
                None => escape + 1 + text[escape + 1..].chars().next().map_or(0, char::len_utf8),
            };
        }
    }
}

/// The tokens outside of brackets.
fn outermost(tokens: &[Token]) -> impl Iterator<Item = &Token> {
    let mut n_open = 0_usize;
    tokens.iter().filter(move |token| {
        match token.kind {
            Kind::Open => n_open += 1,
            Kind::Close => n_open -= 1,
            _ => {}
        }
        n_open == 0 && token.kind != Kind::Close
    })
}

/// A chain of operands with `*`, `/`, `//` and `%` between them, which bind from the left. Filters, tests,
/// subscripts, calls, signs and `**` bind tighter; what binds weaker ends it.
#[derive(Clone, Copy, Default)]
struct Term {
    /// Where its first operand begins.
    start: Option<usize>,
    /// Whether its last operand is the right side of a `%`.
    is_divisor: bool,
    /// Whether the brackets around it write a list that can be changed.
    is_in_list: bool,
}

/// The terms at a place, from the outermost bracket to the innermost.
struct Terms(Vec<Term>);

impl Default for Terms {
    fn default() -> Self {
        Terms(vec![Term::default()])
    }
}

impl Terms {
    fn last(&mut self) -> &mut Term {
        self.0.last_mut().expect("brackets are balanced")
    }

    /// Goes on with a token at `start`; returns the term whose last operand is over, if it is.
    fn next(&mut self, role: Role, start: usize) -> Option<Term> {
        let term = self.last();
        let ended = *term;
        match role {
            Role::Operand | Role::Sign | Role::Group => {
                term.start.get_or_insert(start);
                return None;
            }
            Role::Product | Role::Remainder => term.is_divisor = role == Role::Remainder,
            Role::Weak => (term.start, term.is_divisor) = (None, false),
            Role::Close => {}
            Role::Part | Role::Postfix | Role::Is | Role::Power | Role::Call => return None,
        }
        Some(ended)
    }

    fn open(&mut self, is_in_list: bool) {
        self.0.push(Term {
            is_in_list,
            ..Term::default()
        });
    }

    /// Goes behind a closing bracket; returns whether it ends a list that can be changed.
    fn close(&mut self) -> bool {
        self.0.pop().expect("brackets are balanced").is_in_list
    }
}

/// What a token does in an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The start of an operand.
    Operand,
    /// A bracket that starts an operand.
    Group,
    /// A bracket behind an operand: a call or a subscript.
    Call,
    Close,
    /// A sign in front of an operand.
    Sign,
    /// `.` or `|`, before a name.
    Postfix,
    /// `is` or `is not`, before the name of a test.
    Is,
    /// A further part of an operand: the name of an attribute, a filter or a test, or a test's argument.
    Part,
    /// `**`
    Power,
    /// `*`, `/` or `//`.
    Product,
    /// `%`
    Remainder,
    /// Any other operator, and punctuation.
    Weak,
}

impl Role {
    /// The role of the token that follows.
    fn next(self, kind: Kind, text: &str) -> Role {
        let wants_operand = matches!(
            self,
            Role::Weak
                | Role::Product
                | Role::Remainder
                | Role::Power
                | Role::Sign
                | Role::Group
                | Role::Call
        );
        match (kind, text) {
            (Kind::Close, _) => Role::Close,
            (Kind::Open, _) if wants_operand => Role::Group,
            (Kind::Open, _) => Role::Call,
            (Kind::Name, "not") if self == Role::Is => Role::Is,
            _ if matches!(self, Role::Postfix | Role::Is) => Role::Part,
            (Kind::Name, "is") if !wants_operand => Role::Is,
            (Kind::Name, "and" | "or" | "not" | "in" | "if" | "else" | "recursive") => Role::Weak,
            (Kind::Operator, "+" | "-") if wants_operand => Role::Sign,
            (Kind::Operator, "**") => Role::Power,
            (Kind::Operator, "*" | "/" | "//") => Role::Product,
            (Kind::Operator, "%") if !wants_operand => Role::Remainder,
            (Kind::Operator, "." | "|") => Role::Postfix,
            (Kind::Operator, _) => Role::Weak,
            _ if wants_operand => Role::Operand,
            _ => Role::Part,
        }
    }
}
