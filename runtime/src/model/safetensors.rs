//! The tensor tables of safetensors files: one file, or shards with an index.
//!
//! The `safetensors` crate reads the header of a file and checks that its tensors follow each other without
//! a gap and have the bytes of their shapes. What is added here are limits on what is read at all, that the
//! data ends where the file does, and that an index names nothing but files beside it:
//!
//! ```text
//! header bytes <= MAX_HEADER_BYTES      8 + header bytes + data bytes == file bytes
//! shards <= MAX_SHARDS                  a shard's name is one plain file name
//! tensor: 0..=4 dimensions, none 0      every name in exactly one shard, the one the index says
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;

use super::gguf::{MAX_DIMENSIONS, MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_TENSORS};
use super::tensors::{DuplicateTensor, TensorInfo, TensorTable, TensorType};

/// Most files of one checkpoint.
pub const MAX_SHARDS: usize = 1024;
/// The one file of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of a sharded one.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Why safetensors files are not usable.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// A file could not be read.
    #[error("reading {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Neither a single file nor an index.
    #[error("{} holds neither {SINGLE_FILE} nor {INDEX_FILE}", folder.display())]
    NoWeights {
        /// Where they should be.
        folder: PathBuf,
    },
    /// A length or a count beyond the file or a limit.
    #[error("{}: {what} of {found} exceeds the limit of {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is counted.
        what: &'static str,
        /// The number found.
        found: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// A header or an index that is no such thing.
    #[error("{}: bad {what}: {source}", path.display())]
    BadJson {
        /// The file.
        path: PathBuf,
        /// Header or index.
        what: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The data and the file do not end together.
    #[error("{}: the header describes {expected} bytes, the file has {found}", path.display())]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Bytes by the header.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A tensor of a shape nothing here has.
    #[error("{}: tensor `{name}` has shape {shape:?}: at most four dimensions, none of them 0", path.display())]
    BadTensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// An index that leads out of its folder.
    #[error("{}: shard `{shard}` is no plain file name", path.display())]
    BadShardName {
        /// The index.
        path: PathBuf,
        /// What it names.
        shard: String,
    },
    /// The index and a shard disagree.
    #[error("{}: tensor `{name}` is not in {shard}, where the index says it is", path.display())]
    NotInShard {
        /// The index.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The shard.
        shard: String,
    },
    /// Two tensors of one name.
    #[error("tensor `{name}` appears twice")]
    Duplicate {
        /// The name.
        name: String,
    },
}

/// The files of a checkpoint, open, and what is in them.
#[derive(Debug)]
pub struct Safetensors {
    /// The files; [`TensorInfo::file_idx`] counts them.
    pub files: Vec<File>,
    /// Their tensors.
    pub tensors: TensorTable,
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Safetensors {
    /// Opens the checkpoint in `folder` and reads its headers. An index wins over a single file.
    pub fn open(folder: &Path) -> Result<Safetensors, SafetensorsError> {
        let index_path = folder.join(INDEX_FILE);
        if index_path.is_file() {
            return open_shards(folder, &index_path);
        }
        let path = folder.join(SINGLE_FILE);
        if !path.is_file() {
            let folder = folder.to_owned();
            return Err(SafetensorsError::NoWeights { folder });
        }
        let (file, tensors) = open_file(&path, 0)?;
        let tensors = table(tensors)?;
        Ok(Safetensors {
            files: vec![file],
            tensors,
        })
    }
}

/// Whether a folder has safetensors, one file or shards.
pub fn has_safetensors(folder: &Path) -> bool {
    [INDEX_FILE, SINGLE_FILE]
        .iter()
        .any(|name| folder.join(name).is_file())
}

/// The names of the shards an index lists, each once.
pub fn shard_names(index_path: &Path, index: &[u8]) -> Result<Vec<String>, SafetensorsError> {
    let mut shards: Vec<String> = read_index(index_path, index)?.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

fn read_index(path: &Path, bytes: &[u8]) -> Result<Index, SafetensorsError> {
    let index: Index = serde_json::from_slice(bytes).map_err(|source| SafetensorsError::BadJson {
        path: path.to_owned(),
        what: "index",
        source,
    })?;
    limit(path, "tensor count", index.weight_map.len() as u64, MAX_TENSORS)?;
    let is_plain = |shard: &&String| {
        shard.ends_with(".safetensors") && !shard.starts_with('.') && !shard.contains(['/', '\\', '\0'])
    };
    match index.weight_map.values().find(|shard| !is_plain(shard)) {
        None => Ok(index),
        Some(shard) => Err(SafetensorsError::BadShardName {
            path: path.to_owned(),
            shard: shard.clone(),
        }),
    }
}

fn open_shards(folder: &Path, index_path: &Path) -> Result<Safetensors, SafetensorsError> {
    let bytes = super::directory::read_bounded(index_path, MAX_INDEX_BYTES)
        .map_err(|source| io_error(index_path, source))?;
    let shards = shard_names(index_path, &bytes)?;
    limit(index_path, "shard count", shards.len() as u64, MAX_SHARDS as u64)?;
    let (mut files, mut tensors) = (Vec::new(), Vec::new());
    for (file_idx, shard) in shards.iter().enumerate() {
        let (file, of_file) = open_file(&folder.join(shard), file_idx)?;
        files.push(file);
        tensors.extend(of_file);
    }
    let tensors = table(tensors)?;
    for (name, shard) in read_index(index_path, &bytes)?.weight_map {
        let file_idx = tensors.named(&name).map(|tensor| tensor.file_idx);
        if file_idx.map(|idx| &shards[idx]) != Some(&shard) {
            let path = index_path.to_owned();
            return Err(SafetensorsError::NotInShard { path, name, shard });
        }
    }
    Ok(Safetensors { files, tensors })
}

fn open_file(path: &Path, file_idx: usize) -> Result<(File, Vec<TensorInfo>), SafetensorsError> {
    let failed = |source| io_error(path, source);
    let file = File::open(path).map_err(failed)?;
    let n_bytes = file.metadata().map_err(failed)?.len();
    let tensors = read_header(path, &file, n_bytes, file_idx)?;
    Ok((file, tensors))
}

/// Reads the header that `reader` starts with, of a file of `file_bytes`.
fn read_header(
    path: &Path,
    mut reader: impl Read,
    file_bytes: u64,
    file_idx: usize,
) -> Result<Vec<TensorInfo>, SafetensorsError> {
    let failed = |source| io_error(path, source);
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(failed)?;
    let header_bytes = u64::from_le_bytes(length);
    let most = MAX_HEADER_BYTES.min(file_bytes.saturating_sub(8));
    limit(path, "header length", header_bytes, most)?;
    let mut header = vec![0; header_bytes as usize];
    reader.read_exact(&mut header).map_err(failed)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|source| SafetensorsError::BadJson {
        path: path.to_owned(),
        what: "header",
        source,
    })?;
    let data_start = 8 + header_bytes;
    let expected = data_start.saturating_add(metadata.data_len() as u64);
    if expected != file_bytes {
        return Err(SafetensorsError::WrongLength {
            path: path.to_owned(),
            expected,
            found: file_bytes,
        });
    }
    let found = metadata.tensors();
    limit(path, "tensor count", found.len() as u64, MAX_TENSORS)?;
    let mut tensors = Vec::with_capacity(found.len());
    for (name, info) in found {
        limit(
            path,
            "length of a tensor's name",
            name.len() as u64,
            MAX_NAME_BYTES,
        )?;
        // A single number has no dimensions.
        if info.shape.len() > MAX_DIMENSIONS || info.shape.contains(&0) {
            return Err(SafetensorsError::BadTensor {
                path: path.to_owned(),
                name,
                shape: info.shape.clone(),
            });
        }
        let (start, end) = info.data_offsets;
        tensors.push(TensorInfo {
            name,
            dimensions: match info.shape.as_slice() {
                [] => vec![1],
                shape => shape.iter().rev().map(|&size| size as u64).collect(),
            },
            kind: TensorType::Safetensors(info.dtype),
            file_idx,
            offset: data_start + start as u64,
            n_bytes: Some((end - start) as u64),
        });
    }
    tensors.sort_by_key(|tensor| tensor.offset);
    Ok(tensors)
}

fn table(tensors: Vec<TensorInfo>) -> Result<TensorTable, SafetensorsError> {
    TensorTable::new(tensors).map_err(|DuplicateTensor { name }| SafetensorsError::Duplicate { name })
}

fn limit(path: &Path, what: &'static str, found: u64, limit: u64) -> Result<(), SafetensorsError> {
    if found <= limit {
        return Ok(());
    }
    let path = path.to_owned();
    Err(SafetensorsError::TooLarge {
        path,
        what,
        found,
        limit,
    })
}

fn io_error(path: &Path, source: std::io::Error) -> SafetensorsError {
    let path = path.to_owned();
    SafetensorsError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of f32 zeros, its tensors one after the other.
    fn file(tensors: &[(&str, &[usize])]) -> Vec<u8> {
        let mut end = 0;
        let entries = tensors.iter().map(|(name, shape)| {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        });
        let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
        with_header(&header, end)
    }

    fn with_header(header: &str, n_data_bytes: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + n_data_bytes, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<TensorInfo>, SafetensorsError> {
        read_header(Path::new("a.safetensors"), bytes, bytes.len() as u64, 0)
    }

    #[track_caller]
    fn refused(bytes: &[u8], expected: &str) {
        let error = read(bytes).expect_err("a bad file").to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }

    fn checkpoint(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Result<Safetensors, SafetensorsError>) {
        let folder = tempfile::tempdir().expect("a temporary directory");
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).expect("writable");
        }
        let opened = Safetensors::open(folder.path());
        (folder, opened)
    }

    #[test]
    fn shapes_are_turned_round_and_offsets_count_from_the_file_start() {
        let bytes = file(&[("a", &[2, 3]), ("b", &[5])]);
        let tensors = read(&bytes).expect("a good file");
        assert_eq!(tensors[0].dimensions, [3, 2]);
        assert_eq!(tensors[1].offset + 20, bytes.len() as u64);
        assert_eq!(tensors[1].kind.to_string(), "F32");
    }

    #[test]
    fn bad_headers_are_refused() {
        refused(&[1, 0], "a.safetensors");
        refused(&u64::MAX.to_le_bytes(), "header length");
        refused(&with_header("{", 0), "bad header");
        refused(&with_header("[]", 0), "bad header");
        let entry = |shape: &str, start: u64, end: u64| {
            format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
        };
        refused(&with_header(&entry("[2]", 4, 12), 12), "offset");
        refused(&with_header(&entry("[2]", 0, 7), 7), "bad header");
        refused(
            &with_header(&entry("[9223372036854775807, 9]", 0, 8), 8),
            "overflow",
        );
        refused(&with_header(&entry("[2]", 0, 8), 7), "the file has");
        refused(&with_header(&entry("[2]", 0, 8), 9), "the file has");
        refused(&with_header(&entry("[0]", 0, 0), 0), "none of them 0");
        refused(&with_header(&entry("[1, 1, 1, 1, 2]", 0, 8), 8), "at most four");
        let single = read(&with_header(&entry("[]", 0, 4), 4)).expect("a number");
        assert_eq!(single[0].dimensions, [1]);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        refused(&with_header(&deep, 0), "bad header");
    }

    #[test]
    fn no_prefix_and_no_damage_of_a_file_panics() {
        let bytes = file(&[("a", &[2, 3]), ("b", &[5])]);
        for n in 0..bytes.len() {
            read(&bytes[..n]).expect_err("cut short");
        }
        for at in 0..bytes.len() - 44 {
            for value in [0, b'"', b'9', b']', 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let within = |t: &TensorInfo| t.offset + t.n_bytes.unwrap_or(0) <= bytes.len() as u64;
                if let Ok(tensors) = read(&damaged) {
                    assert!(tensors.iter().all(within));
                }
            }
        }
    }

    #[test]
    fn shards_are_found_by_the_index_and_held_to_it() {
        let index = |a: &str, b: &str| {
            let text = format!(r#"{{"metadata":{{}},"weight_map":{{"a":"{a}","b":"{b}"}}}}"#);
            (INDEX_FILE, text.into_bytes())
        };
        let one = ("one.safetensors", file(&[("a", &[2])]));
        let two = ("two.safetensors", file(&[("b", &[3])]));
        let (_folder, good) = checkpoint(&[index(one.0, two.0), one.clone(), two.clone()]);
        let good = good.expect("a good checkpoint");
        assert_eq!(good.tensors.named("b").expect("it is there").file_idx, 1);
        let swapped = checkpoint(&[index(two.0, one.0), one.clone(), two.clone()]).1;
        assert!(
            swapped
                .expect_err("swapped")
                .to_string()
                .contains("is not in two.safetensors")
        );
        let gone = checkpoint(&[index(one.0, two.0), one.clone()]).1;
        assert!(
            gone.expect_err("a shard is gone")
                .to_string()
                .contains("two.safetensors")
        );
        let twice = ("two.safetensors", file(&[("b", &[3]), ("a", &[2])]));
        let twice = checkpoint(&[index(one.0, two.0), one.clone(), twice]).1;
        assert!(
            twice
                .expect_err("a is in both")
                .to_string()
                .contains("`a` appears twice")
        );
        for name in [
            "../x.safetensors",
            "a/b.safetensors",
            "/x.safetensors",
            "x.bin",
            ".safetensors",
        ] {
            let error = checkpoint(&[index(one.0, name), one.clone()])
                .1
                .expect_err(name)
                .to_string();
            assert!(error.contains("no plain file name"), "{error}");
        }
        let none = checkpoint(&[]).1.expect_err("nothing there").to_string();
        assert!(none.contains("neither model.safetensors nor"), "{none}");
    }
}
