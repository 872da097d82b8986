//! Matrix products of the tensor cores: fragment layouts of `mma` and operand layouts of `wgmma`.
//!
//! Products and sums are f32, in ascending order along k: the rounding of the hardware is not modelled.

use crate::float::{f32_from_bf16, f32_from_e4m3, f32_from_f16};
use crate::isa::Ty;

/// `[16][k]`, `[8][k]` and the accumulators of one `mma.m16n8k*`.
///
/// ```text
/// register r of A holds row g + 8 (r & 1), register r of B column g, for g = lane / 4;
/// both elements (r' * 4 + lane % 4) * e .. + e along k, e elements a register, r' = r / 2 for A, r for B
/// register r of C and D: row g + 8 (r / 2), column 2 (lane % 4) + (r & 1)
/// ```
pub(crate) fn mma(
    k: usize,
    ab: Ty,
    a: &[[u64; 32]],
    b: &[[u64; 32]],
    c: &[[u64; 32]],
) -> Result<[[u64; 32]; 4], String> {
    let bits = match ab {
        Ty::Bf16 | Ty::F16 => 16,
        Ty::S8 | Ty::U8 | Ty::E4m3 => 8,
        Ty::Tf32 => 32,
        other => return Err(format!("mma of {other:?} is not supported")),
    };
    let mut left = [[0f32; 64]; 16];
    let mut right = [[0f32; 64]; 8];
    let each = 32 / bits;
    let value = |word: u64, e: usize| element(ab, (word as u32) >> (e * bits));
    for lane in 0..32 {
        let (group, within) = (lane / 4, lane % 4);
        for (r, register) in a.iter().enumerate() {
            for e in 0..each {
                left[group + 8 * (r & 1)][(r / 2 * 4 + within) * each + e] = value(register[lane], e);
            }
        }
        for (r, register) in b.iter().enumerate() {
            for e in 0..each {
                right[group][(r * 4 + within) * each + e] = value(register[lane], e);
            }
        }
    }
    let is_integer = matches!(ab, Ty::S8 | Ty::U8);
    let mut d = [[0u64; 32]; 4];
    for lane in 0..32 {
        for r in 0..4 {
            let (row, column) = (lane / 4 + 8 * (r / 2), 2 * (lane % 4) + (r & 1));
            let products = left[row][..k].iter().zip(&right[column][..k]);
            let bits = c[r][lane] as u32;
            d[r][lane] = u64::from(if is_integer {
                // Exact: at most 32 products of 16 bits.
                bits.wrapping_add(products.map(|(a, b)| a * b).sum::<f32>() as i32 as u32)
            } else {
                (products.map(|(a, b)| a * b).sum::<f32>() + f32::from_bits(bits)).to_bits()
            });
        }
    }
    Ok(d)
}

/// The value of the lowest element in `word`.
fn element(ab: Ty, word: u32) -> f32 {
    match ab {
        Ty::Bf16 => f32_from_bf16(word as u16),
        Ty::F16 => f32_from_f16(word as u16),
        Ty::S8 => f32::from(word as i8),
        Ty::U8 => f32::from(word as u8),
        Ty::E4m3 => f32_from_e4m3(word as u8),
        // tf32: the hardware ignores the 13 low bits.
        _ => f32::from_bits(word & !0x1fff),
    }
}

/// Byte offset in shared memory of an element of a `wgmma` operand, from its descriptor.
pub(crate) fn operand_at(descriptor: u64, mn: usize, k: usize, is_mn_major: bool) -> Result<usize, String> {
    let start = (descriptor & 0x3fff) << 4;
    let leading = (descriptor >> 16 & 0x3fff) << 4;
    let stride = (descriptor >> 32 & 0x3fff) << 4;
    let width = match descriptor >> 62 {
        1 => 128u64,
        2 => 64,
        3 => 32,
        _ => return Err("wgmma descriptor without swizzle is not supported".into()),
    };
    let (mn, k) = (mn as u64, k as u64);
    let at = if is_mn_major {
        let per_row = width / 2;
        start + mn % per_row * 2 + mn / per_row * leading + k % 8 * width + k / 8 * stride
    } else {
        start + mn % 8 * width + mn / 8 * stride + k * 2
    };
    Ok(swizzled(at, width) as usize)
}

/// The 16-byte chunk of a row moves by the number of the row, in a pattern of 8 rows.
pub(crate) fn swizzled(at: u64, width: u64) -> u64 {
    let mask = width / 16 - 1;
    at ^ (at >> 7 & mask) << 4
}
