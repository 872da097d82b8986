//! TMA, mbarrier and wgmma: a tile product as NVRTC compiled it for sm_90a, and its mutants.

mod support;

use arbora_ptx_emulator::{Fault, Memory, TensorMap};
use support::{Param, Random, bf16, floats, launch, mutated, relative_error, upload, wide};

const TEXT: &str = include_str!("fixtures/wgmma.ptx");
const M: usize = 128;
const N: usize = 192;
const K: usize = 320;

fn matrix(rows: usize, seed: u64) -> Vec<u16> {
    let mut random = Random(seed);
    (0..rows * K).map(|_| bf16(random.unit())).collect()
}

/// The relative error of the product.
fn error(text: &str, seed: u64) -> Result<f64, Fault> {
    let mut memory = Memory::default();
    let (a, b) = (matrix(M, 1), matrix(N, 2));
    let mut map = |values: &[u16], rows: usize| {
        let map = TensorMap {
            address: upload(&mut memory, values.iter().flat_map(|value| value.to_le_bytes())),
            element: 2,
            dims: vec![K as u64, rows as u64],
            strides: vec![K as u64 * 2],
            boxes: vec![64, 64],
            swizzle: 128,
        };
        map.check().expect("a good map");
        Param::Bytes(map.to_bytes().to_vec(), 64)
    };
    let maps = [map(&a, M), map(&b, N)];
    let out = memory.allocate(4 * M * N);
    let [a_map, b_map] = maps;
    let params = [
        a_map,
        b_map,
        Param::Address(out),
        Param::Number((K / 64) as u32),
        Param::Number(N as u32),
    ];
    let grid = [(N / 64) as u32, (M / 64) as u32, 1];
    launch(
        text,
        "gemm_tile",
        (grid, [128, 1, 1]),
        &params,
        (&mut memory, seed),
    )?;
    let cell = |i: usize| {
        (0..K)
            .map(|k| wide(a[i / N * K + k]) * wide(b[i % N * K + k]))
            .sum()
    };
    let expected: Vec<f64> = (0..M * N).map(cell).collect();
    Ok(relative_error(&floats(&memory, out, M * N), &expected))
}

#[test]
fn a_wgmma_product_fed_by_tma_is_right() {
    for seed in 1..4 {
        let error = error(TEXT, seed).unwrap_or_else(|fault| panic!("{fault}"));
        assert!(error < 1e-6, "seed {seed}: {error:e}");
    }
}

#[test]
fn seeded_bugs_are_found() {
    let descriptor = (1u64 << 16) | (64 << 32) | (1 << 62);
    let (short, other) = (
        (descriptor - (32 << 32)).to_string(),
        (descriptor + (1 << 62)).to_string(),
    );
    let descriptor = descriptor.to_string();
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let mutants = [
        (
            "no wait for the copy engine",
            "@done bra finished;",
            "bra finished;",
            0,
        ),
        ("fewer bytes are announced", ", 16384;", ", 8192;", 0),
        ("no barrier before a stage is used again", "bar.sync \t0;", "", 1),
        ("a wrong stride in the descriptor", &descriptor, &short, 0),
        ("another swizzle in the descriptor", &descriptor, &other, 0),
        (
            "the product is not waited for",
            wait,
            "wgmma.wait_group.sync.aligned 1;",
            0,
        ),
    ];
    for (what, from, to, n) in mutants {
        let text = mutated(TEXT, from, to, n);
        let is_found =
            (1..4).any(|seed| error(&text, seed).map_or(true, |error| error.is_nan() || error >= 1e-6));
        assert!(is_found, "{what}");
    }
}
