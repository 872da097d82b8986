//! What the driver knows: memory, modules, streams with their queues, events, graphs, failures to come.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use arbora_ptx_emulator::{Dim, Fault, FaultKind, Launch, Memory, Module, Options, run};

use crate::control::Counts;
use crate::work::{Graph, KernelWork, Loaded, Work};
use crate::{
    CAPTURE_ISOLATION, CAPTURE_UNSUPPORTED, Code, ILLEGAL_ADDRESS, INVALID_HANDLE, INVALID_VALUE,
    LAUNCH_FAILED, MISALIGNED_ADDRESS, OUT_OF_MEMORY,
};

pub(crate) type Result<T = (), E = Code> = std::result::Result<T, E>;

const DEFAULT_MEMORY: usize = 2 << 30;
/// Most shared memory of a block, and how much of it a kernel gets without asking.
pub(crate) const MAX_SHARED: usize = 227 << 10;
const DEFAULT_SHARED: usize = 48 << 10;
const MAX_THREADS: usize = 1024;
const MAX_GRID_YZ: u32 = 65535;

thread_local! {
    /// The context of this thread.
    pub(crate) static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// A kernel that was looked up.
pub(crate) struct Function {
    module: Arc<Loaded>,
    owner: usize,
    name: String,
    pub(crate) max_dynamic_shared: usize,
}

impl Function {
    pub(crate) fn static_shared(&self) -> usize {
        self.module.module.kernels[&self.name].static_shared
    }
}

#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) queue: VecDeque<Work>,
    pub(crate) capture: Option<Vec<Work>>,
}

/// How often an event was recorded, and how many of these records were passed.
#[derive(Default)]
pub(crate) struct Event {
    pub(crate) recorded: u64,
    pub(crate) done: u64,
}

struct Failure {
    function: String,
    after: u32,
    code: Code,
    is_sticky: bool,
}

pub(crate) struct State {
    pub(crate) streams: HashMap<usize, Stream>,
    pub(crate) events: HashMap<usize, Event>,
    pub(crate) graphs: HashMap<usize, Graph>,
    pub(crate) functions: HashMap<usize, Function>,
    modules: HashMap<usize, Arc<Loaded>>,
    memory: Memory,
    /// Pinned memory by its address in this process.
    pinned: BTreeMap<u64, Vec<u64>>,
    pub(crate) memory_limit: usize,
    pub(crate) capture_is_broken: bool,
    next_handle: usize,
    sticky: Option<Code>,
    fault: String,
    failures: Vec<Failure>,
    counts: Counts,
    seed: u64,
}

fn fresh(memory_limit: usize, seed: u64) -> State {
    State {
        streams: HashMap::from([(0, Stream::default())]),
        events: HashMap::new(),
        graphs: HashMap::new(),
        functions: HashMap::new(),
        modules: HashMap::new(),
        memory: Memory::default(),
        pinned: BTreeMap::new(),
        memory_limit,
        capture_is_broken: false,
        next_handle: 0x1000,
        sticky: None,
        fault: String::new(),
        failures: Vec::new(),
        counts: Counts::default(),
        seed,
    }
}

fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    let state = STATE.get_or_init(|| Mutex::new(fresh(DEFAULT_MEMORY, 1)));
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs one call of the driver.
pub(crate) fn enter(function: &str, body: impl FnOnce(&mut State) -> Result) -> Code {
    let mut state = state();
    state.counts.n_calls += 1;
    if let Some(code) = state.injected(function).or(state.sticky) {
        return code;
    }
    body(&mut state).err().unwrap_or(0)
}

/// See [`crate::control::FakeDriver::fail`].
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_fail(function: *const std::ffi::c_char, n: u32, code: Code, is_sticky: bool) {
    // SAFETY: the control half of this crate hands over a C string.
    let function = unsafe { std::ffi::CStr::from_ptr(function) }
        .to_string_lossy()
        .into_owned();
    state().failures.push(Failure {
        function,
        after: n,
        code,
        is_sticky,
    });
}

/// See [`crate::control::FakeDriver::reset`].
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_reset(memory: usize, seed: u64) {
    *state() = fresh(memory, seed);
}

/// See [`crate::control::FakeDriver::counts`].
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_counts() -> Counts {
    let state = state();
    Counts {
        n_blocks: state.memory.n_blocks() as u64,
        ..state.counts
    }
}

/// See [`crate::control::FakeDriver::fault`].
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_fault(text: *mut u8, len: usize) -> usize {
    let state = state();
    let n = state.fault.len().min(len);
    // SAFETY: the control half of this crate hands over `len` bytes.
    unsafe { std::ptr::copy_nonoverlapping(state.fault.as_ptr(), text, n) };
    n
}

impl State {
    fn injected(&mut self, function: &str) -> Option<Code> {
        let found = self
            .failures
            .iter()
            .position(|failure| failure.function == function)?;
        if self.failures[found].after > 1 {
            self.failures[found].after -= 1;
            return None;
        }
        let failure = self.failures.remove(found);
        if failure.is_sticky {
            self.sticky = Some(failure.code);
        }
        Some(failure.code)
    }

    pub(crate) fn new_handle(&mut self) -> usize {
        self.next_handle += 16;
        self.next_handle
    }

    pub(crate) fn new_stream(&mut self) -> usize {
        let handle = self.new_handle();
        self.streams.insert(handle, Stream::default());
        handle
    }

    pub(crate) fn new_event(&mut self) -> usize {
        let handle = self.new_handle();
        self.events.insert(handle, Event::default());
        handle
    }

    pub(crate) fn new_graph(&mut self, graph: Graph) -> usize {
        let handle = self.new_handle();
        self.graphs.insert(handle, graph);
        handle
    }

    pub(crate) fn stream(&mut self, stream: usize) -> Result<&mut Stream> {
        self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)
    }

    pub(crate) fn event(&mut self, event: usize) -> Result<&mut Event> {
        self.events.get_mut(&event).ok_or(INVALID_HANDLE)
    }

    pub(crate) fn free_bytes(&self) -> usize {
        self.memory_limit.saturating_sub(self.memory.used())
    }

    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<u64> {
        if bytes > self.free_bytes() {
            return Err(OUT_OF_MEMORY);
        }
        Ok(self.memory.allocate(bytes))
    }

    pub(crate) fn free(&mut self, at: u64) -> Result {
        if self.memory.free(at) {
            Ok(())
        } else {
            Err(INVALID_VALUE)
        }
    }

    pub(crate) fn allocate_pinned(&mut self, bytes: usize) -> u64 {
        // All ones is NaN in every float format.
        let words = vec![u64::MAX; bytes.div_ceil(8).max(1)];
        let start = words.as_ptr() as u64;
        self.pinned.insert(start, words);
        start
    }

    pub(crate) fn free_pinned(&mut self, at: u64) -> Result {
        self.pinned.remove(&at).map(drop).ok_or(INVALID_VALUE)
    }

    pub(crate) fn is_pinned(&self, address: u64) -> bool {
        let found = self.pinned.range(..=address).next_back();
        found.is_some_and(|(start, words)| address < start + 8 * words.len() as u64)
    }

    pub(crate) fn load(&mut self, module: Module) -> Result<usize> {
        let mut globals = Vec::new();
        for global in &module.globals {
            let address = self.allocate(global.bytes.len())?;
            let bytes = self.memory.slice_mut(address, global.bytes.len());
            bytes
                .expect("it was just allocated")
                .copy_from_slice(&global.bytes);
            globals.push(address);
        }
        let handle = self.new_handle();
        self.modules.insert(handle, Arc::new(Loaded { module, globals }));
        Ok(handle)
    }

    pub(crate) fn unload(&mut self, module: usize) -> Result {
        self.functions.retain(|_, function| function.owner != module);
        let loaded = self.modules.remove(&module).ok_or(INVALID_HANDLE)?;
        loaded.globals.iter().try_for_each(|&address| self.free(address))
    }

    pub(crate) fn function(&mut self, owner: usize, name: &str) -> Option<usize> {
        let module = Arc::clone(self.modules.get(&owner)?);
        module.module.kernels.get(name)?;
        let handle = self.new_handle();
        let name = name.to_owned();
        self.functions.insert(
            handle,
            Function {
                module,
                owner,
                name,
                max_dynamic_shared: DEFAULT_SHARED,
            },
        );
        Some(handle)
    }

    /// Address and size of a global variable.
    pub(crate) fn global(&self, module: usize, name: &str) -> Option<(u64, usize)> {
        let loaded = self.modules.get(&module)?;
        let idx = loaded
            .module
            .globals
            .iter()
            .position(|global| global.name == name)?;
        Some((loaded.globals[idx], loaded.module.globals[idx].bytes.len()))
    }

    /// Checks a launch as the driver does at once. `argument` gives the bytes of each parameter by its index
    /// and size.
    pub(crate) fn launch(
        &mut self,
        function: usize,
        (grid, block, shared): (Dim, Dim, usize),
        mut argument: impl FnMut(usize, usize) -> Vec<u8>,
    ) -> Result<Work> {
        let function = self.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let kernel = &function.module.module.kernels[&function.name];
        let n_threads = block.iter().map(|&n| n as usize).product::<usize>();
        let limit = if kernel.max_threads == 0 {
            MAX_THREADS
        } else {
            kernel.max_threads
        };
        let is_possible = !grid.contains(&0)
            && (1..=limit).contains(&n_threads)
            && grid[1] <= MAX_GRID_YZ
            && grid[2] <= MAX_GRID_YZ
            && shared <= function.max_dynamic_shared;
        if !is_possible {
            return Err(INVALID_VALUE);
        }
        let mut params = Vec::new();
        for (idx, (offset, bytes)) in kernel.parameters().enumerate() {
            params.resize(offset, 0);
            params.extend(argument(idx, bytes));
        }
        let (module, name) = (Arc::clone(&function.module), function.name.clone());
        Ok(Work::Kernel(KernelWork {
            module,
            name,
            grid,
            block,
            shared,
            params,
        }))
    }

    /// Calls that wait are not allowed while any stream captures.
    pub(crate) fn forbid_in_capture(&mut self) -> Result {
        if self.streams.values().any(|stream| stream.capture.is_some()) {
            return Err(self.break_capture());
        }
        Ok(())
    }

    pub(crate) fn break_capture(&mut self) -> Code {
        self.capture_is_broken = true;
        CAPTURE_UNSUPPORTED
    }

    pub(crate) fn submit(&mut self, stream: usize, work: Work) -> Result {
        let stream = self.stream(stream)?;
        match &mut stream.capture {
            Some(captured) => captured.push(work),
            None => stream.queue.push_back(work),
        }
        Ok(())
    }

    pub(crate) fn wait_for(&mut self, stream: usize, event: usize) -> Result {
        let n = self.event(event)?.recorded;
        if let Some(captured) = &self.stream(stream)?.capture {
            let is_it = |work: &Work| matches!(work, Work::Record(of, k) if *of == event && *k == n);
            if n > 0 && !captured.iter().any(is_it) {
                // An event from outside of the capture, done or not.
                self.capture_is_broken = true;
                return Err(CAPTURE_ISOLATION);
            }
        }
        self.submit(stream, Work::Wait(event, n))
    }

    pub(crate) fn drain_all(&mut self) -> Result {
        let mut streams: Vec<usize> = self.streams.keys().copied().collect();
        // Any order is legal.
        let seed = self.seed as usize;
        streams.sort_by_key(|handle| handle.wrapping_mul(seed.wrapping_add(0x9e37_79b9)) % 1009);
        streams.into_iter().try_for_each(|stream| self.drain(stream))
    }

    pub(crate) fn drain(&mut self, stream: usize) -> Result {
        while let Some(work) = self.stream(stream)?.queue.pop_front() {
            self.run(&work)?;
        }
        Ok(())
    }

    /// Runs whatever has to run before the `n`th record of `event`.
    pub(crate) fn finish_event(&mut self, event: usize, n: u64) -> Result {
        while self.event(event)?.done < n {
            let holds = |work: &Work| matches!(work, Work::Record(of, k) if *of == event && *k <= n);
            let mut streams = self.streams.values_mut();
            let found = streams.find(|stream| stream.queue.iter().any(holds));
            let Some(work) = found.and_then(|stream| stream.queue.pop_front()) else {
                return self.broken(
                    LAUNCH_FAILED,
                    "a stream waits for an event that nobody will record".into(),
                );
            };
            self.run(&work)?;
        }
        Ok(())
    }

    fn broken(&mut self, code: Code, message: String) -> Result {
        self.sticky = Some(code);
        self.fault = message;
        Err(code)
    }

    /// Why a text is refused, for whoever asks later.
    pub(crate) fn note(&mut self, message: String) {
        self.fault = message;
    }

    fn run(&mut self, work: &Work) -> Result {
        match work {
            Work::Kernel(kernel) => self.run_kernel(kernel),
            Work::Copy { to, from, bytes } => self.copy(*to, *from, *bytes),
            Work::Write { to, data } => self.put(*to, data),
            Work::Fill { to, word, width, n } => self.put(*to, &word.to_le_bytes()[..*width].repeat(*n)),
            Work::Record(event, n) => {
                if let Some(event) = self.events.get_mut(event) {
                    event.done = event.done.max(*n);
                }
                Ok(())
            }
            Work::Wait(event, n) if self.events.contains_key(event) => self.finish_event(*event, *n),
            Work::Wait(..) => Ok(()),
            Work::Host(f, data) => {
                f(*data as *mut std::ffi::c_void);
                Ok(())
            }
            Work::Free(at) => self.free(*at),
            Work::Graph(graph) => graph.0.iter().try_for_each(|work| self.run(work)),
        }
    }

    fn run_kernel(&mut self, work: &KernelWork) -> Result {
        let KernelWork {
            module,
            name,
            grid,
            block,
            shared,
            params,
        } = work;
        let launch = Launch {
            module: &module.module,
            kernel: &module.module.kernels[name],
            globals: &module.globals,
            grid: *grid,
            block: *block,
            dynamic_shared: *shared,
            params,
        };
        self.seed += 1;
        self.counts.n_launches += 1;
        match run(
            &launch,
            &mut self.memory,
            Options {
                seed: self.seed,
                ..Options::default()
            },
        ) {
            Ok(statistics) => {
                self.counts.n_instructions += statistics.instructions;
                Ok(())
            }
            Err(fault) => self.broken(code_of(&fault), fault.to_string()),
        }
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result {
        match (self.memory.contains(to), self.memory.contains(from)) {
            (true, true) => {
                let data = self.memory.slice(from, bytes).map(<[u8]>::to_vec);
                match data {
                    Ok(data) => self.put(to, &data),
                    Err(error) => self.broken(ILLEGAL_ADDRESS, error.to_string()),
                }
            }
            (true, false) => {
                // SAFETY: the caller of the driver says that so many bytes of the host can be read.
                let data = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
                self.put(to, data)
            }
            (false, true) => match self.memory.slice(from, bytes) {
                Ok(data) => {
                    // SAFETY: the caller of the driver says that so many bytes of the host can be written.
                    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to as *mut u8, bytes) };
                    Ok(())
                }
                Err(error) => self.broken(ILLEGAL_ADDRESS, error.to_string()),
            },
            (false, false) if bytes == 0 => Ok(()),
            (false, false) => self.broken(
                ILLEGAL_ADDRESS,
                format!("copy of {bytes} bytes from {from:#x} to {to:#x}"),
            ),
        }
    }

    fn put(&mut self, to: u64, data: &[u8]) -> Result {
        if data.is_empty() {
            return Ok(());
        }
        match self.memory.slice_mut(to, data.len()) {
            Ok(target) => {
                target.copy_from_slice(data);
                Ok(())
            }
            Err(error) => self.broken(ILLEGAL_ADDRESS, error.to_string()),
        }
    }
}

fn code_of(fault: &Fault) -> Code {
    match fault.kind {
        FaultKind::Address => ILLEGAL_ADDRESS,
        FaultKind::Misaligned => MISALIGNED_ADDRESS,
        FaultKind::Launch => LAUNCH_FAILED,
    }
}
