//! Quantizing a model while it is loaded (`--quantize`) or into a file (`arbora quantize`), with its progress
//! on standard error.

use std::path::Path;
use std::sync::{Arc, Mutex};

use arbora_kernels::quant::Format;
use arbora_runtime::model::quantize::Quantization;
use arbora_runtime::model::{LoadError, ModelFile};

use crate::log::LogWriter;
use crate::progress::Progress;

/// The line that tells how far it is; gone with the model's file.
struct Shown {
    progress: Mutex<Progress>,
    format: Format,
}

impl Shown {
    fn show(&self, n_done: u64, n_weights: u64) {
        let percent = (100 * u128::from(n_done) / u128::from(n_weights.max(1))) as u64;
        let news = format!("quantizing to {}: {percent} % of the weights", self.format.name());
        // Whoever panicked with it only wrote a line.
        if let Ok(mut progress) = self.progress.lock() {
            progress.show(&news);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Ok(progress) = self.progress.lock() {
            progress.clear();
        }
    }
}

/// `file` with its matrices quantized to `format` as they are read, by `n_threads`.
///
/// # Errors
/// When the weights are not in floating point.
pub fn quantized(
    file: ModelFile,
    format: Format,
    n_threads: usize,
    log: &LogWriter,
) -> Result<ModelFile, LoadError> {
    let shown = Shown {
        progress: Mutex::new(Progress::new(log)),
        format,
    };
    file.quantized(Quantization {
        format,
        n_threads,
        on_progress: Arc::new(move |n_done, n_weights| shown.show(n_done, n_weights)),
    })
}

/// Writes the model at `path`, quantized, to `out`: a GGUF file, or of a folder a folder with one.
///
/// # Errors
/// When the model is not what it should be or not in floating point, or `out` is there or cannot be written.
pub fn quantize(
    path: &Path,
    out: &Path,
    (format, n_threads): (Format, usize),
    log: &LogWriter,
) -> Result<(), LoadError> {
    let file = quantized(ModelFile::open(path)?, format, n_threads, log)?;
    file.write_quantized(out)?;
    let n_bytes = file.weight_bytes();
    drop(file);
    let megabytes = n_bytes as f64 / 1e6;
    Progress::new(log).done(&format!(
        "{} has {megabytes:.1} MB of weights in {}",
        out.display(),
        format.name()
    ));
    Ok(())
}
