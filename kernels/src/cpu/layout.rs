//! Memory layout of repacked weights.
//!
//! A matrix is cut into tiles of 16 output columns; a tile holds the whole depth, contiguous. Lane `c` of
//! every vector belongs to column `c` of the tile. The integers of 32 inputs of a column are eight words
//! `w[j]` of four bytes, inputs `4 j .. 4 j + 4`; a tile stores their bits in planes of 64-byte chunks:
//!
//! ```text
//!   byte    0        4        8             60       64
//!           +--------+--------+--    --+--------+
//!   chunk v | col 0  | col 1  |  ...   | col 15 |    a lane:
//!           +--------+--------+--    --+--------+
//!     8 bits, v < 8      w[v]
//!     4 bits, v < 4      w[v] | w[v + 4] << 4
//!     2 bits, v < 2      w[4 v] | w[4 v + 1] << 2 | w[4 v + 2] << 4 | w[4 v + 3] << 6
//!     1 bit,  v < 1      w[0] | w[1] << 1 | ... | w[7] << 7
//! ```
//!
//! A sub-block is what 32 inputs of 16 columns have of their own: a plane of the low 2, 4 or 8 bits, a plane
//! of the 1 or 2 bits above (formats of 3, 5 and 6 bits), and integer scales and minima. A block is one of
//! them, or four or eight in formats with larger blocks, then the floating-point numbers:
//!
//! ```text
//!   sub-block:  low plane | high plane | 16 x scale of 32, or 16 x (scale, scale) of 16 and 16 | 16 x min
//!                                        (scale | min << 4 in each byte where both are of 16)
//!   block:      sub-blocks | 16 x f16 or bf16 scale | 16 x f16 min
//! ```
//!
//! So a block of Q4_1 has 256 + 32 + 32 bytes and one of Q4_K 8 * (256 + 16 + 16) + 32 + 32. These are the
//! file's bytes but for integer scales of 4 and 6 bits, which become bytes, ternary digits, which get 2 bits,
//! MXFP4's exponents, which become bf16, and weights of a grid, each of which gets 3 or 4 bits
//! ([`packed_block_bytes`]).
//!
//! F32, F16, Bf16: [n_in][16 columns], elements as in the file.
//!
//! Columns beyond the matrix in its last tile are zero bytes (scale 0), and their results are dropped.

use std::ops::Range;

use super::threads::{SharedSlice, ThreadPool};
use crate::host::Buffer;
use crate::quant::{
    BLOCK, Block, Coding, Format, Mins, Scales, Values, f32_from_bf16, f32_from_f16, read_block,
};
use crate::{BackendError, MatrixSource};

/// Output columns of a tile.
pub(crate) const TILE_COLUMNS: usize = 16;

/// Bytes of a bit of 32 inputs of 16 columns.
const PLANE_BYTES: usize = TILE_COLUMNS * BLOCK / 8;

/// The function with the number of a quantized format as its constant parameter.
macro_rules! of_format {
    ($format:expr, $function:ident) => {
        of_format!($format, $function: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl, Iq4Xs,
            Mxfp4, Tq1_0, Tq2_0, Iq2Xxs, Iq2Xs, Iq2S, Iq3Xxs, Iq3S, U4, U4x128, U8)
    };
    ($format:expr, $function:ident: $($name:ident),*) => {
        match $format {
            Format::F32 | Format::F16 | Format::Bf16 => panic!("a format without blocks"),
            $(Format::$name => $function::<{ Format::$name as usize }>,)*
        }
    };
}
pub(crate) use of_format;

/// Where things are in the blocks of a tile of a quantized format.
#[derive(Clone, Copy)]
pub(crate) struct TileLayout {
    pub(crate) coding: Coding,
    /// Sub-blocks of 32 inputs in a block.
    pub(crate) n_subs: usize,
}

/// The layout of the format with this number ([`Format::ALL`]).
pub(crate) struct Tile<const FORMAT: usize>;

impl<const FORMAT: usize> Tile<FORMAT> {
    pub(crate) const LAYOUT: TileLayout = TileLayout::of(Format::ALL[FORMAT]);
}

impl TileLayout {
    #[inline(always)]
    const fn of(format: Format) -> TileLayout {
        let coding = format.coding().expect("a quantized format");
        TileLayout {
            coding,
            n_subs: format.block_len() / BLOCK,
        }
    }

    /// Bits of the low plane.
    #[inline(always)]
    pub(crate) const fn low_bits(&self) -> usize {
        match self.coding.bits {
            2 | 3 => 2,
            4..=6 => 4,
            8 => 8,
            _ => panic!("bits that no planes are made for"),
        }
    }

    /// Bits of the high plane, perhaps none.
    #[inline(always)]
    pub(crate) const fn high_bits(&self) -> usize {
        self.coding.bits - self.low_bits()
    }

    /// Where in a sub-block the high plane begins.
    #[inline(always)]
    pub(crate) const fn high_plane(&self) -> usize {
        self.low_bits() * PLANE_BYTES
    }

    /// Where in a sub-block its integer scales begin.
    #[inline(always)]
    pub(crate) const fn sub_scales(&self) -> usize {
        self.coding.bits * PLANE_BYTES
    }

    /// Where in a sub-block its integer minima of 32 inputs begin.
    #[inline(always)]
    pub(crate) const fn sub_mins(&self) -> usize {
        let n_scales = match self.coding.scales {
            Scales::None => 0,
            Scales::Per32 => 1,
            Scales::Per16 => 2,
        };
        self.sub_scales() + n_scales * TILE_COLUMNS
    }

    /// Bytes of a sub-block.
    #[inline(always)]
    pub(crate) const fn sub_bytes(&self) -> usize {
        match self.coding.mins {
            Mins::Per32 => self.sub_mins() + TILE_COLUMNS,
            Mins::None | Mins::OfBlock | Mins::Per16 => self.sub_mins(),
        }
    }

    /// Where in a block the scales begin.
    #[inline(always)]
    pub(crate) const fn scales(&self) -> usize {
        self.n_subs * self.sub_bytes()
    }

    /// Where in a block the minima begin.
    #[inline(always)]
    pub(crate) const fn mins(&self) -> usize {
        self.scales() + 2 * TILE_COLUMNS
    }

    #[inline(always)]
    pub(crate) const fn has_min(&self) -> bool {
        !matches!(self.coding.mins, Mins::None)
    }

    /// Bytes of a block.
    #[inline(always)]
    pub(crate) const fn block_bytes(&self) -> usize {
        self.mins() + if self.has_min() { 2 * TILE_COLUMNS } else { 0 }
    }

    /// The block's scale of a column.
    #[inline(always)]
    pub(crate) fn scale(&self, block: &[u8], lane: usize) -> f32 {
        let bits = half(block, self.scales() + 2 * lane);
        let scale = match self.coding.has_bf16_scale {
            true => f32_from_bf16(bits),
            false => f32_from_f16(bits),
        };
        scale * self.coding.scale_factor
    }

    /// The block's minimum of a column, of a format that has one.
    #[inline(always)]
    pub(crate) fn min(&self, block: &[u8], lane: usize) -> f32 {
        f32_from_f16(half(block, self.mins() + 2 * lane))
    }

    /// The integers of a column of a sub-block.
    #[inline(always)]
    pub(crate) fn quants(&self, sub: &[u8], lane: usize) -> [u8; BLOCK] {
        let low_bits = self.low_bits();
        let low = plane(&sub[..self.high_plane()], low_bits, lane);
        let high = plane(&sub[self.high_plane()..self.sub_scales()], self.high_bits(), lane);
        let mut quants = [0; BLOCK];
        for (quants, (low, high)) in quants.chunks_exact_mut(4).zip(low.into_iter().zip(high)) {
            quants.copy_from_slice(&(low | high << (low_bits % 8)).to_le_bytes());
        }
        quants
    }

    /// What an integer stands for.
    #[inline(always)]
    pub(crate) fn value(&self, quant: u8) -> i32 {
        match self.coding.values {
            Values::Offset(offset) => i32::from(quant) - i32::from(offset),
            Values::Table(table) => i32::from(table[usize::from(quant)]),
        }
    }

    /// Scales and minima of a column of a sub-block, each for 16 inputs.
    #[inline(always)]
    pub(crate) fn scales_and_mins(&self, sub: &[u8], lane: usize) -> ([i8; 2], [u8; 2]) {
        let of_32 = |at: usize| [sub[at + lane]; 2];
        let of_16 = || [0, 1].map(|i| sub[self.sub_scales() + 2 * lane + i]);
        match (self.coding.scales, self.coding.mins) {
            (Scales::None, Mins::Per32) => ([1; 2], of_32(self.sub_mins())),
            (Scales::None, _) => ([1; 2], [1; 2]),
            (Scales::Per32, Mins::Per32) => (
                of_32(self.sub_scales()).map(|byte| byte as i8),
                of_32(self.sub_mins()),
            ),
            (Scales::Per32, _) => (of_32(self.sub_scales()).map(|byte| byte as i8), [1; 2]),
            (Scales::Per16, Mins::Per16) => (
                of_16().map(|byte| (byte & 15) as i8),
                of_16().map(|byte| byte >> 4),
            ),
            (Scales::Per16, _) => (of_16().map(|byte| byte as i8), [1; 2]),
        }
    }

    /// Writes a column of a block.
    #[inline(always)]
    fn pack(&self, block: &Block, out: &mut [u8], lane: usize) {
        let subs = out[..self.scales()].chunks_exact_mut(self.sub_bytes());
        for (i, (sub, quants)) in subs.zip(block.quants.chunks_exact(BLOCK)).enumerate() {
            let mut words = [0; 8];
            for (word, four) in words.iter_mut().zip(quants.chunks_exact(4)) {
                *word = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            }
            let low_bits = self.low_bits();
            pack_plane(words, low_bits, lane, &mut sub[..self.high_plane()]);
            let high = words.map(|word| word >> (low_bits % 8));
            pack_plane(
                high,
                self.high_bits(),
                lane,
                &mut sub[self.high_plane()..self.sub_scales()],
            );
            let scales = &block.scales[2 * i..][..2];
            let mins = &block.mins[2 * i..][..2];
            match self.coding.scales {
                Scales::None => {}
                Scales::Per32 => sub[self.sub_scales() + lane] = scales[0] as u8,
                Scales::Per16 => {
                    for i in 0..2 {
                        let min = if self.coding.mins == Mins::Per16 {
                            mins[i] << 4
                        } else {
                            0
                        };
                        sub[self.sub_scales() + 2 * lane + i] = scales[i] as u8 | min;
                    }
                }
            }
            if self.coding.mins == Mins::Per32 {
                sub[self.sub_mins() + lane] = mins[0];
            }
        }
        out[self.scales() + 2 * lane..][..2].copy_from_slice(&block.scale.to_le_bytes());
        if self.has_min() {
            out[self.mins() + 2 * lane..][..2].copy_from_slice(&block.min.to_le_bytes());
        }
    }

    /// Reads a column of a block back.
    #[inline(always)]
    fn unpack(&self, bytes: &[u8], lane: usize, block: &mut Block) {
        let subs = bytes[..self.scales()].chunks_exact(self.sub_bytes());
        for (i, (sub, quants)) in subs.zip(block.quants.chunks_exact_mut(BLOCK)).enumerate() {
            quants.copy_from_slice(&self.quants(sub, lane));
            let (scales, mins) = self.scales_and_mins(sub, lane);
            block.scales[2 * i..][..2].copy_from_slice(&scales);
            block.mins[2 * i..][..2].copy_from_slice(&mins);
        }
        block.scale = half(bytes, self.scales() + 2 * lane);
        if self.has_min() {
            block.min = half(bytes, self.mins() + 2 * lane);
        }
    }
}

#[inline(always)]
fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The lowest `bits` of each byte of a word.
#[inline(always)]
const fn low_mask(bits: usize) -> u32 {
    0x0101_0101 * ((1u32 << bits) - 1)
}

/// The words of a lane of a plane; zeros of one without bits.
#[inline(always)]
fn plane(plane: &[u8], bits: usize, lane: usize) -> [u32; 8] {
    let mut words = [0; 8];
    if bits == 0 {
        return words;
    }
    for (j, word) in words.iter_mut().enumerate() {
        let (chunk, shift) = chunk_and_shift(bits, j);
        let four = &plane[64 * chunk + 4 * lane..][..4];
        *word = u32::from_le_bytes([four[0], four[1], four[2], four[3]]) >> shift & low_mask(bits);
    }
    words
}

/// Which chunk of a plane of `bits` holds word `j`, and where in its bytes.
#[inline(always)]
pub(crate) const fn chunk_and_shift(bits: usize, j: usize) -> (usize, usize) {
    let n_in_byte = 8 / bits;
    match bits {
        // Nibbles as most files have them, so that none moves.
        4 => (j % 4, 4 * (j / 4)),
        _ => (j / n_in_byte, bits * (j % n_in_byte)),
    }
}

/// Writes a lane of a plane that was zero.
#[inline(always)]
fn pack_plane(words: [u32; 8], bits: usize, lane: usize, plane: &mut [u8]) {
    if bits == 0 {
        return;
    }
    let mut chunks = [0u32; 8];
    for (j, word) in words.into_iter().enumerate() {
        let (chunk, shift) = chunk_and_shift(bits, j);
        chunks[chunk] |= (word & low_mask(bits)) << shift;
    }
    for (chunk, out) in chunks.iter().zip(plane.chunks_exact_mut(64)) {
        out[4 * lane..][..4].copy_from_slice(&chunk.to_le_bytes());
    }
}

/// Bytes in memory for each block of `format`.
pub fn packed_block_bytes(format: Format) -> usize {
    match format.is_quantized() {
        true => TileLayout::of(format).block_bytes() / TILE_COLUMNS,
        false => format.block_bytes(),
    }
}

/// One weight matrix in tiles.
pub(crate) struct PackedMatrix {
    format: Format,
    n_out: usize,
    n_in: usize,
    tile_bytes: usize,
    bytes: Buffer<u8>,
}

impl PackedMatrix {
    /// Repacks `source`, tiles spread over the pool.
    pub(crate) fn new(source: &MatrixSource<'_>, pool: &mut ThreadPool) -> Result<Self, BackendError> {
        let row_bytes = check(source)?;
        let n_tiles = source.n_out.div_ceil(TILE_COLUMNS);
        let column_bytes = source.n_in / source.format.block_len() * packed_block_bytes(source.format);
        let tile_bytes = TILE_COLUMNS * column_bytes;
        let len = n_tiles.checked_mul(tile_bytes).ok_or(BackendError::OutOfMemory {
            what: "weights",
            bytes: usize::MAX,
        })?;
        let mut bytes = Buffer::zeroed(len, "weights")?;
        let tiles = SharedSlice::new(&mut bytes);
        pool.run(n_tiles, 4, |_, items| {
            for tile in items {
                // SAFETY: every tile is claimed once, and tiles do not overlap.
                let target = unsafe { tiles.range(tile * tile_bytes..(tile + 1) * tile_bytes) };
                let first = tile * TILE_COLUMNS;
                let columns = first..source.n_out.min(first + TILE_COLUMNS);
                repack_tile(source, row_bytes, columns, target);
            }
        });
        Ok(PackedMatrix {
            format: source.format,
            n_out: source.n_out,
            n_in: source.n_in,
            tile_bytes,
            bytes,
        })
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    pub(crate) fn n_in(&self) -> usize {
        self.n_in
    }

    pub(crate) fn n_tiles(&self) -> usize {
        self.n_out.div_ceil(TILE_COLUMNS)
    }

    pub(crate) fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    /// Steps of a kernel's loop over the depth: blocks, or elements of the plain formats.
    pub(crate) fn depth(&self) -> usize {
        self.n_in / self.format.block_len()
    }

    /// The bytes of one tile.
    pub(crate) fn tile(&self, tile: usize) -> &[u8] {
        &self.bytes[tile * self.tile_bytes..][..self.tile_bytes]
    }

    /// The weights of one output, the values that [`crate::quant::dequantize_row`] gives of the source.
    pub(crate) fn dequantize(&self, column: usize, out: &mut [f32]) {
        assert!(
            column < self.n_out && out.len() == self.n_in,
            "column {column} of {}",
            self.n_out
        );
        let tile = self.tile(column / TILE_COLUMNS);
        let lane = column % TILE_COLUMNS;
        if self.format.is_quantized() {
            of_format!(self.format, dequantize_blocks)(tile, lane, out);
            return;
        }
        let steps = tile.chunks_exact(TILE_COLUMNS * self.format.block_bytes());
        for (step, out) in steps.zip(out) {
            *out = match self.format {
                Format::F16 => f32_from_f16(half(step, 2 * lane)),
                Format::Bf16 => f32_from_bf16(half(step, 2 * lane)),
                _ => {
                    let word = &step[4 * lane..][..4];
                    f32::from_le_bytes([word[0], word[1], word[2], word[3]])
                }
            };
        }
    }
}

fn check(source: &MatrixSource<'_>) -> Result<usize, BackendError> {
    let bad = |reason| BackendError::BadMatrix {
        format: source.format,
        n_out: source.n_out,
        n_in: source.n_in,
        reason,
    };
    if source.n_out == 0 || source.n_in == 0 {
        return Err(bad("it is empty"));
    }
    let row_bytes = source
        .format
        .row_bytes(source.n_in)
        .ok_or_else(|| bad("a row is not a whole number of blocks"))?;
    match row_bytes.checked_mul(source.n_out) {
        Some(bytes) if bytes == source.bytes.len() => Ok(row_bytes),
        _ => Err(bad("its bytes are not those of its shape")),
    }
}

fn repack_tile(source: &MatrixSource<'_>, row_bytes: usize, columns: Range<usize>, tile: &mut [u8]) {
    let block_bytes = source.format.block_bytes();
    for (lane, column) in columns.enumerate() {
        let row = &source.bytes[column * row_bytes..][..row_bytes];
        if source.format.is_quantized() {
            of_format!(source.format, repack_blocks)(row, lane, tile);
            continue;
        }
        let steps = tile.chunks_exact_mut(TILE_COLUMNS * block_bytes);
        for (element, step) in row.chunks_exact(block_bytes).zip(steps) {
            step[lane * block_bytes..][..block_bytes].copy_from_slice(element);
        }
    }
}

/// The blocks of one row into their lane of a tile.
fn repack_blocks<const FORMAT: usize>(row: &[u8], lane: usize, tile: &mut [u8]) {
    let format = const { Format::ALL[FORMAT] };
    let layout = Tile::<FORMAT>::LAYOUT;
    let mut block = Block::EMPTY;
    let steps = tile.chunks_exact_mut(layout.block_bytes());
    for (bytes, step) in row.chunks_exact(format.block_bytes()).zip(steps) {
        read_block(format, bytes, &mut block);
        layout.pack(&block, step, lane);
    }
}

fn dequantize_blocks<const FORMAT: usize>(tile: &[u8], lane: usize, out: &mut [f32]) {
    let layout = Tile::<FORMAT>::LAYOUT;
    let mut block = Block::EMPTY;
    let steps = tile.chunks_exact(layout.block_bytes());
    for (step, out) in steps.zip(out.chunks_exact_mut(layout.n_subs * BLOCK)) {
        layout.unpack(step, lane, &mut block);
        block.dequantize(&layout.coding, out);
    }
}
