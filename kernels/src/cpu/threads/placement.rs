//! CPU affinity of a pool's threads: workers stay off the caller's CPU, and a thread whose CPU was taken by
//! another process while others wait for it is moved to the CPU of one that waits.
//!
//! ```text
//! core 0   caller   works | done, waits  . . . . sleeps         | goes on
//! core 1   worker   works | other process runs                  | other process runs
//!                          `- holds an item of the job
//! with a rescue             50 us: its CPU time stands still
//!                           worker is moved to core 0 |ends item|
//! ```
//!
//! A scheduler gives a core to another process for milliseconds, a job takes microseconds, and everybody
//! waits for the item that the thread had begun. The one that waits gives its own core to it instead.
//!
//! Invariants: threads are moved only by the caller of a job or by a worker that has joined it, so all of
//! them are alive. Where they run changes no result. What the system refuses is left as it is.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::host::scheduling::{CpuSet, OsThread, current_cpu};

/// What became of the threads of a pool.
#[derive(Debug, Default)]
pub struct PoolMetrics {
    rescues: AtomicU64,
    waited_us: AtomicU64,
}

impl PoolMetrics {
    /// Threads that were moved to another CPU because theirs was taken while others waited for them.
    pub fn n_rescues(&self) -> u64 {
        self.rescues.load(Ordering::Relaxed)
    }

    /// Time that callers of jobs had nothing to do but wait for a worker, waits of a few µs not counted.
    pub fn waited(&self) -> Duration {
        Duration::from_micros(self.waited_us.load(Ordering::Relaxed))
    }

    pub(super) fn count_rescue(&self) {
        self.rescues.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_wait(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.waited_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// What others know of a worker.
#[derive(Default)]
pub(super) struct Seat {
    /// Whether it works on a job. Only a hint: it is told apart from the job.
    pub(super) is_busy: AtomicBool,
    /// Who it is, told before the first job; `None` where the system has no such handles.
    pub(super) thread: OnceLock<Option<OsThread>>,
}

impl Seat {
    fn thread(&self) -> Option<OsThread> {
        self.thread.get().copied().flatten()
    }
}

/// The seats of a pool, by worker.
pub(super) type Seats = [CachePadded<Seat>];

/// Moves `thread` to the CPU of the calling thread. Returns whether it could.
fn bring_here(thread: OsThread) -> bool {
    let here = current_cpu().and_then(CpuSet::one);
    here.is_some_and(|here| thread.allow(&here))
}

/// Moves `thread` to the CPU of the calling thread, which is about to sleep, and lets it run where it could
/// before. Returns whether it could be moved.
pub(super) fn swap_places(thread: OsThread) -> bool {
    let Some(before) = CpuSet::allowed(thread) else {
        return false;
    };
    // The system moves a thread only when it may not stay, so the second call leaves it here.
    bring_here(thread) && thread.allow(&before)
}

/// What the caller knows of a worker's place.
#[derive(Clone, Copy, Default)]
struct Place {
    /// CPU that it was told to stay off.
    off: Option<usize>,
    /// Its CPU time when it was last looked at.
    seen: Option<Duration>,
    /// Its CPU time stood still between two looks.
    is_stuck: bool,
}

/// Where the workers of a pool may run, as the caller of its jobs decides.
pub(super) struct Placement {
    /// CPU that all workers were told to stay off; `None` when they have to be told.
    off: Option<usize>,
    places: Vec<Place>,
}

impl Placement {
    pub(super) fn new(n_workers: usize) -> Placement {
        Placement {
            off: None,
            places: vec![Place::default(); n_workers],
        }
    }

    /// CPU that the workers stay off.
    #[cfg(test)]
    pub(super) fn kept_off(&self) -> Option<usize> {
        self.off
    }

    /// Keeps the workers off the CPU that `caller`, the calling thread, runs on: one that wakes up is put
    /// there otherwise, waits until the caller sleeps, and so never works beside it.
    #[inline]
    pub(super) fn follow(&mut self, caller: OsThread, seats: &Seats) {
        let cpu = current_cpu();
        if cpu != self.off {
            self.keep_off(cpu, caller, seats);
        }
    }

    #[cold]
    fn keep_off(&mut self, cpu: Option<usize>, caller: OsThread, seats: &Seats) {
        self.off = cpu;
        let (Some(cpu), Some(allowed)) = (cpu, CpuSet::allowed(caller)) else {
            return;
        };
        let others = allowed.without(cpu);
        // With more threads than CPUs some have to share the caller's.
        let allowed = if others.len() < self.places.len() {
            allowed
        } else {
            others
        };
        for (place, seat) in self.places.iter_mut().zip(seats) {
            if place.off != Some(cpu) {
                if let Some(thread) = seat.thread() {
                    // Where the system refuses, it goes on deciding alone.
                    thread.allow(&allowed);
                }
                place.off = Some(cpu);
            }
        }
    }

    /// Forgets what was seen, before a wait.
    pub(super) fn begin_wait(&mut self) {
        for place in &mut self.places {
            (place.seen, place.is_stuck) = (None, false);
        }
    }

    /// Looks at the CPU time of the workers that others wait for. Returns whether one stood still since the
    /// last look: it waits for a CPU, or sleeps.
    pub(super) fn look(&mut self, seats: &Seats) -> bool {
        let mut any = false;
        for (place, seat) in self.places.iter_mut().zip(seats) {
            if !seat.is_busy.load(Ordering::Relaxed) {
                continue;
            }
            let time = seat.thread().and_then(OsThread::cpu_time);
            place.is_stuck = time.is_some() && time == place.seen;
            place.seen = time;
            any |= place.is_stuck;
        }
        any
    }

    /// Moves the workers that stood still to the CPU of the caller, which is about to sleep.
    pub(super) fn rescue(&mut self, seats: &Seats, metrics: &PoolMetrics) {
        for (place, seat) in self.places.iter_mut().zip(seats) {
            if place.is_stuck && seat.thread().is_some_and(bring_here) {
                metrics.count_rescue();
                // They are sent away again before the next job.
                (place.off, self.off) = (None, None);
            }
        }
    }
}
