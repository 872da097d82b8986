//! What is left of a number by a divisor, digit by digit, in as few states as the digits to come can tell
//! apart.

use crate::decimal::Decimal;

/// A positive number that others are to be multiples of: `units / 10^n_places`, both as small as possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Divisor {
    pub(crate) units: u128,
    pub(crate) n_places: usize,
    /// The largest divisor of `units` that is made of twos and fives.
    tens: u128,
}

/// What is known of the digits so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Remainder {
    /// By `units`; where there are no places, by what the divisor has besides twos and fives.
    rest: u128,
    /// Without places: the least number of further digits that can complete a multiple of `tens`.
    n_missing: u8,
    /// The first number of so many digits that does.
    missing: u128,
    /// A digit beyond the places was not zero: no multiple can follow.
    is_out: bool,
}

/// Largest number of units; ten times as much, and a little more, fits into 128 bits.
const MAX_UNITS: u128 = 10u128.pow(37);

impl Divisor {
    /// `None` when the value is not positive or has more than 37 digits.
    pub(crate) fn new(value: &Decimal) -> Option<Self> {
        let n_places = value.n_fraction();
        let units = value.units(n_places).filter(|units| *units > 0)?;
        (!value.is_negative() && n_places < 37).then(|| Self::of(units, n_places))
    }

    fn of(mut units: u128, mut n_places: usize) -> Self {
        while n_places > 0 && units.is_multiple_of(10) {
            units /= 10;
            n_places -= 1;
        }
        let mut tens = 1;
        for prime in [2, 5] {
            while (units / tens).is_multiple_of(prime) {
                tens *= prime;
            }
        }
        Self {
            units,
            n_places,
            tens,
        }
    }

    /// The divisor whose multiples are those of both; `None` when it has more than 37 digits.
    pub(crate) fn common(self, other: Self) -> Option<Self> {
        let n_places = self.n_places.max(other.n_places);
        let [a, b] = [self, other].map(|divisor| {
            let scale = 10u128.pow((n_places - divisor.n_places) as u32);
            divisor
                .units
                .checked_mul(scale)
                .filter(|units| *units < MAX_UNITS)
        });
        let (a, b) = (a?, b?);
        let units = (a / common(a, b))
            .checked_mul(b)
            .filter(|units| *units < MAX_UNITS)?;
        Some(Self::of(units, n_places))
    }

    /// Digits before the point.
    pub(crate) fn n_whole(self) -> usize {
        Decimal::of_units(false, self.units, self.n_places).n_whole()
    }

    /// How many values the rest of a whole number takes, twos and fives apart.
    pub(crate) fn n_rests(self) -> u128 {
        let scale = 10u128.pow(self.n_places as u32);
        if self.n_places == 0 {
            self.units / self.tens
        } else {
            self.units / common(self.units, scale)
        }
    }

    /// `n` times the divisor; `None` beyond 37 digits.
    pub(crate) fn multiple(self, is_negative: bool, n: u128) -> Option<Decimal> {
        let units = self.units.checked_mul(n).filter(|units| *units < MAX_UNITS)?;
        Some(Decimal::of_units(is_negative, units, self.n_places))
    }

    /// The least number of times the divisor that is as far from zero as `value`.
    pub(crate) fn n_up_to(self, value: &Decimal) -> Option<u128> {
        let n_places = self.n_places.max(value.n_fraction());
        let scale = 10u128.checked_pow((n_places - self.n_places) as u32)?;
        Some(value.units(n_places)?.div_ceil(self.units.checked_mul(scale)?))
    }

    /// Whether `value` is a multiple. Takes a step for each of its digits.
    pub(crate) fn divides(self, value: &Decimal) -> bool {
        if value.n_fraction() > self.n_places {
            return false;
        }
        let whole = (0..value.n_whole()).fold(Remainder::default(), |remainder, at| {
            self.after_whole(remainder, value.whole(at))
        });
        let all = (0..value.n_fraction()).fold(whole, |remainder, at| {
            self.after_fraction(remainder, at, value.fraction(at))
        });
        self.is_multiple(all)
    }

    pub(crate) fn is_multiple(self, remainder: Remainder) -> bool {
        !remainder.is_out && remainder.rest == 0 && remainder.n_missing == 0
    }

    /// What is left after one more digit before the point.
    pub(crate) fn after_whole(self, remainder: Remainder, digit: u8) -> Remainder {
        let digit = u128::from(digit);
        if self.n_places > 0 {
            let scale = 10u128.pow(self.n_places as u32) % self.units;
            let rest = (remainder.rest * 10 + digit * scale) % self.units;
            return Remainder { rest, ..remainder };
        }
        let (n_missing, missing) = self.missing(remainder, digit);
        Remainder {
            rest: (remainder.rest * 10 + digit) % (self.units / self.tens),
            n_missing,
            missing,
            is_out: false,
        }
    }

    /// What is left after digit `at` behind the point.
    pub(crate) fn after_fraction(self, remainder: Remainder, at: usize, digit: u8) -> Remainder {
        if remainder.is_out || digit == 0 {
            return remainder;
        }
        if at >= self.n_places {
            return Remainder {
                is_out: true,
                ..Remainder::default()
            };
        }
        let scale = 10u128.pow((self.n_places - at - 1) as u32);
        Remainder {
            rest: (remainder.rest + u128::from(digit) * scale) % self.units,
            ..remainder
        }
    }

    /// The digits that complete a multiple of `tens` after `digit`.
    ///
    /// So far they are the numbers `missing + k × tens` of `n_missing` digits; of more digits they are ten
    /// times as much each time, since the number before them is. Those that begin with `digit` are left.
    fn missing(self, remainder: Remainder, digit: u128) -> (u8, u128) {
        let mut missing = remainder.missing;
        let mut n = remainder.n_missing.saturating_sub(1);
        loop {
            let scale = 10u128.pow(u32::from(n));
            let left = (missing + self.tens - digit * scale % self.tens) % self.tens;
            if left < scale {
                return (n, left);
            }
            missing = missing * 10 % self.tens;
            n += 1;
        }
    }
}

/// The greatest common divisor.
fn common(mut a: u128, mut b: u128) -> u128 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divisor(text: &str) -> Divisor {
        Divisor::new(&Decimal::parse(text).expect(text)).expect(text)
    }

    #[test]
    fn remainders_agree_with_arithmetic() {
        for units in (1..200).chain([250, 625, 1_000, 1_024, 4_096, 65_536, 86_400, 100_000]) {
            for (n_places, scale) in [(0, 1), (1, 10), (3, 1_000)] {
                let divisor = Divisor::new(&Decimal::of_units(false, units, n_places)).expect("positive");
                for n in (0..3_000).chain((0..40).map(|k| k * units)) {
                    // `n / 1000` by `units / scale`.
                    let expected = n * scale % (units * 1_000) == 0;
                    let value = Decimal::of_units(false, n, 3);
                    assert_eq!(divisor.divides(&value), expected, "{n}/1000 by {units}/{scale}");
                }
            }
        }
    }

    #[test]
    fn twos_and_fives_need_few_states() {
        for (text, most) in [
            ("1000000000000", 13),
            ("8", 5),
            ("1024", 160),
            ("0.000001", 1),
            ("0.125", 1),
        ] {
            let divisor = divisor(text);
            let mut seen = vec![Remainder::default()];
            let mut at = 0;
            while at < seen.len() {
                for digit in 0..10 {
                    let next = divisor.after_whole(seen[at], digit);
                    if !seen.contains(&next) {
                        seen.push(next);
                    }
                }
                at += 1;
            }
            assert!(seen.len() <= most, "{text}: {}", seen.len());
        }
    }

    #[test]
    fn common_multiples_are_those_of_both() {
        for (a, b, both) in [
            ("4", "6", "12"),
            ("0.5", "0.75", "1.5"),
            ("0.1", "3", "3"),
            ("7", "11", "77"),
        ] {
            assert_eq!(divisor(a).common(divisor(b)), Some(divisor(both)));
        }
        let long = divisor("1234567890123456789012345678901");
        assert_eq!(long.common(long), Some(long));
        assert_eq!(long.common(divisor("1234567891")), None);
    }

    #[test]
    fn what_is_no_divisor_or_too_long_is_none() {
        for text in [
            "0",
            "-1",
            "1e37",
            "1e-37",
            "0.12345678901234567890123456789012345678",
        ] {
            assert_eq!(Divisor::new(&Decimal::parse(text).expect(text)), None, "{text}");
        }
        assert!(divisor("1e36").divides(&Decimal::parse("3e36").expect("a number")));
        assert!(!divisor("1e36").divides(&Decimal::parse("3e35").expect("a number")));
    }
}
