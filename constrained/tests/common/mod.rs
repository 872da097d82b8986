//! A small vocabulary, random numbers, and masks worked out the stupid way.

use std::sync::Arc;

use arbora_constrained::{Grammar, Matcher, Vocabulary};

pub(crate) const EOS: u32 = 0;

/// Every byte, and longer tokens that cross the borders of strings, numbers and members.
pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    let longer = [
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
        "ab",
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
    ];
    let bytes = (0..=255u8).map(|byte| Some(vec![byte]));
    let partial = [Some(vec![0xf0, 0x9f]), Some(vec![0x80, b'"'])];
    let longer = longer.map(|text| Some(text.as_bytes().to_vec()));
    let tokens = [None]
        .into_iter()
        .chain(bytes)
        .chain(longer)
        .chain(partial)
        .chain([None]);
    Arc::new(Vocabulary::new(tokens, &[EOS]).expect("a few hundred tokens"))
}

pub(crate) fn byte_token(byte: u8) -> u32 {
    1 + u32::from(byte)
}

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

pub(crate) fn brute_force(vocabulary: &Vocabulary, matcher: &Matcher) -> Vec<u32> {
    let is_allowed = |token: &u32| {
        if *token == EOS {
            return matcher.is_accepting();
        }
        let bytes = vocabulary.token_bytes(*token);
        let mut fork = matcher.clone();
        !bytes.is_empty() && bytes.iter().all(|byte| fork.advance(byte_token(*byte)).is_ok())
    };
    (0..vocabulary.n_vocab()).filter(is_allowed).collect()
}

/// Random walks; at every step the mask is exact, something is allowed, and what is allowed can be taken.
pub(crate) fn check(grammar: &Grammar, what: &str) {
    for seed in 0..12 {
        let mut random = Random(seed);
        let mut matcher = grammar.matcher();
        let mut taken = Vec::new();
        for _ in 0..25 {
            let mask = matcher.mask().expect("no limit is near");
            let allowed = brute_force(grammar.vocabulary(), &matcher);
            let masked: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
            assert_eq!(masked, allowed, "{what}, seed {seed}, after {taken:?}");
            assert!(!allowed.is_empty(), "{what}, seed {seed}: dead after {taken:?}");
            let token = allowed[random.below(allowed.len())];
            matcher.advance(token).expect("the mask allows it");
            taken.push(token);
            if token == EOS {
                assert_eq!(matcher.mask().expect("nothing to do").n_allowed(), 0);
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
