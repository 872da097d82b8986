//! Weight matrices in device memory.

use super::device::Device;
use super::error::allocation;
use super::memory::DeviceBytes;
use crate::quant::Format;
use crate::{BackendError, MatrixSource};

/// A weight matrix on the device, as it is in the file.
pub struct CudaLinear {
    pub(super) parts: Vec<Part>,
    pub(super) bias: Option<DeviceBytes>,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
}

pub(super) struct Part {
    pub(super) data: DeviceBytes,
    /// As in `kernels/cu/common.cuh`.
    pub(super) format: u32,
    pub(super) n_out: usize,
}

impl CudaLinear {
    /// Uploads `parts`, stacked along their outputs.
    pub(super) fn new(
        device: &Device,
        parts: &[MatrixSource<'_>],
        bias: Option<&[f32]>,
    ) -> Result<CudaLinear, BackendError> {
        let n_in = parts[0].n_in;
        let n_out = parts.iter().map(|part| part.n_out).sum();
        let mut uploaded = Vec::with_capacity(parts.len());
        for source in parts {
            let bad = |reason| BackendError::BadMatrix {
                format: source.format,
                n_out: source.n_out,
                n_in: source.n_in,
                reason,
            };
            let format = format_number(source.format);
            let format = format.ok_or(bad("the CUDA backend reads F32, F16 and BF16 weights"))?;
            let row_bytes = source.format.row_bytes(n_in).unwrap_or(0);
            let bytes = row_bytes.checked_mul(source.n_out);
            let is_whole =
                source.n_in == n_in && n_in > 0 && source.n_out > 0 && bytes == Some(source.bytes.len());
            if !is_whole {
                return Err(bad("its bytes or inputs are not those of its shape"));
            }
            let data = DeviceBytes::holding(device, source.bytes);
            let data = data.map_err(|error| allocation("weights", error))?;
            uploaded.push(Part {
                data,
                format,
                n_out: source.n_out,
            });
        }
        if bias.is_some_and(|bias| bias.len() != n_out) {
            let MatrixSource { format, n_in, .. } = parts[0];
            let reason = "its bias has another length";
            return Err(BackendError::BadMatrix {
                format,
                n_out,
                n_in,
                reason,
            });
        }
        let bias = bias.map(|bias| {
            let bytes: Vec<u8> = bias.iter().flat_map(|value| value.to_le_bytes()).collect();
            DeviceBytes::holding(device, &bytes).map_err(|error| allocation("weights", error))
        });
        Ok(CudaLinear {
            parts: uploaded,
            bias: bias.transpose()?,
            n_in,
            n_out,
        })
    }
}

/// The number that kernels know a format by.
fn format_number(format: Format) -> Option<u32> {
    match format {
        Format::F32 => Some(0),
        Format::F16 => Some(1),
        Format::Bf16 => Some(2),
        _ => None,
    }
}
