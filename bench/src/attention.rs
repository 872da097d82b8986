//! Paged attention on this machine: operations per second beside the bf16 peak, and bytes of keys and values
//! per second beside what plain reading gives, both measured in the same run with as many threads.
//!
//! Heads are those of SmolLM2-135M. Pages are scattered, and layers rotate over more memory than any cache
//! holds.

use std::io::Write;
use std::time::Instant;

use arbora_kernels::cpu::{CpuBackend, CpuBatch, CpuKv, CpuTensor, Isa, measure};
use arbora_kernels::{
    AttentionLayer, AttentionSpec, Backend, BackendError, HeadLayout, KvShape, RopeStore, RopeStyle,
    RopeTable, SequenceRows, StepRows,
};

use crate::http::BenchError;
use crate::kernels::{MEASUREMENT, N_MEASUREMENTS, ROTATED_BYTES, backend, chosen_isa, fill, limits, median};
use crate::machine;
use crate::random::Random;
use crate::step;

/// Options of the attention bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Threads.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Tokens per page.
    #[arg(long, default_value_t = 16)]
    page_size: usize,
    /// Instruction set (avx512, avx2, scalar) instead of the best one.
    #[arg(long)]
    isa: Option<String>,
}

const HEADS: HeadLayout = HeadLayout {
    n_heads: 9,
    n_kv_heads: 3,
    head_dim: 64,
};

/// Equal sequences.
struct Shape {
    name: &'static str,
    n_sequences: usize,
    /// Tokens each of them sees at its last row.
    n_tokens: usize,
    /// Query rows of each.
    n_rows: usize,
    /// Leading tokens that are the same pages for all.
    n_shared: usize,
}

const fn shape(
    name: &'static str,
    n_sequences: usize,
    n_tokens: usize,
    n_rows: usize,
    n_shared: usize,
) -> Shape {
    Shape {
        name,
        n_sequences,
        n_tokens,
        n_rows,
        n_shared,
    }
}

const SHAPES: [Shape; 7] = [
    shape("decode 16 x 1500, own pages", 16, 1500, 1, 0),
    shape("decode 16 x 1500, 1472 shared", 16, 1500, 1, 1472),
    shape("decode 16 x 1500, 768 shared", 16, 1500, 1, 768),
    shape("decode 1 x 1500", 1, 1500, 1, 0),
    shape("decode 1 x 8000", 1, 8000, 1, 0),
    shape("prefill 512 on 0", 1, 512, 512, 0),
    shape("prefill 512 on 1536", 1, 2048, 512, 0),
];

/// Prints the table to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let isa = chosen_isa(arguments.isa.as_deref())?;
    let words = vec![1u64; ROTATED_BYTES / 8];
    let kernel = backend(isa, 1)?.attention_kernel(HEADS.head_dim);
    writeln!(
        out,
        "{}; {kernel}; pages of {}",
        machine::describe(),
        arguments.page_size
    )?;
    writeln!(
        out,
        "attention                       threads  ms a layer  GFLOPS  % bf16     GB/s  % read  plan us"
    )?;
    for shape in &SHAPES {
        for &n_threads in &arguments.threads {
            let mut case = Case::new(shape, isa, n_threads, arguments.page_size)?;
            let peak = || measure::bf16_peak(1 << 20);
            let before = limits(n_threads, &words, peak);
            let seconds = case.seconds_per_layer();
            let after = limits(n_threads, &words, peak);
            let operations = shape.operations() / seconds;
            let read = shape.bytes() / seconds;
            let percent = |rate: f64, best: f64| format!("{:.0}", 100.0 * rate / best);
            let peak = before.operations.zip(after.operations);
            let of_peak = peak.map(|(a, b)| percent(operations, a.max(b)));
            writeln!(
                out,
                "{:31} {n_threads:7} {:11.3} {:7.0} {:>7} {:8.1} {:>7} {:8.1}",
                shape.name,
                seconds * 1e3,
                operations / 1e9,
                of_peak.unwrap_or_else(|| "-".to_owned()),
                read / 1e9,
                percent(read, before.read.max(after.read)),
                case.seconds_per_plan() * 1e6,
            )?;
        }
    }
    Ok(())
}

impl Shape {
    /// Operations of a layer: two products of `head_dim` for every query head, row and token it sees.
    fn operations(&self) -> f64 {
        let seen: usize = (self.n_tokens - self.n_rows + 1..=self.n_tokens).sum();
        (4 * HEADS.head_dim * HEADS.n_heads * seen * self.n_sequences) as f64
    }

    /// Bytes of keys and values a layer's sequences see, shared ones as often as they are seen.
    fn bytes(&self) -> f64 {
        (4 * HEADS.head_dim * HEADS.n_kv_heads * self.n_tokens * self.n_sequences) as f64
    }
}

struct Case {
    backend: CpuBackend,
    kv: CpuKv,
    n_layers: usize,
    sequences: Vec<SequenceRows>,
    page_tables: Vec<u32>,
    /// Ids, positions and slots, which attention does not look at.
    zeros: Vec<u32>,
    batch: CpuBatch,
    qkv: CpuTensor,
    out: CpuTensor,
    next: usize,
}

impl Case {
    fn new(shape: &Shape, isa: Isa, n_threads: usize, page_size: usize) -> Result<Case, BackendError> {
        let mut backend = backend(isa, n_threads)?;
        let n_rows = shape.n_rows * shape.n_sequences;
        let (sequences, page_tables) = tables(shape, page_size);
        let n_pages = shape.n_sequences * shape.n_tokens.div_ceil(page_size);
        let mut kv_shape = KvShape {
            n_layers: 1,
            n_kv_heads: HEADS.n_kv_heads,
            head_dim: HEADS.head_dim,
            page_size,
            n_pages,
        };
        kv_shape.n_layers = (ROTATED_BYTES / (n_pages * kv_shape.page_bytes())).max(2);
        let mut kv = backend.kv(kv_shape)?;
        write_all(&mut backend, &mut kv)?;
        let mut qkv = backend.tensor(n_rows, HEADS.qkv_width())?;
        fill(&mut qkv, n_rows, &mut Random(5));
        let out = backend.tensor(n_rows, HEADS.n_heads * HEADS.head_dim)?;
        let zeros = vec![0; n_rows];
        let tables = (sequences.as_slice(), page_tables.as_slice());
        let batch = step::batch(&mut backend, (HEADS, kv_shape), (&zeros, &zeros), tables)?;
        Ok(Case {
            backend,
            kv,
            n_layers: kv_shape.n_layers,
            sequences,
            page_tables,
            zeros,
            batch,
            qkv,
            out,
            next: 0,
        })
    }

    fn make_plan(&mut self) {
        let rows = StepRows {
            ids: &self.zeros,
            positions: &self.zeros,
            slots: &self.zeros,
            logit_rows: &[],
            sequences: &self.sequences,
            page_tables: &self.page_tables,
        };
        self.backend.upload_batch(&rows, &mut self.batch);
    }

    fn seconds_per_layer(&mut self) -> f64 {
        let spec = AttentionSpec::full(HEADS.head_dim);
        let mut seconds: Vec<f64> = (0..N_MEASUREMENTS)
            .map(|_| {
                let start = Instant::now();
                let mut n = 0;
                while start.elapsed() < MEASUREMENT {
                    let layer = AttentionLayer {
                        layer: self.next,
                        spec: &spec,
                        sinks: None,
                    };
                    self.backend
                        .attention(&self.qkv, &self.kv, layer, &self.batch, &mut self.out);
                    self.next = (self.next + 1) % self.n_layers;
                    n += 1;
                }
                start.elapsed().as_secs_f64() / f64::from(n)
            })
            .collect();
        median(&mut seconds)
    }

    fn seconds_per_plan(&mut self) -> f64 {
        let mut seconds: Vec<f64> = (0..101)
            .map(|_| {
                let start = Instant::now();
                self.make_plan();
                start.elapsed().as_secs_f64()
            })
            .collect();
        median(&mut seconds)
    }
}

/// Sequences of a shape with scattered pages.
fn tables(shape: &Shape, page_size: usize) -> (Vec<SequenceRows>, Vec<u32>) {
    let n_pages = shape.n_tokens.div_ceil(page_size);
    let mut order: Vec<u32> = (0..(shape.n_sequences * n_pages) as u32).collect();
    let mut random = Random(4);
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i + 1));
    }
    let n_shared = shape.n_shared / page_size;
    for sequence in 1..shape.n_sequences {
        order.copy_within(0..n_shared, sequence * n_pages);
    }
    let sequences = (0..shape.n_sequences).map(|sequence| SequenceRows {
        first_row: sequence * shape.n_rows,
        n_rows: shape.n_rows,
        first_position: shape.n_tokens - shape.n_rows,
        first_page: sequence * n_pages,
        n_pages,
    });
    (sequences.collect(), order)
}

/// Writes every slot of every layer.
fn write_all(backend: &mut CpuBackend, kv: &mut CpuKv) -> Result<(), BackendError> {
    const N_ROWS: usize = 512;
    let unrotated = RopeTable {
        style: RopeStyle::Halves,
        rope_dim: 2,
        cos_sin: vec![1.0, 0.0],
    };
    let mut qkv = backend.tensor(N_ROWS, HEADS.qkv_width())?;
    let shape = kv.shape();
    let n_slots = shape.n_pages * shape.page_size;
    for layer in 0..shape.n_layers {
        for first in (0..n_slots).step_by(N_ROWS) {
            let n_rows = N_ROWS.min(n_slots - first);
            fill(&mut qkv, n_rows, &mut Random((layer + first) as u64));
            let slots: Vec<u32> = (first as u32..).take(n_rows).collect();
            let store = RopeStore {
                heads: HEADS,
                layer,
                qk_norm: None,
            };
            let rows = (&vec![0; n_rows][..], &slots[..]);
            let batch = step::batch_of_rows(backend, (HEADS, shape), rows)?;
            backend.rope_store(&mut qkv, Some(&unrotated), &store, &batch, kv);
        }
    }
    Ok(())
}
