//! Percentiles and bytes, as a table: `cargo bench -p arbora-radix --bench percentiles`

#![expect(clippy::print_stdout, reason = "the table is the point")]

mod forest;

use forest::{Forest, SHARED, Shape, long_prompts};
use std::hint::black_box;
use std::time::Instant;

const N_SAMPLES: u32 = 100_000;

/// Sorted durations in nanoseconds.
struct Samples(Vec<u64>);

impl Samples {
    fn take(n_samples: u32, mut operation: impl FnMut(u32) -> Instant) -> Self {
        let timed = |number| {
            let start = operation(number);
            start.elapsed().as_nanos() as u64
        };
        let mut samples: Vec<_> = (0..n_samples).map(timed).collect();
        samples.sort_unstable();
        Self(samples)
    }

    fn at(&self, per_thousand: usize) -> u64 {
        self.0[(self.0.len() - 1) * per_thousand / 1000]
    }
}

fn row(shape: Shape, n_leaves: u32) {
    let mut forest = Forest::new(shape, n_leaves);
    let warm_up = 20_000;
    let prompts: Vec<_> = (0..N_SAMPLES)
        .map(|number| forest.cached_prompt(number))
        .collect();
    let hits = Samples::take(N_SAMPLES, |number| {
        let start = Instant::now();
        black_box(forest.hit(&prompts[number as usize]));
        start
    });
    for _ in 0..warm_up {
        forest.make_room();
        forest.insert();
    }
    let inserts = Samples::take(N_SAMPLES, |_| {
        forest.make_room();
        let start = Instant::now();
        forest.insert();
        start
    });
    let pairs = Samples::take(N_SAMPLES, |_| {
        let start = Instant::now();
        forest.make_room();
        forest.insert();
        start
    });
    let evictions = Samples::take((n_leaves / 2).min(N_SAMPLES), |_| {
        let start = Instant::now();
        forest.evict(1);
        start
    });
    let full = Forest::new(shape, n_leaves);
    let n_bytes = full.tree.n_bytes() as f64 / full.tree.n_cached_pages() as f64;
    let columns = [&hits, &inserts, &evictions, &pairs];
    let columns = columns
        .map(|samples| format!("{} / {}", samples.at(500), samples.at(990)))
        .join(" | ");
    println!("| {shape:?} | {n_leaves} | {columns} | {n_bytes:.1} |");
}

fn main() {
    println!("p50 / p99 in ns; tree bytes per cached page besides the tokens\n");
    println!("| shape | leaves | hit + release | insert | evict 1 | evict + insert | bytes/page |");
    println!("|---|---|---|---|---|---|---|");
    for n_leaves in [1_000, 10_000, 100_000, 1_000_000] {
        row(Shape::Groups, n_leaves);
    }
    for n_leaves in [1_000, 10_000, 100_000, 1_000_000] {
        row(Shape::Flat, n_leaves);
    }
    row(Shape::SharedFifteen, 100_000);

    println!("\n| long hit | million tokens/s at p50 |\n|---|---|");
    for (n_prompts, n_tokens) in [(1, 1024), (1, 16_384), (1, 131_072), (64, 16_384), (16, 131_072)] {
        let (tree, prompts) = long_prompts(n_prompts, n_tokens);
        let samples = Samples::take(400, |number| {
            let tokens = &prompts[number as usize % prompts.len()];
            let start = Instant::now();
            black_box(tree.match_len(&SHARED, black_box(tokens), tokens.len()));
            start
        });
        let rate = f64::from(n_tokens) * 1e3 / samples.at(500) as f64;
        println!("| {n_tokens} tokens, {n_prompts} such prompts in turn | {rate:.0} |");
    }
}
