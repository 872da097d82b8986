//! The tensors of an encoder, from safetensors files to the backend.

use std::fs::File;
use std::os::unix::fs::FileExt;

use arbora_kernels::MatrixSource;
use arbora_kernels::encoder::EncoderBackend;
use arbora_kernels::quant::{Format, dequantize_row, is_finite};

use super::super::LoadError;
use super::super::rope::rope_table;
use super::super::tensors::TensorTable;
use super::super::weights::{named, unsupported_format};
use super::config::{EncoderConfig, Positions};
use super::forward::{EncoderWeights, LayerWeights, NormWeights};
use super::head::{DenseStep, Dot, StepActivation};

/// Where tensors come from.
pub(super) struct TensorSource<'a> {
    pub(super) files: &'a [File],
    pub(super) tensors: &'a TensorTable,
}

/// A tensor's bytes.
struct Bytes {
    format: Format,
    bytes: Vec<u8>,
}

impl TensorSource<'_> {
    /// The bytes of the tensor of that name and shape, the fastest dimension first; every number is finite.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Bytes, LoadError> {
        let tensor = named(self.tensors, name, shape)?;
        let format = tensor.kind.format().filter(|format| !format.is_quantized());
        let format = format.ok_or_else(|| unsupported_format(tensor, "F32, F16 or BF16"))?;
        let n_bytes = tensor.n_bytes.expect("a tensor of a known format has a size");
        let mut bytes = vec![0; n_bytes as usize];
        self.files[tensor.file_idx]
            .read_exact_at(&mut bytes, tensor.offset)
            .map_err(|source| LoadError::ReadTensor {
                name: name.to_owned(),
                source,
            })?;
        if !is_finite(format, &bytes) {
            let name = name.to_owned();
            return Err(LoadError::NotFinite { name });
        }
        Ok(Bytes { format, bytes })
    }

    /// The same as f32.
    pub(super) fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let Bytes { format, bytes } = self.read(name, shape)?;
        let mut numbers = vec![0.0; shape.iter().product()];
        dequantize_row(format, &bytes, &mut numbers);
        Ok(numbers)
    }

    /// A dense layer that is computed on the host.
    pub(super) fn dot(&self, name: &str, n_in: usize, n_out: usize) -> Result<Dot, LoadError> {
        Ok(Dot {
            weights: self.numbers(&format!("{name}.weight"), &[n_in, n_out])?,
            bias: self.numbers(&format!("{name}.bias"), &[n_out])?,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.named(name).is_some()
    }
}

/// The weights of an encoder on their way to a backend.
pub(super) struct EncoderSource<'a> {
    pub(super) tensors: TensorSource<'a>,
    pub(super) config: &'a EncoderConfig,
}

impl EncoderSource<'_> {
    /// What stands before the names of the encoder's tensors in this checkpoint.
    fn prefix(&self) -> &'static str {
        let names = self.config.family.names;
        let word = format!("{}{}.weight", names.prefix, names.words);
        if self.tensors.has(&word) { names.prefix } else { "" }
    }

    fn name(&self, pattern: &str, layer: usize) -> String {
        format!("{}{}", self.prefix(), pattern.replace("{}", &layer.to_string()))
    }

    pub(super) fn load<B: EncoderBackend>(
        &self,
        backend: &mut B,
        n_positions: usize,
    ) -> Result<EncoderWeights<B>, LoadError> {
        let (config, names) = (self.config, self.config.family.names);
        let positions = match &config.positions {
            Positions::Learned { offset } => {
                let rows = config.n_positions + offset;
                Some(self.table(backend, names.positions, rows)?)
            }
            Positions::Rotary(_) => None,
        };
        let rope = match &config.positions {
            Positions::Learned { .. } => None,
            Positions::Rotary(rope) => Some(rope_table(rope, None, n_positions)),
        };
        let types = match config.n_types {
            0 => None,
            n => Some(self.table(backend, names.types, n)?),
        };
        Ok(EncoderWeights {
            words: self.table(backend, names.words, config.n_vocab)?,
            positions,
            types,
            embedding_norm: self.norm(backend, &self.name(names.embedding_norm, 0))?,
            layers: (0..config.n_layers)
                .map(|layer| self.layer(backend, layer))
                .collect::<Result<_, _>>()?,
            rope,
        })
    }

    fn layer<B: EncoderBackend>(&self, backend: &mut B, layer: usize) -> Result<LayerWeights<B>, LoadError> {
        let (config, names) = (self.config, self.config.family.names);
        let (width, ffn_width) = (config.width, config.ffn_width);
        let named = |pattern: &str| self.name(pattern, layer);
        let all = |patterns: &[&str]| patterns.iter().map(|pattern| named(pattern)).collect::<Vec<_>>();
        let each = 3 * width / names.qkv.len();
        Ok(LayerWeights {
            qkv: self.dense(backend, &all(names.qkv), (width, each))?,
            attention_out: self.dense(backend, &[named(names.attention_out)], (width, width))?,
            attention_norm: self.norm(backend, &named(names.attention_norm))?,
            up: self.dense(backend, &all(names.up), (width, ffn_width))?,
            down: self.dense(backend, &[named(names.down)], (ffn_width, width))?,
            ffn_norm: self.norm(backend, &named(names.ffn_norm))?,
        })
    }

    fn table<B: EncoderBackend>(
        &self,
        backend: &mut B,
        pattern: &str,
        n_rows: usize,
    ) -> Result<B::Tensor, LoadError> {
        let name = format!("{}.weight", self.name(pattern, 0));
        let width = self.config.width;
        let numbers = self.tensors.numbers(&name, &[width, n_rows])?;
        let table = backend.table(&numbers, width);
        table.map_err(|source| LoadError::Backend { name, source })
    }

    fn norm<B: EncoderBackend>(&self, backend: &mut B, name: &str) -> Result<NormWeights<B>, LoadError> {
        // Checkpoints converted from TensorFlow call them so.
        let is_old = self.tensors.has(&format!("{name}.gamma"));
        let [weight, bias] = if is_old {
            ["gamma", "beta"]
        } else {
            ["weight", "bias"]
        };
        let mut vector = |part: &str| {
            let name = format!("{name}.{part}");
            let numbers = self.tensors.numbers(&name, &[self.config.width])?;
            let uploaded = backend.upload(&numbers);
            uploaded.map_err(|source| LoadError::Backend { name, source })
        };
        Ok(NormWeights {
            weight: vector(weight)?,
            bias: vector(bias)?,
        })
    }

    /// Matrices of that shape, stacked.
    fn dense<B: EncoderBackend>(
        &self,
        backend: &mut B,
        names: &[String],
        (n_in, n_out): (usize, usize),
    ) -> Result<B::Dense, LoadError> {
        let (mut matrices, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            matrices.push(self.tensors.read(&format!("{name}.weight"), &[n_in, n_out])?);
            if self.config.family.has_biases {
                bias.extend(self.tensors.numbers(&format!("{name}.bias"), &[n_out])?);
            }
        }
        let sources: Vec<MatrixSource<'_>> = matrices
            .iter()
            .map(|matrix| MatrixSource {
                format: matrix.format,
                n_out,
                n_in,
                bytes: &matrix.bytes,
            })
            .collect();
        let bias = self.config.family.has_biases.then_some(bias.as_slice());
        let layer = backend.dense(&sources, bias);
        layer.map_err(|source| LoadError::Backend {
            name: names[0].clone(),
            source,
        })
    }

    /// The layers of a reranker's head.
    pub(super) fn classifier(&self, scores_go_through: StepActivation) -> Result<[DenseStep; 2], LoadError> {
        let (width, [hidden, scores]) = (self.config.width, self.config.family.names.classifier);
        Ok([
            DenseStep {
                layer: self.tensors.dot(hidden, width, width)?,
                activation: self.config.family.classifier_activation.into(),
            },
            DenseStep {
                layer: self.tensors.dot(scores, width, 1)?,
                activation: scores_go_through,
            },
        ])
    }
}
