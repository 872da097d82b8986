//! Operations against the reference, and contracts C1 and C2 bit for bit.

use crate::emulated::Emulated;
use arbora_kernels::cuda::CudaBackend;
use arbora_kernels::quant::Format;
use arbora_kernels::reference::ReferenceBackend;
use arbora_kernels::{
    Activation, AttentionLayer, AttentionSpec, Backend, BackendError, Elementwise, HeadLayout, KvShape,
    MatrixSource, Norm, NormKind, QkNorm, QkNormSpan, RopeStore, RopeStyle, RopeTable, SequenceRows,
};

use crate::support::{Random, Rows, SMALL, random_matrix, random_rows, rms};
use crate::{output, tensor, values};

const F32_BOUND: f32 = 1e-5;
/// Keys and values are bf16 in both; one that lies between two bf16 numbers may round the other way.
const BF16_BOUND: f32 = 1.5e-2;
const SEEDS: [u64; 2] = [1, 77];

/// One operation on some inputs: what it returns must be the same on every backend.
trait Case {
    fn run<B: Backend>(&self, backend: &mut B) -> Vec<f32>;
}

/// Compares with the reference under several schedules, whose results must have the same bits.
fn conform(what: &str, bound: f32, case: &impl Case) {
    let expected = case.run(&mut ReferenceBackend::new());
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let mut first: Option<Vec<u32>> = None;
    for seed in SEEDS {
        let Some(device) = Emulated::new(seed) else { return };
        let mut backend = device.backend().expect("the emulated device works");
        let actual = case.run(&mut backend);
        assert!(!backend.is_lost(), "{what}: {}", device.diagnosis(&backend));
        assert_eq!(actual.len(), expected.len(), "{what}");
        for (i, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            // Written so that a NaN fails.
            let is_close = (actual - expected).abs() <= bound * largest;
            assert!(
                is_close,
                "{what}, schedule {seed}: element {i} is {actual}, not {expected} ({largest})"
            );
        }
        let bits: Vec<u32> = actual.iter().map(|x| x.to_bits()).collect();
        assert_eq!(
            first.get_or_insert_with(|| bits.clone()),
            &bits,
            "{what}: the schedule shows"
        );
    }
}

struct Product {
    parts: Vec<(Format, usize, Vec<u8>)>,
    bias: Option<Vec<f32>>,
    x: Vec<f32>,
    n_in: usize,
}

impl Product {
    fn new(formats: &[(Format, usize)], n_in: usize, n_rows: usize, random: &mut Random) -> Self {
        let part =
            |&(format, n_out): &(Format, usize)| (format, n_out, random_matrix(format, n_out, n_in, random));
        let parts: Vec<_> = formats.iter().map(part).collect();
        let n_out = formats.iter().map(|part| part.1).sum();
        let bias = (formats.len() > 1).then(|| random_rows(1, n_out, random));
        Product {
            parts,
            bias,
            x: random_rows(n_rows, n_in, random),
            n_in,
        }
    }

    fn sources(&self) -> Vec<MatrixSource<'_>> {
        let source = |(format, n_out, bytes): &(Format, usize, Vec<u8>)| (*format, *n_out, bytes.len());
        let shapes = self.parts.iter().map(source);
        let of = |((format, n_out, _), part): ((Format, usize, usize), usize)| MatrixSource {
            format,
            n_out,
            n_in: self.n_in,
            bytes: &self.parts[part].2,
        };
        shapes.zip(0..).map(of).collect()
    }
}

impl Case for Product {
    fn run<B: Backend>(&self, backend: &mut B) -> Vec<f32> {
        let linear = backend
            .linear(&self.sources(), self.bias.as_deref())
            .expect("good matrices");
        let (n_rows, n_out) = (
            self.x.len() / self.n_in,
            self.parts.iter().map(|part| part.1).sum(),
        );
        let x = tensor(backend, self.n_in, &self.x);
        let mut out = output(backend, n_rows, n_out);
        backend.matmul(&linear, &x, &mut out);
        let mut all = values(backend, &out, n_rows, n_out);
        let ids: Vec<u32> = (0..n_out as u32).rev().chain([0, 0]).collect();
        let mut rows = output(backend, ids.len(), self.n_in);
        let batch = Rows::of_ids(&ids).upload(backend, SMALL);
        backend.embed(&linear, &batch, &mut rows);
        all.extend(values(backend, &rows, ids.len(), self.n_in));
        all
    }
}

#[test]
fn products_and_embeddings_conform() {
    for (i, (n_in, n_rows)) in [(1, 1), (7, 5), (64, 33), (101, 3), (96, 0)]
        .into_iter()
        .enumerate()
    {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let mut random = Random(5 + i as u64);
            let case = Product::new(&[(format, 37)], n_in, n_rows, &mut random);
            conform(
                &format!("{format:?} {n_in} x 37, {n_rows} rows"),
                F32_BOUND,
                &case,
            );
        }
    }
    let parts = [(Format::F32, 16), (Format::Bf16, 5), (Format::F16, 33)];
    conform(
        "stacked parts with a bias",
        F32_BOUND,
        &Product::new(&parts, 48, 9, &mut Random(3)),
    );
}

#[test]
fn matrices_that_the_device_cannot_use_are_refused_by_name() {
    let Some(device) = Emulated::new(1) else { return };
    let mut backend = device.backend().expect("the emulated device works");
    let zeros = vec![0u8; 4096];
    let matrix = |format, n_out, n_in, n| MatrixSource {
        format,
        n_out,
        n_in,
        bytes: &zeros[..n],
    };
    let refused = |backend: &mut CudaBackend, bad| backend.linear(&[bad], None).err().expect("refused");
    let quantized = refused(&mut backend, matrix(Format::Q8_0, 2, 64, 136));
    assert!(quantized.to_string().contains("F32, F16 and BF16"), "{quantized}");
    for bad in [
        matrix(Format::F32, 2, 3, 28),
        matrix(Format::F16, 0, 3, 0),
        matrix(Format::F32, usize::MAX, 1, 4),
    ] {
        assert!(matches!(
            refused(&mut backend, bad),
            BackendError::BadMatrix { .. }
        ));
    }
    let good = matrix(Format::F32, 2, 3, 24);
    assert!(backend.linear(&[good], Some(&[0.0; 3])).is_err());
    assert!(
        backend
            .linear(&[good, matrix(Format::F32, 1, 4, 16)], None)
            .is_err()
    );
}

struct Norms {
    kind: NormKind,
    x: Vec<f32>,
    weights: Vec<f32>,
}

impl Case for Norms {
    fn run<B: Backend>(&self, backend: &mut B) -> Vec<f32> {
        let width = self.weights.len() / 2;
        let n_rows = self.x.len() / width / 2;
        let (x, delta) = self.x.split_at(n_rows * width);
        let (mut x, delta) = (tensor(backend, width, x), tensor(backend, width, delta));
        let weight = backend.upload(&self.weights[..width]).expect("small");
        let bias = backend.upload(&self.weights[width..]).expect("small");
        let bias = (self.kind == NormKind::Layer).then_some(&bias);
        let norm = Norm {
            kind: self.kind,
            bias,
            ..rms(&weight)
        };
        let mut out = output(backend, n_rows, width);
        backend.norm(&x, &norm, &mut out);
        let mut all = values(backend, &out, n_rows, width);
        backend.add_norm(&mut x, &delta, &norm, &mut out);
        all.extend(values(backend, &x, n_rows, width));
        all.extend(values(backend, &out, n_rows, width));
        backend.add(&mut x, &delta);
        all.extend(values(backend, &x, n_rows, width));
        all
    }
}

#[test]
fn norms_conform() {
    for (width, n_rows) in [(1, 1), (33, 5), (576, 3), (64, 0)] {
        for kind in [NormKind::Rms, NormKind::Layer] {
            let mut random = Random(width as u64);
            let x = random_rows(2 * n_rows, width, &mut random);
            let case = Norms {
                kind,
                x,
                weights: random_rows(2, width, &mut random),
            };
            conform(&format!("{kind:?} norms of {n_rows} x {width}"), F32_BOUND, &case);
        }
    }
}

struct Elements {
    width: usize,
    x: Vec<f32>,
    logit_rows: Vec<u32>,
}

impl Case for Elements {
    fn run<B: Backend>(&self, backend: &mut B) -> Vec<f32> {
        let n_rows = self.x.len() / self.width;
        let mut all = Vec::new();
        let activations = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];
        for activation in activations {
            let x = tensor(backend, self.width, &self.x);
            let mut out = output(backend, n_rows, self.width / 2);
            backend.gated(&x, activation, &mut out);
            all.extend(values(backend, &out, n_rows, self.width / 2));
        }
        let functions = [Elementwise::Scale(0.37), Elementwise::SoftCap(1.5)];
        for function in functions
            .into_iter()
            .chain(activations.map(Elementwise::Activate))
        {
            let mut x = tensor(backend, self.width, &self.x);
            backend.elementwise(&mut x, function);
            all.extend(values(backend, &x, n_rows, self.width));
        }
        let x = tensor(backend, self.width, &self.x);
        let n_wanted = self.logit_rows.len();
        let mut out = output(backend, n_wanted, self.width);
        let rows = Rows {
            logit_rows: self.logit_rows.clone(),
            ..Rows::zeros(n_rows)
        };
        let batch = rows.upload(backend, SMALL);
        backend.gather(&x, &batch, &mut out);
        all.extend(values(backend, &out, n_wanted, self.width));
        all
    }
}

#[test]
fn functions_of_elements_and_gather_conform() {
    for (width, n_rows, logit_rows) in [
        (2, 1, vec![0]),
        (194, 6, vec![1, 4, 5]),
        (1030, 3, vec![2]),
        (16, 0, vec![]),
    ] {
        let x = random_rows(n_rows, width, &mut Random(width as u64 + 1));
        let x = x.iter().map(|x| x * 4.0).collect();
        conform(
            &format!("elements of {n_rows} x {width}"),
            F32_BOUND,
            &Elements { width, x, logit_rows },
        );
    }
}

/// A sequence written and read in two steps, on pages in no order, beside another one.
struct Attention {
    heads: HeadLayout,
    page_size: usize,
    n_tokens: usize,
    spec: AttentionSpec,
    style: Option<RopeStyle>,
    qk_norm: Option<QkNormSpan>,
    qkv: Vec<f32>,
    norms: Vec<f32>,
}

impl Attention {
    fn new(heads: HeadLayout, page_size: usize, n_tokens: usize) -> Self {
        let mut random = Random(n_tokens as u64 + heads.head_dim as u64);
        Attention {
            heads,
            page_size,
            n_tokens,
            spec: AttentionSpec::full(heads.head_dim),
            style: Some(RopeStyle::Halves),
            qk_norm: None,
            qkv: random_rows(n_tokens, heads.qkv_width(), &mut random),
            norms: random_rows(
                1,
                (heads.n_heads + heads.n_kv_heads) * heads.head_dim,
                &mut random,
            ),
        }
    }

    /// The outputs of all tokens, computed in chunks of `chunk` rows.
    fn in_chunks<B: Backend>(&self, backend: &mut B, chunk: usize) -> Vec<f32> {
        let n_pages = self.n_tokens.div_ceil(self.page_size);
        let shape = KvShape {
            n_layers: 2,
            n_kv_heads: self.heads.n_kv_heads,
            head_dim: self.heads.head_dim,
            page_size: self.page_size,
            n_pages: 2 * n_pages + 2,
        };
        let mut kv = backend.kv(shape).expect("a small pool");
        for page in 0..shape.n_pages as u32 {
            backend.poison_page(&mut kv, page);
        }
        // Every other page, downwards.
        let pages: Vec<u32> = (0..n_pages as u32).rev().map(|page| 2 * page + 1).collect();
        let (width, out_width) = (self.heads.qkv_width(), self.heads.n_heads * self.heads.head_dim);
        let mut all = Vec::new();
        for first in (0..self.n_tokens).step_by(chunk) {
            let end = (first + chunk).min(self.n_tokens);
            let slot = |t: usize| pages[t / self.page_size] as usize * self.page_size + t % self.page_size;
            let rows = Rows {
                ids: vec![0; end - first],
                positions: (first as u32..end as u32).collect(),
                slots: (first..end).map(|t| slot(t) as u32).collect(),
                logit_rows: Vec::new(),
                sequences: vec![SequenceRows {
                    first_row: 0,
                    n_rows: end - first,
                    first_position: first,
                    first_page: 0,
                    n_pages,
                }],
                page_tables: pages.clone(),
            };
            let mut qkv = tensor(backend, width, &self.qkv[first * width..end * width]);
            let batch = rows.upload_for(backend, (self.heads, shape), self.spec.window);
            self.store(backend, &mut qkv, &batch, &mut kv);
            let mut out = output(backend, end - first, out_width);
            let layer = AttentionLayer {
                sinks: None,
                layer: 1,
                spec: &self.spec,
            };
            backend.attention(&qkv, &kv, layer, &batch, &mut out);
            all.extend(values(backend, &out, end - first, out_width));
            // A copy there and back over a poisoned page changes nothing.
            backend.copy_page(&mut kv, pages[0], 0);
            backend.poison_page(&mut kv, pages[0]);
            backend.copy_page(&mut kv, 0, pages[0]);
        }
        all
    }

    fn store<B: Backend>(&self, backend: &mut B, qkv: &mut B::Tensor, batch: &B::Batch, kv: &mut B::Kv) {
        let (heads, dim) = (self.heads, self.heads.head_dim);
        let (n_query, n_key) = match self.qk_norm {
            Some(QkNormSpan::AllHeads) => (heads.n_heads * dim, heads.n_kv_heads * dim),
            _ => (dim, dim),
        };
        let query = backend.upload(&self.norms[..n_query]).expect("small");
        let key = backend.upload(&self.norms[n_query..][..n_key]).expect("small");
        let norm = |span| QkNorm {
            span,
            query: &query,
            key: &key,
            eps: 1e-6,
        };
        let store = RopeStore {
            heads,
            layer: 1,
            qk_norm: self.qk_norm.map(norm),
        };
        // Three quarters of a head are rotated.
        let rope_dim = dim / 4 * 3 / 2 * 2;
        let angle = |i: usize| (i / (rope_dim / 2)) as f32 * 0.7f32.powi((i % (rope_dim / 2)) as i32);
        let rope = self.style.map(|style| {
            let angles = (0..self.n_tokens * rope_dim / 2).map(angle);
            let cos_sin = angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect();
            backend
                .rope(RopeTable {
                    style,
                    rope_dim,
                    cos_sin,
                })
                .expect("a small table")
        });
        backend.rope_store(qkv, rope.as_ref(), &store, batch, kv);
    }
}

impl Case for Attention {
    fn run<B: Backend>(&self, backend: &mut B) -> Vec<f32> {
        self.in_chunks(backend, self.n_tokens)
    }
}

const HEADS: HeadLayout = HeadLayout {
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 16,
};

fn attention_cases() -> Vec<(&'static str, Attention)> {
    let case = |heads, page_size, n_tokens| Attention::new(heads, page_size, n_tokens);
    let wide = HeadLayout {
        n_heads: 3,
        n_kv_heads: 1,
        head_dim: 80,
    };
    vec![
        ("one token", case(HEADS, 16, 1)),
        ("three blocks", case(HEADS, 32, 130)),
        ("heads of 80", case(wide, 64, 66)),
        (
            "interleaved",
            Attention {
                style: Some(RopeStyle::Interleaved),
                ..case(HEADS, 16, 20)
            },
        ),
        (
            "no rotation",
            Attention {
                style: None,
                ..case(HEADS, 16, 20)
            },
        ),
        (
            "norm of each head",
            Attention {
                qk_norm: Some(QkNormSpan::EachHead),
                ..case(HEADS, 16, 20)
            },
        ),
        (
            "norm of all heads",
            Attention {
                qk_norm: Some(QkNormSpan::AllHeads),
                ..case(HEADS, 16, 20)
            },
        ),
        (
            "a window of 70",
            Attention {
                spec: AttentionSpec {
                    window: Some(70),
                    ..AttentionSpec::full(16)
                },
                ..case(HEADS, 16, 150)
            },
        ),
        (
            "a soft cap",
            Attention {
                spec: AttentionSpec {
                    soft_cap: Some(0.8),
                    scale: 0.4,
                    window: None,
                },
                ..case(HEADS, 16, 40)
            },
        ),
    ]
}

#[test]
fn rotation_and_attention_conform() {
    for (what, case) in attention_cases() {
        conform(what, BF16_BOUND, &case);
    }
}

#[test]
fn chunks_of_a_sequence_change_no_bit_of_its_attention() {
    for (what, case) in attention_cases() {
        let Some(device) = Emulated::new(9) else { return };
        let mut backend = device.backend().expect("the emulated device works");
        let whole = case.in_chunks(&mut backend, case.n_tokens);
        // One token at a time where there are few.
        let chunks: &[usize] = if case.n_tokens <= 20 { &[1, 7] } else { &[19, 64] };
        for &chunk in chunks {
            let chunked = case.in_chunks(&mut backend, chunk);
            assert!(!backend.is_lost(), "{what}: {}", device.diagnosis(&backend));
            let is_equal = whole
                .iter()
                .zip(&chunked)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(
                is_equal && whole.len() == chunked.len(),
                "{what} in chunks of {chunk}"
            );
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() {
    let Some(device) = Emulated::new(4) else { return };
    let mut backend = device.backend().expect("the emulated device works");
    let (n_in, n_out) = (96, 40);
    let case = Product::new(&[(Format::Bf16, n_out)], n_in, 40, &mut Random(8));
    let mut product = |x: &[f32]| {
        let linear = backend.linear(&case.sources(), None).expect("a good matrix");
        let x = tensor(&mut backend, n_in, x);
        let n_rows = case.x.len() / n_in;
        let mut out = output(&mut backend, n_rows, n_out);
        backend.matmul(&linear, &x, &mut out);
        let n = out.n_rows();
        values(&mut backend, &out, n, n_out)
    };
    let together = product(&case.x);
    for row in [0, 1, 31, 32, 39] {
        let alone = product(&case.x[row * n_in..][..n_in]);
        let expected = &together[row * n_out..][..n_out];
        assert!(
            alone
                .iter()
                .zip(expected)
                .all(|(a, b)| a.to_bits() == b.to_bits()),
            "row {row}"
        );
    }
}
