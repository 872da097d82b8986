//! Tensors from files, or made up, to the backend, one group at a time.
//!
//! A group (q, k and v; gate and up; one matrix) is read into a buffer, handed to the backend, which repacks
//! it, and the buffer is used again: memory peaks at the weights plus the largest group. Every shape is
//! checked against the configuration before the first byte is read.

mod attention;
mod mlp;
mod stored;

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;

use arbora_kernels::quant::{Format, f32_from_bf16, f32_from_f16, is_finite};
use arbora_kernels::{Backend, MatrixSource};

use super::config::{DecoderConfig, NormPlacement, RopeConfig};
use super::decoder::{DecoderWeights, HalfWeights, LayerWeights, NormWeights};
use super::file::LoadError;
use super::names::{Naming, Part};
use super::quantize::Quantization;
use super::rope::rope_table;
use super::tensors::{TensorInfo, TensorTable};

/// Where tensors come from.
pub(super) struct WeightSource<'a> {
    pub(super) data: Data<'a>,
    pub(super) config: &'a DecoderConfig,
    /// What matrices become, where that is not what they are stored as.
    pub(super) quantization: Option<&'a Quantization>,
    /// Weights that were read.
    pub(super) n_done: Cell<u64>,
}

/// The bytes of tensors.
pub(super) enum Data<'a> {
    /// Read from files.
    Files {
        files: &'a [File],
        tensors: &'a TensorTable,
    },
    /// Made up.
    Dummy { format: Format },
}

/// Llama 3's frequency factors; GGUF only.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// What the reference implementation computes anew and old checkpoints keep: frequencies, and masks of
/// GPT-NeoX.
const BUFFERS: [&str; 3] = [
    ".rotary_emb.inv_freq",
    ".attention.bias",
    ".attention.masked_bias",
];
const SPLIT_QKV: [Part; 3] = [Part::Query, Part::Key, Part::Value];

/// Matrices in a buffer, one after the other, that become one layer.
struct Stacked<'b> {
    n_in: usize,
    buffer: &'b mut Vec<u8>,
    /// Format, outputs and place of each.
    parts: Vec<(Format, usize, Range<usize>)>,
}

impl<'b> Stacked<'b> {
    /// Begins with an empty buffer.
    fn new(n_in: usize, buffer: &'b mut Vec<u8>) -> Stacked<'b> {
        buffer.clear();
        let parts = Vec::new();
        Stacked { n_in, buffer, parts }
    }

    /// What was appended from `start` on is a matrix.
    fn push(&mut self, format: Format, n_out: usize, start: usize) {
        self.parts.push((format, n_out, start..self.buffer.len()));
    }

    /// Hands them to the backend, with the order of their activations where it is another; `name` is for
    /// errors.
    fn repack<B: Backend>(
        self,
        backend: &mut B,
        (bias, order): (Option<&[f32]>, Option<&[u32]>),
        name: &str,
    ) -> Result<B::Linear, LoadError> {
        let source = |(format, n_out, range): &(Format, usize, Range<usize>)| MatrixSource {
            format: *format,
            n_out: *n_out,
            n_in: self.n_in,
            bytes: &self.buffer[range.clone()],
        };
        let sources: Vec<MatrixSource<'_>> = self.parts.iter().map(source).collect();
        let in_tensor = |source| LoadError::Backend {
            name: name.to_owned(),
            source,
        };
        let linear = match order {
            None => backend.linear(&sources, bias),
            Some(order) => backend.linear_in_order(&sources, bias, order),
        };
        linear.map_err(in_tensor)
    }
}

/// A matrix by name and the number of its rows.
struct Matrix {
    name: String,
    n_out: usize,
}

impl Matrix {
    fn new(name: impl Into<String>, n_out: usize) -> Matrix {
        let name = name.into();
        Matrix { name, n_out }
    }
}

impl WeightSource<'_> {
    /// Loads everything, with rotations for positions below `context`.
    pub(super) fn load<B: Backend>(
        &self,
        backend: &mut B,
        context: usize,
    ) -> Result<DecoderWeights<B>, LoadError> {
        let config = self.config;
        self.refuse_unexpected()?;
        let mut buffer = Vec::new();
        let outer = |part| Matrix::new(config.tensors.outer(part), config.n_vocab);
        let (embedding, head) = (outer(Part::Embedding), outer(Part::Head));
        let embedding = self.linear(backend, &[embedding], config.width, None, &mut buffer)?;
        let head = match config.tied_head {
            true => None,
            false => {
                let bias = self.outer_bias(Part::Head, config.biases.head, config.n_vocab)?;
                Some(self.linear(backend, &[head], config.width, bias.as_deref(), &mut buffer)?)
            }
        };
        let layers = (0..config.layers.len())
            .map(|layer| self.layer(backend, layer, &mut buffer))
            .collect::<Result<Vec<_>, _>>()?;
        let names = [
            config.tensors.outer(Part::FinalNorm),
            config.tensors.outer_bias(Part::FinalNorm),
        ];
        Ok(DecoderWeights {
            embedding,
            layers,
            final_norm: self.norm(backend, &names)?,
            head,
            ropes: self.ropes(backend, context)?,
        })
    }

    fn ropes<B: Backend>(&self, backend: &mut B, context: usize) -> Result<Vec<B::Rope>, LoadError> {
        let factors = self.rope_factors()?;
        let table = |rope: &RopeConfig| {
            let table = rope_table(rope, factors.as_deref(), context);
            backend.rope(table).map_err(|source| LoadError::Backend {
                name: ROPE_FACTORS.to_owned(),
                source,
            })
        };
        self.config.ropes.iter().map(table).collect()
    }

    fn layer<B: Backend>(
        &self,
        backend: &mut B,
        layer: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<LayerWeights<B>, LoadError> {
        let config = self.config;
        let heads = config.heads;
        let (q_width, kv_width) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        let matrix = |part, n_out| Matrix::new(config.tensors.inner(layer, part), n_out);
        let qkv = match config.tensors.fused_qkv {
            true => vec![matrix(Part::Qkv, heads.qkv_width())],
            false => vec![
                matrix(Part::Query, q_width),
                matrix(Part::Key, kv_width),
                matrix(Part::Value, kv_width),
            ],
        };
        let bias = self.qkv_bias(layer, [q_width, kv_width, kv_width])?;
        let out = matrix(Part::AttentionOut, config.width);
        let has_bias = config.biases.attention_out;
        let out_bias = self.inner_bias((layer, Part::AttentionOut), has_bias, config.width)?;
        let sinks = match config.has_sinks {
            false => None,
            true => {
                let name = config.tensors.inner_bare(layer, Part::Sinks, "weight");
                Some(upload(backend, &name, &self.vector(&name, heads.n_heads, 0.0)?)?)
            }
        };
        Ok(LayerWeights {
            qkv: self.qkv(backend, &qkv, bias, buffer)?,
            qk_norm: self.qk_norm(backend, layer)?,
            sinks,
            attention_out: self.linear(backend, &[out], q_width, out_bias.as_deref(), buffer)?,
            attention: self.half(backend, layer, [Part::AttentionNorm, Part::AttentionPostNorm])?,
            mlp: self.mlp(backend, layer, buffer)?,
            ffn: self.half(backend, layer, [Part::FfnNorm, Part::FfnPostNorm])?,
        })
    }

    fn half<B: Backend>(
        &self,
        backend: &mut B,
        layer: usize,
        [norm, post_norm]: [Part; 2],
    ) -> Result<HalfWeights<B>, LoadError> {
        Ok(HalfWeights {
            norm: self.layer_norm(backend, layer, norm)?,
            post_norm: self.layer_norm(backend, layer, post_norm)?,
        })
    }

    /// A bias of a block, where its projection has one.
    fn inner_bias(
        &self,
        (layer, part): (usize, Part),
        is_there: bool,
        len: usize,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        let name = self.config.tensors.inner_bias(layer, part);
        is_there.then(|| self.vector(&name, len, 0.0)).transpose()
    }

    /// A bias outside the blocks.
    fn outer_bias(&self, part: Part, is_there: bool, len: usize) -> Result<Option<Vec<f32>>, LoadError> {
        let name = self.config.tensors.outer_bias(part);
        is_there.then(|| self.vector(&name, len, 0.0)).transpose()
    }

    /// A norm of a block, where its layer has it.
    fn layer_norm<B: Backend>(
        &self,
        backend: &mut B,
        layer: usize,
        part: Part,
    ) -> Result<Option<NormWeights<B>>, LoadError> {
        if !norms(self.config.layers[layer].norms).contains(&part) {
            return Ok(None);
        }
        let tensors = &self.config.tensors;
        let names = [tensors.inner(layer, part), tensors.inner_bias(layer, part)];
        self.norm(backend, &names).map(Some)
    }

    /// The tensors of a block that its configuration asks for.
    fn expected_in(&self, layer: usize) -> Vec<String> {
        let config = self.config;
        let tensors = &config.tensors;
        let qkv = if tensors.fused_qkv {
            &[Part::Qkv][..]
        } else {
            &SPLIT_QKV
        };
        let qk_norm = if config.qk_norm.is_some() {
            &[Part::QueryNorm, Part::KeyNorm][..]
        } else {
            &[]
        };
        let norms = norms(config.layers[layer].norms);
        let weights = [qkv, qk_norm, norms, &[Part::AttentionOut]];
        let with = |parts: &'static [Part], present: bool| if present { parts } else { &[] };
        let biases = [
            with(qkv, config.biases.qkv),
            with(&[Part::AttentionOut], config.biases.attention_out),
            with(norms, config.norm.has_bias),
        ];
        let sinks = with(&[Part::Sinks], config.has_sinks).iter();
        let sinks = sinks.map(|&part| tensors.inner_bare(layer, part, "weight"));
        let weights = weights
            .into_iter()
            .flatten()
            .map(|&part| tensors.inner(layer, part));
        let biases = biases
            .into_iter()
            .flatten()
            .map(|&part| tensors.inner_bias(layer, part));
        let mlp = self.expected_of_mlp(layer);
        weights.chain(biases).chain(sinks).chain(mlp).collect()
    }

    /// A tensor that nothing here reads would be one the result should depend on: a bias, a scale, an
    /// adapter.
    fn refuse_unexpected(&self) -> Result<(), LoadError> {
        let Data::Files { tensors, .. } = self.data else {
            return Ok(());
        };
        let names = &self.config.tensors;
        let mut expected = HashSet::from([
            names.outer(Part::Embedding),
            names.outer(Part::FinalNorm),
            // Of a tied head some checkpoints keep a copy.
            names.outer(Part::Head),
        ]);
        if self.config.norm.has_bias {
            expected.insert(names.outer_bias(Part::FinalNorm));
        }
        if self.config.biases.head {
            expected.insert(names.outer_bias(Part::Head));
        }
        for layer in 0..self.config.layers.len() {
            expected.extend(self.expected_in(layer));
        }
        let n_layers = self.config.layers.len();
        let is_harmless = |name: &str| match names.naming {
            _ if names.has_draft_layers && names.is_beyond(name, n_layers) => true,
            Naming::Gguf => name == ROPE_FACTORS,
            Naming::HuggingFace => BUFFERS.iter().any(|buffer| name.ends_with(buffer)),
        };
        for tensor in tensors.iter() {
            let is_fine = expected.contains(&tensor.name) || is_harmless(&tensor.name);
            if !is_fine && !self.is_zero_bias(tensor)? {
                let name = tensor.name.clone();
                return Err(LoadError::UnexpectedTensor { name });
            }
        }
        Ok(())
    }

    /// Some programs that quantize write a bias of zeros with each matrix.
    fn is_zero_bias(&self, tensor: &TensorInfo) -> Result<bool, LoadError> {
        let format = tensor.kind.format().filter(|format| !format.is_quantized());
        let (Some(format), true) = (
            format,
            tensor.name.ends_with(".bias") && tensor.dimensions.len() == 1,
        ) else {
            return Ok(false);
        };
        let mut bytes = Vec::new();
        self.read(tensor, format, &mut bytes)?;
        Ok(bytes.iter().all(|&byte| byte == 0))
    }

    /// Matrices stacked along their outputs.
    fn linear<B: Backend>(
        &self,
        backend: &mut B,
        parts: &[Matrix],
        n_in: usize,
        bias: Option<&[f32]>,
        buffer: &mut Vec<u8>,
    ) -> Result<B::Linear, LoadError> {
        let mut stacked = Stacked::new(n_in, buffer);
        for part in parts {
            let start = stacked.buffer.len();
            let format = self.matrix(part, n_in, stacked.buffer)?;
            stacked.push(format, part.n_out, start);
        }
        let order = self.order(parts)?;
        stacked.repack(backend, (bias, order.as_deref()), &parts[0].name)
    }

    /// A norm over the width of the model by the names of its weight and bias.
    fn norm<B: Backend>(&self, backend: &mut B, names: &[String; 2]) -> Result<NormWeights<B>, LoadError> {
        let [weight, bias] = names;
        let width = self.config.width;
        Ok(NormWeights {
            weight: self.norm_weight(backend, weight, width)?,
            bias: match self.config.norm.has_bias {
                false => None,
                true => Some(upload(backend, bias, &self.vector(bias, width, 0.0)?)?),
            },
        })
    }

    /// The factors of a norm, with what the model stores them less.
    fn norm_weight<B: Backend>(
        &self,
        backend: &mut B,
        name: &str,
        width: usize,
    ) -> Result<B::Tensor, LoadError> {
        let offset = self.config.norm.offset;
        let mut values = self.vector(name, width, 1.0 - offset)?;
        values.iter_mut().for_each(|value| *value += offset);
        upload(backend, name, &values)
    }

    /// Llama 3's frequency factors, where the file has them.
    fn rope_factors(&self) -> Result<Option<Vec<f32>>, LoadError> {
        match (self.config.tensors.naming, &self.data) {
            (Naming::Gguf, Data::Files { tensors, .. }) if tensors.named(ROPE_FACTORS).is_some() => {}
            _ => return Ok(None),
        }
        let factors = self.vector(ROPE_FACTORS, self.config.ropes[0].dim / 2, 1.0)?;
        if factors.iter().all(|factor| *factor > 0.0) {
            Ok(Some(factors))
        } else {
            let name = ROPE_FACTORS.to_owned();
            Err(LoadError::NotPositive { name })
        }
    }

    /// A vector of finite numbers; `made_up` everywhere where weights are.
    fn vector(&self, name: &str, len: usize, made_up: f32) -> Result<Vec<f32>, LoadError> {
        self.numbers(name, &[len], made_up)
    }

    /// The same of a tensor of any shape, the fastest size first.
    fn numbers(&self, name: &str, shape: &[usize], made_up: f32) -> Result<Vec<f32>, LoadError> {
        let Data::Files { tensors, .. } = self.data else {
            return Ok(vec![made_up; shape.iter().product()]);
        };
        let tensor = named(tensors, name, shape)?;
        let format = tensor.kind.format().filter(|format| !format.is_quantized());
        let format = format.ok_or_else(|| unsupported_format(tensor, "F32, F16 or BF16"))?;
        let mut bytes = Vec::new();
        self.read(tensor, format, &mut bytes)?;
        let half = |read: fn(u16) -> f32| {
            let (chunks, _) = bytes.as_chunks::<2>();
            chunks
                .iter()
                .map(|chunk| read(u16::from_le_bytes(*chunk)))
                .collect()
        };
        let values: Vec<f32> = match format {
            Format::F16 => half(f32_from_f16),
            Format::Bf16 => half(f32_from_bf16),
            _ => {
                let (chunks, _) = bytes.as_chunks::<4>();
                chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
            }
        };
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            let name = name.to_owned();
            Err(LoadError::NotFinite { name })
        }
    }
}

/// The format of a matrix.
fn format_of(tensor: &TensorInfo) -> Result<Format, LoadError> {
    let format = tensor.kind.format();
    format.ok_or_else(|| unsupported_format(tensor, &names_of_formats()))
}

/// One such weight makes every answer NaN: better said here than with every request.
fn refuse_not_finite(name: &str, format: Format, bytes: &[u8]) -> Result<(), LoadError> {
    if is_finite(format, bytes) {
        return Ok(());
    }
    let name = name.to_owned();
    Err(LoadError::NotFinite { name })
}

fn upload<B: Backend>(backend: &mut B, name: &str, values: &[f32]) -> Result<B::Tensor, LoadError> {
    let in_tensor = |source| LoadError::Backend {
        name: name.to_owned(),
        source,
    };
    backend.upload(values).map_err(in_tensor)
}

/// The norms of a block.
fn norms(placement: NormPlacement) -> &'static [Part] {
    match placement {
        NormPlacement::Before | NormPlacement::ParallelApart => &[Part::AttentionNorm, Part::FfnNorm],
        NormPlacement::After => &[Part::AttentionPostNorm, Part::FfnPostNorm],
        NormPlacement::Around => &[
            Part::AttentionNorm,
            Part::AttentionPostNorm,
            Part::FfnNorm,
            Part::FfnPostNorm,
        ],
        NormPlacement::Parallel => &[Part::AttentionNorm],
    }
}

/// The tensor of that name and shape.
pub(super) fn named<'t>(
    tensors: &'t TensorTable,
    name: &str,
    shape: &[usize],
) -> Result<&'t TensorInfo, LoadError> {
    let Some(tensor) = tensors.named(name) else {
        let name = name.to_owned();
        return Err(LoadError::MissingTensor { name });
    };
    // Trailing dimensions of 1 say nothing.
    let n_dimensions = tensor.dimensions.len().max(shape.len());
    let padded = |sizes: &mut dyn Iterator<Item = u64>| -> Vec<u64> {
        let ones = std::iter::repeat(1);
        sizes.chain(ones).take(n_dimensions).collect()
    };
    let wanted = padded(&mut shape.iter().map(|&size| size as u64));
    if padded(&mut tensor.dimensions.iter().copied()) == wanted {
        return Ok(tensor);
    }
    Err(LoadError::BadShape {
        name: name.to_owned(),
        found: tensor.dimensions.clone(),
        expected: format!("{shape:?}"),
    })
}

/// Every format of a matrix, in a sentence.
fn names_of_formats() -> String {
    let of_files = Format::ALL
        .into_iter()
        .filter(|format| format.ggml_type().is_some());
    let names: Vec<&str> = of_files.map(Format::name).collect();
    let (last, others) = names.split_last().expect("there are formats");
    format!("{} or {last}", others.join(", "))
}

pub(super) fn unsupported_format(tensor: &TensorInfo, expected: &str) -> LoadError {
    LoadError::UnsupportedFormat {
        name: tensor.name.clone(),
        kind: tensor.kind,
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use arbora_kernels::reference::ReferenceBackend;

    use super::super::decoder::ForwardLimits;
    use super::super::file::ModelFile;
    use super::super::testing::GgufWriter;

    #[test]
    fn a_matrix_with_a_number_that_is_not_finite_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("model.gguf");
        let load = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("writable");
            let limits = ForwardLimits {
                max_rows: 1,
                max_logit_rows: 1,
            };
            let file = ModelFile::open(&path).expect("a good header");
            let loaded = file.load_decoder(&mut ReferenceBackend::new(), 16, limits);
            loaded.map(drop)
        };
        let mut bytes = GgufWriter::tiny_llama().bytes();
        load(&bytes).expect("zeros are finite");
        // The last tensor's last number.
        let end = bytes.len();
        bytes[end - 4..].fill(0xff);
        let error = load(&bytes).expect_err("it is not finite").to_string();
        assert_eq!(
            error,
            "tensor `blk.1.ffn_down.weight` holds a number that is not finite"
        );
    }

    #[test]
    fn an_unsupported_quantization_is_refused_by_tensor_and_type() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("model.gguf");
        let mut bytes = GgufWriter::tiny_llama().bytes();
        let name = b"blk.1.ffn_down.weight";
        let mut places = bytes.windows(name.len()).enumerate();
        let (at, _) = places
            .find(|(_, window)| window == name)
            .expect("it is in the table");
        // The type follows two dimensions: IQ1_S.
        let kind = at + name.len() + 4 + 2 * 8;
        bytes[kind..kind + 4].copy_from_slice(&19u32.to_le_bytes());
        std::fs::write(&path, &bytes).expect("writable");
        let limits = ForwardLimits {
            max_rows: 1,
            max_logit_rows: 1,
        };
        let file = ModelFile::open(&path).expect("a good header");
        let loaded = file.load_decoder(&mut ReferenceBackend::new(), 16, limits);
        let error = loaded.map(drop).expect_err("nothing reads it").to_string();
        let start = "tensor `blk.1.ffn_down.weight` is stored as IQ1_S, expected F32, F16, ";
        assert!(error.starts_with(start) && error.contains("Q4_K"), "{error}");
    }
}
