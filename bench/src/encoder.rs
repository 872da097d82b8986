//! A forward pass at the sizes of all-MiniLM-L6-v2: dense layers and attention, tokens per second, and the
//! dense layers alone beside the same products in f32.

use std::io::Write;
use std::time::Instant;

use arbora_kernels::cpu::{CpuBackend, CpuDense, CpuLinear, CpuTensor, Isa};
use arbora_kernels::encoder::{EncoderBackend, TextAttention, TextLimits};
use arbora_kernels::quant::Format;
use arbora_kernels::{Activation, Backend, BackendError, HeadLayout, MatrixSource, Norm, NormKind};

use crate::http::BenchError;
use crate::kernels::{N_MEASUREMENTS, backend, chosen_isa, fill, median};
use crate::machine;
use crate::random::Random;

/// Options of the encoder bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Texts in a pass.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64])]
    texts: Vec<usize>,
    /// Tokens of a text.
    #[arg(long, value_delimiter = ',', default_values_t = [16, 128])]
    tokens: Vec<usize>,
    /// Threads.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Instruction set (avx512, avx2, scalar) instead of the best one.
    #[arg(long)]
    isa: Option<String>,
}

const WIDTH: usize = 384;
const FFN_WIDTH: usize = 1536;
const N_LAYERS: usize = 6;
const HEADS: HeadLayout = HeadLayout {
    n_heads: 12,
    n_kv_heads: 12,
    head_dim: 32,
};
/// Inputs and outputs of the dense layers of a layer.
const SHAPES: [(usize, usize); 4] = [
    (WIDTH, 3 * WIDTH),
    (WIDTH, WIDTH),
    (WIDTH, FFN_WIDTH),
    (FFN_WIDTH, WIDTH),
];

/// Prints the table to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let isa = chosen_isa(arguments.isa.as_deref())?;
    writeln!(out, "{}; {}", machine::describe(), isa.name())?;
    writeln!(
        out,
        "texts x tokens  threads  ms a pass  tokens/s  dense ms  GOPS  attention ms  f32 dense ms  ratio"
    )?;
    for &n_threads in &arguments.threads {
        for &n_tokens in &arguments.tokens {
            for &n_texts in &arguments.texts {
                let mut pass = Pass::new(isa, n_threads, (n_texts, n_tokens))?;
                let seconds = |part: &mut dyn FnMut()| {
                    let mut all: Vec<f64> = (0..N_MEASUREMENTS)
                        .map(|_| {
                            let start = Instant::now();
                            part();
                            start.elapsed().as_secs_f64()
                        })
                        .collect();
                    median(&mut all)
                };
                let whole = seconds(&mut || pass.run());
                let dense = seconds(&mut || pass.dense());
                let attention = seconds(&mut || pass.attention());
                let float = seconds(&mut || pass.float());
                let n_rows = n_texts * n_tokens;
                let products: usize = SHAPES.iter().map(|(n_in, n_out)| n_in * n_out).sum();
                let operations = (2 * n_rows * products * N_LAYERS) as f64;
                writeln!(
                    out,
                    "{n_texts:5} x {n_tokens:6} {n_threads:8} {:10.2} {:9.0} {:9.2} {:5.0} {:13.2} {:13.2} {:6.2}",
                    whole * 1e3,
                    n_rows as f64 / whole,
                    dense * 1e3,
                    operations / dense / 1e9,
                    attention * 1e3,
                    float * 1e3,
                    float / dense,
                )?;
            }
        }
    }
    Ok(())
}

struct Pass {
    backend: CpuBackend,
    ends: Vec<usize>,
    layers: Vec<Vec<(CpuDense, CpuLinear)>>,
    norm: (CpuTensor, CpuTensor),
    x: CpuTensor,
    h: CpuTensor,
    qkv: CpuTensor,
    attended: CpuTensor,
    inner: CpuTensor,
    delta: CpuTensor,
}

impl Pass {
    fn new(isa: Isa, n_threads: usize, (n_texts, n_tokens): (usize, usize)) -> Result<Pass, BackendError> {
        let mut backend = backend(isa, n_threads)?;
        let n_rows = n_texts * n_tokens;
        backend.reserve_texts(TextLimits {
            max_rows: n_rows,
            max_text_rows: n_tokens,
            max_inputs: FFN_WIDTH,
            head_dim: HEADS.head_dim,
        })?;
        let mut random = Random(7);
        let mut layers = Vec::new();
        for _ in 0..N_LAYERS {
            let mut matrices = Vec::new();
            for (n_in, n_out) in SHAPES {
                let weight = |_| (random.next_u64() >> 40) as f32 / 8_388_608.0 - 1.0;
                let weights = (0..n_in * n_out).map(weight);
                let bytes: Vec<u8> = weights.flat_map(f32::to_le_bytes).collect();
                let source = MatrixSource {
                    format: Format::F32,
                    n_out,
                    n_in,
                    bytes: &bytes,
                };
                let bias = vec![0.5; n_out];
                let dense = backend.dense(&[source], Some(&bias))?;
                matrices.push((dense, backend.linear(&[source], Some(&bias))?));
            }
            layers.push(matrices);
        }
        let norm = (backend.upload(&[0.01; WIDTH])?, backend.upload(&[0.0; WIDTH])?);
        let mut pass = Pass {
            x: backend.tensor(n_rows, WIDTH)?,
            h: backend.tensor(n_rows, WIDTH)?,
            qkv: backend.tensor(n_rows, 3 * WIDTH)?,
            attended: backend.tensor(n_rows, WIDTH)?,
            inner: backend.tensor(n_rows, FFN_WIDTH)?,
            delta: backend.tensor(n_rows, WIDTH)?,
            ends: (1..=n_texts).map(|text| text * n_tokens).collect(),
            backend,
            layers,
            norm,
        };
        for tensor in [
            &mut pass.x,
            &mut pass.h,
            &mut pass.qkv,
            &mut pass.attended,
            &mut pass.inner,
        ] {
            fill(tensor, n_rows, &mut random);
        }
        Ok(pass)
    }

    fn run(&mut self) {
        let norm = Norm {
            kind: NormKind::Layer,
            weight: &self.norm.0,
            bias: Some(&self.norm.1),
            eps: 1e-12,
        };
        let texts = TextAttention {
            heads: HEADS,
            ends: &self.ends,
            scale: 0.2,
        };
        let backend = &mut self.backend;
        for layer in &self.layers {
            let [qkv, out, up, down] = layer.as_slice() else {
                unreachable!("four matrices a layer");
            };
            backend.dense_matmul(&qkv.0, &self.x, None, &mut self.qkv);
            backend.attend_texts(&self.qkv, &texts, &mut self.attended);
            backend.dense_matmul(&out.0, &self.attended, None, &mut self.delta);
            backend.add_norm(&mut self.x, &self.delta, &norm, &mut self.h);
            backend.dense_matmul(&up.0, &self.h, Some(Activation::Gelu), &mut self.inner);
            backend.dense_matmul(&down.0, &self.inner, None, &mut self.delta);
            backend.add_norm(&mut self.h, &self.delta, &norm, &mut self.x);
        }
    }

    fn dense(&mut self) {
        let backend = &mut self.backend;
        for layer in &self.layers {
            backend.dense_matmul(&layer[0].0, &self.x, None, &mut self.qkv);
            backend.dense_matmul(&layer[1].0, &self.attended, None, &mut self.delta);
            backend.dense_matmul(&layer[2].0, &self.h, Some(Activation::Gelu), &mut self.inner);
            backend.dense_matmul(&layer[3].0, &self.inner, None, &mut self.delta);
        }
    }

    fn attention(&mut self) {
        let texts = TextAttention {
            heads: HEADS,
            ends: &self.ends,
            scale: 0.2,
        };
        for _ in 0..N_LAYERS {
            self.backend.attend_texts(&self.qkv, &texts, &mut self.attended);
        }
    }

    fn float(&mut self) {
        let backend = &mut self.backend;
        for layer in &self.layers {
            backend.matmul(&layer[0].1, &self.x, &mut self.qkv);
            backend.matmul(&layer[1].1, &self.attended, &mut self.delta);
            backend.matmul(&layer[2].1, &self.h, &mut self.inner);
            backend.matmul(&layer[3].1, &self.inner, &mut self.delta);
        }
    }
}
