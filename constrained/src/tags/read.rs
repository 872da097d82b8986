//! The members of a structural tag's JSON, checked as they are read.

use super::{Mark, Tag, Tags};
use crate::error::CompileError;
use crate::json::{Json, JsonId};
use crate::tokens;

impl Tags<'_> {
    pub(super) fn malformed(&self, at: JsonId, keyword: &str, why: impl Into<String>) -> CompileError {
        CompileError::Malformed {
            pointer: self.document.pointer(at),
            keyword: keyword.to_owned(),
            why: why.into(),
        }
    }

    pub(super) fn unsupported(&self, at: JsonId, keyword: &str, why: &str) -> CompileError {
        CompileError::Unsupported {
            pointer: self.document.pointer(at),
            keyword: keyword.to_owned(),
            why: why.to_owned(),
        }
    }

    pub(super) fn check_members(&self, id: JsonId, known: &[&str]) -> Result<(), CompileError> {
        let Json::Object(members) = &self.document[id] else {
            return Err(self.malformed(id, "type", "it is not an object"));
        };
        match members.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => Err(self.unsupported(id, name, "this format has no such member")),
            None => Ok(()),
        }
    }

    /// A member that is there and not null.
    pub(super) fn member(&self, id: JsonId, name: &str) -> Option<JsonId> {
        let found = self.document.member(id, name);
        found.filter(|value| self.document[*value] != Json::Null)
    }

    pub(super) fn required(&self, id: JsonId, name: &str) -> Result<JsonId, CompileError> {
        let found = self.member(id, name);
        found.ok_or_else(|| self.malformed(id, name, "it is missing"))
    }

    pub(super) fn string(&self, id: JsonId, name: &str) -> Result<&str, CompileError> {
        match &self.document[self.required(id, name)?] {
            Json::String(text) => Ok(text),
            _ => Err(self.malformed(id, name, "it is not a string")),
        }
    }

    pub(super) fn is_set(&self, id: JsonId, name: &str, default: bool) -> Result<bool, CompileError> {
        match self.member(id, name).map(|value| &self.document[value]) {
            None => Ok(default),
            Some(Json::Bool(value)) => Ok(*value),
            Some(_) => Err(self.malformed(id, name, "it is not a boolean")),
        }
    }

    /// The items of a list; none when it is absent.
    pub(super) fn list(&self, id: JsonId, name: &str) -> Result<&[JsonId], CompileError> {
        match self.member(id, name).map(|value| &self.document[value]) {
            None => Ok(&[]),
            Some(Json::Array(items)) => Ok(items),
            Some(_) => Err(self.malformed(id, name, "it is not a list")),
        }
    }

    pub(super) fn strings(&self, id: JsonId, name: &str) -> Result<Vec<String>, CompileError> {
        let of = |item: &JsonId| match &self.document[*item] {
            Json::String(text) => Ok(text.clone()),
            _ => Err(self.malformed(id, name, "it holds something that is not a string")),
        };
        self.list(id, name)?.iter().map(of).collect()
    }

    /// The token that a number or a string names.
    pub(super) fn token(&self, at: JsonId, value: JsonId) -> Result<u32, CompileError> {
        let vocabulary = self.context.vocabulary;
        let found = match &self.document[value] {
            Json::String(name) => tokens::by_name(vocabulary, name),
            Json::Number(_) => match self.document.text_of(value, self.text).parse() {
                Ok(token) => tokens::by_number(vocabulary, token),
                Err(_) => Err("it is no token number".to_owned()),
            },
            _ => Err("it is neither a token's number nor its text".to_owned()),
        };
        found.map_err(|why| self.malformed(at, "token", why))
    }

    pub(super) fn tokens(&self, id: JsonId, name: &str) -> Result<Vec<u32>, CompileError> {
        let items = self.list(id, name)?.iter();
        items.map(|item| self.token(id, *item)).collect()
    }

    /// A text or a `token` format.
    pub(super) fn mark(&self, at: JsonId, value: JsonId, name: &str) -> Result<Mark, CompileError> {
        match &self.document[value] {
            Json::String(text) => Ok(Mark::Text(text.clone())),
            Json::Object(_) if self.string(value, "type")? == "token" => {
                self.check_members(value, &["type", "token"])?;
                Ok(Mark::Token(self.token(value, self.required(value, "token")?)?))
            }
            _ => Err(self.malformed(at, name, "it is neither a string nor a token")),
        }
    }

    pub(super) fn tag(&self, id: JsonId) -> Result<Tag, CompileError> {
        self.check_members(id, &["type", "begin", "content", "end"])?;
        if self.member(id, "type").is_some() && self.string(id, "type")? != "tag" {
            return Err(self.malformed(id, "type", "it is not `tag`"));
        }
        let begin = self.mark(id, self.required(id, "begin")?, "begin")?;
        let end = self.required(id, "end")?;
        let ends: Vec<Mark> = match &self.document[end] {
            Json::Array(items) if !items.is_empty() => {
                let marks = items.iter().map(|item| self.mark(id, *item, "end"));
                marks.collect::<Result<_, _>>()?
            }
            _ => vec![self.mark(id, end, "end")?],
        };
        Ok(Tag {
            begin,
            content: self.required(id, "content")?,
            ends: ends.into(),
        })
    }

    pub(super) fn tags(&self, id: JsonId) -> Result<Vec<Tag>, CompileError> {
        let items = self.list(id, "tags")?;
        if items.is_empty() {
            return Err(self.malformed(id, "tags", "there are none"));
        }
        items.iter().map(|tag| self.tag(*tag)).collect()
    }

    /// What each trigger of a `dispatch` or `token_dispatch` leads to.
    pub(super) fn rules(&self, id: JsonId) -> Result<Vec<(JsonId, JsonId)>, CompileError> {
        let of = |rule: &JsonId| match &self.document[*rule] {
            Json::Array(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(self.malformed(id, "rules", "it holds something that is not a pair")),
        };
        let rules: Vec<_> = self.list(id, "rules")?.iter().map(of).collect::<Result<_, _>>()?;
        if rules.is_empty() {
            return Err(self.malformed(id, "rules", "there are none"));
        }
        Ok(rules)
    }
}
