//! The ops of encoders: close to the reference, and the same bits whatever else is in the call.

use arbora_kernels::cpu::{CpuBackend, CpuConfig, CpuTensor, Isa, Pinning};
use arbora_kernels::encoder::{EmbeddingRows, EncoderBackend, TextAttention, TextLimits};
use arbora_kernels::quant::{Format, bf16_from_f32, f16_from_f32};
use arbora_kernels::reference::ReferenceBackend;
use arbora_kernels::{Activation, Backend, HeadLayout, MatrixSource, RopeStyle, RopeTable};

const LIMITS: TextLimits = TextLimits {
    max_rows: 300,
    max_text_rows: 200,
    max_inputs: 1600,
    head_dim: 64,
};

/// xorshift64*. The seed is not zero.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// About normal, variance 1.
    fn normal(&mut self) -> f32 {
        let unit = |bits: u64| (bits & 0xff_ffff) as f32 / 16_777_216.0;
        (0..12).map(|_| unit(self.bits())).sum::<f32>() - 6.0
    }
}

/// `n_out` rows in a plain format, values of about 1/sqrt(n_in).
fn random_matrix(format: Format, n_out: usize, n_in: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(n_out * n_in * format.block_bytes());
    for _ in 0..n_out * n_in {
        let weight = random.normal() / (n_in as f32).sqrt();
        match format {
            Format::F16 => bytes.extend(f16_from_f32(weight).to_le_bytes()),
            Format::Bf16 => bytes.extend(bf16_from_f32(weight).to_le_bytes()),
            _ => bytes.extend(weight.to_le_bytes()),
        }
    }
    bytes
}

fn cpu(isa: Isa, n_threads: usize) -> CpuBackend {
    let config = CpuConfig {
        n_threads,
        isa: Some(isa),
        pinning: Pinning::Free,
    };
    let mut backend = CpuBackend::new(config).expect("threads");
    backend.reserve_texts(LIMITS).expect("memory");
    backend
}

/// Every instruction set of this machine, with one thread and with three.
fn backends() -> Vec<CpuBackend> {
    let isas = Isa::available();
    isas.into_iter()
        .flat_map(|isa| [cpu(isa, 1), cpu(isa, 3)])
        .collect()
}

fn rows(n_rows: usize, width: usize, random: &mut Random) -> CpuTensor {
    let mut tensor = CpuTensor::new(n_rows, width).expect("memory");
    tensor.output(n_rows, width).fill_with(|| random.normal());
    tensor
}

/// Rows of a tensor as a tensor of their own.
fn part(tensor: &CpuTensor, rows: std::ops::Range<usize>) -> CpuTensor {
    let width = tensor.width();
    let mut part = CpuTensor::new(rows.len(), width).expect("memory");
    part.output(rows.len(), width)
        .copy_from_slice(&tensor.values()[rows.start * width..rows.end * width]);
    part
}

fn dense<B: EncoderBackend<Tensor = CpuTensor>>(
    backend: &mut B,
    (sources, bias): (&[MatrixSource<'_>], &[f32]),
    (x, activation): (&CpuTensor, Option<Activation>),
) -> Vec<f32> {
    let layer = backend.dense(sources, Some(bias)).expect("a good matrix");
    let mut out = backend.tensor(x.n_rows(), bias.len()).expect("memory");
    backend.dense_matmul(&layer, x, activation, &mut out);
    out.values().to_vec()
}

#[test]
fn a_dense_layer_is_as_close_to_the_exact_product_as_its_rounding_allows() {
    let mut random = Random(0x5eed_0001);
    let shapes = [
        (1, 1),
        (5, 17),
        (33, 16),
        (384, 40),
        (256, 15),
        (1536, 33),
        (258, 1),
    ];
    for (n_in, n_out) in shapes {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let bytes = random_matrix(format, n_out, n_in, &mut random);
            let source = MatrixSource {
                format,
                n_out,
                n_in,
                bytes: &bytes,
            };
            let bias: Vec<f32> = (0..n_out).map(|_| random.normal()).collect();
            let x = rows(11, n_in, &mut random);
            for activation in [None, Some(Activation::Gelu)] {
                let case = (&[source][..], &bias[..]);
                let exact = dense(&mut ReferenceBackend::new(), case, (&x, activation));
                let mut first = None;
                for mut backend in backends() {
                    let found = dense(&mut backend, case, (&x, activation));
                    for (found, exact) in found.iter().zip(&exact) {
                        // Half a step of each number, thousands of steps from 0; errors add like noise.
                        assert!((found - exact).abs() < 6e-3, "{n_in} x {n_out}: {found} {exact}");
                    }
                    let error: f32 = found.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
                    let rms = (error / found.len() as f32).sqrt();
                    assert!(rms < 1e-3, "{n_in} x {n_out}: error {rms}");
                    let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
                    let same = first.get_or_insert(bits.clone());
                    assert_eq!(*same, bits, "the same bits on every instruction set");
                }
            }
        }
    }
}

#[test]
fn sums_of_the_largest_integers_do_not_overflow() {
    for n_in in [256, 1024] {
        let bytes: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), n_in).flatten().collect();
        let source = MatrixSource {
            format: Format::F32,
            n_out: 1,
            n_in,
            bytes: &bytes,
        };
        for sign in [1.0, -1.0] {
            let mut x = CpuTensor::new(1, n_in).expect("memory");
            x.output(1, n_in).fill(sign);
            for mut backend in backends() {
                let found = dense(&mut backend, (&[source], &[0.0]), (&x, None));
                let expected = sign * n_in as f32;
                assert!(
                    (found[0] - expected).abs() < 1e-3 * n_in as f32,
                    "{found:?} {expected}"
                );
            }
        }
    }
}

#[test]
fn parts_are_stacked_and_rows_do_not_see_each_other() {
    let mut random = Random(0x5eed_0002);
    let (n_in, n_outs) = (100, [19, 16, 5]);
    let bytes: Vec<Vec<u8>> = n_outs
        .iter()
        .map(|n_out| random_matrix(Format::F32, *n_out, n_in, &mut random))
        .collect();
    let sources: Vec<MatrixSource<'_>> = bytes
        .iter()
        .zip(n_outs)
        .map(|(bytes, n_out)| MatrixSource {
            format: Format::F32,
            n_out,
            n_in,
            bytes,
        })
        .collect();
    let bias: Vec<f32> = (0..40).map(|_| random.normal()).collect();
    let x = rows(230, n_in, &mut random);
    for mut backend in backends() {
        let all = dense(&mut backend, (&sources, &bias), (&x, None));
        let mut first_out = 0;
        for source in &sources {
            let bias = &bias[first_out..][..source.n_out];
            let found = dense(&mut backend, (&[*source], bias), (&x, None));
            for (row, found) in found.chunks_exact(source.n_out).enumerate() {
                assert_eq!(found, &all[row * 40 + first_out..][..source.n_out]);
            }
            first_out += source.n_out;
        }
        for cut in [0..1, 3..4, 7..20, 100..230] {
            let found = dense(&mut backend, (&sources, &bias), (&part(&x, cut.clone()), None));
            assert_eq!(found, &all[cut.start * 40..cut.end * 40], "{cut:?}");
        }
    }
}

#[test]
fn the_embedding_of_a_row_is_the_sum_of_its_tables() {
    let mut random = Random(0x5eed_0003);
    let (words, places) = (rows(50, 24, &mut random), rows(9, 24, &mut random));
    let ids: Vec<u32> = (0..70).map(|_| random.below(50) as u32).collect();
    let positions: Vec<u32> = (0..70).map(|_| random.below(9) as u32).collect();
    for mut backend in backends() {
        let words = backend.table(words.values(), 24).expect("memory");
        let places = backend.table(places.values(), 24).expect("memory");
        let mut out = backend.tensor(70, 24).expect("memory");
        let tables = [
            EmbeddingRows {
                table: &words,
                ids: &ids,
            },
            EmbeddingRows {
                table: &places,
                ids: &positions,
            },
        ];
        backend.embed_sum(&tables, &mut out);
        for row in 0..70 {
            let (word, place) = (words.row(ids[row] as usize), places.row(positions[row] as usize));
            let expected: Vec<f32> = word.iter().zip(place).map(|(a, b)| a + b).collect();
            assert_eq!(out.row(row), expected);
        }
    }
}

#[test]
fn attention_of_texts_is_close_to_the_reference_and_sees_no_other_text() {
    let mut random = Random(0x5eed_0004);
    let lengths = [1, 2, 3, 4, 7, 8, 16, 17, 31, 66, 129];
    let ends: Vec<usize> = lengths
        .iter()
        .scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
        .collect();
    for (n_heads, n_kv_heads, head_dim) in [(3, 3, 32), (4, 2, 8), (2, 1, 64), (1, 1, 24)] {
        let heads = HeadLayout {
            n_heads,
            n_kv_heads,
            head_dim,
        };
        let qkv = rows(ends[ends.len() - 1], heads.qkv_width(), &mut random);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attend = |backend: &mut dyn FnMut(&CpuTensor, &TextAttention<'_>, &mut CpuTensor),
                      qkv: &CpuTensor,
                      ends: &[usize]| {
            let mut out = CpuTensor::new(qkv.n_rows(), n_heads * head_dim).expect("memory");
            backend(qkv, &TextAttention { heads, ends, scale }, &mut out);
            out
        };
        let mut reference = ReferenceBackend::new();
        let exact = attend(&mut |q, t, o| reference.attend_texts(q, t, o), &qkv, &ends);
        for mut backend in backends() {
            let mut run = |q: &CpuTensor, t: &TextAttention<'_>, o: &mut CpuTensor| {
                backend.attend_texts(q, t, o);
            };
            let all = attend(&mut run, &qkv, &ends);
            for (found, exact) in all.values().iter().zip(exact.values()) {
                assert!((found - exact).abs() < 2e-6, "{heads:?}: {found} {exact}");
            }
            for (text, &end) in ends.iter().enumerate() {
                let range = end - lengths[text]..end;
                let alone = attend(&mut run, &part(&qkv, range.clone()), &[lengths[text]]);
                assert_eq!(alone.values(), part(&all, range).values(), "text {text} alone");
            }
        }
    }
}

#[test]
fn rotation_of_texts_is_the_rotation_of_their_positions() {
    let mut random = Random(0x5eed_0005);
    let heads = HeadLayout {
        n_heads: 3,
        n_kv_heads: 3,
        head_dim: 16,
    };
    let angles = (0..20 * 8).map(|i| i as f32 * 0.1);
    let table = RopeTable {
        style: RopeStyle::Halves,
        rope_dim: 16,
        cos_sin: angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect(),
    };
    let qkv = rows(33, heads.qkv_width(), &mut random);
    let positions: Vec<u32> = (0..33).map(|_| random.below(20) as u32).collect();
    let mut exact = part(&qkv, 0..33);
    ReferenceBackend::new().rotate_texts(&mut exact, heads, &table, &positions);
    for mut backend in backends() {
        let mut found = part(&qkv, 0..33);
        backend.rotate_texts(&mut found, heads, &table, &positions);
        for (found, exact) in found.values().iter().zip(exact.values()) {
            assert!((found - exact).abs() < 1e-6, "{found} {exact}");
        }
    }
}
