//! Operations decoded from bytes, on the tree and on its model. From `radix/`, with the stable toolchain:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none tree -- -max_len=2048 -max_total_time=60
//! ```

#![no_main]

#[path = "../../tests/model/mod.rs"]
mod model;

use libfuzzer_sys::fuzz_target;
use model::{Op, Shape, World};

fuzz_target!(|input: &[u8]| {
    let mut bytes = input.iter().copied();
    let Some(shape) = Shape::decode(&mut bytes) else { return };
    let mut world = World::new(shape);
    while let Some(op) = Op::decode(&mut bytes) {
        world.apply(&op);
    }
    world.close();
});
