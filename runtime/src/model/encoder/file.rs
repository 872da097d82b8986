//! An encoder's folder: what it says about itself, and loading it.

use std::fs::File;
use std::path::{Path, PathBuf};

use arbora_kernels::encoder::EncoderBackend;

use super::super::LoadError;
use super::super::directory::{CONFIG_FILE, Directory, DirectoryError, TOKENIZER_FILE, read_object};
use super::super::safetensors::Safetensors;
use super::super::tensors::TensorTable;
use super::config::{EncoderConfig, Purpose};
use super::forward::{Encoder, EncoderLimits};
use super::head::{self, Head, Pooling, SentenceSettings};
use super::texts::{TextLimits, TextTokenizer};
use super::weights::{EncoderSource, TensorSource};

/// An open folder whose settings have been read and checked.
#[derive(Debug)]
pub struct EncoderFile {
    path: PathBuf,
    directory: Directory,
    files: Vec<File>,
    tensors: TensorTable,
    config: EncoderConfig,
    head: Head,
    settings: SentenceSettings,
    max_tokens: usize,
}

impl EncoderFile {
    /// Whether the model at `path` is an encoder: a folder whose `config.json` says so.
    pub fn is_at(path: &Path) -> bool {
        let config = read_object(&path.join(CONFIG_FILE));
        matches!(config, Ok(Some(config)) if EncoderConfig::describes(&config))
    }

    /// What the folder at `path` says of its encoder; the weights may be elsewhere.
    ///
    /// # Errors
    /// As for [`EncoderFile::open`].
    pub fn describe(path: &Path) -> Result<(EncoderConfig, Head), LoadError> {
        let config = EncoderConfig::from_json(Directory::open(path)?.config())?;
        let (head, _) = head::read(path, config.width)?;
        Ok((config, head))
    }

    /// Opens the folder at `path`; of the weights only the head of a reranker is read.
    ///
    /// # Errors
    /// Where something is missing, or asks for what is not computed here.
    pub fn open(path: &Path) -> Result<EncoderFile, LoadError> {
        let directory = Directory::open(path)?;
        let config = EncoderConfig::from_json(directory.config())?;
        let Safetensors { files, tensors } = Safetensors::open(path)?;
        let (mut head, settings) = head::read(path, config.width)?;
        if config.purpose == Purpose::Rerank {
            let source = EncoderSource {
                tensors: TensorSource {
                    files: &files,
                    tensors: &tensors,
                },
                config: &config,
            };
            head = Head {
                pooling: Pooling::First,
                dense: source
                    .classifier(head::score_activation(directory.config())?)?
                    .into(),
                normalizes: false,
            };
        }
        let recommended = settings.max_tokens.or(directory.model_max_length());
        let max_tokens = recommended.unwrap_or(usize::MAX).clamp(1, config.n_positions);
        Ok(EncoderFile {
            max_tokens,
            path: path.to_owned(),
            directory,
            files,
            tensors,
            config,
            head,
            settings,
        })
    }

    /// What the encoder is.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// What becomes of the rows of a text.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Most tokens of a text: what the checkpoint recommends, at most what it can, unless told otherwise.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Sets the most tokens of a text.
    ///
    /// # Errors
    /// Where the model has fewer positions.
    pub fn set_max_tokens(&mut self, wanted: usize) -> Result<(), LoadError> {
        let limit = self.config.n_positions;
        if !(1..=limit).contains(&wanted) {
            return Err(LoadError::BadContext { wanted, limit });
        }
        self.max_tokens = wanted;
        Ok(())
    }

    /// Texts that are put before others, by name, and the name of the one that is where none is named.
    pub fn prompts(&self) -> (&[(String, String)], Option<&str>) {
        (&self.settings.prompts, self.settings.default_prompt.as_deref())
    }

    /// How most of the weights are stored, `F32` for example.
    pub fn format(&self) -> String {
        let kind = self.tensors.main_type();
        kind.map_or_else(String::new, |kind| kind.to_string())
    }

    /// Weights in the file.
    pub fn n_params(&self) -> u64 {
        self.tensors.n_elements()
    }

    /// Builds the tokenizer.
    ///
    /// # Errors
    /// Where there is none, or it does not fit the model.
    pub fn tokenizer(&self) -> Result<TextTokenizer, LoadError> {
        let path = self.path.join(TOKENIZER_FILE);
        let Some(json) = self.directory.tokenizer_json()? else {
            let source = std::io::ErrorKind::NotFound.into();
            return Err(DirectoryError::Io { path, source }.into());
        };
        let limits = TextLimits {
            max_tokens: self.max_tokens(),
            n_vocab: self.config.n_vocab,
            n_types: self.config.n_types,
            lowercases: self.settings.lowercases,
        };
        TextTokenizer::from_json(&json, limits).map_err(|source| LoadError::TextTokenizer { path, source })
    }

    /// Loads the weights for passes of up to `max_rows` rows, or as many as a text may have.
    ///
    /// # Errors
    /// Where a tensor is not what it should be, or there is no memory.
    pub fn load<B: EncoderBackend>(&self, backend: &mut B, max_rows: usize) -> Result<Encoder<B>, LoadError> {
        let max_text_rows = self.max_tokens();
        let limits = EncoderLimits {
            max_rows: max_rows.max(max_text_rows),
            max_text_rows,
        };
        let source = EncoderSource {
            tensors: TensorSource {
                files: &self.files,
                tensors: &self.tensors,
            },
            config: &self.config,
        };
        let weights = source.load(backend, max_text_rows)?;
        Encoder::new(backend, self.config.clone(), weights, limits).map_err(LoadError::Activations)
    }
}
