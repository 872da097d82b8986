//! The bytes of every block format (quantization), read into one shape.
//!
//! ```text
//! d, m            f16 scale and minimum              sc, mn    integer scales and minima
//! q[32] as 16 bytes of nibbles: low ones are weights 0..16, high ones 16..32
//!
//! Q8_0   d | 32 x i8                                 Q4_0   d | q                   Q4_1   d | m | q
//! Q5_0   d | 32 fifth bits | q                       Q5_1   d | m | 32 fifth bits | q
//! Q2_K   16 x (sc | mn << 4) | 64 x 4 of 2 bits | d | m
//! Q3_K   32 x 8 third bits | 64 x 4 of 2 bits | 12 bytes of 16 sc of 6 bits | d
//! Q4_K   d | m | 12 bytes of 8 sc and 8 mn of 6 bits | 128 bytes of nibbles
//! Q5_K   d | m | the same 12 bytes | 32 x 8 fifth bits | 128 bytes of nibbles
//! Q6_K   128 bytes of nibbles | 64 x 4 of 2 upper bits | 16 x i8 sc | d
//! IQ4_NL d | q            IQ4_XS d | 8 x 2 upper bits of sc | 4 bytes of lower ones | 8 x q
//! IQ2_XXS d | 8 x (4 x index of 8 | 4 x 7 signs, 4 bits of sc)
//! IQ2_XS  d | 32 x (9 bits of index, 7 signs) | 16 x 4 bits of sc
//! IQ2_S   d | 32 x index | 32 x 8 signs | 32 x 2 upper bits of index | 16 x 4 bits of sc
//! IQ3_XXS d | 64 x index of 4 | 8 x (4 x 7 signs, 4 bits of sc)
//! IQ3_S   d | 64 x index | 64 x upper bit of index | 32 x 8 signs | 8 x 4 bits of sc
//! MXFP4  exponent | q     TQ1_0  48 x 5 + 4 x 4 base-3 digits | d     TQ2_0  64 x 4 of 2 bits | d
//! U4     d | u8 zero | q  U4_128 d | u8 zero | 4 x q                  U8     d | i16 128 - zero | 32 x u8
//! ```
//!
//! Bits of one byte belong to weights that are 32 apart (64 or 16 in some), so that vectors unpack them.
//!
//! Source: ggml's `ggml-common.h` and `ggml-quants.c`; the last line's are our own.

use super::grids;
use super::{Coding, Format, MAX_BLOCK_LEN, Mins, Values, f32_from_bf16, f32_from_f16};

/// One block of a format: integers, and what makes weights of them (see the module above).
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// The scale's bits, f16 or bf16.
    pub(crate) scale: u16,
    /// The f16 bits of what is added: of a super-block's minimum, which is subtracted, with the other sign.
    pub(crate) min: u16,
    /// One for each 16 weights.
    pub(crate) scales: [i8; MAX_BLOCK_LEN / 16],
    /// One for each 16 weights.
    pub(crate) mins: [u8; MAX_BLOCK_LEN / 16],
    /// One for each weight, below `2^bits`.
    pub(crate) quants: [u8; MAX_BLOCK_LEN],
}

/// Turns the sign of a half around.
const SIGN: u16 = 0x8000;

impl Block {
    /// A block to be filled: integer scales and minima are 1, which formats without them leave so.
    pub(crate) const EMPTY: Block = Block {
        scale: 0,
        min: 0,
        scales: [1; 16],
        mins: [1; 16],
        quants: [0; MAX_BLOCK_LEN],
    };

    /// The weights, as many as `out` takes.
    pub(crate) fn dequantize(&self, coding: &Coding, out: &mut [f32]) {
        let scale = match coding.has_bf16_scale {
            true => f32_from_bf16(self.scale),
            false => f32_from_f16(self.scale),
        };
        let scale = scale * coding.scale_factor;
        let min = f32_from_f16(self.min);
        for (group, (out, quants)) in out.chunks_mut(16).zip(self.quants.chunks(16)).enumerate() {
            let scale = scale * f32::from(self.scales[group]);
            let min = min * f32::from(self.mins[group]);
            for (out, &quant) in out.iter_mut().zip(quants) {
                let value = match coding.values {
                    Values::Offset(offset) => f32::from(quant) - f32::from(offset),
                    Values::Table(table) => f32::from(table[usize::from(quant)]),
                };
                *out = match coding.mins {
                    Mins::None => scale * value,
                    _ => scale * value + min,
                };
            }
        }
    }
}

/// Reads a block of a format that is quantized into `block`, which came from [`Block::EMPTY`] or from a block
/// of the same format.
#[inline]
pub(crate) fn read_block(format: Format, bytes: &[u8], block: &mut Block) {
    assert_eq!(
        bytes.len(),
        format.block_bytes(),
        "bytes of a block in {format:?}"
    );
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    if let Some(&at) = format.halves().first() {
        block.scale = half(at);
    }
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => panic!("{format:?} has no blocks"),
        Format::Q8_0 => {
            let pairs = block.quants.iter_mut().zip(&bytes[2..]);
            pairs.for_each(|(quant, &byte)| *quant = byte ^ 0x80);
        }
        Format::Q4_0 | Format::Iq4Nl => nibbles(&bytes[2..], 16, &mut block.quants),
        Format::Q4_1 => {
            block.min = half(2);
            nibbles(&bytes[4..], 16, &mut block.quants);
        }
        Format::Q5_0 => {
            nibbles(&bytes[6..], 16, &mut block.quants);
            fifth_bits(&bytes[2..6], &mut block.quants);
        }
        Format::Q5_1 => {
            block.min = half(2);
            nibbles(&bytes[8..], 16, &mut block.quants);
            fifth_bits(&bytes[4..8], &mut block.quants);
        }
        Format::Mxfp4 => {
            // Half of 2^(e - 127), for the values are doubled; the two smallest are subnormal.
            block.scale = match bytes[0] {
                exponent @ 0..2 => 0x20 << exponent,
                exponent => u16::from(exponent - 1) << 7,
            };
            nibbles(&bytes[1..], 16, &mut block.quants);
        }
        Format::Q2K => {
            block.min = half(82) ^ SIGN;
            for (group, &byte) in bytes[..16].iter().enumerate() {
                block.scales[group] = (byte & 15) as i8;
                block.mins[group] = byte >> 4;
            }
            pairs_of_bits(&bytes[16..80], &mut block.quants);
        }
        Format::Q3K => {
            pairs_of_bits(&bytes[32..96], &mut block.quants);
            add_bits(&bytes[..32], 2, &mut block.quants);
            scales_of_q3_k(&bytes[96..108], &mut block.scales);
        }
        Format::Q4K | Format::Q5K => {
            block.min = half(2) ^ SIGN;
            scales_and_mins(&bytes[4..16], block);
            let (fifths, quants) = bytes[16..].split_at(if format == Format::Q5K { 32 } else { 0 });
            nibbles(quants, 32, &mut block.quants);
            add_bits(fifths, 4, &mut block.quants);
        }
        Format::Q6K => q6_k(bytes, block),
        Format::Iq4Xs => {
            scales_of_iq4_xs(half(2), &bytes[4..8], &mut block.scales);
            nibbles(&bytes[8..], 16, &mut block.quants);
        }
        Format::Tq1_0 => tq1_0(bytes, &mut block.quants),
        Format::U4 | Format::U4x128 | Format::U8 => with_zero_point(format, bytes, block),
        Format::Tq2_0 => pairs_of_bits(&bytes[..64], &mut block.quants),
        Format::Iq2Xxs | Format::Iq2Xs | Format::Iq2S => iq2(format, &bytes[2..], block),
        Format::Iq3Xxs | Format::Iq3S => iq3(format, &bytes[2..], block),
    }
}

/// A zero point is a minimum that is taken off: a magnitude and a sign.
fn with_zero_point(format: Format, bytes: &[u8], block: &mut Block) {
    if format != Format::U8 {
        block.min = block.scale ^ SIGN;
        block.mins.fill(bytes[2]);
        nibbles(&bytes[3..], 16, &mut block.quants);
        return;
    }
    // w = d (q - 128) + d (128 - zero)
    let offset = i16::from_le_bytes([bytes[2], bytes[3]]);
    block.min = if offset < 0 {
        block.scale ^ SIGN
    } else {
        block.scale
    };
    block.mins.fill(offset.unsigned_abs() as u8);
    block.quants[..32].copy_from_slice(&bytes[4..]);
}

/// Low nibbles of `n` bytes, then their high ones, then the next `n` bytes.
fn nibbles(bytes: &[u8], n: usize, quants: &mut [u8]) {
    for (bytes, quants) in bytes.chunks_exact(n).zip(quants.chunks_exact_mut(2 * n)) {
        let (low, high) = quants.split_at_mut(n);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = byte & 15;
            *high = byte >> 4;
        }
    }
}

/// Bit `i` of the word is the fifth of quant `i`.
fn fifth_bits(word: &[u8], quants: &mut [u8]) {
    let bits = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    for (i, quant) in quants[..32].iter_mut().enumerate() {
        *quant |= (bits >> i & 1) as u8 * 16;
    }
}

/// Two bits of 32 bytes at a time: lowest first, then the next 32 bytes.
fn pairs_of_bits(bytes: &[u8], quants: &mut [u8]) {
    for (bytes, quants) in bytes.chunks_exact(32).zip(quants.chunks_exact_mut(128)) {
        for (pair, quants) in quants.chunks_exact_mut(32).enumerate() {
            for (quant, byte) in quants.iter_mut().zip(bytes) {
                *quant = byte >> (2 * pair) & 3;
            }
        }
    }
}

/// Bit `i` of the bytes becomes bit `to` of quants `32 i ..`.
fn add_bits(bytes: &[u8], to: usize, quants: &mut [u8]) {
    for (bit, quants) in quants.chunks_exact_mut(32).enumerate() {
        for (quant, byte) in quants.iter_mut().zip(bytes) {
            *quant |= (byte >> bit & 1) << to;
        }
    }
}

/// Eight scales and minima of 6 bits: four bytes of each, whose upper two bits belong to four more, with
/// lower nibbles in the last four bytes.
fn scales_and_mins(bytes: &[u8], block: &mut Block) {
    for i in 0..4 {
        let (scale, min, low) = (bytes[i], bytes[i + 4], bytes[i + 8]);
        for (sub, scale, min) in [
            (i, scale & 63, min & 63),
            (i + 4, low & 15 | scale >> 6 << 4, low >> 4 | min >> 6 << 4),
        ] {
            block.scales[2 * sub..][..2].fill(scale as i8);
            block.mins[2 * sub..][..2].fill(min);
        }
    }
}

/// Sixteen scales of 6 bits, plus 32: nibbles in eight bytes, the upper two bits in four more.
fn scales_of_q3_k(bytes: &[u8], scales: &mut [i8; 16]) {
    for (i, scale) in scales.iter_mut().enumerate() {
        let low = bytes[i % 8] >> (4 * (i / 8)) & 15;
        let high = bytes[8 + i % 4] >> (2 * (i / 4)) & 3;
        *scale = (low | high << 4) as i8 - 32;
    }
}

/// Eight scales of 6 bits, plus 32: upper two bits of all in a word, nibbles in four bytes.
fn scales_of_iq4_xs(upper: u16, lower: &[u8], scales: &mut [i8; 16]) {
    for sub in 0..8 {
        let low = lower[sub / 2] >> (4 * (sub % 2)) & 15;
        let high = (upper >> (2 * sub) & 3) as u8;
        scales[2 * sub..][..2].fill((low | high << 4) as i8 - 32);
    }
}

/// Nibbles 64 weights apart, upper bits as in [`pairs_of_bits`].
fn q6_k(bytes: &[u8], block: &mut Block) {
    let (low, rest) = bytes.split_at(128);
    let (high, scales) = rest.split_at(64);
    pairs_of_bits(high, &mut block.quants);
    for (low, quants) in low.chunks_exact(64).zip(block.quants.chunks_exact_mut(128)) {
        for (i, byte) in low.iter().enumerate() {
            quants[i] = byte & 15 | quants[i] << 4;
            quants[64 + i] = byte >> 4 | quants[64 + i] << 4;
        }
    }
    for (scale, &byte) in block.scales.iter_mut().zip(scales) {
        *scale = byte as i8;
    }
}

/// Five ternary digits in a byte as a fraction of 256: a digit is the whole part of three times it, what is
/// left goes on. Digits of one place first, in runs of 32, 16 and (of four digits) 4 bytes.
fn tq1_0(bytes: &[u8], quants: &mut [u8]) {
    let mut quants = quants.iter_mut();
    for (run, n_digits) in [(&bytes[..32], 5), (&bytes[32..48], 5), (&bytes[48..52], 4)] {
        let mut power = 1u8;
        for _ in 0..n_digits {
            for (byte, quant) in run.iter().zip(&mut quants) {
                *quant = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
            }
            power = power.wrapping_mul(3);
        }
    }
}

/// Seven signs and an eighth that makes the number of negative ones even.
fn eight_signs(seven: u8) -> u8 {
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Four eights of signs in the lower 28 bits, and the upper four.
fn signs_and_scale(bytes: &[u8]) -> ([u8; 4], u8) {
    let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let signs = [0, 7, 14, 21].map(|at| eight_signs((word >> at & 127) as u8));
    (signs, (word >> 28) as u8)
}

/// The scale that four bits stand for.
fn odd(scale: u8) -> i8 {
    2 * (scale & 15) as i8 + 1
}

/// Eight quants of a grid: magnitudes in two bits, signs in the third.
fn eight_of_grid(entry: u16, signs: u8, quants: &mut [u8]) {
    for (i, quant) in quants.iter_mut().enumerate() {
        *quant = (entry >> (2 * i) & 3) as u8 | (signs >> i & 1) << 2;
    }
}

fn iq2(format: Format, bytes: &[u8], block: &mut Block) {
    for (eight, quants) in block.quants.chunks_exact_mut(8).enumerate() {
        let (sub, part) = (eight / 4, eight % 4);
        let (entry, signs) = match format {
            Format::Iq2Xxs => {
                let (indices, rest) = bytes[8 * sub..][..8].split_at(4);
                let (signs, scale) = signs_and_scale(rest);
                block.scales[2 * sub..][..2].fill(odd(scale));
                (grids::IQ2_XXS[usize::from(indices[part])], signs[part])
            }
            Format::Iq2Xs => {
                let word = u16::from_le_bytes([bytes[2 * eight], bytes[2 * eight + 1]]);
                (
                    grids::IQ2_XS[usize::from(word & 511)],
                    eight_signs((word >> 9) as u8),
                )
            }
            _ => {
                let upper = usize::from(bytes[64 + sub] >> (2 * part) & 3);
                (
                    grids::IQ2_S[usize::from(bytes[eight]) | upper << 8],
                    bytes[32 + eight],
                )
            }
        };
        eight_of_grid(entry, signs, quants);
    }
    let scales_at = match format {
        Format::Iq2Xxs => return,
        Format::Iq2Xs => 64,
        _ => 72,
    };
    for (i, pair) in bytes[scales_at..].iter().enumerate() {
        block.scales[2 * i] = odd(*pair);
        block.scales[2 * i + 1] = odd(pair >> 4);
    }
}

fn iq3(format: Format, bytes: &[u8], block: &mut Block) {
    for sub in 0..8 {
        let mut indices: [usize; 8] = std::array::from_fn(|i| usize::from(bytes[8 * sub + i]));
        let (grid, (signs, scale)): (&[u16], _) = if format == Format::Iq3Xxs {
            (&grids::IQ3_XXS, signs_and_scale(&bytes[64 + 4 * sub..]))
        } else {
            for (i, index) in indices.iter_mut().enumerate() {
                *index |= usize::from(bytes[64 + sub] >> i & 1) << 8;
            }
            let signs = std::array::from_fn(|i| bytes[72 + 4 * sub + i]);
            (&grids::IQ3_S, (signs, bytes[104 + sub / 2] >> (4 * (sub % 2))))
        };
        block.scales[2 * sub..][..2].fill(odd(scale));
        // Magnitudes in three bits, signs in the fourth.
        for (i, quant) in block.quants[32 * sub..][..32].iter_mut().enumerate() {
            let magnitude = grid[indices[i / 4]] >> (4 * (i % 4)) & 7;
            *quant = magnitude as u8 | (signs[i / 8] >> (i % 8) & 1) << 3;
        }
    }
}
