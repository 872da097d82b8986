//! Quantized matrices that a safetensors checkpoint stores as several tensors: GPTQ, AWQ, compressed-tensors
//! and fp8. `packed/scheme.rs` reads which of them it is; what belongs to one matrix becomes one tensor of
//! the table, in a format that the kernels multiply with.
//!
//! ```text
//! scheme                                       tensors of a matrix                      weight
//! GPTQ, 4 or 8 bits                            qweight, scales, qzeros, g_idx           s (q - z)
//! AWQ (gemm), 4 bits                           qweight, scales, qzeros                  s (q - z)
//! compressed-tensors pack-quantized, 4 or 8    weight_packed, _scale, _zero_point, _g_idx   s (q - z)
//! compressed-tensors int-quantized, 8          weight, weight_scale                     s q
//! fp8 (e4m3)                                   weight, weight_scale or weight_scale_inv s w
//! ```
//!
//! Integers keep their values: symmetric ones become Q4_0 and Q8_0, others U4 (in blocks of 128 where groups
//! are multiples of that) and U8. A weight is the product `s (q - z)` without rounding where the scale is an
//! f16 number, as GPTQ's and AWQ's are; scales of other types are rounded to f16 (of bf16, only those below
//! 2^-17 change). fp8 becomes bf16: the product is rounded once.

mod fp8;
mod integers;
mod scheme;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbora_kernels::quant::Format;
use safetensors::Dtype;

use super::file::LoadError;
use super::tensors::{DuplicateTensor, TensorInfo, TensorTable, TensorType};
pub(super) use scheme::{GPTQ_FILE, Scheme};
use scheme::{Group, Integers};

/// What a matrix of several tensors is, in the words of its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// `GPTQ 4-bit`, for example.
    pub name: &'static str,
    /// What it becomes.
    pub format: Format,
}

/// Where a matrix comes from.
#[derive(Clone, Debug)]
pub(super) struct PackedMatrix {
    name: String,
    format: Format,
    n_in: usize,
    n_out: usize,
    coding: Coding,
    values: TensorInfo,
    /// Absent where all scales are 1.
    scales: Option<TensorInfo>,
    zeros: Option<TensorInfo>,
    /// The group of each input.
    groups: Option<TensorInfo>,
}

/// How its tensors make weights.
#[derive(Clone, Copy, Debug)]
enum Coding {
    Integers(Integers),
    /// Sizes of a block that shares a scale: inputs, outputs.
    Fp8 {
        block: [usize; 2],
    },
}

impl PackedMatrix {
    /// Appends the matrix, in its format.
    pub(super) fn read(&self, files: &[File], buffer: &mut Vec<u8>) -> Result<(), LoadError> {
        let start = buffer.len();
        let row_bytes = self
            .format
            .row_bytes(self.n_in)
            .expect("seen when it was put together");
        buffer.resize(start + self.n_out * row_bytes, 0);
        match self.coding {
            Coding::Integers(integers) => self.read_integers(files, &integers, &mut buffer[start..]),
            Coding::Fp8 { block } => self.read_fp8(files, block, &mut buffer[start..]),
        }
    }

    fn bad(&self, reason: impl Into<String>) -> LoadError {
        LoadError::BadQuantization {
            name: self.name.clone(),
            reason: reason.into(),
        }
    }
}

/// The bytes of a tensor.
fn bytes_of(files: &[File], tensor: &TensorInfo) -> Result<Vec<u8>, LoadError> {
    let n_bytes = tensor.n_bytes.expect("tensors of safetensors have a size") as usize;
    let mut bytes = vec![0; n_bytes];
    let read = files[tensor.file_idx].read_exact_at(&mut bytes, tensor.offset);
    read.map_err(|source| LoadError::ReadTensor {
        name: tensor.name.clone(),
        source,
    })?;
    Ok(bytes)
}

/// The table with every matrix of several tensors as one.
pub(super) fn join(tensors: &TensorTable, scheme: &Scheme) -> Result<TensorTable, LoadError> {
    let mut joined = Vec::new();
    let mut packed = HashMap::new();
    let mut used = HashSet::new();
    for tensor in tensors.iter() {
        let Some(stem) = scheme.stem(tensor) else {
            continue;
        };
        let matrix = matrix(tensors, scheme, tensor, stem)?;
        let parts = [
            Some(&matrix.values),
            matrix.scales.as_ref(),
            matrix.zeros.as_ref(),
            matrix.groups.as_ref(),
        ];
        used.extend(parts.into_iter().flatten().map(|part| part.name.clone()));
        used.extend(scheme.silent_parts().iter().map(|part| format!("{stem}.{part}")));
        let n_bytes = matrix
            .format
            .row_bytes(matrix.n_in)
            .and_then(|row| row.checked_mul(matrix.n_out));
        joined.push(TensorInfo {
            name: matrix.name.clone(),
            dimensions: vec![matrix.n_in as u64, matrix.n_out as u64],
            kind: TensorType::Packed(Packing {
                name: scheme.name(),
                format: matrix.format,
            }),
            file_idx: tensor.file_idx,
            offset: tensor.offset,
            n_bytes: n_bytes.map(|n| n as u64),
        });
        packed.insert(matrix.name.clone(), matrix);
    }
    let is_left = |tensor: &&TensorInfo| !used.contains(&tensor.name) && !is_kv_scale(&tensor.name);
    joined.extend(tensors.iter().filter(is_left).cloned());
    TensorTable::with_packed(joined, packed)
        .map_err(|DuplicateTensor { name }| LoadError::UnexpectedTensor { name })
}

/// Scales of a quantized KV cache; here it is bf16.
fn is_kv_scale(name: &str) -> bool {
    [".k_scale", ".v_scale", ".kv_scale"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Puts a matrix together and checks the shapes of its parts.
fn matrix(
    tensors: &TensorTable,
    scheme: &Scheme,
    values: &TensorInfo,
    stem: &str,
) -> Result<PackedMatrix, LoadError> {
    let part = |name: &str| tensors.named(&format!("{stem}.{name}")).cloned();
    let needed = |name: &str| {
        let name = format!("{stem}.{name}");
        tensors
            .named(&name)
            .cloned()
            .ok_or(LoadError::MissingTensor { name })
    };
    let (n_in, n_out) = scheme.shape(values)?;
    let name = format!("{stem}.weight");
    let mut matrix = PackedMatrix {
        name: name.clone(),
        format: Format::Bf16,
        n_in,
        n_out,
        coding: Coding::Fp8 { block: [n_in, n_out] },
        values: values.clone(),
        scales: None,
        zeros: None,
        groups: None,
    };
    match *scheme {
        Scheme::Fp8 { block } => {
            matrix.scales = part("weight_scale").or_else(|| part("weight_scale_inv"));
            let found = matrix.scales.as_ref().map(|scales| scales.dimensions.clone());
            let block = fp8::block_of(block, [n_in, n_out], found.as_deref());
            let block = block.ok_or_else(|| LoadError::BadShape {
                name: matrix.scales.as_ref().map_or(name, |scales| scales.name.clone()),
                found: found.unwrap_or_default(),
                expected: "one scale, one for each output, or one for each block".to_owned(),
            })?;
            matrix.coding = Coding::Fp8 { block };
        }
        Scheme::Integers(integers) => {
            let names = integers.part_names();
            matrix.scales = Some(needed(names.scales)?);
            matrix.zeros = match integers.is_symmetric {
                true => part(names.zeros),
                false => Some(needed(names.zeros)?),
            };
            matrix.groups = names.groups.and_then(part);
            matrix.format = integers.format(n_in);
            matrix.coding = Coding::Integers(integers);
            matrix.check_integers(&integers)?;
        }
    }
    let is_whole = matrix
        .format
        .row_bytes(n_in)
        .is_some_and(|row| row.checked_mul(n_out).is_some());
    match is_whole {
        true => Ok(matrix),
        false => Err(LoadError::BadShape {
            name: values.name.clone(),
            found: values.dimensions.clone(),
            expected: "a multiple of 32 inputs".to_owned(),
        }),
    }
}

/// A tensor of that type and shape (fastest first), of which trailing dimensions of 1 say nothing.
fn check_part(tensor: &TensorInfo, dtypes: &[Dtype], shape: &[usize]) -> Result<(), LoadError> {
    let is_typed = dtypes
        .iter()
        .any(|&dtype| tensor.kind == TensorType::Safetensors(dtype));
    if !is_typed {
        let names: Vec<String> = dtypes.iter().map(|dtype| dtype.to_string()).collect();
        return Err(LoadError::UnsupportedFormat {
            name: tensor.name.clone(),
            kind: tensor.kind,
            expected: names.join(", "),
        });
    }
    let significant = |sizes: &mut dyn DoubleEndedIterator<Item = u64>| {
        let mut sizes: Vec<u64> = sizes.collect();
        sizes.retain(|&size| size != 1);
        sizes
    };
    let found = significant(&mut tensor.dimensions.iter().copied());
    let wanted = significant(&mut shape.iter().map(|&size| size as u64));
    if found == wanted {
        return Ok(());
    }
    Err(LoadError::BadShape {
        name: tensor.name.clone(),
        found: tensor.dimensions.clone(),
        expected: format!("{shape:?}"),
    })
}

/// Types of scales.
const FLOATS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

impl Group {
    /// Inputs that share a scale, of a matrix of `n_in`.
    fn len(self, n_in: usize) -> usize {
        match self {
            Group::Inputs(n) => n,
            Group::All => n_in,
        }
    }
}
