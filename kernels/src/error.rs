//! Errors of backends.

use crate::KvShape;
use crate::quant::Format;

/// What can go wrong while a backend is being filled. Steps themselves do not fail: a broken shape is a bug
/// and panics with the numbers.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The device refused an allocation.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What was being allocated.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A weight matrix that the backend cannot use.
    #[error("weight matrix of {n_out} x {n_in} in {format:?}: {reason}")]
    BadMatrix {
        /// Format in the file.
        format: Format,
        /// Outputs.
        n_out: usize,
        /// Inputs.
        n_in: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An instruction set that this machine lacks was asked for.
    #[error("instruction set '{isa}' is not available on this machine")]
    UnavailableIsa {
        /// Its name.
        isa: &'static str,
    },
    /// The threads could not be started.
    #[error("cannot start {n_threads} threads")]
    Threads {
        /// How many were asked for.
        n_threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The device failed while it was being filled.
    #[error("the device failed: {what}: {reason}")]
    Device {
        /// What it was asked to hold.
        what: &'static str,
        /// What it said.
        reason: String,
    },
    /// The device has no kernels for it.
    #[error("this device cannot compute {what}")]
    Unsupported {
        /// What the model needs.
        what: &'static str,
    },
    /// A KV shape outside the backend's limits.
    #[error("KV pool {shape:?}: {reason}")]
    BadKvShape {
        /// The shape asked for.
        shape: KvShape,
        /// What is wrong with it.
        reason: &'static str,
    },
}
