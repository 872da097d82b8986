//! A model, one GGUF file or a folder with safetensors: what it says about itself, and loading it.

use std::cell::Cell;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use arbora_kernels::cpu::packed_block_bytes;
use arbora_kernels::quant::Format;
use arbora_kernels::{Backend, BackendError};

use super::config::DecoderConfig;
use super::decoder::{Decoder, ForwardLimits};
use super::directory::{CONFIG_FILE, Directory, DirectoryError, SamplingDefaults, TOKENIZER_FILE};
use super::gguf::{Gguf, GgufError, GgufFiles, PartName, SplitError};
use super::metadata::{KeyError, Metadata};
use super::names::{HUGGING_FACE_HEADS, Part};
use super::packed::{self, Scheme};
use super::quantize::Quantization;
use super::safetensors::{Safetensors, SafetensorsError, has_safetensors};
use super::templates::{self, NamedTemplate};
use super::tensors::{TensorInfo, TensorTable, TensorType};
use super::weights::{Data, WeightSource};
use super::write::QUANTIZED_FILE;
use crate::tokenizer::{JsonSettings, Tokenizer, TokenizerError};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be opened.
    #[error("opening {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The header is not usable.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The parts of a split file are not usable together.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The folder is not usable.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its weights are not.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// Weights cannot be made up for this.
    #[error("{}: weights are made up for a folder with {CONFIG_FILE} only", path.display())]
    NoDummy {
        /// What was given.
        path: PathBuf,
    },
    /// The vocabulary does not fit the model.
    #[error("the tokenizer has {n_tokens} tokens, the embedding {n_vocab} rows")]
    VocabularyTooLarge {
        /// Tokens of the tokenizer.
        n_tokens: usize,
        /// Rows of the embedding.
        n_vocab: usize,
    },
    /// A metadata key is missing or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The tokenizer cannot be rebuilt.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer of an encoder cannot be used.
    #[error("{}: {source}", path.display())]
    TextTokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: tokenizers::Error,
    },
    /// No row of the family table fits.
    #[error("architecture `{found}` is not supported (supported: {})", known.join(", "))]
    UnknownArchitecture {
        /// The name in the file.
        found: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// The model needs something the decoder does not do.
    #[error("`{key}`{} is not supported", value.as_ref().map_or(String::new(), |value| format!(" = {value}")))]
    UnsupportedFeature {
        /// The key that asks for it.
        key: String,
        /// What it asks for, where that matters.
        value: Option<String>,
    },
    /// A tensor the family needs is not there.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor the family has no use for, but which would change the result.
    #[error("tensor `{name}` is not expected in this architecture")]
    UnexpectedTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of the wrong shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected}")]
    BadShape {
        /// Its name.
        name: String,
        /// Its dimensions, the fastest first.
        found: Vec<u64>,
        /// What is needed.
        expected: String,
    },
    /// A tensor in a format that is not read here.
    #[error("tensor `{name}` is stored as {kind}, expected {expected}")]
    UnsupportedFormat {
        /// Its name.
        name: String,
        /// Its format in the file.
        kind: TensorType,
        /// What is read here.
        expected: String,
    },
    /// A tensor with NaN or infinity where that cannot be.
    #[error("tensor `{name}` holds a number that is not finite")]
    NotFinite {
        /// Its name.
        name: String,
    },
    /// A tensor of factors with one that is not positive.
    #[error("tensor `{name}` holds a factor that is not positive")]
    NotPositive {
        /// Its name.
        name: String,
    },
    /// A quantized matrix whose tensors contradict each other or the settings.
    #[error("tensor `{name}`: {reason}")]
    BadQuantization {
        /// The matrix.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The weights are quantized already, or made up.
    #[error("{}: only weights in floating point are quantized, these are {kind}", path.display())]
    NotFloat {
        /// The model.
        path: PathBuf,
        /// How they are stored.
        kind: String,
    },
    /// There is no thread to quantize on.
    #[error("cannot start a thread to quantize weights: {0}; ask for fewer (--threads)")]
    QuantizeThread(#[source] std::io::Error),
    /// The quantized model could not be written.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Reading a tensor failed.
    #[error("reading tensor `{name}`: {source}")]
    ReadTensor {
        /// Its name.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The backend refused a tensor.
    #[error("tensor `{name}`: {source}")]
    Backend {
        /// Its name, or the first of its group's.
        name: String,
        /// What the backend said.
        source: BackendError,
    },
    /// The backend has no room for the activations.
    #[error("activations: {0}")]
    Activations(#[source] BackendError),
    /// A context of 0 or beyond what the model was made for.
    #[error("a context of {wanted} tokens: the model was made for 1 to {limit}")]
    BadContext {
        /// Tokens asked for.
        wanted: usize,
        /// The model's own.
        limit: usize,
    },
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadFormat {
    /// The model's files, by what they are.
    #[default]
    Auto,
    /// Made up from `config.json` alone, for benchmarks.
    Dummy,
}

impl LoadFormat {
    /// Every format by the name an operator gives.
    pub const NAMES: [(&str, LoadFormat); 2] = [("auto", LoadFormat::Auto), ("dummy", LoadFormat::Dummy)];
}

/// What describes the model.
#[derive(Debug)]
enum Description {
    Gguf(Metadata),
    Directory(Directory),
}

/// The bytes of its weights.
#[derive(Debug)]
enum Weights {
    Files {
        files: Vec<File>,
        tensors: TensorTable,
    },
    Dummy {
        format: Format,
        /// What the model's own weights take, where they are quantized.
        own: Option<Format>,
    },
}

/// An open model whose header or settings have been read and checked.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    description: Description,
    weights: Weights,
    config: DecoderConfig,
    quantization: Option<Quantization>,
}

impl ModelFile {
    /// Opens a GGUF file (of a split one, the first part) or a folder with safetensors and reads what
    /// describes it; no weights yet.
    pub fn open(path: &Path) -> Result<ModelFile, LoadError> {
        ModelFile::open_as(path, LoadFormat::Auto)
    }

    /// As [`ModelFile::open`], with weights from where `format` says.
    pub fn open_as(path: &Path, format: LoadFormat) -> Result<ModelFile, LoadError> {
        match (path.is_dir(), format) {
            (true, format) => open_directory(path, format),
            (false, LoadFormat::Auto) => open_gguf(path),
            (false, LoadFormat::Dummy) => {
                let path = path.to_owned();
                Err(LoadError::NoDummy { path })
            }
        }
    }

    /// The same model with its matrices quantized while they are loaded.
    ///
    /// # Errors
    /// When most of its weights are quantized already, or are made up.
    pub fn quantized(mut self, quantization: Quantization) -> Result<ModelFile, LoadError> {
        let main_type = match &self.weights {
            Weights::Files { tensors, .. } => tensors.main_type(),
            Weights::Dummy { .. } => None,
        };
        let format = main_type.and_then(TensorType::format);
        if format.is_none_or(Format::is_quantized) {
            return Err(LoadError::NotFloat {
                path: self.path,
                kind: main_type.map_or_else(|| "made up".to_owned(), |kind| kind.to_string()),
            });
        }
        self.quantization = Some(quantization);
        Ok(self)
    }

    /// How its matrices are quantized while they are loaded, where they are.
    pub(super) fn plan(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// Where its tensors come from.
    pub(super) fn data(&self) -> Data<'_> {
        match &self.weights {
            Weights::Files { files, tensors } => Data::Files { files, tensors },
            Weights::Dummy { format, .. } => Data::Dummy { format: *format },
        }
    }

    /// What a tensor has in memory.
    pub(super) fn format_in_memory(&self, tensor: &TensorInfo) -> Option<Format> {
        let quantization = self.quantization.as_ref();
        let target = quantization.and_then(|quantization| quantization.target(&self.config, tensor));
        target.or(tensor.weights().map(|(format, _)| format))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The decoder it describes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The metadata of a GGUF file; nothing of a folder.
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        match &self.description {
            Description::Gguf(metadata) => Some(metadata),
            Description::Directory(_) => None,
        }
    }

    /// Builds the tokenizer. Takes tens of milliseconds; run it beside [`ModelFile::load_decoder`].
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        let n_vocab = self.config.n_vocab;
        let tokenizer = match &self.description {
            Description::Gguf(metadata) => Tokenizer::from_metadata(metadata)?,
            Description::Directory(directory) => match (directory.tokenizer_json()?, &self.weights) {
                (Some(json), _) => Tokenizer::from_json(&json, &self.json_settings(directory)?)?,
                (None, Weights::Dummy { .. }) => Tokenizer::of_bytes(n_vocab),
                (None, Weights::Files { .. }) => {
                    let bytes = directory.sentencepiece()?.ok_or_else(|| DirectoryError::Io {
                        path: self.path.join(TOKENIZER_FILE),
                        source: std::io::ErrorKind::NotFound.into(),
                    })?;
                    let settings = self.json_settings(directory)?;
                    Tokenizer::from_sentencepiece(&bytes, directory.added_tokens(), &settings)?
                }
            },
        };
        let n_tokens = tokenizer.n_vocab();
        if n_tokens > n_vocab {
            return Err(LoadError::VocabularyTooLarge { n_tokens, n_vocab });
        }
        Ok(tokenizer)
    }

    fn json_settings<'a>(&self, directory: &'a Directory) -> Result<JsonSettings<'a>, LoadError> {
        Ok(JsonSettings {
            bos: directory.special_token("bos_token"),
            eos: directory.special_token("eos_token"),
            pad: directory.special_token("pad_token"),
            add_bos: directory.add_bos(),
            eos_token_ids: directory.eos_token_ids()?,
            n_vocab: self.config.n_vocab,
        })
    }

    /// The chat templates, none or several.
    pub fn chat_templates(&self) -> Result<Vec<NamedTemplate>, LoadError> {
        Ok(match &self.description {
            Description::Gguf(metadata) => templates::from_metadata(metadata)?,
            Description::Directory(directory) => directory.chat_templates()?,
        })
    }

    /// What the model recommends where a request does not say. GGUF files recommend nothing.
    pub fn sampling_defaults(&self) -> Result<SamplingDefaults, LoadError> {
        Ok(match &self.description {
            Description::Gguf(_) => SamplingDefaults::default(),
            Description::Directory(directory) => directory.sampling_defaults()?,
        })
    }

    /// The architecture in the file's words.
    pub fn architecture(&self) -> String {
        let name = match &self.description {
            Description::Gguf(metadata) => metadata.text("general.architecture").ok().flatten(),
            Description::Directory(directory) => {
                let first = directory
                    .config()
                    .get("architectures")
                    .and_then(|names| names.get(0));
                first
                    .or(directory.config().get("model_type"))
                    .and_then(|name| name.as_str())
            }
        };
        name.expect("the family was found by it").to_owned()
    }

    /// The model's name: the file's own word for it, else the name of the file or folder.
    pub fn name(&self) -> String {
        let own = self.gguf_metadata().map(|metadata| metadata.text("general.name"));
        match own {
            Some(Ok(Some(name))) if !name.trim().is_empty() => name.to_owned(),
            _ => path_name(&self.path),
        }
    }

    /// Weights in the file.
    pub fn n_params(&self) -> u64 {
        match &self.weights {
            Weights::Files { tensors, .. } => tensors.n_elements(),
            Weights::Dummy { .. } => self.config.n_params(),
        }
    }

    /// Bytes the weights take in memory, repacked.
    pub fn weight_bytes(&self) -> u64 {
        match &self.weights {
            Weights::Files { tensors, .. } => {
                let sizes = tensors.iter().filter_map(|tensor| self.bytes_in_memory(tensor));
                sizes.fold(0, u64::saturating_add)
            }
            Weights::Dummy { format, own } => {
                let format = own.unwrap_or(*format);
                let n_blocks = self.config.n_params() / format.block_len() as u64;
                n_blocks * packed_block_bytes(format) as u64
            }
        }
    }

    /// Bytes of weights that are read from memory for a token of one sequence: all but an embedding that is
    /// not the head too, of which a row is read.
    pub fn token_bytes(&self) -> u64 {
        let Weights::Files { tensors, .. } = &self.weights else {
            return self.weight_bytes();
        };
        let embedding = match self.config.tied_head {
            true => None,
            false => tensors.named(&self.config.tensors.outer(Part::Embedding)),
        };
        let unread = embedding.and_then(|tensor| self.bytes_in_memory(tensor));
        self.weight_bytes().saturating_sub(unread.unwrap_or(0))
    }

    fn bytes_in_memory(&self, tensor: &TensorInfo) -> Option<u64> {
        let format = self.format_in_memory(tensor)?;
        let (_, n_weights) = tensor.weights()?;
        let n_blocks = n_weights / format.block_len() as u64;
        Some(n_blocks.saturating_mul(packed_block_bytes(format) as u64))
    }

    /// How most of the weights are kept, `Q4_1` for example.
    pub fn quantization(&self) -> String {
        if let Some(quantization) = &self.quantization {
            return quantization.format.name().to_owned();
        }
        match &self.weights {
            Weights::Files { tensors, .. } => tensors
                .main_type()
                .map_or_else(String::new, |kind| kind.to_string()),
            Weights::Dummy { format, own } => own.unwrap_or(*format).name().to_owned(),
        }
    }

    /// Loads the weights into `backend` for sequences of up to `context` tokens and steps within `limits`.
    pub fn load_decoder<B: Backend>(
        &self,
        backend: &mut B,
        context: usize,
        limits: ForwardLimits,
    ) -> Result<Decoder<B>, LoadError> {
        if !(1..=self.config.context).contains(&context) {
            return Err(LoadError::BadContext {
                wanted: context,
                limit: self.config.context,
            });
        }
        let source = WeightSource {
            data: self.data(),
            config: &self.config,
            quantization: self.quantization.as_ref(),
            n_done: Cell::new(0),
        };
        let weights = source.load(backend, context)?;
        Decoder::new(backend, self.config.clone(), weights, limits).map_err(LoadError::Activations)
    }
}

/// The stem of a file's name (of a part, what all parts share), the whole name of a folder: `Llama-3.2-1B`
/// has no extension.
pub fn path_name(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = absolute
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    if path.is_dir() {
        return name;
    }
    match PartName::of(&name) {
        Some(part) => part.stem.to_owned(),
        None => absolute
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    }
}

pub(super) fn read_gguf(path: &Path) -> Result<(File, Gguf), LoadError> {
    let opened = File::open(path).and_then(|file| {
        let n_bytes = file.metadata()?.len();
        Ok((file, n_bytes))
    });
    let (file, n_bytes) = opened.map_err(|source| LoadError::Open {
        path: path.to_owned(),
        source,
    })?;
    let gguf = Gguf::read(BufReader::with_capacity(1 << 16, &file), n_bytes)?;
    Ok((file, gguf))
}

fn open_gguf(path: &Path) -> Result<ModelFile, LoadError> {
    let (file, gguf) = read_gguf(path)?;
    let GgufFiles { files, gguf } = GgufFiles::complete(path, file, gguf)?;
    let config = DecoderConfig::from_gguf(&gguf)?;
    Ok(ModelFile {
        path: path.to_owned(),
        description: Description::Gguf(gguf.metadata),
        weights: Weights::Files {
            files,
            tensors: gguf.tensors,
        },
        config,
        quantization: None,
    })
}

fn open_directory(path: &Path, format: LoadFormat) -> Result<ModelFile, LoadError> {
    let directory = Directory::open(path)?;
    let scheme = Scheme::of(directory.config())?;
    let (weights, has_head) = match format {
        LoadFormat::Auto => {
            let Safetensors { files, tensors } = open_weights(path)?;
            let tensors = match &scheme {
                None => tensors,
                Some(scheme) => packed::join(&tensors, scheme)?,
            };
            let has_head = HUGGING_FACE_HEADS
                .iter()
                .any(|name| tensors.named(name).is_some());
            (Weights::Files { files, tensors }, has_head)
        }
        LoadFormat::Dummy => {
            let format = dummy_format(&directory)?;
            let own = scheme.map(|scheme| scheme.usual_format());
            (Weights::Dummy { format, own }, true)
        }
    };
    let config = DecoderConfig::from_json(directory.config(), has_head)?;
    Ok(ModelFile {
        path: path.to_owned(),
        description: Description::Directory(directory),
        weights,
        config,
        quantization: None,
    })
}

/// The weights of a folder: safetensors, or where there are none, what `arbora quantize` made of some.
fn open_weights(folder: &Path) -> Result<Safetensors, LoadError> {
    let path = folder.join(QUANTIZED_FILE);
    if has_safetensors(folder) || !path.is_file() {
        return Ok(Safetensors::open(folder)?);
    }
    let (file, gguf) = read_gguf(&path)?;
    Ok(Safetensors {
        files: vec![file],
        tensors: gguf.tensors,
    })
}

/// The format that `config.json` says the weights have.
fn dummy_format(directory: &Directory) -> Result<Format, KeyError> {
    let config = directory.config();
    let Some((key, value)) = ["dtype", "torch_dtype"]
        .into_iter()
        .find_map(|key| Some((key, config.get(key)?.as_str()?)))
    else {
        return Ok(Format::Bf16);
    };
    match value {
        "float32" => Ok(Format::F32),
        "float16" => Ok(Format::F16),
        "bfloat16" => Ok(Format::Bf16),
        other => Err(KeyError::OutOfRange {
            key: key.to_owned(),
            value: other.to_owned(),
            limit: "float32, float16 or bfloat16".to_owned(),
        }),
    }
}
