//! What the ops of mixtures of experts mean, in plain loops over f64.

use super::ReferenceLinear;
use crate::cpu::CpuTensor;
use crate::{ExpertInput, RouterScore, RoutesShape, Routing, SharedExpert};

/// Each row's experts, those with larger scores first.
pub struct ReferenceRoutes {
    shape: RoutesShape,
    rows: Vec<Vec<Choice>>,
}

struct Choice {
    expert: usize,
    weight: f64,
}

impl ReferenceRoutes {
    /// Of no rows.
    pub(super) fn new(shape: RoutesShape) -> ReferenceRoutes {
        let rows = Vec::new();
        ReferenceRoutes { shape, rows }
    }

    /// Replaces the choices by those of these logits.
    pub(super) fn choose(&mut self, logits: &CpuTensor, routing: &Routing<'_, CpuTensor>) {
        assert_eq!(logits.width(), self.shape.n_experts, "a logit for each expert");
        let of = |row| choices(logits.row(row), routing, self.shape.n_used);
        self.rows = (0..logits.n_rows()).map(of).collect();
    }

    /// `out[s] = W_e input[s] + bias_e`.
    pub(super) fn multiply(
        &self,
        experts: &[ReferenceLinear],
        input: ExpertInput<'_, CpuTensor>,
        out: &mut CpuTensor,
    ) {
        let slots = self.slots();
        let n_out = experts[0].quantized.len();
        let rows = out.output(slots.len(), n_out).chunks_exact_mut(n_out);
        for (slot, (&(row, expert), out)) in slots.iter().zip(rows).enumerate() {
            let x = match input {
                ExpertInput::Rows(x) => x.row(row),
                ExpertInput::Slots(x) => x.row(slot),
            };
            experts[expert].multiply(x, out);
        }
    }

    /// The weighted sum of each row's slots, and the shared expert.
    pub(super) fn combine(
        &self,
        x: &CpuTensor,
        shared: Option<SharedExpert<'_, CpuTensor>>,
        out: &mut CpuTensor,
    ) {
        let (slots, width) = (self.slots(), x.width());
        let rows = out.output(self.rows.len(), width).chunks_exact_mut(width);
        for (row, (choices, out)) in self.rows.iter().zip(rows).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let term = |choice: &Choice| {
                    let slot = slots.iter().position(|slot| *slot == (row, choice.expert));
                    choice.weight * f64::from(x.row(slot.expect("each choice has a slot"))[i])
                };
                let shared = shared.as_ref().map_or(0.0, |shared| {
                    let weight = shared
                        .gate
                        .map_or(1.0, |gate| sigmoid(f64::from(gate.row(row)[0])));
                    weight * f64::from(shared.out.row(row)[i])
                });
                *out = (choices.iter().map(term).sum::<f64>() + shared) as f32;
            }
        }
    }

    /// Row and expert of each slot.
    fn slots(&self) -> Vec<(usize, usize)> {
        let of_expert = |expert: usize| {
            let rows = self.rows.iter().enumerate();
            let chose = rows.filter(move |(_, row)| row.iter().any(|choice| choice.expert == expert));
            chose.map(move |(row, _)| (row, expert))
        };
        (0..self.shape.n_experts).flat_map(of_expert).collect()
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The experts of a row, those with larger scores first, with their weights.
fn choices(logits: &[f32], routing: &Routing<'_, CpuTensor>, n_used: usize) -> Vec<Choice> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    let score = |expert: usize| match routing.score {
        RouterScore::Softmax => f64::from(logits[expert] - largest).exp() / total,
        RouterScore::Sigmoid => sigmoid(f64::from(logits[expert])),
    };
    let rank = |expert: usize| match (routing.score, routing.choice_bias) {
        (RouterScore::Softmax, None) => f64::from(logits[expert]),
        (_, None) => score(expert),
        (_, Some(bias)) => score(expert) + f64::from(bias.vector(logits.len())[expert]),
    };
    let mut experts: Vec<usize> = (0..logits.len()).collect();
    experts.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)));
    experts.truncate(n_used);
    let sum: f64 = experts.iter().map(|&expert| score(expert)).sum();
    let divisor = if routing.is_normalized { sum } else { 1.0 };
    let weight = |expert| f64::from(routing.scale) * score(expert) / divisor;
    let choice = |expert| Choice {
        expert,
        weight: weight(expert),
    };
    experts.into_iter().map(choice).collect()
}
