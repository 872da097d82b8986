//! EBNF or Lark: which of the two a grammar's text is written in.

use super::source::Source;

/// The syntax of a grammar's text, where a client sends either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrammarSyntax {
    /// XGrammar's EBNF, `name ::= …`.
    Ebnf,
    /// Lark, `name: …`.
    Lark,
}

impl GrammarSyntax {
    /// The syntax that `text` begins in.
    ///
    /// The first definition decides: in EBNF the sign behind its name is `::=`, in Lark `:`, which no Lark
    /// definition goes on from with `:=`. Comments from `//`, lines that begin with `%`, rule marks `?` and
    /// `!`, and templates are Lark's alone. So every text that is valid in one of them is told for what it
    /// is, whatever its literals and comments hold. A text that begins in neither way counts as EBNF.
    pub fn of(text: &str) -> Self {
        let mut source = Source::new(text);
        if is_lark_comment_next(&mut source) || matches!(source.peek(), Some('%' | '?' | '!')) {
            return Self::Lark;
        }
        // EBNF's names may hold dots, Lark's priorities begin with one.
        let name = source.take_while(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if name.is_empty() {
            return Self::Ebnf;
        }
        if is_lark_comment_next(&mut source) || source.peek() == Some('{') {
            return Self::Lark;
        }
        if source.peek() == Some('[') {
            skip_attributes(&mut source);
            if is_lark_comment_next(&mut source) {
                return Self::Lark;
            }
        }
        match source.rest() {
            rest if rest.starts_with("::=") => Self::Ebnf,
            rest if rest.starts_with(':') => Self::Lark,
            _ => Self::Ebnf,
        }
    }
}

/// Skips white space and comments; whether one of them is a comment of Lark's.
fn is_lark_comment_next(source: &mut Source<'_>) -> bool {
    loop {
        source.take_while(char::is_whitespace);
        if source.peek() != Some('#') {
            return source.rest().starts_with("//");
        }
        source.take_while(|c| c != '\n');
    }
}

/// Skips `[…]`, in which quoted texts and regular expressions may hold brackets.
fn skip_attributes(source: &mut Source<'_>) {
    let mut quote = None;
    while let Some(c) = source.next() {
        match (quote, c) {
            (None, ']') => return,
            (None, '"' | '/') => quote = Some(c),
            (Some(_), '\\') => {
                source.next();
            }
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_definition_tells_whatever_literals_and_comments_hold() {
        for text in [
            "root ::= \"a\"",
            "# start: \"a\"\nroot ::= \"x: y\"",
            "a.b ::= \"c\"",
            "root::=\"a:\"",
            "root\n  ::= \"a\"",
            "root[max_tokens=3] ::= \"a\"",
            "root # : no\n::= \"a\"",
            "",
            "# nothing",
            "root = \"a\"",
        ] {
            assert_eq!(GrammarSyntax::of(text), GrammarSyntax::Ebnf, "{text}");
        }
        for text in [
            "start: \"a ::= b\"",
            "# root ::= x\nstart: \"a\"",
            "// root ::= x\nstart: \"a\"",
            "%llguidance {}\nstart: \"::=\"",
            "%ignore \"::=\"\nstart: \"a\"",
            "?start: a",
            "!a: b",
            "start : \"a\"",
            "start.2: \"a\"",
            "list{x, sep}: x (sep x)*",
            "a[suffix=\"]::=\"]: /b/",
            "a[suffix=/[\\]]::=/, capture]: /b/",
            "a::_: \"b\"",
            "START: \"a\"",
            "start: /::=/",
        ] {
            assert_eq!(GrammarSyntax::of(text), GrammarSyntax::Lark, "{text}");
        }
    }
}
