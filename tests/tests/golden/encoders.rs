//! Tiny encoders of every kind, and all-MiniLM-L6-v2, against sentence-transformers: tokens, vectors, scores.
//! On each instruction set a text's vector has the same bits alone and among others.

use arbora_kernels::cpu::{CpuBackend, CpuConfig, Isa, Pinning};
use arbora_kernels::encoder::EncoderBackend;
use arbora_kernels::reference::ReferenceBackend;
use arbora_runtime::model::encoder::{EncodedText, EncoderFile, Purpose, TextRows, TooLong};

use crate::{golden, golden_path};

const EMBEDDERS: [&str; 7] = [
    "bert",
    "bert-cls",
    "bert-dense",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "nomic",
];
const RERANKERS: [&str; 2] = ["bert-reranker", "roberta-reranker"];

/// Most that 1 minus the cosine of two vectors may be.
const MAX_DISTANCE: f64 = 1e-4;

#[derive(serde::Deserialize)]
struct Embedded {
    texts: Vec<String>,
    /// Of each text, cut where the model ends.
    tokens: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
}

#[derive(serde::Deserialize)]
struct Scored {
    pairs: Vec<(String, String)>,
    tokens: Vec<Vec<u32>>,
    scores: Vec<f32>,
}

#[derive(serde::Deserialize)]
struct Real {
    texts: Vec<String>,
    n_tokens: Vec<usize>,
    /// f32, little-endian, in base64.
    vectors: String,
}

fn open(name: &str) -> EncoderFile {
    let path = golden_path(&format!("encoders/{name}"));
    assert!(EncoderFile::is_at(&path));
    EncoderFile::open(&path).expect("a good folder")
}

fn cpu(isa: Isa) -> CpuBackend {
    let config = CpuConfig {
        n_threads: 2,
        isa: Some(isa),
        pinning: Pinning::Free,
    };
    CpuBackend::new(config).expect("threads")
}

/// The answers to `texts`, `n` in a pass.
fn answers<B: EncoderBackend>(
    mut backend: B,
    file: &EncoderFile,
    texts: &[EncodedText],
    n: usize,
) -> Vec<Vec<f32>> {
    let longest = texts.iter().map(|text| text.ids.len()).max().expect("texts");
    let mut encoder = file.load(&mut backend, n * longest).expect("good weights");
    let width = encoder.config().width;
    let mut all = Vec::new();
    let mut rows = TextRows::default();
    for texts in texts.chunks(n) {
        rows.clear();
        texts.iter().for_each(|text| rows.push(&text.ids, &text.types));
        let hidden = encoder.forward(&mut backend, &rows);
        let of_text = |rows: std::ops::Range<usize>| &hidden[rows.start * width..rows.end * width];
        all.extend(rows.ranges().map(|rows| file.head().apply(of_text(rows), width)));
    }
    all
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum::<f64>()
    };
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The answers of every instruction set: the same bits alone and among others.
fn of_all(file: &EncoderFile, texts: &[EncodedText]) -> Vec<Vec<Vec<f32>>> {
    let of_isa = |isa: Isa| {
        let alone = answers(cpu(isa), file, texts, 1);
        let together = answers(cpu(isa), file, texts, 7);
        assert!(alone == together, "{}: not the same bits", isa.name());
        alone
    };
    Isa::available().into_iter().map(of_isa).collect()
}

#[test]
fn every_kind_of_embedder_gives_the_tokens_and_vectors_of_sentence_transformers() {
    for name in EMBEDDERS {
        let file = open(name);
        assert_eq!(file.config().purpose, Purpose::Embed);
        let expected: Embedded = golden(&format!("encoders/{name}.json"));
        let tokenizer = file.tokenizer().expect("a good tokenizer");
        let encoded = expected.texts.iter().zip(&expected.tokens).map(|(text, tokens)| {
            let encoded = tokenizer
                .encode(text, usize::MAX, TooLong::Truncate)
                .expect("encodes");
            assert_eq!(encoded.ids, *tokens, "{name}: {text:?}");
            encoded
        });
        let encoded: Vec<EncodedText> = encoded.collect();
        let reference = answers(ReferenceBackend::new(), &file, &encoded, 5);
        let all = of_all(&file, &encoded);
        for (i, expected) in expected.vectors.iter().enumerate() {
            let text = &encoded[i].ids;
            for (reference, expected) in reference[i].iter().zip(expected) {
                let bound = 2e-5 * (1.0 + expected.abs());
                assert!(
                    (reference - expected).abs() < bound,
                    "{name} {text:?}: {reference} {expected}"
                );
            }
            for found in &all {
                let distance = distance(&found[i], expected);
                assert!(distance < MAX_DISTANCE, "{name} {text:?}: {distance:.2e}");
            }
        }
    }
}

#[test]
fn rerankers_give_the_scores_of_sentence_transformers() {
    for name in RERANKERS {
        let file = open(name);
        assert_eq!(file.config().purpose, Purpose::Rerank);
        let expected: Scored = golden(&format!("encoders/{name}.json"));
        let tokenizer = file.tokenizer().expect("a good tokenizer");
        let encoded = expected
            .pairs
            .iter()
            .zip(&expected.tokens)
            .map(|((first, second), tokens)| {
                let encoded = tokenizer.encode_pair((first, second), usize::MAX, TooLong::Refuse);
                let encoded = encoded.expect("short enough");
                assert_eq!(encoded.ids, *tokens, "{name}: {first:?} {second:?}");
                encoded
            });
        let encoded: Vec<EncodedText> = encoded.collect();
        let reference = answers(ReferenceBackend::new(), &file, &encoded, 5);
        let all = of_all(&file, &encoded);
        for (i, expected) in expected.scores.iter().enumerate() {
            assert!(
                (reference[i][0] - expected).abs() < 2e-5,
                "{name} {i}: {:?} {expected}",
                reference[i]
            );
            for found in &all {
                let found = found[i][0];
                assert!((found - expected).abs() < 2e-3, "{name} {i}: {found} {expected}");
            }
        }
    }
}

#[test]
fn prompts_and_limits_are_those_of_the_checkpoint() {
    let file = open("bert-cls");
    let (prompts, default) = file.prompts();
    let named = |name: &str| {
        prompts
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, text)| text.as_str())
    };
    assert_eq!(
        (named("query"), named("document"), default),
        (Some("find: "), Some(""), None)
    );
    assert_eq!(file.max_tokens(), 24);
    assert_eq!(open("bert-dense").head().n_out(48), 20);
    assert_eq!(open("bert-reranker").max_tokens(), 150);
    assert_eq!(open("roberta").config().n_positions, 158);
}

#[test]
fn fifty_vectors_of_minilm_are_those_of_sentence_transformers() {
    let path = arbora::models::resolve("minilm:l6-v2").expect("the model can be had");
    let file = EncoderFile::open(&path).expect("a good folder");
    let expected: Real = golden("encoders/minilm.json");
    assert_eq!(expected.texts.len(), 50);
    let tokenizer = file.tokenizer().expect("a good tokenizer");
    let encode = |text: &String| {
        tokenizer
            .encode(text, usize::MAX, TooLong::Truncate)
            .expect("encodes")
    };
    let encoded: Vec<EncodedText> = expected.texts.iter().map(encode).collect();
    let lengths: Vec<usize> = encoded.iter().map(|text| text.ids.len()).collect();
    assert_eq!(lengths, expected.n_tokens);
    let vectors = numbers(&expected.vectors);
    let found = answers(cpu(Isa::best()), &file, &encoded, 4);
    for (i, found) in found.iter().enumerate() {
        let distance = distance(found, &vectors[i * 384..(i + 1) * 384]);
        assert!(distance < MAX_DISTANCE, "{:?}: {distance:.2e}", expected.texts[i]);
    }
    let alone = answers(cpu(Isa::best()), &file, &encoded[..9], 1);
    assert_eq!(alone, found[..9]);
}

/// The f32 numbers in base64.
fn numbers(text: &str) -> Vec<f32> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        _ => 0,
    };
    let groups = text.as_bytes().chunks(4);
    let bytes = groups.flat_map(|four| {
        let bits = four.iter().fold(0, |bits, byte| bits << 6 | digit(*byte));
        [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8]
    });
    let bytes: Vec<u8> = bytes.collect();
    let (numbers, _) = bytes.as_chunks::<4>();
    numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
