//! JSON text as a tree in one array: members keep their order, numbers their digits, nodes their place.

use std::collections::BTreeMap;

use crate::decimal::Decimal;
use crate::error::CompileError;
use crate::hash::Map;

pub(crate) type JsonId = u32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(Decimal),
    String(String),
    Array(Vec<JsonId>),
    /// Of repeated names the last one is kept, at the first one's place.
    Object(Vec<(String, JsonId)>),
}

/// A parsed text. Node 0 is the whole.
#[derive(Debug)]
pub(crate) struct Document {
    nodes: Vec<Json>,
    parents: Vec<JsonId>,
    /// Positions by name, of the objects that are too large to be searched through.
    places: Map<JsonId, BTreeMap<String, u32>>,
    /// Where each stands in the text.
    spans: Vec<(usize, usize)>,
}

/// Members of an object that is searched through.
const MAX_SEARCHED: usize = 16;

impl std::ops::Index<JsonId> for Document {
    type Output = Json;

    fn index(&self, id: JsonId) -> &Json {
        &self.nodes[id as usize]
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Document {
    /// Parses `text`, containers nested at most `max_depth` deep.
    pub(crate) fn parse(text: &str, max_depth: usize) -> Result<Self, CompileError> {
        let (document, mut reader) = Self::read(text, max_depth)?;
        reader.whitespace();
        if reader.at < text.len() {
            return Err(reader.error("text after the end"));
        }
        Ok(document)
    }

    /// The same of the JSON that `text` begins with, and where it ends.
    pub(crate) fn parse_prefix(text: &str, max_depth: usize) -> Result<(Self, usize), CompileError> {
        let (document, reader) = Self::read(text, max_depth)?;
        Ok((document, reader.at))
    }

    fn read(text: &str, max_depth: usize) -> Result<(Self, Reader<'_>), CompileError> {
        let mut reader = Reader {
            bytes: text.as_bytes(),
            at: 0,
        };
        let mut document = Self {
            nodes: Vec::new(),
            parents: Vec::new(),
            places: Map::default(),
            spans: Vec::new(),
        };
        // Open containers; for an object, the name of the member to come.
        let mut open: Vec<(JsonId, String)> = Vec::new();
        loop {
            let id = document.nodes.len() as JsonId;
            reader.whitespace();
            let begin = reader.at;
            let value = reader.scalar_or_open()?;
            document.spans.push((begin, reader.at));
            let is_container = matches!(value, Json::Array(_) | Json::Object(_));
            document.nodes.push(value);
            document
                .parents
                .push(open.last().map_or(0, |(parent, _)| *parent));
            if let Some((parent, name)) = open.last_mut() {
                document.attach(*parent, std::mem::take(name), id);
            }
            if is_container {
                if open.len() >= max_depth {
                    return Err(CompileError::Limit {
                        name: "max_source_depth",
                        limit: max_depth as u64,
                        place: format!("byte {} of the schema", reader.at),
                    });
                }
                open.push((id, String::new()));
            }
            if !document.next_value(&mut reader, &mut open, is_container)? {
                break;
            }
        }
        Ok((document, reader))
    }

    /// Reads up to the next value; false at the end of the outermost one.
    fn next_value(
        &mut self,
        reader: &mut Reader<'_>,
        open: &mut Vec<(JsonId, String)>,
        mut is_first: bool,
    ) -> Result<bool, CompileError> {
        loop {
            let Some((id, name)) = open.last_mut() else {
                return Ok(false);
            };
            let is_object = matches!(self.nodes[*id as usize], Json::Object(_));
            reader.whitespace();
            let byte = reader.peek();
            if byte == Some(if is_object { b'}' } else { b']' }) {
                reader.at += 1;
                self.spans[*id as usize].1 = reader.at;
                open.pop();
                is_first = false;
                continue;
            }
            if !is_first {
                reader.expect(b',', "a comma or the end is missing")?;
                reader.whitespace();
            }
            if is_object {
                *name = reader.string()?;
                reader.whitespace();
                reader.expect(b':', "a colon is missing")?;
            }
            return Ok(true);
        }
    }

    fn attach(&mut self, parent: JsonId, name: String, id: JsonId) {
        let known = self.position(parent, &name);
        match &mut self.nodes[parent as usize] {
            Json::Array(items) => items.push(id),
            Json::Object(members) => match known {
                Some(at) => members[at].1 = id,
                None => {
                    if let Some(places) = self.places.get_mut(&parent) {
                        places.insert(name.clone(), members.len() as u32);
                    }
                    members.push((name, id));
                    if members.len() == MAX_SEARCHED + 1 {
                        let names = members.iter().map(|(name, _)| name.clone());
                        self.places.insert(parent, names.zip(0..).collect());
                    }
                }
            },
            _ => unreachable!("only containers are open"),
        }
    }

    fn position(&self, id: JsonId, name: &str) -> Option<usize> {
        let Json::Object(members) = &self[id] else {
            return None;
        };
        if members.len() > MAX_SEARCHED {
            return self.places.get(&id)?.get(name).map(|at| *at as usize);
        }
        members.iter().position(|(known, _)| known == name)
    }

    /// The container of `id`; the whole is its own.
    pub(crate) fn parent(&self, id: JsonId) -> JsonId {
        self.parents[id as usize]
    }

    pub(crate) fn n_nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn member(&self, id: JsonId, name: &str) -> Option<JsonId> {
        let Json::Object(members) = &self[id] else {
            return None;
        };
        self.position(id, name).map(|at| members[at].1)
    }

    /// The part of `text`, which was parsed, that is `id`.
    pub(crate) fn text_of<'t>(&self, id: JsonId, text: &'t str) -> &'t str {
        let (begin, end) = self.spans[id as usize];
        &text[begin..end]
    }

    /// Where `id` stands, as a JSON pointer in a URI fragment.
    pub(crate) fn pointer(&self, id: JsonId) -> String {
        let mut parts = Vec::new();
        let mut at = id;
        while at != 0 {
            let parent = self.parents[at as usize];
            parts.push(match &self[parent] {
                Json::Array(items) => items.iter().position(|item| *item == at).unwrap_or(0).to_string(),
                Json::Object(members) => {
                    let found = members.iter().find(|(_, value)| *value == at);
                    let name = found.map_or("", |(name, _)| name);
                    name.replace('~', "~0").replace('/', "~1")
                }
                _ => unreachable!("only containers are parents"),
            });
            at = parent;
        }
        parts.push("#".to_owned());
        parts.reverse();
        parts.join("/")
    }

    /// What stands at `pointer`, which is one of [`Self::pointer`].
    pub(crate) fn at(&self, pointer: &str) -> Option<JsonId> {
        let parts = pointer.strip_prefix('#')?.split('/').skip(1);
        parts.into_iter().try_fold(0, |at, part| match &self[at] {
            Json::Array(items) => items.get(part.parse::<usize>().ok()?).copied(),
            _ => self.member(at, &part.replace("~1", "/").replace("~0", "~")),
        })
    }

    /// Whether two values are the same: numbers by value, objects in any order.
    pub(crate) fn is_equal(&self, a: JsonId, b: JsonId) -> bool {
        let mut pairs = vec![(a, b)];
        while let Some((a, b)) = pairs.pop() {
            match (&self[a], &self[b]) {
                (Json::Array(x), Json::Array(y)) if x.len() == y.len() => {
                    pairs.extend(x.iter().copied().zip(y.iter().copied()));
                }
                (Json::Object(x), Json::Object(y)) if x.len() == y.len() => {
                    for (name, value) in x {
                        match self.member(b, name) {
                            Some(other) => pairs.push((*value, other)),
                            None => return false,
                        }
                    }
                }
                (Json::Array(_) | Json::Object(_), _) | (_, Json::Array(_) | Json::Object(_)) => {
                    return false;
                }
                (x, y) if x == y => {}
                _ => return false,
            }
        }
        true
    }
}

impl Reader<'_> {
    fn error(&self, what: &'static str) -> CompileError {
        CompileError::Json {
            offset: self.at,
            what,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn whitespace(&mut self) {
        while self.peek().is_some_and(|byte| b" \t\r\n".contains(&byte)) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), CompileError> {
        if self.peek() != Some(byte) {
            return Err(self.error(what));
        }
        self.at += 1;
        Ok(())
    }

    /// A value; of a container only the opening bracket.
    fn scalar_or_open(&mut self) -> Result<Json, CompileError> {
        self.whitespace();
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                Ok(Json::Object(Vec::new()))
            }
            Some(b'[') => {
                self.at += 1;
                Ok(Json::Array(Vec::new()))
            }
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => {
                let end = self.bytes[self.at..]
                    .iter()
                    .position(|byte| !byte.is_ascii_digit() && !b"+-.eE".contains(byte));
                let end = end.map_or(self.bytes.len(), |n| self.at + n);
                let text = std::str::from_utf8(&self.bytes[self.at..end]).expect("ASCII");
                let number = Decimal::parse(text).map_err(|what| self.error(what))?;
                self.at = end;
                Ok(Json::Number(number))
            }
            _ => {
                let words = [
                    ("null", Json::Null),
                    ("true", Json::Bool(true)),
                    ("false", Json::Bool(false)),
                ];
                let rest = &self.bytes[self.at..];
                let found = words
                    .into_iter()
                    .find(|(word, _)| rest.starts_with(word.as_bytes()));
                let (word, value) = found.ok_or_else(|| self.error("a value is missing"))?;
                self.at += word.len();
                Ok(value)
            }
        }
    }

    fn string(&mut self) -> Result<String, CompileError> {
        self.expect(b'"', "a string is missing")?;
        let mut out = Vec::new();
        loop {
            let byte = self.peek().ok_or_else(|| self.error("a string has no end"))?;
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let mut utf8 = [0; 4];
                    out.extend_from_slice(self.escape()?.encode_utf8(&mut utf8).as_bytes());
                }
                0..0x20 => return Err(self.error("a control character in a string")),
                _ => out.push(byte),
            }
        }
        Ok(String::from_utf8(out).expect("pieces of UTF-8 text cut at ASCII characters"))
    }

    fn escape(&mut self) -> Result<char, CompileError> {
        let byte = self.peek().ok_or_else(|| self.error("a string has no end"))?;
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = self.hex()?;
                let is_pair = (0xD800..0xDC00).contains(&high) && self.bytes[self.at..].starts_with(b"\\u");
                let point = if is_pair {
                    self.at += 2;
                    let low = self.hex()?;
                    0x1_0000 + ((high - 0xD800) << 10) + low.wrapping_sub(0xDC00)
                } else {
                    high
                };
                char::from_u32(point).ok_or_else(|| self.error("a lone surrogate"))?
            }
            _ => return Err(self.error("an unknown escape")),
        })
    }

    fn hex(&mut self) -> Result<u32, CompileError> {
        let digits = self.bytes.get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.ok_or_else(|| self.error("an incomplete escape"))?;
        self.at += 4;
        let digits = digits.iter().map(|digit| char::from(*digit).to_digit(16));
        Ok(digits.fold(0, |value, digit| value << 4 | digit.expect("checked above")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_digits_and_places_are_kept() {
        let text = r#" {"b": [1.50, "\ud83d\ude00\n"], "a/~": {"x": null}, "b2": true} "#;
        let document = Document::parse(text, 9).expect("valid");
        let Json::Object(members) = &document[0] else {
            panic!("{:?}", document[0])
        };
        let names: Vec<_> = members.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "a/~", "b2"]);
        let x = document.member(members[1].1, "x").expect("it has x");
        assert_eq!(document.pointer(x), "#/a~1~0/x");
        assert_eq!(document.pointer(0), "#");
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\" 1}",
            "01",
            "\"\\ud800\"",
            "1 2",
            "[1 2]",
            "\"\t\"",
            "-",
            "nul",
            "{,}",
        ] {
            assert!(Document::parse(text, 9).is_err(), "{text}");
        }
        let deep = "[".repeat(100_000);
        let error = Document::parse(&deep, 64).expect_err("too deep").to_string();
        assert!(error.contains("max_source_depth"), "{error}");
    }
}
