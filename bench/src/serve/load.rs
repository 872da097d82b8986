//! Sends the requests when they arrive, each from a thread of its own, and keeps what became of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{Answer, Client, Said};
use super::workload::Ask;
use crate::http::BenchError;

/// Thousands of threads share one address space; none of them recurses.
const STACK_BYTES: usize = 256 * 1024;

/// What became of one request.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Its place in its chat, from 0.
    pub(super) turn: usize,
    /// Since the run began.
    pub(super) sent: Duration,
    pub(super) answer: Result<Answer, BenchError>,
}

/// What became of all of them: chats in the order of their arrival, the turns of each in theirs.
#[derive(Debug)]
pub(super) struct Run {
    /// To the end of the last answer.
    pub(super) duration: Duration,
    pub(super) outcomes: Vec<Outcome>,
}

/// Chat `i` begins at `arrivals[i]`, or later when all `n_workers` are busy then: arrivals do not wait for
/// answers, and who waits keeps its place. A turn is sent as soon as the answer before it has ended.
pub(super) fn run(
    client: &Client<'_>,
    chats: &[Vec<Ask>],
    arrivals: &[Duration],
    n_workers: usize,
) -> Result<Run, BenchError> {
    assert_eq!(chats.len(), arrivals.len(), "one arrival for each chat");
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Outcome)>> = Mutex::new(Vec::with_capacity(chats.len()));
    let start = Instant::now();
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(turns) = chats.get(i) else { return };
            wait_until(start + arrivals[i]);
            hold(client, turns, start, |outcome| {
                done.lock().expect("no worker panics").push((i, outcome));
            });
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
            next.store(chats.len(), Ordering::Relaxed);
        }
        workers.map(|workers| workers.into_iter().map(|worker| worker.join()).collect())
    });
    let duration = start.elapsed();
    for joined in spawned? {
        joined.expect("a worker does not panic");
    }
    let mut done = done.into_inner().expect("no worker panics");
    done.sort_by_key(|(i, outcome)| (*i, outcome.turn));
    let outcomes = done.into_iter().map(|(_, outcome)| outcome).collect();
    Ok(Run { duration, outcomes })
}

/// Sends the turns of a chat one after the other. None follows one that failed: what it would have answered
/// to is not known.
fn hold(client: &Client<'_>, turns: &[Ask], start: Instant, mut tell: impl FnMut(Outcome)) {
    let mut said: Vec<Said<'_>> = Vec::with_capacity(turns.len());
    for (turn, ask) in turns.iter().enumerate() {
        let sent = start.elapsed();
        let has_failed = said.len() < turn;
        let answer = match has_failed {
            true => Err(BenchError::Check("not sent: a turn before it failed".to_owned())),
            false => client.complete(&said, ask),
        };
        if let Ok(answer) = &answer {
            let answer = answer.text();
            said.push(Said {
                prompt: &ask.prompt,
                answer,
            });
        }
        tell(Outcome { turn, sent, answer });
    }
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
