//! Weights of the MLPs of the layers, mixtures of experts among them.
//!
//! Experts are read, and repacked by the backend, one at a time, whether each has tensors of its own or all
//! share one:
//!
//! ```text
//! apart        gate, up, down of each expert                           [n_in, n_out]
//! stacked      gates, ups (or gates over ups) and downs of all         [n_in, n_out, n_experts]
//! interleaved  gpt-oss: gates and ups in turns, a column an output     [n_out, n_in, n_experts]
//! blocks       the same in MXFP4: 32 inputs of an output in            [16, n_in / 32, n_out, n_experts]
//!              16 bytes, element 2 i in the low half of byte i,
//!              and their exponents                                     [n_in / 32, n_out, n_experts]
//! ```

use arbora_kernels::Backend;
use arbora_kernels::quant::{BLOCK, Format};

use super::{
    Data, Matrix, Stacked, WeightSource, format_of, named, refuse_not_finite, unsupported_format, upload,
};
use crate::model::config::{ExpertsConfig, MlpKind};
use crate::model::file::LoadError;
use crate::model::mlp::{ExpertWeights, GatedWeights, MlpWeights, PlainWeights, SharedWeights};
use crate::model::names::{ExpertLayout, Naming, Part};
use crate::model::tensors::{TensorInfo, TensorTable};

/// The projections of an expert: what goes in, and what comes out.
#[derive(Clone, Copy)]
enum Projection {
    GateUp,
    Down,
}

/// How the experts of a layer are stored.
enum Storage {
    /// By the parts of each expert.
    Apart,
    /// By the parts of all.
    Stacked(&'static [Part]),
    Interleaved,
    Blocks,
}

const GATE_UP_APART: [Part; 2] = [Part::ExpertGate, Part::ExpertUp];
const GATE_UP_STACKED: [Part; 2] = [Part::StackedGate, Part::StackedUp];
const SHARED: [Part; 3] = [Part::SharedGate, Part::SharedUp, Part::SharedDown];

impl WeightSource<'_> {
    /// The MLP of a layer.
    pub(super) fn mlp<B: Backend>(
        &self,
        backend: &mut B,
        layer: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<MlpWeights<B>, LoadError> {
        let config = self.config;
        match (config.layers[layer].mlp, &config.experts) {
            (MlpKind::Experts, Some(experts)) => {
                let loaded = self.experts(backend, (layer, experts), buffer)?;
                Ok(MlpWeights::Experts(loaded))
            }
            (MlpKind::Plain, _) => {
                let up = Matrix::new(config.tensors.inner(layer, Part::Up), config.ffn_width);
                let down = Matrix::new(config.tensors.inner(layer, Part::Down), config.width);
                let has_bias = config.biases.mlp;
                let up_bias = self.inner_bias((layer, Part::Up), has_bias, config.ffn_width)?;
                let down_bias = self.inner_bias((layer, Part::Down), has_bias, config.width)?;
                Ok(MlpWeights::Plain(PlainWeights {
                    up: self.linear(backend, &[up], config.width, up_bias.as_deref(), buffer)?,
                    down: self.linear(backend, &[down], config.ffn_width, down_bias.as_deref(), buffer)?,
                }))
            }
            _ => {
                let parts = match config.tensors.fused_gate_up {
                    true => [Part::GateUp, Part::GateUp, Part::Down],
                    false => [Part::Gate, Part::Up, Part::Down],
                };
                let gated = self.gated(backend, layer, (parts, config.ffn_width), buffer)?;
                Ok(MlpWeights::Gated(gated))
            }
        }
    }

    /// A gated MLP by its gate, up and down projections, the first two perhaps one.
    fn gated<B: Backend>(
        &self,
        backend: &mut B,
        layer: usize,
        ([gate, up, down], ffn_width): ([Part; 3], usize),
        buffer: &mut Vec<u8>,
    ) -> Result<GatedWeights<B>, LoadError> {
        let width = self.config.width;
        let matrix = |part, n_out| Matrix::new(self.config.tensors.inner(layer, part), n_out);
        let gate_up = match gate == up {
            true => vec![matrix(gate, 2 * ffn_width)],
            false => vec![matrix(gate, ffn_width), matrix(up, ffn_width)],
        };
        Ok(GatedWeights {
            gate_up: self.linear(backend, &gate_up, width, None, buffer)?,
            down: self.linear(backend, &[matrix(down, width)], ffn_width, None, buffer)?,
        })
    }

    fn experts<B: Backend>(
        &self,
        backend: &mut B,
        (layer, config): (usize, &ExpertsConfig),
        buffer: &mut Vec<u8>,
    ) -> Result<ExpertWeights<B>, LoadError> {
        let (names, width) = (&self.config.tensors, self.config.width);
        let router = Matrix::new(names.inner(layer, Part::Router), config.n_experts);
        let router_bias = match config.has_bias {
            true => Some(self.vector(&names.inner_bias(layer, Part::Router), config.n_experts, 0.0)?),
            false => None,
        };
        let choice_bias = match config.has_choice_bias {
            true => {
                let name = names.inner_bare(layer, Part::ChoiceBias, "bias");
                Some(upload(
                    backend,
                    &name,
                    &self.vector(&name, config.n_experts, 0.0)?,
                )?)
            }
            false => None,
        };
        let shared = match config.shared_width {
            None => None,
            Some(shared_width) => Some(SharedWeights {
                mlp: self.gated(backend, layer, (SHARED, shared_width), buffer)?,
                gate: match config.has_shared_gate {
                    false => None,
                    true => Some(self.shared_gate(backend, layer, buffer)?),
                },
            }),
        };
        Ok(ExpertWeights {
            router: self.linear(backend, &[router], width, router_bias.as_deref(), buffer)?,
            choice_bias,
            gate_up: self.projections(backend, (layer, config), Projection::GateUp, buffer)?,
            down: self.projections(backend, (layer, config), Projection::Down, buffer)?,
            shared,
        })
    }

    /// The one row of weights that a shared expert is weighed by. GGUF files have it as a vector.
    fn shared_gate<B: Backend>(
        &self,
        backend: &mut B,
        layer: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<B::Linear, LoadError> {
        let gate = Matrix::new(self.config.tensors.inner(layer, Part::SharedRouter), 1);
        self.linear(backend, &[gate], self.config.width, None, buffer)
    }

    /// One projection of every expert of a layer.
    fn projections<B: Backend>(
        &self,
        backend: &mut B,
        (layer, config): (usize, &ExpertsConfig),
        projection: Projection,
        buffer: &mut Vec<u8>,
    ) -> Result<B::Experts, LoadError> {
        let (n_in, n_out) = self.sizes(config, projection);
        let biases = self.expert_biases((layer, config), projection)?;
        let storage = self.storage(layer);
        let mut linears = Vec::with_capacity(config.n_experts);
        for expert in 0..config.n_experts {
            let mut stacked = Stacked::new(n_in, buffer);
            let of = (layer, config, expert);
            let name = self.read_expert(&storage, of, projection, &mut stacked)?;
            let bias = biases.as_ref().map(|biases| &biases[expert * n_out..][..n_out]);
            linears.push(stacked.repack(backend, (bias, None), &name)?);
        }
        let name = self.config.tensors.inner(layer, Part::Router);
        let of_layer = |source| LoadError::Backend { name, source };
        backend.experts(linears).map_err(of_layer)
    }

    /// Inputs and outputs of a projection.
    fn sizes(&self, config: &ExpertsConfig, projection: Projection) -> (usize, usize) {
        match projection {
            Projection::GateUp => (self.config.width, 2 * config.width),
            Projection::Down => (config.width, self.config.width),
        }
    }

    /// Reads the matrices of one expert, and gives the name of the first tensor.
    fn read_expert(
        &self,
        storage: &Storage,
        (layer, config, expert): (usize, &ExpertsConfig, usize),
        projection: Projection,
        stacked: &mut Stacked<'_>,
    ) -> Result<String, LoadError> {
        let (n_in, n_out) = self.sizes(config, projection);
        let names = &self.config.tensors;
        let tensor_of = |name: &str, shape: &[usize]| named(self.table(), name, shape);
        match (storage, projection) {
            (Storage::Apart, _) => {
                let parts = match projection {
                    Projection::GateUp => &GATE_UP_APART[..],
                    Projection::Down => &[Part::ExpertDown],
                };
                let name = names.of_expert(layer, parts[0], expert);
                for part in parts {
                    let matrix = Matrix::new(names.of_expert(layer, *part, expert), n_out / parts.len());
                    if self.order(std::slice::from_ref(&matrix))?.is_some() {
                        let reason = "experts with inputs in another order (act-order) are not supported";
                        let reason = reason.to_owned();
                        return Err(LoadError::BadQuantization { name, reason });
                    }
                    let start = stacked.buffer.len();
                    let format = self.matrix(&matrix, n_in, stacked.buffer)?;
                    stacked.push(format, matrix.n_out, start);
                }
                Ok(name)
            }
            (Storage::Stacked(gate_up), _) => {
                let parts = match projection {
                    Projection::GateUp => gate_up,
                    Projection::Down => &[Part::StackedDown][..],
                };
                for part in parts {
                    let name = self.stacked_name(layer, *part);
                    let n_out = n_out / parts.len();
                    let tensor = tensor_of(&name, &[n_in, n_out, config.n_experts])?;
                    self.read_slice(tensor, (expert, n_out), stacked)?;
                }
                Ok(self.stacked_name(layer, parts[0]))
            }
            (Storage::Interleaved, _) => {
                let name = self.interleaved_name(layer, projection);
                let tensor = tensor_of(&name, &[n_out, n_in, config.n_experts])?;
                self.read_columns(tensor, (expert, projection), stacked)?;
                Ok(name)
            }
            (Storage::Blocks, _) => {
                let name = self.interleaved_name(layer, projection);
                let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
                let n_blocks = n_in / BLOCK;
                let blocks = tensor_of(&blocks, &[BLOCK / 2, n_blocks, n_out, config.n_experts])?;
                let scales = tensor_of(&scales, &[n_blocks, n_out, config.n_experts])?;
                self.read_blocks([blocks, scales], (expert, projection), stacked)?;
                Ok(name)
            }
        }
    }

    /// One expert of a tensor of all of them.
    fn read_slice(
        &self,
        tensor: &TensorInfo,
        (expert, n_out): (usize, usize),
        stacked: &mut Stacked<'_>,
    ) -> Result<(), LoadError> {
        let format = format_of(tensor)?;
        let row_bytes = format.row_bytes(stacked.n_in);
        let n_bytes = n_out * row_bytes.expect("the table has whole rows of a known format");
        let start = stacked.buffer.len();
        self.read_range(tensor, expert * n_bytes..(expert + 1) * n_bytes, stacked.buffer)?;
        let format = self.quantized(tensor, format, (stacked.buffer, start))?;
        stacked.push(format, n_out, start);
        Ok(())
    }

    /// The same where columns are outputs.
    fn read_columns(
        &self,
        tensor: &TensorInfo,
        (expert, projection): (usize, Projection),
        stacked: &mut Stacked<'_>,
    ) -> Result<(), LoadError> {
        let format = tensor.kind.format().filter(|format| !format.is_quantized());
        let format = format.ok_or_else(|| unsupported_format(tensor, "F32, F16 or BF16"))?;
        let (size, n_in) = (format.block_bytes(), stacked.n_in);
        let n_out = tensor.dimensions[0] as usize;
        let n_bytes = n_in * n_out * size;
        let mut columns = Vec::new();
        self.read_range(tensor, expert * n_bytes..(expert + 1) * n_bytes, &mut columns)?;
        refuse_not_finite(&tensor.name, format, &columns)?;
        let start = stacked.buffer.len();
        for out in 0..n_out {
            let column = projection.stored_place(out, n_out);
            for row in columns.chunks_exact(n_out * size) {
                stacked.buffer.extend_from_slice(&row[column * size..][..size]);
            }
        }
        stacked.push(format, n_out, start);
        Ok(())
    }

    /// The same of MXFP4 blocks and scales, in GGUF's order: an exponent, then element `i` in the low half of
    /// byte `i` and element `i + 16` in the high one.
    fn read_blocks(
        &self,
        [blocks, scales]: [&TensorInfo; 2],
        (expert, projection): (usize, Projection),
        stacked: &mut Stacked<'_>,
    ) -> Result<(), LoadError> {
        for tensor in [blocks, scales] {
            if tensor.n_bytes != Some(tensor.n_elements()) {
                return Err(unsupported_format(tensor, "U8"));
            }
        }
        let n_out = blocks.dimensions[2] as usize;
        let n_row_blocks = stacked.n_in / BLOCK;
        let n_blocks = n_out * n_row_blocks;
        let (mut halves, mut exponents) = (Vec::new(), Vec::new());
        let all = BLOCK / 2 * n_blocks;
        self.read_range(blocks, expert * all..(expert + 1) * all, &mut halves)?;
        self.read_range(scales, expert * n_blocks..(expert + 1) * n_blocks, &mut exponents)?;
        let start = stacked.buffer.len();
        for out in 0..n_out {
            let row = projection.stored_place(out, n_out) * n_row_blocks;
            for block in row..row + n_row_blocks {
                let bytes = &halves[BLOCK / 2 * block..][..BLOCK / 2];
                let element = |i: usize| bytes[i / 2] >> (4 * (i % 2)) & 15;
                stacked.buffer.push(exponents[block]);
                let pair = |i| element(i) | element(i + BLOCK / 2) << 4;
                stacked.buffer.extend((0..BLOCK / 2).map(pair));
            }
        }
        refuse_not_finite(&blocks.name, Format::Mxfp4, &stacked.buffer[start..])?;
        stacked.push(Format::Mxfp4, n_out, start);
        Ok(())
    }

    /// Biases of a projection of all experts, one after the other.
    fn expert_biases(
        &self,
        (layer, config): (usize, &ExpertsConfig),
        projection: Projection,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        if !config.has_bias {
            return Ok(None);
        }
        let (_, n_out) = self.sizes(config, projection);
        let names = self.bias_names(layer, projection);
        let n_each = n_out / names.len();
        let read = |name: &String| self.numbers(name, &[n_each, config.n_experts], 0.0);
        let stored = names.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let interleaved = self.config.tensors.naming == Naming::HuggingFace;
        let of = |expert: usize, out: usize| match interleaved {
            true => stored[0][expert * n_out + projection.stored_place(out, n_out)],
            false => stored[out / n_each][expert * n_each + out % n_each],
        };
        let places = (0..config.n_experts).flat_map(|expert| (0..n_out).map(move |out| (expert, out)));
        Ok(Some(places.map(|(expert, out)| of(expert, out)).collect()))
    }

    fn bias_names(&self, layer: usize, projection: Projection) -> Vec<String> {
        let names = &self.config.tensors;
        let bias = |part: &Part| names.inner_bias(layer, *part);
        match (names.naming, projection) {
            (Naming::HuggingFace, _) => vec![format!("{}_bias", self.interleaved_name(layer, projection))],
            (Naming::Gguf, Projection::GateUp) => GATE_UP_STACKED.iter().map(bias).collect(),
            (Naming::Gguf, Projection::Down) => vec![bias(&Part::StackedDown)],
        }
    }

    /// How the table of tensors says that the experts of a layer are stored.
    fn storage(&self, layer: usize) -> Storage {
        let Data::Files { tensors, .. } = self.data else {
            return Storage::Apart;
        };
        let has = |name: String| tensors.named(&name).is_some();
        if self.config.tensors.naming == Naming::HuggingFace
            && self.config.tensors.experts == ExpertLayout::Interleaved
        {
            let name = self.interleaved_name(layer, Projection::GateUp);
            return match has(format!("{name}_blocks")) {
                true => Storage::Blocks,
                false => Storage::Interleaved,
            };
        }
        if has(self.stacked_name(layer, Part::StackedGateUp)) {
            Storage::Stacked(&[Part::StackedGateUp])
        } else if has(self.config.tensors.of_expert(layer, Part::ExpertGate, 0)) {
            Storage::Apart
        } else {
            Storage::Stacked(&GATE_UP_STACKED)
        }
    }

    /// The name of a tensor of all experts: some checkpoints call it a weight, and some do not.
    fn stacked_name(&self, layer: usize, part: Part) -> String {
        let name = self.config.tensors.inner(layer, part);
        let bare = self.config.tensors.inner_bare(layer, part, "weight");
        match self.data {
            Data::Files { tensors, .. } if tensors.named(&name).is_none() => bare,
            _ => name,
        }
    }

    fn interleaved_name(&self, layer: usize, projection: Projection) -> String {
        let part = match projection {
            Projection::GateUp => Part::StackedGateUp,
            Projection::Down => Part::StackedDown,
        };
        self.config.tensors.inner_bare(layer, part, "weight")
    }

    fn table(&self) -> &TensorTable {
        match self.data {
            Data::Files { tensors, .. } => tensors,
            Data::Dummy { .. } => unreachable!("experts that are made up are apart"),
        }
    }

    /// The tensors of a layer's MLP that its configuration asks for.
    pub(super) fn expected_of_mlp(&self, layer: usize) -> Vec<String> {
        let config = self.config;
        let names = &config.tensors;
        let inner = |part: &Part| names.inner(layer, *part);
        let experts = match (config.layers[layer].mlp, &config.experts) {
            (MlpKind::Experts, Some(experts)) => experts,
            (kind, _) => {
                let parts: &[Part] = match kind {
                    MlpKind::Plain => &[Part::Up, Part::Down],
                    _ if names.fused_gate_up => &[Part::GateUp, Part::Down],
                    _ => &[Part::Gate, Part::Up, Part::Down],
                };
                let biases = parts.iter().filter(|_| config.biases.mlp);
                let biases = biases.map(|part| names.inner_bias(layer, *part));
                return parts.iter().map(inner).chain(biases).collect();
            }
        };
        let mut expected = vec![inner(&Part::Router)];
        if experts.has_bias {
            expected.push(names.inner_bias(layer, Part::Router));
        }
        if experts.has_choice_bias {
            expected.push(names.inner_bare(layer, Part::ChoiceBias, "bias"));
        }
        if experts.shared_width.is_some() {
            expected.extend(SHARED.iter().map(inner));
        }
        if experts.has_shared_gate {
            expected.push(inner(&Part::SharedRouter));
        }
        for projection in [Projection::GateUp, Projection::Down] {
            if experts.has_bias {
                expected.extend(self.bias_names(layer, projection));
            }
        }
        match self.storage(layer) {
            Storage::Apart => {
                let parts = GATE_UP_APART.iter().chain(&[Part::ExpertDown]);
                for part in parts {
                    expected.extend((0..experts.n_experts).map(|e| names.of_expert(layer, *part, e)));
                }
            }
            Storage::Stacked(gate_up) => {
                let parts = gate_up.iter().chain(&[Part::StackedDown]);
                expected.extend(parts.map(|part| self.stacked_name(layer, *part)));
            }
            Storage::Interleaved => expected
                .extend([Projection::GateUp, Projection::Down].map(|of| self.interleaved_name(layer, of))),
            Storage::Blocks => {
                for of in [Projection::GateUp, Projection::Down] {
                    let name = self.interleaved_name(layer, of);
                    expected.extend(["blocks", "scales"].map(|kind| format!("{name}_{kind}")));
                }
            }
        }
        expected
    }
}

impl Projection {
    /// Where an output of an interleaved tensor is: gates at even places, ups at odd ones.
    fn stored_place(self, out: usize, n_out: usize) -> usize {
        match self {
            Projection::GateUp if out < n_out / 2 => 2 * out,
            Projection::GateUp => 2 * (out - n_out / 2) + 1,
            Projection::Down => out,
        }
    }
}
