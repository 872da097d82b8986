//! The tensors of a checkpoint: names, shapes, formats and places, whatever kind of file they are in.

use std::collections::HashMap;
use std::ops::Deref;

use arbora_kernels::quant::Format;
use safetensors::Dtype;

use super::packed::{PackedMatrix, Packing};

/// How a tensor is stored, in the words of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// By GGUF's number.
    Ggml(u32),
    /// By safetensors' name.
    Safetensors(Dtype),
    /// Several tensors of safetensors files: integers or 8-bit floats with their scales.
    Packed(Packing),
}

impl TensorType {
    /// The format, where it is one that can be read.
    pub fn format(self) -> Option<Format> {
        match self {
            TensorType::Ggml(number) => Format::of_ggml_type(number),
            TensorType::Safetensors(Dtype::F32) => Some(Format::F32),
            TensorType::Safetensors(Dtype::F16) => Some(Format::F16),
            TensorType::Safetensors(Dtype::BF16) => Some(Format::Bf16),
            TensorType::Safetensors(_) => None,
            TensorType::Packed(packing) => Some(packing.format),
        }
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = match self {
            TensorType::Ggml(number) => *number,
            TensorType::Safetensors(dtype) => return write!(f, "{dtype}"),
            TensorType::Packed(packing) => return f.write_str(packing.name),
        };
        if let Some(format) = self.format() {
            return f.write_str(format.name());
        }
        let name = match number {
            9 => "Q8_1",
            15 => "Q8_K",
            19 => "IQ1_S",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            other => return write!(f, "type {other}"),
        };
        f.write_str(name)
    }
}

/// One entry of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, unique in the checkpoint.
    pub name: String,
    /// Sizes, the fastest first: a matrix is `[n_in, n_out]`. One to four, none of them 0.
    pub dimensions: Vec<u64>,
    /// How it is stored.
    pub kind: TensorType,
    /// Which of the checkpoint's files it is in.
    pub file_idx: usize,
    /// First byte, from the start of that file; of several tensors that make one, the values'.
    pub offset: u64,
    /// Bytes it takes, within the file (of several tensors that make one: in its format); `None` where the
    /// format is unknown.
    pub n_bytes: Option<u64>,
}

impl TensorInfo {
    /// Elements in it.
    pub fn n_elements(&self) -> u64 {
        self.dimensions.iter().product()
    }

    /// The format of its weights and how many there are; nothing where the format is unknown. MXFP4 in
    /// safetensors is two tensors of bytes: one has two weights in each, the other their exponents.
    pub fn weights(&self) -> Option<(Format, u64)> {
        match self.kind {
            TensorType::Safetensors(Dtype::U8) if self.name.ends_with("_blocks") => {
                Some((Format::Mxfp4, 2 * self.n_elements()))
            }
            TensorType::Safetensors(Dtype::U8) if self.name.ends_with("_scales") => Some((Format::Mxfp4, 0)),
            kind => Some((kind.format()?, self.n_elements())),
        }
    }
}

/// Every tensor of a checkpoint, in its files' order. Reads as a slice.
#[derive(Clone, Debug, Default)]
pub struct TensorTable {
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    /// Where those of type [`TensorType::Packed`] come from.
    packed: HashMap<String, PackedMatrix>,
}

/// Two tensors of one name.
#[derive(Debug, PartialEq, Eq)]
pub struct DuplicateTensor {
    /// The name.
    pub name: String,
}

impl TensorTable {
    /// A table of tensors whose names differ.
    pub fn new(tensors: Vec<TensorInfo>) -> Result<TensorTable, DuplicateTensor> {
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (idx, tensor) in tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), idx).is_some() {
                let name = tensor.name.clone();
                return Err(DuplicateTensor { name });
            }
        }
        Ok(TensorTable {
            tensors,
            by_name,
            packed: HashMap::new(),
        })
    }

    /// A table in which these matrices are made of several tensors.
    pub(super) fn with_packed(
        tensors: Vec<TensorInfo>,
        packed: HashMap<String, PackedMatrix>,
    ) -> Result<TensorTable, DuplicateTensor> {
        let mut table = TensorTable::new(tensors)?;
        table.packed = packed;
        Ok(table)
    }

    /// What a matrix is made of, where it is of several tensors.
    pub(super) fn packed(&self, name: &str) -> Option<&PackedMatrix> {
        self.packed.get(name)
    }

    /// The tensor of that name.
    pub fn named(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&idx| &self.tensors[idx])
    }

    /// Weights in all of them.
    pub fn n_elements(&self) -> u64 {
        let count = |tensor: &TensorInfo| tensor.weights().map_or(tensor.n_elements(), |(_, n)| n);
        let counts = self.tensors.iter().map(count);
        // The sizes of tensors in unknown formats are anybody's word.
        counts.fold(0, u64::saturating_add)
    }

    /// How most of the weights are stored; nothing of an empty table.
    pub fn main_type(&self) -> Option<TensorType> {
        let mut n_elements: Vec<(TensorType, u64)> = Vec::new();
        for tensor in &self.tensors {
            match n_elements.iter_mut().find(|(kind, _)| *kind == tensor.kind) {
                Some((_, n)) => *n = n.saturating_add(tensor.n_elements()),
                None => n_elements.push((tensor.kind, tensor.n_elements())),
            }
        }
        let most = n_elements.into_iter().max_by_key(|(_, n)| *n);
        most.map(|(kind, _)| kind)
    }
}

impl Deref for TensorTable {
    type Target = [TensorInfo];

    fn deref(&self) -> &[TensorInfo] {
        &self.tensors
    }
}
