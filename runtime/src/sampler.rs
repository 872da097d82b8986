//! Sampling parameters of a request as rows for the backend, with counter-based noise (Philox).
//!
//! A draw is keyed by what it is for, never by when or with whom it is made: (seed, choice, absolute
//! position). So the batch, a preemption or a cache hit cannot change it (contract C3).

use arbora_kernels::{Adjustment, Allowed, SampleRow};

use crate::request::SamplingParams;

/// Philox4x32-10 of (seed, choice, position): 64 random bits.
///
/// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). Counter-based, so every
/// position has its own bits without a state to carry along.
pub fn noise(seed: u64, choice_idx: u32, position: u64) -> u64 {
    let counter = [position as u32, (position >> 32) as u32, choice_idx, 0];
    let output = philox([seed as u32, (seed >> 32) as u32], counter);
    u64::from(output[0]) | u64::from(output[1]) << 32
}

fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let a = MULTIPLIERS[0] * u64::from(counter[0]);
        let b = MULTIPLIERS[1] * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// How the token at `position` of one choice is drawn, out of `allowed`.
pub(crate) fn sample_row<'a>(
    sampling: &SamplingParams,
    (choice_idx, position): (u32, usize),
    (allowed, adjustments): (Allowed<'a>, &'a [Adjustment]),
) -> SampleRow<'a> {
    SampleRow {
        allowed,
        adjustments,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        noise: noise(sampling.seed, choice_idx, position as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        // Known answers of Random123 (kat_vectors, philox4x32 10 rounds).
        let zero = philox([0; 2], [0; 4]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox([u32::MAX; 2], [u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox(
            [0xa409_3822, 0x299f_31d0],
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
        );
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn seed_choice_and_position_each_change_the_noise() {
        let here = noise(7, 0, 100);
        assert_eq!(here, noise(7, 0, 100));
        assert_ne!(here, noise(8, 0, 100));
        assert_ne!(here, noise(7, 1, 100));
        assert_ne!(here, noise(7, 0, 101));
    }
}
