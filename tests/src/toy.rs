//! A backend whose activations are hashes.
//!
//! ```text
//! embed        x = hash(id)
//! rope_store   kv[layer][slot] = hash(qkv, position)
//! attention    fold of the hashes read back through the page table, up to the row's limit
//! sample       token = hash(logits, noise) mod vocabulary
//! ```
//!
//! With two layers the second layer's keys depend on everything before them, as in a real model. So a wrong
//! page, a wrong limit, a wrong position or a stale page changes the text; a page that was given back is
//! poisoned, and reading it panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbora_kernels::{
    Allowed, AttentionRows, Backend, BackendError, HeadLayout, KvShape, LogprobRow, MatrixSource, RopeStore,
    RopeStyle, RopeTable, RowLogprobs, SampleRow, SequenceRows, TokenLogprob,
};
use arbora_runtime::model::config::{DecoderConfig, RopeConfig, RopeScaling};
use arbora_runtime::model::decoder::{Decoder, DecoderWeights, ForwardLimits, LayerWeights};

use crate::random::mix;

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
}

/// Rows of one hash each.
#[derive(Debug)]
pub struct ToyTensor {
    capacity: usize,
    width: usize,
    rows: Vec<u64>,
}

impl ToyTensor {
    fn set(&mut self, rows: impl Iterator<Item = u64>) {
        self.rows.clear();
        self.rows.extend(rows);
        assert!(self.rows.len() <= self.capacity, "{} rows", self.rows.len());
    }
}

/// A weight matrix: its hash.
#[derive(Clone, Copy, Debug)]
pub struct ToyLinear(pub u64);

/// Hashes of keys and values.
#[derive(Debug)]
pub struct ToyKv {
    shape: KvShape,
    slots: Vec<u64>,
}

impl ToyKv {
    fn slot(&mut self, layer: usize, slot: usize) -> &mut u64 {
        &mut self.slots[layer * self.shape.n_pages * self.shape.page_size + slot]
    }
}

/// A copy of what attention was told.
#[derive(Debug, Default)]
pub struct ToyPlan {
    sequences: Vec<SequenceRows>,
    page_tables: Vec<u32>,
}

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
#[derive(Debug)]
pub struct ToyBackend {
    fuse: Fuse,
    n_vocab: usize,
    /// Rows whose hash is a multiple of it have no finite logit; 0 is never.
    not_finite_one_in: u64,
    n_rows: Arc<AtomicU64>,
}

impl ToyBackend {
    /// A backend and the fuse that makes it fail.
    pub fn new(not_finite_one_in: u64) -> (Self, Fuse) {
        let fuse = Fuse(Arc::new(AtomicU64::new(Fuse::OUT)));
        let backend = ToyBackend {
            fuse: fuse.clone(),
            n_vocab: N_VOCAB,
            not_finite_one_in,
            n_rows: Arc::default(),
        };
        (backend, fuse)
    }

    /// Counts the rows it computes.
    pub fn n_rows(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.n_rows)
    }

    /// The same with a vocabulary of `n_vocab` tokens.
    #[must_use]
    pub fn with_vocabulary(self, n_vocab: usize) -> Self {
        ToyBackend { n_vocab, ..self }
    }

    /// The toy model.
    pub fn decoder(&mut self, context: usize, limits: ForwardLimits) -> Decoder<Self> {
        let config = DecoderConfig {
            n_layers: N_LAYERS,
            width: 1,
            heads: HeadLayout {
                n_heads: 1,
                n_kv_heads: 1,
                head_dim: 2,
            },
            ffn_width: 1,
            n_vocab: self.n_vocab,
            context,
            window: None,
            norm_eps: 0.0,
            rope: RopeConfig {
                style: RopeStyle::Halves,
                dim: 2,
                base: 1.0,
                scaling: RopeScaling::None,
            },
            qkv_bias: false,
            qk_norm: false,
            tied_head: false,
        };
        let norm = |hash| ToyTensor {
            capacity: 1,
            width: 1,
            rows: vec![hash],
        };
        let layer = |_| LayerWeights {
            attention_norm: norm(weight::ATTENTION_NORM),
            qkv: ToyLinear(weight::QKV),
            qk_norm: None,
            attention_out: ToyLinear(weight::ATTENTION_OUT),
            ffn_norm: norm(weight::FFN_NORM),
            gate_up: ToyLinear(weight::GATE_UP),
            down: ToyLinear(weight::DOWN),
        };
        let weights = DecoderWeights {
            embedding: ToyLinear(weight::EMBEDDING),
            layers: (0..N_LAYERS).map(layer).collect(),
            final_norm: norm(weight::FINAL_NORM),
            head: Some(ToyLinear(weight::HEAD)),
            rope: RopeTable {
                style: RopeStyle::Halves,
                rope_dim: 2,
                cos_sin: Vec::new(),
            },
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
pub fn toy_logprobs(logits: u64, asked: &LogprobRow, not_finite_one_in: u64) -> Option<RowLogprobs> {
    if not_finite_one_in > 0 && logits.is_multiple_of(not_finite_one_in) {
        return None;
    }
    let of = |token: u32| TokenLogprob {
        token,
        logprob: -((mix(logits, u64::from(token)) % 1000) as f32) / 64.0,
        rank: (mix(logits, u64::from(token)) % N_VOCAB as u64) as u32 + 1,
    };
    Some(RowLogprobs {
        token: of(asked.token),
        top: (0..asked.n_top as u32).map(of).collect(),
        listed: asked.listed.iter().map(|token| of(*token).logprob).collect(),
    })
}

impl Backend for ToyBackend {
    type Tensor = ToyTensor;
    type Linear = ToyLinear;
    type Kv = ToyKv;
    type AttentionPlan = ToyPlan;

    fn tensor(&mut self, capacity: usize, width: usize) -> Result<ToyTensor, BackendError> {
        Ok(ToyTensor {
            capacity,
            width,
            rows: Vec::with_capacity(capacity),
        })
    }

    fn upload(&mut self, values: &[f32]) -> Result<ToyTensor, BackendError> {
        let hash = values
            .iter()
            .fold(0, |hash, value| mix(hash, u64::from(value.to_bits())));
        Ok(ToyTensor {
            capacity: 1,
            width: values.len(),
            rows: vec![hash],
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

    fn kv(&mut self, shape: KvShape) -> Result<ToyKv, BackendError> {
        Ok(ToyKv {
            shape,
            slots: vec![POISON; shape.n_layers * shape.n_pages * shape.page_size],
        })
    }

    fn embed(&mut self, table: &ToyLinear, ids: &[u32], out: &mut ToyTensor) {
        self.fuse.burn("embed");
        self.n_rows.fetch_add(ids.len() as u64, Ordering::SeqCst);
        out.set(ids.iter().map(|&id| mix(table.0, u64::from(id))));
    }

    fn rms_norm(&mut self, x: &ToyTensor, weight: &ToyTensor, _eps: f32, out: &mut ToyTensor) {
        self.fuse.burn("rms_norm");
        out.set(x.rows.iter().map(|&x| mix(x, weight.rows[0])));
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut ToyTensor,
        delta: &ToyTensor,
        weight: &ToyTensor,
        _eps: f32,
        out: &mut ToyTensor,
    ) {
        self.fuse.burn("add_rms_norm");
        assert_eq!(residual.rows.len(), delta.rows.len());
        for (x, &delta) in residual.rows.iter_mut().zip(&delta.rows) {
            *x = mix(*x, delta);
        }
        out.set(residual.rows.iter().map(|&x| mix(x, weight.rows[0])));
    }

    fn matmul(&mut self, w: &ToyLinear, x: &ToyTensor, out: &mut ToyTensor) {
        self.fuse.burn("matmul");
        out.set(x.rows.iter().map(|&x| mix(w.0, x)));
    }

    fn rope_store(
        &mut self,
        qkv: &mut ToyTensor,
        _rope: &RopeTable,
        store: &RopeStore<'_, ToyTensor>,
        kv: &mut ToyKv,
    ) {
        self.fuse.burn("rope_store");
        assert_eq!(store.slots.len(), qkv.rows.len());
        for (row, (&slot, &position)) in store.slots.iter().zip(store.positions).enumerate() {
            *kv.slot(store.layer, slot as usize) = mix(qkv.rows[row], u64::from(position));
        }
    }

    fn plan_attention(
        &mut self,
        kv: &ToyKv,
        _heads: HeadLayout,
        rows: AttentionRows<'_>,
        plan: &mut ToyPlan,
    ) {
        self.fuse.burn("plan_attention");
        assert!(
            rows.page_tables
                .iter()
                .all(|&page| (page as usize) < kv.shape.n_pages)
        );
        plan.sequences.clear();
        plan.sequences.extend_from_slice(rows.sequences);
        plan.page_tables.clear();
        plan.page_tables.extend_from_slice(rows.page_tables);
    }

    fn attention(&mut self, qkv: &ToyTensor, kv: &ToyKv, layer: usize, plan: &ToyPlan, out: &mut ToyTensor) {
        self.fuse.burn("attention");
        let page_size = kv.shape.page_size;
        let layer_start = layer * kv.shape.n_pages * page_size;
        out.rows.clear();
        for rows in &plan.sequences {
            assert_eq!(rows.first_row, out.rows.len(), "rows without gaps");
            let table = &plan.page_tables[rows.first_page..][..rows.n_pages];
            let mut fold = FOLD_START;
            for position in 0..rows.first_position + rows.n_rows {
                let slot = table[position / page_size] as usize * page_size + position % page_size;
                let stored = kv.slots[layer_start + slot];
                assert_ne!(stored, POISON, "slot {slot} holds nothing (position {position})");
                fold = mix(fold, stored);
                if position >= rows.first_position {
                    let row = rows.first_row + position - rows.first_position;
                    out.rows.push(mix(fold, qkv.rows[row]));
                }
            }
        }
    }

    fn silu_mul(&mut self, x: &ToyTensor, out: &mut ToyTensor) {
        self.fuse.burn("silu_mul");
        out.set(x.rows.iter().map(|&x| mix(weight::SILU, x)));
    }

    fn gather(&mut self, x: &ToyTensor, rows: &[u32], out: &mut ToyTensor) {
        self.fuse.burn("gather");
        out.set(rows.iter().map(|&row| x.rows[row as usize]));
    }

    fn sample(&mut self, logits: &ToyTensor, rows: &[SampleRow<'_>], out: &mut Vec<Option<u32>>) {
        self.fuse.burn("sample");
        assert_eq!(logits.rows.len(), rows.len(), "one sample row per row of logits");
        assert_eq!(logits.width, self.n_vocab);
        out.clear();
        let sampled = logits.rows.iter().zip(rows);
        out.extend(
            sampled.map(|(&logits, row)| sample_of(self.n_vocab, logits, row, self.not_finite_one_in)),
        );
    }

    fn logprobs(&mut self, logits: &ToyTensor, rows: &[LogprobRow], out: &mut Vec<Option<RowLogprobs>>) {
        self.fuse.burn("logprobs");
        out.clear();
        let asked = rows.iter();
        out.extend(asked.map(|asked| toy_logprobs(logits.rows[asked.row], asked, self.not_finite_one_in)));
    }

    fn copy_page(&mut self, kv: &mut ToyKv, from: u32, to: u32) {
        self.fuse.burn("copy_page");
        for layer in 0..kv.shape.n_layers {
            for offset in 0..kv.shape.page_size {
                let copied = *kv.slot(layer, from as usize * kv.shape.page_size + offset);
                *kv.slot(layer, to as usize * kv.shape.page_size + offset) = copied;
            }
        }
    }

    fn poison_page(&mut self, kv: &mut ToyKv, page: u32) {
        self.fuse.burn("poison_page");
        for layer in 0..kv.shape.n_layers {
            for offset in 0..kv.shape.page_size {
                *kv.slot(layer, page as usize * kv.shape.page_size + offset) = POISON;
            }
        }
    }
}
