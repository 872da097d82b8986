//! Element and block formats of weights, as GGUF stores them.
//!
//! ```text
//! Q8_0  block of 32:  f16 scale | 32 x i8                         w = scale * q
//! Q4_0  block of 32:  f16 scale | 16 bytes, low nibbles = 0..16   w = scale * (q - 8)
//! Q4_1  block of 32:  f16 scale | f16 min | 16 bytes of nibbles   w = scale * q + min
//! ```
//!
//! Source: the GGUF specification and ggml's block definitions.

/// How a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// Upper half of single precision.
    Bf16,
    /// 8-bit blocks with a scale.
    Q8_0,
    /// 4-bit blocks with a scale.
    Q4_0,
    /// 4-bit blocks with a scale and a minimum.
    Q4_1,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 6] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
    ];

    /// Elements per block; 1 for plain elements.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => 32,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
        }
    }

    /// Bytes of a row of `n` elements, or `None` where `n` is no whole number of blocks or overflows.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

/// Elements per block of every block-quantized format.
pub const BLOCK: usize = 32;

impl Format {
    /// Whether weights are blocks of small integers with scales.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

/// The exact value of a half-precision number.
pub fn f32_from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 31;
    let fraction = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        // A multiple of 2^-24; both factors and the product are exact.
        0 => (fraction as f32 * 2f32.powi(-24)).to_bits(),
        // Infinity, or a NaN made quiet as the hardware conversions do.
        31 => 0x7f80_0000 | fraction << 13 | if fraction == 0 { 0 } else { 0x40_0000 },
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest half-precision number, ties to even; beyond its range infinity.
pub fn f16_from_f32(value: f32) -> u16 {
    let sign = ((value.to_bits() >> 16) & 0x8000) as u16;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    match magnitude {
        // Below 2^-14: a multiple of 2^-24. Scaling by a power of two is exact, so this rounds once.
        0..0x3880_0000 => sign | (value.abs() * 2f32.powi(24)).round_ties_even() as u16,
        0x3880_0000..0x4780_0000 => {
            let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
            sign | ((rounded - 0x3800_0000) >> 13) as u16
        }
        0x4780_0000..=0x7f80_0000 => sign | 0x7c00,
        _ => sign | 0x7e00,
    }
}

/// The exact value of a bf16 number.
pub fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bf16 number, ties to even; a NaN stays one.
#[inline]
pub fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Whether every number that whole blocks hold as floating point is finite: the elements, or the scales and
/// minima of blocks of integers.
///
/// # Panics
/// When `bytes` is no whole number of blocks.
pub fn is_finite(format: Format, bytes: &[u8]) -> bool {
    const F16_EXPONENT: u16 = 0x7c00;
    const BF16_EXPONENT: u16 = 0x7f80;
    assert!(
        bytes.len().is_multiple_of(format.block_bytes()),
        "blocks of {format:?}"
    );
    // Without a way out before the end, so that the compiler makes vectors of it.
    let halves_at = |offsets: &[usize], exponent: u16| {
        let blocks = bytes.chunks_exact(format.block_bytes());
        !blocks.fold(false, |found, block| {
            offsets.iter().fold(found, |found, &at| {
                let half = u16::from_le_bytes([block[at], block[at + 1]]);
                found | (half & exponent == exponent)
            })
        })
    };
    match format {
        Format::F32 => {
            let (values, _) = bytes.as_chunks::<4>();
            !values.iter().fold(false, |found, value| {
                found | !f32::from_le_bytes(*value).is_finite()
            })
        }
        Format::F16 | Format::Q8_0 | Format::Q4_0 => halves_at(&[0], F16_EXPONENT),
        Format::Bf16 => halves_at(&[0], BF16_EXPONENT),
        Format::Q4_1 => halves_at(&[0, 2], F16_EXPONENT),
    }
}

/// The values of one row as the file stores it, one rounding to f32 an element (the sum with Q4_1's minimum;
/// everything else is exact).
///
/// # Panics
/// When `bytes` is not a row of `out.len()` elements.
pub fn dequantize_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        Some(bytes.len()),
        format.row_bytes(out.len()),
        "bytes of a row in {format:?}"
    );
    let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let blocks = bytes.chunks_exact(format.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(format.block_len())) {
        match format {
            Format::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Format::F16 => out[0] = f32_from_f16(half(block)),
            Format::Bf16 => out[0] = f32_from_bf16(half(block)),
            Format::Q8_0 => {
                let scale = f32_from_f16(half(block));
                for (out, &q) in out.iter_mut().zip(&block[2..]) {
                    *out = scale * f32::from(q as i8);
                }
            }
            Format::Q4_0 => {
                let scale = f32_from_f16(half(block));
                for (i, &pair) in block[2..].iter().enumerate() {
                    out[i] = scale * (f32::from(pair & 15) - 8.0);
                    out[i + 16] = scale * (f32::from(pair >> 4) - 8.0);
                }
            }
            Format::Q4_1 => {
                let (scale, min) = (f32_from_f16(half(block)), f32_from_f16(half(&block[2..])));
                for (i, &pair) in block[4..].iter().enumerate() {
                    out[i] = scale * f32::from(pair & 15) + min;
                    out[i + 16] = scale * f32::from(pair >> 4) + min;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_way_to_f32_and_back() {
        for bits in 0..=u16::MAX {
            let value = f32_from_f16(bits);
            if value.is_nan() {
                assert!(f32_from_f16(f16_from_f32(value)).is_nan());
            } else {
                assert_eq!(f16_from_f32(value), bits, "{value}");
            }
            let value = f32_from_bf16(bits);
            if value.is_nan() {
                assert!(f32_from_bf16(bf16_from_f32(value)).is_nan());
            } else {
                assert_eq!(bf16_from_f32(value), bits, "{value}");
            }
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_found_where_they_are_numbers() {
        for format in Format::ALL {
            let n_blocks = 5;
            let fine = vec![0; n_blocks * format.block_bytes()];
            assert!(is_finite(format, &fine), "{format:?}");
            assert!(is_finite(format, &[]), "{format:?}");
            let n_halves = match format {
                Format::Q4_1 => 2,
                _ => 1,
            };
            for block in 0..n_blocks {
                let start = block * format.block_bytes();
                for half in 0..n_halves {
                    // The bytes that hold sign and exponent.
                    let at = start + 2 * half + if format == Format::F32 { 2 } else { 0 };
                    let mut bytes = fine.clone();
                    bytes[at..at + 2].fill(0xff);
                    assert!(!is_finite(format, &bytes), "{format:?} {block} {half}");
                    bytes[at + 1] = 0xbb;
                    assert!(is_finite(format, &bytes), "{format:?} {block} {half}");
                }
                if format.is_quantized() {
                    let mut bytes = fine.clone();
                    bytes[start + 2 * n_halves..start + format.block_bytes()].fill(0xff);
                    assert!(
                        is_finite(format, &bytes),
                        "{format:?}: integers are what they are"
                    );
                }
            }
        }
    }

    #[test]
    fn halves_have_the_values_the_standard_gives_them() {
        let cases = [
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(f32_from_f16(bits), value);
        }
    }

    #[test]
    fn conversions_round_to_nearest_even() {
        assert_eq!(f16_from_f32(1.0 + 2f32.powi(-11)), 0x3c00);
        assert_eq!(f16_from_f32(1.0 + 3.0 * 2f32.powi(-11)), 0x3c02);
        assert_eq!(f16_from_f32(65519.0), 0x7bff);
        assert_eq!(f16_from_f32(65520.0), 0x7c00);
        assert_eq!(f16_from_f32(1e30), 0x7c00);
        assert_eq!(f16_from_f32(2f32.powi(-25)), 0);
        assert_eq!(f16_from_f32(1.5 * 2f32.powi(-24)), 2);
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f81_8000)), 0x3f82);
    }

    #[test]
    fn a_row_is_dequantized_as_the_block_formats_say() {
        let one = f16_from_f32(0.5).to_le_bytes();
        let min = f16_from_f32(-3.0).to_le_bytes();
        let mut out = [0.0; 32];
        let mut q8 = one.to_vec();
        q8.extend((0..32u8).map(|i| i.wrapping_mul(8).wrapping_add(128)));
        dequantize_row(Format::Q8_0, &q8, &mut out);
        assert_eq!((out[0], out[1], out[31]), (-64.0, -60.0, 60.0));
        let mut q4 = one.to_vec();
        q4.extend((0..16u8).map(|i| i | (15 - i) << 4));
        dequantize_row(Format::Q4_0, &q4, &mut out);
        assert_eq!((out[0], out[15], out[16], out[31]), (-4.0, 3.5, 3.5, -4.0));
        let mut q4 = [one, min].concat();
        q4.extend((0..16u8).map(|i| i | (15 - i) << 4));
        dequantize_row(Format::Q4_1, &q4, &mut out);
        assert_eq!((out[0], out[15], out[16], out[31]), (-3.0, 4.5, 4.5, -3.0));
    }
}
