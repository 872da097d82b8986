//! Schema text, then an output of it: compiling never fails but by error, and an output that follows the
//! masks never comes to a dead end. From `constrained/`, with the stable toolchain:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none schema -- -max_len=2048 -max_total_time=60
//! ```

#![no_main]

use std::sync::Arc;

use arbora_constrained::{Grammar, Limits, SchemaOptions, Vocabulary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None]);
    let vocabulary = Arc::new(Vocabulary::new(tokens, &[256]).expect("257 tokens"));
    let limits = Limits {
        max_compile_work: 200_000,
        max_automaton_states: 512,
        ..Limits::default()
    };
    let _ = Grammar::compile_regex(&vocabulary, text, &limits);
    let options = SchemaOptions::default();
    let Ok(grammar) = Grammar::compile_json_schema(&vocabulary, text, &options, &limits) else { return };
    let mut matcher = grammar.matcher();
    for byte in input.iter().cycle().take(64) {
        let Ok(mask) = matcher.mask() else { return };
        let allowed: Vec<u32> = (0..=256).filter(|token| mask.allows(*token)).collect();
        assert!(!allowed.is_empty(), "a dead end");
        let token = allowed[usize::from(*byte) % allowed.len()];
        matcher.advance(token).expect("the mask allows it");
        if token == 256 {
            return;
        }
    }
});
