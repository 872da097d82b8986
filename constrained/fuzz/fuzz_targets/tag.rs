//! Text of a structural tag, or a schema of a tool, then an output of it: compiling never fails but by error,
//! and an output that follows the masks never comes to a dead end. From `constrained/`, with the stable
//! toolchain:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none tag -- -max_len=2048 -max_total_time=60
//! ```

#![no_main]

mod walk;

use arbora_constrained::{
    CallFormat, Constraint, Enforcement, Grammar, ParallelCalls, SchemaOptions, Tool, ToolChoice, ToolSpec,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let (vocabulary, limits) = (walk::vocabulary("<tool_call>"), walk::limits());
    let options = SchemaOptions::default();
    let tag = Constraint::StructuralTag { text, options };
    if let Ok(grammar) = Grammar::compile(&vocabulary, &tag, &limits) {
        walk::walk(&grammar, input);
    }
    let spec = ToolSpec {
        tools: &[Tool {
            name: "f",
            parameters: text,
            enforcement: Enforcement::Whole,
        }],
        format: CallFormat::Hermes,
        choice: ToolChoice::Auto,
        parallel: ParallelCalls::Allowed,
        options,
    };
    if let Ok(grammar) = Grammar::compile_tools(&vocabulary, &spec, &limits) {
        walk::walk(&grammar, input);
    }
});
