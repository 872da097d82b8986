//! Weights of quantized checkpoints against the formulas of their reference implementations
//! (`tests/golden/packed.py`), and checkpoints that contradict themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arbora_kernels::quant::dequantize_row;
use arbora_kernels::reference::ReferenceBackend;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use serde_json::{Map, Value as Json};

use super::*;
use crate::model::ModelFile;
use crate::model::decoder::ForwardLimits;
use crate::model::safetensors::Safetensors;

#[derive(serde::Deserialize)]
struct Golden {
    hashes: BTreeMap<String, String>,
}

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(name)
}

fn goldens() -> BTreeMap<String, Golden> {
    let text = std::fs::read_to_string(golden_path("packed.json")).expect("a golden");
    serde_json::from_str(&text).expect("JSON")
}

fn config(name: &str) -> Map<String, Json> {
    let path = golden_path(&format!("packed/{name}/config.json"));
    serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON")
}

/// FNV-1a of the weights, zeros without a sign.
fn hash(weights: &[f32]) -> String {
    let bytes = weights.iter().flat_map(|weight| (weight + 0.0).to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[test]
fn every_weight_is_what_the_reference_formula_gives_bit_for_bit() {
    let goldens = goldens();
    assert!(goldens.len() >= 16);
    let mut n_reordered = 0;
    for (name, golden) in goldens {
        let scheme = Scheme::of(&config(&name)).expect("supported").expect("quantized");
        let opened = Safetensors::open(&golden_path(&format!("packed/{name}"))).expect("good files");
        let tensors = join(&opened.tensors, &scheme).expect("parts that belong together");
        assert_eq!(golden.hashes.len(), 7);
        for (matrix, expected) in golden.hashes {
            let info = tensors.named(&matrix).expect("it is in the table");
            let format = info.kind.format().expect("it is read");
            let packed = tensors.packed(&matrix).expect("it is of several tensors");
            // What is in the buffer already stays.
            let mut bytes = vec![7; 3];
            packed.read(&opened.files, &mut bytes).expect("readable");
            assert_eq!(bytes.len() as u64, 3 + info.n_bytes.expect("its size is known"));
            let (n_in, n_out) = (info.dimensions[0] as usize, info.dimensions[1] as usize);
            let order = packed.order(&opened.files).expect("readable");
            n_reordered += usize::from(order.is_some());
            let mut weights = vec![f32::NAN; n_in * n_out];
            let rows = bytes[3..].chunks_exact(format.row_bytes(n_in).expect("whole blocks"));
            for (row, weights) in rows.zip(weights.chunks_exact_mut(n_in)) {
                let mut stored = vec![f32::NAN; n_in];
                dequantize_row(format, row, &mut stored);
                for (i, weight) in stored.into_iter().enumerate() {
                    let input = order.as_ref().map_or(i, |order| order[i] as usize);
                    weights[input] = weight;
                }
            }
            assert_eq!(hash(&weights), expected, "{name}: {matrix} as {format:?}");
        }
    }
    assert_eq!(n_reordered, 3 * 7, "three of the schemes order their inputs");
}

/// Settings, and what is said of them.
const REFUSED: &[(&str, &str)] = &[
    (
        r#""quant_method": "bitsandbytes""#,
        "`quantization_config.quant_method` = bitsandbytes is not supported",
    ),
    (
        r#""bits": 4"#,
        "`quantization_config.quant_method` is not supported",
    ),
    (
        r#""quant_method": "gptq", "bits": 3"#,
        "`quantization_config.bits` = 3 is not supported",
    ),
    (
        r#""quant_method": "gptq""#,
        "`quantization_config.bits` is not supported",
    ),
    (
        r#""quant_method": "gptq", "bits": "4""#,
        "`quantization_config.bits` should be an unsigned integer, found a string",
    ),
    (
        r#""quant_method": "gptq", "bits": 4, "group_size": 48"#,
        "`quantization_config.group_size` = 48 is not supported",
    ),
    (
        r#""quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin""#,
        "`quantization_config.checkpoint_format` = marlin is not supported",
    ),
    (
        r#""quant_method": "gptq", "bits": 4, "dynamic": {"-:lm_head": {}}"#,
        "`quantization_config.dynamic` = {\"-:lm_head\":{}} is not supported",
    ),
    (
        r#""quant_method": "awq", "bits": 3"#,
        "`quantization_config.bits` = 3 is not supported",
    ),
    (
        r#""quant_method": "awq", "bits": 4, "version": "GEMV""#,
        "`quantization_config.version` = gemv is not supported",
    ),
    (
        r#""quant_method": "awq", "bits": 4, "zero_point": false"#,
        "`quantization_config.zero_point` = false is not supported",
    ),
    (
        r#""quant_method": "fp8", "fmt": "e5m2""#,
        "`quantization_config.fmt` = e5m2 is not supported",
    ),
    (
        r#""quant_method": "fp8", "weight_block_size": [0, 128]"#,
        "`quantization_config.weight_block_size` = [0, 128] is not supported",
    ),
    (
        r#""quant_method": "modelopt", "quant_algo": "NVFP4""#,
        "`quantization_config.quant_algo` = nvfp4 is not supported",
    ),
    (
        r#""quant_method": "compressed-tensors", "config_groups": {"a": {}}, "format": "marlin-24""#,
        "`quantization_config.format` = marlin-24 is not supported",
    ),
    (
        r#""quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}"#,
        "`quantization_config.sparsity_config.format` = sparse-24-bitmask is not supported",
    ),
    (
        r#""quant_method": "compressed-tensors", "config_groups": {"a": {"weights":
                {"num_bits": 3, "strategy": "channel"}}}, "format": "pack-quantized""#,
        "`quantization_config.config_groups.a.weights.num_bits` = 3 is not supported",
    ),
    (
        r#""quant_method": "compressed-tensors""#,
        "`quantization_config.config_groups` is not supported",
    ),
];

#[test]
fn schemes_that_are_not_read_are_refused_by_key_and_value() {
    let said = |json: &str, expected: &str| {
        let config: Map<String, Json> = serde_json::from_str(json).expect("JSON");
        let error = Scheme::of(&config).expect_err(json).to_string();
        assert_eq!(error, expected, "{json}");
    };
    for (settings, expected) in REFUSED {
        said(&format!(r#"{{"quantization_config": {{{settings}}}}}"#), expected);
    }
    said(
        r#"{"compression_config": {"quant_method": "aqlm"}}"#,
        "`compression_config.quant_method` = aqlm is not supported",
    );
    for plain in [
        "{}",
        r#"{"quantization_config": null}"#,
        r#"{"quantization_config": {}}"#,
    ] {
        let config = serde_json::from_str(plain).expect("JSON");
        assert_eq!(Scheme::of(&config).expect("nothing to refuse"), None);
    }
}

/// Tensors by name, to be changed.
type Tensors<'d> = BTreeMap<String, TensorView<'d>>;

/// What loading a golden says after a change of its tensors.
fn load_changed(name: &str, change: impl FnOnce(&mut Tensors<'_>)) -> Result<(), LoadError> {
    let source = golden_path(&format!("packed/{name}"));
    let bytes = std::fs::read(source.join("model.safetensors")).expect("readable");
    let mut tensors: Tensors<'_> = SafeTensors::deserialize(&bytes)
        .expect("good")
        .tensors()
        .into_iter()
        .collect();
    change(&mut tensors);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let written = safetensors::serialize(tensors, None).expect("good tensors");
    std::fs::write(folder.path().join("model.safetensors"), written).expect("writable");
    std::fs::copy(source.join("config.json"), folder.path().join("config.json")).expect("a small file");
    let limits = ForwardLimits {
        max_rows: 1,
        max_logit_rows: 1,
    };
    let file = ModelFile::open(folder.path())?;
    file.load_decoder(&mut ReferenceBackend::new(), 16, limits)
        .map(drop)
}

const Q: &str = "model.layers.0.self_attn.q_proj";

fn refused(name: &str, change: impl FnOnce(&mut Tensors<'_>), expected: &str) {
    let error = load_changed(name, change).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

/// Takes a part of the query projection away.
fn without(part: &'static str) -> impl FnOnce(&mut Tensors<'_>) {
    move |tensors| {
        tensors.remove(&format!("{Q}.{part}")).expect("it is there");
    }
}

/// Puts a part of the query projection in, every byte of it `BYTE`.
fn with<const BYTE: u8>(
    part: &'static str,
    dtype: Dtype,
    shape: &'static [usize],
) -> impl FnOnce(&mut Tensors<'_>) {
    let bytes: &'static [u8; 128 * 128] = const { &[BYTE; 128 * 128] };
    let n_bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
    move |tensors| {
        let view = TensorView::new(dtype, shape.to_vec(), &bytes[..n_bytes]).expect("a good view");
        tensors.insert(format!("{Q}.{part}"), view);
    }
}

#[test]
fn parts_that_are_missing_or_of_another_shape_are_named() {
    load_changed("gptq", |_| {}).expect("a good checkpoint");
    // An index of groups that is absent is in order.
    load_changed("gptq", without("g_idx")).expect("as good");
    refused(
        "gptq",
        without("scales"),
        "`model.layers.0.self_attn.q_proj.scales` is missing",
    );
    refused("gptq-v2", without("qzeros"), "q_proj.qzeros` is missing");
    refused("gptq", without("qweight"), "is not expected");
    let scales = with::<0x77>("scales", Dtype::F16, &[3, 128]);
    refused(
        "gptq",
        scales,
        "q_proj.scales` has shape [128, 3], expected [128, 4]",
    );
    let scales = with::<0x77>("scales", Dtype::I32, &[4, 128]);
    refused(
        "gptq",
        scales,
        "q_proj.scales` is stored as I32, expected F16, BF16",
    );
    let zeros = with::<0x77>("qzeros", Dtype::I32, &[4, 15]);
    refused(
        "gptq",
        zeros,
        "q_proj.qzeros` has shape [15, 4], expected [16, 4]",
    );
    let groups = with::<0x77>("g_idx", Dtype::I32, &[127]);
    refused("gptq", groups, "q_proj.g_idx` has shape [127], expected [128]");
    let scales = with::<0x77>("weight_scale_inv", Dtype::F32, &[2, 2]);
    let expected =
        "q_proj.weight_scale_inv` has shape [2, 2], expected one scale, one for each output, or one";
    refused("fp8-block", scales, expected);
}

#[test]
fn parts_that_contradict_each_other_or_the_settings_are_named() {
    let groups = with::<0x77>("g_idx", Dtype::I32, &[128]);
    refused("gptq", groups, "groups do not have 32 inputs each");
    // Every nibble is 6, so every zero point 7.
    let zeros = with::<0x66>("qzeros", Dtype::I32, &[4, 16]);
    refused(
        "gptq",
        zeros,
        "q_proj.weight`: zero point 7, but it is said to be symmetric (8)",
    );
    let expected =
        "k_proj.weight`: its groups of inputs (g_idx) are not those of `model.layers.0.self_attn.q_proj";
    refused("gptq-act-order", without("g_idx"), expected);
    let bias = with::<0x77>("bias", Dtype::F16, &[128]);
    refused("gptq", bias, "q_proj.bias` is not expected");
    let not_finite = with::<0x7f>("weight", Dtype::F8_E4M3, &[128, 128]);
    refused(
        "fp8-tensor",
        not_finite,
        "q_proj.weight` holds a number that is not finite",
    );
}
