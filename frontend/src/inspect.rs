//! Model description (`arbora inspect`) and the list of cached models.

use std::io::{self, Write};
use std::path::Path;

use arbora_kernels::cpu::measure;
use arbora_runtime::model::encoder::{EncoderFile, Purpose};
use arbora_runtime::model::safetensors::{INDEX_FILE, SINGLE_FILE};
use arbora_runtime::model::{LoadError, LoadFormat, ModelFile, QUANTIZED_FILE};

use crate::config;
use crate::hub::{HubCache, HubKind};
use crate::load::page_bytes;
use crate::memory;
use crate::models::cached_known_models;

/// Tokens that the memory of keys and values is given for.
const KV_TOKENS: usize = 1000;
/// Any page size gives the same bytes a token.
const PAGE_SIZE: usize = 16;

/// Why a model cannot be described.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It is not what it should be.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nobody reads the description.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Writes what the model at `path`, which the operator calls `name`, is and what memory it takes: from its
/// header or settings alone. A folder may be without its weights; their memory then follows from the
/// settings.
pub fn write_description(name: &str, path: &Path, out: &mut impl Write) -> Result<(), InspectError> {
    if EncoderFile::is_at(path) {
        return write_encoder(name, path, out);
    }
    let has_weights = !path.is_dir()
        || [INDEX_FILE, SINGLE_FILE, QUANTIZED_FILE]
            .iter()
            .any(|file| path.join(file).exists());
    let format = if has_weights {
        LoadFormat::Auto
    } else {
        LoadFormat::Dummy
    };
    let file = ModelFile::open_as(path, format)?;
    let config = file.config();
    let heads = config.heads;
    let kv_bytes = (page_bytes(&file, PAGE_SIZE) / PAGE_SIZE * KV_TOKENS) as u64;
    let context = match config.window {
        None => config.context.to_string(),
        Some(window) => format!("{window} (its sliding window)"),
    };
    let windows = config.windows();
    let n_windowed = windows.iter().flatten().count();
    let window = match windows.iter().flatten().min() {
        None => "no".to_owned(),
        Some(window) => format!("{window} ({n_windowed} of {} layers)", windows.len()),
    };
    let templates = file.chat_templates()?;
    let templates: Vec<_> = templates.iter().map(|template| template.name.as_str()).collect();
    let template = match templates.as_slice() {
        [] => "no".to_owned(),
        [_] => "yes".to_owned(),
        several => several.join(", "),
    };
    let rows = [
        ("name", name.to_owned()),
        ("path", file.path().display().to_string()),
        ("family", file.architecture()),
        ("parameters", thousands(file.n_params())),
        ("quantization", file.quantization()),
        ("layers", config.layers.len().to_string()),
        ("width", config.width.to_string()),
        (
            "heads",
            format!(
                "{} of {}, {} for keys and values",
                heads.n_heads, heads.head_dim, heads.n_kv_heads
            ),
        ),
        ("vocabulary", config.n_vocab.to_string()),
        ("context", context),
        ("sliding window", window),
        ("chat template", template),
        ("memory, weights", size(file.weight_bytes())),
        ("memory, 1000 tokens", size(kv_bytes)),
    ];
    for (what, value) in rows.into_iter().chain(outlook(&file)) {
        writeln!(out, "{what:<20}  {value}")?;
    }
    if !has_weights {
        writeln!(
            out,
            "The weights are not here; what is said of them follows from config.json."
        )?;
    }
    Ok(())
}

/// Writes what the encoder at `path` is.
fn write_encoder(name: &str, path: &Path, out: &mut impl Write) -> Result<(), InspectError> {
    let (config, head) = EncoderFile::describe(path)?;
    let heads = config.heads;
    let rows = [
        ("name", name.to_owned()),
        ("path", path.display().to_string()),
        ("family", config.model_type().to_owned()),
        (
            "purpose",
            match config.purpose {
                Purpose::Embed => format!("embeddings of {} elements", head.n_out(config.width)),
                Purpose::Rerank => "reranking".to_owned(),
            },
        ),
        ("parameters", thousands(config.n_params())),
        ("layers", config.n_layers.to_string()),
        ("width", config.width.to_string()),
        ("heads", format!("{} of {}", heads.n_heads, heads.head_dim)),
        ("vocabulary", config.n_vocab.to_string()),
        ("positions", config.n_positions.to_string()),
        ("memory, weights", size(config.weight_bytes())),
    ];
    for (what, value) in rows {
        writeln!(out, "{what:<20}  {value}")?;
    }
    Ok(())
}

/// Whether this machine can run it, and how fast at most: the bytes that a token takes from memory against
/// what this machine reads in a second, by all cores together.
fn outlook(file: &ModelFile) -> Vec<(&'static str, String)> {
    let context = file.config().context;
    let kv_bytes = (page_bytes(file, PAGE_SIZE) as u64).saturating_mul(context.div_ceil(PAGE_SIZE) as u64);
    let needed = file.weight_bytes().saturating_add(kv_bytes);
    let mut rows = vec![
        ("memory, one context", size(kv_bytes)),
        ("memory, both", size(needed)),
    ];
    let available = memory::available_bytes();
    if let Some(available) = available {
        let available = available as u64;
        let verdict = if needed <= available {
            "it fits".to_owned()
        } else if file.weight_bytes() < available {
            let n_tokens = (available - file.weight_bytes()) / (kv_bytes / context.max(1) as u64).max(1);
            format!("not with its whole context: about {n_tokens} tokens fit (--context)")
        } else {
            let missing = size(file.weight_bytes() - available);
            format!("its weights do not fit: {missing} are missing (a smaller quantization, --quantize q4_0)")
        };
        rows.push(("memory, available", size(available)));
        rows.push(("will it run", verdict));
    }
    let n_bytes = file.token_bytes();
    let rate = read_rate(available.unwrap_or(usize::MAX));
    rows.push(("read for a token", size(n_bytes)));
    rows.push(("memory reads", format!("{} a second", size(rate as u64))));
    rows.push((
        "tokens/s at most",
        format!("{:.0} of one sequence", rate / n_bytes.max(1) as f64),
    ));
    rows
}

/// Bytes a second that all cores read together from memory that no cache holds; the best of three times.
fn read_rate(available: usize) -> f64 {
    const MOST_BYTES: usize = 256 << 20;
    const N_TIMES: usize = 3;
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let n_words = MOST_BYTES.min(available / 4).max(1 << 20) / size_of::<u64>();
    // Written, so that each page is one of its own.
    let words: Vec<u64> = (0..n_words as u64).collect();
    let once = || -> f64 {
        std::thread::scope(|scope| {
            let read =
                |part| std::thread::Builder::new().spawn_scoped(scope, move || measure::read_rate(part));
            // Where a thread is not to be had, fewer are measured.
            let threads: Vec<_> = words
                .chunks(n_words.div_ceil(n_threads))
                .filter_map(|part| read(part).ok())
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
        })
    };
    (0..N_TIMES).map(|_| once()).fold(0.0, f64::max)
}

/// Writes the models in Arbora's own cache and in the hub's.
pub fn write_cached_models(out: &mut impl Write) -> io::Result<()> {
    let mut rows: Vec<(String, u64, String)> = Vec::new();
    for (alias, path, n_bytes) in cached_known_models() {
        rows.push((alias.to_owned(), n_bytes, path.display().to_string()));
    }
    let hubs = HubKind::NAMES.map(|(_, kind)| kind);
    for settings in hubs.into_iter().filter_map(config::hub_settings) {
        for model in HubCache::new(settings.cache).models() {
            let revisions = model.revisions.join(", ");
            let note = match (model.is_incomplete, revisions.is_empty()) {
                (true, _) => "incomplete; arbora pull goes on".to_owned(),
                (false, true) => String::new(),
                (false, false) => format!("revision {revisions}"),
            };
            let place = match settings.kind {
                HubKind::HuggingFace => "",
                HubKind::ModelScope => " (--hub modelscope)",
            };
            rows.push((model.id, model.n_bytes, note + place));
        }
    }
    if rows.is_empty() {
        return writeln!(out, "no model is in the cache");
    }
    let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, n_bytes, note) in rows {
        let line = format!("{name:<width$}  {:>10}  {note}", size(n_bytes));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Bytes in the unit a reader wants.
fn size(n_bytes: u64) -> String {
    match n_bytes {
        0..1_000_000 => format!("{:.1} kB", n_bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n_bytes as f64 / 1e6),
        _ => format!("{:.2} GB", n_bytes as f64 / 1e9),
    }
}

/// A number in groups of three digits.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<&str> = groups
        .map(|group| std::str::from_utf8(group).expect("digits"))
        .collect();
    groups.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_readers() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1 234 567");
        assert_eq!(size(999), "1.0 kB");
        assert_eq!(size(98_362_432), "98.4 MB");
        assert_eq!(size(2_500_000_000), "2.50 GB");
    }

    #[test]
    fn an_encoder_is_described_from_its_settings() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/encoders/bert-dense");
        let mut out = Vec::new();
        write_description("a-name", &path, &mut out).expect("a good folder");
        let text = String::from_utf8(out).expect("UTF-8");
        for line in [
            "family                bert",
            "purpose               embeddings of 20 elements",
            "positions             160",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_folder_is_described_from_its_settings() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/families/mistral");
        let mut out = Vec::new();
        write_description("a-name", &path, &mut out).expect("a good folder");
        let text = String::from_utf8(out).expect("UTF-8");
        assert!(!text.contains("not here"), "{text}");
        for line in [
            "name                  a-name",
            "family                MistralForCausalLM",
            "quantization          F16",
            "context               256",
            "sliding window        40 (2 of 2 layers)",
            "chat template         yes",
            // 2 layers, 2 heads of 16, keys and values, 2 bytes each.
            "memory, 1000 tokens   256.0 kB",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        // The same without weights: their number is known from the settings, and told to be.
        let bare = tempfile::tempdir().expect("a folder");
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(path.join(file), bare.path().join(file)).expect("a small file");
        }
        let mut out = Vec::new();
        write_description("a-name", bare.path(), &mut out).expect("enough of a folder");
        let described = String::from_utf8(out).expect("UTF-8");
        let row = |text: &str, name| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.expect("a row").to_owned()
        };
        assert_eq!(row(&described, "parameters"), row(&text, "parameters"));
        assert!(described.contains("not here"), "{described}");
    }
}
