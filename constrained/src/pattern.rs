//! Regular expressions to byte automata.
//!
//! Patterns are those of ECMA-262 where JSON Schema speaks and Rust's elsewhere. Look-around and
//! back-references are no regular languages and are refused.

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind, nfa::thompson};

use crate::dfa::{Classes, Dfa, TooManyStates};
use regex_syntax::hir::{Hir, HirKind};

use crate::error::{CompileError, shorten};
use crate::ir::{Ir, Node, NodeId};

/// Bytes that the determinizer may use for one pattern.
const MAX_DETERMINIZE_BYTES: usize = 4 << 20;

/// The texts that `pattern` matches from their first to their last byte.
pub(crate) fn compile(pattern: &str, max_states: usize) -> Result<Dfa, CompileError> {
    let failed = |why: String| CompileError::Regex {
        pattern: shorten(pattern),
        why,
    };
    let limit = || CompileError::Limit {
        name: "max_automaton_states",
        limit: max_states as u64,
        place: format!("the regular expression `{}`", shorten(pattern)),
    };
    let nfa = thompson::Config::new().nfa_size_limit(Some(MAX_DETERMINIZE_BYTES));
    let config = dense::Config::new()
        .match_kind(MatchKind::All)
        .start_kind(StartKind::Anchored)
        .accelerate(false)
        .dfa_size_limit(Some(MAX_DETERMINIZE_BYTES))
        .determinize_size_limit(Some(MAX_DETERMINIZE_BYTES));
    let built = dense::Builder::new()
        .configure(config)
        .thompson(nfa)
        .syntax(syntax::Config::new().nest_limit(96))
        .build(pattern);
    let dense = built.map_err(|error| {
        if error.is_size_limit_exceeded() {
            return limit();
        }
        let text = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        failed(text.lines().last().unwrap_or_default().to_owned())
    })?;
    let start = dense
        .start_state(&start::Config::new().anchored(Anchored::Yes))
        .map_err(|error| failed(error.to_string()))?;
    of_dense(&dense, start, max_states).map_err(|_| limit())
}

fn of_dense(dense: &dense::DFA<Vec<u32>>, start: StateID, max_states: usize) -> Result<Dfa, TooManyStates> {
    let classes = Classes::by(|byte| dense.byte_classes().get(byte));
    let step = |state: &StateID, byte: u8| {
        let next = dense.next_state(*state, byte);
        (!dense.is_dead_state(next) && !dense.is_quit_state(next)).then_some(next)
    };
    let accept = |state: &StateID| dense.is_match_state(dense.next_eoi_state(*state));
    Dfa::explore(classes, start, step, accept, max_states)
}

/// The texts that `hir`, which has no anchors, matches.
pub(crate) fn compile_hir(hir: &Hir, max_states: usize) -> Result<Dfa, CompileError> {
    let limit = || CompileError::Limit {
        name: "max_automaton_states",
        limit: max_states as u64,
        place: format!("the regular expression `{}`", shorten(&hir.to_string())),
    };
    // A dense state is a row of numbers; this is enough for the states that are kept.
    let max_bytes = (max_states * 1_024).min(MAX_DETERMINIZE_BYTES);
    let config = thompson::Config::new().nfa_size_limit(Some(max_bytes));
    let nfa = thompson::Compiler::new()
        .configure(config)
        .build_from_hir(hir)
        .map_err(|_| limit())?;
    let config = dense::Config::new()
        .match_kind(MatchKind::All)
        .start_kind(StartKind::Anchored)
        .accelerate(false)
        .dfa_size_limit(Some(max_bytes))
        .determinize_size_limit(Some(max_bytes));
    let dense = dense::Builder::new()
        .configure(config)
        .build_from_nfa(&nfa)
        .map_err(|_| limit())?;
    let start = dense
        .start_state(&start::Config::new().anchored(Anchored::Yes))
        .map_err(|_| limit())?;
    of_dense(&dense, start, max_states).map_err(|_| limit())
}

/// The same language as nodes, for expressions whose automaton is too large: counted repetitions stay counts,
/// and the states are built as an output reaches them. Anchors within are refused. Recursion is as deep as
/// the parser's nesting limit.
pub(crate) fn nodes(ir: &mut Ir, pattern: &str) -> Result<NodeId, CompileError> {
    let parser = regex_syntax::ParserBuilder::new().nest_limit(96).build();
    let hir = { parser }.parse(pattern).map_err(|error| CompileError::Regex {
        pattern: shorten(pattern),
        why: error.to_string().lines().last().unwrap_or_default().to_owned(),
    })?;
    node(ir, &hir, pattern)
}

/// Whether something is repeated so often that counting costs less than states for each repetition.
/// Recursion is as deep as the parser's nesting limit.
pub(crate) fn has_large_count(pattern: &str) -> bool {
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
    let parser = regex_syntax::ParserBuilder::new().nest_limit(96).build();
    { parser }.parse(pattern).is_ok_and(|hir| is_large(&hir))
}

pub(crate) fn node(ir: &mut Ir, hir: &Hir, pattern: &str) -> Result<NodeId, CompileError> {
    ir.check_size("the regular expression")?;
    Ok(match hir.kind() {
        HirKind::Empty => ir.node(Node::Empty),
        HirKind::Literal(literal) => ir.dfa(Dfa::of_strings([&literal.0[..]])),
        HirKind::Class(_) => {
            let max = ir.max_automaton_states();
            let class = compile(&hir.to_string(), max)?;
            ir.dfa(class)
        }
        HirKind::Look(_) => {
            return Err(CompileError::Regex {
                pattern: shorten(pattern),
                why: "too large for an automaton, and anchors keep it from being anything else".to_owned(),
            });
        }
        HirKind::Repetition(repetition) => {
            let body = node(ir, &repetition.sub, pattern)?;
            ir.repeat(body, repetition.min, repetition.max)
        }
        HirKind::Capture(capture) => node(ir, &capture.sub, pattern)?,
        HirKind::Concat(parts) => {
            let parts = parts
                .iter()
                .map(|part| node(ir, part, pattern))
                .collect::<Result<_, _>>()?;
            ir.seq(parts)
        }
        HirKind::Alternation(parts) => {
            let parts = parts
                .iter()
                .map(|part| node(ir, part, pattern))
                .collect::<Result<_, _>>()?;
            ir.alt(parts)
        }
    })
}

/// The texts in which the ECMA-262 pattern `pattern` is found.
pub(crate) fn search(pattern: &str, max_states: usize) -> Result<Dfa, CompileError> {
    let translated = translate(pattern).map_err(|why| CompileError::Regex {
        pattern: shorten(pattern),
        why: why.to_owned(),
    })?;
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
    compile(&format!("{before}(?:{translated}){after}"), max_states)
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
            let dfa = search(pattern, 999).expect(pattern);
            assert_eq!(dfa.matches(text.as_bytes()), is_match, "{pattern} on {text}");
        }
    }

    #[test]
    fn what_is_not_regular_or_too_large_is_refused() {
        for pattern in [
            "(?=a)", "(?<!a)b", "(a)\\1", "\\ya", "a{2", "a{,2}", "[]", "\\u12",
        ] {
            assert!(search(pattern, 999).is_err(), "{pattern}");
        }
        let error = search("(a|b)*a(a|b){16}", 999).expect_err("131,072 states");
        assert!(error.to_string().contains("max_automaton_states"), "{error}");
    }
}
