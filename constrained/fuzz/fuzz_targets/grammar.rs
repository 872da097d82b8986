//! Text of a grammar in each dialect, then an output of it: compiling never fails but by error, and an output
//! that follows the masks never comes to a dead end. The first byte chooses the dialect. From `constrained/`,
//! with the stable toolchain:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none grammar -- -max_len=2048 -max_total_time=60
//! ```

#![no_main]

use std::sync::Arc;

use arbora_constrained::{Constraint, Grammar, Limits, MatchError, Vocabulary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, input)) = input.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None, None]);
    let vocabulary = Vocabulary::new(tokens, &[256]).expect("258 tokens");
    let vocabulary = vocabulary.with_special([(257, "<|t|>".to_owned())]);
    let vocabulary = Arc::new(vocabulary.expect("it has no text"));
    let limits = Limits {
        max_compile_work: 200_000,
        max_automaton_states: 512,
        max_readings: 256,
        max_rules: 500,
        max_nodes: 5_000,
        ..Limits::default()
    };
    let constraint = match first % 3 {
        0 => Constraint::Gbnf(text),
        1 => Constraint::Ebnf { text, root: "root" },
        _ => Constraint::Lark(text),
    };
    let Ok(grammar) = Grammar::compile(&vocabulary, &constraint, &limits) else {
        return;
    };
    let mut matcher = grammar.matcher();
    for byte in input.iter().cycle().take(32) {
        let mask = match matcher.mask() {
            Ok(mask) => mask,
            Err(MatchError::Limit { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        let allowed: Vec<u32> = (0..=257).filter(|token| mask.allows(*token)).collect();
        assert!(!allowed.is_empty(), "a dead end");
        let token = allowed[usize::from(*byte) % allowed.len()];
        matcher.advance(token).expect("the mask allows it");
        if token == 256 {
            return;
        }
    }
});
