//! Quantizing a floating-point checkpoint: which format each matrix gets, and its blocks, computed by several
//! threads. A server that quantizes while it loads and a file that was quantized before have the same bytes.
//!
//! ```text
//! matrix                                         format
//! the output head (a tied embedding too)         Q8_0: four bits there cost more than elsewhere
//! rows that are a multiple of its block          the one asked for
//! rows that are a multiple of 32 only (Q4_K)     Q8_0
//! other rows, and vectors                        as they are
//! routers of experts                             as they are: which experts a row chooses hangs on little
//! experts whose columns are their outputs        as they are (gpt-oss in floating point)
//! ```

use std::sync::Arc;

use arbora_kernels::quant::{Format, can_quantize, dequantize_row, quantize_row};

use super::config::DecoderConfig;
use super::names::{ExpertLayout, Naming, Part};
use super::tensors::TensorInfo;

/// Rows that a thread takes at least: what a thread costs to start is more than a few are.
const MIN_ROWS: usize = 64;

/// Told how many weights of how many are done.
pub type OnProgress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// How a checkpoint is to be quantized.
#[derive(Clone)]
pub struct Quantization {
    /// Q8_0, Q4_0 or Q4_K.
    pub format: Format,
    /// Threads that compute it.
    pub n_threads: usize,
    /// Told how far it is.
    pub on_progress: OnProgress,
}

impl Quantization {
    /// Every format by the name an operator gives.
    pub const NAMES: [(&str, Format); 3] = [
        ("q8_0", Format::Q8_0),
        ("q4_0", Format::Q4_0),
        ("q4_k", Format::Q4K),
    ];

    /// What a tensor becomes; nothing of one that stays as it is.
    pub(super) fn target(&self, config: &DecoderConfig, tensor: &TensorInfo) -> Option<Format> {
        assert!(can_quantize(self.format), "no quantizer for {:?}", self.format);
        let is_float = tensor.kind.format().is_some_and(|format| !format.is_quantized());
        let is_matrix = tensor.dimensions.iter().skip(1).any(|&size| size > 1);
        if !is_float || !is_matrix || is_router(config, tensor) || has_outputs_in_columns(config, tensor) {
            return None;
        }
        let head = match config.tied_head {
            true => Part::Embedding,
            false => Part::Head,
        };
        let is_head = tensor.name == config.tensors.outer(head);
        let wanted = if is_head { Format::Q8_0 } else { self.format };
        let n_in = usize::try_from(tensor.dimensions[0]).ok()?;
        [wanted, Format::Q8_0]
            .into_iter()
            .find(|format| format.row_bytes(n_in).is_some())
    }

    /// The rows of `bytes` in `from`, in `to`. An error where no thread is to be had.
    pub(super) fn convert(
        &self,
        n_in: usize,
        (from, bytes): (Format, &[u8]),
        to: Format,
    ) -> std::io::Result<Vec<u8>> {
        let row_bytes = from.row_bytes(n_in).expect("a row of the checkpoint");
        let out_bytes = to.row_bytes(n_in).expect("a format that the rows fit");
        let n_rows = bytes.len() / row_bytes;
        let mut out = vec![0; n_rows * out_bytes];
        let n_rows_each = n_rows.div_ceil(self.n_threads.max(1)).max(MIN_ROWS);
        let convert = |bytes: &[u8], out: &mut [u8]| {
            let mut weights = vec![0.0; n_in];
            for (row, out) in bytes.chunks_exact(row_bytes).zip(out.chunks_exact_mut(out_bytes)) {
                dequantize_row(from, row, &mut weights);
                quantize_row(to, &weights, out);
            }
        };
        let shares = bytes
            .chunks(n_rows_each * row_bytes)
            .zip(out.chunks_mut(n_rows_each * out_bytes));
        std::thread::scope(|scope| {
            for (bytes, out) in shares {
                if n_rows <= n_rows_each {
                    convert(bytes, out);
                    continue;
                }
                let thread = std::thread::Builder::new().name("quantize".to_owned());
                thread.spawn_scoped(scope, move || convert(bytes, out))?;
            }
            Ok(())
        })
        .map(|()| out)
    }
}

fn is_router(config: &DecoderConfig, tensor: &TensorInfo) -> bool {
    let Some(experts) = &config.experts else {
        return false;
    };
    tensor.dimensions == [config.width as u64, experts.n_experts as u64]
}

fn has_outputs_in_columns(config: &DecoderConfig, tensor: &TensorInfo) -> bool {
    let names = &config.tensors;
    let is_interleaved = names.naming == Naming::HuggingFace && names.experts == ExpertLayout::Interleaved;
    is_interleaved && tensor.dimensions.len() == 3
}

impl std::fmt::Debug for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("Quantization");
        fields
            .field("format", &self.format)
            .field("n_threads", &self.n_threads)
            .finish_non_exhaustive()
    }
}
