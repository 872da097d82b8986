//! Tensors from files, or made up, to the backend, one group at a time.
//!
//! A group (q, k and v; gate and up; one matrix) is read into a buffer, handed to the backend, which repacks
//! it, and the buffer is used again: memory peaks at the weights plus the largest group. Every shape is
//! checked against the configuration before the first byte is read.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbora_kernels::quant::{Format, f32_from_bf16, f32_from_f16, is_finite};
use arbora_kernels::{Backend, MatrixSource, QkNormSpan};

use super::config::{DecoderConfig, NormPlacement, RopeConfig};
use super::decoder::{DecoderWeights, HalfWeights, LayerWeights, NormWeights, QkNormWeights};
use super::dummy::fill_matrix;
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
/// What the reference implementation computes anew and old checkpoints keep.
const ROPE_BUFFER: &str = ".rotary_emb.inv_freq";
const SPLIT_QKV: [Part; 3] = [Part::Query, Part::Key, Part::Value];

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
            false => Some(self.linear(backend, &[head], config.width, None, &mut buffer)?),
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
        let gate_up = match config.tensors.fused_gate_up {
            true => vec![matrix(Part::GateUp, 2 * config.ffn_width)],
            false => vec![
                matrix(Part::Gate, config.ffn_width),
                matrix(Part::Up, config.ffn_width),
            ],
        };
        let (out, down) = (
            matrix(Part::AttentionOut, config.width),
            matrix(Part::Down, config.width),
        );
        Ok(LayerWeights {
            qkv: self.linear(backend, &qkv, config.width, bias.as_deref(), buffer)?,
            qk_norm: self.qk_norm(backend, layer)?,
            attention: HalfWeights {
                norm: self.layer_norm(backend, layer, Part::AttentionNorm)?,
                out: self.linear(backend, &[out], q_width, None, buffer)?,
                post_norm: self.layer_norm(backend, layer, Part::AttentionPostNorm)?,
            },
            gate_up: self.linear(backend, &gate_up, config.width, None, buffer)?,
            ffn: HalfWeights {
                norm: self.layer_norm(backend, layer, Part::FfnNorm)?,
                out: self.linear(backend, &[down], config.ffn_width, None, buffer)?,
                post_norm: self.layer_norm(backend, layer, Part::FfnPostNorm)?,
            },
        })
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

    fn qk_norm<B: Backend>(
        &self,
        backend: &mut B,
        layer: usize,
    ) -> Result<Option<QkNormWeights<B>>, LoadError> {
        let Some(span) = self.config.qk_norm else {
            return Ok(None);
        };
        let heads = self.config.heads;
        let mut weight = |part, n_heads| {
            let width = match span {
                QkNormSpan::EachHead => heads.head_dim,
                QkNormSpan::AllHeads => n_heads * heads.head_dim,
            };
            self.norm_weight(backend, &self.config.tensors.inner(layer, part), width)
        };
        Ok(Some(QkNormWeights {
            span,
            query: weight(Part::QueryNorm, heads.n_heads)?,
            key: weight(Part::KeyNorm, heads.n_kv_heads)?,
        }))
    }

    fn qkv_bias(&self, layer: usize, widths: [usize; 3]) -> Result<Option<Vec<f32>>, LoadError> {
        if !self.config.qkv_bias {
            return Ok(None);
        }
        let name = |part| self.config.tensors.inner_bias(layer, part);
        if self.config.tensors.fused_qkv {
            return self.vector(&name(Part::Qkv), widths.iter().sum(), 0.0).map(Some);
        }
        let mut bias = Vec::new();
        for (part, width) in SPLIT_QKV.into_iter().zip(widths) {
            bias.extend(self.vector(&name(part), width, 0.0)?);
        }
        Ok(Some(bias))
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
        let gate_up = if tensors.fused_gate_up {
            &[Part::GateUp][..]
        } else {
            &[Part::Gate, Part::Up]
        };
        let qk_norm = if config.qk_norm.is_some() {
            &[Part::QueryNorm, Part::KeyNorm][..]
        } else {
            &[]
        };
        let norms = norms(config.layers[layer].norms);
        let weights = [qkv, gate_up, qk_norm, norms, &[Part::AttentionOut, Part::Down]];
        let with = |parts: &'static [Part], present: bool| if present { parts } else { &[] };
        let biases = [with(qkv, config.qkv_bias), with(norms, config.norm.has_bias)];
        let weights = weights
            .into_iter()
            .flatten()
            .map(|&part| tensors.inner(layer, part));
        let biases = biases
            .into_iter()
            .flatten()
            .map(|&part| tensors.inner_bias(layer, part));
        weights.chain(biases).collect()
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
        for layer in 0..self.config.layers.len() {
            expected.extend(self.expected_in(layer));
        }
        let is_harmless = |name: &str| match names.naming {
            Naming::Gguf => name == ROPE_FACTORS,
            Naming::HuggingFace => name.ends_with(ROPE_BUFFER),
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
        let mut formats = Vec::with_capacity(parts.len());
        buffer.clear();
        for part in parts {
            let start = buffer.len();
            let format = self.matrix(part, n_in, buffer)?;
            formats.push((format, start..buffer.len()));
        }
        let sources: Vec<MatrixSource<'_>> = parts
            .iter()
            .zip(formats)
            .map(|(part, (format, range))| MatrixSource {
                format,
                n_out: part.n_out,
                n_in,
                bytes: &buffer[range],
            })
            .collect();
        let linear = match self.order(parts)? {
            None => backend.linear(&sources, bias),
            Some(order) => backend.linear_in_order(&sources, bias, &order),
        };
        linear.map_err(|source| LoadError::Backend {
            name: parts[0].name.clone(),
            source,
        })
    }

    /// Which activations the inputs of these matrices are multiplied with, where that is not in order. They
    /// are multiplied as one, so it must be the same for all.
    fn order(&self, parts: &[Matrix]) -> Result<Option<Vec<u32>>, LoadError> {
        let Data::Files { files, tensors } = self.data else {
            return Ok(None);
        };
        let order_of = |part: &Matrix| match tensors.packed(&part.name) {
            Some(packed) => packed.order(files),
            None => Ok(None),
        };
        let order = order_of(&parts[0])?;
        for part in &parts[1..] {
            if order_of(part)? != order {
                return Err(LoadError::BadQuantization {
                    name: part.name.clone(),
                    reason: format!(
                        "its groups of inputs (g_idx) are not those of `{}`",
                        parts[0].name
                    ),
                });
            }
        }
        Ok(order)
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

    /// Appends the bytes of a matrix to `buffer`.
    fn matrix(&self, part: &Matrix, n_in: usize, buffer: &mut Vec<u8>) -> Result<Format, LoadError> {
        match self.data {
            Data::Dummy { format } => {
                let filled = fill_matrix(&part.name, n_in, part.n_out, format, buffer);
                filled.map(|()| format).map_err(|source| LoadError::Backend {
                    name: part.name.clone(),
                    source,
                })
            }
            Data::Files { tensors, .. } => {
                let tensor = named(tensors, &part.name, &[n_in, part.n_out])?;
                self.append(tensor, buffer)
            }
        }
    }

    /// Appends the bytes of a tensor to `buffer`, quantized where it is to be.
    pub(super) fn append(&self, tensor: &TensorInfo, buffer: &mut Vec<u8>) -> Result<Format, LoadError> {
        let format = tensor
            .kind
            .format()
            .ok_or_else(|| unsupported_format(tensor, &names_of_formats()))?;
        let start = buffer.len();
        self.read(tensor, format, buffer)?;
        // One such weight makes every answer NaN: better said here than with every request.
        let check = |format: Format, bytes: &[u8]| match is_finite(format, bytes) {
            true => Ok(()),
            false => Err(LoadError::NotFinite {
                name: tensor.name.clone(),
            }),
        };
        check(format, &buffer[start..])?;
        let Some(quantization) = self.quantization else {
            return Ok(format);
        };
        if let Data::Files { tensors, .. } = self.data {
            self.n_done.set(self.n_done.get() + tensor.n_elements());
            (quantization.on_progress)(self.n_done.get(), tensors.n_elements());
        }
        let Some(target) = quantization.target(self.config, tensor) else {
            return Ok(format);
        };
        let n_in = tensor.dimensions[0] as usize;
        let converted = quantization.convert(n_in, (format, &buffer[start..]), target);
        let converted = converted.map_err(LoadError::QuantizeThread)?;
        // The scale of a block of huge weights may be beyond f16.
        check(target, &converted)?;
        buffer.truncate(start);
        buffer.extend(converted);
        Ok(target)
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
        let Data::Files { tensors, .. } = self.data else {
            return Ok(vec![made_up; len]);
        };
        let tensor = named(tensors, name, &[len])?;
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

    /// Appends the tensor's bytes to `buffer`.
    fn read(&self, tensor: &TensorInfo, format: Format, buffer: &mut Vec<u8>) -> Result<(), LoadError> {
        let Data::Files { files, tensors } = self.data else {
            unreachable!("made-up tensors are not read");
        };
        if let Some(packed) = tensors.packed(&tensor.name) {
            return packed.read(files, buffer);
        }
        let n_bytes = tensor.n_bytes.expect("a tensor of a known format has a size") as usize;
        debug_assert_eq!(
            Some(n_bytes as u64),
            format
                .row_bytes(tensor.dimensions[0] as usize)
                .map(|row| row as u64 * (tensor.n_elements() / tensor.dimensions[0])),
        );
        let start = buffer.len();
        buffer.resize(start + n_bytes, 0);
        let in_tensor = |source| LoadError::ReadTensor {
            name: tensor.name.clone(),
            source,
        };
        files[tensor.file_idx]
            .read_exact_at(&mut buffer[start..], tensor.offset)
            .map_err(in_tensor)
    }
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
        NormPlacement::Before => &[Part::AttentionNorm, Part::FfnNorm],
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
fn named<'t>(tensors: &'t TensorTable, name: &str, shape: &[usize]) -> Result<&'t TensorInfo, LoadError> {
    let Some(tensor) = tensors.named(name) else {
        let name = name.to_owned();
        return Err(LoadError::MissingTensor { name });
    };
    // Trailing dimensions of 1 say nothing.
    let found = tensor.dimensions.iter();
    let wanted = shape.iter().map(|&size| size as u64);
    let padded = wanted
        .chain(std::iter::repeat(1))
        .take(tensor.dimensions.len().max(shape.len()));
    let equal = tensor.dimensions.len() >= shape.len() && found.copied().eq(padded);
    if equal {
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

fn unsupported_format(tensor: &TensorInfo, expected: &str) -> LoadError {
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
