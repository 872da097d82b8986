//! The kernels: their sources, and the loaded functions.

use super::cache::KernelCache;
use super::device::{Device, Function, Module};
use super::error::CudaError;
use super::nvrtc::{Nvrtc, Source};

/// The header of all kernels.
pub const HEADER: Source = Source {
    name: "common.cuh",
    text: include_str!("../../cu/common.cuh"),
};

/// The sources of all kernels.
pub const SOURCES: [Source; 4] = [
    Source {
        name: "rows.cu",
        text: include_str!("../../cu/rows.cu"),
    },
    Source {
        name: "matmul.cu",
        text: include_str!("../../cu/matmul.cu"),
    },
    Source {
        name: "attention.cu",
        text: include_str!("../../cu/attention.cu"),
    },
    Source {
        name: "sample.cu",
        text: include_str!("../../cu/sample.cu"),
    },
];

/// Dynamic shared memory that the attention kernel may use: what every device from 8.0 on can give.
pub(crate) const MAX_SHARED: usize = 96 << 10;

/// Every kernel, loaded.
pub(crate) struct Kernels {
    pub(crate) embed: Function,
    pub(crate) norm: Function,
    pub(crate) add_norm: Function,
    pub(crate) norm_span: Function,
    pub(crate) add: Function,
    pub(crate) elementwise: Function,
    pub(crate) gated: Function,
    pub(crate) gather: Function,
    pub(crate) matmul: Function,
    pub(crate) rope_store: Function,
    pub(crate) attention: Function,
    pub(crate) sample: Function,
    /// The functions live as long as these.
    _modules: [Module; 4],
}

impl Kernels {
    /// Compiles what the cache lacks, and loads all.
    pub(crate) fn load(device: &Device, nvrtc: &Nvrtc, cache: &KernelCache) -> Result<Kernels, CudaError> {
        let arch = device.arch();
        let load = |source| device.load(&cache.compiled(nvrtc, source, HEADER, &arch)?);
        let [rows, matmul, attention, sample] = SOURCES;
        let modules = [load(rows)?, load(matmul)?, load(attention)?, load(sample)?];
        let [rows, matmul, attention, sample] = &modules;
        Ok(Kernels {
            embed: rows.function("embed", 0)?,
            norm: rows.function("norm_rows", 0)?,
            add_norm: rows.function("add_norm", 0)?,
            norm_span: rows.function("norm_span", 0)?,
            add: rows.function("add", 0)?,
            elementwise: rows.function("elementwise", 0)?,
            gated: rows.function("gated", 0)?,
            gather: rows.function("gather", 0)?,
            matmul: matmul.function("matmul", 0)?,
            rope_store: attention.function("rope_store", 0)?,
            attention: attention.function("attention", MAX_SHARED)?,
            sample: sample.function("sample", 0)?,
            _modules: modules,
        })
    }
}
