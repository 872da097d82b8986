//! What an output has written and must not write again: texts, the values that they spell, and lists of
//! distinct values. Equal ones are kept once and have one number.
//!
//! Values are compared as JSON has it: numbers by value, strings by content, objects in any order. A value is
//! written byte by byte; [`Memory::rivals`] are the earlier values that it can still become equal to.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::dfa::{ByteSet, bytes_of, union_of};
use crate::hash::Map;

/// A list of distinct values; 0 is the empty one.
pub(crate) type ListId = u32;
/// Bytes written of a value.
pub(crate) type TextId = u32;
pub(crate) type ValueId = u32;

pub(crate) const EMPTY: TextId = 0;
/// Some text of a value that differs from all in the list.
pub(crate) const NEW: TextId = 1;
/// Some text that was begun within the token that is looked at. It is taken to be new.
pub(crate) const UNSEEN: TextId = 2;
/// No text is kept.
pub(crate) const NONE: TextId = u32::MAX;
/// Stands for a value of which only that it is new is known.
const UNKNOWN: ValueId = 0;

/// Values of one list; an array of distinct items or an object of distinct names holds no more.
pub(crate) const MAX_DISTINCT: u32 = 4_096;

/// A JSON value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Value {
    /// `null`, `true`, `false`, a number in its normal form, or a string's content after a quote.
    Scalar(Box<[u8]>),
    Array(Box<[Value]>),
    Object(BTreeMap<Box<[u8]>, Value>),
}

#[derive(Clone, Copy, Debug)]
struct Letter {
    before: TextId,
    byte: u8,
    n: u32,
    /// A string without an escape so far, which has not ended.
    is_plain: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    value: ValueId,
    before: ListId,
    n: u32,
}

/// All texts, values and lists so far.
#[derive(Debug)]
pub(crate) struct Memory {
    letters: Vec<Letter>,
    letter_ids: Map<(TextId, u8), TextId>,
    values: Vec<Value>,
    value_ids: Map<Value, ValueId>,
    entries: Vec<Entry>,
    entry_ids: Map<(ListId, ValueId), ListId>,
    rivals: Map<(TextId, ListId), Arc<[ValueId]>>,
    n_value_bytes: usize,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let none = Letter {
            before: EMPTY,
            byte: 0,
            n: 0,
            is_plain: false,
        };
        let nothing = Entry {
            value: UNKNOWN,
            before: 0,
            n: 0,
        };
        Self {
            letters: vec![none; 3],
            letter_ids: Map::default(),
            values: vec![Value::Scalar(Box::default())],
            value_ids: Map::default(),
            entries: vec![nothing],
            entry_ids: Map::default(),
            rivals: Map::default(),
            n_value_bytes: 0,
        }
    }

    /// About how much memory it holds.
    pub(crate) fn n_bytes(&self) -> usize {
        let n_listed: usize = self.rivals.len() * 48;
        self.letters.len() * 40 + self.entries.len() * 40 + self.n_value_bytes + n_listed
    }

    /// `text` and one byte more.
    pub(crate) fn push(&mut self, text: TextId, byte: u8) -> TextId {
        if text == NEW || text == UNSEEN {
            return text;
        }
        let fresh = self.letters.len() as TextId;
        let id = *self.letter_ids.entry((text, byte)).or_insert(fresh);
        if id == fresh {
            let before = self.letters[text as usize];
            self.letters.push(Letter {
                before: text,
                byte,
                n: before.n + 1,
                is_plain: match before.n {
                    0 => byte == b'"',
                    _ => before.is_plain && byte != b'"' && byte != b'\\',
                },
            });
        }
        id
    }

    pub(crate) fn bytes(&self, mut text: TextId) -> Vec<u8> {
        let mut bytes = vec![0; self.letters[text as usize].n as usize];
        for slot in bytes.iter_mut().rev() {
            let letter = self.letters[text as usize];
            *slot = letter.byte;
            text = letter.before;
        }
        bytes
    }

    pub(crate) fn n_values(&self, list: ListId) -> u32 {
        self.entries[list as usize].n
    }

    fn list(&self, mut list: ListId) -> impl Iterator<Item = ValueId> {
        std::iter::from_fn(move || {
            let entry = self.entries[list as usize];
            list = entry.before;
            (entry.n > 0).then_some(entry.value)
        })
    }

    /// The values of `list`, the first one first; those of which nothing is known are left out.
    pub(crate) fn values(&self, list: ListId) -> Vec<Value> {
        let mut values: Vec<Value> = self
            .list(list)
            .filter(|value| *value != UNKNOWN)
            .map(|value| self.values[value as usize].clone())
            .collect();
        values.reverse();
        values
    }

    fn value(&mut self, value: Value) -> ValueId {
        let fresh = self.values.len() as ValueId;
        let n_bytes = value.n_bytes();
        let id = *self.value_ids.entry(value.clone()).or_insert(fresh);
        if id == fresh {
            self.n_value_bytes += 2 * n_bytes;
            self.values.push(value);
        }
        id
    }

    pub(crate) fn with(&mut self, list: ListId, value: Value) -> ListId {
        let value = self.value(value);
        self.with_id(list, value)
    }

    fn with_id(&mut self, list: ListId, value: ValueId) -> ListId {
        let fresh = self.entries.len() as ListId;
        let id = *self.entry_ids.entry((list, value)).or_insert(fresh);
        if id == fresh {
            let n = self.entries[list as usize].n + 1;
            self.entries.push(Entry {
                value,
                before: list,
                n,
            });
        }
        id
    }

    /// `list` with the value of `text`; `None` when it has it already.
    pub(crate) fn with_text(&mut self, list: ListId, text: TextId) -> Option<ListId> {
        if text == NEW || text == UNSEEN {
            return Some(self.with_id(list, UNKNOWN));
        }
        let value = Value::read(&self.bytes(text))?;
        let value = self.value(value);
        let is_new = self.list(list).all(|known| known != value);
        is_new.then(|| self.with_id(list, value))
    }

    /// Whether `text` is a value that `list` lacks.
    pub(crate) fn lacks(&self, list: ListId, text: &[u8]) -> bool {
        let value = Value::read(text);
        value.is_some_and(|value| {
            let known = self.value_ids.get(&value);
            known.is_none_or(|known| self.list(list).all(|value| value != *known))
        })
    }

    /// The values of `list` that `text` may become, or is, equal to; maybe more where it is a number.
    pub(crate) fn rivals(&mut self, list: ListId, text: TextId) -> Arc<[ValueId]> {
        if text == NEW || text == UNSEEN || list == 0 {
            return Arc::new([]);
        }
        if let Some(known) = self.rivals.get(&(text, list)) {
            return known.clone();
        }
        // What is no rival of a text is none of a longer one.
        let mut shorter = text;
        let mut before = None;
        while shorter != EMPTY && before.is_none() {
            shorter = self.letters[shorter as usize].before;
            before = self.rivals.get(&(shorter, list)).cloned();
        }
        let before = before.unwrap_or_else(|| self.list(list).collect());
        if before.is_empty() {
            self.rivals.insert((text, list), before.clone());
            return before;
        }
        let rivals: Arc<[ValueId]> = match self.is_plainly_longer(text, shorter) {
            true => {
                let Letter { byte, n, .. } = self.letters[text as usize];
                let is_rival = |value: &ValueId| self.values[*value as usize].goes_on(n, byte);
                before.iter().copied().filter(is_rival).collect()
            }
            false => {
                let bytes = self.bytes(text);
                let is_rival = |value: &ValueId| {
                    *value != UNKNOWN && self.values[*value as usize].may_follow(&bytes).is_some()
                };
                before.iter().copied().filter(is_rival).collect()
            }
        };
        self.rivals.insert((text, list), rivals.clone());
        rivals
    }

    /// Whether `text` is `shorter`, a plain string that has begun and whose rivals are known, and one byte.
    fn is_plainly_longer(&self, text: TextId, shorter: TextId) -> bool {
        let letter = self.letters[text as usize];
        letter.before == shorter && self.letters[shorter as usize].is_plain && letter.byte != b'\\'
    }

    /// The bytes after which `text` may still become equal to a value of `list`, and maybe more.
    pub(crate) fn rival_bytes(&mut self, list: ListId, text: TextId) -> ByteSet {
        let rivals = self.rivals(list, text);
        let letter = self.letters[text as usize];
        if letter.is_plain {
            let next = rivals
                .iter()
                .map(|value| self.values[*value as usize].byte_at(letter.n));
            return bytes_of(next.chain([b'\\'].into_iter().filter(|_| !rivals.is_empty())));
        }
        let bytes = self.bytes(text);
        let of = |value: &ValueId| {
            self.values[*value as usize]
                .may_follow(&bytes)
                .unwrap_or_default()
        };
        rivals.iter().map(of).fold([0; 4], union_of)
    }
}

const ANY: ByteSet = [u64::MAX; 4];

/// How a text that is not complete compares with a value.
enum Matched {
    /// It is the value, and ends here.
    Whole,
    /// It may become the value, and goes on with one of these bytes.
    Open(ByteSet),
    Not,
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Value {
    /// The value of a complete text without repeated names.
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value()?;
        reader.whitespace();
        (reader.at == text.len()).then_some(value)
    }

    /// With which bytes `text`, the beginning of a value or all of it, may go on to become this one, and
    /// maybe others; `None` when it cannot.
    fn may_follow(&self, text: &[u8]) -> Option<ByteSet> {
        match (Reader { text, at: 0 }).compare(self) {
            Matched::Not => None,
            Matched::Whole => Some([0; 4]),
            Matched::Open(bytes) => Some(bytes),
        }
    }

    fn n_bytes(&self) -> usize {
        let own = match self {
            Self::Scalar(text) => text.len(),
            Self::Array(items) => items.iter().map(Self::n_bytes).sum(),
            Self::Object(members) => members
                .iter()
                .map(|(name, value)| 32 + name.len() + value.n_bytes())
                .sum(),
        };
        size_of::<Self>() + own
    }
}

/// The content of a string as far as it was read.
struct Content {
    bytes: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The closing quote was read.
    Closed,
    /// The text ends before it.
    Open,
    /// The text ends within an escape.
    Escape,
}

impl Content {
    /// Whether it is `target`, or its beginning.
    fn compare(&self, target: &[u8]) -> Matched {
        match self.end {
            End::Closed if self.bytes == target => Matched::Whole,
            End::Open | End::Escape if target.starts_with(&self.bytes) => {
                let next = target.get(self.bytes.len());
                Matched::Open(match (self.end, next) {
                    (End::Escape, _) => ANY,
                    (_, Some(next)) => bytes_of([*next, b'\\']),
                    (_, None) => bytes_of([b'"']),
                })
            }
            _ => Matched::Not,
        }
    }
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn whitespace(&mut self) {
        while self.peek().is_some_and(|byte| b" \t\r\n".contains(&byte)) {
            self.at += 1;
        }
    }

    /// Takes `byte`, with whitespace before and after it.
    fn takes(&mut self, byte: u8) -> bool {
        self.whitespace();
        let is_next = self.peek() == Some(byte);
        if is_next {
            self.at += 1;
            self.whitespace();
        }
        is_next
    }

    fn value(&mut self) -> Option<Value> {
        self.whitespace();
        match self.peek()? {
            b'"' => {
                let content = self.string();
                let text = [b"\"", &content.bytes[..]].concat();
                (content.end == End::Closed).then(|| Value::Scalar(text.into()))
            }
            b'[' => {
                self.takes(b'[');
                let mut items = Vec::new();
                while !self.takes(b']') {
                    items.push(self.value()?);
                    self.takes(b',');
                }
                Some(Value::Array(items.into()))
            }
            b'{' => {
                self.takes(b'{');
                let mut members = BTreeMap::new();
                while !self.takes(b'}') {
                    let name = self.string();
                    self.takes(b':');
                    members.insert(name.bytes.into(), self.value()?);
                    self.takes(b',');
                }
                Some(Value::Object(members))
            }
            _ => {
                let text = self.word();
                let is_number = text.first().is_some_and(|byte| is_of_number(*byte));
                let normal = if is_number {
                    normal_number(text)?
                } else {
                    text.to_vec()
                };
                Some(Value::Scalar(normal.into()))
            }
        }
    }

    /// A number or a literal.
    fn word(&mut self) -> &'a [u8] {
        let begin = self.at;
        while self
            .peek()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        {
            self.at += 1;
        }
        &self.text[begin..self.at]
    }

    /// A string from its opening quote on.
    fn string(&mut self) -> Content {
        let mut bytes = Vec::new();
        self.at += 1;
        let end = loop {
            let Some(byte) = self.peek() else {
                break End::Open;
            };
            self.at += 1;
            match byte {
                b'"' => break End::Closed,
                b'\\' => match self.escape() {
                    Some(char) => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
                    None => break End::Escape,
                },
                byte => bytes.push(byte),
            }
        };
        Content { bytes, end }
    }

    /// What a backslash was before; `None` when the text ends before that is known.
    fn escape(&mut self) -> Option<char> {
        let byte = self.peek()?;
        self.at += 1;
        Some(match byte {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex()?;
                if !(0xD800..0xDC00).contains(&unit) {
                    return char::from_u32(unit);
                }
                let low = self.text.get(self.at..)?.starts_with(b"\\u").then(|| {
                    self.at += 2;
                    self.hex()
                });
                return char::from_u32(0x1_0000 + ((unit - 0xD800) << 10) + low??.wrapping_sub(0xDC00));
            }
            other => char::from(other),
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }

    /// The text from here on, which may be cut off anywhere, against `value`.
    fn compare(&mut self, value: &Value) -> Matched {
        self.whitespace();
        match (self.peek(), value) {
            (None, _) => Matched::Open(ANY),
            (Some(b'"'), Value::Scalar(target)) if target.first() == Some(&b'"') => {
                self.string().compare(&target[1..])
            }
            (Some(b'['), Value::Array(items)) => self.compare_items(items),
            (Some(b'{'), Value::Object(members)) => self.compare_members(members),
            (Some(b'"' | b'[' | b'{'), _) | (_, Value::Array(_) | Value::Object(_)) => Matched::Not,
            (Some(_), Value::Scalar(target)) => {
                let word = self.word();
                let is_cut = self.at == self.text.len();
                if word.first().is_some_and(|byte| is_of_number(*byte)) {
                    let is_same = is_cut || normal_number(word).as_deref() == Some(target);
                    return match target.first().is_some_and(|byte| is_of_number(*byte)) && is_same {
                        true if is_cut => Matched::Open(ANY),
                        true => Matched::Whole,
                        false => Matched::Not,
                    };
                }
                match target.starts_with(word) {
                    true if word.len() == target.len() => Matched::Whole,
                    true => Matched::Open(ANY),
                    false => Matched::Not,
                }
            }
        }
    }

    fn compare_items(&mut self, items: &[Value]) -> Matched {
        self.takes(b'[');
        let mut rest = items.iter();
        loop {
            if self.takes(b']') {
                return if rest.len() == 0 {
                    Matched::Whole
                } else {
                    Matched::Not
                };
            }
            if self.peek().is_none() {
                return Matched::Open(ANY);
            }
            match rest.next().map(|item| self.compare(item)) {
                None => return Matched::Not,
                Some(Matched::Whole) => {}
                Some(other) => return other,
            }
            self.takes(b',');
        }
    }

    fn compare_members(&mut self, members: &BTreeMap<Box<[u8]>, Value>) -> Matched {
        self.takes(b'{');
        let mut n = 0;
        loop {
            if self.takes(b'}') {
                return if n == members.len() {
                    Matched::Whole
                } else {
                    Matched::Not
                };
            }
            if self.peek().is_none() {
                return Matched::Open(ANY);
            }
            let name = self.string();
            if name.end != End::Closed {
                let open = members.keys().filter_map(|target| match name.compare(target) {
                    Matched::Open(bytes) => Some(bytes),
                    _ => None,
                });
                return open.reduce(union_of).map_or(Matched::Not, Matched::Open);
            }
            let Some(value) = members.get(&name.bytes[..]) else {
                return Matched::Not;
            };
            self.takes(b':');
            match self.compare(value) {
                Matched::Whole => n += 1,
                other => return other,
            }
            self.takes(b',');
        }
    }
}

/// Whether a number, in its normal form or not, may begin with `byte`.
fn is_of_number(byte: u8) -> bool {
    byte == b'-' || byte.is_ascii_digit()
}

/// A number with neither a point nor superfluous zeros; `None` when its exponent is absurdly long.
fn normal_number(text: &[u8]) -> Option<Vec<u8>> {
    const MAX_EXPONENT_DIGITS: usize = 36;
    let text = std::str::from_utf8(text).ok()?;
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_matches('0');
    if significant.is_empty() {
        return Some(b"0".to_vec());
    }
    // A number of JSON has at most one sign before its exponent.
    let is_small = exponent.starts_with('-');
    let size = exponent.trim_start_matches(['-', '+']).trim_start_matches('0');
    if size.len() > MAX_EXPONENT_DIGITS {
        return None;
    }
    let size: i128 = if size.is_empty() { 0 } else { size.parse().ok()? };
    let exponent = if is_small { -size } else { size };
    let n_zeros = digits.len() - digits.trim_end_matches('0').len();
    let exponent = exponent - fraction.len() as i128 + n_zeros as i128;
    Some(format!("{sign}{significant}e{exponent}").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        Value::read(text.as_bytes()).expect(text)
    }

    #[test]
    fn values_are_equal_as_json_has_it() {
        for (a, b) in [
            ("1", "1.0"),
            ("10e-1", "1"),
            ("-0.0", "0e7"),
            ("100", "1E+2"),
            ("\"\\u00e9\\n\"", "\"é\\u000a\""),
            ("\"\\ud83d\\ude00\"", "\"😀\""),
            ("[1, {\"a\":2,\"b\":[]}]", "[1.0,{\"b\": [ ] ,\"a\":2}]"),
        ] {
            assert_eq!(value(a), value(b), "{a} {b}");
        }
        for (a, b) in [
            ("1", "10"),
            ("1", "\"1\""),
            ("[1,2]", "[2,1]"),
            ("{}", "[]"),
            ("-1", "1"),
        ] {
            assert_ne!(value(a), value(b), "{a} {b}");
        }
        assert_eq!(Value::read(b"1e9999999999999999999999999999999999999"), None);
    }

    #[test]
    fn a_text_has_as_rivals_what_it_may_become() {
        let texts = [
            "\"ab\"",
            "\"aé\"",
            "12",
            "[1,[\"a\"],{\"k\":1,\"l\":\"x\"}]",
            "{\"b\":\"y\",\"a\":1}",
            "true",
        ];
        let mut memory = Memory::new();
        let list = texts.iter().fold(0, |list, text| memory.with(list, value(text)));
        assert_eq!(memory.n_values(list), 6);
        for text in texts.iter().chain(&[
            "{ \"a\": 1.0, \"b\" : \"\\u0079\"}",
            "\"\\u0061\\u00E9\"",
            "1.20e1",
        ]) {
            // Every text up to all of it has the value that it spells as a rival, and the next byte too.
            let mut written = EMPTY;
            for byte in text.bytes() {
                let bytes = memory.rival_bytes(list, written);
                assert!(bytes[usize::from(byte) / 64] >> (byte % 64) & 1 == 1, "{text}");
                written = memory.push(written, byte);
                assert!(!memory.rivals(list, written).is_empty(), "{text}");
            }
            assert_eq!(memory.with_text(list, written), None, "{text}");
            assert!(!memory.lacks(list, text.as_bytes()));
        }
        for text in [
            "\"ac",
            "\"abc",
            "f",
            "[2,",
            "[1,[\"b",
            "{\"b\":\"z",
            "{\"c",
            "{\"a\":1}",
            "[]",
        ] {
            let written = text.bytes().fold(EMPTY, |text, byte| memory.push(text, byte));
            assert!(memory.rivals(list, written).is_empty(), "{text}");
        }
        assert_eq!(memory.bytes(EMPTY), b"");
        let more = memory.with_text(list, NEW).expect("it is new");
        assert_eq!((memory.n_values(more), memory.values(more).len()), (7, 6));
    }
}
