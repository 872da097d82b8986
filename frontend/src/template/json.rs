//! The filter `tojson`: Python's `json.dumps`, with the arguments and defaults that Hugging Face gives it.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::arguments::Arguments;
use super::number::{Verbatim, float_repr};

/// Most characters of one level of indentation.
const MAX_INDENT: usize = 64;
/// Most containers within each other; Python gives up at about a thousand.
const MAX_DEPTH: usize = 512;

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)`.
pub(super) fn to_json(value: &Value, arguments: Arguments) -> Result<String, Error> {
    let mut writer = Writer {
        style: Style::new(arguments)?,
        output: String::new(),
    };
    writer.value(value, 0)?;
    Ok(writer.output)
}

/// How a value is laid out.
struct Style {
    is_ascii: bool,
    indent: Option<String>,
    /// Between two items.
    comma: String,
    /// Between a key and its value.
    colon: String,
    sorts_keys: bool,
}

impl Style {
    fn new(arguments: Arguments) -> Result<Self, Error> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ascii, indent, separators, sort_keys] = arguments.bind("tojson", names)?;
        let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
        let indent = match indent.filter(|indent| !indent.is_none()) {
            None => None,
            Some(indent) => Some(indentation(&indent)?),
        };
        let comma = if indent.is_some() { "," } else { ", " };
        let (comma, colon) = match separators.filter(|pair| !pair.is_none()) {
            None => (comma.to_owned(), ": ".to_owned()),
            Some(pair) => separator_pair(&pair)?,
        };
        Ok(Style {
            is_ascii: is_set(ascii),
            indent,
            comma,
            colon,
            sorts_keys: is_set(sort_keys),
        })
    }
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// A string is used as it is, a number is that many spaces; none below zero.
fn indentation(indent: &Value) -> Result<String, Error> {
    let too_long = || failed(format!("tojson: indent is at most {MAX_INDENT}"));
    if let Some(text) = indent.as_str() {
        return Some(text.to_owned())
            .filter(|text| text.len() <= MAX_INDENT)
            .ok_or_else(too_long);
    }
    let n = i64::try_from(indent.clone())
        .map_err(|_| failed(format!("tojson: indent is a number or a string, not {indent}")))?;
    let n = usize::try_from(n.max(0)).unwrap_or(usize::MAX);
    Some(n)
        .filter(|n| *n <= MAX_INDENT)
        .map(|n| " ".repeat(n))
        .ok_or_else(too_long)
}

fn separator_pair(pair: &Value) -> Result<(String, String), Error> {
    let texts: Option<Vec<String>> = match pair.try_iter() {
        Ok(items) => items.map(|item| item.as_str().map(str::to_owned)).collect(),
        Err(_) => None,
    };
    match texts.as_deref() {
        Some([comma, colon]) => Ok((comma.clone(), colon.clone())),
        _ => Err(failed(format!("tojson: separators are two strings, not {pair}"))),
    }
}

struct Writer {
    style: Style,
    output: String,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.output.push_str("null"),
            ValueKind::Bool => self
                .output
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.output.push_str(&number(value)?),
            ValueKind::String => self.string(value.as_str().expect("it is a string")),
            ValueKind::Seq | ValueKind::Iterable => {
                self.items(value.try_iter()?.checked(), depth, ['[', ']'], |writer, item| {
                    writer.value(&item?, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let members = self.members(value)?;
                self.items(members.into_iter(), depth, ['{', '}'], |writer, (key, value)| {
                    writer.string(&key);
                    writer.output.push_str(&writer.style.colon);
                    writer.value(&value, depth + 1)
                })?;
            }
            kind => match value.downcast_object_ref::<Verbatim>() {
                Some(digits) => self.output.push_str(digits.as_str()),
                None => return Err(failed(format!("tojson: {kind} is not JSON serializable"))),
            },
        }
        Ok(())
    }

    fn items<T>(
        &mut self,
        items: impl Iterator<Item = T>,
        depth: usize,
        [open, close]: [char; 2],
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if depth == MAX_DEPTH {
            return Err(failed(format!(
                "tojson: the value is nested more than {MAX_DEPTH} deep"
            )));
        }
        self.output.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.output.push_str(&self.style.comma);
            }
            is_empty = false;
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !is_empty {
            self.new_line(depth);
        }
        self.output.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.output.push('\n');
            for _ in 0..depth {
                self.output.push_str(indent);
            }
        }
    }

    /// Keys, as text, and values of a map in the order they are written.
    fn members(&self, map: &Value) -> Result<Vec<(String, Value)>, Error> {
        let mut keys: Vec<Value> = map.try_iter()?.checked().collect::<Result<_, _>>()?;
        if self.style.sorts_keys {
            keys.sort();
        }
        let member = |key: Value| Ok((key_text(&key)?, map.get_item(&key)?));
        keys.into_iter().map(member).collect()
    }

    fn string(&mut self, text: &str) {
        self.output.push('"');
        for c in text.chars() {
            match c {
                '"' => self.output.push_str("\\\""),
                '\\' => self.output.push_str("\\\\"),
                '\n' => self.output.push_str("\\n"),
                '\r' => self.output.push_str("\\r"),
                '\t' => self.output.push_str("\\t"),
                '\u{8}' => self.output.push_str("\\b"),
                '\u{c}' => self.output.push_str("\\f"),
                c if c < ' ' || (self.style.is_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.output.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.output.push(c),
            }
        }
        self.output.push('"');
    }
}

fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let float = f64::try_from(value.clone())?;
    Ok(match float {
        x if x.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        x => float_repr(x),
    })
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().expect("it is a string").to_owned()),
        ValueKind::Number => number(key),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        kind => Err(failed(format!("tojson: a key is a scalar, not {kind}"))),
    }
}
