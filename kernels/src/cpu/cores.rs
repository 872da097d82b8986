//! Weighted fair queueing of the engines that share the cores of a machine: one of them computes at a time.
//!
//! ```text
//! engine A   |step|step|         |step|          waits while another computes, from step to step
//! engine B             |step|step|    |step|     has less behind it, by its weight, so it is next
//! ```
//!
//! The pool of threads is with the engine that computes. What an engine has behind it is the time it held the
//! pool while others waited, divided by its weight. One that comes back after a rest starts where the others
//! are: a rest earns nothing. An engine that nobody waits beside keeps the pool, and no lock is taken.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::threads::{Pinning, PoolMetrics, ThreadPool};

/// The cores of a machine, for any number of backends.
#[derive(Clone)]
pub struct Cores {
    shared: Arc<Shared>,
    n_threads: usize,
    metrics: Arc<PoolMetrics>,
}

struct Shared {
    state: Mutex<State>,
    /// Those that wait in [`State::waiting`].
    n_waiting: AtomicUsize,
    given: Condvar,
}

#[derive(Default)]
struct State {
    /// Here while nobody computes.
    pool: Option<ThreadPool>,
    waiting: Vec<Waiting>,
    n_tickets: u64,
    /// Where a claim that comes back after a rest starts.
    clock: Duration,
}

struct Waiting {
    ticket: u64,
    behind: Duration,
}

impl State {
    /// Who is next: who has least behind it, and of those who came first.
    fn next(&self) -> Option<&Waiting> {
        self.waiting
            .iter()
            .min_by_key(|waiting| (waiting.behind, waiting.ticket))
    }
}

impl Cores {
    /// Starts `n_threads - 1` threads; the one of the engine that computes is the last.
    ///
    /// # Errors
    /// Where the system gives no thread.
    ///
    /// # Panics
    /// When `n_threads` is 0 or above 4096.
    pub fn new(n_threads: usize, pinning: Pinning) -> io::Result<Cores> {
        let pool = ThreadPool::new(n_threads, pinning)?;
        Ok(Cores {
            n_threads,
            metrics: pool.metrics(),
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    pool: Some(pool),
                    ..State::default()
                }),
                n_waiting: AtomicUsize::new(0),
                given: Condvar::new(),
            }),
        })
    }

    /// Threads that compute.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// What became of the threads.
    pub fn metrics(&self) -> Arc<PoolMetrics> {
        Arc::clone(&self.metrics)
    }

    /// A claim to the part `weight / (sum of the weights of all that want to compute)` of their time.
    ///
    /// # Panics
    /// When the weight is 0.
    pub(crate) fn claim(&self, weight: u32) -> Claim {
        assert!(weight > 0, "a weight of 0");
        Claim {
            cores: self.clone(),
            weight,
            behind: Duration::ZERO,
            held: None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cores")
            .field("n_threads", &self.n_threads)
            .finish_non_exhaustive()
    }
}

/// The pool, with the time from which it is charged.
struct Held {
    pool: ThreadPool,
    since: Instant,
}

/// What one backend has of the cores.
pub(crate) struct Claim {
    cores: Cores,
    weight: u32,
    /// Time it computed, divided by its weight.
    behind: Duration,
    held: Option<Held>,
}

impl Claim {
    /// Threads that compute.
    pub(crate) fn n_threads(&self) -> usize {
        self.cores.n_threads
    }

    /// What became of the threads.
    pub(crate) fn metrics(&self) -> Arc<PoolMetrics> {
        self.cores.metrics()
    }

    /// Waits until the pool is here, and keeps it until the next call or [`rest`](Self::rest). Between two
    /// calls of one that has it, somebody who waits and has less behind it goes first.
    pub(crate) fn begin_step(&mut self) {
        match &mut self.held {
            None => self.acquire(),
            Some(held) if self.cores.shared.n_waiting.load(Ordering::Acquire) == 0 => {
                held.since = Instant::now();
            }
            Some(_) => {
                self.charge();
                let state = self.cores.state();
                let is_behind = state.next().is_some_and(|next| next.behind < self.behind);
                drop(state);
                if is_behind {
                    self.acquire();
                }
            }
        }
    }

    /// Gives the pool to who is next.
    pub(crate) fn rest(&mut self) {
        self.charge();
        let Some(held) = self.held.take() else {
            return;
        };
        self.cores.state().pool = Some(held.pool);
        self.cores.shared.given.notify_all();
    }

    /// The pool for one operation; a step that has begun keeps it.
    pub(crate) fn pool(&mut self) -> PoolGuard<'_> {
        let is_of_step = self.held.is_some();
        if !is_of_step {
            self.acquire();
        }
        PoolGuard {
            claim: self,
            is_of_step,
        }
    }

    /// Counts the time since the last look.
    fn charge(&mut self) {
        if let Some(held) = &mut self.held {
            let now = Instant::now();
            self.behind += now.saturating_duration_since(held.since) / self.weight;
            held.since = now;
        }
    }

    /// Waits for the pool; where it is here, it goes to who is next first, and nobody finds it unclaimed.
    fn acquire(&mut self) {
        let held = self.held.take();
        let mut state = self.cores.state();
        self.behind = self.behind.max(state.clock);
        let ticket = state.n_tickets;
        state.n_tickets += 1;
        state.waiting.push(Waiting {
            ticket,
            behind: self.behind,
        });
        self.cores.shared.n_waiting.fetch_add(1, Ordering::Release);
        if let Some(held) = held {
            state.pool = Some(held.pool);
            self.cores.shared.given.notify_all();
        }
        loop {
            let is_next = state.next().is_some_and(|next| next.ticket == ticket);
            if is_next && let Some(pool) = state.pool.take() {
                state.waiting.retain(|waiting| waiting.ticket != ticket);
                self.cores.shared.n_waiting.fetch_sub(1, Ordering::Release);
                state.clock = self.behind;
                self.held = Some(Held {
                    pool,
                    since: Instant::now(),
                });
                return;
            }
            state = self
                .cores
                .shared
                .given
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.rest();
    }
}

/// The pool while an operation runs.
pub(crate) struct PoolGuard<'a> {
    claim: &'a mut Claim,
    is_of_step: bool,
}

impl Deref for PoolGuard<'_> {
    type Target = ThreadPool;

    fn deref(&self) -> &ThreadPool {
        &self
            .claim
            .held
            .as_ref()
            .expect("an operation holds the pool")
            .pool
    }
}

impl DerefMut for PoolGuard<'_> {
    fn deref_mut(&mut self) -> &mut ThreadPool {
        &mut self
            .claim
            .held
            .as_mut()
            .expect("an operation holds the pool")
            .pool
    }
}

impl Drop for PoolGuard<'_> {
    fn drop(&mut self) {
        if !self.is_of_step {
            self.claim.rest();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;

    fn cores(n_threads: usize) -> Cores {
        Cores::new(n_threads, Pinning::Free).expect("threads can be started")
    }

    /// What each of some claims computed, in milliseconds, when all want to compute until the first has taken
    /// `n_steps` steps: `(weight, milliseconds of a step)` each. The time is made up.
    fn computed(claims: &[(u32, u64)], n_steps: usize) -> Vec<u64> {
        let cores = cores(1);
        let mut before = cores.claim(1);
        before.begin_step();
        let is_over = AtomicBool::new(false);
        let times: Vec<AtomicU64> = claims.iter().map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for (claim_idx, &(weight, step_ms)) in claims.iter().enumerate() {
                let (mut claim, is_over, time) = (cores.claim(weight), &is_over, &times[claim_idx]);
                scope.spawn(move || {
                    let mut n_taken = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        claim.begin_step();
                        let held = claim.held.as_mut().expect("a step holds the pool");
                        held.since = Instant::now() + Duration::from_secs(3600);
                        claim.behind += Duration::from_millis(step_ms) / weight;
                        time.fetch_add(step_ms, Ordering::Relaxed);
                        n_taken += 1;
                        if claim_idx == 0 && n_taken == n_steps {
                            is_over.store(true, Ordering::Relaxed);
                        }
                    }
                    claim.rest();
                });
            }
            while cores.shared.n_waiting.load(Ordering::Acquire) < claims.len() {
                std::thread::yield_now();
            }
            before.rest();
        });
        times.iter().map(|time| time.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn those_with_long_steps_and_with_short_ones_get_the_same_time() {
        let times = computed(&[(1, 1), (1, 20)], 2000);
        assert!(times[0].abs_diff(times[1]) <= 20, "{times:?}");
    }

    #[test]
    fn the_time_is_shared_by_weight() {
        let times = computed(&[(1, 5), (3, 5)], 300);
        assert!((3 * times[0]).abs_diff(times[1]) <= 20, "{times:?}");
    }

    #[test]
    fn a_rest_earns_nothing() {
        let cores = cores(1);
        let (mut busy, mut idle) = (cores.claim(1), cores.claim(1));
        busy.begin_step();
        busy.behind += Duration::from_secs(1000);
        busy.rest();
        idle.begin_step();
        idle.rest();
        busy.begin_step();
        busy.rest();
        idle.begin_step();
        assert!(idle.behind >= Duration::from_secs(1000), "{:?}", idle.behind);
    }

    #[test]
    fn operations_outside_of_steps_leave_the_pool_to_others() {
        let cores = cores(2);
        let (mut first, mut second) = (cores.claim(1), cores.claim(1));
        let n_items = AtomicUsize::new(0);
        let work = |_: usize, items: std::ops::Range<usize>| {
            n_items.fetch_add(items.len(), Ordering::Relaxed);
        };
        first.pool().run(10, 1, work);
        second.pool().run(10, 1, work);
        first.begin_step();
        first.pool().run(10, 1, work);
        assert!(
            first.held.is_some(),
            "a step keeps the pool between its operations"
        );
        drop(first);
        second.begin_step();
        assert_eq!(n_items.into_inner(), 30);
    }

    #[test]
    fn a_panic_in_an_operation_leaves_the_pool_to_others() {
        let cores = cores(2);
        let (mut first, mut second) = (cores.claim(1), cores.claim(1));
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            first.pool().run(10, 1, |_, _| panic!("on purpose"));
        }));
        assert!(failed.is_err());
        let n_items = AtomicUsize::new(0);
        second.pool().run(10, 1, |_, items| {
            n_items.fetch_add(items.len(), Ordering::Relaxed);
        });
        assert_eq!(n_items.into_inner(), 10);
    }
}
