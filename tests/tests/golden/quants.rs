//! Every quantization of GGUF: its weights bit for bit against the `gguf` package, and a model in it against
//! the same model in f32.

use std::path::Path;

use arbora_kernels::cpu::{CpuBackend, CpuConfig, Isa, Pinning};
use arbora_kernels::quant::{Format, dequantize_row, f16_from_f32};
use arbora_kernels::reference::ReferenceBackend;
use arbora_runtime::model::ModelFile;
use arbora_tests::random::Random;

use crate::decoder::teacher_force;
use crate::golden;

/// Root mean square of what the logits of a quantized model are off from those of the same weights in f32, of
/// that of the logits: activations are int8 per 32 in the one (a step is 1/254 of the largest), keys and
/// values bf16. (The largest is 0.022.)
const LOGIT_TOLERANCE: f64 = 0.03;

#[derive(serde::Deserialize)]
struct Blocks {
    name: String,
    blocks: Vec<String>,
    weights: Vec<String>,
}

pub(crate) fn bytes_of(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| {
            let digits = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(digits, 16).expect("hexadecimal digits")
        })
        .collect()
}

/// Those that GGUF has.
fn quantizations() -> impl Iterator<Item = Format> {
    let is_one = |format: &Format| format.is_quantized() && format.ggml_type().is_some();
    Format::ALL.into_iter().filter(is_one)
}

#[test]
fn weights_of_every_quantization_are_those_of_the_gguf_package() {
    let goldens: Vec<Blocks> = golden("quants.json");
    let names: Vec<&str> = goldens.iter().map(|golden| golden.name.as_str()).collect();
    for format in quantizations() {
        let idx = names.iter().position(|name| *name == format.name());
        let golden = &goldens[idx.unwrap_or_else(|| panic!("no golden of {format:?}"))];
        assert!(golden.blocks.len() >= 5 && golden.blocks.len() == golden.weights.len());
        for (block, weights) in golden.blocks.iter().zip(&golden.weights) {
            let mut found = vec![f32::NAN; format.block_len()];
            dequantize_row(format, &bytes_of(block), &mut found);
            let found: Vec<u8> = found.iter().flat_map(|weight| weight.to_le_bytes()).collect();
            assert_eq!(found, bytes_of(weights), "{format:?} {block}");
        }
    }
}

const WIDTH: usize = 256;
const N_VOCAB: usize = 300;
const N_LAYERS: usize = 2;
const N_HEADS: usize = 4;
const N_KV_HEADS: usize = 2;

/// The matrices of a small Llama with a tied head: name, outputs. All have [`WIDTH`] inputs.
fn matrices() -> Vec<(String, usize)> {
    let mut matrices = vec![("token_embd.weight".to_owned(), N_VOCAB)];
    let kv_width = WIDTH / N_HEADS * N_KV_HEADS;
    for layer in 0..N_LAYERS {
        for (name, n_out) in [
            ("attn_q", WIDTH),
            ("attn_k", kv_width),
            ("attn_v", kv_width),
            ("attn_output", WIDTH),
            ("ffn_gate", WIDTH),
            ("ffn_up", WIDTH),
            ("ffn_down", WIDTH),
        ] {
            matrices.push((format!("blk.{layer}.{name}.weight"), n_out));
        }
    }
    matrices
}

/// Random blocks scaled so that weights have about the variance `1 / WIDTH`.
fn random_matrix(format: Format, n_out: usize, random: &mut Random) -> Vec<u8> {
    let mut block = |scale: f32| {
        let mut bytes: Vec<u8> = (0..format.block_bytes())
            .map(|_| random.below(256) as u8)
            .collect();
        for (idx, &at) in format.halves().iter().enumerate() {
            // Of a super-block minima are subtracted, elsewhere they are added; in the middle of the
            // integers.
            let min = match format {
                Format::Q4_1 => -7.5,
                Format::Q5_1 => -15.5,
                Format::Q2K => 1.5,
                Format::Q4K => 7.5,
                Format::Q5K => 15.5,
                _ => 0.0,
            };
            let number = if idx == 0 { scale } else { scale * min };
            bytes[at..at + 2].copy_from_slice(&f16_from_f32(number).to_le_bytes());
        }
        if format == Format::Mxfp4 {
            bytes[0] = 127 - 6;
        }
        bytes
    };
    // The scale that gives a thousand blocks the variance wanted.
    let mut square = 0.0;
    let mut weights = vec![0.0; format.block_len()];
    for _ in 0..1000 {
        dequantize_row(format, &block(1.0), &mut weights);
        square += weights.iter().map(|w| f64::from(w * w)).sum::<f64>() / weights.len() as f64;
    }
    let scale = (1000.0 / square / WIDTH as f64).sqrt() as f32;
    let n_blocks = n_out * WIDTH / format.block_len();
    (0..n_blocks).flat_map(|_| block(scale)).collect()
}

/// Writes the model in `format`, and the same weights in f32.
pub(crate) fn write_models(format: Format, folder: &Path) -> [std::path::PathBuf; 2] {
    let seed = 60 + format as u64;
    let mut random = Random::new(seed);
    let (mut quantized, mut plain) = (Gguf::default(), Gguf::default());
    for name in ["output_norm"].into_iter().map(str::to_owned).chain(
        (0..N_LAYERS).flat_map(|layer| ["attn_norm", "ffn_norm"].map(|name| format!("blk.{layer}.{name}"))),
    ) {
        let ones: Vec<u8> = (0..WIDTH).flat_map(|_| 1f32.to_le_bytes()).collect();
        for file in [&mut quantized, &mut plain] {
            file.tensor(&format!("{name}.weight"), &[WIDTH], 0, &ones);
        }
    }
    for (name, n_out) in matrices() {
        let bytes = random_matrix(format, n_out, &mut random);
        let row_bytes = bytes.len() / n_out;
        let mut weights = vec![0.0; WIDTH];
        let mut dequantized = Vec::new();
        for row in bytes.chunks_exact(row_bytes) {
            dequantize_row(format, row, &mut weights);
            dequantized.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
        }
        let kind = format.ggml_type().expect("one of GGUF's");
        quantized.tensor(&name, &[WIDTH, n_out], kind, &bytes);
        plain.tensor(&name, &[WIDTH, n_out], 0, &dequantized);
    }
    [("quantized", quantized), ("plain", plain)].map(|(name, file)| {
        let path = folder.join(format!("{name}.gguf"));
        std::fs::write(&path, file.bytes()).expect("writable");
        path
    })
}

/// A GGUF file.
#[derive(Default)]
struct Gguf {
    tensors: Vec<u8>,
    n_tensors: u64,
    data: Vec<u8>,
}

impl Gguf {
    fn tensor(&mut self, name: &str, dimensions: &[usize], kind: u32, bytes: &[u8]) {
        push_text(&mut self.tensors, name);
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        for size in dimensions {
            self.tensors.extend((*size as u64).to_le_bytes());
        }
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.n_tensors += 1;
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    fn bytes(&self) -> Vec<u8> {
        let numbers = [
            ("block_count", N_LAYERS),
            ("context_length", 256),
            ("embedding_length", WIDTH),
            ("feed_forward_length", WIDTH),
            ("attention.head_count", N_HEADS),
            ("attention.head_count_kv", N_KV_HEADS),
            ("vocab_size", N_VOCAB),
        ];
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.n_tensors.to_le_bytes());
        bytes.extend((numbers.len() as u64 + 2).to_le_bytes());
        push_text(&mut bytes, "general.architecture");
        bytes.extend(8u32.to_le_bytes());
        push_text(&mut bytes, "llama");
        push_text(&mut bytes, "llama.attention.layer_norm_rms_epsilon");
        bytes.extend(6u32.to_le_bytes());
        bytes.extend(1e-5f32.to_le_bytes());
        for (name, number) in numbers {
            push_text(&mut bytes, &format!("llama.{name}"));
            bytes.extend(4u32.to_le_bytes());
            bytes.extend((number as u32).to_le_bytes());
        }
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Logits of 40 tokens, in chunks of 16 rows.
fn logits<B: arbora_kernels::Backend>(backend: &mut B, path: &Path) -> Vec<f32> {
    let file = ModelFile::open(path).expect("a good file");
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % N_VOCAB as u32).collect();
    let mut all = Vec::new();
    teacher_force(backend, &file, &ids, 16, |_, logits| {
        all.extend_from_slice(logits);
    });
    all
}

#[test]
fn a_model_in_every_quantization_gives_the_logits_of_its_weights_in_f32() {
    for format in quantizations() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let [quantized, plain] = write_models(format, folder.path());
        let expected = logits(&mut ReferenceBackend::new(), &plain);
        let rms = |logits: &mut dyn Iterator<Item = f32>| {
            let squares = logits.map(|logit| f64::from(logit).powi(2));
            (squares.sum::<f64>() / expected.len() as f64).sqrt()
        };
        let size = rms(&mut expected.iter().copied());
        for isa in Isa::available() {
            let config = CpuConfig {
                n_threads: 2,
                isa: Some(isa),
                pinning: Pinning::Auto,
            };
            let mut backend = CpuBackend::new(config).expect("an instruction set of this machine");
            let found = logits(&mut backend, &quantized);
            assert_eq!(found.len(), expected.len());
            let off = rms(&mut found.iter().zip(&expected).map(|(a, b)| a - b)) / size;
            let what = format!("{} on {}: {off:.4} of {size:.2}", format.name(), isa.name());
            eprintln!("{what}");
            // Written so that a NaN fails.
            assert!(off <= LOGIT_TOLERANCE, "{what}");
        }
    }
}
