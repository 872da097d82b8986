//! A product by cp.async, ldmatrix and mma.sync, as NVRTC compiled it, against float64; and its mutants.

mod support;

use arbora_ptx_emulator::{Fault, FaultKind, Memory, Statistics};
use support::{
    Param, Random, bf16, floats, launch, mutated, relative_error, upload, wide, without_each_synchronization,
};

const TEXT: &str = include_str!("fixtures/gemm.ptx");
const M: usize = 32;
const N: usize = 48;
const K: usize = 256;
const BOUND: f64 = 1e-6;

struct Case {
    a: Vec<u16>,
    b: Vec<u16>,
    expected: Vec<f64>,
}

fn case() -> Case {
    let mut random = Random(7);
    let a: Vec<u16> = (0..M * K).map(|_| bf16(random.unit())).collect();
    let b: Vec<u16> = (0..N * K).map(|_| bf16(random.unit())).collect();
    let cell = |i: usize| {
        (0..K)
            .map(|k| wide(a[i / N * K + k]) * wide(b[i % N * K + k]))
            .sum()
    };
    let expected = (0..M * N).map(cell).collect();
    Case { a, b, expected }
}

/// The relative error of the product, and of the sums of squares.
fn errors(text: &str, case: &Case, seed: u64) -> Result<(f64, f64, Statistics), Fault> {
    let mut memory = Memory::default();
    let bytes = |values: &[u16]| {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let (a, b) = (
        upload(&mut memory, bytes(&case.a)),
        upload(&mut memory, bytes(&case.b)),
    );
    let (out, norms) = (
        memory.allocate(4 * M * N),
        upload(&mut memory, vec![0; 4 * M / 16]),
    );
    let params = [
        Param::Address(a),
        Param::Address(b),
        Param::Address(out),
        Param::Address(norms),
        Param::Number(N as u32),
        Param::Number(K as u32),
    ];
    let grid = [(N / 16) as u32, (M / 16) as u32, 1];
    let statistics = launch(text, "gemm", (grid, [128, 1, 1]), &params, (&mut memory, seed))?;
    let squares: Vec<f64> = case
        .expected
        .chunks(16 * N)
        .map(|rows| rows.iter().map(|x| x * x).sum())
        .collect();
    let error = relative_error(&floats(&memory, out, M * N), &case.expected);
    Ok((
        error,
        relative_error(&floats(&memory, norms, M / 16), &squares),
        statistics,
    ))
}

/// Whether a wrong kernel shows within three schedules.
fn is_found(text: &str, case: &Case) -> bool {
    (1..4).any(|seed| match errors(text, case, seed) {
        Err(_) => true,
        // Written so that a NaN counts.
        Ok((product, squares, _)) => !(product < BOUND && squares < BOUND),
    })
}

#[test]
fn the_product_is_right_under_every_schedule() {
    let case = case();
    for seed in 1..6 {
        let (product, squares, statistics) =
            errors(TEXT, &case, seed).unwrap_or_else(|fault| panic!("{fault}"));
        assert!(
            product < BOUND && squares < BOUND,
            "seed {seed}: {product:e}, {squares:e}"
        );
        // Two of mma for each of 4 warps, 4 stages and 6 blocks; rows of 144 bytes have no bank conflicts.
        assert_eq!(statistics.matrix, 2 * 4 * 4 * 6);
        // Each operand is read once for each tile of the other, 32 bytes at a time.
        let sectors = (M * K * 2 * (N / 16) + N * K * 2 * (M / 16)) / 32;
        assert_eq!(statistics.global_load_sectors, sectors as u64);
    }
}

#[test]
fn every_synchronization_that_is_taken_out_is_missed() {
    let case = case();
    let mutants = without_each_synchronization(TEXT);
    assert!(mutants.len() >= 10, "only {} mutants", mutants.len());
    let missed: Vec<&String> = mutants
        .iter()
        .filter(|(_, text)| !is_found(text, &case))
        .map(|(what, _)| what)
        .collect();
    assert!(missed.is_empty(), "{missed:?} of {}", mutants.len());
}

#[test]
fn seeded_bugs_are_found() {
    let case = case();
    let mutants = [
        (
            "one stage too few is waited for",
            "cp.async.wait_group 1;",
            "cp.async.wait_group 2;",
        ),
        (
            "a matrix is transposed",
            "ldmatrix.sync.aligned.m8n8.x4",
            "ldmatrix.sync.aligned.m8n8.x4.trans",
        ),
        (
            "a shuffle goes to the wrong lane",
            "shfl.sync.bfly.b32",
            "shfl.sync.up.b32",
        ),
        ("a sum becomes a difference", "add.f32", "sub.f32"),
    ];
    for (what, from, to) in mutants {
        assert!(is_found(&mutated(TEXT, from, to, 0), &case), "{what}");
    }
}

#[test]
fn an_access_beyond_an_operand_is_found_with_its_source_line() {
    let mut case = case();
    case.b.truncate(N * K - 4);
    let fault = errors(TEXT, &case, 1).expect_err("the last row is short");
    assert_eq!(fault.kind, FaultKind::Address, "{fault}");
    assert!(
        fault
            .message
            .contains("passes the end of its allocation by 8 bytes"),
        "{fault}"
    );
    assert!(fault.source_line > 0, "{fault}");
}
