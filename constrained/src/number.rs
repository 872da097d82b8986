//! Decimal numbers and the automata of their ranges and multiples.
//!
//! A bound is compared digit by digit while the number is written: until the point the count of digits
//! decides, then the first digit that differs. Where a bound or a divisor is given, numbers are written
//! without an exponent.

use std::cmp::Ordering;

use crate::dfa::{Classes, DEAD, Dfa, TooManyStates};

/// An exact decimal: sign, digits before and after the point, without superfluous zeros; zero is positive.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Decimal {
    is_negative: bool,
    whole: Vec<u8>,
    fraction: Vec<u8>,
}

/// Digits that a number of a schema may have once its exponent is written out.
const MAX_DIGITS: i64 = 400;

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
        let exponent: i64 = exponent.parse().map_err(|_| "a number's exponent is too large")?;
        let fraction = fraction.unwrap_or_default();
        let digits: Vec<u8> = whole
            .bytes()
            .chain(fraction.bytes())
            .map(|byte| byte - b'0')
            .collect();
        let first = digits.iter().position(|digit| *digit != 0);
        let Some(first) = first else {
            return Ok(Self::default());
        };
        // The point stands behind so many digits.
        let point = (whole.len() as i64).saturating_add(exponent);
        if point.saturating_sub(first as i64).abs() > MAX_DIGITS || digits.len() as i64 > MAX_DIGITS {
            return Err("a number has too many digits");
        }
        let digit = |at: i64| {
            usize::try_from(at)
                .ok()
                .and_then(|at| digits.get(at))
                .copied()
                .unwrap_or(0)
        };
        let mut fraction: Vec<u8> = (point.min(digits.len() as i64)..digits.len() as i64)
            .map(digit)
            .collect();
        let mut whole: Vec<u8> = (0..point).map(digit).collect();
        while fraction.last() == Some(&0) {
            fraction.pop();
        }
        let n_zeros = whole.iter().take_while(|digit| **digit == 0).count();
        whole.drain(..n_zeros);
        Ok(Self {
            is_negative,
            whole,
            fraction,
        })
    }

    pub(crate) fn one() -> Self {
        Self {
            is_negative: false,
            whole: vec![1],
            fraction: Vec::new(),
        }
    }

    pub(crate) fn is_integer(&self) -> bool {
        self.fraction.is_empty()
    }

    /// The value as a count, when it is one below 2^32.
    pub(crate) fn to_u32(&self) -> Option<u32> {
        if self.is_negative || !self.is_integer() || self.whole.len() > 10 {
            return None;
        }
        let value = self
            .whole
            .iter()
            .fold(0u64, |value, digit| value * 10 + u64::from(*digit));
        u32::try_from(value).ok()
    }

    /// Its shortest spelling.
    fn text(&self) -> String {
        let sign = if self.is_negative { "-" } else { "" };
        let digits =
            |digits: &[u8]| -> String { digits.iter().map(|digit| char::from(b'0' + digit)).collect() };
        let whole = if self.whole.is_empty() {
            "0".to_owned()
        } else {
            digits(&self.whole)
        };
        let point = if self.fraction.is_empty() { "" } else { "." };
        format!("{sign}{whole}{point}{}", digits(&self.fraction))
    }

    fn compare_size(&self, other: &Self) -> Ordering {
        let lengths = self.whole.len().cmp(&other.whole.len());
        lengths
            .then_with(|| self.whole.cmp(&other.whole))
            .then_with(|| self.fraction.cmp(&other.fraction))
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

/// One end of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) value: Decimal,
    pub(crate) is_exclusive: bool,
}

/// What a number must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NumberSpec {
    pub(crate) is_integer: bool,
    pub(crate) min: Option<Bound>,
    pub(crate) max: Option<Bound>,
    pub(crate) multiples: Vec<Decimal>,
    /// It is a multiple of none of these.
    pub(crate) nonmultiples: Vec<Decimal>,
    /// It is none of these.
    pub(crate) excluded: Vec<Decimal>,
}

/// How the digits so far compare with those of a bound, signs apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Comparison {
    order: Ordering,
    /// Digits of this part of the bound that were compared; at most one more than it has.
    n: usize,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    is_negative: bool,
    phase: Phase,
    bounds: Vec<Comparison>,
    remainders: Vec<Remainder>,
}

/// What is left of the digits so far by one divisor.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Remainder {
    value: u64,
    /// Digits after the point, no more than the divisor has.
    n_places: usize,
    /// A digit beyond the divisor's places was not zero: no multiple can follow.
    is_out: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Begin,
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// `value = divisor / 10^n_places`.
struct Divisor {
    divisor: u64,
    n_places: usize,
}

/// Largest divisor, its point left out; also bounds the automaton.
const MAX_DIVISOR: u64 = 100_000;

/// A value that numbers are compared with, and how they must not compare.
struct Check<'a> {
    value: &'a Decimal,
    refused: [Option<Ordering>; 2],
}

impl NumberSpec {
    fn checks(&self) -> Vec<Check<'_>> {
        let ends = [(&self.min, Ordering::Less), (&self.max, Ordering::Greater)];
        let ends = ends.into_iter().filter_map(|(bound, beyond)| {
            let bound = bound.as_ref()?;
            let equal = bound.is_exclusive.then_some(Ordering::Equal);
            Some(Check {
                value: &bound.value,
                refused: [Some(beyond), equal],
            })
        });
        let excluded = self.excluded.iter().map(|value| Check {
            value,
            refused: [Some(Ordering::Equal), None],
        });
        ends.chain(excluded).collect()
    }

    /// The divisors, each with whether the number must be a multiple; `None` when one is not usable.
    fn divisors(&self) -> Option<Vec<(Divisor, bool)>> {
        let wanted = self.multiples.iter().map(|value| (value, true));
        let unwanted = self.nonmultiples.iter().map(|value| (value, false));
        wanted
            .chain(unwanted)
            .map(|(value, is_wanted)| Some((divisor(value)?, is_wanted)))
            .collect()
    }
}

/// The spellings of the numbers that `spec` admits; `Err(None)` when a divisor is not usable.
pub(crate) fn automaton(spec: &NumberSpec, max_states: usize) -> Result<Dfa, Option<TooManyStates>> {
    let divisors = spec.divisors().ok_or(None)?;
    let checks = spec.checks();
    let is_plain = checks.is_empty() && divisors.is_empty();
    let equal = Comparison {
        order: Ordering::Equal,
        n: 0,
    };
    let whole = Remainder {
        value: 0,
        n_places: 0,
        is_out: false,
    };
    let start = State {
        is_negative: false,
        phase: Phase::Begin,
        bounds: vec![equal; checks.len()],
        remainders: vec![whole; divisors.len()],
    };
    let step = |state: &State, byte: u8| {
        let phase = next_phase(state.phase, byte, spec.is_integer, is_plain)?;
        let mut next = state.clone();
        next.phase = phase;
        next.is_negative |= byte == b'-' && state.phase == Phase::Begin;
        if byte == b'.' {
            for (comparison, check) in next.bounds.iter_mut().zip(&checks) {
                *comparison = Comparison {
                    order: whole_order(*comparison, check.value),
                    n: 0,
                };
            }
        }
        if byte.is_ascii_digit() && !is_plain {
            digit(&mut next, byte - b'0', &checks, &divisors)?;
        }
        Some(next)
    };
    let accept = |state: &State| {
        let is_complete = matches!(
            state.phase,
            Phase::Zero | Phase::Whole | Phase::Fraction | Phase::ExponentDigits
        );
        let passes = |(comparison, check): (&Comparison, &Check<'_>)| {
            !check
                .refused
                .contains(&Some(final_order(state, *comparison, check.value)))
        };
        let divides = |(rest, (divisor, is_wanted)): (&Remainder, &(Divisor, bool))| {
            let places = rest.n_places..divisor.n_places;
            let scaled = places.fold(rest.value, |rest, _| rest * 10 % divisor.divisor);
            (scaled == 0 && !rest.is_out) == *is_wanted
        };
        is_complete
            && state.bounds.iter().zip(&checks).all(passes)
            && state.remainders.iter().zip(&divisors).all(divides)
    };
    let classes = Classes::by(|byte| {
        let is_used = byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        is_used.then_some(byte)
    });
    Dfa::explore(classes, start, step, accept, max_states).map_err(Some)
}

/// Zeros after the point that add nothing to a number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Zeros {
    /// The point is there and no zero yet.
    Point,
    Some,
}

/// The spellings of exactly `values`, without an exponent: with one zero too many at most, since a model that
/// may write any number of zeros sometimes does, and without a point where they are to be `whole`.
pub(crate) fn listed<'a>(values: impl Iterator<Item = &'a Decimal>, is_whole: bool) -> Dfa {
    let mut texts: Vec<String> = values.map(Decimal::text).collect();
    if texts.iter().any(|text| text == "0") {
        texts.push("-0".to_owned());
    }
    let shortest = Dfa::of_strings(texts.iter().map(String::as_bytes));
    let step = |(state, has_point, zeros): &(u32, bool, Option<Zeros>), byte: u8| {
        let next = shortest.step(*state, byte);
        let is_complete = shortest.is_accepting(*state);
        let zeros = match byte {
            b'.' if is_complete && !has_point && !is_whole => Some(Zeros::Point),
            b'0' if *zeros == Some(Zeros::Point) || is_complete && *has_point => Some(Zeros::Some),
            _ => None,
        };
        (next != DEAD || zeros.is_some()).then_some((next, *has_point || byte == b'.', zeros))
    };
    let accept = |(state, _, zeros): &(u32, bool, Option<Zeros>)| {
        shortest.is_accepting(*state) || *zeros == Some(Zeros::Some)
    };
    let classes = Classes::by(|byte| {
        let is_used = byte.is_ascii_digit() || b"-.".contains(&byte);
        is_used.then_some(byte)
    });
    let start = (shortest.start(), false, None);
    Dfa::explore(classes, start, step, accept, usize::MAX).expect("no limit is set")
}

fn divisor(value: &Decimal) -> Option<Divisor> {
    let digits = value.whole.iter().chain(&value.fraction);
    let divisor = digits.fold(0u64, |n, digit| {
        n.saturating_mul(10).saturating_add(u64::from(*digit))
    });
    (!value.is_negative && (1..=MAX_DIVISOR).contains(&divisor)).then_some(Divisor {
        divisor,
        n_places: value.fraction.len(),
    })
}

fn next_phase(phase: Phase, byte: u8, is_integer: bool, has_exponent: bool) -> Option<Phase> {
    let is_digit = byte.is_ascii_digit();
    match (phase, byte) {
        (Phase::Begin, b'-') => Some(Phase::Minus),
        (Phase::Begin | Phase::Minus, b'0') => Some(Phase::Zero),
        (Phase::Begin | Phase::Minus | Phase::Whole, _) if is_digit => Some(Phase::Whole),
        (Phase::Zero | Phase::Whole, b'.') if !is_integer => Some(Phase::Point),
        (Phase::Point | Phase::Fraction, _) if is_digit => Some(Phase::Fraction),
        (Phase::Zero | Phase::Whole | Phase::Fraction, b'e' | b'E') if !is_integer && has_exponent => {
            Some(Phase::Exponent)
        }
        (Phase::Exponent, b'+' | b'-') => Some(Phase::ExponentSign),
        (Phase::Exponent | Phase::ExponentSign | Phase::ExponentDigits, _) if is_digit => {
            Some(Phase::ExponentDigits)
        }
        _ => None,
    }
}

/// Takes one digit into account; `None` when no multiple can follow.
fn digit(state: &mut State, digit: u8, checks: &[Check<'_>], divisors: &[(Divisor, bool)]) -> Option<()> {
    let is_fraction = state.phase == Phase::Fraction;
    for (comparison, check) in state.bounds.iter_mut().zip(checks) {
        let digits = if is_fraction {
            &check.value.fraction
        } else {
            &check.value.whole
        };
        // A number below one has no digits before its point.
        if !is_fraction && state.phase == Phase::Zero {
            continue;
        }
        let against = digits.get(comparison.n).copied().unwrap_or(0);
        if comparison.order == Ordering::Equal {
            comparison.order = digit.cmp(&against);
        }
        comparison.n = (comparison.n + 1).min(digits.len() + 1);
        if is_fraction && comparison.order != Ordering::Equal {
            comparison.n = 0;
        }
    }
    for (rest, (divisor, is_wanted)) in state.remainders.iter_mut().zip(divisors) {
        if rest.is_out {
            continue;
        }
        if is_fraction && rest.n_places == divisor.n_places {
            if digit != 0 {
                (!is_wanted).then_some(())?;
                *rest = Remainder {
                    value: 0,
                    n_places: 0,
                    is_out: true,
                };
            }
            continue;
        }
        rest.n_places += usize::from(is_fraction);
        rest.value = (rest.value * 10 + u64::from(digit)) % divisor.divisor;
    }
    Some(())
}

/// The digits before the point against those of `bound`.
fn whole_order(comparison: Comparison, bound: &Decimal) -> Ordering {
    comparison.n.cmp(&bound.whole.len()).then(comparison.order)
}

/// The complete number against `bound`.
fn final_order(state: &State, comparison: Comparison, bound: &Decimal) -> Ordering {
    let is_fraction = state.phase == Phase::Fraction;
    let whole = if is_fraction {
        comparison.order
    } else {
        whole_order(comparison, bound)
    };
    let n_compared = if is_fraction { comparison.n } else { 0 };
    let has_more = bound.fraction.iter().skip(n_compared).any(|digit| *digit != 0);
    let size = whole.then(if has_more { Ordering::Less } else { Ordering::Equal });
    // Zero has no sign; it is the only number with remainder of digits all zero.
    match (state.is_negative, bound.is_negative) {
        (false, false) => size,
        (true, true) => size.reverse(),
        (true, false) => {
            let is_zero = bound.whole.is_empty() && bound.fraction.is_empty() && size == Ordering::Equal;
            if is_zero { Ordering::Equal } else { Ordering::Less }
        }
        (false, true) => Ordering::Greater,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).expect(text)
    }

    #[test]
    fn decimals_are_equal_by_value() {
        for (a, b) in [
            ("1.50", "15e-1"),
            ("-0", "0.0"),
            ("1e3", "1000"),
            ("0.001", "1E-3"),
            ("12.0e1", "120"),
        ] {
            assert_eq!(decimal(a), decimal(b));
        }
        assert!(decimal("-2") < decimal("-1.5") && decimal("0.1") < decimal("0.11"));
        assert!(Decimal::parse("1e9999").is_err() && Decimal::parse("1.").is_err());
    }

    #[test]
    fn listed_numbers_are_spelled_with_one_zero_too_many_at_most() {
        let values = ["1", "1.5", "1.505", "-0.25", "0", "100"].map(decimal);
        let (any, whole) = (listed(values.iter(), false), listed(values[..1].iter(), true));
        for text in [
            "1", "1.0", "1.5", "1.50", "1.5050", "-0.250", "0", "-0", "-0.0", "100",
        ] {
            assert!(any.matches(text.as_bytes()), "{text}");
        }
        for text in [
            "1.",
            "1.00",
            "1.05",
            "1.500",
            "1.50500001",
            "-1",
            "00",
            "10",
            "-0.2",
            "1e0",
            "100.",
            "",
        ] {
            assert!(!any.matches(text.as_bytes()), "{text}");
        }
        assert!(whole.matches(b"1") && !whole.matches(b"1.0"));
    }

    #[test]
    fn what_is_excluded_or_no_multiple_is_so_by_value() {
        let spec = NumberSpec {
            nonmultiples: vec![decimal("1"), decimal("0.25")],
            excluded: vec![decimal("-1.1"), decimal("0.3")],
            ..NumberSpec::default()
        };
        let dfa = automaton(&spec, 9_999).expect("small");
        for text in [
            "1", "1.0", "-0", "0.00", "2.50", "-1.75", "-1.1", "-1.100", "0.30",
        ] {
            assert!(!dfa.matches(text.as_bytes()), "{text}");
        }
        for text in ["1.1", "0.3001", "-0.3", "2.51", "1.0001", "0.125"] {
            assert!(dfa.matches(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn automata_agree_with_arithmetic() {
        let texts: Vec<String> = (-250..=250)
            .flat_map(|n: i32| {
                let sign = if n < 0 { "-" } else { "" };
                let (whole, rest) = (n.abs() / 10, n.abs() % 10);
                [
                    format!("{sign}{whole}.{rest}"),
                    format!("{sign}{whole}.{rest}0"),
                    format!("{sign}{whole}"),
                ]
            })
            .collect();
        let ends = ["-20", "-12.5", "-0.3", "0", "0.25", "1", "9.9", "10", "23"];
        for (min, max) in ends.iter().flat_map(|a| ends.iter().map(move |b| (*a, *b))) {
            for (is_exclusive, multiple) in [
                (false, None),
                (true, None),
                (false, Some("0.5")),
                (true, Some("3")),
            ] {
                let bound = |value| {
                    Some(Bound {
                        value: decimal(value),
                        is_exclusive,
                    })
                };
                let spec = NumberSpec {
                    is_integer: false,
                    min: bound(min),
                    max: bound(max),
                    multiples: multiple.map(decimal).into_iter().collect(),
                    ..NumberSpec::default()
                };
                let dfa = automaton(&spec, 9_999).expect("small");
                for text in &texts {
                    let (value, low, high): (f64, f64, f64) = (
                        text.parse().expect("a number"),
                        min.parse().expect("a number"),
                        max.parse().expect("a number"),
                    );
                    let inside = if is_exclusive {
                        low < value && value < high
                    } else {
                        low <= value && value <= high
                    };
                    let step: f64 = multiple.map_or(0.0, |text: &str| text.parse().expect("a number"));
                    let is_multiple = multiple.is_none() || (value / step).fract() == 0.0;
                    let expected = inside && is_multiple;
                    assert_eq!(dfa.matches(text.as_bytes()), expected, "{text} in {spec:?}");
                }
            }
        }
    }
}
