//! Regular expressions to byte automata.
//!
//! Patterns are those of ECMA-262 where JSON Schema speaks and Rust's elsewhere. Look-around and
//! back-references are no regular languages and are refused.

use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};

use crate::determinize::{Built, Excess, determinize};
use crate::dfa::Dfa;
use crate::error::{CompileError, shorten};
use crate::ir::{Ir, Node, NodeId};
use crate::limits::Limits;

/// What one automaton may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) max_states: usize,
    max_compile_work: u64,
}

impl Bounds {
    /// Bytes of an expression's automaton before it is made deterministic.
    const MAX_NFA_BYTES: usize = 2 << 20;

    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            max_states: limits.max_automaton_states,
            max_compile_work: limits.max_compile_work,
        }
    }

    pub(crate) fn with_states(self, max_states: usize) -> Self {
        Self { max_states, ..self }
    }

    /// What making one automaton may cost.
    pub(crate) fn max_work(&self) -> u64 {
        self.max_compile_work / 4
    }

    fn exceeded(&self, what: Excess, pattern: &str) -> CompileError {
        let (name, limit) = match what {
            Excess::States => ("max_automaton_states", self.max_states as u64),
            Excess::Work => ("max_compile_work", self.max_compile_work),
        };
        CompileError::Limit {
            name,
            limit,
            place: format!("the regular expression `{}`", shorten(pattern)),
        }
    }
}

/// `pattern` in Rust's notation.
fn parse(pattern: &str) -> Result<Hir, CompileError> {
    let mut parser = regex_syntax::ParserBuilder::new().nest_limit(96).build();
    parser.parse(pattern).map_err(|error| CompileError::Regex {
        pattern: shorten(pattern),
        why: error.to_string().lines().last().unwrap_or_default().to_owned(),
    })
}

/// The texts that `pattern` matches from their first to their last byte.
pub(crate) fn compile(pattern: &str, bounds: Bounds) -> Result<Built, CompileError> {
    compile_hir(&parse(pattern)?, pattern, bounds)
}

/// The texts that `hir`, which is `pattern`, matches from their first to their last byte.
pub(crate) fn compile_hir(hir: &Hir, pattern: &str, bounds: Bounds) -> Result<Built, CompileError> {
    if hir.properties().look_set().contains_word_unicode() {
        return Err(CompileError::Regex {
            pattern: shorten(pattern),
            why: "word boundaries are of ASCII only, `(?-u:\\b)`".to_owned(),
        });
    }
    let config = thompson::Config::new()
        .which_captures(WhichCaptures::None)
        .nfa_size_limit(Some(Bounds::MAX_NFA_BYTES));
    let nfa = thompson::Compiler::new().configure(config).build_from_hir(hir);
    // Nothing but its size keeps an expression that was parsed from being built.
    let nfa = nfa.map_err(|_| bounds.exceeded(Excess::States, pattern))?;
    determinize(&nfa, bounds.max_states, bounds.max_work()).map_err(|what| bounds.exceeded(what, pattern))
}

/// Whether something is repeated so often that counting costs less than states for each repetition.
/// Recursion is as deep as the parser's nesting limit.
pub(crate) fn has_large_count(pattern: &str) -> bool {
    parse(pattern).is_ok_and(|hir| is_large(&hir))
}

fn is_large(hir: &Hir) -> bool {
    /// Repetitions.
    const LARGE: u32 = 256;
    match hir.kind() {
        HirKind::Repetition(repetition) => {
            repetition.max.unwrap_or(0).max(repetition.min) >= LARGE || is_large(&repetition.sub)
        }
        HirKind::Capture(capture) => is_large(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts.iter().any(is_large),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => false,
    }
}

/// The same language as nodes, for expressions whose automaton is too large: counted repetitions stay counts,
/// and the states are built as an output reaches them. Anchors within are refused.
pub(crate) fn nodes(ir: &mut Ir, pattern: &str) -> Result<NodeId, CompileError> {
    nodes_of(ir, &parse(pattern)?, pattern)
}

/// The same for `hir`, which is `pattern`.
pub(crate) fn nodes_of(ir: &mut Ir, hir: &Hir, pattern: &str) -> Result<NodeId, CompileError> {
    let n_left = ir.bounds().max_compile_work;
    Nodes { ir, pattern, n_left }.node(hir)
}

struct Nodes<'a> {
    ir: &'a mut Ir,
    pattern: &'a str,
    /// Work that is left.
    n_left: u64,
}

impl Nodes<'_> {
    /// Recursion is as deep as the parser's nesting limit.
    fn node(&mut self, hir: &Hir) -> Result<NodeId, CompileError> {
        self.ir.check_size("the regular expression")?;
        if let Some(leaf) = self.leaf(hir)? {
            return Ok(leaf);
        }
        Ok(match hir.kind() {
            HirKind::Empty => self.ir.node(Node::Empty),
            HirKind::Literal(literal) => self.ir.dfa(Dfa::of_strings([&literal.0[..]])),
            HirKind::Class(_) => {
                let bounds = self.ir.bounds();
                let class = compile_hir(hir, self.pattern, bounds)?;
                self.ir.dfa(class.dfa)
            }
            HirKind::Look(_) => {
                return Err(CompileError::Regex {
                    pattern: shorten(self.pattern),
                    why: "too large for an automaton, and anchors keep it from being anything else"
                        .to_owned(),
                });
            }
            HirKind::Repetition(repetition) => {
                let body = self.node(&repetition.sub)?;
                self.ir.repeat(body, repetition.min, repetition.max)
            }
            HirKind::Capture(capture) => self.node(&capture.sub)?,
            HirKind::Concat(parts) => {
                let parts = parts
                    .iter()
                    .map(|part| self.node(part))
                    .collect::<Result<_, _>>()?;
                self.ir.seq(parts)
            }
            HirKind::Alternation(parts) => {
                let parts = parts
                    .iter()
                    .map(|part| self.node(part))
                    .collect::<Result<_, _>>()?;
                self.ir.alt(parts)
            }
        })
    }

    /// `hir` as one automaton, if that is small: it has one state where nodes have many readings.
    fn leaf(&mut self, hir: &Hir) -> Result<Option<NodeId>, CompileError> {
        const MAX_STATES: usize = 512;
        const MAX_WORK: u64 = 400_000;
        if let HirKind::Alternation(parts) = hir.kind()
            && let Some(texts) = parts.iter().map(literal).collect::<Option<Vec<_>>>()
        {
            return Ok(Some(self.ir.dfa(Dfa::of_strings(texts))));
        }
        if is_large(hir) || !hir.properties().look_set().is_empty() {
            return Ok(None);
        }
        let bounds = Bounds {
            max_states: MAX_STATES,
            max_compile_work: (4 * MAX_WORK).min(self.n_left),
        };
        let built = compile_hir(hir, self.pattern, bounds);
        let spent = built.as_ref().map_or(MAX_WORK, |built| built.n_work);
        let left = self.n_left.checked_sub(spent);
        let bounds = self.ir.bounds();
        self.n_left = left.ok_or_else(|| bounds.exceeded(Excess::Work, self.pattern))?;
        Ok(built.ok().map(|built| self.ir.dfa(built.dfa)))
    }
}

fn literal(hir: &Hir) -> Option<&[u8]> {
    match hir.kind() {
        HirKind::Empty => Some(&[]),
        HirKind::Literal(literal) => Some(&literal.0),
        _ => None,
    }
}

/// The texts in which the ECMA-262 pattern `pattern` is found.
pub(crate) fn search(pattern: &str, bounds: Bounds) -> Result<Built, CompileError> {
    let translated = in_rust(pattern)?;
    // Without a top-level alternative an anchor at an end makes that end of the search superfluous, and the
    // automaton smaller.
    let is_simple = !translated.contains('|');
    let before = if is_simple && translated.starts_with('^') {
        ""
    } else {
        "(?s:.)*"
    };
    let ends = translated.ends_with('$') && !translated.ends_with("\\$");
    let after = if is_simple && ends { "" } else { "(?s:.)*" };
    let whole = parse(&format!("{before}(?:{translated}){after}"))?;
    compile_hir(&whole, pattern, bounds)
}

fn in_rust(pattern: &str) -> Result<String, CompileError> {
    translate(pattern).map_err(|why| CompileError::Regex {
        pattern: shorten(pattern),
        why: why.to_owned(),
    })
}

/// A pattern as a simpler one and a number of characters.
#[derive(Debug)]
pub(crate) struct Counted {
    /// In Rust's notation; matched from end to end.
    pub(crate) content: String,
    pub(crate) min: u32,
    pub(crate) max: Option<u32>,
}

/// The ECMA-262 pattern `pattern`, when it says how many characters a whole text has: `^ab[a-z]{0,50}$` is
/// `ab[a-z]*` of 2 to 52 characters. One part is repeated, by more than a few, and nothing but that number
/// makes texts longer.
pub(crate) fn counted(pattern: &str) -> Option<Counted> {
    /// Fewer repetitions cost little as states.
    const MIN_COUNT: u32 = 16;
    let whole = parse(&translate(pattern).ok()?).ok()?;
    let HirKind::Concat(parts) = whole.kind() else {
        return None;
    };
    let [first, parts @ .., last] = &parts[..] else {
        return None;
    };
    let is = |part: &Hir, look| *part.kind() == HirKind::Look(look);
    if !is(first, Look::Start) || !is(last, Look::End) {
        return None;
    }
    let (mut n_fixed, mut counted, mut content) = (0u32, None, Vec::new());
    for part in parts {
        let repetition = match part.kind() {
            HirKind::Repetition(repetition) if repetition.min.max(repetition.max?) >= MIN_COUNT => repetition,
            _ => {
                n_fixed = n_fixed.checked_add(n_chars(part)?)?;
                content.push(part.clone());
                continue;
            }
        };
        let n_each = n_chars(&repetition.sub).filter(|n| *n > 0)?;
        if counted.is_some() {
            return None;
        }
        counted = Some((
            repetition.min.checked_mul(n_each)?,
            repetition.max?.checked_mul(n_each)?,
        ));
        content.push(Hir::repetition(Repetition {
            min: 0,
            max: None,
            ..repetition.clone()
        }));
    }
    let (min, max) = counted?;
    Some(Counted {
        content: Hir::concat(content).to_string(),
        min: min.checked_add(n_fixed)?,
        max: Some(max.checked_add(n_fixed)?),
    })
}

/// The number of characters that every text of `hir` has; `None` when they differ, or it is unknown.
/// Recursion is as deep as the parser's nesting limit.
fn n_chars(hir: &Hir) -> Option<u32> {
    match hir.kind() {
        HirKind::Empty => Some(0),
        HirKind::Literal(literal) => {
            u32::try_from(std::str::from_utf8(&literal.0).ok()?.chars().count()).ok()
        }
        HirKind::Class(Class::Unicode(_)) => Some(1),
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => None,
        HirKind::Repetition(repetition) => {
            let is_fixed = repetition.max == Some(repetition.min);
            n_chars(&repetition.sub)?.checked_mul(is_fixed.then_some(repetition.min)?)
        }
        HirKind::Capture(capture) => n_chars(&capture.sub),
        HirKind::Concat(parts) => parts
            .iter()
            .try_fold(0u32, |sum, part| sum.checked_add(n_chars(part)?)),
        HirKind::Alternation(parts) => {
            let mut lengths = parts.iter().map(n_chars);
            let first = lengths.next()??;
            lengths.all(|length| length == Some(first)).then_some(first)
        }
    }
}

const DIGITS: &str = "0-9";
const WORD: &str = "0-9A-Za-z_";
const SPACES: &str = "\\t\\n\\x0B\\x0C\\r \\u{A0}\\u{1680}\\u{2000}-\\u{200A}\\u{2028}\\u{2029}\\u{202F}\\u{205F}\\u{3000}\\u{FEFF}";

/// The pattern in Rust's notation. What the two read differently is translated or refused.
fn translate(pattern: &str) -> Result<String, &'static str> {
    let mut out = String::new();
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let escaped = chars.next().ok_or("it ends with a backslash")?;
                translate_escape(escaped, in_class, &mut chars, &mut out)?;
            }
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                if chars.peek() == Some(&']') {
                    return Err("an empty class");
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '[' | '&' | '~' if in_class => out.extend(['\\', c]),
            '-' if in_class && chars.peek() == Some(&'-') => return Err("a range from or to `-`"),
            '{' if !in_class && !chars.peek().is_some_and(char::is_ascii_digit) => {
                // Some read `{,3}` as a repetition, some as itself.
                if chars.peek() == Some(&',') {
                    return Err("a repetition without a lower bound");
                }
                out.push_str("\\{");
            }
            '.' if !in_class => out.push_str("[^\\n\\r\\u{2028}\\u{2029}]"),
            '(' if !in_class && chars.peek() == Some(&'?') => {
                chars.next();
                match chars.next() {
                    Some(':') => out.push_str("(?:"),
                    Some('<') if chars.peek().is_some_and(|c| c.is_ascii_alphabetic()) => {
                        chars
                            .by_ref()
                            .find(|c| *c == '>')
                            .ok_or("a group's name has no end")?;
                        out.push_str("(?:");
                    }
                    _ => return Err("look-around is not regular"),
                }
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

fn translate_escape(
    escaped: char,
    in_class: bool,
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    out: &mut String,
) -> Result<(), &'static str> {
    let mut class = |members: &str, is_negated: bool| {
        let negation = if is_negated { "^" } else { "" };
        out.push_str(&format!("[{negation}{members}]"));
    };
    match escaped {
        'd' | 'D' => class(DIGITS, escaped == 'D'),
        'w' | 'W' => class(WORD, escaped == 'W'),
        's' | 'S' => class(SPACES, escaped == 'S'),
        'n' | 'r' | 't' | 'f' | 'v' => out.extend(['\\', escaped]),
        'b' | 'B' if !in_class => out.push_str(if escaped == 'b' { "(?-u:\\b)" } else { "(?-u:\\B)" }),
        'p' | 'P' => {
            chars.next_if_eq(&'{').ok_or("a property without braces")?;
            let name: String = chars.by_ref().take_while(|c| *c != '}').collect();
            out.push_str(&format!("\\{escaped}{{{name}}}"));
        }
        '0' if !chars.peek().is_some_and(char::is_ascii_digit) => out.push_str("\\x00"),
        'c' => {
            let letter = chars.next().filter(char::is_ascii_alphabetic);
            let letter = letter.ok_or("`\\c` without a letter")?;
            out.push_str(&format!("\\x{:02x}", letter as u32 % 32));
        }
        'x' | 'u' => {
            if chars.next_if_eq(&'{').is_some() {
                let digits: String = chars.by_ref().take_while(|c| *c != '}').collect();
                out.push_str(&format!("\\u{{{digits}}}"));
                return Ok(());
            }
            let n = if escaped == 'x' { 2 } else { 4 };
            let digits: String = chars.by_ref().take(n).collect();
            let is_hex = digits.len() == n && digits.chars().all(|c| c.is_ascii_hexdigit());
            if !is_hex {
                return Err("an incomplete hexadecimal escape");
            }
            out.push_str(&format!("\\u{{{digits}}}"));
        }
        c if c.is_ascii_digit() || c == 'k' => return Err("back-references are not regular"),
        c if c.is_ascii_alphabetic() => return Err("an escape that ECMA-262 does not have"),
        c => out.push_str(&regex_syntax::escape(c.encode_utf8(&mut [0; 4]))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds::new(&Limits::default())
    }

    #[test]
    fn patterns_are_searched_for_unless_anchored() {
        for (pattern, text, is_match) in [
            ("b+", "abbc", true),
            ("^b+$", "abb", false),
            ("^a|b$", "xb", true),
            ("^a|b$", "xbx", false),
            ("a$|^b", "xa", true),
            ("^\\d$", "٣", false),
            ("^[\\w-]+$", "a-b", true),
            ("^.$", "\n", false),
            ("^[[]$", "[", true),
            ("^\\u00e9$", "é", true),
            ("^\\$$", "$", true),
            ("^a\\$", "a$b", true),
            ("^{a}$", "{a}", true),
            ("^\\p{Lu}$", "É", true),
            ("", "anything", true),
        ] {
            let dfa = search(pattern, bounds()).expect(pattern).dfa;
            assert_eq!(dfa.matches(text.as_bytes()), is_match, "{pattern} on {text}");
        }
    }

    #[test]
    fn what_is_not_regular_or_too_large_is_refused() {
        for pattern in [
            "(?=a)", "(?<!a)b", "(a)\\1", "\\ya", "a{2", "a{,2}", "[]", "\\u12",
        ] {
            assert!(search(pattern, bounds()).is_err(), "{pattern}");
        }
        let error = search("(a|b)*a(a|b){16}", bounds()).expect_err("131,072 states");
        assert!(error.to_string().contains("max_automaton_states"), "{error}");
    }

    #[test]
    fn counted_patterns_are_contents_of_so_many_characters() {
        for (pattern, content, min, max) in [
            ("^[a-z]{0,2000}$", "[a-z]*", 0, 2_000),
            (
                "^[A-Z]{3}-(?:[0-9é]\\.){2,50}$",
                "[A-Z]{3}-(?:[0-9é]\\.)*",
                8,
                104,
            ),
            ("^(?:ab|cd)x{17}$", "(?:ab|cd)x*", 19, 19),
            ("^\\p{L}{1,20}😀$", "\\p{L}*😀", 2, 21),
        ] {
            let found = counted(pattern).expect(pattern);
            assert_eq!((found.min, found.max), (min, Some(max)), "{pattern}");
            let of = |source: &str| compile(source, bounds()).expect(source).dfa;
            assert_eq!(
                of(&found.content),
                of(content),
                "{pattern} is of {}",
                found.content
            );
        }
        for pattern in [
            "[a-z]{0,2000}",
            "^[a-z]{0,2000}",
            "^[a-z]{0,15}$",
            "^a?[a-z]{0,2000}$",
            "^[a-z]{0,20}[0-9]{0,20}$",
            "^(?:a|bc){0,20}$",
            "^(?:a*){0,20}$",
            "^[a-z]{16,}$",
            "^[a-z]{0,20}$|x",
            "^(?:\\b){0,20}$",
        ] {
            assert!(counted(pattern).is_none(), "{pattern}");
        }
    }
}
