//! The format `regex`: texts that are regular expressions of ECMA-262, as browsers read them without a flag,
//! and of Python.
//!
//! Brackets that match are no regular language, so that groups are nested up to a bound. Look-behind is a
//! sequence of single characters, as Python wants it to have one length. Also left out, as comparing needs
//! states: names, back-references, some ranges of characters, all ranges beyond ASCII, and numbers of
//! repetitions that are not easily seen to be in order.

use crate::dfa::{Classes, Dfa};
use crate::text::{step_utf8, utf8_classes};

/// Groups that are open at once.
const MAX_DEPTH: u8 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    mode: Mode,
    /// Groups that are open.
    depth: u8,
    /// Whether the last one of them is look-behind.
    is_behind: bool,
    /// What is left of a character, as in [`step_utf8`]; `mode` is then that behind it.
    rest: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mode {
    /// After nothing, or something that cannot be repeated.
    Fixed,
    /// After what can be repeated.
    Atom,
    /// After a repetition, which a `?` makes lazy.
    Repeated,
    /// After `(`, `(?` and `(?<`.
    Opened,
    OpenedMark,
    OpenedLess,
    Braces(Braces),
    Class(Class),
    /// After a backslash; likewise further within an escape.
    Escape(Place),
    /// So many hexadecimal digits are to come.
    Digits(Place, u8),
    /// The first digit of `\u`, and the second one of what may not be a surrogate.
    FirstDigit(Place),
    SecondDigit(Place),
}

/// Where an escape stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Outside,
    InClass,
}

/// Within `{2,3}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Braces {
    Opened,
    /// After a minimum of one digit, of two, and of three. A number is kept that is not below the first
    /// digit; few are told apart.
    One(u8),
    Two(u8),
    Three(u8),
    /// After the comma behind a minimum of so many digits.
    AfterOne(u8),
    AfterTwo(u8),
    AfterThree(u8),
    /// So many more digits make a maximum that is surely large enough.
    Needs(u8),
    /// It is; so many more digits may come.
    Enough(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    /// After `[`, and after `[^`.
    Opened,
    Negated,
    /// After a range, and after a dash that stands for itself.
    Range,
    Dash,
    /// After what begins no range.
    Item,
    /// After a character that may begin a range, which then ends with this one or a later one.
    First(u8),
    /// After it and a dash; after an item and a dash.
    FirstDash(u8),
    ItemDash,
}

/// The texts of the format that are enforced.
pub(super) fn automaton() -> Dfa {
    // Every state can be completed, and each differs from all others.
    let dfa = Dfa::explore_unreduced(classes(), START, step, is_complete, usize::MAX);
    dfa.expect("no limit is set")
}

const START: State = State {
    mode: Mode::Fixed,
    depth: 0,
    is_behind: false,
    rest: 0,
};

fn is_complete(state: &State) -> bool {
    let is_complete = matches!(state.mode, Mode::Fixed | Mode::Atom | Mode::Repeated);
    is_complete && state.depth == 0 && state.rest == 0
}

/// Bytes that [`step`] treats alike.
fn classes() -> Classes {
    let special = b"^$\\.*+?()[]{}|/-,:=!<0123456789dDwWsSnrtfvbBxu";
    let ascii = Classes::by(|byte| {
        let alone = (byte >= 0x80 || special.contains(&byte)).then_some(byte);
        let n_passed = RANGE_MARKS.iter().filter(|mark| **mark <= byte).count();
        let kind = (byte.is_ascii_alphanumeric(), byte.is_ascii_hexdigit());
        (alone, kind, first_of_range(byte), n_passed)
    });
    ascii.refine(&utf8_classes())
}

fn step(state: &State, byte: u8) -> Option<State> {
    let next = next(state, byte)?;
    // Nothing is repeated in look-behind.
    let is_fixed = next.is_behind && next.mode == Mode::Atom;
    let mode = if is_fixed { Mode::Fixed } else { next.mode };
    Some(State { mode, ..next })
}

fn next(state: &State, byte: u8) -> Option<State> {
    if state.rest != 0 {
        let rest = step_utf8(state.rest, byte)?;
        return Some(State { rest, ..*state });
    }
    let to = |mode: Mode| Some(State { mode, ..*state });
    if !byte.is_ascii() {
        let mode = match state.mode {
            Mode::Fixed | Mode::Atom | Mode::Repeated | Mode::Opened => Mode::Atom,
            Mode::Class(Class::FirstDash(_) | Class::ItemDash) => return None,
            Mode::Class(_) => Mode::Class(Class::Item),
            _ => return None,
        };
        let rest = step_utf8(0, byte)?;
        return Some(State { mode, rest, ..*state });
    }
    let is_hexadecimal = byte.is_ascii_hexdigit();
    match state.mode {
        Mode::Fixed | Mode::Atom | Mode::Repeated | Mode::Opened => outside(state, byte),
        Mode::OpenedMark => match byte {
            b':' | b'=' | b'!' => to(Mode::Fixed),
            b'<' => to(Mode::OpenedLess),
            _ => None,
        },
        Mode::OpenedLess => matches!(byte, b'=' | b'!').then_some(State {
            mode: Mode::Fixed,
            is_behind: true,
            ..*state
        }),
        Mode::Braces(braces) => to(in_braces(braces, byte)?),
        Mode::Class(class) => to(in_class(class, byte)?),
        Mode::Escape(place) => to(escaped(place, byte)?),
        Mode::Digits(place, 1) if is_hexadecimal => to(place.after()),
        Mode::Digits(place, n) if is_hexadecimal => to(Mode::Digits(place, n - 1)),
        Mode::FirstDigit(place) if matches!(byte, b'd' | b'D') => to(Mode::SecondDigit(place)),
        Mode::FirstDigit(place) if is_hexadecimal => to(Mode::Digits(place, 3)),
        Mode::SecondDigit(place) if matches!(byte, b'0'..=b'7') => to(Mode::Digits(place, 2)),
        Mode::Digits(..) | Mode::FirstDigit(_) | Mode::SecondDigit(_) => None,
    }
}

fn outside(state: &State, byte: u8) -> Option<State> {
    let mode = match (byte, state.mode) {
        (b'?', Mode::Opened) => Mode::OpenedMark,
        (b'?' | b'*' | b'+', Mode::Atom) => Mode::Repeated,
        (b'?', Mode::Repeated) => Mode::Fixed,
        (b'{', Mode::Atom) => Mode::Braces(Braces::Opened),
        (b'?' | b'*' | b'+' | b'{', _) => return None,
        (b'(' | b'|', _) if state.is_behind => return None,
        (b'(', _) => {
            return (state.depth < MAX_DEPTH).then_some(State {
                mode: Mode::Opened,
                depth: state.depth + 1,
                ..*state
            });
        }
        (b')', _) => {
            return Some(State {
                mode: if state.is_behind { Mode::Fixed } else { Mode::Atom },
                depth: state.depth.checked_sub(1)?,
                is_behind: false,
                rest: 0,
            });
        }
        (b'[', _) => Mode::Class(Class::Opened),
        (b'\\', _) => Mode::Escape(Place::Outside),
        (b'^' | b'$' | b'|', _) => Mode::Fixed,
        _ => Mode::Atom,
    };
    Some(State { mode, ..*state })
}

fn in_braces(braces: Braces, byte: u8) -> Option<Mode> {
    let digit = byte.is_ascii_digit().then(|| byte - b'0');
    Some(Mode::Braces(match (braces, byte, digit) {
        (Braces::Opened, _, Some(digit)) => Braces::One(if digit < 5 { digit } else { 9 }),
        (Braces::Opened | Braces::Needs(_), b'}', _) => return None,
        (_, b'}', _) => return Some(Mode::Repeated),
        (Braces::One(digit), b',', _) => Braces::AfterOne(digit.max(1)),
        (Braces::Two(first), b',', _) => Braces::AfterTwo(first),
        (Braces::Three(first), b',', _) => Braces::AfterThree(first),
        (Braces::One(first @ 1..), _, Some(_)) => Braces::Two(if first < 3 { first } else { 9 }),
        (Braces::Two(first), _, Some(_)) => Braces::Three(first),
        (Braces::AfterOne(min), _, Some(digit @ 1..)) if digit >= min => Braces::Enough(2),
        (Braces::AfterOne(_), _, Some(1..)) => Braces::Needs(1),
        (Braces::AfterTwo(min), _, Some(digit @ 1..)) => Braces::Needs(if digit > min { 1 } else { 2 }),
        (Braces::AfterThree(min), _, Some(digit @ 1..)) => Braces::Needs(if digit > min { 2 } else { 3 }),
        (Braces::Needs(1), _, Some(_)) => Braces::Enough(2),
        (Braces::Needs(n), _, Some(_)) => Braces::Needs(n - 1),
        (Braces::Enough(n @ 1..), _, Some(_)) => Braces::Enough(n - 1),
        _ => return None,
    }))
}

fn in_class(class: Class, byte: u8) -> Option<Mode> {
    Some(Mode::Class(match (class, byte) {
        (Class::Opened | Class::Negated, b']') => return None,
        (_, b']') => return Some(Mode::Atom),
        (Class::FirstDash(first), _) if first <= byte && byte != b'\\' => Class::Range,
        (Class::FirstDash(_) | Class::ItemDash, _) | (Class::Dash, b'-') => return None,
        (Class::Opened, b'^') => Class::Negated,
        (Class::Opened | Class::Negated | Class::Range, b'-') => Class::Dash,
        (Class::Item, b'-') => Class::ItemDash,
        (Class::First(first), b'-') => Class::FirstDash(first),
        (_, b'\\') => return Some(Mode::Escape(Place::InClass)),
        _ => first_of_range(byte).map_or(Class::Item, Class::First),
    }))
}

/// A range ends with the first of these that is not before its beginning, or with a later character.
const RANGE_MARKS: [u8; 16] = *b"',/1239@BNZ`bnz~";

/// What a range that begins with `byte` ends with, or with a later character. Few are told apart.
fn first_of_range(byte: u8) -> Option<u8> {
    let mark = RANGE_MARKS.into_iter().find(|mark| *mark >= byte);
    mark.filter(|_| byte >= b' ')
}

fn escaped(place: Place, byte: u8) -> Option<Mode> {
    Some(match byte {
        b'b' | b'B' if place == Place::Outside => Mode::Fixed,
        b'd' | b'D' | b'w' | b'W' | b's' | b'S' | b'n' | b'r' | b't' | b'f' | b'v' => place.after(),
        b'b' if place == Place::InClass => place.after(),
        b' ' => place.after(),
        _ if byte.is_ascii_punctuation() => place.after(),
        b'x' => Mode::Digits(place, 2),
        b'u' => Mode::FirstDigit(place),
        _ => return None,
    })
}

impl Place {
    /// Behind an escape.
    fn after(self) -> Mode {
        match self {
            Self::Outside => Mode::Atom,
            Self::InClass => Mode::Class(Class::Item),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dfa::DEAD;
    use crate::pattern::{Pattern, Syntax};

    #[test]
    fn no_state_is_dead_or_equal_to_another() {
        let reduced = Dfa::explore(classes(), START, step, is_complete, usize::MAX);
        let (unreduced, reduced) = (automaton(), reduced.expect("no limit is set"));
        assert_eq!(unreduced.n_states(), reduced.n_states());
    }

    #[test]
    fn what_people_write_is_accepted_and_what_is_malformed_is_not() {
        let dfa = automaton();
        for text in [
            "",
            "^\\d{4}-\\d{2}-\\d{2}$",
            "^[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\\.[A-Za-z]{2,}$",
            "^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]{2,63}$",
            "^(?=.*[A-Z])(?!.*\\s)(?<!x).{8,}$",
            "a|b||(c|)|[^\\w\\s-]*?|\\u00e9\\x41+",
            "[0-9a-fA-F -~]{2,4}x{0,1}y{10,20}z{5,10}",
            "^/[^/]+/é?[€-]\\/$",
            "(((((x{1,10})))))",
            "((?!(?=a|b)c)(?<=\\d[a-z]é))+",
            "(?:(?!end)[\\s\\S])*",
            "^\\d{4}\\-\\d{2}\\_\\@\\#\\ \\\"\\'\\%$",
            "^\\$\\{[^}]+}]$",
            "[!-/:-@][A-z][0-z][&-~][.-_][+-.][a-z,.-][\\]\\-\\\\#]",
            "x{100,200}y{3,1000}z{99,}w{123}",
            "[!#-'*+/-9=?A-Z^-~-]+",
        ] {
            assert!(dfa.matches(text.as_bytes()), "{text}");
        }
        for text in [
            "(",
            ")",
            "a**",
            "*a",
            "a{2,1}",
            "a{12,11}",
            "[z-a]",
            "[]",
            "[a",
            "\\",
            "\\a",
            "\\y",
            "a{,2}",
            "^*",
            "(?<=a)*",
            "(?<=a+)b",
            "(?<!a|bc)d",
            "((((((a))))))",
            "(?<n>a)",
            "a{2}{3}",
            "[\\w-a]",
            "\\u12",
            "\\ud800",
            "{",
            "{}",
            "a{}",
            "a{x}",
            "a{200,100}",
            "a{123,122}",
            "[b-a]",
            "[/-.]",
            "[a-Z]",
            "[~-!]",
            "[a-\\]]",
            "\\Z",
            "(?i)a",
            "\\8",
            "^(abc]",
            "\\p{Nope}",
            "[a-\\d]",
            "(?",
            "a+++",
        ] {
            assert!(!dfa.matches(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn random_texts_of_the_format_are_expressions() {
        let dfa = automaton();
        let mut random = 7u32;
        let mut below = |n: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) as usize % n
        };
        let mut n_long = 0;
        for _ in 0..3_000 {
            let (mut state, mut text) = (dfa.start(), Vec::new());
            while text.len() < 40 || !dfa.is_accepting(state) {
                let next: Vec<u8> = (0..=255).filter(|byte| dfa.step(state, *byte) != DEAD).collect();
                let byte = next[below(next.len())];
                state = dfa.step(state, byte);
                text.push(byte);
                if dfa.is_accepting(state) && below(8) == 0 {
                    break;
                }
            }
            let text = String::from_utf8(text).expect("it is UTF-8");
            n_long += usize::from(text.len() > 10);
            let parsed = Pattern::parse(&text, Syntax::Ecma);
            assert_eq!(parsed.map(drop), Ok(()), "{text:?}");
        }
        assert!(n_long > 500, "{n_long}");
    }
}
