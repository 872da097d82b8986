//! GGUF checkpoints split into several files (`NAME-00001-of-00003.gguf`), as `llama-gguf-split` writes them.
//!
//! ```text
//! every part   split.no = its number from 0, split.count = parts, as its name says from 1
//! part 0       also the whole metadata, split.tensors.count = tensors of all parts
//! tensors      each in one part; offsets count from the start of that part
//! ```
//!
//! The first part leads to the others, which lie beside it.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::super::metadata::{KeyError, Metadata};
use super::super::tensors::{DuplicateTensor, TensorTable};
use super::{Gguf, GgufError};

/// Most parts of a checkpoint.
pub const MAX_PARTS: u64 = 1024;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSOR_COUNT: &str = "split.tensors.count";

/// Why the parts of a split checkpoint are not usable together.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// A part could not be opened.
    #[error("opening {}, part {number} of {count}: {source}", path.display())]
    Open {
        /// The part.
        path: PathBuf,
        /// From 1.
        number: u64,
        /// Parts in all.
        count: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// A part that is no GGUF file.
    #[error("{}: {source}", path.display())]
    BadPart {
        /// The part.
        path: PathBuf,
        /// Why not.
        source: GgufError,
    },
    /// A number of the split that is none.
    #[error("{}: {source}", path.display())]
    BadKey {
        /// The part.
        path: PathBuf,
        /// Which and why.
        source: KeyError,
    },
    /// More parts than any checkpoint has.
    #[error("{}: `{COUNT}` = {found}: must be at most {MAX_PARTS}", path.display())]
    TooManyParts {
        /// The first part.
        path: PathBuf,
        /// Parts by its header.
        found: u64,
    },
    /// A part whose name does not lead to the others.
    #[error(
        "{} is part {number} of {count} by its header, but not by its name: it should end in \
         -{number:05}-of-{count:05}.gguf",
        path.display()
    )]
    BadName {
        /// The part.
        path: PathBuf,
        /// From 1.
        number: u64,
        /// Parts in all.
        count: u64,
    },
    /// Another part than the first was named.
    #[error("{} is part {number} of {count}: name the first one, {}", path.display(), first.display())]
    NotFirst {
        /// What was named.
        path: PathBuf,
        /// From 1.
        number: u64,
        /// Parts in all.
        count: u64,
        /// Where the first should be.
        first: PathBuf,
    },
    /// A file of another checkpoint under the name of a part.
    #[error(
        "{} is part {} of {} by its header, expected part {number} of {count}",
        path.display(), found.0, found.1
    )]
    ForeignPart {
        /// The file.
        path: PathBuf,
        /// Number (from 1) and count by its header.
        found: (u64, u64),
        /// Expected, from 1.
        number: u64,
        /// Parts in all.
        count: u64,
    },
    /// Parts that do not have the tensors the first one promises.
    #[error("the {count} parts of {} have {found} tensors, `{TENSOR_COUNT}` says {expected}", path.display())]
    WrongTensorCount {
        /// The first part.
        path: PathBuf,
        /// Parts in all.
        count: u64,
        /// Tensors of all parts.
        found: u64,
        /// By the first part's header.
        expected: u64,
    },
    /// One tensor in two parts.
    #[error("tensor `{name}` is in two parts of {}", path.display())]
    Duplicate {
        /// The first part.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
}

/// The files of a GGUF checkpoint and their header, tensors of all of them joined.
#[derive(Debug)]
pub(in crate::model) struct GgufFiles {
    /// In the order of the parts; a tensor's `file_idx` counts them.
    pub(in crate::model) files: Vec<File>,
    pub(in crate::model) gguf: Gguf,
}

/// The numbers of a part's header; absent where the file is whole.
struct Place {
    /// From 0.
    number: u64,
    count: u64,
}

impl GgufFiles {
    /// Brings the parts behind `file`, whose header is `gguf`, together; a file that is no part is all there
    /// is.
    pub(in crate::model) fn complete(path: &Path, file: File, gguf: Gguf) -> Result<GgufFiles, SplitError> {
        let place = place(path, &gguf.metadata)?;
        let Some(Place { number, count }) = place.filter(|place| place.count > 1) else {
            let files = vec![file];
            return Ok(GgufFiles { files, gguf });
        };
        let own_path = path.to_owned();
        if count > MAX_PARTS {
            let (path, found) = (own_path, count);
            return Err(SplitError::TooManyParts { path, found });
        }
        let stem = stem(path, number, count).ok_or_else(|| SplitError::BadName {
            path: own_path.clone(),
            number: number + 1,
            count,
        })?;
        let path_of = |number: u64| path.with_file_name(part_name(&stem, number, count));
        if number != 0 {
            return Err(SplitError::NotFirst {
                path: own_path,
                number: number + 1,
                count,
                first: path_of(0),
            });
        }
        let (metadata, places) = (gguf.metadata, gguf.places);
        let mut tensors = gguf.tensors.to_vec();
        let mut files = vec![file];
        for number in 1..count {
            let (file, part) = open_part(&path_of(number), number, count)?;
            let of_part = part.tensors.iter().cloned().map(|mut tensor| {
                tensor.file_idx = files.len();
                tensor
            });
            tensors.extend(of_part);
            files.push(file);
        }
        let n_tensors = tensors.len() as u64;
        let tensors =
            TensorTable::new(tensors).map_err(|DuplicateTensor { name }| SplitError::Duplicate {
                path: own_path.clone(),
                name,
            })?;
        let expected = number_at(path, &metadata, TENSOR_COUNT)?.unwrap_or(n_tensors);
        if n_tensors != expected {
            return Err(SplitError::WrongTensorCount {
                path: own_path,
                count,
                found: n_tensors,
                expected,
            });
        }
        let gguf = Gguf {
            metadata,
            tensors,
            places,
        };
        Ok(GgufFiles { files, gguf })
    }
}

fn open_part(path: &Path, number: u64, count: u64) -> Result<(File, Gguf), SplitError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (n_bytes, file) = opened.map_err(|source| SplitError::Open {
        path: path.to_owned(),
        number: number + 1,
        count,
        source,
    })?;
    let read = Gguf::read(BufReader::with_capacity(1 << 16, &file), n_bytes);
    let gguf = read.map_err(|source| SplitError::BadPart {
        path: path.to_owned(),
        source,
    })?;
    let found = place(path, &gguf.metadata)?.unwrap_or(Place { number: 0, count: 1 });
    if (found.number, found.count) != (number, count) {
        return Err(SplitError::ForeignPart {
            path: path.to_owned(),
            found: (found.number + 1, found.count),
            number: number + 1,
            count,
        });
    }
    Ok((file, gguf))
}

fn place(path: &Path, metadata: &Metadata) -> Result<Option<Place>, SplitError> {
    let (number, count) = (
        number_at(path, metadata, NUMBER)?,
        number_at(path, metadata, COUNT)?,
    );
    Ok(count.map(|count| Place {
        // No file has as many parts; the sum with 1 must not overflow.
        number: number.unwrap_or(0).min(u64::from(u32::MAX)),
        count,
    }))
}

fn number_at(path: &Path, metadata: &Metadata, key: &str) -> Result<Option<u64>, SplitError> {
    metadata.unsigned(key).map_err(|source| SplitError::BadKey {
        path: path.to_owned(),
        source,
    })
}

/// The name of part `number` (from 0).
fn part_name(stem: &str, number: u64, count: u64) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", number + 1)
}

/// What the names of all parts begin with, where the file is named as part `number` (from 0).
fn stem(path: &Path, number: u64, count: u64) -> Option<String> {
    let named = PartName::of(path.file_name()?.to_str()?)?;
    let is_so = (named.number, named.count) == (number + 1, count);
    is_so.then(|| named.stem.to_owned())
}

/// The name of a part of a split checkpoint: `STEM-NUMBER-of-COUNT.gguf`, numbers of five digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartName<'a> {
    /// What the names of all parts begin with.
    pub stem: &'a str,
    /// From 1.
    pub number: u64,
    /// Parts in all.
    pub count: u64,
}

impl PartName<'_> {
    /// The name, or the path, of a part; nothing where it is another file's.
    pub fn of(name: &str) -> Option<PartName<'_>> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let is_number = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().ok()).flatten()
        };
        Some(PartName {
            stem,
            number: digits(number)?,
            count: digits(count)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelFile;
    use crate::model::metadata::Value;
    use crate::model::testing::GgufWriter;

    /// The parts of the tiny llama: the header alone, then its layers.
    struct Parts {
        folder: tempfile::TempDir,
    }

    impl Parts {
        fn new() -> Parts {
            let parts = Parts {
                folder: tempfile::tempdir().expect("a temporary directory"),
            };
            let mut first = GgufWriter::tiny_llama_of(&[]);
            first.key(TENSOR_COUNT, &Value::Signed(20));
            parts.write(1, first, (0, 3));
            parts.write(2, GgufWriter::tiny_tensors(&[0]), (1, 3));
            parts.write(3, GgufWriter::tiny_tensors(&[1]), (2, 3));
            parts
        }

        fn path(&self, number: u64) -> PathBuf {
            self.folder.path().join(part_name("tiny", number - 1, 3))
        }

        fn write(&self, number: u64, mut writer: GgufWriter, (no, count): (u64, u64)) {
            writer.raw_key(NUMBER, 2, &(no as u16).to_le_bytes());
            writer.raw_key(COUNT, 2, &(count as u16).to_le_bytes());
            std::fs::write(self.path(number), writer.bytes()).expect("writable");
        }

        #[track_caller]
        fn refused(&self, number: u64, expected: &str) {
            let error = ModelFile::open(&self.path(number))
                .expect_err("bad parts")
                .to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn parts_are_read_as_the_whole_they_were() {
        use arbora_kernels::reference::ReferenceBackend;

        use crate::model::decoder::ForwardLimits;
        let parts = Parts::new();
        let file = ModelFile::open(&parts.path(1)).expect("good parts");
        let whole = parts.folder.path().join("whole.gguf");
        std::fs::write(&whole, GgufWriter::tiny_llama().bytes()).expect("writable");
        let whole = ModelFile::open(&whole).expect("a good file");
        assert_eq!(file.n_params(), whole.n_params());
        assert_eq!(file.config(), whole.config());
        let limits = ForwardLimits {
            max_rows: 1,
            max_logit_rows: 1,
        };
        let loaded = file.load_decoder(&mut ReferenceBackend::new(), 16, limits);
        loaded.map(drop).expect("every tensor is in one of the parts");
    }

    #[test]
    fn names_of_parts_are_told_from_other_names() {
        let part = PartName::of("a-b/c-Q4_0-00002-of-00010.gguf").expect("a part");
        assert_eq!((part.stem, part.number, part.count), ("a-b/c-Q4_0", 2, 10));
        for name in [
            "a.gguf",
            "a-1-of-3.gguf",
            "a-00001-of-0000x.gguf",
            "a-00001-of-00002",
            "00001-of-00002.gguf",
        ] {
            assert_eq!(PartName::of(name), None, "{name}");
        }
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused_in_a_line() {
        let parts = Parts::new();
        parts.refused(2, "is part 2 of 3: name the first one, ");
        parts.write(3, GgufWriter::tiny_tensors(&[0]), (2, 3));
        parts.refused(1, "is in two parts of ");
        parts.write(3, GgufWriter::tiny_tensors(&[1]), (1, 3));
        parts.refused(1, "is part 2 of 3 by its header, expected part 3 of 3");
        parts.write(3, GgufWriter::tiny_tensors(&[1]), (2, 4));
        parts.refused(1, "is part 3 of 4 by its header, expected part 3 of 3");
        std::fs::write(parts.path(3), GgufWriter::tiny_tensors(&[1]).bytes()).expect("writable");
        parts.refused(1, "is part 1 of 1 by its header, expected part 3 of 3");
        parts.write(3, GgufWriter::tiny_tensors(&[]), (2, 3));
        parts.refused(1, "have 11 tensors, `split.tensors.count` says 20");
        std::fs::write(parts.path(3), "GGUX").expect("writable");
        parts.refused(1, "tiny-00003-of-00003.gguf: not a GGUF file");
        std::fs::remove_file(parts.path(3)).expect("it is there");
        parts.refused(1, "tiny-00003-of-00003.gguf, part 3 of 3: ");
        std::fs::rename(parts.path(1), parts.path(3)).expect("it is there");
        parts.refused(3, "is part 1 of 3 by its header, but not by its name");
        parts.write(1, GgufWriter::tiny_llama(), (0, 5000));
        parts.refused(1, "`split.count` = 5000: must be at most 1024");
    }
}
