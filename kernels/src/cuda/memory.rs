//! Memory of a CUDA device, page-locked memory of the host, and the marks that order copies between them.

use cudarc::driver::{result, sys};

use super::device::{Device, failed};
use super::error::CudaError;

/// Bytes on the device.
pub(crate) struct DeviceBytes {
    address: u64,
    bytes: usize,
    device: Device,
}

impl DeviceBytes {
    /// Uninitialized memory.
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<DeviceBytes, CudaError> {
        device.bind()?;
        // SAFETY: what is read before it is written means nothing, and the operations write first.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(DeviceBytes {
                address,
                bytes,
                device: device.clone(),
            }),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = device.memory()?;
                Err(CudaError::OutOfMemory { bytes, free, total })
            }
            Err(error) => Err(failed("cuMemAlloc", error)),
        }
    }

    /// The same with `data` in it, copied before this returns.
    pub(crate) fn holding(device: &Device, data: &[u8]) -> Result<DeviceBytes, CudaError> {
        let to = DeviceBytes::new(device, data.len())?;
        // SAFETY: the memory is as long as the data; the copy has ended when the stream was waited for.
        let copied = unsafe { result::memcpy_htod_async(to.address, data, device.stream()) };
        copied.map_err(|error| failed("cuMemcpyHtoDAsync", error))?;
        // SAFETY: the stream lives as long as the device.
        let waited = unsafe { result::stream::synchronize(device.stream()) };
        waited.map_err(|error| failed("cuStreamSynchronize", error))?;
        Ok(to)
    }

    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Queues a copy of `bytes` bytes inside of it.
    pub(crate) fn copy_within(&self, from: usize, to: usize, bytes: usize) {
        assert!(
            from + bytes <= self.bytes && to + bytes <= self.bytes,
            "{bytes} bytes from {from} to {to}"
        );
        let (from, to) = (self.address + from as u64, self.address + to as u64);
        // SAFETY: both ranges are inside.
        self.device.step("cuMemcpyDtoDAsync", || unsafe {
            result::memcpy_dtod_async(to, from, bytes, self.device.stream())
        });
    }

    /// Queues setting `bytes` bytes from `at` on to `value`.
    pub(crate) fn fill(&self, at: usize, bytes: usize, value: u8) {
        assert!(
            at + bytes <= self.bytes,
            "{bytes} bytes at {at} of {}",
            self.bytes
        );
        // SAFETY: the range is inside.
        self.device.step("cuMemsetD8Async", || unsafe {
            result::memset_d8_async(self.address + at as u64, value, bytes, self.device.stream())
        });
    }

    /// Queues a copy of the first `bytes` bytes of `from`.
    pub(crate) fn copy_from(&self, from: &Pinned, bytes: usize) {
        assert!(
            bytes <= self.bytes && bytes <= from.bytes,
            "{bytes} bytes from {} to {}",
            from.bytes,
            self.bytes
        );
        // SAFETY: both are long enough; the pinned memory is not written before the copy has ended, which its
        // owner waits for.
        self.device.step("cuMemcpyHtoDAsync", || unsafe {
            let data = std::slice::from_raw_parts(from.start, bytes);
            result::memcpy_htod_async(self.address, data, self.device.stream())
        });
    }

    /// Queues a copy of `bytes` bytes from `at` on to `to + start`.
    pub(crate) fn copy_to(&self, at: usize, to: &mut Pinned, start: usize, bytes: usize) {
        assert!(
            at + bytes <= self.bytes && start + bytes <= to.bytes,
            "{bytes} bytes from {at} to {start}"
        );
        // SAFETY: both are long enough; the pinned memory is not read before the copy has ended.
        self.device.step("cuMemcpyDtoHAsync", || unsafe {
            let target = std::slice::from_raw_parts_mut(to.start.add(start), bytes);
            result::memcpy_dtoh_async(target, self.address + at as u64, self.device.stream())
        });
    }
}

impl Drop for DeviceBytes {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the memory is freed once; the driver waits for queued work that uses it.
            unsafe { result::free_sync(self.address) }.ok();
        }
    }
}

/// Page-locked memory of the host, which copies to and from the device without a detour.
pub(crate) struct Pinned {
    start: *mut u8,
    bytes: usize,
    device: Device,
}

// SAFETY: it owns the memory, which is the process's.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Memory that holds zeros.
    pub(crate) fn new(device: &Device, bytes: usize) -> Result<Pinned, CudaError> {
        device.bind()?;
        // SAFETY: it is written below before anyone reads it.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) };
        let start = start
            .map_err(|error| failed("cuMemHostAlloc", error))?
            .cast::<u8>();
        // SAFETY: as many bytes were just allocated.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned {
            start,
            bytes,
            device: device.clone(),
        })
    }

    /// Its bytes. No copy may be under way.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialized with this length.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// Its bytes, to be written. No copy may be under way.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: freed once; the driver waits for queued copies.
            unsafe { result::free_host(self.start.cast()) }.ok();
        }
    }
}

/// A mark in the stream that can be waited for.
pub(crate) struct Event {
    handle: sys::CUevent,
    device: Device,
}

// SAFETY: as for the device.
unsafe impl Send for Event {}

impl Event {
    /// A mark that counts as passed until it is recorded.
    pub(crate) fn new(device: &Device) -> Result<Event, CudaError> {
        device.bind()?;
        let handle = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let handle = handle.map_err(|error| failed("cuEventCreate", error))?;
        Ok(Event {
            handle,
            device: device.clone(),
        })
    }

    /// Marks what was queued so far.
    pub(crate) fn record(&self) {
        // SAFETY: event and stream live as long as the device.
        self.device.step("cuEventRecord", || unsafe {
            result::event::record(self.handle, self.device.stream())
        });
    }

    /// Whether everything before the mark has ended, for better or worse.
    pub(crate) fn is_passed(&self) -> bool {
        let mut is_passed = true;
        self.device.step("cuEventQuery", || {
            // SAFETY: the event lives.
            let outcome = unsafe { result::event::query(self.handle) };
            match outcome {
                Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => {
                    is_passed = false;
                    Ok(())
                }
                outcome => outcome,
            }
        });
        is_passed
    }

    /// Waits for everything before the mark.
    pub(crate) fn wait(&self) {
        // SAFETY: the event lives.
        self.device.step("cuEventSynchronize", || unsafe {
            result::event::synchronize(self.handle)
        });
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: destroyed once.
            unsafe { result::event::destroy(self.handle) }.ok();
        }
    }
}
