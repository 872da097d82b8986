//! CUDA graphs: the kernels of a forward pass, recorded once and launched with one call.
//!
//! A pass is first traced: its operations run as always, but nothing is queued and what would be is hashed.
//! The graph with that hash queues the very same kernels with the same arguments, so it may run instead; what
//! changes from step to step lies in device memory. Without such a graph the pass is captured.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::device::{Argument, Device, Function, Geometry, Graph};

/// Most rows of a pass that is recorded: with more rows, launches cost little beside the work.
pub(crate) const MAX_ROWS: usize = 64;

/// What operations do with their kernels.
enum Mode {
    /// Queue them, or add them to the graph that is being captured.
    Queue,
    /// Hash them.
    Trace(DefaultHasher),
}

/// The graphs of a backend.
pub(crate) struct Graphs {
    mode: Mode,
    by_trace: HashMap<u64, Graph>,
    capacity: usize,
}

impl Graphs {
    /// Room for `capacity` graphs; the passes that come after them are queued kernel by kernel.
    pub(crate) fn new(capacity: usize) -> Graphs {
        Graphs {
            mode: Mode::Queue,
            by_trace: HashMap::with_capacity(capacity),
            capacity,
        }
    }

    /// Whether a pass of `n_rows` rows is recorded.
    pub(crate) fn records(&self, n_rows: usize) -> bool {
        self.capacity > 0 && (1..=MAX_ROWS).contains(&n_rows)
    }

    /// Queues a kernel, or hashes it.
    pub(crate) fn launch(
        &mut self,
        device: &Device,
        function: Function,
        geometry: Geometry,
        arguments: &[Argument],
    ) {
        match &mut self.mode {
            Mode::Queue => device.launch(function, geometry, arguments),
            Mode::Trace(hasher) => (function, geometry, arguments).hash(hasher),
        }
    }

    /// From here on kernels are hashed.
    pub(crate) fn begin_trace(&mut self) {
        self.mode = Mode::Trace(DefaultHasher::new());
    }

    /// The hash of the kernels since the beginning; they are queued again from here on.
    pub(crate) fn end_trace(&mut self) -> u64 {
        match std::mem::replace(&mut self.mode, Mode::Queue) {
            Mode::Trace(hasher) => hasher.finish(),
            Mode::Queue => panic!("a trace ends that did not begin"),
        }
    }

    /// Queues the graph with this trace; `false` where there is none.
    pub(crate) fn replay(&self, trace: u64) -> bool {
        let graph = self.by_trace.get(&trace);
        graph.inspect(|graph| graph.launch()).is_some()
    }

    /// Whether one more graph may be captured.
    pub(crate) fn has_room(&self) -> bool {
        self.by_trace.len() < self.capacity
    }

    /// Keeps a graph.
    pub(crate) fn keep(&mut self, trace: u64, graph: Graph) {
        self.by_trace.insert(trace, graph);
    }
}
