//! Thread pool, all threads started at the beginning, for work that would hold up the threads of the
//! connections: encoding, compiling grammars, decoding bodies.
//!
//! ```text
//! run ─► queue, at most `max_queued` jobs ─► one of `n_threads` threads ─► result
//!   └─ full: Busy        └─ nobody waits any more: dropped      └─ panic: Failed, the thread goes on
//! ```
//!
//! The threads have a lower priority than the model's and those of the connections: where cores are short, a
//! prompt that is encoded takes longer, and the answers that are being written keep their pace.
//!
//! Invariants: no thread is started after [`Workers::start`]; a job runs at most once, in the order of
//! arrival; a job that has begun goes on to its end, whoever leaves.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arbora_kernels::host::scheduling::lower_priority;
use tokio::sync::oneshot;

/// Steps of niceness: beside a thread of the model on the same core, a job gets a quarter of the time.
const NICENESS: u8 = 5;

/// Why a thread cannot be had: which, and what the operator can do about it.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot start thread '{name}': {source}; allow more threads (ulimit -u, the container's limit on pids, \
     TasksMax= of a systemd unit) or ask for fewer (--threads)"
)]
pub struct NoThread {
    /// Name of the thread that was refused.
    pub name: String,
    /// What the system said.
    pub source: std::io::Error,
}

/// Starts a thread, or says which one could not be had.
///
/// # Errors
/// Where the system has no thread left.
pub fn spawn_thread(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> Result<(), NoThread> {
    let name = name.into();
    match std::thread::Builder::new().name(name.clone()).spawn(run) {
        Ok(_) => Ok(()),
        Err(source) => Err(NoThread { name, source }),
    }
}

/// Why a job has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// The queue is full.
    #[error("{max_queued} jobs are waiting for a thread already")]
    Busy {
        /// Most jobs that may wait.
        max_queued: usize,
    },
    /// The job panicked.
    #[error("the job panicked")]
    Failed,
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads and the queue before them. Cheap to clone; the threads end when the last clone is gone and their
/// jobs are done, and nobody waits for that.
#[derive(Clone, Debug)]
pub struct Workers(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    max_queued: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    /// The queue has a job, or is closed.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_closed: bool,
}

impl Workers {
    /// `n_threads` threads called `name-0`, `name-1` and so on, before which at most `max_queued` jobs wait.
    ///
    /// # Errors
    /// Where one of the threads cannot be had; those before it end.
    pub fn start(name: &str, n_threads: usize, max_queued: usize) -> Result<Workers, NoThread> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        // Made first: what ends the threads where not all of them start.
        let workers = Workers(Arc::new(Owner { shared, max_queued }));
        for idx in 0..n_threads {
            let shared = Arc::clone(&workers.0.shared);
            spawn_thread(format!("{name}-{idx}"), move || {
                // Where the system has no such thing, all threads are equal.
                lower_priority(NICENESS);
                shared.work();
            })?;
        }
        Ok(workers)
    }

    /// What `job` returns, run on one of the threads. A job that did not begin before the caller left never
    /// runs.
    ///
    /// # Errors
    /// When too many jobs wait, or this one panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        let (sender, receiver) = oneshot::channel();
        let job = move || {
            if sender.is_closed() {
                return;
            }
            // Nothing of the job is looked at after a panic: it owned all it had.
            match catch_unwind(AssertUnwindSafe(job)) {
                // A caller that left meanwhile wants no result.
                Ok(done) => drop(sender.send(done)),
                Err(panic) => tracing::error!(panic = message(&*panic), "a job of a worker thread panicked"),
            }
        };
        self.push(Box::new(job))?;
        // The sender is gone without a word only where the job panicked.
        receiver.await.map_err(|_| WorkError::Failed)
    }

    /// Jobs that wait for a thread.
    pub fn n_queued(&self) -> usize {
        self.0.shared.queue().jobs.len()
    }

    fn push(&self, job: Job) -> Result<(), WorkError> {
        let max_queued = self.0.max_queued;
        let mut queue = self.0.shared.queue();
        if queue.jobs.len() >= max_queued {
            return Err(WorkError::Busy { max_queued });
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.0.shared.changed.notify_one();
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    /// Waits for a job; none when the queue is closed and empty.
    fn next(&self) -> Option<Job> {
        let is_idle = |queue: &mut Queue| queue.jobs.is_empty() && !queue.is_closed;
        let mut queue = self
            .changed
            .wait_while(self.queue(), is_idle)
            .unwrap_or_else(PoisonError::into_inner);
        queue.jobs.pop_front()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("n_queued", &self.queue().jobs.len())
            .finish_non_exhaustive()
    }
}

/// What a panic said, where it said something.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    type Running = tokio::task::JoinHandle<Result<u32, WorkError>>;

    /// A job that has begun and goes on until the sender says how it ends.
    async fn busy(workers: &Workers) -> (Running, mpsc::SyncSender<u32>) {
        let (end, ended) = mpsc::sync_channel(1);
        let (begin, begun) = oneshot::channel();
        let workers = workers.clone();
        let job = move || {
            begin.send(()).expect("the test waits for it");
            ended.recv().expect("the test ends it")
        };
        let task = tokio::spawn(async move { workers.run(job).await });
        begun.await.expect("it begins");
        (task, end)
    }

    /// A job that waits for its turn.
    async fn waiting(workers: &Workers, job: impl FnOnce() -> u32 + Send + 'static) -> Running {
        let n_before = workers.n_queued();
        let own = workers.clone();
        let task = tokio::spawn(async move { own.run(job).await });
        while workers.n_queued() == n_before {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test]
    async fn a_job_runs_on_a_named_thread_and_its_result_comes_back() {
        let workers = Workers::start("work", 1, 1).expect("a thread");
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(workers.run(name).await, Ok(Some("work-0".to_owned())));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_what_waits_runs_in_turn() {
        let workers = Workers::start("work", 1, 1).expect("a thread");
        let (first, end) = busy(&workers).await;
        let second = waiting(&workers, || 2).await;
        assert_eq!(workers.run(|| 3).await, Err(WorkError::Busy { max_queued: 1 }));
        end.send(1).expect("it waits");
        assert_eq!(first.await.expect("no panic"), Ok(1));
        assert_eq!(second.await.expect("no panic"), Ok(2));
    }

    #[tokio::test]
    async fn a_job_nobody_waits_for_is_dropped_before_it_begins() {
        let workers = Workers::start("work", 1, 2).expect("a thread");
        let (first, end) = busy(&workers).await;
        let (ran, has_run) = mpsc::sync_channel(1);
        let left = waiting(&workers, move || {
            ran.send(()).expect("the test waits for it");
            2
        })
        .await;
        left.abort();
        assert!(left.await.expect_err("nobody waits").is_cancelled());
        end.send(1).expect("it waits");
        assert_eq!(first.await.expect("no panic"), Ok(1));
        assert_eq!(workers.run(|| 3).await, Ok(3));
        has_run.recv().expect_err("it was dropped and did not run");
    }

    #[tokio::test]
    async fn a_panic_is_its_jobs_error_and_the_thread_goes_on() {
        let workers = Workers::start("work", 1, 1).expect("a thread");
        for _ in 0..3 {
            let failed = workers.run(|| panic!("as the test wants")).await;
            assert_eq!(failed, Err(WorkError::Failed));
        }
        assert_eq!(workers.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn threads_end_with_the_last_handle_and_finish_what_waits() {
        let workers = Workers::start("work", 2, 8).expect("threads");
        let shared = Arc::downgrade(&workers.0.shared);
        let (first, end) = busy(&workers).await;
        let (other, end_other) = busy(&workers).await;
        let second = waiting(&workers, || 2).await;
        drop(workers);
        end_other.send(4).expect("it waits");
        end.send(1).expect("it waits");
        assert_eq!(first.await.expect("no panic"), Ok(1));
        assert_eq!(other.await.expect("no panic"), Ok(4));
        assert_eq!(second.await.expect("no panic"), Ok(2));
        while shared.strong_count() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_thread_that_cannot_be_had_is_named_with_what_to_raise() {
        let source = std::io::Error::from(std::io::ErrorKind::WouldBlock);
        let error = NoThread {
            name: "work-1".to_owned(),
            source,
        }
        .to_string();
        assert!(error.starts_with("cannot start thread 'work-1': "), "{error}");
        assert!(
            error.contains("ulimit -u") && error.contains("TasksMax="),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
}
