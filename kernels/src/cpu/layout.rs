//! Memory layout of repacked weights.
//!
//! A matrix is cut into tiles of 16 output columns; a tile holds the whole depth, contiguous. Lane `c` of
//! every vector belongs to column `c` of the tile. A tile has exactly the file's bytes of its 16 rows,
//! reordered.
//!
//! ```text
//! Q4_1 block of a tile, 320 bytes: 32 inputs of 16 columns
//!
//!   byte    0        4        8             60       64
//!           +--------+--------+--    --+--------+
//!   chunk 0 | col 0  | col 1  |  ...   | col 15 |    byte i of a lane:  low nibble  input      i
//!           +--------+--------+--    --+--------+                       high nibble input 16 + i
//!   chunk 1 | the same for inputs  4 + i (low)  and 20 + i (high)              64
//!   chunk 2 | the same for inputs  8 + i (low)  and 24 + i (high)             128
//!   chunk 3 | the same for inputs 12 + i (low)  and 28 + i (high)             192
//!           +--------------------------------+
//!   scales  | 16 x f16 scale | 16 x f16 min  |                                256
//!           +--------------------------------+                                320
//!
//! Q4_0 block, 288 bytes: the same without the mins. The stored nibble is weight / scale + 8.
//!
//! Q8_0 block, 544 bytes:
//!
//!   chunk j (0..8), lane c: 4 bytes, byte i = 128 + weight / scale of input 4 j + i, unsigned      0
//!           +--------------------------------+
//!   scales  | 16 x f16 scale                 |                                                   512
//!           +--------------------------------+                                                   544
//!
//! F32, F16, Bf16: [n_in][16 columns], elements as in the file
//! ```
//!
//! Columns beyond the matrix in its last tile are zero bytes (scale 0), and their results are dropped.

use std::ops::Range;

use super::threads::{SharedSlice, ThreadPool};
use crate::host::Buffer;
use crate::quant::{BLOCK, Format, f32_from_bf16, f32_from_f16};
use crate::{BackendError, MatrixSource};

/// Output columns of a tile.
pub(crate) const TILE_COLUMNS: usize = 16;

/// Bytes of one block of 32 inputs of a Q4_0 tile.
pub(crate) const Q4_0_BLOCK_BYTES: usize = TILE_COLUMNS * Format::Q4_0.block_bytes();
/// Bytes of one block of 32 inputs of a Q4_1 tile.
pub(crate) const Q4_1_BLOCK_BYTES: usize = TILE_COLUMNS * Format::Q4_1.block_bytes();
/// Bytes of one block of 32 inputs of a Q8_0 tile.
pub(crate) const Q8_0_BLOCK_BYTES: usize = TILE_COLUMNS * Format::Q8_0.block_bytes();

/// Where the nibbles of a tile's block end and the scales begin.
pub(crate) const Q4_SCALES: usize = 256;
/// Where the mins of a Q4_1 tile's block begin.
pub(crate) const Q4_1_MINS: usize = 288;
/// Where the scales of a Q8_0 tile's block begin.
pub(crate) const Q8_0_SCALES: usize = 512;

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
        let tile_bytes = TILE_COLUMNS * row_bytes;
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
        let steps = tile.chunks_exact(TILE_COLUMNS * self.format.block_bytes());
        for (step, out) in steps.zip(out.chunks_exact_mut(self.format.block_len())) {
            dequantize_lane(self.format, step, lane, out);
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
        let steps = tile.chunks_exact_mut(TILE_COLUMNS * block_bytes);
        for (block, step) in row.chunks_exact(block_bytes).zip(steps) {
            match source.format {
                Format::Q4_0 => repack_nibbles(&block[2..], step, lane),
                Format::Q4_1 => {
                    repack_nibbles(&block[4..], step, lane);
                    step[Q4_1_MINS + 2 * lane..][..2].copy_from_slice(&block[2..4]);
                }
                Format::Q8_0 => {
                    for (chunk, four) in block[2..].chunks_exact(4).enumerate() {
                        let biased = [four[0] ^ 0x80, four[1] ^ 0x80, four[2] ^ 0x80, four[3] ^ 0x80];
                        step[64 * chunk + 4 * lane..][..4].copy_from_slice(&biased);
                    }
                    step[Q8_0_SCALES + 2 * lane..][..2].copy_from_slice(&block[..2]);
                }
                Format::F32 | Format::F16 | Format::Bf16 => {
                    step[lane * block_bytes..][..block_bytes].copy_from_slice(block);
                }
            }
            if matches!(source.format, Format::Q4_0 | Format::Q4_1) {
                step[Q4_SCALES + 2 * lane..][..2].copy_from_slice(&block[..2]);
            }
        }
    }
}

/// No nibble moves: a 4 x 16 transpose of 32-bit words.
fn repack_nibbles(nibbles: &[u8], step: &mut [u8], lane: usize) {
    for (chunk, word) in nibbles.chunks_exact(4).enumerate() {
        step[64 * chunk + 4 * lane..][..4].copy_from_slice(word);
    }
}

/// One lane of one step of the depth: a block, or one element.
fn dequantize_lane(format: Format, step: &[u8], lane: usize, out: &mut [f32]) {
    let half = |at: usize| u16::from_le_bytes([step[at + 2 * lane], step[at + 2 * lane + 1]]);
    match format {
        Format::F32 => {
            let word = &step[4 * lane..][..4];
            out[0] = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        }
        Format::F16 => out[0] = f32_from_f16(half(0)),
        Format::Bf16 => out[0] = f32_from_bf16(half(0)),
        Format::Q8_0 => {
            let scale = f32_from_f16(half(Q8_0_SCALES));
            for (i, out) in out.iter_mut().enumerate() {
                let biased = step[64 * (i / 4) + 4 * lane + i % 4];
                *out = scale * (f32::from(biased) - 128.0);
            }
        }
        Format::Q4_0 | Format::Q4_1 => {
            let scale = f32_from_f16(half(Q4_SCALES));
            let (offset, min) = match format {
                Format::Q4_0 => (8.0, 0.0),
                _ => (0.0, f32_from_f16(half(Q4_1_MINS))),
            };
            for i in 0..BLOCK / 2 {
                let pair = step[64 * (i / 4) + 4 * lane + i % 4];
                out[i] = scale * (f32::from(pair & 15) - offset) + min;
                out[i + BLOCK / 2] = scale * (f32::from(pair >> 4) - offset) + min;
            }
        }
    }
}
