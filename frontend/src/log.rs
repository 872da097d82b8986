//! Non-blocking log writer: lines, panics and progress go to standard error, and nobody waits for it.
//!
//! ```text
//! line ─► queue, at most MAX_QUEUED_BYTES ─► thread "log" ─► standard error
//!           └─ full: dropped and counted        └─ refused: dropped and counted
//! ```
//!
//! Standard error is a full disk, or a pipe that nobody reads, sooner or later. Invariants: whoever logs
//! waits for nothing but the queue's lock, which is never held while something is written; a line is written
//! whole, or counted as dropped; nothing here panics, whatever becomes of standard error.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer};

use crate::progress::pause;
use crate::workers::{NoThread, spawn_thread};

/// Bytes of lines that wait to be written; more are dropped.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// Bytes that a line counts for beyond its own: empty lines fill the queue as well.
const LINE_OVERHEAD: usize = 64;
/// Between tries where standard error is a pipe that answers "not now" instead of waiting.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Tries of a panic to get hold of the queue, whose lock the very thread that panics may have.
const MAX_PANIC_TRIES: usize = 100;

/// The HTTP client whose log shows what it sends: headers with keys of the hub and of a trace collector.
const CLIENT_TARGET: &str = "ureq";

/// What became of log lines.
#[derive(Debug, Default)]
pub struct LogMetrics {
    dropped: AtomicU64,
}

impl LogMetrics {
    /// Lines that were not written: nobody read them in time, or standard error refused them.
    pub fn n_dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn drop_line(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where lines go. Cheap to clone. The thread that writes them ends with the process.
#[derive(Clone)]
pub struct LogWriter(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// There is a line to write.
    filled: Condvar,
    /// There is none, and none is being written.
    emptied: Condvar,
    metrics: Arc<LogMetrics>,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    /// Of all lines, with [`LINE_OVERHEAD`] for each.
    n_bytes: usize,
    /// One more was taken out and is being written.
    is_writing: bool,
}

impl LogWriter {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn to_stderr() -> Result<LogWriter, NoThread> {
        LogWriter::start(io::stderr())
    }

    /// Starts a thread that writes to `out`.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn start(out: impl Write + Send + 'static) -> Result<LogWriter, NoThread> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            metrics: Arc::default(),
        });
        let writer = LogWriter(Arc::clone(&shared));
        spawn_thread("log", move || shared.write_lines(out))?;
        Ok(writer)
    }

    /// What became of the lines.
    pub fn metrics(&self) -> Arc<LogMetrics> {
        Arc::clone(&self.0.metrics)
    }

    /// Queues `text`, whole lines or part of one, or drops it where there is no room.
    pub fn push(&self, text: impl Into<Vec<u8>>) {
        self.0.push(self.0.queue(), text.into());
    }

    /// Waits until everything is written, but not longer than `limit`; returns whether it is.
    pub fn flush(&self, limit: Duration) -> bool {
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        let waited = self.0.emptied.wait_timeout_while(self.0.queue(), limit, is_busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// From now on a panic is told here, by a hook that neither waits nor panics.
    pub fn take_panics(&self) {
        let shared = Arc::clone(&self.0);
        std::panic::set_hook(Box::new(move |panic| shared.push_panic(told(panic))));
    }

    /// From now on events that `filter` lets through are told here.
    ///
    /// # Errors
    /// Where events are told somewhere already.
    pub fn take_events(&self, filter: EnvFilter, style: LogStyle) -> Result<(), TryInitError> {
        let lines = tracing_subscriber::fmt::layer()
            .with_ansi(style == LogStyle::Colored)
            // Said with a macro that panics where standard error cannot be written.
            .log_internal_errors(false)
            .with_writer(self.clone())
            .with_filter(filter_fn(|metadata| {
                let is_client = metadata.target().starts_with(CLIENT_TARGET);
                !is_client || *metadata.level() <= tracing::Level::INFO
            }));
        tracing_subscriber::registry().with(filter).with(lines).try_init()
    }
}

/// How events look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStyle {
    /// As a terminal shows it.
    Colored,
    /// As a file holds it.
    Plain,
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter")
            .field("n_dropped", &self.0.metrics.n_dropped())
            .finish_non_exhaustive()
    }
}

/// Takes each event whole, in one call.
impl Write for &LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = &'a LogWriter;

    fn make_writer(&'a self) -> &'a LogWriter {
        self
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, line: Vec<u8>) {
        let n_bytes = line.len() + LINE_OVERHEAD;
        if queue.n_bytes + n_bytes > MAX_QUEUED_BYTES {
            drop(queue);
            self.metrics.drop_line();
            return;
        }
        queue.n_bytes += n_bytes;
        queue.lines.push_back(line);
        drop(queue);
        self.filled.notify_one();
    }

    fn push_panic(&self, line: String) {
        for _ in 0..MAX_PANIC_TRIES {
            match self.queue.try_lock() {
                Ok(queue) => return self.push(queue, line.into_bytes()),
                Err(TryLockError::Poisoned(queue)) => {
                    return self.push(queue.into_inner(), line.into_bytes());
                }
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        self.metrics.drop_line();
    }

    /// Writes lines as they come, for as long as the process lives.
    fn write_lines(&self, mut out: impl Write) {
        let mut n_told = 0;
        loop {
            let line = self.next();
            let n_dropped = self.metrics.n_dropped();
            let told = match n_dropped - n_told {
                0 => Ok(()),
                // What was refused may have left a piece of a line.
                n => write_patiently(
                    &mut out,
                    format!("\n{n} lines of this log were dropped\n").as_bytes(),
                ),
            };
            let written = told.and_then(|()| {
                n_told = n_dropped;
                write_patiently(&mut out, &line)
            });
            if written.is_err() {
                self.metrics.drop_line();
            }
        }
    }

    /// Says that the line before is written, and waits for the next one.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.queue();
        queue.is_writing = false;
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.n_bytes -= line.len() + LINE_OVERHEAD;
                queue.is_writing = true;
                return line;
            }
            self.emptied.notify_all();
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes all of `bytes`, waiting where `out` says that it takes nothing now.
fn write_patiently(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => pause(RETRY_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the log says of a panic; with `RUST_BACKTRACE` set, also how it came to it.
fn told(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map(|place| format!(" at {place}"));
    let place = place.unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => format!("thread '{name}' panicked{place}: {message}\n{backtrace}\n"),
        _ => format!("thread '{name}' panicked{place}: {message}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Hands every write to the test and does what the test answers.
    struct Scripted {
        writes: mpsc::SyncSender<String>,
        answers: mpsc::Receiver<io::Result<usize>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.writes.send(text).expect("the test looks");
            self.answers.recv().expect("the test answers")
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn scripted() -> (
        LogWriter,
        mpsc::Receiver<String>,
        mpsc::SyncSender<io::Result<usize>>,
    ) {
        let (writes, seen) = mpsc::sync_channel(0);
        let (answer, answers) = mpsc::sync_channel(0);
        let log = LogWriter::start(Scripted { writes, answers }).expect("a thread");
        (log, seen, answer)
    }

    #[test]
    fn lines_are_written_in_order() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let log = LogWriter::start(writer).expect("a thread");
        log.push("one\n");
        log.push("two\n");
        assert!(log.flush(LIMIT));
        let mut lines = BufReader::new(reader).lines();
        for expected in ["one", "two"] {
            assert_eq!(lines.next().expect("a line").expect("text"), expected);
        }
        assert_eq!(log.metrics().n_dropped(), 0);
    }

    #[test]
    fn what_nobody_reads_is_dropped_and_counted_and_said_once_somebody_does() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let log = LogWriter::start(writer).expect("a thread");
        let line = vec![b'x'; 9_999];
        let n_lines = 3 * MAX_QUEUED_BYTES / line.len();
        for _ in 0..n_lines {
            log.push([line.as_slice(), b"\n"].concat());
        }
        assert!(!log.flush(Duration::ZERO), "the pipe is full");
        let n_dropped = log.metrics().n_dropped();
        assert!(n_dropped as usize >= n_lines / 2, "{n_dropped} of {n_lines}");
        assert!((n_dropped as usize) < n_lines);
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            let mut byte = [0];
            while !text.ends_with("\nlast\n") {
                reader.read_exact(&mut byte).expect("more");
                text.push(byte[0].into());
            }
            text
        });
        assert!(log.flush(LIMIT));
        log.push("last\n");
        let text = read.join().expect("no panic");
        assert!(text.contains(&format!("{n_dropped} lines")), "all of them");
        let n_written = text.lines().filter(|line| line.starts_with('x')).count();
        assert_eq!(
            n_written + n_dropped as usize,
            n_lines,
            "each is written or counted"
        );
    }

    #[test]
    fn a_refused_line_is_counted_and_the_next_one_is_tried() {
        let (log, seen, answer) = scripted();
        let next = |text: &str, result| {
            assert_eq!(seen.recv_timeout(LIMIT).as_deref(), Ok(text));
            answer.send(result).expect("it waits");
        };
        log.push("one\n");
        log.push("two\n");
        next("one\n", Err(ErrorKind::StorageFull.into()));
        next(
            "\n1 lines of this log were dropped\n",
            Err(ErrorKind::BrokenPipe.into()),
        );
        log.push("three\n");
        next("\n2 lines of this log were dropped\n", Ok(34));
        next("three\n", Err(ErrorKind::WouldBlock.into()));
        next("three\n", Ok(2));
        next("ree\n", Err(ErrorKind::Interrupted.into()));
        next("ree\n", Ok(4));
        assert!(log.flush(LIMIT));
        assert_eq!(log.metrics().n_dropped(), 2);
    }

    #[test]
    fn a_panic_does_not_wait_for_the_queue() {
        let (log, seen, answer) = scripted();
        let held = log.0.queue();
        log.0.push_panic("lost\n".to_owned());
        drop(held);
        assert_eq!(log.metrics().n_dropped(), 1);
        log.0.push_panic("told\n".to_owned());
        seen.recv_timeout(LIMIT).expect("what was dropped");
        answer.send(Ok(34)).expect("it waits");
        assert_eq!(seen.recv_timeout(LIMIT).as_deref(), Ok("told\n"));
        answer.send(Ok(5)).expect("it waits");
        assert!(log.flush(LIMIT));
    }
}
