//! Compiled kernels on disk, found again by a hash of everything that went into them.
//!
//! ```text
//! folder/<sha256 of sources, architecture, compiler version>.cubin and .ptx
//! ```
//!
//! A file appears whole (written aside, then renamed). A cache that cannot be written costs compile time at
//! each start and nothing else.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::CudaError;
use super::nvrtc::{Compiled, Nvrtc, Source};

/// Changes when the options of the compiler do.
const FORMAT: &str = "arbora kernels 1";

/// The cache of one start.
#[derive(Debug)]
pub struct KernelCache {
    folder: Option<PathBuf>,
}

impl KernelCache {
    /// Keeps compiled kernels in `folder`; without one nothing is kept.
    pub fn new(folder: Option<PathBuf>) -> KernelCache {
        KernelCache { folder }
    }

    /// The kernel from the cache, or compiled and kept.
    pub fn compiled(
        &self,
        nvrtc: &Nvrtc,
        source: Source,
        header: Source,
        arch: &str,
    ) -> Result<Compiled, CudaError> {
        let Some(folder) = &self.folder else {
            return nvrtc.compile(source, header, arch);
        };
        let key = key(nvrtc.version(), [source, header], arch);
        let file = |end: &str| folder.join(format!("{key}.{end}"));
        let read = |end: &str| std::fs::read(file(end)).ok().filter(|bytes| !bytes.is_empty());
        if let (Some(cubin), Some(ptx)) = (read("cubin"), read("ptx")) {
            return Ok(Compiled { cubin, ptx });
        }
        let compiled = nvrtc.compile(source, header, arch)?;
        for (end, bytes) in [("cubin", &compiled.cubin), ("ptx", &compiled.ptx)] {
            // Compiling again next time is all that a failure costs.
            write_whole(&file(end), bytes).ok();
        }
        Ok(compiled)
    }
}

fn key(version: (i32, i32), sources: [Source; 2], arch: &str) -> String {
    let mut hash = Sha256::new();
    let version = format!("{}.{}", version.0, version.1);
    let texts = sources.iter().flat_map(|source| [source.name, source.text]);
    for part in [FORMAT, &version, arch].into_iter().chain(texts) {
        // Lengths keep two parts from being taken for other two.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let aside = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&aside, bytes)?;
    std::fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_source_header_architecture_or_compiler_is_another_key() {
        let source = |name, text| Source { name, text };
        let (a, b) = (source("a.cu", "x"), source("h.cuh", "y"));
        let keys = [
            key((13, 0), [a, b], "sm_80"),
            key((12, 9), [a, b], "sm_80"),
            key((13, 0), [a, b], "sm_90a"),
            key((13, 0), [source("a.cu", "z"), b], "sm_80"),
            key((13, 0), [a, source("h.cuh", "z")], "sm_80"),
        ];
        let distinct: std::collections::HashSet<&String> = keys.iter().collect();
        assert_eq!((distinct.len(), keys[0].len()), (5, 64));
        assert_eq!(keys[0], key((13, 0), [a, b], "sm_80"));
    }
}
