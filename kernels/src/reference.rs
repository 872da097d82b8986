//! What every op means, in plain loops over f64: the specification the fast backends are compared with.
//!
//! Nothing here is fast, blocked or shared between ops on purpose. Keys and values are rounded to bf16, and
//! the activations of block-quantized layers to int8, because the trait says so; everything else is rounded
//! to f32 once, where a result is stored.
//!
//! ```text
//! keys, values: [layer][page][kv head][token of the page][element]
//! ```

mod encoder;
mod experts;
mod sampling;

use crate::cpu::CpuTensor;
use crate::quant::{BLOCK, bf16_from_f32, dequantize_row, f32_from_bf16};
use crate::{
    Activation, Answers, AttentionLayer, Backend, BackendError, BatchShape, Elementwise, ExpertInput,
    HeadLayout, KvShape, LogprobRow, MatrixSource, Norm, NormKind, QkNorm, QkNormSpan, RopeStore, RopeStyle,
    RopeTable, RoutesShape, Routing, SampleRow, SharedExpert, StepRows,
};

pub use experts::ReferenceRoutes;
pub(crate) use sampling::logprobs;
use sampling::sampled;

/// The executable specification of [`Backend`].
#[derive(Debug, Default)]
pub struct ReferenceBackend;

impl ReferenceBackend {
    /// There is nothing to set up.
    pub fn new() -> Self {
        ReferenceBackend
    }
}

/// Dequantized weights, one row per output.
pub struct ReferenceLinear {
    weights: Vec<f32>,
    /// Of each output: whether its activations are quantized.
    quantized: Vec<bool>,
    bias: Vec<f32>,
    /// Which activation each input is multiplied with, where that is not the one at its place.
    order: Option<Vec<u32>>,
    n_in: usize,
}

impl ReferenceLinear {
    fn row(&self, output: usize) -> &[f32] {
        &self.weights[output * self.n_in..][..self.n_in]
    }

    /// `out = W x + bias`.
    fn multiply(&self, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), self.n_in, "width of the input of a linear layer");
        let plain: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let rounded = through_int8(x);
        for (output, out) in out.iter_mut().enumerate() {
            let x = if self.quantized[output] { &rounded } else { &plain };
            let products = x.iter().zip(self.row(output)).map(|(x, &w)| x * f64::from(w));
            *out = (products.sum::<f64>() + f64::from(self.bias[output])) as f32;
        }
    }
}

/// Keys and values as f32 that bf16 holds exactly.
pub struct ReferenceKv {
    shape: KvShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl ReferenceKv {
    /// Where the elements of one token of one head start.
    fn token(&self, layer: usize, kv_head: usize, page: u32, offset: usize) -> usize {
        let shape = &self.shape;
        let page = page as usize;
        assert!(
            layer < shape.n_layers && page < shape.n_pages && offset < shape.page_size,
            "layer {layer}, page {page}, token {offset} of {shape:?}"
        );
        let head = (layer * shape.n_pages + page) * shape.n_kv_heads + kv_head;
        (head * shape.page_size + offset) * shape.head_dim
    }

    /// The elements of one page of one layer.
    fn page(&self, layer: usize, page: u32) -> std::ops::Range<usize> {
        let start = self.token(layer, 0, page, 0);
        start..start + self.shape.n_kv_heads * self.shape.page_size * self.shape.head_dim
    }
}

/// The index arrays of a step, and the page table and KV limit of every row.
pub struct ReferenceBatch {
    shape: BatchShape,
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    logit_rows: Vec<u32>,
    rows: Vec<(Vec<u32>, usize)>,
}

/// Activations as a block-quantized layer sees them: per block of 32, int8 times a scale.
fn through_int8(x: &[f32]) -> Vec<f64> {
    let mut rounded = Vec::with_capacity(x.len());
    for block in x.chunks(BLOCK) {
        let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let scale = f64::from(largest / 127.0);
        rounded.extend(
            block
                .iter()
                .map(|x| f64::from((x * inverse).round_ties_even()) * scale),
        );
    }
    rounded
}

fn normalized(x: &[f32], norm: &Norm<'_, CpuTensor>) -> Vec<f32> {
    let (width, n) = (x.len(), x.len() as f64);
    let center = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|&x| f64::from(x)).sum::<f64>() / n,
    };
    let centered = x.iter().map(|&x| f64::from(x) - center);
    let mean_square = centered.clone().map(|x| x.powi(2)).sum::<f64>() / n;
    let factor = 1.0 / (mean_square + f64::from(norm.eps)).sqrt();
    let weight = norm.weight.vector(width);
    let bias = |i: usize| norm.bias.map_or(0.0, |bias| f64::from(bias.vector(width)[i]));
    let scaled = |(i, x): (usize, f64)| (x * factor * f64::from(weight[i]) + bias(i)) as f32;
    centered.enumerate().map(scaled).collect()
}

fn activated(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::ClampedSwish => {
            // Not `min`, which drops NaN.
            let limit = f64::from(Activation::CLAMPED_SWISH_LIMIT);
            let x = if x > limit { limit } else { x };
            x / (1.0 + (-f64::from(Activation::CLAMPED_SWISH_FACTOR) * x).exp())
        }
    }
}

/// The error function: its series where that converges well, 1 within 2e-17 of the sign beyond.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    // erf(x) = 2 / sqrt(pi) * exp(-x^2) * sum_n 2^n x^(2n + 1) / (1 * 3 * ... * (2n + 1)), all of one sign.
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// Normalizes the queries and keys of a fused row.
fn normalize_heads(qkv: &mut [f32], heads: HeadLayout, norm: &QkNorm<'_, CpuTensor>) {
    let (queries, rest) = qkv.split_at_mut(heads.n_heads * heads.head_dim);
    let keys = &mut rest[..heads.n_kv_heads * heads.head_dim];
    for (part, weight) in [(queries, norm.query), (keys, norm.key)] {
        let span = match norm.span {
            QkNormSpan::EachHead => heads.head_dim,
            QkNormSpan::AllHeads => part.len(),
        };
        let norm = Norm {
            kind: NormKind::Rms,
            weight,
            bias: None,
            eps: norm.eps,
        };
        for part in part.chunks_exact_mut(span) {
            part.copy_from_slice(&normalized(part, &norm));
        }
    }
}

fn rotate(head: &mut [f32], rope: &RopeTable, position: usize) {
    let n_pairs = rope.rope_dim / 2;
    for pair in 0..n_pairs {
        let (first, second) = match rope.style {
            RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
            RopeStyle::Halves => (pair, pair + n_pairs),
        };
        let at = (position * n_pairs + pair) * 2;
        let (cos, sin) = (f64::from(rope.cos_sin[at]), f64::from(rope.cos_sin[at + 1]));
        let (a, b) = (f64::from(head[first]), f64::from(head[second]));
        head[first] = (a * cos - b * sin) as f32;
        head[second] = (b * cos + a * sin) as f32;
    }
}

impl Backend for ReferenceBackend {
    type Tensor = CpuTensor;
    type Linear = ReferenceLinear;
    type Experts = Vec<ReferenceLinear>;
    type Routes = ReferenceRoutes;
    type Kv = ReferenceKv;
    type Rope = RopeTable;
    type Batch = ReferenceBatch;
    type Pending = Answers;

    fn tensor(&mut self, capacity: usize, width: usize) -> Result<CpuTensor, BackendError> {
        CpuTensor::new(capacity, width)
    }

    fn upload(&mut self, values: &[f32]) -> Result<CpuTensor, BackendError> {
        let mut tensor = CpuTensor::new(1, values.len())?;
        tensor.output(1, values.len()).copy_from_slice(values);
        Ok(tensor)
    }

    fn download(&mut self, tensor: &CpuTensor, out: &mut [f32]) {
        out.copy_from_slice(tensor.values());
    }

    fn linear(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
    ) -> Result<ReferenceLinear, BackendError> {
        let n_in = parts[0].n_in;
        let mut linear = ReferenceLinear {
            weights: Vec::new(),
            quantized: Vec::new(),
            bias: Vec::new(),
            order: None,
            n_in,
        };
        for source in parts {
            let (format, n_out) = (source.format, source.n_out);
            let bad = |reason| BackendError::BadMatrix {
                format,
                n_out,
                n_in: source.n_in,
                reason,
            };
            let row_bytes = format
                .row_bytes(n_in)
                .ok_or(bad("a row is not a whole number of blocks"))?;
            if source.n_in != n_in || n_in == 0 || n_out == 0 || source.bytes.len() != n_out * row_bytes {
                return Err(bad("its bytes or inputs are not those of its shape"));
            }
            for row in source.bytes.chunks_exact(row_bytes) {
                let start = linear.weights.len();
                linear.weights.resize(start + n_in, 0.0);
                dequantize_row(format, row, &mut linear.weights[start..]);
                linear.quantized.push(format.is_quantized());
            }
        }
        let n_out = linear.quantized.len();
        linear.bias = bias.map_or(vec![0.0; n_out], <[f32]>::to_vec);
        assert_eq!(linear.bias.len(), n_out, "one bias an output");
        Ok(linear)
    }

    fn linear_in_order(
        &mut self,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
        order: &[u32],
    ) -> Result<ReferenceLinear, BackendError> {
        let mut linear = self.linear(parts, bias)?;
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        let is_permutation = sorted.iter().copied().eq(0..linear.n_in as u32);
        if !is_permutation || !linear.quantized.iter().all(|&is| is) {
            return Err(BackendError::BadMatrix {
                format: parts[0].format,
                n_out: linear.quantized.len(),
                n_in: linear.n_in,
                reason: "its inputs cannot stand in that order",
            });
        }
        linear.order = Some(order.to_vec());
        Ok(linear)
    }

    fn experts(&mut self, linears: Vec<ReferenceLinear>) -> Result<Vec<ReferenceLinear>, BackendError> {
        Ok(linears)
    }

    fn routes(&mut self, shape: RoutesShape) -> Result<ReferenceRoutes, BackendError> {
        Ok(ReferenceRoutes::new(shape))
    }

    fn kv(&mut self, shape: KvShape) -> Result<ReferenceKv, BackendError> {
        let n = shape.n_layers * shape.n_pages * shape.n_kv_heads * shape.page_size * shape.head_dim;
        Ok(ReferenceKv {
            shape,
            keys: vec![0.0; n],
            values: vec![0.0; n],
        })
    }

    fn rope(&mut self, table: RopeTable) -> Result<RopeTable, BackendError> {
        Ok(table)
    }

    fn batch(
        &mut self,
        shape: BatchShape,
        _windows: &[Option<usize>],
    ) -> Result<ReferenceBatch, BackendError> {
        Ok(ReferenceBatch {
            shape,
            ids: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            logit_rows: Vec::new(),
            rows: Vec::new(),
        })
    }

    fn pending(&mut self, _max_logit_rows: usize) -> Result<Answers, BackendError> {
        Ok(Answers::default())
    }

    fn upload_batch(&mut self, rows: &StepRows<'_>, batch: &mut ReferenceBatch) {
        rows.check(&batch.shape);
        batch.ids = rows.ids.to_vec();
        batch.positions = rows.positions.to_vec();
        batch.slots = rows.slots.to_vec();
        batch.logit_rows = rows.logit_rows.to_vec();
        batch.rows.clear();
        for sequence in rows.sequences {
            let pages = &rows.page_tables[sequence.first_page..][..sequence.n_pages];
            let limits = (1..=sequence.n_rows).map(|n| sequence.first_position + n);
            batch.rows.extend(limits.map(|limit| (pages.to_vec(), limit)));
        }
    }

    fn embed(&mut self, table: &ReferenceLinear, batch: &ReferenceBatch, out: &mut CpuTensor) {
        let ids = &batch.ids;
        let rows = out.output(ids.len(), table.n_in).chunks_exact_mut(table.n_in);
        for (&id, row) in ids.iter().zip(rows) {
            row.copy_from_slice(table.row(id as usize));
        }
    }

    fn norm(&mut self, x: &CpuTensor, norm: &Norm<'_, CpuTensor>, out: &mut CpuTensor) {
        let width = x.width();
        let rows = out.output(x.n_rows(), width).chunks_exact_mut(width);
        for (row, out) in rows.enumerate() {
            out.copy_from_slice(&normalized(x.row(row), norm));
        }
    }

    fn add_norm(
        &mut self,
        residual: &mut CpuTensor,
        delta: &CpuTensor,
        norm: &Norm<'_, CpuTensor>,
        out: &mut CpuTensor,
    ) {
        self.add(residual, delta);
        self.norm(residual, norm, out);
    }

    fn add(&mut self, residual: &mut CpuTensor, delta: &CpuTensor) {
        assert_eq!(
            residual.values().len(),
            delta.values().len(),
            "shapes of the addends"
        );
        for (residual, delta) in residual.values_mut().iter_mut().zip(delta.values()) {
            *residual += delta;
        }
    }

    fn elementwise(&mut self, x: &mut CpuTensor, function: Elementwise) {
        for value in x.values_mut() {
            let x = f64::from(*value);
            *value = match function {
                Elementwise::Scale(factor) => x * f64::from(factor),
                Elementwise::SoftCap(cap) => f64::from(cap) * (x / f64::from(cap)).tanh(),
                Elementwise::Activate(activation) => activated(x, activation),
            } as f32;
        }
    }

    fn matmul(&mut self, w: &ReferenceLinear, x: &CpuTensor, out: &mut CpuTensor) {
        let n_out = w.quantized.len();
        let rows = out.output(x.n_rows(), n_out).chunks_exact_mut(n_out);
        for (row, out) in rows.enumerate() {
            match &w.order {
                None => w.multiply(x.row(row), out),
                Some(order) => {
                    let x: Vec<f32> = order.iter().map(|&at| x.row(row)[at as usize]).collect();
                    w.multiply(&x, out);
                }
            }
        }
    }

    fn route(&mut self, logits: &CpuTensor, routing: &Routing<'_, CpuTensor>, routes: &mut ReferenceRoutes) {
        routes.choose(logits, routing);
    }

    fn expert_matmul(
        &mut self,
        experts: &Vec<ReferenceLinear>,
        input: ExpertInput<'_, CpuTensor>,
        routes: &ReferenceRoutes,
        out: &mut CpuTensor,
    ) {
        routes.multiply(experts, input, out);
    }

    fn combine(
        &mut self,
        x: &CpuTensor,
        routes: &ReferenceRoutes,
        shared: Option<SharedExpert<'_, CpuTensor>>,
        out: &mut CpuTensor,
    ) {
        routes.combine(x, shared, out);
    }

    fn rope_store(
        &mut self,
        qkv: &mut CpuTensor,
        rope: Option<&RopeTable>,
        store: &RopeStore<'_, CpuTensor>,
        batch: &ReferenceBatch,
        kv: &mut ReferenceKv,
    ) {
        let HeadLayout {
            n_heads,
            n_kv_heads,
            head_dim,
        } = store.heads;
        let width = store.heads.qkv_width();
        assert_eq!(qkv.width(), width, "width of a qkv row");
        for (row, qkv) in qkv.values_mut().chunks_exact_mut(width).enumerate() {
            let (page_size, slot) = (kv.shape.page_size, batch.slots[row] as usize);
            if let Some(norm) = &store.qk_norm {
                normalize_heads(qkv, store.heads, norm);
            }
            for (head_idx, head) in qkv.chunks_exact_mut(head_dim).enumerate() {
                if head_idx < n_heads + n_kv_heads
                    && let Some(rope) = rope
                {
                    rotate(head, rope, batch.positions[row] as usize);
                }
                if head_idx >= n_heads {
                    let kv_head = (head_idx - n_heads) % n_kv_heads;
                    let page = (slot / page_size) as u32;
                    let at = kv.token(store.layer, kv_head, page, slot % page_size);
                    let is_key = head_idx < n_heads + n_kv_heads;
                    let target = if is_key { &mut kv.keys } else { &mut kv.values };
                    for (target, &value) in target[at..].iter_mut().zip(&*head) {
                        *target = f32_from_bf16(bf16_from_f32(value));
                    }
                }
            }
        }
    }

    fn attention(
        &mut self,
        qkv: &CpuTensor,
        kv: &ReferenceKv,
        AttentionLayer { layer, spec, sinks }: AttentionLayer<'_, CpuTensor>,
        batch: &ReferenceBatch,
        out: &mut CpuTensor,
    ) {
        let heads = batch.shape.heads;
        let (n_heads, head_dim) = (heads.n_heads, heads.head_dim);
        let group = n_heads / heads.n_kv_heads;
        let width = n_heads * head_dim;
        let out = out.output(batch.rows.len(), width);
        for (row, (pages, limit)) in batch.rows.iter().enumerate() {
            for head in 0..n_heads {
                let query = &qkv.row(row)[head * head_dim..][..head_dim];
                let page_size = kv.shape.page_size;
                let first = spec.window.map_or(0, |window| limit.saturating_sub(window));
                let starts: Vec<usize> = (first..*limit)
                    .map(|t| kv.token(layer, head / group, pages[t / page_size], t % page_size))
                    .collect();
                let dot = |&start: &usize| {
                    let products = query.iter().zip(&kv.keys[start..]);
                    let score =
                        products.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() * spec.scale;
                    let capped = |cap: f64| cap * (score / cap).tanh();
                    spec.soft_cap.map_or(score, |cap| capped(f64::from(cap)))
                };
                let scores: Vec<f64> = starts.iter().map(dot).collect();
                let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks.vector(n_heads)[head]));
                let largest = scores.iter().copied().fold(sink, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum::<f64>() + (sink - largest).exp();
                for i in 0..head_dim {
                    let terms = starts.iter().zip(&weights);
                    let sum: f64 = terms.map(|(start, w)| w * f64::from(kv.values[start + i])).sum();
                    out[row * width + head * head_dim + i] = (sum / total) as f32;
                }
            }
        }
    }

    fn gated(&mut self, x: &CpuTensor, activation: Activation, out: &mut CpuTensor) {
        let n = x.width() / 2;
        let rows = out.output(x.n_rows(), n).chunks_exact_mut(n);
        for (row, out) in rows.enumerate() {
            let (gate, up) = x.row(row).split_at(n);
            for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                let (gate, mut up) = (f64::from(gate), f64::from(up));
                if activation == Activation::ClampedSwish {
                    let limit = f64::from(Activation::CLAMPED_SWISH_LIMIT);
                    up = up.clamp(-limit, limit) + 1.0;
                }
                *out = (activated(gate, activation) * up) as f32;
            }
        }
    }

    fn gather(&mut self, x: &CpuTensor, batch: &ReferenceBatch, out: &mut CpuTensor) {
        let (width, rows) = (x.width(), &batch.logit_rows);
        let out = out.output(rows.len(), width).chunks_exact_mut(width);
        for (&row, out) in rows.iter().zip(out) {
            out.copy_from_slice(x.row(row as usize));
        }
    }

    fn sample(
        &mut self,
        logits: &CpuTensor,
        rows: &[SampleRow<'_>],
        wanted: &[LogprobRow],
        pending: &mut Answers,
    ) {
        assert_eq!(logits.n_rows(), rows.len(), "a sample row for each row of logits");
        let rows = rows.iter().enumerate();
        pending.tokens = rows.map(|(idx, row)| sampled(logits.row(idx), row)).collect();
        let tokens = &pending.tokens;
        let of = |asked: &LogprobRow| {
            let token = asked.token.token(tokens[asked.row])?;
            logprobs(logits.row(asked.row), asked, token)
        };
        pending.logprobs = wanted.iter().map(of).collect();
    }

    fn collect(&mut self, pending: &mut Answers, answers: &mut Answers) {
        *answers = std::mem::take(pending);
    }

    fn copy_page(&mut self, kv: &mut ReferenceKv, from: u32, to: u32) {
        for layer in 0..kv.shape.n_layers {
            let (from, to) = (kv.page(layer, from), kv.page(layer, to).start);
            kv.keys.copy_within(from.clone(), to);
            kv.values.copy_within(from, to);
        }
    }

    fn poison_page(&mut self, kv: &mut ReferenceKv, page: u32) {
        for layer in 0..kv.shape.n_layers {
            let page = kv.page(layer, page);
            kv.keys[page.clone()].fill(f32::NAN);
            kv.values[page].fill(f32::NAN);
        }
    }
}
