//! A CUDA driver without a GPU: `libcuda.so` for tests, over host memory and the PTX emulator.
//!
//! It is as unkind as the real one may be. Work on a stream runs only when somebody waits for it, pinned
//! buffers are read and written only then, new memory is full of NaN, freed memory is gone, what a capture
//! forbids fails, and after a fault every call fails.
//!
//! ```text
//! a test --FakeDriver::load--> this library, opened as libcuda.so <--dlopen-- the driver's binding
//!    └──────── fail, reset, counts, fault ────────┘
//! ```
//!
//! It answers a cubin with "no binary for this GPU", as the real one answers to that of another
//! architecture, so that PTX is loaded instead.

#![expect(unsafe_code, reason = "the C ABI of NVIDIA's driver")]

pub mod control;
mod driver;
mod state;
mod work;

/// `CUresult`.
type Code = i32;

const INVALID_VALUE: Code = 1;
const OUT_OF_MEMORY: Code = 2;
const INVALID_DEVICE: Code = 101;
const INVALID_CONTEXT: Code = 201;
const NO_BINARY_FOR_GPU: Code = 209;
const INVALID_PTX: Code = 218;
const INVALID_HANDLE: Code = 400;
const NOT_FOUND: Code = 500;
const NOT_READY: Code = 600;
const ILLEGAL_ADDRESS: Code = 700;
const MISALIGNED_ADDRESS: Code = 716;
const LAUNCH_FAILED: Code = 719;
const CAPTURE_UNSUPPORTED: Code = 900;
const CAPTURE_INVALIDATED: Code = 901;
const CAPTURE_UNMATCHED: Code = 903;
const CAPTURE_ISOLATION: Code = 905;
const GRAPH_UPDATE_FAILURE: Code = 910;
