//! What tests of grammars share: a vocabulary whose tokens cross borders, random numbers, and masks worked
//! out the stupid way.

mod random;

use std::sync::Arc;

use arbora_constrained::{Grammar, Matcher, Vocabulary};

pub(crate) use random::Random;

pub(crate) const EOS: u32 = 0;
/// Tokens that cross the borders of strings, numbers, members and tags.
pub(crate) const LONGER: [&str; 51] = [
    "ab",
    "\"a",
    "a\"",
    "\",\"",
    "\": ",
    "\":",
    "{\"",
    "\"}",
    "}}",
    "[[",
    "]]",
    "true",
    "null",
    "12",
    "-1",
    "0.",
    "abc",
    " \"",
    ", ",
    "\n  ",
    "é",
    "\\n",
    "\\u",
    "\\u00",
    "name",
    "\"name\":",
    "\u{1f600}",
    "a\",",
    "0,1",
    "e1",
    "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
    "<tool>",
    "ba",
    "aab",
    "1+",
    "+1",
    "(1",
    "))",
    "<t",
    "<tool",
    "ol_call>",
    "</tool_call>",
    "\n{\"",
    "<tool_call>",
    "</think>",
    "think>",
    ">\n",
    "}\n<",
    "\"name\": \"",
    " = ",
    "<<",
];
/// Special tokens that have a name; the last tokens.
pub(crate) const SPECIAL: [&str; 3] = ["<|call|>", "<|end|>", "<tool_call>"];

/// The end of the text, every byte, longer tokens, pieces of characters, special tokens.
pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    let bytes = (0..=255u8).map(|byte| Some(vec![byte]));
    let longer = LONGER.map(|text| Some(text.as_bytes().to_vec()));
    let partial: [&[u8]; 3] = [&[0xf0, 0x9f], &[0x98, 0x80, b'<'], &[0x80, b'"']];
    let partial = partial.map(|bytes| Some(bytes.to_vec()));
    let tokens = [None]
        .into_iter()
        .chain(bytes)
        .chain(longer)
        .chain(partial)
        .chain(SPECIAL.map(|_| None));
    let vocabulary = Vocabulary::new(tokens, &[EOS]).expect("a few hundred tokens");
    let names = (vocabulary.n_vocab() - SPECIAL.len() as u32..).zip(SPECIAL.map(str::to_owned));
    Arc::new(vocabulary.with_special(names).expect("they have no text"))
}

pub(crate) fn byte_token(byte: u8) -> u32 {
    1 + u32::from(byte)
}

/// The tokens whose bytes the matcher takes one by one.
pub(crate) fn brute_force(vocabulary: &Vocabulary, matcher: &Matcher) -> Vec<u32> {
    let is_allowed = |token: &u32| {
        if *token == EOS {
            return matcher.is_accepting();
        }
        let bytes = vocabulary.token_bytes(*token);
        let mut fork = matcher.clone();
        if bytes.len() < 2 {
            return fork.advance(*token).is_ok();
        }
        bytes.iter().all(|byte| fork.advance(byte_token(*byte)).is_ok())
    };
    (0..vocabulary.n_vocab()).filter(is_allowed).collect()
}

/// As [`check_against`], for grammars that name no token with text by its number.
pub(crate) fn check(grammar: &Grammar, what: &str) {
    check_against(grammar, what, brute_force);
}

/// Random walks; at every step the mask is what `allowed` says, something is allowed, and what is allowed can
/// be taken; taking tokens back is never having taken them.
pub(crate) fn check_against(grammar: &Grammar, what: &str, allowed: fn(&Vocabulary, &Matcher) -> Vec<u32>) {
    for seed in 0..12 {
        let mut random = Random(seed);
        let mut matcher = grammar.matcher();
        let mut taken = Vec::new();
        for _ in 0..30 {
            let mask = matcher.mask();
            let allowed = allowed(grammar.vocabulary(), &matcher);
            let masked: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
            let differ =
                |a: &[u32], b: &[u32]| a.iter().filter(|t| !b.contains(t)).copied().collect::<Vec<_>>();
            let (more, less) = (differ(&masked, &allowed), differ(&allowed, &masked));
            assert!(
                more.is_empty() && less.is_empty(),
                "{what}, seed {seed}, after {taken:?}: {more:?} too many, {less:?} too few"
            );
            assert!(!allowed.is_empty(), "{what}, seed {seed}: dead after {taken:?}");
            // Most of free text says nothing: half of the walks prefer what crosses borders.
            let longer: Vec<u32> = allowed.iter().copied().filter(|token| *token > 256).collect();
            let prefers_longer = seed % 2 == 1 && !longer.is_empty() && random.below(3) > 0;
            let from = if prefers_longer { &longer } else { &allowed };
            let token = from[random.below(from.len())];
            matcher.advance(token).expect("the mask allows it");
            taken.push(token);
            if token == EOS {
                assert_eq!(matcher.mask().n_allowed(), 0);
                break;
            }
        }
        let mut replayed = grammar.matcher();
        let n = random.below(taken.len());
        taken[..n]
            .iter()
            .for_each(|token| replayed.advance(*token).expect("it was taken before"));
        matcher.rollback(taken.len() - n).expect("so many were taken");
        assert_eq!(
            matcher.mask(),
            replayed.mask(),
            "{what}, seed {seed}: rollback to {n}"
        );
    }
}
