//! Schema text, the same as a regular expression, and an output of each: compiling never fails but by error,
//! and an output that follows the masks never comes to a dead end. From `constrained/`, with the stable
//! toolchain:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none schema -- -max_len=2048 -max_total_time=60
//! ```

#![no_main]

mod walk;

use arbora_constrained::{Grammar, SchemaOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let (vocabulary, limits) = (walk::vocabulary("<|t|>"), walk::limits());
    if let Ok(grammar) = Grammar::compile_regex(&vocabulary, text, &limits) {
        walk::walk(&grammar, input);
    }
    let options = SchemaOptions::default();
    if let Ok(grammar) = Grammar::compile_json_schema(&vocabulary, text, &options, &limits) {
        walk::walk(&grammar, input);
    }
});
