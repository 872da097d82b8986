//! Logits of tiny models against those of transformers, and the same bits in chunks of any length.

use std::collections::BTreeMap;

use arbora_kernels::{Backend, BatchShape, KvShape, SequenceRows};
use arbora_runtime::batch::ForwardBatch;
use arbora_runtime::model::ModelFile;
use arbora_runtime::model::decoder::{Decoder, ForwardLimits};

use crate::emulated::Emulated;
use crate::{golden, model};

const PAGE_SIZE: usize = 16;
/// The references keep keys and values in bf16 too; one that lies between two bf16 numbers may still round
/// the other way.
const TOLERANCE: f32 = 0.005;

/// Families that differ in what the backend does: rotations, norms of heads, windows, caps, biases, norms
/// with a bias, tied heads, activations, formats of weights.
const FAMILIES: [&str; 8] = [
    "mistral",
    "qwen2-window",
    "qwen3",
    "gemma2",
    "olmo2",
    "phi3",
    "stablelm-parallel",
    "command-r7b",
];

#[derive(serde::Deserialize)]
struct Reference {
    ids: Vec<u32>,
    /// By position.
    logits: BTreeMap<usize, Vec<f32>>,
}

/// The logits of each token of one sequence, in chunks of `chunk` rows over pages in descending order.
fn logits<B: Backend>(backend: &mut B, file: &ModelFile, ids: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let limits = ForwardLimits {
        max_rows: chunk,
        max_logit_rows: chunk,
    };
    let decoder: Result<Decoder<B>, _> = file.load_decoder(backend, ids.len(), limits);
    let mut decoder = decoder.unwrap_or_else(|error| panic!("{error}"));
    let config = decoder.config().clone();
    let n_pages = ids.len().div_ceil(PAGE_SIZE);
    let kv_shape = KvShape {
        n_layers: config.layers.len(),
        n_kv_heads: config.heads.n_kv_heads,
        head_dim: config.heads.head_dim,
        page_size: PAGE_SIZE,
        n_pages: n_pages + 1,
    };
    let mut kv = backend.kv(kv_shape).expect("a small pool");
    let shape = BatchShape {
        heads: config.heads,
        kv: kv_shape,
        max_rows: chunk,
        max_logit_rows: chunk,
        max_sequences: 1,
        max_pages: n_pages,
    };
    let mut on_device = backend.batch(shape, &config.windows()).expect("a small batch");
    let pages: Vec<u32> = (1..=n_pages as u32).rev().collect();
    let slot = |position: usize| pages[position / PAGE_SIZE] as usize * PAGE_SIZE + position % PAGE_SIZE;
    let mut all = Vec::new();
    for start in (0..ids.len()).step_by(chunk) {
        let end = (start + chunk).min(ids.len());
        let batch = ForwardBatch {
            ids: ids[start..end].to_vec(),
            positions: (start as u32..end as u32).collect(),
            slots: (start..end).map(|position| slot(position) as u32).collect(),
            sequences: vec![SequenceRows {
                first_row: 0,
                n_rows: end - start,
                first_position: start,
                first_page: 0,
                n_pages,
            }],
            page_tables: pages.clone(),
            logit_rows: (0..(end - start) as u32).collect(),
        };
        backend.upload_batch(&batch.step_rows(), &mut on_device);
        decoder.forward(backend, &mut kv, &on_device);
        let mut rows = vec![0.0; (end - start) * config.n_vocab];
        backend.download(decoder.logits(), &mut rows);
        all.extend(rows.chunks(config.n_vocab).map(<[f32]>::to_vec));
    }
    all
}

#[test]
fn families_give_the_logits_of_transformers() {
    for name in FAMILIES {
        let Some(device) = Emulated::new(5) else { return };
        let mut backend = device.backend().unwrap_or_else(|error| panic!("{error}"));
        let text = std::fs::read_to_string(golden(&format!("{name}.json"))).expect("the reference is there");
        let reference: Reference = serde_json::from_str(&text).expect("a good reference");
        let found = logits(&mut backend, &model(name), &reference.ids, 47);
        assert!(!backend.is_lost(), "{name}: {}", device.diagnosis(&backend));
        assert!(!reference.logits.is_empty());
        for (position, expected) in &reference.logits {
            for (found, expected) in found[*position].iter().zip(expected) {
                // Written so that a NaN fails.
                let is_close = (found - expected).abs() < TOLERANCE;
                assert!(is_close, "{name}: {found} at {position}, not {expected}");
            }
        }
    }
}

#[test]
fn chunks_and_schedules_change_no_bit_of_a_models_logits() {
    let (file, ids): (_, Vec<u32>) = (model("llama3"), (0..70).map(|i| 3 + i * 13 % 300).collect());
    let mut first: Option<Vec<u32>> = None;
    for (seed, chunk) in [(1, 70), (2, 33), (3, 5)] {
        let Some(device) = Emulated::new(seed) else { return };
        let mut backend = device.backend().unwrap_or_else(|error| panic!("{error}"));
        let rows = logits(&mut backend, &file, &ids, chunk);
        assert!(!backend.is_lost(), "{}", device.diagnosis(&backend));
        let bits: Vec<u32> = rows.iter().flatten().map(|logit| logit.to_bits()).collect();
        assert!(
            first.get_or_insert_with(|| bits.clone()) == &bits,
            "chunks of {chunk}"
        );
    }
}
