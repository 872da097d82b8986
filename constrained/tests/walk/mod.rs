//! What tests of grammars share: a vocabulary whose tokens cross borders, acceptance by bytes and by tokens,
//! masks against the stupid way.

use std::sync::Arc;

use arbora_constrained::{Grammar, Matcher, Vocabulary};

pub(crate) const EOS: u32 = 0;
const LONGER: [&str; 34] = [
    "ab",
    "ba",
    "aab",
    "abc",
    "12",
    "1+",
    "+1",
    "(1",
    "))",
    "\"a",
    "a\"",
    "\": ",
    "{\"",
    "\"}",
    "}}",
    "[[",
    "]]",
    "é",
    "\u{1f600}",
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
    "name",
    "\"name\": \"",
    " = ",
    "true",
    "<<",
];
/// Special tokens that have a name, from the first number behind all others.
pub(crate) const SPECIAL: [&str; 3] = ["<|call|>", "<|end|>", "<tool_call>"];

pub(crate) fn first_special() -> u32 {
    1 + 256 + LONGER.len() as u32 + 2
}

/// The end of the text, every byte, longer tokens, pieces of characters, special tokens.
pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    let bytes = (0..=255u8).map(|byte| Some(vec![byte]));
    let longer = LONGER.map(|text| Some(text.as_bytes().to_vec()));
    let partial = [Some(vec![0xf0, 0x9f]), Some(vec![0x98, 0x80, b'<'])];
    let special = SPECIAL.map(|_| None);
    let tokens = [None]
        .into_iter()
        .chain(bytes)
        .chain(longer)
        .chain(partial)
        .chain(special);
    let vocabulary = Vocabulary::new(tokens, &[EOS]).expect("a few hundred tokens");
    let names = (first_special()..).zip(SPECIAL.map(str::to_owned));
    Arc::new(vocabulary.with_special(names).expect("they have no text"))
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

/// Whether `text` is accepted, byte by byte and in three tokenisations, which must agree.
pub(crate) fn accepts(grammar: &Grammar, text: &str) -> bool {
    let by_bytes: Vec<u32> = text.bytes().map(byte_token).collect();
    let answer = accepts_tokens(grammar, &by_bytes);
    for seed in 0..3 {
        let mut random = Random(seed);
        let mut tokens = Vec::new();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let fits: Vec<&&str> = LONGER
                .iter()
                .filter(|token| rest.starts_with(token.as_bytes()))
                .collect();
            match fits.get(random.below(fits.len() + 1)) {
                Some(token) => {
                    let at = LONGER
                        .iter()
                        .position(|known| known == *token)
                        .expect("it is one of them");
                    tokens.push(257 + at as u32);
                    rest = &rest[token.len()..];
                }
                None => {
                    tokens.push(byte_token(rest[0]));
                    rest = &rest[1..];
                }
            }
        }
        assert_eq!(accepts_tokens(grammar, &tokens), answer, "{text}, as {tokens:?}");
    }
    answer
}

/// Whether the mask allows each of `tokens` in turn, and the end behind them.
pub(crate) fn accepts_tokens(grammar: &Grammar, tokens: &[u32]) -> bool {
    let mut matcher = grammar.matcher();
    for token in tokens {
        let is_allowed = matcher.mask().expect("no limit is near").allows(*token);
        assert_eq!(
            matcher.advance(*token).is_ok(),
            is_allowed,
            "token {token} of {tokens:?}"
        );
        if !is_allowed {
            return false;
        }
    }
    let may_end = matcher.mask().expect("no limit is near").allows(EOS);
    assert_eq!(may_end, matcher.is_accepting());
    may_end
}

fn brute_force(vocabulary: &Vocabulary, matcher: &Matcher) -> Vec<u32> {
    let is_allowed = |token: &u32| {
        if *token == EOS {
            return matcher.is_accepting();
        }
        let bytes = vocabulary.token_bytes(*token);
        let mut fork = matcher.clone();
        if bytes.len() < 2 {
            return fork.advance(*token).is_ok();
        }
        // A token with text may also be named by number; no grammar here names one.
        bytes.iter().all(|byte| fork.advance(byte_token(*byte)).is_ok())
    };
    (0..vocabulary.n_vocab()).filter(is_allowed).collect()
}

/// Where a grammar names tokens with text by number, bytes say nothing; each token is tried as it is.
fn one_by_one(vocabulary: &Vocabulary, matcher: &Matcher) -> Vec<u32> {
    let all = 0..vocabulary.n_vocab();
    all.filter(|token| matcher.clone().advance(*token).is_ok())
        .collect()
}

/// Random walks; at every step the mask is exact, something is allowed, and what is allowed can be taken.
pub(crate) fn check_masks(grammar: &Grammar, what: &str) {
    check_masks_against(grammar, what, brute_force);
}

pub(crate) fn check_token_masks(grammar: &Grammar, what: &str) {
    check_masks_against(grammar, what, one_by_one);
}

fn check_masks_against(grammar: &Grammar, what: &str, allowed: fn(&Vocabulary, &Matcher) -> Vec<u32>) {
    for seed in 0..6 {
        let mut random = Random(seed);
        let mut matcher = grammar.matcher();
        let mut taken = Vec::new();
        for _ in 0..30 {
            let mask = matcher.mask().expect("no limit is near");
            let allowed = allowed(grammar.vocabulary(), &matcher);
            let masked: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
            assert_eq!(masked, allowed, "{what}, seed {seed}, after {taken:?}");
            assert!(!allowed.is_empty(), "{what}, seed {seed}: dead after {taken:?}");
            // Most of free text says nothing: what begins a marker is preferred.
            let interesting: Vec<u32> = allowed.iter().copied().filter(|token| *token > 256).collect();
            let from = if interesting.is_empty() || random.below(3) == 0 {
                &allowed
            } else {
                &interesting
            };
            let token = from[random.below(from.len())];
            matcher.advance(token).expect("the mask allows it");
            taken.push(token);
            if token == EOS {
                break;
            }
        }
        let n = random.below(taken.len());
        let mut replayed = grammar.matcher();
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
