//! Matrices of 8-bit floating point (e4m3) with scales, dequantized to bf16: `bf16(f32(w) * f32(scale))`, one
//! rounding of an exact product where the scale is bf16, of an f32 product where it is f32.

use std::fs::File;

use arbora_kernels::quant::{bf16_from_f32, f32_from_bf16, f32_from_f16};
use safetensors::Dtype;

use super::super::file::LoadError;
use super::super::tensors::{TensorInfo, TensorType};
use super::{FLOATS, PackedMatrix, bytes_of, check_part};

/// Inputs and outputs that share a scale: as configured, else by the shape of the scales. Nothing where that
/// fits no matrix of this shape.
pub(super) fn block_of(
    configured: Option<[usize; 2]>,
    [n_in, n_out]: [usize; 2],
    scales: Option<&[u64]>,
) -> Option<[usize; 2]> {
    let Some(scales) = scales else {
        return Some([n_in, n_out]);
    };
    let significant: Vec<u64> = scales.iter().copied().filter(|&size| size != 1).collect();
    match (significant.as_slice(), configured) {
        ([], None) => Some([n_in, n_out]),
        (&[n], None) if n == n_out as u64 => Some([n_in, 1]),
        (_, Some([inputs, outputs])) => {
            let blocks = [n_in.div_ceil(inputs), n_out.div_ceil(outputs)];
            let wanted = blocks.into_iter().map(|n| n as u64).filter(|&n| n != 1);
            significant
                .iter()
                .copied()
                .eq(wanted)
                .then_some([inputs, outputs])
        }
        _ => None,
    }
}

/// The exact value of an e4m3 number (OCP's, without infinities): 1 sign, 4 exponent and 3 fraction bits.
fn f32_from_e4m3(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (8.0 + fraction) * 2f32.powi(exponent - 10),
    };
    if bits >> 7 == 1 { -magnitude } else { magnitude }
}

/// The numbers of a tensor of one of [`FLOATS`].
pub(super) fn floats(files: &[File], tensor: &TensorInfo) -> Result<Vec<f32>, LoadError> {
    let bytes = bytes_of(files, tensor)?;
    let (pairs, _) = bytes.as_chunks::<2>();
    let (fours, _) = bytes.as_chunks::<4>();
    Ok(match tensor.kind {
        TensorType::Safetensors(Dtype::F16) => pairs
            .iter()
            .map(|pair| f32_from_f16(u16::from_le_bytes(*pair)))
            .collect(),
        TensorType::Safetensors(Dtype::BF16) => pairs
            .iter()
            .map(|pair| f32_from_bf16(u16::from_le_bytes(*pair)))
            .collect(),
        _ => fours.iter().map(|four| f32::from_le_bytes(*four)).collect(),
    })
}

impl PackedMatrix {
    /// `block`: inputs and outputs that share a scale.
    pub(super) fn read_fp8(
        &self,
        files: &[File],
        [inputs, outputs]: [usize; 2],
        out: &mut [u8],
    ) -> Result<(), LoadError> {
        let n_blocks = [self.n_in.div_ceil(inputs), self.n_out.div_ceil(outputs)];
        let scales = match &self.scales {
            None => vec![1.0],
            Some(tensor) => {
                check_part(tensor, &FLOATS, &n_blocks)?;
                floats(files, tensor)?
            }
        };
        let values: [f32; 256] = std::array::from_fn(|bits| f32_from_e4m3(bits as u8));
        let bytes = bytes_of(files, &self.values)?;
        let rows = bytes
            .chunks_exact(self.n_in)
            .zip(out.chunks_exact_mut(2 * self.n_in));
        for (output, (row, out)) in rows.enumerate() {
            let scales = &scales[output / outputs * n_blocks[0]..][..n_blocks[0]];
            let blocks = row.chunks(inputs).zip(out.chunks_mut(2 * inputs));
            for (scale, (row, out)) in scales.iter().zip(blocks) {
                for (byte, out) in row.iter().zip(out.chunks_exact_mut(2)) {
                    let weight = bf16_from_f32(values[usize::from(*byte)] * scale);
                    out.copy_from_slice(&weight.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}
