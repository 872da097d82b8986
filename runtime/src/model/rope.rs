//! Cosines and sines of rotary embeddings.

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
            scaled(
                config.base.powf(-2.0 * pair as f64 / config.dim as f64),
                config.scaling,
            ) / factor
        })
        .collect();
    let mut cos_sin = Vec::with_capacity(n_positions * config.dim);
    for position in 0..n_positions {
        for frequency in &frequencies {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            cos_sin.extend([cos as f32, sin as f32]);
        }
    }
    RopeTable {
        style: config.style,
        rope_dim: config.dim,
        cos_sin,
    }
}

/// Source of Llama 3's formula: `transformers`' rotary embedding utilities.
fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } => {
            let turns = original_context * frequency / std::f64::consts::TAU;
            let part = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
            // 0 for slow pairs (stretched), 1 for fast ones (left alone).
            let part = part.clamp(0.0, 1.0);
            frequency * (part + (1.0 - part) / factor)
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
    #[test]
    fn scalings_slow_what_they_should() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 8192.0,
        };
        let turning = |turns: f64| turns * std::f64::consts::TAU / 8192.0;
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        near(scaled(turning(5.0), llama3), turning(5.0));
        near(scaled(turning(0.5), llama3), turning(0.5) / 8.0);
        // Halfway between 1 and 4 turns: half of it, and half of it stretched.
        near(scaled(turning(2.5), llama3), turning(2.5) * (0.5 + 0.5 / 8.0));
        near(scaled(0.3, RopeScaling::Linear { factor: 4.0 }), 0.075);
    }
}
