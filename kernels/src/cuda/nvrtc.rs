//! NVRTC: the CUDA compiler as a library, found and loaded at run time.
//!
//! Sources include no header of the toolkit; their own one is handed over in memory. One compilation gives
//! machine code (cubin) and PTX.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::error::CudaError;

/// Names of the library, newest first; versions before 11.2 do not make cubins.
const NAMES: [&str; 4] = [
    "libnvrtc.so.13",
    "libnvrtc.so.12",
    "libnvrtc.so.11.2",
    "libnvrtc.so",
];
const BUILTINS: &str = "libnvrtc-builtins.so.";

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Fetch = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// A kernel source and the header that it includes.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// File name, for messages.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// What came of a compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Machine code for the architecture.
    pub cubin: Vec<u8>,
    /// The same as text, without a terminating zero.
    pub ptx: Vec<u8>,
}

/// The loaded compiler.
pub struct Nvrtc {
    version: (i32, i32),
    create: Create,
    compile: Compile,
    destroy: Destroy,
    cubin: (Size, Fetch),
    ptx: (Size, Fetch),
    log: (Size, Fetch),
    /// Keeps the functions above loaded.
    _libraries: Vec<Library>,
}

/// Folders in which toolkits and packages put the library, `first` before them.
fn folders(first: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders = first.to_vec();
    folders.push("/usr/local/cuda/lib64".into());
    let versions = std::fs::read_dir("/usr/local").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("cuda-"))
        .map(|entry| entry.path().join("lib64"))
        .collect();
    versions.sort();
    folders.extend(versions.into_iter().rev());
    folders
}

/// Opens the library of this path, and before it the part that it would look for by name alone.
fn open_in(folder: &Path, name: &str) -> Option<(Result<Library, libloading::Error>, Option<Library>)> {
    let path = folder.join(name);
    if !path.exists() {
        return None;
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let builtins = entries.map(|entry| entry.path()).find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(BUILTINS))
    });
    // SAFETY: loading the libraries of CUDA's compiler runs their initializers, which ask nothing of us.
    let builtins =
        builtins.and_then(|path| unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok());
    // SAFETY: as above.
    let library = unsafe { Library::open(Some(path), RTLD_NOW) };
    Some((library, builtins))
}

impl Nvrtc {
    /// Looks in `first`, then where toolkits are installed, then where the system's loader looks.
    pub fn load(first: &[PathBuf]) -> Result<Nvrtc, CudaError> {
        let folders = folders(first);
        let places = folders
            .iter()
            .flat_map(|folder| NAMES.iter().map(move |name| (folder, name)));
        for (folder, name) in places {
            if let Some((library, builtins)) = open_in(folder, name) {
                let path = folder.join(name);
                let library = library.map_err(|error| bad(&path, &error))?;
                return Nvrtc::with(library, builtins, &path);
            }
        }
        for name in NAMES {
            // SAFETY: as in `open_in`.
            if let Ok(library) = unsafe { Library::open(Some(name), RTLD_NOW) } {
                return Nvrtc::with(library, None, Path::new(name));
            }
        }
        let searched: Vec<String> = folders
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        Err(CudaError::NoCompiler {
            searched: format!("{} and the loader's path", searched.join(", ")),
        })
    }

    fn with(library: Library, builtins: Option<Library>, path: &Path) -> Result<Nvrtc, CudaError> {
        fn symbol<T: Copy>(library: &Library, name: &str, path: &Path) -> Result<T, CudaError> {
            // SAFETY: every caller names the type that nvrtc.h declares for the function.
            let symbol = unsafe { library.get::<T>(name.as_bytes()) };
            symbol.map(|symbol| *symbol).map_err(|error| bad(path, &error))
        }
        type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
        let version: Version = symbol(&library, "nvrtcVersion", path)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are valid for writes.
        unsafe { version(&raw mut major, &raw mut minor) };
        Ok(Nvrtc {
            version: (major, minor),
            create: symbol(&library, "nvrtcCreateProgram", path)?,
            compile: symbol(&library, "nvrtcCompileProgram", path)?,
            destroy: symbol(&library, "nvrtcDestroyProgram", path)?,
            cubin: (
                symbol(&library, "nvrtcGetCUBINSize", path)?,
                symbol(&library, "nvrtcGetCUBIN", path)?,
            ),
            ptx: (
                symbol(&library, "nvrtcGetPTXSize", path)?,
                symbol(&library, "nvrtcGetPTX", path)?,
            ),
            log: (
                symbol(&library, "nvrtcGetProgramLogSize", path)?,
                symbol(&library, "nvrtcGetProgramLog", path)?,
            ),
            _libraries: builtins.into_iter().chain([library]).collect(),
        })
    }

    /// Major and minor version of CUDA.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles `source`, which may include `header`, for `arch` (`sm_90a`, ...).
    pub fn compile(&self, source: Source, header: Source, arch: &str) -> Result<Compiled, CudaError> {
        let refused = |log: String| CudaError::Compile {
            source_name: source.name.to_owned(),
            arch: arch.to_owned(),
            log,
        };
        let text = |text: &str| CString::new(text).map_err(|error| refused(error.to_string()));
        let (body, name) = (text(source.text)?, text(source.name)?);
        let (header_body, header_name) = (text(header.text)?, text(header.name)?);
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: the strings end in zero and live until after the call; there is one header.
        let code = unsafe {
            let (bodies, names) = ([header_body.as_ptr()], [header_name.as_ptr()]);
            (self.create)(
                &raw mut program,
                body.as_ptr(),
                name.as_ptr(),
                1,
                bodies.as_ptr(),
                names.as_ptr(),
            )
        };
        if code != 0 {
            return Err(refused(format!("NVRTC error {code}")));
        }
        let compiled = self.compiled(program, arch);
        // SAFETY: the program was created above and is not used again.
        unsafe { (self.destroy)(&raw mut program) };
        compiled.map_err(refused)
    }

    fn compiled(&self, program: Program, arch: &str) -> Result<Compiled, String> {
        let options = [
            format!("--gpu-architecture={arch}"),
            "--std=c++17".to_owned(),
            "-lineinfo".to_owned(),
        ];
        let options = options.map(|option| CString::new(option).unwrap_or_default());
        let pointers = options.each_ref().map(|option| option.as_ptr());
        // SAFETY: the program is alive, and so are the options.
        let code = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        if code != 0 {
            let log = self.fetch(program, self.log).unwrap_or_default();
            let log = CStr::from_bytes_until_nul(&log)
                .map(CStr::to_string_lossy)
                .unwrap_or_default();
            return Err(format!("NVRTC error {code}\n{log}"));
        }
        let mut ptx = self.fetch(program, self.ptx)?;
        ptx.retain(|&byte| byte != 0);
        Ok(Compiled {
            cubin: self.fetch(program, self.cubin)?,
            ptx,
        })
    }

    fn fetch(&self, program: Program, (size, fetch): (Size, Fetch)) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program is alive; the size is valid for writes.
        let code = unsafe { size(program, &raw mut bytes) };
        if code != 0 {
            return Err(format!("NVRTC error {code} when asked for the size of a result"));
        }
        let mut out = vec![0u8; bytes];
        // SAFETY: the buffer has as many bytes as the compiler just said.
        match unsafe { fetch(program, out.as_mut_ptr().cast()) } {
            0 => Ok(out),
            code => Err(format!("NVRTC error {code} when asked for a result")),
        }
    }
}

fn bad(library: &Path, error: &dyn std::fmt::Display) -> CudaError {
    CudaError::BadCompiler {
        library: library.to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_is_named_with_where_it_was_looked_for() {
        let folder = std::env::temp_dir().join("arbora-no-nvrtc-here");
        // The machine may have one elsewhere.
        if let Err(error) = Nvrtc::load(std::slice::from_ref(&folder)) {
            let said = error.to_string();
            assert!(
                said.contains("arbora-no-nvrtc-here") && said.contains("--cuda-libraries"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_by_its_path() {
        let folder = std::env::temp_dir().join(format!("arbora-bad-nvrtc-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        std::fs::write(folder.join("libnvrtc.so.13"), b"no ELF").expect("a small file");
        let error = Nvrtc::load(std::slice::from_ref(&folder)).err().expect("refused");
        std::fs::remove_dir_all(&folder).expect("our own folder");
        assert!(
            matches!(&error, CudaError::BadCompiler { library, .. } if library.starts_with(&folder)),
            "{error}"
        );
    }
}
