//! What a test does to the driver: loads it, lets calls fail, asks what happened.

use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The loaded driver. There is one for the whole process.
pub struct FakeDriver {
    library: Library,
}

/// What the driver did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts {
    /// Blocks of device memory that were not given back.
    pub n_blocks: u64,
    /// Calls of driver functions.
    pub n_calls: u64,
    /// Instructions of warps.
    pub n_instructions: u64,
    /// Kernels that ran.
    pub n_launches: u64,
}

/// Why the driver was not loaded.
#[derive(Debug)]
pub struct NoFakeDriver {
    path: PathBuf,
    reason: String,
}

impl std::fmt::Display for NoFakeDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for NoFakeDriver {}

impl FakeDriver {
    /// Loads the driver that cargo built beside the running test, so that it answers for `libcuda.so`.
    pub fn load() -> Result<FakeDriver, NoFakeDriver> {
        let failed = |path: &Path, reason: String| NoFakeDriver {
            path: path.to_owned(),
            reason,
        };
        let exe = std::env::current_exe().map_err(|error| failed(Path::new("."), error.to_string()))?;
        let path = exe.with_file_name("libcuda.so");
        // SAFETY: our own library, which has no initializers.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        let library = library.map_err(|error| failed(&path, error.to_string()))?;
        Ok(FakeDriver { library })
    }

    fn symbol<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the callers below name the types of the functions in this crate.
        *unsafe { self.library.get::<T>(name.as_bytes()) }.expect("the library is this crate's")
    }

    /// Lets the `n`th call of `function` from now on fail with `code`; with [`Failure::Sticky`] all later
    /// calls of all functions too.
    pub fn fail(&self, function: &str, n: u32, code: i32, failure: Failure) {
        let fail: extern "C" fn(*const c_char, u32, i32, bool) = self.symbol("fake_cuda_fail");
        let function = CString::new(function).expect("names of functions have no zeros");
        fail(function.as_ptr(), n, code, failure == Failure::Sticky);
    }

    /// Forgets everything: handles and memory of before are gone. The device has `memory` bytes then, and
    /// kernels run in the schedule of `seed`.
    pub fn reset(&self, memory: usize, seed: u64) {
        let reset: extern "C" fn(usize, u64) = self.symbol("fake_cuda_reset");
        reset(memory, seed);
    }

    /// What it did since the last reset.
    pub fn counts(&self) -> Counts {
        let counts: extern "C" fn() -> Counts = self.symbol("fake_cuda_counts");
        counts()
    }

    /// What the last fault said, empty if there was none.
    pub fn fault(&self) -> String {
        let fault: extern "C" fn(*mut u8, usize) -> usize = self.symbol("fake_cuda_fault");
        let mut text = vec![0; 1 << 12];
        let n = fault(text.as_mut_ptr(), text.len());
        String::from_utf8_lossy(&text[..n]).into_owned()
    }
}

/// How long a failure lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// One call.
    Once,
    /// The device is lost.
    Sticky,
}
