//! The hub's cache on disk, in the layout that all its clients share:
//!
//! ```text
//! <cache>/models--owner--name/
//!     refs/main                    the commit a revision had when it was last asked for
//!     blobs/<etag>                 a file's bytes, whole and checked
//!     blobs/<etag>.incomplete      what has come of them so far
//!     snapshots/<commit>/<file>    a link to the blob
//! <cache>/.locks/models--owner--name/<etag>.lock
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::client::{Client, FileFacts, Listing, is_sha256};
use super::{HubError, HubModel};
use crate::checked::{self, Verdict};
use crate::models::Fetching;
use crate::progress::{Progress, pause};

const POLL: Duration = Duration::from_millis(50);
/// Most files of a snapshot that are looked at.
const MAX_FILES: usize = 10_000;

/// Everything below one folder.
#[derive(Clone, Debug)]
pub struct HubCache {
    root: PathBuf,
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// `owner/name`.
    pub id: String,
    /// Revisions it was asked for by.
    pub revisions: Vec<String>,
    /// Bytes of its files.
    pub n_bytes: u64,
    /// Whether some file is not whole.
    pub is_incomplete: bool,
}

impl HubCache {
    /// The cache in `root`, which may not be there yet.
    pub fn new(root: PathBuf) -> HubCache {
        HubCache { root }
    }

    /// Every model, by name.
    pub fn models(&self) -> Vec<CachedModel> {
        let mut models: Vec<CachedModel> = entries(&self.root)
            .into_iter()
            .filter_map(|folder| cached_model(&folder))
            .collect();
        models.sort_by(|a, b| a.id.cmp(&b.id));
        models
    }

    fn folder_name(model: &HubModel) -> String {
        format!("models--{}", model.id.replace('/', "--"))
    }

    fn folder(&self, model: &HubModel) -> PathBuf {
        self.root.join(HubCache::folder_name(model))
    }

    /// The commit that `model`'s revision had.
    pub(super) fn commit(&self, model: &HubModel) -> Option<String> {
        let reference = self.folder(model).join("refs").join(&model.revision);
        let commit = fs::read_to_string(reference)
            .ok()
            .map(|text| text.trim().to_owned());
        let is_plain = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
        commit.filter(is_plain).or_else(|| {
            let direct = self.snapshot(model, &model.revision).is_dir();
            direct.then(|| model.revision.clone())
        })
    }

    /// Remembers what commit the revision has.
    pub(super) fn keep_revision(&self, model: &HubModel, commit: &str) -> Result<(), HubError> {
        let path = self.folder(model).join("refs").join(&model.revision);
        let folder = path.parent().expect("it was joined to one");
        fs::create_dir_all(folder).map_err(error("create", folder))?;
        fs::write(&path, commit).map_err(error("write", &path))
    }

    /// The folder of a commit.
    pub(super) fn snapshot(&self, model: &HubModel, commit: &str) -> PathBuf {
        self.folder(model).join("snapshots").join(commit)
    }

    /// Files of a snapshot, their paths with `/`.
    pub(super) fn files(&self, snapshot: &Path) -> Vec<String> {
        let mut files = Vec::new();
        let mut open = vec![snapshot.to_owned()];
        while let Some(folder) = open.pop() {
            for path in entries(&folder) {
                if path.is_dir() {
                    open.push(path);
                } else if let Some(name) = path.strip_prefix(snapshot).ok().and_then(Path::to_str) {
                    files.push(name.to_owned());
                }
                if files.len() + open.len() > MAX_FILES {
                    return files;
                }
            }
        }
        files
    }

    /// The path of a file of `commit`, fetched if it is not there.
    pub(super) fn fetch(
        &self,
        client: &Client,
        model: &HubModel,
        listing: &Listing,
        file: &str,
        (progress, fetching): (&mut Progress, &Fetching),
    ) -> Result<PathBuf, HubError> {
        let interrupted = &*fetching.interrupted;
        let link = self.snapshot(model, &listing.commit).join(file);
        let mut is_damaged = false;
        if link.is_file() {
            progress.show(&format!("checking {file}"));
            match self.verify(model, &link, fetching) {
                Err(damaged @ HubError::Damaged { .. }) => {
                    tracing::warn!(%damaged, "a file in the cache is fetched again");
                    is_damaged = true;
                }
                verified => return verified.map(|()| link),
            }
        }
        let facts = client.facts(model, listing, file, interrupted)?;
        let blob = self.folder(model).join("blobs").join(&facts.etag);
        let folder = blob.parent().expect("it was joined to one");
        fs::create_dir_all(folder).map_err(error("create", folder))?;
        let _lock = self.lock(model, &facts.etag, progress, interrupted)?;
        // Another process may have fetched it while this one waited.
        if !blob.is_file() || is_damaged && self.verify(model, &blob, fetching).is_err() {
            self.fetch_blob(client, &facts, file, &blob, (progress, interrupted))?;
        }
        if let Some(sha256) = facts.sha256() {
            checked::note(&blob, sha256, &self.note(model, sha256));
        }
        make_link(&link, file, &facts.etag)?;
        Ok(link)
    }

    /// Where it is noted what a file of `model` looked like when it was hashed.
    fn note(&self, model: &HubModel, sha256: &str) -> PathBuf {
        self.lock_folder(model).join(format!("{sha256}.checked"))
    }

    fn lock_folder(&self, model: &HubModel) -> PathBuf {
        self.root.join(".locks").join(HubCache::folder_name(model))
    }

    /// Compares the bytes of `file`, a blob of `model` or a link to one, with its name, where that tells what
    /// they must be.
    pub(super) fn verify(&self, model: &HubModel, file: &Path, fetching: &Fetching) -> Result<(), HubError> {
        let blob = fs::canonicalize(file).map_err(error("read", file))?;
        let Some(expected) = blob
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|name| is_sha256(name))
        else {
            return Ok(());
        };
        // Where there is no such folder, the note is not kept and the file is hashed every time.
        fs::create_dir_all(self.lock_folder(model)).ok();
        let how = (fetching.integrity, &*fetching.interrupted);
        match checked::check(&blob, expected, &self.note(model, expected), how) {
            Ok(Verdict::Same) => Ok(()),
            Ok(Verdict::Interrupted) => Err(HubError::Interrupted),
            Ok(Verdict::Differs(found)) => Err(HubError::Damaged {
                expected: expected.to_owned(),
                path: blob,
                found,
            }),
            Err(source) => Err(error("read", &blob)(source)),
        }
    }

    fn fetch_blob(
        &self,
        client: &Client,
        facts: &FileFacts,
        file: &str,
        blob: &Path,
        (progress, interrupted): (&mut Progress, &AtomicBool),
    ) -> Result<(), HubError> {
        let is_resumed = fs::metadata(partial_of(blob)).is_ok_and(|metadata| metadata.len() > 0);
        match self.try_blob(client, facts, file, blob, (&mut *progress, interrupted)) {
            // What an earlier try left was no beginning of this file, and is gone now.
            Err(HubError::WrongHash { .. } | HubError::WrongLength { .. }) if is_resumed => {
                self.try_blob(client, facts, file, blob, (progress, interrupted))
            }
            tried => tried,
        }
    }

    fn try_blob(
        &self,
        client: &Client,
        facts: &FileFacts,
        file: &str,
        blob: &Path,
        (progress, interrupted): (&mut Progress, &AtomicBool),
    ) -> Result<(), HubError> {
        let partial = partial_of(blob);
        let open = || OpenOptions::new().create(true).append(true).open(&partial);
        // One that an earlier try left and nobody may write to is in the way.
        let opened = open().or_else(|_| fs::remove_file(&partial).and_then(|()| open()));
        let mut out = opened.map_err(error("create", &partial))?;
        let n_bytes = match client.download(facts, file, &mut out, (progress, interrupted)) {
            Ok(n_bytes) => n_bytes,
            Err(failed) => {
                progress.clear();
                // Nothing came: nothing to continue.
                if out.metadata().is_ok_and(|metadata| metadata.len() == 0) {
                    fs::remove_file(&partial).map_err(error("remove", &partial))?;
                }
                return Err(failed);
            }
        };
        let checked = check((facts, n_bytes), file, &partial, interrupted);
        // What was not hashed to its end is hashed by the next try.
        if checked
            .as_ref()
            .is_err_and(|error| !matches!(error, HubError::Interrupted))
        {
            progress.clear();
            fs::remove_file(&partial).map_err(error("remove", &partial))?;
        }
        checked?;
        out.sync_all().map_err(error("write", &partial))?;
        fs::rename(&partial, blob).map_err(error("create", blob))?;
        progress.done(&format!("fetched {file}: {:.1} MB", n_bytes as f64 / 1e6));
        Ok(())
    }

    /// Waits for the blob's lock; the file handle holds it, so it goes with the process however that ends.
    fn lock(
        &self,
        model: &HubModel,
        etag: &str,
        progress: &mut Progress,
        interrupted: &AtomicBool,
    ) -> Result<File, HubError> {
        let folder = self.lock_folder(model);
        fs::create_dir_all(&folder).map_err(error("create", &folder))?;
        let path = folder.join(format!("{etag}.lock"));
        let file = File::create(&path).map_err(error("create", &path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(error("lock", &path)(source)),
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(HubError::Interrupted);
            }
            progress.show("waiting for another process that fetches the model");
            pause(POLL);
        }
    }
}

/// Where a blob's bytes are until they are whole and checked.
fn partial_of(blob: &Path) -> PathBuf {
    blob.with_extension("incomplete")
}

/// What came must be what was announced.
fn check(
    (facts, n_bytes): (&FileFacts, u64),
    file: &str,
    partial: &Path,
    interrupted: &AtomicBool,
) -> Result<(), HubError> {
    if let Some(expected) = facts.n_bytes.filter(|&expected| expected != n_bytes) {
        return Err(HubError::WrongLength {
            file: file.to_owned(),
            found: n_bytes,
            expected,
        });
    }
    let Some(expected) = facts.sha256() else {
        return Ok(());
    };
    let mut reader = File::open(partial).map_err(error("read", partial))?;
    let hashed = checked::sha256_of(&mut reader, interrupted).map_err(error("read", partial))?;
    let found = hashed.ok_or(HubError::Interrupted)?;
    if found == expected {
        return Ok(());
    }
    Err(HubError::WrongHash {
        file: file.to_owned(),
        found,
        expected: expected.to_owned(),
    })
}

/// Links `snapshots/<commit>/<file>` to the blob, relative so that the cache can be moved.
fn make_link(link: &Path, file: &str, etag: &str) -> Result<(), HubError> {
    let folder = link.parent().expect("it was joined to one");
    fs::create_dir_all(folder).map_err(error("create", folder))?;
    let up = "../".repeat(2 + file.matches('/').count());
    // A link whose blob somebody removed is still in the way.
    if link.is_symlink() {
        fs::remove_file(link).map_err(error("remove", link))?;
    }
    std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), link).map_err(error("create", link))
}

fn cached_model(folder: &Path) -> Option<CachedModel> {
    let name = folder.file_name()?.to_str()?.strip_prefix("models--")?;
    let mut n_bytes = 0;
    let mut is_incomplete = false;
    for blob in entries(&folder.join("blobs")) {
        is_incomplete |= blob
            .extension()
            .is_some_and(|extension| extension == "incomplete");
        n_bytes += fs::metadata(&blob).map_or(0, |metadata| metadata.len());
    }
    let refs = folder.join("refs");
    let mut revisions: Vec<String> = entries(&refs)
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    revisions.sort();
    Some(CachedModel {
        id: name.replacen("--", "/", 1),
        revisions,
        n_bytes,
        is_incomplete,
    })
}

/// What is in a folder; nothing where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    found.unwrap_or_default()
}

pub(super) fn error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_owned();
    move |source| HubError::Cache { what, path, source }
}
