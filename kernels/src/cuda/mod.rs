//! CUDA backend: kernels compiled at start by NVRTC, run through the driver, for devices from compute
//! capability 8.0 on. Neither is needed to build, and nothing is loaded unless a device is asked for.
//!
//! ```text
//! kernels/cu/*.cu --NVRTC--> cubin and PTX --KernelCache--> Device::load --> CudaBackend (f32 activations)
//! ```
//!
//! Activations are f32; weights stay in the format of the file (F32, F16, BF16), other formats are refused
//! by name. Keys and values are bf16. Every sum has one fixed order, so contracts C1 and C2 hold bit for bit.

mod backend;
mod batch;
mod cache;
mod device;
mod error;
mod graphs;
mod kernels;
mod kv;
mod linear;
mod memory;
mod nvrtc;
mod sample;
mod tensor;

pub use backend::{CudaBackend, CudaConfig, CudaRope, DEFAULT_MAX_GRAPHS};
pub use batch::CudaBatch;
pub use cache::KernelCache;
pub use device::DeviceFailure;
pub use error::CudaError;
pub use kernels::{HEADER, SOURCES};
pub use kv::CudaKv;
pub use linear::CudaLinear;
pub use nvrtc::{Compiled, Nvrtc, Source};
pub use sample::CudaPending;
pub use tensor::CudaTensor;
