//! Which files of a repository loading needs: a folder's settings, tokenizer and safetensors, or one GGUF
//! checkpoint, by its name, by its quantization or because it is the usual one.

use arbora_runtime::model::LoadFormat;
use arbora_runtime::model::directory::{CONFIG_FILE, OPTIONAL_FILES, TOKENIZER_FILE};
use arbora_runtime::model::gguf::PartName;
use arbora_runtime::model::safetensors::{INDEX_FILE, SINGLE_FILE};
use arbora_runtime::model::templates::is_other;
use arbora_runtime::tokenizer::SENTENCEPIECE_FILE;

use super::{HubError, HubModel};

/// The quantization that is taken where a repository has several and none is asked for.
pub(super) const USUAL_QUANTIZATION: &str = "Q4_K_M";

/// Files of a repository that are one model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// In the order to fetch them; an index brings its shards with it.
    pub(super) files: Vec<String>,
    /// Whether the model is their folder; else it is the first of them.
    pub(super) is_folder: bool,
}

/// Of a repository's files, those that loading needs.
pub(super) fn choose(model: &HubModel, format: LoadFormat, files: &[String]) -> Result<Choice, HubError> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if let Some(wanted) = &model.file {
        return match has(wanted) {
            true => Ok(checkpoint(wanted, files)),
            false => of_quantization(model, wanted, files),
        };
    }
    let weights = [INDEX_FILE, SINGLE_FILE].into_iter().find(|name| has(name));
    let is_dummy = format == LoadFormat::Dummy;
    if has(CONFIG_FILE) && (weights.is_some() || is_dummy) {
        // The one is read only where the other is not there.
        let tokenizer = [TOKENIZER_FILE, SENTENCEPIECE_FILE]
            .into_iter()
            .find(|name| has(name));
        let beside = tokenizer
            .into_iter()
            .chain(OPTIONAL_FILES.into_iter().filter(|name| has(name)));
        let templates = files.iter().map(String::as_str).filter(|file| is_other(file));
        let weights = weights.filter(|_| !is_dummy);
        let chosen = std::iter::once(CONFIG_FILE)
            .chain(beside)
            .chain(templates)
            .chain(weights);
        return Ok(Choice {
            files: chosen.map(str::to_owned).collect(),
            is_folder: true,
        });
    }
    let checkpoints = checkpoints(files);
    match checkpoints.as_slice() {
        [] => Err(HubError::NothingToLoad {
            model: model.to_string(),
        }),
        [only] => Ok(checkpoint(only, files)),
        several => match matching(USUAL_QUANTIZATION, several).as_slice() {
            [usual] => Ok(checkpoint(usual, files)),
            _ => Err(ambiguous(model, several)),
        },
    }
}

/// The checkpoint in the quantization that somebody asked for.
fn of_quantization(model: &HubModel, wanted: &str, files: &[String]) -> Result<Choice, HubError> {
    let not_found = || HubError::NotFound {
        what: model.to_string(),
    };
    if wanted.ends_with(".gguf") || wanted.contains('/') {
        return Err(not_found());
    }
    let checkpoints = checkpoints(files);
    match matching(wanted, &checkpoints).as_slice() {
        [only] => Ok(checkpoint(only, files)),
        [] if checkpoints.is_empty() => Err(not_found()),
        [] => Err(HubError::NoSuchQuantization {
            model: model.id.clone(),
            wanted: wanted.to_owned(),
            choices: names(model, &checkpoints),
        }),
        several => Err(ambiguous(model, several)),
    }
}

/// The names that end in a quantization: `model-Q4_K_M.gguf` and `model.q4_k_m.gguf` in `Q4_K_M`. Of several,
/// those that end in nothing else: `UD-Q4_K_M` is not the same as `Q4_K_M`.
fn matching<'f>(quantization: &str, checkpoints: &[&'f str]) -> Vec<&'f str> {
    let ends_so = |name: &str| {
        let stem = PartName::of(name).map_or_else(|| name.trim_end_matches(".gguf"), |part| part.stem);
        let Some(at) = stem.len().checked_sub(quantization.len()) else {
            return false;
        };
        let (Some(before), Some(end)) = (stem.get(..at), stem.get(at..)) else {
            return false;
        };
        end.eq_ignore_ascii_case(quantization)
            && (before.is_empty() || before.ends_with(['-', '.', '_', '/']))
    };
    let found: Vec<&str> = checkpoints.iter().copied().filter(|name| ends_so(name)).collect();
    let is_variant = |name: &&str| {
        let upper = name.to_ascii_uppercase();
        upper.contains(&format!("UD-{}", quantization.to_ascii_uppercase()))
    };
    let plain: Vec<&str> = found.iter().copied().filter(|name| !is_variant(name)).collect();
    if plain.is_empty() { found } else { plain }
}

/// GGUF files that are models, of a split one the first part. Projectors of images and importance matrices
/// are none.
fn checkpoints(files: &[String]) -> Vec<&str> {
    let is_model = |file: &&str| {
        let name = file.rsplit('/').next().expect("rsplit yields at least one part");
        let is_first = PartName::of(name).is_none_or(|part| part.number == 1);
        let is_other = name.starts_with("mmproj") || name.contains("imatrix");
        name.ends_with(".gguf") && is_first && !is_other
    };
    files.iter().map(String::as_str).filter(is_model).collect()
}

/// A GGUF file with all parts of the checkpoint that it is the first of.
fn checkpoint(first: &str, files: &[String]) -> Choice {
    let parts = PartName::of(first).filter(|part| part.number == 1);
    let others = files.iter().filter(|file| {
        let other = PartName::of(file);
        let is_of = |part: PartName<'_>, other: PartName<'_>| {
            (part.stem, part.count) == (other.stem, other.count) && other.number > 1
        };
        parts.zip(other).is_some_and(|(part, other)| is_of(part, other))
    });
    Choice {
        files: std::iter::once(first.to_owned()).chain(others.cloned()).collect(),
        is_folder: false,
    }
}

fn names(model: &HubModel, checkpoints: &[&str]) -> Vec<String> {
    checkpoints
        .iter()
        .map(|file| format!("{}:{file}", model.id))
        .collect()
}

fn ambiguous(model: &HubModel, checkpoints: &[&str]) -> HubError {
    HubError::Ambiguous {
        model: model.to_string(),
        choices: names(model, checkpoints),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(model: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
        let model = model.parse().expect("a model's name");
        let choice = choose(&model, LoadFormat::Auto, &files).map_err(|error| error.to_string())?;
        Ok(choice.files)
    }

    const FILES: [&str; 8] = [
        "mmproj-F16.gguf",
        "imatrix_unsloth.gguf",
        "Model-1B-Instruct-Q4_K_M.gguf",
        "Model-1B-Instruct-UD-Q4_K_M.gguf",
        "Model-1B-Instruct-UD-Q2_K_XL.gguf",
        "Model-1B-Instruct.q8_0.gguf",
        "BF16/Model-1B-BF16-00001-of-00002.gguf",
        "BF16/Model-1B-BF16-00002-of-00002.gguf",
    ];

    #[test]
    fn a_quantization_names_its_file_or_all_its_parts() {
        for (name, expected) in [
            ("o/m:Q4_K_M", &["Model-1B-Instruct-Q4_K_M.gguf"][..]),
            ("o/m:q4_k_m", &["Model-1B-Instruct-Q4_K_M.gguf"]),
            ("o/m:UD-Q4_K_M", &["Model-1B-Instruct-UD-Q4_K_M.gguf"]),
            ("o/m:Q2_K_XL", &["Model-1B-Instruct-UD-Q2_K_XL.gguf"]),
            ("o/m@v1:Q8_0", &["Model-1B-Instruct.q8_0.gguf"]),
            (
                "o/m:bf16",
                &[
                    "BF16/Model-1B-BF16-00001-of-00002.gguf",
                    "BF16/Model-1B-BF16-00002-of-00002.gguf",
                ],
            ),
            ("o/m", &["Model-1B-Instruct-Q4_K_M.gguf"]),
        ] {
            assert_eq!(chosen(name, &FILES).expect("there is one"), expected, "{name}");
        }
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        let error = chosen("o/m:Q4_K", &FILES).expect_err("no such quantization");
        let expected = "o/m has no GGUF file in Q4_K; it has o/m:Model-1B-Instruct-Q4_K_M.gguf, ";
        assert!(
            error.starts_with(expected) && !error.contains("mmproj"),
            "{error}"
        );
        assert!(
            error.contains("o/m:BF16/Model-1B-BF16-00001-of-00002.gguf"),
            "{error}"
        );
        assert!(!error.contains("00002-of-00002"), "{error}");
        let error = chosen("o/m:Q8_0", &["a-Q8_0.gguf", "b-Q8_0.gguf"]).expect_err("two of them");
        assert!(
            error.contains("name one: o/m:a-Q8_0.gguf, o/m:b-Q8_0.gguf"),
            "{error}"
        );
        let error = chosen("o/m", &["a-Q8_0.gguf", "b-Q4_0.gguf"]).expect_err("two of them");
        assert!(
            error.contains("name one: o/m:a-Q8_0.gguf, o/m:b-Q4_0.gguf"),
            "{error}"
        );
        for name in ["o/m:Q8_0", "o/m:a.gguf"] {
            let error = chosen(name, &["config.json", "model.safetensors"]).expect_err("no GGUF");
            assert!(error.contains("the hub has no o/m@main:"), "{error}");
        }
    }
}
