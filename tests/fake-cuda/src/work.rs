//! What can be queued on a stream.

use std::ffi::c_void;
use std::sync::Arc;

use arbora_ptx_emulator::{Dim, Module};

/// A loaded module and where its global variables are.
pub(crate) struct Loaded {
    pub(crate) module: Module,
    pub(crate) globals: Vec<u64>,
}

/// A kernel with its arguments.
#[derive(Clone)]
pub(crate) struct KernelWork {
    pub(crate) module: Arc<Loaded>,
    pub(crate) name: String,
    pub(crate) grid: Dim,
    pub(crate) block: Dim,
    pub(crate) shared: usize,
    pub(crate) params: Vec<u8>,
}

/// Addresses are of the device's memory or of the host's, whatever they turn out to be.
#[derive(Clone)]
pub(crate) enum Work {
    Kernel(KernelWork),
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// Data that was copied when the call was made, as of memory that is not pinned.
    Write {
        to: u64,
        data: Vec<u8>,
    },
    Fill {
        to: u64,
        word: u32,
        width: usize,
        n: usize,
    },
    /// An event, and the number of its record.
    Record(usize, u64),
    Wait(usize, u64),
    Host(extern "C" fn(*mut c_void), usize),
    Free(u64),
    Graph(Graph),
}

/// Captured work.
#[derive(Clone)]
pub(crate) struct Graph(pub(crate) Arc<Vec<Work>>);

impl Graph {
    /// Whether an executable graph can become `other`: the same nodes and kernels, other parameters.
    pub(crate) fn has_shape_of(&self, other: &Graph) -> bool {
        let kind = |work: &Work| match work {
            Work::Kernel(kernel) => kernel.name.clone(),
            other => format!("{:?}", std::mem::discriminant(other)),
        };
        self.0.iter().map(kind).eq(other.0.iter().map(kind))
    }
}
