//! What this machine can do at best, for benches to compare the kernels with in the same run.

use std::hint::black_box;
use std::time::Instant;

use super::isa::Isa;

/// int8 operations per second of one thread with everything in registers, two operations a product; `None`
/// where the instruction set has no integer products of its own.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, reason = "nothing is run where there is no kernel")
)]
pub fn int8_peak(isa: Isa, n_rounds: u32) -> Option<f64> {
    assert!(isa.is_available(), "this machine has no {}", isa.name());
    let start = Instant::now();
    let n_operations: Option<u64> = match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine has the instruction set.
        Isa::Avx512 => Some(unsafe { x86::int8_avx512(n_rounds) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine has the instruction set.
        Isa::Avx2 => Some(unsafe { x86::int8_avx2(n_rounds) }),
        _ => None,
    };
    n_operations.map(|n| n as f64 / start.elapsed().as_secs_f64())
}

/// bf16 operations per second of one thread with everything in registers, two operations a product; `None`
/// where the machine has no bf16 products.
pub fn bf16_peak(n_rounds: u32) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if super::isa::has_avx512_bf16() {
        let start = Instant::now();
        // SAFETY: the machine has the instruction set.
        let n_operations = unsafe { x86::bf16_avx512(n_rounds) };
        return Some(n_operations as f64 / start.elapsed().as_secs_f64());
    }
    let _ = n_rounds;
    None
}

/// Bytes read per second by one thread that adds up `words` from memory.
pub fn read_rate(words: &[u64]) -> f64 {
    let start = Instant::now();
    #[cfg(target_arch = "x86_64")]
    let sum = if Isa::Avx2.is_available() {
        // SAFETY: the machine has AVX2.
        unsafe { x86::sum_avx2(words) }
    } else {
        sum(words)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let sum = sum(words);
    black_box(sum);
    size_of_val(words) as f64 / start.elapsed().as_secs_f64()
}

/// Eight cache lines at a time, so that several loads are under way.
#[inline(always)]
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 64];
    for chunk in words.chunks_exact(64) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent sums, enough to hide the latency of a product.
    const N_SUMS: usize = 16;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn int8_avx512(n_rounds: u32) -> u64 {
        let (unsigned, signed) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-2)));
        let mut sums = [_mm512_setzero_si512(); N_SUMS];
        for _ in 0..n_rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, unsigned, signed);
            }
        }
        black_box(sums);
        u64::from(n_rounds) * (N_SUMS * 64 * 2) as u64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn int8_avx2(n_rounds: u32) -> u64 {
        const N_SUMS: usize = 8;
        let (unsigned, mut signed) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(-2)));
        let mut sums = [_mm256_setzero_si256(); N_SUMS];
        for _ in 0..n_rounds {
            for sum in &mut sums {
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(unsigned, signed));
            }
            // The same value, but not to the compiler, which would take the product out of the loop.
            signed = black_box(signed);
        }
        black_box(sums);
        u64::from(n_rounds) * (N_SUMS * 32 * 2) as u64
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) fn bf16_avx512(n_rounds: u32) -> u64 {
        let one = _mm512_set1_ps(1.0);
        let (left, right) = (
            black_box(_mm512_cvtne2ps_pbh(one, one)),
            black_box(_mm512_cvtne2ps_pbh(one, one)),
        );
        let mut sums = [_mm512_setzero_ps(); N_SUMS];
        for _ in 0..n_rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, left, right);
            }
        }
        black_box(sums);
        u64::from(n_rounds) * (N_SUMS * 32 * 2) as u64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn sum_avx2(words: &[u64]) -> u64 {
        super::sum(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_can_be_measured() {
        for isa in Isa::available() {
            let peak = int8_peak(isa, 1000);
            assert_eq!(peak.is_some(), isa != Isa::Scalar);
            assert!(peak.is_none_or(|peak| peak > 0.0));
        }
        assert!(bf16_peak(1000).is_none_or(|peak| peak > 0.0));
        assert!(read_rate(&[1; 4096]) > 0.0);
    }

    #[test]
    fn the_read_loop_reads_every_whole_chunk() {
        assert_eq!(sum(&[1; 640]), 640);
    }
}
