//! Numbers as Python prints them, and numbers of any size.

use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Object, ObjectRepr};

/// A text that prints as it is, by `tojson` too: a number that no numeric type of a template holds, or that
/// one of them would print otherwise than Python does, or a piece of JSON that was cut off. Nothing can be
/// computed with it.
pub(super) struct Verbatim(String);

impl Verbatim {
    /// The value that prints as `text`.
    pub(super) fn value(text: &str) -> Value {
        Value::from_object(Self(text.to_owned()))
    }

    pub(super) fn is_number(&self) -> bool {
        self.0.starts_with(|c: char| c == '-' || c.is_ascii_digit())
    }

    /// What it prints as.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Verbatim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Object for Verbatim {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// A JSON number as a template sees it: an integer or a float as in Python, [`Verbatim`] beyond those.
pub(super) fn from_json(number: &serde_json::Number) -> Value {
    let text = number.as_str();
    if !text.contains(['.', 'e', 'E']) {
        return match (text.parse::<i64>(), text.parse::<i128>()) {
            (Ok(small), _) => Value::from(small),
            (_, Ok(large)) => Value::from(large),
            _ => Verbatim::value(text),
        };
    }
    match number.as_f64() {
        Some(float) if float_repr(float).contains('e') => Verbatim::value(&float_repr(float)),
        Some(float) => Value::from(float),
        None => Verbatim::value(text),
    }
}

/// Python's `repr` of a float: the fewest digits that read back as `x`, with an exponent below 1e-4 and from
/// 1e16 on.
pub(super) fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("it is a small integer");
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = x.to_string();
    if plain.contains('.') {
        plain
    } else {
        format!("{plain}.0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values are those of Python's `repr`.
    #[test]
    fn floats_print_as_in_python() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.1 + 0.2, "0.30000000000000004"),
            (100_000.0, "100000.0"),
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.234_567_890_123_456_8e17, "1.2345678901234568e+17"),
            (1e100, "1e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (0.0001, "0.0001"),
            (0.000_123, "0.000123"),
            (0.000_01, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (x, expected) in cases {
            assert_eq!(float_repr(x), expected);
        }
    }

    #[test]
    fn json_numbers_of_any_size_keep_their_value() {
        let cases = [
            ("0", "0"),
            ("-7", "-7"),
            ("18446744073709551617", "18446744073709551617"),
            (
                "-170141183460469231731687303715884105728",
                "-170141183460469231731687303715884105728",
            ),
            (
                "1234567890123456789012345678901234567890123",
                "1234567890123456789012345678901234567890123",
            ),
            ("1e999", "1e+999"),
        ];
        for (json, expected) in cases {
            let number = serde_json::from_str(json).expect(json);
            assert_eq!(from_json(&number).to_string(), expected);
        }
        let float = from_json(&serde_json::from_str("1E5").expect("a number"));
        assert_eq!(f64::try_from(float).expect("a float"), 100_000.0);
    }
}
