//! Tensors from the file to the backend, one group at a time.
//!
//! A group (q, k and v; gate and up; one matrix) is read into a buffer, handed to the backend, which repacks
//! it, and the buffer is used again: memory peaks at the weights plus the largest group. Every shape is
//! checked against the configuration before the first byte is read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use arbora_kernels::quant::Format;
use arbora_kernels::{Backend, MatrixSource};

use super::config::DecoderConfig;
use super::decoder::{DecoderWeights, LayerWeights};
use super::file::LoadError;
use super::gguf::{Gguf, TensorInfo};
use super::rope::rope_table;

/// Where tensors come from.
pub(super) struct WeightSource<'a> {
    pub(super) file: &'a File,
    pub(super) gguf: &'a Gguf,
    pub(super) config: &'a DecoderConfig,
}

/// A matrix by name and the number of its rows.
struct Part<'n> {
    name: &'n str,
    n_out: usize,
}

impl WeightSource<'_> {
    /// Loads everything, with rotations for positions below `context`.
    pub(super) fn load<B: Backend>(
        &self,
        backend: &mut B,
        context: usize,
    ) -> Result<DecoderWeights<B>, LoadError> {
        let config = self.config;
        let mut buffer = Vec::new();
        let embedding = Part {
            name: "token_embd.weight",
            n_out: config.n_vocab,
        };
        let embedding = self.linear(backend, &[embedding], config.width, None, &mut buffer)?;
        let head = Part {
            name: "output.weight",
            n_out: config.n_vocab,
        };
        let head = match config.tied_head {
            true => None,
            false => Some(self.linear(backend, &[head], config.width, None, &mut buffer)?),
        };
        let layers = (0..config.n_layers)
            .map(|layer| self.layer(backend, layer, &mut buffer))
            .collect::<Result<Vec<_>, _>>()?;
        let factors = self.rope_factors()?;
        Ok(DecoderWeights {
            embedding,
            layers,
            final_norm: self.norm(backend, "output_norm.weight", config.width)?,
            head,
            rope: rope_table(&config.rope, factors.as_deref(), context),
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
        let name = |tensor: &str| format!("blk.{layer}.{tensor}");
        let (q, k, v) = (
            name("attn_q.weight"),
            name("attn_k.weight"),
            name("attn_v.weight"),
        );
        let (gate, up) = (name("ffn_gate.weight"), name("ffn_up.weight"));
        let (out, down) = (name("attn_output.weight"), name("ffn_down.weight"));
        let part = |name, n_out| Part { name, n_out };
        let qkv = [part(&q, q_width), part(&k, kv_width), part(&v, kv_width)];
        let bias = self.qkv_bias(layer, q_width, kv_width)?;
        let gate_up = [part(&gate, config.ffn_width), part(&up, config.ffn_width)];
        let qk_norm = match config.qk_norm {
            false => None,
            true => Some((
                self.norm(backend, &name("attn_q_norm.weight"), heads.head_dim)?,
                self.norm(backend, &name("attn_k_norm.weight"), heads.head_dim)?,
            )),
        };
        Ok(LayerWeights {
            attention_norm: self.norm(backend, &name("attn_norm.weight"), config.width)?,
            qkv: self.linear(backend, &qkv, config.width, bias.as_deref(), buffer)?,
            qk_norm,
            attention_out: self.linear(backend, &[part(&out, config.width)], q_width, None, buffer)?,
            ffn_norm: self.norm(backend, &name("ffn_norm.weight"), config.width)?,
            gate_up: self.linear(backend, &gate_up, config.width, None, buffer)?,
            down: self.linear(
                backend,
                &[part(&down, config.width)],
                config.ffn_width,
                None,
                buffer,
            )?,
        })
    }

    fn qkv_bias(&self, layer: usize, q_width: usize, kv_width: usize) -> Result<Option<Vec<f32>>, LoadError> {
        let mut bias = Vec::new();
        for (part, width) in [("q", q_width), ("k", kv_width), ("v", kv_width)] {
            let name = format!("blk.{layer}.attn_{part}.bias");
            if self.config.qkv_bias {
                bias.extend(self.vector(&name, width)?);
            } else if self.gguf.tensor(&name).is_some() {
                return Err(LoadError::UnexpectedTensor { name });
            }
        }
        Ok(self.config.qkv_bias.then_some(bias))
    }

    /// Matrices stacked along their outputs.
    fn linear<B: Backend>(
        &self,
        backend: &mut B,
        parts: &[Part<'_>],
        n_in: usize,
        bias: Option<&[f32]>,
        buffer: &mut Vec<u8>,
    ) -> Result<B::Linear, LoadError> {
        let mut formats = Vec::with_capacity(parts.len());
        buffer.clear();
        for part in parts {
            let tensor = self.tensor(part.name, &[n_in, part.n_out])?;
            let format = self.format(tensor)?;
            let start = buffer.len();
            self.read(tensor, format, buffer)?;
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
            name: parts[0].name.to_owned(),
            source,
        };
        backend.linear(&sources, bias).map_err(in_tensor)
    }

    fn norm<B: Backend>(&self, backend: &mut B, name: &str, width: usize) -> Result<B::Tensor, LoadError> {
        let values = self.vector(name, width)?;
        let in_tensor = |source| LoadError::Backend {
            name: name.to_owned(),
            source,
        };
        backend.upload(&values).map_err(in_tensor)
    }

    /// Llama 3's frequency factors, where the file has them.
    fn rope_factors(&self) -> Result<Option<Vec<f32>>, LoadError> {
        let name = "rope_freqs.weight";
        if self.gguf.tensor(name).is_none() {
            return Ok(None);
        }
        let factors = self.vector(name, self.config.rope.dim / 2)?;
        if factors.iter().all(|factor| *factor > 0.0) {
            Ok(Some(factors))
        } else {
            let name = name.to_owned();
            Err(LoadError::NotPositive { name })
        }
    }

    /// A vector of finite f32.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, &[len])?;
        if self.format(tensor)? != Format::F32 {
            return Err(LoadError::UnsupportedFormat {
                name: name.to_owned(),
                kind: tensor.kind,
                expected: "F32",
            });
        }
        let mut bytes = Vec::new();
        self.read(tensor, Format::F32, &mut bytes)?;
        let (chunks, _) = bytes.as_chunks::<4>();
        let values: Vec<f32> = chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            let name = name.to_owned();
            Err(LoadError::NotFinite { name })
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, LoadError> {
        let Some(tensor) = self.gguf.tensor(name) else {
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

    fn format(&self, tensor: &TensorInfo) -> Result<Format, LoadError> {
        tensor.kind.format().ok_or_else(|| LoadError::UnsupportedFormat {
            name: tensor.name.clone(),
            kind: tensor.kind,
            expected: "F32, F16, BF16, Q8_0, Q4_0 or Q4_1",
        })
    }

    /// Appends the tensor's bytes to `buffer`.
    fn read(&self, tensor: &TensorInfo, format: Format, buffer: &mut Vec<u8>) -> Result<(), LoadError> {
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
        self.file
            .read_exact_at(&mut buffer[start..], tensor.offset)
            .map_err(in_tensor)
    }
}
