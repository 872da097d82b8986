//! Linear layers: the same bits for every number of rows, place in the batch, number of threads and
//! instruction set (C1).

#[expect(dead_code, reason = "these tests need matrices only")]
mod support;

use arbora_kernels::cpu::{CpuBackend, CpuConfig, CpuLinear, Isa, Pinning};
use arbora_kernels::quant::Format;
use arbora_kernels::{Backend, MatrixSource};
use support::{Random, random_matrix, random_rows};

fn backend(isa: Isa, n_threads: usize) -> CpuBackend {
    CpuBackend::new(CpuConfig {
        n_threads,
        isa: Some(isa),
        pinning: Pinning::Auto,
    })
    .expect("an available instruction set and a few threads")
}

/// `rows` of `n_in` through `linear`, into an output that is NaN before.
fn multiply(backend: &mut CpuBackend, linear: &CpuLinear, rows: &[f32]) -> Vec<f32> {
    let n_rows = rows.len() / linear.n_in();
    let mut x = backend.tensor(n_rows, linear.n_in()).expect("small");
    let mut out = backend.tensor(n_rows, linear.n_out()).expect("small");
    x.output(n_rows, linear.n_in()).copy_from_slice(rows);
    out.output(n_rows, linear.n_out()).fill(f32::NAN);
    backend.matmul(linear, &x, &mut out);
    assert_eq!(out.n_rows(), n_rows);
    out.values().to_vec()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every instruction set, number of threads, number of rows and place in the batch against one row alone on
/// the scalar kernels.
fn check_rows(format: Format, (n_in, n_out): (usize, usize), counts: &[usize], n_threads: &[usize]) {
    let seed = n_in as u64 + format as u64;
    eprintln!("{format:?} {n_in} x {n_out}, seed {seed}");
    let mut random = Random(seed);
    let bytes = random_matrix(format, n_out, n_in, &mut random);
    let source = MatrixSource {
        format,
        n_out,
        n_in,
        bytes: &bytes,
    };
    let most = counts.iter().copied().max().expect("some counts");
    let rows = random_rows(most, n_in, &mut random);
    let mut scalar = backend(Isa::Scalar, 1);
    let linear = scalar.linear(&[source], None).expect("a good matrix");
    let alone: Vec<u32> = rows
        .chunks_exact(n_in)
        .flat_map(|row| bits(&multiply(&mut scalar, &linear, row)))
        .collect();
    for isa in Isa::available() {
        for &n_threads in n_threads {
            let mut backend = backend(isa, n_threads);
            let linear = backend.linear(&[source], None).expect("a good matrix");
            for &n_rows in counts {
                for first in [0, random.below(most - n_rows + 1), most - n_rows] {
                    let part = &rows[first * n_in..(first + n_rows) * n_in];
                    assert_eq!(
                        bits(&multiply(&mut backend, &linear, part)),
                        alone[first * n_out..(first + n_rows) * n_out],
                        "{isa:?}, {n_threads} threads, {n_rows} rows from {first}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_bits_of_a_row_depend_on_that_row_only() {
    let counts: Vec<usize> = (1..=40).chain([64, 70]).collect();
    for format in Format::ALL {
        check_rows(
            format,
            (usize::next_multiple_of(160, format.block_len()), 41),
            &counts,
            &[1, 2, 3, 4],
        );
    }
}

#[test]
fn the_bits_of_a_row_stay_in_a_batch_of_several_chunks_with_a_ragged_end() {
    for format in Format::ALL {
        check_rows(format, (1536, 35), &[519], &[1, 3]);
    }
}
