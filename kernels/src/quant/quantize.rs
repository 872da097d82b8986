//! Quantizing floating-point weights to Q8_0, Q4_0 and Q4_K: the blocks that ggml's reference quantizers make
//! (of Q8_0 and Q4_0 the `gguf` package's bytes, bit for bit).
//!
//! ```text
//! Q8_0   d = largest |w| / 127               q = round(w / d)
//! Q4_0   d = w of the largest |w| / -8       q = w / d + 8.5 cut off, at most 15
//! Q4_K   of each 32 weights the scale and minimum, of 22 tried, with the smallest error weighted by
//!        rms(w) + |w|; those as 6 bits of the largest of eight; then the nearest integers
//! ```
//!
//! Source: `quantize_row_q8_0_ref`, `quantize_row_q4_0_ref` and `quantize_row_q4_K_ref` of ggml.

use super::{BLOCK, Format, f16_from_f32, f32_from_f16};

/// Weights of a super-block.
const SUPER_BLOCK: usize = 256;
/// Sub-blocks of a super-block.
const N_SUBS: usize = SUPER_BLOCK / BLOCK;
/// Largest integer of Q4_K, and largest of its scales and minima.
const MAX_QUANT: f32 = 15.0;
const MAX_SCALE: f32 = 63.0;

/// Whether [`quantize_row`] makes blocks of `format`.
pub const fn can_quantize(format: Format) -> bool {
    matches!(format, Format::Q8_0 | Format::Q4_0 | Format::Q4K)
}

/// The blocks of a row of finite weights, in `out`.
///
/// # Panics
/// When `format` is none of those this module makes, or `out` is not a row of it.
pub fn quantize_row(format: Format, row: &[f32], out: &mut [u8]) {
    assert_eq!(
        Some(out.len()),
        format.row_bytes(row.len()),
        "bytes of a row in {format:?}"
    );
    let quantize = match format {
        Format::Q8_0 => q8_0,
        Format::Q4_0 => q4_0,
        Format::Q4K => q4_k,
        _ => panic!("no quantizer for {format:?}"),
    };
    let blocks = row.chunks_exact(format.block_len());
    for (weights, out) in blocks.zip(out.chunks_exact_mut(format.block_bytes())) {
        quantize(weights, out);
    }
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn q8_0(weights: &[f32], out: &mut [u8]) {
    let largest = weights.iter().fold(0f32, |largest, w| largest.max(w.abs()));
    let scale = largest / 127.0;
    let factor = inverse(scale);
    out[..2].copy_from_slice(&f16_from_f32(scale).to_le_bytes());
    for (byte, weight) in out[2..].iter_mut().zip(weights) {
        // Halves away from zero.
        *byte = (weight * factor).round() as i8 as u8;
    }
}

fn q4_0(weights: &[f32], out: &mut [u8]) {
    let largest = weights.iter().fold(
        0f32,
        |largest, &w| if w.abs() > largest.abs() { w } else { largest },
    );
    let scale = largest / -8.0;
    let factor = inverse(scale);
    out[..2].copy_from_slice(&f16_from_f32(scale).to_le_bytes());
    let quant = |weight: f32| ((weight * factor + 8.5) as u8).min(15);
    let (low, high) = weights.split_at(BLOCK / 2);
    for ((byte, &low), &high) in out[2..].iter_mut().zip(low).zip(high) {
        *byte = quant(low) | quant(high) << 4;
    }
}

/// What makes weights of the integers of 32 of them: `scale * q - min`.
#[derive(Clone, Copy)]
struct Affine {
    scale: f32,
    min: f32,
}

fn q4_k(weights: &[f32], out: &mut [u8]) {
    let mut fits = [Affine { scale: 0.0, min: 0.0 }; N_SUBS];
    for (fit, weights) in fits.iter_mut().zip(weights.chunks_exact(BLOCK)) {
        *fit = best_fit(weights);
    }
    let largest = |of: fn(&Affine) -> f32| fits.iter().map(of).fold(0f32, f32::max);
    let (max_scale, max_min) = (largest(|fit| fit.scale), largest(|fit| fit.min));
    let steps = |value: f32, largest: f32| {
        let factor = if largest > 0.0 { MAX_SCALE / largest } else { 0.0 };
        (factor * value).round_ties_even().min(MAX_SCALE) as u8
    };
    let (d, d_min) = (
        f16_from_f32(max_scale / MAX_SCALE),
        f16_from_f32(max_min / MAX_SCALE),
    );
    out[..2].copy_from_slice(&d.to_le_bytes());
    out[2..4].copy_from_slice(&d_min.to_le_bytes());
    let (scales, body) = out[4..].split_at_mut(12);
    let mut quants = [0u8; SUPER_BLOCK];
    for (sub, fit) in fits.iter().enumerate() {
        let (scale, min) = (steps(fit.scale, max_scale), steps(fit.min, max_min));
        if sub < 4 {
            (scales[sub], scales[sub + 4]) = (scale, min);
        } else {
            scales[sub + 4] = scale & 15 | min << 4;
            scales[sub - 4] |= scale >> 4 << 6;
            scales[sub] |= min >> 4 << 6;
        }
        let fit = Affine {
            scale: f32_from_f16(d) * f32::from(scale),
            min: f32_from_f16(d_min) * f32::from(min),
        };
        if fit.scale == 0.0 {
            continue;
        }
        let range = sub * BLOCK..(sub + 1) * BLOCK;
        for (quant, weight) in quants[range.clone()].iter_mut().zip(&weights[range]) {
            *quant = ((weight + fit.min) / fit.scale)
                .round_ties_even()
                .clamp(0.0, MAX_QUANT) as u8;
        }
    }
    for (body, quants) in body.chunks_exact_mut(BLOCK).zip(quants.chunks_exact(2 * BLOCK)) {
        let (low, high) = quants.split_at(BLOCK);
        for ((byte, low), high) in body.iter_mut().zip(low).zip(high) {
            *byte = low | high << 4;
        }
    }
}

/// The scale and minimum for 32 weights with the smallest weighted square error among the range of the
/// weights and the least-squares fits to the integers of 21 scales near it.
fn best_fit(weights: &[f32]) -> Affine {
    /// Tried: (MAX_QUANT + FIRST + STEP * i) / range.
    const FIRST: f32 = -1.0;
    const STEP: f32 = 0.1;
    const N_TRIES: usize = 21;
    let mean_square = weights.iter().map(|w| w * w).sum::<f32>() / BLOCK as f32;
    let rms = mean_square.sqrt();
    let importance: [f32; BLOCK] = std::array::from_fn(|i| rms + weights[i].abs());
    let (mut min, mut max) = (weights[0].min(0.0), weights[0]);
    let (mut sum_w, mut sum_x) = (0.0, 0.0);
    for (&x, &w) in weights.iter().zip(&importance) {
        (min, max) = (min.min(x), max.max(x));
        sum_w += w;
        sum_x += w * x;
    }
    if max == min {
        return Affine {
            scale: 0.0,
            min: -min,
        };
    }
    let quant = |factor: f32, min: f32, x: f32| (factor * (x - min)).round_ties_even().clamp(0.0, MAX_QUANT);
    let error = |(factor, min): (f32, f32), fit: Affine| {
        let squares = weights.iter().zip(&importance).map(|(&x, &w)| {
            let off = fit.scale * quant(factor, min, x) - fit.min - x;
            w * off * off
        });
        squares.sum::<f32>()
    };
    let factor = MAX_QUANT / (max - min);
    let mut best = Affine {
        scale: 1.0 / factor,
        min: -min,
    };
    let mut best_error = error((factor, min), best);
    for i in 0..N_TRIES {
        // The minimum of the best fit so far is what the next ones begin at.
        let min = -best.min;
        let factor = (FIRST + STEP * i as f32 + MAX_QUANT) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for (&x, &w) in weights.iter().zip(&importance) {
            let l = quant(factor, min, x);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut fit = Affine {
            scale: (sum_w * sum_xl - sum_x * sum_l) / determinant,
            min: (sum_l * sum_xl - sum_l2 * sum_x) / determinant,
        };
        // Minima are taken off, never added.
        if fit.min < 0.0 {
            fit = Affine {
                scale: sum_xl / sum_l2,
                min: 0.0,
            };
        }
        let error = error((factor, min), fit);
        if error < best_error {
            (best, best_error) = (fit, error);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::super::dequantize_row;
    use super::*;

    fn quantized(format: Format, row: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0xaa; format.row_bytes(row.len()).expect("whole blocks")];
        quantize_row(format, row, &mut bytes);
        let mut weights = vec![f32::NAN; row.len()];
        dequantize_row(format, &bytes, &mut weights);
        weights
    }

    #[test]
    fn zeros_and_constants_survive() {
        for format in [Format::Q8_0, Format::Q4_0, Format::Q4K] {
            assert_eq!(quantized(format, &[0.0; 256]), [0.0; 256], "{format:?}");
            for value in [2.0, -2.0, 0.01] {
                let found = quantized(format, &[value; 256]);
                let off = found.iter().map(|w| (w / value - 1.0).abs()).fold(0f32, f32::max);
                assert!(off < 0.02, "{format:?} of {value}: {off}");
            }
        }
    }

    #[test]
    fn what_is_in_a_format_already_comes_out_the_same() {
        let integers: Vec<f32> = (0..256).map(|i| ((i * 37) % 255) as f32 - 127.0).collect();
        // Each block needs its largest value.
        let row: Vec<f32> = integers
            .iter()
            .enumerate()
            .map(|(i, &q)| if i % 32 == 0 { 127.0 } else { q })
            .collect();
        assert_eq!(quantized(Format::Q8_0, &row), row);
        let row: Vec<f32> = (0..256)
            .map(|i| {
                if i % 32 == 0 {
                    -8.0
                } else {
                    ((i * 7) % 15) as f32 - 7.0
                }
            })
            .collect();
        assert_eq!(quantized(Format::Q4_0, &row), row);
    }
}
