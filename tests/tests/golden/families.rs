//! One tiny model of every family against transformers and `tokenizers`: logits, tokens and settings, from a
//! folder of safetensors and, for some, from the same weights as GGUF.

use arbora_runtime::model::config::DecoderConfig;
use arbora_runtime::model::{LoadFormat, ModelFile};
use arbora_runtime::tokenizer::SpecialTokens;

use crate::decoder::{TinyModel, any_cpu, compare_everywhere, teacher_force};
use crate::{golden, golden_path};

const FAMILIES: [&str; 7] = [
    "llama2",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm2",
    "qwen2-window",
];
const GGUF: [&str; 3] = ["llama2", "qwen2", "qwen3"];

/// Families that share a tokenizer, with the window of each layer.
const SHARED_TOKENIZER: [(&str, &[Option<usize>]); 27] = {
    const WINDOW: Option<usize> = Some(40);
    [
        ("gemma", &[None; 2]),
        ("gemma2", &[WINDOW, None, WINDOW]),
        ("gemma3", &[WINDOW, WINDOW, WINDOW, WINDOW, WINDOW, None, WINDOW]),
        ("granite", &[None; 2]),
        ("olmo2", &[None; 2]),
        ("smollm3", &[None; 4]),
        ("phi3", &[Some(100); 2]),
        ("phi3-short", &[None; 2]),
        ("glm", &[None; 2]),
        ("glm4", &[None; 2]),
        ("stablelm", &[None; 2]),
        ("stablelm-parallel", &[None; 2]),
        ("command-r", &[None; 2]),
        ("command-r7b", &[WINDOW, WINDOW, WINDOW, None]),
        ("qwen3-yarn", &[None; 2]),
        ("mixtral", &[None; 2]),
        ("qwen2-moe", &[None; 3]),
        ("qwen3-moe", &[None; 3]),
        ("olmoe", &[None; 2]),
        ("granite-moe", &[None; 2]),
        ("qwen3-moe-dense", &[None; 4]),
        ("glm4-moe", &[None; 3]),
        ("gpt-oss", &[WINDOW, None, WINDOW]),
        ("starcoder2", &[WINDOW; 2]),
        ("phi", &[None; 2]),
        ("gpt-neox", &[None; 2]),
        ("gpt-neox-serial", &[None; 2]),
    ]
};
const SHARED_TOKENIZER_GGUF: [&str; 13] = [
    "gemma",
    "gemma2",
    "gemma3",
    "granite",
    "olmo2",
    "smollm3",
    "phi3-short",
    "mixtral",
    "qwen2-moe",
    "qwen3-moe",
    "olmoe",
    "granite-moe",
    "gpt-oss",
];

#[derive(serde::Deserialize)]
struct Texts {
    texts: Vec<String>,
    /// Of each text.
    tokens: Vec<Vec<u32>>,
}

fn folder(name: &str) -> ModelFile {
    ModelFile::open(&golden_path(&format!("families/{name}"))).expect("a good folder")
}

fn gguf(name: &str) -> ModelFile {
    ModelFile::open(&golden_path(&format!("families/{name}.gguf"))).expect("a good file")
}

fn reference<T: serde::de::DeserializeOwned>(name: &str) -> T {
    golden(&format!("families/{name}.json"))
}

#[test]
fn folders_of_every_family_give_the_logits_of_transformers() {
    let shared = SHARED_TOKENIZER.map(|(name, _)| name);
    for name in FAMILIES.into_iter().chain(shared) {
        compare_everywhere(&folder(name), &reference::<TinyModel>(name));
    }
}

#[test]
fn gguf_files_of_the_families_give_the_logits_of_transformers() {
    for name in GGUF.into_iter().chain(SHARED_TOKENIZER_GGUF) {
        compare_everywhere(&gguf(name), &reference::<TinyModel>(name));
    }
}

/// Products with MXFP4 weights round activations to int8, so that logits are not the reference's.
#[test]
fn experts_in_mxfp4_are_the_same_from_both_kinds_of_file() {
    let name = "gpt-oss-mxfp4";
    let reference = reference::<TinyModel>(name);
    let run = |file: &ModelFile| {
        let mut all = Vec::new();
        teacher_force(&mut any_cpu(), file, &reference.ids, 64, |_, row| {
            all.extend_from_slice(row);
        });
        all
    };
    let (folder, gguf) = (folder(name), gguf(name));
    let logits = run(&folder);
    let bits = |logits: &[f32]| -> Vec<u32> { logits.iter().map(|logit| logit.to_bits()).collect() };
    assert!(bits(&logits) == bits(&run(&gguf)));
    let off = reference.distance(&logits);
    // Written so that a NaN fails.
    assert!(off <= 0.03, "{off} of the size of the reference's logits");
    // 32 weights of a block have 17 bytes.
    assert_eq!(folder.n_params(), folder.config().n_params());
    let [of_folder, of_gguf] = [&folder, &gguf].map(ModelFile::weight_bytes);
    // Biases and routers are in F32 in the one and in BF16 in the other.
    assert!(
        of_folder.abs_diff(of_gguf) * 10 < of_gguf,
        "{of_folder} {of_gguf}"
    );
}

#[test]
fn chunks_of_a_prefill_change_no_bit_of_any_family() {
    let shared = SHARED_TOKENIZER.map(|(name, _)| name);
    for name in FAMILIES.into_iter().chain(shared) {
        let (file, ids) = (folder(name), reference::<TinyModel>(name).ids);
        let run = |chunk: usize| {
            let mut bits = Vec::new();
            teacher_force(&mut any_cpu(), &file, &ids, chunk, |_, row| {
                bits.extend(row.iter().map(|logit| logit.to_bits()));
            });
            bits
        };
        let whole = run(ids.len());
        for chunk in [1, 29, 64] {
            // Not compared by assert_eq, which would print a hundred thousand numbers.
            assert!(run(chunk) == whole, "{name} in chunks of {chunk}");
        }
    }
}

#[test]
fn descriptions_count_the_layers_and_weights_that_are_there() {
    for (name, windows) in SHARED_TOKENIZER {
        let file = folder(name);
        assert_eq!(file.config().windows(), windows, "{name}");
        assert_eq!(
            (file.config().window, file.config().context),
            (None, 256),
            "{name}"
        );
        assert_eq!(file.n_params(), file.config().n_params(), "{name}");
    }
    for name in SHARED_TOKENIZER_GGUF {
        let file = gguf(name);
        assert_eq!(file.n_params(), file.config().n_params(), "{name}");
        let layers = |config: &DecoderConfig| config.layers.clone();
        let (of_gguf, of_folder) = (layers(file.config()), layers(folder(name).config()));
        for (of_gguf, of_folder) in of_gguf.iter().zip(&of_folder) {
            let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-6;
            let (a, b) = (of_gguf.attention, of_folder.attention);
            assert_eq!((a.window, a.soft_cap), (b.window, b.soft_cap), "{name}");
            assert_eq!(
                (of_gguf.rope, of_gguf.norms),
                (of_folder.rope, of_folder.norms),
                "{name}"
            );
            assert_eq!(of_gguf.activation, of_folder.activation, "{name}");
            assert!(close(a.scale, b.scale), "{name}: {} and {}", a.scale, b.scale);
        }
    }
}

fn compare_tokens(name: &str, file: &ModelFile, wrong: &mut Vec<String>) {
    let reference: Texts = reference(name);
    assert!(reference.texts.len() >= 20 && reference.tokens.len() == reference.texts.len());
    let tokenizer = file.tokenizer().expect("a good tokenizer");
    for (text, expected) in reference.texts.iter().zip(&reference.tokens) {
        let found = tokenizer.encode(text, SpecialTokens::Parse).expect("encodes");
        if found != *expected {
            let path = file.path().display();
            wrong.push(format!("{path} {text:?}: {found:?}, Hugging Face {expected:?}"));
        }
    }
}

#[test]
fn token_ids_equal_hugging_face_for_every_family() {
    let mut wrong = Vec::new();
    for name in FAMILIES {
        compare_tokens(name, &folder(name), &mut wrong);
    }
    for name in GGUF {
        compare_tokens(name, &gguf(name), &mut wrong);
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn settings_beside_the_weights_are_read() {
    for name in FAMILIES {
        let file = folder(name);
        let tokenizer = file.tokenizer().expect("a good tokenizer");
        let names: Vec<&[u8]> = tokenizer
            .stop_token_ids()
            .iter()
            .map(|&token| tokenizer.token_bytes(token))
            .collect();
        assert_eq!(names.len(), 2, "{name}: {names:?}");
        assert!(names.contains(&b"</s>".as_slice()) && names.contains(&b"<|end|>".as_slice()));
        let has_bos = ["llama2", "llama3", "mistral"].contains(&name);
        assert_eq!(
            (tokenizer.add_bos(), tokenizer.bos().is_some()),
            (has_bos, has_bos),
            "{name}"
        );
        let templates = file.chat_templates().expect("readable");
        assert!(matches!(&templates[..], [only] if only.source.contains("m.content")));
        let sampling = file.sampling_defaults().expect("good");
        assert_eq!((sampling.temperature, sampling.top_p), (Some(0.6), Some(0.9)));
        let windows = match name {
            "mistral" => [Some(40), Some(40)],
            "qwen2-window" => [None, Some(70)],
            _ => [None, None],
        };
        assert_eq!(file.config().windows(), windows, "{name}");
        assert_eq!((file.config().window, file.config().context), (None, 256));
        assert_eq!(file.n_params(), file.config().n_params(), "{name}");
    }
    let quantizations = FAMILIES.map(|name| folder(name).quantization());
    assert_eq!(
        quantizations,
        ["F32", "BF16", "F16", "BF16", "BF16", "BF16", "BF16"]
    );
}

#[test]
fn text_that_spells_control_tokens_is_only_text_when_taken_as_text() {
    for name in FAMILIES {
        let tokenizer = folder(name).tokenizer().expect("a good tokenizer");
        for text in ["<s>", "a</s>b", "<|end|><|end|>", "<unk> x"] {
            let ids = tokenizer.encode(text, SpecialTokens::AsText).expect("encodes");
            assert!(
                ids.iter().all(|&id| !tokenizer.is_special(id)),
                "{name} {text:?}: {ids:?}"
            );
            assert_eq!(tokenizer.decode(&ids).trim_start(), text, "{name}");
        }
    }
}

#[test]
fn megabytes_of_one_character_are_encoded_by_every_family() {
    for name in FAMILIES {
        let tokenizer = folder(name).tokenizer().expect("a good tokenizer");
        for character in [" ", "\n", "a", "1", "!", "日"] {
            let text = character.repeat((1 << 19) / character.len());
            let ids = tokenizer.encode(&text, SpecialTokens::AsText).expect("encodes");
            let decoded = tokenizer.decode(&ids);
            assert!(
                decoded == text || decoded == format!(" {text}"),
                "{name} {character:?}"
            );
        }
    }
}

#[test]
fn made_up_weights_need_a_config_alone_and_repeat() {
    let source = golden_path("families/qwen3/config.json");
    let folder = tempfile::tempdir().expect("a temporary directory");
    std::fs::copy(source, folder.path().join("config.json")).expect("writable");
    let open = || ModelFile::open_as(folder.path(), LoadFormat::Dummy).expect("a config is enough");
    let logits = || {
        let ids: Vec<u32> = (0..20).collect();
        let mut all = Vec::new();
        crate::decoder::teacher_force(&mut crate::decoder::any_cpu(), &open(), &ids, 8, |_, row| {
            all.extend_from_slice(row);
        });
        all
    };
    let first = logits();
    assert_eq!(first, logits());
    let mean_square = first.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / first.len() as f64;
    assert!((0.2..5.0).contains(&mean_square), "{mean_square}");
    let tokenizer = open().tokenizer().expect("made up too");
    let ids = tokenizer.encode("bytes", SpecialTokens::Parse).expect("encodes");
    assert_eq!((ids.len(), tokenizer.decode(&ids).as_str()), (5, "bytes"));
    assert_eq!(
        (open().quantization().as_str(), tokenizer.n_vocab()),
        ("BF16", 320)
    );
    let gguf = ModelFile::open_as(&golden_path("tiny-tied.gguf"), LoadFormat::Dummy);
    assert!(
        gguf.expect_err("no config")
            .to_string()
            .contains("config.json only")
    );
}
