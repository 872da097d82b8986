//! Which device computes.

use std::path::PathBuf;

use super::{cache_directory, environment};

/// The devices by the names that `--device` knows.
pub(super) const DEVICES: [(&str, DeviceChoice); 3] = [
    ("cpu", DeviceChoice::Cpu),
    ("cuda", DeviceChoice::Cuda),
    ("auto", DeviceChoice::Auto),
];

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// A CUDA device, or nothing.
    Cuda,
    /// A CUDA device where one works, else the CPU.
    Auto,
}

/// Where CUDA's compiler is looked for and its results are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaFolders {
    /// Folders of libraries, the first one first.
    pub libraries: Vec<PathBuf>,
    /// Compiled kernels.
    pub cache: Option<PathBuf>,
}

impl CudaFolders {
    /// `given` first, then `CUDA_HOME` and `CUDA_PATH`.
    pub(super) fn new(given: Option<PathBuf>) -> Self {
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(environment);
        let homes = homes
            .filter(|home| !home.is_empty())
            .map(|home| PathBuf::from(home).join("lib64"));
        CudaFolders {
            libraries: given.into_iter().chain(homes).collect(),
            cache: cache_directory().map(|cache| cache.join("arbora").join("kernels")),
        }
    }
}
