//! Matrices of 4- and 8-bit integers with scales and zero points, repacked into blocks.
//!
//! ```text
//! GPTQ                qweight[i / n][o]            bits (i % n) of a word     n = 32 / bits
//! AWQ                 qweight[i][o / 8]            nibble 0 4 1 5 2 6 3 7 of a word for o % 8 = 0..8
//! compressed-tensors  weight_packed[o][i / n]      bits (i % n) of a word
//! int8                weight[o][i]                 a signed byte: q = byte + 128
//! ```
//!
//! Zero points of GPTQ and AWQ lie in words of outputs, `[n_groups][n_out / n]`, those of compressed-tensors
//! too, `[n_out / n][n_groups]`.
//!
//! With GPTQ's act-order inputs belong to groups that are no runs: they are put in the order of their groups,
//! and the layer gathers the activations in the same order ([`PackedMatrix::order`]).

use std::fs::File;

use arbora_kernels::quant::{IntegerBlock, f16_from_f32, write_block};
use safetensors::Dtype;

use super::super::file::LoadError;
use super::fp8::floats;
use super::scheme::{Integers, Layout};
use super::{Coding, FLOATS, PackedMatrix, bytes_of, check_part};

/// The nibble of a word of AWQ's for each of eight outputs.
const AWQ_NIBBLES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
/// Rows that are repacked together: a line of words in GPTQ's layout.
const LANES: usize = 16;
const MAX_BLOCK_LEN: usize = 128;

/// `bits` bits of a little-endian word at `word`, number `place`.
#[inline(always)]
fn bits_at(bytes: &[u8], bits: u32, word: usize, place: usize) -> u8 {
    let shift = bits as usize * place;
    let byte = bytes[4 * word + shift / 8];
    match bits {
        8 => byte,
        _ => byte >> (shift % 8) & 15,
    }
}

impl PackedMatrix {
    /// Whether the parts have the shapes that belong together.
    pub(super) fn check_integers(&self, integers: &Integers) -> Result<(), LoadError> {
        let group = integers.group.len(self.n_in);
        let n_groups = self.n_in / group;
        if n_groups * group != self.n_in {
            let reason = format!("{} inputs are no whole number of groups of {group}", self.n_in);
            return Err(self.bad(reason));
        }
        let by_output = matches!(integers.layout, Layout::CompressedTensors | Layout::Int8);
        let table = |n_out: usize| match by_output {
            true => [n_groups, n_out],
            false => [n_out, n_groups],
        };
        if let Some(scales) = &self.scales {
            // One scale for all is one for each output.
            let is_one = by_output && scales.n_elements() == 1;
            let shape = if is_one { [1, 1] } else { table(self.n_out) };
            check_part(scales, &FLOATS, &shape)?;
        }
        match (&self.zeros, integers.layout) {
            (Some(zeros), Layout::Int8) => check_part(zeros, &[Dtype::I8], &table(self.n_out))?,
            (Some(zeros), _) => {
                let shape = table(self.n_out.div_ceil(integers.n_in_word()));
                check_part(zeros, &[Dtype::I32, Dtype::U32], &shape)?;
            }
            (None, _) => {}
        }
        if let Some(groups) = &self.groups {
            check_part(groups, &[Dtype::I32, Dtype::I64], &[self.n_in])?;
        }
        Ok(())
    }

    /// Which activation each input is multiplied with, where that is not the one at its place.
    pub(in crate::model) fn order(&self, files: &[File]) -> Result<Option<Vec<u32>>, LoadError> {
        let (Coding::Integers(integers), Some(tensor)) = (&self.coding, &self.groups) else {
            return Ok(None);
        };
        let bytes = bytes_of(files, tensor)?;
        // Numbers of groups are small: of 8 bytes the lower 4 say them.
        let step = bytes.len() / self.n_in;
        let group_of: Vec<u32> = bytes
            .chunks_exact(step)
            .map(|number| u32::from_le_bytes([number[0], number[1], number[2], number[3]]))
            .collect();
        let len = integers.group.len(self.n_in);
        if group_of
            .iter()
            .enumerate()
            .all(|(i, &group)| group as usize == i / len)
        {
            return Ok(None);
        }
        let mut order: Vec<u32> = (0..self.n_in as u32).collect();
        order.sort_by_key(|&i| group_of[i as usize]);
        let mut sorted = order.iter().enumerate();
        match sorted.find(|&(at, &i)| group_of[i as usize] as usize != at / len) {
            None => Ok(Some(order)),
            Some((_, &i)) => {
                let group = group_of[i as usize];
                Err(self.bad(format!(
                    "its groups do not have {len} inputs each (input {i} is in group {group})"
                )))
            }
        }
    }

    pub(super) fn read_integers(
        &self,
        files: &[File],
        integers: &Integers,
        out: &mut [u8],
    ) -> Result<(), LoadError> {
        let order = self.order(files)?;
        let tables = self.tables(files, integers)?;
        let values = bytes_of(files, &self.values)?;
        let (bits, n, n_in, n_out) = (integers.bits, integers.n_in_word(), self.n_in, self.n_out);
        let write = (out, order.as_deref());
        match integers.layout {
            Layout::Gptq => self.write_blocks(write, &tables, |i, o| {
                bits_at(&values, bits, i / n * n_out + o, i % n)
            }),
            Layout::Awq => self.write_blocks(write, &tables, |i, o| {
                bits_at(&values, bits, i * (n_out / 8) + o / 8, AWQ_NIBBLES[o % 8])
            }),
            Layout::CompressedTensors => self.write_blocks(write, &tables, |i, o| {
                bits_at(&values, bits, o * (n_in / n) + i / n, i % n)
            }),
            Layout::Int8 => self.write_blocks(write, &tables, |i, o| values[o * n_in + i] ^ 0x80),
        }
        Ok(())
    }

    /// Scales and zero points of every group and output, groups first.
    fn tables(&self, files: &[File], integers: &Integers) -> Result<Tables, LoadError> {
        let (group, n_out) = (integers.group.len(self.n_in), self.n_out);
        let n_groups = self.n_in / group;
        let scales = self.scales.as_ref().expect("integers have scales");
        let mut found = floats(files, scales)?;
        if found.len() == 1 {
            found = vec![found[0]; n_groups * n_out];
        }
        let by_output = matches!(integers.layout, Layout::CompressedTensors | Layout::Int8);
        let at = |group: usize, output: usize| match by_output {
            true => output * n_groups + group,
            false => group * n_out + output,
        };
        let places = || (0..n_groups).flat_map(|group| (0..n_out).map(move |output| (group, output)));
        let scales = places()
            .map(|(group, output)| f16_from_f32(found[at(group, output)]))
            .collect();
        let middle = 1i32 << (integers.bits - 1);
        let zeros = match &self.zeros {
            None => vec![middle; n_groups * n_out],
            Some(tensor) => {
                let bytes = bytes_of(files, tensor)?;
                let (bits, n) = (integers.bits, integers.n_in_word());
                let n_words = n_out.div_ceil(n);
                let zero = |(group, output): (usize, usize)| {
                    let (word, place) = (output / n, output % n);
                    let stored = match integers.layout {
                        Layout::Gptq => bits_at(&bytes, bits, group * n_words + word, place),
                        Layout::Awq => bits_at(&bytes, bits, group * n_words + word, AWQ_NIBBLES[place]),
                        Layout::CompressedTensors => bits_at(&bytes, bits, word * n_groups + group, place),
                        Layout::Int8 => bytes[output * n_groups + group] ^ 0x80,
                    };
                    i32::from(stored) + integers.zero_offset
                };
                places().map(zero).collect::<Vec<i32>>()
            }
        };
        if let Some(zero) = zeros
            .iter()
            .find(|&&zero| integers.is_symmetric && zero != middle)
        {
            return Err(self.bad(format!(
                "zero point {zero}, but it is said to be symmetric ({middle})"
            )));
        }
        Ok(Tables { group, scales, zeros })
    }

    fn write_blocks(
        &self,
        (out, order): (&mut [u8], Option<&[u32]>),
        tables: &Tables,
        quant: impl Fn(usize, usize) -> u8,
    ) {
        let (len, n_bytes) = (self.format.block_len(), self.format.block_bytes());
        let n_blocks = self.n_in / len;
        let mut quants = [[0; MAX_BLOCK_LEN]; LANES];
        for first in (0..self.n_out).step_by(LANES) {
            let lanes = first..self.n_out.min(first + LANES);
            for block in 0..n_blocks {
                for i in 0..len {
                    let at = block * len + i;
                    let input = order.map_or(at, |order| order[at] as usize);
                    for (quants, output) in quants.iter_mut().zip(lanes.clone()) {
                        quants[i] = quant(input, output);
                    }
                }
                let group = block * len / tables.group;
                for (quants, output) in quants.iter().zip(lanes.clone()) {
                    let block_of = IntegerBlock {
                        scale: tables.scales[group * self.n_out + output],
                        zero: tables.zeros[group * self.n_out + output],
                        quants: &quants[..len],
                    };
                    let start = (output * n_blocks + block) * n_bytes;
                    write_block(self.format, &block_of, &mut out[start..start + n_bytes]);
                }
            }
        }
    }
}

/// Scales (f16 bits) and zero points of `[n_groups][n_out]`, groups of so many inputs.
struct Tables {
    group: usize,
    scales: Vec<u16>,
    zeros: Vec<i32>,
}
