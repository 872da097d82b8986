//! Ops that treat every row by itself give a row the same bits alone and in any batch, with any number of
//! threads and on every instruction set.

#[expect(dead_code, reason = "these tests need no matrices")]
mod support;

use arbora_kernels::cpu::{CpuBackend, CpuConfig, CpuTensor, Isa, Pinning};
use arbora_kernels::{
    Activation, Adjustment, Allowed, Backend, Elementwise, HeadLayout, KvShape, LogprobRow, Norm, NormKind,
    QkNorm, QkNormSpan, RopeStore, RopeStyle, RopeTable, SampleRow, Scored,
};
use support::{Random, Rows, answers, random_rows, rms};

fn backend(isa: Isa, n_threads: usize) -> CpuBackend {
    CpuBackend::new(CpuConfig {
        n_threads,
        isa: Some(isa),
        pinning: Pinning::Auto,
    })
    .expect("the machine has the instruction set")
}

fn tensor(width: usize, rows: &[f32]) -> CpuTensor {
    let n_rows = rows.len() / width;
    let mut tensor = CpuTensor::new(n_rows, width).expect("small tensors fit");
    tensor.output(n_rows, width).copy_from_slice(rows);
    tensor
}

fn bits(tensor: &CpuTensor) -> Vec<Vec<u32>> {
    let rows = tensor.values().chunks_exact(tensor.width());
    rows.map(|row| row.iter().map(|value| value.to_bits()).collect())
        .collect()
}

/// Runs `op` on each row alone on the plain backend, then on batches on all others. `op` gives one result a
/// row.
fn rows_agree<T: PartialEq + std::fmt::Debug>(
    width: usize,
    op: impl Fn(&mut CpuBackend, &CpuTensor, &[usize]) -> Vec<T>,
) {
    let seed = 40 + width as u64;
    let mut random = Random(seed);
    let rows = random_rows(70, width, &mut random);
    let mut plain = backend(Isa::Scalar, 1);
    let alone: Vec<T> = rows
        .chunks_exact(width)
        .enumerate()
        .flat_map(|(row, values)| op(&mut plain, &tensor(width, values), &[row]))
        .collect();
    for isa in Isa::available() {
        for n_threads in 1..=4 {
            let mut backend = backend(isa, n_threads);
            for (first, n_rows) in [(0, 70), (0, 1), (1, 2), (3, 40), (69, 1), (5, 33)] {
                let batch = tensor(width, &rows[first * width..][..n_rows * width]);
                let places: Vec<usize> = (first..first + n_rows).collect();
                let together = op(&mut backend, &batch, &places);
                assert_eq!(
                    together,
                    alone[first..first + n_rows],
                    "rows from {first} of width {width}, {isa:?}, {n_threads} threads, seed {seed}"
                );
            }
        }
    }
}

#[test]
fn norms_of_a_row_do_not_depend_on_the_batch() {
    for width in [1, 31, 64, 576, 4099] {
        let weight = tensor(width, &random_rows(1, width, &mut Random(9)));
        let bias = tensor(width, &random_rows(1, width, &mut Random(10)));
        for norm in [
            rms(&weight),
            Norm {
                kind: NormKind::Layer,
                bias: Some(&bias),
                ..rms(&weight)
            },
        ] {
            rows_agree(width, |backend, x, _| {
                let mut out = tensor(width, &vec![f32::NAN; x.values().len()]);
                backend.norm(x, &norm, &mut out);
                bits(&out)
            });
            rows_agree(width, |backend, x, _| {
                let mut residual = tensor(width, x.values());
                let mut out = tensor(width, &vec![f32::NAN; x.values().len()]);
                backend.add_norm(&mut residual, x, &norm, &mut out);
                bits(&out).into_iter().zip(bits(&residual)).collect::<Vec<_>>()
            });
        }
        rows_agree(width, |backend, x, _| {
            let mut sum = tensor(width, x.values());
            backend.add(&mut sum, x);
            bits(&sum)
        });
    }
}

#[test]
fn functions_of_the_elements_of_a_row_do_not_depend_on_the_batch() {
    for width in [2, 62, 3072, 40_000] {
        for activation in [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::ClampedSwish,
        ] {
            rows_agree(width, |backend, x, _| {
                let mut out = tensor(width / 2, &vec![f32::NAN; x.values().len() / 2]);
                backend.gated(x, activation, &mut out);
                bits(&out)
            });
            rows_agree(width, |backend, x, _| {
                let mut out = tensor(width, x.values());
                backend.elementwise(&mut out, Elementwise::Activate(activation));
                backend.elementwise(&mut out, Elementwise::SoftCap(1.7));
                backend.elementwise(&mut out, Elementwise::Scale(0.3));
                bits(&out)
            });
        }
    }
}

#[test]
fn a_sampled_token_does_not_depend_on_the_batch() {
    for n_vocab in [5, 300, 5003] {
        rows_agree(n_vocab, |backend, logits, places| {
            let ids: Vec<u32> = (0..n_vocab as u32).filter(|id| id % 3 != 1).collect();
            let adjustments = [Adjustment {
                token: 2,
                divisor: 1.0,
                shift: 3.0,
            }];
            let row = |place: &usize| SampleRow {
                allowed: [Allowed::All, Allowed::Ids(&ids)][place / 5 % 2],
                adjustments: [&[], adjustments.as_slice()][place / 7 % 2],
                temperature: [0.0, 0.7, 1.5][place % 3],
                top_k: [0, 40, 0][place / 3 % 3],
                top_p: [1.0, 0.9, 0.5][place / 9 % 3],
                min_p: [0.0, 0.05][place % 2],
                noise: (*place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            };
            let rows: Vec<SampleRow<'_>> = places.iter().map(row).collect();
            let out = answers(backend, logits, (&rows, &[])).tokens;
            assert!(
                out.iter()
                    .all(|token| token.is_some_and(|token| (token as usize) < n_vocab))
            );
            out
        });
    }
}

#[test]
fn logprobs_of_a_row_do_not_depend_on_the_batch() {
    for n_vocab in [5, 300, 5003] {
        rows_agree(n_vocab, |backend, logits, places| {
            let asked = |(row, place): (usize, &usize)| LogprobRow {
                row,
                token: match place % 2 {
                    0 => Scored::Drawn,
                    _ => Scored::Token((place * 7 % n_vocab) as u32),
                },
                n_top: [0, 3, 20][place % 3],
                listed: [(place * 3 % n_vocab) as u32].into(),
            };
            let rows: Vec<LogprobRow> = places.iter().enumerate().map(asked).collect();
            let greedy = vec![SampleRow::GREEDY; places.len()];
            let out = answers(backend, logits, (&greedy, &rows)).logprobs;
            assert!(out.iter().all(Option::is_some));
            out
        });
    }
}

struct Rotation {
    heads: HeadLayout,
    rope: RopeTable,
    norms: Option<(QkNormSpan, CpuTensor, CpuTensor)>,
}

impl Rotation {
    fn new(style: RopeStyle, rope_dim: usize, span: Option<QkNormSpan>) -> Rotation {
        let heads = HeadLayout {
            n_heads: 6,
            n_kv_heads: 2,
            head_dim: 20,
        };
        let mut random = Random(17);
        let angles = random_rows(200, rope_dim / 2, &mut random);
        let mut norm = |n_heads: usize, span: QkNormSpan| {
            let n = match span {
                QkNormSpan::EachHead => heads.head_dim,
                QkNormSpan::AllHeads => n_heads * heads.head_dim,
            };
            tensor(n, &random_rows(1, n, &mut random))
        };
        Rotation {
            heads,
            rope: RopeTable {
                style,
                rope_dim,
                cos_sin: angles
                    .iter()
                    .flat_map(|angle| [angle.cos(), angle.sin()])
                    .collect(),
            },
            norms: span.map(|span| (span, norm(heads.n_heads, span), norm(heads.n_kv_heads, span))),
        }
    }

    fn store(&self, backend: &mut CpuBackend, x: &CpuTensor, places: &[usize]) -> CpuTensor {
        let mut qkv = tensor(x.width(), x.values());
        let store = RopeStore {
            heads: self.heads,
            layer: 0,
            qk_norm: self.norms.as_ref().map(|(span, query, key)| QkNorm {
                span: *span,
                query,
                key,
                eps: 1e-6,
            }),
        };
        let shape = KvShape {
            n_layers: 1,
            n_kv_heads: self.heads.n_kv_heads,
            head_dim: self.heads.head_dim,
            page_size: 32,
            n_pages: 3,
        };
        let rows = Rows {
            positions: places.iter().map(|place| 2 * *place as u32).collect(),
            slots: places.iter().map(|place| (*place * 37 % 96) as u32).collect(),
            ..Rows::zeros(places.len())
        };
        let mut kv = backend.kv(shape).expect("a small pool fits");
        let batch = rows.upload(backend, (self.heads, shape));
        backend.rope_store(&mut qkv, Some(&self.rope), &store, &batch, &mut kv);
        qkv
    }
}

#[test]
fn rotation_of_a_row_does_not_depend_on_the_batch() {
    for style in [RopeStyle::Halves, RopeStyle::Interleaved] {
        for (rope_dim, span) in [
            (20, None),
            (12, Some(QkNormSpan::EachHead)),
            (20, Some(QkNormSpan::AllHeads)),
        ] {
            let rotation = Rotation::new(style, rope_dim, span);
            rows_agree(rotation.heads.qkv_width(), |backend, x, places| {
                bits(&rotation.store(backend, x, places))
            });
        }
    }
}
