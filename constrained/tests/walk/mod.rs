//! Acceptance by bytes and by tokens, which must agree, and masks where tokens are named by number.

#[path = "../common/mod.rs"]
pub(crate) mod common;

use arbora_constrained::{Grammar, Matcher, Vocabulary};

pub(crate) use common::{EOS, Random, byte_token, check as check_masks, vocabulary};
use common::{LONGER, check_against};

pub(crate) fn first_special() -> u32 {
    vocabulary().n_vocab() - common::SPECIAL.len() as u32
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
        let is_allowed = matcher.mask().allows(*token);
        assert_eq!(
            matcher.advance(*token).is_ok(),
            is_allowed,
            "token {token} of {tokens:?}"
        );
        if !is_allowed {
            return false;
        }
    }
    let may_end = matcher.mask().allows(EOS);
    assert_eq!(may_end, matcher.is_accepting());
    may_end
}

/// Where a grammar names tokens with text by number, bytes say nothing; each token is tried as it is.
fn one_by_one(vocabulary: &Vocabulary, matcher: &Matcher) -> Vec<u32> {
    let all = 0..vocabulary.n_vocab();
    all.filter(|token| matcher.clone().advance(*token).is_ok())
        .collect()
}

pub(crate) fn check_token_masks(grammar: &Grammar, what: &str) {
    check_against(grammar, what, one_by_one);
}
