//! Every op of every instruction set against the reference, with odd shapes and outputs that are NaN before.
//!
//! Bounds are relative to the largest expected magnitude: the rounding of f32 sums, or of bf16 where keys,
//! values, queries and attention weights pass through it.

mod support;

use arbora_kernels::cpu::cores::Cores;
use arbora_kernels::cpu::{CpuBackend, CpuConfig, Isa, Pinning};
use arbora_kernels::quant::Format;
use arbora_kernels::reference::ReferenceBackend;
use arbora_kernels::{
    Activation, Adjustment, Allowed, Answers, AttentionLayer, AttentionSpec, Backend, BackendError,
    Elementwise, HeadLayout, KvShape, LogprobRow, MatrixSource, Norm, NormKind, QkNorm, QkNormSpan,
    RopeStore, RopeStyle, RopeTable, RowLogprobs, SampleRow, Scored, SequenceRows,
};
use support::{Random, Rows, SMALL, answers, random_matrix, random_rows, rms};

const F32_BOUND: f32 = 1e-5;
const BF16_BOUND: f32 = 1.5e-2;

fn cpu_backends() -> Vec<(String, CpuBackend)> {
    let mut backends = Vec::new();
    for isa in Isa::available() {
        for n_threads in [1, 3] {
            let backend = CpuBackend::new(CpuConfig {
                n_threads,
                isa: Some(isa),
                pinning: Pinning::Auto,
            });
            let name = format!("{} with {n_threads} threads", isa.name());
            backends.push((name, backend.expect("an available instruction set")));
        }
    }
    backends
}

/// A tensor holding `values`, through an F32 embedding: the trait uploads single rows only.
fn tensor<B: Backend>(backend: &mut B, width: usize, values: &[f32]) -> B::Tensor {
    let n_rows = values.len() / width;
    let zeros = vec![0; 4 * width];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let source = MatrixSource {
        format: Format::F32,
        n_out: n_rows.max(1),
        n_in: width,
        bytes: if n_rows == 0 { &zeros } else { &bytes },
    };
    let table = backend.linear(&[source], None).expect("a good matrix");
    let ids: Vec<u32> = (0..n_rows as u32).collect();
    let mut tensor = backend.tensor(n_rows, width).expect("small");
    let batch = Rows::of_ids(&ids).upload(backend, SMALL);
    backend.embed(&table, &batch, &mut tensor);
    tensor
}

/// An output for `n_rows` rows that holds NaN.
fn output<B: Backend>(backend: &mut B, n_rows: usize, width: usize) -> B::Tensor {
    tensor(backend, width, &vec![f32::NAN; n_rows * width])
}

fn values<B: Backend>(backend: &mut B, tensor: &B::Tensor, n_rows: usize, width: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; n_rows * width];
    backend.download(tensor, &mut values);
    values
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        // Written so that a NaN fails.
        let close = (actual - expected).abs() <= bound * largest;
        assert!(
            close,
            "{what}: element {i} is {actual}, not {expected} (largest {largest})"
        );
    }
}

/// Runs `case` on the reference and on every CPU backend and compares what it returns.
fn conform(what: &str, bound: f32, reference: &[f32], mut case: impl FnMut(&mut CpuBackend) -> Vec<f32>) {
    for (name, mut backend) in cpu_backends() {
        assert_close(&format!("{what}, {name}"), &case(&mut backend), reference, bound);
    }
}

fn matmul<B: Backend>(
    backend: &mut B,
    parts: &[MatrixSource<'_>],
    bias: Option<&[f32]>,
    x: &[f32],
) -> Vec<f32> {
    let n_in = parts[0].n_in;
    let (n_rows, n_out) = (x.len() / n_in, parts.iter().map(|part| part.n_out).sum());
    let linear = backend.linear(parts, bias).expect("good matrices");
    let x = tensor(backend, n_in, x);
    let mut out = output(backend, n_rows, n_out);
    backend.matmul(&linear, &x, &mut out);
    values(backend, &out, n_rows, n_out)
}

#[test]
fn matmul_of_one_format_conforms() {
    for (i, format) in Format::ALL.into_iter().enumerate() {
        for (n_in, n_out) in [(32, 1), (64, 16), (96, 33), (576, 80), (1536, 41)] {
            let n_in = usize::next_multiple_of(n_in, format.block_len());
            for n_rows in [0, 1, 2, 7, 16, 37] {
                let seed = 1000 * n_in as u64 + 10 * n_rows as u64 + i as u64;
                let mut random = Random(seed);
                let bytes = random_matrix(format, n_out, n_in, &mut random);
                let source = MatrixSource {
                    format,
                    n_out,
                    n_in,
                    bytes: &bytes,
                };
                let x = random_rows(n_rows, n_in, &mut random);
                let expected = matmul(&mut ReferenceBackend::new(), &[source], None, &x);
                let what = format!("{format:?} {n_in} x {n_out}, {n_rows} rows, seed {seed}");
                conform(&what, F32_BOUND, &expected, |cpu| {
                    matmul(cpu, &[source], None, &x)
                });
            }
        }
    }
}

#[test]
fn matmul_of_plain_formats_takes_any_depth() {
    for format in [Format::F32, Format::F16, Format::Bf16] {
        for (n_in, n_out) in [(1, 1), (7, 3), (31, 17), (101, 97)] {
            let seed = 7 + n_in as u64;
            let mut random = Random(seed);
            let bytes = random_matrix(format, n_out, n_in, &mut random);
            let source = MatrixSource {
                format,
                n_out,
                n_in,
                bytes: &bytes,
            };
            let x = random_rows(5, n_in, &mut random);
            let expected = matmul(&mut ReferenceBackend::new(), &[source], None, &x);
            let what = format!("{format:?} {n_in} x {n_out}, seed {seed}");
            conform(&what, F32_BOUND, &expected, |cpu| {
                matmul(cpu, &[source], None, &x)
            });
        }
    }
}

#[test]
fn stacked_parts_of_any_formats_with_a_bias_conform_and_embed_their_rows() {
    let seed = 77;
    let mut random = Random(seed);
    let n_in = 512;
    let shapes: Vec<(Format, usize)> = Format::ALL
        .into_iter()
        .zip([16, 5, 33, 1, 48, 7].into_iter().cycle())
        .collect();
    let bytes: Vec<Vec<u8>> = shapes
        .iter()
        .map(|&(format, n_out)| random_matrix(format, n_out, n_in, &mut random))
        .collect();
    let parts: Vec<MatrixSource<'_>> = shapes
        .iter()
        .zip(&bytes)
        .map(|(&(format, n_out), bytes)| MatrixSource {
            format,
            n_out,
            n_in,
            bytes,
        })
        .collect();
    let n_out: usize = shapes.iter().map(|shape| shape.1).sum();
    let bias = random_rows(1, n_out, &mut random);
    let ids: Vec<u32> = (0..n_out as u32).rev().chain([3, 3, 60]).collect();
    for n_rows in [0, 1, 9, 40] {
        let x = random_rows(n_rows, n_in, &mut random);
        let expected = matmul(&mut ReferenceBackend::new(), &parts, Some(&bias), &x);
        let what = format!("stacked parts, {n_rows} rows, seed {seed}");
        conform(&what, F32_BOUND, &expected, |cpu| {
            matmul(cpu, &parts, Some(&bias), &x)
        });
    }
    fn embed<B: Backend>(backend: &mut B, parts: &[MatrixSource<'_>], ids: &[u32]) -> Vec<f32> {
        let table = backend.linear(parts, None).expect("good matrices");
        let mut out = output(backend, ids.len(), parts[0].n_in);
        let batch = Rows::of_ids(ids).upload(backend, SMALL);
        backend.embed(&table, &batch, &mut out);
        values(backend, &out, ids.len(), parts[0].n_in)
    }
    for ids in [&ids[..], &[]] {
        let expected = embed(&mut ReferenceBackend::new(), &parts, ids);
        conform("embedding", 0.0, &expected, |cpu| embed(cpu, &parts, ids));
    }
}

#[test]
fn inputs_in_another_order_are_multiplied_with_the_activations_they_belong_to() {
    fn product<B: Backend>(backend: &mut B, source: MatrixSource<'_>, order: &[u32], x: &[f32]) -> Vec<f32> {
        let linear = backend
            .linear_in_order(&[source], None, order)
            .expect("a good order");
        let n_rows = x.len() / source.n_in;
        let x = tensor(backend, source.n_in, x);
        let mut out = output(backend, n_rows, source.n_out);
        backend.matmul(&linear, &x, &mut out);
        values(backend, &out, n_rows, source.n_out)
    }
    for (format, n_in) in [
        (Format::Q4_0, 96),
        (Format::U4, 64),
        (Format::U4x128, 256),
        (Format::U8, 64),
    ] {
        let seed = 70 + n_in as u64;
        let mut random = Random(seed);
        let n_out = 20;
        let bytes = random_matrix(format, n_out, n_in, &mut random);
        let source = MatrixSource {
            format,
            n_out,
            n_in,
            bytes: &bytes,
        };
        // Every input but a few moves; no block keeps its own.
        let order: Vec<u32> = (0..n_in as u32).map(|i| (i * 37 + 5) % n_in as u32).collect();
        let x = random_rows(19, n_in, &mut random);
        let gathered: Vec<f32> = x
            .chunks_exact(n_in)
            .flat_map(|row| order.iter().map(|&at| row[at as usize]))
            .collect();
        let expected = matmul(&mut ReferenceBackend::new(), &[source], None, &gathered);
        let reference = product(&mut ReferenceBackend::new(), source, &order, &x);
        assert_eq!(reference, expected, "{format:?}, seed {seed}");
        for (name, mut cpu) in cpu_backends() {
            let expected = matmul(&mut cpu, &[source], None, &gathered);
            assert_eq!(
                product(&mut cpu, source, &order, &x),
                expected,
                "{format:?}, {name}, seed {seed}"
            );
            for bad in [&order[1..], &vec![0; n_in], &vec![n_in as u32; n_in]] {
                assert!(cpu.linear_in_order(&[source], None, bad).is_err());
            }
        }
    }
    let (plain, order) = (vec![0; 4 * 32], (0..32).collect::<Vec<u32>>());
    let source = MatrixSource {
        format: Format::F32,
        n_out: 1,
        n_in: 32,
        bytes: &plain,
    };
    for (_, mut cpu) in cpu_backends() {
        assert!(cpu.linear_in_order(&[source], None, &order).is_err());
    }
}

#[test]
fn matrices_that_do_not_fit_are_refused() {
    let zeros = vec![0u8; 4096];
    let matrix = |format, n_out, n_in, n_bytes: usize| MatrixSource {
        format,
        n_out,
        n_in,
        bytes: &zeros[..n_bytes],
    };
    let good = matrix(Format::Q8_0, 2, 64, 136);
    for (_, mut cpu) in cpu_backends() {
        for bad in [
            matrix(Format::Q4_1, 1, 48, 30),
            matrix(Format::Q8_0, 2, 32, 67),
            matrix(Format::F32, 2, 3, 28),
            matrix(Format::F16, 0, 3, 0),
            matrix(Format::F32, usize::MAX, 1, 4),
        ] {
            let error = cpu.linear(&[bad], None).err().expect("it must be refused");
            assert!(matches!(error, BackendError::BadMatrix { .. }), "{error}");
        }
        let other_width = matrix(Format::F32, 1, 65, 260);
        assert!(cpu.linear(&[good, other_width], None).is_err());
        assert!(cpu.linear(&[good], Some(&[0.0; 3])).is_err());
    }
}

#[test]
fn a_row_that_is_not_finite_spoils_no_other() {
    let n_out = 20;
    for format in Format::ALL {
        let n_in: usize = 64.max(format.block_len());
        let mut random = Random(5);
        let bytes = random_matrix(format, n_out, n_in, &mut random);
        let source = MatrixSource {
            format,
            n_out,
            n_in,
            bytes: &bytes,
        };
        let mut x = random_rows(6, n_in, &mut random);
        let expected = matmul(&mut ReferenceBackend::new(), &[source], None, &x);
        for (row, bad) in [(1, f32::NAN), (2, f32::INFINITY), (4, f32::NEG_INFINITY)] {
            x[row * n_in + 40] = bad;
        }
        for (name, mut cpu) in cpu_backends() {
            let actual = matmul(&mut cpu, &[source], None, &x);
            for row in 0..6 {
                let (actual, expected) = (&actual[row * n_out..][..n_out], &expected[row * n_out..][..n_out]);
                if [1, 2, 4].contains(&row) {
                    assert!(
                        actual.iter().all(|x| !x.is_finite()),
                        "{format:?}, {name}, row {row}"
                    );
                } else {
                    assert_close(
                        &format!("{format:?}, {name}, row {row}"),
                        actual,
                        expected,
                        F32_BOUND,
                    );
                }
            }
        }
    }
}

#[test]
fn tiny_and_huge_activations_conform() {
    let (n_in, n_out) = (64, 20);
    let mut random = Random(6);
    let bytes = random_matrix(Format::Q8_0, n_out, n_in, &mut random);
    let source = MatrixSource {
        format: Format::Q8_0,
        n_out,
        n_in,
        bytes: &bytes,
    };
    for scale in [1e-30, 1e-20, 1e20, 1e36] {
        let x: Vec<f32> = random_rows(3, n_in, &mut random)
            .iter()
            .map(|x| x * scale)
            .collect();
        let expected = matmul(&mut ReferenceBackend::new(), &[source], None, &x);
        conform(&format!("activations of {scale}"), F32_BOUND, &expected, |cpu| {
            matmul(cpu, &[source], None, &x)
        });
    }
    // So small that they count as zero: no infinity on the way.
    for (name, mut cpu) in cpu_backends() {
        let actual = matmul(&mut cpu, &[source], None, &vec![1e-40; n_in]);
        assert!(actual.iter().all(|&x| x == 0.0), "{name}");
    }
}

#[test]
fn norms_conform() {
    fn both<B: Backend>(backend: &mut B, kind: NormKind, rows: &[f32], weights: &[f32]) -> Vec<f32> {
        let width = weights.len() / 2;
        let n_rows = rows.len() / width / 2;
        let (x, delta) = rows.split_at(n_rows * width);
        let mut x = tensor(backend, width, x);
        let delta = tensor(backend, width, delta);
        let (weight, bias) = weights.split_at(width);
        let weight = backend.upload(weight).expect("small");
        let bias = backend.upload(bias).expect("small");
        let norm = Norm {
            kind,
            bias: (kind == NormKind::Layer).then_some(&bias),
            ..rms(&weight)
        };
        let mut out = output(backend, n_rows, width);
        backend.norm(&x, &norm, &mut out);
        let mut all = values(backend, &out, n_rows, width);
        let mut out = output(backend, n_rows, width);
        backend.add_norm(&mut x, &delta, &norm, &mut out);
        all.extend(values(backend, &x, n_rows, width));
        all.extend(values(backend, &out, n_rows, width));
        backend.add(&mut x, &delta);
        all.extend(values(backend, &x, n_rows, width));
        all
    }
    for width in [1, 7, 16, 33, 64, 576, 1021] {
        for n_rows in [0, 1, 5, 33] {
            let seed = (width * 100 + n_rows) as u64;
            let mut random = Random(seed);
            let rows = random_rows(2 * n_rows, width, &mut random);
            let weights = random_rows(2, width, &mut random);
            for kind in [NormKind::Rms, NormKind::Layer] {
                let expected = both(&mut ReferenceBackend::new(), kind, &rows, &weights);
                let what = format!("{kind:?} norms of {n_rows} x {width}, seed {seed}");
                conform(&what, F32_BOUND, &expected, |cpu| {
                    both(cpu, kind, &rows, &weights)
                });
            }
        }
    }
}

#[test]
fn functions_of_elements_and_gather_conform() {
    fn gated<B: Backend>(backend: &mut B, n: usize, x: &[f32], activation: Activation) -> Vec<f32> {
        let n_rows = x.len() / (2 * n);
        let x = tensor(backend, 2 * n, x);
        let mut out = output(backend, n_rows, n);
        backend.gated(&x, activation, &mut out);
        values(backend, &out, n_rows, n)
    }
    fn each<B: Backend>(backend: &mut B, n: usize, x: &[f32], function: Elementwise) -> Vec<f32> {
        let n_rows = x.len() / (2 * n);
        let mut x = tensor(backend, 2 * n, x);
        backend.elementwise(&mut x, function);
        values(backend, &x, n_rows, 2 * n)
    }
    fn gather<B: Backend>(backend: &mut B, width: usize, x: &[f32], rows: &[u32]) -> Vec<f32> {
        let n_rows = x.len() / width;
        let x = tensor(backend, width, x);
        let mut out = output(backend, rows.len(), width);
        let wanted = Rows {
            logit_rows: rows.to_vec(),
            ..Rows::zeros(n_rows)
        };
        let batch = wanted.upload(backend, SMALL);
        backend.gather(&x, &batch, &mut out);
        values(backend, &out, rows.len(), width)
    }
    for n in [1, 3, 16, 97, 1536] {
        for n_rows in [0, 1, 6, 19] {
            let seed = (n * 100 + n_rows + 1) as u64;
            let mut random = Random(seed);
            let x: Vec<f32> = random_rows(n_rows, 2 * n, &mut random)
                .iter()
                .map(|x| x * 4.0)
                .collect();
            for activation in [
                Activation::Silu,
                Activation::Gelu,
                Activation::GeluTanh,
                Activation::ClampedSwish,
            ] {
                let what = format!("{activation:?} of {n_rows} x {n}, seed {seed}");
                let expected = gated(&mut ReferenceBackend::new(), n, &x, activation);
                conform(&what, F32_BOUND, &expected, |cpu| gated(cpu, n, &x, activation));
                let function = Elementwise::Activate(activation);
                let expected = each(&mut ReferenceBackend::new(), n, &x, function);
                conform(&what, F32_BOUND, &expected, |cpu| each(cpu, n, &x, function));
            }
            for function in [Elementwise::Scale(-0.3), Elementwise::SoftCap(3.0)] {
                let what = format!("{function:?} of {n_rows} x {n}, seed {seed}");
                let expected = each(&mut ReferenceBackend::new(), n, &x, function);
                conform(&what, F32_BOUND, &expected, |cpu| each(cpu, n, &x, function));
            }
            let n_gathered = if n_rows == 0 { 0 } else { 8 };
            let rows: Vec<u32> = (0..n_gathered).map(|_| random.below(n_rows) as u32).collect();
            let expected = gather(&mut ReferenceBackend::new(), 2 * n, &x, &rows);
            conform("gather", 0.0, &expected, |cpu| gather(cpu, 2 * n, &x, &rows));
        }
    }
}

/// Sequences that share their first pages, computed in two steps: all but the last token, then the last.
struct AttentionCase {
    heads: HeadLayout,
    page_size: usize,
    spec: AttentionSpec,
    qk_norm: Option<QkNormSpan>,
    has_rope: bool,
    sinks: Option<Vec<f32>>,
    /// Tokens of each sequence in the first step; the second step adds one to each.
    lengths: Vec<usize>,
    /// Whole pages that all sequences take from the first.
    n_shared_pages: usize,
    qkv: Vec<f32>,
    rope: RopeTable,
    norms: Vec<f32>,
}

impl AttentionCase {
    fn new(heads: HeadLayout, page_size: usize, lengths: &[usize], random: &mut Random) -> Self {
        let n_rows: usize = lengths.iter().map(|length| length + 1).sum();
        let rope_dim = if random.below(2) == 0 {
            heads.head_dim
        } else {
            heads.head_dim / 4 * 2
        };
        let n_positions = lengths.iter().max().expect("a sequence") + 1;
        let angles: Vec<f32> = (0..n_positions * rope_dim / 2).map(|_| random.normal()).collect();
        AttentionCase {
            heads,
            page_size,
            spec: AttentionSpec {
                scale: [1.0, 1.5][random.below(2)] / (heads.head_dim as f64).sqrt(),
                soft_cap: [None, Some(1.3), Some(50.0)][random.below(3)],
                window: [None, Some(1), Some(50)][random.below(3)],
            },
            qk_norm: [None, Some(QkNormSpan::EachHead), Some(QkNormSpan::AllHeads)][random.below(3)],
            has_rope: random.below(4) > 0,
            sinks: (random.below(2) > 0).then(|| (0..heads.n_heads).map(|_| 3.0 * random.normal()).collect()),
            lengths: lengths.to_vec(),
            n_shared_pages: lengths.iter().min().expect("a sequence") / page_size,
            rope: RopeTable {
                style: [RopeStyle::Interleaved, RopeStyle::Halves][random.below(2)],
                rope_dim,
                cos_sin: angles
                    .iter()
                    .flat_map(|angle| [angle.cos(), angle.sin()])
                    .collect(),
            },
            qkv: random_rows(n_rows, heads.qkv_width(), random),
            norms: random_rows(heads.n_heads + heads.n_kv_heads, heads.head_dim, random),
        }
    }

    /// Weights of the norms of queries and of keys.
    fn norm_widths(&self) -> (usize, usize) {
        let dim = self.heads.head_dim;
        match self.qk_norm {
            Some(QkNormSpan::AllHeads) => (self.heads.n_heads * dim, self.heads.n_kv_heads * dim),
            _ => (dim, dim),
        }
    }

    fn pages_of(&self, sequence: usize) -> Vec<u32> {
        let n_pages = (self.lengths[sequence] + 1).div_ceil(self.page_size);
        let most = self.most_pages();
        // Every other page of the pool, downwards, so that nothing is contiguous by chance.
        let page = |owner: usize, i: usize| (2 * (self.lengths.len() * most - owner * most - i)) as u32;
        (0..n_pages)
            .map(|i| page(if i < self.n_shared_pages { 0 } else { sequence }, i))
            .collect()
    }

    fn most_pages(&self) -> usize {
        (self.lengths.iter().max().expect("a sequence") + 1).div_ceil(self.page_size)
    }

    /// The results of both steps of the second of two layers, rotated qkv included.
    fn run<B: Backend>(&self, backend: &mut B) -> Vec<f32> {
        let shape = KvShape {
            n_layers: 2,
            n_kv_heads: self.heads.n_kv_heads,
            head_dim: self.heads.head_dim,
            page_size: self.page_size,
            n_pages: 2 * self.lengths.len() * self.most_pages() + 2,
        };
        let mut kv = backend.kv(shape).expect("a small pool");
        for page in 0..shape.n_pages as u32 {
            backend.poison_page(&mut kv, page);
        }
        let mut all = Vec::new();
        for step in [0, 1] {
            all.extend(self.step(backend, (&mut kv, shape), step));
            // Page 1 belongs to nobody: a copy there and back over a poisoned page changes nothing.
            let first = self.pages_of(0)[0];
            backend.copy_page(&mut kv, first, 1);
            backend.poison_page(&mut kv, first);
            backend.copy_page(&mut kv, 1, first);
            backend.poison_page(&mut kv, 1);
        }
        all
    }

    fn step<B: Backend>(&self, backend: &mut B, (kv, shape): (&mut B::Kv, KvShape), step: usize) -> Vec<f32> {
        let width = self.heads.qkv_width();
        let (mut batch, mut rows) = (Rows::default(), Vec::new());
        let mut first_of_sequence = 0;
        for (i, &length) in self.lengths.iter().enumerate() {
            let pages = self.pages_of(i);
            let (first, end) = if step == 0 {
                (0, length)
            } else {
                (length, length + 1)
            };
            batch.sequences.push(SequenceRows {
                first_row: batch.positions.len(),
                n_rows: end - first,
                first_position: first,
                first_page: batch.page_tables.len(),
                n_pages: pages.len(),
            });
            for position in first..end {
                // Tokens on shared pages are those of the first sequence.
                let shared = position < self.n_shared_pages * self.page_size;
                let row = if shared {
                    position
                } else {
                    first_of_sequence + position
                };
                rows.extend_from_slice(&self.qkv[row * width..][..width]);
                batch.ids.push(0);
                batch.positions.push(position as u32);
                let page = pages[position / self.page_size] as usize;
                batch
                    .slots
                    .push((page * self.page_size + position % self.page_size) as u32);
            }
            batch.page_tables.extend(pages);
            first_of_sequence += length + 1;
        }
        let mut qkv = tensor(backend, width, &rows);
        let dim = self.heads.head_dim;
        let (n_queries, n_keys) = self.norm_widths();
        let query = &backend.upload(&self.norms[..n_queries]).expect("small");
        let key = &backend.upload(&self.norms[n_queries..][..n_keys]).expect("small");
        let store = RopeStore {
            heads: self.heads,
            layer: 1,
            qk_norm: self.qk_norm.map(|span| QkNorm {
                span,
                query,
                key,
                eps: 1e-6,
            }),
        };
        let n_rows = batch.ids.len();
        let rope = backend.rope(self.rope.clone()).expect("a small table");
        let batch = batch.upload_for(backend, (self.heads, shape), self.spec.window);
        let rope = self.has_rope.then_some(&rope);
        backend.rope_store(&mut qkv, rope, &store, &batch, kv);
        let out_width = self.heads.n_heads * dim;
        let mut out = output(backend, n_rows, out_width);
        let sinks = self
            .sinks
            .as_ref()
            .map(|sinks| backend.upload(sinks).expect("small"));
        let layer = AttentionLayer {
            layer: 1,
            spec: &self.spec,
            sinks: sinks.as_ref(),
        };
        backend.attention(&qkv, kv, layer, &batch, &mut out);
        let mut all = values(backend, &out, n_rows, out_width);
        all.extend(values(backend, &qkv, n_rows, width));
        all
    }
}

#[test]
fn rope_store_and_attention_conform() {
    let shapes = [
        (4, 2, 16, 16),
        (9, 3, 64, 16),
        (4, 4, 80, 32),
        (6, 2, 128, 64),
        (2, 1, 96, 16),
        (3, 1, 256, 32),
    ];
    for (i, (n_heads, n_kv_heads, head_dim, page_size)) in shapes.into_iter().enumerate() {
        for (j, lengths) in [&[1][..], &[63, 64, 65], &[130, 17, 140]].into_iter().enumerate() {
            let seed = (10 * i + j + 1) as u64;
            let heads = HeadLayout {
                n_heads,
                n_kv_heads,
                head_dim,
            };
            let case = AttentionCase::new(heads, page_size, lengths, &mut Random(seed));
            let expected = case.run(&mut ReferenceBackend::new());
            assert!(expected.iter().all(|x| x.is_finite()), "seed {seed}");
            let what = format!("attention {heads:?}, pages of {page_size}, {lengths:?}, seed {seed}");
            conform(&what, BF16_BOUND, &expected, |cpu| case.run(cpu));
        }
    }
}

#[test]
fn attention_of_no_rows_writes_nothing() {
    for (_, mut cpu) in cpu_backends() {
        let heads = HeadLayout {
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
        };
        let shape = KvShape {
            n_layers: 1,
            n_kv_heads: 1,
            head_dim: 16,
            page_size: 16,
            n_pages: 1,
        };
        let kv = cpu.kv(shape).expect("a small pool");
        let qkv = tensor(&mut cpu, heads.qkv_width(), &[]);
        let mut out = output(&mut cpu, 3, 32);
        let batch = Rows::default().upload(&mut cpu, (heads, shape));
        let layer = AttentionLayer {
            layer: 0,
            spec: &AttentionSpec::full(16),
            sinks: None,
        };
        cpu.attention(&qkv, &kv, layer, &batch, &mut out);
        assert_eq!(out.n_rows(), 0);
    }
}

#[test]
fn sampling_conforms() {
    for n_vocab in [1_usize, 2, 300, 1009] {
        let seed = n_vocab as u64;
        let mut random = Random(seed);
        let mut rows = Vec::new();
        let mut logits = Vec::new();
        let every_third: Vec<u32> = (0..n_vocab as u32).step_by(3).collect();
        let some_bits: Vec<u64> = (0..n_vocab.div_ceil(64))
            .map(|_| random.bits() << 32 ^ random.bits())
            .collect();
        let adjustments: Vec<Adjustment> = (1..n_vocab as u32)
            .step_by(4)
            .map(|token| Adjustment {
                token,
                divisor: 1.25,
                shift: [0.5, -2.0, f32::NEG_INFINITY][token as usize % 3],
            })
            .collect();
        for temperature in [0.0, 0.3, 1.0, 2.5] {
            for (top_k, top_p, min_p) in [
                (0, 1.0, 0.0),
                (1, 1.0, 0.0),
                (5, 1.0, 0.0),
                (0, 0.7, 0.0),
                (0, 0.0, 0.0),
                (0, 1.0, 0.1),
                (40, 0.9, 0.05),
            ] {
                for idx in 0..4 {
                    rows.push(SampleRow {
                        allowed: match idx {
                            0 | 1 => Allowed::All,
                            2 => Allowed::Ids(&every_third),
                            _ => Allowed::Bits(&some_bits),
                        },
                        adjustments: if idx % 2 == 1 { &adjustments } else { &[] },
                        temperature,
                        top_k,
                        top_p,
                        min_p,
                        noise: random.bits() << 16 | random.bits() & 0xffff,
                    });
                    // Few distinct values, so that there are ties; some tokens are ruled out.
                    logits.extend((0..n_vocab).map(|_| match random.below(20) {
                        0 => f32::NEG_INFINITY,
                        1 => f32::NAN,
                        _ => (random.normal() * 8.0).round() / 4.0,
                    }));
                }
            }
        }
        logits[..n_vocab].fill(f32::NEG_INFINITY);
        fn sample<B: Backend>(backend: &mut B, logits: &[f32], rows: &[SampleRow<'_>]) -> Vec<Option<u32>> {
            let logits = tensor(backend, logits.len() / rows.len(), logits);
            answers(backend, &logits, (rows, &[])).tokens
        }
        let expected = sample(&mut ReferenceBackend::new(), &logits, &rows);
        assert_eq!(expected[0], None);
        for (name, mut cpu) in cpu_backends() {
            let actual = sample(&mut cpu, &logits, &rows);
            for (i, row) in rows.iter().enumerate() {
                assert_eq!(
                    actual[i], expected[i],
                    "{name}, {n_vocab} tokens, seed {seed}, {row:?}"
                );
            }
        }
    }
}

#[test]
fn a_nucleus_of_no_probability_is_the_likeliest_token_at_any_temperature() {
    let seed = 21;
    let mut random = Random(seed);
    let n_vocab = 301;
    // Ties, and among the largest too; some tokens are ruled out.
    let logits = |random: &mut Random| -> Vec<f32> {
        let logit = |_| match random.below(20) {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            _ => (random.normal() * 4.0).round() / 4.0,
        };
        (0..n_vocab).map(logit).collect()
    };
    let adjustments = [Adjustment {
        token: 7,
        divisor: 1.0,
        shift: 3.0,
    }];
    let even: Vec<u32> = (0..n_vocab as u32).step_by(2).collect();
    let (mut drawn, mut greedy, mut all_logits) = (Vec::new(), Vec::new(), Vec::new());
    for temperature in [1e-3, 0.7, 1.0, 100.0] {
        for top_k in [0, 3, 1000] {
            for noise in [0, random.bits() << 32, u64::MAX] {
                for allowed in [Allowed::All, Allowed::Ids(&even)] {
                    let row = SampleRow {
                        allowed,
                        adjustments: &adjustments,
                        temperature,
                        top_k,
                        top_p: 0.0,
                        min_p: 0.0,
                        noise,
                    };
                    drawn.push(row);
                    greedy.push(SampleRow {
                        allowed,
                        adjustments: &adjustments,
                        ..SampleRow::GREEDY
                    });
                    all_logits.extend(logits(&mut random));
                }
            }
        }
    }
    fn sample<B: Backend>(backend: &mut B, logits: &[f32], rows: &[SampleRow<'_>]) -> Vec<Option<u32>> {
        let logits = tensor(backend, logits.len() / rows.len(), logits);
        answers(backend, &logits, (rows, &[])).tokens
    }
    let expected = sample(&mut ReferenceBackend::new(), &all_logits, &greedy);
    assert!(expected.iter().all(Option::is_some));
    assert_eq!(
        sample(&mut ReferenceBackend::new(), &all_logits, &drawn),
        expected
    );
    for (name, mut cpu) in cpu_backends() {
        assert_eq!(
            sample(&mut cpu, &all_logits, &drawn),
            expected,
            "{name}, seed {seed}"
        );
    }
}

#[test]
fn logprobs_agree_with_the_reference() {
    for n_vocab in [1, 7, 64, 1000, 5003] {
        let seed = n_vocab as u64;
        let mut random = Random(seed);
        let n_rows = 40;
        let mut logits: Vec<f32> = (0..n_rows * n_vocab)
            .map(|_| match random.below(20) {
                0 => f32::NEG_INFINITY,
                1 => f32::NAN,
                _ => (random.normal() * 8.0).round() / 4.0,
            })
            .collect();
        logits[..n_vocab].fill(f32::NAN);
        // Some rows twice, some not at all.
        let rows: Vec<LogprobRow> = (0..n_rows)
            .map(|idx| LogprobRow {
                row: idx / 2 * 2,
                token: match random.below(3) {
                    0 => Scored::Drawn,
                    _ => Scored::Token(random.below(n_vocab) as u32),
                },
                n_top: [0, 1, 5, 20, 70][idx % 5],
                listed: (0..idx % 3).map(|_| random.below(n_vocab) as u32).collect(),
            })
            .collect();
        fn logprobs<B: Backend>(
            backend: &mut B,
            logits: &[f32],
            (n_rows, asked): (usize, &[LogprobRow]),
        ) -> Vec<Option<RowLogprobs>> {
            let logits = tensor(backend, logits.len() / n_rows, logits);
            let rows = vec![SampleRow::GREEDY; n_rows];
            answers(backend, &logits, (&rows, asked)).logprobs
        }
        let expected = logprobs(&mut ReferenceBackend::new(), &logits, (n_rows, &rows));
        assert_eq!(expected[0], None);
        for (name, mut cpu) in cpu_backends() {
            let actual = logprobs(&mut cpu, &logits, (n_rows, &rows));
            assert_eq!(actual.len(), rows.len());
            for (i, asked) in rows.iter().enumerate() {
                let case = format!("{name}, {n_vocab} tokens, seed {seed}, {asked:?}");
                let (Some(actual), Some(expected)) = (&actual[i], &expected[i]) else {
                    assert_eq!(actual[i], expected[i], "{case}");
                    continue;
                };
                assert_eq!(actual.top.len(), expected.top.len(), "{case}");
                let all = |row: &RowLogprobs| [row.top.clone(), vec![row.token]].concat();
                for (a, e) in all(actual).iter().zip(all(expected)) {
                    assert_eq!((a.token, a.rank), (e.token, e.rank), "{case}");
                    let is_near = a.logprob == e.logprob || (a.logprob - e.logprob).abs() < 2e-6;
                    assert!(is_near, "{case}: {} and {}", a.logprob, e.logprob);
                }
                assert_eq!(actual.listed.len(), asked.listed.len(), "{case}");
                for (a, e) in actual.listed.iter().zip(&expected.listed) {
                    assert!(a == e || (a - e).abs() < 2e-6, "{case}: {a} and {e}");
                }
            }
        }
    }
}

#[test]
fn backends_that_share_the_cores_take_turns_and_compute_what_one_alone_does() {
    let mut random = Random(21);
    let (format, n_out, n_in) = (Format::Q4_0, 96, 64);
    let bytes = random_matrix(format, n_out, n_in, &mut random);
    let source = MatrixSource {
        format,
        n_out,
        n_in,
        bytes: &bytes,
    };
    let x = random_rows(5, n_in, &mut random);
    let compute = |backend: &mut CpuBackend| matmul(backend, &[source], None, &x);
    let cores = || Cores::new(3, Pinning::Auto).expect("threads can be started");
    let alone = compute(&mut CpuBackend::on(&cores(), None, 1).expect("an instruction set"));
    let cores = cores();
    std::thread::scope(|scope| {
        for weight in [1, 1, 5] {
            let mut backend = CpuBackend::on(&cores, None, weight).expect("an instruction set");
            let (compute, alone) = (&compute, &alone);
            scope.spawn(move || {
                for round in 0..50 {
                    backend.begin_step();
                    assert_eq!(&compute(&mut backend), alone, "in a step");
                    if round % 7 == 0 {
                        backend.rest();
                        assert_eq!(&compute(&mut backend), alone, "between steps");
                    }
                }
            });
        }
    });
}

#[test]
fn a_forward_pass_can_be_recorded_and_its_answers_come() {
    fn tokens<B: Backend>(backend: &mut B, x: &[f32]) -> Vec<Option<u32>> {
        let mut x = tensor(backend, 4, x);
        let mut out = backend.tensor(2, 4).expect("small");
        let rows = Rows {
            logit_rows: vec![2, 0],
            ..Rows::zeros(3)
        };
        let batch = rows.upload(backend, SMALL);
        backend.recorded(&batch, &mut |backend| {
            // With one rank there is nothing to sum.
            backend.all_reduce(&mut x);
            backend.gather(&x, &batch, &mut out);
        });
        let mut pending = backend.pending(2).expect("two answers");
        backend.sample(&out, &[SampleRow::GREEDY; 2], &[], &mut pending);
        let mut answers = Answers::default();
        while !backend.is_done(&pending) {
            std::hint::spin_loop();
        }
        backend.collect(&mut pending, &mut answers);
        assert!(!backend.is_lost());
        answers.tokens
    }
    let x = [0.0, 1.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0];
    let expected = [Some(3), Some(1)];
    assert_eq!(tokens(&mut ReferenceBackend::new(), &x), expected);
    for (name, mut cpu) in cpu_backends() {
        assert_eq!(tokens(&mut cpu, &x), expected, "{name}");
    }
}
