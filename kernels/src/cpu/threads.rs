//! A fixed pool of threads over which an op spreads its items.
//!
//! ```text
//! state:  | epoch (32 bits) | shutdown | open | active (16 bits) |
//!
//! caller   writes the job, opens it; claims items itself until none is left; closes; waits for active = 0
//! worker   sees an open job of a new epoch; joins (active + 1); claims items; leaves (active - 1)
//! ```
//!
//! Invariants: the job is written only while closed with `active = 0`, and read only by workers that joined;
//! so what a job borrows outlives every use of it. Every item in `0..n_items` is claimed exactly once. The
//! caller waits only for workers that really joined: one that sleeps or lost its core stalls nobody.
//!
//! A panic in an item ends the job, reaches the caller once all workers left, and leaves the pool usable.
//! Workers spin briefly for the next job, then park: an idle pool uses no CPU.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::utils::CachePadded;

use crate::host;

/// Looks at the state before a worker parks: about 30 µs, longer than the gap between two ops of a step.
const SPINS_BEFORE_PARK: u32 = 3000;

/// Looks at the state before the caller starts to give its core away.
const SPINS_BEFORE_YIELD: u32 = 3000;

const ACTIVE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const SHUTDOWN: u64 = 1 << 17;
const EPOCH: u64 = 1 << 32;

/// Whether the pool's threads stay on a core each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pinning {
    /// The scheduler of the system decides.
    #[default]
    Free,
    /// Workers are pinned one to a core, unless there are more threads than cores the process may use.
    Cores,
}

type Work<'a> = dyn Fn(usize, Range<usize>) + Sync + 'a;

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    n_items: usize,
    grain: usize,
}

struct Shared {
    state: CachePadded<AtomicU64>,
    next: CachePadded<AtomicUsize>,
    n_started: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the one field that is not Sync by itself; the module's invariant orders its writes
// (closed, no active worker) before the Release that opens it, and its reads after the Acquire of joining.
// The pointer in it is to a `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    /// Claims and runs items until none is left. A panic is kept for the caller and ends the job.
    fn work(&self, thread_idx: usize, job: Job) {
        // SAFETY: the caller keeps the closure alive until the job is closed and nobody is active; this
        // thread is the caller or counts as active.
        let work = unsafe { &*job.work };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let start = self.next.fetch_add(job.grain, Ordering::Relaxed);
                if start >= job.n_items {
                    break;
                }
                work(thread_idx, start..job.n_items.min(start + job.grain));
            }
        }));
        if let Err(payload) = result {
            self.next.store(job.n_items, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
        }
    }

    fn worker(&self, thread_idx: usize) {
        let mut last_epoch = 0;
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & SHUTDOWN != 0 {
                return;
            }
            if state & OPEN == 0 || state / EPOCH == last_epoch {
                spins += 1;
                if spins < SPINS_BEFORE_PARK {
                    std::hint::spin_loop();
                } else {
                    std::thread::park();
                    spins = 0;
                }
                continue;
            }
            let joined =
                self.state
                    .compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if joined.is_err() {
                continue;
            }
            last_epoch = state / EPOCH;
            // SAFETY: joined, so the caller does not write the job until this thread has left.
            let job = unsafe { *self.job.get() }.expect("an open job is there");
            self.work(thread_idx, job);
            self.state.fetch_sub(1, Ordering::Release);
            spins = 0;
        }
    }
}

/// `n_threads - 1` workers and the calling thread.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// A pool of `n_threads`, the caller of [`run`](Self::run) included; 1 starts no thread.
    ///
    /// # Panics
    /// When `n_threads` is 0 or above 4096.
    pub fn new(n_threads: usize, pinning: Pinning) -> std::io::Result<Self> {
        assert!((1..=4096).contains(&n_threads), "a pool of {n_threads} threads");
        let shared = Arc::new(Shared {
            state: CachePadded::new(AtomicU64::new(0)),
            next: CachePadded::new(AtomicUsize::new(0)),
            n_started: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let cpus = match pinning {
            Pinning::Free => Vec::new(),
            Pinning::Cores => host::allowed_cpus(),
        };
        let mut pool = ThreadPool {
            shared,
            workers: Vec::with_capacity(n_threads - 1),
        };
        for thread_idx in 1..n_threads {
            let shared = Arc::clone(&pool.shared);
            let cpu = (n_threads <= cpus.len()).then(|| cpus[thread_idx]);
            let worker = std::thread::Builder::new()
                .name(format!("arbora-cpu-{thread_idx}"))
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        host::pin_to(cpu);
                    }
                    shared.n_started.fetch_add(1, Ordering::Relaxed);
                    shared.worker(thread_idx);
                })?;
            pool.workers.push(worker);
        }
        // What a thread costs to start, memory included, is then paid before the first job.
        while pool.shared.n_started.load(Ordering::Relaxed) < n_threads - 1 {
            std::thread::yield_now();
        }
        Ok(pool)
    }

    /// Threads that work on a job, the caller's included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(thread_idx, items)` until every item of `0..n_items` was in exactly one call; `items` has
    /// `grain` of them (the last call may have fewer). `thread_idx < n_threads()`, and no two calls at the
    /// same time have the same one. Returns when all are done. Items are claimed while the job runs, so which
    /// thread gets which is not fixed. A job of one grain runs on the caller alone.
    ///
    /// # Panics
    /// With the payload of the first item that panicked, after every thread has stopped working on the job.
    pub fn run(&mut self, n_items: usize, grain: usize, work: impl Fn(usize, Range<usize>) + Sync) {
        assert!(grain > 0, "a grain of no items");
        if n_items == 0 {
            return;
        }
        let n_grains = n_items.div_ceil(grain);
        if self.workers.is_empty() || n_grains == 1 {
            for start in (0..n_items).step_by(grain) {
                work(0, start..n_items.min(start + grain));
            }
            return;
        }
        assert!(
            n_items <= usize::MAX / 2 && grain <= usize::MAX / 2 / self.n_threads(),
            "claims would overflow"
        );
        let work: &Work<'_> = &work;
        // SAFETY: only the lifetime changes. The pointer is used by threads that are active, and this call
        // returns or unwinds only after the job is closed and nobody is active.
        let work: *const Work<'static> = unsafe { std::mem::transmute(work) };
        let job = Job { work, n_items, grain };
        self.run_job(job, n_grains);
        let payload = self
            .shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }

    fn run_job(&mut self, job: Job, n_grains: usize) {
        let shared = &*self.shared;
        let closed = shared.state.load(Ordering::Relaxed);
        debug_assert_eq!(closed & (OPEN | ACTIVE), 0, "the last job ended");
        // SAFETY: `&mut self` is the only caller; the last job is closed and nobody is active.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        let epoch = (closed / EPOCH + 1) % (1 << 32);
        // Epoch 0 is what a worker starts from, so it never names a job.
        shared
            .state
            .store((epoch.max(1) * EPOCH) | OPEN, Ordering::Release);
        for worker in self.workers.iter().take(n_grains - 1) {
            worker.thread().unpark();
        }
        shared.work(0, job);
        let mut state = shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while state & ACTIVE != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
            state = shared.state.load(Ordering::Acquire);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.state.store(SHUTDOWN, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            worker.join().expect("workers catch every panic");
        }
    }
}

/// A slice that several threads write at the same time, each its own part.
#[derive(Clone, Copy)]
pub struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `range`, whose callers keep their ranges apart.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// Shares out `slice`.
    pub fn new(slice: &'a mut [T]) -> Self {
        SharedSlice {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrowed: PhantomData,
        }
    }

    /// The elements in `range`.
    ///
    /// # Safety
    /// * While the result is alive, no other range that overlaps it is asked for or used.
    ///
    /// # Panics
    /// When `range` is not within the slice.
    pub unsafe fn range(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of a slice of {}",
            self.len
        );
        // SAFETY: within the slice that was borrowed exclusively for 'a; disjoint by the caller's obligation.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The first element, for writes that are strided; the same obligations as [`range`](Self::range) hold
    /// for everything written through it.
    pub fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn pool(n_threads: usize) -> ThreadPool {
        ThreadPool::new(n_threads, Pinning::Free).expect("threads can be started")
    }

    #[test]
    fn every_item_is_claimed_exactly_once() {
        for n_threads in 1..=5 {
            let mut pool = pool(n_threads);
            for n_items in [0, 1, 2, 3, 7, 64, 1001] {
                for grain in [1, 2, 5, 2000] {
                    let seen: Vec<AtomicU32> = (0..n_items).map(|_| AtomicU32::new(0)).collect();
                    pool.run(n_items, grain, |thread_idx, items| {
                        assert!(thread_idx < n_threads);
                        assert!(items.len() <= grain && items.start % grain == 0);
                        for item in items {
                            seen[item].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn all_threads_take_part_and_hold_their_index_alone() {
        let mut pool = pool(4);
        let arrived = AtomicUsize::new(0);
        let holders: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        pool.run(4, 1, |thread_idx, _| {
            assert_eq!(holders[thread_idx].fetch_add(1, Ordering::SeqCst), 0);
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 4 {
                std::thread::yield_now();
            }
            holders[thread_idx].fetch_sub(1, Ordering::SeqCst);
        });
    }

    #[test]
    fn many_short_jobs_in_a_row_lose_nothing() {
        for n_threads in [2, 3] {
            let mut pool = pool(n_threads);
            let mut values = vec![0u32; 97];
            for round in 1..=20_000 {
                let n_items = 1 + round % 97;
                let shared = SharedSlice::new(&mut values);
                pool.run(n_items, 3, |_, items| {
                    // SAFETY: items are claimed once, so ranges do not overlap.
                    for value in unsafe { shared.range(items) } {
                        *value += 1;
                    }
                });
            }
            let expected: usize = (1..=20_000).map(|round| 1 + round % 97).sum();
            assert_eq!(values.iter().map(|&v| v as usize).sum::<usize>(), expected);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        for n_threads in 1..=4 {
            let mut pool = pool(n_threads);
            for bad in [0, 1, 7, 99] {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(100, 1, |_, items| {
                        assert!(items.start != bad, "item {bad} is bad");
                    });
                }));
                let payload = result.expect_err("the panic must surface");
                let text = payload.downcast_ref::<String>().expect("a formatted panic");
                assert_eq!(*text, format!("item {bad} is bad"));
                let n = AtomicUsize::new(0);
                pool.run(50, 1, |_, items| {
                    n.fetch_add(items.len(), Ordering::Relaxed);
                });
                assert_eq!(n.into_inner(), 50);
            }
        }
    }

    #[test]
    fn a_pool_of_one_runs_on_the_caller() {
        let here = std::thread::current().id();
        pool(1).run(10, 1, |_, _| assert_eq!(std::thread::current().id(), here));
    }

    #[test]
    fn a_pool_can_be_used_from_another_thread_than_its_maker() {
        let mut pool = pool(3);
        std::thread::spawn(move || pool.run(100, 1, |_, _| {}))
            .join()
            .expect("the job ends");
    }
}
