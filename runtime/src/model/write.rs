//! Writing a quantized model: a GGUF file with the keys of the one it came from, or, of a folder, the
//! folder's settings beside [`QUANTIZED_FILE`], whose tensors have the folder's names.
//!
//! ```text
//! "GGUF" | version 3 | n_tensors | n_keys | keys | tensor table | padding | data, each tensor padded
//! ```
//!
//! A file appears whole or not at all.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use arbora_kernels::quant::Format;
use serde_json::{Map, Value as Json};

use super::directory::{CONFIG_FILE, OPTIONAL_FILES, TOKENIZER_FILE};
use super::file::{LoadError, ModelFile, read_gguf};
use super::quantize::Quantization;
use super::templates;
use super::tensors::TensorInfo;
use super::weights::{Data, WeightSource};
use crate::tokenizer::SENTENCEPIECE_FILE;

/// The weights of a folder that was quantized.
pub const QUANTIZED_FILE: &str = "model.gguf";

/// Where it is while it is written.
const PARTIAL: &str = "partial";
const ALIGNMENT: u64 = 32;
const TEXT: u32 = 8;
const U32: u32 = 4;
const FILE_TYPE: &str = "general.file_type";
const ALIGNMENT_KEY: &str = "general.alignment";
/// Keys of one part of a split file.
const SPLIT: &str = "split.";

/// What GGUF calls a file most of whose weights are in `format`.
fn file_type(format: Format) -> u32 {
    match format {
        Format::Q4_0 => 2,
        Format::Q4K => 14,
        _ => 7,
    }
}

/// Keys of a header, as bytes.
#[derive(Default)]
struct Keys {
    bytes: Vec<u8>,
    n_keys: u64,
}

impl Keys {
    fn push_text(&mut self, key: &str, value: &str) {
        push_string(&mut self.bytes, key);
        self.bytes.extend(TEXT.to_le_bytes());
        push_string(&mut self.bytes, value);
        self.n_keys += 1;
    }

    fn push_u32(&mut self, key: &str, value: u32) {
        push_string(&mut self.bytes, key);
        self.bytes.extend(U32.to_le_bytes());
        self.bytes.extend(value.to_le_bytes());
        self.n_keys += 1;
    }

    /// Those of a GGUF file, but for what is said of its parts, its alignment and its type.
    fn of_file(path: &Path, format: Format) -> Result<Keys, LoadError> {
        let (file, gguf) = read_gguf(path)?;
        let mut keys = Keys::default();
        for (key, place) in gguf.places {
            if key == FILE_TYPE || key == ALIGNMENT_KEY || key.starts_with(SPLIT) {
                continue;
            }
            let start = keys.bytes.len();
            keys.bytes.resize(start + (place.end - place.start) as usize, 0);
            let read = file.read_exact_at(&mut keys.bytes[start..], place.start);
            read.map_err(|source| LoadError::Open {
                path: path.to_owned(),
                source,
            })?;
            keys.n_keys += 1;
        }
        keys.push_u32(FILE_TYPE, file_type(format));
        Ok(keys)
    }
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl ModelFile {
    /// Writes the model as it is in memory after [`ModelFile::quantized`]: a GGUF file as a GGUF file, a
    /// folder as a folder that is made.
    ///
    /// # Errors
    /// When it was not quantized, a tensor cannot be read, or `out` cannot be written or is there already.
    pub fn write_quantized(&self, out: &Path) -> Result<(), LoadError> {
        let Some(quantization) = self.plan() else {
            return Err(LoadError::NotFloat {
                path: self.path().to_owned(),
                kind: self.quantization(),
            });
        };
        let failed = |source| LoadError::Write {
            path: out.to_owned(),
            source,
        };
        if out.exists() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        if !self.path().is_dir() {
            let keys = Keys::of_file(self.path(), quantization.format)?;
            return self.write_gguf(out, &keys, quantization);
        }
        fs::create_dir_all(out).map_err(failed)?;
        let mut keys = Keys::default();
        // Which decoder it is for is in the settings beside it.
        keys.push_text("general.architecture", "arbora");
        keys.push_text("general.name", &self.name());
        keys.push_u32(FILE_TYPE, file_type(quantization.format));
        self.write_gguf(&out.join(QUANTIZED_FILE), &keys, quantization)?;
        copy_settings(self.path(), out).map_err(failed)
    }

    fn write_gguf(&self, out: &Path, keys: &Keys, quantization: &Quantization) -> Result<(), LoadError> {
        let partial = out.with_added_extension(PARTIAL);
        let written = self.write_partial(&partial, keys, quantization);
        let failed = |source| LoadError::Write {
            path: out.to_owned(),
            source,
        };
        match written {
            Ok(()) => fs::rename(&partial, out).map_err(failed),
            Err(error) => {
                // It may not even be there; the error that is told is the first one.
                fs::remove_file(&partial).ok();
                Err(error)
            }
        }
    }

    fn write_partial(&self, path: &Path, keys: &Keys, quantization: &Quantization) -> Result<(), LoadError> {
        let failed = |source| LoadError::Write {
            path: path.to_owned(),
            source,
        };
        let Data::Files { files, tensors } = self.data() else {
            unreachable!("made-up weights are not quantized");
        };
        let source = WeightSource {
            data: Data::Files { files, tensors },
            config: self.config(),
            quantization: Some(quantization),
            n_done: Cell::new(0),
        };
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend(keys.n_keys.to_le_bytes());
        header.extend(&keys.bytes);
        let mut offset = 0u64;
        for tensor in tensors.iter() {
            offset += self
                .push_info(tensor, offset, &mut header)?
                .next_multiple_of(ALIGNMENT);
        }
        header.resize((header.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
        let file = File::create(path).map_err(failed)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&header).map_err(failed)?;
        let mut buffer = Vec::new();
        for tensor in tensors.iter() {
            buffer.clear();
            source.append(tensor, &mut buffer)?;
            buffer.resize((buffer.len() as u64).next_multiple_of(ALIGNMENT) as usize, 0);
            file.write_all(&buffer).map_err(failed)?;
        }
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)
    }

    /// Appends the entry of a tensor; returns its bytes.
    fn push_info(&self, tensor: &TensorInfo, offset: u64, header: &mut Vec<u8>) -> Result<u64, LoadError> {
        let format = self.format_in_memory(tensor);
        let known = format.and_then(|format| Some((format, format.ggml_type()?)));
        let (format, kind) = known.ok_or_else(|| LoadError::UnsupportedFormat {
            name: tensor.name.clone(),
            kind: tensor.kind,
            expected: "a format of GGUF".to_owned(),
        })?;
        push_string(header, &tensor.name);
        header.extend((tensor.dimensions.len() as u32).to_le_bytes());
        for size in &tensor.dimensions {
            header.extend(size.to_le_bytes());
        }
        header.extend(kind.to_le_bytes());
        header.extend(offset.to_le_bytes());
        Ok(tensor.n_elements() / format.block_len() as u64 * format.block_bytes() as u64)
    }
}

/// Removes what is left where writing to `out` was given up.
pub fn remove_partial(out: &Path) {
    for path in [out.to_owned(), out.join(QUANTIZED_FILE)] {
        // Most often there is none.
        fs::remove_file(path.with_added_extension(PARTIAL)).ok();
    }
}

/// Copies what describes a folder's model but its weights.
fn copy_settings(from: &Path, to: &Path) -> io::Result<()> {
    let text = fs::read(from.join(CONFIG_FILE))?;
    let mut config: Map<String, Json> = serde_json::from_slice(&text)?;
    // The weights are no longer stored so.
    config.remove("quantization_config");
    config.remove("compression_config");
    fs::write(to.join(CONFIG_FILE), serde_json::to_vec_pretty(&config)?)?;
    for file in [TOKENIZER_FILE, SENTENCEPIECE_FILE]
        .into_iter()
        .chain(OPTIONAL_FILES)
    {
        if from.join(file).is_file() {
            fs::copy(from.join(file), to.join(file))?;
        }
    }
    templates::copy_others(from, to)
}
