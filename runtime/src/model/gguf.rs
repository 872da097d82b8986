//! A bounded reader of GGUF headers (versions 2 and 3, little endian).
//!
//! A model file is input from a stranger. Every count and length is checked against the bytes that are left
//! before anything is allocated for it, so that memory stays within a small multiple of the file's header,
//! and no sequence of bytes panics:
//!
//! ```text
//! header bytes <= MAX_HEADER_BYTES      n_keys <= MAX_KEYS      n_tensors <= MAX_TENSORS
//! string bytes <= bytes left            n_elements * smallest element <= bytes left
//! alignment: a power of two, <= MAX_ALIGNMENT
//! tensor: 1..=4 dimensions, none 0, offset % alignment == 0, offset + size <= data bytes, no two overlap
//! ```
//!
//! A tensor in a format that is not read here is no error until somebody wants it.
//!
//! Source: the GGUF specification of the ggml project.

mod split;

use std::io::Read;
use std::ops::Range;

pub(super) use self::split::GgufFiles;
pub use self::split::{MAX_PARTS, PartName, SplitError};
use super::metadata::{Metadata, Strings, Value};
use super::tensors::{DuplicateTensor, TensorInfo, TensorTable, TensorType};

/// Most bytes of metadata and tensor table together.
pub const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Most metadata keys.
pub const MAX_KEYS: u64 = 16_384;
/// Most tensors.
pub const MAX_TENSORS: u64 = 131_072;
/// Longest metadata key and tensor name, in bytes.
pub const MAX_NAME_BYTES: u64 = 1024;
/// Largest alignment of tensor data.
pub const MAX_ALIGNMENT: u64 = 1 << 20;
/// Most dimensions of a tensor.
pub const MAX_DIMENSIONS: usize = 4;

const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// Why a file is not a usable GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be read.
    #[error("reading the file: {0}")]
    Io(#[from] std::io::Error),
    /// The magic number is another one.
    #[error("not a GGUF file: it starts with {found:02x?}")]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version that is not read here.
    #[error("GGUF version {found} is not supported (2 and 3 are, little endian)")]
    BadVersion {
        /// The version.
        found: u32,
    },
    /// A length or a count reaches beyond the end of the file or a limit.
    #[error("{what} of {found} at byte {offset} exceeds the limit of {limit}")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The number in the file.
        found: u64,
        /// The most that is accepted here.
        limit: u64,
        /// Where it stands.
        offset: u64,
    },
    /// The file ends too early.
    #[error("the header ends within {what} at byte {offset}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
    },
    /// A value that means nothing.
    #[error("bad {what} {found} at byte {offset}")]
    BadValue {
        /// What it should be.
        what: &'static str,
        /// The number in the file.
        found: u64,
        /// Where it stands.
        offset: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {offset} is not UTF-8")]
    NotUtf8 {
        /// What it is.
        what: &'static str,
        /// Where it starts.
        offset: u64,
    },
    /// Two entries of one name.
    #[error("{what} `{name}` appears twice")]
    Duplicate {
        /// Key or tensor.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A tensor whose place in the file is impossible.
    #[error("tensor `{name}`: {reason}")]
    BadTensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// The header of a GGUF file: everything but the tensors' data.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// Keys and values.
    pub metadata: Metadata,
    /// The tensor table, in the file's order.
    pub tensors: TensorTable,
    /// Where each key is with its type and value: name, first byte and the byte after the last.
    pub(super) places: Vec<(String, Range<u64>)>,
}

impl Gguf {
    /// Reads a header from `reader`, which stands at the start of a file of `file_bytes`.
    pub fn read(reader: impl Read, file_bytes: u64) -> Result<Gguf, GgufError> {
        let mut cursor = Cursor {
            reader,
            offset: 0,
            limit: file_bytes.min(MAX_HEADER_BYTES),
        };
        let magic: [u8; 4] = cursor.array("the magic number")?;
        if magic != *b"GGUF" {
            return Err(GgufError::BadMagic { found: magic });
        }
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::BadVersion { found: version });
        }
        // The smallest entries there are: a tensor (empty name, one dimension) and a key (one-byte value).
        let n_tensors = cursor.count("tensor count", 8 + 4 + 8 + 4 + 8, MAX_TENSORS)?;
        let n_keys = cursor.count("key count", 8 + 4 + 1, MAX_KEYS)?;
        let (metadata, places) = read_metadata(&mut cursor, n_keys)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::with_capacity(n_tensors);
        for _ in 0..n_tensors {
            tensors.push(read_tensor_info(&mut cursor, alignment)?);
        }
        let data_start = cursor.offset.next_multiple_of(alignment);
        place_tensors(&mut tensors, data_start, file_bytes)?;
        let tensors = TensorTable::new(tensors)
            .map_err(|DuplicateTensor { name }| GgufError::Duplicate { what: "tensor", name })?;
        Ok(Gguf {
            metadata,
            tensors,
            places,
        })
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.named(name)
    }
}

/// Keys and values of a header, and where they are.
type Keys = (Metadata, Vec<(String, Range<u64>)>);

fn read_metadata<R: Read>(cursor: &mut Cursor<R>, n_keys: usize) -> Result<Keys, GgufError> {
    let mut metadata = Metadata::default();
    let mut places = Vec::with_capacity(n_keys);
    for _ in 0..n_keys {
        let start = cursor.offset;
        let key = cursor.name("key")?;
        let kind = cursor.u32("a value type")?;
        let value = read_value(cursor, kind)?;
        places.push((key.clone(), start..cursor.offset));
        if !metadata.insert(key.clone(), value) {
            return Err(GgufError::Duplicate {
                what: "key",
                name: key,
            });
        }
    }
    Ok((metadata, places))
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let found = match metadata.unsigned(ALIGNMENT_KEY) {
        Ok(found) => found.unwrap_or(DEFAULT_ALIGNMENT),
        Err(_) => 0,
    };
    if !found.is_power_of_two() || found > MAX_ALIGNMENT {
        let what = ALIGNMENT_KEY;
        return Err(GgufError::BadValue {
            what,
            found,
            offset: 0,
        });
    }
    Ok(found)
}

fn read_value<R: Read>(cursor: &mut Cursor<R>, kind: u32) -> Result<Value, GgufError> {
    let what = "a value";
    Ok(match kind {
        0 => Value::Unsigned(u64::from(cursor.array::<1>(what)?[0])),
        1 => Value::Signed(i64::from(i8::from_le_bytes(cursor.array(what)?))),
        2 => Value::Unsigned(u64::from(u16::from_le_bytes(cursor.array(what)?))),
        3 => Value::Signed(i64::from(i16::from_le_bytes(cursor.array(what)?))),
        4 => Value::Unsigned(u64::from(cursor.u32(what)?)),
        5 => Value::Signed(i64::from(i32::from_le_bytes(cursor.array(what)?))),
        6 => Value::Float(f64::from(f32::from_le_bytes(cursor.array(what)?))),
        7 => Value::Bool(cursor.flag()?),
        8 => Value::Text(cursor.string("a string value", MAX_HEADER_BYTES)?),
        9 => read_array(cursor)?,
        10 => Value::Unsigned(cursor.u64(what)?),
        11 => Value::Signed(i64::from_le_bytes(cursor.array(what)?)),
        12 => Value::Float(f64::from_le_bytes(cursor.array(what)?)),
        other => return Err(cursor.bad("value type", u64::from(other))),
    })
}

fn read_array<R: Read>(cursor: &mut Cursor<R>) -> Result<Value, GgufError> {
    let kind = cursor.u32("an element type")?;
    let element_bytes = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        // Arrays of arrays are allowed by the format and written by nobody.
        other => return Err(cursor.bad("element type", u64::from(other))),
    };
    let n_elements = cursor.count("array length", element_bytes, u64::MAX)?;
    if kind == 8 {
        let mut strings = Strings::default();
        let mut buffer = Vec::new();
        for _ in 0..n_elements {
            strings.push(cursor.string_in(&mut buffer, "a string element", MAX_HEADER_BYTES)?);
        }
        return Ok(Value::Strings(strings));
    }
    // `count` has seen that these bytes are in the file.
    let mut bytes = vec![0; n_elements * element_bytes as usize];
    cursor.fill(&mut bytes, "an array")?;
    let bad = |what, found| GgufError::BadValue {
        what,
        found,
        offset: cursor.offset,
    };
    Ok(match kind {
        0 => Value::Integers(elements(&bytes, |[a]: [u8; 1]| i64::from(a))),
        1 => Value::Integers(elements(&bytes, |a| i64::from(i8::from_le_bytes(a)))),
        2 => Value::Integers(elements(&bytes, |a| i64::from(u16::from_le_bytes(a)))),
        3 => Value::Integers(elements(&bytes, |a| i64::from(i16::from_le_bytes(a)))),
        4 => Value::Integers(elements(&bytes, |a| i64::from(u32::from_le_bytes(a)))),
        5 => Value::Integers(elements(&bytes, |a| i64::from(i32::from_le_bytes(a)))),
        6 => Value::Floats(elements(&bytes, |a| f64::from(f32::from_le_bytes(a)))),
        7 => match bytes.iter().find(|&&byte| byte > 1) {
            Some(&byte) => return Err(bad("boolean", u64::from(byte))),
            None => Value::Bools(bytes.iter().map(|&byte| byte == 1).collect()),
        },
        10 => {
            let numbers = elements(&bytes, u64::from_le_bytes);
            match numbers.iter().find(|&&number| i64::try_from(number).is_err()) {
                Some(&number) => return Err(bad("integer", number)),
                None => Value::Integers(numbers.iter().map(|&number| number as i64).collect()),
            }
        }
        11 => Value::Integers(elements(&bytes, i64::from_le_bytes)),
        _ => Value::Floats(elements(&bytes, f64::from_le_bytes)),
    })
}

fn elements<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}

fn read_tensor_info<R: Read>(cursor: &mut Cursor<R>, alignment: u64) -> Result<TensorInfo, GgufError> {
    let name = cursor.name("tensor name")?;
    let n_dimensions = cursor.u32("a dimension count")? as usize;
    let bad = |reason| {
        let name = name.clone();
        Err(GgufError::BadTensor { name, reason })
    };
    if !(1..=MAX_DIMENSIONS).contains(&n_dimensions) {
        return bad("must have one to four dimensions");
    }
    let mut dimensions = Vec::with_capacity(n_dimensions);
    let mut n_elements = 1u64;
    for _ in 0..n_dimensions {
        let size = cursor.u64("a dimension")?;
        n_elements = match n_elements.checked_mul(size) {
            Some(0) => return bad("has a dimension of 0"),
            Some(product) => product,
            None => return bad("has too many elements"),
        };
        dimensions.push(size);
    }
    let kind = TensorType::Ggml(cursor.u32("a tensor type")?);
    let offset = cursor.u64("a tensor offset")?;
    if offset % alignment != 0 {
        return bad("does not start at a multiple of the alignment");
    }
    let n_bytes = match kind.format() {
        None => None,
        Some(format) => {
            let block_len = format.block_len() as u64;
            if dimensions[0] % block_len != 0 {
                return bad("has rows that are no whole number of blocks");
            }
            match (n_elements / block_len).checked_mul(format.block_bytes() as u64) {
                Some(n_bytes) => Some(n_bytes),
                None => return bad("has too many bytes"),
            }
        }
    };
    Ok(TensorInfo {
        name,
        dimensions,
        kind,
        file_idx: 0,
        offset,
        n_bytes,
    })
}

/// Turns offsets within the data into offsets within the file and checks that every tensor is inside and none
/// overlaps another. A tensor of unknown size counts as one byte.
fn place_tensors(tensors: &mut [TensorInfo], data_start: u64, file_bytes: u64) -> Result<(), GgufError> {
    for tensor in tensors.iter_mut() {
        let end = data_start
            .checked_add(tensor.offset)
            .and_then(|start| start.checked_add(tensor.n_bytes.unwrap_or(1)));
        match end {
            Some(end) if end <= file_bytes => tensor.offset += data_start,
            _ => {
                let name = tensor.name.clone();
                let reason = "reaches beyond the end of the file";
                return Err(GgufError::BadTensor { name, reason });
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].n_bytes.unwrap_or(1) > pair[1].offset {
            let name = pair[1].name.clone();
            let reason = "overlaps another tensor";
            return Err(GgufError::BadTensor { name, reason });
        }
    }
    Ok(())
}

/// A reader that knows where it is and how far it may go.
struct Cursor<R> {
    reader: R,
    offset: u64,
    limit: u64,
}

impl<R: Read> Cursor<R> {
    fn fill(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), GgufError> {
        let truncated = GgufError::Truncated {
            what,
            offset: self.offset,
        };
        if buffer.len() as u64 > self.limit - self.offset {
            return Err(truncated);
        }
        match self.reader.read_exact(buffer) {
            Ok(()) => {
                self.offset += buffer.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(truncated),
            Err(error) => Err(GgufError::Io(error)),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn flag(&mut self) -> Result<bool, GgufError> {
        match self.array::<1>("a boolean")?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.bad("boolean", u64::from(other))),
        }
    }

    /// A count of things of at least `element_bytes` each, all of which must fit what is left.
    fn count(&mut self, what: &'static str, element_bytes: u64, most: u64) -> Result<usize, GgufError> {
        let offset = self.offset;
        let found = self.u64(what)?;
        let limit = most.min((self.limit - self.offset) / element_bytes);
        if found > limit {
            return Err(GgufError::TooLarge {
                what,
                found,
                limit,
                offset,
            });
        }
        Ok(found as usize)
    }

    fn string(&mut self, what: &'static str, most: u64) -> Result<String, GgufError> {
        let mut buffer = Vec::new();
        self.string_in(&mut buffer, what, most).map(str::to_owned)
    }

    fn name(&mut self, what: &'static str) -> Result<String, GgufError> {
        self.string(what, MAX_NAME_BYTES)
    }

    fn string_in<'a>(
        &mut self,
        buffer: &'a mut Vec<u8>,
        what: &'static str,
        most: u64,
    ) -> Result<&'a str, GgufError> {
        let n_bytes = self.count(what, 1, most)?;
        let offset = self.offset;
        buffer.clear();
        buffer.resize(n_bytes, 0);
        self.fill(buffer, what)?;
        std::str::from_utf8(buffer).map_err(|_| GgufError::NotUtf8 { what, offset })
    }

    fn bad(&self, what: &'static str, found: u64) -> GgufError {
        GgufError::BadValue {
            what,
            found,
            offset: self.offset,
        }
    }
}

#[cfg(test)]
mod tests;
