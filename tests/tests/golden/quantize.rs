//! Quantizing: blocks against those of reference quantizers (`tests/golden/quantize.py`), and a model that
//! was quantized while it was loaded against the file that was written of it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arbora_kernels::cpu::{CpuBackend, CpuConfig, Pinning};
use arbora_kernels::quant::{Format, quantize_row};
use arbora_runtime::model::quantize::Quantization;
use arbora_runtime::model::{LoadError, ModelFile};

use crate::decoder::teacher_force;
use crate::quants::{bytes_of, write_models};
use crate::{golden, golden_path};

#[derive(serde::Deserialize)]
struct Golden {
    rows: Vec<String>,
    #[serde(flatten)]
    blocks: std::collections::BTreeMap<String, Vec<String>>,
}

#[test]
fn blocks_are_those_of_the_reference_quantizers() {
    let golden: Golden = golden("quantize.json");
    for (_, format) in Quantization::NAMES {
        let expected = &golden.blocks[format.name()];
        assert_eq!(expected.len(), golden.rows.len());
        for (row, expected) in golden.rows.iter().zip(expected) {
            let row: Vec<f32> = bytes_of(row)
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes(four.try_into().expect("four bytes")))
                .collect();
            let expected = bytes_of(expected);
            let mut found = vec![0xaa; expected.len()];
            quantize_row(format, &row, &mut found);
            assert_eq!(found, expected, "{format:?} of {row:?}");
        }
    }
}

fn quantization(format: Format, seen: &Arc<Mutex<Vec<(u64, u64)>>>) -> Quantization {
    let seen = Arc::clone(seen);
    Quantization {
        format,
        n_threads: 2,
        on_progress: Arc::new(move |n_done, n_weights| {
            seen.lock().expect("no panic with it").push((n_done, n_weights));
        }),
    }
}

fn logits(file: &ModelFile) -> Vec<u32> {
    let config = CpuConfig {
        n_threads: 2,
        isa: None,
        pinning: Pinning::Auto,
    };
    let mut backend = CpuBackend::new(config).expect("an instruction set of this machine");
    let ids: Vec<u32> = (0..30).map(|i| i * 7 % 40).collect();
    let mut all = Vec::new();
    teacher_force(&mut backend, file, &ids, 16, |_, logits| {
        all.extend(logits.iter().map(|logit| logit.to_bits()));
    });
    all
}

/// Quantizes the model at `path` while loading and into `out`, and compares.
fn quantize_both_ways(path: &Path, out: &Path, format: Format) {
    let seen = Arc::default();
    let open = || ModelFile::open(path).expect("a good model");
    let plain = logits(&open());
    let loaded = open()
        .quantized(quantization(format, &seen))
        .expect("it is in floating point");
    loaded.write_quantized(out).expect("writable");
    let written = ModelFile::open(out).expect("a good model");
    assert_eq!(written.weight_bytes(), loaded.weight_bytes(), "{format:?}");
    let expected = logits(&loaded);
    assert_eq!(logits(&written), expected, "{format:?} of {}", path.display());
    assert_ne!(expected, plain, "something was quantized");
    let seen = seen.lock().expect("no panic with it");
    let furthest = AtomicU64::new(0);
    for &(n_done, n_weights) in seen.iter() {
        assert!(n_done <= n_weights, "{n_done} of {n_weights}");
        furthest.fetch_max(n_done * 100 / n_weights, Ordering::Relaxed);
    }
    assert!(furthest.into_inner() >= 99, "the progress is told to the end");
    let again = loaded.write_quantized(out).expect_err("it is there").to_string();
    assert!(
        again.starts_with("writing ") && again.contains("exists"),
        "{again}"
    );
    let twice = written.quantized(quantization(format, &Arc::default()));
    let twice = twice.expect_err("it is quantized").to_string();
    assert!(
        twice.contains("only weights in floating point are quantized"),
        "{twice}"
    );
}

#[test]
fn a_model_quantized_while_loading_equals_its_quantized_file_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    // 256 inputs each, so that every matrix gets what was asked for.
    let [_, wide] = write_models(Format::Q4_0, folder.path());
    let mut sizes = Vec::new();
    for (name, format) in Quantization::NAMES {
        let out = folder.path().join(format!("wide-{name}.gguf"));
        quantize_both_ways(&wide, &out, format);
        let written = ModelFile::open(&out).expect("a good file");
        assert_eq!(written.quantization(), format.name());
        sizes.push(written.weight_bytes());
        for model in ["granite", "granite.gguf"] {
            let path = golden_path(&format!("families/{model}"));
            quantize_both_ways(&path, &folder.path().join(format!("{name}-{model}")), format);
        }
    }
    let plain = ModelFile::open(&wide).expect("a good file").weight_bytes();
    assert!(
        sizes[0] * 3 < plain && sizes[1] < sizes[0] && sizes[2] < sizes[0],
        "{plain}: {sizes:?}"
    );
    for model in ["granite", "granite.gguf"] {
        let n_vocab = |path: &Path| {
            let file = ModelFile::open(path).expect("a good model");
            file.tokenizer().expect("it comes along").n_vocab()
        };
        let path = golden_path(&format!("families/{model}"));
        assert_eq!(
            n_vocab(&folder.path().join(format!("q4_k-{model}"))),
            n_vocab(&path),
            "{model}"
        );
    }
}

#[test]
fn an_fp8_checkpoint_is_quantized_too_and_an_integer_one_is_not() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = golden_path("packed/fp8-block");
    quantize_both_ways(&path, &folder.path().join("out"), Format::Q4K);
    let gptq = ModelFile::open(&golden_path("packed/gptq")).expect("a good folder");
    let error = gptq.quantized(quantization(Format::Q8_0, &Arc::default()));
    let error = error.expect_err("it is quantized");
    assert!(matches!(error, LoadError::NotFloat { .. }), "{error}");
    assert!(error.to_string().ends_with("these are GPTQ 4-bit"), "{error}");
}
