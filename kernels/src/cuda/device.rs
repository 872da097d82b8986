//! One CUDA device through its driver: context, stream, modules, launches, graphs.
//!
//! Everything is queued on one stream. A call that fails after the device was opened marks it as lost: later
//! calls do nothing, and whoever waits for results asks [`Device::lost`] first.

use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cudarc::driver::{result, sys};

use super::error::CudaError;
use super::nvrtc::Compiled;

/// Functions of the driver that are called. They are asked for before the first call, since the binding
/// panics where one is missing.
const SYMBOLS: [&str; 38] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuEventDestroy_v2",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
];

/// Most parameters of a kernel.
const MAX_ARGUMENTS: usize = 24;
/// Shared memory that a kernel gets without asking.
const DEFAULT_SHARED: usize = 48 << 10;

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Argument {
    /// Its bits as the kernel reads them from the start of a slot of 8 bytes.
    fn slot(self) -> u64 {
        match self {
            Argument::U32(value) => u64::from(value),
            Argument::U64(value) => value,
            Argument::F32(value) => u64::from(value.to_bits()),
        }
    }
}

impl std::hash::Hash for Argument {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.slot().hash(state);
    }
}

/// Blocks, threads of a block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Geometry {
    pub(crate) grid: [usize; 2],
    pub(crate) threads: usize,
    pub(crate) shared_bytes: usize,
}

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Function {
    handle: sys::CUfunction,
    name: &'static str,
}

/// An opened device. Clones are the same device.
#[derive(Clone)]
pub(crate) struct Device {
    shared: Arc<Shared>,
}

struct Shared {
    context: sys::CUcontext,
    stream: sys::CUstream,
    device: sys::CUdevice,
    name: String,
    capability: (i32, i32),
    is_lost: AtomicBool,
    /// The first failure.
    failure: Mutex<Option<String>>,
}

// SAFETY: the handles are of the driver, which any thread may call; every call first makes the context the
// calling thread's.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}
// SAFETY: as above; functions live as long as the module, which is never unloaded before the device.
unsafe impl Send for Function {}

/// What a failed call says.
pub(super) fn failed(call: &'static str, error: result::DriverError) -> CudaError {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    CudaError::Driver {
        call,
        name: name.unwrap_or_else(|_| format!("{:?}", error.0)),
    }
}

/// Whether the driver's library is there and has every function that is called.
fn check_driver() -> Result<(), CudaError> {
    // SAFETY: loads the driver's library, whose initializers ask nothing of us.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    // SAFETY: the library is there, so that this does not panic.
    let library = unsafe { sys::culib() };
    for symbol in SYMBOLS {
        // SAFETY: the address is looked up and not called.
        if unsafe { library.get::<*const c_void>(symbol.as_bytes()) }.is_err() {
            return Err(CudaError::OldDriver { symbol });
        }
    }
    Ok(())
}

/// CUDA version that the driver supports.
pub(crate) fn driver_version() -> Result<(i32, i32), CudaError> {
    let mut version = 0;
    // SAFETY: the version is valid for writes.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    code.result()
        .map_err(|error| failed("cuDriverGetVersion", error))?;
    Ok((version / 1000, version % 1000 / 10))
}

/// A stream of the context, which becomes this thread's.
fn new_stream(context: sys::CUcontext) -> Result<sys::CUstream, CudaError> {
    // SAFETY: the caller retains the context.
    unsafe { result::ctx::set_current(context) }.map_err(|error| failed("cuCtxSetCurrent", error))?;
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
    stream.map_err(|error| failed("cuStreamCreate", error))
}

impl Device {
    /// Opens device `ordinal`.
    pub(crate) fn open(ordinal: usize) -> Result<Device, CudaError> {
        check_driver()?;
        if let Err(error) = result::init() {
            // A driver without any device says so here already.
            return Err(match error.0 {
                sys::CUresult::CUDA_ERROR_NO_DEVICE => CudaError::NoDevice {
                    ordinal,
                    n_devices: 0,
                },
                _ => failed("cuInit", error),
            });
        }
        let n_devices = result::device::get_count().map_err(|error| failed("cuDeviceGetCount", error))?;
        if ordinal >= n_devices as usize {
            return Err(CudaError::NoDevice {
                ordinal,
                n_devices: n_devices as usize,
            });
        }
        let device = result::device::get(ordinal as i32).map_err(|error| failed("cuDeviceGet", error))?;
        let name = result::device::get_name(device).map_err(|error| failed("cuDeviceGetName", error))?;
        let attribute = |attribute| {
            // SAFETY: the device is one of the driver's.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value.map_err(|error| failed("cuDeviceGetAttribute", error))
        };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let capability = (attribute(MAJOR)?, attribute(MINOR)?);
        if capability.0 < 8 {
            let (major, minor) = capability;
            return Err(CudaError::OldDevice { name, major, minor });
        }
        // SAFETY: the device is one of the driver's; released when the last clone goes.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|error| failed("cuDevicePrimaryCtxRetain", error))?;
        let stream = new_stream(context).inspect_err(|_| {
            // SAFETY: retained above and used no more. What the driver says to that changes nothing.
            unsafe { result::primary_ctx::release(device) }.ok();
        })?;
        let (is_lost, failure) = (AtomicBool::new(false), Mutex::new(None));
        let shared = Shared {
            context,
            stream,
            device,
            name,
            capability,
            is_lost,
            failure,
        };
        Ok(Device {
            shared: Arc::new(shared),
        })
    }

    /// Where everything is queued.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.shared.stream
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    /// The architecture that kernels are compiled for.
    pub(crate) fn arch(&self) -> String {
        let (major, minor) = self.shared.capability;
        // Instructions of Hopper and Blackwell that only this very architecture has.
        let suffix = if major >= 9 { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }

    /// Free and all bytes of memory.
    pub(crate) fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        result::mem_get_info().map_err(|error| failed("cuMemGetInfo", error))
    }

    /// Whether a call failed since it was opened.
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.is_lost.load(Ordering::Acquire)
    }

    /// What the first call that failed said.
    pub(crate) fn lost(&self) -> Option<String> {
        if !self.is_lost() {
            return None;
        }
        let failure = self
            .shared
            .failure
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        Some(failure.clone().unwrap_or_default())
    }

    /// Makes its context the thread's.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as the device lives.
        unsafe { result::ctx::set_current(self.shared.context) }
            .map_err(|error| failed("cuCtxSetCurrent", error))
    }

    /// Runs a call of a step; the first that fails loses the device.
    pub(super) fn step(&self, call: &'static str, run: impl FnOnce() -> Result<(), result::DriverError>) {
        if self.is_lost() {
            return;
        }
        let outcome = self
            .bind()
            .and_then(|()| run().map_err(|error| failed(call, error)));
        if let Err(error) = outcome {
            self.lose(&error);
        }
    }

    /// Nothing the device computes from now on means anything, because of `error`.
    pub(crate) fn lose(&self, error: &CudaError) {
        let mut failure = self
            .shared
            .failure
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        failure.get_or_insert(error.to_string());
        self.shared.is_lost.store(true, Ordering::Release);
    }

    /// Loads compiled kernels, as machine code or, where the driver refuses that, as PTX.
    pub(crate) fn load(&self, compiled: &Compiled) -> Result<Module, CudaError> {
        use sys::CUresult::{
            CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_INVALID_PTX, CUDA_ERROR_NO_BINARY_FOR_GPU,
            CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        };
        self.bind()?;
        // SAFETY: the image is a whole cubin, whose header says how long it is.
        let mut module = unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) };
        if let Err(error) = &module
            && matches!(error.0, CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_INVALID_IMAGE)
        {
            let mut text = compiled.ptx.clone();
            text.push(0);
            // SAFETY: the text ends in zero.
            module = unsafe { result::module::load_data(text.as_ptr().cast()) };
        }
        match module {
            Ok(handle) => Ok(Module {
                handle,
                device: self.clone(),
            }),
            Err(error)
                if matches!(
                    error.0,
                    CUDA_ERROR_INVALID_PTX | CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                ) =>
            {
                let (major, minor) = driver_version()?;
                let compiler_major = ptx_cuda_major(&compiled.ptx);
                if major >= compiler_major {
                    return Err(failed("cuModuleLoadData", error));
                }
                Err(CudaError::DriverOlderThanCompiler {
                    major,
                    minor,
                    compiler_major,
                })
            }
            Err(error) => Err(failed("cuModuleLoadData", error)),
        }
    }

    /// Queues a kernel; nothing where the grid is empty.
    pub(crate) fn launch(&self, function: Function, geometry: Geometry, arguments: &[Argument]) {
        if geometry.grid.contains(&0) {
            return;
        }
        assert!(
            arguments.len() <= MAX_ARGUMENTS,
            "{} arguments of {}",
            arguments.len(),
            function.name
        );
        let mut slots = [0u64; MAX_ARGUMENTS];
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGUMENTS];
        for ((slot, pointer), argument) in slots.iter_mut().zip(&mut pointers).zip(arguments) {
            *slot = argument.slot();
            *pointer = std::ptr::from_mut(slot).cast();
        }
        let [x, y] = geometry.grid.map(|n| u32::try_from(n).expect("a grid fits u32"));
        self.step(function.name, || {
            // SAFETY: the arguments are those of the kernel, in its order; the driver copies them at once.
            // Whether the addresses among them hold is the contract of the operation that queues it.
            unsafe {
                result::launch_kernel(
                    function.handle,
                    (x, y, 1),
                    (geometry.threads as u32, 1, 1),
                    geometry.shared_bytes as u32,
                    self.shared.stream,
                    &mut pointers[..arguments.len()],
                )
            }
        });
    }

    /// What is launched from here on is recorded and does not run.
    pub(crate) fn begin_capture(&self) {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the device.
        self.step("cuStreamBeginCapture", || unsafe {
            result::stream::begin_capture(self.shared.stream, mode)
        });
    }

    /// What was launched since the beginning; `None` where the device is lost.
    pub(crate) fn end_capture(&self) -> Option<Graph> {
        let mut exec = None;
        self.step("cuStreamEndCapture", || {
            // SAFETY: the stream lives; the graph is destroyed once, after the last use of it.
            unsafe {
                let graph = result::stream::end_capture(self.shared.stream)?;
                let instantiated = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                result::graph::destroy(graph)?;
                exec = Some(instantiated?);
            }
            Ok(())
        });
        exec.map(|exec| Graph {
            exec,
            device: self.clone(),
        })
    }

    /// Waits for everything that was queued.
    pub(crate) fn synchronize(&self) {
        // SAFETY: the stream lives as long as the device.
        self.step("cuStreamSynchronize", || unsafe {
            result::stream::synchronize(self.shared.stream)
        });
    }
}

/// The CUDA version whose PTX this is: the major part of PTX 9.x is 13's, of 8.x 12's.
fn ptx_cuda_major(ptx: &[u8]) -> i32 {
    let text = String::from_utf8_lossy(ptx);
    let version = text.lines().find_map(|line| line.strip_prefix(".version "));
    let major = version.and_then(|version| version.split('.').next()?.trim().parse::<i32>().ok());
    major.map_or(0, |major| major + 4)
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the device any more. What the driver says of a lost one changes nothing.
        unsafe {
            result::ctx::set_current(self.context).ok();
            result::stream::destroy(self.stream).ok();
            result::primary_ctx::release(self.device).ok();
        }
    }
}

/// Tells why a device was lost, also when its backend is gone.
pub struct DeviceFailure {
    device: Device,
}

impl DeviceFailure {
    /// Of this device.
    pub(crate) fn of(device: &Device) -> DeviceFailure {
        DeviceFailure {
            device: device.clone(),
        }
    }

    /// What the first call that failed said; `None` while the device is fine.
    pub fn message(&self) -> Option<String> {
        self.device.lost()
    }
}

/// Loaded kernels.
pub(crate) struct Module {
    handle: sys::CUmodule,
    device: Device,
}

// SAFETY: as for the device.
unsafe impl Send for Module {}

impl Module {
    /// A kernel by its name; it may use up to `shared_bytes` of dynamic shared memory.
    pub(crate) fn function(&self, name: &'static str, shared_bytes: usize) -> Result<Function, CudaError> {
        self.device.bind()?;
        let symbol = CString::new(name).expect("names of kernels have no zeros");
        // SAFETY: the module is loaded.
        let handle = unsafe { result::module::get_function(self.handle, symbol) };
        let handle = handle.map_err(|error| failed("cuModuleGetFunction", error))?;
        if shared_bytes > DEFAULT_SHARED {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_SHARED;
            // SAFETY: the function is of a loaded module.
            let outcome =
                unsafe { result::function::set_function_attribute(handle, MAX_SHARED, shared_bytes as i32) };
            outcome.map_err(|error| failed("cuFuncSetAttribute", error))?;
        }
        Ok(Function { handle, name })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: whoever drops the kernels launches none of them any more.
            unsafe { result::module::unload(self.handle) }.ok();
        }
    }
}

/// Recorded launches.
pub(crate) struct Graph {
    exec: sys::CUgraphExec,
    device: Device,
}

// SAFETY: as for the device.
unsafe impl Send for Graph {}

impl Graph {
    /// Queues all of them.
    pub(crate) fn launch(&self) {
        // SAFETY: graph and stream live. The memory that its kernels use is that of the pass which just gave
        // the same trace.
        self.device.step("cuGraphLaunch", || unsafe {
            result::graph::launch(self.exec, self.device.shared.stream)
        });
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: destroyed once; the driver waits for its last run.
            unsafe { result::graph::exec_destroy(self.exec) }.ok();
        }
    }
}
