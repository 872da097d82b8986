//! The tree does what the model does, whatever the order of operations.

mod model;

use arbora_radix::EvictionPolicy;
use model::{Op, Shape, Tokens, World};
use proptest::prelude::*;

fn shapes() -> impl Strategy<Value = Shape> {
    let policies = [
        EvictionPolicy::Lru,
        EvictionPolicy::Lfu,
        EvictionPolicy::Slru,
        EvictionPolicy::Priority,
    ];
    (
        prop::sample::select(vec![1, 2, 4, 16]),
        prop::sample::select(policies.to_vec()),
        4..40_usize,
    )
        .prop_map(|(page_size, policy, n_pages)| Shape {
            page_size,
            policy,
            n_pages,
        })
}

fn tokens() -> impl Strategy<Value = Tokens> {
    (any::<u8>(), any::<u8>(), prop::collection::vec(0..2_u8, 0..24)).prop_map(|(earlier, n_kept, tail)| {
        Tokens {
            earlier,
            n_kept,
            tail,
        }
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let sequence = any::<u8>;
    prop_oneof![
        1 => (0..3_u8, tokens(), 0..4_u8)
            .prop_map(|(namespace, tokens, n_unwanted)| Op::Peek { namespace, tokens, n_unwanted }),
        5 => (0..3_u8, tokens(), 0..4_u8, -2..3_i8).prop_map(|(namespace, tokens, n_unwanted, priority)| {
            Op::Begin { namespace, tokens, n_unwanted, priority }
        }),
        2 => sequence().prop_map(|sequence| Op::ReleaseDonor { sequence }),
        3 => (sequence(), 0..24_u8).prop_map(|(sequence, n_tokens)| Op::Compute { sequence, n_tokens }),
        2 => (sequence(), 0..2_u8).prop_map(|(sequence, token)| Op::Extend { sequence, token }),
        3 => sequence().prop_map(|sequence| Op::Checkpoint { sequence }),
        3 => sequence().prop_map(|sequence| Op::Finish { sequence }),
        1 => sequence().prop_map(|sequence| Op::Abort { sequence }),
        2 => (0..20_u8).prop_map(|n_pages| Op::Evict { n_pages }),
        1 => Just(Op::Clear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn any_operations_agree_with_the_model(shape in shapes(), ops in prop::collection::vec(ops(), 1..80)) {
        let mut world = World::new(shape);
        ops.iter().for_each(|op| world.apply(op));
        world.close();
    }
}

/// A small generator of its own, so that a printed seed means the same bytes for ever.
fn bytes(seed: u64) -> impl Iterator<Item = u8> {
    std::iter::successors(Some(seed), |state| {
        Some(state.wrapping_add(0x9e37_79b9_7f4a_7c15))
    })
    .skip(1)
    .map(|state| {
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as u8
    })
}

#[test]
fn long_runs_of_decoded_bytes_agree_with_the_model() {
    for seed in 0..80 {
        let mut bytes = bytes(seed);
        let shape = Shape::decode(&mut bytes).expect("the generator never ends");
        eprintln!("seed {seed}: {shape:?}");
        let mut world = World::new(shape);
        for _ in 0..400 {
            let op = Op::decode(&mut bytes).expect("the generator never ends");
            world.apply(&op);
        }
        world.close();
    }
}
