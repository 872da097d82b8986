//! Mixtures of experts: rows choose experts, and an expert is multiplied with all rows that chose it.
//!
//! ```text
//! slots   | rows of expert 0 | rows of expert 2 | ...   rows ascend; experts that nobody chose have none
//! passes  |  pass   |  pass  |       pass       |       rows of one expert, panels of 16, that stay in L2
//! items   pass 0 x every tile, pass 1 x every tile, ... claimed by the threads
//! ```
//!
//! A pass reads each tile of its expert's weights once. What is computed for a slot depends on its row and
//! its expert only (C1): panels and passes decide where, not what.

use std::ops::Range;

use super::activation::sigmoid;
use super::activations::{Inputs, PANEL_ROWS, QuantizedRows};
use super::exponential::exp;
use super::linear::{CpuLinear, Product, SMALL_WORK, chunk_panels, most_tiles};
use super::simd::linear::LinearKernels;
use super::tensor::CpuTensor;
use super::threads::{SharedSlice, ThreadPool};
use crate::host::Buffer;
use crate::{BackendError, ExpertInput, RouterScore, RoutesShape, Routing};

/// Logits whose rows are worth a claim.
const CLAIM_LOGITS: usize = 2048;

/// Weight matrices of equal shape, one for each expert.
pub struct CpuExperts {
    linears: Vec<CpuLinear>,
    has_quantized_part: bool,
    has_plain_part: bool,
}

impl CpuExperts {
    /// Joins them.
    pub(crate) fn new(linears: Vec<CpuLinear>) -> Result<CpuExperts, BackendError> {
        assert!(!linears.is_empty(), "a mixture has an expert");
        let shape = |linear: &CpuLinear| (linear.n_in(), linear.n_out(), linear.n_tiles());
        if let Some(other) = linears.iter().find(|linear| shape(linear) != shape(&linears[0])) {
            return Err(BackendError::BadMatrix {
                format: other.format(),
                n_out: other.n_out(),
                n_in: other.n_in(),
                reason: "its shape is not that of the first expert",
            });
        }
        if let Some(other) = linears.iter().find(|linear| linear.has_order()) {
            return Err(BackendError::BadMatrix {
                format: other.format(),
                n_out: other.n_out(),
                n_in: other.n_in(),
                reason: "an expert's inputs stand in their order",
            });
        }
        Ok(CpuExperts {
            has_quantized_part: linears.iter().any(CpuLinear::has_quantized_part),
            has_plain_part: linears.iter().any(CpuLinear::has_plain_part),
            linears,
        })
    }

    /// Inputs.
    pub fn n_in(&self) -> usize {
        self.linears[0].n_in()
    }

    /// Outputs.
    pub fn n_out(&self) -> usize {
        self.linears[0].n_out()
    }
}

/// Which experts the rows of a step chose.
pub struct CpuRoutes {
    shape: RoutesShape,
    n_rows: usize,
    /// `[rows][n_used]`, those with larger scores first: expert, weight and slot.
    experts: Vec<u32>,
    weights: Vec<f32>,
    slots: Vec<u32>,
    /// Row of each slot.
    rows: Vec<u32>,
    /// First slot of each expert, and one more than the last slot.
    firsts: Vec<usize>,
    /// Next slot of each expert while they are handed out.
    next: Vec<usize>,
    /// Scores and ranks of a row, for each thread.
    scratch: Vec<f32>,
}

/// Rows of one expert.
struct Pass {
    expert: usize,
    slots: Range<usize>,
}

impl CpuRoutes {
    pub(crate) fn new(shape: RoutesShape, n_threads: usize) -> CpuRoutes {
        let RoutesShape {
            n_experts, n_used, ..
        } = shape;
        assert!(
            (1..=n_experts).contains(&n_used),
            "{n_used} of {n_experts} experts"
        );
        let max_slots = shape.max_slots();
        CpuRoutes {
            shape,
            n_rows: 0,
            experts: Vec::with_capacity(max_slots),
            weights: Vec::with_capacity(max_slots),
            slots: Vec::with_capacity(max_slots),
            rows: Vec::with_capacity(max_slots),
            firsts: vec![0; n_experts + 1],
            next: vec![0; n_experts],
            scratch: vec![0.0; n_threads * 2 * n_experts],
        }
    }

    /// Experts that some row chose: those whose weights a product reads.
    pub fn n_chosen_experts(&self) -> usize {
        let slots = self.firsts.windows(2).map(|ends| ends[1] - ends[0]);
        slots.filter(|n_slots| *n_slots > 0).count()
    }

    /// Rows that chose.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Experts of each row.
    pub(crate) fn n_used(&self) -> usize {
        self.shape.n_used
    }

    /// Slots in use.
    pub(crate) fn n_slots(&self) -> usize {
        self.rows.len()
    }

    /// Slots and weights of a row's experts, those with larger scores first.
    pub(crate) fn of_row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let range = row * self.shape.n_used..(row + 1) * self.shape.n_used;
        let slots = self.slots[range.clone()].iter();
        slots
            .map(|slot| *slot as usize)
            .zip(self.weights[range].iter().copied())
    }

    /// Replaces the choices by those of these logits.
    pub(crate) fn choose(
        &mut self,
        pool: &mut ThreadPool,
        logits: &CpuTensor,
        routing: &Routing<'_, CpuTensor>,
    ) {
        let RoutesShape {
            max_rows,
            n_experts,
            n_used,
        } = self.shape;
        assert_eq!(logits.width(), n_experts, "a logit for each expert");
        self.n_rows = logits.n_rows();
        assert!(
            self.n_rows <= max_rows,
            "{} rows, room for {max_rows}",
            self.n_rows
        );
        let n_slots = self.n_rows * n_used;
        self.experts.resize(n_slots, 0);
        self.weights.resize(n_slots, 0.0);
        let rule = Rule {
            score: routing.score,
            choice_bias: routing.choice_bias.map(|bias| bias.vector(n_experts)),
            is_normalized: routing.is_normalized,
            scale: routing.scale,
        };
        let scratch = SharedSlice::new(&mut self.scratch);
        let experts = SharedSlice::new(&mut self.experts);
        let weights = SharedSlice::new(&mut self.weights);
        let grain = (CLAIM_LOGITS / n_experts).max(1);
        pool.run(self.n_rows, grain, |thread_idx, rows| {
            let of_thread = thread_idx * 2 * n_experts..(thread_idx + 1) * 2 * n_experts;
            // SAFETY: no two calls at the same time have the same thread index.
            let scratch = unsafe { scratch.range(of_thread) };
            for row in rows {
                let range = row * n_used..(row + 1) * n_used;
                // SAFETY: every row is claimed once.
                let (experts, weights) = unsafe { (experts.range(range.clone()), weights.range(range)) };
                rule.choose(logits.row(row), scratch, experts, weights);
            }
        });
        self.hand_out_slots();
    }

    /// Counting sort by expert, rows ascending.
    fn hand_out_slots(&mut self) {
        self.firsts.fill(0);
        for expert in &self.experts {
            self.firsts[*expert as usize + 1] += 1;
        }
        for expert in 0..self.shape.n_experts {
            self.firsts[expert + 1] += self.firsts[expert];
            self.next[expert] = self.firsts[expert];
        }
        self.slots.clear();
        self.rows.resize(self.experts.len(), 0);
        for (choice, expert) in self.experts.iter().enumerate() {
            let slot = self.next[*expert as usize];
            self.next[*expert as usize] += 1;
            self.slots.push(slot as u32);
            self.rows[slot] = (choice / self.shape.n_used) as u32;
        }
    }
}

/// [`Routing`] with its bias as numbers.
struct Rule<'a> {
    score: RouterScore,
    choice_bias: Option<&'a [f32]>,
    is_normalized: bool,
    scale: f32,
}

impl Rule<'_> {
    /// The experts of a row and their weights. `scratch` has two numbers for each expert.
    fn choose(&self, logits: &[f32], scratch: &mut [f32], experts: &mut [u32], weights: &mut [f32]) {
        let (scores, ranks) = scratch.split_at_mut(logits.len());
        let total = self.score(logits, scores);
        match self.choice_bias {
            // Logits are in the order of their scores, and not rounded.
            None if self.score == RouterScore::Softmax => ranks.copy_from_slice(logits),
            None => ranks.copy_from_slice(scores),
            Some(bias) => {
                for ((rank, score), bias) in ranks.iter_mut().zip(&*scores).zip(bias) {
                    *rank = score / total + bias;
                }
            }
        }
        choose_largest(ranks, experts);
        let chosen: f32 = experts.iter().map(|expert| scores[*expert as usize]).sum();
        let divisor = if self.is_normalized { chosen } else { total };
        for (weight, expert) in weights.iter_mut().zip(&*experts) {
            *weight = scores[*expert as usize] / divisor * self.scale;
        }
    }

    /// Scores of all experts but for a divisor.
    fn score(&self, logits: &[f32], scores: &mut [f32]) -> f32 {
        match self.score {
            RouterScore::Softmax => {
                let larger = |a: f32, b: &f32| if *b > a { *b } else { a };
                let largest = logits.iter().fold(f32::NEG_INFINITY, larger);
                for (score, logit) in scores.iter_mut().zip(logits) {
                    *score = exp(logit - largest);
                }
                scores.iter().sum()
            }
            RouterScore::Sigmoid => {
                for (score, logit) in scores.iter_mut().zip(logits) {
                    *score = sigmoid(*logit);
                }
                1.0
            }
        }
    }
}

/// The places of the largest ranks, the largest first, of equal ones the first.
fn choose_largest(ranks: &[f32], chosen: &mut [u32]) {
    let mut n_chosen = 0;
    for (place, rank) in ranks.iter().enumerate() {
        let is_above = |other: u32| *rank > ranks[other as usize];
        if n_chosen < chosen.len() {
            n_chosen += 1;
        } else if chosen.last().is_none_or(|last| !is_above(*last)) {
            continue;
        }
        let mut at = n_chosen - 1;
        while at > 0 && is_above(chosen[at - 1]) {
            chosen[at] = chosen[at - 1];
            at -= 1;
        }
        chosen[at] = place as u32;
    }
}

/// What one product of experts reads and writes.
pub(crate) struct ExpertCall<'a> {
    pub(crate) experts: &'a CpuExperts,
    pub(crate) input: ExpertInput<'a, CpuTensor>,
    pub(crate) routes: &'a CpuRoutes,
    pub(crate) out: &'a mut CpuTensor,
}

/// Memory of the products of experts, made for the largest step there may be.
pub(crate) struct ExpertSpace {
    max_slots: usize,
    /// Inputs of the backend's experts, and whether plain and quantized parts read them.
    inputs: Vec<(usize, bool, bool)>,
    passes: Vec<Pass>,
    /// Rows in the order of their slots, for plain formats.
    gathered: Buffer<f32>,
}

impl ExpertSpace {
    pub(crate) fn new() -> Result<ExpertSpace, BackendError> {
        Ok(ExpertSpace {
            max_slots: 0,
            inputs: Vec::new(),
            passes: Vec::new(),
            gathered: Buffer::zeroed(0, "rows of experts")?,
        })
    }

    /// Makes room for as many slots.
    pub(crate) fn expect_routes(
        &mut self,
        shape: RoutesShape,
        quantized: &mut QuantizedRows,
    ) -> Result<(), BackendError> {
        self.max_slots = self.max_slots.max(shape.max_slots());
        // Each expert may have one that is not full.
        let most_passes = shape.n_experts + shape.max_slots() / PANEL_ROWS;
        self.passes.clear();
        self.passes.reserve(most_passes);
        self.reserve(quantized)
    }

    /// Makes room for the inputs of these experts.
    pub(crate) fn expect_experts(
        &mut self,
        experts: &CpuExperts,
        quantized: &mut QuantizedRows,
    ) -> Result<(), BackendError> {
        let input = (experts.n_in(), experts.has_plain_part, experts.has_quantized_part);
        if !self.inputs.contains(&input) {
            self.inputs.push(input);
        }
        self.reserve(quantized)
    }

    fn reserve(&mut self, quantized: &mut QuantizedRows) -> Result<(), BackendError> {
        for &(n_in, is_plain, is_quantized) in &self.inputs {
            let len = self
                .max_slots
                .checked_mul(n_in)
                .ok_or(BackendError::OutOfMemory {
                    what: "rows of experts",
                    bytes: usize::MAX,
                })?;
            if is_quantized {
                quantized.expect_tensor(self.max_slots, n_in)?;
            }
            if is_plain && len > self.gathered.len() {
                self.gathered = Buffer::zeroed(len, "rows of experts")?;
            }
        }
        Ok(())
    }

    /// `out[s] = W_e x[s]` plus the bias of the expert of slot `s`.
    pub(crate) fn multiply(
        &mut self,
        pool: &mut ThreadPool,
        kernels: &LinearKernels,
        quantized: &mut QuantizedRows,
        call: ExpertCall<'_>,
    ) {
        let (n_in, n_out, n_slots) = call.check();
        let ExpertCall {
            experts,
            input,
            routes,
            out,
        } = call;
        let output = SharedSlice::new(out.output(n_slots, n_out));
        if n_slots == 0 {
            return;
        }
        let element_bytes = if experts.has_quantized_part { 1 } else { 4 };
        let most_rows = PANEL_ROWS * chunk_panels(n_in, element_bytes);
        fill_passes(&mut self.passes, routes, most_rows);
        let passes = &self.passes;
        if experts.has_quantized_part {
            let inputs = Inputs {
                n_rows: n_slots,
                n_in,
                order: None,
            };
            quantized.quantize_rows(pool, kernels, inputs, |slot| {
                let n_before = passes.partition_point(|pass| pass.slots.start <= slot);
                let Range { start, end } = passes[n_before - 1].slots;
                let first = start + (slot - start) / PANEL_ROWS * PANEL_ROWS;
                let x = match input {
                    ExpertInput::Rows(x) => x.row(routes.rows[slot] as usize),
                    ExpertInput::Slots(x) => x.row(slot),
                };
                (x, first..end.min(first + PANEL_ROWS))
            });
        }
        let plain = match input {
            ExpertInput::Slots(x) => x.values(),
            ExpertInput::Rows(x) if experts.has_plain_part => {
                gather(pool, x, &routes.rows, &mut self.gathered)
            }
            ExpertInput::Rows(_) => &[],
        };
        let products = Products {
            experts,
            passes,
            of: Product {
                linear: &experts.linears[0],
                kernels,
                quantized,
                x: plain,
                rows: 0..n_slots,
                output,
            },
        };
        let n_items = passes.len() * experts.linears[0].n_tiles();
        let grain = if n_slots * n_in * n_out <= SMALL_WORK {
            n_items
        } else {
            let longest = passes.iter().map(|pass| pass.slots.len()).max();
            let most = most_tiles(longest.expect("there are slots"), n_in);
            (n_items / (8 * pool.n_threads())).min(most).max(1)
        };
        pool.run(n_items, grain, |_, items| products.run(items));
    }
}

impl ExpertCall<'_> {
    /// Inputs, outputs and slots.
    fn check(&self) -> (usize, usize, usize) {
        let (n_in, n_slots) = (self.experts.n_in(), self.routes.n_slots());
        let (x, n_rows) = match self.input {
            ExpertInput::Rows(x) => (x, self.routes.n_rows),
            ExpertInput::Slots(x) => (x, n_slots),
        };
        assert_eq!(
            (x.n_rows(), x.width()),
            (n_rows, n_in),
            "rows and width of the input of experts"
        );
        assert_eq!(
            self.experts.linears.len(),
            self.routes.shape.n_experts,
            "experts to choose from"
        );
        (n_in, self.experts.n_out(), n_slots)
    }
}

/// The products of all passes.
struct Products<'a> {
    experts: &'a CpuExperts,
    passes: &'a [Pass],
    /// Any of them: they differ in the expert and its rows.
    of: Product<'a>,
}

impl Products<'_> {
    /// Some of the items, every one of which is claimed once.
    fn run(&self, mut items: Range<usize>) {
        let n_tiles = self.of.linear.n_tiles();
        while !items.is_empty() {
            let pass = &self.passes[items.start / n_tiles];
            let first = items.start / n_tiles * n_tiles;
            let end = items.end.min(first + n_tiles);
            let product = Product {
                linear: &self.experts.linears[pass.expert],
                rows: pass.slots.clone(),
                ..self.of
            };
            let n_panels = pass.slots.len().div_ceil(PANEL_ROWS);
            product.tiles(items.start - first..end - first, 0..n_panels);
            items.start = end;
        }
    }
}

/// Cuts the slots of each expert into passes of up to `most_rows`, a multiple of a panel's.
fn fill_passes(passes: &mut Vec<Pass>, routes: &CpuRoutes, most_rows: usize) {
    passes.clear();
    for (expert, ends) in routes.firsts.windows(2).enumerate() {
        for start in (ends[0]..ends[1]).step_by(most_rows) {
            let slots = start..ends[1].min(start + most_rows);
            passes.push(Pass { expert, slots });
        }
    }
}

/// `out[s] = x[rows[s]]`.
fn gather<'a>(pool: &mut ThreadPool, x: &CpuTensor, rows: &[u32], out: &'a mut Buffer<f32>) -> &'a [f32] {
    let width = x.width();
    let out = &mut out[..rows.len() * width];
    let shared = SharedSlice::new(out);
    pool.run(rows.len(), (CLAIM_LOGITS / width).max(1), |_, slots| {
        for slot in slots {
            // SAFETY: every slot is claimed once.
            let target = unsafe { shared.range(slot * width..(slot + 1) * width) };
            target.copy_from_slice(x.row(rows[slot] as usize));
        }
    });
    out
}

/// `out[i] += weight * x[i]`.
pub(crate) fn add_scaled_scalar(out: &mut [f32], x: &[f32], weight: f32) {
    add_scaled(out, x, weight);
}

/// [`add_scaled_scalar`] compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) fn add_scaled_avx2(out: &mut [f32], x: &[f32], weight: f32) {
    add_scaled(out, x, weight);
}

#[inline(always)]
fn add_scaled(out: &mut [f32], x: &[f32], weight: f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += weight * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Pinning;

    #[test]
    fn the_largest_ranks_are_chosen_and_of_equal_ones_the_first() {
        let ranks = [1.0, 3.0, f32::NEG_INFINITY, 3.0, 2.0, 3.0, 0.0];
        for (n, expected) in [(1, &[1][..]), (3, &[1, 3, 5]), (5, &[1, 3, 5, 4, 0])] {
            let mut chosen = vec![9; n];
            choose_largest(&ranks, &mut chosen);
            assert_eq!(chosen, expected);
        }
        let mut all = [9; 7];
        choose_largest(&ranks, &mut all);
        assert_eq!(all, [1, 3, 5, 4, 0, 6, 2]);
        let mut chosen = [9; 3];
        choose_largest(&[f32::NAN; 4], &mut chosen);
        assert_eq!(chosen, [0, 1, 2]);
    }

    #[test]
    fn passes_cover_the_slots_of_each_expert_in_whole_panels() {
        let shape = RoutesShape {
            max_rows: 100,
            n_experts: 3,
            n_used: 1,
        };
        let mut pool = ThreadPool::new(1, Pinning::Free).expect("no thread is started");
        let mut routes = CpuRoutes::new(shape, 1);
        let mut logits = CpuTensor::new(100, 3).expect("small");
        // Expert 0 for 30 rows, expert 2 for 70.
        for (row, logits) in logits.output(100, 3).chunks_exact_mut(3).enumerate() {
            logits.copy_from_slice(if row % 10 < 3 {
                &[2.0, 0.0, 1.0]
            } else {
                &[0.0, 1.0, 2.0]
            });
        }
        let routing = Routing {
            score: RouterScore::Softmax,
            choice_bias: None,
            is_normalized: true,
            scale: 1.0,
        };
        routes.choose(&mut pool, &logits, &routing);
        let mut passes = Vec::new();
        fill_passes(&mut passes, &routes, 2 * PANEL_ROWS);
        let found: Vec<(usize, Range<usize>)> =
            passes.into_iter().map(|pass| (pass.expert, pass.slots)).collect();
        assert_eq!(found, [(0, 0..30), (2, 30..62), (2, 62..94), (2, 94..100)]);
        assert_eq!(routes.rows[..4], [0, 1, 2, 10]);
        assert_eq!(routes.rows[30..33], [3, 4, 5]);
        assert_eq!(routes.of_row(3).collect::<Vec<_>>(), [(30, 1.0)]);
    }
}
