//! PTX interpreter: runs the kernels that NVRTC compiles on the CPU, to test a CUDA backend without a GPU.
//!
//! ```text
//! PTX text --Module::parse--> kernels of decoded instructions --run(Launch)--> Memory, Statistics or a Fault
//! ```
//!
//! A warp executes one instruction at a time over its 32 lanes; lanes that diverge run lowest address first
//! until they meet. Blocks run one after the other, the warps of a block interleave at random (seeded).
//! What compute-sanitizer would say is an error here: accesses outside of allocations, misaligned accesses,
//! reads of registers and shared memory that nothing wrote, shared-memory races between warps (vector clocks
//! over barriers, `cp.async` and `mbarrier`), collectives that some lanes of the warp never reach, deadlocks.
//!
//! Not modelled: time, caches, races between lanes of a warp and between blocks, the weak memory model, the
//! rounding of the tensor cores and of approximations. Not there: clusters, TMA stores, calls of functions
//! that are not inlined, textures, `tcgen05`, `wgmma` of other types than bf16 or without swizzle. A text
//! that needs one of these is refused with its line.
//!
//! ```
//! use arbora_ptx_emulator::{Launch, Memory, Module, Options, run};
//!
//! let text = ".version 8.0
//!     .target sm_80
//!     .visible .entry fill(.param .u64 out) {
//!         .reg .b64 %rd<2>;
//!         .reg .b32 %r<2>;
//!         ld.param.u64 %rd0, [out];
//!         mov.u32 %r0, %tid.x;
//!         mad.wide.u32 %rd1, %r0, 4, %rd0;
//!         st.global.u32 [%rd1], %r0;
//!         ret;
//!     }";
//! let module = Module::parse(text).unwrap();
//! let mut memory = Memory::default();
//! let out = memory.allocate(128);
//! let launch = Launch {
//!     module: &module,
//!     kernel: &module.kernels["fill"],
//!     globals: &[],
//!     grid: [1, 1, 1],
//!     block: [32, 1, 1],
//!     dynamic_shared: 0,
//!     params: &out.to_le_bytes(),
//! };
//! let statistics = run(&launch, &mut memory, Options::default()).unwrap();
//! assert_eq!(memory.slice(out + 28, 4).unwrap(), 7u32.to_le_bytes());
//! assert_eq!((statistics.global_stores, statistics.global_store_sectors), (1, 4));
//! ```

mod access;
mod arithmetic;
mod asynchronous;
mod collective;
mod convert;
mod decode;
mod execute;
mod float;
mod integer;
mod isa;
mod machine;
mod memory;
mod parse;
mod shared;
mod tensor;
mod tma;
mod warp;

pub use isa::Kernel;
pub use machine::{Dim, Fault, FaultKind, Launch, Options, Statistics, run};
pub use memory::{AccessError, Memory};
pub use parse::{GlobalVariable, Module, ParseError};
pub use tma::{TENSOR_MAP_BYTES, TensorMap};
