//! The CPU backend: repacked weights, paged bf16 keys and values, f32 activations, a fixed pool of threads.
//!
//! Which instruction set serves is decided once, when the backend is made, as tables of function pointers;
//! one process can therefore hold a backend of every instruction set its machine has.

mod activation;
mod activations;
mod attention;
mod attention_kernel;
mod attention_plan;
mod backend;
mod batch;
pub mod cores;
mod encoder;
mod experts;
mod exponential;
pub mod isa;
mod kv;
mod layout;
pub mod linear;
mod logprob;
pub mod measure;
mod norm;
#[cfg(test)]
mod random;
mod rope;
mod rows;
mod sample;
mod simd;
mod tanh;
pub mod tensor;
pub mod threads;

use attention_plan::AttentionPlan;
pub use batch::CpuBatch;
pub use encoder::CpuDense;
pub use experts::{CpuExperts, CpuRoutes};
pub use isa::Isa;
pub use kv::CpuKv;
pub use layout::packed_block_bytes;
pub use linear::CpuLinear;
pub use tensor::CpuTensor;
pub use threads::{Pinning, PoolMetrics, SharedSlice, ThreadPool};

use std::sync::Arc;

use activations::QuantizedRows;
use attention::AttentionSpace;
use attention_kernel::AttentionKernel;
use cores::{Claim, Cores};
use encoder::EncoderSpace;
use experts::ExpertSpace;
use rows::RowKernels;
use sample::SampleSpace;
use simd::linear::LinearKernels;

use crate::{AttentionSpec, BackendError};

/// How a [`CpuBackend`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct CpuConfig {
    /// Threads that compute, the engine's own included; at least 1.
    pub n_threads: usize,
    /// Instruction set; `None` takes the best the machine has.
    pub isa: Option<Isa>,
    /// Which cores the threads run on.
    pub pinning: Pinning,
}

/// Computes on the cores of this machine.
pub struct CpuBackend {
    claim: Claim,
    isa: Isa,
    linear_kernels: &'static LinearKernels,
    quantized: QuantizedRows,
    experts: ExpertSpace,
    row_kernels: RowKernels,
    attention: AttentionSpace,
    sample_spaces: Vec<SampleSpace>,
    encoder: EncoderSpace,
}

impl CpuBackend {
    /// Starts the threads and chooses the kernels.
    ///
    /// # Errors
    /// Where there are no such threads or no such instruction set.
    pub fn new(config: CpuConfig) -> Result<Self, BackendError> {
        let cores = Cores::new(config.n_threads, config.pinning).map_err(|source| BackendError::Threads {
            n_threads: config.n_threads,
            source,
        })?;
        CpuBackend::on(&cores, config.isa, 1)
    }

    /// One that shares `cores` with others, in the ratio of their weights. Chooses the kernels.
    ///
    /// # Errors
    /// Where the machine lacks the instruction set.
    ///
    /// # Panics
    /// When the weight is 0.
    pub fn on(cores: &Cores, isa: Option<Isa>, weight: u32) -> Result<Self, BackendError> {
        let isa = match isa {
            None => Isa::best(),
            Some(isa) if isa.is_available() => isa,
            Some(isa) => return Err(BackendError::UnavailableIsa { isa: isa.name() }),
        };
        let n_threads = cores.n_threads();
        Ok(CpuBackend {
            claim: cores.claim(weight),
            isa,
            linear_kernels: LinearKernels::of(isa),
            quantized: QuantizedRows::new()?,
            experts: ExpertSpace::new()?,
            row_kernels: RowKernels::of(isa),
            attention: AttentionSpace::new(n_threads),
            sample_spaces: std::iter::repeat_with(SampleSpace::default)
                .take(n_threads)
                .collect(),
            encoder: EncoderSpace::new(isa, n_threads),
        })
    }

    /// What became of the threads.
    pub fn pool_metrics(&self) -> Arc<PoolMetrics> {
        self.claim.metrics()
    }

    /// The instruction set of the linear layers.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Name of the kernel that serves attention of this head dimension, for logs.
    pub fn attention_kernel(&self, head_dim: usize) -> &'static str {
        AttentionKernel::of(self.isa, head_dim, &AttentionSpec::full(head_dim)).name
    }
}
