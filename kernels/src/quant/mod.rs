//! Element and block formats of weights (quantizations), as GGUF stores them.
//!
//! A block is some integers with scales. Whatever its bytes look like, it says (see `Coding`)
//!
//! ```text
//! w[i] = (scale * scales[i / 16]) * value(q[i]) + min * mins[i / 16]
//!        \_____ exact in f32 ____/
//!        \___________ exact in f32 ___________/ \_ exact in f32 _/
//! ```
//!
//! with a floating-point `scale` and `min` for each block and, in blocks of 256 (super-blocks), small
//! integers `scales` and `mins` for each 16 or 32 weights; both are 1 where a format has none. So a weight is
//! rounded once at most, by the sum.
//!
//! | format | bits a weight | integers | value | scales, mins |
//! |---|---|---|---|---|
//! | Q8_0 | 8.5 | 8 bits | q - 128 (stored signed) | f16 for each 32 |
//! | Q4_0, Q5_0 | 4.5, 5.5 | 4, 5 bits | q - 8, q - 16 | f16 for each 32 |
//! | Q4_1, Q5_1 | 5, 6 | 4, 5 bits | q | f16 scale and min for each 32 |
//! | Q2_K | 2.625 | 2 bits | q | f16 for each 256, times 4 bits for each 16 |
//! | Q3_K | 3.4375 | 3 bits | q - 4 | f16 for each 256, times 6 bits for each 16; no min |
//! | Q4_K, Q5_K | 4.5, 5.5 | 4, 5 bits | q | f16 for each 256, times 6 bits for each 32 |
//! | Q6_K | 6.5625 | 6 bits | q - 32 | f16 for each 256, times 8 bits for each 16; no min |
//! | IQ4_NL, IQ4_XS | 4.5, 4.25 | 4 bits | of a table | f16 for each 32; or for each 256, times 6 bits |
//! | MXFP4 | 4.25 | 4 bits | of a table | power of two for each 32 |
//! | IQ2_XXS, IQ2_XS, IQ2_S | 2.06, 2.31, 2.56 | eights of a grid | of a table | as IQ4_XS, 4 bits |
//! | IQ3_XXS, IQ3_S | 3.06, 3.44 | fours of a grid | of a table | as IQ4_XS, 4 bits |
//! | TQ1_0, TQ2_0 | 1.6875, 2.0625 | -1, 0, 1 | q - 1 | f16 for each 256 |
//! | U4, U4_128 | 4.75, 4.1875 | 4 bits | q - zero | f16 scale and integer zero for each 32, 128 |
//! | U8 | 9 | 8 bits | q - zero | f16 scale and integer zero for each 32 |
//!
//! The last three are no formats of GGUF: weights of other checkpoints (GPTQ, AWQ, compressed-tensors) become
//! blocks of them when they are loaded. A zero point `z` is a min of `-scale * z`.
//!
//! A format is a variant of [`Format`], its row in `ROWS` and how its bytes are read (`blocks.rs`); the
//! kernels go by the `Coding`. A golden (`tests/golden/quants.py`) compares every weight of GGUF's
//! with the `gguf` package's.
//!
//! Source: the GGUF specification and ggml's block definitions.

mod blocks;
mod grids;
mod integers;
mod numbers;
mod quantize;

pub(crate) use blocks::{Block, read_block};
pub use integers::{IntegerBlock, write_block};
pub use numbers::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16};
pub use quantize::{can_quantize, quantize_row};

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
    /// 5-bit blocks with a scale.
    Q5_0,
    /// 5-bit blocks with a scale and a minimum.
    Q5_1,
    /// 2-bit super-blocks with scales and minima.
    Q2K,
    /// 3-bit super-blocks with scales.
    Q3K,
    /// 4-bit super-blocks with scales and minima.
    Q4K,
    /// 5-bit super-blocks with scales and minima.
    Q5K,
    /// 6-bit super-blocks with scales.
    Q6K,
    /// 4-bit blocks of a table's values with a scale.
    Iq4Nl,
    /// 4-bit super-blocks of a table's values with scales.
    Iq4Xs,
    /// 4-bit floating point (OCP microscaling) with powers of two as scales.
    Mxfp4,
    /// Ternary super-blocks, five weights a byte.
    Tq1_0,
    /// Ternary super-blocks, four weights a byte.
    Tq2_0,
    /// Super-blocks of eights of a grid of 256, with scales for each 32.
    Iq2Xxs,
    /// Super-blocks of eights of a grid of 512, with scales for each 16.
    Iq2Xs,
    /// Super-blocks of eights of a grid of 1024, with scales for each 16.
    Iq2S,
    /// Super-blocks of fours of a grid of 256, with scales for each 32.
    Iq3Xxs,
    /// Super-blocks of fours of a grid of 512, with scales for each 32.
    Iq3S,
    /// 4-bit blocks with a scale and an integer zero point.
    U4,
    /// The same in blocks of 128.
    U4x128,
    /// 8-bit blocks with a scale and an integer zero point.
    U8,
}

/// What the stored integer of a weight stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// `q - offset`; the offset is 0 or a power of two.
    Offset(u8),
    /// `table[q]`, for integers of 3 or 4 bits.
    Table(&'static [i8; 16]),
}

/// The minima of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mins {
    None,
    /// A floating-point one for each block.
    OfBlock,
    /// That of the block times an unsigned integer for each 32 weights.
    Per32,
    /// That of the block times an unsigned integer of 4 bits for each 16 weights, whose scales have 4 bits
    /// too.
    Per16,
}

/// The integer scales of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// None: the block's scale is that of all its weights.
    None,
    /// One for each 32 weights.
    Per32,
    /// One for each 16 weights.
    Per16,
}

/// How the blocks of a format make weights of integers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coding {
    /// Bits of a stored integer: 2, 3, 4, 5, 6 or 8.
    pub(crate) bits: usize,
    pub(crate) values: Values,
    pub(crate) scales: Scales,
    pub(crate) mins: Mins,
    /// Whether the block's scale is a bf16 number instead of an f16 one.
    pub(crate) has_bf16_scale: bool,
    /// The power of two that the block's scale is multiplied with.
    pub(crate) scale_factor: f32,
}

/// One row of the table of formats.
struct Row {
    format: Format,
    /// GGUF's name and number, where it is one of its formats.
    name: &'static str,
    ggml_type: Option<u32>,
    block_len: usize,
    block_bytes: usize,
    /// Where the f16 numbers of a block are.
    halves: &'static [usize],
    coding: Option<Coding>,
}

const fn plain(format: Format, name: &'static str, ggml_type: u32, block_bytes: usize) -> Row {
    Row {
        format,
        name,
        ggml_type: Some(ggml_type),
        block_len: 1,
        block_bytes,
        halves: &[],
        coding: None,
    }
}

const fn coded(
    (format, name, ggml_type): (Format, &'static str, u32),
    (block_len, block_bytes): (usize, usize),
    halves: &'static [usize],
    coding: Coding,
) -> Row {
    Row {
        format,
        name,
        ggml_type: Some(ggml_type),
        block_len,
        block_bytes,
        halves,
        coding: Some(coding),
    }
}

/// Blocks of an f16 scale, an integer zero point and integers, which no GGUF file has.
const fn zeroed(
    (format, name): (Format, &'static str),
    (block_len, block_bytes): (usize, usize),
    coding: Coding,
) -> Row {
    Row {
        format,
        name,
        ggml_type: None,
        block_len,
        block_bytes,
        halves: &[0],
        coding: Some(coding),
    }
}

const fn coding(bits: usize, values: Values, scales: Scales, mins: Mins) -> Coding {
    Coding {
        bits,
        values,
        scales,
        mins,
        has_bf16_scale: false,
        scale_factor: 1.0,
    }
}

/// IQ2 and IQ3: values of a table, and scales of the form (2 s + 1) / n.
const fn grid_coding(bits: usize, table: &'static [i8; 16], scales: Scales, scale_factor: f32) -> Coding {
    Coding {
        scale_factor,
        ..coding(bits, Values::Table(table), scales, Mins::None)
    }
}

/// Values of IQ4_NL and IQ4_XS.
const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Values of MXFP4 (e2m1), doubled; the scale is halved.
const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Values of IQ2: a magnitude in two bits (three are used), a sign in the third.
const IQ2_VALUES: [i8; 16] = [8, 25, 43, 0, -8, -25, -43, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Values of IQ3_XXS and IQ3_S: a magnitude in three bits, a sign in the fourth.
const IQ3_XXS_VALUES: [i8; 16] = [
    4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62,
];
const IQ3_S_VALUES: [i8; 16] = [1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15];

/// Every format, in the order of the enum.
static ROWS: [Row; 26] = {
    use Format::*;
    use Values::{Offset, Table};
    const NO_MINS: Mins = Mins::None;
    const ONE: Scales = Scales::None;
    [
        plain(F32, "F32", 0, 4),
        plain(F16, "F16", 1, 2),
        plain(Bf16, "BF16", 30, 2),
        coded(
            (Q8_0, "Q8_0", 8),
            (32, 34),
            &[0],
            coding(8, Offset(128), ONE, NO_MINS),
        ),
        coded(
            (Q4_0, "Q4_0", 2),
            (32, 18),
            &[0],
            coding(4, Offset(8), ONE, NO_MINS),
        ),
        coded(
            (Q4_1, "Q4_1", 3),
            (32, 20),
            &[0, 2],
            coding(4, Offset(0), ONE, Mins::OfBlock),
        ),
        coded(
            (Q5_0, "Q5_0", 6),
            (32, 22),
            &[0],
            coding(5, Offset(16), ONE, NO_MINS),
        ),
        coded(
            (Q5_1, "Q5_1", 7),
            (32, 24),
            &[0, 2],
            coding(5, Offset(0), ONE, Mins::OfBlock),
        ),
        coded(
            (Q2K, "Q2_K", 10),
            (256, 84),
            &[80, 82],
            coding(2, Offset(0), Scales::Per16, Mins::Per16),
        ),
        coded(
            (Q3K, "Q3_K", 11),
            (256, 110),
            &[108],
            coding(3, Offset(4), Scales::Per16, NO_MINS),
        ),
        coded(
            (Q4K, "Q4_K", 12),
            (256, 144),
            &[0, 2],
            coding(4, Offset(0), Scales::Per32, Mins::Per32),
        ),
        coded(
            (Q5K, "Q5_K", 13),
            (256, 176),
            &[0, 2],
            coding(5, Offset(0), Scales::Per32, Mins::Per32),
        ),
        coded(
            (Q6K, "Q6_K", 14),
            (256, 210),
            &[208],
            coding(6, Offset(32), Scales::Per16, NO_MINS),
        ),
        coded(
            (Iq4Nl, "IQ4_NL", 20),
            (32, 18),
            &[0],
            coding(4, Table(&IQ4_VALUES), ONE, NO_MINS),
        ),
        coded(
            (Iq4Xs, "IQ4_XS", 23),
            (256, 136),
            &[0],
            coding(4, Table(&IQ4_VALUES), Scales::Per32, NO_MINS),
        ),
        coded(
            (Mxfp4, "MXFP4", 39),
            (32, 17),
            &[],
            Coding {
                has_bf16_scale: true,
                ..coding(4, Table(&MXFP4_VALUES), ONE, NO_MINS)
            },
        ),
        coded(
            (Tq1_0, "TQ1_0", 34),
            (256, 54),
            &[52],
            coding(2, Offset(1), ONE, NO_MINS),
        ),
        coded(
            (Tq2_0, "TQ2_0", 35),
            (256, 66),
            &[64],
            coding(2, Offset(1), ONE, NO_MINS),
        ),
        coded(
            (Iq2Xxs, "IQ2_XXS", 16),
            (256, 66),
            &[0],
            grid_coding(3, &IQ2_VALUES, Scales::Per32, 0.125),
        ),
        coded(
            (Iq2Xs, "IQ2_XS", 17),
            (256, 74),
            &[0],
            grid_coding(3, &IQ2_VALUES, Scales::Per16, 0.125),
        ),
        coded(
            (Iq2S, "IQ2_S", 22),
            (256, 82),
            &[0],
            grid_coding(3, &IQ2_VALUES, Scales::Per16, 0.125),
        ),
        coded(
            (Iq3Xxs, "IQ3_XXS", 18),
            (256, 98),
            &[0],
            grid_coding(4, &IQ3_XXS_VALUES, Scales::Per32, 0.25),
        ),
        coded(
            (Iq3S, "IQ3_S", 21),
            (256, 110),
            &[0],
            grid_coding(4, &IQ3_S_VALUES, Scales::Per32, 1.0),
        ),
        zeroed((U4, "U4"), (32, 19), coding(4, Offset(0), ONE, Mins::Per32)),
        zeroed(
            (U4x128, "U4_128"),
            (128, 67),
            coding(4, Offset(0), ONE, Mins::Per32),
        ),
        zeroed((U8, "U8"), (32, 36), coding(8, Offset(128), ONE, Mins::Per32)),
    ]
};

impl Format {
    /// Every format, each at the index that it is as a number.
    pub const ALL: [Format; ROWS.len()] = {
        let mut all = [Format::F32; ROWS.len()];
        let mut i = 0;
        while i < ROWS.len() {
            all[i] = ROWS[i].format;
            assert!(all[i] as usize == i, "rows in the order of the enum");
            i += 1;
        }
        all
    };

    const fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// The format that GGUF gives this number.
    pub fn of_ggml_type(number: u32) -> Option<Format> {
        let row = ROWS.iter().find(|row| row.ggml_type == Some(number));
        row.map(|row| row.format)
    }

    /// GGUF's number; nothing of formats that GGUF does not have.
    pub const fn ggml_type(self) -> Option<u32> {
        self.row().ggml_type
    }

    /// GGUF's name, `Q4_K` for example, or our own for a format that GGUF does not have.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Elements per block; 1 for plain elements.
    pub const fn block_len(self) -> usize {
        self.row().block_len
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// Bytes of a row of `n` elements, or `None` where `n` is no whole number of blocks or overflows.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether weights are blocks of small integers with scales.
    pub const fn is_quantized(self) -> bool {
        self.coding().is_some()
    }

    /// How blocks make weights; `None` for plain elements.
    pub(crate) const fn coding(self) -> Option<Coding> {
        self.row().coding
    }

    /// Where the f16 numbers of a block are: byte offsets of its scale and minimum. Empty for plain elements,
    /// and for MXFP4, whose scales are bytes.
    pub const fn halves(self) -> &'static [usize] {
        self.row().halves
    }
}

/// Weights that share a scale of the activations they are multiplied with.
pub const BLOCK: usize = 32;

/// Most elements of a block.
pub(crate) const MAX_BLOCK_LEN: usize = 256;

/// Whether every number that whole blocks hold as floating point is finite: the elements, or the scales and
/// minima of blocks of integers.
///
/// # Panics
/// When `bytes` is no whole number of blocks.
pub fn is_finite(format: Format, bytes: &[u8]) -> bool {
    const F16_EXPONENT: u16 = 0x7c00;
    const BF16_EXPONENT: u16 = 0x7f80;
    /// 255 is a NaN, and 12 times the two scales below it are infinite.
    const MXFP4_LARGEST_EXPONENT: u8 = 252;
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
        Format::F16 => halves_at(&[0], F16_EXPONENT),
        Format::Bf16 => halves_at(&[0], BF16_EXPONENT),
        Format::Mxfp4 => {
            let blocks = bytes.chunks_exact(format.block_bytes());
            !blocks.fold(false, |found, block| found | (block[0] > MXFP4_LARGEST_EXPONENT))
        }
        _ => halves_at(format.halves(), F16_EXPONENT),
    }
}

/// The values of one row as the file stores it, one rounding to f32 an element (the sum with a minimum;
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
    let mut block = Block::EMPTY;
    for (bytes, out) in blocks.zip(out.chunks_exact_mut(format.block_len())) {
        match (format, format.coding()) {
            (_, Some(coding)) => {
                read_block(format, bytes, &mut block);
                block.dequantize(&coding, out);
            }
            (Format::F16, None) => out[0] = f32_from_f16(half(bytes)),
            (Format::Bf16, None) => out[0] = f32_from_bf16(half(bytes)),
            (_, None) => out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_found_where_they_are_numbers() {
        for format in Format::ALL {
            let n_blocks = 5;
            let fine = vec![0; n_blocks * format.block_bytes()];
            assert!(is_finite(format, &fine), "{format:?}");
            assert!(is_finite(format, &[]), "{format:?}");
            // The bytes that hold sign and exponent.
            let numbers: &[usize] = match format {
                Format::F32 => &[2],
                Format::F16 | Format::Bf16 => &[0],
                _ => format.halves(),
            };
            for block in 0..n_blocks {
                let start = block * format.block_bytes();
                for number in numbers {
                    let at = start + number;
                    let mut bytes = fine.clone();
                    bytes[at..at + 2].fill(0xff);
                    assert!(!is_finite(format, &bytes), "{format:?} {block} {number}");
                    bytes[at + 1] = 0xbb;
                    assert!(is_finite(format, &bytes), "{format:?} {block} {number}");
                }
                if format == Format::Mxfp4 {
                    for (exponent, is_fine) in [(252, true), (253, false), (255, false)] {
                        let mut bytes = fine.clone();
                        bytes[start] = exponent;
                        assert_eq!(is_finite(format, &bytes), is_fine, "exponent {exponent}");
                    }
                } else if format.is_quantized() {
                    let mut bytes = fine.clone();
                    bytes[start..start + format.block_bytes()].fill(0xff);
                    for number in numbers {
                        bytes[start + number..][..2].fill(0);
                    }
                    assert!(
                        is_finite(format, &bytes),
                        "{format:?}: integers are what they are"
                    );
                }
            }
        }
    }

    /// What the kernels rely on: integers have their bits, those of 32 weights times their scales and int8
    /// are exact in f32, and scales of 4 bits with minima of 4 fit a byte.
    #[test]
    fn integers_of_every_block_are_within_their_bits() {
        for format in Format::ALL {
            let Some(coding) = format.coding() else { continue };
            let (mut largest_value, mut largest_scale) = (0, 0);
            for byte in 0..=255 {
                let mut block = Block::EMPTY;
                read_block(format, &vec![byte; format.block_bytes()], &mut block);
                for &quant in &block.quants[..format.block_len()] {
                    assert!(usize::from(quant) < 1 << coding.bits, "{format:?}");
                    let value = match coding.values {
                        Values::Offset(offset) => i32::from(quant) - i32::from(offset),
                        Values::Table(table) => i32::from(table[usize::from(quant)]),
                    };
                    largest_value = largest_value.max(value.abs());
                }
                for (scale, min) in block.scales.into_iter().zip(block.mins) {
                    largest_scale = largest_scale.max(i32::from(scale).abs());
                    let is_half_a_byte = (0..16).contains(&scale) && min < 16;
                    assert!(coding.mins != Mins::Per16 || is_half_a_byte, "{format:?}");
                }
            }
            assert!(coding.scales != Scales::None || largest_scale == 1, "{format:?}");
            let dot = 32 * largest_value * 127 * largest_scale;
            assert!(dot < 1 << 24, "{format:?}: {dot}");
        }
    }
}
