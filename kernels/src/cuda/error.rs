//! Errors of the CUDA backend: each names what is missing or refused, and what to do about it.

use std::path::PathBuf;

use crate::BackendError;

/// Why a CUDA device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// No driver library.
    #[error(
        "no CUDA device: the NVIDIA driver is not installed (libcuda.so.1 was not found); install it, or use \
         --device cpu"
    )]
    NoDriver,
    /// The driver lacks functions that are used.
    #[error("the NVIDIA driver is too old: it lacks {symbol}; version 525 or newer is needed")]
    OldDriver {
        /// The first missing function.
        symbol: &'static str,
    },
    /// The driver sees no device of this number.
    #[error("no CUDA device {ordinal}: the driver sees {n_devices}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        n_devices: usize,
    },
    /// The device cannot run the kernels.
    #[error("CUDA device '{name}' has compute capability {major}.{minor}; 8.0 or newer is needed")]
    OldDevice {
        /// Its name.
        name: String,
        /// Major part of its compute capability.
        major: i32,
        /// Minor part.
        minor: i32,
    },
    /// No compiler library.
    #[error(
        "the CUDA run-time compiler (libnvrtc) was not found in {searched}; install the CUDA toolkit or \
         `pip install nvidia-cuda-nvrtc`, and name its folder with --cuda-libraries"
    )]
    NoCompiler {
        /// Where it was looked for.
        searched: String,
    },
    /// A library without a function that it should have.
    #[error("{library} is not a usable CUDA compiler: {reason}")]
    BadCompiler {
        /// The file.
        library: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// A kernel that the compiler refuses.
    #[error("the CUDA compiler refuses {source_name} for {arch}: {log}")]
    Compile {
        /// Name of the source file.
        source_name: String,
        /// Architecture it was compiled for.
        arch: String,
        /// What the compiler says.
        log: String,
    },
    /// The driver is older than the compiler.
    #[error(
        "the NVIDIA driver loads no code of CUDA {compiler_major}: it supports CUDA {major}.{minor}; update the \
         driver, or install nvidia-cuda-nvrtc of version {major}"
    )]
    DriverOlderThanCompiler {
        /// What the driver supports.
        major: i32,
        /// Minor part.
        minor: i32,
        /// Of the compiler.
        compiler_major: i32,
    },
    /// The device has too little memory.
    #[error("out of memory on the CUDA device: {bytes} bytes asked for, {free} of {total} free")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// Free bytes.
        free: usize,
        /// All bytes.
        total: usize,
    },
    /// A call of the driver failed.
    #[error("CUDA driver: {call} failed: {name}")]
    Driver {
        /// The function.
        call: &'static str,
        /// Name of the error.
        name: String,
    },
}

/// What the trait's errors say of a failure of the device.
pub(super) fn allocation(what: &'static str, error: CudaError) -> BackendError {
    match error {
        CudaError::OutOfMemory { bytes, .. } => BackendError::OutOfMemory { what, bytes },
        other => BackendError::Device {
            what,
            reason: other.to_string(),
        },
    }
}
