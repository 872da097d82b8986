//! What the fuzz targets share: a vocabulary of bytes, and an output that follows the masks.

use std::sync::Arc;

use arbora_constrained::{Grammar, Limits, Vocabulary};

const EOS: u32 = 256;

/// Every byte, an end, and the special token `special`.
pub(crate) fn vocabulary(special: &str) -> Arc<Vocabulary> {
    let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None, None]);
    let vocabulary = Vocabulary::new(tokens, &[EOS]).expect("258 tokens");
    let vocabulary = vocabulary.with_special([(257, special.to_owned())]);
    Arc::new(vocabulary.expect("it has no text"))
}

/// Small, so that they are met.
pub(crate) fn limits() -> Limits {
    Limits {
        max_compile_work: 200_000,
        max_automaton_states: 512,
        max_readings: 256,
        max_rules: 500,
        max_nodes: 5_000,
        ..Limits::default()
    }
}

/// Follows the masks of `grammar` as `input` chooses: there is always a way on.
pub(crate) fn walk(grammar: &Grammar, input: &[u8]) {
    let mut matcher = grammar.matcher();
    for byte in input.iter().cycle().take(64) {
        let mask = matcher.mask();
        let allowed: Vec<u32> = (0..mask.n_vocab()).filter(|token| mask.allows(*token)).collect();
        assert!(!allowed.is_empty(), "a dead end");
        let token = allowed[usize::from(*byte) % allowed.len()];
        matcher.advance(token).expect("the mask allows it");
        if token == EOS {
            return;
        }
    }
}
