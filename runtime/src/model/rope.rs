//! Cosines and sines of rotary embeddings.

use std::f64::consts::TAU;

use arbora_kernels::RopeTable;

use super::config::{RopeConfig, RopeScaling};

/// The rotation of positions `0..n_positions`: pair `i` turns by
/// `position * scaled(base^(-2i / dim)) / factor[i]`.
/// `factors` (Llama 3's long-context scaling, as GGUF has it) has `dim / 2` elements or is absent.
///
/// Angles are computed in f64: at position 100,000 an f32 angle is off by 0.004 already.
pub(super) fn rope_table(config: &RopeConfig, factors: Option<&[f32]>, n_positions: usize) -> RopeTable {
    let n_pairs = config.dim / 2;
    if let Some(factors) = factors {
        assert_eq!(factors.len(), n_pairs, "one factor per pair");
    }
    let frequencies: Vec<f64> = (0..n_pairs)
        .map(|pair| {
            let factor = factors.map_or(1.0, |factors| f64::from(factors[pair]));
            scaled(config, pair, n_positions) / factor
        })
        .collect();
    let mut cos_sin = Vec::with_capacity(n_positions * config.dim);
    for position in 0..n_positions {
        for frequency in &frequencies {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let times = |x: f64| (x * config.attention_factor) as f32;
            cos_sin.extend([times(cos), times(sin)]);
        }
    }
    RopeTable {
        style: config.style,
        rope_dim: config.dim,
        cos_sin,
    }
}

/// The frequency of a pair, where sequences have up to `n_positions` tokens. Source of the formulas:
/// `transformers`' rotary embedding utilities.
fn scaled(config: &RopeConfig, pair: usize, n_positions: usize) -> f64 {
    let dim = config.dim as f64;
    let frequency = config.base.powf(-2.0 * pair as f64 / dim);
    match &config.scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } => {
            let turns = original_context * frequency / TAU;
            let part = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
            // 0 for slow pairs (stretched), 1 for fast ones (left alone).
            let part = part.clamp(0.0, 1.0);
            frequency * (part + (1.0 - part) / factor)
        }
        RopeScaling::Yarn {
            factor,
            fast_turns,
            slow_turns,
            original_context,
            whole_pairs,
        } => {
            // The pair, as a number with a fraction, that turns so often within the original context.
            let turning =
                |turns: f64| dim * (original_context / (turns * TAU)).ln() / (2.0 * config.base.ln());
            let (mut first, mut last) = (turning(*fast_turns), turning(*slow_turns));
            if *whole_pairs {
                (first, last) = (first.floor(), last.ceil());
            }
            let (first, mut last) = (first.max(0.0), last.min(dim - 1.0));
            if first == last {
                last += 0.001;
            }
            let stretched = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
            frequency * (1.0 - stretched + stretched / factor)
        }
        RopeScaling::LongRope {
            short,
            long,
            original_context,
        } => {
            let is_long = n_positions as f64 > *original_context;
            frequency / if is_long { long[pair] } else { short[pair] }
        }
    }
}

#[cfg(test)]
mod tests {
    use arbora_kernels::RopeStyle;

    use super::*;

    #[test]
    fn angles_follow_the_formula_and_the_factors() {
        let config = RopeConfig {
            style: RopeStyle::Interleaved,
            dim: 4,
            base: 10_000.0,
            scaling: RopeScaling::None,
            attention_factor: 1.0,
        };
        let table = rope_table(&config, None, 3);
        let at = |position: usize, pair: usize| {
            let start = (position * 2 + pair) * 2;
            (table.cos_sin[start], table.cos_sin[start + 1])
        };
        assert_eq!(table.cos_sin.len(), 3 * 4);
        assert_eq!(at(0, 1), (1.0, 0.0));
        assert_eq!(at(2, 0), (2f64.cos() as f32, 2f64.sin() as f32));
        assert_eq!(at(2, 1), (0.02f64.cos() as f32, 0.02f64.sin() as f32));
        let slowed = rope_table(&config, Some(&[1.0, 8.0]), 3);
        assert_eq!(slowed.cos_sin[10], (0.0025f64).cos() as f32);
        assert_eq!(slowed.cos_sin[8..10], table.cos_sin[8..10]);
    }

    /// The frequency of a pair in units of the unscaled one.
    fn slowed(scaling: RopeScaling, pair: usize, n_positions: usize) -> f64 {
        let config = RopeConfig {
            style: RopeStyle::Halves,
            dim: 8,
            base: 10_000.0,
            scaling,
            attention_factor: 1.0,
        };
        scaled(&config, pair, n_positions) / 10f64.powi(-(pair as i32))
    }

    #[test]
    fn scalings_slow_what_they_should() {
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        // Pair 1 turns so often within the original context.
        let llama3 = |turns: f64| RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 10.0 * TAU * turns,
        };
        near(slowed(llama3(5.0), 1, 9), 1.0);
        near(slowed(llama3(0.5), 1, 9), 1.0 / 8.0);
        // Halfway between 1 and 4 turns: half of it, and half of it stretched.
        near(slowed(llama3(2.5), 1, 9), 0.5 + 0.5 / 8.0);
        near(slowed(RopeScaling::Linear { factor: 4.0 }, 2, 9), 0.25);
    }

    #[test]
    fn yarn_leaves_fast_pairs_alone_and_stretches_slow_ones() {
        // Pair 1 turns 100 times, pair 3 once: what lies between is pair 2.
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            fast_turns: 100.0,
            slow_turns: 1.0,
            original_context: 1000.0 * TAU,
            whole_pairs: false,
        };
        let found: Vec<f64> = (0..4).map(|pair| slowed(yarn.clone(), pair, 9)).collect();
        for (found, expected) in found.into_iter().zip([1.0, 1.0, 0.625, 0.25]) {
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }

    #[test]
    fn the_longest_sequence_chooses_the_factors_of_longrope() {
        let scaling = RopeScaling::LongRope {
            short: vec![1.0, 2.0, 1.0, 1.0],
            long: vec![1.0, 8.0, 1.0, 1.0],
            original_context: 64.0,
        };
        let found = [64, 65].map(|n_positions| slowed(scaling.clone(), 1, n_positions));
        assert!(
            (found[0] - 0.5).abs() < 1e-12 && (found[1] - 0.125).abs() < 1e-12,
            "{found:?}"
        );
    }
}
