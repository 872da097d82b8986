//! A row of attention does not depend on anything but its query, its limit and the tokens below it: bit for
//! bit, whatever else is in the batch, who shares pages, how the work is cut, how many threads and which page
//! size. And it is close to attention in float64.

#[expect(dead_code, reason = "these tests need batches only")]
mod support;

use std::collections::HashMap;

use arbora_kernels::cpu::{CpuBackend, CpuBatch, CpuConfig, CpuKv, CpuTensor, Isa, Pinning};
use arbora_kernels::{
    AttentionLayer, AttentionSpec, Backend, HeadLayout, KvShape, RopeStore, RopeStyle, RopeTable,
    SequenceRows,
};
use support::Rows;

/// A hash as a source of random numbers: every element has its own, whatever the order of drawing.
fn hash(parts: &[u64]) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for part in parts {
        state = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    state
}

/// Nearly normal: the sum of four uniform parts of a hash, with mean 0 and variance 1.
fn normal(parts: &[u64]) -> f32 {
    let bits = hash(parts);
    let sum: u64 = (0..4).map(|part| bits >> (16 * part) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
}

const KEY: u64 = 1;
const VALUE: u64 = 2;
const QUERY: u64 = 3;
const SINK: u64 = 4;

/// Tokens of a sequence, and which of its last rows are queried.
#[derive(Clone, Debug)]
struct Sequence {
    /// What was written: equal leading tokens have equal keys and values.
    tokens: Vec<u64>,
    /// Rows whose attention is wanted: the last ones.
    n_rows: usize,
    /// Distinguishes the queries of sequences.
    name: u64,
}

impl Sequence {
    /// Tokens of several stretches of `(name, length)`, the last `n_rows` of them queried.
    fn new(name: u64, stretches: &[(u64, usize)], n_rows: usize) -> Sequence {
        let mut tokens = Vec::new();
        for (stretch, length) in stretches {
            tokens.extend((0..*length as u64).map(|i| hash(&[*stretch, i])));
        }
        assert!((1..=tokens.len()).contains(&n_rows));
        Sequence { tokens, n_rows, name }
    }

    fn first_position(&self) -> usize {
        self.tokens.len() - self.n_rows
    }

    /// The sequence as it was when position `last` was its end, `n_rows` queried.
    fn cut(&self, last: usize, n_rows: usize) -> Sequence {
        Sequence {
            tokens: self.tokens[..=last].to_vec(),
            n_rows,
            name: self.name,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    isa: Isa,
    heads: HeadLayout,
    page_size: usize,
    n_threads: usize,
    share_pages: bool,
    window: Option<usize>,
    soft_cap: Option<f32>,
    has_sinks: bool,
}

impl Setup {
    /// The score of a query head's sink, where there are sinks.
    fn sink(&self, head: usize) -> Option<f32> {
        self.has_sinks.then(|| 3.0 * normal(&[SINK, head as u64]))
    }

    /// The first token that a row at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn spec(&self) -> AttentionSpec {
        AttentionSpec {
            window: self.window,
            soft_cap: self.soft_cap,
            ..AttentionSpec::full(self.heads.head_dim)
        }
    }
}

/// Rows of all sequences as bits, from a pool that is NaN wherever nothing was written.
fn attend(setup: Setup, sequences: &[Sequence]) -> Vec<Vec<u32>> {
    let heads = setup.heads;
    let mut pool = Pool::new(setup, sequences);
    let tables: Vec<Vec<u32>> = sequences.iter().map(|sequence| pool.write(sequence)).collect();
    let mut rows = Vec::new();
    let mut page_tables = Vec::new();
    let mut qkv = Vec::new();
    let mut n_rows = 0;
    for (sequence, table) in sequences.iter().zip(&tables) {
        rows.push(SequenceRows {
            first_row: n_rows,
            n_rows: sequence.n_rows,
            first_position: sequence.first_position(),
            first_page: page_tables.len(),
            n_pages: table.len(),
        });
        page_tables.extend_from_slice(table);
        n_rows += sequence.n_rows;
        for position in sequence.first_position()..sequence.tokens.len() {
            let width = heads.qkv_width();
            // Keys and values of the batch's own tensor must not be looked at: they are NaN.
            let n_queries = heads.n_heads * heads.head_dim;
            qkv.extend((0..width).map(|i| match i {
                i if i < n_queries => 2.0 * normal(&[QUERY, sequence.name, position as u64, i as u64]),
                _ => f32::NAN,
            }));
        }
    }
    let width = heads.n_heads * heads.head_dim;
    let mut qkv_tensor = tensor(heads.qkv_width(), &qkv);
    let mut out = tensor(width, &vec![f32::NAN; n_rows * width]);
    let batch = Rows {
        sequences: rows,
        page_tables,
        ..Rows::zeros(n_rows)
    };
    let batch = batch.upload_for(&mut pool.backend, (heads, pool.shape), setup.window);
    for _ in 0..2 {
        pool.attend(&qkv_tensor, &batch, &mut out);
    }
    qkv_tensor.output(0, heads.qkv_width());
    let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect();
    out.values().chunks_exact(width).map(bits).collect()
}

fn tensor(width: usize, values: &[f32]) -> CpuTensor {
    let n_rows = values.len() / width;
    let mut tensor = CpuTensor::new(n_rows, width).expect("small tensors fit");
    tensor.output(n_rows, width).copy_from_slice(values);
    tensor
}

struct Pool {
    setup: Setup,
    backend: CpuBackend,
    shape: KvShape,
    kv: CpuKv,
    free: Vec<u32>,
    /// Page of everything up to its end.
    written: HashMap<Vec<u64>, u32>,
}

impl Pool {
    fn new(setup: Setup, sequences: &[Sequence]) -> Pool {
        let n_pages = sequences
            .iter()
            .map(|s| s.tokens.len().div_ceil(setup.page_size))
            .sum();
        let mut backend = CpuBackend::new(CpuConfig {
            n_threads: setup.n_threads,
            isa: Some(setup.isa),
            pinning: Pinning::Auto,
        })
        .expect("the machine has the instruction set");
        let shape = KvShape {
            n_layers: 3,
            n_kv_heads: setup.heads.n_kv_heads,
            head_dim: setup.heads.head_dim,
            page_size: setup.page_size,
            n_pages,
        };
        let mut kv = backend.kv(shape).expect("a small pool fits");
        for page in 0..n_pages as u32 {
            backend.poison_page(&mut kv, page);
        }
        let mut free: Vec<u32> = (0..n_pages as u32).collect();
        free.sort_by_key(|page| hash(&[77, u64::from(*page)]));
        Pool {
            setup,
            backend,
            shape,
            kv,
            free,
            written: HashMap::new(),
        }
    }

    fn attend(&mut self, qkv: &CpuTensor, batch: &CpuBatch, out: &mut CpuTensor) {
        let spec = self.setup.spec();
        let sinks: Option<Vec<f32>> = (0..self.setup.heads.n_heads)
            .map(|head| self.setup.sink(head))
            .collect();
        let sinks = sinks.map(|sinks| tensor(sinks.len(), &sinks));
        let layer = AttentionLayer {
            layer: 1,
            spec: &spec,
            sinks: sinks.as_ref(),
        };
        self.backend.attention(qkv, &self.kv, layer, batch, out);
    }

    /// Writes a sequence's keys and values and gives its page table.
    fn write(&mut self, sequence: &Sequence) -> Vec<u32> {
        let page_size = self.setup.page_size;
        let mut table = Vec::new();
        for first in (0..sequence.tokens.len()).step_by(page_size) {
            let end = sequence.tokens.len().min(first + page_size);
            let whole = end == first + page_size;
            let prefix = sequence.tokens[..end].to_vec();
            let known = self
                .written
                .get(&prefix)
                .filter(|_| self.setup.share_pages && whole);
            if let Some(page) = known {
                table.push(*page);
                continue;
            }
            let page = self
                .free
                .pop()
                .expect("the pool holds all sequences without sharing");
            if end <= self.setup.first_seen(sequence.first_position()) {
                // Before every row's window: it stays NaN.
                table.push(page);
                continue;
            }
            self.write_page(page, &sequence.tokens[first..end]);
            self.written.insert(prefix, page);
            table.push(page);
        }
        table
    }

    fn write_page(&mut self, page: u32, tokens: &[u64]) {
        let heads = self.setup.heads;
        let mut rows = vec![f32::NAN; tokens.len() * heads.qkv_width()];
        for (row, token) in rows.chunks_exact_mut(heads.qkv_width()).zip(tokens) {
            let (_, kv) = row.split_at_mut(heads.n_heads * heads.head_dim);
            let (keys, values) = kv.split_at_mut(heads.n_kv_heads * heads.head_dim);
            for i in 0..keys.len() {
                keys[i] = normal(&[KEY, *token, i as u64]);
                values[i] = normal(&[VALUE, *token, i as u64]);
            }
        }
        let first = page * self.setup.page_size as u32;
        let slots: Vec<u32> = (first..).take(tokens.len()).collect();
        let store = RopeStore {
            heads,
            layer: 1,
            qk_norm: None,
        };
        let unrotated = RopeTable {
            style: RopeStyle::Halves,
            rope_dim: 2,
            cos_sin: vec![1.0, 0.0],
        };
        let mut qkv = tensor(heads.qkv_width(), &rows);
        let rows = Rows {
            slots,
            ..Rows::zeros(tokens.len())
        };
        let batch = rows.upload(&mut self.backend, (heads, self.shape));
        self.backend
            .rope_store(&mut qkv, Some(&unrotated), &store, &batch, &mut self.kv);
    }
}

/// The rows of `sequences`, each computed alone from a pool that holds nothing but the tokens it sees.
fn alone(setup: Setup, sequences: &[Sequence]) -> Vec<Vec<u32>> {
    let setup = Setup {
        n_threads: 1,
        ..setup
    };
    let mut rows = Vec::new();
    for sequence in sequences {
        for position in sequence.first_position()..sequence.tokens.len() {
            rows.extend(attend(setup, &[sequence.cut(position, 1)]));
        }
    }
    let finite = |row: &Vec<u32>| row.iter().all(|bits| f32::from_bits(*bits).is_finite());
    assert!(rows.iter().all(finite), "nothing beyond a limit is read");
    rows
}

/// Decode, prefill and verify rows; a system prompt shared by most, more of it by some.
fn crowd() -> Vec<Sequence> {
    vec![
        Sequence::new(1, &[(1, 400), (11, 1)], 1),
        Sequence::new(2, &[(1, 400), (2, 200), (12, 15)], 1),
        Sequence::new(3, &[(2, 130), (3, 3)], 1),
        Sequence::new(4, &[(1, 400), (2, 200), (14, 63)], 1),
        Sequence::new(5, &[(1, 400), (2, 200), (15, 64)], 5),
        Sequence::new(6, &[(5, 1)], 1),
        Sequence::new(7, &[(1, 300), (16, 90)], 75),
        Sequence::new(8, &[(6, 66)], 66),
        Sequence::new(9, &[(1, 400), (2, 200), (14, 62), (19, 1)], 1),
        Sequence::new(10, &[(1, 400)], 2),
        Sequence::new(11, &[(20, 700)], 3),
        Sequence::new(12, &[(2, 130), (3, 2)], 1),
    ]
}

fn heads(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> HeadLayout {
    HeadLayout {
        n_heads,
        n_kv_heads,
        head_dim,
    }
}

/// Every instruction set of the machine with a head layout, with and without a window, a soft cap and sinks:
/// group sizes and head dimensions of all kernels.
fn setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for isa in Isa::available() {
        for heads in [
            heads(6, 2, 64),
            heads(2, 2, 128),
            heads(5, 1, 80),
            heads(4, 2, 16),
            heads(3, 1, 6),
        ] {
            for (window, soft_cap, has_sinks) in [
                (None, None, false),
                (Some(100), None, false),
                (None, Some(2.5), false),
                (None, None, true),
            ] {
                setups.push(Setup {
                    isa,
                    heads,
                    page_size: 16,
                    n_threads: 1,
                    share_pages: true,
                    window,
                    soft_cap,
                    has_sinks,
                });
            }
        }
    }
    setups
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_crowd() {
    let all = crowd();
    for setup in setups() {
        let expected = alone(setup, &all);
        for page_size in [16, 32, 64] {
            for n_threads in 1..=4 {
                for share_pages in [true, false] {
                    let setup = Setup {
                        page_size,
                        n_threads,
                        share_pages,
                        ..setup
                    };
                    let together = attend(setup, &all);
                    for (row, bits) in together.iter().enumerate() {
                        assert_eq!(*bits, expected[row], "row {row} of {setup:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_subset_and_order() {
    let all = crowd();
    for setup in setups() {
        let expected: Vec<Vec<Vec<u32>>> = all
            .iter()
            .map(|sequence| alone(setup, std::slice::from_ref(sequence)))
            .collect();
        for seed in 0..12 {
            let mut chosen: Vec<usize> = (0..all.len()).collect();
            chosen.sort_by_key(|sequence| hash(&[seed, *sequence as u64]));
            chosen.truncate(1 + hash(&[seed]) as usize % all.len());
            let setup = Setup {
                n_threads: 1 + seed as usize % 3,
                page_size: [16, 32, 64][seed as usize % 3],
                ..setup
            };
            let sequences: Vec<Sequence> = chosen.iter().map(|i| all[*i].clone()).collect();
            let together = attend(setup, &sequences);
            let expected: Vec<&Vec<u32>> = chosen.iter().flat_map(|i| &expected[*i]).collect();
            for (row, (bits, expected)) in together.iter().zip(expected).enumerate() {
                assert_eq!(bits, expected, "row {row} of {chosen:?} seed {seed} {setup:?}");
            }
        }
    }
}

#[test]
fn a_prefill_has_the_same_bits_in_any_chunks() {
    let whole = Sequence::new(1, &[(1, 210)], 210);
    for setup in setups() {
        let expected = attend(setup, std::slice::from_ref(&whole));
        for chunk in [1, 7, 16, 64, 100] {
            let mut rows = Vec::new();
            for first in (0..210).step_by(chunk) {
                let last = 209.min(first + chunk - 1);
                let part = whole.cut(last, last - first + 1);
                let setup = Setup {
                    n_threads: 1 + chunk % 3,
                    ..setup
                };
                rows.extend(attend(setup, &[part]));
            }
            assert_eq!(rows, expected, "chunks of {chunk}, {setup:?}");
        }
    }
}

#[test]
fn a_long_row_that_is_split_over_threads_has_the_same_bits() {
    for setup in setups() {
        for (n_tokens, n_rows) in [(1500, 1), (1537, 4), (3000, 1), (640, 2)] {
            let sequence = [Sequence::new(1, &[(1, n_tokens)], n_rows)];
            let expected = attend(setup, &sequence);
            for n_threads in 2..=4 {
                let setup = Setup { n_threads, ..setup };
                assert_eq!(attend(setup, &sequence), expected, "{n_tokens} tokens, {setup:?}");
            }
        }
    }
}

/// Attention of one row in float64 over keys and values as the pool stores them.
fn exact(setup: Setup, sequence: &Sequence, position: usize) -> Vec<f64> {
    let heads = setup.heads;
    let bf16 = |x: f32| {
        let bits = x.to_bits();
        f64::from(f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000))
    };
    let head_dim = heads.head_dim;
    let group = heads.n_heads / heads.n_kv_heads;
    let mut out = Vec::new();
    for head in 0..heads.n_heads {
        let at = |kind: u64, token: u64, i: usize| {
            bf16(normal(&[kind, token, (head / group * head_dim + i) as u64]))
        };
        let query = |i: usize| {
            let element = (head * head_dim + i) as u64;
            f64::from(2.0 * normal(&[QUERY, sequence.name, position as u64, element]))
        };
        let query: Vec<f64> = (0..head_dim).map(query).collect();
        let tokens = &sequence.tokens[setup.first_seen(position)..=position];
        let score = |token: &u64| {
            let dot: f64 = query
                .iter()
                .enumerate()
                .map(|(i, q)| q * at(KEY, *token, i))
                .sum();
            let score = dot / (head_dim as f64).sqrt();
            let capped = |cap: f64| cap * (score / cap).tanh();
            setup.soft_cap.map_or(score, |cap| capped(f64::from(cap)))
        };
        let scores: Vec<f64> = tokens.iter().map(score).collect();
        let sink = setup.sink(head).map_or(f64::NEG_INFINITY, f64::from);
        let largest = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total: f64 = weights.iter().sum::<f64>() + (sink - largest).exp();
        for i in 0..head_dim {
            let sum: f64 = tokens
                .iter()
                .zip(&weights)
                .map(|(token, w)| w * at(VALUE, *token, i))
                .sum();
            out.push(sum / total);
        }
    }
    out
}

#[test]
fn attention_is_close_to_float64() {
    let sequences = [
        Sequence::new(1, &[(1, 1)], 1),
        Sequence::new(2, &[(1, 100)], 3),
        Sequence::new(3, &[(2, 777)], 2),
    ];
    for setup in setups() {
        let kernel = Pool::new(setup, &sequences)
            .backend
            .attention_kernel(setup.heads.head_dim);
        // bf16 products round queries and weights to 8 bits; the others compute in f32.
        let has_bf16_products = kernel == "avx512-bf16" && setup.window.is_none() && setup.soft_cap.is_none();
        let bound = if has_bf16_products { 6e-3 } else { 2e-5 };
        let mut rows = attend(setup, &sequences).into_iter();
        for sequence in &sequences {
            for position in sequence.first_position()..sequence.tokens.len() {
                let exact = exact(setup, sequence, position);
                let row = rows.next().expect("one result per row");
                let mut error = 0.0;
                let mut power = 0.0;
                for (bits, exact) in row.iter().zip(exact) {
                    error += (f64::from(f32::from_bits(*bits)) - exact).powi(2);
                    power += exact.powi(2);
                }
                let relative = (error / power).sqrt();
                assert!(relative < bound, "{relative:.1e} at {position} of {setup:?}");
            }
        }
    }
}

#[test]
fn wide_scores_neither_overflow_nor_vanish() {
    // Queries 2000 times as large: one token takes all the weight, and its value comes out as it was stored.
    for setup in setups() {
        let sequence = Sequence::new(1, &[(1, 300)], 1);
        let heads = setup.heads;
        let mut pool = Pool::new(setup, std::slice::from_ref(&sequence));
        let table = pool.write(&sequence);
        let width = heads.n_heads * heads.head_dim;
        let mut row = vec![f32::NAN; heads.qkv_width()];
        for (i, value) in row[..width].iter_mut().enumerate() {
            *value = 4000.0 * normal(&[QUERY, 1, i as u64]);
        }
        let qkv = tensor(heads.qkv_width(), &row);
        let mut out = tensor(width, &vec![f32::NAN; width]);
        let rows = Rows {
            sequences: vec![SequenceRows {
                first_row: 0,
                n_rows: 1,
                first_position: 299,
                first_page: 0,
                n_pages: table.len(),
            }],
            page_tables: table,
            ..Rows::zeros(1)
        };
        let batch = rows.upload_for(&mut pool.backend, (heads, pool.shape), setup.window);
        pool.attend(&qkv, &batch, &mut out);
        assert!(
            out.values()
                .iter()
                .all(|value| value.is_finite() && value.abs() < 10.0)
        );
    }
}
