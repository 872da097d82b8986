//! Python's operator `%`: the remainder of numbers, the formatting of strings.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::number::float_repr;

/// Most characters of a formatted number or text that are asked for by width or precision.
const MAX_WIDTH: i64 = 1 << 16;

/// `left % right`
pub(super) fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        return Formatter::new(text, right)?.format().map(Value::from);
    }
    if let (Some(left), Some(right)) = (whole(left), whole(right)) {
        let remainder = left.checked_rem(right).ok_or_else(division_by_zero)?;
        return Ok(match remainder != 0 && (remainder < 0) != (right < 0) {
            true => (remainder + right).into(),
            false => remainder.into(),
        });
    }
    let (Some(left), Some(right)) = (float(left), float(right)) else {
        let message = format!("% is not defined for {} and {}", left.kind(), right.kind());
        return Err(failed(message));
    };
    if right == 0.0 {
        return Err(division_by_zero());
    }
    let remainder = left % right;
    Ok(match remainder != 0.0 && (remainder < 0.0) != (right < 0.0) {
        true => (remainder + right).into(),
        false => remainder.copysign(right).into(),
    })
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn division_by_zero() -> Error {
    failed("the divisor of % is zero".to_owned())
}

fn whole(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        _ => f64::try_from(value.clone()).ok(),
    }
}

/// A string being formatted: `%(key)-5.2f`.
struct Formatter<'a> {
    rest: &'a str,
    output: String,
    /// Those that are not used yet.
    values: std::vec::IntoIter<Value>,
    /// Where keys are looked up.
    mapping: Option<&'a Value>,
}

impl<'a> Formatter<'a> {
    fn new(text: &'a str, right: &'a Value) -> Result<Self, Error> {
        let values = match right.is_tuple() {
            true => right.try_iter()?.checked().collect::<Result<_, _>>()?,
            false => vec![right.clone()],
        };
        Ok(Formatter {
            rest: text,
            output: String::new(),
            values: values.into_iter(),
            mapping: Some(right).filter(|right| right.kind() == ValueKind::Map),
        })
    }

    fn format(mut self) -> Result<String, Error> {
        while let Some((text, conversion)) = self.rest.split_once('%') {
            self.output.push_str(text);
            self.rest = conversion;
            self.conversion()?;
        }
        self.output.push_str(self.rest);
        // What can be asked by key or index need not be used, by Python's rules.
        let is_single = |value: &Value| !matches!(value.kind(), ValueKind::Map | ValueKind::Seq);
        if self
            .values
            .any(|value| self.mapping.is_none() && is_single(&value))
        {
            return Err(failed("%: there are more values than places for them".to_owned()));
        }
        Ok(self.output)
    }

    fn value(&mut self) -> Result<Value, Error> {
        let missing = || failed("%: there are fewer values than places for them".to_owned());
        self.values.next().ok_or_else(missing)
    }

    /// What stands up to `is_end`.
    fn take(&mut self, is_end: impl Fn(char) -> bool) -> &'a str {
        let (taken, rest) = self
            .rest
            .split_at(self.rest.find(is_end).unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// A width or precision: digits, or `*` for the next value.
    fn size(&mut self) -> Result<String, Error> {
        let size = match self.rest.strip_prefix('*') {
            Some(rest) => {
                self.rest = rest;
                i64::try_from(self.value()?)?.to_string()
            }
            None => self.take(|c| !c.is_ascii_digit()).to_owned(),
        };
        match size.parse::<i64>() {
            Ok(n) if n.abs() > MAX_WIDTH => {
                Err(failed(format!("%: {n} is wider than {MAX_WIDTH} characters")))
            }
            _ => Ok(size),
        }
    }

    /// What follows a percent sign.
    fn conversion(&mut self) -> Result<(), Error> {
        let mut keyed = None;
        if let Some(rest) = self.rest.strip_prefix('(') {
            let (key, rest) = rest
                .split_once(')')
                .ok_or_else(|| failed("%(: a key has no end".to_owned()))?;
            self.rest = rest;
            let mapping = self
                .mapping
                .ok_or_else(|| failed("%(: keys need a mapping".to_owned()))?;
            let found = mapping.get_attr(key)?;
            if found.is_undefined() {
                return Err(failed(format!("%(: there is no key '{key}'")));
            }
            keyed = Some(found);
        }
        let mut spec = self.take(|c| !"#0- +".contains(c)).to_owned();
        spec.push_str(&self.size()?);
        if let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            spec.push('.');
            spec.push_str(&self.size()?);
        }
        self.take(|c| !"hlL".contains(c));
        let mut chars = self.rest.chars();
        let kind = chars
            .next()
            .ok_or_else(|| failed("%: the format is incomplete".to_owned()))?;
        self.rest = chars.as_str();
        if kind == '%' {
            self.output.push('%');
            return Ok(());
        }
        let value = match keyed {
            Some(value) => value,
            None => self.value()?,
        };
        let (kind, value) = converted(kind, value)?;
        let formatted = format(FormatStyle::Printf, &format!("%{spec}{kind}"), &[value])?;
        self.output.push_str(&formatted);
        Ok(())
    }
}

/// What minijinja's formatting takes for a conversion and its value.
fn converted(kind: char, value: Value) -> Result<(char, Value), Error> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    Ok(match kind {
        'd' | 'i' | 'u' if is_float => ('d', Value::from(f64::try_from(value)?.trunc() as i128)),
        'd' | 'i' | 'u' => ('d', value),
        's' if is_float => ('s', float_repr(f64::try_from(value)?).into()),
        'r' | 'a' if is_float => ('s', float_repr(f64::try_from(value)?).into()),
        'r' => ('s', format!("{value:?}").into()),
        'a' => ('s', ascii(&format!("{value:?}")).into()),
        other => (other, value),
    })
}

/// Everything beyond ASCII as an escape.
fn ascii(text: &str) -> String {
    let mut output = String::new();
    for c in text.chars() {
        match u32::from(c) {
            0..0x80 => output.push(c),
            code @ 0x80..0x100 => output.push_str(&format!("\\x{code:02x}")),
            code @ 0x100..0x1_0000 => output.push_str(&format!("\\u{code:04x}")),
            code => output.push_str(&format!("\\U{code:08x}")),
        }
    }
    output
}
