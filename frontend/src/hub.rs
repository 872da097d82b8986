//! Models from a hub: `owner/name[@revision][:file]`, downloaded once into the cache that all programs which
//! use the hub share.
//!
//! ```text
//! list the revision's files ─► choose what the model needs ─► fetch what is not cached ─► a path
//!      (not when offline)          one GGUF file, or config, tokenizer and safetensors
//! ```
//!
//! A file appears in the cache whole and checked, or not at all. What an interruption leaves is one file
//! named `.incomplete`, which the next try continues.

mod cache;
mod client;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arbora_runtime::model::LoadFormat;
use arbora_runtime::model::directory::{CONFIG_FILE, OPTIONAL_FILES, TOKENIZER_FILE};
use arbora_runtime::model::safetensors::{INDEX_FILE, SINGLE_FILE, SafetensorsError, shard_names};
use arbora_runtime::model::templates::is_other;

use crate::models::Fetching;
use crate::progress::Progress;
pub use cache::{CachedModel, HubCache};
use client::Client;

/// Which hub, and where its files are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
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
    /// The one file wanted, where the name has one.
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
        let mut progress = Progress::new(&fetching.log);
        let mut fetch = |file: &str| {
            if interrupted.load(Ordering::Relaxed) {
                return Err(HubError::Interrupted);
            }
            self.cache.fetch(
                &self.client,
                model,
                &listing.commit,
                file,
                (&mut progress, fetching),
            )
        };
        let path = match choose(model, fetching.format, &listing.files)? {
            Choice::File(file) => fetch(&file)?,
            Choice::Folder(files) => {
                for file in &files {
                    let path = fetch(file)?;
                    if file == INDEX_FILE {
                        let index = std::fs::read(&path).map_err(cache::error("read", &path))?;
                        for shard in shard_names(&path, &index)? {
                            fetch(&shard)?;
                        }
                    }
                }
                self.cache.snapshot(model, &listing.commit)
            }
        };
        self.cache.keep_revision(model, &listing.commit)?;
        Ok(path)
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
        let (path, mut files) = match choose(model, format, &self.cache.files(&snapshot)).ok()? {
            Choice::File(file) => (snapshot.join(&file), vec![file]),
            Choice::Folder(files) => (snapshot.clone(), files),
        };
        if files.iter().any(|file| file == INDEX_FILE) {
            let path = snapshot.join(INDEX_FILE);
            files.extend(shard_names(&path, &std::fs::read(&path).ok()?).ok()?);
        }
        let files: Vec<PathBuf> = files.iter().map(|file| snapshot.join(file)).collect();
        files.iter().all(|file| file.is_file()).then_some((path, files))
    }
}

/// What to fetch.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    File(String),
    /// In this order; an index brings its shards with it.
    Folder(Vec<String>),
}

/// Of a repository's files, those that loading needs.
fn choose(model: &HubModel, format: LoadFormat, files: &[String]) -> Result<Choice, HubError> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if let Some(file) = &model.file {
        return match has(file) {
            true => Ok(Choice::File(file.clone())),
            false => Err(HubError::NotFound {
                what: model.to_string(),
            }),
        };
    }
    let weights = [INDEX_FILE, SINGLE_FILE].into_iter().find(|name| has(name));
    let is_dummy = format == LoadFormat::Dummy;
    if has(CONFIG_FILE) && (weights.is_some() || is_dummy) {
        let beside = std::iter::once(TOKENIZER_FILE)
            .chain(OPTIONAL_FILES)
            .filter(|name| has(name));
        let templates = files.iter().map(String::as_str).filter(|file| is_other(file));
        let weights = weights.filter(|_| !is_dummy);
        let chosen = std::iter::once(CONFIG_FILE)
            .chain(beside)
            .chain(templates)
            .chain(weights);
        return Ok(Choice::Folder(chosen.map(str::to_owned).collect()));
    }
    let gguf: Vec<&String> = files.iter().filter(|file| file.ends_with(".gguf")).collect();
    match gguf.as_slice() {
        [] => Err(HubError::NothingToLoad {
            model: model.to_string(),
        }),
        [only] => Ok(Choice::File((*only).clone())),
        several => Err(HubError::Ambiguous {
            model: model.to_string(),
            choices: several
                .iter()
                .map(|file| format!("{}:{file}", model.id))
                .collect(),
        }),
    }
}
