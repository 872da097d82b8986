//! Tensors from files, or made up, to the backend, one group at a time.
//!
//! A group (q, k and v; gate and up; one matrix) is read into a buffer, handed to the backend, which repacks
//! it, and the buffer is used again: memory peaks at the weights plus the largest group. Every shape is
//! checked against the configuration before the first byte is read.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbora_kernels::quant::{Format, f32_from_bf16, f32_from_f16, is_finite};
use arbora_kernels::{Backend, MatrixSource};

use super::config::DecoderConfig;
use super::decoder::{DecoderWeights, LayerWeights};
use super::dummy::fill_matrix;
use super::file::LoadError;
use super::rope::rope_table;
use super::tensors::{TensorInfo, TensorTable};

/// Where tensors come from.
pub(super) struct WeightSource<'a> {
    pub(super) data: Data<'a>,
    pub(super) names: Names,
    pub(super) config: &'a DecoderConfig,
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

/// Which names tensors have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Names {
    Gguf,
    HuggingFace,
}

/// What a tensor outside the blocks is.
#[derive(Clone, Copy)]
enum Outer {
    Embedding,
    FinalNorm,
    Head,
}

/// What a tensor of a block is.
#[derive(Clone, Copy)]
enum Inner {
    AttentionNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    AttentionOut,
    FfnNorm,
    Gate,
    Up,
    Down,
}

/// Llama 3's frequency factors; GGUF only.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// What the reference implementation computes anew and old checkpoints keep.
const ROPE_BUFFER: &str = ".rotary_emb.inv_freq";

impl Names {
    fn outer(self, outer: Outer) -> &'static str {
        match (self, outer) {
            (Names::Gguf, Outer::Embedding) => "token_embd.weight",
            (Names::Gguf, Outer::FinalNorm) => "output_norm.weight",
            (Names::Gguf, Outer::Head) => "output.weight",
            (Names::HuggingFace, Outer::Embedding) => "model.embed_tokens.weight",
            (Names::HuggingFace, Outer::FinalNorm) => "model.norm.weight",
            (Names::HuggingFace, Outer::Head) => HUGGING_FACE_HEAD,
        }
    }

    fn inner(self, layer: usize, inner: Inner) -> String {
        let (gguf, hugging_face) = match inner {
            Inner::AttentionNorm => ("attn_norm.weight", "input_layernorm.weight"),
            Inner::Query => ("attn_q.weight", "self_attn.q_proj.weight"),
            Inner::Key => ("attn_k.weight", "self_attn.k_proj.weight"),
            Inner::Value => ("attn_v.weight", "self_attn.v_proj.weight"),
            Inner::QueryBias => ("attn_q.bias", "self_attn.q_proj.bias"),
            Inner::KeyBias => ("attn_k.bias", "self_attn.k_proj.bias"),
            Inner::ValueBias => ("attn_v.bias", "self_attn.v_proj.bias"),
            Inner::QueryNorm => ("attn_q_norm.weight", "self_attn.q_norm.weight"),
            Inner::KeyNorm => ("attn_k_norm.weight", "self_attn.k_norm.weight"),
            Inner::AttentionOut => ("attn_output.weight", "self_attn.o_proj.weight"),
            Inner::FfnNorm => ("ffn_norm.weight", "post_attention_layernorm.weight"),
            Inner::Gate => ("ffn_gate.weight", "mlp.gate_proj.weight"),
            Inner::Up => ("ffn_up.weight", "mlp.up_proj.weight"),
            Inner::Down => ("ffn_down.weight", "mlp.down_proj.weight"),
        };
        match self {
            Names::Gguf => format!("blk.{layer}.{gguf}"),
            Names::HuggingFace => format!("model.layers.{layer}.{hugging_face}"),
        }
    }
}

/// The output head's name beside a `config.json`.
pub(super) const HUGGING_FACE_HEAD: &str = "lm_head.weight";

/// The tensors of every block.
const EVERY_BLOCK: [Inner; 9] = [
    Inner::AttentionNorm,
    Inner::Query,
    Inner::Key,
    Inner::Value,
    Inner::AttentionOut,
    Inner::FfnNorm,
    Inner::Gate,
    Inner::Up,
    Inner::Down,
];
const QKV_BIASES: [Inner; 3] = [Inner::QueryBias, Inner::KeyBias, Inner::ValueBias];
const QK_NORMS: [Inner; 2] = [Inner::QueryNorm, Inner::KeyNorm];

/// A matrix by name and the number of its rows.
struct Part {
    name: String,
    n_out: usize,
}

impl Part {
    fn new(name: impl Into<String>, n_out: usize) -> Part {
        let name = name.into();
        Part { name, n_out }
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
        let outer = |outer| Part::new(self.names.outer(outer), config.n_vocab);
        let (embedding, head) = (outer(Outer::Embedding), outer(Outer::Head));
        let embedding = self.linear(backend, &[embedding], config.width, None, &mut buffer)?;
        let head = match config.tied_head {
            true => None,
            false => Some(self.linear(backend, &[head], config.width, None, &mut buffer)?),
        };
        let layers = (0..config.layers.len())
            .map(|layer| self.layer(backend, layer, &mut buffer))
            .collect::<Result<Vec<_>, _>>()?;
        let factors = self.rope_factors()?;
        Ok(DecoderWeights {
            embedding,
            layers,
            final_norm: self.norm(backend, self.names.outer(Outer::FinalNorm), config.width)?,
            head,
            rope: backend
                .rope(rope_table(&config.rope, factors.as_deref(), context))
                .map_err(|source| LoadError::Backend {
                    name: ROPE_FACTORS.to_owned(),
                    source,
                })?,
        })
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
        let name = |inner| self.names.inner(layer, inner);
        let part = |inner, n_out| Part::new(name(inner), n_out);
        let qkv = [
            part(Inner::Query, q_width),
            part(Inner::Key, kv_width),
            part(Inner::Value, kv_width),
        ];
        let bias = self.qkv_bias(layer, [q_width, kv_width, kv_width])?;
        let gate_up = [
            part(Inner::Gate, config.ffn_width),
            part(Inner::Up, config.ffn_width),
        ];
        let (out, down) = (
            part(Inner::AttentionOut, config.width),
            part(Inner::Down, config.width),
        );
        let qk_norm = match config.qk_norm {
            false => None,
            true => Some((
                self.norm(backend, &name(Inner::QueryNorm), heads.head_dim)?,
                self.norm(backend, &name(Inner::KeyNorm), heads.head_dim)?,
            )),
        };
        Ok(LayerWeights {
            attention_norm: self.norm(backend, &name(Inner::AttentionNorm), config.width)?,
            qkv: self.linear(backend, &qkv, config.width, bias.as_deref(), buffer)?,
            qk_norm,
            attention_out: self.linear(backend, &[out], q_width, None, buffer)?,
            ffn_norm: self.norm(backend, &name(Inner::FfnNorm), config.width)?,
            gate_up: self.linear(backend, &gate_up, config.width, None, buffer)?,
            down: self.linear(backend, &[down], config.ffn_width, None, buffer)?,
        })
    }

    fn qkv_bias(&self, layer: usize, widths: [usize; 3]) -> Result<Option<Vec<f32>>, LoadError> {
        if !self.config.qkv_bias {
            return Ok(None);
        }
        let mut bias = Vec::new();
        for (inner, width) in QKV_BIASES.into_iter().zip(widths) {
            bias.extend(self.vector(&self.names.inner(layer, inner), width, 0.0)?);
        }
        Ok(Some(bias))
    }

    /// A tensor that nothing here reads would be one the result should depend on: a bias, a scale, an
    /// adapter.
    fn refuse_unexpected(&self) -> Result<(), LoadError> {
        let Data::Files { tensors, .. } = self.data else {
            return Ok(());
        };
        let mut expected = HashSet::from([
            self.names.outer(Outer::Embedding).to_owned(),
            self.names.outer(Outer::FinalNorm).to_owned(),
            // Of a tied head some checkpoints keep a copy.
            self.names.outer(Outer::Head).to_owned(),
        ]);
        let with = |inners: &[Inner], present: bool| if present { inners.to_vec() } else { Vec::new() };
        let inners = [
            EVERY_BLOCK.to_vec(),
            with(&QKV_BIASES, self.config.qkv_bias),
            with(&QK_NORMS, self.config.qk_norm),
        ];
        for layer in 0..self.config.layers.len() {
            expected.extend(
                inners
                    .iter()
                    .flatten()
                    .map(|&inner| self.names.inner(layer, inner)),
            );
        }
        let is_harmless = |name: &str| match self.names {
            Names::Gguf => name == ROPE_FACTORS,
            Names::HuggingFace => name.ends_with(ROPE_BUFFER),
        };
        let unexpected =
            |tensor: &&TensorInfo| !expected.contains(&tensor.name) && !is_harmless(&tensor.name);
        match tensors.iter().find(unexpected) {
            None => Ok(()),
            Some(tensor) => Err(LoadError::UnexpectedTensor {
                name: tensor.name.clone(),
            }),
        }
    }

    /// Matrices stacked along their outputs.
    fn linear<B: Backend>(
        &self,
        backend: &mut B,
        parts: &[Part],
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
        let in_tensor = |source| LoadError::Backend {
            name: parts[0].name.clone(),
            source,
        };
        backend.linear(&sources, bias).map_err(in_tensor)
    }

    fn norm<B: Backend>(&self, backend: &mut B, name: &str, width: usize) -> Result<B::Tensor, LoadError> {
        let values = self.vector(name, width, 1.0)?;
        let in_tensor = |source| LoadError::Backend {
            name: name.to_owned(),
            source,
        };
        backend.upload(&values).map_err(in_tensor)
    }

    /// Appends the bytes of a matrix to `buffer`.
    fn matrix(&self, part: &Part, n_in: usize, buffer: &mut Vec<u8>) -> Result<Format, LoadError> {
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
                let format = tensor
                    .kind
                    .format()
                    .ok_or_else(|| unsupported_format(tensor, &names_of_formats()))?;
                let start = buffer.len();
                self.read(tensor, format, buffer)?;
                // One such weight makes every answer NaN: better said here than with every request.
                if !is_finite(format, &buffer[start..]) {
                    let name = part.name.clone();
                    return Err(LoadError::NotFinite { name });
                }
                Ok(format)
            }
        }
    }

    /// Llama 3's frequency factors, where the file has them.
    fn rope_factors(&self) -> Result<Option<Vec<f32>>, LoadError> {
        match (self.names, &self.data) {
            (Names::Gguf, Data::Files { tensors, .. }) if tensors.named(ROPE_FACTORS).is_some() => {}
            _ => return Ok(None),
        }
        let factors = self.vector(ROPE_FACTORS, self.config.rope.dim / 2, 1.0)?;
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
        let Data::Files { files, .. } = self.data else {
            unreachable!("made-up tensors are not read");
        };
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
    let names = Format::ALL.map(Format::name);
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
