//! A hub on this machine that misbehaves on demand.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How one request is answered instead of properly.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    Status(u16),
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes of the body and then nothing, the connection open.
    Stall(usize),
    /// Sends the whole file, whatever part was asked for.
    WholeFile,
    /// Sends these bytes with their own length.
    Bytes(Vec<u8>),
    /// Leads to this address.
    Redirect(String),
    /// Answers without an ETag, or with this one.
    Etag(Option<String>),
}

/// Method, path, range and authorization of a request.
pub(super) type Asked = (String, String, Option<String>, Option<String>);

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Faults of the next requests with that method and end of the path.
    faults: Vec<(&'static str, String, VecDeque<Fault>)>,
    /// Method, path, range and authorization of every request.
    log: Vec<Asked>,
    /// Connections that stall.
    open: Vec<TcpStream>,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(super) fn new(files: &[(&str, Vec<u8>)]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let files = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.clone()));
        let state = Arc::new(Mutex::new(State {
            files: files.collect(),
            ..State::default()
        }));
        let server = Server {
            address: listener.local_addr().expect("bound"),
            state: Arc::clone(&state),
        };
        // Ends with the test's process; it waits for connections and nothing else.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                std::thread::spawn(move || answer(stream, &state));
            }
        });
        server
    }

    pub(super) fn fail(&self, method: &'static str, path_end: &str, faults: &[Fault]) {
        let mut state = self.state.lock().expect("no test panics with it");
        let faults = faults.iter().cloned().collect();
        state.faults.push((method, path_end.to_owned(), faults));
    }

    pub(super) fn log(&self) -> Vec<Asked> {
        self.state.lock().expect("no test panics with it").log.clone()
    }

    /// Ranges of the GETs of that file, in order.
    pub(super) fn ranges(&self, path_end: &str) -> Vec<Option<String>> {
        let log = self.log();
        let of_file = log
            .iter()
            .filter(|(method, path, ..)| method == "GET" && path.ends_with(path_end));
        of_file.map(|(.., range, _)| range.clone()).collect()
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return;
    };
    let headers: BTreeMap<String, String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    let mut state = state.lock().expect("no test panics with it");
    let range = headers.get("range").cloned();
    let entry = (
        method.clone(),
        path.clone(),
        range.clone(),
        headers.get("authorization").cloned(),
    );
    state.log.push(entry);
    let bare = path.split('?').next().unwrap_or_default();
    let mut matching = state.faults.iter_mut();
    let fault = matching
        .find(|(of, end, faults)| *of == method && bare.ends_with(end.as_str()) && !faults.is_empty())
        .and_then(|(_, _, faults)| faults.pop_front());
    let name = path
        .split("/resolve/")
        .nth(1)
        .and_then(|rest| rest.split_once('/'))
        .map(|(_, name)| name);
    let body = match name {
        None if bare == "/api/v1/models/owner/model/repo/files" => {
            let entries = state.files.iter().map(|(name, bytes)| {
                let (size, hash) = (bytes.len(), sha256(bytes));
                format!(r#"{{"Path":"{name}","Type":"blob","Size":{size},"Sha256":"{hash}"}}"#)
            });
            let entries: Vec<_> = entries.collect();
            Some(format!(r#"{{"Code":200,"Data":{{"Files":[{}]}}}}"#, entries.join(",")).into_bytes())
        }
        None => {
            let siblings: Vec<_> = state
                .files
                .keys()
                .map(|name| format!(r#"{{"rfilename":"{name}"}}"#))
                .collect();
            let listing = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, siblings.join(","));
            path.starts_with("/api/models/owner/model/revision/")
                .then(|| listing.into_bytes())
        }
        Some(name) => state.files.get(name).cloned(),
    };
    let (status, body) = match body {
        Some(body) => (200, body),
        None => (404, b"no such thing".to_vec()),
    };
    if let Some(kept) = respond(&mut stream, &method, (status, body), range, fault) {
        state.open.push(kept);
    }
}

/// Writes the answer; returns the connection where it must stay open.
fn respond(
    stream: &mut TcpStream,
    method: &str,
    (mut status, mut body): (u16, Vec<u8>),
    range: Option<String>,
    fault: Option<Fault>,
) -> Option<TcpStream> {
    let mut etag = Some(sha256(&body));
    let whole = body.len();
    let mut extra = String::new();
    let start = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    let mut cut = usize::MAX;
    let mut stalls = false;
    let ignores_range = matches!(fault, Some(Fault::WholeFile));
    match fault {
        Some(Fault::Status(code)) => (status, body) = (code, b"broken".to_vec()),
        Some(Fault::Redirect(to)) => {
            (status, body) = (302, b"elsewhere, which is a page of its own".to_vec());
            extra = format!("location: {to}\r\nx-linked-size: {whole}\r\n");
        }
        Some(Fault::Bytes(bytes)) => body = bytes,
        Some(Fault::Etag(other)) => etag = other,
        Some(Fault::Cut(n)) => cut = n,
        Some(Fault::Stall(n)) => (cut, stalls) = (n, true),
        Some(Fault::WholeFile) | None => {}
    }
    if let (Some(start), 200, false) = (start, status, ignores_range) {
        body.drain(..start.min(whole));
        status = 206;
        extra = format!("content-range: bytes {start}-{}/{whole}\r\n", whole - 1);
    }
    let etag = etag.map_or(String::new(), |etag| format!("etag: \"{etag}\"\r\n"));
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{etag}{extra}connection: close\r\n\r\n");
    // The client may have gone; that is its business.
    stream.write_all(head.as_bytes()).ok();
    if method == "GET" {
        stream.write_all(&body[..cut.min(length)]).ok();
    }
    stalls.then(|| stream.try_clone().expect("a socket"))
}
