//! Names of tensors: which tensor of a checkpoint plays which part in the decoder.

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// Norm before the head.
    FinalNorm,
    /// Output head.
    Head,
    /// Norm before attention.
    AttentionNorm,
    /// Norm of what attention adds.
    AttentionPostNorm,
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// The three in one, one after the other.
    Qkv,
    /// Norm of queries.
    QueryNorm,
    /// Norm of keys.
    KeyNorm,
    /// Attention output projection.
    AttentionOut,
    /// Norm before the MLP.
    FfnNorm,
    /// Norm of what the MLP adds.
    FfnPostNorm,
    /// Gate projection.
    Gate,
    /// Up projection.
    Up,
    /// The two in one, the gate first.
    GateUp,
    /// Down projection.
    Down,
    /// Attention sinks.
    Sinks,
    /// Logits of experts.
    Router,
    /// What is added to their scores for the choice.
    ChoiceBias,
    /// Gate projection of one expert.
    ExpertGate,
    /// Its up projection.
    ExpertUp,
    /// Its down projection.
    ExpertDown,
    /// Gate projections of all experts in one.
    StackedGate,
    /// Their up projections.
    StackedUp,
    /// Gate and up projections of all experts in one, of each expert the gate first.
    StackedGateUp,
    /// Down projections of all experts in one.
    StackedDown,
    /// Gate projection of the expert of all rows.
    SharedGate,
    /// Its up projection.
    SharedUp,
    /// Its down projection.
    SharedDown,
    /// The logit of its weight.
    SharedRouter,
}

/// Who named the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// llama.cpp's converter.
    Gguf,
    /// Checkpoints beside a `config.json`.
    HuggingFace,
}

/// What the tensors of a checkpoint are called and which are stored as one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorNames {
    /// Who named them.
    pub naming: Naming,
    /// Names (without `weight`) of a family whose files have other ones.
    pub renamed: &'static [(Part, &'static str)],
    /// Blocks of a family whose `config.json` goes with another name.
    pub layers: &'static str,
    /// Whether q, k and v are one matrix.
    pub fused_qkv: bool,
    /// Whether its rows are those of one key/value head after the other: its queries, its key, its value.
    pub qkv_by_group: bool,
    /// Whether gate and up are one matrix.
    pub fused_gate_up: bool,
    /// How experts are stored beside a `config.json`.
    pub experts: ExpertLayout,
    /// Whether there are layers after the last that only draft tokens, which are not read.
    pub has_draft_layers: bool,
}

/// How checkpoints beside a `config.json` store experts. (GGUF files have one way.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayout {
    /// A matrix for each expert, or all in one: gates over ups, a row for each output.
    RowPerOutput,
    /// All in one, a column for each output, gates and ups in turns; or MXFP4 blocks and scales of rows in
    /// turns (gpt-oss).
    Interleaved,
}

/// Names of the output head beside a `config.json`.
pub(super) const HUGGING_FACE_HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// Blocks beside a `config.json`.
pub(super) const HUGGING_FACE_LAYERS: &str = "model.layers";

impl TensorNames {
    /// Llama's tensors.
    pub const fn plain(naming: Naming) -> TensorNames {
        TensorNames {
            naming,
            renamed: &[],
            layers: HUGGING_FACE_LAYERS,
            fused_qkv: false,
            qkv_by_group: false,
            fused_gate_up: false,
            experts: ExpertLayout::RowPerOutput,
            has_draft_layers: false,
        }
    }

    /// The weight of a tensor outside the blocks.
    pub(super) fn outer(&self, part: Part) -> String {
        format!("{}.weight", self.stem(part))
    }

    /// The bias beside it.
    pub(super) fn outer_bias(&self, part: Part) -> String {
        format!("{}.bias", self.stem(part))
    }

    /// The weight of a tensor of a block.
    pub(super) fn inner(&self, layer: usize, part: Part) -> String {
        self.in_layer(layer, part, "weight")
    }

    /// The bias beside it.
    pub(super) fn inner_bias(&self, layer: usize, part: Part) -> String {
        self.in_layer(layer, part, "bias")
    }

    /// A tensor of a block that is no weight of a module: its name says it all but in GGUF files, where it
    /// ends in `kind`.
    pub(super) fn inner_bare(&self, layer: usize, part: Part, kind: &str) -> String {
        match self.naming {
            Naming::Gguf => self.in_layer(layer, part, kind),
            Naming::HuggingFace => self.stem_in_layer(layer, part),
        }
    }

    /// Whether a tensor is of a layer from `n_layers` on.
    pub(super) fn is_beyond(&self, name: &str, n_layers: usize) -> bool {
        let layer = name.strip_prefix(self.layers()).and_then(|rest| {
            let (layer, _) = rest.strip_prefix('.')?.split_once('.')?;
            layer.parse::<usize>().ok()
        });
        layer.is_some_and(|layer| layer >= n_layers)
    }

    /// The weight of a tensor of one expert of a block.
    pub(super) fn of_expert(&self, layer: usize, part: Part, expert: usize) -> String {
        let name = self.inner(layer, part);
        name.replacen('*', &expert.to_string(), 1)
    }

    fn in_layer(&self, layer: usize, part: Part, kind: &str) -> String {
        format!("{}.{kind}", self.stem_in_layer(layer, part))
    }

    fn stem_in_layer(&self, layer: usize, part: Part) -> String {
        format!("{}.{layer}.{}", self.layers(), self.stem(part))
    }

    fn layers(&self) -> &'static str {
        match self.naming {
            Naming::Gguf => "blk",
            Naming::HuggingFace => self.layers,
        }
    }

    fn stem(&self, part: Part) -> &'static str {
        let (gguf, hugging_face) = match part {
            Part::Embedding => ("token_embd", "model.embed_tokens"),
            Part::FinalNorm => ("output_norm", "model.norm"),
            Part::Head => ("output", "lm_head"),
            Part::AttentionNorm => ("attn_norm", "input_layernorm"),
            Part::AttentionPostNorm => ("post_attention_norm", "post_attention_layernorm"),
            Part::Query => ("attn_q", "self_attn.q_proj"),
            Part::Key => ("attn_k", "self_attn.k_proj"),
            Part::Value => ("attn_v", "self_attn.v_proj"),
            Part::Qkv => ("attn_qkv", "self_attn.qkv_proj"),
            Part::QueryNorm => ("attn_q_norm", "self_attn.q_norm"),
            Part::KeyNorm => ("attn_k_norm", "self_attn.k_norm"),
            Part::AttentionOut => ("attn_output", "self_attn.o_proj"),
            Part::FfnNorm => ("ffn_norm", "post_attention_layernorm"),
            Part::FfnPostNorm => ("post_ffw_norm", "post_feedforward_layernorm"),
            Part::Gate => ("ffn_gate", "mlp.gate_proj"),
            Part::Up => ("ffn_up", "mlp.up_proj"),
            // The converter has no name of its own for it.
            Part::GateUp => ("ffn_up", "mlp.gate_up_proj"),
            Part::Down => ("ffn_down", "mlp.down_proj"),
            Part::Sinks => ("attn_sinks", "self_attn.sinks"),
            Part::Router => ("ffn_gate_inp", "mlp.gate"),
            Part::ChoiceBias => ("exp_probs_b", "mlp.gate.e_score_correction_bias"),
            // Old files have a tensor for each expert.
            Part::ExpertGate => ("ffn_gate.*", "mlp.experts.*.gate_proj"),
            Part::ExpertUp => ("ffn_up.*", "mlp.experts.*.up_proj"),
            Part::ExpertDown => ("ffn_down.*", "mlp.experts.*.down_proj"),
            Part::StackedGate => ("ffn_gate_exps", "mlp.experts.gate_proj"),
            Part::StackedUp => ("ffn_up_exps", "mlp.experts.up_proj"),
            Part::StackedGateUp => ("ffn_gate_up_exps", "mlp.experts.gate_up_proj"),
            Part::StackedDown => ("ffn_down_exps", "mlp.experts.down_proj"),
            Part::SharedGate => ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
            Part::SharedUp => ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
            Part::SharedDown => ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
            Part::SharedRouter => ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
        };
        let renamed = self.renamed.iter().find(|(renamed, _)| *renamed == part);
        match (renamed, self.naming) {
            (Some((_, name)), _) => name,
            (None, Naming::Gguf) => gguf,
            (None, Naming::HuggingFace) => hugging_face,
        }
    }
}
