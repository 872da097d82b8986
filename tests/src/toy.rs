//! A backend whose activations are hashes.
//!
//! ```text
//! embed        x = hash(id)
//! route        two experts of three, by the hash of the logits
//! rope_store   kv[layer][slot] = hash(qkv, position)
//! attention    fold of the hashes read back through the page table, up to the row's limit
//! sample       token = hash(logits, noise) mod vocabulary
//! ```
//!
//! Calls are queued and computed on a device's memory of its own, in their order: at once, or late, some of
//! the queue at any call and the rest when the answers are waited for. What the device reads is what it was
//! given, whatever the host does with its own memory meanwhile.
//!
//! With two layers the second layer's keys depend on everything before them, as in a real model. So a wrong
//! page, a wrong limit, a wrong position or a stale page changes the text; a page that was given back is
//! poisoned, and reading it panics.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arbora_kernels::{
    Activation, Adjustment, Allowed, Answers, AttentionLayer, AttentionSpec, Backend, BackendError,
    BatchShape, Elementwise, ExpertInput, HeadLayout, KvShape, LogprobRow, MatrixSource, Norm, NormKind,
    RopeStore, RopeStyle, RopeTable, RouterScore, RoutesShape, Routing, RowLogprobs, SampleRow, SequenceRows,
    SharedExpert, StepRows, TokenLogprob,
};
use arbora_runtime::model::config::{
    Biases, DecoderConfig, ExpertsConfig, LayerConfig, MlpKind, NormConfig, NormPlacement, RopeConfig,
    RopeScaling, Scales,
};
use arbora_runtime::model::decoder::{
    Decoder, DecoderWeights, ForwardLimits, HalfWeights, LayerWeights, NormWeights,
};
use arbora_runtime::model::mlp::{ExpertWeights, GatedWeights, MlpWeights};
use arbora_runtime::model::names::{Naming, TensorNames};

use crate::random::{Random, mix};

/// Layers of the toy model.
pub const N_LAYERS: usize = 2;

/// Tokens in its vocabulary, unless it is given another.
pub const N_VOCAB: usize = 48;

/// What an empty fold starts from.
pub const FOLD_START: u64 = 0x1234_5678;

const POISON: u64 = u64::MAX;

/// The hashes that stand for weights.
pub mod weight {
    /// Embedding.
    pub const EMBEDDING: u64 = 1;
    /// Norm before attention.
    pub const ATTENTION_NORM: u64 = 2;
    /// Fused query, key, value.
    pub const QKV: u64 = 3;
    /// Attention output.
    pub const ATTENTION_OUT: u64 = 4;
    /// Norm before the MLP.
    pub const FFN_NORM: u64 = 5;
    /// Gate and up.
    pub const GATE_UP: u64 = 6;
    /// Between gate/up and down.
    pub const SILU: u64 = 7;
    /// Down.
    pub const DOWN: u64 = 8;
    /// Norm before the head.
    pub const FINAL_NORM: u64 = 9;
    /// Head.
    pub const HEAD: u64 = 10;
    /// Router of the second layer.
    pub const ROUTER: u64 = 11;
    /// Gate and up of its experts.
    pub const EXPERT_GATE_UP: [u64; 3] = [12, 13, 14];
    /// Down of its experts.
    pub const EXPERT_DOWN: [u64; 3] = [15, 16, 17];
}

/// Experts of a row of the second layer: those it chose, in order.
pub fn toy_choices(logits: u64) -> [usize; 2] {
    let n = weight::EXPERT_DOWN.len() as u64;
    let first = logits % n;
    let second = (first + 1 + logits / n % (n - 1)) % n;
    [first as usize, second as usize]
}

/// What the outputs of a row's experts become.
pub fn toy_combine(outputs: [u64; 2]) -> u64 {
    mix(outputs[0], outputs[1])
}

/// Rows of one hash each, in the device's memory.
#[derive(Debug)]
pub struct ToyTensor {
    idx: usize,
    width: usize,
}

/// A weight matrix: its hash.
#[derive(Clone, Copy, Debug)]
pub struct ToyLinear(pub u64);

/// Experts that rows chose, in the device's memory.
#[derive(Debug)]
pub struct ToyRoutes {
    idx: usize,
}

/// Row and expert of each slot.
type Slots = Vec<(usize, usize)>;

/// Hashes of keys and values, in the device's memory.
#[derive(Debug)]
pub struct ToyKv {
    idx: usize,
}

/// Index arrays of a step, in the device's memory.
#[derive(Debug)]
pub struct ToyBatch {
    idx: usize,
    shape: BatchShape,
}

/// Answers of a step, in the device's memory.
#[derive(Debug)]
pub struct ToyPending {
    idx: usize,
}

/// What a step's rows are.
#[derive(Clone, Debug, Default)]
struct Rows {
    ids: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    logit_rows: Vec<u32>,
    sequences: Vec<SequenceRows>,
    page_tables: Vec<u32>,
}

#[derive(Debug)]
struct Pool {
    shape: KvShape,
    slots: Vec<u64>,
}

impl Pool {
    /// Slots of a page.
    fn page(&self, layer: usize, page: u32) -> Range<usize> {
        let KvShape {
            n_pages, page_size, ..
        } = self.shape;
        let first = (layer * n_pages + page as usize) * page_size;
        first..first + page_size
    }

    fn slot(&mut self, layer: usize, slot: usize) -> &mut u64 {
        &mut self.slots[layer * self.shape.n_pages * self.shape.page_size + slot]
    }
}

/// Memory of the device and what it counts.
struct Device {
    tensors: Vec<Vec<u64>>,
    /// Choices of each row, and slots.
    routes: Vec<(Vec<[usize; 2]>, Slots)>,
    pools: Vec<Pool>,
    batches: Vec<Rows>,
    answers: Vec<Answers>,
    fuse: Fuse,
    n_rows: Arc<AtomicU64>,
}

impl Device {
    fn tensor(&mut self, rows: Vec<u64>) -> usize {
        self.tensors.push(rows);
        self.tensors.len() - 1
    }

    /// `out[r] = of(x[r])`.
    fn map(&mut self, x: usize, out: usize, of: impl Fn(u64) -> u64) {
        self.tensors[out] = self.tensors[x].iter().map(|&x| of(x)).collect();
    }
}

type Op = Box<dyn FnOnce(&mut Device) + Send>;

/// Makes the toy panic in its n-th call from now.
#[derive(Clone, Debug)]
pub struct Fuse(Arc<AtomicU64>);

impl Fuse {
    const OUT: u64 = 0;

    /// Panics in the `n`-th call from now, counted from 1.
    pub fn light(&self, n: u64) {
        self.0.store(n, Ordering::SeqCst);
    }

    /// Whether it went off, or was never lit.
    pub fn is_out(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Self::OUT
    }

    fn burn(&self, call: &str) {
        let left = self.0.load(Ordering::SeqCst);
        if left == Self::OUT {
            return;
        }
        self.0.store(left - 1, Ordering::SeqCst);
        assert!(left != 1, "injected panic in {call}");
    }
}

/// The backend.
pub struct ToyBackend {
    device: Device,
    queue: VecDeque<Op>,
    /// Decides how late calls are computed; absent where they are at once.
    lateness: Option<Random>,
    is_lost: Arc<AtomicBool>,
    n_vocab: usize,
    /// Rows whose hash is a multiple of it have no finite logit; 0 is never.
    not_finite_one_in: u64,
}

impl ToyBackend {
    /// A backend that computes at once, and the fuse that makes it fail.
    pub fn new(not_finite_one_in: u64) -> (Self, Fuse) {
        let fuse = Fuse(Arc::new(AtomicU64::new(Fuse::OUT)));
        let device = Device {
            tensors: Vec::new(),
            routes: Vec::new(),
            pools: Vec::new(),
            batches: Vec::new(),
            answers: Vec::new(),
            fuse: fuse.clone(),
            n_rows: Arc::default(),
        };
        let backend = ToyBackend {
            device,
            queue: VecDeque::new(),
            lateness: None,
            is_lost: Arc::default(),
            n_vocab: N_VOCAB,
            not_finite_one_in,
        };
        (backend, fuse)
    }

    /// Computes late, at times drawn from `seed`.
    #[must_use]
    pub fn late(self, seed: u64) -> Self {
        ToyBackend {
            lateness: Some(Random::new(seed)),
            ..self
        }
    }

    /// Counts the rows it computes.
    pub fn n_rows(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.device.n_rows)
    }

    /// Set to lose the device.
    pub fn loss(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_lost)
    }

    /// The same with a vocabulary of `n_vocab` tokens.
    #[must_use]
    pub fn with_vocabulary(self, n_vocab: usize) -> Self {
        ToyBackend { n_vocab, ..self }
    }

    fn queue(&mut self, call: &'static str, op: impl FnOnce(&mut Device) + Send + 'static) {
        self.queue.push_back(Box::new(move |device| {
            device.fuse.burn(call);
            op(device);
        }));
        self.progress();
    }

    /// The device goes on for a while.
    fn progress(&mut self) {
        let n_due = match &mut self.lateness {
            None => self.queue.len(),
            Some(random) => match random.one_in(4) {
                true => random.below(self.queue.len() + 1),
                false => 0,
            },
        };
        self.run(n_due);
    }

    fn run(&mut self, n: usize) {
        for _ in 0..n {
            let op = self.queue.pop_front().expect("no more than are queued");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| op(&mut self.device))) {
                // What was to follow has nothing to work on.
                self.queue.clear();
                resume_unwind(panic);
            }
        }
    }

    /// The toy model.
    pub fn decoder(&mut self, context: usize, limits: ForwardLimits) -> Decoder<Self> {
        let layer = |mlp| LayerConfig {
            attention: AttentionSpec::full(2),
            rope: Some(0),
            mlp,
            activation: Activation::Silu,
            norms: NormPlacement::Before,
        };
        let config = DecoderConfig {
            layers: [MlpKind::Gated, MlpKind::Experts].map(layer).into(),
            width: 1,
            heads: HeadLayout {
                n_heads: 1,
                n_kv_heads: 1,
                head_dim: 2,
            },
            ffn_width: 1,
            experts: Some(ExpertsConfig {
                n_experts: weight::EXPERT_DOWN.len(),
                n_used: 2,
                width: 1,
                score: RouterScore::Softmax,
                has_choice_bias: false,
                is_normalized: true,
                scale: 1.0,
                has_bias: false,
                shared_width: None,
                has_shared_gate: false,
            }),
            n_vocab: self.n_vocab,
            context,
            window: None,
            norm: NormConfig {
                kind: NormKind::Rms,
                eps: 0.0,
                has_bias: false,
                offset: 0.0,
            },
            ropes: vec![RopeConfig {
                style: RopeStyle::Halves,
                dim: 2,
                base: 1.0,
                scaling: RopeScaling::None,
                attention_factor: 1.0,
            }],
            biases: Biases::default(),
            has_sinks: false,
            qk_norm: None,
            scales: Scales::NONE,
            tied_head: false,
            tensors: TensorNames::plain(Naming::Gguf),
        };
        let mut norm = |hash| NormWeights {
            weight: ToyTensor {
                idx: self.device.tensor(vec![hash]),
                width: 1,
            },
            bias: None,
        };
        let mut layer = |mlp| LayerWeights {
            qkv: ToyLinear(weight::QKV),
            qk_norm: None,
            sinks: None,
            attention_out: ToyLinear(weight::ATTENTION_OUT),
            attention: HalfWeights {
                norm: Some(norm(weight::ATTENTION_NORM)),
                post_norm: None,
            },
            mlp,
            ffn: HalfWeights {
                norm: Some(norm(weight::FFN_NORM)),
                post_norm: None,
            },
        };
        let gated = MlpWeights::Gated(GatedWeights {
            gate_up: ToyLinear(weight::GATE_UP),
            down: ToyLinear(weight::DOWN),
        });
        let experts = MlpWeights::Experts(ExpertWeights {
            router: ToyLinear(weight::ROUTER),
            choice_bias: None,
            gate_up: weight::EXPERT_GATE_UP.map(ToyLinear).into(),
            down: weight::EXPERT_DOWN.map(ToyLinear).into(),
            shared: None,
        });
        let layers = vec![layer(gated), layer(experts)];
        let weights = DecoderWeights {
            embedding: ToyLinear(weight::EMBEDDING),
            layers,
            final_norm: norm(weight::FINAL_NORM),
            head: Some(ToyLinear(weight::HEAD)),
            ropes: vec![()],
        };
        Decoder::new(self, config, weights, limits).expect("the toy allocates nothing")
    }
}

/// The token of [`N_VOCAB`] a row of logits gives, or `None` where it has no finite logit or no token is
/// allowed.
pub fn toy_sample(logits: u64, row: &SampleRow<'_>, not_finite_one_in: u64) -> Option<u32> {
    sample_of(N_VOCAB, logits, row, not_finite_one_in)
}

fn sample_of(n_vocab: usize, logits: u64, row: &SampleRow<'_>, not_finite_one_in: u64) -> Option<u32> {
    if not_finite_one_in > 0 && logits.is_multiple_of(not_finite_one_in) {
        return None;
    }
    let drawn = if row.temperature == 0.0 {
        mix(logits, 0)
    } else {
        mix(logits, row.noise)
    };
    // Whatever is adjusted changes the draw.
    let drawn = row.adjustments.iter().fold(drawn, |drawn, adjustment| {
        let change = u64::from(adjustment.divisor.to_bits()) << 32 | u64::from(adjustment.shift.to_bits());
        mix(drawn, mix(u64::from(adjustment.token), change))
    });
    let is_out = |id: &u32| {
        let of_token = row.adjustments.iter().find(|adjustment| adjustment.token == *id);
        of_token.is_some_and(|adjustment| adjustment.shift == f32::NEG_INFINITY)
    };
    let is_allowed = |id: &u32| match row.allowed {
        _ if is_out(id) => false,
        Allowed::All => true,
        Allowed::Ids(ids) => ids.contains(id),
        Allowed::Bits(words) => words[*id as usize / 64] >> (id % 64) & 1 == 1,
    };
    let ids = || (0..n_vocab as u32).filter(is_allowed);
    let idx = drawn.checked_rem(ids().count() as u64)?;
    ids().nth(idx as usize)
}

/// The log-probabilities that a row of logits is asked for: made up, but always the same.
pub fn toy_logprobs(
    logits: u64,
    (asked, token): (&LogprobRow, u32),
    not_finite_one_in: u64,
) -> Option<RowLogprobs> {
    if not_finite_one_in > 0 && logits.is_multiple_of(not_finite_one_in) {
        return None;
    }
    let of = |token: u32| TokenLogprob {
        token,
        logprob: -((mix(logits, u64::from(token)) % 1000) as f32) / 64.0,
        rank: (mix(logits, u64::from(token)) % N_VOCAB as u64) as u32 + 1,
    };
    Some(RowLogprobs {
        token: of(token),
        top: (0..asked.n_top as u32).map(of).collect(),
        listed: asked.listed.iter().map(|token| of(*token).logprob).collect(),
    })
}

/// A [`SampleRow`] that owns what it refers to.
struct OwnedRow {
    row: SampleRow<'static>,
    allowed: OwnedAllowed,
    adjustments: Vec<Adjustment>,
}

enum OwnedAllowed {
    All,
    Ids(Vec<u32>),
    Bits(Vec<u64>),
}

impl OwnedRow {
    fn new(row: &SampleRow<'_>) -> OwnedRow {
        OwnedRow {
            row: SampleRow {
                allowed: Allowed::All,
                adjustments: &[],
                ..*row
            },
            allowed: match row.allowed {
                Allowed::All => OwnedAllowed::All,
                Allowed::Ids(ids) => OwnedAllowed::Ids(ids.to_vec()),
                Allowed::Bits(words) => OwnedAllowed::Bits(words.to_vec()),
            },
            adjustments: row.adjustments.to_vec(),
        }
    }

    fn row(&self) -> SampleRow<'_> {
        SampleRow {
            allowed: match &self.allowed {
                OwnedAllowed::All => Allowed::All,
                OwnedAllowed::Ids(ids) => Allowed::Ids(ids),
                OwnedAllowed::Bits(words) => Allowed::Bits(words),
            },
            adjustments: &self.adjustments,
            ..self.row
        }
    }
}

impl Backend for ToyBackend {
    type Tensor = ToyTensor;
    type Linear = ToyLinear;
    type Experts = Vec<ToyLinear>;
    type Routes = ToyRoutes;
    type Kv = ToyKv;
    type Rope = ();
    type Batch = ToyBatch;
    type Pending = ToyPending;

    fn tensor(&mut self, capacity: usize, width: usize) -> Result<ToyTensor, BackendError> {
        let idx = self.device.tensor(Vec::with_capacity(capacity));
        Ok(ToyTensor { idx, width })
    }

    fn upload(&mut self, values: &[f32]) -> Result<ToyTensor, BackendError> {
        let hash = values
            .iter()
            .fold(0, |hash, value| mix(hash, u64::from(value.to_bits())));
        Ok(ToyTensor {
            idx: self.device.tensor(vec![hash]),
            width: values.len(),
        })
    }

    fn download(&mut self, _tensor: &ToyTensor, _out: &mut [f32]) {
        unreachable!("hashes are not floats");
    }

    fn linear(
        &mut self,
        parts: &[MatrixSource<'_>],
        _bias: Option<&[f32]>,
    ) -> Result<ToyLinear, BackendError> {
        let bytes = parts.iter().flat_map(|part| part.bytes);
        Ok(ToyLinear(bytes.fold(0, |hash, &byte| mix(hash, u64::from(byte)))))
    }

    fn experts(&mut self, linears: Vec<ToyLinear>) -> Result<Vec<ToyLinear>, BackendError> {
        Ok(linears)
    }

    fn routes(&mut self, _shape: RoutesShape) -> Result<ToyRoutes, BackendError> {
        self.device.routes.push(Default::default());
        Ok(ToyRoutes {
            idx: self.device.routes.len() - 1,
        })
    }

    fn kv(&mut self, shape: KvShape) -> Result<ToyKv, BackendError> {
        self.device.pools.push(Pool {
            shape,
            slots: vec![POISON; shape.n_layers * shape.n_pages * shape.page_size],
        });
        Ok(ToyKv {
            idx: self.device.pools.len() - 1,
        })
    }

    fn rope(&mut self, _table: RopeTable) -> Result<(), BackendError> {
        Ok(())
    }

    fn batch(&mut self, shape: BatchShape, _windows: &[Option<usize>]) -> Result<ToyBatch, BackendError> {
        self.device.batches.push(Rows::default());
        Ok(ToyBatch {
            idx: self.device.batches.len() - 1,
            shape,
        })
    }

    fn pending(&mut self, _max_logit_rows: usize) -> Result<ToyPending, BackendError> {
        self.device.answers.push(Answers::default());
        Ok(ToyPending {
            idx: self.device.answers.len() - 1,
        })
    }

    fn upload_batch(&mut self, rows: &StepRows<'_>, batch: &mut ToyBatch) {
        rows.check(&batch.shape);
        let idx = batch.idx;
        let rows = Rows {
            ids: rows.ids.to_vec(),
            positions: rows.positions.to_vec(),
            slots: rows.slots.to_vec(),
            logit_rows: rows.logit_rows.to_vec(),
            sequences: rows.sequences.to_vec(),
            page_tables: rows.page_tables.to_vec(),
        };
        self.queue("upload_batch", move |device| device.batches[idx] = rows);
    }

    fn embed(&mut self, table: &ToyLinear, batch: &ToyBatch, out: &mut ToyTensor) {
        let (table, batch, out) = (*table, batch.idx, out.idx);
        self.queue("embed", move |device| {
            let ids = &device.batches[batch].ids;
            device.n_rows.fetch_add(ids.len() as u64, Ordering::SeqCst);
            device.tensors[out] = ids.iter().map(|&id| mix(table.0, u64::from(id))).collect();
        });
    }

    fn norm(&mut self, x: &ToyTensor, norm: &Norm<'_, ToyTensor>, out: &mut ToyTensor) {
        let (x, weight, out) = (x.idx, norm.weight.idx, out.idx);
        self.queue("norm", move |device| {
            let weight = device.tensors[weight][0];
            device.map(x, out, |x| mix(x, weight));
        });
    }

    fn add(&mut self, _residual: &mut ToyTensor, _delta: &ToyTensor) {
        unreachable!("the toy's layers add where they norm");
    }

    fn elementwise(&mut self, _x: &mut ToyTensor, _function: Elementwise) {
        unreachable!("the toy has no factors");
    }

    fn add_norm(
        &mut self,
        residual: &mut ToyTensor,
        delta: &ToyTensor,
        norm: &Norm<'_, ToyTensor>,
        out: &mut ToyTensor,
    ) {
        let (residual, delta, weight, out) = (residual.idx, delta.idx, norm.weight.idx, out.idx);
        self.queue("add_norm", move |device| {
            let weight = device.tensors[weight][0];
            let (x, delta) = (&device.tensors[residual], &device.tensors[delta]);
            assert_eq!(x.len(), delta.len());
            let sums = x.iter().zip(delta).map(|(&x, &delta)| mix(x, delta));
            device.tensors[residual] = sums.collect();
            device.map(residual, out, |x| mix(x, weight));
        });
    }

    fn matmul(&mut self, w: &ToyLinear, x: &ToyTensor, out: &mut ToyTensor) {
        let (w, x, out) = (*w, x.idx, out.idx);
        self.queue("matmul", move |device| device.map(x, out, |x| mix(w.0, x)));
    }

    fn route(&mut self, logits: &ToyTensor, _routing: &Routing<'_, ToyTensor>, routes: &mut ToyRoutes) {
        let (logits, routes) = (logits.idx, routes.idx);
        self.queue("route", move |device| {
            let logits = &device.tensors[logits];
            let choices: Vec<[usize; 2]> = logits.iter().map(|&logits| toy_choices(logits)).collect();
            let rows = choices.iter().enumerate();
            let mut slots: Slots = rows
                .flat_map(|(row, experts)| experts.map(|expert| (row, expert)))
                .collect();
            slots.sort_by_key(|&(row, expert)| (expert, row));
            device.routes[routes] = (choices, slots);
        });
    }

    fn expert_matmul(
        &mut self,
        experts: &Vec<ToyLinear>,
        input: ExpertInput<'_, ToyTensor>,
        routes: &ToyRoutes,
        out: &mut ToyTensor,
    ) {
        let (x, is_by_row) = match input {
            ExpertInput::Rows(x) => (x.idx, true),
            ExpertInput::Slots(x) => (x.idx, false),
        };
        let (experts, routes, out) = (experts.clone(), routes.idx, out.idx);
        self.queue("expert_matmul", move |device| {
            let (x, (_, slots)) = (&device.tensors[x], &device.routes[routes]);
            let of = |(slot, &(row, expert)): (usize, &(usize, usize))| {
                mix(experts[expert].0, x[if is_by_row { row } else { slot }])
            };
            device.tensors[out] = slots.iter().enumerate().map(of).collect();
        });
    }

    fn combine(
        &mut self,
        x: &ToyTensor,
        routes: &ToyRoutes,
        shared: Option<SharedExpert<'_, ToyTensor>>,
        out: &mut ToyTensor,
    ) {
        assert!(shared.is_none(), "the toy has no expert of all rows");
        let (x, routes, out) = (x.idx, routes.idx, out.idx);
        self.queue("combine", move |device| {
            let (x, (choices, slots)) = (&device.tensors[x], &device.routes[routes]);
            let of = |(row, experts): (usize, &[usize; 2])| {
                let slot = |expert| slots.iter().position(|slot| *slot == (row, expert));
                toy_combine(experts.map(|expert| x[slot(expert).expect("each choice has a slot")]))
            };
            device.tensors[out] = choices.iter().enumerate().map(of).collect();
        });
    }

    fn rope_store(
        &mut self,
        qkv: &mut ToyTensor,
        _rope: Option<&()>,
        store: &RopeStore<'_, ToyTensor>,
        batch: &ToyBatch,
        kv: &mut ToyKv,
    ) {
        let (qkv, layer, batch, kv) = (qkv.idx, store.layer, batch.idx, kv.idx);
        self.queue("rope_store", move |device| {
            let rows = &device.batches[batch];
            let qkv = &device.tensors[qkv];
            assert_eq!(rows.slots.len(), qkv.len());
            for (row, (&slot, &position)) in rows.slots.iter().zip(&rows.positions).enumerate() {
                *device.pools[kv].slot(layer, slot as usize) = mix(qkv[row], u64::from(position));
            }
        });
    }

    fn attention(
        &mut self,
        qkv: &ToyTensor,
        kv: &ToyKv,
        AttentionLayer { layer, .. }: AttentionLayer<'_, ToyTensor>,
        batch: &ToyBatch,
        out: &mut ToyTensor,
    ) {
        let (qkv, kv, batch, out) = (qkv.idx, kv.idx, batch.idx, out.idx);
        self.queue("attention", move |device| {
            let (pool, batch, qkv) = (&device.pools[kv], &device.batches[batch], &device.tensors[qkv]);
            device.tensors[out] = attended(pool, layer, batch, qkv);
        });
    }

    fn gated(&mut self, x: &ToyTensor, _activation: Activation, out: &mut ToyTensor) {
        let (x, out) = (x.idx, out.idx);
        self.queue("gated", move |device| {
            device.map(x, out, |x| mix(weight::SILU, x));
        });
    }

    fn gather(&mut self, x: &ToyTensor, batch: &ToyBatch, out: &mut ToyTensor) {
        let (x, batch, out) = (x.idx, batch.idx, out.idx);
        self.queue("gather", move |device| {
            let (x, rows) = (&device.tensors[x], &device.batches[batch].logit_rows);
            device.tensors[out] = rows.iter().map(|&row| x[row as usize]).collect();
        });
    }

    fn sample(
        &mut self,
        logits: &ToyTensor,
        rows: &[SampleRow<'_>],
        wanted: &[LogprobRow],
        pending: &mut ToyPending,
    ) {
        assert_eq!(logits.width, self.n_vocab);
        let (n_vocab, one_in) = (self.n_vocab, self.not_finite_one_in);
        let (logits, pending) = (logits.idx, pending.idx);
        let rows: Vec<OwnedRow> = rows.iter().map(OwnedRow::new).collect();
        let wanted = wanted.to_vec();
        self.queue("sample", move |device| {
            let logits = &device.tensors[logits];
            assert_eq!(logits.len(), rows.len(), "one sample row per row of logits");
            let sampled = logits.iter().zip(&rows);
            let tokens: Vec<Option<u32>> = sampled
                .map(|(&logits, row)| sample_of(n_vocab, logits, &row.row(), one_in))
                .collect();
            let of = |asked: &LogprobRow| {
                let token = asked.token.token(tokens[asked.row])?;
                toy_logprobs(logits[asked.row], (asked, token), one_in)
            };
            let logprobs = wanted.iter().map(of).collect();
            device.answers[pending] = Answers { tokens, logprobs };
        });
    }

    fn is_done(&mut self, _pending: &ToyPending) -> bool {
        self.progress();
        self.queue.is_empty()
    }

    fn collect(&mut self, pending: &mut ToyPending, answers: &mut Answers) {
        self.run(self.queue.len());
        self.device.fuse.burn("collect");
        *answers = std::mem::take(&mut self.device.answers[pending.idx]);
    }

    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }

    fn copy_page(&mut self, kv: &mut ToyKv, from: u32, to: u32) {
        let kv = kv.idx;
        self.queue("copy_page", move |device| {
            let pool = &mut device.pools[kv];
            for layer in 0..pool.shape.n_layers {
                let (from, to) = (pool.page(layer, from), pool.page(layer, to));
                pool.slots.copy_within(from, to.start);
            }
        });
    }

    fn poison_page(&mut self, kv: &mut ToyKv, page: u32) {
        let kv = kv.idx;
        self.queue("poison_page", move |device| {
            let pool = &mut device.pools[kv];
            for layer in 0..pool.shape.n_layers {
                let page = pool.page(layer, page);
                pool.slots[page].fill(POISON);
            }
        });
    }
}

/// The fold of what each row sees, with its query.
fn attended(pool: &Pool, layer: usize, batch: &Rows, qkv: &[u64]) -> Vec<u64> {
    let page_size = pool.shape.page_size;
    let layer_start = layer * pool.shape.n_pages * page_size;
    let mut out = Vec::with_capacity(qkv.len());
    for rows in &batch.sequences {
        assert_eq!(rows.first_row, out.len(), "rows without gaps");
        let table = &batch.page_tables[rows.first_page..][..rows.n_pages];
        let mut fold = FOLD_START;
        for position in 0..rows.first_position + rows.n_rows {
            let slot = table[position / page_size] as usize * page_size + position % page_size;
            let stored = pool.slots[layer_start + slot];
            assert_ne!(stored, POISON, "slot {slot} holds nothing (position {position})");
            fold = mix(fold, stored);
            if position >= rows.first_position {
                let row = rows.first_row + position - rows.first_position;
                out.push(mix(fold, qkv[row]));
            }
        }
    }
    out
}
