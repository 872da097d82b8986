//! The files of a model that comes as a zip archive, unpacked once beside it.
//!
//! Each has a pinned SHA-256 of its own and is hashed as single files are ([`crate::checked`]): when it is
//! not the one that was hashed before. Where one is missing or has other bytes, all are unpacked again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::checked::{self, Integrity, Verdict};

/// The folder of the unpacked files, beside the archive.
const FOLDER: &str = "model";

/// A file in an archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    name: &'static str,
    n_bytes: u64,
    /// In lower-case hexadecimal.
    sha256: &'static str,
}

/// A file of that name, length and SHA-256.
pub(super) const fn member(name: &'static str, n_bytes: u64, sha256: &'static str) -> Member {
    Member {
        name,
        n_bytes,
        sha256,
    }
}

/// Whether the unpacked files are those of the archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unpacked {
    /// All of them.
    Whole,
    /// One is missing, or has other bytes.
    Damaged,
    /// The operator gave up waiting.
    Interrupted,
}

/// The folder beside `archive` with its `members`, which are unpacked where they are not there.
///
/// # Errors
/// Where the archive is not what it should be, or the folder cannot be written.
pub(super) fn unpacked(
    (folder, archive): (&Path, &Path),
    members: &[Member],
    how: (Integrity, &AtomicBool),
) -> io::Result<(PathBuf, Unpacked)> {
    let destination = folder.join(FOLDER);
    match look(folder, members, how)? {
        Unpacked::Damaged => {}
        found => return Ok((destination, found)),
    }
    // Unpacked elsewhere and renamed: the folder is whole or not there, whoever else unpacks.
    let scratch = tempfile::Builder::new()
        .prefix(super::FETCH_PREFIX)
        .tempdir_in(folder)?;
    let made = scratch.path().join(FOLDER);
    unpack(archive, members, &made)?;
    let old = scratch.path().join("old");
    match fs::rename(&destination, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let renamed = fs::rename(&made, &destination);
    // Another process may have been faster.
    match (look(folder, members, (Integrity::WhenChanged, how.1))?, renamed) {
        (Unpacked::Damaged, Err(error)) => Err(error),
        (Unpacked::Damaged, Ok(())) => Err(io::Error::other("its files have another SHA-256 than expected")),
        (found, _) => Ok((destination, found)),
    }
}

fn look(folder: &Path, members: &[Member], how: (Integrity, &AtomicBool)) -> io::Result<Unpacked> {
    for member in members {
        let path = folder.join(FOLDER).join(member.name);
        match fs::metadata(&path) {
            Ok(found) if found.len() == member.n_bytes => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(Unpacked::Damaged),
        }
        let note = folder.join(format!(".checked-{}", member.name.replace('/', "-")));
        match checked::check(&path, member.sha256, &note, how)? {
            Verdict::Same => {}
            Verdict::Differs(_) => return Ok(Unpacked::Damaged),
            Verdict::Interrupted => return Ok(Unpacked::Interrupted),
        }
    }
    Ok(Unpacked::Whole)
}

fn unpack(archive: &Path, members: &[Member], folder: &Path) -> io::Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(archive)?).map_err(io::Error::other)?;
    for member in members {
        let path = folder.join(member.name);
        fs::create_dir_all(path.parent().expect("a file of the folder"))?;
        let packed = archive.by_name(member.name).map_err(io::Error::other)?;
        let mut file = File::create(&path)?;
        let n_bytes = io::copy(&mut packed.take(member.n_bytes + 1), &mut file)?;
        if n_bytes != member.n_bytes {
            let Member {
                name,
                n_bytes: expected,
                ..
            } = member;
            return Err(io::Error::other(format!(
                "{name} has {n_bytes} bytes, expected {expected}"
            )));
        }
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MEMBERS: [Member; 2] = [
        member(
            "a.json",
            3,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        member(
            "1_P/b.json",
            5,
            "383395a769131d15c1c6fc57c6abdb759ace9809c1ad20d1f491d90f7f02650e",
        ),
    ];

    fn archive(folder: &Path, files: &[(&str, &[u8])]) -> PathBuf {
        let path = folder.join("model.zip");
        let mut writer = zip::ZipWriter::new(File::create(&path).expect("writable"));
        for (name, bytes) in files {
            let options = zip::write::SimpleFileOptions::default();
            writer.start_file(*name, options).expect("a good name");
            writer.write_all(bytes).expect("writable");
        }
        writer.finish().expect("writable");
        path
    }

    fn unpack_in(folder: &Path, zip: &Path) -> io::Result<(PathBuf, Unpacked)> {
        unpacked(
            (folder, zip),
            &MEMBERS,
            (Integrity::WhenChanged, &AtomicBool::new(false)),
        )
    }

    #[test]
    fn files_are_unpacked_once_and_again_where_one_is_gone_or_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let files: [(&str, &[u8]); 3] = [("a.json", b"abc"), ("1_P/b.json", b"defgh"), ("more", b"x")];
        let zip = archive(folder.path(), &files);
        let (made, found) = unpack_in(folder.path(), &zip).expect("good");
        let read = || fs::read(made.join("1_P/b.json")).expect("it is there");
        assert_eq!((read().as_slice(), found), (&b"defgh"[..], Unpacked::Whole));
        assert!(!made.join("more").exists(), "only what is known");
        for damage in [None, Some("de"), Some("dXfgh")] {
            match damage {
                None => fs::remove_file(made.join("1_P/b.json")).expect("it is there"),
                Some(text) => fs::write(made.join("1_P/b.json"), text).expect("writable"),
            }
            assert_eq!(unpack_in(folder.path(), &zip).expect("good").0, made);
            assert_eq!(read(), b"defgh", "{damage:?}");
        }
        let names = fs::read_dir(folder.path()).expect("readable");
        let left = names.filter(|entry| {
            let name = entry.as_ref().expect("readable").file_name();
            name.to_string_lossy().starts_with(super::super::FETCH_PREFIX)
        });
        assert_eq!(left.count(), 0, "nothing half-made stays");
    }

    #[test]
    fn an_archive_with_other_files_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let zip = archive(folder.path(), &[("a.json", b"abcd")]);
        let error = unpack_in(folder.path(), &zip).expect_err("4 bytes").to_string();
        assert_eq!(error, "a.json has 4 bytes, expected 3");
        let zip = archive(folder.path(), &[("a.json", b"abc"), ("1_P/b.json", b"defgX")]);
        let error = unpack_in(folder.path(), &zip)
            .expect_err("another file")
            .to_string();
        assert_eq!(error, "its files have another SHA-256 than expected");
    }
}
