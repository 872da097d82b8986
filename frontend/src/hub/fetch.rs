//! Fetching the files of a model: room on the disk is looked for first, then several files come at a time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arbora_runtime::model::safetensors::{INDEX_FILE, shard_names};

use super::client::Listing;
use super::{Hub, HubError, HubModel, cache};
use crate::models::Fetching;
use crate::progress::{Progress, Transfer};

/// Files that come at a time: what a connection to a hub is given is less than what most lines can carry.
const MAX_CONNECTIONS: usize = 4;

impl Hub {
    /// Fetches `files`, and the shards of an index among them, as far as they are not cached; the path of the
    /// first.
    pub(super) fn fetch_all(
        &self,
        model: &HubModel,
        listing: &Listing,
        files: &[String],
        fetching: &Fetching,
    ) -> Result<PathBuf, HubError> {
        let mut files = files.to_vec();
        if let Some(at) = files.iter().position(|file| file == INDEX_FILE) {
            let index = files.remove(at);
            let path = self.fetch_one(model, listing, &index, (Progress::new(&fetching.log), fetching))?;
            let bytes = std::fs::read(&path).map_err(cache::error("read", &path))?;
            files.extend(shard_names(&path, &bytes)?);
        }
        let snapshot = self.cache.snapshot(model, &listing.commit);
        let missing: Vec<u64> = files
            .iter()
            .filter(|file| !snapshot.join(file).is_file())
            .map(|file| listing.n_bytes(file).unwrap_or(0))
            .collect();
        let n_bytes = missing.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
        self.check_space(model, n_bytes)?;
        let transfer = (missing.len() > 1).then(|| Arc::new(Transfer::new(missing.len(), n_bytes)));
        self.fetch_in_parallel(model, listing, &files, (transfer, fetching))?;
        Ok(snapshot.join(&files[0]))
    }

    fn check_space(&self, model: &HubModel, n_bytes: u64) -> Result<(), HubError> {
        let cache = &self.settings.cache;
        match free_bytes(cache) {
            Some(available) if n_bytes > available => Err(HubError::DiskFull {
                model: model.to_string(),
                n_bytes,
                available,
                cache: cache.clone(),
            }),
            // A system that does not tell fills up when it does.
            _ => Ok(()),
        }
    }

    /// One failure ends it: what is on its way still comes, nothing new is begun.
    fn fetch_in_parallel(
        &self,
        model: &HubModel,
        listing: &Listing,
        files: &[String],
        (transfer, fetching): (Option<Arc<Transfer>>, &Fetching),
    ) -> Result<(), HubError> {
        let next = AtomicUsize::new(0);
        let has_failed = AtomicBool::new(false);
        let failure = Mutex::new(None);
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                if has_failed.load(Ordering::Relaxed) {
                    return;
                }
                let progress = Progress::of_transfer(&fetching.log, transfer.clone());
                if let Err(error) = self.fetch_one(model, listing, file, (progress, fetching)) {
                    has_failed.store(true, Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..MAX_CONNECTIONS.min(files.len()) {
                let thread = std::thread::Builder::new().name("fetch".to_owned());
                // Where no thread is to be had, fewer files come at a time.
                thread.spawn_scoped(scope, work).ok();
            }
            work();
        });
        match failure.into_inner() {
            Ok(Some(error)) => Err(error),
            Ok(None) => Ok(()),
            Err(poisoned) => Err(poisoned.into_inner().unwrap_or(HubError::Interrupted)),
        }
    }

    fn fetch_one(
        &self,
        model: &HubModel,
        listing: &Listing,
        file: &str,
        (mut progress, fetching): (Progress, &Fetching),
    ) -> Result<PathBuf, HubError> {
        if fetching.interrupted.load(Ordering::Relaxed) {
            return Err(HubError::Interrupted);
        }
        let with = (&mut progress, fetching);
        self.cache.fetch(&self.client, model, listing, file, with)
    }
}

/// Free bytes where `folder` is, or will be.
fn free_bytes(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|ancestor| ancestor.exists())?;
    let found = rustix::fs::statvfs(there).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}
