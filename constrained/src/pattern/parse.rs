//! Regular expressions as text.
//!
//! | | ECMA-262 | Python | Rust |
//! |---|---|---|---|
//! | who | schemas | Lark | all others |
//! | `.` is not | `\n`, `\r`, U+2028, U+2029 | `\n` | `\n` |
//! | `\s` | its white space, U+FEFF too | ASCII | ASCII |
//! | `[]`, `[^]` | no character, any | begin a class with `]` | the same |
//! | `[a[b]]`, `[[:alpha:]]`, `&&`, `--`, `~~` | characters | characters | sets |
//! | `{,3}` | refused | up to three | up to three |
//!
//! All have groups, names, flags (`(?i)`, `(?i:…)`, of `imsuUxR` and `a`), look-around, atomic groups and
//! possessive repetitions, comments, `\A`, `\z` and `\Z` (the last two alike) and the escapes of all. `\d`,
//! `\w` and `\b` are of ASCII, with `(?u)` Unicode's. `(?i)` ignores the case of all letters; only with
//! `(?u)` is one of ASCII the same as one beyond. `$` is the end of the text, with `(?m)` also that of a
//! line. What is refused is what has no one meaning, or is not regular: back-references, recursion,
//! conditions.

use regex_syntax::hir::{Capture, Class, ClassUnicode, Hir, Look, Repetition};

use super::class::ascii;
use super::{Around, Direction};

/// Whose notation a pattern is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    Ecma,
    Python,
    Rust,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    ignores_case: bool,
    is_multi_line: bool,
    /// A dot is any character.
    is_single_line: bool,
    is_verbose: bool,
    is_unicode: bool,
    /// `\r` ends lines, too.
    has_carriage_returns: bool,
}

/// What an escape stands for.
pub(super) enum Escape {
    /// A code point, which may be a surrogate.
    Point(u32),
    Set(ClassUnicode),
    Assertion(Hir),
}

pub(super) struct Parser<'a> {
    source: &'a str,
    /// The byte to be read next.
    at: usize,
    syntax: Syntax,
    flags: Flags,
    /// Groups and classes that are open.
    depth: u32,
    arounds: Vec<Around>,
}

/// `source` as written in `syntax`, after the flags `flags`, and the look-around that stands in it: see
/// [`super::Pattern`].
pub(super) fn parse(source: &str, syntax: Syntax, flags: &str) -> Result<(Hir, Vec<Around>), String> {
    let mut parser = Parser {
        source: flags,
        at: 0,
        syntax,
        flags: Flags::default(),
        depth: 0,
        arounds: Vec::new(),
    };
    while let Some(flag) = parser.next() {
        parser.set_flag(flag, true)?;
    }
    (parser.source, parser.at) = (source, 0);
    let hir = parser.alternatives()?;
    if parser.peek().is_some() {
        return Err(parser.error(parser.at, "`)` without `(`"));
    }
    Ok((hir, parser.arounds))
}

impl<'a> Parser<'a> {
    pub(super) fn syntax(&self) -> Syntax {
        self.syntax
    }

    pub(super) fn is_unicode(&self) -> bool {
        self.flags.is_unicode
    }

    pub(super) fn is_verbose(&self) -> bool {
        self.flags.is_verbose
    }

    pub(super) fn ignores_case(&self) -> bool {
        self.flags.ignores_case
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    pub(super) fn eat(&mut self, text: &str) -> bool {
        let is_here = self.rest().starts_with(text);
        self.at += if is_here { text.len() } else { 0 };
        is_here
    }

    pub(super) fn skip(&mut self, n_bytes: usize) {
        self.at += n_bytes;
    }

    /// `why` with the place of the byte `at`.
    pub(super) fn error(&self, at: usize, why: impl std::fmt::Display) -> String {
        let n = 1 + self.source[..at].chars().count();
        format!("{why}, at character {n}")
    }

    /// Opens something at `at` that is read by recursion.
    pub(super) fn enter(&mut self, at: usize) -> Result<(), String> {
        const MAX_DEPTH: u32 = 96;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(at, format!("groups are nested deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Skips comments, and whitespace where it is nothing.
    fn skip_comments(&mut self) -> Result<(), String> {
        loop {
            let begin = self.at;
            if self.eat("(?#") {
                let end = self.rest().find(')');
                let end = end.ok_or_else(|| self.error(begin, "a comment is never closed"))?;
                self.skip(end + 1);
            }
            if self.flags.is_verbose {
                let rest = self.rest().trim_start();
                self.at = self.source.len() - rest.len();
                if rest.starts_with('#') {
                    self.skip(rest.find('\n').unwrap_or(rest.len()));
                }
            }
            if self.at == begin {
                return Ok(());
            }
        }
    }

    /// Up to the end of the group.
    fn alternatives(&mut self) -> Result<Hir, String> {
        let (mut done, mut parts) = (Vec::new(), Vec::new());
        loop {
            self.skip_comments()?;
            match self.peek() {
                None | Some(')') => break,
                Some('|') => {
                    self.eat("|");
                    done.push(Hir::concat(std::mem::take(&mut parts)));
                }
                Some(_) => {
                    let part = self.part()?;
                    self.skip_comments()?;
                    parts.push(self.repeated(part)?);
                }
            }
        }
        done.push(Hir::concat(parts));
        Ok(Hir::alternation(done))
    }

    fn part(&mut self) -> Result<Hir, String> {
        let at = self.at;
        let c = self.next().expect("the caller looked");
        match c {
            '(' => self.group(at),
            '[' => self.class(),
            '.' => Ok(self.dot()),
            '^' | '$' => Ok(self.anchor(c)),
            '*' | '+' | '?' => Err(self.error(at, format!("`{c}` has nothing to repeat"))),
            '{' if self.bounds(at)?.is_some() => Err(self.error(at, "a repetition of nothing")),
            '\\' => match self.escape(at, false)? {
                Escape::Set(mut set) => {
                    self.ignore_case(&mut set);
                    Ok(Hir::class(Class::Unicode(set)))
                }
                Escape::Assertion(assertion) => Ok(assertion),
                Escape::Point(point) => self.character(at, point),
            },
            c => self.character(at, u32::from(c)),
        }
    }

    /// The character that is written at `at` and begins with `point`.
    fn character(&mut self, at: usize, point: u32) -> Result<Hir, String> {
        let c = char::from_u32(self.joined(point)?);
        let c = c.ok_or_else(|| self.error(at, "a surrogate by itself is no character"))?;
        let mut set = ascii(&[(c, c)]);
        self.ignore_case(&mut set);
        Ok(Hir::class(Class::Unicode(set)))
    }

    /// The code point that `first` and an escape behind it are, where they are the two halves of one.
    pub(super) fn joined(&mut self, first: u32) -> Result<u32, String> {
        let begin = self.at;
        if !(0xD800..0xDC00).contains(&first) || !self.eat("\\") || !self.rest().starts_with('u') {
            self.at = begin;
            return Ok(first);
        }
        if let Escape::Point(second @ 0xDC00..0xE000) = self.escape(begin, false)? {
            return Ok(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00));
        }
        self.at = begin;
        Ok(first)
    }

    fn dot(&self) -> Hir {
        let mut set = if self.flags.is_single_line {
            ClassUnicode::empty()
        } else {
            self.line_ends()
        };
        set.negate();
        Hir::class(Class::Unicode(set))
    }

    fn line_ends(&self) -> ClassUnicode {
        match self.syntax {
            Syntax::Ecma => ascii(&[('\n', '\n'), ('\r', '\r'), ('\u{2028}', '\u{2029}')]),
            _ if self.flags.has_carriage_returns => ascii(&[('\n', '\n'), ('\r', '\r')]),
            _ => ascii(&[('\n', '\n')]),
        }
    }

    fn anchor(&mut self, c: char) -> Hir {
        let is_start = c == '^';
        if !self.flags.is_multi_line {
            return Hir::look(if is_start { Look::Start } else { Look::End });
        }
        if self.syntax == Syntax::Ecma {
            let mut others = self.line_ends();
            others.negate();
            let others = Hir::class(Class::Unicode(others));
            let direction = if is_start {
                Direction::Behind
            } else {
                Direction::Ahead
            };
            return self.around(direction, true, others);
        }
        Hir::look(match (is_start, self.flags.has_carriage_returns) {
            (true, false) => Look::StartLF,
            (true, true) => Look::StartCRLF,
            (false, false) => Look::EndLF,
            (false, true) => Look::EndCRLF,
        })
    }

    /// A test that stands in the expression as a group without content: see [`super::Pattern`].
    pub(super) fn around(&mut self, direction: Direction, is_negated: bool, body: Hir) -> Hir {
        let around = Around {
            direction,
            is_negated,
            body,
        };
        let known = self.arounds.iter().position(|known| *known == around);
        let place = known.unwrap_or_else(|| {
            self.arounds.push(around);
            self.arounds.len() - 1
        });
        Hir::capture(Capture {
            index: place as u32 + 1,
            name: None,
            sub: Box::new(Hir::empty()),
        })
    }

    /// The group whose `(` was read at `at`.
    fn group(&mut self, at: usize) -> Result<Hir, String> {
        if self.rest().starts_with('*') {
            return Err(self.error(at, "`(*` begins a verb of PCRE, which is not supported"));
        }
        if !self.eat("?") || self.eat(":") {
            return self.body(at);
        }
        for (mark, direction, is_negated) in [
            ("=", Direction::Ahead, false),
            ("!", Direction::Ahead, true),
            ("<=", Direction::Behind, false),
            ("<!", Direction::Behind, true),
        ] {
            if self.eat(mark) {
                let body = self.body(at)?;
                return Ok(self.around(direction, is_negated, body));
            }
        }
        if self.eat(">") {
            let body = self.body(at)?;
            return self.atomic(at, &body);
        }
        if self.eat("P=") {
            return Err(self.error(at, "back-references are not regular"));
        }
        let recurses = |c: char| c.is_ascii_digit() || "&+".contains(c);
        let rest = self.rest();
        if rest.starts_with("R)") || rest.starts_with("P>") || rest.starts_with(recurses) {
            return Err(self.error(at, "recursion is not regular"));
        }
        if self.rest().starts_with('(') {
            return Err(self.error(at, "conditions are not supported"));
        }
        if self.eat("P<") || self.eat("<") {
            self.group_name(at)?;
            return self.body(at);
        }
        self.flags(at)
    }

    /// Up to the bracket that closes the group opened at `at`. Flags set within end with it.
    fn body(&mut self, at: usize) -> Result<Hir, String> {
        self.enter(at)?;
        let outer = self.flags;
        let body = self.alternatives()?;
        self.flags = outer;
        self.leave();
        if self.eat(")") {
            return Ok(body);
        }
        Err(self.error(at, "a group is never closed"))
    }

    fn group_name(&mut self, at: usize) -> Result<(), String> {
        let end = self.rest().find('>');
        let end = end.ok_or_else(|| self.error(at, "a group's name has no end"))?;
        let name = &self.rest()[..end];
        let is_letter = |c: char| c == '_' || c == '$' || c.is_alphanumeric();
        if !name.chars().all(is_letter) || name.is_empty() || name.starts_with(|c: char| c.is_numeric()) {
            return Err(self.error(at, "a group's name is letters, digits and `_`"));
        }
        self.skip(end + 1);
        Ok(())
    }

    /// `i-s)` or `i-s:…)`, of the group whose `(?` was read.
    fn flags(&mut self, at: usize) -> Result<Hir, String> {
        let outer = self.flags;
        let (mut is_set, mut n_read) = (true, 0);
        loop {
            let letter_at = self.at;
            match self.next() {
                Some(')') if n_read > 0 => return Ok(Hir::empty()),
                Some(':') if n_read > 0 => {
                    let body = self.body(at);
                    self.flags = outer;
                    return body;
                }
                Some('-') if is_set => is_set = false,
                Some(flag) if flag.is_ascii_alphabetic() => {
                    let set = self.set_flag(flag, is_set);
                    set.map_err(|why| self.error(letter_at, why))?;
                }
                _ => return Err(self.error(at, "`(?` begins no group that is known")),
            }
            n_read += 1;
        }
    }

    fn set_flag(&mut self, flag: char, value: bool) -> Result<(), String> {
        let flags = &mut self.flags;
        match flag {
            'i' => flags.ignores_case = value,
            'm' => flags.is_multi_line = value,
            's' => flags.is_single_line = value,
            'x' => flags.is_verbose = value,
            'u' => flags.is_unicode = value,
            'a' => flags.is_unicode = !value,
            'R' if self.syntax == Syntax::Rust => flags.has_carriage_returns = value,
            // Which match is preferred says nothing of which texts match.
            'U' if self.syntax == Syntax::Rust => {}
            _ => return Err(format!("the flag `{flag}` is not supported")),
        }
        Ok(())
    }

    /// `part` and the repetition that may follow it.
    fn repeated(&mut self, part: Hir) -> Result<Hir, String> {
        let at = self.at;
        let Some((min, max)) = self.count()? else {
            return Ok(part);
        };
        if max.is_some_and(|max| max < min) {
            return Err(self.error(at, "a repetition's maximum is below its minimum"));
        }
        let greedy = !self.eat("?");
        let is_possessive = greedy && self.eat("+");
        let mut whole = Hir::repetition(Repetition {
            min,
            max,
            greedy,
            sub: Box::new(part),
        });
        if is_possessive {
            whole = self.atomic(at, &whole)?;
        }
        self.skip_comments()?;
        let next_at = self.at;
        if self.count()?.is_none() {
            return Ok(whole);
        }
        if self.syntax != Syntax::Rust {
            return Err(self.error(next_at, "a repetition of a repetition, which needs a group"));
        }
        self.at = next_at;
        self.enter(next_at)?;
        let whole = self.repeated(whole);
        self.leave();
        whole
    }

    /// Reads how often something is repeated.
    fn count(&mut self) -> Result<Option<(u32, Option<u32>)>, String> {
        let at = self.at;
        let count = match self.next() {
            Some('*') => Some((0, None)),
            Some('+') => Some((1, None)),
            Some('?') => Some((0, Some(1))),
            Some('{') => self.bounds(at)?,
            _ => None,
        };
        if count.is_none() {
            self.at = at;
        }
        Ok(count)
    }

    /// Reads `2}`, `2,}`, `2,3}` or `,3}` behind a brace at `at`; anything else is text and stays.
    fn bounds(&mut self, at: usize) -> Result<Option<(u32, Option<u32>)>, String> {
        let rest = self.rest();
        let Some((inner, _)) = rest.split_once('}') else {
            return Ok(None);
        };
        let (min, max) = inner.split_once(',').map_or((inner, None), |(a, b)| (a, Some(b)));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let has_no_min = min.is_empty() && max.is_some_and(is_number);
        if has_no_min && self.syntax == Syntax::Ecma {
            let why =
                "a repetition without a lower bound, which some read as a repetition and some as itself";
            return Err(self.error(at, why));
        }
        let max_is_right = max.is_none_or(|max| max.is_empty() || is_number(max));
        if !max_is_right || !is_number(min) && !has_no_min {
            return Ok(None);
        }
        let number = |text: &str| {
            let number = text.parse::<u32>();
            number.map_err(|_| self.error(at, format!("a repetition of more than {} times", u32::MAX)))
        };
        let bounds = (
            if has_no_min { 0 } else { number(min)? },
            match max {
                None => Some(number(min)?),
                Some("") => None,
                Some(max) => Some(number(max)?),
            },
        );
        let n_bytes = inner.len() + 1;
        self.skip(n_bytes);
        Ok(Some(bounds))
    }

    /// Tests that together are a border between words, as Unicode has them; `\b` is called `b`.
    pub(super) fn word_border(&mut self, name: &str) -> Option<Hir> {
        let word = Hir::class(Class::Unicode(self.shorthand('w')));
        let mut is = |direction, is_negated| self.around(direction, is_negated, word.clone());
        let (after_word, after_other) = (is(Direction::Behind, false), is(Direction::Behind, true));
        let (before_word, before_other) = (is(Direction::Ahead, false), is(Direction::Ahead, true));
        let both = |a: &Hir, b: &Hir| Hir::concat(vec![a.clone(), b.clone()]);
        let start = both(&after_other, &before_word);
        let end = both(&after_word, &before_other);
        Some(match name {
            "b" => Hir::alternation(vec![start, end]),
            "B" => Hir::alternation(vec![
                both(&after_word, &before_word),
                both(&after_other, &before_other),
            ]),
            "start" => start,
            "end" => end,
            "start-half" => after_other,
            "end-half" => before_other,
            _ => return None,
        })
    }
}
