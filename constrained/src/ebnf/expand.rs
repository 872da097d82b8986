//! Regular expressions within a grammar: leaves that know nothing of what stands around them.

use regex_syntax::hir::Hir;

use crate::error::shorten;

/// `pattern`, in Rust's syntax.
pub(crate) fn regex(pattern: &str) -> Result<Hir, String> {
    let mut parser = regex_syntax::ParserBuilder::new().nest_limit(64).build();
    let hir = parser.parse(pattern).map_err(|error| {
        let text = error.to_string();
        let why = text
            .lines()
            .last()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned();
        format!("regular expression `{}`: {why}", shorten(pattern))
    })?;
    if !hir.properties().look_set().is_empty() {
        let pattern = shorten(pattern);
        return Err(format!(
            "regular expression `{pattern}`: anchors and word boundaries look at what stands around it"
        ));
    }
    Ok(hir)
}

/// `pattern` with `flags`, in the syntax of Python's `re`. What the two read differently is translated or
/// refused.
pub(crate) fn python_regex(pattern: &str, flags: &str) -> Result<Hir, String> {
    let refuse = |why: &str| Err(format!("regular expression `{}`: {why}", shorten(pattern)));
    let mut out = String::new();
    for flag in flags.chars() {
        match flag {
            'i' | 's' => out.push_str(&format!("(?{flag})")),
            // Without anchors there is nothing to be multi-line, and Unicode is what there is.
            'm' | 'u' => {}
            flag => return refuse(&format!("the flag `{flag}` is not supported")),
        }
    }
    let mut chars = pattern.chars().peekable();
    let (mut in_class, mut after_repetition) = (false, false);
    while let Some(c) = chars.next() {
        let was_repetition = std::mem::take(&mut after_repetition);
        match c {
            '\\' => match chars.next() {
                None => return refuse("it ends with a backslash"),
                Some('Z' | 'A' | 'b' | 'B' | 'z') if !in_class => {
                    return refuse("anchors and word boundaries look at what stands around it");
                }
                Some(c @ ('<' | '>')) => out.push(c),
                Some('b') => out.push_str("\\x08"),
                Some(c) => out.extend(['\\', c]),
            },
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                if chars.next_if_eq(&']').is_some() {
                    out.push_str("\\]");
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '[' | '&' | '~' if in_class => out.extend(['\\', c]),
            '-' if in_class && chars.peek() == Some(&'-') => return refuse("a range from or to `-`"),
            '*' | '+' | '?' if !in_class => {
                if was_repetition && c != '?' {
                    return refuse("possessive repetitions are not supported");
                }
                // The lazy mark changes which match is found, not which texts match.
                after_repetition = !was_repetition;
                out.push(c);
            }
            '}' if !in_class => {
                after_repetition = true;
                out.push(c);
            }
            c => out.push(c),
        }
    }
    regex(&out)
}

/// `text` with every ASCII letter in both cases.
pub(crate) fn any_case(text: &str) -> Result<Hir, String> {
    if !text.is_ascii() {
        let text = shorten(text);
        return Err(format!("`{text}` is to be read in any case and is not ASCII"));
    }
    let letters = text.chars().map(|c| {
        let cases = [c.to_ascii_lowercase(), c.to_ascii_uppercase()];
        let ranges = cases.map(|c| regex_syntax::hir::ClassUnicodeRange::new(c, c));
        Hir::class(regex_syntax::hir::Class::Unicode(
            regex_syntax::hir::ClassUnicode::new(ranges),
        ))
    });
    Ok(Hir::concat(letters.collect()))
}
