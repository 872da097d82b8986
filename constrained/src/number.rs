//! The automata of numbers: ranges, multiples, and values that are kept out.
//!
//! Every number ends. A model that may write any number of digits sometimes does, so each part of a number
//! has at most as many as [`Digits`] says: what JavaScript and Python write without an exponent, which holds
//! every integer of 64 bits, and what the schema's own numbers need.
//!
//! A bound is compared digit by digit while the number is written: until the point the count of digits
//! decides, then the first digit that differs. Where a bound or a divisor is given, numbers are written
//! without an exponent. Zero has no sign.

use std::cmp::Ordering;

use crate::decimal::Decimal;
use crate::dfa::{Classes, Dfa, TooManyStates};
use crate::divisor::{Divisor, Remainder};

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

/// Why there is no automaton.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberError {
    TooManyStates,
    /// A divisor is not positive, or it or the least common multiple has too many digits.
    Divisor,
    /// A bound has too many digits.
    Bound,
}

impl NumberSpec {
    /// Whether `value` meets all of it. Takes a step for each of its digits.
    pub(crate) fn admits(&self, value: &Decimal) -> Result<bool, NumberError> {
        let is_kept_out = |bound: &Option<Bound>, beyond: Ordering| {
            bound.as_ref().is_some_and(|bound| match value.cmp(&bound.value) {
                Ordering::Equal => bound.is_exclusive,
                order => order == beyond,
            })
        };
        if self.is_integer && !value.is_integer()
            || is_kept_out(&self.min, Ordering::Less)
            || is_kept_out(&self.max, Ordering::Greater)
            || self.excluded.contains(value)
        {
            return Ok(false);
        }
        let wanted = self.multiples.iter().map(|divisor| (divisor, true));
        for (divisor, is_wanted) in wanted.chain(self.nonmultiples.iter().map(|divisor| (divisor, false))) {
            let divisor = Divisor::new(divisor).ok_or(NumberError::Divisor)?;
            if divisor.divides(value) != is_wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn plan(&self) -> Result<Plan<'_>, NumberError> {
        let divisor = |value: &Decimal| Divisor::new(value).ok_or(NumberError::Divisor);
        let mut wanted: Option<Divisor> = None;
        for value in &self.multiples {
            let own = divisor(value)?;
            let both = wanted.map_or(Some(own), |wanted| wanted.common(own));
            wanted = Some(both.ok_or(NumberError::Divisor)?);
        }
        let unwanted: Vec<Divisor> = self.nonmultiples.iter().map(divisor).collect::<Result<_, _>>()?;
        let digits = self.digits(wanted)?;
        let ends = [(&self.min, Ordering::Less), (&self.max, Ordering::Greater)];
        let ends = ends.into_iter().filter_map(|(bound, beyond)| {
            let bound = bound.as_ref()?;
            let equal = bound.is_exclusive.then_some(Ordering::Equal);
            Some(Check {
                value: &bound.value,
                refused: [Some(beyond), equal],
            })
        });
        let can_be =
            |value: &&Decimal| value.n_whole() <= digits.whole && value.n_fraction() <= digits.fraction;
        let excluded = self.excluded.iter().filter(can_be).map(|value| Check {
            value,
            refused: [Some(Ordering::Equal), None],
        });
        let checks: Vec<Check<'_>> = ends.chain(excluded).collect();
        // An exponent does not change how a number compares with zero.
        let are_zero = checks.iter().all(|check| check.value.is_zero());
        Ok(Plan {
            has_exponent: !self.is_integer && are_zero && wanted.is_none() && unwanted.is_empty(),
            digits,
            checks,
            wanted,
            unwanted,
        })
    }

    fn digits(&self, wanted: Option<Divisor>) -> Result<Digits, NumberError> {
        let ends = [(&self.min, false), (&self.max, true)];
        let ends = ends.map(|(bound, is_negative)| bound.as_ref().map(|bound| (&bound.value, is_negative)));
        let (mut whole, mut fraction) = (N_WHOLE, N_FRACTION);
        for (value, near_sign) in ends.into_iter().flatten() {
            // All numbers are at least as far from zero as a bound on the near side of them.
            let is_near = !value.is_zero() && value.is_negative() == near_sign;
            if is_near && value.n_digits() > MAX_DIGITS {
                return Err(NumberError::Bound);
            }
            if is_near || value.n_whole() <= N_FAR {
                whole = whole.max(value.n_whole() + 1);
            }
            if value.n_fraction() <= MAX_DIGITS {
                fraction = fraction.max(value.n_fraction() + N_SIGNIFICANT);
            }
        }
        if let Some(wanted) = wanted {
            whole = whole.max(wanted.n_whole() + 1);
            // One zero at most is written in vain: Python ends whole floating-point numbers with it.
            fraction = wanted.n_places.max(1);
        }
        Ok(Digits {
            whole,
            fraction: if self.is_integer { 0 } else { fraction },
        })
    }
}

/// The spellings of the numbers that `spec` admits.
pub(crate) fn automaton(spec: &NumberSpec, max_states: usize) -> Result<Dfa, NumberError> {
    let plan = spec.plan()?;
    let Some(wanted) = plan.wanted else {
        return plan.explored(max_states);
    };
    let n_least = wanted.n_rests().saturating_mul(plan.digits.whole as u128);
    if n_least <= max_states as u128 {
        match plan.explored(max_states) {
            Err(NumberError::TooManyStates) => {}
            found => return found,
        }
    }
    plan.first_multiples(spec, wanted)
}

/// The most digits that a part of a number has.
#[derive(Clone, Copy)]
struct Digits {
    whole: usize,
    fraction: usize,
}

/// JavaScript writes numbers below 10^21 without an exponent; integers of 64 bits have up to 20 digits.
const N_WHOLE: usize = 21;
/// JavaScript writes numbers from 10^-6 without an exponent, with 17 digits after the zeros.
const N_FRACTION: usize = 22;
/// Floating-point numbers of 64 bits go up to 10^308.
const N_EXPONENT: usize = 3;
/// Digits that tell apart all floating-point numbers of 64 bits.
const N_SIGNIFICANT: usize = 17;
/// A bound that leaves smaller numbers makes room for its own digits, up to so many.
const N_FAR: usize = 64;
/// Multiples that are listed on either side of zero where an automaton of all would be too large.
const N_LISTED: u128 = 1_000;
/// Digits that a number of a schema may take to be written out.
pub(crate) const MAX_DIGITS: usize = 400;

/// A value that numbers are compared with, and how they must not compare.
struct Check<'a> {
    value: &'a Decimal,
    refused: [Option<Ordering>; 2],
}

/// What is known of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Standing {
    /// It holds whatever follows.
    Passes,
    /// How the digits so far compare with as many of the value's, signs apart.
    Compared(Ordering),
}

impl Check<'_> {
    fn passes(&self, order: Ordering) -> bool {
        !self.refused.contains(&Some(order))
    }

    fn decided(&self, size: Ordering, is_negative: bool) -> Option<Standing> {
        let order = if is_negative { size.reverse() } else { size };
        self.passes(order).then_some(Standing::Passes)
    }

    /// After the sign.
    fn after_sign(&self, is_negative: bool) -> Option<Standing> {
        if is_negative == self.value.is_negative() {
            return Some(Standing::Compared(Ordering::Equal));
        }
        self.decided(Ordering::Greater, is_negative)
    }

    /// After `digit`, the `n`th before the point.
    fn after_whole(&self, order: Ordering, (n, digit): (usize, u8), is_negative: bool) -> Option<Standing> {
        let order = match n.cmp(&self.value.n_whole()) {
            Ordering::Greater => Ordering::Greater,
            _ => order.then(digit.cmp(&self.value.whole(n - 1))),
        };
        if order == Ordering::Greater && n >= self.value.n_whole() {
            return self.decided(order, is_negative);
        }
        Some(Standing::Compared(order))
    }

    /// After the point, before which `n` digits stand.
    fn after_point(&self, order: Ordering, n: usize, is_negative: bool) -> Option<Standing> {
        match n.cmp(&self.value.n_whole()).then(order) {
            Ordering::Equal => Some(Standing::Compared(Ordering::Equal)),
            size => self.decided(size, is_negative),
        }
    }

    /// After `digit`, the `n`th behind the point, where all before are the value's.
    fn after_fraction(&self, (n, digit): (usize, u8), is_negative: bool) -> Option<Standing> {
        match digit.cmp(&self.value.fraction(n - 1)) {
            Ordering::Equal => Some(Standing::Compared(Ordering::Equal)),
            size => self.decided(size, is_negative),
        }
    }

    /// Whether the number may end.
    fn may_end(&self, standing: Standing, state: &State) -> bool {
        let Standing::Compared(order) = standing else {
            return true;
        };
        let (size, n_fraction) = match state.phase {
            Phase::Fraction => (order, state.n),
            _ => (state.n.cmp(&self.value.n_whole()).then(order), 0),
        };
        let size = match size {
            Ordering::Equal if n_fraction < self.value.n_fraction() => Ordering::Less,
            size => size,
        };
        self.decided(size, state.is_negative).is_some()
    }
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

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    phase: Phase,
    /// Digits of this part.
    n: usize,
    is_negative: bool,
    /// There is a sign, and all digits are zeros.
    is_signed_zero: bool,
    standings: Vec<Standing>,
    wanted: Remainder,
    unwanted: Vec<Remainder>,
}

/// A specification in the terms of its automaton.
struct Plan<'a> {
    has_exponent: bool,
    digits: Digits,
    checks: Vec<Check<'a>>,
    wanted: Option<Divisor>,
    unwanted: Vec<Divisor>,
}

impl Plan<'_> {
    fn explored(&self, max_states: usize) -> Result<Dfa, NumberError> {
        let start = State {
            phase: Phase::Begin,
            n: 0,
            is_negative: false,
            is_signed_zero: false,
            standings: vec![Standing::Compared(Ordering::Equal); self.checks.len()],
            wanted: Remainder::default(),
            unwanted: vec![Remainder::default(); self.unwanted.len()],
        };
        let step = |state: &State, byte| self.step(state, byte);
        let may_end = |state: &State| self.may_end(state);
        let found = Dfa::explore(self.classes(), start, step, may_end, max_states);
        found.map_err(|TooManyStates| NumberError::TooManyStates)
    }

    /// The bytes of numbers; digits that compare alike with all digits of the checks are one class.
    fn classes(&self) -> Classes {
        let mut is_special = [self.wanted.is_some() || !self.unwanted.is_empty(); 10];
        is_special[0] = true;
        for digit in self.checks.iter().flat_map(|check| check.value.digits()) {
            is_special[usize::from(*digit)] = true;
        }
        let n_below: Vec<usize> = (0..10)
            .map(|digit| is_special[..digit].iter().filter(|is| **is).count())
            .collect();
        Classes::by(|byte| match byte {
            b'0'..=b'9' => {
                let digit = usize::from(byte - b'0');
                (0, n_below[digit], is_special[digit])
            }
            b'e' | b'E' => (1, 0, false),
            b'+' | b'-' | b'.' => (2, usize::from(byte), false),
            _ => (3, 0, false),
        })
    }

    fn step(&self, state: &State, byte: u8) -> Option<State> {
        let mut next = state.clone();
        match (state.phase, byte) {
            (Phase::Begin, b'-') => {
                next.phase = Phase::Minus;
                self.take_sign(&mut next, true)?;
            }
            (Phase::Begin | Phase::Minus | Phase::Whole, b'0'..=b'9') => {
                if state.phase == Phase::Begin {
                    self.take_sign(&mut next, false)?;
                }
                let is_zero = byte == b'0' && state.phase != Phase::Whole;
                next.phase = if is_zero { Phase::Zero } else { Phase::Whole };
                if !is_zero {
                    self.take_whole(&mut next, byte - b'0')?;
                }
            }
            (Phase::Zero | Phase::Whole, b'.') if self.digits.fraction > 0 => {
                next.phase = Phase::Point;
                next.n = 0;
                for (standing, check) in next.standings.iter_mut().zip(&self.checks) {
                    if let Standing::Compared(order) = *standing {
                        *standing = check.after_point(order, state.n, state.is_negative)?;
                    }
                }
            }
            (Phase::Point | Phase::Fraction, b'0'..=b'9') => {
                next.phase = Phase::Fraction;
                self.take_fraction(&mut next, byte - b'0')?;
            }
            (Phase::Zero | Phase::Whole | Phase::Fraction, b'e' | b'E') => {
                // What follows is the same for all numbers.
                (self.has_exponent && self.may_end(state)).then_some(())?;
                next = State {
                    phase: Phase::Exponent,
                    n: 0,
                    is_negative: false,
                    is_signed_zero: false,
                    standings: vec![Standing::Passes; self.checks.len()],
                    ..next
                };
            }
            (Phase::Exponent, b'+' | b'-') => next.phase = Phase::ExponentSign,
            (Phase::Exponent | Phase::ExponentSign | Phase::ExponentDigits, b'0'..=b'9') => {
                next.phase = Phase::ExponentDigits;
                next.n += 1;
                (next.n <= N_EXPONENT).then_some(())?;
            }
            _ => return None,
        }
        Some(next)
    }

    /// Takes the sign into account; `None` when no number can follow, here as below.
    fn take_sign(&self, state: &mut State, is_negative: bool) -> Option<()> {
        state.is_negative = is_negative;
        state.is_signed_zero = is_negative;
        for (standing, check) in state.standings.iter_mut().zip(&self.checks) {
            *standing = check.after_sign(is_negative)?;
        }
        Some(())
    }

    fn take_whole(&self, state: &mut State, digit: u8) -> Option<()> {
        state.n += 1;
        state.is_signed_zero = false;
        (state.n <= self.digits.whole).then_some(())?;
        for (standing, check) in state.standings.iter_mut().zip(&self.checks) {
            if let Standing::Compared(order) = *standing {
                *standing = check.after_whole(order, (state.n, digit), state.is_negative)?;
            }
        }
        if let Some(wanted) = self.wanted {
            state.wanted = wanted.after_whole(state.wanted, digit);
        }
        for (remainder, divisor) in state.unwanted.iter_mut().zip(&self.unwanted) {
            *remainder = divisor.after_whole(*remainder, digit);
        }
        Some(())
    }

    fn take_fraction(&self, state: &mut State, digit: u8) -> Option<()> {
        let at = state.n;
        state.n += 1;
        state.is_signed_zero &= digit == 0;
        (state.n <= self.digits.fraction).then_some(())?;
        for (standing, check) in state.standings.iter_mut().zip(&self.checks) {
            if let Standing::Compared(_) = *standing {
                *standing = check.after_fraction((state.n, digit), state.is_negative)?;
            }
        }
        if let Some(wanted) = self.wanted {
            state.wanted = wanted.after_fraction(state.wanted, at, digit);
        }
        for (remainder, divisor) in state.unwanted.iter_mut().zip(&self.unwanted) {
            *remainder = divisor.after_fraction(*remainder, at, digit);
        }
        Some(())
    }

    fn may_end(&self, state: &State) -> bool {
        let is_complete = matches!(
            state.phase,
            Phase::Zero | Phase::Whole | Phase::Fraction | Phase::ExponentDigits
        );
        let mut checks = state.standings.iter().zip(&self.checks);
        let mut unwanted = state.unwanted.iter().zip(&self.unwanted);
        is_complete
            && !state.is_signed_zero
            && checks.all(|(standing, check)| check.may_end(*standing, state))
            && self.wanted.is_none_or(|wanted| wanted.is_multiple(state.wanted))
            && unwanted.all(|(remainder, divisor)| !divisor.is_multiple(*remainder))
    }

    /// The multiples of `wanted` that are nearest to zero, or to the bound that keeps them from it.
    fn first_multiples(&self, spec: &NumberSpec, wanted: Divisor) -> Result<Dfa, NumberError> {
        let mut texts = Vec::new();
        for (is_negative, bound) in [(false, &spec.min), (true, &spec.max)] {
            let is_near = |bound: &&Bound| !bound.value.is_zero() && bound.value.is_negative() == is_negative;
            let first = match bound.as_ref().filter(is_near) {
                None => u128::from(is_negative),
                Some(bound) => wanted.n_up_to(&bound.value).ok_or(NumberError::Bound)?,
            };
            for n in first..first.saturating_add(N_LISTED) {
                let value = wanted
                    .multiple(is_negative, n)
                    .filter(|value| value.n_whole() <= self.digits.whole);
                let Some(value) = value else {
                    break;
                };
                if spec.admits(&value)? {
                    texts.push(value.text());
                }
            }
        }
        Ok(Dfa::of_strings(texts.iter().map(String::as_bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).expect(text)
    }

    fn bound(text: &str, is_exclusive: bool) -> Option<Bound> {
        let value = decimal(text);
        Some(Bound { value, is_exclusive })
    }

    fn compile(spec: &NumberSpec) -> Dfa {
        automaton(spec, 8_192).unwrap_or_else(|error| panic!("{error:?} of {spec:?}"))
    }

    /// The longest text that an automaton accepts; `None` when there is no bound.
    fn longest(dfa: &Dfa) -> Option<usize> {
        let mut states = vec![dfa.start()];
        for n in 0..2_000 {
            let next = states.iter().flat_map(|state| {
                let bytes = dfa.classes().members().iter();
                bytes.map(|byte| dfa.step(*state, *byte))
            });
            let mut next: Vec<u32> = next.filter(|state| *state != crate::dfa::DEAD).collect();
            next.sort_unstable();
            next.dedup();
            if next.is_empty() {
                return Some(n);
            }
            states = next;
        }
        None
    }

    fn spec(min: Option<Bound>, max: Option<Bound>) -> NumberSpec {
        NumberSpec {
            min,
            max,
            ..NumberSpec::default()
        }
    }

    #[test]
    fn every_number_ends() {
        let integer = |spec| NumberSpec {
            is_integer: true,
            ..spec
        };
        let ends = [
            None,
            bound("0", false),
            bound("-7", true),
            bound("0.001", false),
            bound("12345", true),
        ];
        let multiples = ["1", "0.01", "7", "1000000", "0.3"];
        let mut specs = Vec::new();
        for (min, max) in ends.iter().flat_map(|a| ends.iter().map(move |b| (a, b))) {
            let plain = spec(min.clone(), max.clone());
            specs.push(plain.clone());
            specs.push(integer(plain.clone()));
            for multiple in multiples {
                specs.push(NumberSpec {
                    multiples: vec![decimal(multiple)],
                    ..plain.clone()
                });
                specs.push(NumberSpec {
                    nonmultiples: vec![decimal(multiple)],
                    excluded: vec![decimal("5"), decimal("0.5")],
                    ..plain.clone()
                });
            }
        }
        for spec in specs {
            let n = longest(&compile(&spec));
            assert!(n.is_some_and(|n| n <= 1 + 21 + 1 + 22 + 5), "{n:?} of {spec:?}");
        }
    }

    #[test]
    fn numbers_have_room_for_64_bits_and_for_the_numbers_of_the_schema() {
        let any = compile(&NumberSpec::default());
        let from_zero = compile(&spec(bound("0", false), None));
        let texts = [
            "18446744073709551615",
            "0.0000012345678901234567",
            "1.7976931348623157e308",
            "2.2250738585072014e-308",
            "100000000000000000000",
            "6.02214076E+23",
        ];
        for text in texts {
            assert!(
                any.matches(text.as_bytes()) && from_zero.matches(text.as_bytes()),
                "{text}"
            );
            assert!(any.matches(format!("-{text}").as_bytes()), "-{text}");
        }
        let long = "1234567890123456789012345678901";
        let longer = "1234567890123456789012345678902";
        for (spec, text) in [
            (spec(bound(long, true), None), longer),
            (spec(None, bound(longer, true)), long),
            (spec(bound(long, false), bound(long, false)), long),
            (
                spec(bound("1e-30", true), bound("2e-30", true)),
                "0.0000000000000000000000000000015",
            ),
            (
                spec(bound("-1e-30", true), bound("-1e-31", true)),
                "-0.0000000000000000000000000000002",
            ),
            (spec(bound("9e99", false), None), &format!("9{}", "0".repeat(99))),
        ] {
            assert!(compile(&spec).matches(text.as_bytes()), "{text} of {spec:?}");
        }
        let [shut, open] = [true, false].map(|is| compile(&spec(bound(long, is), bound(longer, is))));
        assert!(!shut.matches(long.as_bytes()) && !shut.matches(longer.as_bytes()));
        assert!(shut.matches(format!("{long}.5").as_bytes()) && open.matches(longer.as_bytes()));
        // A bound that nothing comes near makes no room.
        let n = longest(&compile(&spec(bound("-1e308", false), bound("1e308", false))));
        assert!(n.is_some_and(|n| n < 50), "{n:?}");
        assert_eq!(
            automaton(&spec(bound("1e400", false), None), 99),
            Err(NumberError::Bound)
        );
    }

    #[test]
    fn zero_has_no_sign_and_integers_neither_point_nor_exponent() {
        let specs = [
            NumberSpec::default(),
            spec(bound("-5", false), bound("5", false)),
            spec(None, bound("0", false)),
            NumberSpec {
                multiples: vec![decimal("0.5")],
                ..NumberSpec::default()
            },
        ];
        for spec in &specs {
            let dfa = compile(spec);
            for text in [
                "-0", "-0.0", "-0.00", "-0e1", "-0.0E-5", "-", "--1", "01", "-01", "1.", ".5",
            ] {
                assert!(!dfa.matches(text.as_bytes()), "{text} of {spec:?}");
            }
            assert!(
                dfa.matches(b"0") && dfa.matches(b"0.0") && dfa.matches(b"-0.5"),
                "{spec:?}"
            );
            let whole = NumberSpec {
                is_integer: true,
                ..spec.clone()
            };
            let dfa = compile(&whole);
            for text in ["-0", "1.0", "1e0", "1E1", "0.0", "-1.0"] {
                assert!(!dfa.matches(text.as_bytes()), "{text} of {whole:?}");
            }
            assert!(dfa.matches(b"0") && dfa.matches(b"-1"), "{whole:?}");
        }
        let multiple = NumberSpec {
            multiples: vec![decimal("2.0")],
            ..NumberSpec::default()
        };
        let multiple = compile(&multiple);
        assert!(multiple.matches(b"4.0") && multiple.matches(b"4") && !multiple.matches(b"4.00"));
    }

    #[test]
    fn what_is_excluded_or_no_multiple_is_so_by_value() {
        let spec = NumberSpec {
            nonmultiples: vec![decimal("1"), decimal("0.25")],
            excluded: vec![decimal("-1.1"), decimal("0.3"), decimal("1e99")],
            ..NumberSpec::default()
        };
        let dfa = compile(&spec);
        for text in ["1", "1.0", "0.00", "2.50", "-1.75", "-1.1", "-1.100", "0.30"] {
            assert!(!dfa.matches(text.as_bytes()), "{text}");
        }
        for text in ["1.1", "0.3001", "-0.3", "2.51", "1.0001", "0.125"] {
            assert!(dfa.matches(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn automata_agree_with_exact_comparisons() {
        let texts: Vec<String> = (-130..=130)
            .flat_map(|n: i32| {
                let sign = if n < 0 { "-" } else { "" };
                let (whole, rest) = (n.abs() / 10, n.abs() % 10);
                [
                    format!("{sign}{whole}.{rest}"),
                    format!("{sign}{whole}.{rest}0"),
                    format!("{sign}{whole}.{rest}7"),
                    format!("{sign}{whole}"),
                ]
            })
            .filter(|text| !["-0", "-0.0", "-0.00"].contains(&text.as_str()))
            .collect();
        let ends = ["-12.5", "-10", "-0.3", "0", "0.25", "1", "9.9", "12"];
        let multiples = [None, Some("0.5"), Some("3"), Some("0.07"), Some("1.2")];
        for (min, max) in ends.iter().flat_map(|a| ends.iter().map(move |b| (*a, *b))) {
            for (is_exclusive, multiple) in multiples.iter().flat_map(|m| [(true, *m), (false, *m)]) {
                let spec = NumberSpec {
                    min: bound(min, is_exclusive),
                    max: bound(max, is_exclusive),
                    multiples: multiple.map(decimal).into_iter().collect(),
                    ..NumberSpec::default()
                };
                let dfa = compile(&spec);
                let n_places = multiple.map_or(99, |multiple| decimal(multiple).n_fraction().max(1));
                for text in &texts {
                    let value = decimal(text);
                    let is_in = spec.admits(&value).expect("small divisors");
                    let n_written = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
                    let expected = is_in && n_written <= n_places;
                    assert_eq!(dfa.matches(text.as_bytes()), expected, "{text} in {spec:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_are_admitted_as_arithmetic_has_it() {
        for n in -100i32..=100 {
            let value = decimal(&format!("{n}e-1"));
            for (low, high, step) in [(-50, 70, 1), (-3, 3, 2), (0, 100, 15), (-100, 0, 30)] {
                for is_exclusive in [false, true] {
                    let spec = NumberSpec {
                        min: bound(&format!("{low}e-1"), is_exclusive),
                        max: bound(&format!("{high}e-1"), is_exclusive),
                        multiples: vec![decimal(&format!("{step}e-1"))],
                        excluded: vec![decimal("3")],
                        ..NumberSpec::default()
                    };
                    let is_within = if is_exclusive {
                        low < n && n < high
                    } else {
                        low <= n && n <= high
                    };
                    let expected = is_within && n % step == 0 && n != 30;
                    assert_eq!(spec.admits(&value), Ok(expected), "{value:?} in {spec:?}");
                }
            }
        }
    }

    #[test]
    fn multiples_of_any_divisor_are_found() {
        let cases = [
            (
                "7919",
                None,
                None,
                &["0", "7919", "-15838"][..],
                &["1", "7918", "-7919.0"][..],
            ),
            (
                "7919",
                Some("1e20"),
                None,
                &["100000000000000000716"],
                &["7919", "100000000000000000000"],
            ),
            (
                "1234567890123456789012345678901",
                None,
                None,
                &[
                    "1234567890123456789012345678901",
                    "-2469135780246913578024691357802",
                    "0",
                ],
                &["1234567890123456789012345678902", "1"],
            ),
            (
                "0.12345678901234567890123",
                None,
                None,
                &["0.24691357802469135780246"],
                &["0.2"],
            ),
            (
                "1000000000",
                None,
                None,
                &["3000000000", "-99000000000"],
                &["300000000"],
            ),
            (
                "65536",
                Some("1"),
                Some("200000"),
                &["65536", "131072", "196608"],
                &["0", "262144"],
            ),
            (
                "12.5",
                None,
                None,
                &["12.5", "25", "25.0", "-37.5"],
                &["12", "12.50"],
            ),
        ];
        for (divisor, min, max, accepted, refused) in cases {
            let spec = NumberSpec {
                multiples: vec![decimal(divisor)],
                ..spec(
                    min.and_then(|min| bound(min, false)),
                    max.and_then(|max| bound(max, false)),
                )
            };
            let dfa = compile(&spec);
            for text in accepted {
                assert!(dfa.matches(text.as_bytes()), "{text} of {spec:?}");
            }
            for text in refused {
                assert!(!dfa.matches(text.as_bytes()), "{text} of {spec:?}");
            }
        }
        let two = NumberSpec {
            multiples: vec![decimal("0.6"), decimal("4")],
            ..NumberSpec::default()
        };
        let dfa = compile(&two);
        assert!(dfa.matches(b"12") && dfa.matches(b"0") && !dfa.matches(b"4") && !dfa.matches(b"6"));
        let none = NumberSpec {
            multiples: vec![decimal("0")],
            ..NumberSpec::default()
        };
        assert_eq!(automaton(&none, 99), Err(NumberError::Divisor));
    }
}
