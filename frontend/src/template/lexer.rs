//! Finds the tags of a Jinja2 template and the tokens in them. Text, comments and the insides of raw blocks
//! belong to no tag.
//!
//! What is malformed ends the search: the rest of the template is for its compiler to complain about.

use std::ops::Range;

/// A tag.
pub(super) enum Piece {
    /// The opening of a raw block, whose `%}` is at `end`.
    Raw { end: usize },
    /// `{{ … }}`.
    Variable { tokens: Vec<Token> },
    /// `{% … %}`.
    Block { tokens: Vec<Token> },
}

/// What is between two blanks, operators or brackets within a tag.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Bytes of the source.
    pub(super) range: Range<usize>,
}

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Number,
    String,
    /// One of `([{`.
    Open,
    /// One of `)]}`.
    Close,
    Operator,
}

/// The tags of `source` in their order.
pub(super) fn pieces(source: &str) -> impl Iterator<Item = Piece> {
    let mut lexer = Lexer { source, at: 0 };
    std::iter::from_fn(move || lexer.piece())
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn piece(&mut self) -> Option<Piece> {
        loop {
            let brace = self.rest().find('{')?;
            self.at += brace;
            match self.rest().as_bytes().get(1) {
                Some(b'#') => self.skip_past("#}")?,
                Some(b'{') => {
                    self.open();
                    let tokens = self.tokens("}}")?;
                    return Some(Piece::Variable { tokens });
                }
                Some(b'%') => {
                    self.open();
                    return self.block();
                }
                _ => self.at += 1,
            }
        }
    }

    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn skip_past(&mut self, end: &str) -> Option<()> {
        self.at += self.rest().find(end)? + end.len();
        Some(())
    }

    /// Goes past a tag's two characters and its whitespace control.
    fn open(&mut self) {
        self.at += 2;
        if self.rest().starts_with(['-', '+']) {
            self.at += 1;
        }
    }

    fn block(&mut self) -> Option<Piece> {
        let tokens = self.tokens("%}")?;
        let is_raw = matches!(&tokens[..], [only] if &self.source[only.range.clone()] == "raw");
        if !is_raw {
            return Some(Piece::Block { tokens });
        }
        let end = self.at - "%}".len();
        loop {
            self.skip_past("{%")?;
            let inside = self.rest().trim_start_matches(['-', '+']).trim_start();
            if let Some(after) = inside.strip_prefix("endraw")
                && after
                    .trim_start()
                    .trim_start_matches(['-', '+'])
                    .starts_with("%}")
            {
                self.skip_past("%}")?;
                return Some(Piece::Raw { end });
            }
        }
    }

    /// Everything up to the `end` of the tag that stands outside of brackets, and goes past that.
    fn tokens(&mut self, end: &str) -> Option<Vec<Token>> {
        let mut tokens: Vec<Token> = Vec::new();
        let mut n_open = 0_usize;
        loop {
            self.at += self.rest().len() - self.rest().trim_start().len();
            let unsigned = self.rest().strip_prefix(['-', '+']).unwrap_or(self.rest());
            if n_open == 0 && unsigned.starts_with(end) {
                self.skip_past(end)?;
                return Some(tokens);
            }
            let follows_dot = tokens
                .last()
                .is_some_and(|last| &self.source[last.range.clone()] == ".");
            let (kind, n_bytes) = token(self.rest(), follows_dot)?;
            match kind {
                Kind::Open => n_open += 1,
                Kind::Close => n_open = n_open.checked_sub(1)?,
                _ => {}
            }
            let range = self.at..self.at + n_bytes;
            self.at = range.end;
            tokens.push(Token { kind, range });
        }
    }
}

/// Kind and length of the token that `text` begins with.
fn token(text: &str, follows_dot: bool) -> Option<(Kind, usize)> {
    let first = text.chars().next()?;
    let length_of = |is_part: fn(char) -> bool| text.find(|c| !is_part(c)).unwrap_or(text.len());
    match first {
        '"' | '\'' => Some((Kind::String, string_length(text, first)?)),
        '(' | '[' | '{' => Some((Kind::Open, 1)),
        ')' | ']' | '}' => Some((Kind::Close, 1)),
        '0'..='9' if follows_dot => Some((Kind::Number, length_of(|c| c.is_ascii_digit()))),
        '0'..='9' => Some((Kind::Number, number_length(text))),
        c if c == '_' || c.is_alphabetic() => {
            Some((Kind::Name, length_of(|c| c == '_' || c.is_alphanumeric())))
        }
        _ => {
            let is_double = ["**", "//", "==", "!=", "<=", ">="]
                .iter()
                .any(|op| text.starts_with(op));
            let n_bytes = if is_double { 2 } else { first.len_utf8() };
            Some((Kind::Operator, n_bytes))
        }
    }
}

fn string_length(text: &str, quote: char) -> Option<usize> {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Digits, a fraction, an exponent; or a whole number to the base 2, 8 or 16.
fn number_length(text: &str) -> usize {
    let digits = |text: &str| {
        text.find(|c: char| c != '_' && !c.is_ascii_digit())
            .unwrap_or(text.len())
    };
    let prefix = text.get(..2).map(str::to_ascii_lowercase);
    if matches!(prefix.as_deref(), Some("0x" | "0o" | "0b")) {
        return text
            .find(|c: char| c != '_' && !c.is_ascii_alphanumeric())
            .unwrap_or(text.len());
    }
    let mut length = digits(text);
    if let Some(fraction) = text[length..].strip_prefix('.')
        && fraction.starts_with(|c: char| c.is_ascii_digit())
    {
        length += 1 + digits(fraction);
    }
    if let Some(exponent) = text[length..].strip_prefix(['e', 'E']) {
        let unsigned = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        if unsigned.starts_with(|c: char| c.is_ascii_digit()) {
            length += 1 + exponent.len() - unsigned.len() + digits(unsigned);
        }
    }
    length
}
