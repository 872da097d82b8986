//! Models from a hub: `owner/name[@revision][:file or :quantization]`, downloaded once, files in parallel,
//! into the cache that all programs which use the hub share.
//!
//! ```text
//! list the revision's files ─► choose what the model needs ─► fetch what is not cached ─► a path
//!      (not when offline)          one GGUF model, or config, tokenizer and safetensors
//! ```
//!
//! A file appears in the cache whole and checked, or not at all. What an interruption leaves is one file
//! named `.incomplete`, which the next try continues.

mod cache;
mod choose;
mod client;
mod fetch;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use arbora_runtime::model::LoadFormat;
use arbora_runtime::model::directory::CONFIG_FILE;
use arbora_runtime::model::gguf::PartName;
use arbora_runtime::model::safetensors::{INDEX_FILE, SafetensorsError, shard_names};

use crate::models::Fetching;
pub use cache::{CachedModel, HubCache};
use choose::choose;
use client::Client;

/// Whose hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HubKind {
    /// Hugging Face's, or a mirror of it.
    #[default]
    HuggingFace,
    /// ModelScope's.
    ModelScope,
}

impl HubKind {
    /// Every hub by the name an operator gives.
    pub const NAMES: [(&str, HubKind); 2] = [
        ("huggingface", HubKind::HuggingFace),
        ("modelscope", HubKind::ModelScope),
    ];
}

impl FromStr for HubKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = HubKind::NAMES.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, kind)| *kind)
            .ok_or_else(|| "must be huggingface or modelscope".to_owned())
    }
}

/// Which hub, and where its files are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// Whose it is.
    pub kind: HubKind,
    /// Address without a slash at its end.
    pub endpoint: String,
    /// Sent to the endpoint, and to no other host.
    pub token: Option<String>,
    /// Folder with one folder per model.
    pub cache: PathBuf,
    /// Nothing is fetched; what is in the cache is all there is.
    pub offline: bool,
}

/// A model on a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// `owner/name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// The one file wanted, or the quantization of it, where the name has one.
    pub file: Option<String>,
}

const DEFAULT_REVISION: &str = "main";
const MAX_NAME_BYTES: usize = 96;

/// Why there is no model from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither model nor file is known there, or it is private.
    #[error("the hub has no {what}; a private model needs HF_TOKEN")]
    NotFound {
        /// Model, revision or file.
        what: String,
    },
    /// The hub wants to know who asks.
    #[error(
        "the hub answered {status} for {what}: set HF_TOKEN to a token that may read it (a gated model asks for \
         its terms to be accepted on its page first)"
    )]
    Unauthorized {
        /// Model, revision or file.
        what: String,
        /// 401 or 403.
        status: u16,
    },
    /// Another status, after all tries where trying again could help.
    #[error("the hub answered {status} for {what}")]
    Status {
        /// Model, revision or file.
        what: String,
        /// What it was.
        status: u16,
    },
    /// No answer, or one that broke off, after all tries.
    #[error("no answer for {what}: {reason}")]
    Unreachable {
        /// Model, revision or file.
        what: String,
        /// The last try's error.
        reason: String,
    },
    /// An answer that makes no sense.
    #[error("the hub's answer for {what} makes no sense: {reason}")]
    BadAnswer {
        /// Model, revision or file.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A file with other bytes than announced.
    #[error("{file} has SHA-256 {found}, the hub announced {expected}; it was removed")]
    WrongHash {
        /// The file.
        file: String,
        /// Of the bytes that came.
        found: String,
        /// Announced.
        expected: String,
    },
    /// A file with another length than announced.
    #[error("{file} has {found} bytes, the hub announced {expected}; it was removed")]
    WrongLength {
        /// The file.
        file: String,
        /// Bytes that came.
        found: u64,
        /// Announced.
        expected: u64,
    },
    /// A file in the cache whose bytes are not those of its name, and no hub to fetch it anew from.
    #[error("{} has SHA-256 {found}, expected {expected}: remove it and fetch it anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Of its bytes.
        found: String,
        /// What it was fetched as.
        expected: String,
    },
    /// Offline, and not in the cache.
    #[error("{model} is not in {} and HF_HUB_OFFLINE is set", cache.display())]
    Offline {
        /// As asked for.
        model: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The repository has nothing this server can load.
    #[error("{model} has neither a GGUF file nor {CONFIG_FILE} with safetensors")]
    NothingToLoad {
        /// As asked for.
        model: String,
    },
    /// Several GGUF files and no word on which.
    #[error("{model} has several GGUF files; name one: {}", choices.join(", "))]
    Ambiguous {
        /// As asked for.
        model: String,
        /// `owner/name:file` of each.
        choices: Vec<String>,
    },
    /// No GGUF file in the quantization asked for.
    #[error("{model} has no GGUF file in {wanted}; it has {}", choices.join(", "))]
    NoSuchQuantization {
        /// `owner/name`.
        model: String,
        /// What was asked for.
        wanted: String,
        /// `owner/name:file` of each that is there.
        choices: Vec<String>,
    },
    /// There is no room for what is missing.
    #[error(
        "no space for {model} on the disk of {}: {n_bytes} bytes are to be fetched, {available} are free",
        cache.display()
    )]
    DiskFull {
        /// As asked for.
        model: String,
        /// Of the files that are not in the cache.
        n_bytes: u64,
        /// Free bytes.
        available: u64,
        /// The cache.
        cache: PathBuf,
    },
    /// The index of the shards is not usable.
    #[error(transparent)]
    Index(#[from] SafetensorsError),
    /// The cache could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Cache {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The operator gave up waiting.
    #[error("fetching the model was interrupted")]
    Interrupted,
}

impl FromStr for HubModel {
    type Err = ();

    /// `owner/name[@revision][:file]`; an error where the text is something else.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (id, revision) = rest.split_once('@').unwrap_or((rest, DEFAULT_REVISION));
        let (owner, name) = id.split_once('/').ok_or(())?;
        let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = |part: &str| {
            let starts_well = part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
            starts_well && part.len() <= MAX_NAME_BYTES && part.chars().all(is_safe)
        };
        let is_revision = !revision.is_empty() && revision.split('/').all(is_name);
        if !is_name(owner) || !is_name(name) || !is_revision || !file.is_none_or(is_file_name) {
            return Err(());
        }
        Ok(HubModel {
            id: id.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

impl std::fmt::Display for HubModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

/// A path within a repository that cannot lead out of the folder it is put in.
fn is_file_name(path: &str) -> bool {
    let is_part = |part: &str| {
        let plain = |c: char| c.is_ascii_graphic() && !"\\:*?\"<>|%#".contains(c);
        !part.is_empty() && part != "." && part != ".." && part.chars().all(plain)
    };
    path.len() <= 512 && path.split('/').all(is_part)
}

/// How often and how patiently the hub is asked.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Tries in a row without a new byte.
    tries: u32,
    /// Before the second try; doubles with each.
    pause: Duration,
    /// Longest silence.
    silence: Duration,
}

const PATIENCE: Patience = Patience {
    tries: 5,
    pause: Duration::from_millis(500),
    silence: Duration::from_secs(30),
};

/// A hub and its cache.
pub struct Hub {
    settings: HubSettings,
    client: Client,
    cache: HubCache,
}

impl Hub {
    /// The hub that `settings` describe; nothing is asked yet.
    pub fn new(settings: HubSettings) -> Hub {
        Hub::with_patience(settings, PATIENCE)
    }

    fn with_patience(settings: HubSettings, patience: Patience) -> Hub {
        Hub {
            client: Client::new(&settings, patience),
            cache: HubCache::new(settings.cache.clone()),
            settings,
        }
    }

    /// Path of the GGUF file, or of the folder, with all that loading `model` needs.
    ///
    /// # Errors
    /// When it is neither cached nor to be had, or the cache cannot be used.
    pub fn resolve(&self, model: &HubModel, fetching: &Fetching) -> Result<PathBuf, HubError> {
        let interrupted = &*fetching.interrupted;
        if self.settings.offline {
            return self.cached(model, fetching)?.ok_or_else(|| HubError::Offline {
                model: model.to_string(),
                cache: self.settings.cache.clone(),
            });
        }
        let listing = match self.client.list(model, interrupted) {
            Err(HubError::Unreachable { what, reason }) => {
                let Some(path) = self.cached(model, fetching)? else {
                    return Err(HubError::Unreachable { what, reason });
                };
                tracing::warn!(%model, reason, "the hub does not answer; taking what is cached");
                return Ok(path);
            }
            listing => listing?,
        };
        let choice = choose(model, fetching.format, &listing.names())?;
        let first = self.fetch_all(model, &listing, &choice.files, fetching)?;
        self.cache.keep_revision(model, &listing.commit)?;
        Ok(match choice.is_folder {
            true => self.cache.snapshot(model, &listing.commit),
            false => first,
        })
    }

    /// The same from the cache alone, where it is all there.
    fn cached(&self, model: &HubModel, fetching: &Fetching) -> Result<Option<PathBuf>, HubError> {
        let Some((path, files)) = self.cached_files(model, fetching.format) else {
            return Ok(None);
        };
        for file in &files {
            self.cache.verify(model, file, fetching)?;
        }
        Ok(Some(path))
    }

    /// What loading `model` takes, and every file of it, where they are all in the cache.
    fn cached_files(&self, model: &HubModel, format: LoadFormat) -> Option<(PathBuf, Vec<PathBuf>)> {
        let commit = self.cache.commit(model)?;
        let snapshot = self.cache.snapshot(model, &commit);
        let choice = choose(model, format, &self.cache.files(&snapshot)).ok()?;
        let mut files = choice.files;
        let path = match choice.is_folder {
            true => snapshot.clone(),
            false => snapshot.join(&files[0]),
        };
        if !choice.is_folder && !has_all_parts(&files) {
            return None;
        }
        if files.iter().any(|file| file == INDEX_FILE) {
            let path = snapshot.join(INDEX_FILE);
            files.extend(shard_names(&path, &std::fs::read(&path).ok()?).ok()?);
        }
        let files: Vec<PathBuf> = files.iter().map(|file| snapshot.join(file)).collect();
        files.iter().all(|file| file.is_file()).then_some((path, files))
    }
}

/// Whether the parts of a split GGUF checkpoint are all there, by their number.
fn has_all_parts(files: &[String]) -> bool {
    let part = PartName::of(&files[0]);
    part.is_none_or(|part| part.number != 1 || part.count == files.len() as u64)
}
