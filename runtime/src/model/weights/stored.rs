//! Tensors as a checkpoint stores them: read, checked, quantized where that is asked for, and in which order
//! their inputs stand (act-order).

use std::ops::Range;
use std::os::unix::fs::FileExt;

use arbora_kernels::quant::Format;

use super::super::dummy::fill_matrix;
use super::super::file::LoadError;
use super::super::tensors::TensorInfo;
use super::{Data, Matrix, WeightSource, format_of, named, refuse_not_finite};

impl WeightSource<'_> {
    /// Which activations the inputs of these matrices are multiplied with, where that is not in order. They
    /// are multiplied as one, so it must be the same for all.
    pub(super) fn order(&self, parts: &[Matrix]) -> Result<Option<Vec<u32>>, LoadError> {
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

    /// Appends the bytes of a matrix to `buffer`.
    pub(super) fn matrix(
        &self,
        part: &Matrix,
        n_in: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Format, LoadError> {
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
    pub(in crate::model) fn append(
        &self,
        tensor: &TensorInfo,
        buffer: &mut Vec<u8>,
    ) -> Result<Format, LoadError> {
        let format = format_of(tensor)?;
        let start = buffer.len();
        self.read(tensor, format, buffer)?;
        self.quantized(tensor, format, (buffer, start))
    }

    /// Checks the rows of a tensor that `buffer` has from `start` on, and quantizes them where they are to
    /// be.
    pub(super) fn quantized(
        &self,
        tensor: &TensorInfo,
        format: Format,
        (buffer, start): (&mut Vec<u8>, usize),
    ) -> Result<Format, LoadError> {
        refuse_not_finite(&tensor.name, format, &buffer[start..])?;
        let Some(quantization) = self.quantization else {
            return Ok(format);
        };
        if let Data::Files { tensors, .. } = self.data {
            let n_blocks = (buffer.len() - start) / format.block_bytes();
            let n_done = self.n_done.get() + (n_blocks * format.block_len()) as u64;
            self.n_done.set(n_done);
            (quantization.on_progress)(n_done, tensors.n_elements());
        }
        let Some(target) = quantization.target(self.config, tensor) else {
            return Ok(format);
        };
        let n_in = tensor.dimensions[0] as usize;
        let converted = quantization.convert(n_in, (format, &buffer[start..]), target);
        let converted = converted.map_err(LoadError::QuantizeThread)?;
        // The scale of a block of huge weights may be beyond f16.
        refuse_not_finite(&tensor.name, target, &converted)?;
        buffer.truncate(start);
        buffer.extend(converted);
        Ok(target)
    }

    /// Appends the tensor's bytes to `buffer`.
    pub(super) fn read(
        &self,
        tensor: &TensorInfo,
        format: Format,
        buffer: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
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
        self.read_range(tensor, 0..n_bytes, buffer)
    }

    /// Appends some of the tensor's bytes to `buffer`.
    pub(super) fn read_range(
        &self,
        tensor: &TensorInfo,
        range: Range<usize>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        let Data::Files { files, .. } = self.data else {
            unreachable!("made-up tensors are not read");
        };
        let start = buffer.len();
        buffer.resize(start + range.len(), 0);
        let in_tensor = |source| LoadError::ReadTensor {
            name: tensor.name.clone(),
            source,
        };
        files[tensor.file_idx]
            .read_exact_at(&mut buffer[start..], tensor.offset + range.start as u64)
            .map_err(in_tensor)
    }
}
