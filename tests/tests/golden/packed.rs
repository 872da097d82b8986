//! Models from GPTQ, AWQ, compressed-tensors and fp8 checkpoints against transformers with the weights that
//! their reference formulas give (`tests/golden/packed.py`).

use std::collections::BTreeMap;

use arbora_kernels::cpu::{CpuBackend, CpuConfig, Isa, Pinning};
use arbora_kernels::reference::ReferenceBackend;
use arbora_runtime::model::{LoadFormat, ModelFile};

use crate::decoder::teacher_force;
use crate::{golden, golden_path};

/// Activations are int8 per 32, which random zero points off the middle make more of than real weights do
/// (the largest is 0.030). fp8 weights become bf16, which multiply in f32 (0.002).
const INTEGER_TOLERANCE: f64 = 0.05;
const FP8_TOLERANCE: f64 = 0.005;
/// Every how many positions the golden has logits.
const STEP: usize = 4;

#[derive(serde::Deserialize)]
struct Golden {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
    n_bits: f64,
}

fn folder(name: &str) -> ModelFile {
    ModelFile::open(&golden_path(&format!("packed/{name}"))).expect("a good folder")
}

/// Root mean square of the difference to the golden, of that of the golden.
fn off<B: arbora_kernels::Backend>(backend: &mut B, file: &ModelFile, golden: &Golden) -> f64 {
    let (mut error, mut size, mut n_rows) = (0.0, 0.0, 0);
    teacher_force(backend, file, &golden.ids, 10, |position, logits| {
        if position % STEP != 0 {
            return;
        }
        n_rows += 1;
        let expected = &golden.logits[position / STEP];
        assert_eq!(expected.len(), logits.len());
        for (found, expected) in logits.iter().zip(expected) {
            error += f64::from(found - expected).powi(2);
            size += f64::from(*expected).powi(2);
        }
    });
    assert_eq!(n_rows, golden.logits.len());
    (error / size).sqrt()
}

#[test]
fn quantized_checkpoints_give_the_logits_of_their_weights() {
    let goldens: BTreeMap<String, Golden> = golden("packed.json");
    for (name, golden) in &goldens {
        let file = folder(name);
        let tolerance = match name.starts_with("fp8") {
            true => FP8_TOLERANCE,
            false => INTEGER_TOLERANCE,
        };
        let check = |label: &str, off: f64| {
            let what = format!("{name} on {label}: {off:.4}");
            eprintln!("{what}");
            // Written so that a NaN fails.
            assert!(off <= tolerance, "{what}");
        };
        check("the reference", off(&mut ReferenceBackend::new(), &file, golden));
        for isa in Isa::available() {
            let config = CpuConfig {
                n_threads: 2,
                isa: Some(isa),
                pinning: Pinning::Auto,
            };
            let mut backend = CpuBackend::new(config).expect("an instruction set of this machine");
            check(isa.name(), off(&mut backend, &file, golden));
        }
    }
}

#[test]
fn memory_of_a_quantized_checkpoint_is_known_before_it_is_loaded() {
    /// Of the embedding and three norms, two bytes each.
    const N_PLAIN: u64 = 64 * 128 + 3 * 128;
    const N_QUANTIZED: f64 = (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 128) as f64;
    let goldens: BTreeMap<String, Golden> = golden("packed.json");
    for (name, golden) in &goldens {
        let file = folder(name);
        // GPTQ's biases of zeros are counted.
        let biases = if name.starts_with("gptq") { 2 * 768 } else { 0 };
        let expected = 2 * N_PLAIN + biases + (N_QUANTIZED * golden.n_bits / 8.0) as u64;
        assert_eq!(file.weight_bytes(), expected, "{name}");
        // Without its weights the settings tell about as much.
        let path = golden_path(&format!("packed/{name}"));
        let bare = ModelFile::open_as(&path, LoadFormat::Dummy).expect("enough of a folder");
        let ratio = bare.weight_bytes() as f64 / expected as f64;
        assert!((0.8..1.3).contains(&ratio), "{name}: {ratio}");
    }
    assert_eq!(folder("gptq").quantization(), "GPTQ 4-bit");
    assert_eq!(folder("fp8-block").quantization(), "FP8");
}
