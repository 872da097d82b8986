//! What follows a backslash in a regular expression.

use regex_syntax::hir::{Hir, Look};

use super::parse::{Escape, Parser, Syntax};

impl Parser<'_> {
    /// The escape whose backslash was read at `at`.
    pub(super) fn escape(&mut self, at: usize, in_class: bool) -> Result<Escape, String> {
        let Some(c) = self.next() else {
            return Err(self.error(at, "it ends with a backslash"));
        };
        let is_ecma = self.syntax() == Syntax::Ecma;
        Ok(match c {
            'd' | 'D' | 'w' | 'W' | 's' | 'S' => Escape::Set(self.shorthand(c)),
            'p' | 'P' => self.property_escape(at, c)?,
            'n' => Escape::Point(0xa),
            'r' => Escape::Point(0xd),
            't' => Escape::Point(0x9),
            'f' => Escape::Point(0xc),
            'v' => Escape::Point(0xb),
            'a' if !is_ecma => Escape::Point(0x7),
            'b' if in_class => Escape::Point(0x8),
            'b' | 'B' | 'A' | 'z' | 'Z' if !in_class => Escape::Assertion(self.assertion(at, c)?),
            '0' if !self.rest().starts_with(|c: char| c.is_ascii_digit()) => Escape::Point(0),
            '0'..='9' if in_class || c == '0' => {
                return Err(self.error(at, "octal escapes are not supported"));
            }
            '1'..='9' | 'k' => return Err(self.error(at, "back-references are not regular")),
            'c' => {
                let letter = self.next().filter(char::is_ascii_alphabetic);
                let letter = letter.ok_or_else(|| self.error(at, "`\\c` without a letter"))?;
                Escape::Point(u32::from(letter) % 32)
            }
            'x' => self.hexadecimal(at, 2)?,
            'u' => self.hexadecimal(at, 4)?,
            'U' if !is_ecma => self.hexadecimal(at, 8)?,
            '<' | '>' if self.syntax() == Syntax::Rust && !in_class => {
                let why = format!("`\\{c}` is a border of a word to some and `{c}` to others");
                return Err(self.error(at, why));
            }
            c if c.is_ascii_alphanumeric() => {
                return Err(self.error(at, format!("`\\{c}` is no escape here")));
            }
            c => Escape::Point(u32::from(c)),
        })
    }

    fn assertion(&mut self, at: usize, c: char) -> Result<Hir, String> {
        match c {
            'A' => return Ok(Hir::look(Look::Start)),
            'z' | 'Z' => return Ok(Hir::look(Look::End)),
            _ => {}
        }
        let mut name = if c == 'b' { "b" } else { "B" };
        if c == 'b' && self.syntax() == Syntax::Rust {
            let rest = self.rest();
            let named = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            // A number would repeat the border.
            if let Some((inner, _)) = named.filter(|(inner, _)| inner.starts_with(char::is_alphabetic)) {
                name = inner;
                self.skip(inner.len() + 2);
            }
        }
        let found = if self.is_unicode() {
            self.word_border(name)
        } else {
            ascii_border(name).map(Hir::look)
        };
        found.ok_or_else(|| self.error(at, format!("`\\b{{{name}}}` is no border that is known")))
    }

    /// `{name}` or one letter, behind `\p`.
    fn property_escape(&mut self, at: usize, letter: char) -> Result<Escape, String> {
        let rest = self.rest();
        let name = match rest.strip_prefix('{') {
            Some(inner) => inner.split_once('}').map(|(name, _)| name),
            None if self.syntax() == Syntax::Ecma => None,
            None => rest.get(..1),
        };
        let name = name.ok_or_else(|| self.error(at, format!("`\\{letter}` without a name in braces")))?;
        self.skip(name.len() + if rest.starts_with('{') { 2 } else { 0 });
        self.property(at, name, letter).map(Escape::Set)
    }

    /// `n_digits` digits, or any number of them in braces.
    fn hexadecimal(&mut self, at: usize, n_digits: usize) -> Result<Escape, String> {
        let rest = self.rest();
        let (digits, n_bytes) = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((digits, _)) => (digits, digits.len() + 2),
            None => (rest.get(..n_digits).unwrap_or_default(), n_digits),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_number {
            let why = format!("an escape without its {n_digits} hexadecimal digits");
            return Err(self.error(at, why));
        }
        let point = u32::from_str_radix(digits, 16).ok();
        let point = point.filter(|point| *point <= u32::from(char::MAX));
        let point = point.ok_or_else(|| self.error(at, format!("U+{digits} is beyond U+10FFFF")))?;
        self.skip(n_bytes);
        Ok(Escape::Point(point))
    }
}

fn ascii_border(name: &str) -> Option<Look> {
    Some(match name {
        "b" => Look::WordAscii,
        "B" => Look::WordAsciiNegate,
        "start" => Look::WordStartAscii,
        "end" => Look::WordEndAscii,
        "start-half" => Look::WordStartHalfAscii,
        "end-half" => Look::WordEndHalfAscii,
        _ => return None,
    })
}
