//! Blocks made of unsigned integers with a scale and a zero point: the weights of checkpoints that store them
//! so, in the format that holds them exactly.

use super::Format;

/// Weights `scale * (quants[i] - zero)`.
#[derive(Clone, Copy, Debug)]
pub struct IntegerBlock<'a> {
    /// The scale's f16 bits.
    pub scale: u16,
    /// What is taken off each integer.
    pub zero: i32,
    /// As many as the format has in a block, of 4 or 8 bits.
    pub quants: &'a [u8],
}

/// Writes the bytes of a block of Q4_0, Q8_0, U4, U4_128 or U8. Every weight is what
/// [`super::dequantize_row`] gives of them, exactly: the product of 11 and 9 bits.
///
/// # Panics
/// When the format is another one, cannot hold the zero point (Q4_0 has 8, Q8_0 has 128), or `out` is no
/// block of it.
pub fn write_block(format: Format, block: &IntegerBlock<'_>, out: &mut [u8]) {
    let IntegerBlock { scale, zero, quants } = *block;
    assert_eq!(
        (quants.len(), out.len()),
        (format.block_len(), format.block_bytes()),
        "a block of {format:?}"
    );
    let (limit, fixed) = match format {
        Format::Q4_0 => (16, Some(8)),
        Format::Q8_0 => (256, Some(128)),
        Format::U4 | Format::U4x128 => (255, None),
        Format::U8 => (256, None),
        _ => panic!("{format:?} holds no integers with a zero point"),
    };
    let fits = (0..=limit).contains(&zero) && fixed.is_none_or(|fixed| fixed == zero);
    assert!(fits, "zero point {zero} in {format:?}");
    let (head, body) = out.split_at_mut(match format {
        Format::Q4_0 | Format::Q8_0 => 2,
        Format::U8 => 4,
        _ => 3,
    });
    head[..2].copy_from_slice(&scale.to_le_bytes());
    match format {
        Format::U4 | Format::U4x128 => head[2] = zero as u8,
        Format::U8 => head[2..].copy_from_slice(&(128 - zero as i16).to_le_bytes()),
        _ => {}
    }
    match format {
        Format::Q8_0 => body
            .iter_mut()
            .zip(quants)
            .for_each(|(byte, quant)| *byte = quant ^ 0x80),
        Format::U8 => body.copy_from_slice(quants),
        _ => {
            for (body, quants) in body.chunks_exact_mut(16).zip(quants.chunks_exact(32)) {
                let (low, high) = quants.split_at(16);
                for ((byte, low), high) in body.iter_mut().zip(low).zip(high) {
                    *byte = low & 15 | high << 4;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{dequantize_row, f16_from_f32, f32_from_f16};
    use super::*;

    #[test]
    fn every_integer_with_every_zero_point_is_exact_in_its_format() {
        let scale = f16_from_f32(0.012_345);
        for (format, bits, zeros) in [
            (Format::Q4_0, 4, 8..=8),
            (Format::Q8_0, 8, 128..=128),
            (Format::U4, 4, 0..=16),
            (Format::U4x128, 4, 0..=16),
            (Format::U8, 8, 0..=256),
        ] {
            for zero in zeros {
                for first in (0..1usize << bits).step_by(format.block_len()) {
                    let n_values = 1usize << bits;
                    let quants: Vec<u8> = (first..first + format.block_len())
                        .map(|quant| (quant * 5 % n_values) as u8)
                        .collect();
                    let block = IntegerBlock {
                        scale,
                        zero,
                        quants: &quants,
                    };
                    let mut bytes = vec![0; format.block_bytes()];
                    write_block(format, &block, &mut bytes);
                    let mut weights = vec![f32::NAN; quants.len()];
                    dequantize_row(format, &bytes, &mut weights);
                    for (weight, quant) in weights.iter().zip(quants) {
                        let expected = f64::from(f32_from_f16(scale)) * f64::from(i32::from(quant) - zero);
                        assert_eq!(f64::from(*weight), expected, "{format:?}: {quant} - {zero}");
                    }
                }
            }
        }
    }
}
