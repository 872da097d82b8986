//! A fixed pool of threads over which an op spreads its items.
//!
//! ```text
//! state:  | epoch (32 bits) | asleep | shutdown | open | active (16 bits) |
//!
//! caller   writes the job, opens it; claims items itself until none is left; closes; waits for active = 0
//! worker   sees an open job of a new epoch; joins (active + 1); claims items; leaves (active - 1)
//! ```
//!
//! Invariants: the job is written only while closed with `active = 0`, and read only by workers that joined;
//! so what a job borrows outlives every use of it. Every item in `0..n_items` is claimed exactly once. The
//! caller waits only for workers that really joined: one that sleeps or lost its core stalls nobody. One that
//! loses its core while it holds an item is moved to the core of a thread that waits for it
//! (`placement`).
//!
//! A panic in an item ends the job, reaches the caller once all workers left, and leaves the pool usable.
//! All spin briefly for what comes next, then sleep: an idle pool uses no CPU, and nobody yields a core,
//! which costs a system call each time and does not let the system move anybody.

mod placement;

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread, ThreadId};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

pub use placement::PoolMetrics;
use placement::{Placement, Seat};

use crate::host::scheduling::{CpuSet, OsThread, pin_to};

/// Looks at the state before a worker parks: about 80 µs, longer than the gap between two ops of a step.
const SPINS_BEFORE_PARK: u32 = 3000;

/// Looks at the state before the caller wonders what holds a worker up: about 30 µs.
const SPINS_BEFORE_LOOK: u32 = 1000;

/// Between two looks at the CPU time of a thread: one that runs has used some.
const BETWEEN_LOOKS: Duration = Duration::from_micros(20);

/// Looks at workers that run before the caller sleeps until they are done. Waking up takes some 50 µs.
const LOOKS_BEFORE_SLEEP: u32 = 8;

const ACTIVE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const SHUTDOWN: u64 = 1 << 17;
/// The caller sleeps until the last worker leaves.
const ASLEEP: u64 = 1 << 18;
const EPOCH: u64 = 1 << 32;

/// Which cores the pool's threads run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pinning {
    /// The scheduler of the system decides, except that workers stay off the caller's core, and that a thread
    /// whose core was taken by another process while others wait for it is moved to one of theirs. As
    /// [`Free`](Self::Free) where the system has no such calls.
    #[default]
    Auto,
    /// The scheduler of the system decides.
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
    /// Who waits for its end, where threads may be moved.
    caller: Option<OsThread>,
}

struct Shared {
    state: CachePadded<AtomicU64>,
    next: CachePadded<AtomicUsize>,
    n_started: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// By worker.
    seats: Vec<CachePadded<Seat>>,
    /// Whom to wake where the caller is asleep.
    sleeper: Mutex<Option<Thread>>,
    /// A worker looks after the caller: one is enough.
    is_looking: AtomicBool,
    metrics: Arc<PoolMetrics>,
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
        let seat = &*self.seats[thread_idx - 1];
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
                    if state & OPEN != 0 {
                        self.look_after_caller(state, seat);
                    }
                    std::thread::park();
                    spins = 0;
                }
                continue;
            }
            let Some(job) = self.join(state, seat) else {
                continue;
            };
            last_epoch = state / EPOCH;
            self.work(thread_idx, job);
            // A caller that slept may have given its core to this thread, and gets it back.
            spins = match self.leave(seat) {
                Caller::Awake => 0,
                Caller::Asleep => SPINS_BEFORE_PARK,
            };
        }
    }

    /// The job, unless it changed since `state` was seen.
    fn join(&self, state: u64, seat: &Seat) -> Option<Job> {
        self.state
            .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed)
            .ok()?;
        seat.is_busy.store(true, Ordering::Relaxed);
        // SAFETY: joined, so the caller does not write the job until this thread has left.
        Some(unsafe { *self.job.get() }.expect("an open job is there"))
    }

    fn leave(&self, seat: &Seat) -> Caller {
        seat.is_busy.store(false, Ordering::Relaxed);
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & ASLEEP == 0 {
            return Caller::Awake;
        }
        if before & ACTIVE == 1 {
            let sleeper = self.sleeper.lock().unwrap_or_else(PoisonError::into_inner);
            // It may be that of a later job by now, which looks at the state and sleeps on.
            if let Some(sleeper) = &*sleeper {
                sleeper.unpark();
            }
        }
        Caller::Asleep
    }

    /// No item of the open job in `state` is left, and still the caller does not close it. Where it does not
    /// run, it gets the CPU of this thread, which is about to park.
    #[cold]
    fn look_after_caller(&self, state: u64, seat: &Seat) {
        if self.is_looking.swap(true, Ordering::Acquire) {
            return;
        }
        // Joined, so that the caller and its thread are there.
        if let Some(job) = self.join(state, seat) {
            if let Some(caller) = job.caller {
                let before = caller.cpu_time();
                let is_open = spin_while(BETWEEN_LOOKS, || self.state.load(Ordering::Relaxed) & OPEN != 0);
                if is_open
                    && before.is_some()
                    && caller.cpu_time() == before
                    && placement::swap_places(caller)
                {
                    self.metrics.count_rescue();
                }
            }
            self.leave(seat);
        }
        self.is_looking.store(false, Ordering::Release);
    }
}

/// What a worker that leaves finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    Awake,
    Asleep,
}

/// Spins for `time` as long as `goes_on`; whether it still does.
fn spin_while(time: Duration, goes_on: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while goes_on() {
        if begun.elapsed() >= time {
            return true;
        }
        for _ in 0..16 {
            std::hint::spin_loop();
        }
    }
    false
}

/// `n_threads - 1` workers and the calling thread.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Where threads are moved.
    placement: Option<Placement>,
    /// The thread that called last, and its handle.
    caller: Option<(ThreadId, Option<OsThread>)>,
}

impl ThreadPool {
    /// A pool of `n_threads`, the caller of [`run`](Self::run) included; 1 starts no thread.
    ///
    /// # Panics
    /// When `n_threads` is 0 or above 4096.
    pub fn new(n_threads: usize, pinning: Pinning) -> std::io::Result<Self> {
        assert!((1..=4096).contains(&n_threads), "a pool of {n_threads} threads");
        let n_workers = n_threads - 1;
        let shared = Arc::new(Shared {
            state: CachePadded::new(AtomicU64::new(0)),
            next: CachePadded::new(AtomicUsize::new(0)),
            n_started: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            seats: std::iter::repeat_with(CachePadded::default)
                .take(n_workers)
                .collect(),
            sleeper: Mutex::new(None),
            is_looking: AtomicBool::new(false),
            metrics: Arc::default(),
        });
        let cpus: Vec<usize> = match (pinning, OsThread::current().and_then(CpuSet::allowed)) {
            (Pinning::Cores, Some(allowed)) => allowed.ids().collect(),
            (Pinning::Cores, None) | (Pinning::Auto | Pinning::Free, _) => Vec::new(),
        };
        let mut pool = ThreadPool {
            shared,
            workers: Vec::with_capacity(n_workers),
            placement: (pinning == Pinning::Auto).then(|| Placement::new(n_workers)),
            caller: None,
        };
        for thread_idx in 1..n_threads {
            let shared = Arc::clone(&pool.shared);
            let cpu = (n_threads <= cpus.len()).then(|| cpus[thread_idx]);
            let worker = std::thread::Builder::new()
                .name(format!("arbora-cpu-{thread_idx}"))
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        pin_to(cpu);
                    }
                    shared.seats[thread_idx - 1].thread.get_or_init(OsThread::current);
                    shared.n_started.fetch_add(1, Ordering::Release);
                    shared.worker(thread_idx);
                })?;
            pool.workers.push(worker);
        }
        // What a thread costs to start, memory included, is then paid before the first job.
        while pool.shared.n_started.load(Ordering::Acquire) < n_workers {
            std::thread::yield_now();
        }
        Ok(pool)
    }

    /// What became of the pool's threads.
    pub fn metrics(&self) -> Arc<PoolMetrics> {
        Arc::clone(&self.shared.metrics)
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
        let caller = self.place();
        let job = Job {
            work,
            n_items,
            grain,
            caller,
        };
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

    /// Sees to it that the workers stay off the CPU of the calling thread; its handle where threads are
    /// moved.
    #[inline]
    fn place(&mut self) -> Option<OsThread> {
        let placement = self.placement.as_mut()?;
        let id = std::thread::current().id();
        let caller = match self.caller {
            Some((last, caller)) if last == id => caller,
            Some(_) | None => {
                let caller = OsThread::current();
                self.caller = Some((id, caller));
                caller
            }
        }?;
        placement.follow(caller, &self.shared.seats);
        Some(caller)
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
            if spins == SPINS_BEFORE_LOOK {
                self.wait_long();
                return;
            }
            std::hint::spin_loop();
            state = shared.state.load(Ordering::Acquire);
        }
    }

    /// Waits for the workers of a closed job, one of which takes long.
    #[cold]
    fn wait_long(&mut self) {
        let begun = Instant::now();
        let shared = &*self.shared;
        let is_active = || shared.state.load(Ordering::Acquire) & ACTIVE != 0;
        let mut placement = self.placement.as_mut();
        if let Some(placement) = &mut placement {
            placement.begin_wait();
        }
        for _ in 0..LOOKS_BEFORE_SLEEP {
            if placement
                .as_mut()
                .is_some_and(|placement| placement.look(&shared.seats))
            {
                break;
            }
            if !spin_while(BETWEEN_LOOKS, is_active) {
                return shared.metrics.count_wait(begun.elapsed());
            }
        }
        *shared.sleeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        // Told before anybody is moved: a worker that comes here must know that it has to wake this thread.
        if shared.state.fetch_or(ASLEEP, Ordering::AcqRel) & ACTIVE != 0 {
            if let Some(placement) = placement {
                placement.rescue(&shared.seats, &shared.metrics);
            }
            while is_active() {
                std::thread::park();
            }
        }
        shared.metrics.count_wait(begun.elapsed());
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

    /// Pools of `n_threads` for every way of pinning.
    fn pools(n_threads: usize) -> impl Iterator<Item = ThreadPool> {
        let new = move |pinning| ThreadPool::new(n_threads, pinning).expect("threads can be started");
        [Pinning::Auto, Pinning::Free, Pinning::Cores]
            .into_iter()
            .map(new)
    }

    fn pool(n_threads: usize) -> ThreadPool {
        pools(n_threads).next().expect("there is a first")
    }

    /// Sleeps a little at a time until `is_so`.
    fn sleep_until(is_so: impl Fn() -> bool) {
        for _ in 0..20_000 {
            if is_so() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        panic!("it never was so");
    }

    /// Runs a job of an item for each of two threads: `caller` and `worker` are called with their items
    /// begun.
    fn run_two(pool: &mut ThreadPool, caller: impl Fn() + Sync, worker: impl Fn() + Sync) {
        let arrived = AtomicUsize::new(0);
        pool.run(2, 1, |thread_idx, _| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            match thread_idx {
                0 => caller(),
                _ => worker(),
            }
        });
    }

    #[test]
    fn every_item_is_claimed_exactly_once() {
        for mut pool in (1..=5).flat_map(pools) {
            let n_threads = pool.n_threads();
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
        for mut pool in [2, 3].into_iter().flat_map(pools) {
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
        for mut pool in (1..=4).flat_map(pools) {
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
    fn a_caller_sleeps_while_a_worker_takes_long_and_is_woken() {
        for mut pool in pools(2) {
            for _ in 0..3 {
                let shared = Arc::clone(&pool.shared);
                let is_asleep = move || shared.state.load(Ordering::Relaxed) & ASLEEP != 0;
                run_two(&mut pool, || (), || sleep_until(&is_asleep));
                let n = AtomicUsize::new(0);
                pool.run(50, 1, |_, items| {
                    n.fetch_add(items.len(), Ordering::Relaxed);
                });
                assert_eq!(n.into_inner(), 50);
            }
            assert!(pool.metrics().waited() > Duration::ZERO);
        }
    }

    /// What sleeps a little at a time until a thread is moved, from now on.
    #[cfg(target_os = "linux")]
    fn until_rescue(pool: &ThreadPool) -> impl Fn() + Sync + use<> {
        let metrics = pool.metrics();
        let before = metrics.n_rescues();
        move || sleep_until(|| metrics.n_rescues() > before)
    }

    #[cfg(target_os = "linux")]
    fn allowed(thread: OsThread) -> CpuSet {
        CpuSet::allowed(thread).expect("it lives")
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_worker_that_does_not_run_is_brought_to_the_caller_and_sent_away_again() {
        let mut pool = pool(2);
        let worker = pool.shared.seats[0].thread.get().copied().flatten();
        let worker = worker.expect("Linux knows threads");
        let own = allowed(OsThread::current().expect("Linux knows threads"));
        for _ in 0..3 {
            let rescued = until_rescue(&pool);
            run_two(&mut pool, || (), rescued);
            assert_eq!(allowed(worker).len(), 1);
            // A job during which it is moved again, as may happen on a busy machine, shows nothing.
            let off = loop {
                run_two(&mut pool, || (), || ());
                if let Some(off) = pool.placement.as_ref().and_then(Placement::kept_off) {
                    break off;
                }
            };
            let others = own.without(off);
            assert_eq!(allowed(worker), if others.is_empty() { own } else { others });
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_caller_that_does_not_run_is_brought_to_a_worker_and_stays_free() {
        let mut pool = pool(2);
        let this = OsThread::current().expect("Linux knows threads");
        let before = allowed(this);
        for _ in 0..3 {
            let rescued = until_rescue(&pool);
            run_two(&mut pool, rescued, || ());
            assert_eq!(allowed(this), before);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_panic_of_a_worker_that_was_moved_reaches_the_caller() {
        let mut pool = pool(2);
        let rescued = until_rescue(&pool);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let worker = || {
                rescued();
                panic!("moved and bad");
            };
            run_two(&mut pool, || (), worker);
        }));
        let payload = result.expect_err("the panic must surface");
        assert_eq!(payload.downcast_ref(), Some(&"moved and bad"));
        run_two(&mut pool, || (), || ());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn more_threads_than_cpus_share_that_of_the_caller() {
        let own = allowed(OsThread::current().expect("Linux knows threads"));
        let mut pool = pool(own.len() + 1);
        pool.run(1000, 1, |_, _| ());
        for seat in &pool.shared.seats {
            let worker = seat.thread.get().copied().flatten().expect("Linux knows threads");
            // One that had to be moved meanwhile has a CPU of its own until the next job.
            assert!(allowed(worker) == own || allowed(worker).len() == 1);
        }
    }

    #[test]
    fn jobs_whose_items_sleep_now_and_then_lose_nothing() {
        for mut pool in (2..=4).flat_map(pools) {
            let mut values = vec![0u32; 40];
            for round in 0..300 {
                let shared = SharedSlice::new(&mut values);
                pool.run(40, 2, |thread_idx, items| {
                    // Some items of every thread, the caller's too, take a multiple of all patience.
                    if (items.start * 7 + round * 13 + thread_idx).is_multiple_of(97) {
                        std::thread::park_timeout(Duration::from_micros(300));
                    }
                    // SAFETY: items are claimed once, so ranges do not overlap.
                    for value in unsafe { shared.range(items) } {
                        *value += 1;
                    }
                });
            }
            assert!(values.iter().all(|&value| value == 300), "{values:?}");
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
