//! Sends the requests when they arrive, each from a thread of its own, and keeps what became of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Answer, Client};
use super::workload::Ask;
use crate::http::BenchError;

/// Thousands of threads share one address space; none of them recurses.
const STACK_BYTES: usize = 256 * 1024;

/// What became of one request.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Since the run began.
    pub(super) sent: Duration,
    pub(super) answer: Result<Answer, BenchError>,
}

/// What became of all of them, in the order of their arrival.
#[derive(Debug)]
pub(super) struct Run {
    /// To the end of the last answer.
    pub(super) duration: Duration,
    pub(super) outcomes: Vec<Outcome>,
}

/// Request `i` is sent at `arrivals[i]`, or later when all `n_workers` are busy then: arrivals do not wait
/// for answers, and who waits keeps its place.
pub(super) fn run(
    client: &Client<'_>,
    asks: &[Ask],
    arrivals: &[Duration],
    n_workers: usize,
) -> Result<Run, BenchError> {
    assert_eq!(asks.len(), arrivals.len(), "one arrival for each request");
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Outcome)>> = Mutex::new(Vec::with_capacity(asks.len()));
    let start = Instant::now();
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(ask) = asks.get(i) else { return };
            wait_until(start + arrivals[i]);
            let sent = start.elapsed();
            let answer = client.complete(ask);
            let outcome = Outcome { sent, answer };
            done.lock().expect("no worker panics").push((i, outcome));
        }
    };
    let spawned: Result<Vec<_>, std::io::Error> = thread::scope(|scope| {
        let worker = || {
            thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, work)
        };
        let workers: Result<Vec<_>, _> = (0..n_workers).map(|_| worker()).collect();
        if workers.is_err() {
            // Nothing more is begun for a run that will not count.
            next.store(asks.len(), Ordering::Relaxed);
        }
        workers.map(|workers| workers.into_iter().map(|worker| worker.join()).collect())
    });
    let duration = start.elapsed();
    for joined in spawned? {
        joined.expect("a worker does not panic");
    }
    let mut done = done.into_inner().expect("no worker panics");
    done.sort_by_key(|(i, _)| *i);
    let outcomes = done.into_iter().map(|(_, outcome)| outcome).collect();
    Ok(Run { duration, outcomes })
}

fn wait_until(time: Instant) {
    let left = time.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        #[expect(
            clippy::disallowed_methods,
            reason = "an arrival is nothing but a point of time"
        )]
        thread::sleep(left);
    }
}
