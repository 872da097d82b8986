//! The MLP of a block: gated, plain, or a mixture of experts.
//!
//! ```text
//! gated     down (activation(gate x) * up x)
//! plain     down (activation(up x))
//! experts   logits = router x                           each row chooses experts, each choice gets a slot
//!           y      = down_e (activation(gate_e x) * up_e x)         for each slot, e its expert
//!           sum of a row's slots, weighted, + sigmoid(shared_gate x) * shared(x)
//! ```

use arbora_kernels::{
    Activation, Backend, BackendError, Elementwise, ExpertInput, RoutesShape, Routing, SharedExpert,
};

use super::config::{DecoderConfig, ExpertsConfig, LayerConfig, MlpKind};

/// Weights of a gated MLP.
pub struct GatedWeights<B: Backend> {
    /// Fused gate and up projections.
    pub gate_up: B::Linear,
    /// Down projection.
    pub down: B::Linear,
}

/// Weights of a plain MLP.
pub struct PlainWeights<B: Backend> {
    /// Up projection.
    pub up: B::Linear,
    /// Down projection.
    pub down: B::Linear,
}

/// Weights of a mixture of experts.
pub struct ExpertWeights<B: Backend> {
    /// A logit for each expert.
    pub router: B::Linear,
    /// What is added to the scores for the choice, where the family has it.
    pub choice_bias: Option<B::Tensor>,
    /// Fused gate and up projections of each expert.
    pub gate_up: B::Experts,
    /// Down projections.
    pub down: B::Experts,
    /// The expert of all rows, where the family has it.
    pub shared: Option<SharedWeights<B>>,
}

/// Weights of the expert of all rows.
pub struct SharedWeights<B: Backend> {
    /// The expert.
    pub mlp: GatedWeights<B>,
    /// The logit of its weight, where it is weighed.
    pub gate: Option<B::Linear>,
}

/// Weights of the MLP of a block.
pub enum MlpWeights<B: Backend> {
    /// A gated MLP.
    Gated(GatedWeights<B>),
    /// A plain one.
    Plain(PlainWeights<B>),
    /// A mixture of experts.
    Experts(ExpertWeights<B>),
}

struct GatedSpace<B: Backend> {
    gate_up: B::Tensor,
    activated: B::Tensor,
}

impl<B: Backend> GatedSpace<B> {
    fn new(backend: &mut B, rows: usize, width: usize) -> Result<Self, BackendError> {
        Ok(GatedSpace {
            gate_up: backend.tensor(rows, 2 * width)?,
            activated: backend.tensor(rows, width)?,
        })
    }
}

struct ExpertSpace<B: Backend> {
    logits: B::Tensor,
    routes: B::Routes,
    /// A row for each slot.
    slots: GatedSpace<B>,
    out: B::Tensor,
    shared: Option<SharedSpace<B>>,
}

struct SharedSpace<B: Backend> {
    mlp: GatedSpace<B>,
    out: B::Tensor,
    gate: B::Tensor,
}

impl<B: Backend> ExpertSpace<B> {
    fn new(
        backend: &mut B,
        experts: &ExpertsConfig,
        (rows, width): (usize, usize),
    ) -> Result<Self, BackendError> {
        let shape = RoutesShape {
            max_rows: rows,
            n_experts: experts.n_experts,
            n_used: experts.n_used,
        };
        let shared = experts.shared_width.map(|shared_width| {
            Ok(SharedSpace {
                mlp: GatedSpace::new(backend, rows, shared_width)?,
                out: backend.tensor(rows, width)?,
                gate: backend.tensor(rows, 1)?,
            })
        });
        let shared = shared.transpose()?;
        Ok(ExpertSpace {
            logits: backend.tensor(rows, experts.n_experts)?,
            routes: backend.routes(shape)?,
            slots: GatedSpace::new(backend, shape.max_slots(), experts.width)?,
            out: backend.tensor(shape.max_slots(), width)?,
            shared,
        })
    }
}

/// Activations of the MLPs of one step.
pub struct MlpSpace<B: Backend> {
    gated: Option<GatedSpace<B>>,
    plain: Option<B::Tensor>,
    experts: Option<ExpertSpace<B>>,
}

impl<B: Backend> MlpSpace<B> {
    /// For up to `rows` rows.
    pub fn new(backend: &mut B, config: &DecoderConfig, rows: usize) -> Result<Self, BackendError> {
        let has = |kind| config.layers.iter().any(|layer| layer.mlp == kind);
        let gated = has(MlpKind::Gated).then(|| GatedSpace::new(backend, rows, config.ffn_width));
        let gated = gated.transpose()?;
        let plain = has(MlpKind::Plain).then(|| backend.tensor(rows, config.ffn_width));
        let plain = plain.transpose()?;
        let experts = config
            .experts
            .as_ref()
            .map(|experts| ExpertSpace::new(backend, experts, (rows, config.width)));
        Ok(MlpSpace {
            gated,
            plain,
            experts: experts.transpose()?,
        })
    }
}

impl<B: Backend> GatedWeights<B> {
    fn forward(
        &self,
        backend: &mut B,
        activation: Activation,
        x: &B::Tensor,
        (space, out): (&mut GatedSpace<B>, &mut B::Tensor),
    ) {
        backend.matmul(&self.gate_up, x, &mut space.gate_up);
        backend.gated(&space.gate_up, activation, &mut space.activated);
        backend.matmul(&self.down, &space.activated, out);
    }
}

impl<B: Backend> MlpWeights<B> {
    /// Writes the MLP of `x` to the last argument.
    pub fn forward(
        &self,
        backend: &mut B,
        (config, of): (&DecoderConfig, &LayerConfig),
        x: &B::Tensor,
        (space, out): (&mut MlpSpace<B>, &mut B::Tensor),
    ) {
        match self {
            MlpWeights::Gated(weights) => {
                let space = space
                    .gated
                    .as_mut()
                    .expect("a layer of the configuration is gated");
                weights.forward(backend, of.activation, x, (space, out));
            }
            MlpWeights::Plain(weights) => {
                let up = space
                    .plain
                    .as_mut()
                    .expect("a layer of the configuration is plain");
                backend.matmul(&weights.up, x, up);
                backend.elementwise(up, Elementwise::Activate(of.activation));
                backend.matmul(&weights.down, up, out);
            }
            MlpWeights::Experts(weights) => {
                let experts = config.experts.as_ref();
                let experts = experts.expect("a layer of the configuration has experts");
                let space = space.experts.as_mut().expect("room was made for experts");
                weights.forward(backend, (experts, of.activation), x, (space, out));
            }
        }
    }
}

impl<B: Backend> ExpertWeights<B> {
    fn forward(
        &self,
        backend: &mut B,
        (config, activation): (&ExpertsConfig, Activation),
        x: &B::Tensor,
        (space, out): (&mut ExpertSpace<B>, &mut B::Tensor),
    ) {
        backend.matmul(&self.router, x, &mut space.logits);
        let routing = Routing {
            score: config.score,
            choice_bias: self.choice_bias.as_ref(),
            is_normalized: config.is_normalized,
            scale: config.scale,
        };
        backend.route(&space.logits, &routing, &mut space.routes);
        let (routes, slots) = (&space.routes, &mut space.slots);
        let input = ExpertInput::Rows(x);
        backend.expert_matmul(&self.gate_up, input, routes, &mut slots.gate_up);
        backend.gated(&slots.gate_up, activation, &mut slots.activated);
        let input = ExpertInput::Slots(&slots.activated);
        backend.expert_matmul(&self.down, input, routes, &mut space.out);
        let shared = self.shared.as_ref().zip(space.shared.as_mut());
        let shared = shared.map(|(weights, space)| {
            let to = (&mut space.mlp, &mut space.out);
            weights.mlp.forward(backend, activation, x, to);
            if let Some(gate) = &weights.gate {
                backend.matmul(gate, x, &mut space.gate);
            }
            SharedExpert {
                out: &space.out,
                gate: weights.gate.is_some().then_some(&space.gate),
            }
        });
        backend.combine(&space.out, routes, shared, out);
    }
}
