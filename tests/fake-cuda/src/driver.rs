//! The functions of `libcuda.so`. What each does is in NVIDIA's driver API reference; comments say only
//! where this one differs.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

use arbora_ptx_emulator::{Module, TensorMap};

use crate::state::{CURRENT, MAX_SHARED, Result, State, enter};
use crate::work::{Graph, Work};
use crate::{
    CAPTURE_INVALIDATED, CAPTURE_UNMATCHED, CAPTURE_UNSUPPORTED, Code, GRAPH_UPDATE_FAILURE, INVALID_CONTEXT,
    INVALID_DEVICE, INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, NO_BINARY_FOR_GPU, NOT_FOUND, NOT_READY,
};

type Handle = usize;

const N_DEVICES: i32 = 2;
const DRIVER_VERSION: i32 = 13000;
const NAME: &[u8] = b"Emulated GPU\0";
/// Handles of contexts are this and the device's number.
const FIRST_CONTEXT: usize = 0x100;

/// Defines functions of the driver. A body may dereference what it was given, as the real one does.
macro_rules! driver {
    ($(fn $name:ident($state:ident $(, $arg:ident: $ty:ty)* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $ty),*) -> Code {
                enter(stringify!($name), |$state: &mut State| -> Result { $body })
            }
        )*
    };
}

fn put<T>(to: *mut T, value: T) -> Result {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller of the driver hands over a valid place for the answer.
    unsafe { to.write(value) };
    Ok(())
}

fn text<'a>(of: *const c_char) -> Result<&'a str> {
    // SAFETY: the caller of the driver hands over a C string that outlives the call.
    unsafe { CStr::from_ptr(of) }.to_str().map_err(|_| INVALID_VALUE)
}

fn bytes<'a>(from: *const c_void, n: usize) -> &'a [u8] {
    // SAFETY: the caller of the driver says that so many bytes can be read during the call.
    unsafe { std::slice::from_raw_parts(from.cast(), n) }
}

fn device_attribute(attribute: i32) -> i32 {
    match attribute {
        1 => 1024,
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => 48 << 10,
        10 => 32,
        12 | 82 => 65536,
        16 => 4,
        38 => 50 << 20,
        // Compute capability.
        75 => 9,
        76 => 0,
        81 => 228 << 10,
        95 | 115 => 1,
        97 => MAX_SHARED as i32,
        _ => 0,
    }
}

driver! {
    fn cuInit(_s, _flags: u32) { Ok(()) }
    fn cuDriverGetVersion(_s, version: *mut i32) { put(version, DRIVER_VERSION) }
    fn cuDeviceGetCount(_s, n: *mut i32) { put(n, N_DEVICES) }
    fn cuDeviceGet(_s, device: *mut i32, ordinal: i32) {
        if (0..N_DEVICES).contains(&ordinal) { put(device, ordinal) } else { Err(INVALID_DEVICE) }
    }
    fn cuDeviceGetName(_s, name: *mut c_char, len: i32, _device: i32) {
        let n = NAME.len().min(len as usize);
        // SAFETY: the caller says that `len` bytes can be written.
        unsafe { std::ptr::copy_nonoverlapping(NAME.as_ptr().cast(), name, n) };
        Ok(())
    }
    fn cuDeviceGetAttribute(_s, value: *mut i32, attribute: i32, _device: i32) {
        put(value, device_attribute(attribute))
    }
    fn cuDeviceTotalMem_v2(s, total: *mut usize, _device: i32) { put(total, s.memory_limit) }
    fn cuDeviceGetUuid_v2(_s, uuid: *mut [u8; 16], device: i32) { put(uuid, [device as u8; 16]) }
    fn cuDevicePrimaryCtxRetain(_s, context: *mut Handle, device: i32) {
        put(context, FIRST_CONTEXT + device as usize)
    }
    fn cuDevicePrimaryCtxRelease_v2(_s, _device: i32) { Ok(()) }
    fn cuCtxGetCurrent(_s, context: *mut Handle) { put(context, CURRENT.get()) }
    fn cuCtxSetCurrent(_s, context: Handle) {
        CURRENT.set(context);
        Ok(())
    }
    fn cuCtxGetDevice(_s, device: *mut i32) { put(device, CURRENT.get() as i32 - FIRST_CONTEXT as i32) }
    fn cuCtxSynchronize(s) {
        s.forbid_in_capture()?;
        s.drain_all()
    }
    fn cuMemGetInfo_v2(s, free: *mut usize, total: *mut usize) {
        put(free, s.free_bytes())?;
        put(total, s.memory_limit)
    }
}

// Streams, graphs and events.
driver! {
    fn cuStreamCreate(s, stream: *mut Handle, _flags: u32) {
        let new = s.new_stream();
        put(stream, new)
    }
    fn cuStreamCreateWithPriority(s, stream: *mut Handle, _flags: u32, _priority: i32) {
        let new = s.new_stream();
        put(stream, new)
    }
    fn cuStreamDestroy_v2(s, stream: Handle) {
        s.drain(stream)?;
        s.streams.remove(&stream).map(drop).ok_or(INVALID_HANDLE)
    }
    fn cuStreamSynchronize(s, stream: Handle) {
        s.forbid_in_capture()?;
        s.drain(stream)
    }
    fn cuStreamQuery(s, stream: Handle) {
        if s.stream(stream)?.queue.is_empty() { Ok(()) } else { Err(NOT_READY) }
    }
    fn cuStreamWaitEvent(s, stream: Handle, event: Handle, _flags: u32) { s.wait_for(stream, event) }
    fn cuLaunchHostFunc(s, stream: Handle, f: extern "C" fn(*mut c_void), data: *mut c_void) {
        s.submit(stream, Work::Host(f, data as usize))
    }
    fn cuStreamBeginCapture_v2(s, stream: Handle, _mode: i32) {
        if stream == 0 {
            return Err(CAPTURE_UNSUPPORTED);
        }
        let stream = s.stream(stream)?;
        if stream.capture.is_some() {
            return Err(CAPTURE_UNMATCHED);
        }
        stream.capture = Some(Vec::new());
        Ok(())
    }
    fn cuStreamIsCapturing(s, stream: Handle, status: *mut i32) {
        let is_capturing = s.stream(stream)?.capture.is_some();
        put(status, i32::from(is_capturing))
    }
    fn cuStreamEndCapture(s, stream: Handle, graph: *mut Handle) {
        let work = s.stream(stream)?.capture.take().ok_or(CAPTURE_UNMATCHED)?;
        if std::mem::take(&mut s.capture_is_broken) {
            put(graph, 0)?;
            return Err(CAPTURE_INVALIDATED);
        }
        let new = s.new_graph(Graph(Arc::new(work)));
        put(graph, new)
    }
    fn cuGraphInstantiateWithFlags(s, exec: *mut Handle, graph: Handle, _flags: u64) {
        let copy = s.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        let new = s.new_graph(copy);
        put(exec, new)
    }
    fn cuGraphUpload(s, exec: Handle, _stream: Handle) {
        s.graphs.get(&exec).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuGraphLaunch(s, exec: Handle, stream: Handle) {
        let graph = s.graphs.get(&exec).ok_or(INVALID_HANDLE)?.clone();
        s.submit(stream, Work::Graph(graph))
    }
    fn cuGraphExecUpdate_v2(s, exec: Handle, graph: Handle, _info: *mut c_void) {
        let new = s.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
        let old = s.graphs.get_mut(&exec).ok_or(INVALID_HANDLE)?;
        if !old.has_shape_of(&new) {
            return Err(GRAPH_UPDATE_FAILURE);
        }
        *old = new;
        Ok(())
    }
    fn cuGraphExecDestroy(s, exec: Handle) { s.graphs.remove(&exec).map(drop).ok_or(INVALID_HANDLE) }
    fn cuGraphDestroy(s, graph: Handle) { s.graphs.remove(&graph).map(drop).ok_or(INVALID_HANDLE) }

    fn cuEventCreate(s, event: *mut Handle, _flags: u32) {
        let new = s.new_event();
        put(event, new)
    }
    fn cuEventDestroy_v2(s, event: Handle) { s.events.remove(&event).map(drop).ok_or(INVALID_HANDLE) }
    fn cuEventRecord(s, event: Handle, stream: Handle) {
        let state = s.event(event)?;
        state.recorded += 1;
        let n = state.recorded;
        s.submit(stream, Work::Record(event, n))
    }
    fn cuEventQuery(s, event: Handle) {
        let (recorded, done) = (s.event(event)?.recorded, s.event(event)?.done);
        if done >= recorded {
            return Ok(());
        }
        // Whoever polls sees it at the second look at the earliest, and for certain some time.
        s.finish_event(event, recorded)?;
        Err(NOT_READY)
    }
    fn cuEventSynchronize(s, event: Handle) {
        s.forbid_in_capture()?;
        let n = s.event(event)?.recorded;
        s.finish_event(event, n)
    }
}

// Memory.
driver! {
    fn cuMemAlloc_v2(s, at: *mut u64, bytes: usize) {
        s.forbid_in_capture()?;
        if CURRENT.get() == 0 {
            return Err(INVALID_CONTEXT);
        }
        let new = s.allocate(bytes)?;
        put(at, new)
    }
    fn cuMemAllocAsync(s, at: *mut u64, bytes: usize, stream: Handle) {
        if s.stream(stream)?.capture.is_some() {
            return Err(CAPTURE_UNSUPPORTED);
        }
        let new = s.allocate(bytes)?;
        put(at, new)
    }
    fn cuMemFree_v2(s, at: u64) {
        s.drain_all()?;
        s.free(at)
    }
    fn cuMemFreeAsync(s, at: u64, stream: Handle) { s.submit(stream, Work::Free(at)) }
    fn cuMemHostAlloc(s, at: *mut *mut c_void, bytes: usize, _flags: u32) {
        let new = s.allocate_pinned(bytes);
        put(at, new as *mut c_void)
    }
    fn cuMemFreeHost(s, at: *mut c_void) {
        s.drain_all()?;
        s.free_pinned(at as u64)
    }
    fn cuMemcpyHtoDAsync_v2(s, to: u64, from: *const c_void, n: usize, stream: Handle) {
        if s.is_pinned(from as u64) {
            return s.submit(stream, Work::Copy { to, from: from as u64, bytes: n });
        }
        if s.stream(stream)?.capture.is_some() {
            // The real driver would read the caller's memory at every launch of the graph.
            return Err(s.break_capture());
        }
        s.submit(stream, Work::Write { to, data: bytes(from, n).to_vec() })
    }
    fn cuMemcpyHtoD_v2(s, to: u64, from: *const c_void, n: usize) {
        s.submit(0, Work::Write { to, data: bytes(from, n).to_vec() })?;
        s.drain(0)
    }
    fn cuMemcpyDtoHAsync_v2(s, to: *mut c_void, from: u64, n: usize, stream: Handle) {
        if s.is_pinned(to as u64) {
            // Who looks before the stream was waited for sees NaN.
            // SAFETY: the caller says that so many bytes can be written.
            unsafe { to.cast::<u8>().write_bytes(0xff, n) };
            return s.submit(stream, Work::Copy { to: to as u64, from, bytes: n });
        }
        s.forbid_in_capture()?;
        s.submit(stream, Work::Copy { to: to as u64, from, bytes: n })?;
        s.drain(stream)
    }
    fn cuMemcpyDtoH_v2(s, to: *mut c_void, from: u64, n: usize) {
        s.drain_all()?;
        s.submit(0, Work::Copy { to: to as u64, from, bytes: n })?;
        s.drain(0)
    }
    fn cuMemcpyDtoDAsync_v2(s, to: u64, from: u64, n: usize, stream: Handle) {
        s.submit(stream, Work::Copy { to, from, bytes: n })
    }
    fn cuMemsetD8Async(s, to: u64, value: u8, n: usize, stream: Handle) {
        s.submit(stream, Work::Fill { to, word: value.into(), width: 1, n })
    }
    fn cuMemsetD32Async(s, to: u64, value: u32, n: usize, stream: Handle) {
        s.submit(stream, Work::Fill { to, word: value, width: 4, n })
    }
}

// Modules and launches.
driver! {
    fn cuModuleLoadData(s, module: *mut Handle, image: *const c_char) {
        if bytes(image.cast(), 4) == b"\x7fELF" {
            return Err(NO_BINARY_FOR_GPU);
        }
        let parsed = Module::parse(text(image)?).map_err(|error| {
            s.note(error.to_string());
            INVALID_PTX
        })?;
        let new = s.load(parsed)?;
        put(module, new)
    }
    fn cuModuleUnload(s, module: Handle) {
        s.drain_all()?;
        s.unload(module)
    }
    fn cuModuleGetFunction(s, function: *mut Handle, module: Handle, name: *const c_char) {
        let found = s.function(module, text(name)?).ok_or(NOT_FOUND)?;
        put(function, found)
    }
    fn cuModuleGetGlobal_v2(s, at: *mut u64, n: *mut usize, module: Handle, name: *const c_char) {
        let (address, size) = s.global(module, text(name)?).ok_or(NOT_FOUND)?;
        put(at, address)?;
        if n.is_null() { Ok(()) } else { put(n, size) }
    }
    fn cuFuncSetAttribute(s, function: Handle, attribute: i32, value: i32) {
        let function = s.functions.get_mut(&function).ok_or(INVALID_HANDLE)?;
        // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if attribute == 8 {
            if value as usize + function.static_shared() > MAX_SHARED {
                return Err(INVALID_VALUE);
            }
            function.max_dynamic_shared = value as usize;
        }
        Ok(())
    }
    fn cuFuncGetAttribute(s, value: *mut i32, attribute: i32, function: Handle) {
        let function = s.functions.get(&function).ok_or(INVALID_HANDLE)?;
        put(value, match attribute {
            0 => 1024,
            1 => function.static_shared() as i32,
            8 => function.max_dynamic_shared as i32,
            _ => 0,
        })
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        s, n: *mut i32, function: Handle, threads: i32, shared: usize,
    ) {
        let function = s.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let by_shared = (228usize << 10) / (shared + function.static_shared() + 1024);
        put(n, by_shared.min(2048 / threads.max(1) as usize) as i32)
    }
    fn cuLaunchKernel(
        s, function: Handle, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32,
        stream: Handle,
        params: *const *const c_void, _extra: *const c_void,
    ) {
        let geometry = ([gx, gy, gz], [bx, by, bz], shared as usize);
        // SAFETY: the caller hands over a pointer for each parameter of the kernel.
        let work = s.launch(function, geometry, |idx, n| bytes(unsafe { *params.add(idx) }, n).to_vec())?;
        s.submit(stream, work)
    }
    fn cuTensorMapEncodeTiled(
        s, map: *mut [u8; 128], ty: i32, rank: u32, address: u64, dims: *const u64, strides: *const u64,
        boxes: *const u32, _elements: *const u32, interleave: i32, swizzle: i32, _l2: i32, _fill: i32,
    ) {
        let n = rank as usize;
        if n == 0 || n > 5 || interleave != 0 || !(0..=3).contains(&swizzle) {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller hands over as many of each as the tensor has dimensions.
        let (dims, boxes, strides) = unsafe {
            let strides = if n == 1 { &[][..] } else { std::slice::from_raw_parts(strides, n - 1) };
            (std::slice::from_raw_parts(dims, n), std::slice::from_raw_parts(boxes, n), strides)
        };
        let made = TensorMap {
            address,
            element: match ty { 0 => 1, 1 | 6 | 9 => 2, 4 | 5 | 8 => 8, _ => 4 },
            dims: dims.to_vec(),
            strides: strides.to_vec(),
            boxes: boxes.to_vec(),
            swizzle: [0, 32, 64, 128][swizzle as usize],
        };
        made.check().map_err(|error| {
            s.note(error);
            INVALID_VALUE
        })?;
        put(map, made.to_bytes())
    }
}

/// Answers after a fault too.
#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: Code, name: *mut *const c_char) -> Code {
    let known = match error {
        0 => c"CUDA_SUCCESS",
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        100 => c"CUDA_ERROR_NO_DEVICE",
        209 => c"CUDA_ERROR_NO_BINARY_FOR_GPU",
        218 => c"CUDA_ERROR_INVALID_PTX",
        400 => c"CUDA_ERROR_INVALID_HANDLE",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        716 => c"CUDA_ERROR_MISALIGNED_ADDRESS",
        719 => c"CUDA_ERROR_LAUNCH_FAILED",
        900 => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        _ => c"CUDA_ERROR_UNKNOWN",
    };
    put(name, known.as_ptr()).err().unwrap_or(0)
}

/// See [`cuGetErrorName`].
#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: Code, text: *mut *const c_char) -> Code {
    cuGetErrorName(error, text)
}
