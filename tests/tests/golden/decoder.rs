//! The forward pass against transformers.

use std::collections::BTreeMap;

use arbora_kernels::reference::ReferenceBackend;
use arbora_kernels::{Backend, KvShape, SequenceRows};
use arbora_runtime::batch::ForwardBatch;
use arbora_runtime::model::ModelFile;
use arbora_runtime::model::decoder::{Decoder, ForwardLimits};

use crate::{golden, golden_path};

const PAGE_SIZE: usize = 16;

/// One sequence, run in chunks of `chunk` rows over pages in descending order; calls `row` with the position
/// and logits of each of the first `ids.len()` rows.
fn teacher_force<B: Backend>(
    backend: &mut B,
    file: &ModelFile,
    ids: &[u32],
    chunk: usize,
    mut row: impl FnMut(usize, &[f32]),
) {
    let limits = ForwardLimits {
        max_rows: chunk,
        max_logit_rows: chunk,
    };
    let mut decoder: Decoder<B> = file
        .load_decoder(backend, ids.len(), limits)
        .expect("the model loads");
    let config = decoder.config().clone();
    let n_pages = ids.len().div_ceil(PAGE_SIZE);
    let shape = KvShape {
        n_layers: config.n_layers,
        n_kv_heads: config.heads.n_kv_heads,
        head_dim: config.heads.head_dim,
        page_size: PAGE_SIZE,
        n_pages: n_pages + 1,
    };
    let mut kv = backend.kv(shape).expect("a small pool");
    let pages: Vec<u32> = (1..=n_pages as u32).rev().collect();
    let mut logits = Vec::new();
    for start in (0..ids.len()).step_by(chunk) {
        let end = (start + chunk).min(ids.len());
        let batch = ForwardBatch {
            ids: ids[start..end].to_vec(),
            positions: (start as u32..end as u32).collect(),
            slots: (start..end)
                .map(|position| {
                    pages[position / PAGE_SIZE] * PAGE_SIZE as u32 + (position % PAGE_SIZE) as u32
                })
                .collect(),
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
        let tensor = decoder.forward(backend, &mut kv, &batch);
        logits.resize((end - start) * config.n_vocab, 0.0);
        backend.download(tensor, &mut logits);
        for (offset, logits) in logits.chunks(config.n_vocab).enumerate() {
            row(start + offset, logits);
        }
    }
}

#[derive(serde::Deserialize)]
struct TinyModel {
    ids: Vec<u32>,
    /// By position.
    logits: BTreeMap<usize, Vec<f32>>,
}

fn compare_tiny_model<B: Backend>(backend: &mut B, label: &str, name: &str) {
    let reference: TinyModel = golden(&format!("tiny-{name}.json"));
    let file = ModelFile::open(&golden_path(&format!("tiny-{name}.gguf"))).expect("a good file");
    let (mut n_rows, mut worst, mut largest) = (0, 0f32, 0f32);
    teacher_force(backend, &file, &reference.ids, 47, |position, logits| {
        let Some(expected) = reference.logits.get(&position) else {
            return;
        };
        assert_eq!(expected.len(), logits.len());
        n_rows += 1;
        for (found, expected) in logits.iter().zip(expected) {
            worst = worst.max((found - expected).abs());
            largest = largest.max(expected.abs());
        }
    });
    assert_eq!(n_rows, reference.logits.len());
    assert!(
        worst < 0.01,
        "tiny-{name} on {label}: logits up to {largest:.2} differ by {worst:.5}"
    );
}

#[test]
fn tiny_models_give_the_logits_of_transformers() {
    for name in ["tied", "untied"] {
        compare_tiny_model(&mut ReferenceBackend::new(), "the reference", name);
    }
}
