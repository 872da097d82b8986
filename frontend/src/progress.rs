//! Progress of downloads and loading.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::log::LogWriter;

#[expect(
    clippy::disallowed_methods,
    reason = "the standard library waits for a child or a file lock without a time limit or not at all, and a \
              hub that is overloaded wants to be left alone"
)]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// One line on standard error, redrawn on a terminal; elsewhere each new kind of news is said once. Nobody
/// waits for whoever reads it.
pub(crate) struct Progress {
    log: LogWriter,
    is_terminal: bool,
    started: Instant,
    said: String,
    transfer: Option<Arc<Transfer>>,
    /// Bytes of the file on its way that the transfer counts already.
    n_counted: u64,
}

/// Several files that come at a time, told of in one line.
pub(crate) struct Transfer {
    n_files: usize,
    n_bytes: u64,
    n_transferred: AtomicU64,
    is_said: AtomicBool,
}

impl Transfer {
    /// A transfer of files of `n_bytes` together.
    pub(crate) fn new(n_files: usize, n_bytes: u64) -> Transfer {
        Transfer {
            n_files,
            n_bytes,
            n_transferred: AtomicU64::new(0),
            is_said: AtomicBool::new(false),
        }
    }
}

impl Progress {
    pub(crate) fn new(log: &LogWriter) -> Self {
        Progress {
            log: log.clone(),
            is_terminal: io::stderr().is_terminal(),
            started: Instant::now(),
            said: String::new(),
            transfer: None,
            n_counted: 0,
        }
    }

    /// Progress of one file, which may be one of several that come at a time.
    pub(crate) fn of_transfer(log: &LogWriter, transfer: Option<Arc<Transfer>>) -> Self {
        Progress {
            transfer,
            ..Progress::new(log)
        }
    }

    /// `n_bytes` of a file are there, of so many where that is known.
    pub(crate) fn transferred(&mut self, name: &str, n_bytes: u64, expected: Option<u64>) {
        let megabytes = |n: u64| n as f64 / 1e6;
        let Some(transfer) = self.transfer.clone() else {
            let now = megabytes(n_bytes);
            return match expected {
                Some(expected) => {
                    self.show(&format!(
                        "fetching {name}: {now:.1} of {:.1} MB",
                        megabytes(expected)
                    ));
                }
                None => self.show(&format!("fetching {name}: {now:.1} MB")),
            };
        };
        // A file that begins again takes away what it gave.
        let more = n_bytes.wrapping_sub(self.n_counted);
        self.n_counted = n_bytes;
        let before = transfer.n_transferred.fetch_add(more, Ordering::Relaxed);
        if !self.is_terminal && transfer.is_said.swap(true, Ordering::Relaxed) {
            return;
        }
        let (now, all) = (megabytes(before.wrapping_add(more)), megabytes(transfer.n_bytes));
        self.show(&format!(
            "fetching {} files: {now:.1} of {all:.1} MB",
            transfer.n_files
        ));
    }

    pub(crate) fn show(&mut self, news: &str) {
        if self.is_terminal {
            let spinner = ['|', '/', '-', '\\'][(self.started.elapsed().as_millis() / 150 % 4) as usize];
            self.log.push(format!("\r\x1b[K{spinner} {news}"));
            return;
        }
        let kind = news.split(':').next().expect("split yields at least one part");
        if self.said != kind {
            kind.clone_into(&mut self.said);
            self.log.push(format!("{kind}\n"));
        }
    }

    pub(crate) fn clear(&self) {
        if self.is_terminal {
            self.log.push("\r\x1b[K");
        }
    }

    pub(crate) fn done(&mut self, news: &str) {
        self.clear();
        self.log.push(format!("{news}\n"));
    }
}
