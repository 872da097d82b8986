//! Made-up weights: for benchmarks of a model whose weights are not at hand. The text is noise.
//!
//! A weight depends on the tensor's name and its place in it only, so two loads are equal. Matrices are
//! uniform with variance `1 / n_in`, which keeps activations of order 1; norms are 1, biases 0.

use arbora_kernels::BackendError;
use arbora_kernels::quant::{Format, bf16_from_f32, f16_from_f32};

/// Appends a matrix of `n_out` rows to `buffer`, in one of the plain formats; an error where there is no
/// memory for it.
///
/// # Panics
/// On a block format.
pub(super) fn fill_matrix(
    name: &str,
    n_in: usize,
    n_out: usize,
    format: Format,
    buffer: &mut Vec<u8>,
) -> Result<(), BackendError> {
    let scale = (3.0 / n_in as f64).sqrt();
    let mut random = Random::of(name);
    let n_bytes = n_in * n_out * format.block_bytes();
    let out_of_memory = |_| BackendError::OutOfMemory {
        what: "weights",
        bytes: n_bytes,
    };
    buffer.try_reserve(n_bytes).map_err(out_of_memory)?;
    for _ in 0..n_in * n_out {
        let value = (random.unit() * scale) as f32;
        match format {
            Format::F32 => buffer.extend(value.to_le_bytes()),
            Format::F16 => buffer.extend(f16_from_f32(value).to_le_bytes()),
            Format::Bf16 => buffer.extend(bf16_from_f32(value).to_le_bytes()),
            other => panic!("made-up weights in {other:?}"),
        }
    }
    Ok(())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// Seeded by the name's FNV-1a hash.
    fn of(name: &str) -> Random {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Random(hash)
    }

    /// Uniform in [-1, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_repeat_differ_by_name_and_have_the_variance_said() {
        let matrix = |name| {
            let mut bytes = Vec::new();
            fill_matrix(name, 64, 200, Format::F32, &mut bytes).expect("51,200 bytes are there");
            bytes
        };
        let a = matrix("a");
        assert_eq!(a, matrix("a"));
        assert_ne!(a, matrix("b"));
        let (chunks, _) = a.as_chunks::<4>();
        let squares = chunks
            .iter()
            .map(|chunk| f64::from(f32::from_le_bytes(*chunk)).powi(2));
        let variance = squares.sum::<f64>() / chunks.len() as f64;
        assert!((variance * 64.0 - 1.0).abs() < 0.05, "{variance}");
    }
}
