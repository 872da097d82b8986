//! The typed key/value part of a GGUF header.
//!
//! Access is by type: a key that is absent is `None`, a key of another type is an error that names the key,
//! what was expected and what was found. Nothing is converted silently besides the width of an integer.

use std::collections::HashMap;

/// An array of strings in one allocation: a vocabulary has hundreds of thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    ends: Vec<usize>,
}

impl Strings {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String number `idx`.
    pub fn at(&self, idx: usize) -> &str {
        let start = if idx == 0 { 0 } else { self.ends[idx - 1] };
        &self.text[start..self.ends[idx]]
    }

    /// All of them in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|idx| self.at(idx))
    }

    /// Appends one.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }
}

impl<'a> FromIterator<&'a str> for Strings {
    fn from_iter<I: IntoIterator<Item = &'a str>>(iter: I) -> Self {
        let mut strings = Strings::default();
        iter.into_iter().for_each(|text| strings.push(text));
        strings
    }
}

/// A metadata value. GGUF's integer and float widths are widened: no reader cares which was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned width.
    Unsigned(u64),
    /// Any signed width.
    Signed(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A UTF-8 string.
    Text(String),
    /// An array of integers of any width that fits `i64`.
    Integers(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f64>),
    /// An array of booleans.
    Bools(Vec<bool>),
    /// An array of strings.
    Strings(Strings),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) => "an unsigned integer",
            Value::Signed(_) => "a signed integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::Text(_) => "a string",
            Value::Integers(_) => "an array of integers",
            Value::Floats(_) => "an array of floats",
            Value::Bools(_) => "an array of booleans",
            Value::Strings(_) => "an array of strings",
        }
    }
}

/// A key that is not what its reader needs.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// The key is not in the file.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// The key holds another type.
    #[error("`{key}` should be {expected}, found {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What the reader needs.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// The value is outside what the reader accepts.
    #[error("`{key}` = {value}: must be {limit}")]
    OutOfRange {
        /// The key.
        key: String,
        /// What is there.
        value: String,
        /// What is accepted.
        limit: String,
    },
}

/// All keys of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    values: HashMap<String, Value>,
}

impl Metadata {
    /// Adds a key; returns `false`, and changes nothing, where it is there already.
    pub fn insert(&mut self, key: String, value: Value) -> bool {
        match self.values.entry(key) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(value);
                true
            }
        }
    }

    /// The same keys with one of them set.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.values.insert(key.to_owned(), value);
        self
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether the key is there, with any type.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A non-negative integer.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, KeyError> {
        self.typed(key, "an unsigned integer", |value| match value {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A float; integers count.
    pub fn float(&self, key: &str) -> Result<Option<f64>, KeyError> {
        self.typed(key, "a number", |value| match value {
            Value::Float(number) => Some(*number),
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            _ => None,
        })
    }

    /// A boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, KeyError> {
        self.typed(key, "a boolean", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, KeyError> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&Strings>, KeyError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Strings(strings) => Some(strings),
            _ => None,
        })
    }

    /// An array of integers.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, KeyError> {
        self.typed(key, "an array of integers", |value| match value {
            Value::Integers(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// An array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f64]>, KeyError> {
        self.typed(key, "an array of floats", |value| match value {
            Value::Floats(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, KeyError> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(KeyError::WrongType {
                key: key.to_owned(),
                expected,
                found: value.kind(),
            }),
        }
    }
}

/// What `read` found, or the error that the key is missing.
pub fn required<T>(key: &str, found: Result<Option<T>, KeyError>) -> Result<T, KeyError> {
    found?.ok_or_else(|| KeyError::Missing { key: key.to_owned() })
}
