//! Progress of downloads and loading.

use std::io::{self, IsTerminal};
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
}

impl Progress {
    pub(crate) fn new(log: &LogWriter) -> Self {
        Progress {
            log: log.clone(),
            is_terminal: io::stderr().is_terminal(),
            started: Instant::now(),
            said: String::new(),
        }
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
