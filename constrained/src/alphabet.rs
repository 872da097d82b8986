//! Alphabets that tokens are likely to be written in.
//!
//! Every node of a tree of tokens knows the alphabets that all texts below it are written in, and how long
//! they are; of an automaton's states it is known of which alphabets no text so long can be a dead end. Where
//! the two have one in common, a whole subtree is decided by one look.

use crate::dfa::{DEAD, Dfa};
use crate::hash::Map;
use crate::text::step_utf8;

/// A set of alphabets, one bit each.
pub(crate) type Alphabets = u32;

/// ASCII characters, with ranges, and which of the others belong to it.
const ALPHABETS: [(&[u8], Others); 26] = [
    (b"09", Others::None),
    (b"09af", Others::None),
    (b"09AF", Others::None),
    (b"az", Others::None),
    (b"AZ", Others::None),
    (b"AZaz", Others::None),
    (b"09az", Others::None),
    (b"09AZ", Others::None),
    (b"09AZaz", Others::None),
    (b"09az--", Others::None),
    (b"09az__", Others::None),
    (b"09az__--", Others::None),
    (b"09AZaz--", Others::None),
    (b"09AZaz__", Others::None),
    (b"09AZaz__--", Others::None),
    (b"09AZaz__--..", Others::None),
    (b"AZaz  ", Others::None),
    (b"09AZaz__--..  ", Others::None),
    (b"09AZaz__-::", Others::None),
    // Without space; without quote and backslash; all that is printable.
    (b"!~", Others::None),
    (b" !#[]~", Others::None),
    (b" ~", Others::None),
    // Without the line separators among the others, as the dot of ECMA-262.
    (b" !#[]~", Others::NotE2),
    (b" ~", Others::NotE2),
    (b" !#[]~", Others::All),
    (b"\0\x7f", Others::All),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    None,
    /// Those whose first byte is not 0xE2.
    NotE2,
    All,
}

/// By byte: the alphabets in whose texts it occurs.
const BY_BYTE: [Alphabets; 256] = {
    let mut by_byte = [0; 256];
    let mut at = 0;
    while at < ALPHABETS.len() {
        let (ranges, others) = ALPHABETS[at];
        let mut byte = 0;
        while byte < 256 {
            let mut is_in = match others {
                Others::None => false,
                Others::NotE2 => byte >= 0x80 && byte != 0xE2,
                Others::All => byte >= 0x80,
            };
            let mut pair = 0;
            while pair + 1 < ranges.len() {
                is_in |= ranges[pair] as usize <= byte && byte <= ranges[pair + 1] as usize;
                pair += 2;
            }
            if is_in {
                by_byte[byte] |= 1 << at;
            }
            byte += 1;
        }
        at += 1;
    }
    by_byte
};

/// The alphabets in whose texts `byte` occurs.
pub(crate) fn alphabets_of(byte: u8) -> Alphabets {
    BY_BYTE[usize::from(byte)]
}

/// The alphabets that have characters beyond ASCII; of these all, and all but those that begin with 0xE2.
const ANY_OTHERS: Alphabets = with_others(Others::All);
const NOT_E2_OTHERS: Alphabets = with_others(Others::NotE2) | ANY_OTHERS;

const fn with_others(others: Others) -> Alphabets {
    let mut all = 0;
    let mut at = 0;
    while at < ALPHABETS.len() {
        if ALPHABETS[at].1 as u8 == others as u8 {
            all |= 1 << at;
        }
        at += 1;
    }
    all
}

/// Of an automaton's states, the alphabets whose texts are no dead end there.
#[derive(Debug)]
pub(crate) struct Safe {
    n_states: usize,
    n_rows: usize,
    /// `[n - 1][state]`: the alphabets of which a text of up to `n` characters is a dead end.
    deadly: Vec<Alphabets>,
    /// Whether the last row holds for all longer texts too.
    is_final: bool,
}

/// Longer texts are looked at one by one, unless all are safe.
const MAX_ROWS: usize = 16;

impl Safe {
    pub(crate) fn new(dfa: &Dfa) -> Self {
        const MAX_STEPS: usize = 1 << 19;
        let n_states = dfa.n_states();
        let ascii = ascii_classes(dfa);
        let others = others(dfa);
        let max_rows = (MAX_STEPS / (n_states * ascii.len())).clamp(1, MAX_ROWS);
        let (mut before, mut deadly, mut is_final) = (vec![0; n_states], Vec::new(), false);
        while !is_final && deadly.len() < max_rows * n_states {
            let after = |next: u32| {
                if next == DEAD {
                    Alphabets::MAX
                } else {
                    before[next as usize]
                }
            };
            let row = (0..n_states as u32).map(|state| {
                let by_ascii = ascii.iter().map(|(byte, by)| by & after(dfa.step(state, *byte)));
                let by_others = others[state as usize].iter().map(|(next, by)| by & after(*next));
                by_ascii.chain(by_others).fold(0, |all, deadly| all | deadly)
            });
            let row: Vec<Alphabets> = row.collect();
            is_final = row == before;
            deadly.extend_from_slice(&row);
            before = row;
        }
        Self {
            n_states,
            n_rows: deadly.len() / n_states,
            deadly,
            is_final,
        }
    }

    /// What it takes in memory for `dfa`, at most.
    pub(crate) fn max_bytes(dfa: &Dfa) -> usize {
        MAX_ROWS * dfa.n_states() * size_of::<Alphabets>()
    }

    /// The alphabets of which every text of up to `n_chars` characters can follow in `state`, at a border
    /// between characters; maybe not all of them.
    #[inline]
    pub(crate) fn at(&self, state: u32, n_chars: u8) -> Alphabets {
        let row = usize::from(n_chars).max(1);
        if row > self.n_rows && !self.is_final {
            return 0;
        }
        !self.deadly[(row.min(self.n_rows) - 1) * self.n_states + state as usize]
    }
}

/// A byte of each set of ASCII characters that neither `dfa` nor an alphabet tells apart.
fn ascii_classes(dfa: &Dfa) -> Vec<(u8, Alphabets)> {
    let bytes = (0..0x80u8).map(|byte| ((dfa.classes().of(byte), alphabets_of(byte)), byte));
    let classes: Map<(usize, Alphabets), u8> = bytes.collect();
    classes.into_iter().map(|((_, by), byte)| (byte, by)).collect()
}

/// By state: where characters beyond ASCII lead, and in which alphabets those are.
fn others(dfa: &Dfa) -> Vec<Vec<(u32, Alphabets)>> {
    /// Beyond so many states it takes longer than it saves: all such texts are taken for dead ends.
    const MAX_STATES: usize = 1_024;
    if dfa.n_states() > MAX_STATES {
        return vec![vec![(DEAD, NOT_E2_OTHERS)]; dfa.n_states()];
    }
    let classes: Map<_, u8> = (0x80..=0xFFu8)
        .map(|byte| {
            (
                (
                    dfa.classes().of(byte),
                    byte == 0xE2,
                    [0, 1, 2, 3, 4, 5, 6, 7].map(|rest| step_utf8(rest, byte)),
                ),
                byte,
            )
        })
        .collect();
    let bytes: Vec<u8> = classes.into_values().collect();
    let of_state = |state: u32| {
        let mut ends: Map<u32, Alphabets> = Map::default();
        let mut places = vec![(state, 0, NOT_E2_OTHERS)];
        let mut at = 0;
        while let Some((state, rest, by)) = places.get(at).copied() {
            at += 1;
            for byte in &bytes {
                let Some(rest) = step_utf8(rest, *byte) else {
                    continue;
                };
                let by = by & alphabets_of(*byte);
                let next = dfa.step(state, *byte);
                if rest == 0 || next == DEAD {
                    *ends.entry(next).or_insert(0) |= by;
                } else if !places.contains(&(next, rest, by)) {
                    places.push((next, rest, by));
                }
            }
        }
        ends.into_iter().collect()
    };
    (0..dfa.n_states() as u32).map(of_state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::open::Open;
    use crate::pattern::{Bounds, Pattern, Syntax};

    /// Whether a text of the alphabet and of up to `n_chars` characters is a dead end, found by trying.
    fn is_deadly(dfa: &Dfa, state: u32, alphabet: usize, n_chars: u8) -> bool {
        let ascii = (0..0x80u8).map(char::from);
        let chars = ascii.chain(['é', 'ᄀ', '\u{2028}', '\u{ffff}', '😀']);
        let is_in = |c: &char| {
            let mut buffer = [0; 4];
            let mut bytes = c.encode_utf8(&mut buffer).bytes();
            bytes.all(|byte| alphabets_of(byte) >> alphabet & 1 == 1)
        };
        let chars: Vec<char> = chars.filter(is_in).collect();
        let mut states = vec![state];
        for _ in 0..n_chars {
            let after = |state: u32, c: char| {
                let mut buffer = [0; 4];
                let bytes = c.encode_utf8(&mut buffer).bytes();
                bytes.fold(state, |state, byte| dfa.step(state, byte))
            };
            let next = states
                .iter()
                .flat_map(|state| chars.iter().map(|c| after(*state, *c)));
            let mut next: Vec<u32> = next.collect();
            if next.contains(&DEAD) {
                return true;
            }
            next.sort_unstable();
            next.dedup();
            states = next;
        }
        false
    }

    #[test]
    fn safe_texts_are_no_dead_ends() {
        let patterns = [
            "[a-z]*",
            "[^/]*",
            ".*",
            "(?s:.*)",
            "[0-9a-f]{3,}",
            "(?:[a-z]+-)*[a-z]*",
            "(?:ab|c)*",
            "[^\"]*a",
            "[^\\n\\r\\u{2028}\\u{2029}]*",
            "\\w*",
            "[ -~]*x?",
            "(?:.*a){2}.*",
            "[0-9]{1,2}",
            "[a-z]{0,9}",
        ];
        let (mut n_safe, mut n_deadly) = (0, 0);
        for pattern in patterns {
            let parsed = Pattern::parse(pattern, Syntax::Rust).expect(pattern);
            let dfa = parsed
                .automaton(Bounds::new(&Limits::default()))
                .expect(pattern)
                .dfa;
            let safe = Safe::new(&dfa);
            for (n_chars, alphabet) in (1..5).flat_map(|n| (0..ALPHABETS.len()).map(move |a| (n, a))) {
                let is_safe = safe.at(dfa.start(), n_chars) >> alphabet & 1 == 1;
                // What is tried beyond ASCII is a sample, so that it may miss what is deadly.
                let is_deadly = is_deadly(&dfa, dfa.start(), alphabet, n_chars);
                assert!(
                    !(is_safe && is_deadly),
                    "{pattern}: alphabet {alphabet}, {n_chars} characters"
                );
                n_safe += usize::from(is_safe);
                n_deadly += usize::from(!is_safe && is_deadly);
            }
            assert_eq!(
                Open::new(&dfa).has(dfa.start()),
                pattern.starts_with("(?s"),
                "{pattern}"
            );
        }
        assert!(n_safe > 400 && n_deadly > 400, "{n_safe} safe, {n_deadly} deadly");
    }

    #[test]
    fn alphabets_hold_what_their_ranges_say() {
        let members = |alphabet: usize| -> String {
            let is_in = |byte: &u8| alphabets_of(*byte) >> alphabet & 1 == 1;
            (0..0x80u8).filter(is_in).map(char::from).collect()
        };
        assert_eq!(members(1), "0123456789abcdef");
        assert_eq!(members(11), "-0123456789_abcdefghijklmnopqrstuvwxyz");
        assert!(!members(20).contains(['"', '\\', '\n']) && members(20).len() == 93);
    }
}
