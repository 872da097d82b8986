//! Whole models on the CUDA backend, over the emulated driver: logits of transformers, and the same bits in
//! chunks of any length.

#[expect(dead_code, reason = "the rest is for tests of single operations")]
#[path = "../../fake-cuda/tests/support/emulated.rs"]
mod emulated;

use arbora_kernels::Backend;
use arbora_runtime::model::ModelFile;
use emulated::Emulated;

use crate::decoder::{TinyModel, compare, teacher_force};
use crate::{golden, golden_path};

/// Families that differ in what the backend does: rotations, norms of heads, windows, caps, biases, norms
/// with a bias, tied heads, activations.
const FAMILIES: [&str; 8] = [
    "llama3",
    "qwen2-window",
    "qwen3",
    "gemma2",
    "olmo2",
    "phi3",
    "stablelm-parallel",
    "command-r7b",
];

fn family(name: &str) -> ModelFile {
    let path = golden_path("families").join(name);
    ModelFile::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn families_give_the_logits_of_transformers_on_the_emulated_device() {
    for name in FAMILIES {
        let Some(device) = Emulated::new(5) else { return };
        let mut backend = device.backend().expect("the emulated device works");
        let reference: TinyModel = golden(&format!("families/{name}.json"));
        compare(&mut backend, "the emulated device", &family(name), &reference);
        assert!(!backend.is_lost(), "{name}: {}", device.diagnosis(&backend));
    }
}

#[test]
fn chunks_and_schedules_change_no_bit_of_a_models_logits() {
    let file = family("llama3");
    let reference: TinyModel = golden("families/llama3.json");
    let ids = &reference.ids[..70];
    let mut all: Vec<Vec<u32>> = Vec::new();
    for (seed, chunk) in [(1, 70), (2, 33), (3, 1)] {
        let Some(device) = Emulated::new(seed) else { return };
        let mut backend = device.backend().expect("the emulated device works");
        let mut bits = Vec::new();
        teacher_force(&mut backend, &file, ids, chunk, |_, logits| {
            bits.extend(logits.iter().map(|logit| logit.to_bits()));
        });
        assert!(!backend.is_lost(), "{}", device.diagnosis(&backend));
        all.push(bits);
    }
    assert!(all.iter().all(|bits| bits == &all[0]));
}
