//! Escapes of quoted texts and character classes.

use super::source::Source;
use crate::error::CompileError;

/// Which escapes a place has, beyond `\n`, `\r`, `\t`, `\\`, `\"`, `\uXXXX` and `\UXXXXXXXX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Escapes {
    /// GBNF: brackets and a dash; `\x` has two digits.
    Gbnf,
    /// XGrammar: those of C; `\x` has any number of digits.
    Ebnf,
    /// The same in a class, where what is special in regular expressions may be escaped.
    EbnfClass,
    /// Lark: those of Python's strings.
    Lark,
}

/// The next character, behind an escape or as it is.
pub(crate) fn character(source: &mut Source<'_>, escapes: Escapes) -> Result<char, CompileError> {
    let at = source.at;
    let end = |source: &Source<'_>| source.error(at, "a quoted text or a class has no end".to_owned());
    let c = source.next().ok_or_else(|| end(source))?;
    if c != '\\' {
        return Ok(c);
    }
    let c = source.next().ok_or_else(|| end(source))?;
    let (others, same) = match escapes {
        Escapes::Gbnf => ("", "[]-"),
        Escapes::Ebnf => ("bfav0e", "/'?"),
        Escapes::EbnfClass => ("bfav0e", "/'?^$.*+()[]{}|-"),
        Escapes::Lark => ("bfav", "/'"),
    };
    match c {
        'n' => Ok('\n'),
        'r' => Ok('\r'),
        't' => Ok('\t'),
        '\\' | '"' => Ok(c),
        'x' if escapes == Escapes::Gbnf || escapes == Escapes::Lark => hexadecimal(source, at, 2..=2),
        'x' => hexadecimal(source, at, 1..=8),
        'u' => hexadecimal(source, at, 4..=4),
        'U' => hexadecimal(source, at, 8..=8),
        c if same.contains(c) => Ok(c),
        c if others.contains(c) => Ok(match c {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'a' => '\u{7}',
            'v' => '\u{b}',
            'e' => '\u{1b}',
            _ => '\0',
        }),
        c => Err(source.error(at, format!("`\\{c}` is no escape here"))),
    }
}

fn hexadecimal(
    source: &mut Source<'_>,
    at: usize,
    n_digits: std::ops::RangeInclusive<usize>,
) -> Result<char, CompileError> {
    let rest = source.rest();
    let n = rest
        .bytes()
        .take(*n_digits.end())
        .take_while(u8::is_ascii_hexdigit)
        .count();
    if n < *n_digits.start() {
        let why = format!("the escape needs {} hexadecimal digits", n_digits.start());
        return Err(source.error(at, why));
    }
    source.at += n;
    let point = u32::from_str_radix(&rest[..n], 16).expect("up to eight digits");
    let why = || format!("U+{point:04X} is no character");
    char::from_u32(point).ok_or_else(|| source.error(at, why()))
}

/// The rest of a text whose opening `"` was taken, without the closing one.
pub(crate) fn quoted(
    source: &mut Source<'_>,
    escapes: Escapes,
    may_span_lines: bool,
) -> Result<String, CompileError> {
    let at = source.at - 1;
    let mut text = String::new();
    loop {
        match source.peek() {
            Some('"') => {
                source.next();
                return Ok(text);
            }
            None => return Err(source.error(at, "a quoted text has no end".to_owned())),
            Some('\n' | '\r') if !may_span_lines => {
                return Err(source.error(at, "a quoted text does not end on its line".to_owned()));
            }
            Some(_) => text.push(character(source, escapes)?),
        }
    }
}
