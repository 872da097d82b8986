//! A mixture of experts: time and bytes of weights read per call, beside a call that reads all experts and
//! beside what plain reading gives, measured in the same run.
//!
//! The shape is that of Qwen3-30B-A3B's layers with half their experts. Rows choose experts at random, others
//! in every call.

use std::io::Write;
use std::time::Instant;

use arbora_kernels::cpu::{CpuBackend, CpuExperts, CpuRoutes, CpuTensor, packed_block_bytes};
use arbora_kernels::quant::Format;
use arbora_kernels::{Activation, Backend, BackendError, ExpertInput, RouterScore, RoutesShape, Routing};

use crate::http::BenchError;
use crate::kernels::{
    MEASUREMENT, N_MEASUREMENTS, ROTATED_BYTES, Shape, backend, chosen_isa, fill, limits, median, weights,
};
use crate::machine;
use crate::random::Random;

/// Options of the bench of experts.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rows of activations in a call.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 8, 32, 512])]
    rows: Vec<usize>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Instruction set (avx512, avx2, scalar) instead of the best one.
    #[arg(long)]
    isa: Option<String>,
}

const FORMAT: Format = Format::Q4_1;
const WIDTH: usize = 2048;
const EXPERT_WIDTH: usize = 768;
const N_EXPERTS: usize = 64;
const N_USED: usize = 8;

/// Sets of logits that the calls take in turns.
const N_CHOICES: usize = 16;

/// Bytes of one expert in memory.
fn expert_bytes() -> usize {
    3 * WIDTH * EXPERT_WIDTH / FORMAT.block_len() * packed_block_bytes(FORMAT)
}

struct Layer {
    backend: CpuBackend,
    gate_up: CpuExperts,
    down: CpuExperts,
}

impl Layer {
    fn new(arguments: &Arguments) -> Result<Layer, BackendError> {
        let isa = chosen_isa(arguments.isa.as_deref())?;
        let mut backend = backend(isa, arguments.threads)?;
        let mut random = Random(1);
        let mut experts = |name, n_in, n_out| {
            let shape = Shape {
                name,
                format: FORMAT,
                n_in,
                n_out,
                n_uses: 1,
            };
            let linears = (0..N_EXPERTS).map(|_| weights(&mut backend, &shape, &mut random));
            let linears = linears.collect::<Result<_, _>>()?;
            backend.experts(linears)
        };
        Ok(Layer {
            gate_up: experts("gate, up", WIDTH, 2 * EXPERT_WIDTH)?,
            down: experts("down", EXPERT_WIDTH, WIDTH)?,
            backend,
        })
    }
}

/// One number of rows with one number of experts for each.
struct Case<'a> {
    layer: &'a mut Layer,
    logits: Vec<CpuTensor>,
    routes: CpuRoutes,
    x: CpuTensor,
    gate_up: CpuTensor,
    activated: CpuTensor,
    slots: CpuTensor,
    out: CpuTensor,
}

impl<'a> Case<'a> {
    fn new(layer: &'a mut Layer, n_rows: usize, n_used: usize) -> Result<Case<'a>, BackendError> {
        let shape = RoutesShape {
            max_rows: n_rows,
            n_experts: N_EXPERTS,
            n_used,
        };
        let backend = &mut layer.backend;
        let mut random = Random(2);
        let mut filled = |backend: &mut CpuBackend, width| {
            let mut tensor = backend.tensor(n_rows, width)?;
            fill(&mut tensor, n_rows, &mut random);
            Ok::<_, BackendError>(tensor)
        };
        let logits = (0..N_CHOICES).map(|_| filled(backend, N_EXPERTS));
        let logits = logits.collect::<Result<_, _>>()?;
        Ok(Case {
            logits,
            x: filled(backend, WIDTH)?,
            routes: backend.routes(shape)?,
            gate_up: backend.tensor(shape.max_slots(), 2 * EXPERT_WIDTH)?,
            activated: backend.tensor(shape.max_slots(), EXPERT_WIDTH)?,
            slots: backend.tensor(shape.max_slots(), WIDTH)?,
            out: backend.tensor(n_rows, WIDTH)?,
            layer,
        })
    }

    fn call(&mut self, idx: usize) {
        let Layer {
            backend,
            gate_up,
            down,
        } = &mut *self.layer;
        let routing = Routing {
            score: RouterScore::Softmax,
            choice_bias: None,
            is_normalized: true,
            scale: 1.0,
        };
        backend.route(&self.logits[idx % N_CHOICES], &routing, &mut self.routes);
        let input = ExpertInput::Rows(&self.x);
        backend.expert_matmul(gate_up, input, &self.routes, &mut self.gate_up);
        backend.gated(&self.gate_up, Activation::Silu, &mut self.activated);
        let input = ExpertInput::Slots(&self.activated);
        backend.expert_matmul(down, input, &self.routes, &mut self.slots);
        backend.combine(&self.slots, &self.routes, None, &mut self.out);
    }

    /// Experts that a call reads, on average.
    fn n_read(&mut self) -> f64 {
        let mut n = 0;
        for idx in 0..N_CHOICES {
            self.call(idx);
            n += self.routes.n_chosen_experts();
        }
        n as f64 / N_CHOICES as f64
    }

    fn seconds_per_call(&mut self) -> f64 {
        let mut seconds: Vec<f64> = (0..N_MEASUREMENTS)
            .map(|_| {
                let start = Instant::now();
                let mut n = 0;
                while start.elapsed() < MEASUREMENT {
                    self.call(n);
                    n += 1;
                }
                start.elapsed().as_secs_f64() / n as f64
            })
            .collect();
        median(&mut seconds)
    }
}

/// Prints the table to `out`.
pub(crate) fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), BenchError> {
    let isa = chosen_isa(arguments.isa.as_deref())?;
    writeln!(
        out,
        "{}; {}; {} threads; {N_USED} of {N_EXPERTS} experts of {WIDTH} x {EXPERT_WIDTH} in {}, {:.2} MB each",
        machine::describe(),
        isa.name(),
        arguments.threads,
        FORMAT.name(),
        expert_bytes() as f64 / 1e6,
    )?;
    writeln!(
        out,
        "  rows  experts read  MB read  µs a call     GB/s  % read  time / with all experts"
    )?;
    let words = vec![1u64; ROTATED_BYTES / 8];
    let mut layer = Layer::new(arguments)?;
    for &n_rows in &arguments.rows {
        let before = limits(arguments.threads, &words, || None);
        let mut case = Case::new(&mut layer, n_rows, N_USED)?;
        let (n_read, seconds) = (case.n_read(), case.seconds_per_call());
        let after = limits(arguments.threads, &words, || None);
        let all = Case::new(&mut layer, n_rows, N_EXPERTS)?.seconds_per_call();
        let bytes = n_read * expert_bytes() as f64;
        let rate = bytes / seconds;
        writeln!(
            out,
            "{n_rows:6} {n_read:13.1} {:8.1} {:10.0} {:8.1} {:7.0} {:8.3}",
            bytes / 1e6,
            seconds * 1e6,
            rate / 1e9,
            100.0 * rate / before.read.max(after.read),
            seconds / all,
        )?;
    }
    Ok(())
}
