//! Mean times of match, insert, evict and a picture. `cargo bench -p arbora-radix --bench tree`

mod forest;

use arbora_radix::ViewLimits;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use forest::{Forest, PAGE_SIZE, SHARED, Shape, long_prompts};

fn matches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match a long prompt");
    for n_tokens in [1024, 16_384, 131_072] {
        let (tree, prompts) = long_prompts(1, n_tokens);
        let tokens = &prompts[0];
        group.throughput(Throughput::Elements(u64::from(n_tokens)));
        group.bench_function(n_tokens.to_string(), |bencher| {
            bencher.iter(|| tree.match_len(&SHARED, tokens, tokens.len()));
        });
    }
}

fn sizes() -> impl Iterator<Item = (Shape, u32)> {
    let groups = [1_000, 10_000, 100_000, 1_000_000].map(|n_leaves| (Shape::Groups, n_leaves));
    groups
        .into_iter()
        .chain([(Shape::Flat, 100_000), (Shape::SharedFifteen, 100_000)])
}

fn operations(criterion: &mut Criterion) {
    for (shape, n_leaves) in sizes() {
        let mut group = criterion.benchmark_group(format!("{shape:?} {n_leaves}"));
        let mut forest = Forest::new(shape, n_leaves);
        let mut number = 0;
        group.bench_function("hit and release", |bencher| {
            let next_prompt = |forest: &Forest, number: &mut u32| {
                *number += 1;
                forest.cached_prompt(*number)
            };
            bencher.iter(|| {
                let tokens = next_prompt(&forest, &mut number);
                forest.hit(&tokens)
            });
        });
        group.bench_function("evict and insert", |bencher| {
            bencher.iter(|| {
                forest.make_room();
                forest.insert();
            });
        });
        let limits = ViewLimits {
            n_nodes: 2000,
            n_tokens: 12,
        };
        group.bench_function("picture of 2000 nodes", |bencher| {
            bencher.iter(|| forest.tree.view(std::iter::empty(), limits));
        });
    }
}

fn evictions(criterion: &mut Criterion) {
    criterion.bench_function("evict 10000 single pages", |bencher| {
        let full = || Forest::new(Shape::Groups, 10_000);
        bencher.iter_batched(full, |mut forest| forest.evict(10_000), BatchSize::PerIteration);
    });
    assert_eq!(PAGE_SIZE, 16, "the shapes are made for 16 tokens a page");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = matches, operations, evictions
}
criterion_main!(benches);
