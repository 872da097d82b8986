//! Text of a grammar in each dialect, then an output of it: compiling never fails but by error, and an output
//! that follows the masks never comes to a dead end. The first byte chooses the dialect. From `constrained/`,
//! with the stable toolchain:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none grammar -- -max_len=2048 -max_total_time=60
//! ```

#![no_main]

mod walk;

use arbora_constrained::{Constraint, Grammar};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, input)) = input.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let constraint = match first % 3 {
        0 => Constraint::Gbnf(text),
        1 => Constraint::Ebnf { text, root: "root" },
        _ => Constraint::Lark {
            text,
            options: arbora_constrained::SchemaOptions::default(),
        },
    };
    if let Ok(grammar) = Grammar::compile(&walk::vocabulary("<|t|>"), &constraint, &walk::limits()) {
        walk::walk(&grammar, input);
    }
});
