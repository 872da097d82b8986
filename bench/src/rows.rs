//! Ops that treat every row by itself, at the sizes of SmolLM2-135M: microseconds per call.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use arbora_kernels::cpu::{CpuBackend, CpuTensor, Isa};
use arbora_kernels::{
    Activation, Adjustment, Allowed, Answers, Backend, BackendError, Elementwise, HeadLayout, KvShape,
    LogprobRow, Norm, NormKind, RopeStore, RopeStyle, RopeTable, SampleRow, Scored,
};

use crate::http::BenchError;
use crate::kernels::{MEASUREMENT, N_MEASUREMENTS, backend, chosen_isa, fill, median};
use crate::machine;
use crate::random::Random;
use crate::step;

/// Options of the row bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rows per call.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 512])]
    rows: Vec<usize>,
    /// Threads.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Instruction set (avx512, avx2, scalar) instead of the best one.
    #[arg(long)]
    isa: Option<String>,
}

const WIDTH: usize = 576;
const FFN_WIDTH: usize = 1536;
const N_VOCAB: usize = 49_152;
const PAGE_SIZE: usize = 16;
const HEADS: HeadLayout = HeadLayout {
    n_heads: 9,
    n_kv_heads: 3,
    head_dim: 64,
};

/// Most rows that are sampled at once: logits of more would be no longer cached, as they are in a step.
const MOST_SAMPLED: usize = 32;

/// Prints the table to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let isa = chosen_isa(arguments.isa.as_deref())?;
    writeln!(out, "{}; {}", machine::describe(), isa.name())?;
    writeln!(
        out,
        "op                            threads  rows   us a call  us a row"
    )?;
    for &n_threads in &arguments.threads {
        for &n_rows in &arguments.rows {
            let mut print = |name: &str, n_rows: usize, seconds: f64| {
                let (all, one) = (seconds * 1e6, seconds * 1e6 / n_rows as f64);
                writeln!(out, "{name:29} {n_threads:7} {n_rows:5} {all:11.2} {one:9.3}")
            };
            for (name, seconds) in row_ops(isa, n_threads, n_rows)? {
                print(name, n_rows, seconds)?;
            }
            let n_rows = n_rows.min(MOST_SAMPLED);
            for (name, seconds) in sampling(isa, n_threads, n_rows)? {
                print(name, n_rows, seconds)?;
            }
        }
    }
    Ok(())
}

fn seconds_per_call(mut call: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..N_MEASUREMENTS)
        .map(|_| {
            let start = Instant::now();
            let mut n = 0;
            while start.elapsed() < MEASUREMENT / 4 {
                call();
                n += 1;
            }
            start.elapsed().as_secs_f64() / f64::from(n)
        })
        .collect();
    median(&mut seconds)
}

fn filled(backend: &mut CpuBackend, n_rows: usize, width: usize) -> Result<CpuTensor, BackendError> {
    let mut tensor = backend.tensor(n_rows, width)?;
    fill(&mut tensor, n_rows, &mut Random(6));
    Ok(tensor)
}

fn row_ops(isa: Isa, n_threads: usize, n_rows: usize) -> Result<Vec<(&'static str, f64)>, BackendError> {
    let mut backend = backend(isa, n_threads)?;
    let weight = backend.upload(&[1.0; WIDTH])?;
    let norm = Norm {
        kind: NormKind::Rms,
        weight: &weight,
        bias: None,
        eps: 1e-5,
    };
    let layer_norm = Norm {
        kind: NormKind::Layer,
        bias: Some(&weight),
        ..norm
    };
    let x = filled(&mut backend, n_rows, WIDTH)?;
    let mut residual = filled(&mut backend, n_rows, WIDTH)?;
    let mut normed = backend.tensor(n_rows, WIDTH)?;
    let gate_up = filled(&mut backend, n_rows, 2 * FFN_WIDTH)?;
    let mut activated = backend.tensor(n_rows, FFN_WIDTH)?;
    let mut results = vec![
        (
            "rms_norm 576",
            seconds_per_call(|| backend.norm(&x, &norm, &mut normed)),
        ),
        (
            "layer_norm 576",
            seconds_per_call(|| backend.norm(&x, &layer_norm, &mut normed)),
        ),
        (
            "add_rms_norm 576",
            seconds_per_call(|| backend.add_norm(&mut residual, &x, &norm, &mut normed)),
        ),
        ("add 576", seconds_per_call(|| backend.add(&mut residual, &x))),
        (
            "soft cap 576",
            seconds_per_call(|| backend.elementwise(&mut residual, Elementwise::SoftCap(30.0))),
        ),
        (
            "silu_mul 1536",
            seconds_per_call(|| backend.gated(&gate_up, Activation::Silu, &mut activated)),
        ),
        (
            "gelu_tanh_mul 1536",
            seconds_per_call(|| backend.gated(&gate_up, Activation::GeluTanh, &mut activated)),
        ),
    ];
    for (name, style) in [
        ("rope_store 9 + 3 + 3, neighbours", RopeStyle::Interleaved),
        ("rope_store 9 + 3 + 3, halves", RopeStyle::Halves),
    ] {
        results.push((name, rope_store(&mut backend, n_rows, style)?));
    }
    Ok(results)
}

fn rope_store(backend: &mut CpuBackend, n_rows: usize, style: RopeStyle) -> Result<f64, BackendError> {
    let shape = KvShape {
        n_layers: 1,
        n_kv_heads: HEADS.n_kv_heads,
        head_dim: HEADS.head_dim,
        page_size: PAGE_SIZE,
        n_pages: n_rows.div_ceil(PAGE_SIZE),
    };
    let mut kv = backend.kv(shape)?;
    let mut qkv = filled(backend, n_rows, HEADS.qkv_width())?;
    let rope = RopeTable {
        style,
        rope_dim: HEADS.head_dim,
        cos_sin: [0.8, 0.6].repeat(n_rows * HEADS.head_dim / 2),
    };
    let positions: Vec<u32> = (0..n_rows as u32).collect();
    let store = RopeStore {
        heads: HEADS,
        layer: 0,
        qk_norm: None,
    };
    let batch = step::batch_of_rows(backend, (HEADS, shape), (&positions, &positions))?;
    Ok(seconds_per_call(|| {
        backend.rope_store(&mut qkv, Some(&rope), &store, &batch, &mut kv);
    }))
}

fn sampling(isa: Isa, n_threads: usize, n_rows: usize) -> Result<Vec<(&'static str, f64)>, BackendError> {
    let mut backend = backend(isa, n_threads)?;
    let mut logits = filled(&mut backend, n_rows, N_VOCAB)?;
    // From uniform in -1..1 to the tails of a model's logits: few tokens far above the rest.
    for logit in logits.values_mut() {
        *logit = -4.0 * (1.0 - logit.abs()).max(1e-7).ln() * logit.signum();
    }
    let few: Vec<u32> = (0..64).map(|i| i * 700).collect();
    let most = vec![!1; N_VOCAB.div_ceil(64)];
    let seen: Vec<Adjustment> = (0..1000)
        .map(|i| Adjustment {
            token: i * 40,
            divisor: 1.2,
            shift: -0.5,
        })
        .collect();
    let greedy = SampleRow::GREEDY;
    let drawn = SampleRow {
        temperature: 0.8,
        ..greedy
    };
    let cases = [
        ("sample greedy", greedy),
        ("sample temperature", drawn),
        ("sample top-p 0.95", SampleRow { top_p: 0.95, ..drawn }),
        ("sample top-k 40", SampleRow { top_k: 40, ..drawn }),
        ("sample min-p 0.05", SampleRow { min_p: 0.05, ..drawn }),
        (
            "sample with 1000 adjusted",
            SampleRow {
                adjustments: &seen,
                ..drawn
            },
        ),
        (
            "sample of 64 allowed",
            SampleRow {
                allowed: Allowed::Ids(&few),
                ..drawn
            },
        ),
        (
            "sample of most allowed",
            SampleRow {
                allowed: Allowed::Bits(&most),
                ..drawn
            },
        ),
    ];
    let mut pending = Answers::default();
    let mut random = Random(7);
    let results = cases.map(|(name, row)| {
        let seconds = seconds_per_call(|| {
            let noisy = |noise| SampleRow { noise, ..row };
            let rows: Vec<SampleRow<'_>> = (0..n_rows).map(|_| noisy(random.next_u64())).collect();
            backend.sample(&logits, &rows, &[], &mut pending);
        });
        (name, seconds)
    });
    let looked_up = logprobs(&mut backend, &logits, n_rows);
    Ok(results.into_iter().chain([looked_up]).collect())
}

fn logprobs(backend: &mut CpuBackend, logits: &CpuTensor, n_rows: usize) -> (&'static str, f64) {
    let asked: Vec<LogprobRow> = (0..n_rows)
        .map(|row| LogprobRow {
            row,
            token: Scored::Drawn,
            n_top: 20,
            listed: Arc::default(),
        })
        .collect();
    let (rows, mut pending) = (vec![SampleRow::GREEDY; n_rows], Answers::default());
    let seconds = seconds_per_call(|| backend.sample(logits, &rows, &asked, &mut pending));
    ("greedy with 21 logprobs", seconds)
}
