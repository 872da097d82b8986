//! The CUDA backend without a GPU: the real backend, compiled by the real compiler, on the emulated driver.
//!
//! NVRTC comes from the folder that `ARBORA_NVRTC` named when the tests were built, which must have it, or
//! from wherever it is installed. Without one the tests say SKIP: they need the compiler of CUDA, not a GPU.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use arbora_kernels::cuda::{CudaBackend, CudaConfig, CudaError, Nvrtc};
use cuda::control::FakeDriver;

/// Memory of the emulated device.
pub(crate) const DEVICE_MEMORY: usize = 1 << 30;

/// One driver serves the whole process, so tests that use it take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The emulated device, for one test.
pub(crate) struct Emulated {
    /// The driver behind it.
    pub(crate) driver: FakeDriver,
    /// Where NVRTC is.
    pub(crate) libraries: Vec<PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

/// Where cargo builds.
fn target() -> PathBuf {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = folders.filter(|folder| folder.join("Cargo.lock").exists()).last();
    root.expect("the workspace has a lock file").join("target")
}

/// Folders to look for NVRTC in.
fn libraries() -> Vec<PathBuf> {
    let installed = target().join("ci/nvrtc/nvidia/cu13/lib");
    option_env!("ARBORA_NVRTC")
        .map(PathBuf::from)
        .into_iter()
        .chain([installed])
        .collect()
}

/// The compiler, or `None` after saying why there is none.
///
/// # Panics
/// When `ARBORA_NVRTC` promised one.
#[expect(clippy::print_stdout, reason = "a test that does nothing says so")]
pub(crate) fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::load(&libraries()) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            assert!(option_env!("ARBORA_NVRTC").is_none(), "{error}");
            println!("SKIP: {error}");
            None
        }
    }
}

impl Emulated {
    /// A fresh device whose kernels run in the schedule of `seed`; `None` after saying why there is none.
    pub(crate) fn new(seed: u64) -> Option<Emulated> {
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        nvrtc()?;
        let driver = FakeDriver::load().expect("cargo built the driver beside the test");
        driver.reset(DEVICE_MEMORY, seed);
        Some(Emulated {
            driver,
            libraries: libraries(),
            _turn: turn,
        })
    }

    /// The backend on it, with few graphs. Compiled kernels are kept between tests.
    pub(crate) fn backend(&self) -> Result<CudaBackend, CudaError> {
        self.backend_with(4)
    }

    /// The same with up to `max_graphs` graphs.
    pub(crate) fn backend_with(&self, max_graphs: usize) -> Result<CudaBackend, CudaError> {
        CudaBackend::new(&CudaConfig {
            ordinal: 0,
            library_folders: self.libraries.clone(),
            cache_folder: Some(target().join("cuda-kernels")),
            max_graphs,
        })
    }

    /// What the device and the emulator say of a failure.
    pub(crate) fn diagnosis(&self, backend: &CudaBackend) -> String {
        format!(
            "{}; {}",
            backend.failure().message().unwrap_or_default(),
            self.driver.fault()
        )
    }
}
