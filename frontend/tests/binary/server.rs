//! A server of the real binary, and what clients of it do.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{arbora, serve};

/// Far more than anything here takes, on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Looks until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what} did not come to be");
        std::thread::yield_now();
    }
}

pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) port: u16,
}

impl Server {
    /// Waits until it serves, and returns what it goes on to say.
    pub(crate) fn start(command: &mut Command) -> (Server, BufReader<ChildStderr>) {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
        let line = next_line(&mut log, "serving at http://");
        let port = line.split("127.0.0.1:").nth(1).expect("an address");
        let port = port.split('/').next().expect("a port").parse().expect("a number");
        (Server { child, port }, log)
    }

    /// Waits until somebody listens on the port it was told.
    pub(crate) fn start_mute(stderr: File) -> Server {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let child = serve(arbora(), port)
            .stderr(stderr)
            .spawn()
            .expect("the binary runs");
        let mut server = Server { child, port };
        until("a server", || {
            if let Some(status) = server.child.try_wait().expect("ours") {
                panic!("it ended with {status}");
            }
            TcpStream::connect(("127.0.0.1", port)).is_ok() && server.get("/health").contains("\"ok\"")
        });
        server
    }

    pub(crate) fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(bytes).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer in time");
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        self.exchange(request.as_bytes())
    }

    pub(crate) fn post(&self, path: &str, headers: &str, body: &[u8]) -> String {
        let n = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {n}\r\n{headers}\r\n"
        );
        self.exchange(&[head.as_bytes(), body].concat())
    }

    pub(crate) fn completes(&self, more: &str) {
        let body = format!("{{\"prompt\": \"a\", \"max_tokens\": 3, \"temperature\": 0{more}}}");
        let answer = self.post("/v1/completions", "", body.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    /// Something that the log says a line about.
    pub(crate) fn provoke_a_line(&self) {
        self.exchange(b"\0\r\n\r\n");
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        let page = self.get("/metrics");
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect("it is exported").parse().expect("a count")
    }

    pub(crate) fn signal(&self, name: &str) {
        kill(name, self.child.id());
    }

    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        let mut status = None;
        until("its end", || {
            status = self.child.try_wait().expect("ours");
            status.is_some()
        });
        status.expect("it ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn kill(signal: &str, process: u32) {
    let killed = Command::new("kill")
        .args(["-s", signal, &process.to_string()])
        .status();
    assert!(killed.expect("there is a kill").success());
}

/// The next line of `log` that holds `text`.
pub(crate) fn next_line(log: &mut impl BufRead, text: &str) -> String {
    let mut read = String::new();
    loop {
        let start = read.len();
        let n = log.read_line(&mut read).expect("text");
        assert!(n > 0, "no line with '{text}' in:\n{read}");
        if read[start..].contains(text) {
            return read[start..].to_owned();
        }
    }
}
