//! Sets of characters: classes in brackets, shorthands, Unicode properties, and both cases of a letter.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind};

use super::parse::{Escape, Parser, Syntax};
use crate::error::shorten;

/// How two sets of a class make one.
#[derive(Clone, Copy)]
enum Operator {
    Intersection,
    Difference,
    SymmetricDifference,
}

impl Operator {
    const ALL: [(&str, Self); 3] = [
        ("&&", Self::Intersection),
        ("--", Self::Difference),
        ("~~", Self::SymmetricDifference),
    ];

    fn apply(self, set: &mut ClassUnicode, other: &ClassUnicode) {
        match self {
            Self::Intersection => set.intersect(other),
            Self::Difference => set.difference(other),
            Self::SymmetricDifference => set.symmetric_difference(other),
        }
    }
}

impl Parser<'_> {
    /// The class whose `[` was read.
    pub(super) fn class(&mut self) -> Result<Hir, String> {
        let set = self.class_set()?;
        Ok(Hir::class(Class::Unicode(set)))
    }

    fn class_set(&mut self) -> Result<ClassUnicode, String> {
        let begin = self.at() - "[".len();
        self.enter(begin)?;
        let is_negated = self.eat("^");
        // `[]` is a class of nothing in ECMA-262; elsewhere a first bracket stands for itself.
        let mut may_end = self.syntax() == Syntax::Ecma;
        let mut set = self.operand(begin, &mut may_end)?;
        while let Some(operator) = self.operator() {
            let other = self.operand(begin, &mut may_end)?;
            operator.apply(&mut set, &other);
        }
        self.eat("]");
        self.leave();
        if is_negated {
            set.negate();
        }
        Ok(set)
    }

    /// Takes the operator that stands here, in the one syntax that has them.
    fn operator(&mut self) -> Option<Operator> {
        let of_rust = if self.syntax() == Syntax::Rust {
            &Operator::ALL[..]
        } else {
            &[]
        };
        let (text, operator) = of_rust.iter().find(|(text, _)| self.rest().starts_with(text))?;
        self.eat(text);
        Some(*operator)
    }

    /// Up to an operator or the bracket that ends the class, which stays. The letters are in both cases where
    /// case is ignored.
    fn operand(&mut self, begin: usize, may_end: &mut bool) -> Result<ClassUnicode, String> {
        let mut set = ClassUnicode::empty();
        let mut is_surrogate = false;
        while self.syntax() == Syntax::Rust && !*may_end && self.eat("-") {
            set.push(ClassUnicodeRange::new('-', '-'));
        }
        loop {
            let Some(c) = self.peek() else {
                return Err(self.error(begin, "a class is never closed"));
            };
            let is_end = c == ']' && *may_end;
            *may_end = true;
            let is_operator = self.syntax() == Syntax::Rust
                && Operator::ALL
                    .iter()
                    .any(|(text, _)| self.rest().starts_with(text));
            if is_end || is_operator {
                break;
            }
            is_surrogate |= self.item(&mut set)?;
        }
        if is_surrogate && set.ranges().is_empty() {
            return Err(self.error(begin, "a class of surrogates, which are no characters"));
        }
        self.ignore_case(&mut set);
        Ok(set)
    }

    /// Adds a character, a range or another set to `set`; whether there were surrogates, which are nothing.
    fn item(&mut self, set: &mut ClassUnicode) -> Result<bool, String> {
        let at = self.at();
        if self.syntax() == Syntax::Rust && self.peek() == Some('[') {
            if let Some(named) = self.named_class()? {
                set.union(&named);
                return Ok(false);
            }
            self.eat("[");
            set.union(&self.class_set()?);
            return Ok(false);
        }
        let first = match self.class_atom()? {
            Escape::Point(first) => first,
            Escape::Set(other) => {
                set.union(&other);
                return Ok(false);
            }
            Escape::Assertion(_) => return Err(self.error(at, "an assertion in a class")),
        };
        let mut ahead = self.rest().chars();
        let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']');
        let is_range = is_range && !(self.syntax() == Syntax::Rust && self.rest().starts_with("--"));
        if !is_range {
            return Ok(add_range(set, first, first));
        }
        let dash = self.at();
        self.eat("-");
        match self.class_atom()? {
            Escape::Point(last) if first <= last => Ok(add_range(set, first, last)),
            Escape::Point(_) => Err(self.error(at, "a range whose end is before its beginning")),
            // The dash stands for itself.
            Escape::Set(other) if self.syntax() == Syntax::Ecma => {
                set.union(&other);
                Ok(add_range(set, first, first) | add_range(set, u32::from('-'), u32::from('-')))
            }
            _ => Err(self.error(dash, "a range that does not end in a character")),
        }
    }

    fn class_atom(&mut self) -> Result<Escape, String> {
        let at = self.at();
        match self.next() {
            None => Err(self.error(at, "a class is never closed")),
            Some('\\') => match self.escape(at, true)? {
                Escape::Point(point) => self.joined(point).map(Escape::Point),
                escape => Ok(escape),
            },
            Some(c) if c.is_whitespace() && self.is_verbose() && self.syntax() == Syntax::Rust => Err(self
                .error(
                    at,
                    "whitespace in a class under `(?x)`, which some skip and some read: escape it",
                )),
            Some(c) => Ok(Escape::Point(u32::from(c))),
        }
    }

    /// `[:alpha:]` or `[:^alpha:]`.
    fn named_class(&mut self) -> Result<Option<ClassUnicode>, String> {
        let Some(inner) = self.rest().strip_prefix("[:") else {
            return Ok(None);
        };
        let Some(end) = inner.find(":]") else {
            return Ok(None);
        };
        let name = &inner[..end];
        let (name, is_negated) = name.strip_prefix('^').map_or((name, false), |name| (name, true));
        if !name.chars().all(|c| c.is_ascii_alphabetic()) {
            return Ok(None);
        }
        let set = ascii_class(name);
        let why = || format!("`[:{}:]` is no class", shorten(name));
        let mut set = set.ok_or_else(|| self.error(self.at(), why()))?;
        if is_negated {
            set.negate();
        }
        let n_bytes = "[:".len() + end + ":]".len();
        self.skip(n_bytes);
        Ok(Some(set))
    }

    /// What `\d`, `\w` or `\s` stands for, or the opposite of the capital letter.
    pub(super) fn shorthand(&self, letter: char) -> ClassUnicode {
        let name = letter.to_ascii_lowercase();
        let mut set = if self.is_unicode() {
            parsed(&format!("\\{name}")).expect("Unicode's tables are there")
        } else {
            match name {
                'd' => ascii(&[('0', '9')]),
                'w' => ascii(&WORD),
                _ if self.syntax() == Syntax::Ecma => ascii(&ECMA_SPACES),
                _ => ascii(&[('\t', '\r'), (' ', ' ')]),
            }
        };
        if letter.is_ascii_uppercase() {
            set.negate();
        }
        set
    }

    /// Unicode's property `name`, as in `\p{name}`.
    pub(super) fn property(&self, at: usize, name: &str, letter: char) -> Result<ClassUnicode, String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_=-: ".contains(c);
        let found = (!name.is_empty() && name.chars().all(is_name))
            .then(|| parsed(&format!("\\{letter}{{{name}}}")))
            .flatten();
        let why = || format!("`{}` is no property that is known", shorten(name));
        found.ok_or_else(|| self.error(at, why()))
    }

    /// Adds the other case of every letter of `set`, where case is ignored: Unicode's simple case folding. As
    /// in ECMA-262 no letter of ASCII is another case of one beyond, `k` and the Kelvin sign say, unless
    /// Unicode is asked for.
    pub(super) fn ignore_case(&self, set: &mut ClassUnicode) {
        if !self.ignores_case() {
            return;
        }
        let fold = |set: &mut ClassUnicode| {
            set.try_case_fold_simple().expect("Unicode's tables are there");
        };
        if self.is_unicode() {
            fold(set);
            return;
        }
        let only_ascii = ascii(&[('\0', '\x7f')]);
        let parts = [false, true].map(|is_beyond| {
            let mut border = only_ascii.clone();
            if is_beyond {
                border.negate();
            }
            let mut part = set.clone();
            part.intersect(&border);
            fold(&mut part);
            part.intersect(&border);
            part
        });
        parts.iter().for_each(|part| set.union(part));
    }
}

const WORD: [(char, char); 4] = [('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];

/// WhiteSpace and LineTerminator.
const ECMA_SPACES: [(char, char); 10] = [
    ('\t', '\r'),
    (' ', ' '),
    ('\u{a0}', '\u{a0}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{2000}', '\u{200a}'),
    ('\u{2028}', '\u{2029}'),
    ('\u{202f}', '\u{202f}'),
    ('\u{205f}', '\u{205f}'),
    ('\u{3000}', '\u{3000}'),
    ('\u{feff}', '\u{feff}'),
];

pub(super) fn ascii(ranges: &[(char, char)]) -> ClassUnicode {
    ClassUnicode::new(ranges.iter().map(|(a, b)| ClassUnicodeRange::new(*a, *b)))
}

/// The class of POSIX that is called `name`.
fn ascii_class(name: &str) -> Option<ClassUnicode> {
    Some(match name {
        "alnum" => ascii(&[('0', '9'), ('A', 'Z'), ('a', 'z')]),
        "alpha" => ascii(&[('A', 'Z'), ('a', 'z')]),
        "ascii" => ascii(&[('\0', '\x7f')]),
        "blank" => ascii(&[('\t', '\t'), (' ', ' ')]),
        "cntrl" => ascii(&[('\0', '\x1f'), ('\x7f', '\x7f')]),
        "digit" => ascii(&[('0', '9')]),
        "graph" => ascii(&[('!', '~')]),
        "lower" => ascii(&[('a', 'z')]),
        "print" => ascii(&[(' ', '~')]),
        "punct" => ascii(&[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')]),
        "space" => ascii(&[('\t', '\r'), (' ', ' ')]),
        "upper" => ascii(&[('A', 'Z')]),
        "word" => ascii(&WORD),
        "xdigit" => ascii(&[('0', '9'), ('A', 'F'), ('a', 'f')]),
        _ => return None,
    })
}

/// The class that `source` is in Rust's syntax.
fn parsed(source: &str) -> Option<ClassUnicode> {
    match regex_syntax::parse(source).ok()?.kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class.clone()),
        // A class of one character is a literal.
        HirKind::Literal(literal) => {
            let mut chars = std::str::from_utf8(&literal.0).ok()?.chars();
            let only = chars.next().filter(|_| chars.as_str().is_empty())?;
            Some(ascii(&[(only, only)]))
        }
        _ => None,
    }
}

/// Adds the characters from `first` to `last`; whether there are surrogates among them.
fn add_range(set: &mut ClassUnicode, first: u32, last: u32) -> bool {
    const LAST_BEFORE: u32 = 0xD7FF;
    const FIRST_AFTER: u32 = 0xE000;
    for (first, last) in [(first, last.min(LAST_BEFORE)), (first.max(FIRST_AFTER), last)] {
        let ends = char::from_u32(first).zip(char::from_u32(last));
        if let Some((first, last)) = ends.filter(|(first, last)| first <= last) {
            set.push(ClassUnicodeRange::new(first, last));
        }
    }
    first < FIRST_AFTER && last > LAST_BEFORE
}
