//! Which models a server has: `--model` once or several times, or tables `[[models]]` of the file.

use std::time::Duration;

use arbora_kernels::quant::Format;
use arbora_runtime::model::quantize::Quantization;
use serde::{Deserialize, Deserializer};

use super::choice::choice;
use super::device::{DEVICES, DeviceChoice};
use super::{ByteSize, ConfigError, KvSize, Options, bad_value};
use crate::models::{DEFAULT_MODEL, served_name};

/// Largest weight of a model.
const MAX_WEIGHT: u32 = 1000;
/// Most models of a server.
const MAX_MODELS: usize = 1000;

/// A table `[[models]]`. What it does not say is as the options without a table say.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelTable {
    /// As `--model`.
    pub model: String,
    /// As `--served-model-name`.
    pub name: Option<String>,
    /// Other names that clients may use for it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// As `--context`.
    pub context: Option<usize>,
    /// As `--kv-memory`.
    pub kv_memory: Option<ByteSize>,
    /// As `--kv-pages`.
    pub kv_pages: Option<usize>,
    /// As `--quantize`.
    pub quantize: Option<String>,
    /// As `--device`.
    pub device: Option<String>,
    /// Its part of the time of the cores, beside other models that want to compute: 1 unless told.
    pub weight: Option<u32>,
    /// Loaded when it is asked for first, not at the start.
    #[serde(default)]
    pub on_demand: bool,
    /// Seconds after which it is unloaded when nobody asked for it; never unless told.
    pub keep_alive: Option<u64>,
}

/// A model of a server, decided.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Path, alias or name on the hub.
    pub model: String,
    /// Its name for clients.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Most tokens of prompt and output; the model's where absent.
    pub context: Option<usize>,
    /// Size of the KV pool.
    pub kv: KvSize,
    /// What its matrices become; absent where they stay as they are.
    pub quantize: Option<Format>,
    /// What computes.
    pub device: DeviceChoice,
    /// Its part of the time of the cores.
    pub weight: u32,
    /// Loaded when it is asked for first.
    pub on_demand: bool,
    /// After which it is unloaded when nobody asked for it.
    pub keep_alive: Option<Duration>,
}

/// A word, or several.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a string or a list of strings")]
    enum Written {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::One(word) => vec![word],
        Written::Many(words) => words,
    })
}

/// The models of `over`, or those of `under` where it names none.
pub(super) fn merge(over: &Options, under: &Options) -> (Vec<String>, Vec<ModelTable>) {
    match over.model.is_empty() && over.models.is_empty() {
        true => (under.model.clone(), under.models.clone()),
        false => (over.model.clone(), over.models.clone()),
    }
}

/// Every model, at least one; the first is the one where a request names none.
pub(super) fn decide(options: &Options) -> Result<Vec<ModelConfig>, ConfigError> {
    let tables = match (options.model.as_slice(), options.models.as_slice()) {
        ([], []) => vec![ModelTable::of(DEFAULT_MODEL)],
        (models, []) => models.iter().map(|model| ModelTable::of(model)).collect(),
        ([], tables) => tables.to_vec(),
        _ => return Err(ConfigError::ModelsTwice),
    };
    if tables.len() > MAX_MODELS {
        return Err(bad_value(
            "model",
            format!("given at most {MAX_MODELS} times"),
            tables.len(),
        ));
    }
    if tables.len() > 1 && options.served_model_name.is_some() {
        return Err(ConfigError::OneNameForSeveral {
            n_models: tables.len(),
        });
    }
    let decided = tables.into_iter().map(|table| table.decide(options));
    let decided: Vec<ModelConfig> = decided.collect::<Result<_, _>>()?;
    let mut names: Vec<&str> = decided.iter().flat_map(ModelConfig::names).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ConfigError::SameName {
            name: pair[0].to_owned(),
        }),
        None => Ok(decided),
    }
}

/// A model without a name or a place, as it is where nothing else is said about it.
pub(super) fn defaults(options: &Options) -> Result<ModelConfig, ConfigError> {
    ModelTable::default().decide(options)
}

impl ModelTable {
    fn of(model: &str) -> Self {
        ModelTable {
            model: model.to_owned(),
            ..ModelTable::default()
        }
    }

    fn decide(self, options: &Options) -> Result<ModelConfig, ConfigError> {
        let kv = match (self.kv_memory, self.kv_pages) {
            (None, None) => kv_size(options.kv_memory, options.kv_pages)?,
            (memory, pages) => kv_size(memory, pages)?,
        };
        let weight = self.weight.unwrap_or(1);
        if !(1..=MAX_WEIGHT).contains(&weight) {
            return Err(bad_value(
                "models.weight",
                format!("in [1, {MAX_WEIGHT}]"),
                weight,
            ));
        }
        let name = self.name.or_else(|| options.served_model_name.clone());
        let quantize = self.quantize.or_else(|| options.quantize.clone());
        let device = self.device.or_else(|| options.device.clone());
        Ok(ModelConfig {
            name: name.unwrap_or_else(|| served_name(&self.model)),
            model: self.model,
            aliases: self.aliases,
            context: self.context.or(options.context),
            kv,
            quantize: choice("quantize", &Quantization::NAMES, quantize)?,
            device: choice("device", &DEVICES, device)?.unwrap_or_default(),
            weight,
            on_demand: self.on_demand,
            keep_alive: self.keep_alive.map(Duration::from_secs),
        })
    }
}

impl ModelConfig {
    /// Every name for it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name)
            .chain(&self.aliases)
            .map(String::as_str)
    }
}

fn kv_size(memory: Option<ByteSize>, pages: Option<usize>) -> Result<KvSize, ConfigError> {
    match (memory, pages) {
        (None, None) => Ok(KvSize::Contexts(8)),
        (Some(ByteSize(bytes)), None) => Ok(KvSize::Bytes(bytes)),
        (None, Some(pages)) => Ok(KvSize::Pages(pages)),
        (Some(_), Some(_)) => Err(ConfigError::KvTwice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(text: &str) -> Result<Vec<ModelConfig>, String> {
        let options: Options = toml::from_str(text).map_err(|error| error.to_string())?;
        options
            .resolve()
            .map(|config| config.models)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn models_are_named_one_by_one_or_in_tables() {
        let names = |text| -> Vec<String> {
            let models = decided(text).expect("valid");
            models.into_iter().map(|model| model.name).collect()
        };
        assert_eq!(names(""), ["smollm2:135m"]);
        assert_eq!(names("model = './a/b.gguf'"), ["b"]);
        assert_eq!(names("model = ['./a/b.gguf', 'c']"), ["b", "c"]);
        assert_eq!(
            names("[[models]]\nmodel = 'a.gguf'\nname = 'x'\n[[models]]\nmodel = 'c'"),
            ["x", "c"]
        );
    }

    #[test]
    fn a_table_goes_over_what_is_said_for_all() {
        let text = "context = 100\nquantize = 'q8_0'\nkv-pages = 9\n[[models]]\nmodel = 'a'\ncontext = 50\n\
                    quantize = 'q4_0'\nkv-memory = '1MiB'\nweight = 3\nkeep-alive = 60\non-demand = true\n\
                    [[models]]\nmodel = 'b'\naliases = ['c']";
        let models = decided(text).expect("valid");
        let [first, second] = models.as_slice() else {
            panic!("{models:?}");
        };
        assert_eq!((first.context, first.kv), (Some(50), KvSize::Bytes(1 << 20)));
        assert_eq!((first.quantize, first.weight), (Some(Format::Q4_0), 3));
        assert_eq!(
            (first.on_demand, first.keep_alive),
            (true, Some(Duration::from_secs(60)))
        );
        assert_eq!((second.context, second.kv), (Some(100), KvSize::Pages(9)));
        assert_eq!((second.quantize, second.weight), (Some(Format::Q8_0), 1));
        assert_eq!(second.names().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let refused = |text| decided(text).expect_err("invalid");
        let both = refused("model = 'a'\n[[models]]\nmodel = 'b'");
        assert!(both.contains("'model' and '[[models]]'"), "{both}");
        let named = refused("model = ['a', 'b']\nserved-model-name = 'x'");
        assert!(named.contains("2 models"), "{named}");
        let same = refused("model = ['./a/m.gguf', './b/m.gguf']");
        assert!(same.contains("'m'"), "{same}");
        let alias = refused("[[models]]\nmodel = 'a'\naliases = ['b']\n[[models]]\nmodel = 'b'");
        assert!(alias.contains("'b'"), "{alias}");
        let weight = refused("[[models]]\nmodel = 'a'\nweight = 0");
        assert!(weight.contains("[1, 1000], got '0'"), "{weight}");
        let unknown = refused("[[models]]\nmodel = 'a'\ncolour = 1");
        assert!(unknown.contains("colour"), "{unknown}");
        let number = refused("model = 7");
        assert!(number.contains("a string or a list of strings"), "{number}");
    }
}
