//! Hostile and honest headers.

use arbora_kernels::quant::Format;

use super::*;
use crate::model::config::DecoderConfig;
use crate::model::testing::{GgufWriter, tiny_llama_keys};
use crate::tokenizer::Tokenizer;

fn read(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::read(bytes, bytes.len() as u64)
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let error = read(bytes).expect_err("a bad file").to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn what_was_written_is_read_back() {
    let bytes = GgufWriter::tiny_llama().bytes();
    let gguf = read(&bytes).expect("a good file");
    let keys = tiny_llama_keys();
    assert_eq!(gguf.metadata.len(), keys.len());
    let expected = keys
        .into_iter()
        .fold(Metadata::default(), |metadata, (key, value)| {
            metadata.with(&key, value)
        });
    assert_eq!(gguf.metadata, expected);
    assert_eq!(gguf.tensors.len(), 20);
    let up = gguf.tensor("blk.1.ffn_up.weight").expect("it was written");
    assert_eq!(up.dimensions, [32, 64]);
    assert_eq!(up.n_bytes, Some(32 * 64 * 4));
    assert_eq!(up.offset % 32, 0);
    DecoderConfig::from_gguf(&gguf).expect("the family table takes it");
    Tokenizer::from_metadata(&gguf.metadata).expect("the tokenizer takes it");
}

#[test]
fn every_width_of_number_is_widened() {
    let mut writer = GgufWriter::default();
    writer.raw_key("u8", 0, &[200]);
    writer.raw_key("i8", 1, &[0xff]);
    writer.raw_key("u16", 2, &[0, 1]);
    writer.raw_key("i16", 3, &[0xfe, 0xff]);
    writer.raw_key("i32", 5, &(-7i32).to_le_bytes());
    writer.raw_key("f32", 6, &1.5f32.to_le_bytes());
    writer.raw_key(
        "u16s",
        9,
        &[&[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..], &[1, 0, 0, 1]].concat(),
    );
    let metadata = read(&writer.bytes()).expect("a good file").metadata;
    assert_eq!(metadata.unsigned("u8"), Ok(Some(200)));
    assert_eq!(metadata.float("i8"), Ok(Some(-1.0)));
    assert!(metadata.unsigned("i8").is_err(), "a negative number is no count");
    assert_eq!(metadata.unsigned("u16"), Ok(Some(256)));
    assert_eq!(metadata.float("i16"), Ok(Some(-2.0)));
    assert_eq!(metadata.float("i32"), Ok(Some(-7.0)));
    assert_eq!(metadata.float("f32"), Ok(Some(1.5)));
    assert_eq!(metadata.integers("u16s"), Ok(Some(&[1, 256][..])));
    assert_eq!(metadata.text("absent"), Ok(None));
    let error = metadata.text("u8").expect_err("a number").to_string();
    assert_eq!(error, "`u8` should be a string, found an unsigned integer");
}

#[test]
fn no_prefix_of_a_file_is_a_file() {
    let bytes = GgufWriter::tiny_llama().bytes();
    for n_bytes in 0..bytes.len() {
        // The length the system reports is the prefix's; then that of the whole file, as if it shrank
        // meanwhile.
        read(&bytes[..n_bytes]).expect_err("cut short");
    }
    let header_end = read(&bytes).expect("whole").tensors[0].offset as usize;
    for n_bytes in 0..header_end - 32 {
        Gguf::read(&bytes[..n_bytes], bytes.len() as u64).expect_err("shrunk");
    }
}

#[test]
fn other_files_and_versions_are_refused() {
    let bytes = GgufWriter::tiny_llama().bytes();
    refused(b"PK\x03\x04 a zip file", "not a GGUF file");
    for (version, expected) in [
        (1u32, "version 1 "),
        (4, "version 4 "),
        (3u32.swap_bytes(), "version 50331648 "),
    ] {
        let mut bytes = bytes.clone();
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        refused(&bytes, expected);
    }
    let mut version_2 = bytes;
    version_2[4] = 2;
    read(&version_2).expect("the same layout as version 3");
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    let huge = [u64::MAX, 1 << 60, 1 << 32, 100_000];
    for n in huge {
        let mut writer = GgufWriter::tiny_llama();
        writer.n_tensors = n;
        refused(&writer.bytes(), "tensor count");
        let mut writer = GgufWriter::tiny_llama();
        writer.n_keys = n;
        refused(&writer.bytes(), "key count");
        let mut writer = GgufWriter::default();
        writer.raw_key("text", 8, &n.to_le_bytes());
        refused(&writer.bytes(), "a string value");
        for element_kind in [0u32, 7, 8, 10, 12] {
            let mut writer = GgufWriter::default();
            let payload = [&element_kind.to_le_bytes()[..], &n.to_le_bytes()].concat();
            writer.raw_key("array", 9, &payload);
            refused(&writer.bytes(), "array length");
        }
    }
    let mut writer = GgufWriter::default();
    writer.key(&"k".repeat(MAX_NAME_BYTES as usize + 1), &Value::Bool(true));
    refused(&writer.bytes(), "exceeds the limit of 1024");
}

#[test]
fn the_header_as_a_whole_is_limited() {
    // A reader without end whose file claims to be endless too: one array that would fill the memory.
    let mut start = b"GGUF".to_vec();
    start.extend(3u32.to_le_bytes());
    start.extend(0u64.to_le_bytes());
    start.extend(1u64.to_le_bytes());
    start.extend(1u64.to_le_bytes());
    start.push(b'k');
    start.extend(9u32.to_le_bytes());
    start.extend(0u32.to_le_bytes());
    start.extend((1u64 << 40).to_le_bytes());
    let endless = start.chain(std::io::repeat(0));
    let error = Gguf::read(endless, u64::MAX).expect_err("too large").to_string();
    assert!(error.contains("array length"), "{error}");
}

#[test]
fn values_without_a_meaning_are_refused() {
    let with_key = |kind: u32, payload: &[u8]| {
        let mut writer = GgufWriter::default();
        writer.raw_key("key", kind, payload);
        writer.bytes()
    };
    refused(&with_key(13, &[0; 8]), "bad value type 13");
    refused(&with_key(7, &[2]), "bad boolean 2");
    refused(
        &with_key(9, &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        "bad element type 9",
    );
    refused(&with_key(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "not UTF-8");
    let mut writer = GgufWriter::default();
    writer.key("key", &Value::Bool(true));
    writer.key("key", &Value::Bool(true));
    refused(&writer.bytes(), "key `key` appears twice");
    let mut writer = GgufWriter::default();
    writer.key("key", &Value::Bools(vec![true, false]));
    let mut bytes = writer.bytes();
    let second = bytes.iter().rposition(|&byte| byte == 1).expect("the first flag") + 1;
    bytes[second] = 9;
    refused(&bytes, "bad boolean 9");
}

#[test]
fn alignments_other_than_a_power_of_two_are_refused() {
    for alignment in [0, 3, 48, MAX_ALIGNMENT * 2, u64::MAX] {
        let mut writer = GgufWriter::tiny_llama();
        writer.key("general.alignment", &Value::Unsigned(alignment));
        refused(&writer.bytes(), "bad general.alignment");
    }
    let mut writer = GgufWriter::tiny_llama();
    writer.key("general.alignment", &Value::Text("32".to_owned()));
    refused(&writer.bytes(), "bad general.alignment");
    let mut writer = GgufWriter::tiny_llama();
    writer.key("general.alignment", &Value::Unsigned(8));
    read(&writer.bytes()).expect("a fine alignment");
}

#[test]
fn tensors_outside_the_file_or_upon_each_other_are_refused() {
    let with_tensor = |dimensions: &[u64], kind: u32, offset: u64| {
        let mut writer = GgufWriter::default();
        writer.f32_tensor("first", &[64]);
        writer.raw_tensor("second", dimensions, kind, offset);
        writer.f32_tensor("third", &[64]);
        writer.bytes()
    };
    refused(&with_tensor(&[64], 0, 0), "overlaps");
    refused(&with_tensor(&[64], 0, 224), "overlaps");
    refused(&with_tensor(&[64], 0, 512), "beyond the end");
    refused(&with_tensor(&[8], 0, 1 << 50), "beyond the end");
    refused(&with_tensor(&[8], 0, u64::MAX - 31), "beyond the end");
    refused(&with_tensor(&[8], 0, 260), "multiple of the alignment");
    refused(&with_tensor(&[], 0, 512), "one to four dimensions");
    refused(&with_tensor(&[1, 1, 1, 1, 1], 0, 512), "one to four dimensions");
    refused(&with_tensor(&[8, 0], 0, 512), "dimension of 0");
    refused(&with_tensor(&[1 << 40, 1 << 40], 0, 512), "too many elements");
    refused(&with_tensor(&[1 << 62], 0, 512), "too many bytes");
    refused(&with_tensor(&[1 << 62, 1], 0, 512), "too many bytes");
    refused(&with_tensor(&[33], 3, 512), "whole number of blocks");
    refused(&with_tensor(&[1 << 60], 77, 512), "beyond the end");
    let mut writer = GgufWriter::default();
    writer.f32_tensor("same", &[8]);
    writer.f32_tensor("same", &[8]);
    refused(&writer.bytes(), "tensor `same` appears twice");
}

#[test]
fn a_tensor_of_unknown_format_spoils_nothing_until_it_is_wanted() {
    let mut writer = GgufWriter::tiny_llama();
    writer.raw_tensor("unheard_of", &[256], 4242, 0);
    // It shares the place of the first tensor, which is refused; alone at the end it is fine.
    refused(&writer.bytes(), "overlaps");
    let mut writer = GgufWriter::tiny_llama();
    let end = writer.bytes().len() as u64 - read(&writer.bytes()).expect("good").tensors[0].offset;
    writer.f32_tensor("last", &[8]);
    let mut table = writer.clone();
    table.raw_tensor("unheard_of", &[256], 4242, end + 32);
    table.f32_tensor("room", &[8]);
    refused(&table.bytes(), "overlaps");
    let gguf = read(&writer.bytes()).expect("good");
    assert_eq!(
        gguf.tensor("last").map(|tensor| tensor.kind.format()),
        Some(Some(Format::F32))
    );
    assert_eq!(TensorType::Ggml(12).to_string(), "Q4_K");
    assert_eq!(TensorType::Ggml(4242).to_string(), "type 4242");
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

#[test]
fn no_mutation_of_a_file_panics_and_what_is_accepted_lies_within_it() {
    let seed = 20_261_123;
    println!("seed {seed}");
    let mut random = Random(seed);
    let original = GgufWriter::tiny_llama().bytes();
    let header = read(&original).expect("good").tensors[0].offset as usize;
    let (mut n_accepted, mut n_configs) = (0, 0);
    for _ in 0..30_000 {
        let mut bytes = original.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(header);
            match random.below(5) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes[at..(at + 8).min(header)].fill([0, 0xff, 0x7f][random.below(3)]),
                3 => drop(bytes.drain(at..(at + 1 + random.below(16)).min(header))),
                _ => drop(bytes.splice(at..at, std::iter::repeat_n(0, 1 + random.below(9)))),
            }
        }
        let Ok(gguf) = read(&bytes) else { continue };
        n_accepted += 1;
        for tensor in gguf.tensors.iter() {
            assert!(tensor.offset + tensor.n_bytes.unwrap_or(1) <= bytes.len() as u64);
        }
        if DecoderConfig::from_gguf(&gguf).is_ok() {
            n_configs += 1;
        }
        // Building a tokenizer compiles its pattern, so only some are.
        if n_accepted % 64 == 0
            && let Ok(tokenizer) = Tokenizer::from_metadata(&gguf.metadata)
        {
            assert!(
                tokenizer
                    .stop_token_ids()
                    .iter()
                    .all(|&id| (id as usize) < tokenizer.n_vocab())
            );
        }
    }
    println!("{n_accepted} headers and {n_configs} configurations were accepted");
    assert!(
        n_accepted > 300 && n_configs > 100,
        "the mutations must reach the checks behind the reader"
    );
}
