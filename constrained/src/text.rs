//! JSON strings: an automaton over the content's UTF-8 bytes, run through JSON's escapes.
//!
//! Constraints speak of the content, the output is its spelling. The spelling is deliberately narrower than
//! JSON allows: a character that can stand for itself does; control characters with a short escape use it;
//! `\u` is for the other control characters, DEL and everything beyond ASCII, surrogates in pairs only. So
//! constants have (nearly) one spelling and can be forced, and every output is valid Unicode.
//!
//! A reading's place in a string is content state, [`Mode`] and, when lengths matter, the number of
//! characters begun. Invariant: from every place that [`TextSpec::step`] returns the string can be completed.

use std::sync::Arc;

use regex_syntax::utf8::Utf8Sequences;

use crate::dfa::{ByteSet, Classes, DEAD, Dfa, bytes_of, union_of};
use crate::lengths::Lengths;

/// A constraint on a JSON string.
#[derive(Debug)]
pub(crate) struct TextSpec {
    content: Arc<Dfa>,
    min: u32,
    max: Option<u32>,
    lengths: Lengths,
    classes: Classes,
}

/// Where a reading stands in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) state: u32,
    pub(crate) mode: u32,
    /// Characters begun, no more than can matter.
    pub(crate) n_chars: u32,
}

/// What one byte does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    Dead,
    To(Place),
    /// The closing quote.
    End,
}

/// Between quotes; `Place::mode` is one of these or a partial `\u` escape, see [`Hex`].
pub(crate) const OPENING: u32 = 0;
pub(crate) const PLAIN: u32 = 1;
const ESCAPE: u32 = 2;
const HEX: u32 = 3;

/// A `\u` escape that is being read, packed into a mode above [`HEX`].
#[derive(Clone, Copy)]
struct Hex {
    n_digits: u32,
    value: u32,
    /// The high surrogate before it, less 0xD800.
    high: Option<u32>,
    /// Of the low half's introduction: 0 neither, 1 the backslash, 2 the `u` too.
    n_intro: u32,
}

impl Hex {
    const FIRST: Self = Self {
        n_digits: 0,
        value: 0,
        high: None,
        n_intro: 2,
    };

    fn pack(self) -> u32 {
        let high = self.high.map_or(0, |high| high << 1 | 1);
        HEX | self.n_digits << 2 | self.n_intro << 4 | self.value << 6 | high << 18
    }

    fn unpack(mode: u32) -> Self {
        let high = mode >> 18;
        Self {
            n_digits: mode >> 2 & 3,
            n_intro: mode >> 4 & 3,
            value: mode >> 6 & 0xfff,
            high: (high & 1 == 1).then_some(high >> 1),
        }
    }

    /// The code points that the escape can still become.
    fn code_points(self) -> Vec<(u32, u32)> {
        let n_open = 4 * (4 - self.n_digits);
        let (first, last) = (self.value << n_open, ((self.value + 1) << n_open) - 1);
        let both = |a: (u32, u32), b: (u32, u32)| (a.0.max(b.0), a.1.min(b.1));
        let units = (first, last);
        let ranges = match self.high {
            Some(high) => {
                let low = both(units, (0xDC00, 0xDFFF));
                let base = 0x1_0000 + (high << 10);
                vec![(base + (low.0 - 0xDC00), (base + low.1).saturating_sub(0xDC00))]
            }
            None => {
                let high = both(units, (0xD800, 0xDBFF));
                let mut ranges = vec![both(units, (0x7f, 0xD7FF)), both(units, (0xE000, 0xFFFF))];
                ranges.extend([(0, 7), (0xb, 0xb), (0xe, 0x1f)].map(|control| both(units, control)));
                if high.0 <= high.1 {
                    let of = |unit: u32| 0x1_0000 + ((unit - 0xD800) << 10);
                    ranges.push((of(high.0), of(high.1) + 0x3ff));
                }
                ranges
            }
        };
        ranges.into_iter().filter(|(first, last)| first <= last).collect()
    }
}

impl TextSpec {
    /// Strings whose content `content` accepts and that have `min ..= max` characters.
    pub(crate) fn new(content: &Arc<Dfa>, min: u32, max: Option<u32>, is_spelled: &[bool; 256]) -> Self {
        let is_spelled = spelled_content(is_spelled);
        let content = match content.is_spelled(&is_spelled) {
            true => content.clone(),
            false => Arc::new((**content).clone().spelled(&is_spelled)),
        };
        let lengths = Lengths::new(&content, min, max);
        let classes = content.classes().refine(&Classes::of_numbers(&SPELLING_CLASSES));
        Self {
            content,
            min,
            max,
            lengths,
            classes,
        }
    }

    pub(crate) fn classes(&self) -> &Classes {
        &self.classes
    }

    pub(crate) fn is_satisfiable(&self) -> bool {
        self.max.is_none_or(|max| self.min <= max) && self.is_alive(self.content.start(), 0)
    }

    /// The place before the opening quote.
    pub(crate) fn start(&self) -> Place {
        Place {
            state: self.content.start(),
            mode: OPENING,
            n_chars: 0,
        }
    }

    /// The fewest and the most characters.
    pub(crate) fn bounds(&self) -> (u32, Option<u32>) {
        (self.min, self.max)
    }

    /// Whether the string can be completed after `n_chars` characters that led the content to `state`.
    pub(crate) fn is_alive(&self, state: u32, n_chars: u32) -> bool {
        state != DEAD && self.max.is_none_or(|max| n_chars <= max) && self.lengths.allow(state, n_chars)
    }

    /// Characters that may still come; `None` without a bound.
    pub(crate) fn n_chars_left(&self, place: Place) -> Option<u32> {
        self.max.map(|max| max - place.n_chars)
    }

    /// Another place with the same masks as `place`, for all tokens of at most `max_chars` characters. It
    /// is the same for many lengths, so that masks are found again.
    pub(crate) fn alike(&self, place: Place, max_chars: u32) -> Place {
        let essence = self.essence(place, max_chars);
        let mut shorter = [0, self.min]
            .into_iter()
            .map(|n_chars| Place { n_chars, ..place });
        let alike =
            shorter.find(|other| other.n_chars < place.n_chars && self.essence(*other, max_chars) == essence);
        alike.unwrap_or(place)
    }

    /// Bytes of memory.
    pub(crate) fn n_bytes(&self) -> usize {
        size_of::<Self>() + self.content.n_bytes() + self.lengths.n_bytes()
    }

    pub(crate) fn content(&self) -> &Arc<Dfa> {
        &self.content
    }

    pub(crate) fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// What `place` means for tokens of at most `max_chars` characters, the same for many lengths.
    pub(crate) fn essence(&self, place: Place, max_chars: u32) -> [u32; 4] {
        let needed = self.min.saturating_sub(place.n_chars);
        let left = self.n_chars_left(place).unwrap_or(u32::MAX);
        let (needed, left) = self.lengths.clamped(needed, left, max_chars);
        [place.state, place.mode, needed, left]
    }

    /// The bounds that content and length have together; zeros when they do not interfere.
    pub(crate) fn joint_bounds(&self) -> (u32, Option<u32>) {
        if self.lengths.are_free() {
            (0, None)
        } else {
            (self.min, self.max)
        }
    }

    /// The bytes that may lead anywhere from `place`, and maybe more; `sets` are those of the content's
    /// classes.
    pub(crate) fn bytes(&self, place: Place, sets: &[ByteSet]) -> ByteSet {
        match place.mode {
            OPENING => bytes_of([b'"']),
            PLAIN => {
                let content = self.content.bytes(place.state, sets);
                let [low, rest @ ..] = union_of(content, bytes_of(*b"\"\\"));
                let [second, third, fourth] = rest;
                // Control characters are escaped.
                [low & !0xffff_ffff, second, third, fourth]
            }
            ESCAPE => bytes_of(*b"\"\\bfnrtu"),
            _ => bytes_of(*b"\\u0123456789abcdefABCDEF"),
        }
    }

    pub(crate) fn step(&self, place: Place, byte: u8) -> Moved {
        match place.mode {
            OPENING if byte == b'"' => Moved::To(Place { mode: PLAIN, ..place }),
            OPENING => Moved::Dead,
            PLAIN => self.step_plain(place, byte),
            ESCAPE => self.step_escape(place, byte),
            mode => self.step_hex(place, Hex::unpack(mode), byte),
        }
    }

    fn step_plain(&self, place: Place, byte: u8) -> Moved {
        match byte {
            b'"' => {
                let ends = self.content.is_accepting(place.state) && place.n_chars >= self.min;
                if ends { Moved::End } else { Moved::Dead }
            }
            b'\\' => self.partial(Place {
                mode: ESCAPE,
                ..place
            }),
            0..0x20 => Moved::Dead,
            _ => self.content_byte(place, byte),
        }
    }

    /// `place` after one byte of content.
    fn content_byte(&self, place: Place, byte: u8) -> Moved {
        let state = self.content.step(place.state, byte);
        let n_chars = place.n_chars + u32::from(is_first(byte));
        if !self.is_alive(state, n_chars) {
            return Moved::Dead;
        }
        Moved::To(Place {
            state,
            mode: PLAIN,
            n_chars: self.clamped(n_chars),
        })
    }

    fn clamped(&self, n_chars: u32) -> u32 {
        match self.max {
            Some(_) => n_chars,
            None => n_chars.min(self.min),
        }
    }

    /// `place`, unless its escape cannot be completed.
    fn partial(&self, place: Place) -> Moved {
        let can = if place.mode == ESCAPE {
            let simple = [b'"', b'\\', 8, 12, 10, 13, 9];
            let mut codes = simple.into_iter();
            codes.any(|byte| self.content_byte(place, byte) != Moved::Dead)
                || self.can_become(place, &Hex::FIRST.code_points())
        } else {
            self.can_become(place, &Hex::unpack(place.mode).code_points())
        };
        if can { Moved::To(place) } else { Moved::Dead }
    }

    fn step_escape(&self, place: Place, byte: u8) -> Moved {
        let content = match byte {
            b'"' | b'\\' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => 10,
            b'r' => 13,
            b't' => 9,
            b'u' => {
                return self.partial(Place {
                    mode: Hex::FIRST.pack(),
                    ..place
                });
            }
            _ => return Moved::Dead,
        };
        self.content_byte(place, content)
    }

    fn step_hex(&self, place: Place, hex: Hex, byte: u8) -> Moved {
        let next = match (hex.n_intro, byte) {
            (0, b'\\') => Hex { n_intro: 1, ..hex },
            (1, b'u') => Hex { n_intro: 2, ..hex },
            (2, _) => {
                let Some(digit) = char::from(byte).to_digit(16) else {
                    return Moved::Dead;
                };
                let value = hex.value << 4 | digit;
                if hex.n_digits < 3 {
                    Hex {
                        n_digits: hex.n_digits + 1,
                        value,
                        ..hex
                    }
                } else if hex.high.is_none() && (0xD800..0xDC00).contains(&value) {
                    Hex {
                        high: Some(value - 0xD800),
                        n_intro: 0,
                        ..Hex::FIRST
                    }
                } else {
                    return self.complete(place, hex.high, value);
                }
            }
            _ => return Moved::Dead,
        };
        self.partial(Place {
            mode: next.pack(),
            ..place
        })
    }

    /// `place` after the escape of the unit `value`, the low half of a pair when there is a high one.
    fn complete(&self, place: Place, high: Option<u32>, value: u32) -> Moved {
        let whole = Hex {
            n_digits: 3,
            value: value >> 4,
            high,
            n_intro: 2,
        };
        let point = match high {
            Some(high) => 0x1_0000 + (high << 10) + (value.wrapping_sub(0xDC00)),
            None => value,
        };
        let is_one = whole
            .code_points()
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&point));
        let Some(point) = char::from_u32(point).filter(|_| is_one) else {
            return Moved::Dead;
        };
        let mut place = place;
        for byte in point.encode_utf8(&mut [0; 4]).bytes() {
            match self.content_byte(place, byte) {
                Moved::To(next) => place = next,
                dead => return dead,
            }
        }
        Moved::To(place)
    }

    /// Whether one of the code points can be the next character.
    fn can_become(&self, place: Place, ranges: &[(u32, u32)]) -> bool {
        let n_chars = place.n_chars + 1;
        if self.max.is_some_and(|max| n_chars > max) {
            return false;
        }
        // Ranges never touch the surrogates, so both ends are characters.
        let chars = ranges
            .iter()
            .filter_map(|(first, last)| Some((char::from_u32(*first)?, char::from_u32(*last)?)));
        chars
            .flat_map(|(first, last)| Utf8Sequences::new(first, last))
            .any(|sequence| {
                let mut states = vec![place.state];
                for range in sequence.as_slice() {
                    let mut next: Vec<u32> = states
                        .iter()
                        .flat_map(|state| (range.start..=range.end).map(|b| self.content.step(*state, b)))
                        .filter(|state| *state != DEAD)
                        .collect();
                    next.sort_unstable();
                    next.dedup();
                    states = next;
                }
                states.into_iter().any(|state| self.is_alive(state, n_chars))
            })
    }
}

fn is_first(byte: u8) -> bool {
    byte & 0xC0 != 0x80
}

/// Content bytes that can be spelled, directly or by their short escape.
fn spelled_content(is_spelled: &[bool; 256]) -> [bool; 256] {
    let mut spelled = *is_spelled;
    let has = |text: &[u8]| text.iter().all(|byte| is_spelled[usize::from(*byte)]);
    spelled[..0x20].fill(has(b"\\u0123456789abcdef"));
    for (byte, escape) in [(8, b'b'), (12, b'f'), (10, b'n'), (13, b'r'), (9, b't')] {
        spelled[byte] = has(&[b'\\', escape]);
    }
    for byte in [b'"', b'\\'] {
        spelled[usize::from(byte)] = has(&[b'\\', byte]);
    }
    spelled
}

/// States of a walk through one UTF-8 character: what remains of it. 0 is the border.
pub(crate) fn step_utf8(state: u8, byte: u8) -> Option<u8> {
    // 1, 2, 3: so many continuation bytes; 4..=7: the second byte is restricted.
    match (state, byte) {
        (0, 0..0x80) => Some(0),
        (0, 0xC2..=0xDF) => Some(1),
        (0, 0xE0) => Some(4),
        (0, 0xED) => Some(5),
        (0, 0xE1..=0xEF) => Some(2),
        (0, 0xF0) => Some(6),
        (0, 0xF1..=0xF3) => Some(3),
        (0, 0xF4) => Some(7),
        (1..=3, 0x80..=0xBF) => Some(state - 1),
        (4, 0xA0..=0xBF) | (5, 0x80..=0x9F) => Some(1),
        (6, 0x90..=0xBF) | (7, 0x80..=0x8F) => Some(2),
        _ => None,
    }
}

/// By byte, a number that bytes share which all states of [`step_utf8`] treat alike.
const UTF8_CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0x80;
    while byte < 256 {
        classes[byte] = match byte {
            0x80..=0x8F => 1,
            0x90..=0x9F => 2,
            0xA0..=0xBF => 3,
            0xC2..=0xDF => 4,
            0xE0 => 5,
            0xED => 6,
            0xE1..=0xEF => 7,
            0xF0 => 8,
            0xF1..=0xF3 => 9,
            0xF4 => 10,
            _ => 11,
        };
        byte += 1;
    }
    classes
};

pub(crate) fn utf8_classes() -> Classes {
    Classes::of_numbers(&UTF8_CLASSES)
}

/// By byte, a number that bytes share which mean the same wherever a string is, its content apart.
const SPELLING_CLASSES: [u8; 256] = {
    let letters = *b"0123456789ABCDEFabcdef\"\\nrtu";
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte {
            0..0x20 => 1,
            0x80..0xC0 => 2,
            0xC0.. => 3,
            _ => 0,
        };
        byte += 1;
    }
    let mut at = 0;
    while at < letters.len() {
        classes[letters[at] as usize] = 4 + at as u8;
        at += 1;
    }
    classes
};

/// All texts.
pub(crate) fn any_content() -> Arc<Dfa> {
    let accepts = (0..9).map(|state| state == 1).collect();
    // Automaton states count from 1; 0 is dead.
    let dfa = Dfa::of_states(utf8_classes(), accepts, |state, byte| {
        let next = (state as u8)
            .checked_sub(1)
            .and_then(|state| step_utf8(state, byte));
        next.map_or(DEAD, |next| u32::from(next) + 1)
    });
    // Trimming numbers states in the order in which they are met, here as wherever content is made.
    Arc::new(dfa.trimmed(&[true; 256]))
}

/// Whether `content` is [`any_content`].
pub(crate) fn is_any_content(content: &Dfa) -> bool {
    /// Of [`any_content`], the dead one included.
    const N_STATES: usize = 9;
    content.n_states() == N_STATES && *content == *any_content()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::pattern::{Bounds, Pattern, Syntax};

    fn accepts(spec: &TextSpec, text: &str) -> bool {
        let mut place = spec.start();
        for (at, byte) in text.bytes().enumerate() {
            match spec.step(place, byte) {
                Moved::Dead => return false,
                Moved::To(next) => place = next,
                Moved::End => return at + 1 == text.len(),
            }
        }
        false
    }

    #[test]
    fn any_content_is_the_smallest_automaton_of_utf8() {
        let explored = Dfa::explore(
            utf8_classes(),
            0,
            |state, byte| step_utf8(*state, byte),
            |state| *state == 0,
            99,
        );
        assert_eq!(explored.expect("eight states"), *any_content());
        assert!(is_any_content(&any_content()) && !is_any_content(&Dfa::all_but(vec![b"a"])));
    }

    #[test]
    fn escapes_are_the_characters_they_stand_for() {
        let content = Arc::new(Dfa::of_strings(["é\n\"".as_bytes(), "😀".as_bytes()]));
        let spec = TextSpec::new(&content, 0, None, &[true; 256]);
        for text in [
            "\"é\\n\\\"\"",
            "\"\\u00E9\\n\\\"\"",
            "\"\\ud83d\\uDE00\"",
            "\"😀\"",
        ] {
            assert!(accepts(&spec, text), "{text}");
        }
        for text in [
            "\"\\u00e8",
            "\"\\ud83e",
            "\"\\ud83d\\ude01",
            "\"\\ud83d\"",
            "\"é\\r",
            "\"é\\u000a",
        ] {
            assert!(!accepts(&spec, text), "{text}");
        }
    }

    #[test]
    fn lone_surrogates_and_control_characters_never_pass() {
        let spec = TextSpec::new(&any_content(), 0, None, &[true; 256]);
        for text in [
            "\"\\ud800\"",
            "\"\\udc00",
            "\"\\ud800\\u0041",
            "\"\n",
            "\"\\u0041",
            "\"\\x",
        ] {
            assert!(!accepts(&spec, text), "{text}");
        }
        assert!(accepts(&spec, "\"\\u0001\\u007f\\ufffF\""));
    }

    #[test]
    fn lengths_count_characters_and_are_never_a_dead_end() {
        let spec = TextSpec::new(&any_content(), 2, Some(3), &[true; 256]);
        assert!(spec.lengths.are_free());
        for (text, is_ok) in [
            ("\"a\"", false),
            ("\"é\\n\"", true),
            ("\"abc\"", true),
            ("\"😀\\ud83d\\ude00é\"", true),
            ("\"abcd", false),
        ] {
            assert_eq!(accepts(&spec, text), is_ok, "{text}");
        }
        assert!(!TextSpec::new(&any_content(), 2, Some(1), &[true; 256]).is_satisfiable());
        // Pairs of letters with exactly three characters: nothing.
        let pairs = Pattern::parse("(?:[a-z][a-z])*", Syntax::Rust).expect("valid");
        let pairs = pairs.automaton(Bounds::new(&Limits::default()));
        let pairs = Arc::new(pairs.expect("small").dfa);
        assert!(!TextSpec::new(&pairs, 3, Some(3), &[true; 256]).is_satisfiable());
        let four = TextSpec::new(&pairs, 3, Some(5), &[true; 256]);
        assert!(accepts(&four, "\"abcd\"") && !accepts(&four, "\"abcde"));
    }
}
