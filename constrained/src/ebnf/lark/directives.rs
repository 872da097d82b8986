//! Lines that begin with `%`, and JSON within a grammar.

use super::super::{Expr, ExprId, expand, library};
use super::{Parser, is_terminal};
use crate::error::{CompileError, shorten};
use crate::ir::Layout;
use crate::json::{Document, Json};
use crate::schema::{Enforcement, SchemaOptions};

impl<'a> Parser<'_, 'a> {
    pub(super) fn directive(&mut self) -> Result<(), CompileError> {
        let at = self.here();
        self.tree.source.next();
        let word = self.word()?;
        self.skip_space(false);
        match word.as_str() {
            "ignore" => {
                self.in_terminal = true;
                let ignored = self.alternatives()?;
                self.ignored.push(ignored);
                Ok(())
            }
            "import" => self.import(at),
            "llguidance" => self.options(),
            _ => Err(self.error(at, format!("`%{}` is not supported", shorten(&word)))),
        }
    }

    fn import(&mut self, at: usize) -> Result<(), CompileError> {
        if !self.eat("common") {
            return Err(self.error(at, "`%import` is supported from `common` only"));
        }
        if self.eat(".") {
            let at = self.here();
            let name = self.word()?;
            self.skip_space(false);
            let mut alias = name.clone();
            if self.eat("->") {
                self.skip_space(false);
                alias = self.word()?;
            }
            return self.import_one(&name, &alias, at);
        }
        self.expect("(")?;
        loop {
            self.skip_space(true);
            let at = self.here();
            let name = self.word()?;
            self.import_one(&name, &name, at)?;
            self.skip_space(true);
            if self.eat(")") {
                return Ok(());
            }
            self.expect(",")?;
        }
    }

    fn import_one(&mut self, name: &str, alias: &str, at: usize) -> Result<(), CompileError> {
        let Some(pattern) = library::common(name) else {
            return Err(self.error(at, format!("`common.{}` is not supported", shorten(name))));
        };
        if !is_terminal(alias) {
            return Err(self.error(at, format!("`{}` is no name for a terminal", shorten(alias))));
        }
        let leaf = expand::regex(pattern, self.tree.bounds()).expect("the library's expressions are valid");
        let body = self.tree.regex(leaf)?;
        let name = self.tree.name(alias, at)?;
        self.tree.define(name, at, body)
    }

    /// `{…}` behind `%llguidance`.
    fn options(&mut self) -> Result<(), CompileError> {
        let (document, _, at) = self.json()?;
        let Json::Object(members) = &document[0] else {
            return Err(self.error(at, "the options of `%llguidance` are no object"));
        };
        for (name, value) in members {
            let Json::Bool(is_set) = document[*value] else {
                return Err(self.error(at, format!("the option `{}` is no boolean", shorten(name))));
            };
            match name.as_str() {
                "allow_initial_skip" => self.options.allow_initial_skip = is_set,
                "ignore_once" => self.options.ignore_once = is_set,
                // Forced text is proposed and never taken without the model.
                "no_forcing" => {}
                "allow_invalid_utf8" if !is_set => {}
                _ => return Err(self.error(at, format!("the option `{}` is not supported", shorten(name)))),
            }
        }
        Ok(())
    }

    /// The JSON that comes next, as a tree and as text, and where it begins.
    pub(super) fn json(&mut self) -> Result<(Document, &'a str, usize), CompileError> {
        self.skip_space(true);
        let (at, rest) = (self.here(), self.tree.source.rest());
        match Document::parse_prefix(rest, self.tree.limits.max_source_depth) {
            Ok((document, end)) => {
                self.tree.source.at = at + end;
                Ok((document, &rest[..end], at))
            }
            Err(CompileError::Json { offset, what }) => {
                let offset = (0..=offset.min(rest.len())).rev();
                let mut offset = offset.filter(|offset| rest.is_char_boundary(*offset));
                let at = at + offset.next().expect("0 is a border");
                Err(self.error(at, format!("this is not JSON: {what}")))
            }
            Err(error) => Err(error.within(&self.tree.source.place(at))),
        }
    }

    /// `%json {…}`, whose `%json` was taken at byte `at`.
    pub(super) fn schema(&mut self, at: usize) -> Result<ExprId, CompileError> {
        let (document, text, begin) = self.json()?;
        let mut options = *self.schema_options;
        let asked = guided(&document, &mut options);
        if let Some(layout) = asked.map_err(|why| self.error(begin, why))?
            && self
                .tree
                .layout
                .replace(layout)
                .is_some_and(|other| other != layout)
        {
            return Err(self.error(begin, "two schemas of one grammar ask for different separators"));
        }
        let (line, column) = self.tree.source.line_and_column(at);
        let place = format!("`%json` at line {line}, column {column}: #");
        self.tree
            .schemas
            .push(super::super::SchemaText { text, place, options });
        let schema = self.tree.schemas.len() as u32 - 1;
        self.tree.add(Expr::Json(schema))
    }
}

/// What the member `x-guidance` of a schema asks for.
fn guided(document: &Document, options: &mut SchemaOptions) -> Result<Option<Layout>, String> {
    let Some(Json::Object(members)) = document.member(0, "x-guidance").map(|id| &document[id]) else {
        return Ok(None);
    };
    let (mut is_flexible, mut separators) = (true, [",", ":"]);
    for (name, value) in members {
        match (name.as_str(), &document[*value]) {
            ("whitespace_flexible", Json::Bool(value)) => is_flexible = *value,
            ("item_separator", Json::String(text)) => separators[0] = text,
            ("key_separator", Json::String(text)) => separators[1] = text,
            ("lenient", Json::Bool(true)) => options.enforcement = Enforcement::Relaxed,
            // `oneOf` is exact, where llguidance may take it for `anyOf`.
            ("lenient" | "coerce_one_of", Json::Bool(_)) => {}
            ("json_allow_general_unicode_escapes", Json::Bool(false)) => {}
            (_, Json::Null) => {}
            _ => {
                return Err(format!(
                    "this value of `x-guidance.{}` is not supported",
                    shorten(name)
                ));
            }
        }
    }
    match (separators, is_flexible) {
        ([",", ":"], true) => Ok(None),
        ([",", ":"], false) => Ok(Some(Layout::Compact)),
        ([", ", ": "], false) => Ok(Some(Layout::Spaced)),
        _ => {
            let why = "`x-guidance` may ask for the separators `,` and `:`, or `, ` and `: ` with a false \
                       `whitespace_flexible`";
            Err(why.to_owned())
        }
    }
}
