//! A grammar's text, a place in it, and errors that name places.

use crate::error::CompileError;

#[derive(Debug)]
pub(crate) struct Source<'a> {
    text: &'a str,
    pub(crate) at: usize,
}

impl<'a> Source<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(crate) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(crate) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(crate) fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Takes `text` if it comes next.
    pub(crate) fn eat(&mut self, text: &str) -> bool {
        let is_next = self.rest().starts_with(text);
        if is_next {
            self.at += text.len();
        }
        is_next
    }

    /// Takes the characters that `is` holds for.
    pub(crate) fn take_while(&mut self, is: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !is(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// A decimal number, which must come next.
    pub(crate) fn number(&mut self) -> Result<u32, CompileError> {
        let at = self.at;
        let digits = self.take_while(|c| c.is_ascii_digit());
        if digits.is_empty() {
            return Err(self.error(at, "a number is missing".to_owned()));
        }
        digits
            .parse()
            .map_err(|_| self.error(at, format!("the number is larger than {}", u32::MAX)))
    }

    /// One-based.
    pub(crate) fn line_and_column(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        (line, before[start..].chars().count() + 1)
    }

    pub(crate) fn place(&self, at: usize) -> String {
        let (line, column) = self.line_and_column(at);
        format!("line {line}, column {column} of the grammar")
    }

    pub(crate) fn here(&self) -> String {
        self.place(self.at)
    }

    pub(crate) fn error(&self, at: usize, why: String) -> CompileError {
        let (line, column) = self.line_and_column(at);
        CompileError::Syntax { line, column, why }
    }
}

pub(crate) fn limit(name: &'static str, limit: usize, place: String) -> CompileError {
    CompileError::Limit {
        name,
        limit: limit as u64,
        place,
    }
}
