//! Text of a structural tag, or a schema of a tool, then an output of it: compiling never fails but by error,
//! and an output that follows the masks never comes to a dead end. From `constrained/`, with the stable
//! toolchain:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none tag -- -max_len=2048 -max_total_time=60
//! ```

#![no_main]

use std::sync::Arc;

use arbora_constrained::{
    CallFormat, Constraint, Grammar, Limits, MatchError, ParallelCalls, SchemaOptions, Tool, ToolChoice,
    ToolSpec, Vocabulary,
};
use libfuzzer_sys::fuzz_target;

fn walk(grammar: &Grammar, input: &[u8]) {
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
}

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let tokens = (0..=255u8).map(|byte| Some(vec![byte])).chain([None, None]);
    let vocabulary = Vocabulary::new(tokens, &[256]).expect("258 tokens");
    let vocabulary = vocabulary.with_special([(257, "<tool_call>".to_owned())]);
    let vocabulary = Arc::new(vocabulary.expect("it has no text"));
    let limits = Limits {
        max_compile_work: 200_000,
        max_automaton_states: 512,
        max_readings: 256,
        max_nodes: 5_000,
        ..Limits::default()
    };
    let options = SchemaOptions::default();
    let tag = Constraint::StructuralTag { text, options };
    if let Ok(grammar) = Grammar::compile(&vocabulary, &tag, &limits) {
        walk(&grammar, input);
    }
    let spec = ToolSpec {
        tools: &[Tool {
            name: "f",
            parameters: text,
        }],
        format: CallFormat::Hermes,
        choice: ToolChoice::Auto,
        parallel: ParallelCalls::Allowed,
        options,
    };
    if let Ok(grammar) = Grammar::compile_tools(&vocabulary, &spec, &limits) {
        walk(&grammar, input);
    }
});
