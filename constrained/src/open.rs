//! Contents of strings after which any text may come, as that of all names but the declared ones.
//!
//! They differ from a string of any content only in where it may end. So what is known of the tokens in such
//! a string mostly holds for all of them.

use crate::dfa::{ByteSet, DEAD, Dfa, bytes_of, union_of};
use crate::text::{Moved, PLAIN, Place, TextSpec, step_utf8, utf8_classes};
use crate::trie::Trie;

/// Of a content's automaton, the states that any text can follow.
#[derive(Debug)]
pub(crate) struct Open {
    /// By state, at a border between characters: whether no text is a dead end. Where some texts are one in
    /// some states, only those after which all is the same are known.
    is_open: Box<[bool]>,
    /// By state: whether it is the one of all texts that go on in any way and may end anywhere, or is within
    /// a character that leads there.
    is_settled: Box<[bool]>,
}

impl Open {
    pub(crate) fn new(content: &Dfa) -> Self {
        let states = 0..content.n_states() as u32;
        if let Some(all_but) = content.as_all_but() {
            return Self {
                is_open: states.clone().map(|state| all_but.is_border(state)).collect(),
                is_settled: states.map(|state| all_but.is_off(state)).collect(),
            };
        }
        let is_anything = |state| leads_to_itself(content, state);
        let mut is_settled: Box<[bool]> = states.clone().map(is_anything).collect();
        let Some(is_open) = all_borders(content) else {
            return Self {
                is_open: is_settled.clone(),
                is_settled,
            };
        };
        // A character has at most three bytes more.
        for _ in 0..3 {
            for state in states.clone().filter(|state| !is_open[*state as usize]) {
                let after = content.classes().members().iter();
                let after = after.map(|byte| content.step(state, *byte));
                let mut after = after.filter(|next| *next != DEAD).peekable();
                is_settled[state as usize] =
                    after.peek().is_some() && after.all(|next| is_settled[next as usize]);
            }
        }
        Self { is_open, is_settled }
    }

    /// Whether any text can follow `state`.
    #[inline]
    pub(crate) fn has(&self, state: u32) -> bool {
        self.is_open[state as usize]
    }

    /// Where tokens of `trie` end the string from `place` in `text` although its content may not end there:
    /// the nodes of their quotes. All else that tokens do there they do in a string of any content too. The
    /// place is within the content, in one of these states, and lengths do not matter; `sets` are those of
    /// the content's classes.
    pub(crate) fn denied_ends(
        &self,
        text: &TextSpec,
        sets: &[ByteSet],
        place: Place,
        trie: &Trie,
    ) -> Vec<u32> {
        let content = text.content();
        let (mut todo, mut denied) = (vec![(None, place)], Vec::new());
        while let Some((node, place)) = todo.pop() {
            if place.mode == PLAIN && self.is_settled[place.state as usize] {
                continue;
            }
            // Bytes that do not lead to where anything may come, and those that stand for something.
            let bytes = match place.mode {
                PLAIN => union_of(self.bytes(content, sets, place.state), bytes_of(*b"\"\\")),
                _ => [u64::MAX; 4],
            };
            trie.for_each_child(node, bytes, |child| {
                let byte = trie.nodes()[child].byte;
                let is_end = place.mode == PLAIN && byte == b'"';
                if is_end {
                    if !content.is_accepting(place.state) {
                        denied.push(child as u32);
                    }
                } else if !trie.is_leaf(child)
                    && let Moved::To(next) = text.step(place, byte)
                {
                    todo.push((Some(child), next));
                }
            });
        }
        denied
    }

    /// The bytes that lead from `state` elsewhere than to all texts.
    fn bytes(&self, content: &Dfa, sets: &[ByteSet], state: u32) -> ByteSet {
        if let Some(all_but) = content.as_all_but() {
            return all_but.listed_bytes(state);
        }
        let members = content.classes().members().iter().zip(sets);
        let is_settled = |byte: u8| self.is_settled[content.step(state, byte) as usize];
        let others = members.filter(|(byte, _)| !is_settled(**byte));
        others.fold([0; 4], |all, (_, set)| union_of(all, *set))
    }
}

/// Whether every text leads from `state`, at a border between characters, to itself and may end there.
fn leads_to_itself(content: &Dfa, state: u32) -> bool {
    let mut ascii = 0..0x80;
    if !content.is_accepting(state) || !ascii.all(|byte| content.step(state, byte) == state) {
        return false;
    }
    let mut places = vec![(state, 0u8)];
    let mut at = 0;
    while let Some((from, rest)) = places.get(at).copied() {
        at += 1;
        for byte in 0x80..=0xFF {
            let Some(rest) = step_utf8(rest, byte) else {
                continue;
            };
            let next = content.step(from, byte);
            if rest == 0 && next != state {
                return false;
            }
            if rest != 0 && !places.contains(&(next, rest)) {
                places.push((next, rest));
            }
        }
    }
    true
}

/// The states at a border between characters, if no text leads to death from any of them.
fn all_borders(content: &Dfa) -> Option<Box<[bool]>> {
    const UNSEEN: u8 = u8::MAX;
    let n_states = content.n_states();
    let members = content.classes().refine(&utf8_classes());
    let members = members.members();
    // What remains of a character is the same whatever led to a state, since contents are UTF-8.
    let mut rests = vec![UNSEEN; n_states];
    let mut is_bad = vec![false; n_states];
    let mut queue = vec![content.start()];
    rests[content.start() as usize] = 0;
    while let Some(state) = queue.pop() {
        for byte in members {
            let Some(rest) = step_utf8(rests[state as usize], *byte) else {
                continue;
            };
            let next = content.step(state, *byte);
            let known = &mut rests[next as usize];
            if next == DEAD || ![UNSEEN, rest].contains(known) {
                is_bad[state as usize] = true;
            } else if *known == UNSEEN {
                *known = rest;
                queue.push(next);
            }
        }
    }
    if is_bad.contains(&true) {
        return None;
    }
    Some(rests.iter().map(|rest| *rest == 0).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dfa::Product;
    use crate::text::any_content;

    fn all_but(names: &[&str]) -> TextSpec {
        let names = Dfa::of_strings(names.iter().map(|name| name.as_bytes()));
        let content = any_content().product(&names, Product::FirstOnly, usize::MAX);
        TextSpec::new(
            &Arc::new(content.expect("no limit is set")),
            0,
            None,
            &[true; 256],
        )
    }

    #[test]
    fn tokens_do_the_same_unless_one_ends_a_name() {
        let names: [&[u8]; 2] = [b"name", "né".as_bytes()];
        let listed = Arc::new(Dfa::all_but(names.to_vec()));
        for text in [
            all_but(&["name", "né"]),
            TextSpec::new(&listed, 0, None, &[true; 256]),
        ] {
            check(&text);
        }
    }

    fn check(text: &TextSpec) {
        let (open, sets) = (Open::new(text.content()), text.content().classes().sets());
        let tokens = ["e\"", "me\": ", "\"", "\"a", "\\n", "\\u00e9\"", "me\\", "x\""];
        let token = |token: &str| {
            let tokens = tokens.iter().filter(|other| **other == token);
            Trie::new(tokens.map(|token| (token.as_bytes(), 0)).collect())
        };
        for (begun, unlike) in [
            ("", &[][..]),
            ("na", &["me\": "]),
            ("nam", &["e\""]),
            ("name", &["\"", "\"a"]),
            ("n", &["\\u00e9\""]),
            ("names", &[]),
            ("é", &[]),
        ] {
            let start = Place {
                mode: PLAIN,
                ..text.start()
            };
            let place = begun
                .bytes()
                .fold(start, |place, byte| match text.step(place, byte) {
                    Moved::To(next) => next,
                    other => panic!("{begun}: {other:?}"),
                });
            assert!(open.has(place.state), "{begun}");
            for other in tokens {
                let denied = open.denied_ends(text, &sets, place, &token(other));
                assert_eq!(
                    !denied.is_empty(),
                    unlike.contains(&other),
                    "{other} after {begun}"
                );
            }
        }
    }

    #[test]
    fn a_content_that_can_die_is_not_open() {
        let content = any_content();
        let open = Open::new(&content);
        assert!(open.has(content.start()) && open.is_settled[content.start() as usize]);
        let names = Dfa::of_strings(["name".as_bytes()]);
        let open = Open::new(&names);
        assert!(!open.has(names.start()) && !open.is_settled.contains(&true));
    }
}
