//! HTTP/1.1 as far as a load generator needs it: one connection per request, bodies by length, in chunks or
//! up to the connection's end, handed on as they arrive. A body that ends early is an error.
//!
//! Connections are not kept. 32 threads against `arbora serve` (smollm2:135m, Xeon, 2 CPUs shared with
//! them, 2026-11-25, a client written for the question) saw connects of 15 to 40 us, median TTFT of 65 to
//! 74 ms with a connection each and of 65 to 77 ms with kept ones. Only answers that cost nothing tell the
//! difference: `/health`, 0.9 against 0.4 ms at 35,000 requests a second.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::time::Duration;

/// Longer than any step of a server that still works.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a bench could not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("cannot connect to {authority}: {source}")]
    Connect { authority: String, source: io::Error },
    #[error("{url} is no http://host:port")]
    BadUrl { url: String },
    #[error("not HTTP: {line:?}")]
    NotHttp { line: String },
    #[error("{path} answered {status}: {body}")]
    Status { path: String, status: u16, body: String },
    #[error("the answer has no {field}: {body}")]
    Answer { field: &'static str, body: String },
    #[error(transparent)]
    Backend(#[from] arbora_kernels::BackendError),
    #[error("{0}")]
    Check(String),
}

/// `host:port` of `http://host:port`.
pub(crate) fn authority(url: &str) -> Result<&str, BenchError> {
    let rest = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    rest.filter(|rest| rest.contains(':') && !rest.contains('/'))
        .ok_or_else(|| BenchError::BadUrl { url: url.to_owned() })
}

/// Where requests go, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// `host:port`.
    pub(crate) authority: &'a str,
    /// Sent as a bearer token; `None` for a server that asks for none.
    pub(crate) api_key: Option<&'a str>,
    /// How long a server may send nothing.
    pub(crate) read_timeout: Duration,
}

impl<'a> From<&'a str> for Target<'a> {
    fn from(authority: &'a str) -> Self {
        Self {
            authority,
            api_key: None,
            read_timeout: READ_TIMEOUT,
        }
    }
}

/// Status and headers of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) head: Head,
    reader: BufReader<TcpStream>,
}

impl Response {
    /// Hands the body to `on_data` piece by piece. Breaking off closes the connection.
    pub(crate) fn read(
        mut self,
        mut on_data: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<Head, BenchError> {
        read_body(&mut self.reader, &self.head, &mut on_data)?;
        Ok(self.head)
    }

    /// The whole body of an answer with status 200.
    pub(crate) fn text(self, path: &str) -> Result<(Head, String), BenchError> {
        let mut bytes = Vec::new();
        let head = self.read(|data| {
            bytes.extend_from_slice(data);
            ControlFlow::Continue(())
        })?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if head.status != 200 {
            return Err(BenchError::Status {
                path: path.to_owned(),
                status: head.status,
                body: text,
            });
        }
        Ok((head, text))
    }
}

/// Sends a request (a POST where there is a `body`) and waits for the answer's head.
pub(crate) fn send<'a>(
    target: impl Into<Target<'a>>,
    path: &str,
    body: Option<&str>,
) -> Result<Response, BenchError> {
    let target: Target<'_> = target.into();
    let authority = target.authority;
    let mut stream = TcpStream::connect(authority).map_err(|source| BenchError::Connect {
        authority: authority.to_owned(),
        source,
    })?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(target.read_timeout))?;
    let method = if body.is_some() { "POST" } else { "GET" };
    let body = body.unwrap_or_default();
    let n_bytes = body.len();
    let authorization = target
        .api_key
        .map(|key| format!("authorization: Bearer {key}\r\n"));
    let authorization = authorization.unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n{authorization}\
         content-type: application/json\r\ncontent-length: {n_bytes}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader)?;
    Ok(Response { head, reader })
}

/// Sends a request and hands the answer's body to `on_data` piece by piece. Breaking off closes the
/// connection.
pub(crate) fn request<'a>(
    target: impl Into<Target<'a>>,
    path: &str,
    body: Option<&str>,
    on_data: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<Head, BenchError> {
    send(target, path, body)?.read(on_data)
}

/// The whole body of an answer with status 200.
pub(crate) fn fetch<'a>(
    target: impl Into<Target<'a>>,
    path: &str,
    body: Option<&str>,
) -> Result<(Head, String), BenchError> {
    send(target, path, body)?.text(path)
}

fn read_line(reader: &mut impl BufRead) -> Result<String, BenchError> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(line.trim_end().to_owned())
}

fn read_head(reader: &mut impl BufRead) -> Result<Head, BenchError> {
    let line = read_line(reader)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or(BenchError::NotHttp { line })?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok(Head { status, headers });
        }
        let (key, value) = line
            .split_once(':')
            .ok_or_else(|| BenchError::NotHttp { line: line.clone() })?;
        headers.push((key.to_owned(), value.trim().to_owned()));
    }
}

fn read_body(
    reader: &mut impl BufRead,
    head: &Head,
    on_data: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), BenchError> {
    if head.header("transfer-encoding").is_none() {
        let n_bytes = head.header("content-length").map(|text| {
            let line = || BenchError::NotHttp {
                line: text.to_owned(),
            };
            text.parse().map_err(|_| line())
        });
        return read_plain(reader, n_bytes.transpose()?, on_data);
    }
    loop {
        let line = read_line(reader)?;
        let n_bytes = usize::from_str_radix(&line, 16).map_err(|_| BenchError::NotHttp { line })?;
        let mut bytes = vec![0; n_bytes];
        reader.read_exact(&mut bytes)?;
        read_line(reader)?;
        if n_bytes == 0 || on_data(&bytes).is_break() {
            return Ok(());
        }
    }
}

/// A body of `n_bytes`, or up to the connection's end.
fn read_plain(
    reader: &mut impl BufRead,
    n_bytes: Option<usize>,
    on_data: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), BenchError> {
    let mut n_left = n_bytes.unwrap_or(usize::MAX);
    while n_left > 0 {
        let data = reader.fill_buf()?;
        let n = data.len().min(n_left);
        if n == 0 && n_bytes.is_some() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if n == 0 || on_data(&data[..n]).is_break() {
            return Ok(());
        }
        reader.consume(n);
        n_left -= n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Result<(Head, String), BenchError> {
        let mut reader = text.as_bytes();
        let head = read_head(&mut reader)?;
        let mut body = Vec::new();
        read_body(&mut reader, &head, &mut |data| {
            body.extend_from_slice(data);
            ControlFlow::Continue(())
        })?;
        Ok((head, String::from_utf8(body).expect("the samples are text")))
    }

    #[test]
    fn bodies_are_read_by_length_and_in_chunks() {
        let (head, body) = answer("HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\nabcdef").expect("valid");
        assert_eq!((head.status, body.as_str()), (404, "abc"));
        let chunked =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(answer(chunked).expect("valid").1, "ab0123456789");
        assert_eq!(
            answer("HTTP/1.1 200 OK\r\n\r\nto the end").expect("valid").1,
            "to the end"
        );
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        assert!(matches!(
            answer("HTTP/1.1 200 OK\r\nconte"),
            Err(BenchError::NotHttp { .. } | BenchError::Io(_))
        ));
        let cut = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab";
        assert!(matches!(answer(cut), Err(BenchError::Io(_))));
        let short = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab";
        assert!(matches!(answer(short), Err(BenchError::Io(_))));
    }

    #[test]
    fn urls_are_host_and_port() {
        assert_eq!(
            authority("http://127.0.0.1:8000/").expect("valid"),
            "127.0.0.1:8000"
        );
        assert!(authority("https://example").is_err());
        assert!(authority("http://127.0.0.1:8000/v1").is_err());
    }
}
