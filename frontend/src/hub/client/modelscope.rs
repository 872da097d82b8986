//! ModelScope's words for listings and files. Its listing has length and SHA-256 of every file, so nothing is
//! asked before the bytes. A commit has no name there: what a revision holds is named by its listing's hash.
//!
//! Source: the requests of the `modelscope` package (`HubApi.get_model_files`, `file_download`).

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{FileFacts, HubModel, ListedFile, Listing, is_sha256};
use crate::checked::hex;
use crate::hub::DEFAULT_REVISION;

/// The branch that is called `main` elsewhere.
const MAIN_BRANCH: &str = "master";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    files: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: String,
    #[serde(rename = "Type")]
    kind: String,
    #[serde(default)]
    sha256: String,
    #[serde(default)]
    size: Option<u64>,
}

fn revision(model: &HubModel) -> String {
    match model.revision.as_str() {
        DEFAULT_REVISION => MAIN_BRANCH.to_owned(),
        other => other.replace('/', "%2F"),
    }
}

pub(super) fn listing_url(endpoint: &str, model: &HubModel) -> String {
    let (id, revision) = (&model.id, revision(model));
    format!("{endpoint}/api/v1/models/{id}/repo/files?Revision={revision}&Recursive=true")
}

/// An error says what is wrong with the listing.
pub(super) fn read_listing(body: &[u8]) -> Result<Listing, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut files: Vec<ListedFile> = answer
        .data
        .files
        .into_iter()
        .filter(|entry| entry.kind == "blob")
        .map(|entry| ListedFile {
            name: entry.path,
            n_bytes: entry.size,
            sha256: Some(entry.sha256.to_ascii_lowercase()),
        })
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hash = Sha256::new();
    for file in &files {
        hash.update(format!(
            "{} {}\n",
            file.sha256.as_deref().unwrap_or_default(),
            file.name
        ));
    }
    Ok(Listing {
        commit: hex(&hash.finalize()),
        files,
    })
}

/// What the listing says of a file; nothing where it does not list it with a hash.
pub(super) fn facts(endpoint: &str, model: &HubModel, listing: &Listing, file: &str) -> Option<FileFacts> {
    let listed = listing.named(file)?;
    let sha256 = listed.sha256.clone().filter(|sha256| is_sha256(sha256))?;
    let (id, revision) = (&model.id, revision(model));
    Some(FileFacts {
        etag: sha256,
        n_bytes: listed.n_bytes,
        location: format!("{endpoint}/models/{id}/resolve/{revision}/{file}"),
    })
}
