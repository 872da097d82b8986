//! Mixtures of experts: every instruction set conforms to the reference, and a row has the same bits alone
//! and in any batch, with any number of threads and on every instruction set (C1).

#[expect(dead_code, reason = "these tests need matrices only")]
mod support;

use arbora_kernels::cpu::{CpuBackend, CpuConfig, CpuTensor, Isa, Pinning};
use arbora_kernels::quant::Format;
use arbora_kernels::reference::ReferenceBackend;
use arbora_kernels::{
    Activation, Backend, BackendError, ExpertInput, MatrixSource, RouterScore, RoutesShape, Routing,
    SharedExpert,
};
use support::{Random, random_matrix, random_rows};

fn cpu(isa: Isa, n_threads: usize) -> CpuBackend {
    CpuBackend::new(CpuConfig {
        n_threads,
        isa: Some(isa),
        pinning: Pinning::Auto,
    })
    .expect("an available instruction set and a few threads")
}

fn tensor(width: usize, values: &[f32]) -> CpuTensor {
    let n_rows = values.len() / width;
    let mut tensor = CpuTensor::new(n_rows, width).expect("small tensors fit");
    tensor.output(n_rows, width).copy_from_slice(values);
    tensor
}

/// Weights of a mixture.
struct Mixture {
    shape: RoutesShape,
    score: RouterScore,
    choice_bias: Option<Vec<f32>>,
    is_normalized: bool,
    scale: f32,
    n_in: usize,
    /// Outputs of the parts of an expert.
    parts: Vec<(Format, usize)>,
    /// Bytes of the parts of each expert.
    bytes: Vec<Vec<Vec<u8>>>,
    biases: Vec<Vec<f32>>,
    has_gate: bool,
    has_shared: bool,
}

impl Mixture {
    fn new(
        parts: &[(Format, usize)],
        (n_in, n_experts, n_used): (usize, usize, usize),
        seed: u64,
    ) -> Mixture {
        let random = &mut Random(seed);
        let n_out: usize = parts.iter().map(|part| part.1).sum();
        let expert = |random: &mut Random| {
            let matrix = |&(format, n_out): &(Format, usize)| random_matrix(format, n_out, n_in, random);
            parts.iter().map(matrix).collect()
        };
        Mixture {
            shape: RoutesShape {
                max_rows: 0,
                n_experts,
                n_used,
            },
            score: [RouterScore::Softmax, RouterScore::Sigmoid][random.below(2)],
            choice_bias: (random.below(2) == 0).then(|| random_rows(1, n_experts, random)),
            is_normalized: random.below(2) == 0,
            scale: [1.0, 2.5][random.below(2)],
            n_in,
            parts: parts.to_vec(),
            bytes: (0..n_experts).map(|_| expert(random)).collect(),
            biases: (0..n_experts).map(|_| random_rows(1, n_out, random)).collect(),
            has_gate: random.below(2) == 0,
            has_shared: random.below(3) > 0,
        }
    }

    fn n_out(&self) -> usize {
        self.parts.iter().map(|part| part.1).sum()
    }

    /// A row of inputs: logits, an input of the experts, an output of as many, and a shared expert's output
    /// with its gate.
    fn width(&self) -> usize {
        self.shape.n_experts + self.n_in + self.shape.n_used * self.n_in + self.n_out() + 1
    }

    fn experts<B: Backend>(&self, backend: &mut B) -> B::Experts {
        let linear = |(expert, bias): (&Vec<Vec<u8>>, &Vec<f32>)| {
            let source = |(&(format, n_out), bytes): (&(Format, usize), &'_ Vec<u8>)| MatrixSource {
                format,
                n_out,
                n_in: self.n_in,
                bytes: Box::leak(bytes.clone().into_boxed_slice()),
            };
            let sources: Vec<MatrixSource<'_>> = self.parts.iter().zip(expert).map(source).collect();
            backend.linear(&sources, Some(bias)).expect("good matrices")
        };
        let linears: Vec<B::Linear> = self.bytes.iter().zip(&self.biases).map(linear).collect();
        backend.experts(linears).expect("equal shapes")
    }

    /// Of each row: products of its experts with its input, in the order of its slots; products with inputs
    /// of each slot; and the sum of the first.
    fn run<B: Backend<Tensor = CpuTensor>>(
        &self,
        backend: &mut B,
        experts: &B::Experts,
        rows: &[f32],
    ) -> Vec<Vec<f32>> {
        let RoutesShape {
            n_experts, n_used, ..
        } = self.shape;
        let (n_in, n_out) = (self.n_in, self.n_out());
        let rows: Vec<&[f32]> = rows.chunks_exact(self.width()).collect();
        let n_rows = rows.len();
        let column = |first: usize, width: usize| -> Vec<f32> {
            let parts = rows.iter().flat_map(|row| &row[first..first + width]);
            parts.copied().collect()
        };
        let shape = RoutesShape {
            max_rows: n_rows,
            ..self.shape
        };
        let mut routes = backend.routes(shape).expect("small");
        let logits = tensor(n_experts, &column(0, n_experts));
        let choice_bias = self.choice_bias.as_ref().map(|bias| tensor(n_experts, bias));
        let routing = Routing {
            score: self.score,
            choice_bias: choice_bias.as_ref(),
            is_normalized: self.is_normalized,
            scale: self.scale,
        };
        backend.route(&logits, &routing, &mut routes);
        let x = tensor(n_in, &column(n_experts, n_in));
        let mut by_row = tensor(n_out, &vec![f32::NAN; n_rows * n_used * n_out]);
        backend.expert_matmul(experts, ExpertInput::Rows(&x), &routes, &mut by_row);
        // Rows of each slot, told by a mixture that hands them on: slots are in the order of experts.
        let slots = self.slots(&logits, &choice_bias);
        let place = n_experts + n_in;
        let of_slot = |&(row, choice): &(usize, usize)| &rows[row][place + choice * n_in..][..n_in];
        let inputs: Vec<f32> = slots.iter().flat_map(of_slot).copied().collect();
        let mut by_slot = tensor(n_out, &vec![f32::NAN; n_rows * n_used * n_out]);
        let inputs = tensor(n_in, &inputs);
        backend.expert_matmul(experts, ExpertInput::Slots(&inputs), &routes, &mut by_slot);
        let place = place + n_used * n_in;
        let (shared, gate) = (
            tensor(n_out, &column(place, n_out)),
            tensor(1, &column(place + n_out, 1)),
        );
        let shared = SharedExpert {
            out: &shared,
            gate: self.has_gate.then_some(&gate),
        };
        let mut sum = tensor(n_out, &vec![f32::NAN; n_rows * n_out]);
        backend.combine(&by_row, &routes, self.has_shared.then_some(shared), &mut sum);
        let of_row = |row: usize| {
            let own = slots.iter().enumerate().filter(|(_, slot)| slot.0 == row);
            let products = own.flat_map(|(slot, _)| [by_row.row(slot), by_slot.row(slot)]);
            products.chain([sum.row(row)]).flatten().copied().collect()
        };
        (0..n_rows).map(of_row).collect()
    }

    /// Row of each slot, and which of its experts (by number) it is for, by plain sorting.
    fn slots(&self, logits: &CpuTensor, choice_bias: &Option<CpuTensor>) -> Vec<(usize, usize)> {
        let mut slots = Vec::new();
        for row in 0..logits.n_rows() {
            let logits = logits.row(row);
            let total: f32 = logits.iter().map(|x| x.exp()).sum();
            let rank = |expert: usize| {
                let score = match self.score {
                    RouterScore::Softmax => logits[expert].exp() / total,
                    RouterScore::Sigmoid => 1.0 / (1.0 + (-logits[expert]).exp()),
                };
                score + choice_bias.as_ref().map_or(0.0, |bias| bias.row(0)[expert])
            };
            let mut experts: Vec<usize> = (0..logits.len()).collect();
            experts.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)));
            experts.truncate(self.shape.n_used);
            experts.sort_unstable();
            slots.extend(
                experts
                    .iter()
                    .enumerate()
                    .map(|(choice, expert)| (*expert, row, choice)),
            );
        }
        slots.sort_unstable();
        slots.into_iter().map(|(_, row, choice)| (row, choice)).collect()
    }
}

/// Mixtures in every format, and of parts in several.
fn mixtures() -> Vec<(Mixture, u64)> {
    let mut mixtures = Vec::new();
    for (i, format) in Format::ALL.into_iter().enumerate() {
        let n_in = 64.max(format.block_len());
        for (j, (n_experts, n_used)) in [(5, 2), (3, 1), (4, 4)].into_iter().enumerate() {
            let seed = (10 * i + j + 1) as u64;
            let parts = [(format, 19)];
            mixtures.push((Mixture::new(&parts, (n_in, n_experts, n_used), seed), seed));
        }
    }
    let parts = [(Format::Q4_0, 32), (Format::F16, 7), (Format::Q8_0, 16)];
    mixtures.push((Mixture::new(&parts, (96, 9, 3), 1001), 1001));
    mixtures
}

#[test]
fn mixtures_of_experts_conform() {
    for (mixture, seed) in mixtures() {
        for n_rows in [0, 1, 2, 7, 37, 80] {
            let rows = random_rows(n_rows, mixture.width(), &mut Random(seed + n_rows as u64));
            let mut reference = ReferenceBackend::new();
            let experts = mixture.experts(&mut reference);
            let expected = mixture.run(&mut reference, &experts, &rows);
            for isa in Isa::available() {
                for n_threads in [1, 3] {
                    let mut backend = cpu(isa, n_threads);
                    let experts = mixture.experts(&mut backend);
                    let found = mixture.run(&mut backend, &experts, &rows);
                    assert_eq!(found.len(), n_rows);
                    let largest = expected.iter().flatten().fold(0f32, |a, b| a.max(b.abs()));
                    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        for (found, expected) in found.iter().zip(expected) {
                            // Written so that a NaN fails.
                            let close = (found - expected).abs() <= 1e-5 * largest;
                            assert!(
                                close,
                                "{isa:?}, {n_threads} threads, row {row} of {n_rows}, seed {seed}: {found}, \
                                 not {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}

fn bits(row: Vec<f32>) -> Vec<u32> {
    row.into_iter().map(f32::to_bits).collect()
}

/// Every instruction set, number of threads, number of rows and place in the batch against one row alone on
/// the scalar kernels.
fn check_rows(mixture: &Mixture, (counts, n_threads): (&[usize], &[usize]), seed: u64) {
    let most = counts.iter().copied().max().expect("some counts");
    let mut random = Random(seed);
    let rows = random_rows(most, mixture.width(), &mut random);
    let mut scalar = cpu(Isa::Scalar, 1);
    let experts = mixture.experts(&mut scalar);
    let alone: Vec<Vec<u32>> = rows
        .chunks_exact(mixture.width())
        .flat_map(|row| mixture.run(&mut scalar, &experts, row))
        .map(bits)
        .collect();
    for isa in Isa::available() {
        for &n_threads in n_threads {
            let mut backend = cpu(isa, n_threads);
            let experts = mixture.experts(&mut backend);
            for &n_rows in counts {
                for first in [0, random.below(most - n_rows + 1), most - n_rows] {
                    let part = &rows[first * mixture.width()..(first + n_rows) * mixture.width()];
                    let together = mixture.run(&mut backend, &experts, part);
                    let together: Vec<Vec<u32>> = together.into_iter().map(bits).collect();
                    assert!(
                        together == alone[first..first + n_rows],
                        "{isa:?}, {n_threads} threads, {n_rows} rows from {first}, seed {seed}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_bits_of_a_row_depend_on_that_row_only() {
    let counts: Vec<usize> = (1..=6).chain([9, 16, 17, 33, 70]).collect();
    for (mixture, seed) in mixtures() {
        check_rows(&mixture, (&counts, &[1, 3]), seed);
    }
}

#[test]
fn the_bits_of_a_row_stay_in_a_batch_of_several_passes() {
    for (format, seed) in [(Format::Q4_1, 5), (Format::Bf16, 6), (Format::Mxfp4, 7)] {
        let mixture = Mixture::new(&[(format, 35)], (1536, 3, 2), seed);
        check_rows(&mixture, (&[519], &[1, 3]), seed);
    }
}

#[test]
fn a_mixture_behind_a_mixture_has_the_same_bits_in_any_batch() {
    let (n_in, n_experts) = (64, 6);
    let up = Mixture::new(&[(Format::Q4K, 512)], (256, n_experts, 2), 21);
    let down = Mixture::new(&[(Format::Q6K, n_in)], (256, n_experts, 2), 22);
    let rows = random_rows(90, 256, &mut Random(23));
    let logits = random_rows(90, n_experts, &mut Random(24));
    let run = |backend: &mut CpuBackend, range: std::ops::Range<usize>| {
        let (up, down) = (up.experts(backend), down.experts(backend));
        let n_rows = range.len();
        let shape = RoutesShape {
            max_rows: n_rows,
            n_experts,
            n_used: 2,
        };
        let mut routes = backend.routes(shape).expect("small");
        let routing = Routing {
            score: RouterScore::Softmax,
            choice_bias: None,
            is_normalized: true,
            scale: 1.0,
        };
        let part =
            |values: &[f32], width: usize| tensor(width, &values[range.start * width..range.end * width]);
        backend.route(&part(&logits, n_experts), &routing, &mut routes);
        let mut gate_up = backend.tensor(shape.max_slots(), 512).expect("small");
        let mut activated = backend.tensor(shape.max_slots(), 256).expect("small");
        let mut slots = backend.tensor(shape.max_slots(), n_in).expect("small");
        let mut out = backend.tensor(n_rows, n_in).expect("small");
        let x = part(&rows, 256);
        backend.expert_matmul(&up, ExpertInput::Rows(&x), &routes, &mut gate_up);
        backend.gated(&gate_up, Activation::Silu, &mut activated);
        backend.expert_matmul(&down, ExpertInput::Slots(&activated), &routes, &mut slots);
        backend.combine(&slots, &routes, None, &mut out);
        bits(out.values().to_vec())
    };
    let alone: Vec<u32> = (0..90)
        .flat_map(|row| run(&mut cpu(Isa::Scalar, 1), row..row + 1))
        .collect();
    for isa in Isa::available() {
        for (n_threads, range) in [(1, 0..90), (2, 3..40), (3, 17..18), (4, 0..90)] {
            let found = run(&mut cpu(isa, n_threads), range.clone());
            assert!(
                found == alone[range.start * n_in..range.end * n_in],
                "{isa:?}, {n_threads} threads, rows {range:?}"
            );
        }
    }
}

#[test]
fn experts_of_different_shapes_are_refused() {
    let zeros = [0u8; 4096];
    for isa in Isa::available() {
        let mut backend = cpu(isa, 1);
        let mut linear = |n_out: usize| {
            let source = MatrixSource {
                format: Format::F32,
                n_out,
                n_in: 8,
                bytes: &zeros[..n_out * 32],
            };
            backend.linear(&[source], None).expect("a good matrix")
        };
        let linears = vec![linear(5), linear(6)];
        let error = backend.experts(linears).err().expect("it must be refused");
        assert!(
            matches!(error, BackendError::BadMatrix { n_out: 6, .. }),
            "{error}"
        );
    }
}

#[test]
fn an_expert_that_is_not_finite_spoils_only_the_rows_that_chose_it() {
    let mut mixture = Mixture::new(&[(Format::F32, 20)], (8, 4, 1), 31);
    (mixture.score, mixture.choice_bias, mixture.has_shared) = (RouterScore::Softmax, None, false);
    mixture.bytes[2][0].fill(0xff);
    let mut rows = random_rows(40, mixture.width(), &mut Random(32));
    for (row, values) in rows.chunks_exact_mut(mixture.width()).enumerate() {
        values[..4].fill(0.0);
        values[row % 4] = 1.0;
    }
    for isa in Isa::available() {
        let mut backend = cpu(isa, 3);
        let experts = mixture.experts(&mut backend);
        for (row, values) in mixture.run(&mut backend, &experts, &rows).iter().enumerate() {
            assert_eq!(
                values.iter().all(|x| x.is_finite()),
                row % 4 != 2,
                "row {row}, {isa:?}"
            );
        }
    }
}
