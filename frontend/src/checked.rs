//! Integrity of cached files: whether a file on disk still has the bytes whose SHA-256 is known.
//!
//! Bytes are hashed once and then believed for as long as the file's size, times and inode are those noted
//! when they were hashed: a disk that fails, a copy that broke off or a hand that slipped changes one of
//! them. The note is a file of one line:
//!
//! ```text
//! <SHA-256> <bytes> <modified, ns> <changed, ns> <inode>
//! ```

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

/// When a file whose SHA-256 is known is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Integrity {
    /// When it is not the one that was hashed before.
    #[default]
    WhenChanged,
    /// Always.
    Always,
}

/// What a file is to its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has it.
    Same,
    /// It has this one.
    Differs(String),
    /// The operator gave up waiting.
    Interrupted,
}

/// Compares the file at `path` with `sha256`, in lower-case hexadecimal; `note` is what an earlier comparison
/// left, and is written anew where the bytes were hashed. A note that cannot be written only costs time.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn check(
    path: &Path,
    sha256: &str,
    note: &Path,
    (integrity, interrupted): (Integrity, &AtomicBool),
) -> io::Result<Verdict> {
    let mut file = File::open(path)?;
    // Of the open file, before it is read: whatever is written meanwhile makes another line.
    let line = line_of(&file.metadata()?, sha256);
    let is_known = fs::read_to_string(note).is_ok_and(|noted| noted == line);
    if is_known && integrity == Integrity::WhenChanged {
        return Ok(Verdict::Same);
    }
    match sha256_of(&mut file, interrupted)? {
        None => Ok(Verdict::Interrupted),
        Some(found) if found == sha256 => {
            write_note(note, &line);
            Ok(Verdict::Same)
        }
        Some(found) => Ok(Verdict::Differs(found)),
    }
}

/// Notes that the bytes of the file at `path` were hashed just now and have `sha256`.
pub(crate) fn note(path: &Path, sha256: &str, note: &Path) {
    match fs::metadata(path) {
        Ok(metadata) => write_note(note, &line_of(&metadata, sha256)),
        Err(error) => tracing::debug!(%error, "cannot look at {}", path.display()),
    }
}

fn write_note(note: &Path, line: &str) {
    if let Err(error) = fs::write(note, line) {
        tracing::debug!(%error, "cannot write {}: the file will be hashed again", note.display());
    }
}

fn line_of(metadata: &Metadata, sha256: &str) -> String {
    const NANOS: i128 = 1_000_000_000;
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * NANOS + i128::from(nanos);
    format!(
        "{sha256} {} {} {} {}\n",
        metadata.len(),
        nanos(metadata.mtime(), metadata.mtime_nsec()),
        nanos(metadata.ctime(), metadata.ctime_nsec()),
        metadata.ino()
    )
}

/// SHA-256 of what is left of `file`, in lower-case hexadecimal; nothing where `interrupted` is set
/// meanwhile.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn sha256_of(file: &mut impl Read, interrupted: &AtomicBool) -> io::Result<Option<String>> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hex(&hash.finalize()))),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// `bytes` in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        sha256: String,
    }

    impl Fixture {
        fn new() -> Fixture {
            let folder = tempfile::tempdir().expect("a temporary directory");
            let content = b"all the weights";
            fs::write(folder.path().join("file"), content).expect("writable");
            let sha256 = hex(&Sha256::digest(content));
            Fixture { folder, sha256 }
        }

        fn check(&self, integrity: Integrity) -> Verdict {
            let at = |name| self.folder.path().join(name);
            let how = (integrity, &AtomicBool::new(false));
            check(&at("file"), &self.sha256, &at("note"), how).expect("readable")
        }

        /// Writes the same number of other bytes.
        fn damage(&self) {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(self.folder.path().join("file"));
            file.expect("writable")
                .write_all_at(&[0; 4], 3)
                .expect("writable");
        }
    }

    #[test]
    fn a_file_is_hashed_again_once_it_is_another_one() {
        let f = Fixture::new();
        assert_eq!(f.check(Integrity::WhenChanged), Verdict::Same);
        // What is noted is believed: with another note the same bytes would be hashed.
        let noted = fs::read_to_string(f.folder.path().join("note")).expect("a note");
        assert!(noted.starts_with(&f.sha256), "{noted}");
        f.damage();
        for integrity in [Integrity::WhenChanged, Integrity::Always] {
            assert!(matches!(f.check(integrity), Verdict::Differs(_)), "{integrity:?}");
        }
    }

    #[test]
    fn what_is_noted_is_believed_unless_it_is_to_be_verified() {
        let f = Fixture::new();
        f.damage();
        // A note as if these bytes had been hashed and found right.
        note(
            &f.folder.path().join("file"),
            &f.sha256,
            &f.folder.path().join("note"),
        );
        assert_eq!(f.check(Integrity::WhenChanged), Verdict::Same);
        assert!(matches!(f.check(Integrity::Always), Verdict::Differs(_)));
    }

    #[test]
    fn hashing_stops_when_nobody_waits_for_it() {
        let hashed = sha256_of(&mut &[0u8; 8][..], &AtomicBool::new(true));
        assert_eq!(hashed.expect("readable"), None);
    }
}
