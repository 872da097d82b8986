//! Tokenizers from a SentencePiece model (`tokenizer.model`), a protobuf message, of the BPE kind.
//!
//! ```text
//! ModelProto       1 pieces*, 2 trainer_spec, 3 normalizer_spec
//! SentencePiece    1 piece, 2 score, 3 type (normal, unknown, control, user-defined, unused, byte: 1 to 6)
//! TrainerSpec      3 model_type (2 is BPE), 41 bos_id, 42 eos_id
//! NormalizerSpec   1 name, 3 add_dummy_prefix, 4 remove_extra_whitespaces
//! ```
//!
//! GGUF files keep the same numbers under keys of their own, so the tokenizer is put together from those.
//! Every length is checked against the bytes that are left.
//!
//! Source: `sentencepiece_model.proto` of the SentencePiece project.

use serde_json::{Map, Value as Json};

use super::gguf::{
    ADD_BLANK_KEY, ADD_BOS_KEY, BOS_KEY, EOS_KEY, MODEL_KEY, PAD_KEY, SCORES_KEY, TOKENS_KEY, TYPES_KEY,
};
use super::{JsonSettings, Tokenizer, TokenizerError};
use crate::model::metadata::{Metadata, Strings, Value};

/// The file in a model's folder.
pub const SENTENCEPIECE_FILE: &str = "tokenizer.model";

const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
/// `model_type` of BPE; 1 is unigram.
const BPE: u64 = 2;
/// Most tokens beside the file's pieces.
const MAX_ADDED: usize = 1 << 16;

/// What the message says, with the defaults of its definition.
struct Model {
    pieces: Strings,
    scores: Vec<f64>,
    types: Vec<i64>,
    model_type: u64,
    bos: u64,
    eos: u64,
    normalizer: String,
    adds_blank: bool,
    removes_blanks: bool,
}

impl Tokenizer {
    /// Rebuilds the tokenizer of a SentencePiece model; `added` is `added_tokens_decoder` of
    /// `tokenizer_config.json`, where it has that.
    pub fn from_sentencepiece(
        bytes: &[u8],
        added: Option<&Map<String, Json>>,
        settings: &JsonSettings<'_>,
    ) -> Result<Tokenizer, TokenizerError> {
        let mut model = Model::read(bytes).ok_or(TokenizerError::BadSentencePiece)?;
        if model.model_type != BPE {
            let found = match model.model_type {
                1 => "SentencePiece unigram".to_owned(),
                other => format!("SentencePiece type {other}"),
            };
            return Err(TokenizerError::UnsupportedModel { found });
        }
        let refused = [
            (model.normalizer != "identity" && !model.normalizer.is_empty())
                .then(|| model.normalizer.clone()),
            model
                .removes_blanks
                .then(|| "remove_extra_whitespaces".to_owned()),
        ];
        if let Some(value) = refused.into_iter().flatten().next() {
            return Err(TokenizerError::UnsupportedNormalizer { value });
        }
        model.add(added, settings.n_vocab)?;
        let id_of = |name: Option<&str>, default: Option<u64>| {
            let found = name.and_then(|name| model.pieces.iter().position(|piece| piece == name));
            found.map(|id| id as u64).or(default)
        };
        let n_pieces = model.pieces.len() as u64;
        let within = |id: u64| Some(id).filter(|&id| id < n_pieces);
        let ids = [
            (BOS_KEY, id_of(settings.bos, within(model.bos))),
            (EOS_KEY, id_of(settings.eos, within(model.eos))),
            (PAD_KEY, id_of(settings.pad, None)),
        ];
        let mut metadata = Metadata::default()
            .with(MODEL_KEY, Value::Text("llama".to_owned()))
            .with(ADD_BLANK_KEY, Value::Bool(model.adds_blank))
            .with(ADD_BOS_KEY, Value::Bool(settings.add_bos.unwrap_or(true)))
            .with(SCORES_KEY, Value::Floats(model.scores))
            .with(TYPES_KEY, Value::Integers(model.types))
            .with(TOKENS_KEY, Value::Strings(model.pieces));
        for (key, id) in ids {
            if let Some(id) = id {
                metadata = metadata.with(key, Value::Unsigned(id));
            }
        }
        let mut tokenizer = Tokenizer::from_metadata(&metadata)?;
        let own = settings
            .eos_token_ids
            .iter()
            .filter(|&&id| u64::from(id) < n_pieces);
        tokenizer.stop_token_ids.extend(own);
        tokenizer.stop_token_ids.sort_unstable();
        tokenizer.stop_token_ids.dedup();
        Ok(tokenizer)
    }
}

impl Model {
    /// Nothing where the bytes are no such message.
    fn read(bytes: &[u8]) -> Option<Model> {
        let mut model = Model {
            pieces: Strings::default(),
            scores: Vec::new(),
            types: Vec::new(),
            model_type: 1,
            bos: 1,
            eos: 2,
            normalizer: String::new(),
            adds_blank: true,
            removes_blanks: true,
        };
        let mut fields = Fields { bytes };
        while !fields.bytes.is_empty() {
            match fields.next()? {
                (1, Field::Bytes(piece)) => model.read_piece(piece)?,
                (2, Field::Bytes(spec)) => {
                    let mut fields = Fields { bytes: spec };
                    while !fields.bytes.is_empty() {
                        match fields.next()? {
                            (3, Field::Number(number)) => model.model_type = number,
                            (41, Field::Number(number)) => model.bos = number,
                            (42, Field::Number(number)) => model.eos = number,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(spec)) => {
                    let mut fields = Fields { bytes: spec };
                    while !fields.bytes.is_empty() {
                        match fields.next()? {
                            (1, Field::Bytes(name)) => {
                                model.normalizer = std::str::from_utf8(name).ok()?.to_owned();
                            }
                            (3, Field::Number(number)) => model.adds_blank = number != 0,
                            (4, Field::Number(number)) => model.removes_blanks = number != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }

    fn read_piece(&mut self, bytes: &[u8]) -> Option<()> {
        let (mut text, mut score, mut kind) = ("", 0.0, 1);
        let mut fields = Fields { bytes };
        while !fields.bytes.is_empty() {
            match fields.next()? {
                (1, Field::Bytes(piece)) => text = std::str::from_utf8(piece).ok()?,
                (2, Field::Fixed32(bits)) => score = f64::from(f32::from_bits(bits)),
                (3, Field::Number(number)) => kind = i64::try_from(number).ok()?,
                _ => {}
            }
        }
        self.pieces.push(text);
        self.scores.push(score);
        self.types.push(kind);
        Some(())
    }

    /// Tokens by their ids: a special one in the file becomes a control token, new ones follow, and what is
    /// between is unused.
    fn add(&mut self, added: Option<&Map<String, Json>>, n_vocab: usize) -> Result<(), TokenizerError> {
        let mut tokens = Vec::new();
        for (id, token) in added.into_iter().flatten().take(MAX_ADDED) {
            let (Ok(id), Some(text)) = (id.parse::<usize>(), token.get("content").and_then(Json::as_str))
            else {
                continue;
            };
            let is_special = token.get("special").and_then(Json::as_bool) == Some(true);
            tokens.push((id, text, if is_special { CONTROL } else { USER_DEFINED }));
        }
        tokens.sort_unstable();
        for (id, text, kind) in tokens {
            if id >= n_vocab {
                return Err(super::bad_entry(
                    "token",
                    id,
                    text,
                    "is beyond the model's vocabulary",
                ));
            }
            if id < self.types.len() {
                // The unknown token stays what it is.
                if self.types[id] != 2 {
                    self.types[id] = kind;
                }
                continue;
            }
            while self.types.len() <= id {
                let is_it = self.types.len() == id;
                let unused = format!("[unused{}]", self.types.len());
                self.pieces.push(if is_it { text } else { &unused });
                self.scores.push(0.0);
                self.types.push(if is_it { kind } else { UNUSED });
            }
        }
        Ok(())
    }
}

/// A value of a message.
enum Field<'a> {
    Number(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// The fields of a message, one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Number and value; nothing where the bytes are no field.
    fn next(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let len = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    /// Seven bits a byte, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelFile;
    use crate::tokenizer::SpecialTokens;

    fn number(mut value: u64, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn field(tag: u64, bytes: &[u8], out: &mut Vec<u8>) {
        number(tag << 3 | 2, out);
        number(bytes.len() as u64, out);
        out.extend(bytes);
    }

    fn flag(tag: u64, value: u64, out: &mut Vec<u8>) {
        number(tag << 3, out);
        number(value, out);
    }

    fn golden(name: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/golden/families")
            .join(name)
    }

    /// The model of these keys of a GGUF file.
    fn message(metadata: &Metadata, (model_type, normalizer, removes): (u64, &str, u64)) -> Vec<u8> {
        let tokens = metadata
            .strings(TOKENS_KEY)
            .expect("an array")
            .expect("it is there");
        let scores = metadata
            .floats(SCORES_KEY)
            .expect("an array")
            .expect("it is there");
        let types = metadata
            .integers(TYPES_KEY)
            .expect("an array")
            .expect("it is there");
        let mut message = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            let mut piece = Vec::new();
            field(1, token.as_bytes(), &mut piece);
            piece.push(2 << 3 | 5);
            piece.extend((scores[i] as f32).to_le_bytes());
            if types[i] != 1 {
                flag(3, types[i] as u64, &mut piece);
            }
            field(1, &piece, &mut message);
        }
        let mut trainer = Vec::new();
        field(2, b"llama", &mut trainer);
        flag(3, model_type, &mut trainer);
        // -1, as a 64-bit number.
        flag(43, u64::MAX, &mut trainer);
        field(2, &trainer, &mut message);
        let mut spec = Vec::new();
        field(1, normalizer.as_bytes(), &mut spec);
        flag(3, 1, &mut spec);
        flag(4, removes, &mut spec);
        field(3, &spec, &mut message);
        message
    }

    fn settings() -> JsonSettings<'static> {
        JsonSettings {
            bos: Some("<s>"),
            eos: Some("</s>"),
            pad: None,
            add_bos: None,
            eos_token_ids: vec![2],
            n_vocab: 400,
        }
    }

    #[test]
    fn a_model_gives_the_tokens_of_the_same_vocabulary_in_gguf() {
        let file = ModelFile::open(&golden("llama2.gguf")).expect("a good file");
        let metadata = file.gguf_metadata().expect("a GGUF file");
        let bytes = message(metadata, (BPE, "identity", 0));
        let expected = Tokenizer::from_metadata(metadata).expect("good keys");
        let found = Tokenizer::from_sentencepiece(&bytes, None, &settings()).expect("a good model");
        // The GGUF file does not say which token begins a sequence.
        assert_eq!((found.bos(), found.eos()), (Some(1), expected.eos()));
        assert_eq!(found.n_vocab(), expected.n_vocab());
        #[derive(serde::Deserialize)]
        struct Golden {
            texts: Vec<String>,
        }
        let golden = std::fs::read_to_string(golden("llama2.json")).expect("a golden");
        let golden: Golden = serde_json::from_str(&golden).expect("JSON");
        let mut n_texts = 0;
        for text in golden
            .texts
            .iter()
            .flat_map(|text| [text.clone(), format!("{text}{text}"), text.to_uppercase()])
        {
            let encode =
                |tokenizer: &Tokenizer| tokenizer.encode(&text, SpecialTokens::Parse).expect("short");
            assert_eq!(encode(&found), encode(&expected), "{text:?}");
            n_texts += 1;
        }
        assert!(n_texts >= 40);
    }

    #[test]
    fn added_tokens_follow_the_pieces_and_mark_control_tokens() {
        let file = ModelFile::open(&golden("llama2.gguf")).expect("a good file");
        let metadata = file.gguf_metadata().expect("a GGUF file");
        let bytes = message(metadata, (BPE, "identity", 0));
        let n = metadata
            .strings(TOKENS_KEY)
            .expect("an array")
            .expect("it is there")
            .len();
        let added = format!(
            r#"{{"{}": {{"content": "<|im_end|>", "special": true}}, "{}": {{"content": "<call>"}}, "x": 1}}"#,
            n + 1,
            n + 2
        );
        let added: Map<String, Json> = serde_json::from_str(&added).expect("JSON");
        let mut wide = settings();
        (wide.eos, wide.n_vocab) = (Some("<|im_end|>"), n + 3);
        let tokenizer = Tokenizer::from_sentencepiece(&bytes, Some(&added), &wide).expect("a good model");
        assert_eq!(
            (tokenizer.n_vocab(), tokenizer.eos()),
            (n + 3, Some(n as u32 + 1))
        );
        for id in [2, n as u32 + 1] {
            assert!(tokenizer.stop_token_ids().contains(&id), "{id}");
        }
        wide.n_vocab = n + 2;
        let error = Tokenizer::from_sentencepiece(&bytes, Some(&added), &wide).map(drop);
        let error = error.expect_err("too many").to_string();
        assert!(
            error.contains("`<call>`: is beyond the model's vocabulary"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_model_or_no_bpe_is_refused() {
        let file = ModelFile::open(&golden("llama2.gguf")).expect("a good file");
        let metadata = file.gguf_metadata().expect("a GGUF file");
        let refused = |kind, expected: &str| {
            let error = Tokenizer::from_sentencepiece(&message(metadata, kind), None, &settings()).map(drop);
            let error = error.expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused((1, "identity", 0), "`SentencePiece unigram` is not supported");
        refused((BPE, "nmt_nfkc", 0), "normalizer `nmt_nfkc` is not supported");
        refused(
            (BPE, "identity", 1),
            "normalizer `remove_extra_whitespaces` is not supported",
        );
        let good = message(metadata, (BPE, "identity", 0));
        // No prefix and no damage panics; a file that is cut within a field is refused.
        for n in (0..good.len()).step_by(7) {
            drop(Tokenizer::from_sentencepiece(&good[..n], None, &settings()));
            let mut damaged = good.clone();
            damaged[n] ^= 0xff;
            drop(Model::read(&damaged));
        }
        for bytes in [
            &[][..],
            &good[..5],
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            &[0x0f],
        ] {
            let error = Tokenizer::from_sentencepiece(bytes, None, &settings()).map(drop);
            let error = error.expect_err("no model").to_string();
            assert_eq!(error, "tokenizer.model is no SentencePiece model");
        }
    }
}
