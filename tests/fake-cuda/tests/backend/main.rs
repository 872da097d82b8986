//! The CUDA backend on the emulated driver: every operation against the reference, the same bits for a row in
//! any batch and any schedule, and what happens when the device fails.

#[path = "../../../../kernels/tests/support/mod.rs"]
mod support;

mod compiled;
#[path = "../support/emulated.rs"]
mod emulated;
mod failures;
mod operations;
mod sampling;

use arbora_kernels::Backend;
use arbora_kernels::MatrixSource;
use arbora_kernels::quant::Format;
use support::{Rows, SMALL};

/// A tensor holding `values`, through an F32 embedding: the trait uploads single rows only.
fn tensor<B: Backend>(backend: &mut B, width: usize, values: &[f32]) -> B::Tensor {
    let n_rows = values.len() / width;
    let zeros = vec![0; 4 * width];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let source = MatrixSource {
        format: Format::F32,
        n_out: n_rows.max(1),
        n_in: width,
        bytes: if n_rows == 0 { &zeros } else { &bytes },
    };
    let table = backend.linear(&[source], None).expect("a good matrix");
    let ids: Vec<u32> = (0..n_rows as u32).collect();
    let mut tensor = backend.tensor(n_rows, width).expect("small");
    let batch = Rows::of_ids(&ids).upload(backend, SMALL);
    backend.embed(&table, &batch, &mut tensor);
    tensor
}

/// An output for `n_rows` rows that holds NaN.
fn output<B: Backend>(backend: &mut B, n_rows: usize, width: usize) -> B::Tensor {
    tensor(backend, width, &vec![f32::NAN; n_rows * width])
}

fn values<B: Backend>(backend: &mut B, tensor: &B::Tensor, n_rows: usize, width: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; n_rows * width];
    backend.download(tensor, &mut values);
    values
}
