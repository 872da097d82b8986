//! Exact decimal numbers of any size, as JSON texts write them.

use std::cmp::Ordering;

/// A number as `0.d₁d₂d₃… × 10^point`. The first and the last digit are not zero, so that equal numbers are
/// equal; zero has no digits, point 0 and no sign.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Decimal {
    is_negative: bool,
    digits: Vec<u8>,
    point: i64,
}

/// Exponents beyond this are taken for it: nothing so large or so small is ever written out.
const MAX_EXPONENT: i64 = 1 << 40;

impl Decimal {
    /// Reads a JSON number.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (is_negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (mantissa, None),
        };
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let has_zero = whole.len() > 1 && whole.starts_with('0');
        let exponent_digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if !are_digits(whole) || has_zero || !fraction.is_none_or(are_digits) || !are_digits(exponent_digits)
        {
            return Err("a malformed number");
        }
        let size = exponent_digits.bytes().fold(0i64, |size, digit| {
            (size * 10 + i64::from(digit - b'0')).min(MAX_EXPONENT)
        });
        let exponent = if exponent.starts_with('-') { -size } else { size };
        let all = whole.bytes().chain(fraction.unwrap_or_default().bytes());
        let mut digits: Vec<u8> = all.map(|byte| byte - b'0').collect();
        let n_zeros = digits.iter().take_while(|digit| **digit == 0).count();
        digits.drain(..n_zeros);
        while digits.last() == Some(&0) {
            digits.pop();
        }
        if digits.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self {
            is_negative,
            digits,
            point: whole.len() as i64 - n_zeros as i64 + exponent,
        })
    }

    pub(crate) fn one() -> Self {
        Self {
            is_negative: false,
            digits: vec![1],
            point: 1,
        }
    }

    /// `units / 10^n_places`.
    pub(crate) fn of_units(is_negative: bool, units: u128, n_places: usize) -> Self {
        let digits = units.to_string();
        let mut number = Self::parse(&digits).expect("digits are a number");
        if !number.digits.is_empty() {
            number.is_negative = is_negative;
            number.point -= n_places as i64;
        }
        number
    }

    pub(crate) fn is_integer(&self) -> bool {
        self.point >= self.digits.len() as i64
    }

    pub(crate) fn is_negative(&self) -> bool {
        self.is_negative
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    /// Digits before the point; none below one.
    pub(crate) fn n_whole(&self) -> usize {
        usize::try_from(self.point).unwrap_or(0)
    }

    /// Digits after the point.
    pub(crate) fn n_fraction(&self) -> usize {
        usize::try_from(self.digits.len() as i64 - self.point).unwrap_or(0)
    }

    /// Digits that it takes to write the number without an exponent.
    pub(crate) fn n_digits(&self) -> usize {
        self.n_whole() + self.n_fraction()
    }

    /// Digit `at` before the point, counted from the left.
    pub(crate) fn whole(&self, at: usize) -> u8 {
        self.digits.get(at).copied().unwrap_or(0)
    }

    /// Digit `at` after the point.
    pub(crate) fn fraction(&self, at: usize) -> u8 {
        let at = usize::try_from(self.point + at as i64).ok();
        at.and_then(|at| self.digits.get(at)).copied().unwrap_or(0)
    }

    /// The digits that are not zeros around the point.
    pub(crate) fn digits(&self) -> &[u8] {
        &self.digits
    }

    /// The value as a count, when it is one below 2^32.
    pub(crate) fn to_u32(&self) -> Option<u32> {
        let units = self.units(0).filter(|_| !self.is_negative)?;
        u32::try_from(units).ok()
    }

    /// Its size in units of `10^-n_places`, when that is a whole number below 10^37.
    pub(crate) fn units(&self, n_places: usize) -> Option<u128> {
        const MAX_DIGITS: i64 = 37;
        let n = if self.is_zero() {
            0
        } else {
            self.point + n_places as i64
        };
        if n < self.digits.len() as i64 || n > MAX_DIGITS {
            return None;
        }
        let digit = |at: i64| u128::from(self.whole(at as usize));
        Some((0..n).fold(0, |units, at| units * 10 + digit(at)))
    }

    /// Its shortest spelling without an exponent.
    pub(crate) fn text(&self) -> String {
        let digit = |digit: u8| char::from(b'0' + digit);
        let mut text = String::new();
        if self.is_negative {
            text.push('-');
        }
        if self.n_whole() == 0 {
            text.push('0');
        }
        text.extend((0..self.n_whole()).map(|at| digit(self.whole(at))));
        if self.n_fraction() > 0 {
            text.push('.');
        }
        text.extend((0..self.n_fraction()).map(|at| digit(self.fraction(at))));
        text
    }

    /// Which is farther from zero.
    fn compare_size(&self, other: &Self) -> Ordering {
        let by_zero = other.is_zero().cmp(&self.is_zero());
        let by_point = self.point.cmp(&other.point);
        by_zero
            .then(by_point)
            .then_with(|| self.digits.cmp(&other.digits))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.is_negative, other.is_negative) {
            (false, false) => self.compare_size(other),
            (true, true) => other.compare_size(self),
            (a, b) => b.cmp(&a),
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).expect(text)
    }

    #[test]
    fn numbers_are_equal_and_ordered_by_value() {
        for (a, b) in [
            ("1.50", "15e-1"),
            ("-0", "0.0"),
            ("0e99", "0"),
            ("1e3", "1000"),
            ("0.001", "1E-3"),
            ("12.0e1", "120"),
            ("-0.00120e+3", "-1.2"),
            (
                "123456789012345678901234567890",
                "1.2345678901234567890123456789e29",
            ),
        ] {
            assert_eq!(decimal(a), decimal(b));
            assert_eq!(decimal(a).cmp(&decimal(b)), Ordering::Equal);
        }
        let ascending = [
            "-1e500",
            "-12345678901234567890123456789",
            "-12345678901234567890123456788",
            "-2",
            "-1.5",
            "-1e-500",
            "0",
            "1e-500",
            "0.1",
            "0.11",
            "1",
            "9.9",
            "10",
            "123456789012345678901234567890",
            "123456789012345678901234567890.000000000000000000001",
            "1e400",
            "1e500",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(decimal(a).cmp(&decimal(b)), i.cmp(&j), "{a} and {b}");
            }
        }
        for text in ["1.", ".5", "01", "+1", "1e", "-", "1e+", "0x1", ""] {
            assert!(Decimal::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn digits_are_those_of_the_shortest_spelling() {
        for (text, shortest) in [
            ("1.0", "1"),
            ("1e3", "1000"),
            ("-0.0", "0"),
            ("1.50e-3", "0.0015"),
            ("-120e-1", "-12"),
            ("123.4500", "123.45"),
            ("0.5", "0.5"),
        ] {
            let number = decimal(text);
            assert_eq!(number.text(), shortest);
            let n_written = shortest.bytes().filter(u8::is_ascii_digit).count();
            assert_eq!(number.n_digits() + usize::from(number.n_whole() == 0), n_written);
            assert_eq!(number.is_integer(), !shortest.contains('.'));
        }
    }

    #[test]
    fn units_are_exact_or_none() {
        for (text, n_places, units) in [
            ("1.5", 1, Some(15)),
            ("1.5", 3, Some(1500)),
            ("1.5", 0, None),
            ("0", 5, Some(0)),
            ("-7", 0, Some(7)),
            ("1e36", 0, Some(10u128.pow(36))),
            ("1e37", 0, None),
            ("1e30", 7, None),
            ("1e-99999999999999999999", 30, None),
        ] {
            assert_eq!(decimal(text).units(n_places), units, "{text}");
        }
        assert_eq!(decimal("4294967295").to_u32(), Some(u32::MAX));
        assert_eq!(decimal("4294967296").to_u32(), None);
        assert_eq!(decimal("-1").to_u32(), None);
        assert_eq!(Decimal::of_units(true, 1500, 3), decimal("-1.5"));
        assert_eq!(Decimal::of_units(true, 0, 3), decimal("0"));
    }
}
