//! Token ids against Hugging Face's `tokenizers`.

use std::collections::BTreeMap;

use arbora_runtime::model::metadata::Value;
use arbora_runtime::tokenizer::{SpecialTokens, Tokenizer};

use crate::{default_model, golden};

#[derive(serde::Deserialize)]
struct Tokens {
    texts: Vec<String>,
    /// By pre-tokenizer, of each text.
    ids: BTreeMap<String, Vec<Vec<u32>>>,
}

#[test]
fn token_ids_equal_hugging_face_for_every_pre_tokenizer() {
    let reference: Tokens = golden("tokens.json");
    let model = default_model();
    let metadata = model.gguf_metadata().expect("it is a GGUF file");
    assert!(reference.texts.len() >= 200 && reference.ids.len() >= 5);
    let mut wrong = Vec::new();
    for (name, ids) in &reference.ids {
        let metadata = metadata
            .clone()
            .with("tokenizer.ggml.pre", Value::Text(name.clone()));
        let tokenizer = Tokenizer::from_metadata(&metadata).expect("a known pre-tokenizer");
        assert_eq!(ids.len(), reference.texts.len());
        for (text, expected) in reference.texts.iter().zip(ids) {
            let found = tokenizer.encode(text, SpecialTokens::Parse).expect("encodes");
            if found != *expected {
                wrong.push(format!("{name} {text:?}: {found:?}, Hugging Face {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn text_comes_back_from_its_tokens() {
    let tokenizer = default_model().tokenizer().expect("a tokenizer");
    let reference: Tokens = golden("tokens.json");
    let mut n_checked = 0;
    for text in &reference.texts {
        // SmolLM2 has no tokens for some control characters; what has none is left out.
        let expected: Vec<u8> = text.bytes().filter(|&byte| has_token(&tokenizer, byte)).collect();
        for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
            let ids = tokenizer.encode(text, special).expect("encodes");
            assert_eq!(
                tokenizer.decode(&ids),
                String::from_utf8_lossy(&expected),
                "{text:?}"
            );
            n_checked += 1;
        }
    }
    assert!(n_checked >= 400);
}

/// Whether some token is this byte alone.
fn has_token(tokenizer: &Tokenizer, byte: u8) -> bool {
    (0..tokenizer.n_vocab() as u32).any(|token| tokenizer.token_bytes(token) == [byte])
}

#[test]
fn text_that_spells_control_tokens_is_only_text_when_taken_as_text() {
    let tokenizer = default_model().tokenizer().expect("a tokenizer");
    let control: Vec<u32> = (0..tokenizer.n_vocab() as u32)
        .filter(|&token| tokenizer.is_special(token))
        .collect();
    assert!(control.len() >= 17, "SmolLM2 has 17 control tokens");
    for &token in &control {
        let name = String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned();
        for text in [
            name.clone(),
            format!("a{name}b"),
            format!("<{name}\n"),
            format!("{name}{name}"),
        ] {
            let as_text = tokenizer.encode(&text, SpecialTokens::AsText).expect("encodes");
            assert!(
                as_text.iter().all(|&id| !tokenizer.is_special(id)),
                "{text:?}: {as_text:?}"
            );
            assert_eq!(tokenizer.decode(&as_text), text);
            let parsed = tokenizer.encode(&text, SpecialTokens::Parse).expect("encodes");
            assert!(parsed.contains(&token), "{text:?}: {parsed:?}");
        }
    }
}

#[test]
fn control_tokens_add_nothing_to_an_answers_text() {
    let tokenizer = default_model().tokenizer().expect("a tokenizer");
    let text_bytes = tokenizer.text_bytes(&[]);
    for token in 0..tokenizer.n_vocab() as u32 {
        let expected = if tokenizer.is_special(token) {
            &[]
        } else {
            tokenizer.token_bytes(token)
        };
        assert_eq!(text_bytes.of(token), expected);
    }
}

#[test]
fn the_default_model_stops_at_its_end_of_turn_and_end_of_text() {
    let tokenizer = default_model().tokenizer().expect("a tokenizer");
    let names: Vec<&[u8]> = tokenizer
        .stop_token_ids()
        .iter()
        .map(|&token| tokenizer.token_bytes(token))
        .collect();
    assert_eq!(names, [b"<|endoftext|>".as_slice(), b"<|im_end|>"]);
    assert_eq!(tokenizer.eos(), Some(2));
    assert!(!tokenizer.add_bos());
}

#[test]
fn megabytes_of_one_character_are_encoded() {
    let tokenizer = default_model().tokenizer().expect("a tokenizer");
    let n = 1 << 20;
    // The first two are beyond what backtracking regular expressions can do; all are one piece for the
    // merges.
    for text in [
        " ".repeat(n),
        "\n".repeat(n) + "x",
        "a".repeat(n),
        "!".repeat(n),
        "日".repeat(n / 3),
    ] {
        let ids = tokenizer.encode(&text, SpecialTokens::AsText).expect("encodes");
        assert!(ids.len() <= text.len());
        assert_eq!(tokenizer.decode(&ids), text);
    }
}
