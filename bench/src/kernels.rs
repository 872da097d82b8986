//! Linear layers on this machine: operations per second beside the int8 peak, and weight bytes per second
//! beside what plain reading gives, both measured in the same run with as many threads.
//!
//! Shapes are those of SmolLM2-135M. Weights rotate over more memory than any cache holds, as they do in a
//! forward pass.

use std::io::Write;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use arbora_kernels::cpu::{CpuBackend, CpuConfig, CpuLinear, CpuTensor, Isa, Pinning, measure};
use arbora_kernels::quant::Format;
use arbora_kernels::{Backend, BackendError, MatrixSource};

use crate::http::BenchError;
use crate::machine;
use crate::random::Random;

/// Options of the kernel bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rows of activations in a product.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 16, 32, 128, 512])]
    rows: Vec<usize>,
    /// Threads.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Instruction set (avx512, avx2, scalar) instead of the best one.
    #[arg(long)]
    isa: Option<String>,
}

pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) format: Format,
    pub(crate) n_in: usize,
    pub(crate) n_out: usize,
    /// How often a forward pass multiplies with it.
    pub(crate) n_uses: usize,
}

const fn shape(name: &'static str, format: Format, n_in: usize, n_out: usize, n_uses: usize) -> Shape {
    Shape {
        name,
        format,
        n_in,
        n_out,
        n_uses,
    }
}

const SHAPES: [Shape; 5] = [
    shape("qkv", Format::Q4_1, 576, 960, 30),
    shape("attention out", Format::Q4_1, 576, 576, 30),
    shape("gate, up", Format::Q4_1, 576, 3072, 30),
    shape("down", Format::Q4_1, 1536, 576, 30),
    shape("head", Format::Q8_0, 576, 49152, 1),
];

/// Bytes the weights of a case rotate over.
pub(crate) const ROTATED_BYTES: usize = 96 << 20;

/// Time of one measurement; the median of [`N_MEASUREMENTS`] counts.
pub(crate) const MEASUREMENT: Duration = Duration::from_millis(60);
pub(crate) const N_MEASUREMENTS: usize = 5;

/// Best rates of this machine with some number of threads.
pub(crate) struct Limits {
    /// Operations per second with everything in registers, where that was measured.
    pub(crate) operations: Option<f64>,
    /// Bytes read per second.
    pub(crate) read: f64,
}

/// Prints the table to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let isa = chosen_isa(arguments.isa.as_deref())?;
    writeln!(out, "{}; {}", machine::describe(), isa.name())?;
    writeln!(
        out,
        "product         in x out      threads  rows     GOPS  % int8      GB/s  % read"
    )?;
    let words = vec![1u64; ROTATED_BYTES / 8];
    for shape in &SHAPES {
        for &n_threads in &arguments.threads {
            let mut case = Case::new(shape, isa, n_threads)?;
            for &n_rows in &arguments.rows {
                let peak = || measure::int8_peak(isa, 1 << 20);
                let before = limits(n_threads, &words, peak);
                let seconds = case.seconds_per_product(n_rows)?;
                let after = limits(n_threads, &words, peak);
                let operations = (2 * n_rows * shape.n_in * shape.n_out) as f64 / seconds;
                let bytes = shape.format.row_bytes(shape.n_in).unwrap_or_default() * shape.n_out;
                let read = bytes as f64 / seconds;
                let percent = |rate: f64, best: f64| format!("{:.0}", 100.0 * rate / best);
                let int8 = before
                    .operations
                    .zip(after.operations)
                    .map(|(a, b)| percent(operations, a.max(b)));
                writeln!(
                    out,
                    "{:15} {:5} x {:5} {:8} {:6} {:8.1} {:>7} {:9.1} {:>7}",
                    shape.name,
                    shape.n_in,
                    shape.n_out,
                    n_threads,
                    n_rows,
                    operations / 1e9,
                    int8.unwrap_or_else(|| "-".to_owned()),
                    read / 1e9,
                    percent(read, before.read.max(after.read)),
                )?;
            }
        }
    }
    for &n_threads in &arguments.threads {
        for &n_rows in &arguments.rows {
            let seconds = forward_seconds(isa, n_threads, n_rows)?;
            let rate = n_rows as f64 / seconds;
            writeln!(
                out,
                "all products of a pass, head for every row: {n_threads} threads, {n_rows} rows: {rate:.0} tokens/s"
            )?;
        }
    }
    Ok(())
}

/// The instruction set of that name, the best one without a name.
pub(crate) fn chosen_isa(name: Option<&str>) -> Result<Isa, BackendError> {
    let Some(name) = name else {
        return Ok(Isa::best());
    };
    let isa = Isa::available().into_iter().find(|isa| isa.name() == name);
    isa.ok_or(BackendError::UnavailableIsa {
        isa: "such instruction set",
    })
}

pub(crate) fn backend(isa: Isa, n_threads: usize) -> Result<CpuBackend, BackendError> {
    CpuBackend::new(CpuConfig {
        n_threads,
        isa: Some(isa),
        pinning: Pinning::Cores,
    })
}

/// Random weights with scales of ordinary size.
pub(crate) fn weights(
    backend: &mut CpuBackend,
    shape: &Shape,
    random: &mut Random,
) -> Result<CpuLinear, BackendError> {
    let row_bytes = shape.format.row_bytes(shape.n_in).expect("whole blocks");
    let mut bytes = vec![0; shape.n_out * row_bytes];
    for block in bytes.chunks_exact_mut(shape.format.block_bytes()) {
        for eight in block.chunks_mut(8) {
            let bits = random.next_u64().to_le_bytes();
            eight.copy_from_slice(&bits[..eight.len()]);
        }
        // 2^-8 in half precision, for scales and minima.
        for &at in shape.format.halves() {
            block[at..at + 2].copy_from_slice(&0x1c00u16.to_le_bytes());
        }
        if shape.format == Format::Mxfp4 {
            block[0] = 127 - 8;
        }
    }
    let source = MatrixSource {
        format: shape.format,
        n_out: shape.n_out,
        n_in: shape.n_in,
        bytes: &bytes,
    };
    backend.linear(&[source], None)
}

pub(crate) fn fill(tensor: &mut CpuTensor, n_rows: usize, random: &mut Random) {
    let width = tensor.width();
    for value in tensor.output(n_rows, width) {
        *value = (random.next_u64() >> 40) as f32 / 8_388_608.0 - 1.0;
    }
}

/// One shape on one backend.
pub(crate) struct Case {
    backend: CpuBackend,
    layers: Vec<CpuLinear>,
    next: usize,
}

impl Case {
    pub(crate) fn new(shape: &Shape, isa: Isa, n_threads: usize) -> Result<Self, BackendError> {
        let mut backend = backend(isa, n_threads)?;
        let mut random = Random(1);
        let bytes = shape.format.row_bytes(shape.n_in).unwrap_or_default() * shape.n_out;
        let layers = (0..ROTATED_BYTES.div_ceil(bytes))
            .map(|_| weights(&mut backend, shape, &mut random))
            .collect::<Result<_, _>>()?;
        Ok(Case {
            backend,
            layers,
            next: 0,
        })
    }

    pub(crate) fn seconds_per_product(&mut self, n_rows: usize) -> Result<f64, BackendError> {
        let mut x = self.backend.tensor(n_rows, self.layers[0].n_in())?;
        let mut y = self.backend.tensor(n_rows, self.layers[0].n_out())?;
        fill(&mut x, n_rows, &mut Random(2));
        let mut seconds: Vec<f64> = (0..N_MEASUREMENTS)
            .map(|_| {
                let start = Instant::now();
                let mut n = 0;
                while start.elapsed() < MEASUREMENT {
                    self.backend.matmul(&self.layers[self.next], &x, &mut y);
                    self.next = (self.next + 1) % self.layers.len();
                    n += 1;
                }
                start.elapsed().as_secs_f64() / f64::from(n)
            })
            .collect();
        Ok(median(&mut seconds))
    }
}

/// Seconds of all products of a forward pass in their order.
fn forward_seconds(isa: Isa, n_threads: usize, n_rows: usize) -> Result<f64, BackendError> {
    let mut backend = backend(isa, n_threads)?;
    let mut random = Random(3);
    let mut products = Vec::new();
    let n_layers = SHAPES[0].n_uses;
    for layer in 0..n_layers {
        let is_last = layer + 1 == n_layers;
        for shape in SHAPES.iter().filter(|shape| shape.n_uses == n_layers || is_last) {
            let linear = weights(&mut backend, shape, &mut random)?;
            let mut x = backend.tensor(n_rows, shape.n_in)?;
            fill(&mut x, n_rows, &mut random);
            let y = backend.tensor(n_rows, shape.n_out)?;
            products.push((linear, x, y));
        }
    }
    let mut seconds: Vec<f64> = (0..N_MEASUREMENTS)
        .map(|_| {
            let start = Instant::now();
            for (linear, x, y) in &mut products {
                backend.matmul(linear, x, y);
            }
            start.elapsed().as_secs_f64()
        })
        .collect();
    Ok(median(&mut seconds))
}

/// What `n_threads` threads reach together; `peak` measures one thread's arithmetic.
pub(crate) fn limits(n_threads: usize, words: &[u64], peak: impl Fn() -> Option<f64> + Sync) -> Limits {
    let start = Barrier::new(n_threads);
    let rates: Vec<(Option<f64>, f64)> = thread::scope(|scope| {
        let parts = words.chunks(words.len().div_ceil(n_threads));
        let threads: Vec<_> = parts
            .map(|part| {
                let (start, peak) = (&start, &peak);
                scope.spawn(move || {
                    start.wait();
                    let operations = peak();
                    start.wait();
                    (operations, measure::read_rate(part))
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("measuring does not panic");
        threads.into_iter().map(join).collect()
    });
    Limits {
        operations: rates.iter().map(|rate| rate.0).sum(),
        read: rates.iter().map(|rate| rate.1).sum(),
    }
}

pub(crate) fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
