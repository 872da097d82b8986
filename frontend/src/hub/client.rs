//! HTTP to the hub. Every byte of an answer is a stranger's: sizes are limited, names checked, and the token
//! goes to the endpoint's own host only.

mod modelscope;

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::{HubError, HubKind, HubModel, HubSettings, Patience, is_file_name};
use crate::progress::Progress;
use crate::tls::system_tls;

/// Most bytes of a listing.
const MAX_LISTING_BYTES: u64 = 32 << 20;
const MAX_REDIRECTS: usize = 10;

/// A revision's files.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    files: Vec<ListedFile>,
}

/// What a listing says of a file.
#[derive(Debug)]
struct ListedFile {
    name: String,
    /// Absent where it does not say.
    n_bytes: Option<u64>,
    /// SHA-256, where the listing is all that is said of a file.
    sha256: Option<String>,
}

impl Listing {
    /// Their paths in the repository.
    pub(super) fn names(&self) -> Vec<String> {
        self.files.iter().map(|file| file.name.clone()).collect()
    }

    /// Bytes of a file, where that is known.
    pub(super) fn n_bytes(&self, name: &str) -> Option<u64> {
        self.named(name)?.n_bytes
    }

    fn named(&self, name: &str) -> Option<&ListedFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

#[derive(Deserialize)]
struct ListingJson {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

/// What the hub says of a file before its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileFacts {
    /// The blob's name: a SHA-256 where the file is large, else another hash.
    pub(super) etag: String,
    /// Bytes, where announced.
    pub(super) n_bytes: Option<u64>,
    /// Where the bytes are.
    location: String,
}

impl FileFacts {
    /// What the bytes must hash to, where the hub says it.
    pub(super) fn sha256(&self) -> Option<&str> {
        is_sha256(&self.etag).then_some(self.etag.as_str())
    }
}

/// Whether the name of a blob is the SHA-256 of its bytes.
pub(super) fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) struct Client {
    agent: Agent,
    kind: HubKind,
    endpoint: String,
    token: Option<String>,
    pub(super) patience: Patience,
}

/// How one request ended without what it was for.
enum Failed {
    /// Trying again may help.
    Passing(HubError),
    Final(HubError),
}

impl Client {
    pub(super) fn new(settings: &HubSettings, patience: Patience) -> Client {
        // Redirects are followed here: what the hub says of a file is in the first answer's headers, and the
        // token must not follow to another host.
        let agent = Agent::config_builder()
            .tls_config(system_tls())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("arbora/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(patience.silence))
            .timeout_recv_response(Some(patience.silence))
            .timeout_per_read(Some(patience.silence))
            .build()
            .new_agent();
        Client {
            agent,
            kind: settings.kind,
            endpoint: settings.endpoint.trim_end_matches('/').to_owned(),
            token: settings.token.clone(),
            patience,
        }
    }

    /// The files of `model`'s revision.
    pub(super) fn list(&self, model: &HubModel, interrupted: &AtomicBool) -> Result<Listing, HubError> {
        let what = format!("model {} at {}", model.id, model.revision);
        let url = match self.kind {
            HubKind::HuggingFace => {
                let revision = model.revision.replace('/', "%2F");
                format!(
                    "{}/api/models/{}/revision/{revision}?blobs=true",
                    self.endpoint, model.id
                )
            }
            HubKind::ModelScope => modelscope::listing_url(&self.endpoint, model),
        };
        let body = self.patiently(interrupted, || {
            let (mut answer, _) = self.follow(&url, &what, None)?;
            let limited = answer.body_mut().with_config().limit(MAX_LISTING_BYTES);
            limited.read_to_vec().map_err(|error| passing(&what, &error))
        })?;
        let read = match self.kind {
            HubKind::HuggingFace => read_listing(&body),
            HubKind::ModelScope => modelscope::read_listing(&body),
        };
        let mut listing = read.map_err(|reason| HubError::BadAnswer { what, reason })?;
        // A file whose name could lead out of the cache is one we do not see.
        listing.files.retain(|file| is_file_name(&file.name));
        Ok(listing)
    }

    /// What the hub says of a file.
    pub(super) fn facts(
        &self,
        model: &HubModel,
        listing: &Listing,
        file: &str,
        interrupted: &AtomicBool,
    ) -> Result<FileFacts, HubError> {
        let what = format!("{file} of {}", model.id);
        if self.kind == HubKind::ModelScope {
            return modelscope::facts(&self.endpoint, model, listing, file)
                .ok_or(HubError::NotFound { what });
        }
        let commit = &listing.commit;
        let url = format!("{}/{}/resolve/{commit}/{file}", self.endpoint, model.id);
        self.patiently(interrupted, || {
            let (answer, headers) = self.follow(&url, &what, Some(Method::Head))?;
            let bad = |reason: String| {
                let what = what.clone();
                Failed::Final(HubError::BadAnswer { what, reason })
            };
            let find = |name: &str| {
                let mut found = headers.iter().filter_map(|headers| text_of(headers, name));
                found.next()
            };
            let etag = find("x-linked-etag").or_else(|| find("etag"));
            let etag = etag.ok_or_else(|| bad("it has no ETag".to_owned()))?;
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
            if !is_hash(&etag) {
                return Err(bad(format!("'{etag}' is no hash")));
            }
            // The length of a redirect is that of its own page.
            let own = text_of(answer.headers(), "content-length").filter(|_| answer.status().is_success());
            let n_bytes = find("x-linked-size").or(own);
            Ok(FileFacts {
                etag,
                n_bytes: n_bytes.and_then(|text| text.parse().ok()),
                location: url.clone(),
            })
        })
    }

    /// Appends what is missing of the file to `out`; returns its length.
    ///
    /// A try that brought something does not count as failed: a slow or shaky connection goes on from where
    /// it is for as long as it gets on.
    pub(super) fn download(
        &self,
        facts: &FileFacts,
        name: &str,
        out: &mut File,
        (progress, interrupted): (&mut Progress, &AtomicBool),
    ) -> Result<u64, HubError> {
        let mut furthest = 0;
        let mut tries_left = self.patience.tries;
        let mut pause = self.patience.pause;
        loop {
            let failed = match self.download_once(facts, name, out, progress, interrupted) {
                Ok(n_bytes) => return Ok(n_bytes),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Passing(error)) => error,
            };
            let n_bytes = length(out, name)?;
            if n_bytes > furthest {
                (furthest, tries_left, pause) = (n_bytes, self.patience.tries, self.patience.pause);
            }
            tries_left -= 1;
            if tries_left == 0 {
                return Err(failed);
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(HubError::Interrupted);
            }
            crate::progress::pause(pause);
            pause *= 2;
        }
    }

    fn download_once(
        &self,
        facts: &FileFacts,
        name: &str,
        out: &mut File,
        progress: &mut Progress,
        interrupted: &AtomicBool,
    ) -> Result<u64, Failed> {
        let mut n_bytes = length(out, name).map_err(Failed::Final)?;
        if n_bytes > 0 && Some(n_bytes) == facts.n_bytes {
            return Ok(n_bytes);
        }
        if facts.n_bytes.is_some_and(|expected| n_bytes > expected) {
            // Something else left it: there is nothing to go on with.
            out.set_len(0)
                .map_err(|error| Failed::Final(io_error(name, error)))?;
            n_bytes = 0;
        }
        let (mut answer, _) = self.follow(&facts.location, name, Some(Method::From(n_bytes)))?;
        let continues = answer.status() == 206 && content_start(answer.headers()) == Some(n_bytes);
        if n_bytes > 0 && !continues {
            // It sends the whole file again.
            out.set_len(0)
                .map_err(|error| Failed::Final(io_error(name, error)))?;
            n_bytes = 0;
            if answer.status() == 206 {
                return Err(passing(name, &"the wrong part of the file came"));
            }
        }
        let mut body = answer.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            if interrupted.load(Ordering::Relaxed) {
                return Err(Failed::Final(HubError::Interrupted));
            }
            let broken = |error| passing(name, &format!("{error} after {n_bytes} bytes"));
            let n = body.read(&mut buffer).map_err(broken)?;
            if n == 0 {
                break;
            }
            out.write_all(&buffer[..n])
                .map_err(|error| Failed::Final(io_error(name, error)))?;
            n_bytes += n as u64;
            if facts.n_bytes.is_some_and(|expected| n_bytes > expected) {
                break;
            }
            progress.transferred(name, n_bytes, facts.n_bytes);
        }
        match facts.n_bytes {
            Some(expected) if n_bytes < expected => Err(passing(
                name,
                &format!("the connection ended after {n_bytes} of {expected} bytes"),
            )),
            _ => Ok(n_bytes),
        }
    }

    /// One request and the redirects it leads through: the last answer, and the headers of all of them. A
    /// HEAD stops where a redirect leaves the host: what stands there may be signed for a GET only.
    fn follow(
        &self,
        url: &str,
        what: &str,
        method: Option<Method>,
    ) -> Result<(Response<Body>, Vec<HeaderMap>), Failed> {
        let bad = |reason: &str| {
            let (what, reason) = (what.to_owned(), reason.to_owned());
            Failed::Final(HubError::BadAnswer { what, reason })
        };
        let mut url: Uri = url.parse().map_err(|_| bad("its address is none"))?;
        let mut headers = Vec::new();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.ask(&url, method).map_err(|error| passing(what, &error))?;
            headers.push(answer.headers().clone());
            if !answer.status().is_redirection() {
                return check_status(answer, what).map(|answer| (answer, headers));
            }
            let location = text_of(answer.headers(), "location");
            let location = location.ok_or_else(|| bad("a redirect without a location"))?;
            let next = join(&url, location).ok_or_else(|| bad("a redirect to no address"))?;
            if matches!(method, Some(Method::Head)) && next.authority() != url.authority() {
                return Ok((answer, headers));
            }
            url = next;
            let is_downgrade = self.endpoint.starts_with("https:") && url.scheme_str() != Some("https");
            if is_downgrade {
                return Err(bad("a redirect away from HTTPS"));
            }
        }
        Err(bad("too many redirects"))
    }

    fn ask(&self, url: &Uri, method: Option<Method>) -> Result<Response<Body>, ureq::Error> {
        let is_head = matches!(method, Some(Method::Head));
        let mut request = match is_head {
            true => self.agent.head(url),
            false => self.agent.get(url),
        };
        let own = self
            .endpoint
            .parse::<Uri>()
            .is_ok_and(|own| (own.scheme(), own.authority()) == (url.scheme(), url.authority()));
        if let (true, Some(token)) = (own, &self.token) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(Method::From(start)) = method
            && start > 0
        {
            request = request.header("range", format!("bytes={start}-"));
        }
        request.header("accept-encoding", "identity").call()
    }

    fn patiently<T>(
        &self,
        interrupted: &AtomicBool,
        mut request: impl FnMut() -> Result<T, Failed>,
    ) -> Result<T, HubError> {
        let mut pause = self.patience.pause;
        let mut tries_left = self.patience.tries;
        loop {
            match request() {
                Ok(answer) => return Ok(answer),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Passing(error)) if tries_left == 1 => return Err(error),
                Err(Failed::Passing(_)) if interrupted.load(Ordering::Relaxed) => {
                    return Err(HubError::Interrupted);
                }
                Err(Failed::Passing(_)) => {}
            }
            crate::progress::pause(pause);
            (pause, tries_left) = (pause * 2, tries_left - 1);
        }
    }
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    /// A GET of what follows that many bytes.
    From(u64),
}

fn passing(what: &str, reason: &dyn std::fmt::Display) -> Failed {
    Failed::Passing(HubError::Unreachable {
        what: what.to_owned(),
        reason: reason.to_string(),
    })
}

fn check_status(answer: Response<Body>, what: &str) -> Result<Response<Body>, Failed> {
    let (status, what) = (answer.status().as_u16(), what.to_owned());
    match status {
        200 | 206 => Ok(answer),
        401 | 403 => Err(Failed::Final(HubError::Unauthorized { what, status })),
        404 => Err(Failed::Final(HubError::NotFound { what })),
        408 | 429 | 500..=599 => Err(Failed::Passing(HubError::Status { what, status })),
        _ => Err(Failed::Final(HubError::Status { what, status })),
    }
}

fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Names of commits and blobs become names of files.
fn is_hash(text: &str) -> bool {
    (8..=128).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The address a redirect leads to.
fn join(from: &Uri, location: &str) -> Option<Uri> {
    let target: Uri = location.parse().ok()?;
    if target.scheme().is_some() {
        return Some(target);
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = Some(target.path_and_query()?.clone());
    Uri::from_parts(parts).ok()
}

/// First byte of a partial answer: `bytes 100-199/200`.
fn content_start(headers: &HeaderMap) -> Option<u64> {
    let range = text_of(headers, "content-range")?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn length(file: &File, name: &str) -> Result<u64, HubError> {
    let metadata = file.metadata().map_err(|error| io_error(name, error))?;
    Ok(metadata.len())
}

fn io_error(name: &str, source: std::io::Error) -> HubError {
    let path = name.into();
    HubError::Cache {
        what: "write",
        path,
        source,
    }
}

/// Hugging Face's listing; an error says what is wrong with it.
fn read_listing(body: &[u8]) -> Result<Listing, String> {
    let json: ListingJson = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if !is_hash(&json.sha) {
        return Err(format!("'{}' is no commit", json.sha));
    }
    let files = json.siblings.into_iter().map(|sibling| ListedFile {
        name: sibling.rfilename,
        n_bytes: sibling.size,
        sha256: None,
    });
    Ok(Listing {
        commit: json.sha,
        files: files.collect(),
    })
}
