//! A model file: what it says about itself, and loading it.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use arbora_kernels::{Backend, BackendError};

use super::config::DecoderConfig;
use super::decoder::{Decoder, ForwardLimits};
use super::gguf::{Gguf, GgufError, TensorType};
use super::metadata::KeyError;
use super::weights::WeightSource;
use crate::tokenizer::{Tokenizer, TokenizerError};

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
    /// A metadata key is missing or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The tokenizer cannot be rebuilt.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
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
        expected: &'static str,
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

/// An open model file whose header has been read and checked.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    file: File,
    gguf: Gguf,
    config: DecoderConfig,
}

impl ModelFile {
    /// Opens a GGUF file and reads its header; no weights yet.
    pub fn open(path: &Path) -> Result<ModelFile, LoadError> {
        let opened = File::open(path).and_then(|file| {
            let n_bytes = file.metadata()?.len();
            Ok((file, n_bytes))
        });
        let (file, n_bytes) = opened.map_err(|source| LoadError::Open {
            path: path.to_owned(),
            source,
        })?;
        let gguf = Gguf::read(BufReader::with_capacity(1 << 16, &file), n_bytes)?;
        let config = DecoderConfig::from_gguf(&gguf)?;
        Ok(ModelFile {
            path: path.to_owned(),
            file,
            gguf,
            config,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The decoder it describes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The whole header.
    pub fn header(&self) -> &Gguf {
        &self.gguf
    }

    /// Builds the tokenizer. Takes tens of milliseconds; run it beside [`ModelFile::load_decoder`].
    pub fn tokenizer(&self) -> Result<Tokenizer, LoadError> {
        Ok(Tokenizer::from_metadata(&self.gguf.metadata)?)
    }

    /// The chat template (Jinja), where the file has one.
    pub fn chat_template(&self) -> Result<Option<&str>, LoadError> {
        Ok(self.gguf.metadata.text("tokenizer.chat_template")?)
    }

    /// The model's name: the file's own word for it, else the file's name.
    pub fn name(&self) -> String {
        match self.gguf.metadata.text("general.name") {
            Ok(Some(name)) if !name.trim().is_empty() => name.to_owned(),
            _ => self
                .path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        }
    }

    /// Weights in the file.
    pub fn n_params(&self) -> u64 {
        let counts = self.gguf.tensors.iter().map(|tensor| tensor.n_elements());
        // The sizes of tensors in unknown formats are anybody's word.
        counts.fold(0, u64::saturating_add)
    }

    /// How most of the weights are stored, `Q4_1` for example.
    pub fn quantization(&self) -> String {
        let mut n_elements: Vec<(TensorType, u64)> = Vec::new();
        for tensor in &self.gguf.tensors {
            match n_elements.iter_mut().find(|(kind, _)| *kind == tensor.kind) {
                Some((_, n)) => *n = n.saturating_add(tensor.n_elements()),
                None => n_elements.push((tensor.kind, tensor.n_elements())),
            }
        }
        let most = n_elements.iter().max_by_key(|(_, n)| *n);
        most.map_or_else(String::new, |(kind, _)| kind.to_string())
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
            file: &self.file,
            gguf: &self.gguf,
            config: &self.config,
        };
        let weights = source.load(backend, context)?;
        Decoder::new(backend, self.config.clone(), weights, limits).map_err(LoadError::Activations)
    }
}
