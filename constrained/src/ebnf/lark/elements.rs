//! The smallest parts of a rule: texts, regular expressions, names, tokens, what stands behind `%`.

use super::super::quoting::{Escapes, quoted};
use super::super::regular::substring;
use super::super::source::limit;
use super::super::{Expr, ExprId, expand};
use super::{Parser, is_terminal};
use crate::error::{CompileError, shorten};
use crate::json::Json;
use crate::tokens::{self, TokenSet};

impl Parser<'_, '_> {
    /// The element that begins with `c`, and what may be ignored behind it.
    pub(super) fn element(&mut self, at: usize, c: char) -> Result<ExprId, CompileError> {
        let part = match c {
            '"' => self.text(at)?,
            '/' => self.regex(at)?,
            '<' => self.token(at)?,
            '%' => self.extension(at)?,
            '@' => {
                let why = "other grammars (`@name`) are not supported; `%json` and `%lark` hold them";
                return Err(self.error(at, why));
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let word = self.word()?;
                if self.tree.source.rest().starts_with("::") {
                    let why = format!("`{}` is parametric, which is not supported", shorten(&word));
                    return Err(self.error(at, why));
                }
                if self.is_template_use() {
                    let why = format!("`{}` is a template, which is not supported", shorten(&word));
                    return Err(self.error(at, why));
                }
                if self.in_terminal && !is_terminal(&word) {
                    let why = format!("a terminal cannot use the rule `{}`", shorten(&word));
                    return Err(self.error(at, why));
                }
                let name = self.tree.name(&word, at)?;
                let part = self.tree.add(Expr::Rule(name))?;
                if !is_terminal(&word) {
                    return Ok(part);
                }
                part
            }
            c => return Err(self.error(at, format!("`{c}` is unexpected"))),
        };
        if self.in_terminal {
            return Ok(part);
        }
        self.with_skip(part)
    }

    /// Whether arguments follow a name, not a number of repetitions.
    pub(super) fn is_template_use(&self) -> bool {
        let inside = self.tree.source.rest().strip_prefix('{').map(str::trim_start);
        inside.is_some_and(|inside| !inside.starts_with(|c: char| c == ',' || c.is_ascii_digit()))
    }

    /// `"text"`, `"text"i` or `"a".."z"`.
    fn text(&mut self, at: usize) -> Result<ExprId, CompileError> {
        self.tree.source.next();
        let text = quoted(&mut self.tree.source, Escapes::Lark, false)?;
        if self.eat("i") {
            let hir = expand::any_case(&text).map_err(|why| self.error(at, why))?;
            return self.tree.add(Expr::Leaf(hir));
        }
        let behind = self.here();
        self.skip_space(false);
        if !self.eat("..") {
            self.tree.source.at = behind;
            return self.tree.literal(&text);
        }
        self.expect("\"")?;
        let last = quoted(&mut self.tree.source, Escapes::Lark, false)?;
        let one = |text: &str| {
            let mut chars = text.chars();
            chars.next().filter(|_| chars.next().is_none())
        };
        match (one(&text), one(&last)) {
            (Some(first), Some(last)) if first <= last => self.tree.class(vec![(first, last)], false),
            _ => Err(self.error(at, "a range needs two characters in their order")),
        }
    }

    /// `/…/` with flags.
    fn regex(&mut self, at: usize) -> Result<ExprId, CompileError> {
        self.tree.source.next();
        let rest = self.tree.source.rest();
        let mut is_escaped = false;
        let end = rest.find(|c| {
            let was_escaped = is_escaped;
            is_escaped = c == '\\' && !was_escaped;
            c == '/' && !was_escaped
        });
        let end = end.ok_or_else(|| self.error(at, "a regular expression has no end"))?;
        let pattern = &rest[..end];
        self.tree.source.at += end + 1;
        let flags = self.tree.source.take_while(|c| c.is_ascii_alphabetic());
        let leaf = expand::python_regex(pattern, flags, self.tree.bounds());
        let leaf = leaf.map_err(|why| self.error(at, why))?;
        self.tree.regex(leaf)
    }

    /// `<text>`, `<[7,9-12]>`, `<[^7]>` or `<[*]>`.
    fn token(&mut self, at: usize) -> Result<ExprId, CompileError> {
        if self.in_terminal {
            return Err(self.error(at, "a terminal cannot use tokens"));
        }
        let set = if self.eat("<[") {
            self.numbered_tokens(at)?
        } else {
            TokenSet::only(&[self.tree.token(at)?])
        };
        self.tree.add(Expr::Tokens(set))
    }

    fn numbered_tokens(&mut self, at: usize) -> Result<TokenSet, CompileError> {
        if self.eat("*]>") {
            return Ok(TokenSet::all_but(&[]));
        }
        let is_negated = self.eat("^");
        let mut ids = Vec::new();
        loop {
            self.skip_space(false);
            let first = self.tree.source.number()?;
            self.skip_space(false);
            let mut last = first;
            if self.eat("-") {
                self.skip_space(false);
                last = self.tree.source.number()?;
                self.skip_space(false);
            }
            if last < first {
                return Err(self.error(at, format!("the tokens {first} to {last} are none")));
            }
            ids.extend(self.tokens_of_range(at, first, last)?);
            if self.eat("]>") {
                break;
            }
            if !self.eat(",") {
                return Err(self.error(self.here(), "`]>` is missing"));
            }
        }
        match (ids.is_empty(), is_negated) {
            (true, false) => Err(self.error(at, "each of these tokens ends the text")),
            (_, false) => Ok(TokenSet::only(&ids)),
            (_, true) => Ok(TokenSet::all_but(&ids)),
        }
    }

    /// The tokens from `first` to `last`; of several, those that end the text come where the grammar ends.
    fn tokens_of_range(&self, at: usize, first: u32, last: u32) -> Result<Vec<u32>, CompileError> {
        let vocabulary = self.tree.vocabulary;
        for token in [first, last] {
            match tokens::by_number(vocabulary, token) {
                Err(why) if first == last || token >= vocabulary.n_vocab() => {
                    return Err(self.error(at, why));
                }
                _ => {}
            }
        }
        let ends = |token: &u32| vocabulary.eos().binary_search(token).is_ok();
        Ok((first..=last).filter(|token| !ends(token)).collect())
    }

    /// `%json`, `%regex` and `%lark`.
    fn extension(&mut self, at: usize) -> Result<ExprId, CompileError> {
        self.tree.source.next();
        let word = self.word()?;
        match word.as_str() {
            "regex" => self.substring(),
            "json" | "lark" if self.in_terminal => {
                Err(self.error(at, format!("a terminal cannot use `%{word}`")))
            }
            "json" => self.schema(at),
            "lark" => self.nested(at),
            "if" => Err(self.error(at, "`%if` is not supported: rules have no parameters")),
            _ => Err(self.error(at, format!("`%{}` is not supported", shorten(&word)))),
        }
    }

    /// `{"substring_…": …}` behind `%regex`.
    fn substring(&mut self) -> Result<ExprId, CompileError> {
        let (document, _, at) = self.json()?;
        let [(name, value)] = (match &document[0] {
            Json::Object(members) => members.as_slice(),
            _ => &[],
        }) else {
            return Err(self.error(at, "`%regex` needs an object with one member"));
        };
        let malformed = |what: &str| self.error(at, format!("`{}` is not {what}", shorten(name)));
        let chunks: Vec<&str> = match (name.as_str(), &document[*value]) {
            ("substring_chunks", Json::Array(chunks)) => {
                let chunks = chunks.iter().map(|chunk| match &document[*chunk] {
                    Json::String(chunk) => Ok(chunk.as_str()),
                    _ => Err(malformed("a list of strings")),
                });
                chunks.collect::<Result<_, _>>()?
            }
            ("substring_words", Json::String(text)) => words(text),
            ("substring_chars", Json::String(text)) => text.split("").filter(|c| !c.is_empty()).collect(),
            ("substring_chunks", _) => return Err(malformed("a list of strings")),
            ("substring_words" | "substring_chars", _) => return Err(malformed("a string")),
            _ => return Err(malformed("supported here")),
        };
        let chunks: Vec<&str> = chunks.into_iter().filter(|chunk| !chunk.is_empty()).collect();
        let dfa = substring(self.tree, &chunks)?;
        self.tree.add(Expr::Automaton(dfa.into()))
    }

    /// `{…}` behind `%lark`: a grammar with names of its own.
    fn nested(&mut self, at: usize) -> Result<ExprId, CompileError> {
        const MAX_DEPTH: usize = 30;
        if self.depth >= MAX_DEPTH {
            return Err(limit("max_source_depth", MAX_DEPTH, self.tree.source.place(at)));
        }
        self.expect("{")?;
        let outer = std::mem::take(&mut self.tree.names);
        let mut inner = Parser {
            skip: self.tree.new_rule("%ignore", at)?,
            tree: self.tree,
            shared: self.shared,
            schema_options: self.schema_options,
            open: Vec::new(),
            ignored: Vec::new(),
            in_terminal: false,
            options: super::Options {
                ignore_once: false,
                ..self.options
            },
            depth: self.depth + 1,
        };
        inner.statements()?;
        let start = inner.finish(at)?;
        self.tree.names = outer;
        if !self.eat("}") {
            return Err(self.error(at, "`%lark {` is never closed"));
        }
        self.tree.add(Expr::Rule(start))
    }
}

/// `text` in runs of white space, of letters, digits and `_`, and of all others.
fn words(text: &str) -> Vec<&str> {
    let kind = |c: char| (c.is_whitespace(), c.is_alphanumeric() || c == '_');
    let ends = text.char_indices().zip(text.chars().skip(1));
    let ends = ends.filter(|((_, c), next)| kind(*c) != kind(*next));
    let mut words = Vec::new();
    let mut begin = 0;
    for ((at, c), _) in ends {
        words.push(&text[begin..at + c.len_utf8()]);
        begin = at + c.len_utf8();
    }
    words.push(&text[begin..]);
    words
}
